"""Training: a run is a function of its config, whatever happened on the way."""

import json
import resource
import signal
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from gen_fixtures import NETWORK, random_parquet, tiny_config, write_parquet
from torch import nn

import sdesolve as sd
import sdesolve_gen as gen
from sdesolve.files import sha256
from sdesolve_gen.data import read_data
from sdesolve_gen.networks import NETWORKS, UNet, execution
from sdesolve_gen.training import TrainConfig, fitting, loop
from sdesolve_gen.training.batches import Ahead, draw_batch
from sdesolve_gen.training.checkpoints import CheckpointWarning, checkpoints, load_checkpoint, save_checkpoint
from sdesolve_gen.training.journal import take_back
from sdesolve_gen.training.losses import denoising_loss
from sdesolve_gen.training.order import batch_indices, generator


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return random_parquet(tmp_path_factory.mktemp("data") / "train.parquet")


def weights(model):
    return {name: tensor.clone() for name, tensor in model.network.state_dict().items()}


def lines(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def steps_in(folder):
    return [line["step"] for line in lines(folder)]


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("killed_after", [3, 5])  # one and a half, two and a half checkpoints
def test_killed_and_resumed_is_the_run_that_was_not(data, tmp_path, monkeypatch, precision, killed_after):
    straight = gen.train(tiny_config(data, tmp_path / "a", precision=precision), progress=False)
    update, done = loop._Run.update, []

    def killed(run, images):
        if len(done) == killed_after:
            raise KeyboardInterrupt
        done.append(run.step)
        return update(run, images)

    config = tiny_config(data, tmp_path / "b", precision=precision)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(loop._Run, "update", killed)
        gen.train(config, progress=False)
    assert gen.load(tmp_path / "b").card["training"]["step"] == 2 * (killed_after // 2)  # the model so far
    torch.manual_seed(12345)  # whatever else the process drew in between
    resumed = gen.train(config, progress=False)
    assert same(weights(straight), weights(resumed))
    assert same(weights(straight), weights(gen.load(tmp_path / "b")))


def test_float16_learns_what_float32_does(data, tmp_path):
    for precision in ("fp32", "fp16"):
        gen.train(tiny_config(data, tmp_path / precision, precision=precision), progress=False)
    for half, single in zip(lines(tmp_path / "fp16"), lines(tmp_path / "fp32"), strict=True):
        assert half["loss"] == pytest.approx(single["loss"], rel=2e-3)
        assert half["norm"] == pytest.approx(single["norm"], rel=2e-2)  # of the gradient, and not of the scaled one
    assert lines(tmp_path / "fp16")[-1]["loss"] != lines(tmp_path / "fp32")[-1]["loss"]
    assert load_checkpoint(tmp_path / "fp16")[1]["scaler"]["scale"] == 2.0**16
    assert load_checkpoint(tmp_path / "fp32")[1]["scaler"] == {}


def test_the_scale_of_the_loss_falls_until_it_fits_and_is_remembered(data, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.amp, "GradScaler", partial(torch.amp.GradScaler, init_scale=2.0**22, growth_interval=2))
    with pytest.warns(loop.TrainingWarning, match="were not finite, and skipped"):
        straight = gen.train(tiny_config(data, tmp_path / "a", precision="fp16", steps=14), progress=False)
    _, state = load_checkpoint(tmp_path / "a")
    assert 3 <= state["skipped"] < 14 and state["scaler"]["scale"] < 2.0**22
    assert all(np.isfinite(line["norm"]) for line in lines(tmp_path / "a") if line["norm"] is not None)
    update, done = loop._Run.update, []

    def killed(run, images):
        if run.step == 9 and not done:
            done.append(run.step)
            raise KeyboardInterrupt
        return update(run, images)

    monkeypatch.setattr(loop._Run, "update", killed)
    config = tiny_config(data, tmp_path / "b", precision="fp16", steps=14)
    with pytest.raises(KeyboardInterrupt):
        gen.train(config, progress=False)
    with pytest.warns(loop.TrainingWarning):
        resumed = gen.train(config, progress=False)
    assert same(weights(straight), weights(resumed)) and load_checkpoint(tmp_path / "b")[1]["scaler"] == state["scaler"]


def test_a_type_that_a_device_lacks_is_named(data, tmp_path, monkeypatch):
    def lacks(*arguments):
        raise RuntimeError("\"erfinv\" not implemented for 'Half'")

    monkeypatch.setattr(loop, "denoising_loss", lacks)
    with pytest.raises(ValueError, match=r'precision="fp16" cannot be had on cpu \("erfinv" not implemented for .*expected precision="fp32" or precision="bf16"'):
        gen.train(tiny_config(data, tmp_path / "a", precision="fp16"), progress=False)
    with pytest.raises(RuntimeError, match="not implemented"):  # a defect of ours, and told as one
        gen.train(tiny_config(data, tmp_path / "b"), progress=False)


def test_the_seed_and_nothing_else_decides(data, tmp_path):
    first = weights(gen.train(tiny_config(data, tmp_path / "a", seed=1), progress=False))
    torch.manual_seed(99)
    np.random.seed(99)
    again = weights(gen.train(tiny_config(data, tmp_path / "b", seed=1), progress=False))
    other = weights(gen.train(tiny_config(data, tmp_path / "c", seed=2), progress=False))
    assert same(first, again)
    assert not same(first, other)


def test_resume_never_starts_anew(data, tmp_path):
    first = weights(gen.train(tiny_config(data, tmp_path), progress=False))
    anew = weights(gen.train(tiny_config(data, tmp_path, seed=5), resume="never", progress=False))
    assert not same(first, anew)
    with pytest.raises(ValueError, match="resume='always'"):
        gen.train(tiny_config(data, tmp_path), resume="always")


def test_a_run_that_starts_anew_leaves_nothing_of_the_one_before(data, tmp_path, monkeypatch):
    """Killed before its first checkpoint, it would be sampled from the old model."""
    gen.train(tiny_config(data, tmp_path, sample_every=2), progress=False)
    (tmp_path / "samples" / "mine.png").write_bytes(b"mine")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(loop._Run, "update", lambda run, batch: die())
        gen.train(tiny_config(data, tmp_path, seed=5), resume="never", progress=False)
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()) == [loop.LOCK, "config.yaml", "log.jsonl", "samples/mine.png"]
    assert lines(tmp_path) == []


def test_a_run_starts_from_another_s_weights(data, tmp_path):
    first = gen.train(tiny_config(data, tmp_path / "first"), progress=False)
    again = gen.train(tiny_config(data, tmp_path / "again", init=str(tmp_path / "first"), learning_rate=1e-30), progress=False)
    fresh = gen.train(tiny_config(data, tmp_path / "fresh", learning_rate=1e-30), progress=False)
    assert same(weights(first), weights(again)) and not same(weights(first), weights(fresh))
    assert again.card["training"]["init"] == "first"
    with pytest.raises(ValueError, match="has another network than this run"):
        gen.train(tiny_config(data, tmp_path / "wider", init=str(tmp_path / "first"), network={**NETWORK, "width": 16}), progress=False)


def test_a_run_may_end_before_its_rate_has_fallen(data, tmp_path):
    """The first updates of a longer run are those of a shorter one with the same ``decay``."""
    long = tiny_config(data, tmp_path / "long", steps=8)
    short = tiny_config(data, tmp_path / "short", steps=3, decay=8)
    for step in range(3):
        assert loop.learning_rate(short, step) == loop.learning_rate(long, step)
    assert loop.learning_rate(short, 2) > loop.learning_rate(tiny_config(data, tmp_path / "short", steps=3), 2)
    with pytest.raises(ValueError, match="decay=3; expected 0, or an integer >= steps"):
        tiny_config(data, tmp_path, steps=8, decay=3)


def test_a_checkpoint_of_another_config_is_refused(data, tmp_path):
    gen.train(tiny_config(data, tmp_path), progress=False)
    with pytest.raises(ValueError, match=r"another config \(learning_rate: 0.001 there, 0.01 here\)"):
        gen.train(tiny_config(data, tmp_path, learning_rate=0.01), progress=False)


def test_a_run_whose_folders_moved_goes_on(data, tmp_path):
    gen.train(tiny_config(data, tmp_path / "a"), progress=False)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "a").rename(tmp_path / "b")
    moved = Path(tmp_path / "elsewhere" / "train.parquet")
    moved.write_bytes(data.read_bytes())
    log = (tmp_path / "b" / "log.jsonl").read_text()
    gen.train(tiny_config(moved, tmp_path / "b"), progress=False)
    assert (tmp_path / "b" / "log.jsonl").read_text() == log  # it was finished: no step was taken again


