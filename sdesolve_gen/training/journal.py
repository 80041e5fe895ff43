"""What a run says while it goes: one JSON line every so many updates, a progress bar, and TensorBoard where it is asked for.

    log.jsonl      step, loss (of that update's batch), norm (of its gradient, before clipping), learning_rate, skipped (updates so far whose
                   gradient was not finite), images_per_second, time

A run that goes on from a checkpoint first takes back the lines beyond it, so that each step has one line, whatever happened.
"""

from __future__ import annotations

import json
import math
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from sdesolve.files import atomic


class Journal:
    """The log of a run that stands at ``step``.

    Arguments:
        folder: of the run.
        step, steps: updates done, and to be done.
        progress: draw a bar.
        tensorboard: write ``folder/tensorboard`` too.

    Raises:
        ImportError: TensorBoard is asked for and not installed.
    """

    def __init__(self, folder: Path, step: int, steps: int, *, progress: bool, tensorboard: bool) -> None:
        self._board = _board(folder / "tensorboard", step) if tensorboard else None
        self._path = folder / "log.jsonl"
        take_back(self._path, step)
        self._file = open(self._path, "a", encoding="utf-8")  # noqa: SIM115 - closed by close()
        self._bar = tqdm(total=steps, initial=step, disable=not progress, unit="step")
        self._since, self._images = time.perf_counter(), 0

    def advance(self, images: int) -> None:
        """One update more."""
        self._images += images
        self._bar.update()

    def write(self, step: int, **values: float) -> None:
        """A line."""
        now = time.perf_counter()
        rate = self._images / (now - self._since)
        self._since, self._images = now, 0
        finite = {name: value if math.isfinite(value) else None for name, value in values.items()}  # JSON has no NaN
        self._file.write(json.dumps({"step": step, **finite, "images_per_second": round(rate, 1), "time": time.time()}) + "\n")
        self._file.flush()
        self._bar.set_postfix({name: f"{value:.4g}" for name, value in values.items() if name in ("loss", "skipped") and (name == "loss" or value)})
        if self._board:
            for name, value in {**values, "images_per_second": rate}.items():
                self._board.add_scalar(name, value, step)

    def picture(self, step: int, picture: np.ndarray) -> None:
        """A grid of samples, (H, W) or (H, W, 3) uint8."""
        if self._board:
            self._board.add_image("samples", picture, step, dataformats="HW" if picture.ndim == 2 else "HWC")

    def settle(self) -> None:
        """Force the lines to disk: a checkpoint must not be there before them."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._bar.close()
        self._file.close()
        if self._board:
            self._board.close()


def take_back(path: Path, step: int) -> None:
    """Remove the lines of a log beyond ``step``, and a last one that is half written."""
    if not path.exists():
        return
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    kept = [line for line in lines if _step(line) <= step]
    if kept != lines:
        with atomic(path) as temporary:
            temporary.write_text("".join(kept), encoding="utf-8")


def _step(line: str) -> float:
    """That of a whole line."""
    try:
        return json.loads(line)["step"] if line.endswith("\n") else math.inf
    except (ValueError, TypeError, KeyError):
        return math.inf


def _board(folder: Path, step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ImportError("tensorboard=True needs the package tensorboard: pip install 'sdesolve[train]'") from error
    return SummaryWriter(str(folder), purge_step=step + 1)
