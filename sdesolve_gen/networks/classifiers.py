"""Noise-conditional classifiers: (x, time) -> logits (B, classes), of images with noise in them.

What guides a sampler is  grad_x ln p_t(y | x_t),  so a classifier has to know images at every noise level, and which level it is.
[Song et al. 2021, section 4 and appendix I.1]
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from .execution import Block
from .options import check_classes, check_images, check_integers, check_positive, check_time, wide
from .unet import Encoder, FourierFeatures, Norm


class EncoderClassifier(Encoder):
    """The way down of :class:`UNet` and its middle, averaged over the pixels, and one linear map.  [Dhariwal & Nichol 2021, section 4]

    Arguments:
        classes: number of logits, 2..100,000.
        channels, width, multipliers, blocks, patch, fourier_scale: as of :class:`UNet`.

    Raises:
        ValueError: an option out of range; when called, an image of other channels or of a side that does not fit.
    """

    def __init__(
        self,
        classes: int,
        channels: int = 1,
        width: int = 32,
        multipliers: Sequence[int] = (1, 2),
        blocks: int = 1,
        patch: int = 1,
        fourier_scale: float = 1.0,
    ) -> None:
        super().__init__(channels, width, multipliers, blocks, patch, fourier_scale)
        check_classes(classes, least=2)
        features = width * multipliers[-1]
        self.head = nn.Sequential(Norm(features), nn.SiLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(features, classes))

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """Logits (B, classes) of images x, (B, channels, H, W), at times (B,)."""
        self.check_input(x, time)
        return self.head(self.encode(x, self.embed(wide(time, x)))[-1])


class WideBlock(Block):
    """A pre-activation block of a wide ResNet, scaled and shifted between its convolutions by the time embedding.  [Zagoruyko & Komodakis 2016, figure 1]"""

    def __init__(self, inputs: int, outputs: int, stride: int, embedding: int) -> None:
        super().__init__()
        self.norm1 = Norm(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1)
        self.modulation = nn.Linear(embedding, 2 * outputs)
        self.norm2 = Norm(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.skip = nn.Conv2d(inputs, outputs, 1, stride) if inputs != outputs or stride > 1 else None

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        before = F.silu(self.norm1(x))
        scale, shift = self.modulation(embedding)[:, :, None, None].chunk(2, 1)
        h = self.conv2(F.silu(self.norm2(self.conv1(before)) * (1 + scale) + shift))
        return h + (x if self.skip is None else self.skip(before))


class WideResNet(nn.Module):
    """A wide residual network with a time embedding, WRN-(6 blocks + 4)-widen: the published classifier of score SDEs is WRN-28-10.

    [Zagoruyko & Komodakis 2016, table 1; Song et al. 2021, appendix I.1]

    Arguments:
        classes: number of logits, 2..100,000.
        channels: of the image, 1..64.
        blocks: in each of three stages, of which the second and third halve the resolution; 1..16.
        widen: features of the stages in units of 16, 32 and 64; 1..32.
        fourier_scale: standard deviation of the frequencies of the time embedding, in cycles per unit of ``time``.

    Raises:
        ValueError: an option out of range; when called, an image of other channels or with a side below 4.
    """

    def __init__(self, classes: int, channels: int = 1, blocks: int = 2, widen: int = 2, fourier_scale: float = 1.0) -> None:
        super().__init__()
        check_classes(classes, least=2)
        check_integers({"channels": (channels, 64), "blocks": (blocks, 16), "widen": (widen, 32)})
        check_positive("fourier_scale", fourier_scale)
        embedding = 128
        self.channels = channels
        self.embed = nn.Sequential(FourierFeatures(embedding, fourier_scale), nn.Linear(embedding, embedding), nn.SiLU())
        self.stem = nn.Conv2d(channels, 16, 3, padding=1)
        self.blocks = nn.ModuleList()
        features = 16
        for stage, outputs in enumerate((16 * widen, 32 * widen, 64 * widen)):
            for block in range(blocks):
                self.blocks.append(WideBlock(features, outputs, 2 if stage and not block else 1, embedding))
                features = outputs
        self.head = nn.Sequential(Norm(features), nn.SiLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(features, classes))

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """Logits (B, classes) of images x, (B, channels, H, W), at times (B,)."""
        check_images(self, x, self.channels, least=4)
        check_time(x, time)
        embedding = self.embed(wide(time, x))
        h = self.stem(x)
        for block in self.blocks:
            h = block(h, embedding)
        return self.head(h)


CLASSIFIERS: dict[str, type[nn.Module]] = {"EncoderClassifier": EncoderClassifier, "WideResNet": WideResNet}
