"""A diffusion transformer with adaLN-zero.  [Peebles & Xie 2023, figure 3 and section 3.2]

The image is cut into patches, each a token with a fixed place, and each block is told time and class by the scales, shifts and gates of its
branches.  The gates start at zero, so that every block starts as the identity and the network as 0.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .execution import Block
from .options import LabelEmbedding, check_classes, check_images, check_integers, check_positive, check_time, wide
from .unet import FourierFeatures


class DiT(nn.Module):
    """(x, time) -> output shaped like x; with classes (x, time, labels).

    Arguments:
        channels: of the image, 1..64.
        width: features of a token, 8..4096, a multiple of 4 and of ``heads``.
        blocks: transformer blocks, 1..64.
        heads: of the attention, 1..64.
        patch: side of a token's patch, 1..64; the image's sides must be multiples of it.
        fourier_scale: standard deviation of the frequencies of the time embedding, in cycles per unit of ``time``.
        classes: number of classes, 0 for none; the label ``classes`` is the null label.

    The published sizes (width, blocks, heads): S 384, 12, 6;  B 768, 12, 12;  L 1024, 24, 16;  XL 1152, 28, 16.  [Peebles & Xie 2023, table 1]

    Raises:
        ValueError: an option out of range; when called, an image of other channels or of a side that is no multiple of ``patch``.
    """

    def __init__(
        self, channels: int = 1, width: int = 64, blocks: int = 4, heads: int = 4, patch: int = 2, fourier_scale: float = 1.0, classes: int = 0
    ) -> None:
        super().__init__()
        check_integers({"channels": (channels, 64), "width": (width, 4096), "blocks": (blocks, 64), "heads": (heads, 64), "patch": (patch, 64)})
        if width % 4 or width % heads:
            raise ValueError(f"width={width}; expected a multiple of 4 and of heads={heads}, as in width={math.lcm(4, heads) * max(1, width // math.lcm(4, heads))}.")
        check_positive("fourier_scale", fourier_scale)
        check_classes(classes, least=0)
        self.channels, self.patch, self.classes = channels, patch, classes
        self.embed = nn.Sequential(FourierFeatures(256, fourier_scale), nn.Linear(256, width), nn.SiLU(), nn.Linear(width, width))
        self.stem = nn.Linear(channels * patch**2, width)
        self.blocks = nn.ModuleList([TransformerBlock(width, heads) for _ in range(blocks)])
        self.norm = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.modulation, self.head = _zeroed(nn.Linear(width, 2 * width)), _zeroed(nn.Linear(width, channels * patch**2))
        self.labels = LabelEmbedding(classes, width) if classes else None

    def forward(self, x: Tensor, time: Tensor, labels: Tensor | None = None) -> Tensor:
        """The output for images x, (B, channels, H, W), times (B,) and, of a network with classes, labels (B,) int64; None is the null label."""
        check_images(self, x, self.channels, self.patch)
        check_time(x, time)
        embedding = self.embed(wide(time, x))
        if self.labels is not None:
            embedding = embedding + self.labels.of(labels, len(x))
        embedding = F.silu(embedding)
        rows, columns = (side // self.patch for side in x.shape[2:])
        h = self.stem(patches(x, self.patch)) + places(rows, columns, self.stem.out_features).to(x)
        for block in self.blocks:
            h = block(h, embedding)
        scale, shift = self.modulation(embedding)[:, None].chunk(2, -1)
        return unpatched(self.head(self.norm(h) * (1 + scale) + shift), self.patch, rows, columns)


class TransformerBlock(Block):
    """h + gate1 attention(modulated h), then the same with a perceptron of four times the width."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.perceptron = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU("tanh"), nn.Linear(4 * width, width))
        self.modulation = _zeroed(nn.Linear(width, 6 * width))

    def forward(self, h: Tensor, embedding: Tensor) -> Tensor:
        scale1, shift1, gate1, scale2, shift2, gate2 = self.modulation(embedding)[:, None].chunk(6, -1)
        h = h + gate1 * self._attended(self.norm(h) * (1 + scale1) + shift1)
        return h + gate2 * self.perceptron(self.norm(h) * (1 + scale2) + shift2)

    def _attended(self, h: Tensor) -> Tensor:
        query, key, value = self.qkv(h).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.out(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))


def patches(x: Tensor, side: int) -> Tensor:
    """Images (B, C, H, W) -> tokens (B, H W / side^2, C side^2), row by row."""
    return F.pixel_unshuffle(x, side).flatten(2).transpose(1, 2)


def unpatched(tokens: Tensor, side: int, rows: int, columns: int) -> Tensor:
    """The images that :func:`patches` cut."""
    return F.pixel_shuffle(tokens.transpose(1, 2).unflatten(2, (rows, columns)), side).contiguous()


def places(rows: int, columns: int, width: int) -> Tensor:
    """(rows columns, width) fixed embedding of each token's place: cos and sin of row and column at frequencies from 1 to 1e-4.  [Vaswani et al. 2017, section 3.5]"""
    frequencies = 1e-4 ** (torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    row, column = (torch.arange(count, dtype=torch.float64)[:, None] * frequencies for count in (rows, columns))
    both = [angle.cos() for angle in (row, column)] + [angle.sin() for angle in (row, column)]
    grid = [both[0][:, None], both[1][None], both[2][:, None], both[3][None]]
    return torch.cat([part.expand(rows, columns, -1) for part in grid], -1).flatten(0, 1)


def _zeroed(module: nn.Linear) -> nn.Linear:
    nn.init.zeros_(module.weight)
    nn.init.zeros_(module.bias)
    return module
