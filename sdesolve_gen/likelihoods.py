"""Likelihoods of a whole data set: a table that grows batch by batch, and can be gone on with.

    NAME.csv or NAME.parquet     one row an image: id (its place in the data), name, label (that the network was told), log_prob (nats),
                                 bits_per_dim, standard_error (bits/dim, over probes), nfe, status (one of sdesolve.Status, or outside_range of
                                 an image that leaves the data range, which no network is asked about); where a bound is asked for, bound and
                                 bound_error (bits/dim, over its times and noise), too
    NAME.png                     histogram of the bits/dim
    NAME.json                    settings and figures; "complete" is false until all images are there
"""

from __future__ import annotations

import csv
import json
import math
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import torch
from PIL import Image, ImageDraw
from torch import Tensor

import sdesolve as sd
from sdesolve.files import atomic, read_json, sha256

from ._versions import versions
from ._writing import write_json
from .data import Data, DataWarning
from .models import Model, inside_range
from .outputs import writable

COLUMNS = ("id", "name", "label", "log_prob", "bits_per_dim", "standard_error", "nfe", "status")
BOUND = ("bound", "bound_error")
_SIZE, _BORDER, _BINS = (640, 400), 40, 40
_LARGEST = 1 << 24  # bytes of a manifest

Row = dict[str, Any]


class Table:
    """The rows so far, in a file that is whole after every batch.

    Arguments:
        path: NAME.csv or NAME.parquet.
        settings: everything that the rows depend on.
        overwrite: replace a table that is there.

    Raises:
        ValueError: another suffix; files that are there already, of a complete table, of other settings or of something else, and not to be overwritten.
    """

    def __init__(self, path: str | Path, settings: dict[str, Any], overwrite: bool) -> None:
        self.path = Path(path)
        self._settings = json.loads(json.dumps({"table": self.path.name, **settings}))
        if self.path.suffix not in (".csv", ".parquet"):
            raise ValueError(f"--out {path}: expected a name that ends in .csv or .parquet, as in --out {self.path.with_suffix('.csv')}.")
        self.picture, self.manifest = self.path.with_suffix(".png"), self.path.with_suffix(".json")
        goes_on = self.manifest.is_file() and not overwrite
        writable(str(path), (self.path, self.picture, self.manifest), overwrite or goes_on)
        self.rows: list[Row] = self._left() if goes_on else []

    def _left(self) -> list[Row]:
        """The rows of an earlier run with the same settings."""
        cure = "add --overwrite, or choose another --out"
        try:
            known = read_json(self.manifest, _LARGEST, "sdesolve-gen likelihood")
        except ValueError as error:
            raise ValueError(f"{error} Or {cure}.") from error
        there = known.get("settings") if isinstance(known, dict) else None
        if not isinstance(there, dict) or "table" not in there:
            raise ValueError(f"{self.manifest} is there already, and not of a table of likelihoods; {cure}.")
        other = sorted(name for name in there.keys() | self._settings.keys() if there.get(name, self) != self._settings.get(name, self))
        if other:
            raise ValueError(f"{self.manifest} is there already, of a table of other settings ({', '.join(other)}); {cure}.")
        if known.get("complete"):
            raise ValueError(f"{self.path} is there already and complete; {cure}.")
        return read_table(self.path) if self.path.exists() else []

    def add(self, rows: list[Row]) -> None:
        """Rows more: the file is replaced by one with them."""
        self.rows += rows
        self._note(complete=False)
        with atomic(self.path) as path:
            if self.path.suffix == ".parquet":
                parquet.write_table(pa.table({name: [row[name] for row in self.rows] for name in self.rows[0]}), path)
            else:
                with open(path, "w", newline="", encoding="utf-8") as file:
                    writer = csv.DictWriter(file, list(self.rows[0]))
                    writer.writeheader()
                    writer.writerows(self.rows)

    def finish(self) -> None:
        """The histogram, and the manifest that says that all is there."""
        write_histogram(self.picture, [row["bits_per_dim"] for row in self.rows])
        self._note(complete=True)

    def figures(self) -> dict[str, Any]:
        """How many images, their mean bits/dim and bound with the standard error over images, calls a sample, and how many ended how."""
        statuses = sorted({row["status"] for row in self.rows})
        return {
            "images": len(self.rows),
            **self._mean("bits_per_dim", "standard_error"),
            **(self._mean(*BOUND) if "bound" in self.rows[0] else {}),
            "nfe": float(np.mean([row["nfe"] for row in self.rows])),
            "statuses": {status: sum(row["status"] == status for row in self.rows) for status in statuses},
        }

    def _mean(self, column: str, error: str) -> dict[str, float | None]:
        """The mean of a column, and its standard error over images, of which that of probes or of a bound's draws is a part."""
        values = np.array([row[column] for row in self.rows if math.isfinite(row[column])])
        deviation = float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else None
        return {column: float(values.mean()) if len(values) else None, error: deviation}

    def _note(self, complete: bool) -> None:
        files = {file.name: sha256(file) for file in (self.path, self.picture)} if complete else {}
        said = {"versions": versions(), "settings": self._settings, "complete": complete, "figures": self.figures(), "files": files}
        with atomic(self.manifest) as path:
            write_json(path, said)