def newest(folder):
    return checkpoints(folder)[0]


def test_checkpoints_are_named_by_what_is_in_them_and_the_oldest_go(data, tmp_path):
    gen.train(tiny_config(data, tmp_path, steps=7, keep=3), progress=False)
    found = checkpoints(tmp_path)
    assert [checkpoint.step for checkpoint in found] == [7, 6, 4]  # every second update, and the end
    assert all(checkpoint.whole() for checkpoint in found)
    assert sha256(found[0].path).startswith(found[0].path.stem[-16:])


@pytest.mark.parametrize("damage", ["cut", "bit", "empty"])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(data, tmp_path, damage):
    straight = gen.train(tiny_config(data, tmp_path / "a"), progress=False)
    gen.train(tiny_config(data, tmp_path / "b"), progress=False)
    path = newest(tmp_path / "b").path
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes({"cut": content[:1000], "bit": content, "empty": b""}[damage])
    (tmp_path / "b" / "model.safetensors").unlink()
    with pytest.warns(CheckpointWarning, match=rf"{path.name} is damaged"):
        again = gen.train(tiny_config(data, tmp_path / "b"), progress=False)
    assert same(weights(straight), weights(again))
    assert steps_in(tmp_path / "b") == steps_in(tmp_path / "a") == list(range(1, 7))


def test_a_damaged_checkpoint_takes_no_other_s_place(data, tmp_path):
    """Kept by its number, it would outlive every good one, and a run that is killed again would begin where it began before."""
    gen.train(tiny_config(data, tmp_path, decay=12), progress=False)
    path = newest(tmp_path).path
    path.write_bytes(path.read_bytes()[:1000])
    update = loop._Run.update
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt), pytest.warns(CheckpointWarning, match="is damaged"):
        patch.setattr(loop._Run, "update", lambda run, batch: update(run, batch) if run.step < 5 else die())
        gen.train(tiny_config(data, tmp_path, decay=12, save_every=1, keep=1), progress=False)
    assert [checkpoint.step for checkpoint in checkpoints(tmp_path)] == [5] and newest(tmp_path).whole()
    assert [aside.name for aside in tmp_path.glob("*.damaged")] == [path.name + ".damaged"]
    gen.train(tiny_config(data, tmp_path, decay=12), progress=False)  # and nothing is said of it again
    gen.train(tiny_config(data, tmp_path), resume="never", progress=False)
    assert not list(tmp_path.glob("*.damaged"))


