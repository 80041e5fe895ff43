"""The benchmark: what it counts, what it measures, how it goes on after an interruption, and what it writes."""

from __future__ import annotations

import importlib.util
import itertools
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from gen_fixtures import random_parquet, tiny_model
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import sdesolve as sd
from sdesolve.optimise import followed
from sdesolve_gen import cli
from sdesolve_gen.benchmark import QUICK, Plan, metrics, mixture, planned, report, results, run, write
from sdesolve_gen.benchmark.contenders import METHODS, OUR_GRID, OURS, USERS, ladder, ours, solver
from sdesolve_gen.benchmark.peers import MODULES, peers
from sdesolve_gen.benchmark.plots import _nearest
from sdesolve_gen.benchmark.problems import Network, Skipped, Sources, make
from sdesolve_gen.benchmark.runner import EXACT, FLOW, STARTS, fine, read, sampled
from sdesolve_gen.evaluation.classifier import Classifier, probabilities

pytestmark = pytest.mark.filterwarnings("ignore")  # of the peers, about their own code
ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def small():
    return make("mixture_2d", 256, Sources())


FEW = ("diffusers UniPC", "diffusers DPM++ 2M [our grid]", "k-diffusion dpmpp_2m, karras VP", "azula PC [our grid]", "torchdiffeq rk4", "score_sde PC (by hand)")


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """A tiny run with a few of the peers that are installed, and its folder."""
    out = tmp_path_factory.mktemp("benchmark")
    here, skipped = peers()
    plan = Plan({"mixture_2d": 256, "ring_2d": 64, "mnist_points": 8}, (5, 10), 2, ["ddim", "dpmpp_2m", "pc"], sources=Sources(cache=out / "cache"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sdesolve_gen.benchmark.runner.peers", lambda: ([c for c in here if c.label in FEW], skipped))
        found = results(plan, run(plan, out / "cells.jsonl"), ["benchmark"])
    write(found, out)
    return out, json.loads((out / "results.json").read_text())


# -- problems and measures ---------------------------------------------------------------------------------------------


def test_the_network_is_the_posterior_mean_and_counts_itself(small):
    """D(y, s) of a Gaussian mixture, from its definition: a mean over exact draws, weighted by the likelihood of y."""
    network, s = Network(small), 0.7
    y = torch.tensor([[0.5, -0.2], [-1.0, 0.9]])
    x0 = small.draws(200_000, 3).double()
    weights = (-(y.double()[:, None] - x0).square().sum(2) / (2 * s * s)).softmax(1)
    assert torch.allclose(network.denoised(y, s).double(), weights @ x0, atol=0.02)
    assert network.calls == 1


def test_measures_agree_with_those_of_the_exam(small):
    x = 0.8 * small.draws(4096, 5) + 0.1
    reference = metrics.Reference.of(small.draws(8 * 4096, 6), 4096, small.features)
    found, directions = reference.measure(x), metrics.IN_THE_PLANE
    energy = sd.exam.energy_distance(x, small.law, projections=directions)
    assert abs(found["energy"] - energy.value) < 4 * energy.standard_error
    assert found["ks"] == pytest.approx(sd.exam.ks(x, small.law, projections=directions).value, abs=0.01)
    w2 = sd.exam.sliced_wasserstein2(x, small.law, projections=directions)
    assert abs(found["sliced_w2"] ** 2 - w2.value) < 4 * w2.standard_error
    mean, law_mean = x.double().mean(0), small.law.mean
    assert found["frechet"] > float((mean - law_mean).square().sum()) - 0.01


def test_sliced_w2_of_a_shift_is_its_length_along_the_directions():
    y = torch.randn(8000, 3)
    reference = metrics.Reference.of(y, 8000, None)
    shift = torch.tensor([1.0, 2.0, -1.0])
    along = reference.directions @ shift
    assert reference.measure(y + shift)["sliced_w2"] == pytest.approx(float(along.square().mean().sqrt()), rel=1e-4)


def test_frechet_of_gaussians_that_commute():
    a = (torch.zeros(2, dtype=torch.float64), torch.diag(torch.tensor([4.0, 1.0], dtype=torch.float64)))
    b = (torch.tensor([1.0, 0.0], dtype=torch.float64), torch.eye(2, dtype=torch.float64))
    assert metrics.frechet(a, b) == pytest.approx(1 + (2 - 1) ** 2)


def test_the_excess_is_what_the_floor_leaves():
    apart = metrics.excess("sliced_w2", [0.5, 0.52], [0.3, 0.31], paired=False)
    squares = [0.5**2, 0.52**2], [0.3**2, 0.31**2]
    square = sum(squares[0]) / 2 - sum(squares[1]) / 2
    error = math.hypot(*(abs(a - b) / 2 for a, b in squares))
    assert apart == {"mean": pytest.approx(math.sqrt(square)), "se": pytest.approx(error / 2 / math.sqrt(square)), "resolved": True}
    paired = metrics.excess("energy", [0.5, 0.7], [0.3, 0.48], paired=True)
    assert paired == {"mean": pytest.approx(0.21), "se": pytest.approx(0.01), "resolved": True}
    lost = metrics.excess("energy", [0.5, 0.7], [0.49, 0.66], paired=True)
    assert lost == {"mean": pytest.approx(0.025 + 2 * 0.015), "se": None, "resolved": False}
    assert metrics.excess("energy", [0.5], [0.3], paired=True) == {"mean": pytest.approx(0.2), "se": None, "resolved": True}
    assert metrics.excess("trajectory", [0.5, 0.7], [], paired=True) == {"mean": pytest.approx(0.6), "se": pytest.approx(0.1), "resolved": True}


def test_gains_are_ratios_of_excess_and_say_when_they_are_bounds():
    theirs, us = {"mean": 0.6, "se": 0.06, "resolved": True}, {"mean": 0.2, "se": 0.01, "resolved": True}
    assert report.gain(theirs, us) == {"ratio": pytest.approx(3.0), "se": pytest.approx(3 * math.hypot(0.1, 0.05)), "bound": "="}
    lost = {"mean": 0.1, "se": None, "resolved": False}
    assert report.gain(theirs, lost) == {"ratio": pytest.approx(6.0), "se": None, "bound": ">="}
    assert report.gain(lost, us)["bound"] == "<="
    assert report.gain(lost, lost) is None
    nothing = {"mean": 0.0, "se": None, "resolved": False}  # of a single seed, below the floor by chance
    assert report.gain(nothing, us) is report.gain(us, nothing) is None


def test_a_mixture_is_fitted_and_kept(tmp_path):
    """EM finds the two clusters of a law of its own kind, and the second call reads the file."""
    law = sd.exam.Mixture([0.5, 0.5], [sd.exam.Gaussian(m * torch.ones(1, 6, 6), factor=torch.ones(36, 1) * f, floor=0.1) for m, f in ((-1, 0.1), (1, 0.3))])
    x = law.sample(4000, seed=0)
    first = mixture.mixture(mixture.fit(x, components=2, rank=1))
    means = sorted(float(c.mean.mean()) for c in first.components)
    assert means == [pytest.approx(-1, abs=0.02), pytest.approx(1, abs=0.05)]
    assert float(first.log_prob(x).mean()) > float(law.log_prob(x).mean()) - 0.02
    kept = mixture.cached_mixture(tmp_path / "m.safetensors", lambda: law.sample(1000, seed=1))
    again = mixture.cached_mixture(tmp_path / "m.safetensors", lambda: pytest.fail("fitted again"))
    y = law.sample(5, seed=2)
    assert torch.equal(kept.log_prob(y), again.log_prob(y))


def test_a_fine_solve_is_a_solution(small, tmp_path):
    """The fine ends do not move when the tolerance is 30 times as small, and come from the file the second time."""
    ends = fine(small, 0, 32, tmp_path)
    flow = small.process.probability_flow(small.law.score(small.process), eps=1e-4)
    exact = sd.solve(flow, small.start(0, 0, 32).double(), "dop853", rtol=3e-8, atol=3e-8, denoise=True).x
    assert torch.allclose(ends.double(), exact, atol=1e-4)
    assert torch.equal(fine(small, 0, 32, tmp_path), ends)


def test_a_trajectory_ends_at_the_nearer_of_two_ends():
    ends = torch.tensor([[[0.0, 0.0], [1.0, 1.0]], [[3.0, 4.0], [9.0, 9.0]]])
    assert metrics.trajectory(torch.tensor([[3.0, 3.0], [1.0, 3.0]]), ends) == pytest.approx(math.sqrt((0.5 + 2.0) / 2))


def test_a_draw_at_a_watershed_is_right_from_either_start(tmp_path):
    """In 64 dimensions some draws go to one mode from the prior and to another from the Gaussian of the data's mean: a range of noise, which starts there,
    is at 50 calls far from the ends of the former and near those of the nearer."""
    problem = make("mixture_64d", 512, Sources())
    as_it_is, centred = (fine(problem, 7, 512, tmp_path, start) for start in ("prior", "centred"))
    x, _, _ = sampled(problem, ours(["unipc 3"])[0], 50, seed=7)
    assert metrics.trajectory(x, as_it_is[None]) > 0.03
    assert metrics.trajectory(x, centred[None]) < 0.002
    assert metrics.trajectory(x, torch.stack([as_it_is, centred])) < 0.002


def test_who_knows_the_directions_is_judged_from_where_they_start(tmp_path):
    """A direction a third as wide as the process's widest noise."""
    wide = replace(make("mixture_2d", 256, Sources()), process=sd.VESDE(sigma_max=3.0), directions=torch.tensor([[1.15, 0.0]]))
    ends = {start: fine(wide, 7, 256, tmp_path, start) for start in STARTS}
    known = sd.Range(wide.std, wide.mean, 1e3, 1e-3, directions=wide.directions)
    x = sd.solve(wide.process.probability_flow(Network(wide).score), wide.process.prior_std * wide.start(7), "rk45", rtol=1e-5, atol=1e-5, interval=known, denoise=True).x
    away = {start: metrics.trajectory(x, end[None]) for start, end in ends.items()}
    assert away["directed"] < 0.3 * away["centred"] and metrics.trajectory(x, torch.stack(list(ends.values()))) <= away["directed"]


# -- contenders --------------------------------------------------------------------------------------------------------


def test_ours_are_those_of_the_registry():
    known = {row.name for row in sd.methods()} | {"auto"}
    assert {c.label for c in ours()} == {label for label, options in METHODS.items() if options["method"] in known}
    assert [c.label for c in ours(["rk4"])] == ["rk4"]
    with pytest.raises(ValueError, match=r"method 'ddin' is not known.*ddim"):
        ours(["ddin"])


LINE_UP = [c for c in (*ours(), *peers()[0]) if not c.finds]


@pytest.mark.parametrize("contender", [pytest.param(c, id=c.label, marks=() if c.label in QUICK.few else pytest.mark.slow) for c in LINE_UP])
def test_a_contender_keeps_to_its_budget_and_finds_the_law(contender, small):
    """Calls are those that the network itself counted; with 60 of them the samples are near the law, whoever made them."""
    with torch.random.fork_rng():
        x, nfe, _ = sampled(small, contender, 60, seed=1)
    assert 56 <= nfe <= 60
    assert x.shape == (256, 2) and bool(x.isfinite().all())
    distance = sd.exam.sliced_wasserstein2(x, small.law).value
    limit = 4.0 if contender.label in CRUDE else 0.06
    assert distance < limit, distance


CRUDE = {"azula xEAB-3", "azula PC", "pc", "torchsde srk", "score_sde PC (by hand)"}
"""Whose error at 60 calls is their own: steps too large for the method, or a corrector's bias."""


def test_a_peer_on_our_grid_is_our_method(small):
    """DDIM, DPM-Solver++ 2M and UniPC of every package that has them take the same states to the same ends as ours, on the same levels; what is left is
    that some cast the state or their coefficients to float32.  They end with Tweedie's formula; ours follow the flow unless told to end so, too."""
    own = [solver(label, "sdesolve", OURS, {**METHODS[label], "denoise": True}, True) for label in ("ddim", "dpmpp_2m", "unipc")]
    found = {c.label: c for c in [*own, *peers()[0]]}
    pairs = {"diffusers DPM++ 1 (DDIM) [our grid]": "ddim", "k-diffusion euler [our grid]": "ddim", "azula DDIM [our grid]": "ddim"}
    pairs |= {"diffusers DPM++ 2M [our grid]": "dpmpp_2m", "k-diffusion dpmpp_2m [our grid]": "dpmpp_2m", "diffusers UniPC [our grid]": "unipc"}
    here = {theirs: mine for theirs, mine in pairs.items() if theirs in found}
    if not here:
        pytest.skip("no peer is installed")
    for theirs, mine in here.items():
        networks = Network(small), Network(small)
        a, b = (found[label].run(network, small.start(0).double(), 12, 0, 0) for label, network in zip((theirs, mine), networks, strict=True))
        assert networks[0].calls == networks[1].calls == 12
        assert float((a - b).abs().max()) < 1e-5, theirs


def test_every_option_of_a_peer_does_something(small):
    """No two schedulers of diffusers, as their users run them, make the same samples from the same starts."""
    pytest.importorskip("diffusers")
    theirs = [c for c in peers()[0] if c.family == "diffusers" and c.setting == USERS]
    x = {c.label: c.run(Network(small), small.start(0, 0, 32), 12, 0, 0) for c in theirs}
    options = {"diffusers UniPC, leading", "diffusers UniPC 3, exponential", "diffusers DPM++ 2M, lu", "diffusers DPM++ 3M, lu"}
    assert options < x.keys() and options < QUICK.few
    for a, b in itertools.combinations(x, 2):
        assert float((x[a] - x[b]).abs().mean()) > 1e-4, (a, b)


def test_the_reference_of_a_network_counts_as_exact(tmp_path):
    """A digit that a tolerance of 2e-4 takes 0.2 standard deviations away from where a tighter one does."""
    problem = make("mnist_model", 1, Sources(cache=tmp_path))
    flow, x = problem.process.probability_flow(Network(problem).score), problem.start(2) * problem.process.prior_std
    exact, loose = (followed(flow, x, "rk45", tolerance) for tolerance in (4e-7, 2e-4))
    away = [float((ends - exact).square().mean().sqrt()) / problem.std for ends in (fine(problem, 2, 1, tmp_path), loose)]
    assert away[0] < 0.005 and away[1] > 0.1


def test_the_picture_names_the_nearest_over_the_budgets_that_a_method_has():
    points = {"few": {5: 1.0, 8: 1.1}, "all": {5: 2.0, 8: 1.0, 20: 0.5}, "far": {5: 4.0, 8: 4.0, 20: 4.0}, "late": {20: 0.6}}
    curves = {label: [{"budget": n, "mean": v} for n, v in found.items()] for label, found in points.items()}
    assert _nearest(curves) == ["few", "late", "all", "far"]


def test_learned_weights_are_kept_and_better_than_the_method_s_own(tmp_path):
    problem = replace(make("mixture_2d", 512, Sources(cache=tmp_path)), trajectories=64)
    plain, learned = ours(["auto", "auto, learned"])
    assert learned.suits(problem, 10) and not learned.suits(problem, 11) and not learned.suits(replace(problem, trajectories=None), 5)
    ends, away = fine(problem, 3, 512, tmp_path, "centred"), {}
    for contender in (plain, learned):
        x, nfe, _ = sampled(problem, contender, 5, seed=3)
        assert nfe == 5
        away[contender.label] = float((x - ends).norm(dim=1).mean())
    assert away["auto, learned"] < 0.7 * away["auto"]
    file = tmp_path / "card-mixture_2d-learned-5.json"
    written = file.stat().st_mtime_ns
    again, _, _ = sampled(problem, learned, 5, seed=3)
    assert torch.equal(again, x) and file.stat().st_mtime_ns == written


def test_peers_that_are_not_installed_say_so(monkeypatch):
    monkeypatch.setattr("sdesolve_gen.benchmark.peers.installed.find_spec", lambda name: None)
    here, skipped = peers()
    assert {c.family for c in here} == {"score_sde"}
    assert set(skipped) == set(MODULES) - {"score_sde"}
    assert all("not installed" in reason and "pip install" in reason for reason in skipped.values())


def test_our_grid_is_the_one_of_karras(small):
    levels = ladder(small, 5, 10)
    roots = [s ** (1 / 7) for s in levels]
    assert levels[0] > levels[-1] and all(a - b == pytest.approx(roots[0] - roots[1]) for a, b in itertools.pairwise(roots))


# -- running -----------------------------------------------------------------------------------------------------------


def test_a_run_goes_on_where_it_stopped(tmp_path, monkeypatch):
    plan = Plan({"mixture_2d": 64}, (5, 10), 2, ["ddim"], peers=False, sources=Sources(cache=tmp_path / "cache"))
    file = tmp_path / "cells.jsonl"
    whole = run(plan, file)
    lines = file.read_bytes().splitlines(keepends=True)
    assert len(lines) == 2 * (2 + 2)
    file.write_bytes(b"".join(lines[:3]) + lines[3][:20])  # torn off in the fourth cell
    done = []
    monkeypatch.setattr("sdesolve_gen.benchmark.runner.sampled", lambda *a: (done.append(a[2:]), sampled(*a))[1])
    again = run(plan, file)
    assert done == [(10, 0), (5, 1), (10, 1)]
    assert [{**c, "seconds": 0} for c in again["cells"]] == [{**c, "seconds": 0} for c in whole["cells"]]
    assert len(read(file)) == 8
    run(replace(plan, rows={"mixture_2d": 32}), file)  # another size is another cell
    assert len(read(file)) == 16


def test_cells_of_another_judge_or_model_are_not_taken_for_these(tmp_path, monkeypatch):
    """By features of one classifier, of another, of the first again, of none over more seeds; then the model with other moments."""
    model = tiny_model(name="tiny", process="ve", process_options={"sigma_max": 20.0}, predicts="edm", sigma_data=0.3, shape=[1, 28, 28])
    model.moments, done = sd.Range(0.3, 0.1), []
    monkeypatch.setattr("sdesolve_gen.benchmark.runner.STARTS", ("centred",))
    monkeypatch.setattr("sdesolve_gen.benchmark.runner.sampled", lambda *a: (done.append(a[1].label), sampled(*a))[1])

    def found(classifier, seeds=1):
        plan = planned("quick", models=[str(model.save(tmp_path / "mine"))], classifier=classifier, methods=["ddim"], budgets=(5,), peers=False, seeds=seeds, rows=8, out=tmp_path)
        done.clear()
        ran = run(replace(plan, few=frozenset()), tmp_path / "cells.jsonl")
        (row,) = results(plan, ran, [])["results"]
        return len(done), row["metrics"]

    made, digits = found("mnist")
    again, clothes = found("fashion_mnist")
    assert (made, again) == (1, 1) and digits["frechet"]["mean"] != clothes["frechet"]["mean"] and digits["trajectory"] == clothes["trajectory"]
    assert found("mnist") == (0, digits)
    made, plain = found(None, seeds=2)
    assert made == 2 and set(plain) == {"trajectory"}
    assert found(None, seeds=2) == (0, plain)
    model.moments = sd.Range(0.6, -0.2)
    made, other = found(None, seeds=2)
    assert made == 2 and other["trajectory"]["mean"] != plain["trajectory"]["mean"]
    kept = sorted(file.name for file in (tmp_path / "cache").glob("ends-centred-*-0-8.safetensors"))
    assert len(kept) == 2 and not torch.equal(*(load_file(tmp_path / "cache" / name)["ends"] for name in kept))


def test_problems_of_other_data_are_others(tmp_path, monkeypatch):
    """Cells, fine solves and the fitted mixture, all under the same name of a folder."""
    fitted = []
    monkeypatch.setattr("sdesolve_gen.benchmark.problems.cached_mixture", lambda file, images: (fitted.append(file.name), sd.exam.mixture_64d())[1])
    sources = Sources(data=tmp_path, cache=tmp_path)
    (tmp_path / "mnist").mkdir()
    found = []
    for side in (28, 14):
        random_parquet(tmp_path / "mnist" / "test.parquet", side=side)
        found.append([make(name, 8, sources) for name in ("mnist_points", "mnist_mixture")])
    for one, other in zip(*found, strict=True):
        assert one.name == other.name and one.source and one.source != other.source and one.key != other.key
    assert len(set(fitted)) == 2
    fine(found[0][1], 0, 8, tmp_path)
    assert (tmp_path / f"ends-mnist_mixture-{found[0][1].source}-0-8.safetensors").is_file()


def test_a_law_in_closed_form_has_no_hashes(tmp_path):
    """What it is, is its name; but what a cell means has a number."""
    plan = Plan({"mixture_2d": 64}, (5,), 1, ["ddim"], peers=False, sources=Sources(cache=tmp_path))
    for cell in run(plan, tmp_path / "cells.jsonl")["cells"]:
        assert set(cell) - {"nfe", "seconds", "metrics"} == {"problem", "contender", "budget", "seed", "rows", "version", "revision", "device"}
    assert make("ring_2d", 8, plan.sources).key == "ring_2d"


def test_a_cell_that_meant_something_else_is_made_anew(tmp_path, monkeypatch):
    plan, file = Plan({"mixture_2d": 64}, (5,), 1, ["ddim"], peers=False, sources=Sources(cache=tmp_path)), tmp_path / "cells.jsonl"
    run(plan, file)
    run(plan, file)
    assert len(read(file)) == 3
    monkeypatch.setattr("sdesolve_gen.benchmark.runner.REVISION", 0)
    run(plan, file)
    assert len(read(file)) == 6


def test_auto_is_told_beside_the_best_fixed_choice():
    """The best is that of the mean over seeds, of those that made all of them, and the difference is taken seed by seed."""
    measured = {"auto": [0.5, 0.9], "good": [0.3, 0.8], "lucky": [0.1, 1.3], "learned": [0.0, 0.0]}
    grouped = {("p", label, 5): [{"metrics": {"energy": v, "trajectory": 2 * v}} for v in values] for label, values in measured.items()}
    grouped |= {("p", "broken", 5): [{"failed": "no"}, {"metrics": {"energy": 0.0}}], ("p", "auto", 8): [{"metrics": {"energy": 1.0}}]}
    grouped |= {("q", "good", 5): [{"metrics": {"energy": 0.0}}]}
    lines = report.auto_beside({"p": {"primary": "energy"}}, grouped, {"good", "lucky", "broken"})
    assert [(line["metric"], line["budget"], line["best"]) for line in lines] == [("energy", 5, "good"), ("trajectory", 5, "good")]
    assert lines[0]["more"] == pytest.approx({"mean": 0.15, "se": 0.05}) and lines[1]["fixed"]["mean"] == pytest.approx(1.1)
    said = report.text({"problems": {"p": {"floor": {}, "rows": 8}}, "table": [{"problem": "p", "metric": "energy", "budget": 5, "best": {}, "gain": {}}],
                        "plan": {"seeds": 2}, "auto": lines, "failed": [], "skipped": {}})  # fmt: skip
    assert said.splitlines()[-1] == "| 5     | 0.7000 ± 0.2000 | good              | 0.5500 ± 0.2500 | 0.1500 ± 0.0500 |"


def test_what_fails_is_a_line_and_not_an_end(tmp_path):
    plan = Plan({"mixture_2d": 64}, (1, 10), 1, ["heun", "euler_maruyama"], peers=False, sources=Sources(cache=tmp_path))
    found = results(plan, run(plan, tmp_path / "cells.jsonl"), [])
    failed = {(r["contender"], r["budget"]): r["failed"] for r in found["results"] if "failed" in r}
    assert failed.keys() == {("heun", 1), ("euler_maruyama", 1)} and all("nfe=1 is too small" in reason for reason in failed.values())
    assert {label for f in found["failed"] for label in f["contenders"]} == {"heun", "euler_maruyama"}
    assert "Failed:\n\n- mixture_2d, budget 1: heun: ValueError: nfe=1 is too small" in report.text(found)


def test_what_failed_is_told_once():
    rows = [{"contender": c, "budget": n, "problem": p, "failed": f"{n} is\ntoo small"} for p in "xy" for c in "ab" for n in (1, 2)]
    found = report.failures([*rows, {"contender": "c", "budget": 1, "problem": "x"}, {"contender": "c", "budget": 1, "problem": "y", "failed": "no"}])
    assert [f for f in found if f["problem"] == "y" and f["budget"] == 1] == [
        {"problem": "y", "budget": 1, "reason": "1 is too small", "contenders": ["a", "b"]},
        {"problem": "y", "budget": 1, "reason": "no", "contenders": ["c"]},
    ]
    assert len(found) == 5


def test_a_table_says_why_there_is_no_gain():
    """Lost in the floor, or a single seed that leaves nothing to judge by; and nothing where nobody of ours took part."""

    def shown(seeds, gain, *settings):
        best = {s: {"contender": "some", "mean": 1.0, "se": None} for s in settings}
        line = {"problem": "p", "metric": "energy", "budget": 5, "best": best, "gain": gain}
        found = {"problems": {"p": {"floor": {}, "rows": 8}}, "table": [line], "plan": {"seeds": seeds}, "auto": [], "failed": [], "skipped": {}}
        return report.text(found).splitlines()[-1].split("|")[6].strip()

    assert shown(2, {USERS: None}, OURS, USERS) == "at the floor"
    assert shown(1, {USERS: None}, OURS, USERS) == "one seed"
    assert shown(1, {USERS: {"ratio": 2.0, "se": None, "bound": "="}}, OURS, USERS) == "2.00"
    assert shown(2, {}, USERS) == shown(2, {}, OURS) == "-"


def test_the_json_has_everything(found):
    _, said = found
    assert said["format"] == 1 and said["plan"]["seeds"] == 2
    assert {"sdesolve", "torch", "python"} <= set(said["versions"]) and said["machine"]["cores"]
    assert set(said["problems"]) == {"mixture_2d", "ring_2d"} and "--data" in said["skipped"]["mnist_points"]
    for problem in said["problems"].values():
        assert all(f["mean"] > 0 and f["se"] > 0 for f in problem["floor"].values())
    labels = {(r["problem"], r["contender"], r["budget"]) for r in said["results"]}
    assert labels == {(p, c, b) for p in said["problems"] for c in said["contenders"] for b in (5, 10)}
    for row in said["results"]:
        flow = said["contenders"][row["contender"]]["flow"]
        if "failed" not in row:
            assert row["nfe"] <= row["budget"] and ("trajectory" in row["metrics"]) == flow
            assert all({"mean", "se", "excess"} == set(m) for m in row["metrics"].values())


def test_the_table_is_the_best_of_the_rows(found):
    """Recomputed from the cells: who is best, and the ratio of what the floor leaves."""
    out, said = found
    cells = [cell for cell in read(out / "cells.jsonl") if "metrics" in cell]

    def mean(problem, contender, budget, metric):
        values = [c["metrics"][metric] for c in cells if (c["problem"], c["contender"], c["budget"]) == (problem, contender, budget) and metric in c["metrics"]]
        return sum(values) / 2 if len(values) == 2 else math.inf

    def left(problem, contender, budget, metric):
        if metric == "trajectory":
            return mean(problem, contender, budget, metric)
        floor = FLOW if said["contenders"][contender]["flow"] else EXACT
        squares = [
            sum(c["metrics"][metric] ** 2 for c in cells if (c["problem"], c["contender"], c["budget"]) == (problem, *who)) / 2
            for who in ((contender, budget), (floor, 0))
        ]
        return math.sqrt(squares[0] - squares[1])

    checked = 0
    for line in said["table"]:
        problem, budget, metric = line["problem"], line["budget"], line["metric"]
        for setting, best in line["best"].items():
            group = [label for label, c in said["contenders"].items() if c["setting"] == setting]
            assert best["mean"] == pytest.approx(min(mean(problem, label, budget, metric) for label in group))
            assert best["mean"] == pytest.approx(mean(problem, best["contender"], budget, metric))
        for setting, gain in line["gain"].items():
            if gain is not None and gain["bound"] == "=":
                theirs, us = (left(problem, line["best"][s]["contender"], budget, metric) for s in (setting, OURS))
                assert gain["ratio"] == pytest.approx(theirs / us)
                checked += 1
    settings = {c["setting"] for c in said["contenders"].values()}
    assert settings <= {OURS, USERS, OUR_GRID} and checked > 0


def test_the_page_asks_the_net_for_nothing(found):
    out, said = found
    page = (out / "benchmark.html").read_text(encoding="utf-8")
    urls = set(re.findall(r"(?:https?:)?//[\w.-]+\.\w+[^\s\"'<>]*", page.replace(json.dumps(said["machine"]), "")))
    assert urls <= {"http://www.w3.org/2000/svg"}, "only the name of the SVG namespace, which nothing loads"
    assert not re.search(r"<(?:link|img|iframe|script[^>]+src)|@import|url\((?!#)|fetch\(|XMLHttpRequest|import\(", page)
    data = re.search(r'<script id="results" type="application/json">(.*?)</script>', page, re.S).group(1)
    assert json.loads(data) == said
    assert len(page) < 3_000_000
    assert (out / "table.md").read_text(encoding="utf-8").count("| calls") == 2 * 2


@pytest.mark.skipif(importlib.util.find_spec("matplotlib") is None, reason="needs matplotlib")
def test_there_is_a_plot_for_each_problem(found):
    from PIL import Image

    out, said = found
    for problem in said["problems"]:
        with Image.open(out / f"{problem}.png") as picture:
            assert picture.width > 1000 and len(picture.convert("RGB").getcolors(1 << 24)) > 50


# -- the command -------------------------------------------------------------------------------------------------------


def command(*arguments):
    return CliRunner().invoke(cli.app, ["benchmark", *map(str, arguments)])


def test_the_command_writes_and_tells(tmp_path):
    result = command("--problems", "ring_2d", "--methods", "ddim,rk4", "--budgets", "10,5", "--no-peers", "--seeds", 1, "--rows", 64, "--out", tmp_path)
    assert result.exit_code == 0, result.output
    assert "ring_2d: sliced Wasserstein-2 distance, 64 samples, noise floor" in result.output
    assert {"results.json", "table.md", "benchmark.html", "cells.jsonl"} <= {file.name for file in tmp_path.iterdir()}
    assert json.loads((tmp_path / "results.json").read_text())["plan"]["budgets"] == [5, 10]


def test_every_label_can_be_asked_for():
    """One by one, and all of them in one text, with a space after a comma or without."""
    for label in METHODS:
        assert cli._labelled(label) == [label]
    for comma in (",", ", "):
        assert cli._labelled(comma.join(METHODS).replace(", ", comma)) == list(METHODS)
    assert cli._labelled("auto, ddim,rk4,") == ["auto", "ddim", "rk4"]
    assert cli._labelled(None) is None


def test_the_command_takes_a_label_with_a_comma(tmp_path):
    arguments = ("--problems", "ring_2d", "--methods", "deis, optimised, ddim", "--budgets", "100", "--no-peers", "--seeds", 1, "--rows", 8, "--out", tmp_path)
    assert command(*arguments).exit_code == 0
    assert list(json.loads((tmp_path / "results.json").read_text())["contenders"]) == ["deis, optimised", "ddim"]


def test_what_is_given_twice_is_taken_twice(tmp_path):
    twice = ("--problems", "ring_2d", "--problems", "mixture_2d", "--methods", "ddim", "--methods", "deis, optimised", "--budgets", "30", "--budgets", "100,25")
    assert command(*twice, "--no-peers", "--seeds", 1, "--rows", 8, "--out", tmp_path).exit_code == 0
    found = json.loads((tmp_path / "results.json").read_text())
    assert list(found["problems"]) == ["ring_2d", "mixture_2d"] and list(found["contenders"]) == ["ddim", "deis, optimised"] and found["plan"]["budgets"] == [25, 30, 100]


def test_a_trained_model_takes_part(tmp_path):
    """Of any process and parameterisation, against its own fine solve, with the features that come with the package."""
    model = tiny_model(name="tiny", process="ve", process_options={"sigma_max": 20.0}, predicts="edm", sigma_data=0.3, shape=[1, 28, 28])
    folder = model.save(tmp_path / "mine")
    out = tmp_path / "out"
    result = command("--model", folder, "--classifier", "fashion_mnist", "--methods", "auto,pc", "--budgets", 6, "--no-peers", "--seeds", 1, "--rows", 8, "--out", out)
    assert result.exit_code == 0, result.output
    found = json.loads((out / "results.json").read_text())
    (name,) = found["problems"]
    assert re.fullmatch("mine-[0-9a-f]{8}", name)
    rows = {row["contender"]: row["metrics"] for row in found["results"]}
    assert {"trajectory", "frechet", "sliced_w2"} <= set(rows["auto"]) and "trajectory" not in rows["pc"] and rows["pc"]["frechet"]["mean"] > 0
    problem = make(name, 8, planned("quick", models=[str(folder)], out=out).sources)
    x, t = problem.process.prior((2, 1, 28, 28), seed=0), 0.4
    assert torch.allclose(Network(problem).score(x, t), model.score(x, t), rtol=1e-5)
    own = model.sample(64, "unipc", nfe=20, seed=5, denoise=True)
    assert problem.std == pytest.approx(float((own - own.mean(0)).square().mean().sqrt()), rel=0.2)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--problems", "ring_3d"], "problem 'ring_3d' is not known"),
        (["--methods", "ddin"], "Did you mean 'ddim'"),
        (["--budgets", "5,x"], "as in --budgets 5,10,20"),
        (["--data", "nowhere"], "--data nowhere is not a folder"),
        (["--classifier", "nowhere"], "nor one of mnist, fashion_mnist"),
        (["--model", "nowhere"], "'nowhere' is not known"),
        (["--device", "nowhere"], "cannot be used here"),
    ],
)
def test_bad_values_are_found_before_anything_is_run(arguments, said, tmp_path):
    result = command(*arguments, "--no-peers", "--out", tmp_path)
    assert result.exit_code == 2 and said in result.output
    assert not list(tmp_path.iterdir())


