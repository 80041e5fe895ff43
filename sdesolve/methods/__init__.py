"""The registry: every method by name.  To add one, write its file and its line here; the tests find it by itself."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any, Literal

from .._errors import choice
from ..correctors import CORRECTORS, Corrector
from .adaptive import Adaptive
from .base import Facts, Step, StepNoise, Stepper
from .deis import DEIS, IPNDM
from .discretised import Ancestral, ReverseDiffusion
from .dop853 import dop853
from .dpm_solver import DPMpp2M, DPMpp3M
from .dpm_solver_v3 import DPMSolverV3
from .edm import EDMSampler
from .er_sde import ERSDE
from .euler_maruyama import EulerMaruyama
from .exponential import DDIM
from .ggf import GGF
from .leapfrog import Leapfrog
from .milstein import Milstein, MilsteinFree
from .platen import Platen
from .predictor_corrector import PredictorCorrector
from .restart import Restart
from .reversible_heun import ReversibleHeun
from .rosenbrock import rodas5p
from .runge_kutta import RungeKutta, bosh3, euler, heun, midpoint, rk4, rk45, tsit5
from .sa_solver import SASolver
from .single_step import SingleStep
from .splittings import BAOAB, UBU
from .stochastic_runge_kutta import sosri, sra1, sra3, sriw1
from .stratonovich import EulerHeun, HeunSDE
from .table import MethodRow, MethodTable
from .unipc import UniPC


def pc(
    predictor: str | Stepper | None = "reverse_diffusion",
    corrector: str | Corrector = "langevin",
    corrector_steps: int = 1,
    **corrector_options: Any,
) -> PredictorCorrector:
    """Predictor-corrector sampling; options the predictor-corrector does not know go to the corrector."""
    return PredictorCorrector(
        predictor=None if predictor is None else _predictor(predictor),
        corrector=make_corrector(corrector, **corrector_options),
        corrector_steps=corrector_steps,
    )


def annealed_langevin(corrector_steps: int = 1, **corrector_options: Any) -> PredictorCorrector:
    """Corrector-only sampling: Langevin steps at each level of a falling noise.  [Song & Ermon 2019, algorithm 1]"""
    for name in ("predictor", "corrector"):
        if name in corrector_options:
            raise ValueError(f"{name}={corrector_options[name]!r}: annealed_langevin has its own; expected method='pc' with it.")
    return pc(None, "annealed_langevin", corrector_steps, **corrector_options)


def dpmpp_2m_sde(eta: float = 1.0, variant: Literal["midpoint", "heun"] = "midpoint") -> DPMpp2M:
    """DPM-Solver++(2M) for the reverse SDE."""
    return DPMpp2M(eta, variant)


def dpmpp_3m_sde(eta: float = 1.0, published: bool = False) -> DPMpp3M:
    """DPM-Solver++(3M) for the reverse SDE."""
    return DPMpp3M(eta, published)


def dpmpp_2s(eta: float = 0.0, weights: Literal["phi1", "phi2"] = "phi1", r: float = 0.5) -> SingleStep:
    """DPM-Solver++(2S)."""
    return SingleStep(2, eta, weights, r)


def dpmpp_3s(eta: float = 0.0) -> SingleStep:
    """DPM-Solver++(3S)."""
    return SingleStep(3, eta)


def dpmpp_sde(eta: float = 1.0, r: float = 0.5) -> SingleStep:
    """DPM-Solver++(2S) for the reverse SDE: SEEDS-2 with the midpoint rule."""
    return SingleStep(2, eta, "phi1", r)


def restart(solver: str | Stepper = "edm", **options: Any) -> Restart:
    """Restart sampling along the flow by an ODE method; its options are those of Restart."""
    return Restart(_stepper("solver", solver), **options)


METHODS: dict[str, Callable[..., Stepper]] = {
    "euler_maruyama": EulerMaruyama,
    "adaptive": Adaptive,
    "ggf": GGF,
    "milstein": Milstein,
    "milstein_free": MilsteinFree,
    "heun_sde": HeunSDE,
    "euler_heun": EulerHeun,
    "reversible_heun": ReversibleHeun,
    "sra1": sra1,
    "sra3": sra3,
    "sriw1": sriw1,
    "sosri": sosri,
    "platen": Platen,
    "baoab": BAOAB,
    "ubu": UBU,
    "reverse_diffusion": ReverseDiffusion,
    "ancestral": Ancestral,
    "pc": pc,
    "annealed_langevin": annealed_langevin,
    "leapfrog": Leapfrog,
    "euler": euler,
    "midpoint": midpoint,
    "heun": heun,
    "rk4": rk4,
    "bosh3": bosh3,
    "rk45": rk45,
    "tsit5": tsit5,
    "dop853": dop853,
    "rodas5p": rodas5p,
    "ddim": DDIM,
    "dpmpp_2m": DPMpp2M,
    "dpmpp_3m": DPMpp3M,
    "dpmpp_2m_sde": dpmpp_2m_sde,
    "dpmpp_3m_sde": dpmpp_3m_sde,
    "unipc": UniPC,
    "dpm_solver_v3": DPMSolverV3,
    "deis": DEIS,
    "ipndm": IPNDM,
    "dpmpp_2s": dpmpp_2s,
    "dpmpp_3s": dpmpp_3s,
    "dpmpp_sde": dpmpp_sde,
    "seeds": SingleStep,
    "sa_solver": SASolver,
    "er_sde": ERSDE,
    "edm": EDMSampler,
    "restart": restart,
}


def make_method(name: str, **options: Any) -> Stepper:
    """The named method with its options.

    Raises:
        ValueError: an unknown name or option; the message lists the known and suggests the nearest.
    """
    return _make("method", name, METHODS, options)


def _stepper(role: str, given: str | Stepper) -> Stepper:
    """A method by name, or one that is made already."""
    if isinstance(given, str):
        return make_method(given)
    if not isinstance(given, Stepper):
        raise TypeError(f"{role} is a {type(given).__name__}; expected a name from sdesolve.methods(), or a Stepper.")
    return given


def _predictor(given: str | Stepper) -> Stepper:
    """A method that can take a step of a reverse SDE, whose noise is additive, or of its flow."""
    made = _stepper("predictor", given)
    kinds, name = made.facts.kinds, given if isinstance(given, str) else type(given).__name__
    works = "expected a method for a reverse SDE or its flow, as in predictor='reverse_diffusion'."
    if "langevin" in made.facts.needs:
        raise ValueError(f"predictor={name!r} needs a sdesolve.UnderdampedLangevin, with a force and a heat bath, and a reverse SDE has neither; {works}")
    if kinds and "additive" not in kinds:
        raise ValueError(f"predictor={name!r} needs {', '.join(sorted(kinds))} noise, and that of a reverse SDE is additive; {works}")
    return made


def make_corrector(corrector: str | Corrector, **options: Any) -> Corrector:
    """The named corrector with its options, or one that is made already.

    Raises:
        ValueError: an unknown name or option; options beside a corrector.
        TypeError: neither a name nor a corrector.
    """
    if isinstance(corrector, str):
        made: Corrector = _make("corrector", corrector, CORRECTORS, options)
        return made
    if not isinstance(corrector, Corrector):
        raise TypeError(f"corrector is a {type(corrector).__name__}; expected one of {', '.join(CORRECTORS)}, or a sdesolve.correctors.Corrector.")
    if options:
        raise ValueError(f"unknown argument(s) {', '.join(options)}: the options of a corrector object are given when it is made.")
    return corrector


def methods() -> MethodTable:
    """A table of every method: order on ODEs, strong and weak order by noise kind, calls a step, needs, reference."""
    return MethodTable(MethodRow(name, make().facts) for name, make in METHODS.items())


def _make(role: str, name: str, known: dict[str, Callable[..., Any]], options: dict[str, Any]) -> Any:
    factory = known[choice(role, name, known)]
    parameters = inspect.signature(factory).parameters.values()
    if all(p.kind is not p.VAR_KEYWORD for p in parameters):
        for option in options:
            choice(f"an option of {role}={name!r}", option, [p.name for p in parameters])
    return factory(**options)


class _Callable(ModuleType):
    """This package, which has the name of its function: ``sdesolve.methods()`` and ``import sdesolve.methods.base as base`` both work."""

    def __call__(self) -> MethodTable:
        return methods()


sys.modules[__name__].__class__ = _Callable

__all__ = ["METHODS", "Adaptive", "Facts", "MethodTable", "RungeKutta", "Step", "StepNoise", "Stepper", "make_corrector", "make_method", "methods"]
