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
from sdesolve_gen.data import read_data
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
    assert {"psnr_draws", "psnr_mean", "residual", "nfe", "noise_std"} <= manifest["figures"].keys()
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
    assert "has 1 gray pixel of 64, as 100 of 255" in call("inpaint", *common(folder, data, tmp_path / "y.png"), "--mask", tmp_path / "mask.png", code=2)


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
    said = call("colorize", *common(folder, tmp_path / "rgb", tmp_path / "d.png"), code=2)
    assert said == "error: --data holds coloured pictures; expected gray ones, or --simulate, which takes their luminance first.\n"
    said = call("colorize", *common(folder, tmp_path / "gray", tmp_path / "d.png"), "--option", "weights=[1,1,1]", code=2)
    assert "expected `sdesolve-gen restore --operator gray --set weights=[1,1,1]` for another" in said


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


def known_columns(tmp_path, folder, data, mask, code=0):
    """Which of the 8 columns are known under a mask; or what is said instead."""
    out = tmp_path / f"out-{mask.stem}.npz"
    said = call("inpaint", *common(folder, data, out.with_suffix(".png")), "--steps", 2, "--draws", 2, "--mask", mask, code=code)
    if code:
        return said
    with np.load(out) as file:
        return (file["std"][:, 0].max((0, 1)) < 1e-3).tolist()


