"""The SDE method that chooses its own steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from .._arrays import Number
from ..problems import StochasticProblem
from .base import Facts, Step, StepNoise
from .stochastic_runge_kutta import sra1
from .stratonovich import HeunSDE

_SRA1 = sra1()


@dataclass(frozen=True)
class Adaptive(HeunSDE):
    """Steps of SRA1 where the noise is additive and of the stochastic Heun method where it is not, of lengths chosen per sample.

    The error is the difference to Euler's rule.  A rejected step keeps its Brownian path, and every time at which the path has
    been seen is landed on, so the law of the samples tends to the right one with the tolerance.  Two calls a step; strong order 3/2 for
    additive noise, 1 where the noise commutes, 1/2 where it does not.  For any SDE at a tolerance, plain or reverse.
    [Foster & Jelincic 2023, arXiv 2311.14201, on the convergence of adaptive steps]
    """

    facts: ClassVar[Facts] = HeunSDE.facts._replace(
        strong={**HeunSDE.facts.strong, **_SRA1.facts.strong},
        weak={**HeunSDE.facts.weak, **_SRA1.facts.weak},
        reference="Foster & Jelincic 2023",
    )
    chooses_steps: ClassVar[bool] = True

    def step(self, problem: StochasticProblem, x: Tensor, t0: Number, t1: Number, noise: StepNoise, carry: None) -> Step:
        if problem.noise == "additive":
            return _SRA1.step(problem, x, t0, t1, noise, carry)
        return super().step(problem, x, t0, t1, noise, carry)
