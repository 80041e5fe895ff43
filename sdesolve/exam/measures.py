"""Distances between a sample and a law, each with its standard error, so that a number can be judged.

With x_1 ... x_n against a reference, which is another sample y or a target:

    moments             mean and covariance, entry by entry, as z-scores
    ks                  D = sup |F_x - F_ref| along random directions;  p = 2 sum_k (-1)^(k-1) exp(-2 k^2 lambda^2)
    energy_distance     2 E|x - y| - E|x - x'| - E|y - y'|
    mmd                 E k(x, x') + E k(y, y') - 2 E k(x, y),   k = mean over widths h of exp(-|x - y|^2 / 2 h^2)
    sliced_wasserstein2 mean over directions of  int_0^1 (Q_x - Q_y)^2 dq,   Q the quantile function

The last three are squared norms |a|^2 of a difference a of the two laws.  Each is estimated as <a_1, a_2>, with a_1 from the even
rows and a_2 from the odd ones: zero in expectation exactly when the laws agree (so a value may be negative), and, given a_1, a
mean of independent numbers h(row), with a standard error and a normal p-value even there, where |a|^2 itself is degenerate
[Shekhar, Kim & Ramdas 2022].  Sorting along directions, and random frequencies, keep the cost at n log n:  E|<u, v>| is a constant
times |v| over directions u, and k(x, y) = E cos <w, x - y> over Gaussian frequencies w.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from ..noise import SeededNormals
from .targets import DIRECTIONS, FREQUENCIES, REFERENCE, Target

Reference: TypeAlias = Tensor | Target

_LARGEST_COVARIANCE = 256  # coordinates beyond which moments looks at the variances alone
_SUBSAMPLE = 1000  # rows of each sample from which mmd takes its median distance
_TOGETHER = 64  # frequencies whose waves are held at once


class Measured(NamedTuple):
    """A measured number.

    Attributes:
        value: the measurement, as the measure defines it.
        standard_error: of ``value``.  For ks, the spread of D between samples of one law.  For the three distances, the spread over
            the odd rows, which is the whole of it where the laws agree and up to sqrt(2) too small where they are far apart.
        p_value: probability of a value at least as extreme if the two laws agree; one-sided for ks and the three distances.
    """

    value: float
    standard_error: float
    p_value: float

    @property
    def z(self) -> float:
        """value / standard_error."""
        return self.value / self.standard_error if self.standard_error > 0 else math.copysign(math.inf, self.value) if self.value else 0.0


class Moments(NamedTuple):
    """What :func:`moments` returns.

    Attributes:
        mean, covariance: the worst entry (sample less reference); its p-value is corrected for having picked it (Bonferroni).
        mean_z: z-scores of the mean, (d,).
        covariance_z: z-scores of the covariance, (d, d), variances on the diagonal; of the variances alone, (d,), where d > 256.
    """

    mean: Measured
    covariance: Measured
    mean_z: Tensor
    covariance_z: Tensor


def moments(x: Tensor, reference: Reference) -> Moments:
    """Mean and covariance of a sample against a target's exact ones, or another sample's.

    The standard error of a mean is sqrt(Var / n), that of a covariance sqrt((E[u^2 v^2] - Cov(u, v)^2) / n), both estimated from
    the sample; with two samples they add in quadrature.  Trust the p-values from about a thousand rows on.

    Arguments:
        x: sample, (n, *event), n >= 2.
        reference: a target of that event, or a sample (m, *event), m >= 2.

    Raises:
        ValueError: fewer than two rows, rows that are not finite (their number and the first), or shapes that differ.
    """
    a = rows(x, "x")
    full = a.shape[1] <= _LARGEST_COVARIANCE
    mean, mean_error, cov, cov_error = _estimate(a, full)
    if isinstance(reference, Target):
        _same_event(x, reference.event)
        mean_0 = reference.mean.reshape(-1).to(a.device)
        cov_0 = (reference.covariance if full else reference.variance.reshape(-1)).to(a.device)
    else:
        _same_event(x, tuple(reference.shape[1:]))
        mean_0, more_mean, cov_0, more_cov = _estimate(rows(reference, "reference").to(a.device), full)
        mean_error, cov_error = torch.hypot(mean_error, more_mean), torch.hypot(cov_error, more_cov)
    distinct = torch.ones_like(cov, dtype=torch.bool).triu() if full else torch.ones_like(cov, dtype=torch.bool)
    return Moments(
        _worst(mean - mean_0, mean_error),
        _worst((cov - cov_0)[distinct], cov_error[distinct]),
        _z(mean - mean_0, mean_error),
        _z(cov - cov_0, cov_error),
    )


def ks(x: Tensor, reference: Reference, *, projections: int = 32, seed: int = 0) -> Measured:
    """Kolmogorov-Smirnov test along random directions; in one dimension, the test itself.

    Exact where the reference is a Gaussian or a mixture, whose projections have a known distribution function; two-sample
    otherwise, against as many draws as there are rows in x.

    Arguments:
        x: sample, (n, *event), n >= 2.
        reference: a target, or a sample (m, *event).
        projections: number of directions L, a function of ``seed`` alone; one dimension has but one.
        seed: names the directions and the draws.

    Returns:
        The largest D, its spread under equality 0.26 / sqrt(n), and the smallest p-value times L.  D itself is not zero under
        equality but about 0.87 / sqrt(n): read the p-value.

    Raises:
        ValueError: as :func:`moments`.
    """
    a = rows(x, "x")
    directions = unit_directions(a.shape[1], projections, seed).to(a.device)
    along = (a @ directions.T).T.contiguous().sort(1).values  # (L, n)
    exact = None
    if isinstance(reference, Target):
        _same_event(x, reference.event)
        exact = reference._projected_cdf(along.T.cpu(), directions.cpu(), 1.0, 0.0)
    if exact is not None:
        d, effective = _one_sample_d(exact.T.to(along)), float(len(a))
    else:
        b = _reference_rows(x, reference, seed)
        d = _two_sample_d(along, (b @ directions.T).T.contiguous().sort(1).values)
        effective = len(a) * len(b) / (len(a) + len(b))
    largest = float(d.max())
    if math.isnan(largest):
        raise ValueError("the distribution function of the reference is not a number; expected a law with a positive spread along every direction.")
    return Measured(largest, 0.26029 / math.sqrt(effective), min(1.0, len(d) * kolmogorov_p(largest, effective)))


def energy_distance(x: Tensor, reference: Reference, *, projections: int = 32, seed: int = 0) -> Measured:
    """Energy distance  2 E|x - y| - E|x - x'| - E|y - y'|; in units of the data.  [Szekely & Rizzo 2013, eq. 5]

    Sees every difference between two laws, location first.  Averaged over directions: unbiased over them, exact in one dimension.

    Arguments:
        x: sample, (n, *event), n >= 4.
        reference: a target, from which as many rows are drawn, or a sample (m, *event), m >= 4.
        projections: number of directions, a function of ``seed`` alone; one dimension has but one.
        seed: names the directions and the draws.

    Raises:
        ValueError: as :func:`moments`, with four rows at least.
    """
    x1, y1, x2, y2 = _halves(x, reference, seed)
    d = x1.shape[1]
    directions = unit_directions(d, projections, seed).to(x1)
    length = math.sqrt(math.pi) * math.exp(math.lgamma((d + 1) / 2) - math.lgamma(d / 2))  # |v| / E|<u, v>|
    h_x, h_y = torch.zeros_like(x2[:, 0]), torch.zeros_like(y2[:, 0])
    for u in directions:
        near, far = (x1 @ u).sort().values, (y1 @ u).sort().values
        for h, z in ((h_x, x2 @ u), (h_y, y2 @ u)):
            h += (_mean_distance(z, far) - _mean_distance(z, near)) * (length / len(directions))
    return _judge(float(h_x.mean() - h_y.mean()), h_x, h_y)


def mmd(
    x: Tensor, reference: Reference, *, widths: tuple[float, ...] = (0.25, 0.5, 1.0), frequencies: int = 64, seed: int = 0
) -> Measured:
    """Squared maximum mean discrepancy of Gaussian kernels; a pure number in [0, 2].  [Gretton et al. 2012, eq. 3]

    The kernels stand as random Fourier features, |E e^(i<w,x>) - E e^(i<w,y>)|^2 averaged over w.  [Rahimi & Recht 2007]

    Arguments:
        x: sample, (n, *event), n >= 4.
        reference: a target, from which as many rows are drawn, or a sample (m, *event), m >= 4.
        widths: kernel widths h > 0 in units of the median distance; the smaller, the finer the structure that is seen.
        frequencies: number of w for each width, a function of ``seed`` alone.
        seed: names the frequencies and the draws.

    Raises:
        ValueError: as :func:`moments`, with four rows at least; or more than half of the distances are zero.
    """
    x1, y1, x2, y2 = _halves(x, reference, seed)
    median = float(torch.nn.functional.pdist(torch.cat([x1[:_SUBSAMPLE], y1[:_SUBSAMPLE]])).median())
    if not median > 0:
        raise ValueError("mmd: half of the distances between rows are zero, which leaves no scale to compare on; expected distinct rows.")
    normal = _normals(len(widths) * frequencies, x1.shape[1], seed, FREQUENCIES).to(x1)
    waves = normal / (median * normal.new_tensor(widths).repeat_interleave(frequencies))[:, None]
    h_x, h_y = torch.zeros_like(x2[:, 0]), torch.zeros_like(y2[:, 0])
    for w in waves.split(_TOGETHER):
        phases = [(part @ w.T).float() for part in (x1, y1, x2, y2)]  # any function of a row is a fair witness: float32 waves are one
        for wave in (torch.cos, torch.sin):
            p1, q1, p2, q2 = (wave(phase) for phase in phases)
            difference = (p1.mean(0, dtype=torch.float64) - q1.mean(0, dtype=torch.float64)).float() / len(waves)
            h_x += p2 @ difference
            h_y += q2 @ difference
    return _judge(float(h_x.mean() - h_y.mean()), h_x, h_y)


def sliced_wasserstein2(x: Tensor, reference: Reference, *, projections: int = 32, seed: int = 0) -> Measured:
    """Squared 2-Wasserstein distance, averaged over random directions; in squared units of the data.  [Bonneel et al. 2015, eq. 8]

    Value:  int (Q_x1 - Q_y1)(Q_x2 - Q_y2) dq.  Its standard error is that of the mean of the potential  h(z) = int^z w(F(s)) ds,
    w = Q_x1 - Q_y1, which is the influence of a row on the integral; it is generous where the law has gaps (z of right samples of
    ``mixture_1d`` spreads by 0.76 to 0.91 instead of 1).

    Arguments:
        x: sample, (n, *event), n >= 4.
        reference: a target, from which as many rows are drawn, or a sample (m, *event), m >= 4; sizes may differ.
        projections: number of directions, a function of ``seed`` alone; one dimension has but one.
        seed: names the directions and the draws.

    Raises:
        ValueError: as :func:`moments`, with four rows at least.
    """
    x1, y1, x2, y2 = _halves(x, reference, seed)
    directions = unit_directions(x1.shape[1], projections, seed).to(x1)
    level = (torch.arange(min(map(len, (x1, y1, x2, y2))), device=x1.device) + 0.5) / min(map(len, (x1, y1, x2, y2)))
    h_x, h_y, value = torch.zeros_like(x2[:, 0]), torch.zeros_like(y2[:, 0]), 0.0
    for u in directions:
        q_x1, q_y1, q_x2, q_y2 = (_quantiles(half @ u, level) for half in (x1, y1, x2, y2))
        w = (q_x1 - q_y1) / len(directions)
        value += float((w * (q_x2 - q_y2)).mean())
        knots = 0.5 * (q_x1 + q_y1)
        potential = torch.cat([w.new_zeros(1), (0.5 * (w[1:] + w[:-1]) * knots.diff()).cumsum(0)])
        h_x += _interpolate(x2 @ u, knots, potential, w)
        h_y += _interpolate(y2 @ u, knots, potential, w)
    return _judge(value, h_x, h_y)


@dataclass(frozen=True)
class Comparison:
    """Every measure of a sample against a reference; made by :func:`compare`, printed as a table.

    Attributes:
        measured: name -> :class:`Measured`.
        rows: number of rows of the sample.
    """

    measured: dict[str, Measured]
    rows: int

    @property
    def worst(self) -> tuple[str, Measured]:
        """The measure with the smallest p-value."""
        return min(self.measured.items(), key=lambda item: item[1].p_value)

    @property
    def p_value(self) -> float:
        """The smallest p-value, corrected for the number of measures (Bonferroni)."""
        return min(1.0, len(self.measured) * self.worst[1].p_value)

    def passed(self, level: float = 1e-3) -> bool:
        """Whether no measure tells the two laws apart: a right sample fails with probability below ``level``."""
        return self.p_value >= level

    def __str__(self) -> str:
        lines = [f"{f'{self.rows} rows':<22}{'value':>12}{'s.e.':>12}{'z':>8}{'p':>10}"]
        for name, m in self.measured.items():
            z = "" if name == "ks" else f"{m.z:.2f}"
            lines.append(f"{name:<22}{m.value:>12.3e}{m.standard_error:>12.1e}{z:>8}{m.p_value:>10.2g}")
        return "\n".join([*lines, f"worst: {self.worst[0]}, p = {self.p_value:.2g} after correction for {len(self.measured)} measures"])


def compare(x: Tensor, reference: Reference, *, seed: int = 0) -> Comparison:
    """Every measure of this module at its defaults.

    Arguments:
        x: sample, (n, *event), n >= 4; a thousand and more for the p-values to be right.
        reference: a target, or a sample (m, *event).
        seed: names directions and draws.

    Raises:
        ValueError: as :func:`moments`, with four rows at least.
    """
    m = moments(x, reference)
    measured = {"mean (worst)": m.mean, "covariance (worst)": m.covariance}
    for measure in (ks, energy_distance, mmd, sliced_wasserstein2):
        measured[measure.__name__] = measure(x, reference, seed=seed)
    return Comparison(measured, len(x))


def kolmogorov_p(d: float, n: float) -> float:
    """P(D >= d) of a sample of n under equality, asymptotically in n with Stephens's correction.

    2 sum_k (-1)^(k-1) exp(-2 k^2 l^2)  =  1 - sqrt(2 pi)/l sum_k exp(-(2k-1)^2 pi^2 / 8 l^2),   l = (sqrt n + 0.12 + 0.11/sqrt n) d;
    the first series converges fast for large l, the second for small.  [Stephens 1970; Marsaglia, Tsang & Wang 2003]

    Arguments:
        d: the largest difference between two distribution functions, in [0, 1].
        n: number of rows; n m / (n + m) for two samples.
    """
    root = math.sqrt(n)
    scaled = (root + 0.12 + 0.11 / root) * d
    if scaled < 0.05:
        return 1.0
    if scaled < 1.0:
        terms = sum(math.exp(-((2 * k - 1) ** 2) * math.pi**2 / (8 * scaled**2)) for k in range(1, 8))
        return 1.0 - math.sqrt(2 * math.pi) / scaled * terms
    return 2 * sum((-1) ** (k - 1) * math.exp(-2 * k**2 * scaled**2) for k in range(1, 8))


def unit_directions(d: int, count: int, seed: int) -> Tensor:
    """(L, d) random unit vectors, a function of the arguments alone; the only one, +1, in one dimension."""
    if d == 1:
        return torch.ones(1, 1, dtype=torch.float64)
    normal = _normals(count, d, seed, DIRECTIONS)
    return normal / normal.norm(dim=1, keepdim=True)


def rows(x: Tensor, name: str, least: int = 2) -> Tensor:
    """A sample as (n, d) float64.

    Raises:
        ValueError: too few rows, or rows that are not finite.
    """
    if x.dim() == 0 or len(x) < least:
        raise ValueError(f"{name} has shape {tuple(x.shape)}; expected a sample (n, *event) of at least {least} rows.")
    flat = x.detach().reshape(len(x), -1).double()
    bad = (~flat.isfinite().all(1)).nonzero()[:, 0]
    if len(bad):
        found = f"{len(bad)} of {len(x)} rows that are not finite, the first at index {int(bad[0])}"
        raise ValueError(f"{name} has {found}; a measure must not hide them: count them, then drop them with x[sol.ok()].")
    return flat


def _same_event(x: Tensor, event: tuple[int, ...]) -> None:
    if tuple(x.shape[1:]) != event:
        raise ValueError(f"x has rows of shape {tuple(x.shape[1:])}, the reference of {event}; expected the same.")


def _reference_rows(x: Tensor, reference: Reference, seed: int, least: int = 2) -> Tensor:
    """(m, d) rows of the reference: its own, or as many draws as x has rows, from a stream that ``Target.sample`` does not use."""
    if isinstance(reference, Target):
        reference = reference.sample(len(x), seed=seed, dtype=torch.float64, stream=REFERENCE)
    _same_event(x, tuple(reference.shape[1:]))
    return rows(reference, "reference", least).to(x.device)


def _halves(x: Tensor, reference: Reference, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Even and odd rows x1, y1, x2, y2 of both samples, (n/2, d); interleaved, so that rows in some order spread evenly."""
    a, b = rows(x, "x", 4), _reference_rows(x, reference, seed, 4)
    return a[::2], b[::2], a[1::2], b[1::2]


