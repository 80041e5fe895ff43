"""One grid object: its nodes are the interval's ends and nothing else decides a step."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from problems import PROCESSES, GaussianTarget

import sdesolve as sd
from sdesolve import grids
from sdesolve.grids import GRIDS, make_grid


@given(
    name=st.sampled_from(sorted(GRIDS)),
    process=st.sampled_from(sorted(PROCESSES)),
    steps=st.integers(1, 1000),
    ends=st.tuples(st.floats(0, 1), st.floats(0, 1)).filter(lambda ends: abs(ends[0] - ends[1]) > 0.05),
)
def test_every_grid_spans_its_interval(name: str, process: str, steps: int, ends: tuple[float, float]) -> None:
    """Strictly monotone from end to end, with noise falling or rising, over all of the process or a part of it."""
    p = PROCESSES[process]
    t0, t1 = (p.eps + share * (p.T - p.eps) for share in ends)
    grid = make_grid(name, p, t0, t1, steps)
    assert len(grid) == steps
    assert (grid.ts[0], grid.ts[-1]) == (t0, t1)
    assert all((a > b) == (t0 > t1) and a != b for a, b in zip(grid.ts, grid.ts[1:], strict=False))


RECIPES = {
    "power": (grids.power(3.0), lambda p, t: t ** (1 / 3)),
    "karras": (grids.karras(4.0), lambda p, t: (p.sigma(t) / p.alpha(t)) ** 0.25),
    "log_snr": (grids.log_snr(), lambda p, t: p.log_snr(t)),
    "arctan": (grids.arctan(0.2), lambda p, t: (p.sigma(t) / (0.2 * p.alpha(t))).atan()),
}


@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES.keys())
@pytest.mark.parametrize("name", RECIPES)
def test_equal_steps_of_what_the_page_says(name: str, process: sd.Process) -> None:
    recipe, of = RECIPES[name]
    steps = of(process, torch.tensor(recipe(process, process.T, process.eps, 30).ts, dtype=torch.float64)).diff()
    assert torch.allclose(steps, steps.mean().expand(30), rtol=1e-6)


def test_a_grid_with_options_and_one_of_ones_own() -> None:
    p = sd.VPSDE()
    problem, x = p.reverse(lambda x, t: -x), torch.ones(1, 2)
    ts = sd.solve(problem, x, "ddim", nfe=6, grid=sd.grids.karras(rho=5), save="all").ts
    assert ts.tolist() == list(sd.grids.karras(5.0)(p, p.T, p.eps, 6).ts)
    assert sd.solve(problem, x, "ddim", steps=6, grid="edm", save="all").ts.tolist() == list(sd.grids.karras()(p, p.T, p.eps, 6).ts)
    halves = sd.solve(problem, x, "ddim", steps=3, grid=lambda p, t0, t1, n: sd.Grid((t0, 0.5, 0.25, t1)), save="all").ts
    assert halves.tolist() == [p.T, 0.5, 0.25, p.eps]


def test_arctan_puts_the_error_of_ddim_where_it_is_needed() -> None:
    """On Gaussian data of that width each step of DDIM errs alike, and the end is nearer to the truth than on any other named grid."""
    p = sd.EDM()
    target = GaussianTarget(p, mean=0.0, std=0.7)
    errors = {}
    for name in GRIDS:
        recipe = grids.arctan(0.7) if name == "arctan" else name
        x = sd.solve(p.probability_flow(target.score), torch.full((1, 1), target.law(p.T)[1], dtype=torch.float64), "ddim", steps=20, grid=recipe).x
        errors[name] = abs(float(x) / target.law(p.eps)[1] - 1)
    assert errors["arctan"] < 0.7 * min(error for name, error in errors.items() if name != "arctan"), errors


SINGULAR = {
    "two equal nodes": ([1.0, 0.5, 0.5, 1e-3], r"grid\[2\] = 0.5 does not go on from grid\[1\] = 0.5"),
    "sigma = 0 in the middle": ([1.0, 0.0, 1e-3], r"grid\[2\] = 0.001 does not go on from grid\[1\] = 0.0"),
    "NaN": ([1.0, float("nan"), 1e-3], r"grid\[1\] = nan is not finite"),
    "back and forth": ([1.0, 0.2, 0.3, 1e-3], r"grid\[2\] = 0.3 does not go on"),
    "one node": ([1.0], "at least 2"),
    "a recipe with another number of steps": (lambda p, t0, t1, n: sd.Grid((t0, t1)), "made 1 steps; expected 7"),
    "a recipe with a negative option": (lambda p, t0, t1, n: grids.karras(-1.0), "rho=-1.0; expected a finite number > 0"),
}


@pytest.mark.parametrize("case", SINGULAR)
def test_a_singular_grid_is_refused_with_its_index_before_the_first_call(case: str) -> None:
    grid, message = SINGULAR[case]
    calls: list[int] = []
    problem = sd.VPSDE().reverse(lambda x, t: calls.append(1) or -x)
    with pytest.raises(ValueError, match=message):
        sd.solve(problem, torch.ones(1, 2), "ddim", grid=grid, steps=7 if callable(grid) else None)
    assert not calls


@pytest.mark.parametrize("p", PROCESSES.values(), ids=PROCESSES)
@pytest.mark.parametrize("option", ["karras rho", "power rho", "arctan data_std"])
def test_an_option_that_floats_cannot_follow_is_named(option: str, p: sd.Process) -> None:
    """Down to denormal numbers and up to the largest: a grid, or a ValueError that says which option it was; forwards and backwards."""
    name, argument = option.split()
    refused = set()
    for value in (5e-324, 1e-100, 1e-3, 0.01, 0.05, 0.3, 1.0, 50.0, 1e17, 1e308):
        recipe = getattr(grids, name)(**{argument: value})
        for ends in ((p.T, p.eps), (p.eps, p.T)):
            try:
                assert len(make_grid(recipe, p, *ends, 10)) == 10
            except ValueError as error:
                assert f"{argument}={value!r} makes nodes" in str(error) and f"nearer to {argument}=" in str(error)
                refused.add(value)
    assert 5e-324 in refused and refused.isdisjoint({0.3, 1.0, 50.0}) and (name != "karras" or {1e-3, 1e17} <= refused)


def test_power_of_negative_times_and_a_recipe_that_makes_no_grid() -> None:
    ode, x = sd.ODE(lambda x, t: -x, interval=(-1.0, 1.0)), torch.ones(1, 1)
    with pytest.raises(ValueError, match="roots of the time"):
        sd.solve(ode, x, "euler", steps=3, grid="power")
    with pytest.raises(TypeError, match="made a list"):
        sd.solve(ode, x, "euler", steps=3, grid=lambda p, t0, t1, n: [t0, t1])


def test_spacings() -> None:
    p = sd.EDM()
    ts = torch.tensor(make_grid("karras", p, p.T, p.eps, 17).ts)
    ramp = torch.linspace(0, 1, 18, dtype=torch.float64)
    assert torch.allclose(ts.double(), (80 ** (1 / 7) + ramp * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7)
    vp = sd.VPSDE()
    levels = vp.log_snr(torch.tensor(make_grid("log_snr", vp, 1.0, 1e-3, 10).ts, dtype=torch.float64))
    assert torch.allclose(levels.diff(), levels.diff().mean().expand(10), rtol=1e-9)
    assert torch.allclose(torch.tensor(make_grid("uniform", None, 0.0, 1.0, 4).ts), torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0]))


def test_the_default_grid_is_the_process_s_own() -> None:
    for p in PROCESSES.values():
        ts = sd.solve(p.reverse(lambda x, t: -x), torch.zeros(1, 1), "ddim", steps=5, save="all").ts
        assert ts.tolist() == list(make_grid(p.default_grid, p, p.T, p.eps, 5).ts)


def test_own_times_and_saved_states() -> None:
    """The state at a saved node is the state of a shorter solve, and the end is the end."""
    ode = sd.ODE(lambda x, t: -x * torch.cos(t), interval=(0.0, 2.0))
    x, times = torch.ones(3, 2), [0.0, 0.1, 0.5, 1.2, 2.0]
    solution = sd.solve(ode, x, "heun", grid=times, save=[1.2, 0.0, 0.5])
    assert solution.ts.tolist() == [0.0, 0.5, 1.2]
    assert torch.equal(solution.xs[0], x)
    assert torch.equal(solution.xs[2], sd.solve(ode, x, "heun", grid=times[:4], interval=(0.0, 1.2)).x)
    everything = sd.solve(ode, x, "heun", grid=times, save="all")
    assert torch.equal(everything.xs[-1], everything.x) and torch.equal(everything.x, solution.x)
    assert sd.solve(ode, x, "heun", grid=times).xs is None


def test_nfe_budget_and_denoise() -> None:
    p = sd.VPSDE()
    problem, x = p.reverse(sd.as_score(lambda x, t: x, p, predicts="epsilon")), torch.ones(2, 3)
    for method, nfe, seen in [("pc", 11, 10), ("ddim", 7, 7), ("rk45", 20, 19), ("heun", 9, 8)]:
        assert sd.solve(problem, x, method, nfe=nfe, seed=0).nfe == seen
    plain, denoised = (sd.solve(problem, x, "ddim", steps=4, denoise=d) for d in (False, True))
    assert (plain.nfe, denoised.nfe) == (4, 5)
    assert torch.allclose(denoised.x, problem.score.denoise(plain.x, p.eps))


def test_callback_and_progress(capsys: pytest.CaptureFixture[str]) -> None:
    moments: list[sd.Moment] = []
    ode = sd.ODE(lambda x, t: -x)
    solution = sd.solve(ode, torch.ones(2, 1), "euler", steps=4, callback=moments.append, progress=True)
    assert [(m.step, m.t) for m in moments] == [(1, 0.25), (2, 0.5), (3, 0.75), (4, 1.0)]
    assert torch.equal(moments[-1].x, solution.x)
    assert "4/4" in capsys.readouterr().err
    sd.solve(ode, torch.ones(2, 1), "rk45", progress=True, callback=moments.append)
    assert moments[-1].t.tolist() == [1.0, 1.0]
    assert "100/100" in capsys.readouterr().err


def test_solution_reads_well() -> None:
    solution = sd.solve(sd.ODE(lambda x, t: -x), torch.ones(2, 1), "euler", steps=4)
    assert repr(solution) == "Solution(x=(2, 1), nfe=4, status={ok: 2})"
    assert solution.status.tolist() == ["ok", "ok"] and solution.failures() == []
    assert "rk45" in repr(sd.methods()) and "Dormand" in repr(sd.methods())


def test_a_row_that_breaks_in_denoising_is_not_ok() -> None:
    p = sd.VPSDE()

    def network(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return torch.where((t < 2e-3)[:, None] & (x[:, :1] > 0), torch.nan, 0.1 * x)

    with pytest.warns(sd.SolveWarning, match=r"sample 1: non_finite at t = 0\.001"):
        solution = sd.solve(p.reverse(sd.as_score(network, p, predicts="epsilon")), torch.tensor([[-1.0], [1.0]]), "ddim", steps=4, denoise=True)
    assert solution.status.tolist() == ["ok", "non_finite"]


def test_float32_times_and_half_states() -> None:
    """A grid from torch.linspace has the interval's ends to float32, and a large half-precision state is no failure."""
    p = sd.VPSDE()
    solution = sd.solve(p.reverse(lambda x, t: -x), torch.ones(2, 3), "ddim", grid=torch.linspace(1, 1e-3, 11), save=torch.tensor([0.1009]))
    assert solution.ts.tolist() == pytest.approx([0.1009])
    assert sd.solve(sd.ODE(lambda x, t: 0 * x), torch.ones(2, 3, 160, 160).half(), "euler", steps=2).ok().all()


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"grid": [10**400, 1]}, "expected times"),
        ({"interval": (10**400, 1)}, "expected two times"),
        ({"eta": 10**400}, "expected a number from 0"),
        ({"method": "sa_solver", "tau": 10**400}, "expected a number >= 0"),
        ({"method": "tsit5", "rtol": 10**400}, "rtol="),
    ],
)
def test_integers_beyond_the_floats_are_refused(how: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sd.solve(sd.VPSDE().reverse(lambda x, t: -x), torch.ones(2, 2), **{"method": "ddim", **how})
    with pytest.raises(ValueError, match="expected a finite number > 0"):
        sd.Range(data_std=10**400)
