"""Where sampling starts and stops: the noise levels between which something is decided.

While the noise is much wider than the data, p_t is nearly the Gaussian  N(alpha m, alpha^2 s^2 + sigma^2)  of the data's mean m and standard
deviation s, and there is nothing for a network to tell: a draw of the prior is moved to that law at no cost.  Data have directions along
which they vary much more than along others; with a variance for each of those the Gaussian is near p_t while the noise is but a few times as wide
[Wang & Vastola 2024].  What is left when the noise is much narrower than the data, Tweedie's formula takes away in one call.  With few calls, all
of them belong between the two.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from ._arrays import broadcasts
from ._errors import as_float, integer
from .grids import noise_ratio, time_at_ratio
from .processes import Process


class Opening(Protocol):
    """What ``solve`` may be given instead of an interval: where to start, with what, and whether to denoise at the end."""

    @property
    def denoise(self) -> bool: ...

    def interval(self, process: Process, calls: int | None, eps: float | None) -> tuple[float, float]: ...

    def start(self, process: Process, x: Tensor, t: float) -> Tensor: ...


DIRECTIONS = 32  # beyond which data of all kinds that were tried gain nothing
ROWS = 1024  # samples from which directions in more dimensions than that are read


@dataclass(frozen=True, eq=False, repr=False)
class Range:
    """From noise that is ``first`` data standard deviations wide to noise of ``last``:
    ``sd.solve(problem, x_T, "auto", nfe=8, interval=sd.Range.of(data))``.

    The solve starts at the time with  sigma/alpha = first data_std  from the Gaussian of the data's moments under that noise: along each of the
    ``directions``, of variance l, the prior's draw z = x_T / prior_std is scaled by  sqrt(alpha^2 l + sigma^2),  across them by
    sqrt(alpha^2 r + sigma^2)  with the variance r that they leave to each other direction, and alpha m is added.  That is where the flow of the
    Gaussian N(m, C) takes x_T, exactly [Wang & Vastola 2024, arXiv 2412.09726].  The solve stops at sigma/alpha = last data_std, and follows the flow
    from there to no noise, as ``solve`` does by ``denoise="extrapolate"``, unless told otherwise.  For every process, and every method that goes from noise to data.

    What the start leaves out no number of calls mends.  Of h standard deviations along the first direction, the third cumulant of the data moves a draw by about 1/h^3 of the
    noise's width, the chance in moments of n samples by 1/(h sqrt(n)), and as many draws beside a watershed go to another mode; while an error of the steps falls as a power
    of N.  So the more calls, the farther out a solve starts, until it does so at T, where nothing is left out.

    Where the process ends with noise that is narrower than the data (``VESDE(sigma_max=50)`` with data of standard deviation 300) the solve warns:
    the Gaussian is still the law of Gaussian data, and nearer to any other than the prior is, but between modes of the others it has draws where there are none.

    Arguments:
        data_std: s > 0, standard deviation of the data about their mean, all coordinates together; ``x.std()`` as it is.
        data_mean: m, a number or a tensor that broadcasts to the event; where coordinates share an offset, as images do, it matters.
        first: where to start; the default for N network calls is 1 + N^2/30 standard deviations along the first direction (1 + N^(3/2)/10 for N < 9), and without directions
            4 N data_std; where steps are chosen, 100 of either.  No wider than the process's noise.
        last: where to stop, less than ``first``; default 0.7/N, and 0.01 where steps are chosen.  Finer detail is left to the last call.
        directions: (k, *event), orthogonal, each as long as the standard deviation of the data along it; ``Range.of`` reads them from data.

    Raises:
        ValueError: a number out of range, directions that are not orthogonal or have more variance than ``data_std`` says; at the solve, a process
            that has no such noise.
    """

    data_std: float
    data_mean: float | Tensor = 0.0
    first: float | None = None
    last: float | None = None
    directions: Tensor | None = None
    denoise: ClassVar[bool] = True

    @classmethod
    def of(cls, x: Tensor, directions: int = DIRECTIONS, *, first: float | None = None, last: float | None = None) -> Range:
        """The range of data, or of samples that a model drew: their mean, their standard deviation and their principal directions.

        From n samples the start errs by about 1/(first sqrt(n)) standard deviations: thousands are worth having.  Directions are at most a quarter as many.

        Arguments:
            x: (n, *event) floats, n >= 2, scaled as the model's data.
            directions: how many at most; 0 for none.
            first, last: as above.

        Raises:
            TypeError, ValueError: samples that are none, or that are all the same.
        """
        if not isinstance(x, Tensor) or not x.is_floating_point():
            got = x.dtype if isinstance(x, Tensor) else type(x).__name__
            raise TypeError(f"Range.of: x is a {got}; expected samples as a tensor of floats, in the model's own range, as in images / 127.5 - 1.")
        if x.dim() < 2 or len(x) < 2 or not bool(torch.isfinite(x).all()):
            raise ValueError(f"Range.of: x has shape {tuple(x.shape)}; expected (n, *event), two finite samples or more.")
        most = integer("directions", directions, 0, DIRECTIONS)
        mean = x.double().mean(0)
        away = (x.double() - mean).flatten(1)
        std = float(away.square().mean().sqrt())
        found = _principal(away, min(most, len(x) // 4)).reshape(-1, *x.shape[1:]) if most else None
        return cls(std, mean.to(x.dtype), first, last, None if found is None or not len(found) else found.to(x.dtype))

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
        if self.directions is not None:
            _check_directions(self.directions, self.data_std)

    def __repr__(self) -> str:
        mean = f"<{'x'.join(map(str, self.data_mean.shape))} numbers>" if isinstance(self.data_mean, Tensor) and self.data_mean.dim() else float(self.data_mean)
        directions = "" if self.directions is None else f", directions=<{len(self.directions)} of them>"
        return f"Range(data_std={self.data_std:g}, data_mean={mean}, first={self.first}, last={self.last}{directions})"

    def interval(self, process: Process, calls: int | None = None, eps: float | None = None) -> tuple[float, float]:
        """(first, last) in times, no wider than (T, eps), for a number of network calls; None where steps are chosen.  ``eps``: the process's own."""
        eps = process.eps if eps is None else eps
        first = self.first or self._default_first(calls)  # those given are > 0
        last = self.last or (0.7 / calls if calls else 0.01)
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

    def _default_first(self, calls: int | None) -> float:
        """In units of data_std."""
        if self.directions is None:
            return 4.0 * calls if calls else 100.0
        return self.widest / self.data_std * (1 + max(calls**1.5 / 10, calls**2 / 30) if calls else 100.0)

    @property
    def widest(self) -> float:
        """Standard deviation of the data along the first direction; of all coordinates together where directions aren't known."""
        return self.data_std if self.directions is None else float(self.directions.double().flatten(1).norm(dim=1).max())

    def start(self, process: Process, x: Tensor, t: float) -> Tensor:
        """A draw x of the prior, (B, *event), moved to the Gaussian that stands for p_t."""
        return gaussian_start(process, x, t, self.data_mean, self.data_std, self.directions)


