"""The averages of a model along its own trajectories that ``dpm_solver_v3`` takes.  [Zheng et al. 2023, arXiv 2310.13268, section 3.1 and appendix C]

With y = x/alpha, D = E[x_0 | x] and d/dlambda along the flow, where dy/dlambda = D - y, and f = (1 - l) y - D as in :mod:`sdesolve.methods.dpm_solver_v3`,

    l = E[sigma d eps_i/dx_i] = 1 - alpha E[dD_i/dx_i],    f' = -l' y + (1 - l)(D - y) - D',    s = cov(f, f')/var f,    b = E f' - s E f

in each coordinate i and at each node.  The derivative by x is v dD(x + u v)/du for signs v, by a pullback a node; that along the flow is a difference of
D at the nodes beside, which a trajectory has anyway, where the paper takes a derivative of the network by its time.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from . import _progress
from ._errors import integer
from .divergence import Pullback
from .grids import Grid, make_grid
from .noise import PROBE, SeededNormals
from .optimise import centred, check_dtype, draws
from .problems import ProbabilityFlow, ReverseSDE
from .solve import solve
from .statistics import ModelStatistics

_SHARE = 1e-4  # of the variance that D leaves open, added to that of f: where f is nearly constant, as at the noisy end for symmetric data, its slope is chance
_ROUNDING = 1e-14  # of the squares, which is that of float32, and that of a difference of means of squares in float64


def model_statistics(
    problem: ProbabilityFlow | ReverseSDE,
    *,
    shape: Sequence[int],
    nodes: int = 64,
    samples: int = 512,
    batch: int = 64,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    progress: bool = False,
) -> ModelStatistics:
    """The statistics of a model for ``dpm_solver_v3``:  ``sd.solve(problem, x_T, "dpm_solver_v3", nfe=8, statistics=found)``.

    Costs 2 ``nodes`` network calls and ``nodes`` pullbacks for each of the samples, once for a model, whatever the grids and calls that follow; a guided
    score is another model.  Worth it for 5 to 10 calls.

    Arguments:
        problem: ``process.probability_flow(score)`` or ``process.reverse(score)``, differentiable by x.
        shape: of one sample, without the batch: (1, 28, 28).
        nodes: K, of the tables, equally far apart in lambda; at least 8.
        samples: trajectories, at least 16.  From 128, errors at 5 to 10 calls were up to a half larger than from 512, from 2048 up to a fifth less.
        batch: of them at once; memory is that of 2 ``nodes`` such batches.
        seed: names the draws and the signs; the same seed gives the same statistics.
        dtype, device: of the states.
        progress: draw a progress bar.

    Returns:
        The statistics, which save as JSON.

    Raises:
        TypeError: no problem with a score.
        ValueError: an argument out of range.
        SolveError: trajectories that are not finite.
    """
    if not isinstance(problem, ReverseSDE | ProbabilityFlow):
        raise TypeError(f"problem is a {type(problem).__name__}; expected process.probability_flow(score) or process.reverse(score).")
    flow = problem.probability_flow() if isinstance(problem, ReverseSDE) else problem
    if flow.interval[0] < flow.interval[1]:
        raise ValueError(f"problem runs over {flow.interval}, from data to noise; expected process.probability_flow(score), from (T, eps).")
    nodes, batch = integer("nodes", nodes, 8, 64), integer("batch", batch, 1, 64)
    check_dtype(dtype)
    x = draws(flow, samples, shape, seed, dtype, device)
    grid = make_grid("log_snr", flow.process, *flow.interval, nodes - 1)
    levels = [0.5 * float(flow.process.log_snr_(t)) for t in grid.ts]
    signs = SeededNormals(seed, range(len(x)), x.shape[1:], dtype=dtype, device=x.device, stream=PROBE, nodes=1).normal(0).sign()
    parts = list(zip(centred(flow, x).split(batch), signs.split(batch), strict=True))
    with _progress.count(progress, len(parts), "statistics of the model") as advance:
        total = torch.zeros(9, nodes, *x.shape[1:], dtype=torch.float64, device=x.device)
        for start, sign in parts:
            total += _sums(flow, grid, start, sign, levels[1] - levels[0])
            advance()
    tables = _tables(total / len(x), levels[1] - levels[0])
    return ModelStatistics(repr(flow.process), levels[0], levels[-1], *(table.cpu() for table in tables))


def _sums(flow: ProbabilityFlow, grid: Grid, x: Tensor, signs: Tensor, apart: float) -> Tensor:
    """(9, K, *event): sums over trajectories of 1 - l, y, D, D', and of y^2, y D, y D', D^2, D D'."""
    states = solve(flow, x, "unipc", order=3, grid=grid, save="all", throw=True).xs
    assert states is not None
    linear, scaled, denoised = [], [], []
    for t, state in zip(grid.ts, states, strict=True):
        alpha = flow.process.alpha_(t)
        pull = Pullback(lambda y, t=t: flow.score.denoise(y, t), state)  # type: ignore[misc]
        linear.append((alpha * signs * pull(signs[None])[0]).double().sum(0))
        scaled.append(state.double() / alpha)
        denoised.append(pull.value.double())
    y, d = torch.stack(scaled), torch.stack(denoised)
    (slope,) = torch.gradient(d, spacing=apart, dim=0)
    return torch.stack([torch.stack(linear), *(v.sum(1) for v in (y, d, slope, y * y, y * d, y * slope, d * d, d * slope))])


def _tables(means: Tensor, apart: float) -> tuple[Tensor, Tensor, Tensor]:
    """l, s and b out of the means."""
    a, y, d, slope, yy, yd, y_slope, dd, d_slope = means
    rounding = _ROUNDING * (a * a * yy + dd) + torch.finfo(torch.float64).tiny
    yy, yd, y_slope, dd, d_slope = yy - y * y, yd - y * d, y_slope - y * slope, dd - d * d, d_slope - d * slope
    (rise,) = torch.gradient(a, spacing=apart, dim=0)
    on_y = rise - a  # f = a y - D and f' = on_y y + a D - D'
    variance = a * a * yy - 2 * a * yd + dd
    covariance = a * on_y * yy + (a * a - on_y) * yd - a * y_slope - a * dd + d_slope
    s = covariance / (variance.clamp(min=0) + _SHARE * dd * (1 - dd / yy).clamp(min=0) + rounding)
    return 1 - a, s, on_y * y + a * d - slope - s * (a * y - d)
