"""Is an operator what it says it is?  Asked once, before the first network call."""

from __future__ import annotations

import torch
from torch import Tensor

from .operator import SVD, Operator

_MISMATCH = 1e-3  # relative, of what ought to be equal but for rounding; of <A x, y> and <x, A' y> in standard deviations of either, where a wrong adjoint is at 1
_INEXACT = 0.02  # the same, of what is solved to a tolerance


def check_operator(operator: Operator, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> None:
    """Try an operator on random states: shapes, what it is given left as it is, rows apart, linearity,  <A x, y> = <x, A^T y>,  and what it has in closed form.

    Three applications of A and two of A^T, and three and four more where a class has its own ``pinv``, ``gram_solve`` or ``svd``.  Of an operator with
    ``linear = False`` shapes and rows alone are asked.

    Raises:
        ValueError: what was found wrong; nothing is drawn with such an operator.
    """
    name, measured = name_of(operator), measured_shape(operator)
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(1, *operator.event, generator=generator).to(device, dtype) for _ in range(2))
    with torch.no_grad():
        ax = _fits(f"{name}.forward", applied(operator, "forward", torch.cat([a, b, a + 2 * b])), (3, *measured), a, operator.linear)
        alone = applied(operator, "forward", a)
        back = _fits(f"{name}.adjoint", applied(operator, "adjoint", ax), (3, *operator.event), a) if operator.linear else ax
    size = _length(ax)
    if operator.linear and not bool((size > 0).all()):
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
            f"expected equal ones{_remedy(operator)}."
        )
    check_adjoint(operator, a)
    with torch.no_grad():
        _check_closed_forms(operator, a, alone)


def _fits(what: str, value: object, shape: tuple[int, ...], like: Tensor, linear: bool = True) -> Tensor:
    got = f"{tuple(value.shape)} {value.dtype} on {value.device}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
    if not isinstance(value, Tensor) or tuple(value.shape) != shape or value.dtype != like.dtype or value.device != like.device:
        raise ValueError(f"{what} returned {got}; expected {shape} {like.dtype} on {like.device}.")
    if linear and not bool(value.isfinite().all()):
        raise ValueError(f"{what} returned values that are not finite for finite ones.")
    return value


def _length(x: Tensor) -> Tensor:
    """Of each row, (B,)."""
    return x.flatten(1).norm(dim=1)


def _check_closed_forms(operator: Operator, x: Tensor, ax: Tensor) -> None:
    """``pinv``, ``gram_solve`` and ``svd`` against forward and adjoint, where a class has its own."""
    name, own = name_of(operator), {hook for hook in ("pinv", "gram_solve", "svd") if getattr(type(operator), hook) is not getattr(Operator, hook)}
    w = torch.randn(1, *operator.measured, generator=torch.Generator().manual_seed(1)).to(x)
    if own & {"pinv", "gram_solve"}:
        seen = operator.pinv(ax)
        _agree(f"{name}.{'pinv' if 'pinv' in own else 'gram_solve'}", "A A^+ A x and A x", operator.forward(seen), ax)
        _agree(f"{name}.{'pinv' if 'pinv' in own else 'gram_solve'}", "|A^+ A x|^2 and <x, A^+ A x>", (seen * seen).sum(), (x * seen).sum())
    if not own & {"gram_solve", "svd"}:
        return
    back = operator.adjoint(w)
    if "gram_solve" in own:
        gram, scale = operator.forward(back), 0.7
        shift = float(gram.norm() / w.norm())
        solved = operator.adjoint(operator.gram_solve(shift * w + scale * gram, shift, scale))
        _agree(f"{name}.gram_solve(y, shift, scale)", "A' gram_solve((shift I + scale A A') w) and A' w", solved, back)
    svd = operator.svd() if "svd" in own else None
    if svd is not None:
        values = _values(name, svd).to(x)
        z = torch.randn(1, len(values), generator=torch.Generator().manual_seed(2)).to(x)
        _agree(f"{name}.svd", "U' A x and S V' x", svd.observe(ax), values * svd.analyse(x))
        _agree(f"{name}.svd", "V S U' y and A' y", svd.synthesise(values * svd.observe(w)), back)
        _agree(f"{name}.svd", "V' V z and z", svd.analyse(svd.synthesise(z)), z)


