"""What an evaluation was asked for, checked before anything is computed."""

from __future__ import annotations

import inspect
import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import sdesolve as sd

from .._errors import as_int, unknown
from ..class_conditional import class_labels, labels_drawn, labels_of
from ..data import UNREADABLE, Data, check_shape, of_tensor, open_npz, read_data
from ..images import to_uint8
from ..models import Model
from ..sampling import before_the_first_call, check_sampler
from .chunks import Shard
from .features import Features, make_features
from .frechet import ENOUGH, Gaussian

METRICS: dict[str, str] = {
    "fid": "Fréchet distance of features, and what is left of it at infinitely many images",
    "kid": "kernel distance of features, unbiased",
    "is": "inception score: needs features with class probabilities",
    "precision_recall": "share of samples near the data, and of data near the samples",
    "density_coverage": "the same, told by balls about the data alone",
    "bpd": "bits/dim of the data under the model",
    "time": "seconds and network calls of the samples",
}
NEED_IMAGES = ("kid", "precision_recall", "density_coverage")
OF_FEATURES = ("fid", "kid", "is", "precision_recall", "density_coverage")
DEFAULT = ("fid", "kid", "precision_recall", "time")
_LEAST = 8  # images, of samples and of the reference


@dataclass(frozen=True)
class Plan:
    """Everything that was asked for, checked."""

    model: Model
    reference: Data | Gaussian
    """The data, or the moments of their features."""
    metrics: tuple[str, ...]
    n: int
    shard: Shard
    batch_size: int
    draw: dict[str, Any]
    """Options of ``Model.draw``, with ``labels`` as they were said."""
    features: Features | None
    likely: Data | None
    """What bits/dim are of."""
    likely_labels: Tensor | None
    """(m,) their classes, of a model that knows classes."""
    likelihood: dict[str, Any]
    """Options of ``Model.log_likelihood``, with ``labels`` as they were said."""

    def labels(self, ids: Sequence[int]) -> Tensor | None:
        """(len(ids),) classes of these samples, of a model that knows classes."""
        return labels_drawn(self.model, self.draw.get("labels"), _own(self.reference), ids)

    @property
    def draws(self) -> bool:
        """Whether there is a use for samples."""
        return self.features is not None or "time" in self.metrics


def planned(
    model: Model, data: Any, size: int, metrics: Any, n: Any, shard: Any, batch_size: Any, features: Any, weights: Any, likelihood: Any, draw: dict[str, Any]
) -> Plan:
    """What was asked for, where it can be done; a ValueError or TypeError where it cannot."""
    if not isinstance(model, Model):
        raise TypeError(f"model is a {type(model).__name__}; expected a Model, as in evaluate(gen.load('mnist'), data).")
    if isinstance(metrics, str) or not metrics:
        raise ValueError(f"metrics={metrics!r}; expected a list of names, as in metrics=['fid', 'kid']: {', '.join(METRICS)}.")
    for metric in metrics:
        if metric not in METRICS:
            raise ValueError(unknown("metric", metric, METRICS))
    count, together = as_int(n), as_int(batch_size)
    if count is None or count < _LEAST:
        raise ValueError(f"n={n!r}; expected an integer >= {_LEAST}, as in n=50_000.")
    if together is None or together < 1:
        raise ValueError(f"batch_size={batch_size!r}; expected an integer >= 1, as in batch_size=100.")
    if model.levels != 256:
        raise ValueError(f"the model's pixels take {model.levels} values; expected 256, since images are judged as 8 bits a channel.")
    if likelihood and "bpd" not in metrics:
        raise ValueError(f"likelihood={dict(likelihood)} is for the metric 'bpd', which is not among metrics={list(metrics)}; add it, or leave this out.")
    _check_options(draw)
    parts = Shard.read(shard)
    _check_solvers(model, draw, dict(likelihood or {}))
    reference = _reference(data, model, size, metrics)
    network = None
    if set(metrics) & set(OF_FEATURES):
        network = make_features(features, weights, model.shape, model.device, model.data_range)
        _check_features(network, model, metrics, count, reference)
    if network is not None or "time" in metrics:
        class_labels(model, 1, labels_drawn(model, draw.get("labels"), _own(reference), [0]), draw.get("guidance", 1.0), None, 1.0)
    likely, told, chosen = _likelihood(dict(likelihood or {}), reference, size, model, draw["seed"]) if "bpd" in metrics else (None, None, {})
    return Plan(model, reference, tuple(dict.fromkeys(metrics)), count, parts, together, draw, network, likely, told, chosen)


def _own(reference: Data | Gaussian) -> Data | None:
    """The data, where they are not moments."""
    return reference if isinstance(reference, Data) else None


def _reference(data: Any, model: Model, size: int, metrics: Sequence[str]) -> Data | Gaussian:
    """The data, or their moments where that is what a file holds."""
    moments = read_moments(data)
    if moments is not None:
        for metric in metrics:
            if metric in NEED_IMAGES:
                raise ValueError(f"{data} are moments of features, enough for 'fid'; {metric!r} needs the images: pass those instead.")
        return moments
    images = _read(data, model, size)
    if len(images.images) < _LEAST:
        raise ValueError(f"the data are {len(images.images)} images; expected at least {_LEAST}, and for a distance thousands.")
    return images


def _check_options(draw: dict[str, Any]) -> None:
    if not isinstance(draw["method"], str):
        raise TypeError(f"method is a {type(draw['method']).__name__}; expected a name from sdesolve.methods(), by which a run that goes on knows it again.")
    for name in ("sample_ids", "generator", "progress", "classifier", "classifier_scale"):
        if name in draw:
            why = "a model is judged by itself" if name.startswith("classifier") else "images are named 0..n-1 by themselves"
            raise ValueError(f"{name}=... is not for evaluate: {why}; leave it out.")
    try:
        json.dumps(draw)
    except TypeError as error:
        raise TypeError(f"options={draw!r} ({error}); expected numbers, texts and lists of these, by which a run that goes on knows them again.") from error


