"""Published checkpoints: they load strictly and say what the published code says, and nothing else gets in."""

import json
import os
import pickle
import random
import re
import time

import pytest
import torch
from published import CONFIG, Published, changed

import sdesolve as sd
import sdesolve_gen as gen
from sdesolve_gen.networks import LevelScore
from sdesolve_gen.networks.levels import level_table

VP = {"sde": "vpsde", "centered": True, "embedding_type": "positional", "scale_by_sigma": False}
SKIPS = {"progressive": "output_skip", "progressive_input": "input_skip"}
DDPM = {"name": "ddpm", "nf": 32, **VP}
CONFIGS = {
    "ncsn++": {},
    "skips": SKIPS,
    "skips, concatenated, without a filter": {**SKIPS, "progressive_combine": "cat", "fir": False},
    "residual output": {"progressive": "residual"},
    "ddpm blocks, filtered": {"resblock_type": "ddpm", "progressive_input": "none", "skip_rescale": False},
    "ddpm blocks, residual both ways, another filter": {"resblock_type": "ddpm", "progressive": "residual", "fir_kernel": [1, 2, 4, 3], "ch_mult": [1, 2, 3]},
    "another filter": {"progressive": "residual", "progressive_input": "residual", "fir_kernel": [4, 1, 2, 3], "num_res_blocks": 2},
    "unconditional": {"conditional": False, **SKIPS},
    "ddpm++": {**VP, "fir": False, "progressive_input": "none"},
    "ddpm": {**DDPM, "num_res_blocks": 2},
    "subvp": {**VP, "sde": "subvpsde"},
}


def relative(got, expected):
    return float((got - expected).abs().max() / expected.square().mean().sqrt())


def images(config, count=3):
    size = config["data"]["image_size"]
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def published_score(network, config, x, t):
    """The score out of the published network, by the published rules.  [Song et al. 2021, appendix C]"""
    training, model = config["training"], config["model"]
    if training["sde"] == "vesde":
        return network(x, model["sigma_min"] * (model["sigma_max"] / model["sigma_min"]) ** t)
    log_alpha = -0.25 * t**2 * (model["beta_max"] - model["beta_min"]) - 0.5 * t * model["beta_min"]
    variance = -torch.expm1(2 * log_alpha.double())
    std = variance if training["sde"] == "subvpsde" else variance.sqrt()
    return -network(x, 999 * t) / std[:, None, None, None].float()


# -- what a published network is -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CONFIGS)
def test_an_import_says_what_the_published_network_says(name, tmp_path):
    config = changed(**CONFIGS[name])
    network = Published(config)
    path, configuration = network.save(tmp_path / "checkpoint_3.pth")
    m = gen.load(path, config=configuration)
    x, t = images(config), torch.tensor([0.05, 0.35, 0.999])
    assert relative(m.score(x, t), published_score(network, config, x, t)) < 1e-5
    assert m.data_range == ((-1.0, 1.0) if config["data"]["centered"] else (0.0, 1.0))
    assert m.card["training"] == {"source": "score_sde_pytorch", "weights": "ema", "step": 3}


def test_images_of_another_size_than_it_was_trained_on_are_taken(tmp_path):
    network = Published(CONFIG)
    m = gen.load(network.save(tmp_path / "c.pth")[0], config=CONFIG)
    assert m.network(torch.rand(1, 3, 16, 8), torch.ones(1)).shape == (1, 3, 16, 8)


@pytest.mark.parametrize(
    ("name", "process"),
    [("ncsn++", sd.VESDE(0.01, 50.0)), ("ddpm++", sd.VPSDE(0.1, 20.0)), ("subvp", sd.SubVPSDE(0.1, 20.0))],
)
def test_the_process_is_the_configured_one(name, process, tmp_path):
    config = changed(**CONFIGS[name])
    assert gen.load(Published(config).save(tmp_path / "c.pth")[0], config=config).process == process


def test_raw_weights_are_taken_where_they_are_asked_for(tmp_path):
    network = Published(CONFIG)
    path, config = network.save(tmp_path / "c.pth")
    averaged, raw = (gen.load(path, config=config, ema=ema).network.state_dict() for ema in (True, False))
    for name in averaged:
        factor = 1 if name == "fourier.frequencies" else 2
        assert torch.equal(raw[name], factor * averaged[name]), name


def test_a_saved_import_is_the_same_model(tmp_path):
    for name in ("skips", "ddpm++"):
        config = changed(**CONFIGS[name])
        m = gen.load(Published(config).save(tmp_path / "c.pth")[0], config=config)
        again = gen.load(m.save(tmp_path / "folder"))
        x, t = images(config), torch.tensor([0.1, 0.5, 0.9])
        assert torch.equal(m.score(x, t), again.score(x, t))
        assert (again.process, again.data_range, again.shape) == (m.process, m.data_range, m.shape)


