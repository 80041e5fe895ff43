"""What is measured: a linear map A from states to measurements, with what every reconstruction needs of it.

Everything a method asks for beyond A and A^T goes through one primitive,

    gram_solve(y, shift, scale) = (shift I + scale A A^T)^-1 y,

the posterior weight of a Gaussian with covariance ``scale`` I seen through noise of variance ``shift``.  Conjugate gradients do it
for any operator; one with orthonormal rows or a singular value decomposition overrides it in closed form.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class SVD(NamedTuple):
    """A = U diag(values) V^T with orthonormal columns in U, (measured, k), and V, (event, k); values > 0 in any order."""

    values: Tensor
    """(k,) singular values."""
    analyse: Callable[[Tensor], Tensor]
    """V^T x, (B, *event) -> (B, k)."""
    synthesise: Callable[[Tensor], Tensor]
    """V z, (B, k) -> (B, *event)."""
    observe: Callable[[Tensor], Tensor]
    """U^T y, (B, *measured) -> (B, k)."""


class Operator:
    """Base of every linear operator: (B, *event) -> (B, *measured), rows apart.

    Attributes:
        event: shape of one state.
        measured: shape of one measurement.
        linear: False for a measurement that is no matrix: it has ``forward`` alone, written in torch, and "dps" alone can use it.
    """

    event: tuple[int, ...]
    measured: tuple[int, ...]
    linear: bool = True

    def forward(self, x: Tensor) -> Tensor:
        """A x, (B, *measured)."""
        raise NotImplementedError(f"{type(self).__name__} has no forward; expected A x, (B, *measured), of x, (B, *event).")

    def adjoint(self, y: Tensor) -> Tensor:
        """A^T y, (B, *event)."""
        name = type(self).__name__
        raise NotImplementedError(f"{name} has no adjoint; expected one, or linear = False where there is none: as_operator({name}_forward, event) finds it by differentiation.")

    def gram_solve(self, y: Tensor, shift: float | Tensor, scale: float | Tensor) -> Tensor:
        """(shift I + scale A A^T)^-1 y for y, (B, *measured), and shift >= 0, scale > 0, floats or (B,).  By conjugate gradients."""
        return conjugate_gradients(lambda v: _times(shift, v) + _times(scale, self.forward(self.adjoint(v))), y)

    def pinv(self, y: Tensor) -> Tensor:
        """A^+ y, the least-norm solution of A x = y, (B, *event)."""
        return self.adjoint(self.gram_solve(y, 0.0, 1.0))

    def svd(self) -> SVD | None:
        """The singular value decomposition, where it is cheap; None where it is not."""
        return None


def conjugate_gradients(matrix: Callable[[Tensor], Tensor], b: Tensor, rtol: float = 1e-6, most: int = 200) -> Tensor:
    """x with  matrix(x) = b  for a symmetric positive semidefinite matrix, each row of b to a relative residual ``rtol`` by itself.  [Hestenes & Stiefel 1952]

    A row that is done, or whose residual lies in the null space, stands still while the others go on.
    """
    x = torch.zeros_like(b)
    residual, direction = b, b
    rho = _dot(b, b)
    goal = rtol**2 * rho
    for _ in range(most):
        image = matrix(direction)
        curvature = _dot(direction, image)
        active = (rho > goal) & (curvature > 0)
        if not active.any():
            break
        step = torch.where(active, rho / torch.where(active, curvature, 1.0), 0.0)
        x, residual = x + _times(step, direction), residual - _times(step, image)
        before, rho = rho, torch.where(active, _dot(residual, residual), rho)
        direction = torch.where(_column(active, b), residual + _times(rho / before.clamp_min(torch.finfo(b.dtype).tiny), direction), direction)
    return x


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Row by row, (B,)."""
    return (a * b).reshape(len(a), -1).sum(1)


def _column(rows: Tensor, like: Tensor) -> Tensor:
    return rows.reshape(-1, *(1,) * (like.dim() - 1))


def _times(coefficient: float | Tensor, x: Tensor) -> Tensor:
    return _column(coefficient.to(x), x) * x if isinstance(coefficient, Tensor) and coefficient.dim() else coefficient * x
