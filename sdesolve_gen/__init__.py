"""sdesolve_gen: score networks, trained models and training, on top of the solvers of :mod:`sdesolve`.

    import sdesolve_gen as gen

    images = gen.load("mnist").sample(16, method="pc", steps=500, seed=0)
"""

from . import networks
from ._errors import ModelFileError
from .evaluation import Evaluation, evaluate
from .models import Model, load
from .sampling import Samples
from .training import TrainConfig, train

__all__ = ["Evaluation", "Model", "ModelFileError", "Samples", "TrainConfig", "evaluate", "load", "networks", "train"]
