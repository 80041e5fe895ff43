"""Other people's solvers behind the same call: ``method="torchsde:srk"``, ``"torchdiffeq:dopri5"``, ``"scipy:Radau"``, ...

They are there for comparison, and for what is lacking here.  A package is imported when one of its methods is asked for, and
not before; its methods are listed here, so that a wrong name is told from a right one without it.
"""

from __future__ import annotations

import importlib
from typing import Any

from .._errors import choice
from ..methods import MethodTable
from ..methods.table import MethodRow
from .base import Backend
from .scipy import SciPy
from .torchdiffeq import TorchDiffEq
from .torchsde import TorchSDE

PACKAGES: dict[str, type[Backend]] = {"torchsde": TorchSDE, "torchdiffeq": TorchDiffEq, "scipy": SciPy}


def backends() -> MethodTable:
    """A table of other packages' methods that :func:`solve` takes by name, as in ``method="torchsde:srk"``; columns as in :func:`methods`.

    Each needs its package: ``pip install "sdesolve[backends]"``.  Where the calls of a step depend on the problem, the table has
    the most (``torchdiffeq:implicit_adams``, and ``torchsde:srk``, which needs 3 for additive noise) or the fewest (scipy's
    implicit methods, which also take Jacobians from differences).
    """
    return MethodTable(MethodRow(f"{package}:{name}", facts) for package, backend in PACKAGES.items() for name, facts in backend.table.items())


def make_backend(method: str, options: dict[str, Any], noise: Any, at_tolerance: bool) -> Backend:
    """The method ``"package:name"`` with its options, for a problem with that kind of noise.

    Raises:
        ValueError: an unknown name or option; the message lists the known and suggests the nearest.
        ImportError: the package is not installed.
    """
    package = method.partition(":")[0]
    known = [row.name for row in backends()]
    choice("method", method, [full for full in known if full.startswith(f"{package}:")] or known)
    backend = PACKAGES[package](method, options, noise, at_tolerance)
    for option in options:
        choice(f"an option of method={method!r}", option, backend.known_options)
    try:
        importlib.import_module(package)
    except ModuleNotFoundError as error:
        if error.name != package:
            raise
        raise ImportError(f'method={method!r} needs {package}, which is not installed: pip install {package} (or "sdesolve[backends]")') from None
    return backend


__all__ = ["Backend", "backends", "make_backend"]
