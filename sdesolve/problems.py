"""What is solved: dx = drift(x, t) dt + diffusion(x, t) dw on an interval that may run either way.

The sign of dt is never hidden: a reverse SDE runs from T down to eps, so dt < 0, and Var(dW) = |dt|.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar, Literal, Protocol, TypeAlias, cast, get_args

import torch
from torch import Tensor

from . import _tally
from ._arrays import Number, bcast, broadcasts, plus, time_tensor, version
from ._errors import CHANGED, choice
from .processes import Process
from .scores import Score, as_score

Field: TypeAlias = Callable[[Tensor, Tensor], Tensor]
NoiseKind: TypeAlias = Literal["additive", "scalar", "diagonal", "general"]
Calculus: TypeAlias = Literal["ito", "stratonovich"]
Interval: TypeAlias = tuple[float, float]


def check_interval(interval: Interval) -> Interval:
    """``interval`` as two floats; ValueError unless they are finite and different."""
    try:
        t0, t1 = (float(t) for t in interval if not isinstance(t, str))
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"interval={interval!r}; expected two times, as in interval=(0.0, 1.0).") from None
    if not (math.isfinite(t0) and math.isfinite(t1)) or t0 == t1:
        raise ValueError(f"interval={interval!r}; expected two finite and different times, as in interval=(0.0, 1.0).")
    if not math.isfinite(t1 - t0):
        raise ValueError(f"interval={interval!r} is longer than the largest float; expected less than 1.8e308.")
    return t0, t1


PER_ROW_TIME = "Multiply with sdesolve.expand_time(t, x), as in lambda x, t: -x * torch.cos(sdesolve.expand_time(t, x))."


class Problem(Protocol):
    """What a stepper and a loop may ask of any problem; t is a host float or a float64 tensor (B,)."""

    interval: Interval

    def drift(self, x: Tensor, t: Number) -> Tensor: ...


class StochasticProblem(Problem, Protocol):
    """A problem with noise."""

    noise: NoiseKind
    calculus: Calculus

    def euler(self, x: Tensor, t: Number, dt: Number) -> Tensor:
        """x + drift(x, t) dt."""
        ...

    def diffuse(self, x: Tensor, t: Number, dw: Tensor) -> Tensor:
        """diffusion(x, t) dw, shaped like x."""
        ...

    def brownian_event(self, x: Tensor) -> tuple[int, ...]:
        """Shape of one sample's Brownian motion."""
        ...


class ScoreProblem(Problem, Protocol):
    """A problem with a forward process and a score."""

    process: Process
    score: Score


class ODE:
    """dx/dt = drift(x, t).

    Arguments:
        drift: function of x, (B, *event), and t, a tensor () or (B,) in x's dtype; returns a tensor shaped like x, a new one each time.
        interval: (first, last), finite and different; last < first runs backwards.
    """

    def __init__(self, drift: Field, interval: Interval = (0.0, 1.0)) -> None:
        self._drift = drift
        self.interval = check_interval(interval)

    check_interval = staticmethod(check_interval)

    def drift(self, x: Tensor, t: Number) -> Tensor:
        return _field(self._drift, x, t)


