"""Images as one uint8 array, and batches as a pure function of (seed, step)."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pyarrow.parquet as parquet
import torch
from PIL import Image
from pyarrow import ArrowInvalid
from torch import Tensor


def read_images(path: str | Path) -> tuple[Tensor, Tensor | None]:
    """Images (n, C, H, W) uint8 and labels (n,) int64 (None where there are none) of a parquet file in the Hugging Face layout.

    Raises:
        FileNotFoundError: no such file; ValueError: not a parquet file, no images in it, or images of several sizes or modes.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"data={str(path)!r} is not a file; expected a parquet file with a column 'image' of {{bytes, path}}.")
    try:
        table = parquet.read_table(path)
    except ArrowInvalid as error:
        raise ValueError(f"{path} is not a parquet file ({error}); expected one with a column 'image' of {{bytes, path}}.") from error
    if "image" not in table.column_names:
        raise ValueError(f"{path} has the columns {table.column_names}; expected a column 'image' of {{bytes, path}}.")
    arrays = [_pixels(row["bytes"]) for row in table["image"].to_pylist()]
    kinds = sorted({(array.shape, str(array.dtype)) for array in arrays})
    if len(kinds) != 1 or kinds[0][1] != "uint8" or kinds[0][0][2] not in (1, 3):
        raise ValueError(f"{path} holds images of shape (H, W, C) and type {kinds[:4]}; expected one shape, C = 1 or 3, and uint8.")
    images = torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).contiguous()
    labels = torch.from_numpy(table["label"].to_numpy().copy()) if "label" in table.column_names else None
    return images, labels


def scaled(images: Tensor) -> Tensor:
    """uint8 -> float32 in [-1, 1], the middle of each of the 256 bins."""
    return (images.float() + 0.5) / 128 - 1


def _pixels(encoded: bytes) -> np.ndarray:
    """(H, W, C) values of an encoded picture."""
    return np.atleast_3d(np.asarray(Image.open(io.BytesIO(encoded))))


def batch_indices(size: int, batch: int, seed: int, step: int) -> Tensor:
    """Rows of update ``step``: every epoch is a permutation drawn from (seed, epoch), so that any step can be resumed."""
    per_epoch = size // batch
    epoch, position = divmod(step, per_epoch)
    order = torch.randperm(size, generator=generator(seed, epoch, 0))
    return order[position * batch : (position + 1) * batch]


def generator(seed: int, step: int, stream: int) -> torch.Generator:
    """A fresh generator named by (seed, step, stream)."""
    words = np.random.SeedSequence([seed, step, stream]).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(words[0]))
