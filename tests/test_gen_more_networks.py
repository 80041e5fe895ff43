"""NCSNv2, the tutorial's ScoreNet, DiT, the MLP and the classifiers: shapes, gradients, known sizes, and what they refuse."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from gen_fixtures import tiny_network
from torch import nn

import sdesolve as sd
from sdesolve_gen.networks import CLASSIFIERS, MLP, NETWORKS, DiT, EncoderClassifier, Execution, NCSNv2, ScoreNet, WideResNet
from sdesolve_gen.networks.dit import patches, places, unpatched
from sdesolve_gen.networks.edm_unet import EDMUNet, Frequencies
from sdesolve_gen.networks.execution import Block
from sdesolve_gen.networks.ncsnv2 import InstanceNormPlus
from sdesolve_gen.networks.unet import FourierFeatures

SMALL: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {  # options, shape of an image or point
    "NCSNv2": ({"channels": 2, "width": 8}, (2, 12, 8)),
    "ScoreNet": ({"channels": 2, "widths": [32, 32, 32, 32], "embedding": 16}, (2, 19, 28)),
    "DiT": ({"channels": 2, "width": 16, "blocks": 2, "heads": 2, "patch": 2, "classes": 3}, (2, 6, 8)),
    "MLP": ({"dimensions": 5, "width": 16, "blocks": 2, "classes": 3}, (5,)),
    "EncoderClassifier": ({"channels": 2, "classes": 3, "width": 8, "multipliers": [1, 2], "patch": 2}, (2, 8, 12)),
    "WideResNet": ({"channels": 2, "classes": 3, "blocks": 1, "widen": 1}, (2, 7, 9)),
}


def made(name: str) -> nn.Module:
    """A network whose weights are nowhere zero."""
    torch.manual_seed(0)
    network = {**NETWORKS, **CLASSIFIERS}[name](**SMALL[name][0])
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return network


@pytest.mark.parametrize("name", SMALL)
def test_outputs_are_finite_shaped_and_of_one_row_each(name: str) -> None:
    network, shape = made(name), SMALL[name][1]
    x, time = torch.randn(3, *shape), torch.tensor([0.1, 0.5, 0.9])
    output = network(x, time)
    assert output.shape == ((3, 3) if name in CLASSIFIERS else x.shape)
    assert output.dtype == torch.float32
    assert output.isfinite().all()
    alone = torch.cat([network(x[i : i + 1], time[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(alone, output, rtol=1e-3, atol=1e-4)  # to rounding: a convolution sums in another order in another batch
    changed = (network(x, time.flip(0)) - output).abs().flatten(1).amax(1)
    assert (changed[[0, 2]] > 1e-3).all() == (name != "NCSNv2")  # which is told no time
    assert changed[1] < 1e-4


@pytest.mark.parametrize("name", ["DiT", "MLP", "ScoreNet", "EncoderClassifier", "WideResNet", "UNet", "EDMUNet"])
def test_in_half_precision_one_time_is_not_another(name: str) -> None:
    """0.777 and 0.7775 are one number in bfloat16, of which frequencies make two."""
    if name == "UNet":
        network, shape = tiny_network(), (1, 8, 8)
    elif name == "EDMUNet":
        network, shape = EDMUNet(resolution=8, channels=1, model_channels=16, num_blocks=1, channel_mult=[1]), (1, 8, 8)
    else:
        network, shape = made(name), SMALL[name][1]
    heard = list[torch.Tensor]()
    for part in network.modules():
        if isinstance(part, FourierFeatures | Frequencies):
            part.register_forward_hook(lambda module, inputs, output: heard.append(output))
    network.bfloat16()(torch.randn(2, *shape).bfloat16(), torch.tensor([0.777, 0.7775]))
    assert len(heard) == 1 and not torch.equal(*heard[0])


@pytest.mark.parametrize("name", SMALL)
def test_every_weight_gets_a_gradient(name: str) -> None:
    network, shape = made(name), SMALL[name][1]
    labels = [torch.tensor([0, 1, 2, 3])] if "classes" in SMALL[name][0] and name in NETWORKS else []
    network(torch.randn(4, *shape), torch.rand(4), *labels).square().sum().backward()
    assert [n for n, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


@pytest.mark.parametrize("name", SMALL)
def test_checkpoints_change_no_gradient(name: str) -> None:
    network, x = made(name), torch.randn(2, *SMALL[name][1])
    gradients = []
    for checkpoint in (False, True):
        executed = Execution(checkpoint=checkpoint)(network)
        gradients.append(torch.autograd.grad(executed(x, torch.tensor([0.2, 0.7])).square().sum(), list(network.parameters()), allow_unused=True))
    assert all(a is b or torch.allclose(a, b, rtol=1e-4, atol=1e-5) for a, b in zip(*gradients, strict=True))
    assert sum(isinstance(module, Block) for module in network.modules()) >= 2


@pytest.mark.parametrize("name", ["DiT", "MLP"])
def test_no_label_is_the_null_label(name: str) -> None:
    network, shape = made(name), SMALL[name][1]
    x, time = torch.randn(2, *shape), torch.rand(2)
    assert torch.equal(network(x, time), network(x, time, torch.tensor([3, 3])))
    assert not torch.allclose(network(x, time), network(x, time, torch.tensor([0, 1])), atol=1e-3)
    with pytest.raises(ValueError, match=r"labels are \(3,\).*expected \(2,\)"):
        network(x, time, torch.tensor([0, 1, 2]))


@pytest.mark.parametrize("network", [DiT(2, 16, 2, 2), MLP(5, 16, 2)], ids=["DiT", "MLP"])
def test_a_fresh_one_says_zero(network: nn.Module) -> None:
    x = torch.randn(2, 5) if isinstance(network, MLP) else torch.randn(2, 2, 4, 4)
    assert (network(x, torch.rand(2)) == 0).all()


def test_a_fresh_block_of_a_transformer_is_the_identity() -> None:
    h = torch.randn(2, 6, 16)
    assert torch.equal(DiT(2, 16, 2, 2).blocks[0](h, torch.randn(2, 16)), h)


def test_published_sizes() -> None:
    with torch.device("meta"):
        assert sum(p.numel() for p in NCSNv2(3, 128).parameters()) == 29_694_083  # of the published CIFAR-10 network
        dit = DiT(4, 384, 12, 6, 2, classes=1000)  # DiT-S/2: 33.0M with fixed places (256 x 384) and twice the outputs, for a variance
        assert sum(p.numel() for p in dit.parameters()) + 256 * 384 + 16 * 385 == 32_963_360
        tutorial = ScoreNet()
        assert sum(p.numel() for p in tutorial.parameters()) + len(tutorial.embed[0].frequencies) == 1_115_425  # of the notebook's


def test_patches_are_cut_and_put_back() -> None:
    x = torch.arange(2 * 3 * 6 * 8.0).reshape(2, 3, 6, 8)
    tokens = patches(x, 2)
    assert tokens.shape == (2, 12, 12)
    assert torch.equal(tokens[0, 5].reshape(3, 2, 2), x[0, :, 2:4, 2:4])  # row 1, column 1 of 3 x 4
    assert torch.equal(unpatched(tokens, 2, 3, 4), x)


def test_without_places_tokens_may_change_them() -> None:
    """Attention is equivariant: only the places tell tokens apart."""
    block = made("DiT").blocks[0]
    h, embedding, order = torch.randn(1, 12, 16), torch.randn(1, 16), torch.randperm(12, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(block(h[:, order], embedding), block(h, embedding)[:, order], rtol=1e-5, atol=1e-5)
    assert len(places(3, 4, 16).unique(dim=0)) == 12
    gram = places(5, 5, 32) @ places(5, 5, 32).T  # depends on the distance alone
    assert torch.allclose(gram.diagonal(), gram[0, 0])
    assert torch.allclose(gram[0, 1], gram[7, 8])
    assert torch.allclose(gram[0, 5], gram[7, 12])


def test_an_instance_norm_keeps_the_spread_of_the_means() -> None:
    norm = InstanceNormPlus(6)
    with torch.no_grad():
        norm.alpha.copy_(torch.full((6,), 2.0))
        norm.gamma.copy_(torch.ones(6))
    x = torch.randn(4, 6, 8, 8) * 3 + torch.randn(4, 6, 1, 1)
    y, means = norm(x), x.mean((2, 3))
    torch.testing.assert_close(y.var((2, 3), unbiased=False), torch.ones(4, 6), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(y.mean((2, 3)), 2 * (means - means.mean(1, keepdim=True)) / means.std(1, keepdim=True), rtol=1e-3, atol=1e-4)


def test_a_score_of_the_tutorial_is_an_epsilon() -> None:
    """score = f/sigma, as the tutorial divides, is what predicts="epsilon" makes of -f."""
    network, process = made("ScoreNet"), sd.VESDE(sigma_max=25.0)
    score = sd.as_score(lambda x, t: -network(x, t), process, predicts="epsilon")
    x, t = torch.randn(2, 2, 19, 28), torch.tensor([0.2, 0.8], dtype=torch.float64)
    torch.testing.assert_close(score(x, t), network(x, t.float()) / process.sigma(t).float()[:, None, None, None])


@pytest.mark.parametrize(
    ("name", "option"),
    [
        ("NCSNv2", {"width": 0}), ("NCSNv2", {"width": 10**6}), ("ScoreNet", {"widths": [32, 32]}), ("ScoreNet", {"widths": [32, 32, 32, 33]}), ("ScoreNet", {"widths": 7}),
        ("ScoreNet", {"embedding": 3}), ("ScoreNet", {"fourier_scale": 0}), ("DiT", {"width": 18}), ("DiT", {"heads": 3}), ("DiT", {"blocks": 10**9}), ("DiT", {"classes": -1}),
        ("DiT", {"patch": 0}), ("MLP", {"dimensions": 0}), ("MLP", {"width": True}), ("MLP", {"classes": 0.5}), ("EncoderClassifier", {"classes": 1}),
        ("EncoderClassifier", {"width": 12}), ("EncoderClassifier", {"multipliers": []}), ("WideResNet", {"classes": 0}), ("WideResNet", {"widen": 1000}),
        ("WideResNet", {"fourier_scale": float("inf")}),
    ],
    ids=str,
)  # fmt: skip
def test_wrong_options_are_refused(name: str, option: dict[str, Any]) -> None:
    key = "width" if option == {"heads": 3} else next(iter(option))
    with pytest.raises(ValueError, match=rf"{key}=.*; expected"):
        {**NETWORKS, **CLASSIFIERS}[name](**{**SMALL[name][0], **option})


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("NCSNv2", (2, 2, 7, 8)), ("ScoreNet", (2, 2, 16, 28)), ("DiT", (2, 2, 7, 8)), ("MLP", (2, 4)), ("MLP", (2, 5, 1)),
        ("WideResNet", (2, 3, 8, 8)), ("EncoderClassifier", (2, 2, 8, 10)),
    ],
)  # fmt: skip
def test_wrong_inputs_are_refused(name: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"x has shape .*; expected \(B, "):
        made(name)(torch.zeros(shape), torch.zeros(2))
    with pytest.raises(ValueError, match=r"time has shape \(3,\); expected \(2,\)"):
        made(name)(torch.zeros(2, *SMALL[name][1]), torch.zeros(3))


def test_a_wide_resnet_halves_its_sides_twice() -> None:
    network = WideResNet(3, 1, 2, 1)
    seen = []
    for block in network.blocks:
        block.register_forward_hook(lambda module, inputs, output: seen.append(tuple(output.shape[1:])))
    network(torch.randn(1, 1, 16, 16), torch.rand(1))
    assert seen == [(16, 16, 16), (16, 16, 16), (32, 8, 8), (32, 8, 8), (64, 4, 4), (64, 4, 4)]


def test_the_encoder_of_a_classifier_is_that_of_the_unet() -> None:
    from sdesolve_gen.networks import UNet

    torch.manual_seed(0)
    unet = UNet(2, 8, [1, 2], 1, 2)
    torch.manual_seed(0)
    classifier = EncoderClassifier(3, 2, 8, [1, 2], 1, 2)
    shared = {name: weight for name, weight in unet.state_dict().items() if not name.startswith(("up", "head"))}
    assert all(torch.equal(weight, classifier.state_dict()[name]) for name, weight in shared.items())
