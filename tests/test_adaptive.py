"""Per-sample step control: the error follows the tolerance, each row its own way, and finished rows cost nothing."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import pytest
import scipy.integrate
import torch
from problems import PROCESSES, nonlinear_ode
from scipy.integrate import solve_ivp
from torch import Tensor

import sdesolve as sd
from sdesolve import exam
from sdesolve._loops import adaptive
from sdesolve.control import Control
from sdesolve.methods import METHODS, make_method

ADAPTIVE = [name for name, make in METHODS.items() if make().error_order is not None and make().facts.ode is not None]


@pytest.mark.parametrize("interval", [(0.0, 2.0), (2.0, 0.0)], ids=["forwards", "backwards"])
@pytest.mark.parametrize("method", ADAPTIVE)
def test_error_follows_tolerance(method: str, interval: tuple[float, float]) -> None:
    problem, start, end = nonlinear_ode(interval)
    tolerances = [1e-3, 1e-5, 1e-7]
    solutions = [sd.solve(problem, start, method, rtol=tol, atol=tol) for tol in tolerances]
    for tol, solution in zip(tolerances, solutions, strict=True):
        assert float((solution.x - end).abs().max()) < 20 * tol
    assert (solutions[0].nfe < solutions[2].nfe).all()


def test_no_more_calls_than_scipy() -> None:
    """rk45 at scipy's tolerances on the same flow, sample by sample: as accurate, with no more calls."""
    target, process = exam.mixture_2d(), sd.VPSDE()
    flow = process.probability_flow(target.score(process))
    x = process.prior((8, 2), seed=0, dtype=torch.float64)
    fine = sd.solve(flow, x, "rk45", rtol=1e-11, atol=1e-11).x
    ours = sd.solve(flow, x, "rk45", rtol=1e-5, atol=1e-5)

    def drift(t: float, y: np.ndarray) -> np.ndarray:
        return flow.drift(torch.as_tensor(y)[None], t)[0].numpy()

    theirs = [solve_ivp(drift, flow.interval, row.numpy(), rtol=1e-5, atol=1e-5, method="RK45") for row in x]
    assert float(ours.nfe.double().mean()) <= 1.02 * sum(t.nfev for t in theirs) / len(x)
    ends = torch.stack([torch.as_tensor(t.y[:, -1]) for t in theirs])
    assert float((ours.x - fine).abs().mean()) <= 2 * float((ends - fine).abs().mean())


@pytest.mark.parametrize(("method", "theirs"), [("rk45", "RK45"), ("bosh3", "RK23"), ("dop853", "DOP853")])
def test_the_error_estimate_is_the_published_one(method: str, theirs: str) -> None:
    """One step: ours against the weights that scipy has, combined as published for dop853."""
    problem, start, _ = nonlinear_ode((0.0, 2.0))
    stepper, h = make_method(method), 0.3
    step = stepper.step(problem, start, 0.0, h, None, stepper.init(problem, start, 0.0))
    k = torch.stack(list(step.stages))
    solver = getattr(scipy.integrate, theirs)
    if method == "dop853":
        fifth, third = (h * torch.tensordot(torch.as_tensor(e), k, 1) for e in (solver.E5, solver.E3))
        expected = fifth.square() / (fifth.square() + 0.01 * third.square()).sqrt()
    else:
        expected = h * torch.tensordot(torch.as_tensor(solver.E), k, 1)
    assert torch.allclose(step.error.abs(), expected.abs(), rtol=1e-7, atol=0)


@pytest.mark.parametrize("interval", [(1.0, 0.0), (0.0, 1.0), (-0.3, 0.1)])
@pytest.mark.parametrize("method", [name for name, facts in sd.methods() if facts.ode and not facts.needs])
def test_no_method_looks_beyond_the_interval(method: str, interval: tuple[float, float]) -> None:
    """A square root that ends at 0 would be NaN there."""
    seen: list[Tensor] = []

    def drift(x: Tensor, t: Tensor) -> Tensor:
        seen.append(t.detach().reshape(-1).clone())
        return 0 * x + torch.cos(9 * sd.expand_time(t, x))

    x = torch.zeros(3, 1, dtype=torch.float64)
    for how in ({"steps": 7}, {"steps": 1}, {}):
        assert sd.solve(sd.ODE(drift, interval), x, method, **how).ok().all()
    assert min(interval) <= float(torch.cat(seen).min()) and float(torch.cat(seen).max()) <= max(interval)


