"""The one ODE of a likelihood, and how its steps are chosen.

Time is the log signal-to-noise ratio, in which every process and every scale of data gives a smooth integrand, with its poles pi away from the real axis
for Gaussian data; and the state is x in units of the spread that Gaussian data would have there, so that what a Gaussian does is integrated exactly and
the flow of other data dies away at both ends.

Steps are chosen for ln p.  An error e of x at time t changes it by <score(x, t), e> to first order, because what is left of the solve computes ln p_t of
where it stands: the score is the adjoint of the flow, and known.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ._arrays import Number, bcast, plus, row_mean
from .control import Control
from .divergence import Estimator, dot
from .methods import Step, StepNoise
from .methods.runge_kutta import WithIntegrals
from .problems import ProbabilityFlow


@dataclass(frozen=True)
class Weighed(WithIntegrals):
    """The method with what its error does to ln p in the last column of it."""

    def step(self, problem: Any, x: Tensor, t0: Number, t1: Number, noise: StepNoise | None, carry: Any) -> Step:
        step = super().step(problem, x, t0, t1, noise, carry)
        return step._replace(error=problem.weighed(step.x, t1, step.carry, step.error))


@dataclass(frozen=True)
class PartsControl(Control):
    """What the error of a step does to ln p, in nats per dimension, and that of x, to which ln p may be blind here and which grows on the way: the larger, in
    units of the tolerance."""

    event: int = 0

    def size(self, value: Tensor, *states: Tensor) -> Tensor:
        path = super().size(value[:, : self.event], *(state[:, : self.event] for state in states))
        return torch.maximum(path, value[:, -1].double() / (self.atol + self.rtol))


class LikelihoodFlow:
    """The probability flow in log-SNR time s, for a state (B, d + P + 2):

        y = x/n, flattened;     int div (dy/ds) ds / d by each of the P probes;     int |spread| ds / d;     the number of the row, a constant,

    where n^2 = sigma^2 + alpha^2 c^2 is the variance that x would have if the data were Gaussian with variance c^2, the mean square of the row's numbers:

        dy/ds = k (y + n score(n y, t)),      div (dx/ds) = div (dy/ds) + d (d ln n/ds),      k = sigma^2 / (2 n^2).

    Where one probe alone says how far it may be off, the integral of that is no less than the standard deviation of the integral.
    """

    def __init__(self, problem: ProbabilityFlow, estimator: Estimator, x: Tensor) -> None:
        self._score, self._estimator, self._event = problem.score, estimator, x.shape[1:]
        self.process = problem.process
        self.dimensions = x[0].numel()
        square = row_mean(x.double().square())
        self._square = torch.where(square > 0, square, 1.0)

    def state(self, x: Tensor, log_snr: float) -> Tensor:
        """The state of all rows, at x, before the first step."""
        z = x.new_zeros(len(x), self.dimensions + self._estimator.parts + 2)
        z[:, -1] = torch.arange(len(x))
        z[:, : self.dimensions] = (x / bcast(self.spread(z, log_snr), x)).reshape(len(x), -1)
        return z

    def unpack(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """y (B, *event), and in nats (P, B) the integral by each probe and (B,) its spread, of a state or a slope."""
        integrals = self.dimensions * z[:, self.dimensions : -1].double().T
        return z[:, : self.dimensions].reshape(-1, *self._event), integrals[:-1], integrals[-1]

    def spread(self, z: Tensor, log_snr: Number) -> Tensor:
        """n, (B,)."""
        return self._levels(z, log_snr)[1]

    def longest(self, step: float, z: Tensor, log_snr: Tensor) -> Tensor:
        """(B,) what ``step`` is where the pole of a Gaussian of variance c^2, at log-SNR -ln c^2 + pi i, is farther away than pi: data have few
        directions that are much wider than their own mean square, and many that are thinner."""
        beyond = (-self._square[z[:, -1].long()].log() - log_snr).clamp(min=0)
        return step * torch.hypot(torch.ones_like(beyond), beyond / math.pi)

    def drift(self, z: Tensor, log_snr: Tensor) -> Tensor:
        y, n, on_y, on_output, t = self._at(z, log_snr)
        found = self._estimator.rows(z[:, -1].long())(lambda x: self._score.model_output(x, t), bcast(n, y) * y)
        slope = plus(bcast(on_y, y) * y, on_output, found.value).reshape(len(y), -1)
        integral = on_y + n * on_output / self.dimensions * found.parts
        spread = torch.zeros_like(n) if found.spread is None else (n * on_output / self.dimensions).abs() * found.spread
        return torch.cat([slope, torch.stack([*integral, spread, torch.zeros_like(spread)], 1).to(slope)], 1)

    def path(self, z: Tensor, log_snr: Tensor) -> Tensor:
        """The drift of y alone: no pullback, and no integral."""
        y, n, on_y, on_output, t = self._at(z, log_snr)
        slope = plus(bcast(on_y, y) * y, on_output, self._score.model_output(bcast(n, y) * y, t)).reshape(len(y), -1)
        return torch.cat([slope, slope.new_zeros(len(z), z.shape[1] - self.dimensions)], 1)

    def weighed(self, z: Tensor, log_snr: Tensor, slope: Tensor, error: Tensor) -> Tensor:
        """An ``error`` made in arriving at z, where the slope is known, with what it does to ln p, in nats per dimension, in the last column:
        |<score, error of x>| + |error of the integral|."""
        of_y, of_integral, _ = self.unpack(error)
        score, _ = self._scaled_score(z, log_snr, slope)
        effect = (dot(score, of_y).abs() + of_integral.mean(0).abs()) / self.dimensions
        return torch.cat([error[:, :-1], effect[:, None].to(error)], 1)

    def truncation(self, z: Tensor, log_snr: Tensor, slope: Tensor) -> Tensor:
        """(B,)  ln p_t(x) - ln p_0(x)  to first order in sigma^2.

        x/alpha has the law of the data after heat has spread for tau = sigma^2/alpha^2:  d ln p/d tau = (div score + |score|^2) / 2.
        """
        t, _, k = self._levels(z, log_snr)
        score, divergence = self._scaled_score(z, log_snr, slope)
        y, _, _ = self.unpack(z)
        shrunk = self.process.log_alpha_(t)
        return k * (divergence + dot(score, score)) + torch.expm1(-shrunk) * dot(y, score) - self.dimensions * shrunk  # type: ignore[arg-type]

    def terminal(self, x: Tensor) -> Tensor:
        """(B,)  ln p_T(x) - ln prior(x)  to first order in alpha(T); one network call.

        With m = E[x_0 | x_T = x], which hardly depends on x there,  p_T(x) = N(x; 0, sigma^2) exp(<x, alpha m>/sigma^2 - |alpha m|^2/(2 sigma^2)).
        """
        process, end = self.process, self.process.T
        alpha, sigma = process.alpha_(end), process.sigma_(end)
        mean, z = alpha * self._score.denoise(x, end), (x / sigma, x / process.prior_std)
        wider = 0.5 * (dot(z[1], z[1]) - dot(z[0], z[0])) - self.dimensions * math.log(sigma / process.prior_std)
        return wider + (dot(x, mean) - 0.5 * dot(mean, mean)) / sigma**2

    def _scaled_score(self, z: Tensor, log_snr: Tensor, slope: Tensor) -> tuple[Tensor, Tensor]:
        """n score and n^2 div score at z, out of the slope there."""
        _, _, k = self._levels(z, log_snr)
        y, _, _ = self.unpack(z)
        m, integral, _ = self.unpack(slope)
        return bcast(1 / k, y) * m - y, integral.mean(0) / k - self.dimensions

    def _at(self, z: Tensor, log_snr: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """y, n and the time, and the coefficients of  dy/ds = on_y y + on_output (what the network says), (B,) float64."""
        t, n, k = self._levels(z, log_snr)
        on_x, on_output, _ = self._score.linear(t)
        on_y = k if on_x is None else k * (1 + n**2 * on_x)
        return self.unpack(z)[0], n, on_y, k * n if on_output is None else k * n * on_output, t

    def _levels(self, z: Tensor, log_snr: Number) -> tuple[Tensor, Tensor, Tensor]:
        """t, n and k of each row, float64."""
        rows = self._square[z[:, -1].long()]
        t = self.process.log_snr_inverse_(log_snr + torch.zeros_like(rows))
        noise = self.process.sigma_(t) ** 2
        n2 = noise + self.process.alpha_(t) ** 2 * rows
        return t, n2.sqrt(), 0.5 * noise / n2  # type: ignore[return-value]
