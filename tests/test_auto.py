"""method="auto": what it takes, and that nothing fixed is much better."""

from __future__ import annotations

import functools
import itertools
import math
from typing import Any

import pytest
import torch
from problems import PROCESSES
from torch import Tensor

import sdesolve as sd
from sdesolve import exam
from sdesolve.optimise import RACE


def low_rank() -> exam.Mixture:
    """Six clusters on planes of rank 8 in 256 dimensions."""
    draws = torch.Generator().manual_seed(3)
    normal = lambda *shape: torch.randn(*shape, generator=draws, dtype=torch.float64)  # noqa: E731
    scale = 0.6 * 0.7 ** torch.arange(8, dtype=torch.float64)
    return exam.Mixture(torch.ones(6), [exam.Gaussian(0.35 * normal(256), factor=normal(256, 8) * scale, floor=0.05) for _ in range(6)])


TARGETS = {"2d": exam.mixture_2d(), "64d": exam.mixture_64d(), "ring": exam.ring_2d(), "256d": low_rank()}
FEW, MANY = [("2d", "VP"), ("64d", "VP"), ("ring", "VP"), ("2d", "flow"), ("2d", "subVP")], [("256d", "VP")]
BUDGETS = (5, 10, 20, 35)
FIXED: list[tuple[str, dict[str, Any]]] = [
    *((m, {}) for m in ("ddim", "heun", "edm", "dpmpp_2s", "dpmpp_2m", "dpmpp_3m", "unipc", "deis", "ipndm")),
    *(("unipc", {"order": 3}), ("ipndm", {"order": 3}), ("deis", {"order": 4}), ("deis", {"variant": "log_rho"})),
]


def flow_of(target: str, process: str) -> tuple[sd.ProbabilityFlow, Tensor, sd.Range]:
    """The flow, draws of the prior, and the range of the data."""
    p, law = PROCESSES[process], TARGETS[target]
    flow, x = p.probability_flow(law.score(p)), p.prior((48 if target == "256d" else 300, *law.event), seed=5, dtype=torch.float64)
    return flow, x, sd.Range(float(law.variance.mean().sqrt()), law.mean)


WHERE = ("directions", pytest.param("range", marks=pytest.mark.slow), "whole")


@functools.cache
def worse(target: str, process: str, over: str) -> dict[tuple[int, Any], float]:
    """(calls, choice) -> mean distance to where the flow takes the same draws, as a ratio to that of the best of thirteen methods on two or three grids."""
    flow, x, span = flow_of(target, process)
    directed = sd.Range(span.data_std, span.data_mean, directions=sd.Range.of(TARGETS[target].sample(8192, seed=6, dtype=torch.float64)).directions)
    where: dict[str, Any] = {"whole": {"denoise": "extrapolate"}, "range": {"interval": span}, "directions": {"interval": directed}}[over]
    start = {} if over == "whole" else {"interval": sd.Range(span.data_std, span.data_mean, 1e9, 1e-9)}
    further = flow.process.probability_flow(flow.score, eps=0.1 * flow.process.eps)
    ends = sd.solve(further, x, "tsit5", rtol=1e-5, atol=1e-5, **{"denoise": True, **start}).x  # from where a range starts: from the data's mean
    found: dict[tuple[int, Any], float] = {}
    grids = ("log_snr", "karras", *(() if over == "range" else ("uniform",)))  # over a range without directions equal steps of time are twice as near for rectified flow
    for nfe in BUDGETS:
        tried: dict[Any, dict[str, Any]] = {(m, *o.values(), grid): {"method": m, "grid": grid, **o} for m, o in FIXED for grid in grids}
        away = {choice: float((sd.solve(flow, x, nfe=nfe, **where, **how).x - ends).norm(dim=1).mean()) for choice, how in {**tried, "auto": {"method": "auto"}}.items()}
        best = min(away[choice] for choice in tried)
        found |= {(nfe, choice): error / best for choice, error in away.items()}
    return found


@pytest.mark.parametrize("over", WHERE)
@pytest.mark.parametrize(("target", "process"), [*FEW, *MANY])
def test_nothing_fixed_is_much_better(target: str, process: str, over: str) -> None:
    excess = [worse(target, process, over)[nfe, "auto"] for nfe in BUDGETS]
    mean = 1.55 if over == "directions" else 1.45  # of rectified flow, in the plane, equal steps of time are better; over many problems they aren't
    assert max(excess) < 2.1 and sum(excess) / 4 < mean, excess


