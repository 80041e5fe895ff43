"""Training of score networks by denoising score matching."""

from .config import TrainConfig
from .loop import train

__all__ = ["TrainConfig", "train"]
