"""What a model remembers of its data: mean, width and principal directions, from which ``auto`` starts where there are few calls.

    mean (C, H, W), directions (k, C, H, W), std ()      in moments.safetensors, whose hash is in the card; first (), last () where they are given
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

import sdesolve as sd
from sdesolve.files import atomic, sha256

from ._errors import ModelFileError
from ._torch_files import read_tensors

NUMBERS, IMAGES = 1 << 26, 10_000  # of data from which moments are read; they are drawn evenly
ENDS = ("first", "last")


def moments_of(images: Tensor, data_range: tuple[float, float], flip: bool = False) -> sd.Range | None:
    """The moments of bytes (n, C, H, W), as they are in ``data_range``, and with their mirror images where ``flip``; None where they have no width."""
    n = max(2, min(len(images), IMAGES, NUMBERS // images[0].numel()))
    low, high = data_range
    x = low + (images[torch.linspace(0, len(images) - 1, n).round().long()].float() + 0.5) * ((high - low) / 256)
    x = torch.cat([x, x.flip(-1)]) if flip else x
    return sd.Range.of(x) if bool((x != x[:1]).any()) else None


def write_moments(path: Path, moments: sd.Range, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> str:
    """The file, whole or not at all; returns its hash."""
    mean = torch.as_tensor(moments.data_mean).to("cpu", torch.float32).expand(shape)
    directions = torch.zeros(0, *shape) if moments.directions is None else moments.directions.cpu()
    tensors = {"mean": mean.contiguous(), "directions": directions.to(dtype).contiguous(), "std": torch.tensor(moments.data_std)}
    tensors |= {name: torch.tensor(end, dtype=torch.float64) for name in ENDS if (end := getattr(moments, name)) is not None}
    with atomic(path) as temporary:
        save_file(tensors, temporary)
        return sha256(temporary)


def read_moments(path: Path, card: Mapping[str, Any]) -> sd.Range:
    """The moments that a card speaks of, which may come from anywhere; raises ModelFileError."""
    if not path.is_file() or sha256(path) != card["moments"]:
        raise ModelFileError(f"{path} is not the file that its card speaks of; expected the one with the SHA-256 {card['moments']}.")
    found, shape = read_tensors(path), tuple(card["shape"])
    shapes = {name: tuple(tensor.shape[1:] if name == "directions" else tensor.shape) for name, tensor in found.items()}
    expected = {"mean": shape, "directions": shape, "std": (), **{name: () for name in ENDS if name in found}}
    if shapes != expected or not all(tensor.is_floating_point() for tensor in found.values()):
        raise ModelFileError(f"{path} holds {shapes}; expected floats, a mean and directions of shape {shape}, one std, and a first and last where there are such.")
    directions: Tensor | None = found["directions"].float() if len(found["directions"]) else None
    try:
        ends = {name: float(found[name]) for name in ENDS if name in found}
        return sd.Range(float(found["std"]), found["mean"].float(), directions=directions, **ends)
    except ValueError as error:
        raise ModelFileError(f"{path}: {error}") from error
