"""What a user measured of a model's images, as a :class:`Measurement`: the noise and its units, and what cannot be meant."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
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
_STRAY = 0.05  # of values, more than two standard deviations of the noise beyond the end of a range
_DARK = 0.1  # of [0, 1]: the darkest value of a picture is below
_BELOW, _AT_ZERO, _BLACK = 0.08, 0.02, 0.2  # of an image's squares, what noise and ringing put below 0; of [0, 1], what is black; share of the pixels that are
_WIDER = 0.25  # of the data range: beyond it by more is no data that are a little too bright
_UNEXPLAINED = 0.5  # of y
_VISIBLE = 0.01  # of the data range: what rounding may become in an image
_ROUNDING = 1e-4  # of the most counts: what float32 puts below 0
_BEYOND = 1.05  # times the longest image that there is, which no exact y needs


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
    """A x and noise as :func:`measured` has it, named by the seed and the number of the image, its id; default 0, 1, ...

    Raises:
        ValueError: Poisson noise where A (x - low) is below 0, of which there are no counts.
    """
    y, counted, ids = operator.forward(x), peak_of(noise, peak), range(len(x)) if ids is None else ids
    if counted is not None:
        low, high = model.data_range
        dark, gain = operator.forward(torch.full((1, *operator.event), low, device=x.device)), (high - low) / counted
        shining = (y - dark) / gain
        if bool((shining < -_ROUNDING * shining.abs().max()).any()):
            raise ValueError(
                f"{type(operator).__name__} measures down to {float(shining.min()):.3g} counts of these images, A (x - low) < 0, and counts are not negative; "
                "expected an operator and images that leave none below 0, or noise='gaussian'."
            )
        rates = shining.clamp_min(0).double().cpu().numpy()
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
    """Warn of pictures in [0, 1], or of what was measured of such, for a model of data in [-1, 1]; counts that are whole where the data begin at -1 are of no others."""
    operator, y, counts = measurement.operator, measurement.y, measurement.noise == "poisson"
    if tuple(data_range) != (-1.0, 1.0) or not operator.linear or (counts and not measurement.noise_std and _whole(measurement)):
        return
    white = operator.forward(torch.ones(1, *operator.event).to(y))
    if bool((white - 1).abs().max() > 1e-4):
        if half_black(measurement):
            said = "y is as images in [0, 1] give it that are black in part, and the model's data lie in [-1, 1]"
            warnings.warn(f"{said}: expected y of images in that range: 2 * y - operator.forward(torch.ones(1, *m.shape)).", sd.SolveWarning, stacklevel=6)
        return
    spread = (measurement.noise_std**2 + (measurement.gain or 0.0) / 2) ** 0.5  # of the brightest, with what a count is in [0, 1]
    if scaled_to_one(y, measurement.noise_std, levels, spread):  # y has the units of pixels: an even white is left as it is
        n, (least, most) = y.numel(), (float(end) for end in y.aminmax())
        seen = f"all {n} values of y lie in [0, 1]" if spread == 0 else f"the {n} values of y, {least:.3g} to {most:.3g}, lie in [0, 1] but for noise"
        said = f"{seen}, as those of pictures in that range do, and the model's data lie in [-1, 1]"
        also = "" if counts else f", or integers from 0 to {levels - 1}"
        warnings.warn(f"{said}: expected y, or images, in that range: 2 * y - 1{also}.", sd.SolveWarning, stacklevel=6)


def check_ends(measurement: Measurement, data_range: tuple[float, float]) -> None:
    """Warn of a y of which much lies beyond the data range, by a quarter of it and 6 standard deviations, where the operator leaves an even white as it is.

    Of pixels and their means none does, and of bicubic means few.
    """
    operator, y, (low, high) = measurement.operator, measurement.y, data_range
    if measurement.noise != "gaussian" or not operator.linear or y.numel() < _FEW:
        return
    slack = _WIDER * (high - low) + 6 * measurement.noise_std
    beyond = float(((y < low - slack) | (y > high + slack)).double().mean())
    if beyond > _STRAY and bool((operator.forward(torch.ones(1, *operator.event).to(y)) - 1).abs().max() < 1e-4):
        least, most = (float(end) for end in y.aminmax())
        said = f"{100 * beyond:.0f} % of the values of y, {least:.3g} to {most:.3g}, lie beyond the data range, {low:g} to {high:g}, and the operator leaves an even white as it is"
        usual = tuple(data_range) == (-1.0, 1.0)
        line = "y / 127.5 - 1 for values from 0 to 255" if usual else f"{low:g} + (y + 1) * {(high - low) / 2:g} for values from -1 to 1"
        warnings.warn(f"{said}: expected y, or images, in that range, as in {line}.", sd.SolveWarning, stacklevel=6)


def _whole(measurement: Measurement) -> bool:
    counts = (measurement.y + measurement.background) / (measurement.gain or 1.0)
    return not bool(((counts - counts.round()).abs() > 0.01).any())


def scaled_to_one(y: Tensor, noise_std: float, levels: int, spread: float | None = None) -> bool:
    """Whether values of data that ought to lie in [-1, 1] are likely a picture's in [0, 1] instead: none is in the lower half, and the least is near 0.

    Levels tell for certain: k/(levels - 1) is one of 2 k/(levels - 1) - 1 for every other k alone.  Noise of ``noise_std`` puts one in fifty more than twice that
    below the least, and so it is with what is brighter than white, with the noise of ``spread``; default ``noise_std``.
    """
    spread = noise_std if spread is None else spread
    least, most = (float(end) for end in y.aminmax())
    if y.numel() < _FEW or least < -4 * noise_std - 1e-6 or most > 1 + 5 * spread + 1e-6 or float(y.std()) <= 2 * noise_std + 1e-6:
        return False
    beyond = (y < -2 * noise_std - 1e-6).double().mean(), (y > 1 + 2 * spread + 1e-6).double().mean()
    if max(float(share) for share in beyond) > _STRAY:
        return False
    parts = (levels - 1) * y
    whole = parts.round()
    if spread == 0 and not bool(((parts - whole).abs() > 1e-3).any()):
        return bool(((whole - (levels - 1)) % 2 == 1).any())
    return least < _DARK + noise_std


def half_black(measurement: Measurement) -> bool:
    """Whether images in [-1, 1] that explain y have next to nothing below 0, and a fifth of the pixels that A sees, or more, there or at 0: the upper half with a black ground.

    Natural pictures of the right range do so in 0 to 2 of 60; of digits from 0 to 1, most.
    """
    x, _ = nearest(measurement.operator, measurement.y, (-1.0, 1.0))
    x = x[x != 0]  # where it began
    return bool(x.clamp_max(0).square().sum() <= _BELOW * x.square().sum() and (x < _AT_ZERO).sum() >= _BLACK * max(1, len(x)))


def check_range(measurement: Measurement, data_range: tuple[float, float]) -> None:
    """Refuse a y of which no images near the data range explain half, whatever the linear operator.

    For every v and every x in the box [low, high]^N

        v'A x <= sum_j max(low (A'v)_j, high (A'v)_j),

    so that y is as far from all of A x as v'y exceeds that by, over |v|: proven by any v, and here by what y leaves of the middle of the box.
    The box is a quarter of the data range wider on either side, the noise may have its length and 6 standard deviations more, and half of y may have other reasons:
    an operator that is only nearly that of the apparatus, or more noise than is said.
    """
    operator, y = measurement.operator, measurement.y
    if not operator.linear:
        return
    low, high = data_range
    box = low - _WIDER * (high - low), high + _WIDER * (high - low)
    v = y - operator.forward(torch.full((1, *operator.event), (low + high) / 2).to(y))
    pulled = operator.adjoint(v)
    most = torch.maximum(box[0] * pulled, box[1] * pulled).flatten(1).sum(1)
    apart = ((v * y).flatten(1).sum(1) - most) / v.flatten(1).norm(dim=1).clamp_min(torch.finfo(y.dtype).tiny)
    room = reach(measurement) + _UNEXPLAINED * y.flatten(1).norm(dim=1)
    if bool((apart > room).any()):
        worst, shift = int((apart - room).argmax()), "" if low == 0 else f" + operator.forward(torch.full((1, *m.shape), {float(low)}))"
        raise ValueError(
            f"y is in other units than the data: it has values from {float(y.min()):.4g} to {float(y.max()):.4g}, and is {float(apart[worst]):.4g} or more away from all that "
            f"{type(operator).__name__} measures of images near [{low:g}, {high:g}], where {float(room[worst]):.4g} is allowed for noise and the like; "
            f"expected y of such images, for those from 0 to 255 {high - low:g} / 255 * y{shift}."
        )


def reach(measurement: Measurement) -> Tensor:
    """How long the noise is at most, 6 standard deviations beyond its expected length, (n,) or ()."""
    var = torch.as_tensor(measurement.variance(measurement.y)).to(measurement.y).expand_as(measurement.y).clamp_min(0).flatten(1)
    return var.sum(1).sqrt() + 6 * var.amax(1).sqrt()


def nearest(operator: Operator, y: Tensor, box: tuple[float, float], steps: int = 20) -> tuple[Tensor, Tensor]:
    """x in [low, high]^N with a small |y - A x|, from the middle on, and y - A x: projected gradients with momentum.  [Beck & Teboulle 2009, FISTA]"""
    x = torch.randn(1, *operator.event, generator=torch.Generator().manual_seed(0)).to(y)
    for _ in range(10):  # power iteration for |A|^2
        x = operator.adjoint(operator.forward(x / x.norm()))
    step = 1 / (1.2 * float(x.norm()))
    x = ahead = torch.full((len(y), *operator.event), sum(box) / 2).to(y)
    momentum = 1.0
    for _ in range(steps):
        before, x = x, (ahead + step * operator.adjoint(y - operator.forward(ahead))).clamp(*box)
        grown = (1 + (1 + 4 * momentum**2) ** 0.5) / 2
        ahead, momentum = x + (momentum - 1) / grown * (x - before), grown
    return x, y - operator.forward(x)


def well_conditioned(operator: Operator, y: Tensor) -> bool:
    """Whether the singular values s lie within a factor of 10 of one another, so that A^+ y is no noise made large.

    Where nobody says what they are, by white noise n shaped like y: the means of 1/s^2 and of s^2 have the product  |A^+ n|^2 |A'n|^2/|n|^4,  at most 25.5 within that factor.
    """
    if (svd := operator.svd()) is not None:
        return float(svd.values.min()) > 0.1 * float(svd.values.max())
    if not operator.linear:
        return False
    noise = torch.randn(1, *operator.measured, generator=torch.Generator().manual_seed(0)).to(y)
    back, across, own = (float(v.double().square().sum()) for v in (operator.pinv(noise), operator.adjoint(noise), noise))
    return back * across <= 25.5 * own**2


def of_rounding(measurement: Measurement, data_range: tuple[float, float], levels: int) -> Measurement:
    """The measurement, with the rounding of y to the levels of pictures as its noise where less was said and A^+ makes that rounding visible; told in a warning.

    Of all x with A x = y, A^+ y is the shortest, so that a y whose A^+ y is longer than every image and what A^+ makes of the noise has other errors, and that is told too.
    Operators that keep what they see are left alone, and with them known pixels.
    """
    operator, y = measurement.operator, measurement.y
    low, high = data_range
    error, told = (high - low) / (levels - 1) / 12**0.5, measurement.noise_std  # of numbers that are rounded
    if told >= error or measurement.noise != "gaussian" or not operator.linear or well_conditioned(operator, y):
        return measurement
    noise = error * torch.randn(1, *operator.measured, generator=torch.Generator().manual_seed(0)).to(y)
    lengths = operator.pinv(torch.cat([noise, y])).flatten(1).square().mean(1).sqrt()
    name, longest = type(operator).__name__, max(abs(low), abs(high))
    if on_levels(y, data_range, levels) and float(lengths[0]) > _VISIBLE * (high - low):
        said = f"y is rounded to {levels} levels, an error that {name} makes {float(lengths[0]) / error:.3g} times as large"
        warnings.warn(f"{said}: taken for noise, noise_std={error:.3g} and not {told:g}. Expected the noise_std of y where it has more.", sd.SolveWarning, stacklevel=6)
        return replace(measurement, noise_std=error)
    if bool((lengths[1:] > _BEYOND * longest + told / error * float(lengths[0])).any()):
        said = f"noise_std={told:g}, and the images that have y to the last digit have values of {float(lengths[1:].max()):.3g}"
        said = f"{said} (root mean square), where the data end at {longest:g}"
        warnings.warn(f"{said}: {name} makes errors of y large. Expected the noise_std of y, that of its rounding at least.", sd.SolveWarning, stacklevel=6)
    return measurement


def on_levels(y: Tensor, data_range: tuple[float, float], levels: int) -> bool:
    """Whether all values are levels of pictures, the lowest and the highest at the ends of the data range or half a level within; by chance no more than one in fifty is."""
    low, high = data_range
    share = (y.double() - low) / (high - low)
    if y.numel() < _FEW or float(share.min()) < -1e-6 or float(share.max()) > 1 + 1e-6:
        return False
    return any(not bool(((places - places.round()).abs() > 0.01).any()) for places in (share * (levels - 1), share * levels - 0.5))
