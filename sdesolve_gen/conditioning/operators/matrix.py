"""Any matrix that fits into memory."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from .._numbers import per_row
from ..operator import SVD, Operator
from ._shared import RANK, counted, finite


class Matrix(Operator):
    """y = A x for the flattened state; decomposed once, in float64.  Singular values below 1e-4 of the largest count as zero in A^+ and ``svd``, and where there is no noise.

    Arguments:
        event: shape of one state, of d numbers.
        matrix: A, (m, d).
        measured: shape of one measurement, of m numbers; default (m,).

    Raises:
        ValueError: a matrix of another shape, or not finite, or all zero.
    """

    def __init__(self, event: Sequence[int], matrix: Tensor | np.ndarray, measured: Sequence[int] | None = None) -> None:
        self.event = tuple(event)
        self._matrix = finite("matrix", matrix)
        d, rows = math.prod(self.event), len(self._matrix)
        self.measured = (rows,) if measured is None else tuple(measured)
        if self._matrix.shape[1:] != (d,) or math.prod(self.measured) != rows or not bool((self._matrix != 0).any()):
            raise ValueError(f"matrix has shape {tuple(self._matrix.shape)}; expected ({math.prod(self.measured)}, {d}) for states {self.event}, and not all zero.")
        self._all_left, self._all_values, right = torch.linalg.svd(self._matrix, full_matrices=False)
        kept = self._all_values > RANK * self._all_values[0]
        self._left, self._values, self._right = self._all_left[:, kept], self._all_values[kept], right[kept]

    def forward(self, x: Tensor) -> Tensor:
        return (x.flatten(1) @ self._matrix.T.to(x)).reshape(-1, *self.measured)

    def adjoint(self, y: Tensor) -> Tensor:
        return (y.flatten(1) @ self._matrix.to(y)).reshape(-1, *self.event)

    def gram_solve(self, y: Tensor, shift: float | Tensor, scale: float | Tensor) -> Tensor:
        flat, left = y.flatten(1), self._all_left.to(y)
        shift, scale = torch.as_tensor(per_row(shift, flat)).to(y), per_row(scale, flat)
        weight = torch.where(counted(self._all_values, shift, y), 1 / (shift + scale * self._all_values.square().to(y)), 0.0)
        return (weight * (flat @ left) @ left.T).reshape(y.shape)

    def pinv(self, y: Tensor) -> Tensor:
        return ((y.flatten(1) @ self._left.to(y)) / self._values.to(y) @ self._right.to(y)).reshape(-1, *self.event)

    def svd(self) -> SVD:
        return SVD(
            self._values.float(),
            lambda x: x.flatten(1) @ self._right.T.to(x),
            lambda z: (z @ self._right.to(z)).reshape(-1, *self.event),
            lambda y: y.flatten(1) @ self._left.to(y),
        )
