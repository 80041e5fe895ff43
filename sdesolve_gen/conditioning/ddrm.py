"""DDRM: DDIM in the basis of the operator's singular vectors.  [Kawar et al. 2022, arXiv 2201.11793, eq. 7 and 8]

With A = U diag(s) V^T, coordinates of V^T, ybar = U^T y/s and tau = noise_std/s, the noise level S = sigma/alpha, and u = x/alpha, a step to t1 with noise
level S1 from the denoised D = E[x_0 | x at t0] is, coordinate by coordinate,

    not measured (s = 0)        u1 = D + sqrt(1 - eta^2) (S1/S0) (u0 - D) + eta S1 z
    noisier than x (S1 < tau)   u1 = D + sqrt(1 - eta^2) (S1/tau) (ybar - D) + eta S1 z
    less noisy (S1 >= tau)      u1 = (1 - eta_b) D + eta_b ybar + sqrt(S1^2 - eta_b^2 tau^2) z
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

import sdesolve as sd
from sdesolve.methods import Facts, Step, StepNoise

from ._numbers import number
from .measurement import Measurement
from .methods import Conditioning
from .operator import SVD
from .projection import shaped


def ddrm(score: sd.Score, measurement: Measurement, eta: float = 0.85, eta_b: float = 1.0) -> Conditioning:
    """DDRM: for every operator with a singular value decomposition, with or without noise, in few steps (published: 20).

    One call a step, no gradient of the network.  It is a sampler by itself and walks in the place of ``method="ddim"``.  It is exact for no law but a single
    point.  The noise eta S1 z is not DDIM's: its share does not shrink with the step, and takes the place of noise that x has and D does not know of.  So
    the draws are too narrow at eta > 0 whatever the number of steps, by a quarter in variance at 0.85 where y says nothing, and by a half where y has
    noise; at eta = 0 the rest hears of y as late as in replacement.  To be taken for one good reconstruction in few steps, not for its spread.
    With noise and eta_b = 1 it is step by step DDNM+ of Wang et al. 2023 (eq. 17 and 51).
    The first state is the prior's draw instead of eq. 7, from which it differs by y in units of sigma(T).

    Arguments:
        score: of the model, unconditional; it is not changed.
        measurement: y = A x_0 + noise_std n.
        eta: 0 <= eta <= 1, noise of the coordinates that are not measured, and of those measured with more noise than x has; published: 0.85.
        eta_b: 0 <= eta_b <= 1, how much of y replaces what the model says where y is less noisy; published: 1.

    Raises:
        ValueError: an operator without ``svd()``; noise other than Gaussian; eta or eta_b out of range.
    """
    measurement.require("ddrm")
    svd = measurement.operator.svd()
    if svd is None:
        raise ValueError(
            f"{type(measurement.operator).__name__} has no singular value decomposition, in whose basis DDRM works; expected another method of conditioning, as in "
            "method='pigdm'."
        )
    eta, eta_b = number("eta", eta, 0, most=1), number("eta_b", eta_b, 0, most=1)
    values = svd.values.to(measurement.y)
    sampler = DDRM(measurement, svd, svd.observe(measurement.y) / values, measurement.noise_std / values, eta, eta_b)

    def method(given: str | sd.Stepper = "ddim", **options: Any) -> sd.Stepper:
        if given != "ddim" or options:
            options_too = f" with {options}" if options else ""
            raise ValueError(
                f"DDRM is DDIM in another basis and no other method, and what is to solve here is {given!r}{options_too}; expected 'ddim', and eta among DDRM's own options."
            )
        return sampler

    return Conditioning(score, None if measurement.noise_std else sampler.last, method)


@dataclass(frozen=True, eq=False)
class DDRM(sd.Stepper):
    """The sampler of :func:`ddrm`, of order 1.

    Arguments:
        measurement: what it draws by.
        svd: of the operator.
        known: ybar, (B, k) or (1, k).
        spread: tau, (k,).
        eta, eta_b: see :func:`ddrm`.
    """

    measurement: Measurement
    svd: SVD
    known: Tensor
    spread: Tensor
    eta: float = 0.85
    eta_b: float = 1.0

    @cached_property
    def facts(self) -> Facts:  # type: ignore[override]
        return Facts(evals=1, weak={"additive": 1.0}, needs=frozenset({"score"}), reference="Kawar et al. 2022")

    def init(self, problem: sd.ReverseSDE, x: Tensor, t: Any) -> None:
        self.measurement.check_state(x)

    def step(self, problem: sd.ReverseSDE, x: Tensor, t0: Any, t1: Any, noise: StepNoise, carry: None) -> Step:
        p = problem.process
        alpha0, alpha1 = (shaped(p.alpha(t), x) for t in (t0, t1))
        level0, level1 = (p.sigma(t) / p.alpha(t) for t in (t0, t1))
        d, z = problem.score.denoise(x, t0), noise.normal()
        rest = (1 - self.eta**2) ** 0.5
        u = d + shaped(rest * level1 / level0, x) * (x / alpha0 - d) + shaped(self.eta * level1, x) * z
        mine = self._measured(self.svd.analyse(d), self.svd.analyse(z), level1)
        return Step(alpha1 * (u + self.svd.synthesise(mine - self.svd.analyse(u))))

    def _measured(self, d: Tensor, z: Tensor, level: Tensor) -> Tensor:
        """The measured coordinates, (B, k), at a noise level."""
        s, tau, known = shaped(level, d), self.spread.to(d), sd.of_rows(self.known, d).to(d)
        noisier = d + (1 - self.eta**2) ** 0.5 * s / tau.clamp_min(torch.finfo(d.dtype).tiny) * (known - d) + self.eta * s * z
        better = (1 - self.eta_b) * d + self.eta_b * known + (s.square() - (self.eta_b * tau).square()).clamp(min=0).sqrt() * z
        return torch.where(s < tau, noisier, better)

    def last(self, x: Tensor, t: Any, normals: Tensor) -> Tensor:
        """The step to no noise at all, of a measurement without noise, as a constraint: after ``denoise=True``; at every other time nothing."""
        if not isinstance(t, float) or t != 0:
            return x
        seen = self.svd.analyse(x)
        return x + self.svd.synthesise(self.eta_b * (sd.of_rows(self.known, x).to(x) - seen))
