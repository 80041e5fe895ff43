"""Targets with exact scores, deliberately wrong models, and measures with standard errors."""

from .measures import Comparison, Measured, Moments, compare, energy_distance, ks, mmd, moments, sliced_wasserstein2
from .posterior import Mark, Question, log_evidence, measure, posterior, posterior_exam
from .targets import (
    Empirical,
    Gaussian,
    Mixture,
    Perturbed,
    Product,
    Target,
    gaussian_1d,
    gaussian_mixture,
    mixture_1d,
    mixture_2d,
    mixture_64d,
    ring_2d,
)
from .wrong import as_model, noisy, scaled, wrong_sign, wrong_time

__all__ = [
    "Comparison",
    "Empirical",
    "Gaussian",
    "Mark",
    "Measured",
    "Mixture",
    "Moments",
    "Perturbed",
    "Product",
    "Question",
    "Target",
    "as_model",
    "compare",
    "energy_distance",
    "gaussian_1d",
    "gaussian_mixture",
    "ks",
    "log_evidence",
    "measure",
    "mixture_1d",
    "mixture_2d",
    "mixture_64d",
    "mmd",
    "moments",
    "noisy",
    "posterior",
    "posterior_exam",
    "ring_2d",
    "scaled",
    "sliced_wasserstein2",
    "wrong_sign",
    "wrong_time",
]
