"""``sdesolve-gen likelihood`` and ``interpolate``: what they write, how they go on, and how they end."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from gen_fixtures import random_parquet, tiny_model, write_parquet
from PIL import Image
from typer.testing import CliRunner

import sdesolve as sd
import sdesolve_gen as gen
from sdesolve_gen import cli
from sdesolve_gen.data import read_data
from sdesolve_gen.likelihoods import read_table

LOOSE = ("--rtol", "1e-2", "--atol", "1e-2", "--batch-size", "2", "--eps", "1e-2")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model and five images."""
    place = tmp_path_factory.mktemp("likelihood")
    tiny_model().save(place / "tiny")
    random_parquet(place / "data.parquet", n=5)
    return place


def run(folder, command, *arguments):
    return CliRunner().invoke(cli.app, [command, "--model", str(folder / "tiny"), *map(str, arguments)])


def likelihood(folder, out, *arguments):
    return run(folder, "likelihood", "--data", folder / "data.parquet", "--out", out, *LOOSE, *arguments)


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_a_table_a_histogram_and_a_manifest(folder, tmp_path, suffix):
    result = likelihood(folder, tmp_path / f"a.{suffix}", "--seed", 3)
    assert result.exit_code == 0, result.output
    rows = read_table(tmp_path / f"a.{suffix}")
    m, images = gen.load(folder / "tiny"), read_data(folder / "data.parquet").images
    r = m.log_likelihood(images, seed=3, rtol=1e-2, atol=1e-2, eps=1e-2)
    assert [row["id"] for row in rows] == list(range(5)) and {row["status"] for row in rows} == {"ok"}
    assert np.allclose([row["log_prob"] for row in rows], r.log_prob, rtol=1e-3)
    assert np.allclose([row["bits_per_dim"] for row in rows], r.bits_per_dim((-1, 1)), rtol=1e-3)
    said = json.loads((tmp_path / "a.json").read_text())
    assert said["complete"] and said["settings"]["seed"] == 3 and set(said["files"]) == {f"a.{suffix}", "a.png"}
    bits = np.array([row["bits_per_dim"] for row in rows])
    assert said["figures"]["bits_per_dim"] == pytest.approx(bits.mean())
    assert said["figures"]["standard_error"] == pytest.approx(bits.std(ddof=1) / 5**0.5)
    assert f"5 images, {bits.mean():.4f} +- " in result.output
    with Image.open(tmp_path / "a.png") as picture:
        assert (np.asarray(picture)[:, :, 0] == 70).any()  # bars


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_the_bound_stands_beside_the_value(folder, tmp_path, suffix):
    """Of the same dequantised points, with errors of its own, whatever the batches."""
    result = likelihood(folder, tmp_path / f"a.{suffix}", "--seed", 3, "--bound", 6)
    assert result.exit_code == 0, result.output
    rows = read_table(tmp_path / f"a.{suffix}")
    m = gen.load(folder / "tiny")
    x = m.scaled(read_data(folder / "data.parquet").images, seed=3)
    b = sd.likelihood_bound(m.process, m.score, x, 6, 3, eps=1e-2)
    assert np.allclose([row["bound"] for row in rows], b.bits_per_dim(m.data_range, m.levels), rtol=1e-4)
    assert np.allclose([row["bound_error"] for row in rows], b.bits_per_dim_error(), rtol=1e-3)
    figures = json.loads((tmp_path / "a.json").read_text())["figures"]
    bits = np.array([row["bound"] for row in rows])
    assert (figures["bound"], figures["bound_error"]) == pytest.approx((bits.mean(), bits.std(ddof=1) / 5**0.5))
    assert f"{bits.mean():.4f} +- {figures['bound_error']:.4f} bits/dim at most" in result.output


def test_an_interrupted_run_goes_on(folder, tmp_path, monkeypatch):
    measure = cli.measure

    def interrupted(*arguments, **options):
        yield next(measure(*arguments, **options))
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "measure", interrupted)
    stopped = likelihood(folder, tmp_path / "a.csv")
    assert stopped.exit_code == 130 and "the same command goes on" in stopped.output
    assert len(read_table(tmp_path / "a.csv")) == 2
    assert not json.loads((tmp_path / "a.json").read_text())["complete"]
    monkeypatch.setattr(cli, "measure", measure)
    assert "other settings" in likelihood(folder, tmp_path / "a.csv", "--seed", 1).output
    assert likelihood(folder, tmp_path / "a.csv").exit_code == 0
    assert likelihood(folder, tmp_path / "b.csv").exit_code == 0
    assert read_table(tmp_path / "a.csv") == read_table(tmp_path / "b.csv")
    other = likelihood(folder, tmp_path / "a.parquet")
    assert other.exit_code == 2 and "a.json is there already, of a table of other settings (table)" in other.output.replace("\n", " ")
    again = likelihood(folder, tmp_path / "a.csv")
    assert again.exit_code == 2 and "complete; add --overwrite" in again.output
    assert likelihood(folder, tmp_path / "a.csv", "--overwrite", "--n", 1).exit_code == 0
    assert len(read_table(tmp_path / "a.csv")) == 1


