"""Laws whose score is known in closed form at every time of every forward process.

A process takes x_0 to  x_t = alpha x_0 + sigma eps,  so p_t is the law of the data, scaled and convolved with a Gaussian, and

    Gaussian    x_0 ~ N(m, C)                 p_t = N(alpha m, alpha^2 C + sigma^2 I)
    Mixture     sum_k w_k N(m_k, C_k)         score = sum_k r_k(x) score_k(x),   r = softmax_k(ln w_k + ln p_tk(x))
    Product     independent coordinates       score coordinate by coordinate
    Empirical   the points y_1 ... y_n        score = (alpha sum_i r_i(x) y_i - x) / sigma^2,  r = softmax_i(-|x - alpha y_i|^2 / 2 sigma^2)
    Perturbed   p_s of any of these           the same law at (alpha alpha_s, sqrt(alpha^2 sigma_s^2 + sigma^2))

C = U diag(lam) U^T + floor (I - U U^T) is decomposed once, so that another time costs a sum and not a factorisation, and a
covariance of low rank never becomes a matrix.  Whatever the dtype of x, the arithmetic is float64 and only the result is cast.
Where covariances are diagonal (std=...) no operation mixes rows: a row has the same bits in every batch.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from .._arrays import Number, row_mean
from ..noise import SeededNormals
from ..processes import Process

Array: TypeAlias = Tensor | np.ndarray | float | Sequence[Any]

DRAWS, REFERENCE, DIRECTIONS, FREQUENCIES, FEATURES = range(100, 105)
"""Streams of the noise, apart from those of the solver: process.perturb(x0, t, seed=0) must not repeat the numbers behind x0."""

_CHUNK = 1 << 22  # entries of the largest (rows, data) block that Empirical holds, 32 MiB in float64


class Target(ABC):
    """A law with a closed-form score.

    Attributes:
        event: shape of one sample, without the batch axis.
    """

    event: tuple[int, ...]

    # -- the hooks: x is (B, d) float64; alpha and sigma are floats or float64 tensors (B, 1) ------------------------

    @abstractmethod
    def _score(self, x: Tensor, alpha: Number, sigma: Number) -> Tensor:
        """grad_x ln p(x), (B, d), of alpha x_0 + sigma eps."""

    @abstractmethod
    def _log_prob(self, x: Tensor, alpha: Number, sigma: Number) -> Tensor:
        """ln p(x), (B,), of alpha x_0 + sigma eps."""

    @abstractmethod
    def _draw(self, draws: Draws) -> Tensor:
        """(n, d) draws of x_0."""

    @abstractmethod
    def _moments(self) -> tuple[Tensor, Tensor]:
        """Mean and variance of each coordinate, (d,)."""

    @abstractmethod
    def _covariance(self) -> Tensor:
        """(d, d)."""

    def _projected_cdf(self, y: Tensor, directions: Tensor, alpha: float, sigma: float) -> Tensor | None:
        """Distribution function of <direction, alpha x_0 + sigma eps>: y (n, L), directions (L, d) -> (n, L), or None."""
        return None

    # -- what users call ---------------------------------------------------------------------------------------------

    @property
    def mean(self) -> Tensor:
        """E[x], shaped like one sample, float64."""
        return self._moments()[0].reshape(self.event)

    @property
    def variance(self) -> Tensor:
        """Var[x_i] of each coordinate, shaped like one sample, float64."""
        return self._moments()[1].reshape(self.event)

    @property
    def covariance(self) -> Tensor:
        """Cov[x_i, x_j] of the flattened sample, (d, d) float64."""
        return self._covariance()

    def score(self, process: Process) -> ExactScore:
        """grad_x ln p_t(x) as a function of x, (B, *event), and t, a float or a tensor () or (B,) in (0, T]."""
        return ExactScore(self, process)

    def log_prob(self, x: Tensor, process: Process | None = None, t: Number | None = None) -> Tensor:
        """ln p_t(x) in nats, float64 of shape (B,).

        Arguments:
            x: states, (B, *event).
            process, t: the forward process and the time, a float or a tensor () or (B,); both absent: the law of the data.

        Raises:
            ValueError: x of another shape; a process without a time; a law without a density (points, or a flat covariance).
        """
        if (process is None) != (t is None):
            raise ValueError("log_prob got one of process and t; expected both, as in log_prob(x, process, t), or neither for the data.")
        flat = flatten(self, x)
        alpha, sigma = (1.0, 0.0) if process is None or t is None else levels(process, t, flat)
        value = self._log_prob(flat, alpha, sigma)
        if bool((value.isnan() & flat.isfinite().all(1)).any()):
            raise ValueError(f"{self} has no density without noise; give a time at which sigma > 0, as in log_prob(x, process, t).")
        return value

    def sample(
        self, n: int, *, seed: int = 0, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu", stream: int = DRAWS
    ) -> Tensor:
        """n exact and independent draws, (n, *event); row i is a function of (seed, i) alone.

        Arguments:
            n: number of draws.
            seed: names the draw, 0 <= seed < 2**64.  float32 and float64 draws agree to rounding.
            stream: an independent family of draws with the same seed.
        """
        return self._draw(Draws(seed, n, stream)).reshape(n, *self.event).to(dtype).to(device)

    def perturbed(self, process: Process, t: float) -> Perturbed:
        """The law p_t of x_t = alpha(t) x_0 + sigma(t) eps, a target like any other: to draw from it, or to test a corrector on it."""
        return Perturbed(self, float(process.alpha(t)), float(process.sigma(t)))

    def __repr__(self) -> str:
        return f"{type(self).__name__}(event={self.event})"


@dataclass(frozen=True)
class ExactScore:
    """grad_x ln p_t(x) of a target under a process; made by ``target.score(process)``."""

    target: Target
    process: Process

    def __call__(self, x: Tensor, t: Number) -> Tensor:
        """The score at x, (B, *event), in x's dtype; t is a float or a tensor () or (B,)."""
        flat = flatten(self.target, x)
        return self.target._score(flat, *levels(self.process, t, flat)).reshape(x.shape).to(x.dtype)


