"""What can be measured: operators by name, each with ``forward``, ``adjoint`` and, in closed form where there is one, ``gram_solve``, ``pinv`` and ``svd``.

    A = operators.Downsample((3, 32, 32), factor=4)              the class itself
    A = operators.make("downsample", (3, 32, 32), factor=4)      by name, as the command line has it

Device and dtype follow what an operator is given.  Random ones are functions of their seed.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from ..._errors import unknown
from ..check import check_operator
from ..operator import Operator
from .adapted import Adapted, adjoint_of, as_operator
from .blur import Blur, ReflectBlur, gaussian_kernel, motion_kernel
from .compose import compose
from .downsample import Downsample
from .fourier import ComplexFourier, RealFourier, cartesian_mask, masked_fourier, variable_density_mask
from .gray import LUMA, Gray
from .mask import Mask, box_mask, random_mask
from .matrix import Matrix
from .projections import RandomProjections
from .radon import FanBeam, Radon, Rays, filtered_back_projection
from .separable import Separable
from .tight import Tight


def _box(event: Sequence[int], x0: int, y0: int, x1: int, y1: int) -> Mask:
    known = box_mask(event, x0, y0, x1, y1)
    if not bool(known.any()):
        raise ValueError(f"the box {x0},{y0},{x1},{y1} is the whole image, so that nothing is known; expected a part of it, as in x0={known.shape[1] // 2}.")
    return Mask(event, known)


def _random(event: Sequence[int], missing: float = 0.9, seed: int = 0) -> Mask:
    return Mask(event, random_mask(event, missing, seed))


def _gaussian_blur(event: Sequence[int], std: float = 1.5) -> Blur:
    kernel = gaussian_kernel(std)
    _check_side(event, kernel, "std", std, 1 / 3)
    return Blur(event, kernel)


def _motion_blur(event: Sequence[int], length: float = 7.0, angle: float = 30.0) -> Blur:
    kernel = motion_kernel(length, angle)
    _check_side(event, kernel, "length", length, 2.0)
    return Blur(event, kernel)


def _check_side(event: Sequence[int], kernel: Tensor, name: str, value: float, reach: float) -> None:
    """That the kernel is no longer than the image; ``reach`` is the value whose kernel goes one pixel to either side."""
    side, most = len(kernel), min(event[-2:])
    if side > most:
        longest = int(10 * reach * ((most - 1) // 2)) / 10
        raise ValueError(f"{name}={value:g} blurs over {side} x {side} pixels, and the images have {event[-2]} x {event[-1]}; expected less, as in {name}={longest:g}.")


def _mri(event: Sequence[int], acceleration: float = 4, centre: float = 0.08, seed: int = 0) -> ComplexFourier | RealFourier:
    return masked_fourier(event, cartesian_mask(event, acceleration, centre, seed))


def _mri_points(event: Sequence[int], acceleration: float = 4, centre: float = 0.08, power: float = 2.0, seed: int = 0) -> ComplexFourier | RealFourier:
    return masked_fourier(event, variable_density_mask(event, acceleration, centre, power, seed))


OPERATORS: dict[str, Callable[..., Operator]] = {
    "box": _box,
    "random_pixels": _random,
    "gray": Gray,
    "gaussian_blur": _gaussian_blur,
    "motion_blur": _motion_blur,
    "downsample": Downsample,
    "random_projections": RandomProjections,
    "radon": Radon,
    "fan_beam": FanBeam,
    "mri": _mri,
    "mri_points": _mri_points,
}
"""operator(event, **options), by name."""


def options_of(name: str) -> dict[str, inspect.Parameter]:
    """The options of the named operator; of a name that is not known none."""
    return {key: p for key, p in inspect.signature(OPERATORS[name]).parameters.items() if key != "event"} if name in OPERATORS else {}


def make(name: str, event: Sequence[int], **options: Any) -> Operator:
    """The named operator on states of shape ``event``, as in ``make("downsample", (3, 32, 32), factor=4)``.

    Raises:
        ValueError: an unknown name or option, one that is missing or out of range.
    """
    if name not in OPERATORS:
        raise ValueError(unknown("operator", name, OPERATORS))
    known = options_of(name)
    for option in options:
        if option not in known:
            raise ValueError(unknown(f"option of the operator {name}:", option, known))
    missing = [key for key, p in known.items() if p.default is p.empty and key not in options]
    if missing:
        raise ValueError(f"the operator {name} lacks {', '.join(missing)}; expected {', '.join(f'{key}=...' for key in known)}.")
    return OPERATORS[name](event, **options)


__all__ = [
    "LUMA",
    "OPERATORS",
    "Adapted",
    "Blur",
    "ComplexFourier",
    "Downsample",
    "FanBeam",
    "Gray",
    "Mask",
    "Matrix",
    "Radon",
    "RandomProjections",
    "Rays",
    "RealFourier",
    "ReflectBlur",
    "Separable",
    "Tight",
    "adjoint_of",
    "as_operator",
    "box_mask",
    "cartesian_mask",
    "check_operator",
    "compose",
    "filtered_back_projection",
    "gaussian_kernel",
    "make",
    "masked_fourier",
    "motion_kernel",
    "options_of",
    "random_mask",
    "variable_density_mask",
]
