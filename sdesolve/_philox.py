"""Philox-4x64-10 for many counters at once, in numpy.  [Salmon et al. 2011]

numpy's own generator walks one counter forward; here every row has a counter of its own.  The words are the same.
"""

from __future__ import annotations

import numpy as np

ROUNDS = 10
_LOW, _HALF = np.uint64(0xFFFFFFFF), np.uint64(32)
MULTIPLIERS = np.array([0xD2E7470EE14C6C93, 0xCA5A826395121157], dtype=np.uint64)
WEYL = np.array([0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B], dtype=np.uint64)


def philox(counters: np.ndarray, key: tuple[int, int]) -> np.ndarray:
    """(4, ...) uint64 counters -> (4, ...) uint64 random words; entry i of the counter is its 64-bit digit i."""
    shape = counters.shape
    counters = counters.reshape(4, -1)
    keys = np.array(key, dtype=np.uint64)[:, None]
    multipliers, weyl = MULTIPLIERS[:, None], WEYL[:, None]
    even, odd = counters[[0, 2]], counters[[1, 3]]
    for _ in range(ROUNDS):
        high, low = _product(even, multipliers)
        even, odd = high[::-1] ^ odd ^ keys, low[::-1]
        keys = keys + weyl
    return np.stack([even[0], odd[0], even[1], odd[1]]).reshape(shape)


def _product(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """High and low words of the 128-bit products of 64-bit words."""
    a0, a1, b0, b1 = a & _LOW, a >> _HALF, b & _LOW, b >> _HALF
    middle = a1 * b0 + (a0 * b0 >> _HALF)
    other = (middle & _LOW) + a0 * b1
    return a1 * b1 + (middle >> _HALF) + (other >> _HALF), a * b
