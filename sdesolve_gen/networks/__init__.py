"""Score networks in plain PyTorch: (x, time) -> output shaped like x.  A card names them by the keys of ``NETWORKS``."""

from torch import nn

from .diffusers_unet import DiffusersUNet2D
from .edm_unet import EDMUNet
from .unet import UNet

NETWORKS: dict[str, type[nn.Module]] = {"UNet": UNet, "DiffusersUNet2D": DiffusersUNet2D, "EDMUNet": EDMUNet}

__all__ = ["NETWORKS", "DiffusersUNet2D", "EDMUNet", "UNet"]
