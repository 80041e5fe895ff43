"""Draws from a model: the reverse process from the prior to data, in chunks that do not know of one another."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

import sdesolve as sd
from sdesolve.noise import check_seed
from sdesolve.solve import heeding_levels

from ._errors import as_int
from ._memory import check_room
from .class_conditional import class_labels, class_score, rows_leave
from .classifiers import Classifier
from .conditioning.classifier_free import Guidance

if TYPE_CHECKING:
    from .models import Model


_PER_ID = 36  # bytes of an integer in a list


class Samples(NamedTuple):
    """What was drawn, image by image."""

    images: Tensor
    """(n, C, H, W) float32, clipped to the data range; one that is not "ok" may hold NaN."""
    ids: list[int]
    """(n,) what names each image, together with the seed."""
    nfe: Tensor
    """(n,) int64, network calls each image saw, counted as they happened."""
    status: np.ndarray
    """(n,) strings: "ok", "non_finite", "max_steps" or "min_step"."""
    seed: int
    steps: Tensor
    """(n,) int64, steps each image walked, of a grid or of its own."""


def draw(
    model: Model,
    n: int,
    method: str | sd.Stepper,
    *,
    steps: int | None = None,
    seed: int | None = None,
    batch_size: int | None = None,
    sample_ids: Sequence[int] | Tensor | None = None,
    denoise: bool | Literal["extrapolate"] = "extrapolate",
    progress: bool = False,
    labels: int | Sequence[int] | Tensor | None = None,
    guidance: float | Guidance = 1.0,
    classifier: Classifier | None = None,
    classifier_scale: float = 1.0,
    **options: Any,
) -> Samples:
    """Solve the model's reverse SDE from its prior, ``batch_size`` images at a time; see ``Model.sample``."""
    check_room(count("n", n) * (math.prod(model.shape) * 4 + _PER_ID), f"{n} images", f"fewer at a time, as in n={min(n, 1000)} with other sample_ids each time")
    ids = names(n, sample_ids)
    size = n if batch_size is None else count("batch_size", batch_size)
    seed = checked_seed(seed)
    for name in ("save", "callback"):
        if name in options:
            raise ValueError(f"{name}=... is not for whole batches of images: use sdesolve.solve(m.process.reverse(m.score), x, {name}=...) on a prior draw x.")
    for name in ("problem", "x"):
        if name in options:
            raise ValueError(f"{name}=... is the model's to give; expected an option of sdesolve.solve or of the method.")
    if not isinstance(progress, bool):
        raise TypeError(f"progress={progress!r}; expected True or False.")
    if options.get("compile") and isinstance(guidance, Guidance) and guidance.interval is not None:
        raise ValueError("compile=True makes one step for all times, and guidance with an interval asks other networks at other times; expected one of them.")
    wanted = class_labels(model, n, labels, guidance, classifier, classifier_scale)
    grid = options.get("grid")
    if method == "auto" and wanted is None and (grid is None or isinstance(grid, str) or callable(grid)):  # times of one's own have their ends
        options.setdefault("interval", model.moments)  # of all classes together
    chunks = _chunks(wanted, n, size, rows_leave(method, steps, options))
    solutions = []
    with heeding_levels(6), bar(progress, n, model.process.reverse(model.score).interval, steps) as observe, warnings.catch_warnings():
        warnings.simplefilter("ignore", sd.SolveWarning)  # it would count within the chunk; below, the images are named
        for chunk in chunks:
            named = [ids[i] for i in chunk]
            problem = model.process.reverse(class_score(model, None if wanted is None else wanted[chunk], guidance, classifier, classifier_scale))
            x = model.process.prior((len(chunk), *model.shape), seed=seed, sample_ids=named, device=model.device)
            callback = observe(len(chunk)) if observe else None
            few = method == "auto" and 0 < (as_int(options.get("nfe")) or 0) < 2 * problem.score.calls  # of which none is left for the denoiser
            solutions.append(
                sd.solve(problem, x, method, steps=steps, seed=seed, sample_ids=named, denoise=False if few else denoise, callback=callback, **options)
            )
    order = torch.tensor([i for chunk in chunks for i in chunk]).argsort()
    x, nfe, walked = (torch.cat([of(solution) for solution in solutions])[order] for of in (lambda solution: solution.x, calls, _walked))
    samples = Samples(x.clamp(*model.data_range), ids, nfe, np.concatenate([solution.status for solution in solutions])[order.numpy()], seed, walked)
    _warn(samples)
    return samples


