"""The training loop: Adam on a score matching loss, an average of the weights, checkpoints that survive anything.

    loss = E |model(alpha x_0 + sigma eps, t) - target(x_0, eps, t)|^2,

by default: the DSM loss of Song et al. 2021, eq. 7, with the weight that makes the network's output unit-scaled at every noise level; others
are in :mod:`.losses`.  The order of the data and every noise are functions of (seed, step, place in the batch), so a run that was killed and
resumed is, bit for bit, the run that was not, and several processes compute what one would, to rounding.
"""

from __future__ import annotations

import contextlib
import functools
import json
import math
import shlex
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.optim.swa_utils import AveragedModel

import sdesolve as sd

from .._versions import versions
from ..data import Data, read_data
from ..images import grid, to_uint8, write_png
from ..models import Model
from ..moments import moments_of
from ..networks.execution import PRECISIONS, Execution
from ..processes import make_process
from .batches import Ahead, Batch
from .checkpoints import Checkpoint, checkpoints, load_checkpoint, save_checkpoint, set_aside, sweep
from .config import TrainConfig
from .fitting import check_data, check_init, check_network, check_out, make_network, options_of, start_from
from .interruption import Interruption
from .journal import Journal
from .losses import denoising_loss, sliced_loss
from .order import generator
from .origin import check_same, origin
from .recipes import write_config
from .state import check_state

if TYPE_CHECKING:
    from accelerate import Accelerator

_DROPOUT = 5  # stream of the generators, after those of the batch
_SAMPLER_STEPS = 20
LOCK = ".lock"


class TrainingWarning(UserWarning):
    """Updates were skipped because they were not finite."""


def train(config: TrainConfig, *, resume: str = "auto", progress: bool = True, device: str = "auto") -> Model:
    """Train a score network and save it in ``config.out``; under ``torchrun`` or ``accelerate launch``, on all of its processes.

    Arguments:
        config: every choice of the run.
        resume: "auto" goes on from the newest whole checkpoint in ``config.out`` where there is one; "never" starts anew, and removes
            the checkpoints, model and pictures of the run before.
        progress: draw a progress bar.
        device: "auto" takes the GPU of this process where there is one; "cpu" does not.

    Returns:
        The model of averaged weights, which is also saved in ``config.out`` (``Model.save``), as it is with every checkpoint.

    Raises:
        ValueError: a checkpoint of another config, or none that is whole; options that do not fit the data.
        KeyboardInterrupt: Ctrl-C, after the update that is under way and a checkpoint; a second one at once.
        FloatingPointError: ``config.patience`` updates in a row, most of all updates or those before the end, a weight, or what the average says of
            the data, that are not finite; the last checkpoint is whole.
        BlockingIOError (an OSError): another run is training in ``config.out``.
        OSError: a checkpoint cannot be written; the one before is whole.
    """
    if resume not in ("auto", "never"):
        raise ValueError(f'resume={resume!r}; expected "auto" or "never".')
    if device not in ("auto", "cpu"):
        raise ValueError(f'device={device!r}; expected "auto" or "cpu".')
    check_out(config.out)
    check_init(config)
    check_network(config)
    make_process(config.process, config.process_options)
    data = read_data(config.data, config.size)
    run = _Run(config, data, _accelerator(device))
    run.make_folder()
    with run.alone():
        run.begin(resume)
        run.go(progress)
        return run.finish()


