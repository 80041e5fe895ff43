"""Random projections: compressed sensing without a matrix in memory."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ._shared import draws, integer
from .tight import Tight


class RandomProjections(Tight):
    """y = S H D x: signs D, the orthonormal Hartley transform H of the flattened state, and a random choice S of its rows.

    A structurally random matrix: each number of y is a random sum over nearly all of x, the rows are orthonormal, and the cost is that of
    an FFT.  [Do, Gan, Nguyen & Tran 2012, eq. 2]

    Arguments:
        event: shape of one state.
        count: m, the number of projections, 1 <= m <= d; default a quarter of d.
        seed: names the signs and the choice.
    """

    def __init__(self, event: Sequence[int], count: int | None = None, seed: int = 0) -> None:
        self.event = tuple(event)
        d = math.prod(self.event)
        count = integer("count", -(-d // 4) if count is None else count, 1, d)
        numbers = draws(seed)
        self._signs = torch.from_numpy(numbers.choice([-1.0, 1.0], d))
        self._rows = torch.from_numpy(np.sort(numbers.permutation(d)[:count]))
        self.measured = (count,)

    def forward(self, x: Tensor) -> Tensor:
        return _hartley(x.flatten(1) * self._signs.to(x))[:, self._rows.to(x.device)]

    def adjoint(self, y: Tensor) -> Tensor:
        spread = y.new_zeros(len(y), len(self._signs)).index_copy(1, self._rows.to(y.device), y)
        return (_hartley(spread) * self._signs.to(y)).reshape(-1, *self.event)


def _hartley(x: Tensor) -> Tensor:
    """The orthonormal Hartley transform of each row, its own inverse."""
    spectrum = torch.fft.fft(x, norm="ortho")
    return spectrum.real - spectrum.imag
