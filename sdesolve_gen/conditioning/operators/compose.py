"""One operator after another."""

from __future__ import annotations

from torch import Tensor

from ..operator import Operator


class Composed(Operator):
    """A = outer inner; what is solved is solved by conjugate gradients."""

    def __init__(self, outer: Operator, inner: Operator) -> None:
        if tuple(outer.event) != tuple(inner.measured):
            names = type(outer).__name__, type(inner).__name__
            raise ValueError(f"{names[0]} takes {tuple(outer.event)} and {names[1]} gives {tuple(inner.measured)}; expected {names[0]} made with event={tuple(inner.measured)}.")
        self._outer, self._inner = outer, inner
        self.event, self.measured = inner.event, outer.measured

    def forward(self, x: Tensor) -> Tensor:
        return self._outer.forward(self._inner.forward(x))

    def adjoint(self, y: Tensor) -> Tensor:
        return self._inner.adjoint(self._outer.adjoint(y))


def compose(*operators: Operator) -> Operator:
    """The product of operators, the last applied first, as in mathematics: ``compose(mask, blur)`` blurs and then masks.

    Raises:
        TypeError: something that is no :class:`Operator`.
        ValueError: no operator, or one that does not take what the next one gives.
    """
    if not operators:
        raise ValueError("compose() got no operator; expected at least one, as in compose(mask, blur).")
    for i, operator in enumerate(operators):
        if not isinstance(operator, Operator):
            got = f"the class {operator.__name__}" if isinstance(operator, type) else f"a {type(operator).__name__}"
            raise TypeError(f"compose got {got} as number {i}; expected operators, one by one: compose(mask, blur), and as_operator(f, event) for a function.")
    product = operators[-1]
    for outer in reversed(operators[:-1]):
        product = Composed(outer, product)
    return product
