"""Is a conditional sampler's answer the posterior?  Laws with closed-form posteriors under linear measurements, and the exam.

With x ~ N(m, C) and y = A x + s n for standard normal n,

    x | y ~ N(m + K (y - A m), C - K A C),      K = C A^T (A C A^T + s^2 I)^-1,

and a mixture's posterior is the mixture of its components' ones, weighted by  w_k N(y; A m_k, A C_k A^T + s^2 I).

A sampler is asked twice.  Once for many draws given one y, whose mean, covariance and mass in the true 90 % intervals are known.  And once for a
few draws given each of many y = A x* + s n with x* from the prior: the rank of x* among the draws, by any function of x and y, is then uniform
where the sampler draws from the posterior.  [Talts et al. 2018, simulation-based calibration]  Which functions are asked decides what is noticed, and those
of y, as its likelihood, notice what averages out along directions of x.  [Modrak et al. 2023]
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from .._errors import integer
from .measures import unit_directions
from .targets import DRAWS, Array, Draws, Gaussian, Mixture, float64

_BINS = 10  # of the ranks
_NOISE = 200  # stream of the measurement's noise, apart from the targets' own
_PROBES = 64  # directions of the coverage
_COMMON = 4  # directions of the ranks that all problems have in common


class Question(NamedTuple):
    """What a sampler is asked: ``draws`` from the law of x given y = matrix x + noise_std n, for each row of y."""

    law: Gaussian | Mixture
    """The prior; ``law.score(process)`` is its exact score."""
    matrix: Tensor
    """A, (m, d) float64."""
    y: Tensor
    """(P, m) float64, one measurement for each of P problems."""
    noise_std: float
    draws: int
    """L, draws wanted for each of them."""
    seed: int

    def rows(self) -> Tensor:
        """The measurements, each ``draws`` times: (P L, m)."""
        return self.y.repeat_interleave(self.draws, 0)


Answerer: TypeAlias = Callable[[Question], Tensor]
"""A conditional sampler: Question -> (P, L, d) draws."""


class Mark(NamedTuple):
    """What the exam measured of a sampler.

    Attributes:
        mean_error: of the draws' mean, in posterior standard deviations: root mean square over the whitened coordinates; without noise those of the
            null space of A, where the posterior lives.
        covariance_error: root mean square of the eigenvalues of  C^-1/2 C_hat C^-1/2 - I,  C being the posterior's covariance.
        coverage: mass of the draws in the true central 90 % interval, mean over 64 directions: 0.9 for the posterior, more for an answer
            that is too sure, less for one that is too wide or beside it.
        residual: root mean square of y - A x, relative to what the posterior has; 1 for the posterior.  Without noise relative to the spread of A x in
            the prior; 0 for the posterior.
        noise: standard deviation of y - A x over the problems of the ranks, in units of noise_std; 1 for the posterior, because there y and x are
            draws of their joint law; nan without noise.  What the choice of the problems adds to it is known, and taken out.
        rank_p: p-value of the chi-square tests that the ranks are uniform, the smallest times their number (Bonferroni): along a direction of each problem's own, along
            four that all have in common, and by ln p(x, y) where the prior has a density; where y has noise and says something also by ln p(y | x), and along the way from
            the prior's mean to the posterior's.
        floor: what mean_error and covariance_error would be, on average, for that many independent draws of the posterior itself.
    """

    mean_error: float
    covariance_error: float
    coverage: float
    residual: float
    noise: float
    rank_p: float
    floor: tuple[float, float]


def posterior(law: Gaussian | Mixture, matrix: Array, y: Array, noise_std: float) -> Gaussian | Mixture:
    """The law of x given  y = matrix x + noise_std n,  in closed form.

    Arguments:
        law: the prior, with event (d,).
        matrix: A, (m, d), any m.
        y: (m,), one measurement.
        noise_std: s >= 0; with 0, A C A^T must be invertible for each component's covariance C.

    Raises:
        ValueError: shapes that do not fit; a negative or infinite noise_std; a measurement that the prior rules out.
    """
    a, measured = _matrix(law, matrix), _reading(y)
    _check_noise(noise_std)
    if measured.shape != (len(a),):
        raise ValueError(f"y has shape {tuple(measured.shape)}; expected ({len(a)},), one number for each row of the matrix.")
    if isinstance(law, Gaussian):
        return _given(law, a, measured, noise_std)[0]
    parts = [_given(c, a, measured, noise_std) for c in law.components]
    evidence = law.weights.log() + torch.stack([log_p for _, log_p in parts])
    return Mixture(torch.softmax(evidence, 0), [component for component, _ in parts])


def log_evidence(law: Gaussian | Mixture, matrix: Array, y: Array, noise_std: float) -> float:
    """ln p(y) in nats, for arguments as :func:`posterior` takes them."""
    a, measured = _matrix(law, matrix), _reading(y)
    _check_noise(noise_std)
    if isinstance(law, Gaussian):
        return float(_given(law, a, measured, noise_std)[1])
    each = torch.stack([_given(c, a, measured, noise_std)[1] for c in law.components])
    return float(torch.logsumexp(law.weights.log() + each, 0))


def measure(x: Tensor, matrix: Array, noise_std: float, *, seed: int = 0) -> Tensor:
    """y = matrix x + noise_std n, (n, m) float64, for states x, (n, d); the noise is a function of (seed, row)."""
    clean = x.double() @ float64(matrix).T
    return clean + noise_std * Draws(seed, len(x), _NOISE).normal(clean.shape[1])


def posterior_exam(
    sampler: Answerer, law: Gaussian | Mixture, matrix: Array, noise_std: float, *, draws: int = 20_000, problems: int = 200, ranked: int = 99, seed: int = 0
) -> Mark:
    """Ask a conditional sampler for draws whose law is known, and mark them.

    Arguments:
        sampler: from a :class:`Question` to its answer, (P, L, d).
        law: the prior, with event (d,); a single Gaussian may be flat in some directions.
        matrix: A, (m, d); 0, with noise, asks for the prior.
        noise_std: s >= 0.
        draws: given a single measurement, for moments and coverage; >= 2.
        problems: measurements for the ranks; 0 leaves the ranks out, and ``noise`` and ``rank_p`` are nan.
        ranked: draws for each of them, one less than a multiple of 10.
        seed: names the measurements, and the draws through ``Question.seed``.

    Raises:
        ValueError: an answer of another shape, or one that is not finite; arguments that do not fit.
    """
    a = _matrix(law, matrix)
    _check_noise(noise_std)
    integer("draws", draws, 2)
    integer("problems", problems, 0)
    if (integer("ranked", ranked, 9) + 1) % _BINS:
        raise ValueError(f"ranked={ranked}; expected one less than a multiple of {_BINS}, as in ranked=99.")
    if isinstance(law, Mixture) and not _has_density(law):
        raise ValueError("a component of the prior is flat, so that draws tie and nothing can be ranked; expected components with std > 0 in every direction.")
    truth = law.sample(1 + problems, seed=seed, dtype=torch.float64, stream=DRAWS)
    y = measure(truth, a, noise_std, seed=seed)

    exact = posterior(law, a, y[0], noise_std)
    answer = _asked(sampler, Question(law, a, y[:1], noise_std, draws, seed))[0]
    mean_error, covariance_error, open_ = _moments(answer, exact)
    floor = (1 / math.sqrt(draws), math.sqrt((open_ + 1) / draws))
    coverage, residual = _coverage(answer, exact, seed), _residual(answer, exact, a, y[0]) if noise_std else _missed(answer, law, a, y[0])
    if not problems:
        return Mark(mean_error, covariance_error, coverage, residual, math.nan, math.nan, floor)
    question = Question(law, a, y[1:], noise_std, ranked, seed + 1)
    answers = _asked(sampler, question)
    return Mark(mean_error, covariance_error, coverage, residual, _noise(answers, question), _ranks(answers, question, truth[1:]), floor)


def _given(law: Gaussian, a: Tensor, y: Tensor, noise_std: float) -> tuple[Gaussian, Tensor]:
    """The posterior of a Gaussian, and ln p(y)."""
    mean, cov = law.mean.reshape(-1), law.covariance
    cross = cov @ a.T
    total = a @ cross + noise_std**2 * torch.eye(len(a), dtype=torch.float64)
    lower, failed = torch.linalg.cholesky_ex(total)
    if int(failed):
        raise ValueError(f"noise_std={noise_std} leaves measurements without a density; expected noise, or a matrix whose rows the prior tells apart.")
    residual = torch.linalg.solve_triangular(lower, (y - a @ mean)[:, None], upper=False)[:, 0]
    half = torch.linalg.solve_triangular(lower, cross.T, upper=False)  # (m, d)
    log_p = -0.5 * (residual.square().sum() + len(a) * math.log(2 * math.pi)) - lower.diagonal().log().sum()
    after = cov - half.T @ half
    values, vectors = torch.linalg.eigh(0.5 * (after + after.T))
    after = after if float(values[0]) >= 0 else (vectors * values.clamp(min=0)) @ vectors.T  # below 0 by rounding, where y leaves nothing open
    return Gaussian(mean + half.T @ residual, cov=0.5 * (after + after.T)), log_p


def _asked(sampler: Answerer, question: Question) -> Tensor:
    """The sampler's answer, float64, checked."""
    expected = (len(question.y), question.draws, question.matrix.shape[1])
    answer = sampler(question)
    if not isinstance(answer, Tensor) or tuple(answer.shape) != expected:
        got = tuple(answer.shape) if isinstance(answer, Tensor) else type(answer).__name__
        raise ValueError(f"the sampler returned {got}; expected {expected}: problems, draws, coordinates.")
    if not bool(answer.isfinite().all()):
        raise ValueError("the sampler returned numbers that are not finite.")
    return answer.detach().double().cpu()


