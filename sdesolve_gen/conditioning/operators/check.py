"""Is an operator what it says it is?  Asked once, before the first network call."""

from __future__ import annotations

import torch
from torch import Tensor

from ..measurement import applied, check_adjoint, measured_shape
from ..operator import Operator

_MISMATCH = 1e-3  # relative, of what ought to be equal but for rounding


def check_operator(operator: Operator, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> None:
    """Try an operator on random states: shapes, what it is given left as it is, rows apart, linearity, and  <A x, y> = <x, A^T y>.

    Three applications of A and one of A^T; linearity and adjoint are not asked of an operator with ``linear = False``.

    Raises:
        ValueError: what was found wrong; nothing is drawn with such an operator.
    """
    name, measured = type(operator).__name__, measured_shape(operator)
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(1, *operator.event, generator=generator).to(device, dtype) for _ in range(2))
    with torch.no_grad():
        ax = _fits(f"{name}.forward", applied(operator, "forward", torch.cat([a, b, a + 2 * b])), (3, *measured), a)
        alone = applied(operator, "forward", a)
        back = _fits(f"{name}.adjoint", applied(operator, "adjoint", ax), (3, *operator.event), a) if operator.linear else ax
    size = _length(ax)
    if not bool((size > 0).all()):
        raise ValueError(f"{name} measures nothing: A x = 0 for a random x; expected an operator that sees something.")
    if float(_length(alone - ax[:1])) > _MISMATCH * float(size[0]):
        raise ValueError(f"{name}.forward gives a state another measurement when others stand beside it; expected each row by itself.")
    if not operator.linear:
        return
    if float(_length(ax[2:] - ax[:1] - 2 * ax[1:2])) > _MISMATCH * float(size[2]):
        raise ValueError(
            f"{name}.forward is not linear: A(a + 2 b) differs from A a + 2 A b; expected a linear map, without an offset, noise or rounding in it, or a subclass of Operator "
            "with linear = False, whose forward alone method='dps' needs."
        )
    left, right = (ax * ax).flatten(1).sum(1), (torch.cat([a, b, a + 2 * b]) * back).flatten(1).sum(1)
    if not bool(((left - right).abs() <= _MISMATCH * left).all()):
        raise ValueError(
            f"{name}.adjoint is not the adjoint of {name}.forward: |A x|^2 = {float(left[0]):.6g} and <x, A^T A x> = {float(right[0]):.6g} for a random x; "
            f"expected equal ones. Without an adjoint of its own it is found by differentiation: as_operator({name}_forward, event)."
        )
    check_adjoint(operator, a)


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