def test_where_no_checkpoint_is_whole_nothing_starts_anew_unasked(data, tmp_path):
    gen.train(tiny_config(data, tmp_path), progress=False)
    for checkpoint in checkpoints(tmp_path):
        checkpoint.path.write_bytes(b"")
    with pytest.warns(CheckpointWarning), pytest.raises(ValueError, match="holds 2 checkpoints, and none is whole"):
        gen.train(tiny_config(data, tmp_path), progress=False)
    gen.train(tiny_config(data, tmp_path), resume="never", progress=False)
    assert newest(tmp_path).whole()


def test_a_checkpoint_runs_no_code(tmp_path):
    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "touched",))

    with pytest.raises(ValueError, match="none is whole"), pytest.warns(CheckpointWarning, match="is damaged"):
        save_checkpoint(tmp_path, 3, {"step": Evil()}, 1)  # the right hash
        load_checkpoint(tmp_path)
    assert not (tmp_path / "touched").exists()


def test_a_full_disk_leaves_the_checkpoint_before(data, tmp_path):
    """The largest file is limited to less than a checkpoint: a real write that fails halfway."""
    gen.train(tiny_config(data, tmp_path, steps=6, decay=8), progress=False)
    there = {path.name: path.read_bytes() for path in tmp_path.glob("checkpoint-*")}
    state = {"weights": torch.zeros(100_000)}
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))
    try:
        with pytest.raises(OSError, match=r"the checkpoint of step 8 cannot be written.*checkpoint-00000006-\w+\.pt stands"):
            save_checkpoint(tmp_path, 8, state, 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert {path.name: path.read_bytes() for path in tmp_path.glob("checkpoint-*")} == there
    assert [path.name for path in tmp_path.glob(".*")] == [loop.LOCK]


def poisoned(monkeypatch, steps):
    """The loss is NaN at these updates."""
    loss = loop._Run._loss
    monkeypatch.setattr(loop._Run, "_loss", lambda run, *rest: loss(run, *rest) * (float("nan") if run.step in steps else 1.0))


def test_an_update_that_is_not_finite_is_skipped_and_counted(data, tmp_path, monkeypatch):
    poisoned(monkeypatch, {3})
    seen = []
    update = loop._Run.update

    def watched(run, batch):
        before = {name: tensor.clone() for name, tensor in [*run.network.state_dict().items(), *run.average.state_dict().items()]}
        result = update(run, batch)
        seen.append(same(before, {name: tensor for name, tensor in [*run.network.state_dict().items(), *run.average.state_dict().items()]}))
        return result

    monkeypatch.setattr(loop._Run, "update", watched)
    with pytest.warns(loop.TrainingWarning, match="1 of 6 updates were not finite"):
        model = gen.train(tiny_config(data, tmp_path), progress=False)
    assert seen == [False, False, False, True, False, False]
    assert all(torch.isfinite(tensor).all() for tensor in model.network.state_dict().values())
    log = lines(tmp_path)
    assert [line["skipped"] for line in log] == [0, 0, 0, 1, 1, 1]
    assert log[3]["loss"] is None
    _, state = load_checkpoint(tmp_path)
    assert state["skipped"] == 1


def test_many_in_a_row_end_the_run_and_none_of_them_is_kept(data, tmp_path, monkeypatch):
    """The newest checkpoint is from before them, wherever the run is interrupted."""
    poisoned(monkeypatch, {3, 4, 5, 6, 7})
    config = tiny_config(data, tmp_path, steps=12, patience=5, save_every=1)
    update = loop._Run.update

    def killed(run, batch):
        if run.step == 6:
            raise KeyboardInterrupt
        return update(run, batch)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(loop._Run, "update", killed)
        gen.train(config, progress=False)
    with pytest.raises(FloatingPointError, match=r"diverged at step 7: 5 updates in a row were not finite.*the loss is nan.*Lower learning_rate.*which is whole"):
        gen.train(config, progress=False)
    _, state = load_checkpoint(tmp_path)
    assert (state["step"], state["in_a_row"]) == (3, 0)
    assert gen.load(tmp_path).card["training"]["step"] == 3


def test_a_checkpoint_that_was_due_comes_after_the_last_update_that_was_skipped(data, tmp_path, monkeypatch):
    poisoned(monkeypatch, {2, 3, 4})
    with pytest.warns(loop.TrainingWarning):
        gen.train(tiny_config(data, tmp_path, steps=9, save_every=4, keep=9), progress=False)
    assert [checkpoint.step for checkpoint in checkpoints(tmp_path)] == [9, 8, 6]


def test_a_weight_that_is_not_finite_is_never_saved(data, tmp_path, monkeypatch):
    step, calls = torch.optim.Adam.step, []

    def bad_step(optimiser, *arguments):
        calls.append(1)
        step(optimiser, *arguments)
        if len(calls) == 4:
            optimiser.param_groups[0]["params"][0].data[0] = float("inf")

    monkeypatch.setattr(torch.optim.Adam, "step", bad_step)
    with pytest.raises(FloatingPointError, match=r"diverged at step 4: a weight is not finite.*Lower learning_rate.*which is whole"):
        gen.train(tiny_config(data, tmp_path), progress=False)
    checkpoint, state = load_checkpoint(tmp_path)
    assert checkpoint.step == state["step"] == 2
    assert all(torch.isfinite(tensor).all() for tensor in state["network"].values())


def test_the_loss_falls_and_the_log_tells(tmp_path):
    data = write_parquet(tmp_path / "train.parquet", [np.full((8, 8), 200, np.uint8)] * 8)
    gen.train(tiny_config(data, tmp_path / "run", steps=80, save_every=1000, warmup=10, learning_rate=1e-2), progress=False)
    log = lines(tmp_path / "run")
    assert [line["step"] for line in log] == list(range(1, 81))
    assert {"loss", "norm", "learning_rate", "skipped", "images_per_second", "time"} < log[0].keys()
    losses = [line["loss"] for line in log]
    assert sum(losses[-10:]) < 0.7 * sum(losses[:10])


def test_the_card_holds_no_path_of_this_machine(data, tmp_path):
    gen.train(tiny_config(data, tmp_path), progress=False)
    text = (tmp_path / "card.json").read_text()
    card = json.loads(text)
    assert str(tmp_path) not in text
    assert str(data.parent) not in text
    assert card["training"]["data"] == "train.parquet"
    assert card["versions"]["torch"] == torch.__version__
    assert card["parameters"] == sum(p.numel() for p in gen.load(tmp_path).network.parameters())


@pytest.mark.parametrize(("size", "batch"), [(20, 8), (8, 8), (17, 4)])
def test_every_epoch_is_a_permutation_and_every_step_a_function_of_itself(size, batch):
    per_epoch = size // batch
    seen = []
    for epoch in range(3):
        steps = range(epoch * per_epoch, (epoch + 1) * per_epoch)
        rows = torch.cat([batch_indices(size, batch, 0, step) for step in steps])
        assert len(rows.unique()) == len(rows) == per_epoch * batch
        seen.append(rows)
    assert not torch.equal(seen[0], seen[1])
    assert torch.equal(batch_indices(size, batch, 0, 2 * per_epoch), seen[2][:batch])  # asked out of order
    assert not torch.equal(batch_indices(size, batch, 1, 0), batch_indices(size, batch, 0, 0)) or size == batch


class Told(nn.Module):
    """A network with classes, as small as can be: x times a number for each class and one for none."""

    def __init__(self, channels, classes):
        super().__init__()
        self.scale = nn.Parameter(torch.linspace(0, 1, classes + 1))
        self.seen = []

    def forward(self, x, time, labels):
        self.seen.append(labels)
        return x * self.scale[labels][:, None, None, None] + 0 * time[:, None, None, None]


def test_a_network_with_classes_is_told_them_and_sometimes_none(data, tmp_path, monkeypatch):
    made = []
    monkeypatch.setitem(NETWORKS, "Told", lambda channels, classes: made.append(Told(channels, classes)) or made[-1])
    config = tiny_config(data, tmp_path, network_name="Told", network={}, classes=20, label_dropout=0.3, steps=40, sample_every=40, samples=22)
    model = gen.train(config, progress=False)
    assert model.card["classes"] == 20
    assert model.card["network_options"] == {"channels": 1, "classes": 20}
    seen = made[1].seen  # the first was tried without memory
    assert all(labels.shape == (8,) and labels.dtype == torch.int64 for labels in seen)
    rows = [batch_indices(20, 8, 0, step) for step in range(40)]
    told, true = torch.cat(seen), torch.cat(rows)  # image i of the data set has label i
    dropped = told == 20
    assert torch.equal(told[~dropped], true[~dropped])
    assert 0.2 < dropped.float().mean() < 0.4
    assert (tmp_path / "samples" / "00000040.png").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"classes": 19}, "labels of .* go from 0 to 19; expected classes=20"),
        ({"classes": 20, "network_name": "Plain", "network": {}}, "classes=20: the network network_name='Plain' knows no classes; expected network_name='UNet'"),
    ],
)
def test_classes_that_do_not_fit_are_told(data, tmp_path, change, message, monkeypatch):
    monkeypatch.setitem(NETWORKS, "Plain", type("Plain", (Told,), {"__init__": lambda self, channels: None}))
    with pytest.raises(ValueError, match=message):
        gen.train(tiny_config(data, tmp_path, **change), progress=False)
    write_parquet(tmp_path / "a.parquet", [np.zeros((8, 8), np.uint8)] * 8)
    np.savez(tmp_path / "bare.npz", images=np.zeros((8, 8, 8), np.uint8))
    with pytest.raises(ValueError, match=r"has no labels; expected a column 'label'"):
        gen.train(tiny_config(tmp_path / "bare.npz", tmp_path, classes=2), progress=False)


