"""Checkpoints of k-diffusion's training: the weights of an average over it, into a network that is handed over.

    model_ema, model    state dicts of the inner network
    config              {"model": {"input_channels", "input_size", "sigma_data", "sigma_min", "sigma_max", ...}}, in the file or as JSON beside it

The inner network is called F(x / sqrt(sigma^2 + sigma_data^2), sigma) and takes logarithms itself.  [Karras et al. 2022, eq. 7]
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

import sdesolve as sd
from sdesolve.files import read_json

from .._errors import ModelFileError
from .._torch_files import contents, fill, owned, read_checkpoint, tensors_in
from ..card import LARGEST_CARD, named
from ..models import Model
from ..wrapping import wrap


def load(path: str | Path, network: nn.Module, config: str | Path | None = None, *, average: bool = True) -> Model:
    """The model of a checkpoint.

    Arguments:
        path: a ``.pth`` file of k-diffusion's ``train.py``.
        network: its inner network, built by you, as ``k_diffusion.config.make_model(config)`` does; its weights are replaced.
        config: the JSON file that it was trained by; default: the config in the checkpoint.
        average: the averaged weights, ``model_ema``, rather than the last ones.

    Raises:
        ModelFileError: a file that is missing, damaged or hostile, that lacks those weights or such a config, or whose weights are of another network.
    """
    path = Path(path)
    found = read_checkpoint(path)
    part = "model_ema" if average else "model"
    if not isinstance(found, Mapping) or part not in found:
        raise ModelFileError(f"{path} holds {contents(found)}; expected {part!r}, as k-diffusion's train.py writes it.")
    options = _model_config(path, found.get("config") if config is None else _json(Path(config)))
    fill(path, network, owned(tensors_in(path, found[part])))
    try:
        process = sd.EDM(options["sigma_min"], options["sigma_max"])
        return wrap(
            network, process=process, predicts="edm", time="sigma", shape=(options["input_channels"], *options["input_size"]),
            sigma_data=options["sigma_data"], name=named(path.stem),
        )  # fmt: skip
    except (ValueError, TypeError) as error:
        raise ModelFileError(f"{path}: its config makes no model ({error}).") from error


def _json(path: Path) -> Any:
    try:
        return read_json(path, LARGEST_CARD, "k-diffusion's configs have")
    except ValueError as error:
        raise ModelFileError(str(error)) from error


def _model_config(path: Path, config: Any) -> dict[str, Any]:
    """The part of a config that says what is needed, with k-diffusion's defaults."""
    model = config.get("model") if isinstance(config, Mapping) else None
    if not isinstance(model, Mapping) or "input_channels" not in model or not isinstance(model.get("input_size"), list | tuple):
        raise ModelFileError(f"{path}: no config with a model of input_channels and input_size; expected that of the training: load(path, network, config='config.json').")
    if model.get("has_variance"):
        raise ModelFileError(f"{path} is of a network that predicts a variance besides; expected has_variance false.")
    numbers = {"sigma_data": 1.0, "sigma_min": 1e-2, "sigma_max": 80.0}
    return {"input_channels": model["input_channels"], "input_size": list(model["input_size"]), **{name: model.get(name, default) for name, default in numbers.items()}}
