"""How good a model is: its samples against a data set, in any number of processes, each image the same in every one.

Four jobs, each cut into chunks that are files (:mod:`.chunks`), and a report that is made of those:

    samples      images drawn, 8 bits a channel, with the network calls and the end of each        out/samples
    features     of those, by one feature network                                                  out/features-KEY
    reference    features of the data                                                              cache/reference-KEY
    likelihood   bits/dim of the data                                                              out/likelihood-KEY

Whichever process finds that all chunks are there writes the report.
"""

from __future__ import annotations

import hashlib
import json
import time
import warnings
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

import sdesolve as sd
from sdesolve.noise import check_seed
from sdesolve.solution import Status

from ..class_conditional import own_labels
from ..data import Data
from ..images import to_uint8
from ..likelihoods import measure
from ..models import Model
from .chunks import Job, Tensors, digest
from .features import Network
from .plan import DEFAULT, Plan, as_bytes, planned
from .report import Evaluation, compose

_FEATURES_TOGETHER = 500


def evaluate(
    model: Model,
    data: str | Path | Sequence[str | Path] | Tensor,
    metrics: Sequence[str] = DEFAULT,
    *,
    n: int = 50_000,
    method: str = "pc",
    steps: int | None = None,
    seed: int = 0,
    labels: int | str | None = None,
    guidance: float = 1.0,
    size: int = 0,
    features: str | Path | Network = "inception",
    weights: str | Path | None = None,
    out: str | Path | None = None,
    cache: str | Path | None = None,
    batch_size: int = 100,
    shard: str | None = None,
    likelihood: Mapping[str, Any] | None = None,
    progress: bool = True,
    **options: Any,
) -> Evaluation:
    """Draw ``n`` images from a model and measure them against a data set, with standard errors.

    Image i is a function of (seed, i), and batches are cut at multiples of ``batch_size``, so 1 or 4 processes draw the same images, bit for bit
    on the same kind of machine.  What is done lies in ``out``, whole: the same call goes on from there, also with more metrics or other features.

    Arguments:
        model: the model.
        data: the reference: one source or several of :mod:`sdesolve_gen.data`, as for training, or a tensor (m, C, H, W), uint8 or floats in the model's
            data range; for "fid" an npz file with the moments ``mu`` and ``sigma`` of its features will do, as they are published.
        metrics: of "fid", "kid", "is", "precision_recall", "density_coverage", "bpd" and "time".
        n: images to draw; 50,000 is what published distances are of.
        method, steps, options: as ``Model.sample`` takes them.
        seed: names every noise, 0 <= seed < 2**64.
        labels: of a model that knows classes, the class of sample i: "balanced" (i mod classes), "data" (a function of i that gives each class its share in the
            data), "none" (of no class) or the number of one.
        guidance: scale of classifier-free guidance.
        size: side that the data's pictures are scaled and cropped to, as in training; 0 takes them as they are.
        features: "inception" (extra ``evaluate``), "mnist" or "fashion_mnist" (they come with the package), a folder with a classifier that
            ``benchmarks/mnist_classifier.py`` wrote, or a network that maps images (B, C, H, W), float32 in the data range, to features (B, k) or (features, class probabilities).
        weights: file of Inception's weights; default: fetched by torch.hub, once.
        out: folder for chunks, ``report.json`` and ``samples.png``; None keeps nothing, and is for one process.
        cache: folder for the features of the data, which several runs may share; default ``out``.
        batch_size: images solved together, and kept together.
        shard: "i/k", this process being i of k; default: RANK and WORLD_SIZE, as torchrun sets them, or 0/1.
        likelihood: for "bpd": {"data": other data than the reference, "n": the first so many, "labels": "data" (each image its own), "none" or one class, of a
            model that knows classes}, and options of ``Model.log_likelihood``.
        progress: draw progress bars.

    Returns:
        An :class:`Evaluation`, whose ``figures`` are empty while other shards' chunks are missing.

    Raises:
        ValueError, TypeError: bad arguments, before the first network call; an ``out`` of other settings.
        ImportError, OSError: Inception without torch-fidelity or its weights.
    """
    draw = {"method": method, "steps": steps, "seed": check_seed(seed), **options}
    draw |= {} if labels is None else {"labels": labels}
    draw |= {} if guidance == 1.0 else {"guidance": guidance}
    plan = planned(model, data, size, metrics, n, shard, batch_size, features, weights, likelihood, draw)
    if out is None and plan.shard.of > 1:
        raise ValueError(f"shard {plan.shard.which}/{plan.shard.of} without a folder; expected one that the processes share, as in out='runs/evaluation'.")
    with TemporaryDirectory() if out is None else nullcontext(out) as folder:
        jobs = _jobs(plan, Path(folder), Path(folder if cache is None else cache))
        for name, job in jobs.items():
            own = sum(len(span) for span in job.spans[plan.shard.which :: plan.shard.of])
            with tqdm(total=own, unit="image", desc=name, disable=not progress) as bar:
                job.run(plan.shard, bar.update)
        return _finished(plan, jobs, Path(folder))


