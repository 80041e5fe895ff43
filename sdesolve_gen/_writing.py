"""Weights and their card into a folder, both or neither; and what a command has to say, as JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from sdesolve.files import atomic_set, sha256


def write_json(path: Path, said: Mapping[str, Any]) -> None:
    """What is ``said`` as JSON, which knows no infinity and no NaN: null in their place."""
    path.write_text(json.dumps(_finite(said), indent=2, allow_nan=False) + "\n", encoding="utf-8")


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_network(weights: Path, card_path: Path, network: nn.Module, card: Mapping[str, Any], what: str, dtype: torch.dtype | None = None) -> None:
    """The network's tensors as safetensors, its parameters in ``dtype`` or as they are, and its card with their number and hash; ``what`` it is, for messages.

    Raises:
        ValueError: a weight that is not finite, in that dtype.
    """
    rounded = {name for name, _ in network.named_parameters()}  # buffers, such as the frequencies of an embedding, keep every digit
    tensors = {name: t.detach().to("cpu", dtype if name in rounded else None).contiguous().clone() for name, t in network.state_dict().items()}
    broken = [name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()]
    if broken:
        raise ValueError(f"the weights {', '.join(broken[:3])} are not finite{f' in {dtype}' if dtype else ''}; a {what} like that is not saved.")
    with atomic_set(weights, card_path) as (weights_file, card_file):
        save_file(tensors, weights_file)
        told = {**card, "parameters": sum(p.numel() for p in network.parameters()), "sha256": sha256(weights_file)}
        card_file.write_text(json.dumps(told, indent=2, allow_nan=False) + "\n", encoding="utf-8")
