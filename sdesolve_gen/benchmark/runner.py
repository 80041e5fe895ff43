"""The runner: every (problem, contender, budget, seed) is a cell, and a line of ``cells.jsonl`` once it is done.

A run that was interrupted goes on where it stopped, because cells that are there are not done again: those of the same problem, made of the same data or
weights and moments, judged by the same network, at the same version.  A last line that was cut short is dropped.  Two rows of budget 0 are the law
itself, measured like a sampler: "exact draws", the noise floor, and "the flow itself", the fine ends of the seed's starts.
"""

from __future__ import annotations

import functools
import json
import os
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

import sdesolve as sd
from sdesolve.files import atomic
from sdesolve.optimise import followed

from .._errors import unknown
from .._reading import checked_device
from ..models import load
from .contenders import Contender, ours
from .metrics import Reference, trajectory
from .peers import peers
from .problems import FINE, PROBLEMS, Network, Problem, Skipped, Sources, classifier_folder, make

EXACT, FLOW = "exact draws", "the flow itself"
DRAWN = 8  # exact draws for each sample, against which the samples are measured
FLOORS = 4  # exact samples a seed that are measured for the floor
STARTS = ("prior", "centred", "directed")
HASHES = ("source", "judge")
REVISION = 4
"""Of what a cell means: 2 since moments are those of draws, and a trajectory ends at the nearest of three ends; 3 since a range starts the farther out the more calls; 4 since
flows are followed to no noise, and a range stops at 0.7/N."""
_ready: set[Any] = set()
_REFERENCE = 2**40  # seed of the draws that samples are compared with, and from it on of their floors


@dataclass(frozen=True)
class Plan:
    """What is to be run.

    Attributes:
        rows: problem -> samples a cell; its keys are the problems.
        budgets: network calls.
        seeds: seeds a cell; standard errors are over these.
        methods: labels of ours; None for all.
        peers: whether other packages take part.
        seed: the first of the seeds.
        sources: data, classifier, cache.
        few: labels of those that take part besides ``methods``; None for everyone.
    """

    rows: Mapping[str, int]
    budgets: tuple[int, ...]
    seeds: int
    methods: list[str] | None = None
    peers: bool = True
    seed: int = 0
    sources: Sources = field(default_factory=Sources)
    few: frozenset[str] | None = None


FEW = frozenset({
    "auto", "ddim", "dpmpp_2m", "dpmpp_3m", "unipc", "unipc 3", "deis", "ipndm", "dpmpp_2m_sde", "dpm_solver_v3",
    "auto, optimised", "unipc, optimised", "auto, learned",
    "diffusers UniPC", "diffusers UniPC, karras", "diffusers DPM++ 2M", "diffusers DPM++ 2M, karras", "diffusers DPM++ 3M, karras", "diffusers DEIS",
    "diffusers UniPC, leading", "diffusers UniPC 3, exponential", "diffusers DPM++ 2M, lu", "diffusers DPM++ 3M, lu",
    "diffusers DEIS, karras", "diffusers EDM DPM++ 2M", "diffusers SA-Solver", "k-diffusion dpmpp_2m, karras EDM", "k-diffusion dpmpp_2m, karras VP",
    "azula zEAB-2", "torchdiffeq euler", "torchdiffeq midpoint",
    "diffusers UniPC [our grid]", "diffusers UniPC 3 [our grid]", "diffusers DPM++ 2M [our grid]", "diffusers DPM++ 3M [our grid]",
    "diffusers DPM++ 2M SDE [our grid]", "diffusers SA-Solver [our grid]", "k-diffusion dpmpp_2m [our grid]", "k-diffusion dpmpp_3m_sde [our grid]",
    "azula zEAB-2 [our grid]", "azula xEAB-2 [our grid]", "torchdiffeq euler [our grid]",
})  # fmt: skip
"""Ours for few calls, and most of the peers that were among the first six of their setting in a scan of one seed on the mixtures in 2 and 64 dimensions."""

QUICK = Plan({"mixture_2d": 16_384, "mixture_64d": 2048, "mnist_model": 4}, (5, 10, 20), 2, few=FEW)
FULL = Plan(
    {"mixture_2d": 32_768, "ring_2d": 32_768, "mixture_64d": 16_384, "lowrank_784d": 2048, "mnist_mixture": 2048, "mnist_points": 256,
     "cifar_points": 128, "mnist_model": 128},
    (5, 8, 10, 15, 20, 35, 50, 100), 3,
)  # fmt: skip
PRESETS = {"quick": QUICK, "full": FULL}
OF_A_MODEL = "mnist_model"  # whose number of samples other trained models have


