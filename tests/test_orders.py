"""Every registered method has the order, the calls and the limit that it declares.  A method is tested by being registered."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from problems import PROCESSES, GaussianTarget, nonlinear_ode, observed_order, shows_order, slope, walk
from torch import Tensor

import sdesolve as sd
from sdesolve.correctors import Langevin
from sdesolve.grids import make_grid
from sdesolve.methods import METHODS, make_method

FACTS = {row.name: row.facts for row in sd.methods()}
ODE_METHODS = [name for name, facts in FACTS.items() if facts.ode is not None]
SDE_METHODS = [name for name, facts in FACTS.items() if facts.strong]
DIRECTIONS = [(0.0, 1.0), (1.0, 0.0)]


def uniform(t0: float, t1: float, steps: int) -> list[float]:
    return [t0 + (t1 - t0) * i / steps for i in range(steps + 1)]


def mixture_score(p: sd.Process, x: Tensor, t: Tensor) -> Tensor:
    """Two Gaussians of std 0.3 at -0.8 and 0.8 in each coordinate: a nonlinear exact score."""
    alpha, sigma = (c.reshape(-1, 1).to(x) for c in (p.alpha(t), p.sigma(t)))
    variance = (0.3 * alpha).square() + sigma.square()
    return (0.8 * alpha * torch.tanh(0.8 * alpha * x / variance) - x) / variance


# -- ODE order ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("interval", [(0.0, 2.0), (2.0, 0.0)], ids=["forwards", "backwards"])
@pytest.mark.parametrize("method", [name for name in ODE_METHODS if not FACTS[name].needs])
def test_ode_order(method: str, interval: tuple[float, float]) -> None:
    problem, start, end = nonlinear_ode(interval)
    observed = observed_order(lambda n: float((sd.solve(problem, start, method, steps=n).x - end).abs().max()))
    assert shows_order(observed, FACTS[method].ode), observed


@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES.keys())
@pytest.mark.parametrize("method", ODE_METHODS)
def test_order_on_the_probability_flow(method: str, process: sd.Process) -> None:
    """The order holds, and the limit is the flow's: against dop853 at 1e-13, on a nonlinear score, in float64."""
    flow = process.probability_flow(lambda x, t: mixture_score(process, x, t))
    span = (float(process.log_snr_inverse(-2.0)), float(process.log_snr_inverse(2.0)))
    x = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None] * float(process.sigma(span[0]))
    exact = sd.solve(flow, x, "dop853", rtol=1e-13, atol=1e-13, interval=span).x
    scale = float(x.abs().max())

    def error(n: int) -> float:
        return float((sd.solve(flow, x, method, steps=n, grid="uniform", interval=span).x - exact).abs().max()) / scale

    if FACTS[method].ode <= 4:
        observed = observed_order(error)
        assert shows_order(observed, FACTS[method].ode), observed
    else:  # the error sinks into rounding before its slope settles: the limit alone
        assert error(192) < 1e-11 < error(8)


@pytest.mark.parametrize("interval", [(0.0, 2.0), (2.0, 0.0)], ids=["forwards", "backwards"])
@pytest.mark.parametrize("method", [name for name in ODE_METHODS if FACTS[name].dense])
def test_order_of_the_dense_output(method: str, interval: tuple[float, float]) -> None:
    """Three times within each step: the error there falls as h^(dense + 1), or as the method's own where that is larger."""
    problem, start, _ = nonlinear_ode(interval)

    def error(n: int) -> float:
        ts = torch.tensor(uniform(*interval, n), dtype=torch.float64)
        times = torch.cat([torch.lerp(ts[:-1], ts[1:], share) for share in (0.25, 0.5, 0.75)])
        solution = sd.solve(problem, start, method, steps=n, save=times)
        exact = torch.stack([nonlinear_ode((interval[0], t))[2] for t in solution.ts.tolist()])
        return float((solution.xs - exact).abs().max())

    observed = observed_order(error)
    assert shows_order(observed, min(FACTS[method].ode, FACTS[method].dense + 1)), observed


@pytest.mark.parametrize("method", [name for name in ODE_METHODS if make_method(name).error_order])
def test_order_of_the_error_estimate(method: str) -> None:
    """The estimate of a single step falls as h^q, which is what step control reckons with."""
    problem, start, _ = nonlinear_ode((0.0, 2.0))
    stepper = make_method(method)

    def estimate(n: int) -> float:
        return float(stepper.step(problem, start, 0.0, 2 / n, None, stepper.init(problem, start, 0.0)).error.abs().max())

    observed = observed_order(estimate, rounding=1e-15)
    assert shows_order(observed, stepper.error_order), observed


# -- strong order ------------------------------------------------------------------------------------------------------


