"""Langevin correctors: steps of  x <- x + e score(x, t) + sqrt(2 e) z,  which leave p_t unchanged as e -> 0.

The published step size  e = 2 (snr |z| / |score|)^2  depends on the state.  With the sample's own |score| it explodes
where a score vanishes, and even as snr -> 0 it is wrong: dx = e(x) score dt + sqrt(2 e(x)) dw has the stationary density
p / e, not p.  The published code averages the norms over the batch instead, so that every sample depends on the others.
The default here replaces both norms by their expectation under the perturbation kernel, E|z|^2 = d and
E|eps/sigma|^2 = d / sigma_t^2:

    e = 2 (snr sigma_t)^2,

which is the published annealed rule, agrees with the batch rule wherever the noise dominates the score, needs no reduction,
and is a function of t alone.  For VP and subVP the published code also multiplies e by 1 - beta_i, of its 1000 levels, within 2 % of 1; so does
norm="batch", which is there to reproduce it, and nothing else.  On a Gaussian of variance V each step multiplies the stationary variance by
1 / (1 - e / 2V): 1.026 at snr = 0.16 where V = sigma_t^2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from .._arrays import Number, plus, xp
from .._errors import as_float, choice
from ..problems import ScoreProblem
from ..processes import VPSDE, Process
from .base import Corrector, Normals

NORMS = ("expected", "batch")
_LEVELS = 1000  # of the published code


@dataclass(frozen=True)
class Langevin(Corrector):
    """Unadjusted Langevin steps.  [Song et al. 2021, algorithms 4 and 5]

    Arguments:
        snr: the published signal-to-noise ratio r > 0 of a step; 0.16 for CIFAR-10, 0.075 for 256 x 256 images.
        norm: "expected", the rule above, or "batch", the published one: norms averaged over the batch, which couples the samples, and the factor
            1 - beta(t) T/1000 for VP and subVP.
    """

    snr: float = 0.16
    norm: Literal["expected", "batch"] = "expected"

    def __post_init__(self) -> None:
        choice("norm", self.norm, NORMS)
        snr = as_float(self.snr)
        if snr is None or not 0 < snr < 1:
            raise ValueError(f"snr={self.snr!r}; expected a number, 0 < snr < 1, as in snr=0.16.")
        object.__setattr__(self, "snr", snr)

    @property
    def couples_rows(self) -> bool:
        return self.norm == "batch"

    def calls(self, steps: int) -> int:
        return steps

    def correct(self, problem: ScoreProblem, x: Tensor, t: Number, steps: int, normals: Normals, carry: None) -> tuple[Tensor, None]:
        for k in range(steps):
            x = self._step(problem, x, t, normals(k, 0))
        return x, carry

    def _step(self, problem: ScoreProblem, x: Tensor, t: Number, normal: Tensor) -> Tensor:
        score = problem.score(x, t)
        e = 2 * self._kept(problem.process, t) * (self.snr * self._score_radius(problem, t, score, normal)) ** 2
        return plus(plus(x, e, score), xp(e).sqrt(2 * e), normal)

    def _score_radius(self, problem: ScoreProblem, t: Number, score: Tensor, normal: Tensor) -> Number:
        """|z| / |score|, in the sense of ``norm``."""
        if self.norm == "expected":
            return problem.process.sigma_(t)
        return _mean_norm(normal) / _mean_norm(score)

    def _kept(self, process: Process, t: Number) -> Number:
        """The published 1 - beta_i; 1 for "expected"."""
        return 1 - process.beta_(t) * process.T / _LEVELS if self.norm == "batch" and isinstance(process, VPSDE) else 1.0


def _mean_norm(x: Tensor) -> Tensor:
    return x.reshape(len(x), -1).norm(dim=1).mean()
