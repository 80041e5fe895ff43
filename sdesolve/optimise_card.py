"""Weights for one model and a few calls, learned with their nodes over a range of noise, or on nodes that ``optimize_grid`` found.

On N + 1 nodes a sampler without noise is a vector a and a lower triangle b (:mod:`sdesolve.solver_card`), of which a classic method is one choice.
Where a step is long, no formula knows what the outputs do within it, but the model does: the N (N + 1)/2 weights
b are fitted to where the flow takes a few hundred draws of the prior, by damped Gauss-Newton steps, from the
method's own; the other half of the draws says when to stop.  Learned weights want other nodes than formulas do: these had better start where
the noise is hardly wider than the data, so that steps are short, and some draws go to another mode for that; weights that know the model make long steps good.
So over a range nodes and weights are fitted together.  Related: solvers distilled from references, as in Zheng et al. 2023
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
from .optimise import OF_PIECES, Search, centred, check_data, check_reference, draws, followed, nodes_over
from .optimised import CARD, OptimisedGrid
from .problems import ProbabilityFlow, ReverseSDE
from .ranges import Range
from .solve import SolveWarning, solve
from .solver_card import SolverCard, solver_card

MOST = 24  # calls; beyond, the weights are many and the formulas good
OF_WEIGHTS = 1e-3  # difference of a weight, in units of its row's sum, for the derivative


class FittedCard(NamedTuple):
    """What :func:`optimize_card` returns."""

    card: SolverCard
    error: float
    """Mean distance of draws that have chosen nothing to where the flow takes them, each the root mean square over its coordinates."""
    baseline: float
    """The same with the weights, and the nodes, that the fit began with."""
    grid: OptimisedGrid
    """The nodes that the weights are for."""


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

    Over a range of noise nodes and weights are fitted together, from those of ``method="auto"`` for as many calls on; on a grid the weights alone, from its method's.

    Costs the reference and, in each of at most a dozen rounds, N (N + 1)/2 solves of N calls with half of the samples, and N + 2 more for nodes: minutes for a small network.
    Worth it for 4 to 10 calls.  Where nothing is better than the method's own on draws that the fit has not seen, that is what the card has.

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
    x, stats = draws(flow, samples, shape, seed, dtype, device, 512), dict[str, Any]()
    first = _nodes(grid, nfe, flow, x)
    first.interval(flow.process)
    calls = solver_card(first.method, flow.process, Grid(first.ts), **dict(first.options)).calls
    if calls > 1 or len(first) > MOST:
        raise ValueError(f"grid has {len(first)} steps of {calls} call(s); expected at most {MOST} steps of one, as of method='unipc' with nfe=8.")
    with _tally.added_to(stats), _progress.count(progress, 1 + ROUNDS, f"weights for {first.method}") as advance, warnings.catch_warnings():
        warnings.simplefilter("ignore", SolveWarning)  # what bad weights do to some samples is in their cost
        ends = followed(flow, centred(flow, x), reference, tolerance, to_no_noise=first.denoise)
        advance()
        search = _NodesAndWeights(flow, first, x, ends, grid) if isinstance(grid, Range) else _Weights(flow, first, x, ends)
        found = search.refined(search.plain, advance)
        error, baseline = (first.data_std * search.cost(z, search.told) for z in (found, search.plain))
    card, nodes = search.along(found)
    if nfe is not None:
        nodes = dataclasses.replace(nodes, method=CARD, options=(), nfe=int(nfe), error=error, baseline=baseline, calls=stats["calls"], rows=stats["rows"])
    return FittedCard(card, error, baseline, nodes)


def _nodes(grid: OptimisedGrid | Range, nfe: int | None, flow: ProbabilityFlow, x: Tensor) -> OptimisedGrid:
    """The grid that was given, or that of "auto" over the range that was."""
    if isinstance(grid, OptimisedGrid):
        if nfe is not None:
            raise ValueError(f"nfe={nfe!r} with a grid, which has its number of calls; expected one of them: sd.optimize_card(problem, data, nfe=5, ...).")
        if grid.method == CARD:
            raise ValueError("grid is that of a card, which has learned weights; expected the range of the data, or what sd.optimize_grid returns.")
        return grid
    if not isinstance(grid, Range):
        raise TypeError(f"grid is a {type(grid).__name__}; expected sd.Range.of(images), or what sd.optimize_grid(problem, 'unipc', nfe=8, shape=...) returns.")
    calls = integer("nfe", nfe, 3, 5)
    if calls > MOST + 1:
        raise ValueError(f"nfe={nfe!r}; expected at most {MOST + 1}: beyond, weights are many and formulas good, as in sd.solve(problem, x_T, 'auto', nfe={nfe!r}, interval=data).")
    check_data(grid, flow, x)
    rule = _auto.for_calls(calls, x[0].numel(), grid, 0.0)
    ts = make_grid(rule.grid, flow.process, *grid.interval(flow.process, calls, flow.interval[1]), calls - 1).ts
    return nodes_over(grid, flow.process, ts, rule.method, rule.options, True, x.shape[1:])


class _Weights(GaussNewton):
    """Distances to the flow as a function of the changes z of the weights b, each in units of what its row's weights add up to."""

    difference: float | Tensor = OF_WEIGHTS

    def __init__(self, flow: ProbabilityFlow, grid: OptimisedGrid, x: Tensor, ends: Tensor) -> None:
        self.flow, self.grid = flow, grid
        self.seen, self.held, self.told = parts(x, ends)
        self.card = solver_card(grid.method, flow.process, Grid(grid.ts), **dict(grid.options))
        self.places = tuple(torch.tril_indices(len(grid), len(grid)))
        self.plain = torch.zeros(len(self.places[0]), dtype=torch.float64)
        """The method's own weights."""

    def along(self, z: Tensor) -> tuple[SolverCard, OptimisedGrid]:
        """The sampler of some changes, and its grid."""
        return self._changed(self.card, z), self.grid

    def _changed(self, card: SolverCard, z: Tensor) -> SolverCard:
        units = card.b.sum(1).abs()[self.places[0]]
        return card.replace(b=card.b.index_put(self.places, z * units, accumulate=True))

    def apart(self, z: Tensor, part: Part) -> Tensor:
        card, grid = self.along(z)
        x = solve(self.flow, part.x, card, grid=grid).x
        return (x - part.ends).reshape(len(x), -1) / self.grid.data_std


class _NodesAndWeights(_Weights):
    """The same as a function of the pieces that the nodes are made of, too; the weights that are changed are those of the method on these nodes."""

    def __init__(self, flow: ProbabilityFlow, grid: OptimisedGrid, x: Tensor, ends: Tensor, data: Range) -> None:
        super().__init__(flow, grid, x, ends)
        self.nodes = Search(flow, grid.method, dict(grid.options), len(grid), grid.denoise, x, ends, data)
        pieces = self.nodes.pieces(grid.ts)
        self.count = len(pieces)
        self.difference = torch.cat([OF_PIECES + 0 * pieces, OF_WEIGHTS + self.plain])
        self.plain = torch.cat([pieces, self.plain])

    def along(self, z: Tensor) -> tuple[SolverCard, OptimisedGrid]:
        grid = self.nodes.grid(z[: self.count])
        card = solver_card(grid.method, self.flow.process, Grid(grid.ts), **dict(grid.options))
        return self._changed(card, z[self.count :]), grid
