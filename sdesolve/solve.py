"""The front door: check everything once, choose the loop, hand back a :class:`Solution`."""

from __future__ import annotations

import itertools
import math
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor

from . import _auto, _checks, _progress, _tally
from ._backends import Backend
from ._checks import AnyProblem, Stochastic
from ._errors import integer, truth
from ._loops import adaptive, adjoint, fixed
from ._loops import parallel as in_parallel
from ._loops.adaptive import Task
from ._loops.compiled import Compiled
from ._loops.fixed import Moment, Observer, Outcome
from ._loops.parallel import Parallel
from ._loops.promises import Promises
from ._loops.replay import Script, replay
from .brownian import BrownianPath, PathStep
from .grids import Grid, Recipe
from .methods import StepNoise, Stepper
from .methods.constrained import Constraint, applied
from .noise import ConstrainedStep, SeededNormals, SeededStep, sample_ids_of
from .problems import ODE, Field
from .ranges import Opening, Range
from .solution import Solution, Status

Save: TypeAlias = str | Sequence[float] | Tensor | None


class SolveWarning(UserWarning):
    """Some samples did not arrive, and the message gives index, status and time; or what was asked for had no effect; or a :class:`Range` starts in narrow noise."""


class SolveError(RuntimeError):
    """Some samples did not arrive and ``throw=True``; ``error.solution`` has what there is."""

    def __init__(self, message: str, solution: Solution) -> None:
        super().__init__(message)
        self.solution = solution


