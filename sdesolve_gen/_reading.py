"""Weights from a file into a network, trusting neither the file nor the card that says what the network is.

The network is built without memory (torch's meta device), tried on an image without memory, and given the file's tensors only
where every name, shape, type and value is right: a card cannot make us allocate what the file does not hold.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

import sdesolve as sd
from sdesolve.files import sha256
from sdesolve.scores import time_convention

from ._errors import ModelFileError, unknown
from .networks import CLASSIFIERS, NETWORKS
from .processes import make_process


def read_network(weights: Path, card_path: Path, card: Mapping[str, Any], device: torch.device) -> nn.Module:
    """The network that ``card`` describes with the weights of a safetensors file; raises ModelFileError."""
    network = described(card_path, card)
    return filled(network, weights, _tensors(weights, card), device)


def read_classifier(weights: Path, card_path: Path, card: Mapping[str, Any], device: torch.device) -> nn.Module:
    """The classifier's network that ``card`` describes with the weights of a safetensors file, float16 ones widened; raises ModelFileError."""
    network = _built(card_path, card, CLASSIFIERS)
    try:
        with torch.device("meta"):
            time_convention(card["time"])
            output = network(torch.empty(1, *card["shape"]), torch.empty(1))
    except (ValueError, TypeError, RuntimeError) as error:
        raise ModelFileError(f"{card_path} does not describe a classifier that can be run: {error}") from error
    if tuple(output.shape) != (1, card["classes"]):
        raise ModelFileError(f"{card_path}: the network turns an image into {tuple(output.shape[1:])} logits; expected ({card['classes']},).")
    tensors = {name: tensor.float() if tensor.dtype == torch.float16 else tensor for name, tensor in _tensors(weights, card).items()}
    return filled(network, weights, tensors, device)


def filled(network: nn.Module, path: Path, tensors: dict[str, Tensor], device: torch.device) -> nn.Module:
    """A network with the tensors of a file, whose names, shapes, types and values must be right; raises ModelFileError."""
    _match(path, network.state_dict(), tensors)
    network.load_state_dict(tensors, assign=True)
    return network.to(memory_format=torch.channels_last).to(device)  # type: ignore[call-overload]


def checked_device(device: torch.device | str) -> torch.device:
    """A device that exists here; raises ValueError."""
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"device={str(device)!r} cannot be used here ({reason}); expected one that is there, as in device='cpu'.") from error


def described(path: Path | str, card: Mapping[str, Any]) -> nn.Module:
    """The network of the card on the meta device, which an image of the card's shape went through."""
    shape, network = card["shape"], _built(path, card, NETWORKS)
    try:
        process = make_process(card["process"], card["process_options"])
        with torch.device("meta"):
            sd.as_score(network, process, predicts=card["predicts"], time=card["time"])
            output = network(torch.empty(1, *shape), torch.empty(1))
    except (ValueError, TypeError, RuntimeError) as error:
        raise ModelFileError(f"{path} does not describe a model that can be built: {error}") from error
    if list(output.shape[1:]) != shape:
        raise ModelFileError(f"{path}: the network turns an image {shape} into {list(output.shape[1:])}; expected the same shape.")
    return network


def _built(path: Path | str, card: Mapping[str, Any], kinds: Mapping[str, type[nn.Module]]) -> nn.Module:
    """The network of the card on the meta device."""
    if card["network"] not in kinds:
        raise ModelFileError(f"{path}: {unknown('network', card['network'], kinds)}")
    try:
        with torch.device("meta"):
            return kinds[card["network"]](**card["network_options"])
    except (ValueError, TypeError, RuntimeError) as error:
        raise ModelFileError(f"{path} does not describe a model that can be built: {error}") from error


def _tensors(path: Path, card: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of a safetensors file, which nothing but a safetensors file gets past."""
    if not path.is_file():
        raise ModelFileError(f"{path} is not a file; expected the weights of a model, as Model.save writes them.")
    expected = card.get("sha256")
    if expected is not None and sha256(path) != expected:
        raise ModelFileError(f"{path} has the SHA-256 {sha256(path)}; its card says {expected}: damaged, or card and weights are of two models.")
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError, RuntimeError, KeyError) as error:
        raise ModelFileError(f"{path} is not a whole safetensors file ({error}); nothing else is read, since other formats can run code.") from error


def _match(path: Path, wanted: Mapping[str, Tensor], got: Mapping[str, Tensor]) -> None:
    """Raises ModelFileError unless names, shapes and types agree and every value is finite."""
    missing, extra = sorted(wanted.keys() - got.keys()), sorted(got.keys() - wanted.keys())
    if missing or extra:
        raise ModelFileError(f"{path} does not fit its card's network: it lacks {_few(missing)} and has besides {_few(extra)}.")
    for name, tensor in got.items():
        here, there = (tuple(tensor.shape), tensor.dtype), (tuple(wanted[name].shape), wanted[name].dtype)
        if here != there:
            raise ModelFileError(f"{path}: {name} is {here[0]} {here[1]}; its card's network has {there[0]} {there[1]}.")
        if not torch.isfinite(tensor).all():
            raise ModelFileError(f"{path}: {name} has values that are not finite.")


def _few(names: list[str]) -> str:
    return f"{', '.join(names[:3])}{f' and {len(names) - 3} more' if len(names) > 3 else ''}" if names else "nothing"
