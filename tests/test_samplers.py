"""Samplers are claims about distributions: each method's samples against the exact law, by sdesolve.exam.

A solve starts from the exact p_T, so that the prior's own distance from it is not held against the method (VE's mean is 3 standard
errors of 100,000 samples away), and ends with p_eps, known in closed form.  Steps are so many that what is left is chance: the
method's own bias, which on a Gaussian has no Monte-Carlo error, is below 0.7 standard errors of 100,000 samples
(test_the_steps_are_enough).  On the mixtures the same holds of the law in which each component has the bias of its own Gaussian, in
64 dimensions counted by what it does to the corrected p-value: 1 % more failures at the most.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from convergence import gaussian_outcome
from problems import PROCESSES, GaussianTarget, mixture_score
from torch import Tensor

import sdesolve as sd
from sdesolve import exam
from sdesolve.grids import make_grid
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
FIRST_ORDER = {"gaussian": 2000, "2d": 1500, "64d": 1000}  # steps of a method whose bias is of first order
ONE_BY_ONE = {"restart", "dpm_solver_v3"}  # whose steps cannot all be probed at once, as some are followed by others, or remember them
BIASED = {"ggf"}  # the published rule redraws rejected noise; test_adaptive_sde.py measures by how much it errs


def equal_steps(
    p: sd.Process, interval: tuple[float, float], steps: int, of: Callable[[Tensor], Tensor], inverse: Callable[[Tensor], Tensor]
) -> dict[str, Any]:
    """A walk along the interval at equal steps of a function of sigma/alpha."""
    first, last = (of((-0.5 * p.log_snr(t)).exp()).item() for t in interval)
    ratios = inverse(torch.linspace(first, last, steps + 1, dtype=torch.float64))
    return {"interval": interval, "grid": [interval[0], *p.log_snr_inverse(-2 * ratios.log()).tolist()[1:-1], interval[1]]}


def short_steps_about(ratio: float, p: sd.Process, interval: tuple[float, float], steps: int) -> dict[str, Any]:
    """Equal steps of arctan(sigma / ratio alpha): a first-order method errs where the noise is as wide as what it has to tell apart."""
    return equal_steps(p, interval, steps, lambda r: (r / ratio).atan(), lambda u: ratio * u.tan())


def langevin_walks(p: sd.Process, target: str) -> list[dict[str, Any]]:
    """The corrector alone: walks with small steps while the modes exchange samples, then with larger ones, the more the less noise there is.

    Each step forgets a share of order snr^2 of the past, and errs by as much; the shares of the modes err by d snr^2.  In 64 dimensions
    that takes snr = 0.05 and 25,000 steps, 40 minutes for the three processes: there it starts where the modes have parted.
    """
    parted = p.log_snr_inverse(-2 * math.log(1.0 if target == "64d" else 0.25)).item()
    end = p.sigma_inverse(0.05 if (target, p) == ("64d", PROCESSES["subVP"]) else 0.02).item()  # where the steps still move the data
    last = {**equal_steps(p, (parted, end), 1500, lambda r: r**-2, lambda u: u**-0.5), "snr": 0.6}
    return [last] if target == "64d" else [{**short_steps_about(0.5, p, (p.T, parted), 4000), "snr": 0.2}, last]


def stretches(p: sd.Process, interval: tuple[float, float], number: int, steps: int) -> list[dict[str, Any]]:
    """One walk after the other, equal in log_snr: reversible Heun's second state, y, starts anew from the first in each.

    A step multiplies y - x by -exp(-asinh z) where it multiplies x by exp(asinh z), z = h df/dx: what the equation contracts, here 1e3 to
    3e5 times from T to eps, y - x grows by.  On a linear score that hardly touches x, but on a mixture y is soon in another mode than x,
    where 250 steps from T to eps leave it 10 to 1e4 away.  In 20 stretches of 25 steps it stays within a tenth of a standard deviation.
    """
    ends = make_grid("log_snr", p, *interval, number).ts
    return [{"interval": pair, "steps": steps, "grid": "log_snr"} for pair in itertools.pairwise(ends)]


def walks(method: str, process: str, target: str) -> list[dict[str, Any]]:
    """What it takes to converge, as options of one solve after the other: many steps, or the default tolerance of an ODE method, which is fine enough."""
    p, facts = PROCESSES[process], FACTS[method]
    if method == "annealed_langevin":
        return langevin_walks(p, target)
    if method == "reversible_heun":
        return stretches(p, (p.T, p.eps), 20, steps=25)
    return [{"interval": (p.T, p.eps), **options(method, process, target, facts.ode or facts.weak["additive"])}]


def options(method: str, process: str, target: str, order: float) -> dict[str, Any]:
    """The steps or the tolerance."""
    p, steps = PROCESSES[process], FIRST_ORDER[target]
    if method == "adaptive":
        return {"rtol": 3e-3, "atol": 3e-3}
    if method == "rodas5p" and target == "64d":  # each step solves 8 times 64 equations a row
        return {"rtol": 1e-3, "atol": 1e-3}
    if method == "restart":
        return {"steps": 250, "grid": "log_snr", "intervals": [(0.06, 0.3, 2, 30)]}
    if order > 2:
        return {} if make_method(method).error_order else {"steps": 100, "grid": "log_snr"}
    if order == 2:
        return {"steps": 250, "grid": "log_snr"}
    if method == "euler":  # the published finding too: on VE, the probability flow by Euler needs far more steps than the SDE
        return {"steps": steps * (10 if process == "VE" else 1), "grid": "log_snr"}
    grid = short_steps_about(0.7 if target == "64d" else 0.4, p, (p.T, p.eps), steps // 2 if method == "pc" else steps)
    return {**grid, "snr": 0.1} if method == "pc" else grid


def sampled(method: str, process: str, target: str, n: int) -> tuple[Tensor, exam.Target]:
    """Samples that start from the exact law, a few rows at a time: a row does not depend on its batch; and the law that they should end with."""
    p, law, legs = PROCESSES[process], TARGETS[target], walks(method, process, target)
    start, end = legs[0]["interval"][0], legs[-1]["interval"][1]
    x = law.perturbed(p, start).sample(n, seed=1)
    problem = p.reverse(mixture_score(law, p) if isinstance(law, exam.Mixture) else law.score(p))
    parts = []
    for ids in torch.arange(n).split(max(1, CELLS // x[0].numel())):
        part = x[ids]
        for leg, how in enumerate(legs):
            part = sd.solve(problem, part, method, seed=2 + leg, sample_ids=ids, **how).x
        parts.append(part)
    return torch.cat(parts), law.perturbed(p, end)


def check(x: Tensor, law: exam.Target) -> None:
    """Mean and covariance within three standard errors, and KS along random directions."""
    moments, ks = exam.moments(x, law), exam.ks(x, law)
    assert min(moments.mean.p_value, moments.covariance.p_value) > THREE_ERRORS and ks.p_value > 1e-3, (ks, moments.mean, moments.covariance)


def cases() -> list[object]:
    """Every registered method that can: in a few seconds on the Gaussian, the rest as slow tests."""

    def slow(method: str, process: str, target: str) -> bool:
        many_steps = method != "euler_maruyama" and 1 in (FACTS[method].ode, FACTS[method].weak.get("additive"))
        return target != "gaussian" or many_steps or (FACTS[method].ode is None and process != "VP")

    every = [(m, p, t) for m in FACTS for p in THREE for t in TARGETS if m not in BIASED and TARGETS[t].event[0] <= (FACTS[m].largest or 64)]
    return [pytest.param(*case, marks=[pytest.mark.slow] if slow(*case) else []) for case in every]


@pytest.mark.parametrize(("method", "process", "target"), cases())
def test_law(method: str, process: str, target: str) -> None:
    """100,000 samples of N(0.5, 0.3^2), and of mixtures in the plane and in 64 dimensions."""
    check(*sampled(method, process, target, N))


@pytest.mark.parametrize("process", THREE)
@pytest.mark.parametrize("method", [m for m in FACTS if not make_method(m).chooses_steps and m not in ONE_BY_ONE])
def test_the_steps_are_enough(method: str, process: str) -> None:
    """The biases of mean and variance on N(0.5, 0.3^2) are below 0.7 standard errors of 100,000 samples, in closed form."""
    p, law = PROCESSES[process], None
    for how in walks(method, process, "gaussian"):
        law = gaussian_outcome(method, p, start=law, **how)
    mean, std = law
    exact_mean, exact_std = GaussianTarget(p).law(how["interval"][1])
    assert abs(mean - exact_mean) < 0.7 * exact_std / math.sqrt(N)
    assert abs(std**2 - exact_std**2) < 0.7 * exact_std**2 * math.sqrt(2 / N)


@pytest.mark.parametrize("name", ["2d", "64d"])
def test_the_fast_score_is_the_exact_one(name: str) -> None:
    target, process = TARGETS[name], PROCESSES["VE"]
    t = torch.tensor([1e-5, 0.1, 0.5, 1.0], dtype=torch.float64).repeat_interleave(500)
    x = process.perturb(target.sample(2000), t, seed=0)
    exact = target.score(process)(x.double(), t)
    assert float(((mixture_score(target, process)(x, t) - exact).norm(dim=1) / exact.norm(dim=1)).max()) < 1e-4


@pytest.mark.parametrize("method", ["euler_maruyama", "reversible_heun", "pc", "rk45", "ddim"])
def test_mixture_2d(method: str) -> None:
    """The quick version of the slow cases above."""
    check(*sampled(method, "VP", "2d", 10_000))


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
