"""Tiny networks, models and data sets for the tests of sdesolve_gen."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import torch
from PIL import Image

from sdesolve_gen import Model, TrainConfig
from sdesolve_gen.networks import UNet

NETWORK: dict[str, Any] = {"width": 8, "multipliers": [1, 2], "blocks": 1, "patch": 2, "fourier_scale": 1.0}


def tiny_card(**changes: Any) -> dict[str, Any]:
    card = {
        "name": "tiny",
        "process": "vp",
        "process_options": {},
        "predicts": "v",
        "time": "log_sigma/4",
        "network": "UNet",
        "network_options": {"channels": 1, **NETWORK},
        "shape": [1, 8, 8],
        "data_range": [-1.0, 1.0],
        "levels": 256,
    }
    return {**card, **changes}


def tiny_network(**options: Any) -> UNet:
    """A network whose output is not 0, as a fresh one's is."""
    torch.manual_seed(0)
    network = UNet(channels=1, **NETWORK, **options)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return network


def tiny_model(**changes: Any) -> Model:
    return Model(tiny_network(), tiny_card(**changes))


def png(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, format="PNG")
    return buffer.getvalue()


def write_parquet(path: Path, arrays: list[np.ndarray]) -> Path:
    """A data set in the Hugging Face image layout."""
    rows = [{"bytes": png(array), "path": f"{i}.png"} for i, array in enumerate(arrays)]
    parquet.write_table(pa.table({"image": rows, "label": list(range(len(rows)))}), path)
    return path


def random_parquet(path: Path, n: int = 20, side: int = 8) -> Path:
    draws = np.random.default_rng(0)
    return write_parquet(path, [draws.integers(0, 256, (side, side), dtype=np.uint8) for _ in range(n)])


def tiny_config(data: Path, out: Path, **changes: Any) -> TrainConfig:
    options: dict[str, Any] = {"steps": 6, "batch": 8, "warmup": 2, "save_every": 2, "log_every": 1, "network": NETWORK, "precision": "fp32"}
    return TrainConfig(data=str(data), out=str(out), name="tiny", **{**options, **changes})
