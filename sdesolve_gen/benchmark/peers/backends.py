"""torchsde and torchdiffeq, which :func:`sdesolve.solve` drives itself: equal steps of the whole process as their users take, and our grid.

scipy chooses its steps by a tolerance, row by row, and has no budget of calls: ``benchmarks/ode_work_precision.py`` has it.
"""

from __future__ import annotations

from ..contenders import OUR_GRID, USERS, Contender, solver
from .installed import needed

SOLVERS = {"torchsde:euler": False, "torchsde:srk": False, "torchdiffeq:euler": True, "torchdiffeq:midpoint": True, "torchdiffeq:rk4": True}
"""Method -> whether it solves the flow."""


def contenders() -> list[Contender]:
    """Every solver above; raises Skipped without the packages."""
    needed("torchsde", "torchdiffeq")
    found = []
    for method, flow in SOLVERS.items():
        family, _, name = method.partition(":")
        found.append(solver(f"{family} {name}", family, USERS, {"method": method, "interval": None, "grid": "uniform"}, flow))
        found.append(solver(f"{family} {name} [our grid]", family, OUR_GRID, {"method": method}, flow))
    return found
