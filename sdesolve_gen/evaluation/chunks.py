"""Work on numbered things, cut into chunks that are files: whole or absent, each of them what any process would have made.

The numbers 0..n-1 are cut at the multiples of a fixed size, whoever works on them, so that a network sees the same batches and rounds the
same way.  Process i of k takes every k-th chunk.  A file holds the hash of its tensors, its numbers, and the hash of the settings that it
depends on, so one that is damaged, or of something else, is as good as absent: it is made again.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from sdesolve.files import atomic

Tensors = dict[str, Tensor]

_SETTINGS = "settings.json"
_ABANDONED = 3600  # seconds after which a half-written file is one whose writer was killed, and not of another run that shares the cache


class Shard(NamedTuple):
    """Process ``which`` of ``of``."""

    which: int
    of: int

    @classmethod
    def read(cls, given: str | None) -> Shard:
        """From "i/k"; from None as ``torchrun`` and ``accelerate launch`` say in the environment, or 0/1 where nothing does.

        Raises:
            ValueError: no such text, or i out of range.
        """
        text = f"{os.environ.get('RANK', 0)}/{os.environ.get('WORLD_SIZE', 1)}" if given is None else given
        found = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text) if isinstance(text, str) else None
        if found is None or not int(found[1]) < int(found[2]):
            raise ValueError(f'shard={text!r}; expected "i/k" with 0 <= i < k, as in shard="0/4" to shard="3/4" for four processes.')
        return cls(int(found[1]), int(found[2]))


class Job:
    """Work on the numbers 0..n-1, in chunks of ``size``.

    Arguments:
        folder: where the chunks go.
        settings: everything but the number that a chunk depends on; kept in ``settings.json``.
        n, size: how many there are, and how many are worked on together.
        work: numbers -> tensors with as many rows.

    Raises:
        ValueError: the folder belongs to other settings; those that differ are named.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any], n: int, size: int, work: Callable[[range], Tensors]) -> None:
        self.folder, self.n, self._work = folder, n, work
        self.spans = [range(first, min(first + size, n)) for first in range(0, n, size)]
        self._settings = json.loads(json.dumps({**settings, "chunk": size}))
        self._key = hashlib.sha256(json.dumps(self._settings, sort_keys=True).encode()).hexdigest()
        self._check_claim()

    def run(self, shard: Shard, done: Callable[[int], None]) -> None:
        """Make this process's chunks that are not there yet; ``done`` is told how many numbers each had."""
        for span in self.spans[shard.which :: shard.of]:
            if self.read(span) is None:
                self._write(span, self._work(span))
            done(len(span))

    def missing(self) -> int:
        """How many numbers are in chunks that are not there."""
        return sum(len(span) for span in self.spans if self.read(span) is None)

    def parts(self) -> Iterator[Tensors]:
        """Every chunk in order.

        Raises:
            FileNotFoundError: one is not there.
        """
        for span in self.spans:
            tensors = self.read(span)
            if tensors is None:
                raise FileNotFoundError(f"{self.path(span)} is gone, or damaged; the same command makes it again.")
            yield tensors

    def all(self, name: str) -> Tensor:
        """One tensor of all chunks, (n, ...)."""
        return torch.cat([part[name] for part in self.parts()])

    def read(self, span: range) -> Tensors | None:
        """The chunk of these numbers; None where it is not there, and with a warning where it is not whole or not of these settings."""
        path = self.path(span)
        if not path.exists():
            return None
        try:
            with safe_open(path, "pt") as file:
                tensors, said = {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118 - no mapping
            wrong = "" if said.get("chunk") == self._mark(span, tensors) else "damaged, or made of other numbers or with other settings"
        except (SafetensorError, OSError, ValueError, RuntimeError) as error:
            wrong = str(error)
        if wrong:
            warnings.warn(f"{path} is not a whole chunk of this run ({wrong}); it is made again.", UserWarning, stacklevel=3)
        return None if wrong else tensors

    def path(self, span: range) -> Path:
        """The file of these numbers."""
        return self.folder / f"{span[0]:08d}-{span[-1]:08d}.safetensors"

    def _mark(self, span: range, tensors: Tensors) -> str:
        """What a chunk says it is; one entry, because safetensors writes several in any order."""
        return f"{span[0]}-{span[-1]} {self._key} {digest(tensors)}"

    def _write(self, span: range, tensors: Tensors) -> None:
        if any(len(tensor) != len(span) for tensor in tensors.values()):
            raise ValueError(f"{ {name: tuple(tensor.shape) for name, tensor in tensors.items()} } for {len(span)} images; expected a row an image.")
        self._claim()
        path, kept = self.path(span), {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        for left in self.folder.glob(f".{path.name}.*"):
            if time.time() - left.stat().st_mtime > _ABANDONED:
                left.unlink(missing_ok=True)
        with atomic(path) as temporary:
            save_file(kept, temporary, {"chunk": self._mark(span, kept)})

    def _check_claim(self) -> None:
        """See that the settings in the folder, where there are any, are these."""
        path = self.folder / _SETTINGS
        if not path.exists():
            return
        try:
            there = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, RecursionError, OSError) as error:
            there = error
        if not isinstance(there, dict):
            why = there if isinstance(there, Exception) else f"it is a JSON {type(there).__name__}"
            raise ValueError(f"{path} cannot be read ({why}); expected the settings that the chunks beside it were made with: remove {self.folder}, or choose another out=.")
        if there != self._settings:
            keys = [key for key in {**there, **self._settings} if there.get(key) != self._settings.get(key)]
            differs = ", ".join(f"{key}: {there.get(key)!r} there, {self._settings.get(key)!r} here" for key in keys)
            raise ValueError(f"{self.folder} was made with other settings ({differs}); choose another out=, or remove the folder.")

    def _claim(self) -> None:
        """Write the settings into the folder, with the first chunk: a call that fails before leaves none."""
        path = self.folder / _SETTINGS
        if not path.exists():
            with atomic(path) as temporary:
                temporary.write_text(json.dumps(self._settings, indent=2) + "\n", encoding="utf-8")


def digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of names, types, shapes and bytes."""
    sha = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        sha.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        sha.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()
