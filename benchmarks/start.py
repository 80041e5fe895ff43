"""What a start from the data's moments costs, on the mixture in the plane with its exact score: by the number of draws that the moments are of, and by where the start is.

    python benchmarks/start.py

Mean distance of ``auto`` over ``sd.Range.of(draws)`` to where the flow takes the same samples from the same moments under the process's widest noise, in standard deviations of
the data, and the root mean square in brackets, in which the draws that go to another mode are nearly all; the whole interval beside the flow from the prior.  Then what is left
of a rare mode, one of 1 % beside one of 99 %, ten widths apart, along a line.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable

import torch

import sdesolve as sd
from sdesolve import exam

CALLS = (5, 10, 20, 35, 50, 100)
DRAWS = (1_000_000, 50_000, 5_000, 1_000)
STARTS: dict[str, Callable[[int], float] | None] = {"as it is": None, "1 + N/4": lambda calls: 1 + calls / 4, "T": lambda calls: math.inf}
"""How many standard deviations along the first direction a start is out for N calls; None for the default."""
FARTHEST, FINE = 1e9, 1e-4  # standard deviations; the time at which exact flows end


def distance(law: exam.Target, span: sd.Range | None, start: Callable[[int], float] | None, calls: tuple[int, ...] = CALLS, rows: int = 8192) -> list[tuple[float, float]]:
    """(mean, root mean square) for each number of calls; over the whole interval without a range."""
    p = sd.VPSDE()
    flow, x, std = p.probability_flow(law.score(p)), p.prior((rows, *law.event), seed=0, dtype=torch.float64), float(law.variance.mean().sqrt())

    def over(first: float | None, last: float | None = None) -> sd.Range | None:
        return span and sd.Range(span.data_std, span.data_mean, first and min(first, FARTHEST), last, span.directions)

    further = p.probability_flow(law.score(p), eps=FINE)
    ends = sd.solve(further, x, "dop853", rtol=1e-7, atol=1e-7, interval=over(FARTHEST, 1 / FARTHEST), denoise=True).x
    found = []
    for n in calls:
        first = None if span is None or start is None else start(n) * span.widest / span.data_std
        away = (sd.solve(flow, x, "auto", nfe=n, interval=over(first)).x - ends).square().mean(1).sqrt() / std
        found.append((float(away.mean()), float(away.square().mean().sqrt())))
    return found


def rare(calls: int, whole: bool, rows: int = 100_000) -> float:
    """The share of the samples in the mode of 1 %; quantiles of the prior go in."""
    law, p = exam.gaussian_mixture([0.99, 0.01], [[0.0], [10.0]], [1.0, 1.0]), sd.VPSDE()
    x = (torch.arange(rows, dtype=torch.float64)[:, None] + 0.5).div(rows).mul(2).sub(1).erfinv() * 2**0.5
    span = None if whole else sd.Range.of(law.sample(DRAWS[0], seed=1, dtype=torch.float64))
    return float((sd.solve(p.probability_flow(law.score(p)), x, "auto", nfe=calls, interval=span).x > 5).double().mean())


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    law = exam.mixture_2d()
    shown = [*(f"{n} calls" for n in CALLS)]
    print(f"| moments of | start | {' | '.join(shown)} |\n|---|---|{'---|' * len(CALLS)}")
    lines = {(f"{n:,} draws", name): (sd.Range.of(law.sample(n, seed=1, dtype=torch.float64)), start) for n in DRAWS for name, start in STARTS.items()}
    for (moments, name), (span, start) in {**lines, ("none", "whole interval"): (None, None)}.items():
        print(f"| {moments} | {name} | {' | '.join(f'{mean:.4f} ({rms:.4f})' for mean, rms in distance(law, span, start))} |", flush=True)
    print(f"\n| of 1 % | {' | '.join(shown)} |\n|---|{'---|' * len(CALLS)}")
    for name, whole in (("range", False), ("whole interval", True)):
        print(f"| {name} | {' | '.join(f'{100 * rare(n, whole):.2f}' for n in CALLS)} |")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
