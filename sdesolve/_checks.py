"""Validation of the arguments of ``solve``: once, before the first network call, each message with the line to type."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, Final, Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from ._backends import Backend, make_backend
from ._errors import as_float, as_int, choice, integer, truth
from ._given import given
from ._loops.dense import Event
from ._loops.parallel import Parallel
from .brownian import BrownianPath
from .control import Control
from .grids import Grid, Recipe, make_grid, noise_ratio, times_of
from .methods import Facts, Stepper, make_method, methods
from .methods.constrained import Constrained, ConstrainedCorrector, Constraint, applied
from .noise import check_seed
from .optimised import OptimisedGrid
from .problems import ODE, PER_ROW_TIME, SDE, Field, Interval, ProbabilityFlow, ReverseSDE, UnderdampedLangevin
from .processes import Process
from .ranges import Opening, Range
from .scores import Score

AnyProblem = SDE | ODE | UnderdampedLangevin | ReverseSDE | ProbabilityFlow
Stochastic = SDE | UnderdampedLangevin | ReverseSDE

DEFAULT_STEPS = 500
MOST_STEPS = 1_000_000  # of a grid: more is a slip of the hand, and takes memory before the first step
_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
Denoise: TypeAlias = bool | Literal["extrapolate"]
EXTRAPOLATE: Final = "extrapolate"
SAME = 1e-6  # of the interval: times closer than float32 can tell are one


def stepper_of(method: str | Stepper, options: dict[str, Any], problem: AnyProblem, at_tolerance: bool) -> Stepper:
    """A method by name with its options, or a user's own stepper."""
    if isinstance(method, str):
        if ":" in method:
            return make_backend(method, options, getattr(problem, "noise", None), at_tolerance)
        return make_method(method, **options)
    if not isinstance(method, Stepper):
        raise TypeError(f"method is a {type(method).__name__}; expected a name from sdesolve.methods() or a Stepper.")
    if options:
        raise ValueError(f"unknown argument(s) {', '.join(options)}: the options of a Stepper are given when it is made.")
    return method


def constrained(constraint: Constraint | None, stepper: Stepper, on_grid: bool, tolerance: bool) -> Stepper:
    """The method with the constraint after each of its moves; ``on_grid``: whether steps were given, ``tolerance``: whether that was."""
    if constraint is None:
        return stepper
    if not callable(constraint):
        raise TypeError(f"constraint is a {type(constraint).__name__}; expected a function: constraint=lambda x, t, normals: x.clamp(-1, 1).")
    if isinstance(stepper, Backend):
        raise ValueError(f"constraint follows each of sdesolve's own steps, and {stepper.method} is another package's; expected one of sdesolve.methods().")
    if not on_grid and stepper.own_grid is None and stepper.error_order is not None and (tolerance or stepper.chooses_steps):
        raise ValueError(
            "constraint is applied at the nodes of a grid, and here steps are chosen, so that how often it acts would hang on the tolerance; "
            "expected a grid, as in steps=100."
        )
    return stepper.constrained(partial(Constrained, constraint=constraint), partial(ConstrainedCorrector, constraint=constraint))


def try_constraint(constraint: Constraint | None, x: Tensor, t: float, at_once: Parallel | None) -> None:
    """That what a constraint returns is like the state; with as many rows as ``parallel`` may have of them."""
    if constraint is None:
        return
    rows = x.repeat_interleave(at_once.window, 0) if at_once else x.clone()
    try:
        with given(torch.arange(len(x)).repeat_interleave(at_once.window if at_once else 1), len(x)):
            applied(constraint, rows, torch.full((len(rows),), t, dtype=torch.float64, device=x.device) if at_once else t, torch.zeros_like(rows))
    except RuntimeError as error:
        if at_once:
            error.add_note(
                "parallel applies the constraint to more rows than the batch has, each at a time of its own; expected sdesolve.of_rows(tensor, x) "
                "where it holds a tensor of the whole batch, or parallel=None."
            )
        raise


