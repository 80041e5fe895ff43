"""Samplers that are linear in what the network says: the frame of the exponential and multistep methods.

The reverse SDE and the probability flow are linear but for the network, so a sampler's work between two calls is a row of numbers,

    x(t1) = on_x x(t) + sum_j on_outputs[j] D_j + on_noise z,

with D_j the network's outputs so far, newest first: E[x_0 | x] ("x0") or E[eps | x] ("epsilon"), each at its own time.  In
lambda = ln(alpha/sigma) the flow of x/sigma is  d(x/sigma)/dlambda = e^lambda D,  so the numbers are integrals of exponentials.  They are
formulas in float64 of the process and the times alone; a method of this family is those formulas, and has no loop of its own.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Literal, NamedTuple

from torch import Tensor

from .._arrays import Number, bcast, plus
from ..problems import ScoreProblem
from ..processes import Process
from .base import Step, StepNoise, Stepper


class Row(NamedTuple):
    """The coefficients of one move; those of outputs that a move does not use are left out."""

    on_x: Number
    on_outputs: Sequence[Number]
    """Newest first."""
    on_noise: Number | None = None
    """None where no noise is drawn."""


class History(NamedTuple):
    """What a step hands to the next: the last outputs and the times of their calls, newest first."""

    outputs: tuple[Tensor, ...] = ()
    times: tuple[Number, ...] = ()


class LinearSampler(Stepper):
    """Base of the methods whose moves are rows.  A step visits ``nodes``, calling the network once at each."""

    output: ClassVar[Literal["x0", "epsilon"]] = "x0"
    """What is combined."""

    @property
    @abstractmethod
    def memory(self) -> int:
        """Outputs that a row may use, the newest included; 1 for a method without a past."""

    @abstractmethod
    def row(self, process: Process, times: Sequence[Number], t1: Number) -> Row:
        """The move to t1 from ``times[0]``, the newest of the times (at most ``memory``, newest first) at which the network was called."""

    def init(self, problem: ScoreProblem, x: Tensor, t: Number) -> History:
        return History()

    def step(self, problem: ScoreProblem, x: Tensor, t0: Number, t1: Number, noise: StepNoise | None, carry: History) -> Step:
        called = problem.score.denoise if self.output == "x0" else problem.score.epsilon
        outputs, times = (called(x, t0), *carry.outputs)[: self.memory], (t0, *carry.times)[: self.memory]
        on_x, on_outputs, on_noise = self.row(problem.process, times, t1)
        mean: Any = bcast(on_x, x) * x
        for weight, output in zip(on_outputs, outputs, strict=False):
            mean = plus(mean, weight, output)
        x1 = mean if noise is None or on_noise is None else plus(mean, on_noise, noise.normal())
        return Step(x1, carry=History(outputs, times), mean=mean)


def half_log_snr(process: Process, t: Number) -> Number:
    """lambda = ln(alpha/sigma)."""
    return 0.5 * process.log_snr_(t)