class Draws:
    """Independent standard normals, n rows at a time: each call takes the next slot of (seed, row)."""

    def __init__(self, seed: int, n: int, stream: int) -> None:
        self.n, self._seed, self._stream, self._slot = n, seed, stream, -1

    def normal(self, size: int) -> Tensor:
        """(n, size) standard normals, float64."""
        self._slot += 1
        source = SeededNormals(self._seed, range(self.n), (size,), dtype=torch.float64, device="cpu", stream=self._stream)
        return source.normal(0, self._slot)

    def index(self, cumulative: Tensor) -> Tensor:
        """(n,) indices drawn with the probabilities whose cumulative sum, (K,) ending in 1, is given."""
        uniform = torch.special.ndtr(self.normal(1)[:, 0])
        return torch.searchsorted(cumulative, uniform, right=True).clamp(max=len(cumulative) - 1)


class Gaussian(Target):
    """N(m, C).

    Arguments:
        mean: m, of the shape of one sample; a number stands for the shape (1,).
        std: standard deviation of independent coordinates, a number or of m's shape; the score is then elementwise.
        cov: C over the flattened sample, (d, d), symmetric and not negative.
        factor: F, (*event, r) or (d, r), for  C = F F^T + floor^2 I  without a d x d matrix; for smooth priors over images.
        floor: standard deviation added in every direction, used with ``factor`` alone.

    Raises:
        ValueError: not exactly one of std, cov and factor; wrong shapes; a negative or asymmetric covariance.
    """

    def __init__(
        self, mean: Array, *, std: Array | None = None, cov: Array | None = None, factor: Array | None = None, floor: float = 0.0
    ) -> None:
        m = float64(mean)
        self.event = tuple(m.shape) or (1,)
        self._m = m.reshape(-1)
        d = len(self._m)
        self._basis: Tensor | None = None  # U, (d, r); None stands for the identity
        self._rest: float | None = None  # variance outside the span of U; None where U spans everything
        if sum(given is not None for given in (std, cov, factor)) != 1:
            raise ValueError("Gaussian needs exactly one of std, cov and factor, as in Gaussian(mean, std=0.3).")
        if std is not None:
            s = float64(std)
            if not bool((s >= 0).all()) or s.numel() not in (1, d):
                raise ValueError(f"std has shape {tuple(s.shape)}, min {s.min():g}; expected values >= 0, one or of shape {self.event}.")
            self._lam = s.reshape(-1).square().expand(d)
        elif cov is not None:
            self._lam, self._basis = _eigen(float64(cov), d)
        else:
            f = float64(factor if factor is not None else 0.0)
            if f.dim() < 2 or f.numel() // f.shape[-1] != d or floor < 0:
                raise ValueError(f"factor has shape {tuple(f.shape)}, floor={floor}; expected ({d}, r) or (*event, r), and floor >= 0.")
            self._basis, singular, _ = torch.linalg.svd(f.reshape(d, -1), full_matrices=False)
            self._lam = singular.square() + floor**2
            self._rest = floor**2 if len(singular) < d else None

    def _score(self, x: Tensor, alpha: Number, sigma: Number) -> Tensor:
        residual = alpha * self._m.to(x.device) - x
        inside = alpha * alpha * self._lam.to(x.device) + sigma * sigma
        if self._basis is None:
            return residual / inside
        basis = self._basis.to(x.device)
        along = residual @ basis
        score = (along / inside) @ basis.T
        if self._rest is None:
            return score
        return score + (residual - along @ basis.T) / (alpha * alpha * self._rest + sigma * sigma)

    def _log_prob(self, x: Tensor, alpha: Number, sigma: Number) -> Tensor:
        residual = alpha * self._m.to(x.device) - x
        inside = alpha * alpha * self._lam.to(x.device) + sigma * sigma
        along = residual if self._basis is None else residual @ self._basis.to(x.device)
        terms = row_sum(along.square() / inside + inside.log())
        if self._rest is not None and self._basis is not None:
            outside = torch.as_tensor(alpha * alpha * self._rest + sigma * sigma, dtype=torch.float64, device=x.device).reshape(-1)
            left = row_sum((residual - along @ self._basis.to(x.device).T).square())
            terms = terms + left / outside + (x.shape[1] - len(self._lam)) * outside.log()
        return -0.5 * (terms + x.shape[1] * math.log(2 * math.pi))

    def _draw(self, draws: Draws) -> Tensor:
        scaled = draws.normal(len(self._lam)) * self._lam.sqrt()
        if self._basis is None:
            return self._m + scaled
        x = self._m + scaled @ self._basis.T
        if self._rest is None:
            return x
        z = draws.normal(len(self._m))
        return x + math.sqrt(self._rest) * (z - (z @ self._basis) @ self._basis.T)

    def _moments(self) -> tuple[Tensor, Tensor]:
        return self._m, self._spread(None)

    def _covariance(self) -> Tensor:
        if self._basis is None:
            return torch.diag(self._lam)
        c = (self._basis * self._lam) @ self._basis.T
        return c if self._rest is None else c + self._rest * (torch.eye(len(c), dtype=c.dtype) - self._basis @ self._basis.T)

    def _spread(self, directions: Tensor | None) -> Tensor:
        """<u, C u> for each row u of directions, (L, d) -> (L,); None stands for the coordinate axes."""
        if self._basis is None:
            return self._lam if directions is None else directions.square() @ self._lam
        square = (self._basis if directions is None else directions @ self._basis).square()
        inside = square @ self._lam
        length = 1.0 if directions is None else directions.square().sum(1)
        return inside if self._rest is None else inside + self._rest * (length - square.sum(1))

    def _projected_cdf(self, y: Tensor, directions: Tensor, alpha: float, sigma: float) -> Tensor:
        variance = alpha**2 * self._spread(directions) + sigma**2 * directions.square().sum(1)
        return torch.special.ndtr((y - alpha * (directions @ self._m)) / variance.sqrt())


