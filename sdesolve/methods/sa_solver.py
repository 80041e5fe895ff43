"""SA-Solver: stochastic Adams methods, explicit and implicit, at a noise level of one's choice.  [Xue et al. 2023, arXiv 2309.05019]"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from .._arrays import Number
from .._errors import as_float
from ..problems import ScoreProblem
from ..processes import Process
from .base import Facts
from .linear import History, LinearSampler, Row, adams, exponential_facts, half_log_snr, kept, outputs_of


@dataclass(frozen=True)
class SASolver(LinearSampler):
    """SA-Solver.  With P a polynomial in lambda through outputs E[x_0 | x], and h the step in lambda,

        x1 = (sigma_1/sigma_0) e^(-tau^2 h) x + (1 + tau^2) alpha_1 int e^((1 + tau^2)(u - lambda_1)) P(u) du + sigma_1 sqrt(1 - e^(-2 tau^2 h)) z.

    [Xue et al. 2023, eq. 14 to 17, algorithm 1].  The predictor's P goes through the last ``predictor_order`` outputs.  The corrector's goes through
    the output at the predicted state too, which is kept for the next step, with the same z: so one call a step.  As everything is linear in the
    outputs, the corrector is part of the next step's row; states between steps are predicted ones, and the last has no corrector, as published.
    Weak order 2 whatever the orders asked for beyond that, as the noise of a step is known by its sum alone; with tau = 0 order 3.

    Arguments:
        predictor_order: outputs of the predictor, 1 to 4, the highest that is stable with 20 steps or 50.
        corrector_order: outputs of the corrector, the new one included, up to 8, from 5 on no better; 0 for no corrector.
            Published: 3 and 4, and 2 and 2 where guidance is strong; with 12 calls or fewer 3 and 4 err three times as much on mixtures, so 2 and 2 are the defaults.
        tau: noise level >= 0: 0 is the probability flow, 1 the reverse SDE; or a function of t, a float, held constant over each step.
        window: (low, high) of sigma/alpha outside of which tau is 0, as published for EDM: (0.05, 50).  None: everywhere.

    Raises:
        ValueError: an argument out of range.
    """

    predictor_order: int = 2
    corrector_order: int = 2
    tau: float | Callable[[Number], Number] = 1.0
    window: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "predictor_order", outputs_of("predictor_order", self.predictor_order))
        object.__setattr__(self, "corrector_order", outputs_of("corrector_order", self.corrector_order, 0, 8))
        tau = as_float(self.tau)
        if not callable(self.tau) and (tau is None or not 0 <= tau < math.inf):
            raise ValueError(f"tau={self.tau!r}; expected a number >= 0 or a function of t, as in tau=1.0.")
        object.__setattr__(self, "tau", self.tau if tau is None else tau)
        if self.window is not None:
            object.__setattr__(self, "window", _window(self.window))

    @cached_property
    def facts(self) -> Facts:  # type: ignore[override]
        p, c = self.predictor_order, self.corrector_order
        order = min(p + 1, c, 3) if c else min(p, 2)  # the first step has one output, and a corrector of two
        eta = 1.0 if self.tau == 1 and self.window is None else float(self.tau != 0) * 0.5
        return exponential_facts(order, min(order, 2.0), eta, "Xue et al. 2023")

    def init(self, problem: ScoreProblem, x: Tensor, t: Number) -> History:
        self._eta(problem.process, t)  # what a function gives is looked at before the first call
        return super().init(problem, x, t)

    @property
    def memory(self) -> int:
        return max(self.predictor_order + bool(self.corrector_order), self.corrector_order)

    def row(self, process: Process, times: Sequence[Number], t1: Number) -> Row:
        p, c, eta = self.predictor_order, self.corrector_order, self._eta(process, times[0])
        on_x, on_noise = kept(process, times[0], t1, eta)
        row = Row(on_x, adams(process, times[0], t1, times[:p], eta), on_noise)
        if not c or len(times) == 1:
            return row
        t, *past = times
        eta = self._eta(process, past[0])
        return row.corrected(adams(process, past[0], t, times[:c], eta), adams(process, past[0], t, past[:p], eta))

    def _eta(self, process: Process, t: Number) -> Number:
        """tau^2 on the step from t."""
        tau = _at(self.tau, t) if callable(self.tau) else self.tau
        if self.window is None:
            return tau * tau
        level, (low, high) = -half_log_snr(process, t), self.window
        return ((level >= math.log(low)) & (level <= math.log(high))) * tau * tau


def _at(tau: Callable[[Number], Number], t: Number) -> Number:
    """tau(t), of each time by itself, as a function written for floats has it."""
    if torch.compiler.is_compiling():
        return tau(t)
    if isinstance(t, Tensor):
        return t.new_tensor([_at(tau, time) for time in t.reshape(-1).tolist()]).reshape(t.shape)
    given = tau(t)
    value = as_float(given.item() if isinstance(given, Tensor) and given.dim() == 0 else given)
    if value is None or not 0 <= value < math.inf:
        raise ValueError(f"tau({t:g}) is {given!r}; expected a function of t that gives numbers >= 0, as in tau=lambda t: 1.0 if t < 0.8 else 0.0.")
    return value


def _window(window: object) -> tuple[float, float]:
    """(low, high) if it is an interval of sigma/alpha."""
    try:
        low, high = (as_float(end) for end in window)  # type: ignore[attr-defined]
    except (TypeError, ValueError):
        low = high = None
    if low is None or high is None or not 0 < low < high:
        raise ValueError(f"window={window!r}; expected two levels of sigma/alpha, 0 < low < high, as in window=(0.05, 50.0).")
    return low, high
