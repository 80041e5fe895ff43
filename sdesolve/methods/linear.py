"""Samplers that are linear in what the network says: the frame of the exponential and multistep methods.

The reverse SDE and the probability flow are linear but for the network, so a sampler's work between two calls is a row of numbers,

    x(t1) = on_x x(t) + sum_j on_outputs[j] D_j + on_noise z,

with D_j the network's outputs so far, newest first: E[x_0 | x] ("x0") or E[eps | x] ("epsilon"), each at its own time.  In
lambda = ln(alpha/sigma) the flow of x/sigma is  d(x/sigma)/dlambda = e^lambda D,  so the numbers are integrals of exponentials.  They are
formulas in float64 of the process and the times alone; a method of this family is those formulas, and has no loop of its own.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from itertools import pairwise, zip_longest
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from .._arrays import Number, bcast, plus, xp
from .._errors import as_float, integer
from ..noise import MOVE
from ..problems import ScoreProblem
from ..processes import Process
from .base import Facts, Step, StepNoise, Stepper

_APART, _SHORTER = 1e-10, 3e-4  # least step in lambda that is divided by, and least as a share of its neighbours', of a method that remembers: errors and noise grow by as much
_CLOSE = 0.05  # in lambda: outputs that are closer are extrapolated as if they weren't, as what they have of errors grows by 1/(2 h)
_TERMS = 18  # of the series of phi: below one rounding for |z| < 1


class Row(NamedTuple):
    """The coefficients of one move; those of outputs that a move does not use are left out."""

    on_x: Number
    on_outputs: Sequence[Number]
    """Newest first."""
    on_noise: Number | None = None
    """None where no noise is drawn."""

    def corrected(self, implicit: Sequence[Number], explicit: Sequence[Number], *, share: Number = 1.0) -> Row:
        """This move after a correction of the state that it starts from: x + share sum_j (implicit_j - explicit_j) D_j.

        The step before went by ``explicit`` weights, on the outputs that were there; ``implicit`` ones, newest first, weigh the output at its end too,
        which this move knows.  So an implicit corrector costs no call of its own.
        """
        change = [share * self.on_x * (new - old) for new, old in zip_longest(implicit, (0.0, *explicit), fillvalue=0.0)]
        return self._replace(on_outputs=[a + b for a, b in zip_longest(self.on_outputs, change, fillvalue=0.0)])


class History(NamedTuple):
    """What a step hands to the next: the last outputs and the times of their calls, newest first."""

    outputs: tuple[Tensor, ...] = ()
    times: tuple[Number, ...] = ()


class LinearSampler(Stepper):
    """Base of the methods whose moves are rows.  A step goes from node to node, calling the network once at each and drawing noise of its own for each move."""

    output: ClassVar[Literal["x0", "epsilon"]] = "x0"
    """What is combined."""
    default_grid: ClassVar[str | None] = "log_snr"
    outlives_moves: ClassVar[bool] = True

    @property
    @abstractmethod
    def memory(self) -> int:
        """Outputs that a row may use, the newest included; 1 for a method without a past."""

    @abstractmethod
    def row(self, process: Process, times: Sequence[Number], t1: Number) -> Row:
        """The move to t1 from ``times[0]``, the newest of the times (at most ``memory``, newest first) at which the network was called."""

    def nodes(self, process: Process, t0: Number, t1: Number) -> tuple[Number, ...]:
        """Where a step calls the network: t0, and times within the step for a method with stages, whose memory then is the step's own."""
        return (t0,)

    def check_grid(self, process: Process, ts: Sequence[float]) -> None:
        if self.memory > 1:
            check_apart(process, ts)

    def init(self, problem: ScoreProblem, x: Tensor, t: Number) -> History:
        return History()

    def step(self, problem: ScoreProblem, x: Tensor, t0: Number, t1: Number, noise: StepNoise | None, carry: History) -> Step:
        nodes = self.nodes(problem.process, t0, t1)
        history, mean = carry, x
        for move, (t, to) in enumerate(pairwise((*nodes, t1))):
            history, row = self._called(problem, x, t, to, history)
            mean = combined(row, x, history.outputs)
            x = mean if noise is None or row.on_noise is None else plus(mean, row.on_noise, noise.normal(move * MOVE))
        return Step(x, carry=history if len(nodes) == 1 else carry, mean=mean)

    def ending(self, problem: ScoreProblem, x: Tensor, t: Number, carry: History) -> Tensor:
        """The move to no noise along the flow, of a method that remembers an output; Tweedie's formula by any other."""
        if self.memory == 1 or self.facts.kinds or not carry.outputs:
            return super().ending(problem, x, t, carry)
        history = self._asked(problem, x, t, carry)
        return combined(to_no_noise(problem.process, history.times, self.output), x, history.outputs)

    def _called(self, problem: ScoreProblem, x: Tensor, t: Number, to: Number, past: History) -> tuple[History, Row]:
        """The network's output at (x, t) with those before it, and the row of the move from there."""
        history = self._asked(problem, x, t, past)
        return history, self.row(problem.process, history.times, to)

    def _asked(self, problem: ScoreProblem, x: Tensor, t: Number, past: History) -> History:
        """The network's output at (x, t) with those before it."""
        called = problem.score.denoise if self.output == "x0" else problem.score.epsilon
        return History((called(x, t), *past.outputs)[: self.memory], (t, *past.times)[: self.memory])