def test_masks_of_other_pictures(tmp_path, folder, data):
    """JPEG's near-black and near-white, transparency, a palette, one bit, 16 bits: the left half is known in all of them, and gray is refused."""
    half = np.zeros((8, 8), np.uint8)
    half[:, :4] = 255
    left = [True] * 4 + [False] * 4
    noisy = np.where(half > 0, 255 - 60, 60).astype(np.uint8)
    pictures = {"jpeg.jpg": Image.fromarray(half), "near.png": Image.fromarray(noisy), "bit.png": Image.fromarray(half).convert("1")}
    pictures["wide.png"] = Image.fromarray(half.astype(np.uint16) * 257)
    pictures["rgba.png"] = Image.fromarray(np.dstack([np.full((8, 8, 3), 255, np.uint8), half]))
    palette = Image.fromarray((half == 0).astype(np.uint8), "P")
    palette.putpalette([255, 255, 255, 0, 0, 0])  # index 0 is white
    pictures["palette.png"] = palette
    pictures["ones.png"] = Image.fromarray(half // 255)
    for name, picture in pictures.items():
        picture.save(tmp_path / name, **({"quality": 60} if name.endswith("jpg") else {}))
        assert known_columns(tmp_path, folder, data, tmp_path / name) == left, name
    Image.fromarray(np.where(half > 0, 255 - 70, 0).astype(np.uint8)).save(tmp_path / "gray.png")
    said = known_columns(tmp_path, folder, data, tmp_path / "gray.png", code=2)
    assert "has 32 gray pixels of 64, as 185 of 255; expected white where a pixel is known" in said and said.count("\n") == 1
    (tmp_path / "text.png").write_text("no picture")
    assert "is not a whole picture" in known_columns(tmp_path, folder, data, tmp_path / "text.png", code=2)
    assert "there is no such file" in known_columns(tmp_path, folder, data, tmp_path / "none.png", code=2)


def test_particles(tmp_path, folder, data):
    arguments = ["--model", folder, "--data", data, "--n", 2, "--draws", 2, "--steps", 4, "--method", "smc", "--option", "particles=3", "--out", tmp_path / "p.png"]
    said = call("inpaint", *arguments, "--box", "4,0,8,8")
    assert "5 network calls a particle" in said
    with np.load(tmp_path / "p.npz") as file:
        assert file["log_evidence"].shape == (2, 2) and file["ess"].shape == (2, 2, 5)
    figures = json.loads((tmp_path / "p.json").read_text())["figures"]
    assert {"log_evidence", "ess_last", "ess_least"} <= figures.keys() and 1 <= figures["ess_least"] <= figures["ess_last"] <= 3


def test_counts(tmp_path, folder, data):
    task = ["--operator", "downsample", "--set", "factor=2", "--noise", "poisson", "--peak", 40]
    call("restore", *common(folder, data, tmp_path / "c.png"), *task, "--simulate")
    with np.load(tmp_path / "c.npz") as file:
        counts = (file["y"] + 1) * 20
        np.testing.assert_allclose(counts, counts.round(), atol=1e-3)
    manifest = json.loads((tmp_path / "c.json").read_text())
    assert manifest["options"]["noise"] == "poisson" and manifest["options"]["peak"] == 40 and manifest["noise_std"] == 0
    said = call("restore", *common(folder, data, tmp_path / "d.png"), *task, "--simulate", "--method", "ddnm", code=2)
    assert "ddnm has no treatment of --noise poisson" in said
    assert "no --peak; expected how many counts" in call("restore", *common(folder, data, tmp_path / "e.png"), *task[:-2], "--simulate", code=2)


def test_an_option_of_the_method_that_the_sampler_has_too(tmp_path, folder, data):
    arguments = ["--model", folder, "--data", data, "--n", 1, "--draws", 1, "--method", "dps", "--box", "4,0,8,8"]
    said = call("inpaint", *arguments, "--method-option", "steps=7", "--method-option", "zeta=0.3", "--out", tmp_path / "o.png")
    assert "8 network calls a draw" in said
    manifest = json.loads((tmp_path / "o.json").read_text())
    assert manifest["sampler"] == "euler_maruyama" and manifest["options"]["method_options"] == {"steps": 7, "zeta": 0.3}
    assert "Did you mean 'zeta'" in call("inpaint", *arguments, "--method-option", "zta=1", "--out", tmp_path / "q.png", code=2)


def test_what_a_measurement_looks_like():
    m = tiny_model()
    x = torch.rand(2, 1, 8, 8) * 2 - 1
    for operator in (ops.Downsample(m.shape, 4), ops.Mask(m.shape, torch.ones(8, 8)), ops.Radon(m.shape, 5)):
        found = Comparison(m, operator, operator.forward(x), None, None, [], {}, 0.0, [])  # type: ignore[arg-type]
        assert as_picture(found).shape == x.shape
    enlarged = as_picture(Comparison(m, ops.Downsample(m.shape, 4), torch.arange(4.0).reshape(1, 1, 2, 2), None, None, [], {}, 0.0, []))  # type: ignore[arg-type]
    assert enlarged[0, 0, 0].tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    few = ops.Radon(m.shape, 5)
    y = few.forward(x) + 0.1 * torch.randn(2, *few.measured, generator=torch.Generator().manual_seed(0))
    noisy, exact = (as_picture(Comparison(m, few, y, None, None, [], settings, 0.0, [])) for settings in ({"noise_std": 0.1}, {}))  # type: ignore[arg-type]
    a = few.forward(torch.eye(64).reshape(64, 1, 8, 8)).flatten(1).double()
    weighed = 0.25 * a @ torch.linalg.inv(0.01 * torch.eye(a.shape[1]) + 0.25 * a.T @ a)
    torch.testing.assert_close(noisy.flatten(1).double(), y.flatten(1).double() @ weighed.T, rtol=0, atol=1e-5)
    torch.testing.assert_close(exact, few.pinv(y), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["inpaint"], "expected exactly one of --mask FILE, --box X0,Y0,X1,Y1 and --random SHARE"),
        (["inpaint", "--box", "1,2,3"], "expected four whole numbers"),
        (["inpaint", "--random", "1.5"], "--random 1.5; expected a share"),
        (["inpaint", "--box", "0,0,9,9"], "--box 0,0,9,9 is no box of 8 columns and 8 rows; expected X0 < X1 <= 8 and Y0 < Y1 <= 8, as in --box 4,0,8,8"),
        (["inpaint", "--box", "0,0,8,8"], "--box 0,0,8,8 is the whole image"),
        (["inpaint", "--box", "0,0,4,4", "--first", "7"], "have 5 images"),
        (["inpaint", "--box", "0,0,4,4", "--option", "steps=3"], "expected a flag of its own, as in --steps"),
        (["inpaint", "--box", "0,0,4,4", "--noise-std", "-1"], "--noise-std -1; expected a finite number >= 0"),
        (["inpaint", "--box", "0,0,4,4", "--noise-std", "inf"], "--noise-std inf"),
        (["inpaint", "--box", "0,0,4,4", "--label", "3"], "--label 3: the model 'tiny' knows no classes; expected no --label"),
        (["restore", "--simulate", "--operator", "blurr"], "operator 'blurr' is not known"),
        (["restore", "--simulate", "--operator", "downsample", "--set", "factr=2"], "Did you mean 'factor'"),
        (["restore", "--simulate", "--operator", "downsample", "--noise-std", "-1"], "--noise-std -1"),
        (["restore", "--operator", "downsample"], "--data holds y (2, 1, 8, 8); expected (n, 1, 2, 2), as the operator downsample measures, or --simulate"),
        (["colorize"], "expected one of 3 channels"),
    ],
    ids=range(15),
)
def test_bad_values_are_one_line(tmp_path, folder, data, arguments, message):
    command, *rest = arguments
    said = call(command, *common(folder, data, tmp_path / "x.png"), *rest, code=2)
    assert message in said
    assert said.startswith("error: ")
    assert not list(tmp_path.glob("x*"))


