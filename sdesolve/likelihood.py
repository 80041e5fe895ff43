"""Log-likelihoods by the probability flow, with what each of them is worth.

Along the flow  dx/dt = m(x, t)  the density of a point changes by the divergence,

    ln p_eps(x) = ln p_T(x_T) + int_eps^T div m(x_t, t) dt,          m = a x - g^2 score / 2.           [Song et al. 2021, eq. 39]

The score is linear in the network's output (:mod:`sdesolve.scores`), and so is m = c_x x + c_out out: the first part has the divergence c_x d
exactly, and what is estimated is the divergence of the network alone.  One ODE in log signal-to-noise ratio holds it all (:mod:`sdesolve._likelihood_flow`): the
columns of its state are x in units of its spread, the integral in nats per dimension for each probe, and the number of the row, by which the row finds its probes again when
others have left the batch.  Nothing is ever drawn along the way.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from . import _checks, _progress, _tally
from ._arrays import bcast, row_mean
from ._autograd import outside_inference
from ._errors import as_float, integer
from ._likelihood_flow import LikelihoodFlow, PartsControl, Weighed
from ._loops import adaptive
from ._loops.adaptive import Task, Try
from ._student import student_quantile
from .dequantise import bits_per_dim, check_inside
from .divergence import make_estimator
from .latent import flow_of
from .methods import Stepper
from .methods.runge_kutta import RungeKutta
from .noise import check_seed, sample_ids_of
from .processes import Process
from .solution import Solution, arrived
from .solve import SolveWarning, heeding_levels

_LONGEST = 2.5  # step in log-SNR at rtol + atol = 2e-5, the first one too, where Gaussian data have their poles pi away: beyond lie only rejections
_MISMATCH = 0.01  # bits/dim of the prior's KL from which on it is told
_FEW = 16  # numbers in a sample up to which an exact divergence is the default


class Budget(NamedTuple):
    """What a log-likelihood may be wrong by, each (B,) float64 in nats.

    The rounding of the network is in none of them: nothing tells it from the field, and networks that amplify it, as one of random weights in float32
    does, are off by several times ``solver``.  Samples and network in float64 show what it is.
    """

    probes: Tensor
    """Standard error over the probes; 0 for an exact divergence."""
    solver: Tensor
    """Sum over the steps of what the step's estimated errors, of x and of the integral, do to ln p; those of the embedded method, of lower order, so
    more than the solver's own as a rule."""
    truncation: Tensor
    """ln p_eps(x) - ln p_0(x) to first order in sigma(eps)^2, with its sign; what starting at eps instead of at the data has added.
    ``extrapolate=True`` takes it away."""
    prior: Tensor
    """KL of p(x_T | x_0) from the prior; no error of the model's likelihood, whose law begins with the prior, but of that of the data:
    its mean bounds the KL of p_T, and ln p_T(x_T) of a sample is off by about the square root of twice that."""


