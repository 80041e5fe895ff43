"""Solver cards: a linear sampler on a grid as numbers, to be read, saved, changed and run.

With x_i the state and D_i the network's output at node t_i, E[x_0 | x] ("x0") or E[eps | x] ("epsilon"), every sampler of this family is

    x_{i+1} = a_i x_i + sum_{j <= i} b_ij D_j + c_i z_i,      i = 0 .. N - 1,

so N calls are N + 1 nodes, a vector a, a lower triangle b and a vector c.  A card reads the classic methods into these numbers; numbers that were
learned or searched for run in the same way.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor

from ._arrays import Number, finite_numbers
from ._errors import as_float, choice, integer
from .files import atomic, read_entries
from .grids import Grid
from .methods import METHODS, Facts, Stepper, make_method
from .methods.linear import History, LinearSampler, Row
from .problems import ScoreProblem
from .processes import Process

_FORMAT = "sdesolve solver card 1"
LARGEST_FILE = 1 << 26  # bytes
_NUMBERS = ("ts", "a", "b", "c")


@dataclass(frozen=True, eq=False)
class SolverCard(LinearSampler):
    """A linear sampler as data; a method like any other, which brings its own grid:  ``sd.solve(problem, x, method=card)``
    where that has the problem's ends, with ``interval=(first, last)`` for an x of another time, and with ``grid=`` the OptimisedGrid that it was found for.

    Made by :func:`solver_card` or :meth:`load`; :meth:`replace` gives one with other numbers.  Where a, b or c requires a gradient, a solve with
    ``gradient="backprop"`` has one by them.

    Arguments:
        ts: (N + 1,) nodes, strictly monotone.
        a: (N,) weights on the state.
        b: (N, N) weights on the outputs, zero above the diagonal.
        c: (N,) weights on the noise; all zero for an ODE method.
        process: repr of the forward process that the numbers are for; another is refused.
        output: "x0" or "epsilon".
        calls: calls a step, of which N is a multiple: the nodes between belong to the step, and b uses outputs of the same step alone where it
            is more than 1.

    Raises:
        ValueError: shapes that do not fit, numbers that are not finite, weights above the diagonal or beyond the step.
    """

    ts: Tensor
    a: Tensor
    b: Tensor
    c: Tensor
    process: str
    output: Literal["x0", "epsilon"] = "x0"  # type: ignore[misc]
    calls: int = 1

    def __post_init__(self) -> None:
        for name in _NUMBERS:
            object.__setattr__(self, name, finite_numbers(name, getattr(self, name)))
        choice("output", self.output, ("x0", "epsilon"))
        if self.ts.dim() != 1 or not bool((self.ts > 0).all()):
            raise ValueError(f"ts={self.ts.tolist()}; expected a list of times > 0, where a process has a score, as in ts=[1.0, 0.5, 0.1].")
        n = len(self.ts) - 1
        for name, shape in (("a", (n,)), ("b", (n, n)), ("c", (n,))):
            if getattr(self, name).shape != shape:
                raise ValueError(f"{name} has shape {tuple(getattr(self, name).shape)} for {n + 1} nodes; expected {shape}.")
        Grid.of(self.ts)
        if bool(self.b.triu(1).any()):
            i, j = (self.b.triu(1) != 0).nonzero()[0].tolist()
            raise ValueError(f"b[{i}, {j}] = {float(self.b[i, j])} is a weight on an output that is not known yet; expected zeros above the diagonal.")
        calls = integer("calls", self.calls, 1, example=1)
        if n % calls or (calls > 1 and bool((self.b * (torch.arange(n)[:, None] // calls != torch.arange(n) // calls)).any())):
            raise ValueError(f"calls={calls} for {n} calls; expected a multiple, and b zero on the outputs of earlier steps.")

    @property
    def own_grid(self) -> Grid:  # type: ignore[override]
        """The nodes of whole steps."""
        return Grid.of(self.ts[:: self.calls])

    @cached_property
    def facts(self) -> Facts:  # type: ignore[override]
        """Of whatever numbers: order 1 is what they are believed to have."""
        noisy = bool((self.c != 0).any())
        return Facts(evals=self.calls, ode=None if noisy else 1, weak={"additive": 1.0} if noisy else {}, needs=frozenset({"score"}))

    @cached_property
    def memory(self) -> int:
        used = (self.b != 0).nonzero()
        return max(1, self.calls, int((used[:, 0] - used[:, 1]).max()) + 1 if len(used) else 1)

    def check_grid(self, process: Process, ts: Sequence[float]) -> None:
        """Nothing: the grid is its own, and its weights are there."""

    def nodes(self, process: Process, t0: Number, t1: Number) -> tuple[Number, ...]:
        if self.calls == 1:
            return (t0,)
        start = self._place(t0)
        if isinstance(start, Tensor):
            return (t0, *(self.ts.to(start.device).take(start + k) for k in range(1, self.calls)))
        return (t0, *self.ts[start + 1 : start + self.calls].tolist())

    def row(self, process: Process, times: Sequence[Number], t1: Number) -> Row:
        place = self._place(times[0])
        if not isinstance(place, Tensor):
            return self._rows[place]._replace(on_outputs=self._rows[place].on_outputs[: len(times)])
        a, c, *band = (values.to(place.device).take(place) for values in (self.a, self.c, *self._band.unbind(1)))
        return Row(a, band[: len(times)], c if self.facts.kinds else None)

    def init(self, problem: ScoreProblem, x: Tensor, t: Number) -> History:
        if repr(problem.process) != self.process:
            raise ValueError(f"the card is for {self.process}, and the problem has {problem.process!r}; expected sd.solver_card(method, process, grid) for that.")
        return super().init(problem, x, t)

    def replace(self, **numbers: Any) -> SolverCard:
        """The card with other numbers, as in ``card.replace(b=new)``."""
        return dataclasses.replace(self, **numbers)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the card as JSON, whole or not at all; a ValueError where it is too large for :meth:`load`, beyond some 1500 calls."""
        entries = {"format": _FORMAT, **{field.name: _plain(getattr(self, field.name)) for field in dataclasses.fields(self)}}
        text = json.dumps(entries) + "\n"
        if len(text) > LARGEST_FILE:
            raise ValueError(f"a card of {len(self.a)} calls takes {len(text)} bytes; expected at most {LARGEST_FILE}, which is what SolverCard.load reads.")
        with atomic(path) as partial:
            partial.write_text(text, encoding="utf-8")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> SolverCard:
        """The card in a file that :meth:`save` wrote, which may come from anywhere: nothing in it is trusted, and nothing runs.

        Raises:
            ValueError: what is there is no card: not JSON, another format, entries missing or unknown, numbers that break a card's rules.
        """
        found = read_entries(path, LARGEST_FILE, "SolverCard.save", _FORMAT, [field.name for field in dataclasses.fields(cls)])
        if not isinstance(found["process"], str):
            raise ValueError(f"process={found['process']!r}; expected the repr of a process, as in 'VPSDE(beta_min=0.1, beta_max=20.0, T=1.0)'.")
        for name in _NUMBERS:
            if not _listed(found[name], 2 if name == "b" else 1):
                raise ValueError(f"{os.fspath(path)}: {name}={str(found[name])[:80]}; expected {'rows of numbers' if name == 'b' else 'numbers'}.")
        return cls(**found)

    def _place(self, t: Number) -> int | Tensor:
        """Which node ``t`` is."""
        if isinstance(t, Tensor):
            return (self.ts.to(t.device) - t[..., None]).abs().argmin(-1)
        return self._places[t]

    @cached_property
    def _places(self) -> dict[float, int]:
        return {t: i for i, t in enumerate(self.ts.tolist())}

    @cached_property
    def _band(self) -> Tensor:
        """(N, memory) weights on the outputs, newest first."""
        columns = torch.arange(len(self.a))[:, None] - torch.arange(self.memory)
        return self.b.gather(1, columns.clamp(min=0)) * (columns >= 0)

    @cached_property
    def _rows(self) -> list[Row]:
        """By call; as floats, unless a gradient by them is wanted."""
        noisy, learned = bool(self.facts.kinds), any(values.requires_grad for values in (self.a, self.b, self.c))
        a, band, c = (list(values) if learned else values.tolist() for values in (self.a, self._band, self.c))
        return [Row(on_x, list(on_outputs), on_noise if noisy else None) for on_x, on_outputs, on_noise in zip(a, band, c, strict=True)]


