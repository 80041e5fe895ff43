"""Evaluation: how good a model's samples are, and how likely its data."""

from .figure import Figure
from .report import Evaluation
from .run import evaluate

__all__ = ["Evaluation", "Figure", "evaluate"]