def to_no_noise(process: Process, times: Sequence[Number], output: Literal["x0", "epsilon"]) -> Row:
    """The flow from ``times[0]`` to where nothing is left of the noise, by the outputs at the first two of the times.

    Tweedie's formula ends at D = E[x_0 | x], which along a direction in which data are much wider than rho = sigma/alpha, by a standard deviation s, is too near to their mean by
    rho^2/(2 s^2).  In rho^2 the D of a smooth law are a straight line where rho is small, and in rho the outputs E[eps | x] are, both for directions in which data are wide
    and for those in which they have no width; each is followed to rho = 0.  What is left is a quantity of order rho^2 rho_-1^2.
    From data to noise there is nothing to follow, and Tweedie's formula is left.
    """
    way = half_log_snr(process, times[0]) - half_log_snr(process, times[1])
    h = way.clamp(min=_CLOSE) if isinstance(way, Tensor) else max(way, _CLOSE)
    towards_data = 1.0 * (way > 0)
    if output == "x0":
        share = towards_data / xp(h).expm1(2 * h)
        return Row(0.0, (1 + share, -share))
    alpha = process.alpha_(times[0])
    rho = process.sigma_(times[0]) / alpha
    share = 0.5 * towards_data * rho / xp(h).expm1(h)
    return Row(1 / alpha, (-rho - share, share))


def check_apart(process: Process, ts: Sequence[float], remembers: bool = True) -> None:
    """Differences of outputs are divided by steps in lambda and, by a method that remembers, multiplied by the next ones."""
    steps = [abs(float(half_log_snr(process, t1) - half_log_snr(process, t0))) for t0, t1 in pairwise(ts)]
    for i, step in enumerate(steps):
        longer = remembers and step < _SHORTER * max(steps[max(0, i - 1) : i + 2])
        if longer or step < _APART:
            over = "to go over a step thousands of times as long" if longer else "which has no digits left there"
            raise ValueError(
                f"grid[{i}]={ts[i]!r} and grid[{i + 1}]={ts[i + 1]!r} are {step:.1e} apart in ln(alpha/sigma), by which this method divides the difference of two "
                f"outputs, {over}; expected one of them to be left out."
            )


def combined(row: Row, x: Tensor, outputs: Sequence[Tensor]) -> Tensor:
    """The move without its noise."""
    mean: Any = bcast(row.on_x, x) * x
    for weight, output in zip(row.on_outputs, outputs, strict=False):
        mean = plus(mean, weight, output)
    return mean


def half_log_snr(process: Process, t: Number) -> Number:
    """lambda = ln(alpha/sigma)."""
    return 0.5 * process.log_snr_(t)


def phi(k: int, z: Number) -> Number:
    """phi_k(z) = int_0^1 e^(z (1 - s)) s^(k-1) ds / (k-1)!  =  sum_j z^j / (j + k)!,  to a few roundings at every z; k >= 1."""
    series: Number = 0.0 * z
    for j in reversed(range(_TERMS)):
        series = series * z + 1 / math.factorial(j + k)
    if not isinstance(z, Tensor):
        return series if abs(z) < 1 else _phi_recursion(k, z)
    return torch.where(z.abs() < 1, series, _phi_recursion(k, z))