# -- networks on numbered levels -----------------------------------------------------------------------------------------


def test_a_discrete_vp_network_is_divided_by_the_deviation_of_its_level(tmp_path):
    config = changed(**DDPM, continuous=False)
    network = Published(config)
    m = gen.load(network.save(tmp_path / "c.pth")[0], config=config)
    x, t = images(config), torch.tensor([0.05, 0.35, 0.999])
    betas = torch.linspace(0.1 / 1000, 20 / 1000, 1000, dtype=torch.float64)
    std = torch.sqrt(1 - torch.cumprod(1 - betas, 0))[[49, 349, 998]]
    expected = -network(x, 999 * t) / std[:, None, None, None].float()
    assert relative(m.score(x, t), expected) < 2e-5  # the published table is rounded
    assert torch.equal(gen.load(m.save(tmp_path / "folder")).score(x, t), m.score(x, t))


def test_a_discrete_ve_network_counts_from_the_noise(tmp_path):
    config = changed(continuous=False, embedding_type="positional")
    network = Published(config)
    m = gen.load(network.save(tmp_path / "c.pth")[0], config=config)
    x, t = images(config), torch.tensor([0.05, 0.35, 0.999])
    label = torch.tensor([949.0, 649.0, 1.0])  # round(0.95 * 999), ...
    sigma = 50.0 * (0.01 / 50.0) ** (label / 999)
    assert relative(m.score(x, t), network(x, label) / sigma[:, None, None, None]) < 1e-5


def test_level_tables():
    assert level_table("ve", 3, 0.01, 1.0).tolist() == pytest.approx([1.0, 0.1, 0.01])
    first, second = (level_table("vp", 1000, 0.1, 20.0)[:2] ** 2).tolist()
    assert first == pytest.approx(1e-4, rel=1e-3)
    assert second == pytest.approx(1 - (1 - 1e-4) * (1 - 1e-4 - 19.9 / 999 / 1000), rel=1e-3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"network": "UNet"}, "network 'UNet' is not known"),
        ({"process": "edm"}, "process 'edm' is not known"),
        ({"levels": 10**9}, "levels=1000000000"),
        ({"levels": 10}, "high < levels"),
        ({"low": 0.0}, "0 < low < high"),
        ({"high": float("nan")}, "0 < low < high"),
        ({"scaled": 1}, "scaled=1"),
        ({"network_options": {"width": 6}}, "width=6"),
    ],
)
def test_bad_levels_are_refused(changes, message):
    options = {"network": "DDPM", "network_options": {"width": 32}, "process": "vp", "levels": 1000, "low": 0.1, "high": 20.0, "scaled": False}
    with pytest.raises(ValueError, match=re.escape(message)):
        LevelScore(**{**options, **changes})


# -- what the published code computed ------------------------------------------------------------------------------------

REFERENCE = ["ve_ncsnpp_continuous", "ve_ncsnpp_ffhq_skip", "vp_ddpmpp_continuous", "subvp_ncsnpp_continuous", "vp_ddpm"]


@pytest.fixture(params=REFERENCE)
def reference(request, shared_data):
    folder = shared_data / "score_sde_reference" / request.param
    if not folder.is_dir():
        pytest.skip(f"needs {request.param} of the reference checkpoints, which are not part of the project")
    return gen.load(folder / "checkpoint.pth", config=folder / "config.json"), torch.load(folder / "expected.pt", weights_only=True)


def test_reference_scores(reference):
    m, expected = reference
    for t, x, score in zip(expected["t"], expected["x_t"], expected["score"], strict=True):
        assert relative(m.score(x, t), score) < 1e-5


# -- bad input -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A checkpoint, its configuration, and what torch.save was given."""
    path, config = Published(CONFIG).save(tmp_path_factory.mktemp("whole") / "c.pth")
    return path, config, torch.load(path, weights_only=True)


