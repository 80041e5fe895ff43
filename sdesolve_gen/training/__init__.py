"""Training of score networks by score matching."""

from ..data import DataWarning
from .config import TrainConfig
from .loop import train

__all__ = ["DataWarning", "TrainConfig", "train"]
