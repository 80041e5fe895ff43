"""What training must not do in silence: go on with other data, share a folder with another run, keep a model that diverged."""

import os
import subprocess
import sys
from collections.abc import Mapping

import numpy as np
import pytest
import torch
from gen_fixtures import random_parquet, tiny_config, tiny_model
from test_gen_training import same, steps_in, weights
from typer.testing import CliRunner

import sdesolve_gen as gen
from sdesolve_gen.cli import app
from sdesolve_gen.training import loop
from sdesolve_gen.training.checkpoints import CheckpointWarning, checkpoints, load_checkpoint, save_checkpoint


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def pictures(folder, seed=0, n=20, labels=None):
    """An npz file of the same name everywhere."""
    folder.mkdir(parents=True, exist_ok=True)
    images = np.random.default_rng(seed).integers(0, 256, (n, 8, 8), dtype=np.uint8)
    np.savez(folder / "small.npz", images=images, **({} if labels is None else {"labels": labels}))
    return folder / "small.npz"


def stopped(config, monkeypatch, step=3):
    """A run that ends after some updates."""
    update = loop._Run.update

    def until(run, batch):
        if run.step == step:
            raise KeyboardInterrupt
        return update(run, batch)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(loop._Run, "update", until)
        gen.train(config, progress=False)


# -- other data ------------------------------------------------------------------------------------------------------------


def test_other_data_of_the_same_name_are_another_run(tmp_path, monkeypatch):
    one, other, fewer = pictures(tmp_path / "mnist"), pictures(tmp_path / "fashion", seed=1), pictures(tmp_path / "fewer", n=19)
    stopped(tiny_config(one, tmp_path / "run"), monkeypatch)
    for data, said in ((other, "20 images (1, 8, 8)"), (fewer, "19 images (1, 8, 8)")):
        with pytest.raises(ValueError, match="was made with other data") as refused:
            gen.train(tiny_config(data, tmp_path / "run"), progress=False)
        assert f"'{one}' with 20 images (1, 8, 8), hash" in str(refused.value) and f"'{data}' with {said}, hash" in str(refused.value)
        assert "\n" not in str(refused.value) and "resume='never'" in str(refused.value)
    moved = tmp_path / "elsewhere" / "renamed.npz"
    moved.parent.mkdir()
    one.rename(moved)
    resumed = weights(gen.train(tiny_config(moved, tmp_path / "run"), progress=False))
    assert steps_in(tmp_path / "run") == [1, 2, 3, 4, 5, 6]
    assert same(resumed, weights(gen.train(tiny_config(moved, tmp_path / "straight"), progress=False)))


def test_labels_are_data_where_they_are_told(tmp_path, monkeypatch):
    labels = np.arange(20) % 3
    one, other = pictures(tmp_path / "a", labels=labels), pictures(tmp_path / "b", labels=labels[::-1].copy())
    stopped(tiny_config(one, tmp_path / "told", classes=3), monkeypatch)
    with pytest.raises(ValueError, match="was made with other data"):
        gen.train(tiny_config(other, tmp_path / "told", classes=3), progress=False)
    stopped(tiny_config(one, tmp_path / "not"), monkeypatch)
    gen.train(tiny_config(other, tmp_path / "not"), progress=False)


def test_other_first_weights_of_the_same_name_are_another_run(tmp_path, monkeypatch):
    data = pictures(tmp_path)
    for folder, shift in (("a", 0.0), ("b", 0.1)):
        model = tiny_model()
        next(model.network.parameters()).add_(shift)
        model.save(tmp_path / folder / "first")
    stopped(tiny_config(data, tmp_path / "run", init=str(tmp_path / "a" / "first")), monkeypatch)
    with pytest.raises(ValueError, match=r"started from other weights \(init: '.*a/first', SHA-256 .* there, '.*b/first', SHA-256 .* here\)"):
        gen.train(tiny_config(data, tmp_path / "run", init=str(tmp_path / "b" / "first")), progress=False)


def plain(found):
    """What was read, as dicts and lists again."""
    if isinstance(found, Mapping):
        return {name: plain(value) for name, value in found.items()}
    return [plain(value) for value in found] if isinstance(found, list) else found


def test_an_older_checkpoint_is_taken_with_a_warning(tmp_path, monkeypatch):
    data, config = pictures(tmp_path / "data"), tiny_config(tmp_path / "data" / "small.npz", tmp_path / "run")
    stopped(config, monkeypatch)
    checkpoint, state = load_checkpoint(tmp_path / "run")
    checkpoint.path.unlink()
    save_checkpoint(tmp_path / "run", checkpoint.step, plain({name: value for name, value in state.items() if name != "origin"}), 2)
    with pytest.raises(ValueError, match=r"another config \(data: 'small.npz' there, 'other.npz' here\)"):
        gen.train(tiny_config(data.rename(tmp_path / "data" / "other.npz"), tmp_path / "run"), progress=False)
    pictures(tmp_path / "data")
    with pytest.warns(CheckpointWarning, match="kept no hash of its data: that '.*small.npz' with 20 images .* are the same was not checked"):
        gen.train(config, progress=False)


