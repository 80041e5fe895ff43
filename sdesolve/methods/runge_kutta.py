"""Explicit Runge-Kutta methods for ODEs: one step function, and the tableaus as data.

    k_i = f(x + h sum_j a_ij k_j, t0 + c_i h),     x1 = x + h sum_i b_i k_i,     error = h sum_i e_i k_i,

and between the nodes the continuous extension  x(t0 + theta h) = x + h sum_ij p_ij theta^j k_i.

[Hairer, Norsett & Wanner 1993, II.1, II.4, II.6]
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cache, cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .._arrays import Number, bcast
from ..problems import Problem
from .base import Facts, Step, StepNoise, Stepper
from .trees import check_order, matrix

Row = tuple[float, ...]


class Estimate(NamedTuple):
    """Weights e_i of an error estimate that falls as h^order: those of the method less those of an embedded one of order - 1."""

    order: int
    weights: Row


class Dense(NamedTuple):
    """A continuous extension."""

    order: int
    weights: tuple[Row, ...]
    """p_ij: for each stage i the coefficients of theta, theta^2, ..."""
    stages: tuple[Row, ...] = ()
    """Further rows of ``a``, evaluated only where values between the nodes are wanted."""


@dataclass(frozen=True)
class RungeKutta(Stepper):
    """An explicit Runge-Kutta method.

    Arguments:
        a: rows of the strictly lower triangle, the first of them empty.
        b: weights of the stages.
        order: p where the global error falls as h^p.
        dense: the continuous extension.
        estimates: none, for a method without an error estimate; one; or two, for the combination
            E_1^2 / sqrt(E_1^2 + (E_2 / 10)^2) in each element, which falls as h^(2 q_1 - q_2).  [HNW 1993, II.10, there of the norms]
        reference: where it was published.

    Raises:
        ValueError: a tableau that breaks an order condition of the method, of an embedded one or of the continuous extension.
    """

    a: tuple[Row, ...]
    b: Row
    order: int
    dense: Dense
    estimates: tuple[Estimate, ...] = ()
    reference: str = ""

    def __post_init__(self) -> None:
        stages = self.a + self.dense.stages
        a, (b,), p = matrix(stages, len(stages)), matrix((self.b,), len(stages)), np.array(self.dense.weights)
        check_order(self.reference, self.order, b, a)
        check_order(f"{self.reference}, dense output", self.dense.order, p, a)
        for order, weights in self.estimates:
            check_order(f"{self.reference}, error estimate", order - 1, b - matrix((weights,), len(stages))[0], a)
        if np.abs(p.sum(1) - b).max() > 1e-12 * np.abs(p).max():
            raise ValueError(f"tableau [{self.reference}]: the dense output does not end at x1.")

    @property
    def error_order(self) -> int | None:  # type: ignore[override]
        orders = [estimate.order for estimate in self.estimates]
        return 2 * orders[0] - orders[1] if len(orders) > 1 else next(iter(orders), None)

    @cached_property
    def first_same_as_last(self) -> bool:
        """Whether the last stage is the slope at x1, which the next step can start from."""
        return self.a[-1] == self.b[:-1] and self.b[-1] == 0.0

    @cached_property
    def seen(self) -> tuple[bool, ...]:
        """Of each stage, whether the result or an error estimate sees it itself, and not only through the stages after it; the next step begins with the last."""
        seen = [any(weights) for weights in zip(self.b, *(estimate.weights for estimate in self.estimates), strict=True)]
        return (*seen[:-1], seen[-1] or self.first_same_as_last)

    @cached_property
    def facts(self) -> Facts:  # type: ignore[override]
        saved = int(self.first_same_as_last)
        return Facts(evals=len(self.b) - saved, start=saved, ode=self.order, dense=self.dense.order, reference=self.reference)

    def init(self, problem: Problem, x: Tensor, t: Number) -> Tensor | None:
        return problem.drift(x, t) if self.first_same_as_last else None

    def step(self, problem: Problem, x: Tensor, t0: Number, t1: Number, noise: StepNoise | None, carry: Any) -> Step:
        h = bcast(t1 - t0, x)
        k = [problem.drift(x, t0) if carry is None else carry]
        for i, row in enumerate(self.a[1:], 1):
            stage = _moved(x, h, row, k)
            k.append(self._slope(problem, i, stage, between(t0, t1, sum(row))))
        if self.first_same_as_last:  # the last stage was evaluated at x1 itself
            return Step(stage, self._error(h, k), carry=k[-1], stages=k)
        return Step(_moved(x, h, self.b, k), self._error(h, k), stages=k)

    def _slope(self, problem: Problem, i: int, x: Tensor, t: Number) -> Tensor:
        """That of stage i at its place."""
        return problem.drift(x, t)

    def _error(self, h: Number, k: list[Tensor]) -> Tensor | None:
        errors = [h * weighted(estimate.weights, k) for estimate in self.estimates]
        if len(errors) > 1:
            larger = torch.hypot(errors[0], 0.1 * errors[1])
            return errors[0] * errors[0].abs() / larger.clamp(min=torch.finfo(larger.dtype).tiny)
        return errors[0] if errors else None

    def interpolant(self, problem: Problem, x: Tensor, t0: Number, t1: Number, stages: Sequence[Tensor]) -> list[Tensor]:
        h, k = bcast(t1 - t0, x), list(stages)
        for row in self.dense.stages:
            k.append(problem.drift(_moved(x, h, row, k), between(t0, t1, sum(row))))
        return [h * weighted(weights, k) for weights in zip(*self.dense.weights, strict=True)]


def weighted(weights: Sequence[float], k: Sequence[Tensor]) -> Tensor:
    """sum_i w_i k_i; products and sums are rounded apart, see :func:`sdesolve._arrays.plus`."""
    (first, slope), *terms = [(w, slope) for w, slope in zip(weights, k, strict=True) if w]
    total = first * slope
    for w, slope in terms:
        total += w * slope
    return total


def _moved(x: Tensor, h: Number, weights: Row, k: Sequence[Tensor]) -> Tensor:
    """x + h sum_i w_i k_i; a pass over the state less where h is one number."""
    move = h * weighted(weights, k) if isinstance(h, Tensor) else weighted([h * w for w in weights], k)
    return move.add_(x)


def between(t0: Number, t1: Number, c: float) -> Number:
    """t0 + c (t1 - t0), and t1 itself at c = 1 (to rounding: a drift need not be defined beyond the end)."""
    if abs(c - 1) < 1e-12:
        return t1
    return torch.lerp(t0, t1, c) if isinstance(t0, Tensor) else t0 + c * (t1 - t0)  # type: ignore[arg-type]


@dataclass(frozen=True)
class WithIntegrals(RungeKutta):
    """The method for a state that holds integrals along its path, which nothing else in it depends on: of stages that are not ``seen`` it asks
    ``problem.path`` for a slope without them.  One stage in six of ``rk45``, four in twelve of ``dop853``, none of ``tsit5``."""

    @classmethod
    def of(cls, method: RungeKutta) -> WithIntegrals:
        """``method`` for such a state."""
        return cls(**{field.name: getattr(method, field.name) for field in fields(method)})

    def _slope(self, problem: Any, i: int, x: Tensor, t: Number) -> Tensor:
        slope: Tensor = problem.drift(x, t) if self.seen[i] else problem.path(x, t)
        return slope


@cache
def euler() -> RungeKutta:
    """Euler's method. Order 1, one call a step."""
    return RungeKutta(a=((),), b=(1.0,), order=1, dense=Dense(1, ((1.0,),)), reference="Euler 1768")


