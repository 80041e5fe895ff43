"""Models: what comes out of sampling, what goes into a folder, and that no file from anywhere does harm."""

import hashlib
import json
import pickle
import shutil
import struct
import time
import warnings

import numpy as np
import pytest
import torch
from gen_fixtures import NETWORK, tiny_card, tiny_model, tiny_network
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

import sdesolve as sd
import sdesolve_gen as gen
from sdesolve.files import atomic, atomic_set
from sdesolve_gen import _writing, models
from sdesolve_gen import images as pictures
from sdesolve_gen.processes import PROCESSES

# -- sampling ------------------------------------------------------------------------------------------------------------


def test_samples_are_images_in_the_data_range():
    images = tiny_model().sample(3, method="pc", steps=5, seed=0)
    assert images.shape == (3, 1, 8, 8)
    assert images.dtype == torch.float32
    assert images.min() >= -1
    assert images.max() <= 1


def test_a_draw_is_prior_then_solve():
    m = tiny_model()
    drawn = m.draw(2, "ddim", steps=4, seed=3, denoise=False)
    x = m.process.prior((2, 1, 8, 8), seed=3)
    solution = sd.solve(m.process.reverse(m.score), x, "ddim", steps=4, seed=3)
    assert torch.equal(drawn.images, solution.x.clamp(-1, 1))
    assert drawn.nfe.tolist() == [solution.nfe] * 2
    assert drawn.status.tolist() == ["ok", "ok"]


@pytest.mark.parametrize(("method", "options"), [("pc", {"steps": 8}), ("rk45", {"rtol": 1e-3, "atol": 1e-3})])
@pytest.mark.parametrize("batch_size", [1, 3, 5])
def test_an_image_does_not_depend_on_its_batch(method, options, batch_size):
    """To rounding: a convolution sums in another order in another batch, and the steps carry that along."""
    m = tiny_model()
    whole = m.draw(5, method, seed=1, **options)
    parts = m.draw(5, method, seed=1, batch_size=batch_size, **options)
    torch.testing.assert_close(parts.images, whole.images, rtol=0, atol=3e-4)
    assert torch.equal(parts.nfe, whole.nfe)
    reordered = m.sample(2, method, seed=1, sample_ids=[4, 2], **options)
    torch.testing.assert_close(reordered, whole.images[[4, 2]], rtol=0, atol=3e-4)
    other = m.sample(5, method, seed=2, **options)
    assert ((other - whole.images).abs().amax((1, 2, 3)) > 0.1).all()  # the tolerance above is far from what tells images apart


def test_an_image_ends_where_no_noise_is_left_unless_told_otherwise():
    m = gen.load("mnist")
    asked = {"nothing": {}, "the flow's end": {"denoise": "extrapolate"}, "Tweedie": {"denoise": True}, "none": {"denoise": False}}
    drawn = {name: m.draw(2, "deis", steps=5, seed=3, **how) for name, how in asked.items()}
    assert torch.equal(drawn["nothing"].images, drawn["the flow's end"].images)
    assert all(not torch.equal(drawn[a].images, drawn[b].images) for a, b in (("nothing", "Tweedie"), ("nothing", "none"), ("Tweedie", "none")))
    assert [int(d.nfe[0]) for d in drawn.values()] == [6, 6, 6, 5]
    with pytest.raises(TypeError, match="denoise='x'; expected True, 'extrapolate', False"):
        m.draw(2, "deis", steps=5, denoise="x")


def test_images_parallel_in_time_are_the_sequential_ones():
    model = gen.load("mnist")
    walked, near = (model.sample(2, "ddim", steps=20, seed=0, parallel=parallel) for parallel in (None, 10))
    assert float((walked - near).abs().max()) < 1e-2


def test_without_a_seed_torch_s_own_decides():
    m = tiny_model()
    torch.manual_seed(0)
    first, second = m.draw(1, "ddim", steps=2), m.draw(1, "ddim", steps=2)
    torch.manual_seed(0)
    assert m.draw(1, "ddim", steps=2).seed == first.seed != second.seed
    assert torch.equal(m.sample(1, "ddim", steps=2, seed=second.seed), second.images)


