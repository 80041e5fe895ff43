"""What a method of another package is: a stepper that brings its own loop."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor

from .. import _tally
from .._loops import fixed
from .._loops.adaptive import Task
from .._loops.fixed import Moment, Observer, Outcome
from ..grids import Grid
from ..methods import Facts, StepNoise, Stepper
from ..problems import NoiseKind
from ..solution import Status


@dataclass(frozen=True)
class Backend(Stepper):
    """A method of another package.

    Arguments:
        method: "package:name", as ``solve`` is given it.
        options: the package's own for it.
        noise: the kind of the problem's noise, where it has any.
        at_tolerance: whether rtol or atol was given.
    """

    method: str
    options: Mapping[str, Any] = field(default_factory=dict)
    noise: NoiseKind | None = None
    at_tolerance: bool = False
    table: ClassVar[Mapping[str, Facts]]
    """What the methods of the package declare, by name."""

    @property
    def name(self) -> str:
        """What the package calls it."""
        return self.method.partition(":")[2]

    @cached_property
    def facts(self) -> Facts:  # type: ignore[override]
        return self.table[self.name]

    @property
    def chooses_steps(self) -> bool:
        """Whether it keeps to a tolerance unasked, which an ODE method of order 2 does not."""
        return self.error_order is not None and (self.facts.ode is None or self.facts.ode > 2)

    @property
    def known_options(self) -> tuple[str, ...]:
        """Names of the options that the method has."""
        return ()

    def walk(
        self,
        problem: Any,
        x: Tensor,
        grid: Grid,
        noise_at: Callable[[int], StepNoise | None],
        saves: Mapping[int, tuple[float, ...]],
        observe: Observer | None,
    ) -> Outcome:
        """Step along ``grid``; the arguments are those of the fixed loop, which is what runs a method that has a ``step``."""
        return fixed.run(self, problem, x, grid, noise_at, saves, observe)

    def adapt(self, problem: Any, x: Tensor, task: Task) -> Outcome:
        """Integrate at a tolerance."""
        raise NotImplementedError(f"{self.method} chooses no steps")


class Stop(Exception):
    """Raised inside a foreign loop to end it."""

    def __init__(self, status: Status) -> None:
        super().__init__(status.name)
        self.status = status


class Course:
    """Where rows that share their steps stand; a foreign loop is made to report every step that it tries.

    A row that is broken from the start would stop the others: it stays out.
    """

    def __init__(self, x: Tensor, task: Task) -> None:
        self.rows = finite_rows(x)
        self.x, self.t = x[self.rows], task.interval[0]
        self.broken = ~finite_rows(self.x)  # those that stand in the way of a step, where one does
        self.tries = self.accepted = 0
        self._whole, self._task = x, task

    def tried(self, t: float, x: Tensor) -> None:
        """A step from the state x at time t is about to be tried."""
        if t != self.t:
            self.reached(t, x)
        if not bool(finite_rows(x).all()):
            self.broken = ~finite_rows(x)
            raise Stop(Status.min_step)
        if self.tries == self._task.max_steps:
            raise Stop(Status.max_steps)
        self.tries += 1

    def reached(self, t: float, x: Tensor) -> None:
        """The state x at time t was accepted."""
        self.t, self.x, self.accepted = t, x, self.accepted + 1
        if self._task.observe:
            times = torch.full((len(self._whole),), t, dtype=torch.float64, device=x.device)
            self._task.observe(Moment(self.accepted, times, self.among(x, self._whole)))

    def among(self, value: Tensor, others: Tensor) -> Tensor:
        """(B, ...) ``value`` of the rows that take part, and ``others`` of those that do not."""
        return others.index_put((self.rows,), value)

    def run(self, integrate: Callable[[Course], list[Tensor]]) -> Outcome:
        """The outcome of a foreign loop: ``integrate`` returns the states at the stops, or is stopped, and then no row arrives.

        A row that stood in the way is non-finite, and the others have the status of the stop.
        """
        calls, status, whole, stops = _tally.calls(), Status.ok, self._whole, self._task.stops
        failed_at = torch.full((len(whole),), self.t, dtype=torch.float64, device=whole.device)
        try:
            xs = integrate(self) if len(self.x) else [self.x] * len(stops)
            self.broken = ~finite_rows(xs[-1])
            self.reached(stops[-1], xs[-1])
        except Stop as stop:
            status, xs = stop.status, [torch.full_like(self.x, torch.nan)] * len(stops)
        nfe = _tally.calls() - calls
        broken = self.among(self.broken, ~self.rows)
        codes = torch.where(broken, int(Status.non_finite), int(status))
        failed_at = torch.where(codes == Status.ok, torch.nan, torch.where(self.rows, self.t, failed_at))
        return Outcome(
            x=self.among(self.x, whole),
            nfe=nfe if bool(self.rows.all()) else nfe * self.rows,
            codes=codes,
            failed_at=failed_at,
            accepted=self.accepted,
            rejected=self.tries - self.accepted,
            xs=[self.among(state, torch.full_like(whole, torch.nan)) for state in xs[: len(self._task.saves)]],
        )


def finite_rows(x: Tensor) -> Tensor:
    """(B,) which rows are finite; B may be 0."""
    return torch.isfinite(x).reshape(len(x), math.prod(x.shape[1:])).all(1)
