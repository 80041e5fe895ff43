"""Published checkpoints: they load strictly and say what the published code says, and nothing else gets in."""

import json
import os
import pickle
import random
import re
import time
import zipfile

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
