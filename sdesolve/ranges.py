"""Where sampling starts and stops: the noise levels between which something is decided.

While the noise is much wider than the data, p_t is nearly the Gaussian  N(alpha m, alpha^2 s^2 + sigma^2)  of the data's mean m and standard
deviation s, and there is nothing for a network to tell: a draw of the prior is moved to that law at no cost.  What is left when the noise is
much narrower than the data, Tweedie's formula takes away in one call.  With few calls, all of them belong between the two.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from ._arrays import broadcasts
from ._errors import as_float
from .grids import noise_ratio, time_at_ratio
from .processes import Process


class Opening(Protocol):
    """What ``solve`` may be given instead of an interval: where to start, with what, and whether to denoise at the end."""

    @property
    def denoise(self) -> bool: ...

    def interval(self, process: Process, calls: int | None, eps: float | None) -> tuple[float, float]: ...

    def start(self, process: Process, x: Tensor, t: float) -> Tensor: ...


@dataclass(frozen=True, eq=False)
class Range:
    """From noise that is ``first`` data standard deviations wide to noise of ``last``:
    ``sd.solve(problem, x_T, "unipc", nfe=8, interval=sd.Range(data_std=0.5))``.

    The solve starts at the time with  sigma/alpha = first data_std  from  alpha m + sqrt(alpha^2 s^2 + sigma^2) x_T / prior_std,  stops at
    sigma/alpha = last data_std, and denoises there unless ``denoise=False``.  For every process, and every method that goes from noise to data.

    Arguments:
        data_std: s > 0, standard deviation of the data about their mean, all coordinates together; ``x.std()`` as it is.
        data_mean: m, a number or a tensor that broadcasts to the event; where coordinates share an offset, as images do, it matters.
        first: where to start; default 4 N for N network calls, and 100 where steps are chosen.  What it leaves out errs by about
            1/first^2.  Less is better for data without strong directions: N for the mixtures of ``sdesolve.exam`` in the plane.
        last: where to stop, less than ``first``; default 1/(2 N), and 0.01 where steps are chosen.  Finer detail is left to the denoiser.

    Raises:
        ValueError: a number out of range; at the solve, a process that has no such noise.
    """

    data_std: float
    data_mean: float | Tensor = 0.0
    first: float | None = None
    last: float | None = None
    denoise: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for name in ("data_std", "first", "last"):
            given = getattr(self, name)
            value = as_float(given.item() if isinstance(given, Tensor) and given.dim() == 0 else given)
            if (name == "data_std" or given is not None) and (value is None or not 0 < value < math.inf):
                raise ValueError(f"Range: {name}={given!r}; expected a finite number > 0, as in sd.Range(data_std=0.5).")
            object.__setattr__(self, name, value)
        if self.first is not None and self.last is not None and self.last >= self.first:
            raise ValueError(f"Range: last={self.last} and first={self.first}; expected last < first, from noise to data.")
        object.__setattr__(self, "data_mean", _mean(self.data_mean))

    def interval(self, process: Process, calls: int | None = None, eps: float | None = None) -> tuple[float, float]:
        """(first, last) in times, no wider than (T, eps), for a number of network calls; None where steps are chosen.  ``eps``: the process's own."""
        eps = process.eps if eps is None else eps
        first = self.first or (4.0 * calls if calls else 100.0)  # those given are > 0
        last = self.last or (0.5 / calls if calls else 0.01)
        if last >= first:
            raise ValueError(f"Range: first={first:g} and last={last:g}, of which one is the default here; expected last < first, from noise to data: give both.")
        high, low = first * self.data_std, last * self.data_std
        t0 = process.T if high >= noise_ratio(process, process.T) else time_at_ratio(process, high)
        t1 = eps if low <= noise_ratio(process, eps) else time_at_ratio(process, low)
        if t0 <= t1:
            raise ValueError(
                f"{self} goes from sigma/alpha = {high:g} to {low:g}, and {process} has {noise_ratio(process, process.T):g} to "
                f"{noise_ratio(process, eps):g} at t = {eps:g}; expected a process whose noise is wider than the data at one end and narrower at the other."
            )
        return t0, t1

    def start(self, process: Process, x: Tensor, t: float) -> Tensor:
        """A draw x of the prior, (B, *event), moved to the Gaussian that stands for p_t."""
        return gaussian_start(process, x, t, self.data_mean, self.data_std)


def _mean(given: Any) -> float | Tensor:
    """A finite number, or a tensor of them."""
    number = as_float(given)
    try:
        mean = None if isinstance(given, bool) else given if isinstance(given, Tensor) and given.is_floating_point() else torch.as_tensor(given, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        mean = None
    if mean is None:
        raise ValueError(f"Range: data_mean is a {type(given).__name__}; expected a number or a tensor of them, as in sd.Range(data_std=0.5, data_mean=0.1).")
    if not bool(torch.isfinite(mean).all()):
        raise ValueError("Range: data_mean is not finite; expected a number or a tensor of them.")
    return mean if number is None else number


def gaussian_start(process: Process, x: Tensor, t: float, mean: float | Tensor, std: float) -> Tensor:
    """alpha m + sqrt(alpha^2 s^2 + sigma^2) x / prior_std, which is N(alpha m, alpha^2 s^2 + sigma^2) where x is a draw of the prior."""
    if isinstance(mean, Tensor) and not broadcasts(mean.shape, x.shape[1:]):
        raise ValueError(f"data_mean has shape {tuple(mean.shape)} for samples of shape {tuple(x.shape[1:])}; expected one that broadcasts to it.")
    alpha = float(process.alpha(t))
    offset = alpha * (mean.to(x) if isinstance(mean, Tensor) else mean)
    return offset + x * (math.hypot(alpha * std, float(process.sigma(t))) / process.prior_std)
