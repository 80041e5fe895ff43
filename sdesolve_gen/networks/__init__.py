"""Networks in plain PyTorch: score networks (x, time) -> output shaped like x, and classifiers (x, time) -> logits.

A card names the first by the keys of ``NETWORKS``, the second by those of ``CLASSIFIERS``.
"""

from torch import nn

from .classifiers import CLASSIFIERS, EncoderClassifier, WideResNet
from .diffusers_unet import DiffusersUNet2D
from .dit import DiT
from .edm_unet import EDMUNet
from .execution import Execution
from .levels import LevelScore
from .mlp import MLP
from .ncsnpp import DDPM, NCSNpp
from .ncsnv2 import NCSNv2
from .tutorial import ScoreNet
from .unet import UNet
from .widening import widened

NETWORKS: dict[str, type[nn.Module]] = {
    "UNet": UNet,
    "NCSNpp": NCSNpp,
    "DDPM": DDPM,
    "NCSNv2": NCSNv2,
    "ScoreNet": ScoreNet,
    "DiT": DiT,
    "MLP": MLP,
    "LevelScore": LevelScore,
    "DiffusersUNet2D": DiffusersUNet2D,
    "EDMUNet": EDMUNet,
}

__all__ = [
    "CLASSIFIERS", "DDPM", "MLP", "NETWORKS", "DiT", "DiffusersUNet2D", "EDMUNet", "EncoderClassifier",
    "Execution", "LevelScore", "NCSNpp", "NCSNv2", "ScoreNet", "UNet", "WideResNet", "widened",
]  # fmt: skip
