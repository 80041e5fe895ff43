"""torchsde's solvers (Li et al. 2020; Kidger et al. 2021) behind ``solve``.

torchsde takes states (B, d) and a time that rises.  So the event is flattened, and the equation is solved in s = sign(dt) t:

    dy = sign(dt) f(y, t) ds + g(y, t) dw,      y(s) = x(t).

On a grid torchsde makes the steps and sdesolve the noise, so that a seed gives a sample the path that it gives it under every
other method.  At a tolerance the noise is torchsde's ``BrownianInterval`` with the seed as its entropy, and there is one step
for the whole batch: a sample then depends on its neighbours and on their number, a hard one makes all of them pay, and where
one cannot go on, none arrives.  Saved times between two steps are interpolated linearly there.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor

from .._loops.adaptive import Task
from .._loops.fixed import Outcome
from ..control import Control
from ..methods import Facts, Step, StepNoise
from ..problems import StochasticProblem
from ..solution import Status
from .base import Backend, Course, Stop, finite_rows

_AREAS = {"srk": "space-time", "log_ode": "foster"}  # what a method wants to know of the path besides its increment


def _facts(evals: int, calculus: str, additive: float, commutative: float, general: float | None = None, start: int = 0) -> Facts:
    strong = {"additive": additive, "scalar": commutative, "diagonal": commutative, **({"general": general} if general else {})}
    weak = {kind: max(1.0, order) for kind, order in strong.items()}
    return Facts(evals, start, strong=strong, weak=weak, calculus=frozenset(calculus.split()), reference="torchsde: Li et al. 2020")


@dataclass(frozen=True)
class TorchSDE(Backend):
    """A method of ``torchsde.sdeint``.  All walk a grid, and choose their steps where rtol or atol is given."""

    table: ClassVar[Mapping[str, Facts]] = {
        "euler": _facts(1, "ito", 1.0, 0.5, 0.5),
        "milstein": _facts(1, "ito stratonovich", 1.0, 1.0),
        "srk": _facts(10, "ito", 1.5, 1.5),
        "euler_heun": _facts(1, "stratonovich", 1.0, 1.0, 0.5),
        "heun": _facts(2, "stratonovich", 1.0, 1.0, 0.5),
        "midpoint": _facts(2, "stratonovich", 1.0, 1.0, 0.5),
        "log_ode": _facts(2, "stratonovich", 1.0, 1.0, 0.5),
        "reversible_heun": _facts(1, "stratonovich", 1.0, 0.5, 0.5, start=1),
    }

    @cached_property
    def facts(self) -> Facts:  # type: ignore[override]
        facts = self.table[self.name]
        return facts._replace(evals=3) if self.name == "srk" and self.noise == "additive" else facts  # SRA1 instead of SRI2

    @property
    def error_order(self) -> int | None:  # type: ignore[override]
        return 1 if self.at_tolerance else None

    @property
    def known_options(self) -> tuple[str, ...]:
        return (*(("grad_free",) if self.name == "milstein" else ()), *(("dt", "dt_min") if self.at_tolerance else ()))

    def step(self, problem: StochasticProblem, x: Tensor, t0: float, t1: float, noise: StepNoise, carry: Any) -> Step:  # type: ignore[override]
        sign = math.copysign(1.0, t1 - t0)
        s0, s1 = (torch.tensor(sign * t, dtype=torch.float64) for t in (t0, t1))
        y = x.reshape(len(x), -1)
        solver, extra = carry or (self._solver(problem, x, sign, _Path(problem, x, _AREAS.get(self.name, "none"))), None)
        solver.bm.at(noise, t0, t1)
        extra = solver.init_extra_solver_state(s0, y) if carry is None else extra
        y, extra = solver.step(s0, s1, y, extra)
        return Step(y.reshape(x.shape), carry=(solver, extra))

    def adapt(self, problem: StochasticProblem, x: Tensor, task: Task) -> Outcome:
        import torchsde

        t0, t1 = task.interval
        sign = math.copysign(1.0, t1 - t0)
        s = torch.tensor([sign * t for t in (t0, *task.stops)], dtype=torch.float64)

        def integrate(course: Course) -> list[Tensor]:
            y = course.x.reshape(len(course.x), -1)
            size = (len(y), math.prod(problem.brownian_event(course.x)))
            area = _AREAS.get(self.name, "none")
            path = torchsde.BrownianInterval(s[0], s[-1], size, y.dtype, y.device, entropy=task.seed, levy_area_approximation=area)
            solver = self._solver(problem, course.x, sign, path, task.control)
            solver.step = _reported(solver.step, course, sign)
            ys, _ = solver.integrate(y, s, solver.init_extra_solver_state(s[0], y))
            return [state.reshape(course.x.shape) for state in ys[1:]]

        return Course(x, task).run(integrate)

    def _solver(self, problem: StochasticProblem, x: Tensor, sign: float, path: Any, control: Control | None = None) -> Any:
        """torchsde's solver object, which its ``sdeint`` makes for one call: here it serves a whole solve, and any grid."""
        from torchsde._core import base_sde, methods

        calculus = problem.calculus if problem.calculus in self.facts.calculus else min(self.facts.calculus)  # additive noise has no reading
        equation = _Equation(problem, x, sign, calculus)
        sde = base_sde.ForwardSDE(equation)
        if equation.elementwise:
            sde.prod = sde.prod_diagonal  # for additive noise too, where torchsde would have a matrix
        options = dict(self.options)
        return methods.select(self.name, calculus)(
            sde=sde,
            bm=path,
            dt=options.pop("dt", 1e-3),
            dt_min=options.pop("dt_min", 1e-5),
            adaptive=control is not None,
            rtol=control.rtol if control else None,
            atol=control.atol if control else None,
            options=options,
        )


