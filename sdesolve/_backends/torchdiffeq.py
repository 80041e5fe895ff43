"""torchdiffeq's solvers (Chen et al. 2018) behind ``solve``.

On a grid every row is treated alike and none couples to another.  At a tolerance there is one step for the whole batch, and
the root mean square of the error over all rows decides its length: a sample depends on its neighbours, a hard one makes all
of them pay, and where one cannot go on, none arrives.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .. import _tally
from .._loops.adaptive import Task
from .._loops.fixed import Moment, Observer, Outcome
from ..grids import Grid
from ..methods import Facts, StepNoise
from ..problems import Interval, Problem
from ..solution import Status
from .base import Backend, Course, Stop, finite_rows

_ADAPTIVE = ("adaptive_heun", "fehlberg2", "bosh3", "dopri5", "dopri8")
_ADAMS = ("explicit_adams", "implicit_adams")


def _facts(evals: int, order: int, start: int = 0) -> Facts:
    return Facts(evals=evals, start=start, ode=order, reference="torchdiffeq: Chen et al. 2018")


@dataclass(frozen=True)
class TorchDiffEq(Backend):
    """A method of ``torchdiffeq.odeint``.  ``adaptive_heun`` to ``dopri8`` choose their steps, the others walk a grid."""

    table: ClassVar[Mapping[str, Facts]] = {
        "euler": _facts(1, 1),
        "midpoint": _facts(2, 2),
        "heun2": _facts(2, 2),
        "heun3": _facts(3, 3),
        "rk4": _facts(4, 4),
        "explicit_adams": _facts(1, 4, start=6),  # two steps of rk4 come first
        "implicit_adams": _facts(5, 4),  # at most: one, and one more an iteration
        "adaptive_heun": _facts(1, 2, start=2),
        "fehlberg2": _facts(2, 2, start=2),
        "bosh3": _facts(3, 3, start=2),
        "dopri5": _facts(6, 5, start=2),
        "dopri8": _facts(13, 8, start=2),
    }

    @property
    def error_order(self) -> int | None:  # type: ignore[override]
        return self.facts.ode if self.name in _ADAPTIVE else None

    @property
    def known_options(self) -> tuple[str, ...]:
        if self.name in _ADAPTIVE:
            return ("first_step", "min_step", "max_step", "safety", "ifactor", "dfactor", "norm")
        return ("perturb", "max_order") if self.name in _ADAMS else ("perturb",)

    def walk(
        self,
        problem: Problem,
        x: Tensor,
        grid: Grid,
        noise_at: Callable[[int], StepNoise | None],
        saves: Mapping[int, tuple[float, ...]],
        observe: Observer | None,
    ) -> Outcome:
        import torchdiffeq

        self._check(x)
        if self.name in _ADAMS:
            _check_uniform(self.method, grid)
        ts = torch.tensor(grid.ts, dtype=torch.float64, device=x.device)
        finite: list[Tensor] = []

        def step(t: Tensor, y: Tensor, dt: Tensor) -> None:
            if observe and finite:
                observe(Moment(len(finite), grid.ts[len(finite)], y))
            finite.append(finite_rows(y))

        nodes = sorted({0, *saves, len(grid)})
        calls = _tally.calls()
        drift = _Drift(problem.drift, (grid.ts[0], grid.ts[-1]), step)
        options = {**self.options, "grid_constructor": lambda function, y, t: ts}
        states = torchdiffeq.odeint(drift, x, ts[nodes], method=self.name, options=options)
        step(ts[-1], states[-1], ts[-1])
        bad = ~torch.stack(finite)
        codes = torch.where(bad[-1], int(Status.non_finite), int(Status.ok))
        failed_at = torch.where(bad[-1], ts[bad.int().argmax(0)], torch.nan)
        xs = [state for node, state in zip(nodes, states, strict=True) if node in saves]
        return Outcome(states[-1], _tally.calls() - calls, codes, failed_at, len(grid), 0, xs)

    def adapt(self, problem: Problem, x: Tensor, task: Task) -> Outcome:
        import torchdiffeq

        self._check(x)
        ts = torch.tensor((task.interval[0], *task.stops), dtype=torch.float64, device=x.device)
        options = {**self.options, "step_t": ts[-1:]}  # or its last step would go beyond the end, where a score is not defined

        def integrate(course: Course) -> list[Tensor]:
            def step(t: Tensor, y: Tensor, dt: Tensor) -> None:
                course.tried(float(t), y)
                if abs(float(t)) + float(dt) == abs(float(t)):
                    raise Stop(Status.min_step)
                course.broken = torch.zeros_like(course.broken)

            def watched(y: Tensor, t: Tensor) -> Tensor:
                slope = problem.drift(y, t)
                course.broken = course.broken | finite_rows(y) & ~finite_rows(slope)
                return slope

            drift = _Drift(watched, task.interval, step)
            states = torchdiffeq.odeint(drift, course.x, ts, rtol=task.control.rtol, atol=task.control.atol, method=self.name, options=options)
            return list(states[1:])

        return Course(x, task).run(integrate)

    def _check(self, x: Tensor) -> None:
        if torch.finfo(x.dtype).eps > 1e-6:
            raise ValueError(f"x is {x.dtype}, and {self.method} would round its times to that; expected float32 or float64: x.float().")


def _check_uniform(method: str, grid: Grid) -> None:
    """The weights of Adams' formulas are those of equal steps."""
    step = (grid.ts[-1] - grid.ts[0]) / len(grid)
    if max(abs(b - a - step) for a, b in itertools.pairwise(grid.ts)) > 1e-6 * abs(step):
        raise ValueError(f'{method} needs equal steps; expected grid="uniform", as in solve(..., grid="uniform", steps={len(grid)}).')


class _Drift:
    """A drift as torchdiffeq calls it.

    It is told times in the state's dtype: they are kept within the interval, which rounding may leave.
    """

    def __init__(self, drift: Callable[[Tensor, Tensor], Tensor], interval: Interval, step: Callable[[Tensor, Tensor, Tensor], None]) -> None:
        self._drift, self._ends = drift, sorted(interval)
        self.callback_step = step  # called before each try with the time, the state and the length of the step

    def __call__(self, t: Tensor, y: Tensor) -> Tensor:
        return self._drift(y, t.double().clamp(*self._ends))
