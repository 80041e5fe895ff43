"""ER-SDE: multistep methods for reverse SDEs with a noise of one's own.  [Cui et al. 2023, arXiv 2309.06169]"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from .._arrays import Number, softplus, xp
from .._errors import integer
from ..processes import Process
from .base import Facts
from .linear import LinearSampler, Row, exponential_facts, half_log_snr, interpolatory, noise_level

_GAUSS = np.polynomial.legendre.leggauss(16)
NODES, WEIGHTS = (0.5 + 0.5 * _GAUSS[0]).tolist(), (0.5 * _GAUSS[1]).tolist()  # on (0, 1)


@dataclass(frozen=True)
class ERSDE(LinearSampler):
    """ER-SDE-Solver-1, 2, 3.  In y = x/alpha and s = sigma/alpha, with D = E[x_0 | x] and any F that grows at least as s does,

        y1 = f y + F_1 int_{s_0}^{s_1} (1/F)' P(u) du + sqrt(s_1^2 - f^2 s_0^2) z,        f = F_1/F_0,

    has the marginals of the process.  P is the polynomial in s through the last ``order`` outputs.  [Cui et al. 2023, algorithms 1 to 3]  One call
    a step, weak order 2 from order 2 on, and on the flow (eta = 0) of its order.  The stochastic method to take for few calls.

    Published code takes the slope of P at s_0 by the last difference alone, which leaves order 2 with three outputs and two to four times the error;
    it has sums over 100 or 200 points for the integrals, which Gauss's rule gives here to rounding; and it starts by a step of order 1, which the
    second step corrects here by the output that it knows.

    With F = s (e^(s^0.3) + 10) it is nearly the probability flow towards the data: what eta is where F = s^(1 + eta) is 0.02 here at s = 0.1, 0.06 at 1,
    0.25 at 10 and 1 at 100.  So it knows the unit of the data, which is meant to lie in [-1, 1].

    Arguments:
        order: 1, 2 or 3.
        eta: "er", the noise above, or a noise level >= 0, F = s^(1 + eta): 0 is the probability flow, 1 the reverse SDE.

    Raises:
        ValueError: an argument out of range.
    """

    order: int = 3
    eta: float | Literal["er"] = "er"

    def __post_init__(self) -> None:
        object.__setattr__(self, "order", integer("order", self.order, 1, example=3))
        if self.order > 3:
            raise ValueError(f"order={self.order}; expected 1, 2 or 3, as in order=3.")
        if self.eta != "er":
            object.__setattr__(self, "eta", noise_level(self.eta))

    @cached_property
    def facts(self) -> Facts:  # type: ignore[override]
        eta = 0.5 if isinstance(self.eta, str) else self.eta
        return exponential_facts(self.order, min(self.order, 2.0), eta, "Cui et al. 2023")

    @property
    def memory(self) -> int:
        return self.order

    def row(self, process: Process, times: Sequence[Number], t1: Number) -> Row:
        t0, *past = times
        w0, w1 = -half_log_snr(process, t0), -half_log_snr(process, t1)
        m, decay = xp(w0), self._log_scale(w1) - self._log_scale(w0)
        on_x = process.alpha_(t1) / process.alpha_(t0) * m.exp(decay)
        on_noise = process.sigma_(t1) * m.sqrt(-m.expm1(2 * (decay + w0 - w1))) if self.eta else None
        row = Row(on_x, self._weights(process, t0, t1, times), on_noise)
        if self.order < 3 or len(times) != 2:
            return row
        return row.corrected(*(self._weights(process, past[0], t0, through) for through in (times, past)))  # the first step had one output

    def _weights(self, process: Process, t0: Number, t1: Number, through: Sequence[Number]) -> list[Number]:
        """On the outputs at ``through``, of alpha_1 times the integral from t0 to t1."""
        w0, w1 = -half_log_snr(process, t0), -half_log_snr(process, t1)
        m = xp(w0)
        at = [m.expm1(-half_log_snr(process, t) - w0) / m.expm1(w1 - w0) for t in through]
        return interpolatory(at, [process.alpha_(t1) * moment for moment in self._moments(w0, w1, len(through))])

    def _moments(self, w0: Number, w1: Number, count: int) -> list[Number]:
        """F_1 int (1/F)' q^k du over the step, with q = (u - s_0)/(s_1 - s_0), by Gauss's rule in w = ln u."""
        m, h, last = xp(w0), w1 - w0, self._log_scale(w1)
        points = [w0 + node * h for node in NODES]
        density = [-weight * h * self._slope(w) * m.exp(last - self._log_scale(w)) for w, weight in zip(points, WEIGHTS, strict=True)]
        shares = [m.expm1(w - w0) / m.expm1(h) for w in points]
        rest = [sum(d * q**k for d, q in zip(density, shares, strict=True)) for k in range(1, count)]
        return [-m.expm1(last - self._log_scale(w0)), *rest]

    def _log_scale(self, w: Number) -> Number:
        """ln F, at w = ln s."""
        if isinstance(self.eta, str):
            return w + softplus(xp(w).exp(0.3 * w) - math.log(10))
        return (1 + self.eta) * w

    def _slope(self, w: Number) -> Number:
        """d ln F / dw = s F'/F."""
        if isinstance(self.eta, str):
            power = xp(w).exp(0.3 * w)
            return 1 + 0.3 * power / (1 + 10 * xp(w).exp(-power))
        return 1 + self.eta
