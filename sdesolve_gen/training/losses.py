"""What a score network is trained to minimise.

    denoising   L = E_t E_x0,eps  ratio(t) w(t) |s(x_t, t) + eps/sigma|^2 / d,         x_t = alpha x_0 + sigma eps
    sliced      L = E_t E_xt,v    ratio(t) w(t) (|s|^2 + 2 v . grad_x (v . s)) / d,    v = +-1, which is the same up to a constant

[Song et al. 2021, eq. 7 and 19; Vincent 2011; Song et al. 2019, "Sliced score matching", eq. 8].  Both have their minimum at the score of
the noised data whatever the weight w; the weight decides what a network that cannot be right everywhere is wrong about:

    weight    w(t)                                        in units of
    output    that of the network's output                its regression target, as the table of :mod:`sdesolve.scores` has it
    sigma2    sigma^2                                     the noise: |eps_hat - eps|^2          [Song et al. 2021, section 3.3; Ho et al. 2020, eq. 14]
    g2        g^2                                         nats: a bound of the likelihood       [Song, Durkan et al. 2021, theorem 1]
    edm       (s^2 + d^2)/(s d)^2 of D(x) - x_0           "edm"'s output                        [Karras et al. 2022, table 1, lambda]
    flow      g^4/4                                       velocity: |u_hat - dx_t/dt|^2         [Lipman et al. 2023, eq. 9]

with s = sigma/alpha and d = sigma_data.  Times come from a quantile u in (0, 1):

    times        density of t                                             ratio
    log_normal   ln(sigma/alpha) is normal    [Karras et al. 2022, eq. 5]   1
    uniform      even on [1e-5 T, T]                                      1
    importance   proportional to g^2/sigma^2                              uniform density over this one
    levels       even over the N levels that the network counts           1

g^2/sigma^2 = -d log_snr/dt for every process, so importance-sampled times are even in log_snr, in closed form.  The ratio makes its
expectation that of uniform times; with "g2" the product is constant but for sigma^2, and the variance small.  [Song, Durkan et al. 2021]
The published discrete objectives are "sigma2" with "levels": SMLD on VE, whose sigma_i are those of its N equal steps in t, and DDPM on the table of
its own products of 1 - beta_i, :class:`sdesolve.TabulatedVP`.  On VP itself, levels are at i T/(N - 1), which are other noise levels than DDPM's: the first
has sigma = 0.001 where its beta of 1e-4 gives 0.01.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from sdesolve import Process, Score

from .levels import SMALLEST, log_normal

if TYPE_CHECKING:
    from .config import TrainConfig


class Times(NamedTuple):
    """Times of a batch."""

    t: Tensor
    """(B,) float64."""
    ratio: Tensor
    """(B,) float64, what the loss at t is multiplied by."""


# -- weights: of the squared error of the score, (B,) float64 -------------------------------------------------------------


def _output(score: Score, t: Tensor) -> Tensor:
    return 1 / _of_output(score, t)


def _sigma2(score: Score, t: Tensor) -> Tensor:
    return score.process.sigma(t) ** 2


def _g2(score: Score, t: Tensor) -> Tensor:
    return score.process.diffusion(t) ** 2


def _edm(score: Score, t: Tensor) -> Tensor:
    alpha, sigma, d = score.process.alpha(t), score.process.sigma(t), score.sigma_data
    s = sigma / alpha
    return (sigma * s) ** 2 * (s * s + d * d) / (s * d) ** 2


def _flow(score: Score, t: Tensor) -> Tensor:
    return score.process.diffusion(t) ** 4 / 4


WEIGHTS: dict[str, Callable[[Score, Tensor], Tensor]] = {"output": _output, "sigma2": _sigma2, "g2": _g2, "edm": _edm, "flow": _flow}


def _of_output(score: Score, t: Tensor) -> Tensor:
    """(B,) squared derivative of the score by the network's output."""
    on_output = score.linear(t).on_output
    return torch.ones_like(t) if on_output is None else torch.as_tensor(on_output).expand(t.shape) ** 2


