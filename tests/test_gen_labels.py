"""Models that know classes: each image is told its own in likelihoods, codes, checks and evaluations, and nobody's class is guessed."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
import torch
from gen_fixtures import NETWORK, png, tiny_card, tiny_config, tiny_model
from safetensors.torch import load_file
from test_gen_class_conditional import conditional_model
from torch import Tensor, nn
from typer.testing import CliRunner, Result

import sdesolve as sd
import sdesolve_gen as gen
from sdesolve_gen import cli
from sdesolve_gen.class_conditional import labels_drawn, labels_of, on_the_way
from sdesolve_gen.likelihoods import measure, read_table
from sdesolve_gen.networks import UNet

MEANS, STD = torch.tensor([-0.6, 0.0, 0.6, 0.2]), 0.1  # of the classes 0, 1 and 2, and of none
SHAPE = (1, 3, 3)
PROCESS = sd.VPSDE()


class Known(nn.Module):
    """The exact score of N(mean of the class, std^2)."""

    def __init__(self) -> None:
        super().__init__()
        self.nothing = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        labels = torch.full((len(x),), 3) if labels is None else labels
        alpha, sigma, mean = (c.to(x)[:, None, None, None] for c in (PROCESS.alpha(t), PROCESS.sigma(t), MEANS[labels]))
        return (alpha * mean - x) / (alpha**2 * STD**2 + sigma**2) + self.nothing


@pytest.fixture(scope="module")
def model() -> gen.Model:
    return gen.wrap(Known(), process=PROCESS, predicts="score", shape=SHAPE, classes=3, name="known")


def images_of(labels: Tensor, seed: int = 0) -> Tensor:
    noise = torch.randn((len(labels), *SHAPE), generator=torch.Generator().manual_seed(seed))
    return MEANS[labels][:, None, None, None] + STD * noise


def log_prob(x: Tensor, labels: Tensor) -> Tensor:
    z = (x - MEANS[labels][:, None, None, None]).double().flatten(1) / STD
    return -0.5 * z.square().sum(1) - z.shape[1] * math.log(STD * math.sqrt(2 * math.pi))


LABELS = torch.tensor([2, 0, 1, 1, 0, 2, 3])


# -- in Python ---------------------------------------------------------------------------------------------------------------


def test_a_likelihood_is_of_each_image_s_own_class(model: gen.Model) -> None:
    x = images_of(LABELS)
    r = model.log_likelihood(x, labels=LABELS, seed=0, divergence="exact", extrapolate=True)
    assert torch.allclose(r.log_prob, log_prob(x, LABELS), atol=0.05)
    assert r.ok().all() and len(r.nfe) == len(r.budget.solver) == 7 and r.latent.shape == x.shape
    whole, one = model.log_likelihood(x, labels=2, seed=0), model.of_class(2).log_likelihood(x, seed=0)
    assert torch.equal(whole.log_prob, one.log_prob)
    assert r.stats["calls"] > one.stats["calls"] and r.stats["seed"] == 0


def test_probes_are_those_of_the_image_s_number() -> None:
    m, how = conditional_model(torch.float64), {"seed": 0, "rtol": 1e-3, "atol": 1e-3, "eps": 1e-2}
    x = torch.randn(4, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    r = m.log_likelihood(x, labels=[1, 0, 2, 0], **how)
    assert torch.allclose(r.log_prob[3:], m.log_likelihood(x[3:], labels=0, sample_ids=[3], **how).log_prob, atol=1e-2)
    assert not torch.allclose(r.log_prob[3:], m.log_likelihood(x[3:], labels=0, sample_ids=[1], **how).log_prob, atol=1e-2)


def test_a_failure_is_told_by_the_number_of_the_image(model: gen.Model) -> None:
    x = images_of(LABELS)
    x[4] = torch.nan
    with pytest.warns(sd.SolveWarning, match=r"1 of 7 samples have no likelihood \(sample 4: non_finite\)"):
        assert model.log_likelihood(x, labels=LABELS, seed=0).ok().tolist() == [True] * 4 + [False] + [True] * 2


@pytest.mark.parametrize("options", [{"rtol": 1e-6, "atol": 1e-6}, {"method": "leapfrog", "steps": 40}], ids=["rk45", "leapfrog"])
def test_codes_are_made_and_undone_by_class(model: gen.Model, options: dict[str, Any]) -> None:
    x = images_of(LABELS)
    code = model.encode(x, labels=LABELS, **options)
    assert torch.allclose(model.decode(code, labels=LABELS), x, atol=1e-3)
    if "steps" not in options:  # along the flow of a Gaussian  (x - alpha m)/sd(t)  stays
        alpha, sigma = float(PROCESS.alpha(1.0)), float(PROCESS.sigma(1.0))
        mean = MEANS[LABELS][:, None, None, None]
        assert torch.allclose(code.x, alpha * mean + math.hypot(alpha * STD, sigma) * (x - mean) / STD, atol=5e-3)
    other = model.decode(code, labels=LABELS.roll(1))
    assert float((other - x).flatten(1)[0].mean()) == pytest.approx(float(MEANS[3] - MEANS[2]), abs=0.02)


def test_a_way_between_two_classes_is_of_the_nearer_end(model: gen.Model) -> None:
    a, b = images_of(torch.tensor([0, 1])), images_of(torch.tensor([2, 2]), seed=1)
    way = model.interpolate(a, b, 4, labels=[0, 1], labels_b=2, rtol=1e-6, atol=1e-6)
    assert torch.allclose(way[0], a, atol=1e-3) and torch.allclose(way[3], b, atol=1e-3)
    assert (way[1, 0].mean() < -0.3) and (way[2, 0].mean() > 0.3)
    assert on_the_way(torch.tensor([0, 2]), 3).tolist() == [0, 0, 2]  # type: ignore[union-attr]
    assert on_the_way(torch.tensor([[0, 1], [2, 2]]), 4).tolist() == [[0, 1], [0, 1], [2, 2], [2, 2]]  # type: ignore[union-attr]


def test_a_check_is_of_each_image_s_own_class(model: gen.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    labels = torch.arange(150) % 3
    x = images_of(labels)
    assert model.check(x, labels=labels).ok
    rows: list[int] = []
    forward = Known.forward
    with monkeypatch.context() as patch:
        patch.setattr(Known, "forward", lambda self, x, *rest: rows.append(len(x)) or forward(self, x, *rest))
        model.check(x, labels=labels, batch_size=7)
    assert max(rows) == 7
    assert model.check(x, labels=labels, batch_size=7).slope == pytest.approx(model.check(x, labels=labels).slope, rel=1e-5)
    for wrong in (1, labels.roll(1)):
        with pytest.raises(sd.ModelCheckError):
            model.check(x, labels=wrong)
    assert model.check(n=64, labels=torch.arange(64) % 3).ok
    assert gen.wrap(Known(), process=PROCESS, predicts="score", shape=SHAPE, classes=3, data=x, labels=labels).classes == 3


def test_nobody_s_class_is_guessed(model: gen.Model) -> None:
    x = images_of(LABELS)
    calls: list[Any] = [
        lambda **o: model.log_likelihood(x, **o), lambda **o: model.encode(x, **o), lambda **o: model.decode(x, **o), lambda **o: model.check(x, **o),
        lambda **o: model.interpolate(x, x, **o),
    ]  # fmt: skip
    for call in calls:
        with pytest.raises(ValueError, match=r"labels are missing; expected integers from 0 to 3 \(3 for no class\)"):
            call()
        with pytest.raises(ValueError, match=r"labels hold \[4\]"):
            call(labels=4)
        with pytest.raises(ValueError, match=r"expected \(7,\), one a sample"):
            call(labels=[0, 1])
    for call in (tiny_model().log_likelihood, tiny_model().encode, tiny_model().check):
        with pytest.raises(ValueError, match="knows no classes"):
            call(torch.zeros(2, 1, 8, 8), labels=0)


def test_no_class_is_one_that_may_be_meant(model: gen.Model) -> None:
    x = images_of(torch.full((4,), 3))
    none = model.of_class(3)
    assert torch.equal(none.log_likelihood(x, seed=0).log_prob, model.log_likelihood(x, labels=3, seed=0).log_prob)
    restored = none.inpaint(x, torch.eye(3), method="pigdm", steps=3, seed=0)
    assert restored.images.shape == (4, 1, *SHAPE)
    with pytest.raises(ValueError, match=r"labels hold \[4\]"):
        model.of_class(4)


# -- what was said ------------------------------------------------------------------------------------------------------------


def test_the_class_of_a_sample_is_a_function_of_its_number(model: gen.Model) -> None:
    own = torch.tensor([0] * 60 + [1] * 30 + [2] * 10)
    said = {"balanced": torch.arange(50) % 3, 2: torch.full((50,), 2), "none": torch.full((50,), 3)}
    for word, expected in said.items():
        assert torch.equal(labels_drawn(model, word, None, range(50)), expected)  # type: ignore[arg-type]
    drawn = labels_drawn(model, "data", own, range(1000))
    assert drawn is not None
    for start in (0, 137, 600):
        part = labels_drawn(model, "data", own[torch.randperm(100)], range(start, start + 100))
        assert torch.equal(part, drawn[start : start + 100])  # type: ignore[arg-type]
        assert (part.bincount(minlength=3) - torch.tensor([60, 30, 10])).abs().max() <= 2  # type: ignore[union-attr]
    assert torch.equal(labels_of(model, "data", own, 100), own)  # type: ignore[arg-type]
    assert labels_of(model, 1, own, 2).tolist() == [1, 1]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("said", "own", "message"),
    [
        (None, LABELS[:6], r"'known' knows 3 classes, and nothing was said.*labels='data' \(each image its own\), labels='none' \(of no class\), .* labels=0"),
        (None, None, "nothing was said"), ("data", None, "labels='data', and the data have no labels; expected data that have"),
        ("data", LABELS, r"labels hold \[3\]; expected integers from 0 to 2"), ("dta", None, "labels='dta'; expected"), ("balanced", None, "labels='balanced'; expected"),
        (4, None, r"hold \[4\]"),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_is_one_line(model: gen.Model, said: Any, own: Tensor | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        labels_of(model, said, own, 6)
    with pytest.raises(ValueError, match=r"expected --labels data .*, --labels none .*, as in --labels 0"):
        labels_of(model, None, own, 6, "--labels")
    with pytest.raises(ValueError, match="labels=3 is for a model that knows classes, and 'tiny' knows none"):
        labels_of(tiny_model(), 3, own, 6)
    assert labels_of(tiny_model(), None, own, 6) is labels_drawn(tiny_model(), None, own, range(6)) is None


def test_labels_go_by_the_names_of_classes_where_both_say_them(model: gen.Model) -> None:
    """The model has "dog", "cat" and "emu" as 0, 1, 2; folders "cat" and "dog" are 0 and 1 by themselves."""
    named = gen.Model(model.network, {**model.card, "class_names": ["dog", "cat", "emu"]})
    data = images_of(torch.tensor([0, 1, 1]))
    own = gen.data.of_tensor(data)._replace(labels=torch.tensor([0, 1, 1]), classes=("cat", "dog"))
    assert labels_of(named, "data", own, 3).tolist() == [1, 0, 0]  # type: ignore[union-attr]
    assert sorted(labels_drawn(named, "data", own, range(3)).tolist()) == [0, 0, 1]  # type: ignore[union-attr]
    assert labels_of(model, "data", own, 3).tolist() == labels_of(named, "data", own._replace(classes=None), 3).tolist() == [0, 1, 1]  # type: ignore[union-attr]
    other = own._replace(classes=("cat", "frog"))
    with pytest.raises(ValueError, match=r"the data have classes frog, and those of the model 'known' are dog, cat, emu; expected these"):
        labels_of(named, "data", other, 3)
    assert labels_of(named, "none", other, 3).tolist() == [3, 3, 3]  # type: ignore[union-attr]
    with pytest.raises(gen.ModelFileError, match="class_names = 'dog'; expected a list of strings"):
        gen.Model(model.network, {**model.card, "class_names": "dog"})


def test_a_model_trained_on_folders_knows_their_names(tmp_path: Path) -> None:
    for i, name in enumerate(["cat", "dog"] * 4):
        (tmp_path / "data" / name).mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / name / f"{i}.png").write_bytes(png(np.full((8, 8), 30 * i, np.uint8)))
    m = gen.train(tiny_config(tmp_path / "data", tmp_path / "out", classes=2, steps=1, batch=4, warmup=1), progress=False)
    assert gen.load(tmp_path / "out").card["class_names"] == m.card["class_names"] == ["cat", "dog"]
    assert "class_names" not in gen.train(tiny_config(tmp_path / "data", tmp_path / "none", steps=1, batch=4, warmup=1), progress=False).card


# -- evaluation ---------------------------------------------------------------------------------------------------------------


def evaluate(model: gen.Model, data: Any, out: Path, **options: Any) -> gen.Evaluation:
    given: dict[str, Any] = {"metrics": ["kid"], "n": 24, "batch_size": 5, "method": "ddim", "steps": 20, "features": nn.Flatten(), "progress": False}
    return gen.evaluate(model, data, out=out, **{**given, **options})


def drawn(out: Path) -> Tensor:
    return torch.cat([load_file(file)["images"] for file in sorted((out / "samples").glob("[0-9]*.safetensors"))])


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty labelled pictures, three quarters of class 0 and none of class 1."""
    path, labels = tmp_path_factory.mktemp("labels") / "data.parquet", torch.tensor([0] * 30 + [2] * 10)
    pictures = ((images_of(labels) + 1) * 128).clamp(0, 255).to(torch.uint8).numpy()[:, 0]
    parquet.write_table(pa.table({"image": [{"bytes": png(p), "path": ""} for p in pictures], "label": labels.tolist()}), path)
    return path


