"""How far deterministic samplers end from where the probability flow ends, by number of network calls, on the mixture in the plane with its exact score.

    python benchmarks/few_calls.py [--process VP EDM] [--grid log_snr karras uniform]

Root mean square over 1,500 samples, and the median in brackets: a sample that ends at the wrong mode counts in the first and not in the second.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import torch
from problems import mixture_score

import sdesolve as sd
from sdesolve import exam

PROCESSES = {"VP": sd.VPSDE(), "EDM": sd.EDM()}
CALLS = (5, 8, 10, 15, 20, 50)
METHODS = (
    ("ddim", {}),
    ("dpmpp_2m", {}),
    ("dpmpp_3m", {}),
    ("dpmpp_3m", {"published": True}),
    ("unipc", {}),
    ("unipc", {"order": 3}),
    ("deis", {}),
    ("deis", {"variant": "log_rho"}),
    ("ipndm", {}),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--process", nargs="*", default=["VP", "EDM"], choices=PROCESSES)
    parser.add_argument("--grid", nargs="*", default=["log_snr"])
    arguments = parser.parse_args()
    target = exam.mixture_2d()
    for name in arguments.process:
        p = PROCESSES[name]
        x = target.perturbed(p, p.T).sample(1500, seed=0).double()
        problem = p.probability_flow(mixture_score(target, p))
        end = sd.solve(problem, x, "dop853", rtol=1e-8, atol=1e-8).x
        for grid in arguments.grid:
            print(f"\n| {name}, {grid} | " + " | ".join(f"{calls} calls" for calls in CALLS) + " |\n|" + "---|" * (1 + len(CALLS)))
            for method, options in METHODS:
                away = [(sd.solve(problem, x, method, steps=n, grid=grid, **options).x - end).square().mean(1) for n in CALLS]
                cells = [f"{float(square.mean().sqrt()):.3f} ({float(square.median().sqrt()):.3f})" for square in away]
                shown = ", ".join(f"{key}={value!r}" for key, value in options.items())
                print(f"| `{method}` {shown} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
