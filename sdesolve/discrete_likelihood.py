"""The probability of discrete data under a model of continuous ones, bounded from below by dequantisation.

With draws u of q(u | k) in the unit cube and w the width of a level's bin,

    ln P(k) = ln int p(low + (k + u) w) w^d du >= E_q[ l ],      l = ln p(low + (k + u) w) + d ln w - ln q(u | k),
    ln P(k) >= E ln mean_K exp l,                                which rises with the number K of draws.

q uniform is what everybody does; a q that knows the model closes part of the gap.
[Theis et al. 2016, section 3.1; Ho et al. 2019, eq. 11; Burda et al. 2016, eq. 8]
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from ._errors import integer
from .dequantise import check_range, from_bins, level_of, uniforms
from .likelihood import Likelihood, log_likelihood
from .noise import check_seed, sample_ids_of
from .processes import Process

Dequantiser: TypeAlias = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""From the levels k, (B, *event) float64, and independent uniform numbers, (B, *event) float64, to a draw u in [0, 1) and ln q(u | k), (B,)."""


@dataclass(frozen=True)
class DiscreteLikelihood:
    """Bounds of log-probabilities, sample by sample.

    Attributes:
        log_probs: (K, B) float64, l of each draw in nats.
        draws: the K likelihoods themselves.
        levels: number of levels of the data.
    """

    log_probs: Tensor
    draws: tuple[Likelihood, ...]
    levels: int

    @property
    def bound(self) -> Tensor:
        """(B,) the mean over draws, an unbiased estimate of a lower bound of ln P, in nats."""
        return self.log_probs.mean(0)

    @property
    def standard_error(self) -> Tensor:
        """(B,) of ``bound``, over draws and probes together; that over probes alone, where there is one draw."""
        if len(self.draws) > 1:
            return self.log_probs.std(0) / math.sqrt(len(self.draws))
        return self.draws[0].standard_error

    @property
    def importance_weighted(self) -> Tensor:
        """(B,) the log of the mean of exp l over the K draws, a lower bound of ln P in expectation that is tighter than ``bound``.

        Raises:
            ValueError: the divergence was estimated: the noise of the probes within the exponential would raise the mean, beyond ln P.
        """
        if self.draws[0].stats["divergence"] != "exact":
            raise ValueError(
                "the importance-weighted bound needs an exact divergence, since the scatter of probes would raise the log of a mean of exponentials; "
                "expected discrete_log_likelihood(..., divergence='exact')."
            )
        return torch.logsumexp(self.log_probs, 0) - math.log(len(self.draws))

    @property
    def gap(self) -> Tensor:
        """(B,) the part of the dequantisation gap that K draws show: ``importance_weighted - bound``."""
        return self.importance_weighted - self.bound

    @property
    def nfe(self) -> Tensor:
        """(B,) network calls of all draws."""
        return torch.stack([draw.nfe for draw in self.draws]).sum(0)

    def ok(self) -> Tensor:
        """(B,) bool: which samples have a value in every draw."""
        return torch.stack([draw.ok() for draw in self.draws]).all(0)

    def in_bits(self, nats: Tensor) -> Tensor:
        """Log-probabilities in nats as bits a number: ``r.in_bits(r.bound)``."""
        return -nats / (self.draws[0].dimensions * math.log(2))

    def bits_per_dim(self) -> Tensor:
        """(B,) of ``bound``, which bounds the bits from above in expectation: log_2(levels) for a uniform model."""
        return self.in_bits(self.bound)


def discrete_log_likelihood(
    process: Process,
    score: Callable[[Tensor, Tensor], Tensor],
    x0: Tensor,
    data_range: tuple[float, float] = (0.0, 1.0),
    levels: int = 256,
    draws: int = 1,
    dequantiser: Dequantiser | None = None,
    seed: int | None = None,
    sample_ids: Tensor | Sequence[int] | None = None,
    **options: Any,
) -> DiscreteLikelihood:
    """Lower bounds of ln P(x_0) for data on K levels, by ``draws`` dequantised copies of each sample.

    Arguments:
        process, score: as for :func:`sdesolve.log_likelihood`; the model was trained on data dequantised to ``data_range``.
        x0: (B, *event) values on the levels, as for :func:`sdesolve.dequantise`.
        data_range, levels: outer edges of the bins, and their number.
        draws: K >= 1.
        dequantiser: (k, uniform numbers) -> (u in [0, 1), ln q(u | k)), a variational q; default u uniform, ln q = 0.
        seed, sample_ids: name draws and probes.
        options: of :func:`sdesolve.log_likelihood`.

    Raises:
        ValueError: data off the levels or outside the range; draws < 1; a dequantiser that leaves the bins or returns other shapes; probes of one's own
            for several draws.
    """
    draws, (low, high) = integer("draws", draws, 1, example=8), check_range(data_range)
    bins, levels = level_of(x0, data_range, levels), integer("levels", levels, 2, example=256)
    ids, seed = sample_ids_of(sample_ids, len(x0)), int(torch.randint(2**62, ())) if seed is None else check_seed(seed)
    dtype = torch.promote_types(x0.dtype, torch.float32)
    if draws > 1 and isinstance(options.get("noise"), Tensor):
        raise ValueError(f"noise is a tensor of probes, which all {draws} draws would share, so that their scatter would not know it; expected noise='rademacher' and a seed.")
    volume = bins[0].numel() * math.log((high - low) / levels)
    found, log_probs = [], []
    for draw in range(draws):
        u = uniforms(bins, seed, ids, draw)
        u, log_q = (u, torch.zeros(len(u), dtype=torch.float64, device=u.device)) if dequantiser is None else _checked(dequantiser(bins, u), bins)
        x = from_bins(bins, u, data_range, levels).to(dtype)
        probes = (seed + draw) % 2**64  # of each draw its own
        found.append(log_likelihood(process, score, x, seed=probes, sample_ids=ids, **options))
        log_probs.append(found[-1].log_prob + volume - log_q)
    return DiscreteLikelihood(torch.stack(log_probs), tuple(found), levels)


def _checked(drawn: tuple[Tensor, Tensor], bins: Tensor) -> tuple[Tensor, Tensor]:
    """A dequantiser's draw, if it lies in the bins."""
    if not isinstance(drawn, tuple) or len(drawn) != 2 or not all(isinstance(one, Tensor) for one in drawn):
        raise ValueError(f"the dequantiser returned a {type(drawn).__name__}; expected two tensors, u and ln q: return u, log_q")
    u, log_q = drawn
    if u.shape != bins.shape or log_q.shape != bins.shape[:1]:
        raise ValueError(f"the dequantiser returned {tuple(u.shape)} and {tuple(log_q.shape)}; expected u of shape {tuple(bins.shape)} and ln q of shape ({len(bins)},).")
    if not bool(((u >= 0) & (u < 1)).all()):
        raise ValueError(f"the dequantiser's u runs from {float(u.min()):g} to {float(u.max()):g}; expected 0 <= u < 1, a point of each bin: torch.sigmoid(z).")
    if not bool(log_q.isfinite().all()):
        raise ValueError("the dequantiser's ln q is not finite; expected that of the u that it drew, whose q is > 0.")
    return u.double(), log_q.double()
