"""DDIM: the first-order exponential method, exact for a single data point, between the flow and ancestral sampling."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

from .._arrays import Number, xp
from ..processes import Process
from .base import Facts
from .linear import LinearSampler, Row, exponential_facts, half_log_snr, noise_level


@dataclass(frozen=True)
class DDIM(LinearSampler):
    """DDIM:  x1 = alpha_1 D + sqrt(sigma_1^2 - s^2) eps + s z,  s = eta sigma_1 sqrt(1 - e^(-2h)),  h the step in ln(alpha/sigma).

    With D = E[x_0 | x] and eps = E[eps | x] at t0.  [Song et al. 2021a, eq. 12 and 16].  Order 1, one call a step; exact for a single
    data point at every eta.  eta = 0 is the probability flow (Euler's method in sigma/alpha), eta = 1 ancestral sampling.  The plain choice
    for 20 to 100 calls.

    Arguments:
        eta: noise level, 0 <= eta <= 1.

    Raises:
        ValueError: eta out of range.
    """

    eta: float = 0.0
    memory: ClassVar[int] = 1
    default_grid: ClassVar[str | None] = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "eta", noise_level(self.eta, 1.0))

    @cached_property
    def facts(self) -> Facts:  # type: ignore[override]
        return exponential_facts(1, 1.0, self.eta, "Song, Meng & Ermon 2021")

    def row(self, process: Process, times: Sequence[Number], t1: Number) -> Row:
        h = half_log_snr(process, t1) - half_log_snr(process, times[0])
        m, sigma = xp(h), process.sigma_(t1)
        noise = self.eta * self.eta * m.expm1(-2 * h)  # -s^2/sigma_1^2
        log_share = 0.5 * m.log1p(noise)  # ln sqrt(1 - s^2/sigma_1^2)
        on_x = sigma / process.sigma_(times[0]) * m.exp(log_share)
        return Row(on_x, (-process.alpha_(t1) * m.expm1(log_share - h),), sigma * m.sqrt(-noise) if self.eta else None)
