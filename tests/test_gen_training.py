"""Training: a run is a function of its config, whatever happened on the way."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from gen_fixtures import NETWORK, random_parquet, tiny_config, write_parquet

import sdesolve as sd
import sdesolve_gen as gen
from sdesolve_gen.training import loop
from sdesolve_gen.training.data import batch_indices, generator, read_images


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


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
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
    assert not (tmp_path / "b" / "model.safetensors").exists()
    torch.manual_seed(12345)  # whatever else the process drew in between
    resumed = gen.train(config, progress=False)
    assert same(weights(straight), weights(resumed))
    assert same(weights(straight), weights(gen.load(tmp_path / "b")))


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


def test_a_damaged_checkpoint_is_refused(data, tmp_path):
    gen.train(tiny_config(data, tmp_path), progress=False)
    checkpoint = tmp_path / "checkpoint.pt"
    checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"checkpoint\.pt is not a checkpoint of this version"):
        gen.train(tiny_config(data, tmp_path), progress=False)


@pytest.mark.parametrize(("poisoned", "message"), [("loss", "at step 3: the loss is nan"), ("weight", "at step 4: a weight is not finite")])
def test_nothing_non_finite_is_ever_saved(data, tmp_path, monkeypatch, poisoned, message):
    loss, step = loop.denoising_loss, torch.optim.Adam.step
    calls = []

    def bad_loss(*arguments):
        calls.append(1)
        return loss(*arguments) * (float("nan") if len(calls) == 4 else 1.0)

    def bad_step(optimiser, *arguments):
        calls.append(1)
        step(optimiser, *arguments)
        if len(calls) == 4:
            optimiser.param_groups[0]["params"][0].data[0] = float("inf")

    if poisoned == "loss":
        monkeypatch.setattr(loop, "denoising_loss", bad_loss)
    else:
        monkeypatch.setattr(torch.optim.Adam, "step", bad_step)
    with pytest.raises(FloatingPointError, match=rf"diverged {message}.*Lower learning_rate.*checkpoint\.pt is whole"):
        gen.train(tiny_config(data, tmp_path), progress=False)
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert state["step"] == 2
    assert all(torch.isfinite(tensor).all() for tensor in state["network"].values())
    assert sorted(file.name for file in tmp_path.iterdir()) == ["checkpoint.pt", "log.jsonl"]


def test_the_loss_falls_and_the_log_tells(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "LOG_EVERY", 1)
    data = write_parquet(tmp_path / "train.parquet", [np.full((8, 8), 200, np.uint8)] * 8)
    gen.train(tiny_config(data, tmp_path / "run", steps=150, save_every=1000, warmup=10, learning_rate=5e-3), progress=False)
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in log] == list(range(1, 151))
    losses = [line["loss"] for line in log]
    assert sum(losses[-10:]) < 0.7 * sum(losses[:10])


def test_the_loss_is_the_regression_on_the_parameterisation(data):
    """At x = alpha x_0 + sigma eps, a model that returns alpha eps - sigma x_0 has no loss, and one that returns 0 has its mean square."""
    process = sd.VPSDE()
    x0, eps, t = torch.rand(5, 1, 4, 4), torch.randn(5, 1, 4, 4), torch.linspace(0.1, 0.9, 5, dtype=torch.float64)
    alpha, sigma = (c.float().reshape(-1, 1, 1, 1) for c in (process.alpha(t), process.sigma(t)))
    v = alpha * eps - sigma * x0
    loss = {name: loop.denoising_loss(sd.as_score(model, process, predicts="v"), x0, t, eps) for name, model in {"right": lambda x, t: v, "zero": lambda x, t: 0 * x}.items()}
    assert loss["right"] < 1e-10
    assert torch.isclose(loss["zero"], v.square().mean())


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


def test_generators_are_named_and_not_global():
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    draws = {name: torch.rand(4, generator=generator(*name)) for name in [(0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0)]}
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(draws[0, 0, 0], torch.rand(4, generator=generator(0, 0, 0)))
    assert len({tuple(draw.tolist()) for draw in draws.values()}) == 4


def test_images_are_read_as_they_are(tmp_path):
    arrays = [np.random.default_rng(i).integers(0, 256, (6, 4, 3), dtype=np.uint8) for i in range(3)]
    images, labels = read_images(write_parquet(tmp_path / "rgb.parquet", arrays))
    assert images.dtype == torch.uint8
    assert np.array_equal(images.permute(0, 2, 3, 1).numpy(), np.stack(arrays))
    assert labels.tolist() == [0, 1, 2]


def test_bad_data_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="is not a file; expected a parquet file"):
        read_images(tmp_path / "none.parquet")
    (tmp_path / "text.parquet").write_text("hello")
    with pytest.raises(ValueError, match=r"text\.parquet is not a parquet file"):
        read_images(tmp_path / "text.parquet")
    sizes = write_parquet(tmp_path / "sizes.parquet", [np.zeros((4, 4), np.uint8), np.zeros((4, 5), np.uint8)])
    with pytest.raises(ValueError, match="expected one shape"):
        read_images(sizes)
    deep = write_parquet(tmp_path / "deep.parquet", [np.zeros((4, 4), np.uint16)])
    with pytest.raises(ValueError, match="uint8"):
        read_images(deep)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "steps=0; expected"), ({"steps": 1.5}, "steps=1.5; expected an integer"), ({"batch": True}, "batch=True"),
        ({"warmup": 0}, "warmup=0"), ({"seed": -1}, "seed=-1"), ({"learning_rate": float("nan")}, "learning_rate=nan"), ({"ema": 1.0}, "ema=1.0"),
        ({"precision": "fp16"}, "precision='fp16'"), ({"network": "UNet"}, "network='UNet'; expected a dict"), ({"process": 3}, "process=3; expected a string"),
    ],
    ids=str,
)  # fmt: skip
def test_a_config_checks_itself(change, message):
    with pytest.raises((ValueError, TypeError), match=message):
        tiny_config(Path("a"), Path("b"), **change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch": 21}, "has 20 images, fewer than batch=21"),
        ({"process": "vpp"}, "process 'vpp' is not known.*Did you mean 'vp'"),
        ({"process_options": {"beta": 1.0}}, "do not fit the process 'vp'"),
        ({"predicts": "noise"}, "'noise' is not known as predicts"),
        ({"network": {**NETWORK, "patch": 3}}, "do not fit|does not fit images"),
        ({"network": {"depth": 3}}, "does not fit images"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_what_does_not_fit_is_told_before_training_and_leaves_no_folder(data, tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        gen.train(tiny_config(data, tmp_path / "run", **change), progress=False)
    assert not (tmp_path / "run").exists()