def _phi_recursion(k: int, z: Number) -> Number:
    value: Number = xp(z).expm1(z) / z
    for j in range(1, k):
        value = (value - 1 / math.factorial(j)) / z
    return value


def exponential_moments(z: Number, count: int) -> list[Number]:
    """int_0^1 e^(z (1 - s)) s^k ds for k < count."""
    return [math.factorial(k) * phi(k + 1, z) for k in range(count)]


def interpolatory(at: Sequence[Number], moments: Sequence[Number]) -> list[Number]:
    """Weights w_j with  sum_j w_j P(at[j]) = L(P)  for every polynomial P of degree < len(at), given L(s^k) = moments[k]."""
    weights = []
    for j, here in enumerate(at):
        basis: list[Number] = [1.0]  # of Lagrange, lowest power first
        for other in (*at[:j], *at[j + 1 :]):
            shifted, same = [0.0, *basis], [*basis, 0.0]
            basis = [(a - other * b) / (here - other) for a, b in zip(shifted, same, strict=True)]
        weights.append(sum(a * m for a, m in zip(basis, moments, strict=False)))
    return weights


def adams(process: Process, t0: Number, t1: Number, through: Sequence[Number], eta: Number = 0.0) -> list[Number]:
    """Weights on E[x_0 | x] at the times ``through`` of the exact solution from t0 to t1 where it is their polynomial in lambda:

        (1 + eta) alpha_1 int_{lambda_0}^{lambda_1} e^{(1 + eta)(u - lambda_1)} P(u) du,

    with eta = 0 for the probability flow and 1 for the reverse SDE.  Times up to t0 make an explicit method (Adams-Bashforth), with t1 among them
    it is implicit (Adams-Moulton).
    """
    return interpolatory(*adams_moments(process, t0, t1, through, eta))


def adams_moments(process: Process, t0: Number, t1: Number, through: Sequence[Number], eta: Number) -> tuple[list[Number], list[Number]]:
    """Where ``through`` lies in s = (lambda - lambda_0)/h, and the integral of :func:`adams` for the powers of s."""
    old, new = half_log_snr(process, t0), half_log_snr(process, t1)
    h = new - old
    scale = process.alpha_(t1) * (1 + eta) * h
    return [(half_log_snr(process, t) - old) / h for t in through], [scale * m for m in exponential_moments(-(1 + eta) * h, len(through))]


def kept(process: Process, t0: Number, t1: Number, eta: Number = 0.0) -> tuple[Number, Number | None]:
    """(on_x, on_noise) of the exact solution from t0 to t1 at the noise level eta of :func:`adams`; the noise None for the flow."""
    on_x = process.sigma_(t1) / process.sigma_(t0)
    if not isinstance(eta, Tensor) and not eta:
        return on_x, None
    decay = eta * (half_log_snr(process, t0) - half_log_snr(process, t1))
    m = xp(decay)
    return on_x * m.exp(decay), process.sigma_(t1) * m.sqrt(-m.expm1(2 * decay))


def outputs_of(name: str, count: object, least: int = 1, most: int = 4) -> int:
    """``count`` if it is a number of outputs whose polynomial does not swing between them."""
    whole = integer(name, count, least, example=3)
    if whole > most:
        raise ValueError(f"{name}={count!r}; expected {least} to {most} outputs: a polynomial through more swings between them.")
    return whole


def noise_level(eta: object, most: float = math.inf) -> float:
    """``eta`` if it is a number in [0, most]."""
    value = as_float(eta)
    if value is None or not (0 <= value <= most and value < math.inf):
        raise ValueError(f"eta={eta!r}; expected a number from 0 (the ODE) {f'to {most:g}' if most < math.inf else 'up'}, as in eta=1.0 (the reverse SDE).")
    return value


def exponential_facts(ode: int, weak: float, eta: float, reference: str, evals: int = 1) -> Facts:
    """Facts of a method that is an ODE method where eta = 0; its path is that of the reverse SDE where eta = 1."""
    if not eta:
        return Facts(evals=evals, ode=ode, needs=frozenset({"score"}), reference=reference)
    strong = {"additive": 1.0} if eta == 1 else {}
    return Facts(evals=evals, strong=strong, weak={"additive": weak}, needs=frozenset({"score"}), reference=reference)
