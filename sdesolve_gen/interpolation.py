"""The way between two images through their codes, as a picture and as a GIF."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor

import sdesolve as sd
from sdesolve.files import atomic_set

from ._versions import versions
from ._writing import write_json
from .class_conditional import labels_of, on_the_way
from .data import Data
from .images import grid, save_png, to_uint8
from .models import Model, check_inside_range
from .outputs import hashes, picture, writable

_PAUSE, _FRAME = 800, 120  # milliseconds at the ends, and on the way


class AnimationFiles(NamedTuple):
    """Where the three files go."""

    png: Path
    gif: Path
    manifest: Path


class Way:
    """Two ends: images number ``first`` and ``last`` of a data set, or of the prior's draws where there is none, and their classes, by what was said of them.

    Raises:
        ValueError: a number beyond the data set, or of a picture that could not be read; an image that leaves the data range; classes that nothing was said of.
    """

    def __init__(self, model: Model, data: Data | None, first: int, last: int, said: int | str | None, seed: int) -> None:
        self._model, self._seed = model, seed
        ends = None if data is None else [data.number(number, flag) for number, flag in ((first, "--first"), (last, "--last"))]
        self._ends = None if ends is None else torch.cat([end.images for end in ends])
        if self._ends is not None:
            check_inside_range(self._ends, model.data_range, f"--first {first} and --last {last}")
        own = None if ends is None or ends[0].labels is None else ends[0]._replace(labels=torch.cat([end.labels for end in ends]))  # type: ignore[misc]
        self._labels = labels_of(model, said, own, 2, "--labels")
        self._codes = model.process.prior((2, *model.shape), seed=seed, sample_ids=[first, last], device=model.device)

    def images(self, count: int, temperature: float, **tolerances: float) -> Tensor:
        """(count, C, H, W), both ends included."""
        codes = self._codes if self._ends is None else self._model.encode(self._ends, labels=self._labels, seed=self._seed, **tolerances).x
        labels = on_the_way(self._labels, count)
        return self._model.decode(sd.interpolate(codes[:1], codes[1:], count)[:, 0], labels=labels, temperature=temperature, **tolerances)


def animation_files(out: str, stem: str, overwrite: bool) -> AnimationFiles:
    """The paths of ``--out``, checked before anything is computed; raises ValueError as :func:`picture` and :func:`writable` do."""
    png = picture(out, stem)
    return writable(out, AnimationFiles(png, png.with_suffix(".gif"), png.with_suffix(".json")), overwrite)


def write_animation(files: AnimationFiles, images: Tensor, model: Model, settings: dict[str, Any], command: list[str]) -> None:
    """Write the three files, as one set, the manifest last."""
    frames = [Image.fromarray(grid(to_uint8(image[None], model.data_range))) for image in images]
    there_and_back = frames + frames[-2:0:-1]
    pauses = [_PAUSE if frame in (0, len(frames) - 1) else _FRAME for frame in range(len(there_and_back))]
    said = {
        "command": ["sdesolve-gen", *command],
        "versions": versions(),
        "model": {"name": model.card["name"], "sha256": model.card.get("sha256")},
        **settings,
        "finite": bool(torch.isfinite(images).all()),
    }
    with atomic_set(*files) as (png, gif, manifest):
        save_png(png, images, model.data_range)
        there_and_back[0].save(gif, format="GIF", save_all=True, append_images=there_and_back[1:], duration=pauses, loop=0)
        write_json(manifest, said | {"files": hashes(files, (png, gif))})
