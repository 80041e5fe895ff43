"""What was measured: y = A x_0 + noise, in the units of the data."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

import sdesolve as sd

from .._errors import as_float, unknown
from ._numbers import per_row
from .check import check_operator, measured_shape, name_of
from .operator import Operator, conjugate_gradients

NOISES = ("gaussian", "poisson")


@dataclass(frozen=True, eq=False)
class Measurement:
    """y = A x_0 + noise, one for each row of the state.

        gaussian   y ~ N(A x_0, noise_std^2)
        poisson    y = gain k - background,  k ~ Poisson((A x_0 + background)/gain):  variance gain (A x_0 + background), and noise_std^2 more where
                   the reading is noisy too

    Poisson noise is taken for Gaussian with the variance that the prediction A E[x_0 | x_t] has, of one count at least, where it is weighed; so it needs
    intensities, A x_0 + background >= 0, and is as good as a count of some ten is nearly Gaussian.  [Chung et al. 2023, section 3, with y for the prediction]

    Arguments:
        operator: A, on states shaped like the model's.
        y: (B, *measured), one measurement for each row of the state, or (1, *measured) for all of them.
        noise_std: standard deviation of the noise, in the units of y, >= 0; 0 for a measurement without noise.
        noise: "gaussian" or "poisson".
        gain: y of a single count, > 0; for Poisson noise alone.
        background: (1, *measured), what the data's zero shines with, where they start at low and not at zero: -A low; for Poisson noise alone.

    Raises:
        TypeError: y is not a floating tensor.
        ValueError: y of another shape than the operator's measurements, or not finite; noise_std < 0 or not finite; an unknown noise, a gain <= 0 or without
            Poisson noise, or counts below zero; an operator that is not what it says it is: it is tried on random states.
    """

    operator: Operator
    y: Tensor
    noise_std: float = 0.0
    noise: str = "gaussian"
    gain: float | None = None
    background: Tensor | float = 0.0
    _tried: Operator | None = field(default=None, repr=False, compare=False)  # the operator that was found in order, which replace() hands on

    def __post_init__(self) -> None:
        if not isinstance(self.operator, Operator):
            got = f"the class {self.operator.__name__}" if isinstance(self.operator, type) else f"a {type(self.operator).__name__}"
            raise TypeError(f"operator is {got}; expected an Operator, as in operators.Mask(event, mask), and operators.as_operator(f, event) for a function.")
        measured = measured_shape(self.operator)
        if not isinstance(self.y, Tensor) or not self.y.is_floating_point():
            got = str(self.y.dtype) if isinstance(self.y, Tensor) else type(self.y).__name__
            raise TypeError(f"y is {got}; expected a floating tensor, (B, {', '.join(map(str, measured))}), in the units of the data.")
        if tuple(self.y.shape[1:]) != measured or not len(self.y):
            image = tuple(self.y.shape[1:]) == tuple(self.operator.event)
            hint = ": y[None] for a single one" if tuple(self.y.shape) == measured else ": operator.forward(y) where y are images to be measured" if image else ""
            raise ValueError(f"y has shape {tuple(self.y.shape)}; expected (B, {', '.join(map(str, measured))}), as {name_of(self.operator)} measures{hint}.")
        if not bool(torch.isfinite(self.y).all()):
            raise ValueError(f"y has {int((~torch.isfinite(self.y)).sum())} values that are not finite; expected a mask in the operator for what was not measured.")
        noise_std = as_float(self.noise_std)
        if noise_std is None or not 0 <= noise_std < math.inf:
            raise ValueError(f"noise_std={self.noise_std!r}; expected a finite number >= 0 in the units of y, as in noise_std=0.05.")
        object.__setattr__(self, "noise_std", noise_std)
        self._check_noise()
        if self._tried is not self.operator:
            check_operator(self.operator, self.y.device, self.y.dtype)
            object.__setattr__(self, "_tried", self.operator)

    def _check_noise(self) -> None:
        if self.noise not in NOISES:
            raise ValueError(unknown("noise", self.noise, NOISES))
        if self.noise == "gaussian":
            if self.gain is not None:
                raise ValueError(f"gain={self.gain!r} with noise='gaussian'; expected noise='poisson', or no gain.")
            return
        if isinstance(self.gain, bool) or not isinstance(self.gain, int | float) or not 0 < self.gain < math.inf:
            raise ValueError(f"gain={self.gain!r}; expected the y of a single count, a finite number > 0, as in gain=0.01.")
        counts = (self.y + self.background) / self.gain
        if not self.noise_std and bool((counts < -1e-3).any()):
            raise ValueError(f"y has {float(counts.min()):.3g} counts somewhere, and counts are not negative; expected intensities, y >= 0, or the noise_std of their reading.")

    def seen(self, x: Tensor) -> Tensor:
        """The y of each row of x, (B, ...), in its dtype; or one for all."""
        return sd.of_rows(self.y, x).to(x)

    def residual(self, x0: Tensor) -> Tensor:
        """y - A x_0, (B, *measured)."""
        return self._minus(self._forward(x0))

    def weighted(self, x0: Tensor, scale: float | Tensor) -> Tensor:
        """(N + scale A A')^-1 (y - A x_0) with the noise's covariance N, (B, *measured); scale > 0, a float or (B,) float64.

        What a Gaussian estimate x_0 of covariance ``scale`` I makes of y, before A'.
        """
        measured = self._forward(x0)
        if self.noise == "gaussian":
            return self.operator.gram_solve(self._minus(measured), self.noise_std**2, scale)
        adjoint, forward = self.operator.adjoint, self.operator.forward
        return self.solve(measured, lambda v: per_row(scale, v) * forward(adjoint(v)))

    def solve(self, measured: Tensor, matrix: Callable[[Tensor], Tensor], most: int = 200, by: Callable[..., Tensor] = conjugate_gradients) -> Tensor:
        """(N + matrix)^-1 (y - measured) in at most ``most`` iterations, for a positive semidefinite ``matrix`` on measurements, or ``by`` what solves others."""
        variance = self.variance(measured)
        return by(lambda v: variance * v + matrix(v), self._minus(measured), most=most)

    def variance(self, measured: Tensor) -> float | Tensor:
        """Of the noise, where A x_0 = ``measured``: a float, or (B, *measured) for Poisson noise, of one count at least."""
        if self.gain is None:
            return self.noise_std**2
        return self.gain * (measured + self.background).clamp_min(self.gain) + self.noise_std**2

    def require(self, method: str, noises: Iterable[str] = ("gaussian",)) -> None:
        """Refuse what ``method`` cannot do: a noise that is not among ``noises``, an operator that is not linear."""
        if not self.operator.linear:
            raise ValueError(f"{method} needs a linear operator with its adjoint, and {name_of(self.operator)} has linear = False; expected 'dps', which needs forward alone.")
        if self.noise not in noises:
            raise ValueError(f"{method} has no treatment of noise={self.noise!r}; expected 'dps', 'pigdm' or 'mmps', or noise='gaussian' with a noise_std that comes near.")

    def check_state(self, x0: Tensor) -> None:
        """That the operator measures states like x_0, (B, *event), and that there is a y for each row."""
        if tuple(x0.shape[1:]) != tuple(self.operator.event) or len(self.seen(x0)) not in (1, len(x0)):
            raise ValueError(
                f"the state has shape {tuple(x0.shape)}, and y {tuple(self.y.shape)} is measured by {name_of(self.operator)} of states "
                f"({len(self.y) if len(self.y) > 1 else 'B'}, {', '.join(map(str, self.operator.event))}); expected as many rows, or y[:1] for all of them."
            )

    def _forward(self, x0: Tensor) -> Tensor:
        self.check_state(x0)
        return self.operator.forward(x0)

    def _minus(self, measured: Tensor) -> Tensor:
        return self.seen(measured) - measured
