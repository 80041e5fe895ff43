"""What training must not do in silence: go on with other data, share a folder with another run, keep a model that diverged."""

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping

import numpy as np
import pytest
import torch
from gen_fixtures import NETWORK, random_parquet, tiny_config, tiny_model
from test_gen_training import same, steps_in, weights
from typer.testing import CliRunner

import sdesolve_gen as gen
from sdesolve.files import sha256
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


def test_a_run_starts_from_one_that_is_not_finished(tmp_path, monkeypatch):
    """From its model so far, from its newest whole checkpoint where it has none, or from the checkpoint that is named: they are the same weights."""
    data, out = pictures(tmp_path / "data"), tmp_path / "first"
    stopped(tiny_config(data, out, save_every=1), monkeypatch)
    newest, older = checkpoints(out)
    average = {name.removeprefix("module."): tensor for name, tensor in load_checkpoint(out)[1]["average"].items() if name != "n_averaged"}

    def started(init, name):
        return weights(gen.train(tiny_config(data, tmp_path / name, init=str(init), steps=1, learning_rate=1e-30), progress=False))

    assert same(started(out, "a"), average)
    for file in ("model.safetensors", "card.json"):
        (out / file).unlink()
    assert same(started(out, "b"), average) and same(started(newest.path, "c"), average)
    assert not same(started(older.path, "d"), average)
    newest.path.write_bytes(newest.path.read_bytes()[:-1])
    with pytest.warns(CheckpointWarning, match="is damaged"):
        assert same(started(out, "e"), started(older.path, "f"))
    assert newest.path.exists()  # nothing of the other run is touched
    assert json.loads(load_checkpoint(tmp_path / "f")[1]["origin"])["weights"] == sha256(older.path)
    with pytest.raises(ValueError, match=r"init='.*pt' has another network than this run \(width: 8 there, 16 here\); expected network.width=8 \(--set network.width=8\)"):
        gen.train(tiny_config(data, tmp_path / "g", init=str(older.path), network={**NETWORK, "width": 16}), progress=False)
    colours = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 3), dtype=np.uint8)
    np.savez(tmp_path / "colours.npz", images=colours)
    with pytest.raises(ValueError, match=r"expected data of its shape, \(1, 8, 8\), or init=''"):
        gen.train(tiny_config(tmp_path / "colours.npz", tmp_path / "g", init=str(older.path)), progress=False)
    for init in (out, older.path):
        with pytest.raises(ValueError, match=r"init='.*' lies in the folder of the run; expected another folder for this one, as in --out .*first-further"):
            gen.train(tiny_config(data, out, init=str(init)), progress=False)


@pytest.mark.parametrize(
    ("state", "message"),
    [([], "it holds a list"), ({"config": "{}"}, "is no state dict"), ({"config": "{}", "average": {"module.x": torch.ones(1) / 0}}, "averaged weights that are not finite, x")],
    ids=range(3),
)
def test_what_is_no_checkpoint_is_no_start(tmp_path, state, message):
    torch.save(state, tmp_path / "x.pt")
    with pytest.raises(ValueError, match=message):
        gen.train(tiny_config(pictures(tmp_path), tmp_path / "run", init=str(tmp_path / "x.pt")), progress=False)


@pytest.mark.parametrize(("first", "there"), [(3, 2), (0, None)])
def test_the_line_that_a_diverged_run_says_works(tmp_path, monkeypatch, first, there):
    loss = loop._Run._loss
    monkeypatch.setattr(loop._Run, "_loss", lambda run, *rest: loss(run, *rest) * (float("nan") if run.config.learning_rate > 5e-4 and run.step >= first else 1.0))
    out = tmp_path / "a run"
    with pytest.raises(FloatingPointError, match="diverged") as diverged:
        gen.train(tiny_config(pictures(tmp_path), out, steps=9, patience=3), progress=False)
    line = str(diverged.value).partition("sdesolve-gen ")[2].partition(" (")[0]
    result = CliRunner().invoke(app, shlex.split(line))
    assert result.exit_code == 0, result.output
    training = gen.load(f"{out}-slower" if there else out).card["training"]
    assert (training["learning_rate"], training["step"]) == (3e-4, 9 - (there or 0))
    assert training["init"] == (checkpoints(out)[0].path.name if there else "")


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


