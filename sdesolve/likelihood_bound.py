"""A lower bound of the log-likelihood that needs no ODE: what the reverse SDE is known to reach.

For the model that draws x_T from the prior, follows the reverse SDE to eps, and ends with  x_0 ~ N(E[x_0 | x_eps], sigma^2/alpha^2 I),

    -ln p(x_0) <= KL(p(x_T | x_0) | prior) + 1/2 int_eps^T g^2 E|score - grad ln p(x_t | x_0)|^2 dt - E ln p(x_0 | x_eps).

With the log signal-to-noise ratio s for time, ds = -(g^2/sigma^2) dt, and  y(s) = |eps + sigma score(alpha x_0 + sigma eps)|^2  all of it is

    KL  +  1/2 int_{s(T)}^{s(eps)} E y ds  +  1/2 E y(s(eps))  +  d/2 (ln 2 pi - s(eps)),

so that times drawn evenly in s are drawn by importance.  Where the noise is too small for the network to tell, y is nearly |eps|^2, of known mean d: what is
averaged is  y - c (|eps|^2 - d),  with c of the stratum's other, independent draw,  c = (<r, eps>/|eps|^2)^2  for  r = eps + sigma score, between 0 and 1.
[Song et al. 2021b, theorem 3 and section 4.3; Kingma et al. 2021, eq. 11-18]
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from . import _checks, _tally
from ._arrays import bcast
from ._errors import integer
from .dequantise import bits_per_dim, check_inside
from .divergence import dot
from .latent import flow_of
from .likelihood import prior_mismatch, warn_mismatch
from .methods import make_method
from .noise import DATA, SeededNormals, check_seed, sample_ids_of
from .processes import Process

_TIMES, _NOISE = 1 << 20, 1 << 21  # slots, apart from those of process.perturb


@dataclass(frozen=True)
class LikelihoodBound:
    """Lower bounds of log-likelihoods, sample by sample.

    Attributes:
        bound: (B,) float64, an unbiased estimate of a lower bound of ln p(x_0), in nats; NaN where the network gave one.
        standard_error: (B,) of ``bound`` over times and noise.
        prior, diffusion, reconstruction: (B,) the three terms of -bound.
        nfe: network calls that each sample saw.
        dimensions: numbers in a sample.
        lowest, highest: (B,) the least and largest number in each sample.
    """

    bound: Tensor
    standard_error: Tensor
    prior: Tensor
    diffusion: Tensor
    reconstruction: Tensor
    nfe: int
    dimensions: int
    lowest: Tensor
    highest: Tensor

    def ok(self) -> Tensor:
        """(B,) bool: which samples have a finite bound."""
        return self.bound.isfinite()

    def bits_per_dim(self, data_range: tuple[float, float] = (0.0, 1.0), levels: int = 256) -> Tensor:
        """(B,) an upper bound of the bits a number, as :meth:`Likelihood.bits_per_dim`."""
        check_inside(self.lowest, self.highest, data_range)
        return bits_per_dim(self.bound, self.dimensions, data_range, levels)

    def bits_per_dim_error(self) -> Tensor:
        """(B,) the standard error in bits/dim."""
        return self.standard_error / (self.dimensions * math.log(2))


@torch.no_grad()
def likelihood_bound(
    process: Process,
    score: Callable[[Tensor, Tensor], Tensor],
    x0: Tensor,
    evaluations: int = 64,
    seed: int | None = None,
    *,
    sample_ids: Tensor | Sequence[int] | None = None,
    eps: float | None = None,
) -> LikelihoodBound:
    """A lower bound of ln p(x_0), the likelihood-weighted training loss of that sample: ``evaluations`` network calls, no gradient, no ODE.

    It bounds the likelihood of the model as a sampler by the reverse SDE, and equals that of the law of the data where the score is exact.
    Half of the times are drawn evenly in the log signal-to-noise ratio, one in each of as many strata, with two independent pairs (time, noise) a stratum,
    whose difference is the standard error.

    Arguments:
        process, score: as for :func:`sdesolve.log_likelihood`.
        x0: data, (B, *event), in the scale that the model was trained on; discrete data dequantised.
        evaluations: an even number >= 4; two of them are spent at eps.
        seed, sample_ids: name times and noise; default: drawn from torch's global generator, ids 0..B-1.
        eps: where the reverse SDE ends; default as for :func:`sdesolve.log_likelihood`.

    Raises:
        ValueError, TypeError: bad arguments, before the first network call.
    """
    problem = flow_of(process, score, eps)
    _checks.check_state(x0, problem, make_method("rk45"))
    strata, odd = divmod(integer("evaluations", evaluations, 4, example=64), 2)
    if odd:
        raise ValueError(f"evaluations={evaluations}; expected an even number, of which pairs make the standard error: evaluations={evaluations + 1}.")
    seed = int(torch.randint(2**62, ())) if seed is None else check_seed(seed)
    x, size = x0.to(torch.promote_types(x0.dtype, torch.float32)), x0[0].numel()
    ids = sample_ids_of(sample_ids, len(x))
    end, start = (float(process.log_snr(t)) for t in problem.interval)
    noise = SeededNormals(seed, ids, x.shape[1:], dtype=x.dtype, device=x.device, stream=DATA)
    uniform = SeededNormals(seed, ids, (1,), dtype=torch.float64, device=x.device, stream=DATA)

    def pair(stratum: int, low: float, high: float) -> Tensor:
        """(2, B) y at two draws of the log-SNR between low and high, each with the other's control variate."""
        values, excess, weights = [], [], []
        for k in (2 * stratum, 2 * stratum + 1):
            share = torch.special.ndtr(uniform.normal(k, _TIMES)[:, 0])
            t = process.log_snr_inverse_(low + (high - low) * share)
            z = noise.normal(k, _NOISE)
            r = z + bcast(process.sigma_(t), x) * problem.score(bcast(process.alpha_(t), x) * x + bcast(process.sigma_(t), x) * z, t)
            square = dot(z, z)
            values.append(dot(r, r))
            excess.append(square - size)
            weights.append((dot(r, z) / square).clamp(0, 1).square())
        return torch.stack(values) - torch.stack(weights[::-1]) * torch.stack(excess)

    calls = _tally.calls()
    width = (start - end) / (strata - 1)
    inner = torch.stack([pair(k, end + k * width, end + (k + 1) * width) for k in range(strata - 1)])
    last = pair(strata - 1, start, start)
    prior, diffusion = prior_mismatch(process, x), 0.5 * width * inner.mean(1).sum(0)
    reconstruction = 0.5 * last.mean(0) + 0.5 * size * (math.log(2 * math.pi) - start)
    halves = torch.cat([width * (inner[:, 0] - inner[:, 1]), (last[0] - last[1])[None]]) / 4
    flat, bound = x.reshape(len(x), -1), -(prior + diffusion + reconstruction)
    warn_mismatch(prior[bound.isfinite()], size, "b.prior", stacklevel=4)
    return LikelihoodBound(
        bound,
        halves.square().sum(0).sqrt(),
        prior,
        diffusion,
        reconstruction,
        _tally.calls() - calls,
        size,
        flat.amin(1),
        flat.amax(1),
    )
