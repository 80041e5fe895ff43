"""How fast a method converges: measured here, asserted in test_orders.py, printed by benchmarks/orders.py.

Strong errors are taken along given Brownian paths.  Weak errors have no Monte-Carlo part: the expectation after N steps is
carried back through the method's own transition, by cubature over its noise and interpolation in the state.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from problems import PROCESSES, GaussianTarget, twist_ode
from torch import Tensor

import sdesolve as sd
from sdesolve._checks import grid_of, nodes_of, prepared, suited
from sdesolve.grids import make_grid
from sdesolve.methods import make_method
from sdesolve.methods.linear import History, LinearSampler
from sdesolve.methods.reversible_heun import ReversibleHeun
from sdesolve.noise import LEVY, MOVE

Interval = tuple[float, float]


class Measured(NamedTuple):
    """Errors by number of steps, and the order that they show."""

    steps: list[int]
    errors: list[float]
    order: float


def slope(steps: Sequence[int], errors: Sequence[float]) -> float:
    """Least-squares slope of -log error against log steps: the observed order."""
    x, y = torch.tensor(steps, dtype=torch.float64).log(), -torch.tensor(errors, dtype=torch.float64).log()
    x, y = x - x.mean(), y - y.mean()
    return float((x * y).sum() / (x * x).sum())


def asymptotic_slope(steps: Sequence[int], errors: Sequence[float]) -> float:
    """p of the least-squares fit  error = c N^-p exp(d / N):  the order in the limit, where the next term still shows."""
    n = torch.tensor(steps, dtype=torch.float64)
    terms = torch.stack([torch.ones_like(n), -n.log(), 1 / n], 1)
    return float(torch.linalg.lstsq(terms, torch.tensor(errors, dtype=torch.float64).log()[:, None]).solution[1])


def uniform(t0: float, t1: float, steps: int) -> list[float]:
    return [t0 + (t1 - t0) * i / steps for i in range(steps + 1)]


def observed(error: Callable[[int], float], rounding: float, order: Callable[[Sequence[int], Sequence[float]], float] = slope) -> Measured:
    """The ``order`` that ``error``, a function of the number of steps, shows on the six finest grids whose error stands out of rounding.

    So a method of high order is measured on coarse grids, and one of low order on fine ones.
    """
    grids = (8, 12, 16, 20, 24, 32, 40, 48, 64, 80, 96, 128, 160, 192, 256, 320, 384, 512)
    measured = list(itertools.takewhile(lambda pair: pair[1] > rounding, ((n, error(n)) for n in grids)))[-6:]
    steps, errors = (list(column) for column in zip(*measured, strict=True))
    return Measured(steps, errors, order(steps, errors))


def rms(x: Tensor) -> float:
    """Root mean square: smooth in the step, where the largest error jumps from one element to another."""
    return float(x.square().mean().sqrt())


def ode(method: str, interval: Interval) -> Measured:
    """Distance to the exact end, by number of steps."""
    problem, exact = twist_ode(interval)
    start, end = (exact(t) for t in interval)
    return observed(lambda n: rms(sd.solve(problem, start, method, steps=n).x - end), rounding=3e-14)


@dataclass(frozen=True)
class TwoModes:
    """Two Gaussians of std 0.3 at -0.8 and 0.8 in each coordinate: a nonlinear score, and a flow, that are known."""

    process: sd.Process

    def mode(self, t: float | Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance, at t, of the one on the right."""
        alpha, sigma = self.process.alpha(t), self.process.sigma(t)
        return 0.8 * alpha, (0.3 * alpha).square() + sigma.square()

    def score(self, x: Tensor, t: Tensor) -> Tensor:
        mean, variance = (c.reshape(-1, 1).to(x) for c in self.mode(t))
        return (mean * torch.tanh(mean * x / variance) - x) / variance

    def moved(self, x: Tensor, t0: float, t1: float) -> Tensor:
        """Where the probability flow takes x from t0 to t1: in one dimension it keeps the distribution function, here inverted by bisection."""
        share = self._below(x, t0)
        low, high = torch.full_like(x, -100.0), torch.full_like(x, 100.0)
        for _ in range(80):
            middle = 0.5 * (low + high)
            above = self._below(middle, t1) > share
            low, high = torch.where(above, low, middle), torch.where(above, middle, high)
        return 0.5 * (low + high)

    def _below(self, x: Tensor, t: float) -> Tensor:
        mean, variance = self.mode(t)
        return 0.5 * (torch.special.ndtr((x - mean) / variance.sqrt()) + torch.special.ndtr((x + mean) / variance.sqrt()))


