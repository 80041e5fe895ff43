"""Parallel in time: the steps of a window all at once, over and over, until they are those of the walk along the grid.

A walk is the fixed point of  x_(k+1) = F_k(x_k),  F_k the step from node k with its own noise.  All F_k(x_k) of a window are evaluated at
a guess, as rows of one batch, and the guess is corrected from left to right,

    x'_(k+1) = F_k(x_k) + a_k (x'_k - x_k),     a_k a number for each step of each sample, in place of the derivative of F_k.

Every a_k has the walk for its fixed point, and the first k nodes are exact after k iterations, so there are never more of them than
steps.  a_k = 1 is Picard's iteration in increments.  [Shih et al. 2023, arXiv 2305.16317, algorithm 1]  The secant

    a_k = <F_k(x_k) - F_k(x_k-), x_k - x_k-> / |x_k - x_k-|^2

through the last two guesses is Anderson's acceleration with a memory of one, of each step by itself; so it is triangular, as Tang et al.
2024 (arXiv 2402.09970) make theirs: no node hears from a later one.

What a step carries to the next belongs to the guess, with a = 0; an account, to which steps add, with a = 1, so that a count is right at once, and has not to
come to rest but for what steers the steps.  Every sample has a window of its own, which moves on by the nodes that
have come to rest, so nothing couples rows.  One host read an iteration.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map, tree_map_only

from .. import _tally
from .._arrays import Number, bcast, row_mean
from .._errors import as_float, choice, integer
from .._given import given
from ..correctors import Account
from ..grids import Grid
from ..methods import StepNoise, Stepper
from ..solution import Status
from .fixed import Moment, Observer, Outcome

UPDATES = ("secant", "picard")
_FLATTEST, _STEEPEST = -1.0, 1.2  # bounds of a secant: one through two guesses that are nearly the same is noise, which a wide window multiplies up


@dataclass(frozen=True)
class Parallel:
    """A walk along a grid, parallel in time, as in ``solve(..., steps=100, parallel=sd.Parallel(window=32))``.

    The result is the sequential one, with the same noise, to a tolerance; the network is called fewer times one after the other, each
    time with many more rows, and evaluated more often in all.  So it is for a device that is not full: a GPU and few samples.
    [Shih et al. 2023; Tang et al. 2024]

    Arguments:
        window: W >= 1, steps of a sample in one call, in which the network sees up to W rows for each sample.
        tolerance: a node is at rest where its largest change in an iteration is at most this fraction of the largest number at both ends
            of the step that led there.  The end differs from the sequential one in proportion, with the factor by which the problem
            magnifies a change on its way; at 0, which iterates until nothing changes, by rounding.
        update: "secant", or "picard" for the published iteration, which needs more of them.

    Raises:
        ValueError: an argument out of range.
    """

    window: int = 16
    tolerance: float = 1e-4
    update: Literal["secant", "picard"] = "secant"

    def __post_init__(self) -> None:
        object.__setattr__(self, "window", integer("window", self.window, 1, example=16))
        tolerance = as_float(self.tolerance)
        if tolerance is None or not 0 <= tolerance < 1:
            raise ValueError(f"tolerance={self.tolerance!r}; expected a number, 0 <= tolerance < 1, as in tolerance=1e-4.")
        object.__setattr__(self, "tolerance", tolerance)
        choice("update", self.update, UPDATES)


def run(
    stepper: Stepper,
    problem: Any,
    x: Tensor,
    grid: Grid,
    noise_at: Callable[[int], StepNoise | None],
    saves: Mapping[int, tuple[float, ...]],
    observe: Observer | None,
    how: Parallel,
    stats: dict[str, Any],
) -> Outcome:
    """What ``fixed.run`` gives, to the tolerance of ``how``; depth and iterations are written into ``stats``."""
    calls, course, noise = _tally.calls(), _Course(x, grid, saves, observe), _Noise(noise_at, grid)
    windows = _opened(stepper, problem, x, course, noise, how)
    while len(windows.rows):
        ends, carried = _stepped(stepper, problem, windows, course, noise)
        moved = _corrected(windows, ends, carried, how)
        settled = _settled(windows, moved, ends, how.tolerance).minimum(len(grid) - windows.first)
        course.settle(windows.rows, windows.first, settled, moved.x[:, 1:], ends[:, 0])
        course.keep_carry(windows.rows, windows.first, settled, moved.carry)
        windows = moved.slide(settled, len(grid))
    stats |= {"depth": _tally.calls() - calls, "iterations": course.iterations.to(x.device)}
    return course.outcome()


@dataclass
class _Windows:
    """The windows of the b rows under way: W + 1 nodes, of which the first is settled, and the W steps between them."""

    rows: Tensor  # (b,) where the row stands in the whole batch; on the host, as ``first``
    first: Tensor  # (b,) the number of the first node
    x: Tensor  # (b, W + 1, *event)
    carry: Any  # what the step from each node is handed: None, or tensors (b, W + 1, ...)
    starts: Tensor  # (b, W, *event) where the steps were evaluated last, and
    ends: Tensor  # where they led; NaN for steps that have not been
    slope: Tensor  # (b, W) float64, a_k; NaN where it is not known

    def nodes(self) -> Tensor:
        """(b, W) the nodes that the steps start from; the last of them may lead out of the grid."""
        return self.first[:, None] + torch.arange(self.slope.shape[1])

    def slide(self, settled: Tensor, last: int) -> _Windows:
        """Each window (b,) nodes further on, without those of rows that have failed (-1) or arrived; a new node is guessed to be as the last."""
        stays = (settled > 0) & (self.first + settled < last)
        by, size, device = settled[stays, None], self.slope.shape[1], self.x.device
        row = stays.nonzero().to(device)
        node = (by + torch.arange(size + 1)).clamp(max=size).to(device)
        step = (by + torch.arange(size)).to(device)

        def moved(of_steps: Tensor) -> Tensor:
            return torch.where(_over(step < size, of_steps), of_steps[row, step.clamp(max=size - 1)], torch.nan)

        return _Windows(
            rows=self.rows[stays],
            first=(self.first + settled)[stays],
            x=self.x[row, node],
            carry=_map(lambda leaf: leaf[row, node], self.carry),
            starts=moved(self.starts),
            ends=moved(self.ends),
            slope=moved(self.slope),
        )


def _opened(stepper: Stepper, problem: Any, x: Tensor, course: _Course, noise: _Noise, how: Parallel) -> _Windows:
    """The windows at the start, every node guessed to be as the first.

    As long as a carry takes on a new form, as a multistep method's does in its first steps, those are taken one after the other.
    """
    calls, rows, first = _tally.calls(), torch.arange(len(x)), torch.zeros(len(x), dtype=torch.int64)
    course.look(0, x)
    carry, node = stepper.init(problem, x, course.times(first)), 0
    size = 0 if carry is None else -1
    while len(_tensors(carry)) != size and node < len(course.grid):
        size, node = len(_tensors(carry)), node + 1
        step = stepper.step(problem, x, course.times(first), course.times(first + 1), noise.of(rows, first), carry)
        x, carry, first = step.x, step.carry, first + 1
        course.look(node, x)
    course.nfe += _tally.calls() - calls
    course.carry = _map(torch.clone, carry)
    stays = course.reached < len(course.grid)
    row, size = stays.nonzero().flatten().to(x.device), min(how.window, len(course.grid))

    def repeated(value: Tensor, count: int) -> Tensor:
        return value[row, None].expand(-1, count, *value.shape[1:])

    unknown = repeated(torch.full_like(x, torch.nan), size)
    slope = torch.full((len(row), size), torch.nan, dtype=torch.float64, device=x.device)
    return _Windows(rows[stays], first[stays], repeated(x, size + 1), _map(lambda leaf: repeated(leaf, size + 1), carry), unknown, unknown, slope)


def _stepped(stepper: Stepper, problem: Any, windows: _Windows, course: _Course, noise: _Noise) -> tuple[Tensor, Any]:
    """Where the steps lead from the guess, (b, W, *event), and what they carry; NaN or 0 for those that lead out of the grid."""
    calls, b, size = _tally.calls(), *windows.slope.shape
    inside = windows.nodes() < len(course.grid)
    rows, nodes = windows.rows[:, None].expand(b, size)[inside], windows.nodes()[inside]
    where = inside.flatten().nonzero().flatten().to(windows.x.device)

    def started(of_nodes: Tensor) -> Tensor:
        return of_nodes[:, :-1].flatten(0, 1)[where]

    def placed(value: Tensor) -> Tensor:
        outside = torch.nan if value.is_floating_point() else 0
        return value.new_full((b * size, *value.shape[1:]), outside).index_copy_(0, where, value).unflatten(0, (b, size))

    try:
        with given(rows, len(course.reached)):
            step = stepper.step(
                problem, started(windows.x), course.times(nodes), course.times(nodes + 1), noise.of(rows, nodes), _map(started, windows.carry)
            )
    except RuntimeError as error:
        error.add_note(
            f"parallel evaluates many steps of each sample in one call, here {len(nodes)} rows of {b} samples. A function that holds a tensor of the whole batch needs "
            "sdesolve.of_rows(tensor, x) in its place, or parallel=None."
        )
        raise
    course.count(windows.rows, (_tally.calls() - calls) * inside.sum(1))
    return placed(step.x), _map(placed, step.carry)


def _corrected(windows: _Windows, ends: Tensor, carried: Any, how: Parallel) -> _Windows:
    """The windows with a better guess; a node that would not be finite is guessed to be as the one before."""
    starts = windows.x[:, :-1]
    slope = torch.ones_like(windows.slope) if how.update == "picard" else _secants(windows, starts, ends)
    nodes = [windows.x[:, 0]]
    for k, end in enumerate(ends.unbind(1)):
        node = end + bcast(slope[:, k], end) * (nodes[k] - starts[:, k])
        nodes.append(torch.where(_over(_finite(node), node), node, nodes[k]))
    carry = tree_map(_carried, windows.carry, carried, is_leaf=_is_account)
    return replace(windows, x=torch.stack(nodes, 1), carry=carry, starts=starts, ends=ends, slope=slope)


def _carried(before: Any, ends: Any) -> Any:
    """A better guess of a part of the carry, (b, W + 1, ...), from where the steps took it."""
    if isinstance(before, Account):
        return Account(*map(_added_up, before, ends))
    return torch.cat([before[:, :1], ends], 1) if isinstance(before, Tensor) else before


def _added_up(before: Tensor, ends: Tensor) -> Tensor:
    """Each node's number is what the one before has by now and what the step has added; where that is not finite, where the step led."""
    nodes = [before[:, 0]]
    for k, end in enumerate(ends.unbind(1)):
        node = end + (nodes[k] - before[:, k])
        nodes.append(torch.where(node.isfinite(), node, end))
    return torch.stack(nodes, 1)


