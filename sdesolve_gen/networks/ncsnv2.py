"""NCSNv2: a RefineNet that is told no time at all.  [Song & Ermon 2020, appendix A; Lin et al. 2017 (RefineNet)]

Its output is that of one function at every noise level, divided by sigma:  score = f(x)/sigma.  Here that division belongs to the parameterisation,
``predicts="epsilon"``, which is score = -output/sigma: the output learns -f, and a published network is ``lambda x, t: -f(x)``.
``time`` may be anything, as the network does not look at it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .execution import Block
from .options import check_images, check_integers, check_time


class NCSNv2(nn.Module):
    """(x, time) -> output shaped like x; for ``predicts="epsilon"``, see the top of this file.

    Four levels of residual blocks, of which the last two are dilated instead of narrowed, and four RefineNet blocks back up.  The published
    network for 32 x 32 and 64 x 64 images has width 128.

    Arguments:
        channels: of the image, 1..64.
        width: features of the first level, 1..1024; the others have twice as many.

    Raises:
        ValueError: an option out of range; when called, an image of other channels or with odd sides.
    """

    def __init__(self, channels: int = 1, width: int = 64) -> None:
        super().__init__()
        check_integers({"channels": (channels, 64), "width": (width, 1024)})
        self.channels = channels
        self.stem = nn.Conv2d(channels, width, 3, padding=1)
        shapes = [(width, width, 1), (width, 2 * width, 1), (2 * width, 2 * width, 2), (2 * width, 2 * width, 4)]  # inputs, outputs, dilation
        self.levels = nn.ModuleList(
            [nn.Sequential(_Residual(a, b, dilation, down=i > 0), _Residual(b, b, dilation, down=False)) for i, (a, b, dilation) in enumerate(shapes)]
        )
        wide, narrow = 2 * width, width
        refined = [([wide], wide), ([wide, wide], wide), ([wide, wide], narrow), ([narrow, narrow], narrow)]
        self.refine = nn.ModuleList([_Refine(inputs, features, 3 if i == 3 else 1) for i, (inputs, features) in enumerate(refined)])
        self.head = nn.Sequential(InstanceNormPlus(width), nn.ELU(), nn.Conv2d(width, channels, 3, padding=1))

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """The output for images x, (B, channels, H, W); times (B,) are not looked at."""
        check_images(self, x, self.channels, multiple=2)
        check_time(x, time)
        h, passed = self.stem(x), []
        for level in self.levels:
            h = level(h)
            passed.append(h)
        h = self.refine[0](passed.pop())
        for refine in self.refine[1:]:
            h = refine(passed.pop(), h)
        return self.head(h)


class InstanceNormPlus(nn.Module):
    """Instance normalisation that keeps what it takes away: the channels' means, normalised over the channels.  [Song & Ermon 2019, appendix A.1]

        gamma (z + alpha (mu - m)/v) + beta,    z = (x - mu)/std of each channel, and m, v mean and standard deviation of mu over the channels
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.alpha, self.gamma = (nn.Parameter(1 + 0.02 * torch.randn(channels)) for _ in range(2))
        self.beta = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        means = x.mean((2, 3))
        spread = (means - means.mean(1, keepdim=True)) * (means.var(1, keepdim=True) + 1e-5).rsqrt()
        z = (x - means[:, :, None, None]) * (x.var((2, 3), unbiased=False, keepdim=True) + 1e-5).rsqrt()
        return self.gamma[:, None, None] * (z + (self.alpha * spread)[:, :, None, None]) + self.beta[:, None, None]


class _Residual(Block):
    """Two normalised 3x3 convolutions beside a skip path; ``down`` halves the resolution by means of 2x2 pixels, unless it is dilated."""

    def __init__(self, inputs: int, outputs: int, dilation: int, down: bool) -> None:
        super().__init__()
        between = inputs if down else outputs
        self.norm1, self.norm2 = InstanceNormPlus(inputs), InstanceNormPlus(between)
        self.conv1, self.conv2 = _conv(inputs, between, dilation), _conv(between, outputs, dilation)
        self.pooled = down and dilation == 1
        kernel = 1 if self.pooled else 3
        self.skip = nn.Conv2d(inputs, outputs, kernel, padding=dilation * (kernel // 2), dilation=dilation) if down or inputs != outputs else None

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv2(F.elu(self.norm2(self.conv1(F.elu(self.norm1(x))))))
        h = h + (x if self.skip is None else self.skip(x))
        return F.avg_pool2d(h, 2) if self.pooled else h


class _Unit(Block):
    """RefineNet's residual convolution unit:  h + conv(elu(conv(elu(h))))."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.first, self.second = (_conv(features, features, 1, bias=False) for _ in range(2))

    def forward(self, h: Tensor) -> Tensor:
        return h + self.second(F.elu(self.first(F.elu(h))))


def _units(features: int, count: int) -> nn.Sequential:
    return nn.Sequential(*(_Unit(features) for _ in range(count)))


class _Refine(nn.Module):
    """RefineNet's block: its inputs adapted, brought to the size of the first and summed, pooled in a chain of residuals, and adapted again."""

    def __init__(self, inputs: Sequence[int], features: int, units: int) -> None:
        super().__init__()
        self.adapt = nn.ModuleList([_units(count, 2) for count in inputs])
        self.fuse = nn.ModuleList([_conv(count, features, 1) for count in inputs]) if len(inputs) > 1 else None
        self.pool = nn.ModuleList([_conv(features, features, 1, bias=False) for _ in range(2)])
        self.out = _units(features, units)

    def forward(self, *inputs: Tensor) -> Tensor:
        adapted = [adapt(h) for adapt, h in zip(self.adapt, inputs, strict=True)]
        h = adapted[0]
        if self.fuse is not None:
            size = h.shape[2:]
            h = torch.stack([F.interpolate(fuse(a), size, mode="bilinear", align_corners=True) for fuse, a in zip(self.fuse, adapted, strict=True)]).sum(0)
        h = path = F.elu(h)
        for conv in self.pool:
            path = conv(F.max_pool2d(path, 5, stride=1, padding=2))
            h = h + path
        return self.out(h)


def _conv(inputs: int, outputs: int, dilation: int, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=dilation, dilation=dilation, bias=bias)
