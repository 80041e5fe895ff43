"""What a derivative by the state needs of autograd, which a caller may have turned off around it, or within the function."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

P = ParamSpec("P")
R = TypeVar("R")


def outside_inference(function: Callable[P, R]) -> Callable[P, R]:
    """``function`` without a graph of its own, and outside inference mode, in which none can be had; tensors that were made in it are copied."""

    @functools.wraps(function)
    def outside(*args: P.args, **options: P.kwargs) -> R:
        with torch.inference_mode(False), torch.no_grad():
            return function(*map(usable, args), **{name: usable(value) for name, value in options.items()})

    return outside


def usable(value: Any) -> Any:
    """A copy of a tensor that was made in inference mode; anything else as it is."""
    return value.clone() if isinstance(value, Tensor) and value.is_inference() else value


@contextmanager
def graph() -> Iterator[None]:
    """Autograd on, and a word where the function keeps tensors that it cannot use."""
    try:
        with torch.enable_grad():
            yield
    except RuntimeError as error:
        if "Inference tensor" not in str(error):
            raise
        raise ValueError(
            "the function works with tensors that were made in torch.inference_mode, as weights that were loaded there, of which autograd can make no "
            "derivative; expected a model that is made outside of it."
        ) from error


def check_constant(f: Callable[[Tensor], Tensor], x: Tensor, value: Tensor) -> None:
    """That f does not depend on x, where its ``value`` has no graph that leads there: it is asked elsewhere, at the price of one call.

    Raises:
        ValueError: it does, and its derivative was cut off.
    """
    with torch.no_grad():
        other = f(1.5 * x.detach() + 1)
    if bool(((other != value) & ~(other.isnan() & value.isnan())).any()):
        raise ValueError(
            "the function depends on x, and autograd was cut off within it, by torch.no_grad, torch.inference_mode or detach(), so that its derivative by x "
            "would be taken for 0; expected one without, or with torch.inference_mode(False), torch.enable_grad(): around what it computes."
        )
