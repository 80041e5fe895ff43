"""DDNM: what is measured replaces what is predicted of it.  [Wang, Yu & Zhang 2023, arXiv 2212.00490]"""

from __future__ import annotations

import torch
from torch import Tensor

import sdesolve as sd

from ._numbers import number, per_row
from .measurement import Measurement
from .methods import Conditioning
from .operator import SVD


def ddnm(score: sd.Score, measurement: Measurement, *, eta: float = 0.85) -> Conditioning:
    """The null-space model:  E[x_0 | x_t] gets the measured part of y and keeps its own in the null space of A,

        x_0' = x_0 + V diag(lambda) S^-1 U' (y - A x_0),      A = U S V',
        lambda_i = min(1, eta sigma s_i/(alpha noise_std)).

    Without noise lambda = 1 and x_0' = A^+ y + (I - A^+ A) x_0, the paper's.  With noise this is not the paper's DDNM+ but what of it a score can be: y is
    not to bring more noise into a step than the eta sigma that a sampler draws anew.  The published lambda_i looks at the level a, sigma at which the step
    ends: 1 where sigma >= a noise_std/s_i, else sqrt(1 - eta^2) sigma s_i/(a noise_std); and its noise Phi leaves out what y brings, and what the network
    said of the noise where A sees.  Step by step that is DDRM's walk, so the published one is :func:`ddrm` with its defaults, and the one to take for pictures
    with noise.  An operator without a cheap SVD has  lambda_i = s_i^2/(s_i^2 + (alpha noise_std/(eta sigma))^2)  in its place, by ``gram_solve``.
    [Wang et al. 2023, section 3.2, algorithm 1; DDNM+: eq. 17 and 51]

    One network call for each evaluation and no derivative; a ``pinv``, SVD or ``gram_solve``.  The paper's algorithm 1 is ``method="ddim", eta=1`` on a grid of
    the paper's levels.  Exact without noise where directions that A sees and those that it does not are independent given x_t.  Else what is not measured learns
    of y by x_t alone, at the step's pace: biased towards the prior, and too wide.  With noise, what is measured stays at y: too narrow.

    Arguments:
        score: the model's score.
        measurement: of a linear operator, with Gaussian noise.
        eta: share of the noise that the sampler is taken to draw anew, > 0; the default is the value of the published sampler.  Of no effect without noise in y.

    Raises:
        ValueError: eta out of range; Poisson noise; an operator that is not linear.
    """
    eta = number("eta", eta, 0.0, above=True)
    measurement.require("ddnm")
    noise, svd = measurement.noise_std, measurement.operator.svd() if measurement.noise_std else None

    def shift(p: sd.Prediction) -> Tensor:
        residual = measurement.residual(p.x0)
        if not noise:
            return measurement.operator.pinv(residual)
        share = eta * p.sigma / (p.alpha * noise)
        if svd is None:
            return measurement.operator.adjoint(measurement.operator.gram_solve(residual, share**-2, 1.0))
        return _shrunk(svd, residual, share)

    return Conditioning(sd.guided(score, shift, to="x0"))


def _shrunk(svd: SVD, residual: Tensor, share: float | Tensor) -> Tensor:
    """V diag(min(1, share s)/s) U' residual."""
    values = svd.values.to(residual)
    seen = svd.observe(residual)
    return svd.synthesise(seen * torch.minimum(1 / values, torch.as_tensor(per_row(share, seen)).to(seen)))
