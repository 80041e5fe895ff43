"""Milstein's method: strong order 1 where the iterated integrals of the noise are products of its increments.

    x1 = x + f h + g W + (1/2) sum_jk Dg_j[g_k] (W_j W_k - delta_jk |h|),

without the |h| in Stratonovich's calculus.  The double sum is a derivative of g W along g W, whatever the number of columns.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from .._arrays import Number, absolute, bcast, xp
from ..problems import SDE
from .base import Facts, Step, StepNoise, Stepper


@dataclass(frozen=True)
class Milstein(Stepper):
    """Milstein's method.  [Milstein 1974; Kloeden & Platen 1992, section 10.3]

    Strong and weak order 1, one call a step and one derivative of the diffusion (1 + m for m commuting columns in Ito's calculus).
    For additive noise, which includes every reverse SDE, it is the Euler-Maruyama method.
    """

    facts: ClassVar[Facts] = Facts(
        evals=1,
        strong={"additive": 1.0, "scalar": 1.0, "diagonal": 1.0, "commutative": 1.0},
        weak={"additive": 1.0, "scalar": 1.0, "diagonal": 1.0, "commutative": 1.0},
        calculus=frozenset({"ito", "stratonovich"}),
        needs=frozenset({"derivative"}),
        reference="Milstein 1974",
    )

    def step(self, problem: SDE, x: Tensor, t0: Number, t1: Number, noise: StepNoise, carry: None) -> Step:
        dw = noise.increment(t0, t1)
        mean, kick = problem.euler(x, t0, t1 - t0), problem.diffuse(x, t0, dw)
        if problem.noise != "additive":
            kick = kick + 0.5 * _double(problem, x, t0, t1, dw)
        return Step(mean + kick, mean=mean)


def _double(problem: SDE, x: Tensor, t0: Number, t1: Number, dw: Tensor) -> Tensor:
    """sum_jk Dg_j[g_k] (W_j W_k - delta_jk |h|)."""
    mean = absolute(t1 - t0) if problem.calculus == "ito" else 0.0
    if problem.noise != "general":
        return problem.correction(x, t0) * (dw.square() - bcast(mean, dw))
    square = problem.apply(problem.derivative(x, t0, problem.diffuse(x, t0, dw)), dw)
    return square - bcast(mean, x) * problem.correction(x, t0) if problem.calculus == "ito" else square


@dataclass(frozen=True)
class MilsteinFree(Stepper):
    """Milstein's method with a difference for the derivative.  [Kloeden & Platen 1992, equation 11.1.3]

        x1 = x + f h + g W + (g(x + f h + g sqrt|h|, t0) - g) (W^2 - |h|) / (2 sqrt|h|)

    Strong and weak order 1, one call a step and two of the diffusion, which need not be differentiable by machine.  In Stratonovich's
    calculus ``euler_heun`` is that method.
    """

    facts: ClassVar[Facts] = Facts(
        evals=1, strong={"scalar": 1.0, "diagonal": 1.0}, weak={"scalar": 1.0, "diagonal": 1.0}, reference="Kloeden & Platen 1992"
    )

    def step(self, problem: SDE, x: Tensor, t0: Number, t1: Number, noise: StepNoise, carry: None) -> Step:
        dw, size = noise.increment(t0, t1), bcast(absolute(t1 - t0), x)
        root = xp(size).sqrt(size)
        mean = x + bcast(t1 - t0, x) * problem.drift(x, t0)
        g = problem.diffusion(x, t0)
        kick = g * dw + (problem.diffusion(mean + root * g, t0) - g) * (dw.square() - size) / (2 * root)
        return Step(mean + kick, mean=mean)
