"""What is sampled from: problems whose law, or whose flow, is known so well that a sampler's error shows.

Every package speaks of the same network in its own coordinates.  Here the ones they share are

    y = x / alpha,   s = sigma / alpha,   D(y, s) = E[x_0 | y],     y = x_0 + s eps

and :class:`Network` gives D, x-space scores for our own methods, and the number of times that it was asked.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import sdesolve as sd
from sdesolve.exam import Empirical, Gaussian, Mixture, Target, mixture_2d, mixture_64d, ring_2d

from .._errors import unknown
from ..data import read_data, scaled
from ..evaluation.chunks import digest
from ..evaluation.classifier import features, load_classifier
from ..evaluation.features import ASSETS, OWN, OWN_SHAPE
from ..models import Model, load
from ..processes import network_time
from .mixture import cached_mixture

PROCESS = sd.VPSDE()  # alphas and sigmas of DDPM's linear betas, which every peer knows as its default
FINE = 1e-4  # where a reference flow ends: sigma = 0.0033
OWN_SAMPLES, OWN_CALLS = 256, 12  # of a model that remembers no moments, from which they are read, and what each may cost
DRAWS = 1 << 16  # of a law, from which its moments are read: as many as there are images in MNIST or CIFAR-10


CPU = torch.device("cpu")


class Skipped(Exception):
    """A problem or a peer that cannot be had here; the message says why, and what would change that."""


@dataclass(frozen=True)
class Problem:
    """A network, and what its samples ought to be.

    Attributes:
        name: as ``--problems`` has it.
        event: shape of one sample.
        network, predicts, time: as :func:`sdesolve.as_score` takes them.
        rows: samples a cell.
        mean, std, directions: of the data, shaped like a sample; the root mean variance about it; and the directions along which it is largest, as
            ``sd.Range`` has them.
        law: what is to be sampled; None for a trained network, whose law is known by its own fine solve alone.
        features: (n, *event) -> (n, k), on which the Frechet distance is taken; None for no Frechet distance.
        primary: the metric by which samplers are ranked.
        source: the first digits of a hash of the data, or of the network and the moments, that it is made of; "" where the package's own code says everything.
        judge: the same of the network that the features are of; "" where they are of none.
        device: where samples are made; they are measured on the host.
    """

    name: str
    event: tuple[int, ...]
    network: Callable[[Tensor, Tensor], Tensor]
    rows: int
    mean: Tensor
    std: float
    directions: Tensor | None
    cache: Path
    predicts: str = "score"
    time: Any = "continuous"
    process: sd.Process = PROCESS
    law: Target | None = None
    features: Callable[[Tensor], Tensor] | None = None
    primary: str = "sliced_w2"
    batch: int | None = None
    """Rows that are solved together; None for all of them."""
    trajectories: int | None = 256
    """With how many a grid is optimised; None where that would take too long."""
    sigma_data: float = 0.5
    device: torch.device = CPU
    source: str = ""
    judge: str = ""

    @property
    def key(self) -> str:
        """What it is called in files: its name, and what it is made of."""
        return f"{self.name}-{self.source}" if self.source else self.name

    @property
    def has_reference(self) -> bool:
        """Whether there are draws to compare samples with."""
        return self.law is not None or self.features is not None

    def draws(self, n: int, seed: int) -> Tensor:
        """n exact draws of the law, on the host."""
        assert self.law is not None
        return self.law.sample(n, seed=seed)

    def start(self, seed: int, first: int = 0, rows: int | None = None) -> Tensor:
        """Standard normals, (rows, *event), from which every sampler starts; row i is a function of (seed, i)."""
        count = self.rows if rows is None else rows
        return PROCESS.prior((count, *self.event), seed=seed, sample_ids=range(first, first + count), device=self.device)


@dataclass
class Network:
    """A problem's network, counted."""

    problem: Problem
    calls: int = 0
    score: sd.Score = field(init=False)

    def __post_init__(self) -> None:
        p = self.problem
        self.score = sd.as_score(self._counted, p.process, predicts=p.predicts, time=p.time, sigma_data=p.sigma_data)

    def _counted(self, x: Tensor, time: Tensor) -> Tensor:
        self.calls += 1
        return self.problem.network(x, time)

    @torch.no_grad()
    def denoised(self, y: Tensor, s: float) -> Tensor:
        """D(y, s), shaped like y."""
        p = self.problem.process
        t = self.time(s)
        return self.score.denoise((p.alpha_(t) * y).to(y.dtype), t)

    def time(self, s: float) -> float:
        """The t at which sigma/alpha = s; what lies beyond the process's end is its end."""
        p = self.problem.process
        return min(float(p.log_snr_inverse(-2 * math.log(s))), p.T)