def refused(path, config, message, **options):
    started = time.process_time()
    with pytest.raises(gen.ModelFileError, match=message) as caught:
        gen.load(path, config=config, **options)
    assert time.process_time() - started < 2
    assert len(str(caught.value)) < 20_000  # where every weight is listed
    return str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sde": "edm"}, "training.sde 'edm' is not known; expected one of: subvpsde, vesde, vpsde"),
        ({"sde": 3}, "training.sde = '3'; expected a str"),
        ({"name": "ncsnv2"}, "model.name 'ncsnv2' is not known"),
        ({"nf": "8"}, "model.nf = '8'; expected a int"),
        ({"nf": 1 << 40}, "width=1099511627776; expected an integer from 1 to 1024"),
        ({"nf": 6}, "width=6; expected a multiple of 4"),
        ({"ch_mult": [1] * 9}, "multipliers=.* expected 1 to 8 integers"),
        ({"num_res_blocks": 0}, "blocks=0"),
        ({"fir_kernel": [1, 2]}, "fir_taps=.* expected None or four numbers"),
        ({"fir_kernel": [1, 3, 3, float("inf")]}, "is not a JSON number"),
        ({"fir_kernel": [1, 3, 3, -1]}, "fir_taps=-1"),
        ({"nonlinearity": "elu"}, "model.nonlinearity = 'elu'; expected 'swish'"),
        ({"progressive": "both"}, "progressive 'both' is not known"),
        ({"dropout": 1.0}, "dropout=1.0"),
        ({"attn_resolutions": [0]}, "attention="),
        ({**VP, "scale_by_sigma": True}, "model.scale_by_sigma = True"),
        ({"sigma_max": 0.001}, "sigma_min < sigma_max"),
        ({"centered": "no"}, "data.centered = 'no'; expected a bool"),
        ({"image_size": 6}, "does not fit its configuration|multiples of 2"),
        ({"num_channels": 1}, r"Of another shape: all_modules\.3\.weight is \(8, 3, 3, 3\), expected \(8, 1, 3, 3\), .*"),
        ({"num_res_blocks": 2}, "Missing: .*Unexpected: "),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused(changes, message, whole, tmp_path):
    config = tmp_path / "config.json"
    config.write_text(json.dumps(changed(**changes)))
    refused(whole[0], config, message)


def test_a_file_that_is_no_configuration_is_refused(whole, tmp_path):
    for name, text, message in [
        ("a", None, "not a file of at most"),
        ("b", "[]", "holds a JSON list"),
        ("c", "{", "is not JSON"),
        ("d", "{}", "has no section 'training'"),
        ("e", '{"training": {}}', "has no training.sde"),
        ("f", " " * 1_000_001, "not a file of at most"),
        ("g", "[" * 100_000, "is not JSON"),
    ]:
        config = tmp_path / name
        if text is not None:
            config.write_text(text)
        refused(whole[0], config, message)
    refused(whole[0], {}, "config has no section 'training'")


def test_what_is_missing_and_what_is_unexpected_is_listed(whole, tmp_path):
    """Of the averaged weights, which are taken by default, as of the raw ones."""
    _, config, saved = whole
    model = dict(saved["model"])
    model["module.all_modules.99.weight"] = model.pop("module.all_modules.4.Conv_0.weight")
    cut = [name for name in model if name.endswith(("all_modules.3.weight", "NIN_1.W"))]
    shaped = {name: value[..., 1:] if name in cut else value for name, value in saved["model"].items()}
    assert len(cut) > 1
    for ema in (True, False):
        torch.save({**saved, "model": model}, path := tmp_path / "c.pth")
        message = refused(path, config, "does not fit its configuration", ema=ema)
        assert "Missing: all_modules.4.Conv_0.weight.  Unexpected: all_modules.99.weight.  Of another shape: nothing." in message
        torch.save({**saved, "model": {**saved["model"], "module.more": torch.zeros(1)}}, path)
        assert "Missing: nothing.  Unexpected: more.  Of another shape: nothing." in refused(path, config, "does not fit its configuration", ema=ema)
        torch.save({**saved, "model": shaped}, path)
        message = refused(path, config, "does not fit its configuration", ema=ema)
        for name in cut:
            here, wanted = tuple(shaped[name].shape), tuple(saved["model"][name].shape)
            assert f"{name.removeprefix('module.')} is {here}, expected {wanted}" in message
        assert message.count("expected (") == len(cut)
        torch.save({**saved, "model": {f"{name}x": value for name, value in saved["model"].items()}}, path)
        message = refused(path, config, "does not fit its configuration", ema=ema)
        names = sorted(name.removeprefix("module.") for name in saved["model"] if not name.endswith("sigmas"))
        assert len(names) > 40 and f"Missing: {', '.join(names)}.  Unexpected: " in message and all(f"{name}x" in message for name in names)


