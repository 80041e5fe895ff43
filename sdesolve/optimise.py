"""Time nodes for one model, method and budget, found from a few hundred trajectories of its flow.

A deterministic sampler with N steps takes a draw x_T of the prior to an end that depends on its N + 1 nodes; the flow itself, solved to a
tolerance, takes it to another.  The distance of the two, but for draws that leap to another mode, is a smooth function of the nodes, and its square a sum of
squares: Gauss-Newton steps with damping [Levenberg 1944; Marquardt 1963] find its minimum in a few rounds, each of which costs a solve for
every node, for the derivative by that node is a difference.  The nodes are lengths on the axis of half the log-SNR,

    lambda_i = lambda(T) + (lambda(eps) - lambda(T)) sum_{j <= i} w_j,      w = softmax(z),

with a piece before the first node, and one after the last where the sampler denoises: so they stay in order, and where to start and stop
is found with the rest.  The search starts from the best of named grids over ranges of noise; other draws, which no step
has seen, say when to stop, and, where several methods race, which of them is taken: on named grids the order of methods is another one than on nodes of
their own, so each runs a few rounds.  Related: GITS [Chen et al. 2024] chooses nodes by dynamic programming over local errors of one-step methods.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from . import _checks, _progress, _tally
from ._errors import integer
from ._gauss_newton import ROUNDS, GaussNewton, Part, distances, parts
from .grids import Grid, arctan, karras, log_snr, make_grid, noise_ratio, time_at_ratio
from .methods import Stepper
from .optimised import OptimisedGrid
from .problems import ProbabilityFlow, ReverseSDE
from .processes import Process
from .ranges import Range, gaussian_start
from .solve import SolveWarning, solve

FIRST = (3.0, 10.0, 30.0, math.inf)  # where ranges that are tried start, in standard deviations of the data
ALONG = (1.0, 2.0, 4.0, 10.0, math.inf)  # the same where their directions are known, in standard deviations along the strongest
LAST = (0.0, 0.5, 1.0)  # where they stop, in standard deviations of the data over the number of steps
STARTS = 2  # candidates of a method that are refined
RACE: tuple[tuple[str, dict[str, Any]], ...] = (
    ("unipc", {}), ("unipc", {"order": 3}), ("deis", {}), ("deis", {"variant": "log_rho"}), ("ipndm", {"order": 3}), ("ipndm", {}),
)  # fmt: skip
"""What "auto" chooses from."""
HEAT = 4  # rounds of refinement after which the nearest is taken
OF_PIECES = 0.02  # difference of ln w for the derivative
LONGEST = 8.0  # ln of a step in units of the next: three thousand
LARGEST_MEAN, LARGEST_DIRECTIONS = 1 << 16, 1 << 18  # coordinates up to which the mean of each is kept; numbers that directions may have in all


def optimize_grid(
    problem: ProbabilityFlow | ReverseSDE,
    method: str,
    *,
    nfe: int,
    shape: Sequence[int],
    samples: int = 256,
    seed: int = 0,
    denoise: bool = True,
    data: Range | None = None,
    reference: str = "tsit5",
    tolerance: float = 1e-4,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    progress: bool = False,
    **options: Any,
) -> OptimisedGrid:
    """The nodes with which ``method`` comes nearest to the flow in ``nfe`` network calls; where to start and stop included.

    Costs the reference, and a few hundred solves of ``nfe`` calls with half of the samples each: seconds for a score in closed form.
    Worth it where one model is sampled often with at most 20 calls.

    Arguments:
        problem: ``process.probability_flow(score)`` or ``process.reverse(score)``.
        method: a deterministic method by name, or "auto" for the one that comes nearest on nodes of its own, of UniPC, DEIS and iPNDM in the forms that
            have won somewhere; two to four times as dear.  A stochastic method takes the grid of its deterministic counterpart.
        nfe: most network calls that a sample may see, the denoiser's included.
        shape: of one sample, without the batch: (1, 28, 28).
        samples: draws of the prior, at least 16; half find the nodes, half judge them, and half as many more, which have chosen nothing, tell the error.
            Where one draw in a hundred leaps to another mode, what 128 draws tell is uncertain by half; with 1024 samples nodes are better, too.
        seed: names the draws; the same seed gives the same grid.
        denoise: whether the solve ends where no noise is left, in one call more; without it the last node is the problem's own end.
        data: their moments, from which a solve along the grid starts, as ``sd.Range.of(images)``; default: mean and standard deviation of the draws'
            ends, which are too few to know directions.  Where such a range starts and stops is not asked: that is found.
        reference, tolerance: ODE method that chooses its steps, and its rtol and atol, in units of the state.
        dtype, device: of the states.
        progress: draw a progress bar.
        options: the method's own.

    Returns:
        The grid, with its error and that of the default grid on draws that have chosen nothing: ``sd.solve(problem, x_T, method, grid=grid)``.
        Where it is the larger, as with moments of other data, a :class:`SolveWarning` says so.

    Raises:
        ValueError: a method that draws noise or does not walk a grid; an ``nfe`` too small, with the smallest that works.
    """
    if not isinstance(problem, ReverseSDE | ProbabilityFlow):
        raise TypeError(f"problem is a {type(problem).__name__}; expected process.probability_flow(score) or process.reverse(score).")
    flow = problem.probability_flow() if isinstance(problem, ReverseSDE) else problem
    if method == "auto" and options:
        raise ValueError(f"unknown argument(s) {', '.join(options)}: method='auto' chooses the method and its options; expected one by name for options of your own.")
    racing = RACE if method == "auto" else ((method, options),)
    steppers = [_walker(name, chosen, flow) for name, chosen in racing]
    denoise = bool(_checks.denoise_of(denoise, flow, None))
    steps = _checks.steps_for(steppers[0], integer("nfe", nfe, 1, 10), denoise, flow.score.calls)  # one call a step, all that race
    check_reference(reference, tolerance, dtype, flow)
    x = draws(flow, samples, shape, seed, dtype, device)
    if data is not None:
        check_data(data, flow, x)
    stats: dict[str, Any] = {}
    rounds = STARTS * ROUNDS if len(racing) == 1 else len(racing) * HEAT + ROUNDS
    with _tally.added_to(stats), _progress.count(progress, 2 + rounds, f"grid for {method}") as advance, warnings.catch_warnings():
        warnings.simplefilter("ignore", SolveWarning)  # what a bad grid does to some samples is in its cost
        ends = followed(flow, centred(flow, x), reference, tolerance, to_no_noise=denoise)
        advance()
        moments = data or _moments(ends, noise_ratio(flow.process, flow.interval[1]))
        search, z = _nearest([Search(flow, name, chosen, steps, denoise, x, ends, moments) for name, chosen in racing], advance)
        grid, plain = search.grid(z), search.default()
        error, baseline = search.error(grid), search.error(plain)
    if not error <= baseline:
        warnings.warn(_worse(error, baseline, data), SolveWarning, stacklevel=2)
    return dataclasses.replace(grid, nfe=nfe, error=error, baseline=baseline, calls=stats["calls"], rows=stats["rows"])


def _nearest(searches: Sequence[Search], advance: Callable[[], None]) -> tuple[Search, Tensor]:
    """The search that comes nearest to the ends that judge, and its pieces; of several, all run a heat, and the first goes on."""
    alone = len(searches) == 1
    starts = [(search, z) for search in searches for z in search.starts(STARTS if alone else 1)]
    advance()
    found = [(search, search.refined(z, advance, ROUNDS if alone else HEAT)) for search, z in starts]
    search, z = min(found, key=lambda at: at[0].cost(at[1], at[0].held))
    return search, z if alone else search.refined(z, advance)


def _walker(method: str, options: dict[str, Any], flow: ProbabilityFlow) -> Stepper:
    """The method, if its ends are a function of the start and the nodes."""
    if not isinstance(method, str) or ":" in method:
        raise ValueError(f"method={method!r}; expected the name of one of sdesolve.methods(), as in method='ddim'.")
    stepper = _checks.stepper_of(method, options, flow, at_tolerance=False)
    if stepper.facts.kinds:
        raise ValueError(
            f"method={method!r} draws noise, so its samples have no ends to compare with the flow's; expected a deterministic method, as "
            "method='ddim', whose grid can then be given to a stochastic one."
        )
    _checks.suited(stepper, flow, method)
    return stepper


def check_data(data: object, flow: ProbabilityFlow, x: Tensor) -> None:
    """That it is a range, of moments that fit the draws."""
    if not isinstance(data, Range):
        raise TypeError(f"data is a {type(data).__name__}; expected their moments, as in data=sd.Range.of(images).")
    gaussian_start(flow.process, x[:1], flow.interval[0], data.data_mean, data.data_std, data.directions)


def _moments(ends: Tensor, noise: float) -> Range:
    """Of where the flow takes the draws, by steps that end in noise of that width."""
    if float((ends - ends[:1]).abs().max()) <= 1e-3 * noise:
        raise ValueError("problem takes all draws to one point, where any nodes are as good as others; expected the score of a law with some width.")
    return Range.of(ends, directions=0)


def _worse(error: float, baseline: float, data: Range | None) -> str:
    """What there is to say where the search has lost."""
    hint = "more samples, as in samples=1024" if data is None else f"the moments of what this model makes: data={data} starts a solve from others, or leave data out"
    return f"the nodes that were found err by {error:.3g} on draws that have chosen nothing, and the default grid by {baseline:.3g}; expected {hint}."


def draws(
    flow: ProbabilityFlow, samples: int, shape: Sequence[int], seed: int, dtype: torch.dtype, device: torch.device | str, usual: int = 256
) -> Tensor:
    """Draws of the prior to search with, and half as many more, (3 samples / 2, *shape)."""
    return flow.process.prior((integer("samples", samples, 16, usual) // 2 * 3, *_event(shape)), seed=seed, dtype=dtype, device=_device(device))


def check_reference(reference: str, tolerance: float, dtype: torch.dtype, flow: ProbabilityFlow) -> None:
    """That the flow can be solved by it to that tolerance, in that precision."""
    check_dtype(dtype)
    stepper = _checks.stepper_of(reference, {}, flow, at_tolerance=True)
    _checks.suited(stepper, flow, reference)
    if stepper.error_order is None:
        raise ValueError(f"reference={reference!r} does not choose its steps; expected an ODE method that does, as in reference='tsit5'.")
    try:
        _checks.control_of(stepper, tolerance, tolerance, dtype)
    except ValueError:
        least = torch.finfo(dtype).eps
        raise ValueError(f"tolerance={tolerance!r} in {dtype}; expected a number of at least its rounding, as in tolerance={max(1e-4, 2 * least):.1g}.") from None


def check_dtype(dtype: torch.dtype) -> None:
    """That states can be of it."""
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise ValueError(f"dtype={dtype!r}; expected a real floating dtype, as in dtype=torch.float32.")


def followed(flow: ProbabilityFlow, x: Tensor, method: str, tolerance: float, *, to_no_noise: bool = True) -> Tensor:
    """Where the flow takes x from the start of its interval, by a method that chooses its steps; short ones of a multistep method lead from the end
    of the process's noise to none."""
    first, last = flow.interval
    how: dict[str, Any] = {"rtol": tolerance, "atol": tolerance, "throw": True}
    if not to_no_noise:
        return solve(flow, x, method, **how).x
    near = time_at_ratio(flow.process, min(1.5 * noise_ratio(flow.process, last), 0.5 * noise_ratio(flow.process, first)))
    x = solve(flow, x, method, interval=(first, near), **how).x
    return solve(flow, x, "deis", steps=8, interval=(near, last), denoise=_checks.EXTRAPOLATE, throw=True).x


