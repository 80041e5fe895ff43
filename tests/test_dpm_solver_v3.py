"""DPM-Solver-v3: exact where the model does what its statistics say, DPM-Solver++ without them, of its order with any; and what the statistics are."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from convergence import TwoModes, asymptotic_slope, rms
from problems import PROCESSES, GaussianTarget, mixture_score
from test_linear_samplers import Network
from test_no_sync import NoReads
from torch import Tensor

import sdesolve as sd
from sdesolve import exam
from sdesolve._loops import compiled, fixed
from sdesolve.grids import make_grid
from sdesolve.methods import make_method
from sdesolve.methods.dpm_solver_v3 import DPMSolverV3

VP = PROCESSES["VP"]
ORDERS = [(order, corrector) for order in (1, 2, 3) for corrector in (False, True)]


def tables(p: sd.Process, linear: Any, slope: Any, offset: Any, nodes: int = 400) -> tuple[sd.ModelStatistics, Tensor]:
    """Statistics of two coordinates, each a function of lambda, and lambda at the nodes."""
    first, last = (0.5 * float(p.log_snr(t)) for t in (p.T, p.eps))
    u = torch.linspace(first, last, nodes, dtype=torch.float64)
    return sd.ModelStatistics(repr(p), first, last, *(torch.stack([value(u) + 0 * u for value in pair], 1) for pair in (linear, slope, offset))), u


def constant(value: float) -> Callable[[Tensor], Tensor]:
    return lambda u: torch.full_like(u, value)


# -- the equations ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize(("order", "same", "options"), [(1, "ddim", {}), (2, "dpmpp_2m", {"variant": "heun"}), (3, "dpmpp_3m", {})])
def test_without_statistics_it_is_dpm_solver_pp(order: int, same: str, options: dict[str, Any], process: str) -> None:
    p = PROCESSES[process]
    problem, x = p.probability_flow(TwoModes(p).score), p.prior((20, 2), seed=0, dtype=torch.float64)
    for steps, grid in itertools.product((1, 2, 3, 7), ("log_snr", "karras")):
        expected = sd.solve(problem, x, same, steps=steps, grid=grid, **options).x
        got = sd.solve(problem, x, "dpm_solver_v3", steps=steps, grid=grid, order=order, corrector=False).x
        assert torch.allclose(got, expected, rtol=1e-10, atol=1e-10), (steps, grid)


@pytest.mark.parametrize("process", PROCESSES)
def test_tables_of_one_and_zero_are_no_statistics(process: str) -> None:
    """Through the quadrature, along a grid whose steps differ."""
    p = PROCESSES[process]
    problem, x = p.probability_flow(TwoModes(p).score), p.prior((20, 2), seed=0, dtype=torch.float64)
    plain, _ = tables(p, *([constant(value)] * 2 for value in (1.0, 0.0, 0.0)))
    for order, corrector in ORDERS:
        one, two = (sd.solve(problem, x, "dpm_solver_v3", steps=6, grid="karras", order=order, corrector=corrector, statistics=s).x for s in (None, plain))
        assert torch.allclose(one, two, rtol=1e-10, atol=1e-10), (order, corrector)


@pytest.mark.parametrize("order", [1, 2])
def test_other_tables_make_it_a_method_on_the_noise(order: int) -> None:
    problem, x = VP.probability_flow(TwoModes(VP).score), VP.prior((20, 2), seed=0, dtype=torch.float64)
    noise, _ = tables(VP, *([constant(value)] * 2 for value in (0.0, -1.0, 0.0)))
    expected = sd.solve(problem, x, "deis", order=order, variant="log_rho", steps=6, grid="karras").x
    assert torch.allclose(sd.solve(problem, x, "dpm_solver_v3", steps=6, grid="karras", order=order, corrector=False, statistics=noise).x, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("process", PROCESSES)
def test_it_is_exact_for_a_model_that_does_what_the_tables_say(process: str) -> None:
    """D = (1 - l) y - f with f' = s f + b: the flow itself, in steps of any length, as a fine solve of it has it."""
    p = PROCESSES[process]
    bent = (lambda u: 0.6 + 0.3 * torch.tanh(-u), lambda u: -0.5 + 0.4 * torch.sin(u), lambda u: 0.3 * torch.cos(u))
    found, u = tables(p, *([of, constant(value)] for of, value in zip(bent, (0.4, 0.3, -0.2), strict=True)))
    step, f = float(u[1] - u[0]), [torch.tensor([0.4, -0.3], dtype=torch.float64)]
    for i in range(len(u) - 1):  # f at the nodes, by Runge's and Kutta's rule

        def rate(at: float, f: Tensor) -> Tensor:
            _, s, b = found.at(torch.tensor([[at]], dtype=torch.float64))[:, 0, 0]
            return s * f + b

        here, now = float(u[i]), f[-1]
        k1 = rate(here, now)
        k2 = rate(here + step / 2, now + step / 2 * k1)
        k3 = rate(here + step / 2, now + step / 2 * k2)
        f.append(now + step / 6 * (k1 + 2 * k2 + 2 * k3 + rate(here + step, now + step * k3)))
    known = sd.ModelStatistics(repr(p), found.first, found.last, torch.stack(f), found.slope, found.offset)  # f, between the nodes, by the same cubics

    def denoiser(x: Tensor, t: Tensor) -> Tensor:
        level = (0.5 * p.log_snr(t)).reshape(1, -1)
        return (1 - found.at(level)[0, 0]) * x / p.alpha(t)[:, None].to(x) - known.at(level)[0, 0]

    problem, x = p.probability_flow(sd.as_score(denoiser, p, predicts="x0")), p.prior((5, 2), seed=0, dtype=torch.float64)
    exact = sd.solve(problem, x, "dop853", rtol=1e-8, atol=1e-8).x
    for steps, (order, corrector) in itertools.product((1, 2, 5), ORDERS):
        got = sd.solve(problem, x, "dpm_solver_v3", steps=steps, statistics=found, order=order, corrector=corrector).x
        assert float((got - exact).abs().max()) < 2e-5 * float(exact.abs().max()), (steps, order, corrector)


