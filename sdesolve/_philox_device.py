"""The normals of :mod:`.noise` computed where the state is, in torch: the words of Philox-4x64-10, and from them Box and Muller's pairs.

torch has no unsigned 64-bit arithmetic.  int64 wraps around in the same way, so that sums, low products and xor are those of unsigned words; a shift to the right carries the
sign along, which a mask takes off.  Nothing is read back, and some 400 kernels make any number of normals: few for a large state, many for a small one.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ._philox import MULTIPLIERS, ROUNDS, WEYL

_LOW = 0xFFFFFFFF


def normals(blocks: Tensor, nodes: Tensor, slot: int, key: tuple[int, int], size: int, dtype: torch.dtype) -> Tensor:
    """(..., B, size) standard normals; the numbers that :class:`.SeededNormals` draws on the host, to rounding.

    Arguments:
        blocks: (B, blocks of a sample), first digits of the counters.
        nodes: (..., B) or (..., 1), second digits.
        slot: third digit.
        size: of a sample, at least 31: the layout is that of long rows, all cosines before all sines.
        dtype: float32 or float64.
    """
    words = torch.stack(philox(blocks, nodes[..., None], slot, key), -1)
    width = -(-size // 2)
    words = words.reshape(*words.shape[:-2], -1)[..., :width]
    u, v = torch.stack([words & _LOW, _shifted(words)], -1).reshape(*words.shape[:-1], 2, width).to(dtype).unbind(-2)
    radius = u.add_(0.5).mul_(2.0**-32).log_().mul_(-2).sqrt_()
    v = v.mul_(2 * math.pi * 2.0**-32)
    return torch.cat([v.cos() * radius, v.sin() * radius], -1)[..., :size]


def philox(first: Tensor, second: Tensor, third: int, key: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The four words of the counters (first, second, third, 0), as int64 of the shape to which the digits broadcast."""
    a, b, c, d = first, second, torch.tensor(third), torch.tensor(0)  # what is the same for all stays on the host as long as it is
    keys = list(key)
    for _ in range(ROUNDS):
        (high_a, low_a), (high_c, low_c) = _product(a, int(MULTIPLIERS[0])), _product(c, int(MULTIPLIERS[1]))
        a, b, c, d = high_c ^ b ^ _signed(keys[0]), low_c, high_a ^ d ^ _signed(keys[1]), low_a
        keys = [(k + int(w)) % 2**64 for k, w in zip(keys, WEYL, strict=True)]
    a, b, c, d = torch.broadcast_tensors(a, b, c, d)
    return a, b, c, d


def _product(x: Tensor, by: int) -> tuple[Tensor, Tensor]:
    """High and low words of the 128-bit products of 64-bit words with a number."""
    low, high = by & _LOW, by >> 32
    x0, x1 = x & _LOW, _shifted(x)
    middle = torch.add(_shifted(x0 * low), x1, alpha=low)
    other = torch.add(middle & _LOW, x0, alpha=high)
    return torch.add(_shifted(middle), x1, alpha=high) + _shifted(other), x * _signed(by)


def _shifted(x: Tensor) -> Tensor:
    """The upper half of 64-bit words."""
    return (x >> 32) & _LOW


def _signed(word: int) -> int:
    return word - 2**64 if word >= 2**63 else word
