"""What a training run is: one frozen dataclass, which is also the training part of the model card."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from typing import Any

from ..card import check_name


@dataclass(frozen=True)
class TrainConfig:
    """Every choice of a training run.

    Arguments:
        data: parquet file with a column ``image`` (``{bytes, path}`` in the Hugging Face layout) of equally sized pictures.
        out: folder for the checkpoint and, at the end, the model.
        name: of the model, for its card.
        init: a model whose weights the run starts from, an embedded name or a folder; "" starts from fresh ones.
        process, process_options: forward process ("vp", "subvp", "ve", "edm", "cosine", "rectified_flow") and its constants.
        predicts, time: parameterisation of the network, as in :func:`sdesolve.as_score`.
        network: options of :class:`sdesolve_gen.networks.UNet`.
        log_sigma_mean, log_sigma_std: of ln(sigma/alpha), normally distributed over the batch (stratified), clipped to the
            process; it decides where along the noise levels the effort goes.  [Karras et al. 2022, eq. 5 and table 1]
        steps, batch: number and size of the updates.
        learning_rate, warmup, decay: Adam's step after ``warmup`` updates of linear growth; falls to 0 along a half cosine over
            ``decay`` updates, 0 for ``steps``.  A run with decay > steps ends while the steps are large, for another to go on from.
        clip: largest gradient norm.
        ema: decay of the average of the weights that is kept as the model.
        seed: order of the data and every noise are functions of (seed, step).
        precision: "fp32" or "bf16" (autocast; weights stay float32).
        save_every: updates between checkpoints.

    Raises:
        TypeError, ValueError: a value of the wrong type or out of range.
    """

    data: str
    out: str
    name: str
    init: str = ""
    process: str = "vp"
    process_options: dict[str, float] = field(default_factory=dict)
    predicts: str = "v"
    time: str = "log_sigma/4"
    network: dict[str, Any] = field(default_factory=lambda: {"width": 48, "multipliers": [1, 2], "blocks": 1, "patch": 2, "fourier_scale": 1.0})
    log_sigma_mean: float = -0.8
    log_sigma_std: float = 2.0
    steps: int = 16_000
    batch: int = 128
    learning_rate: float = 1e-3
    warmup: int = 500
    decay: int = 0
    clip: float = 1.0
    ema: float = 0.999
    seed: int = 0
    precision: str = "bf16"
    save_every: int = 500

    def __post_init__(self) -> None:
        for f in fields(self):
            _check_type(f.name, getattr(self, f.name), str(f.type))
        check_name(self.name)
        for name in ("steps", "batch", "warmup", "save_every"):
            _require(self, name, getattr(self, name) >= 1, "an integer >= 1")
        _require(self, "decay", self.decay == 0 or self.decay >= self.steps, "0, or an integer >= steps")
        _require(self, "seed", self.seed >= 0, "an integer >= 0")
        for name in ("learning_rate", "clip", "log_sigma_std"):
            _require(self, name, getattr(self, name) > 0, "a finite number > 0")
        _require(self, "ema", 0 <= self.ema < 1, "0 <= ema < 1, as in ema=0.999")
        _require(self, "precision", self.precision in ("fp32", "bf16"), '"fp32" or "bf16"')


_TYPES: dict[str, tuple[Any, str]] = {"str": (str, "a string"), "int": (int, "an integer"), "float": (int | float, "a finite number")}


def _check_type(name: str, value: object, annotation: str) -> None:
    kind, expected = _TYPES.get(annotation, (dict, "a dict"))
    if not isinstance(value, kind) or isinstance(value, bool) or (isinstance(value, float) and not math.isfinite(value)):
        raise TypeError(f"{name}={value!r}; expected {expected}.")


def _require(config: TrainConfig, name: str, holds: bool, expected: str) -> None:
    if not holds:
        raise ValueError(f"{name}={getattr(config, name)!r}; expected {expected}.")
