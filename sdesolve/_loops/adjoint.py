"""Gradients without the memory of a walk: the adjoint of an ODE, and reversible methods walked backwards.

For dx/dt = f(x, t) and a loss L of the states, a = dL/dx runs backwards along with the state,

    da/dt = -a df/dx,     dL/dtheta = int_{t0}^{t1} a df/dtheta dt,     a jumps by dL/dx(t) at every time t whose state is in L.

Every row has its own adjoint, scaled to size 1, and steps chosen to the same tolerance as the solve's; the integral is taken by
Gauss's rule on each step's continuous extension.  [Pontryagin et al. 1962; Chen et al. 2018, algorithm 1]
A reversible method recovers each state from the next and differentiates the step between them: the gradient is that of the walk
itself, to rounding.  [Kidger et al. 2021, algorithm 2]
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from .. import _tally
from .._arrays import Number, bcast, expand_time, row_mean
from .._given import given
from ..grids import Grid
from ..methods import StepNoise, Stepper
from ..solution import arrived
from . import adaptive, fixed
from .adaptive import Task, Try
from .attached import Outside, attach, gradients
from .dense import value
from .fixed import Observer, Outcome

GAUSS = ((0.5 - 0.15**0.5, 5 / 18), (0.5, 4 / 9), (0.5 + 0.15**0.5, 5 / 18))
"""Nodes and weights of order 6 on (0, 1)."""

_APART, _NOISE = 0.05, 1e-3
"""How far from the path the way back may lead before its gradient is refused: in units of each number, and of the row's."""

OfLeaves: TypeAlias = Callable[[Sequence[Tensor], Sequence[Tensor]], Sequence[Tensor]]
"""From dL/dx at the end and at each saved time, and the leaves: dL/dx at the start, and dL/dleaf of each."""


class _Watched:
    """A problem that notes what the values it gives depend on and has a gradient."""

    def __init__(self, problem: Any) -> None:
        self._problem = problem
        self.found: dict[int, Tensor] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._problem, name)

    def drift(self, x: Tensor, t: Number) -> Tensor:
        return self._noted(self._problem.drift, x, t)

    def diffuse(self, x: Tensor, t: Number, dw: Tensor) -> Tensor:
        return self._noted(self._problem.diffuse, x, t, dw)

    def _noted(self, function: Callable[..., Tensor], x: Tensor, *rest: Any) -> Tensor:
        with torch.enable_grad(), Outside() as outside:
            result = function(x, *rest)
        self.found |= {id(value): value for value in outside.behind(result)}
        return result.detach()


def on_grid(
    stepper: Stepper,
    problem: Any,
    x: Tensor,
    grid: Grid,
    noise_at: Callable[[int], StepNoise | None],
    saves: Mapping[int, tuple[float, ...]],
    observe: Observer | None,
    stats: dict[str, Any],
) -> Outcome:
    """The fixed loop; what its gradient takes is added to ``stats`` when it is computed."""
    watched = _Watched(problem)
    out = fixed.run(stepper, watched, x, grid, noise_at, saves, observe)
    if stepper.reversible:
        backward = _of_reversible(stepper, problem, out, grid, noise_at, saves)
    else:
        times = (grid.ts[0], *itertools.chain(*saves.values()), grid.ts[-1])
        backward = _of_ode(stepper, problem, x, out, times, _back_on_grid(stepper, problem, grid))
    return _attached(out, x, watched, backward, stats)


def chosen(stepper: Stepper, problem: Any, x: Tensor, task: Task, stats: dict[str, Any]) -> Outcome:
    """The adaptive loop."""
    watched = _Watched(problem)
    out = adaptive.run(stepper, watched, x, task)
    backward = _of_ode(stepper, problem, x, out, (task.interval[0], *task.saves, task.interval[1]), _back_by_choice(stepper, problem, task))
    return _attached(out, x, watched, backward, stats)


