"""Conditioning a model on a measurement: operators, measurements, and methods from score to conditional score."""

from .measurement import Measurement
from .methods import CONDITIONINGS, Conditioning, Constraint
from .operator import SVD, Operator, conjugate_gradients
from .twist import twist

__all__ = ["CONDITIONINGS", "SVD", "Conditioning", "Constraint", "Measurement", "Operator", "conjugate_gradients", "twist"]
