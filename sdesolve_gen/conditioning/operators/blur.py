"""Blur: each pixel becomes a weighted mean of those about it,  y = k * x  in every channel."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import conv2d, pad

from ..._errors import as_float
from .._numbers import number, per_row
from ..operator import SVD, Operator
from ._shared import RANK, counted, finite, image_event, integer
from .adapted import adjoint_of


class Blur(Operator):
    """Convolution with one kernel on a torus: the image goes on at its other side.

    A = F^H diag(k^) F with the unitary Fourier transform F, so all is closed form: V is the Hartley transform, which is real,
    orthonormal and its own inverse; the singular values are |k^|, and U is V with its waves moved by the phases of k^.  Singular values
    below 1e-4 of the largest count as zero.

    Arguments:
        event: shape (C, H, W) of one image.
        kernel: k, (kh, kw), with odd sides no longer than the image's, its middle the centre; see :func:`gaussian_kernel` and
            :func:`motion_kernel`.

    Raises:
        ValueError: a kernel with even sides, longer than the image, or all zero.
    """

    def __init__(self, event: Sequence[int], kernel: Tensor) -> None:
        self.event = self.measured = image_event(event)
        kernel = _checked(kernel, self.event)
        height, width = kernel.shape
        whole_kernel = pad(kernel, (0, self.event[2] - width, 0, self.event[1] - height)).roll((-(height // 2), -(width // 2)), (0, 1))
        self._spectrum = torch.fft.fft2(whole_kernel)
        self._values = self._spectrum.abs()
        self._kept = self._values > RANK * self._values.max()

    def forward(self, x: Tensor) -> Tensor:
        return _filtered(x, self._spectrum)

    def adjoint(self, y: Tensor) -> Tensor:
        return _filtered(y, self._spectrum.conj())

    def gram_solve(self, y: Tensor, shift: float | Tensor, scale: float | Tensor) -> Tensor:
        shift = torch.as_tensor(per_row(shift, y)).to(y)
        weight = 1 / (shift + per_row(scale, y) * self._values.square().to(y))
        return _filtered(y, torch.where(counted(self._values, shift, y), weight, 0.0))

    def pinv(self, y: Tensor) -> Tensor:
        return _filtered(y, torch.where(self._kept, 1 / self._spectrum, 0.0))

    def svd(self) -> SVD:
        phases = torch.where(self._kept, self._spectrum / self._values, 0.0)
        values = self._values[self._kept].repeat(self.event[0]).float()
        return SVD(values, self._picked, self._spread, lambda y: self._picked(_filtered(y, phases.conj())))

    def _picked(self, x: Tensor) -> Tensor:
        """Hartley coefficients of the frequencies that count, (B, k)."""
        return _hartley(x)[:, :, self._kept.to(x.device)].flatten(1)

    def _spread(self, z: Tensor) -> Tensor:
        grid = z.new_zeros(len(z), *self.event)
        grid[:, :, self._kept.to(z.device)] = z.reshape(len(z), self.event[0], -1)
        return _hartley(grid)


class ReflectBlur(Operator):
    """Convolution with one kernel where the image goes on as in a mirror on its outermost pixels.

    The adjoint is the exact transpose; what is solved is solved by conjugate gradients.

    Arguments, Raises: as :class:`Blur`; half the kernel is shorter than the image.
    """

    def __init__(self, event: Sequence[int], kernel: Tensor) -> None:
        self.event = self.measured = image_event(event)
        self._kernel = _checked(kernel, self.event).flip(0, 1)[None, None]

    def forward(self, x: Tensor) -> Tensor:
        kernel = self._kernel.to(x)
        half_y, half_x = kernel.shape[2] // 2, kernel.shape[3] // 2
        channels = x.reshape(-1, 1, *self.event[1:])
        return conv2d(pad(channels, (half_x, half_x, half_y, half_y), mode="reflect"), kernel).reshape(x.shape)

    def adjoint(self, y: Tensor) -> Tensor:
        return adjoint_of(self.forward, self.event)(y)


def gaussian_kernel(std: float, size: int | None = None) -> Tensor:
    """(size, size) float64, proportional to exp(-r^2 / 2 std^2), summing to 1; ``std`` in pixels, ``size`` odd, default 2 ceil(3 std) + 1."""
    std = number("std", std, 0.0, above=True)
    side = 2 * math.ceil(3 * std) + 1 if size is None else integer("size", size, 1)
    wave = torch.exp(-0.5 * ((torch.arange(side, dtype=torch.float64) - (side - 1) / 2) / std) ** 2)
    kernel = wave[:, None] * wave
    return kernel / kernel.sum()


def motion_kernel(length: float, angle: float = 0.0) -> Tensor:
    """(size, size) float64, a line of ``length`` pixels in the direction ``angle`` (degrees, counterclockwise from the right), summing to 1.

    The line is dotted 20 times a pixel, and each dot divided among the four pixels about it.
    """
    length = number("length", length, 0.0, above=True)
    if (given := as_float(angle)) is None or not math.isfinite(given):
        raise ValueError(f"angle={angle!r}; expected degrees, a finite number, as in angle=30.")
    half = math.ceil(length / 2)
    along = torch.linspace(-length / 2, length / 2, max(2, round(20 * length)), dtype=torch.float64)
    x, y = half + along * math.cos(math.radians(angle)), half - along * math.sin(math.radians(angle))
    kernel = torch.zeros(2 * half + 1, 2 * half + 1, dtype=torch.float64)
    for dx in (0, 1):
        for dy in (0, 1):
            column, row = x.floor() + dx, y.floor() + dy
            weight = (1 - (x - column).abs()).clamp(min=0) * (1 - (y - row).abs()).clamp(min=0)
            inside = weight > 0
            kernel.index_put_((row[inside].long(), column[inside].long()), weight[inside], accumulate=True)
    return kernel / kernel.sum()


def _checked(kernel: Tensor, event: tuple[int, int, int]) -> Tensor:
    kernel = finite("kernel", kernel)
    odd = kernel.dim() == 2 and all(side % 2 for side in kernel.shape)
    if not odd or kernel.shape[0] > event[1] or kernel.shape[1] > event[2] or not bool((kernel != 0).any()):
        raise ValueError(f"kernel has shape {tuple(kernel.shape)}; expected two odd sides of at most {event[1:]}, not all zero, as in gaussian_kernel(1.5).")
    return kernel


def _filtered(x: Tensor, spectrum: Tensor) -> Tensor:
    """F^H diag(spectrum) F x for the spectrum of a real filter, (..., H, W)."""
    half = spectrum[..., : x.shape[-1] // 2 + 1]
    half = half.to(x.device, torch.promote_types(x.dtype, torch.complex32)) if half.is_complex() else half.to(x)
    return torch.fft.irfft2(torch.fft.rfft2(x) * half, s=x.shape[-2:])


def _hartley(x: Tensor) -> Tensor:
    """The orthonormal Hartley transform  sum_n cas(2 pi k n / N) x_n  of each channel, its own inverse."""
    spectrum = torch.fft.fft2(x, norm="ortho")
    return spectrum.real - spectrum.imag
