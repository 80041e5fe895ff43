"""The score network of Song's tutorial: a small U-Net of plain convolutions that is told the time at every level.  [Song 2021, "Generative modeling
by estimating gradients of the data distribution", the tutorial's notebook]

The tutorial divides the output by the standard deviation of p(x_t | x_0), which a network of itself does not know.  Here that division belongs to the
parameterisation: ``predicts="epsilon"`` is score = -output/sigma, so a network of the tutorial, whose output is +sigma score before the division,
is ``lambda x, t: -network(x, t)``, or its last convolution with the other sign.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .execution import Block
from .options import check_images, check_integers, check_positive, check_time, wide, within
from .unet import FourierFeatures

SMALLEST = 17  # pixels of a side: what is left of one after the convolutions is at least one


class ScoreNet(nn.Module):
    """(x, time) -> output shaped like x; for ``predicts="epsilon"``, see the top of this file.

    Arguments:
        channels: of the image, 1..64.
        widths: features of the four levels, each a multiple of 32 up to 1024.
        embedding: features of the time embedding, 2..4096, an even number.
        fourier_scale: standard deviation of the frequencies, in cycles per unit of ``time``; 30 for times from 0 to 1, as published.

    Raises:
        ValueError: an option out of range; when called, an image of other channels or with a side below 17.
    """

    def __init__(self, channels: int = 1, widths: Sequence[int] = (32, 64, 128, 256), embedding: int = 256, fourier_scale: float = 30.0) -> None:
        super().__init__()
        _check_widths(widths)
        check_integers({"channels": (channels, 64), "embedding": (embedding, 4096)})
        if embedding % 2:
            raise ValueError(f"embedding={embedding}; expected an even number, of cosines and sines, as in embedding={embedding + 1}.")
        check_positive("fourier_scale", fourier_scale)
        self.channels = channels
        self.embed = nn.Sequential(FourierFeatures(embedding, fourier_scale), nn.Linear(embedding, embedding), nn.SiLU())
        downward = [(channels, widths[0], 1), *((a, b, 2) for a, b in itertools.pairwise(widths))]
        self.down = nn.ModuleList([_Level(nn.Conv2d(a, b, 3, stride, bias=False), embedding, 32 if i else 4) for i, (a, b, stride) in enumerate(downward)])
        upward = [(widths[3], widths[2]), (2 * widths[2], widths[1]), (2 * widths[1], widths[0])]
        self.up = nn.ModuleList([_Level(nn.ConvTranspose2d(a, b, 3, 2, bias=False), embedding, 32) for a, b in upward])
        self.head = nn.ConvTranspose2d(2 * widths[0], channels, 3)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """The output for images x, (B, channels, H, W), and times (B,)."""
        check_images(self, x, self.channels, least=SMALLEST)
        check_time(x, time)
        embedding = self.embed(wide(time, x))
        h, passed = x, []
        for level in self.down:
            h = level(h, embedding)
            passed.append(h)
        passed.pop()
        for level in self.up:
            skip = passed.pop()
            h = torch.cat([level(h, embedding, skip.shape[2:]), skip], 1)
        return self.head(h)


class _Level(Block):
    """A convolution, the time added to its channels, group normalisation and SiLU."""

    def __init__(self, conv: nn.Conv2d | nn.ConvTranspose2d, embedding: int, groups: int) -> None:
        super().__init__()
        self.conv, self.dense = conv, nn.Linear(embedding, conv.out_channels)
        self.norm = nn.GroupNorm(min(groups, conv.out_channels), conv.out_channels)

    def forward(self, x: Tensor, embedding: Tensor, size: torch.Size | None = None) -> Tensor:
        h = self.conv(x) if size is None else self.conv(x, output_size=size)
        return F.silu(self.norm(h + self.dense(embedding)[:, :, None, None]))


def _check_widths(widths: object) -> None:
    if not isinstance(widths, Sequence) or len(widths) != 4 or not all(within(w, 1024) and w % 32 == 0 for w in widths):
        raise ValueError(f"widths={widths!r}; expected four multiples of 32 up to 1024, as in widths=[32, 64, 128, 256].")