@dataclass(frozen=True)
class Likelihood:
    """Log-likelihoods, sample by sample.

    Attributes:
        log_prob: (B,) float64, ln p(x) in nats; NaN for a sample that did not arrive.
        prior, divergence: (B,) its two parts: ln p_T(x_T), and the integral of the divergence; each with its extrapolation, if any.
        standard_error: (B,) of ``log_prob`` over the probes, in nats; 0 for an exact divergence.  With a single probe it is estimated from the
            probe's own pullbacks and is larger than the true one as a rule; with several, from their scatter.
        parts: (P, B) ``log_prob`` by each probe.
        latent: (B, *event), x_T, to be decoded by the flow.
        nfe: (B,) int64, network calls that each sample saw.
        codes: (B,) int64 of :class:`sdesolve.Status`.
        budget: what else may be wrong, see :class:`Budget`.
        lowest, highest: (B,) the least and largest number in each sample.
        stats: seed, tolerances, eps, calls and vjps.
    """

    log_prob: Tensor
    prior: Tensor
    divergence: Tensor
    standard_error: Tensor
    parts: Tensor
    latent: Tensor
    nfe: Tensor
    codes: Tensor
    budget: Budget
    lowest: Tensor
    highest: Tensor
    stats: dict[str, Any] = field(default_factory=dict)

    @property
    def dimensions(self) -> int:
        """Numbers in a sample."""
        return self.latent[0].numel()

    @property
    def status(self) -> np.ndarray:
        """(B,) strings, as in a :class:`Solution`."""
        return self._solution.status

    def ok(self) -> Tensor:
        """(B,) bool: which samples have a likelihood."""
        return arrived(self.codes)

    def bits_per_dim(self, data_range: tuple[float, float] = (0.0, 1.0), levels: int = 256) -> Tensor:
        """(B,) float64:  -log_2 p(x) / d + log_2(levels / (high - low)), the bits a number of data that take ``levels`` values.

        The density is that of x in the units of ``data_range``, in which a level is a bin of width (high - low)/levels: uniform data score
        log_2(levels) in every range.  x must fill its bins evenly: see :func:`sdesolve.dequantise`.

        Raises:
            ValueError: a sample that leaves the range, low >= high, or levels < 2.
        """
        check_inside(self.lowest, self.highest, data_range)
        return bits_per_dim(self.log_prob, self.dimensions, data_range, levels)

    def bits_per_dim_error(self) -> Tensor:
        """(B,) the standard error over probes in bits/dim, the same in every range."""
        return self.standard_error / (self.dimensions * math.log(2))

    def interval(self, level: float = 0.95) -> tuple[Tensor, Tensor]:
        """(B,), (B,): bounds of ``log_prob`` that hold with probability ``level`` over the probes, by Student's t for the number of them.

        For many dimensions: in 2 or 3, of which one to four probes see few combinations of signs, they hold in 39 to 100 % of cases at level=0.95.
        """
        value = as_float(level)
        if value is None or not 0 < value < 1:
            raise ValueError(f"level={level!r}; expected a probability, 0 < level < 1, as in level=0.95.")
        half = self.standard_error * student_quantile(value, len(self.parts) - 1 or None)
        return self.log_prob - half, self.log_prob + half

    @classmethod
    def join(cls, parts: Sequence[Likelihood], order: Tensor | None = None) -> Likelihood:
        """The likelihoods of samples that were solved apart, such as those of several classes, in one; tells of failures as :func:`log_likelihood` does.

        Arguments:
            parts: one or more, of the same kind of divergence and as many probes.
            order: (B,) int64, the place that each row of the parts, one after the other, has in the whole; default as they stand.
        """
        places = None if order is None else order.argsort()

        def whole(name: str, tensors: Sequence[Tensor]) -> Tensor:
            axis = -1 if name == "parts" else 0
            joined = torch.cat(tuple(tensors), axis)
            return joined if places is None else joined.index_select(axis, places.to(joined.device))

        tensors: dict[str, Any] = {name: whole(name, [getattr(part, name) for part in parts]) for name in _TENSORS}
        budget = Budget(*(whole("budget", [part.budget[i] for part in parts]) for i in range(len(Budget._fields))))
        counts = {name: sum(part.stats[name] for part in parts) for name in ("calls", "rows", "jvps", "vjps") if all(name in part.stats for part in parts)}
        found = cls(**tensors, budget=budget, stats={**parts[0].stats, **counts})
        _warn(found)
        return found

    @property
    def _solution(self) -> Solution:
        return Solution(self.latent, self.nfe, self.codes, torch.full_like(self.log_prob, torch.nan))

    def __repr__(self) -> str:
        good = self.log_prob[self.ok()]
        mean = f"{float(good.mean()):.6g} +- {float(good.std()) / math.sqrt(len(good)):.2g}" if len(good) > 1 else f"{good.tolist()}"
        return f"Likelihood({len(self.log_prob)} samples, {int((~self.ok()).sum())} failed, log_prob: mean {mean} nats)"


