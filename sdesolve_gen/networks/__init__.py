"""Networks in plain PyTorch: score networks (x, time) -> output shaped like x, and classifiers (x, time) -> logits.

A card names the first by the keys of ``NETWORKS``, the second by those of ``CLASSIFIERS``.
"""

from torch import nn

from .classifiers import CLASSIFIERS, EncoderClassifier, WideResNet
from .dit import DiT
from .execution import Execution
from .mlp import MLP
from .ncsnv2 import NCSNv2
from .tutorial import ScoreNet
from .unet import UNet

NETWORKS: dict[str, type[nn.Module]] = {"UNet": UNet, "DiT": DiT, "MLP": MLP, "NCSNv2": NCSNv2, "ScoreNet": ScoreNet}

__all__ = ["CLASSIFIERS", "MLP", "NETWORKS", "DiT", "EncoderClassifier", "Execution", "NCSNv2", "ScoreNet", "UNet", "WideResNet"]