@torch.no_grad()
def solve(
    problem: AnyProblem,
    x: Tensor,
    method: str | Stepper,
    *,
    steps: int | None = None,
    grid: Grid | str | Recipe | Sequence[float] | Tensor | None = None,
    nfe: int | None = None,
    rtol: float | None = None,
    atol: float | None = None,
    interval: tuple[float, float] | Range | None = None,
    seed: int | None = None,
    generator: torch.Generator | None = None,
    sample_ids: Tensor | Sequence[int] | None = None,
    noise: str | BrownianPath = "seeded",
    save: Save = None,
    event: Field | None = None,
    event_direction: int = 0,
    callback: Callable[[Moment], None] | None = None,
    progress: bool = False,
    denoise: _checks.Denoise | None = None,
    max_steps: int = 10_000,
    throw: bool = False,
    gradient: str | None = None,
    compile: bool = False,
    parallel: int | Parallel | None = None,
    constraint: Constraint | None = None,
    **options: Any,
) -> Solution:
    """Solve a problem from the state ``x`` at the start of its interval to the end.

    A method made to keep to a tolerance (``rk45``, ``tsit5``, ``rodas5p``, ``adaptive``, ...) chooses its steps per sample unless ``steps``,
    ``grid`` or ``nfe`` is given; every other method walks a grid, unless it has an error estimate (``heun``, ``midpoint``) and ``rtol`` or
    ``atol`` is given.  An ODE method given a reverse SDE solves its probability flow, which has the same marginals.
    "auto" takes the method, and its grid, that did best on problems with exact scores at that ``nfe`` (default 50), along the flow, which it follows
    beyond the problem's own end to no noise, but not beyond an end before that; or the method of an :class:`OptimisedGrid`; or, without a score, one that suits the kind of noise.

    Arguments:
        problem: :class:`SDE`, :class:`ODE`, :class:`UnderdampedLangevin`, ``process.reverse(score)`` or ``process.probability_flow(score)``.
        x: (B, *event) state, real floating point, B >= 1.  A row with a NaN is reported in ``status`` and disturbs no other.
        method: a name from :func:`methods` or :func:`backends`, "auto", or a :class:`Stepper` of your own; ``stats["method"]`` says what it was.
        steps: number N >= 1 of steps, on N + 1 nodes; default 500.
        grid: "uniform", "power", "karras" ("edm"), "log_snr" or "arctan", or the same with options, as in ``sd.grids.karras(rho=5)`` (with
            ``steps`` or ``nfe``); or the times themselves; or an :class:`OptimisedGrid`, which brings its interval, start and ``denoise``.
        nfe: instead of steps, the most network calls a sample may see, a guiding network's among them; the largest number of steps that fits is taken, were every
            evaluation guided.  Not with ``parallel``.
        rtol, atol: tolerances of the error per step, root mean square over the event, one of them at least a rounding of x's dtype
            (1.2e-7 in float32); default 1e-5 each, 1e-2 for ``adaptive`` and ``ggf``, and in half precision its rounding where that is more.
        interval: (first, last) instead of the problem's own; or a :class:`Range` of noise levels, to which x, a draw of the prior, is moved;
            where it doesn't say where to start and stop, the times of a ``grid`` do.
        seed: 0 <= seed < 2**64, names the noise: with ``sample_ids`` it fixes every sample whatever the batch around it.
            Default: drawn from ``generator`` or torch's global one; found in ``stats["seed"]``.
        generator: where to draw the seed from.
        sample_ids: (B,) integers >= 0 that name the rows; default 0..B-1.  Rows of one name have the same noise: from equal states they end equal.
        noise: "seeded", increments named by (seed, id, step), the cheapest; "brownian", one path named by (seed, id) that is the same for
            every number of steps and every method on this interval; or a :class:`BrownianPath` of your own.
        save: "all" for every node of a grid, or times to save: nodes of the grid, and any times where steps are chosen, where the method has a
            continuous extension (order ``facts.dense``), or where it follows a Brownian path (whose bridge then stands between the nodes).
        event: function of (x, t) as a drift has it that returns (B,): each sample stops where the sign of its number changes, with status
            "event", ``sol.x`` the state and ``sol.event_time`` the time, just before the change.  For ODEs whose steps are chosen.  Two changes
            within one step go unseen.
        event_direction: 1 for changes from - to + alone, -1 for those from + to -, along the interval; 0 for both.
        callback: called after every step with a :class:`Moment` (step, t, x).
        progress: draw a progress bar.
        denoise: True: apply Tweedie's formula E[x_0 | x_t] at the last time (one more call; needs a score).  "extrapolate": in as many calls, a multistep
            method without noise follows the flow from there to no noise at all, by its two last outputs, which leaves O(sigma^4) of what the flow does
            where Tweedie's formula, by which all others, "dpm_solver_v3" and a walk with a constraint end, leaves O(sigma^2); worth it for order 3.  Default: "extrapolate" where a
            :class:`Range` or :class:`OptimisedGrid` says that the walk ends so, and by "auto" as above; else False.
        max_steps: most steps tried per sample where steps are chosen.
        throw: raise :class:`SolveError` instead of warning where samples fail.
        gradient: what derivatives of ``sol.x`` and ``sol.xs`` by x and by whatever the problem was made from cost; None for none at all.
            "backprop": the memory of every step.  "checkpoint": of 2 sqrt(N) steps, and every step a second time in the backward pass.
            "adjoint": of one step: for ODEs the adjoint equation at the same grid or tolerances, which is the gradient of the
            solution and not of its approximation; for ``reversible_heun`` each step taken back, the walk's own gradient to rounding.
            Where steps are chosen, their lengths are constants, and the first two walk the accepted steps a second time.
        compile: compile the method's step together with the drift or network by ``torch.compile``, once for each problem, method and shape
            (seconds to minutes; needs a C++ compiler on a CPU).  The last bits of the result may differ.
        parallel: evaluate so many steps of the grid at once and iterate until they are the sequential ones to a tolerance, as
            :class:`Parallel` has it: fewer calls one after the other, and more rows in all.  Memory of about 6 such windows.
        constraint: function of (x, t, normals) that returns x, row by row: applied after every step of the grid that ends at t, and in ``pc`` after the
            predictor's step and after each corrector step.  t is a float, or a tensor () with ``compile`` and (B,) with ``parallel``; the normals, like x,
            are drawn for each application, named by (seed, id, step).  With ``denoise`` once more at t = 0.0, with zeros for normals.  It is tried once
            at the start.  A multistep method keeps its memory; one that carries a slope evaluates it again.
        options: the method's own, as in ``method="pc", corrector="langevin", snr=0.16``.

    Returns:
        The solution; see :class:`Solution`.

    Raises:
        ImportError: the method is another package's, which is not installed.
        ValueError, TypeError: bad arguments, before the first network call; ValueError at the first call of a drift,
            diffusion or model that returns the wrong shape or dtype.
        SolveError: samples failed and ``throw=True``.
    """
    budget = nfe
    if method == "auto":
        method, options, evaluations, denoise, grid = _auto.choose(problem, x, options, steps, _checks.evaluations(problem, nfe), grid, interval, denoise)
        if nfe is None and evaluations is not None:
            nfe = evaluations * _checks.calls_each(problem)
    start, name = time.perf_counter(), method if isinstance(method, str) else type(method).__name__
    tolerant = rtol is not None or atol is not None
    stats: dict[str, Any] = {"method": name}
    with _tally.added_to(stats), heeding_levels() as levels:
        stepper = _checks.stepper_of(method, options, problem, at_tolerance=tolerant)
        stepper = _checks.constrained(constraint, stepper, on_grid=any(given is not None for given in (steps, grid, nfe)), tolerance=tolerant)
        problem = _checks.suited(stepper, problem, name)
        opening = _checks.opening_of(problem, interval, grid)
        denoise = _checks.denoise_of(denoise, problem, opening)
        nodes = _checks.nodes_of(stepper, grid)
        evaluations = _checks.evaluations_of(stepper, problem, steps, nfe, nodes, bool(denoise), tolerant)
        span = _checks.interval_of(problem, interval, opening, evaluations, stepper, nodes)
        _checks.check_state(x, problem, stepper)
        _checks.check_times(x, span)
        _checks.check_callback(callback)
        progress, throw = truth("progress", progress), truth("throw", throw)
        how = _checks.gradient_of(gradient, stepper, problem, event)
        chosen = _checks.grid_of(problem, stepper, span, steps, grid, nodes, nfe, bool(denoise), tolerant, name)
        _checks.check_compile(compile, stepper, chosen is None, how)
        at_once = _checks.parallel_of(parallel, stepper, chosen is None, how, compile, budget)
        seed = _checks.seed_of(seed, generator)
        _checks.check_own_noise(stepper, sample_ids, noise)
        ids = sample_ids_of(sample_ids, len(x))
        path = _checks.path_of(noise, problem, x, span, seed, ids)
        max_steps = integer("max_steps", max_steps, 1)
        ending = _checks.event_of(event, event_direction, stepper, x, span, chosen is None, bool(denoise))
        problem = _checks.prepared(stepper, problem, x, span)
        if narrow := _checks.narrow_noise(problem, interval):
            warnings.warn(narrow, SolveWarning, stacklevel=3)
        x = _started(opening, problem, _apart(x, how), span[0], how)
        _checks.try_constraint(constraint, x, span[0], at_once)
        runs = stepper.compiled(lambda part: cast(Stepper, Compiled(part))) if compile else stepper

        with _progress.bar(progress, span, len(chosen) if chosen else None, name) as drawn:
            observe = _observer(callback, drawn)
            if chosen is not None:
                noise_at = _noise(problem, x, seed, ids, chosen, path, constraint is not None)
                ts, out = _walk(runs, problem, x, chosen, noise_at, save, observe, how, at_once, stats)
            else:
                control, promises = _checks.control_of(stepper, rtol, atol, x.dtype), _promises(problem, x, seed, ids, path)
                ts, out = _adapt(runs, problem, x, Task(span, control, (), max_steps, seed, observe, ending, promises), save, how, stats)
        with torch.set_grad_enabled(how is not None):
            last = stepper if denoise == _checks.EXTRAPOLATE else Stepper()  # whose ending is Tweedie's formula
            out = _denoised(last, problem, out, span[1], constraint) if denoise else out
            xs = torch.stack(list(out.xs)) if ts else None
        if compile:
            levels.clear()  # what compiled steps meet is not noted
    stats |= {"seed": seed, "steps": len(chosen) if chosen else None, "accepted": out.accepted, "rejected": out.rejected}
    stats |= stepper.stats(out.carry)
    stats |= {"peak_memory": _tally.peak_memory(x.device), "wall_time": time.perf_counter() - start}
    times = torch.tensor(ts, dtype=torch.float64) if ts else None
    solution = Solution(out.x, out.nfe, out.codes, out.failed_at, times, xs, stats, out.event_time)
    report(solution, throw)
    return solution


