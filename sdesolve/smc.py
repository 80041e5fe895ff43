"""Particles with weights: draws from p(x_0) r(x_0), or from a product of models, that are exact in the limit of many.

A reverse SDE that is pulled aside, or whose score is a sum of scores, does not end in the law that was meant.  But each of its paths has a
weight, the ratio of what was meant to what was done, and particles that are drawn again by their weights follow the law that was meant.
[Doucet & Johansen 2009; Del Moral 2004]

A step goes from t_0 to t_1 by DPM-Solver++(2M) for SDEs, x_1 = a x + b D_0 + c D_-1 + s z, of weak order 2, with D = E[x_0 | x] here and one step
before: a kernel of the path, which weights may depend on.  Two things make them:

    a reward r      the step aims at D_0 + (sigma^2/alpha) grad ln psi(x), with psi = r(D_0, t) a guess of E[r(x_0) | x];
                    ln w += ln psi(x_1) - ln psi(x_0) - delta.z/s - |delta|^2/(2 s^2),  delta the change of the mean (Girsanov's formula
                    for one step).  Any guess will do, and a good one has even weights.           [Wu et al. 2023, twisted diffusion sampler]
                    So delta is kept to s/2 (root mean square): between modes the gradient is many times that, and throws particles where few paths lead.
    powers beta_i   the score is sum_i beta_i s_i, for  p_t ~ prod_i p_it^beta_i;
                    d ln w = 1/2 g^2 (|sum_i beta_i s_i|^2 - sum_i beta_i |s_i|^2) |dt|.           [Skreta et al. 2025, proposition 3.1]
                    Where there is only noise, p_t^beta has 1/beta of its variance, and paths by that score 1/(2 beta - 1), which weights would have to make up
                    for all the way. So with beta = sum_i beta_i a drift  k x,  k = 1/2 (beta - 1) g^2/(alpha^2 + sigma^2),  is added, which has the right
                    variance there, and  d ln w += (k d + k x.sum_i beta_i s_i) |dt|,  from the Fokker-Planck equation for any k.

The particles of one row know each other, and nothing of other rows.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from . import _checks, _progress, _tally
from ._arrays import bcast
from ._errors import as_float, integer
from .grids import Grid, Recipe, make_grid
from .methods.dpm_solver import DPMpp2M
from .methods.linear import combined
from .noise import PARTICLES, SeededNormals, sample_ids_of
from .problems import Field, ReverseSDE
from .processes import Process
from .scores import Score, as_score
from .solve import SolveWarning, heeding_levels

Reward: TypeAlias = Callable[[Tensor, float], Tensor]
"""ln r, (rows,), of E[x_0 | x_t], (rows, *event), and t; t = 0 asks for the reward itself, t > 0 for a guess of its mean given x_t.
With powers beta_i it is given the mean of E_i[x_0 | x_t] by their weights, sum_i beta_i E_i/sum_i beta_i, on the way.
One that tells rows of several problems apart has an attribute ``particles``, the K that it counts on."""

_KERNEL = DPMpp2M(eta=1.0)
_MOST = 0.5  # of a step's noise that a pull may be long, both root mean square: farther, few paths lead, and the weights of those that do are all there is
_SHARE, _ERRORS = 0.8, 4  # of Stein's identity below which, and by so many standard errors, particles are too narrow
_CHOICE = 1  # slot of the number by which particles are chosen, beside that of their noise


@dataclass(frozen=True)
class Particles:
    """Weighted draws, as :func:`smc` returns them.

    Attributes:
        x: (B, K, *event), K particles for each row; E[x_0 | x] at the last time.
        log_weights: (B, K) float64, normalised: their exponentials sum to one in each row.
        log_evidence: (B,) float64, ln of the mean reward, or of the integral of the product of densities.
        ess: (N + 1, B) float64, the effective number of particles 1/sum w^2 at each node, before they were chosen: how even the weights are, which is not where the particles are.
        nfe: network calls of each particle.
        seed: what named the noise, with the names of the rows.
        sample_ids: (B,) those names.
    """

    x: Tensor
    log_weights: Tensor
    log_evidence: Tensor
    ess: Tensor
    nfe: int
    seed: int
    sample_ids: Tensor

    @property
    def mean(self) -> Tensor:
        """The weighted mean, (B, *event)."""
        weights = self.log_weights.exp().to(self.x.dtype)
        return torch.einsum("bk,bk...->b...", weights, self.x)

    def draw(self, n: int, *, seed: int | None = None) -> Tensor:
        """n unweighted draws from each row's particles, (B, n, *event): systematic in the weights, then in a random order.

        Arguments:
            n: >= 1; many more than the last ``ess`` are copies of one another.
            seed: names the choice; default: the seed of the particles.
        """
        n = integer("n", n, 1, example=16)
        seed = self.seed if seed is None else _checks.seed_of(seed, None)
        numbers = SeededNormals(seed, self.sample_ids, (n + 1,), dtype=torch.float64, device=self.x.device, stream=PARTICLES).normal(0, _CHOICE)
        chosen = _systematic(self.log_weights, numbers[:, 0], n)
        return _taken(self.x, chosen.gather(1, numbers[:, 1:].argsort(1)))


class _Here(NamedTuple):
    """What is known of the particles at one node; the first axis of each is theirs, (B K)."""

    x: Tensor
    denoised: Tensor
    """E[x_0 | x] here."""
    before: Tensor | None
    """E[x_0 | x] one step before; None at the first node."""
    pull: Tensor | None
    """(sigma^2/alpha) grad ln psi, (B K, *event)."""
    log_psi: Tensor
    """(B, K)."""
    rate: Tensor
    """d ln w / d ln(alpha/sigma) from the powers, (B, K)."""

    def chosen(self, index: Tensor) -> _Here:
        """The particles of those indices, (B, K), in each row."""
        rows, count = index.shape

        def taken(part: Tensor) -> Tensor:
            return _taken(part.reshape(rows, count, *part.shape[1:]), index).flatten(0, 1)

        before, pull = (None if part is None else taken(part) for part in (self.before, self.pull))
        return _Here(taken(self.x), taken(self.denoised), before, pull, self.log_psi.gather(1, index), self.rate.gather(1, index))


@torch.no_grad()
def smc(
    problem: ReverseSDE,
    x: Tensor,
    reward: Reward | None = None,
    *,
    power: float = 1.0,
    factors: Sequence[tuple[Score | Field, float]] = (),
    steps: int = 100,
    grid: Grid | str | Recipe | Sequence[float] | Tensor = "log_snr",
    resample: float = 0.5,
    seed: int | None = None,
    sample_ids: Tensor | Sequence[int] | None = None,
    progress: bool = False,
) -> Particles:
    """Weighted draws from  p(x_0)^power prod_i p_i(x_0)^beta_i r(x_0),  with p the law of the reverse SDE and p_i those of ``factors``.

    For posteriors (r the likelihood of a measurement), rewards, tempered laws and products or geometric means of models.  Exact in the limit of many
    particles for the law that the steps sample, which is of weak order 2 in them.  Cost: one network call a node, N + 1 in all, for every particle and
    factor, and with a reward as many derivatives of the network.  In high dimension the weights become uneven, and many particles the
    copies of a few: a low ``ess`` says so.  A high one is no proof: errors are larger than those of so many independent draws, as particles have ancestors
    in common, and a law that is wide where no particle goes, as a quotient may be, is missed with even weights.

    Arguments:
        problem: ``process.reverse(score)``.
        x: (B, K, *event), K >= 2 draws of the process's prior for each of B rows, as in ``process.prior((B, K, *event), seed=0)``.
        reward: ln r by rows, from (E[x_0 | x_t], t), as :data:`Reward` has it; differentiable.  Rows of B problems come in order, each K times; where it has an
            attribute ``particles``, K must be that.
        power: beta > 0 of the problem's own law.
        factors: (score, beta_i) of further laws under the same process; the powers must have a positive sum.
        steps, grid: as for :func:`solve`.
        resample: particles are chosen anew where the effective number falls below this share of K, 0 (never) to 1 (always).
        seed: names the noise with ``sample_ids``, (B,) names of the rows; default: drawn from torch's generator, and 0..B-1.
        progress: draw a progress bar.

    Returns:
        Weighted particles.

    Raises:
        TypeError, ValueError: bad arguments, before the first network call; a reward of the wrong shape.

    Warns:
        SolveWarning: no finite weight; guidance between noise levels that no node has; without a reward, particles that are narrower than the law that was asked for.
    """
    if not isinstance(problem, ReverseSDE):
        raise TypeError(f"problem is a {type(problem).__name__}; expected a reverse SDE, as in process.reverse(score).")
    if not isinstance(x, Tensor) or x.dim() < 3 or x.shape[1] < 2:
        got = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
        raise ValueError(f"x is {got}; expected (B, K, *event) with K >= 2 particles: process.prior((1, 256, *event), seed=0).")
    _checks.check_state(x.flatten(0, 1), problem, _KERNEL)
    if not bool(x.isfinite().all()):
        raise ValueError("x is not finite; expected draws of the process's prior: process.prior((B, K, *event), seed=0).")
    wanted = getattr(reward, "particles", x.shape[1])
    if wanted != x.shape[1]:
        raise ValueError(
            f"x has {x.shape[1]} particles for each of {len(x)} rows, and the reward is for {wanted} of each; expected x of shape (B, {wanted}, *event): "
            f"process.prior((B, {wanted}, *event), seed=0)."
        )
    laws = _laws(problem, power, factors)
    if reward is None and len(laws) == 1 and power == 1:
        raise ValueError("there is nothing to weigh; expected a reward, factors or another power than 1: without them use sdesolve.solve.")
    share = as_float(resample)
    if share is None or not 0 <= share <= 1:
        raise ValueError(f"resample={resample!r}; expected a share of the particles from 0 to 1, as in resample=0.5.")
    ts = _grid(problem, grid, steps).ts
    seed = _checks.seed_of(seed, None)
    ids = sample_ids_of(sample_ids, len(x))
    with heeding_levels():
        return _walk(problem, x, reward, laws, ts, share, seed, ids, progress)


def _walk(
    problem: ReverseSDE, x: Tensor, reward: Reward | None, laws: list[tuple[Score, float]], ts: tuple[float, ...], share: float, seed: int, ids: Tensor, progress: bool
) -> Particles:
    rows, count, p = len(x), x.shape[1], problem.process
    names = (ids[:, None] * count + torch.arange(count)).reshape(-1)
    noise = SeededNormals(seed, names, x.shape[2:], dtype=x.dtype, device=x.device, stream=PARTICLES, nodes=len(ts))
    chance = SeededNormals(seed, ids, (1,), dtype=torch.float64, device=x.device, stream=PARTICLES, nodes=len(ts))
    total = sum(beta for _, beta in laws)
    calls = _tally.calls()
    with _progress.count(progress, len(ts), "smc") as done:
        here = _look(laws, reward, x.flatten(0, 1) / math.sqrt(total), ts[0], rows)
        log_w, log_z, ess = here.log_psi, _log_volume(p, total, ts, x[0, 0].numel()) + torch.zeros_like(here.log_psi[:, 0]), []
        for node, t1 in enumerate(ts[1:]):
            done()
            ess.append(_effective(log_w))
            few = ess[-1] < share * count
            gain = torch.logsumexp(log_w, 1) - math.log(count)
            picked = _systematic(log_w - torch.logsumexp(log_w, 1, keepdim=True), chance.normal(node, _CHOICE)[:, 0], count)
            picked = torch.where(few[:, None], picked, torch.arange(count, device=x.device))
            log_w, log_z = torch.where(few[:, None], 0.0, log_w), log_z + torch.where(few, gain, 0.0)
            here = here.chosen(picked)
            x1, log_ratio = _step(p, here, ts[max(0, node - 1) : node + 1][::-1], t1, noise.normal(node))
            there = _look(laws, reward, x1, t1, rows, last=t1 == ts[-1], before=here.denoised)
            h = 0.5 * float(p.log_snr(t1) - p.log_snr(ts[node]))
            log_w = log_w + log_ratio.reshape(rows, count) + there.log_psi - here.log_psi + h * 0.5 * (here.rate + there.rate)
            here = there
        done()
        ess.append(_effective(log_w))
    whole = torch.logsumexp(log_w, 1)
    lost = torch.nonzero(~whole.isfinite())[:, 0].tolist()
    if lost:
        said = f"{len(lost)} of {rows} rows have no particle with a finite weight (rows {lost[:5]}): the reward or the score is not finite there, or the reward is 0 everywhere."
        warnings.warn(said, SolveWarning, stacklevel=3)
    if reward is None:
        _warn_narrow(p, here, log_w - whole[:, None], ess[-1], ts[-1])
    evidence = log_z + whole - math.log(count)
    return Particles(here.denoised.reshape(x.shape), log_w - whole[:, None], evidence, torch.stack(ess), _tally.calls() - calls, seed, ids)


def _warn_narrow(process: Process, here: _Here, log_w: Tensor, ess: Tensor, t: float) -> None:
    """Say where the particles are narrower than the law q that was asked for, by Stein's identity  E (x - E x).grad ln q(x) = -d  for d numbers; even weights don't tell."""
    rows, count, d = *log_w.shape, here.x[0].numel()
    x, slope = (v.double().reshape(rows, count, d) for v in (here.x, (process.alpha_(t) * here.denoised - here.x) / process.sigma_(t) ** 2))
    weight = log_w.exp()[:, :, None]
    share = -((x - (weight * x).sum(1, keepdim=True)) * slope * weight).sum((1, 2)) / d
    narrow = share < _SHARE - _ERRORS * (2 / (d * ess)).sqrt()
    if narrow.any():
        said = f"{int(narrow.sum())} of {rows} rows have particles narrower than the law: E (x - E x).grad ln q is {-d * float(share[narrow].min()):.3g} where it should be {-d}"
        cure = "a quotient much wider than its factors is out of reach: expected less of what is divided by, powers nearer to 1, or more particles."
        warnings.warn(f"{said}; {cure}", SolveWarning, stacklevel=4)


def _look(laws: list[tuple[Score, float]], reward: Reward | None, x: Tensor, t: float, rows: int, last: bool = False, before: Tensor | None = None) -> _Here:
    """What the networks and the reward say of the particles x at the time t; at the last node the reward is asked for itself."""
    process = laws[0][0].process
    alpha, sigma = process.alpha_(t), process.sigma_(t)
    with torch.set_grad_enabled(reward is not None):
        x = x.detach().requires_grad_(reward is not None)
        each = [score.denoise(x, t) for score, _ in laws]
        rest = 1 - sum(beta for _, beta in laws)
        joint = sum((beta * d for d, (_, beta) in zip(each, laws, strict=True)), torch.zeros_like(x))
        denoised = joint + rest / alpha * x if rest else joint
        log_psi, pull = x.new_zeros(rows, len(x) // rows, dtype=torch.float64), None
        if reward is not None:
            guess = denoised if last or not rest else joint / (1 - rest)  # x/alpha is no image on the way, but noise
            value = _checked(reward(guess, 0.0 if last else t), x)
            (slope,) = torch.autograd.grad(value.sum(), x)
            pull, log_psi = sigma**2 / alpha * slope, value.detach().double().reshape(rows, -1)
    rate = torch.zeros_like(log_psi)
    if len(laws) > 1 or rest:
        noise = [(x - alpha * d) / sigma for d in each]
        square = _square(sum(beta * e for e, (_, beta) in zip(noise, laws, strict=True))) - sum(beta * _square(e) for e, (_, beta) in zip(noise, laws, strict=True))  # type: ignore[arg-type]
        push = -rest * sigma**2 / (alpha**2 + sigma**2)  # 2 k |dt| a unit of ln(alpha^2/sigma^2)
        along = sum(beta * (x.double() * e).reshape(len(x), -1).sum(1) for e, (_, beta) in zip(noise, laws, strict=True)) / sigma
        rate = (square + push * (x[0].numel() - along)).reshape(rows, -1)
        denoised = denoised if last else denoised + 0.5 * push / alpha * x
    return _Here(x.detach(), denoised.detach(), before, pull, log_psi, rate.detach())


def _step(process: Process, here: _Here, times: Sequence[float], t1: float, z: Tensor) -> tuple[Tensor, Tensor]:
    """The particles at t1, and ln of (what the kernel has for the move) / (what the pulled one has), (B K,); times newest first."""
    row = _KERNEL.row(process, times, t1)
    spread = float(row.on_noise or 0.0)
    x = combined(row, here.x, [here.denoised] if here.before is None else [here.denoised, here.before]) + spread * z
    if here.pull is None:
        return x, torch.zeros(len(x), dtype=torch.float64, device=x.device)
    change = float(sum(row.on_outputs)) * here.pull
    share = _MOST * spread / (_square(change) / change[0].numel()).sqrt()
    change = bcast(share.clamp(max=1.0), change) * change
    along = (change.double() * z.double()).reshape(len(x), -1).sum(1)
    return x + change, -along / spread - 0.5 * _square(change) / spread**2


def _laws(problem: ReverseSDE, power: float, factors: Sequence[tuple[Score | Field, float]]) -> list[tuple[Score, float]]:
    """Scores and powers, the problem's own first."""
    laws = [(problem.score, power)]
    for i, factor in enumerate(factors):
        if not isinstance(factor, tuple) or len(factor) != 2:
            raise TypeError(f"factors[{i}] is a {type(factor).__name__}; expected pairs of a score and a power: factors=[(other.score, 1.0)].")
        score = factor[0] if isinstance(factor[0], Score) else as_score(factor[0], problem.process, predicts="score")
        if score.process != problem.process:
            raise ValueError(f"factors[{i}] belongs to {score.process} and the problem to {problem.process}; expected one process.")
        laws.append((score, factor[1]))
    powers = [as_float(beta) for _, beta in laws]
    if any(beta is None or not math.isfinite(beta) for beta in powers) or not sum(powers) > 0:  # type: ignore[arg-type]
        raise ValueError(f"the powers are {[beta for _, beta in laws]}; expected finite numbers with a positive sum, as in power=0.5, factors=[(other, 0.5)].")
    return laws


