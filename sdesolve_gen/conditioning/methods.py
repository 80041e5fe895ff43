"""Conditioning by name: from a model's score and a measurement to what a solver is given.

A method changes the score, or what follows each step, or how the steps are walked:

    c = method(score, measurement, **options)
    sd.solve(process.reverse(c.score), x_T, method="pc" if c.method is None else c.method("pc"), constraint=c.constraint)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

from torch import Tensor

import sdesolve as sd
from sdesolve.methods import make_method

Constraint: TypeAlias = Callable[[Tensor, Any, Tensor], Tensor]
"""(x, t, normals) -> x: applied after every predictor and every corrector step that ends at t, a float or a tensor () or (B,); normals, shaped like x, are its own."""


class Conditioning(NamedTuple):
    """What a conditioning method makes of a score and a measurement."""

    score: sd.Score
    constraint: Constraint | None = None
    method: Callable[..., sd.Stepper] | None = None
    """(method, **options) -> what is to walk in the place of that method, by name or made; None where it is the method itself."""


def made(method: str | sd.Stepper, **options: Any) -> sd.Stepper:
    """A method by name with its options, or one that is made already."""
    if method == "auto":
        raise ValueError("method 'auto' is chosen by solve, and here another walks by its steps; expected one by name, as in 'ddim'.")
    if isinstance(method, str):
        return make_method(method, **options)
    if options:
        raise ValueError(f"unknown argument(s) {', '.join(options)}: the options of a Stepper are given when it is made.")
    return method


CONDITIONINGS: dict[str, Callable[..., Conditioning]] = {}
"""method(score, measurement, **options) -> Conditioning, by name."""
