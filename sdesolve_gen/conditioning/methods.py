"""Conditioning by name: from a model's score and a measurement to what a solver is given.

A method changes the score, or what follows each step, or both:

    c = method(score, measurement, **options)
    sd.solve(process.reverse(c.score), x_T, method="pc", constraint=c.constraint)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

from torch import Tensor

import sdesolve as sd

Constraint: TypeAlias = Callable[[Tensor, float, Tensor], Tensor]
"""(x, t, normals) -> x: applied after every predictor and every corrector step that ends at t; normals, shaped like x, are its own."""


class Conditioning(NamedTuple):
    """What a conditioning method makes of a score and a measurement."""

    score: sd.Score
    constraint: Constraint | None = None


CONDITIONINGS: dict[str, Callable[..., Conditioning]] = {}
"""method(score, measurement, **options) -> Conditioning, by name."""