@pytest.mark.parametrize("said", ["balanced", "data", "none", 2])
def test_samples_are_of_the_classes_that_were_said(model: gen.Model, data: Path, tmp_path: Path, said: Any) -> None:
    found = evaluate(model, data, tmp_path / "one", labels=said)
    labels = labels_drawn(model, said, torch.tensor([0] * 30 + [2] * 10), range(24))
    means = drawn(tmp_path / "one").float().flatten(1).mean(1) / 128 - 1
    assert torch.allclose(means, MEANS[labels], atol=0.15)
    assert found.report["settings"]["labels"] == said
    for shard in ("1/2", "0/2"):
        shared = evaluate(model, data, tmp_path / "two", labels=said, shard=shard)
    assert torch.equal(drawn(tmp_path / "one"), drawn(tmp_path / "two"))
    assert shared.complete and shared["kid"] == found["kid"]


def test_another_class_or_scale_is_another_run(model: gen.Model, data: Path, tmp_path: Path) -> None:
    evaluate(model, data, tmp_path, labels="data")
    for change in ({"labels": "balanced"}, {"labels": "data", "guidance": 2.0}):
        with pytest.raises(ValueError, match="made with other settings"):
            evaluate(model, data, tmp_path, **change)
    other = data.with_name("other.parquet")
    table = parquet.read_table(data).to_pydict()
    parquet.write_table(pa.table({**table, "label": [0] * 20 + [2] * 20}), other)
    with pytest.raises(ValueError, match="made with other settings"):  # the shares of other data
        evaluate(model, other, tmp_path, labels="data")


