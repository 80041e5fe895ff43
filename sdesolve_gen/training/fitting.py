"""What a config asks for and cannot have: told in one line, before there is a folder, and where it can be before the data are read."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .._errors import unknown
from .._memory import check_room
from ..data import Data
from ..models import load
from ..networks import NETWORKS, classes_option, told_classes, widened
from ..networks.execution import Block
from .config import TrainConfig

_OF_THE_DATA = ("channels", "image_size", "resolution", "classes", "label_dim")  # options of a network that a run does not choose by ``network``
_OF_A_BATCH = 4  # arrays of its shape at least: images, noise, state and output


def check_out(out: str) -> None:
    """Raises ValueError where the folder of a run is a file, or would lie in one."""
    folder = Path(out)
    there = next(path for path in (folder, *folder.parents, Path("/")) if path.exists())
    if not there.is_dir():
        raise ValueError(f"out={out!r}: {there} is a file; expected the name of a folder, as in out='runs/mine' (--out runs/mine).")


def check_network(config: TrainConfig) -> None:
    """Raises ValueError for a network that is not known, options that are not its own, and classes where it knows none."""
    name, options = config.network_name, config.network
    if name not in NETWORKS:
        raise ValueError(unknown("network_name", name, NETWORKS))
    known = inspect.signature(NETWORKS[name]).parameters
    told = classes_option(NETWORKS[name])
    if config.classes and told is None:
        able = told_classes()
        cure = f"expected network_name={able[0]!r} (--set network_name={able[0]}) or another of {', '.join(able)}, or classes=0 (--set classes=0)"
        raise ValueError(f"classes={config.classes}: the network network_name={name!r} knows no classes; {cure}.")
    if told in options and options[told] != config.classes:
        raise ValueError(f"network.{told}={options[told]!r}: expected a field of its own, classes={options[told]} (--set classes={options[told]}).")
    named = {option: parameter for option, parameter in known.items() if parameter.kind is not inspect.Parameter.VAR_KEYWORD}
    for option, value in options.items() if len(named) == len(known) else ():
        if option not in named:
            raise ValueError(f"network.{option}={value!r}: {unknown(f'option of {name}', option, named)} network={{}} (--set network={{}}) takes its defaults.")
    missing = [option for option, parameter in named.items() if parameter.default is inspect.Parameter.empty and option not in {*options, *_OF_THE_DATA}]
    if missing:
        raise ValueError(f"network={options!r} lacks {', '.join(missing)} of {name}; expected a value for each, as in network.{missing[0]}=... (--set network.{missing[0]}=...).")


def check_data(config: TrainConfig, data: Data, processes: int) -> None:
    """Raises ValueError where the config does not fit the data or the number of processes."""
    c, n = config, len(data.images)
    if n < c.batch:
        raise ValueError(f"{c.data} has {n} images, fewer than batch={c.batch}; expected batch <= {n}.")
    check_room(
        4 * _OF_A_BATCH * c.batch * data.images[0].numel() // c.accumulate, f"{_OF_A_BATCH} arrays of batch={c.batch} images {tuple(data.images.shape[1:])}",
        "a smaller batch or size, or more parts, as in accumulate=4",
    )  # fmt: skip
    if c.batch % (c.accumulate * processes):
        raise ValueError(f"batch={c.batch} cannot be divided among {processes} processes in {c.accumulate} parts; expected a multiple of {c.accumulate * processes}.")
    if c.classes and data.labels is None:
        raise ValueError(f"classes={c.classes}, but {c.data} has no labels; expected a column 'label', folders of classes, or classes=0.")
    if c.classes and data.labels is not None and not 0 <= int(data.labels.min()) <= int(data.labels.max()) < c.classes:
        low, high = int(data.labels.min()), int(data.labels.max())
        raise ValueError(f"classes={c.classes}, but the labels of {c.data} go from {low} to {high}; expected classes={high + 1}, labels from 0 on.")


def options_of(config: TrainConfig, shape: Sequence[int]) -> dict[str, Any]:
    """Of the network, for images of a shape: what it asks for and the config does not say is the data's."""
    make = NETWORKS[config.network_name]
    asked = inspect.signature(make).parameters
    given = {name: value for name, value in {"channels": shape[0], "image_size": shape[-1], "resolution": shape[-1]}.items() if name in asked}
    told = {name: config.classes for name in [classes_option(make)] if name and config.classes}
    return {**given, **told, **config.network}


def make_network(config: TrainConfig, shape: Sequence[int]) -> nn.Module:
    """A network with fresh weights, tried on an image without memory, so that options that do not fit the data are told at once."""
    make, options = NETWORKS[config.network_name], options_of(config, shape)
    labels = (torch.empty(1, dtype=torch.long, device="meta"),) if config.classes else ()
    try:
        with torch.device("meta"):
            make(**options)(torch.empty(1, *shape), torch.empty(1), *labels)
    except ImportError:
        raise
    except Exception as error:  # a network of another package raises what it likes where options do not fit one another
        raise ValueError(f"network={config.network} does not fit images {tuple(shape)}: {str(error).splitlines()[0] if str(error) else type(error).__name__}") from error
    network = make(**options)
    if config.checkpoint and not any(isinstance(module, Block) for module in network.modules()):
        raise ValueError(f"checkpoint=True: the network network_name={config.network_name!r} has no blocks to compute twice; expected checkpoint=False (--set checkpoint=false).")
    return network


def start_from(network: nn.Module, config: TrainConfig, shape: Sequence[int]) -> str | None:
    """Take over the weights of a trained model; the SHA-256 of its file, where its card says it.  Raises ValueError where its network is another, and says in what."""
    model = load(config.init)
    try:
        network.load_state_dict(widened(model.network.state_dict(), network.state_dict()))
        return model.card.get("sha256")
    except RuntimeError as error:
        there, here = _described(model.card["network"], model.card["network_options"]), _described(config.network_name, options_of(config, shape))
        names = ["network_name"] if there["network_name"] != here["network_name"] else [name for name in {**there, **here} if there.get(name) != here.get(name)]
        differs = ", ".join(f"{name}: {there.get(name)!r} there, {here.get(name)!r} here" for name in names)
        own = {"network_name": "network_name", "classes": "classes", "label_dim": "classes"}
        fields = {name: own.get(name, f"network.{name}") for name in names if name not in ("channels", "image_size", "resolution")}
        same = ", ".join(f"{field}={there.get(name)!r} (--set {field}={there.get(name)})" for name, field in fields.items())
        cure = same or f"data of its shape, {tuple(model.card['shape'])}"
        raise ValueError(f"init={config.init!r} has another network than this run ({differs}); expected {cure}, or init='' for fresh weights.") from error


def _described(name: str, options: dict[str, Any]) -> dict[str, Any]:
    """A network by its name and all of its options, those by default too; sequences as lists."""
    defaults = {key: p.default for key, p in inspect.signature(NETWORKS[name]).parameters.items() if p.default is not p.empty} if name in NETWORKS else {}
    return {"network_name": name, **{key: list(value) if isinstance(value, tuple) else value for key, value in {**defaults, **options}.items()}}
