"""Fewer pixels: super-resolution is the way back."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..._errors import unknown
from ._shared import image_event, integer
from .separable import Separable


def _box(distance: Tensor) -> Tensor:
    return (distance < 0.5).double()


def _bicubic(distance: Tensor) -> Tensor:
    """Keys's kernel with a = -1/2.  [Keys 1981, eq. 15]"""
    near = (1.5 * distance - 2.5) * distance**2 + 1
    far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
    return torch.where(distance <= 1, near, torch.where(distance < 2, far, 0.0))


KERNELS: dict[str, Callable[[Tensor], Tensor]] = {"box": _box, "bicubic": _bicubic}
"""Weight of a pixel by its distance from the centre of the new one, in new pixels."""


class Downsample(Separable):
    """Every new pixel is a weighted mean of old ones about its centre; the image goes on beyond its border as in a mirror.

    "box" is the mean of ``factor`` x ``factor`` pixels, whose rows are orthogonal; "bicubic" is what image programs do when they shrink a
    picture: Keys's kernel, widened by the factor.

    Arguments:
        event: shape (C, H, W) of one image.
        factor: whole number that divides H and W.
        kernel: "box" or "bicubic".

    Raises:
        ValueError: a factor that does not divide the sides; an unknown kernel.
    """

    def __init__(self, event: Sequence[int], factor: int = 4, kernel: str = "box") -> None:
        _, height, width = image_event(event)
        factor = integer("factor", factor, 1)
        if height % factor or width % factor:
            raise ValueError(f"factor={factor} does not divide the {height} x {width} pixels; expected one that does, as in factor={_divisor(height, width)}.")
        if kernel not in KERNELS:
            raise ValueError(unknown("kernel", kernel, KERNELS))
        super().__init__(event, *(_matrix(side, factor, KERNELS[kernel]) for side in (height, width)))


def _matrix(side: int, factor: int, kernel: Callable[[Tensor], Tensor]) -> Tensor:
    """(side/factor, side), whose rows sum to 1."""
    reach = 2 * factor
    old = torch.arange(-reach, side + reach, dtype=torch.float64)
    new = (torch.arange(side // factor, dtype=torch.float64) + 0.5) * factor - 0.5
    weights = kernel((new[:, None] - old).abs() / factor)
    mirrored = old.long() % (2 * side)
    index = torch.where(mirrored < side, mirrored, 2 * side - 1 - mirrored)
    matrix = torch.zeros(len(new), side, dtype=torch.float64).index_add(1, index, weights)
    return matrix / matrix.sum(1, keepdim=True)


def _divisor(height: int, width: int) -> int:
    return next(factor for factor in (4, 2, 3, 5, 7, 1) if height % factor == 0 and width % factor == 0)
