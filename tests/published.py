"""Networks of score_sde_pytorch as their checkpoints name them: weights by published name, and what the network computes with them.

Written from the definition and apart from the package's own networks, to hold those against it.  Weights come into being when they are first
asked for, in the order of the published parameters.
"""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

CONFIG: dict[str, Any] = {
    "data": {"dataset": "Tiny", "image_size": 8, "num_channels": 3, "centered": False},
    "training": {"sde": "vesde", "continuous": True},
    "model": {
        "name": "ncsnpp", "nf": 8, "ch_mult": [1, 2], "num_res_blocks": 1, "attn_resolutions": [4], "dropout": 0.1, "conditional": True,
        "fir": True, "fir_kernel": [1, 3, 3, 1], "skip_rescale": True, "resblock_type": "biggan", "progressive": "none",
        "progressive_input": "residual", "progressive_combine": "sum", "embedding_type": "fourier", "fourier_scale": 16, "scale_by_sigma": True,
        "sigma_min": 0.01, "sigma_max": 50, "beta_min": 0.1, "beta_max": 20.0, "num_scales": 1000, "resamp_with_conv": True, "nonlinearity": "swish",
    },
}  # fmt: skip


def changed(**changes: Any) -> dict[str, Any]:
    """The configuration with other values, wherever their keys stand."""
    config = copy.deepcopy(CONFIG)
    for key, value in changes.items():
        next(part for part in config.values() if key in part)[key] = value
    return config


