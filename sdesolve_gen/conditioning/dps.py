"""DPS: the gradient of the residual's length.  [Chung et al. 2023, arXiv 2209.14687]"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

import sdesolve as sd

from ._numbers import number, per_row, whole
from .measurement import Measurement
from .methods import Conditioning


def dps(score: sd.Score, measurement: Measurement, *, zeta: float = 1.0, steps: int | None = None, within: tuple[float, float] | None = None) -> Conditioning:
    """Diffusion posterior sampling: down the length of the residual r = y - A E[x_0 | x_t], through the network.

        steps=None   score + zeta sqrt(m)/s  J'A'u,                 s^2 = noise_std^2 + sigma^2/(alpha^2 + sigma^2) |A'u|^2
        steps=N      score + zeta N/((T - eps) g^2)  J'A'u,         u = r/|r|,  J = dE[x_0 | x_t]/dx_t,  m numbers measured

    The first is the gradient of the likelihood of PiGDM in the direction u that the residual has, brought to its expected length sqrt(m) s: it depends on no step, so
    that every solver has the same limit, and not on the scale of A.  The second is the paper's: each step of a solver that takes N equal ones in time moves x by
    -zeta grad|r|,  as the authors' code does with its "scale"; algorithm 1 moves it by  -zeta' grad|r|^2/|r| = -2 zeta' grad|r|,  so that zeta = 2 zeta'.  More steps are a
    stronger pull, and another grid or solver a different method.  With Poisson noise every number counts by its own variance.  [Chung et al. 2023, algorithms 1 and 2]

    One network call and one vjp for each evaluation, with a forward and an adjoint.  Exact for nothing: the length of the residual is all that it
    takes from the noise level.  To be taken for operators that are not linear, which no other method can do, and as what others compare with.

    Arguments:
        score: the model's score.
        measurement: of any operator, with either noise.
        zeta: how strongly to pull, >= 0; the paper takes 0.1 to 1, on pixels from -1 to 1.
        steps: N >= 1, equal steps in time that the solver will take from T to eps, for the paper's rule; None for the other.
        within: noise levels (low, high], in units of sigma/alpha, at which y pulls; None for all.  Elsewhere a call has no vjp.  Where the noise hides what the data have in
            common, as from 20 on for images from -1 to 1, a pull is made up for by those that follow: see the docs for what it saves and costs.

    Raises:
        ValueError: zeta, steps or within out of range.
    """
    zeta = number("zeta", zeta, 0.0)
    if steps is not None:
        steps = whole("steps", steps, 1)

    def term(p: sd.Prediction) -> Tensor:
        measured, pull = _measured(measurement, p.x0)
        residual, variance = measurement.seen(measured) - measured, measurement.variance(measured)
        weighted = residual * _mean(variance) / variance if isinstance(variance, Tensor) else residual
        length = _total(residual * weighted).sqrt().clamp_min(torch.finfo(measured.dtype).tiny)
        pulled = pull(weighted)  # |r| A'u
        if steps:
            return per_row(zeta * steps / ((p.process.T - p.process.eps) * p.process.diffusion_(p.t) ** 2) / length, p.x) * p.pullback(pulled)
        size = _total(weighted.square()).clamp_min(torch.finfo(measured.dtype).tiny)
        spread = _total(variance * weighted.square()) + p.sigma**2 / (p.alpha**2 + p.sigma**2) * _total(pulled.square())  # |r|^2 s^2
        strength = zeta * (measured[0].numel() * size / spread.clamp_min(torch.finfo(measured.dtype).tiny)).sqrt()  # zeta sqrt(m)/s
        return per_row(strength / size.sqrt(), p.x) * p.pullback(pulled)

    return Conditioning(sd.guided(score, term, derivative=True, within=within))


def _measured(measurement: Measurement, x0: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """A x_0, and what takes v to A'v, or to (dA/dx_0)'v where A is not linear."""
    measurement.check_state(x0)
    if measurement.operator.linear:
        return measurement.operator.forward(x0), measurement.operator.adjoint
    measured, pull, *_ = torch.func.vjp(measurement.operator.forward, x0)
    return measured, lambda v: pull(v)[0]


def _total(x: Tensor) -> Tensor:
    """The sum over each row, (B,)."""
    return x.flatten(1).sum(1)


def _mean(x: Tensor) -> Tensor:
    """The mean over each row, ready to multiply it."""
    return x.flatten(1).mean(1).reshape(-1, *(1,) * (x.dim() - 1))
