"""The benchmarks run, and what they compare is the same computation."""

from __future__ import annotations

import importlib.util
import inspect
import itertools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from gen_fixtures import random_parquet, tiny_model
from PIL import Image

import sdesolve as sd

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
pytestmark = pytest.mark.skipif(not BENCHMARKS.is_dir(), reason="a source archive has no benchmarks")


def loaded(path: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))  # as for a script that is run
    spec = importlib.util.spec_from_file_location(Path(path).stem, BENCHMARKS / path)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


def test_every_loop_of_step_time_solves_its_equation(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a null model the flow multiplies by 1/alpha(1), and the reverse SDE has a known variance at the end."""
    bench = loaded("step_time.py", monkeypatch)
    x = torch.ones(4000, 2, dtype=torch.float64)
    growth = float(bench.PROCESS.alpha(1e-3) / bench.PROCESS.alpha(1.0))
    for name, loop in bench.EQUATIONS["probability flow, rk4"].items():
        assert torch.allclose(loop(x, 100), growth * x, rtol=1e-5), name
    variance = growth**2 - 1  # dV/ds = beta (V + 1)
    for name, loop in bench.EQUATIONS["reverse SDE, Euler-Maruyama"].items():
        y = loop(x, 400)
        assert float(y.mean()) == pytest.approx(growth, rel=0.05), name
        assert float(y.var()) == pytest.approx(variance, rel=0.1), name


def test_step_time_measures(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = loaded("step_time.py", monkeypatch)
    for equation, contenders in bench.EQUATIONS.items():
        result = bench.measure(equation, (3, 2), steps=3, repeats=3)
        assert set(result["microseconds a step"]) == set(contenders) and result["ratio to the loop by hand"]["by hand"] == 1.0


def test_gradients_and_compiled_measure(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torchdiffeq")
    bench = loaded("gradients.py", monkeypatch)
    assert all(way == "none" or bench.measure(way, 8, 1)["error"] < 1e-5 for way in bench.WAYS)
    compiled = loaded("compiled.py", monkeypatch)
    assert all(compiled.seconds(case, compile=False, steps=2) > 0 for case in compiled.CASES)


def test_both_routes_to_a_likelihood_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = loaded("likelihood.py", monkeypatch)
    theirs, ours, looser = rows = bench.measure("mnist", 1, 1e-3, [1e-1], eps=1e-2)
    assert max(theirs["error"], ours["error"]) < 0.1
    assert looser["calls"] <= ours["calls"] < theirs["calls"] and ours["pullbacks"] < ours["calls"]
    rows[0]["error"] = 2 * max(row["error"] for row in rows)
    assert bench.ratios(rows) == {"same tolerance": theirs["seconds"] / ours["seconds"], "same accuracy": theirs["seconds"] / min(ours["seconds"], looser["seconds"])}


def test_parallel_in_time_measures(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = loaded("parallel_in_time.py", monkeypatch)
    for name, case in bench.cases(2, "cpu").items():
        row = bench.measured(case, "ddim", 12, sd.Parallel(6, 1e-3))
        assert row["less"] > 1 and row["calls"] >= 12 and row["worst error"] < 100, name


@pytest.mark.parametrize("file", ["solve", "samplers"])
def test_the_asv_suite_runs(file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    suite = loaded(f"asv_suite/{file}.py", monkeypatch)
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    classes = [c for _, c in inspect.getmembers(suite, inspect.isclass) if c.__module__ == suite.__name__]
    assert len(classes) == 2
    for benchmark in classes:
        names = [name for name, _ in inspect.getmembers(benchmark, inspect.isfunction) if name.startswith(("time_", "track_", "peakmem_"))]
        first, *others = getattr(benchmark, "params", ((),))
        for arguments in itertools.product(first[:1], *others) if first else [()]:
            made = benchmark()
            made.setup(*arguments)
            results = [getattr(made, name)(*arguments) for name in names]
            assert names and all(result is None or isinstance(result, float) for result in results)


def test_biases_of_conditioning_are_those_of_its_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """Noise 0.1, fewer draws and steps than the page has: what is exact is, and the others are off by what is said."""
    bench = loaded("posterior_bias.py", monkeypatch)
    ancestral, sde = bench.ANCESTRAL, ("dpmpp_2m_sde", {})
    for name, sampler, key, coordinate, value in (
        ("mmps", sde, "spread", 0, 1.0),
        ("mmps", sde, "coverage", 1, 0.9),
        ("dps", ancestral, "coverage", 0, 0.69),
        ("ddnm", ancestral, "spread", 0, 0.4),
        ("ddnm", ancestral, "coverage", 1, 0.81),
        ("diffpir", ancestral, "bias", 0, -0.7),
    ):
        found = bench.judged(name, {}, sampler, 0.1, 1500, 80)[key][coordinate]
        assert float(found) == pytest.approx(value, abs=0.08), (name, key)


def test_classes_are_drawn_and_noise_is_seen_through(monkeypatch: pytest.MonkeyPatch) -> None:
    gen = pytest.importorskip("sdesolve_gen")
    bench, noisy = loaded("class_conditional.py", monkeypatch), loaded("noisy_classifier.py", monkeypatch)
    model, classifier = gen.load("mnist"), gen.load_classifier("mnist_classifier")
    labels = torch.arange(2)
    images, cost = bench.drawn(model, classifier, ("ddim", {"steps": 3}, 6.0), labels, 0)
    assert images.shape == (2, 1, 28, 28)
    assert (cost["nfe"], cost["failed"]) == (8, 0)
    pixels = ((images + 1) * 127.5).to(torch.uint8)
    own = classifier.logits(images, 0.05).argmax(1)
    assert noisy.accuracy(classifier, pixels, own, 0.02) == 1.0
    assert noisy.accuracy(classifier, pixels, own + 1, 0.02) == 0.0


@pytest.mark.filterwarnings("ignore:.*feature directions")
def test_score_and_ddpm_are_trained_and_judged_alike(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bench = loaded("score_vs_ddpm.py", monkeypatch)
    for part in ("train", "test"):
        random_parquet(tmp_path / f"{part}.parquet", n=12, side=28)
    tiny = [str(tmp_path), str(tmp_path / "out"), "--models", "ve", "ddpm", "--width", "8", "--steps", "2", "--batch", "4", "--n", "8", "--calls", "4"]
    bench.main(tiny)
    first = json.loads((tmp_path / "out" / "score_vs_ddpm.json").read_text())
    kinds = [(row["training"], row["sampler"]) for row in first["rows"]]
    assert kinds == [*((name, sampler) for name in ("ve", "ddpm") for sampler in ("EM", "PC", "ODE", "ancestral")), ("test set", "")]
    assert first["rows"][-1]["figures"]["fid"]["value"] < first["rows"][0]["figures"]["fid"]["value"]
    bench.main(tiny)  # all of it is there
    assert json.loads((tmp_path / "out" / "score_vs_ddpm.json").read_text()) == first
    assert "best ve" in capsys.readouterr().out


def test_a_corrector_has_as_many_calls_as_the_predictor_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bench = loaded("pc_vs_predictor.py", monkeypatch)
    for part in ("train", "test"):
        random_parquet(tmp_path / f"{part}.parquet", n=12, side=28)
    models = [str(tiny_model(name=name, process=name, shape=[1, 28, 28]).save(tmp_path / name)) for name in ("ve", "vp")]
    tiny = ["--models", *models, "--predictors", "reverse_diffusion", "euler", "--steps", "2", "--snr", "0.1", "0.2", "--n", "8", "--batch-size", "5"]
    bench.main([str(tmp_path), str(tmp_path / "out"), *tiny])
    rows = json.loads((tmp_path / "out" / "pc_vs_predictor.json").read_text())["rows"]
    alone_and_two = [(predictor, steps, snr) for predictor in ("reverse_diffusion", "euler") for steps, snr in ((4, None), (2, 0.1), (2, 0.2))]
    assert [(row["predictor"], row["steps"], row["snr"]) for row in rows] == [*alone_and_two, *alone_and_two, ("", 0, None)]
    assert {row["nfe"] for row in rows[:-1]} == {5}  # and one to denoise
    for first in range(0, 12, 3):
        alone, *corrected = (row["figures"]["fid"] for row in rows[first : first + 3])
        assert corrected[0] != corrected[1]  # the ratio is heard
        for row, figure in zip(rows[first + 1 : first + 3], corrected, strict=True):
            assert row["gain"]["value"] == pytest.approx(alone["value"] - figure["value"])
            assert row["gain"]["standard_error"] == pytest.approx((alone["standard_error"] ** 2 + figure["standard_error"] ** 2) ** 0.5)
    assert rows[-1]["figures"]["fid"]["value"] < rows[0]["figures"]["fid"]["value"]  # noise is not the data
    assert all(0.1 < row["figures"]["confidence"]["value"] <= 1 for row in rows)
    assert len(capsys.readouterr().out.splitlines()) == 1 + len(rows)


def test_auto_is_compared_draw_by_draw(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bench = loaded("auto.py", monkeypatch)
    monkeypatch.setattr(bench, "CHOICES", {name: bench.CHOICES[name] for name in ("deis log_rho karras", "dpmpp_2m karras")})
    monkeypatch.setattr(bench, "DIMENSIONS", (2,))
    bench.main(["mixture_2d:64", "--budgets", "5", "20", "--out", str(tmp_path)])
    (five,), (twenty,) = json.loads((tmp_path / "auto-range.json").read_text())["table"].values()
    assert five["best"] == "deis log_rho karras" and five["more"] == 0.0 and five["more_se"] == 0.0  # which is what auto takes there
    assert twenty["more"] == pytest.approx(twenty["auto"] - twenty["distance"]) and twenty["more_se"] > 0
    assert "| 5 | 1.00 | deis log_rho karras | 1.00 | +0 ± nan |" in capsys.readouterr().out  # of one problem
    bench.main(["--random", "1", "--budgets", "5", "--out", str(tmp_path / "random")])
    assert [row["problem"] for row in json.loads((tmp_path / "random" / "auto-range.json").read_text())["table"]["5"]] == ["random_2_0"]


def test_ddpm_goes_on_where_it_was(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    bench = loaded("score_vs_ddpm.py", monkeypatch)
    data = random_parquet(tmp_path / "train.parquet", n=12, side=8)
    budget = bench.Budget(width=8, steps=8, batch=4, n=8, calls=4, seed=0)
    whole = bench.train_ddpm(budget.config("ddpm", data, tmp_path / "whole"))
    monkeypatch.setattr(bench.nn.utils, "clip_grad_norm_", fails_at(6, bench.nn.utils.clip_grad_norm_))
    with pytest.raises(KeyboardInterrupt):
        bench.train_ddpm(budget.config("ddpm", data, tmp_path / "again"))
    again = bench.train_ddpm(budget.config("ddpm", data, tmp_path / "again"))
    assert all(torch.equal(a, b) for a, b in zip(whole.network.state_dict().values(), again.network.state_dict().values(), strict=True))


def fails_at(call: int, function: Callable[..., Any]) -> Callable[..., Any]:
    calls = itertools.count(1)

    def failing(*arguments: Any) -> Any:
        if next(calls) == call:
            raise KeyboardInterrupt
        return function(*arguments)

    return failing


@pytest.mark.parametrize("steps", [6, 60])
def test_both_samplers_of_the_throughput_draw_the_data(steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a Gaussian of standard deviation 2 with its exact score: the variance that algorithms 2 and 4 of Song et al. 2021 leave, and ours for as many calls."""
    bench = loaded("sampling_throughput.py", monkeypatch)
    calls = []

    def network(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        calls.append(len(x))
        return -x / (4 + sigma**2)[:, None, None, None]

    torch.manual_seed(0)
    shape, low, high = (400, 3, 8, 8), 0.01, 50.0
    x = bench.by_hand(network, high * torch.randn(shape), steps, low, high)
    assert len(calls) == 2 * steps
    variance, last = high**2, 0.0
    for i in reversed(range(steps)):
        t = 1e-5 + (1 - 1e-5) * i / (steps - 1)
        level, below = (low * (high / low) ** (k / (steps - 1)) if k >= 0 else 0.0 for k in (int(t * (steps - 1)), int(t * (steps - 1)) - 1))
        total = 4 + (low * (high / low) ** t) ** 2
        size = 2 * 0.16**2 * total**2 / variance
        variance = (1 - size / total) ** 2 * variance + 2 * size
        last = (1 - (level**2 - below**2) / total) ** 2 * variance
        variance = last + level**2 - below**2
    assert float(x.var()) == pytest.approx(last, rel=0.02)

    process = sd.VESDE(low, high)
    ours = sd.solve(process.reverse(sd.as_score(network, process, predicts="score", time="sigma")), process.prior(shape, seed=0), "pc", steps=steps, seed=0)
    assert len(calls) == 2 * steps + ours.nfe == 4 * steps


def test_the_posterior_exam_marks_cases_and_says_which_are_out_of_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = loaded("posterior_exam.py", monkeypatch)
    particles = bench.sit(bench.contenders(20)["smc"], True, "gaussian", "wide", 0.3)
    assert particles["mean_error"] < 0.1 and abs(particles["coverage"] - 0.9) < 0.05
    refused = bench.sit(bench.contenders(5)["projection"], True, "gaussian", "wide", 0.3)
    assert "orthogonal rows" in refused["refused"]
    good = {**particles, "mean_error": 0.01, "covariance_error": 0.04, "noise": 1.005, "rank_p": 0.02}
    for figure in ({}, {"mean_error": 0.021}, {"covariance_error": 0.051}, {"noise": 0.989}, {"rank_p": 0.009}):
        assert ("**out:**" in bench.cases({"smc": [{**good, **figure}]})) == bool(figure)


@pytest.mark.slow
def test_particles_keep_the_bounds_of_an_exact_method(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mean within 2 % of the posterior's spread, covariance within 5 %, the noise of y - A x within 1 %, and uniform ranks, p > 0.01."""
    bench = loaded("posterior_exam.py", monkeypatch)
    mark = bench.sit(bench.contenders(200)["smc"], False, "mixture", "mask", 0.3)
    assert bench.kept(mark), mark


def test_inverse_problems_stand_in_one_table(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = loaded("inverse_mnist.py", monkeypatch)
    batch = {"psnr": [16.0, 18.0], "ssim": [0.7, 0.8], "digit": [True, False], "residual": [0.1, 0.1], "sampler": "ddim", "nfe": 51.0, "seconds": 0.25}
    results = {"half/ddrm/0-2": batch, "blur/ddrm/0-2": batch, "blur/ddrm/2-4": {**batch, "psnr": [19.0, 19.0]}, "half/repaint/0-2": {"refused": "why; so"}}
    assert bench.summary(results, ["half", "blur"], ["ddrm", "repaint"]).splitlines()[3:] == ["| `ddrm` | 17.0, 0.75, 50 % | 18.0, 0.75, 50 % (4) | 51 | 0.25 |"]
    assert "refused: why" in bench.table(results, "half", ["ddrm", "repaint"])


def test_mri_is_compared_with_all_that_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """A real image's coefficient that is measured alone has its conjugate, without which half of it is lost; and both sides are cut to the data range."""
    bench = loaded("medical.py", monkeypatch)
    truth = torch.rand(1, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    mri = bench.operator_of("brain MR", 16, 30, 4)
    torch.testing.assert_close(mri.forward(bench.classic(mri, mri.forward(truth))), mri.forward(truth), rtol=1e-4, atol=1e-4)
    black = torch.zeros_like(truth)
    assert bench.figures("a", black - 0.1, black)["a_psnr"] == float("inf")


def test_a_start_is_measured_beside_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """At few calls one at T is farther, and few draws have moments that are farther than many; half of a rare mode is found in few calls, and all of it in many."""
    bench = loaded("start.py", monkeypatch)
    law = bench.exam.mixture_2d()
    few, many = (sd.Range.of(law.sample(n, seed=1, dtype=torch.float64)) for n in (1_000, 16_384))
    (default, _), (at_t, _), (poorer, _) = (bench.distance(law, span, bench.STARTS[name], (10,), 400)[0] for span, name in ((many, "as it is"), (many, "T"), (few, "as it is")))
    assert 2 * default < at_t and default < poorer
    assert bench.rare(5, False, 10_000) < 0.008 < 0.0095 < bench.rare(35, False, 10_000) < 0.0105
def test_no_slice_is_reconstructed_by_a_network_that_has_seen_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Slices of one value each, 0.1, 0.2, ...: a fold's training slices are all but those that ``main`` gives to it, and no variant is of another."""
    bench = loaded("medical.py", monkeypatch)
    values = {f"{stem}{i}": (5 * number + i + 1) / 20 for number, (stem, n) in enumerate({"CT": 5, "MR": 3, "XR": 5}.items()) for i in range(n)}
    for name, value in values.items():
        Image.fromarray(np.full((48, 48), round(2000 * value), np.uint16)).save(tmp_path / f"{name}.png")
    for fold in range(bench.FOLDS):
        held = {value for name, value in values.items() if int(name[2:]) % bench.FOLDS == fold}
        fine = bench.seen(tmp_path, fold, 32)
        assert {round(float(x.mean()), 2) for x in fine} == set(values.values()) - held
        assert len(torch.cat([fine.unique(), torch.tensor(sorted(held))]).unique()) == len(values)


def test_variants_are_many_pictures_of_the_slices_in_levels(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same by the same seed, however they are cut into parts; no two alike, as bright as they may be, and some of them zoomed in."""
    bench = loaded("medical.py", monkeypatch)
    y, x = torch.meshgrid(torch.linspace(-1, 1, 64), torch.linspace(-1, 1, 64), indexing="ij")
    disc = ((x.square() + y.square()) < 0.25).float()[None, None] / 2
    made = bench.variants(disc, 60, 16, seed=3)
    assert made.shape == (60, 1, 16, 16) and made.dtype == torch.uint8 and len(made.flatten(1).unique(dim=0)) == 60
    monkeypatch.setattr(bench, "CHUNK", 7)
    torch.testing.assert_close(bench.variants(disc, 60, 16, seed=3), made, rtol=0, atol=1)
    brightest, filled = made.flatten(1).amax(1) / 256, (made > 20).float().flatten(1).mean(1)
    assert 0.29 < brightest.min() < 0.36 and 0.58 < brightest.max() < 0.66  # 0.6 to 1.3 times 1/2
    assert filled.min() < 0.19 < 0.5 < filled.max()  # the disc itself fills 0.2 of its slice


@pytest.mark.filterwarnings("ignore::sdesolve.SolveWarning")  # two updates make no prior
def test_medical_slices_from_training_to_the_table(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The whole of it in little; the second time the networks are taken as they are, and say the same."""
    bench = loaded("medical.py", monkeypatch)
    draws = np.random.default_rng(0)
    for name in ("CT0", "CT1", "MR0", "MR1", "XR0", "XR1"):
        Image.fromarray(draws.integers(0, 2000, (48, 48)).astype(np.uint16)).save(tmp_path / f"{name}.png")
    monkeypatch.setattr(bench, "FOLDS", 2)
    small = ["--side", "16", "--angles", "6", "--variants", "20", "--updates", "2", "--draws", "2", "--steps", "2"]
    monkeypatch.setattr(sys, "argv", ["medical.py", str(tmp_path), *small, "--out", str(tmp_path / "out")])
    told = []
    for _ in range(2):
        bench.main()
        told.append((json.loads((tmp_path / "out" / "results.json").read_text()), (tmp_path / "out" / "fold1" / "log.jsonl").read_text()))
    (first, trained), (again, unchanged) = told
    assert trained == unchanged and len(trained.splitlines()) >= 1
    names = [row["slice"] for row in first["slices"]]
    assert names == ["CT 0", "CT 1", "MR 0", "MR 1", "brain MR 0", "brain MR 1"]
    printed = capsys.readouterr().out
    assert all(printed.count(f"| {name} | ") == 2 for name in names)
    assert [row["mean_psnr"] for row in again["slices"]] == [row["mean_psnr"] for row in first["slices"]]
    assert {path.name for path in (tmp_path / "out").glob("*.png")} == {"CT.png", "MR.png", "brain_MR.png"}