class _Equation:
    """A problem as torchsde reads it: f, g and their products in s, on states (B, d)."""

    def __init__(self, problem: StochasticProblem, x: Tensor, sign: float, calculus: str) -> None:
        self._problem, self._event, self._sign = problem, tuple(x.shape[1:]), sign
        self.noise_type, self.sde_type = problem.noise, calculus
        self.elementwise = problem.noise in ("additive", "diagonal") and problem.brownian_event(x) == self._event  # one motion a coordinate

    def f(self, s: Tensor, y: Tensor) -> Tensor:
        return self._sign * self._problem.drift(self._state(y), self._sign * float(s)).reshape(y.shape)

    def g_prod(self, s: Tensor, y: Tensor, v: Tensor) -> Tensor:
        x = self._state(y)
        noise = v.reshape(len(y), *self._problem.brownian_event(x))
        return self._problem.diffuse(x, self._sign * float(s), noise).expand_as(x).reshape(y.shape)

    def g(self, s: Tensor, y: Tensor) -> Tensor:
        if self.elementwise:
            return self.g_prod(s, y, torch.ones_like(y))
        columns = math.prod(self._problem.brownian_event(self._state(y)))
        unit = torch.eye(columns, dtype=y.dtype, device=y.device)
        return torch.stack([self.g_prod(s, y, row.expand(len(y), -1)) for row in unit], -1)

    def f_and_g_prod(self, s: Tensor, y: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        return self.f(s, y), self.g_prod(s, y, v)

    def _state(self, y: Tensor) -> Tensor:
        return y.reshape(len(y), *self._event)


class _Path:
    """The noise of one step in the form that torchsde asks for."""

    def __init__(self, problem: StochasticProblem, x: Tensor, area: str) -> None:
        self.shape, self.levy_area_approximation = (len(x), math.prod(problem.brownian_event(x))), area
        self._commutes = problem.noise != "general"

    def at(self, noise: StepNoise, t0: float, t1: float) -> None:
        """The step from t0 to t1 is next."""
        self._noise, self._t0, self._t1 = noise, t0, t1

    def __call__(self, s0: Tensor, s1: Tensor, return_U: bool = False, return_A: bool = False) -> Any:
        """W over the step; U, the integral of W over it; A, its Levy area in Foster's approximation, which only general noise asks about."""
        if not (return_U or return_A):
            return self._noise.increment(self._t0, self._t1).reshape(self.shape)
        length = abs(self._t1 - self._t0)
        w, h = (value.reshape(self.shape) for value in self._noise.levy(self._t0, self._t1))
        return (w, length * (0.5 * w + h)) if return_U else (w, None if self._commutes else self._area(w, h, length))

    def _area(self, w: Tensor, h: Tensor, length: float) -> Tensor:
        from torchsde._brownian.brownian_interval import _davie_foster_approximation as approximation

        def normals() -> Tensor:
            return torch.stack([self._noise.normal(slot=1 + k).reshape(self.shape) for k in range(w.shape[1])], -1)

        return approximation(w, h, length, self.levy_area_approximation, normals)


def _reported(step: Any, course: Course, sign: float) -> Any:
    """torchsde's ``step`` for its adaptive loop, which calls it three times a try: once over the whole, twice over the halves."""
    whole = itertools.cycle((True, False, False))

    def reported(s0: Tensor, s1: Tensor, y: Tensor, extra: Any) -> Any:
        if next(whole):
            course.tried(sign * float(s0), y.reshape(course.x.shape))
        y, extra = step(s0, s1, y, extra)
        if not bool(finite_rows(y).all()):
            course.broken = ~finite_rows(y)
            raise Stop(Status.min_step)
        return y, extra

    return reported
