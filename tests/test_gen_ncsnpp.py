"""NCSN++, DDPM++ and DDPM: published sizes, what a fresh network says, options that are refused, and how they run."""

import re
import time

import pytest
import torch
import torch.nn.functional as F
from published import change, filtered, spread
from torch import nn

import sdesolve_gen as gen
from sdesolve_gen.networks import DDPM, NETWORKS, Execution, NCSNpp
from sdesolve_gen.networks.ncsnpp import positional_features
from sdesolve_gen.networks.resampling import DownConvolution, UpConvolution, double, halve

SMALL = {"image_size": 8, "width": 8, "multipliers": (1, 2), "blocks": 1, "attention": (4,)}


def lively(network):
    """The network with weights that are not 0 anywhere."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return network


# -- published sizes -----------------------------------------------------------------------------------------------------

# Trainable weights.  The files of google/ncsnpp-ffhq-1024 and google/ncsnpp-church-256 on the hub have 423 and 263 MB in float32, and diffusers'
# UNet2DModel of their configurations 105,785,896 and 65,574,549 parameters, which count the 16 and 128 frequencies.  DDPM on CIFAR-10 has 35.7
# million [Ho et al. 2020, appendix B]; that of score_sde_pytorch has no attention after two of the blocks on the way up: 2 x 263,680 fewer.
COUNTS = {
    "ncsnpp_ffhq1024_ve": 105_785_880,
    "ncsnpp_celebahq1024_ve": 105_785_880,
    "ncsnpp_ffhq256_ve": 65_574_421,
    "ncsnpp_celebahq256_ve": 65_574_421,
    "ncsnpp_bedroom256_ve": 65_574_421,
    "ncsnpp_church256_ve": 65_574_421,
    "ncsnpp_cifar10_ve": 62_758_787,
    "ncsnpp_deep_cifar10_ve": 107_586_947,
    "ddpmpp_cifar10_vp": 61_804_419,
    "ddpmpp_deep_cifar10_vp": 106_632_579,
    "ddpmpp_deep_cifar10_subvp": 106_632_579,
    "ddpm_cifar10_vp": 35_746_307 - 2 * 263_680,
}


@pytest.mark.parametrize("name", gen.presets())
def test_every_preset_is_a_model_of_the_published_size(name):
    card = gen.preset(name)
    with torch.device("meta"):
        m = gen.Model(NETWORKS[card["network"]](**card["network_options"]), card)
        if name in ("ncsnpp_ffhq1024_ve", "ddpmpp_cifar10_vp_discrete"):
            assert m.network(torch.empty(1, *m.shape), torch.empty(1)).shape == (1, *m.shape)
    count = sum(parameter.numel() for parameter in m.network.parameters())
    assert count == COUNTS.get(name, count)
    assert m.card["name"] == name
    assert m.card["process"] == name.removesuffix("_discrete").removesuffix("_continuous").rpartition("_")[2]
    assert m.data_range == ((0.0, 1.0) if m.card["process"] == "ve" else (-1.0, 1.0))


@pytest.mark.parametrize(("name", "largest"), [("cifar10", 50), ("ffhq1024", 1348), ("celebahq256", 348), ("bedroom256", 378), ("church256", 380)])
def test_published_noise(name, largest):
    assert gen.preset(f"ncsnpp_{name}_ve")["process_options"] == {"sigma_min": 0.01, "sigma_max": largest}


def test_an_unknown_preset_is_refused():
    with pytest.raises(ValueError, match="Did you mean 'ncsnpp_cifar10_ve'"):
        gen.preset("ncsnpp_cifar_ve")


# -- resampling ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("taps", [None, (1, 3, 3, 1), (1.0, 2.0, 4.0, 0.5)])
def test_resampling_is_what_it_says(taps):
    x = torch.randn(2, 3, 4, 6, dtype=torch.float64)
    for layout in (torch.contiguous_format, torch.channels_last):
        y = x.contiguous(memory_format=layout)
        torch.testing.assert_close(double(y, taps), change(x, taps, "up"))
        torch.testing.assert_close(halve(y, taps), change(x, taps, "down"))


def test_constant_images_stay_constant_inside():
    x = torch.ones(1, 1, 8, 8)
    for taps in (None, (1, 3, 3, 1), (1, 2, 4, 0.5)):
        assert torch.allclose(halve(x, taps)[..., 1:-1, 1:-1], x[..., :2, :2])
    assert torch.allclose(double(x, (1, 3, 3, 1))[..., 1:-1, 1:-1], torch.ones(14, 14))


def test_resampling_convolutions_with_a_filter():
    x, taps = torch.randn(2, 3, 4, 6), (1, 2, 4, 0.5)
    up, down = UpConvolution(3, 5, taps), DownConvolution(3, 5, taps)
    raised = F.conv2d(F.pad(spread(x), (2, 1, 2, 1)), up.conv.weight)
    torch.testing.assert_close(up(x), filtered(raised, taps, 4.0, 1) + up.conv.bias[:, None, None])
    torch.testing.assert_close(down(x), F.conv2d(filtered(x, taps, 1.0, 2), down.conv.weight, down.conv.bias, stride=2))
    assert up(x).shape == (2, 5, 8, 12)
    assert down(x).shape == (2, 5, 2, 3)


def test_positional_features():
    features = positional_features(torch.tensor([0.0, 3.0]), 6)
    angle = 3.0 / torch.tensor([1.0, 100.0, 10000.0])
    torch.testing.assert_close(features[0], torch.tensor([0.0, 0, 0, 1, 1, 1]))
    torch.testing.assert_close(features[1], torch.cat([angle.sin(), angle.cos()]))


# -- networks ------------------------------------------------------------------------------------------------------------

VARIETY = [
    {},
    {"progressive_input": "input_skip", "progressive": "output_skip"},
    {"progressive_input": "input_skip", "progressive": "residual", "combine": "cat", "fir_taps": None},
    {"block": "ddpm", "progressive_input": "none", "embedding": "positional", "scale_by_sigma": False},
]


@pytest.mark.parametrize("options", VARIETY)
def test_a_fresh_network_says_zero_and_a_lively_one_learns_everywhere(options):
    network = NCSNpp(**SMALL, **options)
    x, time = torch.randn(2, 3, 8, 8), torch.tensor([0.5, 20.0])
    assert (network(x, time) == 0).all()
    lively(network)(x, time).square().sum().backward()
    dead = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert [name for name in dead if not name.endswith("qkv.bias")] == []


def test_fresh_weights_have_the_variance_of_ddpm():
    network = DDPM(width=64, multipliers=(1, 2), blocks=1, attention=())
    for module, factor in ((network.embed[0], 1.0), (network.down[0].blocks[0].conv1, 1.0), (network.middle[1].qkv, 0.1)):
        fans = sum(nn.init._calculate_fan_in_and_fan_out(module.weight.chunk(3)[0] if factor < 1 else module.weight))
        assert float(module.weight.var()) * fans / (2 * factor) == pytest.approx(1, rel=0.1)


def test_an_image_does_not_see_its_neighbours():
    network = lively(NCSNpp(**SMALL)).eval()
    x, time = torch.randn(3, 3, 8, 8), torch.tensor([0.1, 1.0, 10.0])
    alone = torch.cat([network(x[i : i + 1], time[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(network(x, time), alone, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(network(x, time), network(x, time.flip(0)))


def test_dropout_is_for_training_alone():
    network = lively(NCSNpp(**SMALL, dropout=0.5))
    x, time = torch.randn(2, 3, 8, 8), torch.ones(2)
    assert not torch.equal(network(x, time), network(x, time))
    network.eval()
    assert torch.equal(network(x, time), network(x, time))


@pytest.mark.parametrize("options", VARIETY[:2])
def test_half_precision_inside_and_float32_outside(options):
    network = lively(NCSNpp(**SMALL, **options)).eval()
    x, time = torch.randn(2, 3, 8, 8), torch.tensor([0.02, 20.0])
    whole = network(x, time)
    half = Execution(precision="bf16")(network)(x, time)
    assert half.dtype == torch.float32
    scale = whole.abs().amax((1, 2, 3), keepdim=True)
    assert 1e-6 < float(((half - whole) / scale).abs().max()) < 0.05


def test_checkpointing_changes_no_gradient():
    network = lively(NCSNpp(**SMALL, dropout=0.0))
    x, time = torch.randn(2, 3, 8, 8), torch.tensor([0.5, 20.0])
    found = []
    for checkpoint in (False, True):
        executed = Execution(checkpoint=checkpoint)(network)
        executed(x, time).square().sum().backward()
        found.append([p.grad.clone() for p in network.parameters()])
        network.zero_grad()
    for plain, saved in zip(*found, strict=True):
        torch.testing.assert_close(saved, plain)


def test_neighbouring_noise_levels_are_told_apart_in_half_precision():
    """The embedding is of float32 whatever the weights are: bfloat16 knows 50.0 and 50.1 as one."""
    network = lively(NCSNpp(**SMALL)).eval().to(torch.bfloat16)
    network.fourier.float()
    x = torch.randn(1, 3, 8, 8, dtype=torch.bfloat16)
    assert not torch.equal(network(x, torch.tensor([50.0])), network(x, torch.tensor([50.1])))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 6}, "width=6; expected a multiple of 4, as in width=8"),
        ({"width": 2048}, "width=2048"),
        ({"multipliers": (1,) * 9}, "multipliers="),
        ({"multipliers": (65,)}, "expected 1 to 8 integers from 1 to 64"),
        ({"blocks": 17}, "blocks=17"),
        ({"attention": 16}, "attention=16"),
        ({"block": "unet"}, "block 'unet' is not known; expected one of: biggan, ddpm"),
        ({"fir_taps": (1, 2, 1)}, "fir_taps=(1, 2, 1); expected None or four numbers > 0"),
        ({"embedding": "sine"}, "embedding 'sine' is not known"),
        ({"fourier_scale": 0}, "fourier_scale=0"),
        ({"conditional": 1}, "conditional=1; expected True or False"),
        ({"dropout": 1}, "dropout=1"),
        ({"width": 132, "multipliers": (1, 3)}, "132 features; expected multiples of the 32 groups"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        NCSNpp(**{**SMALL, **options})


def test_bad_inputs_are_refused():
    network = NCSNpp(**SMALL)
    with pytest.raises(ValueError, match="H and W multiples of 2"):
        network(torch.zeros(1, 3, 8, 7), torch.ones(1))
    with pytest.raises(ValueError, match="time has shape"):
        network(torch.zeros(2, 3, 8, 8), torch.ones(1))
    with pytest.raises(ValueError, match="multiples of the 32 groups"):
        DDPM(width=48)


def test_the_largest_network_that_a_card_may_ask_for_is_built_in_no_time():
    started = time.process_time()
    with torch.device("meta"):
        NCSNpp(channels=64, width=1024, multipliers=(64,) * 8, blocks=16, attention=tuple(2**i for i in range(8)))
    assert time.process_time() - started < 5