def test_parts_of_a_batch_are_the_batch(data, tmp_path):
    """Accumulated in four parts, the loss, its gradient and the run are those of the whole, to rounding."""
    whole = gen.train(tiny_config(data, tmp_path / "whole", steps=3), progress=False)
    parts = gen.train(tiny_config(data, tmp_path / "parts", steps=3, accumulate=4), progress=False)
    for a, b in zip(lines(tmp_path / "whole"), lines(tmp_path / "parts"), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-5)
        assert a["norm"] == pytest.approx(b["norm"], rel=1e-4)
    assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(weights(whole).values(), weights(parts).values(), strict=True))


def test_the_loss_that_is_logged_is_that_of_the_batch(data, tmp_path):
    """The first two lines, worked out by hand: Adam's first step is the rate along the sign of the gradient."""
    config = tiny_config(data, tmp_path, steps=2, clip=1e9)
    gen.train(config, progress=False)
    torch.manual_seed(config.seed)
    network = UNet(channels=1, **NETWORK)
    score = sd.as_score(network, sd.VPSDE(), predicts="v", time="log_sigma/4")
    for step, line in enumerate(lines(tmp_path)):
        batch = draw_batch(read_data(data), config, sd.VPSDE(), step)
        network.zero_grad()
        loss = denoising_loss(score, batch.x0, batch.times, batch.eps)
        loss.backward()
        norm = torch.cat([p.grad.flatten() for p in network.parameters()]).norm()
        rate = loop.learning_rate(config, step)
        assert (line["loss"], line["norm"], line["learning_rate"]) == (pytest.approx(loss.item(), rel=1e-4), pytest.approx(float(norm), rel=1e-3), rate)
        with torch.no_grad():
            for p in network.parameters():
                p -= rate * p.grad / (p.grad.abs() + 1e-8)


