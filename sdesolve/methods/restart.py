"""Restart: an ODE method whose walk goes back up to a higher noise and down again, so that it forgets its errors."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import Any, ClassVar, NamedTuple

from torch import Tensor

from .._arrays import Number, plus
from .._errors import as_float, as_int
from ..noise import MOVE
from ..problems import ProbabilityFlow, ReverseSDE
from ..processes import Process
from .base import Facts, Step, StepNoise, Stepper
from .discretised import transition


class Rewind(NamedTuple):
    """From sigma/alpha = ``low`` back up to ``high`` and down again in ``steps`` steps, ``repeats`` times."""

    low: float
    high: float
    repeats: int
    steps: int


@dataclass(frozen=True)
class Restart(Stepper):
    """Restart sampling.  [Xu et al. 2023, arXiv 2306.14878, algorithm 1]

    The walk follows the probability flow.  Where a step ends at or below the lower end of an interval, then ``repeats`` times the noise between
    there and the upper end is added,

        x_high = r x + sqrt(v) s_noise z,       x_high given x as the forward process has it,

    and the flow is followed back by ``steps`` steps on Karras's grid.  Noise contracts the errors made above, those of the network among them, at the
    cost of the ODE's few calls: for trained networks and 30 calls or more.  The order is the method's where the steps within an interval become
    shorter with those of the walk.  Calls: those of the walk, and the same number for every walk that passes all intervals.

    Arguments:
        solver: an ODE method, by name or made; it starts afresh after each jump.
        intervals: (low, high, repeats, steps) each, 0 < low < high in units of sigma/alpha.  The default is a small one of the paper's for
            CIFAR-10; for ImageNet at 64 x 64 and 203 calls: (19.35, 40.79, 1, 3), (1.09, 1.92, 1, 3), (0.59, 1.09, 5, 3), (0.30, 0.59, 5, 3),
            (0.06, 0.30, 6, 5).
        s_noise: factor > 0 on the noise added; the paper has 1.003 for its networks, which is a bias with an exact score.

    Raises:
        ValueError: an argument out of range; at the start of a solve, an interval whose upper end the process does not reach, or intervals of
            which the walk passes none.
    """

    solver: Stepper
    intervals: Sequence[tuple[float, float, int, int]] = ((0.06, 0.30, 2, 2),)
    s_noise: float = 1.0
    one_time: ClassVar[bool] = True
    calls_on_the_way: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.solver.facts.kinds or self.solver.facts.start:
            raise ValueError(f"solver is {type(self.solver).__name__}, which is not an ODE method without calls before its first step; expected one, as in solver='edm'.")
        if self.solver.own_grid is not None:
            raise ValueError(f"solver is a {type(self.solver).__name__}, which is made for its own grid, and a restart leaves it; expected another ODE method, as in solver='edm'.")
        object.__setattr__(self, "intervals", tuple(sorted((_rewind(interval) for interval in _each(self.intervals)), reverse=True)))
        scale = as_float(self.s_noise)
        if scale is None or not 0 < scale < math.inf:
            raise ValueError(f"s_noise={self.s_noise!r}; expected a finite number > 0, as in s_noise=1.003.")

    @cached_property
    def facts(self) -> Facts:  # type: ignore[override]
        inner = self.solver.facts
        again = sum(repeats * steps for _, _, repeats, steps in self.intervals)
        return Facts(
            evals=inner.evals,
            start=inner.evals * again,
            weak={"additive": float(inner.ode or 0)},
            needs=frozenset({"score"}),
            reference="Xu et al. 2023",
        )

    def compiled(self, compile: Callable[[Stepper], Stepper]) -> Stepper:
        """Which steps are followed by others is not a matter of tensors: the method's own are compiled."""
        return replace(self, solver=compile(self.solver))

    def check_grid(self, process: Process, ts: Sequence[float]) -> None:
        self.solver.check_grid(process, ts)
        first, last, top = (_level(process, t) for t in (ts[0], ts[-1], process.T))
        for _, high, _, _ in self.intervals:
            if not high < top:
                raise ValueError(f"intervals go up to sigma/alpha = {high:g}, and {process} ends at {top:g}; expected less.")
        if self.intervals and not any(last <= low < first for low, *_ in self.intervals):
            raise ValueError(
                f"the walk goes from sigma/alpha = {first:g} to {last:g} and passes the lower end of none of the intervals {[tuple(i) for i in self.intervals]}, so that nothing "
                "is restarted; expected intervals between, or the method alone, as in method='edm'."
            )

    def init(self, problem: ReverseSDE, x: Tensor, t: Number) -> Any:
        return self.solver.init(problem.probability_flow(), x, t)

    def step(self, problem: ReverseSDE, x: Tensor, t0: float, t1: float, noise: StepNoise, carry: Any) -> Step:  # type: ignore[override]
        process, flow = problem.process, problem.probability_flow()
        x, _, carry, *_ = self.solver.step(flow, x, t0, t1, None, carry)
        draws = 0
        for low, high, repeats, steps in self.intervals:
            if not _level(process, t1) <= low < _level(process, t0):
                continue
            times = _karras(process, high, t1, steps)
            for draw in range(draws, draws + repeats):
                x = self._down(flow, self._up(process, x, t1, times[0], noise.normal(draw * MOVE)), times)
            draws += repeats
            carry = self.solver.init(flow, x, t1)
        return Step(x, carry=carry)

    def _up(self, process: Process, x: Tensor, t: float, top: float, normal: Tensor) -> Tensor:
        r, v = transition(process, top, t)
        return plus(r * x, self.s_noise * math.sqrt(v), normal)

    def _down(self, flow: ProbabilityFlow, x: Tensor, times: Sequence[float]) -> Tensor:
        carry = self.solver.init(flow, x, times[0])
        for here, there in pairwise(times):
            x, _, carry, *_ = self.solver.step(flow, x, here, there, None, carry)
        return x


def _each(intervals: Any) -> Sequence[Any]:
    """The intervals, if there are any to go through."""
    try:
        return tuple(intervals)
    except TypeError:
        raise ValueError(f"intervals={intervals!r}; expected a list of (low, high, repeats, steps), as in intervals=[(0.06, 0.3, 2, 2)].") from None


def _rewind(interval: Any) -> Rewind:
    """An interval that is one."""
    try:
        low, high, repeats, steps = interval
    except (TypeError, ValueError):
        low = high = repeats = steps = None
    ends, counts = [as_float(low), as_float(high)], [as_int(repeats), as_int(steps)]
    if None in ends + counts or not 0 < ends[0] < ends[1] < math.inf or min(counts) < 1:  # type: ignore[operator, type-var]
        raise ValueError(
            f"intervals has {interval!r}; expected (low, high, repeats, steps) with 0 < low < high in units of sigma/alpha and counts >= 1, as in intervals=[(0.06, 0.3, 2, 2)]."
        )
    return Rewind(*ends, *counts)  # type: ignore[arg-type]


def _karras(process: Process, high: float, t1: float, steps: int) -> list[float]:
    """Times from sigma/alpha = ``high`` down to t1 at equal steps of (sigma/alpha)^(1/7), by formulas of floats alone."""
    top, bottom = (level ** (1 / 7) for level in (high, _level(process, t1)))
    roots = [top + (bottom - top) * i / steps for i in range(steps)]
    return [*(float(process.log_snr_inverse_(-14 * math.log(root))) for root in roots), t1]


def _level(process: Process, t: float) -> float:
    """sigma/alpha."""
    return math.exp(-0.5 * float(process.log_snr_(t)))
