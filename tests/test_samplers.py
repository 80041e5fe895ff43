"""Samplers are claims about distributions: each method's samples against the exact law, by sdesolve.exam.

A solve starts from the exact p_T, so that the prior's own distance from it is not held against the method (VE's mean is 3 standard
errors of 100,000 samples away), and ends with p_eps, known in closed form.  Steps are so many that the method's own bias, known
without Monte-Carlo error from test_orders.py, is below one standard error of 100,000 samples on the Gaussian; a mixture's moments
are mostly those between its modes, and a quarter of the steps does.
"""

from __future__ import annotations

import pytest
import torch
from problems import PROCESSES, mixture_score
from torch import Tensor

import sdesolve as sd
from sdesolve import exam
from sdesolve.methods import make_method

N = 100_000
THREE = ("VP", "subVP", "VE")
TARGETS = {"gaussian": exam.gaussian_1d(std=0.3, mean=0.5), "2d": exam.mixture_2d(), "64d": exam.mixture_64d()}
THREE_ERRORS = 2.7e-3  # p-value of three standard errors; of the worst of many entries, corrected for their number
CELLS = 1 << 17  # numbers solved together: what fits the cache

FACTS = {
    row.name: row.facts
    for row in sd.methods()
    if (row.facts.ode is not None or "additive" in row.facts.kinds) and "langevin" not in row.facts.needs
}
STEPS: dict[str, dict[str, object]] = {  # on the Gaussian, a multiple of 4; of methods whose bias is of first order
    "euler_maruyama": {"steps": 1000},
    "euler_heun": {"steps": 4000},
    "reverse_diffusion": {"steps": 4000},
    "ancestral": {"steps": 4000, "grid": "log_snr"},
    "pc": {"steps": 2000, "grid": "log_snr", "snr": 0.1},
    "annealed_langevin": {"steps": 8000, "grid": "log_snr", "snr": 0.9},
    "euler": {"steps": 2000},
    "ddim": {"steps": 4000, "grid": "log_snr"},
}
EULER_ON_VE = {"steps": 16_000}  # the published finding too: on VE, the probability flow by Euler needs far more steps than the SDE
BIASED = {"ggf"}  # the published rule redraws rejected noise; test_adaptive_sde.py measures by how much it errs


def options(method: str, process: str, target: str) -> dict[str, object]:
    """What it takes to converge: many steps, or the default tolerance of an ODE method, which is fine enough."""
    facts = FACTS[method]
    if method == "adaptive":
        return {"rtol": 3e-3, "atol": 3e-3}
    if facts.ode is not None and facts.ode > 2:
        return {"steps": 200} if make_method(method).error_order is None else {}
    how = EULER_ON_VE if (method, process) == ("euler", "VE") else STEPS.get(method, {"steps": 1000})
    if target != "gaussian":
        how = {**how, "steps": int(how["steps"]) // 4}  # type: ignore[call-overload]
    if (method, process) == ("annealed_langevin", "subVP"):  # sigma_t falls below the data's width far faster than Langevin steps of that size move
        how = {**how, "interval": (1.0, float(PROCESSES["subVP"].sigma_inverse(0.02)))}
    return how


def sampled(method: str, process: sd.Process, target: exam.Target, n: int, **how: object) -> Tensor:
    """Samples from the exact p_T, a few rows at a time: a row does not depend on its batch."""
    x_T = target.perturbed(process, process.T).sample(n, seed=1)
    score = mixture_score(target, process) if target is TARGETS["64d"] else target.score(process)
    rows = torch.arange(n).split(max(1, CELLS // x_T[0].numel()))
    return torch.cat([sd.solve(process.reverse(score), x_T[ids], method, seed=2, sample_ids=ids, **how).x for ids in rows])


def check(x: Tensor, law: exam.Target) -> None:
    """Mean and covariance within three standard errors, and KS along random directions."""
    moments, ks = exam.moments(x, law), exam.ks(x, law)
    assert min(moments.mean.p_value, moments.covariance.p_value) > THREE_ERRORS and ks.p_value > 1e-3, (ks, moments.mean, moments.covariance)


def cases() -> list[object]:
    """Every registered method that can: in a few seconds on the Gaussian, the rest as slow tests."""

    def slow(method: str, process: str, target: str) -> bool:
        many_steps = method in STEPS and method != "euler_maruyama"
        return target != "gaussian" or many_steps or (FACTS[method].ode is None and process != "VP")

    every = [(m, p, t) for m in FACTS for p in THREE for t in TARGETS if m not in BIASED and TARGETS[t].event[0] <= (FACTS[m].largest or 64)]
    return [pytest.param(*case, marks=[pytest.mark.slow] if slow(*case) else []) for case in every]


@pytest.mark.parametrize(("method", "process", "target"), cases())
def test_law(method: str, process: str, target: str) -> None:
    """100,000 samples of N(0.5, 0.3^2), and of mixtures in the plane and in 64 dimensions."""
    how = options(method, process, target)
    p = PROCESSES[process]
    end = how["interval"][1] if "interval" in how else p.eps  # type: ignore[index]
    check(sampled(method, p, TARGETS[target], N, **how), TARGETS[target].perturbed(p, end))


def test_the_fast_score_is_the_exact_one() -> None:
    target, process = TARGETS["64d"], PROCESSES["VE"]
    t = torch.tensor([1e-5, 0.1, 0.5, 1.0], dtype=torch.float64).repeat_interleave(500)
    x = process.perturb(target.sample(2000), t, seed=0)
    exact = target.score(process)(x.double(), t)
    assert float(((mixture_score(target, process)(x, t) - exact).norm(dim=1) / exact.norm(dim=1)).max()) < 1e-4


@pytest.mark.parametrize("method", ["euler_maruyama", "pc", "rk45", "ddim"])
def test_mixture_2d(method: str) -> None:
    """The quick version of the slow cases above."""
    target, process = TARGETS["2d"], PROCESSES["VP"]
    check(sampled(method, process, target, 10_000, **options(method, "VP", "2d")), target.perturbed(process, process.eps))


WRONG = {
    "score 3 % too large": lambda score: exam.scaled(score, 1.03),
    "score 3 % too small": lambda score: exam.scaled(score, 0.97),
    "time 3 % off": lambda score: exam.wrong_time(score, lambda t: 0.97 * t),
    "a smooth error of 10 %": lambda score: exam.noisy(score, 0.1),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_the_exam_fails_a_wrong_model(wrong: str) -> None:
    """The checks above have teeth: a slightly wrong score does not pass them."""
    target, process = TARGETS["gaussian"], PROCESSES["VP"]
    x_T = target.perturbed(process, process.T).sample(N, seed=1)
    x = sd.solve(process.reverse(WRONG[wrong](target.score(process))), x_T, "rk45").x
    with pytest.raises(AssertionError):
        check(x, target.perturbed(process, process.eps))