def _apart(x: Tensor, gradient: str | None) -> Tensor:
    """``x`` with memory of its own for every row: the rows of an expanded state share theirs, and no derivative is taken there."""
    with torch.set_grad_enabled(gradient is not None):
        return x.contiguous() if 0 in x.stride() else x


def _started(opening: Opening | None, problem: AnyProblem, x: Tensor, t: float, gradient: str | None) -> Tensor:
    """``x``, or what a range of noise makes of that draw of the prior."""
    with torch.set_grad_enabled(gradient is not None):
        return opening.start(problem.process, x, t) if opening else x  # type: ignore[union-attr]


def _walk(
    stepper: Stepper,
    problem: AnyProblem,
    x: Tensor,
    grid: Grid,
    noise_at: Callable[[int], StepNoise | None],
    save: Save,
    observe: Observer | None,
    gradient: str | None,
    at_once: Parallel | None,
    stats: dict[str, Any],
) -> tuple[tuple[float, ...], Outcome]:
    """The saved times and the outcome of a walk along a grid."""
    between = bool(stepper.facts.strong) or stepper.facts.dense is not None
    saves = _checks.saved_on_grid(save, grid, between=between and not at_once)
    ts = tuple(itertools.chain(*saves.values()))
    if at_once:
        calls = _tally.calls()
        _checks.check_rows_apart(problem, x.repeat_interleave(min(at_once.window, len(grid)), 0), (grid.ts[0], grid.ts[-1]))
        checked = _tally.calls() - calls
        out = in_parallel.run(stepper, problem, x, grid, noise_at, saves, observe, at_once, stats)
        return ts, out._replace(nfe=out.nfe + checked)
    if isinstance(stepper, Backend):
        return ts, stepper.walk(problem, x, grid, noise_at, saves, observe)
    if gradient == "adjoint":
        return ts, adjoint.on_grid(stepper, problem, x, grid, noise_at, saves, observe, stats)
    with torch.set_grad_enabled(gradient is not None):
        return ts, fixed.run(stepper, problem, x, grid, noise_at, saves, observe, _length(gradient, len(grid)))


