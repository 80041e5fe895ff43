"""The loop that chooses its steps per sample, for ODEs and SDEs.

Every row has its own time, step and history, and its own Brownian path, which a rejection does not change.  A finished row
leaves the batch, so it costs no more network calls, and no row's numbers depend on its neighbours'.  One host read a step: are
there rows to retire, or values wanted between the nodes?  (With noise one more: is there room for what was promised?)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import _tally
from .._arrays import expand_time
from .._given import given
from ..control import Control
from ..methods import Stepper
from ..problems import Interval
from ..solution import Status, arrived
from .dense import Event, Piece, joined, read_off
from .fixed import Moment, Observer, Outcome
from .promises import Promises

WHOLE_BATCH = "A function that holds a tensor of the whole batch needs sdesolve.of_rows(tensor, x) in its place, or fixed steps, as in steps=100."
_FIRST = 0.01  # of the interval: the first step of an SDE, whose noise makes a guess from slopes worthless
_SHRINK = 0.9  # the longest that may be tried after a rejection, in units of what was rejected
_WHOLE = 0.95  # of what remains: a step as long as that takes all of it, and leaves no sliver; more than _SHRINK, or a rejection would be tried again
_SMALLEST = 1e-12  # of the interval, and 16 roundings of its times: a step below that is no step


@dataclass
class _Rows:
    """The rows still under way; each field is a tensor whose first axis is those rows."""

    index: Tensor  # where the row stands in the whole batch
    x: Tensor
    t: Tensor  # float64
    h: Tensor  # float64, > 0: length of the next step
    err: Tensor  # of the last try, in units of the tolerance
    carry: Tensor | None
    stop: Tensor  # index of the next time to land on
    saved: Tensor  # how many of the times to save have been passed
    side: Tensor  # sign of the event function, 0 where there is none
    nfe: Tensor
    accepted: Tensor
    noise: Promises | None

    def keep(self, which: Tensor) -> _Rows:
        values = [getattr(self, f.name) for f in fields(self)]
        kept: list[Any] = [None if value is None else value[which] for value in values]
        return _Rows(*kept)


class Try(NamedTuple):
    """A step that was tried by the rows under way."""

    rows: Tensor
    """Where each stands in the whole batch."""
    x: Tensor
    t0: Tensor
    t1: Tensor
    accept: Tensor
    stages: Sequence[Tensor]
    error: Tensor | None = None


class Task(NamedTuple):
    """What a method that chooses its steps is asked to do."""

    interval: Interval
    control: Control
    saves: tuple[float, ...]
    """The times whose states are wanted, in their order, without the first of the interval."""
    max_steps: int
    seed: int
    """Names the noise where there is one."""
    observe: Observer | None = None
    event: Event | None = None
    noise: Promises | None = None
    record: Callable[[Try], None] | None = None
    """Told of every step that is tried."""
    first: float | None = None
    """Length of the first step, where it is known without asking the slopes."""
    longest: Callable[[Tensor, Tensor], Tensor] | None = None
    """(B,) lengths that steps from states x at times t are not to exceed."""

    @property
    def stops(self) -> tuple[float, ...]:
        """The times to save, and the end of the interval."""
        return tuple(dict.fromkeys((*self.saves, self.interval[1])))


def run(stepper: Stepper, problem: Any, x: Tensor, task: Task) -> Outcome:
    """Integrate each row along the interval, to its end or to its event.

    A method with a continuous extension is read off at the times to save, any other lands on them.
    """
    t0, t1 = task.interval
    event = task.event
    sign = 1.0 if t1 > t0 else -1.0
    stops = torch.tensor(task.stops if stepper.facts.dense is None else (t1,), dtype=torch.float64, device=x.device)
    smallest = _SMALLEST * abs(t1 - t0) + 16 * torch.finfo(torch.float64).eps * max(abs(t0), abs(t1))
    out = _Results(x, task.saves, sign)
    rows = _start(stepper, problem, x, task)
    tries = 0
    while len(rows.index):
        tries += 1
        try:
            with given(rows.index, len(x)):
                move, stuck = _advance(stepper, problem, rows, tries, sign, stops, task, smallest)
        except RuntimeError as error:
            if len(rows.index) < len(x):
                error.add_note(f"Finished samples have left the batch: {len(rows.index)} of {len(x)} rows are under way. {WHOLE_BATCH}")
            raise
        if task.record:
            task.record(move)
        before, reached = rows.side, out.reached(rows)
        rows.side = event.side(rows.x, rows.t) if event else before
        hit = event.crossed(before, rows.side) if event else torch.zeros_like(stuck)
        inside = hit | (reached > rows.saved)  # rows whose step holds something to be read off
        leaving = hit | stuck | (rows.stop == len(stops)) if tries < task.max_steps else torch.ones_like(stuck)
        any_inside, any_leaving = torch.stack((inside.any(), leaving.any())).tolist()
        if any_inside:
            which = inside.nonzero().flatten()
            with given(rows.index[which], len(x)):
                piece = _piece(stepper, problem, rows, move, which)
            out.save(rows, which, piece, reached)
            if event and piece:
                out.keep_crossings(rows, which, piece, before, hit)
        if any_leaving:
            out.retire(rows.keep(leaving), hit[leaving], stuck[leaving], len(stops), tries)
            rows = rows.keep(~leaving)
        if task.observe:
            out.refresh(rows)
            task.observe(Moment(tries, out.t, out.x))
    return out.outcome(event)


class _Results:
    """The whole batch, filled in as rows retire."""

    def __init__(self, x: Tensor, saves: tuple[float, ...], sign: float) -> None:
        self.x = x.clone()
        self.xs = x.new_full((len(saves), *x.shape), torch.nan)
        self.saves = torch.tensor(saves, dtype=torch.float64, device=x.device)
        self.sign = sign
        self.t = x.new_full((len(x),), torch.nan, dtype=torch.float64)
        self.failed_at = torch.full_like(self.t, torch.nan)
        self.nfe, self.accepted, self.rejected, self.codes = (torch.zeros(len(x), dtype=torch.int64, device=x.device) for _ in range(4))
        self.crossings: list[tuple[Tensor, Piece, Tensor]] = []  # rows, the step that holds their event, and the side they come from

    def refresh(self, rows: _Rows) -> None:
        """Write the present state of rows under way."""
        self.x[rows.index], self.t[rows.index] = rows.x, rows.t

    def retire(self, rows: _Rows, hit: Tensor, stuck: Tensor, stops: int, tries: int) -> None:
        """Write rows that have ended: at their event, at the last of their stops, in a step too small, or by the number of tries."""
        self.refresh(rows)
        self.nfe[rows.index], self.accepted[rows.index], self.rejected[rows.index] = rows.nfe, rows.accepted, tries - rows.accepted
        codes = torch.where(rows.err.isfinite(), int(Status.min_step), int(Status.non_finite))
        codes = torch.where(stuck, codes, int(Status.max_steps))
        codes = torch.where(rows.stop == stops, int(Status.ok), codes)
        self.codes[rows.index] = codes = torch.where(hit, int(Status.event), codes)
        self.failed_at[rows.index] = torch.where(arrived(codes), torch.nan, rows.t)

    def reached(self, rows: _Rows) -> Tensor:
        """(B,) how many of the times to save lie behind each row."""
        return torch.searchsorted(self.sign * self.saves, self.sign * rows.t, right=True) if len(self.saves) else rows.saved

    def save(self, rows: _Rows, which: Tensor, piece: Piece | None, reached: Tensor) -> None:
        """Write the values at the times that rows ``which`` have passed on ``piece``: at its end the state itself."""
        if not len(self.saves):
            return
        order = torch.arange(len(self.saves), device=which.device)
        i, j = ((rows.saved[which, None] <= order) & (order < reached[which, None])).nonzero(as_tuple=True)
        times, row, rows.saved = self.saves[j], which[i], reached
        self.xs[j, rows.index[row]] = read_off(piece.rows(i) if piece else None, times, rows.x[row])

    def keep_crossings(self, rows: _Rows, which: Tensor, piece: Piece, before: Tensor, hit: Tensor) -> None:
        """Keep the ``piece`` of those of the rows ``which`` that have ``hit`` their event, to find it when all have ended."""
        i = hit[which].nonzero().flatten()
        if len(i):
            self.crossings.append((rows.index[which[i]], piece.rows(i), before[which[i]]))

    def outcome(self, event: Event | None) -> Outcome:
        """What there is, with the rows that had an event taken back to it, all at once."""
        out = Outcome(self.x, self.nfe, self.codes, self.failed_at, self.accepted, self.rejected, list(self.xs))
        if event is None:
            return out
        event_time = torch.full_like(self.t, torch.nan)
        if self.crossings:
            indices, pieces, sides = zip(*self.crossings, strict=True)
            index = torch.cat(indices)
            self.x[index], event_time[index] = event.locate(joined(pieces), torch.cat(sides))
            for t, states in zip(self.sign * self.saves, self.xs, strict=True):
                states[t > self.sign * event_time] = torch.nan
        return out._replace(event_time=event_time)


def _start(stepper: Stepper, problem: Any, x: Tensor, task: Task) -> _Rows:
    calls = _tally.calls()
    count = torch.zeros(len(x), dtype=torch.int64, device=x.device)
    t0, t1 = task.interval
    t = torch.full((len(x),), t0, dtype=torch.float64, device=x.device)
    carry = stepper.init(problem, x, t)
    first = _FIRST * abs(t1 - t0) if task.noise else task.first
    h = _first_step(problem, x, t, t1, carry, task.control) if first is None else torch.full_like(t, first)
    return _Rows(
        index=torch.arange(len(x), device=x.device),
        x=x,
        t=t,
        h=h,
        err=torch.ones_like(t),
        carry=carry,
        stop=count,
        saved=count,
        side=task.event.side(x, t) if task.event else torch.zeros_like(t),
        nfe=count + (_tally.calls() - calls),
        accepted=count,
        noise=task.noise,
    )


def _first_step(problem: Any, x: Tensor, t: Tensor, t1: float, slope: Tensor | None, control: Control) -> Tensor:
    """(B,) length of a first step whose Euler and second-derivative errors are small.  [Hairer, Norsett & Wanner 1993, II.4]"""
    slope = problem.drift(x, t) if slope is None else slope
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
    stepper: Stepper, problem: Any, rows: _Rows, tries: int, sign: float, stops: Tensor, task: Task, smallest: float
) -> tuple[Try, Tensor]:
    """Try a step of every row, in place; returns the step, and which rows cannot go on: rejected, and to be tried with a step that is none."""
    calls, control = _tally.calls(), task.control
    stop = stops[rows.stop] if len(stops) > 1 else stops
    nearest, h = _next_landing(rows, stop)
    remaining = (nearest - rows.t).abs()
    cut = h >= remaining * _WHOLE
    target = torch.where(cut, nearest, rows.t + sign * h)
    noise = rows.noise.draw(rows.t, target, tries) if rows.noise else None
    step = stepper.step(problem, rows.x, rows.t, target, noise, rows.carry)
    ends = (rows.x, step.x) if step.scale is None else (step.scale,)
    err = torch.nan_to_num(control.size(step.error, *ends), nan=torch.inf, posinf=torch.inf)  # type: ignore[arg-type]
    accept = err <= 1
    move = Try(rows.index, rows.x, rows.t, target, accept, step.stages, step.error)
    if rows.noise:
        rows.noise.settle(accept | stepper.redraws)

    factor = control.factor(err, rows.err)
    grown = torch.minimum(h, remaining) * torch.where(accept, factor, factor.clamp(max=_SHRINK))
    rows.h = torch.where(accept & cut, torch.maximum(grown, rows.h), grown)  # a step cut short says nothing against the longer one
    landed = accept & (target == stop)
    rows.t = torch.where(accept, target, rows.t)
    rows.x = torch.where(expand_time(accept, rows.x), step.x, rows.x)
    if rows.carry is not None:
        rows.carry = torch.where(expand_time(accept, rows.carry), step.carry, rows.carry)
    rows.h = rows.h if task.longest is None else torch.minimum(rows.h, task.longest(rows.x, rows.t))
    rows.err = err
    rows.nfe = rows.nfe + (_tally.calls() - calls)
    rows.accepted = rows.accepted + accept
    rows.stop = rows.stop + landed
    return move, ~accept & (rows.h < smallest)


def _next_landing(rows: _Rows, stop: Tensor) -> tuple[Tensor, Tensor]:
    """The time beyond which no row may step, and its step: towards a revealed time, equal ones, so that none is a sliver."""
    if rows.noise is None:
        return stop, rows.h
    revealed = rows.noise.nearest()
    owed = ~torch.isnan(revealed)
    remaining = (revealed - rows.t).abs()
    equal = remaining / torch.ceil(remaining / rows.h * (1 - 1e-10)).clamp(min=1)
    return torch.where(owed, revealed, stop), torch.where(owed, equal, rows.h)


def _piece(stepper: Stepper, problem: Any, rows: _Rows, move: Try, which: Tensor) -> Piece | None:
    """The continuous extension on the step of rows ``which``; the calls that some methods make for it are counted for those rows."""
    if stepper.facts.dense is None:
        return None
    calls = _tally.calls()
    x, t0, t1 = move.x[which], move.t0[which], move.t1[which]
    coefficients = stepper.interpolant(problem, x, t0, t1, [stage[which] for stage in move.stages])
    rows.nfe = rows.nfe.index_add(0, which, torch.full_like(which, _tally.calls() - calls))
    return Piece(x, t0, t1, coefficients)
