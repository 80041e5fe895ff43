"""Numbers that a method is given: options, checked once, and coefficients, one for all rows or one for each."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .._errors import as_float, as_int


def number(name: str, value: object, least: float, *, most: float = math.inf, above: bool = False) -> float:
    """``value`` if it is a finite number from ``least`` (or, with ``above``, greater) to ``most``; otherwise a ValueError."""
    given = as_float(value)
    if given is None or not math.isfinite(given) or not least <= given <= most or (above and given == least):
        bounds = f"{'>' if above else '>='} {least:g}" + (f" and <= {most:g}" if most < math.inf else "")
        raise ValueError(f"{name}={value!r}; expected a finite number {bounds}, as in {name}={min(least + 1, most):g}.")
    return given


def whole(name: str, value: object, least: int) -> int:
    """``value`` if it is an integer >= ``least``; otherwise a ValueError."""
    integer = as_int(value)
    if integer is None or integer < least:
        raise ValueError(f"{name}={value!r}; expected an integer >= {least}, as in {name}={least + 4}.")
    return integer


def real_tensor(name: str, value: object, expected: str) -> Tensor:
    """``value`` as a tensor of real numbers."""
    try:
        tensor = torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{name} is {value!r:.60}, a {type(value).__name__}; expected a tensor of {expected}.") from error
    if tensor.is_complex():
        raise TypeError(f"{name} is {tensor.dtype}; expected real numbers, a tensor of {expected}: torch.view_as_real(...) makes two channels of a complex one.")
    return tensor.detach()


def per_row(coefficient: float | Tensor, like: Tensor) -> float | Tensor:
    """A coefficient, a float or float64 (B,), ready to multiply a tensor (B, ...) in its dtype."""
    return coefficient.to(like).reshape(-1, *(1,) * (like.dim() - 1)) if isinstance(coefficient, Tensor) and coefficient.dim() else coefficient
