"""What a sampling command leaves behind: NAME.png to look at, NAME.npz to compute with, NAME.json that says how they came about."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

from sdesolve.files import atomic, sha256

from ._versions import versions
from .images import write_npz, write_png
from .models import Model
from .sampling import Samples


class Files(NamedTuple):
    """Where the three files go."""

    png: Path
    npz: Path
    manifest: Path


class Record(NamedTuple):
    """A finished draw, and everything that led to it."""

    model: Model
    samples: Samples
    settings: dict[str, Any]
    wall_time: float
    """Seconds."""
    command: list[str]

    def figures(self) -> str:
        """One line: how many, how dear, how fast, how well."""
        nfe = self.samples.nfe
        calls = f"{int(nfe.min())}" if nfe.min() == nfe.max() else f"{int(nfe.min())}..{int(nfe.max())} (mean {nfe.double().mean():.1f})"
        n = len(self.samples.ids)
        statuses = ", ".join(f"{count} {status}" for status, count in self.statuses().items())
        return f"{n} images, {calls} network calls each, {self.wall_time:.1f} s, {n / self.wall_time:.2f} images/s, {statuses}"

    def statuses(self) -> dict[str, int]:
        """How many images ended how."""
        return dict(Counter(self.samples.status.tolist()))


def outputs(out: str, stem: str, overwrite: bool) -> Files:
    """The three paths of ``--out``, checked before anything is computed.

    Raises:
        ValueError: a file name that is not .png, files that are there already, or a folder that cannot be written to.
    """
    path = Path(out).expanduser()
    if path.suffix and path.suffix.lower() != ".png" and not path.is_dir():
        raise ValueError(f"--out {out}: expected a name that ends in .png, or a folder: --out {path.with_suffix('.png')}")
    if path.suffix.lower() != ".png" or path.is_dir():
        path = path / f"{stem}.png"
    files = Files(path, path.with_suffix(".npz"), path.with_suffix(".json"))
    there = [str(file) for file in files if file.exists()]
    if there and not overwrite:
        raise ValueError(f"{', '.join(there)} {'is' if len(there) == 1 else 'are'} there already; add --overwrite, or choose another --out.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"--out {out}: the folder {path.parent} cannot be made ({error.strerror}).") from error
    if not os.access(path.parent, os.W_OK):
        raise ValueError(f"--out {out}: the folder {path.parent} cannot be written to.")
    return files


def write(files: Files, record: Record) -> None:
    """Write the three files, the manifest last; each is whole or absent."""
    write_png(files.png, record.samples.images, record.model.data_range)
    write_npz(files.npz, record.samples)
    with atomic(files.manifest) as path:
        path.write_text(json.dumps(_manifest(files, record), indent=2) + "\n", encoding="utf-8")


def _manifest(files: Files, record: Record) -> dict[str, Any]:
    samples, card = record.samples, record.model.card
    return {
        "command": ["sdesolve-gen", *record.command],
        "versions": versions(),
        "model": {"name": card["name"], "sha256": card.get("sha256")},
        **record.settings,
        "seed": samples.seed,
        "ids": samples.ids,
        "nfe": samples.nfe.tolist(),
        "status": samples.status.tolist(),
        "statuses": record.statuses(),
        "wall_time_seconds": round(record.wall_time, 3),
        "files": {file.name: sha256(file) for file in (files.png, files.npz)},
    }