@dataclass(frozen=True)
class Sources:
    """Where a problem's parts come from."""

    data: Path | None = None
    """Folder with mnist/test.parquet and cifar10/test.parquet."""
    classifier: Path | None = None
    """Folder with classifier.safetensors, whose features serve on grey 28 x 28 images."""
    cache: Path = Path("runs")
    """Where a fitted mixture is kept."""
    models: Mapping[str, str] = field(default_factory=dict)
    """Name -> folder of a trained model, or what it is embedded as."""
    device: torch.device = CPU


def make(name: str, rows: int, sources: Sources) -> Problem:
    """A problem by name.

    Raises:
        ValueError: an unknown name.  Skipped: its data are not here.
    """
    if name in sources.models:
        return _trained(name, load(sources.models[name], sources.device), rows, sources)
    if name not in PROBLEMS:
        raise ValueError(unknown("problem", name, PROBLEMS))
    return PROBLEMS[name](name, rows, sources)


def exact(name: str, law: Target, rows: int, sources: Sources, **more: Any) -> Problem:
    """A law whose score is known, under the variance-preserving process; its moments are those of as many draws as a user may have.  ``more`` are fields of the problem."""
    known = sd.Range.of(law.sample(DRAWS, seed=2**32))
    mean, directions = torch.as_tensor(known.data_mean).float().to(sources.device), known.directions
    return Problem(name, law.event, law.score(PROCESS), rows, mean, known.data_std, directions, sources.cache, law=law, device=sources.device, **more)


def _whole(x: Tensor) -> Tensor:
    return x.flatten(1)


def _leading(law: Target, count: int = 32) -> Callable[[Tensor], Tensor]:
    """Coordinates along the directions of largest variance of a law."""
    x = law.sample(4096, seed=2**32).flatten(1)
    _, _, directions = torch.svd_lowrank(x - x.mean(0), q=count + 8, niter=4)
    return lambda samples: samples.flatten(1) @ directions[:, :count].to(samples)


def _mixture_2d(name: str, rows: int, sources: Sources) -> Problem:
    return exact(name, mixture_2d(), rows, sources, features=_whole)


def _ring_2d(name: str, rows: int, sources: Sources) -> Problem:
    return exact(name, ring_2d(), rows, sources, features=_whole)


def _mixture_64d(name: str, rows: int, sources: Sources) -> Problem:
    return exact(name, mixture_64d(), rows, sources, features=_whole)


def _lowrank_784d(name: str, rows: int, sources: Sources) -> Problem:
    """Eight clusters on planes of rank 8 in 784 dimensions, with a little noise in all of them: flat like data, known like a Gaussian."""
    generator = torch.Generator().manual_seed(784)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    scale = 0.6 * 0.7 ** torch.arange(8, dtype=torch.float64)
    parts = [Gaussian(0.35 * draw(784), factor=draw(784, 8) * scale, floor=0.05) for _ in range(8)]
    law = Mixture(torch.arange(8.0, 16.0), parts)
    return exact(name, law, rows, sources, features=_leading(law))


def _mnist_mixture(name: str, rows: int, sources: Sources) -> Problem:
    images = _pixels(sources, "mnist")
    source = _short({"images": images})
    law = cached_mixture(sources.cache / f"mnist_mixture-{source}.safetensors", lambda: images)
    features, judge = _digits(sources)
    return exact(name, law, rows, sources, features=features or _leading(law), source=source, judge=judge)


def _points(data: str, count: int, name: str, rows: int, sources: Sources) -> Problem:
    images = _pixels(sources, data)[:count]
    features, judge = _digits(sources) if data == "mnist" else (None, "")
    return exact(
        name, Empirical(images.to(sources.device)), rows, sources, features=features, primary="trajectory", source=_short({"images": images}), judge=judge
    )


