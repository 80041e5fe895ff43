"""Splittings of underdamped Langevin dynamics: parts that can be solved exactly, one after the other.

    A: dq = v dt      B: dv = force(q, t)/m dt      O: dv = -friction v dt + sqrt(2 friction T/m) dw      U: A and O together
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from .._arrays import Number, absolute, bcast, xp
from ..brownian import bridge
from ..noise import LEVY
from ..problems import UnderdampedLangevin
from .base import Facts, Step, StepNoise, Stepper

_GAUSS = np.polynomial.legendre.leggauss(12)
NODES, WEIGHTS = (0.5 + 0.5 * _GAUSS[0]).tolist(), (0.5 * _GAUSS[1]).tolist()  # on (0, 1)


@dataclass(frozen=True)
class BAOAB(Stepper):
    """BAOAB.  [Leimkuhler & Matthews 2013]

    Strong order 1, weak order 2, one call a step.  Take it to sample positions: on a Gaussian their stationary law is exact at every h.
    """

    facts: ClassVar[Facts] = Facts(
        evals=1, start=1, strong={"additive": 1.0}, weak={"additive": 2.0}, needs=frozenset({"langevin"}), reference="Leimkuhler & Matthews 2013"
    )

    def init(self, problem: UnderdampedLangevin, x: Tensor, t: Number) -> Tensor:
        return problem.force(x[:, 0], t)

    def step(self, problem: UnderdampedLangevin, x: Tensor, t0: Number, t1: Number, noise: StepNoise, carry: Tensor) -> Step:
        q, v = x.unbind(1)
        h = _bounded(problem, t1 - t0)
        half, decay = bcast(0.5 * h, q), -problem.friction * h
        variance = problem.temperature / problem.mass * absolute(xp(h).expm1(2 * decay)) / absolute(h)
        v = v + half / problem.mass * carry
        q = q + half * v
        v = bcast(xp(h).exp(decay), v) * v + bcast(xp(h).sqrt(variance), v) * noise.increment(t0, t1)
        q = q + half * v
        force = problem.force(q, t1)
        return Step(torch.stack([q, v + half / problem.mass * force], 1), carry=force)


@dataclass(frozen=True)
class UBU(Stepper):
    """UBU: half a step of U, the kick B, half a step of U.  [Sanz-Serna & Zygalakis 2021]

    Strong order 2, weak order 2, one call a step, at its middle.  Take it to follow paths, or at low friction.
    """

    facts: ClassVar[Facts] = Facts(
        evals=1, strong={"additive": 2.0}, weak={"additive": 2.0}, needs=frozenset({"langevin"}), reference="Sanz-Serna & Zygalakis 2021"
    )

    def step(self, problem: UnderdampedLangevin, x: Tensor, t0: Number, t1: Number, noise: StepNoise, carry: None) -> Step:
        half = 0.5 * _bounded(problem, t1 - t0)
        (q, v), (first, second) = x.unbind(1), _halves(noise, t0, t1)
        q, v = _free(problem, q, v, half, *first)
        v = v + bcast(2 * half / problem.mass, v) * problem.force(q, t0 + half)
        q, v = _free(problem, q, v, half, *second)
        return Step(torch.stack([q, v], 1))


def _bounded(problem: UnderdampedLangevin, h: Number) -> Number:
    """``h``, unless a step backwards of that length multiplies velocities by more than a float can hold."""
    if not isinstance(h, Tensor) and problem.friction * h < -300:
        raise ValueError(f"a step of {h:g} at friction={problem.friction:g} multiplies velocities by e^{-problem.friction * h:.3g}; expected shorter steps, as in steps=1000.")
    return h


def _halves(noise: StepNoise, t0: Number, t1: Number) -> list[tuple[Tensor, Tensor, Tensor]]:
    """W, H and an independent N(0, |h|/2) of each half of the step, given W and H of the whole."""
    half, (w, area) = 0.5 * absolute(t1 - t0), noise.levy(t0, t1)
    halves = bridge(w, area, half, half, noise.normal(LEVY + 1), noise.normal(LEVY + 2))
    rest = [bcast(xp(half).sqrt(half), w) * noise.normal(LEVY + i) for i in (3, 4)]
    return [(*halves[:2], rest[0]), (*halves[2:], rest[1])]


def _free(problem: UnderdampedLangevin, q: Tensor, v: Tensor, h: Number, w: Tensor, area: Tensor, rest: Tensor) -> tuple[Tensor, Tensor]:
    """The exact flow of U over h:  v1 = e^(-c h) v + s (W - L),  q1 = q + (1 - e^(-c h)) v/c + (s/c) L  for friction c and noise s,
    where L = int (1 - e^(-c (t1 - u))) dW is projected on W and H, and what is left of it is ``rest``."""
    c, s = problem.friction, math.sqrt(2 * problem.friction * problem.temperature / problem.mass)
    lost = [-xp(h).expm1(-c * h * r) for r in NODES]
    on_w = _integral(lost)
    on_area = 12 * _integral([p * (r - 0.5) for p, r in zip(lost, NODES, strict=True)])
    square = _integral([(p - on_w - on_area * (r - 0.5)) ** 2 for p, r in zip(lost, NODES, strict=True)])
    noise = bcast(on_w, w) * w + bcast(on_area, w) * area + bcast(xp(h).sqrt(square), w) * rest
    decay = bcast(xp(h).expm1(-c * h), v)
    return q - decay / c * v + s / c * noise, v + decay * v + s * (w - noise)


def _integral(values: list[Number]) -> Number:
    """Of a function on (0, 1), from its values at the nodes."""
    return sum((w * value for w, value in zip(WEIGHTS, values, strict=True)), start=0.0)