def _secants(windows: _Windows, starts: Tensor, ends: Tensor) -> Tensor:
    """a_k, (b, W); that of an iteration ago where the guess has not moved, and of the step before where there is none."""
    dtype = torch.promote_types(starts.dtype, torch.float32)
    dx, dy = ((now.to(dtype) - before.to(dtype)).flatten(0, 1) for now, before in ((starts, windows.starts), (ends, windows.ends)))
    secant = (row_mean(dx * dy).double() / row_mean(dx * dx).double()).unflatten(0, windows.slope.shape)
    slope = torch.where(secant.isfinite(), secant.clamp(_FLATTEST, _STEEPEST), windows.slope)
    number = torch.arange(1, slope.shape[1] + 1, device=slope.device)
    nearest = torch.where(slope.isnan(), 0, number).cummax(1).values
    return torch.cat([torch.ones_like(slope[:, :1]), slope], 1).gather(1, nearest)


def _settled(windows: _Windows, moved: _Windows, ends: Tensor, tolerance: float) -> Tensor:
    """(b,) how many nodes have come to rest, on the host: at least the first, which is exact; -1 where that is not finite."""
    finite = torch.isfinite(ends).reshape(*ends.shape[:2], -1).all(2)  # where one is not, the guess in its place may well be at rest
    at_rest = finite & _at_rest(windows.x, moved.x, tolerance)
    for before, now in zip(*(tree_leaves(part.carry, is_leaf=_is_account) for part in (windows, moved)), strict=True):
        if isinstance(before, Account):
            at_rest &= ((now.steers - before.steers).abs() <= tolerance * now.steers.abs().clamp(min=1))[:, 1:].all(2)
        elif isinstance(before, Tensor):
            at_rest &= _at_rest(before, now, tolerance)
    count = at_rest.long().cumprod(1).sum(1).clamp(min=1)
    return torch.where(finite[:, 0], count, -1).cpu()