def _principal(away: Tensor, most: int) -> Tensor:
    """(k, d): the directions of largest variance of rows about their mean, (n, d), each as long as its standard deviation."""
    n, d = away.shape
    if d <= ROWS:
        variances, vectors = torch.linalg.eigh(away.T @ away / n)
        found = vectors.T * variances.clamp(min=0).sqrt()[:, None]
    else:
        some = away if n <= ROWS else away[torch.linspace(0, n - 1, ROWS, device=away.device).round().long()]
        _, weights = torch.linalg.eigh(some @ some.T)
        wider = (away.square().mean() / some.square().mean()).sqrt()  # than those rows are all of them
        found = wider * (weights.T @ some) / len(some) ** 0.5  # each is orthogonal to the others, and as long as it should be
    found = found.flip(0)[:most]
    return found[found.norm(dim=1) > 1e-3 * found[:1].norm()]


def _check_directions(given: Any, std: float) -> None:
    """That they are orthogonal, and that their variances are part of the whole."""
    if not isinstance(given, Tensor) or not given.is_floating_point() or given.dim() < 2 or not len(given):
        shown = tuple(given.shape) if isinstance(given, Tensor) else type(given).__name__
        raise ValueError(f"Range: directions is {shown}; expected (k, *event) floats, k >= 1, as Range.of(x) finds them.")
    rows = given.detach().double().flatten(1)
    gram, d = rows @ rows.T, rows.shape[1]
    lengths = gram.diagonal().sqrt()
    if not bool(torch.isfinite(gram).all()) or not bool((lengths > 0).all()):
        raise ValueError("Range: directions are not all finite and longer than 0; expected each as long as the standard deviation of the data along it.")
    aslant = (gram / torch.outer(lengths, lengths) - torch.eye(len(rows), dtype=gram.dtype, device=gram.device)).abs().max()
    if aslant > 1e-2:
        raise ValueError(f"Range: directions are not orthogonal, two of them have a cosine of {float(aslant):.2g}; expected principal directions, as Range.of(x) finds them.")
    if float(gram.trace()) > 1.01 * d * std**2:
        raise ValueError(
            f"Range: directions have a variance of {float(gram.trace()):.4g} in all, and data_std={std:g} in {d} coordinates one of {d * std**2:.4g}; "
            "expected directions whose lengths are standard deviations, and data_std of all coordinates together."
        )


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


def gaussian_start(process: Process, x: Tensor, t: float, mean: float | Tensor, std: float, directions: Tensor | None = None) -> Tensor:
    """Where the flow of N(m, C) takes a draw x of the prior at t, which is a draw of N(alpha m, alpha^2 C + sigma^2); C as :class:`Range` says."""
    if isinstance(mean, Tensor) and not broadcasts(mean.shape, x.shape[1:]):
        raise ValueError(f"data_mean has shape {tuple(mean.shape)} for samples of shape {tuple(x.shape[1:])}; expected one that broadcasts to it.")
    alpha, sigma = float(process.alpha(t)), float(process.sigma(t))
    offset, z = alpha * (mean.to(x) if isinstance(mean, Tensor) else mean), x / process.prior_std
    if directions is None:
        return offset + z * math.hypot(alpha * std, sigma)
    if directions.shape[1:] != x.shape[1:]:
        raise ValueError(f"directions have shape {tuple(directions.shape)} for samples of shape {tuple(x.shape[1:])}; expected (k, *that).")
    rows = directions.to(x).flatten(1)
    variances = directions.double().flatten(1).square().sum(1)
    d, others = rows.shape[1], rows.shape[1] - len(rows)
    left = max(0.0, d * std**2 - float(variances.sum())) / others if others else 0.0
    across = math.sqrt(alpha**2 * left + sigma**2)
    along = (alpha**2 * variances + sigma**2).sqrt() - across  # what is added to the scale of a direction
    scaled = z.flatten(1) @ rows.T * (along / variances).to(x) @ rows
    return offset + z * across + scaled.reshape(x.shape)
