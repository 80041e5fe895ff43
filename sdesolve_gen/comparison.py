"""What a restoration leaves behind, beside the picture that shows it.

    NAME.png         a row an image: truth, measurement, draws, their mean and standard deviation
    NAME-mean.png    the means;  NAME-std.png: the standard deviations, white where the largest is, of two draws or more
    NAME.npz         images (n, draws, C, H, W), mean, std, y, residual, nfe, status, names, seed
    NAME.json        everything that led to them, and the figures
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor
from torch.nn.functional import interpolate

from sdesolve.files import atomic_set

from ._versions import versions
from ._writing import write_json
from .conditioning import Operator
from .conditioning.metrics import WINDOW, psnr, ssim
from .images import SEPARATOR, grid, save_png, to_uint8
from .models import Model
from .outputs import hashes, picture, writable
from .restoration import Restored

_HEADER = 14  # pixels above the columns, for their names
_SHOWN = 16  # draws of an image in the picture


class Comparison(NamedTuple):
    """A restoration and what it started from."""

    model: Model
    operator: Operator
    y: Tensor
    """(n, *measured)."""
    restored: Restored
    truth: Tensor | None
    """(n, C, H, W) in the data range, where it is known."""
    names: list[str]
    settings: dict[str, Any]
    wall_time: float
    """Seconds."""
    command: list[str]

    def figures(self) -> dict[str, Any]:
        """Means over images: PSNR and SSIM of the draws and of their means, residual, network calls, and how many draws ended how."""
        r = self.restored
        found: dict[str, Any] = {"images": len(r.images), "draws": r.images.shape[1], "residual": float(r.residual.mean()), "nfe": float(r.nfe.double().mean())}
        found["noise_std"] = r.noise_std
        if self.truth is not None:
            truth, every = self.truth.cpu(), r.images.flatten(0, 1).cpu()
            repeated = truth.repeat_interleave(r.images.shape[1], 0)
            found |= _likeness("draws", every, repeated, self.model) | _likeness("mean", r.mean.cpu(), truth, self.model)
        if r.log_evidence is not None and r.ess is not None:
            found |= {"log_evidence": float(r.log_evidence.mean()), "ess_last": float(r.ess[..., -1].mean()), "ess_least": float(r.ess.amin(-1).mean())}
        return {**found, "statuses": dict(Counter(r.status.flatten().tolist()))}

    def line(self) -> str:
        """The figures in one line."""
        f = self.figures()
        likeness = f", PSNR {f['psnr_draws']:.2f} dB a draw and {f['psnr_mean']:.2f} dB their mean" if self.truth is not None else ""
        calls = "network calls a draw" if self.restored.ess is None else "network calls a particle"
        return f"{f['images']} images, {f['draws']} draws each, {f['nfe']:.0f} {calls}, {self.wall_time:.1f} s, |y - A x| {f['residual']:.4g} rms{likeness}"


def comparison_files(out: str, stem: str, overwrite: bool, draws: int) -> tuple[Path, ...]:
    """The paths of ``--out``, without one for the spread of a single draw, checked before anything is computed; raises ValueError as :func:`picture` and :func:`writable` do."""
    png = picture(out, stem)
    spread = [png.with_name(f"{png.stem}-std.png")] if draws > 1 else []
    return writable(out, (png, png.with_name(f"{png.stem}-mean.png"), *spread, png.with_suffix(".npz"), png.with_suffix(".json")), overwrite)


def write_comparison(files: tuple[Path, ...], found: Comparison) -> None:
    """Write the files, as one set, the manifest last."""
    r, std = found.restored, torch.nan_to_num(found.restored.std)
    white = max(float(std.max()), 1e-12) if r.images.shape[1] > 1 else None
    tensors = {"images": r.images, "mean": r.mean, "std": r.std, "y": found.y, "residual": r.residual, "nfe": r.nfe}
    tensors |= {} if r.log_evidence is None or r.ess is None else {"log_evidence": r.log_evidence, "ess": r.ess}
    arrays: dict[str, Any] = {name: tensor.cpu().numpy() for name, tensor in tensors.items()}
    said = {
        "command": ["sdesolve-gen", *found.command],
        "versions": versions(),
        "model": {"name": found.model.card["name"], "sha256": found.model.card.get("sha256")},
        **found.settings,
        "method": r.method,
        "sampler": r.sampler,
        "seed": r.seed,
        "images": found.names,
        "figures": found.figures(),
        "std_white": white,
        "wall_time_seconds": round(found.wall_time, 3),
    }
    with atomic_set(*files) as temporaries:
        png, mean, *deviation, npz, manifest = temporaries
        compared(found).save(png, format="PNG")
        save_png(mean, r.mean, found.model.data_range)
        for path in deviation:
            save_png(path, std, (0.0, white or 1.0))
        np.savez_compressed(npz, **arrays, status=r.status, names=np.array(found.names), seed=np.uint64(r.seed))
        write_json(manifest, said | {"files": hashes(files, temporaries[:-1])})


def compared(found: Comparison) -> Image.Image:
    """The picture: a row an image, a column each for truth, measurement, draws, mean and standard deviation, named above."""
    r, data_range = found.restored, found.model.data_range
    std = torch.nan_to_num(r.std)
    columns = [("measured", to_uint8(as_picture(found), data_range))]
    if found.truth is not None:
        columns.insert(0, ("truth", to_uint8(found.truth, data_range)))
    columns += [(f"draw {d}", to_uint8(r.images[:, d], data_range)) for d in range(min(_SHOWN, r.images.shape[1]))]
    if r.images.shape[1] > 1:
        columns += [("mean", to_uint8(r.mean, data_range)), ("std", to_uint8(std, (0.0, max(float(std.max()), 1e-12))))]
    return in_columns(columns)


def in_columns(columns: list[tuple[str, Tensor]]) -> Image.Image:
    """A picture of images, a row each: named columns of (n, C, H, W) in 0 to 255."""
    tiles = torch.stack([column.cpu() for _, column in columns], 1).flatten(0, 1)
    picture = Image.fromarray(grid(tiles, len(columns))).convert("RGB")
    canvas = Image.new("RGB", (picture.width, picture.height + _HEADER), "white")
    canvas.paste(picture, (0, _HEADER))
    draw, step = ImageDraw.Draw(canvas), (picture.width + SEPARATOR) / len(columns)
    for i, (name, _) in enumerate(columns):
        draw.text((i * step + 2, 1), name, fill="black")
    return canvas


def as_picture(found: Comparison) -> Tensor:
    """The measurement as images of the model's shape: enlarged where it is an image itself, else the mean of N(0, c^2 I) given y, c = ``data_std``: A^+ y without noise."""
    y, operator, (channels, height, width) = found.y, found.operator, found.model.shape
    measured = tuple(operator.measured)
    if len(measured) == 3 and measured[0] in (1, channels) and height % measured[1] == width % measured[2] == 0:
        return interpolate(y, size=(height, width), mode="nearest").expand(-1, channels, -1, -1)
    variance, noise = found.model.data_std**2, found.settings.get("noise_std") or 0.0
    return variance * operator.adjoint(operator.gram_solve(y, noise**2, variance))


def _likeness(of: str, images: Tensor, truth: Tensor, model: Model) -> dict[str, float]:
    """Mean PSNR and, where images are large enough for its window, SSIM."""
    found = {f"psnr_{of}": float(psnr(images, truth, model.data_range).mean())}
    if min(model.shape[1:]) >= WINDOW:
        found[f"ssim_{of}"] = float(ssim(images, truth, model.data_range).mean())
    return found
