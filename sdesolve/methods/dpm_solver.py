"""DPM-Solver++: multistep methods on E[x_0 | x] in lambda = ln(alpha/sigma).  [Lu et al. 2022b, arXiv 2211.01095]"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from .._arrays import Number, xp
from ..processes import Process
from .base import Facts
from .linear import LinearSampler, Row, half_log_snr


@dataclass(frozen=True)
class DPMpp2M(LinearSampler):
    """DPM-Solver++(2M):  x1 = (sigma_1/sigma_0) x - alpha_1 expm1(-h) [D_0 + (D_0 - D_-1) h / (2 h_-1)],  h the step in lambda.

    [Lu et al. 2022b, algorithm 2].  Order 2, one call a step; the first step is DDIM's.
    """

    memory: ClassVar[int] = 2
    facts: ClassVar[Facts] = Facts(evals=1, ode=2, needs=frozenset({"score"}), reference="Lu et al. 2022")

    def row(self, process: Process, times: Sequence[Number], t1: Number) -> Row:
        on_x = process.sigma_(t1) / process.sigma_(times[0])
        new, *old = (half_log_snr(process, t) for t in (t1, *times))
        h = new - old[0]
        whole = -process.alpha_(t1) * xp(h).expm1(-h)
        if len(old) == 1:
            return Row(on_x, (whole,))
        share = 0.5 * h / (old[0] - old[1])
        return Row(on_x, (whole * (1 + share), -whole * share))
