"""DPS: the gradient of the residual's length.  [Chung et al. 2023, arXiv 2209.14687]"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

import sdesolve as sd

from ._numbers import number, per_row, whole
from .measurement import Measurement
from .methods import Conditioning

_UNCERTAIN = 1.0  # most that E[x_0 | x_t] can err by, in the units of the data, as in PiGDM


def dps(score: sd.Score, measurement: Measurement, *, zeta: float = 1.0, steps: int | None = None) -> Conditioning:
    """Diffusion posterior sampling: down the length of the residual r = y - A E[x_0 | x_t], through the network.

        steps=None   score + zeta sqrt(m)/s  J'A' r/|r|,       s^2 = noise_std^2 + sigma^2/(alpha^2 + sigma^2),  m numbers measured
        steps=N      score + zeta N/((T - eps) g^2)  J'A' r/|r|,       J = dE[x_0 | x_t]/dx_t

    The first is the gradient of ln N(r; 0, s^2 I) with a residual that is brought to its expected length sqrt(m) s: it depends on no step, and every
    solver has the same limit.  The second is the paper's: each step of a solver that takes N equal ones in time moves x by  -zeta grad|r|,  as its
    algorithm 1 does (where zeta is zeta'_i, and the gradient of |r| is half that of |r|^2 over |r|); more steps are a stronger pull, and another grid
    or solver a different method.  With Poisson noise every number counts by its own variance.  [Chung et al. 2023, algorithms 1 and 2]

    One network call and one vjp for each evaluation, with a forward and an adjoint.  Exact for nothing: the length of the residual is all that it
    takes from the noise level.  To be taken for operators that are not linear, which no other method can do, and as what others compare with.

    Arguments:
        score: the model's score.
        measurement: of any operator, with either noise.
        zeta: how strongly to pull, >= 0; the paper takes 0.1 to 1, on pixels from -1 to 1.
        steps: N >= 1, equal steps in time that the solver will take from T to eps, for the paper's rule; None for the other.

    Raises:
        ValueError: zeta or steps out of range.
    """
    zeta = number("zeta", zeta, 0.0)
    if steps is not None:
        steps = whole("steps", steps, 1)

    def term(p: sd.Prediction) -> Tensor:
        measured, pull = _measured(measurement, p.x0)
        alpha, sigma = p.alpha, p.sigma
        spread = 0.0 if steps else _UNCERTAIN**2 * sigma**2 / (alpha**2 * _UNCERTAIN**2 + sigma**2)
        residual = measurement.y.to(measured) - measured
        variance = measurement.variance(measured) + per_row(spread, measured)
        if steps:  # a plain norm, but for Poisson noise a weighted one of the same size
            variance = variance / variance.flatten(1).mean(1).reshape(-1, *(1,) * (measured.dim() - 1)) if isinstance(variance, Tensor) else 1.0
        weighted = residual / variance
        length = (residual * weighted).flatten(1).sum(1).sqrt().clamp_min(torch.finfo(measured.dtype).tiny)
        strength = zeta * steps / ((p.process.T - p.process.eps) * p.process.diffusion_(p.t) ** 2) if steps else zeta * math.sqrt(measured[0].numel())
        return per_row(strength / length, p.x) * p.pullback(pull(weighted))

    return Conditioning(sd.guided(score, term, derivative=True))


def _measured(measurement: Measurement, x0: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """A x_0, and what takes v to A'v, or to (dA/dx_0)'v where A is not linear."""
    measurement.check_state(x0)
    if measurement.operator.linear:
        return measurement.operator.forward(x0), measurement.operator.adjoint
    measured, pull, *_ = torch.func.vjp(measurement.operator.forward, x0)
    return measured, lambda v: pull(v)[0]
