"""An adaptive solve walked a second time, for its gradient: along the steps that were accepted, with lengths that are constants.

A rejected step has no part in the result, so it has none in the gradient: it is not taken again, or a number that was not finite
there would spoil the gradient too (0 times inf).  Only its noise is drawn again, which the accepted steps have their share of.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from .._given import given
from ..brownian import Drawn
from ..methods import Step, Stepper
from .adaptive import Task, Try
from .attached import stretch
from .dense import Piece, read_off
from .fixed import batched
from .promises import Promises


class Noted(NamedTuple):
    """Of a step that was tried: the rows under way, their times, and which of them accepted it."""

    rows: Tensor
    t0: Tensor
    t1: Tensor
    accept: Tensor


class Script:
    """The steps that a solve tries, one after the other, and the noise as it was before the first."""

    def __init__(self, task: Task) -> None:
        self.noise = task.noise.copy() if task.noise else None
        self.tries: list[Noted] = []

    def note(self, tried: Try) -> None:
        """Keep times and rows, and let the states go."""
        self.tries.append(Noted(tried.rows, tried.t0, tried.t1, tried.accept))

    def left(self, number: int) -> Tensor:
        """Which of the rows of the try before are still under way."""
        return torch.isin(self.tries[number - 1].rows, self.tries[number].rows)


Places: TypeAlias = list[tuple[Tensor, Tensor]]
"""Of saved states: which time, and which row."""


def replay(stepper: Stepper, problem: Any, x: Tensor, task: Task, script: Script, length: int | None) -> tuple[Tensor, Sequence[Tensor]]:
    """The last states and the saved ones, as they came out of the solve; ``length`` of a stretch as in the fixed loop."""
    sign = 1.0 if task.interval[1] > task.interval[0] else -1.0
    saves = torch.tensor(task.saves, dtype=torch.float64, device=x.device)
    walk = partial(_walk, stepper, problem, script, sign, saves)
    carry = _carry(stepper, problem, x, task.interval[0], script)
    noise, values = script.noise, list[Tensor]()
    places: Places = []
    for numbers in batched(len(script.tries), length):
        along = partial(walk, numbers, noise)
        x, carry, saved, (noise, put) = stretch(along, x, carry) if length else along(x, carry)
        values += saved
        places += put
    xs = x.new_full((len(saves), *x.shape), torch.nan)
    if places:
        time, row = (torch.cat(parts) for parts in zip(*places, strict=True))
        xs = xs.index_put((time, row), torch.cat(values))
    return x, xs.unbind()


def _walk(
    stepper: Stepper,
    problem: Any,
    script: Script,
    sign: float,
    saves: Tensor,
    numbers: range,
    noise: Promises | None,
    x: Tensor,
    carry: Tensor | None,
) -> tuple[Tensor, Tensor | None, list[Tensor], tuple[Promises | None, Places]]:
    """The tries ``numbers``: state and carry after them, the states to save, the noise as it is then, and where the saved states belong."""
    noise = noise.copy() if noise else None
    values, places = list[Tensor](), Places()
    for number in numbers:
        tried = script.tries[number]
        drawn = None
        if noise:
            noise = noise[script.left(number)] if number and len(tried.rows) < len(script.tries[number - 1].rows) else noise
            drawn = noise.draw(tried.t0, tried.t1, number + 1)
            noise.settle(tried.accept | stepper.redraws)
        taken = tried.accept.nonzero().flatten()
        if not len(taken):
            continue
        rows, t0, t1 = tried.rows[taken], tried.t0[taken], tried.t1[taken]
        x0, carried = x[rows], None if carry is None else carry[rows]
        with given(rows, len(x)):
            step = stepper.step(problem, x0, t0, t1, Drawn(drawn.w[taken], drawn.h[taken]) if drawn else None, carried)
        if len(saves):
            _save(stepper, problem, Noted(rows, t0, t1, taken), x0, len(x), step, sign, saves, values, places)
        x = x.index_copy(0, rows, step.x)
        carry = None if carry is None else carry.index_copy(0, rows, step.carry)
    return x, carry, values, (noise, places)


def _carry(stepper: Stepper, problem: Any, x: Tensor, t: float, script: Script) -> Tensor | None:
    """The first carry of the rows that take a step; a row that takes none, as its start is no number, is not touched."""
    rows = torch.cat([tried.rows[tried.accept] for tried in script.tries]).unique()
    with given(rows, len(x)):
        carry = stepper.init(problem, x[rows], torch.full((len(rows),), t, dtype=torch.float64, device=x.device)) if len(rows) else None
    return None if carry is None else carry.new_zeros((len(x), *carry.shape[1:])).index_copy(0, rows, carry)


def _save(
    stepper: Stepper, problem: Any, moved: Noted, x: Tensor, count: int, step: Step, sign: float, saves: Tensor, values: list[Tensor], places: Places
) -> None:
    """Add what is to be saved on the steps that some of ``count`` rows took from ``x``."""
    passed = (sign * moved.t0[:, None] < sign * saves) & (sign * saves <= sign * moved.t1[:, None])
    i, j = passed.nonzero(as_tuple=True)
    if not len(i):
        return
    piece = None
    if stepper.facts.dense is not None:
        start, t0, t1 = x[i], moved.t0[i], moved.t1[i]
        with given(moved.rows[i], count):
            piece = Piece(start, t0, t1, stepper.interpolant(problem, start, t0, t1, [stage[i] for stage in step.stages]))
    values.append(read_off(piece, saves[j], step.x[i]))
    places.append((j, moved.rows[i]))
