"""What an evaluation found: figures with standard errors, as a table to read and as JSON to keep."""

from __future__ import annotations

import json
import warnings
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sdesolve.files import atomic
from sdesolve.solution import Status

from .._versions import versions
from ..images import write_grid
from ..models import Model
from .chunks import Job
from .features import Features
from .figure import Figure, of_mean
from .frechet import Moments, fid, grouped, together
from .inception_score import inception_score
from .kernel import kid
from .neighbours import density_coverage, precision_recall

SHOWN = 100  # images in the picture


@dataclass(frozen=True)
class Evaluation:
    """What :func:`evaluate` found.

    Attributes:
        figures: name -> :class:`Figure` (value, standard_error, note); empty while something is missing.
        report: what ``report.json`` says.
        missing: how many images of each job are still with other shards; empty where the evaluation is complete.
    """

    figures: Mapping[str, Figure]
    report: Mapping[str, Any]
    missing: Mapping[str, int]

    @property
    def complete(self) -> bool:
        """Whether all chunks were there."""
        return not self.missing

    def __getitem__(self, name: str) -> Figure:
        return self.figures[name]

    def __str__(self) -> str:
        if self.missing:
            left = ", ".join(f"{count} of {name}" for name, count in self.missing.items())
            return f"this shard is done; with other shards, and not there yet: {left}. The last one to end writes the report."
        said = self.report
        head = f"{said['model']['name']}, {said['settings']['n']} images by {said['settings']['method']}"
        lines = [head, *([f"features: {said['features']['label']}"] if said["features"] else []), f"{'':<20}{'value':>12}{'s.e.':>11}"]
        for name, figure in self.figures.items():
            error = "" if figure.standard_error is None else f"{figure.standard_error:.2g}"
            lines.append(f"{name:<20}{figure.value:>12.5g}{error:>11}   {figure.note}")
        return "\n".join(lines)


def compose(model: Model, jobs: Mapping[str, Job], features: Features | None, settings: Mapping[str, Any], out: Path) -> Evaluation:
    """Figures, ``samples.png`` and ``report.json`` of jobs whose chunks are all there."""
    metrics = settings["metrics"]
    figures = {**_of_features(jobs, metrics), **_of_likelihood(jobs)}
    told = _samples(jobs["samples"], out)
    if "time" in metrics:
        figures |= told.pop("figures")
    report = {
        "model": {"name": model.card["name"], "sha256": model.card.get("sha256")},
        "versions": versions(),
        "device": str(model.device),
        "settings": dict(settings),
        "features": None if features is None else {"name": features.name, "label": features.label, "key": features.key, "reference": jobs["reference"].n},
        "figures": {name: figure._asdict() for name, figure in figures.items()},
        "statuses": told["statuses"],
    }
    with atomic(out / "report.json") as path:
        path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return Evaluation(figures, report, {})


def _of_features(jobs: Mapping[str, Job], metrics: list[str]) -> dict[str, Figure]:
    if "features" not in jobs:
        return {}
    made, real = jobs["features"], jobs["reference"]
    figures: dict[str, Figure] = {}
    if "fid" in metrics:
        reference = together(Moments.of(part["features"]) for part in real.parts())
        figures |= fid(grouped((part["features"] for part in made.parts()), made.n), reference)
    x, y = made.all("features"), real.all("features")
    if "kid" in metrics:
        figures["kid"] = kid(x, y)
    if "is" in metrics:
        figures["is"] = inception_score(made.all("probabilities"))
    if "precision_recall" in metrics:
        figures |= precision_recall(x, y)
    if "density_coverage" in metrics:
        figures |= density_coverage(x, y)
    return figures


def _of_likelihood(jobs: Mapping[str, Job]) -> dict[str, Figure]:
    if "likelihood" not in jobs:
        return {}
    bits = jobs["likelihood"].all("bits_per_dim")
    whole = bits[bits.isfinite()]
    lost = len(bits) - len(whole)
    if not len(whole):
        return {"bits_per_dim": Figure(float("nan"), None, "no image has a likelihood")}
    return {"bits_per_dim": of_mean(whole.tolist(), f"of {len(whole)} images{f', {lost} more have none' if lost else ''}")}


def _samples(job: Job, out: Path) -> dict[str, Any]:
    """Counts and costs of the samples, and their picture."""
    columns: dict[str, list[Tensor]] = {"nfe": [], "seconds": [], "status": []}
    first: list[Tensor] = []
    for part in job.parts():
        for name, column in columns.items():
            column.append(part[name])
        if sum(map(len, first)) < SHOWN:
            first.append(part["images"])
    if first[0].shape[1] in (1, 3):
        write_grid(out / "samples.png", torch.cat(first)[:SHOWN])
    nfe, seconds, status = (torch.cat(column) for column in columns.values())
    statuses = {Status(code).name: count for code, count in sorted(Counter(status.tolist()).items())}
    if set(statuses) != {Status.ok.name}:
        warnings.warn(f"not every image arrived: {statuses}; those that did not are judged as they are.", UserWarning, stacklevel=5)
    total, calls = float(seconds.sum()), nfe.double()
    spread = "of every image" if nfe.min() == nfe.max() else f"from {int(nfe.min())} to {int(nfe.max())}"
    costs = {
        "nfe": Figure(float(calls.mean()), None, spread),
        "seconds": Figure(total, None, "of all processes together"),
        "images_per_second": Figure(len(nfe) / total, None, "by one process"),
    }
    return {"statuses": statuses, "figures": costs}