def test_gradients_are_clipped(data, tmp_path, monkeypatch):
    norms, step = [], torch.optim.Adam.step

    def watched(optimiser, *arguments):
        norms.append(torch.cat([p.grad.flatten() for group in optimiser.param_groups for p in group["params"]]).norm().item())
        return step(optimiser, *arguments)

    monkeypatch.setattr(torch.optim.Adam, "step", watched)
    gen.train(tiny_config(data, tmp_path, clip=0.01), progress=False)
    assert norms == pytest.approx([0.01] * 6, rel=1e-3)
    assert all(line["norm"] > 0.02 for line in lines(tmp_path))  # what is logged is the norm before


def test_blocks_that_are_computed_twice_change_no_weight(data, tmp_path, monkeypatch):
    """Dropout too, and a run may take to it on the way, when memory turns out to be short."""
    dropping = {"network_name": "NCSNpp", "network": {"width": 8, "multipliers": [1], "blocks": 1, "embedding": "positional", "scale_by_sigma": False, "dropout": 0.3}}
    plain = gen.train(tiny_config(data, tmp_path / "a", steps=2, decay=3, **dropping), progress=False)
    twice, recomputed = [], execution.checkpoint
    monkeypatch.setattr(execution, "checkpoint", lambda *rest, **options: twice.append(1) or recomputed(*rest, **options))
    once = gen.train(tiny_config(data, tmp_path / "b", steps=2, decay=3, checkpoint=True, **dropping), progress=False)
    assert same(weights(plain), weights(once)) and len(twice) > 8
    assert not any(block.checkpoint for block in once.network.modules() if isinstance(block, execution.Block))  # the model itself is as any other


def test_blocks_of_the_sliced_loss_are_computed_twice_too(data, tmp_path):
    """Whose attention has a kernel of its own, in the second forward pass as in the first."""
    config = partial(tiny_config, data, loss="sliced", weight="sigma2", steps=2)
    plain, once = (gen.train(config(tmp_path / str(c), checkpoint=c), progress=False) for c in (False, True))
    assert same(weights(plain), weights(once))


def test_a_run_may_take_to_checkpoints_on_the_way(data, tmp_path):
    straight = gen.train(tiny_config(data, tmp_path / "a"), progress=False)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        update = loop._Run.update
        patch.setattr(loop._Run, "update", lambda run, batch: update(run, batch) if run.step < 3 else die())
        gen.train(tiny_config(data, tmp_path / "b"), progress=False)
    assert same(weights(straight), weights(gen.train(tiny_config(data, tmp_path / "b", checkpoint=True), progress=False)))


def test_a_network_without_blocks_cannot_compute_them_twice(data, tmp_path, monkeypatch):
    monkeypatch.setitem(NETWORKS, "Plain", type("Plain", (nn.Identity,), {"__init__": lambda self, channels: nn.Identity.__init__(self), "forward": lambda self, x, time: x}))
    with pytest.raises(ValueError, match=r"checkpoint=True: the network network_name='Plain' has no blocks.*--set checkpoint=false"):
        gen.train(tiny_config(data, tmp_path, network_name="Plain", network={}, checkpoint=True), progress=False)
    small = {"model_channels": 16, "channel_mult": [1], "num_blocks": 1, "attn_resolutions": []}
    fitting.make_network(tiny_config(data, tmp_path, network_name="EDMUNet", network=small, checkpoint=True), (1, 8, 8))


@pytest.mark.slow
def test_compiled_training_is_training(data, tmp_path):
    plain, compiled = (gen.train(tiny_config(data, tmp_path / str(c), compile=c, accumulate=2), progress=False) for c in (False, True))
    assert all(torch.allclose(a, b, atol=1e-3) for a, b in zip(weights(plain).values(), weights(compiled).values(), strict=True))
    assert weights(plain).keys() == weights(gen.load(tmp_path / "True")).keys()


