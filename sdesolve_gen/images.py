"""Images on disk: a PNG grid to look at, an npz file to compute with.

The npz holds float32 in the data range, not 8-bit values, so that what was drawn can go back into a likelihood or an encoder
as it was.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sdesolve.files import atomic

from .sampling import Samples

SEPARATOR = 2  # pixels between images
_TILE, _LARGEST_GRID = 84, 4096  # pixels: small images are enlarged towards the one, as long as the grid stays below the other


def to_uint8(images: Tensor, data_range: tuple[float, float]) -> Tensor:
    """Images of any shape from ``data_range`` to 0..255, in 256 equal bins as data was dequantised; NaN becomes 0."""
    low, high = data_range
    return ((torch.nan_to_num(images.float(), nan=low) - low) * (256 / (high - low))).floor().clamp(0, 255).to(torch.uint8)


def grid(images: Tensor, columns: int | None = None) -> np.ndarray:
    """(n, C, H, W) uint8, C in {1, 3} -> one (H', W') or (H', W', 3) picture, row by row, enlarged where small; nearly square unless ``columns`` says."""
    if images.dim() != 4 or images.dtype != torch.uint8 or images.shape[1] not in (1, 3) or not len(images):
        raise ValueError(f"images are {tuple(images.shape)} {images.dtype}; expected (n, C, H, W) uint8 with n >= 1 and C = 1 or 3: to_uint8(images, data_range).")
    n, channels, height, width = images.shape
    columns = columns or math.ceil(math.sqrt(n * height / width))
    rows = math.ceil(n / columns)
    side = max(height * rows, width * columns)
    zoom = max(1, min(_TILE // max(height, width), _LARGEST_GRID // side))
    tiles = images.repeat_interleave(zoom, 2).repeat_interleave(zoom, 3).permute(0, 2, 3, 1).cpu().numpy()
    step_y, step_x = height * zoom + SEPARATOR, width * zoom + SEPARATOR
    canvas = np.full((rows * step_y - SEPARATOR, columns * step_x - SEPARATOR, channels), 128, np.uint8)
    for i, tile in enumerate(tiles):
        y, x = (i // columns) * step_y, (i % columns) * step_x
        canvas[y : y + height * zoom, x : x + width * zoom] = tile
    return canvas[..., 0] if channels == 1 else canvas


def write_png(path: str | Path, images: Tensor, data_range: tuple[float, float]) -> None:
    """Write images, (n, C, H, W) in ``data_range``, as one grid; whole or not at all."""
    write_grid(path, to_uint8(images, data_range))


def save_png(file: Path, images: Tensor, data_range: tuple[float, float]) -> None:
    """:func:`write_png` into a file that is somebody's temporary one."""
    Image.fromarray(grid(to_uint8(images, data_range))).save(file, format="PNG")


def write_grid(path: str | Path, images: Tensor, columns: int | None = None) -> None:
    """Write images, (n, C, H, W) uint8, as one grid; whole or not at all."""
    picture = Image.fromarray(grid(images, columns))
    with atomic(path) as temporary:
        picture.save(temporary, format="PNG")


def save_npz(file: Path, samples: Samples) -> None:
    """``images`` (n, C, H, W) float32, ``ids``, ``nfe``, ``status`` and ``seed`` into a file that is somebody's temporary one."""
    np.savez_compressed(
        file,
        images=samples.images.cpu().numpy(),
        ids=np.array(samples.ids, np.uint64),
        nfe=samples.nfe.numpy(),
        status=samples.status,
        seed=np.uint64(samples.seed),
    )
