"""A corrector by itself: a Markov chain at one time, for every sample."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from . import _checks, _tally
from ._errors import as_float, integer
from .correctors import Corrector
from .correctors.trajectory import Trajectory
from .methods import make_corrector
from .methods.predictor_corrector import PredictorCorrector
from .noise import CHAIN, SeededNormals, sample_ids_of
from .problems import ProbabilityFlow, ReverseSDE
from .solution import Solution, Status
from .solve import report


@torch.no_grad()
def correct(
    problem: ReverseSDE | ProbabilityFlow,
    x: Tensor,
    t: float,
    corrector: str | Corrector = "hmc",
    *,
    steps: int = 100,
    seed: int | None = None,
    generator: torch.Generator | None = None,
    sample_ids: Tensor | Sequence[int] | None = None,
    **options: Any,
) -> Solution:
    """Run ``steps`` steps of a corrector at the fixed time t: a Markov chain from every sample towards p_t.

    To see what a corrector does to a law, or to draw from p_t by Markov chain Monte Carlo.  With ``accept=True`` (``hmc``, ``underdamped``, and
    ``mala`` by default) samples of p_t stay samples of p_t by a fixed step of up to about p_t's narrowest width.  A corrector named with neither
    ``step_size`` nor ``target`` then takes ``"kernel"``, r = d^-1/4; a larger number is quicker where p_t is wider than sigma_t.  By
    ``step_size="auto"``, the default of ``solve`` and of a corrector that is made already, samples don't quite stay: the shares of modes of different
    widths move by a few hundredths.

    Arguments:
        problem: ``process.reverse(score)`` or ``process.probability_flow(score)``.
        x: (B, *event) state, real floating point.
        t: the time, 0 < t <= T.
        corrector: "langevin", "mala", "hmc", "underdamped", or a corrector that is made already.
        steps: number of steps >= 0.
        seed, generator, sample_ids: name the noise, as for :func:`solve`.  A chain that is taken up again wants another seed.
        options: the corrector's own, as in ``leapfrog=3, accept=True``.

    Returns:
        The solution: ``x``, ``nfe``, ``status`` and, in ``stats``, for the correctors that look at energies:
        ``acceptance``, ``energy_error``, ``ess``, ``stein`` and ``step_size``, (B,) each; of no steps the last alone.

    Raises:
        ValueError, TypeError: bad arguments, before the first network call.
    """
    start, name = time.perf_counter(), corrector if isinstance(corrector, str) else type(corrector).__name__
    if not isinstance(problem, ReverseSDE | ProbabilityFlow):
        raise TypeError(f"problem is a {type(problem).__name__}, which has no score; expected process.reverse(score) or process.probability_flow(score).")
    made = _kept(make_corrector(corrector, **options), chosen=not isinstance(corrector, str) or not options.keys().isdisjoint({"step_size", "target"}))
    steps = integer("steps", steps, 0)
    _checks.check_state(x, problem, PredictorCorrector(None, made))
    at = as_float(t)
    if at is None or not 0 < at <= problem.process.T:
        raise ValueError(f"t={t!r}; expected a time, 0 < t <= {problem.process.T}, as in t={problem.interval[1]}.")
    seed = _checks.seed_of(seed, generator)
    source = SeededNormals(seed, sample_ids_of(sample_ids, len(x)), x.shape[1:], dtype=x.dtype, device=x.device, stream=CHAIN, nodes=max(1, steps))
    carry = made.init(x)

    stats: dict[str, Any] = {"method": name, "seed": seed, "steps": steps}
    with _tally.added_to(stats):
        end, carry = made.correct(problem, x, at, steps, source.normal, carry)
    bad = ~torch.isfinite(end).reshape(len(end), -1).all(1)
    stats |= {**made.told(carry, steps), "peak_memory": _tally.peak_memory(x.device), "wall_time": time.perf_counter() - start}
    codes = torch.where(bad, int(Status.non_finite), int(Status.ok))
    solution = Solution(end, stats["calls"], codes, torch.where(bad, at, torch.nan).double(), stats=stats)
    report(solution, throw=False)
    return solution


def _kept(made: Corrector, chosen: bool) -> Corrector:
    """With the Metropolis test, a step that no state has a say in, unless another one was chosen."""
    return replace(made, step_size="kernel") if isinstance(made, Trajectory) and made.accept and not chosen else made
