"""Student's t distribution, which torch does not have: how far a mean of a few numbers lies from the truth in units of its standard error."""

from __future__ import annotations

import math


def student_quantile(level: float, dof: int | None) -> float:
    """The q at which P(|t| < q) = ``level`` for ``dof`` degrees of freedom; None for infinitely many, the normal distribution."""
    low, high = 0.0, 1.0
    while _inside(high, dof) < level:
        high *= 2
    for _ in range(60):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if _inside(middle, dof) < level else (low, middle)
    return high


def _inside(q: float, dof: int | None) -> float:
    """P(|t| < q).  [Abramowitz & Stegun 1964, 26.7.3-4]"""
    if dof is None:
        return math.erf(q / math.sqrt(2))
    theta = math.atan(q / math.sqrt(dof))
    sine, square = math.sin(theta), math.cos(theta) ** 2
    odd = dof % 2
    term, total = (math.cos(theta) if odd else 1.0), 0.0
    for k in range(dof // 2):
        total += term
        term *= square * ((2 * k + 2) / (2 * k + 3) if odd else (2 * k + 1) / (2 * k + 2))
    return 2 / math.pi * (theta + sine * total) if odd else sine * total
