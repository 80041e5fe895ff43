"""What statistics of the model are worth to ``dpm_solver_v3`` at few calls, on mixtures with exact scores, or on the embedded digits.

    python benchmarks/model_statistics.py [--range] [--digits]

Mean distance to where a fine solve takes the same draws (root mean square over coordinates, in the data's units) and its standard error over the draws;
the denoiser's call is one of those counted.  In brackets the spread of that mean over statistics from three seeds.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import torch
from problems import mixture_score
from torch import Tensor

import sdesolve as sd
from sdesolve import exam

CALLS = (5, 8, 10, 20)
OTHERS: dict[str, dict[str, Any]] = {"dpmpp_2m": {}, "unipc": {}, "auto": {}}
PROBLEMS = (("2d", exam.mixture_2d(), sd.VPSDE()), ("2d", exam.mixture_2d(), sd.EDM()), ("64d", exam.mixture_64d(), sd.VPSDE()), ("64d", exam.mixture_64d(), sd.RectifiedFlow()))


def measured(apart: Tensor) -> str:
    distance = apart.double().flatten(1).square().mean(1).sqrt()
    return f"{float(distance.mean()):.4f} ± {float(distance.std() / len(distance) ** 0.5):.4f}"


def table(name: str, problem: sd.ProbabilityFlow, x: Tensor, span: sd.Range | None, seeds: int, samples: int) -> None:
    where: dict[str, Any] = {"denoise": True} if span is None else {"interval": span}
    began = time.perf_counter()
    found = [sd.model_statistics(problem, shape=x.shape[1:], samples=samples, seed=seed) for seed in range(seeds)]
    print(f"\n| {name}: {(time.perf_counter() - began) / seeds:.1f} s for statistics | " + " | ".join(f"{n} calls" for n in CALLS) + " |\n|" + "---|" * (1 + len(CALLS)))

    def row(label: str, method: str, several: list[dict[str, Any]]) -> None:
        cells = []
        for nfe in CALLS:
            start = {} if span is None else {"interval": sd.Range(span.data_std, span.data_mean, 4.0 * nfe, 0.5 / nfe)}
            end = sd.solve(problem, x, "tsit5", rtol=1e-5, atol=1e-5, **{**where, **start}).x
            aparts = [sd.solve(problem, x, method, nfe=nfe, **{**where, **start}, **options).x - end for options in several]
            means = torch.tensor([float(a.double().flatten(1).square().mean(1).sqrt().mean()) for a in aparts])
            cells.append(measured(aparts[0]) + (f" ({float(means.std()):.4f})" if len(several) > 1 else ""))
        print(f"| {label} | " + " | ".join(cells) + " |", flush=True)

    for method, options in OTHERS.items():
        row(f"`{method}`", method, [options])
    for order in (1, 2, 3):
        row(f"`dpm_solver_v3`, order {order}", "dpm_solver_v3", [{"statistics": statistics, "order": order} for statistics in found])
    row("the same, order 2, without a corrector", "dpm_solver_v3", [{"statistics": statistics, "corrector": False} for statistics in found])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--range", action="store_true", help="between the noise levels of sd.Range")
    parser.add_argument("--digits", action="store_true", help="on the embedded MNIST model, 32 digits")
    arguments = parser.parse_args()
    if arguments.digits:
        import sdesolve_gen as gen

        model = gen.load("mnist")
        problem = model.process.probability_flow(model.score)
        table("digits", problem, model.process.prior((32, *model.shape), seed=77), None, 1, 64)
        return
    for name, target, process in PROBLEMS:
        problem = process.probability_flow(mixture_score(target, process))
        data = target.sample(4096, seed=0)
        span = sd.Range(float((data - data.mean(0)).square().mean().sqrt()), data.mean(0)) if arguments.range else None
        table(f"{name}, {type(process).__name__}", problem, process.prior((1000, *target.event), seed=77), span, 3, 512)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
