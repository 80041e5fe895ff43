"""Fréchet distance of features, with a standard error and without the bias of few samples.

    FID = |m_x - m_y|^2 + tr(C_x + C_y - 2 (C_x C_y)^(1/2))                                               [Heusel et al. 2017, eq. 6]

In float64; tr (C_x C_y)^(1/2) is the sum of the roots of the eigenvalues of the symmetric C_y^(1/2) C_x C_y^(1/2), which are real and
not negative whatever the rank.  Moments are gathered part by part, without a difference of large sums.  [Chan, Golub & LeVeque 1983, eq. 2.1]

The FID of n samples is too large by about b/n, even for samples of the reference's own law, and b differs between models, so that
distances at different n, or at one small n, do not compare.  The jackknife over groups of samples gives its standard error, and that
bias: what is left is FID_infinity, that of infinitely many samples to first order.                      [Chong & Forsyth 2020, section 3]

For samples of the reference's own law N(m, s^2 I) in k dimensions the eigenvalues follow Marchenko & Pastur's law of ratio c = k/n, so that
FID = s^2 k (2 - 2 E lambda^(1/2) + c/k) = s^2 k (c/4 + c^2/32 + ...): the first order is what is taken off, and c/8 of it stays, with the other sign.
For c = 1/5 that is 2.5 %, about one standard error; nearer to c = 1 it is the larger part.  So FID_infinity is given for n >= 5 k alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import reduce
from typing import NamedTuple

import torch
from torch import Tensor

from .figure import GROUPS, Figure, jackknife, order

ENOUGH = 5  # samples a feature, from which on the first order in 1/n is all that matters

Gaussian = tuple[Tensor, Tensor]
"""Mean (k,) and covariance (k, k), float64."""


class Moments(NamedTuple):
    """Number, mean (k,) and scatter sum (f - mean)(f - mean)^T (k, k) of features, in float64."""

    n: int
    mean: Tensor
    scatter: Tensor

    @classmethod
    def of(cls, features: Tensor) -> Moments:
        """Of features (n, k), n >= 1."""
        f = features.double()
        mean = f.mean(0)
        away = f - mean
        return cls(len(f), mean, away.T @ away)

    def merged(self, other: Moments) -> Moments:
        """Of both samples together."""
        n, apart = self.n + other.n, other.mean - self.mean
        scatter = self.scatter + other.scatter + torch.outer(apart, apart) * (self.n * other.n / n)
        return Moments(n, self.mean + apart * (other.n / n), scatter)

    @property
    def gaussian(self) -> Gaussian:
        """Mean and unbiased covariance."""
        return self.mean, self.scatter / (self.n - 1)


class FrechetTo:
    """The distance to one reference, whose root is taken once."""

    def __init__(self, reference: Gaussian) -> None:
        self._mean, self._covariance = reference
        values, vectors = torch.linalg.eigh(self._covariance)
        self._root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T

    def __call__(self, mean: Tensor, covariance: Tensor) -> float:
        cross = torch.linalg.eigvalsh(self._root @ covariance @ self._root).clamp(min=0).sqrt().sum()
        return float((mean - self._mean).square().sum() + covariance.trace() + self._covariance.trace() - 2 * cross)


def frechet(a: Gaussian, b: Gaussian) -> float:
    """Squared 2-Wasserstein distance of two Gaussians."""
    return FrechetTo(b)(*a)


def together(parts: Iterable[Moments]) -> Moments:
    """Of several samples as one."""
    return reduce(Moments.merged, parts)


def grouped(features: Tensor) -> list[Moments]:
    """Moments of ``GROUPS`` groups of the rows (n, k), fewer where n is small, whatever order they are in."""
    count = max(1, min(GROUPS, len(features) // 2))
    return [Moments.of(features[rows]) for rows in order(len(features)).tensor_split(count)]


def fid(groups: list[Moments], reference: Gaussian) -> dict[str, Figure]:
    """FID of samples, given in groups, against a reference whose own moments are taken as they are, and FID_infinity where n >= ``ENOUGH`` k.

    Arguments:
        groups: of equal size but for one row, as :func:`grouped` makes them; two of them at least for a standard error.
        reference: mean and covariance, as they are or as they were published.
    """
    distance, everything = FrechetTo(reference), together(groups)
    value = distance(*everything.gaussian)
    if len(groups) < 2:
        return {"fid": Figure(value, None)}
    without = [distance(*together([other for other in groups if other is not group]).gaussian) for group in groups]
    error, bias = jackknife(value, without)
    found = {"fid": Figure(value, error, f"of {everything.n} images")}
    if everything.n < ENOUGH * len(everything.mean):
        return found
    return {**found, "fid_infinity": Figure(value - bias, error, "of infinitely many images, to first order")}
