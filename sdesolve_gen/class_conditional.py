"""What ``Model.sample`` makes of labels: the class score, classifier-free guidance and a classifier, one on top of the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

import sdesolve as sd
from sdesolve.methods import METHODS

from .classifiers import Classifier
from .conditioning.classifier import check_scale, classifier_guidance
from .conditioning.classifier_free import Guidance, classifier_free_guidance
from .conditioning.labels import checked_labels

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
    if guided and not model.classes:
        raise ValueError(f"guidance={guidance!r} is for a model that knows classes, and {model.card['name']!r} knows none; expected classifier=... and labels=....")
    if guided and not model.knows_none:
        raise ValueError(f"guidance={guidance!r} goes away from what the model says of no class, and {model.card['name']!r} knows its classes alone; expected guidance=1.0.")
    if classifier is None and classifier_scale != 1.0:
        raise ValueError(f"classifier_scale={classifier_scale!r} without a classifier; expected classifier=load_classifier('mnist_classifier') beside it.")
    if classifier is None and not model.classes:
        if labels is not None:
            raise ValueError(
                f"labels were given, and the model {model.card['name']!r} knows no classes; expected classifier=... beside them, "
                "as in classifier=load_classifier('mnist_classifier')."
            )
        return None
    if classifier is not None:
        _check_classifier(model, classifier)
    classes = model.classes or classifier.classes  # type: ignore[union-attr]
    wanted = checked_labels(labels, classes, n, null=classifier is None and model.knows_none)
    if classifier is not None:
        checked_labels(wanted, classifier.classes)
    return wanted.expand(n)


def class_score(model: Model, labels: Tensor | None, guidance: float | Guidance, classifier: Classifier | None, classifier_scale: float) -> sd.Score:
    """The score of one batch of images with checked labels (B,)."""
    if labels is None:
        return model.score
    shared: Tensor | int = int(labels[0]) if bool((labels == labels[0]).all()) else labels  # one label is for any number of rows
    score = classifier_free_guidance(model.class_score(shared), model.score, guidance) if model.classes else model.score
    return score if classifier is None else classifier_guidance(score, classifier, shared, classifier_scale)


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
