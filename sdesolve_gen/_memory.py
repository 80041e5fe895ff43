"""Whether there is room for what is about to be allocated: asked beforehand, since a system without room kills instead of refusing."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path

import torch

_EXHAUSTED = re.compile(r"not enough memory|can't allocate memory|out of memory|Unable to allocate", re.I)


def check_room(needed: int, what: str, remedy: str) -> None:
    """Raises ValueError where ``what`` needs more bytes than are free; where a system does not say, nothing is known."""
    free = available()
    if free is not None and needed > free:
        raise ValueError(f"{what} take {_gib(needed)} GiB of memory, and {_gib(free)} GiB are free; expected {remedy}.")


def available() -> int | None:
    """Bytes that can be had without swapping, as Linux says."""
    with suppress(OSError):
        found = re.search(r"^MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text(), re.M)
        return int(found[1]) * 1024 if found else None
    return None


def exhausted(error: BaseException) -> bool:
    """Whether an error says that there was no memory."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (isinstance(error, RuntimeError) and _EXHAUSTED.search(str(error)) is not None)


def _gib(count: int) -> str:
    return f"{count / 2**30:,.1f}"
