"""What ``solve`` returns."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

import numpy as np
import torch
from torch import Tensor


class Status(IntEnum):
    """How a sample ended."""

    ok = 0
    non_finite = 1
    max_steps = 2
    min_step = 3
    event = 4
    """Ended at its event, as asked: it counts as arrived."""


def arrived(codes: Tensor) -> Tensor:
    """(B,) bool: codes of samples that reached the end or their event, with a finite state."""
    return (codes == Status.ok) | (codes == Status.event)


_NAMES = np.array([status.name for status in Status])


@dataclass(frozen=True)
class Solution:
    """The outcome of ``solve``, per sample where samples can differ.

    Attributes:
        x: (B, *event) final state, which is the state at its event for a sample that had one; denoised where ``denoise=True``.
        nfe: network calls that each sample saw, counted as they happened: an int on a fixed grid, (B,) int64 where steps are chosen per
            sample or taken at once.
        codes: (B,) int64 of :class:`Status`.
        failed_at: (B,) float64, the time at which a sample was given up; NaN for those that were not.
        ts, xs: saved times (S,) float64 and states (S, B, *event), where ``save`` asked for them; NaN at times that a sample did not reach.
        event_time: (B,) float64, the time of each sample's event and NaN where it had none, where ``event`` asked for it.
        stats: the ledger.  method, seed, steps; accepted and rejected steps (per sample where steps are chosen); calls of the network or
            drift, however many rows each had; rows that they were given in all, less than calls times B where samples finished early;
            jvps and vjps, derivatives taken of the diffusion and by the adjoint (calls, rows and vjps grow when an adjoint is asked for
            its gradient); what a corrector says of each sample; where steps are taken at once, iterations, (B,), and depth, the calls that came
            one after the other; peak_memory, the most bytes that the process has held so far; wall_time in seconds.
    """

    x: Tensor
    nfe: int | Tensor
    codes: Tensor
    failed_at: Tensor
    ts: Tensor | None = None
    xs: Tensor | None = None
    stats: dict[str, Any] = field(default_factory=dict)
    event_time: Tensor | None = None

    @property
    def status(self) -> np.ndarray:
        """(B,) strings: "ok", "event", "non_finite", "max_steps" or "min_step"."""
        return _NAMES[self.codes.cpu().numpy()]

    def ok(self) -> Tensor:
        """(B,) bool: which samples arrived, at the end or at their event, with a finite state."""
        return arrived(self.codes)

    def failures(self) -> list[tuple[int, str, float]]:
        """(index, status, time) of every sample that did not arrive."""
        index = torch.nonzero(~self.ok()).flatten().cpu()
        return list(zip(index.tolist(), self.status[index.numpy()].tolist(), self.failed_at.cpu()[index].tolist(), strict=True))

    def __repr__(self) -> str:
        counts = {status.name: int((self.codes == status).sum()) for status in Status}
        nfe = self.nfe if isinstance(self.nfe, int) else f"{int(self.nfe.min())}..{int(self.nfe.max())}"
        said = ", ".join(f"{name}: {count}" for name, count in counts.items() if count)
        return f"Solution(x={tuple(self.x.shape)}, nfe={nfe}, status={{{said}}})"
