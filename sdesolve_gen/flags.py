"""Flags that several commands have, and what is made of their texts."""

from __future__ import annotations

from typing import Annotated

import typer

from .data import Data, check_shape, read_data
from .models import Model

IMAGES = "a parquet file, a picture or a folder of them, an npz file with `images`, hf:NAME:SPLIT, or a pattern; may be repeated"
Size = Annotated[int, typer.Option(min=0, help="Side that pictures are scaled (the shorter one) and cropped (the middle) to; 0 takes them as they are.")]
Label = Annotated[
    str | None, typer.Option("--label", "--labels", metavar="WORD", help='Of a model that knows classes, the class that is meant: its number, or "none" for no class.')
]
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


def of_one_class(model: Model, label: str | None) -> Model:
    """The model for the class of ``--label``; raises ValueError where it knows classes and none was named."""
    said = word(label)
    if model.classes and said is None:
        raise ValueError(f"the model {model.card['name']!r} knows {model.classes} classes, and this is of one; expected --label 0, or --label none for no class.")
    if said is None:
        return model
    if not model.classes:
        raise ValueError(f"--label {label}: the model {model.card['name']!r} knows no classes; expected no --label, or a --model that knows them, as mnist_conditional does.")
    if isinstance(said, str) and said != "none":
        raise ValueError(f'--label {label}; expected the number of a class, as in --label 0, or "none".')
    if (said == "none" and not model.knows_none) or (isinstance(said, int) and said >= model.classes):
        none = ", or --label none for no class" if model.knows_none else ""
        raise ValueError(f"--label {label}: the model {model.card['name']!r} knows the classes 0 to {model.classes - 1}; expected one of them, as in --label 0{none}.")
    return model.of_class(model.classes if said == "none" else int(said))
