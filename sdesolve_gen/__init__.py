"""sdesolve_gen: score networks, trained models and training, on top of the solvers of :mod:`sdesolve`.

    import sdesolve_gen as gen

    images = gen.load("mnist").sample(16, method="pc", steps=500, seed=0)
"""

from . import networks
from ._errors import ModelFileError
from .classifiers import Classifier, load_classifier
from .conditioning import Guidance, classifier_free_guidance, classifier_guidance
from .models import Model, load
from .sampling import Samples
from .training import TrainConfig, train

__all__ = [
    "Classifier",
    "Guidance",
    "Model",
    "ModelFileError",
    "Samples",
    "TrainConfig",
    "classifier_free_guidance",
    "classifier_guidance",
    "load",
    "load_classifier",
    "networks",
    "train",
]
