"""Messages: what was got, what was expected, the line to type."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

CHANGED = "changed its x in place, which is the solver's state; expected a new tensor: begin with x = x.clone()."


def choice(name: str, value: object, known: Iterable[str]) -> str:
    """``value`` if it is one of ``known``; otherwise a ValueError that lists them and suggests the nearest."""
    names = list(known)
    if isinstance(value, str) and value in names:
        return value
    near = difflib.get_close_matches(str(value), names, 1, 0.4)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"{value!r} is not known as {name}; expected one of: {', '.join(names) or 'none'}.{hint}")
