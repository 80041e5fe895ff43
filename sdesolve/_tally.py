"""Counting network calls, and derivatives of a diffusion, as they happen.

A *call* is a leaf: a function that was called and called no other counted function meanwhile.  So a guided score that asks
a network twice counts twice, however it was composed.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from torch import Tensor


class _Tally(threading.local):
    calls = 0
    derivatives = 0


_tally = _Tally()


def calls() -> int:
    """Calls made in this thread so far; take the difference of two readings."""
    return _tally.calls


def call(function: Callable[[Tensor, Tensor], Tensor], x: Tensor, t: Tensor) -> Tensor:
    """``function(x, t)``, counted."""
    before = _tally.calls
    value = function(x, t)
    if _tally.calls == before:
        _tally.calls += 1
    return value


def derivatives() -> int:
    """Directional derivatives taken in this thread so far."""
    return _tally.derivatives


def derivative() -> None:
    """Count one."""
    _tally.derivatives += 1
