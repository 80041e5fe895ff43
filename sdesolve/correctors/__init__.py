"""The correctors by name."""

from collections.abc import Callable

from .langevin import Corrector, Langevin

CORRECTORS: dict[str, Callable[..., Corrector]] = {
    "langevin": Langevin,
    "annealed_langevin": Langevin,  # the published annealed rule is langevin with norm="expected", the default
}

__all__ = ["CORRECTORS", "Corrector", "Langevin"]
