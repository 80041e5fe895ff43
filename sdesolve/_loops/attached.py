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
from torch.autograd.function import once_differentiable

from .. import _tally

Backward: TypeAlias = Callable[[Sequence[Tensor]], Sequence[Tensor]]
"""From the gradient of each result to that of each input."""
Walk: TypeAlias = Callable[[Tensor, Any], tuple[Tensor, Any, list[Tensor], Any]]
"""From a state and the carry there to those at the end, states to save, and anything else."""


def attach(results: Sequence[Tensor], inputs: Sequence[Tensor], backward: Backward) -> tuple[Tensor, ...]:
    """The ``results`` with the gradient that ``backward`` computes."""
    with torch.enable_grad():
        attached: tuple[Tensor, ...] = _Attached.apply(backward, tuple(results), *inputs)
    return attached


class _Attached(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, backward: Backward, results: tuple[Tensor, ...], *inputs: Tensor) -> tuple[Tensor, ...]:
        ctx.of_inputs = backward
        return tuple(result.clone() for result in results)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *of_results: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, *ctx.of_inputs(of_results)


def stretch(walk: Walk, x: Tensor, carry: Any) -> tuple[Tensor, Any, list[Tensor], Any]:
    """``walk(x, carry)``, which is walked a second time for its gradient, with the same random numbers where it draws any."""
    random = _random_state(x.device)

    def again() -> tuple[list[Tensor], list[Tensor], Any]:
        """Starts and ends of a walk with a graph of its own, and the rest of what it returns."""
        with torch.enable_grad():
            starts = [state.detach().requires_grad_() for state in (x, carry) if state is not None]
            end, carried, saved, rest = walk(starts[0], starts[1] if len(starts) > 1 else None)
        return starts, [end, *([] if carry is None else [carried]), *saved], rest

    starts, ends, rest = again()
    leaves = [leaf for leaf in leaves_of(*ends) if all(leaf is not start for start in starts)]

    def backward(of_ends: Sequence[Tensor]) -> list[Tensor]:
        with _replayed(random, x.device):
            starts, ends, _ = again()
        return gradients(ends, (*starts, *leaves), of_ends)

    inputs = [state for state in (x, carry) if state is not None]
    end, *others = attach([state.detach() for state in ends], [*inputs, *leaves], backward)
    return end, None if carry is None else others.pop(0), others, rest


def gradients(values: Sequence[Tensor], at: Sequence[Tensor], a: Sequence[Tensor]) -> list[Tensor]:
    """a d(values)/d(at), zero where there is no dependence."""
    _tally.pullback()
    known = [i for i, value in enumerate(values) if value.requires_grad]
    if not known:
        return [torch.zeros_like(to) for to in at]
    outputs, weights = [values[i] for i in known], [a[i] for i in known]
    return list(torch.autograd.grad(outputs, at, weights, retain_graph=True, allow_unused=True, materialize_grads=True))


def leaves_of(*values: Tensor) -> list[Tensor]:
    """The leaves that require a gradient and that any of the values was computed from."""
    found = [value for value in values if value.requires_grad and value.grad_fn is None]
    nodes = list(dict.fromkeys(value.grad_fn for value in values if value.grad_fn is not None))
    seen = set(nodes)
    for node in nodes:  # grows as it is walked
        new = {parent for parent, _ in node.next_functions if parent is not None} - seen
        seen |= new
        nodes += new
    return found + [node.variable for node in nodes if hasattr(node, "variable")]


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