def _at_rest(before: Tensor, now: Tensor, tolerance: float) -> Tensor:
    """(b, W) whether the nodes after the first have changed by no more than the tolerance; the largest number knows no overflow and no order of rows."""
    size, change = (value.reshape(*value.shape[:2], -1).abs().amax(2) for value in (now, now - before))
    return change[:, 1:] <= tolerance * torch.maximum(size[:, 1:], size[:, :-1])


class _Course:
    """The whole batch: how far each row has come, and the states that somebody wants, which rows reach at different iterations."""

    def __init__(self, x: Tensor, grid: Grid, saves: Mapping[int, tuple[float, ...]], observe: Observer | None) -> None:
        self.grid, self._saves, self._observe = grid, saves, observe
        self._ts = torch.tensor(grid.ts, dtype=torch.float64)
        self._x, self._device = x, x.device
        self._wanted = range(len(grid) + 1) if observe else sorted({*saves, len(grid)})
        self._states: dict[int, Tensor] = {}
        self._told = 0
        self.reached, self.nfe, self.iterations = (torch.zeros(len(x), dtype=torch.int64) for _ in range(3))
        self._failed = torch.full((len(x),), -1)  # the node at which a row was not finite
        self.carry: Any = None

    def times(self, nodes: Tensor) -> Tensor:
        """Their times, float64."""
        return self._ts[nodes].to(self._device)

    def count(self, rows: Tensor, calls: Tensor) -> None:
        """An iteration in which each of the rows saw so many calls."""
        self.iterations[rows] += 1
        self.nfe[rows] += calls

    def look(self, node: int, x: Tensor) -> None:
        """The whole batch has reached a node."""
        rows = (self._failed < 0).nonzero().flatten()
        settled = torch.where(_finite(x).cpu(), 1, -1)[rows]
        state = x[rows]
        self.settle(rows, torch.full_like(rows, node - 1), settled, state[:, None], state)

    def settle(self, rows: Tensor, first: Tensor, settled: Tensor, x: Tensor, broken: Tensor) -> None:
        """Each row has come from its node ``first`` so many nodes further, to states x, (b, W, *event), or has failed (-1) and is ``broken``."""
        failed, end, last = settled < 0, first + settled, len(self.grid)
        self._failed[rows[failed]] = first[failed] + 1
        self.reached[rows] = torch.where(failed, last, end)
        self._state(last)[rows[failed]] = broken[failed]
        for node in self._wanted:
            which = ((first < node) & (node <= end)).nonzero().flatten()
            if len(which):
                self._state(node)[rows[which]] = x[which, node - first[which] - 1]
        while self._observe and self._told < int(self.reached.min()):
            self._told += 1
            self._observe(Moment(self._told, self.grid.ts[self._told], self._state(self._told)))
            if self._told not in self._saves and self._told < last:
                del self._states[self._told]

    def keep_carry(self, rows: Tensor, first: Tensor, settled: Tensor, carry: Any) -> None:
        """What the steps (b, W + 1, ...) carry, of rows that have arrived."""
        which = ((settled > 0) & (first + settled == len(self.grid))).nonzero().flatten()
        for whole, part in zip(_tensors(self.carry), _tensors(carry), strict=True):
            whole[rows[which]] = part[which, settled[which]]

    def _state(self, node: int) -> Tensor:
        """(B, *event) at a node; NaN for rows that have not reached it."""
        if node not in self._states:
            self._states[node] = torch.full_like(self._x, torch.nan)
        return self._states[node]

    def outcome(self) -> Outcome:
        failed, failed_at = self._failed >= 0, self._ts[self._failed]
        return Outcome(
            x=self._state(len(self.grid)),
            nfe=self.nfe.to(self._device),
            codes=torch.where(failed, int(Status.non_finite), int(Status.ok)).to(self._device),
            failed_at=torch.where(failed, failed_at, torch.nan).to(self._device),
            accepted=len(self.grid),
            rejected=0,
            xs=[self._state(node) for node, times in sorted(self._saves.items()) for _ in times],
            carry=self.carry,
        )