class Mixture(Target):
    """sum_k w_k N(m_k, C_k).

    Arguments:
        weights: w, (K,), >= 0; scaled to sum to one.
        components: K Gaussians of one event shape, each with its own kind of covariance.

    Raises:
        ValueError: a weight that is negative or not finite, or all zero; another number of components; components of different shapes.
    """

    def __init__(self, weights: Array, components: Sequence[Gaussian]) -> None:
        w = float64(weights)
        if w.shape != (len(components),) or not bool((w >= 0).all()) or not 0 < float(w.sum()) < math.inf:
            raise ValueError(f"weights={w.tolist()} for {len(components)} components; expected one weight >= 0 each, not all zero.")
        if len({c.event for c in components}) != 1:
            raise ValueError(f"components have the shapes {[c.event for c in components]}; expected a single one.")
        self.weights, self.components = w / w.sum(), tuple(components)
        self.event = components[0].event

    def _score(self, x: Tensor, alpha: Number, sigma: Number) -> Tensor:
        share = torch.softmax(self._joint(x, alpha, sigma), 1)
        score = torch.zeros_like(x)
        for k, component in enumerate(self.components):
            score = score + share[:, k : k + 1] * component._score(x, alpha, sigma)
        return score

    def _log_prob(self, x: Tensor, alpha: Number, sigma: Number) -> Tensor:
        return torch.logsumexp(self._joint(x, alpha, sigma), 1)

    def _joint(self, x: Tensor, alpha: Number, sigma: Number) -> Tensor:
        """ln w_k + ln p_k(x), (B, K)."""
        return torch.stack([c._log_prob(x, alpha, sigma) for c in self.components], 1) + self.weights.log().to(x.device)

    def _draw(self, draws: Draws) -> Tensor:
        index = draws.index(self.weights.cumsum(0))
        x = self.components[0]._draw(draws)
        for k, component in enumerate(self.components[1:], 1):
            x = torch.where((index == k)[:, None], component._draw(draws), x)
        return x

    def _moments(self) -> tuple[Tensor, Tensor]:
        means, variances = (torch.stack(part) for part in zip(*(c._moments() for c in self.components), strict=True))
        mean = self.weights @ means
        return mean, self.weights @ (variances + (means - mean).square())

    def _covariance(self) -> Tensor:
        away = torch.stack([c._m for c in self.components]) - self._moments()[0]
        inner = torch.stack([c._covariance() for c in self.components])
        return torch.einsum("k,kij->ij", self.weights, inner) + (away.T * self.weights) @ away

    def _projected_cdf(self, y: Tensor, directions: Tensor, alpha: float, sigma: float) -> Tensor:
        parts = [w * c._projected_cdf(y, directions, alpha, sigma) for w, c in zip(self.weights, self.components, strict=True)]
        return torch.stack(parts).sum(0)


