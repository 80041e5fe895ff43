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


class Outcome(NamedTuple):
    """What a loop hands to ``solve``."""

    x: Tensor
    nfe: int | Tensor
    codes: Tensor
    failed_at: Tensor
    accepted: int | Tensor
    rejected: int | Tensor
    xs: Sequence[Tensor]
    event_time: Tensor | None = None


def run(
    stepper: Stepper,
    problem: Any,
    x: Tensor,
    grid: Grid,
    noise_at: Callable[[int], StepNoise | None],
    saved: Mapping[int, Sequence[float]],
    observe: Observer | None,
) -> Outcome:
    """Step along ``grid``; node i's noise is ``noise_at(i)``; keep the states at the times ``saved[i]``, which lie behind node i - 1 and up to node i."""
    calls = _tally.calls()
    xs = [x] if 0 in saved else []
    sums = [_row_sum(x)]
    carry = stepper.init(problem, x, grid.ts[0])
    for i in range(len(grid)):
        step = stepper.step(problem, x, grid.ts[i], grid.ts[i + 1], noise_at(i), carry)
        if i + 1 in saved:
            xs += _values(stepper, problem, x, grid.ts[i], grid.ts[i + 1], step, saved[i + 1])
        x, carry = step.x, step.carry
        sums.append(_row_sum(x))
        if observe:
            observe(Moment(i + 1, grid.ts[i + 1], x))
    codes, failed_at = _health(torch.stack(sums), grid)
    return Outcome(x, _tally.calls() - calls, codes, failed_at, len(grid), 0, xs)


def _values(stepper: Stepper, problem: Any, x: Tensor, t0: float, t1: float, step: Step, times: Sequence[float]) -> list[Tensor]:
    """The states at ``times`` in (t0, t1] on a step from x."""
    coefficients = stepper.interpolant(problem, x, t0, t1, step.stages) if set(times) != {t1} else ()
    return [step.x if t == t1 else value(x, coefficients, (t - t0) / (t1 - t0)) for t in times]


def _row_sum(x: Tensor) -> Tensor:
    """A number per row that is finite where the row is: the cheapest witness to keep of every step."""
    return x.reshape(len(x), -1).sum(1, dtype=torch.float64)  # a float32 or half sum may overflow where the row does not


def _health(sums: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """Status codes (B,), and the first time at which a row was not finite (NaN where it always was)."""
    bad = ~torch.isfinite(sums)  # (N + 1, B)
    codes = torch.where(bad[-1], int(Status.non_finite), int(Status.ok))
    ts = torch.tensor(grid.ts, dtype=torch.float64, device=sums.device)
    return codes, torch.where(bad[-1], ts[bad.int().argmax(0)], torch.nan)
