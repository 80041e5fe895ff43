"""Score networks in plain PyTorch: (x, time) -> output shaped like x.  A card names them by the keys of ``NETWORKS``."""

from torch import nn

from .levels import LevelScore
from .ncsnpp import DDPM, NCSNpp
from .unet import UNet

NETWORKS: dict[str, type[nn.Module]] = {"UNet": UNet, "NCSNpp": NCSNpp, "DDPM": DDPM, "LevelScore": LevelScore}

__all__ = ["DDPM", "NETWORKS", "LevelScore", "NCSNpp", "UNet"]
