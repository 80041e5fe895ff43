"""The samplers that diffusers has too: the same noise levels, the same network, the same numbers to 1e-5.

Both walk the levels that diffusers chooses, and the network is told the level and not the time, which diffusers rounds to an integer.  Where it does
something else by default, the test sets it to do the same: no step to sigma = 0, no lower order at the end.  Its tables of levels are in float32, from which
its coefficients lose up to 1e-4; here they are in float64, and what is left is the difference of the algorithms.
"""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from problems import mixture_score
from torch import Tensor

import sdesolve as sd
from sdesolve import exam
from sdesolve.noise import SeededNormals

diffusers = pytest.importorskip("diffusers")
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation")

P = sd.VPSDE(beta_max=21.0)  # whose levels contain those of diffusers; when it has them is no matter
SCORE = sd.as_score(mixture_score(exam.mixture_2d(), P), P, predicts="score")
PLAIN = {"lower_order_final": False, "final_sigmas_type": "sigma_min"}
DEIS = {"solver_type": "logrho", "lower_order_final": False}
SDE = {"algorithm_type": "sde-dpmsolver++", **PLAIN}
MULTISTEP = [
    ("dpmpp_2m", {}, "DPMSolverMultistepScheduler", {"solver_order": 2, **PLAIN}),
    ("dpmpp_2m", {"variant": "heun"}, "DPMSolverMultistepScheduler", {"solver_order": 2, "solver_type": "heun", **PLAIN}),
    ("dpmpp_3m", {"published": True}, "DPMSolverMultistepScheduler", {"solver_order": 3, **PLAIN}),
    ("dpmpp_2m_sde", {}, "DPMSolverMultistepScheduler", {"solver_order": 2, **SDE}),
    ("dpmpp_2m_sde", {"variant": "heun"}, "DPMSolverMultistepScheduler", {"solver_order": 2, "solver_type": "heun", **SDE}),
    ("dpmpp_3m_sde", {"published": True}, "DPMSolverMultistepScheduler", {"solver_order": 3, "solver_type": "heun", **SDE}),
    *(
        ("unipc", {"order": order, "variant": variant}, "UniPCMultistepScheduler", {"solver_order": order, "solver_type": variant, **PLAIN})
        for order in (1, 2, 3)
        for variant in ("bh1", "bh2")
    ),
    *(("deis", {"order": n, "variant": "log_rho", "published": True}, "DEISMultistepScheduler", {"solver_order": n, **DEIS}) for n in (1, 2, 3)),
]


def times(ratios: Tensor) -> list[float]:
    """Of levels sigma/alpha."""
    return P.log_snr_inverse(-2 * ratios.double().log()).tolist()


def start() -> Tensor:
    return P.prior((64, 2), seed=0, dtype=torch.float64)


def solved(method: str, grid: list[float], **options: Any) -> Tensor:
    return sd.solve(P.reverse(SCORE), start(), method, grid=grid, interval=(grid[0], grid[-1]), seed=1, **options).x


def normals(steps: int) -> SeededNormals:
    return SeededNormals(1, range(64), (2,), dtype=torch.float64, device="cpu", nodes=steps)


def wrong_sign(outputs: list[Tensor], ratios: Tensor) -> Tensor:
    """What diffusers lacks in the third order of "sde-dpmsolver++": its weight on the second difference,

        alpha_1 [(1 - e^(-2h) - 2h)/(2h)^2 - 1/2],

    has -1/2 where +1/2 belongs, so it tends to -1 and not to 0 as h does, and the method is of order 1.
    """
    lam = -ratios.log()
    h = lam.diff()
    slope, before = (outputs[2] - outputs[1]) / h[1], (outputs[1] - outputs[0]) / h[0]
    return (1 + ratios[-1] ** 2).rsqrt() * (slope - before) * h[2] ** 2 / (h[1] + h[0])


@pytest.mark.parametrize("steps", [1, 2, 3, 5, 20])
@pytest.mark.parametrize(("method", "options", "name", "config"), MULTISTEP)
def test_multistep(method: str, options: dict[str, Any], name: str, config: dict[str, Any], steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    scheduler = getattr(diffusers, name)(beta_schedule="linear", beta_start=1e-4, beta_end=0.02, timestep_spacing="linspace", **config)
    scheduler.set_timesteps(steps)
    scheduler.sigmas = scheduler.sigmas.double()
    wide = SimpleNamespace(**{**vars(torch), "float32": torch.float64})  # it casts the state, too
    monkeypatch.setattr(sys.modules[type(scheduler).__module__], "torch", wide)
    grid, x = times(scheduler.sigmas), start()
    noise = normals(steps)
    for i, timestep in enumerate(scheduler.timesteps):
        extra = {"variance_noise": noise.normal(i)} if method.endswith("_sde") else {}
        x = scheduler.step(SCORE.epsilon(x, grid[i]), timestep, x, return_dict=False, **extra)[0]
        if method == "dpmpp_3m_sde" and i > 1:
            x = x + wrong_sign(scheduler.model_outputs, scheduler.sigmas[i - 2 : i + 2])
    assert float((solved(method, grid, **options) - x).abs().max()) < 1e-9


@pytest.mark.parametrize("steps", [1, 2, 5, 20])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_ddim(eta: float, steps: int) -> None:
    """The last step goes to the first level of the training's, not to sigma = 0, and the others are those of ``prev_timestep``."""
    scheduler = diffusers.DDIMScheduler(beta_start=1e-4, beta_end=0.02, set_alpha_to_one=False, clip_sample=False, steps_offset=1)
    scheduler.set_timesteps(steps)
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
    scheduler.final_alpha_cumprod = scheduler.alphas_cumprod[0]
    alphas = scheduler.alphas_cumprod[torch.cat([scheduler.timesteps, torch.zeros(1, dtype=torch.long)])]
    grid, x = times(((1 - alphas) / alphas).sqrt()), start()
    noise = normals(steps)
    for i, timestep in enumerate(scheduler.timesteps):
        x = scheduler.step(SCORE.epsilon(x, grid[i]), timestep, x, eta=eta, variance_noise=noise.normal(i) if eta else None, return_dict=False)[0]
    assert float((solved("ddim", grid, eta=eta) - x).abs().max()) < 1e-5
