"""Single-step exponential methods on E[x_0 | x]: stages within the step instead of a memory, for the probability flow and for SDEs.

They start at full order and take any grid, at one call for each stage.  [Lu et al. 2022b, arXiv 2211.01095; Gonzalez et al. 2023, arXiv 2305.14267]
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from .._arrays import Number, xp
from .._errors import as_float, choice, integer
from ..processes import Process
from .base import Facts
from .linear import LinearSampler, Row, adams, check_apart, exponential_facts, half_log_snr, kept, noise_level


@dataclass(frozen=True)
class SingleStep(LinearSampler):
    """DPM-Solver++(1S, 2S, 3S) for eta = 0 and SEEDS-1, 2, 3 for eta = 1.  [Lu et al. 2022b, algorithm 1; Gonzalez et al. 2023, algorithms 1 to 3]

    Each point of the step, and its end, is reached from its start by the exact solution for the straight line in lambda through the outputs at the
    start and at the point before, with the noise of the exact solution:

        x(t) = (sigma_t/sigma_0) e^(-eta h) x + (1 + eta) alpha_t int e^((1 + eta)(u - lambda_t)) P(u) du + noise,    h = lambda_t - lambda_0.

    The points lie at r h for two stages, at h/3 and 2h/3 for three.  Order ``stages`` on the flow, weak order 2 with noise whatever the number of
    stages beyond 1.  Noise is drawn for each move between points, so no Brownian path is followed but for one stage.  To be taken where the grid
    has jumps or the step is large; for smooth problems the multistep methods do as much with half or a third of the calls.

    Arguments:
        stages: 1, 2 or 3, calls a step.
        eta: noise level >= 0; 0 is the probability flow, 1 the reverse SDE.
        weights: for two stages, "phi2", the formula above, or "phi1", the midpoint rule of the DPM-Solver++ paper, which weighs the slope of the line
            by 1/2 of the whole.
        r: for two stages, where the second lies, 0 < r <= 1.

    Raises:
        ValueError: an argument out of range.
    """

    stages: int = 2
    eta: float = 1.0
    weights: Literal["phi1", "phi2"] = "phi2"
    r: float = 0.5

    def __post_init__(self) -> None:
        object.__setattr__(self, "stages", integer("stages", self.stages, 1, example=2))
        object.__setattr__(self, "eta", noise_level(self.eta))
        choice("weights", self.weights, ("phi1", "phi2"))
        r = as_float(self.r)
        if self.stages > 3:
            raise ValueError(f"stages={self.stages}; expected 1, 2 or 3, as in stages=3.")
        if r is None or not 0 < r <= 1:
            raise ValueError(f"r={self.r!r}; expected a number, 0 < r <= 1, as in r=0.5.")
        object.__setattr__(self, "r", r)

    @cached_property
    def facts(self) -> Facts:  # type: ignore[override]
        facts = exponential_facts(self.stages, min(self.stages, 2.0), self.eta, "Gonzalez et al. 2023" if self.eta else "Lu et al. 2022", self.stages)
        return facts if self.stages == 1 else facts._replace(strong={})

    @property
    def memory(self) -> int:
        return self.stages

    def check_grid(self, process: Process, ts: Sequence[float]) -> None:
        if self.stages > 1:
            check_apart(process, ts, remembers=False)

    def nodes(self, process: Process, t0: Number, t1: Number) -> tuple[Number, ...]:
        old, new = process.log_snr_(t0), process.log_snr_(t1)
        shares = {1: (), 2: (self.r,), 3: (1 / 3, 2 / 3)}[self.stages]
        return (t0, *(t1 if share == 1 else process.log_snr_inverse_(old + share * (new - old)) for share in shares))

    def row(self, process: Process, times: Sequence[Number], t1: Number) -> Row:
        on_x, on_noise = kept(process, times[0], t1, self.eta)
        reaching, reached = self._weights(process, times, t1), self._weights(process, times[1:], times[0])
        return Row(on_x, [new - on_x * old for new, old in zip(reaching, (0.0, *reached), strict=True)], on_noise)

    def _weights(self, process: Process, times: Sequence[Number], t1: Number) -> Sequence[Number]:
        """On the outputs at ``times``, newest first, of the solution from the last of them, the step's start, to t1."""
        if len(times) < 2:
            return adams(process, times[0], t1, times, self.eta) if times else ()
        last, start = times[0], times[-1]
        if self.stages == 2 and self.weights == "phi1":
            here, h = half_log_snr(process, start), half_log_snr(process, t1) - half_log_snr(process, start)
            whole, share = -process.alpha_(t1) * xp(h).expm1(-(1 + self.eta) * h), 0.5 * h / (half_log_snr(process, last) - here)
            return whole * share, whole * (1 - share)
        on_last, on_start = adams(process, start, t1, (last, start), self.eta)
        return on_last, *[0.0] * (len(times) - 2), on_start
