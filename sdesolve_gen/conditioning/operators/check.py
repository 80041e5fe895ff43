"""Is an operator what it says it is?  Asked once, before the first network call."""

from __future__ import annotations

import torch
from torch import Tensor

from ..operator import Operator

TOLERANCE = 1e-4
_SEED = 0


def check_operator(operator: Operator, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> float:
    """Try an operator on random states: shapes, linearity, rows apart, and  <A x, y> = <x, A^T y>.

    Two applications of A and one of A^T on three rows.

    Returns:
        |<A x, y> - <x, A^T y>| / (|A x| |y|), the largest of the rows.

    Raises:
        ValueError: what was found wrong; nothing is drawn with such an operator.
    """
    name = type(operator).__name__
    generator = torch.Generator().manual_seed(_SEED)
    a, b = (torch.randn(1, *operator.event, generator=generator).to(device, dtype) for _ in range(2))
    with torch.no_grad():
        ax = _fits(f"{name}.forward", operator.forward(torch.cat([a, b, a + 2 * b])), (3, *operator.measured), a)
        alone = operator.forward(a)
        noise = torch.randn(ax.shape, generator=generator).to(ax)
        size = _length(ax)
        y = ax + noise * (size / _length(noise)).reshape(-1, *(1,) * (ax.dim() - 1))
        back = _fits(f"{name}.adjoint", operator.adjoint(y), (3, *operator.event), a)
    if not bool((size > 0).all()):
        raise ValueError(f"{name} measures nothing: A x = 0 for a random x; expected an operator that sees something.")
    if float(_length(alone - ax[:1])) > 10 * TOLERANCE * float(size[0]):
        raise ValueError(f"{name}.forward gives a state another measurement when others stand beside it; expected each row by itself.")
    if float(_length(ax[2:] - ax[:1] - 2 * ax[1:2])) > 10 * TOLERANCE * float(size[2]):
        raise ValueError(f"{name}.forward is not linear: A(a + 2 b) differs from A a + 2 A b; expected a linear map, without an offset, noise or rounding in it.")
    left, right = (ax * y).flatten(1).sum(1), (torch.cat([a, b, a + 2 * b]) * back).flatten(1).sum(1)
    off = float(((left - right).abs() / (size * _length(y))).max())
    if not off <= TOLERANCE:
        raise ValueError(
            f"{name}.adjoint is not the adjoint of {name}.forward: <A x, y> = {float(left[0]):.6g} and <x, A^T y> = {float(right[0]):.6g} for a random x and y; "
            f"expected equal ones. Without an adjoint of its own it is found by differentiation: as_operator({name}_forward, event)."
        )
    return off


def _fits(what: str, value: object, shape: tuple[int, ...], like: Tensor) -> Tensor:
    got = f"{tuple(value.shape)} {value.dtype} on {value.device}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
    if not isinstance(value, Tensor) or tuple(value.shape) != shape or value.dtype != like.dtype or value.device != like.device:
        raise ValueError(f"{what} returned {got}; expected {shape} {like.dtype} on {like.device}.")
    if not bool(value.isfinite().all()):
        raise ValueError(f"{what} returned values that are not finite for finite ones.")
    return value


def _length(x: Tensor) -> Tensor:
    """Of each row, (B,)."""
    return x.flatten(1).norm(dim=1)
