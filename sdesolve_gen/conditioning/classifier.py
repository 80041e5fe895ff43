"""Classifier guidance: a model that knows no classes, told by a classifier which one is wanted.

    grad ln p_t(x | y) = grad ln p_t(x) + grad ln p_t(y | x)            [Song et al. 2021, eq. 14]

is Bayes' rule, so the samples follow p(x | y) as exactly as score and classifier are right, by any method.  A scale s multiplies the second term,
which samples where the classifier is surer:  p_t(x) p_t(y | x)^s.  [Dhariwal & Nichol 2021, section 4.3]
"""

from __future__ import annotations

import math
from contextlib import nullcontext

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

import sdesolve as sd
from sdesolve.guided import transformed

from ..classifiers import Classifier
from .labels import Labels, checked_labels


def classifier_guidance(score: sd.Score, classifier: Classifier, labels: int | Tensor, scale: float = 1.0) -> sd.Score:
    """The score of p_t(x | y):  score + scale grad_x ln p_t(y | x_t).  [Song et al. 2021, section 4, eq. 14]

    Exact at scale 1 for an exact score and classifier, since Bayes' rule holds at every time; at other scales
    p_t(x) p_t(y|x)^s is not what the forward process makes of its own limit, so that samples follow no law of that form exactly.

    Cost: besides the score one call of the classifier and one backward pass through it; ``nfe`` counts both calls, as a result and as a limit.

    Arguments:
        score: of the unconditional model, or of one that knows labels.
        classifier: of the same process: :func:`sdesolve_gen.load_classifier`, or ``Classifier(network, process, classes=10)``.
        labels: y, one int for all rows, or (B,) integers from 0 to classes - 1, one a row.
        scale: s >= 0; 1 is Bayes' rule.

    Raises:
        ValueError: a classifier of another process, a label out of range, scale < 0; when called, another number of rows than labels.
    """
    if classifier.process != score.process:
        raise ValueError(f"the classifier knows {classifier.process} and the score is of {score.process}; expected one process.")
    check_scale("scale", scale)
    gradient = sd.as_score(_Gradient(classifier, checked_labels(labels, classifier.classes)), score.process, predicts="score")
    return sd.guided(score, lambda at: scale * gradient(at.x, at.t), calls=gradient.calls)


def check_scale(name: str, scale: object) -> None:
    """Raises ValueError unless the scale is a finite number >= 0."""
    if isinstance(scale, bool) or not isinstance(scale, int | float) or not 0 <= scale < math.inf:
        raise ValueError(f"{name}={scale!r}; expected a finite number >= 0, as in {name}=1.0.")


class _Gradient(Labels):
    """(x, t) -> grad_x ln p_t(y | x), with a graph of its own where the solver keeps one."""

    def __init__(self, classifier: Classifier, labels: Tensor) -> None:
        super().__init__(labels)
        self.classifier = classifier

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        labels, keep = self.rows(x), torch.is_grad_enabled() and x.requires_grad
        twice = sdpa_kernel(SDPBackend.MATH) if keep or transformed() else nullcontext()  # the fast kernels of attention have no second derivative
        with torch.inference_mode(False), torch.enable_grad(), twice:
            if transformed():
                return torch.func.grad(lambda at: self._log_probability(at, t, labels).sum())(x)
            at = x if keep else x.detach().clone().requires_grad_()
            return torch.autograd.grad(self._log_probability(at, t, labels).sum(), at, create_graph=keep)[0]

    def _log_probability(self, x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        """(B, 1) of each row's label."""
        return self.classifier.logits(x, t).log_softmax(1).gather(1, labels.to(x.device)[:, None])
