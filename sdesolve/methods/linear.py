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
from itertools import pairwise
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
    """Base of the methods whose moves are rows.  A step goes from node to node, calling the network once at each and drawing noise of its own for each move."""

    output: ClassVar[Literal["x0", "epsilon"]] = "x0"
    """What is combined."""

    @property
    @abstractmethod
    def memory(self) -> int:
        """Outputs that a row may use, the newest included; 1 for a method without a past."""

    @abstractmethod
    def row(self, process: Process, times: Sequence[Number], t1: Number) -> Row:
        """The move to t1 from ``times[0]``, the newest of the times (at most ``memory``, newest first) at which the network was called."""

    def nodes(self, process: Process, t0: Number, t1: Number) -> tuple[Number, ...]:
        """Where a step calls the network: t0, and times within the step for a method with stages, whose memory then is the step's own."""
        return (t0,)

    def init(self, problem: ScoreProblem, x: Tensor, t: Number) -> History:
        return History()

    def step(self, problem: ScoreProblem, x: Tensor, t0: Number, t1: Number, noise: StepNoise | None, carry: History) -> Step:
        nodes = self.nodes(problem.process, t0, t1)
        history, mean = carry, x
        for move, (t, to) in enumerate(pairwise((*nodes, t1))):
            history, row = self._called(problem, x, t, to, history)
            mean = combined(row, x, history.outputs)
            x = mean if noise is None or row.on_noise is None else plus(mean, row.on_noise, noise.normal(move))
        return Step(x, carry=history if len(nodes) == 1 else carry, mean=mean)

    def _called(self, problem: ScoreProblem, x: Tensor, t: Number, to: Number, past: History) -> tuple[History, Row]:
        """The network's output at (x, t) with those before it, and the row of the move from there."""
        called = problem.score.denoise if self.output == "x0" else problem.score.epsilon
        outputs, times = (called(x, t), *past.outputs)[: self.memory], (t, *past.times)[: self.memory]
        return History(outputs, times), self.row(problem.process, times, to)


def combined(row: Row, x: Tensor, outputs: Sequence[Tensor]) -> Tensor:
    """The move without its noise."""
    mean: Any = bcast(row.on_x, x) * x
    for weight, output in zip(row.on_outputs, outputs, strict=False):
        mean = plus(mean, weight, output)
    return mean


def half_log_snr(process: Process, t: Number) -> Number:
    """lambda = ln(alpha/sigma)."""
    return 0.5 * process.log_snr_(t)
