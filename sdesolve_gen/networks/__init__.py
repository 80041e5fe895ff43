"""Networks in plain PyTorch: score networks (x, time) -> output shaped like x, and classifiers (x, time) -> logits.

A card names the first by the keys of ``NETWORKS``, the second by those of ``CLASSIFIERS``.
"""

import inspect
from collections.abc import Callable

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


def classes_option(network: Callable[..., nn.Module]) -> str | None:
    """The option of a network that says how many classes it is told, besides the null label; None where there is none."""
    return next((name for name in ("classes", "label_dim") if name in inspect.signature(network).parameters), None)


def told_classes() -> list[str]:
    """Names of the networks that are told classes, and none."""
    return [name for name, network in NETWORKS.items() if classes_option(network)]


def check_told(network: nn.Module, classes: int) -> None:
    """Raises ValueError where a network that is named in ``NETWORKS`` is not told so many classes."""
    own = getattr(network, "classes", 0)
    if type(network) in NETWORKS.values() and own != classes:
        others = "" if hasattr(network, "classes") else f", which {type(network).__name__} cannot have; networks that can: {', '.join(told_classes())}"
        raise ValueError(f"classes = {classes}, and of its network {own}; expected the same{others}.")


__all__ = [
    "CLASSIFIERS", "DDPM", "MLP", "NETWORKS", "DiT", "DiffusersUNet2D", "EDMUNet", "EncoderClassifier",
    "Execution", "LevelScore", "NCSNpp", "NCSNv2", "ScoreNet", "UNet", "WideResNet", "check_told", "classes_option",
    "told_classes", "widened",
]  # fmt: skip
