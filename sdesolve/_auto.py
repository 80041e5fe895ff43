"""``method="auto"``: which method for a problem and a number of network calls.

Along the flow of a score, by the mean distance to where a fine solve takes the same draws, on mixtures in 2, 64 and 784 dimensions, VP and
rectified flow, from 5 to 50 calls: DEIS in log rho is ahead up to 7 calls, iPNDM of order 3 from 8, UniPC-3 from 25 and over a :class:`Range` of noise,
where its steps are smaller, from 18; each on its own default of equal steps in the log-SNR.  Ending with the denoiser is better than a step more.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from ._checks import AnyProblem
from ._errors import as_int
from .grids import Grid
from .optimised import OptimisedGrid
from .problems import ODE, SDE, ProbabilityFlow, ReverseSDE
from .ranges import Range

DEFAULT_CALLS = 50
BY_NOISE = {"additive": "sra1", "diagonal": "sriw1", "scalar": "sriw1", "commutative": "heun_sde", "general": "heun_sde"}


class Choice(NamedTuple):
    """A method with its options, and what else ``solve`` is to be told."""

    method: str
    options: dict[str, Any]
    nfe: int | None
    denoise: bool | None


def for_calls(calls: int, ranged: bool) -> tuple[str, dict[str, Any]]:
    """The method along a score's flow for a number of network calls, over a range of noise or the whole interval, and its options."""
    if calls <= 7:
        return "deis", {"variant": "log_rho"}
    return ("ipndm", {"order": 3}) if calls < (18 if ranged else 25) else ("unipc", {"order": 3})


def choose(problem: AnyProblem, options: dict[str, Any], steps: int | None, nfe: int | None, grid: Any, interval: Any, denoise: bool | None) -> Choice:
    """What "auto" stands for, from the arguments of a solve."""
    if options:
        raise ValueError(f"unknown argument(s) {', '.join(options)}: method='auto' chooses the method and its options; expected one by name for options of your own.")
    if isinstance(grid, OptimisedGrid):
        return Choice(grid.method, dict(grid.options), nfe, denoise)
    if not isinstance(problem, ReverseSDE | ProbabilityFlow):
        method = "tsit5" if isinstance(problem, ODE) else BY_NOISE[problem.kind] if isinstance(problem, SDE) else "baoab"
        return Choice(method, {}, nfe, denoise)
    named = grid is None or isinstance(grid, str) or callable(grid)
    if steps is None and nfe is None and named:
        nfe = DEFAULT_CALLS
    calls = as_int(steps if nfe is None else nfe) if named else len(Grid.of(grid.ts if isinstance(grid, Grid) else grid)) + 1
    method, chosen = for_calls(DEFAULT_CALLS if calls is None else calls, isinstance(interval, Range))  # what is no number is refused where all arguments are
    if denoise is None and not isinstance(interval, Range) and calls != 1:
        first, last = problem.interval if interval is None else problem.check_interval(interval)
        denoise = first > last
    return Choice(method, chosen, nfe, denoise)
