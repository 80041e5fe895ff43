"""What the SDE methods promise beyond their orders: derivatives, kinds of noise, tableaus, error estimates, reversibility, stationary laws."""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from convergence import Path, StepOf, additive, bent, slope, uniform
from problems import PROCESSES, GaussianTarget
from scipy import stats
from torch import Tensor

import sdesolve as sd
from sdesolve.methods import make_method
from sdesolve.noise import LEVY

DIRECTIONS = [(0.0, 1.0), (1.0, 0.0)]


# -- derivatives of the diffusion ----------------------------------------------------------------------------------------


class Undifferentiable(torch.autograd.Function):
    """sin, without a forward-mode derivative."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return torch.sin(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None: ...


def wave(calculus: str = "ito", **options: Any) -> sd.SDE:
    return sd.SDE(lambda x, t: -x, lambda x, t: Undifferentiable.apply(x), calculus=calculus, **options)


X = torch.tensor([[0.3, -0.2], [1.1, 0.4]])


@pytest.mark.parametrize(("method", "calculus", "free"), [("milstein", "ito", "milstein_free"), ("sriw1", "stratonovich", "euler_heun")])
def test_a_diffusion_without_a_derivative(method: str, calculus: str, free: str) -> None:
    """The error names the way out, both ways out work, and the derivative given is the one that would have been taken."""
    with pytest.raises(ValueError, match=rf"no forward-mode derivative .*diffusion_derivative=.*{free}"):
        sd.solve(wave(calculus), X, method, steps=5, seed=0)
    assert sd.solve(wave(calculus), X, free, steps=5, seed=0).ok().all()
    given = sd.solve(wave(calculus, diffusion_derivative=lambda x, t, v: torch.cos(x) * v), X, method, steps=5, seed=0)
    taken = sd.solve(sd.SDE(lambda x, t: -x, lambda x, t: torch.sin(x), calculus=calculus), X, method, steps=5, seed=0)
    assert torch.allclose(given.x, taken.x, rtol=1e-6)
    assert given.stats["jvps"] == taken.stats["jvps"] > 0


def test_derivatives_are_counted() -> None:
    """Those of the steps, and the two or three of the look at the initial state."""

    def jvps(method: str, kind: str, calculus: str = "ito") -> int:
        problem, _ = bent(kind, (0.0, 1.0), calculus)
        return int(sd.solve(problem, X.double(), method, steps=10, seed=0).stats["jvps"])

    assert jvps("milstein", "diagonal") == 10 + 2
    assert jvps("milstein", "scalar") == 10 + 1
    assert jvps("milstein", "commutative") == 10 * 3 + 3  # one for the square and one a column
    assert jvps("milstein", "commutative", "stratonovich") == 10 + 3
    assert jvps("heun_sde", "general") == 20 * 2 + 1
    assert jvps("heun_sde", "general", "stratonovich") == jvps("euler_maruyama", "general") == jvps("sriw1", "diagonal") == 0


@pytest.mark.parametrize("event", [(), (3,), (2, 3, 4)])
@pytest.mark.parametrize("kind", ["scalar", "diagonal", "general"])
def test_any_event_is_converted(kind: str, event: tuple[int, ...]) -> None:
    """The correction against a matrix of first derivatives, for every shape of state."""
    x = torch.randn(5, *event, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mixing = torch.tensor([1.0, -0.5, 2.0], dtype=torch.float64)
    shapes = {
        "scalar": lambda x, t: torch.sin(x + x.reshape(len(x), -1).sum(1).reshape(-1, *(1,) * len(event))),
        "diagonal": lambda x, t: torch.sin(x) * t,
        "general": lambda x, t: torch.sin(x + x.reshape(len(x), -1).sum(1).reshape(-1, *(1,) * len(event)))[..., None] * mixing,
    }
    problem = sd.SDE(lambda x, t: 0 * x, shapes[kind], noise=kind)
    expected = torch.zeros_like(x)
    for row in range(5):
        columns = {"scalar": lambda v: v[..., None], "diagonal": torch.diag, "general": lambda v: v.reshape(-1, 3)}[kind]

        def matrix(flat: Tensor, columns: Any = columns) -> Tensor:
            g = shapes[kind](flat.reshape(1, *event), torch.tensor(0.7, dtype=torch.float64))
            return columns(g.reshape(-1) if kind != "general" else g)

        flat = x[row].reshape(-1)
        g, slopes = matrix(flat), torch.func.jacrev(matrix)(flat)  # (d, m), (d, m, d)
        expected[row] = torch.einsum("ijk,kj->i", slopes, g).reshape(event)
    assert torch.allclose(problem.correction(x, 0.7), expected, rtol=1e-12)


def test_milstein_is_euler_maruyama_on_additive_noise() -> None:
    process = PROCESSES["VP"]
    for problem, x in ((process.reverse(GaussianTarget(process).score), process.prior((8, 3), seed=0)), (additive((0.0, 1.0))[0], torch.ones(8, 1))):
        assert torch.equal(*(sd.solve(problem, x, method, steps=20, seed=0).x for method in ("milstein", "euler_maruyama")))


def test_a_commuting_matrix_that_is_diagonal() -> None:
    """noise="general" with commuting columns gives what noise="diagonal" does."""
    diagonal = sd.SDE(lambda x, t: -x, lambda x, t: torch.sin(x))
    matrix = sd.SDE(lambda x, t: -x, lambda x, t: torch.diag_embed(torch.sin(x)), noise="general", commutative=True)
    for method in ("milstein", "heun_sde"):
        assert torch.allclose(*(sd.solve(p, X, method, steps=20, seed=0).x for p in (diagonal, matrix)), rtol=1e-5)


# -- Rossler's methods ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["sra1", "sra3", "sriw1", "sosri"])
def test_every_weight_of_a_tableau_is_held_by_a_condition(method: str) -> None:
    """A tableau with one number changed is refused."""
    stepper = make_method(method)
    for field in dataclasses.fields(stepper):
        value = getattr(stepper, field.name)
        if field.name in ("reference", "c"):
            continue
        rows = value if isinstance(value[0], tuple) else (value,)
        for i, row in enumerate(rows):
            for j, weight in enumerate(row):
                spoilt = tuple((*r[:j], weight + 0.01, *r[j + 1 :]) if k == i else r for k, r in enumerate(rows))
                with pytest.raises(ValueError, match="expected"):
                    dataclasses.replace(stepper, **{field.name: spoilt if rows is value else spoilt[0]})


@pytest.mark.parametrize("interval", DIRECTIONS, ids=["forwards", "backwards"])
@pytest.mark.parametrize(("method", "kind"), [("sra1", "additive"), ("sra3", "additive"), ("sriw1", "diagonal"), ("sosri", "scalar")])
def test_the_error_estimate_falls_as_it_says(method: str, kind: str, interval: tuple[float, float]) -> None:
    """As h^(3/2), the distance of a method of order 1 inside."""
    problem = (additive(interval) if kind == "additive" else bent(kind, interval))[0]
    x = torch.full((4000, 1 if kind == "additive" else 2), 0.6, dtype=torch.float64)
    stepper, lengths = make_method(method), [2.0**-k for k in range(12, 17)]
    sizes = []
    for h in lengths:
        path = Path.draw((0.0, h), 1, (4000, *problem.brownian_event(x)), seed=1)
        step = stepper.step(problem, x, interval[0], interval[0] + h * (interval[1] - interval[0]), StepOf(path.w[0], path.area[0], h, 0), None)
        sizes.append(float(step.error.square().mean().sqrt()))
    assert slope([round(1 / h) for h in lengths], sizes) == pytest.approx(1.5, abs=0.1), sizes


@pytest.mark.parametrize(("method", "kind"), [("sra1", "additive"), ("sriw1", "diagonal")])
def test_steps_chosen_by_the_estimate(method: str, kind: str) -> None:
    """The distance to the end of the same path, the median of 64, falls as the tolerance."""
    problem, _ = additive((0.0, 1.0)) if kind == "additive" else bent(kind, (0.0, 1.0))
    x = torch.full((64, 1 if kind == "additive" else 2), 0.6, dtype=torch.float64)
    path = sd.BrownianPath((64, *problem.brownian_event(x)), (0.0, 1.0), seed=0)
    fine = sd.solve(problem, x, method, steps=256, noise=path).x
    errors = [float((sd.solve(problem, x, method, rtol=tol, atol=tol, noise=path).x - fine).abs().median()) for tol in (3e-2, 3e-3)]
    assert errors[1] < 0.4 * errors[0], errors


@pytest.mark.parametrize(("method", "stable", "unstable"), [("sriw1", 1.9, 2.1), ("sosri", 9.0, 10.0)])
def test_the_domain_of_stability(method: str, stable: float, unstable: float) -> None:
    """A step of length 1 with hardly any noise contracts at one rate and not at the other."""
    for rate, contracts in ((stable, True), (unstable, False)):
        problem = sd.SDE(lambda x, t, rate=rate: -rate * x, lambda x, t: 1e-3 * x)
        x = sd.solve(problem, torch.ones(100, 1), method, steps=400, seed=0, interval=(0.0, 400.0)).x
        assert bool((x.abs() < 1).all()) == contracts


# -- the reversible Heun method ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("interval", DIRECTIONS, ids=["forwards", "backwards"])
@pytest.mark.parametrize("kind", ["diagonal", "general"])
def test_the_reversible_heun_method_goes_back(kind: str, interval: tuple[float, float]) -> None:
    """From the end and its carry to the start, over 200 steps, to rounding."""
    problem, _ = bent(kind, interval, "stratonovich")
    stepper, x = make_method("reversible_heun"), torch.tensor([[0.8, -0.6], [0.1, 0.4]], dtype=torch.float64)
    path, ts = Path.draw(interval, 200, (2, 2), seed=0), uniform(*interval, 200)
    start = carry = stepper.init(problem, x, ts[0])
    state = x
    for i in range(200):
        state, _, carry, *_ = stepper.step(problem, state, ts[i], ts[i + 1], StepOf(path.w[i], path.area[i], 1 / 200, i), carry)
    assert not torch.allclose(state, x, atol=0.1)
    for i in reversed(range(200)):
        state, _, carry, *_ = stepper.step_back(problem, state, ts[i], ts[i + 1], StepOf(path.w[i], path.area[i], 1 / 200, i), carry)
    assert torch.allclose(state, x, rtol=1e-12, atol=1e-12) and torch.allclose(carry, start, rtol=1e-12, atol=1e-12)


def test_the_second_state_strays_by_what_the_equation_contracts() -> None:
    """On x' = -x over 5 units of time x falls by e^-5, and a distance of y from x grows by e^5 and turns at every step."""
    problem, stepper, ts = sd.SDE(lambda x, t: -x, lambda x, t: 0 * x, "additive", interval=(0.0, 5.0)), make_method("reversible_heun"), uniform(0.0, 5.0, 101)

    def walked(apart: float) -> tuple[float, float]:
        x = torch.ones(1, 1, dtype=torch.float64)
        carry = stepper.init(problem, x + apart, 0.0)
        for t0, t1 in itertools.pairwise(ts):
            x, _, carry, *_ = stepper.step(problem, x, t0, t1, StepOf(0 * x, 0 * x, t1 - t0, 0), carry)
        return float(x), float(carry[:, 0] - x)

    (x, gap), (_, wider) = walked(0.0), walked(1e-3)
    assert x == pytest.approx(math.exp(-5), rel=2e-2)
    assert (wider - gap) / 1e-3 == pytest.approx(-math.exp(5), rel=1e-2)


