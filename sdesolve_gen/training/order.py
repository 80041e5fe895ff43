"""The order of the data and what draws the noise, as pure functions of (seed, step)."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor


def batch_indices(size: int, batch: int, seed: int, step: int) -> Tensor:
    """Rows of update ``step``: every epoch is a permutation drawn from (seed, epoch), so that any step can be resumed."""
    epoch, position = divmod(step, size // batch)
    return _order(size, seed, epoch)[position * batch : (position + 1) * batch]


@lru_cache(2)
def _order(size: int, seed: int, epoch: int) -> Tensor:
    return torch.randperm(size, generator=generator(seed, epoch, 0))


def generator(seed: int, step: int, stream: int) -> torch.Generator:
    """A fresh generator named by (seed, step, stream)."""
    words = np.random.SeedSequence([seed, step, stream]).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(words[0]))
