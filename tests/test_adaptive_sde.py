"""Adaptive SDE steps: the path that drives them is Brownian motion whatever is rejected, and no row minds its neighbours."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from problems import PROCESSES, GaussianTarget
from scipy import stats
from torch import Tensor

import sdesolve as sd
from sdesolve.brownian import Drawn
from sdesolve.methods import Adaptive, Facts, Step, Stepper, make_method

N = 10_000


class Eager(sd.Control):
    """Proposes steps that are half as long again, so that many are rejected."""

    def factor(self, err: Tensor, previous: Tensor) -> Tensor:
        return 1.5 * super().factor(err, previous)


@dataclass(frozen=True)
class Hostile(Stepper):
    """Follows the noise alone, and rejects a step for what its increment is: the worst that a controller can do."""

    facts: ClassVar[Facts] = Facts(evals=1, strong={"additive": 1.0})
    error_order: ClassVar[float] = 1.0
    control: ClassVar[type[sd.Control]] = Eager

    def step(self, problem: Any, x: Tensor, t0: Tensor, t1: Tensor, noise: Any, carry: Any) -> Step:
        w = noise.increment(t0, t1)
        large = w.reshape(len(w), -1)[:, :1].clamp(min=0)  # of the first coordinate, and only upwards
        return Step(x + w, error=large.reshape(-1, *(1,) * (x.dim() - 1)).expand_as(x))


class Forgetful(Hostile):
    redraws: ClassVar[bool] = True


def brownian(rows: int, dimension: int, interval: tuple[float, float], stepper: Stepper, **keywords: Any) -> sd.Solution:
    sde = sd.SDE(lambda x, t: 0 * x, lambda x, t: torch.ones_like(x), noise="additive", interval=interval)
    return sd.solve(sde, torch.zeros(rows, dimension), stepper, atol=0.1, rtol=0.0, seed=2, **keywords)


def rejected_share(sol: sd.Solution) -> float:
    tried = sol.stats["accepted"] + sol.stats["rejected"]
    return float(sol.stats["rejected"].sum() / tried.sum())


@pytest.mark.parametrize("interval", [(0.0, 1.0), (1.0, 0.0)], ids=["forwards", "backwards"])
@pytest.mark.parametrize("dimension", [1, 2, 16, 256])
def test_rejections_leave_the_path_alone(dimension: int, interval: tuple[float, float]) -> None:
    """W(T), and W at a saved time and its covariance with it, under more than 30 % of forced rejections."""
    rows = N if dimension < 16 else 2000
    middle = 0.3 if interval[0] == 0 else 0.7
    sol = brownian(rows, dimension, interval, Hostile(), save=[middle, interval[1]])
    assert sol.ok().all() and rejected_share(sol) > 0.3
    early, w = sol.xs[0, :, 0].double(), sol.x[:, 0].double()
    assert float(w.mean()) == pytest.approx(0, abs=3 / math.sqrt(rows))
    assert float(w.var()) == pytest.approx(1, abs=3 * math.sqrt(2 / rows))
    assert stats.kstest(w.numpy(), "norm").pvalue > 1e-3
    assert float((early * w).mean()) == pytest.approx(0.3, abs=3 * math.sqrt((0.3**2 + 0.3) / rows))
    assert float(early.var()) == pytest.approx(0.3, abs=3 * 0.3 * math.sqrt(2 / rows))
    if dimension > 1:
        other = sol.x[:, 1].double()
        assert float((other * w).mean()) == pytest.approx(0, abs=3 / math.sqrt(rows))


class HostileArea(Hostile):
    """The same with the time integral of the path in the second coordinate, which the areas of the steps make up, and which it minds."""

    def step(self, problem: Any, x: Tensor, t0: Tensor, t1: Tensor, noise: Any, carry: Any) -> Step:
        w, h = (part[:, 0] for part in noise.levy(t0, t1))
        start, integral = x.unbind(1)
        after = torch.stack([start + w, integral + (t1 - t0).abs().to(x) * (start + 0.5 * w + h)], 1)
        return Step(after, error=(w + 2 * h).clamp(min=0)[:, None].expand_as(x))


@pytest.mark.parametrize("interval", [(0.0, 1.0), (1.0, 0.0)], ids=["forwards", "backwards"])
def test_rejections_leave_the_area_alone(interval: tuple[float, float]) -> None:
    """E int W = 0, Var int W = 1/3 and Cov(W, int W) = 1/2 over the unit interval, under more than 30 % of forced rejections."""
    sol = brownian(N, 2, interval, HostileArea())
    assert sol.ok().all() and rejected_share(sol) > 0.3
    w, integral = sol.x.double().unbind(1)
    assert float(integral.mean()) == pytest.approx(0, abs=3 * math.sqrt(1 / 3 / N))
    assert float(integral.square().mean()) == pytest.approx(1 / 3, abs=3 * (1 / 3) * math.sqrt(2 / N))
    assert float((w * integral).mean()) == pytest.approx(0.5, abs=3 * math.sqrt((0.25 + 1 / 3) / N))


def test_the_test_sees_redrawn_noise() -> None:
    """What the published rule does with the same controller is far from Brownian motion."""
    w = brownian(N, 1, (0.0, 1.0), Forgetful()).x.double()
    assert float(w.mean()) < -0.5


@pytest.mark.parametrize("name", ["VP", "subVP", "VE"])
@pytest.mark.parametrize("event", [(1,), (2,)], ids=["1-d", "2-d"])
def test_gaussian_target(name: str, event: tuple[int, ...]) -> None:
    """Mean and standard deviation of the reverse SDE's samples, within 3 standard errors at a tight tolerance."""
    process = PROCESSES[name]
    target = GaussianTarget(process, 0.5, 0.3)
    rows = 5_000
    x = process.prior((rows, *event), seed=0)
    start, end = process.T, process.eps
    spread = math.hypot(float(process.alpha(start)) * 0.3, float(process.sigma(start)))
    x = float(process.alpha(start)) * 0.5 + spread / process.prior_std * x  # from the exact law at T
    sol = sd.solve(process.reverse(target.score), x, "adaptive", rtol=3e-3, atol=3e-3, seed=1)
    assert sol.ok().all()
    std = math.hypot(float(process.alpha(end)) * 0.3, float(process.sigma(end)))
    drawn = sol.x.reshape(-1).double()
    assert float(drawn.mean()) == pytest.approx(float(process.alpha(end)) * 0.5, abs=3 * std / math.sqrt(len(drawn)))
    assert float(drawn.std()) == pytest.approx(std, abs=3 * std / math.sqrt(2 * len(drawn)))


