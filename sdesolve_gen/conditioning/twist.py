"""The likelihood of a measurement as a reward for weighted particles.  [Wu et al. 2023, twisted diffusion sampler]

    ln psi(D, t) = -1/2 r (s^2 I + v_t A A^T)^-1 r,      r = y - A D,      v_t = sigma^2 tau^2/(alpha^2 tau^2 + sigma^2),

with D = E[x_0 | x_t]: what y would have for a likelihood if x_0 given x_t were N(D, v_t I), as it is for data N(0, tau^2 I).  At t = 0 it is the
likelihood itself, with its normalisation, so that the particles' limit is the posterior whatever was guessed on the way, and their
``log_evidence`` is ln p(y).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

import sdesolve as sd

from ._numbers import number, whole
from .measurement import Measurement


def twist(measurement: Measurement, process: sd.Process, particles: int, data_std: float = 1.0) -> Twist:
    """The reward that :func:`sdesolve.smc` takes to draw from the posterior of a measurement.

        out = sd.smc(p.reverse(score), p.prior((B, K, *event)), twist(measurement, p, K))

    Arguments:
        measurement: y with B rows, or one for all, and Gaussian noise of noise_std > 0.
        process: the forward process of the particles.
        particles: K, of each row; ``smc`` refuses another number.
        data_std: tau > 0, the standard deviation of the data; a guess that changes how even the weights are, and not their limit.

    Raises:
        ValueError: a measurement without noise; data_std out of range.
    """
    noise, tau = measurement.noise_std, number("data_std", data_std, 0.0, above=True)
    particles = whole("particles", particles, 2)
    measurement.require("smc")
    if not noise > 0:
        raise ValueError(f"noise_std={noise}; expected a number > 0: particles all have weight 0 under a measurement without noise, as in noise_std=0.01.")
    return Twist(measurement, process, particles, tau)


@dataclass(frozen=True, eq=False)
class Twist:
    """ln psi, made by :func:`twist`."""

    measurement: Measurement
    process: sd.Process
    particles: int
    tau: float

    def __call__(self, x0: Tensor, t: float) -> Tensor:
        y, operator, variance = self.measurement.y, self.measurement.operator, self.measurement.noise_std**2
        if len(x0) != self.particles * len(y) and (len(y) > 1 or len(x0) % self.particles):
            raise ValueError(f"the twist is for {self.particles} particles of each of {len(y)} measurements, and there are {len(x0)} in all; expected as many.")
        residual = (y.repeat_interleave(self.particles, 0) if len(y) > 1 else y) - operator.forward(x0)
        if t == 0:
            return -0.5 * residual.square().flatten(1).sum(1) / variance - 0.5 * math.prod(operator.measured) * math.log(2 * math.pi * variance)
        alpha, sigma = float(self.process.alpha(t)), float(self.process.sigma(t))
        spread = (sigma * self.tau) ** 2 / ((alpha * self.tau) ** 2 + sigma**2)
        weighted = operator.gram_solve(residual.detach(), variance, spread)  # held while the quadratic form is differentiated
        return 0.5 * (residual.detach() * weighted).flatten(1).sum(1) - (residual * weighted).flatten(1).sum(1)
