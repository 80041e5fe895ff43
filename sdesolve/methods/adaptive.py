"""Stochastic Heun with Euler-Maruyama embedded: the pair that chooses its own steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .base import Facts
from .stratonovich import HeunSDE


@dataclass(frozen=True)
class Adaptive(HeunSDE):
    """``heun_sde`` with its distance to Euler's method as its error, K(x, t) standing for f(x, t) dt + g(x, t) dW:

        x' = x + K(x, t0),     x1 = x + (K(x, t0) + K(x', t1))/2,     error = x1 - x'.

    The steps are chosen per sample, and a rejected one keeps its Brownian path, so the law of the samples tends to the right one with
    the tolerance.  Two calls a step.  [Kloeden & Platen 1992, 15.5; Foster & Jelincic 2023]
    """

    facts: ClassVar[Facts] = HeunSDE.facts._replace(reference="Foster & Jelincic 2023")
    error_order: ClassVar[float] = 1.5
    default_tolerance: ClassVar[float] = 1e-2
