"""Platen's explicit method of weak order 2."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .._arrays import Number, absolute, bcast, xp
from ..problems import SDE
from .base import Facts, Step, StepNoise, Stepper


@dataclass(frozen=True)
class Platen(Stepper):
    """Platen's method of weak order 2, for any noise in Ito's calculus.  [Kloeden & Platen 1992, equation 15.1.3]

    With y = x + f h + g W, r_j = x + f h +- g_j sqrt|h| at t1 and u_k = x +- g_k sqrt|h| at t0, and with s and d for half the sum and
    half the difference of what a column is at the two signs,

        x1 = x + (f(x, t0) + f(y, t1)) h/2
             + (1/2) sum_j [ (s_j(r_j) + g_j) W_j + d_j(r_j) (W_j^2 - |h|)/sqrt|h| ]
             + (1/2) sum_(j != k) [ (s_j(u_k) - g_j) W_j + d_j(u_k) (W_j W_k + V_kj)/sqrt|h| ],

    where V_kj = -V_jk is +-|h| with equal chances.  Two calls of the drift a step, and three of the diffusion, or 1 + 4 m for a matrix
    of m columns.  Take it for expectations: it does not follow the path better than order 1/2 where the noise does not commute.
    """

    facts: ClassVar[Facts] = Facts(
        evals=2,
        weak={"scalar": 2.0, "diagonal": 2.0, "general": 2.0},
        reference="Kloeden & Platen 1992",
    )

    def step(self, problem: SDE, x: Tensor, t0: Number, t1: Number, noise: StepNoise, carry: None) -> Step:
        h, (w, area) = bcast(t1 - t0, x), noise.levy(t0, t1)
        slope, g = problem.drift(x, t0), problem.diffusion(x, t0)
        moved = x + h * slope
        mean = x + 0.5 * h * (slope + problem.drift(moved + problem.apply(g, w), t1))
        if problem.noise == "general":
            return Step(mean + _matrix(problem, x, moved, g, t0, t1, w, area.sign()), mean=mean)
        return Step(mean + _columns_apart(problem, moved, g, t0, t1, w), mean=mean)


def _columns_apart(problem: SDE, moved: Tensor, g: Tensor, t0: Number, t1: Number, w: Tensor) -> Tensor:
    """The noise where no column moves another: all of them at once."""
    size = bcast(absolute(t1 - t0), moved)
    root = xp(size).sqrt(size)
    up, down = (problem.diffusion(moved + sign * root * g, t1) for sign in (1, -1))
    return 0.25 * ((up + down + 2 * g) * w + (up - down) * (w * w - size) / root)


def _matrix(problem: SDE, x: Tensor, moved: Tensor, g: Tensor, t0: Number, t1: Number, w: Tensor, side: Tensor) -> Tensor:
    """The noise of a matrix, the state moved along one column after the other; ``side``, (B, m), holds signs independent of W."""
    size = bcast(absolute(t1 - t0), g)
    root = xp(size).sqrt(size)
    w, side = (v.reshape(len(x), *(1,) * (x.dim() - 1), -1) for v in (w, side))
    column, total = torch.arange(g.shape[-1], device=x.device), torch.zeros_like(g)
    for k in range(g.shape[-1]):
        move = (root * g)[..., k]
        up, down = (problem.diffusion(moved + sign * move, t1) for sign in (1, -1))
        own = (up + down + 2 * g) * w + (up - down) * (w * w - size) / root
        up, down = (problem.diffusion(x + sign * move, t0) for sign in (1, -1))
        areas = (column - k).sign() * side * side[..., k : k + 1] * size
        others = (up + down - 2 * g) * w + (up - down) * (w * w[..., k : k + 1] + areas) / root
        total = total + torch.where(column == k, own, others)
    return 0.25 * total.sum(-1)
