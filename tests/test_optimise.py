"""optimize_grid: nearer to the flow than any named grid, the same for the same seed, and a file that is trusted with nothing."""

from __future__ import annotations

import functools
import itertools
import json
import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from problems import PROCESSES, GaussianTarget, mixture_score
from torch import Tensor

import sdesolve as sd
from sdesolve import exam
from sdesolve._gauss_newton import GaussNewton, Part, cost_of, weights_of
from sdesolve.grids import GRIDS
from sdesolve.optimise import Search, centred, followed

TARGET = exam.mixture_2d()
STD = float(TARGET.variance.mean().sqrt())


def flow(process: str = "VP") -> sd.ProbabilityFlow:
    return PROCESSES[process].probability_flow(mixture_score(TARGET, PROCESSES[process]))


@functools.cache
def optimised(method: str, nfe: int, process: str = "VP", **options: Any) -> sd.OptimisedGrid:
    return sd.optimize_grid(flow(process), method, nfe=nfe, shape=(2,), dtype=torch.float64, **options)


@functools.cache
def fresh(process: str) -> tuple[Tensor, Tensor]:
    """Draws that no search has seen, and where the flow takes them."""
    p = PROCESSES[process]
    x = p.prior((2000, 2), seed=77, dtype=torch.float64)
    start = p.alpha(p.T) * TARGET.mean + p.sigma(p.T) / p.prior_std * x
    return x, sd.solve(flow(process), start, "tsit5", rtol=1e-5, atol=1e-5, denoise=True).x


def distance(process: str, method: str, **how: Any) -> float:
    """Mean distance to where the flow takes each draw."""
    x, ends = fresh(process)
    return float((sd.solve(flow(process), x, method, **how).x - ends).norm(dim=1).mean())


@pytest.mark.parametrize(("method", "nfe", "process", "gain"), [
    ("ddim", 5, "VP", 3.0),
    ("ddim", 10, "VP", 2.0),
    ("ddim", 8, "flow", 1.4),
    ("heun", 9, "EDM", 20.0),
    ("heun", 9, "VE", 5.0),
    ("euler", 10, "flow", 1.4),
])
def test_it_beats_the_default_grid_on_fresh_draws(method: str, nfe: int, process: str, gain: float) -> None:
    """By the stated factor; and every named grid over the whole interval, and over the best of four ranges of noise."""
    grid = optimised(method, nfe, process)
    found = distance(process, method, grid=grid)
    assert distance(process, method, nfe=nfe, denoise=True) > gain * found
    ranges = [sd.Range(STD, TARGET.mean, first=first, last=last) for first in (5, 20) for last in (0.05, 0.15)]
    others = [{"denoise": True}, *({"interval": span} for span in ranges)]
    assert found < 1.02 * min(distance(process, method, nfe=nfe, grid=g, **how) for g, how in itertools.product(GRIDS, others))
    assert grid.error < grid.baseline


@pytest.mark.parametrize("method", ["ddim", "deis"])
def test_what_it_says_of_itself_is_told_by_draws_that_chose_nothing(method: str) -> None:
    """The last 128 of 384; the walk ends as it does for whoever is given the grid."""
    p, grid = PROCESSES["VP"], optimised(method, 5)
    x = p.prior((384, 2), seed=0, dtype=torch.float64)
    ends = followed(flow(), centred(flow(), x), "tsit5", 1e-4)
    apart = sd.solve(flow(), x[256:], method, grid=grid).x - ends[256:]
    assert grid.error == pytest.approx(float(apart.norm(dim=1).mean()) / 2**0.5, rel=1e-6)


def test_what_is_fitted_to_is_followed_to_no_noise() -> None:
    """As near to where the flow ends ten times further down as a tolerance of 1e-6 can tell; with Tweedie's formula there it is not."""
    law, p = exam.ring_2d(), PROCESSES["VP"]
    x = p.prior((64, 2), seed=0, dtype=torch.float64)
    problem, further = (p.probability_flow(law.score(p), eps=eps) for eps in (p.eps, 1e-2 * p.eps))
    exact = sd.solve(further, x, "dop853", rtol=1e-8, atol=1e-8, denoise=True).x
    plain = sd.solve(problem, x, "dop853", rtol=1e-8, atol=1e-8, denoise=True).x
    assert float((followed(problem, x, "tsit5", 1e-7) - exact).abs().max()) < 0.05 * float((plain - exact).abs().max())


