"""What a checkpoint must hold for a run to go on from it, looked at once: a file may be what its hash says and still be no state of this run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_ADAM = {"step", "exp_avg", "exp_avg_sq"}


def check_state(path: Path, state: Mapping[str, Any], like: Mapping[str, Any], parameters: Sequence[Tensor], steps: int) -> None:
    """Raises ValueError, which says what is wrong, where there is something else than counts up to ``steps`` and finite tensors as ``like`` has them.

    Arguments:
        path, state: of the checkpoint.
        like: the state of a run that begins, ``network``, ``average`` and ``scaler`` of which are compared.
        parameters: what the optimiser's state is of.
    """
    wrong = _counts(state, steps) or _tensors(state, like) or _optimiser(state.get("optimiser"), parameters) or _scaler(state, like["scaler"])
    if wrong:
        raise ValueError(f"{path} is no checkpoint of this run: {wrong}; remove it, and the same command goes on from the one before, or start anew (--resume never).")


def _counts(state: Mapping[str, Any], steps: int) -> str | None:
    most = steps
    for name in ("step", "skipped", "in_a_row"):  # each is at most the one before
        value = state.get(name)
        if type(value) is not int or not 0 <= value <= most:
            return f"its {name} is {_shown(value)}; expected a whole number from 0 to {most}"
        most = value
    return None


def _tensors(state: Mapping[str, Any], like: Mapping[str, Any]) -> str | None:
    for part in ("network", "average"):
        found, wanted = state.get(part), like[part]
        if not isinstance(found, Mapping) or found.keys() != wanted.keys():
            names = sorted(map(str, wanted.keys() ^ found.keys())) if isinstance(found, Mapping) else []
            return f"its {part} has other weights than this run's ({', '.join(names[:3])[:200] or _shown(found)})"
        for name, tensor in wanted.items():
            if wrong := _tensor(found[name], tensor.shape, tensor.dtype):
                return f"{part}.{name} {wrong}"
    return None


def _optimiser(found: Any, parameters: Sequence[Tensor]) -> str | None:
    entries = found.get("state") if isinstance(found, Mapping) else None
    if not isinstance(entries, Mapping) or not entries.keys() <= set(range(len(parameters))):
        return f"its optimiser is not one of {len(parameters)} weights"
    for i, entry in entries.items():
        if not isinstance(entry, Mapping) or entry.keys() != _ADAM:
            return f"its optimiser does not have {', '.join(sorted(_ADAM))} of weight {i}"
        for name, value in entry.items():
            if wrong := _tensor(value, torch.Size() if name == "step" else parameters[i].shape, torch.float32):
                return f"{name} of weight {i} in its optimiser {wrong}"
    return None


def _scaler(state: Mapping[str, Any], wanted: Mapping[str, Any]) -> str | None:
    found = state.get("scaler", {})  # which older checkpoints lack, as does float32
    numbers = isinstance(found, Mapping) and all(type(value) in (int, float) and math.isfinite(value) and value >= 0 for value in found.values())
    return None if numbers and found.keys() == wanted.keys() else f"its scaler is {_shown(found)}; expected finite numbers for {', '.join(wanted) or 'nothing'}"


def _tensor(found: Any, shape: torch.Size, dtype: torch.dtype) -> str | None:
    """What is wrong with it, as an end of a sentence."""
    if not isinstance(found, Tensor):
        return f"is {_shown(found)}; expected a tensor"
    if found.layout is not torch.strided or (found.shape, found.dtype) != (shape, dtype):
        return f"is {tuple(found.shape)} of {found.dtype}; expected {tuple(shape)} of {dtype}"
    return None if torch.isfinite(found).all() else "is not finite"


def _shown(value: object) -> str:
    text = repr(value) if value is None or isinstance(value, int | float | str) else f"a {type(value).__name__}"
    return text if len(text) <= 80 else f"{text[:77]}..."
