"""Latent codes: where the probability flow takes data, the way back, and what lies between two codes.

The flow is solved in the log signal-to-noise ratio s, in which dt/ds = -sigma^2/g^2 and every process is smooth.  A code of data that
the model knows looks like a draw from the prior; codes of other data do not.  [Song et al. 2021, section 4.3 and appendix D.2]
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from . import _checks, _tally
from ._arrays import Number, bcast, plus, row_mean
from ._errors import as_float, integer
from ._loops import fixed
from .grids import Grid, make_grid
from .methods import Stepper
from .problems import ODE, ProbabilityFlow
from .processes import Process
from .solution import Solution, Status, arrived
from .solve import heeding_levels, solve

_PUBLISHED_EPS = 1e-5  # of T: where the published likelihoods start

ScoreFunction = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Latent:
    """Codes, sample by sample.

    Attributes:
        x: (B, *event) the state at T.
        nfe: network calls that each sample saw, an int on a grid.
        codes: (B,) int64 of :class:`Status`.
        method, steps, eps: how they were made, which :func:`decode` goes by.
        carry: what a reversible method needs besides x to go back along its path; None for the others.
        round_trip: (B,) float64, root mean square over the event of what is off after decoding; None unless it was asked for.
    """

    x: Tensor
    nfe: int | Tensor
    codes: Tensor
    method: str | Stepper
    steps: int | None
    eps: float
    carry: Tensor | None = None
    round_trip: Tensor | None = None

    @property
    def status(self) -> np.ndarray:
        """(B,) strings, as in a :class:`Solution`."""
        return Solution(self.x, self.nfe, self.codes, self.x).status

    def ok(self) -> Tensor:
        """(B,) bool: which samples arrived."""
        return arrived(self.codes)

    def rows(self, which: Tensor) -> Latent:
        """Some of the codes, with what belongs to each."""
        some: dict[str, Any] = {name: None if value is None else value[which.to(value.device)] for name, value in self._by_row().items()}
        return replace(self, **some)

    @classmethod
    def join(cls, parts: Sequence[Latent], order: Tensor) -> Latent:
        """Codes that were made apart and alike, such as those of several classes, in one; ``order`` as for :meth:`Likelihood.join`."""
        columns = [part._by_row() for part in parts]
        whole: dict[str, Any] = {name: None if value is None else torch.cat([column[name] for column in columns]) for name, value in columns[0].items()}
        return replace(parts[0], **whole).rows(order.argsort())

    def _by_row(self) -> dict[str, Any]:
        """What has a row for each sample; calls as they are counted for each."""
        nfe = torch.as_tensor(self.nfe).expand(len(self.x))
        return {"x": self.x, "nfe": nfe, "codes": self.codes, "carry": self.carry, "round_trip": self.round_trip}


def encode(
    process: Process,
    score: ScoreFunction,
    x0: Tensor,
    method: str | Stepper = "rk45",
    *,
    steps: int | None = None,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    eps: float | None = None,
    round_trip: bool = False,
    max_steps: int = 10_000,
) -> Latent:
    """The code of each sample, x_T of the probability flow from x_0.

    Arguments:
        process, score: as for :func:`sdesolve.log_likelihood`, whose ``latent`` is this code.
        x0: data, (B, *event), in the scale that the model was trained on.
        method: an ODE method.  "leapfrog", with ``steps``, keeps what it needs to be undone: :func:`decode` then returns x0 to rounding.
        steps: of a grid even in log-SNR, for a method that walks one; default 500.  Methods that choose their steps take a tolerance instead.
        rtol, atol: of a method that chooses its steps.
        eps: where the data stand; default as for :func:`sdesolve.log_likelihood`.
        round_trip: decode at once, and report what is off: twice the cost.
        max_steps: most steps tried per sample.

    Raises:
        ValueError, TypeError: bad arguments, before the first network call.
    """
    flow, x0 = LogSnrFlow(flow_of(process, score, eps)), _lifted(x0)
    stepper = _stepper(method, flow)
    if stepper.reversible:
        x, carry, nfe, codes = _walked(stepper, flow, x0, _grid(flow, steps), None)
        latent = Latent(x, nfe, codes, method, steps, flow.eps, carry)
    else:
        sol = _flowed(stepper, flow, x0, flow.interval, steps, rtol, atol, max_steps)
        latent = Latent(sol.x, sol.nfe, sol.codes, method, steps, flow.eps)
    if not round_trip:
        return latent
    back = decode(process, score, latent, rtol=rtol, atol=atol, max_steps=max_steps)
    off = row_mean((back.x - x0).double().square()).sqrt()
    return Latent(latent.x, latent.nfe + back.nfe, latent.codes, method, steps, flow.eps, latent.carry, off)


def decode(
    process: Process,
    score: ScoreFunction,
    latent: Latent | Tensor,
    method: str | Stepper | None = None,
    *,
    steps: int | None = None,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    eps: float | None = None,
    temperature: float = 1.0,
    max_steps: int = 10_000,
) -> Solution:
    """The sample of each code, x_0 of the probability flow back from x_T; a code that did not arrive keeps its status.

    Arguments:
        process, score: as for :func:`encode`.
        latent: what :func:`encode` returned, which is decoded the way it was made; or codes (B, *event), as from ``process.prior``.
        method, steps, rtol, atol, eps, max_steps: as for :func:`encode`; default those of the latent, or "rk45".
        temperature: codes are multiplied by it; below 1, samples nearer to the mode, of less variety.

    Raises:
        ValueError, TypeError: bad arguments, before the first network call.
    """
    warmth = as_float(temperature)
    if warmth is None or not 0 <= warmth < math.inf:
        raise ValueError(f"temperature={temperature!r}; expected a finite number >= 0, as in temperature=0.8.")
    flow = LogSnrFlow(flow_of(process, score, latent.eps if eps is None and isinstance(latent, Latent) else eps))
    made = latent if isinstance(latent, Latent) else Latent(_lifted(latent), 0, torch.zeros(()), "rk45", None, flow.eps)
    method, steps = made.method if method is None else method, made.steps if steps is None else steps
    stepper = _stepper(method, flow)
    x = made.x if warmth == 1 else warmth * made.x
    if not stepper.reversible:
        sol = _flowed(stepper, flow, x, flow.interval[::-1], steps, rtol, atol, max_steps)
        return replace(sol, codes=_first_failure(made.codes, sol.codes))
    same = warmth == 1 and (method, steps, flow.eps) == (made.method, made.steps, made.eps)
    x, _, nfe, codes = _walked(stepper, flow, x, Grid(_grid(flow, steps).ts[::-1]), made.carry if same else None)
    return Solution(x, nfe, _first_failure(made.codes, codes), torch.full((len(x),), torch.nan, dtype=torch.float64, device=x.device))


def _lifted(x: Tensor) -> Tensor:
    """Half precision in single: a walk of many steps has no use for three digits; what is no tensor is told by the solver."""
    return x.to(torch.promote_types(x.dtype, torch.float32)) if isinstance(x, Tensor) and x.is_floating_point() else x


def _first_failure(before: Tensor, after: Tensor) -> Tensor:
    """How the two ways together ended, one after the other."""
    return torch.where(arrived(before), after, before.to(after))


def interpolate(a: Tensor, b: Tensor, count: int = 8) -> Tensor:
    """(count, B, *event) codes from a to b on the great circle of each pair, both ends included:

        (sin((1 - w) angle) a + sin(w angle) b) / sin(angle),        w = 0, ..., 1.

    Straight lines leave the shell where codes lie: half way between two draws in d dimensions the norm is sqrt(d/2).

    Arguments:
        a, b: (B, *event) codes of one shape.
        count: number of codes, >= 2.

    Raises:
        ValueError, TypeError: other shapes; codes that are not finite, or opposite to each other, between which there is no way.
    """
    for name, code in (("a", a), ("b", b)):
        if not isinstance(code, Tensor):
            raise TypeError(f"{name} is a {type(code).__name__}; expected a tensor of codes, (B, *event), as latent.x of sd.encode.")
        if not code.is_floating_point() or code.numel() == 0 or not bool(code.isfinite().all()):
            raise ValueError(f"{name} is a {tuple(code.shape)} {code.dtype} tensor; expected finite floats, at least one: codes of samples that arrived, latent.x[latent.ok()].")
    if a.shape != b.shape or a.dim() < 1:
        raise ValueError(f"a has shape {tuple(a.shape)} and b {tuple(b.shape)}; expected two codes of one shape (B, *event): a.expand_as(b).")
    w = torch.linspace(0, 1, integer("count", count, 2, example=8), dtype=torch.float64, device=a.device).reshape(-1, *(1,) * a.dim())
    flat_a, flat_b = (code.double().reshape(len(code), -1) for code in (a, b))
    cosine = torch.nn.functional.cosine_similarity(flat_a, flat_b, dim=1).clamp(-1, 1)
    opposite = (cosine < -1 + 1e-9).nonzero().flatten()
    if len(opposite):
        raise ValueError(f"the codes of sample {int(opposite[0])} are opposite to each other; expected two between which there is a shortest way.")
    angle = cosine.acos().reshape(-1, *(1,) * (a.dim() - 1))
    near = angle < 1e-6  # a straight line there
    of_a, of_b = (torch.where(near, share, (share * angle).sin() / angle.sin().clamp(min=1e-12)) for share in (1 - w, w))
    return (of_a * a + of_b * b).to(a.dtype)


def flow_of(process: Process, score: ScoreFunction, eps: float | None) -> ProbabilityFlow:
    """The flow of likelihoods and codes, which start at the smaller of the sampler's end and what was published for likelihoods."""
    if not isinstance(process, Process):
        raise TypeError(f"process is a {type(process).__name__}; expected the forward process of the model, as in sd.VPSDE().")
    return process.probability_flow(score, min(process.eps, _PUBLISHED_EPS * process.T) if eps is None else eps)


