"""DPM-Solver-v3: a multistep method on what is left of the model where its average behaviour is known.  [Zheng et al. 2023, arXiv 2310.13268]

In y = x/alpha and lambda = ln(alpha/sigma) the flow is  dy/dlambda = -(sigma/alpha) E[eps | x].  For any l, s and b, functions of lambda,

    dy/dlambda = -l y - f,    f = (sigma E[eps | x] - l x)/alpha = (1 - l) y - E[x_0 | x]                                           [eq. 5, 8]
    g(u) = e^(-S(u)) f(u) - beta(u),    S(u) = int_0^u s,    beta(u) = int_0^u e^(-S) b,    so that  g' = e^(-S) (f' - s f - b)     [eq. 10, 11]
    y(h) = e^(-L(h)) y(0) - int_0^h e^(L(u) - L(h) + S(u)) (g(u) + beta(u)) du,    L(u) = int_0^u l                                 [eq. 9]

with u the way in lambda from the start of a step.  A step takes the polynomial through the last g for g.  What l, s and b are is free: (0, -1, 0) is a method
on E[eps | x], (1, 0, 0) DPM-Solver++ on E[x_0 | x].  The paper's are the model's averages: l makes the derivative of f by x as small as can
be, s and b make that of g along the trajectories so, coordinate by coordinate [eq. 7, 12], and :func:`sdesolve.model_statistics` has them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import zip_longest
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .._arrays import Number, xp
from .._errors import integer
from ..problems import ScoreProblem
from ..processes import Process
from ..statistics import ModelStatistics
from .base import Facts, Step, StepNoise, Stepper
from .linear import History, check_apart, exponential_moments, half_log_snr, interpolatory

_POINTS = 16  # of Gauss's rule: a dozen digits of the integrals for a step of 12 in lambda


class _Way(NamedTuple):
    """The integrals from one lambda to another, at a distance h: numbers, or (1 or B, *event) float64."""

    decay: Number
    """L(h)."""
    growth: Number
    """S(h)."""
    source: Number
    """beta(h)."""
    moments: Sequence[Number]
    """int e^(L - L(h) + S) (u/h)^k du for k = 0, 1, ..."""
    forced: Number
    """int e^(L - L(h) + S) beta du."""


class _Move(NamedTuple):
    """y(h) = on_y y(0) - sum_j on_outputs[j] f_j - constant."""

    on_y: Number
    on_outputs: Sequence[Number]
    constant: Number


@dataclass(frozen=True)
class DPMSolverV3(Stepper):
    """DPM-Solver-v3 with multistep predictor and corrector.  [Zheng et al. 2023, eq. 13 to 15, algorithm 1]

    The predictor takes the polynomial through the last ``order`` values of g, the corrector that through these and the one at the predicted state,
    which is kept for the next step: one call a step.  Order ``order`` + 1 and at most 3 with the corrector, ``order`` without: the second step of a
    method of order 3 corrects the first.  Without statistics it is DPM-Solver++ (``dpmpp_2m`` with ``variant="heun"``, ``dpmpp_3m``), with a corrector
    like UniPC's.  With them it is the method for 5 to 10 calls of one model that is sampled often, at order 1 for 5 and 3 from 20 on.

    Arguments:
        statistics: from :func:`sdesolve.model_statistics`, for the model that is solved; any others cost accuracy, but not the order.
        order: 1, 2 or 3 outputs that the predictor combines.
        corrector: whether each step corrects the one before.

    Raises:
        ValueError: order out of range; statistics of another process or of samples of another shape.
        TypeError: statistics that are none.
    """

    statistics: ModelStatistics | None = None
    order: int = 2
    corrector: bool = True
    default_grid: ClassVar[str | None] = "log_snr"
    outlives_moves: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if integer("order", self.order, 1, example=2) > 3:
            raise ValueError(f"order={self.order!r}; expected 1, 2 or 3, as in order=2.")
        object.__setattr__(self, "order", int(self.order))
        if not isinstance(self.corrector, bool):
            raise ValueError(f"corrector={self.corrector!r}; expected True or False.")
        if self.statistics is not None and not isinstance(self.statistics, ModelStatistics):
            raise TypeError(f"statistics is a {type(self.statistics).__name__}; expected what sd.model_statistics(problem, shape=...) or sd.ModelStatistics.load(path) returns.")

    @cached_property
    def facts(self) -> Facts:  # type: ignore[override]
        return Facts(evals=1, ode=min(self.order + self.corrector, 3), needs=frozenset({"score"}), reference="Zheng et al. 2023")

    def check_grid(self, process: Process, ts: Sequence[float]) -> None:
        if self.order > 1 or self.corrector:
            check_apart(process, ts)

    def init(self, problem: ScoreProblem, x: Tensor, t: Number) -> History:
        if self.statistics is not None:
            self.statistics.check(problem.process, x)
        return History()

    def step(self, problem: ScoreProblem, x: Tensor, t0: Number, t1: Number, noise: StepNoise | None, carry: History) -> Step:
        process = problem.process
        alpha, end = (_by_row(process.alpha_(t), x) for t in (t0, t1))
        times = (t0, *carry.times)
        levels = [_by_row(half_log_snr(process, t), x) for t in times]
        outputs = (self._rest(problem, x, t0, alpha, levels[0]), *carry.outputs)
        if len(times) > 1 and (self.corrector or (self.order == 3 and len(times) == 2)):
            x = self._corrected(x, alpha, levels, outputs)
        (move,) = self._moves(levels[0], _by_row(half_log_snr(process, t1), x), x, levels[: self.order])
        moved = _like(end / alpha * move.on_y, x) * x
        for weight, output in zip(move.on_outputs, outputs, strict=False):
            moved = moved - _like(end * weight, x) * output
        return Step(moved - _like(end * move.constant, x), carry=History(outputs[: self.order], times[: self.order]))

    def _rest(self, problem: ScoreProblem, x: Tensor, t: Number, alpha: Number, level: Number) -> Tensor:
        """f at x."""
        denoised = problem.score.denoise(x, t)
        if self.statistics is None:
            return -denoised
        linear, _, _ = self.statistics.at(_points(level, 0.0, x, x.new_zeros(1, dtype=torch.float64)))
        return _like((1 - linear[0]) / alpha, x) * x - denoised

    def _corrected(self, x: Tensor, alpha: Number, levels: Sequence[Number], outputs: Sequence[Tensor]) -> Tensor:
        """x with the step that ended in it taken once more, through the newest output too.  The outputs stay: f where it was predicted stands for f here."""
        known = levels[1 : 1 + self.order]
        explicit, implicit = self._moves(levels[1], levels[0], x, known, [levels[0], *known])
        for new, old, output in zip_longest(implicit.on_outputs, (0.0, *explicit.on_outputs), outputs[: 1 + len(known)]):
            x = x - _like(alpha * (new - old), x) * output
        return x - _like(alpha * (implicit.constant - explicit.constant), x)

    def _moves(self, start: Number, end: Number, x: Tensor, *throughs: Sequence[Number]) -> list[_Move]:
        """From ``start`` to ``end`` along the polynomial in lambda through g at some levels, each of which was f there; one move for each choice of levels."""
        way = self._way(start, end, x, max(len(through) for through in throughs))
        known = {id(start): (0.0, 0.0), id(end): (way.growth, way.source)}
        moves = []
        for through in throughs:
            weights = interpolatory([(level - start) / (end - start) for level in through], way.moments)
            on_outputs, constant = [], way.forced
            for level, weight in zip(through, weights, strict=True):
                if id(level) not in known:
                    back = self._way(start, level, x)
                    known[id(level)] = back.growth, back.source
                growth, source = known[id(level)]
                on_outputs.append(weight * xp(growth).exp(-growth))
                constant = constant - weight * source
            moves.append(_Move(xp(way.decay).exp(-way.decay), on_outputs, constant))
        return moves

    def _way(self, start: Number, end: Number, x: Tensor, count: int = 0) -> _Way:
        """The integrals from ``start`` to ``end``, with ``count`` moments."""
        h = end - start
        if self.statistics is None:
            return _Way(h, 0.0 * h, 0.0 * h, [h * moment for moment in exponential_moments(-h, count)], 0.0 * h)
        at, weights, inner = (values.to(x.device) for values in _GAUSS)
        linear, slope, offset = self.statistics.at(_points(start, h, x, at))

        def along(values: Tensor) -> Tensor:
            """Integrals up to each point."""
            return h * torch.tensordot(inner, values, 1)

        def whole(values: Tensor) -> Tensor:
            return h * torch.tensordot(weights, values, 1)

        decay, growth = whole(linear), along(slope)
        sourced = torch.exp(-growth) * offset
        kernel, u = torch.exp(along(linear) - decay + growth), at.reshape(-1, *[1] * x.dim())
        return _Way(decay, whole(slope), whole(sourced), [whole(kernel * u**k) for k in range(count)], whole(kernel * along(sourced)))


def _by_row(value: Number, x: Tensor) -> Number:
    """A time's number, ready to meet tables (1, *event): a float or tensor () stays, (B,) becomes (B, 1, ..., 1)."""
    return value.reshape(-1, *[1] * (x.dim() - 1)) if isinstance(value, Tensor) and value.dim() else value


def _like(value: Number, x: Tensor) -> Number:
    return value.to(x) if isinstance(value, Tensor) else value


def _points(start: Number, h: Number, x: Tensor, at: Tensor) -> Tensor:
    """start + h at, (n, 1 or B)."""
    return (start + h * at.reshape(-1, *[1] * x.dim())).flatten(1)


def _gauss() -> tuple[Tensor, Tensor, Tensor]:
    """Points and weights of Gauss's rule on (0, 1), and the weights of the integrals from 0 up to each point of the polynomial through all."""
    at, weights = np.polynomial.legendre.leggauss(_POINTS)
    basis: list[Any] = [np.polynomial.Legendre.basis(k, domain=[0, 1]) for k in range(_POINTS)]
    at = 0.5 + 0.5 * at
    values, integrals = (np.stack([p(at) for p in of], 1) for of in (basis, [p.integ(lbnd=0) for p in basis]))
    return torch.from_numpy(at), torch.from_numpy(0.5 * weights), torch.from_numpy(integrals @ np.linalg.inv(values))


_GAUSS = _gauss()
