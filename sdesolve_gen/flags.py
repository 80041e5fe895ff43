"""Flags that several commands have, and what is made of their texts."""

from __future__ import annotations

from typing import Annotated

import typer

from .classifiers import Classifier, embedded_classifiers
from .data import Data, check_shape, read_data
from .models import Model

IMAGES = "a parquet file, a picture or a folder of them, an npz file with `images`, hf:NAME:SPLIT, or a pattern; may be repeated"
Size = Annotated[int, typer.Option(min=0, help="Side that pictures are scaled (the shorter one) and cropped (the middle) to; 0 takes them as they are.")]
Label = Annotated[
    str | None, typer.Option("--label", "--labels", metavar="WORD", help='Of a model that knows classes, the class that is meant: its number, or "none" for no class.')
]
ClassifierName = Annotated[
    str | None, typer.Option(help=f"What finds the classes for a model without labels: {', '.join(embedded_classifiers())}, or a folder.")
]
ClassifierScale = Annotated[float, typer.Option(help="What the classifier's gradient is multiplied by: 1 is Bayes' rule, more obeys better.")]
GuidanceScale = Annotated[float, typer.Option(help="Scale of classifier-free guidance, for a model with labels.")]
Labels = Annotated[
    str | None,
    typer.Option(
        "--labels", "--label", metavar="WORD",
        help='Of a model that knows classes, those of the images: "data" for their own labels, "none" for no class, or the number of one for all.',
    ),
]  # fmt: skip


def one_or_more(texts: list[str]) -> str | list[str]:
    """What was given once, or all that was given."""
    return texts[0] if len(texts) == 1 else texts


def word(text: str | None) -> int | str | None:
    """The number that a text is, or the text."""
    return int(text) if text is not None and text.isdecimal() else text


def read_for(model: Model, data: list[str], size: int) -> Data:
    """The images of ``--data``, which are the model's in shape."""
    return check_shape(read_data(data, size, floats=True), model.shape)


def of_one_class(model: Model, label: str | None, guidance: float = 1.0, classifier: Classifier | None = None, classifier_scale: float = 1.0) -> Model:
    """The model for the class of ``--label``, guided as ``Model.of_class`` does it; raises ValueError where there are classes and none was named, or the other way round."""
    said, classes = word(label), model.classes or (0 if classifier is None else classifier.classes)
    who = f"the model {model.card['name']!r}" if model.classes or classifier is None else f"the classifier {classifier.card.get('name')!r}"
    null = bool(model.classes) and model.knows_none and classifier is None
    none = ", or --label none for no class" if null else ""
    if classes and said is None:
        raise ValueError(f"{who} knows {classes} classes, and this is of one; expected --label 0{none}.")
    if not classes and said is not None:
        raise ValueError(f"--label {label}: {who} knows no classes; expected no --label, or a --model that knows them, as mnist_conditional does, or a --classifier.")
    if isinstance(said, str) and said != "none":
        raise ValueError(f'--label {label}; expected the number of a class, as in --label 0, or "none".')
    if (said == "none" and not null) or (isinstance(said, int) and said >= classes):
        raise ValueError(f"--label {label}: {who} knows the classes 0 to {classes - 1}; expected one of them, as in --label 0{none}.")
    if said is None and guidance == classifier_scale == 1:
        return model
    return model.of_class(classes if said == "none" else int(said or 0), guidance=guidance, classifier=classifier, classifier_scale=classifier_scale)
