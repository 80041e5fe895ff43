"""sdesolve: SDEs and ODEs in PyTorch, built around the reverse-time SDE of a score-based generative model."""

from typing import TYPE_CHECKING

from . import exam, grids
from ._arrays import expand_time
from ._backends import backends
from ._given import of_rows
from ._loops.fixed import Moment
from ._loops.parallel import Parallel
from .brownian import BrownianPath
from .control import Control
from .correct import correct
from .dequantise import dequantise
from .discrete_likelihood import DiscreteLikelihood, discrete_log_likelihood
from .divergence import divergence, value_and_divergence
from .grids import Grid
from .guided import Prediction, guided
from .latent import Latent, decode, encode, interpolate
from .likelihood import Budget, Likelihood, log_likelihood
from .likelihood_bound import LikelihoodBound, likelihood_bound
from .methods import Stepper
from .model_check import ModelCheck, ModelCheckError, check_model
from .model_statistics import model_statistics
from .optimise import optimize_grid
from .optimise_card import FittedCard, optimize_card
from .optimised import OptimisedGrid
from .problems import ODE, SDE, ProbabilityFlow, ReverseSDE, UnderdampedLangevin
from .processes import EDM, VESDE, VPSDE, Cosine, Process, RectifiedFlow, SubVPSDE
from .ranges import Range
from .scores import Score, as_score
from .smc import Particles, Reward, smc
from .solution import Solution, Status
from .solve import SolveError, SolveWarning, solve
from .solver_card import SolverCard, solver_card
from .statistics import ModelStatistics
from .tabulated import TabulatedVP

if TYPE_CHECKING:  # a checker knows no module that can be called
    from .methods import methods
else:
    from . import methods

__version__ = "0.1.0"

__all__ = [
    "EDM",
    "ODE",
    "SDE",
    "VESDE",
    "VPSDE",
    "BrownianPath",
    "Budget",
    "Control",
    "Cosine",
    "DiscreteLikelihood",
    "FittedCard",
    "Grid",
    "Latent",
    "Likelihood",
    "LikelihoodBound",
    "ModelCheck",
    "ModelCheckError",
    "ModelStatistics",
    "Moment",
    "OptimisedGrid",
    "Parallel",
    "Particles",
    "Prediction",
    "ProbabilityFlow",
    "Process",
    "Range",
    "RectifiedFlow",
    "ReverseSDE",
    "Reward",
    "Score",
    "Solution",
    "SolveError",
    "SolveWarning",
    "SolverCard",
    "Status",
    "Stepper",
    "SubVPSDE",
    "TabulatedVP",
    "UnderdampedLangevin",
    "as_score",
    "backends",
    "check_model",
    "correct",
    "decode",
    "dequantise",
    "discrete_log_likelihood",
    "divergence",
    "encode",
    "exam",
    "expand_time",
    "grids",
    "guided",
    "interpolate",
    "likelihood_bound",
    "log_likelihood",
    "methods",
    "model_statistics",
    "of_rows",
    "optimize_card",
    "optimize_grid",
    "smc",
    "solve",
    "solver_card",
    "value_and_divergence",
]