@pytest.mark.parametrize(
    ("process", "order", "corrector", "backwards"),
    [*(("VP", *how, True) for how in ORDERS), *((process, 2, True, True) for process in PROCESSES if process != "VP"), ("EDM", 3, False, True), ("VP", 2, True, False)],
)
def test_order_with_statistics(process: str, order: int, corrector: bool, backwards: bool) -> None:
    """On a nonlinear score, with statistics of another one, so that nothing is small by chance."""
    p = PROCESSES[process]
    modes, found = TwoModes(p), sd.ModelStatistics(repr(p), *(getattr(of_the_network(process), name) for name in ("first", "last")), *one_coordinate(process))
    span = tuple(float(p.log_snr_inverse(level)) for level in ((-2.0, 2.0) if backwards else (2.0, -2.0)))
    x = torch.linspace(-2, 2, 32, dtype=torch.float64)[:, None] * modes.mode(span[0])[1].sqrt()
    problem, exact, steps = p.probability_flow(modes.score), modes.moved(x, *span), [24, 32, 48, 64]
    how: dict[str, Any] = {"statistics": found, "order": order, "corrector": corrector, "interval": span}
    errors = [rms(sd.solve(problem, x, "dpm_solver_v3", steps=n, **how).x - exact) for n in steps]
    assert asymptotic_slope(steps, errors) == pytest.approx(min(order + corrector, 3), abs=0.15), errors
    assert DPMSolverV3(found, order, corrector).facts.ode == min(order + corrector, 3)


def one_coordinate(process: str) -> list[Tensor]:
    found = of_the_network(process)
    return [table[:, :1] for table in (found.linear, found.slope, found.offset)]


# -- every model ---------------------------------------------------------------------------------------------------------