@pytest.mark.parametrize("kind", ["RGB", "P"])
def test_gray_pictures_may_be_stored_in_colour(tmp_path, folder, data, kind):
    gray = Image.fromarray(levels(data)[0])
    found = []
    for name, picture in (("gray", gray), ("coloured", gray.convert(kind))):
        picture.save(tmp_path / f"{name}.png")
        simulated = ["restore", "--operator", "random_pixels", "--set", "missing=0.5", "--simulate"]
        for task in (["inpaint", "--box", "4,0,8,8"], simulated, ["restore", "--operator", "motion_blur", "--set", "length=3"]):
            out = tmp_path / f"{name}-{task[0]}-{len(task)}.png"
            call(task[0], *common(folder, tmp_path / f"{name}.png", out), *task[1:])
            with np.load(out.with_suffix(".npz")) as file:
                found.append(file["images"])
    for one, other in zip(found[:3], found[3:], strict=True):
        np.testing.assert_array_equal(one, other)
    assert read_data(tmp_path / "coloured.png").images.shape == (1, 3, 8, 8)  # nothing is lost where colours are wanted


@pytest.mark.parametrize("command", ["inpaint", "colorize", "restore"])
def test_help_teaches(command):
    said = call(command, "--help")
    assert "Examples" in said
    assert "sdesolve-gen" in said


def test_what_is_found_again_exactly_and_a_single_draw_are_written_as_json_and_without_a_spread(tmp_path, folder, data):
    """All pixels known: a PSNR of infinity, which JSON does not know."""
    mask, out = tmp_path / "mask.png", tmp_path / "one.png"
    Image.fromarray(np.full((8, 8), 255, np.uint8)).save(mask)
    call("inpaint", "--model", folder, "--data", data, "--n", 1, "--draws", 1, "--steps", 2, "--out", out, "--mask", mask)
    manifest = json.loads(out.with_suffix(".json").read_text(), parse_constant=lambda constant: pytest.fail(constant))
    assert manifest["figures"]["psnr_draws"] is None and manifest["std_white"] is None
    assert sorted(file.name for file in tmp_path.glob("one*")) == ["one-mean.png", "one.json", "one.npz", "one.png"]


def test_an_option_with_a_slip_is_told_of_the_methods_own(tmp_path, folder, data):
    said = call("inpaint", "--model", folder, "--data", data, "--out", tmp_path / "x.png", "--box", "0,0,4,4", "--method", "dps", "--option", "zetta=1", code=2)
    assert "'zetta' is not known" in said and "Did you mean 'zeta'?" in said