# -- underdamped Langevin dynamics ---------------------------------------------------------------------------------------


class Unit:
    """Noise that is one in one slot and zero elsewhere."""

    def __init__(self, slot: int, length: float) -> None:
        self.slot, self.length = slot, length

    def normal(self, slot: int = 0) -> Tensor:
        return torch.full((1, 1), float(slot == self.slot), dtype=torch.float64)

    def increment(self, t0: float, t1: float) -> Tensor:
        return math.sqrt(self.length) * self.normal()

    def levy(self, t0: float, t1: float) -> tuple[Tensor, Tensor]:
        return self.increment(t0, t1), math.sqrt(self.length / 12) * self.normal(LEVY)


@pytest.mark.parametrize("h", [1e-5, 0.1, 2.0, -0.5])
@pytest.mark.parametrize("friction", [1e-3, 1.0, 3.0])
def test_without_a_force_ubu_is_exact(friction: float, h: float) -> None:
    """Mean and covariance of a step against those of the Ornstein-Uhlenbeck velocity and its integral."""
    problem = sd.UnderdampedLangevin(lambda q, t: 0 * q, friction, mass=0.8, temperature=0.7)
    x = torch.tensor([[[0.3], [1.2]]], dtype=torch.float64)
    still = make_method("ubu").step(problem, x, 0.0, h, Unit(-1, abs(h)), None).x
    kicks = torch.stack([make_method("ubu").step(problem, x, 0.0, h, Unit(slot, abs(h)), None).x - still for slot in (0, *range(LEVY, LEVY + 5))])
    decay = math.expm1(-friction * h)
    assert torch.allclose(still.flatten(), torch.tensor([0.3 - decay / friction * 1.2, 1.2 + decay * 1.2], dtype=torch.float64), rtol=1e-14)
    nodes, weights = (torch.from_numpy(v) for v in np.polynomial.legendre.leggauss(40))
    left = torch.exp(-friction * h * (1 + nodes) / 2)  # of a kick of the velocity at time u, at the end
    pushed = torch.stack([-torch.expm1(-friction * h * (1 + nodes) / 2) / friction, left])
    covariance = 2 * friction * 0.7 / 0.8 * torch.einsum("in,jn,n->ij", pushed, pushed, weights) * abs(h) / 2
    assert torch.allclose(torch.einsum("kbin,kbjn->ij", kicks, kicks), covariance, rtol=1e-9)


