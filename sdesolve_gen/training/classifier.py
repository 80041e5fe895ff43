"""Training of a noise-conditional classifier: cross-entropy at the noise levels of a process.

    loss = - E ln p_t(y | alpha x_0 + sigma eps),    t drawn as for a score network

[Song et al. 2021, appendix I.1].  The order of the data and every noise are functions of (seed, step).
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from sdesolve.files import atomic

from .._errors import unknown
from .._torch_files import read_checkpoint
from .._versions import versions
from ..card import check_name
from ..classifiers import Classifier
from ..data import read_data
from ..networks import CLASSIFIERS
from .levels import level_times
from .order import batch_indices, generator

DATA_RANGE = (-1.0, 1.0)
SAVE_EVERY = 100


@dataclass(frozen=True)
class ClassifierConfig:
    """Every choice of a classifier's training.

    Arguments:
        data: parquet file with the columns ``image`` and ``label`` (0, 1, ...), as for a score network.
        name: of the classifier, for its card.
        process, process_options, time: of the model that it is to guide, as on that model's card.
        network, network_options: a key of ``networks.CLASSIFIERS``, and its arguments but for ``classes`` and ``channels``.
        log_sigma_mean, log_sigma_std: of ln(sigma/alpha) over the batch, as in :class:`TrainConfig`.
        steps, batch: number and size of the updates.
        learning_rate: largest step of Adam: it grows over a tenth of the updates and falls to 0 along half a cosine.
        weight_decay: decoupled, of every update.
        seed: order of the data and every noise are functions of (seed, step).
        precision: "fp32" or "bf16" (autocast; weights stay float32).

    Raises:
        ValueError: a value out of range.
    """

    data: str
    name: str
    process: str = "vp"
    process_options: dict[str, float] = field(default_factory=dict)
    time: str = "log_sigma/4"
    network: str = "EncoderClassifier"
    network_options: dict[str, Any] = field(default_factory=lambda: {"width": 32, "multipliers": [1, 2], "blocks": 2, "patch": 2})
    log_sigma_mean: float = -0.8
    log_sigma_std: float = 2.0
    steps: int = 1600
    batch: int = 128
    learning_rate: float = 3e-3
    weight_decay: float = 1e-2
    seed: int = 0
    precision: str = "bf16"

    def __post_init__(self) -> None:
        check_name(self.name)
        if self.network not in CLASSIFIERS:
            raise ValueError(unknown("network", self.network, CLASSIFIERS))
        for name in ("steps", "batch", "learning_rate", "log_sigma_std"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name}={getattr(self, name)!r}; expected a finite number > 0.")
        if self.precision not in ("fp32", "bf16"):
            raise ValueError(f'precision={self.precision!r}; expected "fp32" or "bf16".')


def train_classifier(config: ClassifierConfig, *, checkpoint: str | Path | None = None, progress: bool = True) -> Classifier:
    """A noise-conditional classifier of a data set; ``Classifier.save`` keeps it.

    Arguments:
        config: every choice of the training.
        checkpoint: file to go on from where it is there, written every 100 updates; the result is that of a run without an interruption.
        progress: draw a progress bar.

    Raises:
        FileNotFoundError, ValueError: no such data, no labels in it, options that do not fit it, or a checkpoint of another config.
        FloatingPointError: a loss or gradient that is not finite; the checkpoint is from before it.
    """
    images, labels = read_data(config.data)[:2]
    if labels is None or labels.min() < 0 or labels.max() < 1:
        raise ValueError(f"{config.data} has no column 'label' of the classes 0, 1, ...; expected one beside 'image'.")
    if len(images) < config.batch:
        raise ValueError(f"{config.data} has {len(images)} images, fewer than batch={config.batch}; expected batch <= {len(images)}.")
    torch.manual_seed(config.seed)  # initial weights
    classifier = _fresh(config, tuple(images.shape[1:]), int(labels.max()) + 1)
    network: nn.Module = classifier.network.train().requires_grad_(True)  # type: ignore[union-attr]
    optimiser = torch.optim.AdamW(network.parameters(), weight_decay=config.weight_decay)
    first = _resumed(checkpoint, config, network, optimiser) if checkpoint and Path(checkpoint).exists() else 0
    with tqdm(total=config.steps, initial=first, disable=not progress, unit="step", mininterval=5) as bar:
        for step in range(first, config.steps):
            if checkpoint and step > first and step % SAVE_EVERY == 0:
                with atomic(checkpoint) as path:
                    torch.save({"config": repr(config), "step": step, "network": network.state_dict(), "optimiser": optimiser.state_dict()}, path)
            rows = batch_indices(len(images), config.batch, config.seed, step)
            for group in optimiser.param_groups:
                group["lr"] = config.learning_rate * min(1.0, 10 * (step + 1) / config.steps) * 0.5 * (1 + math.cos(math.pi * step / config.steps))
            with torch.autocast("cpu", torch.bfloat16, enabled=config.precision == "bf16"):
                loss = classification_loss(classifier, config, images[rows], labels[rows], step)
            optimiser.zero_grad()
            loss.backward()
            norm = nn.utils.get_total_norm([p.grad for p in network.parameters() if p.grad is not None])
            if not torch.isfinite(norm + loss):
                said = f"the loss is {loss.item()} and its gradient's norm {norm.item()}"
                raise FloatingPointError(f"training diverged at step {step}: {said}. Lower learning_rate={config.learning_rate}.")
            optimiser.step()
            bar.update()
            bar.set_postfix(loss=f"{loss.item():.4f}", refresh=False)
    network.eval().requires_grad_(False)
    return classifier


def _resumed(checkpoint: str | Path, config: ClassifierConfig, network: nn.Module, optimiser: torch.optim.Optimizer) -> int:
    """The step to go on from."""
    state = read_checkpoint(checkpoint)
    if state["config"] != repr(config):
        raise ValueError(f"{checkpoint} was made with another config, {state['config']}; remove it, or use another file.")
    network.load_state_dict(state["network"])
    optimiser.load_state_dict(state["optimiser"])
    return state["step"]


def classification_loss(classifier: Classifier, config: ClassifierConfig, images: Tensor, labels: Tensor, step: int) -> Tensor:
    """Cross-entropy of uint8 images with the noise of an update."""
    draws = generator(config.seed, step, 1)
    low, high = DATA_RANGE
    x0 = low + (high - low) * (images + torch.rand(images.shape, generator=draws)) / 256  # uniform dequantisation
    t = level_times(classifier.process, len(images), config.log_sigma_mean, config.log_sigma_std, draws)
    mean, sigma = classifier.process.marginal(x0, t)
    x = mean + sigma.to(x0)[:, None, None, None] * torch.randn(x0.shape, generator=draws)
    return F.cross_entropy(classifier.logits(x, t).float(), labels)


def _fresh(config: ClassifierConfig, shape: tuple[int, ...], classes: int) -> Classifier:
    """A classifier with fresh weights and its card."""
    options = {"classes": classes, "channels": shape[0], **config.network_options}
    try:
        network = CLASSIFIERS[config.network](**options)
        with torch.no_grad():
            network(torch.zeros(1, *shape), torch.zeros(1))
    except (TypeError, ValueError) as error:
        raise ValueError(f"network_options={config.network_options} do not fit images {shape}: {error}") from error
    card: dict[str, Any] = {
        "name": config.name,
        "process": config.process,
        "process_options": config.process_options,
        "time": config.time,
        "network": config.network,
        "network_options": options,
        "classes": classes,
        "shape": list(shape),
        "data_range": list(DATA_RANGE),
        "versions": versions(),
        "training": {**dataclasses.asdict(config), "data": Path(config.data).name},
    }
    return Classifier.of_card(network, card)