# -- two runs in one folder ------------------------------------------------------------------------------------------------

def test_a_second_run_in_a_folder_is_refused(tmp_path, monkeypatch):
    data, out = pictures(tmp_path), tmp_path / "run"
    update, refused, trying = loop._Run.update, [], []

    def meanwhile(run, batch):
        if trying and not refused:
            pytest.fail("a second run trains in the folder")
        if not trying:
            trying.append(run)
            before = sorted(path.name for path in out.iterdir())
            for resume in ("auto", "never"):
                with pytest.raises(BlockingIOError, match=r"out='.*run': another run is training in this folder; .*--out runs/mine"):
                    gen.train(tiny_config(data, out), resume=resume, progress=False)
            refused.append(CliRunner().invoke(app, ["train", "--data", str(data), "--out", str(out), "--name", "x", "--batch", "8", "--steps", "2"]))
            assert sorted(path.name for path in out.iterdir()) == before
        return update(run, batch)

    monkeypatch.setattr(loop._Run, "update", meanwhile)
    gen.train(tiny_config(data, out), progress=False)
    assert refused[0].exit_code == 1 and refused[0].output.count("\n") == 1 and "another run is training" in refused[0].output
    assert steps_in(out) == [1, 2, 3, 4, 5, 6]


HOLDS = "import sys, time, filelock; held = filelock.FileLock(sys.argv[1]).acquire(); print('held', flush=True); time.sleep(60)"


@pytest.mark.skipif(os.name != "posix", reason="sends SIGKILL")
def test_a_run_that_was_killed_leaves_the_folder_free(tmp_path):
    data, out = pictures(tmp_path), tmp_path / "run"
    out.mkdir()
    with subprocess.Popen([sys.executable, "-c", HOLDS, str(out / loop.LOCK)], stdout=subprocess.PIPE, text=True) as other:
        try:
            assert other.stdout is not None and other.stdout.readline() == "held\n"
            with pytest.raises(BlockingIOError, match="another run is training"):
                gen.train(tiny_config(data, out), progress=False)
        finally:
            other.kill()
            other.wait()
    assert (out / loop.LOCK).exists()  # the file is not what locks
    gen.train(tiny_config(data, out), progress=False)


def test_a_run_that_ended_in_an_error_leaves_the_folder_free(tmp_path, monkeypatch):
    config = tiny_config(pictures(tmp_path), tmp_path / "run")
    stopped(config, monkeypatch)
    gen.train(config, progress=False)


# -- what diverged ---------------------------------------------------------------------------------------------------------


def test_a_model_that_diverged_is_not_saved(tmp_path):
    data, out = random_parquet(tmp_path / "train.parquet"), tmp_path / "run"
    arguments = ["train", "--data", str(data), "--out", str(out), "--name", "x", "--batch", "8", "--steps", "5", "--set", "warmup=1", "--set", "learning_rate=1e30"]
    said = CliRunner().invoke(app, arguments)
    assert said.exit_code == 1, said.output
    assert "training diverged at step 5" in said.output and "Lower learning_rate" in said.output
    assert not (out / "model.safetensors").exists() and not checkpoints(out)


def poisoned(monkeypatch, steps):
    """The loss is NaN at these updates."""
    loss = loop._Run._loss
    monkeypatch.setattr(loop._Run, "_loss", lambda run, *rest: loss(run, *rest) * (float("nan") if run.step in steps else 1.0))


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ({4, 5}, r"diverged at step 6: 2 of 6 updates were not finite, and skipped, the last 2 of them in a row"),
        ({0, 1, 2, 4}, r"diverged at step 6: 4 of 6 updates were not finite, and skipped, so no checkpoint"),
    ],
)
def test_a_run_that_ends_without_updates_is_no_model(tmp_path, monkeypatch, steps, message):
    poisoned(monkeypatch, steps)
    with pytest.raises(FloatingPointError, match=message):
        gen.train(tiny_config(pictures(tmp_path), tmp_path / "run"), progress=False)
    assert checkpoints(tmp_path / "run")[0].step == gen.load(tmp_path / "run").card["training"]["step"] == 4  # the model is that of the last checkpoint


@pytest.mark.parametrize("at", [4, 6])
def test_an_average_that_says_nothing_finite_is_not_saved(tmp_path, monkeypatch, at):
    """Finite weights can say so, and the loss is that of the weights and not of their average."""
    update = loop._Run.update

    def broken(run, batch):
        done = update(run, batch)
        if run.step == at:
            with torch.no_grad():
                for parameter in run.average.module.parameters():
                    parameter.fill_(1e30)
        return done

    monkeypatch.setattr(loop._Run, "update", broken)
    with pytest.raises(FloatingPointError, match=f"diverged at step {at}: what the averaged weights say of a batch is not finite.*is whole"):
        gen.train(tiny_config(pictures(tmp_path), tmp_path / "run"), progress=False)
    assert checkpoints(tmp_path / "run")[0].step == at - 2