class SDE:
    """dx = drift(x, t) dt + diffusion(x, t) dw.

    Every method takes both calculi: where it integrates the other one, ``solve`` hands it the same process with the drift
    f -+ (1/2) sum_j Dg_j[g_j] d|t|/dt, at the cost of one derivative of the diffusion a call of the drift (m for m columns).

    Arguments:
        drift: function of x, (B, *event), and t, a tensor () or (B,) in x's dtype; returns a tensor shaped like x, a new one each time.
        diffusion: function of the same; what it returns depends on ``noise``:
            "additive" (no dependence on x) and "diagonal" (each coordinate depends on its own alone): broadcastable to x's shape,
            multiplies one Brownian motion per coordinate;
            "scalar": broadcastable to x's shape, multiplies a single Brownian motion per sample;
            "general": (B, *event, m), a matrix applied to m Brownian motions.
        noise: the kind above, which decides what methods apply and their order.
        calculus: "ito" or "stratonovich".
        interval: (first, last), finite and different; last < first runs backwards, with Var(dw) = |dt|.
        commutative: True for general noise whose columns commute, Dg_j[g_k] = Dg_k[g_j], so that methods of order 1 need no Levy
            areas; measured at the initial state before it is relied on.
        diffusion_derivative: function of x, t and a direction v, (B, *event), that returns the derivative of the diffusion along v,
            in the diffusion's shape; for a g that acts on each coordinate by itself it is  lambda x, t, v: g'(x) * v.  Default:
            ``torch.func.jvp``, forward-mode automatic differentiation.
    """

    def __init__(
        self,
        drift: Field,
        diffusion: Field,
        noise: NoiseKind = "diagonal",
        calculus: Calculus = "ito",
        interval: Interval = (0.0, 1.0),
        *,
        commutative: bool = False,
        diffusion_derivative: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None,
    ) -> None:
        self._drift, self._diffusion, self._derivative = drift, diffusion, diffusion_derivative
        self.noise: NoiseKind = cast(NoiseKind, choice("noise", noise, get_args(NoiseKind)))
        self.calculus: Calculus = cast(Calculus, choice("calculus", calculus, get_args(Calculus)))
        self.interval = check_interval(interval)
        self.commutative = commutative
        if commutative and noise != "general":
            raise ValueError(f"commutative=True is for noise='general'; noise={noise!r} commutes as it is: leave it out.")

    check_interval = staticmethod(check_interval)

    @property
    def kind(self) -> str:
        """The noise as methods see it: "commutative", or ``noise``."""
        return "commutative" if self.commutative else self.noise

    def drift(self, x: Tensor, t: Number) -> Tensor:
        return _field(self._drift, x, t)

    def diffusion(self, x: Tensor, t: Number) -> Tensor:
        """g(x, t), in the shape of its kind."""
        before = version(x)
        g = self._fitting("diffusion", self._diffusion(x, time_tensor(t, x)), x)
        if version(x) != before:
            raise ValueError(f"diffusion {CHANGED}")
        return g

    def diffuse(self, x: Tensor, t: Number, dw: Tensor) -> Tensor:
        return self.apply(self.diffusion(x, t), dw)

    def euler(self, x: Tensor, t: Number, dt: Number) -> Tensor:
        return plus(x, dt, self.drift(x, t))

    def apply(self, g: Tensor, dw: Tensor) -> Tensor:
        """g dw, shaped like the state."""
        if self.noise == "general":
            return (g * dw.reshape(len(dw), *(1,) * (g.dim() - 2), -1)).sum(-1)
        return g * dw

    def brownian_event(self, x: Tensor) -> tuple[int, ...]:
        event = tuple(x.shape[1:])
        if self.noise == "scalar":
            return (1,) * len(event)
        if self.noise == "general":  # how many Brownian motions there are, the diffusion alone knows
            return (self.diffusion(x, self.interval[0]).shape[-1],)
        return event

    def derivative(self, x: Tensor, t: Number, v: Tensor) -> Tensor:
        """Dg[v], the derivative of the diffusion at x along v, (B, *event); shaped like the diffusion."""
        _tally.pushforward()
        time = time_tensor(t, x)
        if self._derivative:
            return self._fitting("diffusion_derivative", self._derivative(x, time, v), x)
        along: Tensor = torch.func.jvp(lambda y: self._diffusion(y, time), (x.contiguous(),), (v.contiguous(),))[1]
        return along

    def correction(self, x: Tensor, t: Number) -> Tensor:
        """sum_j Dg_j[g_j], twice what lies between the two calculi; shaped like the state."""
        g = self.diffusion(x, t)
        if self.noise == "general":
            return torch.stack([self.derivative(x, t, g[..., j])[..., j] for j in range(g.shape[-1])]).sum(0)
        return self.derivative(x, t, g.expand_as(x))

    def read_as(self, calculus: Calculus, interval: Interval) -> SDE:
        """The same process on ``interval`` in the given calculus: with Var(dw) = |dt|, the sign of dt decides that of the change."""
        if calculus == self.calculus or self.noise == "additive":
            return self
        half = math.copysign(0.5, interval[1] - interval[0]) * (1 if calculus == "ito" else -1)
        return SDE(
            lambda x, t: self.drift(x, t) + half * self.correction(x, t),
            self._diffusion,
            self.noise,
            calculus,
            interval,
            commutative=self.commutative,
            diffusion_derivative=self._derivative,
        )

    def _fitting(self, name: str, g: object, x: Tensor) -> Tensor:
        """``g`` if it has the shape and dtype that the noise asks for."""
        if not isinstance(g, Tensor):
            raise ValueError(f"{name} returned a {type(g).__name__}; expected a tensor, as in lambda x, t: 0.5 * torch.ones_like(x).")
        fits = g.shape[:-1] == x.shape if self.noise == "general" else broadcasts(g.shape, x.shape)
        if not fits or g.dtype != x.dtype or g.device != x.device:
            expected = "(*state, m)" if self.noise == "general" else "one that broadcasts to the state"
            raise ValueError(
                f"{name} returned {tuple(g.shape)} {g.dtype} on {g.device} for a state of {tuple(x.shape)} {x.dtype} on {x.device} and "
                f"noise={self.noise!r}; expected the state's dtype and device, and the shape {expected}."
            )
        return g


