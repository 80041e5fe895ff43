"""A mixture of Gaussians with covariances  F F^T + floor^2 I,  fitted to images by EM, and kept in a file.

Each component is a probabilistic PCA; given the shares r_ik of the data, its best parameters are closed forms:

    m_k = sum_i r_ik x_i / n_k,    F_k = U (Lam - floor_k^2)^(1/2),    floor_k^2 = mean of the eigenvalues that are left out

with U, Lam the leading eigenpairs of the weighted covariance.  [Tipping & Bishop 1999, eq. 7-8, appendix C]
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from sdesolve.exam import Gaussian, Mixture
from sdesolve.files import atomic

_SMALLEST = 1e-3  # of a floor: no direction is without noise


def cached_mixture(file: Path, images: Callable[[], Tensor]) -> Mixture:
    """The mixture that is kept in ``file``; fitted to ``images()`` and written where there is no file yet."""
    if not file.is_file():
        fitted = fit(images())
        with atomic(file) as path:
            save_file(fitted, path)
    return mixture(load_file(file))


def mixture(fitted: dict[str, Tensor]) -> Mixture:
    """The law of what :func:`fit` returns."""
    parts = zip(fitted["means"], fitted["factors"], fitted["floors"].tolist(), strict=True)
    return Mixture(fitted["weights"], [Gaussian(mean, factor=factor, floor=floor) for mean, factor, floor in parts])


def fit(images: Tensor, components: int = 10, rank: int = 24, iterations: int = 10) -> dict[str, Tensor]:
    """EM, started from the images nearest to each of the first ``components``: weights (K,), means (K, *event), factors (K, d, r), floors (K,)."""
    x = images.flatten(1).double()
    shares = torch.nn.functional.one_hot(torch.cdist(x, x[:components]).argmin(1), components).double()
    for _ in range(iterations):
        columns = zip(*(_component(x, share, rank) for share in shares.T), strict=True)
        means, factors, floors = (torch.stack(column) for column in columns)
        fitted = {"weights": shares.mean(0), "means": means.reshape(-1, *images.shape[1:]).contiguous(), "factors": factors, "floors": floors}
        law = mixture(fitted)
        shares = (torch.stack([part.log_prob(images) for part in law.components], 1) + law.weights.log()).softmax(1)
    return fitted


def _component(x: Tensor, share: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, factor and floor of the rows x with the weights ``share``."""
    share = share / share.sum()
    mean = share @ x
    away = (x - mean) * share.sqrt()[:, None]
    values, vectors = torch.linalg.eigh(away.T @ away)
    floor = values[:-rank].mean().clamp(min=_SMALLEST**2).sqrt()
    return mean, (vectors[:, -rank:] * (values[-rank:] - floor**2).clamp(min=0).sqrt()).contiguous(), floor
