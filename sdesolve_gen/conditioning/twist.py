"""The likelihood of a measurement as a reward for weighted particles.  [Wu et al. 2023, twisted diffusion sampler]

    ln psi(D, t) = -1/2 r (s^2 I + v_t A A^T)^-1 r,      r = y - A D,      v_t = sigma^2 tau^2/(alpha^2 tau^2 + sigma^2),

with D = E[x_0 | x_t]: what y would have for a likelihood if x_0 given x_t were N(D, v_t I), as it is for data N(0, tau^2 I).  At t = 0 it is the
likelihood itself, with its normalisation, so that the particles' limit is the posterior whatever was guessed on the way, and their
``log_evidence`` is ln p(y).
"""

from __future__ import annotations

import math

from torch import Tensor

import sdesolve as sd

from ._numbers import number, whole
from .measurement import Measurement


def twist(measurement: Measurement, process: sd.Process, particles: int, data_std: float = 1.0) -> sd.Reward:
    """The reward that :func:`sdesolve.smc` takes to draw from the posterior of a measurement.

        out = sd.smc(p.reverse(score), p.prior((B, K, *event)), twist(measurement, p, K))

    Arguments:
        measurement: y with B rows, or one for all, and Gaussian noise of noise_std > 0.
        process: the forward process of the particles.
        particles: K, of each row.
        data_std: tau > 0, the standard deviation of the data; a guess that changes how even the weights are, and not their limit.

    Raises:
        ValueError: a measurement without noise; data_std out of range.
    """
    noise, tau = measurement.noise_std, number("data_std", data_std, 0.0, above=True)
    particles = whole("particles", particles, 2)
    measurement.require("smc")
    if not noise > 0:
        raise ValueError(f"noise_std={noise}; expected a number > 0: particles all have weight 0 under a measurement without noise, as in noise_std=0.01.")
    y = measurement.y.repeat_interleave(particles, 0) if len(measurement.y) > 1 else measurement.y
    normaliser = 0.5 * math.prod(measurement.operator.measured) * math.log(2 * math.pi * noise**2)

    def reward(x0: Tensor, t: float) -> Tensor:
        if len(x0) != particles * len(measurement.y) and (len(measurement.y) > 1 or len(x0) % particles):
            raise ValueError(f"the twist is for {particles} particles of each of {len(measurement.y)} measurements, and there are {len(x0)} in all; expected as many.")
        residual = y - measurement.operator.forward(x0)
        if t == 0:
            return -0.5 * residual.square().flatten(1).sum(1) / noise**2 - normaliser
        alpha, sigma = float(process.alpha(t)), float(process.sigma(t))
        spread = (sigma * tau) ** 2 / ((alpha * tau) ** 2 + sigma**2)
        weighted = measurement.operator.gram_solve(residual.detach(), noise**2, spread)  # held while the quadratic form is differentiated
        return 0.5 * (residual.detach() * weighted).flatten(1).sum(1) - (residual * weighted).flatten(1).sum(1)

    return reward
