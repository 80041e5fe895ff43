"""Conditioning a model: on a measurement, by methods from score to conditional score, and on a class, by a classifier or the model's own labels."""

from .classifier import classifier_guidance
from .classifier_free import Guidance, classifier_free_guidance
from .measurement import Measurement
from .methods import CONDITIONINGS, Conditioning, Constraint
from .operator import SVD, Operator, conjugate_gradients

__all__ = ["CONDITIONINGS", "SVD", "Conditioning", "Constraint", "Guidance", "Measurement", "Operator", "classifier_free_guidance", "classifier_guidance", "conjugate_gradients"]
