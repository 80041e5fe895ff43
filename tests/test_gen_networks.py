"""The networks: shapes, gradients, what a fresh one says, and what they refuse."""

import pytest
import torch
import torch.nn.functional as F
from gen_fixtures import NETWORK, tiny_network

from sdesolve_gen.networks import UNet, widened
from sdesolve_gen.networks.unet import Attention, ResidualBlock


@pytest.mark.parametrize(("channels", "patch", "multipliers", "side"), [(1, 1, [1], (5, 7)), (3, 2, [1, 2], (8, 12)), (1, 2, [1, 1, 2], (8, 8)), (1, 4, [2], (12, 4))])
def test_output_is_shaped_like_the_image(channels, patch, multipliers, side):
    network = UNet(channels=channels, width=8, multipliers=multipliers, blocks=2, patch=patch)
    x = torch.randn(2, channels, *side)
    output = network(x, torch.rand(2))
    assert output.shape == x.shape
    assert output.is_contiguous()


def test_a_fresh_network_says_zero():
    assert (UNet(channels=1, **NETWORK)(torch.randn(3, 1, 8, 8), torch.rand(3)) == 0).all()


def test_fresh_branches_add_nothing():
    x = torch.randn(2, 8, 4, 4)
    assert torch.equal(ResidualBlock(8, 8, 16)(x, torch.randn(2, 16)), x * 0.5**0.5)
    assert torch.equal(Attention(8)(x), x * 0.5**0.5)


def test_a_wider_network_begins_as_the_function_that_the_narrow_one_is():
    """Whatever the weights: the copies of a feature have its group's statistics, and what reads them adds up."""
    narrow, wide = tiny_network(), UNet(channels=1, **NETWORK, expansion=3)
    wide.load_state_dict(widened(narrow.state_dict(), wide.state_dict()))
    x, time = torch.randn(3, 1, 8, 8), torch.rand(3)
    assert torch.allclose(wide(x, time), narrow(x, time), atol=1e-5)
    wide(x, time).square().sum().backward()
    copies = wide.middle[0].conv1.weight.grad.unflatten(0, (-1, 3))
    assert not torch.allclose(copies[:, 0], copies[:, 1], rtol=0.05)  # the copies part as soon as they are trained


@pytest.mark.parametrize("expansion", [1, 2])
def test_every_weight_gets_a_gradient(expansion):
    network = tiny_network(expansion=expansion)
    network(torch.randn(2, 1, 8, 8), torch.rand(2)).square().sum().backward()
    dead = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert dead == []


def test_input_gradient_agrees_with_finite_differences():
    network = tiny_network().double()
    network.embed[0].double()
    # the normalisations compute in float32, so the difference quotient is only as good as that
    x, direction, time = (torch.randn(1, 1, 8, 8, dtype=torch.float64) for _ in range(3))
    time = time[0, 0, 0, :1]
    x.requires_grad_()
    slope = (torch.autograd.grad(network(x, time).sum(), x)[0] * direction).sum()
    h = 1e-2
    quotient = (network(x + h * direction, time) - network(x - h * direction, time)).sum() / (2 * h)
    assert torch.isclose(slope, quotient, rtol=1e-2, atol=1e-4)


def test_output_depends_on_time_and_not_on_the_neighbours():
    network = tiny_network()
    x = torch.randn(3, 1, 8, 8)
    together = network(x, torch.tensor([0.1, 0.5, 0.1]))
    assert not torch.allclose(together, network(x, torch.tensor([0.1, 0.9, 0.1])))
    alone = torch.cat([network(x[i : i + 1], torch.tensor([t])) for i, t in enumerate([0.1, 0.5, 0.1])])
    assert torch.allclose(together, alone, atol=1e-6)  # to rounding: a convolution's order of summation depends on the batch


def test_patches_fold_and_unfold():
    network = UNet(channels=3, width=8, multipliers=[1], patch=2)
    x = torch.arange(2 * 3 * 8 * 8, dtype=torch.float32).reshape(2, 3, 8, 8)
    assert torch.equal(F.pixel_shuffle(F.pixel_unshuffle(x, network.patch), network.patch), x)
    assert network.stem.in_channels == network.head[-1].out_channels == 3 * 2**2


@pytest.mark.parametrize("shape", [(2, 3, 8, 8), (2, 1, 8, 6), (2, 1, 10, 8), (1, 8, 8), (2, 1, 0, 8)])
def test_wrong_images_are_refused(shape):
    with pytest.raises(ValueError, match=r"expected \(B, 1, H, W\) with H and W multiples of 4"):
        tiny_network()(torch.zeros(shape), torch.zeros(shape[0]))


@pytest.mark.parametrize("time", [torch.zeros(()), torch.zeros(3), torch.zeros(2, 1)])
def test_wrong_times_are_refused(time):
    with pytest.raises(ValueError, match=r"time has shape .*; expected \(2,\)"):
        tiny_network()(torch.zeros(2, 1, 8, 8), time)


@pytest.mark.parametrize(
    "option",
    [
        {"channels": 0}, {"width": 12}, {"width": 10**9}, {"width": "8"}, {"blocks": 10**9}, {"blocks": True}, {"patch": 0}, {"patch": 2.0},
        {"multipliers": []}, {"multipliers": [1] * 100}, {"multipliers": 2}, {"multipliers": ["1"]}, {"fourier_scale": -1}, {"expansion": 0}, {"fourier_scale": float("nan")},
    ],
    ids=str,
)  # fmt: skip
def test_wrong_options_are_refused(option):
    (name,) = option
    with pytest.raises(ValueError, match=f"{name}=.*; expected"):
        UNet(**{"channels": 1, **NETWORK, **option})
