"""Images a second of ``sdesolve_gen.train`` and of the loop of diffusers' unconditional training example, on one network and batch.

    python benchmarks/training_throughput.py                                          # a small UNet2DModel, a CPU: a minute
    python benchmarks/training_throughput.py --width 128 --levels 4 --batch 128 --steps 20 --precision bf16 --compile --channels-last

Both train a ``diffusers.UNet2DModel`` on the DDPM objective with an exponential average of the weights, gradient clipping and the loss read
back at every step, as the example does, and run the network alike: precision, compilation and memory layout are the same for both.  Pictures lie
decoded in memory for both, which the example does not have.  Stretches of the two alternate, so that what else the machine does falls on both;
figures are medians, and the ratio is taken within a turn.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler, UNet2DModel
from diffusers.training_utils import EMAModel
from torch import Tensor, nn

from sdesolve_gen.data import read_data
from sdesolve_gen.networks import NETWORKS
from sdesolve_gen.training import TrainConfig, loop
from sdesolve_gen.training.batches import Ahead

PEER = "diffusers example"


class Bare(nn.Module):
    """A UNet2DModel as (x, time) -> output."""

    def __init__(self, channels: int, **options: object) -> None:
        super().__init__()
        self.net = UNet2DModel(in_channels=channels, out_channels=channels, **options)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        return self.net(x, time).sample


def ours(config: TrainConfig, device: str) -> Callable[[], float]:
    """One update of our loop; returns its loss."""
    data = read_data(config.data)
    run = loop._Run(config, data, loop._accelerator(device))
    ahead = Ahead(data, config, run.process)
    return lambda: float(run.update(ahead.batch(run.step))[0])


def theirs(config: TrainConfig, network: UNet2DModel, device: str) -> Callable[[], float]:
    """One update of the example's loop; returns its loss."""
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=device == "cpu", mixed_precision="no")  # a process has one: precision is below
    images = read_data(config.data).images.float() / 127.5 - 1
    loader = torch.utils.data.DataLoader(images, batch_size=config.batch, shuffle=True, drop_last=True)
    scheduler = DDPMScheduler(num_train_timesteps=1000)
    network = network.to(accelerator.device, memory_format=torch.channels_last if config.channels_last else torch.preserve_format)
    average = EMAModel(network.parameters(), decay=config.ema, use_ema_warmup=True)
    average.to(accelerator.device)
    optimiser = torch.optim.AdamW(network.parameters(), lr=config.learning_rate)
    rate = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: min(1.0, (step + 1) / config.warmup))
    model, optimiser, loader, rate = accelerator.prepare(network, optimiser, loader, rate)
    if config.compile:
        model = torch.compile(model)

    def endless() -> Iterator[Tensor]:
        while True:
            yield from loader

    batches = endless()

    def update() -> float:
        clean = next(batches)
        noise = torch.randn(clean.shape, device=clean.device)
        level = torch.randint(0, 1000, (len(clean),), device=clean.device)
        noisy = scheduler.add_noise(clean, noise, level)
        with torch.autocast(clean.device.type, torch.bfloat16, enabled=config.precision == "bf16"):
            loss = F.mse_loss(model(noisy, level).sample.float(), noise)
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(model.parameters(), config.clip)
        optimiser.step()
        rate.step()
        optimiser.zero_grad()
        average.step(network.parameters())
        return loss.detach().item()

    return update


def stretch(update: Callable[[], float], steps: int, batch: int) -> float:
    """Images a second."""
    _settle()
    begun = time.perf_counter()
    losses = [update() for _ in range(steps)]
    _settle()
    passed = time.perf_counter() - begun
    assert all(map(math.isfinite, losses)), f"training diverged, and no time of that counts: {losses}"
    return steps * batch / passed


def _settle() -> None:
    """Wait for the GPU: the last update's step of the optimiser is under way when its loss has been read."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=32)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--levels", type=int, default=3)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=4, help="of a stretch")
    parser.add_argument("--stretches", type=int, default=8)
    parser.add_argument("--device", default="auto", choices=["auto", "cpu"])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"])
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--channels-last", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    blocks = ["DownBlock2D"] * (options.levels - 1) + ["AttnDownBlock2D"]
    network = {
        "sample_size": options.side,
        "layers_per_block": 2,
        "block_out_channels": [options.width * min(2, 1 + level) for level in range(options.levels)],
        "down_block_types": blocks,
        "up_block_types": [name.replace("Down", "Up") for name in reversed(blocks)],
    }
    NETWORKS["UNet2DModel"] = Bare
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        draws = np.random.default_rng(0).integers(0, 256, (max(256, 4 * options.batch), 3, options.side, options.side), dtype=np.uint8)
        np.savez(Path(folder) / "images.npz", images=draws)
        config = TrainConfig(
            data=f"{folder}/images.npz", out=folder, name="throughput", network_name="UNet2DModel", network=network, predicts="epsilon", time=1000,
            weight="sigma2", times="levels", batch=options.batch, learning_rate=1e-4, ema_warmup=True, precision=options.precision, compile=options.compile,
            channels_last=options.channels_last,
        )  # fmt: skip
        torch.manual_seed(config.seed)
        plain = UNet2DModel(in_channels=3, out_channels=3, **copy.deepcopy(network))
        loops = {"sdesolve_gen": ours(config, options.device), PEER: theirs(config, plain, options.device)}
        for update in loops.values():
            stretch(update, 3, options.batch)  # warm: chooses convolutions, compiles, and makes the optimiser's state
        turns = [{name: stretch(update, options.steps, options.batch) for name, update in loops.items()} for _ in range(options.stretches)]
    gpu = options.device == "auto" and torch.cuda.is_available()
    device = torch.cuda.get_device_name() if gpu else f"CPU, {options.threads} threads"
    how = f"{options.precision}{', compiled' * options.compile}{', channels last' * options.channels_last}"
    print(f"{sum(p.numel() for p in plain.parameters()):,} weights, batch {options.batch}, {options.side} x {options.side}, {how}, {device}")
    medians = {name: statistics.median(turn[name] for turn in turns) for name in loops}
    for name, rate in medians.items():
        print(f"{name:20s}{rate:10.1f} images/s   ({min(turn[name] for turn in turns):.1f} to {max(turn[name] for turn in turns):.1f})")
    ratio = statistics.median(turn["sdesolve_gen"] / turn[PEER] for turn in turns)
    print(json.dumps({"device": device, "how": how, "images_per_second": {name: round(rate, 2) for name, rate in medians.items()}, "ratio": round(ratio, 3)}))


if __name__ == "__main__":
    main()