def suited(stepper: Stepper, problem: AnyProblem, name: str) -> AnyProblem:
    """The problem as the method takes it: an ODE method integrates a reverse SDE's probability flow."""
    if not isinstance(problem, AnyProblem):
        raise TypeError(
            f"problem is a {type(problem).__name__}; expected sdesolve.SDE, ODE, UnderdampedLangevin, process.reverse(score) or process.probability_flow(score)."
        )
    facts = stepper.facts
    if "score" in facts.needs and not isinstance(problem, ReverseSDE | ProbabilityFlow):
        raise ValueError(f"method={name!r} needs a score; expected process.reverse(score) or process.probability_flow(score). For a plain problem: {_able(problem)}.")
    if "langevin" in facts.needs and not isinstance(problem, UnderdampedLangevin):
        raise ValueError(f"method={name!r} splits a force from a heat bath; expected sdesolve.UnderdampedLangevin(force). For this problem: {_able(problem)}.")
    if facts.kinds:
        if not isinstance(problem, Stochastic):
            raise ValueError(f"method={name!r} solves SDEs, and this problem has no noise. {_for_flow(problem)}Methods for it: {_able(problem)}.")
        if not _covers(facts, problem):
            hint = " Where its columns commute, say so: SDE(..., commutative=True)." if problem.noise == "general" and "commutative" in facts.kinds else ""
            raise ValueError(
                f"method={name!r} does {', '.join(sorted(facts.kinds))} noise; the problem has noise={problem.noise!r}. Methods for it: {_able(problem)}.{hint}"
            )
    elif isinstance(problem, ReverseSDE):
        return problem.probability_flow()
    elif isinstance(problem, Stochastic):
        raise ValueError(f"method={name!r} solves ODEs, and this problem has noise. Methods for it: {_able(problem)}.")
    return problem


def _covers(facts: Facts, problem: Stochastic) -> bool:
    """Whether a method does the problem's kind of noise; what does general noise does it where it commutes."""
    return not facts.kinds.isdisjoint({problem.noise, problem.kind} if isinstance(problem, SDE) else {problem.noise})


def _able(problem: AnyProblem) -> str:
    """Names of the methods that can do a problem."""
    has = {"derivative"}
    has |= {"score"} if isinstance(problem, ReverseSDE | ProbabilityFlow) else set()
    has |= {"langevin"} if isinstance(problem, UnderdampedLangevin) else set()
    right = [
        name
        for name, facts in methods()
        if facts.needs <= has and (_covers(facts, problem) if isinstance(problem, Stochastic) else facts.ode is not None)
    ]
    return ", ".join(right) or "none yet"


def prepared(stepper: Stepper, problem: AnyProblem, x: Tensor, interval: Interval) -> AnyProblem:
    """The problem in the calculus that the method integrates, after a look at the initial state for what its noise is said to be."""
    if not isinstance(problem, SDE):
        return problem
    facts, t = stepper.facts, interval[0]
    if problem.noise == "additive":
        _check_additive(problem, x, t)
        return problem
    if problem.calculus not in facts.calculus or "derivative" in facts.needs:
        _check_derivative(problem, x, t)
    if problem.commutative and "commutative" in facts.kinds:
        _check_commutative(problem, x, t)
    return problem if problem.calculus in facts.calculus else problem.read_as("ito" if "ito" in facts.calculus else "stratonovich", interval)


def _check_additive(problem: SDE, x: Tensor, t: float) -> None:
    here, there = problem.diffusion(x, t), problem.diffusion(x + 1, t)
    if bool(((here - there).abs() > _rounding(x) * here.abs()).any()):
        raise ValueError("noise='additive' says that the diffusion does not depend on x, and it does; expected noise='diagonal'.")


def _check_derivative(problem: SDE, x: Tensor, t: float) -> None:
    """That the diffusion has a derivative, and under diagonal noise a diagonal one."""
    problem.diffusion(x, t)  # what is wrong with the diffusion itself is said in its own words
    signs = _normals(x.shape, x).sign()
    try:
        along = problem.derivative(x, t, signs)
    except (RuntimeError, NotImplementedError) as error:
        rows = [name for name, facts in methods() if problem.calculus in facts.calculus and not facts.needs and _covers(facts, problem)]
        raise ValueError(
            f"the diffusion has no forward-mode derivative ({str(error).splitlines()[0]}); expected it to be given, as in "
            f"SDE(..., diffusion_derivative=lambda x, t, v: torch.cos(x) * v), or a method that needs none: {', '.join(rows) or 'none yet'}."
        ) from error
    if problem.noise != "diagonal" or x[0].numel() == 1:
        return
    each = problem.derivative(x, t, torch.ones_like(x)) * signs
    if bool(((along - each).abs() > _rounding(x) * (along.abs() + each.abs())).any()):
        raise ValueError(
            "noise='diagonal' says that each coordinate of the diffusion depends on its own coordinate of x alone, and it depends on others; "
            "expected noise='general' and a matrix: torch.diag_embed(g) for events of shape (d,)."
        )


