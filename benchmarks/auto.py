"""Is ``method="auto"`` as good as the best fixed choice?  Mean distance to where the flow takes the same draws, on problems with exact scores and a trained network.

    python benchmarks/auto.py mixture_2d:1024 mixture_64d:400 lowrank_784d:48 mnist_mixture:16 mnist_model:8 --data ../shared/data --out runs/auto
    python benchmarks/auto.py --random 6 --out runs/auto-random

A fixed choice is one of eight methods on one of four grids.  All walk the same range of noise (``sd.Range`` of the data, as the benchmark has it), or with ``--whole`` the whole
interval, and end with the denoiser.  Each is compared with auto draw by draw: the table has auto's distance, the best fixed choice, and the difference with its standard
error; below it, over all problems, the geometric mean of the distance as a ratio to the smallest, of auto and of the choice for which that is least, and how they differ.
With ``--optimised N`` also ``method="auto"`` on ``sd.optimize_grid(problem, "auto", nfe=...)``, which has seen N other draws, and up to 10 calls ``sd.optimize_card`` (8 N draws).
``--random N`` adds N random mixtures in each of ten dimensions, with six processes by turns.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

import sdesolve as sd
from sdesolve.exam import Gaussian, Mixture
from sdesolve.files import atomic
from sdesolve_gen.benchmark.contenders import FOUND_UP_TO, learned, optimised, span
from sdesolve_gen.benchmark.problems import Network, Problem, Sources, exact, make
from sdesolve_gen.benchmark.runner import fine

METHODS: list[tuple[str, dict[str, Any]]] = [
    ("dpmpp_2m", {}), ("dpmpp_3m", {}), ("unipc", {}), ("unipc", {"order": 3}), ("deis", {}), ("deis", {"variant": "log_rho"}), ("ipndm", {"order": 3}), ("ipndm", {}),
]  # fmt: skip
GRIDS = {"log_snr": sd.grids.log_snr(), "karras": sd.grids.karras(), "karras(20)": sd.grids.karras(20), "uniform": sd.grids.uniform()}
DIMENSIONS = (1, 2, 3, 4, 6, 8, 16, 32, 64, 128)
PROCESSES = (sd.VPSDE(), sd.SubVPSDE(), sd.VESDE(sigma_max=50.0), sd.EDM(), sd.Cosine(), sd.RectifiedFlow())
AUTO, FOUND = "auto", ("auto, optimised", "auto, learned")
CHOICES: dict[str, dict[str, Any]] = {
    " ".join([method, *map(str, options.values()), grid]): {"method": method, "grid": recipe, **options} for method, options in METHODS for grid, recipe in GRIDS.items()
}


def random_mixture(d: int, draw: int) -> Mixture:
    """Two to eight uneven Gaussians in d dimensions, with means of order one, and covariances of rank one to four above an isotropic floor of 0.05 to 0.35."""
    generator = torch.Generator().manual_seed(1000 * d + draw)

    def normals(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    def between(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(shape, generator=generator, dtype=torch.float64)

    weights = between(0.2, 1.2, int(between(2, 9)))
    ranks = [min(d, int(between(1, 5))) for _ in weights]
    return Mixture(weights, [Gaussian(normals(d), factor=between(0.0, 0.4) * normals(d, rank), floor=float(between(0.05, 0.35))) for rank in ranks])


def posed(name: str, rows: int, sources: Sources) -> Problem:
    """A problem of the benchmark's, or "random_<d>_<draw>", whose process depends on the draw."""
    if not name.startswith("random_"):
        return make(name, rows, sources)
    d, draw = map(int, name.split("_")[1:])
    process = PROCESSES[draw % len(PROCESSES)]
    law = random_mixture(d, draw)
    return replace(exact(name, law, rows, sources), process=process, network=law.score(process))


def away(problem: Problem, how: dict[str, Any], calls: int, z: Tensor, ends: Tensor, whole: bool) -> Tensor:
    """(rows,) distances to the flow's ends, root mean square over coordinates, in standard deviations of the data."""
    flow = problem.process.probability_flow(Network(problem).score)
    where = {} if "grid" in how and isinstance(how["grid"], sd.OptimisedGrid) else {"nfe": calls, "interval": None if whole else span(problem), "denoise": "extrapolate"}
    parts = [sd.solve(flow, x, **where, **how).x for x in (z * problem.process.prior_std).split(problem.batch or len(z))]
    return (torch.cat(parts).float() - ends).flatten(1).double().square().mean(1).sqrt() / problem.std


