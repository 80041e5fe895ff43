"""Published models by name, as cards: network, process, data range and constants, without weights.

    card = gen.preset("ncsnpp_cifar10_ve")
    model = gen.Model(gen.networks.NETWORKS[card["network"]](**card["network_options"]), card)     # untrained

The names are network, data and process of the published configurations of score_sde_pytorch, as in ``configs/ve/cifar10_ncsnpp_continuous.py``;
what they say is kept here in their words, and becomes a card as an imported configuration does.  Networks on numbered levels have the
ending ``_discrete``, but for ``ddpm_*_vp``, whose continuous one ends in ``_continuous``, as published.  [Song et al. 2021, appendix C and H]
"""

from __future__ import annotations

from typing import Any

from ._errors import unknown
from .adapters.score_sde_config import card_of

_NETWORKS: dict[str, dict[str, Any]] = {
    "ncsnpp": {"name": "ncsnpp", "fir": True, "progressive_input": "residual", "progressive": "none", "num_res_blocks": 4},
    "ddpmpp": {"name": "ncsnpp", "fir": False, "progressive_input": "none", "progressive": "none", "num_res_blocks": 4},
    "skip": {"name": "ncsnpp", "fir": True, "progressive_input": "input_skip", "progressive": "output_skip", "num_res_blocks": 2},
    "ddpm": {"name": "ddpm", "num_res_blocks": 2},
}
_COMMON: dict[str, Any] = {
    "nf": 128,
    "attn_resolutions": [16],
    "resblock_type": "biggan",
    "fir_kernel": [1, 3, 3, 1],
    "progressive_combine": "sum",
    "fourier_scale": 16,
    "conditional": True,
    "skip_rescale": True,
    "sigma_min": 0.01,
    "beta_min": 0.1,
    "beta_max": 20.0,
}
_DEEP = {"num_res_blocks": 8}
_DATA: dict[str, dict[str, Any]] = {  # image size, and the model's options that go with the data
    "cifar10": {"image_size": 32, "ch_mult": [1, 2, 2, 2], "sigma_max": 50, "num_scales": 1000, "dropout": 0.1},
    "ffhq1024": {"image_size": 1024, "ch_mult": [1, 2, 4, 8, 16, 32, 32, 32], "sigma_max": 1348, "num_scales": 2000, "nf": 16, "num_res_blocks": 1},
    "celebahq1024": {"image_size": 1024, "ch_mult": [1, 2, 4, 8, 16, 32, 32, 32], "sigma_max": 1348, "num_scales": 2000, "nf": 16, "num_res_blocks": 1},
    "ffhq256": {"image_size": 256, "ch_mult": [1, 1, 2, 2, 2, 2, 2], "sigma_max": 348, "num_scales": 2000},
    "celebahq256": {"image_size": 256, "ch_mult": [1, 1, 2, 2, 2, 2, 2], "sigma_max": 348, "num_scales": 2000},
    "bedroom256": {"image_size": 256, "ch_mult": [1, 1, 2, 2, 2, 2, 2], "sigma_max": 378, "num_scales": 2000},
    "church256": {"image_size": 256, "ch_mult": [1, 1, 2, 2, 2, 2, 2], "sigma_max": 380, "num_scales": 2000},
}
_PRESETS: dict[str, tuple[str, str, str, bool, dict[str, Any]]] = {  # network, data, process, continuous, and what differs
    "ncsnpp_cifar10_ve": ("ncsnpp", "cifar10", "ve", True, {}),
    "ncsnpp_cifar10_ve_discrete": ("ncsnpp", "cifar10", "ve", False, {}),
    "ncsnpp_deep_cifar10_ve": ("ncsnpp", "cifar10", "ve", True, _DEEP),
    "ncsnpp_cifar10_vp": ("ncsnpp", "cifar10", "vp", True, {}),
    "ncsnpp_deep_cifar10_vp": ("ncsnpp", "cifar10", "vp", True, _DEEP),
    "ncsnpp_cifar10_subvp": ("ncsnpp", "cifar10", "subvp", True, {}),
    "ncsnpp_deep_cifar10_subvp": ("ncsnpp", "cifar10", "subvp", True, _DEEP),
    "ddpmpp_cifar10_vp": ("ddpmpp", "cifar10", "vp", True, {}),
    "ddpmpp_cifar10_vp_discrete": ("ddpmpp", "cifar10", "vp", False, {}),
    "ddpmpp_deep_cifar10_vp": ("ddpmpp", "cifar10", "vp", True, _DEEP),
    "ddpmpp_cifar10_subvp": ("ddpmpp", "cifar10", "subvp", True, {}),
    "ddpmpp_deep_cifar10_subvp": ("ddpmpp", "cifar10", "subvp", True, _DEEP),
    "ddpm_cifar10_vp": ("ddpm", "cifar10", "vp", False, {}),
    "ddpm_cifar10_vp_continuous": ("ddpm", "cifar10", "vp", True, {}),
    "ddpm_cifar10_subvp": ("ddpm", "cifar10", "subvp", True, {}),
    "ddpm_church256_vp": ("ddpm", "church256", "vp", False, {"ch_mult": [1, 1, 2, 2, 4, 4], "num_scales": 1000}),
    "ncsnpp_ffhq1024_ve": ("skip", "ffhq1024", "ve", True, {}),
    "ncsnpp_celebahq1024_ve": ("skip", "celebahq1024", "ve", True, {}),
    "ncsnpp_ffhq256_ve": ("skip", "ffhq256", "ve", True, {}),
    "ncsnpp_celebahq256_ve": ("skip", "celebahq256", "ve", True, {}),
    "ncsnpp_bedroom256_ve": ("skip", "bedroom256", "ve", True, {}),
    "ncsnpp_church256_ve": ("skip", "church256", "ve", True, {}),
}


def presets() -> list[str]:
    """The names that :func:`preset` knows."""
    return list(_PRESETS)


def preset(name: str) -> dict[str, Any]:
    """The card of a published model, as :class:`sdesolve_gen.Model` takes it.

    Arguments:
        name: as in "ncsnpp_cifar10_ve"; :func:`presets` lists them.

    Raises:
        ValueError: an unknown name.
    """
    if name not in _PRESETS:
        raise ValueError(unknown("preset", name, _PRESETS))
    network, data, process, continuous, differs = _PRESETS[name]
    embedding = "fourier" if process == "ve" and continuous else "positional"
    model = {"dropout": 0.0, **_COMMON, **_NETWORKS[network], **_DATA[data], **differs, "embedding_type": embedding, "scale_by_sigma": process == "ve"}
    config = {
        "data": {"dataset": data, "image_size": _DATA[data]["image_size"], "num_channels": 3, "centered": process != "ve"},
        "training": {"sde": f"{process}sde", "continuous": continuous},
        "model": model,
    }
    return card_of(config, name, name)
