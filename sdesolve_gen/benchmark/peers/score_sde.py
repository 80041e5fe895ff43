"""The predictor-corrector sampler of score_sde, which no package index has: its published algorithm, written by hand and labelled so.

VP, reverse diffusion and Langevin with the published constants (snr 0.16, one corrector step, norms averaged over the batch, b_i = beta_i / N).
[Song et al. 2021, algorithms 3 and 5, and the code's spacing of N times over N steps]
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..contenders import USERS, Contender
from ..problems import Network

SNR, EPS, BETAS = 0.16, 1e-3, (0.1, 20.0)


def contenders() -> list[Contender]:
    """The sampler; it fails below N = 20 steps, 40 calls, where its b_i exceed one."""
    return [Contender("score_sde PC (by hand)", "score_sde", USERS, False, _run)]


@torch.no_grad()
def _run(network: Network, z: Tensor, budget: int, seed: int, first: int) -> Tensor:
    n = budget // 2
    generator = torch.Generator().manual_seed(seed + first)
    betas = torch.linspace(BETAS[0] / n, BETAS[1] / n, n, dtype=torch.float64).tolist()
    x = mean = z
    for t in torch.linspace(1.0, EPS, n, dtype=torch.float64).tolist():
        b = betas[int(t * (n - 1))]
        gradient, noise = network.score(x, t), _like(x, generator)
        ratio = SNR * noise.flatten(1).norm(dim=1).mean() / gradient.flatten(1).norm(dim=1).mean()
        step = 2 * (1 - b) * ratio**2
        x = x + step * gradient + (2 * step).sqrt() * noise
        kept = (1 - b) ** 0.5 if b <= 1 else float("nan")
        mean = (2 - kept) * x + b * network.score(x, t)
        x = mean + b**0.5 * _like(x, generator)
    return mean


def _like(x: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(x.shape, generator=generator, dtype=x.dtype).to(x.device)