def test_the_published_rule_is_biased_as_its_page_says() -> None:
    """Standard deviations instead of 0.300, within 3 standard errors, and the tighter tolerance is the worse."""
    process = sd.VPSDE()
    problem = process.reverse(GaussianTarget(process, 0.0, 0.3).score)
    for tolerance, biased in ((0.1, 0.360), (0.01, 0.374)):
        sol = sd.solve(problem, process.prior((N, 1), seed=0), "ggf", rtol=tolerance, atol=tolerance, seed=1)
        assert float(sol.x.std()) == pytest.approx(biased, abs=3 * biased / math.sqrt(2 * N))


def test_the_published_step() -> None:
    """Algorithm 1 of Jolicoeur-Martineau et al. 2021, in its letters, from t down to t - h."""
    process, generator = sd.VPSDE(), torch.Generator().manual_seed(0)
    problem = process.reverse(GaussianTarget(process).score)
    x, x_prev, z = torch.randn(3, 5, 2, generator=generator, dtype=torch.float64)
    t, h = 0.6, 0.05

    def change(y: Tensor, t: float) -> Tensor:
        return -h * problem.drift(y, t) + math.sqrt(h) * process.diffusion_(t) * z

    x1 = x + change(x, t)
    tilde = x + change(x1, t - h)
    x2 = 0.5 * (x1 + tilde)
    ggf = make_method("ggf")
    step = ggf.step(problem, x, t, t - h, Drawn(math.sqrt(h) * z, 0 * z), x_prev)
    assert torch.equal(ggf.init(problem, x, t), x)
    for got, expected in ((step.x, x2), (step.error, x2 - x1), (step.carry, x1), (step.scale, torch.maximum(x_prev.abs(), x1.abs()))):
        assert torch.allclose(got, expected, rtol=1e-12, atol=1e-14)


def test_the_published_controller() -> None:
    """E = sqrt(mean((error / max(atol, rtol scale))^2)),  h <- 0.9 h E^-0.9 whether accepted or not, and whatever was before."""
    control = make_method("ggf").control(rtol=0.1, atol=0.02, q=1.5)
    scale, error = torch.tensor([[0.0, 0.1, 0.5, 4.0]], dtype=torch.float64), torch.tensor([[0.01, -0.02, 0.1, 0.8]], dtype=torch.float64)
    assert control.size(error, scale).tolist() == pytest.approx([math.sqrt((0.5**2 + 1 + 2**2 + 2**2) / 4)])
    sizes = torch.tensor([0.5, 1.0, 3.0, 0.01], dtype=torch.float64)
    for previous in (0.1, 1.0, 5.0):
        assert control.factor(sizes, torch.full_like(sizes, previous)).tolist() == pytest.approx([0.9 * e**-0.9 for e in (0.5, 1.0, 3.0, 0.01)])


