"""Seeded noise as a pure function of (seed, sample id, time node, slot).

Sample i sees the same numbers in a batch of 1, 7 or 1000, in any order, on any number of processes, because no generator
state is carried from one draw to the next: every block of numbers is addressed.  The address is the 256-bit counter of
the counter-based generator Philox-4x64-10 (Salmon et al. 2011):

    counter = (block within the event + id * blocks per event,  node // nodes per block,  slot,  0),      key = (seed, stream)

Ids that follow one another are therefore contiguous in the counter and come out of one call.  Each 64-bit word gives one
pair of 32-bit uniforms u, v and by Box & Muller (1958) two standard normals  sqrt(-2 ln u) (cos 2 pi v, sin 2 pi v).

On a GPU large states have the same numbers made there, in the state's place and to rounding (:mod:`._philox_device`).

A block is four words, eight normals.  Small events leave room in it, which the next nodes take: two nodes of three or four
numbers share a block, four of two, and eight of one number, of which the even ones have the cosines and the odd ones the sines.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ._arrays import Number, absolute, bcast, xp
from ._errors import as_int
from ._philox import philox
from ._philox_device import normals as device_normals

_BLOCK = 4  # 64-bit words that Philox gives for one counter value
_SIGNED = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
_LARGEST_GAP = 8  # ids skipped within one call
_LONG = 16  # words of a sample from which on a loop over half of its numbers is a fast one
_THERE = 1 << 20  # normals from which on a draw is one of the device's own: fewer take longer than the host's and their way there
_CHUNK_THERE = 1 << 22  # normals drawn ahead at once on the device
_CHUNK = 1 << 16  # normals drawn ahead at once, or a block of each sample where that is more: small states do not pay Python's overhead at every node

PRIOR, PATH, BRIDGE, PROBE, DATA, TREE, PROMISED, CHAIN, PARTICLES = range(9)
"""Streams: the second half of the key, so that a prior draw and a path with the same seed are independent."""

LEVY, BETWEEN = 1 << 32, 1 << 33
"""Slots of a step's space-time Levy area and of its bridge, beyond any number of corrector steps."""

PART, MOVE = 1 << 34, 1 << 48
"""Between the slots of one corrector step, and between those of a step that draws several times, beyond those and one another."""

