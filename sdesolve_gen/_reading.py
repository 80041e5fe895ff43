"""Weights from a file into a network, trusting neither the file nor the card that says what the network is.

The network is built without memory (torch's meta device), tried on an image without memory, and given the file's tensors only
where every name, shape, type and value is right: a card cannot make us allocate what the file does not hold.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

import sdesolve as sd
from sdesolve.files import sha256
from sdesolve.scores import time_convention

from ._errors import ModelFileError, unknown
from ._torch_files import fill, read_tensors
from .card import OWN
from .networks import CLASSIFIERS, NETWORKS, check_told
from .processes import make_process, network_time


def read_network(weights: Path, card_path: Path, card: Mapping[str, Any], own: nn.Module | None = None) -> nn.Module:
    """The network that ``card`` describes, or the owner's, with the weights of a safetensors file; raises ModelFileError."""
    _check_hash(weights, card)
    if card["network"] == OWN and own is None:
        raise ModelFileError(f"{card_path} is of a network that stays with its owner; expected that: load({str(card_path.parent)!r}, network=your_network).")
    network = described(card_path, card) if own is None else own
    fill(weights, network, read_tensors(weights))
    return network


def read_classifier(weights: Path, card_path: Path, card: Mapping[str, Any], device: torch.device) -> nn.Module:
    """The classifier's network that ``card`` describes with the weights of a safetensors file; raises ModelFileError."""
    _check_hash(weights, card)
    network = _built(card_path, card, CLASSIFIERS)
    try:
        with torch.device("meta"):
            time_convention(card["time"])
            output = network(torch.empty(1, *card["shape"]), torch.empty(1))
    except (ValueError, TypeError, RuntimeError) as error:
        raise ModelFileError(f"{card_path} does not describe a classifier that can be run: {error}") from error
    if tuple(output.shape) != (1, card["classes"]):
        raise ModelFileError(f"{card_path}: the network turns an image into {tuple(output.shape[1:])} logits; expected ({card['classes']},).")
    fill(weights, network, read_tensors(weights))
    return placed(network, device)


def placed(network: nn.Module, device: torch.device) -> nn.Module:
    """A network laid out in memory as convolutions are fastest, on its device."""
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
        check_told(network, card.get("classes", 0))
    except ValueError as error:
        raise ModelFileError(f"{path}: {error}") from error
    try:
        process = make_process(card["process"], card["process_options"])
        with torch.device("meta"):
            sd.as_score(network, process, predicts=card["predicts"], time=network_time(card["time"], process))
            labels = [torch.zeros(1, dtype=torch.long)] if card.get("classes") else []
            time = torch.empty(1, dtype=torch.long if isinstance(card["time"], int) else None)
            output = network(torch.empty(1, *shape), time, *labels)
    except Exception as error:  # a network of another package raises what it likes where options do not fit one another
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
    except ImportError:
        raise
    except Exception as error:  # as above
        raise ModelFileError(f"{path} does not describe a model that can be built: {error}") from error


def _check_hash(path: Path, card: Mapping[str, Any]) -> None:
    """Raises ModelFileError for weights other than the card's."""
    if not path.is_file():
        raise ModelFileError(f"{path} is not a file; expected the weights of a model, as Model.save writes them.")
    expected = card.get("sha256")
    if expected is not None and sha256(path) != expected:
        cause = "damaged, of another model, or of a training that was stopped in between, which its own command mends"
        raise ModelFileError(f"{path} has the SHA-256 {sha256(path)}; its card says {expected}: {cause}.")