class Product(Target):
    """Independent coordinates, each with its own law.

    Arguments:
        coordinates: targets of one number each (event (1,)), in the order of the flattened sample.
        event: shape of one sample; default (number of coordinates,).

    Raises:
        ValueError: a coordinate of another shape; an event of another size.
    """

    def __init__(self, coordinates: Sequence[Target], event: Sequence[int] | None = None) -> None:
        self.coordinates = tuple(coordinates)
        self.event = (len(self.coordinates),) if event is None else tuple(event)
        wrong = [c.event for c in self.coordinates if math.prod(c.event) != 1]
        if wrong or math.prod(self.event) != len(self.coordinates) or not self.coordinates:
            got = f"{len(self.coordinates)} coordinates for event={self.event}, of which {len(wrong)} are not 1-d"
            raise ValueError(f"{got}; expected one 1-d target for each coordinate.")

    def _score(self, x: Tensor, alpha: Number, sigma: Number) -> Tensor:
        return torch.cat([c._score(x[:, i : i + 1], alpha, sigma) for i, c in enumerate(self.coordinates)], 1)

    def _log_prob(self, x: Tensor, alpha: Number, sigma: Number) -> Tensor:
        return row_sum(torch.stack([c._log_prob(x[:, i : i + 1], alpha, sigma) for i, c in enumerate(self.coordinates)], 1))

    def _draw(self, draws: Draws) -> Tensor:
        return torch.cat([c._draw(draws) for c in self.coordinates], 1)

    def _moments(self) -> tuple[Tensor, Tensor]:
        mean, variance = zip(*(c._moments() for c in self.coordinates), strict=True)
        return torch.cat(mean), torch.cat(variance)

    def _covariance(self) -> Tensor:
        return torch.diag(self._moments()[1])


