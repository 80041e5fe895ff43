"""Other packages' solvers behind ``solve``: their order, the package's own numbers, calls, statuses, and what is refused."""

from __future__ import annotations

import importlib
import itertools
import math
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from convergence import asymptotic_slope, slope
from problems import PROCESSES, GaussianTarget, nonlinear_ode
from torch import Tensor

import sdesolve as sd
from sdesolve._backends import make_backend
from sdesolve._backends.torchsde import _Path
from sdesolve.noise import SeededNormals, SeededStep

FACTS = {row.name: row.facts for row in sd.backends()}
SDES = [name for name, facts in FACTS.items() if facts.kinds]
ADAPTIVE = [name for name in FACTS if name not in SDES and make_backend(name, {}, None, False).error_order]
ON_A_GRID = [name for name in FACTS if name not in SDES and name not in ADAPTIVE]
EXPLICIT = [name for name in ADAPTIVE if name not in ("scipy:Radau", "scipy:BDF", "scipy:LSODA")]
ADAMS = {"torchdiffeq:explicit_adams": {"max_order": 5}, "torchdiffeq:implicit_adams": {"max_order": 4}}  # where they have their declared order
WAYS = pytest.mark.parametrize("interval", [(0.0, 2.0), (2.0, 0.0)], ids=["forwards", "backwards"])
VP = sd.VPSDE()
TARGET = GaussianTarget(VP)
QUIET = pytest.mark.filterwarnings("ignore::sdesolve.SolveWarning")


# -- ODEs --------------------------------------------------------------------------------------------------------------


@WAYS
@pytest.mark.parametrize("method", ON_A_GRID)
def test_ode_order(method: str, interval: tuple[float, float]) -> None:
    problem, start, end = nonlinear_ode(interval)
    counts = [64, 96, 128, 192]
    errors = [float((sd.solve(problem, start, method, steps=n, **ADAMS.get(method, {})).x - end).abs().max()) for n in counts]
    assert asymptotic_slope(counts, errors) == pytest.approx(FACTS[method].ode, abs=0.15), errors


@WAYS
@pytest.mark.parametrize("method", ADAPTIVE)
def test_error_follows_tolerance(method: str, interval: tuple[float, float]) -> None:
    problem, start, end = nonlinear_ode(interval)
    loose, tight = (sd.solve(problem, start, method, rtol=tol, atol=tol) for tol in (1e-4, 1e-6))
    errors = [float((solution.x - end).abs().max()) for solution in (loose, tight)]
    assert errors[0] < 5e-2 and errors[1] < 0.1 * errors[0]
    assert int(torch.as_tensor(loose.nfe).max()) < int(torch.as_tensor(tight.nfe).min())


