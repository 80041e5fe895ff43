"""The batch of an update, with all its noise, as a pure function of (data, config, step).

It is drawn whole and then cut: place i of the batch sees the same image, time and noise whether one process computes all of it
at once or eight compute it in parts.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sdesolve import Process

from ..data import Data
from .config import TrainConfig
from .levels import stratified
from .losses import TIMES, Times
from .order import batch_indices, generator

_NOISE, _FLIP, _LABELS, _PROBE = 1, 2, 3, 4  # streams of the generators; 0 is the order of the data


class Batch(NamedTuple):
    """What an update sees; the first axis of everything is the place in the batch."""

    x0: Tensor
    """(B, C, H, W) float32 in the data range, dequantised."""
    t: Tensor
    ratio: Tensor
    """(B,) float64, :class:`Times`."""
    eps: Tensor
    """(B, C, H, W) standard normals."""
    probe: Tensor | None
    """(B, C, H, W) signs, for the sliced loss."""
    labels: Tensor | None
    """(B,) int64, for a network with classes; ``classes`` stands for none."""

    @property
    def times(self) -> Times:
        return Times(self.t, self.ratio)

    def part(self, rows: slice, device: torch.device) -> Batch:
        """Some places of it, on a device."""
        cut: list[Any] = [None if tensor is None else tensor[rows].to(device) for tensor in self]
        return Batch(*cut)


def draw_batch(data: Data, config: TrainConfig, process: Process, step: int) -> Batch:
    """The batch of update ``step``."""
    c = config
    rows = batch_indices(len(data.images), c.batch, c.seed, step)
    images, draws = data.images[rows], generator(c.seed, step, _NOISE)
    if c.flip:
        mirrored = torch.rand(c.batch, generator=generator(c.seed, step, _FLIP)) < 0.5
        images = torch.where(mirrored[:, None, None, None], images.flip(-1), images)
    pixels = images + torch.rand(images.shape, generator=draws)  # uniform dequantisation: [0, 256)
    low, high = c.data_range
    x0 = low + (high - low) * pixels / 256
    t, ratio = TIMES[c.times](c, process, stratified(c.batch, draws))
    eps = torch.randn(x0.shape, generator=draws)
    probe = torch.randint(2, x0.shape, generator=generator(c.seed, step, _PROBE)).to(x0) * 2 - 1 if c.loss == "sliced" else None
    return Batch(x0, t, ratio, eps, probe, _labels(data, config, rows, step))


def _labels(data: Data, config: TrainConfig, rows: Tensor, step: int) -> Tensor | None:
    """The labels of these rows, some of them dropped at random."""
    if not config.classes or data.labels is None:
        return None
    dropped = torch.rand(len(rows), generator=generator(config.seed, step, _LABELS)) < config.label_dropout
    return torch.where(dropped, config.classes, data.labels[rows])


class Ahead:
    """``draw_batch`` of the steps in order, each drawn while the one before is computed on."""

    def __init__(self, data: Data, config: TrainConfig, process: Process) -> None:
        self._arguments = (data, config, process)
        self._thread = ThreadPoolExecutor(1)
        self._next: tuple[int, Future[Batch]] | None = None

    def batch(self, step: int) -> Batch:
        drawn = self._next[1].result() if self._next and self._next[0] == step else draw_batch(*self._arguments, step)
        self._next = (step + 1, self._thread.submit(draw_batch, *self._arguments, step + 1))
        return drawn

    def close(self) -> None:
        self._thread.shutdown(cancel_futures=True)
