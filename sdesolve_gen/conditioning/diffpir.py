"""DiffPIR: a proximal step on the denoised estimate, and the sampler that goes with it.  [Zhu et al. 2023, arXiv 2305.08995]"""

from __future__ import annotations

from torch import Tensor

import sdesolve as sd

from ._numbers import number, per_row
from .measurement import Measurement
from .methods import Conditioning


def diffpir(score: sd.Score, measurement: Measurement, *, lam: float = 7.0) -> Conditioning:
    """Plug-and-play restoration:  E[x_0 | x_t] moves to where it and y are weighed by their variances,

        x_0' = argmin_x  |y - A x|^2/(2 noise_std^2) + |x - x_0|^2/(2 r_t^2)
             = x_0 + r_t^2 A' (noise_std^2 I + r_t^2 A A')^-1 (y - A x_0),          r_t^2 = sigma^2/(lambda alpha^2).

    Without noise it is DDNM.  [Zhu et al. 2023, algorithm 1: rho_t = lambda noise_std^2 alpha^2/sigma^2]

    One network call for each evaluation and no derivative; a ``gram_solve``.  The paper's sampler is :class:`sdesolve_gen.conditioning.Renoised` with
    ``share=zeta``.  At lambda = 1 it is exact in the limit of a flat prior, c -> infinity in N(m, c^2 I); lambda > 1 trusts the prior more, and what is measured comes
    out too wide and biased towards it.  What is not measured is biased as in DDNM.

    Arguments:
        score: the model's score.
        measurement: of a linear operator, with Gaussian noise.
        lam: lambda > 0, how much the prior is trusted beside the measurement; the paper takes 1 to 25.

    Raises:
        ValueError: lam out of range; Poisson noise; an operator that is not linear.
    """
    lam = number("lam", lam, 0.0, above=True)
    measurement.require("diffpir")

    def shift(p: sd.Prediction) -> Tensor:
        variance = p.sigma**2 / (lam * p.alpha**2)
        return per_row(variance, p.x0) * measurement.operator.adjoint(measurement.weighted(p.x0, variance))

    return Conditioning(sd.guided(score, shift, to="x0"))
