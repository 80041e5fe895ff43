"""Networks in plain PyTorch: score networks (x, time) -> output shaped like x, and classifiers (x, time) -> logits.

A card names the first by the keys of ``NETWORKS``, the second by those of ``CLASSIFIERS``.
"""

from torch import nn

from .classifiers import CLASSIFIERS, EncoderClassifier, WideResNet
from .execution import Execution
from .levels import LevelScore
from .ncsnpp import DDPM, NCSNpp
from .unet import UNet

NETWORKS: dict[str, type[nn.Module]] = {"UNet": UNet, "NCSNpp": NCSNpp, "DDPM": DDPM, "LevelScore": LevelScore}

__all__ = ["CLASSIFIERS", "DDPM", "NETWORKS", "EncoderClassifier", "Execution", "LevelScore", "NCSNpp", "UNet", "WideResNet"]
