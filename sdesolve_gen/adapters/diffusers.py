"""diffusers pipelines of a ``UNet2DModel`` and a scheduler: their folders.

    model_index.json              names the two parts, of the library diffusers and of no other
    unet/config.json              the network's options                       (or at the top, as the first pipelines have them)
    unet/diffusion_pytorch_model.safetensors, or .bin where there is none     its weights
    scheduler/scheduler_config.json                                           the process, what the network predicts, what time it is told

Nothing but JSON, safetensors and archives of tensors (:mod:`.._torch_files`) is read, from these paths alone, whatever the files say.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sdesolve.files import read_json

from .._errors import ModelFileError
from .._reading import described
from .._torch_files import fill, read_tensors
from .._versions import versions
from ..card import LARGEST_CARD, check_card, named
from ..networks.diffusers_unet import OPTIONS
from .schedules import read_schedule

INDEX = "model_index.json"
WEIGHTS = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")
FILES = (INDEX, *(f"{folder}{name}" for folder in ("", "unet/", "scheduler/") for name in (*WEIGHTS, "config.json", "scheduler_config.json")))
"""All that is read of a pipeline."""
_RENAMED = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}  # of attention, in the first pipelines


def read_pipeline(folder: Path, name: str, origin: Mapping[str, Any]) -> tuple[nn.Module, dict[str, Any]]:
    """The network and card of a pipeline's folder.

    Arguments:
        folder: with a ``model_index.json``.
        name: for the card; letters that cannot stand in a name become "-".
        origin: where it comes from, for the card.

    Raises:
        ModelFileError: files that are missing, damaged or hostile, or of a pipeline with other parts than a UNet2DModel and a scheduler.
        ImportError: diffusers is not there.
    """
    _check_index(folder)
    unet, scheduler = _place(folder, "unet", "config.json"), _place(folder, "scheduler", "scheduler_config.json")
    config, schedule_config = _json(unet / "config.json"), _json(scheduler / "scheduler_config.json")
    card = _card(unet / "config.json", config, scheduler / "scheduler_config.json", schedule_config)
    card |= {"name": named(name), "versions": versions(), "training": {"imported": dict(origin)}}
    check_card(card, str(unet / "config.json"))
    network = described(unet / "config.json", card)
    weights = next((unet / file for file in WEIGHTS if (unet / file).is_file()), None)
    if weights is None:
        raise ModelFileError(f"{unet} has none of {', '.join(WEIGHTS)}; weights in several files, or of half precision alone, are not read.")
    fill(weights, network, _as_ours(read_tensors(weights)))
    return network, card


def _check_index(folder: Path) -> None:
    index = _json(folder / INDEX)
    if not isinstance(index.get("_class_name", ""), str):
        raise ModelFileError(f"{folder / INDEX} is of the pipeline {str(index['_class_name'])[:80]}; expected one of diffusers: code of a model's own is not run.")
    parts = {name: value for name, value in index.items() if not name.startswith("_")}
    for name, value in parts.items():
        if not isinstance(value, list) or len(value) != 2 or value[0] not in ("diffusers", "sdesolve_gen.adapters.scheduler", None):
            raise ModelFileError(f"{folder / INDEX}: the part {name[:40]!r} is {str(value)[:80]}; expected a class of diffusers: code of a model's own is not run.")
    wanted = parts.get("unet", [None, None])[1]
    others = [name for name, value in parts.items() if name not in ("unet", "scheduler") and value[1] is not None]
    if wanted != "UNet2DModel" or "scheduler" not in parts or others:
        raise ModelFileError(f"{folder / INDEX} is a pipeline of {', '.join(parts) or 'nothing'}; expected a UNet2DModel as unet, a scheduler, and no more.")


def _place(folder: Path, part: str, file: str) -> Path:
    """Where a part's files are: in its own folder, or at the top."""
    return folder / part if (folder / part / file).is_file() else folder


def _json(path: Path) -> dict[str, Any]:
    try:
        found = read_json(path, LARGEST_CARD, "diffusers")
    except ValueError as error:
        raise ModelFileError(str(error)) from error
    if not isinstance(found, dict):
        raise ModelFileError(f"{path} holds a JSON {type(found).__name__}; expected an object.")
    if "auto_map" in found:
        raise ModelFileError(f"{path} names code of its own ({str(found['auto_map'])[:80]}), which is not run; expected a model of diffusers' own classes.")
    return found


def _card(unet: Path, config: Mapping[str, Any], scheduler: Path, schedule_config: Mapping[str, Any]) -> dict[str, Any]:
    if config.get("_class_name", "UNet2DModel") != "UNet2DModel":
        raise ModelFileError(f"{unet} is of {str(config['_class_name'])[:80]}; expected UNet2DModel.")
    try:
        schedule = read_schedule(schedule_config)
    except ValueError as error:
        raise ModelFileError(f"{scheduler}: {error}") from error
    options = {name: value for name, value in config.items() if name in OPTIONS}
    if config.get("class_embed_type") is not None:
        raise ModelFileError(f"{unet}: class_embed_type={str(config['class_embed_type'])[:40]!r}; expected none: labels are embedded by a table.")
    size, channels = config.get("sample_size"), config.get("in_channels", 3)
    time = schedule.levels if options.get("time_embedding_type") == "learned" else schedule.time
    card = {
        "process": schedule.process,
        "process_options": schedule.process_options,
        "predicts": schedule.predicts,
        "time": time,
        "network": "DiffusersUNet2D",
        "network_options": {**options, "time_scale": schedule.time_scale},
        "shape": [channels, *(size if isinstance(size, list) and len(size) == 2 else (size, size))],
        "data_range": list(schedule.data_range),
        "levels": 256,
    }
    return {**card, "classes": options["num_class_embeds"]} if options.get("num_class_embeds") is not None else card


def _as_ours(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names of the wrapped network, weights in float32."""
    renamed = {re.sub(r"\.(query|key|value|proj_attn)\.(?=weight$|bias$)", lambda m: f".{_RENAMED[m[1]]}.", name): tensor for name, tensor in tensors.items()}
    return {f"unet.{name}": tensor.to(torch.float32) if tensor.is_floating_point() else tensor for name, tensor in renamed.items()}