def _check_commutative(problem: SDE, x: Tensor, t: float) -> None:
    """That the Lie bracket of two random directions, Dg[g a] b - Dg[g b] a, vanishes in each row."""
    g = problem.diffusion(x, t)
    a, b = _normals((2, len(x), g.shape[-1]), x)
    one, other = (problem.apply(problem.derivative(x, t, problem.apply(g, first)), second) for first, second in ((a, b), (b, a)))
    apart = _flat(one - other).amax(1) > _rounding(x) * (_flat(one) + _flat(other)).amax(1)
    if bool(apart.any()):
        raise ValueError(
            f"commutative=True, but the columns of the diffusion do not commute at the initial state of sample {int(apart.nonzero()[0])}; "
            "leave it out, and take a method for general noise."
        )


def _rounding(x: Tensor) -> float:
    """What two ways of computing one number may differ by."""
    return float(torch.finfo(x.dtype).eps) ** (2 / 3)


def _flat(x: Tensor) -> Tensor:
    return x.abs().reshape(len(x), -1)


def _normals(shape: Sequence[int], x: Tensor) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0)).to(x)


def _for_flow(problem: AnyProblem) -> str:
    return "Use process.reverse(score) for it. " if isinstance(problem, ProbabilityFlow) else ""


def opening_of(problem: AnyProblem, interval: object, grid: object) -> Opening | None:
    """What moves the prior draw to where the solve starts: a range given as the interval, or a grid that was optimised with one."""
    given = [o for o in (interval, grid) if isinstance(o, Range | OptimisedGrid)]
    if not given:
        return None
    if not isinstance(problem, ReverseSDE | ProbabilityFlow):
        raise ValueError(f"{type(given[0]).__name__} speaks of noise levels, and this problem has none; expected times: interval=(0.0, 1.0).")
    if isinstance(grid, OptimisedGrid) and interval is not None:
        raise ValueError("grid was optimised together with its interval; leave interval out.")
    return given[0]


def nodes_of(stepper: Stepper, grid: Grid | str | Recipe | Sequence[float] | Tensor | None) -> Grid | None:
    """The times that are given, or that the method brings; None where there are but a number and a recipe."""
    if stepper.own_grid is not None or grid is None or isinstance(grid, str) or callable(grid):
        return stepper.own_grid
    return grid if isinstance(grid, Grid) else Grid.of(grid)


def interval_of(
    problem: AnyProblem, interval: Interval | Range | None, opening: Opening | None, calls: int | None, stepper: Stepper, nodes: Grid | None
) -> Interval:
    """The interval to solve on, checked by the problem that knows where it is defined; of a range, ends that are not its own are those of the times given."""
    times: Any = opening.interval(problem.process, calls, problem.interval[1]) if opening else interval  # type: ignore[union-attr]
    if isinstance(opening, Range) and nodes and problem.interval[0] >= nodes.ts[0] > nodes.ts[-1] >= problem.interval[1]:
        times = nodes.ts[0] if opening.first is None else times[0], nodes.ts[-1] if opening.last is None else times[1]
    if isinstance(opening, Range) and nodes and stepper.own_grid is None and not _same_ends((nodes.ts[0], nodes.ts[-1]), problem.check_interval(times)):
        raise ValueError(
            f"grid runs from {nodes.ts[0]} to {nodes.ts[-1]} and the interval is {times}; expected times from noise to data within {problem.interval}, and a Range "
            "without first and last, which starts and stops where they do."
        )
    own = stepper.own_grid
    if own is not None and times is None:
        times = own.ts[0], own.ts[-1]
        if not _same_ends(times, problem.interval):
            raise ValueError(
                f"this method is made for its own grid, from {times[0]} to {times[1]}, and the problem runs over {problem.interval}; expected grid=the OptimisedGrid that its "
                f"numbers were found for, which moves the start and denoises the end, or interval={times}, with x a state of that time."
            )
    return problem.interval if times is None else problem.check_interval(times)