def read_table(path: Path) -> list[Row]:
    """The rows of a table that :class:`Table` wrote."""
    if path.suffix == ".parquet":
        return list(parquet.read_table(path).to_pylist())
    kinds: dict[str, Callable[[str], Any]] = {"id": int, "label": lambda text: int(text) if text else None, "nfe": int, "name": str, "status": str}
    with open(path, newline="", encoding="utf-8") as file:
        return [{name: kinds.get(name, float)(value) for name, value in row.items()} for row in csv.DictReader(file)]


def measure(
    model: Model, data: Data, first: int, batch_size: int, labels: Tensor | None = None, *, bound: int = 0, seed: int = 0, eps: float | None = None, **options: Any
) -> Iterator[list[Row]]:
    """The rows of images from the ``first`` on, a batch at a time, with the labels of all, (n,), of a model that knows classes.

    Images that leave the data range, or hold a NaN, have a status and no value, and are named in a :class:`DataWarning` before the first network call.
    ``bound``, where not 0, is ``evaluations`` of :func:`sdesolve.likelihood_bound`, which gets the same points, seed and eps; further options of
    ``Model.log_likelihood``.
    """
    names, in_bits = COLUMNS + (BOUND if bound else ()), (model.data_range, model.levels)
    outside = _outside(model, data)
    for start in range(first, len(data.images), batch_size):
        part, told = data.rows(slice(start, start + batch_size)), None if labels is None else labels[start : start + batch_size]
        lost = outside[start : start + batch_size]
        x, score = model.scaled(part.images, seed, part.ids), model.score if told is None else model.class_score(told)
        x = torch.where(lost.to(x.device)[:, None, None, None], math.nan, x)
        b = sd.likelihood_bound(model.process, score, x, bound, seed, sample_ids=part.ids, eps=eps) if bound else None
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", r"\d+ of \d+ samples have no likelihood", sd.SolveWarning)  # by their places in the batch; the table has their names
            r = model.log_likelihood(x, labels=told, seed=seed, sample_ids=part.ids, eps=eps, **options)
        classes = [model.label] * len(part.ids) if told is None else told
        statuses = ["outside_range" if known else status for known, status in zip(lost.tolist(), r.status.tolist(), strict=True)]
        columns: list[Any] = [part.ids, part.names, classes, r.log_prob, r.bits_per_dim(*in_bits), r.bits_per_dim_error(), r.nfe, statuses]
        if b:
            columns += [b.bits_per_dim(*in_bits), b.bits_per_dim_error()]
        values = (column if isinstance(column, list) else column.tolist() for column in columns)
        yield [dict(zip(names, row, strict=True)) for row in zip(*values, strict=True)]


def _outside(model: Model, data: Data) -> Tensor:
    """(n,) bool: which images leave the data range; tells of them by their names, and of those with a NaN."""
    if not data.images.is_floating_point():
        return torch.zeros(len(data.ids), dtype=torch.bool)  # levels that are none are refused by themselves
    kept = inside_range(data.images, model.data_range)
    lost = (~kept).nonzero().flatten().tolist()
    if lost:
        low, high = model.data_range
        shown = ", ".join(data.names[i] for i in lost[:5]) + (", ..." if len(lost) > 5 else "")
        said = f"{len(lost)} of {len(kept)} images leave the data range ({low:g}, {high:g}), or hold a NaN, and have no likelihood: {shown}"
        warnings.warn(said, DataWarning, stacklevel=2)
    return ~kept & ~data.images.isnan().flatten(1).any(1)


def write_histogram(path: Path, values: list[float]) -> None:
    """A picture of how the values are distributed, with its ends and its mean written below."""
    finite = np.array([value for value in values if math.isfinite(value)])
    picture = Image.new("RGB", _SIZE, "white")
    draw = ImageDraw.Draw(picture)
    (width, height), bottom = _SIZE, _SIZE[1] - _BORDER
    if len(finite):
        counts, edges = np.histogram(finite, _BINS)
        x = np.linspace(_BORDER, width - _BORDER, _BINS + 1)
        for left, right, count in zip(x, x[1:], counts, strict=False):
            draw.rectangle((left + 1, bottom - (height - 2 * _BORDER) * count / counts.max(), right - 1, bottom), fill=(70, 110, 170))
        draw.text((_BORDER, bottom + 6), f"{edges[0]:.3f}", fill="black")
        draw.text((width - _BORDER, bottom + 6), f"{edges[-1]:.3f}", fill="black", anchor="ra")
        draw.text((width / 2, bottom + 6), f"bits/dim, mean {finite.mean():.4f} of {len(finite)} images", fill="black", anchor="ma")
    draw.line((_BORDER, bottom, width - _BORDER, bottom), fill="black")
    with atomic(path) as temporary:
        picture.save(temporary, format="PNG")
