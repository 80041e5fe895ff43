"""Checkpoints that are whole or absent, and say when they are damaged.

    checkpoint-00001500-3f2a9c0d7be41586.pt      the state after 1500 updates; the last 16 digits begin the SHA-256 of the file

The hash is part of the name, so that one rename makes both count.  A file is written beside, forced to disk, hashed, and renamed: whoever
is killed on the way, or finds the disk full, leaves the checkpoints before as they were.  A damaged one gets another name, so that it does not count.
"""

from __future__ import annotations

import os
import re
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import torch

from sdesolve.files import atomic, sha256

from .._errors import ModelFileError
from .._torch_files import read_checkpoint
from ..card import CARD, MOMENTS, WEIGHTS

_NAME = re.compile(r"checkpoint-(\d{8,})-([0-9a-f]{16})\.pt")


DAMAGED = ".pt.damaged"


class CheckpointWarning(UserWarning):
    """A checkpoint is damaged, and an older one is taken."""


class Checkpoint(NamedTuple):
    """A file and the update after which it was written."""

    step: int
    path: Path

    def whole(self) -> bool:
        """Whether the file is what was written."""
        return self.path.stem.endswith(sha256(self.path)[:16])


def checkpoints(folder: Path) -> list[Checkpoint]:
    """Those of a folder, the newest first."""
    found = [(match, path) for path in folder.glob("checkpoint-*.pt") if (match := _NAME.fullmatch(path.name))]
    return sorted((Checkpoint(int(match[1]), path) for match, path in found), reverse=True)


def save_checkpoint(folder: Path, step: int, state: dict[str, Any], keep: int) -> Checkpoint:
    """Write the state after ``step`` updates, and remove all but the newest ``keep``.

    Raises:
        OSError: it cannot be written (a full disk, say); the older ones stand.
    """
    written = folder / f".checkpoint-{step:08d}.pt"  # no checkpoint by this name yet
    try:
        with atomic(written) as path:
            torch.save(state, path)
            digest = sha256(path)
        done = Checkpoint(step, folder / f"checkpoint-{step:08d}-{digest[:16]}.pt")
        os.replace(written, done.path)
    except (OSError, RuntimeError) as error:  # torch's writer says a full disk as a RuntimeError
        kept = checkpoints(folder)
        stands = f"{kept[0].path.name} stands: make room, and the same command goes on from it" if kept else "there is none yet"
        raise OSError(f"the checkpoint of step {step} cannot be written to {folder} ({error}); {stands}.") from error
    for old in checkpoints(folder)[keep:]:
        old.path.unlink()
    return done


def load_checkpoint(folder: Path) -> tuple[Checkpoint, dict[str, Any]] | None:
    """The newest whole checkpoint of a folder and its state; None where there is none at all.  Runs no code that is in it.

    Raises:
        ValueError: there are checkpoints, and none of them is whole.
    """
    found = checkpoints(folder)
    for checkpoint in found:
        try:
            if checkpoint.whole():
                return checkpoint, read_checkpoint(checkpoint.path)
            reason = "its SHA-256 is not the one in its name"
        except (ModelFileError, OSError) as error:
            reason = str(error).splitlines()[0]
        warnings.warn(f"{checkpoint.path} is damaged ({reason}) and left out.", CheckpointWarning, stacklevel=2)
    if found:
        raise ValueError(f"{folder} holds {len(found)} checkpoints, and none is whole; remove them, or start anew with resume='never' (--resume never).")
    return None


def set_aside(folder: Path, taken: Checkpoint) -> None:
    """Rename those that were passed over for the one that was taken, and others that are damaged: kept by their number, they would outlive the good ones."""
    for checkpoint in checkpoints(folder):
        if checkpoint.step > taken.step or not checkpoint.whole():
            checkpoint.path.rename(checkpoint.path.with_suffix(DAMAGED))


def sweep(folder: Path, everything: bool = False) -> None:
    """Remove what killed runs left half written; with ``everything`` the model, pictures and checkpoints of the run before, too."""
    for path in folder.glob(".*"):
        if path.is_file() and re.match(r"\.(\.?checkpoint-|log\.jsonl|config\.yaml|card\.json|model\.safetensors)", path.name):
            path.unlink()
    if everything:
        drawn = [path for path in folder.glob("samples/*.png") if re.fullmatch(r"\d{8,}", path.stem)]
        found = [checkpoint.path for checkpoint in checkpoints(folder)]
        for path in [folder / CARD, folder / WEIGHTS, folder / MOMENTS, *drawn, *folder.glob(f"checkpoint-*{DAMAGED}"), *found]:
            path.unlink(missing_ok=True)
