"""How many network calls one after the other are left where the steps of a window are taken at once, and what that costs in all.

    python benchmarks/parallel_in_time.py [--steps 100] [--windows 20 50 100] [--tolerance 1e-4] [--samples 4] [--device cpu]

On a mixture in two dimensions with its exact score (VP and VE), and on the embedded MNIST model.  Printed for each method, against the sequential solve
with the same noise: "depth", the calls one after the other; "less", by what factor that is fewer; "calls", those that a sample saw on average;
"error", the root mean square of the difference of the ends in units of the tolerance times the root mean square of the ends, of the median and of the worst
sample; and the seconds of both.
"""

from __future__ import annotations

import argparse
import time
from typing import NamedTuple

import torch
from torch import Tensor

import sdesolve as sd
import sdesolve_gen as gen
from sdesolve import exam

METHODS = ("euler_maruyama", "reverse_diffusion", "ddim", "heun", "pc")


class Case(NamedTuple):
    """A problem, and where its samples start."""

    problem: sd.ReverseSDE
    x: Tensor


def cases(samples: int, device: str) -> dict[str, Case]:
    target, model = exam.mixture_2d(), gen.load("mnist").to(device)
    made = {}
    for name, process in (("mixture, VP", sd.VPSDE()), ("mixture, VE", sd.VESDE(sigma_max=20.0))):
        made[name] = Case(process.reverse(target.score(process)), process.prior((samples, 2), seed=0, device=device))
    made["MNIST"] = Case(model.process.reverse(model.score), model.process.prior((samples, *model.shape), seed=0, device=device))
    return made


def solved(case: Case, method: str, steps: int, parallel: sd.Parallel | None) -> tuple[sd.Solution, float]:
    """The solution and its seconds."""
    start = time.perf_counter()
    solution = sd.solve(case.problem, case.x, method, steps=steps, seed=0, parallel=parallel)
    float(solution.x.sum())  # waits for a device
    return solution, time.perf_counter() - start


def measured(case: Case, method: str, steps: int, parallel: sd.Parallel) -> dict[str, float]:
    walked, before = solved(case, method, steps, None)
    near, after = solved(case, method, steps, parallel)
    error = (near.x - walked.x).flatten(1).norm(dim=1) / walked.x.flatten(1).norm(dim=1)
    return {
        "depth": near.stats["depth"],
        "less": walked.stats["calls"] / near.stats["depth"],
        "calls": float(torch.as_tensor(near.nfe).double().mean()),
        "median error": float(error.median()) / max(parallel.tolerance, 1e-30),
        "worst error": float(error.max()) / max(parallel.tolerance, 1e-30),
        "sequential": before,
        "parallel": after,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--windows", type=int, nargs="+", default=[20, 50, 100])
    parser.add_argument("--tolerance", type=float, default=1e-4)
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    print(f"{'':<13}{'method':<19}{'update':<8}{'window':>6}{'depth':>7}{'less':>7}{'calls':>8}{'error: median':>15}{'worst':>8}{'seconds before':>16}{'after':>8}")
    for name, case in cases(arguments.samples, arguments.device).items():
        for method in METHODS:
            for window in arguments.windows:
                for update in ("picard", "secant"):
                    row = measured(case, method, arguments.steps, sd.Parallel(window, arguments.tolerance, update))
                    depth, less, calls, median, worst, before, after = row.values()
                    print(f"{name:<13}{method:<19}{update:<8}{window:>6}{depth:>7}{less:>7.1f}{calls:>8.0f}{median:>15.2f}{worst:>8.2f}{before:>16.2f}{after:>8.2f}", flush=True)


if __name__ == "__main__":
    main()
