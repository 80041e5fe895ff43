"""NCSN++ and DDPM++, and DDPM as their simplest case.  [Song et al. 2021, section 4 and appendix H; Ho et al. 2020, appendix B]

A U-Net whose blocks are told the noise level.  What may be chosen:

    block        "biggan": blocks change the resolution themselves;  "ddpm": convolutions between the levels do
    fir_taps     filter of every change of resolution, as in StyleGAN2; None: repetition and averaging
    progressive_input    "none";  "input_skip": each level gets the image in its own resolution, by a 1x1 convolution that is added or
                 concatenated (``combine``);  "residual": by 3x3 convolutions from level to level, averaged with the features
    progressive  "none": the finest level returns the image;  "output_skip": the sum of what each level returns, in full resolution;
                 "residual": each level adds to the features of the next
    embedding    "positional": of a number of up to about 1000;  "fourier": of the logarithm of a noise level
    classes      the embedding of the label is added to that of the time, before its last nonlinearity.  [Dhariwal & Nichol 2021, section 3]

NCSN++ is biggan + FIR + residual input, DDPM++ biggan alone, and DDPM ddpm without rescaled skip paths.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .._errors import unknown
from .execution import Block
from .options import LabelEmbedding, check_classes, check_images, check_integers, check_multipliers, check_positive, check_time, within
from .resampling import DownConvolution, Taps, UpConvolution, double, halve
from .unet import Attention, FourierFeatures, Norm

LARGEST_SIDE = 1 << 14
_HALF = math.sqrt(0.5)  # keeps the variance of a sum of two independent branches
_LONGEST = 10_000  # period of the slowest positional feature, in units of 2 pi
_FAINT = 0.1  # variance of the weights within attention, in units of the others'


class Style(NamedTuple):
    """What all blocks of a network have in common."""

    block: str
    taps: Taps
    rescale: float
    dropout: float
    embedding: int | None  # features; None for blocks that are not told the noise level
    groups: Callable[[int], int]

    def norm(self, channels: int) -> Norm:
        groups = self.groups(channels)
        if channels % groups:
            raise ValueError(f"width and multipliers lead to {channels} features; expected multiples of the {groups} groups of their normalisation: width=128.")
        return Norm(channels, groups, 1e-6)

    def attention(self, channels: int) -> Attention:
        attention = Attention(channels, head=channels, norm=self.norm(channels), rescale=self.rescale)
        for chunk in attention.qkv.weight.chunk(3):
            nn.init.xavier_uniform_(chunk, math.sqrt(_FAINT))
        return attention

    def down(self, channels: int) -> nn.Module:
        return DownConvolution(channels, channels, self.taps) if self.block == "ddpm" else ResidualBlock(channels, channels, self, halve)

    def up(self, channels: int) -> nn.Module:
        return UpConvolution(channels, channels, self.taps) if self.block == "ddpm" else ResidualBlock(channels, channels, self, double)

    def head(self, channels: int, outputs: int) -> nn.Sequential:
        return nn.Sequential(self.norm(channels), nn.SiLU(), nn.Conv2d(channels, outputs, 3, padding=1))


class ResidualBlock(Block):
    """Two 3x3 convolutions with the time embedding added between them; the biggan block may change the resolution before the first."""

    def __init__(self, inputs: int, outputs: int, style: Style, resample: Callable[[Tensor, Taps], Tensor] | None = None) -> None:
        super().__init__()
        self.block, self.resample, self.taps = style.block, resample, style.taps
        self.dropout, self.rescale = style.dropout, style.rescale
        self.norm1 = style.norm(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.time = nn.Linear(style.embedding, outputs) if style.embedding else None
        self.norm2 = style.norm(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.skip = nn.Conv2d(inputs, outputs, 1) if inputs != outputs or resample else nn.Identity()

    def forward(self, x: Tensor, embedding: Tensor | None) -> Tensor:
        h = F.silu(self.norm1(x))
        if self.resample is not None:
            x, h = self.resample(x, self.taps), self.resample(h, self.taps)
        h = self.conv1(h)
        if self.time is not None:
            h = h + self.time(embedding)[:, :, None, None]
        h = F.dropout(F.silu(self.norm2(h)), self.dropout, self.training)
        return (self.skip(x) + self.conv2(h)) * self.rescale


class DownLevel(nn.Module):
    """The blocks of one resolution on the way down, and the step to the next with the image in its resolution."""

    def __init__(self, inputs: int, outputs: int, blocks: int, attends: bool, style: Style) -> None:
        super().__init__()
        self.rescale, self.taps = style.rescale, style.taps
        self.blocks = nn.ModuleList(ResidualBlock(outputs if i else inputs, outputs, style) for i in range(blocks))
        self.attention = nn.ModuleList(style.attention(outputs) if attends else nn.Identity() for _ in range(blocks))
        self.down: nn.Module | None = None
        self.pyramid: nn.Module | None = None  # of a residual input
        self.combine: nn.Module | None = None  # of an input skip
        self.concatenates = False
        self.features = [outputs] * blocks  # of what ``forward`` returns

    def descend(self, image: int, progressive_input: str, concatenates: bool, style: Style) -> int:
        """Add the step to the next level; ``image`` and the result are channels of the image on its way along."""
        features = self.features[-1]
        self.down = style.down(features)
        if progressive_input == "residual":
            self.pyramid = DownConvolution(image, features, style.taps)
            image = features
        elif progressive_input == "input_skip":
            self.combine, self.concatenates = nn.Conv2d(image, features, 1), concatenates
        self.features.append(features * (2 if self.concatenates else 1))
        return image

    def forward(self, h: Tensor, image: Tensor, embedding: Tensor | None) -> tuple[list[Tensor], Tensor]:
        """What each block and the step down return, and the image in the resolution that is reached."""
        passed = []
        for block, attention in zip(self.blocks, self.attention, strict=True):
            h = attention(block(h, embedding))
            passed.append(h)
        if self.down is None:
            return passed, image
        h = self.down(h, embedding)
        if self.pyramid is not None:
            h = image = (self.pyramid(image) + h) * self.rescale
        elif self.combine is not None:
            image = halve(image, self.taps)
            told = self.combine(image)
            h = torch.cat([told, h], 1) if self.concatenates else told + h
        return [*passed, h], image


class UpLevel(nn.Module):
    """The blocks of one resolution on the way up, what they give to the image, and the step to the next."""

    def __init__(self, inputs: int, outputs: int, skips: Sequence[int], attends: bool, style: Style) -> None:
        super().__init__()
        self.rescale, self.taps = style.rescale, style.taps
        self.blocks = nn.ModuleList(ResidualBlock((outputs if i else inputs) + skip, outputs, style) for i, skip in enumerate(skips))
        self.attention = style.attention(outputs) if attends else nn.Identity()
        self.pyramid: nn.Module | None = None  # of a residual output
        self.head: nn.Module | None = None
        self.up: nn.Module | None = None

    def forward(self, h: Tensor, skips: list[Tensor], image: Tensor | None, embedding: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The features and the progressive output so far; takes its skips from the end of the list."""
        for block in self.blocks:
            h = block(torch.cat([h, skips.pop()], 1), embedding)
        h = self.attention(h)
        if self.pyramid is not None:
            h = image = (self.pyramid(image) + h) * self.rescale
        elif self.head is not None:
            image = self.head(h) if image is None else double(image, self.taps) + self.head(h)
        return h if self.up is None else self.up(h, embedding), image


