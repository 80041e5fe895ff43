"""The samplers of azula, on its variance-preserving schedule and on our grid."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..contenders import OUR_GRID, USERS, Contender, ladder, started
from ..problems import Network
from .installed import needed

SAMPLERS: dict[str, tuple[str, dict[str, Any], int, bool]] = {
    "DDPM": ("DDPMSampler", {}, 1, False),
    "DDIM": ("DDIMSampler", {}, 1, True),
    "Heun": ("HeunSampler", {}, 2, True),
    "zAB-2": ("zABSampler", {"order": 2}, 1, True),
    "zAB-3": ("zABSampler", {"order": 3}, 1, True),
    "zEAB-2": ("zEABSampler", {"order": 2}, 1, True),
    "xEAB-2": ("xEABSampler", {"order": 2}, 1, True),
    "xEAB-3": ("xEABSampler", {"order": 3}, 1, True),
    "PC": ("PCSampler", {"delta": 0.1}, 2, False),
}
"""Label -> class, options, calls a step, whether it solves the flow."""


def contenders() -> list[Contender]:
    """Every sampler above; raises Skipped without azula."""
    needed("azula")
    found = []
    for label, (_, _, _, flow) in SAMPLERS.items():
        found.append(Contender(f"azula {label}", "azula", USERS, flow, _runner(label, False)))
        found.append(Contender(f"azula {label} [our grid]", "azula", OUR_GRID, flow, _runner(label, True)))
    return found


def _runner(label: str, our_grid: bool) -> Callable[[Network, Tensor, int, int, int], Tensor]:
    name, options, calls, _ = SAMPLERS[label]

    def run(network: Network, z: Tensor, budget: int, seed: int, first: int) -> Tensor:
        import azula.noise
        import azula.sample

        steps = (budget - our_grid) // calls
        nodes = ladder(network.problem, steps + 1, budget) if our_grid else []
        schedule = _Nodes(nodes) if our_grid else azula.noise.VPSchedule()
        sampler = getattr(azula.sample, name)(_denoiser(network, schedule), steps=steps, silent=True, **options)
        with torch.random.fork_rng():
            torch.manual_seed(seed + first)
            if not our_grid:
                return sampler(z * math.sqrt(1 + 1e-6))
            y = sampler(started(network.problem, z, nodes[0]))
        return network.denoised(y, nodes[-1])

    return run


class _Nodes:
    """A schedule that stands on given noise levels: azula counts time from 1 down to 0 in equal steps."""

    def __init__(self, levels: list[float]) -> None:
        self.levels = torch.tensor(levels[::-1], dtype=torch.float64)

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        s = self.levels.to(t.device)[(t.double() * (len(self.levels) - 1)).round().long()].to(t.dtype)
        return torch.ones_like(s), s


def _denoiser(network: Network, schedule: Any) -> Any:
    from azula.denoise import Denoiser, DiracPosterior

    class Told(Denoiser):
        def __init__(self) -> None:
            super().__init__()
            self.schedule = schedule

        def forward(self, x_t: Tensor, t: Tensor, **kwargs: Any) -> DiracPosterior:
            alpha, sigma = (float(c) for c in schedule(t))
            return DiracPosterior(mean=network.denoised(x_t / alpha, sigma / alpha))

    return Told()
