"""Networks of your own, and of k-diffusion, as models; and models held against their cards."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sdesolve as sd
import sdesolve_gen as gen
from sdesolve_gen.adapters import k_diffusion

STD = 0.5


class Denoiser(nn.Module):
    """E[x_0 | x] of independent pixels N(0, std^2), told sigma, for alpha = 1."""

    def __init__(self) -> None:
        super().__init__()
        self.std = nn.Parameter(torch.tensor(STD))

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        return x * (self.std**2 / (self.std**2 + sigma**2))[:, None, None, None]


class Inner(nn.Module):
    """F of Karras et al. for the same data and sigma_data, which is no multiple of it: c_skip (1 + shift) x is what it denoises to."""

    def __init__(self, sigma_data: float) -> None:
        super().__init__()
        self.std, self.sigma_data = nn.Parameter(torch.tensor(0.0)), sigma_data

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        s, d = sigma[:, None, None, None], self.sigma_data
        n = (s**2 + d**2).sqrt()
        wanted, skip = self.std**2 / (self.std**2 + s**2), d**2 / n**2
        return (wanted - skip) * (x * n) / (s * d / n)


def data(n: int = 256) -> Tensor:
    return STD * torch.randn(n, 1, 4, 4, generator=torch.Generator().manual_seed(0))


def wrapped(**changes: Any) -> gen.Model:
    options: dict[str, Any] = {"process": sd.EDM(0.01, 20.0), "predicts": "x0", "time": "sigma", "shape": (1, 4, 4), "data_range": (-3.0, 3.0)}
    return gen.wrap(Denoiser(), **{**options, **changes})


def test_a_wrapped_network_is_a_model(tmp_path: Path) -> None:
    m = wrapped(data=data())
    x = m.sample(500, "dpmpp_2m", steps=30, seed=0)
    assert float(x.std()) == pytest.approx(STD, abs=0.02)
    assert (m.shape, m.data_range, m.card["network"]) == ((1, 4, 4), (-3.0, 3.0), "own")
    folder = m.save(tmp_path / "m")
    with pytest.raises(gen.ModelFileError, match=r"expected that: load\(.*, network=your_network\)"):
        gen.load(folder)
    network = Denoiser()
    network.std.data.zero_()
    back = gen.load(folder, network=network)
    assert torch.equal(back.sample(2, "ddim", steps=5, seed=0), m.sample(2, "ddim", steps=5, seed=0)) and back.process == m.process
    with pytest.raises(gen.ModelFileError, match=r"it lacks weight and has besides std"):
        gen.load(folder, network=nn.PReLU(1))
    with pytest.raises(ValueError, match="for a model made by wrap alone"):
        gen.load("mnist", network=network)


@pytest.mark.parametrize("process", [sd.VPSDE(0.2, 15.0), sd.TabulatedVP([0.99, 0.5, 0.01]), sd.Cosine(), sd.VESDE(0.02, 30.0, 1.0), sd.RectifiedFlow()], ids=str)
def test_every_process_goes_into_a_card_and_back(tmp_path: Path, process: sd.Process) -> None:
    time = "level" if isinstance(process, sd.TabulatedVP) else "continuous"
    m = wrapped(process=process, time=time)
    assert gen.load(m.save(tmp_path / "m"), network=Denoiser()).process == process


def test_a_wrong_claim_is_refused_and_the_right_one_told() -> None:
    with pytest.raises(sd.ModelCheckError, match='predicts="x0"'):
        wrapped(predicts="epsilon", data=data())
    with pytest.raises(sd.ModelCheckError):
        wrapped(data=data(), time="continuous", process=sd.VESDE(0.01, 20.0))


def test_a_function_is_a_network_without_weights(tmp_path: Path) -> None:
    """As ``as_score`` takes it: samples, likelihoods, restorations and a check are those of the same formula in a module."""

    def denoised(x: Tensor, sigma: Tensor) -> Tensor:
        return x * (STD**2 / (STD**2 + sigma**2))[:, None, None, None]

    options: dict[str, Any] = {"process": sd.EDM(0.01, 20.0), "predicts": "x0", "time": "sigma", "shape": (1, 4, 4), "data_range": (-3.0, 3.0)}
    m, module = gen.wrap(denoised, data=data(), **options), wrapped()
    x = m.sample(8, "dpmpp_2m", steps=10, seed=0)
    assert torch.allclose(x, module.sample(8, "dpmpp_2m", steps=10, seed=0), atol=1e-5) and m.device == torch.device("cpu")
    mask = torch.ones(4, 4)
    mask[:2] = 0
    restored = m.inpaint(x[:2], mask, steps=5, seed=0).images
    assert torch.allclose(restored, module.inpaint(x[:2], mask, steps=5, seed=0).images, atol=1e-4)
    back = gen.load(m.save(tmp_path / "m"), network=denoised)
    assert torch.equal(back.sample(8, "dpmpp_2m", steps=10, seed=0), x)
    for bad in (3, Denoiser):
        with pytest.raises(TypeError, match=r"^module is .*; expected an nn.Module or a function \(x, time\) -> output, as in gen.wrap"):
            gen.wrap(bad, **options)


class Other(sd.EDM):
    """A process that no card knows."""


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"process": Other()}, "process 'Other' is not known"),
        ({"shape": (4, 4)}, r"^shape=\(4, 4\); expected \[C, H, W\].*, as in shape=\(3, 32, 32\)"), ({"shape": 4}, "^shape=4; expected"),
        ({"data_range": (1, -1)}, r"^data_range=\(1, -1\)"), ({"time": lambda t: t}, "^time=<function"),
        ({"predicts": "noise"}, "'noise' is not known"), ({"sigma_data": 0.0}, r"^sigma_data=0\.0; expected"),
        ({"classes": 0}, "^classes=0; expected"), ({"name": "a/b"}, "^name='a/b'; expected"),
    ],
)  # fmt: skip
def test_what_no_card_takes_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as refused:
        wrapped(**options)
    assert "card" not in str(refused.value)


def test_a_model_is_checked_on_data_or_on_its_own_samples() -> None:
    m = wrapped()
    for images in (data(), None):
        found = m.check(images, n=128)
        assert found.ok and found.slope == pytest.approx(1.0, abs=0.05)
    eight_bit = ((data() + 3) / 6 * 256).floor().clamp(0, 255).to(torch.uint8)
    assert m.check(eight_bit).ok
    wrong = wrapped(predicts="epsilon")
    with pytest.raises(sd.ModelCheckError):
        wrong.check(data())
    with pytest.raises(ValueError, match=r"images have shape \(2, 3, 4, 4\)"):
        m.check(torch.zeros(2, 3, 4, 4))


# -- k-diffusion ---------------------------------------------------------------------------------------------------------


def config(**changes: Any) -> dict[str, Any]:
    return {"model": {"type": "image_v1", "input_channels": 1, "input_size": [4, 4], "sigma_data": 0.7, "sigma_min": 0.01, "sigma_max": 20.0, **changes}}


def checkpoint(path: Path, **parts: Any) -> Path:
    ema, last = ({"std": torch.tensor(std)} for std in (STD, 9.0))
    torch.save({"model_ema": ema, "model": last, "step": 7, "ema_stats": {"ema_decay": 0.99}, "config": config(), **parts}, path)
    return path


def test_a_checkpoint_of_k_diffusion(tmp_path: Path) -> None:
    path = checkpoint(tmp_path / "cats.pth")
    m = k_diffusion.load(path, Inner(0.7))
    assert (m.card["name"], m.card["sigma_data"], m.shape, m.process) == ("cats", 0.7, (1, 4, 4), sd.EDM(0.01, 20.0))
    assert m.check(data()).ok
    x = 3 * torch.ones(1, 1, 4, 4)
    torch.testing.assert_close(m.score.denoise(x, 2.0), x * STD**2 / (STD**2 + 4))
    assert float(k_diffusion.load(path, Inner(0.7), average=False).score.denoise(x, 2.0)[0, 0, 0, 0]) == pytest.approx(3 * 81 / 85, rel=1e-5)
    beside = tmp_path / "config.json"
    beside.write_text(json.dumps(config(sigma_max=10.0)))
    assert k_diffusion.load(path, Inner(0.7), beside).process == sd.EDM(0.01, 10.0)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"model_ema": ...}, "expected 'model_ema'"),
        ({"model_ema": [1]}, "is no state dict"),
        ({"model_ema": {"a": torch.zeros(1)}}, "lacks std and has besides a"),
        ({"config": None}, "no config with a model of input_channels"),
        ({"config": config(has_variance=True)}, "variance besides"),
        ({"config": config(sigma_min=-1.0)}, "its config makes no model"),
        ({"config": config(input_size=["a", "b"])}, "its config makes no model"),
        ({"config": config(sigma_data="x")}, "its config makes no model"),
    ],
)
def test_what_is_no_checkpoint_of_k_diffusion_is_refused(tmp_path: Path, parts: dict[str, Any], message: str) -> None:
    path = checkpoint(tmp_path / "x.pth")
    content = {name: value for name, value in {**torch.load(path), **parts}.items() if value is not ...}
    torch.save(content, path)
    with pytest.raises(gen.ModelFileError, match=message):
        k_diffusion.load(path, Inner(0.7))
