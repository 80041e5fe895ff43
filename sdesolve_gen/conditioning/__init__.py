"""Conditioning a model: on a measurement, by methods from score to conditional score, and on a class, by a classifier or the model's own labels."""

from .classifier import classifier_guidance
from .classifier_free import Guidance, classifier_free_guidance
from .ddnm import ddnm
from .ddrm import ddrm
from .diffpir import diffpir
from .dps import dps
from .measurement import Measurement
from .methods import CONDITIONINGS, Conditioning, Constraint, made
from .mmps import mmps
from .operator import SVD, Operator, conjugate_gradients, conjugate_residuals
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
    "Guidance",
    "Measurement",
    "Operator",
    "Renoised",
    "Resampled",
    "classifier_free_guidance",
    "classifier_guidance",
    "conjugate_gradients",
    "conjugate_residuals",
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
