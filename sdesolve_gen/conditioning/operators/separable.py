"""Linear maps of rows and columns:  Y = R_h X R_w^T, channel by channel.

With the decompositions R = U S V^T of the two small matrices, A = (U_h x U_w)(S_h x S_w)(V_h x V_w)^T, so that everything is closed form.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .._numbers import per_row
from ..operator import SVD, Operator
from ._shared import RANK, counted, finite, image_event


class Separable(Operator):
    """Y = R_h X R_w^T for each channel.

    Arguments:
        event: shape (C, H, W) of one image.
        rows: R_h, (h, H), which acts on columns from top to bottom.
        columns: R_w, (w, W), which acts on rows from left to right.

    Raises:
        ValueError: a matrix of another width than the image's.
    """

    def __init__(self, event: Sequence[int], rows: Tensor, columns: Tensor) -> None:
        self.event = channels, height, width = image_event(event)
        self._rows, self._columns = finite("rows", rows), finite("columns", columns)
        if self._rows.shape[1:] != (height,) or self._columns.shape[1:] != (width,):
            raise ValueError(f"rows are {tuple(rows.shape)} and columns {tuple(columns.shape)}; expected (h, {height}) and (w, {width}).")
        self.measured = (channels, len(self._rows), len(self._columns))
        (u_h, s_h, v_h), (u_w, s_w, v_w) = (torch.linalg.svd(matrix, full_matrices=False) for matrix in (self._rows, self._columns))
        self._left, self._right = (u_h, u_w), (v_h, v_w)
        self._values = s_h[:, None] * s_w
        self._kept = self._values > RANK * self._values.max()

    def forward(self, x: Tensor) -> Tensor:
        return _both(self._rows, self._columns, x)

    def adjoint(self, y: Tensor) -> Tensor:
        return _both(self._rows.T, self._columns.T, y)

    def gram_solve(self, y: Tensor, shift: float | Tensor, scale: float | Tensor) -> Tensor:
        u_h, u_w = self._left
        shift, scale = torch.as_tensor(per_row(shift, y)).to(y), per_row(scale, y)
        weight = torch.where(counted(self._values, shift, y), 1 / (shift + scale * self._values.square().to(y)), 0.0)
        return _both(u_h, u_w, weight * _both(u_h.T, u_w.T, y))

    def pinv(self, y: Tensor) -> Tensor:
        weight = torch.where(self._kept, 1 / self._values, 0.0).to(y)
        (u_h, u_w), (v_h, v_w) = self._left, self._right
        return _both(v_h.T, v_w.T, weight * _both(u_h.T, u_w.T, y))

    def svd(self) -> SVD:
        (u_h, u_w), (v_h, v_w) = self._left, self._right
        values = self._values[self._kept].repeat(self.event[0])
        return SVD(
            values.float(),
            lambda x: self._picked(_both(v_h, v_w, x)),
            lambda z: _both(v_h.T, v_w.T, self._spread(z)),
            lambda y: self._picked(_both(u_h.T, u_w.T, y)),
        )

    def _picked(self, coefficients: Tensor) -> Tensor:
        return coefficients[:, :, self._kept.to(coefficients.device)].flatten(1)

    def _spread(self, z: Tensor) -> Tensor:
        grid = z.new_zeros(len(z), self.event[0], *self._kept.shape)
        grid[:, :, self._kept.to(z.device)] = z.reshape(len(z), self.event[0], -1)
        return grid


def _both(rows: Tensor, columns: Tensor, x: Tensor) -> Tensor:
    """rows X columns^T."""
    return rows.to(x) @ x @ columns.to(x).T