def test_the_nodes_are_a_minimum() -> None:
    """The denoised ends of the seen draws get no nearer by any node that moves a little."""
    process = PROCESSES["VP"]
    x = process.prior((384, 2), seed=0, dtype=torch.float64)
    search = Search(flow(), "ddim", {}, 5, True, x, sd.solve(flow(), x, "tsit5", rtol=1e-4, atol=1e-4, denoise=True).x, sd.Range(1.0))
    assert torch.equal(torch.cat([search.seen.x, search.held.x, search.told.x]), x)  # those that judge are not those that were fitted
    start = search.pieces(search.default().ts)
    z = search.refined(start, lambda: None)
    here = search.cost(z, search.seen)
    assert here < 0.5 * search.cost(start, search.seen)
    for i, move in itertools.product(range(len(z)), (-0.1, 0.1)):
        assert search.cost(z + move * torch.eye(len(z), dtype=z.dtype)[i], search.seen) > 0.99 * here


def test_the_weights_are_the_derivative_of_the_cost() -> None:
    apart = 0.3 * torch.randn(20, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    d = torch.randn(20, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    slope = (cost_of(apart + 1e-6 * d, 0.2) - cost_of(apart - 1e-6 * d, 0.2)) / 2e-6
    assert slope == pytest.approx(float((2 * weights_of(apart, 0.2) * (apart * d).mean(1)).mean()), rel=1e-6)


class Leaping(GaussNewton):
    """Nineteen rows at the distance |z - 1|, and one that is right for z < 0.01 and then 5 away."""

    difference = 0.02
    seen = held = Part(torch.zeros(20, 1), torch.zeros(20, 1))

    def apart(self, z: Tensor, part: Part) -> Tensor:
        return torch.where(torch.arange(20)[:, None] == 0, 5.0 * (z > 0.01), z - 1)


def test_a_draw_that_leaps_neither_steers_nor_outweighs_the_others() -> None:
    """Its difference is no derivative, which would allow no step; and the half that judges counts one distance of twenty: in squares z = 0 would be kept."""
    search, start = Leaping(), torch.zeros(1, dtype=torch.float64)
    assert search.cost(start, search.held) == pytest.approx(0.95) and search.cost(start + 1, search.held) == pytest.approx(0.25)
    assert float(search.refined(start, lambda: None)) == pytest.approx(1.0, abs=0.05)


@given(z=st.lists(st.floats(-6, 6), min_size=9, max_size=9), denoise=st.booleans(), process=st.sampled_from(sorted(PROCESSES)))
def test_pieces_make_nodes_in_order(z: list[float], denoise: bool, process: str) -> None:
    p = PROCESSES[process]
    draws = torch.zeros(6, 2, dtype=torch.float64)
    draws[::2] = 1
    steps = 7 if denoise else 8
    search = Search(flow(process), "ddim", {}, steps, denoise, draws, draws, sd.Range(1.0))
    pieces = torch.tensor(z, dtype=torch.float64)
    grid = search.grid(pieces)
    assert len(grid) == steps and grid.ts[0] <= p.T and grid.ts[-1] >= p.eps and grid.ts[0] > grid.ts[-1]
    assert denoise or grid.ts[-1] == p.eps
    assert torch.allclose(torch.softmax(search.pieces(grid.ts), 0), torch.softmax(pieces, 0), atol=2e-3)


@pytest.mark.parametrize("denoise", [True, False])
@pytest.mark.parametrize("method", ["unipc", "deis", "dpmpp_3m"])
def test_no_search_ends_in_a_grid_that_is_refused(method: str, denoise: bool) -> None:
    """A step of Gauss-Newton may ask for any pieces: those of a method that divides by its steps stay within what it takes."""
    x = PROCESSES["VP"].prior((24, 2), seed=0)
    search = Search(flow(), method, {}, 6, denoise, x, x, sd.Range(1.0))
    for thin in (1, 2, 6, slice(2, 4), slice(1, 6)):
        z = torch.zeros(7 + denoise, dtype=torch.float64)
        z[thin] = -20.0
        assert search.cost(z, search.seen) < math.inf


def test_the_same_seed_the_same_grid() -> None:
    again = sd.optimize_grid(flow(), "ddim", nfe=5, shape=(2,), dtype=torch.float64)
    assert again == optimised("ddim", 5)
    other = sd.optimize_grid(PROCESSES["VP"].reverse(mixture_score(TARGET, PROCESSES["VP"])), "ddim", nfe=5, shape=(2,), dtype=torch.float64, seed=1)
    assert other.ts != again.ts
    assert torch.tensor(other.ts).log() == pytest.approx(torch.tensor(again.ts).log(), abs=0.5)


def test_every_call_is_counted(capsys: pytest.CaptureFixture[str]) -> None:
    """By a hook; the search is seen on a bar."""

    class Network(torch.nn.Module):
        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return mixture_score(TARGET, PROCESSES["VP"])(x, t)

    network, rows = Network(), list[int]()
    network.register_forward_hook(lambda module, inputs, output: rows.append(len(inputs[0])))
    grid = sd.optimize_grid(PROCESSES["VP"].probability_flow(network), "ddim", nfe=4, shape=(2,), samples=32, progress=True)
    assert (grid.calls, grid.rows) == (len(rows), sum(rows))
    assert "26/26" in capsys.readouterr().err


@pytest.mark.parametrize("process", ["VP", "VE"])
def test_the_reference_starts_from_the_data_s_mean(process: str) -> None:
    """From the law at T, alpha m + sigma x / prior_std, and not from the prior about zero."""
    p = PROCESSES[process]
    target, x = GaussianTarget(p), p.prior((64, 2), seed=0, dtype=torch.float64)
    mean, _ = target.law(p.T)
    moved = centred(p.probability_flow(target.score), x)
    assert torch.allclose(moved - p.sigma(p.T) / p.prior_std * x, torch.full_like(x, float(mean)), rtol=0.05, atol=0)


def test_what_is_kept_is_best_for_the_held_back_half() -> None:
    """With 4 draws to learn from the steps soon serve these alone."""
    torch.manual_seed(0)
    problem, x = flow(), PROCESSES["VP"].prior((12, 2), seed=5, dtype=torch.float64)
    ends = sd.solve(problem, x, "tsit5", denoise=True).x
    search, path = Search(problem, "ddim", {}, 5, True, x, ends, sd.Range.of(ends, directions=0)), list[tuple[float, Tensor]]()
    cost = search.cost
    search.cost = lambda z, part: path.append((cost(z, part), z)) or path[-1][0]  # type: ignore[method-assign]
    found = search.refined(next(search.candidates()), lambda: None)
    assert min(path, key=lambda at: at[0])[1] is not path[-1][1]
    assert cost(found, search.held) <= min(at for at, _ in path) / 0.999


def test_without_a_denoiser_the_end_stays() -> None:
    grid = optimised("heun", 8, denoise=False)
    assert grid.ts[-1] == PROCESSES["VP"].eps and len(grid) == 4 and not grid.denoise
    x, _ = fresh("VP")
    solution = sd.solve(flow(), x[:5], "heun", grid=grid)
    assert solution.nfe == 8
    assert torch.equal(solution.x, sd.solve(flow(), grid.start(PROCESSES["VP"], x[:5], grid.ts[0]), "heun", grid=grid.ts, interval=(grid.ts[0], grid.ts[-1])).x)


def test_a_grid_that_was_saved(tmp_path: Path) -> None:
    grid = optimised("ddim", 5)
    loaded = sd.OptimisedGrid.load(grid.save(tmp_path / "grids" / "ddim.json"))
    assert loaded == grid
    assert [file.name for file in (tmp_path / "grids").iterdir()] == ["ddim.json"]
    x, _ = fresh("VP")
    assert torch.equal(sd.solve(flow(), x, "ddim", grid=loaded).x, sd.solve(flow(), x, "ddim", grid=grid).x)
    assert sd.solve(flow(), x, loaded.method, grid=loaded).nfe == loaded.nfe == 5


def test_with_the_data_s_moments_it_starts_from_these(tmp_path: Path) -> None:
    """In 64 dimensions with strong directions: nearer than from the mean and standard deviation, and the same from its file."""
    law, p = exam.mixture_64d(), PROCESSES["VP"]
    problem, data = p.probability_flow(law.score(p)), sd.Range.of(law.sample(8192, seed=9), directions=8)
    plain, directed = (sd.optimize_grid(problem, "unipc", nfe=5, shape=(64,), data=given) for given in (None, data))
    x = p.prior((1000, 64), seed=77)
    ends = sd.solve(problem, x, "tsit5", rtol=1e-5, atol=1e-5, denoise=True).x

    def error(grid: sd.OptimisedGrid) -> float:
        return float((sd.solve(problem, x, "unipc", grid=grid).x - ends).norm(dim=1).median())

    assert error(plain) > 1.2 * error(directed)
    assert plain.directions == () and len(directed.directions) == 8
    t = directed.ts[0]
    assert torch.allclose(directed.start(p, x, t), data.start(p, x, t), rtol=1e-4, atol=1e-4)
    assert sd.OptimisedGrid.load(directed.save(tmp_path / "grid.json")) == directed
    with pytest.raises(ValueError, match="samples of 64 numbers and x has 2"):
        sd.solve(p.probability_flow(lambda x, t: -x), torch.zeros(1, 2), "unipc", grid=directed)


def test_what_is_worse_than_the_default_grid_is_said_to_be() -> None:
    """Moments of other data start a solve where this model makes none."""
    others = sd.Range.of(TARGET.sample(500, seed=1) + 50)
    with pytest.warns(sd.SolveWarning, match=r"err by .* on draws that have chosen nothing, and the default grid by .*: data=Range\(.* or leave data out"):
        grid = sd.optimize_grid(flow(), "unipc", nfe=5, shape=(2,), samples=64, data=others)
    assert grid.error > grid.baseline
    with warnings.catch_warnings():
        warnings.simplefilter("error", sd.SolveWarning)
        sd.optimize_grid(flow(), "unipc", nfe=5, shape=(2,), samples=32)


def changed(**entries: Any) -> Callable[[dict[str, Any]], str]:
    return lambda content: json.dumps({**content, **entries})


HOSTILE: dict[str, tuple[Callable[[dict[str, Any]], str], str]] = {
    "not JSON": (lambda c: "ts = [1, 2]", "is not JSON"),
    "deep": (lambda c: "[" * 100_000, "is not JSON"),
    "NaN": (lambda c: json.dumps({**c, "ts": [1.0, float("nan")]}), "NaN is not a JSON number"),
    "a list": (lambda c: "[]", "holds a list; expected the entries"),
    "another format": (changed(format="pickle"), 'and "format": "sdesolve.OptimisedGrid/2", as OptimisedGrid.save'),
    "an entry more": (changed(code="import os"), "holds baseline, calls, code, .*; expected the entries baseline, calls, data_mean"),
    "an entry less": (lambda c: json.dumps({k: v for k, v in c.items() if k != "nfe"}), "holds baseline, .*method, options, .*; expected the entries .*method, nfe, options"),
    "times as text": (changed(ts=["1.0", "0.5"]), "ts = "),
    "rising times": (changed(ts=[0.1, 0.5]), "ts = .*expected falling"),
    "two equal times": (changed(ts=[0.9, 0.5, 0.5, 0.1]), r"grid\[2\] = 0.5 does not go on"),
    "a time of zero": (changed(ts=[0.9, 0.0]), "ts = "),
    "no width": (changed(data_std=0.0), "data_std = 0.0; expected a number > 0"),
    "a mean of text": (changed(data_mean=["0"]), "data_mean = "),
    "directions of text": (changed(directions=["0"]), "directions = .*expected lists of numbers, of one length"),
    "directions of two lengths": (changed(directions=[[1.0, 2.0], [1.0]]), "directions = .*of one length"),
    "a truth value for a number": (changed(nfe=True), "nfe = True"),
    "an infinite error": (lambda c: json.dumps({**c, "error": 1}).replace('"error": 1', '"error": 1e999'), "error = inf"),
    "a time beyond the floats": (changed(ts=[10**400, 1]), "ts = .*expected falling"),
    "a width beyond the floats": (changed(data_std=10**400), "data_std = .*expected a number > 0"),
    "an unknown method": (changed(method="dim"), "'dim' is not known as method.*Did you mean 'ddim'"),
    "a method that draws noise": (changed(method="euler_maruyama"), "draws noise"),
    "an unknown option": (changed(options={"colour": 1}), "'colour' is not known as an option of method='ddim'"),
    "an option of another type": (changed(options={"eta": "much"}), "eta='much'"),
    "options that are more": (changed(options={"f": {"__class__": 1}}), "options = "),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_file_is_trusted_with_nothing(case: str, tmp_path: Path) -> None:
    corrupt, message = HOSTILE[case]
    path = optimised("ddim", 5).save(tmp_path / "grid.json")
    path.write_text(corrupt(json.loads(path.read_text())))
    with pytest.raises(ValueError, match=message):
        sd.OptimisedGrid.load(path)


def test_a_file_that_is_none_or_too_large(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is not a file"):
        sd.OptimisedGrid.load(tmp_path)
    (tmp_path / "large").write_bytes(b" " * ((1 << 24) + 1))
    with pytest.raises(ValueError, match="at most 16777216 bytes"):
        sd.OptimisedGrid.load(tmp_path / "large")


def search(method: str = "ddim", problem: Any = None, **how: Any) -> Callable[[], Any]:
    return lambda: sd.optimize_grid(problem or flow(), method, **{"nfe": 5, "shape": (2,), **how})


def untouched(x: Tensor, t: Tensor) -> Tensor:
    raise AssertionError("the network was called")


UNTOUCHED = PROCESSES["VP"].probability_flow(untouched)


def solved(**how: Any) -> Callable[[], Any]:
    return lambda: sd.solve(**{"problem": flow(), "x": torch.ones(2, 2), "method": "ddim", "grid": optimised("ddim", 5), **how})


BAD: dict[str, tuple[Callable[[], Any], str]] = {
    "a stochastic method": (search("euler_maruyama"), "draws noise.*expected a deterministic method"),
    "too few calls": (search(nfe=1), "smallest that works is nfe=2"),
    "calls that are no number": (search(nfe=2.5), "nfe=2.5; expected an integer"),
    "another package's method": (search("scipy:RK45"), "expected the name of one of sdesolve.methods"),
    "no such method": (search("dim"), "Did you mean 'ddim'"),
    "an equation without noise levels": (search(problem=sd.ODE(lambda x, t: -x)), "problem is a ODE"),
    "too few samples": (search(samples=4), "samples=4; expected an integer >= 16"),
    "a shape that is a number": (search(shape=2), r"shape=2; expected the shape of one sample"),
    "a shape of none": (search(shape=(0,)), r"shape=\(0,\); expected the shape of one sample"),
    "a shape of one number": (search(problem=UNTOUCHED, shape=()), r"shape=\(\); expected the shape of one sample"),
    "a model of one point": (
        search(problem=PROCESSES["VP"].probability_flow(sd.as_score(lambda x, t: torch.zeros_like(x), PROCESSES["VP"], predicts="x0"))),
        "problem takes all draws to one point.*; expected the score of a law with some width",
    ),
    "no such device": (search(device="nope"), "device='nope' is not to be had"),
    "a dtype that is none": (search(dtype="float"), "dtype='float'; expected a real floating dtype"),
    "a reference on a grid": (search(problem=UNTOUCHED, reference="ddim"), "reference='ddim' does not choose its steps"),
    "a reference that draws noise": (search(problem=UNTOUCHED, reference="adaptive"), "method='adaptive' solves SDEs"),
    "a tolerance of text": (search(problem=UNTOUCHED, tolerance="a"), "tolerance='a' in torch.float32; expected a number"),
    "a precision below the tolerance": (search(problem=UNTOUCHED, dtype=torch.float16), "tolerance=0.0001 in torch.float16; .* as in tolerance=0.002"),
    "denoise a word": (search(problem=UNTOUCHED, denoise="no"), "denoise='no'; expected True"),
    "data that are images": (search(problem=UNTOUCHED, data=torch.zeros(8, 2)), "data is a Tensor; expected their moments, as in data=sd.Range.of"),
    "data of another shape": (search(problem=UNTOUCHED, data=sd.Range(1.0, directions=torch.eye(3)[:1])), r"directions have shape \(1, 3\)"),
    "another process": (solved(problem=flow("VE")), "was optimised for VPSDE"),
    "another shape": (solved(x=torch.ones(2, 5)), "samples of 2 numbers and x has 5"),
    "an interval besides": (solved(interval=(1.0, 0.1)), "leave interval out"),
    "steps besides": (solved(steps=5), "steps and nfe must be left out"),
    "a plain equation": (solved(problem=sd.ODE(lambda x, t: -x), method="euler"), "this problem has none"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_does_not_fit_is_refused_before_the_first_call(case: str) -> None:
    attempt, message = BAD[case]
    with pytest.raises((ValueError, TypeError), match=message):
        attempt()
