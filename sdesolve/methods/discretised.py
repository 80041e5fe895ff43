"""Predictors that discretise the forward process rather than the reverse SDE.

Between two times t1 < t0 every forward process is exactly  x_0 = r x_1 + sqrt(v) z  with

    r = alpha_0 / alpha_1,     v = sigma_0^2 - r^2 sigma_1^2,

(writing _i for "at t_i"), which gives the published rules of SMLD (r = 1) and DDPM (r = sqrt(1 - b), v = b) and extends
them to every other process.  The steps below run backwards, from t0 to t1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from .._arrays import Number, bcast, plus, xp
from ..problems import ScoreProblem
from ..processes import Process
from .base import Facts, Step, StepNoise, Stepper


def transition(p: Process, t0: Number, t1: Number) -> tuple[Number, Number]:
    """(r, v) of the forward transition from t1 up to t0, in float64; v without cancellation where the two times are close."""
    log_r = p.log_alpha_(t0) - p.log_alpha_(t1)
    r = xp(log_r).exp(log_r)
    return r, -p.sigma_(t0) ** 2 * xp(log_r).expm1(p.log_snr_(t0) - p.log_snr_(t1))


@dataclass(frozen=True)
class ReverseDiffusion(Stepper):
    """Reverse diffusion:  x1 = (2 - r) x + v score + sqrt(v) z.  [Song et al. 2021, eq. 46, algorithms 2 and 3]

    Order 1, one call a step.  The predictor of the published predictor-corrector samplers.
    """

    facts: ClassVar[Facts] = Facts(evals=1, strong={"additive": 1.0}, weak={"additive": 1.0}, needs=frozenset({"score"}), reference="Song et al. 2021")

    def step(self, problem: ScoreProblem, x: Tensor, t0: Number, t1: Number, noise: StepNoise, carry: Any) -> Step:
        r, v = transition(problem.process, t0, t1)
        mean = plus(bcast(2 - r, x) * x, v, problem.score(x, t0))
        return Step(plus(mean, xp(v).sqrt(v), noise.normal()), mean=mean)


@dataclass(frozen=True)
class Ancestral(Stepper):
    """Ancestral sampling:  x1 = (x + v score) / r + sqrt(v) (sigma_1 / sigma_0) z.  [Ho et al. 2020, eq. 11; Song et al. 2021, eq. 47]

    The exact posterior of x_1 given x_0 and the denoised image, so exact in one step for a single data point.  Order 1, one
    call a step.  For VP this is DDPM with its smaller choice of variance, the one that works with few steps.
    """

    facts: ClassVar[Facts] = Facts(evals=1, strong={"additive": 1.0}, weak={"additive": 1.0}, needs=frozenset({"score"}), reference="Ho et al. 2020")

    def step(self, problem: ScoreProblem, x: Tensor, t0: Number, t1: Number, noise: StepNoise, carry: Any) -> Step:
        p = problem.process
        r, v = transition(p, t0, t1)
        mean = plus(bcast(1 / r, x) * x, v / r, problem.score(x, t0))
        std = xp(v).sqrt(v) * p.sigma_(t1) / p.sigma_(t0)
        return Step(plus(mean, std, noise.normal()), mean=mean)