class Poisoned(nn.Module):
    """A network that is not finite for one image, told by its first pixel at the start, from the given call on."""

    def __init__(self, from_call: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.from_call, self.calls = from_call, 0

    def forward(self, x, time):
        self.calls += 1
        output = torch.zeros_like(x) + self.weight
        if self.calls >= self.from_call:
            output[x[:, 0, 0, 0] == x[:, 0, 0, 0].max()] = torch.nan
        return output


@pytest.mark.parametrize("from_call", [2, 5])  # on the way, and in the last denoising, which is call 5 of 4 steps
def test_a_failed_image_is_never_silent(from_call):
    m = gen.Model(Poisoned(from_call), tiny_card())
    with pytest.warns(sd.SolveWarning, match=r"1 of 3 images did not arrive \(sample id 1[012]: non_finite\)"):
        drawn = m.draw(3, "ddim", steps=4, seed=0, sample_ids=[10, 11, 12])
    assert sorted(drawn.status.tolist()) == ["non_finite", "ok", "ok"]
    assert torch.isfinite(drawn.images[torch.from_numpy(drawn.status == "ok")]).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n": 0}, "n=0; expected an integer >= 1"), ({"n": 2.0}, "n=2.0"), ({"batch_size": 0}, "batch_size=0"), ({"seed": -1}, "seed=-1"), ({"seed": "0"}, "seed='0'"),
        ({"sample_ids": [0]}, "expected n = 2 integers"), ({"sample_ids": [0, -1]}, "expected n = 2 integers"), ({"sample_ids": torch.zeros(2)}, "expected n = 2"),
        ({"method": "pcc"}, "'pcc' is not known as method"), ({"steps": 0}, "steps=0"), ({"save": "all"}, "save=... is not for"), ({"snrr": 0.1}, "Did you mean"),
    ],
    ids=str,
)  # fmt: skip
def test_bad_arguments_are_refused_before_any_call(arguments, message):
    m = gen.Model(Poisoned(1), tiny_card())
    with pytest.raises(ValueError, match=message):
        m.sample(**{"n": 2, "method": "pc", **arguments})
    assert m.network.calls == 0


@pytest.mark.parametrize(("method", "options"), [("ddim", {"steps": 10}), ("rk45", {"rtol": 1e-1, "atol": 1e-1})])
def test_progress_reaches_the_end(capsys, method, options):
    m = tiny_model()
    m.network.register_forward_pre_hook(lambda network, arguments: time.sleep(0.02))  # the bar waits 0.2 s before it shows
    m.sample(3, method, batch_size=2, seed=0, progress=True, **options)
    assert "100%" in capsys.readouterr().err
    m.sample(1, method, seed=0, **options)
    assert capsys.readouterr().err == ""


# -- saving and loading --------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    return tiny_model().save(tmp_path / "tiny")


def test_a_saved_model_is_the_model(folder):
    m, back = tiny_model(), gen.load(folder)
    assert torch.equal(m.sample(2, steps=3, seed=0), back.sample(2, steps=3, seed=0))
    assert back.shape == (1, 8, 8)
    assert back.data_range == (-1.0, 1.0)
    assert back.card["sha256"] == hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert back.card["parameters"] == sum(p.numel() for p in back.network.parameters())
    assert not any(p.requires_grad for p in back.network.parameters())
    assert not back.network.training
    assert sorted(file.name for file in folder.iterdir()) == ["card.json", "model.safetensors"]


def test_half_the_space(tmp_path):
    m = tiny_model()
    back = gen.load(m.save(tmp_path / "half", torch.float16))
    assert (tmp_path / "half" / "model.safetensors").stat().st_size < 0.65 * (m.save(tmp_path / "whole") / "model.safetensors").stat().st_size
    for name, weight in m.network.state_dict().items():
        parameter = name in dict(m.network.named_parameters())
        assert torch.equal(back.network.state_dict()[name], weight.half().float() if parameter else weight)
    m.network.stem.weight.data[0] = 1e5
    with pytest.raises(ValueError, match=r"stem\.weight are not finite in torch\.float16"):
        m.save(tmp_path / "overflow", torch.float16)
    assert not (tmp_path / "overflow" / "card.json").exists()


