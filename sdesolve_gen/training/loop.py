"""The training loop: denoising score matching on the network's own target, an average of the weights, atomic checkpoints.

    loss = E |model(alpha x_0 + sigma eps, t) - target(x_0, eps, t)|^2,

which is the DSM loss of Song et al. 2021, eq. 7, with the weight that makes the network's output unit-scaled at every noise
level.  The order of the data and every noise are functions of (seed, step), so a run that was killed and resumed is, bit
for bit, the run that was not.
"""

from __future__ import annotations

import dataclasses
import json
import math
import pickle
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from sdesolve import Process, Score, as_score
from sdesolve.files import atomic

from .._versions import versions
from ..models import Model, load
from ..networks import UNet
from ..processes import make_process
from .config import TrainConfig
from .data import batch_indices, generator, read_images
from .levels import level_times

DATA_RANGE = (-1.0, 1.0)
LOG_EVERY = 100


def train(config: TrainConfig, *, resume: str = "auto", progress: bool = True) -> Model:
    """Train a score network and save it in ``config.out``.

    Arguments:
        config: every choice of the run.
        resume: "auto" goes on from ``config.out/checkpoint.pt`` where there is one; "never" starts anew and replaces it.
        progress: draw a progress bar.

    Returns:
        The model of averaged weights, which is also saved in ``config.out`` (``Model.save``).

    Raises:
        ValueError: a checkpoint of another config or one that cannot be read; options that do not fit the data.
        FloatingPointError: a loss, gradient or weight that is not finite; the last checkpoint is whole.
    """
    if resume not in ("auto", "never"):
        raise ValueError(f'resume={resume!r}; expected "auto" or "never".')
    images, _ = read_images(config.data)
    if len(images) < config.batch:
        raise ValueError(f"{config.data} has {len(images)} images, fewer than batch={config.batch}; expected batch <= {len(images)}.")
    run = _Run(config, make_process(config.process, config.process_options), images.shape[1:])
    if resume == "auto":
        run.resume()
    with open(run.folder / "log.jsonl", "a") as log, tqdm(total=config.steps, initial=run.step, disable=not progress, unit="step") as bar:
        while run.step < config.steps:
            loss = run.update(images)
            bar.update()
            if run.step % LOG_EVERY == 0 or run.step == config.steps:
                bar.set_postfix(loss=f"{float(loss):.4f}")
                log.write(json.dumps({"step": run.step, "loss": float(loss), "time": time.time()}) + "\n")
                log.flush()
            if run.step % config.save_every == 0:
                run.save()
    model = run.model()
    model.save(run.folder)
    return model


