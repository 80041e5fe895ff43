"""PiGDM: the gradient of the likelihood of a Gaussian estimate.  [Song, Vahdat, Mardani & Kautz 2023]"""

from __future__ import annotations

from torch import Tensor

import sdesolve as sd

from ._numbers import number
from .measurement import Measurement
from .methods import Conditioning


def pigdm(score: sd.Score, measurement: Measurement, *, prior_std: float = 1.0, within: tuple[float, float] | None = None) -> Conditioning:
    """Pseudo-inverse guidance:  p(x_0 | x_t) is taken for N(E[x_0 | x_t], r_t^2 I).

        score + J'A' (noise_std^2 I + r_t^2 A A')^-1 (y - A E[x_0 | x_t]),        J = dE[x_0 | x_t]/dx_t,
        r_t^2 = sigma^2 c^2/(alpha^2 c^2 + sigma^2),                              c = prior_std.

    r_t^2 is the posterior variance of data with variance c^2; the paper's values are those of c = 1, for VP sigma^2.  [Song et al. 2023, section 3]
    The paper's algorithm 1 adds sqrt(bar alpha_t) r_t^2 times the gradient to each step of DDIM, however short, and leaves E[eps | x_t] as it was; here it is part of the score,
    which is what its derivation asks for: the same step with the weight that DDIM has for a change of the score.

    One network call and one vjp for each evaluation, and a ``gram_solve``: closed form for operators that have one.  Exact, at every noise level and
    for every operator, for Gaussian data of covariance c^2 I.  Elsewhere it errs where the spread of the data differs between directions:
    what is measured along a narrow one is believed too much.  Poisson noise has the variance of the prediction.

    Arguments:
        score: the model's score.
        measurement: of a linear operator, with either noise.
        prior_std: standard deviation c > 0 of the data, about their mean and in their units: 0.5 for images from -1 to 1.
        within: noise levels (low, high], in units of sigma/alpha, at which y pulls; None for all.  Elsewhere a call has no vjp.  Where the noise hides what the data have in
            common, as from 20 on for images from -1 to 1, a pull is made up for by those that follow: see the docs for what it saves and costs.

    Raises:
        ValueError: prior_std or within out of range; an operator that is not linear.
    """
    c2 = number("prior_std", prior_std, 0.0, above=True) ** 2
    measurement.require("pigdm", ("gaussian", "poisson"))

    def term(p: sd.Prediction) -> Tensor:
        variance = p.sigma**2 * c2 / (p.alpha**2 * c2 + p.sigma**2)
        return p.pullback(measurement.operator.adjoint(measurement.weighted(p.x0, variance)))

    return Conditioning(sd.guided(score, term, derivative=True, within=within))