def flow(method: str | sd.Stepper, process: str, backwards: bool = True) -> Measured:
    """Distance to the exact probability flow of a nonlinear score at four times of the way, relative to the states there, by number of steps.

    The flow contracts or spreads, so the next term of the error shows; the order is that of the limit.  On equal steps in t, but for iPNDM with EDM, where they
    are equal in sigma too and the weights of equal steps do better than elsewhere.
    """
    p = PROCESSES[process]
    modes = TwoModes(p)
    span = tuple(float(p.log_snr_inverse(level)) for level in ((-2.0, 2.0) if backwards else (2.0, -2.0)))
    x = torch.linspace(-2, 2, 32, dtype=torch.float64)[:, None] * modes.mode(span[0])[1].sqrt()
    grid = "karras" if (method, process) == ("ipndm", "EDM") else "uniform"
    exact = torch.stack([modes.moved(x, span[0], t) for t in make_grid(grid, p, *span, 4).ts[1:]])
    problem, scale = p.probability_flow(modes.score), exact.abs().amax((1, 2), keepdim=True)

    def error(n: int) -> float:
        states = sd.solve(problem, x, method, steps=n, grid=grid, interval=span, save="all").xs
        return rms((states[n // 4 :: n // 4] - exact) / scale)

    return observed(error, rounding=1e-13, order=asymptotic_slope)


# -- along given paths ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Path:
    """A Brownian path on equal steps of ``interval``: increments and space-time Levy areas, (N, *shape)."""

    interval: Interval
    w: Tensor
    area: Tensor

    @classmethod
    def draw(cls, interval: Interval, steps: int, shape: Sequence[int], seed: int) -> Path:
        generator = torch.Generator().manual_seed(seed)
        w, area = torch.randn(2, steps, *shape, generator=generator, dtype=torch.float64) * math.sqrt(abs(interval[1] - interval[0]) / steps)
        return cls(interval, w, area / math.sqrt(12))

    def coarse(self, steps: int) -> Path:
        """The same path on fewer steps.  Chen's relation: over steps of one length the means of W_u - W_t0 average, each from its own start."""
        k = len(self.w) // steps
        w, area = (v.reshape(steps, k, *v.shape[1:]) for v in (self.w, self.area))
        total = w.sum(1)
        mean = (w.cumsum(1) - 0.5 * w + area).mean(1)
        return Path(self.interval, total, mean - 0.5 * total)


class StepOf(NamedTuple):
    """The noise of one step of a path; what no Brownian motion drives is drawn from a seed."""

    w: Tensor
    area: Tensor
    length: float
    seed: int

    def increment(self, t0: float, t1: float) -> Tensor:
        return self.w

    def levy(self, t0: float, t1: float) -> tuple[Tensor, Tensor]:
        return self.w, self.area

    def normal(self, slot: int = 0) -> Tensor:
        if slot == 0:
            return self.w / math.sqrt(self.length)
        return torch.randn(self.w.shape, generator=torch.Generator().manual_seed(1000 * self.seed + slot % 1000), dtype=self.w.dtype)


def walk(stepper: sd.Stepper, problem: Any, x: Tensor, path: Path) -> Tensor:
    """The last state along the steps of ``path``."""
    steps = len(path.w)
    ts = uniform(*path.interval, steps)
    carry = stepper.init(problem, x, ts[0])
    for i in range(steps):
        out = stepper.step(problem, x, ts[i], ts[i + 1], StepOf(path.w[i], path.area[i], abs(ts[i + 1] - ts[i]), i), carry)
        x, carry = out.x, out.carry
    return x


def bent(kind: str, interval: Interval, calculus: str = "ito") -> tuple[sd.SDE, Callable[[Tensor, Path], Tensor]]:
    """x = arsinh(y) for a y in the plane that a fine path solves: nonlinear, non-autonomous, coupled.  Returns the SDE and its exact end.

        scalar, diagonal, commutative:   dy = [K y a(t) + b(t)] dt + c(t) A dW,    a(t) = 1 + cos(3 t)/2        (the drift does not commute with A)
        general:                         dy_1 = b_1 dt + A_11 dW_1,    dy_2 = b_2 dt + A_21 dW_1 + A_22 y_1 dW_2     (nor do the columns)

    Both read the same in either calculus; for x, Ito's formula adds  -(1/2) |c A_i|^2 sinh x_i / cosh^3 x_i d|t|/dt  to the drift.
    """
    forwards = 1.0 if interval[1] > interval[0] else -1.0
    matrix = torch.tensor({"scalar": [[1.0], [0.8]], "diagonal": [[1.0, 0.0], [0.0, 0.8]]}.get(kind, [[1.0, 0.0], [0.5, 0.8]]), dtype=torch.float64)
    pull = torch.tensor([[-0.5, 0.4], [-0.3, -0.4]], dtype=torch.float64) * (kind != "general")

    def columns(y: Tensor) -> Tensor:
        if kind != "general":
            return matrix
        return torch.stack([matrix[0].expand_as(y), torch.stack([matrix[1, 0].expand(len(y)), matrix[1, 1] * y[:, 0]], 1)], 1)

    def size(t: Tensor) -> Tensor:
        return 1 + 0.4 * torch.sin(2 * t) if kind != "general" else torch.ones_like(t)

    def force(t: Tensor) -> Tensor:
        return 0.5 * torch.stack([torch.cos(2 * t), torch.sin(3 * t)], -1)

    def drift(x: Tensor, t: Tensor) -> Tensor:
        y, slope = x.sinh(), 1 / x.cosh()
        bend = 0.5 * forwards * size(sd.expand_time(t, x)) ** 2 * columns(y).square().sum(-1) * y * slope**3 if calculus == "ito" else 0.0
        return slope * (y @ pull.T * (1 + 0.5 * torch.cos(3 * sd.expand_time(t, x))) + force(t)) - bend

    def diffusion(x: Tensor, t: Tensor) -> Tensor:
        whole = columns(x.sinh()) * (size(sd.expand_time(t, x)) / x.cosh())[..., None]
        return {"scalar": whole[..., 0], "diagonal": whole.diagonal(dim1=-2, dim2=-1)}.get(kind, whole)

    def exact(x: Tensor, path: Path) -> Tensor:
        t = torch.tensor(uniform(*interval, len(path.w)), dtype=torch.float64)
        return torch.asinh(_heisenberg(x.sinh(), t, path, matrix) if kind == "general" else _linear(x.sinh(), t, path, pull, size(t)[:, None, None] * matrix, force))

    return sd.SDE(drift, diffusion, "general" if kind == "commutative" else kind, calculus, interval, commutative=kind == "commutative"), exact


def _linear(y: Tensor, t: Tensor, path: Path, pull: Tensor, matrix: Tensor, force: Callable[[Tensor], Tensor]) -> Tensor:
    """The end of dy = [K y a + b] dt + A(t) dW:  F(t0) y + int F b dt + int F A dW  with F the flow from t to the end."""
    clock = t + torch.sin(3 * t) / 6
    flow = torch.linalg.matrix_exp((clock[-1] - clock)[:, None, None] * pull)
    on_w = flow @ matrix
    noise = torch.einsum("nim,nbm->bi", 0.5 * (on_w[1:] + on_w[:-1]), path.w) - torch.einsum("nim,nbm->bi", on_w.diff(dim=0), path.area)
    return y @ flow[0].T + torch.trapezoid(torch.einsum("nij,nj->ni", flow, force(t)), t, dim=0) + noise


def _heisenberg(y: Tensor, t: Tensor, path: Path, matrix: Tensor) -> Tensor:
    """The end of dy_1 = b_1 dt + A_11 dW_1,  dy_2 = b_2 dt + A_21 dW_1 + A_22 y_1 dW_2, given what a fine path knows of its Levy area."""
    first, second = torch.sin(2 * t) / 4, -torch.cos(3 * t) / 6
    (w1, w2), (a1, a2) = path.w.unbind(-1), path.area.unbind(-1)
    y1 = y[:, 0] + (first[:-1] - first[0])[:, None] + matrix[0, 0] * (w1.cumsum(0) - w1)
    along = 0.5 * torch.cos(2 * t[:-1])[:, None] * (t[1] - t[0]) * (0.5 * w2 - a2) + matrix[0, 0] * (0.5 * w1 * w2 + a1 * w2 - w1 * a2)
    y2 = y[:, 1] + second[-1] - second[0] + matrix[1, 0] * w1.sum(0) + matrix[1, 1] * (y1 * w2 + along).sum(0)
    return torch.stack([y[:, 0] + first[-1] - first[0] + matrix[0, 0] * w1.sum(0), y2], 1)


def additive(interval: Interval, calculus: str = "ito") -> tuple[sd.SDE, Callable[[Tensor, Path], Tensor]]:
    """dx = -sin(2 x) (1 + cos(3 t)/2) dt + (1.2 + t/2) dW, and its end by the Taylor method of order 3/2.  [Kloeden & Platen 1992, 10.4.1]"""
    forwards = 1.0 if interval[1] > interval[0] else -1.0
    problem = sd.SDE(
        lambda x, t: -torch.sin(2 * x) * (1 + 0.5 * torch.cos(3 * sd.expand_time(t, x))), lambda x, t: 1.2 + 0.5 * sd.expand_time(t, x), "additive", calculus, interval
    )

    def exact(x: Tensor, path: Path) -> Tensor:
        t = uniform(*interval, len(path.w))
        for i, (w, area) in enumerate(zip(path.w, path.area, strict=True)):
            h, a, da, g = t[i + 1] - t[i], 1 + 0.5 * math.cos(3 * t[i]), -1.5 * math.sin(3 * t[i]), 1.2 + 0.5 * t[i]
            sin, cos = torch.sin(2 * x), torch.cos(2 * x)
            f, f_x, f_xx, f_t = -a * sin, -2 * a * cos, 4 * a * sin, -da * sin
            integral = h * (0.5 * w + area)
            x = x + f * h + g * w + g * f_x * integral + 0.5 * h * h * (f_t + f * f_x + 0.5 * forwards * g * g * f_xx) + 0.5 * (h * w - integral)
        return x

    return problem, exact


def bath(interval: Interval, calculus: str = "ito") -> tuple[sd.UnderdampedLangevin, Callable[[Tensor, Path], Tensor]]:
    """A particle in a double well that beats, and its end by SRA3, which knows nothing of splittings."""
    problem = sd.UnderdampedLangevin(lambda q, t: (q - q**3) * (1 + 0.5 * torch.cos(3 * t)), friction=1.5, mass=0.8, temperature=0.7, interval=interval)
    return problem, lambda x, path: walk(make_method("sra3"), problem, x, path)


PROBLEMS: dict[str, tuple[Callable[[Interval, str], Any], list[Any], int]] = {
    "additive": (additive, [0.6], 1024),
    "bath": (bath, [[0.5], [0.3]], 1024),
    "general": (functools.partial(bent, "general"), [0.8, -0.6], 512),
    **{kind: (functools.partial(bent, kind), [0.8, -0.6], 256) for kind in ("scalar", "diagonal", "commutative")},
}
"""By kind of noise: the problem, one start, and how many steps the path of the reference has."""


STEPS = [8, 16, 32, 64, 128]
PATHS = 4000


@functools.cache
def _paths(kind: str, interval: Interval, calculus: str) -> tuple[Any, Tensor, Path, Tensor]:
    """The problem, its start, 4,000 paths on the finest steps to be measured, and where they end."""
    make, start, fine = PROBLEMS[kind]
    problem, exact = make(interval, calculus)
    x = torch.tensor(start, dtype=torch.float64).expand(PATHS, *torch.tensor(start).shape)
    path = Path.draw(interval, fine, (PATHS, *problem.brownian_event(x[:1])), seed=1)
    return problem, x, path.coarse(STEPS[-1]), exact(x, path)


def strong(method: str, kind: str, interval: Interval, calculus: str = "ito") -> Measured:
    """Root mean square distance to the exact end of the same path, by number of steps."""
    stepper = make_method(method)
    problem, x, path, end = _paths("bath" if "langevin" in stepper.facts.needs else kind, interval, calculus)
    problem = prepared(stepper, problem, x, interval)
    errors = [float((walk(stepper, problem, x, path.coarse(n)) - end).square().mean().sqrt()) for n in STEPS]
    return Measured(STEPS, errors, slope(STEPS, errors))


@functools.cache
def _reverse_paths() -> tuple[sd.ReverseSDE, Tensor, Path, Tensor]:
    """A reverse SDE, its start, 4,000 paths, and where a method of order 3/2 ends on 8 times finer ones."""
    process = sd.VPSDE()
    problem = process.reverse(TwoModes(process).score)
    x = torch.randn(PATHS, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    path = Path.draw((0.9, 0.3), 8 * STEPS[-1], (PATHS, 1), seed=2)
    return problem, x, path.coarse(STEPS[-1]), walk(make_method("sra3"), problem, x, path)


def strong_on_the_reverse_sde(method: str | sd.Stepper) -> Measured:
    """Root mean square distance to the end of the same path, by number of steps."""
    problem, x, path, end = _reverse_paths()
    stepper = make_method(method) if isinstance(method, str) else method
    errors = [float((walk(stepper, problem, x, path.coarse(n)) - end).square().mean().sqrt()) for n in STEPS]
    return Measured(STEPS, errors, slope(STEPS, errors))


# -- expectations --------------------------------------------------------------------------------------------------------


class Fourier:
    """Functions of period 2 pi of one coordinate, by their values at n equal nodes."""

    def __init__(self, n: int) -> None:
        self.nodes = torch.arange(n, dtype=torch.float64) * (2 * math.pi / n)
        self._k = torch.arange(1, (n - 1) // 2 + 1, dtype=torch.float64)

    def values(self, x: Tensor) -> Tensor:
        """(M,) -> (M, n) basis functions."""
        return torch.cat([torch.ones_like(x)[:, None], torch.cos(x[:, None] * self._k), torch.sin(x[:, None] * self._k)], 1)

    def slopes(self, x: Tensor) -> Tensor:
        return torch.cat([torch.zeros_like(x)[:, None], -self._k * torch.sin(x[:, None] * self._k), self._k * torch.cos(x[:, None] * self._k)], 1)


class Hermite:
    """Polynomials of degree below n of one coordinate, of the size of ``scale``, by their values at the Gauss nodes."""

    def __init__(self, n: int, scale: float) -> None:
        self._n, self._scale = n, scale
        self.nodes = scale * torch.from_numpy(np.polynomial.hermite_e.hermegauss(n)[0])

    def values(self, x: Tensor) -> Tensor:
        columns = [torch.ones_like(x), x / self._scale]
        for k in range(1, self._n - 1):  # orthonormal: sqrt(k+1) h_(k+1) = x h_k - sqrt(k) h_(k-1)
            columns.append((x / self._scale * columns[-1] - math.sqrt(k) * columns[-2]) / math.sqrt(k + 1))
        return torch.stack(columns, 1)

    def slopes(self, x: Tensor) -> Tensor:
        return torch.cat([torch.zeros_like(x)[:, None], self.values(x)[:, :-1] * torch.arange(1, self._n, dtype=torch.float64).sqrt() / self._scale], 1)


class Space:
    """Functions of several coordinates, by their values at the product of the coordinates' nodes."""

    def __init__(self, *axes: Fourier | Hermite) -> None:
        self.axes = axes
        self._shape = [len(axis.nodes) for axis in axes]
        self.nodes = torch.cartesian_prod(*(axis.nodes for axis in axes)).reshape(-1, len(axes))
        self._inverse = [torch.linalg.inv(axis.values(axis.nodes)) for axis in axes]

    def at(self, u: Tensor, x: Tensor) -> Tensor:
        """The function with values u at the nodes, at points (M, d)."""
        c = u.reshape(self._shape)
        for i, inverse in enumerate(self._inverse):
            c = torch.tensordot(inverse, c, ([1], [i])).movedim(0, i)
        out = self.axes[0].values(x[:, 0]) @ c.reshape(self._shape[0], -1)
        for i, axis in enumerate(self.axes[1:], 1):
            out = torch.einsum("mk,mkr->mr", axis.values(x[:, i]), out.reshape(len(x), self._shape[i], -1))
        return out[:, 0]

    def derivative(self, i: int) -> Tensor:
        """The matrix from values at the nodes to values of the derivative by coordinate i."""
        factors = [torch.eye(n, dtype=torch.float64) for n in self._shape]
        factors[i] = self.axes[i].slopes(self.axes[i].nodes) @ self._inverse[i]
        out = factors[0]
        for factor in factors[1:]:
            out = torch.kron(out, factor)
        return out


class Cubature(NamedTuple):
    """Noise of one step by nodes and weights in place of draws, each node for equal ``rows``.

    W has Gauss's nodes; H and the slots after it, as many as are asked for, have two, which agree with the normal law up to third moments.
    """

    w: Tensor
    signs: Tensor
    weights: Tensor
    rows: int

    @classmethod
    def of(cls, shape: tuple[int, ...], slots: int, rows: int) -> Cubature:
        m = math.prod(shape)
        gauss, weight = (torch.from_numpy(v) for v in np.polynomial.hermite_e.hermegauss(4 if m > 1 else 6))
        two, half = torch.tensor([-1.0, 1.0], dtype=torch.float64), torch.tensor([0.5, 0.5], dtype=torch.float64)
        points = torch.cartesian_prod(*[gauss] * m, *[two] * (m * slots)).reshape(-1, m * (1 + slots))
        weights = torch.cartesian_prod(*[weight / weight.sum()] * m, *[half] * (m * slots)).reshape(len(points), -1).prod(1)
        return cls(points[:, :m].reshape(-1, *shape), points[:, m:].reshape(len(points), slots, *shape), weights, rows)

    def increment(self, t0: float, t1: float) -> Tensor:
        return self.normal() * math.sqrt(abs(t1 - t0))

    def levy(self, t0: float, t1: float) -> tuple[Tensor, Tensor]:
        return self.increment(t0, t1), self.normal(LEVY) * math.sqrt(abs(t1 - t0) / 12)

    def normal(self, slot: int = 0) -> Tensor:
        return (self.signs[:, slot - LEVY] if slot else self.w).repeat_interleave(self.rows, 0)


def torus(kind: str, interval: Interval, d: int) -> sd.SDE:
    """A smooth Ito SDE of period 2 pi in d = 1 or 2 coordinates, each with a coefficient that beats."""

    def drift(x: Tensor, t: Tensor) -> Tensor:
        return 0.5 * torch.sin(x.flip(-1) + 1) * (1 + 0.5 * torch.cos(3 * t)) - 0.4 * torch.sin(x + t)

    def size(x: Tensor, t: Tensor) -> Tensor:
        return 0.6 + 0.3 * torch.sin(x + 0.5 * t)

    def matrix(x: Tensor, t: Tensor) -> Tensor:
        mixing = torch.tensor([[1.0, -0.4], [0.5, 0.8]], dtype=torch.float64)[:d]
        if kind == "commutative":
            return size(x, t)[..., None] * mixing
        return torch.stack([size(x, t) * mixing[:, 0], 0.4 * torch.cos(x.flip(-1) - t)], -1)

    shapes: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "additive": lambda x, t: 0.6 + 0.3 * t + 0 * x,
        "scalar": lambda x, t: size(x.flip(-1), t),
        "diagonal": size,
    }
    noise = "general" if kind == "commutative" else kind
    return sd.SDE(drift, shapes.get(kind, matrix), noise, interval=interval, commutative=kind == "commutative")


def periodic_bath(interval: Interval) -> sd.UnderdampedLangevin:
    """A particle in a potential of period 2 pi that beats."""
    return sd.UnderdampedLangevin(lambda q, t: torch.sin(q) * (1 + 0.5 * torch.cos(3 * t)) + 0.5 * torch.cos(2 * q), 0.8, 0.8, 0.7, interval)


def carried_back(stepper: sd.Stepper, problem: Any, space: Space, noise: Cubature, interval: Interval, steps: int, u: Tensor) -> Tensor:
    """The expectation of u after ``steps`` steps, from each node: u <- E[u(step(node))], the last step first."""
    ts = uniform(*interval, steps)
    start = space.nodes.repeat(len(noise.weights), 1)
    for i in reversed(range(steps)):
        if isinstance(stepper, ReversibleHeun):  # its carry is a state of its own
            x, y = start.chunk(2, 1)
            step = stepper.step(problem, x, ts[i], ts[i + 1], noise, torch.stack([y, problem.drift(y, ts[i])], 1))
            end = torch.cat([step.x, step.carry[:, 0]], 1)
        else:
            end = stepper.step(problem, start, ts[i], ts[i + 1], noise, stepper.init(problem, start, ts[i])).x
        u = noise.weights @ space.at(u, end).reshape(len(noise.weights), -1)
    return u


def expected(problem: Any, space: Space, interval: Interval, u: Tensor) -> Tensor:
    """The expectation of u at the end, from each node, by Kolmogorov's backward equation  du/dt = -f . grad u - (1/2) g g^T : hess u d|t|/dt."""
    forwards, d = math.copysign(1.0, interval[1] - interval[0]), space.nodes.shape[1]
    first = [space.derivative(i) for i in range(d)]
    units = torch.eye(math.prod(problem.brownian_event(space.nodes)), dtype=torch.float64)

    def slope(u: Tensor, t: Tensor) -> Tensor:
        f = problem.drift(space.nodes, float(t))
        g = [problem.diffuse(space.nodes, float(t), unit.expand(len(f), -1).reshape(len(f), *problem.brownian_event(space.nodes))) for unit in units]
        by = [u @ one.T for one in first]
        total = sum(f[:, i] * by[i] for i in range(d))
        return -total - 0.5 * forwards * sum(column[:, i] * column[:, j] * (by[i] @ first[j].T) for column in g for i in range(d) for j in range(d))

    return sd.solve(sd.ODE(slope, interval=interval[::-1]), u[None], "rk45", rtol=1e-10, atol=1e-10).x[0]


@functools.cache
def _expectation(name: str, interval: Interval) -> tuple[Any, Space, Tensor, Tensor]:
    """The problem, the space of functions of its state, the function whose expectation is asked for, and that from each node."""
    kind, _, d = name.partition(" ")
    if kind == "bath":
        problem, space = periodic_bath(interval), Space(Fourier(19), Hermite(18, 1.0))
        u = torch.sin(space.nodes[:, 0]) * space.nodes[:, 1] + 0.5 * space.nodes[:, 1].square() + torch.cos(space.nodes[:, 0])
    else:
        problem, space = torus(kind, interval, int(d)), Space(*[Fourier(15)] * int(d))
        u = torch.sin(space.nodes).sum(1) + torch.cos(space.nodes.sum(1))
    return problem, space, u, expected(problem, space, interval, u)


def weak(method: str, kind: str, interval: Interval) -> Measured:
    """Distance of an expectation to the exact one, from a few starts, by number of steps; without Monte-Carlo error."""
    stepper, steps = make_method(method), [8, 12, 16, 24]
    joint = isinstance(stepper, ReversibleHeun)
    problem, space, u, exact = _expectation("bath" if "langevin" in stepper.facts.needs else f"{kind} {1 if joint else 2}", interval)
    problem = prepared(stepper, problem, space.nodes, interval)
    shape = problem.brownian_event(space.nodes)
    starts = torch.tensor([[0.3, 0.3], [1.1, -0.4], [-0.7, 0.9]], dtype=torch.float64)
    if joint:
        space, u, exact, starts = Space(*space.axes * 2), u.repeat_interleave(len(u)), exact.repeat_interleave(len(u)), starts[:, :1].expand(-1, 2)

    def error(n: int, slots: int) -> float:
        got = carried_back(stepper, problem, space, Cubature.of(shape, slots, len(space.nodes)), interval, n, u)
        return float(space.at(got - exact, starts).square().mean().sqrt())

    for slots in (0, 1, 5):
        try:
            errors = [error(n, slots) for n in steps]
        except IndexError:  # the method asks for more than its increment
            continue
        return Measured(steps, errors, asymptotic_slope(steps, errors))
    raise AssertionError(f"{method} asks for more kinds of noise than there are")


# -- the law of a sampler on a Gaussian ------------------------------------------------------------------------------------


def gaussian_outcome(
    method: str,
    process: sd.Process,
    steps: int | None = None,
    grid: str | Sequence[float] | None = None,
    interval: Interval | None = None,
    start: tuple[float, float] | None = None,
    **options: object,
) -> tuple[float, float]:
    """Mean and standard deviation of a sampler's law on a Gaussian target, from those at the start (default: exact), with no Monte-Carlo error.

    The score is linear, so each step is x -> gain x + offset + kicks z, and the law is carried along in closed form; that of reversible
    Heun is the joint law of its two states, that of a linear sampler the joint law of the state and what it remembers.  All steps are
    probed at once: a step takes a time per row.
    """
    target, stepper = GaussianTarget(process), make_method(method, **options)
    problem = suited(stepper, process.reverse(target.score), method)
    ts = torch.tensor(grid_of(problem, stepper, interval or problem.interval, steps, grid, nodes_of(stepper, grid), None, False, False, method).ts, dtype=torch.float64)
    if isinstance(stepper, LinearSampler):
        return linear_law(stepper, problem, ts, *(start or target.law(float(ts[0]))))
    states = 2 if isinstance(stepper, ReversibleHeun) else 1  # x, and the y of the carry

    def stepped(state: Tensor, slot: int | None) -> Tensor:
        x, y = (value.expand(len(ts) - 1, 1) for value in (state[0], state[-1]))
        out = stepper.step(problem, x, ts[:-1], ts[1:], _Impulse(slot, ts.diff().abs()), stepper.init(problem, y, ts[:-1]))
        return torch.cat([out.x, out.carry[:, 0]], 1) if states == 2 else out.x

    offset = stepped(torch.zeros(states, dtype=torch.float64), None)
    gain = torch.stack([stepped(unit, None) - offset for unit in torch.eye(states, dtype=torch.float64)], 2)
    kicks = torch.stack([stepped(torch.zeros(states, dtype=torch.float64), slot) - offset for slot in (0, 1, 2, MOVE, 2 * MOVE, LEVY)], 2)
    first, std = start or target.law(float(ts[0]))
    mean, covariance = np.full(states, first), np.full((states, states), std**2)
    for a, b, c in zip(gain.numpy(), offset.numpy(), (kicks @ kicks.mT).numpy(), strict=True):
        mean, covariance = a @ mean + b, a @ covariance @ a.T + c
    return float(mean[0]), math.sqrt(covariance[0, 0])


def moves(stepper: LinearSampler, process: sd.Process, ts: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of all moves between calls along ``ts``: the times of the calls (N,), and the weights on the state (N,), outputs (N, memory) and noise (N,)."""
    calls = torch.stack([torch.as_tensor(t) for t in stepper.nodes(process, ts[:-1], ts[1:])], 1)  # (steps, stages)
    stages = calls.shape[1]
    times, ends = calls.flatten(), torch.cat([calls[:, 1:], ts[1:, None]], 1).flatten()
    weights = torch.zeros(len(times), 2 + stepper.memory, dtype=torch.float64)
    for first in range(stepper.memory if stages == 1 else stages):  # moves that know equally many outputs are taken together
        last = stages == 1 and first == stepper.memory - 1
        which = torch.arange(first, len(times) if last else first + 1) if stages == 1 else torch.arange(first, len(times), stages)
        which = which[which < len(times)]
        row = stepper.row(process, [times[which - back] for back in range(first + 1)], ends[which])
        for column, weight in enumerate((row.on_x, row.on_noise, *row.on_outputs)):
            weights[which, column] = torch.as_tensor(0.0 if weight is None else weight, dtype=torch.float64)
    return times, weights[:, 0], weights[:, 2:], weights[:, 1]


def linear_law(stepper: LinearSampler, problem: Any, ts: Tensor, mean: float, std: float) -> tuple[float, float]:
    """Mean and standard deviation at the end, from those of (x, the outputs remembered), where the network is linear."""
    times, on_x, on_outputs, on_noise = moves(stepper, problem.process, ts)
    called, size = problem.score.denoise if stepper.output == "x0" else problem.score.epsilon, stepper.memory
    at_zero, at_one = (called(torch.full((len(times), 1), value, dtype=torch.float64), times)[:, 0] for value in (0.0, 1.0))
    slope = at_one - at_zero
    transition, offset = torch.zeros(len(times), size, size, dtype=torch.float64), torch.zeros(len(times), size, dtype=torch.float64)
    transition[:, 0] = on_outputs
    transition[:, 0, 0] = on_x + on_outputs[:, 0] * slope
    offset[:, 0] = on_outputs[:, 0] * at_zero
    if size > 1:
        transition[:, 1, 0], offset[:, 1] = slope, at_zero
        transition[:, torch.arange(2, size), torch.arange(1, size - 1)] = 1.0
    state, covariance = np.zeros(size), np.zeros((size, size))
    state[0], covariance[0, 0] = mean, std**2
    for a, b, c in zip(transition.numpy(), offset.numpy(), on_noise.square().tolist(), strict=True):
        state, covariance = a @ state + b, a @ covariance @ a.T
        covariance[0, 0] += c
    return float(state[0]), math.sqrt(covariance[0, 0])


class _Impulse:
    """Noise that is one in one slot and zero elsewhere."""

    def __init__(self, slot: int | None, dt: Tensor) -> None:
        self.slot, self.dt = slot, dt

    def normal(self, slot: int = 0) -> Tensor:
        return torch.full((len(self.dt), 1), float(slot == self.slot), dtype=torch.float64)

    def increment(self, t0: Tensor, t1: Tensor) -> Tensor:
        return self.dt.sqrt()[:, None] * self.normal()

    def levy(self, t0: Tensor, t1: Tensor) -> tuple[Tensor, Tensor]:
        return self.increment(t0, t1), (self.dt / 12).sqrt()[:, None] * self.normal(LEVY)


def weak_on_a_gaussian(method: str, process: str, steps: Sequence[int] = (8000, 16000, 32000)) -> Measured:
    """Distance of the standard deviation to the target's own at eps, by number of steps."""
    p = PROCESSES[process]
    errors = [abs(gaussian_outcome(method, p, n)[1] - GaussianTarget(p).law(p.eps)[1]) for n in steps]
    return Measured(list(steps), errors, slope(steps, errors))


# -- the law of a sampler on two modes --------------------------------------------------------------------------------------


class Line:
    """Functions of a coordinate that reaches from -edge to edge and has features of the size of ``std``, by their values at n nodes.

    The nodes are Chebyshev's for  arsinh(2 x / std),  and so lie close in the middle, where a score of two modes bends.
    """

    def __init__(self, edge: float, std: float, n: int) -> None:
        self._unit, self._reach = 0.5 * std, math.asinh(2 * edge / std)
        self._points = -torch.cos(math.pi * torch.arange(n, dtype=torch.float64) / (n - 1))
        self.nodes = self._unit * torch.sinh(self._reach * self._points)

    def values(self, x: Tensor) -> Tensor:
        """(M,) -> (M, n) the functions that are one at a node and zero at the others; beyond the edges, what they are there."""
        away = (torch.asinh(x / self._unit) / self._reach).clamp(-1, 1)[:, None] - self._points
        weights = torch.ones_like(self._points)
        weights[1::2], weights[0], weights[-1] = -1.0, 0.5, 0.5 if len(weights) % 2 else -0.5
        terms = weights / torch.where(away.abs() < 1e-14, 1e-14, away)
        return terms / terms.sum(1, keepdim=True)


class Slots:
    """Noise of one step, with Gauss's nodes for each of its moves in place of draws: all of them for each row in turn."""

    def __init__(self, slots: int, rows: int, gauss: int) -> None:
        at, weight = (torch.from_numpy(v) for v in np.polynomial.hermite_e.hermegauss(gauss))
        self._z = torch.cartesian_prod(*[at] * slots).reshape(-1, slots)
        self.weights = torch.cartesian_prod(*[weight / weight.sum()] * slots).reshape(-1, slots).prod(1)
        self._rows = rows

    def normal(self, slot: int = 0) -> Tensor:
        return self._z[:, slot // MOVE].repeat(self._rows)[:, None]

    def increment(self, t0: float, t1: float) -> Tensor:
        return self.normal() * math.sqrt(abs(t1 - t0))


def law_on_two_modes(stepper: sd.Stepper, process: sd.Process, steps: int, n: int, gauss: int = 5) -> float:
    """Root mean square error of E cos(k x), k = 1..4, where the score is that of two modes and the start has the exact law: without Monte-Carlo error.

    The expectation is carried back through the method's own steps,  u_i(x_i, x_i-1, ...) <- E[u_i+1(x_i+1, x_i, ...)],  from the last to the
    first, with as many states as a linear sampler remembers outputs.  A function of them is its values at the products of ``n`` nodes each;
    the noise of a step is ``gauss`` nodes, 5 for what a step adds, and many for a jump as large as the state.
    """
    modes, k = TwoModes(process), torch.arange(1, 5, dtype=torch.float64)
    problem = suited(stepper, process.reverse(modes.score), "")
    ts = make_grid("log_snr", process, *(float(process.log_snr_inverse(level)) for level in (-3.0, 3.0)), steps).ts
    laws = [tuple(float(v) for v in (mean, variance.sqrt())) for mean, variance in (modes.mode(t) for t in ts)]
    lines = [Line(mean + 5.5 * std, std, n) for mean, std in laws]
    stages = len(stepper.nodes(process, ts[0], ts[1])) if isinstance(stepper, LinearSampler) else 1
    memory = stepper.memory if isinstance(stepper, LinearSampler) and stages == 1 else 1
    slots = next(s for s in (1, 2, 3) if _asks_for_no_more(stepper, problem, ts, s, gauss))
    u = torch.cos(lines[-1].nodes[:, None] * k)
    for i in reversed(range(steps)):
        states = torch.cartesian_prod(*[torch.arange(n)] * min(i + 1, memory)).reshape(n ** min(i + 1, memory), -1)
        noise = Slots(slots, len(states), gauss)
        x, *past = (lines[i - j].nodes[column][:, None] for j, column in enumerate(states.repeat_interleave(len(noise.weights), 0).unbind(1)))
        carry = stepper.init(problem, x, ts[i])
        if past:
            called = problem.score.denoise if stepper.output == "x0" else problem.score.epsilon
            carry = History(tuple(called(y, ts[i - j]) for j, y in enumerate(past, 1)), tuple(ts[i - j] for j in range(1, len(past) + 1)))
        end = stepper.step(problem, x, ts[i], ts[i + 1], noise, carry).x[:, 0]
        kept = n ** (u.dim() - 2)  # products of the nodes of those states that the next step remembers
        after = torch.einsum("pqn,npk->pqk", lines[i + 1].values(end).reshape(kept, -1, n), u.reshape(n, kept, -1))
        u = torch.einsum("swk,w->sk", after.reshape(len(states), len(noise.weights), -1), noise.weights).reshape(*[n] * states.shape[1], -1)
    z = torch.linspace(-8, 8, 801, dtype=torch.float64)
    density = torch.exp(-0.5 * z.square()) / torch.exp(-0.5 * z.square()).sum()
    got = sum(0.5 * density @ lines[0].values(side * laws[0][0] + laws[0][1] * z) @ u for side in (-1, 1))
    exact = torch.cos(k * laws[-1][0]) * torch.exp(-0.5 * (k * laws[-1][1]).square())
    return rms(got - exact)


def _asks_for_no_more(stepper: sd.Stepper, problem: Any, ts: Sequence[float], slots: int, gauss: int) -> bool:
    """Whether each step has enough with so many draws."""
    x = torch.zeros(gauss**slots, 1, dtype=torch.float64)
    try:
        for t0, t1 in itertools.pairwise(ts):
            stepper.step(problem, x, t0, t1, Slots(slots, 1, gauss), stepper.init(problem, x, t0))
    except IndexError:
        return False
    return True


def weak_on_two_modes(stepper: sd.Stepper, process: str) -> Measured:
    """The error of the law on two modes, by number of steps; few of them for a long memory, whose states have many dimensions."""
    memory = stepper.memory if isinstance(stepper, LinearSampler) and len(stepper.nodes(PROCESSES[process], 0.5, 0.4)) == 1 else 1
    steps, n, order = {1: ([64, 96, 128, 192], 48, slope), 2: ([24, 32, 48, 64, 96], 32, asymptotic_slope)}.get(memory, ([8, 12, 16, 24], 24, slope))
    errors = [law_on_two_modes(stepper, PROCESSES[process], count, n) for count in steps]
    return Measured(steps, errors, order(steps, errors))
