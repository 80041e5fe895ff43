"""Explicit Runge-Kutta methods for ODEs: one step function, and the tableaus as data.

    k_i = f(x + h sum_j a_ij k_j, t0 + c_i h),     x1 = x + h sum_i b_i k_i,     error = h sum_i e_i k_i.

[Hairer, Norsett & Wanner 1993, II.1]
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor

from .._arrays import Number, bcast
from ..problems import Problem
from .base import Facts, Step, StepNoise, Stepper


@dataclass(frozen=True)
class RungeKutta(Stepper):
    """An explicit Runge-Kutta method.

    Arguments:
        a: rows of the strictly lower triangle, the first of them empty.
        b: weights of the stages.
        order: p where the global error falls as h^p.
        e: weights of the embedded error estimate, or None.
        error_order: q where the estimate falls as h^q.
        reference: where it was published.

    Raises:
        ValueError: a tableau that breaks an order condition up to min(order, 4), or an estimate that does not vanish for
            constant slopes.
    """

    a: tuple[tuple[float, ...], ...]
    b: tuple[float, ...]
    order: int
    e: tuple[float, ...] | None = None
    error_order: float | None = None  # type: ignore[misc]
    reference: str = ""

    def __post_init__(self) -> None:
        _check_order(self)

    @cached_property
    def c(self) -> tuple[float, ...]:
        """The nodes, which are the row sums of ``a``."""
        return tuple(1.0 if abs(sum(row) - 1) < 1e-12 else sum(row) for row in self.a)

    @cached_property
    def first_same_as_last(self) -> bool:
        """Whether the last stage is the slope at x1, which the next step can start from."""
        return self.a[-1] == self.b[:-1] and self.b[-1] == 0.0

    @cached_property
    def facts(self) -> Facts:  # type: ignore[override]
        saved = int(self.first_same_as_last)
        return Facts(evals=len(self.b) - saved, start=saved, ode=self.order, reference=self.reference)

    def init(self, problem: Problem, x: Tensor, t: Number) -> Tensor | None:
        return problem.drift(x, t) if self.first_same_as_last else None

    def step(self, problem: Problem, x: Tensor, t0: Number, t1: Number, noise: StepNoise | None, carry: Any) -> Step:
        h = t1 - t0
        k = [problem.drift(x, t0) if carry is None else carry]
        for i in range(1, len(self.a)):
            stage = x + _combine(h, self.a[i], k, x)
            k.append(problem.drift(stage, t1 if self.c[i] == 1.0 else t0 + self.c[i] * h))
        if self.first_same_as_last:  # the last stage was evaluated at x1 itself
            return Step(stage, self._error(h, k, x), carry=k[-1])
        return Step(x + _combine(h, self.b, k, x), self._error(h, k, x))

    def _error(self, h: Number, k: list[Tensor], x: Tensor) -> Tensor | None:
        return None if self.e is None else _combine(h, self.e, k, x)


def _combine(h: Number, weights: tuple[float, ...], k: list[Tensor], x: Tensor) -> Tensor:
    """h sum_i w_i k_i."""
    terms = [(w, slope) for w, slope in zip(weights, k, strict=True) if w]
    total = terms[0][0] * terms[0][1]
    for w, slope in terms[1:]:
        total = total + w * slope
    return bcast(h, x) * total


def _check_order(rk: RungeKutta) -> None:
    """Butcher's conditions up to order 4."""
    a, b, c = rk.a, rk.b, rk.c
    stages = range(len(b))

    def weighted(values: list[float]) -> float:
        return sum(b[i] * values[i] for i in stages)

    def inner(values: list[float]) -> list[float]:
        return [sum(a[i][j] * values[j] for j in range(len(a[i]))) for i in stages]

    c1, c2 = list(c), [x * x for x in c]
    conditions = [
        (1, weighted([1.0] * len(b)), 1.0),
        (2, weighted(c1), 1 / 2),
        (3, weighted(c2), 1 / 3),
        (3, weighted(inner(c1)), 1 / 6),
        (4, weighted([x**3 for x in c]), 1 / 4),
        (4, weighted([x * y for x, y in zip(c, inner(c1), strict=True)]), 1 / 8),
        (4, weighted(inner(c2)), 1 / 12),
        (4, weighted(inner(inner(c1))), 1 / 24),
    ]
    for order, got, expected in conditions:
        if order <= rk.order and abs(got - expected) > 1e-12:
            raise ValueError(f"tableau [{rk.reference}]: a condition of order {order} gives {got}; expected {expected}.")
    if rk.e is not None and abs(sum(rk.e)) > 1e-12:
        raise ValueError(f"tableau [{rk.reference}]: the weights of the error estimate sum to {sum(rk.e)}; expected 0.")


def euler() -> RungeKutta:
    """Euler's method. Order 1, one call a step."""
    return RungeKutta(a=((),), b=(1.0,), order=1, reference="Euler 1768")


def midpoint() -> RungeKutta:
    """The midpoint method. Order 2, two calls a step."""
    return RungeKutta(a=((), (0.5,)), b=(0.0, 1.0), order=2, e=(1.0, -1.0), error_order=2, reference="Runge 1895")


def heun() -> RungeKutta:
    """Heun's trapezoidal method with Euler's embedded. Order 2, two calls a step; deterministic EDM is this on the EDM process."""
    return RungeKutta(a=((), (1.0,)), b=(0.5, 0.5), order=2, e=(0.5, -0.5), error_order=2, reference="Heun 1900")


def rk4() -> RungeKutta:
    """The classic fourth-order method. Four calls a step, no error estimate."""
    return RungeKutta(a=((), (0.5,), (0.0, 0.5), (0.0, 0.0, 1.0)), b=(1 / 6, 1 / 3, 1 / 3, 1 / 6), order=4, reference="Kutta 1901")


def bosh3() -> RungeKutta:
    """Bogacki-Shampine 3(2). Three calls a step; for loose tolerances."""
    b = (2 / 9, 1 / 3, 4 / 9, 0.0)
    e = (2 / 9 - 7 / 24, 1 / 3 - 1 / 4, 4 / 9 - 1 / 3, -1 / 8)
    return RungeKutta(a=((), (1 / 2,), (0.0, 3 / 4), b[:3]), b=b, order=3, e=e, error_order=3, reference="Bogacki & Shampine 1989")


def rk45() -> RungeKutta:
    """Dormand-Prince 5(4). Six calls a step; the usual choice for the probability flow."""
    b = (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84, 0.0)
    embedded = (5179 / 57600, 0.0, 7571 / 16695, 393 / 640, -92097 / 339200, 187 / 2100, 1 / 40)
    a = (
        (),
        (1 / 5,),
        (3 / 40, 9 / 40),
        (44 / 45, -56 / 15, 32 / 9),
        (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
        (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
        b[:6],
    )
    e = tuple(x - y for x, y in zip(b, embedded, strict=True))
    return RungeKutta(a=a, b=b, order=5, e=e, error_order=5, reference="Dormand & Prince 1980")
