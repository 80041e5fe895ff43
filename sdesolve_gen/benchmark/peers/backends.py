"""torchsde and torchdiffeq, which :func:`sdesolve.solve` drives itself: equal steps of the whole process as their users take, and our grid.

scipy chooses its steps by a tolerance, row by row, and has no budget of calls: ``benchmarks/ode_work_precision.py`` has it.
"""

from __future__ import annotations

from importlib.util import find_spec

from ..contenders import OUR_GRID, USERS, Contender, solver
from ..problems import Skipped

SOLVERS = {"torchsde:euler": False, "torchsde:srk": False, "torchdiffeq:euler": True, "torchdiffeq:midpoint": True, "torchdiffeq:rk4": True}
"""Method -> whether it solves the flow."""


def contenders() -> list[Contender]:
    """Every solver above; raises Skipped without the packages."""
    missing = [name for name in ("torchsde", "torchdiffeq") if find_spec(name) is None]
    if missing:
        raise Skipped(f'{" and ".join(missing)} {"is" if len(missing) == 1 else "are"} not installed: pip install "sdesolve[bench]"')
    found = []
    for method, flow in SOLVERS.items():
        family, _, name = method.partition(":")
        found.append(solver(f"{family} {name}", family, USERS, {"method": method, "interval": None, "grid": "uniform"}, flow))
        found.append(solver(f"{family} {name} [our grid]", family, OUR_GRID, {"method": method}, flow))
    return found
