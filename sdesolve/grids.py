"""Time grids: where a fixed-step solver stands, and the only place where it learns its steps from.

A grid of N steps has N + 1 nodes; step i goes from ts[i] to ts[i + 1], so the steps add up to the interval exactly.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ._errors import choice
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
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(f"{name}={values!r}; expected times, as in {name}=[0.0, 0.5, 1.0].") from None
    return numbers


def uniform(process: Process | None, t0: float, t1: float, steps: int) -> Grid:
    """t_i = t0 + i (t1 - t0) / steps."""
    return _pinned([t0 + (t1 - t0) * i / steps for i in range(steps + 1)], t0, t1)


def karras(process: Process | None, t0: float, t1: float, steps: int, rho: float = 7.0) -> Grid:
    """Equal steps in (sigma/alpha)^(1/rho).  [Karras et al. 2022, eq. 5]"""
    p = _needs_process("karras", process)
    ends = [math.exp(-0.5 * float(p.log_snr(t)) / rho) for t in (t0, t1)]
    levels = [ends[0] + (ends[1] - ends[0]) * i / steps for i in range(steps + 1)]
    return _pinned([float(p.log_snr_inverse(-2 * rho * math.log(level))) for level in levels], t0, t1)


def log_snr(process: Process | None, t0: float, t1: float, steps: int) -> Grid:
    """Equal steps in the log signal-to-noise ratio.  [Lu et al. 2022, section 3.3]"""
    p = _needs_process("log_snr", process)
    first, last = (float(p.log_snr(t)) for t in (t0, t1))
    return _pinned([float(p.log_snr_inverse(first + (last - first) * i / steps)) for i in range(steps + 1)], t0, t1)


GRIDS: dict[str, Callable[[Process | None, float, float, int], Grid]] = {"uniform": uniform, "karras": karras, "log_snr": log_snr}


def make_grid(name: str, process: Process | None, t0: float, t1: float, steps: int) -> Grid:
    """The named grid with ``steps`` steps from t0 to t1."""
    return GRIDS[choice("grid", name, GRIDS)](process, t0, t1, steps)


def _pinned(ts: list[float], t0: float, t1: float) -> Grid:
    """The ends are the interval's own, not their rounded images."""
    return Grid((t0, *ts[1:-1], t1))


def _needs_process(name: str, process: Process | None) -> Process:
    if process is None:
        raise ValueError(f'grid="{name}" needs the noise levels of a forward process; this problem has none. Use grid="uniform" or give the times.')
    return process
