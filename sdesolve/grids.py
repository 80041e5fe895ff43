"""Time grids: where a fixed-step solver stands, and the only place where it learns its steps from.

A grid of N steps has N + 1 nodes; step i goes from ts[i] to ts[i + 1], so the steps add up to the interval exactly.  A recipe makes a grid
for an interval and a number of steps; those of this file have names, ``grid="karras"``, and options, ``grid=sd.grids.karras(rho=5)``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from ._errors import as_float, choice
from .processes import Process


@dataclass(frozen=True)
class Grid:
    """Strictly monotone nodes, in float64.

    Arguments:
        ts: at least two finite times, all falling or all rising.

    Raises:
        ValueError: fewer than two nodes, or a node that is not finite or does not go on in the direction of the first step;
            the message names its index.
    """

    ts: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.ts) < 2:
            raise ValueError(f"grid has {len(self.ts)} node(s); expected at least 2 (one step), as in grid=[1.0, 0.5, 0.001].")
        for i, t in enumerate(self.ts):
            if not math.isfinite(t):
                raise ValueError(f"grid[{i}] = {t} is not finite.")
            if i and (t == self.ts[i - 1] or (t > self.ts[i - 1]) != (self.ts[1] > self.ts[0])):
                raise ValueError(f"grid[{i}] = {t} does not go on from grid[{i - 1}] = {self.ts[i - 1]}; expected strictly falling or strictly rising times.")

    @classmethod
    def of(cls, ts: Sequence[float] | Tensor) -> Grid:
        """From any sequence of times."""
        return cls(tuple(times_of("grid", ts)))

    def __len__(self) -> int:
        """Number of steps."""
        return len(self.ts) - 1


def times_of(name: str, values: Sequence[float] | Tensor) -> list[float]:
    """Floats out of any sequence of times; a ValueError that names the argument where they are none."""
    try:
        numbers: list[float] = torch.as_tensor(values, dtype=torch.float64).reshape(-1).tolist()
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise ValueError(f"{name}={values!r}; expected times, as in {name}=[0.0, 0.5, 1.0].") from None
    return numbers


Recipe: TypeAlias = Callable[[Process | None, float, float, int], Grid]
"""Nodes from (process, t0, t1, steps); the process is None for a problem without noise levels.  ``grid=`` takes one of your own, too."""


def uniform() -> Recipe:
    """t_i = t0 + i (t1 - t0) / N: equal steps of the time."""
    return lambda process, t0, t1, steps: Grid((t0, *_between(t0, t1, steps), t1))


def power(rho: float = 2.0) -> Recipe:
    """Equal steps of t^(1/rho): shorter steps towards t = 0 for rho > 1; rho = 2 is the quadratic grid of DDIM.  [Song, Meng & Ermon 2021, D.2]

    Arguments:
        rho: exponent > 0; 1 is :func:`uniform`.
    """
    rho = _positive("rho", rho)

    def grid(process: Process | None, t0: float, t1: float, steps: int) -> Grid:
        if min(t0, t1) < 0:
            raise ValueError(f"grid='power' takes roots of the time and the interval is ({t0}, {t1}); expected times >= 0, or grid='uniform'.")
        with _blamed("rho", rho, 2.0):
            return Grid((t0, *(u**rho for u in _between(t0 ** (1 / rho), t1 ** (1 / rho), steps)), t1))

    return grid


def karras(rho: float = 7.0) -> Recipe:
    """Equal steps of (sigma/alpha)^(1/rho).  [Karras et al. 2022, eq. 5]

    Arguments:
        rho: exponent > 0; 7 is the published value, with which the grid is also known as "edm".  Larger is nearer to :func:`log_snr`.
    """
    rho = _positive("rho", rho)
    return _in_ratio("karras", lambda r: r ** (1 / rho), lambda u: u**rho, lambda: _blamed("rho", rho, 7.0))


def log_snr() -> Recipe:
    """Equal steps of the log signal-to-noise ratio.  [Lu et al. 2022, section 3.3]"""
    return _in_ratio("log_snr", math.log, math.exp)


def arctan(data_std: float = 0.5) -> Recipe:
    """Equal steps of arctan(sigma / (alpha data_std)): short where the noise is as wide as the data, and everything is decided.

    On Gaussian data of that width the flow turns x by this angle, dx/dsigma = x sigma / (sigma^2 + data_std^2) with alpha = 1, so that a
    first-order method errs as much in each step.

    Arguments:
        data_std: standard deviation of the data, or of what the noise has to tell apart; > 0.
    """
    std = _positive("data_std", data_std)
    return _in_ratio("arctan", lambda r: math.atan(r / std), lambda u: std * math.tan(u), lambda: _blamed("data_std", std, 0.5))


GRIDS: dict[str, Callable[..., Recipe]] = {
    "uniform": uniform,
    "power": power,
    "karras": karras,
    "edm": karras,
    "log_snr": log_snr,
    "arctan": arctan,
}


def make_grid(grid: str | Recipe, process: Process | None, t0: float, t1: float, steps: int) -> Grid:
    """The grid of a name or a recipe with ``steps`` steps from t0 to t1."""
    recipe = GRIDS[choice("grid", grid, GRIDS)]() if isinstance(grid, str) else grid
    made = recipe(process, t0, t1, steps)
    if not isinstance(made, Grid):
        raise TypeError(f"grid made a {type(made).__name__}; expected a function (process, t0, t1, steps) -> sdesolve.Grid, as sdesolve.grids.karras(rho=5).")
    if len(made) != steps:
        raise ValueError(f"grid made {len(made)} steps; expected {steps}.")
    return made


def _in_ratio(
    name: str, of: Callable[[float], float], inverse: Callable[[float], float], blamed: Callable[[], AbstractContextManager[None]] = nullcontext
) -> Recipe:
    """Equal steps of a rising function of sigma/alpha."""

    def grid(process: Process | None, t0: float, t1: float, steps: int) -> Grid:
        if process is None:
            raise ValueError(
                f"grid={name!r} needs the noise levels of a forward process; this problem has none. Use grid='uniform' or give the times."
            )
        first, last = (noise_ratio(process, t) for t in (t0, t1))
        with blamed():
            return Grid((t0, *(time_at_ratio(process, inverse(u)) for u in _between(of(first), of(last), steps)), t1))

    return grid


def noise_ratio(process: Process, t: float) -> float:
    """sigma/alpha at the time t."""
    return math.exp(-0.5 * float(process.log_snr(t)))


def time_at_ratio(process: Process, ratio: float) -> float:
    """The time at which sigma/alpha has the given value."""
    return float(process.log_snr_inverse(-2 * math.log(ratio)))


def _between(first: float, last: float, steps: int) -> list[float]:
    """The steps - 1 equally spaced numbers between two: the ends of a grid are the interval's own, not their rounded images."""
    return [first + (last - first) * i / steps for i in range(1, steps)]


@contextmanager
def _blamed(name: str, value: float, usual: float) -> Iterator[None]:
    """A ValueError that names the option where its nodes overflow, or fall together."""
    try:
        yield
    except (OverflowError, ValueError) as error:
        raise ValueError(f"{name}={value!r} makes nodes that float64 cannot hold, or not tell apart; expected a number nearer to {name}={usual}.") from error


def _positive(name: str, value: object) -> float:
    number = as_float(value)
    if number is None or not 0 < number < math.inf:
        raise ValueError(f"{name}={value!r}; expected a finite number > 0.")
    return number
