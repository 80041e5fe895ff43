"""Ctrl-C while a model is trained: the first is noted, for the loop to finish its update and write a checkpoint; the second ends at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Interruption:
    """Whether there was one."""

    asked = False

    @contextmanager
    def noted(self) -> Iterator[None]:
        """What a first SIGINT does within; one that is ignored stays so, and another thread than the main one never sees any."""
        around = signal.getsignal(signal.SIGINT)
        if not callable(around) or threading.current_thread() is not threading.main_thread():
            yield
            return

        def note(*arguments: Any) -> None:
            self.asked = True
            signal.signal(signal.SIGINT, around)

        signal.signal(signal.SIGINT, note)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, around)