# -- times: of the quantiles, (B,) float64 ---------------------------------------------------------------------------------


def _log_normal(config: TrainConfig, process: Process, quantile: Tensor) -> Times:
    return _plain(log_normal(process, quantile, config.log_sigma_mean, config.log_sigma_std))


def _uniform(config: TrainConfig, process: Process, quantile: Tensor) -> Times:
    return _plain(process.T * (SMALLEST + (1 - SMALLEST) * quantile))


def _importance(config: TrainConfig, process: Process, quantile: Tensor) -> Times:
    first, last = (float(process.log_snr(t)) for t in (SMALLEST * process.T, process.T))
    t = process.log_snr_inverse(first + (last - first) * quantile).clamp(SMALLEST * process.T, process.T)
    rate = (process.diffusion(t) / process.sigma(t)) ** 2
    return Times(t, (first - last) / ((1 - SMALLEST) * process.T * rate))


def _levels(config: TrainConfig, process: Process, quantile: Tensor) -> Times:
    assert isinstance(config.time, int)  # the config checks itself
    share = (quantile * config.time).floor() / (config.time - 1)
    t = process.origin + share * (process.horizon - process.origin)
    first = 0.0 if float(process.sigma(0.0)) > 0 else SMALLEST * process.T  # without noise there is no score
    return _plain(t.clamp(first, process.T))


def _plain(t: Tensor) -> Times:
    return Times(t, torch.ones_like(t))


TIMES: dict[str, Callable[[TrainConfig, Process, Tensor], Times]] = {
    "log_normal": _log_normal,
    "uniform": _uniform,
    "importance": _importance,
    "levels": _levels,
}


# -- losses ----------------------------------------------------------------------------------------------------------------


def denoising_loss(score: Score, x0: Tensor, times: Times, eps: Tensor, weight: str = "output") -> Tensor:
    """Denoising score matching: the weighted squared error of the network against its own regression target.  One network call.

    Arguments:
        score: of the network, from :func:`sdesolve.as_score`; any parameterisation.
        x0: data, (B, *event).
        times: of each row.
        eps: standard normals, shaped like x0.
        weight: a key of ``WEIGHTS``.

    Returns:
        The mean over rows and elements, ().
    """
    x = _noised(score.process, x0, times.t, eps)
    error = score.model_output(x, times.t) - score.target(x, eps, times.t)
    factor = times.ratio * WEIGHTS[weight](score, times.t) * _of_output(score, times.t)
    return (_rows(factor, x0) * error.square()).mean()


def sliced_loss(score: Score, x0: Tensor, times: Times, eps: Tensor, probe: Tensor, weight: str = "sigma2") -> Tensor:
    """Sliced score matching: needs no conditional score, and a network that can be differentiated twice.  One call and two backward passes.

    Its gradient is noisier than that of :func:`denoising_loss`, which is there for whoever has a density of the noised data alone.

    Arguments:
        probe: (B, *event) signs, E[v v^T] = 1.
        score, x0, times, eps, weight: as for :func:`denoising_loss`.

    Returns:
        The mean over rows and elements, (); that of :func:`denoising_loss` minus a constant, in expectation.
    """
    x = _noised(score.process, x0, times.t, eps).requires_grad_()
    with sdpa_kernel(SDPBackend.MATH):  # the fast kernels have no second derivative
        s = score(x, times.t)
        (slope,) = torch.autograd.grad((s * probe).sum(), x, create_graph=True)
    factor = times.ratio * WEIGHTS[weight](score, times.t)
    return (_rows(factor, x0) * (s.square() + 2 * probe * slope)).mean()


LOSSES = ("denoising", "sliced")


def _noised(process: Process, x0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
    mean, sigma = process.marginal(x0, t)
    return mean + _rows(sigma, x0) * eps


def _rows(values: Tensor, x: Tensor) -> Tensor:
    """(B,) in x's dtype, ready to be multiplied with x."""
    return values.to(x).reshape(-1, *(1,) * (x.dim() - 1))
