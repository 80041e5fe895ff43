"""States between two nodes of a grid, for saving: no network call, and the conditional law of the noise."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..methods import StepNoise


def between(problem: Any, x0: Tensor, x1: Tensor, t0: float, t1: float, times: tuple[float, ...], noise: StepNoise) -> list[Tensor]:
    """The states of an SDE at ``times``, ordered from t0 to t1, given those at the two ends of a step:

        x(t) = x0 + theta (x1 - x0) + g(x0, t0) (W(t) - theta W(t1)),     theta = (t - t0)/(t1 - t0),

    where W(t) - theta W(t1) is the Brownian bridge of the step: a straight line would have too small a variance, by up to half.
    """
    deviations = noise.bridge(t0, t1, times)
    return [x0 + (t - t0) / (t1 - t0) * (x1 - x0) + problem.diffuse(x0, t0, deviation) for t, deviation in zip(times, deviations, strict=True)]