def _values(name: str, svd: object) -> Tensor:
    """The singular values of what ``svd`` returned, all of which are divided by."""
    if not isinstance(svd, SVD) or not isinstance(svd.values, Tensor) or svd.values.dim() != 1:
        got = f"values that are {tuple(svd.values.shape) if isinstance(svd.values, Tensor) else type(svd.values).__name__}" if isinstance(svd, SVD) else f"a {type(svd).__name__}"
        raise ValueError(
            f"{name}.svd returned {got}; expected None or sdesolve_gen.conditioning.SVD(values, analyse, synthesise, observe) with values (k,) and three functions: "
            "V^T x, V z and U^T y."
        )
    least = svd.values.max() * torch.finfo(torch.float32).eps if len(svd.values) else 0.0
    low = int((~(svd.values > least)).sum())
    if low or not len(svd.values):
        raise ValueError(
            f"{name}.svd has {low} of {len(svd.values)} singular values that are not above 0 and rounding; expected those alone, with their columns of U and V: "
            "keep = values > 1e-4 * values.max()."
        )
    return svd.values


def _agree(what: str, of: str, found: Tensor, expected: Tensor) -> None:
    if found.shape != expected.shape or not float((found - expected).norm()) <= _INEXACT * float(expected.norm()):
        shapes = f"in shape, {tuple(found.shape)} and {tuple(expected.shape)}"
        got = f"by {float((found - expected).norm() / expected.norm()):.3g} of the latter" if found.shape == expected.shape else shapes
        raise ValueError(f"{what} does not fit forward and adjoint: {of} differ {got}, for random ones; expected equal ones, or no such function of its own.")


def _remedy(operator: Operator) -> str:
    """Where an adjoint is to be had from."""
    if operator.differentiated:
        return ". It was found by differentiation, which is blind to rounding and detach(): an object with A and A_adjoint has its own"
    return ". Without one of its own it is found by differentiation: as_operator(operator.forward, event), or as_operator(obj.A, event)"


def measured_shape(operator: Operator) -> tuple[int, ...]:
    """``operator.measured``, of one dimension at least."""
    if not tuple(operator.measured):
        raise ValueError(f"{name_of(operator)} measures one number of each row, measured = (); expected a dimension for it, measured = (1,): return y[:, None].")
    return tuple(operator.measured)


def applied(operator: Operator, name: str, value: Tensor) -> Tensor:
    """``operator.forward`` or ``operator.adjoint``, by name, of a value; raises ValueError where it fails, or the value itself is changed."""
    before = value.clone()
    try:
        result: Tensor = getattr(operator, name)(value)
    except (ValueError, NotImplementedError):  # which say what is expected
        raise
    except Exception as error:
        why, remedy = str(error).splitlines()[0] if str(error) else type(error).__name__, _remedy(operator) if name == "adjoint" else ""
        raise ValueError(f"{name_of(operator)}.{name} failed on {tuple(value.shape)} {value.dtype} ({why}); expected one for any number of rows{remedy}.") from error
    if not torch.equal(value, before):
        given = "x" if name == "forward" else "y"
        raise ValueError(f"{name_of(operator)}.{name} changed its {given} in place, which the solver goes on with; expected a new tensor: begin with {given} = {given}.clone().")
    return result


def check_adjoint(operator: Operator, like: Tensor) -> None:
    """That  <A x, y> = <x, A' y>  for one x and one y, drawn once and for all, in the dtype and on the device of ``like``.

    Raises:
        ValueError: it is not, a shape is not what the operator says, or what is given is changed in place.
    """
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(1, *shape, generator=generator, dtype=torch.float64).to(like) for shape in (operator.event, operator.measured))
    with torch.no_grad():
        seen, back = applied(operator, "forward", x), applied(operator, "adjoint", y)
    for name, value, shape in (("forward", seen, y.shape), ("adjoint", back, x.shape)):
        if value.shape != shape:
            raise ValueError(f"{name_of(operator)}.{name} returned {tuple(value.shape)}; expected {tuple(shape)}, as its event and measured say.")
    seen, back = seen.double(), back.double()
    left, right = float((seen * y).sum()), float((x * back).sum())
    scale = max(float(seen.norm()), float(back.norm()))  # the standard deviations of the two over draws of y and x
    if not abs(left - right) <= _MISMATCH * scale:
        raise ValueError(
            f"the adjoint of {name_of(operator)} is not the adjoint of its forward: <A x, y> = {left:.6g} and <x, A' y> = {right:.6g} for one x and one y, "
            f"which must agree; expected the transpose of a linear forward, or linear = False and method='dps', which needs forward alone{_remedy(operator)}."
        )


def name_of(operator: Operator) -> str:
    """What an operator is called in messages."""
    return type(operator).__name__