@cache
def of_the_network(process: str) -> sd.ModelStatistics:
    p = PROCESSES[process]
    return sd.model_statistics(p.reverse(sd.as_score(Network(torch.float64), p, predicts="epsilon")), shape=(2,), samples=16, nodes=16, dtype=torch.float64)


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_every_grid_number_of_steps_and_dtype(dtype: torch.dtype, process: str) -> None:
    """Finite, with one call at each of the grid's times."""
    p, found = PROCESSES[process], of_the_network(process)
    state = torch.float64 if dtype == torch.float64 else torch.float32
    x = p.prior((2, 2), seed=0, dtype=state)
    for grid in ("uniform", "karras", "log_snr"):
        for steps in (1, 2, 3, 11):
            network = Network(dtype)
            problem = p.reverse(sd.as_score(network, p, predicts="epsilon"))
            solution = sd.solve(problem, x, "dpm_solver_v3", steps=steps, grid=grid, statistics=found)
            assert solution.ok().all() and solution.x.dtype == state and solution.nfe == len(network.times) == steps
            ts = torch.tensor(make_grid(grid, p, *problem.interval, steps).ts[:-1], dtype=torch.float64)
            assert torch.equal(torch.stack([t[0] for t in network.times]), ts.to(torch.promote_types(dtype, torch.float32)))


@pytest.mark.parametrize("process", PROCESSES)
def test_every_parameterisation_is_one_model(process: str) -> None:
    p = PROCESSES[process]
    law, x = GaussianTarget(p), p.prior((4, 2), seed=0, dtype=torch.float64)
    base = sd.as_score(law.score, p, predicts="score")
    ends, found = [], []
    for predicts in ("score", "epsilon", "x0", "v", "flow", "edm"):
        as_predicted = sd.as_score(lambda x, t: x, p, predicts=predicts)

        def model(x: Tensor, t: Tensor, of: sd.Score = as_predicted) -> Tensor:
            scale = of.linear(t).input_scale
            x = x if scale is None else x / scale[:, None]
            return of.target(x, base.epsilon(x, t), t)

        problem = p.probability_flow(sd.as_score(model, p, predicts=predicts))
        found.append(sd.model_statistics(problem, shape=(2,), samples=16, nodes=16, dtype=torch.float64))
        ends.append(sd.solve(problem, x, "dpm_solver_v3", steps=5, statistics=found[0]).x)
        assert torch.allclose(ends[-1], ends[0], rtol=1e-6, atol=1e-8), predicts
        assert torch.allclose(found[-1].linear, found[0].linear, atol=1e-6), predicts


@pytest.mark.parametrize("process", PROCESSES)
def test_one_data_point_is_found(process: str) -> None:
    p, point = PROCESSES[process], torch.tensor([0.3, -0.8], dtype=torch.float64)
    problem, x = p.probability_flow(sd.as_score(lambda x, t: point.expand_as(x), p, predicts="x0")), p.prior((3, 2), seed=0, dtype=torch.float64)
    found = sd.model_statistics(problem, shape=(2,), samples=16, nodes=16)
    exact = p.alpha(p.eps) * point + p.sigma(p.eps) * (x - p.alpha(p.T) * point) / p.sigma(p.T)
    for steps in (1, 2, 3, 7):
        for statistics in (None, found):
            assert torch.allclose(sd.solve(problem, x, "dpm_solver_v3", steps=steps, statistics=statistics).x, exact, rtol=1e-9, atol=1e-9)


def test_rows_stand_alone_and_dtypes_agree() -> None:
    problem, found = VP.probability_flow(GaussianTarget(VP).score), of_the_network("VP")
    x = VP.prior((7, 2), seed=0)
    together = sd.solve(problem, x, "dpm_solver_v3", steps=6, statistics=found).x
    assert torch.equal(sd.solve(problem, x[4:5], "dpm_solver_v3", steps=6, statistics=found).x, together[4:5])
    assert torch.allclose(sd.solve(problem, x.double(), "dpm_solver_v3", steps=6, statistics=found).x.float(), together, atol=1e-4)