def test_the_controller_s_factor() -> None:
    """After acceptance with memory, after rejection without it and without growth; an infinite error shrinks the most."""
    control = Control(rtol=1e-3, atol=1e-3, q=5)
    err = torch.tensor([0.5, 0.5, 0.5, 0.99, 1e-30, 3.0, 3.0, math.inf, 0.01], dtype=torch.float64)
    previous = torch.tensor([1.0, 0.1, 5.0, 5.0, 1.0, 0.1, 5.0, 1.0, math.inf], dtype=torch.float64)
    expected = [
        0.9 * 0.5 ** (0.03 - 0.2),
        0.9 * 0.5 ** (0.03 - 0.2) * 0.1**0.04,
        1.0,  # a rejected try before it: no growth
        0.9 * 0.99 ** (0.03 - 0.2),
        10.0,
        0.9 * 3**-0.2,
        0.9 * 3**-0.2,
        0.2,
        1.0,
    ]
    assert control.factor(err, previous).tolist() == pytest.approx(expected)


@pytest.mark.parametrize(("end", "steps"), [(1.0, 10), (1.004, 10), (1.006, 11)])
def test_the_last_step_leaves_no_sliver(end: float, steps: int) -> None:
    """A straight line is free of error: its steps are as long as is allowed, but for a last one that takes 5 % more."""
    x, control = torch.zeros(2, 1, dtype=torch.float64), Control(1e-3, 1e-3, 5)
    task = adaptive.Task((0.0, end), control, (), 100, 0, first=0.1, longest=lambda x, t: torch.full_like(t, 0.1))
    out = adaptive.run(make_method("rk45"), sd.ODE(lambda x, t: torch.ones_like(x)), x, task)
    assert out.accepted.tolist() == [steps, steps] and out.rejected.tolist() == [0, 0]
    assert torch.allclose(out.x, torch.full_like(x, end))
    assert out.nfe.tolist() == [1 + 6 * steps] * 2


def test_a_sample_pays_for_itself_alone() -> None:
    """Rows of different stiffness: each has the count it has alone, and a network row is evaluated only while under way."""
    rates = torch.tensor([[0.1], [1.0], [30.0], [300.0]], dtype=torch.float64)
    seen: list[int] = []

    def drift_of(rate: Tensor) -> sd.ODE:
        def drift(x: Tensor, t: Tensor) -> Tensor:
            seen.append(len(x))
            return torch.stack([-x[:, 1] * (x[:, 0] - torch.cos(t)), 0 * x[:, 1]], 1)

        return sd.ODE(drift)

    x = torch.cat([torch.zeros_like(rates), rates], 1)
    together = sd.solve(drift_of(rates), x, "rk45", rtol=1e-6, atol=1e-6)
    rows_evaluated = sum(seen)
    assert rows_evaluated == int(together.nfe.sum())
    assert torch.equal(together.nfe, 2 + 6 * (together.stats["accepted"] + together.stats["rejected"]))  # first slope, first step
    assert rows_evaluated < 0.75 * len(seen) * len(x)
    for i in range(4):
        alone = sd.solve(drift_of(rates[i : i + 1]), x[i : i + 1], "rk45", rtol=1e-6, atol=1e-6)
        assert torch.equal(alone.x[0], together.x[i])
        assert int(alone.nfe[0]) == int(together.nfe[i]) and int(alone.stats["rejected"][0]) == int(together.stats["rejected"][i])


def test_sample_0_among_easy_stiff_and_broken_neighbours() -> None:
    def drift(x: Tensor, t: Tensor) -> Tensor:
        return torch.stack([torch.sin(x[:, 1] * t) - x[:, 0], 0 * x[:, 1]], 1)

    x0 = torch.tensor([[0.3, 5.0]])
    alone = sd.solve(sd.ODE(drift), x0, "rk45").x[0]
    for neighbours in (torch.zeros(4095, 2), torch.tensor([[1.0, 5000.0]]), torch.tensor([[math.nan, 1.0]])):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", sd.SolveWarning)
            solution = sd.solve(sd.ODE(drift), torch.cat([x0, neighbours]), "rk45", max_steps=100_000)
        assert torch.equal(solution.x[0], alone)
        assert bool(solution.ok().all()) == bool(neighbours.isfinite().all())


def test_an_ode_method_on_a_reverse_sde_solves_its_flow() -> None:
    target = exam.mixture_2d()
    for process in PROCESSES.values():
        x = process.prior((5, 2), seed=0)
        reverse, flow = (f(target.score(process)) for f in (process.reverse, process.probability_flow))
        assert torch.equal(sd.solve(reverse, x, "rk45").x, sd.solve(flow, x, "rk45").x)


