"""What a configuration of score_sde_pytorch says about a model, as a card.  [Song et al. 2021; github.com/yang-song/score_sde_pytorch]

    training.sde, continuous    the process, and whether the network was trained on numbered levels
    model.sigma_*, beta_*       its constants
    data.centered               data in [-1, 1], or in [0, 1]
    model.*                     the network

How the published code makes a score of the network's output:

    VE, continuous              network(x, sigma(t)): predicts "score", time "sigma"
    VP and subVP, continuous    -network(x, 999 t)/std: predicts "epsilon", time "t*999"
    VE and VP on levels         :class:`sdesolve_gen.networks.LevelScore`
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from .._errors import ModelFileError, unknown

_PROCESSES = {"vesde": "ve", "vpsde": "vp", "subvpsde": "subvp"}
_REQUIRED: Any = object()
_ONLY = {  # what the published networks can do besides, and no published model does
    "nonlinearity": ("swish", "swish"),
    "normalization": ("GroupNorm", "GroupNorm"),
    "resamp_with_conv": (True, True),
    "attention_type": ("ddpm", "ddpm"),
}


def card_of(config: Mapping[str, Any], where: str, name: str | None = None) -> dict[str, Any]:
    """The card of the model that a configuration describes.

    Arguments:
        config: nested mappings, as the published ``config.json`` or ``config.to_dict()`` of ml_collections.
        where: what messages call it.
        name: of the model; default data set and network.

    Raises:
        ModelFileError: a missing section or key, a value of another type, or a model that this package has no network for.
    """
    read = _Reader(config, where)
    process = read.choice("training", "sde", _PROCESSES)
    low, high = (read("model", f"{'sigma' if process == 've' else 'beta'}_{end}", float) for end in ("min", "max"))
    network, options = _network(read)
    continuous = read("training", "continuous", bool) or process == "subvp"  # the published code calls every subVP network so
    scaled = read("model", "scale_by_sigma", bool)
    predicts, time = ("score", "sigma") if process == "ve" else ("epsilon", "t*999")
    if not continuous:
        levels = {"process": process, "levels": read("model", "num_scales", int), "low": low, "high": high, "scaled": scaled}
        network, options = "LevelScore", {"network": network, "network_options": options, **levels}
        predicts, time = "score", "continuous"
    elif scaled and (process != "ve" or options.get("embedding") != "fourier"):
        raise ModelFileError(f"{where}: model.scale_by_sigma = True; expected it of a VE network on levels, or of a continuous one with embedding_type = fourier.")
    elif network == "NCSNpp":
        options["scale_by_sigma"] = scaled
    constants = {"sigma_min": low, "sigma_max": high} if process == "ve" else {"beta_min": low, "beta_max": high}
    size = read("data", "image_size", int)
    return {
        "name": name or re.sub(r"[^a-z0-9]+", "_", f"{read('data', 'dataset', str, 'model')}_{read('model', 'name', str)}".lower()).strip("_"),
        "process": process,
        "process_options": constants,
        "predicts": predicts,
        "time": time,
        "network": network,
        "network_options": options,
        "shape": [read("data", "num_channels", int), size, size],
        "data_range": [-1.0 if read("data", "centered", bool) else 0.0, 1.0],
        "levels": 256,
    }


def _network(read: _Reader) -> tuple[str, dict[str, Any]]:
    """The network and its options, as if it were called by itself: ``scale_by_sigma`` is left to the caller."""
    kind = read.choice("model", "name", {"ncsnpp": "NCSNpp", "ddpm": "DDPM"})
    for key, (default, expected) in _ONLY.items():
        if (value := read("model", key, type(expected), default)) != expected:
            raise ModelFileError(f"{read.where}: model.{key} = {value!r}; expected {expected!r}: no published model has another.")
    options = {
        "channels": read("data", "num_channels", int),
        "image_size": read("data", "image_size", int),
        "width": read("model", "nf", int),
        "multipliers": list(read("model", "ch_mult", list)),
        "blocks": read("model", "num_res_blocks", int),
        "attention": list(read("model", "attn_resolutions", list)),
        "centered": read("data", "centered", bool),
        "dropout": read("model", "dropout", float),
    }
    if kind == "DDPM":
        return kind, options
    more = {
        "block": read("model", "resblock_type", str).lower(),
        "fir_taps": list(read("model", "fir_kernel", list)) if read("model", "fir", bool) else None,
        "progressive_input": read("model", "progressive_input", str).lower(),
        "progressive": read("model", "progressive", str).lower(),
        "combine": read("model", "progressive_combine", str).lower(),
        "embedding": read("model", "embedding_type", str).lower(),
        "fourier_scale": read("model", "fourier_scale", float, 16.0),
        "conditional": read("model", "conditional", bool),
        "skip_rescale": read("model", "skip_rescale", bool),
        "scale_by_sigma": False,
    }
    return kind, options | more


class _Reader:
    """Values of a configuration by section and key, each of the type that is expected."""

    def __init__(self, config: Mapping[str, Any], where: str) -> None:
        self.config, self.where = config, where

    def __call__(self, section: str, key: str, kind: type, default: Any = _REQUIRED) -> Any:
        part = self.config.get(section)
        if not isinstance(part, Mapping):
            raise ModelFileError(f"{self.where} has no section {section!r}; expected a configuration of score_sde_pytorch: data, model and training.")
        if key not in part:
            if default is _REQUIRED:
                raise ModelFileError(f"{self.where} has no {section}.{key}; expected a configuration of score_sde_pytorch.")
            return default
        value = part[key]
        kinds = {float: int | float, list: list | tuple}.get(kind, kind)
        if not isinstance(value, kinds) or (isinstance(value, bool) and kind is not bool):
            raise ModelFileError(f"{self.where}: {section}.{key} = {str(value)[:80]!r}; expected a {kind.__name__}.")
        return float(value) if isinstance(value, int | float) and kind is float else value

    def choice(self, section: str, key: str, known: Mapping[str, str]) -> str:
        value = self(section, key, str).lower()
        if value not in known:
            raise ModelFileError(f"{self.where}: {unknown(f'{section}.{key}', value, known)}")
        return known[value]
