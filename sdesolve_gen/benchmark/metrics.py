"""How far samples are from the law, or from the end of their own flow.

The first three are read off one sort along fixed directions u, the same for every sampler, of the samples x_1 ... x_n and of y_1 ... y_n,
which are the means of n equal parts of many more exact draws in their order along u, so that they add next to no noise of their own:

    sliced_w2   (mean over u of  1/n sum_i (<u, x>_(i) - <u, y>_(i))^2)^(1/2)                                [Bonneel et al. 2015, eq. 8]
    energy      length(d) * mean over u of  2 E|x - y| - E|x - x'| - E|y - y'|                                    [Szekely & Rizzo 2013, eq. 5]
    ks          max over u of  sup |F_x - F_y|
    frechet     |m_x - m_y|^2 + tr(C_x + C_y - 2 (C_x C_y)^(1/2))  of given features                          [Heusel et al. 2017, eq. 6]
    trajectory  root mean square over rows and coordinates of  x - x*,  x* the nearest of three ends of the flow, solved finely: from the same
                draw of the prior as it is, and from that draw moved to the Gaussian with the data's mean and standard deviation

None of the first four is zero for right samples: what remains, the *floor*, is measured on exact draws.  The square of ``sliced_w2``, and
``energy`` as it stands, are on average the law's own error plus the floor, ``ks`` and ``frechet`` nearly so, so that

    excess      (value^2 - floor^2)^(1/2)  for sliced_w2,  value - floor  for the others

is the error without the noise of the measurement.  Methods that solve the flow share their starts, and with them the chance in what they make, with
the flow itself; for those the floor is that of the flow's own ends, seed by seed, which are exact draws as well.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sdesolve.exam.measures import unit_directions

from ..evaluation.frechet import Moments, frechet

IN_THE_PLANE, IN_SPACE = 16, 64  # directions

METRICS: dict[str, str] = {
    "sliced_w2": "sliced Wasserstein-2 distance",
    "energy": "energy distance",
    "ks": "Kolmogorov-Smirnov distance, worst direction",
    "frechet": "Fréchet distance of features",
    "trajectory": "distance to the fine solution, RMS",
}
QUADRATIC = frozenset({"sliced_w2"})
"""Metrics whose squares add up with the floor's."""


@dataclass(frozen=True)
class Reference:
    """Exact draws, projected and sorted once, and moments of their features; for samples of ``rows`` rows."""

    directions: Tensor
    ordered: Tensor
    """(L, n) float32, ascending."""
    features: Callable[[Tensor], Tensor] | None
    moments: tuple[Tensor, Tensor] | None

    @classmethod
    def of(cls, draws: Tensor, rows: int, features: Callable[[Tensor], Tensor] | None, seed: int = 0) -> Reference:
        """From exact draws, a multiple of ``rows`` of them."""
        flat = draws.flatten(1).float()
        d = flat.shape[1]
        directions = unit_directions(d, IN_THE_PLANE if d == 2 else IN_SPACE, seed).float()
        moments = None if features is None else Moments.of(features(draws)).gaussian
        parts = _ordered(flat, directions).reshape(len(directions), rows, -1)
        return cls(directions, parts.mean(2), features, moments)

    def measure(self, x: Tensor) -> dict[str, float]:
        """sliced_w2, energy, ks, and frechet where there are features, of samples (n, *event), ``rows`` of them."""
        near, n, d = _ordered(x.flatten(1).float(), self.directions), self.ordered.shape[1], self.directions.shape[1]
        a, b = near.double(), self.ordered.double()
        below = torch.searchsorted(self.ordered, near)  # of the draws, for each sample
        rank = torch.arange(n)
        sums = torch.nn.functional.pad(b.cumsum(1), (1, 0))
        across = (a * (2 * below - n) + sums[:, -1:] - 2 * sums.gather(1, below)).mean(1) / n  # E|x - y|
        within = [2 * ((2 * rank - n + 1) * z).mean(1) / n for z in (a, b)]
        length = math.sqrt(math.pi) * math.exp(math.lgamma((d + 1) / 2) - math.lgamma(d / 2))  # |v| / E|<u, v>|
        found = {
            "sliced_w2": float((a - b).square().mean().sqrt()),
            "energy": float(length * (2 * across - within[0] - within[1]).mean()),
            "ks": float(torch.maximum(rank + 1 - below, below - rank).max() / n),
        }
        return found if self.features is None or self.moments is None else {**found, "frechet": frechet(Moments.of(self.features(x)).gaussian, self.moments)}


def trajectory(x: Tensor, ends: Tensor) -> float:
    """Root mean square over rows and coordinates of x (n, *event) less the nearest, row by row, of several ends (k, n, *event).

    Some packages start where the prior is, others where the law of x_T is nearly, or, knowing the data's directions, nearer: right starts all, a hundredth apart.  A draw on the
    watershed between two modes goes one way from the one and the other way from the other.  That is no sampler's error, and would outweigh all that is.
    """
    away = (x - ends).double().flatten(2).square().mean(2)
    return float(away.amin(0).mean().sqrt())


def _ordered(flat: Tensor, directions: Tensor) -> Tensor:
    return (directions @ flat.T).sort(1).values


def mean_and_error(values: list[float]) -> tuple[float, float | None]:
    """The mean over seeds and its standard error; None for that where there is one seed."""
    n = len(values)
    mean = sum(values) / n
    return mean, math.sqrt(sum((v - mean) ** 2 for v in values) / (n - 1) / n) if n > 1 else None


def excess(metric: str, values: list[float], floors: list[float], paired: bool) -> dict[str, Any]:
    """The error without the floor, {"mean", "se", "resolved"}; not resolved where it lies within two standard errors of nothing.

    An unresolved excess is given as its upper end, the mean and two standard errors, so that a ratio with it is cautious.

    Arguments:
        values: measured, one a seed.
        floors: the floor's, one a seed; none for a metric that has no floor.
        paired: whether floors[i] is the floor of values[i], as the flow's own ends are for a method that solves it from the same starts: what
            the starts have of chance then drops out.
    """
    if not floors:
        mean, se = mean_and_error(values)
        return {"mean": mean, "se": se, "resolved": True}
    power = 2 if metric in QUADRATIC else 1
    v, f = ([number**power for number in numbers] for numbers in (values, floors))
    error: float | None
    if paired:
        square, error = mean_and_error([a - b for a, b in zip(v, f, strict=True)])
    else:
        (a, da), (b, db) = mean_and_error(v), mean_and_error(f)
        square, error = a - b, None if da is None or db is None else math.hypot(da, db)
    if error is None or square > 2 * error:
        mean = max(square, 0.0) ** (1 / power)
        return {"mean": mean, "se": error / (power * mean ** (power - 1)) if error else None, "resolved": square > 0}
    return {"mean": (max(square, 0.0) + 2 * error) ** (1 / power), "se": None, "resolved": False}
