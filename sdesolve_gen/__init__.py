"""sdesolve_gen: score networks, trained models and training, on top of the solvers of :mod:`sdesolve`.

    import sdesolve_gen as gen

    images = gen.load("mnist").sample(16, method="pc", steps=500, seed=0)
"""

from typing import TYPE_CHECKING, Any

from . import networks
from ._errors import ModelFileError
from .classifiers import Classifier, load_classifier
from .conditioning import Guidance, classifier_free_guidance, classifier_guidance
from .evaluation import Evaluation, evaluate
from .models import Model, load
from .presets import preset, presets
from .sampling import Samples
from .training import TrainConfig, train
from .wrapping import wrap

if TYPE_CHECKING:
    from .adapters.scheduler import DiffusersScheduler as DiffusersScheduler

__all__ = [
    "Classifier",
    "Evaluation",
    "Guidance",
    "Model",
    "ModelFileError",
    "Samples",
    "TrainConfig",
    "classifier_free_guidance",
    "classifier_guidance",
    "evaluate",
    "load",
    "load_classifier",
    "networks",
    "preset",
    "presets",
    "train",
    "wrap",
]


def __getattr__(name: str) -> Any:
    """``DiffusersScheduler`` is a class of diffusers, which is imported when it is named; so it is not in ``__all__``."""
    if name != "DiffusersScheduler":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        from .adapters.scheduler import DiffusersScheduler
    except ImportError as error:
        raise ImportError('DiffusersScheduler needs diffusers: pip install "sdesolve[hub]"') from error
    return DiffusersScheduler