def _normals(count: int, d: int, seed: int, stream: int) -> Tensor:
    """(count, d) standard normals, float64."""
    return SeededNormals(seed, range(count), (d,), dtype=torch.float64, device="cpu", stream=stream).normal(0)


def _estimate(a: Tensor, full: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Mean (d,) and covariance (d, d), or variance (d,), each with its standard error."""
    n, mean = len(a), a.mean(0)
    away = a - mean
    square = away.square()
    mean_error = (square.sum(0) / (n - 1) / n).sqrt()
    second, fourth = (away.T @ away / n, square.T @ square / n) if full else (square.mean(0), square.square().mean(0))
    return mean, mean_error, second * (n / (n - 1)), ((fourth - second.square()).clamp(min=0) / n).sqrt()


def _z(difference: Tensor, error: Tensor) -> Tensor:
    """difference / error, with 0 / 0 = 0."""
    return torch.where(difference == 0, torch.zeros_like(difference), difference / error)


def _worst(difference: Tensor, error: Tensor) -> Measured:
    """The entry with the largest z-score, with a two-sided p-value times the number of entries."""
    z = _z(difference, error).abs()
    i = int(z.argmax())
    return Measured(float(difference[i]), float(error[i]), min(1.0, len(z) * math.erfc(float(z[i]) / math.sqrt(2))))


def _one_sample_d(cdf: Tensor) -> Tensor:
    """sup |F_n - F|, (L,), from F at the sorted sample, (L, n)."""
    n = cdf.shape[1]
    below = torch.arange(n, dtype=cdf.dtype, device=cdf.device) / n
    return torch.maximum(cdf - below, below + 1 / n - cdf).amax(1)


def _two_sample_d(u: Tensor, v: Tensor) -> Tensor:
    """sup |F_u - F_v|, (L,), of sorted samples (L, n) and (L, m), ties counted right."""
    both = torch.cat([u, v], 1)
    below = [torch.searchsorted(s, both, right=True).double() / s.shape[1] for s in (u, v)]
    return (below[0] - below[1]).abs().amax(1)


def _mean_distance(z: Tensor, s: Tensor) -> Tensor:
    """E|z - s| of each z, (n,), over a sorted sample s, (m,)."""
    below = torch.searchsorted(s, z)
    total = torch.cat([s.new_zeros(1), s.cumsum(0)])
    return (z * (2 * below - len(s)) + total[-1] - 2 * total[below]) / len(s)


def _quantiles(z: Tensor, level: Tensor) -> Tensor:
    """Q(level) of the sample z, (n,)."""
    return z.sort().values[(level * len(z)).long()]


def _interpolate(z: Tensor, knots: Tensor, values: Tensor, slopes: Tensor) -> Tensor:
    """The function through (knots, values) at z, (n,), going on with the first or the last slope outside the knots."""
    i = torch.searchsorted(knots, z).clamp(1, len(knots) - 1)
    left, width = knots[i - 1], knots[i] - knots[i - 1]
    share = torch.where(width > 0, (z - left) / width, torch.zeros_like(z)).clamp(0, 1)
    inside = torch.lerp(values[i - 1], values[i], share)
    return inside + slopes[-1] * (z - knots[-1]).clamp(min=0) + slopes[0] * (z - knots[0]).clamp(max=0)


def _judge(value: float, h_x: Tensor, h_y: Tensor) -> Measured:
    """The value with the standard error of  mean h_x - mean h_y  and the one-sided p-value of a normal law."""
    error = math.sqrt(float(h_x.var()) / len(h_x) + float(h_y.var()) / len(h_y))
    if math.isnan(value) or math.isnan(error):
        raise ValueError("the measure is not a number: the reference has no finite density or moments here.")
    return Measured(value, error, 0.5 * math.erfc(value / error / math.sqrt(2)) if error > 0 else 1.0)
