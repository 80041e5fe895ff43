"""scipy's initial-value solvers (Virtanen et al. 2020) behind ``solve``.

Row by row, each a system of its own in float64 on the host: a sample does not depend on its neighbours and has its own steps,
its own count of calls and its own status, for the price of a Python loop over the batch.  The drift sees one row, (1, *event),
in the dtype of the state.  The implicit methods take the Jacobian from differences, as many calls as a row has elements, and
these are counted like all others.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from .. import _tally
from .._given import given
from .._loops.adaptive import Task
from .._loops.fixed import Moment, Outcome
from ..methods import Facts
from ..problems import Interval, Problem
from ..solution import Status
from .base import Backend, Stop

ROW_BY_ROW = "scipy's methods take row by row: the drift sees one row, (1, *event), and not the batch."


def _facts(evals: int, order: int) -> Facts:
    return Facts(evals=evals, start=2, ode=order, reference="scipy: Virtanen et al. 2020")


@dataclass(frozen=True)
class SciPy(Backend):
    """A method of ``scipy.integrate``.  All choose their steps."""

    table: ClassVar[Mapping[str, Facts]] = {  # an implicit method's calls depend on the problem: these are the fewest
        "RK23": _facts(3, 3),
        "RK45": _facts(6, 5),
        "DOP853": _facts(12, 8),
        "Radau": _facts(4, 5),
        "BDF": _facts(1, 5),
        "LSODA": _facts(1, 12),
    }

    @property
    def error_order(self) -> int | None:  # type: ignore[override]
        return self.facts.ode

    @property
    def known_options(self) -> tuple[str, ...]:
        return ("first_step", "max_step", "min_step") if self.name == "LSODA" else ("first_step", "max_step")

    def adapt(self, problem: Problem, x: Tensor, task: Task) -> Outcome:
        import scipy.integrate

        (t0, t1), control, stops = task.interval, task.control, task.stops
        make = partial(getattr(scipy.integrate, self.name), t0=t0, t_bound=t1, rtol=control.rtol, atol=control.atol, **self.options)
        x, t = x.clone(), torch.full((len(x),), t0, dtype=torch.float64)
        codes, nfe, accepted = (torch.zeros(len(x), dtype=torch.int64) for _ in range(3))
        xs = x.new_full((len(stops), *x.shape), torch.nan)
        for i in range(len(x)):
            calls = _tally.calls()
            try:
                slope = _Slope(problem, x[i : i + 1], i, len(x), task.interval)
                for at in _steps(make, slope, task.max_steps):
                    landed = slope.tensor(at.y)[0]
                    if not bool(torch.isfinite(landed).all()):  # LSODA accepts anything, and a narrower dtype may overflow
                        raise Stop(Status.non_finite)
                    for k in _between(stops, at.t_old, at.t):
                        xs[k, i] = landed if stops[k] == at.t else slope.tensor(at.dense_output()(stops[k]))[0]
                    x[i], t[i], accepted[i] = landed, at.t, accepted[i] + 1
                    if task.observe:
                        task.observe(Moment(int(accepted.sum()), t, x))
            except Stop as stop:
                codes[i] = stop.status
            nfe[i] = _tally.calls() - calls
        nfe, accepted, codes, t = (value.to(x.device) for value in (nfe, accepted, codes, t))
        return Outcome(x, nfe, codes, torch.where(codes == Status.ok, torch.nan, t), accepted, None, list(xs[: len(task.saves)]))


def _steps(make: Callable[..., Any], slope: _Slope, max_steps: int) -> Iterator[Any]:
    """scipy's solver after each step that it took; Stop where it cannot go on."""
    with np.errstate(all="ignore"):
        solver = slope.guarded(make, slope, y0=slope.start)
    for _ in range(max_steps):
        slope.broken = False
        with np.errstate(all="ignore"):
            slope.guarded(solver.step)
        if solver.status == "failed":
            raise Stop(Status.non_finite if slope.broken else Status.min_step)
        yield solver
        if solver.status == "finished":
            return
    raise Stop(Status.max_steps)


def _between(stops: tuple[float, ...], t0: float, t1: float) -> list[int]:
    """Indices of the stops in the step from t0 to t1, its end included."""
    return [k for k, stop in enumerate(stops) if stop == t1 or (t0 < stop < t1 or t1 < stop < t0)]


class _Slope:
    """The drift of one row, (1, *event), number ``place`` ``of`` so many, as scipy calls it."""

    def __init__(self, problem: Problem, row: Tensor, place: int, of: int, interval: Interval) -> None:
        self._problem, self._row, self._ends = problem, row, sorted(interval)
        self._place, self._of = torch.tensor([place]), of
        self.start = row.reshape(-1).double().cpu().numpy().copy()  # the caller writes into the row
        self.broken = not np.isfinite(self.start).all()  # whether a slope of the present step is not finite
        if self.broken:
            raise Stop(Status.non_finite)

    def tensor(self, y: np.ndarray) -> Tensor:
        """scipy's state as the drift sees it."""
        return torch.from_numpy(np.array(y)).to(self._row).reshape(self._row.shape)

    def __call__(self, t: float, y: np.ndarray) -> np.ndarray:
        if not math.isfinite(t):  # a step of NaN, as from a state of 0 with atol=0: the explicit methods would try it for ever
            raise Stop(Status.non_finite if self.broken else Status.min_step)
        first, last = self._ends
        try:
            with given(self._place, self._of):
                slope = self._problem.drift(self.tensor(y), min(max(float(t), first), last))  # a sum of steps may round past the end
        except (RuntimeError, ValueError) as error:
            error.add_note(ROW_BY_ROW)
            raise
        value = slope.reshape(-1).double().cpu().numpy()
        self.broken = self.broken or not np.isfinite(value).all()
        return value

    def guarded(self, function: Callable[..., Any], *arguments: Any, **keywords: Any) -> Any:
        """``function`` called; Stop where it complains of a Jacobian that is not finite."""
        try:
            return function(*arguments, **keywords)
        except ValueError as error:
            if self.broken and "infs or NaNs" in str(error):
                raise Stop(Status.non_finite) from None
            raise