def narrow_noise(problem: AnyProblem, interval: object) -> str | None:
    """What there is to say where a range starts in noise that is narrower than the data, because the process has no more."""
    if not isinstance(interval, Range) or not isinstance(problem, ReverseSDE | ProbabilityFlow):
        return None
    most = noise_ratio(problem.process, problem.process.T)
    if most >= interval.widest:
        return None
    return (
        f"the data are {interval.widest:.4g} wide and {problem.process!r} has noise of sigma/alpha = {most:.4g} at most, where the law of other than Gaussian data "
        "is no Gaussian, as the start is; expected a process with noise wider than the data, or data scaled down, to be trained on."
    )


def _same_ends(one: Interval, other: Interval) -> bool:
    """Whether float32 could not tell them apart."""
    return max(abs(a - b) for a, b in zip(one, other, strict=True)) <= SAME * abs(other[1] - other[0])


def check_state(x: Tensor, problem: AnyProblem, stepper: Stepper) -> None:
    """A non-empty floating (B, *event), on the device of the network."""
    if not isinstance(x, Tensor):
        raise TypeError(f"x is a {type(x).__name__}; expected a tensor: torch.as_tensor(x, dtype=torch.float32).")
    if x.dtype not in _DTYPES:
        raise TypeError(f"x has dtype {x.dtype}; expected a real floating dtype: x.float().")
    if x.layout != torch.strided:
        raise TypeError(f"x has the layout {x.layout}; expected a dense tensor: x.to_dense().")
    if x.device.type == "meta":
        raise ValueError("x is on meta, where a tensor holds no numbers; expected one that does: torch.ones_like(x, device='cpu').")
    if x.dim() == 0 or x.numel() == 0:
        raise ValueError(f"x has shape {tuple(x.shape)}; expected (B, *event) with at least one sample and one element.")
    if stepper.facts.largest is not None and x[0].numel() > stepper.facts.largest:
        raise ValueError(
            f"x has {x[0].numel()} numbers a sample, and this method takes at most {stepper.facts.largest}: it factorises a Jacobian of that size "
            "for each sample and step. Expected an explicit method, as in method='tsit5'."
        )
    if isinstance(problem, UnderdampedLangevin) and (x.dim() < 2 or x.shape[1] != 2):
        raise ValueError(f"x has shape {tuple(x.shape)}; expected (B, 2, *event), positions and velocities: torch.stack([q, v], 1).")
    model = problem.score.model if isinstance(problem, ReverseSDE | ProbabilityFlow) else None
    if isinstance(model, nn.Module):
        parameter = next(model.parameters(), None)
        if parameter is not None and parameter.device != x.device:
            raise ValueError(f"x is on {x.device} and the network on {parameter.device}; expected one device: x.to({str(parameter.device)!r}).")


def check_times(x: Tensor, interval: Interval) -> None:
    """That x's dtype, in which a drift is told the time, holds the interval's ends."""
    if max(abs(t) for t in interval) > torch.finfo(x.dtype).max:
        raise ValueError(f"interval={interval} has times that {x.dtype} cannot hold; expected a state that can: x.double().")


def check_callback(callback: object) -> None:
    """A callback that can be called."""
    if callback is not None and not callable(callback):
        raise TypeError(f"callback is a {type(callback).__name__}; expected a function of a Moment: lambda moment: print(moment.t).")


def denoise_of(denoise: Denoise | None, problem: AnyProblem, opening: Opening | None) -> Denoise:
    """Whether to end with Tweedie's formula, which needs a score, and whether as it is; by default extrapolated where a range of noise says so."""
    if denoise is None:
        return EXTRAPOLATE if opening is not None and opening.denoise else False
    if not isinstance(denoise, bool | np.bool_) and denoise != EXTRAPOLATE:
        raise TypeError(f"denoise={denoise!r}; expected True, {EXTRAPOLATE!r}, False, or None for the default.")
    if denoise and not isinstance(problem, ReverseSDE | ProbabilityFlow):
        raise ValueError(f"denoise={denoise!r} needs a score; expected process.reverse(score) or process.probability_flow(score).")
    return EXTRAPOLATE if denoise == EXTRAPOLATE else bool(denoise)


