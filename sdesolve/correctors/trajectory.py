"""Correctors that fly: leapfrog steps of positions and fresh velocities, a heat bath between them, and a Metropolis test at the end.

At a fixed time the density p_t has the score s.  A step draws velocities v ~ N(0, 1/m) and makes L leapfrog steps of length h,

    v <- v + h s(x)/2m,    x <- x + h v/2,    v <- c v + sqrt((1 - c^2)/m) z,    x <- x + h v/2,    v <- v + h s(x)/2m,

with c = e^(-friction h/sigma_t): BAOAB, which without friction is the leapfrog (velocity Verlet) scheme.  Lengths are in units of the
kernel's width, h = r sigma_t, as no p_t is narrower in any direction.  [Leimkuhler & Matthews 2013; Neal 2011, sec. 2.3 and 5.2]

The end is accepted with probability min(1, e^-D), or the sample stays where it was; with an exact D p_t is left as it is.  D is the change of
-ln p_t(x) + m |v|^2/2 without what the bath gave.  [Bou-Rabee & Vanden-Eijnden 2010, on the test behind a bath]  The change of
ln p_t is the line integral of its gradient, of which the score is all that is known.  By Simpson's rule along the segment dx of one leapfrog step,
the kicks cancel what is large in it, and what is left is

    D = h^2/8m (|s_1|^2 - |s_0|^2) + h/4 (v_a - v_b).(s_0 - s_1) - 2/3 dx.(s_mid - (s_0 + s_1)/2),

v_a and v_b before and after the bath, at the cost of one call at the segment's middle.  It is of fourth order: p_t is left as it is for h up to about its
narrowest width, and at 2.4 times that it is not (a mean of 0.55 for 0.09 between two modes).  The trapezoid rule, whose D lacks the last term, adds up to
h^2/8m (|s_L|^2 - |s_0|^2) without a bath: a function of the two ends that is no difference of energies, so that the law it leaves as it is isn't p_t.

A step size of its own, ``step_size="auto"``, for each sample and through all levels of a solve, from what its k steps so far have said
[after Robbins & Monro 1951]:

    with the test     ln r <- ln r + k^-0.6 (min(1, e^-D) - target):  the acceptance that is aimed at, from d^-1/4 on [Beskos et al. 2013]
    without           r^-2 <- r^-2 + (k + 10)^-0.8 (sigma_t^2 |s|^2/(d target^2) - r^-2):  h is the share ``target`` of the width w of p_t, at most sigma_t

where  d/w^2 = E|s|^2 = -E[div s],  at most d/sigma_t^2: from the kernel's width on, steps grow as p_t turns out to be wider.  (It is the published
rule of the norms, snr |z|/|s|, with a sample's past for its present, which would bias it, and for the batch.)  Wide in most directions, p_t may be as narrow as the kernel
in a few, and there steps of 2 sigma_t and more explode if nothing rejects them.  Steps are longer and shorter in turn, by up to a quarter, so that no flight comes
back to its start time and again.  What depends on a state's past biases its chain until it has faded, as these weights do [Roberts & Rosenthal 2007].
Measured on exact samples after 200 steps, the variance is off by less than 2 % with the test; without it by 5 % in one dimension and 1 to 3 % in
two for HMC, whose steps explain 2 %, and by less than 1 % for ``underdamped``.  Between modes of different widths, which want different steps, the test doesn't help:
from exact samples of two of std 0.25 and 0.5, the narrow one's share of 0.37 is 0.41 after 50 steps of MALA and 0.39 after 200.

So ``step_size="kernel"`` is the step of chains that are to keep p_t: what "auto" starts from, d^-1/4 with the test and ``target`` without, for good.  It is a function of the
number of the step, of t and of d, in which no state has a say, and at most 5/4 sigma_t.  Where p_t is much wider than sigma_t it is slow; a number is as good and may be larger.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from .._arrays import Number, bcast, row_mean, xp
from .._errors import as_float, integer
from ..problems import ScoreProblem
from .base import Account, Corrector, Normals

MIDDLE = 2 / 3  # Simpson's rule less the trapezoid's: it is that much of the score's bend at a segment's middle
SPREAD, GOLDEN = 0.25, 0.5 * (math.sqrt(5) - 1)  # multiples of the golden section are spread evenly over (0, 1), however many
STEER = 2  # of a record's columns, the first
VELOCITY, UNIFORM, BATH = range(3)  # parts of a step's noise; leapfrog step j has the bath's part BATH + j


class Landed(NamedTuple):
    """Where a flight ended."""

    x: Tensor
    v: Tensor
    """Velocity, in units of 1/sqrt(m)."""
    score: Tensor
    """At x, unless nobody asked for it."""
    energy: Tensor
    """(B,) float64, the error D; zero where it isn't measured."""


