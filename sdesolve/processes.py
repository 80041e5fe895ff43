"""Forward (noising) processes.

Each is a linear SDE  dx = a(t) x dt + g(t) dw  on [0, T] whose transition from the data is Gaussian:

    x_t = alpha(t) x_0 + sigma(t) eps,      eps ~ N(0, I),
    a(t) = d ln alpha / dt,                 g(t)^2 = d sigma^2 / dt - 2 a(t) sigma(t)^2,
    log_snr(t) = ln(alpha^2 / sigma^2)      (twice the lambda of the DPM-Solver papers).

A process is its coefficients and nothing else: solvers are written in terms of alpha, sigma, a and g, and never ask which
process they were given.  To add one, write the four hooks and the inverse of ``log_snr``; each is a formula for a float or
a float64 tensor.
"""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from ._arrays import Number, bcast, softplus, xp
from ._errors import as_float, as_int
from .noise import DATA, PRIOR, SeededNormals, check_seed, sample_ids_of

if TYPE_CHECKING:
    from .problems import ProbabilityFlow, ReverseSDE


class Process(ABC):
    """A forward process  x_t = alpha(t) x_0 + sigma(t) eps.

    Every public method takes a time ``t`` in [0, T] as a float or a tensor of shape () or (B,), and computes in float64.

    Attributes:
        T: end of the process, where x_T is (nearly) the prior.
        eps: where sampling stops by default, the value of the literature.
        origin, horizon: the times of the first and the last level of a network that counts its levels: 0, and T unless the process ends before it.
        default_grid: name of the time grid that suits the process (see ``sdesolve.grids``).
    """

    T: float
    eps: float
    default_grid: ClassVar[str] = "uniform"

    # -- the hooks: formulas of a float or a float64 tensor ----------------------------------------------------------

    @abstractmethod
    def log_alpha_(self, t: Number) -> Number:
        """ln alpha(t)."""

    @abstractmethod
    def sigma_(self, t: Number) -> Number:
        """sigma(t)."""

    @abstractmethod
    def drift_rate_(self, t: Number) -> Number:
        """a(t) = d ln alpha / dt."""

    @abstractmethod
    def diffusion_(self, t: Number) -> Number:
        """g(t)."""

    @abstractmethod
    def log_snr_inverse_(self, log_snr: Number) -> Number:
        """The t at which ln(alpha^2/sigma^2) has the given value."""

    def alpha_(self, t: Number) -> Number:
        log_alpha = self.log_alpha_(t)
        return xp(log_alpha).exp(log_alpha)

    def log_snr_(self, t: Number) -> Number:
        sigma = self.sigma_(t)
        return 2 * (self.log_alpha_(t) - xp(sigma).log(sigma))

    # -- what users call ---------------------------------------------------------------------------------------------

    def alpha(self, t: Number) -> Tensor:
        """Signal level alpha(t), a float64 tensor of t's shape."""
        return self._evaluate(self.alpha_, self._checked(t))

    def sigma(self, t: Number) -> Tensor:
        """Noise level sigma(t), a float64 tensor of t's shape."""
        return self._evaluate(self.sigma_, self._checked(t))

    def log_snr(self, t: Number) -> Tensor:
        """ln(alpha^2 / sigma^2), a float64 tensor of t's shape; falls with t."""
        return self._evaluate(self.log_snr_, self._checked(t))

    def diffusion(self, t: Number) -> Tensor:
        """g(t) of dx = a x dt + g dw, a float64 tensor of t's shape."""
        return self._evaluate(self.diffusion_, self._checked(t))

    def log_snr_inverse(self, log_snr: Number) -> Tensor:
        """The time of a log signal-to-noise ratio: ``p.log_snr_inverse(p.log_snr(t)) == t``."""
        return self._evaluate(self.log_snr_inverse_, log_snr)

    def alpha_inverse(self, alpha: Number) -> Tensor:
        """The time of a signal level; raises ValueError for a process whose alpha is constant."""
        return self._evaluate(self.alpha_inverse_, alpha)

    def sigma_inverse(self, sigma: Number) -> Tensor:
        """The time of a noise level: ``p.sigma_inverse(p.sigma(t)) == t``."""
        return self._evaluate(self.sigma_inverse_, sigma)

    @abstractmethod
    def sigma_inverse_(self, sigma: Number) -> Number:
        """The t at which sigma(t) has the given value."""

    def alpha_inverse_(self, alpha: Number) -> Number:
        raise ValueError(f"{type(self).__name__} has alpha(t) = 1 at every time: there is no inverse. Use sigma_inverse or log_snr_inverse.")

    def drift(self, x: Tensor, t: Number) -> Tensor:
        """a(t) x, the drift of the forward SDE; x is (B, *event)."""
        return bcast(self.drift_rate_(_as_number(t)), x) * x

    def marginal(self, x0: Tensor, t: Number) -> tuple[Tensor, Tensor]:
        """Mean (B, *event) and standard deviation (of t's shape) of p(x_t | x_0) = N(alpha x_0, sigma^2)."""
        return bcast(self.alpha_(_as_number(t)), x0) * x0, self.sigma(t)

    def perturb(self, x0: Tensor, t: Number, *, seed: int, sample_ids: Tensor | Sequence[int] | None = None) -> Tensor:
        """A draw from p(x_t | x_0); row i depends on (seed, sample_ids[i], x0[i], t[i]) alone.

        Arguments:
            x0: data, (B, *event), floating point.
            t: time, float or tensor () or (B,).
            seed: names the draw.
            sample_ids: (B,) names of the rows, default 0..B-1; rows of one name have the same noise.
        """
        if isinstance(t, Tensor) and t.dim() and t.shape != x0.shape[:1]:
            raise ValueError(f"t has shape {tuple(t.shape)} for {len(x0)} samples; expected () or ({len(x0)},).")
        noise = _standard_normal(x0.shape, seed, sample_ids, x0.dtype, x0.device, DATA)
        mean, _ = self.marginal(x0, t)
        return mean + bcast(self.sigma_(_as_number(t)), x0) * noise

    @property
    def origin(self) -> float:
        return 0.0

    @property
    def horizon(self) -> float:
        return self.T

    @property
    def prior_std(self) -> float:
        """Standard deviation of the prior that stands for p(x_T)."""
        return 1.0

    def prior(
        self,
        shape: Sequence[int],
        *,
        seed: int,
        sample_ids: Tensor | Sequence[int] | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> Tensor:
        """A draw of x_T ~ N(0, prior_std^2 I) of the given shape (B, *event); row i depends on (seed, sample_ids[i]) alone, so rows of one name are equal."""
        return self.prior_std * _standard_normal(shape, seed, sample_ids, dtype, device, PRIOR)

    def prior_log_prob(self, x: Tensor) -> Tensor:
        """ln N(x; 0, prior_std^2 I) in nats, float64 of shape (B,)."""
        z = x.double().reshape(len(x), -1) / self.prior_std
        return -0.5 * z.square().sum(1) - z.shape[1] * (0.5 * math.log(2 * math.pi) + math.log(self.prior_std))

    def reverse(self, score: Callable[[Tensor, Tensor], Tensor], eps: float | None = None) -> ReverseSDE:
        """The reverse-time SDE  dx = [a x - g^2 score] dt + g dw  on (T, eps).  [Song et al. 2021, eq. 6]

        Arguments:
            score: grad_x ln p_t(x), from :func:`sdesolve.as_score`, or any function (x, t) -> score with t of shape (B,).
            eps: where to stop, 0 < eps < T; default ``process.eps``.

        Raises:
            TypeError: a score that cannot be called.
            ValueError: an ``eps`` outside (0, T), or a score of another process.
        """
        from .problems import ReverseSDE

        return ReverseSDE(self, score, eps)

    def probability_flow(self, score: Callable[[Tensor, Tensor], Tensor], eps: float | None = None) -> ProbabilityFlow:
        """The ODE  dx/dt = a x - g^2 score / 2  on (T, eps), which has the marginals of the SDE.  [Song et al. 2021, eq. 13]"""
        from .problems import ProbabilityFlow

        return ProbabilityFlow(self, score, eps)

    def __repr__(self) -> str:
        """Its class and its levels, by which grids and cards that are made for a process know it again; a dataclass has one of its own."""
        try:
            ts = [self.eps + (self.T - self.eps) * i / 32 for i in range(33)]
            levels = fingerprint(float(level(t)) for level in (self.log_snr, self.alpha) for t in ts)
            return f"{type(self).__name__}(T={self.T:g}, eps={self.eps:g}, levels {levels})"
        except Exception:  # of one that is not whole: what is wrong is said elsewhere
            return f"{type(self).__name__}()"

    def _checked(self, t: Number) -> Number:
        """``t`` if it lies in [0, T]; a tensor is taken at its word, for to look at it may be to wait for a device."""
        if not isinstance(t, Tensor) and not 0 <= _as_number(t) <= self.T * (1 + 1e-9):
            raise ValueError(f"t={t!r} lies outside [0, {self.T}], where {type(self).__name__} is defined.")
        return t

    @staticmethod
    def _evaluate(formula: Callable[[Number], Number], value: Number) -> Tensor:
        return torch.as_tensor(formula(_as_number(value)), dtype=torch.float64)


@dataclass(frozen=True)
class VPSDE(Process):
    """Variance preserving:  dx = -beta(t) x / 2 dt + sqrt(beta(t)) dw,  beta(t) = beta_min + (t/T) (beta_max - beta_min).

    alpha^2 + sigma^2 = 1; the continuous limit of DDPM.  [Song et al. 2021, eq. 11, 32-33]

    Arguments:
        beta_min, beta_max: beta at 0 and at T, 0 < beta_min < beta_max; the published values are the defaults.
        T: end time.  Another unit of time wants other betas: DDPM's own counting is ``VPSDE(1e-4, 0.02, T=1000)``, which is
            the default at t/1000.
    """

    beta_min: float = 0.1
    beta_max: float = 20.0
    T: float = 1.0

    def __post_init__(self) -> None:
        _check_numbers(self, "beta_min", "beta_max", "T")
        _require(self, "beta_min", 0 < self.beta_min < self.beta_max, "0 < beta_min < beta_max")
        _require(self, "T", self.T > 0, "T > 0")

    @property
    def eps(self) -> float:  # type: ignore[override]
        return 1e-3 * self.T

    @property
    def _slope(self) -> float:
        """d beta / dt."""
        return (self.beta_max - self.beta_min) / self.T

    def beta_(self, t: Number) -> Number:
        return self.beta_min + t * self._slope

    def log_alpha_(self, t: Number) -> Number:
        return -0.25 * t * t * self._slope - 0.5 * t * self.beta_min

    def sigma_(self, t: Number) -> Number:
        return xp(t).sqrt(-xp(t).expm1(2 * self.log_alpha_(t)))

    def drift_rate_(self, t: Number) -> Number:
        return -0.5 * self.beta_(t)

    def diffusion_(self, t: Number) -> Number:
        return xp(t).sqrt(self.beta_(t))

    def sigma_inverse_(self, sigma: Number) -> Number:
        return self._log_alpha_inverse(0.5 * xp(sigma).log1p(-sigma * sigma))

    def alpha_inverse_(self, alpha: Number) -> Number:
        return self._log_alpha_inverse(xp(alpha).log(alpha))

    def log_snr_inverse_(self, log_snr: Number) -> Number:
        return self._log_alpha_inverse(-0.5 * softplus(-log_snr))

    def _log_alpha_inverse(self, log_alpha: Number) -> Number:
        half = 0.5 * self.beta_min  # t solves slope/4 t^2 + beta_min/2 t + ln alpha = 0; this form has no cancellation
        return -2 * log_alpha / (half + xp(log_alpha).sqrt(half * half - self._slope * log_alpha))


@dataclass(frozen=True)
class SubVPSDE(VPSDE):
    """Sub-variance preserving: VP's drift with  g^2 = beta (1 - alpha^4), so that sigma = 1 - alpha^2.  [Song et al. 2021, eq. 12, 35]

    Its variance is below VP's at every time, which gives better likelihoods.

    Arguments:
        beta_min, beta_max, T: as :class:`VPSDE`.
    """

    def sigma_(self, t: Number) -> Number:
        return -xp(t).expm1(2 * self.log_alpha_(t))

    def diffusion_(self, t: Number) -> Number:
        return xp(t).sqrt(-self.beta_(t) * xp(t).expm1(4 * self.log_alpha_(t)))

    def sigma_inverse_(self, sigma: Number) -> Number:
        return self._log_alpha_inverse(0.5 * xp(sigma).log1p(-sigma))

    def log_snr_inverse_(self, log_snr: Number) -> Number:
        m = xp(log_snr)  # sigma^2 / (1 - sigma) = e^(-log_snr), solved for sigma without cancellation
        return self.sigma_inverse_(2 / (1 + m.sqrt(1 + 4 * m.exp(log_snr))))


@dataclass(frozen=True)
class VESDE(Process):
    """Variance exploding:  dx = g(t) dw,  sigma(t) = sigma_min (sigma_max/sigma_min)^(t/T),  alpha = 1.  [Song et al. 2021, eq. 9, 30]

    The continuous limit of SMLD (NCSN).

    Arguments:
        sigma_min, sigma_max: 0 < sigma_min < sigma_max, in units of the data; choose sigma_max near the largest distance
            between two data points.  The published CIFAR-10 values are the defaults.
        T: end time; the unit of time alone.
    """

    sigma_min: float = 0.01
    sigma_max: float = 50.0
    T: float = 1.0

    def __post_init__(self) -> None:
        _check_numbers(self, "sigma_min", "sigma_max", "T")
        _require(self, "sigma_min", 0 < self.sigma_min < self.sigma_max, "0 < sigma_min < sigma_max")
        _require(self, "T", self.T > 0, "T > 0")

    @property
    def eps(self) -> float:  # type: ignore[override]
        return 1e-5 * self.T

    @property
    def _log_ratio(self) -> float:
        return math.log(self.sigma_max / self.sigma_min)

    def log_alpha_(self, t: Number) -> Number:
        return 0.0 * t

    def sigma_(self, t: Number) -> Number:
        return self.sigma_min * xp(t).exp(t * (self._log_ratio / self.T))

    def drift_rate_(self, t: Number) -> Number:
        return 0.0 * t

    def diffusion_(self, t: Number) -> Number:
        return self.sigma_(t) * math.sqrt(2 * self._log_ratio / self.T)

    def sigma_inverse_(self, sigma: Number) -> Number:
        return xp(sigma).log(sigma / self.sigma_min) * (self.T / self._log_ratio)

    def log_snr_inverse_(self, log_snr: Number) -> Number:
        return self.sigma_inverse_(xp(log_snr).exp(-0.5 * log_snr))

    @property
    def prior_std(self) -> float:
        return self.sigma_max


@dataclass(frozen=True)
class EDM(Process):
    """Time is the noise level:  dx = sqrt(2 t) dw,  sigma(t) = t,  alpha = 1.  [Karras et al. 2022, table 1]

    Its default grid is Karras's rho = 7 spacing, since equal steps in sigma waste themselves on pure noise.

    Arguments:
        sigma_min, sigma_max: where sampling ends and starts, 0 < sigma_min < sigma_max, in units of the data.
    """

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    default_grid: ClassVar[str] = "karras"

    def __post_init__(self) -> None:
        _check_numbers(self, "sigma_min", "sigma_max")
        _require(self, "sigma_min", 0 < self.sigma_min < self.sigma_max, "0 < sigma_min < sigma_max")

    @property
    def T(self) -> float:  # type: ignore[override]
        return self.sigma_max

    @property
    def eps(self) -> float:  # type: ignore[override]
        return self.sigma_min

    def log_alpha_(self, t: Number) -> Number:
        return 0.0 * t

    def sigma_(self, t: Number) -> Number:
        return 1.0 * t

    def drift_rate_(self, t: Number) -> Number:
        return 0.0 * t

    def diffusion_(self, t: Number) -> Number:
        return xp(t).sqrt(2 * t)

    def sigma_inverse_(self, sigma: Number) -> Number:
        return 1.0 * sigma

    def log_snr_inverse_(self, log_snr: Number) -> Number:
        return xp(log_snr).exp(-0.5 * log_snr)

    @property
    def prior_std(self) -> float:
        return self.sigma_max


@dataclass(frozen=True)
class Cosine(Process):
    """Variance preserving with  alpha(t) = cos(k (t + s)) / cos(k s),  k = pi / (2 (1 + s)).  [Nichol & Dhariwal 2021, eq. 17]

    beta = 2 k tan(k (t + s)).  At t = 1 there is no signal left and no finite beta: the published code cuts beta at 0.999 of a step, here
    the process ends before, where sigma/alpha = 119.  A network that counts its levels counts them up to t = 1.

    Arguments:
        s: offset s > 0 that keeps the noise of the first steps from vanishing; the published value is the default.
        T: end time, 0 < T < 1; the default is the published one of DPM-Solver.  [Lu et al. 2022]
    """

    s: float = 0.008
    T: float = 0.9946

    def __post_init__(self) -> None:
        _check_numbers(self, "s", "T")
        _require(self, "s", self.s > 0, "s > 0")
        _require(self, "T", 0 < self.T < 1, "0 < T < 1: at t = 1 there is no signal left")

    @property
    def eps(self) -> float:  # type: ignore[override]
        return 1e-3 * self.T

    @property
    def horizon(self) -> float:
        return 1.0

    @property
    def _k(self) -> float:
        return math.pi / (2 * (1 + self.s))

    def log_alpha_(self, t: Number) -> Number:
        return xp(t).log(self.alpha_(t))

    def alpha_(self, t: Number) -> Number:
        return xp(t).sin(self._k * (1 - t)) / math.sin(self._k)  # cos(k (t + s)) = sin(k (1 - t)), which keeps its digits towards t = 1

    def sigma_(self, t: Number) -> Number:
        return xp(t).sqrt(xp(t).sin(self._k * t) * xp(t).sin(self._k * (t + 2 * self.s))) / math.sin(self._k)

    def drift_rate_(self, t: Number) -> Number:
        return -self._k / xp(t).tan(self._k * (1 - t))

    def diffusion_(self, t: Number) -> Number:
        return xp(t).sqrt(-2 * self.drift_rate_(t))

    def sigma_inverse_(self, sigma: Number) -> Number:
        return self._inverse(xp(sigma).sqrt((1 - sigma) * (1 + sigma)), sigma)

    def alpha_inverse_(self, alpha: Number) -> Number:
        return self._inverse(alpha, xp(alpha).sqrt((1 - alpha) * (1 + alpha)))

    def log_snr_inverse_(self, log_snr: Number) -> Number:
        m = xp(log_snr)
        return self._inverse(m.exp(-0.5 * softplus(-log_snr)), m.exp(-0.5 * softplus(log_snr)))

    def _inverse(self, alpha: Number, sigma: Number) -> Number:
        """The angle k (t + s) from its sine and cosine, so that neither end loses digits."""
        sine = xp(sigma).sqrt(math.sin(self._k * self.s) ** 2 + (math.sin(self._k) * sigma) ** 2)
        return xp(sigma).atan2(sine, math.sin(self._k) * alpha) / self._k - self.s


@dataclass(frozen=True)
class RectifiedFlow(Process):
    """Straight lines between data and noise:  x_t = (1 - t) x_0 + t eps,  dx = -x/(1 - t) dt + sqrt(2 t/(1 - t)) dw.

    [Liu et al. 2023, eq. 1].  Also known as flow matching with the linear path.  SD3 and FLUX count time as here, and their networks predict
    dx/dt = eps - x_0:  ``as_score(model, process, predicts="flow")``.  The paper counts from noise to data: a network of that kind is
    ``lambda x, t: -model(x, 1 - t)``.

    The SDE has no finite coefficients at t = 1, where no signal is left, so the process ends just before.

    Arguments:
        T: end time, 0 < T < 1.
    """

    T: float = 0.999

    def __post_init__(self) -> None:
        _check_numbers(self, "T")
        _require(self, "T", self.eps < self.T < 1, f"{self.eps} < T < 1: at t = 1 there is no signal left")

    @property
    def eps(self) -> float:  # type: ignore[override]
        return 1e-3

    @property
    def horizon(self) -> float:
        return 1.0

    def log_alpha_(self, t: Number) -> Number:
        return xp(t).log1p(-t)

    def sigma_(self, t: Number) -> Number:
        return 1.0 * t

    def drift_rate_(self, t: Number) -> Number:
        return -1 / (1 - t)

    def diffusion_(self, t: Number) -> Number:
        return xp(t).sqrt(2 * t / (1 - t))

    def sigma_inverse_(self, sigma: Number) -> Number:
        return 1.0 * sigma

    def alpha_inverse_(self, alpha: Number) -> Number:
        return 1.0 - alpha

    def log_snr_inverse_(self, log_snr: Number) -> Number:
        return 1 / (1 + xp(log_snr).exp(0.5 * log_snr))

    @property
    def prior_std(self) -> float:
        return self.T


def fingerprint(values: Iterable[float]) -> str:
    """Eight digits by which numbers that differ in the sixth decimal place are told apart, and on every machine alike."""
    return hashlib.sha256(" ".join(f"{round(value, 6) + 0.0:.6f}" for value in values).encode()).hexdigest()[:8]


def _as_number(t: Any) -> Number:
    """A user's time as the hooks want it: float64 tensor or host float."""
    if isinstance(t, Tensor):
        return t.double()
    number = as_float(t)
    if number is None:
        raise TypeError(f"{t!r} is a {type(t).__name__}; expected a number, as in process.alpha(0.5), or a tensor of them.")
    return number


def _standard_normal(
    shape: Sequence[int],
    seed: int,
    sample_ids: Tensor | Sequence[int] | None,
    dtype: torch.dtype,
    device: torch.device | str,
    stream: int,
) -> Tensor:
    sizes = [as_int(size) for size in shape] if isinstance(shape, Iterable) else []
    event = [size for size in sizes if size is not None and size > 0]
    if not event or len(event) < len(sizes):
        raise ValueError(f"shape={shape!r}; expected (B, *event) with at least one sample and one element, as in (16, 1, 28, 28).")
    if not dtype.is_floating_point:
        raise ValueError(f"dtype={dtype}; expected a real floating dtype: noise has no integer values.")
    ids = sample_ids_of(sample_ids, event[0])
    return SeededNormals(check_seed(seed), ids, event[1:], dtype=dtype, device=device, stream=stream).normal(0)


def _check_numbers(process: Process, *names: str) -> None:
    for name in names:
        value = as_float(getattr(process, name))
        if value is None or not math.isfinite(value):
            got = f"{type(process).__name__}: {name} = {getattr(process, name)!r}"
            raise ValueError(f"{got} is not a finite number; expected one, as in {name}={getattr(type(process), name)}.")


def _require(process: Process, name: str, holds: bool, expected: str) -> None:
    if not holds:
        raise ValueError(f"{type(process).__name__}: {name} = {getattr(process, name)!r} is out of range; expected {expected}. Got {process}.")