def test_times_of_rows_are_times() -> None:
    """At once, where every row has a time of its own, the states are those one after the other; a state without an event, too."""
    problem, found = VP.probability_flow(exam.mixture_2d().score(VP)), of_the_network("VP")
    x = VP.prior((3, 2), seed=0, dtype=torch.float64)
    plain, at_once = (sd.solve(problem, x, "dpm_solver_v3", steps=8, statistics=found, parallel=parallel).x for parallel in (None, sd.Parallel(8, 1e-9)))
    assert torch.allclose(at_once, plain, atol=1e-7)
    scalar = sd.ModelStatistics(repr(VP), found.first, found.last, *(table[:, 0] for table in (found.linear, found.slope, found.offset)))
    narrow = sd.ModelStatistics(repr(VP), found.first, found.last, *(table[:, :1] for table in (found.linear, found.slope, found.offset)))
    flat = VP.probability_flow(lambda x, t: -x)
    assert torch.equal(sd.solve(flat, x[:, 0], "dpm_solver_v3", steps=5, statistics=scalar).x, sd.solve(flat, x[:, :1], "dpm_solver_v3", steps=5, statistics=narrow).x[:, 0])


def test_a_step_reads_nothing_and_is_one_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    problem, found = VP.probability_flow(lambda x, t: -torch.sin(x)), of_the_network("VP")
    stepper, x = make_method("dpm_solver_v3", statistics=found), VP.prior((4, 2), seed=0)
    grid = make_grid("log_snr", VP, *problem.interval, 5)
    with NoReads():
        fixed.run(stepper, problem, x, grid, lambda node: None, {}, None)
    torch.compiler.reset()
    whole: Callable[..., Any] = torch.compile(compiled._step, fullgraph=True, backend="eager")
    monkeypatch.setattr(compiled, "_compiled", lambda: whole)
    plain, traced = (sd.solve(problem, x, stepper, steps=4, compile=compile).x for compile in (False, True))
    assert torch.allclose(traced, plain, rtol=1e-4, atol=1e-4)


def test_backwards_and_beyond_the_tables() -> None:
    """From data to noise and back; outside of lambda's range the tables go on as they end."""
    problem, found = VP.probability_flow(GaussianTarget(VP).score), of_the_network("VP")
    short = sd.ModelStatistics(repr(VP), -1.0, 1.0, found.linear, found.slope, found.offset)
    inside, outside = (short.at(torch.tensor([levels], dtype=torch.float64)) for levels in ((-1.0, 1.0), (-9.0, 9.0)))
    assert torch.equal(inside, outside) and torch.allclose(inside[0, 0], found.linear[[0, -1]])
    x = VP.prior((4, 2), seed=0, dtype=torch.float64)
    there = sd.solve(problem, x, "dpm_solver_v3", steps=200, statistics=short).x
    back = sd.solve(problem, there, "dpm_solver_v3", steps=200, statistics=short, interval=problem.interval[::-1]).x
    assert torch.allclose(back, x, atol=1e-3) and torch.allclose(there, sd.solve(problem, x, "dop853").x, atol=1e-4)


# -- the statistics ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("process", ["VP", "EDM", "flow"])
def test_they_are_the_averages_of_two_modes(process: str) -> None:
    """Against averages over quantiles of the law at each node, with derivatives of the network by its input and by lambda itself."""
    p = PROCESSES[process]
    modes = TwoModes(p)
    problem = p.probability_flow(modes.score)
    found = sd.model_statistics(problem, shape=(1,), samples=6000, nodes=96, batch=3000, dtype=torch.float64)
    levels = torch.linspace(found.first, found.last, 96, dtype=torch.float64)
    q = (torch.arange(400, dtype=torch.float64) + 0.5) / 400
    half = torch.special.ndtri(q)

    def denoised(y: Tensor, level: Tensor) -> Tensor:
        mean, variance = torch.tensor(0.8), 0.3**2 + torch.exp(-2 * level)  # in y = x_0 + e^-lambda eps
        score = (mean * torch.tanh(mean * y / variance) - y) / variance
        return y + torch.exp(-2 * level) * score

    def linear(level: Tensor) -> Tensor:
        """1 - E dD/dy."""
        std = (0.3**2 + torch.exp(-2 * level)).sqrt()
        y = 0.8 + std * half  # the other mode is its mirror image
        _, slope = torch.func.jvp(lambda y: denoised(y, level), (y,), (torch.ones_like(y),))
        return 1 - slope.mean()

    for around in (-1.0, 0.0, 1.0, 3.0):  # with more noise f is nearly zero
        k = int((levels - around).abs().argmin())
        level = levels[k]
        l, rise = torch.func.jvp(linear, (level,), (torch.ones_like(level),))  # noqa: E741
        std = (0.3**2 + torch.exp(-2 * level)).sqrt()
        y = torch.cat([0.8 + std * half, -0.8 - std * half])
        d, along = torch.func.jvp(denoised, (y, level), (denoised(y, level) - y, torch.ones_like(level)))
        f, rate = (1 - l) * y - d, -rise * y + (1 - l) * (d - y) - along
        s = ((f - f.mean()) * (rate - rate.mean())).mean() / f.var(correction=0)
        assert float(found.linear[k, 0]) == pytest.approx(float(l), abs=0.02 * float(min(1, math.exp(2 * level)))), k
        assert float(found.slope[k, 0]) == pytest.approx(float(s), abs=0.1), (k, process)
        assert float(found.offset[k, 0]) == pytest.approx(0.0, abs=0.05)


