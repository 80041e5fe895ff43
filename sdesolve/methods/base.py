"""What a method is: facts it declares, and one pure step.

A step knows nothing of loops, grids or seeds: it goes from (x, t0) to t1 with the noise it is handed.  The same step serves
fixed grids, where times are host floats, and per-sample control, where they are float64 tensors (B,).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple, Protocol

from torch import Tensor

from .._arrays import Number
from ..control import Control
from ..grids import Grid
from ..processes import Process

NONE: Mapping[str, float] = MappingProxyType({})


class Facts(NamedTuple):
    """What a method declares about itself; the tests measure every declaration of every registered method."""

    evals: int
    """Network calls a step."""
    start: int = 0
    """Network calls of a walk besides those of its steps: before the first one, or where it goes back."""
    ode: int | None = None
    """Order on ODEs; None for a method that needs noise."""
    strong: Mapping[str, float] = NONE
    """Strong order by noise kind; the kinds named here or in ``weak`` are those the method can do.  Besides the four of a problem
    there is "commutative": general noise whose iterated integrals need no Levy areas."""
    weak: Mapping[str, float] = NONE
    """Weak order by noise kind; 0 where the limit is another law than the problem's."""
    calculus: frozenset[str] = frozenset({"ito"})
    """Readings of a noise that depends on the state that the method integrates; a problem in the other is converted."""
    needs: frozenset[str] = frozenset()
    """What the problem must have besides a drift: "score" (a forward process and its score), "derivative" (of its diffusion, by
    automatic differentiation or as given), "langevin" (positions, velocities and a force)."""
    dense: int | None = None
    """Order of the continuous extension, for values between the nodes; None where there is none."""
    largest: int | None = None
    """Most numbers in the state of one sample; None where there is no limit."""
    reference: str = ""

    @property
    def kinds(self) -> frozenset[str]:
        """Noise kinds the method can do; empty for ODE methods."""
        return frozenset(self.strong) | frozenset(self.weak)


class Step(NamedTuple):
    """What one step returns."""

    x: Tensor
    error: Tensor | None = None
    """Estimated local error, (B, *event), of a method with an embedded one."""
    carry: Any = None
    """What the next step wants back: None, or a tensor whose first axis is the batch."""
    mean: Tensor | None = None
    """The state without its last noise."""
    scale: Tensor | None = None
    """What the tolerance is relative to, where it is not the larger of the step's two ends."""
    stages: Sequence[Tensor] = ()
    """What :meth:`Stepper.interpolant` is made from; the first axis of each is the batch."""


class StepNoise(Protocol):
    """The noise of one step."""

    def normal(self, slot: int = 0) -> Tensor:
        """Standard normals; equal slots give equal numbers, different slots independent ones."""
        ...

    def increment(self, t0: Number, t1: Number) -> Tensor:
        """The Brownian increment over the step, N(0, |t1 - t0|)."""
        ...

    def levy(self, t0: Number, t1: Number) -> tuple[Tensor, Tensor]:
        """The increment W and the space-time Levy area H ~ N(0, |t1 - t0|/12), independent:  int (W_u - W_t0) |du| = |dt| (W/2 + H)."""
        ...

    def bridge(self, t0: float, t1: float, times: Sequence[float]) -> list[Tensor]:
        """The Brownian bridge of the step, W(t) - theta W(t1) with theta = (t - t0)/(t1 - t0), at ``times`` in order."""
        ...


class Stepper:
    """Base of every method: a frozen dataclass of its options, with ``facts`` and ``step``."""

    facts: ClassVar[Facts]
    error_order: ClassVar[float | None] = None
    """p where the local error estimate falls as h^p; None where there is no estimate."""
    control: ClassVar[type[Control]] = Control
    """What makes the next step's length out of the estimates."""

    @property
    def default_tolerance(self) -> float:
        """rtol and atol where none are given: the noise of an SDE makes a digit dearer than it is for an ODE."""
        return 1e-2 if self.facts.kinds else 1e-5

    @property
    def chooses_steps(self) -> bool:
        """Whether it keeps to a tolerance unasked; where there is an estimate, any method does when rtol or atol is given."""
        return self.error_order is not None and self.facts.ode is not None and self.facts.ode > 2

    redraws: ClassVar[bool] = False
    """Whether a rejected step's noise is drawn anew: published methods that do are biased."""

    default_grid: ClassVar[str | None] = None
    """Name of the grid that suits the method better than the process's own does."""

    own_grid: ClassVar[Grid | None] = None
    """The grid of a method that is made for one."""

    @property
    def couples_rows(self) -> bool:
        """Whether a row's step depends on the other rows: published rules that take a mean over the batch."""
        return False

    one_time: ClassVar[bool] = False
    """Whether a step needs its times as floats: what it does depends on them, and is the same for all rows."""

    calls_on_the_way: ClassVar[bool] = False
    """Whether ``facts.start`` are calls of a walk that come somewhere on its way, and not those of :meth:`init`."""

    outlives_moves: ClassVar[bool] = False
    """Whether what a step carries still serves the next where something else has moved the state in between, as a corrector does."""

    reversible: ClassVar[bool] = False
    """Whether :meth:`step_back` undoes a step."""

    def compiled(self, compile: Callable[[Stepper], Stepper]) -> Stepper:
        """This method with what can be compiled of it, by ``compile``."""
        return compile(self)

    def constrained(self, step: Callable[[Stepper], Stepper], correction: Callable[[Any], Any]) -> Stepper:
        """This method with a constraint after every move: ``step`` puts one after those of a stepper, ``correction`` after those of a corrector."""
        return step(self)

    def check_grid(self, process: Process, ts: Sequence[float]) -> None:
        """Refuse a walk over ``ts``, before its first call, that the method cannot make."""

    def init(self, problem: Any, x: Tensor, t: Number) -> Any:
        """The first step's carry."""
        return None

    def step(self, problem: Any, x: Tensor, t0: Number, t1: Number, noise: Any, carry: Any) -> Step:
        """From (x, t0) to t1; ``noise`` is a :class:`StepNoise`, or None for a problem without noise."""
        raise NotImplementedError(f"{type(self).__name__} has no step")

    def ending(self, problem: Any, x: Tensor, t: Number, carry: Any) -> Tensor:
        """Data from the last state, (x, t), in one network call: Tweedie's formula, where a method knows no better; ``carry`` is the last step's."""
        denoised: Tensor = problem.score.denoise(x, t)
        return denoised

    def stats(self, carry: Any) -> dict[str, Tensor]:
        """What the last step's carry says about each sample, (B,), by its name in ``Solution.stats``."""
        return {}

    def interpolant(self, problem: Any, x: Tensor, t0: Number, t1: Number, stages: Sequence[Tensor]) -> Sequence[Tensor]:
        """c_1, c_2, ... of  x(t0 + theta (t1 - t0)) = x + c_1 theta + c_2 theta^2 + ...  from the ``stages`` of a step from x."""
        raise NotImplementedError(f"{type(self).__name__} has no continuous extension")

    def step_back(self, problem: Any, x: Tensor, t0: Number, t1: Number, noise: Any, carry: Any) -> Step:
        """Undo the step from t0 to t1 that ended in (x, carry): its start, and the carry there."""
        raise NotImplementedError(f"{type(self).__name__} cannot take a step back")