class UnderdampedLangevin:
    """Positions and velocities in a heat bath:  dq = v dt,  dv = [force(q, t)/m - friction v] dt + sqrt(2 friction T/m) dw.

    Its stationary law is  exp(-U(q)/T - m |v|^2/(2 T))  where force = -grad U: with T = 1 and the score of a density as the force,
    positions sample that density.  The state is (B, 2, *event), x[:, 0] = q and x[:, 1] = v.  The splittings ``baoab`` and ``ubu``
    are made for it; methods for additive noise take it too.  [Leimkuhler & Matthews 2015, chapter 6]

    Arguments:
        force: function of q, (B, *event), and t, a tensor () or (B,) in q's dtype; returns a tensor shaped like q.
        friction: rate > 0 at which velocities are forgotten, in units of 1/t.
        mass: m > 0.
        temperature: T > 0.
        interval: (first, last), finite and different.  Backwards the friction feeds velocities instead of damping them.

    Raises:
        ValueError: a parameter out of range; at the first call, a force of the wrong shape or dtype.
    """

    noise: ClassVar[NoiseKind] = "additive"
    calculus: ClassVar[Calculus] = "ito"

    def __init__(self, force: Field, friction: float = 1.0, mass: float = 1.0, temperature: float = 1.0, interval: Interval = (0.0, 1.0)) -> None:
        self._force = force
        self.friction, self.mass, self.temperature = friction, mass, temperature
        for name, value in (("friction", friction), ("mass", mass), ("temperature", temperature)):
            if isinstance(value, bool) or not isinstance(value, int | float) or not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name}={value!r}; expected a finite number > 0, as in {name}=1.0.")
        self.interval = check_interval(interval)

    check_interval = staticmethod(check_interval)

    def force(self, q: Tensor, t: Number) -> Tensor:
        """The force at positions q, (B, *event)."""
        return _field(self._force, q, t, "force")

    def drift(self, x: Tensor, t: Number) -> Tensor:
        q, v = x.unbind(1)
        return torch.stack([v, self.force(q, t) / self.mass - self.friction * v], 1)

    def euler(self, x: Tensor, t: Number, dt: Number) -> Tensor:
        return plus(x, dt, self.drift(x, t))

    def diffuse(self, x: Tensor, t: Number, dw: Tensor) -> Tensor:
        return torch.stack([torch.zeros_like(dw), math.sqrt(2 * self.friction * self.temperature / self.mass) * dw], 1)

    def brownian_event(self, x: Tensor) -> tuple[int, ...]:
        return tuple(x.shape[2:])


