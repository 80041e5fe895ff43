"""Pickles as EDM's training writes them: objects that carry source code, which here says how it would be noticed."""

from __future__ import annotations

import pickle
import sys
import types
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from sdesolve_gen.networks import EDMUNet


@contextmanager
def their_modules() -> Iterator[Any]:
    """``torch_utils.persistence`` and ``dnnlib.util`` as far as a pickle names them."""
    persistence, util = types.ModuleType("torch_utils.persistence"), types.ModuleType("dnnlib.util")

    def _reconstruct_persistent_obj(meta: Any) -> None:
        raise AssertionError("called")

    _reconstruct_persistent_obj.__module__, _reconstruct_persistent_obj.__qualname__ = "torch_utils.persistence", "_reconstruct_persistent_obj"
    persistence._reconstruct_persistent_obj = _reconstruct_persistent_obj  # type: ignore[attr-defined]
    util.EasyDict = type("EasyDict", (dict,), {"__module__": "dnnlib.util"})  # type: ignore[attr-defined]
    names = {"torch_utils": types.ModuleType("torch_utils"), "torch_utils.persistence": persistence, "dnnlib": types.ModuleType("dnnlib"), "dnnlib.util": util}
    before = {name: sys.modules.get(name) for name in names}
    sys.modules.update(names)
    try:
        yield persistence, util
    finally:
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module


class Persistent:
    """An object as ``persistence`` saves it."""

    def __init__(self, name: str, state: Any, source: str = "") -> None:
        self.meta = {"type": "class", "version": 6, "module_src": source, "class_name": name, "state": state}

    def __reduce__(self) -> Any:
        return sys.modules["torch_utils.persistence"]._reconstruct_persistent_obj, (self.meta,)


def persistent(module: nn.Module, name: str, source: str, **state: Any) -> Any:
    """A module, and those within it, so; containers stay what they are."""
    inner = {key: None if child is None else persistent(child, type(child).__name__, source) for key, child in module._modules.items()}
    if isinstance(module, nn.ModuleDict):
        container = nn.ModuleDict()
        container.__dict__["_modules"] = inner
        return container
    kept = {key: value for key, value in module.__dict__.items() if key.startswith("_") or isinstance(value, bool)}
    return Persistent(name, {**kept, "_modules": OrderedDict(inner), "skip_scale": np.sqrt(0.5), **state}, source)


def pickled(network: EDMUNet, precond: str, source: str = "", levels: torch.Tensor | None = None, protocol: int = 4, **arguments: Any) -> bytes:
    """A network within its preconditioning, as snapshots have it."""
    outer = nn.Module()
    outer.model = network
    if levels is not None:
        outer.register_buffer("u", levels)
    network_name = arguments.get("model_type", "SongUNet")
    state = {"_init_args": (), "_init_kwargs": arguments, "img_resolution": network.resolution, "sigma_max": float("inf"), "beta_d": np.float64(19.9)}
    with their_modules() as (_, util):
        ema = persistent(outer, precond, source, **state)
        ema.meta["state"]["_modules"] = OrderedDict(model=persistent(network, network_name, source))
        loss = Persistent("EDMLoss", {"P_mean": -1.2}, source)
        augment = Persistent("AugmentPipe", {"hz_fbank": np.arange(6.0).reshape(2, 3)}, source)
        data = util.EasyDict(path="cifar10.zip", use_labels=True)
        return pickle.dumps({"ema": ema, "loss_fn": loss, "augment_pipe": augment, "dataset_kwargs": data}, protocol=protocol)
