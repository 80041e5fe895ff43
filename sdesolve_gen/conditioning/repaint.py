"""RePaint: stretches of the walk are taken back by the forward process and walked again, so that the unknown part hears of the known one more often.

[Lugmayr et al. 2022, arXiv 2201.09865, algorithm 1 and section 4.2]
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import Any, ClassVar, NamedTuple

from torch import Tensor

import sdesolve as sd
from sdesolve.methods import Facts, Step, StepNoise
from sdesolve.methods.discretised import transition
from sdesolve.noise import CONSTRAINT, PASS, SeededStep

from ._numbers import whole
from .measurement import Measurement
from .methods import Conditioning, made
from .projection import projection


def repaint(score: sd.Score, measurement: Measurement, jump_length: int = 10, resamplings: int = 10) -> Conditioning:
    """RePaint: the projection, and every ``jump_length`` steps of the walk are made ``resamplings`` times.

    It costs ``resamplings`` times the calls.  As a corrector it is a step back and forth in the noise, by the model's own moves: with one that is right,
    more of them come closer to the posterior, where ``jump_length`` is small.

    Arguments:
        score: of the model, unconditional; it is not changed.
        measurement: y = A x_0 without noise, with an operator as for :func:`projection`.
        jump_length: j >= 1, steps of the grid that are taken back at once; published: 10 of 250.
        resamplings: r >= 1, how often each stretch is walked; published: 10.

    Raises:
        ValueError: a measurement with noise, an argument out of range, or an operator that the projection refuses.
    """
    measurement.require("repaint")
    if measurement.noise_std:
        raise ValueError(
            f"repaint has noise_std={measurement.noise_std:g}, and its steps back would forget a y that is noisier than they are; expected noise_std=0, or another method of "
            "conditioning, as in method='projection'."
        )
    held = projection(score, measurement)
    Resampled(made("ddim"), jump_length, resamplings)  # what is out of range is said here
    return held._replace(method=lambda given, **options: Resampled(made(given, **options), jump_length, resamplings))


class Stretch(NamedTuple):
    """What a step carries on."""

    times: tuple[float, ...]
    """The nodes since the last jump."""
    carry: Any
    """The method's own."""


@dataclass(frozen=True)
class Resampled(sd.Stepper):
    """A method that takes each stretch of j steps back and walks it again, r - 1 times:  x_above = r_t x + sqrt(v_t) z  as the forward process has it.

    Without a constraint and with exact moves it changes no law.  Steps that are left over at the end are walked once; the published schedule also walks the
    first stretch once.

    Arguments:
        stepper: any method without calls before its first step; it begins afresh after each jump.
        jump_length: j >= 1.
        resamplings: r >= 1.

    Raises:
        ValueError: another method, an argument out of range; at the start of a solve, a walk of fewer than j steps.
    """

    stepper: sd.Stepper
    jump_length: int = 10
    resamplings: int = 10
    one_time: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for name in ("jump_length", "resamplings"):
            object.__setattr__(self, name, whole(name, getattr(self, name), 1))
        if (self.jump_length + 1) * self.resamplings > CONSTRAINT // PASS:
            raise ValueError(f"jump_length={self.jump_length} and resamplings={self.resamplings} walk too many steps at once; expected a product below 1000.")
        if self.stepper.facts.start or self.stepper.own_grid is not None:
            raise ValueError(f"{type(self.stepper).__name__} cannot begin in the middle of its walk, as resampling has it; expected a sampler, as in method='ancestral'.")

    @cached_property
    def facts(self) -> Facts:  # type: ignore[override]
        inner = self.stepper.facts
        return Facts(evals=inner.evals * self.resamplings, weak={"additive": 1.0}, needs=frozenset({"score"}), reference="Lugmayr et al. 2022")

    @property
    def default_grid(self) -> str | None:  # type: ignore[override]
        return self.stepper.default_grid

    @property
    def couples_rows(self) -> bool:
        return self.stepper.couples_rows

    def compiled(self, compile: Callable[[sd.Stepper], sd.Stepper]) -> sd.Stepper:
        """Which steps are walked again is not a matter of tensors: the method's own are compiled."""
        return replace(self, stepper=self.stepper.compiled(compile))

    def constrained(self, step: Callable[[sd.Stepper], sd.Stepper], correction: Callable[[Any], Any]) -> sd.Stepper:
        """After every move of the method, those that are made again too."""
        return replace(self, stepper=self.stepper.constrained(step, correction))

    def check_grid(self, process: sd.Process, ts: Sequence[float]) -> None:
        self.stepper.check_grid(process, ts)
        if len(ts) <= self.jump_length:
            raise ValueError(f"jump_length={self.jump_length} is longer than the walk of {len(ts) - 1} steps, so that nothing is resampled; expected less, or more steps.")

    def init(self, problem: sd.ReverseSDE, x: Tensor, t: Any) -> Stretch:
        return Stretch((t,), self.stepper.init(self._walked(problem), x, t))

    def step(self, problem: sd.ReverseSDE, x: Tensor, t0: Any, t1: Any, noise: StepNoise, carry: Stretch) -> Step:
        walked = self._walked(problem)
        step, times = self.stepper.step(walked, x, t0, t1, noise, carry.carry), (*carry.times, t1)
        if len(times) <= self.jump_length:
            return Step(step.x, carry=Stretch(times, step.carry))
        numbers = iter(range(1, CONSTRAINT // PASS))
        for _ in range(1, self.resamplings):
            r, v = transition(problem.process, times[0], t1)
            x = r * step.x + v**0.5 * Again(noise, next(numbers)).normal()
            step = Step(x, carry=self.stepper.init(walked, x, times[0]))
            for here, there in pairwise(times):
                step = self.stepper.step(walked, step.x, here, there, Again(noise, next(numbers)), step.carry)
        return Step(step.x, carry=Stretch((t1,), step.carry))

    def stats(self, carry: Stretch) -> dict[str, Tensor]:
        return self.stepper.stats(carry.carry)

    def _walked(self, problem: sd.ReverseSDE) -> Any:
        return problem if self.stepper.facts.kinds else problem.probability_flow()


class Again(SeededStep):
    """The noise of a move that is made again: independent of that of the moves before."""

    __slots__ = ("_first", "_number")

    def __init__(self, first: StepNoise, number: int) -> None:
        self._first, self._number = first, number

    def normal(self, slot: int = 0) -> Tensor:
        """Standard normals."""
        return self._first.normal(slot + self._number * PASS)
