"""A limit on a test's time."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def processor_seconds(limit: float) -> Iterator[None]:
    """Fail what takes longer, in the process's own time: a busy machine does not count."""

    def expired(number: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"took more than {limit} s of processor time")

    before = signal.signal(signal.SIGVTALRM, expired)
    signal.setitimer(signal.ITIMER_VIRTUAL, limit)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