@outside_inference
def log_likelihood(
    process: Process,
    score: Callable[[Tensor, Tensor], Tensor],
    x0: Tensor,
    divergence: str | None = None,
    probes: int = 1,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    seed: int | None = None,
    *,
    noise: str | Tensor | None = None,
    sample_ids: Tensor | Sequence[int] | None = None,
    eps: float | None = None,
    extrapolate: bool = False,
    method: str = "rk45",
    batch_size: int | None = None,
    max_steps: int = 10_000,
    progress: bool = False,
) -> Likelihood:
    """ln p(x_0) of each sample under a score-based model, by the probability flow from ``eps`` to T.

    About 60 to 120 network calls a sample at the default tolerance, five in six of them with one backward pass a probe.  Every sample has its own steps, chosen for
    what their errors do to ln p, in nats per dimension; they add up: of the embedded model 1e-5 ends within 1e-4 bits/dim of the exact, and 1e-4 within 1e-3.

    Arguments:
        process: the forward process.
        score: from :func:`sdesolve.as_score`, or any function (x, t) -> score with t of shape (B,).
        x0: data, (B, *event), in the scale that the model was trained on; discrete data dequantised (:func:`sdesolve.dequantise`).
        divergence, probes, noise: as ``method``, ``probes`` and ``noise`` of :func:`sdesolve.divergence`.  Probes are drawn once, before the solve.
            "exact" costs d backward passes a call.  Default: "exact" for samples of up to 16 numbers, of which a few probes don't know how far they are
            off, unless probes or noise are given; otherwise "hutchinson".
        rtol, atol: tolerances of a step: its errors change ln p by no more than rtol + atol in nats per dimension, and x, in units of its spread,
            by no more than the tolerance, root mean square.
        seed: names the probes, with ``sample_ids``; default: drawn from torch's global generator.
        sample_ids: (B,) integers >= 0 that name the rows; default 0..B-1.
        eps: where the flow starts; default the smaller of ``process.eps`` and the published 1e-5 T.  A score is least known there, and a
            change of eps changes the bits/dim of images: see ``docs/likelihood.md``.
        extrapolate: correct both ends of the interval to first order: the density at ``eps`` for the noise there, and the prior for what is left
            of the data at T (one call more).  For the law of the data itself, where it is smooth on the scale of sigma(eps); the likelihood of
            the model as a sampler, which starts from the prior, is the one without it.
        method: an ODE method that chooses its steps: "rk45", "tsit5", "dop853", "bosh3".
        batch_size: samples solved together; memory and speed, not results, depend on it.  Default: all.
        max_steps: most steps tried per sample.
        progress: draw a progress bar.

    Returns:
        A :class:`Likelihood`.  Samples that fail have a status and NaN, and disturb no others.

    Raises:
        ValueError, TypeError: bad arguments, before the first network call; a score that computes without autograd, at the first one.
    """
    stepper = _checks.stepper_of(method, {}, None, at_tolerance=True)  # type: ignore[arg-type]
    if not isinstance(stepper, RungeKutta) or stepper.error_order is None or not stepper.first_same_as_last:
        raise ValueError(f"method={method!r} does not choose steps that end in a stage, where the error of ln p is taken; expected 'rk45', 'tsit5', 'dop853' or 'bosh3'.")
    stepper = Weighed.of(stepper)
    problem = flow_of(process, score, eps)
    _checks.check_state(x0, problem, stepper)
    if divergence is None:
        divergence = "exact" if x0[0].numel() <= _FEW and probes == 1 and noise is None else "hutchinson"
    start, end = problem.interval[1], problem.interval[0]
    ids = sample_ids_of(sample_ids, len(x0))
    seed = int(torch.randint(2**62, ())) if seed is None else check_seed(seed)
    max_steps = integer("max_steps", max_steps, 1)
    size = len(x0) if batch_size is None else integer("batch_size", batch_size, 1, example=64)
    x = x0.to(torch.promote_types(x0.dtype, torch.float32))
    control = _checks.control_of(stepper, rtol, atol, x.dtype)
    if control.rtol + control.atol >= 1:
        raise ValueError(f"rtol={rtol:g} and atol={atol:g} allow errors of whole nats a dimension in a step; expected less than 1 together, as in rtol=1e-4, atol=1e-4.")
    estimator = make_estimator(divergence, probes, noise, x, seed, ids)
    span = (float(process.log_snr(start)), float(process.log_snr(end)))
    reach = ((control.rtol + control.atol) / 2e-5) ** (1 / control.q)
    parts = PartsControl(control.rtol, control.atol, control.q, event=x[0].numel())
    task = Task(span, parts, (), max_steps, seed, first=_LONGEST * reach)
    stats: dict[str, Any] = {"method": method, "divergence": divergence, "seed": seed, "rtol": control.rtol, "atol": control.atol, "eps": start}
    found = []
    with _tally.added_to(stats), heeding_levels(5):
        for rows in torch.arange(len(x), device=x.device).split(size):
            with _progress.bar(progress, span, None, "likelihood") as drawn:
                flow = LikelihoodFlow(problem, estimator.rows(rows), x[rows])
                longest = partial(flow.longest, _LONGEST * max(reach, 1.0))
                found.append(_solved(flow, x[rows], stepper, task._replace(observe=drawn, longest=longest), start, extrapolate))
    return replace(Likelihood.join(found), stats=stats)


