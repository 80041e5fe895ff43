"""The reversible Heun method, which runs back along its own path to the last bit but rounding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .._arrays import Number, bcast
from ..problems import StochasticProblem
from .base import Facts, Step, StepNoise, Stepper


@dataclass(frozen=True)
class ReversibleHeun(Stepper):
    """The reversible Heun method for Stratonovich SDEs.  [Kidger et al. 2021, algorithms 1 and 2]

        y1 = 2 x - y + f(y, t0) h + g(y, t0) W,     x1 = x + (f(y, t0) + f(y1, t1)) h/2 + (g(y, t0) + g(y1, t1)) W/2,

    from y = x.  The carry is y and f(y).  Strong order 1 where the noise commutes and 1/2 where it does not; weak order 1, and 2 for
    additive noise; one call a step.  Take it where memory for gradients is scarce: each state is recovered from the next.  Not for stiff problems:
    with z = h df/dx a step multiplies x by exp(asinh z) and y - x by -exp(-asinh z), so what the equation contracts, y strays by:
    scores guided by a measurement with little noise contract so much that nothing but y's error is left.
    """

    facts: ClassVar[Facts] = Facts(
        evals=1,
        start=1,
        strong={"additive": 1.0, "scalar": 1.0, "diagonal": 1.0, "commutative": 1.0, "general": 0.5},
        weak={"additive": 2.0, "scalar": 1.0, "diagonal": 1.0, "commutative": 1.0, "general": 1.0},
        calculus=frozenset({"stratonovich"}),
        reference="Kidger et al. 2021",
    )
    reversible: ClassVar[bool] = True

    def init(self, problem: StochasticProblem, x: Tensor, t: Number) -> Tensor:
        return torch.stack([x, problem.drift(x, t)], 1)

    def step(self, problem: StochasticProblem, x: Tensor, t0: Number, t1: Number, noise: StepNoise, carry: Tensor) -> Step:
        return _step(problem, x, t0, t1, noise.increment(t0, t1), carry)

    def step_back(self, problem: StochasticProblem, x: Tensor, t0: Number, t1: Number, noise: StepNoise, carry: Tensor) -> Step:
        """The rule is symmetric: undoing a step is taking it from t1 to t0 with the path's own increment in that direction, -W."""
        return _step(problem, x, t1, t0, -noise.increment(t0, t1), carry)


def _step(problem: StochasticProblem, x: Tensor, t0: Number, t1: Number, dw: Tensor, carry: Tensor) -> Step:
    h = bcast(t1 - t0, x)
    y, slope = carry.unbind(1)
    kick = problem.diffuse(y, t0, dw)
    y1 = 2 * x - y + h * slope + kick
    slope1 = problem.drift(y1, t1)
    mean = x + 0.5 * h * (slope + slope1)
    return Step(mean + 0.5 * (kick + problem.diffuse(y1, t1, dw)), carry=torch.stack([y1, slope1], 1), mean=mean)
