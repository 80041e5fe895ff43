"""A network with wider residual blocks that begins as the function that a trained one is.  [Chen, Goodfellow & Shlens 2016, section 2.3]"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

_BEFORE = ("conv1.weight", "conv1.bias", "norm2.weight", "norm2.bias")


def widened(state: Mapping[str, Tensor], wider: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights ``state`` in the shapes of ``wider``, whose residual blocks have a multiple of the features within.

    Each feature is there several times, next to one another, so that the groups of the normalisation have the statistics they had, and what
    reads it is shared among its copies in uneven parts, so that training drives them apart.
    """
    return {name: _widened(name, value, wider[name]) if name in wider else value for name, value in state.items()}


def _widened(name: str, value: Tensor, wider: Tensor) -> Tensor:
    if value.shape == wider.shape:
        return value
    if name.endswith(_BEFORE) and len(wider) % len(value) == 0:
        return value.repeat_interleave(len(wider) // len(value), 0)
    if name.endswith(("modulation.weight", "modulation.bias")) and len(wider) % len(value) == 0:
        return torch.cat([half.repeat_interleave(len(wider) // len(value), 0) for half in value.chunk(2)])
    if name.endswith("conv2.weight") and wider.shape[1] % value.shape[1] == 0:
        copies = wider.shape[1] // value.shape[1]
        parts = torch.rand(value.shape[0], value.shape[1], copies, generator=torch.Generator().manual_seed(0)) + 0.5
        parts /= parts.sum(-1, keepdim=True)
        return value.repeat_interleave(copies, 1) * parts.flatten(1)[..., None, None]
    return value  # load_state_dict tells what does not fit
