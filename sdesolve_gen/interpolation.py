"""The way between two images through their codes, as a picture and as a GIF."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor

import sdesolve as sd
from sdesolve.files import atomic, sha256

from ._versions import versions
from .images import grid, to_uint8, write_png
from .likelihoods import open_images
from .models import Model
from .outputs import outputs

_PAUSE, _FRAME = 800, 120  # milliseconds at the ends, and on the way


class AnimationFiles(NamedTuple):
    """Where the three files go."""

    png: Path
    gif: Path
    manifest: Path


class Way:
    """Two ends: images ``first`` and ``last`` of a data set, or of the prior's draws where there is none.

    Raises:
        ValueError: a number beyond the data set, or images that are not the model's.
    """

    def __init__(self, model: Model, data: str | None, first: int, last: int, seed: int) -> None:
        self._model, self._seed = model, seed
        self._ends: Tensor | None = None
        if data is None:
            self._codes = model.process.prior((2, *model.shape), seed=seed, sample_ids=[first, last], device=model.device)
            return
        images = open_images(data).images
        if max(first, last) >= len(images):
            raise ValueError(f"--first {first} --last {last}: {data} has {len(images)} images, numbered from 0; expected numbers below that.")
        self._ends = images[[first, last]]
        if tuple(images.shape[1:]) != model.shape:
            raise ValueError(f"{data} holds images {tuple(images.shape[1:])}, and the model {model.card['name']} makes {model.shape}; expected its own shape.")

    def images(self, count: int, temperature: float, **tolerances: float) -> Tensor:
        """(count, C, H, W), both ends included."""
        codes = self._codes if self._ends is None else self._model.encode(self._ends, seed=self._seed, **tolerances).x
        return self._model.decode(sd.interpolate(codes[:1], codes[1:], count)[:, 0], temperature=temperature, **tolerances)


def animation_files(out: str, stem: str, overwrite: bool) -> AnimationFiles:
    """The paths of ``--out``, checked before anything is computed; raises ValueError as :func:`outputs`."""
    png, _, manifest = outputs(out, stem, overwrite)
    files = AnimationFiles(png, png.with_suffix(".gif"), manifest)
    if files.gif.exists() and not overwrite:
        raise ValueError(f"{files.gif} is there already; add --overwrite, or choose another --out.")
    return files


def write_animation(files: AnimationFiles, images: Tensor, model: Model, settings: dict[str, Any], command: list[str]) -> None:
    """Write the three files, the manifest last; each is whole or absent."""
    write_png(files.png, images, model.data_range)
    frames = [Image.fromarray(grid(to_uint8(image[None], model.data_range))) for image in images]
    there_and_back = frames + frames[-2:0:-1]
    pauses = [_PAUSE if frame in (0, len(frames) - 1) else _FRAME for frame in range(len(there_and_back))]
    with atomic(files.gif) as path:
        there_and_back[0].save(path, format="GIF", save_all=True, append_images=there_and_back[1:], duration=pauses, loop=0)
    said = {
        "command": ["sdesolve-gen", *command],
        "versions": versions(),
        "model": {"name": model.card["name"], "sha256": model.card.get("sha256")},
        **settings,
        "finite": bool(torch.isfinite(images).all()),
        "files": {file.name: sha256(file) for file in (files.png, files.gif)},
    }
    with atomic(files.manifest) as path:
        path.write_text(json.dumps(said, indent=2) + "\n", encoding="utf-8")
