"""Images a second of ``m.sample(n, "pc")`` and of the predictor-corrector loop that score_sde runs, on one network and batch.

    python benchmarks/sampling_throughput.py --threads 1                                       # a small NCSN++, a CPU: half a minute
    python benchmarks/sampling_throughput.py --device cuda --precision bf16 --compile          # the published NCSN++ of CIFAR-10

The loop by hand is that of Song et al. 2021, algorithms 2 and 4, for the VE process: reverse diffusion on the published levels, and one Langevin step
whose size is that of the means of |z| and |score| over the batch.  Both make two network calls a step and none after the last, and draw their priors.  With
``--precision`` or ``--compile`` ours is measured a second time, so executed; the loop by hand and the first of ours are in float32.  Stretches of
all alternate, so that what else the machine does falls on each; figures are medians, and ratios are taken within a turn.  Weights are random.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

import sdesolve_gen as gen
from sdesolve_gen.networks import NETWORKS

SNR = 0.16
BY_HAND = "score_sde's loop"


@torch.no_grad()
def by_hand(network: Callable[[Tensor, Tensor], Tensor], x: Tensor, steps: int, low: float, high: float) -> Tensor:
    """The mean of the last of ``steps`` steps from ``x``, a draw of the prior, for sigma(t) = low (high/low)^t and a network that says the score, told sigma.

    At t, from 1 to 1e-5 in steps of one size:  x <- x + e s(x, t) + sqrt(2 e) z,  e = 2 (snr |z|/|s|)^2,  and with the level i = floor((N - 1) t),
    x <- x + v s(x, t) + sqrt(v) z,  v = sigma_i^2 - sigma_{i-1}^2,  sigma_{-1} = 0.
    """
    rows = len(x)
    levels = torch.linspace(math.log(low), math.log(high), steps, device=x.device).exp()
    below = torch.cat([torch.zeros_like(levels[:1]), levels[:-1]])
    mean = x
    for t in torch.linspace(1, 1e-5, steps, device=x.device):
        times = t.expand(rows)
        sigma, i = low * (high / low) ** times, (times * (steps - 1)).long()
        score, z = network(x, sigma), torch.randn_like(x)
        size = 2 * (SNR * _mean_norm(z) / _mean_norm(score)) ** 2
        x = x + size * score + torch.sqrt(2 * size) * z
        v = (levels[i] ** 2 - below[i] ** 2)[:, None, None, None]
        mean = x + v * network(x, sigma)
        x = mean + torch.sqrt(v) * torch.randn_like(x)
    return mean


def _mean_norm(x: Tensor) -> Tensor:
    return x.reshape(len(x), -1).norm(dim=1).mean()


def random_model(card: dict, device: str) -> gen.Model:
    """A model with random weights whose scores are of the size of a trained one's: with faint ones, as training starts, Langevin steps explode."""
    torch.manual_seed(0)
    network = NETWORKS[card["network"]](**card["network_options"])
    nn.init.xavier_normal_(network.head[-1].weight)
    return gen.Model(network.to(device), card)


def contenders(model: gen.Model, batch: int, steps: int, execution: dict) -> dict[str, Callable[[], Tensor]]:
    """Each draws one batch of images."""
    low, high, device = model.process.sigma_min, model.process.sigma_max, model.device

    def ours(model: gen.Model) -> Callable[[], Tensor]:
        return lambda: model.sample(batch, "pc", steps=steps, seed=0, snr=SNR, denoise=False)

    found = {BY_HAND: lambda: by_hand(model.network, high * torch.randn(batch, *model.shape, device=device), steps, low, high), "sdesolve": ours(model)}
    if execution != {"precision": "fp32", "compile": False}:
        executed = gen.Model(copy.deepcopy(model.network), model.card).to(**execution)
        found[f"sdesolve, {execution['precision']}{', compiled' * execution['compile']}"] = ours(executed)
    return found


def seconds(draw: Callable[[], Tensor], device: torch.device) -> float:
    """Time of a batch, which is finite."""
    _settle(device)
    begun = time.perf_counter()
    images = draw()
    _settle(device)
    passed = time.perf_counter() - begun
    assert torch.isfinite(images).all(), "a sampler of random weights diverged: no time of that counts"
    return passed


def _settle(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=["cpu", "cuda"])
    parser.add_argument("--width", type=int, help="features of the network; default the published 128, and 32 on a CPU")
    parser.add_argument("--blocks", type=int, help="of each resolution; default the published 4, and 1 on a CPU")
    parser.add_argument("--batch", type=int, help="default 64, and 8 on a CPU")
    parser.add_argument("--steps", type=int, help="of a batch; default 20, and 5 on a CPU")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16", "fp16"])
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()

    torch.set_num_threads(options.threads)
    small = options.device == "cpu"
    batch, steps = options.batch or (8 if small else 64), options.steps or (5 if small else 20)
    card = gen.preset("ncsnpp_cifar10_ve")
    card["network_options"] |= {"width": options.width or (32 if small else 128), "blocks": options.blocks or (1 if small else 4)}
    model = random_model(card, options.device)
    draws = contenders(model, batch, steps, {"precision": options.precision, "compile": options.compile})
    first = {name: seconds(draw, model.device) for name, draw in draws.items()}  # warm: chooses convolutions, and compiles
    turns = [{name: seconds(draw, model.device) for name, draw in draws.items()} for _ in range(options.repeats)]

    device = torch.cuda.get_device_name() if options.device == "cuda" else f"CPU, {options.threads} threads"
    weights = sum(p.numel() for p in model.network.parameters())
    print(f"{weights:,} weights, batch {batch}, {steps} steps of 2 calls, 32 x 32, {device}, torch {torch.__version__}")
    results = {}
    for name in draws:
        taken = [turn[name] for turn in turns]
        ratio = statistics.median(turn[BY_HAND] / turn[name] for turn in turns)
        rate, call = batch / statistics.median(taken), 1000 * statistics.median(taken) / (2 * steps)
        results[name] = {"images_per_second": round(rate, 3), "ms_per_call": round(call, 3), "ratio": round(ratio, 3), "first_s": round(first[name], 1)}
        print(f"{name:26s}{rate:9.2f} images/s  {call:9.2f} ms a call  {ratio:6.2f} times as fast   (first {first[name]:.1f} s; {min(taken):.2f} to {max(taken):.2f} s)")
    print(json.dumps({"device": device, "weights": weights, "batch": batch, "steps": steps, "results": results}))


if __name__ == "__main__":
    main()