def _adapt(
    stepper: Stepper, problem: AnyProblem, x: Tensor, task: Task, save: Save, gradient: str | None, stats: dict[str, Any]
) -> tuple[tuple[float, ...], Outcome]:
    """The saved times and the outcome of a solve whose steps are chosen."""
    first = task.interval[0]
    ts = _checks.saved_times(save, task.interval)
    task = task._replace(saves=tuple(t for t in ts if t != first))
    if isinstance(stepper, Backend):
        out = stepper.adapt(problem, x, task)
    else:
        calls = _tally.calls()
        if isinstance(problem, ODE):
            _checks.check_rows_apart(problem, x, task.interval)
        checked = _tally.calls() - calls
        out = _stepped(stepper, problem, x, task, gradient, stats)
        out = out._replace(nfe=out.nfe + checked)
    return ts, out._replace(xs=[x] * (len(ts) - len(task.saves)) + [*out.xs])


def _stepped(stepper: Stepper, problem: AnyProblem, x: Tensor, task: Task, gradient: str | None, stats: dict[str, Any]) -> Outcome:
    """The outcome of the adaptive loop, with the gradient that was asked for."""
    if gradient is None:
        return adaptive.run(stepper, problem, x, task)
    if gradient == "adjoint":
        return adjoint.chosen(stepper, problem, x, task, stats)
    script = Script(task)
    out = adaptive.run(stepper, problem, x, task._replace(record=script.note))
    with torch.enable_grad():
        end, xs = replay(stepper, problem, x, task, script, _length(gradient, len(script.tries)))
    return out._replace(x=end, xs=xs)


