"""A grid that was made for one model, method and budget by ``optimize_grid``, and the JSON file that keeps it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ._errors import as_float
from .files import atomic, read_entries
from .grids import Grid
from .methods import make_method
from .processes import Process
from .ranges import gaussian_start

FORMAT = "sdesolve.OptimisedGrid/2"
CARD = "card"  # the method of nodes that ``optimize_card`` found together with weights: those of the card alone
LARGEST_FILE = 1 << 24  # bytes; the largest that is written has 2^16 means, directions of 2^18 numbers and a few hundred nodes


@dataclass(frozen=True)
class OptimisedGrid(Grid):
    """Nodes with all that sampling along them needs: ``sd.solve(problem, x_T, grid.method, grid=grid)``, x_T a draw of the prior.

    A solve along it starts from the Gaussian of the data's moments at the first node, as a :class:`Range` does, and goes on from the
    last to no noise where ``denoise``.  The grid fits its process alone; for another method than its own it is a grid like any other.

    Attributes:
        ts: the nodes, from noise to data.
        process: the forward process, as it prints itself.
        method, options, nfe: what the grid was made for: the method's name, its options and network calls, the denoiser's included; "card" for a solver card.
        denoise: whether the solve ends where no noise is left, as ``solve(..., denoise="extrapolate")``.
        data_mean: m, one number or one for each coordinate of the flattened event.
        data_std: s, standard deviation about m, all coordinates together.
        directions: k of them, each of as many numbers as a sample has, as :class:`Range` has them.
        error: mean distance of samples that chose nothing to where the flow takes them, each the root mean square over its coordinates.
        baseline: the same of the process's default grid at the same ``nfe``.
        calls, rows: what the search cost: network calls, and the samples that they were given in all.
    """

    process: str
    method: str
    options: tuple[tuple[str, Any], ...]
    nfe: int
    denoise: bool
    data_mean: tuple[float, ...]
    data_std: float
    directions: tuple[tuple[float, ...], ...]
    error: float
    baseline: float
    calls: int
    rows: int

    def interval(self, process: Process, calls: int | None = None, eps: float | None = None) -> tuple[float, float]:
        """First and last node; a ValueError for another process than the grid's own."""
        if repr(process) != self.process:
            raise ValueError(f"grid was optimised for {self.process} and the problem has {process!r}; expected a grid of its own: sd.optimize_grid(problem, ...).")
        return self.ts[0], self.ts[-1]

    def start(self, process: Process, x: Tensor, t: float) -> Tensor:
        """A draw x of the prior, (B, *event), moved to the Gaussian that stands for the law at the first node."""
        event, numbers = x.shape[1:], x[0].numel()
        if {len(self.data_mean), *map(len, self.directions)} - {1, numbers}:
            raise ValueError(f"grid was optimised for samples of {len(self.data_mean)} numbers and x has {numbers}; expected a grid of its own.")
        mean, directions = (torch.tensor(values, dtype=torch.float64) for values in (self.data_mean, self.directions))
        found = directions.reshape(-1, *event) if len(directions) else None
        return gaussian_start(process, x, t, mean.reshape(event) if len(mean) > 1 else float(mean), self.data_std, found)

    def save(self, path: str | Path) -> Path:
        """Write the grid as JSON, whole or not at all; a ValueError where the method has an option that JSON has not, as statistics are."""
        path = Path(path)
        for name, value in self.options:
            if not _options({name: value}):
                raise ValueError(f"options has {name}=a {type(value).__name__}, which is no number or text; expected sd.Grid(grid.ts) to be kept, and the other by its own save.")
        with atomic(path) as partial:
            partial.write_text(json.dumps({"format": FORMAT, **asdict(self), "options": dict(self.options)}, indent=1) + "\n", encoding="utf-8")
        return path

    @classmethod
    def load(cls, path: str | Path) -> OptimisedGrid:
        """A grid from the file that :meth:`save` wrote, which may come from anywhere: nothing in it is trusted, and nothing runs.

        Raises:
            ValueError: no such file, or one that holds something else; the message names the file and the entry.
        """
        path = Path(path)
        content = read_entries(path, LARGEST_FILE, "OptimisedGrid.save", FORMAT, _ENTRIES)
        for name, (holds, expected) in _ENTRIES.items():
            if not holds(content[name]):
                raise ValueError(f"{path}: {name} = {str(content[name])[:80]}; expected {expected}.")
        try:
            _check_method(content["method"], content["options"])
            content |= {name: tuple(content[name]) for name in ("ts", "data_mean")} | {"directions": tuple(map(tuple, content["directions"]))}
            return cls(**{**content, "options": tuple(content["options"].items())})
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path}: {error}") from error


def _check_method(method: str, options: dict[str, Any]) -> None:
    """That the name and the options are a deterministic method's."""
    if method != CARD and make_method(method, **options).facts.kinds:
        raise ValueError(f"method = {method!r} draws noise; expected a deterministic method, as 'ddim'.")


def _number(value: object) -> bool:
    number = as_float(value)
    return number is not None and math.isfinite(number)


def _numbers(value: object) -> bool:
    return isinstance(value, list) and len(value) > 0 and all(_number(v) for v in value)


def _directions(value: object) -> bool:
    return isinstance(value, list) and all(map(_numbers, value)) and len({len(row) for row in value}) <= 1


def _positive(value: object) -> bool:
    return _number(value) and value > 0  # type: ignore[operator]


def _count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _text(value: object) -> bool:
    return isinstance(value, str) and len(value) < 1000


def _options(value: object) -> bool:
    return isinstance(value, dict) and all(isinstance(v, str | bool) or _number(v) for v in value.values())


_ENTRIES: dict[str, tuple[Callable[[object], bool], str]] = {
    "ts": (lambda value: _numbers(value) and value[0] > value[-1] > 0, "falling numbers > 0"),  # type: ignore[index]
    "process": (_text, "text"),
    "method": (_text, "text"),
    "options": (_options, "an object of numbers, texts and truth values"),
    "nfe": (_count, "an integer > 0"),
    "denoise": (lambda value: isinstance(value, bool), "true or false"),
    "data_mean": (_numbers, "numbers"),
    "data_std": (_positive, "a number > 0"),
    "directions": (_directions, "lists of numbers, of one length"),
    "error": (_positive, "a number > 0"),
    "baseline": (_positive, "a number > 0"),
    "calls": (_count, "an integer > 0"),
    "rows": (_count, "an integer > 0"),
}
assert list(_ENTRIES) == [field.name for field in fields(OptimisedGrid)]