def planned(
    preset: str,
    *,
    problems: list[str] | None = None,
    methods: list[str] | None = None,
    budgets: tuple[int, ...] | None = None,
    peers: bool = True,
    seed: int = 0,
    seeds: int | None = None,
    rows: int | None = None,
    out: str | Path = "runs/benchmark",
    data: str | Path | None = None,
    classifier: str | Path | None = None,
    models: Sequence[str] = (),
    device: str = "cpu",
) -> Plan:
    """A preset ("quick" or "full") with what is given instead of its own; trained models alone, where they are given and no problems beside them.

    Raises:
        ValueError: an unknown problem or device, or a model that cannot be read.  NotADirectoryError: data or classifier is no folder.
    """
    plan = PRESETS[preset]
    if data is not None and not Path(data).is_dir():
        raise NotADirectoryError(f"--data {data} is not a folder.")
    for name in problems or []:
        if name not in PROBLEMS:
            raise ValueError(unknown("problem", name, PROBLEMS))
    sizes = {**FULL.rows, **plan.rows}
    folders = {model_name(folder): folder for folder in models}
    sources = Sources(
        None if data is None else Path(data), None if classifier is None else classifier_folder(classifier), Path(out) / "cache", folders, checked_device(device)
    )
    wanted = [*(problems or ([] if folders else plan.rows)), *folders]
    return replace(
        plan,
        rows={name: rows or sizes[OF_A_MODEL if name in folders else name] for name in wanted},
        budgets=budgets or plan.budgets,
        seeds=seeds or plan.seeds,
        methods=methods,
        peers=peers,
        seed=seed,
        sources=sources,
    )


def model_name(folder: str) -> str:
    """What a trained model is called in files and tables: its folder and the first digits of its weights' hash, so that no cell is another training's."""
    return f"{Path(folder).name}-{str(load(folder).card.get('sha256', 'unsaved'))[:8]}"


def run(plan: Plan, file: Path) -> dict[str, Any]:
    """Do the plan's cells that ``file`` lacks, with a bar; returns what there is to report: cells, contenders, problems, skipped.

    Raises:
        ValueError: unknown problems or methods, before anything is run.
    """
    theirs, skipped = peers() if plan.peers else ([], {})
    line_up = [c for c in (*ours(plan.methods), *theirs) if plan.few is None or c.label in {*plan.few, *(plan.methods or ())}]
    problems: list[Problem] = []
    for name, rows in plan.rows.items():
        try:
            problems.append(make(name, rows, plan.sources))
        except Skipped as reason:
            skipped[name] = str(reason)
    cells = {_key(cell): cell for cell in read(file)}
    judges = [_Judge(p, plan.sources.cache) for p in problems]
    todo = [(judge, seed) for judge in judges for seed in range(plan.seed, plan.seed + plan.seeds)]
    total = sum(2 + sum(c.suits(judge.problem, budget) for c in line_up for budget in plan.budgets) for judge, _ in todo)
    wanted: dict[tuple[Any, ...], dict[str, Any]] = {}
    with tqdm(total=total, unit="cell") as bar:
        for judge, seed in todo:
            bar.set_description(f"{judge.problem.name}, seed {seed}")
            for cell in _cells(judge, seed, line_up, plan.budgets, cells):
                if _key(cell) not in cells:
                    append(file, cell)
                wanted[_key(cell)] = cell
                bar.update()
    return {"cells": list(wanted.values()), "contenders": line_up, "problems": problems, "skipped": skipped}


def _cells(
    judge: _Judge, seed: int, line_up: list[Contender], budgets: tuple[int, ...], done: Mapping[tuple[Any, ...], dict[str, Any]]
) -> Iterator[dict[str, Any]]:
    """The floor, and every contender at every budget: as they stand in ``done``, or made."""
    p = judge.problem
    made = {"version": sd.__version__, "revision": REVISION, "device": p.device.type, **{name: value for name in HASHES if (value := getattr(p, name))}}
    head = {"problem": p.name, "seed": seed, "rows": p.rows, **made}
    for label, measured in ((EXACT, judge.exact), (FLOW, judge.flow)):
        floor = {**head, "contender": label, "budget": 0, "nfe": 0, "seconds": 0.0}
        yield done.get(_key(floor)) or {**floor, "metrics": measured(seed)}
    for contender in line_up:
        for budget in (b for b in budgets if contender.suits(p, b)):
            cell = {**head, "contender": contender.label, "budget": budget}
            yield done.get(_key(cell)) or {**cell, **judge.measured(contender, budget, seed)}


