"""Half and double resolution, by repetition and averaging or by a finite impulse response filter.  [Karras et al. 2020, appendix B; Zhang 2019]

Filtering is convolution with the outer product of the taps k, normalised to sum 1, over images that are zero outside:

    up      zeros between the pixels, then the filter, times 4
    down    the filter, then every second pixel

in plain PyTorch: both are convolutions of each channel by itself.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Taps = Sequence[float] | None  # four numbers > 0, or None for repetition and averaging


def double(x: Tensor, taps: Taps) -> Tensor:
    """(B, C, H, W) -> (B, C, 2 H, 2 W)."""
    if taps is None:
        return F.interpolate(x, scale_factor=2.0, mode="nearest")
    return F.conv_transpose2d(x, _kernel(x, taps, 4.0), stride=2, padding=1, groups=x.shape[1])


def halve(x: Tensor, taps: Taps) -> Tensor:
    """(B, C, 2 H, 2 W) -> (B, C, H, W)."""
    if taps is None:
        return F.avg_pool2d(x, 2)
    return F.conv2d(x, _kernel(x, taps[::-1], 1.0), stride=2, padding=1, groups=x.shape[1])


class UpConvolution(nn.Module):
    """A 3x3 convolution that doubles the resolution: of what is repeated, or, with taps, of the image among zeros, and then filtered."""

    def __init__(self, inputs: int, outputs: int, taps: Taps) -> None:
        super().__init__()
        self.taps = taps
        self.conv = nn.Conv2d(inputs, outputs, 3, padding=1)

    def forward(self, x: Tensor, embedding: Tensor | None = None) -> Tensor:
        if self.taps is None:
            return self.conv(double(x, None))
        weight = self.conv.weight.flip(2, 3).transpose(0, 1)
        return _filtered(F.conv_transpose2d(x, weight, stride=2), self.taps, 4.0, padding=1) + _column(self.conv.bias)


class DownConvolution(nn.Module):
    """A 3x3 convolution that halves the resolution; with taps, of the filtered image."""

    def __init__(self, inputs: int, outputs: int, taps: Taps) -> None:
        super().__init__()
        self.taps = taps
        self.conv = nn.Conv2d(inputs, outputs, 3, stride=2)

    def forward(self, x: Tensor, embedding: Tensor | None = None) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)) if self.taps is None else _filtered(x, self.taps, 1.0, padding=2))


def _filtered(x: Tensor, taps: Sequence[float], gain: float, padding: int) -> Tensor:
    return F.conv2d(x, _kernel(x, taps[::-1], gain), padding=padding, groups=x.shape[1])


def _kernel(x: Tensor, taps: Sequence[float], gain: float) -> Tensor:
    """(C, 1, 4, 4): the same for each channel, made where x is, without a copy from the host."""
    row = torch.stack([x.new_full((), tap * gain**0.5 / sum(taps)) for tap in taps])
    return (row[:, None] * row).expand(x.shape[1], 1, len(taps), len(taps))


def _column(bias: Tensor | None) -> Tensor:
    assert bias is not None
    return bias[:, None, None]
