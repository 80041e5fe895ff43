"""Kernel distance of features: a squared MMD, unbiased, so that its mean is 0 where the laws agree whatever the number of samples.

    KID = E k(x, x') + E k(y, y') - 2 E k(x, y),    k(x, y) = (<x, y>/d + 1)^3                            [Binkowski et al. 2018, section 4]

over pairs of different rows.  It is averaged over blocks of rows, as the published code does; that one draws blocks which overlap, and prints
their spread.  Here no two blocks share a row, so that they are independent and the error of their mean is a standard error.
"""

from __future__ import annotations

from torch import Tensor

from .figure import Figure, of_mean, order

BLOCK, LEAST_BLOCKS = 1000, 10


def kid(x: Tensor, y: Tensor) -> Figure:
    """Kernel distance of features (n, d) and (m, d), n and m >= 4, in blocks of 1000 rows, or a tenth of the fewer rows where that is less."""
    least = min(len(x), len(y))
    size = max(2, min(BLOCK, least // LEAST_BLOCKS))
    count = least // size
    places = [order(len(z))[: count * size].split(size) for z in (x, y)]
    blocks = [_mmd2(x[i].double(), y[j].double()) for i, j in zip(*places, strict=True)]
    return of_mean(blocks, f"{count} blocks of {size}")


def _mmd2(x: Tensor, y: Tensor) -> float:
    """Of samples (s, d), each without the pairs of a row with itself."""
    s, d = x.shape

    def k(a: Tensor, b: Tensor) -> Tensor:
        return (a @ b.T / d + 1) ** 3

    xx, yy = k(x, x), k(y, y)
    within = (xx.sum() - xx.trace() + yy.sum() - yy.trace()) / (s * (s - 1))
    return float(within - 2 * k(x, y).mean())
