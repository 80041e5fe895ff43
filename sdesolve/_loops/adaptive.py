"""The loop that chooses its steps per sample, for ODEs and SDEs.

Every row has its own time, step and history, and its own Brownian path, which a rejection does not change.  A finished row
leaves the batch, so it costs no more network calls, and no row's numbers depend on its neighbours'.  One host read a step: are
there rows to retire?  (With noise one more: is there room for what was promised?)
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from .. import _tally
from ..control import Control
from ..methods import Stepper
from ..solution import Status
from .fixed import Moment, Observer, Outcome
from .promises import Promises

WHOLE_BATCH = "A function that holds a tensor of the whole batch needs fixed steps, as in steps=100, or that tensor as part of the state."
_FIRST = 0.01  # of the interval: the first step of an SDE, whose noise makes a guess from slopes worthless
_SMALLEST = 1e-12  # of the interval, and 16 roundings of the time itself: a step below that is no step


@dataclass
class _Rows:
    """The rows still under way; each field is a tensor whose first axis is those rows."""

    index: Tensor  # where the row stands in the whole batch
    x: Tensor
    t: Tensor  # float64
    h: Tensor  # float64, > 0: length of the next step
    err: Tensor  # of the last accepted step, in units of the tolerance
    carry: Tensor | None
    stop: Tensor  # index of the next time to land on
    nfe: Tensor
    accepted: Tensor
    rejected: Tensor
    finite: Tensor  # whether the last error was
    noise: Promises | None

    def keep(self, which: Tensor) -> _Rows:
        values = [getattr(self, f.name) for f in fields(self)]
        kept: list[Any] = [None if value is None else value[which] for value in values]
        return _Rows(*kept)


def run(
    stepper: Stepper,
    problem: Any,
    x: Tensor,
    interval: tuple[float, float],
    control: Control,
    stops: tuple[float, ...],
    max_steps: int,
    observe: Observer | None,
    noise: Promises | None = None,
) -> Outcome:
    """Integrate each row along ``interval``, landing exactly on each of ``stops`` (ordered, the last is the end)."""
    t0, t1 = interval
    sign = 1.0 if t1 > t0 else -1.0
    stop_times = torch.tensor(stops, dtype=torch.float64, device=x.device)
    xs = x.new_full((len(stops), *x.shape), torch.nan)
    out = _Results(x)
    rows = _start(stepper, problem, x, t0, t1, control, noise)
    tries = 0
    while len(rows.index):
        tries += 1
        try:
            landed, status = _advance(stepper, problem, rows, tries, sign, stop_times, control, abs(t1 - t0))
        except RuntimeError as error:
            if len(rows.index) < len(x):
                error.add_note(f"Finished samples have left the batch: {len(rows.index)} of {len(x)} rows are under way. {WHOLE_BATCH}")
            raise
        xs[rows.stop[landed] - 1, rows.index[landed]] = rows.x[landed]
        status = torch.where((status == Status.ok) & (tries >= max_steps) & (rows.stop < len(stops)), int(Status.max_steps), status)
        leaving = (rows.stop == len(stops)) | (status != Status.ok)
        if bool(leaving.any()):
            out.retire(rows.keep(leaving), status[leaving])
            rows = rows.keep(~leaving)
        if observe:
            out.refresh(rows)
            observe(Moment(tries, out.t, out.x))
    return Outcome(out.x, out.nfe, out.codes, out.failed_at, out.accepted, out.rejected, list(xs))


class _Results:
    """The whole batch, filled in as rows retire."""

    def __init__(self, x: Tensor) -> None:
        self.x = x.clone()
        self.t = x.new_full((len(x),), torch.nan, dtype=torch.float64)
        self.failed_at = torch.full_like(self.t, torch.nan)
        self.nfe, self.accepted, self.rejected, self.codes = (torch.zeros(len(x), dtype=torch.int64, device=x.device) for _ in range(4))

    def refresh(self, rows: _Rows) -> None:
        """Write the present state of rows under way."""
        self.x[rows.index], self.t[rows.index] = rows.x, rows.t

    def retire(self, rows: _Rows, codes: Tensor) -> None:
        """Write rows that have ended."""
        self.refresh(rows)
        self.nfe[rows.index], self.accepted[rows.index], self.rejected[rows.index] = rows.nfe, rows.accepted, rows.rejected
        self.codes[rows.index] = codes
        self.failed_at[rows.index] = torch.where(codes == Status.ok, torch.nan, rows.t)


def _start(stepper: Stepper, problem: Any, x: Tensor, t0: float, t1: float, control: Control, noise: Promises | None) -> _Rows:
    calls = _tally.calls()
    count = torch.zeros(len(x), dtype=torch.int64, device=x.device)
    t = torch.full((len(x),), t0, dtype=torch.float64, device=x.device)
    carry = stepper.init(problem, x, t)
    slope = problem.drift(x, t) if carry is None and noise is None else carry
    h = torch.full_like(t, _FIRST * abs(t1 - t0)) if noise else _first_step(problem, x, t, t1, slope, control)
    return _Rows(
        index=torch.arange(len(x), device=x.device),
        x=x,
        t=t,
        h=h,
        err=torch.ones_like(t),
        carry=carry,
        stop=count,
        nfe=count + (_tally.calls() - calls),
        accepted=count,
        rejected=count,
        finite=torch.ones_like(count, dtype=torch.bool),
        noise=noise,
    )


def _first_step(problem: Any, x: Tensor, t: Tensor, t1: float, slope: Tensor, control: Control) -> Tensor:
    """(B,) length of a first step whose Euler and second-derivative errors are small.  [Hairer, Norsett & Wanner 1993, II.4]"""
    span = (t1 - t).abs()
    d0, d1 = control.size(x, x), control.size(slope, x)
    guess = torch.where((d0 < 1e-5) | (d1 < 1e-5), 1e-6 * span, 0.01 * d0 / d1)
    guess = torch.minimum(torch.nan_to_num(guess, nan=0.0), span)
    move = (t1 - t).sign() * guess
    later = problem.drift(x + move.to(x.dtype).reshape(-1, *(1,) * (x.dim() - 1)) * slope, t + move)
    d2 = control.size(later - slope, x) / guess
    steepest = torch.maximum(d1, d2)
    second = torch.where(steepest <= 1e-15, (1e-3 * guess).clamp(min=1e-6), (0.01 / steepest) ** (1 / control.q))
    return torch.minimum(torch.nan_to_num(torch.minimum(100 * guess, second), nan=0.0).clamp(min=1e-9 * span), span)


def _advance(
    stepper: Stepper, problem: Any, rows: _Rows, tries: int, sign: float, stop_times: Tensor, control: Control, span: float
) -> tuple[Tensor, Tensor]:
    """Try a step of every row, in place; returns which rows landed on their stop, and codes of those that cannot go on."""
    calls = _tally.calls()
    stop = stop_times[rows.stop]
    nearest, h = _next_landing(rows, stop)
    remaining = (nearest - rows.t).abs()
    landing = h >= remaining * (1 - 1e-10)
    target = torch.where(landing, nearest, rows.t + sign * h)
    to_stop = target == stop
    step = stepper.step(problem, rows.x, rows.t, target, rows.noise and rows.noise.draw(rows.t, target, tries), rows.carry)
    err = control.size(step.error, *((rows.x, step.x) if step.scale is None else (step.scale,)))  # type: ignore[arg-type]
    accept = err <= 1
    rows.nfe = rows.nfe + (_tally.calls() - calls)
    rows.finite = torch.isfinite(err)

    if rows.noise is not None:
        rows.noise.settle(accept | stepper.redraws)
    tried = torch.minimum(h, remaining)
    factor = control.factor(err, rows.err)
    grown = tried * torch.where(accept, factor, factor.clamp(max=1.0))
    rows.h = torch.where(accept & landing, torch.maximum(grown, rows.h), grown)  # a step cut short says nothing against the longer one
    rows.t = torch.where(accept, target, rows.t)
    rows.x = torch.where(_like(accept, rows.x), step.x, rows.x)
    if rows.carry is not None:
        rows.carry = torch.where(_like(accept, rows.carry), step.carry, rows.carry)
    rows.err = torch.where(accept, err, rows.err)
    rows.accepted, rows.rejected = rows.accepted + accept, rows.rejected + ~accept
    landed = accept & to_stop
    rows.stop = rows.stop + landed

    smallest = _SMALLEST * span + 16 * torch.finfo(torch.float64).eps * rows.t.abs()
    stuck = ~accept & (rows.h < smallest)
    code = torch.where(rows.finite, int(Status.min_step), int(Status.non_finite))
    return landed, torch.where(stuck, code, int(Status.ok))


def _next_landing(rows: _Rows, stop: Tensor) -> tuple[Tensor, Tensor]:
    """The time beyond which no row may step, and its step: towards a revealed time, equal ones, so that none is a sliver."""
    if rows.noise is None:
        return stop, rows.h
    revealed = rows.noise.nearest()
    owed = ~torch.isnan(revealed)
    remaining = (revealed - rows.t).abs()
    equal = remaining / torch.ceil(remaining / rows.h * (1 - 1e-10)).clamp(min=1)
    return torch.where(owed, revealed, stop), torch.where(owed, equal, rows.h)


def _like(mask: Tensor, x: Tensor) -> Tensor:
    return mask.reshape(-1, *(1,) * (x.dim() - 1))