def test_a_batch_is_a_function_of_its_step_and_a_place_of_its_number(data):
    config = tiny_config(data, Path("x"), loss="sliced", flip=True, classes=20)
    stored = read_data(data)
    process = sd.VPSDE()
    batch, again, other = (draw_batch(stored, config, process, step) for step in (5, 5, 6))
    assert all(torch.equal(a, b) for a, b in zip(batch, again, strict=True))
    assert not torch.equal(batch.eps, other.eps) and not torch.equal(batch.t, other.t)
    part = batch.part(slice(2, 5), torch.device("cpu"))
    assert torch.equal(part.eps, batch.eps[2:5]) and torch.equal(part.probe, batch.probe[2:5]) and torch.equal(part.labels, batch.labels[2:5])
    assert set(batch.probe.unique().tolist()) == {-1.0, 1.0}
    rows = batch_indices(20, 8, 0, 5)
    plain = draw_batch(stored, tiny_config(data, Path("x")), process, 5)
    assert torch.equal((128 * (plain.x0 + 1)).floor().to(torch.uint8), stored.images[rows])  # each in its bin
    mirrored = (batch.x0 != plain.x0).flatten(1).any(1)
    assert 0 < mirrored.sum() < 8
    assert torch.equal((128 * (batch.x0[mirrored] + 1)).floor().to(torch.uint8), stored.images[rows][mirrored].flip(-1))
    ahead = Ahead(stored, config, process)
    assert all(torch.equal(a, b) for step in (3, 4, 9, 5) for a, b in zip(ahead.batch(step), draw_batch(stored, config, process, step), strict=True))
    ahead.close()


def test_labels_are_dropped_by_a_chance_of_their_own(data):
    """Anew in every step and for every seed, each place by itself, and by no other draw of the step."""
    stored, process, p = read_data(data), sd.VPSDE(), 0.3
    dropped = {}
    for seed in (0, 1):
        config = tiny_config(data, Path("x"), classes=20, label_dropout=p, seed=seed)
        dropped[seed] = torch.stack([draw_batch(stored, config, process, step).labels == 20 for step in range(60)])
        often = dropped[seed].float()
        assert (often.mean(0) - p).abs().max() < 4 * (p * (1 - p) / 60) ** 0.5
        assert abs(float(often.var(1).mean()) - p * (1 - p)) < 0.05  # within a step some are, and some are not
        for stream in (0, 1, 2, 4, 5):
            same = torch.stack([torch.rand(8, generator=generator(seed, step, stream)) < p for step in range(60)])
            assert not torch.equal(same, dropped[seed])
    assert not torch.equal(dropped[0], dropped[1]) and len(dropped[0].unique(dim=0)) > 20


def test_data_lie_in_the_range_that_the_process_is_for(data, tmp_path):
    stored, process = read_data(data), sd.VESDE()
    here, there = (draw_batch(stored, tiny_config(data, tmp_path, data_range=r), process, 0) for r in ([-1.0, 1.0], [0.0, 1.0]))
    assert torch.allclose(there.x0, (here.x0 + 1) / 2)
    assert torch.equal(there.eps, here.eps)
    model = gen.train(tiny_config(data, tmp_path, data_range=[0.0, 1.0], process="ve", steps=2, sample_every=2), progress=False)
    assert model.data_range == (0.0, 1.0)
    assert gen.load(tmp_path).sample(1, "ddim", steps=2, seed=0).min() >= 0


def test_dropout_is_a_function_of_the_step(data, tmp_path, monkeypatch):
    """A run that goes on drops what the run that was not interrupted drops."""

    class Dropping(UNet):
        def forward(self, x, time):
            return super().forward(x, time) + nn.functional.dropout(x, 0.5, self.training)

    monkeypatch.setitem(NETWORKS, "Dropping", Dropping)
    long = gen.train(tiny_config(data, tmp_path / "a", network_name="Dropping", decay=9), progress=False)
    assert not long.network.training
    update = loop._Run.update
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(loop._Run, "update", lambda run, batch: update(run, batch) if run.step < 5 else die())
        gen.train(tiny_config(data, tmp_path / "b", network_name="Dropping", decay=9), progress=False)
    torch.manual_seed(7)
    assert same(weights(long), weights(gen.train(tiny_config(data, tmp_path / "b", network_name="Dropping", decay=9), progress=False)))


def test_every_part_of_every_update_drops_something_else(data, tmp_path, monkeypatch):
    masks = []

    class Dropping(UNet):
        def forward(self, x, time):
            kept = nn.functional.dropout(torch.ones(64, device=x.device), 0.5, self.training)
            if self.training and not kept.is_meta:
                masks.append(tuple(kept.tolist()))
            return super().forward(x, time) + 0 * kept.sum()

    monkeypatch.setitem(NETWORKS, "Dropping", Dropping)
    for seed in (0, 1):
        gen.train(tiny_config(data, tmp_path / str(seed), network_name="Dropping", steps=3, accumulate=2, seed=seed), progress=False)
    assert len(masks) == len(set(masks)) == 2 * 3 * 2


def die():
    raise KeyboardInterrupt


def test_the_average_forgets_its_start(data, tmp_path, monkeypatch):
    """Warmed up, its decay is min(ema, (1 + n)/(10 + n)), n the updates so far: worked out by hand from every state of the weights."""
    states = []
    update = loop._Run.update

    def watched(run, batch):
        result = update(run, batch)
        states.append(next(iter(run.network.parameters())).detach().clone())
        return result

    monkeypatch.setattr(loop._Run, "update", watched)
    for warm in (True, False):
        states.clear()
        model = gen.train(tiny_config(data, tmp_path / str(warm), ema=0.5, ema_warmup=warm), progress=False)
        average = states[0]
        for n, state in enumerate(states[1:], 1):
            decay = min(0.5, (1 + n) / (10 + n)) if warm else 0.5
            average = decay * average + (1 - decay) * state
        assert torch.allclose(next(iter(model.network.parameters())), average, atol=1e-6)


