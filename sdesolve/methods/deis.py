"""DEIS and iPNDM: multistep methods on E[eps | x].  [Zhang & Chen 2022, arXiv 2204.13902]

In y = x/alpha and rho = sigma/alpha the flow is  dy/drho = E[eps | x],  so a step is  x1 = (alpha_1/alpha_0) x + alpha_1 int P drho  with P a polynomial
through the outputs: in t, in rho, or in ln rho = -lambda.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Literal

import numpy as np

from .._arrays import Number, xp
from .._errors import choice
from ..processes import Process
from .base import Facts
from .linear import LinearSampler, Row, exponential_moments, half_log_snr, interpolatory, outputs_of

_GAUSS = [(0.5 + 0.5 * float(at), 0.5 * float(weight)) for at, weight in zip(*np.polynomial.legendre.leggauss(24), strict=True)]
"""Nodes and weights on (0, 1): 12 digits of the integrals below for a step of 5 in lambda, and all of them for shorter ones."""
_LONGEST = 2.0  # in lambda, of a first step that is corrected: a line through its ends, in t or sigma/alpha, says nothing of a longer one


@dataclass(frozen=True)
class DEIS(LinearSampler):
    """DEIS: the polynomial through the last ``order`` outputs, integrated exactly.  [Zhang & Chen 2022, eq. 14-15 and section 4]

    Order ``order`` up to 3, one call a step: the second step corrects the first by the output that it knows, for the published start, of order 1,
    would leave order 2.  A first step of more than 2 in lambda, as in a walk of few calls, stays as it is: the correction would be far larger than the error.

    Arguments:
        order: outputs that are combined, 1 to 4; 1 is DDIM.  The paper counts the degree of the polynomial, one less.
        variant: the polynomial's variable. "t" (tAB), "rho" (rhoAB: Adams-Bashforth in sigma/alpha with the grid's own weights),
            or "log_rho", as in diffusers.
        published: start as published, to reproduce its numbers.

    Raises:
        ValueError: order or variant out of range.
    """

    order: int = 3
    variant: Literal["t", "rho", "log_rho"] = "t"
    published: bool = False
    output: ClassVar[Literal["x0", "epsilon"]] = "epsilon"

    def __post_init__(self) -> None:
        object.__setattr__(self, "order", outputs_of("order", self.order))
        choice("variant", self.variant, ("t", "rho", "log_rho"))

    @cached_property
    def facts(self) -> Facts:  # type: ignore[override]
        return Facts(evals=1, ode=min(self.order, 2 if self.published else 3), needs=frozenset({"score"}), reference="Zhang & Chen 2022")

    @property
    def memory(self) -> int:
        return self.order

    def row(self, process: Process, times: Sequence[Number], t1: Number) -> Row:
        row = Row(process.alpha_(t1) / process.alpha_(times[0]), self._weights(process, times[0], t1, times))
        if len(times) != 2 or self.order < 3 or self.published:
            return row
        short = 1.0 * ((half_log_snr(process, times[0]) - half_log_snr(process, times[1])) ** 2 <= _LONGEST**2)
        return row.corrected(*(self._weights(process, times[1], times[0], through) for through in (times, times[1:])), share=short)

    def _weights(self, process: Process, t0: Number, t1: Number, through: Sequence[Number]) -> list[Number]:
        """alpha_1 int_{rho_0}^{rho_1} of the polynomial through outputs at the times ``through``."""
        moments = {"t": _in_t, "rho": _in_rho, "log_rho": _in_log_rho}[self.variant]
        return interpolatory(*moments(process, t0, t1, through))


@dataclass(frozen=True)
class IPNDM(LinearSampler):
    """iPNDM: Adams-Bashforth in rho = sigma/alpha with the weights of equal steps, whatever the steps are.

    [Liu et al. 2022, arXiv 2202.09778; Zhang & Chen 2022, section 4].  One call a step, and order 2 for ``order`` >= 2: on steps that grow or shrink the
    weights are off by their ratio, and the first step is DDIM's.  With the weights of the steps as they are it is ``deis`` with ``variant="rho"``.

    Arguments:
        order: outputs that are combined, 1 to 4.

    Raises:
        ValueError: order out of range.
    """

    order: int = 4
    output: ClassVar[Literal["x0", "epsilon"]] = "epsilon"

    def __post_init__(self) -> None:
        object.__setattr__(self, "order", outputs_of("order", self.order))

    @cached_property
    def facts(self) -> Facts:  # type: ignore[override]
        return Facts(evals=1, ode=min(self.order, 2), needs=frozenset({"score"}), reference="Liu et al. 2022")

    @property
    def memory(self) -> int:
        return self.order

    def row(self, process: Process, times: Sequence[Number], t1: Number) -> Row:
        _, (whole,) = _in_rho(process, times[0], t1, times[:1])
        return Row(process.alpha_(t1) / process.alpha_(times[0]), [whole * weight for weight in _EQUAL[len(times)]])


_EQUAL = {count: interpolatory([-float(j) for j in range(count)], [1 / (k + 1) for k in range(count)]) for count in range(1, 5)}
"""Adams-Bashforth weights of equal steps, newest first."""


def _in_rho(process: Process, t0: Number, t1: Number, through: Sequence[Number]) -> tuple[list[Number], list[Number]]:
    """Nodes and moments in s = (rho - rho_0)/(rho_1 - rho_0)."""
    start = _rho(process, t0)
    span = start * xp(start).expm1(half_log_snr(process, t0) - half_log_snr(process, t1))
    whole = process.alpha_(t1) * span
    return [(_rho(process, t) - start) / span for t in through], [whole / (k + 1) for k in range(len(through))]


def _in_log_rho(process: Process, t0: Number, t1: Number, through: Sequence[Number]) -> tuple[list[Number], list[Number]]:
    """Nodes and moments in s = (lambda - lambda_0)/h."""
    start = half_log_snr(process, t0)
    h = half_log_snr(process, t1) - start
    whole = -process.sigma_(t1) * h
    return [(half_log_snr(process, t) - start) / h for t in through], [whole * m for m in exponential_moments(h, len(through))]


def _in_t(process: Process, t0: Number, t1: Number, through: Sequence[Number]) -> tuple[list[Number], list[Number]]:
    """Nodes and moments in s = (t - t0)/(t1 - t0): by Gauss's rule in lambda, where drho = -rho dlambda has no singularity."""
    start, dt = half_log_snr(process, t0), t1 - t0
    h = half_log_snr(process, t1) - start
    moments: list[Number] = [0.0] * len(through)
    for at, weight in _GAUSS:
        s = (process.log_snr_inverse_(2 * (start + at * h)) - t0) / dt
        value = -process.sigma_(t1) * h * weight * xp(h).exp((1 - at) * h)
        for k in range(len(moments)):
            moments[k] = moments[k] + value
            value = value * s
    return [(t - t0) / dt for t in through], moments


def _rho(process: Process, t: Number) -> Number:
    lam = half_log_snr(process, t)
    return xp(lam).exp(-lam)
