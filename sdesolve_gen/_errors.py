"""What this package raises of its own, the message for a name out of a list, and integers whoever made them."""

from __future__ import annotations

import difflib
import numbers
import operator
from collections.abc import Iterable, Sequence
from typing import Any


class ModelFileError(ValueError):
    """A model's file is missing, damaged or hostile; the message names the file and what is wrong with it."""


def unknown(what: str, got: object, known: Iterable[str]) -> str:
    """A message that lists the known names and suggests the nearest."""
    names = sorted(known)
    folded = {name.casefold(): name for name in names}
    near = difflib.get_close_matches(str(got).casefold(), folded, 1, 0.5)
    hint = f" Did you mean {folded[near[0]]!r}?" if near else ""
    return f"{what} {got!r} is not known; expected one of: {', '.join(names) or '(none)'}.{hint}"


_LONGEST = 2000  # names; no network that is published has as many, and a hostile file may have any number


def listed(names: Sequence[str]) -> str:
    """All of the names of weights, for a message."""
    more = f" and {len(names) - _LONGEST} more" if len(names) > _LONGEST else ""
    return ", ".join(name[:160] for name in names[:_LONGEST]) + more if names else "nothing"


def as_int(value: Any) -> int | None:
    """An integer of Python, numpy or torch as Python's; None for anything else, a bool too."""
    try:
        return None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        return None


def as_float(value: Any) -> float | None:
    """A real number of Python or numpy as Python's; None for anything else, a bool too."""
    try:
        return float(value) if isinstance(value, numbers.Real) and not isinstance(value, bool) else None
    except OverflowError:
        return None
