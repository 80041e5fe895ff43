"""Some pixels are seen and the others are not."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ..._errors import as_float
from .._numbers import real_tensor
from ._shared import draws, image_event, integer, shape_of
from .tight import Tight


class Mask(Tight):
    """y = the entries of x where the mask is 1:  rows of the identity, so A A^T = I and A^+ y puts zeros elsewhere.

    Arguments:
        event: shape of one state, (C, H, W) or any other.
        mask: 1 (or True) where x is known; of the shape of an event, or one that broadcasts to it, as (H, W) does.

    Attributes:
        mask: bool, of the shape of an event.

    Raises:
        ValueError: a mask of another shape, with values other than 0 and 1, or without a 1.
    """

    def __init__(self, event: Sequence[int], mask: Tensor | np.ndarray) -> None:
        self.event = shape_of(event)
        self.mask = _zero_one(real_tensor("mask", mask, f"0 and 1, {self.event[-2:]}").detach().cpu(), self.event)
        self._index = self.mask.flatten().nonzero()[:, 0]
        self.measured = (len(self._index),)

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)[:, self._index.to(x.device)]

    def adjoint(self, y: Tensor) -> Tensor:
        x = y.new_zeros(len(y), self.mask.numel())
        return x.index_copy(1, self._index.to(y.device), y).reshape(-1, *self.event)


def random_mask(event: Sequence[int], missing: float = 0.9, seed: int = 0) -> Tensor:
    """(H, W) bool: all but a share ``missing`` of the pixels are known, the same of every channel; exactly that many, drawn by ``seed``."""
    _, height, width = image_event(event)
    share = as_float(missing)
    if share is None or not 0 <= share < 1:
        raise ValueError(f"missing={missing!r}; expected a share 0 <= missing < 1 of the pixels, as in missing=0.9.")
    known = torch.zeros(height * width, dtype=torch.bool)
    known[torch.from_numpy(draws(seed).permutation(height * width))[: max(1, round((1 - missing) * height * width))]] = True
    return known.reshape(height, width)


def box_mask(event: Sequence[int], x0: int, y0: int, x1: int, y1: int) -> Tensor:
    """(H, W) bool: all pixels are known but those of columns x0 <= x < x1 and rows y0 <= y < y1, counted from the upper left."""
    _, height, width = image_event(event)
    corners = [integer(name, value, 0, most) for name, value, most in (("x0", x0, width), ("y0", y0, height), ("x1", x1, width), ("y1", y1, height))]
    if not (corners[0] < corners[2] and corners[1] < corners[3]):
        raise ValueError(f"the box {x0},{y0},{x1},{y1} is empty; expected x0 < x1 <= {width} and y0 < y1 <= {height}.")
    known = torch.ones(height, width, dtype=torch.bool)
    known[corners[1] : corners[3], corners[0] : corners[2]] = False
    return known


def _zero_one(mask: Tensor, event: tuple[int, ...]) -> Tensor:
    """A mask as bool of the shape ``event``."""
    try:
        whole_mask = mask.expand(event)
    except RuntimeError:
        raise ValueError(f"mask has shape {tuple(mask.shape)}; expected {event}, or one that broadcasts to it: {event[-2:]} for all channels alike.") from None
    if not bool(((whole_mask == 0) | (whole_mask == 1)).all()):
        values = mask[mask.isfinite()].unique() if mask.isfinite().any() else mask.flatten()[:1]
        shown = ", ".join(f"{value:g}" for value in values[:4].tolist())
        missing = " and values that are not finite" if not mask.isfinite().all() and len(values) > 1 else ""
        middle = f": mask > {(values[0] + values[-1]).item() / 2:g}" if len(values) > 1 and not missing else ""
        raise ValueError(f"mask holds {shown}{', ...' if len(values) > 4 else ''}{missing}; expected 0 and 1 alone, 1 where the pixel is known{middle}")
    if not bool(whole_mask.any()):
        raise ValueError("mask is 0 everywhere, so that nothing is known; expected 1 where a pixel is known: 1 - mask, or m.sample(n) for images from nothing.")
    return whole_mask.bool()
