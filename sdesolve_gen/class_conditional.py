"""What is made of labels: which an image has, by what was said of them, and the score of its class, with guidance on top where there is some.

    labels=            the class of image i
    3                  that one
    "none"             no class: the label ``classes``, where the network knows it
    "data"             of a data set, its own; of samples, by the shares that the classes have in the data, as far as i images can have them
    "balanced"         of samples, i mod classes: each class in turn

Every class is a function of the image's number alone, so that it is the same in any batch and on any number of processes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

import sdesolve as sd
from sdesolve.methods import METHODS

from .classifiers import Classifier
from .conditioning.classifier import check_scale, classifier_guidance
from .conditioning.classifier_free import Guidance, classifier_free_guidance
from .conditioning.labels import checked_labels
from .data import Data

if TYPE_CHECKING:
    from .models import Model


def class_labels(
    model: Model, n: int, labels: int | Sequence[int] | Tensor | None, guidance: float | Guidance, classifier: Classifier | None, classifier_scale: float
) -> Tensor | None:
    """The checked labels of n images, (n,) int64; None for a model that knows no classes and is told none.

    Raises:
        ValueError, TypeError: labels that are missing, out of range, too few or for nobody; a classifier of another process or image; a wrong scale.
    """
    guided = guidance != 1.0 or isinstance(guidance, Guidance)
    if not isinstance(guidance, Guidance):
        check_scale("guidance", guidance)
    check_scale("classifier_scale", classifier_scale)
    if guided and model.label is not None:
        raise ValueError(f"guidance={guidance!r} was given, and {without_classes(model)}, with guidance=... beside the class.")
    if guided and not model.classes:
        raise ValueError(f"guidance={guidance!r} is for a model that knows classes, and {model.card['name']!r} knows none; expected classifier=... and labels=....")
    if guided and not model.knows_none:
        raise ValueError(f"guidance={guidance!r} goes away from what the model says of no class, and {model.card['name']!r} knows its classes alone; expected guidance=1.0.")
    if classifier is None and classifier_scale != 1.0:
        raise ValueError(f"classifier_scale={classifier_scale!r} without a classifier; expected classifier=load_classifier('mnist_classifier') beside it.")
    if classifier is None and not model.classes:
        if labels is not None:
            raise ValueError(f"labels were given, and {without_classes(model)}.")
        return None
    if classifier is not None:
        _check_classifier(model, classifier)
    classes = model.classes or classifier.classes  # type: ignore[union-attr]
    wanted = checked_labels(labels, classes, n, null=classifier is None and model.knows_none)
    if classifier is not None:
        checked_labels(wanted, classifier.classes)
    return wanted.expand(n)


def without_classes(model: Model) -> str:
    """Why a model takes no labels, and what is expected of the caller."""
    name = f"the model {model.card['name']!r}"
    if model.label is not None:
        return f"{name} is of class {model.label} already; expected no labels, or of_class of the model that it was made of"
    return f"{name} knows no classes; expected classifier=... beside labels, as in classifier=load_classifier('mnist_classifier')"


def class_score(model: Model, labels: Tensor | None, guidance: float | Guidance, classifier: Classifier | None, classifier_scale: float) -> sd.Score:
    """The score of one batch of images with checked labels (B,)."""
    if labels is None:
        return model.score
    shared: Tensor | int = int(labels[0]) if bool((labels == labels[0]).all()) else labels  # one label is for any number of rows
    score = classifier_free_guidance(model.class_score(shared), model.score, guidance) if model.classes else model.score
    return score if classifier is None else classifier_guidance(score, classifier, shared, classifier_scale)


def labels_of(model: Model, said: int | str | None, own: Data | Tensor | None, n: int, flag: str = "labels") -> Tensor | None:
    """The class of each of n images of a data set, (n,) int64, by what was said; None for a model that knows no classes.

    Arguments:
        said: "data", "none" or a class, as the table above has it.
        own: the data, or their labels, (n,), where they have them.
        flag: what it is called where it was said, as in "--labels".

    Raises:
        ValueError: nothing was said and the model knows classes, or the other way round; no labels in the data; a class that the model does not know, by its
            number or its name.
    """
    if not _asked(model, said, flag):
        return None
    return _meant(model, said, own, f"{_as(flag, 'data')} (each image its own)", flag).expand(n)


def labels_drawn(model: Model, said: int | str | None, own: Data | Tensor | None, ids: Sequence[int], flag: str = "labels") -> Tensor | None:
    """The class of each sample that is to be drawn, (len(ids),) int64; as :func:`labels_of`, and "balanced"."""
    if not _asked(model, said, flag):
        return None
    numbers = torch.as_tensor(list(ids), dtype=torch.int64)
    if said == "balanced":
        return numbers % model.classes
    found = _meant(model, said, own, f"{_as(flag, 'balanced')} (each class in turn), {_as(flag, 'data')} (by their shares in the data)", flag)
    return _by_shares(found, numbers) if said == "data" else found.expand(len(numbers))


def _asked(model: Model, said: int | str | None, flag: str) -> bool:
    """Whether the model knows classes; raises ValueError where it does not and one was said."""
    if not model.classes and said is not None:
        known = "knows none" if model.label is None else f"is of class {model.label} already"
        raise ValueError(f"{_as(flag, said)} is for a model that knows classes, and {model.card['name']!r} {known}; leave it out.")
    return bool(model.classes)


def _meant(model: Model, said: int | str | None, own: Data | Tensor | None, words: str, flag: str) -> Tensor:
    """One class, (), or those of the data, (n,)."""
    none = f", {_as(flag, 'none')} (of no class)" if model.knows_none else ""
    expected = f"expected {words}{none}, or one for all, as in {_as(flag, 0)}"
    if said is None:
        raise ValueError(f"the model {model.card['name']!r} knows {model.classes} classes, and nothing was said of which is meant; {expected}.")
    if said == "data":
        labels = own_labels(model, own) if isinstance(own, Data) else own
        if labels is None:
            raise ValueError(f"{_as(flag, said)}, and the data have no labels; {expected.replace(words, 'data that have')}.")
        return checked_labels(labels, model.classes)
    if isinstance(said, str) and (said != "none" or not model.knows_none):
        raise ValueError(f"{_as(flag, said)}; {expected}.")
    return checked_labels(model.classes if said == "none" else said, model.classes, null=model.knows_none)


def own_labels(model: Model, data: Data) -> Tensor | None:
    """The labels of the data, (n,), by the model's numbers where both say what their classes are called; None where the data have none.

    Raises:
        ValueError: the data have classes of other names than the model's.
    """
    names = model.card.get("class_names")
    if data.labels is None or data.classes is None or not names or data.classes == tuple(names):
        return data.labels
    unknown = [name for name in data.classes if name not in names]
    if unknown:
        raise ValueError(f"the data have classes {', '.join(unknown[:5])}, and those of the model {model.card['name']!r} are {', '.join(names[:20])}; expected these.")
    return torch.tensor([names.index(name) for name in data.classes])[data.labels]


def _as(flag: str, value: object) -> str:
    """What is to be typed."""
    return f"{flag} {value}" if flag.startswith("--") else f"{flag}={value!r}"


_GOLDEN = (math.sqrt(5) - 1) / 2


def _by_shares(own: Tensor, numbers: Tensor) -> Tensor:
    """Quantiles of the labels at the fractions of i times the golden section, of which any number in a row lie evenly in (0, 1)."""
    places = ((numbers.double() + 0.5) * _GOLDEN % 1 * len(own)).long()
    return own.sort().values[places]


def apart(model: Model, labels: int | Sequence[int] | Tensor | None, n: int) -> Iterator[tuple[sd.Score, Tensor]]:
    """Score and rows of the images of each class that occurs, for solvers whose rows leave the batch; of a model without classes its score, for all.

    Raises:
        ValueError, TypeError: labels that are missing, out of range, too few or for nobody.
    """
    wanted = class_labels(model, n, labels, 1.0, None, 1.0)
    if wanted is None:
        yield model.score, torch.arange(n)
        return
    for label in wanted.unique().tolist():
        yield model.class_score(label), (wanted == label).nonzero().flatten()


def on_the_way(ends: Tensor | None, count: int) -> Tensor | None:
    """The classes of ``count`` images between two ends, (2, ...) -> (count, ...): of each that of the nearer end."""
    return None if ends is None else ends[(2 * torch.arange(count) >= count).long()]


def rows_leave(method: str | sd.Stepper, steps: int | None, options: Mapping[str, Any]) -> bool:
    """Whether a solve calls the network with other rows than those of the batch: where steps are chosen per row, or many are taken at once."""
    if options.get("parallel") is not None:
        return True
    if steps is not None or options.get("grid") is not None or options.get("nfe") is not None:
        return False
    if options.get("rtol") is not None or options.get("atol") is not None:
        return True
    if isinstance(method, str):
        return METHODS[method]().chooses_steps if method in METHODS else ":" in method  # another package's solver may
    return method.chooses_steps


def _check_classifier(model: Model, classifier: Classifier) -> None:
    """Raises ValueError unless the classifier knows the model's noisy images."""
    if not isinstance(classifier, Classifier):
        raise TypeError(f"classifier is a {type(classifier).__name__}; expected a sdesolve_gen.Classifier, as load_classifier('mnist_classifier') returns it.")
    if classifier.process != model.process:
        raise ValueError(f"the classifier knows {classifier.process} and the model is of {model.process}; expected one process.")
    for key, own in (("shape", list(model.shape)), ("data_range", list(model.data_range))):
        theirs = classifier.card.get(key, own)
        if list(theirs) != own:
            raise ValueError(f"the classifier knows images with {key} = {theirs}, and the model's have {own}; expected the same.")
