"""diffusers' ``UNet2DModel`` by its config, for models that were trained there.  Needs ``pip install "sdesolve[hub]"`` when it is built."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

_DOWN = ("DownBlock2D", "AttnDownBlock2D", "SkipDownBlock2D", "AttnSkipDownBlock2D", "ResnetDownsampleBlock2D")
_UP = ("UpBlock2D", "AttnUpBlock2D", "SkipUpBlock2D", "AttnSkipUpBlock2D", "ResnetUpsampleBlock2D")


def _whole(most: int, least: int = 1, optional: bool = False) -> Callable[[Any], bool]:
    return lambda v: (optional and v is None) or (isinstance(v, int) and not isinstance(v, bool) and least <= v <= most)


def _real(most: float, least: float = 0.0) -> Callable[[Any], bool]:
    return lambda v: isinstance(v, int | float) and not isinstance(v, bool) and least <= v <= most


def _of(*names: Any) -> Callable[[Any], bool]:
    return lambda v: any(v is name or (isinstance(v, str) and v == name) for name in names)


def _list(each: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda v: isinstance(v, list | tuple) and 1 <= len(v) <= 8 and all(map(each, v))


OPTIONS: dict[str, Callable[[Any], bool]] = {
    "in_channels": _whole(64), "out_channels": _whole(128), "center_input_sample": _of(True, False), "time_embedding_type": _of("positional", "fourier", "learned"),
    "time_embedding_dim": _whole(8192, optional=True), "freq_shift": _real(16), "flip_sin_to_cos": _of(True, False), "down_block_types": _list(_of(*_DOWN)),
    "mid_block_type": _of("UNetMidBlock2D", None), "up_block_types": _list(_of(*_UP)), "block_out_channels": _list(_whole(4096)), "layers_per_block": _whole(16),
    "mid_block_scale_factor": _real(16, 1e-3), "downsample_padding": _whole(8, 0), "downsample_type": _of("conv", "resnet"), "upsample_type": _of("conv", "resnet"),
    "dropout": _real(1), "act_fn": _of("silu", "swish", "mish", "gelu", "relu"), "attention_head_dim": _whole(4096, optional=True), "norm_num_groups": _whole(4096),
    "attn_norm_num_groups": _whole(4096, optional=True), "norm_eps": _real(1), "resnet_time_scale_shift": _of("default", "scale_shift"),
    "add_attention": _of(True, False), "num_class_embeds": _whole(1_000_000, optional=True), "num_train_timesteps": _whole(1_000_000, optional=True),
}  # fmt: skip
"""Options of UNet2DModel that may come from a card, and what is accepted: a card cannot make us build for ever."""
MOST_BLOCKS = 64  # on the way down: levels times layers; published networks have up to 16


class DiffusersUNet2D(nn.Module):
    """(x, time) or (x, time, labels) -> output shaped like x.

    Arguments:
        time_scale: what the time is multiplied by before the network is told: 1000 for a flow that counts so.
        options: of ``diffusers.UNet2DModel``.  Of twice as many output channels the first half is the output (the rest predicts a variance).

    Raises:
        ImportError: diffusers is not there.
        ValueError: an option that is not known, or out of range.
    """

    def __init__(self, *, time_scale: float = 1.0, **options: Any) -> None:
        super().__init__()
        for name, value in options.items():
            if name not in OPTIONS:
                raise ValueError(f"option {name!r} of UNet2DModel is not known; expected one of: {', '.join(OPTIONS)}.")
            if not OPTIONS[name](value):
                raise ValueError(f"option {name}={str(value)[:80]} of UNet2DModel is out of range.")
        levels, layers = len(options.get("block_out_channels", ())), options.get("layers_per_block", 2)
        if levels * layers > MOST_BLOCKS:
            raise ValueError(f"UNet2DModel of {levels} levels with layers_per_block={layers} each; expected at most {MOST_BLOCKS} together.")
        if not _real(1e6, 1e-6)(time_scale):
            raise ValueError(f"time_scale={time_scale!r}; expected a number > 0, as in time_scale=1000.0.")
        try:
            from diffusers import UNet2DModel
        except ImportError as error:
            raise ImportError('this model\'s network is diffusers\' UNet2DModel; expected that package: pip install "sdesolve[hub]"') from error
        self.time_scale, self.classes = time_scale, options.get("num_class_embeds") or 0
        build: Any = UNet2DModel
        self.unet: nn.Module = build(**options)

    def forward(self, x: Tensor, time: Tensor, labels: Tensor | None = None) -> Tensor:
        """The output for images x, (B, C, H, W), times (B,) and, for a class-conditional network, labels (B,) of integers."""
        if self.classes and labels is None:
            raise ValueError("this model is class-conditional, and no class was named; expected m.of_class(3).sample(16).")
        told = time if self.time_scale == 1 else time * self.time_scale
        output: Tensor = self.unet(x, told, labels).sample
        return output[:, : x.shape[1]]