@WAYS
@pytest.mark.parametrize("method", ADAPTIVE)
def test_saved_times(method: str, interval: tuple[float, float]) -> None:
    problem, start, _ = nonlinear_ode(interval)
    times = [0.3, 1.1, 1.9, *interval]
    solution = sd.solve(problem, start, method, rtol=1e-6, atol=1e-6, save=times)
    assert solution.ts.tolist() == sorted(times, reverse=interval[1] < interval[0])
    for t, x in zip(solution.ts.tolist(), solution.xs, strict=True):
        exact = nonlinear_ode((interval[0], t))[2] if t != interval[0] else start
        assert torch.allclose(x, exact, atol=1e-3)
    assert torch.equal(solution.xs[0], start) and torch.equal(solution.xs[-1], solution.x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("event", [(), (3,), (2, 3, 2)])
@pytest.mark.parametrize("method", ["torchdiffeq:rk4", "torchdiffeq:dopri5", "scipy:RK45", "scipy:LSODA", "scipy:Radau"])
def test_any_event_and_dtype(method: str, event: tuple[int, ...], dtype: torch.dtype) -> None:
    """The flow of a Gaussian target is affine, so the end is known."""
    x = VP.prior((4, *event), seed=0, dtype=dtype)
    how: dict[str, Any] = {"steps": 200} if method in ON_A_GRID else {"rtol": 1e-5, "atol": 1e-5}
    solution = sd.solve(VP.reverse(TARGET.score), x, method, **how)
    at = [(float(VP.alpha(t)) * TARGET.mean, math.hypot(float(VP.alpha(t)) * TARGET.std, float(VP.sigma(t)))) for t in (VP.T, VP.eps)]
    assert solution.x.dtype == dtype and solution.x.shape == x.shape
    assert torch.allclose(solution.x, at[1][0] + at[1][1] * (x - at[0][0]) / at[0][1], atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES.keys())
@pytest.mark.parametrize("method", ["torchdiffeq:rk4", "torchdiffeq:dopri5", "scipy:RK45", "scipy:BDF", "torchsde:euler"])
def test_no_call_leaves_the_interval(method: str, process: sd.Process, dtype: torch.dtype) -> None:
    """A score is not defined beyond eps, and a solver that steps past the end and interpolates would ask it there."""
    times: list[float] = []

    def told(t: Tensor) -> Tensor:
        times.extend(t.tolist())
        return t

    score = sd.as_score(lambda x, t: GaussianTarget(process).score(x, t.clamp(process.eps, process.T)), process, predicts="score", time=told)
    how: dict[str, Any] = {"rtol": 1e-3, "atol": 1e-3} if method in ADAPTIVE else {"steps": 20}
    for end in (process.eps, 0.02 * process.T):
        times.clear()
        sd.solve(process.reverse(score), process.prior((2, 3), seed=0, dtype=dtype), method, interval=(process.T, end), **how)
        assert end <= min(times) and max(times) <= process.T


# -- the package's own numbers -----------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:Functional iteration did not converge")
def test_torchdiffeq_gives_what_odeint_gives() -> None:
    from torchdiffeq import odeint

    problem, start, _ = nonlinear_ode((2.0, 0.0))
    ts = torch.linspace(2.0, 0.0, 21, dtype=torch.float64)
    for name in ("euler", "midpoint", "heun3", "rk4", "implicit_adams"):
        theirs = odeint(lambda t, x: problem.drift(x, t), start, ts, method=name)
        assert torch.equal(sd.solve(problem, start, f"torchdiffeq:{name}", grid=ts, save="all").xs, theirs)
    for name in ("bosh3", "dopri5"):
        theirs = odeint(lambda t, x: problem.drift(x, t), start, ts[[0, -1]], method=name, rtol=1e-4, atol=1e-6, options={"step_t": ts[-1:]})
        assert torch.equal(sd.solve(problem, start, f"torchdiffeq:{name}", rtol=1e-4, atol=1e-6).x, theirs[-1])


def test_scipy_gives_what_solve_ivp_gives_row_by_row() -> None:
    from scipy.integrate import solve_ivp

    problem, start, _ = nonlinear_ode((2.0, 0.0))
    for name in ("RK23", "RK45", "DOP853", "Radau", "BDF", "LSODA"):
        ours = sd.solve(problem, start, f"scipy:{name}", rtol=1e-4, atol=1e-6)
        for i, row in enumerate(start):
            theirs = solve_ivp(lambda t, y: problem.drift(torch.from_numpy(y)[None], float(t))[0].numpy(), (2.0, 0.0), row.numpy(), name, rtol=1e-4, atol=1e-6)
            assert ours.x[i].tolist() == theirs.y[:, -1].tolist()
            assert int(ours.stats["accepted"][i]) == len(theirs.t) - 1
            assert int(ours.nfe[i]) >= theirs.nfev  # scipy does not count the calls of a Jacobian by differences
            assert int(ours.nfe[i]) == theirs.nfev or f"scipy:{name}" not in EXPLICIT


class Replay:
    """Our noise as a Brownian motion of torchsde's, for uniform steps."""

    def __init__(self, seed: int, rows: int, size: int, start: float, length: float, area: str) -> None:
        self.noise = SeededNormals(seed, range(rows), (size,), dtype=torch.float64, device="cpu")
        self.start, self.length, self.shape, self.levy_area_approximation = start, length, (rows, size), area

    def __call__(self, s0: Tensor, s1: Tensor, return_U: bool = False, return_A: bool = False) -> Any:
        node = round((float(s0) - self.start) / self.length)
        w, h = SeededStep(self.noise, node).levy(float(s0), float(s1))
        return (w, self.length * (0.5 * w + h)) if return_U else w


@pytest.mark.parametrize(("name", "calculus"), [("euler", "ito"), ("milstein", "ito"), ("srk", "ito"), ("heun", "stratonovich"), ("reversible_heun", "stratonovich")])
def test_torchsde_gives_what_sdeint_gives(name: str, calculus: str) -> None:
    """On an equation written twice, once for each package; backwards for us, in s = 1 - t for torchsde."""
    import torchsde

    class Written(torch.nn.Module):
        noise_type, sde_type = "diagonal", calculus

        def f(self, s: Tensor, y: Tensor) -> Tensor:
            return -torch.sin(2 * y) * (1 - s)

        def g(self, s: Tensor, y: Tensor) -> Tensor:
            return 0.5 + 0.2 * (1 - s) * torch.cos(y)

    problem = sd.SDE(lambda x, t: torch.sin(2 * x) * t, lambda x, t: 0.5 + 0.2 * t * torch.cos(x), calculus=calculus, interval=(1.0, 0.0))
    x = torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(2, 3, 2)
    ours = sd.solve(problem, x, f"torchsde:{name}", steps=16, seed=5)
    path = Replay(5, 2, 6, 0.0, 1 / 16, "space-time")
    theirs = torchsde.sdeint(Written(), x.flatten(1), torch.tensor([0.0, 1.0], dtype=torch.float64), bm=path, method=name, dt=1 / 16)[-1]
    assert torch.allclose(ours.x.flatten(1), theirs, rtol=0, atol=1e-13)


# -- SDEs --------------------------------------------------------------------------------------------------------------


def arctan_sde(kind: str, calculus: str, interval: tuple[float, float]) -> tuple[sd.SDE, Callable[[Tensor, Tensor], Tensor]]:
    """x = arctan(y) with dy = cos(3t) dt + A dW, in either reading; the end depends on the Brownian motion's end alone."""
    mixing = torch.tensor([[0.9, -0.4], [0.5, 0.8]], dtype=torch.float64)
    matrix = {"scalar": torch.ones(2, 1), "diagonal": torch.eye(2), "general": mixing}[kind].double()
    correction = (1.0 if interval[1] > interval[0] else -1.0) * matrix.square().sum(1) * (calculus == "ito")

    def drift(x: Tensor, t: Tensor) -> Tensor:
        return torch.cos(3 * t) * x.cos().square() - correction * x.sin() * x.cos() ** 3

    def diffusion(x: Tensor, t: Tensor) -> Tensor:
        return x.cos().square()[..., None] * matrix if kind == "general" else x.cos().square()

    def exact(x0: Tensor, w: Tensor) -> Tensor:
        t0, t1 = interval
        return torch.atan(x0.tan() + (math.sin(3 * t1) - math.sin(3 * t0)) / 3 + (w.expand_as(x0) if kind == "scalar" else w @ matrix.T))

    return sd.SDE(drift, diffusion, noise=kind, calculus=calculus, interval=interval), exact


class Path:
    """Brownian increments with their space-time areas on a fine grid, summed exactly to coarser ones."""

    def __init__(self, shape: tuple[int, ...], fine: int, length: float, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.w, h, self.others = (torch.randn(fine, *shape, generator=generator, dtype=torch.float64) for _ in range(3))
        self.delta = length / fine
        self.w *= math.sqrt(self.delta)
        self.u = self.delta * (0.5 * self.w + math.sqrt(self.delta / 12) * h)  # the integral of W over each fine step

    def end(self) -> Tensor:
        return self.w.sum(0)

    def steps(self, count: int) -> list[Given]:
        parts = len(self.w) // count
        w, u = (value.reshape(count, parts, *value.shape[1:]) for value in (self.w, self.u))
        before = w.cumsum(1) - w
        area = (u + self.delta * before).sum(1)
        return [Given(w[i].sum(0), area[i], parts * self.delta, self.others[i]) for i in range(count)]


class Given:
    """The noise of one step of length h: W, and H = U/h - W/2."""

    def __init__(self, w: Tensor, u: Tensor, h: float, other: Tensor) -> None:
        self.w, self.h, self.other = w, u / h - 0.5 * w, other

    def increment(self, t0: float, t1: float) -> Tensor:
        return self.w

    def levy(self, t0: float, t1: float) -> tuple[Tensor, Tensor]:
        return self.w, self.h

    def normal(self, slot: int) -> Tensor:
        return self.other


@torch.no_grad()
def walked(path: Path, problem: sd.SDE, method: str, x: Tensor, n: int) -> Tensor:
    """The end of n steps along a path."""
    stepper, (t0, t1), carry = make_backend(method, {}, problem.noise, False), problem.interval, None
    for i, noise in enumerate(path.steps(n)):
        x, _, carry, *_ = stepper.step(problem, x, t0 + (t1 - t0) * i / n, t0 + (t1 - t0) * (i + 1) / n, noise, carry)
    return x


def distance(x: Tensor, y: Tensor) -> float:
    return float((x - y).square().mean().sqrt())


READINGS = [(method, kind, calculus) for method in SDES for kind in FACTS[method].strong if kind != "additive" for calculus in sorted(FACTS[method].calculus)]


@pytest.mark.parametrize("interval", [(0.0, 1.0), (1.0, 0.0)], ids=["forwards", "backwards"])
@pytest.mark.parametrize(("method", "kind", "calculus"), READINGS)
def test_strong_order(method: str, kind: str, calculus: str, interval: tuple[float, float]) -> None:
    """Against the exact solution of the same path: at least what is declared, which for general noise is meant for motions that do not commute."""
    problem, exact = arctan_sde(kind, calculus, interval)
    x = torch.tensor([0.3, -0.2], dtype=torch.float64).expand(500, 2)
    path = Path((500, *problem.brownian_event(x)), 128, 1.0, seed=1)
    counts = [8, 16, 32] if method == "torchsde:log_ode" else [8, 16, 32, 64, 128]
    errors = [distance(walked(path, problem, method, x, n), exact(x, path.end())) for n in counts]
    assert slope(counts, errors) > FACTS[method].strong[kind] - 0.1, errors


@pytest.mark.parametrize("interval", [(0.0, 1.0), (1.0, 0.0)], ids=["forwards", "backwards"])
@pytest.mark.parametrize("method", SDES)
def test_strong_order_with_additive_noise(method: str, interval: tuple[float, float]) -> None:
    """Against a fine path of srk; that euler tends to the same limit shows that it is the right one."""
    problem = sd.SDE(lambda x, t: -torch.sin(2 * x) * (1 + 0.5 * torch.cos(3 * t)), lambda x, t: 0.5 * (1 + t), noise="additive", interval=interval)
    x = torch.full((500, 1), 0.6, dtype=torch.float64)
    path = Path((500, 1), 256, 1.0, seed=1)
    fine = walked(path, problem, "torchsde:srk", x, 256)
    counts = [8, 16, 32, 64]
    errors = [distance(walked(path, problem, method, x, n), fine) for n in counts]
    assert slope(counts, errors) == pytest.approx(FACTS[method].strong["additive"], abs=0.3), errors


OURS = {  # methods that are in both packages
    "torchsde:euler": ("euler_maruyama", ("additive", "scalar", "diagonal", "general")),
    "torchsde:milstein": ("milstein", ("additive", "scalar", "diagonal")),
    "torchsde:euler_heun": ("euler_heun", ("additive", "scalar", "diagonal", "general")),
    "torchsde:heun": ("heun_sde", ("additive", "scalar", "diagonal", "general")),
    "torchsde:reversible_heun": ("reversible_heun", ("additive", "scalar", "diagonal", "general")),
    "torchsde:srk": ("sra1", ("additive",)),
}


@pytest.mark.parametrize("interval", [(0.0, 1.0), (1.0, 0.0)], ids=["forwards", "backwards"])
@pytest.mark.parametrize("calculus", ["ito", "stratonovich"])
@pytest.mark.parametrize(("method", "kind"), [(method, kind) for method, (_, kinds) in OURS.items() for kind in kinds])
def test_what_both_packages_have_agrees(method: str, kind: str, calculus: str, interval: tuple[float, float]) -> None:
    """The same path gives the same numbers, in either reading and direction, on states that are no vectors."""

    def diffusion(x: Tensor, t: Tensor) -> Tensor:
        if kind == "additive":
            return 0.3 * (1 + t)
        return torch.stack([0.3 * torch.cos(x), 0.1 * t * x], -1) if kind == "general" else 0.3 * (1 + t) * torch.cos(x)

    problem = sd.SDE(lambda x, t: -x * torch.cos(3 * t), diffusion, noise=kind, calculus=calculus, interval=interval)
    x = torch.linspace(-1, 1, 24, dtype=torch.float64).reshape(2, 3, 2, 2)
    theirs, ours = (sd.solve(problem, x, name, steps=12, seed=3, save="all") for name in (method, OURS[method][0]))
    assert torch.allclose(theirs.xs, ours.xs, rtol=0, atol=1e-13)


@pytest.mark.parametrize("method", OURS)
def test_underdamped_langevin(method: str) -> None:
    """Noise on half of the coordinates: additive, and a matrix for torchsde."""
    problem = sd.UnderdampedLangevin(lambda q, t: -q.sin(), friction=0.7, temperature=0.5, interval=(0.0, 2.0))
    x = torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(2, 2, 3)
    theirs, ours = (sd.solve(problem, x, name, steps=10, seed=3) for name in (method, OURS[method][0]))
    assert torch.allclose(theirs.x, ours.x, rtol=0, atol=1e-13)
    assert sd.solve(problem, x, method, rtol=1e-2, atol=1e-2, seed=3).ok().all()


@pytest.mark.parametrize("how", [{"steps": 400}, {"rtol": 1e-2, "atol": 1e-2}], ids=["grid", "tolerance"])
@pytest.mark.parametrize("method", SDES)
def test_reverse_sde_draws_the_target(method: str, how: dict[str, Any]) -> None:
    x = VP.prior((2000, 1), seed=0)
    solution = sd.solve(VP.reverse(TARGET.score), x, method, seed=1, interval=(VP.T, 0.01), **how)
    alpha, sigma = float(VP.alpha(0.01)), float(VP.sigma(0.01))
    std = math.hypot(alpha * TARGET.std, sigma)
    assert float(solution.x.mean()) == pytest.approx(alpha * TARGET.mean, abs=4 * std / math.sqrt(2000) + 0.01)
    assert float(solution.x.std()) == pytest.approx(std, abs=4 * std / math.sqrt(4000) + 0.02)


@pytest.mark.parametrize("kind", ["additive", "scalar", "diagonal", "general"])
@pytest.mark.parametrize("method", SDES)
def test_images_are_states_too(method: str, kind: str) -> None:
    """Any event: element by element the solution is that of the flat one, for every kind of noise."""
    if kind not in FACTS[method].kinds:
        return
    calculus = min(FACTS[method].calculus)
    one = {"additive": lambda x, t: torch.full((), 0.3, dtype=x.dtype), "general": lambda x, t: torch.stack([0.3 * x, 0.1 + 0 * x], -1)}
    diffusion = one.get(kind, lambda x, t: 0.3 * torch.cos(x))
    problem = sd.SDE(lambda x, t: -x * torch.cos(t), diffusion, noise=kind, calculus=calculus, interval=(1.0, 0.0))
    x = torch.linspace(-1, 1, 24, dtype=torch.float64).reshape(2, 3, 2, 2)
    for how in ({"steps": 5}, {"rtol": 1e-1, "atol": 1e-1}):
        image, flat = (sd.solve(problem, state, method, seed=2, **how).x for state in (x, x.flatten(1)))
        assert torch.equal(image.flatten(1), flat)


def test_a_seed_is_a_path() -> None:
    """On a grid the noise is sdesolve's: the same as another method's, the same in any batch, named by sample_ids."""
    problem = sd.SDE(lambda x, t: -x, lambda x, t: 0.3 * x, interval=(1.0, 0.0))
    x = torch.ones(6, 3)
    whole = sd.solve(problem, x, "torchsde:euler", steps=20, seed=4).x
    assert torch.equal(whole, sd.solve(problem, x, "euler_maruyama", steps=20, seed=4).x)
    assert torch.equal(whole[2:4], sd.solve(problem, x[:2], "torchsde:euler", steps=20, seed=4, sample_ids=[2, 3]).x)
    for noise in ("seeded", "brownian"):
        ours, theirs = (sd.solve(problem, x, method, steps=16, seed=4, noise=noise, save=[0.3]) for method in ("euler_maruyama", "torchsde:euler"))
        assert torch.equal(ours.x, theirs.x) and torch.equal(ours.xs, theirs.xs)
    srk = [sd.solve(problem, x, "torchsde:srk", steps=n, seed=4, noise="brownian").x for n in (64, 256)]
    assert torch.allclose(*srk, atol=5e-3)
    for method in SDES[:3]:
        drawn = [sd.solve(problem, x, method, rtol=1e-2, atol=1e-2, seed=seed).x for seed in (4, 4, 5, 2**64 - 1)]
        assert torch.equal(drawn[0], drawn[1])
        assert not torch.isclose(drawn[0], drawn[2]).any() and not torch.isclose(drawn[0], drawn[3]).any()


def test_the_levy_area() -> None:
    """A of general noise is antisymmetric, and uncorrelated with W and H; its variance is that of torchsde's approximation, 0.22 h^2 (exactly h^2/4)."""
    problem = sd.SDE(untouched, lambda x, t: torch.ones(*x.shape, 2, dtype=x.dtype), noise="general", calculus="stratonovich")
    x, h = torch.ones(20_000, 2, dtype=torch.float64), 0.5
    path = _Path(problem, x, "foster")
    path.at(SeededStep(SeededNormals(0, range(len(x)), (2,), dtype=x.dtype, device="cpu"), 0), 0.0, h)
    w, area = path(0.0, h, return_A=True)
    space_time = path(0.0, h, return_U=True)[1] / h - 0.5 * w
    assert torch.allclose(area, -area.mT) and torch.equal(w, path(0.0, h))
    a = area[:, 0, 1]
    assert float(a.square().mean()) == pytest.approx(0.22 * h**2, rel=0.05)
    for other in (*w.T, *space_time.T):
        assert abs(float(torch.corrcoef(torch.stack([a, other]))[0, 1])) < 4 / math.sqrt(len(x))


# -- calls -------------------------------------------------------------------------------------------------------------


def counted() -> tuple[torch.nn.Module, list[int]]:
    """A network, and the batch sizes of the calls that it has seen."""

    class Network(torch.nn.Module):
        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return -x

    network, seen = Network(), []
    network.register_forward_hook(lambda module, inputs, output: seen.append(len(inputs[0])))
    return network, seen


@pytest.mark.parametrize("denoise", [False, True])
@pytest.mark.parametrize("method", ON_A_GRID + SDES)
def test_calls_on_a_grid(method: str, denoise: bool) -> None:
    network, seen = counted()
    facts = make_backend(method, {}, "additive", False).facts
    solution = sd.solve(VP.reverse(network), torch.ones(2, 3), method, steps=7, seed=0, save="all", denoise=denoise, grid="uniform")
    assert solution.nfe == len(seen)
    expected = facts.start + 7 * facts.evals + denoise
    assert solution.nfe <= expected if method == "torchdiffeq:implicit_adams" else solution.nfe == expected
    assert solution.stats["accepted"] == 7 and solution.stats["method"] == method and solution.stats["wall_time"] > 0
    assert len(solution.ts) == 8 and torch.equal(solution.xs[0], torch.ones(2, 3))
    spent = sd.solve(VP.reverse(network), torch.ones(2, 3), method, nfe=100, seed=0, grid="uniform").nfe
    assert spent <= 100 and (spent > 100 - facts.evals or method == "torchdiffeq:implicit_adams")


@pytest.mark.parametrize("method", ADAPTIVE + SDES)
def test_calls_at_a_tolerance(method: str) -> None:
    network, seen = counted()
    solution = sd.solve(VP.reverse(network), torch.tensor([[1.0, 2.0, 3.0], [0.1, 0.0, 0.0]]), method, seed=0, rtol=1e-2, atol=1e-2, denoise=True)
    rows = torch.as_tensor(solution.nfe).expand(2)
    assert sum(seen) == int(rows.sum())
    facts, tries = make_backend(method, {}, "additive", False).facts, solution.stats["accepted"]
    if method in SDES:
        assert solution.nfe == facts.start + 3 * facts.evals * (tries + solution.stats["rejected"]) + 1
    elif method.startswith("torchdiffeq"):
        assert solution.nfe == facts.start + facts.evals * (tries + solution.stats["rejected"]) + 1
    elif method in EXPLICIT:
        assert ((rows - facts.start - 1) % facts.evals == 0).all() and (rows >= facts.start + facts.evals * tries + 1).all()
    else:
        assert (rows > facts.evals * tries).all()


def test_a_jacobian_by_differences_is_counted() -> None:
    network, seen = counted()
    sd.solve(sd.ODE(network), torch.ones(1, 50), "scipy:Radau")
    assert len(seen) > 50


HOWS = [(m, {"steps": 9}) for m in ("torchdiffeq:rk4", "torchsde:euler", "torchsde:srk")]
HOWS += [(m, {"rtol": 1e-3, "atol": 1e-3}) for m in ("torchdiffeq:dopri5", "scipy:RK45", "scipy:LSODA", "torchsde:euler", "torchsde:srk")]


def decay(method: str) -> sd.ODE | sd.SDE:
    return sd.SDE(lambda x, t: -x, lambda x, t: 0.1 + 0 * x) if method in SDES else sd.ODE(lambda x, t: -x)


@pytest.mark.parametrize(("method", "how"), HOWS)
def test_a_callback_sees_every_step(method: str, how: dict[str, Any]) -> None:
    moments: list[sd.Moment] = []
    x = torch.tensor([[1.0], [5.0]])
    solution = sd.solve(decay(method), x, method, seed=0, callback=lambda m: moments.append(m._replace(t=torch.as_tensor(m.t).clone(), x=m.x.clone())), progress=True, **how)
    accepted = int(torch.as_tensor(solution.stats["accepted"]).sum())
    assert [m.step for m in moments] == list(range(1, accepted + 1))
    assert moments[-1].t.eq(1.0).all() and torch.equal(moments[-1].x, solution.x)
    assert all((a.t <= b.t).all() and bool((a.t < b.t).any()) for a, b in itertools.pairwise(moments))
    assert not any(torch.equal(a.x, b.x) for a, b in itertools.pairwise(moments))


# -- statuses ----------------------------------------------------------------------------------------------------------


@QUIET
@pytest.mark.parametrize(("method", "how"), HOWS)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_broken_row_leaves_the_others_alone(method: str, how: dict[str, Any], bad: float) -> None:
    x = torch.ones(4, 2)
    spoilt = x.clone()
    spoilt[2, 1] = bad
    hurt = sd.solve(decay(method), spoilt, method, seed=0, save=[0.0, 1.0], **how)
    assert hurt.failures() == [(2, "non_finite", 0.0)]
    others = torch.tensor([True, True, False, True])
    drawn_together = method in SDES and "rtol" in how  # their noise depends on how many rows there are
    clean = sd.solve(decay(method), x[:3] if drawn_together else x, method, seed=0, **how)
    assert torch.equal(hurt.x[others], clean.x if drawn_together else clean.x[others])
    assert torch.equal(hurt.xs[-1][others], hurt.x[others]) and not hurt.xs[-1][2].isfinite().all()
    if "rtol" in how:
        assert int(hurt.nfe[2]) == 0 < int(hurt.nfe[0])


@QUIET
@pytest.mark.parametrize(("method", "how"), HOWS)
def test_no_row_is_left(method: str, how: dict[str, Any]) -> None:
    solution = sd.solve(decay(method), torch.full((2, 1), math.nan), method, seed=0, save=[1.0], **how)
    assert solution.failures() == [(0, "non_finite", 0.0), (1, "non_finite", 0.0)] and len(solution.xs) == 1


@QUIET
@pytest.mark.parametrize("method", [name for name in ADAPTIVE if name != "torchdiffeq:adaptive_heun"])
def test_an_explosion_has_a_status_and_a_time(method: str) -> None:
    """x' = x^2 from 2 has no solution beyond t = 1/2.  scipy's other row arrives; torchdiffeq's, which shares the steps, cannot."""
    x = torch.tensor([[2.0], [0.1]], dtype=torch.float64)
    solution = sd.solve(sd.ODE(lambda x, t: x.square()), x, method, rtol=1e-3, atol=1e-3, save=[0.25, 1.0])
    assert solution.status[0] in ("min_step", "non_finite", "max_steps") and float(solution.failed_at[0]) == pytest.approx(0.5, abs=0.06)
    if method.startswith("scipy"):
        assert solution.status[1] == "ok" and float(solution.x[1, 0]) == pytest.approx(1 / 9, abs=1e-3)
        assert float(solution.xs[0, 0, 0]) == pytest.approx(4.0, rel=0.05) and solution.xs[1, 0].isnan().all()
    else:
        assert solution.status[1] == "min_step" and float(solution.failed_at[1]) == float(solution.failed_at[0])
        assert solution.xs.isnan().all() and float(solution.x[1, 0]) == pytest.approx(0.1 / 0.95, abs=1e-3)


@QUIET
@pytest.mark.filterwarnings("ignore:Functional iteration did not converge")
@pytest.mark.parametrize("method", [*ON_A_GRID, "torchsde:euler", "torchsde:srk"])
def test_a_row_that_explodes_on_a_grid(method: str) -> None:
    """It is reported with the time at which it broke, and disturbs no other."""
    drift = lambda x, t: torch.where(x > 1.5, x * math.inf, torch.ones_like(x))  # noqa: E731
    problem = sd.SDE(drift, lambda x, t: 0 * x) if method in SDES else sd.ODE(drift)
    solution = sd.solve(problem, torch.tensor([[0.0], [1.25]]), method, steps=16, seed=0)
    ((index, status, t),) = solution.failures()
    assert (index, status) == (1, "non_finite") and 0.25 <= t <= 0.375
    assert float(solution.x[0, 0]) == pytest.approx(1.0, abs=1e-6)


@QUIET
@pytest.mark.parametrize("method", [*ADAPTIVE, "torchsde:euler"])
@pytest.mark.parametrize("break_", [0.0, 0.3])
def test_a_slope_that_turns_nan(method: str, break_: float) -> None:
    def drift(x: Tensor, t: Tensor) -> Tensor:
        return torch.where((t >= break_) & (x > 1), math.nan, 0 * x + 0.1)

    problem = sd.SDE(drift, lambda x, t: 0.001 + 0 * x) if method in SDES else sd.ODE(drift)
    solution = sd.solve(problem, torch.tensor([[0.0], [1.5]], dtype=torch.float64), method, rtol=1e-3, atol=1e-3, seed=0)
    assert solution.status[1] == "non_finite" and float(solution.failed_at[1]) <= 0.3 + 1e-9
    assert solution.status[0] == ("ok" if method.startswith("scipy") else "min_step")  # fine, but the steps were common
    assert solution.x.isfinite().all()


@QUIET
def test_what_broke_a_step_that_was_recovered_is_forgotten() -> None:
    """A first step that meets an infinite slope is tried again, and what ends the solve later has another name."""
    wall = sd.ODE(lambda x, t: torch.where(x > 1.16, math.inf, 0 * x + 1))
    assert sd.solve(wall, torch.ones(1, 1), "torchdiffeq:bosh3", first_step=0.2, max_steps=2, rtol=1e-3).status[0] == "max_steps"
    pole = sd.ODE(lambda x, t: torch.where((t > 0.15) & (x < 2.85), math.inf, x.square()))  # the solution is beyond 2.85 by then
    assert sd.solve(pole, torch.full((1, 1), 2.0, dtype=torch.float64), "scipy:RK23", first_step=0.4).status[0] == "min_step"


@QUIET
def test_a_tolerance_of_zero_at_a_state_of_zero_ends() -> None:
    """scipy's first step is then 0/0, and would be tried for ever."""
    for method in ("scipy:RK45", "scipy:RK23", "scipy:DOP853", "torchdiffeq:dopri5"):
        solution = sd.solve(sd.ODE(lambda x, t: 0 * x + 1), torch.zeros(1, 2), method, rtol=1e-3, atol=0)
        assert solution.status[0] == "min_step" and solution.x.isfinite().all()


@QUIET
@pytest.mark.parametrize("method", [*ADAPTIVE, "torchsde:euler"])
def test_max_steps(method: str) -> None:
    problem = decay(method)
    how: dict[str, Any] = {"rtol": 1e-6, "atol": 1e-6, "max_steps": 2, "seed": 0, **({"first_step": 1e-4} if method in ADAPTIVE else {})}
    solution = sd.solve(problem, torch.ones(2, 1), method, **how)
    assert solution.status.tolist() == ["max_steps"] * 2 and (solution.failed_at < 1).all() and solution.x.isfinite().all()
    with pytest.raises(sd.SolveError, match="sample 0: max_steps"):
        sd.solve(problem, torch.ones(2, 1), method, throw=True, **how)


def test_which_rows_depend_on_each_other() -> None:
    x = torch.tensor([[1.0], [30.0]], dtype=torch.float64)
    problem = sd.ODE(lambda x, t: -x * x)
    for method, apart in (("scipy:RK45", True), ("scipy:LSODA", True), ("torchdiffeq:rk4", True), ("torchdiffeq:dopri5", False)):
        how: dict[str, Any] = {"rtol": 1e-3, "atol": 1e-3} if method in ADAPTIVE else {"steps": 50}
        both, alone = sd.solve(problem, x, method, **how), sd.solve(problem, x[:1], method, **how)
        assert torch.equal(both.x[0], alone.x[0]) == apart


# -- what is refused ---------------------------------------------------------------------------------------------------


def untouched(x: Tensor, t: Tensor) -> Tensor:
    raise AssertionError("the network was called")


def solve(method: str, problem: Any = None, x: Tensor | None = None, **keywords: Any) -> Callable[[], Any]:
    return lambda: sd.solve(problem or sd.ODE(untouched), torch.ones(2, 3) if x is None else x, method, **keywords)


PLAIN_SDE = sd.SDE(untouched, untouched)
REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "unknown method": (solve("torchsde:eulr", PLAIN_SDE), "'torchsde:eulr' is not known as method; expected one of: torchsde:euler, .* Did you mean 'torchsde:euler'"),
    "unknown method of scipy": (solve("scipy:rk45"), "Did you mean 'scipy:RK45'"),
    "no method": (solve("torchdiffeq:"), "expected one of: torchdiffeq:euler"),
    "unknown package": (solve("torchdifeq:rk4"), "Did you mean 'torchdiffeq:rk4'"),
    "unknown option": (solve("torchdiffeq:dopri5", first_stp=0.1), "'first_stp' is not known as an option of method='torchdiffeq:dopri5'; .* Did you mean 'first_step'"),
    "option of another method": (solve("torchsde:euler", PLAIN_SDE, grad_free=True), "expected one of: none"),
    "option of the other way": (solve("torchsde:euler", PLAIN_SDE, dt_min=1e-3), "'dt_min' is not known"),
    "SDE method on an ODE": (solve("torchsde:euler"), "solves SDEs, and this problem has no noise"),
    "ODE method on an SDE": (solve("scipy:RK45", PLAIN_SDE), "solves ODEs, and this problem has noise"),
    "noise the method cannot do": (solve("torchsde:srk", sd.SDE(untouched, untouched, noise="general")), "does additive, diagonal, scalar noise"),
    "steps for an adaptive method": (solve("torchdiffeq:dopri5", steps=10), "torchdiffeq:dopri5 chooses its steps at rtol and atol here"),
    "grid for scipy": (solve("scipy:RK45", grid=[0.0, 1.0]), "expected no steps, grid or nfe"),
    "nfe for scipy": (solve("scipy:RK45", nfe=10), "expected no steps, grid or nfe"),
    "steps and a tolerance": (solve("torchsde:euler", PLAIN_SDE, steps=10, rtol=1e-3), "expected no steps, grid or nfe"),
    "tolerance on a grid": (solve("torchdiffeq:rk4", rtol=1e-3), "walks a grid here"),
    "tolerances of 0": (solve("torchdiffeq:dopri5", rtol=0, atol=0), "rtol=0 and atol=0 are below one rounding of torch.float32"),
    "names for unnamed noise": (solve("torchsde:euler", PLAIN_SDE, rtol=1e-3, sample_ids=[0, 1]), "sample_ids was given, but at a tolerance torchsde:euler draws its own noise"),
    "path for unnamed noise": (solve("torchsde:euler", PLAIN_SDE, rtol=1e-3, noise="brownian"), "noise was given, but at a tolerance"),
    "event": (solve("scipy:RK45", event=lambda x, t: x[:, 0]), "event is found between the steps"),
    "save all where steps are chosen": (solve("scipy:RK45", save="all"), "expected times"),
    "denoise without a score": (solve("scipy:RK45", denoise=True), "denoise=True needs a score"),
    "half precision": (solve("torchdiffeq:rk4", x=torch.ones(2, 3).half()), "expected float32 or float64: x.float"),
    "unequal steps": (solve("torchdiffeq:explicit_adams", grid=[0.0, 0.1, 1.0]), 'needs equal steps; expected grid="uniform"'),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_before_the_first_call(name: str) -> None:
    call, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        call()


def test_a_closure_over_the_batch_is_told_why_it_fails() -> None:
    rates = torch.tensor([[0.1], [1.0], [50.0]])
    with pytest.raises(ValueError) as caught:
        sd.solve(sd.ODE(lambda x, t: -rates * x), torch.ones(3, 1), "scipy:RK45")
    assert "row by row" in caught.value.__notes__[0]


def test_an_error_of_the_drift_goes_through() -> None:
    def drift(x: Tensor, t: Tensor) -> Tensor:
        raise ValueError("array must not contain infs or NaNs: mine")

    for method in ("scipy:Radau", "torchdiffeq:dopri5", "torchdiffeq:rk4"):
        with pytest.raises(ValueError, match="mine"):
            sd.solve(sd.ODE(drift), torch.ones(2, 1), method)


@pytest.mark.parametrize("package", ["torchsde", "torchdiffeq", "scipy"])
def test_a_missing_package_is_named_with_the_line_to_type(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    method = next(name for name in FACTS if name.startswith(f"{package}:"))
    with pytest.raises(ImportError, match=rf'{method}.* is not installed: pip install {package} \(or "sdesolve\[backends\]"\)'):
        sd.solve(PLAIN_SDE if method in SDES else sd.ODE(untouched), torch.ones(2, 3), method)


def test_a_package_that_misses_something_says_what(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> None:
        raise ModuleNotFoundError("No module named 'trampoline'", name="trampoline")

    monkeypatch.setattr(importlib, "import_module", broken)
    with pytest.raises(ModuleNotFoundError, match="trampoline"):
        sd.solve(PLAIN_SDE, torch.ones(2, 3), "torchsde:euler")


def test_no_package_is_imported_unasked() -> None:
    code = "import sys, sdesolve as sd; sd.backends(); sd.methods(); assert not {'torchsde', 'torchdiffeq', 'scipy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_table_has_what_the_packages_have() -> None:
    import scipy.integrate
    import torchsde.settings
    from torchdiffeq._impl.odeint import SOLVERS

    known = {package: {name.partition(":")[2] for name in FACTS if name.startswith(package)} for package in ("torchsde", "torchdiffeq", "scipy")}
    assert known["torchsde"] == set(torchsde.settings.METHODS.all()) - {"adjoint_reversible_heun"}  # for backward passes alone
    assert known["torchdiffeq"] == set(SOLVERS) - {"fixed_adams", "scipy_solver"}  # another name, and scipy's own
    assert known["scipy"] == {name for name in ("RK23", "RK45", "DOP853", "Radau", "BDF", "LSODA") if hasattr(scipy.integrate, name)}


@QUIET
def test_options_reach_the_package() -> None:
    problem, start, _ = nonlinear_ode((0.0, 2.0))
    assert not sd.solve(problem, start, "torchdiffeq:explicit_adams", steps=64).ok().all()  # of order 12, and unstable
    assert sd.solve(problem, start, "torchdiffeq:explicit_adams", steps=64, max_order=4).ok().all()
    few = sd.solve(problem, start, "scipy:RK45", rtol=1e-2, atol=1e-2)
    assert (sd.solve(problem, start, "scipy:RK45", rtol=1e-2, atol=1e-2, max_step=0.05).nfe > few.nfe).all()
    few = sd.solve(problem, start, "torchdiffeq:dopri5", rtol=1e-2, atol=1e-2)
    assert sd.solve(problem, start, "torchdiffeq:dopri5", rtol=1e-2, atol=1e-2, max_step=0.05).nfe > few.nfe
    noisy = sd.SDE(lambda x, t: -x, lambda x, t: 0.3 * torch.cos(x))
    exact, free = (sd.solve(noisy, torch.ones(2, 3), "torchsde:milstein", steps=50, seed=0, grad_free=flag).x for flag in (False, True))
    assert not torch.equal(exact, free) and torch.allclose(exact, free, atol=1e-2)
    few = sd.solve(noisy, torch.ones(2, 3), "torchsde:euler", rtol=1e-2, atol=1e-2, seed=0)
    assert sd.solve(noisy, torch.ones(2, 3), "torchsde:euler", rtol=1e-2, atol=1e-2, seed=0, dt=1e-4).nfe > few.nfe