def gradient_of(gradient: str | None, stepper: Stepper, problem: AnyProblem, event: object) -> str | None:
    """How derivatives are to be had, of a solve that has them."""
    if gradient is None:
        return None
    choice("gradient", gradient, ("backprop", "checkpoint", "adjoint"))
    if isinstance(stepper, Backend):
        raise ValueError(f"gradient={gradient!r} goes through sdesolve's own methods, and {stepper.method} is another package's; expected one of sdesolve.methods().")
    if event is not None:
        raise ValueError(f"gradient={gradient!r} does not know how a sample's end moves with its event; expected one of event and gradient.")
    if torch.is_inference_mode_enabled():
        raise ValueError(f"gradient={gradient!r} was given in torch.inference_mode, which keeps none; expected a solve outside of it.")
    facts = stepper.facts
    runs_back = facts.dense is not None and facts.largest is None  # what a method for stiff problems damps, explodes backwards
    if gradient == "adjoint" and not stepper.reversible and not (runs_back and not isinstance(problem, Stochastic)):
        raise ValueError(
            "gradient='adjoint' is for ODEs by an explicit method with a continuous extension ('rk45', 'tsit5', 'rk4', ...), and for "
            "method='reversible_heun'; expected one of those, or gradient='checkpoint'."
        )
    return gradient


def check_compile(compile: bool, stepper: Stepper, chosen: bool, gradient: str | None) -> None:
    """There is a step of ours to compile; ``chosen``: whether rows may leave the batch."""
    truth("compile", compile)
    if compile and gradient in ("checkpoint", "adjoint"):
        raise ValueError(f"gradient={gradient!r} looks into each step for what it depends on, and a compiled one shows nothing; expected gradient='backprop'.")
    if compile and isinstance(stepper, Backend):
        raise ValueError(f"compile=True compiles sdesolve's own steps, and {stepper.method} is another package's; expected one of sdesolve.methods().")
    if compile and chosen and stepper.facts.largest is not None:
        raise ValueError("compile=True cannot trace this method's Jacobian in a batch whose size changes; expected steps, as in steps=100, or compile=False.")


def parallel_of(parallel: int | Parallel | None, stepper: Stepper, chosen: bool, gradient: str | None, compile: bool, nfe: int | None) -> Parallel | None:
    """How steps are taken at once, of a method of ours whose rows and steps stand apart; ``chosen``: whether it chooses its steps; ``nfe``: what was asked for."""
    if parallel is None:
        return None
    window = as_int(parallel)
    if window is None and not isinstance(parallel, Parallel):
        raise TypeError(f"parallel is a {type(parallel).__name__}; expected a number of steps, as in parallel=16, or sdesolve.Parallel(window=16, tolerance=1e-4).")
    if isinstance(stepper, Backend):
        raise ValueError(f"parallel takes sdesolve's own steps, and {stepper.method} is another package's; expected one of sdesolve.methods().")
    if chosen:
        raise ValueError("parallel takes steps of a grid at once, and here they are chosen one after the other; expected a grid, as in steps=100.")
    if nfe is not None:
        raise ValueError(f"nfe={nfe} is the most network calls a sample may see, and parallel evaluates each step as often as it takes; expected steps, as in steps={max(1, nfe)}.")
    if gradient is not None:
        raise ValueError(f"gradient={gradient!r} goes through steps that are taken one after the other; expected one of parallel and gradient.")
    if compile:
        raise ValueError("compile=True compiles a step for one number of rows, and parallel changes it; expected one of parallel and compile.")
    if stepper.reversible:
        raise ValueError("a reversible method carries a second state that swings about the first, which no iteration reaches sooner than the steps do; expected method='heun_sde'.")
    if stepper.one_time:
        raise ValueError("this method's step takes one time for all rows, and parallel takes steps of many times at once; expected parallel=None, or another method.")
    if stepper.couples_rows:
        raise ValueError("norm='batch' takes a mean over the batch, in which parallel puts many steps; expected norm='expected', or parallel=None.")
    return parallel if isinstance(parallel, Parallel) else Parallel(integer("parallel", window, 1, example=16))


def seed_of(seed: int | None, generator: torch.Generator | None) -> int:
    """A given seed, or one drawn from ``generator`` or torch's global generator."""
    if generator is not None and not isinstance(generator, torch.Generator):
        raise TypeError(f"generator is a {type(generator).__name__}; expected torch.Generator().manual_seed(0), or seed=0 instead.")
    if seed is None:
        device = generator.device if generator is not None else "cpu"
        return int(torch.randint(2**62, (), generator=generator, device=device))
    if generator is not None:
        raise ValueError("seed and generator were both given; expected one of them.")
    return check_seed(seed)