def measured(problem: Problem, calls: int, whole: bool, seed: int) -> dict[str, Tensor]:
    """Choice -> distances."""
    z, ends = problem.start(seed), fine(problem, seed, problem.rows, problem.cache, "prior" if whole else "directed")
    tried = {AUTO: {"method": AUTO}, **CHOICES}
    if problem.trajectories and calls <= FOUND_UP_TO["optimised"]:
        tried[FOUND[0]] = {"method": AUTO, "grid": optimised(problem, calls, AUTO)}
    if problem.trajectories and calls <= FOUND_UP_TO["learned"]:
        card, nodes = learned(problem, calls)
        tried[FOUND[1]] = {"method": card, "grid": nodes}
    return {name: away(problem, how, calls, z, ends, whole) for name, how in tried.items()}


def row(found: dict[str, Tensor]) -> dict[str, Any]:
    """auto, the best fixed choice, and how much further away auto is, each with its standard error; the same of what is found for a problem."""
    means = {name: float(d.mean()) for name, d in found.items()}
    best = min(CHOICES, key=means.__getitem__)
    line = {"auto": means[AUTO], "se": error(found[AUTO]), "best": best, "distance": means[best], **beside(found[AUTO], found[best]), "means": means}
    return line | {name: {"distance": means[name], **beside(found[name], found[best])} for name in FOUND if name in found}


def beside(distance: Tensor, other: Tensor) -> dict[str, float]:
    """How much further away the one is, draw by draw."""
    return {"more": float((distance - other).mean()), "more_se": error(distance - other)}


def more(line: dict[str, float]) -> str:
    """The difference, as a cell."""
    return f"{line['more']:+.4f} ± {line['more_se']:.4f}"


def error(d: Tensor) -> float:
    """Standard error of the mean."""
    return float(d.std() / math.sqrt(len(d)))


class Overall(NamedTuple):
    """Over all problems: geometric means of the distance as a ratio to each problem's smallest, and the mean log of auto's over the best fixed choice's, with its error."""

    auto: float
    best: str
    fixed: float
    more: float
    more_se: float


def overall(rows: list[dict[str, Any]]) -> Overall:
    """auto, and the fixed choice for which the geometric mean is least."""
    names = (AUTO, *CHOICES)
    logs = {name: torch.tensor([math.log(row["means"][name] / min(row["means"][other] for other in names)) for row in rows]) for name in names}
    best = min(CHOICES, key=lambda name: float(logs[name].mean()))
    more = logs[AUTO] - logs[best]
    return Overall(math.exp(logs[AUTO].mean()), best, math.exp(logs[best].mean()), float(more.mean()), error(more))


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("problems", nargs="*", metavar="NAME:ROWS", help="as sdesolve-gen benchmark has them")
    parser.add_argument("--random", type=int, default=0, metavar="N", help="random mixtures in each dimension, of 256 rows")
    parser.add_argument("--budgets", nargs="+", type=int, default=[5, 8, 10, 15, 20, 35, 50, 100])
    parser.add_argument("--whole", action="store_true")
    parser.add_argument("--optimised", type=int, metavar="N", help="draws of which auto's own nodes are found, at most 20 calls, and of 8 times as many weights, at most 10")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--seed", type=int, default=8)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args(arguments)
    table: dict[int, list[dict[str, Any]]] = {n: [] for n in given.budgets}
    print("| problem | calls | `auto` | best fixed choice | | `auto` - best | on its own nodes | - best | learned | - best |\n|---|---|---|---|---|---|---|---|---|---|")
    if not given.problems and not given.random:
        parser.error("no problems: expected some, as in mixture_2d:1024, or --random 6.")
    names = [*given.problems, *(f"random_{d}_{draw}:256" for d in DIMENSIONS for draw in range(given.random))]
    for name, _, rows in (text.partition(":") for text in names):
        problem = replace(posed(name, int(rows or 64), Sources(given.data, None, given.out / "cache")), trajectories=given.optimised)
        for n in given.budgets:
            line = row(measured(problem, n, given.whole, given.seed))
            table[n].append({"problem": name, "rows": problem.rows, **line})
            own = " | ".join(f"{line[name]['distance']:.4f} | {more(line[name])}" if name in line else " | " for name in FOUND)
            print(f"| {name} | {n} | {line['auto']:.4f} ± {line['se']:.4f} | {line['best']} | {line['distance']:.4f} | {more(line)} | {own} |", flush=True)
    print("\n| calls | `auto` | best fixed choice over all problems | | `auto` more by, % |\n|---|---|---|---|---|")
    for n in given.budgets:
        whole = overall(table[n])
        print(f"| {n} | {whole.auto:.2f} | {whole.best} | {whole.fixed:.2f} | {100 * whole.more:+.0f} ± {100 * whole.more_se:.0f} |")
    with atomic(given.out / f"auto-{'whole' if given.whole else 'range'}.json") as path:
        path.write_text(json.dumps({"command": sys.argv[1:], "table": table}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