def test_guidance_is_the_sampler_s(model: gen.Model, data: Path, tmp_path: Path) -> None:
    evaluate(model, data, tmp_path, labels=0, guidance=1.3)
    expected = model.sample(24, "ddim", steps=20, seed=0, labels=0, guidance=1.3, batch_size=5)
    assert torch.equal(drawn(tmp_path), ((expected + 1) * 128).floor().clamp(0, 255).to(torch.uint8))


def test_bits_per_dim_are_of_each_image_s_class(model: gen.Model, data: Path, tmp_path: Path) -> None:
    loose = {"n": 40, "rtol": 1e-3, "atol": 1e-3}
    found = evaluate(model, data, tmp_path, metrics=["bpd"], likelihood={"labels": "data", **loose})
    whole = gen.data.read_data(data)
    expected = model.log_likelihood(whole.images, labels=whole.labels, seed=0, rtol=1e-3, atol=1e-3).bits_per_dim(model.data_range)
    assert found["bits_per_dim"].value == pytest.approx(float(expected.mean()), rel=1e-4)
    assert evaluate(model, data, tmp_path, metrics=["bpd"], likelihood={"labels": "none", **loose})["bits_per_dim"].value > found["bits_per_dim"].value + 1


def test_bits_per_dim_of_other_labels_are_measured_anew(model: gen.Model, data: Path, tmp_path: Path) -> None:
    """In one folder, of the same images."""
    found = []
    table = parquet.read_table(data).to_pydict()
    for labels in (table["label"], [2] * 30 + [0] * 10):
        other = tmp_path / f"{labels[0]}.parquet"
        parquet.write_table(pa.table({**table, "label": labels}), other)
        likelihood = {"labels": "data", "n": 8, "rtol": 1e-2, "atol": 1e-2}
        found.append(evaluate(model, other, tmp_path / "out", metrics=["bpd"], likelihood=likelihood)["bits_per_dim"].value)
    assert found[1] > found[0] + 1