def _packages(label):
    """Names under which the package of a label may be skipped."""
    family = label.split()[0].replace("-", "_")
    return {family, *(name for name in MODULES if family in name.split())}


def test_quick_is_a_part_of_full():
    quick, full = planned("quick"), planned("full")
    assert set(quick.rows) < set(full.rows) and set(quick.budgets) < set(full.budgets) and full.few is None
    here, skipped = peers()
    assert {c.label for c in ours()} | {c.label for c in here} >= {label for label in quick.few if skipped.keys().isdisjoint(_packages(label))}


def test_ctrl_c_leaves_whole_files_and_a_way_to_go_on(tmp_path):
    arguments = [sys.executable, "-m", "sdesolve_gen", "benchmark", "--problems", "mixture_2d", "--no-peers", "--rows", "2048", "--budgets", "100", "--out", str(tmp_path)]
    ready = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # noqa: E731 - a shell's background jobs ignore it, and so would their children
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, cwd=ROOT, preexec_fn=ready)
    file, limit = tmp_path / "cells.jsonl", time.monotonic() + 60
    while not file.is_file() and time.monotonic() < limit:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "the same command goes on from there" in errors
    assert not (tmp_path / "results.json").exists() and all(json.loads(line) for line in file.read_text().splitlines())
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".")]


