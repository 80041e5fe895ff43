"""Configs from presets, YAML files and overrides.

A preset is a data set's network and optimiser, a method's loss and process, or both: ``cifar10``, ``ve``, ``cifar10-ve``; or the name of a
published model of continuous time, as in ``ncsnpp_cifar10_ve`` (:mod:`sdesolve_gen.presets`).  Later wins: defaults < preset < YAML file < flags <
``--set``.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from sdesolve.files import atomic

from .._errors import unknown
from ..presets import preset as published
from ..presets import presets as published_names
from .config import TrainConfig

_VE = {"process": "ve", "process_options": {"sigma_min": 0.02, "sigma_max": 100.0}}  # the published 0.01 and 50 are for images in [0, 1], half as wide
_COUNTED = {"network.fourier_scale": 0.01}  # the network is told numbers up to 999
_DDPM = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0).tolist()  # Ho et al. 2020, section 4

METHODS: dict[str, dict[str, Any]] = {
    # Song et al. 2021: continuous denoising score matching, weight sigma^2
    "vp": {"process": "vp", "predicts": "epsilon", "weight": "sigma2", "times": "uniform"},
    "subvp": {"process": "subvp", "predicts": "epsilon", "weight": "sigma2", "times": "uniform"},
    "ve": {**_VE, "predicts": "epsilon", "weight": "sigma2", "times": "uniform"},
    # Song, Durkan et al. 2021: maximum likelihood, importance-sampled times
    "likelihood": {"process": "subvp", "predicts": "epsilon", "weight": "g2", "times": "importance"},
    # Ho et al. 2020; Song & Ermon 2019: levels that the network counts
    "ddpm": {"process": "tabulated_vp", "process_options": {"alphas_cumprod": _DDPM}, "predicts": "epsilon", "weight": "sigma2", "times": "levels", "time": 1000, **_COUNTED},
    "smld": {**_VE, "predicts": "epsilon", "weight": "sigma2", "times": "levels", "time": 1000, **_COUNTED},
    # Karras et al. 2022, table 1; "output" is its lambda for what its network predicts
    "edm": {"process": "edm", "predicts": "edm", "weight": "output", "times": "log_normal", "log_sigma_mean": -1.2, "log_sigma_std": 1.2},
    # Lipman et al. 2023; Liu et al. 2023: straight lines
    "flow": {"process": "rectified_flow", "predicts": "flow", "time": "continuous", "weight": "flow", "times": "uniform"},
}
DATA_SETS: dict[str, dict[str, Any]] = {
    "mnist": {"steps": 12_000, "sample_every": 1000},  # the embedded model's first run
    "cifar10": {  # optimiser and average of Song et al. 2021, appendix H
        "network": {"width": 128, "multipliers": [1, 2, 2, 2], "blocks": 4, "patch": 1, "fourier_scale": 1.0},
        **{"steps": 1_300_000, "batch": 128, "learning_rate": 2e-4, "warmup": 5000, "schedule": "constant", "ema": 0.9999, "ema_warmup": True},
        **{"flip": True, "save_every": 5000, "sample_every": 5000},
    },
}
PRESETS: dict[str, dict[str, Any]] = {
    **METHODS,
    **DATA_SETS,
    **{f"{data}-{method}": {**DATA_SETS[data], **METHODS[method]} for data in DATA_SETS for method in METHODS},
}

_SIZES = {"1024": {"batch": 8, "steps": 2_400_000}, "256": {"batch": 64, "steps": 2_400_000}}  # of the published runs, by the side of the images


def names() -> list[str]:
    """Every preset."""
    return [*PRESETS, *(name for name in published_names() if published(name)["network"] in _CONTINUOUS)]


_CONTINUOUS = ("NCSNpp", "DDPM")


def _preset(name: str) -> dict[str, Any]:
    """Fields of a config; a published model's are those of its card and the optimiser of Song et al. 2021, appendix H."""
    if name in PRESETS:
        return PRESETS[name]
    if name not in names():
        raise ValueError(unknown("preset", name, names()))
    card = published(name)
    same = {field: card[field] for field in ("process", "process_options", "predicts", "time", "data_range")}
    side = card["shape"][-1]
    ema = 0.999 if card["process"] == "ve" and side < 1024 else 0.9999
    cifar = {**DATA_SETS["cifar10"], **_SIZES.get(str(side), {}), "flip": side == 32, "ema": ema}
    return {**cifar, **same, "network_name": card["network"], "network": card["network_options"], "weight": "sigma2", "times": "uniform"}