def test_checkpoints_that_are_none_are_refused(whole, tmp_path):
    _, config, saved = whole
    model, shadow = saved["model"], saved["ema"]["shadow_params"]
    name = "module.all_modules.3.weight"
    cases = [
        ([1, 2], "holds a list; expected a checkpoint of score_sde_pytorch"),
        ({"state_dict": {}}, "holds state_dict; expected"),
        ({**saved, "model": {name: 1}}, "is no state dict"),
        ({key: saved[key] for key in ("model", "step")}, "has no averaged weights"),
        ({**saved, "ema": {"shadow_params": shadow[:-1]}}, f"has {len(shadow) - 1} averaged weights, which have no names, for {len(shadow)} weights"),
        ({**saved, "ema": {"shadow_params": shadow[::-1]}}, r"averaged weights of other shapes than its weights: all_modules\.\S+ is \(.*, expected \(.*; ema=False takes"),
        ({**saved, "ema": {"shadow_params": [shadow[0].new_full(shadow[0].shape, torch.nan), *shadow[1:]]}}, "not finite"),
        ({**saved, "ema": {"shadow_params": [weight.double() for weight in shadow]}}, "torch.float64; its card's network has .* torch.float32"),
        ({**saved, "model": {**model, name: model[name][..., 0]}, "ema": None}, r"Of another shape: all_modules\.3\.weight is \(8, 3, 3\), expected \(8, 3, 3, 3\)\."),
    ]
    for i, (content, message) in enumerate(cases):
        torch.save(content, path := tmp_path / f"{i}.pth")
        refused(path, config, message)
    torch.save({**saved, "model": {**model, name: model[name][..., 0]}}, path := tmp_path / "shape.pth")
    refused(path, config, r"Of another shape: all_modules\.3\.weight is", ema=False)
    refused(tmp_path / "nothing.pth", config, "is not a file")


def test_a_tensor_that_claims_more_than_the_file_holds_is_refused(whole, tmp_path):
    """A stride of 0 makes any size out of one number."""
    _, _, saved = whole
    vast = changed(nf=1024, ch_mult=[64, 64])
    model = {name: torch.zeros(1).expand(1 << 20, 1 << 20) for name in saved["model"]}
    torch.save({**saved, "model": model}, path := tmp_path / "c.pth")
    refused(path, vast, "more than the file holds", ema=False)


def test_a_truncated_file_is_refused(whole, tmp_path):
    path, config, _ = whole
    content, cut = path.read_bytes(), tmp_path / "c.pth"
    for size in (0, 1, 100, len(content) // 2, len(content) - 1):
        cut.write_bytes(content[:size])
        refused(cut, config, "no zip archive|cut off")


def test_a_flipped_bit_is_noticed_or_harmless(whole, tmp_path):
    """Of 200 at random, those that are not noticed lie between the members, where nothing is read."""
    path, config, _ = whole
    content, flipped, draws = path.read_bytes(), tmp_path / "c.pth", random.Random(0)
    sound = gen.load(path, config=config).network.state_dict()
    unnoticed = 0
    for _ in range(200):
        damaged = bytearray(content)
        damaged[draws.randrange(len(content))] ^= 1 << draws.randrange(8)
        flipped.write_bytes(damaged)
        try:
            loaded = gen.load(flipped, config=config).network.state_dict()
        except gen.ModelFileError:
            continue
        unnoticed += 1
        assert all(torch.equal(loaded[name], sound[name]) for name in sound)
    assert unnoticed < 100


def test_a_model_stays_when_its_file_is_written_over(whole, tmp_path):
    path, config, _ = whole
    copy = tmp_path / "c.pth"
    copy.write_bytes(path.read_bytes())
    model = gen.load(copy, config=config)
    with open(copy, "r+b") as file:
        file.write(bytes(copy.stat().st_size))
    sound = gen.load(path, config=config).network.state_dict()
    assert all(torch.equal(tensor, sound[name]) for name, tensor in model.network.state_dict().items())


class Command:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("protocol", [2, 4])
def test_no_code_of_a_checkpoint_is_run(protocol, whole, tmp_path):
    _, config, saved = whole
    ran = tmp_path / "ran"
    for i, content in enumerate([Command(ran), {**saved, "step": Command(ran)}, {**saved, "optimizer": [Command(ran)]}, {**saved, "model": Command(ran)}]):
        torch.save(content, evil := tmp_path / f"{i}.pth", pickle_protocol=protocol)
        refused(evil, config, "could run code")
    (tmp_path / "bare.pth").write_bytes(pickle.dumps(Command(ran), protocol))
    refused(tmp_path / "bare.pth", config, "is no zip archive")
    assert not ran.exists()


def test_a_checkpoint_without_its_configuration_is_told_what_to_type(whole):
    with pytest.raises(ValueError, match=re.escape("config='config.json'")):
        gen.load(whole[0])
