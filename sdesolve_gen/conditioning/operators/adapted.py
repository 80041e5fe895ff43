"""Other people's operators: what has ``A`` and ``A_adjoint``, or only a forward map, becomes an :class:`Operator`.

A deepinv ``Physics`` is such an object: its ``A`` is the map without the noise that calling it adds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sdesolve.guided import transformed

from ..operator import Operator
from .matrix import Matrix

Map = Callable[[Tensor], Tensor]

_NO_DERIVATIVE = (
    "the operator's function cannot be differentiated, by which its adjoint is found; expected operations of torch alone, or an object with A and A_adjoint."
)


class Adapted(Operator):
    """An operator made of two functions.

    Arguments:
        event: shape of one state.
        forward: (B, *event) -> (B, *measured), linear, each row by itself, that leaves what it is given as it is; its value on zeros says what is measured.
        adjoint: the transposed map, (B, *measured) -> (B, *event); default: found by differentiation, one forward and one backward pass.
        device: where it is tried on zeros.
    """

    def __init__(self, event: Sequence[int], forward: Map, adjoint: Map | None = None, device: torch.device | str = "cpu") -> None:
        self.event, self.differentiated = tuple(event), adjoint is None
        self._forward, self._adjoint = forward, adjoint_of(forward, self.event) if adjoint is None else adjoint
        self.measured = tuple(_tried(forward, torch.zeros(1, *self.event, device=device)).shape[1:])

    def forward(self, x: Tensor) -> Tensor:
        return self._forward(x)

    def adjoint(self, y: Tensor) -> Tensor:
        return self._adjoint(y)


def _tried(forward: Map, x: Tensor) -> Tensor:
    """A x for a single state of zeros, whatever someone else's function makes of it."""
    with torch.no_grad():
        before = x._version
        try:
            measured = forward(x)
        except Exception as error:
            why = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ValueError(f"the operator's function failed on states of shape {tuple(x.shape)} ({why}); expected one for such states.") from error
    if x._version != before:
        raise ValueError("the operator's function changed its x in place, which is the solver's state; expected a new tensor: begin with x = x.clone().")
    if not isinstance(measured, Tensor) or not measured.dim():
        got = "a single number" if isinstance(measured, Tensor) else f"a {type(measured).__name__}"
        raise TypeError(f"the operator's function returned {got}; expected a tensor, (B, ...) for states (B, {', '.join(map(str, x.shape[1:]))}).")
    return measured


def adjoint_of(forward: Map, event: Sequence[int]) -> Map:
    """The adjoint of a linear map by reverse differentiation:  A^T y = d<y, A x>/dx, at any x.

    Arguments:
        forward: (B, *event) -> (B, *measured), made of differentiable operations of torch.
        event: shape of one state.
    """

    def adjoint(y: Tensor) -> Tensor:
        if transformed():
            return torch.func.vjp(forward, y.new_zeros(len(y), *event))[1](y)[0]
        with torch.enable_grad():
            x = y.new_zeros(len(y), *event).requires_grad_()
            try:
                measured = forward(x)
            except RuntimeError as error:  # as of x.numpy()
                raise ValueError(f"{_NO_DERIVATIVE} ({str(error).splitlines()[0]})") from error
            if not measured.requires_grad:
                raise ValueError(_NO_DERIVATIVE)
            (back,) = torch.autograd.grad(measured, x, y, create_graph=y.requires_grad)
        return back

    return adjoint


def as_operator(obj: Any, event: Sequence[int], device: torch.device | str = "cpu") -> Operator:
    """``obj`` as an operator on states of shape ``event``.

    Arguments:
        obj: an :class:`Operator`; a matrix, (m, n) for states of n numbers; any object with ``A`` and, unless it is to be found by differentiation, ``A_adjoint``, as a deepinv
            ``Physics`` has them; or a function x -> A x.
        event: shape of one state, (C, H, W) for images.
        device: where the operator of another package works.

    Raises:
        TypeError: none of these.
        ValueError: an operator on states of another shape.
    """
    event = tuple(event)
    if isinstance(obj, type):
        raise TypeError(f"operator is the class {obj.__name__} and none that is made; expected one, as in {obj.__name__}({event}, ...).")
    if isinstance(obj, Operator):
        missing = [name for name in ("event", "measured") if not hasattr(obj, name)]
        if missing:
            raise TypeError(f"operator {type(obj).__name__} has no {' and no '.join(missing)}; expected the shapes of a state and of a measurement, as in event = {event}.")
        if tuple(obj.event) != event:
            raise ValueError(f"operator {type(obj).__name__} takes states of shape {tuple(obj.event)}; expected {event}: make it with event={event}.")
        return obj
    if isinstance(obj, Tensor | np.ndarray):
        return Matrix(event, obj)
    forward = getattr(obj, "A", obj)
    if not callable(forward):
        raise TypeError(f"operator is a {type(obj).__name__}; expected an Operator, a matrix, an object with A and A_adjoint, or a function x -> A x.")
    return Adapted(event, forward, getattr(obj, "A_adjoint", None), device)
