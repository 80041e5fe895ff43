"""A compact U-Net of the DDPM++ / NCSN++ family.  [Song et al. 2021, appendix H; Karras et al. 2022, appendix F]

BigGAN-style residual blocks (group normalisation, scale-and-shift by the time embedding, skip paths rescaled by 1/sqrt 2),
self-attention at the coarsest level, Fourier features of the noise level.  With ``patch = 2`` the image is first folded into
2 x 2 patches (and unfolded at the end), which saves the finest and dearest level.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .execution import Block
from .options import LabelEmbedding, check_classes, check_images, check_integers, check_multipliers, check_positive, check_time, wide

_RESCALE = math.sqrt(0.5)  # keeps the variance of a sum of two independent branches


class FourierFeatures(nn.Module):
    """(B,) -> (B, features):  cos and sin of 2 pi f time, f ~ N(0, scale^2) drawn once and stored with the weights."""

    frequencies: Tensor

    def __init__(self, features: int, scale: float) -> None:
        super().__init__()
        self.register_buffer("frequencies", scale * torch.randn(features // 2))

    def forward(self, time: Tensor) -> Tensor:
        angle = time[:, None] * self.frequencies * (2 * math.pi)  # in the order of the published code: its digits at thousands of radians
        return torch.cat([angle.cos(), angle.sin()], 1).to(self.frequencies.dtype)


class Norm(nn.GroupNorm):
    """Group normalisation computed in float32: more accurate in half precision, and on a CPU three times as fast."""

    def __init__(self, channels: int, groups: int = 8, eps: float = 1e-5) -> None:
        super().__init__(groups, channels, eps)

    def forward(self, x: Tensor) -> Tensor:
        return F.group_norm(x.float(), self.num_groups, self.weight.float(), self.bias.float(), self.eps).to(x.dtype)


class ResidualBlock(Block):
    """Two 3x3 convolutions with ``expansion`` times the output's features between them, which the time embedding scales and shifts."""

    def __init__(self, inputs: int, outputs: int, embedding: int, expansion: int = 1) -> None:
        super().__init__()
        hidden = expansion * outputs
        self.norm1 = Norm(inputs)
        self.conv1 = nn.Conv2d(inputs, hidden, 3, padding=1)
        self.modulation = nn.Linear(embedding, 2 * hidden)
        self.norm2 = Norm(hidden)
        self.conv2 = _zeroed(nn.Conv2d(hidden, outputs, 3, padding=1))
        self.skip = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        scale, shift = self.modulation(embedding)[:, :, None, None].chunk(2, 1)
        h = self.conv2(F.silu(self.norm2(h) * (1 + scale) + shift))
        return (self.skip(x) + h) * _RESCALE