def _event(shape: Any) -> tuple[int, ...]:
    """The shape of a sample."""
    try:
        event = tuple(integer("shape", n, 1, 28) for n in shape)
    except (TypeError, ValueError):
        event = ()
    if not event:
        raise ValueError(f"shape={shape!r}; expected the shape of one sample, of integers >= 1, as in shape=(1, 28, 28).")
    return event


def _device(device: torch.device | str) -> torch.device:
    """A device that is there."""
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError, TypeError) as error:
        raise ValueError(f"device={device!r} is not to be had ({str(error).splitlines()[0]}); expected one that is, as in device='cpu'.") from error


def _apart_enough(z: Tensor, steps: int) -> Tensor:
    """The pieces, none of those between two nodes so much shorter than the next that a method with a memory would refuse the grid in mid-search."""
    between, number = z[1 : steps + 1], torch.arange(steps)
    lifted = (between - LONGEST * (number[:, None] - number).abs()).amax(1)
    return torch.cat([z[:1], lifted, z[steps + 1 :]])


def centred(flow: ProbabilityFlow, x: Tensor) -> Tensor:
    """Draws of p_T, where the prior stands at zero: the data's mean is what the network makes of pure noise."""
    t = flow.interval[0]
    return gaussian_start(flow.process, x, t, flow.score.denoise(x, t).mean(0), 0.0)