def _jobs(plan: Plan, out: Path, cache: Path) -> dict[str, Job]:
    """What there is to do, by name, in order."""
    model, of = plan.model, {"model": plan.model.card["name"], "weights": _weights(plan.model)}
    jobs: dict[str, Job] = {}
    drawn = {**of, **plan.draw}
    if plan.draw.get("labels") == "data":
        drawn["shares"] = digest({"labels": own_labels(model, plan.reference).sort().values})  # type: ignore[arg-type, union-attr]
    if plan.draws:
        samples = jobs["samples"] = Job(out / "samples", drawn, plan.n, plan.batch_size, lambda span: _drawn(plan, span))
    if plan.features is not None:
        network, key = plan.features, plan.features.key
        asked = {**drawn, "features": key}
        jobs["features"] = Job(out / f"features-{_short(key)}", asked, plan.n, plan.batch_size, lambda span: network((samples.read(span) or {})["images"]))
        if isinstance(plan.reference, Data):
            data = as_bytes(plan.reference.images, model)
            known = {"data": digest({"images": data}), "features": key}
            folder = cache / f"reference-{_short(known)}"
            jobs["reference"] = Job(folder, known, len(data), _FEATURES_TOGETHER, lambda span: network(data[span.start : span.stop]))
    if plan.likely is not None:
        images, labels, options = plan.likely, plan.likely_labels, plan.likelihood
        of_data = {"images": images.images, "ids": torch.tensor(images.ids)} | ({} if labels is None else {"labels": labels})
        asked = {**of, "data": digest(of_data), **options}
        jobs["likelihood"] = Job(out / f"likelihood-{_short(asked)}", asked, len(images.names), plan.batch_size, lambda span: _likely(plan, images, span))
    return jobs


def _drawn(plan: Plan, span: range) -> Tensors:
    """The images of these numbers, and what they cost."""
    start = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", sd.SolveWarning)  # told once, in the report
        samples = plan.model.draw(len(span), sample_ids=span, **{**plan.draw, "labels": plan.labels(span)})
    seconds = (time.perf_counter() - start) / len(span)
    status = torch.tensor([int(Status[name]) for name in samples.status], dtype=torch.uint8)
    images = to_uint8(samples.images, plan.model.data_range).cpu()
    return {"images": images, "nfe": samples.nfe, "status": status, "seconds": torch.full((len(span),), seconds, dtype=torch.float64)}


def _likely(plan: Plan, images: Data, span: range) -> Tensors:
    """Bits/dim of the images of these places."""
    options = {**plan.likelihood, "labels": plan.likely_labels}
    (rows,) = measure(plan.model, images.rows(slice(span.stop)), span.start, len(span), **options)
    columns = {name: torch.tensor([row[name] for row in rows], dtype=torch.float64) for name in ("bits_per_dim", "standard_error", "nfe")}
    return {**columns, "status": torch.tensor([int(Status[row["status"]]) for row in rows], dtype=torch.uint8)}


def _finished(plan: Plan, jobs: dict[str, Job], out: Path) -> Evaluation:
    """The report, where every chunk is there."""
    missing = {name: count for name, job in jobs.items() if (count := job.missing())}
    return Evaluation({}, {}, missing) if missing else compose(plan, jobs, out)


def _weights(model: Model) -> str:
    """Hash of all that the model computes with."""
    card = {key: model.card[key] for key in ("process", "process_options", "predicts", "time", "shape", "data_range")}
    card |= {"label": model.label, "sigma_data": model.card.get("sigma_data"), "precision": model.execution.precision}
    return hashlib.sha256(f"{json.dumps(card, sort_keys=True)} {digest(model.network.state_dict())}".encode()).hexdigest()


def _short(key: Any) -> str:
    """Twelve hexadecimal digits for a folder's name."""
    return (key if isinstance(key, str) else hashlib.sha256(json.dumps(key, sort_keys=True, default=str).encode()).hexdigest())[:12]
