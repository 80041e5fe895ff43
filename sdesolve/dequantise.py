"""Discrete data as points of a continuous space.

Data that take K levels, evenly spaced from low to high as pixels are, have no density.  Each level k becomes a bin of width
w = (high - low)/K, and a point of it,

    x = low + (k + u) w,        0 <= u < 1,          P(k) = int p(x) w^d du >= exp E_u[ln p(x)] w^d,

so that a density of x, in whatever range, bounds the probability of the data.  [Theis et al. 2016, section 3.1]
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ._errors import as_float, integer
from .noise import DATA, SeededNormals, check_seed, sample_ids_of

_OFF = 1e-3  # of a level: what rounding may put a value off its level by


def dequantise(
    x: Tensor,
    data_range: tuple[float, float] = (0.0, 1.0),
    levels: int = 256,
    *,
    seed: int,
    sample_ids: Tensor | Sequence[int] | None = None,
    draw: int = 0,
) -> Tensor:
    """Values on K levels, moved to an even draw from the bin of each: within ``data_range``, in the same shape.

    Arguments:
        x: (B, *event) values low + k (high - low)/(levels - 1), k = 0..levels - 1, as pixels come: 0..255 in data_range=(0, 255), or those / 255 in
            (0, 1).  Integers and half precision, which has few numbers in a bin, become float32.
        data_range: (low, high), the values of the first and last level, which become the outer edges of the bins.
        levels: K >= 2; 32 for 5-bit data.
        seed, sample_ids: name the draw; default ids 0..B-1.
        draw: another number, >= 0, is another draw.

    Raises:
        ValueError: a value outside the range, off the levels, or NaN; the message names the sample.
    """
    bins, levels = level_of(x, data_range, levels), integer("levels", levels, 2, example=256)
    return from_bins(bins, uniforms(bins, seed, sample_ids, draw), data_range, levels).to(torch.promote_types(x.dtype, torch.float32))


def bits_per_dim(log_prob: Tensor, dimensions: int, data_range: tuple[float, float], levels: int) -> Tensor:
    """-log_2 p/d + log_2(levels/(high - low)) of a log-density in nats: bits a number for data of so many levels."""
    low, high = check_range(data_range)
    return -log_prob / (dimensions * math.log(2)) + math.log2(integer("levels", levels, 2, example=256) / (high - low))


def check_range(data_range: tuple[float, float]) -> tuple[float, float]:
    """``data_range`` as two finite floats, low < high."""
    try:
        low, high = (as_float(end) for end in data_range)
    except (TypeError, ValueError):
        low = high = None
    if low is None or high is None or not -math.inf < low < high < math.inf:
        raise ValueError(f"data_range={data_range!r}; expected two finite numbers, low < high, as in data_range=(0, 1).")
    return low, high


def check_inside(lowest: Tensor, highest: Tensor, data_range: tuple[float, float]) -> None:
    """That samples with these least and largest numbers lie in the range; samples with a NaN, which have a status, are left out."""
    low, high = check_range(data_range)
    slack = 1e-6 * (high - low)
    outside = ((lowest < low - slack) | (highest > high + slack)).nonzero().flatten()
    if len(outside):
        i = int(outside[0])
        raise ValueError(
            f"data_range=({low:g}, {high:g}), but {len(outside)} of {len(lowest)} samples leave it (sample {i} runs from {float(lowest[i]):g} to "
            f"{float(highest[i]):g}); expected the range that the data were scaled to, as in data_range=(-1, 1)."
        )


def level_of(x: Tensor, data_range: tuple[float, float], levels: int) -> Tensor:
    """k of each value, float64."""
    low, high = check_range(data_range)
    count = integer("levels", levels, 2, example=256)
    if not isinstance(x, Tensor) or x.dim() == 0 or x.numel() == 0 or x.is_complex():
        got = f"a {tuple(x.shape)} {x.dtype} tensor" if isinstance(x, Tensor) else f"a {type(x).__name__}"
        raise ValueError(f"x is {got}; expected data of shape (B, *event) with at least one number.")
    scaled = (x.double() - low) * ((count - 1) / (high - low))
    bins = scaled.round()
    off = ((scaled - bins).abs() > _OFF) | (bins < 0) | (bins > count - 1) | ~scaled.isfinite()
    if bool(off.any()):
        where = off.nonzero()[0]
        raise ValueError(
            f"{int(off.reshape(len(x), -1).any(1).sum())} of {len(x)} samples have values that are none of {count} levels from {low:g} to {high:g} "
            f"(sample {int(where[0])}: {float(x[tuple(where)]):g}); expected data as they were quantised: another levels or data_range, or a density for data that were not."
        )
    return bins


def uniforms(bins: Tensor, seed: int, sample_ids: Tensor | Sequence[int] | None, draw: int) -> Tensor:
    """(B, *event) float64 numbers in [0, 1), of each sample its own."""
    ids = sample_ids_of(sample_ids, len(bins))
    source = SeededNormals(check_seed(seed), ids, bins.shape[1:], dtype=torch.float64, device=bins.device, stream=DATA)
    return torch.special.ndtr(source.normal(integer("draw", draw, 0, example=0))).clamp(max=1 - 2**-24)


def from_bins(bins: Tensor, u: Tensor, data_range: tuple[float, float], levels: int) -> Tensor:
    """low + (k + u) w, float64."""
    low, high = check_range(data_range)
    return low + (bins + u) * ((high - low) / levels)
