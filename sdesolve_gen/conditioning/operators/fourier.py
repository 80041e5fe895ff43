"""Magnetic resonance: some Fourier coefficients of the image are measured.

A complex image has two channels, real and imaginary part; one of a single channel is real.  The unitary transform of a complex image
has orthonormal rows.  A real image has half as many degrees of freedom: its coefficients at k and -k are conjugate, so where both are
measured the two count as one, seen twice, and where one is measured alone it shows sqrt(1/2) of two real waves.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..._errors import as_float
from .._numbers import per_row
from ..operator import SVD, Operator
from ._shared import draws, image_event
from .mask import Mask
from .tight import Tight

HALF = math.sqrt(0.5)


class ComplexFourier(Tight):
    """y = the masked coefficients of the unitary Fourier transform of a complex image, (2, m): real and imaginary parts.

    Arguments:
        event: shape (2, H, W).
        mask: (H, W), 1 where k-space is measured, its centre in the middle as scanners draw it; see :func:`cartesian_mask`.
    """

    def __init__(self, event: Sequence[int], mask: Tensor) -> None:
        self.event = image_event(event)
        if self.event[0] != 2:
            raise ValueError(f"event={self.event}; expected (2, H, W), real and imaginary part.")
        self.index = _frequencies(mask, self.event)
        self.measured = (2, len(self.index))

    def forward(self, x: Tensor) -> Tensor:
        spectrum = torch.fft.fft2(torch.complex(x[:, 0], x[:, 1]), norm="ortho").flatten(1)[:, self.index.to(x.device)]
        return torch.stack([spectrum.real, spectrum.imag], 1)

    def adjoint(self, y: Tensor) -> Tensor:
        image = torch.fft.ifft2(_spread(torch.complex(y[:, 0], y[:, 1]), self.index, self.event), norm="ortho")
        return torch.stack([image.real, image.imag], 1)


class RealFourier(Operator):
    """The same of a real image, (1, H, W): y is (2, m) as well, every measured coefficient with its own noise.

    Singular values: 1 for coefficients measured at k and -k and for those that are their own conjugates, sqrt(1/2) for those measured alone.
    """

    def __init__(self, event: Sequence[int], mask: Tensor) -> None:
        self.event = _, height, width = image_event(event)
        if self.event[0] != 1:
            raise ValueError(f"event={self.event}; expected one channel, (1, H, W); a complex image has two: ComplexFourier(event=(2, H, W), mask=mask).")
        self.index = _frequencies(mask, self.event)
        self.measured = (2, len(self.index))
        row, column = self.index // width, self.index % width
        partner = (-row % height) * width + -column % width  # where -k stands
        where = torch.full((height * width,), -1)
        where[self.index] = torch.arange(len(self.index))
        self._twin = where[partner]  # number of the measurement at -k, -1 where there is none
        number = torch.arange(len(self.index))
        self._real = (partner == self.index).nonzero()[:, 0]
        self._alone = (self._twin < 0).nonzero()[:, 0]
        self._first = (self._twin > number).nonzero()[:, 0]  # one of each two
        self._partner = partner

    def forward(self, x: Tensor) -> Tensor:
        spectrum = torch.fft.fft2(x[:, 0], norm="ortho").flatten(1)[:, self.index.to(x.device)]
        return torch.stack([spectrum.real, spectrum.imag], 1)

    def adjoint(self, y: Tensor) -> Tensor:
        return torch.fft.ifft2(_spread(torch.complex(y[:, 0], y[:, 1]), self.index, self.event), norm="ortho").real[:, None]

    def gram_solve(self, y: Tensor, shift: float | Tensor, scale: float | Tensor) -> Tensor:
        shift, scale = per_row(shift, y), per_row(scale, y)
        twin = self._twin.to(y.device)
        conjugate = y[:, :, twin.clamp(min=0)] * torch.tensor([1.0, -1.0]).to(y)[:, None]
        alone = twin < 0
        seen = torch.where(alone, y, (y + conjugate) / 2)  # what a real image can have caused
        return seen / (shift + scale * torch.where(alone, 0.5, 1.0).to(y))

    def svd(self) -> SVD:
        values = torch.cat([torch.ones(len(self._real)), torch.ones(2 * len(self._first)), torch.full((2 * len(self._alone),), HALF)])
        return SVD(values, self._analyse, self._synthesise, self._observe)

    def _analyse(self, x: Tensor) -> Tensor:
        y = self.forward(x)
        parts = y[:, 0, self._real], y[:, :, self._first].flatten(1) / HALF, y[:, :, self._alone].flatten(1) / HALF
        return torch.cat(parts, 1)

    def _synthesise(self, z: Tensor) -> Tensor:
        real, pairs, alone = z.split([len(self._real), 2 * len(self._first), 2 * len(self._alone)], 1)
        half = torch.complex(z.new_zeros(len(z), math.prod(self.event)), z.new_zeros(()))
        for part, index in ((pairs, self._first), (alone, self._alone)):
            wave = torch.complex(*part.reshape(len(z), 2, -1).unbind(1)) * HALF
            half[:, self.index[index]] = wave
            half[:, self._partner[index]] = wave.conj()
        half[:, self.index[self._real]] = torch.complex(real, torch.zeros_like(real))
        return torch.fft.ifft2(half.reshape(-1, *self.event[1:]), norm="ortho").real[:, None]

    def _observe(self, y: Tensor) -> Tensor:
        first, twin = y[:, :, self._first], y[:, :, self._twin[self._first]]
        pairs = torch.stack([first[:, 0] + twin[:, 0], first[:, 1] - twin[:, 1]], 1) * HALF
        return torch.cat([y[:, 0, self._real], pairs.flatten(1), y[:, :, self._alone].flatten(1)], 1)


def masked_fourier(event: Sequence[int], mask: Tensor) -> ComplexFourier | RealFourier:
    """The masked Fourier transform of complex images (two channels) or real ones (one channel)."""
    return ComplexFourier(event, mask) if image_event(event)[0] == 2 else RealFourier(event, mask)


def cartesian_mask(event: Sequence[int], acceleration: float = 4, centre: float = 0.08, seed: int = 0) -> Tensor:
    """(H, W) bool: whole lines of k-space, one of ``acceleration`` in all: a share ``centre`` of them in the middle, the others at random.

    As in the fastMRI data set's random masks, with the exact number of lines.  [Zbontar et al. 2018, section 4.3]
    """
    _, height, width = image_event(event)
    count, low = _counts(width, acceleration, centre)
    lines = torch.zeros(width, dtype=torch.bool)
    lines[(width - low) // 2 : (width - low) // 2 + low] = True
    others = (~lines).nonzero()[:, 0]
    lines[others[torch.from_numpy(draws(seed).permutation(len(others)))[: count - low]]] = True
    return lines.expand(height, width)


def variable_density_mask(event: Sequence[int], acceleration: float = 4, centre: float = 0.08, power: float = 2.0, seed: int = 0) -> Tensor:
    """(H, W) bool: single coefficients, one of ``acceleration`` in all, drawn without replacement with density (1 - r)^power at the distance r
    from the centre (1 at the corner); those within ``centre`` of it always.  [Lustig, Donoho & Pauly 2007, section 3]
    """
    _, height, width = image_event(event)
    y = (torch.arange(height, dtype=torch.float64) - height // 2) / (height / 2)
    x = (torch.arange(width, dtype=torch.float64) - width // 2) / (width / 2)
    r = ((y[:, None].square() + x.square()) / 2).sqrt().flatten()
    count, _ = _counts(height * width, acceleration, 0.0)
    density = (1 - r).clamp(min=1e-3) ** power
    keys = torch.from_numpy(draws(seed).exponential(size=height * width)) / density  # the smallest keys are a draw without replacement
    keys[r <= centre] = -1.0
    mask = torch.zeros(height * width, dtype=torch.bool)
    mask[keys.argsort()[:count]] = True
    return mask.reshape(height, width)


def _counts(total: int, acceleration: float, centre: float) -> tuple[int, int]:
    """How many of ``total`` are measured, and how many of them in the middle."""
    if as_float(acceleration) is None or as_float(centre) is None or not 1 <= acceleration <= total or not 0 <= centre <= 1:
        raise ValueError(f"acceleration={acceleration!r}, centre={centre!r}; expected 1 <= acceleration <= {total} and 0 <= centre <= 1, as in acceleration=4, centre=0.08.")
    count = max(1, round(total / acceleration))
    return count, min(count, round(centre * total))


def _frequencies(mask: Tensor, event: tuple[int, int, int]) -> Tensor:
    """Where the measured coefficients stand in torch's order of a flattened spectrum."""
    centred = Mask((1, *event[1:]), mask).mask[0]
    return torch.fft.ifftshift(centred).flatten().nonzero()[:, 0]


def _spread(values: Tensor, index: Tensor, event: tuple[int, ...]) -> Tensor:
    """The spectrum with these values, and zeros elsewhere."""
    spectrum = values.new_zeros(len(values), event[1] * event[2])
    return spectrum.index_copy(1, index.to(values.device), values).reshape(-1, *event[1:])
