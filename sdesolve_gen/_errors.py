"""What this package raises of its own, and the message for a name out of a list."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class ModelFileError(ValueError):
    """A model's file is missing, damaged or hostile; the message names the file and what is wrong with it."""


def unknown(what: str, got: object, known: Iterable[str]) -> str:
    """A message that lists the known names and suggests the nearest."""
    names = sorted(known)
    near = difflib.get_close_matches(str(got), names, 1, 0.5)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return f"{what} {got!r} is not known; expected one of: {', '.join(names) or '(none)'}.{hint}"
