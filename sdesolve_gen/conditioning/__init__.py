"""Conditioning a model on a measurement: operators, measurements, and methods from score to conditional score."""

from .ddnm import ddnm
from .diffpir import diffpir
from .dps import dps
from .measurement import Measurement
from .methods import CONDITIONINGS, Conditioning, Constraint
from .mmps import mmps
from .operator import SVD, Operator, conjugate_gradients
from .pigdm import pigdm
from .renoised import Renoised

CONDITIONINGS |= {"dps": dps, "pigdm": pigdm, "mmps": mmps, "ddnm": ddnm, "diffpir": diffpir}

__all__ = [
    "CONDITIONINGS",
    "SVD",
    "Conditioning",
    "Constraint",
    "Measurement",
    "Operator",
    "Renoised",
    "conjugate_gradients",
    "ddnm",
    "diffpir",
    "dps",
    "mmps",
    "pigdm",
]