def speed(process: Process, t: Number) -> Number:
    """dt/ds = -sigma^2/g^2 of the log-SNR s."""
    return -((process.sigma_(t) / process.diffusion_(t)) ** 2)


class LogSnrFlow(ODE):
    """The probability flow with the log-SNR for time, from the data's to the prior's."""

    def __init__(self, problem: ProbabilityFlow) -> None:
        self._problem, self.eps = problem, problem.interval[1]
        ends = [float(problem.process.log_snr(t)) for t in (self.eps, problem.interval[0])]
        super().__init__(problem.score, (ends[0], ends[1]))

    def drift(self, x: Tensor, t: Number) -> Tensor:
        """dx/ds at s = t."""
        process, score = self._problem.process, self._problem.score
        time = process.log_snr_inverse_(t)
        on_x, on_score = self._problem.linear(time)
        rate = speed(process, time)
        return plus(bcast(rate * on_x, x) * x, rate * on_score, score(x, time))


def _stepper(method: str | Stepper, flow: LogSnrFlow) -> Stepper:
    """The method, which must be one for ODEs of its own package."""
    stepper = _checks.stepper_of(method, {}, flow, at_tolerance=True)
    _checks.suited(stepper, flow, method if isinstance(method, str) else type(method).__name__)
    return stepper


