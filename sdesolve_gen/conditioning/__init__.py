"""Conditioning a model on a measurement: operators, measurements, and methods from score to conditional score."""

from .ddrm import ddrm
from .measurement import Measurement
from .methods import CONDITIONINGS, Conditioning, Constraint, made
from .operator import SVD, Operator, conjugate_gradients
from .projection import projection
from .repaint import Resampled, repaint

__all__ = ["CONDITIONINGS", "SVD", "Conditioning", "Constraint", "Measurement", "Operator", "Resampled", "conjugate_gradients", "ddrm", "made", "projection", "repaint"]