def test_each_coordinate_has_its_own_and_a_gaussian_is_exact() -> None:
    """l = sigma^2/(alpha^2 c^2 + sigma^2) for variances c^2, whatever the samples; the law's mean is an offset and no slope."""
    std, mean = torch.tensor([2.0, 0.1]), torch.tensor([0.5, -3.0])

    def score(x: Tensor, t: Tensor) -> Tensor:
        a, s = (v[:, None].to(x) for v in (VP.alpha(t), VP.sigma(t)))
        return (a * mean - x) / (a * a * std**2 + s * s)

    problem = VP.reverse(score)
    found = sd.model_statistics(problem, shape=(2,), samples=16, nodes=128, dtype=torch.float64)
    levels = torch.linspace(found.first, found.last, 128, dtype=torch.float64)[:, None]
    assert torch.allclose(found.linear, 1 / (1 + std.double() ** 2 * torch.exp(2 * levels)), atol=1e-5)
    x = VP.prior((50, 2), seed=1, dtype=torch.float64)
    exact = sd.solve(problem, x, "dop853", rtol=1e-9, atol=1e-9, denoise=True).x
    apart, usual = (float((sd.solve(problem, x, m, nfe=5, denoise=True, **o).x - exact).abs().mean()) for m, o in (("dpm_solver_v3", {"statistics": found}), ("dpmpp_2m", {})))
    assert apart < 0.02 * usual


def test_a_law_that_is_moved_has_another_offset_alone() -> None:
    """By m: f becomes f - l m, so b becomes b - (l' - s l) m."""
    modes = TwoModes(VP)
    plain, moved = (
        sd.model_statistics(VP.reverse(lambda x, t, m=m: modes.score(x - m * VP.alpha(t)[:, None].to(x), t)), shape=(1,), samples=64, nodes=32, dtype=torch.float64)
        for m in (0.0, 2.0)
    )
    (rise,) = torch.gradient(plain.linear, spacing=(plain.last - plain.first) / 31, dim=0)
    assert torch.allclose(moved.linear, plain.linear, atol=1e-6) and torch.allclose(moved.slope[8:], plain.slope[8:], atol=1e-3)
    assert torch.allclose(moved.offset[8:], (plain.offset - 2 * (rise - plain.slope * plain.linear))[8:], atol=1e-2)


def test_a_share_of_what_is_open_keeps_slopes_from_being_chance() -> None:
    """A law that is symmetric and nearly Gaussian when noise is wide, where f is nearly zero: its slope stays one of a trajectory."""
    p, ring = PROCESSES["EDM"], exam.ring_2d()
    found = sd.model_statistics(p.reverse(mixture_score(ring, p)), shape=(2,))
    assert float(found.slope.abs().max()) < 5


