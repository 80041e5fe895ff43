"""UniPC: a predictor and a corrector of exponential Adams type that share their calls.  [Zhao et al. 2023, arXiv 2302.04867]"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from .._arrays import Number, xp
from .._errors import choice
from ..processes import Process
from .base import Facts
from .linear import LinearSampler, Row, adams, half_log_snr, kept, outputs_of


@dataclass(frozen=True)
class UniPC(LinearSampler):
    """UniPC-p on E[x_0 | x].  [Zhao et al. 2023, algorithms 5 and 6, eq. 11 and 12]

    The predictor integrates the polynomial in lambda through the last p outputs, the corrector that through these and the output at the predicted
    state, which is kept for the next step: one call a step.  As everything is linear in the outputs, the corrector is part of the next step's
    row; so the states between steps are predicted ones, and the last step has no corrector, as published.  Order p + 1 for p <= 2; the first
    step, corrected once, leaves order 3 for p >= 3, whose errors from 20 steps on are smaller all the same.

    Arguments:
        order: p, 1 to 4.  On equal steps of the log-SNR, and on Karras's grid, 20 or 50 of them, 4 is the highest that is stable; 3 and 4 need 50 of
            Karras's to beat 2, and more than that of equal steps of the time.
        variant: B(h) of the paper, which matters where it weighs a difference by 1/2 instead of solving for it: the predictor of p = 2 and
            the corrector of p = 1.  "bh1" is h, "bh2" is e^h - 1.

    Raises:
        ValueError: order or variant out of range.
    """

    order: int = 2
    variant: Literal["bh1", "bh2"] = "bh2"

    def __post_init__(self) -> None:
        object.__setattr__(self, "order", outputs_of("order", self.order))
        choice("variant", self.variant, ("bh1", "bh2"))

    @cached_property
    def facts(self) -> Facts:  # type: ignore[override]
        return Facts(evals=1, ode=min(self.order + 1, 3), needs=frozenset({"score"}), reference="Zhao et al. 2023")

    @property
    def memory(self) -> int:
        return self.order + 1

    def row(self, process: Process, times: Sequence[Number], t1: Number) -> Row:
        row = Row(kept(process, times[0], t1)[0], self._predictor(process, times[: self.order], t1))
        if len(times) == 1:
            return row
        last = times[1:]  # what the step before knew
        return row.corrected(self._corrector(process, last, times[0]), self._predictor(process, last[: self.order], times[0]))

    def _predictor(self, process: Process, times: Sequence[Number], t1: Number) -> list[Number]:
        return self._by_half(process, times, t1, times[1]) if len(times) == 2 else adams(process, times[0], t1, times)

    def _corrector(self, process: Process, times: Sequence[Number], t1: Number) -> list[Number]:
        if len(times) > 1:
            return adams(process, times[0], t1, (t1, *times))
        old, new = self._by_half(process, times, t1, t1)
        return [new, old]

    def _by_half(self, process: Process, times: Sequence[Number], t1: Number, other: Number) -> list[Number]:
        """Weights on the outputs at ``times[0]`` and ``other``: the first's own, and B/2 on their slope."""
        old = half_log_snr(process, times[0])
        h = half_log_snr(process, t1) - old
        whole = -process.alpha_(t1) * xp(h).expm1(-h)
        b = process.alpha_(t1) * h if self.variant == "bh1" else whole
        share = 0.5 * b * h / (half_log_snr(process, other) - old)
        return [whole - share, share]