def _length(gradient: str | None, steps: int) -> int | None:
    """How many steps a stretch has: as many as there are stretches; None for a single one."""
    return math.isqrt(steps - 1) + 1 if gradient == "checkpoint" else None


def _denoised(stepper: Stepper, problem: AnyProblem, out: Outcome, t: float, constraint: Constraint | None) -> Outcome:
    """The outcome with the method's ending at the last time, and the constraint at t = 0; a row that they break is not "ok"."""
    calls = _tally.calls()
    x = stepper.ending(problem, out.x, t, out.carry)
    x = applied(constraint, x, 0.0, torch.zeros_like(x)) if constraint else x
    broken = (out.codes == Status.ok) & ~torch.isfinite(x).reshape(len(x), -1).all(1)
    codes = torch.where(broken, int(Status.non_finite), out.codes)
    return out._replace(x=x, nfe=out.nfe + (_tally.calls() - calls), codes=codes, failed_at=torch.where(broken, t, out.failed_at))


def _noise(
    problem: AnyProblem, x: Tensor, seed: int, ids: Tensor, grid: Grid, path: BrownianPath | None, constrained: bool
) -> Callable[[int], StepNoise | None]:
    """The noise of each step of a grid, with a constraint's; None for a problem without either."""
    if constrained:
        plain = _noise(problem, x, seed, ids, grid, path, False)
        own = SeededNormals(seed, ids, x.shape[1:], dtype=x.dtype, device=x.device, nodes=len(grid))
        return lambda node: ConstrainedStep(plain(node), SeededStep(own, node))
    if not isinstance(problem, Stochastic):
        return lambda node: None
    source = SeededNormals(seed, ids, problem.brownian_event(x), dtype=x.dtype, device=x.device, nodes=len(grid))
    if path is not None:
        return lambda node: PathStep(path, source, node, grid.ts[node], grid.ts[node + 1])
    return lambda node: SeededStep(source, node)


def _promises(problem: AnyProblem, x: Tensor, seed: int, ids: Tensor, path: BrownianPath | None) -> Promises | None:
    """The noise of steps that are chosen per sample; None for a problem without noise."""
    if not isinstance(problem, Stochastic):
        return None
    return Promises(seed, ids, problem.brownian_event(x), dtype=x.dtype, device=x.device, path=path)


def _observer(*observers: Observer | None) -> Observer | None:
    """One observer out of those that are there."""
    present = [observer for observer in observers if observer]
    if len(present) < 2:
        return present[0] if present else None

    def observe(moment: Moment) -> None:
        for observer in present:
            observer(moment)

    return observe


def report(solution: Solution, throw: bool) -> None:
    """Say which samples failed: the first few by index, status and time."""
    failures = solution.failures()
    if not failures:
        return
    shown = "; ".join(f"sample {i}: {status} at t = {t:.6g}" for i, status, t in failures[:5])
    message = f"{len(failures)} of {len(solution.x)} samples did not arrive ({shown}{'; ...' if len(failures) > 5 else ''}). See sol.status and sol.failed_at."
    if throw:
        raise SolveError(message, solution)
    warnings.warn(message, SolveWarning, stacklevel=4)


@contextmanager
def heeding_levels(stacklevel: int = 5) -> Iterator[_tally.Levels]:
    """Say at the end between which noise levels a score was to be guided, where none that it was asked at is among them."""
    with _tally.levels_met() as levels:
        yield levels
    for (low, high), met in levels.items():
        if not met:
            message = f"guidance between the noise levels {low:g} and {high:g} had no effect: no step met one of them (sigma/alpha)."
            warnings.warn(f"{message} Expected wider ones, more steps or a smaller tolerance, or a grid with nodes there.", SolveWarning, stacklevel=stacklevel)