POISSON = ["--noise", "poisson"]


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (["--peak", "30"], "--peak 30 with --noise gaussian; expected --noise poisson, or no --peak."),
        ([*POISSON], "no --peak; expected how many counts the brightest value of the data has, a finite number > 0, as in --peak 30."),
        ([*POISSON, "--peak", "-1"], "--peak -1; expected how many counts"),
        ([*POISSON, "--peak", "30", "--method", "ddrm"], "ddrm has no treatment of --noise poisson; expected 'dps', 'pigdm' or 'mmps', or --noise gaussian with a --noise-std"),
        (["--noise", "poison"], "--noise poison: noise 'poison' is not known"),
        (["--method", "pigmd"], "--method pigmd: method 'pigmd' is not known"),
        (["--sampler", "ddmi"], "--sampler ddmi: 'ddmi' is not known"),
        (["--sampler", "rk45", "--steps", "3", "--option", "rtol=1"], "rtol and atol choose steps, but --sampler rk45 walks a grid here; leave them out, or use --sampler rk45"),
        (["--method", "smc", "--steps", "3", "--method-option", "steps=3"], "--steps 3 and --method-option steps=3; expected one of them, as in --steps 3."),
        (
            ["--method", "smc", "--option", "particles=4", "--method-option", "particles=3"],
            "--option particles=4 and --method-option particles=3; expected one of them, as in --option particles=4.",
        ),
        (["--option", "labels=3"], "--option labels=3: expected a flag of its own, as in --labels."),
        (["--data", "none.png"], "--data none.png is not a file or folder"),
        (["--sampler", "reversible_heun"], "--sampler reversible_heun strays"),
        (["--sampler", "pc", "--method", "ddrm"], "what is to solve here is 'pc'; expected 'ddim'"),
        (["--device", "cudaa"], "--device cudaa cannot be used here"),
        (["--draws", "70000"], "--draws 70000; expected at most"),
        (["--method", "dps", "--option", "zeta=-1"], "--option zeta=-1; expected a finite number >= 0, as in --option zeta=1."),
        (["--method", "dps", "--method-option", "zeta=-1"], "--method-option zeta=-1; expected a finite number >= 0, as in --method-option zeta=1."),
        (["--method", "dps", "--method-option", "steps=7", "--steps", "3"], "--steps 3 and --method-option steps=7; expected one number"),
        (["--method", "pigdm", "--option", "within=[3,1]"], "--option within=[3,1]; expected noise levels 0 <= low < high, in units of sigma/alpha, as in --option within=[0.3"),
        (["--method", "dps", "--option", "zetta=1"], "--option zetta=1: option of --method dps or --sampler dpmpp_2m_sde: 'zetta' is not known"),
        (["--option", "grid=kar"], "--option grid=kar: 'kar' is not known as grid"),
        (["--method", "smc", "--sampler", "ddim"], "expected no --sampler and no --option denoise=false: --steps ..., --option particles=... are its options"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_errors_say_what_was_typed(tmp_path, folder, data, typed, said):
    found = call("inpaint", "--model", folder, "--data", data, "--out", tmp_path / "x.png", "--box", "0,0,4,4", *typed, code=2)
    assert f"error: {said}" in found if said.startswith("--") else said in found


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (["downsample", "--set", "factor=3"], "--set factor=3 does not divide the 8 x 8 pixels; expected one that does, as in --set factor=4."),
        (["downsample", "--set", "kernel=foo"], "--set kernel=foo: kernel 'foo' is not known"),
        (["random_projections", "--set", "seed=-1"], "--set seed=-1; expected an integer"),
        (["gray"], "Gray is the luminance of 3 channels, and images (1, 8, 8) have 1; expected images of 3, or --set weights=..., one for each channel."),
        (["gray", "--set", "weights=3"], "--set weights=3 for 1 channels; expected one for each, not all zero, as in --set weights=[0.299,0.587,0.114] for RGB."),
        (["gaussian_blur"], "--set std=1.5 blurs over 11 x 11 pixels, and the images have 8 x 8; expected less, as in --set std=1."),
        (["motion_blur", "--set", "length=9"], "--set length=9 blurs over 11 x 11 pixels, and the images have 8 x 8; expected less, as in --set length=6."),
        (["motion_blur", "--set", "angle=up"], "--set angle=up; expected degrees, a finite number, as in --set angle=30."),
        (["radon", "--set", "angles=few"], "--set angles=few; expected their number, as in --set angles=60, or degrees, as in --set angles=[0,45,90]."),
        (
            ["box", "--set", "x0=0", "--set", "y0=0", "--set", "x1=8", "--set", "y1=8"],
            "the box 0,0,8,8 is the whole image, so that nothing is known; expected a part of it, as in --set x0=4.",
        ),
        (["downsample", "--set", "factor"], "--set 'factor'; expected KEY=VALUE, as in --set factor=4."),
        (["blurr"], "--operator blurr: operator 'blurr' is not known"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_errors_of_an_operator_say_what_was_typed(tmp_path, folder, data, typed, said):
    assert f"error: {said}" in call("restore", *common(folder, data, tmp_path / "x.png"), "--simulate", "--operator", *typed, code=2)


def test_what_is_said_in_both_ways_is_said_once(tmp_path, folder):
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(tmp_path / "nine.png")
    said = call("inpaint", "--model", folder, "--data", tmp_path / "nine.png", "--out", tmp_path / "x.png", "--box", "0,0,4,4", code=2)
    assert said.endswith("expected the same C, H and W: --size 8 scales and crops.\n")


def test_a_warning_says_what_is_to_be_typed(tmp_path, folder, data):
    arguments = ["--model", folder, "--data", data, "--n", 1, "--draws", 1, "--out", tmp_path / "w.png", "--box", "0,0,4,4"]
    said = call("inpaint", *arguments, "--method", "projection", "--steps", 3, "--noise-std", 0.1)
    assert "expected more steps, as in --steps 100, a larger --noise-std where y has more, or another method, as in --method pigdm" in said.replace("Expected", "expected")


def test_masks_that_do_not_fit(tmp_path, folder, data):
    small, black, coloured = (tmp_path / name for name in ("small.png", "black.png", "coloured.png"))
    Image.fromarray(np.full((5, 8), 255, np.uint8)).save(small)
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(black)
    Image.fromarray(np.eye(8, dtype=np.uint8)[..., None].repeat(3, 2) * np.array([255, 0, 255], np.uint8)).save(coloured)
    shape = "is a picture of 5 rows and 8 columns, and the model's images have 8 and 8"
    for mask, said in ((small, shape), (black, "is black everywhere"), (coloured, "has 8 pixels of 64 that are neither white nor black but coloured")):
        assert f"--mask {mask} " in (found := known_columns(tmp_path, folder, data, mask, code=2)) and said in found


def test_a_mask_in_colours_is_no_mask_of_channels(tmp_path, data):
    """Of a model of colours, too; in Python it is one."""
    folder = colour_model().save(tmp_path / "colours")
    picture = np.zeros((8, 8, 3), np.uint8)
    picture[:, :4, ::2] = 255
    Image.fromarray(picture).save(tmp_path / "magenta.png")
    images = Image.fromarray(np.zeros((8, 8, 3), np.uint8))
    images.save(tmp_path / "images.png")
    arguments = ["--model", folder, "--data", tmp_path / "images.png", "--n", 1, "--draws", 1, "--steps", 2, "--out", tmp_path / "x.png"]
    said = call("inpaint", *arguments, "--mask", tmp_path / "magenta.png", code=2)
    assert "has 32 pixels of 64 that are neither white nor black but coloured" in said and "m.inpaint(images, torch.tensor(np.asarray" in said


def test_labels_that_a_model_does_not_know(tmp_path, data):
    said = call("inpaint", "--model", "mnist_conditional", "--data", data, "--out", tmp_path / "x.png", "--random", 0.9, "--label", 12, code=2)
    assert "--label 12: the model 'mnist_conditional' knows the classes 0 to 9; expected one of them, as in --label 0, or --label none for no class." in said