class _ScoreProblem(ABC):
    """What the reverse SDE and its ODE share."""

    def __init__(self, process: Process, score: Score | Field, eps: float | None = None) -> None:
        self.process = process
        self.score = score if isinstance(score, Score) else as_score(score, process, predicts="score")
        if self.score.process != process:
            raise ValueError(f"the score belongs to {self.score.process} and the problem to {process}; expected one process: score.process.reverse(score).")
        self.interval = self.check_interval((process.T, process.eps if eps is None else eps))

    def check_interval(self, interval: Interval) -> Interval:
        """``interval`` if the score is defined on it: it is singular at t = 0 and unknown beyond T."""
        t0, t1 = check_interval(interval)
        if not 0 < min(t0, t1) < max(t0, t1) <= self.process.T:
            raise ValueError(
                f"interval=({t0}, {t1}) leaves (0, {self.process.T}], where {type(self.process).__name__} has a score; "
                f"expected 0 < eps < T, as in process.reverse(score, eps={self.process.eps})."
            )
        return t0, t1

    @abstractmethod
    def linear(self, t: Number) -> tuple[Number, Number]:
        """(on_x, on_score) of  drift = on_x x + on_score score(x, t)."""

    def drift(self, x: Tensor, t: Number) -> Tensor:
        on_x, on_score = self.linear(t)
        return plus(bcast(on_x, x) * x, on_score, self.score(x, t))

    def euler(self, x: Tensor, t: Number, dt: Number) -> Tensor:
        on_x, on_score = self.linear(t)
        return plus(bcast(1 + dt * on_x, x) * x, dt * on_score, self.score(x, t))


class ReverseSDE(_ScoreProblem):
    """The reverse-time SDE of a forward process:  dx = [a(t) x - g(t)^2 score(x, t)] dt + g(t) dw on (T, eps).

    [Anderson 1982; Song et al. 2021, eq. 6].  Made by ``process.reverse(score)``.

    Attributes:
        process, score: the forward process and the score of its marginals.
        interval: (T, eps).
    """

    noise: ClassVar[NoiseKind] = "additive"
    calculus: ClassVar[Calculus] = "ito"

    def check_interval(self, interval: Interval) -> Interval:
        t0, t1 = super().check_interval(interval)
        if t0 < t1:
            raise ValueError(f"interval=({t0}, {t1}) runs forwards; a reverse SDE runs from the noise to the data: interval=({t1}, {t0}).")
        return t0, t1

    def linear(self, t: Number) -> tuple[Number, Number]:
        return self.process.drift_rate_(t), -(self.process.diffusion_(t) ** 2)

    def diffuse(self, x: Tensor, t: Number, dw: Tensor) -> Tensor:
        return bcast(self.process.diffusion_(t), x) * dw

    def brownian_event(self, x: Tensor) -> tuple[int, ...]:
        return tuple(x.shape[1:])

    def probability_flow(self) -> ProbabilityFlow:
        """The ODE with the same marginals."""
        return ProbabilityFlow(self.process, self.score, self.interval[1])


class ProbabilityFlow(_ScoreProblem):
    """The ODE with the marginals of the SDE:  dx/dt = a(t) x - g(t)^2 score(x, t) / 2 on (T, eps), or back.

    [Song et al. 2021, eq. 13].  Made by ``process.probability_flow(score)``.

    Attributes:
        process, score: the forward process and the score of its marginals.
        interval: (T, eps).
    """

    def linear(self, t: Number) -> tuple[Number, Number]:
        return self.process.drift_rate_(t), -0.5 * self.process.diffusion_(t) ** 2


def _field(function: Field, x: Tensor, t: Number, name: str = "drift") -> Tensor:
    time, before = time_tensor(t, x), version(x)
    try:
        value = _tally.call(function, x, time)
    except RuntimeError as error:
        if time.dim():
            error.add_note(f"Here every sample has its own time: t has shape {tuple(time.shape)}. {PER_ROW_TIME}")
        raise
    if version(x) != before:
        raise ValueError(f"{name} {CHANGED}")
    if not isinstance(value, Tensor) or value.shape != x.shape or value.dtype != x.dtype or value.device != x.device:
        got = f"{tuple(value.shape)} {value.dtype} on {value.device}" if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(f"{name} returned {got}; expected {tuple(x.shape)} {x.dtype} on {x.device}, like the state.")
    return value