def test_images_that_are_not_there_are_named(tmp_path):
    with pytest.raises(Skipped, match="--data FOLDER"):
        make("mnist_mixture", 8, Sources(cache=tmp_path))
    with pytest.raises(Skipped, match=r"cifar10.test\.parquet is not a file"):
        make("cifar_points", 8, Sources(data=tmp_path, cache=tmp_path))


def test_real_images(shared_data, tmp_path):
    problem = make("mnist_points", 8, Sources(data=shared_data, cache=tmp_path))
    x, nfe, _ = sampled(problem, ours(["ddim"])[0], 10, seed=0)
    assert nfe == 10 and x.shape == (8, 1, 28, 28)
    nearest = torch.cdist(x.flatten(1), problem.law.sample(4000, seed=1).flatten(1)).amin(1)
    assert float(nearest.median()) < 12, "most are near an image"


def test_a_classifier_gives_its_features(tmp_path):
    """A Fréchet distance of digits, by the last stage of a classifier's network, images in parts."""
    with pytest.raises(FileNotFoundError, match=r"make it: python benchmarks/mnist_classifier\.py"):
        make("mnist_model", 8, Sources(classifier=tmp_path))
    judge = Classifier().eval()
    save_file(judge.state_dict(), tmp_path / "classifier.safetensors")
    problem = make("mnist_model", 8, Sources(classifier=tmp_path))
    x = torch.rand(501, 1, 28, 28) * 2 - 1
    got = problem.features(x.flatten(1))
    with torch.no_grad():
        whole, logits = torch.nn.Sequential(*list(judge)[:-2])(x), judge(x)
    assert problem.has_reference and got.shape == (501, 128) and torch.allclose(got, whole.mean((2, 3)), atol=1e-5)
    assert torch.allclose(probabilities(judge, x), logits.softmax(1), atol=1e-5)


def test_a_flow_is_judged_by_the_flow_from_the_same_starts(found):
    out, said = found
    row = next(r for r in said["results"] if (r["problem"], r["contender"], r["budget"]) == ("mixture_2d", "ddim", 5))
    cells = {(c["contender"], c["budget"], c["seed"]): c["metrics"]["energy"] for c in read(out / "cells.jsonl") if c["problem"] == "mixture_2d" and "metrics" in c}
    left = [cells["ddim", 5, seed] - cells[FLOW, 0, seed] for seed in (0, 1)]
    assert row["metrics"]["energy"]["excess"] == {"mean": pytest.approx(sum(left) / 2), "se": pytest.approx(abs(left[0] - left[1]) / 2), "resolved": True}
