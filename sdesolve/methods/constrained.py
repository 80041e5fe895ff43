"""An operator applied after every move of the state: what holds samples to a measurement, to a manifold or to a range.

    x <- constraint(x, t, normals)

after a predictor's step to t, and after each corrector step at t, with normals of its own for each of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, TypeAlias

from torch import Tensor

from .._arrays import Number, version
from .._errors import CHANGED
from ..correctors import Corrector, Normals
from ..grids import Grid
from ..noise import CONSTRAINT, PART
from ..problems import ScoreProblem
from ..processes import Process
from . import moved
from .base import NONE, Facts, Step, StepNoise, Stepper

Constraint: TypeAlias = Callable[[Tensor, Any, Tensor], Tensor]
"""(x, t, normals) -> x, row by row: x and its standard normals, (B, *event), and t a float or a float64 tensor () or (B,)."""

_PART = CONSTRAINT // PART  # of a corrector step's noise


@dataclass(frozen=True)
class Constrained(Stepper):
    """A method with the constraint after each of its steps.

    Its orders are those of the method where the constraint is smooth and tends to no move at all with the steps; no value between the nodes is
    known, as the constraint is applied at nodes alone.

    Arguments:
        stepper: any method; a multistep method keeps its memory, one with another carry begins afresh in each step.
        constraint: a :data:`Constraint`.
    """

    stepper: Stepper
    constraint: Constraint
    outlives_moves = True

    @cached_property
    def facts(self) -> Facts:  # type: ignore[override]
        inner = moved.facts(self.stepper)
        return inner._replace(strong=NONE, weak={**inner.strong, **inner.weak}, dense=None)

    @property
    def default_grid(self) -> str | None:  # type: ignore[override]
        return self.stepper.default_grid

    @property
    def own_grid(self) -> Grid | None:  # type: ignore[override]
        return self.stepper.own_grid

    @property
    def couples_rows(self) -> bool:
        return self.stepper.couples_rows

    @property
    def one_time(self) -> bool:  # type: ignore[override]
        return self.stepper.one_time

    @property
    def calls_on_the_way(self) -> bool:  # type: ignore[override]
        return self.stepper.calls_on_the_way

    def compiled(self, compile: Callable[[Stepper], Stepper]) -> Stepper:
        """The method alone: a constraint is a function of somebody else's."""
        return Constrained(self.stepper.compiled(compile), self.constraint)

    def check_grid(self, process: Process, ts: Any) -> None:
        self.stepper.check_grid(process, ts)

    def init(self, problem: Any, x: Tensor, t: Number) -> Any:
        return moved.init(self.stepper, problem, x, t)

    def step(self, problem: Any, x: Tensor, t0: Number, t1: Number, noise: StepNoise, carry: Any) -> Step:
        step = moved.step(self.stepper, problem, x, t0, t1, noise, carry)
        return Step(applied(self.constraint, step.x, t1, noise.normal(CONSTRAINT)), carry=step.carry)

    def stats(self, carry: Any) -> dict[str, Tensor]:
        return self.stepper.stats(carry)


@dataclass(frozen=True)
class ConstrainedCorrector(Corrector):
    """A corrector with the constraint after each of its steps, which then are taken one by one."""

    corrector: Corrector
    constraint: Constraint

    @property
    def couples_rows(self) -> bool:
        return self.corrector.couples_rows

    def calls(self, steps: int) -> int:
        return steps * self.corrector.calls(1)

    def init(self, x: Tensor) -> Tensor | None:
        return self.corrector.init(x)

    def correct(self, problem: ScoreProblem, x: Tensor, t: Number, steps: int, normals: Normals, carry: Any) -> tuple[Tensor, Any]:
        for k in range(steps):
            x, carry = self.corrector.correct(problem, x, t, 1, partial(_shifted, normals, k), carry)
            x = applied(self.constraint, x, t, normals(k, _PART))
        return x, carry

    def stats(self, carry: Any) -> dict[str, Tensor]:
        return self.corrector.stats(carry)


def _shifted(normals: Normals, first: int, k: int, part: int) -> Tensor:
    return normals(first + k, part)


def applied(constraint: Constraint, x: Tensor, t: Number, normals: Tensor) -> Tensor:
    """The state after the constraint.

    Raises:
        ValueError: it wrote into what it was given, or returned something that is not like the state.
    """
    before = version(x), version(normals)
    value = constraint(x, t, normals)
    if (version(x), version(normals)) != before:
        raise ValueError(f"constraint {CHANGED}")
    if not isinstance(value, Tensor) or value.shape != x.shape or value.dtype != x.dtype or value.device != x.device:
        got = f"{tuple(value.shape)} {value.dtype} on {value.device}" if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(f"constraint returned {got}; expected {tuple(x.shape)} {x.dtype} on {x.device}, like the state.")
    return value