class Empirical(Target):
    """The empirical measure of a data set: n points of weight 1/n.  Its score is what a network that memorises would learn.

    Memory is bounded: data and states meet in blocks of 32 MiB.  Without noise there is no density.

    Arguments:
        data: y, (n, *event), floating point, finite; kept in its dtype and on its device.

    Raises:
        ValueError: no data, or data that are not finite.
    """

    def __init__(self, data: Tensor) -> None:
        if data.dim() < 2 or not len(data) or not data.is_floating_point() or not bool(data.isfinite().all()):
            raise ValueError(f"data has shape {tuple(data.shape)} and dtype {data.dtype}; expected finite floating numbers (n, *event).")
        self.event = tuple(data.shape[1:])
        self._data = data.reshape(len(data), -1)
        self._centre = torch.zeros(self._data.shape[1], dtype=torch.float64, device=data.device)
        self._centre = self._moments()[0]

    def _score(self, x: Tensor, alpha: Number, sigma: Number) -> Tensor:
        _, mean = self._posterior(x, alpha, sigma)
        return (alpha * mean - x) / (sigma * sigma)

    def _log_prob(self, x: Tensor, alpha: Number, sigma: Number) -> Tensor:
        log_sum, _ = self._posterior(x, alpha, sigma)
        log_norm = torch.as_tensor(2 * math.pi * sigma * sigma, dtype=torch.float64, device=x.device).reshape(-1).log()
        return log_sum - math.log(len(self._data)) - 0.5 * x.shape[1] * log_norm

    def _posterior(self, x: Tensor, alpha: Number, sigma: Number) -> tuple[Tensor, Tensor]:
        """ln sum_i exp(-|x - alpha y_i|^2 / 2 sigma^2), (B,), and E[y | x], (B, d), in one pass with a running maximum."""
        centre = self._centre.to(x.device)
        away = x - alpha * centre  # centred, so that |x|^2 - 2<x, y> + |y|^2 cancels less
        top = torch.full((len(x), 1), -math.inf, dtype=x.dtype, device=x.device)
        total, weighted = torch.zeros_like(top), torch.zeros_like(x)
        for y in self._chunks(len(x), x.device):
            square = row_sum(away.square())[:, None] - 2 * alpha * (away @ y.T) + alpha * alpha * row_sum(y.square())
            logits = -0.5 * square.clamp_(min=0) / (sigma * sigma)
            highest = torch.maximum(top, logits.amax(1, keepdim=True))
            share, shrink = (logits - highest).exp(), (top - highest).exp()
            total = total * shrink + share.sum(1, keepdim=True)
            weighted = weighted * shrink + share @ y
            top = highest
        return (top + total.log())[:, 0], weighted / total + centre

    def _chunks(self, rows: int, device: torch.device) -> Iterator[Tensor]:
        """The centred data, a few rows at a time, in float64."""
        size = max(1, _CHUNK // max(rows, self._data.shape[1]))
        return (chunk.to(device).double() - self._centre.to(device) for chunk in self._data.split(size))

    def _draw(self, draws: Draws) -> Tensor:
        n = len(self._data)
        cumulative = torch.arange(1, n + 1, dtype=torch.float64) / n
        return self._data[draws.index(cumulative).to(self._data.device)].double().cpu()

    def _moments(self) -> tuple[Tensor, Tensor]:
        first, second = zip(*((y.sum(0), y.square().sum(0)) for y in self._chunks(1, self._data.device)), strict=True)
        mean, square = sum(first) / len(self._data), sum(second) / len(self._data)
        return self._centre + mean, square - mean.square()

    def _covariance(self) -> Tensor:
        return torch.stack([y.T @ y / len(self._data) for y in self._chunks(1, self._data.device)]).sum(0)


class Perturbed(Target):
    """The law of  alpha x_0 + sigma eps  for one pair (alpha, sigma); made by ``target.perturbed(process, t)``.

    Noise on top of noise is noise: at (a, s) it is x_0's law at (a alpha, sqrt(a^2 sigma^2 + s^2)).
    """

    def __init__(self, target: Target, alpha: float, sigma: float) -> None:
        self._target, self._alpha, self._sigma, self.event = target, alpha, sigma, target.event

    def _levels(self, alpha: Number, sigma: Number) -> tuple[Number, Number]:
        return alpha * self._alpha, (alpha * alpha * self._sigma**2 + sigma * sigma) ** 0.5

    def _score(self, x: Tensor, alpha: Number, sigma: Number) -> Tensor:
        return self._target._score(x, *self._levels(alpha, sigma))

    def _log_prob(self, x: Tensor, alpha: Number, sigma: Number) -> Tensor:
        return self._target._log_prob(x, *self._levels(alpha, sigma))

    def _draw(self, draws: Draws) -> Tensor:
        x0 = self._target._draw(draws)
        return self._alpha * x0 + self._sigma * draws.normal(x0.shape[1])

    def _moments(self) -> tuple[Tensor, Tensor]:
        mean, variance = self._target._moments()
        return self._alpha * mean, self._alpha**2 * variance + self._sigma**2

    def _covariance(self) -> Tensor:
        c = self._target._covariance()
        return self._alpha**2 * c + self._sigma**2 * torch.eye(len(c), dtype=c.dtype, device=c.device)

    def _projected_cdf(self, y: Tensor, directions: Tensor, alpha: float, sigma: float) -> Tensor | None:
        a, s = self._levels(alpha, sigma)
        return self._target._projected_cdf(y, directions, float(a), float(s))


def gaussian_mixture(weights: Array, means: Array, stds: Array) -> Mixture:
    """A mixture of Gaussians with independent coordinates.

    Arguments:
        weights: w, (K,).
        means: m, (K, *event), or (K,) for numbers.
        stds: (K,) one each, or shaped like means, one for each coordinate.
    """
    pairs = zip(float64(means), float64(stds), strict=True)
    return Mixture(weights, [Gaussian(m, std=s) for m, s in pairs])


def gaussian_1d(std: float = 0.3, mean: float = 0.5) -> Gaussian:
    """N(mean, std^2), event (1,): every solver's first test."""
    return Gaussian(mean, std=std)


def mixture_1d() -> Mixture:
    """Two uneven modes at -1 and 0.6, event (1,): asymmetric, so that a mirrored or mis-weighted sample shows."""
    return gaussian_mixture([0.3, 0.7], [-1.0, 0.6], [0.15, 0.25])


def mixture_2d() -> Mixture:
    """Three uneven modes in the plane, one of them slanted, event (2,)."""
    slanted = Gaussian([1.0, 0.8], cov=[[0.09, 0.05], [0.05, 0.06]])
    return Mixture([0.5, 0.3, 0.2], [slanted, Gaussian([-1.2, 0.4], std=0.2), Gaussian([0.3, -1.1], std=[0.3, 0.1])])


def ring_2d(modes: int = 8, radius: float = 2.0, std: float = 0.1) -> Mixture:
    """Equal modes on a circle, event (2,): a test of dropped modes."""
    angle = 2 * math.pi * torch.arange(modes, dtype=torch.float64) / modes
    return gaussian_mixture(torch.ones(modes), radius * torch.stack([angle.cos(), angle.sin()], 1), torch.full((modes,), std))


def mixture_64d() -> Mixture:
    """Four uneven modes in 64 dimensions, means of order one, standard deviations 0.1 to 0.5, event (64,)."""
    means = Draws(0, 4, DRAWS).normal(64)
    return gaussian_mixture([0.4, 0.3, 0.2, 0.1], means, [0.5, 0.3, 0.2, 0.1])


def float64(value: Array) -> Tensor:
    """``value`` as a float64 tensor on the host."""
    if isinstance(value, Tensor):
        return value.detach().double().cpu()
    return torch.as_tensor(value, dtype=torch.float64)  # at once: by way of torch's default dtype 0.3 would become 0.30000001


def flatten(target: Target, x: Tensor) -> Tensor:
    """x, (B, *event), as (B, d) float64; ValueError for any other shape."""
    if x.dim() == 0 or tuple(x.shape[1:]) != target.event:
        raise ValueError(f"x has shape {tuple(x.shape)}; expected (B, {', '.join(map(str, target.event))}) for {target}.")
    return x.reshape(len(x), math.prod(target.event)).double()


def levels(process: Process, t: Number, flat: Tensor) -> tuple[Number, Number]:
    """alpha(t) and sigma(t) ready to multiply (B, d): floats for a float, float64 tensors (B, 1) or () for a tensor."""
    if not isinstance(t, Tensor):
        return process.alpha_(float(t)), process.sigma_(float(t))
    t = t.to(flat.device, torch.float64)
    column = t[:, None] if t.dim() else t
    return process.alpha_(column), process.sigma_(column)


def row_sum(x: Tensor) -> Tensor:
    """Sum over the coordinates of each row, (B, d) -> (B,), with the same bits whatever the number of rows."""
    return row_mean(x) * x.shape[1]


def _eigen(cov: Tensor, d: int) -> tuple[Tensor, Tensor]:
    """Eigenvalues (d,) and eigenvectors (d, d) of a covariance."""
    if cov.shape != (d, d) or not torch.allclose(cov, cov.T, rtol=1e-6, atol=0.0):
        raise ValueError(f"cov has shape {tuple(cov.shape)}; expected a symmetric ({d}, {d}) matrix.")
    values, vectors = torch.linalg.eigh(cov)
    if float(values[0]) < -1e-9 * float(values[-1].abs()):
        raise ValueError(f"cov has the eigenvalue {float(values[0]):g}; expected none below zero.")
    return values.clamp(min=0), vectors