def solver_card(method: str | LinearSampler, process: Process, grid: Grid | Sequence[float] | Tensor, **options: Any) -> SolverCard:
    """The card of a linear sampler on a grid.

    Arguments:
        method: a name from :func:`methods` whose method is linear in the network's outputs, or such a method itself.
        process: the forward process.
        grid: the times of the steps, in (0, T].
        options: the method's own, for a method by name.

    Raises:
        ValueError: a method that is not linear, or a time outside of (0, T].
    """
    if not isinstance(process, Process):
        hint = ": problem.process" if hasattr(process, "process") else ", as in sd.VPSDE()"
        raise TypeError(f"process is a {type(process).__name__}; expected a forward process{hint}.")
    stepper: Stepper = make_method(method, **options) if isinstance(method, str) else method
    if not isinstance(stepper, LinearSampler):
        linear = [name for name, make in METHODS.items() if isinstance(make(), LinearSampler)]
        raise ValueError(f"{method!r} is not linear in the network's outputs; expected one of: {', '.join(linear)}.")
    made = grid if isinstance(grid, Grid) else Grid.of(grid)
    if not 0 < min(made.ts) < max(made.ts) <= process.T:
        raise ValueError(f"grid runs from {made.ts[0]} to {made.ts[-1]}; expected times in (0, {process.T}], where the process has a score.")
    stepper.check_grid(process, made.ts)
    ts, rows, calls = [made.ts[0]], list[Row](), 1
    past: list[float] = []
    for t0, t1 in pairwise(made.ts):
        stages = [float(t) for t in stepper.nodes(process, t0, t1)]
        calls = len(stages)
        past = [] if calls > 1 else past
        for t, to in pairwise((*stages, t1)):
            past = [t, *past][: stepper.memory]
            rows.append(stepper.row(process, past, to))
            ts.append(to)
    b = torch.zeros(len(rows), len(rows), dtype=torch.float64)
    for i, row in enumerate(rows):
        for back, weight in enumerate(row.on_outputs):
            b[i, i - back] = weight
    nodes, a, c = (finite_numbers(name, values) for name, values in (("ts", ts), ("a", [row.on_x for row in rows]), ("c", [row.on_noise or 0.0 for row in rows])))
    return SolverCard(nodes, a, b, c, repr(process), stepper.output, calls)


def _listed(value: object, depth: int) -> bool:
    """Whether it is a list of numbers, or at depth 2 of such lists."""
    return isinstance(value, list) and all(_listed(v, depth - 1) if depth > 1 else as_float(v) is not None for v in value)


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, Tensor) else value
