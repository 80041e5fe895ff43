"""Problems with known answers, and one for every registered method."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import sdesolve as sd
from sdesolve import exam
from sdesolve.methods import make_method


def nonlinear_ode(interval: tuple[float, float]) -> tuple[sd.ODE, Tensor, Tensor]:
    """The logistic equation with a beat,  x' = x (1 - x) (1 + 2 cos 3t):  nonlinear and non-autonomous, and

    logit x(t) = logit x(0) + t + 2/3 sin 3t.  Returns the problem, start and exact end.
    """
    t0, t1 = interval
    logit = torch.tensor([[-1.0, 0.5], [2.0, -2.0]], dtype=torch.float64)
    start, end = (torch.sigmoid(logit + t + 2 / 3 * math.sin(3 * t)) for t in (t0, t1))
    return sd.ODE(lambda x, t: x * (1 - x) * (1 + 2 * torch.cos(3 * sd.expand_time(t, x))), interval=interval), start, end


def twist_ode(interval: tuple[float, float]) -> tuple[sd.ODE, Callable[[float], Tensor]]:
    """Circles on which the outer points overtake the inner, under a beat:  x' = (1 + cos(3t)/2) (1 + 0.3 |x|^2) (-x_2, x_1).

    Nonlinear, non-autonomous and coupled, and nothing decays: the errors of all steps add up, the same forwards and backwards, where an
    equation that contracts would show those of its last steps, which cancel for some starts and ends.  Returns the problem and the exact
    states of 16 starts, (16, 2), at a time.
    """
    radius = torch.linspace(0.5, 1.5, 16, dtype=torch.float64)

    def exact(t: float) -> Tensor:
        angle = (1 + 0.3 * radius.square()) * (t + math.sin(3 * t) / 6)
        return torch.stack([radius * angle.cos(), radius * angle.sin()], 1)

    def drift(x: Tensor, t: Tensor) -> Tensor:
        speed = (1 + 0.5 * torch.cos(3 * sd.expand_time(t, x))) * (1 + 0.3 * x.square().sum(1, keepdim=True))
        return speed * torch.stack([-x[:, 1], x[:, 0]], 1)

    return sd.ODE(drift, interval=interval), exact


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

    def law(self, t: float) -> tuple[float, float]:
        """Mean and standard deviation at time t."""
        alpha = float(self.process.alpha(t))
        return alpha * self.mean, math.hypot(alpha * self.std, float(self.process.sigma(t)))


PROCESSES: dict[str, sd.Process] = {
    "VP": sd.VPSDE(),
    "subVP": sd.SubVPSDE(),
    "VE": sd.VESDE(),
    "EDM": sd.EDM(),
    "cosine": sd.Cosine(),
    "flow": sd.RectifiedFlow(),
}


def solvable(method: str, network: Callable[[Tensor, Tensor], Tensor], process: sd.Process = PROCESSES["VP"]) -> Any:
    """A problem from t = 1 down that the method solves, with ``network``, (x, t) -> like x, for its score, drift or force."""
    facts = make_method(method).facts
    if "langevin" in facts.needs:
        return sd.UnderdampedLangevin(network, interval=(1.0, 1e-3))
    if facts.ode is None and "additive" not in facts.kinds:
        return sd.SDE(network, lambda x, t: 0.5 + 0.1 * torch.sin(x), interval=(1.0, 1e-3))
    return process.reverse(network) if facts.kinds else process.probability_flow(network)


def mixture_score(target: exam.Mixture, process: sd.Process) -> Callable[[Tensor, Tensor], Tensor]:
    """``target.score``, which computes in float64 and component by component, in x's dtype and six to ten times as fast."""
    isotropic = all(c._basis is None and len(set(c._lam.tolist())) == 1 for c in target.components)
    return _isotropic_score(target, process) if isotropic else _slanted_score(target, process)


def _isotropic_score(target: exam.Mixture, process: sd.Process) -> Callable[[Tensor, Tensor], Tensor]:
    """By two small matrix products."""
    m = torch.stack([c.mean for c in target.components])
    lam = torch.stack([c.variance[:1] for c in target.components])

    def score(x: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = process.alpha(t), process.sigma(t)
        variance, alpha, means = (alpha.square() * lam + sigma.square()).to(x), alpha.to(x), m.to(x)  # (K, B), (B,), (K, d)
        square = x.square().sum(1) - 2 * alpha * (means @ x.T) + alpha.square() * means.square().sum(1, keepdim=True)
        logits = target.weights.log().to(x)[:, None] - 0.5 * (square / variance + x.shape[1] * variance.log())
        share = torch.softmax(logits, 0) / variance
        return (alpha * share).T @ means - share.sum(0)[:, None] * x

    return score


def _slanted_score(target: exam.Mixture, process: sd.Process) -> Callable[[Tensor, Tensor], Tensor]:
    """Along the axes of each component, rows last: (K, d, B)."""
    d = target.event[0]
    axes = torch.stack([torch.eye(d, dtype=torch.float64) if c._basis is None else c._basis for c in target.components])
    lam = torch.stack([c._lam for c in target.components])[..., None]
    m = torch.stack([c.mean for c in target.components])[:, None] @ axes  # (K, 1, d)

    def score(x: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = process.alpha(t), process.sigma(t)
        variance, u = (alpha.square() * lam + sigma.square()).to(x), axes.to(x)
        away = u.mT @ x.T - m.mT.to(x) * alpha.to(x)
        slope = away / variance
        logits = target.weights.log().to(x)[:, None] - 0.5 * (away * slope + variance.log()).sum(1)
        return -(u @ (slope * torch.softmax(logits, 0)[:, None])).sum(0).T.contiguous()

    return score
