"""What a user measured of a model's images, as a :class:`Measurement`: the noise and its units, and what cannot be meant."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

import sdesolve as sd
from sdesolve.noise import SeededNormals

from ._errors import as_float
from .conditioning import Measurement, Operator

if TYPE_CHECKING:
    from .models import Model

MEASURED = 200
"""Stream of the noise of simulated measurements, apart from those of the solver."""
_FEW = 16  # values that say nothing of their range
_DARK = 0.1  # of [0, 1]: the darkest value of a picture is below


def measured(model: Model, y: Tensor, operator: Operator, noise_std: float | None, noise: str = "gaussian", peak: float | None = None) -> Measurement:
    """y = A x + noise as a measurement of the model's images, on its device.

    Poisson noise counts what is above the low end of the data range:  k ~ Poisson(A (x - low) peak/(high - low)),  y = A low + k (high - low)/peak.
    """
    y = (y.float() if y.is_floating_point() else y).to(model.device)
    noise_std = (0.05 if noise == "gaussian" else 0.0) if noise_std is None else noise_std
    counted = peak_of(noise, peak)
    if counted is None:
        return Measurement(operator, y, noise_std, noise)
    low, high = model.data_range
    dark = operator.forward(torch.full((1, *operator.event), low, device=model.device))
    return Measurement(operator, y, noise_std, noise, (high - low) / counted, -dark)


def simulated(
    model: Model, operator: Operator, x: Tensor, noise_std: float, noise: str, peak: float | None, seed: int, ids: Sequence[int] | None = None
) -> Tensor:
    """A x and noise as :func:`measured` has it, named by the seed and the number of the image, its id; default 0, 1, ..."""
    y, counted, ids = operator.forward(x), peak_of(noise, peak), range(len(x)) if ids is None else ids
    if counted is not None:
        low, high = model.data_range
        dark, gain = operator.forward(torch.full((1, *operator.event), low, device=x.device)), (high - low) / counted
        rates = ((y - dark) / gain).clamp_min(0).double().cpu().numpy()
        counts = [np.random.Generator(np.random.Philox(key=[seed, (MEASURED << 32) + i])).poisson(rate) for i, rate in zip(ids, rates, strict=True)]
        y = dark + gain * torch.from_numpy(np.stack(counts)).to(y)
    return y + noise_std * SeededNormals(seed, torch.tensor(list(ids)), operator.measured, dtype=y.dtype, device=y.device, stream=MEASURED).normal(0)


def peak_of(noise: str, peak: object) -> float | None:
    """The counts of what is as bright as the data can be; None for noise that counts nothing."""
    if noise != "poisson":
        if peak is not None:
            raise ValueError(f"peak={peak!r} with noise={noise!r}; expected noise='poisson', or no peak.")
        return None
    counted = as_float(peak)
    if counted is None or not 0 < counted < float("inf"):
        raise ValueError(f"peak={peak!r}; expected how many counts the brightest value of the data has, a finite number > 0, as in peak=30.")
    return counted


def spread(model: Model, noise_std: float, noise: str, peak: float | None) -> float:
    """Standard deviation of the noise on the brightest values, in their units."""
    counted = peak_of(noise, peak)
    low, high = model.data_range
    brightest = (high - low) / counted**0.5 + (high - low) / counted if counted else 0.0
    return (as_float(noise_std) or 0.0) + brightest


def variance(measurement: Measurement) -> Tensor:
    """The mean variance of each measurement's noise, (n,) or ()."""
    return torch.as_tensor(measurement.variance(measurement.y)).flatten(1).mean(1) if measurement.gain else torch.tensor(measurement.noise_std**2)


def check_scale(measurement: Measurement, data_range: tuple[float, float], levels: int) -> None:
    """Warn of pictures in [0, 1] for a model of data in [-1, 1], where y has the units of pixels: the operator leaves an even white as it is."""
    operator, y = measurement.operator, measurement.y
    if tuple(data_range) != (-1.0, 1.0) or measurement.noise != "gaussian" or not operator.linear or not scaled_to_one(y, measurement.noise_std, levels):
        return
    white = operator.forward(torch.ones(1, *operator.event).to(y))
    if bool((white - 1).abs().max() > 1e-4):
        return
    said = f"all {y.numel()} values of y lie in [0, 1], as those of pictures in that range do, and the model's data lie in [-1, 1]"
    warnings.warn(f"{said}: expected y, or images, in that range: 2 * y - 1, or integers from 0 to {levels - 1}.", sd.SolveWarning, stacklevel=5)


def scaled_to_one(y: Tensor, noise_std: float, levels: int) -> bool:
    """Whether values of data that ought to lie in [-1, 1] are likely a picture's in [0, 1] instead: none is in the lower half, and the least is near 0.

    Levels tell for certain: k/(levels - 1) is one of 2 k/(levels - 1) - 1 for every other k alone.
    """
    slack, (least, most) = 4 * noise_std + 1e-6, (float(end) for end in y.aminmax())
    if y.numel() < _FEW or least < -slack or most > 1 + slack or float(y.std()) <= 2 * noise_std + 1e-6:
        return False
    parts = (levels - 1) * y
    whole = parts.round()
    if noise_std == 0 and not bool(((parts - whole).abs() > 1e-3).any()):
        return bool(((whole - (levels - 1)) % 2 == 1).any())
    return least < _DARK + noise_std


def check_size(measurement: Measurement, data_range: tuple[float, float]) -> None:
    """|y| <= |A| |x| for some x in the data range, or y is in other units than the data."""
    operator, y = measurement.operator, measurement.y
    if not operator.linear:
        return
    x = torch.randn(1, *operator.event, generator=torch.Generator().manual_seed(0)).to(y)
    for _ in range(20):  # power iteration for |A|
        x = operator.adjoint(operator.forward(x))
        x = x / x.norm()
    largest = float(operator.forward(x).norm()) * max(map(abs, data_range)) * x.numel() ** 0.5
    length = y.flatten(1).norm(dim=1)
    room = 1.2 * largest + 3 * (variance(measurement) * y[0].numel()).sqrt()
    if bool((length > room).any()):
        raise ValueError(
            f"y has the length {float(length.max()):.4g}, and images in [{data_range[0]:g}, {data_range[1]:g}] give at most {largest:.4g} under {type(operator).__name__}; "
            "expected a measurement of such images, in their units: scale y as the data were scaled."
        )
