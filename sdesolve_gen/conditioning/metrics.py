"""How good a restored image is: PSNR, SSIM, LPIPS, and whether it explains what was measured.  Each image by itself, (B,)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import conv2d

from .operator import Operator

WINDOW, WIDTH = 11, 1.5  # side and standard deviation of SSIM's window, in pixels
K1, K2 = 0.01, 0.03


def psnr(images: Tensor, reference: Tensor, data_range: tuple[float, float]) -> Tensor:
    """Peak signal-to-noise ratio  10 log10((high - low)^2 / mean (x - r)^2)  in dB, (B,); infinite for equal images.

    Arguments:
        images, reference: (B, C, H, W) floats in ``data_range``.
        data_range: (low, high).

    Raises:
        TypeError: images of integers, whose differences have no sign to them.
        ValueError: images of two shapes, or a data range that is none.
    """
    peak = _checked(images, reference, data_range)
    return 10 * torch.log10(peak**2 / (images - reference).flatten(1).square().mean(1))


def ssim(images: Tensor, reference: Tensor, data_range: tuple[float, float]) -> Tensor:
    """Structural similarity, (B,), at most 1:  the mean over pixels and channels of

        (2 mx my + c1)(2 sxy + c2) / ((mx^2 + my^2 + c1)(sx^2 + sy^2 + c2)),        c = (K (high - low))^2,  K = 0.01 and 0.03,

    with means and (co)variances weighted by a Gaussian of standard deviation 1.5 in a window of 11 x 11, where the window lies within the
    image.  [Wang, Bovik, Sheikh & Simoncelli 2004, eq. 13-16]

    Arguments, Raises: as :func:`psnr`; ValueError for images smaller than the window.
    """
    peak = _checked(images, reference, data_range)
    if min(images.shape[2:]) < WINDOW:
        raise ValueError(f"images are {tuple(images.shape[2:])} pixels; expected at least {WINDOW} x {WINDOW}, the window of SSIM: psnr(...) has none.")
    x, y = images.double(), reference.double()
    mx, my = _local(x), _local(y)
    xx, yy, xy = _local(x * x) - mx * mx, _local(y * y) - my * my, _local(x * y) - mx * my
    c1, c2 = (K1 * peak) ** 2, (K2 * peak) ** 2
    return ((2 * mx * my + c1) * (2 * xy + c2) / ((mx * mx + my * my + c1) * (xx + yy + c2))).flatten(1).mean(1)


def lpips(images: Tensor, reference: Tensor, data_range: tuple[float, float], network: Callable[[Tensor, Tensor], Tensor] | None = None) -> Tensor:
    """Learned perceptual distance, (B,); smaller is nearer.  [Zhang et al. 2018]

    Arguments:
        images, reference, data_range: as for :func:`psnr`.
        network: (x, r) -> distances, for three channels in [-1, 1]; default ``lpips.LPIPS(net="alex")``, whose weights torchvision fetches.

    Raises:
        ImportError: no network was given and the package lpips is not installed.
    """
    _checked(images, reference, data_range)
    low, high = data_range
    pair = (((x - low) * (2 / (high - low)) - 1).expand(-1, 3, -1, -1) for x in (images, reference))
    with torch.no_grad():
        return (network or _alex())(*pair).reshape(-1)


def consistency(operator: Operator, y: Tensor, images: Tensor) -> Tensor:
    """Root mean square of y - A x in the units of y, (B,): the declared noise_std where x is a draw of the posterior, 0 without noise."""
    return (y - operator.forward(images)).flatten(1).square().mean(1).sqrt()


def _checked(images: Tensor, reference: Tensor, data_range: tuple[float, float]) -> float:
    """The width of the data range."""
    if images.dim() != 4 or images.shape != reference.shape:
        raise ValueError(f"images are {tuple(images.shape)} and the reference {tuple(reference.shape)}; expected (B, C, H, W) both.")
    if not images.is_floating_point() or not reference.is_floating_point():
        raise TypeError(f"images are {images.dtype} and the reference {reference.dtype}; expected floats both: images.float(), of levels with data_range=(0, 255).")
    if not isinstance(data_range, tuple | list) or len(data_range) != 2 or not data_range[0] < data_range[1]:
        raise ValueError(f"data_range={data_range!r}; expected (low, high) with low < high, as in m.data_range.")
    return data_range[1] - data_range[0]


def _local(x: Tensor) -> Tensor:
    """Means under the window, channel by channel, (B, C, H - 10, W - 10)."""
    place = torch.arange(WINDOW, dtype=x.dtype, device=x.device) - WINDOW // 2
    weight = torch.exp(-0.5 * (place / WIDTH) ** 2)
    weight = weight / weight.sum()
    rows = conv2d(x.reshape(-1, 1, *x.shape[2:]), weight.reshape(1, 1, -1, 1))
    return conv2d(rows, weight.reshape(1, 1, 1, -1)).reshape(*x.shape[:2], rows.shape[2], -1)


def _alex() -> Any:
    try:
        from lpips import LPIPS
    except ImportError:
        raise ImportError('LPIPS needs the package lpips and its weights: pip install lpips, or lpips(..., network=yours)') from None
    return LPIPS(net="alex", verbose=False)
