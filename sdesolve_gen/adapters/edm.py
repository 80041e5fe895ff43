"""Pickles of EDM (Karras et al. 2022): networks that carry their own source code, which is not run.

A pickle is read as records; its preconditioning and network are rebuilt here from the arguments that they were made with, and given its tensors.

    in the pickle    process                          predicts    told
    EDMPrecond       edm(sigma_min, sigma_max)        "edm"       ln(sigma)/4
    VPPrecond        vp(beta_min, beta_min + beta_d)  "epsilon"   999 t
    VEPrecond        edm(sigma_min, sigma_max)        "epsilon"   ln(sigma/2), the output negated
    iDDPMPrecond     tabulated_vp of its own u        "epsilon"   the nearest level

with the networks SongUNet (DDPM++, NCSN++) and DhariwalUNet (ADM), class-conditional or not.  [Karras et al. 2022, table 1]
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from .._errors import ModelFileError, unknown
from .._inert_pickle import Record, read_inert
from .._reading import described
from .._torch_files import contents, fill, tensors_in
from .._versions import versions
from ..card import check_card, named

KINDS = {"SongUNet": "song", "DhariwalUNet": "dhariwal"}
PRECONDITIONINGS = ("EDMPrecond", "VPPrecond", "VEPrecond", "iDDPMPrecond")
_DEEPEST, _MOST = 32, 20_000  # modules within modules, and modules
_OURS = (
    "augment_dim", "model_channels", "channel_mult", "channel_mult_emb", "num_blocks", "attn_resolutions", "embedding_type", "channel_mult_noise", "encoder_type",
    "decoder_type", "resample_filter",
)  # fmt: skip
DEFAULTS: dict[str, dict[str, Any]] = {  # of the published networks, where ours or the other's differ
    "song": {"channel_mult": [1, 2, 2, 2]},
    "dhariwal": {"model_channels": 192, "channel_mult": [1, 2, 3, 4], "num_blocks": 3, "attn_resolutions": [32, 16, 8]},
}


def read_pickle(path: Path) -> tuple[str, dict[str, Any], dict[str, Tensor]]:
    """The preconditioning's name, the arguments that it was made with, and its tensors by their names; raises ModelFileError."""
    found = read_inert(path)
    network = found.get("ema") if isinstance(found, Mapping) else found
    if not isinstance(network, Record) or network.name not in PRECONDITIONINGS or not isinstance(network.state, Mapping):
        inside = network.name[:80] if isinstance(network, Record) else contents(found)
        raise ModelFileError(f"{path} holds {inside}; expected 'ema' with one of {', '.join(PRECONDITIONINGS)}, as EDM's training writes it.")
    arguments = network.state.get("_init_kwargs")
    if not isinstance(arguments, Mapping) or network.state.get("_init_args"):
        raise ModelFileError(f"{path} does not say what its network was made with; expected the _init_kwargs of EDM's training.")
    return network.name, dict(arguments), tensors_in(path, _state_dict(path, network))


def read_model(path: Path) -> tuple[nn.Module, dict[str, Any]]:
    """The network and card of a pickle; raises ModelFileError."""
    name, arguments, tensors = read_pickle(path)
    levels = tensors.pop("u", None)
    try:
        card = {**_card(name, arguments, levels), "name": named(path.stem), "versions": versions(), "training": {"imported": {"file": path.name}}}
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise ModelFileError(f"{path}: its arguments make no model ({type(error).__name__}: {error}).") from error
    check_card(card, str(path))
    network = described(path, card)
    fill(path, network, {key.removeprefix("model."): tensor.float() for key, tensor in tensors.items()})
    return network, card


def _state_dict(path: Path, network: Record) -> dict[str, Any]:
    """The tensors of a module's record and of those within it, by their names."""
    tensors: dict[str, Any] = {}
    waiting: list[tuple[str, Any]] = [("", network)]
    count = 0
    while waiting:
        count += 1
        prefix, module = waiting.pop()
        if count > _MOST or prefix.count(".") > _DEEPEST or not isinstance(module, Record) or not isinstance(module.state, Mapping):
            raise ModelFileError(f"{path}: {prefix[:80] or 'the network'} is no module, or one of modules without end.")
        for part in ("_parameters", "_buffers"):
            tensors |= {f"{prefix}{name}": value for name, value in _mapping(module.state.get(part)).items() if value is not None}
        waiting += [(f"{prefix}{name}.", inner) for name, inner in _mapping(module.state.get("_modules")).items() if inner is not None]
    return tensors


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _card(name: str, arguments: Mapping[str, Any], levels: Tensor | None) -> dict[str, Any]:
    default = "DhariwalUNet" if name in ("EDMPrecond", "iDDPMPrecond") else "SongUNet"
    model = arguments.get("model_type", default)
    if model not in KINDS:
        raise ValueError(unknown("model_type", model, KINDS))
    kind, channels, size = KINDS[model], arguments["img_channels"], arguments["img_resolution"]
    given = {key: list(value) if isinstance(value, tuple) else value for key, value in arguments.items() if key in _OURS}
    options = {"kind": kind, "resolution": size, "channels": channels, "label_dim": arguments.get("label_dim", 0), **DEFAULTS[kind], **given}
    if name == "VEPrecond":
        options["told"] = "sigma"
    if name == "iDDPMPrecond":
        options["outputs"] = 2 * channels
    card = {
        **_process(name, arguments, levels), "network": "EDMUNet", "network_options": options, "shape": [channels, size, size], "data_range": [-1.0, 1.0], "levels": 256,
    }  # fmt: skip
    return {**card, "classes": options["label_dim"]} if options["label_dim"] else card


def _process(name: str, arguments: Mapping[str, Any], levels: Tensor | None) -> dict[str, Any]:
    if name == "VPPrecond":
        if arguments.get("M", 1000) != 1000:
            raise ValueError(f"M={arguments['M']!r}; expected 1000")
        low, rise = arguments.get("beta_min", 0.1), arguments.get("beta_d", 19.9)
        return {"process": "vp", "process_options": {"beta_min": low, "beta_max": low + rise}, "predicts": "epsilon", "time": "t*999"}
    if name == "iDDPMPrecond":
        if levels is None or levels.dim() != 1 or not 3 <= len(levels) <= 10_001:
            raise ValueError("expected its noise levels u")
        table = 1 / (1 + levels[:-1].double().flip(0) ** 2)
        return {"process": "tabulated_vp", "process_options": {"alphas_cumprod": table.tolist()}, "predicts": "epsilon", "time": len(table)}
    if name == "VEPrecond":
        span = {"sigma_min": arguments.get("sigma_min", 0.02), "sigma_max": arguments.get("sigma_max", 100)}
        return {"process": "edm", "process_options": span, "predicts": "epsilon", "time": "sigma"}
    low, high = arguments.get("sigma_min", 0), arguments.get("sigma_max", float("inf"))
    span = {"sigma_min": low or 0.002, "sigma_max": 80.0 if high == float("inf") else high}  # where sampling starts and ends as published
    return {"process": "edm", "process_options": span, "predicts": "edm", "time": "log_sigma/4", "sigma_data": arguments.get("sigma_data", 0.5)}
