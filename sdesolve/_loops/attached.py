"""Gradients of states that were computed without keeping a graph: what is attached to them instead, and stretches walked again.

Of a walk in stretches of about sqrt(N) steps, the states between the stretches are kept and nothing else.  (Checkpoints as torch has
them keep the nodes of the whole graph, without their states: many small things, around which the allocator cannot use
its memory again, so that it grows with N all the same.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_unflatten

from .. import _tally

_CHANGED = (
    "has changed since: a number in a closure, or a parameter after an optimiser's step. Expected the backward pass before that, or gradient='backprop'."
)

Backward: TypeAlias = Callable[[Sequence[Tensor]], Sequence[Tensor]]
"""From the gradient of each result to that of each input."""
Walk: TypeAlias = Callable[[Tensor, Any], tuple[Tensor, Any, list[Tensor], Any]]
"""From a state and the carry there to those at the end, states to save, and anything else."""


def attach(results: Sequence[Tensor], inputs: Sequence[Tensor], backward: Backward) -> tuple[Tensor, ...]:
    """The ``results`` with the gradient that ``backward`` computes."""
    versions = [value._version for value in inputs]

    def checked(of_results: Sequence[Tensor]) -> Sequence[Tensor]:
        if torch.is_grad_enabled():
            raise RuntimeError("a gradient of this gradient was asked for, as by create_graph=True, and there is none; expected gradient='backprop'.")
        if [value._version for value in inputs] != versions:
            raise RuntimeError(f"a tensor that the solve depends on {_CHANGED}")
        return backward(of_results)

    with torch.enable_grad():
        attached: tuple[Tensor, ...] = _Attached.apply(checked, tuple(results), *inputs)
    return attached


class _Attached(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, backward: Backward, results: tuple[Tensor, ...], *inputs: Tensor) -> tuple[Tensor, ...]:
        ctx.of_inputs = backward
        return tuple(result.clone() for result in results)

    @staticmethod
    def backward(ctx: Any, *of_results: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, *ctx.of_inputs(of_results)


def stretch(walk: Walk, x: Tensor, carry: Any) -> tuple[Tensor, Any, list[Tensor], Any]:
    """``walk(x, carry)``, which is walked a second time for its gradient, with the same random numbers where it draws any."""
    random = _random_state(x.device)
    inputs, with_inputs = _taken_apart((x, carry))

    def again() -> tuple[list[Tensor], tuple[Tensor, Any], list[Tensor], Any]:
        """The starts of a walk with a graph of its own, and what it returns."""
        with torch.enable_grad():
            starts = [state.detach().requires_grad_() for state in inputs]
            end, carried, saved, rest = walk(*with_inputs(starts))
        return starts, (end, carried), saved, rest

    with Outside() as outside:
        starts, last, saved, rest = again()
    ends, with_ends = _taken_apart(last)
    found = [value for value in outside.behind(*ends, *saved) if all(value is not start for start in starts)]
    kept = ends[0].detach()

    def backward(of_ends: Sequence[Tensor]) -> list[Tensor]:
        with _replayed(random, x.device):
            starts, last, saved, _ = again()
        ends = _taken_apart(last)[0]
        if not torch.allclose(ends[0], kept, rtol=1e-2, atol=1e-2 * float(kept.abs().nan_to_num(0.0, 0.0).amax()), equal_nan=True):
            raise RuntimeError(f"the second walk ended elsewhere: something that the solve depends on {_CHANGED}")
        return gradients([*ends, *saved], (*starts, *found), of_ends)

    attached = attach([state.detach() for state in (*ends, *saved)], [*inputs, *found], backward)
    end, carried = with_ends(attached[: len(ends)])
    return end, carried, list(attached[len(ends) :]), rest


def _taken_apart(value: Any) -> tuple[list[Tensor], Callable[[Sequence[Tensor]], Any]]:
    """The real tensors within tuples within ``value``, and what puts others into their places."""
    leaves, form = tree_flatten(value)
    places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor) and leaf.is_floating_point()]

    def with_tensors(tensors: Sequence[Tensor]) -> Any:
        there = dict(zip(places, tensors, strict=True))
        return tree_unflatten([there.get(i, leaf) for i, leaf in enumerate(leaves)], form)

    return [leaves[i] for i in places], with_tensors


class Outside(TorchFunctionMode):
    """Meanwhile, notes the tensors with a gradient that were there before and that something is computed from."""

    def __init__(self) -> None:
        super().__init__()
        with torch.enable_grad():
            newest = torch.zeros((), requires_grad=True).clone().grad_fn
        self._born = newest._sequence_nr()  # type: ignore[union-attr]
        self._used: dict[tuple[Any, int], Tensor] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for value in _tensors(args) + _tensors((kwargs or {}).values()):
            if value.grad_fn is not None and self._is_old(value.grad_fn):
                self._used[value.grad_fn, value.output_nr] = value
        return func(*args, **(kwargs or {}))

    def behind(self, *values: Tensor) -> list[Tensor]:
        """Of the tensors from before, those that any of the values was computed from: leaves, and what was computed itself."""
        edges: list[Any] = list(dict.fromkeys((value.grad_fn, value.output_nr) for value in values if value.grad_fn is not None))
        found = [value for value in values if value.requires_grad and value.grad_fn is None]
        seen = set(edges)
        for node, number in edges:  # grows as it is walked
            if hasattr(node, "variable"):
                found.append(node.variable)
            elif self._is_old(node):
                if (node, number) not in self._used:
                    raise RuntimeError(f"the problem depends on a tensor computed by {node.name()} in a way that cannot be followed; expected gradient='backprop'.")
                found.append(self._used[node, number])
            else:
                new = [edge for edge in node.next_functions if edge[0] is not None and edge not in seen]
                seen |= set(new)
                edges += dict.fromkeys(new)
        return list({id(value): value for value in found}.values())

    def _is_old(self, node: Any) -> bool:
        return not hasattr(node, "variable") and node._sequence_nr() <= self._born


def _tensors(values: Any) -> list[Tensor]:
    """The tensors among some arguments, and in lists among them."""
    flat: list[Tensor] = []
    for value in values:
        if isinstance(value, Tensor):
            flat.append(value)
        elif isinstance(value, list | tuple):
            flat += _tensors(value)
    return flat


def gradients(values: Sequence[Tensor], at: Sequence[Tensor], a: Sequence[Tensor]) -> list[Tensor]:
    """a d(values)/d(at), zero where there is no dependence."""
    known = [i for i, value in enumerate(values) if value.requires_grad]
    if not known:
        return [torch.zeros_like(to) for to in at]
    _tally.pullback()
    outputs, weights = [values[i] for i in known], [a[i] for i in known]
    return list(torch.autograd.grad(outputs, at, weights, retain_graph=True, allow_unused=True, materialize_grads=True))


def _random_state(device: torch.device) -> tuple[Tensor, Tensor | None]:
    return torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None


@contextmanager
def _replayed(state: tuple[Tensor, Tensor | None], device: torch.device) -> Any:
    """torch's own random numbers as they were at ``state``, and afterwards as they are now."""
    now = _random_state(device)
    try:
        _set_random_state(state, device)
        yield
    finally:
        _set_random_state(now, device)


def _set_random_state(state: tuple[Tensor, Tensor | None], device: torch.device) -> None:
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.cuda.set_rng_state(state[1], device)