def test_encode_and_decode() -> None:
    """The flow runs forwards too: data to latent and back."""
    target, process = exam.mixture_2d(), sd.VPSDE()
    flow = process.probability_flow(target.score(process))
    x = target.sample(16, seed=0, dtype=torch.float64)
    latent = sd.solve(flow, x, "rk45", interval=(process.eps, process.T), rtol=1e-9, atol=1e-9).x
    assert torch.allclose(sd.solve(flow, latent, "rk45", rtol=1e-9, atol=1e-9).x, x, atol=1e-6)


def test_a_time_per_row_that_multiplies_columns_is_refused() -> None:
    """t is (B,) here: a drift that forgets to expand it would be wrong without a sound where B equals the last axis."""
    with pytest.raises(ValueError, match=r"expand_time\(t, x\)"):
        sd.solve(sd.ODE(lambda x, t: -x * torch.cos(t)), torch.ones(3, 3), "rk45")
    with pytest.raises(RuntimeError) as caught:
        sd.solve(sd.ODE(lambda x, t: -x * torch.cos(t)), torch.ones(4, 3), "rk45")
    assert "expand_time(t, x)" in caught.value.__notes__[0]
    right = sd.solve(sd.ODE(lambda x, t: -x * torch.cos(sd.expand_time(t, x))), torch.ones(3, 3), "rk45")
    assert torch.allclose(right.x, torch.full((3, 3), math.exp(-math.sin(1.0))), rtol=1e-4)


def test_a_closure_over_the_batch_is_told_why_it_fails() -> None:
    """Rows that have arrived leave the batch, so a tensor of the whole batch no longer fits."""
    rates = torch.tensor([[0.1], [1.0], [50.0]])
    with pytest.raises(RuntimeError) as caught:
        sd.solve(sd.ODE(lambda x, t: -rates * x), torch.ones(3, 1), "rk45")
    assert "Finished samples have left the batch" in caught.value.__notes__[-1] and "sdesolve.of_rows(tensor, x)" in caught.value.__notes__[-1]
    assert sd.solve(sd.ODE(lambda x, t: -rates * x), torch.ones(3, 1), "rk4", steps=100).ok().all()


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("rk45", {}), ("rk45", {"save": [0.5]}), ("rodas5p", {"save": [0.5]}), ("dop853", {"save": [0.5]}), ("euler", {"steps": 50, "parallel": 8}),
        ("scipy:RK45", {}), ("rk4", {"steps": 50}),
    ],
)  # fmt: skip
def test_a_value_for_each_sample_finds_its_row(method: str, options: dict[str, Any]) -> None:
    """Whatever rows are called: those still under way, those that are read off between nodes, many steps of each, one by one."""
    rates = torch.tensor([[5.0], [0.1], [1.0], [2.0]], dtype=torch.float64)
    x = torch.ones(4, 1, dtype=torch.float64)
    sol = sd.solve(sd.ODE(lambda x, t: -sd.of_rows(rates, x) * x), x, method, **options)
    exact = (1 - rates / 50) ** 50 if method == "euler" else torch.exp(-rates)
    torch.testing.assert_close(sol.x, exact, rtol=1e-3, atol=1e-4)
    if "save" in options:
        torch.testing.assert_close(sol.xs[0], torch.exp(-0.5 * rates), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("gradient", ["backprop", "checkpoint", "adjoint"])
def test_a_value_for_each_sample_finds_its_row_in_the_backward_pass(gradient: str) -> None:
    rates = torch.tensor([[5.0], [0.1], [1.0], [2.0]], dtype=torch.float64)
    x = torch.ones(4, 1, dtype=torch.float64, requires_grad=True)
    sol = sd.solve(sd.ODE(lambda x, t: -sd.of_rows(rates, x) * x), x, "rk45", gradient=gradient, save=[0.5])
    (slope,) = torch.autograd.grad(sol.x.sum() + sol.xs.sum(), x)
    torch.testing.assert_close(slope, torch.exp(-rates) + torch.exp(-0.5 * rates), rtol=1e-3, atol=1e-4)


@pytest.mark.filterwarnings("ignore::sdesolve.SolveWarning")
def test_rows_among_rows_that_are_some_of_the_batch() -> None:
    """Back from where some arrived, of whom some are back before the others: a place among those is one among all."""
    rates = torch.tensor([[5.0], [0.1], [1.0], [4.0]], dtype=torch.float64)
    x = torch.tensor([[torch.nan], [1.0], [1.0], [1.0]], dtype=torch.float64, requires_grad=True)
    sol = sd.solve(sd.ODE(lambda x, t: -sd.of_rows(rates, x) * x), x, "rk45", gradient="adjoint")
    (slope,) = torch.autograd.grad(sol.x[1:].sum(), x)
    torch.testing.assert_close(slope[1:], torch.exp(-rates[1:]), rtol=1e-3, atol=1e-4)