@pytest.mark.parametrize("noise", ["additive", "diagonal", "scalar", "general"])
@pytest.mark.parametrize("interval", [(0.0, 1.0), (1.0, 0.0)], ids=["forwards", "backwards"])
def test_plain_sdes_of_every_kind(noise: str, interval: tuple[float, float]) -> None:
    """A linear SDE whose mean and variance are known: Stratonovich where the noise depends on the state."""
    forwards = 1.0 if interval[1] > interval[0] else -1.0
    matrix = torch.tensor([[0.4, 0.0, 0.3], [0.0, 0.5, 0.0]])

    def diffusion(x: Tensor, t: Tensor) -> Tensor:
        if noise == "additive":
            return 0.5 * torch.ones_like(x)
        return x[..., None] * matrix if noise == "general" else 0.5 * x

    sde = sd.SDE(lambda x, t: -forwards * x, diffusion, noise=noise, calculus="stratonovich", interval=interval)
    rows = 4000
    sol = sd.solve(sde, torch.ones(rows, 2), "adaptive", rtol=5e-3, atol=5e-3, seed=0)
    x = sol.x.double()
    if noise == "additive":
        mean, variance = math.exp(-1), 0.25 * (1 - math.exp(-2)) / 2
    else:  # x = exp(-1 + sigma W)
        mean, variance = math.exp(-1 + 0.125), math.exp(-2 + 0.25) * (math.exp(0.25) - 1)
    assert x.mean(0).tolist() == pytest.approx([mean] * 2, abs=3.2 * math.sqrt(variance / rows))
    assert x.var(0).tolist() == pytest.approx([variance] * 2, rel=0.12)
    assert float(torch.corrcoef(x.T)[0, 1]) == pytest.approx(0.99 if noise == "scalar" else 0.0, abs=0.05)


def test_stiff_and_broken_neighbours_change_nothing() -> None:
    """Sample 0 alone, with 4,095 easy neighbours, with a stiff one, and with one that is NaN."""
    sde = sd.SDE(lambda x, t: -x[:, 1:] * torch.cat([x[:, :1], 0 * x[:, 1:]], 1), lambda x, t: torch.tensor([0.5, 0.0]), noise="additive")
    first = torch.tensor([[1.0, 1.0]])

    def solved(*others: Tensor) -> sd.Solution:
        return sd.solve(sde, torch.cat([first, *others]), "adaptive", rtol=1e-2, atol=1e-2, seed=0)

    alone = solved()
    easy, stiff, broken = first.expand(4095, 2), torch.tensor([[1.0, 2000.0]]), torch.tensor([[math.nan, 1.0]])
    for others in (easy, stiff):
        with_others = solved(others)
        assert torch.equal(with_others.x[0], alone.x[0]) and with_others.nfe[0] == alone.nfe[0]
    assert int(solved(stiff).nfe[1]) > 20 * int(alone.nfe[0])
    with pytest.warns(sd.SolveWarning, match="sample 1: non_finite"):
        assert torch.equal(solved(broken).x[0], alone.x[0])


def test_a_step_lands_on_every_revealed_time() -> None:
    """No step is tried beyond a time at which the path has been seen, and those towards it are equal: none is a sliver."""
    tried: list[tuple[float, float]] = []

    class Spy(Adaptive):
        def step(self, problem: Any, x: Tensor, t0: Tensor, t1: Tensor, noise: Any, carry: Any) -> Step:
            tried.append((float(t0), float(t1)))
            return super().step(problem, x, t0, t1, noise, carry)

    process = sd.VPSDE()
    sol = sd.solve(process.reverse(GaussianTarget(process).score), torch.ones(1, 1), Spy(), rtol=1e-3, atol=1e-3, seed=4)
    assert int(sol.stats["rejected"]) > 50
    revealed: set[float] = set()
    shares = []
    for t0, t1 in tried:
        if ahead := [r for r in revealed if r < t0]:
            shares.append((t0 - max(ahead)) / (t0 - t1))
        revealed.add(t1)
    assert max(shares) > 1.5
    assert shares == pytest.approx([max(1, round(share)) for share in shares], rel=1e-9)


def test_images_and_half_precision() -> None:
    """The shape and dtype of the state are kept, and images cost fewer calls the looser the tolerance."""
    process = sd.VPSDE()
    problem = process.reverse(GaussianTarget(process).score)
    calls = []
    for tolerance in (0.1, 0.02):
        sol = sd.solve(problem, process.prior((2, 3, 8, 8), seed=0), "adaptive", rtol=tolerance, atol=tolerance, seed=0, denoise=True)
        assert sol.x.shape == (2, 3, 8, 8) and sol.ok().all()
        calls.append(float(sol.nfe.double().mean()))
    assert calls[0] < calls[1] < 500
    half = sd.solve(problem, process.prior((2, 4), seed=0, dtype=torch.float16), "adaptive", seed=0)
    assert half.x.dtype == torch.float16 and half.ok().all()
