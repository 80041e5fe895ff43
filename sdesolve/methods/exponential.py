"""Methods on the semi-linear structure of the probability flow.

In y = x / alpha and s = sigma / alpha the flow is  dy/ds = eps(x, t) = -sigma score:  only the network's part is left.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from .._arrays import Number, bcast, plus
from ..problems import ScoreProblem
from .base import Facts, Step, StepNoise, Stepper


@dataclass(frozen=True)
class DDIM(Stepper):
    """DDIM:  x1 = (alpha_1/alpha_0) x + (sigma_1 - sigma_0 alpha_1/alpha_0) eps(x, t0).  [Song et al. 2021a, eq. 12 with eta = 0]

    Euler's method in s = sigma/alpha; exact for a single data point.  Order 1, one call a step.  The plain choice for 20 to 100 calls.
    """

    facts: ClassVar[Facts] = Facts(evals=1, ode=1, needs=frozenset({"score"}), reference="Song, Meng & Ermon 2021")

    def step(self, problem: ScoreProblem, x: Tensor, t0: Number, t1: Number, noise: StepNoise, carry: Any) -> Step:
        p = problem.process
        ratio = p.alpha_(t1) / p.alpha_(t0)
        sigma = p.sigma_(t0)
        on_score = sigma * (sigma * ratio - p.sigma_(t1))
        return Step(plus(bcast(ratio, x) * x, on_score, problem.score(x, t0)))
