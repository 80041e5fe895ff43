"""The fixed-grid loop: dumb, and without a single read from the device."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import _tally
from ..grids import Grid
from ..methods import Step, StepNoise, Stepper
from ..solution import Status
from .attached import stretch
from .between import between
from .dense import value


class Moment(NamedTuple):
    """Where a solve stands, as a callback sees it."""

    step: int
    """Steps taken so far."""
    t: Any
    """The time reached: a float on a fixed grid, (B,) where steps are chosen per sample."""
    x: Tensor
    """(B, *event) the state at that time; the solver's own, to be read and not written."""


Observer = Callable[[Moment], None]

_CHUNK, _FEWEST = 1 << 16, 4  # means kept at once: so many numbers, but those of four nodes at least
torch.empty(1 << 24, dtype=torch.uint8)  # freed at once, it teaches glibc to keep freed memory: returned to the system after every step, a state costs more than its arithmetic


class Outcome(NamedTuple):
    """What a loop hands to ``solve``."""

    x: Tensor
    nfe: int | Tensor
    codes: Tensor
    failed_at: Tensor
    accepted: int | Tensor
    rejected: int | Tensor | None
    xs: Sequence[Tensor]
    event_time: Tensor | None = None
    carry: Any = None
    """What a step after the last would want."""


def run(
    stepper: Stepper,
    problem: Any,
    x: Tensor,
    grid: Grid,
    noise_at: Callable[[int], StepNoise | None],
    saves: Mapping[int, tuple[float, ...]],
    observe: Observer | None,
    length: int | None = None,
) -> Outcome:
    """Step along ``grid``; node i's noise is ``noise_at(i)``; keep the states at the times ``saves[i]`` in (ts[i - 1], ts[i]].

    In stretches of ``length`` steps, a gradient needs the memory of one, and of a state for each: they are walked again for it.
    """
    calls = _tally.calls()
    watch = _Watch(x, grid, observe)
    along = partial(walk, stepper, problem, grid, noise_at, saves, watch.arrived)
    xs, carry = [x] if 0 in saves else [], stepper.init(problem, x, grid.ts[0])
    for nodes in batched(len(grid), length):
        x, carry, saved, _ = stretch(partial(along, nodes), x, carry) if length else along(nodes, x, carry)
        xs += saved
    codes, failed_at = watch.health.verdict(x)
    return Outcome(x, _tally.calls() - calls, codes, failed_at, len(grid), 0, xs, carry=carry)


def batched(count: int, size: int | None) -> list[range]:
    """0..count-1 in ranges of ``size``; None for a single one."""
    size = size or count
    return [range(first, min(first + size, count)) for first in range(0, count, size)]


def walk(
    stepper: Stepper,
    problem: Any,
    grid: Grid,
    noise_at: Callable[[int], StepNoise | None],
    saves: Mapping[int, tuple[float, ...]],
    arrived: Callable[[int, Tensor], None],
    nodes: range,
    x: Tensor,
    carry: Any,
) -> tuple[Tensor, Any, list[Tensor], None]:
    """The steps from ``nodes``: the state after them, what the next step wants back, and the states to save; a :data:`Walk`."""
    xs: list[Tensor] = []
    for i in nodes:
        t0, t1, noise = grid.ts[i], grid.ts[i + 1], noise_at(i)
        step = stepper.step(problem, x, t0, t1, noise, carry)
        if i + 1 in saves:
            xs += _inside(stepper, problem, x, step, t0, t1, saves[i + 1], noise)
        x, carry = step.x, step.carry
        arrived(i + 1, x)
    return x, carry, xs, None


class _Watch:
    """Who is told of a node that has been reached: once, also where a stretch is walked again for its gradient."""

    def __init__(self, x: Tensor, grid: Grid, observe: Observer | None) -> None:
        self.health, self._grid, self._observe, self._last = _Health(x, grid), grid, observe, 0

    def arrived(self, node: int, x: Tensor) -> None:
        if node <= self._last:
            return
        self._last = node
        self.health.look(x, node)
        if self._observe:
            self._observe(Moment(node, self._grid.ts[node], x.detach()))


def _inside(
    stepper: Stepper, problem: Any, x: Tensor, step: Step, t0: float, t1: float, times: tuple[float, ...], noise: StepNoise | None
) -> list[Tensor]:
    """The states at ``times`` in (t0, t1], of which t1 itself costs nothing."""
    inner = tuple(t for t in times if t != t1)
    if not inner:
        states = []
    elif noise:
        states = between(problem, x, step.x, t0, t1, inner, noise)
    else:
        coefficients = stepper.interpolant(problem, x, t0, t1, step.stages)
        states = [value(x, coefficients, (t - t0) / (t1 - t0)) for t in inner]
    return states + [step.x] * (len(times) - len(inner))


class _Health:
    """The last node at which each row was finite, by a mean that is not finite where the row is not.

    The means go into one tensor made beforehand, and are looked at when it is full: small tensors kept from step to step settle in
    the gaps that freed states leave, and split them.
    """

    def __init__(self, x: Tensor, grid: Grid) -> None:
        self._grid = grid
        size = x[0].numel()
        self._flat = len(x), size
        self._weights = x.new_full((size,), 0.5 / size)  # half a mean: it does not overflow before the row does
        self._nodes = min(len(grid.ts), max(_FEWEST, _CHUNK // len(x)))
        self._means = x.new_empty((self._nodes, len(x)))
        self._last = x.new_full((len(x),), -1, dtype=torch.float32)
        self.look(x, 0)

    def look(self, x: Tensor, node: int) -> None:
        row = node % self._nodes
        torch.mv(x.detach().reshape(self._flat), self._weights, out=self._means[row])
        if row == self._nodes - 1 or node == len(self._grid):
            nodes = torch.arange(node - row, node + 1, dtype=torch.float32, device=x.device)
            finite = self._means[: row + 1].mul_(0).float().add_(nodes[:, None])  # NaN where the mean was not finite
            torch.maximum(self._last, finite.nan_to_num_(nan=-1.0).amax(0), out=self._last)

    def verdict(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Status codes (B,) by the last state, and the time from which on a row was not finite (NaN for a row that arrived)."""
        bad = ~torch.isfinite(x).reshape(len(x), -1).all(1)
        ts = torch.tensor(self._grid.ts, dtype=torch.float64, device=x.device)
        first = ts[(self._last.long() + 1).clamp(max=len(self._grid))]
        return torch.where(bad, int(Status.non_finite), int(Status.ok)), torch.where(bad, first, torch.nan)
