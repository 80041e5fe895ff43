"""Tomography: integrals along rays, as a CT scanner measures them.

Joseph's method: a ray crosses the columns (or the rows) of the image one by one, and at each the image is interpolated between
the two nearest pixels.  The weights are a sparse matrix, so that the adjoint is its transpose and nothing else.  [Joseph 1982]
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .._numbers import number
from ..operator import Operator
from ._shared import finite, image_event, integer


class Rays(Operator):
    """Line integrals of the first channel of an image along given rays; the unit of length is the longer side of the image.

    Arguments:
        event: shape (1, H, W) of one image.
        points, directions: (a, b, 2) each, a point (x, y) and the direction of every ray; the image's centre is the origin, a pixel has the
            side 1, x points to the right and y down.

    Raises:
        ValueError: an image of several channels; rays of another shape.
    """

    def __init__(self, event: Sequence[int], points: Tensor, directions: Tensor) -> None:
        self.event = channels, height, width = image_event(event)
        if channels != 1:
            raise ValueError(f"event={self.event}; expected one channel, (1, H, W), for line integrals.")
        if points.dim() != 3 or points.shape[2] != 2 or points.shape != directions.shape:
            raise ValueError(f"points are {tuple(points.shape)} and directions {tuple(directions.shape)}; expected (angles, bins, 2) both.")
        self.measured = tuple(points.shape[:2])
        matrix = _weights(points.double().reshape(-1, 2), directions.double().reshape(-1, 2), height, width)
        self._pair = _Pair(_compressed(matrix), _compressed(matrix.t()))
        self._cast: dict[tuple[torch.dtype, torch.device], _Pair] = {}

    def forward(self, x: Tensor) -> Tensor:
        return _Product.apply(x.flatten(1), self._of(x)).reshape(-1, *self.measured)

    def adjoint(self, y: Tensor) -> Tensor:
        return _Product.apply(y.flatten(1), self._of(y).turned()).reshape(-1, *self.event)

    def _of(self, x: Tensor) -> _Pair:
        """The matrices in x's dtype on its device."""
        key = x.dtype, x.device
        if key not in self._cast:
            self._cast[key] = self._pair.to(x)
        return self._cast[key]


class Radon(Rays):
    """Parallel beams: y(theta, s) is the integral along the line at distance s from the centre whose normal points to theta.

    Arguments:
        event: shape (1, H, W) of one image.
        angles: (a,) degrees; or their number, spread evenly over half a turn.
        bins: detector bins, a pixel wide; default enough to see the whole diagonal.
    """

    def __init__(self, event: Sequence[int], angles: int | Sequence[float] | Tensor = 60, bins: int | None = None) -> None:
        _, height, width = image_event(event)
        self.angles = theta = _radians(angles, 180.0)
        bins = _bins(bins, height, width)
        offsets = torch.arange(bins, dtype=torch.float64) - (bins - 1) / 2
        normal = torch.stack([theta.cos(), theta.sin()], 1)
        along = torch.stack([-theta.sin(), theta.cos()], 1)
        super().__init__(event, offsets[None, :, None] * normal[:, None], along[:, None].expand(-1, bins, -1))


class FanBeam(Rays):
    """Rays from a point source that goes round the image to a detector opposite, at equal angles within the fan.

    Arguments:
        event: shape (1, H, W) of one image.
        angles: (a,) degrees of the source; or their number, spread evenly over a whole turn.
        bins: rays of a fan; default one and a half for each pixel of the diagonal.
        distance: of the source from the centre, in longer sides of the image, > 0.75 so that it stands outside; the fan just holds the image.
    """

    def __init__(self, event: Sequence[int], angles: int | Sequence[float] | Tensor = 60, bins: int | None = None, distance: float = 1.5) -> None:
        _, height, width = image_event(event)
        if number("distance", distance, 0.0, above=True) <= 0.75:
            raise ValueError(f"distance={distance!r}; expected more than 0.75 longer sides, so that the source stands outside the image: distance=1.5.")
        beta = _radians(angles, 360.0)
        bins = math.ceil(1.5 * math.hypot(height, width)) if bins is None else integer("bins", bins, 2)
        radius = distance * max(height, width)
        opening = math.asin(math.hypot(height, width) / 2 / radius)
        turned = beta[:, None] + torch.linspace(-opening, opening, bins, dtype=torch.float64)
        source = radius * torch.stack([beta.cos(), beta.sin()], 1)[:, None].expand(-1, bins, -1)
        super().__init__(event, source, -torch.stack([turned.cos(), turned.sin()], 2))


