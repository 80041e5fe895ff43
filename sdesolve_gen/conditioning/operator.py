"""What is measured: a linear map A from states to measurements, with what every reconstruction needs of it.

Everything a method asks for beyond A and A^T goes through one primitive,

    A^T gram_solve(y, shift, scale) = A^T (shift I + scale A A^T)^-1 y,

what a Gaussian with covariance ``scale`` I, seen through noise of variance ``shift``, makes of y.  Conjugate gradients do it
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
        differentiated: True where ``adjoint`` is found by differentiating ``forward``.
    """

    event: tuple[int, ...]
    measured: tuple[int, ...]
    linear: bool = True
    differentiated: bool = False

    def forward(self, x: Tensor) -> Tensor:
        """A x, (B, *measured)."""
        raise NotImplementedError(f"{type(self).__name__} has no forward; expected A x, (B, *measured), of x, (B, *event).")

    def adjoint(self, y: Tensor) -> Tensor:
        """A^T y, (B, *event)."""
        raise NotImplementedError(
            f"{type(self).__name__} has no adjoint; expected one, or linear = False where there is none: as_operator(operator.forward, operator.event) finds it by differentiation."
        )

    def gram_solve(self, y: Tensor, shift: float | Tensor, scale: float | Tensor) -> Tensor:
        """z with  A^T z = A^T (shift I + scale A A^T)^-1 y  for y, (B, *measured), and shift >= 0, scale > 0, floats or (B,); without shift, of least squares and least norm.

        What of y lies outside the range of A, A^T sends to zero, and z is free to have any of it: divided by a small shift it would bury the rest in roundings.
        By :func:`least_squares` unless a class does better.
        """
        return least_squares(self, y, shift, scale)

    def pinv(self, y: Tensor) -> Tensor:
        """A^+ y, of all x with the least |y - A x| the shortest, (B, *event).  What small singular values say of a noisy y is noise made large."""
        return self.adjoint(self.gram_solve(y, 0.0, 1.0))

    def svd(self) -> SVD | None:
        """The singular value decomposition, where it is cheap; None where it is not."""
        return None


def least_squares(operator: Operator, y: Tensor, shift: float | Tensor = 0.0, scale: float | Tensor = 1.0, most: int = 500) -> Tensor:
    """z with  A^T z = argmin_w  |y - scale A w|^2 + shift scale |w|^2,  by conjugate gradients on w's normal equations, each row by itself.  [Hestenes & Stiefel 1952, section 10]

    They know y by A^T y alone, so that the part of y that no w explains does no harm.  A row stands still once its residual r is a rounding of y, or A^T r one of |A| |r|
    [Paige & Saunders 1982, section 6]; n iterations leave out most of what singular values below 1/n of the largest say, where neither shift nor y hides it.
    """
    back = operator.adjoint(y)
    size = _power(y)
    unit = _power(back) / size  # of A: no square of it leaves the floats, whatever y is counted in, and powers of two round nothing
    shift, y, gradient = shift / unit / unit, _times(1 / size, y), _times(1 / size / unit, back)
    z, w = torch.zeros_like(y), gradient
    residual = along = y
    rho, left, norm = _dot(gradient, gradient), _dot(y, y), torch.zeros(len(y), dtype=y.dtype, device=y.device)
    small, tiny = max(torch.finfo(y.dtype).eps, 1e-12) ** 2, torch.finfo(y.dtype).tiny
    goal = small * left
    for _ in range(most):
        image = _times(1 / unit, operator.forward(w))
        seen, length = _dot(image, image), _dot(w, w)
        norm = torch.maximum(norm, seen / length.clamp_min(tiny))  # an estimate of |A|^2 from below
        active = (left > goal) & (rho > small * norm * left)
        if not active.any():
            break
        step = torch.where(active, rho / torch.where(active, shift * length + scale * seen, 1.0), 0.0)
        z, residual = z + _times(step, along), residual - _times(step, _times(shift, along) + _times(scale, image))
        gradient, before = _times(1 / unit, operator.adjoint(residual)), rho
        rho, left = (torch.where(active, _dot(r, r), old) for r, old in ((gradient, rho), (residual, left)))
        turn = torch.where(active, rho / torch.where(active, before, 1.0), 0.0)
        along, w = residual + _times(turn, along), gradient + _times(turn, w)
    return _times(size / unit / unit, z)


