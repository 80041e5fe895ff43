"""Step control: how large an error is, and how long the next step may be.  Everything is per sample; nothing couples rows."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ._arrays import row_mean


@dataclass(frozen=True)
class Control:
    """The proportional-integral controller.  [Gustafsson 1991; Hairer, Norsett & Wanner 1993, II.4; Hairer & Wanner 1996, IV.2]

        factor = safety err_n^(-(1/q - 3 beta/4)) err_{n-1}^beta,      beta = 0.2/q,

    for an error estimate that falls as h^q, measured so that a step is accepted where err <= 1:

        err = sqrt(mean((error / (atol + rtol max(|x0|, |x1|)))^2)).

    A rejected step is judged by its own error alone, factor = safety err^(-1/q), and the step after it does not grow.

    Arguments:
        rtol, atol: relative and absolute tolerance of one step.
        q: order of the error estimate.
        safety, shrink, grow: the factor's margin and bounds.
    """

    rtol: float
    atol: float
    q: float
    safety: float = 0.9
    shrink: float = 0.2
    grow: float = 10.0

    def size(self, value: Tensor, *states: Tensor) -> Tensor:
        """(B,) float64: root mean square of ``value`` in units of the tolerance at the larger of ``states``."""
        largest = states[0].abs()
        for state in states[1:]:
            largest = torch.maximum(largest, state.abs())
        return row_mean((value / self.tolerance(largest)).square()).double().sqrt()

    def tolerance(self, scale: Tensor) -> Tensor:
        """The error that is tolerated where the state is as large as ``scale``; not 0, or no error at all would be 0/0 there."""
        return max(self.atol, torch.finfo(scale.dtype).tiny) + self.rtol * scale

    def factor(self, err: Tensor, previous: Tensor) -> Tensor:
        """(B,) by what to multiply the step after a try with the error ``err``, the try before having had ``previous``."""
        beta, accepted = 0.2 / self.q, err <= 1
        floored = err.clamp(min=1e-10)  # a vanishing error asks for the largest growth, not for a division by zero
        with_memory = floored ** (0.75 * beta - 1 / self.q) * previous.clamp(1e-4, 1.0) ** beta
        factor = self.safety * torch.where(accepted, with_memory, floored ** (-1 / self.q))
        return torch.minimum(factor.clamp(min=self.shrink), torch.where(accepted & (previous <= 1), self.grow, 1.0))
