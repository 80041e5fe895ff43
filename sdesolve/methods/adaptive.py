"""Stochastic Heun with Euler-Maruyama embedded: the pair that chooses its own steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from .._arrays import Number, bcast
from ..problems import StochasticProblem
from .base import Facts, Step, StepNoise, Stepper


@dataclass(frozen=True)
class Adaptive(Stepper):
    """Heun's method for Stratonovich SDEs, with the difference to Euler's as its error:

        K(x, t) = f(x, t) dt + g(x, t) dW,     x' = x + K(x, t0),     x1 = x + (K(x, t0) + K(x', t1))/2,     error = x1 - x'.

    Strong order 1 for additive, scalar and diagonal noise, 1/2 for general noise; two calls a step.  The steps are chosen per
    sample, and a rejected one keeps its Brownian path, so the law of the samples tends to the right one with the tolerance.
    [Kloeden & Platen 1992, 15.5; Foster & Jelincic 2023]
    """

    facts: ClassVar[Facts] = Facts(
        evals=2,
        strong={"additive": 1.0, "scalar": 1.0, "diagonal": 1.0, "general": 0.5},
        calculus=frozenset({"stratonovich"}),
        reference="Foster & Jelincic 2023",
    )
    error_order: ClassVar[float] = 1.5
    default_tolerance: ClassVar[float] = 1e-2

    def step(self, problem: StochasticProblem, x: Tensor, t0: Number, t1: Number, noise: StepNoise, carry: Any) -> Step:
        dt, dw = bcast(t1 - t0, x), noise.increment(t0, t1)
        first = dt * problem.drift(x, t0) + problem.diffuse(x, t0, dw)
        second = dt * problem.drift(x + first, t1) + problem.diffuse(x + first, t1, dw)
        return Step(x + 0.5 * (first + second), error=0.5 * (second - first))