def arctan_sde(kind: str, interval: tuple[float, float]) -> tuple[sd.SDE, Callable[[Tensor, Tensor], Tensor]]:
    """x = arctan(y) with dy = b(t) dt + A dW: nonlinear, non-autonomous, and solved by the Brownian motion's end alone.

    Ito's formula gives  dx = [b cos^2 x - |A_i|^2 sin x cos^3 x d|t|/dt] dt + cos^2 x A dW.
    """
    mixing = torch.tensor([[0.9, -0.4], [0.5, 0.8]], dtype=torch.float64)
    matrix = {"scalar": torch.ones(2, 1), "diagonal": torch.eye(2), "general": mixing}[kind].double()
    forwards = 1.0 if interval[1] > interval[0] else -1.0

    def drift(x: Tensor, t: Tensor) -> Tensor:
        return torch.cos(3 * t) * x.cos().square() - forwards * matrix.square().sum(1) * x.sin() * x.cos() ** 3

    def diffusion(x: Tensor, t: Tensor) -> Tensor:
        return x.cos().square()[..., None] * matrix if kind == "general" else x.cos().square()

    def exact(x0: Tensor, w: Tensor) -> Tensor:
        t0, t1 = interval
        return torch.atan(x0.tan() + (math.sin(3 * t1) - math.sin(3 * t0)) / 3 + w @ (torch.ones(1, 2, dtype=torch.float64) if kind == "scalar" else matrix.T))

    return sd.SDE(drift, diffusion, noise=kind, interval=interval), exact


