"""A method whose state something else moves between its steps: a corrector, or a constraint.

What a step carries on serves the next where it outlives such moves, as the outputs that a multistep method remembers do; any other carry (a slope at the
state before it was moved) is made anew in each step.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .._arrays import Number
from .base import Facts, Step, StepNoise, Stepper


def facts(stepper: Stepper) -> Facts:
    """The stepper's, with the calls of its ``init`` in each step that begins with one."""
    once = stepper.facts.start if stepper.calls_on_the_way or stepper.outlives_moves else 0
    return stepper.facts._replace(evals=stepper.facts.start - once + stepper.facts.evals, start=once)


def init(stepper: Stepper, problem: Any, x: Tensor, t: Number) -> Any:
    """The first step's carry."""
    return stepper.init(problem, x, t) if stepper.outlives_moves else None


def step(stepper: Stepper, problem: Any, x: Tensor, t0: Number, t1: Number, noise: StepNoise | None, carry: Any) -> Step:
    """A step from a state that has been moved since the last one."""
    taken = stepper.step(problem, x, t0, t1, noise, carry if stepper.outlives_moves else stepper.init(problem, x, t0))
    return taken if stepper.outlives_moves else taken._replace(carry=None)
