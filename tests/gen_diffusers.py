"""A tiny UNet2DModel with weights that say something, and pipelines of it, for the tests that use diffusers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import torch
from torch import Tensor

UNET: dict[str, Any] = {
    "sample_size": 8, "in_channels": 1, "out_channels": 1, "block_out_channels": (8, 16), "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"), "layers_per_block": 1, "norm_num_groups": 4, "attention_head_dim": 4,
}  # fmt: skip


def unet(**options: Any) -> Any:
    torch.manual_seed(0)
    return diffusers.UNet2DModel(**{**UNET, **options}).eval()


def saved(folder: Path, scheduler: Any, **options: Any) -> Any:
    """A pipeline of the network and a scheduler, saved in a folder and read back by diffusers."""
    kind = diffusers.ScoreSdeVePipeline if isinstance(scheduler, diffusers.ScoreSdeVeScheduler) else diffusers.DDPMPipeline
    kind(unet(**options), scheduler).save_pretrained(folder)
    pipe = kind.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@torch.no_grad()
def walk(network: Any, scheduler: Any, x: Tensor, **options: Any) -> Tensor:
    """The loop of every pipeline."""
    for t in scheduler.timesteps:
        x = scheduler.step(network(x, t).sample, t, x, **options).prev_sample
    return x


def start(rows: int = 2, channels: int = 1) -> Tensor:
    return torch.randn(rows, channels, 8, 8, generator=torch.Generator().manual_seed(1))