class _Run:
    """The state of a training run."""

    def __init__(self, config: TrainConfig, process: Process, shape: torch.Size) -> None:
        self.config, self.process, self.shape, self.step = config, process, shape, 0
        torch.manual_seed(config.seed)  # initial weights
        self.network: UNet = _network(config, shape).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if config.init:
            _start_from(self.network, config.init)
        self.average = AveragedModel(self.network, multi_avg_fn=get_ema_multi_avg_fn(config.ema))
        self.optimiser = torch.optim.Adam(self.network.parameters())
        self.score = as_score(self.network, process, predicts=config.predicts, time=config.time)
        self.folder = Path(config.out)
        self.folder.mkdir(parents=True, exist_ok=True)

    def update(self, images: Tensor) -> Tensor:
        """One step of Adam; returns the loss of its batch."""
        c = self.config
        rows = batch_indices(len(images), c.batch, c.seed, self.step)
        draws = generator(c.seed, self.step, 1)
        pixels = images[rows] + torch.rand(images[rows].shape, generator=draws)  # uniform dequantisation: [0, 256)
        low, high = DATA_RANGE
        x0 = low + (high - low) * pixels / 256
        t = level_times(self.process, c.batch, c.log_sigma_mean, c.log_sigma_std, draws)
        for group in self.optimiser.param_groups:
            group["lr"] = learning_rate(c, self.step)
        with torch.autocast("cpu", torch.bfloat16, enabled=c.precision == "bf16"):
            loss = denoising_loss(self.score, x0, t, torch.randn(x0.shape, generator=draws))
        self.optimiser.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), c.clip)
        if not torch.isfinite(norm):
            raise FloatingPointError(f"{self._diverged()}: the loss is {loss.item()} and its gradient's norm {norm.item()}. {self._remedy()}")
        self.optimiser.step()
        self.average.update_parameters(self.network)
        self.step += 1
        return loss.detach()

    def model(self) -> Model:
        """The averaged weights as a model, with its card."""
        c = self.config
        training = dataclasses.asdict(c)
        del training["out"]
        card: dict[str, Any] = {
            "name": c.name,
            "process": c.process,
            "process_options": c.process_options,
            "predicts": c.predicts,
            "time": c.time,
            "network": "UNet",
            "network_options": {"channels": self.shape[0], **c.network},
            "shape": list(self.shape),
            "data_range": list(DATA_RANGE),
            "levels": 256,
            "versions": versions(),
            "training": {**training, "data": Path(c.data).name, "init": Path(c.init).name},
        }
        return Model(self.average.module, card)

    def save(self) -> None:
        """Write the checkpoint, whole or not at all."""
        state = {
            "config": json.dumps(dataclasses.asdict(self.config)),
            "step": self.step,
            "network": self.network.state_dict(),
            "average": self.average.state_dict(),
            "optimiser": self.optimiser.state_dict(),
        }
        if not all(torch.isfinite(p).all() for p in self.network.parameters()):
            raise FloatingPointError(f"{self._diverged()}: a weight is not finite, so no checkpoint was written. {self._remedy()}")
        with atomic(self._checkpoint) as path:
            torch.save(state, path)

    def resume(self) -> None:
        """Go on from the checkpoint in the folder, if there is one."""
        if not self._checkpoint.exists():
            return
        try:
            state = torch.load(self._checkpoint, weights_only=True)
            there = _identity(json.loads(state["config"]))
        except (RuntimeError, pickle.UnpicklingError, EOFError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{self._checkpoint} is not a checkpoint of this version ({error}); remove it, or start anew with resume='never'.") from error
        here = _identity(dataclasses.asdict(self.config))
        if there != here:
            differs = ", ".join(f"{k}: {there.get(k)!r} there, {here.get(k)!r} here" for k in {**there, **here} if there.get(k) != here.get(k))
            raise ValueError(f"{self._checkpoint} was made with another config ({differs}); use another out=, or start anew with resume='never'.")
        self.network.load_state_dict(state["network"])
        self.average.load_state_dict(state["average"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.step = state["step"]

    @property
    def _checkpoint(self) -> Path:
        return self.folder / "checkpoint.pt"

    def _diverged(self) -> str:
        return f"training diverged at step {self.step}"

    def _remedy(self) -> str:
        kept = f"{self._checkpoint} is whole" if self._checkpoint.exists() else "there is no checkpoint yet"
        return f"Lower learning_rate, as in learning_rate={self.config.learning_rate / 3:.1g} ({kept})."


def _network(config: TrainConfig, shape: torch.Size) -> UNet:
    """A network with fresh weights, tried on an image without memory, so that options that do not fit the data are told at once."""
    try:
        with torch.device("meta"):
            UNet(channels=shape[0], **config.network)(torch.empty(1, *shape), torch.empty(1))
    except (TypeError, ValueError) as error:
        raise ValueError(f"network={config.network} does not fit images {tuple(shape)}: {error}") from error
    return UNet(channels=shape[0], **config.network)


def _start_from(network: UNet, model: str) -> None:
    """Take over the weights of a trained model; raises ValueError where its network is another."""
    try:
        network.load_state_dict(load(model).network.state_dict())
    except RuntimeError as error:
        raise ValueError(f"init={model!r} has another network than this run ({error}); expected one with the same options.") from error


def _identity(config: dict[str, Any]) -> dict[str, Any]:
    """What makes two runs the same run: everything but the folders, which may move."""
    return {**config, "data": Path(config["data"]).name, "init": Path(config["init"]).name, "out": None}


def denoising_loss(score: Score, x0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
    """Mean squared error of the network against its target at x = alpha x_0 + sigma eps; t is (B,) float64."""
    mean, sigma = score.process.marginal(x0, t)
    x = mean + sigma.to(x0).reshape(-1, *(1,) * (x0.dim() - 1)) * eps
    return (score.model_output(x, t) - score.target(x, eps, t)).square().mean()


def learning_rate(config: TrainConfig, step: int) -> float:
    """Linear growth over ``warmup`` steps, then half a cosine down to 0 at ``decay``."""
    warm = min(1.0, (step + 1) / config.warmup)
    return config.learning_rate * warm * 0.5 * (1 + math.cos(math.pi * step / (config.decay or config.steps)))
