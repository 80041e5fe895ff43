"""Damped Gauss-Newton steps from draws of the prior to where the flow takes them: a third of the draws fits, a third judges, and the last, which has
chosen nothing, tells how far away the end is.

[Levenberg 1944; Marquardt 1963].  The derivative of a solve by a parameter is a difference of two solves.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

ROUNDS, PATIENCE = 12, 2  # of Gauss-Newton; how many of them may fail to help the held-back draws
FARTHEST = 1.0  # of a parameter in one round
NEAR = 0.1  # distance, in standard deviations of the data, beyond which it counts by itself and not by its square, at most; else the median at the start


class Part(NamedTuple):
    """Draws of the prior and where the flow takes them."""

    x: Tensor
    ends: Tensor


def parts(x: Tensor, ends: Tensor) -> list[Part]:
    """Thirds."""
    return [Part(*third) for third in zip(x.chunk(3), ends.chunk(3), strict=True)]


class GaussNewton:
    """A search for the parameters z of a sampler; what z means, :meth:`apart` knows."""

    seen: Part
    held: Part
    told: Part
    difference: float | Tensor
    """Of a parameter, for the derivative; one for all, or one for each."""

    def apart(self, z: Tensor, part: Part) -> Tensor:
        """How far the sampler's ends lie from the flow's, in standard deviations of the data, (rows, d)."""
        raise NotImplementedError(f"{type(self).__name__} has no apart")

    def residual(self, z: Tensor) -> Tensor:
        return self.apart(z, self.seen)

    def cost(self, z: Tensor, part: Part) -> float:
        """Mean distance, root mean square over coordinates: what is judged by.  In squares the rare row that goes to another mode would outweigh all others."""
        value = float(distances(self.apart(z, part)).mean())
        return value if math.isfinite(value) else math.inf

    def refined(self, z: Tensor, advance: Callable[[], None], rounds: int = ROUNDS) -> Tensor:
        """The best pieces by the held-back half along a path of damped Gauss-Newton steps on the other."""
        apart, damping = self.residual(z), 1e-2
        near = min(NEAR, float(distances(apart).nanmedian()))
        best, kept, failed = self.cost(z, self.held), z, 0
        for _ in range(rounds):
            advance()
            gram, slope = self._normal_equations(z, apart, near)
            for _ in range(5):
                lifted = gram + torch.diag(damping * gram.diagonal() + 1e-9 * gram.trace() + 1e-30)
                tried_z = z - torch.linalg.solve(lifted, slope).clamp(-FARTHEST, FARTHEST)
                tried = self.residual(tried_z)
                if cost_of(tried, near) < cost_of(apart, near):
                    break
                damping *= 5
            else:
                break
            z, apart, damping = tried_z, tried, damping / 5
            held = self.cost(z, self.held)
            if held < 0.999 * best:
                best, kept, failed = held, z, 0
            elif (failed := failed + 1) > PATIENCE:
                break
        return kept

    def _normal_equations(self, z: Tensor, apart: Tensor, near: float) -> tuple[Tensor, Tensor]:
        """J^T W J and J^T W r, with the derivative J of the residual r by differences, and the weights W of the cost."""
        steps = torch.diag(torch.as_tensor(self.difference, dtype=z.dtype).expand(len(z)))
        moved = torch.stack([self.residual(z + step) - apart for step in steps])
        moved = torch.nan_to_num(moved, posinf=0.0, neginf=0.0)
        columns = torch.where(moved.square().mean(2, keepdim=True) < NEAR**2, moved, 0.0) / steps.diagonal().to(moved)[:, None, None]  # a leap to another mode is no derivative
        weighted = (columns * weights_of(apart, near)[:, None]).flatten(1)
        return (weighted @ columns.flatten(1).T).double().cpu(), (weighted @ apart.flatten()).double().cpu()


def distances(apart: Tensor) -> Tensor:
    """Root mean square over coordinates, (rows,)."""
    return apart.double().square().mean(1).sqrt()


def cost_of(apart: Tensor, near: float) -> float:
    """Mean over rows of  2 c^2 (sqrt(1 + s/c^2) - 1),  s the mean square of a row and c = ``near``: like s for a row that nearly arrived, and like its root for
    one that the sampler takes to another mode, where its distance is the modes' and says no more about the nodes."""
    value = float((2 * near**2 * ((1 + distances(apart).square() / near**2).sqrt() - 1)).mean())
    return value if math.isfinite(value) else math.inf


def weights_of(apart: Tensor, near: float) -> Tensor:
    """Derivative of that cost by the mean squares, (rows,)."""
    return (1 + apart.square().mean(1) / near**2) ** -0.5
