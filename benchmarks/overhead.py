"""Time per step of solve(method="euler_maruyama") against a hand-written loop, and torchsde's, in one run.

    python benchmarks/overhead.py [--threads 1] [--repeats 15]

The model is null, so only the solver's own time is seen.  Ours draws seeded noise; the loop by hand draws torch.randn; torchsde its
Brownian interval, told the step beforehand (without that hint, at 64 x 2 a step took 1.3, 70 and 3 times as long in solves of 10, 100 and 300).
The ratio is taken within each repeat, and the median is printed.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import platform
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

import sdesolve as sd

PROCESS = sd.VPSDE()
SHAPES = {(64, 2): 1000, (64, 3, 32, 32): 100}


def null_model(x: Tensor, t: Tensor) -> Tensor:
    return torch.zeros_like(x)


def by_hand(x: Tensor, steps: int) -> Tensor:
    """Euler-Maruyama of the reverse VP SDE as one would write it for this one case."""
    ts = torch.linspace(1.0, 1e-3, steps + 1).tolist()
    for t, after in itertools.pairwise(ts):
        h, beta = t - after, 0.1 + t * 19.9
        score = null_model(x, torch.full((len(x),), t))
        x = x + h * (0.5 * beta * x + beta * score) + math.sqrt(beta * h) * torch.randn_like(x)
    return x


def ours(x: Tensor, steps: int) -> Tensor:
    return sd.solve(PROCESS.reverse(null_model), x, "euler_maruyama", steps=steps, seed=0).x


def torchsde_loop(x: Tensor, steps: int) -> Tensor:
    """torchsde's Euler on the same equation in forward time s = 1 - t, which is how it takes a reverse SDE."""
    import torchsde

    class Reverse(torch.nn.Module):
        noise_type, sde_type = "diagonal", "ito"

        def f(self, s: Tensor, y: Tensor) -> Tensor:
            beta = 0.1 + (1 - s) * 19.9
            return 0.5 * beta * y + beta * null_model(y, (1 - s).expand(len(y)))

        def g(self, s: Tensor, y: Tensor) -> Tensor:
            return (0.1 + (1 - s) * 19.9).sqrt().expand_as(y)

    flat, ts = x.flatten(1), torch.tensor([0.0, 1 - 1e-3])
    dt = float(ts[1]) / steps
    motion = torchsde.BrownianInterval(ts[0], ts[1], size=flat.shape, dt=dt)
    with torch.no_grad():
        return torchsde.sdeint(Reverse(), flat, ts, bm=motion, method="euler", dt=dt)[-1].reshape(x.shape)


def seconds(function: Callable[[Tensor, int], Tensor], x: Tensor, steps: int) -> float:
    start = time.perf_counter()
    function(x, steps)
    return (time.perf_counter() - start) / steps


def measure(shape: tuple[int, ...], steps: int, repeats: int) -> dict[str, object]:
    x = PROCESS.prior(shape, seed=0)
    contenders = {"by hand": by_hand, "sdesolve": ours, "torchsde": torchsde_loop}
    for function in contenders.values():
        function(x, 10)
    runs = [{name: seconds(function, x, steps) for name, function in contenders.items()} for _ in range(repeats)]
    return {
        "shape": list(shape),
        "steps": steps,
        "microseconds a step": {name: round(1e6 * statistics.median(run[name] for run in runs), 1) for name in contenders},
        "ratio to the loop by hand": {name: round(statistics.median(run[name] / run["by hand"] for run in runs), 2) for name in contenders},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=15)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    machine = {"processor": platform.machine(), "threads": arguments.threads, "torch": torch.__version__}
    results = [measure(shape, steps, arguments.repeats) for shape, steps in SHAPES.items()]
    print(json.dumps({"machine": machine, "results": results}, indent=2))


if __name__ == "__main__":
    main()
