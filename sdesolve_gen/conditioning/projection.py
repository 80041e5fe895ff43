"""Projection: after every move, what was measured is put back, with fresh noise of that time.  [Song et al. 2021, appendix I.2 and I.3]

For an operator with orthogonal rows of one length, A A^T = c I (a mask, gray values, means of blocks), and y = A x_0 without noise,

    x <- x + A^T (alpha y + sigma A z - A x)/c,

so that A x becomes a draw of A x_t given y, and the rest stays.  Noise of y is a part of the noise that x_t has in any case.  With noise_std = tau, and

    v = alpha^2 tau^2 - c sigma^2

    v <= 0:  y is less noisy than x_t,      A x <- alpha y + sqrt(-v/c) A z;
    v > 0:   x_t is less noisy than y,      which may then be x_t and some more noise: x_0 -> x_t -> y is a chain, and x_0 given x_t is independent of y.

So below the time of v = 0 the predictor walks on as if there were no y, which is right, and a corrector keeps the law of x_t given y, whose score is the model's and
A^T (alpha y - A x)/v.  Just below that time this is too steep for a step to follow, and up to v = c sigma^2/4 the projection goes on, with sqrt(|v|/c).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import sdesolve as sd
from sdesolve.correctors import Corrector, Normals

from .measurement import Measurement
from .methods import Conditioning, made
from .operator import Operator

_TIGHT = 1e-3  # of A A^T v: how far it may be from c v
_STEEP = 0.25  # of c sigma^2: the smallest v that is left to the score


def projection(score: sd.Score, measurement: Measurement) -> Conditioning:
    """Song et al.'s projection: inpainting, colorization and every other operator with orthogonal rows of one length, by any method.

    It costs no network call.  The unknown part hears of the known one through the score alone, at the next call, and fresh noise on the known part says
    little each time; so a predictor by itself, "replacement", is biased at every number of steps.  Corrector steps repair it: with ``method="pc"`` the
    law tends to the posterior as levels and corrector steps become many.

    Arguments:
        score: of the model, unconditional; it is not changed.
        measurement: y = A x_0 + noise_std n.

    Raises:
        ValueError: an operator whose rows are not orthogonal or of different lengths; noise other than Gaussian.
    """
    measurement.require("projection")
    held = Projection(score.process, measurement, row_square(measurement.operator, measurement.y))
    if not measurement.noise_std:
        return Conditioning(score, held)
    pulled = score.process.reverse(sd.guided(score, lambda prediction: held.pull(prediction.x, prediction.t)))

    def method(given: str | sd.Stepper, **options: Any) -> sd.Stepper:
        return made(given, **options).constrained(lambda predictor: predictor, lambda corrector: Pulled(corrector, pulled))

    return Conditioning(score, held, method)


@dataclass(frozen=True)
class Projection:
    """The constraint (x, t, normals) -> x of :func:`projection`; ``square`` is c."""

    process: sd.Process
    measurement: Measurement
    square: float

    def __call__(self, x: Tensor, t: Any, normals: Tensor) -> Tensor:
        self.measurement.check_state(x)
        variance, projects = self._left(t)
        fresh = shaped((variance.abs() / self.square).sqrt(), x) * normals
        return x + shaped(projects / self.square, x) * self._missing(x - fresh, t)

    def pull(self, x: Tensor, t: Any) -> Tensor:
        """What the score of x_t given y has beside the model's where x is less noisy than y, and nothing is projected."""
        variance, projects = self._left(t)
        return shaped(~projects / torch.where(projects, 1.0, variance), x) * self._missing(x, t)

    def _left(self, t: Any) -> tuple[Tensor, Tensor]:
        """v, and whether it is small enough to project."""
        noise = self.square * self.process.sigma(t).square()
        variance = self.process.alpha(t).square() * self.measurement.noise_std**2 - noise
        return variance, variance <= _STEEP * noise

    def _missing(self, x: Tensor, t: Any) -> Tensor:
        """A^T (alpha y - A x)."""
        operator, y = self.measurement.operator, self.measurement.seen(x)
        return operator.adjoint(shaped(self.process.alpha(t), y) * y - operator.forward(x))


@dataclass(frozen=True)
class Pulled(Corrector):
    """A corrector that corrects another problem than the predictor solves."""

    corrector: Corrector
    problem: sd.ReverseSDE

    @property
    def couples_rows(self) -> bool:
        return self.corrector.couples_rows

    def calls(self, steps: int) -> int:
        return self.corrector.calls(steps)

    def init(self, x: Tensor) -> Tensor | None:
        return self.corrector.init(x)

    def correct(self, problem: Any, x: Tensor, t: Any, steps: int, normals: Normals, carry: Any) -> tuple[Tensor, Any]:
        return self.corrector.correct(self.problem, x, t, steps, normals, carry)

    def stats(self, carry: Any) -> dict[str, Tensor]:
        return self.corrector.stats(carry)


def row_square(operator: Operator, y: Tensor) -> float:
    """c of A A^T = c I, which holds on what A can measure.

    Raises:
        ValueError: A A^T is something else.
    """
    event = torch.randn(1, *operator.event, generator=torch.Generator().manual_seed(0)).to(y)
    seen = operator.forward(event)
    again = operator.forward(operator.adjoint(seen))
    square = float((seen * again).sum() / seen.square().sum())
    off = float((again - square * seen).norm() / again.norm())
    if not off < _TIGHT:
        raise ValueError(
            f"projection needs an operator with orthogonal rows of one length, A A^T = c I, and A A^T v is {off:.1g} |A A^T v| away from c v for "
            f"{type(operator).__name__}; expected a mask, gray values or means of blocks, or method='ddrm' for one with a singular value decomposition."
        )
    return square


def shaped(coefficient: Tensor, x: Tensor) -> Tensor:
    """A coefficient () or (B,) in x's dtype, to multiply states or measurements; one on the host stays there."""
    return sd.expand_time(coefficient, x).to(x.dtype)
