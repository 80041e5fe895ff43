"""One grid object: its nodes are the interval's ends and nothing else decides a step."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from problems import PROCESSES

import sdesolve as sd
from sdesolve.grids import GRIDS, make_grid


@given(name=st.sampled_from(sorted(GRIDS)), process=st.sampled_from(sorted(PROCESSES)), steps=st.integers(1, 1000))
def test_every_grid_spans_its_interval(name: str, process: str, steps: int) -> None:
    p = PROCESSES[process]
    grid = make_grid(name, p, p.T, p.eps, steps)
    assert len(grid) == steps
    assert (grid.ts[0], grid.ts[-1]) == (p.T, p.eps)
    assert all(a > b for a, b in zip(grid.ts, grid.ts[1:], strict=False))


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
