"""Values between the nodes: as accurate as the steps, at any times, and they change no step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from problems import nonlinear_ode
from torch import Tensor

import sdesolve as sd
from sdesolve.methods import METHODS, Facts, Step, Stepper, make_method

INTERVALS = [(0.0, 2.0), (2.0, 0.0)]
ADAPTIVE = [name for name, make in METHODS.items() if make().error_order is not None and make().facts.dense is not None]
FACTS = {row.name: row.facts for row in sd.methods()}
DENSE = [name for name, make in METHODS.items() if make().facts.dense is not None]


def exact_at(times: list[float], start: float) -> Tensor:
    """(S, B, *event) of the nonlinear problem."""
    initial = nonlinear_ode((start, 1.0))[1]
    return torch.stack([initial if t == start else nonlinear_ode((start, t))[2] for t in times])


@pytest.mark.parametrize("interval", INTERVALS, ids=["forwards", "backwards"])
@pytest.mark.parametrize("method", ADAPTIVE)
def test_saving_changes_no_step(method: str, interval: tuple[float, float]) -> None:
    problem, start, _ = nonlinear_ode(interval)
    times = torch.linspace(*interval, 41, dtype=torch.float64)
    tol = 1e-5
    plain = sd.solve(problem, start, method, rtol=tol, atol=tol)
    solution = sd.solve(problem, start, method, rtol=tol, atol=tol, save=times.flip(0))
    assert torch.equal(solution.x, plain.x)
    assert torch.equal(solution.stats["accepted"], plain.stats["accepted"])
    assert torch.equal(solution.ts, times)
    assert torch.equal(solution.xs[0], start) and torch.equal(solution.xs[-1], solution.x)  # the ends are exact
    assert float((solution.xs - exact_at(times.tolist(), interval[0])).abs().max()) < 50 * tol
    extra = solution.nfe - plain.nfe
    if method == "dop853":
        assert (extra > 0).all() and (extra <= 3 * plain.stats["accepted"]).all() and (extra % 3 == 0).all()
    else:
        assert (extra == 0).all()


@pytest.mark.parametrize("method", ADAPTIVE)
def test_saved_values_are_the_row_s_own(method: str) -> None:
    """Rows of different stiffness, with different numbers of saved times in their steps: each as alone."""
    rates = torch.tensor([0.1, 1.0, 30.0], dtype=torch.float64)
    problem = sd.ODE(lambda x, t: torch.stack([-x[:, 1] * (x[:, 0] - torch.cos(t)), 0 * x[:, 1]], 1))
    x = torch.stack([0 * rates, rates], 1)
    times = [0.0, 0.1, 0.11, 0.5, 0.95, 1.0]
    together = sd.solve(problem, x, method, rtol=1e-4, atol=1e-4, save=times)
    assert len(set(together.stats["accepted"].tolist())) > 1
    for i in range(3):
        alone = sd.solve(problem, x[i : i + 1], method, rtol=1e-4, atol=1e-4, save=times)
        assert torch.equal(alone.xs[:, 0], together.xs[:, i]) and int(alone.nfe[0]) == int(together.nfe[i])


def test_times_that_a_sample_did_not_reach_are_nan() -> None:
    problem = sd.ODE(lambda x, t: x.square() + 1, (0.0, 2.0))
    with pytest.warns(sd.SolveWarning, match="1 of 2"):
        solution = sd.solve(problem, torch.tensor([[0.0], [-20.0]], dtype=torch.float64), "rk45", interval=(0.0, 1.6), save=[0.5, 1.0, 1.6])
    assert solution.xs[:, 0, 0].isnan().tolist() == [False, False, True]
    assert solution.xs[:, 1].isfinite().all()
    assert float(solution.xs[1, 0]) == pytest.approx(1.5574077, abs=1e-4)


@dataclass(frozen=True)
class Undense(Stepper):
    """rk45 without its continuous extension."""

    error_order = 5

    @property
    def facts(self) -> Facts:  # type: ignore[override]
        return make_method("rk45").facts._replace(dense=None)

    def init(self, problem: Any, x: Tensor, t: Any) -> Any:
        return make_method("rk45").init(problem, x, t)

    def step(self, problem: Any, x: Tensor, t0: Any, t1: Any, noise: Any, carry: Any) -> Step:
        return make_method("rk45").step(problem, x, t0, t1, noise, carry)._replace(stages=())


@pytest.mark.parametrize("interval", INTERVALS, ids=["forwards", "backwards"])
def test_a_method_without_dense_output_lands_on_the_times(interval: tuple[float, float]) -> None:
    problem, start, _ = nonlinear_ode(interval)
    times = sorted([0.3, 1.1, 1.9, *interval], reverse=interval[1] < interval[0])
    seen: list[Tensor] = []
    solution = sd.solve(problem, start, Undense(), rtol=1e-9, atol=1e-9, save=times, callback=lambda moment: seen.append(moment.t.clone()))
    assert solution.ts.tolist() == times
    assert torch.allclose(solution.xs, exact_at(times, interval[0]), rtol=1e-7)
    assert torch.equal(solution.xs[-1], solution.x)
    assert all(bool((torch.stack(seen)[:, 0] == t).any()) for t in times[1:])


def test_a_step_cut_short_by_a_time_does_not_shorten_the_next() -> None:
    """Two times 1e-9 apart cost two steps, and not the ten that it takes to grow from 1e-9 again."""
    problem, start, _ = nonlinear_ode((0.0, 2.0))
    plain, close = (sd.solve(problem, start, Undense(), rtol=1e-9, atol=1e-9, save=save) for save in (None, [1.0, 1.0 + 1e-9]))
    assert (close.stats["accepted"] <= plain.stats["accepted"] + 3).all()


@pytest.mark.parametrize("interval", INTERVALS, ids=["forwards", "backwards"])
@pytest.mark.parametrize("method", DENSE)
def test_any_time_on_a_fixed_grid(method: str, interval: tuple[float, float]) -> None:
    """Times between nodes, several in one step, beside nodes; in the order of the grid, and without another step."""
    problem, start, _ = nonlinear_ode(interval)
    times = sorted([0.0, 0.313, 0.317, 1.0, 1.995, 2.0], reverse=interval[1] < interval[0])
    solution = sd.solve(problem, start, method, steps=200, save=[*times[::-1], times[1]])
    assert solution.ts.tolist() == times
    assert float((solution.xs - exact_at(times, interval[0])).abs().max()) < (1e-2 if FACTS[method].ode == 1 else 1e-4)
    assert torch.equal(solution.xs[0], start) and torch.equal(solution.xs[-1], solution.x)
    nodes = sd.solve(problem, start, method, steps=200, save="all")
    assert torch.equal(nodes.xs[100], solution.xs[3 if interval[0] == 0 else 2]) and torch.equal(nodes.x, solution.x)
    assert solution.nfe - nodes.nfe == (6 if method == "dop853" else 0)  # in two steps


def test_a_time_outside_the_grid_or_without_dense_output_is_refused() -> None:
    problem, start, _ = nonlinear_ode((0.0, 2.0))
    with pytest.raises(ValueError, match=r"save time 2.1 lies outside"):
        sd.solve(problem, start, "rk4", steps=10, save=[2.1])
    process = sd.VPSDE()
    with pytest.raises(ValueError, match=r"save time 0.7 is not a node"):
        sd.solve(process.probability_flow(lambda x, t: -x), torch.ones(1, 1), "ddim", steps=2, save=[0.7])


def test_saved_values_keep_the_state_s_dtype() -> None:
    solution = sd.solve(sd.ODE(lambda x, t: -x), torch.ones(2, 1), "rk45", save=[0.123, 0.77])
    assert solution.xs.dtype == torch.float32
    assert torch.allclose(solution.xs[:, 0, 0], torch.exp(-torch.tensor([0.123, 0.77])), atol=1e-5)
