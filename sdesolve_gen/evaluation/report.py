"""What an evaluation found: figures with standard errors, as a table to read and as JSON to keep.

Figures that an earlier call measured in the same folder stay in the report, as long as what they are of is the same: the model and, of each by its kind,
the samples and their number, features and reference too, or data and options of the likelihood.
"""

from __future__ import annotations

import hashlib
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
from .._writing import write_json
from ..data import Data
from ..images import write_grid
from .chunks import Job, digest
from .figure import Figure, of_mean
from .frechet import Moments, fid, grouped, together
from .inception_score import inception_score
from .kernel import kid
from .neighbours import density_coverage, precision_recall
from .plan import METRICS, NEED_IMAGES, Plan

SHOWN = 100  # images in the picture
_SAID = {"samples": ("statuses",), "features": ("features", "reference", "skipped"), "likelihood": ("likelihood",)}  # of a report, by what it is of
_OTHERS = {"nfe": "samples", "seconds": "samples", "images_per_second": "samples", "time": "samples", "bits_per_dim": "likelihood", "bpd": "likelihood"}


@dataclass(frozen=True)
class Evaluation:
    """What :func:`evaluate` found.

    Attributes:
        figures: name -> :class:`Figure` (value, standard_error, note), those of earlier calls that still hold too; empty while something is missing.
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
        drawn = f", {said['settings']['n']} images by {said['settings']['method']}" if said["statuses"] else ""
        head = f"{said['model']['name']}{drawn}"
        lines = [head, *([f"features: {said['features']['label']}"] if said["features"] else []), f"{'':<20}{'value':>12}{'s.e.':>11}"]
        for name, figure in self.figures.items():
            error = "" if figure.standard_error is None else f"{figure.standard_error:.2g}"
            lines.append(f"{name:<20}{figure.value:>12.5g}{error:>11}   {figure.note}")
        return "\n".join(lines)


def compose(plan: Plan, jobs: Mapping[str, Job], out: Path) -> Evaluation:
    """Figures, ``samples.png`` and ``report.json`` of jobs whose chunks are all there, and what the ``report.json`` before has besides that is still so."""
    costs, statuses = _samples(jobs["samples"], out) if plan.draws else ({}, None)
    figures = {**_of_features(plan, jobs), **_of_likelihood(jobs), **(costs if "time" in plan.metrics else {})}
    model, features = plan.model, plan.features
    report: dict[str, Any] = {
        "model": {"name": model.card["name"], "sha256": model.card.get("sha256")},
        "versions": versions(),
        "device": str(model.device),
        "settings": {"metrics": list(plan.metrics), "n": plan.n, "batch_size": plan.batch_size, **plan.draw},
        "features": None if features is None else {"name": features.name, "label": features.label, "key": features.key},
        "reference": len(plan.reference.images) if isinstance(plan.reference, Data) else "moments",
        "skipped": plan.reference.skipped if isinstance(plan.reference, Data) else [],
        "likelihood": None if plan.likely is None else {"images": len(plan.likely.names), **plan.likelihood},
        "figures": {name: figure._asdict() for name, figure in figures.items()},
        "statuses": statuses,
        "keys": _keys(plan, jobs),
    }
    report = _with_earlier(report, out / "report.json")
    with atomic(out / "report.json") as path:
        write_json(path, report)
    return Evaluation({name: Figure(**{**figure, "value": _number(figure["value"])}) for name, figure in report["figures"].items()}, report, {})


def _number(value: float | None) -> float:
    """A figure's value; JSON has null for NaN."""
    return float("nan") if value is None else value


def _keys(plan: Plan, jobs: Mapping[str, Job]) -> dict[str, str | None]:
    """Hashes of all that each kind of figure depends on, None for a kind that was not asked for."""
    likely = jobs["likelihood"].key if "likelihood" in jobs else None
    samples = f"{jobs['samples'].key} {plan.n}" if plan.draws else None
    features = None
    if plan.features is not None:
        of = jobs["reference"].key if isinstance(plan.reference, Data) else digest(dict(zip(("mean", "covariance"), plan.reference, strict=True)))
        features = f"{samples} {jobs['features'].key} {of}"
    kinds = {"model": next(iter(jobs.values())).settings["weights"], "samples": samples, "features": features, "likelihood": likely}
    return {kind: None if text is None else hashlib.sha256(text.encode()).hexdigest() for kind, text in kinds.items()}


def _with_earlier(report: dict[str, Any], path: Path) -> dict[str, Any]:
    """The report, and of the one before what is of the same model, samples, features or data; of one that is damaged or older nothing."""
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
        return _merged(before, report) if before["keys"]["model"] == report["keys"]["model"] else report
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return report


def _merged(before: dict[str, Any], report: dict[str, Any]) -> dict[str, Any]:
    old, new = before["keys"], report["keys"]
    holds = {kind: new[kind] in (None, old[kind]) for kind in _SAID}
    holds["features"] &= holds["samples"]
    kept = {name: Figure(**figure)._asdict() for name, figure in before["figures"].items() if holds[_OTHERS.get(name, "features")]}
    metrics = {*report["settings"]["metrics"], *(name for name in before["settings"]["metrics"] if holds[_OTHERS.get(name, "features")])}
    stay = [kind for kind in _SAID if holds[kind] and new[kind] is None and old[kind] is not None]  # what was not asked for now
    said = {field: before[field] for kind in stay for field in _SAID[kind]}
    settings = before["settings"] if "samples" in stay else report["settings"]
    return {
        **report, **said, "settings": {**settings, "metrics": [name for name in METRICS if name in metrics]},
        "figures": {**kept, **report["figures"]}, "keys": {**new, **{kind: old[kind] for kind in stay}},
    }  # fmt: skip


def _of_features(plan: Plan, jobs: Mapping[str, Job]) -> dict[str, Figure]:
    if plan.features is None:
        return {}
    made, metrics = jobs["features"], plan.metrics
    figures: dict[str, Figure] = {}
    if "fid" in metrics:
        moments = plan.reference
        reference = together(Moments.of(part["features"]) for part in jobs["reference"].parts()).gaussian if isinstance(moments, Data) else moments
        figures |= fid(grouped(made.all("features")), reference)
    if "is" in metrics:
        figures["is"] = inception_score(made.all("probabilities"))
    if set(metrics) & set(NEED_IMAGES):
        x, y = made.all("features"), jobs["reference"].all("features")
        measures = {"kid": lambda: {"kid": kid(x, y)}, "precision_recall": lambda: precision_recall(x, y), "density_coverage": lambda: density_coverage(x, y)}
        for name, measured in measures.items():
            figures |= measured() if name in metrics else {}
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


def _samples(job: Job, out: Path) -> tuple[dict[str, Figure], dict[str, int]]:
    """What the samples cost and how they ended; draws their picture."""
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
    return costs, statuses
