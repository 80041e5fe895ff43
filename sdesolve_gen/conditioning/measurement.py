"""What was measured: y = A x_0 + noise, in the units of the data."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from .operator import Operator


@dataclass(frozen=True)
class Measurement:
    """y = A x_0 + noise_std n with standard normal n.

    Arguments:
        operator: A, on states shaped like the model's.
        y: (B, *measured), one measurement for each row of the state, or (1, *measured) for all of them.
        noise_std: standard deviation of the noise, in the units of y, >= 0; 0 for a measurement without noise.

    Raises:
        ValueError: y of another shape than the operator's measurements, or not finite; noise_std < 0 or not finite.
    """

    operator: Operator
    y: Tensor
    noise_std: float = 0.0

    def residual(self, x0: Tensor) -> Tensor:
        """y - A x_0, (B, *measured)."""
        return self.y - self.operator.forward(x0)
