"""The U-Nets of Karras et al. 2022: DDPM++ and NCSN++ ("song") and ADM ("dhariwal"), with the names that their published weights have.

One block serves both: group norm, SiLU, a convolution (after a FIR filter where it resamples), the embedding added ("song") or as scale and shift
("dhariwal"), group norm, SiLU, a convolution, the skip, and self-attention where there is some.  Written from the paper's appendix F and table 7 and the
architectures that it names.  [Song et al. 2021, appendix H; Dhariwal & Nichol 2021, table 4]
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .execution import Block as Recomputed
from .options import wide

_WHOLE = {"resolution": 1024, "channels": 64, "outputs": 128, "model_channels": 1024, "channel_mult_emb": 16, "num_blocks": 16, "channel_mult_noise": 8}
_CHOICES = {
    "kind": ("song", "dhariwal"), "told": ("noise", "sigma"), "embedding_type": ("positional", "fourier"),
    "encoder_type": ("standard", "skip", "residual"), "decoder_type": ("standard", "skip"),
}  # fmt: skip


class Resampled(nn.Module):
    """A convolution (``kernel`` 0: none) after a FIR filter that doubles or halves the resolution; ``fused``: halved after it."""

    resample_filter: Tensor

    def __init__(self, inputs: int, outputs: int, kernel: int, change: int = 0, fir: Sequence[float] = (1, 1), fused: bool = False) -> None:
        super().__init__()
        self.change, self.fused = change, fused
        if kernel:
            self.weight = nn.Parameter(torch.randn(outputs, inputs, kernel, kernel) / (kernel * math.sqrt(inputs)))
            self.bias = nn.Parameter(torch.zeros(outputs))
        else:
            self.register_parameter("weight", None)
        if change:
            row = torch.tensor(fir, dtype=torch.float32)
            self.register_buffer("resample_filter", torch.outer(row, row)[None, None] / row.sum() ** 2)

    def forward(self, x: Tensor) -> Tensor:
        pad = 0 if self.weight is None else self.weight.shape[-1] // 2
        if self.fused:
            around = pad + (self.resample_filter.shape[-1] - 1) // 2
            return self._halved(F.conv2d(x, self.weight, padding=around), 0) + self.bias[:, None, None]
        if self.change < 0:
            x = self._halved(x, (self.resample_filter.shape[-1] - 1) // 2)
        elif self.change > 0:
            x = F.conv_transpose2d(x, self._filter(4.0, x), stride=2, padding=(self.resample_filter.shape[-1] - 1) // 2, groups=x.shape[1])
        return x if self.weight is None else F.conv2d(x, self.weight, self.bias, padding=pad)

    def _halved(self, x: Tensor, padding: int) -> Tensor:
        return F.conv2d(x, self._filter(1.0, x), stride=2, padding=padding, groups=x.shape[1])

    def _filter(self, gain: float, x: Tensor) -> Tensor:
        """One for each channel."""
        return (gain * self.resample_filter).to(x.dtype).expand(x.shape[1], 1, -1, -1)


def _norm(channels: int, eps: float) -> nn.GroupNorm:
    return nn.GroupNorm(min(32, channels // 4), channels, eps)


class Block(Recomputed):
    """(x, embedding) -> x with ``outputs`` channels; ``heads`` 0: without attention."""

    def __init__(self, inputs: int, outputs: int, embedding: int, song: bool, fir: Sequence[float], heads: int, change: int = 0) -> None:
        super().__init__()
        self.inputs, self.outputs, self.song, self.heads = inputs, outputs, song, heads
        eps = 1e-6 if song else 1e-5
        self.norm0, self.conv0 = _norm(inputs, eps), Resampled(inputs, outputs, 3, change, fir)
        self.affine = nn.Linear(embedding, outputs if song else 2 * outputs)
        self.norm1, self.conv1 = _norm(outputs, eps), Resampled(outputs, outputs, 3)
        if inputs != outputs or change:
            self.skip: nn.Module | None = Resampled(inputs, outputs, 1 if song or inputs != outputs else 0, change, fir)
        else:
            self.skip = None
        if heads:
            self.norm2, self.qkv, self.proj = _norm(outputs, eps), Resampled(outputs, 3 * outputs, 1), Resampled(outputs, outputs, 1)
        self.rescale = math.sqrt(0.5) if song else 1.0

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = self.conv0(F.silu(self.norm0(x)))
        told = self.affine(embedding)[:, :, None, None]
        if self.song:
            h = F.silu(self.norm1(h + told))
        else:
            scale, shift = told.chunk(2, 1)
            h = F.silu(shift + self.norm1(h) * (scale + 1))
        x = (self.conv1(h) + (x if self.skip is None else self.skip(x))) * self.rescale
        if not self.heads:
            return x
        q, k, v = self.qkv(self.norm2(x)).reshape(len(x), self.heads, -1, 3, x.shape[2] * x.shape[3]).transpose(2, 4).unbind(3)
        return (self.proj(F.scaled_dot_product_attention(q, k, v).transpose(2, 3).reshape(x.shape)) + x) * self.rescale


class Frequencies(nn.Module):
    """(B,) -> (B, features): cos and sin of given frequencies, or of random ones that are stored."""

    freqs: Tensor

    def __init__(self, features: int, kind: str, endpoint: bool) -> None:
        super().__init__()
        self.features, self.endpoint = features, endpoint
        self.stored = kind == "fourier"
        if self.stored:
            self.register_buffer("freqs", 16 * torch.randn(features // 2))

    def forward(self, time: Tensor) -> Tensor:
        count = self.features // 2
        given = (1 / 10_000) ** (torch.arange(count, dtype=torch.float32, device=time.device) / (count - self.endpoint))
        angle = time[:, None] * (2 * math.pi * self.freqs if self.stored else given).to(time.dtype)
        return torch.cat([angle.cos(), angle.sin()], 1)


class EDMUNet(nn.Module):
    """(x, time) or (x, time, labels) -> the first channels of the network's output, as many as x has.

    Arguments:
        kind: "song" or "dhariwal".
        resolution, channels, outputs: side of the image, its channels, and those of the network's output (default: the same).
        label_dim: number of classes, 0 for none.  Without labels, or told the label ``label_dim``, a class-conditional network gives its unconditional estimate.
        augment_dim: size of the augmentation labels of the training, which sampling leaves out.
        told: "noise", the time as it is; "sigma", as VE networks, ln(sigma/2), with the output negated, so that it predicts the noise.
        others: as published: model_channels, channel_mult, channel_mult_emb, num_blocks, attn_resolutions, and for "song" embedding_type,
            channel_mult_noise, encoder_type, decoder_type and resample_filter.

    Raises:
        ValueError: an option out of range; when called, an image of another shape.
    """

    def __init__(
        self,
        *,
        kind: str = "song",
        resolution: int = 32,
        channels: int = 3,
        outputs: int | None = None,
        label_dim: int = 0,
        augment_dim: int = 0,
        told: str = "noise",
        model_channels: int = 128,
        channel_mult: Sequence[int] = (2, 2, 2),
        channel_mult_emb: int = 4,
        num_blocks: int = 4,
        attn_resolutions: Sequence[int] = (16,),
        embedding_type: str = "positional",
        channel_mult_noise: int = 1,
        encoder_type: str = "standard",
        decoder_type: str = "standard",
        resample_filter: Sequence[float] = (1, 1),
    ) -> None:
        super().__init__()
        options = {**locals()}
        outputs = options["outputs"] = channels if outputs is None else outputs
        _check(options)
        self.song, self.channels, self.resolution, self.classes, self.told = kind == "song", channels, resolution, label_dim, told
        embedding, noise = model_channels * channel_mult_emb, model_channels * (channel_mult_noise if self.song else 1)
        self.map_noise = Frequencies(noise, embedding_type, endpoint=self.song)
        self.map_label = nn.Linear(label_dim, noise if self.song else embedding, bias=self.song) if label_dim else None
        self.map_augment = nn.Linear(augment_dim, noise, bias=False) if augment_dim else None
        self.map_layer0, self.map_layer1 = nn.Linear(noise, embedding), nn.Linear(embedding, embedding)
        self._fir, self._embedding = tuple(resample_filter), embedding

        self.enc = nn.ModuleDict()
        first = model_channels if self.song else model_channels * channel_mult[0]
        width, aux, skips = first, channels, [first]
        for level, multiplier in enumerate(channel_mult):
            side = resolution >> level
            if level == 0:
                self.enc[f"{side}x{side}_conv"] = Resampled(channels, first, 3)
            else:
                self.enc[f"{side}x{side}_down"] = self._block(width, width, change=-1)
                skips.append(width)
                if encoder_type == "skip":
                    self.enc[f"{side}x{side}_aux_down"] = Resampled(aux, aux, 0, -1, self._fir)
                    self.enc[f"{side}x{side}_aux_skip"] = Resampled(aux, width, 1)
                elif encoder_type == "residual":
                    self.enc[f"{side}x{side}_aux_residual"] = Resampled(aux, width, 3, -1, self._fir, fused=True)
                    aux = width
            for i in range(num_blocks):
                self.enc[f"{side}x{side}_block{i}"] = self._block(width, model_channels * multiplier, side in attn_resolutions)
                width = model_channels * multiplier
                skips.append(width)

        self.dec = nn.ModuleDict()
        for level, multiplier in reversed(list(enumerate(channel_mult))):
            side = resolution >> level
            if level == len(channel_mult) - 1:
                self.dec[f"{side}x{side}_in0"] = self._block(width, width, True)
                self.dec[f"{side}x{side}_in1"] = self._block(width, width)
            else:
                self.dec[f"{side}x{side}_up"] = self._block(width, width, change=1)
            for i in range(num_blocks + 1):
                attention = side in attn_resolutions and (i == num_blocks or not self.song)
                self.dec[f"{side}x{side}_block{i}"] = self._block(width + skips.pop(), model_channels * multiplier, attention)
                width = model_channels * multiplier
            if self.song and (decoder_type == "skip" or level == 0):
                if decoder_type == "skip" and level < len(channel_mult) - 1:
                    self.dec[f"{side}x{side}_aux_up"] = Resampled(outputs, outputs, 0, 1, self._fir)
                self.dec[f"{side}x{side}_aux_norm"] = _norm(width, 1e-6)
                self.dec[f"{side}x{side}_aux_conv"] = Resampled(width, outputs, 3)
        if not self.song:
            self.out_norm, self.out_conv = _norm(width, 1e-5), Resampled(width, outputs, 3)

    def _block(self, inputs: int, outputs: int, attention: bool = False, change: int = 0) -> Block:
        heads = 0 if not attention else 1 if self.song else max(1, outputs // 64)
        return Block(inputs, outputs, self._embedding, self.song, self._fir if self.song else (1, 1), heads, change)

    def forward(self, x: Tensor, time: Tensor, labels: Tensor | None = None) -> Tensor:
        """The output for images x, (B, C, H, W), times (B,) and labels (B,) of integers."""
        if tuple(x.shape[1:]) != (self.channels, self.resolution, self.resolution):
            raise ValueError(f"x has shape {tuple(x.shape)}; expected (B, {self.channels}, {self.resolution}, {self.resolution}), for which the network was built.")
        time = wide(time, x)
        embedding = self._embedded((0.5 * time).log() if self.told == "sigma" else time, labels, x.dtype)
        x, skips = self._encoded(x, embedding)
        output = self._decoded(x, skips, embedding)[:, : self.channels]
        return -output if self.told == "sigma" else output

    def _embedded(self, time: Tensor, labels: Tensor | None, dtype: torch.dtype) -> Tensor:
        h = self.map_noise(time).to(dtype)
        known = None
        if self.map_label is not None:
            told = torch.zeros(len(time), self.classes, dtype=dtype, device=time.device)
            told = told if labels is None else F.one_hot(labels, self.classes + 1)[:, :-1].to(dtype)
            known = self.map_label(told * math.sqrt(self.classes) if self.song else told)
        if self.song:
            h = torch.cat(h.chunk(2, 1)[::-1], 1)
            h = h if known is None else h + known
            return F.silu(self.map_layer1(F.silu(self.map_layer0(h))))
        h = self.map_layer1(F.silu(self.map_layer0(h)))
        return F.silu(h if known is None else h + known)

    def _encoded(self, x: Tensor, embedding: Tensor) -> tuple[Tensor, list[Tensor]]:
        skips: list[Tensor] = []
        aux = x
        for name, module in self.enc.items():
            if name.endswith("aux_down"):
                aux = module(aux)
            elif name.endswith("aux_skip"):
                x = skips[-1] = x + module(aux)
            elif name.endswith("aux_residual"):
                x = skips[-1] = aux = (x + module(aux)) * math.sqrt(0.5)
            else:
                x = module(x, embedding) if isinstance(module, Block) else module(x)
                skips.append(x)
        return x, skips

    def _decoded(self, x: Tensor, skips: list[Tensor], embedding: Tensor) -> Tensor:
        aux: Tensor | None = None
        normed = x
        for name, module in self.dec.items():
            if name.endswith("aux_up"):
                aux = module(aux)
            elif name.endswith("aux_norm"):
                normed = module(x)
            elif name.endswith("aux_conv"):
                said = module(F.silu(normed))
                aux = said if aux is None else said + aux
            else:
                x = module(x if x.shape[1] == module.inputs else torch.cat([x, skips.pop()], 1), embedding)
        return aux if aux is not None else self.out_conv(F.silu(self.out_norm(x)))


def _check(options: dict[str, Any]) -> None:
    """Limits that a card from anywhere cannot pass to make us build for ever."""
    for name, most in _WHOLE.items():
        if not _within(options[name], most):
            raise ValueError(f"{name}={options[name]!r}; expected an integer from 1 to {most}.")
    for name in ("label_dim", "augment_dim"):
        if options[name] != 0 and not _within(options[name], 1_000_000):
            raise ValueError(f"{name}={options[name]!r}; expected an integer from 0 to 1000000.")
    for name, known in _CHOICES.items():
        if options[name] not in known:
            raise ValueError(f"{name}={options[name]!r}; expected one of {', '.join(known)}.")
    for name, most, longest in (("channel_mult", 16, 8), ("attn_resolutions", 4096, 16)):
        if not isinstance(options[name], list | tuple) or len(options[name]) > longest or not all(_within(value, most) for value in options[name]):
            raise ValueError(f"{name}={str(options[name])[:80]}; expected at most {longest} integers from 1 to {most}.")
    fir = options["resample_filter"]
    if not isinstance(fir, list | tuple) or not 2 <= len(fir) <= 16 or not all(isinstance(value, int | float) and 0 < value < 1e6 for value in fir):
        raise ValueError(f"resample_filter={str(fir)[:80]}; expected 2 to 16 numbers > 0, as in [1, 3, 3, 1].")
    if not options["channel_mult"] or options["resolution"] >> (len(options["channel_mult"]) - 1) < 1 or options["model_channels"] % 4:
        raise ValueError("channel_mult must have a level or more, each of which halves the resolution, and model_channels be a multiple of 4.")


def _within(value: object, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= most
