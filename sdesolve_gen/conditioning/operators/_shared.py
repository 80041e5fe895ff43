"""What several operators check and do alike."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ..._errors import as_int
from .._numbers import real_tensor

RANK = 1e-4
"""Singular values below this share of the largest count as zero: in float32 what they carry is rounding."""


def counted(values: Tensor, shift: Tensor, like: Tensor) -> Tensor:
    """Which singular values count where there is noise of variance ``shift``: without any those above :data:`RANK`, with some those that are no rounding in ``like``'s dtype."""
    share = values.to(like.device) / values.max()
    return share > torch.where(shift > 0, torch.finfo(like.dtype).eps, RANK)


def shape_of(event: Sequence[int]) -> tuple[int, ...]:
    """``event`` as a tuple of whole numbers."""
    sides = [as_int(side) for side in event] if isinstance(event, Sequence) and not isinstance(event, str) else [None]
    if not sides or any(side is None or side < 1 for side in sides):
        raise ValueError(f"event={event!r}; expected the shape of one state, as in (3, 32, 32).")
    return tuple(sides)  # type: ignore[arg-type]


def image_event(event: Sequence[int]) -> tuple[int, int, int]:
    """``event`` as the shape (C, H, W) of an image."""
    sides = shape_of(event)
    if len(sides) != 3:
        raise ValueError(f"event={tuple(event)}; expected the shape (C, H, W) of one image, as in (3, 32, 32).")
    return sides[0], sides[1], sides[2]


def integer(name: str, value: object, low: int, high: float = math.inf) -> int:
    """``value`` as an integer, low <= value <= high."""
    count = as_int(value)
    if count is None or not low <= count <= high:
        raise ValueError(f"{name}={value!r}; expected an integer, {low} <= {name}{f' <= {high}' if high < math.inf else ''}, as in {name}={low}.")
    return count


def draws(seed: int) -> np.random.Generator:
    """The random numbers that an operator is made of."""
    return np.random.Generator(np.random.Philox(integer("seed", seed, 0, 2**64 - 1)))


def finite(name: str, values: object) -> Tensor:
    """``values`` as a float64 tensor on the host, all of them finite."""
    tensor = real_tensor(name, values, "finite numbers").detach().cpu().double()
    if not tensor.numel() or not bool(tensor.isfinite().all()):
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}; expected finite numbers, at least one.")
    return tensor
