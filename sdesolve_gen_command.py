"""``sdesolve-gen``: Ctrl-C ends it in one line and exit code 130 from the first moment on, also in the seconds in which torch is imported.

It stands beside the packages, since whatever is imported of ``sdesolve_gen`` imports torch before it.
"""

from __future__ import annotations

import os
import signal
from typing import Any


def main() -> None:
    """Entry point of the console script."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # and not ignored, as in a shell's background jobs
        signal.signal(signal.SIGINT, _end)
    from sdesolve_gen.cli import main as command

    command()


def _end(*_: Any) -> None:
    """End at once: an exception could be caught by whatever is being imported.  While a command works, Ctrl-C is one, so that it can tidy up."""
    os.write(2, b"\ninterrupted: no file was left half written.\n")
    os._exit(130)