PASS, CONSTRAINT = 1 << 52, 1 << 62
"""Between the slots of a step that is walked several times; and where those of a constraint's normals begin, which have the shape of the state."""


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
        self._width = -(-self._size // 2)  # words of one node, or of two that share one
        self._sharers = 2 if self._size == 1 else 1
        self._groups = max(1, _BLOCK // max(1, self._width))  # of so many words in a block
        self._nodes_per_block = self._groups * self._sharers
        self._blocks = -(-self._width // _BLOCK)
        if (int(self._ids.max(initial=0)) + 1) * self._blocks >= 2**64:
            largest = 2**64 // self._blocks - 2
            raise ValueError(f"sample_ids goes up to {int(self._ids.max())}; expected at most {largest} for a sample of {self._size} elements, as in range({len(self._ids)}).")
        self._key = (seed, stream)
        self._bits = np.random.Philox(key=np.array(self._key, dtype=np.uint64))
        self._state = self._bits.state
        self._nodes = nodes
        self._ahead: dict[int, tuple[int, Tensor]] = {}  # slot -> (first node, normals of the nodes from there on)

    def normal(self, node: int, slot: int = 0) -> Tensor:
        """(B, *event) standard normals of this node and slot."""
        first, ahead = self._ahead.get(slot, (0, None))
        if ahead is None or not first <= node < first + len(ahead):
            first, ahead = self._ahead[slot] = self._draw(node, slot)
        return ahead[node - first]

    def normal_at(self, nodes: np.ndarray, slot: int = 0) -> Tensor:
        """(..., B, *event): row i's numbers of its own node, for (..., B) nodes; what ``normal`` gives for a node that all rows share."""
        if self._pays(nodes.size * self._size):
            return self._there(self._sent(torch.from_numpy(nodes.astype(np.int64))), slot)
        blocks = self._first_digits
        counters = np.zeros((4, *nodes.shape, self._blocks), dtype=np.uint64)
        counters[0], counters[1], counters[2] = blocks, nodes[..., None] // self._nodes_per_block, slot
        words = np.stack(list(philox(counters, self._key)), -1).reshape(*nodes.shape, -1)
        normals = _box_muller(_pick(self._grouped(words), nodes // self._sharers % self._groups), self._work_dtype)
        return self._tensor(normals if self._sharers == 1 else _pick(normals[..., None], nodes % 2), nodes.shape)

    def keep(self, which: Tensor) -> SeededNormals:
        """The same numbers for the rows where the mask ``which`` holds."""
        kept = copy.copy(self)
        kept._ids = self._ids[which.cpu().numpy()]
        for name in ("_addresses", "_first_digits", "_first_digits_there"):
            kept.__dict__.pop(name, None)
        kept._ahead = {slot: (first, block[:, which]) for slot, (first, block) in self._ahead.items()}
        return kept

    @cached_property
    def _addresses(self) -> tuple[list[tuple[int, int]], np.ndarray | None]:
        return _runs(self._ids)

    def _draw(self, node: int, slot: int) -> tuple[int, Tensor]:
        """Normals (nodes, B, *event) that hold those of ``node``, and the first of their nodes: whole blocks, or where one node is all
        that will be asked for, its words alone."""
        there = min(max(1, self._nodes - node), max(1, _CHUNK_THERE // max(1, len(self._ids) * self._size)))
        if self._pays(there * len(self._ids) * self._size):
            return node, self._there(torch.arange(node, node + there, device=self._device)[:, None], slot)
        start, rows = node // self._nodes_per_block, len(self._ids)
        count = min(-(-self._nodes // self._nodes_per_block) - start, _CHUNK // max(1, rows * self._nodes_per_block * self._size))
        words = _joined([self._words(start + i, slot)[None] for i in range(max(1, count))])
        groups = self._grouped(words).swapaxes(1, 2)  # (counters, groups, B, width)
        skipped = node // self._sharers % self._groups if self._nodes == 1 else 0
        groups = groups[:, skipped : skipped + 1] if self._nodes == 1 else groups
        normals = _box_muller(groups, self._work_dtype, apart=self._sharers == 2)
        nodes = math.prod(groups.shape[:2]) * self._sharers
        return (start * self._groups + skipped) * self._sharers, self._tensor(normals, (nodes, rows))

    def _pays(self, numbers: int) -> bool:
        """Whether so many numbers are best drawn where the state is."""
        return self._device.type == "cuda" and self._width >= _LONG and numbers >= _THERE

    @cached_property
    def _first_digits(self) -> np.ndarray:
        """(B, blocks) of the counters."""
        return self._ids[:, None] * np.uint64(self._blocks) + np.arange(1, self._blocks + 1, dtype=np.uint64)  # numpy counts up before it draws

    @cached_property
    def _first_digits_there(self) -> Tensor:
        return self._sent(torch.from_numpy(self._first_digits.view(np.int64)))

    def _there(self, nodes: Tensor, slot: int) -> Tensor:
        """(..., B, *event) for nodes (..., B) or (..., 1), drawn on the device."""
        work = torch.float64 if self._dtype == torch.float64 else torch.float32
        drawn = device_normals(self._first_digits_there, nodes, slot, self._key, self._size, work)
        return drawn.to(self._dtype).reshape(*drawn.shape[:-1], *self._event)

    def _grouped(self, words: np.ndarray) -> np.ndarray:
        """(..., B, words of the blocks) -> (..., B, groups, width)."""
        return words[..., : self._groups * self._width].reshape(*words.shape[:-1], self._groups, self._width)

    def _tensor(self, normals: np.ndarray, rows: tuple[int, ...]) -> Tensor:
        """Normals as (*rows, *event), in the dtype and on the device asked for."""
        width = 2 * self._width // self._sharers  # one more than the size where that is odd
        drawn = torch.from_numpy(normals).reshape(*rows, width)[..., : self._size].reshape(*rows, *self._event).to(self._dtype)
        return self._sent(drawn)

    def _sent(self, x: Tensor) -> Tensor:
        """x on the device, without waiting: the host goes on while the copy runs."""
        return x.pin_memory().to(self._device, non_blocking=True) if self._device.type == "cuda" else x.to(self._device)

    def _words(self, counter: int, slot: int) -> np.ndarray:
        """(B, words) of 64 bits: each row's blocks."""
        runs, index = self._addresses
        words = _joined([self._run(first, count, counter, slot) for first, count in runs])
        return words if index is None else words[index]

    def _run(self, first_id: int, count: int, counter: int, slot: int) -> np.ndarray:
        self._state["state"]["counter"][:] = (first_id * self._blocks, counter, slot, 0)
        self._bits.state = self._state
        return self._bits.random_raw(count * self._blocks * _BLOCK).reshape(count, -1)


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
        """The increment W and the space-time Levy area H ~ N(0, |t1 - t0|/12), independent:  int (W_u - W_t0) |du| = |dt| (W/2 + H)."""
        normal = self.normal(LEVY)
        return self.increment(t0, t1), bcast(xp(t0).sqrt(absolute(t1 - t0) / 12), normal) * normal

    def bridge(self, t0: float, t1: float, times: Sequence[float]) -> list[Tensor]:
        """W(t) - theta W(t1), theta = (t - t0)/(t1 - t0), at ``times`` in order: the Brownian bridge, which vanishes at both ends."""
        values, last, value = [], t0, torch.zeros(())
        for k, t in enumerate(times):
            left, right = abs(t - last), abs(t1 - t)
            value = right / (left + right) * value + math.sqrt(left * right / (left + right)) * self.normal(BETWEEN + k)
            values.append(value)
            last = t
        return values


class ConstrainedStep:
    """The noise of a step, and beside it that of its constraint: the slots from CONSTRAINT on, whose numbers have the state's shape and not the noise's."""

    __slots__ = ("_noise", "_own")

    def __init__(self, noise: Any, own: SeededStep) -> None:
        self._noise, self._own = noise, own

    def normal(self, slot: int = 0) -> Tensor:
        """Standard normals."""
        drawn: Tensor = (self._noise if slot < CONSTRAINT else self._own).normal(slot)
        return drawn

    def increment(self, t0: Number, t1: Number) -> Tensor:
        """The step's."""
        w: Tensor = self._noise.increment(t0, t1)
        return w

    def levy(self, t0: Number, t1: Number) -> tuple[Tensor, Tensor]:
        """The step's."""
        w, h = self._noise.levy(t0, t1)
        return w, h

    def bridge(self, t0: float, t1: float, times: Sequence[float]) -> list[Tensor]:
        """The step's."""
        values: list[Tensor] = self._noise.bridge(t0, t1, times)
        return values


def check_seed(seed: object) -> int:
    """``seed`` if it can name noise."""
    whole = as_int(seed)
    if whole is None or not 0 <= whole < 2**64:
        raise ValueError(f"seed={seed!r}; expected an integer, 0 <= seed < 2**64, as in seed=0.")
    return whole


def sample_ids_of(sample_ids: Tensor | Sequence[int] | None, rows: int) -> Tensor:
    """(B,) names of the rows; default 0..B-1."""
    try:
        ids = torch.arange(rows) if sample_ids is None else torch.as_tensor(sample_ids).cpu()
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise ValueError(f"sample_ids={sample_ids!r}; expected {rows} integers, 0 <= id < 2**63, one a row: range({rows}).") from None
    if ids.shape == (rows,) and ids.dtype in _SIGNED and bool((ids < 0).any()):
        raise ValueError(f"sample_ids[{int(ids.argmin())}] is {int(ids.min())}; expected {rows} integers >= 0, one a row: range({rows}).")
    if ids.shape != (rows,) or ids.dtype not in _SIGNED:
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


def _pick(parts: np.ndarray, which: np.ndarray) -> np.ndarray:
    """(..., P, W) -> (..., W): the part whose number stands in ``which``, (...)."""
    return np.take_along_axis(parts, which[..., None, None], -2)[..., 0, :]


def _both(pairs: np.ndarray, axis: int) -> list[np.ndarray]:
    """The two parts along an ``axis`` < 0 of length 2."""
    return [pairs[(..., i, *(slice(None),) * (-1 - axis))] for i in (0, 1)]


def _box_muller(words: np.ndarray, dtype: type[np.floating], apart: bool = False) -> np.ndarray:
    """(..., B, W) 64-bit words -> standard normals (..., B, 2 W), or (..., 2, B, W) with cosines and sines ``apart``.

    Element by element, in few passes (numpy's float32 log, cos and sin are twice as fast as torch's on one core).  The two of a
    word lie side by side in short rows, whose halves would be loops too short to be fast, and in the two halves of long ones.
    """
    *rows, width = words.shape
    pairs, axis = ((width, 2), -1) if width < _LONG else ((2, width), -2)
    bits = words.view(np.uint32).reshape(*rows, *pairs)
    u, v = (half.astype(dtype, order="C") for half in _both(bits, axis))  # integers in [0, 2^32), exact in float32 where they are small
    u += dtype(0.5)
    u *= dtype(2.0**-32)  # in [2^-33, 1]: the logarithm is finite, and the tail reaches 6.8
    np.log(u, out=u)
    u *= dtype(-2)
    radius = np.sqrt(u, out=u)
    v *= dtype(2 * math.pi * 2.0**-32)
    normals = np.empty((*rows[:-1], 2, rows[-1], width) if apart else (*rows, *pairs), dtype)
    for half, wave in zip(_both(normals, -3 if apart else axis), (np.cos, np.sin), strict=True):
        np.multiply(wave(v), radius, out=half)
    return normals if apart else normals.reshape(*rows, 2 * width)
