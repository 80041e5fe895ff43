"""What a diffusers scheduler's config says about the process, the network's output and the time that it is told.

    scheduler                                     process                                  time
    DDPM, DDIM, PNDM, DPM-Solver, UniPC, ...      tabulated_vp, their own alphas_cumprod   "level", the index that they count
    FlowMatch*, or use_flow_sigmas                rectified_flow                           1000 t
    ScoreSdeVe                                    ve                                       "sigma", and the output is the score
    ScoreSdeVp                                    vp                                       999 t
    EDM*                                          edm                                      "log_sigma/4", and the output is F

The betas are computed in float32, as the networks were trained on them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._errors import as_int, unknown

MOST_LEVELS = 10_000
ZERO = 2.0**-24  # stands for a last level without signal, as in diffusers' multistep solvers

PREDICTS = {"epsilon": "epsilon", "sample": "x0", "v_prediction": "v", "flow_prediction": "flow"}
_TABLES = {
    "DDPMScheduler", "DDIMScheduler", "DDPMParallelScheduler", "DDIMParallelScheduler", "PNDMScheduler", "LMSDiscreteScheduler", "HeunDiscreteScheduler",
    "EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler", "DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler", "DPMSolverSDEScheduler",
    "DEISMultistepScheduler", "UniPCMultistepScheduler", "KDPM2DiscreteScheduler", "KDPM2AncestralDiscreteScheduler", "SASolverScheduler", "DiffusersScheduler",
}  # fmt: skip
_FLOWS = {"FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler"}
_EDM = {"EDMEulerScheduler", "EDMDPMSolverMultistepScheduler"}
_TELLING = {  # the config of a scheduler that was never saved lacks its name
    "beta_start": "DDPMScheduler", "beta_min": "ScoreSdeVpScheduler", "sigma_data": "EDMEulerScheduler", "correct_steps": "ScoreSdeVeScheduler",
    "shift": "FlowMatchEulerDiscreteScheduler",
}  # fmt: skip
SCHEDULERS = sorted(_TABLES | _FLOWS | _EDM | {"ScoreSdeVeScheduler", "ScoreSdeVpScheduler"})


class Schedule(NamedTuple):
    """What a card says of it, and what the network's time is multiplied by."""

    process: str
    process_options: dict[str, Any]
    predicts: str
    time: str | int
    time_scale: float = 1.0
    data_range: tuple[float, float] = (-1.0, 1.0)
    levels: int = 1000
    """Of the training: what 1 is in the scheduler's own count of time."""


def read_schedule(config: Mapping[str, Any]) -> Schedule:
    """From a scheduler's config, as ``scheduler.config`` or its JSON file has it.

    Raises:
        ValueError: a scheduler, schedule or prediction that is not known; constants out of range.
    """
    name = config.get("_class_name") or next((kind for key, kind in _TELLING.items() if key in config), "DDPMScheduler")
    if name not in SCHEDULERS:
        raise ValueError(f"{unknown('scheduler', name, SCHEDULERS)}")
    levels = _count(config)
    if name in _FLOWS or config.get("use_flow_sigmas") is True:
        return Schedule("rectified_flow", {}, "flow", "continuous", float(levels), levels=levels)
    if name in _EDM:
        return _edm(config)
    if name == "ScoreSdeVeScheduler":
        return Schedule("ve", {"sigma_min": _number(config, "sigma_min", 0.01), "sigma_max": _number(config, "sigma_max", 1348.0)}, "score", "sigma", 1.0, (0.0, 1.0))
    if name == "ScoreSdeVpScheduler":
        options = {"beta_min": _number(config, "beta_min", 0.1), "beta_max": _number(config, "beta_max", 20.0)}
        return Schedule("vp", options, "epsilon", "t*999" if levels == 1000 else levels)
    predicts = _prediction(config)
    table = alphas_cumprod(config)
    if config.get("rescale_betas_zero_snr") is True and predicts == "epsilon":
        raise ValueError('prediction_type "epsilon" with rescale_betas_zero_snr: where there is no signal left the noise says nothing of it; expected "v_prediction" or "sample".')
    return Schedule("tabulated_vp", {"alphas_cumprod": table.double().tolist()}, predicts, "level", levels=len(table))


