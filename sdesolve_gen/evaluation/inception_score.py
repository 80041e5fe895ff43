"""Inception score: how sure a classifier is of each image, and how evenly the images spread over its classes.

    IS = exp( E_x KL( p(c|x) | p(c) ) ),    p(c) = E_x p(c|x)                                             [Salimans et al. 2016, section 4]

As published, the mean over ten parts of the images: a part of few images knows p(c) badly, which takes about (classes - 1)/2n off its logarithm.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .figure import Figure, of_mean, order

PARTS = 10


def inception_score(probabilities: Tensor) -> Figure:
    """Of class probabilities (n, classes) of the images, n >= 2: from 1, all alike or none sure, to the number of classes."""
    count = min(PARTS, len(probabilities) // 2)
    scores = [_score(probabilities[rows].double()) for rows in order(len(probabilities)).tensor_split(count)]
    return of_mean(scores, f"{count} parts of {len(probabilities) // count}")


def _score(p: Tensor) -> float:
    entropy = torch.special.entr(p).sum(1).mean()
    return float((torch.special.entr(p.mean(0)).sum() - entropy).exp())
