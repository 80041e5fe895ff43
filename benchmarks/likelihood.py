"""What a log-likelihood costs, beside the published route: the same network, probe and eps, one run, at the same tolerance and at the same accuracy.

    python benchmarks/likelihood.py [--cases mnist unet] [--batch 64] [--tolerance 1e-5] [--also 4e-5] [--probes 1] [--device cuda] [--json FILE]

The published route [Song et al. 2021, the released code] hands the whole batch to scipy's RK45 as one system in numpy, in the time of the process; each call
asks the network twice, once for the drift and once for the divergence, of which a backward pass is taken; another probe is another solve.  ``error`` is the
largest difference of 4 samples, in bits/dim, from a solve in float64 at a hundredth of the tolerance with the same probe; the same accuracy is that of the
fastest solve of ours, at any of the tolerances, whose error is no larger than the published route's.  Seconds are of one processor, or on a GPU of the
clock; convolutions there are in float32 and not, as torch has them by default, in TF32, whose rounding of 1e-3 either solver would take for its own error
(``--tf32`` to see).
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import platform
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

import sdesolve as sd
import sdesolve_gen as gen


def mnist(device: str) -> tuple[sd.Score, tuple[int, ...]]:
    """The embedded model."""
    model = gen.load("mnist", device)
    return model.score, model.shape


def unet(device: str) -> tuple[sd.Score, tuple[int, ...]]:
    """A small network for 3 x 32 x 32 with random weights, which disturbs the score of N(0, 1/4) a little."""
    torch.manual_seed(0)
    network = gen.networks.UNet(channels=3, width=32, multipliers=(1, 2), blocks=1).eval().requires_grad_(False)
    for parameter in network.parameters():
        parameter += 0.02 * torch.randn_like(parameter)
    return sd.as_score(network.to(device), sd.VPSDE(), predicts="edm", time="log_sigma/4"), (3, 32, 32)


CASES = {"mnist": mnist, "unet": unet}


def published(score: sd.Score, x0: Tensor, probe: Tensor, tolerance: float, eps: float) -> tuple[Tensor, int]:
    """ln p and the calls of the solver, each of which is two of the network."""
    from scipy.integrate import solve_ivp

    process, size = score.process, x0.numel()
    flow = process.probability_flow(score, eps)
    calls = 0

    def function(t: float, state: np.ndarray) -> np.ndarray:
        nonlocal calls
        calls += 1
        x = torch.from_numpy(state[:size]).reshape(x0.shape).to(x0)
        with torch.no_grad():
            drift = flow.drift(x, t)
        with torch.enable_grad():
            x.requires_grad_()
            weighted = (flow.drift(x, t) * probe).sum()
        divergence = (torch.autograd.grad(weighted, x)[0] * probe).flatten(1).sum(1)
        return np.concatenate([drift.cpu().numpy().ravel(), divergence.cpu().numpy().ravel()])

    start = np.concatenate([x0.cpu().numpy().ravel(), np.zeros(len(x0))])
    end = torch.from_numpy(solve_ivp(function, (eps, process.T), start, rtol=tolerance, atol=tolerance, method="RK45").y[:, -1])
    return process.prior_log_prob(end[:size].reshape(x0.shape)) + end[size:], calls


def timed(solve: Callable[[], Any], device: str) -> tuple[Any, float]:
    """What ``solve`` gives, and the seconds it took: of the processor, or of the clock where a GPU works."""
    clock = time.process_time if device == "cpu" else time.perf_counter
    begun = clock()
    found = solve()
    if device != "cpu":
        torch.cuda.synchronize()
    return found, clock() - begun


def exact(score: sd.Score, x0: Tensor, noise: Tensor, tolerance: float, eps: float) -> Tensor:
    """ln p in float64."""
    fine = sd.as_score(copy.deepcopy(score.model).double(), score.process, predicts=score.predicts, time=score.time, sigma_data=score.sigma_data)
    r = sd.log_likelihood(score.process, fine, x0.double(), noise=noise.double(), rtol=tolerance / 100, atol=tolerance / 100, eps=eps, method="dop853")
    return r.log_prob


def measure(
    case: str, batch: int, tolerance: float, also: Sequence[float] = (), batch_size: int | None = None, probes: int = 1, eps: float = 1e-5, device: str = "cpu"
) -> list[dict[str, Any]]:
    """Seconds, calls, pullbacks and errors of both routes, the published one first, the errors those of the first probe in the first 4 samples."""
    score, shape = CASES[case](device)
    prior = score.process.prior((batch, *shape), seed=0, device=device)
    x0 = sd.solve(score.process.reverse(score), prior, "ddim", steps=20).x.clamp(-1, 1)
    noise = torch.randn(probes, *x0.shape, generator=torch.Generator().manual_seed(0)).sign().to(device)
    fine, bits = exact(score, x0[:4], noise[:1, :4], tolerance, eps).cpu(), x0[0].numel() * math.log(2)

    def row(route: str, tolerance: float, log_prob: Tensor, seconds: float, calls: float, pullbacks: float) -> dict[str, Any]:
        error = float(((log_prob[:4].cpu() - fine) / bits).abs().max())
        return {"route": route, "tolerance": tolerance, "seconds": seconds, "calls": calls, "pullbacks": pullbacks, "error": error}

    sd.value_and_divergence(score, x0, 0.5, "hutchinson", noise=noise[:1])  # warm
    runs, seconds = timed(lambda: [published(score, x0, probe, tolerance, eps) for probe in noise], device)
    calls = sum(calls for _, calls in runs)
    rows = [row("published", tolerance, runs[0][0], seconds, 2 * calls, calls)]
    for own in (tolerance, *also):
        options = {"noise": noise, "rtol": own, "atol": own, "eps": eps, "batch_size": batch_size}
        r, seconds = timed(lambda: sd.log_likelihood(score.process, score, x0, **options), device)  # noqa: B023
        rows.append(row("sdesolve", own, r.parts[0], seconds, float(r.nfe.double().mean()), r.stats["vjps"] * float(r.nfe.double().mean()) / r.stats["calls"]))
    return rows


def ratios(rows: Sequence[dict[str, Any]]) -> dict[str, float | None]:
    """How many times as fast ours is: at the same tolerance, and at the same accuracy where one of ours has it."""
    theirs, *ours = rows
    enough = [row["seconds"] for row in ours if row["error"] <= theirs["error"]]
    return {"same tolerance": theirs["seconds"] / ours[0]["seconds"], "same accuracy": theirs["seconds"] / min(enough) if enough else None}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--batch-size", type=int, help="samples that sdesolve solves together; default: all")
    parser.add_argument("--tolerance", type=float, default=1e-5)
    parser.add_argument("--also", nargs="*", type=float, default=[4e-5], help="other tolerances for sdesolve")
    parser.add_argument("--probes", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--tf32", action="store_true", help="let a GPU round what it convolves to TF32")
    parser.add_argument("--json", help="file to write the figures to")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.backends.cudnn.allow_tf32 = args.tf32
    rows = {case: measure(case, args.batch, args.tolerance, args.also, args.batch_size, args.probes, device=args.device) for case in args.cases}
    machine = f"{platform.processor() or platform.machine()}, one thread" if args.device == "cpu" else torch.cuda.get_device_name(args.device)
    print(f"batch {args.batch}, {args.probes} probe(s), {machine}, torch {torch.__version__}")
    print(f"{'case':<8}{'route':<12}{'tolerance':>10}{'seconds':>9}{'calls':>8}{'pullbacks':>11}{'error, bits/dim':>17}")
    for case, measured in rows.items():
        for row in measured:
            print(f"{case:<8}{row['route']:<12}{row['tolerance']:>10g}{row['seconds']:>9.1f}{row['calls']:>8.1f}{row['pullbacks']:>11.1f}{row['error']:>17.1e}")
        print(f"{case:<8}times as fast: {', '.join(f'{value:.2f} at the {name}' for name, value in ratios(measured).items() if value)}")
    if args.json:
        with open(args.json, "w", encoding="utf-8") as file:
            json.dump({"batch": args.batch, "machine": machine, "torch": torch.__version__, "cases": rows}, file, indent=1)


if __name__ == "__main__":
    main()
