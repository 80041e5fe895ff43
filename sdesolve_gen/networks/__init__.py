"""Score networks in plain PyTorch: (x, time) -> output shaped like x.  A card names them by the keys of ``NETWORKS``."""

from torch import nn

from .unet import UNet

NETWORKS: dict[str, type[nn.Module]] = {"UNet": UNet}

__all__ = ["NETWORKS", "UNet"]
