"""``sdesolve-gen inpaint | colorize | restore``: what they write, what they measure, and what they refuse in one line."""

import io
import json

import numpy as np
import pyarrow.parquet as parquet
import pytest
import torch
from gen_fixtures import random_parquet, tiny_model
from PIL import Image
from test_gen_restoration import colour_model
from typer.testing import CliRunner

from sdesolve_gen.cli import app
from sdesolve_gen.comparison import Comparison, as_picture
from sdesolve_gen.conditioning import operators as ops
from sdesolve_gen.images import to_uint8


@pytest.fixture
def folder(tmp_path):
    return tiny_model().save(tmp_path / "tiny")


@pytest.fixture
def data(tmp_path):
    return random_parquet(tmp_path / "data.parquet", n=5)


def call(*arguments, code=0):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    return result.output


def common(folder, data, out):
    return ["--model", folder, "--data", data, "--n", 2, "--draws", 3, "--steps", 4, "--method", "pigdm", "--out", out]


def levels(data):
    return np.stack([np.asarray(Image.open(io.BytesIO(row["bytes"]))) for row in parquet.read_table(data)["image"].to_pylist()])


def test_inpaint(tmp_path, folder, data):
    out = tmp_path / "a" / "filled.png"
    said = call("inpaint", *common(folder, data, out), "--box", "4,0,8,8", "--first", 1)
    assert "2 images, 3 draws each, 5 network calls a draw" in said
    files = sorted(file.name for file in out.parent.iterdir())
    assert files == ["filled-mean.png", "filled-std.png", "filled.json", "filled.npz", "filled.png"]
    with np.load(out.with_suffix(".npz")) as file:
        assert file["images"].shape == (2, 3, 1, 8, 8)
        np.testing.assert_allclose(file["mean"], file["images"].mean(1), atol=1e-6)
        np.testing.assert_allclose(file["std"], file["images"].std(1, ddof=1), atol=1e-6)
        kept = to_uint8(torch.from_numpy(file["images"]), (-1, 1)).numpy()[:, :, 0, :, :4]
        assert (kept == levels(data)[1:3, None, :, :4]).all()
        assert file["y"].shape == (2, 32)
    manifest = json.loads(out.with_suffix(".json").read_text())
    assert manifest["command"][:1] == ["sdesolve-gen"]
    assert manifest["box"] == "4,0,8,8"
    assert manifest["images"] == ["data.parquet[1]", "data.parquet[2]"]
    assert manifest["figures"]["statuses"] == {"ok": 6}
    assert {"psnr_draws", "psnr_mean", "residual", "nfe"} <= manifest["figures"].keys()
    picture = Image.open(out)
    assert picture.width > 2.9 * picture.height  # 7 columns, 2 rows
    assert call("inpaint", *common(folder, data, out), "--box", "4,0,8,8", code=2).count("\n") == 1
    call("inpaint", *common(folder, data, out), "--box", "4,0,8,8", "--overwrite")


def test_a_mask_from_a_picture(tmp_path, folder, data):
    mask = np.full((8, 8), 255, np.uint8)
    mask[2:4] = 0
    Image.fromarray(mask).save(tmp_path / "mask.png")
    call("inpaint", *common(folder, data, tmp_path / "x.png"), "--mask", tmp_path / "mask.png")
    with np.load(tmp_path / "x.npz") as file:
        assert file["y"].shape == (2, 48)
        assert file["std"][:, :, :2].max() < 1e-3 < file["std"][:, :, 2:4].mean()
    mask[0, 0] = 100
    Image.fromarray(mask).save(tmp_path / "mask.png")
    assert "expected 0 and 1 alone" in call("inpaint", *common(folder, data, tmp_path / "y.png"), "--mask", tmp_path / "mask.png", code=2)


def test_a_picture_by_itself_and_random_pixels(tmp_path, folder):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8), dtype=np.uint8)).save(tmp_path / "one.png")
    call("inpaint", *common(folder, tmp_path / "one.png", tmp_path / "x.png"), "--random", 0.75)
    with np.load(tmp_path / "x.npz") as file:
        assert file["y"].shape == (1, 16)


