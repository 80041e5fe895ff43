"""``method="auto"``: which method for a problem and a number of network calls.

Along the flow of a score the rules below: over a :class:`Range` that knows the data's directions, over one that doesn't and over the whole interval, these for few coordinates
and many (from 256).  They were read from the mean distance to where a fine solve takes the same draws, as a ratio to the smallest of fixed choices, methods and grids,
32 over the whole interval: with directions on mixtures, random ones as well, and six processes; over the whole interval for few coordinates on
mixtures in 2 and 64 dimensions and a ring, for many on a mixture of low rank and five trained networks, with six processes.  ``benchmarks/auto.py`` measures them.  Data with
many coordinates have strong directions, which are decided while the noise is wide, and there Karras et al.'s spacing stands closer than equal steps of the log-SNR do: where steps
are long the grid matters more than the method.  Where the start knows the directions, one rule serves all data.  A call for the end is better than a step more.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple, TypeAlias

from torch import Tensor

from ._checks import EXTRAPOLATE, SAME, AnyProblem, Denoise
from ._errors import as_int
from .grids import Grid, Recipe, karras, log_snr, uniform
from .optimised import CARD, OptimisedGrid
from .problems import ODE, SDE, ProbabilityFlow, ReverseSDE
from .ranges import Range

DEFAULT_CALLS = 50
BY_NOISE = {"additive": "sra1", "diagonal": "sriw1", "scalar": "sriw1", "commutative": "heun_sde", "general": "heun_sde"}


class Rule(NamedTuple):
    """What is taken up to a number of network calls."""

    up_to: float
    method: str
    options: dict[str, Any]
    grid: Recipe


MANY = 256  # coordinates
_Method: TypeAlias = tuple[str, dict[str, Any]]
DEIS: _Method = ("deis", {"variant": "log_rho"})
DEIS_T: _Method = ("deis", {})
IPNDM3: _Method = ("ipndm", {"order": 3})
IPNDM4: _Method = ("ipndm", {})
UNIPC2: _Method = ("unipc", {})
UNIPC: _Method = ("unipc", {"order": 3})
DIRECTED: dict[bool, tuple[Rule, ...]] = {  # many coordinates -> rules over a range with directions
    False: (Rule(12, *DEIS, karras()), Rule(math.inf, *UNIPC, log_snr())),
    True: (Rule(12, *DEIS, karras()), Rule(math.inf, *UNIPC, karras(20))),
}
"""By the mean distance; in root mean square, of which draws that go to another mode are the most, UniPC is ahead sooner where modes lie apart: in the plane from 8 calls on."""
SPREAD = 13.5
WIDE: tuple[Rule, ...] = (Rule(9, *DEIS_T, uniform()), Rule(math.inf, *IPNDM3, uniform()))
"""Of few coordinates over a whole interval in which the half-log-SNR goes further than :data:`SPREAD`, for a process whose own grid is equal steps of time: as for rectified flow
and subVP, equal steps of the log-SNR, or of powers of the noise, spend calls there where nothing is to be seen."""
RULES: dict[tuple[bool, bool], tuple[Rule, ...]] = {  # (many coordinates, over a range) -> rules in ascending order
    (False, True): (Rule(9, *DEIS, log_snr()), Rule(12, *IPNDM3, log_snr()), Rule(24, *IPNDM4, log_snr()), Rule(math.inf, *UNIPC, log_snr())),
    (False, False): (Rule(9, *DEIS, log_snr()), Rule(13, *IPNDM3, log_snr()), Rule(24, *DEIS, karras(20)), Rule(math.inf, *UNIPC, log_snr())),
    (True, True): (Rule(12, *DEIS, karras()), Rule(24, *IPNDM4, karras(20)), Rule(math.inf, *UNIPC, karras(20))),
    (True, False): (Rule(6, *UNIPC2, karras()), Rule(9, *UNIPC2, karras(20)), Rule(17, *IPNDM3, karras()), Rule(math.inf, *UNIPC, karras(20))),
}


class Choice(NamedTuple):
    """A method with its options, and what else ``solve`` is to be told."""

    method: str
    options: dict[str, Any]
    evaluations: int | None
    denoise: Denoise | None
    grid: Any


def for_calls(calls: int, coordinates: int, interval: object, spread: float) -> Rule:
    """The rule along a flow for a number of calls, over a range of noise or, where it is none, an interval in whose equal steps of time the half-log-SNR has this spread."""
    many, ranged = coordinates >= MANY, isinstance(interval, Range)
    if isinstance(interval, Range) and interval.directions is not None:
        rules = DIRECTED[many]
    elif spread > SPREAD and not many and not ranged:
        rules = WIDE
    else:
        rules = RULES[many, ranged]
    return next(rule for rule in rules if calls <= rule.up_to)


def choose(
    problem: AnyProblem, x: Any, options: dict[str, Any], steps: int | None, evaluations: int | None, grid: Any, interval: Any, denoise: Denoise | None
) -> Choice:
    """What "auto" stands for, from the arguments of a solve, whose ``nfe`` is so many evaluations."""
    if options:
        raise ValueError(f"unknown argument(s) {', '.join(options)}: method='auto' chooses the method and its options; expected one by name for options of your own.")
    if isinstance(grid, OptimisedGrid):
        if grid.method == CARD:
            raise ValueError("grid was found with the weights of a card; expected that card in the place of 'auto': sd.solve(problem, x_T, fitted.card, grid=fitted.grid).")
        return Choice(grid.method, dict(grid.options), evaluations, denoise, grid)
    if not isinstance(problem, ReverseSDE | ProbabilityFlow):
        method = "tsit5" if isinstance(problem, ODE) else BY_NOISE[problem.kind] if isinstance(problem, SDE) else "baoab"
        return Choice(method, {}, evaluations, denoise, grid)
    named = grid is None or isinstance(grid, str) or callable(grid)
    if steps is None and evaluations is None and named:
        evaluations = DEFAULT_CALLS
    coordinates = math.prod(x.shape[1:]) if isinstance(x, Tensor) else 1  # what is no state, like what is no number, is refused where all arguments are
    first, last = problem.interval if interval is None or isinstance(interval, Range) else problem.check_interval(interval)
    uniform_in_time = problem.process.default_grid == "uniform"
    spread = 0.5 * abs(float(problem.process.log_snr(first)) - float(problem.process.log_snr(last))) if uniform_in_time else 0.0
    if denoise is None:
        whole = isinstance(interval, Range) or (first > last and last - problem.interval[1] <= SAME * (first - last))  # data are no draw of p_t where the walk ends before
        denoise = EXTRAPOLATE if whole and as_int(evaluations) != 1 else False  # of one call none is left for the end
    if not named:
        calls: int | None = len(Grid.of(grid.ts if isinstance(grid, Grid) else grid)) + 1
    elif evaluations is not None:
        calls = as_int(evaluations)
    else:
        calls = None if (walked := as_int(steps)) is None else walked + bool(denoise)
    rule = for_calls(DEFAULT_CALLS if calls is None else calls, coordinates, interval, spread)
    return Choice(rule.method, dict(rule.options), evaluations, denoise, rule.grid if grid is None else grid)
