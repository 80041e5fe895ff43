"""MMPS: the gradient of the likelihood of a Gaussian estimate with the covariance that the network says.  [Rozet et al. 2024; Boys et al. 2023]"""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

import sdesolve as sd

from ._numbers import per_row, whole
from .measurement import Measurement
from .methods import Conditioning
from .operator import conjugate_gradients, conjugate_residuals

SMALL = 0.01  # noise, in units of y, below which y is made one that some x explains


def mmps(score: sd.Score, measurement: Measurement, *, iterations: int = 5, within: tuple[float, float] | None = None) -> Conditioning:
    """Moment matching:  p(x_0 | x_t) is taken for a Gaussian with the mean and the covariance that it has.

        score + J'A' (noise_std^2 I + A V A')^-1 (y - A E[x_0 | x_t]),
        V = Cov[x_0 | x_t] = sigma^2/alpha J,      J = dE[x_0 | x_t]/dx_t.

    V is never formed: the linear system is solved by conjugate residuals, each row's by itself, with a vjp through the network in each iteration, from one evaluation
    of it.  The paper takes conjugate gradients, and so does a single iteration here; but the Jacobian of a network is only nearly symmetric, and what is not, they
    amplify until single draws end in noise.  [Rozet et al. 2024, arXiv 2405.13712, moment matching posterior sampling; Boys et al. 2023, arXiv 2310.06721]

    One network call and at most ``iterations`` + 1 vjps for each evaluation.  Exact for Gaussian data of any covariance, once there are as many iterations as different
    singular values of the system.  Elsewhere the likelihood of a mixture is taken for that of one Gaussian, which errs while x_t does not tell yet
    between modes: their weights are wrong by that.  Fewer iterations leave out what A V A' tells last, its smallest values, and trust y less there.
    Where the noise is less than a hundredth of y, what of y no x explains is left out, A A^+ y standing for it: A' sees nothing of it, and the
    iterations would be spent on it.

    Arguments:
        score: the model's score.
        measurement: of a linear operator, with either noise.
        iterations: of the linear solver, >= 1; the paper takes 1 to 5.
        within: noise levels (low, high], in units of sigma/alpha, at which y pulls; None for all.  Elsewhere a call has no vjp.  Where the noise hides what the data have in
            common, as from 20 on for images from -1 to 1, a pull is made up for by those that follow: see the docs for what it saves and costs.

    Raises:
        ValueError: iterations or within out of range; an operator that is not linear.
    """
    iterations = whole("iterations", iterations, 1)
    measurement.require("mmps", ("gaussian", "poisson"))
    operator, solver = measurement.operator, conjugate_gradients if iterations == 1 else conjugate_residuals
    if measurement.noise == "gaussian" and measurement.noise_std < SMALL * float(measurement.y.square().mean().sqrt()):
        measurement = replace(measurement, y=operator.forward(operator.pinv(measurement.y)))

    def term(p: sd.Prediction) -> Tensor:
        measurement.check_state(p.x0)
        scale = per_row(p.sigma**2 / p.alpha, p.x)

        def seen(v: Tensor) -> Tensor:
            """A V A' v."""
            return operator.forward(scale * p.pullback(operator.adjoint(v)))

        return p.pullback(operator.adjoint(measurement.solve(operator.forward(p.x0), seen, iterations, by=solver)))

    return Conditioning(sd.guided(score, term, derivative=True, within=within))