@cache
def midpoint() -> RungeKutta:
    """The midpoint method. Order 2, two calls a step."""
    dense = Dense(2, ((1.0, -1.0), (0.0, 1.0)))
    return RungeKutta(((), (0.5,)), (0.0, 1.0), 2, dense, (Estimate(2, (1.0, -1.0)),), "Runge 1895")


@cache
def heun() -> RungeKutta:
    """Heun's trapezoidal method with Euler's embedded. Order 2, two calls a step; deterministic EDM is this on the EDM process."""
    dense = Dense(2, ((1.0, -0.5), (0.0, 0.5)))
    return RungeKutta(((), (1.0,)), (0.5, 0.5), 2, dense, (Estimate(2, (0.5, -0.5)),), "Heun 1900")


@cache
def rk4() -> RungeKutta:
    """The classic fourth-order method. Four calls a step, no error estimate."""
    a, b = ((), (0.5,), (0.0, 0.5), (0.0, 0.0, 1.0)), (1 / 6, 1 / 3, 1 / 3, 1 / 6)
    middle = (0.0, 1.0, -2 / 3)
    return RungeKutta(a, b, 4, Dense(3, ((1.0, -3 / 2, 2 / 3), middle, middle, (0.0, -1 / 2, 2 / 3))), reference="Kutta 1901")