@pytest.mark.parametrize("name", PROCESSES)
def test_every_process_comes_back(tmp_path, name):
    options = {"alphas_cumprod": [0.99, 0.9, 0.5, 0.1, 0.01]} if name == "tabulated_vp" else {}
    m = gen.load(tiny_model(process=name, process_options=options).save(tmp_path / "m"))
    assert isinstance(m.process, PROCESSES[name])
    assert m.sample(1, "euler_maruyama", steps=3, seed=0).isfinite().all()


def test_an_interrupted_save_leaves_the_old_model_whole(folder, monkeypatch):
    before = {file.name: file.read_bytes() for file in folder.iterdir()}

    def interrupted(tensors, path):
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(_writing, "save_file", interrupted)
    with pytest.raises(KeyboardInterrupt):
        tiny_model().save(folder)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before


def test_a_model_that_is_not_finite_is_not_saved(tmp_path):
    m = tiny_model()
    m.network.stem.weight.data[0] = float("nan")
    with pytest.raises(ValueError, match=r"stem\.weight are not finite"):
        m.save(tmp_path / "m")
    assert not (tmp_path / "m").exists()


def test_atomic_files(tmp_path):
    path = tmp_path / "a" / "file.txt"
    with atomic(path) as temporary:
        temporary.write_text("one")
        assert not path.exists()
    with pytest.raises(RuntimeError), atomic(path) as temporary:
        temporary.write_text("two")
        raise RuntimeError
    assert path.read_text() == "one"
    assert list(path.parent.iterdir()) == [path]


def test_a_set_of_files_is_replaced_together(tmp_path):
    files = [tmp_path / "a" / "one.txt", tmp_path / "two.txt"]
    with atomic_set(*files) as temporaries:
        for file, temporary in zip(files, temporaries, strict=True):
            temporary.write_text("old")
            assert not file.exists() and temporary.suffix == ".txt"
    with pytest.raises(FileNotFoundError), atomic_set(*files) as temporaries:
        temporaries[0].write_text("new")
        temporaries[1].unlink()  # found before anything is renamed
    assert [file.read_text() for file in files] == ["old", "old"]
    with pytest.raises(FileExistsError), atomic_set(tmp_path / "three.txt", files[1] / "under.txt"):
        pytest.fail("there is no place for the second")
    assert sorted(file for file in tmp_path.rglob("*") if file.is_file()) == files


def test_devices_are_checked(folder):
    with pytest.raises(ValueError, match="device='nowhere' cannot be used here"):
        gen.load(folder, device="nowhere")
    m = gen.load(folder)
    assert m.to("cpu") is m
    assert m.device == torch.device("cpu")


# -- names that are no model ---------------------------------------------------------------------------------------------


def test_embedded_names_are_listed_and_suggested(tmp_path, monkeypatch):
    monkeypatch.setattr(models, "ASSETS", tmp_path)
    tiny_model().save(tmp_path / "tiny")
    assert gen.load("tiny").card["name"] == "tiny"
    with pytest.raises(ValueError, match=r"model 'tinny' is not known; expected one of: tiny\. Did you mean 'tiny'"):
        gen.load("tinny")
    with pytest.raises(ValueError, match="not known"):
        gen.load("../" + tmp_path.name + "/nothing")


def test_a_name_wins_over_a_folder_of_that_name(tmp_path, monkeypatch):
    monkeypatch.setattr(models, "ASSETS", tmp_path / "assets")
    monkeypatch.chdir(tmp_path)
    tiny_model().save(tmp_path / "assets" / "tiny")
    tiny_model(process="ve").save(tmp_path / "tiny")
    assert isinstance(gen.load("tiny").process, sd.VPSDE)
    assert isinstance(gen.load("./tiny").process, sd.VESDE)


