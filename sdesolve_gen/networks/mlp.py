"""A residual perceptron for points."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from .execution import Block
from .options import LabelEmbedding, check_classes, check_integers, check_positive, check_time, wide
from .unet import FourierFeatures


class MLP(nn.Module):
    """(x, time) -> output shaped like x, for points x, (B, dimensions); with classes (x, time, labels).

    Residual blocks of two linear maps, scaled and shifted between them by the time embedding, and a last map that starts at zero.

    Arguments:
        dimensions: numbers of a point, 1..65,536.
        width: features, 1..8192.
        blocks: number of residual blocks, 1..64.
        fourier_scale: standard deviation of the frequencies of the time embedding, in cycles per unit of ``time``.
        classes: number of classes, 0 for none; the label ``classes`` is the null label.

    Raises:
        ValueError: an option out of range; when called, points of other dimensions.
    """

    def __init__(self, dimensions: int = 2, width: int = 128, blocks: int = 3, fourier_scale: float = 1.0, classes: int = 0) -> None:
        super().__init__()
        check_integers({"dimensions": (dimensions, 1 << 16), "width": (width, 8192), "blocks": (blocks, 64)})
        check_positive("fourier_scale", fourier_scale)
        check_classes(classes, least=0)
        self.dimensions, self.classes = dimensions, classes
        self.embed = nn.Sequential(FourierFeatures(64, fourier_scale), nn.Linear(64, width), nn.SiLU(), nn.Linear(width, width))
        self.stem = nn.Linear(dimensions, width)
        self.blocks = nn.ModuleList([_ResidualBlock(width) for _ in range(blocks)])
        self.head = nn.Linear(width, dimensions)
        self.labels = LabelEmbedding(classes, width) if classes else None
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, x: Tensor, time: Tensor, labels: Tensor | None = None) -> Tensor:
        """The output for points x, (B, dimensions), times (B,) and, of a network with classes, labels (B,) int64; None is the null label."""
        if x.dim() != 2 or x.shape[1] != self.dimensions:
            raise ValueError(f"x has shape {tuple(x.shape)}; expected (B, {self.dimensions}): build the MLP with dimensions={x[0].numel()}.")
        check_time(x, time)
        embedding = self.embed(wide(time, x))
        if self.labels is not None:
            embedding = embedding + self.labels.of(labels, len(x))
        h = self.stem(x)
        for block in self.blocks:
            h = block(h, F.silu(embedding))
        return self.head(F.silu(h))


class _ResidualBlock(Block):
    """h + second(silu(first(silu(h)) (1 + scale) + shift))."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.first, self.second = nn.Linear(width, width), nn.Linear(width, width)
        self.modulation = nn.Linear(width, 2 * width)

    def forward(self, h: Tensor, embedding: Tensor) -> Tensor:
        scale, shift = self.modulation(embedding).chunk(2, 1)
        return h + self.second(F.silu(self.first(F.silu(self.norm(h))) * (1 + scale) + shift))
