"""The ledger: network calls, the rows they were given, and derivatives, counted as they happen.

A *call* is a leaf: a function that was called and called no other counted function meanwhile.  So a guided score that asks
a network twice counts twice, however it was composed.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from torch import Tensor

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]


Levels: TypeAlias = dict[tuple[float, float], "bool | Tensor"]
"""Whether noise levels were met; a tensor () where the times were one, so that nobody waits for a device before the end."""


class _Tally(threading.local):
    calls = 0
    rows = 0
    jvps = 0
    vjps = 0
    levels: Levels | None = None


_tally = _Tally()


def calls() -> int:
    """Calls made in this thread so far; take the difference of two readings."""
    return _tally.calls


def call(function: Callable[[Tensor, Tensor], Tensor], x: Tensor, t: Tensor) -> Tensor:
    """``function(x, t)``, counted."""
    if torch.compiler.is_compiling():
        return function(x, t)
    before = _tally.calls
    value = function(x, t)
    if _tally.calls == before:
        _tally.calls += 1
        _tally.rows += len(x)
    return value


def pushforward() -> None:
    """Count one directional derivative of a function, Df[v]."""
    if not torch.compiler.is_compiling():
        _tally.jvps += 1


def pullback() -> None:
    """Count one derivative of a functional, a Df."""
    _tally.vjps += 1


def guided(within: tuple[float, float], inside: bool | Tensor) -> None:
    """Note that a score which is guided between these noise levels was asked at one that is inside, or is not; of rows with times of their own, at any of them."""
    if torch.compiler.is_compiling() or _tally.levels is None:
        return
    met = _tally.levels.get(within, False)
    if met is not True:
        _tally.levels[within] = inside | met if isinstance(inside, bool) else inside.detach().any() | met


@contextmanager
def levels_met() -> Iterator[Levels]:
    """Whether the noise levels between which scores are guided were met, for those that are asked meanwhile."""
    around, found = _tally.levels, {}  # type: ignore[var-annotated]
    _tally.levels = found
    try:
        yield found
    finally:
        _tally.levels = around
        for within, met in found.items():
            guided(within, met)


def add(**work: int) -> None:
    """Count work that was not seen to be done: that of a compiled step, in which nothing is counted."""
    for name, count in work.items():
        setattr(_tally, name, getattr(_tally, name) + count)


@contextmanager
def added_to(stats: dict[str, Any]) -> Iterator[None]:
    """Add what is counted meanwhile to the entries "calls", "rows", "jvps" and "vjps"."""
    before = {name: getattr(_tally, name) for name in ("calls", "rows", "jvps", "vjps")}
    try:
        yield
    finally:
        for name, count in before.items():
            stats[name] = stats.get(name, 0) + getattr(_tally, name) - count


def peak_memory(device: torch.device) -> int | None:
    """The most bytes that the process has held so far: allocated on a GPU, resident on a CPU; None where the system doesn't say."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if resource is None:
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
