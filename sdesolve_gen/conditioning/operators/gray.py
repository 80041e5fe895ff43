"""Colour images seen in gray."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ._shared import finite, image_event
from .tight import Tight

LUMA = (0.299, 0.587, 0.114)
"""Rec. 601 weights of red, green and blue, which sum to 1."""


class Gray(Tight):
    """y = sum_c w_c x_c, pixel by pixel:  A A^T = |w|^2 I.

    With |w| = 1 the rows are orthonormal, and the projection onto what was measured is the colour decoupling of Song et al. 2021,
    appendix I.2, whose w is (1, 1, 1)/sqrt(3).  ``gray.orthonormal()`` is this operator with its rows scaled to that.

    Arguments:
        event: shape (C, H, W) of one image.
        weights: (C,) w, not all zero; default Rec. 601 luma for C = 3.

    Raises:
        ValueError: weights of another number than the channels, or all zero.
    """

    def __init__(self, event: Sequence[int], weights: Sequence[float] = LUMA) -> None:
        self.event = channels, height, width = image_event(event)
        self.measured = (1, height, width)
        self.weights = finite("weights", weights)
        self.length = float(self.weights.norm())
        if self.weights.shape != (channels,) or self.length == 0:
            told = ", ".join(f"{weight:g}" for weight in self.weights.flatten().tolist())
            if weights is LUMA:
                raise ValueError(f"Gray is the luminance of 3 channels, and images {self.event} have {channels}; expected images of 3, or weights=..., one for each channel.")
            raise ValueError(f"weights=({told}) for {channels} channels; expected one for each, not all zero, as in weights={LUMA} for RGB.")

    def orthonormal(self) -> Gray:
        """The same rows, of length 1; its measurement is y / |w|, with noise as much smaller."""
        return Gray(self.event, (self.weights / self.length).tolist())

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("c,bchw->bhw", self.weights.to(x), x)[:, None]

    def adjoint(self, y: Tensor) -> Tensor:
        return self.weights.to(y)[:, None, None] * y