def test_pictures_and_curves_while_training(data, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = tiny_config(data, tmp_path, sample_every=2, samples=3, tensorboard=True, learning_rate=0.05)
    gen.train(config, progress=False)
    pictures = sorted((tmp_path / "samples").iterdir())
    assert [path.name for path in pictures] == ["00000002.png", "00000004.png", "00000006.png"]
    assert pictures[0].read_bytes() != pictures[2].read_bytes()
    events = EventAccumulator(str(tmp_path / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    assert {"loss", "norm", "learning_rate", "skipped", "images_per_second"} <= set(events.Tags()["scalars"])
    assert [event.value for event in events.Scalars("loss")] == pytest.approx([line["loss"] for line in lines(tmp_path)])
    assert [event.step for event in events.Images("samples")] == [2, 4, 6]


def test_pictures_do_not_change_the_run(data, tmp_path):
    plain = gen.train(tiny_config(data, tmp_path / "a"), progress=False)
    drawn = gen.train(tiny_config(data, tmp_path / "b", sample_every=1, log_every=3, save_every=6, keep=5), progress=False)
    assert same(weights(plain), weights(drawn))


def test_what_is_written_how_often_may_change_on_the_way(data, tmp_path):
    update = loop._Run.update
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(loop._Run, "update", lambda run, batch: update(run, batch) if run.step < 3 else die())
        gen.train(tiny_config(data, tmp_path), progress=False)
    gen.train(tiny_config(data, tmp_path, save_every=1, log_every=2, keep=9, patience=3), progress=False)
    assert steps_in(tmp_path) == [1, 2, 4, 6]


def interrupting(monkeypatch, step, times=1):
    """Ctrl-C, so many times, when the gradient of an update is known."""
    apply = loop._Run._apply

    def interrupted(run, *rest):
        if run.step == step:
            for _ in range(times):
                signal.raise_signal(signal.SIGINT)
        return apply(run, *rest)

    monkeypatch.setattr(loop._Run, "_apply", interrupted)


@pytest.mark.usefixtures("heard")
def test_an_interruption_finishes_the_update_and_keeps_it(data, tmp_path, monkeypatch):
    straight = gen.train(tiny_config(data, tmp_path / "a"), progress=False)
    around = signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt, match=r"3 of 6 updates are done; .*checkpoint-00000003-\w+\.pt is whole"):
        interrupting(patch, 2)
        gen.train(tiny_config(data, tmp_path / "b", save_every=100), progress=False)
    assert [checkpoint.step for checkpoint in checkpoints(tmp_path / "b")] == [3] and steps_in(tmp_path / "b") == [1, 2, 3]
    assert gen.load(tmp_path / "b").sample(1, "ddim", steps=2, seed=0).isfinite().all()
    assert signal.getsignal(signal.SIGINT) is around
    assert same(weights(straight), weights(gen.train(tiny_config(data, tmp_path / "b", save_every=100), progress=False)))
    assert gen.load(tmp_path / "b").card["training"]["step"] == 6


@pytest.mark.usefixtures("heard")
def test_a_second_interruption_ends_at_once(data, tmp_path, monkeypatch):
    interrupting(monkeypatch, 2, times=2)
    with pytest.raises(KeyboardInterrupt, match=r"^$"):
        gen.train(tiny_config(data, tmp_path, save_every=100), progress=False)
    assert not checkpoints(tmp_path) and signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_there_is_a_checkpoint_every_few_minutes_whatever_the_steps(data, tmp_path, monkeypatch):
    plain = gen.train(tiny_config(data, tmp_path / "a", steps=9, save_every=100), progress=False)
    assert [checkpoint.step for checkpoint in checkpoints(tmp_path / "a")] == [9]
    clock = iter(range(0, 10**6, 60))  # a minute from one look at it to the next: one an update, and one a checkpoint
    monkeypatch.setattr(loop, "time", type("Clock", (), {"monotonic": staticmethod(lambda: next(clock))}))
    timed = gen.train(tiny_config(data, tmp_path / "b", steps=9, save_every=100, save_minutes=2.5, keep=9), progress=False)
    assert [checkpoint.step for checkpoint in checkpoints(tmp_path / "b")] == [9, 6, 3]
    assert same(weights(plain), weights(timed))


def test_a_model_that_cannot_be_written_leaves_its_checkpoint(data, tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError("No space left on device")

    monkeypatch.setattr(gen.Model, "save", full)
    with pytest.raises(OSError, match=r"the model of step 2 cannot be written to .*No space left.*its checkpoint stands: make room"):
        gen.train(tiny_config(data, tmp_path), progress=False)
    assert newest(tmp_path).step == 2 and newest(tmp_path).whole()


@pytest.mark.parametrize("rate", [{"schedule": "constant"}, {"decay": 20}], ids=str)
def test_a_run_goes_on_for_longer_where_its_rate_does_not_depend_on_its_length(data, tmp_path, rate):
    straight = gen.train(tiny_config(data, tmp_path / "a", steps=9, **rate), progress=False)
    gen.train(tiny_config(data, tmp_path / "b", steps=5, **rate), progress=False)
    assert same(weights(straight), weights(gen.train(tiny_config(data, tmp_path / "b", steps=9, **rate), progress=False)))
    assert steps_in(tmp_path / "b") == list(range(1, 10))
    with pytest.raises(ValueError, match=r"another config \(steps: 9 there, 8 here\); use another out"):
        gen.train(tiny_config(data, tmp_path / "b", steps=8, **rate), progress=False)


def test_a_run_whose_rate_has_fallen_goes_on_as_another(data, tmp_path):
    gen.train(tiny_config(data, tmp_path), progress=False)
    with pytest.raises(ValueError, match=rf"\(steps: 6 there, 9 here\); its rate has fallen.*--out {tmp_path}-further --set init={tmp_path}; use another"):
        gen.train(tiny_config(data, tmp_path, steps=9), progress=False)
    with pytest.raises(ValueError, match=r"\(steps: 6 there, 9 here, seed: 0 there, 1 here\); use another|\(seed: 0 there, 1 here, steps: 6 there, 9 here\); use another"):
        gen.train(tiny_config(data, tmp_path, steps=9, seed=1), progress=False)


def test_a_log_is_taken_back_to_the_checkpoint(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\nnonsense\n{"step": 3}\n{"step": 4}\n{"step"')
    take_back(path, 3)
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n{"step": 3}\n'


def test_leftovers_of_a_kill_are_swept_and_nothing_else(data, tmp_path):
    tmp_path.joinpath(".checkpoint-00000002.pt").write_bytes(b"half")
    tmp_path.joinpath("..checkpoint-00000002.pt.x7.pt").write_bytes(b"half")
    tmp_path.joinpath(".mine").write_text("mine")
    gen.train(tiny_config(data, tmp_path), progress=False)
    assert sorted(path.name for path in tmp_path.glob(".*")) == [loop.LOCK, ".mine"]


@pytest.mark.parametrize("loss", ["sliced", "denoising"])
def test_other_losses_train_too(data, tmp_path, loss):
    config = tiny_config(data, tmp_path, loss=loss, weight="sigma2", times="uniform", predicts="epsilon", steps=3, precision="bf16")
    assert all(torch.isfinite(tensor).all() for tensor in weights(gen.train(config, progress=False)).values())
    assert len({line["loss"] for line in lines(tmp_path)}) == 3


def test_a_constant_rate_stays(data, tmp_path):
    config = tiny_config(data, tmp_path, schedule="constant", learning_rate=0.5, warmup=4, steps=100)
    assert [loop.learning_rate(config, step) for step in (0, 1, 3, 50, 99)] == [0.125, 0.25, 0.5, 0.5, 0.5]


def test_generators_are_named_and_not_global():
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    draws = {name: torch.rand(4, generator=generator(*name)) for name in [(0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0)]}
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(draws[0, 0, 0], torch.rand(4, generator=generator(0, 0, 0)))
    assert len({tuple(draw.tolist()) for draw in draws.values()}) == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "steps=0; expected"), ({"steps": 1.5}, "steps=1.5; expected an integer"), ({"batch": True}, "batch=True"),
        ({"warmup": 0}, "warmup=0"), ({"seed": -1}, "seed=-1"), ({"learning_rate": float("nan")}, "learning_rate=nan"), ({"ema": 1.0}, "ema=1.0"),
        ({"precision": "fp8"}, "precision='fp8'"), ({"loss": "dsm"}, "loss 'dsm' is not known"), ({"weight": "sigma"}, "Did you mean 'sigma2'"),
        ({"times": "levels"}, "a network that counts its levels, as in time=1000"), ({"accumulate": 3}, "accumulate=3; expected a divisor of batch=8"),
        ({"flip": 1}, "flip=1; expected true or false"), ({"keep": 0}, "keep=0"), ({"label_dropout": 1.5}, "label_dropout=1.5"),
        ({"data_range": [1, 0]}, "data_range=\\[1, 0\\]; expected"),
        ({"data_range": ["a", 1]}, "expected a list of finite numbers"),
        ({"network": "UNet"}, "network='UNet'; expected a dict"), ({"process": 3}, "process=3; expected a string"),
    ],
    ids=str,
)  # fmt: skip
def test_a_config_checks_itself(change, message):
    with pytest.raises((ValueError, TypeError), match=message):
        tiny_config(Path("a"), Path("b"), **change)


def test_no_data_is_none_at_all():
    with pytest.raises(ValueError, match=r"data=\[\]; expected a file or folder"):
        TrainConfig(data=[], out="a", name="a")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch": 21}, "has 20 images, fewer than batch=21"),
        ({"process": "vpp"}, "process 'vpp' is not known.*Did you mean 'vp'"),
        ({"process_options": {"beta": 1.0}}, "process_options of 'vp': 'beta' is not known"),
        ({"predicts": "noise"}, "'noise' is not known as predicts"),
        ({"network": {**NETWORK, "patch": 3}}, "do not fit|does not fit images"),
        ({"network": {"depth": 3}}, "network.depth=3: option of UNet 'depth' is not known"),
        ({"network_name": "Unet"}, "network_name 'Unet' is not known.*Did you mean 'UNet'"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_what_does_not_fit_is_told_before_training_and_leaves_no_folder(data, tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        gen.train(tiny_config(data, tmp_path / "run", **change), progress=False)
    assert not (tmp_path / "run").exists()