class _Run:
    """The state of a training run: what a checkpoint holds, and what is made of the config."""

    def __init__(self, config: TrainConfig, data: Data, accelerator: Accelerator) -> None:
        self.config, self.data, self.accelerator = config, data, accelerator
        check_data(config, data, accelerator.num_processes)
        self.process = make_process(config.process, config.process_options)
        self.shape = tuple(data.images.shape[1:])
        self.step = self.skipped = self.in_a_row = 0
        self.interruption, self.stopping = Interruption(), False
        torch.manual_seed(config.seed)  # initial weights
        self.network = make_network(config, self.shape)
        Execution(channels_last=config.channels_last)(self.network)
        self.origin = origin(config, data, start_from(self.network, config, self.shape) if config.init else None)
        self.network.to(accelerator.device)
        self.average = AveragedModel(self.network, multi_avg_fn=self._towards)
        Execution(channels_last=config.channels_last, checkpoint=config.checkpoint)(self.network)  # which stays as it is, and so does the average
        self.optimiser = torch.optim.Adam(self.network.parameters())
        self.scaler = torch.amp.GradScaler(accelerator.device.type, enabled=config.precision == "fp16")  # of the loss, whose gradients float16 would lose
        self.forward = accelerator.prepare_model(self.network)
        if config.compile:
            self.forward = torch.compile(self.forward)
        self._score(self.forward, None)  # refuses what does not fit before there is a folder
        self.folder = Path(config.out)

    def make_folder(self) -> None:
        """Raises ValueError where it cannot be made."""
        if self.accelerator.is_main_process:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise ValueError(f"out={self.config.out!r}: the folder cannot be made ({error.strerror}); expected another, as in --out runs/mine.") from error

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Keep other runs out of the folder, by a lock of the operating system, which ends with this process, however that ends."""
        if not self.accelerator.is_main_process:
            yield
            return
        from filelock import FileLock, Timeout

        try:
            lock = FileLock(self.folder / LOCK, timeout=0).acquire()
        except Timeout:
            raise BlockingIOError(f"out={self.config.out!r}: another run is training in this folder; wait for its end, or use another, as in --out runs/mine.") from None
        with lock:
            yield

    def begin(self, resume: str) -> None:
        """Go on from the checkpoint in the folder, if there is one and it is wanted."""
        if self.accelerator.is_main_process:
            sweep(self.folder, everything=resume == "never")
        self.accelerator.wait_for_everyone()
        found = load_checkpoint(self.folder)
        if found:
            self._take_over(*found)
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            if found:
                set_aside(self.folder, found[0])
            write_config(self.folder / "config.yaml", self.config)

    def go(self, progress: bool) -> None:
        """Update until ``config.steps``."""
        c, main = self.config, self.accelerator.is_main_process
        ahead = Ahead(self.data, c, self.process)
        with contextlib.ExitStack() as stack:
            stack.callback(ahead.close)
            journal = Journal(self.folder, self.step, c.steps, progress=progress, tensorboard=c.tensorboard) if main else None
            if journal:
                stack.callback(journal.close)
            stack.enter_context(self.interruption.noted())
            due, saved = False, time.monotonic()  # each process has a clock of its own: what is written changes nothing, and nobody waits for it
            while self.step < c.steps:
                batch = ahead.batch(self.step)
                loss, norm = self.update(batch)
                done = self.step == c.steps
                due = due or self.stopping or self.step % c.save_every == 0 or time.monotonic() - saved >= 60 * c.save_minutes
                keep = done or (due and not self.in_a_row)
                if keep:
                    self.check(batch, done)
                if journal:
                    journal.advance(c.batch)
                    if done or self.step % c.log_every == 0:
                        journal.write(self.step, loss=float(loss), norm=float(norm), learning_rate=learning_rate(c, self.step - 1), skipped=self.skipped)
                    if c.sample_every and self.step % c.sample_every == 0:
                        journal.picture(self.step, self.draw())
                    if keep:
                        journal.settle()
                        self.save()
                if keep:
                    due, saved = False, time.monotonic()
                if self.stopping and not done:
                    self.stop()

    def stop(self) -> NoReturn:
        """Raises KeyboardInterrupt, which says what there is."""
        self.accelerator.wait_for_everyone()
        kept = checkpoints(self.folder)
        there = f"{kept[0].path} is whole, with the model so far beside it: the same command goes on from it" if kept else "there is no checkpoint yet"
        raise KeyboardInterrupt(f"{self.step} of {self.config.steps} updates are done; {there}")

    def finish(self) -> Model:
        """The averaged weights as a model, saved."""
        if self.skipped and self.accelerator.is_main_process:
            warnings.warn(f"{self.skipped} of {self.step} updates were not finite, and skipped.", TrainingWarning, stacklevel=3)
        model = self._model()
        if self.accelerator.is_main_process:
            self._write(model)
        self.accelerator.wait_for_everyone()
        return model

    def _model(self) -> Model:
        """The averaged weights, with the moments of the data."""
        model = Model(self.average.module, self._card())
        model.moments = self.moments
        return model

    @functools.cached_property
    def moments(self) -> sd.Range | None:
        """Of the data, mirrored where training mirrors them."""
        return moments_of(self.data.images, (self.config.data_range[0], self.config.data_range[1]), self.config.flip)

    def _write(self, model: Model) -> None:
        try:
            model.save(self.folder)
        except (OSError, SafetensorError) as error:
            stands = "its checkpoint stands: make room, and the same command goes on from it"
            raise OSError(f"the model of step {self.step} cannot be written to {self.folder} ({error}); {stands}.") from error

    def update(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """One step of Adam, skipped where it is not finite; returns the loss of the batch and the norm of its gradient."""
        c, world = self.config, self.accelerator.num_processes
        size = c.batch // (c.accumulate * world)
        loss = torch.zeros((), device=self.accelerator.device)
        self.optimiser.zero_grad()
        for part in range(c.accumulate):
            first = (part * world + self.accelerator.process_index) * size
            together = self.accelerator.no_sync(self.forward) if part < c.accumulate - 1 else contextlib.nullcontext()
            kernels = sdpa_kernel(SDPBackend.MATH) if c.loss == "sliced" else contextlib.nullcontext()  # for blocks that are computed on the way back, too
            with together, kernels, _in_half_precision(c.precision, self.accelerator.device):
                share = self._loss(batch.part(slice(first, first + size), self.accelerator.device), first) / c.accumulate
                self.scaler.scale(share).backward()
            loss += share.detach()
        if world > 1:  # all processes stop after the same update
            loss, stopping = self.accelerator.reduce(torch.stack([loss, loss.new_tensor(float(self.interruption.asked))]), "mean")
            self.stopping = bool(stopping)
        self.scaler.unscale_(self.optimiser)
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), c.clip)
        self._apply(loss, norm)
        self.step += 1
        if world == 1:
            self.stopping = self.interruption.asked
        return loss, norm

    def _loss(self, batch: Batch, first: int) -> Tensor:
        """That of the places of the batch from ``first`` on."""
        c = self.config
        torch.manual_seed(generator(c.seed, self.step, _DROPOUT).initial_seed() ^ first)  # for dropout
        score = self._score(self.forward, batch.labels)
        with torch.autocast(self.accelerator.device.type, PRECISIONS[c.precision], enabled=c.precision != "fp32"):
            if batch.probe is not None:
                return sliced_loss(score, batch.x0, batch.times, batch.eps, batch.probe, c.weight)
            return denoising_loss(score, batch.x0, batch.times, batch.eps, c.weight)

    def _apply(self, loss: Tensor, norm: Tensor) -> None:
        """Step along the gradient, if it is one."""
        c = self.config
        if torch.isfinite(norm + loss):
            for group in self.optimiser.param_groups:
                group["lr"] = learning_rate(c, self.step)
            self.scaler.step(self.optimiser)
            self.scaler.update()
            self.average.update_parameters(self.network)
            self.in_a_row = 0
            return
        self.scaler.update()  # to half of it
        self.skipped, self.in_a_row = self.skipped + 1, self.in_a_row + 1
        if self.in_a_row >= c.patience:
            often = f"{self.in_a_row} updates in a row were not finite, at the last of them" if self.in_a_row > 1 else "at that update"
            raise FloatingPointError(f"{self._diverged()}: {often} the loss is {loss.item()} and its gradient's norm {norm.item()}. {self._remedy()}")

    def _score(self, network: nn.Module, labels: Tensor | None) -> sd.Score:
        model = network if labels is None else lambda x, time: network(x, time, labels)
        return sd.as_score(model, self.process, predicts=self.config.predicts, time=self.config.time)

    def _towards(self, average: Sequence[Tensor], current: Sequence[Tensor], updates: Tensor | int) -> None:
        """The average of the weights after one update more."""
        n, decay = int(updates), self.config.ema
        if self.config.ema_warmup:
            decay = min(decay, (1 + n) / (10 + n))
        torch._foreach_lerp_(list(average), list(current), 1 - decay)

    def draw(self) -> np.ndarray:
        """Write a grid of images drawn from the average by DDIM, of the classes in turn; returns the picture."""
        c, device = self.config, self.accelerator.device
        labels = torch.arange(c.samples, device=device) % c.classes if c.classes else None
        network = self.average.module.eval()
        problem = self.process.reverse(self._score(network, labels))
        prior = self.process.prior((c.samples, *self.shape), seed=c.seed, device=device)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", sd.SolveWarning)  # an image of an early average may be anything
            images = sd.solve(problem, prior, "ddim", steps=_SAMPLER_STEPS, seed=c.seed).x
        low, high = c.data_range
        write_png(self.folder / "samples" / f"{self.step:08d}.png", images.clamp(low, high), (low, high))
        return grid(to_uint8(images.clamp(low, high), (low, high)))

    def _card(self) -> dict[str, Any]:
        c = self.config
        classes = {"classes": c.classes} if c.classes else {}
        named = {"class_names": list(self.data.classes)} if self.data.classes is not None and len(self.data.classes) == c.classes else {}
        return {
            "name": c.name,
            "process": c.process,
            "process_options": c.process_options,
            "predicts": c.predicts,
            "time": c.time,
            "network": c.network_name,
            "network_options": options_of(c, self.shape),
            **classes,
            **named,
            "shape": list(self.shape),
            "data_range": c.data_range,
            "levels": 256,
            "versions": versions(),
            "training": {**c.for_card(), "step": self.step},
        }

    @torch.no_grad()
    def check(self, batch: Batch, done: bool) -> None:
        """Raises FloatingPointError where there is nothing to keep: a weight, or what the average says of a batch, is not finite, or at the end most updates were not."""
        c = self.config
        wrong = None
        if not all(torch.isfinite(p).all() for p in self.network.parameters()):
            wrong = "a weight is not finite"
        elif done and (2 * self.skipped > c.steps or self.in_a_row > 1):
            last = f", the last {self.in_a_row} of them in a row" if self.in_a_row > 1 else ""
            wrong = f"{self.skipped} of {c.steps} updates were not finite, and skipped{last}"
        else:
            part = batch.part(slice(0, c.batch // (c.accumulate * self.accelerator.num_processes)), self.accelerator.device)
            score = self._score(self.average.module.eval(), part.labels)
            mean, sigma = self.process.marginal(part.x0, part.t)
            if not torch.isfinite(score.model_output(mean + sd.expand_time(sigma.to(mean), mean) * part.eps, part.t)).all():
                wrong = "what the averaged weights say of a batch is not finite"
        if wrong:
            raise FloatingPointError(f"{self._diverged()}: {wrong}, so no checkpoint was written. {self._remedy()}")

    def save(self) -> None:
        """Write the checkpoint, whole or not at all, and the model of the averaged weights so far."""
        save_checkpoint(self.folder, self.step, self._state(), self.config.keep)
        if self.step < self.config.steps:
            self._write(self._model())

    def _state(self) -> dict[str, Any]:
        return {
            "config": json.dumps(self.config.identity()),
            "origin": json.dumps(self.origin),
            "step": self.step,
            "skipped": self.skipped,
            "in_a_row": self.in_a_row,
            "network": self.network.state_dict(),
            "average": self.average.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "scaler": self.scaler.state_dict(),
        }

    def _take_over(self, checkpoint: Checkpoint, state: dict[str, Any]) -> None:
        """Go on from a checkpoint of this run; raises ValueError for one of another."""
        check_same(checkpoint.path, state, self.config, self.origin)
        own = self._state()
        check_state(checkpoint.path, state, own, list(self.network.parameters()), self.config.steps)
        self.network.load_state_dict(state["network"])
        self.average.load_state_dict(state["average"])
        self.optimiser.load_state_dict({"state": state["optimiser"]["state"], "param_groups": own["optimiser"]["param_groups"]})  # constants are the code's
        self.scaler.load_state_dict(state.get("scaler", {}))
        self.step, self.skipped, self.in_a_row = state["step"], state["skipped"], state["in_a_row"]

    def _diverged(self) -> str:
        return f"training diverged at step {self.step}"

    def _remedy(self) -> str:
        """The line to type: another learning_rate is another run, from what there is of this one."""
        c, kept = self.config, checkpoints(self.folder)
        again = f"sdesolve-gen train --config {shlex.quote(str(self.folder / 'config.yaml'))} --set learning_rate={min(c.learning_rate / 3, 1e-3):.1g}"
        if not kept:
            return f"Lower learning_rate: {again} --resume never (there is no checkpoint yet)."
        start = f"--set {shlex.quote(f'init={kept[0].path}')} --out {shlex.quote(f'{c.out}-slower')} --steps {c.steps - kept[0].step}"
        anew = "anew, with --resume never, where its weights have grown too far"
        return f"Lower learning_rate, {anew}, or in a run of its own from the checkpoint, which is whole: {again} {start}"


def _accelerator(device: str) -> Accelerator:
    from accelerate import Accelerator

    return Accelerator(cpu=device == "cpu", mixed_precision="no")  # precision is the config's: _Run does the autocast


@contextlib.contextmanager
def _in_half_precision(precision: str, device: torch.device) -> Iterator[None]:
    """Say that a kind of device lacks an operation for a type in our words; as a ValueError."""
    try:
        yield
    except RuntimeError as error:
        if precision == "fp32" or "not implemented for" not in str(error):
            raise
        others = " or ".join(f'precision="{other}"' for other in PRECISIONS if other != precision)
        raise ValueError(f'precision="{precision}" cannot be had on {device.type} ({str(error).splitlines()[0]}); expected {others}.') from error


def learning_rate(config: TrainConfig, step: int) -> float:
    """Linear growth over ``warmup`` steps, then constant, or half a cosine down to 0 at ``decay``."""
    warm = min(1.0, (step + 1) / config.warmup)
    if config.schedule == "constant":
        return config.learning_rate * warm
    return config.learning_rate * warm * 0.5 * (1 + math.cos(math.pi * step / (config.decay or config.steps)))
