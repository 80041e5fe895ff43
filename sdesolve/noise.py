"""Seeded noise as a pure function of (seed, sample id, time node, slot).

Sample i sees the same numbers in a batch of 1, 7 or 1000, in any order, on any number of processes, because no generator
state is carried from one draw to the next: every block of numbers is addressed.  The address is the 256-bit counter of
the counter-based generator Philox-4x64-10 (Salmon et al. 2011):

    counter = (block within the event + id * blocks per event,  node,  slot,  0),      key = (seed, stream)

Ids that follow one another are therefore contiguous in the counter and come out of one call.  Each 64-bit word gives one
pair of 32-bit uniforms u, v and by Box & Muller (1958) two standard normals  sqrt(-2 ln u) (cos 2 pi v, sin 2 pi v).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ._arrays import Number, absolute, bcast, xp

_WORDS_PER_BLOCK = 4  # 64-bit words that Philox gives for one counter value
_LARGEST_GAP = 8  # ids skipped within one call
_CHUNK = 1 << 16  # normals drawn ahead at once, so that small states do not pay Python's overhead at every node

PRIOR, PATH, BRIDGE, PROBE, DATA = range(5)
"""Streams: the second half of the key, so that a prior draw and a path with the same seed are independent."""

LEVY = 1 << 32
"""The slot of the space-time Levy area, far from those that correctors count up from 1."""


class SeededNormals:
    """Standard normals addressed by (seed, sample id, node, slot).

    Arguments:
        seed: any integer, 0 <= seed < 2**64.
        sample_ids: (B,) names of the rows, integers >= 0.
        event: shape of one sample, without the batch axis.
        dtype, device: of the result.  float64 is computed in double precision from the same 32-bit uniforms as float32,
            so that the two agree to float32 rounding of those; lower precisions are cast from float32.
        stream: independent family of draws, one of the module's constants.
        nodes: number of nodes that will be asked for; limits how far ahead is drawn.
    """

    def __init__(
        self,
        seed: int,
        sample_ids: Tensor | Sequence[int],
        event: Sequence[int],
        *,
        dtype: torch.dtype,
        device: torch.device | str,
        stream: int = PATH,
        nodes: int = 1,
    ) -> None:
        self._ids = np.asarray(sample_ids, dtype=np.uint64)
        self._event, self._device = tuple(event), torch.device(device)
        self._dtype, self._work_dtype = dtype, np.float64 if dtype == torch.float64 else np.float32
        self._size = math.prod(self._event)
        self._words_used = -(-self._size // 2)  # of each sample: a word is two normals
        self._blocks = -(-self._words_used // _WORDS_PER_BLOCK)
        self._runs, self._index = _runs(self._ids)
        self._bits = np.random.Philox(key=np.array([seed, stream], dtype=np.uint64))
        self._state = self._bits.state
        self._nodes = nodes
        self._ahead: dict[int, tuple[int, Tensor]] = {}  # slot -> (first node, normals of the nodes from there on)

    def normal(self, node: int, slot: int = 0) -> Tensor:
        """(B, *event) standard normals of this node and slot."""
        first, block = self._ahead.get(slot, (0, None))
        if block is None or not first <= node < first + len(block):
            count = max(1, min(self._nodes - node, _CHUNK // max(1, len(self._ids) * self._size)))
            first, block = node, self._draw(range(node, node + count), slot)
            self._ahead[slot] = (first, block)
        return block[node - first]

    def _draw(self, nodes: range, slot: int) -> Tensor:
        words = _joined([self._words(node, slot) for node in nodes]).reshape(len(nodes), len(self._ids), -1)
        normals = torch.from_numpy(_box_muller(words, self._work_dtype))[..., : self._size]
        normals = normals.reshape(len(nodes), len(self._ids), *self._event).to(self._dtype)
        if self._device.type == "cuda":  # asynchronous: the host goes on while the copy runs
            return normals.pin_memory().to(self._device, non_blocking=True)
        return normals.to(self._device)

    def _words(self, node: int, slot: int) -> np.ndarray:
        """(B, words used) raw 64-bit words."""
        words = _joined([self._run(first, count, node, slot) for first, count in self._runs])[:, : self._words_used]
        return words if self._index is None else words[self._index]

    def _run(self, first_id: int, count: int, node: int, slot: int) -> np.ndarray:
        self._state["state"]["counter"][:] = (first_id * self._blocks, node, slot, 0)
        self._bits.state = self._state
        return self._bits.random_raw(count * self._blocks * _WORDS_PER_BLOCK).reshape(count, -1)


class SeededStep:
    """The noise of the step that starts at one node of a grid."""

    __slots__ = ("_node", "_source")

    def __init__(self, source: SeededNormals, node: int) -> None:
        self._source, self._node = source, node

    def normal(self, slot: int = 0) -> Tensor:
        """Standard normals; equal slots give equal numbers, different slots independent ones."""
        return self._source.normal(self._node, slot)

    def increment(self, t0: Number, t1: Number) -> Tensor:
        """The Brownian increment over the step, N(0, |t1 - t0|); slot 0."""
        normal = self.normal()
        return bcast(xp(t0).sqrt(absolute(t1 - t0)), normal) * normal

    def levy(self, t0: Number, t1: Number) -> tuple[Tensor, Tensor]:
        """(W, H): the increment and the space-time Levy area, N(0, |t1 - t0| / 12); slots 0 and LEVY."""
        normal = self.normal(LEVY)
        return self.increment(t0, t1), bcast(xp(t0).sqrt(absolute(t1 - t0) / 12), normal) * normal


def check_seed(seed: object) -> int:
    """``seed`` if it can name noise."""
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**64:
        raise ValueError(f"seed={seed!r}; expected an integer, 0 <= seed < 2**64, as in seed=0.")
    return seed


def sample_ids_of(sample_ids: Tensor | Sequence[int] | None, rows: int) -> Tensor:
    """(B,) names of the rows; default 0..B-1."""
    ids = torch.arange(rows) if sample_ids is None else torch.as_tensor(sample_ids).cpu()
    if ids.shape != (rows,) or ids.is_floating_point() or ids.is_complex() or bool((ids < 0).any()):
        raise ValueError(f"sample_ids has shape {tuple(ids.shape)} and dtype {ids.dtype}; expected {rows} integers >= 0, one a row: range({rows}).")
    return ids


def _runs(ids: np.ndarray) -> tuple[list[tuple[int, int]], np.ndarray | None]:
    """Runs (first id, count) that cover ``ids``, and where each id lies in them (None: they lie there in order).

    Small gaps are drawn through: a wasted block costs less than another call.
    """
    unique, inverse = np.unique(ids, return_inverse=True)
    starts = np.flatnonzero(np.diff(unique, prepend=unique[:1]) > _LARGEST_GAP)
    starts = np.concatenate([[0], starts]).astype(np.int64)
    ends = np.append(starts[1:], len(unique)) - 1
    runs = [(int(unique[a]), int(unique[b] - unique[a]) + 1) for a, b in zip(starts, ends, strict=True)]
    offsets = np.cumsum([0] + [count for _, count in runs[:-1]])
    run_of = np.searchsorted(starts, np.arange(len(unique)), side="right") - 1
    position = offsets[run_of] + (unique - unique[starts[run_of]]).astype(np.int64)
    index = position[inverse]
    return runs, None if np.array_equal(index, np.arange(sum(count for _, count in runs))) else index


def _joined(parts: list[np.ndarray]) -> np.ndarray:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _box_muller(words: np.ndarray, dtype: type[np.floating]) -> np.ndarray:
    """(..., W) 64-bit words -> (..., 2 W) standard normals, element by element, in few passes (numpy's float32 log, cos and
    sin are twice as fast as torch's on one core)."""
    pairs = words.shape[-1]
    bits = np.ascontiguousarray(words).view(np.uint32)  # integers in [0, 2^32), exact in float32 where they are small
    u, v = bits[..., :pairs].astype(dtype), bits[..., pairs:].astype(dtype)
    u += dtype(0.5)
    u *= dtype(2.0**-32)  # in [2^-33, 1]: the logarithm is finite, and the tail reaches 6.8
    np.log(u, out=u)
    u *= dtype(-2)
    radius = np.sqrt(u, out=u)
    v *= dtype(2 * math.pi * 2.0**-32)
    normals = np.empty((*words.shape[:-1], 2 * pairs), dtype)
    for half, wave in ((normals[..., :pairs], np.cos), (normals[..., pairs:], np.sin)):
        wave(v, out=half)
        half *= radius
    return normals
