"""What a rejected step owes the next ones: the Brownian increments that it has seen.

A step that is tried reveals the increment of its noise.  Drawn anew after a rejection, the noise would be what is left of the
path after the unwelcome increments were thrown away, and its variance too small or too large at every tolerance.  So each row
keeps a stack of the increments that it has been promised, nearest first.  A shorter step splits the nearest by the Brownian
bridge, and no step goes beyond the nearest revealed time, so the path is the same one whatever the controller makes of it.
[Rackauckas & Nie 2017, RSwM; Foster & Jelincic 2023, arXiv 2311.14201, on landing on what is revealed]
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor

from .._arrays import bcast
from ..brownian import BrownianPath, Drawn, bridge
from ..noise import PROMISED, SeededNormals


class Promises:
    """The noise of steps that are chosen per sample.  Indexing by a mask keeps those rows.

    Arguments:
        seed, sample_ids: name the noise.  A row's numbers are addressed by (seed, its id, the number of its tries).
        event: shape of one sample's Brownian motion.
        path: a given path, instead of increments drawn as they are needed.
    """

    def __init__(
        self,
        seed: int,
        sample_ids: Tensor,
        event: Sequence[int],
        *,
        dtype: torch.dtype,
        device: torch.device,
        path: BrownianPath | None = None,
    ) -> None:
        rows = len(sample_ids)
        self._path = path
        self._normals = SeededNormals(seed, sample_ids, (2, *event), dtype=dtype, device=device, stream=PROMISED, nodes=1 << 62)
        self._ends = torch.full((rows, 1), torch.nan, dtype=torch.float64, device=device)  # (B, S), the nearest at depth - 1
        self._promised = torch.zeros((rows, 1, 2, *event), dtype=dtype, device=device)  # W and H of the way to each end from the one before
        self._depth = torch.zeros(rows, dtype=torch.int64, device=device)

    def __getitem__(self, which: Tensor) -> Promises:
        kept = object.__new__(Promises)
        kept._path = self._path.keep(which) if self._path else None
        kept._normals = self._normals.keep(which)
        kept._ends, kept._promised, kept._depth = self._ends[which], self._promised[which], self._depth[which]
        return kept

    def copy(self) -> Promises:
        """The same promises, to be kept apart from here on."""
        copied = copy.copy(self)
        copied._ends, copied._promised = self._ends.clone(), self._promised.clone()
        return copied

    def nearest(self) -> Tensor:
        """(B,) the nearest revealed time; NaN where none is."""
        return torch.where(self._depth > 0, self._top(self._ends), torch.nan)

    def draw(self, t: Tensor, target: Tensor, number: int) -> Drawn:
        """The noise of the way from t to target, (B,), where target does not lie beyond ``nearest()``; ``number`` counts the tries."""
        end, promised = self.nearest(), self._top(self._promised)
        kept = target == end  # the whole of the nearest promise: nothing to draw
        split = (self._depth > 0) & ~kept
        part, rest = self._parts(t, target, torch.where(split, end, 2 * target - t), split, promised, number)
        noise = torch.where(_over(kept, part), promised, part)
        self._replace_top(torch.where(_over(split, rest), rest, promised))
        self._push(~kept, target, noise)
        return Drawn(*noise.unbind(1))

    def settle(self, done: Tensor) -> None:
        """Take the noise of the last draw away where the mask ``done`` holds: it has been consumed."""
        self._depth = self._depth - done.long()

    def _parts(self, t: Tensor, target: Tensor, end: Tensor, split: Tensor, promised: Tensor, number: int) -> tuple[Tensor, Tensor]:
        """W and H, (B, 2, *event), of the ways to target and from there to end; where nothing is promised, the first is fresh and the second idle."""
        if self._path:
            return torch.stack(self._path.levy(t, target), 1), torch.stack(self._path.levy(target, end.clamp(*self._path.interval)), 1)
        z = self._normals.normal(number)
        a, b = (target - t).abs(), (end - target).abs()
        halves = bridge(promised[:, 0], promised[:, 1], a, b, z[:, 0], z[:, 1])
        fresh = torch.stack([bcast(a.sqrt(), z[:, 0]) * z[:, 0], bcast((a / 12).sqrt(), z[:, 1]) * z[:, 1]], 1)
        return torch.where(_over(split, fresh), torch.stack(halves[:2], 1), fresh), torch.stack(halves[2:], 1)

    def _top(self, stack: Tensor) -> Tensor:
        rows = torch.arange(len(stack), device=stack.device)
        return stack[rows, (self._depth - 1).clamp(min=0)]

    def _replace_top(self, value: Tensor) -> None:
        rows = torch.arange(len(value), device=value.device)
        self._promised[rows, (self._depth - 1).clamp(min=0)] = value

    def _push(self, which: Tensor, end: Tensor, value: Tensor) -> None:
        """Put a promise on top where the mask ``which`` holds, and write the top again where it does not."""
        self._depth = self._depth + which.long()
        if int(self._depth.max()) > self._ends.shape[1]:
            self._ends = torch.cat([self._ends, torch.full_like(self._ends, torch.nan)], 1)
            self._promised = torch.cat([self._promised, torch.zeros_like(self._promised)], 1)
        rows = torch.arange(len(end), device=end.device)
        self._ends[rows, self._depth - 1] = end
        self._promised[rows, self._depth - 1] = value


def _over(mask: Tensor, x: Tensor) -> Tensor:
    return mask.reshape(-1, *(1,) * (x.dim() - 1))
