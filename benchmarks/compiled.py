"""What compile=True gains: time of a solve without it over time with it, and what the first call costs.

    python benchmarks/compiled.py [--repeats 5]

One thread; the ratio is taken within each repeat and the median printed.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from typing import Any

import torch
from gradients import Drift
from overhead import PROCESS, null_model
from torch import Tensor

import sdesolve as sd


def growth(x: Tensor, t: Tensor) -> Tensor:
    prey, predator = x.unbind(1)
    return torch.stack([prey * (1 - predator), predator * (prey - 1)], 1)


REVERSE = PROCESS.reverse(null_model)
CASES: dict[str, tuple[Any, Tensor, str, int]] = {
    "Lotka-Volterra with noise, 64x2, sriw1": (sd.SDE(growth, lambda x, t: 0.02 * x), torch.full((64, 2), 1.5), "sriw1", 300),
    "neural ODE, 256x64, rk4": (sd.ODE(Drift()), torch.ones(256, 64), "rk4", 200),
    "null model, 100,000x1, rk4": (REVERSE, torch.ones(100_000, 1), "rk4", 30),
    "null model, 64x3x32x32, euler_maruyama": (REVERSE, torch.ones(64, 3, 32, 32), "euler_maruyama", 50),
    "null model, 64x2, euler_maruyama": (REVERSE, torch.ones(64, 2), "euler_maruyama", 500),
}


def seconds(case: str, compile: bool, steps: int | None = None) -> float:
    """Processor time of a solve."""
    problem, x, method, usual = CASES[case]
    start = time.process_time()
    sd.solve(problem, x, method, steps=steps or usual, seed=0, compile=compile)
    return time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{platform.processor() or platform.machine()}, one thread, torch {torch.__version__}")
    print(f"{'case':<42}{'first call, s':>14}{'times faster':>14}")
    for case in CASES:
        first = seconds(case, compile=True, steps=3)
        gain = statistics.median(seconds(case, compile=False) / seconds(case, compile=True) for _ in range(args.repeats))
        print(f"{case:<42}{first:>14.1f}{gain:>14.2f}")


if __name__ == "__main__":
    main()