def _mnist_points(name: str, rows: int, sources: Sources) -> Problem:
    return _points("mnist", 2000, name, rows, sources)


def _cifar_points(name: str, rows: int, sources: Sources) -> Problem:
    return _points("cifar10", 1000, name, rows, sources)


def _mnist_model(name: str, rows: int, sources: Sources) -> Problem:
    """The embedded network."""
    return _trained(name, load("mnist", sources.device), rows, sources)


def _trained(name: str, model: Model, rows: int, sources: Sources) -> Problem:
    """Any network, with the moments that it remembers of its data, or those of samples of its own."""
    if model.classes:
        raise ValueError(f"--model {name} knows {model.classes} classes; expected a model that knows none.")
    own = model.moments or sd.Range.of(model.sample(OWN_SAMPLES, "auto", nfe=OWN_CALLS, seed=2**32, batch_size=64))
    features, judge = _digits(sources) if model.shape == OWN_SHAPE else (None, "")
    return Problem(
        name, model.shape, model.network, rows, torch.as_tensor(own.data_mean), own.data_std, own.directions, sources.cache, predicts=model.card["predicts"],
        sigma_data=model.card.get("sigma_data", 0.5), time=network_time(model.card["time"], model.process), process=model.process,
        features=features, primary="trajectory", batch=64, trajectories=32 if rows >= 64 else None, device=sources.device, source=_trained_on(model), judge=judge,
    )  # fmt: skip


def _trained_on(model: Model) -> str:
    """A trained model's :attr:`Problem.source`; samples of its own, which other machines round otherwise, are its weights'."""
    known = {name: value for name, value in model.card.items() if name in ("predicts", "time", "process", "process_options", "sigma_data")}
    said = {"card": torch.tensor(list(json.dumps(known, sort_keys=True).encode()), dtype=torch.uint8)}
    if model.moments is not None:
        mean, std, directions = model.moments.data_mean, model.moments.data_std, model.moments.directions
        said |= {"mean": torch.as_tensor(mean), "std": torch.tensor(std)} | ({} if directions is None else {"directions": directions})
    return _short({**model.network.state_dict(), **{f"moments {name}": tensor for name, tensor in said.items()}})


def _short(tensors: Mapping[str, Tensor]) -> str:
    return digest(tensors)[:8]


PROBLEMS: dict[str, Callable[[str, int, Sources], Problem]] = {
    "mixture_2d": _mixture_2d,
    "ring_2d": _ring_2d,
    "mixture_64d": _mixture_64d,
    "lowrank_784d": _lowrank_784d,
    "mnist_mixture": _mnist_mixture,
    "mnist_points": _mnist_points,
    "cifar_points": _cifar_points,
    "mnist_model": _mnist_model,
}


def _pixels(sources: Sources, data: str) -> Tensor:
    """(n, C, H, W) float32 in [-1, 1], the middle of each of the 256 bins."""
    if sources.data is None:
        raise Skipped(f"needs the images of {data}: add --data FOLDER, which holds {data}/test.parquet")
    path = sources.data / data / "test.parquet"
    if not path.is_file():
        raise Skipped(f"{path} is not a file: expected --data FOLDER with {data}/test.parquet in it")
    return scaled(read_data(path).images)


def _digits(sources: Sources) -> tuple[Callable[[Tensor], Tensor] | None, str]:
    """Features of a classifier of grey 28 x 28 images, where one was given, and its hash; computed where samples are made, and back on the host."""
    if sources.classifier is None:
        return None, ""
    classifier, device = load_classifier(sources.classifier).to(sources.device), sources.device
    return lambda images: features(classifier, images.reshape(-1, *OWN_SHAPE).to(device)).cpu(), _short(classifier.state_dict())


def classifier_folder(given: str | Path) -> Path:
    """A folder with a classifier: the one given, or that of the features which come with the package, by their name.

    Raises:
        NotADirectoryError: neither.
    """
    folder = ASSETS / f"features_{given}" if given in OWN else Path(given)
    if not folder.is_dir():
        raise NotADirectoryError(f"--classifier {given} is not a folder, nor one of {', '.join(OWN)}.")
    return folder
