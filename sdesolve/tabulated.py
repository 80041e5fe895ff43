"""A variance-preserving process whose levels come from a table, as those of discrete-time models do."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ._arrays import Number, softplus, xp
from .processes import Process, fingerprint

_BITS = 54  # of a place between two levels


@dataclass(frozen=True, repr=False)
class TabulatedVP(Process):
    """Variance preserving with  alpha(t_i)^2 = alphas_cumprod[i]  at  t_i = (i + 1)/N,  i = 0..N-1.  [Ho et al. 2020, eq. 4; Lu et al. 2022, appendix D.2]

    For a network of N levels whose betas follow no formula, or one that no process has.  Between the levels ln(alpha^2/sigma^2) is a cubic of t
    with a continuous derivative that falls where the table does [Fritsch & Butland 1984], and before the first one a straight line; so drift and
    diffusion are continuous, and a solver may stop anywhere.  A network that counts its levels is told ``time=N``; one that takes fractions of a
    level, as one with a sinusoidal embedding does, ``time=process.level``.

    Arguments:
        alphas_cumprod: the products of 1 - beta, at least 2 numbers that fall within (0, 1).  A table that ends in 0 (zero terminal signal) ends
            in a small number instead: diffusers' multistep solvers take 2**-24.

    Raises:
        ValueError: numbers that do not fall, or are not within (0, 1).
    """

    alphas_cumprod: Sequence[float] | Tensor
    T = 1.0

    def __post_init__(self) -> None:
        values = torch.as_tensor(self.alphas_cumprod, dtype=torch.float64).reshape(-1).tolist()
        object.__setattr__(self, "alphas_cumprod", tuple(values))
        if len(values) < 2 or not all(a > b for a, b in pairwise((1.0, *values, 0.0))):
            raise ValueError(
                f"alphas_cumprod has {len(values)} numbers from {values[0] if values else None} to {values[-1] if values else None}; expected at least 2 that "
                "fall within (0, 1), as in torch.cumprod(1 - betas, 0): a last one of 0 becomes 2**-24."
            )

    def __repr__(self) -> str:
        ends = f"alphas_cumprod from {self.alphas_cumprod[0]:.6g} to {self.alphas_cumprod[-1]:.6g}"
        return f"TabulatedVP({len(self.alphas_cumprod)} levels {fingerprint(self._nodes)}, {ends})"

    @property
    def eps(self) -> float:  # type: ignore[override]
        return self.origin

    @property
    def origin(self) -> float:
        return 1 / len(self.alphas_cumprod)

    @cached_property
    def _nodes(self) -> list[float]:
        """ln(alpha^2/sigma^2) at the levels."""
        return [math.log(a) - math.log1p(-a) for a in self.alphas_cumprod]

    @cached_property
    def _slopes(self) -> list[float]:
        """Its derivative there, by the level: the harmonic mean of the differences on both sides, which no cubic between overshoots."""
        rises = [b - a for a, b in pairwise(self._nodes)]
        return [rises[0], *(2 * a * b / (a + b) for a, b in pairwise(rises)), rises[-1]]

    @cached_property
    def _tensors(self) -> dict[torch.device, Tensor]:
        return {}

    def _on(self, device: torch.device) -> Tensor:
        """(2, N) values and slopes, copied to a device once."""
        if device not in self._tensors:
            self._tensors[device] = torch.tensor([self._nodes, self._slopes], dtype=torch.float64, device=device)
        return self._tensors[device]

    def _cubic(self, i: Number) -> tuple[Number, Number, Number, Number]:
        """c_0..c_3 of  c_0 + c_1 s + c_2 s^2 + c_3 s^3,  s from 0 at the level i to 1 at the next."""
        table: Any = self._on(i.device) if isinstance(i, Tensor) else (self._nodes, self._slopes)
        (y0, d0), (y1, d1) = ([values[k] for values in table] for k in (i, i + 1))
        return y0, d0, 3 * (y1 - y0) - 2 * d0 - d1, d0 + d1 - 2 * (y1 - y0)

    def _place(self, t: Number) -> tuple[Number, Number]:
        """The level at or before t, but the last one, and how far behind it t lies, in levels."""
        level, last = self.level(t), len(self.alphas_cumprod) - 2
        if isinstance(level, Tensor):
            i: Number = level.floor().clamp(0, last).long()
        else:
            i = min(max(math.floor(level), 0), last)
        return i, level - i

    def level(self, t: Number) -> Number:
        """t N - 1: i at the i-th level, and fractions between."""
        return t * len(self.alphas_cumprod) - 1

    def log_snr_(self, t: Number) -> Number:
        i, s = self._place(t)
        c0, c1, c2, c3 = self._cubic(i)
        before = s * (s < 0)
        s = s - before
        return c0 + s * (c1 + s * (c2 + s * c3)) + before * c1

    def _rate(self, t: Number) -> Number:
        """d log_snr / dt < 0."""
        i, s = self._place(t)
        _, c1, c2, c3 = self._cubic(i)
        s = s * (s > 0)
        return len(self.alphas_cumprod) * (c1 + s * (2 * c2 + s * 3 * c3))

    def log_alpha_(self, t: Number) -> Number:
        return -0.5 * softplus(-self.log_snr_(t))

    def sigma_(self, t: Number) -> Number:
        half = -0.5 * softplus(self.log_snr_(t))
        return xp(half).exp(half)

    def drift_rate_(self, t: Number) -> Number:
        return 0.5 * self.sigma_(t) ** 2 * self._rate(t)

    def diffusion_(self, t: Number) -> Number:
        rate = self._rate(t)
        return self.sigma_(t) * xp(rate).sqrt(-rate)

    def log_snr_inverse_(self, log_snr: Number) -> Number:
        last = len(self._nodes) - 2
        if isinstance(log_snr, Tensor):
            i: Number = (torch.searchsorted(-self._on(log_snr.device)[0], -log_snr.contiguous(), right=True) - 1).clamp(0, last)
        else:
            i = min(max(sum(node >= log_snr for node in self._nodes) - 1, 0), last)
        c0, c1, c2, c3 = self._cubic(i)
        s: Any = 0.0 * log_snr
        for bit in range(1, _BITS + 1):  # a cubic that falls: halve the interval it crosses in
            middle = s + 0.5**bit
            s = s + 0.5**bit * (c0 + middle * (c1 + middle * (c2 + middle * c3)) >= log_snr)
        before = (log_snr - c0) / c1
        return (i + s + before * (before < 0) + 1) / len(self._nodes)

    def sigma_inverse_(self, sigma: Number) -> Number:
        m = xp(sigma)
        return self.log_snr_inverse_(m.log1p(-sigma * sigma) - 2 * m.log(sigma))

    def alpha_inverse_(self, alpha: Number) -> Number:
        m = xp(alpha)
        return self.log_snr_inverse_(2 * m.log(alpha) - m.log1p(-alpha * alpha))