def _attached(out: Outcome, x: Tensor, watched: _Watched, of_leaves: OfLeaves, stats: dict[str, Any]) -> Outcome:
    """``out`` with the gradient that ``of_leaves`` computes."""
    leaves = list(watched.found.values())

    def backward(of_states: Sequence[Tensor]) -> Sequence[Tensor]:
        with _tally.added_to(stats):
            return of_leaves(of_states, leaves)

    end, *saved = attach((out.x, *out.xs), (x, *leaves), backward)
    return out._replace(x=end, xs=saved)


class _Adjoint:
    """The ODE of (x, a), stacked to (B, 2, *event)."""

    def __init__(self, problem: Any) -> None:
        self._problem = problem

    def drift(self, z: Tensor, t: Number) -> Tensor:
        x, a = z.unbind(1)
        slope, on_x = _pulled(self._problem, x, t, a, [])
        return torch.stack([slope, -on_x[0]], 1)


def _pulled(problem: Any, x: Tensor, t: Number, a: Tensor, leaves: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """f(x, t), and a df/dx followed by a df/dleaf of each leaf."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        slope = problem.drift(x, t)
    return slope.detach(), gradients((slope,), (x, *leaves), (a,))


class _Integral:
    """dL/dtheta, step by step."""

    def __init__(self, stepper: Stepper, problem: Any, leaves: Sequence[Tensor]) -> None:
        self._stepper, self._problem, self._adjoint, self._leaves = stepper, problem, _Adjoint(problem), leaves
        self.values = [torch.zeros_like(leaf) for leaf in leaves]

    def add(self, scale: Tensor, z: Tensor, t0: Number, t1: Number, stages: Sequence[Tensor]) -> None:
        """The part of a step of (x, a) from t0 back to t1, of rows whose adjoint is ``scale`` (B,) times a."""
        if not self._leaves:
            return
        coefficients = self._stepper.interpolant(self._adjoint, z, t0, t1, stages)
        for theta, weight in GAUSS:
            x, a = value(z, coefficients, theta).unbind(1)
            weighted = bcast(-weight * (t1 - t0) * scale, a) * a
            _, (_, *parts) = _pulled(self._problem, x, t0 + theta * (t1 - t0), weighted, self._leaves)
            self.values = _sums(self.values, parts)


Back: TypeAlias = Callable[[Tensor, float, float, "_Integral", Tensor], Tensor]
"""(x, a) taken from one time back to another, with its part of the integral; the rows' adjoints are the scale (B,) times a."""


def _of_ode(stepper: Stepper, problem: Any, start: Tensor, out: Outcome, times: Sequence[float], back: Back) -> OfLeaves:
    """The adjoint of an ODE; ``times`` are the first, those of ``out.xs``, and the last."""

    def backward(of_states: Sequence[Tensor], leaves: Sequence[Tensor]) -> Sequence[Tensor]:
        at_end, *at_saves = of_states
        integral = _Integral(stepper, problem, leaves)
        starts, states, jumps = (start, *out.xs), (*out.xs, out.x), (*at_saves, at_end)
        a = torch.zeros_like(at_end)
        for i in reversed(range(len(states))):
            there = torch.isfinite(states[i]).reshape(len(a), -1).all(1) if i < len(out.xs) else arrived(out.codes)
            rows = there.nonzero().flatten()  # the others were given up before
            a = a.index_add(0, rows, jumps[i][rows])
            if times[i] != times[i + 1] and len(rows):
                scale = a[rows].reshape(len(rows), -1).abs().amax(1).double()
                scale = torch.where(scale > 0, scale, 1.0)
                z = torch.stack([states[i][rows], a[rows] / bcast(scale, a)], 1)
                with given(rows, len(a)):
                    x, back_there = back(z, times[i + 1], times[i], integral, scale).unbind(1)
                    _check_back(problem, x, starts[i][rows], states[i][rows], times[i], times[i + 1])
                a = a.index_copy(0, rows, bcast(scale, a) * back_there)
        return a, *integral.values

    return backward


def _check_back(problem: Any, x: Tensor, start: Tensor, end: Tensor, t0: float, t1: float) -> None:
    """That the way back from t1 led to where the way there had started, next to how large each number is and how fast it moves."""
    size, speed = torch.maximum(start.abs(), end.abs()), ((t1 - t0) * problem.drift(start, t0)).abs()
    allowed = _APART * (size + 0.1 * speed) + _NOISE * bcast(row_mean(size.square()).sqrt(), x)
    lost = ~((x - start).abs() <= allowed).reshape(len(x), -1).all(1)
    if bool(lost.any()):
        raise RuntimeError(
            f"the adjoint of {int(lost.sum())} of {len(x)} samples went astray between t = {t1:.6g} and {t0:.6g}: what contracts forwards explodes backwards. "
            'Expected gradient="checkpoint", which goes back along the states of the solve, or smaller steps.'
        )


def _back_by_choice(stepper: Stepper, problem: Any, task: Task) -> Back:
    """Steps chosen to the tolerance of the solve."""

    def back(z: Tensor, t0: float, t1: float, integral: _Integral, scale: Tensor) -> Tensor:
        def record(tried: Try) -> None:
            taken = tried.accept.nonzero().flatten()
            if len(taken):
                with given(tried.rows[taken], len(z)):
                    integral.add(scale[tried.rows[taken]], tried.x[taken], tried.t0[taken], tried.t1[taken], [stage[taken] for stage in tried.stages])

        out = adaptive.run(stepper, _Adjoint(problem), z, Task((t0, t1), task.control, (), task.max_steps, task.seed, record=record))
        return torch.where(expand_time(arrived(out.codes), z), out.x, torch.nan)

    return back


def _back_on_grid(stepper: Stepper, problem: Any, grid: Grid) -> Back:
    """The steps of the grid, cut at the times that were saved between its nodes."""
    adjoint = _Adjoint(problem)

    def back(z: Tensor, t0: float, t1: float, integral: _Integral, scale: Tensor) -> Tensor:
        nodes = (t0, *(t for t in reversed(grid.ts) if min(t0, t1) < t < max(t0, t1)), t1)
        carry = stepper.init(adjoint, z, t0)
        for start, end in itertools.pairwise(nodes):
            step = stepper.step(adjoint, z, start, end, None, carry)
            integral.add(scale, z, start, end, step.stages)
            z, carry = step.x, step.carry
        return z

    return back


def _of_reversible(
    stepper: Stepper, problem: Any, out: Outcome, grid: Grid, noise_at: Callable[[int], StepNoise | None], saves: Mapping[int, tuple[float, ...]]
) -> OfLeaves:
    """The gradient of a walk with a method that can take its steps back."""

    def backward(of_states: Sequence[Tensor], leaves: Sequence[Tensor]) -> Sequence[Tensor]:
        at_end, *jumps = of_states
        x, carry = out.x, out.carry
        a, on_leaves = [at_end, torch.zeros_like(carry)], [torch.zeros_like(leaf) for leaf in leaves]
        for node in reversed(range(len(grid))):
            start = stepper.step_back(problem, x, grid.ts[node], grid.ts[node + 1], noise_at(node), carry)
            here = [jumps.pop() for _ in saves.get(node + 1, ())][::-1]
            with torch.enable_grad():
                x, carry = start.x.requires_grad_(), start.carry.requires_grad_()
                after, carried, saved, _ = fixed.walk(stepper, problem, grid, noise_at, saves, lambda node, x: None, range(node, node + 1), x, carry)
            on_x, on_carry, *parts = gradients((after, carried, *saved), (x, carry, *leaves), (*a, *here))
            a, on_leaves = [on_x, on_carry], _sums(on_leaves, parts)
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            carry = stepper.init(problem, x, grid.ts[0])
        on_x, *parts = gradients((carry,), (x, *leaves), a[1:])
        return sum(jumps, a[0] + on_x), *_sums(on_leaves, parts)

    return backward


def _sums(totals: Sequence[Tensor], parts: Sequence[Tensor]) -> list[Tensor]:
    return [total + part for total, part in zip(totals, parts, strict=True)]
