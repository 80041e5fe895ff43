"""Problems with known answers, and the walk along a grid with given noise that order tests are made of."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

import sdesolve as sd


def nonlinear_ode(interval: tuple[float, float]) -> tuple[sd.ODE, Tensor, Tensor]:
    """The logistic equation with a beat,  x' = x (1 - x) (1 + 2 cos 3t):  nonlinear and non-autonomous, and

    logit x(t) = logit x(0) + t + 2/3 sin 3t.  Returns the problem, start and exact end.
    """
    t0, t1 = interval
    logit = torch.tensor([[-1.0, 0.5], [2.0, -2.0]], dtype=torch.float64)
    start, end = (torch.sigmoid(logit + t + 2 / 3 * math.sin(3 * t)) for t in (t0, t1))
    return sd.ODE(lambda x, t: x * (1 - x) * (1 + 2 * torch.cos(3 * sd.expand_time(t, x))), interval=interval), start, end


@dataclass(frozen=True)
class PathNoise:
    """The noise of one step of length dt, taken from a given Brownian increment."""

    dw: Tensor
    dt: float

    def increment(self, t0: float, t1: float) -> Tensor:
        return self.dw

    def normal(self, slot: int = 0) -> Tensor:
        return self.dw / math.sqrt(self.dt)


def walk(stepper: sd.Stepper, problem: object, x: Tensor, ts: list[float], dw: Tensor) -> Tensor:
    """The last state along ``ts``, driven by increments ``dw`` (fine steps, *noise shape) summed to the grid's own."""
    steps = len(ts) - 1
    coarse = dw.reshape(steps, len(dw) // steps, *dw.shape[1:]).sum(1)
    carry = stepper.init(problem, x, ts[0])
    for i in range(steps):
        out = stepper.step(problem, x, ts[i], ts[i + 1], PathNoise(coarse[i], abs(ts[i + 1] - ts[i])), carry)
        x, carry = out.x, out.carry
    return x


def slope(steps: list[int], errors: list[float]) -> float:
    """Least-squares slope of -log error against log steps: the observed order."""
    x, y = torch.tensor(steps, dtype=torch.float64).log(), -torch.tensor(errors, dtype=torch.float64).log()
    x, y = x - x.mean(), y - y.mean()
    return float((x * y).sum() / (x * x).sum())


def asymptotic_slope(steps: list[int], errors: list[float]) -> float:
    """p of the least-squares fit  error = c N^-p exp(d / N):  the order in the limit, where the next term still shows."""
    n = torch.tensor(steps, dtype=torch.float64)
    terms = torch.stack([torch.ones_like(n), -n.log(), 1 / n], 1)
    return float(torch.linalg.lstsq(terms, torch.tensor(errors, dtype=torch.float64).log()[:, None]).solution[1])


def observed_order(error: Callable[[int], float], rounding: float = 3e-13) -> float:
    """The order that ``error``, a function of the number of steps, shows on the four finest grids whose error stands out of rounding.

    So a method of high order is measured on coarse grids, and one of low order on fine ones.
    """
    measured = [(n, error(n)) for n in (8, 12, 16, 24, 32, 48, 64, 96, 128, 192)]
    clear = [(n, e) for n, e in measured if e > rounding][-4:]
    return asymptotic_slope([n for n, _ in clear], [e for _, e in clear])


def shows_order(observed: float, declared: int) -> bool:
    """Whether an observed order is the declared one, to 4 % below and less than one above: some methods of order p have a small
    constant, and show p + 1 until h is very small."""
    return 0.96 * declared - 0.1 < observed < declared + 0.9


@dataclass(frozen=True)
class GaussianTarget:
    """N(mean, std^2) in each coordinate, with elementwise arithmetic: a row's bits do not depend on its batch."""

    process: sd.Process
    mean: float = 0.5
    std: float = 0.3

    def score(self, x: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = self.process.alpha(t), self.process.sigma(t)
        rows = (-1, *(1,) * (x.dim() - 1))
        mean, variance = (alpha * self.mean).reshape(rows).to(x), (alpha.square() * self.std**2 + sigma.square()).reshape(rows).to(x)
        return (mean - x) / variance


PROCESSES = {"VP": sd.VPSDE(), "subVP": sd.SubVPSDE(), "VE": sd.VESDE(), "EDM": sd.EDM()}
