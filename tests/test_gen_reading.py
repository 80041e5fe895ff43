"""Every command that reads images takes every source that training takes, leaves out what is broken, and keeps the numbers of the rest."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gen_fixtures import png, tiny_config, tiny_model, write_parquet
from PIL import Image
from typer.testing import CliRunner, Result

import sdesolve_gen as gen
from sdesolve_gen import cli
from sdesolve_gen.data import DataWarning, check_shape, of_tensor, read_data
from sdesolve_gen.likelihoods import read_table

ARRAYS = [np.random.default_rng(i).integers(0, 256, (8, 8), dtype=np.uint8) for i in range(8)]
LEVELS = torch.from_numpy(np.stack(ARRAYS))[:, None]
LOOSE = ("--rtol", "1e-1", "--atol", "1e-1")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, and the same eight pictures in every way that they may come."""
    folder = tmp_path_factory.mktemp("reading")
    tiny_model().save(folder / "tiny")
    for part, arrays in (("all", ARRAYS), ("part-0", ARRAYS[:5]), ("part-1", ARRAYS[5:])):
        write_parquet(folder / f"{part}.parquet", arrays)
    for i, array in enumerate(ARRAYS):
        for name in (f"flat/{i}.png", f"classes/{'ab'[i > 3]}/{i}.png"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(png(array))
        (folder / "large").mkdir(exist_ok=True)
        Image.fromarray(array.repeat(2, 0).repeat(2, 1)).convert("LA").save(folder / "large" / f"{i}.png")  # twice as large, with transparency
    stack = np.stack(ARRAYS)
    np.savez(folder / "first.npz", images=stack[:, None])
    np.savez(folder / "last.npz", images=stack[..., None])
    np.savez(folder / "flat.npz", images=stack)
    return folder


SOURCES: dict[str, tuple[list[str], int]] = {
    "parquet": (["all.parquet"], 0), "several": (["part-0.parquet", "part-1.parquet"], 0), "pattern": (["part-*.parquet"], 0), "folder": (["flat"], 0),
    "classes": (["classes"], 0), "npz": (["first.npz"], 0), "npz last": (["last.npz"], 0), "npz flat": (["flat.npz"], 0),
    "pictures": ([f"flat/{i}.png" for i in range(8)], 0), "sizes": (["large"], 8),
}  # fmt: skip
COMMANDS: dict[str, tuple[str, list[object]]] = {  # what each command asks the model, and its arguments
    "likelihood": ("log_likelihood", ["--batch-size", 8]), "evaluate": ("log_likelihood", ["--metrics", "bpd"]), "check-model": ("check", []),
    "import": ("check", []), "inpaint": ("inpaint", ["--box", "0,0,4,4", "--n", 8]), "interpolate": ("encode", ["--first", 2, "--last", 7]),
    "restore": ("restore", ["--n", 8, "--simulate", "--operator", "box", "--set", "x0=0", "--set", "y0=0", "--set", "x1=1", "--set", "y1=1", "--noise-std", 0]),
}  # fmt: skip


class Seen(ValueError):
    """The model was asked."""


def run(place: Path, command: str, files: list[str], size: int, out: Path, *arguments: object) -> Result:
    model = [place / "tiny"] if command in ("check-model", "import") else ["--model", place / "tiny"]
    data = [word for file in files for word in ("--data", place / file)]
    where = [] if command == "check-model" else ["--out", out / ("a.csv" if command == "likelihood" else "a")]
    return CliRunner().invoke(cli.app, [str(word) for word in (command, *model, *data, "--size", size, *where, *arguments)])


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_takes_every_source(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, source: str) -> None:
    """What reaches the model are the pictures that training would get."""
    asked, arguments = COMMANDS[command]
    seen: list[torch.Tensor] = []

    def ask(model: gen.Model, images: torch.Tensor, *rest: Any, **options: Any) -> None:
        if len(images) == 1 and images.unique().numel() == 1:
            return  # what evaluate tries before it reads anything
        seen.append(images)
        raise Seen("seen")

    monkeypatch.setattr(gen.Model, asked, ask)
    files, size = SOURCES[source]
    result = run(place, command, files, size, tmp_path, *arguments)
    assert "error: seen" in result.output, result.output
    expected = read_data([place / file for file in files], size).images
    assert source == "sizes" or torch.equal(expected, LEVELS)
    if command == "interpolate":
        expected = expected[[2, 7]]
    if asked == "log_likelihood":
        expected = gen.load(place / "tiny").scaled(expected, 0, range(8))
    if command == "restore":
        (y,) = seen
        assert torch.allclose(y, (-1 + (expected.float() + 0.5) / 128).flatten(1)[:, 1:], atol=1e-5)
    else:
        assert torch.equal(seen[0], expected)


def test_training_takes_them_too(place: Path, tmp_path: Path) -> None:
    config = tiny_config(place / "flat", tmp_path / "run", steps=1)
    assert gen.train(config, progress=False).shape == (1, 8, 8)
    flags = ["--name", "x", "--steps", 1, "--batch", 8, "--precision", "fp32", "--set", f"network={json.dumps(config.network)}", "--set", "warmup=1"]
    words = ["train", "--data", place / "large", "--size", 8, "--out", tmp_path / "large", *flags]
    result = CliRunner().invoke(cli.app, [str(word) for word in words])
    assert result.exit_code == 0, result.output
    assert gen.load(tmp_path / "large").shape == (1, 8, 8)


@pytest.fixture
def damaged(place: Path, tmp_path: Path) -> Path:
    """Six pictures, of which numbers 1 and 4 are broken."""
    folder = tmp_path / "damaged"
    folder.mkdir()
    for i in range(6):
        (folder / f"{i}.png").write_bytes(b"half" if i in (1, 4) else png(ARRAYS[i]))
    return folder


def test_a_likelihood_names_what_it_leaves_out_and_the_rest_keep_their_numbers(place: Path, damaged: Path, tmp_path: Path) -> None:
    def table(folder: Path, name: str) -> tuple[Result, list[dict[str, Any]], dict[str, Any]]:
        words = ["likelihood", "--model", place / "tiny", "--data", folder, "--out", tmp_path / f"{name}.csv", "--eps", 1e-1, *LOOSE]
        result = CliRunner().invoke(cli.app, [str(word) for word in words])
        assert result.exit_code == 0, result.output
        return result, read_table(tmp_path / f"{name}.csv"), json.loads((tmp_path / f"{name}.json").read_text())

    result, rows, said = table(damaged, "damaged")
    assert "warning: 2 of 6 pictures cannot be read and are left out: 1.png, 4.png" in result.output
    assert [(row["id"], row["name"]) for row in rows] == [(0, "0.png"), (2, "2.png"), (3, "3.png"), (5, "5.png")]
    assert said["settings"]["skipped"] == ["1.png", "4.png"]
    for i in (1, 4):
        (damaged / f"{i}.png").write_bytes(png(ARRAYS[i]))
    _, whole, said = table(damaged, "whole")
    assert said["settings"]["skipped"] == []
    kept = [row for row in whole if row["id"] in (0, 2, 3, 5)]
    assert [row["log_prob"] for row in kept] == pytest.approx([row["log_prob"] for row in rows], rel=1e-4)  # the same noise, whatever is broken beside it


def test_numbers_of_pictures_stay_where_one_is_broken(damaged: Path) -> None:
    with pytest.warns(DataWarning, match=r"1\.png, 4\.png"):
        data = read_data(damaged)
    assert data.ids == [0, 2, 3, 5]
    assert torch.equal(data.number(3, "--first").images, LEVELS[3:4])
    for number, message in ((1, "--first 1: that picture cannot be read"), (6, "--first 6: the data have 6 images"), (4, "cannot be read")):
        with pytest.raises(ValueError, match=message):
            data.number(number, "--first")
    assert data.from_number(1, "--first").ids == [2, 3, 5]
    some = data.rows([3, 0])
    assert (some.names, some.ids, some.skipped) == (["5.png", "0.png"], [5, 0], ["1.png", "4.png"])


def test_a_restoration_names_its_draws_by_the_picture(place: Path, damaged: Path, tmp_path: Path) -> None:
    """Noise of the measurement and draws are those of the picture's number, wherever the count begins."""
    arguments = ["--operator", "box", "--set", "x0=0", "--set", "y0=0", "--set", "x1=4", "--set", "y1=4", "--simulate", "--steps", 2, "--draws", 1]
    found = []
    for first, n in ((0, 4), (2, 1)):
        out = tmp_path / f"{first}.png"
        words = ["restore", "--model", place / "tiny", "--data", damaged, "--first", first, "--n", n, "--out", out, *arguments]
        result = CliRunner().invoke(cli.app, [str(word) for word in words])
        assert result.exit_code == 0, result.output
        assert "left out: 1.png, 4.png" in result.output
        with np.load(out.with_suffix(".npz")) as file:
            found.append({name: file[name] for name in ("y", "images", "names")})
    assert found[1]["names"].tolist() == ["2.png"]
    for name in ("y", "images"):
        np.testing.assert_allclose(found[0][name][1], found[1][name][0], atol=1e-5)


def test_a_broken_picture_is_told_by_evaluate_too(place: Path, damaged: Path) -> None:
    (damaged / "6.png").write_bytes(png(ARRAYS[6]))
    for i in range(7, 11):
        (damaged / f"{i}.png").write_bytes(png(ARRAYS[i % 8]))
    model = gen.load(place / "tiny")
    with pytest.warns(DataWarning, match=r"2 of 11"):
        found = gen.evaluate(model, damaged, ["kid"], n=8, method="ddim", steps=1, features=lambda x: x.flatten(1), progress=False)
    assert found.report["skipped"] == ["1.png", "4.png"]


def test_images_of_another_shape_are_told_how_to_fit(place: Path, tmp_path: Path) -> None:
    result = run(place, "likelihood", ["large"], 0, tmp_path)
    assert result.exit_code == 2
    assert "grey ones (1, 8, 8); expected the same C, H and W: size=8 (--size 8) scales and crops." in result.output
    with pytest.raises(ValueError, match="resize or convert the data"):
        check_shape(of_tensor(torch.rand(2, 3, 8, 8)), (1, 8, 8))


def test_floats_are_for_those_who_asked(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=np.zeros((2, 1, 4, 4)))
    np.savez(tmp_path / "b.npz", images=np.zeros((2, 1, 4, 4), np.uint8))
    assert read_data(tmp_path / "a.npz", floats=True).images.dtype == torch.float32
    with pytest.raises(ValueError, match=r"float64; expected .* uint8"):
        read_data(tmp_path / "a.npz")
    with pytest.raises(ValueError, match=r"several kinds \(1 channels of float32, but b.npz\[0\] 1 of uint8\)"):
        read_data([tmp_path / "a.npz", tmp_path / "b.npz"], floats=True)
    with pytest.raises(ValueError, match=r"floats, which size=4 does not scale"):
        read_data(tmp_path / "a.npz", size=4, floats=True)
    with pytest.raises(ValueError, match="size=-1; expected"):
        read_data(tmp_path / "b.npz", size=-1)


def test_channels_are_the_fewer(tmp_path: Path) -> None:
    for shape, kept in (((2, 4, 8, 8), (4, 8, 8)), ((2, 8, 8, 4), (4, 8, 8)), ((2, 1, 8, 3), (1, 8, 3)), ((2, 5, 7, 3), (3, 5, 7))):
        np.savez(tmp_path / "a.npz", images=np.zeros(shape, np.float32))
        assert read_data(tmp_path / "a.npz", floats=True).images.shape[1:] == kept
