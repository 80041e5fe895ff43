"""Networks in plain PyTorch: score networks (x, time) -> output shaped like x, and classifiers (x, time) -> logits.

A card names the first by the keys of ``NETWORKS``, the second by those of ``CLASSIFIERS``.
"""

from torch import nn

from .classifiers import CLASSIFIERS, EncoderClassifier, WideResNet
from .execution import Execution
from .unet import UNet

NETWORKS: dict[str, type[nn.Module]] = {"UNet": UNet}

__all__ = ["CLASSIFIERS", "NETWORKS", "EncoderClassifier", "Execution", "UNet", "WideResNet"]
