"""DPM-Solver++: multistep methods on E[x_0 | x] in lambda = ln(alpha/sigma), for the probability flow and for SDEs.  [Lu et al. 2022b, arXiv 2211.01095]

With D_j the outputs, newest first, h the step in lambda and eta the noise level,

    x1 = (sigma_1/sigma_0) e^(-eta h) x + (1 + eta) alpha_1 int e^((1 + eta)(u - lambda_1)) P(u) du + sigma_1 sqrt(1 - e^(-2 eta h)) z

is exact where the output is the polynomial P in lambda.  At eta = 0 this is the probability flow, at eta = 1 the reverse SDE, and every eta has the
same marginals.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Literal

from .._arrays import Number, xp
from .._errors import choice
from ..processes import Process
from .base import Facts
from .linear import LinearSampler, Row, adams, adams_moments, exponential_facts, half_log_snr, interpolatory, kept, noise_level


@dataclass(frozen=True)
class DPMpp2M(LinearSampler):
    """DPM-Solver++(2M):  x1 = (sigma_1/sigma_0) x - alpha_1 expm1(-h) [D_0 + (D_0 - D_-1) h / (2 h_-1)].

    [Lu et al. 2022b, algorithm 2, and for SDEs eq. 18].  Order 2, one call a step; the first step is DDIM's.  The one to start with
    for 10 calls and more; as ``dpmpp_2m_sde`` (eta = 1) weak order 2.

    Arguments:
        eta: noise level >= 0.
        variant: "midpoint", the formula above; "heun" integrates the straight line through D_0 and D_-1 exactly.

    Raises:
        ValueError: eta or variant out of range.
    """

    eta: float = 0.0
    variant: Literal["midpoint", "heun"] = "midpoint"
    memory: ClassVar[int] = 2

    def __post_init__(self) -> None:
        object.__setattr__(self, "eta", noise_level(self.eta))
        choice("variant", self.variant, ("midpoint", "heun"))

    @cached_property
    def facts(self) -> Facts:  # type: ignore[override]
        return exponential_facts(2, 2.0, self.eta, "Lu et al. 2022")

    def row(self, process: Process, times: Sequence[Number], t1: Number) -> Row:
        on_x, on_noise = kept(process, times[0], t1, self.eta)
        if len(times) == 1 or self.variant == "heun":
            return Row(on_x, adams(process, times[0], t1, times, self.eta), on_noise)
        new, old, older = (half_log_snr(process, t) for t in (t1, *times))
        h = new - old
        whole = -process.alpha_(t1) * xp(h).expm1(-(1 + self.eta) * h)
        share = 0.5 * h / (old - older)
        return Row(on_x, (whole * (1 + share), -whole * share), on_noise)


@dataclass(frozen=True)
class DPMpp3M(LinearSampler):
    """DPM-Solver++(3M): the parabola through the last three outputs.  [Lu et al. 2022b, appendix B; for SDEs as in k-diffusion]

    Order 3, one call a step; as ``dpmpp_3m_sde`` (eta = 1) weak order 2.  Published code takes half of the square term of the parabola, and starts with
    a step of order 1: either leaves order 2.  Here the square term is whole, and the second step corrects the first by the output that it knows.

    Arguments:
        eta: noise level >= 0.
        published: as in published code, of order 2, to reproduce its numbers.

    Raises:
        ValueError: eta out of range.
    """

    eta: float = 0.0
    published: bool = False
    memory: ClassVar[int] = 3

    def __post_init__(self) -> None:
        object.__setattr__(self, "eta", noise_level(self.eta))

    @cached_property
    def facts(self) -> Facts:  # type: ignore[override]
        return exponential_facts(2 if self.published else 3, 2.0, self.eta, "Lu et al. 2022")

    def row(self, process: Process, times: Sequence[Number], t1: Number) -> Row:
        if self.published and len(times) < 3:
            return DPMpp2M(self.eta, "heun" if self.eta else "midpoint").row(process, times, t1)
        on_x, on_noise = kept(process, times[0], t1, self.eta)
        at, moments = adams_moments(process, times[0], t1, times, self.eta)
        if self.published:
            moments[2] *= 0.5
        row = Row(on_x, interpolatory(at, moments), on_noise)
        if len(times) != 2:
            return row
        return row.corrected(*(adams(process, times[1], times[0], through, self.eta) for through in (times, times[1:])))
