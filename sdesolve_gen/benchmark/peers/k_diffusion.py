"""The samplers of k-diffusion, with the spacing of Karras et al. that its users take."""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Callable
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from ..contenders import OUR_GRID, USERS, Contender, ladder, started
from ..problems import Network
from .installed import needed

SAMPLERS: dict[str, tuple[int, bool]] = {
    "euler": (1, True),
    "euler_ancestral": (1, False),
    "heun": (2, True),
    "dpm_2": (2, True),
    "lms": (1, True),
    "dpmpp_2s_ancestral": (2, False),
    "dpmpp_sde": (2, False),
    "dpmpp_2m": (1, True),
    "dpmpp_2m_sde": (1, False),
    "dpmpp_3m_sde": (1, False),
}
"""Name -> calls a step (the last of the two-call samplers has one), and whether it solves the flow."""

RANGES = {"VP": (0.01, 157.4), "EDM": (0.002, 80.0)}
"""Noise levels from which users take their spacing: those of a network trained on DDPM's betas, and EDM's."""


def contenders() -> list[Contender]:
    """Every sampler above; raises Skipped without k-diffusion."""
    needed("k_diffusion", "torchsde", "torchdiffeq", "scipy")
    found = []
    for name, (calls, flow) in SAMPLERS.items():
        for schedule in RANGES if name in ("euler", "heun", "dpmpp_2m") else ["VP"]:
            found.append(Contender(f"k-diffusion {name}, karras {schedule}", "k-diffusion", USERS, flow, _runner(name, calls, schedule)))
        found.append(Contender(f"k-diffusion {name} [our grid]", "k-diffusion", OUR_GRID, flow, _runner(name, calls, None)))
    return found


@functools.cache
def sampling() -> ModuleType:
    """``k_diffusion.sampling`` alone.

    The package's ``__init__`` imports what it needs for training, and one of its helpers torchvision, to show pictures: empty modules stand in
    for the two while the samplers are imported, and are gone afterwards.
    """
    spec = find_spec("k_diffusion")
    package, pictures = ModuleType("k_diffusion"), ModuleType("torchvision.transforms")
    package.__path__ = list(spec.submodule_search_locations or []) if spec else []
    pictures.functional = None  # type: ignore[attr-defined]
    aside = {name: sys.modules.pop(name, None) for name in ("k_diffusion", "torchvision", "torchvision.transforms")}
    sys.modules |= {"k_diffusion": package, "torchvision": ModuleType("torchvision"), "torchvision.transforms": pictures}
    try:
        return importlib.import_module("k_diffusion.sampling")
    finally:
        for name, module in aside.items():
            del sys.modules[name]
            if module is not None:
                sys.modules[name] = module


def _runner(name: str, calls: int, schedule: str | None) -> Callable[[Network, Tensor, int, int, int], Tensor]:
    def run(network: Network, z: Tensor, budget: int, seed: int, first: int) -> Tensor:
        module: Any = sampling()
        steps = budget if calls == 1 else (budget + 1) // 2
        if schedule is None:
            sigmas = torch.tensor([*ladder(network.problem, steps, budget), 0.0], dtype=torch.float64)
            sigmas = sigmas.to(z.device)
            y = started(network.problem, z, float(sigmas[0]))
        else:
            sigmas = module.get_sigmas_karras(steps, *RANGES[schedule], device=z.device)
            y = z * sigmas[0]
        with torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(seed + first)
            sampled: Tensor = getattr(module, f"sample_{name}")(lambda x, s: network.denoised(x, float(s[0])), y, sigmas, disable=True)
        return sampled

    return run