def test_formats_to_come_are_named(tmp_path):
    with pytest.raises(ValueError, match="is a PyTorch checkpoint; one of score_sde_pytorch needs its configuration"):
        gen.load("checkpoint.pth")
    file = tmp_path / "model.safetensors"
    file.touch()
    with pytest.raises(ValueError, match="is a file; expected"):
        gen.load(file)


# -- files from anywhere -------------------------------------------------------------------------------------------------


class Bomb:
    """Unpickling this would create a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def weights(folder):
    return folder / "model.safetensors"


def with_card(folder, **changes):
    """Change the card; a value of ``...`` removes the key.  Its hash goes, so that what is behind it is reached."""
    card = json.loads((folder / "card.json").read_text())
    card.pop("sha256", None)
    card = {key: value for key, value in {**card, **changes}.items() if value is not ...}
    (folder / "card.json").write_text(json.dumps(card))


def with_tensors(folder, change):
    tensors = load_file(weights(folder))
    change(tensors)
    save_file(tensors, weights(folder))
    with_card(folder)


def write_card(content):
    def spoil(folder):
        (folder / "card.json").write_bytes(content)

    return spoil


def write_weights(content):
    def spoil(folder):
        weights(folder).write_bytes(content)
        with_card(folder)

    return spoil


def card_changes(**changes):
    return lambda folder: with_card(folder, **changes)


def options(**changes):
    return card_changes(network_options={"channels": 1, **NETWORK, **changes})


def tensors_changed(change):
    return lambda folder: with_tensors(folder, change)


def header(claims):
    text = json.dumps(claims).encode()
    return struct.pack("<Q", len(text)) + text


HOSTILE = {
    "no card": (lambda f: (f / "card.json").unlink(), "card.json is not a file"),
    "card is a folder": (lambda f: [(f / "card.json").unlink(), (f / "card.json").mkdir()], "card.json is not a file"),
    "card is not JSON": (write_card(b"{'name': 1}"), "card.json is not JSON"),
    "card is empty": (write_card(b""), "card.json is not JSON"),
    "card is not text": (write_card(b"\xff\xfe\x00\x00\x80"), "card.json is not JSON"),
    "card is deep": (write_card(b"[" * 200_000), "card.json is not JSON"),
    "card is a list": (write_card(b"[]"), "holds a JSON list; expected an object"),
    "card is huge": (write_card(b" " * 1_000_001), "expected a card of at most"),
    "card has NaN": (write_card(b'{"name": NaN}'), "NaN is not a JSON number"),
    "card lacks keys": (card_changes(process=..., shape=...), "card.json lacks process, shape"),
    "name leaves its folder": (card_changes(name="../../etc/cron"), "name = '../../etc/cron'"),
    "name is a number": (card_changes(name=3), "name = 3"),
    "shape is a string": (card_changes(shape="1x8x8"), "shape = '1x8x8'"),
    "shape has bools": (card_changes(shape=[True, 8, 8]), "shape ="),
    "shape is vast": (card_changes(shape=[1, 10**9, 10**9]), "shape ="),
    "shape does not divide": (card_changes(shape=[1, 8, 6]), "multiples of 4"),
    "shape has other channels": (card_changes(shape=[3, 8, 8]), r"expected \(B, 1, H, W\)"),
    "range is empty": (card_changes(data_range=[1, 1]), "data_range ="),
    "range is text": (card_changes(data_range=["-1", "1"]), "data_range ="),
    "levels is a float": (card_changes(levels=256.0), "levels = 256.0"),
    "time is a list": (card_changes(time=[]), "time ="),
    "time is unknown": (card_changes(time="os.system"), "card.json"),
    "predicts is unknown": (card_changes(predicts="__import__"), "card.json"),
    "process is unknown": (card_changes(process="os.system"), "process 'os.system' is not known"),
    "constants are text": (card_changes(process_options={"beta_min": "0.1"}), "process_options ="),
    "constants are unknown": (card_changes(process_options={"x": 1}), "'x' is not known; expected one of"),
    "constants are wrong": (card_changes(process_options={"beta_min": 30.0}), "beta_min"),
    "network is unknown": (card_changes(network="torch.hub.load"), "network 'torch.hub.load' is not known"),
    "network is a path": (card_changes(network="../../unet.py"), "is not known"),
    "option is unknown": (options(depth=3), "depth"),
    "width is vast": (options(width=8 * 10**9), "width="),
    "blocks are endless": (options(blocks=10**9), "blocks="),
    "options are of another network": (options(width=16), r"is \(.*; its card's network has"),
    "hash is wrong": (card_changes(sha256="0" * 64), "damaged, of another model, or of a training that was stopped in between"),
    "hash is no hash": (card_changes(sha256="x"), "expected 64 hexadecimal digits"),
    "no weights": (lambda f: weights(f).unlink(), "model.safetensors is not a file"),
    "weights are empty": (write_weights(b""), "model.safetensors is not a whole safetensors file"),
    "weights are text": (write_weights(b"hello, world, this is no tensor"), "is no safetensors file"),
    "weights are cut": (lambda f: write_weights(weights(f).read_bytes()[:-100])(f), "is not a whole safetensors file"),
    "header is cut": (lambda f: write_weights(weights(f).read_bytes()[:50])(f), "is not a whole safetensors file"),
    "header claims too much": (write_weights(struct.pack("<Q", 2**62) + b"{}"), "is no safetensors file"),
    "offsets lie": (write_weights(header({"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}})), "is not a whole safetensors file"),
    "a tensor is missing": (tensors_changed(lambda t: t.pop("stem.weight")), "lacks stem.weight"),
    "a tensor is too many": (tensors_changed(lambda t: t.update(extra=torch.zeros(1))), "has besides extra"),
    "a tensor is of another shape": (tensors_changed(lambda t: t.update({"stem.bias": torch.zeros(9)})), r"stem.bias is \(9,\)"),
    "a tensor is of another type": (tensors_changed(lambda t: t.update({"stem.bias": torch.zeros(8).double()})), "stem.bias is .*float64"),
    "a tensor is not finite": (tensors_changed(lambda t: t.update({"stem.bias": torch.full((8,), torch.nan)})), "stem.bias has values that are not finite"),
}


def test_all_weights_that_are_missing_are_listed(folder):
    names = []
    tensors_changed(lambda t: (names.extend(sorted(t)), t.clear(), t.update(extra=torch.zeros(1))))(folder)
    with pytest.raises(gen.ModelFileError) as caught:
        gen.load(folder)
    assert len(names) > 20 and f"it lacks {', '.join(names)} and has besides extra." in str(caught.value)


@pytest.mark.parametrize("case", HOSTILE)
def test_a_file_from_anywhere_gives_one_clear_error(folder, case):
    spoil, message = HOSTILE[case]
    spoil(folder)
    with pytest.raises(gen.ModelFileError, match=message) as caught:
        gen.load(folder)
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize("pickled", ["pickle", "torch.save"])
def test_loading_runs_no_code(folder, tmp_path, pickled):
    bomb = tmp_path / "exploded"
    if pickled == "pickle":
        weights(folder).write_bytes(pickle.dumps(Bomb(bomb)))
    else:
        torch.save(Bomb(bomb), weights(folder))
    with_card(folder)
    with pytest.raises(gen.ModelFileError, match="is no safetensors file"):
        gen.load(folder)
    assert not bomb.exists()


# -- pictures ------------------------------------------------------------------------------------------------------------


def test_uint8_is_the_inverse_of_dequantisation():
    levels = torch.arange(256, dtype=torch.float32)
    for low, high in [(-1.0, 1.0), (0.0, 1.0)]:
        for within in (0.001, 0.5, 0.999):
            assert torch.equal(pictures.to_uint8(low + (high - low) * (levels + within) / 256, (low, high)), levels.to(torch.uint8))
    assert pictures.to_uint8(torch.tensor([-5.0, 5.0, torch.nan]), (-1.0, 1.0)).tolist() == [0, 255, 0]


@pytest.mark.parametrize("channels", [1, 3])
def test_the_grid_holds_every_image(tmp_path, channels):
    n, side = 5, 28
    values = torch.arange(n * channels, dtype=torch.uint8).reshape(n, channels, 1, 1) * 10
    array = pictures.grid(values.expand(n, channels, side, side))
    zoom = 3
    assert array.shape[:2] == (2 * side * zoom + 2, 3 * side * zoom + 4)
    for i in range(n):
        y, x = (i // 3) * (side * zoom + 2), (i % 3) * (side * zoom + 2)
        tile = array[y : y + side * zoom, x : x + side * zoom].reshape(side * zoom, side * zoom, channels)
        assert (tile == values[i].reshape(channels).numpy()).all()
    assert (array[:, side * zoom : side * zoom + 2] == 128).all()  # the separator
    pictures.write_png(tmp_path / "grid.png", torch.rand(n, channels, side, side), (0.0, 1.0))
    with Image.open(tmp_path / "grid.png") as picture:
        assert picture.mode == ("L" if channels == 1 else "RGB")


@pytest.mark.parametrize("bad", [torch.zeros(2, 2, 8, 8, dtype=torch.uint8), torch.zeros(2, 1, 8, 8), torch.zeros(0, 1, 8, 8, dtype=torch.uint8)], ids=str)
def test_what_is_no_picture_is_refused(bad):
    with pytest.raises(ValueError, match=r"expected \(n, C, H, W\) uint8"):
        pictures.grid(bad)


def test_the_npz_holds_what_was_drawn(tmp_path):
    drawn = tiny_model().draw(3, "ddim", steps=2, seed=7, sample_ids=[5, 6, 9])
    pictures.save_npz(tmp_path / "a.npz", drawn)
    pictures.save_npz(tmp_path / "b.npz", drawn)
    with np.load(tmp_path / "a.npz", allow_pickle=False) as file:
        assert np.array_equal(file["images"], drawn.images.numpy())
        assert file["ids"].tolist() == [5, 6, 9]
        assert file["nfe"].tolist() == [3, 3, 3]
        assert file["status"].tolist() == ["ok"] * 3
        assert int(file["seed"]) == 7
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"progress": "x"}, "progress='x'; expected True or False"),
        ({"x": 3}, "x=... is the model's to give"),
        ({"problem": 3}, "problem=... is the model's to give"),
        ({"n": 8, "sample_ids": [0, 1, 2, 3, 4, 5, 6, -7]}, r"sample_ids has -7; expected n = 8 integers >= 0"),
        ({"n": 2**63}, r"n has 64 bits; expected an integer, 1 <= n < 2\*\*63"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_what_a_draw_is_not_told(options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        tiny_model().draw(**{"n": 2, "method": "ddim", "steps": 2, **options})


def test_a_name_is_found_whatever_its_case():
    with pytest.raises(ValueError, match="Did you mean 'mnist'"):
        gen.load("MNIST")


def test_a_fresh_card_is_checked_too():
    with pytest.raises(gen.ModelFileError, match="card lacks levels"):
        gen.Model(tiny_network(), {key: value for key, value in tiny_card().items() if key != "levels"})


def test_nothing_warns_on_a_good_day(folder):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gen.load(folder).sample(1, steps=2, seed=0)


def test_a_model_that_a_training_replaces_at_this_moment_is_read(tmp_path, monkeypatch):
    """The weights are new and the card is not: a moment later it is."""
    first, second = tiny_model(), tiny_model()
    with torch.no_grad():
        next(second.network.parameters()).add_(1.0)
    folder = first.save(tmp_path / "run")
    new = second.save(tmp_path / "new")
    shutil.copy(new / "model.safetensors", folder / "model.safetensors")
    monkeypatch.setattr(models.time, "sleep", lambda _: shutil.copy(new / "card.json", folder / "card.json"))
    assert torch.equal(next(gen.load(folder).network.parameters()), next(second.network.parameters()))
    shutil.copy(first.save(tmp_path / "again") / "model.safetensors", folder / "model.safetensors")
    with pytest.raises(gen.ModelFileError, match="damaged, of another model"):
        gen.load(folder)