def nodes_over(
    data: Range, process: Process, ts: Sequence[float], method: str, options: dict[str, Any], denoise: bool, event: Sequence[int]
) -> OptimisedGrid:
    """Nodes along which a solve starts from these moments; what they cost and how far they err is for others to say."""
    mean, numbers = data.data_mean, math.prod(event)
    each = mean.double().expand(event).flatten() if isinstance(mean, Tensor) else torch.tensor([mean], dtype=torch.float64)
    means = tuple((each if len(each) <= LARGEST_MEAN else each.mean().reshape(1)).tolist())
    rows = [] if data.directions is None else data.directions.flatten(1)[: LARGEST_DIRECTIONS // numbers].tolist()
    directions = tuple(tuple(float(f"{v:.8g}") for v in row) for row in rows)
    return OptimisedGrid(tuple(ts), repr(process), method, tuple(sorted(options.items())), 1, denoise, means, data.data_std, directions, math.inf, math.inf, 1, 1)


class Search(GaussNewton):
    """Distances to the flow as a function of the pieces z = ln w, up to a constant, that the nodes are made of."""

    difference = OF_PIECES

    def __init__(
        self, flow: ProbabilityFlow, method: str, options: dict[str, Any], steps: int, denoise: bool, x: Tensor, ends: Tensor, moments: Range
    ) -> None:
        self.flow, self.method, self.options, self.steps, self.denoise = flow, method, options, steps, denoise
        self.span = tuple(0.5 * float(flow.process.log_snr(t)) for t in flow.interval)
        self.seen, self.held, self.told = parts(x, ends)
        self.event, self.moments, self.std = ends.shape[1:], moments, moments.data_std
        directed = moments.directions is not None and ends[0].numel() <= LARGEST_DIRECTIONS
        self.firsts = tuple(moments.widest * f for f in ALONG) if directed else tuple(self.std * f for f in FIRST)

    def grid(self, z: Tensor) -> OptimisedGrid:
        """The nodes of some pieces."""
        process, (first, last) = self.flow.process, self.span
        levels = first + (last - first) * torch.softmax(_apart_enough(z, self.steps), 0).cumsum(0)[: self.steps + 1]
        ts = process.log_snr_inverse(2 * levels).tolist()
        ts = ts if self.denoise else [*ts[:-1], self.flow.interval[1]]
        return nodes_over(self.moments, process, ts, self.method, self.options, self.denoise, self.event)

    def starts(self, count: int) -> list[Tensor]:
        """The best of the named grids, by the seen half."""
        return sorted(self.candidates(), key=lambda z: self.cost(z, self.seen))[:count]

    def default(self) -> Grid:
        """The grid of a solve that is told no other."""
        process = self.flow.process
        return make_grid(_checks.default_grid(_checks.stepper_of(self.method, self.options, self.flow, False), process), process, *self.flow.interval, self.steps)

    def candidates(self) -> Iterator[Tensor]:
        """Pieces of named grids over ranges of noise."""
        yield self.pieces(self.default().ts)
        process, (whole_first, whole_last) = self.flow.process, self.flow.interval
        for first, last, recipe in itertools.product(self.firsts, LAST if self.denoise else LAST[:1], (karras(), log_snr(), arctan(self.std))):
            t0 = min(whole_first, time_at_ratio(process, first)) if first < math.inf else whole_first
            t1 = max(whole_last, time_at_ratio(process, last / self.steps * self.std)) if last else whole_last
            if t0 > t1:
                yield self.pieces(make_grid(recipe, process, t0, t1, self.steps).ts)

    def pieces(self, ts: Sequence[float]) -> Tensor:
        """ln w of some nodes."""
        first, last = self.span
        levels = 0.5 * self.flow.process.log_snr(torch.tensor(ts, dtype=torch.float64))
        ends = [levels.new_tensor([v]) for v in self.span]
        pieces = torch.cat([ends[0], levels, *([ends[1]] if self.denoise else [])]).diff() / (last - first)
        return pieces.clamp(min=1e-3 / self.steps).log()

    def apart(self, z: Tensor, part: Part) -> Tensor:
        return self._apart(self.grid(z), part)

    def _apart(self, grid: Grid, part: Part) -> Tensor:
        """How far the sampler's ends lie from the flow's, in standard deviations of the data, (rows, d)."""
        x = solve(self.flow, part.x, self.method, grid=grid, denoise=_checks.EXTRAPOLATE if self.denoise else False, **self.options).x
        return (x - part.ends).reshape(len(x), -1) / self.std

    def error(self, grid: Grid) -> float:
        """Mean distance of the draws that have chosen nothing, root mean square over coordinates, in units of the data."""
        return self.std * float(distances(self._apart(grid, self.told)).mean())
