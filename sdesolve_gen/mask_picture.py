"""A mask out of a picture: white where a pixel is known, black where it is not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

_NEAR = 0.25
"""How far from black or white a value may be, as a share of the way between: what a JPEG makes of an edge stays below, and gray is refused."""


def read_mask(path: str | Path) -> Tensor:
    """The mask of a picture, float32 of zeros and ones, (1, H, W).

    Colours of a palette are looked up; what is transparent is black, unknown.  Values within a quarter of the way of black count as black, and of
    white as white; a picture that holds 0 and 1 alone, of 255, is taken as it is.

    Raises:
        FileNotFoundError: no such file; ValueError: no picture, or one with gray values or colours, with the line that makes a mask of it.
    """
    try:
        with Image.open(path) as picture:
            levels = _levels(picture)
    except FileNotFoundError:
        raise FileNotFoundError(f"--mask {path}: there is no such file; expected a picture, white where a pixel is known.") from None
    except (UnidentifiedImageError, OSError) as error:
        raise ValueError(f"--mask {path} is not a whole picture ({error}).") from error
    share = levels * 255 if 0 < levels.max() <= 1 / 255 else levels
    gray = (share > _NEAR) & (share < 1 - _NEAR)
    if gray.any():
        found = gray.any(2)
        count = f"{found.sum()} gray pixel{'s' if found.sum() > 1 else ''} of {found.size}"
        raise ValueError(
            f"--mask {path} has {count}, as {float(share[gray][0]) * 255:.0f} of 255; expected white where a pixel is known and black where "
            f"it is not: Image.open({str(path)!r}).convert('L').point(lambda v: 255 * (v > 127)).save('mask.png')"
        )
    known = share > 0.5
    coloured = (known != known[..., :1]).any(2)
    if coloured.any():
        raise ValueError(
            f"--mask {path} has {coloured.sum()} pixels of {coloured.size} that are neither white nor black but coloured; expected white where a pixel is known and black "
            "where it is not. A mask for each channel is given in Python, (C, H, W): m.inpaint(images, torch.tensor(np.asarray(Image.open(...))).permute(2, 0, 1) > 127)"
        )
    return torch.from_numpy(known[..., :1].astype(np.float32)).permute(2, 0, 1)


def _levels(picture: Image.Image) -> np.ndarray:
    """(H, W, C) float64 from 0, black, to 1, white; transparent is black."""
    if picture.mode.startswith("I") or picture.mode == "F":
        values = np.asarray(picture, np.float64)
        return np.atleast_3d(values / (65535 if values.max() > 255 else 255))
    rgba = np.asarray(picture.convert("RGBA"), np.float64) / 255
    return rgba[..., :3] * rgba[..., 3:]