def conjugate_gradients(matrix: Callable[[Tensor], Tensor], b: Tensor, rtol: float = 1e-6, most: int = 200) -> Tensor:
    """x with  matrix(x) = b  for a symmetric positive semidefinite matrix, each row of b to a relative residual ``rtol`` by itself.  [Hestenes & Stiefel 1952]

    A row that is done, or whose direction lies in the null space to rounding, stands still while the others go on.  A b outside the range of a singular matrix has no
    solution, and what is found is none of least squares: :func:`least_squares`.
    """
    x = torch.zeros_like(b)
    residual, direction = b, b
    rho = _dot(b, b)
    goal, largest = rtol**2 * rho, torch.zeros_like(rho)
    small, tiny = torch.finfo(b.dtype).eps, torch.finfo(b.dtype).tiny
    for _ in range(most):
        image = matrix(direction)
        curvature, length = _dot(direction, image), _dot(direction, direction)
        largest = torch.maximum(largest, curvature / length.clamp_min(tiny))
        active = (rho > goal) & (curvature > small * largest * length)
        if not active.any():
            break
        step = torch.where(active, rho / torch.where(active, curvature, 1.0), 0.0)
        x, residual = x + _times(step, direction), residual - _times(step, image)
        before, rho = rho, torch.where(active, _dot(residual, residual), rho)
        direction = torch.where(_column(active, b), residual + _times(rho / before.clamp_min(tiny), direction), direction)
    return x


def conjugate_residuals(matrix: Callable[[Tensor], Tensor], b: Tensor, rtol: float = 1e-6, most: int = 20) -> Tensor:
    """x with  matrix(x) = b,  where the matrix is only nearly symmetric and positive, each row of b to a relative residual ``rtol`` by itself.

    |b - M x| never grows, whatever M is, as it does with conjugate gradients, whose short recurrence divides by what is not symmetric.  Where the symmetric part of M is
    definite, x is after n iterations that of the span of b, M b, ..., M^(n-1) b for which it is least; a row without progress stands still.  All n directions and their
    images are kept.  [Eisenstat, Elman & Schultz 1983, GCR]
    """
    length, unit, kept = _power(b), None, []  # type: tuple[Tensor, Tensor | None, list[tuple[Tensor, Tensor, Tensor]]]
    x, residual = torch.zeros_like(b), _times(1 / length, b)
    goal, small, tiny = rtol**2 * _dot(residual, residual), torch.finfo(b.dtype).eps, torch.finfo(b.dtype).tiny
    for _ in range(most):
        active = _dot(residual, residual) > goal
        if not active.any():
            break
        direction, image = residual, matrix(residual)
        unit = _power(image) if unit is None else unit  # so that no square leaves the floats, as in least_squares
        image = _times(1 / unit, image)
        whole = _dot(image, image)
        for other, seen, size in kept:
            share = _dot(image, seen) / size
            direction, image = direction - _times(share, other), image - _times(share, seen)
        size = _dot(image, image).clamp_min(tiny)
        active &= size > small * whole  # else rounding is all that is left of it
        step = torch.where(active, _dot(residual, image) / size, 0.0)
        x, residual = x + _times(step, direction), residual - _times(step, image)
        kept.append((direction, image, size))
    return x if unit is None else _times(length / unit, x)


def _power(x: Tensor) -> Tensor:
    """The power of two below the largest of each row, (B,); 1 of zeros."""
    largest = x.detach().reshape(len(x), -1).abs().amax(1)
    return torch.where(largest > 0, largest, 1.0).log2().floor().exp2()


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Row by row, (B,)."""
    return (a * b).reshape(len(a), -1).sum(1)


def _column(rows: Tensor, like: Tensor) -> Tensor:
    return rows.reshape(-1, *(1,) * (like.dim() - 1))


def _times(coefficient: float | Tensor, x: Tensor) -> Tensor:
    return _column(coefficient.to(x), x) * x if isinstance(coefficient, Tensor) and coefficient.dim() else coefficient * x
