"""The schedulers of diffusers, in the loop that its pipelines run."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..contenders import OUR_GRID, USERS, Contender, ladder, started
from ..problems import Network
from .installed import needed

BETAS = {"beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear", "num_train_timesteps": 1000}
KARRAS = {"use_karras_sigmas": True}
EXPONENTIAL = {"use_exponential_sigmas": True}
LU = {"use_lu_lambdas": True}
SDE = {"algorithm_type": "sde-dpmsolver++"}


class Scheduler(NamedTuple):
    """How a scheduler is driven."""

    label: str
    name: str
    options: dict[str, Any]
    space: str = "vp"
    """Coordinates of its state: "vp" (alpha^2 + sigma^2 = 1), "ve" (y), or "edm" (y, and a network that predicts EDM's F)."""
    calls: int = 1
    """A step; the last of two-call schedulers has one."""
    flow: bool = True
    zero: bool = True
    """Whether its last step may end at sigma = 0; on our grid, where it may not, a denoising call ends it."""


USED = [
    Scheduler("DDIM, leading", "DDIM", {"clip_sample": False}),
    Scheduler("DDIM, trailing", "DDIM", {"clip_sample": False, "timestep_spacing": "trailing"}),
    Scheduler("DPM++ 2M", "DPMSolverMultistep", {}),
    Scheduler("DPM++ 2M, trailing", "DPMSolverMultistep", {"timestep_spacing": "trailing"}),
    Scheduler("DPM++ 2M, karras", "DPMSolverMultistep", KARRAS),
    Scheduler("DPM++ 2M, lu", "DPMSolverMultistep", LU),
    Scheduler("DPM++ 3M, karras", "DPMSolverMultistep", {"solver_order": 3, **KARRAS}),
    Scheduler("DPM++ 3M, lu", "DPMSolverMultistep", {"solver_order": 3, **LU}),
    Scheduler("DPM++ 2M SDE, karras", "DPMSolverMultistep", {**SDE, **KARRAS}, flow=False),
    Scheduler("DPM++ singlestep, karras", "DPMSolverSinglestep", {"lower_order_final": True, **KARRAS}),
    Scheduler("UniPC", "UniPCMultistep", {}),
    Scheduler("UniPC, leading", "UniPCMultistep", {"timestep_spacing": "leading"}),
    Scheduler("UniPC, karras", "UniPCMultistep", KARRAS),
    Scheduler("UniPC 3, exponential", "UniPCMultistep", {"solver_order": 3, **EXPONENTIAL}),
    Scheduler("DEIS", "DEISMultistep", {}),
    Scheduler("DEIS, karras", "DEISMultistep", KARRAS),
    Scheduler("SA-Solver", "SASolver", {}, flow=False),
    Scheduler("SA-Solver, karras", "SASolver", KARRAS, flow=False),
    Scheduler("Heun, karras", "HeunDiscrete", KARRAS, "ve", 2),
    Scheduler("KDPM2, karras", "KDPM2Discrete", KARRAS, "ve", 2),
    Scheduler("LMS, karras", "LMSDiscrete", KARRAS, "ve"),
    Scheduler("DPM SDE, karras", "DPMSolverSDE", KARRAS, "ve", 2, flow=False),
    Scheduler("EDM Euler", "EDMEuler", {}, "edm"),
    Scheduler("EDM DPM++ 2M", "EDMDPMSolverMultistep", {}, "edm"),
]
ON_OUR_GRID = [
    Scheduler("DPM++ 1 (DDIM)", "DPMSolverMultistep", {"solver_order": 1}),
    Scheduler("DPM++ 2M", "DPMSolverMultistep", {}),
    Scheduler("DPM++ 3M", "DPMSolverMultistep", {"solver_order": 3}),
    Scheduler("DPM++ 2M SDE", "DPMSolverMultistep", SDE, flow=False),
    Scheduler("UniPC", "UniPCMultistep", {}),
    Scheduler("UniPC 3", "UniPCMultistep", {"solver_order": 3}),
    Scheduler("DEIS", "DEISMultistep", {}, zero=False),
    Scheduler("SA-Solver", "SASolver", {}, flow=False, zero=False),
    Scheduler("Heun", "HeunDiscrete", {}, "ve", 2),
]


def contenders() -> list[Contender]:
    """Every scheduler above; raises Skipped without diffusers."""
    needed("diffusers")
    return [_contender(s, False) for s in USED] + [_contender(s, True) for s in ON_OUR_GRID]


def _contender(scheduler: Scheduler, our_grid: bool) -> Contender:
    label = f"diffusers {scheduler.label}{' [our grid]' if our_grid else ''}"
    return Contender(label, "diffusers", OUR_GRID if our_grid else USERS, scheduler.flow, _runner(scheduler, our_grid))


def _runner(how: Scheduler, our_grid: bool) -> Callable[[Network, Tensor, int, int, int], Tensor]:
    def run(network: Network, z: Tensor, budget: int, seed: int, first: int) -> Tensor:
        import diffusers

        steps = budget if how.calls == 1 else (budget + 1) // 2
        made = getattr(diffusers, f"{how.name}Scheduler")
        known = inspect.signature(made.__init__).parameters
        scheduler = made(**{k: v for k, v in BETAS.items() if k in known}, **how.options)
        if not our_grid:
            scheduler.set_timesteps(steps)
            return _walk(network, scheduler, how, z * scheduler.init_noise_sigma, seed + first)
        levels = ladder(network.problem, steps, budget)
        _stand_on(scheduler, how, levels, network)
        y = started(network.problem, z, levels[0])
        x = _walk(network, scheduler, how, y if how.space == "ve" else y / math.hypot(1, levels[0]), seed + first)
        last = levels[-1]
        return x if how.zero else network.denoised(x * math.hypot(1, last), last)

    return run


def _stand_on(scheduler: Any, how: Scheduler, levels: list[float], network: Network) -> None:
    """Put a scheduler on given noise levels, as if its own spacing had given them."""
    nodes = [*levels, 0.0] if how.zero else levels
    scheduler.set_timesteps(len(nodes) - 1)
    if how.calls == 2:
        nodes = [nodes[0], *(s for s in nodes[1:-1] for _ in range(2)), nodes[-1]]
    scheduler.sigmas = torch.tensor(nodes, dtype=torch.float64)
    times = [round(1000 * network.time(s)) - 1 for s in nodes[:-1]]
    scheduler.timesteps = torch.tensor(times).clamp(min=0)
    scheduler.set_begin_index(0)


@torch.no_grad()
def _walk(network: Network, scheduler: Any, how: Scheduler, x: Tensor, seed: int) -> Tensor:
    takes = inspect.signature(scheduler.step).parameters
    generator = {"generator": torch.Generator().manual_seed(seed)} if "generator" in takes else {}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for t in scheduler.timesteps:
            scheduler.scale_model_input(x, t)
            s = _level(scheduler, t)
            y = x * math.hypot(1, s) if how.space == "vp" else x
            x = scheduler.step(_output(network, scheduler, how, y, s), t, x, **generator).prev_sample
    return x


def _level(scheduler: Any, t: Tensor) -> float:
    """sigma/alpha of the state that the network is about to see."""
    if not hasattr(scheduler, "sigmas"):
        kept = float(scheduler.alphas_cumprod[int(t)])
        return math.sqrt((1 - kept) / kept)
    index = scheduler.step_index or 0
    between = getattr(scheduler, "sigmas_interpol", getattr(scheduler, "mid_point_sigma", None))
    if between is not None and not scheduler.state_in_first_order:
        return float(between[index] if between.dim() else between)
    return float(scheduler.sigmas[index])


def _output(network: Network, scheduler: Any, how: Scheduler, y: Tensor, s: float) -> Tensor:
    """What the scheduler thinks that its network predicts: eps, or F of  D = c_skip y + c_out F."""
    d = network.denoised(y, s)
    if how.space != "edm":
        return (y - d) / s
    data = scheduler.config.sigma_data
    norm = math.hypot(s, data)
    return (d - y * (data / norm) ** 2) / (s * data / norm)
