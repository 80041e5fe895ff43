"""Every network that can be told a class is told it the same way: in training, sampling, guidance and likelihoods; and the others say who can."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from gen_fixtures import random_parquet, tiny_card, tiny_config
from torch import Tensor, nn

import sdesolve_gen as gen
from sdesolve_gen.networks import DDPM, NETWORKS, NCSNpp, classes_option, told_classes

CLASSES = 20
SMALL: dict[str, tuple[str, dict[str, Any]]] = {
    "UNet": ("UNet", {"width": 8, "multipliers": [1, 2], "patch": 2}),
    "NCSN++": ("NCSNpp", {"width": 8, "multipliers": [1, 2], "blocks": 1, "attention": [4], "scale_by_sigma": False}),
    "DDPM++": ("NCSNpp", {"width": 8, "multipliers": [1, 2], "blocks": 1, "attention": [], "progressive_input": "none", "embedding": "positional", "scale_by_sigma": False}),
    "DDPM": ("DDPM", {"width": 64, "multipliers": [1], "blocks": 1, "attention": []}),
    "DiT": ("DiT", {"width": 16, "blocks": 1, "heads": 2, "patch": 4}),
    "SongUNet": ("EDMUNet", {"kind": "song", "model_channels": 8, "channel_mult": [1, 2], "num_blocks": 1, "attn_resolutions": [4]}),
    "DhariwalUNet": ("EDMUNet", {"kind": "dhariwal", "model_channels": 16, "channel_mult": [1], "num_blocks": 1, "attn_resolutions": []}),
}
SIZE = {"NCSNpp": "image_size", "DDPM": "image_size", "EDMUNet": "resolution"}


def network(name: str, classes: int = 3) -> nn.Module:
    """With weights none of which is 0, as fresh ones are."""
    kind, options = SMALL[name]
    torch.manual_seed(0)
    made = NETWORKS[kind](channels=1, **{SIZE[kind]: 8} if kind in SIZE else {}, **options, **{str(classes_option(NETWORKS[kind])): classes})
    return loud(made)


def loud(made: nn.Module) -> nn.Module:
    with torch.no_grad():
        for parameter in made.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return made.eval().requires_grad_(False)


def inputs(n: int) -> tuple[Tensor, Tensor]:
    return torch.randn(n, 1, 8, 8, generator=torch.Generator().manual_seed(1)), torch.linspace(0.5, 2, n)


@pytest.mark.parametrize("name", SMALL)
def test_each_row_is_told_its_own_class(name: str) -> None:
    net, (x, t), labels = network(name), inputs(4), torch.tensor([0, 2, 1, 3])
    whole = net(x, t, labels)
    for i in range(4):
        assert torch.allclose(whole[i], net(x[i : i + 1], t[i : i + 1], labels[i : i + 1])[0], atol=1e-4)
        others = [net(x, t, torch.full((4,), label))[i] for label in range(4) if label != labels[i]]
        assert all(float((whole[i] - other).abs().max()) > 1e-3 for other in others)
    assert torch.equal(net(x, t), net(x, t, torch.full((4,), 3)))  # who is told nothing is told "of no class"


@pytest.mark.parametrize("name", ["NCSN++", "DDPM"])
def test_a_network_without_classes_has_the_weights_it_had(name: str) -> None:
    kind, options = SMALL[name]
    made = []
    for classes in (0, 5):
        torch.manual_seed(0)
        made.append(NETWORKS[kind](channels=1, image_size=8, **options, classes=classes).state_dict())
    assert set(made[1]) - set(made[0]) == {"labels.weight"} and made[1]["labels.weight"].shape == (6, 4 * options["width"])
    assert all(torch.equal(made[1][key], weight) for key, weight in made[0].items())


@pytest.mark.parametrize("name", SMALL)
def test_it_is_trained_drawn_guided_and_measured(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From images with labels, some of which are dropped, to samples and likelihoods of a class, also out of its folder."""
    kind, options = SMALL[name]
    told: list[Tensor] = []
    forward = NETWORKS[kind].forward
    monkeypatch.setattr(NETWORKS[kind], "forward", lambda self, x, t, labels=None: told.append(labels) or forward(self, x, t, labels))
    asked = {"steps": 3, "network_name": kind, "network": options, "classes": CLASSES, "label_dropout": 0.4, "time": "sigma", "sample_every": 3, "samples": 22}
    trained = gen.train(tiny_config(random_parquet(tmp_path / "train.parquet"), tmp_path / "run", **asked), progress=False)
    pictures = [labels for labels in told if labels is not None and len(labels) == 22]
    assert pictures and all(torch.equal(labels, torch.arange(22) % CLASSES) for labels in pictures)  # each class in turn
    training = torch.cat([labels for labels in told if labels is not None and labels.device.type == "cpu" and len(labels) == 8])
    assert 0 < int((training == CLASSES).sum()) < len(training) and int(training.max()) == CLASSES  # some were dropped, not all
    m = gen.load(tmp_path / "run")
    assert m.classes == CLASSES and m.knows_none and m.card["network_options"][str(classes_option(NETWORKS[kind]))] == CLASSES
    for model in (m, trained):  # a fresh network has branches that are 0
        torch.manual_seed(0)
        loud(model.network)
    draw: dict[str, Any] = {"method": "ddim", "steps": 2, "seed": 0}
    told.clear()
    images = m.sample(3, labels=[4, 4, CLASSES], **draw)
    assert all(labels.tolist() == [4, 4, CLASSES] for labels in told)
    assert torch.allclose(images, trained.sample(3, labels=[4, 4, CLASSES], **draw), atol=1e-5)
    guided = m.sample(3, labels=4, guidance=3.0, **draw)
    assert float((guided - m.sample(3, labels=4, **draw)).abs().max()) > 1e-4 and torch.equal(m.sample(3, labels=4, guidance=0.0, **draw), m.sample(3, labels=CLASSES, **draw))
    how: dict[str, Any] = {"seed": 0, "rtol": 0.1, "atol": 0.1, "eps": 0.2}
    of_each = m.log_likelihood(images, labels=[4, 7, 4], **how).log_prob
    assert of_each[1] == pytest.approx(float(m.log_likelihood(images[1:2], labels=7, sample_ids=[1], **how).log_prob), rel=1e-3)
    assert float(of_each[1]) != pytest.approx(float(m.log_likelihood(images[1:2], labels=4, sample_ids=[1], **how).log_prob), rel=1e-5)


