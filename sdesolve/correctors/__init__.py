"""The correctors by name."""

from collections.abc import Callable

from .base import Account, Corrector, Normals
from .hmc import hmc
from .langevin import Langevin
from .mala import mala
from .underdamped import underdamped

CORRECTORS: dict[str, Callable[..., Corrector]] = {
    "langevin": Langevin,
    "annealed_langevin": Langevin,  # the published annealed rule is langevin with norm="expected", the default
    "mala": mala,
    "hmc": hmc,
    "underdamped": underdamped,
}

__all__ = ["CORRECTORS", "Account", "Corrector", "Langevin", "Normals", "hmc", "mala", "underdamped"]