def check_own_noise(stepper: Stepper, sample_ids: object, noise: object) -> None:
    """That nothing is asked of a noise that another package draws."""
    if isinstance(stepper, Backend) and stepper.facts.kinds and stepper.error_order is not None and (sample_ids is not None or noise != "seeded"):
        asked = "sample_ids" if sample_ids is not None else "noise"
        raise ValueError(f"{asked} was given, but at a tolerance {stepper.method} draws its own noise; leave it out, or give steps.")


def path_of(noise: str | BrownianPath, problem: AnyProblem, x: Tensor, interval: Interval, seed: int, ids: Tensor) -> BrownianPath | None:
    """The Brownian path that drives the solve, or None where each step has increments of its own."""
    if isinstance(noise, str):
        if choice("noise", noise, ("seeded", "brownian")) == "seeded":
            return None
    elif not isinstance(noise, BrownianPath):
        raise TypeError(f'noise is a {type(noise).__name__}; expected "seeded", "brownian" or a sdesolve.BrownianPath.')
    if not isinstance(problem, Stochastic):
        raise ValueError("noise was given, and there is none in this problem for the method; leave it out.")
    shape = (len(x), *problem.brownian_event(x))
    if isinstance(noise, str):
        return BrownianPath(shape, interval, seed=seed, sample_ids=ids, dtype=x.dtype, device=x.device)
    if noise.shape != shape:
        raise ValueError(f"noise is a path of shape {noise.shape}; expected {shape}, the samples and the event of the problem's noise.")
    if not noise.interval[0] <= min(interval) < max(interval) <= noise.interval[1]:
        raise ValueError(f"noise is a path on {noise.interval} and the solve runs over {interval}; expected a path that covers it.")
    return noise.to(x)


def grid_of(
    problem: AnyProblem,
    stepper: Stepper,
    interval: Interval,
    steps: int | None,
    grid: Grid | str | Recipe | Sequence[float] | Tensor | None,
    nodes: Grid | None,
    nfe: int | None,
    denoise: bool,
    tolerance: bool,
    name: str,
) -> Grid | None:
    """The grid to walk, or None where the method, called ``name``, shall choose its steps; ``nodes``: of :func:`nodes_of`, ``tolerance``: whether one was given."""
    chosen = _chosen_grid(problem, stepper, interval, steps, grid, nodes, nfe, denoise, tolerance)
    if chosen is not None and tolerance:
        raise ValueError(f"rtol and atol choose steps, but method={name!r} walks a grid here; leave them out, or use method='rk45' without steps.")
    if chosen is not None and isinstance(problem, ReverseSDE | ProbabilityFlow):
        stepper.check_grid(problem.process, chosen.ts)
    return chosen


def _chosen_grid(
    problem: AnyProblem,
    stepper: Stepper,
    interval: Interval,
    steps: int | None,
    grid: Grid | str | Recipe | Sequence[float] | Tensor | None,
    nodes: Grid | None,
    nfe: int | None,
    denoise: bool,
    tolerance: bool,
) -> Grid | None:
    if isinstance(stepper, Backend) and stepper.error_order is not None:
        if not (steps is None and grid is None and nfe is None):
            raise ValueError(f"{stepper.method} chooses its steps at rtol and atol here; expected no steps, grid or nfe.")
        return None
    own = stepper.own_grid
    if own is not None:
        same = grid is None or (isinstance(grid, Grid) and grid.ts == own.ts)  # of an OptimisedGrid, which brings a start and an end besides
        if not (steps is None and nfe is None and same) or (own.ts[0], own.ts[-1]) != interval:
            raise ValueError(f"this method is made for its own grid, of {len(own)} steps from {own.ts[0]} to {own.ts[-1]}; expected no steps, nfe, other grid or interval.")
        return own
    if steps is not None and nfe is not None:
        raise ValueError(f"steps={steps} and nfe={nfe} were both given; expected one of them.")
    if nfe is not None:
        steps = steps_for(stepper, integer("nfe", nfe, 1), denoise, calls_each(problem))
    if nodes is None:
        if steps is None and grid is None and stepper.error_order is not None and (tolerance or stepper.chooses_steps):
            return None
        process = getattr(problem, "process", None)
        recipe: Any = grid or default_grid(stepper, process)
        count = integer("steps", DEFAULT_STEPS if steps is None else steps, 1)
        if count > MOST_STEPS:
            raise ValueError(f"{f'steps={count}' if nfe is None else f'nfe={nfe}'} makes a grid of {count} steps; expected at most {MOST_STEPS}, as in steps=1000.")
        return make_grid(recipe, process, *interval, count)
    if steps is not None:
        raise ValueError("grid gives the times, so steps and nfe must be left out.")
    if _same_ends((nodes.ts[0], nodes.ts[-1]), interval):
        return Grid((interval[0], *nodes.ts[1:-1], interval[1]))
    raise ValueError(f"grid runs from {nodes.ts[0]} to {nodes.ts[-1]} and the interval is {interval}; expected the same ends: interval=({nodes.ts[0]}, {nodes.ts[-1]}).")


