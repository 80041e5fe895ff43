"""What a model does on average along its own trajectories, as tables over lambda = ln(alpha/sigma), and the JSON file that keeps them.

Made by :func:`model_statistics` for ``dpm_solver_v3``, which has the equations.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ._arrays import finite_numbers
from ._errors import as_float, as_int
from .files import atomic, read_entries
from .processes import Process

_FORMAT = "sdesolve model statistics 1"
LARGEST_FILE = 1 << 27  # bytes
_TABLES = ("linear", "slope", "offset")


@dataclass(frozen=True, eq=False)
class ModelStatistics:
    """Tables at K nodes, equally far apart in lambda, for each coordinate of a sample:  ``sd.solve(problem, x_T, "dpm_solver_v3", statistics=found)``.

    Between the nodes they are cubics, beyond the first and the last what they are there.

    Arguments:
        process: repr of the forward process of the model; another is refused.
        first, last: lambda of the first and the last node, first < last.
        linear: l, (K, *event), of what the model says, sigma E[eps | x] = l x + N: the part that is linear in x.
        slope, offset: s and b, (K, *event), of  dN/dlambda = s N + b  for N/alpha along a trajectory.

    Raises:
        ValueError: shapes that do not fit, fewer than 4 nodes, numbers that are not finite.
    """

    process: str
    first: float
    last: float
    linear: Tensor
    slope: Tensor
    offset: Tensor

    def __post_init__(self) -> None:
        for name in _TABLES:
            object.__setattr__(self, name, finite_numbers(name, getattr(self, name)))
        shape = self.linear.shape
        for name in _TABLES:
            if getattr(self, name).shape != shape or len(shape) < 1 or shape[0] < 4:
                raise ValueError(f"{name} has shape {tuple(getattr(self, name).shape)} beside linear with {tuple(shape)}; expected one shape, (K, *event) with K >= 4 nodes.")
        if not -math.inf < self.first < self.last < math.inf:
            raise ValueError(f"first={self.first!r} and last={self.last!r}; expected finite numbers, first < last: lambda from noise to data.")

    @property
    def event(self) -> tuple[int, ...]:
        """The shape of a sample."""
        return tuple(self.linear.shape[1:])

    def check(self, process: Process, x: Tensor) -> None:
        """Refuse another process, and states of another shape."""
        if repr(process) != self.process:
            raise ValueError(f"statistics are of {self.process}, and the problem has {process!r}; expected sd.model_statistics(problem, shape={tuple(x.shape[1:])}).")
        if x.shape[1:] != self.event:
            raise ValueError(f"statistics are of samples of shape {self.event}, and x has {tuple(x.shape[1:])}; expected sd.model_statistics(problem, shape={tuple(x.shape[1:])}).")

    def at(self, u: Tensor) -> Tensor:
        """l, s and b at lambda = u, (n, m): (3, n, m, *event) float64 on u's device."""
        table, intervals = self._on(u.device), len(self.linear) - 1
        place = ((u - self.first) * (intervals / (self.last - self.first))).clamp(0, intervals)
        before = place.floor().clamp(max=intervals - 1)
        i, r = before.long(), (place - before).reshape(*u.shape, *[1] * (table.dim() - 1))
        weights = (r * (-0.5 + r * (1 - 0.5 * r)), 1 + r * r * (1.5 * r - 2.5), r * (0.5 + r * (2 - 1.5 * r)), 0.5 * r * r * (r - 1))  # of Catmull and Rom
        value: Tensor = sum((weight * table[i + k] for k, weight in enumerate(weights)), start=torch.zeros_like(r))
        return value.movedim(2, 0)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the tables as JSON, whole or not at all; a ValueError where they are too large for :meth:`load`, beyond some seven million numbers."""
        entries = {"format": _FORMAT, **{name: value.tolist() if isinstance(value, Tensor) else value for name, value in self._entries().items()}}
        text = json.dumps(entries) + "\n"
        if len(text) > LARGEST_FILE:
            raise ValueError(f"statistics of {self.linear.numel()} numbers a table take {len(text)} bytes; expected at most {LARGEST_FILE}, as of model_statistics(..., nodes=32).")
        with atomic(path) as partial:
            partial.write_text(text, encoding="utf-8")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> ModelStatistics:
        """The statistics in a file that :meth:`save` wrote, which may come from anywhere: nothing in it is trusted, and nothing runs.

        Raises:
            ValueError: what is there are no statistics: not JSON, another format, entries missing or unknown, tables that do not fit.
        """
        found = read_entries(path, LARGEST_FILE, "ModelStatistics.save", _FORMAT, ("process", "first", "last", "event", *_TABLES))
        if not isinstance(found["process"], str) or as_float(found["first"]) is None or as_float(found["last"]) is None:
            raise ValueError(f"{os.fspath(path)}: process, first and last are {str([found[name] for name in ('process', 'first', 'last')])[:80]}; expected a text and two numbers.")
        event = found["event"]
        if not isinstance(event, list) or not all((as_int(n) or 0) > 0 for n in event):
            raise ValueError(f"{os.fspath(path)}: event={str(event)[:80]}; expected the shape of a sample, as in [1, 28, 28].")
        tables = {name: _table(path, name, found[name], event) for name in _TABLES}
        return cls(found["process"], float(found["first"]), float(found["last"]), **tables)

    def _entries(self) -> dict[str, Any]:
        """What a file holds; the tables flat, with the shape of a sample beside them."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {"event": list(self.event), **fields, **{name: fields[name].flatten() for name in _TABLES}}

    def _on(self, device: torch.device) -> Tensor:
        """(K + 2, 3, *event): the tables with a node more at each end, on the straight line through the last two; copied to a device once."""
        if device not in self._tables:
            table = torch.stack([self.linear, self.slope, self.offset], 1)
            self._tables[device] = torch.cat([2 * table[:1] - table[1:2], table, 2 * table[-1:] - table[-2:-1]]).to(device)
        return self._tables[device]

    @cached_property
    def _tables(self) -> dict[torch.device, Tensor]:
        return {}


def _table(path: str | os.PathLike[str], name: str, values: object, event: list[int]) -> Tensor:
    """A table of a file, (K, *event)."""
    size = math.prod(event)
    if not isinstance(values, list) or not all(as_float(v) is not None for v in values) or len(values) % size:
        raise ValueError(f"{os.fspath(path)}: {name}={str(values)[:80]}; expected numbers, {size} for each node.")
    return finite_numbers(name, values).reshape(-1, *event)