@pytest.mark.parametrize("over", WHERE)
@pytest.mark.parametrize("problems", [FEW, MANY], ids=["few", "many"])
def test_nothing_fixed_is_better_over_all_problems(problems: list[tuple[str, str]], over: str) -> None:
    """Over the budgets together, and at each of them to a seventh or, where that is one problem, to a half."""
    tables = [worse(*problem, over) for problem in problems]

    def mean(choice: Any, budgets: tuple[int, ...]) -> float:
        return math.exp(sum(math.log(table[nfe, choice]) for table in tables for nfe in budgets) / len(tables) / len(budgets))

    fixed = {choice for _, choice in tables[0]} - {"auto"}
    assert mean("auto", BUDGETS) < min(mean(choice, BUDGETS) for choice in fixed)
    for nfe in BUDGETS:
        assert mean("auto", (nfe,)) < (1.15 if len(tables) > 1 else 1.5) * min(mean(choice, (nfe,)) for choice in fixed), nfe


def test_what_it_takes() -> None:
    p = PROCESSES["VP"]
    flow, x = p.probability_flow(lambda x, t: -x), torch.ones(2, 3)

    def taken(problem: Any = flow, x: Tensor = x, **how: Any) -> tuple[str, int, int | None]:
        solution = sd.solve(problem, x, "auto", seed=0, **how)
        return solution.stats["method"], solution.nfe if isinstance(solution.nfe, int) else 0, solution.stats["steps"]

    assert [taken(nfe=n) for n in (1, 2, 9, 10, 24, 25)] == [
        ("deis", 1, 1), ("deis", 2, 1), ("deis", 9, 8), ("ipndm", 10, 9), ("deis", 24, 23), ("unipc", 25, 24)
    ]
    assert [taken(nfe=n, interval=sd.Range(1.0))[0] for n in (9, 10, 24, 25)] == ["deis", "ipndm", "ipndm", "unipc"]
    directed = sd.Range(1.0, directions=torch.eye(3)[:1])
    assert [taken(nfe=n, interval=directed)[0] for n in (5, 12, 13, 100)] == ["deis", "deis", "unipc", "unipc"]
    assert taken(nfe=1, interval=directed) == ("deis", 1, 1)  # of which none is left for the denoiser
    assert [taken(steps=n, interval=directed) for n in (1, 11, 12)] == [("deis", 2, 1), ("deis", 12, 11), ("unipc", 13, 12)]  # the last call is one of the calls
    assert taken(sd.EDM(sigma_max=330.0).probability_flow(lambda x, t: -x), nfe=20)[0] == "deis"  # whose time is its noise: equal steps of it would be none at the data
    image = torch.ones(2, 1, 16, 16)
    assert [taken(x=image, nfe=n)[0] for n in (9, 10, 17, 18)] == ["unipc", "ipndm", "ipndm", "unipc"]
    assert [taken(x=image, nfe=n, interval=sd.Range(1.0))[0] for n in (12, 13, 24, 25)] == ["deis", "ipndm", "ipndm", "unipc"]
    wide = PROCESSES["flow"].probability_flow(lambda x, t: -x)
    assert [taken(wide, nfe=n)[0] for n in (9, 10, 50)] == ["deis", "ipndm", "ipndm"]
    assert [taken(wide, nfe=n, interval=(0.9, 0.1))[0] for n in (50,)] == ["unipc"]  # of which the middle is not wide
    assert taken() == ("unipc", 50, 49)
    assert taken(steps=10, denoise=False) == ("ipndm", 10, 10)
    assert taken(p.reverse(lambda x, t: -x), nfe=8) == ("deis", 8, 7)
    assert taken(grid=[1.0, 0.5, 0.001]) == ("deis", 3, 2)
    assert taken(nfe=9, interval=(1e-3, 1.0)) == ("deis", 9, 9)  # from data to noise nothing is denoised
    assert taken(nfe=9, interval=(1.0, 1e-3)) == taken(nfe=9, interval=(1.0, 1e-4)) == ("deis", 9, 8)
    assert taken(nfe=9, interval=(1.0, 0.5)) == ("deis", 9, 9)  # nor where the data are not reached
    assert taken(sd.ODE(lambda x, t: -x))[0] == "tsit5"
    for noise, method in (("additive", "sra1"), ("diagonal", "sriw1"), ("scalar", "sriw1")):
        assert taken(sd.SDE(lambda x, t: -x, lambda x, t: torch.ones_like(x), noise=noise), steps=3)[0] == method
    assert taken(sd.SDE(lambda x, t: -x, lambda x, t: x[..., None], noise="general"), steps=3)[0] == "heun_sde"
    assert taken(sd.UnderdampedLangevin(lambda q, t: -q), torch.ones(2, 2, 3), steps=3)[0] == "baoab"


def test_an_interval_that_ends_early_ends_with_draws_of_that_time() -> None:
    """Not with E[x_0 | x_t], which is narrower by far."""
    (flow, x, _), t = flow_of("2d", "VP"), 0.5
    expected = (flow.process.alpha(t) ** 2 * TARGETS["2d"].variance.mean() + flow.process.sigma(t) ** 2).sqrt()
    assert float(sd.solve(flow, x, "auto", nfe=20, interval=(1.0, t)).x.std()) == pytest.approx(float(expected), rel=0.1)


