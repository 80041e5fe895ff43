"""A range of noise: where it starts and stops, what it starts from, and what it gains at few calls."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from problems import PROCESSES, GaussianTarget, mixture_score
from torch import Tensor

import sdesolve as sd
from sdesolve import exam
from sdesolve.grids import noise_ratio

EACH = pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES.keys())
MIXTURE = exam.mixture_2d()
STD = float(MIXTURE.variance.mean().sqrt())


@EACH
def test_the_ends_are_multiples_of_the_data_s_width(process: sd.Process) -> None:
    t0, t1 = sd.Range(data_std=0.5, first=30, last=0.1).interval(process)
    assert (noise_ratio(process, t0), noise_ratio(process, t1)) == pytest.approx((15.0, 0.05))
    assert sd.Range(data_std=0.5, first=1e6, last=1e-6).interval(process) == (process.T, process.eps)
    t0, t1 = sd.Range(data_std=0.5).interval(process, 10)
    assert (noise_ratio(process, t0), noise_ratio(process, t1)) == pytest.approx((20.0, 0.025))


@pytest.mark.parametrize(("how", "calls"), [({"nfe": 9}, 9), ({"steps": 4}, 9), ({"nfe": 8, "denoise": False}, 8), ({"steps": 4, "denoise": False}, 8), ({}, 1001)])
def test_the_range_widens_with_the_calls(how: dict[str, int], calls: int) -> None:
    """By default from 4 N to 1/2N standard deviations for N network calls, whichever way they are said; 100 to 1/100 where steps are chosen."""
    p, seen = sd.EDM(sigma_max=1e4), list[float]()
    problem = p.probability_flow(lambda x, t: seen.append(float(t[0])) or -x / (0.25 + t[:1] ** 2))
    sd.solve(problem, torch.ones(1, 1), "heun", interval=sd.Range(0.5), **how)
    assert (seen[0], min(seen)) == pytest.approx((2.0 * calls, max(0.25 / calls, p.eps)))
    seen.clear()
    sd.solve(problem, torch.ones(1, 1), "tsit5", interval=sd.Range(0.5))
    assert (seen[0], min(seen)) == pytest.approx((50.0, 0.005))


@EACH
def test_the_range_ends_where_the_problem_does(process: sd.Process) -> None:
    """At the problem's own eps, not the process's: the network is asked nothing below."""
    seen, eps = list[float](), 0.3 * process.T
    problem = process.probability_flow(lambda x, t: seen.append(float(t[0])) or 0 * x, eps=eps)
    sd.solve(problem, torch.ones(1, 2), "ddim", nfe=20, interval=sd.Range(data_std=0.5 * noise_ratio(process, eps)))
    assert min(seen) == pytest.approx(eps)


@EACH
def test_on_gaussian_data_the_start_is_exact(process: sd.Process) -> None:
    """From N(0, prior_std^2) exactly to p_t of N(0.5, 0.3^2), at no call: what the flow then makes of it is N(0.5, 0.3^2), by quantiles."""
    target = GaussianTarget(process)
    z = torch.linspace(-3, 3, 7, dtype=torch.float64)[:, None]
    solution = sd.solve(
        process.probability_flow(target.score), process.prior_std * z, "tsit5", interval=sd.Range(0.3, 0.5, first=2.0, last=0.1), rtol=1e-9, atol=1e-9, denoise=False
    )
    mean, std = target.law(sd.Range(0.3, 0.5, last=0.1).interval(process)[1])
    assert torch.allclose(solution.x, mean + std * z, rtol=1e-7, atol=1e-7 * process.prior_std)


def test_a_solve_over_a_range_is_a_solve_by_hand() -> None:
    p = sd.VPSDE()
    problem, x = p.reverse(mixture_score(MIXTURE, p)), p.prior((6, 2), seed=0, dtype=torch.float64)
    span = sd.Range(STD, MIXTURE.mean, first=8, last=0.2)
    t0, t1 = span.interval(p)
    start = p.alpha(t0) * MIXTURE.mean + (p.alpha(t0) ** 2 * STD**2 + p.sigma(t0) ** 2).sqrt() * x
    for method in ("ddim", "euler_maruyama", "pc"):
        by_range, by_hand = (
            sd.solve(problem, x, method, steps=5, grid="karras", interval=span, seed=3),
            sd.solve(problem, start, method, steps=5, grid="karras", interval=(t0, t1), seed=3, denoise=True),
        )
        assert torch.allclose(by_range.x, by_hand.x, rtol=1e-12) and by_range.nfe == by_hand.nfe
    assert sd.solve(problem, x, "ddim", nfe=6, interval=span).nfe == 6
    undenoised = sd.solve(problem, x, "ddim", nfe=6, interval=span, denoise=False)
    assert undenoised.nfe == 6 and undenoised.stats["steps"] == 6


@pytest.mark.parametrize("process", ["VP", "VE", "EDM"])
@pytest.mark.parametrize(("method", "gain"), [("ddim", 1.5), ("heun", 5.0)])
def test_a_range_is_better_than_the_whole_interval(method: str, gain: float, process: str) -> None:
    """At 10 calls on a mixture in the plane: the distance to where the flow takes each sample, on the better of two grids each."""
    p = PROCESSES[process]
    flow, x = p.probability_flow(mixture_score(MIXTURE, p)), p.prior((500, 2), seed=0, dtype=torch.float64)
    ends = sd.solve(flow, x, "tsit5", rtol=1e-5, atol=1e-5, denoise=True).x

    def error(**how: object) -> float:
        return min(float((sd.solve(flow, x, method, nfe=10, grid=grid, **how).x - ends).norm(dim=1).median()) for grid in ("karras", "uniform"))

    assert error(denoise=True) > gain * error(interval=sd.Range(STD, MIXTURE.mean, first=6))


def test_derivatives_pass_through_the_start() -> None:
    p = sd.VPSDE()
    problem = p.probability_flow(mixture_score(MIXTURE, p))
    x = p.prior((3, 2), seed=0, dtype=torch.float64)
    span = sd.Range(STD, MIXTURE.mean, first=8)

    def end(x: Tensor) -> Tensor:
        return sd.solve(problem, x, "ddim", steps=4, interval=span, gradient="backprop").x

    assert torch.autograd.gradcheck(end, x.requires_grad_())


def test_numbers_as_users_have_them() -> None:
    """x.std() and x.mean(0) as tensors, arrays and lists."""
    x = torch.tensor([0.5, -0.5]).expand(3, 2)
    plain = sd.solve(FLOW, x, "ddim", nfe=5, interval=sd.Range(0.5, torch.tensor([1.0, 2.0]))).x
    for std, mean in ((torch.tensor(0.5), [1.0, 2.0]), (np.float32(0.5), np.array([1.0, 2.0])), (0.5, torch.tensor([1, 2]))):
        assert torch.equal(sd.solve(FLOW, x, "ddim", nfe=5, interval=sd.Range(std, mean)).x, plain)  # type: ignore[arg-type]


P = sd.VPSDE()
FLOW, X = P.probability_flow(lambda x, t: -x), torch.ones(2, 3)
BAD: dict[str, tuple[Callable[[], object], str]] = {
    "no width": (lambda: sd.Range(0.0), "data_std=0.0; expected a finite number > 0"),
    "NaN": (lambda: sd.Range(0.5, first=float("nan")), "first=nan"),
    "a mean that is not finite": (lambda: sd.Range(0.5, torch.tensor([0.0, float("inf")])), "data_mean is not finite"),
    "the wrong way round": (lambda: sd.Range(0.5, first=0.1, last=20.0), "expected last < first, from noise to data"),
    "more noise than there is": (lambda: sd.Range(1e6, first=2.0, last=1.0).interval(P), "expected a process whose noise is wider"),
    "no noise levels": (lambda: sd.solve(sd.ODE(lambda x, t: -x), X, "euler", interval=sd.Range(0.5)), "this problem has none"),
    "a mean of text": (lambda: sd.Range(0.5, "x"), "data_mean is a str; expected a number or a tensor"),  # type: ignore[arg-type]
    "a first below the default last": (lambda: sd.solve(FLOW, X, "ddim", nfe=5, interval=sd.Range(1.0, first=0.05)), "first=0.05 and last=0.1.*one is the default"),
    "a last above the default first": (lambda: sd.solve(FLOW, X, "ddim", nfe=1, interval=sd.Range(1.0, last=9.0)), "first=4 and last=9.*one is the default"),
    "a mean for each row": (lambda: sd.solve(FLOW, X, "ddim", steps=3, interval=sd.Range(0.5, torch.zeros(2, 3))), "expected one that broadcasts"),
    "a mean of a longer shape": (lambda: sd.solve(FLOW, X, "ddim", steps=3, interval=sd.Range(0.5, torch.zeros(4))), "expected one that broadcasts"),
    "a width for each coordinate": (lambda: sd.Range(torch.ones(3)), "expected a finite number > 0"),  # type: ignore[arg-type]
    "a mean of another shape": (lambda: sd.solve(FLOW, X, "ddim", steps=3, interval=sd.Range(0.5, torch.zeros(4, 2, 3))), "expected one that broadcasts"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_range_is_refused(case: str) -> None:
    attempt, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        attempt()
