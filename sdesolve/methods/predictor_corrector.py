"""Predictor-corrector sampling: any stepper followed by any corrector."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from torch import Tensor

from .._arrays import Number
from .._errors import integer
from ..correctors import Corrector
from ..grids import Grid
from ..noise import PART
from ..problems import Problem, ReverseSDE, ScoreProblem
from ..processes import Process
from . import moved
from .base import Facts, Step, StepNoise, Stepper


@dataclass(frozen=True)
class PredictorCorrector(Stepper):
    """A predictor's step from t0 to t1, then ``corrector_steps`` corrector steps at t1.  [Song et al. 2021, algorithm 1]

    The predictor follows the drift in time, the corrector repairs the marginal that it missed.  As the steps shrink, the
    limit is the corrector's stationary law: for ``langevin``, right to O(snr^2).  To that the samples tend at order 1, with a predictor or without, and so to p_t at
    none: the weak order is declared as 0.

    A multistep predictor (``dpmpp_2m``, ``er_sde``, ...) keeps its memory, though the corrector has moved the states that its outputs belong to: on mixtures the
    samples err a half to a tenth as much as where it starts afresh in each step, as other methods with a carry do.

    Arguments:
        predictor: any stepper; an ODE method predicts along the probability flow, a solver card on its own grid; None for a corrector-only sampler.
        corrector: any corrector.
        corrector_steps: corrector steps after each predictor step, >= 0.
    """

    predictor: Stepper | None
    corrector: Corrector
    corrector_steps: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "corrector_steps", integer("corrector_steps", self.corrector_steps, 0, example=1))

    @cached_property
    def facts(self) -> Facts:  # type: ignore[override]
        predictor = moved.facts(self.predictor) if self.predictor else Facts(evals=0)
        return Facts(
            evals=predictor.evals + self.corrector.calls(self.corrector_steps),
            start=predictor.start,
            weak={"additive": 0.0},
            needs=frozenset({"score"}),
            reference="Song et al. 2021",
        )

    def compiled(self, compile: Callable[[Stepper], Stepper]) -> Stepper:
        """As a whole, unless the predictor cannot be."""
        if self.predictor is None or not self.predictor.one_time:
            return compile(self)
        return replace(self, predictor=self.predictor.compiled(compile))

    def constrained(self, step: Callable[[Stepper], Stepper], correction: Callable[[Corrector], Corrector]) -> Stepper:
        """After the predictor's step, and after every corrector step."""
        predictor = self.predictor and self.predictor.constrained(step, correction)
        return replace(self, predictor=predictor, corrector=correction(self.corrector))

    def check_grid(self, process: Process, ts: Sequence[float]) -> None:
        if self.predictor:
            self.predictor.check_grid(process, ts)

    def init(self, problem: ReverseSDE, x: Tensor, t: Number) -> Any:
        past = moved.init(self.predictor, self._predicted(problem), x, t) if self.predictor else None
        return _carried(past, self.corrector.init(x))

    @property
    def own_grid(self) -> Grid | None:  # type: ignore[override]
        """The predictor's."""
        return self.predictor.own_grid if self.predictor else None

    @property
    def one_time(self) -> bool:  # type: ignore[override]
        return self.predictor is not None and self.predictor.one_time

    @property
    def couples_rows(self) -> bool:
        return self.corrector.couples_rows

    def step(self, problem: ReverseSDE, x: Tensor, t0: Number, t1: Number, noise: StepNoise, carry: Any) -> Step:
        past, corrected = carry or (None, None)
        if self.predictor:
            step = moved.step(self.predictor, self._predicted(problem), x, t0, t1, noise, past)
            x, past = step.x, step.carry
        x, corrected = self.corrector.correct(problem, x, t1, self.corrector_steps, lambda k, part: noise.normal(1 + k + part * PART), corrected)
        return Step(x, carry=_carried(past, corrected))

    def stats(self, carry: Any) -> dict[str, Tensor]:
        return self.corrector.told(carry[1], self.corrector_steps) if carry else {}

    def _predicted(self, problem: ReverseSDE) -> Problem | ScoreProblem:
        is_ode_method = self.predictor is not None and not self.predictor.facts.kinds
        return problem.probability_flow() if is_ode_method else problem


def _carried(past: Any, corrected: Any) -> Any:
    """What predictor and corrector hand to the next step; None where neither hands on anything."""
    return None if past is None and corrected is None else (past, corrected)