class _Judge:
    """Measures samples of one problem; what that takes is made when it is first asked for."""

    def __init__(self, problem: Problem, cache: Path) -> None:
        self.problem, self.cache = problem, cache
        self._ends: dict[tuple[int, str], Tensor] = {}

    def exact(self, seed: int) -> dict[str, float]:
        """The floor: exact draws, measured."""
        p = self.problem
        if p.law is None or self._reference is None:
            return {}
        floors = [self._reference.measure(p.draws(p.rows, _REFERENCE + 1 + FLOORS * seed + i)) for i in range(FLOORS)]
        return {name: sum(f[name] for f in floors) / FLOORS for name in floors[0]}

    def flow(self, seed: int) -> dict[str, float]:
        """The floor of the methods that solve the flow: where it takes the seed's starts, measured."""
        return {} if self._reference is None else self._reference.measure(self._fine(seed))

    def measured(self, contender: Contender, budget: int, seed: int) -> dict[str, Any]:
        """Run a contender, and measure what it made; or say why there is nothing to measure."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                x, nfe, seconds = sampled(self.problem, contender, budget, seed)
        except Exception as error:  # a peer may raise anything, and the others go on
            return {"failed": f"{type(error).__name__}: {str(error)[:200]}"}
        found = {"nfe": nfe, "seconds": round(seconds, 4)}
        broken = int((~torch.isfinite(x).flatten(1).all(1)).sum())
        if nfe > budget:
            return {**found, "failed": f"asked the network {nfe} times"}
        if broken:
            return {**found, "failed": f"{broken} of {len(x)} samples are not finite"}
        metrics = {} if self._reference is None else self._reference.measure(x)
        if contender.flow:
            metrics["trajectory"] = trajectory(x, torch.stack([self._fine(seed, start) for start in STARTS]))
        return {**found, "metrics": metrics}

    @functools.cached_property
    def _reference(self) -> Reference | None:
        """What samples are compared with: exact draws, or, of a trained network with features, the ends of its own fine solve."""
        p = self.problem
        if p.law is not None:
            return Reference.of(p.draws(DRAWN * p.rows, _REFERENCE), p.rows, p.features)
        return None if p.features is None else Reference.of(fine(p, _REFERENCE, p.rows, self.cache), p.rows, p.features)

    def _fine(self, seed: int, start: str = "prior") -> Tensor:
        if (seed, start) not in self._ends:
            self._ends[seed, start] = fine(self.problem, seed, self.problem.rows, self.cache, start)
        return self._ends[seed, start]


def sampled(problem: Problem, contender: Contender, budget: int, seed: int) -> tuple[Tensor, int, float]:
    """Samples, network calls that each row saw, and seconds."""
    size = problem.batch or problem.rows
    what = (contender.label, (problem.key, budget) if contender.finds else None)
    if what not in _ready:  # imports, and nodes to be found, are no part of the sampler's time
        contender.run(Network(problem), problem.start(seed, 0, 2), budget, seed, 0)
        _ready.add(what)
    parts, seen, start = [], set(), time.perf_counter()
    for first in range(0, problem.rows, size):
        network = Network(problem)
        parts.append(contender.run(network, problem.start(seed, first, min(size, problem.rows - first)), budget, seed, first))
        seen.add(network.calls)
    x = torch.cat(parts).float().cpu()  # which waits for the device
    return x, max(seen), time.perf_counter() - start


def fine(problem: Problem, seed: int, rows: int, cache: Path, start: str = "prior") -> Tensor:
    """Ends of the flow from the first ``rows`` normals of a seed, by steps so small that they count as exact; kept in ``cache``.

    ``start``: one of :data:`STARTS`, how the normals are taken to the law under the widest noise: as they are, with the mean and standard deviation of the data, or with the
    standard deviation along each of their directions, too, as methods start that know them.  Where directions are a tenth as wide as that noise, that is half a per cent apart.
    Close to the process's end short steps of a multistep method take over, which follows the flow from there to no noise.
    """
    directions = problem.directions if start == "directed" else None
    moved = None if start == "prior" else sd.Range(problem.std, problem.mean, directions=directions)
    file = cache / f"ends{'' if start == 'prior' else f'-{start}'}-{problem.key}-{seed}-{rows}.safetensors"
    if not file.is_file():
        size, ends = problem.batch or rows, []
        for first in range(0, rows, size):
            z = problem.start(seed, first, min(size, rows - first))
            flow = problem.process.probability_flow(Network(problem).score, eps=FINE if problem.law is not None else None)
            exact = problem.law is not None
            x, method, tolerance = (z.double(), "dop853", 1e-6) if exact else (z, "rk45", 2e-6)
            x = x * problem.process.prior_std
            x = moved.start(problem.process, x, flow.interval[0]) if moved else x
            ends.append(followed(flow, x, method, tolerance).float().cpu())
        with atomic(file) as path:
            save_file({"ends": torch.cat(ends)}, path)
    return load_file(file)["ends"]


def read(file: Path) -> list[dict[str, Any]]:
    """The whole cells of a file; a last line that was cut short is taken off it."""
    if not file.is_file():
        return []
    text = file.read_bytes()
    whole = text[: text.rfind(b"\n") + 1]
    if whole != text:
        with atomic(file) as path:
            path.write_bytes(whole)
    return [json.loads(line) for line in whole.splitlines()]


def append(file: Path, cell: Mapping[str, Any]) -> None:
    """One more line, written at once."""
    file.parent.mkdir(parents=True, exist_ok=True)
    line = json.dumps(cell, allow_nan=False) + "\n"
    with open(file, "ab") as stream:
        stream.write(line.encode())
        stream.flush()
        os.fsync(stream.fileno())


def _key(cell: Mapping[str, Any]) -> tuple[Any, ...]:
    """What tells a cell from all others; a problem that is made of nothing but code, and judged by no network, has no hashes of those."""
    return tuple(cell.get(name, "") for name in ("problem", "contender", "budget", "seed", "rows", "version", "revision", "device", *HASHES))