def test_a_run_goes_on_with_the_same_images_alone(folder, tmp_path, monkeypatch):
    """Not with others of that name, of that number and with those labels."""
    measure, source = cli.measure, tmp_path / "data.parquet"

    def interrupted(*arguments, **options):
        yield next(measure(*arguments, **options))
        raise KeyboardInterrupt

    images = [image[0].numpy() for image in read_data(folder / "data.parquet").images]
    write_parquet(source, images)
    monkeypatch.setattr(cli, "measure", interrupted)
    assert run(folder, "likelihood", "--data", source, "--out", tmp_path / "a.csv", *LOOSE).exit_code == 130
    monkeypatch.setattr(cli, "measure", lambda *arguments, **options: pytest.fail("the network was called"))
    write_parquet(source, images[::-1])
    swapped = run(folder, "likelihood", "--data", source, "--out", tmp_path / "a.csv", *LOOSE)
    assert swapped.exit_code == 2 and "other settings (digest); add --overwrite" in swapped.output.replace("\n", " ")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.png", "a picture of something else", "a.png is there already; add --overwrite"),
        ("a.csv", "hello", "a.csv is there already; add --overwrite"),
        ("a.json", "[]", "a.json is there already, and not of a table of likelihoods; add --overwrite"),
        ("a.json", '{"settings":', "a.json is not JSON"),
        ("a.json", '{"settings": {"seed": 0}}', "a.json is there already, and not of a table"),
    ],
    ids=str,
)
def test_what_is_there_is_kept(folder, tmp_path, monkeypatch, name, content, message):
    monkeypatch.setattr(cli, "measure", lambda *arguments, **options: pytest.fail("the network was called"))
    (tmp_path / name).write_text(content)
    result = likelihood(folder, tmp_path / "a.csv")
    assert result.exit_code == 2 and message in result.output.replace("\n", " "), result.output
    assert (tmp_path / name).read_text() == content


def test_where_images_may_come_from(folder, tmp_path):
    images = read_data(folder / "data.parquet").images
    for i, image in enumerate(images):
        Image.fromarray(image[0].numpy()).save(tmp_path / f"{i}.png")
    pictures = read_data(tmp_path)
    assert torch.equal(pictures.images, images) and pictures.names[2] == "2.png"
    np.savez(tmp_path / "a.npz", images=images.float().numpy() / 127.5 - 1)
    assert read_data(tmp_path / "a.npz", floats=True).images.dtype == torch.float32


def test_an_image_outside_the_range_is_told(folder, tmp_path):
    """By its name, and it stops no other."""
    images = np.random.default_rng(0).uniform(-1, 1, (5, 1, 8, 8)).astype(np.float32)
    images[1, 0, 2, 2], images[2, 0, 0, 0], images[4] = 1.01, np.inf, np.nan
    np.savez(tmp_path / "a.npz", images=images)
    result = run(folder, "likelihood", "--data", tmp_path / "a.npz", "--out", tmp_path / "a.csv", "--bound", 4, *LOOSE)
    said = " ".join(result.output.split())
    assert "3 of 5 images leave the data range (-1, 1), or hold a NaN, and have no likelihood:" in said and "a.npz[2]" in said and "samples have" not in said
    assert result.exit_code == 1, result.output
    rows = read_table(tmp_path / "a.csv")
    assert [row["status"] for row in rows] == ["ok", "outside_range", "outside_range", "ok", "non_finite"]
    assert [np.isfinite([row["bits_per_dim"], row["bound"]]).all() for row in rows] == [True, False, False, True, False]
    again = gen.load(folder / "tiny").log_likelihood(torch.from_numpy(images[3:4]), seed=0, sample_ids=[3], rtol=1e-2, atol=1e-2, eps=1e-2)
    assert rows[3]["log_prob"] == pytest.approx(float(again.log_prob), rel=1e-3)
    way = run(folder, "interpolate", "--data", tmp_path / "a.npz", "--first", 0, "--last", 1, "--out", tmp_path / "way.png")
    assert way.exit_code == 2 and "image 1 of 2 runs from" in way.output.replace("\n", " ") and not (tmp_path / "way.png").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--out", "a.json"], "ends in .csv or .parquet"),
        (["--data", "none.parquet"], "is not a file"),
        (["--data", "."], "holds no pictures"),
        (["--probes", "0"], "--probes"),
        (["--bound", "7"], "expected an even number"),
        (["--rtol", "-1"], "rtol=-1.0"),
        (["--eps", "2"], "expected 0 < eps < T"),
    ],
    ids=str,
)
def test_a_bad_value_is_a_message_and_exit_code_2(folder, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    result = likelihood(folder, "a.csv", *arguments)
    assert result.exit_code == 2
    assert message in result.output and "Traceback" not in result.output
    assert not (tmp_path / "a.csv").exists()


def test_interpolate_writes_a_picture_and_an_animation(folder, tmp_path):
    result = run(folder, "interpolate", "--count", 4, "--out", tmp_path / "way.png", "--rtol", "1e-2", "--atol", "1e-2")
    assert result.exit_code == 0, result.output
    said = json.loads((tmp_path / "way.json").read_text())
    assert set(said["files"]) == {"way.png", "way.gif"} and said["count"] == 4 and said["finite"]
    with Image.open(tmp_path / "way.gif") as animation:
        assert animation.n_frames == 6  # there and back, the ends once
    assert "there already" in run(folder, "interpolate", "--out", tmp_path / "way.png").output
    data = ("--data", folder / "data.parquet", "--rtol", "1e-2", "--atol", "1e-2", "--count", "3")
    assert run(folder, "interpolate", *data, "--first", 4, "--last", 2, "--out", tmp_path).exit_code == 0
    assert (tmp_path / "tiny-4-2-seed0.gif").exists()
    beyond = run(folder, "interpolate", *data, "--first", 5, "--out", tmp_path / "b.png")
    assert beyond.exit_code == 2 and "have 5 images" in beyond.output


@pytest.mark.parametrize("command", ["likelihood", "interpolate"])
def test_help_teaches_by_example(command):
    result = CliRunner().invoke(cli.app, [command, "--help"])
    assert result.exit_code == 0 and "Examples" in result.output and f"sdesolve-gen {command}" in result.output
