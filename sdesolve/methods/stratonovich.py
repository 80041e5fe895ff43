"""Trapezoidal methods for Stratonovich SDEs, in which the ordinary chain rule holds and so Heun's rule reads as it does for ODEs.

An SDE in Ito's calculus is converted first; for additive noise there is nothing to convert.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from .._arrays import Number, bcast
from ..problems import StochasticProblem
from .base import Facts, Step, StepNoise, Stepper


@dataclass(frozen=True)
class HeunSDE(Stepper):
    """The stochastic Heun method:

        y = x + f(x, t0) h + g(x, t0) W,     x1 = x + (f(x, t0) + f(y, t1)) h/2 + (g(x, t0) + g(y, t1)) W/2.

    Strong order 1 where the noise commutes and 1/2 where it does not, weak order 1, two calls a step; for additive noise weak
    order 2, so a good choice for a reverse SDE at a middling number of calls.  [Rumelin 1982]
    """

    facts: ClassVar[Facts] = Facts(
        evals=2,
        strong={"additive": 1.0, "scalar": 1.0, "diagonal": 1.0, "commutative": 1.0, "general": 0.5},
        weak={"additive": 2.0, "scalar": 1.0, "diagonal": 1.0, "commutative": 1.0, "general": 1.0},
        calculus=frozenset({"stratonovich"}),
        reference="Rumelin 1982",
    )
    error_order: ClassVar[float] = 1.5

    def step(self, problem: StochasticProblem, x: Tensor, t0: Number, t1: Number, noise: StepNoise, carry: None) -> Step:
        h, dw = bcast(t1 - t0, x), noise.increment(t0, t1)
        slope, kick = problem.drift(x, t0), problem.diffuse(x, t0, dw)
        guess = x + h * slope + kick
        mean = x + 0.5 * h * (slope + problem.drift(guess, t1))
        end = mean + 0.5 * (kick + problem.diffuse(guess, t1, dw))
        return Step(end, error=end - guess, mean=mean)


@dataclass(frozen=True)
class EulerHeun(Stepper):
    """The Euler-Heun method: Euler's rule for the drift and Heun's for the noise,

        y = x + g(x, t0) W,     x1 = x + f(x, t0) h + (g(x, t0) + g(y, t1)) W/2.

    Strong order 1 where the noise commutes and 1/2 where it does not, weak order 1, one call a step.  [Kloeden & Platen 1992, section 11.1]
    """

    facts: ClassVar[Facts] = Facts(
        evals=1,
        strong={"additive": 1.0, "scalar": 1.0, "diagonal": 1.0, "commutative": 1.0, "general": 0.5},
        weak={"additive": 1.0, "scalar": 1.0, "diagonal": 1.0, "commutative": 1.0, "general": 1.0},
        calculus=frozenset({"stratonovich"}),
        reference="Kloeden & Platen 1992",
    )

    def step(self, problem: StochasticProblem, x: Tensor, t0: Number, t1: Number, noise: StepNoise, carry: None) -> Step:
        dw = noise.increment(t0, t1)
        kick = problem.diffuse(x, t0, dw)
        mean = x + bcast(t1 - t0, x) * problem.drift(x, t0)
        return Step(mean + 0.5 * (kick + problem.diffuse(x + kick, t1, dw)), mean=mean)