def default_grid(stepper: Stepper, process: Process | None) -> str:
    """The name of the grid that a method walks where none is given."""
    return "uniform" if process is None else stepper.default_grid or process.default_grid


def calls_each(problem: AnyProblem) -> int:
    """Network calls of an evaluation, at most: more than one where the score is guided by a network."""
    score = getattr(problem, "score", None)
    return score.calls if isinstance(score, Score) else 1


def evaluations(problem: AnyProblem, nfe: int | None) -> int | None:
    """How many of them so many calls are, one at least; a ``nfe`` that is no number is left to others to refuse."""
    calls, each = as_int(nfe), calls_each(problem)
    return nfe if calls is None or each == 1 else max(1, calls // each)


def steps_for(stepper: Stepper, nfe: int, denoise: bool, each: int = 1) -> int:
    """The largest number of steps whose calls, with the denoiser's, are no more than ``nfe``; ``each``: calls of an evaluation."""
    facts = stepper.facts
    fixed = facts.start + denoise
    least = each * (fixed + facts.evals)
    if nfe < least:
        guided = f" under guidance, {each} calls an evaluation" if each > 1 else ""
        raise ValueError(f"nfe={nfe} is too small for one step of this method{guided}; the smallest that works is nfe={least}.")
    return (nfe // each - fixed) // max(1, facts.evals)


def evaluations_of(stepper: Stepper, problem: AnyProblem, steps: int | None, nfe: int | None, nodes: Grid | None, denoise: bool, tolerance: bool) -> int | None:
    """Evaluations that a walk will make, at most; None where steps are chosen."""
    if nfe is not None:
        return evaluations(problem, integer("nfe", nfe, 1))
    steps = len(nodes) if nodes else steps
    if steps is None and stepper.error_order is not None and (tolerance or stepper.chooses_steps):
        return None
    facts = stepper.facts
    return facts.start + denoise + max(1, facts.evals) * integer("steps", DEFAULT_STEPS if steps is None else steps, 1)


def control_of(stepper: Stepper, rtol: float | None, atol: float | None, dtype: torch.dtype) -> Control:
    """The step controller of a method with an error estimate."""
    rounding = torch.finfo(dtype).eps
    default = max(stepper.default_tolerance, rounding)
    rtol, atol = (default if value is None else _tolerance(name, value) for name, value in (("rtol", rtol), ("atol", atol)))
    if max(rtol, atol) < rounding:
        wider = "x.double(), or " if dtype != torch.float64 else ""
        raise ValueError(
            f"rtol={rtol:g} and atol={atol:g} are below one rounding of {dtype}, {rounding:.2g}: smaller steps would add roundings and no accuracy. "
            f"Expected {wider}one of them above that, as in rtol={1.05 * rounding:.1e}."
        )
    assert stepper.error_order is not None
    return stepper.control(rtol=rtol, atol=atol, q=stepper.error_order)


def _tolerance(name: str, value: object) -> float:
    tolerance = as_float(value)
    if tolerance is None or not 0 <= tolerance < math.inf:
        raise ValueError(f"{name}={value!r}; expected a finite number >= 0, as in {name}=1e-5.")
    return tolerance


def event_of(event: Field | None, direction: int, stepper: Stepper, x: Tensor, interval: Interval, chosen: bool, denoise: bool) -> Event | None:
    """The event that ends a row, tried once at the start."""
    if direction not in (-1, 0, 1):
        raise ValueError(f"event_direction={direction!r}; expected 1 (from - to +), -1 (from + to -) or 0 (both).")
    if event is None:
        if direction:
            raise ValueError(f"event_direction={direction} without an event; expected event=function, as in event=lambda x, t: x[:, 0] - 1.")
        return None
    if not chosen or stepper.facts.dense is None:
        raise ValueError("event is found between the steps of an ODE method that chooses them; expected method='rk45' or the like, without steps, grid and nfe.")
    if denoise:
        raise ValueError(f"denoise={denoise!r} is for the last time, and event=... ends samples at times of their own; expected one of them.")
    made = Event(event, direction)
    made.side(x, torch.full((len(x),), interval[0], dtype=torch.float64, device=x.device))
    return made


def check_rows_apart(problem: AnyProblem, x: Tensor, interval: Interval) -> None:
    """Where B equals the last axis, a time (B,) would multiply columns without a complaint: two calls tell whether it does."""
    if isinstance(problem, ReverseSDE | ProbabilityFlow) or x.dim() < 2 or not 1 < len(x) == x.shape[-1]:
        return
    t = torch.linspace(interval[0], (interval[0] + interval[1]) / 2, len(x), dtype=torch.float64, device=x.device)
    _check_apart("drift", problem.drift, x, t)
    if isinstance(problem, SDE):
        event = problem.brownian_event(x)
        _check_apart("diffusion", lambda x, t: problem.diffuse(x, t, x.new_ones((len(x), *event))), x, t)


def _check_apart(name: str, field: Field, x: Tensor, t: Tensor) -> None:
    together, alone = field(x, t)[-1:], field(x[-1:], t[-1:])
    if not torch.allclose(together, alone, rtol=1e-3, atol=1e-6 * float(alone.abs().max().nan_to_num()), equal_nan=True):
        raise ValueError(f"{name} gives a row another value in a batch than alone; here t has shape ({len(x)},), one time a row. {PER_ROW_TIME}")


def saved_on_grid(save: str | Sequence[float] | Tensor | None, grid: Grid, between: bool) -> dict[int, tuple[float, ...]]:
    """Times to save by step: those of entry i lie in (ts[i - 1], ts[i]], and that of entry 0 is the start."""
    if save is None:
        return {}
    if isinstance(save, str):
        if save != "all":
            raise ValueError(f'save={save!r}; expected "all" or times of the grid.')
        return {i: (t,) for i, t in enumerate(grid.ts)}
    falling = grid.ts[1] < grid.ts[0]
    nodes = np.array(grid.ts)
    saves: dict[int, list[float]] = {}
    for t in sorted(set(_times(save)), reverse=falling):
        nearest = int(np.abs(nodes - t).argmin())
        if abs(nodes[nearest] - t) <= SAME * abs(nodes[-1] - nodes[0]):
            saves.setdefault(nearest, []).append(grid.ts[nearest])
        elif not min(nodes[0], nodes[-1]) < t < max(nodes[0], nodes[-1]):
            raise ValueError(f"save time {t} lies outside the interval {grid.ts[0], grid.ts[-1]}.")
        elif not between:
            raise ValueError(f"save time {t} is not a node of the grid; the nearest is {grid.ts[nearest]}. Put it in with grid=[...], or save='all'.")
        else:
            saves.setdefault(int((nodes > t).sum() if falling else (nodes < t).sum()), []).append(t)
    return {i: tuple(dict.fromkeys(times)) for i, times in saves.items()}


def saved_times(save: str | Sequence[float] | Tensor | None, interval: Interval) -> tuple[float, ...]:
    """Times to land on and save, ordered along the interval."""
    if save is None:
        return ()
    if isinstance(save, str):
        raise ValueError(f"save={save!r}, but every sample chooses its own steps here; expected times, as in save=[{interval[0]}, {interval[1]}], or give steps.")
    times = sorted(set(_times(save)), reverse=interval[1] < interval[0])
    low, high = sorted(interval)
    for t in times:
        if not low <= t <= high:
            raise ValueError(f"save time {t} lies outside the interval {interval}.")
    return tuple(times)


def _times(save: Sequence[float] | Tensor) -> list[float]:
    wanted = times_of("save", save)
    if not wanted or not all(math.isfinite(t) for t in wanted):
        raise ValueError(f"save={save!r}; expected finite times.")
    return wanted