def test_rows_of_data_keep_their_labels(data: Path) -> None:
    whole = gen.data.read_data(data)
    for places in ([35, 3, 31], slice(28, 33)):
        part = whole.rows(places)
        assert part.labels is not None and part.labels.tolist() == whole.labels[places].tolist() == [int(i >= 30) * 2 for i in part.ids]  # type: ignore[index]


def test_a_table_of_one_class_says_which(model: gen.Model, data: Path) -> None:
    whole = gen.data.read_data(data).rows(slice(2))
    (rows,) = measure(model.of_class(2), whole, 0, 2, rtol=0.1, atol=0.1)
    assert [row["label"] for row in rows] == [2, 2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"nothing was said of which is meant; expected labels='balanced' \(each class in turn\), labels='data' \(by their shares"),
        ({"labels": "blanced"}, "labels='blanced'; expected"), ({"labels": 4}, r"hold \[4\]"), ({"labels": 0, "guidance": -1.0}, "guidance=-1.0"),
        ({"labels": "balanced", "classifier": "mnist_classifier"}, "classifier=... is not for evaluate: a model is judged by itself"),
        ({"metrics": ["bpd"]}, "nothing was said of which is meant; expected bits/dim labels='data'"),
    ],
)  # fmt: skip
def test_an_evaluation_guesses_no_class(model: gen.Model, data: Path, tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        evaluate(model, data, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match="knows none"):
        evaluate(tiny_model(), torch.zeros(9, 1, 8, 8), tmp_path / "out", labels="balanced")
    with pytest.raises(ValueError, match="labels='data', and the data have no labels"):
        evaluate(model, images_of(LABELS.repeat(2)), tmp_path / "out", labels="data")


# -- the command line ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def run(model: gen.Model, monkeypatch: pytest.MonkeyPatch) -> Any:
    for module in ("cli", "commands_import", "commands_evaluate", "commands_restoration"):
        monkeypatch.setattr(f"sdesolve_gen.{module}.load", lambda *a, **k: model)

    def call(*words: object) -> Result:
        return CliRunner().invoke(cli.app, [str(word) for word in words])

    return call


def test_likelihood_says_which_class_each_image_was_told(run: Any, model: gen.Model, data: Path, tmp_path: Path) -> None:
    words = ["likelihood", "--data", data, "--rtol", "1e-3", "--atol", "1e-3"]
    refused = run(*words, "--out", tmp_path / "a.csv")
    assert refused.exit_code == 2 and "expected --labels data (each image its own), --labels none (of no class)" in refused.output
    whole = gen.data.read_data(data)
    for suffix, said, labels in (("csv", "data", whole.labels), ("parquet", "none", torch.full((40,), 3)), ("csv", "2", torch.full((40,), 2))):
        out = tmp_path / f"{said}.{suffix}"
        result = run(*words, "--labels", said, "--out", out, "--batch-size", 16)
        assert result.exit_code == 0, result.output
        rows = read_table(out)
        assert [row["label"] for row in rows] == labels.tolist()
        expected = model.log_likelihood(whole.images, labels=labels, seed=0, rtol=1e-3, atol=1e-3)
        assert [row["log_prob"] for row in rows] == pytest.approx(expected.log_prob.tolist(), rel=1e-3, abs=0.1)
    assert json.loads((tmp_path / "data.json").read_text())["settings"]["labels"] == "data"
    assert run(*words, "--labels", "data", "--out", tmp_path / "bound.csv", "--n", 40, "--bound", 8).exit_code == 0
    bound = sd.likelihood_bound(PROCESS, model.class_score(0), model.scaled(whole.images, 0)[:30], 8, 0)
    assert [row["bound"] for row in read_table(tmp_path / "bound.csv")][:30] == pytest.approx(bound.bits_per_dim(model.data_range).tolist(), rel=1e-3)


def test_check_model_takes_the_labels_of_the_data(run: Any, model: gen.Model, data: Path, tmp_path: Path) -> None:
    words = ["check-model", "known", "--n", 40]
    assert run(*words, "--data", data, "--labels", "data").exit_code == 0
    assert run(*words[:2], "--n", 20, "--data", data, "--labels", "data", "--out", tmp_path / "part.json").exit_code == 0
    part = gen.data.read_data(data).rows(torch.linspace(0, 39, 20).long().tolist())  # about every second one, with its own label
    assert json.loads((tmp_path / "part.json").read_text())["error"] == pytest.approx(model.check(part.images, labels=part.labels, seed=0).error, rel=1e-6)
    one = run(*words, "--data", data, "--labels", 1)
    assert one.exit_code == 1 and "the model is not what was claimed" in one.output
    assert run(*words, "--labels", "balanced", "--out", tmp_path / "a.json").exit_code == 0
    assert json.loads((tmp_path / "a.json").read_text())["labels"] == "balanced"
    silent = run(*words)
    assert silent.exit_code == 2 and "--labels balanced (each class in turn)" in silent.output
    silent = run(*words, "--data", data)
    assert silent.exit_code == 2 and "--labels data (each image its own)" in silent.output


def test_interpolate_takes_the_labels_of_the_data(run: Any, data: Path, tmp_path: Path) -> None:
    words = ["interpolate", "--count", 4, "--rtol", "1e-3", "--atol", "1e-3", "--out"]
    result = run(*words, tmp_path / "a.png", "--data", data, "--first", 0, "--last", 39, "--labels", "data")
    assert result.exit_code == 0, result.output
    assert run(*words, tmp_path / "b.png", "--labels", 1).exit_code == 0
    for extra, message in (([], "nothing was said"), (["--labels", "data"], "the data have no labels")):
        refused = run(*words, tmp_path / "c.png", *extra)
        assert refused.exit_code == 2 and message in refused.output


def test_a_way_starts_and_ends_where_the_data_say(model: gen.Model, data: Path) -> None:
    from sdesolve_gen.interpolation import Way

    whole = gen.data.read_data(data)
    way = Way(model, whole, 0, 39, "data", 0).images(4, 1.0, rtol=1e-5, atol=1e-5)
    ends = (whole.images[[0, 39]].float() + 0.5) / 128 - 1
    assert torch.allclose(way[[0, 3]], ends, atol=0.01)
    assert way[1].mean() < -0.3 and way[2].mean() > 0.3


@pytest.mark.parametrize("command", ["inpaint", "restore"])
def test_a_restoration_is_of_one_class(run: Any, data: Path, tmp_path: Path, command: str) -> None:
    how = ["--box", "0,0,3,2"] if command == "inpaint" else ["--operator", "box", "--set", "x0=0", "--set", "y0=0", "--set", "x1=3", "--set", "y1=2", "--simulate"]
    words = [command, "--data", data, "--n", 2, "--draws", 8, "--steps", 20, *how, "--out"]
    silent = run(*words, tmp_path / "a.png")
    assert silent.exit_code == 2 and "knows 3 classes, and this is of one; expected --label 0, or --label none" in silent.output
    for label, mean in (("2", 0.6), ("none", 0.2), ("1", 0.0)):
        out = tmp_path / f"{label}.png"
        result = run(*words, out, "--label", label)
        assert result.exit_code == 0, result.output
        with np.load(out.with_suffix(".npz")) as file:
            assert float(file["images"][..., :2, :].mean()) == pytest.approx(mean, abs=0.1)  # the unknown rows
        assert json.loads(out.with_suffix(".json").read_text())["label"] == label
    for label, message in (("7", "--label 7: the model 'known' knows the classes 0 to 2"), ("all", "--label all; expected the number of a class")):
        wrong = run(*words, tmp_path / "b.png", "--label", label)
        assert wrong.exit_code == 2 and message in wrong.output


def test_a_restoration_goes_by_guidance(tmp_path: Path) -> None:
    """As ``m.of_class(3, guidance=2)`` and a classifier do in Python, and refused where they are."""
    digits = tmp_path / "x.npz"
    np.savez(digits, images=gen.load("mnist_conditional").sample(1, "ddim", steps=5, labels=3, seed=1).numpy())
    words = ["inpaint", "--data", digits, "--box", "14,0,28,28", "--n", 1, "--draws", 1, "--steps", 4, "--batch-size", 1, "--out"]
    judge, x, mask = gen.load_classifier("mnist_classifier"), torch.from_numpy(np.load(digits)["images"]), torch.ones(28, 28)
    mask[:, 14:] = 0
    guided = {
        "mnist_conditional": (["--guidance", "2.5"], {"guidance": 2.5}),
        "mnist": (["--classifier", "mnist_classifier", "--classifier-scale", "3"], {"classifier": judge, "classifier_scale": 3.0}),
    }
    for name, (typed, said) in guided.items():
        out = tmp_path / f"{name}.png"
        result = CliRunner().invoke(cli.app, [*map(str, (*words, out)), "--model", name, "--label", "3", *typed])
        assert result.exit_code == 0, result.output
        expected = gen.load(name).of_class(3, **said).inpaint(x, mask, draws=1, steps=4, seed=0)  # type: ignore[arg-type]
        np.testing.assert_allclose(np.load(out.with_suffix(".npz"))["images"], expected.images.numpy(), atol=1e-4)
        manifest = json.loads(out.with_suffix(".json").read_text())
        assert (manifest["guidance"], manifest["classifier_scale"]) == ((2.5, 1.0) if name != "mnist" else (1.0, 3.0))
        assert manifest["classifier"] == (None if name != "mnist" else {"name": "mnist_classifier", "sha256": judge.card["sha256"]})
    wrong = {
        "--guidance 2 is for a model that knows classes, and 'mnist' knows none; expected --classifier ... and --label ....": ["--guidance", "2"],
        "--guidance -2; expected a finite number >= 0": ["--model", "mnist_conditional", "--label", "3", "--guidance", "-2"],
        "the classifier 'mnist_classifier' knows 10 classes, and this is of one; expected --label 0.": ["--classifier", "mnist_classifier"],
        "--label none: the classifier 'mnist_classifier' knows the classes 0 to 9": ["--classifier", "mnist_classifier", "--label", "none"],
        "--classifier-scale 3 without a classifier; expected --classifier mnist_classifier beside it.": ["--classifier-scale", "3"],
        "--classifier mnist_clasifier: classifier 'mnist_clasifier' is not known": ["--classifier", "mnist_clasifier", "--label", "3"],
        "--option guidance=2: expected a flag of its own, as in --guidance.": ["--option", "guidance=2"],
        "--option labels=3: expected a flag of its own, as in --labels.": ["--option", "labels=3"],
        "--option label=3: expected a flag of its own, as in --label.": ["--option", "label=3"],
    }
    for message, typed in wrong.items():
        result = CliRunner().invoke(cli.app, [*map(str, (*words, tmp_path / "w.png")), *typed])
        assert result.exit_code == 2 and result.output.startswith(f"error: {message}"), result.output


def test_evaluate_takes_words(run: Any, model: gen.Model, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sdesolve_gen.commands_evaluate.evaluate", lambda *a, features, **k: gen.evaluate(*a, features=nn.Flatten(), **k))
    words = ["evaluate", "--data", data, "--metrics", "kid,bpd", "--n", 9, "--method", "ddim", "--steps", 2, "--out", tmp_path / "out"]
    result = run(*words, "--labels", "balanced", "--guidance", 1.5, "--bpd-labels", "data", "--bpd-n", 4)
    assert result.exit_code == 0, result.output
    said = json.loads((tmp_path / "out" / "report.json").read_text())
    assert (said["settings"]["labels"], said["settings"]["guidance"], said["likelihood"]["labels"]) == ("balanced", 1.5, "data")
    assert run(*words, "--labels", 1).exit_code == 2


def test_a_network_without_a_label_for_none_is_asked_for_none_in_vain() -> None:
    options = {"channels": 1, **NETWORK, "classes": 3}
    m = gen.Model(UNet(**options), tiny_card(classes=3, network_options=options))
    m.knows_none = False
    with pytest.raises(ValueError, match=r"labels='none'; expected labels='data' \(each image its own\), or one for all"):
        labels_of(m, "none", None, 2)
    for ask in (lambda: labels_of(m, 3, None, 2), lambda: m.sample(1, "ddim", steps=1, labels=3), lambda: m.of_class(3), lambda: m.class_score(3)):
        with pytest.raises(ValueError, match=r"labels hold \[3\]; expected integers from 0 to 2"):
            ask()