@cache
def bosh3() -> RungeKutta:
    """Bogacki-Shampine 3(2). Three calls a step; for loose tolerances. Between the nodes cubic Hermite interpolation."""
    b = (2 / 9, 1 / 3, 4 / 9, 0.0)
    e = (2 / 9 - 7 / 24, 1 / 3 - 1 / 4, 4 / 9 - 1 / 3, -1 / 8)
    dense = Dense(3, ((1.0, -4 / 3, 5 / 9), (0.0, 1.0, -2 / 3), (0.0, 4 / 3, -8 / 9), (0.0, -1.0, 1.0)))
    return RungeKutta(((), (1 / 2,), (0.0, 3 / 4), b[:3]), b, 3, dense, (Estimate(3, e),), "Bogacki & Shampine 1989")


@cache
def rk45() -> RungeKutta:
    """Dormand-Prince 5(4). Six calls a step; the usual choice for the probability flow. Dense output by Shampine 1986."""
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
    dense = (
        (1.0, -8048581381 / 2820520608, 8663915743 / 2820520608, -12715105075 / 11282082432),
        (0.0, 0.0, 0.0, 0.0),
        (0.0, 131558114200 / 32700410799, -68118460800 / 10900136933, 87487479700 / 32700410799),
        (0.0, -1754552775 / 470086768, 14199869525 / 1410260304, -10690763975 / 1880347072),
        (0.0, 127303824393 / 49829197408, -318862633887 / 49829197408, 701980252875 / 199316789632),
        (0.0, -282668133 / 205662961, 2019193451 / 616988883, -1453857185 / 822651844),
        (0.0, 40617522 / 29380423, -110615467 / 29380423, 69997945 / 29380423),
    )
    e = tuple(x - y for x, y in zip(b, embedded, strict=True))
    return RungeKutta(a, b, 5, Dense(4, dense), (Estimate(5, e),), "Dormand & Prince 1980")


@cache
def tsit5() -> RungeKutta:
    """Tsitouras 5(4). Six calls a step, with smaller error constants than ``rk45`` on most problems."""
    b = (0.09646076681806523, 0.01, 0.4798896504144996, 1.379008574103742, -3.290069515436081, 2.324710524099774, 0.0)
    a = (
        (),
        (0.161,),
        (-0.008480655492356989, 0.335480655492357),
        (2.8971530571054935, -6.359448489975075, 4.3622954328695815),
        (5.325864828439257, -11.748883564062828, 7.4955393428898365, -0.09249506636175525),
        (5.86145544294642, -12.92096931784711, 8.159367898576159, -0.071584973281401, -0.028269050394068383),
        b[:6],
    )
    e = (
        -0.00178001105222577714,
        -0.0008164344596567469,
        0.007880878010261995,
        -0.1447110071732629,
        0.5823571654525552,
        -0.45808210592918697,
        1 / 66,
    )
    dense = (
        (1.0, -2.763706197274826, 2.9132554618219126, -1.0530884977290216),
        (0.0, 0.1317, -0.2234, 0.1017),
        (0.0, 3.9302962368947516, -5.941033872131505, 2.490627285651253),
        (0.0, -12.411077166933676, 30.33818863028232, -16.548102889244902),
        (0.0, 37.50931341651104, -88.1789048947664, 47.37952196281928),
        (0.0, -27.896526289197286, 65.09189467479366, -34.87065786149661),
        (0.0, 1.5, -4.0, 2.5),
    )
    return RungeKutta(a, b, 5, Dense(4, dense), (Estimate(5, e),), "Tsitouras 2011")
