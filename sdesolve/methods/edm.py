"""The sampler of Karras et al. 2022: Heun's method in sigma/alpha, with noise added before each step where it is asked for."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from .._arrays import Number, bcast, plus, xp
from .._errors import as_float
from ..problems import ScoreProblem
from ..processes import Process
from .base import Facts, Step, StepNoise, Stepper

_RHO = 7.0  # of Karras's grid, along which the churn is spread
_AMPLIFIED = 1.5  # at most, what the second slope makes of a change of E[x_0 | x] over a step: (s - s_1) w/s_1, which Heun's rule has up to a factor 4 in s


@dataclass(frozen=True)
class EDMSampler(Stepper):
    """Heun's method with churn, in y = x/alpha and s = sigma/alpha, where the flow is  dy/ds = E[eps | x].  [Karras et al. 2022, algorithm 2]

        y^ = y_0 + sqrt(s^2 - s_0^2) s_noise z,         s = s_0 (1 + gamma),    d = E[eps | y^ at s],
        y' = y^ + (s_1 - s) d,                          d' = E[eps | y' at s_1],
        y_1 = y^ + (s_1 - s) ((1 - w) d + w d'),        w = 1/2.

    Where a step spans more than a factor 4 in s, as in a walk of few steps, w = 3/2 s_1/(s - s_1) is less than 1/2: d' has the error of y' over s_1, which
    Heun's rule would make s/(2 s_1) times as large.

    Order 2, two calls a step; exact for a single data point.  Without churn it is the probability flow.  Churn moves the state up to noise that it
    has not seen, which the step then removes: the marginals stay, so the weak order is 2 too, and errors made before are forgotten, those of the
    network among them.  The published last step to sigma = 0 is ``denoise=True``.

    Arguments:
        s_churn: S_churn >= 0, the noise of the whole walk: gamma = min(S_churn/n, sqrt(2) - 1) on Karras's grid of n steps over the problem's
            interval, and on any other grid the same amount for the same stretch of s^(1/7).  Published: 30 to 80.
        s_tmin, s_tmax: churn only where s_tmin <= s_0 <= s_tmax, in units of sigma/alpha.
        s_noise: S_noise > 0, factor on the noise added; other than 1 it makes up for what a network removes too much, and is a bias with an exact score.
        published: w = 1/2 in every step, and gamma = min(S_churn/N, sqrt(2) - 1) for the N = n + 1 noise levels, to reproduce published numbers, with
            ``denoise=True`` and ``grid="karras"``: N levels are ``steps=N - 1`` and 2 N - 1 calls.  That last step has no churn, as where sigma_min < s_tmin,
            and no other goes beyond the noisiest level of the process.

    Raises:
        ValueError: an argument out of range.
    """

    s_churn: float = 0.0
    s_tmin: float = 0.0
    s_tmax: float = math.inf
    s_noise: float = 1.0
    published: bool = False

    def __post_init__(self) -> None:
        for name, example in (("s_churn", 40.0), ("s_tmin", 0.05), ("s_tmax", 50.0), ("s_noise", 1.003)):
            value = as_float(getattr(self, name))
            if value is None or not value >= 0 or (name == "s_noise" and not 0 < value < math.inf):
                raise ValueError(f"{name}={getattr(self, name)!r}; expected a {'finite number >' if name == 's_noise' else 'number >='} 0, as in {name}={example}.")
            object.__setattr__(self, name, value)
        if not self.s_tmin < self.s_tmax:
            raise ValueError(f"s_tmin={self.s_tmin} and s_tmax={self.s_tmax} leave nothing between them; expected s_tmin < s_tmax, as in s_tmin=0.05, s_tmax=50.")

    @cached_property
    def facts(self) -> Facts:  # type: ignore[override]
        facts = Facts(evals=2, needs=frozenset({"score"}), reference="Karras et al. 2022")
        return facts._replace(weak={"additive": 2.0}) if self.s_churn else facts._replace(ode=2)

    def step(self, problem: ScoreProblem, x: Tensor, t0: Number, t1: Number, noise: StepNoise | None, carry: None) -> Step:
        p = problem.process
        if self.s_churn and noise:
            t0, x = self._churned(problem, x, t0, t1, noise)
        s, s1 = _level(p, t0), _level(p, t1)
        ratio, h = p.alpha_(t1) / p.alpha_(t0), p.alpha_(t1) * (s1 - s)
        share = 0.5 if self.published else -1 / _at_most((s1 - s) / (_AMPLIFIED * s1), -2.0)
        d = problem.score.epsilon(x, t0)
        x = bcast(ratio, x) * x
        later = problem.score.epsilon(plus(x, h, d), t1)
        return Step(plus(plus(x, h * (1 - share), d), h * share, later))

    def _churned(self, problem: ScoreProblem, x: Tensor, t0: Number, t1: Number, noise: StepNoise) -> tuple[Number, Tensor]:
        """The time of s, and the state there."""
        p, s0 = problem.process, _level(problem.process, t0)
        first, last, here, there = (_level(p, t) ** (1 / _RHO) for t in (*problem.interval, t0, t1))
        levels = (first - last) / (here - there) + self.published
        gamma = _at_most(self.s_churn / levels, math.sqrt(2) - 1)
        gamma = _at_most(gamma, _level(p, p.T) / s0 - 1)  # beyond T there is no score
        gamma = ((gamma > 0) & (s0 >= self.s_tmin) & (s0 <= self.s_tmax)) * gamma
        lifted = p.log_snr_inverse_(-2 * xp(s0).log(s0 * (1 + gamma)))
        t = t0 + (gamma > 0) * (lifted - t0)  # t0 itself, to the last bit, where nothing is added
        alpha = p.alpha_(t)
        kick = alpha * s0 * xp(s0).sqrt(gamma * (2 + gamma)) * self.s_noise
        return t, plus(bcast(alpha / p.alpha_(t0), x) * x, kick, noise.normal())


def _level(process: Process, t: Number) -> Number:
    """sigma/alpha."""
    return process.sigma_(t) / process.alpha_(t)


def _at_most(value: Number, bound: Number) -> Number:
    return value.clamp(max=bound) if isinstance(value, Tensor) else min(value, bound)