TAMPERED = {
    "a list": (lambda state: [], "it holds a list"),
    "no config": (lambda state: {k: v for k, v in state.items() if k != "config"}, "it holds origin, step"),
    "config that is no JSON": (lambda state: {**state, "config": "{"}, "its config or origin is not JSON"),
    "config that is a tensor": (lambda state: {**state, "config": torch.ones(1)}, "its config or origin is not JSON"),
    "config that is a list": (lambda state: {**state, "config": "[]"}, "do not say what it was made with"),
    "no shape": (lambda state: {**state, "origin": '{"data": "x"}'}, "do not say what it was made with"),
    "no step": (lambda state: {k: v for k, v in state.items() if k != "step"}, "its step is None; expected a whole number from 0 to 6"),
    "step far off": (lambda state: {**state, "step": 10**9}, "its step is 1000000000; expected a whole number from 0 to 6"),
    "step true": (lambda state: {**state, "step": True}, "its step is True"),
    "skipped": (lambda state: {**state, "skipped": 3}, "its skipped is 3; expected a whole number from 0 to 2"),
    "no network": (lambda state: {**state, "network": None}, "its network has other weights than this run's (None)"),
    "a weight less": (lambda state: {**state, "network": dict(list(state["network"].items())[1:])}, "its network has other weights than this run's (embed.0.frequencies)"),
    "another shape": (lambda state: changed(state, "network", lambda t: t[:1]), "is (1, 4, 3, 3) of torch.float32; expected (8, 4, 3, 3) of torch.float32"),
    "another type": (lambda state: changed(state, "average", lambda t: t.double()), "is (8, 4, 3, 3) of torch.float64; expected"),
    "no tensor": (lambda state: changed(state, "network", lambda t: "x"), "is 'x'; expected a tensor"),
    "NaN weights": (lambda state: changed(state, "network", lambda t: t * float("nan")), "is not finite"),
    "infinite average": (lambda state: changed(state, "average", lambda t: t / 0), "is not finite"),
    "no optimiser": (lambda state: {**state, "optimiser": 3}, "its optimiser is not one of"),
    "a weight more": (lambda state: {**state, "optimiser": {"state": {10**6: {}}}}, "its optimiser is not one of"),
    "no moments": (lambda state: {**state, "optimiser": {"state": {0: {}}}}, "does not have exp_avg, exp_avg_sq, step of weight 0"),
    "moments of NaN": (lambda state: {**state, "optimiser": {"state": {0: {n: v / 0 for n, v in state["optimiser"]["state"][0].items()}}}}, "in its optimiser is not finite"),
    "scaler": (lambda state: {**state, "scaler": {"scale": 1.0}}, "its scaler is a dict; expected finite numbers for nothing"),
}  # fmt: skip


def changed(state, part, how):
    """With its first convolution's weights as ``how`` makes them."""
    name = next(name for name in state[part] if name.endswith("stem.weight"))
    return {**state, part: {**state[part], name: how(state[part][name])}}


@pytest.fixture(scope="module")
def state(tmp_path_factory):
    folder = tmp_path_factory.mktemp("state")
    with pytest.MonkeyPatch.context() as patch:
        stopped(tiny_config(pictures(folder), folder / "run"), patch)
    return folder / "small.npz", plain(load_checkpoint(folder / "run")[1])


@pytest.mark.parametrize("kind", TAMPERED)
def test_a_checkpoint_that_is_no_state_of_the_run_is_one_error(state, tmp_path, kind):
    """Its hash is right: somebody made it so."""
    data, whole = state
    tamper, message = TAMPERED[kind]
    save_checkpoint(tmp_path, 2, tamper(whole), 2)
    with pytest.raises(ValueError, match=re.escape(message)) as refused:
        gen.train(tiny_config(data, tmp_path), progress=False)
    assert str(checkpoints(tmp_path)[0].path) in str(refused.value) and "\n" not in str(refused.value)


def test_constants_of_the_optimiser_are_not_the_checkpoint_s(state, tmp_path):
    data, whole = state
    straight = weights(gen.train(tiny_config(data, tmp_path / "a"), progress=False))
    (tmp_path / "b").mkdir()
    save_checkpoint(tmp_path / "b", 2, {**whole, "optimiser": {**whole["optimiser"], "param_groups": [{"betas": [2, float("nan")]}]}}, 2)
    assert same(straight, weights(gen.train(tiny_config(data, tmp_path / "b"), progress=False)))


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
    with pytest.raises(FloatingPointError, match=f"diverged at step {at}: what the averaged weights say of a batch is not finite.*which is whole"):
        gen.train(tiny_config(pictures(tmp_path), tmp_path / "run"), progress=False)
    assert checkpoints(tmp_path / "run")[0].step == at - 2
