"""Files that are whole or absent, and their hashes."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn


@contextmanager
def atomic(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary path beside ``path`` that takes its place when the block ends well, and vanishes when it does not.

    The content is forced to disk before the rename, so that neither an exception, a Ctrl-C nor a power cut leaves half a file.
    """
    with atomic_set(path) as (temporary,):
        yield temporary


@contextmanager
def atomic_set(*paths: str | os.PathLike[str]) -> Iterator[list[Path]]:
    """Temporary paths beside ``paths``, as :func:`atomic` has one: all are forced to disk before the first is renamed, and renamed in the order given.

    What fails before the renames, a full disk too, leaves the files that were there as they were; the last path is best the one that vouches for the others.
    """
    targets, temporaries = [Path(path) for path in paths], list[Path]()
    try:
        for target in targets:
            target.parent.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=target.suffix)
            temporaries.append(Path(name))
            os.close(handle)
        yield temporaries
        for temporary in temporaries:
            with open(temporary, "rb") as file:
                os.fsync(file.fileno())
            os.chmod(temporary, 0o644)
        for temporary, target in zip(temporaries, targets, strict=True):
            os.replace(temporary, target)
    except BaseException:
        for temporary in temporaries:
            with suppress(FileNotFoundError):
                os.unlink(temporary)
        raise


def read_json(path: str | os.PathLike[str], largest: int, writer: str) -> Any:
    """What a JSON file of at most ``largest`` bytes says, which may come from anywhere; a ValueError where it is none."""
    path = Path(path)
    if not path.is_file() or path.stat().st_size > largest:
        raise ValueError(f"{path} is not a file of at most {largest} bytes; expected one that {writer} wrote.")
    try:
        return json.loads(path.read_bytes(), parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON ({error}); expected a file that {writer} wrote.") from error


def read_entries(path: str | os.PathLike[str], largest: int, writer: str, kind: str, names: Iterable[str]) -> dict[str, Any]:
    """Exactly the entries ``names`` of a JSON file, as :func:`read_json` reads it, that says ``"format": kind``; a ValueError where it has others."""
    found, wanted = read_json(path, largest, writer), sorted(names)
    if not isinstance(found, dict) or found.get("format") != kind or sorted(found) != sorted([*wanted, "format"]):
        holds = ", ".join(sorted(found)) if isinstance(found, dict) else f"a {type(found).__name__}"
        raise ValueError(f'{Path(path)} holds {holds}; expected the entries {", ".join(wanted)}, and "format": "{kind}", as {writer} writes them.')
    return {name: found[name] for name in wanted}


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not a JSON number")


def sha256(path: str | os.PathLike[str]) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