class Attention(Block):
    """Self-attention over the pixels of a feature map."""

    def __init__(self, channels: int, head: int = 64, norm: Norm | None = None, rescale: float = _RESCALE) -> None:
        super().__init__()
        self.heads, self.rescale = max(1, channels // head), rescale
        self.norm = Norm(channels) if norm is None else norm
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.out = _zeroed(nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(self.norm(x)).flatten(2).unflatten(1, (3, self.heads, -1)).transpose(-1, -2)
        h = F.scaled_dot_product_attention(*qkv.unbind(1))
        return (x + self.out(h.transpose(-1, -2).reshape(x.shape))) * self.rescale


class Encoder(nn.Module):
    """The way down of a :class:`UNet` and its middle; arguments as there."""

    def __init__(self, channels: int, width: int, multipliers: Sequence[int], blocks: int, patch: int, fourier_scale: float, expansion: int = 1) -> None:
        super().__init__()
        check_integers({"channels": (channels, 64), "width": (width, 1024), "blocks": (blocks, 16), "patch": (patch, 16), "expansion": (expansion, 8)})
        if width % 8:
            raise ValueError(f"width={width}; expected a multiple of 8, the number of groups of the normalisation, as in width={width + -width % 8}.")
        check_multipliers(multipliers)
        check_positive("fourier_scale", fourier_scale)
        embedding, residual = 4 * width, partial(ResidualBlock, embedding=4 * width, expansion=expansion)
        self.channels, self.patch, self.multiple = channels, patch, patch * 2 ** (len(multipliers) - 1)
        self.embed = nn.Sequential(
            FourierFeatures(width, fourier_scale), nn.Linear(width, embedding), nn.SiLU(), nn.Linear(embedding, embedding), nn.SiLU()
        )
        self.stem = nn.Conv2d(channels * patch**2, width, 3, padding=1)

        self.skips = [width]  # features of what each module of the way down returns
        self.down = nn.ModuleList()
        for level, multiplier in enumerate(multipliers):
            if level:
                self.down.append(Downsample(self.skips[-1]))
                self.skips.append(self.skips[-1])
            for _ in range(blocks):
                self.down.append(residual(self.skips[-1], width * multiplier))
                self.skips.append(width * multiplier)

        coarsest = width * multipliers[-1]
        self.middle = nn.ModuleList([residual(coarsest, coarsest), Attention(coarsest), residual(coarsest, coarsest)])

    def encode(self, x: Tensor, embedding: Tensor) -> list[Tensor]:
        """What each module of the way down returns, and last the middle."""
        h = self.stem(F.pixel_unshuffle(x, self.patch).contiguous(memory_format=torch.channels_last))
        passed = [h]
        for module in self.down:
            h = module(h, embedding)
            passed.append(h)
        for module in self.middle:
            h = module(h) if isinstance(module, Attention) else module(h, embedding)
        return [*passed, h]

    def check_input(self, x: Tensor, time: Tensor) -> None:
        """Raises ValueError for images or times that do not fit."""
        check_images(self, x, self.channels, self.multiple)
        check_time(x, time)


class UNet(Encoder):
    """(x, time) -> output shaped like x; with classes (x, time, labels).

    Arguments:
        channels: of the image, 1..64.
        width: features at the finest level, 8..1024, a multiple of 8.
        multipliers: features of each level, in units of ``width``, 1..16 at each of 1..8 levels; every level halves the
            resolution of the one before.
        blocks: residual blocks a level on the way down, 1..16 (one more on the way up).
        patch: side of the patches the image is folded into first, 1..16; the image's sides must be multiples of
            patch * 2**(levels - 1).
        fourier_scale: standard deviation of the frequencies of the time embedding, in cycles per unit of ``time``.
        classes: number of classes of a class-conditional network, 0 for none, up to 100,000.  The label ``classes`` is the null label: of no class.
        expansion: features within a residual block, in units of those that it puts out, 1..8.

    Raises:
        ValueError: an option out of range; when called, an image of other channels or of a side that is no such multiple.
    """

    def __init__(
        self,
        channels: int = 1,
        width: int = 64,
        multipliers: Sequence[int] = (1, 2),
        blocks: int = 1,
        patch: int = 1,
        fourier_scale: float = 1.0,
        classes: int = 0,
        expansion: int = 1,
    ) -> None:
        super().__init__(channels, width, multipliers, blocks, patch, fourier_scale, expansion)
        check_classes(classes, least=0)
        self.classes, embedding, skips = classes, 4 * width, list(self.skips)
        self.up = nn.ModuleList()
        features = skips[-1]
        for level, multiplier in reversed(list(enumerate(multipliers))):
            for _ in range(blocks + 1):
                self.up.append(ResidualBlock(features + skips.pop(), width * multiplier, embedding, expansion))
                features = width * multiplier
            if level:
                self.up.append(Upsample(features))

        self.head = nn.Sequential(Norm(features), nn.SiLU(), _zeroed(nn.Conv2d(features, channels * patch**2, 3, padding=1)))
        self.labels = LabelEmbedding(classes, embedding) if classes else None

    def forward(self, x: Tensor, time: Tensor, labels: Tensor | None = None) -> Tensor:
        """The output for images x, (B, channels, H, W), times (B,) and, of a network with classes, labels (B,) int64; None is the null label."""
        self.check_input(x, time)
        embedding = self._embedding(x, time, labels)
        *skips, h = self.encode(x, embedding)
        for module in self.up:
            h = module(h, embedding) if isinstance(module, Upsample) else module(torch.cat([h, skips.pop()], 1), embedding)
        return F.pixel_shuffle(self.head(h), self.patch).contiguous()

    def _embedding(self, x: Tensor, time: Tensor, labels: Tensor | None) -> Tensor:
        if self.labels is None:
            return self.embed(wide(time, x))
        return self.embed[4](self.embed[:4](wide(time, x)) + self.labels.of(labels, len(x)))


class Downsample(nn.Module):
    """Halves the resolution by a strided convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        return self.conv(x)


class Upsample(nn.Module):
    """Doubles the resolution by repetition and a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


def _zeroed(module: nn.Conv2d) -> nn.Conv2d:
    """A residual branch that starts as the identity."""
    nn.init.zeros_(module.weight)
    nn.init.zeros_(module.bias)  # type: ignore[arg-type]
    return module