def test_a_grid_of_one_s_own_is_kept() -> None:
    """Without one, many coordinates get the spacing of Karras et al., few get equal steps of the log-SNR."""
    p = PROCESSES["VP"]
    flow = p.probability_flow(lambda x, t: -x)
    for x, grid, options in ((torch.ones(2, 3), "log_snr", {"variant": "log_rho"}), (torch.ones(2, 256), "karras", {})):
        own = sd.solve(flow, x, "auto", nfe=6, save="all").ts
        assert torch.equal(own, sd.solve(flow, x, "deis", nfe=6, grid=grid, denoise=True, save="all", **options).ts)
        given = sd.solve(flow, x, "auto", nfe=6, grid="uniform", save="all").ts
        assert torch.equal(given, sd.solve(flow, x, "deis", nfe=6, grid="uniform", denoise=True, save="all").ts)


def test_with_an_optimised_grid_it_takes_the_grid_s_own_method() -> None:
    flow, x, _ = flow_of("2d", "VP")
    third = sd.optimize_grid(flow, "unipc", nfe=5, shape=(2,), dtype=torch.float64, samples=32, order=3)
    assert torch.equal(sd.solve(flow, x, "auto", grid=third).x, sd.solve(flow, x, "unipc", grid=third, order=3).x)


@functools.cache
def raced(nfe: int, target: str = "2d") -> sd.OptimisedGrid:
    flow, x, _ = flow_of(target, "VP")
    return sd.optimize_grid(flow, "auto", nfe=nfe, shape=x.shape[1:], samples=128)


@pytest.mark.parametrize(("target", "nfe"), [("2d", 5), ("2d", 10), ("64d", 5), ("ring", 5)])
def test_on_nodes_of_its_own_nothing_fixed_is_better(target: str, nfe: int) -> None:
    """On draws that the race has not seen, by more than the error, whatever the method, named grid and range."""
    flow, x, span = flow_of(target, "VP")
    ends = sd.solve(flow, x, "tsit5", rtol=1e-5, atol=1e-5, interval=sd.Range(span.data_std, span.data_mean, 1e9, 1e-9)).x
    own = (sd.solve(flow, x, "auto", grid=raced(nfe, target)).x - ends).norm(dim=1)
    spans = [sd.Range(span.data_std, span.data_mean, first, last) for first, last in ((None, None), (5.0, 0.5 / nfe), (20.0, 0.05))]
    for (method, options), grid, where in itertools.product(FIXED, ("log_snr", "karras"), spans):
        more = own - (sd.solve(flow, x, method, nfe=nfe, grid=grid, interval=where, **options).x - ends).norm(dim=1)
        assert float(more.mean()) < 2 * float(more.std()) / len(x) ** 0.5, (method, options, grid, where)


def test_the_race_is_won_by_the_nearest() -> None:
    """Which is not always UniPC; as near as it comes alone, and for less than the calls of six."""
    grid, flow = raced(5), flow_of("2d", "VP")[0]
    assert (grid.method, grid.options, grid.nfe) == ("deis", (("variant", "log_rho"),), 5)
    unipc, deis = (sd.optimize_grid(flow, m, nfe=5, shape=(2,), samples=128, **o) for m, o in (RACE[0], RACE[3]))
    assert grid.error < 1.1 * deis.error < 0.9 * unipc.error
    assert deis.rows < grid.rows < 5 * deis.rows


def test_options_are_refused() -> None:
    with pytest.raises(ValueError, match="chooses the method and its options"):
        sd.solve(PROCESSES["VP"].reverse(lambda x, t: -x), torch.ones(1, 2), "auto", nfe=5, order=3)
    with pytest.raises(ValueError, match=r"nfe=0; expected an integer >= 1"):
        sd.solve(PROCESSES["VP"].reverse(lambda x, t: -x), torch.ones(1, 2), "auto", nfe=0)
    with pytest.raises(ValueError, match=r"unknown argument\(s\) order: method='auto' chooses the method and its options"):
        sd.optimize_grid(PROCESSES["VP"].reverse(lambda x, t: -x), "auto", nfe=5, shape=(2,), order=3)


@pytest.mark.parametrize(("coordinates", "grid"), [(3, "log_snr"), (256, sd.grids.karras(20))])
def test_over_a_range_with_directions_the_grid_is_that_of_few_or_of_many_coordinates(coordinates, grid):
    p = sd.VPSDE()
    flow, x = p.probability_flow(lambda x, t: -x), p.prior((2, coordinates), seed=0)
    span = sd.Range(1.0, directions=torch.eye(coordinates)[:1])
    auto = sd.solve(flow, x, "auto", nfe=20, interval=span).x
    assert torch.equal(auto, sd.solve(flow, x, "unipc", order=3, nfe=20, grid=grid, interval=span).x)
