"""A measured number with its standard error, and the delete-a-group jackknife that gives one to any statistic.

    Var  ~  (G - 1)/G  sum_g (theta_(g) - mean theta)^2,        bias  ~  (G - 1) (mean theta - theta)

with theta_(g) the statistic without group g of G.                                      [Efron & Stein 1981; Efron & Tibshirani 1993, ch. 11]
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

GROUPS = 20


def order(n: int) -> Tensor:
    """The numbers 0..n-1 in an order, always the same, that has nothing to do with theirs: rows may come class by class, or in turns of ten."""
    return torch.randperm(n, generator=torch.Generator().manual_seed(0))


class Figure(NamedTuple):
    """A measured number.

    Attributes:
        value: the measurement.
        standard_error: its spread over other samples of the same model, the reference kept; None where it cannot be told.
        note: what must be known to read it.
    """

    value: float
    standard_error: float | None
    note: str = ""


def of_mean(values: Sequence[float], note: str = "") -> Figure:
    """The mean of independent numbers."""
    n = len(values)
    mean = math.fsum(values) / n
    error = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (n - 1) / n) if n > 1 else None
    return Figure(mean, error, note)


def jackknife(whole: float, without: Sequence[float]) -> tuple[float, float]:
    """Standard error and bias of a statistic, from its values without each of some equal groups."""
    groups = len(without)
    mean = math.fsum(without) / groups
    return math.sqrt((groups - 1) / groups * math.fsum((v - mean) ** 2 for v in without)), (groups - 1) * (mean - whole)