class Published:
    """A network of random weights, called as (x, label)."""

    def __init__(self, config: dict[str, Any], seed: int = 0) -> None:
        self.config, self.model = config, config["model"]
        self.weights: dict[str, Tensor] = {}
        self.draws = torch.Generator().manual_seed(seed)
        size = config["data"]["image_size"]
        self(torch.zeros(1, config["data"]["num_channels"], size, size), torch.ones(1))

    def save(self, path: Path, **changes: Any) -> tuple[Path, Path]:
        """A checkpoint with raw weights that are twice the averaged ones, and its configuration."""
        fixed = ["all_modules.0.W"] if self.model["embedding_type"] == "fourier" else []
        averaged = [weight for name, weight in self.weights.items() if name not in fixed]
        raw = {f"module.{name}": weight if name in fixed else 2 * weight for name, weight in self.weights.items()}
        sigmas = torch.linspace(math.log(self.model["sigma_max"]), math.log(self.model["sigma_min"]), self.model["num_scales"], dtype=torch.float64).exp()
        saved = {"model": {"module.sigmas": sigmas, **raw}, "ema": {"decay": 0.999, "num_updates": 3, "shadow_params": averaged}, "optimizer": {}, "step": 3}
        torch.save({**saved, **changes}, path)
        config = path.with_suffix(".json")
        config.write_text(json.dumps(self.config), encoding="utf-8")
        return path, config

    # -- layers ----------------------------------------------------------------------------------------------------------

    def _(self, name: str, *shape: int) -> Tensor:
        """A weight of entry number ``self.at`` of the list; ``W`` and ``weight`` with a variance that keeps numbers of one scale."""
        name = f"all_modules.{self.at}.{name}"
        if name not in self.weights:
            draw = torch.randn(shape, generator=self.draws)
            scale = 16.0 if name == "all_modules.0.W" else 0.3 if len(shape) == 1 else math.prod(shape[1:]) ** -0.5
            self.weights[name] = scale * draw + (1.0 if "Norm" in name and name.endswith("weight") else 0.0)
        return self.weights[name]

    def norm(self, prefix: str, x: Tensor) -> Tensor:
        channels = x.shape[1]
        groups = 32 if self.model["name"] == "ddpm" else min(channels // 4, 32)
        return F.group_norm(x, groups, self._(f"{prefix}weight", channels), self._(f"{prefix}bias", channels), 1e-6)

    def conv(self, prefix: str, x: Tensor, out: int, side: int = 3, **options: Any) -> Tensor:
        options = {"padding": side // 2, **options}
        return F.conv2d(x, self._(f"{prefix}weight", out, x.shape[1], side, side), self._(f"{prefix}bias", out), **options)

    def linear(self, prefix: str, x: Tensor, out: int) -> Tensor:
        return F.linear(x, self._(f"{prefix}weight", out, x.shape[1]), self._(f"{prefix}bias", out))

    def nin(self, prefix: str, x: Tensor, out: int) -> Tensor:
        return torch.einsum("bchw,cd->bdhw", x, self._(f"{prefix}W", x.shape[1], out)) + self._(f"{prefix}b", out)[:, None, None]

    def half(self) -> float:
        return math.sqrt(0.5) if self.model["name"] == "ncsnpp" and self.model["skip_rescale"] else 1.0

    def taps(self) -> list[float] | None:
        return self.model["fir_kernel"] if self.model["name"] == "ncsnpp" and self.model["fir"] else None

    def block(self, x: Tensor, out: int, told: Tensor | None, resample: str = "") -> Tensor:
        ddpm = self.model["name"] == "ddpm" or self.model["resblock_type"] == "ddpm"
        h = F.silu(self.norm("GroupNorm_0.", x))
        if resample:
            h, x = (change(y, self.taps(), resample) for y in (h, x))
        h = self.conv("Conv_0.", h, out)
        time = self.linear("Dense_0.", torch.zeros(1, 4 * self.model["nf"]) if told is None else F.silu(told), out)
        h = h if told is None else h + time[:, :, None, None]
        h = self.conv("Conv_1.", F.silu(self.norm("GroupNorm_1.", h)), out)
        if ddpm and x.shape[1] != out:
            x = self.nin("NIN_0.", x, out)
        elif not ddpm and (x.shape[1] != out or resample):
            x = self.conv("Conv_2.", x, out, 1)
        self.at += 1
        return (x + h) * self.half()

    def attention(self, x: Tensor) -> Tensor:
        channels = x.shape[1]
        h = self.norm("GroupNorm_0.", x)
        q, k, v = (self.nin(f"NIN_{i}.", h, channels).flatten(2) for i in range(3))
        share = torch.softmax(torch.einsum("bci,bcj->bij", q, k) / math.sqrt(channels), 2)
        h = self.nin("NIN_3.", torch.einsum("bij,bcj->bci", share, v).reshape(x.shape), channels)
        self.at += 1
        return (x + h) * self.half()

    def resample(self, x: Tensor, out: int, way: str) -> Tensor:
        """A convolution that changes the resolution."""
        taps = self.taps()
        if way == "down":
            h = F.pad(x, (0, 1, 0, 1)) if taps is None else filtered(x, taps, 1.0, 2)
            h = self.conv("Conv_0." if taps is None else "Conv2d_0.", h, out, stride=2, padding=0)
        elif taps is None:
            h = self.conv("Conv_0.", change(x, None, "up"), out)
        else:
            weight, bias = self._("Conv2d_0.weight", out, x.shape[1], 3, 3), self._("Conv2d_0.bias", out)
            h = filtered(F.conv2d(F.pad(spread(x), (2, 1, 2, 1)), weight), taps, 4.0, 1) + bias[:, None, None]
        self.at += 1
        return h

    # -- the network -----------------------------------------------------------------------------------------------------

    def __call__(self, x: Tensor, label: Tensor) -> Tensor:
        model, channels = self.model, x.shape[1]
        pp, width, size = model["name"] == "ncsnpp", model["nf"], self.config["data"]["image_size"]
        ddpm = not pp or model["resblock_type"] == "ddpm"
        into, outof = (model["progressive_input"], model["progressive"]) if pp else ("none", "none")
        self.at = 0
        told: Tensor | None
        if pp and model["embedding_type"] == "fourier":
            angle = label.log()[:, None] * self._("W", width)[None] * 2 * math.pi
            told = torch.cat([angle.sin(), angle.cos()], 1)
            self.at += 1
        else:
            half = width // 2
            angle = label[:, None] * torch.exp(torch.arange(half) * (-math.log(10000) / (half - 1)))[None]
            told = torch.cat([angle.sin(), angle.cos()], 1)
        if model["conditional"]:
            told = self.linear("", told, 4 * width)
            self.at += 1
            told = self.linear("", F.silu(told), 4 * width)
            self.at += 1
        else:
            told = None
        pyramid = x if self.config["data"]["centered"] else 2 * x - 1
        passed = [self.conv("", pyramid, width)]
        self.at += 1
        for level, multiplier in enumerate(model["ch_mult"]):
            for _ in range(model["num_res_blocks"]):
                h = self.block(passed[-1], width * multiplier, told)
                passed.append(self.attention(h) if size >> level in model["attn_resolutions"] else h)
            if level + 1 < len(model["ch_mult"]):
                features = passed[-1].shape[1]
                h = self.resample(passed[-1], features, "down") if ddpm else self.block(passed[-1], features, told, "down")
                if into == "residual":
                    h = pyramid = (self.resample(pyramid, features, "down") + h) * self.half()
                elif into == "input_skip":
                    pyramid = change(pyramid, self.taps(), "down")
                    image = self.conv("Conv_0.", pyramid, features, 1)
                    self.at += 1
                    h = image + h if model["progressive_combine"] == "sum" else torch.cat([image, h], 1)
                passed.append(h)
        h = passed[-1]
        h = self.block(self.attention(self.block(h, h.shape[1], told)), h.shape[1], told)
        drawn: Tensor | None = None
        for level, multiplier in reversed(list(enumerate(model["ch_mult"]))):
            for _ in range(model["num_res_blocks"] + 1):
                h = self.block(torch.cat([h, passed.pop()], 1), width * multiplier, told)
            h = self.attention(h) if size >> level in model["attn_resolutions"] else h
            if outof == "output_skip":
                part = self.head(h, channels)
                drawn = part if drawn is None else change(drawn, self.taps(), "up") + part
            elif outof == "residual":
                drawn = self.head(h, h.shape[1]) if drawn is None else (self.resample(drawn, h.shape[1], "up") + h) * self.half()
                h = h if level + 1 == len(model["ch_mult"]) else drawn
            if level:
                h = self.resample(h, h.shape[1], "up") if ddpm else self.block(h, h.shape[1], told, "up")
        out = drawn if outof == "output_skip" else self.head(h, channels)
        assert out is not None
        return out / label[:, None, None, None] if pp and model["scale_by_sigma"] and self.config["training"]["continuous"] else out

    def head(self, h: Tensor, out: int) -> Tensor:
        h = F.silu(self.norm("", h))
        self.at += 1
        h = self.conv("", h, out)
        self.at += 1
        return h


def spread(x: Tensor) -> Tensor:
    """Each pixel with zeros to its right and below."""
    y = x.new_zeros(*x.shape[:2], 2 * x.shape[2], 2 * x.shape[3])
    y[:, :, ::2, ::2] = x
    return y


def filtered(x: Tensor, taps: list[float], gain: float, pad: int | tuple[int, int]) -> Tensor:
    """out[j] = sum_m k[m] x[j + 3 - m] of the padded image, along both sides: a convolution, which turns the taps round."""
    before, after = (pad, pad) if isinstance(pad, int) else pad
    x = F.pad(x, (before, after, before, after))
    for dim in (2, 3):
        length = x.shape[dim] - 3
        x = sum(tap / sum(taps) * gain**0.5 * x.narrow(dim, 3 - m, length) for m, tap in enumerate(taps))  # type: ignore[assignment]
    return x


def change(x: Tensor, taps: list[float] | None, way: str) -> Tensor:
    """Double or half resolution."""
    if way == "up":
        return x.repeat_interleave(2, 2).repeat_interleave(2, 3) if taps is None else filtered(spread(x), taps, 4.0, (2, 1))
    if taps is None:
        return (x[:, :, ::2, ::2] + x[:, :, 1::2, ::2] + x[:, :, ::2, 1::2] + x[:, :, 1::2, 1::2]) / 4
    return filtered(x, taps, 1.0, 1)[:, :, ::2, ::2]