@pytest.mark.parametrize("h", [0.1, 1.0, 1.9])
def test_baoab_has_the_positions_of_a_gaussian(h: float) -> None:
    """At every stable step, where the velocities are off: the fixed point of the covariance under one step."""
    problem = sd.UnderdampedLangevin(lambda q, t: -q, friction=1.3, temperature=0.7)
    stepper, eye = make_method("baoab"), torch.eye(2, dtype=torch.float64)

    def stepped(x: Tensor, slot: int) -> Tensor:
        x = x[:, :, None]
        return stepper.step(problem, x, 0.0, h, Unit(slot, h), stepper.init(problem, x, 0.0)).x[..., 0]

    gain, kick = stepped(eye, -1).T, stepped(0 * eye[:1], 0)[0]
    flat = torch.linalg.solve(torch.eye(4, dtype=torch.float64) - torch.kron(gain, gain), torch.outer(kick, kick).flatten())
    assert float(flat[0]) == pytest.approx(0.7, rel=1e-12)
    assert abs(float(flat[3]) - 0.7) > 1e-4


@pytest.mark.parametrize(("method", "h"), [("baoab", 0.25), ("ubu", 0.25)])
def test_the_stationary_law_of_a_double_well(method: str, h: float) -> None:
    """20,000 chains from one point: KS of the positions against exp(-U/T), and of the velocities against theirs."""
    mass, temperature = 0.5, 0.8
    problem = sd.UnderdampedLangevin(lambda q, t: q - q**3, 1.5, mass, temperature, interval=(0.0, 120 * h))
    x = sd.solve(problem, torch.full((20_000, 2, 1), 0.3), method, steps=120, seed=0).x.double()
    grid = np.linspace(-5, 5, 4001)
    density = np.exp((grid**2 / 2 - grid**4 / 4) / temperature)
    cumulative = np.cumsum(density) / density.sum()
    assert stats.kstest(x[:, 0, 0].numpy(), lambda q: np.interp(q, grid, cumulative)).pvalue > 1e-3
    assert stats.kstest(x[:, 1, 0].numpy() * math.sqrt(mass / temperature), "norm").pvalue > 1e-3