_KNOWN = {f.name: f for f in dataclasses.fields(TrainConfig)}
_NEEDED = tuple(name for name, f in _KNOWN.items() if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING)


def configured(preset: str | None, file: str | Path | None, flags: Mapping[str, Any], sets: Mapping[str, Any]) -> TrainConfig:
    """The config of a preset, a YAML file, flags that were given, and overrides, of which ``network.width`` is an entry of the field ``network``.

    Raises:
        FileNotFoundError: no such file; ImportError: PyYAML is missing.
        TypeError, ValueError: an unknown preset or field, a field without a value, a bad value.
    """
    from_file = read_config(file) if file else {}
    named = from_file.pop("preset", None)
    preset = named if preset is None else preset
    values: dict[str, Any] = {}
    for name, value in {**(_preset(preset) if preset else {}), **from_file, **flags}.items():
        _put(values, name, value)
    if sets.get("network_name", values.get("network_name", TrainConfig.network_name)) != TrainConfig.network_name:
        values.setdefault("network", {})  # the options by default are of the network by default
    for name, value in sets.items():
        field, dot, _ = name.partition(".")
        if field not in _KNOWN or (dot and not _is_dict(field)):
            raise ValueError(f"--set {name}: expected a field of TrainConfig: {', '.join(sorted(_KNOWN))}, or an entry such as network.width.")
        if field in flags:
            raise ValueError(f"--set {name}: expected it once; --{field} is given too.")
        _put(values, name, value)
    missing = [name for name in _NEEDED if name not in values]
    if missing:
        raise ValueError(f"{', '.join(missing)}: expected a value, as in {' '.join(f'--{name} ...' for name in missing)}, or in the file of --config.")
    return TrainConfig(**values)


def _put(values: dict[str, Any], name: str, value: Any) -> None:
    """Set a field, or one entry of a field that is a dict."""
    field, dot, entry = name.partition(".")
    values[field] = {**values.get(field, _default(field)), entry: value} if dot else value


def _default(field: str) -> dict[str, Any]:
    """Of a field that is a dict."""
    make = _KNOWN[field].default_factory
    return {} if make is dataclasses.MISSING else make()


def _is_dict(field: str) -> bool:
    return str(_KNOWN[field].type).startswith("dict")


def read_config(path: str | Path) -> dict[str, Any]:
    """The fields that a YAML file sets, and ``preset`` where it names one; raises FileNotFoundError, ImportError or ValueError."""
    yaml = _yaml()
    if not Path(path).is_file():
        raise FileNotFoundError(f"--config {path} is not a file; expected YAML with fields of TrainConfig, as in config.yaml of a run.")
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None) or str(error).splitlines()[0]
        where = f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""
        raise ValueError(f"--config {path} is not YAML: {problem}{where}; expected a field a line, as in learning_rate: 2.0e-4") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} holds a {type(values).__name__}; expected fields of TrainConfig, as in learning_rate: 2.0e-4")
    for name in values:
        if name not in _KNOWN and name != "preset":
            raise ValueError(f"{path}: {unknown('field', name, [*_KNOWN, 'preset'])}")
    return {name: value if name in _KNOWN and _KNOWN[name].type == "str" else _numbers(value) for name, value in values.items()}


def _numbers(value: Any) -> Any:
    """YAML 1.1 takes 2e-4 for a text: here it is a number."""
    if isinstance(value, dict):
        return {key: _numbers(entry) for key, entry in value.items()}
    return float(value) if isinstance(value, str) and re.fullmatch(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+", value) else value


def write_config(path: Path, config: TrainConfig) -> None:
    """Every field as YAML, which ``--config`` reads; whole or not at all."""
    with atomic(path) as temporary:
        temporary.write_text(_yaml().safe_dump(dataclasses.asdict(config), sort_keys=False), encoding="utf-8")


def _yaml() -> Any:
    try:
        import yaml
    except ImportError as error:
        raise ImportError("this needs the package PyYAML: pip install 'sdesolve[gen]'") from error
    return yaml