class _Ledger:
    """What the solve did on the way: the slope at the start, and what its steps' errors do to ln p."""

    def __init__(self, flow: LikelihoodFlow, rows: int, device: torch.device) -> None:
        self._flow = flow
        self.solver = torch.zeros(rows, dtype=torch.float64, device=device)
        self.slope: Tensor | None = None

    def note(self, tried: Try) -> None:
        self.slope = tried.stages[0] if self.slope is None else self.slope  # every row is there at the first try
        effect = self._flow.dimensions * tried.error[:, -1].double()  # type: ignore[index]
        self.solver.index_add_(0, tried.rows, torch.where(tried.accept, effect, 0.0))


def _solved(flow: LikelihoodFlow, x: Tensor, stepper: Stepper, task: Task, start: float, extrapolate: bool) -> Likelihood:
    """The likelihood of some samples."""
    process, (first, last) = flow.process, task.interval
    z = flow.state(x, first)
    ledger = _Ledger(flow, len(x), x.device)
    out = adaptive.run(stepper, flow, z, task._replace(record=ledger.note))
    y, integral, spread = flow.unpack(out.x)
    assert ledger.slope is not None
    truncation = flow.truncation(z, torch.full_like(spread, first), ledger.slope)
    begun, n = flow.spread(z, first), flow.spread(z, last)
    latent, integral = bcast(n, y) * y, integral + flow.dimensions * (n / begun).log()
    prior, divergence, nfe = process.prior_log_prob(latent), integral, torch.as_tensor(out.nfe)
    if extrapolate:
        calls = _tally.calls()
        prior, divergence = prior + flow.terminal(latent), integral - truncation
        nfe = nfe + (_tally.calls() - calls)
    prior = torch.where(arrived(out.codes), prior, torch.nan)
    parts = prior + divergence
    probes = len(parts)
    error = parts.std(0) / math.sqrt(probes) if probes > 1 else spread.abs()  # log-SNR falls along the way
    return Likelihood(
        log_prob=parts.mean(0),
        prior=prior,
        divergence=divergence.mean(0),
        standard_error=error,
        parts=parts,
        latent=latent,
        nfe=nfe,
        codes=out.codes,
        budget=Budget(error, ledger.solver, truncation, prior_mismatch(process, x)),
        lowest=x.reshape(len(x), -1).amin(1),
        highest=x.reshape(len(x), -1).amax(1),
    )


def prior_mismatch(process: Process, x0: Tensor) -> Tensor:
    """(B,) float64: the Kullback-Leibler divergence of p(x_T | x_0) from the prior, in nats.  Its mean is no less than that of p_T."""
    alpha, ratio, size = float(process.alpha(process.T)), (float(process.sigma(process.T)) / process.prior_std) ** 2, x0[0].numel()
    square = row_mean(x0.double().square()) * (alpha / process.prior_std) ** 2
    return 0.5 * size * (square + (ratio - 1 - math.log(ratio)))


_TENSORS = ("log_prob", "prior", "divergence", "standard_error", "parts", "latent", "nfe", "codes", "lowest", "highest")


def _warn(result: Likelihood) -> None:
    """Say which samples failed, and where the prior is not what the process ends in."""
    failed = (~result.ok()).nonzero().flatten().tolist()
    if failed:
        shown = "; ".join(f"sample {i}: {result.status[i]}" for i in failed[:5])
        message = f"{len(failed)} of {len(result.codes)} samples have no likelihood ({shown}{'; ...' if len(failed) > 5 else ''}). See r.status."
        warnings.warn(message, SolveWarning, stacklevel=5)
    warn_mismatch(result.budget.prior[result.ok()], result.dimensions, "r.budget.prior", stacklevel=6)


def warn_mismatch(prior: Tensor, dimensions: int, place: str, stacklevel: int) -> None:
    """Say where the prior is not what the process ends in, by the KL divergences of those samples that arrived; ``place`` is where they are found."""
    mismatch = float(prior.mean()) / (dimensions * math.log(2)) if len(prior) else 0.0
    if mismatch > _MISMATCH:
        message = (
            f"the prior is not what these data become at t = T: the KL divergence is {mismatch:.2g} bits/dim on average ({place}). "
            "Expected data in the scale of the process, or a process that ends in its prior, as in VESDE(sigma_max=50.0)."
        )
        warnings.warn(message, SolveWarning, stacklevel=stacklevel)
