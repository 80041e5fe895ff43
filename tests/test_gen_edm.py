"""EDM's networks and pickles: what the published code computes, and none of the code that comes along."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from gen_edm import Persistent, persistent, pickled, their_modules
from torch import Tensor, nn

import sdesolve as sd
import sdesolve_gen as gen
from sdesolve_gen.adapters import edm
from sdesolve_gen.networks import EDMUNet

SMALL: dict[str, Any] = {"model_channels": 8, "channel_mult": [1, 2], "num_blocks": 1, "attn_resolutions": [8]}
NCSNPP: dict[str, Any] = {"embedding_type": "fourier", "channel_mult_noise": 2, "encoder_type": "residual", "resample_filter": [1, 3, 3, 1]}
SKIP: dict[str, Any] = {"encoder_type": "skip", "decoder_type": "skip", "resample_filter": [1, 3, 3, 1]}
NETWORKS: dict[str, dict[str, Any]] = {
    "ddpm++": SMALL,
    "ncsn++": {**SMALL, **NCSNPP, "augment_dim": 9, "label_dim": 4},
    "skip": {**SKIP, "model_channels": 8, "channel_mult": [1, 1, 2], "num_blocks": 2, "attn_resolutions": [4]},
    "adm": {"kind": "dhariwal", "model_channels": 64, "channel_mult": [1, 2], "num_blocks": 1, "attn_resolutions": [4, 8], "label_dim": 5},
}


def patterned(network: nn.Module) -> None:
    """Weights that are waves, by the order of their names."""
    weights = network.state_dict()
    for k, (name, tensor) in enumerate(sorted(weights.items())):
        if "resample_filter" not in name:
            wave = torch.sin(1.7 * torch.arange(tensor.numel(), dtype=torch.float64) + 0.37 * k).reshape(tensor.shape)
            weights[name] = (wave * (0.15 if tensor.dim() > 1 else 0.3) + name.endswith(("norm0.weight", "norm1.weight"))).float()
    network.load_state_dict(weights)


def network(name: str, **changes: Any) -> EDMUNet:
    made = EDMUNet(**{"resolution": 8, "channels": 3, **NETWORKS[name], **changes}).eval()
    patterned(made)
    return made


def images() -> Tensor:
    return torch.cos(torch.arange(2 * 3 * 64, dtype=torch.float64)).reshape(2, 3, 8, 8).float()


PUBLISHED = {  # what training/networks.py of NVlabs/edm (commit 0a2ff34) gives with these weights at some pixels, and its root mean square
    "ddpm++": ([-0.129127, -0.078913, 0.019235, -0.156442, 0.060607], 0.183916),
    "ncsn++": ([-0.076466, -0.100102, 0.092799, -0.168436, 0.135803], 0.174996),
    "skip": ([0.064668, -0.150272, 0.194266, 0.037532, 0.193949], 0.136535),
    "adm": ([-0.310042, -0.150947, 0.76578, -0.616741, -0.081221], 0.517976),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_the_networks_are_the_published_ones(name: str) -> None:
    labels = torch.tensor([1, 3]) if "label_dim" in NETWORKS[name] else None
    with torch.no_grad():
        output = network(name)(images(), torch.tensor([-0.4, 0.3]), labels)
    pixels, rms = PUBLISHED[name]
    assert output.flatten()[[0, 50, 133, 200, 383]].tolist() == pytest.approx(pixels, abs=3e-5)
    assert float(output.double().square().mean().sqrt()) == pytest.approx(rms, abs=1e-5)


def test_no_class_is_a_label_too() -> None:
    made, time = network("ncsn++"), torch.tensor([-0.4, 0.3])
    with torch.no_grad():
        without, of_none, of_one = (made(images(), time, labels) for labels in (None, torch.tensor([4, 4]), torch.tensor([0, 4])))
    assert torch.equal(without, of_none) and torch.equal(of_one[1], without[1]) and not torch.equal(of_one[0], without[0])


@pytest.mark.parametrize(
    ("options", "count"),
    [
        ({"channel_mult": [2, 2, 2], "augment_dim": 9}, 55_733_891),
        ({**NCSNPP, "channel_mult": [2, 2, 2], "augment_dim": 9}, 56_397_827),
        ({"resolution": 64, "channel_mult": [1, 2, 2, 2], "augment_dim": 9}, 61_805_571),
        ({"kind": "dhariwal", "resolution": 64, "label_dim": 1000, **edm.DEFAULTS["dhariwal"]}, 295_899_267),
    ],
    ids=["cifar10-ddpmpp", "cifar10-ncsnpp", "ffhq64-ddpmpp", "imagenet64-adm"],
)
def test_published_sizes(options: dict[str, Any], count: int) -> None:
    with torch.device("meta"):
        assert sum(p.numel() for p in EDMUNet(**options).parameters()) == count


CANARY = "open({!r}, 'w')"
ARGUMENTS: dict[str, Any] = {"img_resolution": 8, "img_channels": 3}


def written(path: Path, name: str, precond: str, levels: Tensor | None = None, protocol: int = 4, outputs: int | None = None, **more: Any) -> EDMUNet:
    options = {key: value for key, value in NETWORKS[name].items() if key != "kind"}
    model_type = "DhariwalUNet" if NETWORKS[name].get("kind") else "SongUNet"
    made = network(name, outputs=outputs)
    content = pickled(made, precond, CANARY.format(str(path.parent / "canary")), levels, protocol, **ARGUMENTS, model_type=model_type, **options, **more)
    path.write_bytes(content)
    return made


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_pickle_is_read_and_its_code_is_not_run(tmp_path: Path, name: str, protocol: int) -> None:
    made = written(tmp_path / "network.pkl", name, "EDMPrecond", protocol=protocol)
    m = gen.load(tmp_path / "network.pkl")
    assert not (tmp_path / "canary").exists()
    assert m.process == sd.EDM(0.002, 80.0) and (m.card["predicts"], m.card["name"], m.shape) == ("edm", "network", (3, 8, 8))
    assert all(torch.equal(tensor, m.network.state_dict()[key]) for key, tensor in made.state_dict().items())
    back = gen.load(m.save(tmp_path / "ours"))
    labels = NETWORKS[name].get("label_dim")
    one, two = (model.of_class(3) if labels else model for model in (m, back))
    torch.testing.assert_close(one.score(images(), 2.0), two.score(images(), 2.0))


def denoised(kind: str, made: EDMUNet, x: Tensor, sigma: float) -> Tensor:
    """D(x; sigma) as published.  [Karras et al. 2022, table 1]"""
    told = {"EDMPrecond": torch.tensor(sigma).log() / 4, "VEPrecond": torch.tensor(sigma / 2).log()}
    with torch.no_grad():
        if kind == "EDMPrecond":
            n = (sigma**2 + 0.25) ** 0.5
            return 0.25 / n**2 * x + sigma * 0.5 / n * made(x / n, told[kind].expand(len(x)))
        if kind == "VEPrecond":
            return x + sigma * made(x, told[kind].expand(len(x)))
        t = ((0.1**2 + 2 * 19.9 * torch.tensor(1 + sigma**2).log()).sqrt() - 0.1) / 19.9
        return x - sigma * made(x / (1 + sigma**2) ** 0.5, (999 * t).expand(len(x)))


@pytest.mark.parametrize("kind", ["EDMPrecond", "VEPrecond", "VPPrecond"])
def test_preconditionings(tmp_path: Path, kind: str) -> None:
    made = written(tmp_path / "network.pkl", "ddpm++", kind)
    m = gen.load(tmp_path / "network.pkl")
    for sigma in (0.1, 1.0, 20.0):
        x = sigma * images()
        t = float(m.process.log_snr_inverse(-2 * torch.tensor(sigma).double().log()))
        ours = m.score.denoise(x * float(m.process.alpha(t)), t)
        torch.testing.assert_close(ours, denoised(kind, made, x, sigma), rtol=1e-4, atol=1e-4 * max(sigma, 1))
    assert m.process == {"EDMPrecond": sd.EDM(0.002, 80.0), "VEPrecond": sd.EDM(0.02, 100), "VPPrecond": sd.VPSDE(0.1, 20.0)}[kind]


def test_the_levels_of_iddpm(tmp_path: Path) -> None:
    """u falls from sigma_max at 0 to 0 at M; the network is told M - 1 - j at u_j, and its variance is left out."""
    levels = torch.cat([torch.linspace(12.0, 0.05, 20), torch.zeros(1)])
    made = written(tmp_path / "network.pkl", "ddpm++", "iDDPMPrecond", levels, outputs=6)
    m = gen.load(tmp_path / "network.pkl")
    assert isinstance(m.process, sd.TabulatedVP) and m.card["time"] == 20
    t, sigma = 16 / 20, float(levels[4])
    assert float(m.process.sigma(t) / m.process.alpha(t)) == pytest.approx(sigma)
    with torch.no_grad():
        torch.testing.assert_close(m.score.epsilon(images(), t), made(images(), torch.full((2,), 15.0)))


def test_options_of_the_preconditioning(tmp_path: Path) -> None:
    written(tmp_path / "a.pkl", "ddpm++", "EDMPrecond", sigma_data=0.7, sigma_min=0.01, sigma_max=50.0, use_fp16=True)
    m = gen.load(tmp_path / "a.pkl")
    assert m.score.sigma_data == 0.7 and m.process == sd.EDM(0.01, 50.0)
    written(tmp_path / "b.pkl", "ddpm++", "VPPrecond", beta_d=9.9, beta_min=0.2)
    assert gen.load(tmp_path / "b.pkl").process == sd.VPSDE(0.2, 0.2 + 9.9)


def state(**changes: Any) -> dict[str, Any]:
    return {"_init_args": (), "_init_kwargs": {**ARGUMENTS, "model_type": "SongUNet", **SMALL}, "_parameters": {}, "_buffers": {}, "_modules": {}, **changes}


def endless() -> Any:
    """Modules that hold one another twice, thirty deep."""
    inner: Any = persistent(nn.Linear(1, 1), "Linear", "")
    for _ in range(30):
        inner = Persistent("Block", {"_modules": {"a": inner, "b": inner}})
    return inner


def made_with(**arguments: Any) -> Any:
    return {"ema": Persistent("EDMPrecond", state(_parameters={"a": torch.zeros(1)}, _init_kwargs=arguments))}


WRONG: dict[str, tuple[Any, str]] = {
    "no network": ({"model": 3}, "holds model; expected 'ema' with one of EDMPrecond"),
    "a list": ([1, 2], "holds a list"),
    "another network": ({"ema": Persistent("Generator", {})}, "holds Generator"),
    "no arguments": ({"ema": Persistent("EDMPrecond", {"_init_kwargs": None})}, "does not say what its network was made with"),
    "a state that is a number": ({"ema": Persistent("EDMPrecond", 3)}, "expected 'ema'"),
    "no tensors": ({"ema": Persistent("EDMPrecond", state())}, "is no state dict"),
    "numbers for tensors": ({"ema": Persistent("EDMPrecond", state(_parameters={"a": 3}))}, "is no state dict"),
    "other tensors": ({"ema": Persistent("EDMPrecond", state(_parameters={"a": torch.zeros(1)}))}, "it lacks"),
    "an unknown network": (made_with(**ARGUMENTS, model_type="eval"), "model_type 'eval' is not known"),
    "a vast network": (made_with(**ARGUMENTS, num_blocks=10**9, model_type="SongUNet"), "num_blocks"),
    "no size": (made_with(), "img_channels"),
    "a vast image": (made_with(img_channels=3, img_resolution=10**9, model_type="SongUNet"), "shape ="),
    "a number of many digits": ({10**5000: 1}, "an instruction that torch does not write"),
    "modules without end": ({"ema": Persistent("EDMPrecond", state(_modules={"a": endless()}))}, "modules without end"),
    "a module that is a string": ({"ema": Persistent("EDMPrecond", state(_modules={"a": "b"}))}, "is no module"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_what_is_no_network_is_refused(tmp_path: Path, case: str) -> None:
    content, message = WRONG[case]
    with their_modules():
        (tmp_path / "x.pkl").write_bytes(pickle.dumps(content))
    with pytest.raises(gen.ModelFileError, match=message) as caught:
        gen.load(tmp_path / "x.pkl")
    assert "x.pkl" in str(caught.value)


def test_what_is_no_pickle_is_refused(tmp_path: Path) -> None:
    for name, content, message in (("x.pkl", b"", "is no whole pickle of weights"), ("nothing.pkl", None, "is not a file")):
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(gen.ModelFileError, match=message):
            gen.load(tmp_path / name)


def test_what_is_kept_of_a_pickle(tmp_path: Path) -> None:
    written(tmp_path / "x.pkl", "ncsn++", "VEPrecond")
    name, arguments, tensors = edm.read_pickle(tmp_path / "x.pkl")
    assert name == "VEPrecond" and arguments["encoder_type"] == "residual" and arguments["label_dim"] == 4
    assert {"model.map_noise.freqs", "model.map_augment.weight", "model.enc.4x4_aux_residual.resample_filter"} <= tensors.keys()


def test_one_storage_may_be_shared(tmp_path: Path) -> None:
    """Tensors that are views come back as what they were."""
    base = torch.arange(12.0)
    buffer = io.BytesIO()
    with their_modules():
        pickle.dump({"ema": Persistent("EDMPrecond", state(_parameters={"a": base[2:8].reshape(2, 3).t(), "b": base}))}, buffer)
    (tmp_path / "x.pkl").write_bytes(buffer.getvalue())
    _, _, tensors = edm.read_pickle(tmp_path / "x.pkl")
    assert torch.equal(tensors["a"], base[2:8].reshape(2, 3).t()) and torch.equal(tensors["b"], base)
