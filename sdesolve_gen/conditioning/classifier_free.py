"""Classifier-free guidance: a model that knows classes and also knows none, pushed from the one towards the other.

    score_s = score(x) + s (score(x | y) - score(x)),      s = 1: the conditional score itself      [Ho & Salimans 2022, eq. 6, s = 1 + w]

Tweedie's formula is linear in the score, so that the same holds of the denoised images, and there it is done.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

import sdesolve as sd
from sdesolve.guided import check_reached, noise_levels

from .classifier import check_scale
from .labels import Labels


@dataclass(frozen=True)
class Guidance:
    """How far classifier-free guidance goes, and where.

    Arguments:
        scale: s >= 0; 1 is the conditional model and costs one call, 0 the unconditional one.
        interval: noise levels (low, high] in units of sigma/alpha where it applies, outside of which the conditional model alone is asked:
            one call instead of two.  None for everywhere.  [Kynkaanniemi et al. 2024, eq. 5, with sigma of EDM]
        rescale: 0 <= phi <= 1, how much of the growth of the denoised image's standard deviation is taken back; of no effect on states of a single number.
            [Lin et al. 2023, eq. 15 and 16]

    Raises:
        ValueError: a value out of range.
    """

    scale: float = 1.0
    interval: tuple[float, float] | None = None
    rescale: float = 0.0

    def __post_init__(self) -> None:
        check_scale("scale", self.scale)
        check_scale("rescale", self.rescale)
        if self.rescale > 1:
            raise ValueError(f"rescale={self.rescale!r}; expected 0 <= rescale <= 1, as in rescale=0.7.")
        if self.interval is not None:
            noise_levels("interval", self.interval)


def classifier_free_guidance(conditional: sd.Score, unconditional: sd.Score, guidance: Guidance | float) -> sd.Score:
    """score(x) + s (score(x | y) - score(x)), of a network that was trained with and without labels.  [Ho & Salimans 2022, eq. 6]

    At s = 1 it is exact for an exact model; beyond, samples are drawn towards what tells y from the other classes, at the price of variety,
    and follow no law in closed form.  Rescaling is done on the denoised image E[x_0 | x_t], as the networks' own outputs
    have no common unit: with D_s and D_1 guided and conditional ones,  D = (1 - phi + phi std(D_1)/std(D_s)) D_s.

    Cost: two calls; one at s = 0 and 1, and outside the interval of a fixed grid.  Where rows have times of their own, rows outside the
    interval cost two as well.

    Arguments:
        conditional, unconditional: scores of one process: ``m.class_score(labels)`` and ``m.score``, or any others.
        guidance: :class:`Guidance`, or its scale.

    Raises:
        ValueError: scores of two processes, a scale out of range, or an interval beyond the noise levels of the process.
    """
    how = guidance if isinstance(guidance, Guidance) else Guidance(guidance)
    process = conditional.process
    if unconditional.process != process:
        raise ValueError(f"the conditional score is of {process} and the unconditional of {unconditional.process}; expected one process.")
    check_reached("interval", how.interval, process)
    if how.scale == 1:
        return conditional
    if how.scale == 0 and how.interval is None and how.rescale == 0:
        return unconditional

    def term(at: sd.Prediction) -> Tensor:
        guided = at.x0 + (how.scale - 1) * (at.x0 - unconditional.denoise(at.x, at.t))
        return _rescaled(guided, at.x0, how.rescale) - at.x0

    return sd.guided(conditional, term, to="x0", within=how.interval, calls=unconditional.calls)


def _rescaled(guided: Tensor, conditional: Tensor, share: float) -> Tensor:
    """A guided image D_s brought back towards the standard deviation of the conditional one:  (1 - share + share std(D_1)/std(D_s)) D_s; one number has none to be brought to."""
    if share == 0 or guided[0].numel() == 1:
        return guided
    wide, narrow = (image.flatten(1).std(1) for image in (guided, conditional))
    return sd.expand_time(1 - share + share * narrow / wide, guided) * guided


class Labelled(Labels):
    """(x, time) -> network(x, time, labels): a network that knows classes, with the labels of the rows."""

    def __init__(self, network: nn.Module, labels: Tensor) -> None:
        super().__init__(labels)
        self.network = network

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        return self.network(x, time, self.rows(x))
