"""Small array helpers that everything else stands on.  Nothing here knows what an SDE is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import ModuleType
from typing import Any, TypeAlias

import torch
from torch import Tensor

Number: TypeAlias = float | Tensor
"""A time or a coefficient: a host float (fixed grids: no device, no synchronisation) or a float64 tensor (per-sample control)."""


def xp(value: Number) -> ModuleType:
    """The module whose ``exp, log1p, sqrt, ...`` fit ``value``, so that each formula is written once for floats and tensors."""
    return torch if isinstance(value, Tensor) else math


def absolute(value: Number) -> Number:
    """|value|."""
    return value.abs() if isinstance(value, Tensor) else abs(value)


def softplus(value: Number) -> Number:
    """log(1 + e^value), without overflow."""
    if isinstance(value, Tensor):
        return torch.logaddexp(value, torch.zeros_like(value))
    return max(value, 0.0) + math.log1p(math.exp(-abs(value)))


def bcast(coefficient: Number, x: Tensor) -> Number:
    """``coefficient`` ready to multiply the state ``x`` of shape (B, *event): a float stays; (B,) becomes (B, 1, ..., 1) in x's dtype."""
    if not isinstance(coefficient, Tensor) or coefficient.dim() == 0:
        return coefficient
    return coefficient.to(x).reshape(-1, *(1,) * (x.dim() - 1))


def broadcasts(shape: Sequence[int], to: Sequence[int]) -> bool:
    """Whether a tensor of ``shape`` multiplies one of shape ``to`` without changing it."""
    return len(shape) <= len(to) and all(a in (1, b) for a, b in zip(reversed(shape), reversed(to), strict=False))


def plus(x: Tensor, coefficient: Number, y: Tensor) -> Tensor:
    """``x + coefficient y`` for states of one shape, in two passes over them and one new tensor.

    Product and sum are rounded apart: torch's fused ``add(x, y, alpha=c)`` rounds some elements once and others twice,
    depending on where in the batch they lie.
    """
    return (bcast(coefficient, y) * y).add_(x)


def expand_time(t: Tensor, x: Tensor) -> Tensor:
    """A time () or (B,) shaped to multiply a state x of shape (B, *event), row by row.

    For the drift and diffusion of an equation: ``lambda x, t: -x * torch.cos(sd.expand_time(t, x))`` is right whether a solver
    gives one time for all rows or one for each.
    """
    return t.reshape(-1, *(1,) * (x.dim() - 1)) if t.dim() else t


def time_tensor(t: Number, x: Tensor) -> Tensor:
    """``t`` as a user's function sees it: a tensor on x's device in x's dtype, shape () or (B,), made without a device read."""
    if isinstance(t, Tensor):
        return t.to(x, copy=True)  # the loop's own times are not for a function to write into
    return torch.full((), t, dtype=x.dtype, device=x.device)


def finite_numbers(name: str, values: Any) -> Tensor:
    """``values`` as finite numbers in float64."""
    try:
        numbers = torch.as_tensor(values, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise ValueError(f"{name}={values!r}; expected numbers.") from None
    if not math.isfinite(float(numbers.detach().abs().sum())):
        raise ValueError(f"{name} has entries that are not finite.")
    return numbers


def per_row(t: Number, x: Tensor, dtype: torch.dtype) -> Tensor:
    """``t`` as a network sees it: a tensor of shape (B,) on x's device."""
    if isinstance(t, Tensor):
        return t.to(device=x.device, dtype=dtype, copy=True).expand(len(x))
    return torch.full((len(x),), t, dtype=dtype, device=x.device)


def version(x: Tensor) -> int:
    """A number that changes when ``x`` is written into; always 0 where no account is kept, for inference tensors and in a compiled step."""
    return 0 if torch.compiler.is_compiling() or x.is_inference() else x._version


def row_mean(x: Tensor) -> Tensor:
    """Mean over the event of each row, (B, *event) -> (B,), with the same bits whatever the number of rows."""
    flat = x.reshape(len(x), -1)
    if len(flat) == 1:  # torch splits a lone large reduction between threads, and so rounds it differently
        return flat.expand(2, -1).contiguous().mean(1)[:1]
    return flat.mean(1)
