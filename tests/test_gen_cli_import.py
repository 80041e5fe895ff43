"""The commands import and check-model: what they write, what they say, and how they end."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from gen_fixtures import tiny_model
from torch import nn
from typer.testing import CliRunner, Result

import sdesolve as sd
import sdesolve_gen as gen
from sdesolve_gen import cli

diffusers = pytest.importorskip("diffusers")

from gen_diffusers import saved  # noqa: E402


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


class Gaussian(nn.Module):
    """What is right of N(0, 1/4) under VPSDE, as v: a model that a check passes."""

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        p = sd.VPSDE()
        alpha, sigma = (c.to(x)[:, None, None, None] for c in (p.alpha(t), p.sigma(t)))
        return 0.75 * alpha * sigma * x / (0.25 * alpha**2 + sigma**2) + 0 * self.none

    def __init__(self) -> None:
        super().__init__()
        self.none = nn.Parameter(torch.zeros(1))


@pytest.fixture
def pipeline(tmp_path: Path) -> Path:
    saved(tmp_path / "theirs", diffusers.DDPMScheduler(prediction_type="v_prediction"))
    return tmp_path / "theirs"


def test_import_writes_a_model_and_how_it_came_about(pipeline: Path, tmp_path: Path) -> None:
    out = tmp_path / "ours"
    result = run("import", pipeline, "--out", out, "--no-check")
    assert result.exit_code == 0, result.output
    said = json.loads((out / "import.json").read_text())
    assert said["files"] == {name: hashlib.sha256((out / name).read_bytes()).hexdigest() for name in ("model.safetensors", "card.json")}
    assert (said["source"], said["check"]) == (str(pipeline), None)
    assert "theirs: " in result.output and "TabulatedVP" in result.output
    again = run("import", pipeline, "--out", out, "--no-check")
    assert again.exit_code == 2 and "add --overwrite" in again.output
    assert run("import", pipeline, "--out", out, "--no-check", "--overwrite").exit_code == 0
    drawn = run("sample", "--model", out, "--n", 2, "--steps", 3, "--method", "dpmpp_2m", "--out", tmp_path / "a.png")
    assert drawn.exit_code == 0, drawn.output


def test_a_model_at_odds_with_its_data_is_not_written(pipeline: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", images=np.random.default_rng(0).integers(0, 256, (40, 1, 8, 8), dtype=np.uint8))
    result = run("import", pipeline, "--out", tmp_path / "ours", "--data", tmp_path / "data.npz")
    assert result.exit_code == 1 and "the model is not what was claimed" in result.output
    assert not (tmp_path / "ours").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["google/ddpm-cifar10-32"], "expected the 40 hexadecimal digits"),
        (["nowhere"], "is not known"),
        (["mnist", "--revision", "0" * 40], "is for an id of the hub"),
        (["mnist", "--label", "3"], "--labels 3 is for a model that knows classes, and 'mnist' knows none"),
    ],
)
def test_bad_sources_are_one_line(tmp_path: Path, arguments: list[str], message: str) -> None:
    result = run("import", *arguments, "--out", tmp_path / "ours")
    assert result.exit_code == 2 and message in result.output and "Traceback" not in result.output
    assert not (tmp_path / "ours").exists()


def test_a_checkpoint_of_score_sde(shared_data: Path, tmp_path: Path) -> None:
    source = shared_data / "score_sde_reference" / "vp_ddpm"
    if not source.is_dir():
        pytest.skip("needs score_sde_reference")
    arguments = ["import", source / "checkpoint.pth", "--out", tmp_path / "ours", "--no-check"]
    without = run(*arguments)
    assert without.exit_code == 2 and "needs its configuration" in without.output
    result = run(*arguments, "--config", source / "config.json")
    assert result.exit_code == 0, result.output
    assert json.loads((tmp_path / "ours" / "import.json").read_text())["config"] == str(source / "config.json")
    assert gen.load(tmp_path / "ours").card["training"]["weights"] == "ema"


def test_a_missing_package_is_one_line(pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    result = run("import", pipeline, "--out", tmp_path / "ours")
    assert result.exit_code == 2 and 'pip install "sdesolve[hub]"' in result.output


def test_a_conditional_model_wants_a_class(tmp_path: Path) -> None:
    saved(tmp_path / "theirs", diffusers.DDPMScheduler(), num_class_embeds=3)
    result = run("import", tmp_path / "theirs", "--out", tmp_path / "ours")
    assert result.exit_code == 2 and "--labels 0" in result.output


def test_check_model_says_what_it_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def model(predicts: str) -> gen.Model:
        return gen.wrap(Gaussian(), process=sd.VPSDE(), predicts=predicts, shape=(1, 4, 4))

    monkeypatch.setattr("sdesolve_gen.commands_import.load", lambda name, device: model(name))
    np.savez(tmp_path / "data.npz", images=(0.5 * np.random.default_rng(0).normal(size=(200, 1, 4, 4))).astype(np.float32))
    for predicts, code in (("v", 0), ("epsilon", 1)):
        out = tmp_path / f"{predicts}.json"
        result = run("check-model", predicts, "--data", tmp_path / "data.npz", "--n", 128, "--out", out)
        said = json.loads(out.read_text())
        assert result.exit_code == code, result.output
        assert (said["ok"], said["images"]) == (code == 0, 128)
        assert ("as claimed" if code == 0 else "the model is not what was claimed") in result.output
    assert run("check-model", "v", "--out", tmp_path / "v.json").exit_code == 2
    assert run("check-model", "v", "--out", tmp_path / "v.txt").exit_code == 2


def test_the_embedded_model_agrees_with_itself() -> None:
    result = run("check-model", "mnist", "--n", 8)
    assert result.exit_code == 0 and "as claimed" in result.output, result.output


@pytest.mark.parametrize("command", ["import", "check-model"])
def test_help_teaches(command: str) -> None:
    result = run(command, "--help")
    assert result.exit_code == 0 and "Examples" in result.output and "Exit codes" in result.output


def test_tiny_models_can_be_imported_from_their_own_folders(tmp_path: Path) -> None:
    tiny_model().save(tmp_path / "a")
    assert run("import", tmp_path / "a", "--out", tmp_path / "b", "--no-check").exit_code == 0
    assert gen.load(tmp_path / "b").card["sha256"] == gen.load(tmp_path / "a").card["sha256"]
