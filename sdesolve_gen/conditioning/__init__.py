"""Conditioning a model on a measurement: operators, measurements, and methods from score to conditional score."""

from .ddnm import ddnm
from .ddrm import ddrm
from .diffpir import diffpir
from .dps import dps
from .measurement import Measurement
from .methods import CONDITIONINGS, Conditioning, Constraint, made
from .mmps import mmps
from .operator import SVD, Operator, conjugate_gradients
from .pigdm import pigdm
from .projection import projection
from .renoised import Renoised
from .repaint import Resampled, repaint
from .twist import twist

CONDITIONINGS |= {"dps": dps, "pigdm": pigdm, "mmps": mmps, "ddnm": ddnm, "diffpir": diffpir, "projection": projection, "repaint": repaint, "ddrm": ddrm}

__all__ = [
    "CONDITIONINGS",
    "SVD",
    "Conditioning",
    "Constraint",
    "Measurement",
    "Operator",
    "Renoised",
    "Resampled",
    "conjugate_gradients",
    "ddnm",
    "ddrm",
    "diffpir",
    "dps",
    "made",
    "mmps",
    "pigdm",
    "projection",
    "repaint",
    "twist",
]