def _grid(problem: ReverseSDE, grid: Grid | str | Recipe | Sequence[float] | Tensor, steps: int) -> Grid:
    if isinstance(grid, str) or callable(grid):
        return make_grid(grid, problem.process, *problem.interval, integer("steps", steps, 1))
    made = grid if isinstance(grid, Grid) else Grid.of(grid)
    problem.check_interval((made.ts[0], made.ts[-1]))
    return made


def _log_volume(process: Process, total: float, ts: tuple[float, ...], d: int) -> float:
    """ln of the integral of prior^total, and what the flow's divergence adds to it on the way: 0 for total = 1."""
    if total == 1:
        return 0.0
    gaussian = 0.5 * d * ((1 - total) * math.log(2 * math.pi * process.sigma_(ts[0]) ** 2) - math.log(total))
    return gaussian + (total - 1) * d * math.log(process.alpha_(ts[0]) / process.alpha_(ts[-1]))


def _checked(value: object, x: Tensor) -> Tensor:
    if not isinstance(value, Tensor) or value.shape != (len(x),) or not value.is_floating_point():
        got = f"{tuple(value.shape)} {value.dtype}" if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(f"the reward returned {got}; expected ({len(x)},), the logarithm of one number for each row: .flatten(1).sum(1).")
    if not value.requires_grad:
        raise ValueError("the reward does not depend on the state in a differentiable way; expected a function of E[x_0 | x] in torch operations.")
    return value


def _effective(log_w: Tensor) -> Tensor:
    """1/sum w^2 of each row, (B, K) -> (B,)."""
    return (2 * torch.logsumexp(log_w, 1) - torch.logsumexp(2 * log_w, 1)).exp()


def _systematic(log_w: Tensor, normal: Tensor, n: int) -> Tensor:
    """(B, n) rising indices of particles, each about n w_k times, from normalised weights (B, K) and one normal a row.  [Kitagawa 1996]"""
    cumulative = log_w.exp().cumsum(1)
    offset = torch.special.ndtr(normal)[:, None]
    positions = (offset + torch.arange(n, device=log_w.device)) / n * cumulative[:, -1:]
    return torch.searchsorted(cumulative, positions.contiguous()).clamp(max=log_w.shape[1] - 1)


def _taken(x: Tensor, index: Tensor) -> Tensor:
    """(B, K, *event) by (B, n) -> (B, n, *event)."""
    return x[torch.arange(len(x), device=x.device)[:, None], index]


def _square(x: Tensor) -> Tensor:
    """|x|^2 of each row, float64."""
    return x.double().square().reshape(len(x), -1).sum(1)
