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

import pytest
import torch
from gen_fixtures import random_parquet

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
    theirs, ours, looser = rows = bench.measure("mnist", 1, 1e-2, [1e-1], eps=1e-2)
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
    assert kinds == [("ve", "EM"), ("ve", "PC"), ("ve", "ODE"), ("ddpm", "EM"), ("ddpm", "PC"), ("ddpm", "ODE"), ("ddpm", "ancestral"), ("test set", "")]
    assert first["rows"][-1]["figures"]["fid"]["value"] < first["rows"][0]["figures"]["fid"]["value"]
    bench.main(tiny)  # all of it is there
    assert json.loads((tmp_path / "out" / "score_vs_ddpm.json").read_text()) == first
    assert "best ve" in capsys.readouterr().out


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
