"""A Brownian path with its time integral: query it anywhere, and it is the same path.

The path lives on an interval cut into 2^40 ticks by a binary tree.  Each node of the tree holds, for its own interval of
length l, the increment W and the space-time Levy area

    H = (1/l) int (W_u - W_s) du - W/2  ~  N(0, l/12),  independent of W,

and its halves are drawn from the exact conditional law of both (:func:`bridge`), with normals addressed by (seed, sample id,
node).  So nothing is stored, coarse increments are sums of fine ones, and the order of the queries does not matter.
[Jelincic, Foster & Kidger 2024, arXiv 2405.06464]
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ._arrays import Number, bcast, xp
from .noise import TREE, SeededNormals, check_seed, sample_ids_of

_LEVELS = 40
_TICKS = 1 << _LEVELS
_AT_ONCE = 1 << 16  # normals drawn in one go


class Halves(NamedTuple):
    """The increments and areas of the two parts of an interval."""

    w1: Tensor
    h1: Tensor
    w2: Tensor
    h2: Tensor


def bridge(w: Tensor, h: Tensor, a: Number, b: Number, z1: Tensor, z2: Tensor) -> Halves:
    """(W, H) of the parts of lengths a, b > 0 of an interval with (w, h), given standard normals.  [Foster & Habermann 2023, theorem 5.4]

    a, b are floats or (B,); the tensors are (B, *event).
    """
    length = a + b
    left, right = a / length, b / length
    sqrt = xp(length).sqrt
    spread = sqrt(left**3 + right**3)
    scale = sqrt(length) * sqrt(left * right)

    def times(coefficient: Number, x: Tensor) -> Tensor:
        return bcast(coefficient, x) * x

    w1 = times(left, w) + times(6 * left * right, h) + times(spread * scale, z1)
    h1 = times(left**2, h) - times(left**2 * scale / (2 * spread), z1) + times(right * scale / (math.sqrt(12) * spread), z2)
    h2 = times(right**2, h) - times(right**2 * scale / (2 * spread), z1) - times(left * scale / (math.sqrt(12) * spread), z2)
    return Halves(w1, h1, w - w1, h2)


class Drawn(NamedTuple):
    """The noise of one step, already drawn."""

    w: Tensor
    h: Tensor

    def increment(self, t0: Number, t1: Number) -> Tensor:
        """W over the step."""
        return self.w

    def levy(self, t0: Number, t1: Number) -> tuple[Tensor, Tensor]:
        """(W, H) over the step."""
        return self.w, self.h


class BrownianPath:
    """A Brownian motion per sample on an interval, the same for whoever asks.

    ``solve(..., noise="brownian")`` makes one of its own; make one to know the path that drives a solution:

        path = sd.BrownianPath((1000, 2), (0.0, 1.0), seed=0)
        sol = sd.solve(sde, x, "milstein", steps=64, noise=path)
        w = path(1.0)          # W(1), (1000, 2)

    Times are rounded to the 2^-40th part of the interval.  A query costs up to 40 draws for each sample (cheap for networks, dear
    for millions of cheap steps), one for each halving of the interval that the time needs: equal steps whose number is a power
    of two are cheapest.

    Arguments:
        shape: (B, *event) of the motion; for a solve, B samples and the event of the problem's noise.
        interval: (first, last), either way; the path is anchored at its lower end, W = 0.
        seed: 0 <= seed < 2**64.
        sample_ids: (B,) integers >= 0 that name the rows; default 0..B-1.
        dtype, device: of what is returned; computed in float64 on the host.

    Raises:
        ValueError: a shape without rows or elements, an interval that is empty or not finite, a seed or ids that name nothing.
    """

    def __init__(
        self,
        shape: Sequence[int],
        interval: tuple[float, float],
        *,
        seed: int,
        sample_ids: Tensor | Sequence[int] | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        if not shape or min(shape) < 1:
            raise ValueError(f"shape={tuple(shape)}; expected (B, *event) with at least one sample and one element, as in (1000, 2).")
        self.shape = tuple(shape)
        self.interval = (float(min(interval)), float(max(interval)))
        self._length = self.interval[1] - self.interval[0]
        if not 0 < self._length < math.inf:
            raise ValueError(f"interval={interval!r}; expected two finite and different times, as in interval=(0.0, 1.0).")
        self._dtype, self._device = dtype, torch.device(device)
        ids = sample_ids_of(sample_ids, shape[0])
        self._source = SeededNormals(check_seed(seed), ids, (2, *shape[1:]), dtype=torch.float64, device="cpu", stream=TREE)
        self._known: dict[Number, tuple[Tensor, Tensor]] = {}  # the last two times asked for: a walk asks for each node twice

    def __call__(self, t: Number) -> Tensor:
        """W(t), (B, *event), at a time, or at a time for each sample, (B,)."""
        return self._out(self._at(t)[0])

    def increment(self, t0: Number, t1: Number) -> Tensor:
        """W(t1) - W(t0)."""
        return self._out(self._at(t1)[0] - self._at(t0)[0])

    def levy(self, t0: Number, t1: Number) -> tuple[Tensor, Tensor]:
        """The increment W and the space-time Levy area H of the step from t0 to t1, which may run either way."""
        (w0, k0), (w1, k1) = self._at(t0), self._at(t1)
        w = w1 - w0
        dt = t1 - t0
        mean = (k1 - k0) / bcast(dt.cpu() if isinstance(dt, Tensor) else dt, w) - w0  # of W_u - W_t0 over the step
        return self._out(w), self._out(mean - 0.5 * w)

    def to(self, like: Tensor) -> BrownianPath:
        """The same path in the dtype and on the device of a tensor."""
        moved = copy.copy(self)
        moved._dtype, moved._device = like.dtype, like.device
        return moved

    def keep(self, which: Tensor) -> BrownianPath:
        """The same paths, for the rows where the mask ``which`` holds."""
        kept = copy.copy(self)
        kept._source = self._source.keep(which)
        kept.shape = (int(which.sum()), *self.shape[1:])
        kept._known = {}
        return kept

    def _out(self, value: Tensor) -> Tensor:
        return value.to(device=self._device, dtype=self._dtype)

    def _at(self, t: Number) -> tuple[Tensor, Tensor]:
        """W and its integral from the lower end, at t."""
        if isinstance(t, Tensor) and t.dim():
            return self._descend(self._ticks(t.detach().to("cpu", torch.float64)))
        t = float(t)
        if t not in self._known:
            self._known = {**dict(list(self._known.items())[-1:]), t: self._descend(self._ticks(torch.tensor([t], dtype=torch.float64)))}
        return self._known[t]

    def _ticks(self, t: Tensor) -> np.ndarray:
        ticks = ((t - self.interval[0]) * (_TICKS / self._length)).round().numpy()
        if not ((ticks >= 0) & (ticks <= _TICKS)).all():
            raise ValueError(f"t={t.tolist()[:3]} leaves the interval {self.interval} of the path; expected times within it.")
        return ticks.astype(np.int64)

    def _descend(self, ticks: np.ndarray) -> tuple[Tensor, Tensor]:
        """W and its integral at ticks (B,) or (1,), from the root down to the last halving that matters."""
        length = self._length
        z = self._normals(np.zeros(1, dtype=np.int64))
        w, h = math.sqrt(length) * z[:, 0], math.sqrt(length / 12) * z[:, 1]
        at_end = torch.from_numpy(ticks == _TICKS).reshape(-1, *(1,) * (w.dim() - 1))
        left, integral = torch.where(at_end, w, 0.0), torch.where(at_end, length * (0.5 * w + h), 0.0)  # at the left end of the present interval
        deepest = _LEVELS - _trailing_zeros(int(np.bitwise_or.reduce(ticks % _TICKS)))
        for level, z in zip(range(deepest), self._draws(ticks, deepest), strict=True):
            length = 0.5 * length
            halves = bridge(w, h, length, length, z[:, 0], z[:, 1])
            right = torch.from_numpy(ticks >> (_LEVELS - level - 1) & 1 == 1).reshape(at_end.shape)
            integral = torch.where(right, integral + length * (left + 0.5 * halves.w1 + halves.h1), integral)
            left = torch.where(right, left + halves.w1, left)
            w, h = torch.where(right, halves.w2, halves.w1), torch.where(right, halves.h2, halves.h1)
        return left, integral

    def _draws(self, ticks: np.ndarray, deepest: int) -> Iterator[Tensor]:
        """The normals of each level's node; small draws are made several levels at a time."""
        levels = np.arange(deepest)[:, None]
        nodes = (1 << levels) + (ticks % _TICKS >> (_LEVELS - levels))
        together = max(1, _AT_ONCE // math.prod((2, *self.shape)))
        for first in range(0, deepest, together):
            yield from self._normals(nodes[first : first + together]).unbind(0)

    def _normals(self, nodes: np.ndarray) -> Tensor:
        """(..., B, 2, *event) at nodes (..., B) or (..., 1)."""
        if nodes.shape[-1] == self.shape[0] > 1:
            return self._source.normal_at(nodes)
        each = [self._source.normal(int(node)) for node in nodes.ravel()]
        return torch.stack(each).reshape(*nodes.shape[:-1], *each[0].shape)


class PathStep:
    """The noise of one step of a grid, taken from a path; what no Brownian motion drives comes from ``source``."""

    def __init__(self, path: BrownianPath, source: SeededNormals, node: int, t0: float, t1: float) -> None:
        self._path, self._source, self._node, self._dt = path, source, node, abs(t1 - t0)
        self._ends = t0, t1

    def normal(self, slot: int = 0) -> Tensor:
        """Standard normals; slot 0 is the increment, scaled."""
        return self.increment(*self._ends) / math.sqrt(self._dt) if slot == 0 else self._source.normal(self._node, slot)

    def increment(self, t0: Number, t1: Number) -> Tensor:
        """W over the step."""
        return self._path.increment(t0, t1)

    def levy(self, t0: Number, t1: Number) -> tuple[Tensor, Tensor]:
        """(W, H) over the step."""
        return self._path.levy(t0, t1)

    def bridge(self, t0: float, t1: float, times: Sequence[float]) -> list[Tensor]:
        """W(t) - theta W(t1), theta = (t - t0)/(t1 - t0), at ``times``."""
        whole = self._path.increment(t0, t1)
        return [self._path.increment(t0, t) - (t - t0) / (t1 - t0) * whole for t in times]


def _trailing_zeros(value: int) -> int:
    """Zeros at the end of the binary digits; all of them for 0."""
    return (value & -value).bit_length() - 1 if value else _LEVELS
