"""Likelihoods of a whole data set: a table that grows batch by batch, and can be gone on with.

    NAME.csv or NAME.parquet     one row an image: id, name, log_prob (nats), bits_per_dim, standard_error (bits/dim, over probes), nfe, status;
                                 where a bound is asked for, bound and bound_error (bits/dim, over its times and noise), too
    NAME.png                     histogram of the bits/dim
    NAME.json                    settings and figures; "complete" is false until all images are there
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import torch
from PIL import Image, ImageDraw, UnidentifiedImageError
from torch import Tensor

import sdesolve as sd
from sdesolve.files import atomic, sha256

from ._versions import versions
from .models import Model
from .training.data import read_images

COLUMNS = ("id", "name", "log_prob", "bits_per_dim", "standard_error", "nfe", "status")
BOUND = ("bound", "bound_error")
PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff")
_SIZE, _BORDER, _BINS = (640, 400), 40, 40

Row = dict[str, Any]


class Images(NamedTuple):
    """A data set and what its images are called."""

    images: Tensor
    """(n, C, H, W), uint8 levels or floats in the data range."""
    names: list[str]


def open_images(path: str | Path) -> Images:
    """Images of a folder of pictures, one picture, a parquet file in the Hugging Face layout, or an npz file with ``images``, as ``sample`` writes it.

    Raises:
        FileNotFoundError: no such file; ValueError: nothing to read in it, or images of several sizes.
    """
    path = Path(path)
    if path.is_dir() or path.suffix.lower() in PICTURES:
        files = sorted(file for file in path.iterdir() if file.suffix.lower() in PICTURES) if path.is_dir() else [path]
        if not files:
            raise ValueError(f"{path} holds no pictures; expected files ending in {', '.join(PICTURES)}.")
        arrays = [_picture(file) for file in files]
        shapes = sorted({array.shape for array in arrays})
        if len(shapes) > 1 or shapes[0][2] not in (1, 3):
            raise ValueError(f"{path} holds pictures of shape (H, W, C) {shapes[:4]}; expected a single one with C = 1 or 3.")
        return Images(torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).contiguous(), [file.name for file in files])
    if path.suffix == ".npz":
        return _from_npz(path)
    images, _ = read_images(path)
    return Images(images, [str(i) for i in range(len(images))])


def _picture(file: Path) -> np.ndarray:
    try:
        return np.atleast_3d(np.asarray(Image.open(file)))
    except (UnidentifiedImageError, OSError) as error:
        raise ValueError(f"{file} is not a whole picture ({error}).") from error


def _from_npz(path: Path) -> Images:
    if not path.is_file():
        raise FileNotFoundError(f"{str(path)!r} is not a file; expected an npz file with images (n, C, H, W).")
    try:
        with np.load(path, allow_pickle=False) as file:
            images = file["images"]
    except (ValueError, KeyError, OSError) as error:
        raise ValueError(f"{path} is no npz file with an array 'images' ({error}); expected what sample writes, or np.savez(path, images=...).") from error
    if images.ndim != 4 or images.dtype not in (np.uint8, np.float32, np.float64):
        raise ValueError(f"{path}: images are {images.shape} {images.dtype}; expected (n, C, H, W), uint8 or floats in the data range.")
    return Images(torch.from_numpy(images), [str(i) for i in range(len(images))])


class Table:
    """The rows so far, in a file that is whole after every batch.

    Arguments:
        path: NAME.csv or NAME.parquet.
        settings: everything that the rows depend on.
        overwrite: replace a table that is there.

    Raises:
        ValueError: another suffix; a table that is complete already, or of other settings, and not to be overwritten.
    """

    def __init__(self, path: str | Path, settings: dict[str, Any], overwrite: bool) -> None:
        self.path, self._settings = Path(path), settings
        if self.path.suffix not in (".csv", ".parquet"):
            raise ValueError(f"--out {path}: expected a name that ends in .csv or .parquet, as in --out {self.path.with_suffix('.csv')}.")
        self.picture, self.manifest = self.path.with_suffix(".png"), self.path.with_suffix(".json")
        self.rows: list[Row] = []
        if not overwrite and (self.path.exists() or self.manifest.exists()):
            self.rows = self._left()

    def _left(self) -> list[Row]:
        """The rows of an earlier run with the same settings."""
        known = json.loads(self.manifest.read_text(encoding="utf-8")) if self.manifest.exists() else {}
        if known.get("settings") != json.loads(json.dumps(self._settings)):
            raise ValueError(f"{self.path} is there already, of other settings; add --overwrite, or choose another --out.")
        if known.get("complete"):
            raise ValueError(f"{self.path} is there already and complete; add --overwrite, or choose another --out.")
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
            path.write_text(json.dumps(said, indent=2) + "\n", encoding="utf-8")


def read_table(path: Path) -> list[Row]:
    """The rows of a table that :class:`Table` wrote."""
    if path.suffix == ".parquet":
        return list(parquet.read_table(path).to_pylist())
    kinds: dict[str, Callable[[str], Any]] = {"id": int, "nfe": int, "name": str, "status": str}
    with open(path, newline="", encoding="utf-8") as file:
        return [{name: kinds.get(name, float)(value) for name, value in row.items()} for row in csv.DictReader(file)]


def measure(model: Model, data: Images, first: int, batch_size: int, *, bound: int = 0, seed: int = 0, eps: float | None = None, **options: Any) -> Iterator[list[Row]]:
    """The rows of images from number ``first`` on, a batch at a time; ``bound``, where not 0, is ``evaluations`` of :func:`sdesolve.likelihood_bound`,
    which gets the same points, seed and eps; further options of ``Model.log_likelihood``."""
    names, in_bits = COLUMNS + (BOUND if bound else ()), (model.data_range, model.levels)
    for start in range(first, len(data.images), batch_size):
        ids = list(range(start, min(start + batch_size, len(data.images))))
        x = model.scaled(data.images[start : start + batch_size], seed, ids)
        b = sd.likelihood_bound(model.process, model.score, x, bound, seed, sample_ids=ids, eps=eps) if bound else None
        r = sd.log_likelihood(model.process, model.score, x, seed=seed, sample_ids=ids, eps=eps, **options)
        columns: list[Any] = [ids, [data.names[i] for i in ids], r.log_prob, r.bits_per_dim(*in_bits), r.bits_per_dim_error(), r.nfe, r.status]
        if b:
            columns += [b.bits_per_dim(*in_bits), b.bits_per_dim_error()]
        values = (column if isinstance(column, list) else column.tolist() for column in columns)
        yield [dict(zip(names, row, strict=True)) for row in zip(*values, strict=True)]


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