class _Called(Exception):
    """The network would have been called."""


@contextmanager
def before_the_first_call(model: Model) -> Iterator[None]:
    """What is done within ends where it would call the model's network: arguments are checked, and nothing is computed."""

    def stop(*_: Any) -> None:
        raise _Called

    handle = model._executed.register_forward_pre_hook(stop)
    try:
        with suppress(_Called):
            yield
    finally:
        handle.remove()


def check_sampler(model: Model, **options: Any) -> None:
    """Raises what :func:`draw` does for these arguments, without a network call."""
    with before_the_first_call(model):
        draw(model, 1, **{**options, "compile": False} if options.get("compile") is True else options)


def _chunks(labels: Tensor | None, n: int, size: int, apart: bool) -> list[list[int]]:
    """Positions of the images that are solved together: ``size`` at a time, and where they leave the batch one by one, of one label."""
    groups = [list(range(n))]
    if apart and labels is not None:
        groups = [torch.nonzero(labels == label).flatten().tolist() for label in labels.unique()]
    return [group[i : i + size] for group in groups for i in range(0, len(group), size)]


def calls(solution: sd.Solution) -> Tensor:
    """(B,) network calls."""
    return torch.as_tensor(solution.nfe).cpu().expand(len(solution.x))


def _walked(solution: sd.Solution) -> Tensor:
    """(B,) steps."""
    steps = solution.stats["steps"]
    return torch.as_tensor(solution.stats["accepted"] if steps is None else steps).cpu().expand(len(solution.x))


def _warn(samples: Samples) -> None:
    """Name the images that are not "ok"."""
    failed = [(i, status) for i, status in zip(samples.ids, samples.status, strict=True) if status != "ok"]
    if failed:
        shown = ", ".join(f"{i}: {status}" for i, status in failed[:5])
        message = f"{len(failed)} of {len(samples.ids)} images did not arrive (sample id {shown}{', ...' if len(failed) > 5 else ''})."
        warnings.warn(f"{message} m.draw(...).status tells which.", sd.SolveWarning, stacklevel=4)


_Observe = Callable[[int], Callable[[sd.Moment], None]]


@contextmanager
def bar(progress: bool, n: int, interval: tuple[float, float], steps: int | None) -> Iterator[_Observe | None]:
    """A bar over all chunks and steps, and a maker of callbacks (number of images -> callback) that move it."""
    if not progress:
        yield None
        return
    first, last = interval

    def fraction(moment: sd.Moment) -> float:
        if steps is not None:
            return moment.step / steps
        return float((torch.as_tensor(moment.t).mean() - first) / (last - first))

    with tqdm(total=n, unit="image", delay=0.2, bar_format="sampling {percentage:3.0f}%|{bar}| [{elapsed}<{remaining}, {rate_fmt}]") as drawn:

        def observe(images: int) -> Callable[[sd.Moment], None]:
            start = drawn.n
            return lambda moment: _move(drawn, start + images * fraction(moment))

        yield observe


def _move(drawn: tqdm, position: float) -> None:
    drawn.update(position - drawn.n)


def count(name: str, value: object) -> int:
    """``value`` as an integer >= 1."""
    whole = as_int(value)
    if whole is None or whole < 1:
        raise ValueError(f"{name}={value!r}; expected an integer >= 1, as in {name}=16.")
    if whole >= 2**63:
        raise ValueError(f"{name} has {whole.bit_length()} bits; expected an integer, 1 <= {name} < 2**63, as in {name}=16.")
    return whole


def names(n: int, sample_ids: Sequence[int] | Tensor | None) -> list[int]:
    """(n,) names of the images."""
    if sample_ids is None:
        return list(range(n))
    given = sample_ids.tolist() if isinstance(sample_ids, Tensor) else list(sample_ids) if isinstance(sample_ids, Iterable) else [sample_ids]
    ids = [i for i in map(as_int, given) if i is not None and i >= 0]
    wrong = next((i for i in given if (as_int(i) or 0) < 0), None)
    if wrong is not None:
        raise ValueError(f"sample_ids has {wrong}; expected n = {n} integers >= 0, as in range({n}).")
    if len(ids) != n or len(given) != n:
        raise ValueError(f"sample_ids={given[:5]}{'...' if len(given) > 5 else ''} ({len(given)} of them); expected n = {n} integers >= 0, as in range({n}).")
    return ids


def checked_seed(seed: int | None) -> int:
    """``seed``, or one from torch's global generator."""
    return int(torch.randint(2**62, ())) if seed is None else check_seed(seed)
