"""Weights for one model and a few calls, learned on the nodes of a range of noise, or on those that ``optimize_grid`` found.

On N + 1 nodes a sampler without noise is a vector a and a lower triangle b (:mod:`sdesolve.solver_card`), of which a classic method is one choice.
Where a step is long, no formula knows what the outputs do within it, but the model does: the N (N + 1)/2 weights
b are fitted to where the flow takes a few hundred draws of the prior, by damped Gauss-Newton steps, from the
method's own; the other half of the draws says when to stop.  Learned weights want other nodes than formulas do: with formulas a solve had better start where
the noise is hardly wider than the data, so that steps are short, and some draws go to another mode for that; weights that know the model make long steps good.
So the nodes of a range are the better ones for them, and want no search.  Related: solvers distilled from references, as in Zheng et al. 2023
(DPM-Solver-v3), which takes coefficients from statistics of the model, and Shaul et al. 2024 (bespoke solvers).
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import _auto, _progress, _tally
from ._errors import integer
from ._gauss_newton import ROUNDS, GaussNewton, Part, parts
from .grids import Grid, make_grid
from .optimise import centred, check_data, check_reference, draws, nodes_over
from .optimised import OptimisedGrid
from .problems import ProbabilityFlow, ReverseSDE
from .ranges import Range
from .solve import SolveWarning, solve
from .solver_card import SolverCard, solver_card

MOST = 24  # calls; beyond, the weights are many and the formulas good


class FittedCard(NamedTuple):
    """What :func:`optimize_card` returns."""

    card: SolverCard
    error: float
    """Mean distance of draws that have chosen nothing to where the flow takes them, each the root mean square over its coordinates."""
    baseline: float
    """The same with the method's own weights on the same nodes."""
    grid: OptimisedGrid
    """The nodes that the weights are for: those that were given, or those of the range."""


def optimize_card(
    problem: ProbabilityFlow | ReverseSDE,
    grid: OptimisedGrid | Range,
    *,
    nfe: int | None = None,
    shape: Sequence[int],
    samples: int = 512,
    seed: int = 1,
    reference: str = "tsit5",
    tolerance: float = 1e-4,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    progress: bool = False,
) -> FittedCard:
    """The weights with which a sampler comes nearest to the flow:  ``fitted = sd.optimize_card(problem, sd.Range.of(images), nfe=5, shape=(1, 28, 28))``,
    and then ``sd.solve(problem, x_T, fitted.card, grid=fitted.grid)``.

    Over a range of noise the nodes are those of ``method="auto"`` for as many calls, and the weights are fitted from its method's own on.

    Costs the reference and, in each of at most a dozen rounds, N (N + 1)/2 solves of N calls with half of the samples: minutes for a small network.
    Worth it for 4 to 10 calls.  Where no weights are better than the method's own on draws that the fit has not seen, the card has those.

    Arguments:
        problem: ``process.probability_flow(score)`` or ``process.reverse(score)``.
        grid: the :class:`Range` of the data; or what :func:`optimize_grid` found, for a method that is linear in the network's outputs and calls it once a step.
        nfe: with a range, most network calls that a sample may see, the last one included; 3 to 25.
        shape: of one sample, without the batch: (1, 28, 28).
        samples: draws of the prior, at least 16; half fit, half judge, and half as many more tell the errors.  Where they are cheap 2048 are better: weights are many,
            and draws that nearly go to another mode are rare.
        seed: names the draws; another one than the grid's shows the weights draws that the nodes have not seen.
        reference, tolerance, dtype, device, progress: as for :func:`optimize_grid`.

    Returns:
        The card, which saves as JSON beside its grid, what it gains, and that grid.

    Raises:
        ValueError: a grid of another process or of a method that is not linear, has several calls a step, or more than 24 steps; ``nfe`` with a grid, or a range without.
    """
    if not isinstance(problem, ReverseSDE | ProbabilityFlow):
        raise TypeError(f"problem is a {type(problem).__name__}; expected process.probability_flow(score) or process.reverse(score).")
    flow = problem.probability_flow() if isinstance(problem, ReverseSDE) else problem
    check_reference(reference, tolerance, dtype, flow)
    x, stats = draws(flow, samples, shape, seed, dtype, device), dict[str, Any]()
    grid = _nodes(grid, nfe, flow, x)
    grid.interval(flow.process)
    card = solver_card(grid.method, flow.process, Grid(grid.ts), **dict(grid.options))
    if card.calls > 1 or len(grid) > MOST:
        raise ValueError(f"grid has {len(grid)} steps of {card.calls} call(s); expected at most {MOST} steps of one, as of method='unipc' with nfe=8.")
    with _tally.added_to(stats), _progress.count(progress, 1 + ROUNDS, f"weights for {grid.method}") as advance, warnings.catch_warnings():
        warnings.simplefilter("ignore", SolveWarning)  # what bad weights do to some samples is in their cost
        ends = solve(flow, centred(flow, x), reference, rtol=tolerance, atol=tolerance, denoise=grid.denoise, throw=True).x
        advance()
        search = _Weights(flow, grid, card, x, ends)
        plain = torch.zeros(len(search.units), dtype=torch.float64)
        found = search.refined(plain, advance)
        error, baseline = (grid.data_std * search.cost(z, search.told) for z in (found, plain))
    if nfe is not None:
        grid = dataclasses.replace(grid, nfe=int(nfe), error=baseline, baseline=baseline, calls=stats["calls"], rows=stats["rows"])
    return FittedCard(search.card(found), error, baseline, grid)


def _nodes(grid: OptimisedGrid | Range, nfe: int | None, flow: ProbabilityFlow, x: Tensor) -> OptimisedGrid:
    """The grid that was given, or that of "auto" over the range that was."""
    if isinstance(grid, OptimisedGrid):
        if nfe is not None:
            raise ValueError(f"nfe={nfe!r} with a grid, which has its number of calls; expected one of them: sd.optimize_card(problem, data, nfe=5, ...).")
        return grid
    if not isinstance(grid, Range):
        raise TypeError(f"grid is a {type(grid).__name__}; expected sd.Range.of(images), or what sd.optimize_grid(problem, 'unipc', nfe=8, shape=...) returns.")
    calls = integer("nfe", nfe, 3, 5)
    check_data(grid, flow, x)
    rule = _auto.for_calls(calls, x[0].numel(), grid, 0.0)
    ts = make_grid(rule.grid, flow.process, *grid.interval(flow.process, calls, flow.interval[1]), calls - 1).ts
    return nodes_over(grid, flow.process, ts, rule.method, rule.options, True, x.shape[1:])


class _Weights(GaussNewton):
    """Distances to the flow as a function of the changes z of the weights b, each in units of what its row's weights add up to."""

    difference = 1e-3

    def __init__(self, flow: ProbabilityFlow, grid: OptimisedGrid, start: SolverCard, x: Tensor, ends: Tensor) -> None:
        self.flow, self.grid, self.start = flow, grid, start
        self.seen, self.held, self.told = parts(x, ends)
        self.places = tuple(torch.tril_indices(len(grid), len(grid)))
        self.units = start.b.sum(1).abs()[self.places[0]]

    def card(self, z: Tensor) -> SolverCard:
        return self.start.replace(b=self.start.b.index_put(self.places, z * self.units, accumulate=True))

    def apart(self, z: Tensor, part: Part) -> Tensor:
        x = solve(self.flow, part.x, self.card(z), grid=self.grid).x
        return (x - part.ends).reshape(len(x), -1) / self.grid.data_std