def test_colorize(tmp_path):
    folder = colour_model().save(tmp_path / "colour")
    draws = np.random.default_rng(0)
    for kind, shape in (("gray", (8, 8)), ("rgb", (8, 8, 3))):
        (tmp_path / kind).mkdir()
        for i in range(2):
            Image.fromarray(draws.integers(60, 190, shape, dtype=np.uint8)).save(tmp_path / kind / f"{i}.png")
    call("colorize", *common(folder, tmp_path / "gray", tmp_path / "g.png"))
    call("colorize", *common(folder, tmp_path / "rgb", tmp_path / "c.png"), "--simulate")
    with np.load(tmp_path / "c.npz") as file:
        luma = ops.Gray((3, 8, 8)).forward(torch.from_numpy(file["images"]).flatten(0, 1)).reshape(2, 3, 1, 8, 8)
        assert float((luma - torch.from_numpy(file["y"])[:, None]).abs().max()) < 1e-3
    assert "psnr_mean" in json.loads((tmp_path / "c.json").read_text())["figures"]
    assert "psnr_mean" not in json.loads((tmp_path / "g.json").read_text())["figures"]
    assert "three different channels" in call("colorize", *common(folder, tmp_path / "rgb", tmp_path / "d.png"), code=2)


def test_restore_measures_and_reads(tmp_path, folder, data):
    task = ["--operator", "downsample", "--set", "factor=2", "--noise-std", 0.1]
    call("restore", *common(folder, data, tmp_path / "s.png"), *task, "--simulate")
    with np.load(tmp_path / "s.npz") as file:
        y = file["y"]
        assert y.shape == (2, 1, 4, 4)
        clean = ops.Downsample((1, 8, 8), 2).forward(torch.from_numpy(-1 + (levels(data)[:2, None] + 0.5) / 128).float())
        assert 0.05 < float((torch.from_numpy(y) - clean).std()) < 0.16
        simulated = file["images"]
    np.savez(tmp_path / "y.npz", y=y)
    call("restore", *common(folder, tmp_path / "y.npz", tmp_path / "n.png"), *task)
    with np.load(tmp_path / "n.npz") as file:
        np.testing.assert_allclose(file["images"], simulated, atol=1e-5)


def test_what_a_measurement_looks_like():
    m = tiny_model()
    x = torch.rand(2, 1, 8, 8) * 2 - 1
    for operator in (ops.Downsample(m.shape, 4), ops.Mask(m.shape, torch.ones(8, 8)), ops.Radon(m.shape, 5)):
        found = Comparison(m, operator, operator.forward(x), None, None, [], {}, 0.0, [])  # type: ignore[arg-type]
        assert as_picture(found).shape == x.shape
    enlarged = as_picture(Comparison(m, ops.Downsample(m.shape, 4), torch.arange(4.0).reshape(1, 1, 2, 2), None, None, [], {}, 0.0, []))  # type: ignore[arg-type]
    assert enlarged[0, 0, 0].tolist() == [0, 0, 0, 0, 1, 1, 1, 1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["inpaint"], "expected exactly one of --mask FILE, --box X0,Y0,X1,Y1 and --random SHARE"),
        (["inpaint", "--box", "1,2,3"], "expected four whole numbers"),
        (["inpaint", "--random", "1.5"], "missing=1.5; expected a share"),
        (["inpaint", "--box", "0,0,9,9"], "x1=9"),
        (["inpaint", "--box", "0,0,4,4", "--first", "7"], "have 5 images"),
        (["inpaint", "--box", "0,0,4,4", "--option", "steps=3"], "expected a flag of its own, as in --steps"),
        (["inpaint", "--box", "0,0,4,4", "--noise-std", "-1"], "noise_std=-1"),
        (["restore", "--simulate", "--operator", "blurr"], "operator 'blurr' is not known"),
        (["restore", "--simulate", "--operator", "downsample", "--set", "factr=2"], "Did you mean 'factor'"),
        (["restore", "--simulate", "--operator", "downsample", "--noise-std", "-1"], "--noise-std -1"),
        (["restore", "--operator", "downsample"], "expected (B, 1, 2, 2)"),
        (["colorize"], "expected one of 3 channels"),
    ],
    ids=range(12),
)
def test_bad_values_are_one_line(tmp_path, folder, data, arguments, message):
    command, *rest = arguments
    said = call(command, *common(folder, data, tmp_path / "x.png"), *rest, code=2)
    assert message in said
    assert said.startswith("error: ")
    assert not list(tmp_path.glob("x*"))


@pytest.mark.parametrize("command", ["inpaint", "colorize", "restore"])
def test_help_teaches(command):
    said = call(command, "--help")
    assert "Examples" in said
    assert "sdesolve-gen" in said
