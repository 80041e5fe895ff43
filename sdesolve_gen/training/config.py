"""What a training run is: one frozen dataclass, which is also the training part of the model card."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from .._errors import unknown
from ..card import check_name
from ..networks.execution import PRECISIONS
from .losses import LOSSES, TIMES, WEIGHTS


@dataclass(frozen=True)
class TrainConfig:
    """Every choice of a training run.

    Arguments:
        data: where the images are, one source or a list of them: a parquet file with a column ``image``, a folder of pictures (folders within are
            classes), an npz file, ``hf:NAME:SPLIT``, or a pattern such as ``data/*.parquet``; see :mod:`sdesolve_gen.data`.
        out: folder for checkpoints, log and the model.
        name: of the model, for its card.
        init: a model whose weights the run starts from, an embedded name or a folder; "" starts from fresh ones. A UNet with a larger
            ``expansion`` than that one's begins as the same function.
        size: side that pictures are scaled and cropped to; 0 takes them as they are, all of one size.
        flip: mirror every second image, at random.
        data_range: [low, high], what the levels 0..255 become; the process and the published constants are in its units.
        classes: number of classes that the network is told, ``network(x, time, labels)``; 0 for a network without.
        label_dropout: share of the images that are told as "no class" (label = classes), for classifier-free guidance.
        process, process_options: forward process ("vp", "subvp", "ve", "edm", "cosine", "rectified_flow", "tabulated_vp") and its constants.
        predicts, time: parameterisation of the network, as in :func:`sdesolve.as_score`.
        network_name: a key of :data:`sdesolve_gen.networks.NETWORKS`.
        network: options of that network; ``channels`` and ``image_size`` are those of the data, ``classes`` as above.
        loss, weight, times: what is minimised: tables at the top of :mod:`sdesolve_gen.training.losses`.
        log_sigma_mean, log_sigma_std: of ln(sigma/alpha) for times="log_normal", normally distributed over the batch, clipped to the
            process; it decides where along the noise levels the effort goes.  [Karras et al. 2022, eq. 5 and table 1]
        steps, batch: number and size of the updates; the batch is that of all processes and parts together.
        accumulate: parts that a batch is computed in, one after the other, where memory is short.
        learning_rate, warmup, schedule, decay: Adam's step after ``warmup`` updates of linear growth; with schedule="cosine" it falls to 0
            along half a cosine over ``decay`` updates, 0 for ``steps``; with "constant" it stays.  A run with decay > steps ends while the
            steps are large, for another to go on from.
        clip: largest gradient norm.
        ema: decay of the average of the weights that is kept as the model.
        ema_warmup: decay min(ema, (1 + n)/(10 + n)) at update n, so that an average with a long memory forgets its start.
        seed: order of the data and every noise are functions of (seed, step, place in the batch).
        precision: "fp32", or "bf16" or "fp16" (autocast; weights stay float32).  With "fp16" the loss is scaled, so that small gradients are not lost; a
            scale that is too large makes gradients infinite, and the update is skipped, counted, and the scale halved.
        compile: run the network through torch.compile.
        checkpoint: activation checkpoints, as in :class:`sdesolve_gen.networks.Execution`: the blocks of the network are computed twice, which needs
            less memory, a third more time, and gives the same gradients.
        channels_last: memory layout of the network: True suits the networks here, and GPUs in half precision; others may be faster without.
        patience: so many updates in a row that are not finite end the run; fewer are skipped and counted.
        save_every, save_minutes, keep: updates, and minutes at most, between checkpoints, each with the model so far, and how many of them are kept.
            There is none while updates are skipped in a row.
        log_every: updates between lines of the log.
        sample_every, samples: updates between pictures of so many images drawn from the average; 0 draws none.
        tensorboard: write curves and pictures for TensorBoard too.

    Raises:
        TypeError, ValueError: a value of the wrong type or out of range.
    """

    data: str | list[str]
    out: str
    name: str
    init: str = ""
    size: int = 0
    flip: bool = False
    data_range: list[float] = field(default_factory=lambda: [-1.0, 1.0])
    classes: int = 0
    label_dropout: float = 0.1
    process: str = "vp"
    process_options: dict[str, Any] = field(default_factory=dict)
    predicts: str = "v"
    time: str | int = "log_sigma/4"
    network_name: str = "UNet"
    network: dict[str, Any] = field(default_factory=lambda: {"width": 48, "multipliers": [1, 2], "blocks": 1, "patch": 2, "fourier_scale": 1.0})
    loss: str = "denoising"
    weight: str = "output"
    times: str = "log_normal"
    log_sigma_mean: float = -0.8
    log_sigma_std: float = 2.0
    steps: int = 16_000
    batch: int = 128
    accumulate: int = 1
    learning_rate: float = 1e-3
    warmup: int = 500
    schedule: str = "cosine"
    decay: int = 0
    clip: float = 1.0
    ema: float = 0.999
    ema_warmup: bool = False
    seed: int = 0
    precision: str = "bf16"
    compile: bool = False
    checkpoint: bool = False
    channels_last: bool = True
    patience: int = 20
    save_every: int = 500
    save_minutes: float = 10.0
    keep: int = 2
    log_every: int = 100
    sample_every: int = 0
    samples: int = 16
    tensorboard: bool = False

    def __post_init__(self) -> None:
        for f in fields(self):
            _check_type(f.name, getattr(self, f.name), str(f.type))
        check_name(self.name)
        for name in ("steps", "batch", "accumulate", "warmup", "patience", "save_every", "save_minutes", "keep", "log_every", "samples"):
            _require(self, name, getattr(self, name) >= 1, "an integer >= 1")
        for name in ("size", "classes", "sample_every", "seed"):
            _require(self, name, getattr(self, name) >= 0, "an integer >= 0")
        _require(self, "seed", self.seed < 2**63, "an integer below 2**63")
        for name in ("learning_rate", "clip", "log_sigma_std", "save_minutes"):
            _require(self, name, getattr(self, name) > 0, "a finite number > 0")
        for name, known in (("loss", LOSSES), ("weight", WEIGHTS), ("times", TIMES), ("schedule", ("cosine", "constant")), ("precision", PRECISIONS)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name}={getattr(self, name)!r}: {unknown(name, getattr(self, name), known)}")
        _require(self, "data", bool(self.data), "a file or folder, as in data='train.parquet'")
        _require(self, "data_range", len(self.data_range) == 2 and self.data_range[0] < self.data_range[1], "[low, high], low < high, as in [-1.0, 1.0]")
        _require(self, "decay", self.decay == 0 or self.decay >= self.steps, "0, or an integer >= steps")
        _require(self, "accumulate", self.batch % self.accumulate == 0, f"a divisor of batch={self.batch}")
        _require(self, "ema", 0 <= self.ema < 1, "0 <= ema < 1, as in ema=0.999")
        _require(self, "label_dropout", 0 <= self.label_dropout <= 1, "0 <= label_dropout <= 1, as in label_dropout=0.1")
        counts = isinstance(self.time, int) and self.time > 1
        _require(self, "times", self.times != "levels" or counts, "a network that counts its levels, as in time=1000, for this")

    def for_card(self) -> dict[str, Any]:
        """Every field but ``out``; of files their names alone, so that no path of a machine goes along with a model."""
        values = _named(dataclasses.asdict(self))
        del values["out"]
        return values

    def identity(self) -> dict[str, Any]:
        """What makes two runs the same run, with the content of data and init: not the folders, which may move, nor what is written how often or kept in memory."""
        return {name: value for name, value in self.for_card().items() if name not in _BESIDE}


_BESIDE = ("checkpoint", "patience", "save_every", "save_minutes", "keep", "log_every", "sample_every", "samples", "tensorboard")


def _named(values: dict[str, Any]) -> dict[str, Any]:
    """File names instead of paths; a hub's names stay as they are."""
    data = values["data"]
    names = [source if source.startswith("hf:") else Path(source).name for source in ([data] if isinstance(data, str) else data)]
    return {**values, "data": names[0] if isinstance(data, str) else names, "init": Path(values["init"]).name}


_TYPES: dict[str, tuple[Any, str]] = {
    "str": (str, "a string"),
    "int": (int, "an integer"),
    "float": (int | float, "a finite number"),
    "bool": (bool, "true or false"),
    "str | int": (str | int, "a string or an integer"),
    "str | list[str]": (str | list, "a string or a list of strings"),
    "list[float]": (list, "a list of finite numbers"),
}


def _check_type(name: str, value: object, annotation: str) -> None:
    kind, expected = _TYPES.get(annotation, (dict, "a dict"))
    wrong = isinstance(value, bool) != (annotation == "bool")
    if isinstance(value, list):
        wrong = not all(isinstance(v, str) if "str" in annotation else isinstance(v, int | float) and math.isfinite(v) for v in value)
    if not isinstance(value, kind) or wrong or (isinstance(value, float) and not math.isfinite(value)):
        raise TypeError(f"{name}={value!r}; expected {expected}.")


def _require(config: TrainConfig, name: str, holds: bool, expected: str) -> None:
    if not holds:
        raise ValueError(f"{name}={getattr(config, name)!r}; expected {expected}.")
