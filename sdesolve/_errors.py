"""Reading arguments, and the messages where they do not fit: what was got, what was expected, the line to type."""

from __future__ import annotations

import difflib
import numbers
import operator
from collections.abc import Iterable
from typing import Any

import numpy as np

CHANGED = "changed its x in place, which is the solver's state; expected a new tensor: begin with x = x.clone()."


def choice(name: str, value: object, known: Iterable[str]) -> str:
    """``value`` if it is one of ``known``; otherwise a ValueError that lists them and suggests the nearest."""
    names = list(known)
    if isinstance(value, str) and value in names:
        return value
    folded = {one.casefold(): one for one in names}
    near = difflib.get_close_matches(str(value).casefold(), folded, 1, 0.4)
    hint = f" Did you mean {folded[near[0]]!r}?" if near else ""
    raise ValueError(f"{value!r} is not known as {name}; expected one of: {', '.join(names) or 'none'}.{hint}")


def as_int(value: Any) -> int | None:
    """An integer of Python, numpy or torch as Python's; None for anything else, a bool too."""
    try:
        return None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        return None


def as_float(value: Any) -> float | None:
    """A real number of Python or numpy as Python's; None for anything else: a bool too, and an integer beyond the largest float."""
    try:
        return float(value) if isinstance(value, numbers.Real) and not isinstance(value, bool) else None
    except OverflowError:
        return None


def truth(name: str, value: object) -> bool:
    """``value`` as a bool if it is one of Python or numpy; otherwise a TypeError: a text is true whatever it says."""
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{name}={value!r}; expected True or False.")
    return bool(value)


def integer(name: str, value: object, least: int, example: int = 100) -> int:
    """``value`` as an int if it is one >= ``least``; otherwise a ValueError."""
    whole = as_int(value)
    if whole is None or whole < least:
        raise ValueError(f"{name}={value!r}; expected an integer >= {least}, as in {name}={example}.")
    return whole
