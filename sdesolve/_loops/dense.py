"""Between the nodes of a step: its continuous extension, and where a function of the state changes its sign there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .._arrays import Number, bcast, expand_time, time_tensor
from ..problems import Field

_BISECTIONS = 52  # of a step: to the last bit of theta


class Piece(NamedTuple):
    """The solution on one step of each of some rows:  x(t0 + theta (t1 - t0)) = x + c_1 theta + c_2 theta^2 + ..."""

    x: Tensor  # (N, *event)
    t0: Tensor  # (N,) float64
    t1: Tensor
    coefficients: Sequence[Tensor]  # each (N, *event)

    def rows(self, which: Tensor) -> Piece:
        """The piece of some of the rows, in that order."""
        return Piece(self.x[which], self.t0[which], self.t1[which], [c[which] for c in self.coefficients])

    def at(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """State (N, *event) and time (N,) at theta (N,)."""
        return value(self.x, self.coefficients, theta), self.t0 + theta * (self.t1 - self.t0)


def value(x: Tensor, coefficients: Sequence[Tensor], theta: Number) -> Tensor:
    """x + c_1 theta + c_2 theta^2 + ..., (B, *event)."""
    scale = bcast(theta, x)
    *lower, total = coefficients
    for c in reversed(lower):
        total = c + scale * total
    return x + scale * total


def read_off(piece: Piece | None, times: Tensor, ends: Tensor) -> Tensor:
    """(N, *event) the states at ``times`` (N,) on the step of each row: at its end the state there, ``ends``, and nothing else without a piece."""
    if piece is None:
        return ends
    inside, _ = piece.at((times - piece.t0) / (piece.t1 - piece.t0))
    return torch.where(expand_time(times == piece.t1, ends), ends, inside)


def joined(pieces: Sequence[Piece]) -> Piece:
    """The rows of several pieces as one."""
    x, t0, t1, coefficients = zip(*pieces, strict=True)
    return Piece(torch.cat(x), torch.cat(t0), torch.cat(t1), [torch.cat(c) for c in zip(*coefficients, strict=True)])


class Event(NamedTuple):
    """What ends a row: a change of sign of ``function(x, t)``, upwards (direction 1), downwards (-1) or either (0)."""

    function: Field
    direction: int = 0

    def side(self, x: Tensor, t: Tensor) -> Tensor:
        """(B,) the sign of the function."""
        value = self.function(x, time_tensor(t, x))
        if not isinstance(value, Tensor) or value.shape != (len(x),) or not value.is_floating_point():
            got = f"{tuple(value.shape)} {value.dtype}" if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(f"event returned {got}; expected ({len(x)},), one real number a sample, as in lambda x, t: x[:, 0] - 1.")
        return value.sign()

    def crossed(self, before: Tensor, after: Tensor) -> Tensor:
        """(B,) whether the sign has changed from one that is not 0, in the direction asked for; a NaN has no sign."""
        changed = before * after <= 0
        return changed & (before * self.direction < 0 if self.direction else before != 0)

    def locate(self, piece: Piece, before: Tensor) -> tuple[Tensor, Tensor]:
        """State and time of each row at its first sign change that bisection finds, still on the side it comes from."""
        low = torch.zeros_like(piece.t0)
        for i in range(1, _BISECTIONS + 1):
            middle = low + 0.5**i
            low = torch.where(self.crossed(before, self.side(*piece.at(middle))), low, middle)
        return piece.at(low)