def _moments(x: Tensor, exact: Gaussian | Mixture) -> tuple[float, float, int]:
    """Errors of mean and covariance in the coordinates in which the exact covariance is the identity, of which there are so many: those that y leaves open."""
    values, vectors = torch.linalg.eigh(exact.covariance)
    left = values > 1e-10 * values[-1]
    if not float(values[-1]) > 1e-10 * float(exact.mean.square().sum() + 1e-290):
        raise ValueError("the posterior has no spread, in whose units errors are told; expected noise_std > 0 or fewer measurements than unknowns, and a prior that has some.")
    white = ((x - exact.mean) @ vectors[:, left] / values[left].sqrt()).T
    excess = torch.cov(white).reshape(len(white), -1) - torch.eye(len(white), dtype=torch.float64)
    return float(white.mean(1).square().mean().sqrt()), float(torch.linalg.eigvalsh(excess).square().mean().sqrt()), len(white)


def _coverage(x: Tensor, exact: Gaussian | Mixture, seed: int) -> float:
    """Mass of the draws between the exact 5 % and 95 % quantiles, along random directions."""
    directions = unit_directions(x.shape[1], _PROBES, seed)
    below = exact._projected_cdf(x @ directions.T, directions, 1.0, 0.0)
    assert below is not None, "Gaussians and mixtures know their projections"
    return float(((below > 0.05) & (below < 0.95)).double().mean())