def test_a_network_on_levels_is_told_classes_by_the_one_within() -> None:
    options = {"image_size": 8, "channels": 1, **SMALL["DDPM"][1], "classes": 3}
    for process in ("vp", "ve"):
        torch.manual_seed(0)
        net = loud(NETWORKS["LevelScore"]("DDPM", options, process, 10, 0.1, 5.0))
        m = gen.Model(net, tiny_card(network="LevelScore", classes=3, predicts="score", time="continuous"))
        (x, _), t = inputs(2), torch.tensor([0.3, 0.6])
        assert m.classes == 3 and not torch.allclose(net(x, t, torch.tensor([0, 1])), net(x, t, torch.tensor([0, 2])))
        assert torch.equal(net(x, t), net(x, t, torch.tensor([3, 3])))


@pytest.mark.parametrize("kind", ["NCSNv2", "ScoreNet"])
def test_a_network_that_cannot_be_told_says_who_can(kind: str, tmp_path: Path) -> None:
    able = "UNet, NCSNpp, DDPM, DiT, MLP, EDMUNet"
    assert told_classes() == able.split(", ")
    net = NETWORKS[kind]()
    card = tiny_card(network=kind, network_options={}, shape=[1, 32, 32], classes=3)
    with pytest.raises(ValueError, match=rf"classes = 3, and of its network 0; expected the same, which {kind} cannot have; networks that can: {able}\."):
        gen.Model(net, card)
    plain = gen.Model(net, {key: value for key, value in card.items() if key != "classes"})
    plain.save(tmp_path / "m")
    written = json.loads((tmp_path / "m" / "card.json").read_text())
    (tmp_path / "m" / "card.json").write_text(json.dumps({**written, "classes": 3}))
    with pytest.raises(gen.ModelFileError, match=rf"card\.json: classes = 3.*networks that can: {able}"):
        gen.load(tmp_path / "m")
    with pytest.raises(ValueError, match=rf"network_name='{kind}' knows no classes; .*{able}, or classes=0"):
        gen.train(tiny_config(random_parquet(tmp_path / "train.parquet"), tmp_path / "run", network_name=kind, network={}, classes=CLASSES), progress=False)
    assert not (tmp_path / "run").exists()


def test_classes_that_do_not_fit_are_one_line(tmp_path: Path) -> None:
    for make in (NCSNpp, DDPM):
        for classes in (-1, 1.0, True, 10**9):
            with pytest.raises(ValueError, match=r"classes=.*expected an integer from 0"):
                make(classes=classes)
    with pytest.raises(ValueError, match=r"classes=3 and conditional=False: .* expected conditional=True"):
        NCSNpp(width=8, classes=3, conditional=False)
    with pytest.raises(ValueError, match="classes = 4, and of its network 3; expected the same"):
        gen.Model(network("SongUNet"), tiny_card(network="EDMUNet", classes=4))
    with pytest.raises(ValueError, match=r"network\.label_dim=3: expected a field of its own, classes=3"):
        gen.train(tiny_config(random_parquet(tmp_path / "x.parquet"), tmp_path, network_name="EDMUNet", network={"label_dim": 3}), progress=False)
