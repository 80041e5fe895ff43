"""Checkpoints of score_sde_pytorch: ``gen.load("checkpoint_8.pth", config="config.json")``.  [github.com/yang-song/score_sde_pytorch]

A checkpoint is  {"model": weights by name, "ema": {"shadow_params": [...]}, "optimizer", "step"}.  Names have the prefix ``module.`` of
DataParallel and stand in the order of the parameters, as do the averaged weights, which have no names.  The published networks keep their
parts in one list, ``all_modules``; :func:`published_keys` says which entry is which part of ours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sdesolve.files import read_json

from .._errors import ModelFileError, listed
from .._reading import described
from .._torch_files import contents, fill, read_checkpoint, tensors_in
from .._versions import versions
from ..networks import LevelScore, NCSNpp
from ..networks.levels import level_table
from ..networks.ncsnpp import DownLevel, ResidualBlock, UpLevel
from ..networks.resampling import DownConvolution, UpConvolution
from ..networks.unet import Attention, FourierFeatures
from .score_sde_config import card_of

LARGEST_CONFIG = 1_000_000  # bytes


def read_score_sde(path: Path, config: str | Path | Mapping[str, Any], ema: bool = True) -> tuple[nn.Module, dict[str, Any]]:
    """The network of a published checkpoint, and its card.

    Arguments:
        path: of the checkpoint.
        config: its configuration: a JSON file, or nested mappings as ``config.to_dict()`` of ml_collections gives.
        ema: take the averaged weights, which the published samples are from.

    Raises:
        ModelFileError: a file that is missing or damaged, that holds other than tensors and numbers, or that does not fit its configuration:
            missing and unexpected names, and those of another shape, are listed.
    """
    where = "config" if isinstance(config, Mapping) else str(config)
    card = card_of(config if isinstance(config, Mapping) else _read_config(Path(config)), where)
    saved = read_checkpoint(path)
    network = described(where, card)
    core = network.network if isinstance(network, LevelScore) else network
    assert isinstance(core, NCSNpp)
    prefix = "" if core is network else "network."
    weights = _weights(path, saved, ema, core)
    tensors = {prefix + key.ours: key.make(*(weights[name] for name in key.published)) for key in published_keys(core)}
    if isinstance(network, LevelScore):
        constants = card["network_options"]
        tensors["table"] = level_table(*(constants[key] for key in ("process", "levels", "low", "high")))
    fill(path, network, tensors)
    step = saved.get("step")
    card["training"] = {"source": "score_sde_pytorch", "weights": "ema" if ema else "raw", **({"step": step} if isinstance(step, int) else {})}
    card["versions"] = versions()
    return network, card


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = read_json(path, LARGEST_CONFIG, "json.dump(config.to_dict(), file)")
    except ValueError as error:
        raise ModelFileError(str(error)) from error
    if not isinstance(config, dict):
        raise ModelFileError(f"{path} holds a JSON {type(config).__name__}; expected an object with data, model and training.")
    return config


# -- names ---------------------------------------------------------------------------------------------------------------


class Key(NamedTuple):
    """One of our tensors: its name, the published names of what it is made of, and how; the shape of each of those, from ours."""

    ours: str
    published: tuple[str, ...]
    make: Callable[..., Tensor]
    shape: Callable[[torch.Size], tuple[int, ...]] = tuple


def published_keys(network: NCSNpp) -> Iterator[Key]:
    """Where each tensor of ours stands in the published network."""
    names = {module: name for name, module in network.named_modules()}
    for i, module in enumerate(_all_modules(network)):
        for ours, published, make, shape in _parts(module):
            if ours == "weight" and network.fourier is not None and i == 1 and network.embed is not None:
                make = _halves_swapped
            yield Key(f"{names[module]}.{ours}", tuple(f"all_modules.{i}.{name}" for name in published), make, shape)


def _all_modules(network: NCSNpp) -> Iterator[nn.Module]:
    """The parts of a network in the order of the published list."""
    yield from _with_weights(network.fourier, network.embed, network.stem)
    for down in network.down:
        assert isinstance(down, DownLevel)
        for block, attention in zip(down.blocks, down.attention, strict=True):
            yield from _with_weights(block, attention)
        yield from _with_weights(down.down, down.pyramid, down.combine)
    yield from network.middle
    for up in network.up:
        assert isinstance(up, UpLevel)
        yield from _with_weights(*up.blocks, up.attention, up.pyramid, up.head, up.up)
    yield from _with_weights(network.head)


def _with_weights(*modules: nn.Module | None) -> Iterator[nn.Module]:
    """What is there and has weights; a sequence by its parts."""
    for module in modules:
        if isinstance(module, nn.Sequential):
            yield from _with_weights(*module)
        elif module is not None and not isinstance(module, nn.Identity | nn.SiLU):
            yield module


def _parts(module: nn.Module) -> Iterator[Key]:
    """Names of our tensors and of the published ones within one entry of the list."""
    if isinstance(module, FourierFeatures):
        yield Key("frequencies", ("W",), _same)
    elif isinstance(module, ResidualBlock):
        yield from _pairs({"norm1": "GroupNorm_0", "conv1": "Conv_0", "norm2": "GroupNorm_1", "conv2": "Conv_1"})
        if module.time is not None:
            yield from _pairs({"time": "Dense_0"})
        if not isinstance(module.skip, nn.Identity):
            yield from _pairs({"skip": "Conv_2"}) if module.block == "biggan" else _network_in_network("skip", "NIN_0")
    elif isinstance(module, Attention):
        yield from _pairs({"norm": "GroupNorm_0"})
        yield from _network_in_network("qkv", "NIN_0", "NIN_1", "NIN_2")
        yield from _network_in_network("out", "NIN_3")
    elif isinstance(module, UpConvolution | DownConvolution):
        yield from _pairs({"conv": "Conv_0" if module.taps is None else "Conv2d_0"})
    elif isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1):
        yield from (Key(kind, (f"Conv_0.{kind}",), _same) for kind in _KINDS)
    else:
        yield from (Key(kind, (kind,), _same) for kind in _KINDS)


_KINDS = ("weight", "bias")


def _pairs(names: Mapping[str, str]) -> Iterator[Key]:
    return (Key(f"{ours}.{kind}", (f"{published}.{kind}",), _same) for ours, published in names.items() for kind in _KINDS)


def _network_in_network(ours: str, *published: str) -> Iterator[Key]:
    """A 1x1 convolution out of matrices (inputs, outputs), one below the other."""
    n = len(published)
    matrices, biases = tuple(f"{name}.W" for name in published), tuple(f"{name}.b" for name in published)
    yield Key(f"{ours}.weight", matrices, lambda *parts: torch.cat([part.T for part in parts])[:, :, None, None], lambda shape: (shape[1], shape[0] // n))
    yield Key(f"{ours}.bias", biases, lambda *parts: torch.cat(parts), lambda shape: (shape[0] // n,))


def _halves_swapped(weight: Tensor) -> Tensor:
    """The published Fourier features are sines and then cosines; ours the other way round."""
    return weight.roll(weight.shape[1] // 2, 1)


def _same(tensor: Tensor) -> Tensor:
    """In memory of its own, as what the others make is."""
    return tensor.clone()


# -- weights -------------------------------------------------------------------------------------------------------------


def _weights(path: Path, saved: Any, ema: bool, network: NCSNpp) -> dict[str, Tensor]:
    """The published weights by name, in the order of the parameters, all that the network is made of."""
    if not isinstance(saved, Mapping) or "model" not in saved:
        raise ModelFileError(f"{path} holds {contents(saved)}; expected a checkpoint of score_sde_pytorch: model, ema, optimizer and step.")
    weights = {name.removeprefix("module."): value for name, value in tensors_in(path, saved["model"]).items()}
    _check_fit(path, weights, network)
    if not ema:
        return weights
    trained = [name for name in weights if name != "sigmas" and not (network.fourier is not None and name == "all_modules.0.W")]
    shadow = _averages(path, saved, {name: weights[name] for name in trained})
    return {**weights, **tensors_in(path, dict(zip(trained, shadow, strict=True)))}


def _check_fit(path: Path, weights: Mapping[str, Tensor], network: NCSNpp) -> None:
    """Raises ModelFileError that lists what is missing, what nobody asked for, and what is of another shape."""
    ours = network.state_dict()
    wanted = {name: key.shape(ours[key.ours].shape) for key in published_keys(network) for name in key.published}
    unused = {name for name in weights if name == "sigmas" or (network.embed is None and ".Dense_0." in name)}
    missing, unexpected = sorted(wanted.keys() - weights.keys()), sorted(weights.keys() - wanted.keys() - unused)
    shapes = {name: (tuple(weights[name].shape), shape) for name, shape in wanted.items() if name in weights}
    if missing or unexpected or any(here != shape for here, shape in shapes.values()):
        raise ModelFileError(
            f"{path} does not fit its configuration.  Missing: {listed(missing)}.  Unexpected: {listed(unexpected)}.  Of another shape: {listed(_wrong(shapes))}."
        )


def _averages(path: Path, saved: Mapping[str, Any], trained: Mapping[str, Tensor]) -> list[Tensor]:
    """The averaged weights, one for each trained one and of its shape."""
    ema = saved.get("ema")
    shadow = ema.get("shadow_params") if isinstance(ema, Mapping) else None
    if not isinstance(shadow, list) or not all(isinstance(value, Tensor) for value in shadow):
        raise ModelFileError(f"{path} has no averaged weights (ema.shadow_params); expected them, or ema=False for the raw ones.")
    if len(shadow) != len(trained):
        raise ModelFileError(f"{path} has {len(shadow)} averaged weights, which have no names, for {len(trained)} weights; expected as many, or ema=False for the raw ones.")
    wrong = _wrong({name: (tuple(value.shape), tuple(weight.shape)) for value, (name, weight) in zip(shadow, trained.items(), strict=True)})
    if wrong:
        raise ModelFileError(f"{path} has averaged weights of other shapes than its weights: {listed(wrong)}; ema=False takes the raw ones.")
    return shadow


def _wrong(shapes: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]]) -> list[str]:
    """What is not of the shape that was expected."""
    return [f"{name[:80]} is {here}, expected {wanted}" for name, (here, wanted) in shapes.items() if here != wanted]