def _residual(x: Tensor, exact: Gaussian | Mixture, a: Tensor, y: Tensor) -> float:
    """Root mean square of y - A x relative to the posterior's."""
    return float(((y - x @ a.T).square().sum(1).mean() / _square_residual(exact, a, y)).sqrt())


def _missed(x: Tensor, law: Gaussian | Mixture, a: Tensor, y: Tensor) -> float:
    """Root mean square of y - A x relative to the spread of A x in the prior."""
    return float(((y - x @ a.T).square().sum(1).mean() / torch.trace(a @ law.covariance @ a.T)).sqrt())


def _square_residual(exact: Gaussian | Mixture, a: Tensor, y: Tensor) -> float:
    """The posterior's mean of |y - A x|^2."""
    return float((y - a @ exact.mean).square().sum() + torch.trace(a @ exact.covariance @ a.T))


def _noise(answer: Tensor, question: Question) -> float:
    """Standard deviation of y - A x in units of the noise: its square is 1 where y and x are draws of their joint law, so that only the excess over each posterior counts."""
    law, a, y, noise_std, *_ = question
    found = (y[:, None] - answer @ a.T).square().sum(2).mean(1)
    expected = [_square_residual(posterior(law, a, row, noise_std), a, row) for row in y]
    excess = float(found.mean()) - sum(expected) / len(expected)
    return math.sqrt(max(0.0, 1 + excess / (len(a) * noise_std**2))) if noise_std else math.nan


