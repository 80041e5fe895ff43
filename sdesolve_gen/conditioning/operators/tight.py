"""Operators whose rows are orthogonal and of one length:  A A^T = length^2 I.  Everything a reconstruction needs is then one product."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .._numbers import per_row
from ..operator import SVD, Operator


class Tight(Operator):
    """Base of operators with  A A^T = length^2 I: all singular values are ``length``, and A^+ = A^T / length^2.

    Attributes:
        length: Euclidean length of every row of A, > 0; 1 for orthonormal rows.
    """

    length: float = 1.0

    def gram_solve(self, y: Tensor, shift: float | Tensor, scale: float | Tensor) -> Tensor:
        return y / per_row(shift + scale * self.length**2, y)

    def pinv(self, y: Tensor) -> Tensor:
        return self.adjoint(y) / self.length**2

    def svd(self) -> SVD:
        values = torch.full((math.prod(self.measured),), self.length)
        return SVD(values, self._analyse, self._synthesise, lambda y: y.flatten(1))

    def _analyse(self, x: Tensor) -> Tensor:
        return self.forward(x).flatten(1) / self.length

    def _synthesise(self, z: Tensor) -> Tensor:
        return self.adjoint(z.reshape(len(z), *self.measured)) / self.length