class _Noise:
    """The noise of the steps in the windows: drawn when a step comes in, and kept until it leaves."""

    def __init__(self, noise_at: Callable[[int], StepNoise | None], grid: Grid) -> None:
        self._noise_at, self._grid = noise_at, grid
        self._rows = self._nodes = torch.zeros(0, dtype=torch.int64)
        self._kept: dict[tuple[str, int], Tensor] = {}

    def of(self, rows: Tensor, nodes: Tensor) -> _Noise | None:
        """The noise of the steps from ``nodes``, (P,), of ``rows``, (P,), which are in order; None where there is none."""
        if self._noise_at(0) is None:
            return None
        before, now = (row * len(self._grid) + node for row, node in ((self._rows, self._nodes), (rows, nodes)))
        place = torch.searchsorted(before, now).clamp(max=max(0, len(before) - 1))
        new = before[place] != now if len(before) else torch.ones_like(now, dtype=torch.bool)
        for what, kept in self._kept.items():
            self._kept[what] = kept[place.to(kept.device)]
            if bool(new.any()):
                self._kept[what][new.nonzero().flatten().to(kept.device)] = self._draw(what, rows[new], nodes[new])
        self._rows, self._nodes = rows, nodes
        return self

    def normal(self, slot: int = 0) -> Tensor:
        return self._asked("normal", slot)

    def increment(self, t0: Number, t1: Number) -> Tensor:
        return self._asked("increment", 0)

    def levy(self, t0: Number, t1: Number) -> tuple[Tensor, Tensor]:
        w, area = self._asked("levy", 0).unbind(1)
        return w, area

    def _asked(self, name: str, slot: int) -> Tensor:
        if (name, slot) not in self._kept:
            self._kept[name, slot] = self._draw((name, slot), self._rows, self._nodes)
        return self._kept[name, slot]

    def _draw(self, what: tuple[str, int], rows: Tensor, nodes: Tensor) -> Tensor:
        """(P, ...) what the walk has at each node, of which the rows that are asked for are taken."""
        parts = []
        for node in nodes.unique().tolist():
            value = _drawn(self._noise_at(node), *what, *self._grid.ts[node : node + 2])
            parts.append(value[rows[nodes == node].to(value.device)])
        return torch.cat(parts)[nodes.argsort(stable=True).argsort().to(parts[0].device)]


def _drawn(noise: Any, name: str, slot: int, t0: float, t1: float) -> Tensor:
    if name == "normal":
        normal: Tensor = noise.normal(slot)
        return normal
    value = getattr(noise, name)(t0, t1)
    return torch.stack(value, 1) if name == "levy" else value


def _map(function: Callable[[Tensor], Tensor], carry: Any) -> Any:
    """A carry with the function of each tensor in it."""
    return tree_map_only(Tensor, function, carry)


def _tensors(carry: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(carry) if isinstance(leaf, Tensor)]


def _is_account(value: Any) -> bool:
    return isinstance(value, Account)


def _finite(x: Tensor) -> Tensor:
    """(B,) which rows are finite."""
    return torch.isfinite(x).reshape(len(x), -1).all(1)


def _over(mask: Tensor, x: Tensor) -> Tensor:
    """A mask (b,) or (b, W) shaped to choose among states x."""
    return mask.reshape(*mask.shape, *(1,) * (x.dim() - mask.dim()))
