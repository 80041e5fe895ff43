"""``sdesolve.methods()`` as something to read and to loop over."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from .base import Facts


class MethodRow(NamedTuple):
    """A method's name and what it declares about itself."""

    name: str
    facts: Facts


class MethodTable(tuple[MethodRow, ...]):
    """One row a method; prints as a table, where "2 + 8 once" is 2 calls a step and 8 more in a walk."""

    __slots__ = ()

    def __repr__(self) -> str:
        head = ("method", "ODE order", "dense", "strong order", "weak order", "calls a step", "needs", "reference")
        body = [(name, str(f.ode or ""), str(f.dense or ""), _orders(f.strong), _orders(f.weak), _calls(f), ", ".join(sorted(f.needs)), f.reference) for name, f in self]
        widths = [max(len(row[i]) for row in (head, *body)) for i in range(len(head))]
        return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in (head, *body))


def _calls(facts: Facts) -> str:
    return f"{facts.evals} + {facts.start} once" if facts.start else str(facts.evals)


def _orders(orders: Mapping[str, float]) -> str:
    return ", ".join(f"{kind} {order:g}" for kind, order in orders.items())