def _ranks(answer: Tensor, question: Question, truth: Tensor) -> float:
    """p-value of the chi-square tests on the ranks of the truth among the draws, by every function: the smallest, times their number."""
    told = _functions(torch.cat([truth[:, None], answer], 1), question)
    return min(1.0, len(told) * min(_uniform((each[:, 1:] < each[:, :1]).sum(1), question.draws) for each in told))


def _functions(x: Tensor, question: Question) -> list[Tensor]:
    """The functions of x and y by which the truth is ranked, (P, L + 1) each, of states (P, L + 1, d)."""
    law, a, y, noise_std, *_, seed = question
    own, common = unit_directions(x.shape[2], len(x), seed).expand(len(x), -1), unit_directions(x.shape[2], _COMMON, seed + 1)
    found = [torch.einsum("pld,pd->pl", x, own), *(x @ common.T).unbind(2)]
    joint = law.log_prob(x.flatten(0, 1)).reshape(x.shape[:2]) if _has_density(law) else None
    if noise_std and float(torch.trace(a @ law.covariance @ a.T)) > 1e-20 * noise_std**2:  # else y is a function of x, or knows nothing of it, and rounding alone is left of these
        likelihood = -0.5 * (y[:, None] - x @ a.T).square().sum(2) / noise_std**2
        moved = torch.stack([posterior(law, a, row, noise_std).mean for row in y]) - law.mean
        joint, found = None if joint is None else joint + likelihood, [*found, likelihood, torch.einsum("pld,pd->pl", x, moved)]
    return found if joint is None else [*found, joint]


def _has_density(law: Gaussian | Mixture) -> bool:
    """Whether no part of the law is flat."""
    spreads = [torch.linalg.eigvalsh(part.covariance) for part in (law.components if isinstance(law, Mixture) else [law])]
    return all(float(spread[0]) > 1e-10 * float(spread[-1]) for spread in spreads)


def _uniform(ranks: Tensor, draws: int) -> float:
    """p-value of the chi-square test that ranks, 0 to ``draws``, are uniform."""
    counts = torch.bincount(ranks * _BINS // (draws + 1), minlength=_BINS).double()
    statistic = ((counts - len(ranks) / _BINS).square() * _BINS / len(ranks)).sum()
    degrees = torch.tensor((_BINS - 1) / 2, dtype=torch.float64)
    return float(torch.special.gammaincc(degrees, statistic / 2))


def _matrix(law: Gaussian | Mixture, matrix: Array) -> Tensor:
    a, d = float64(matrix), math.prod(law.event)
    if len(law.event) != 1 or a.dim() != 2 or a.shape[1] != d or not len(a):
        raise ValueError(f"matrix has shape {tuple(a.shape)} for a law with event {law.event}; expected (m, {d}) for event ({d},).")
    if not bool(a.isfinite().all()):
        raise ValueError("matrix is not finite.")
    return a


def _reading(y: Array) -> Tensor:
    measured = float64(y)
    if not bool(measured.isfinite().all()):
        raise ValueError("y is not finite.")
    return measured


def _check_noise(noise_std: float) -> None:
    if isinstance(noise_std, bool) or not isinstance(noise_std, int | float) or not 0 <= noise_std < math.inf:
        raise ValueError(f"noise_std={noise_std!r}; expected a finite number >= 0, as in noise_std=0.1.")