class Record(NamedTuple):
    """What a sample has met so far; (B,) float64 each, kept as the columns of an account."""

    log_step: Tensor
    """ln r."""
    steps: Tensor
    """How many; this and the one before steer those to come."""
    stein: Tensor
    """Sum of -x.s/d over the steps' starts, as is the next."""
    square: Tensor
    """Sum of sigma_t^2 |s|^2/d."""
    cross: Tensor
    """Sum of sigma_t^2 s.s'/d for steps from s to s', where there is a test, as for the next two."""
    acceptance: Tensor
    error: Tensor
    """Sum of |D|."""

    @staticmethod
    def of(account: Account) -> Record:
        return Record(*torch.cat(account, 1).detach().T.contiguous())  # contiguous: columns are read alike in every batch

    def account(self) -> Account:
        return Account(torch.stack(self[:STEER], 1), torch.stack(self[STEER:], 1))


@dataclass(frozen=True)
class Trajectory(Corrector):
    """L leapfrog steps with fresh velocities; :func:`hmc`, :func:`mala` and :func:`underdamped` make it and say when to take it.

    Arguments:
        leapfrog: number L >= 1 of leapfrog steps in a step.
        step_size: r > 0 of  h = r sigma_t, or "auto", or "kernel".
        accept: the Metropolis test: L + 1 more calls.
        target: of "auto", in (0, 1): with the test an acceptance, 0.9; without it h/w, 0.3, and 0.9 in a bath, which is r for "kernel".
        friction: >= 0, in units of 1/sigma_t.
        mass: m > 0, a tensor of one sample's shape on the state's device: 1/sqrt(m) is the relative step of each coordinate.  None for 1.
    """

    leapfrog: int = 3
    step_size: float | str = "auto"
    accept: bool = False
    target: float | None = None
    friction: float = 0.0
    mass: Tensor | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "leapfrog", integer("leapfrog", self.leapfrog, 1, example=3))
        if not isinstance(self.accept, bool):
            raise TypeError(f"accept={self.accept!r}; expected True or False.")
        if self.step_size not in ("auto", "kernel"):
            self._number("step_size", 0.3, 0.0, math.inf, ' or "auto" or "kernel"')
        if self.target is not None:
            self._number("target", 0.9 if self.accept else 0.3, 0.0, 1.0)
        if self.friction != 0:
            self._number("friction", 1.0, 0.0, math.inf)
        if self.mass is not None:
            if not isinstance(self.mass, Tensor) or not self.mass.is_floating_point():
                raise TypeError(f"mass is {self.mass!r}; expected a floating tensor of one sample's shape: torch.ones(x.shape[1:]).")
            if not bool(((self.mass > 0) & self.mass.isfinite()).all()):
                raise ValueError("mass has entries that are not finite or not > 0; expected 1 / scale**2 of each coordinate's scale.")

    def _number(self, name: str, example: float, low: float, high: float, also: str = "") -> None:
        value = as_float(getattr(self, name))
        if value is None or not low < value < high:
            bounds = f"{low:g} < {name}" + (f" < {high:g}" if high < math.inf else "")
            raise ValueError(f"{name}={getattr(self, name)!r}; expected a finite number, {bounds}, as in {name}={example}{also}.")
        object.__setattr__(self, name, value)

    @property
    def aim(self) -> float:
        """``target``, or its default.  The textbook's acceptances of 0.65 and 0.574 are those of many dimensions and of exact energies: in few, they lead
        to steps of 1.5 widths and more, where Simpson's rule is no longer right."""
        return (0.9 if self.accept or self.friction else 0.3) if self.target is None else self.target

    def calls(self, steps: int) -> int:
        return steps * self.leapfrog * (1 + self.accept) + (self.accept and steps > 0)

    def init(self, x: Tensor) -> Account:
        if self.mass is not None and (self.mass.shape != x.shape[1:] or self.mass.device != x.device):
            raise ValueError(
                f"mass is {tuple(self.mass.shape)} on {self.mass.device} for samples of {tuple(x.shape[1:])} on {x.device}; expected their shape and device: "
                "torch.ones_like(x[0])."
            )
        record = Record(*torch.zeros(len(Record._fields), len(x), dtype=torch.float64, device=x.device))
        first = x[0].numel() ** -0.25 if self.accept else self.aim
        return record._replace(log_step=record.log_step + math.log(self.step_size if isinstance(self.step_size, float) else first)).account()

    def correct(self, problem: ScoreProblem, x: Tensor, t: Number, steps: int, normals: Normals, carry: Account) -> tuple[Tensor, Account]:
        if not steps:
            return x, carry
        score, width, record = partial(problem.score, t=t), problem.process.sigma_(t), Record.of(carry)
        here = score(x)
        x = x + 0 * here if self.accept else x  # where there is no score, no end is ever accepted: such a sample is none
        for k in range(steps):
            r = self._radius(record)
            end = self.fly(score, x, here, normals(k, VELOCITY), width * r, r, partial(normals, k), landing=self.accept or k + 1 < steps)
            record = self._met(record, x, here, width)
            if self.accept:
                taken, record = self._tested(record, here, end, normals(k, UNIFORM), width)
                x, here = torch.where(taken, end.x, x), torch.where(taken, end.score, here)
            else:
                x, here = end.x, end.score
        return x, record.account()

    def _radius(self, record: Record) -> Number:
        """r of the next step."""
        if isinstance(self.step_size, float):
            return self.step_size
        return self._size(record) * (1 + SPREAD * (2 * (GOLDEN * record.steps).frac() - 1))

    def _size(self, record: Record) -> Tensor:
        """r as it has been found, or given."""
        r = record.log_step.exp()
        return r if self.accept or self.step_size != "auto" else r.clamp(max=1)

    def _met(self, record: Record, x: Tensor, here: Tensor, width: Number) -> Record:
        """The record after a step from x, where the score is ``here``."""
        square = width * width * _dot(here, here) / x[0].numel()
        steps, log_step = record.steps + 1, record.log_step
        if self.step_size == "auto" and not self.accept:
            inverse = (-2 * log_step).exp()
            log_step = -0.5 * (inverse + (steps + 10) ** -0.8 * (square / self.aim**2 - inverse)).log()
        return record._replace(
            log_step=log_step, steps=steps, stein=record.stein - _dot(x, here) / x[0].numel(), square=record.square + square
        )

    def _tested(self, record: Record, here: Tensor, end: Landed, normal: Tensor, width: Number) -> tuple[Tensor, Record]:
        """Which flights are accepted, shaped to multiply a state, and the record; one to where there are no numbers is not."""
        error = end.energy.nan_to_num(math.inf, math.inf, math.inf)
        probability = (-error.clamp(min=0)).exp()
        taken = torch.special.ndtr(normal.reshape(len(here), -1)[:, 0].double().contiguous()) < probability
        taken = taken.reshape(-1, *(1,) * (here.dim() - 1))
        moved = record.steps**-0.6 * (probability - self.aim) if self.step_size == "auto" else 0.0
        after = torch.where(taken, end.score, here)
        return taken, record._replace(
            log_step=record.log_step + moved,
            cross=record.cross + width * width * _dot(here, after) / here[0].numel(),
            acceptance=record.acceptance + probability,
            error=record.error + error.abs(),
        )

    def fly(
        self,
        score: Callable[[Tensor], Tensor],
        x: Tensor,
        here: Tensor,
        v: Tensor,
        h: Number,
        r: Number,
        normals: Callable[[int], Tensor],
        landing: bool = True,
    ) -> Landed:
        """L leapfrog steps of length h = r sigma_t from (x, v), where the score is ``here``; ``landing``: whether its value at the end is wanted."""
        scale = None if self.mass is None else self.mass.rsqrt().to(x.dtype)
        half, energy = bcast(0.5 * h, x), torch.zeros(len(x), dtype=torch.float64, device=x.device)
        for j in range(self.leapfrog):
            pull = _times(scale, here)
            before = v + half * pull
            after = self._bathed(before, r, normals, BATH + j)
            dx = half * _times(scale, before + after)
            start, begun, x = x, here, x + dx
            if j + 1 == self.leapfrog and not landing:
                return Landed(x, after, here, energy)
            here = score(x)
            force = _times(scale, here)
            v = after + half * force
            if self.accept:
                energy = energy + 0.5 * _dot(force - pull, half * (half * (force + pull) - (before - after)))
                energy = energy - MIDDLE * _dot(dx, score(start + 0.5 * dx) - 0.5 * (begun + here))
        return Landed(x, v, here, energy)

    def _bathed(self, v: Tensor, r: Number, normals: Callable[[int], Tensor], part: int) -> Tensor:
        """The velocities after a heat bath, which leaves N(0, 1) as it is."""
        if not self.friction:
            return v
        decay = -self.friction * r
        return bcast(xp(r).exp(decay), v) * v + bcast(xp(r).sqrt(-xp(r).expm1(2 * decay)), v) * normals(part)

    def stats(self, carry: Account) -> dict[str, Tensor]:
        """Of each sample, over its steps, one at least.

        step_size: the r that it has come to.
        stein: the mean of -x.s/d, whose expectation is 1 where the samples have the law whose score it is: more says that they are too wide.
        acceptance: the mean of min(1, e^-D), where there is a test, as for the next two.
        energy_error: the mean of |D|.
        ess: how many independent draws the steps are worth, from the correlation rho of the scores at their ends: n (1 - rho)/(1 + rho), at most n.
            The score's mean is known to be 0, so that one chain tells.  Moves between modes are slower than the score forgets.  0 where the score
            is zero throughout: of a law that is flat everywhere no walk has a draw.
        """
        record = Record.of(carry)
        found = {"step_size": self._size(record), "stein": record.stein / record.steps}
        if not self.accept:
            return found
        rho = torch.where(record.square == 0, 1.0, record.cross / record.square).clamp(0, 1)
        means = {"acceptance": record.acceptance / record.steps, "energy_error": record.error / record.steps}
        return found | means | {"ess": record.steps * (1 - rho) / (1 + rho)}


def _times(scale: Tensor | None, x: Tensor) -> Tensor:
    return x if scale is None else scale * x


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """(B,) float64: sum over the event of a b."""
    return row_mean(a.detach().double() * b.detach().double()) * a[0].numel()