def _grid(flow: LogSnrFlow, steps: int | None) -> Grid:
    return make_grid("uniform", None, *flow.interval, integer("steps", _checks.DEFAULT_STEPS if steps is None else steps, 1))


def _flowed(stepper: Stepper, flow: LogSnrFlow, x: Tensor, interval: tuple[float, float], steps: int | None, rtol: float, atol: float, most: int) -> Solution:
    if steps is None and stepper.chooses_steps:
        return solve(flow, x, stepper, interval=interval, rtol=rtol, atol=atol, max_steps=most)
    return solve(flow, x, stepper, interval=interval, steps=steps)


@torch.no_grad()
def _walked(stepper: Stepper, flow: LogSnrFlow, x: Tensor, grid: Grid, carry: Tensor | None) -> tuple[Tensor, Tensor, int, Tensor]:
    """The walk along a grid that a reversible method can undo: state, carry, calls and codes; from a carry it undoes one."""
    _checks.check_state(x, flow, stepper)
    calls = _tally.calls()
    with heeding_levels(6):
        if carry is None:
            out = fixed.run(stepper, flow, x, grid, lambda node: None, {}, None)
            return out.x, out.carry, int(out.nfe), out.codes
        for t0, t1 in zip(grid.ts, grid.ts[1:], strict=False):
            step = stepper.step_back(flow, x, t1, t0, None, carry)
            x, carry = step.x, step.carry
    finite = torch.isfinite(x).reshape(len(x), -1).all(1)
    return x, cast(Tensor, carry), _tally.calls() - calls, torch.where(finite, int(Status.ok), int(Status.non_finite))
