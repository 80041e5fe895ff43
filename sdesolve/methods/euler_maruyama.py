"""Euler's method for SDEs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from .._arrays import Number
from ..problems import StochasticProblem
from .base import Facts, Step, StepNoise, Stepper


@dataclass(frozen=True)
class EulerMaruyama(Stepper):
    """The Euler-Maruyama method:  x1 = x + f(x, t0) dt + g(x, t0) dW.  [Maruyama 1955; Kloeden & Platen 1992, 10.2]

    Strong order 1/2 (1 for additive noise), weak order 1, one call a step.  The method to compare others with.
    """

    facts: ClassVar[Facts] = Facts(
        evals=1,
        strong={"additive": 1.0, "scalar": 0.5, "diagonal": 0.5, "general": 0.5},
        weak={"additive": 1.0, "scalar": 1.0, "diagonal": 1.0, "general": 1.0},
        reference="Maruyama 1955",
    )

    def step(self, problem: StochasticProblem, x: Tensor, t0: Number, t1: Number, noise: StepNoise, carry: Any) -> Step:
        mean = problem.euler(x, t0, t1 - t0)
        return Step(mean + problem.diffuse(x, t0, noise.increment(t0, t1)), mean=mean)