def filtered_back_projection(radon: Radon, y: Tensor) -> Tensor:
    """The classic inverse of parallel beams: every projection through the ramp filter, and back along its rays, by
    linear interpolation between bins.  (B, 1, H, W)

    The filter is the band-limited ramp's own impulse response, 1/4 at 0 and -1/(pi n)^2 at odd n, which keeps the mean that a ramp
    cut off in frequency loses.  Exact for many angles and bins; with few angles it leaves streaks.  [Kak & Slaney 1988, eq. 3.61]

    Arguments:
        radon: what was measured; angles evenly over half a turn.
        y: (B, angles, bins).

    Raises:
        ValueError: another operator, angles that are not evenly spread, a y of another shape.
    """
    _check_even(radon)
    if y.dim() != 3 or tuple(y.shape[1:]) != radon.measured:
        raise ValueError(f"y has shape {tuple(y.shape)}; expected (B, {radon.measured[0]}, {radon.measured[1]}), as the operator measures.")
    bins = y.shape[-1]
    size = 2 ** math.ceil(math.log2(2 * bins))
    n = torch.arange(size, dtype=torch.float64)
    n = torch.minimum(n, size - n)
    response = torch.where(n % 2 == 1, -1 / (math.pi * n.clamp(min=1)).square(), 0.0)
    response[0] = 0.25
    ramp = torch.fft.rfft(response).real.to(y)
    filtered = torch.fft.irfft(torch.fft.rfft(y, n=size) * ramp, n=size)[..., :bins]
    _, height, width = radon.event
    x = torch.arange(width, dtype=torch.float64) - (width - 1) / 2
    down = (torch.arange(height, dtype=torch.float64) - (height - 1) / 2)[:, None]
    image = y.new_zeros(len(y), height, width)
    for theta, line in zip(radon.angles.tolist(), filtered.unbind(1), strict=True):
        place = (x * math.cos(theta) + down * math.sin(theta) + (bins - 1) / 2).clamp(0, bins - 1)
        low = place.floor().clamp(max=bins - 2).long()
        share = (place - low).to(y)
        image += (1 - share) * line[:, low.to(y.device)] + share * line[:, low.to(y.device) + 1]
    return image[:, None] * (math.pi / len(radon.angles) * max(height, width))


def _check_even(radon: object) -> None:
    """That it is of parallel beams whose directions, each as often as every other, are evenly spread over half a turn."""
    if not isinstance(radon, Radon):
        raise ValueError(f"filtered back-projection of a {type(radon).__name__}; expected a Radon, of parallel beams: operator.pinv(y) of others, or m.restore.")
    turned = (radon.angles % math.pi).sort().values
    gaps = turned.diff(append=turned[:1] + math.pi)
    gaps = gaps[gaps > 1e-6]
    if len(turned) % len(gaps) or float((gaps - gaps.mean()).abs().max()) > 1e-3 * float(gaps.mean()):
        raise ValueError(
            f"{len(turned)} angles with gaps of {math.degrees(gaps.min()):.4g} to {math.degrees(gaps.max()):.4g} degrees; expected an even spread over half a turn, as in "
            f"angles={len(turned)}: operator.pinv(y) of others, or m.restore."
        )


class _Pair:
    """A sparse matrix and its transpose, out of sight of torch's transforms, which know no sparse ones."""

    def __init__(self, matrix: Tensor, transposed: Tensor) -> None:
        self.matrix, self.transposed = matrix, transposed

    def turned(self) -> _Pair:
        return _Pair(self.transposed, self.matrix)

    def to(self, x: Tensor) -> _Pair:
        return _Pair(self.matrix.to(x.device, x.dtype), self.transposed.to(x.device, x.dtype))


class _Product(torch.autograd.Function):
    """x M^T, whose derivative is a product with the transpose; forward, reverse and higher ones alike."""

    @staticmethod
    def forward(x: Tensor, pair: _Pair) -> Tensor:
        return torch.sparse.mm(pair.matrix, x.T.contiguous()).T

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, _Pair], output: Tensor) -> None:
        ctx.pair = inputs[1]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _Product.apply(grad, ctx.pair.turned()), None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, _: None) -> Tensor:
        return _Product.apply(tangent, ctx.pair)


def _weights(points: Tensor, directions: Tensor, height: int, width: int) -> Tensor:
    """(rays, H W) sparse: what each pixel adds to each integral."""
    unit = directions / directions.norm(dim=1, keepdim=True)
    across = unit[:, 0].abs() >= unit[:, 1].abs()  # the ray crosses columns rather than rows
    parts = []
    for rays, axis, (steps, sides) in ((across, 0, (width, height)), (~across, 1, (height, width))):
        number = rays.nonzero()[:, 0]
        p, d = points[rays], unit[rays]
        place = torch.arange(steps, dtype=torch.float64) - (steps - 1) / 2
        other = p[:, 1 - axis, None] + (place - p[:, axis, None]) * (d[:, 1 - axis] / d[:, axis])[:, None] + (sides - 1) / 2
        length = (1 / d[:, axis].abs() / max(height, width))[:, None].expand_as(other)
        for index, weight in ((other.floor(), 1 - (other - other.floor())), (other.floor() + 1, other - other.floor())):
            inside = (index >= 0) & (index < sides) & (weight > 0)
            step = torch.arange(steps).expand_as(other)
            pixel = index.long() * width + step if axis == 0 else step * width + index.long()
            parts.append((number[:, None].expand_as(other)[inside], pixel[inside], (length * weight)[inside]))
    rows, columns, values = (torch.cat(part) for part in zip(*parts, strict=True))
    return torch.sparse_coo_tensor(torch.stack([rows, columns]), values, (len(points), height * width), check_invariants=False).coalesce()


def _compressed(matrix: Tensor) -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch calls the format beta; it is an order of magnitude faster
        return matrix.coalesce().to_sparse_csr()


def _radians(angles: int | Sequence[float] | Tensor, turn: float) -> Tensor:
    if isinstance(angles, int):
        angles = torch.arange(integer("angles", angles, 1), dtype=torch.float64) * (turn / angles)
    if isinstance(angles, str):
        raise TypeError(f"angles={angles!r}; expected their number, as in angles=60, or degrees, as in angles=[0, 45, 90].")
    degrees = finite("angles", angles)
    if degrees.dim() != 1:
        raise ValueError(f"angles have shape {tuple(degrees.shape)}; expected (a,) degrees, or their number, as in angles=60.")
    return torch.deg2rad(degrees)


def _bins(bins: int | None, height: int, width: int) -> int:
    return math.ceil(math.hypot(height, width)) + 1 if bins is None else integer("bins", bins, 1)