def _check_solvers(model: Model, draw: dict[str, Any], likelihood: dict[str, Any]) -> None:
    """Try the solves on one image up to their first network call: what is wrong with their arguments is told before anything is read."""
    one: dict[str, Any] = {"labels": 0} if model.classes else {}
    check_sampler(model, **{**draw, **one} if model.classes else {name: value for name, value in draw.items() if name != "labels"})
    options = {name: value for name, value in likelihood.items() if name not in ("data", "n", "labels")}
    known = set(inspect.signature(sd.log_likelihood).parameters) - {"process", "score", "x0", "sample_ids"}
    for name in options:
        if name not in known:
            raise ValueError(unknown("likelihood option", name, known | {"data", "n", "labels"}))
    with before_the_first_call(model):
        model.log_likelihood(torch.full((1, *model.shape), sum(model.data_range) / 2), **{"seed": 0, **options}, **one)


def _likelihood(
    options: dict[str, Any], reference: Data | Gaussian, size: int, model: Model, seed: int
) -> tuple[Data, Tensor | None, dict[str, Any]]:
    """The images that bits/dim are of, their classes, and how they are to be had."""
    data, n = options.pop("data", None), options.pop("n", None)
    if n is not None and (as_int(n) or 0) < 1:
        raise ValueError(f"likelihood n={n!r}; expected an integer >= 1, as in likelihood={{'n': 256}}.")
    images = reference if data is None else _read(data, model, size)
    if not isinstance(images, Data):
        raise ValueError("bits/dim are of images, and the reference are moments; expected likelihood={'data': ...} beside it.")
    images = images.rows(slice(n))
    return images, labels_of(model, options.get("labels"), images, len(images.ids), "bits/dim labels"), {"seed": seed, **options}


def _check_features(features: Features, model: Model, metrics: Sequence[str], n: int, reference: Data | Gaussian) -> None:
    """Try the features on one image, and see that they serve what is asked."""
    data = reference.images if isinstance(reference, Data) else torch.zeros(1, *model.shape, dtype=torch.uint8)
    tried = features(as_bytes(data[:1], model))
    if "is" in metrics and "probabilities" not in tried:
        raise ValueError(f"metric 'is' needs class probabilities, and features={features.name!r} have none; expected a network that returns (features, probabilities).")
    k, rows = tried["features"].shape[1], {"samples": n}
    if isinstance(reference, Data):
        rows["reference"] = len(data)
    elif len(reference[0]) != k:
        raise ValueError(f"the reference are moments of {len(reference[0])} features, and features={features.name!r} have {k}; expected those that it was made with.")
    for which, count in rows.items():
        if "fid" in metrics and count <= k:
            cause = f"{count} images span at most {count - 1} of {k} feature directions, so the covariance of the {which} is singular"
            warnings.warn(f"{cause}: FID is far too large. Compare it at the same n alone, or take n > {k}.", UserWarning, stacklevel=4)
    if "fid" in metrics and k < n < ENOUGH * k:
        few = f"{n} images are fewer than {ENOUGH} a feature, of which there are {k}: what FID owes to n is not of first order in 1/n"
        warnings.warn(f"{few}, and FID_infinity is left out. Compare FID at the same n alone, or take n >= {ENOUGH * k}.", UserWarning, stacklevel=4)


def read_moments(data: Any) -> Gaussian | None:
    """``mu`` (k,) and ``sigma`` (k, k) of an npz file, as statistics for FID are published; None for data of any other kind."""
    if not isinstance(data, str | Path) or Path(data).suffix != ".npz" or not Path(data).is_file():
        return None
    try:
        with open_npz(data) as file:
            if not {"mu", "sigma"} <= set(file.files):
                return None
            mean, covariance = (torch.from_numpy(np.asarray(file[name], np.float64)) for name in ("mu", "sigma"))
    except UNREADABLE:
        return None  # for read_data to say what is wrong
    if mean.dim() != 1 or covariance.shape != (len(mean), len(mean)) or not (torch.isfinite(mean).all() and torch.isfinite(covariance).all()):
        raise ValueError(f"{data} holds mu {tuple(mean.shape)} and sigma {tuple(covariance.shape)}; expected finite (k,) and (k, k).")
    return mean, covariance


def _read(data: Any, model: Model, size: int) -> Data:
    """The data, of the model's shape and within its range."""
    given = check_shape(of_tensor(data) if isinstance(data, Tensor) else read_data(data, size, floats=True), model.shape)
    images = given.images
    if not len(images):
        raise ValueError("the data are 0 images; expected some.")
    if not images.is_floating_point():
        if images.dtype != torch.uint8:
            raise ValueError(f"the data are {images.dtype}; expected uint8 from 0 to 255, or floats in the model's data range: data.to(torch.uint8).")
        return given
    low, high = model.data_range
    least, most = float(images.min()), float(images.max())
    if not low <= least <= most <= high:
        raise ValueError(f"the data lie in [{least:.4g}, {most:.4g}], the model's images in [{low:.4g}, {high:.4g}]; expected floats of that range, or uint8.")
    if most <= (low + high) / 2 or least >= (low + high) / 2:
        warnings.warn(f"the data lie in [{least:.4g}, {most:.4g}], one half of the model's range [{low:.4g}, {high:.4g}]: are they in other units?", stacklevel=4)
    return given


def as_bytes(images: Tensor, model: Model) -> Tensor:
    """Images as 0..255, from floats in the model's data range where they are not so already."""
    return to_uint8(images, model.data_range) if images.is_floating_point() else images