def brownian(shape: tuple[int, ...], fine: int, length: float, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(fine, *shape, generator=generator, dtype=torch.float64) * math.sqrt(length / fine)


@pytest.mark.parametrize("interval", DIRECTIONS, ids=["forwards", "backwards"])
@pytest.mark.parametrize(("method", "kind"), [(m, k) for m in SDE_METHODS if not FACTS[m].needs for k in FACTS[m].strong if k != "additive"])
def test_strong_order(method: str, kind: str, interval: tuple[float, float]) -> None:
    """Against the exact solution of the same path: 4,000 paths, 5 step sizes."""
    problem, exact = arctan_sde(kind, interval)
    x = torch.tensor([0.3, -0.2], dtype=torch.float64).expand(4000, 2)
    dw = brownian((4000, *problem.brownian_event(x)), 256, 1.0, seed=1)
    counts = [16, 32, 64, 128, 256]
    errors = [float((walk(make_method(method), problem, x, uniform(*interval, n), dw) - exact(x, dw.sum(0))).square().mean().sqrt()) for n in counts]
    assert slope(counts, errors) == pytest.approx(FACTS[method].strong[kind], abs=0.1), errors


@pytest.mark.parametrize("interval", DIRECTIONS, ids=["forwards", "backwards"])
@pytest.mark.parametrize("method", [m for m in SDE_METHODS if not FACTS[m].needs and "additive" in FACTS[m].strong])
def test_strong_order_with_additive_noise(method: str, interval: tuple[float, float]) -> None:
    """Against a 16 times finer path of Euler-Maruyama: 4,000 paths, 5 step sizes."""
    problem = sd.SDE(lambda x, t: -torch.sin(2 * x) * (1 + 0.5 * torch.cos(3 * t)), lambda x, t: 0.5 * (1 + t), noise="additive", interval=interval)
    x = torch.full((4000, 1), 0.6, dtype=torch.float64)
    dw = brownian((4000, 1), 2048, 1.0, seed=1)
    fine = walk(make_method("euler_maruyama"), problem, x, uniform(*interval, 2048), dw)
    counts = [8, 16, 32, 64, 128]
    errors = [float((walk(make_method(method), problem, x, uniform(*interval, n), dw) - fine).square().mean().sqrt()) for n in counts]
    assert slope(counts, errors) == pytest.approx(FACTS[method].strong["additive"], abs=0.1), errors


@pytest.mark.parametrize("method", [name for name in SDE_METHODS])
def test_strong_order_on_the_reverse_sde(method: str) -> None:
    """The limit is the reverse SDE's own path: against Euler-Maruyama on a 16 times finer one."""
    process = sd.VPSDE()
    problem = process.reverse(lambda x, t: mixture_score(process, x, t))
    span = (0.9, 0.3)
    x = torch.randn(4000, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    dw = brownian((4000, 1), 2048, span[0] - span[1], seed=2)
    fine = walk(make_method("euler_maruyama"), problem, x, uniform(*span, 2048), dw)
    counts = [8, 16, 32, 64, 128]
    errors = [float((walk(make_method(method), problem, x, uniform(*span, n), dw) - fine).square().mean().sqrt()) for n in counts]
    assert slope(counts, errors) == pytest.approx(FACTS[method].strong["additive"], abs=0.1), errors


# -- weak order --------------------------------------------------------------------------------------------------------


def gaussian_outcome(method: str, process: sd.Process, steps: int, **options: object) -> tuple[float, float]:
    """Mean and standard deviation of a sampler's law on a Gaussian target, with no Monte-Carlo error.

    The score is linear, so each step is x -> gain x + offset + kicks z, and the law is carried along in closed form.  All
    steps are probed at once: a step takes a time per row.
    """
    problem = process.reverse(GaussianTarget(process).score)
    stepper = make_method(method, **options)
    ts = torch.tensor(make_grid(process.default_grid, process, *problem.interval, steps).ts, dtype=torch.float64)

    def stepped(x: float, slot: int | None) -> Tensor:
        start = torch.full((steps, 1), x, dtype=torch.float64)
        return stepper.step(problem, start, ts[:-1], ts[1:], _Impulse(slot, ts.diff().abs()), None).x[:, 0]

    offset = stepped(0.0, None)
    gain = stepped(1.0, None) - offset
    kick = sum((stepped(0.0, slot) - offset).square() for slot in range(3))
    mean, variance = 0.0, process.prior_std**2
    for a, b, c in zip(gain.tolist(), offset.tolist(), kick.tolist(), strict=True):
        mean, variance = a * mean + b, a * a * variance + c
    return mean, math.sqrt(variance)


class _Impulse:
    """Noise that is one in one slot and zero elsewhere."""

    def __init__(self, slot: int | None, dt: Tensor) -> None:
        self.slot, self.dt = slot, dt

    def normal(self, slot: int = 0) -> Tensor:
        return torch.full((len(self.dt), 1), float(slot == self.slot), dtype=torch.float64)

    def increment(self, t0: Tensor, t1: Tensor) -> Tensor:
        return self.dt.sqrt()[:, None] * self.normal()


@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES.keys())
@pytest.mark.parametrize("method", SDE_METHODS)
def test_weak_order_on_a_gaussian(method: str, process: sd.Process) -> None:
    """The limit is the target's own law at eps, and the standard deviation tends to it at the declared order."""
    end = process.eps
    std = math.sqrt((float(process.alpha(end)) * GaussianTarget.std) ** 2 + float(process.sigma(end)) ** 2)
    counts = [8000, 16000, 32000]
    errors = [abs(gaussian_outcome(method, process, n)[1] - std) for n in counts]
    assert slope(counts, errors) == pytest.approx(FACTS[method].weak["additive"], abs=0.2), errors
    assert gaussian_outcome(method, process, 32000)[0] == pytest.approx(float(process.alpha(end)) * GaussianTarget.mean, abs=1e-4)


@pytest.mark.parametrize("snr", [0.1, 0.3])
@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES.keys())
def test_langevin_inflates_the_variance_as_its_page_says(process: sd.Process, snr: float) -> None:
    """At fixed t, V' = V / (1 - e / 2V) with e = 2 (snr sigma_t)^2."""
    target = GaussianTarget(process)
    t = float(process.log_snr_inverse(0.0))
    v = float(process.alpha(t)) ** 2 * target.std**2 + float(process.sigma(t)) ** 2
    problem = process.reverse(target.score)
    x, z, zero = (torch.full((1, 1), value, dtype=torch.float64) for value in (1.0, 1.0, 0.0))
    step = Langevin(snr).correct
    offset = float(step(problem, zero, t, zero))
    gain, kick = float(step(problem, x, t, zero)) - offset, float(step(problem, zero, t, z)) - offset
    e = 2 * snr**2 * float(process.sigma(t)) ** 2
    assert kick**2 / (1 - gain**2) == pytest.approx(v / (1 - e / (2 * v)), rel=1e-9)


# -- calls -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_calls_a_step(method: str) -> None:
    """A module hook, sol.nfe and the declared calls agree."""

    class Network(torch.nn.Module):
        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return -x

    network, process = Network(), sd.VPSDE()
    seen: list[Tensor] = []
    network.register_forward_hook(lambda module, inputs, output: seen.append(inputs[1]))
    solution = sd.solve(process.reverse(network), torch.ones(2, 3), method, steps=7, seed=0, save="all")
    facts = FACTS[method]
    assert solution.nfe == len(seen) == facts.start + 7 * facts.evals
    assert solution.ts is not None and len(solution.ts) == 8
    if facts.evals == 1:
        expected = solution.ts[1:] if method == "annealed_langevin" else solution.ts[:-1]
        assert torch.equal(torch.stack(seen)[:, 0], expected.float())