@pytest.mark.parametrize(
    ("law", "process", "nfe", "ratios"), [("2d", "VP", 8, (1.6, 1.5)), ("64d", "VP", 5, (3.5, 3.5)), ("64d", "VP", 10, (2.5, 1.7)), ("2d", "flow", 10, (2.0, 2.0))]
)
def test_they_bring_few_calls_nearer_to_the_flow(law: str, process: str, nfe: int, ratios: tuple[float, float]) -> None:
    """Than DPM-Solver++ and UniPC without them, by at least these factors in mean distance over fresh draws."""
    p, target = PROCESSES[process], {"2d": exam.mixture_2d(), "64d": exam.mixture_64d()}[law]
    problem = p.probability_flow(mixture_score(target, p))
    x = p.prior((500, *target.event), seed=77)
    end = sd.solve(problem, x, "tsit5", rtol=1e-5, atol=1e-5, denoise=True).x
    found = sd.model_statistics(problem, shape=target.event)

    def apart(method: str, **options: Any) -> float:
        return float((sd.solve(problem, x, method, nfe=nfe, denoise=True, **options).x - end).square().mean(1).sqrt().mean())

    mine = apart("dpm_solver_v3", statistics=found)
    assert mine * ratios[0] < apart("dpmpp_2m") and mine * ratios[1] < apart("unipc")


def test_the_same_seed_the_same_statistics_in_any_batches() -> None:
    problem = VP.reverse(mixture_score(exam.mixture_2d(), VP))
    one, again, split, other = (
        sd.model_statistics(problem, shape=(2,), samples=32, nodes=16, dtype=torch.float64, **how) for how in ({}, {}, {"batch": 5}, {"seed": 1})
    )
    assert torch.equal(one.slope, again.slope) and torch.allclose(one.slope, split.slope, rtol=1e-9) and not torch.allclose(one.slope, other.slope)


# -- files and bad input -------------------------------------------------------------------------------------------------


def test_statistics_that_were_saved(tmp_path: Path) -> None:
    found, problem = of_the_network("VP"), VP.probability_flow(GaussianTarget(VP).score)
    found.save(tmp_path / "statistics.json")
    loaded = sd.ModelStatistics.load(tmp_path / "statistics.json")
    x = VP.prior((4, 2), seed=0)
    assert torch.equal(*(sd.solve(problem, x, "dpm_solver_v3", steps=5, statistics=s).x for s in (found, loaded)))
    image = sd.ModelStatistics(repr(VP), -1.0, 1.0, *torch.randn(3, 4, 2, 3, dtype=torch.float64))
    image.save(tmp_path / "image.json")
    assert torch.equal(sd.ModelStatistics.load(tmp_path / "image.json").offset, image.offset)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "another"}, "expected the entries"),
        ({"more": 1}, "expected the entries"),
        ({"process": 3}, "expected a text and two numbers"),
        ({"first": "low"}, "expected a text and two numbers"),
        ({"first": True}, "expected a text and two numbers"),
        ({"first": 9.0}, "first < last"),
        ({"event": [0]}, "shape of a sample"),
        ({"event": 2}, "shape of a sample"),
        ({"event": [3]}, "expected numbers, 3 for each node"),
        ({"event": [10**9, 10**9]}, "for each node"),
        ({"slope": "1, 2"}, "slope=1, 2; expected numbers"),
        ({"slope": [[1.0], [2.0]]}, "slope=.*; expected numbers"),
        ({"slope": [1.0, 2.0]}, "slope has shape"),
        ({"linear": [], "slope": [], "offset": []}, "linear has shape .0, 2."),
        ({"offset": [1e308 * 10] * 32}, "not JSON"),
    ],
)
def test_a_file_that_holds_something_else(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    of_the_network("VP").save(tmp_path / "s.json")
    content = json.loads((tmp_path / "s.json").read_text())
    (tmp_path / "s.json").write_text(json.dumps(content | change))
    with pytest.raises(ValueError, match=message):
        sd.ModelStatistics.load(tmp_path / "s.json")


def test_files_that_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "s.json").write_text("[1, 2")
    for path in (tmp_path / "s.json", tmp_path / "nothing", tmp_path):
        with pytest.raises(ValueError, match=r"ModelStatistics\.save wrote"):
            sd.ModelStatistics.load(path)
    monkeypatch.setattr("sdesolve.statistics.LARGEST_FILE", 100)
    with pytest.raises(ValueError, match="expected at most 100"):
        of_the_network("VP").save(tmp_path / "large.json")
    assert not (tmp_path / "large.json").exists()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"order": 0}, ValueError, "order=0; expected an integer >= 1"),
        ({"order": 4}, ValueError, "order=4; expected 1, 2 or 3"),
        ({"order": 2.0}, ValueError, "order=2.0; expected an integer"),
        ({"corrector": "yes"}, ValueError, "corrector='yes'; expected True or False"),
        ({"statistics": {"l": 1}}, TypeError, r"statistics is a dict; expected what sd\.model_statistics"),
        ({"statistic": None}, ValueError, "Did you mean 'statistics'"),
    ],
)
def test_an_option_out_of_range(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        sd.solve(VP.reverse(never), VP.prior((2, 2), seed=0), "dpm_solver_v3", steps=3, **options)


def never(x: Tensor, t: Tensor) -> Tensor:
    raise AssertionError("called")


def test_statistics_of_something_else_are_refused_before_the_first_call() -> None:
    found = of_the_network("VP")
    for p, shape, message in ((sd.VPSDE(beta_max=10.0), (2,), "statistics are of VPSDE"), (VP, (3,), r"samples of shape \(2,\), and x has \(3,\)")):
        for how in ({}, {"parallel": 2}):
            with pytest.raises(ValueError, match=message):
                sd.solve(p.reverse(never), p.prior((2, *shape), seed=0), "dpm_solver_v3", steps=3, statistics=found, **how)
    with pytest.raises(ValueError, match=r"grid\[1\]=.* left out"):
        sd.solve(VP.reverse(never), VP.prior((2, 2), seed=0), "dpm_solver_v3", grid=[1.0, 0.5, 0.5 - 1e-13, 0.001], statistics=found)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"problem": sd.ODE(lambda x, t: x)}, TypeError, "problem is a ODE; expected process"),
        ({"nodes": 7}, ValueError, "nodes=7; expected an integer >= 8"),
        ({"samples": 3}, ValueError, "samples=3; expected an integer >= 16"),
        ({"batch": 0}, ValueError, "batch=0; expected an integer >= 1"),
        ({"shape": 2}, ValueError, "shape=2; expected the shape of one sample"),
        ({"shape": (2, -1)}, ValueError, "shape=.* expected the shape"),
        ({"dtype": torch.int64}, ValueError, "dtype=torch.int64; expected a real floating dtype"),
        ({"device": "moon"}, ValueError, "device='moon' is not to be had"),
        ({"seed": -1}, ValueError, "seed=-1"),
    ],
)
def test_bad_input_of_the_statistics(change: dict[str, Any], error: type[Exception], message: str) -> None:
    arguments = {"problem": VP.reverse(never), "shape": (2,), **change}
    with pytest.raises(error, match=message):
        sd.model_statistics(arguments.pop("problem"), **arguments)


