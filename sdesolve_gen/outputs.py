"""What a sampling command leaves behind: NAME.png to look at, NAME.npz to compute with, NAME.json that says how they came about."""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from sdesolve.files import atomic_set, sha256

from ._versions import versions
from ._writing import write_json
from .images import save_npz, save_png
from .models import Model
from .sampling import Samples

Set = TypeVar("Set", bound=tuple[Path, ...])


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
    """The three paths of ``--out``, checked before anything is computed; raises ValueError as :func:`picture` and :func:`writable` do."""
    png = picture(out, stem)
    return writable(out, Files(png, png.with_suffix(".npz"), png.with_suffix(".json")), overwrite)


def picture(out: str, stem: str) -> Path:
    """The .png that ``--out`` names: itself, or ``stem`` in the folder that it is.

    Raises:
        ValueError: a file name that does not end in .png, or has nothing before it.
    """
    try:
        path = Path(out).expanduser()
    except RuntimeError as error:
        raise ValueError(f"--out {out}: {error}") from error
    if out.endswith(("/", os.sep)) or path.is_dir():
        return path / f"{stem}.png"
    if path.name.lower() == ".png":
        raise ValueError(f"--out {out}: there is no name before .png; expected one, as in --out {path.with_name('samples.png')}.")
    if path.suffix and path.suffix.lower() != ".png":
        meant = path.with_suffix(".png") if path.suffix[1:].isalpha() else f"{path}.png"
        raise ValueError(
            f"--out {out}: {path.suffix!r} was taken for a file type, and pictures are written as .png; expected a name that ends in .png, as in "
            f"--out {meant}, or for a folder of that name a slash at its end: --out {out}/"
        )
    return path if path.suffix else path / f"{stem}.png"


def writable(out: str, files: Set, overwrite: bool) -> Set:
    """``files``, if they can be written, as a trial beside them shows, of which nothing stays.

    Raises:
        ValueError: files that are there already and shall not be replaced, or are folders; a folder that cannot be made or written to.
    """
    try:
        folders = [str(file) for file in files if file.is_dir()]
        there = [str(file) for file in files if file.exists()]
        if folders:
            raise ValueError(f"--out {out}: {', '.join(folders)} would be written, and {'is a folder' if len(folders) == 1 else 'are folders'}; expected another --out.")
        if there and not overwrite:
            raise ValueError(f"{', '.join(there)} {'is' if len(there) == 1 else 'are'} there already; add --overwrite, or choose another --out.")
        for file in files:
            nearest = next(folder for folder in (file.parent, *file.parent.parents) if os.path.lexists(folder))
            with tempfile.TemporaryDirectory(dir=nearest, prefix=".") as trial:
                folder = Path(trial) / file.parent.relative_to(nearest)
                folder.mkdir(parents=True, exist_ok=True)
                (folder / f".{file.name}.12345678{file.suffix}").touch()  # a name as long as that of a temporary file
    except OSError as error:
        raise ValueError(f"--out {out}: nothing can be written beside {files[0]} ({error.strerror}); expected a place where files can be made.") from error
    return files


def write(files: Files, record: Record) -> None:
    """Write the three files, as one set, the manifest last."""
    with atomic_set(*files) as (png, npz, manifest):
        save_png(png, record.samples.images, record.model.data_range)
        save_npz(npz, record.samples)
        said = _manifest(record) | {"files": hashes(files, (png, npz))}
        write_json(manifest, said)


def hashes(files: Sequence[Path], written: Sequence[Path]) -> dict[str, str]:
    """The SHA-256 of what is ``written`` in the first temporary files, by the names that ``files`` will have."""
    return {file.name: sha256(temporary) for file, temporary in zip(files, written, strict=False)}


def _manifest(record: Record) -> dict[str, Any]:
    samples, card = record.samples, record.model.card
    return {
        "command": ["sdesolve-gen", *record.command],
        "versions": versions(),
        "model": {"name": card["name"], "sha256": card.get("sha256")},
        **record.settings,
        "steps": _steps(samples),
        "seed": samples.seed,
        "ids": samples.ids,
        "nfe": samples.nfe.tolist(),
        "status": samples.status.tolist(),
        "statuses": record.statuses(),
        "wall_time_seconds": round(record.wall_time, 3),
    }


def _steps(samples: Samples) -> int | list[int]:
    """The steps that were walked: one number where all images walked as many, otherwise each image's."""
    walked: list[int] = samples.steps.tolist()
    return walked[0] if len(set(walked)) == 1 else walked