class NCSNpp(nn.Module):
    """(x, time) -> output shaped like x; with classes (x, time, labels).

    Arguments:
        channels: of the image, 1..64.
        image_size: side of the images it is trained on, which says on which levels there is attention; others are taken too.
        width: features at the finest level, 4..1024, a multiple of 4.
        multipliers: features of each level, in units of ``width``, 1..64 at each of 1..8 levels; every level halves the resolution.
        blocks: residual blocks a level on the way down, 1..16 (one more on the way up).
        attention: resolutions with self-attention, out of image_size / 2**level; the coarsest level has it in its middle anyway.
        block, fir_taps, progressive_input, progressive, combine, embedding: see the top of this file; ``combine`` is "sum" or "cat", taps
            are four numbers > 0.
        fourier_scale: standard deviation of the frequencies of the fourier embedding, in cycles per unit of ln sigma.
        conditional: whether the blocks are told the noise level.
        skip_rescale: divide each sum of two branches by sqrt 2.
        scale_by_sigma: divide the output by ``time``, which must be the noise level then.
        centered: the data lie in [-1, 1]; if not in [0, 1], from where the network takes them to [-1, 1].
        dropout: share of features that training leaves out, 0 <= dropout < 1.
        classes: number of classes, 0 for none, up to 100,000; the label ``classes`` is the null label.  The published networks know none.

    Raises:
        ValueError: an option out of range, or classes for blocks that are told nothing; when called, an image of other channels or of a side that is
            no multiple of 2**(levels - 1).
    """

    def __init__(
        self,
        channels: int = 3,
        image_size: int = 32,
        width: int = 128,
        multipliers: Sequence[int] = (1, 2, 2, 2),
        blocks: int = 4,
        attention: Sequence[int] = (16,),
        block: str = "biggan",
        fir_taps: Taps = (1, 3, 3, 1),
        progressive_input: str = "residual",
        progressive: str = "none",
        combine: str = "sum",
        embedding: str = "fourier",
        fourier_scale: float = 16.0,
        conditional: bool = True,
        skip_rescale: bool = True,
        scale_by_sigma: bool = True,
        centered: bool = False,
        dropout: float = 0.0,
        classes: int = 0,
    ) -> None:
        super().__init__()
        check_integers({"channels": (channels, 64), "image_size": (image_size, LARGEST_SIDE), "width": (width, 1024), "blocks": (blocks, 16)})
        check_multipliers(multipliers, 64)
        if width % 4:
            raise ValueError(f"width={width}; expected a multiple of 4, as in width={width + -width % 4}.")
        _check_attention(attention)
        _check_taps(fir_taps)
        check_positive("fourier_scale", fourier_scale)
        _check_choices({"block": block, "progressive_input": progressive_input, "progressive": progressive, "combine": combine, "embedding": embedding})
        _check_switches({"conditional": conditional, "skip_rescale": skip_rescale, "scale_by_sigma": scale_by_sigma, "centered": centered})
        if isinstance(dropout, bool) or not isinstance(dropout, int | float) or not 0 <= dropout < 1:
            raise ValueError(f"dropout={dropout!r}; expected a number, 0 <= dropout < 1, as in dropout=0.1.")
        check_classes(classes, least=0)
        if classes and not conditional:
            raise ValueError(f"classes={classes} and conditional=False: blocks that are not told the noise level are told no class either; expected conditional=True.")

        self.channels, self.classes, self.multiple = channels, classes, 2 ** (len(multipliers) - 1)
        self.width, self.scale_by_sigma, self.centered = width, scale_by_sigma, centered
        style = Style(block, fir_taps, _HALF if skip_rescale else 1.0, dropout, 4 * width if conditional else None, self._groups)

        self.fourier = FourierFeatures(2 * width, fourier_scale) if embedding == "fourier" else None
        inputs = 2 * width if embedding == "fourier" else width
        self.embed = nn.Sequential(nn.Linear(inputs, 4 * width), nn.SiLU(), nn.Linear(4 * width, 4 * width), nn.SiLU()) if conditional else None
        self.stem = nn.Conv2d(channels, width, 3, padding=1)

        self.down = nn.ModuleList()
        skips, image = [width], channels
        for level, multiplier in enumerate(multipliers):
            attends = image_size // 2**level in attention
            down = DownLevel(skips[-1], width * multiplier, blocks, attends, style)
            if level + 1 < len(multipliers):
                image = down.descend(image, progressive_input, combine == "cat", style)
            self.down.append(down)
            skips += down.features

        features = skips[-1]
        self.middle = nn.ModuleList([ResidualBlock(features, features, style), style.attention(features), ResidualBlock(features, features, style)])

        self.up = nn.ModuleList()
        for level, multiplier in reversed(list(enumerate(multipliers))):
            taken, before = [skips.pop() for _ in range(blocks + 1)], features
            features = width * multiplier
            up = UpLevel(before, features, taken, image_size // 2**level in attention, style)
            if progressive == "output_skip":
                up.head = style.head(features, channels)
            elif progressive == "residual" and level + 1 == len(multipliers):
                up.head = style.head(features, features)
            elif progressive == "residual":
                up.pyramid = UpConvolution(before, features, fir_taps)
            up.up = style.up(features) if level else None
            self.up.append(up)

        self.head = style.head(features, channels) if progressive != "output_skip" else None
        _initialise(self)
        self.labels = LabelEmbedding(classes, 4 * width) if classes else None

    def forward(self, x: Tensor, time: Tensor, labels: Tensor | None = None) -> Tensor:
        """The output for images x, (B, channels, H, W), times (B,) and, of a network with classes, labels (B,) int64; None is the null label."""
        check_images(self, x, self.channels, self.multiple)
        check_time(x, time)
        embedding = self._embedding(x, time, labels)
        image = (x if self.centered else 2 * x - 1).contiguous(memory_format=torch.channels_last)
        h = self.stem(image)
        skips = [h]
        for level in self.down:
            passed, image = level(skips[-1], image, embedding)
            skips += passed
        first, attention, second = self.middle
        h = second(attention(first(skips[-1], embedding)), embedding)
        drawn: Tensor | None = None
        for level in self.up:
            h, drawn = level(h, skips, drawn, embedding)
        output = drawn if self.head is None else self.head(h)
        assert output is not None
        return (output / time[:, None, None, None] if self.scale_by_sigma else output).contiguous()

    @staticmethod
    def _groups(channels: int) -> int:
        """Groups of the normalisation of so many features."""
        return min(channels // 4, 32)

    def _embedding(self, x: Tensor, time: Tensor, labels: Tensor | None) -> Tensor | None:
        if self.embed is None:
            return None
        features = self._features(time).to(x.dtype)
        if self.labels is None:
            return self.embed(features)
        return self.embed[3](self.embed[:3](features) + self.labels.of(labels, len(x)))

    def _features(self, time: Tensor) -> Tensor:
        """(B, features) of the times, in float32 at least: half precision would not tell neighbouring noise levels apart."""
        time = time.to(torch.promote_types(time.dtype, torch.float32))
        return positional_features(time, self.width) if self.fourier is None else self.fourier(time.log())


class DDPM(NCSNpp):
    """(x, time) or (x, time, labels) -> output shaped like x: the U-Net of Ho et al. 2020, whose ``time`` counts from 0 to about 1000.

    Arguments:
        channels, image_size, multipliers, blocks, attention, centered, dropout, classes: as of :class:`NCSNpp`.
        width: features at the finest level, 32..1024, a multiple of 32, the number of groups of every normalisation.

    Raises:
        ValueError: as :class:`NCSNpp`.
    """

    def __init__(
        self,
        channels: int = 3,
        image_size: int = 32,
        width: int = 128,
        multipliers: Sequence[int] = (1, 2, 2, 2),
        blocks: int = 2,
        attention: Sequence[int] = (16,),
        centered: bool = True,
        dropout: float = 0.0,
        classes: int = 0,
    ) -> None:
        super().__init__(
            channels, image_size, width, multipliers, blocks, attention, "ddpm", None, "none", "none", "sum", "positional",
            skip_rescale=False, scale_by_sigma=False, centered=centered, dropout=dropout, classes=classes,
        )  # fmt: skip

    @staticmethod
    def _groups(channels: int) -> int:
        return 32


def positional_features(time: Tensor, count: int) -> Tensor:
    """(B,) -> (B, count): sin and cos of time / 10000^(i / (count/2 - 1)), i = 0..count/2 - 1.  [Vaswani et al. 2017, section 3.5; Ho et al. 2020]"""
    half = count // 2
    frequencies = torch.exp(torch.arange(half, dtype=time.dtype, device=time.device) * -(math.log(_LONGEST) / (half - 1)))
    angle = time[:, None] * frequencies
    return torch.cat([angle.sin(), angle.cos()], 1)


def _initialise(network: NCSNpp) -> None:
    """Weights of variance 2/(inputs + outputs), no biases, and branches and heads that start at zero.  [Ho et al. 2020]"""
    faint = {id(module.qkv) for module in network.modules() if isinstance(module, Attention)}  # have their weights already
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            if id(module) not in faint:
                nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)  # type: ignore[arg-type]
    heads = [module.head for module in (network, *network.up) if module.head is not None and module.head[-1].out_channels == network.channels]
    branches = [m.conv2 if isinstance(m, ResidualBlock) else m.out for m in network.modules() if isinstance(m, ResidualBlock | Attention)]
    for last in [*branches, *(head[-1] for head in heads)]:
        nn.init.zeros_(last.weight)


_CHOICES = {
    "block": ("biggan", "ddpm"),
    "progressive_input": ("none", "input_skip", "residual"),
    "progressive": ("none", "output_skip", "residual"),
    "combine": ("sum", "cat"),
    "embedding": ("fourier", "positional"),
}


def _check_choices(given: dict[str, object]) -> None:
    for name, value in given.items():
        if value not in _CHOICES[name]:
            raise ValueError(unknown(name, value, _CHOICES[name]))


def _check_switches(given: dict[str, object]) -> None:
    for name, value in given.items():
        if not isinstance(value, bool):
            raise ValueError(f"{name}={value!r}; expected True or False.")


def _check_attention(attention: object) -> None:
    if not isinstance(attention, Sequence) or len(attention) > 8 or not all(within(resolution, LARGEST_SIDE) for resolution in attention):
        raise ValueError(f"attention={attention!r}; expected up to 8 integers from 1 to {LARGEST_SIDE}, as in attention=[16].")


def _check_taps(taps: object) -> None:
    if taps is None:
        return
    if not isinstance(taps, Sequence) or len(taps) != 4:
        raise ValueError(f"fir_taps={taps!r}; expected None or four numbers > 0, as in fir_taps=[1, 3, 3, 1].")
    for tap in taps:
        check_positive("fir_taps", tap)