def test_a_model_that_breaks_is_told() -> None:
    with pytest.raises(sd.SolveError):
        sd.model_statistics(VP.reverse(lambda x, t: x / 0), shape=(2,), samples=16, nodes=8)


def test_tables_that_do_not_fit() -> None:
    good = torch.zeros(4, 2)
    for tables_, message in (
        ((good, good[:, :1], good), "slope has shape"),
        ((good[:3],) * 3, "K >= 4"),
        ((good, good, good * math.nan), "offset has entries that are not finite"),
        ((good, good, "no"), "offset='no'; expected numbers"),
    ):
        with pytest.raises(ValueError, match=message):
            sd.ModelStatistics(repr(VP), -1.0, 1.0, *tables_)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="first < last"):
        sd.ModelStatistics(repr(VP), 1.0, -1.0, good, good, good)


def test_with_an_optimised_grid() -> None:
    problem = VP.reverse(exam.mixture_2d().score(VP))
    found = sd.model_statistics(problem, shape=(2,), samples=16, nodes=16)
    grid = sd.optimize_grid(problem, "dpm_solver_v3", nfe=3, shape=(2,), samples=16, statistics=found)
    x = VP.prior((4, 2), seed=0)
    assert torch.equal(sd.solve(problem, x, "dpm_solver_v3", grid=grid, statistics=found).x, sd.solve(problem, x, "auto", grid=grid).x)
    with pytest.raises(ValueError, match=r"options has statistics=.*ModelStatistics.*save"):
        grid.save("grid.json")
