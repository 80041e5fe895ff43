"""The sampler of DiffPIR and of DDNM's code: a share of the noise is drawn anew in each step, whatever its length."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from sdesolve.methods import Facts
from sdesolve.methods.linear import LinearSampler, Row
from sdesolve.processes import Process

from ._numbers import number


@dataclass(frozen=True)
class Renoised(LinearSampler):
    """x1 = alpha_1 D + sigma_1 (sqrt(1 - share) eps + sqrt(share) z)  with  D = E[x_0 | x] and eps = (x - alpha_0 D)/sigma_0.

    [Zhu et al. 2023, algorithm 1, with share = zeta; Wang et al. 2023's code, with share = eta^2, takes the eps of the unconditional model].  One call a step.
    As steps shorten its limit is not the law but a narrower one, for in each of them x_0 given x counts as known: the variance of Gaussian data ends
    share/(2 - 2 sqrt(1 - share)) times as large, 0.92 at a share of 0.3 and 0.5 at 1.  Given as a method, ``sd.solve(problem, x, method=Renoised(0.3), steps=100)``.

    Arguments:
        share: of the noise's variance that is new in each step, 0 <= share <= 1; 0 is DDIM.

    Raises:
        ValueError: share out of range.
    """

    share: float = 0.3
    memory: ClassVar[int] = 1
    facts: ClassVar[Facts] = Facts(evals=1, weak={"additive": 0.0}, needs=frozenset({"score"}), reference="Zhu et al. 2023")

    def __post_init__(self) -> None:
        object.__setattr__(self, "share", number("share", self.share, 0.0, most=1.0))

    def row(self, process: Process, times: Sequence[float | Tensor], t1: float | Tensor) -> Row:
        sigma = process.sigma_(t1)
        kept = (1 - self.share) ** 0.5 * sigma / process.sigma_(times[0])
        return Row(kept, (process.alpha_(t1) - kept * process.alpha_(times[0]),), self.share**0.5 * sigma)
