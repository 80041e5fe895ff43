"""Asynchronous leapfrog, an ODE method that runs back along its own path to the last bit but rounding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from .._arrays import Number, bcast
from ..problems import Problem
from .base import Facts, Step, StepNoise, Stepper
from .runge_kutta import between


@dataclass(frozen=True)
class Leapfrog(Stepper):
    """The asynchronous leapfrog method.  [Mutze 2013, eq. 1; Zhuang et al. 2021, algorithm 2]

        y = x + v h/2,     v1 = 2 f(y, t0 + h/2) - v,     x1 = y + v1 h/2,

    from v = f(x, t0), which is the carry.  Order 2, one call a step.  Take it where a walk must be undone exactly: the step from t1 to t0 is
    its own inverse, for x and v together.  Not for stiff problems: v oscillates about f.
    """

    facts: ClassVar[Facts] = Facts(evals=1, start=1, ode=2, reference="Mutze 2013")
    reversible: ClassVar[bool] = True

    def init(self, problem: Problem, x: Tensor, t: Number) -> Tensor:
        return problem.drift(x, t)

    def step(self, problem: Problem, x: Tensor, t0: Number, t1: Number, noise: StepNoise | None, carry: Tensor) -> Step:
        half = bcast(0.5 * (t1 - t0), x)
        y = x + half * carry
        v = 2 * problem.drift(y, between(t0, t1, 0.5)) - carry
        return Step(y + half * v, carry=v)

    def step_back(self, problem: Problem, x: Tensor, t0: Number, t1: Number, noise: StepNoise | None, carry: Tensor) -> Step:
        return self.step(problem, x, t1, t0, noise, carry)
