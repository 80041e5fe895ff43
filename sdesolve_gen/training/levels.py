"""Which noise levels a batch is trained on."""

from __future__ import annotations

import torch
from torch import Tensor

from sdesolve import Process


def level_times(process: Process, count: int, log_sigma_mean: float, log_sigma_std: float, draws: torch.Generator) -> Tensor:
    """(count,) float64 times with ln(sigma/alpha) normal, clipped to the process, stratified: one in each of ``count`` equally likely slices."""
    quantile = (torch.arange(count) + torch.rand(count, generator=draws, dtype=torch.float64)) / count
    log_sigma = log_sigma_mean + log_sigma_std * torch.special.ndtri(quantile.clamp(1e-6, 1 - 1e-6))
    low, high = (-0.5 * float(process.log_snr(t)) for t in (1e-5 * process.T, process.T))
    return process.log_snr_inverse(-2 * log_sigma.clamp(low, high))
