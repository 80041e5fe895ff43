"""The fixed-grid loop: dumb, and without a single read from the device."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import _tally
from ..grids import Grid
from ..methods import Step, StepNoise, Stepper
from ..solution import Status
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


def run(
    stepper: Stepper,
    problem: Any,
    x: Tensor,
    grid: Grid,
    noise_at: Callable[[int], StepNoise | None],
    saves: Mapping[int, tuple[float, ...]],
    observe: Observer | None,
) -> Outcome:
    """Step along ``grid``; node i's noise is ``noise_at(i)``; keep the states at the times ``saves[i]`` in (ts[i - 1], ts[i]]."""
    calls = _tally.calls()
    xs = [x] if 0 in saves else []
    health = _Health(x, grid)
    carry = stepper.init(problem, x, grid.ts[0])
    for i in range(len(grid)):
        t0, t1, noise = grid.ts[i], grid.ts[i + 1], noise_at(i)
        step = stepper.step(problem, x, t0, t1, noise, carry)
        if i + 1 in saves:
            xs += _inside(stepper, problem, x, step, t0, t1, saves[i + 1], noise)
        x, carry = step.x, step.carry
        health.look(x, i + 1)
        if observe:
            observe(Moment(i + 1, grid.ts[i + 1], x))
    codes, failed_at = health.verdict(x)
    return Outcome(x, _tally.calls() - calls, codes, failed_at, len(grid), 0, xs)


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
