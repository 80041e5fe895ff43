"""Samplers are claims about distributions: each method's samples against the exact law, by sdesolve.exam.

The law at the end of the interval is p_eps, known in closed form.  Steps are many enough for the method's own bias, measured
without Monte-Carlo error in test_orders.py, to fall below one standard error of 100,000 samples.
"""

from __future__ import annotations

import pytest
import torch
from problems import PROCESSES

import sdesolve as sd
from sdesolve import exam

N = 100_000
THREE = [name for name in PROCESSES if name != "EDM"]
CONVERGED: dict[str, dict[str, object]] = {
    "euler_maruyama": {"steps": 1000},
    "milstein": {"steps": 1000},
    "heun_sde": {"steps": 500},
    "euler_heun": {"steps": 1000},
    "reversible_heun": {"steps": 1000},
    "sra1": {"steps": 300},
    "sra3": {"steps": 300},
    "reverse_diffusion": {"steps": 4000},
    "ancestral": {"steps": 4000, "grid": "log_snr"},
    "pc": {"steps": 2000, "grid": "log_snr", "snr": 0.1},
    "annealed_langevin": {"steps": 1000, "grid": "log_snr", "snr": 0.5, "corrector_steps": 8},
    "euler": {"steps": 2000},
    "midpoint": {"rtol": 1e-4, "atol": 1e-4},
    "heun": {"rtol": 1e-4, "atol": 1e-4},
    "rk4": {"steps": 500},
    "bosh3": {"rtol": 1e-4, "atol": 1e-4},
    "rk45": {"rtol": 1e-4, "atol": 1e-4},
    "tsit5": {"rtol": 1e-4, "atol": 1e-4},
    "dop853": {"rtol": 1e-4, "atol": 1e-4},
    "rodas5p": {"rtol": 1e-4, "atol": 1e-4},
    "ddim": {"steps": 2000, "grid": "log_snr"},
}
SLOW_TO_CONVERGE = {
    ("euler", "VE"): {"steps": 16_000},  # the published finding too: probability flow by Euler is bad on VE
    ("annealed_langevin", "subVP"): {"steps": 16_000, "grid": "log_snr", "snr": 0.5, "corrector_steps": 8},  # sigma_t is far below the data's width
}
IMPLICIT = {row.name for row in sd.methods() if row.facts.largest}  # a Jacobian for each sample and step: slow, and large in 64 dimensions
MANY_STEPS = {"reverse_diffusion", "ancestral", "pc", "annealed_langevin"}  # order 1 with a large constant: minutes at 100,000 samples


def options(method: str, process: str) -> dict[str, object]:
    return SLOW_TO_CONVERGE.get((method, process), CONVERGED[method])


def sampled(method: str, process: sd.Process, target: exam.Target, n: int, **how: object) -> torch.Tensor:
    """Samples from the exact p_T, so that the prior's own distance from it is not held against the method."""
    x_T = target.perturbed(process, process.T).sample(n, seed=1)
    return sd.solve(process.reverse(target.score(process)), x_T, method, seed=2, **how).x


def check(x: torch.Tensor, process: sd.Process, target: exam.Target) -> None:
    """KS and moments against p_eps: no p-value below 1e-3, corrected for the number of projections and entries."""
    law = target.perturbed(process, process.eps)
    moments = exam.moments(x, law)
    ks = exam.ks(x, law)
    assert min(ks.p_value, moments.mean.p_value, moments.covariance.p_value) > 1e-3, (ks, moments.mean, moments.covariance)


def test_every_method_is_examined() -> None:
    able = {row.name for row in sd.methods() if (row.facts.ode is not None or "additive" in row.facts.kinds) and "langevin" not in row.facts.needs}
    assert set(CONVERGED) == able


def cases() -> list[object]:
    slow = {(m, p): m in MANY_STEPS | IMPLICIT or (m, p) in SLOW_TO_CONVERGE for m in CONVERGED for p in THREE}
    return [pytest.param(*case, marks=[pytest.mark.slow] if is_slow else []) for case, is_slow in slow.items()]


@pytest.mark.parametrize(("method", "process"), cases())
def test_gaussian(method: str, process: str) -> None:
    """100,000 samples of N(0.5, 0.3^2): KS, and mean and variance within 3 standard errors."""
    target = exam.gaussian_1d(std=0.3, mean=0.5)
    x = sampled(method, PROCESSES[process], target, N, **options(method, process))
    check(x, PROCESSES[process], target)
    moments = exam.moments(x, target.perturbed(PROCESSES[process], PROCESSES[process].eps))
    assert abs(moments.mean.z) < 3 and abs(moments.covariance.z) < 3, moments


@pytest.mark.parametrize("method", ["euler_maruyama", "pc", "rk45", "ddim"])
def test_mixture_2d(method: str) -> None:
    """The quick version of the slow test below."""
    target, process = exam.mixture_2d(), PROCESSES["VP"]
    check(sampled(method, process, target, 10_000, **CONVERGED[method]), process, target)


@pytest.mark.slow
@pytest.mark.parametrize("target", [exam.mixture_2d(), exam.mixture_64d()], ids=["2d", "64d"])
@pytest.mark.parametrize(("method", "process"), cases())
def test_mixtures(method: str, process: str, target: exam.Target) -> None:
    """100,000 samples of mixtures in the plane and in 64 dimensions."""
    n = N // 50 if method in IMPLICIT else N
    check(sampled(method, PROCESSES[process], target, n, **options(method, process)), PROCESSES[process], target)


WRONG = {
    "score 3 % too large": lambda score: exam.scaled(score, 1.03),
    "score 3 % too small": lambda score: exam.scaled(score, 0.97),
    "time 3 % off": lambda score: exam.wrong_time(score, lambda t: 0.97 * t),
    "a smooth error of 10 %": lambda score: exam.noisy(score, 0.1),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_the_exam_fails_a_wrong_model(wrong: str) -> None:
    """The checks above have teeth: a slightly wrong score does not pass them."""
    target, process = exam.gaussian_1d(), PROCESSES["VP"]
    x = sd.solve(process.reverse(WRONG[wrong](target.score(process))), process.prior((N, 1), seed=1), "rk45", rtol=1e-4, atol=1e-4).x
    with pytest.raises(AssertionError):
        check(x, process, target)
