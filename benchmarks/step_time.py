"""Time per step of sdesolve, of a loop written by hand, and of torchsde and torchdiffeq called directly, in one run.

    taskset -c 0 python benchmarks/step_time.py [--threads 1] [--repeats 9] [--scale 1.0]

Two equations of the VP process with a null model, so that only the solvers' own time is seen: the reverse SDE by Euler-Maruyama, and
the probability flow by four stages of fourth order (sdesolve's and the hand's the classic ones, torchdiffeq's the 3/8 rule).  Three
states: images, many small rows, one long column.  Every contender runs in every repeat; ratios are taken within a repeat, and the
median is printed with the quartiles.  Noise is drawn by each in its own way: sdesolve by name, the hand by torch.randn, torchsde from its
Brownian interval.
"""

from __future__ import annotations

import argparse
import itertools
import json
import platform
import statistics
from collections.abc import Callable
from importlib.metadata import version

import torch
from overhead import PROCESS, by_hand, null_model, ours, seconds, torchsde_loop
from torch import Tensor

import sdesolve as sd

Loop = Callable[[Tensor, int], Tensor]
END = 1e-3
SHAPES = {(64, 3, 32, 32): 60, (64, 2): 600, (100_000, 1): 60}  # steps of a run


def flow(x: Tensor, t: Tensor | float) -> Tensor:
    """dx/dt of the probability flow, as one would write it for this one case."""
    beta = 0.1 + t * 19.9
    return -0.5 * beta * (x + null_model(x, torch.as_tensor(t, dtype=x.dtype).expand(len(x))))


@torch.no_grad()
def rk4_by_hand(x: Tensor, steps: int) -> Tensor:
    for t, after in itertools.pairwise(torch.linspace(1.0, END, steps + 1).tolist()):
        h = after - t
        a = flow(x, t)
        b = flow(x + 0.5 * h * a, t + 0.5 * h)
        c = flow(x + 0.5 * h * b, t + 0.5 * h)
        x = x + h / 6 * (a + 2 * (b + c) + flow(x + h * c, after))
    return x


def rk4_ours(x: Tensor, steps: int) -> Tensor:
    return sd.solve(PROCESS.probability_flow(null_model), x, "rk4", steps=steps).x


@torch.no_grad()
def rk4_torchdiffeq(x: Tensor, steps: int) -> Tensor:
    from torchdiffeq import odeint

    return odeint(lambda t, y: flow(y, t), x, torch.tensor([1.0, END]), method="rk4", options={"step_size": (1 - END) / steps})[-1]


EQUATIONS: dict[str, dict[str, Loop]] = {
    "reverse SDE, Euler-Maruyama": {"by hand": by_hand, "sdesolve": ours, "torchsde": torchsde_loop},
    "probability flow, rk4": {"by hand": rk4_by_hand, "sdesolve": rk4_ours, "torchdiffeq": rk4_torchdiffeq},
}


def measure(equation: str, shape: tuple[int, ...], steps: int, repeats: int) -> dict[str, object]:
    x, contenders = PROCESS.prior(shape, seed=0), EQUATIONS[equation]
    for loop in contenders.values():
        loop(x, 3)
    runs = [{name: seconds(loop, x, steps) for name, loop in contenders.items()} for _ in range(repeats)]
    ratios = {name: statistics.quantiles([run[name] / run["by hand"] for run in runs], n=4, method="inclusive") for name in contenders}
    return {
        "equation": equation,
        "shape": list(shape),
        "microseconds a step": {name: round(1e6 * statistics.median(run[name] for run in runs), 1) for name in contenders},
        "ratio to the loop by hand": {name: round(middle, 2) for name, (_, middle, _) in ratios.items()},
        "quartiles of the ratio": {name: [round(low, 2), round(high, 2)] for name, (low, _, high) in ratios.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--scale", type=float, default=1.0, help="multiplies the number of steps of a run")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    machine = {"processor": platform.processor() or platform.machine(), "threads": arguments.threads}
    versions = {name: version(name) for name in ("torch", "sdesolve", "torchsde", "torchdiffeq")}
    results = [
        measure(equation, shape, max(1, round(steps * arguments.scale)), arguments.repeats) for equation in EQUATIONS for shape, steps in SHAPES.items()
    ]
    print(json.dumps({"machine": machine, "versions": versions, "results": results}, indent=2))


if __name__ == "__main__":
    main()
