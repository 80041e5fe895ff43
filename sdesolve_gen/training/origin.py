"""What a run was made from, told by its content: with other images, or from other first weights, it is another run, whatever the files are called."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..data import Data
from .checkpoints import CheckpointWarning
from .config import TrainConfig

_ANEW = "use another out= (--out), or start anew with resume='never' (--resume never)"


def origin(config: TrainConfig, data: Data, init: str | None) -> dict[str, Any]:
    """What is kept of it in a checkpoint: the data, with a hash of every pixel and of the labels that are told, and that of the first weights."""
    pixels = data.digest(labeled=bool(config.classes))
    return {"data": config.data, "shape": list(data.images.shape), "pixels": pixels, "init": config.init, "weights": init}


def check_same(path: Path, state: Mapping[str, Any], config: TrainConfig, here: Mapping[str, Any]) -> None:
    """Raises ValueError where the checkpoint of ``path`` is of another run; older ones do not know their data's content, and are taken with a warning."""
    there, ours = json.loads(state["config"]), json.loads(json.dumps(config.identity()))
    if "origin" in state:
        made = json.loads(state["origin"])
        there, ours = ({name: value for name, value in fields.items() if name not in ("data", "init")} for fields in (there, ours))
        if (made["shape"], made["pixels"]) != (here["shape"], here["pixels"]):
            raise ValueError(f"{path} was made with other data ({_images(made)} there, {_images(here)} here); {_ANEW}.")
        if made["weights"] != here["weights"]:
            raise ValueError(f"{path} started from other weights (init: {_weights(made)} there, {_weights(here)} here); {_ANEW}.")
    longer = _whole(there.get("steps")) and there["steps"] < config.steps
    if longer and (config.schedule == "constant" or config.decay):
        there["steps"] = config.steps  # as if it had been asked for from the start
    if there != ours:
        differs = ", ".join(f"{k}: {_shown(there.get(k))} there, {_shown(ours.get(k))} here" for k in {**there, **ours} if there.get(k) != ours.get(k))
        own = {name for name in {**there, **ours} if there.get(name) != ours.get(name)}
        further = f"; its rate has fallen along its steps, so to train on is another run, from its weights, as in --out {config.out}-further --set init={config.out}"
        raise ValueError(f"{path} was made with another config ({differs}){further if longer and own == {'steps'} else ''}; {_ANEW}.")
    if "origin" not in state:
        warnings.warn(f"{path} is of a version that kept no hash of its data: that {_images(here)} are the same was not checked.", CheckpointWarning, stacklevel=5)


def _images(made: Mapping[str, Any]) -> str:
    n, *shape = made["shape"]
    return f"{made['data']!r} with {n} images {tuple(shape)}, hash {made['pixels']}"


def _weights(made: Mapping[str, Any]) -> str:
    return f"{made['init']!r}, SHA-256 {made['weights'][:16]}" if made["weights"] else f"{made['init']!r}"


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:197]}..."