def alphas_cumprod(config: Mapping[str, Any]) -> Tensor:
    """(N,) products of 1 - beta, float32; a last one of 0 is 2**-24, or a quarter of the one before where that is less."""
    betas = _betas(config)
    if not bool(((betas > 0) & (betas <= 1)).all()):
        raise ValueError("the betas are not all within (0, 1]; expected those of a training.")
    table = torch.cumprod(1 - betas, 0)
    if config.get("rescale_betas_zero_snr") is True:
        table = torch.cumprod(1 - _without_signal(table), 0)
    if not float(table[-1]) > 0:
        table[-1] = min(ZERO, float(table[-2]) / 4)
    if not all(a > b for a, b in pairwise((1.0, *table.tolist(), 0.0))):
        raise ValueError("the betas do not give signal levels that fall within (0, 1): some betas are too small or too large for float32.")
    return table


def _betas(config: Mapping[str, Any]) -> Tensor:
    """(N,) float32."""
    trained = config.get("trained_betas")
    if trained is not None:
        try:
            betas = torch.as_tensor(trained, dtype=torch.float32)
        except (TypeError, ValueError, RuntimeError, OverflowError) as error:
            raise ValueError(f"trained_betas are no numbers ({error}).") from error
        if betas.dim() != 1 or not 2 <= len(betas) <= MOST_LEVELS:
            raise ValueError(f"trained_betas has shape {tuple(betas.shape)}; expected 2 to {MOST_LEVELS} numbers.")
        return betas
    count, first, last = _count(config), _number(config, "beta_start", 1e-4), _number(config, "beta_end", 0.02)
    if not 0 < first < 1 or not 0 < last < 1:
        raise ValueError(f"beta_start={first}, beta_end={last}; expected 0 < beta < 1.")
    name = config.get("beta_schedule", "linear")
    if name == "linear":
        return torch.linspace(first, last, count, dtype=torch.float32)
    if name == "scaled_linear":
        return torch.linspace(first**0.5, last**0.5, count, dtype=torch.float32) ** 2
    if name == "sigmoid":
        return torch.sigmoid(torch.linspace(-6, 6, count)) * (last - first) + first
    if name == "squaredcos_cap_v2":
        return _of_signal([math.cos((i / count + 0.008) / 1.008 * math.pi / 2) ** 2 for i in range(count + 1)])
    raise ValueError(unknown("beta_schedule", name, ("linear", "scaled_linear", "sigmoid", "squaredcos_cap_v2")))


def _of_signal(signal: list[float]) -> Tensor:
    """Betas from alpha^2 at both ends of every step, at most 0.999.  [Nichol & Dhariwal 2021, eq. 17]"""
    return torch.tensor([min(1 - after / before, 0.999) for before, after in pairwise(signal)], dtype=torch.float32)


def _without_signal(table: Tensor) -> Tensor:
    """Betas of alphas moved and stretched to end in 0 and begin as they did.  [Lin et al. 2024, algorithm 1]"""
    alpha = table.sqrt()
    first, last = alpha[0].clone(), alpha[-1].clone()
    square = ((alpha - last) * (first / (first - last))) ** 2
    return 1 - torch.cat([square[:1], square[1:] / square[:-1]])


def _edm(config: Mapping[str, Any]) -> Schedule:
    if config.get("prediction_type", "epsilon") != "epsilon" or _number(config, "sigma_data", 0.5) != 0.5:
        raise ValueError('an EDM scheduler with another prediction_type than "epsilon" or another sigma_data than 0.5 is not known.')
    options = {"sigma_min": _number(config, "sigma_min", 0.002), "sigma_max": _number(config, "sigma_max", 80.0)}
    return Schedule("edm", options, "edm", "log_sigma/4")


def _prediction(config: Mapping[str, Any]) -> str:
    name = config.get("prediction_type", "epsilon")
    if name not in PREDICTS:
        raise ValueError(unknown("prediction_type", name, PREDICTS))
    return PREDICTS[name]


def _count(config: Mapping[str, Any]) -> int:
    count = as_int(config.get("num_train_timesteps", 1000))
    if count is None or not 2 <= count <= MOST_LEVELS:
        raise ValueError(f"num_train_timesteps={config['num_train_timesteps']!r}; expected an integer from 2 to {MOST_LEVELS}.")
    return count


def _number(config: Mapping[str, Any], name: str, default: float) -> float:
    value = config.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{name}={value!r}; expected a finite number.")
    return float(value)
