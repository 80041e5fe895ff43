"""Training of score networks by score matching."""

from .config import TrainConfig
from .data import DataWarning
from .loop import train

__all__ = ["DataWarning", "TrainConfig", "train"]
