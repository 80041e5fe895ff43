"""A step as one compiled function of tensors, the same for every step of a solve.

What cannot be compiled stays outside: noise is drawn before the step and handed in, times are tensors and not numbers that each step
would be specialised to, and calls are counted from the first step, which runs as it is and shows what noise it asks for.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

from .. import _tally
from .._arrays import Number
from ..methods import Step, StepNoise, Stepper

_VARIANTS = 64  # of one step: more problems, methods or shapes than this in one process run uncompiled

Key = tuple[str, int]
"""A method of :class:`StepNoise`, and its slot."""


class _Asked:
    """The noise of a step, keeping account of what is asked of it."""

    def __init__(self, noise: StepNoise) -> None:
        self._noise = noise
        self.keys: dict[Key, None] = {}

    def normal(self, slot: int = 0) -> Tensor:
        self.keys["normal", slot] = None
        return self._noise.normal(slot)

    def increment(self, t0: Number, t1: Number) -> Tensor:
        self.keys["increment", 0] = None
        return self._noise.increment(t0, t1)

    def levy(self, t0: Number, t1: Number) -> tuple[Tensor, Tensor]:
        self.keys["levy", 0] = None
        return self._noise.levy(t0, t1)


class _Handed:
    """What was asked of a noise, already drawn."""

    def __init__(self, drawn: dict[Key, Any]) -> None:
        self._drawn = drawn

    def normal(self, slot: int = 0) -> Any:
        return self._drawn["normal", slot]

    def increment(self, t0: Number, t1: Number) -> Any:
        return self._drawn["increment", 0]

    def levy(self, t0: Number, t1: Number) -> Any:
        return self._drawn["levy", 0]


class _Seen(NamedTuple):
    """What the first step showed."""

    keys: tuple[Key, ...]
    work: dict[str, int]


class Compiled:
    """A stepper whose ``step`` is compiled; in everything else the stepper itself."""

    def __init__(self, stepper: Stepper) -> None:
        self._stepper = stepper
        self._seen: dict[int, _Seen] = {}  # by the number of things in the carry, which grows in a multistep method's first steps

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stepper, name)

    def step(self, problem: Any, x: Tensor, t0: Number, t1: Number, noise: StepNoise | None, carry: Any) -> Step:
        carried = tree_map_only(float, lambda t: _time(t, x), carry)
        seen = self._seen.get(len(tree_leaves(carry)))
        if seen is None:
            return self._first(problem, x, t0, t1, noise, carry)
        drawn = {(name, slot): _draw(noise, name, slot, t0, t1) for name, slot in seen.keys}
        calls = _tally.calls()
        with torch._dynamo.config.patch(recompile_limit=_VARIANTS):
            step = _compiled()(self._stepper, problem, x, _time(t0, x), _time(t1, x), drawn, carried)
        if _tally.calls() == calls:  # what the compiler left as it was has been counted
            _tally.add(**seen.work, rows=seen.work["calls"] * len(x))
        return step

    def _first(self, problem: Any, x: Tensor, t0: Number, t1: Number, noise: StepNoise | None, carry: Any) -> Step:
        asked, work = _Asked(noise) if noise else None, dict[str, int]()
        with _tally.added_to(work):
            step = self._stepper.step(problem, x, t0, t1, asked, carry)
        del work["rows"]
        self._seen[len(tree_leaves(carry))] = _Seen(tuple(asked.keys) if asked else (), work)
        return step


@cache
def _compiled() -> Callable[..., Step]:
    """:func:`_step`, compiled; made when it is first wanted, as the compiler is slow to import."""
    return torch.compile(_step)


def _step(stepper: Stepper, problem: Any, x: Tensor, t0: Tensor, t1: Tensor, drawn: dict[Key, Any], carry: Any) -> Step:
    return stepper.step(problem, x, t0, t1, _Handed(drawn), carry)


def _draw(noise: Any, name: str, slot: int, t0: Number, t1: Number) -> Any:
    return noise.normal(slot) if name == "normal" else getattr(noise, name)(t0, t1)


def _time(t: Number, x: Tensor) -> Tensor:
    return t if isinstance(t, Tensor) else torch.full((), t, dtype=torch.float64, device=x.device)
