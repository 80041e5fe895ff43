"""The registry: every method by name.  To add one, write its file and its line here; the tests find it by itself."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

from .._errors import choice
from ..correctors import CORRECTORS, Corrector
from .adaptive import Adaptive
from .base import Facts, Step, StepNoise, Stepper
from .discretised import Ancestral, ReverseDiffusion
from .dop853 import dop853
from .euler_maruyama import EulerMaruyama
from .exponential import DDIM
from .ggf import GGF
from .leapfrog import Leapfrog
from .milstein import Milstein, MilsteinFree
from .platen import Platen
from .predictor_corrector import PredictorCorrector
from .reversible_heun import ReversibleHeun
from .rosenbrock import rodas5p
from .runge_kutta import RungeKutta, bosh3, euler, heun, midpoint, rk4, rk45, tsit5
from .splittings import BAOAB, UBU
from .stochastic_runge_kutta import sosri, sra1, sra3, sriw1
from .stratonovich import EulerHeun, HeunSDE
from .table import MethodRow, MethodTable


def pc(
    predictor: str | Stepper | None = "reverse_diffusion",
    corrector: str | Corrector = "langevin",
    corrector_steps: int = 1,
    **corrector_options: Any,
) -> PredictorCorrector:
    """Predictor-corrector sampling; options the predictor-corrector does not know go to the corrector."""
    if corrector_options and not isinstance(corrector, str):
        raise ValueError(f"unknown argument(s) {', '.join(corrector_options)}: the options of a corrector object are given when it is made.")
    return PredictorCorrector(
        predictor=make_method(predictor) if isinstance(predictor, str) else predictor,
        corrector=_make("corrector", corrector, CORRECTORS, corrector_options) if isinstance(corrector, str) else corrector,
        corrector_steps=corrector_steps,
    )


def annealed_langevin(corrector_steps: int = 1, **corrector_options: Any) -> PredictorCorrector:
    """Corrector-only sampling: Langevin steps at each level of a falling noise.  [Song & Ermon 2019, algorithm 1]"""
    return pc(None, "annealed_langevin", corrector_steps, **corrector_options)


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
}


def make_method(name: str, **options: Any) -> Stepper:
    """The named method with its options.

    Raises:
        ValueError: an unknown name or option; the message lists the known and suggests the nearest.
    """
    return _make("method", name, METHODS, options)


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

__all__ = ["METHODS", "Adaptive", "Facts", "MethodTable", "RungeKutta", "Step", "StepNoise", "Stepper", "make_method", "methods"]
