"""How much of what is made looks real, and how much of what is real is made, by balls about the rows of each sample.

B(y_j) is the ball about y_j that reaches to the k-th nearest other row of its own sample.  For x made and y real,

    precision    share of x_i that lie in some B(y_j)           recall      share of y_j that lie in some B(x_i)       (k = 3)
    density      mean number of B(y_j) that x_i lies in, / k    coverage    share of B(y_j) in which some x_i lies     (k = 5)

[Kynkäänniemi et al. 2019, eq. 1-2; Naeem et al. 2020, eq. 3-4].  All four depend on the numbers of rows, so both samples give as many, at most
10,000.  The standard errors are those of a mean over the rows that are judged, the balls taken as they are.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from .figure import Figure, order

MOST = 10_000  # rows of each sample
_AT_ONCE = 10_000_000  # distances held


def precision_recall(x: Tensor, y: Tensor, k: int = 3) -> dict[str, Figure]:
    """Of made features (n, d) and real ones (m, d), n and m > k."""
    x, y = _alike(x, y)
    real, made = _radii(y, k), _radii(x, k)
    precise = torch.cat([(d <= real).any(1) for d in _distances(x, y)])
    recalled = torch.cat([(d <= made).any(1) for d in _distances(y, x)])
    return {"precision": _share(precise, k), "recall": _share(recalled, k)}


def density_coverage(x: Tensor, y: Tensor, k: int = 5) -> dict[str, Figure]:
    """Of made features (n, d) and real ones (m, d), n and m > k."""
    x, y = _alike(x, y)
    real = _radii(y, k)
    balls = torch.cat([(d <= real).sum(1) for d in _distances(x, y)]).double() / k
    nearest = torch.cat([d.amin(1) for d in _distances(y, x)])
    density = Figure(float(balls.mean()), float(balls.std()) / math.sqrt(len(balls)), _note(k, len(x)))
    return {"density": density, "coverage": _share(nearest <= real, k)}


def _alike(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """As many rows of each."""
    n = min(len(x), len(y), MOST)
    return x[order(len(x))[:n]].double(), y[order(len(y))[:n]].double()


def _distances(a: Tensor, b: Tensor) -> Iterator[Tensor]:
    """Rows of the (n, m) distances, some at a time."""
    for part in a.split(max(1, _AT_ONCE // len(b))):
        yield torch.cdist(part, b)


def _radii(z: Tensor, k: int) -> Tensor:
    """(n,) distances of each row to the k-th nearest other one; the nearest of all is the row itself."""
    return torch.cat([d.kthvalue(k + 1, dim=1).values for d in _distances(z, z)])


def _share(holds: Tensor, k: int) -> Figure:
    share = float(holds.double().mean())
    return Figure(share, math.sqrt(share * (1 - share) / len(holds)), _note(k, len(holds)))


def _note(k: int, n: int) -> str:
    return f"k = {k}, {n} images of each"
