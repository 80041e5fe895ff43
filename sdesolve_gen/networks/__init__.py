"""Networks in plain PyTorch: score networks (x, time) -> output shaped like x, and classifiers (x, time) -> logits.

A card names the first by the keys of ``NETWORKS``, the second by those of ``CLASSIFIERS``.
"""

from torch import nn

from .classifiers import CLASSIFIERS, EncoderClassifier, WideResNet
from .diffusers_unet import DiffusersUNet2D
from .edm_unet import EDMUNet
from .execution import Execution
from .levels import LevelScore
from .ncsnpp import DDPM, NCSNpp
from .unet import UNet

NETWORKS: dict[str, type[nn.Module]] = {
    "UNet": UNet, "NCSNpp": NCSNpp, "DDPM": DDPM, "LevelScore": LevelScore, "DiffusersUNet2D": DiffusersUNet2D, "EDMUNet": EDMUNet,
}  # fmt: skip

__all__ = [
    "CLASSIFIERS", "DDPM", "NETWORKS", "DiffusersUNet2D", "EDMUNet", "EncoderClassifier", "Execution", "LevelScore", "NCSNpp", "UNet", "WideResNet",
]  # fmt: skip
