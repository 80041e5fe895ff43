"""A range of noise: where it starts and stops, what it starts from, and what it gains at few calls."""

from __future__ import annotations

import math
import warnings
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
    assert (noise_ratio(process, t0), noise_ratio(process, t1)) == pytest.approx((20.0, 0.035))


@pytest.mark.parametrize(("how", "calls"), [({"nfe": 9}, 9), ({"steps": 4}, 9), ({"nfe": 8, "denoise": False}, 8), ({"steps": 4, "denoise": False}, 8), ({}, 1001)])
def test_the_range_widens_with_the_calls(how: dict[str, int], calls: int) -> None:
    """By default from 4 N to 0.7/N standard deviations for N network calls, whichever way they are said; 100 to 1/100 where steps are chosen."""
    p, seen = sd.EDM(sigma_max=1e4), list[float]()
    problem = p.probability_flow(lambda x, t: seen.append(float(t[0])) or -x / (0.25 + t[:1] ** 2))
    sd.solve(problem, torch.ones(1, 1), "heun", interval=sd.Range(0.5), **how)
    assert (seen[0], min(seen)) == pytest.approx((2.0 * calls, max(0.35 / calls, p.eps)))
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


TURN, _ = torch.linalg.qr(torch.randn(4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
VARIANCES = torch.tensor([9.0, 1.0, 0.25, 0.25], dtype=torch.float64)
ALONG = exam.Gaussian([0.5, -1.0, 0.0, 2.0], cov=(TURN * VARIANCES) @ TURN.T)
DIRECTIONS = (TURN * VARIANCES.sqrt()).T[:2]


@EACH
def test_with_directions_it_is_exact_for_every_gaussian(process: sd.Process) -> None:
    """As above, in four dimensions with variances 9, 1 and twice 1/4, of which the first two have directions and the others what is left."""
    z = torch.randn(5, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    span = sd.Range(float(VARIANCES.mean().sqrt()), ALONG.mean, first=1.0, last=0.1, directions=DIRECTIONS)
    flow = process.probability_flow(ALONG.score(process))
    solution = sd.solve(flow, process.prior_std * z, "tsit5", interval=span, rtol=1e-9, atol=1e-9, denoise=False)
    t = span.interval(process)[1]
    alpha, sigma = process.alpha(t), process.sigma(t)
    expected = alpha * ALONG.mean + (z @ TURN) * (alpha**2 * VARIANCES + sigma**2).sqrt() @ TURN.T
    assert torch.allclose(solution.x, expected, rtol=1e-7, atol=1e-7 * process.prior_std)


def test_what_is_read_from_data_is_theirs() -> None:
    x = ALONG.sample(200_000, seed=0, dtype=torch.float64)
    span = sd.Range.of(x, directions=2)
    assert span.directions is not None and isinstance(span.data_mean, Tensor)
    assert torch.allclose(span.data_mean, ALONG.mean, atol=0.03) and span.data_std == pytest.approx(float(VARIANCES.mean().sqrt()), rel=0.01)
    assert torch.allclose(span.directions.T @ span.directions, DIRECTIONS.T @ DIRECTIONS, atol=0.1)


@pytest.mark.parametrize(("n", "d"), [(300, 40), (60, 1100), (1500, 1100)])
def test_directions_are_principal_ones_for_few_coordinates_and_many(n: int, d: int) -> None:
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(n, 3, generator=generator, dtype=torch.float64) @ (torch.tensor([[5.0], [3.0], [2.0]]) * torch.randn(3, d, generator=generator)).double() + 7.0
    found = sd.Range.of(x.reshape(n, 1, d), directions=2).directions
    assert found is not None and found.shape == (2, 1, d)
    some = x if d <= 1024 or n <= 1024 else x[torch.linspace(0, n - 1, 1024).round().long()]
    _, s, v = torch.linalg.svd(x - x.mean(0), full_matrices=False)
    lengths, near = found[:, 0].norm(dim=1), 1e-6 if len(some) == n else 0.05
    assert torch.allclose(lengths, s[:2] / n**0.5, rtol=near)
    assert float(((found[:, 0] @ v[:2].T).abs().diagonal() / lengths).min()) > 1 - near
    none = sd.Range.of(x.reshape(n, 1, d), directions=0)
    assert none.directions is None and none.data_std == pytest.approx(float((x - x.mean(0)).square().mean().sqrt()))


@pytest.mark.parametrize("seed", range(6))
def test_a_single_direction_of_many_samples_has_all_of_their_variance(seed: int) -> None:
    """Read from a part of the rows, which may scatter more than all of them do."""
    generator = torch.Generator().manual_seed(seed)
    span = sd.Range.of(torch.randn(3000, 1, generator=generator) * torch.randn(1, 1100, generator=generator))
    assert span.directions is not None and float(span.directions.norm()) == pytest.approx(span.data_std * 1100**0.5, rel=1e-4)


def test_it_prints_itself_in_a_line() -> None:
    """Not all of its numbers, which errors would be made of."""
    assert repr(sd.Range(0.5, torch.tensor(0.25), first=2.0)) == "Range(data_std=0.5, data_mean=0.25, first=2.0, last=None)"
    of_images = sd.Range.of(torch.randn(90, 3, 8, 8, generator=torch.Generator().manual_seed(0)) + 1)
    assert repr(of_images).endswith("data_mean=<3x8x8 numbers>, first=None, last=None, directions=<22 of them>)")


def test_few_samples_have_few_directions() -> None:
    found = sd.Range.of(torch.randn(12, 50, generator=torch.Generator().manual_seed(0))).directions
    assert found is not None and len(found) == 3
    flat = sd.Range.of(torch.randn(200, 1, generator=torch.Generator().manual_seed(0)) * torch.ones(6)).directions
    assert flat is not None and len(flat) == 1  # there is no other


@EACH
def test_with_directions_it_starts_at_multiples_of_the_first(process: sd.Process) -> None:
    span = sd.Range(float(VARIANCES.mean().sqrt()), ALONG.mean, directions=0.1 * DIRECTIONS)
    for calls, first in ((4, 1.8), (15, 8.5), (60, 121.0), (None, 100.0)):
        assert noise_ratio(process, span.interval(process, calls)[0]) == pytest.approx(min(0.3 * first, noise_ratio(process, process.T)))


@pytest.mark.parametrize(("draws", "order"), [(None, 3.0), (100, 1.0)])
def test_what_a_start_leaves_out_falls_as_a_power_of_its_noise(draws: int | None, order: float) -> None:
    """In units of that noise: as the third with the law's own mean and width, by its third cumulant; as the first with those of a few draws.  Beside the flow from far out."""
    law, p = exam.gaussian_mixture([0.3, 0.7], [[-1.0], [0.8]], [0.3, 0.5]), sd.VESDE(sigma_max=3000.0)
    exact = sd.Range(float(law.variance.sqrt()), law.mean)
    span = exact if draws is None else sd.Range.of(law.sample(draws, seed=1, dtype=torch.float64), directions=0)
    x = p.prior((100, 1), seed=0, dtype=torch.float64)
    away = []
    for first in (4.0, 8.0):
        t = sd.Range(exact.data_std, first=first).interval(p)[0]
        flowed = sd.solve(p.probability_flow(law.score(p)), exact.start(p, x, p.T), "dop853", rtol=1e-9, atol=1e-9, interval=(p.T, t)).x
        away.append(float((span.start(p, x, t) - flowed).abs().mean() / p.sigma(t)))
    assert math.log2(away[0] / away[1]) == pytest.approx(order, abs=0.15)


def test_the_more_calls_the_farther_out_a_start_is_best() -> None:
    """From moments of a thousand draws: the mean distance to where the flow takes each, beside a start that moves out as N does, and beside one at T."""
    law, p = exam.mixture_2d(), sd.VPSDE()
    data, flow, x = law.sample(1000, seed=1, dtype=torch.float64), p.probability_flow(law.score(p)), p.prior((500, 2), seed=0, dtype=torch.float64)
    widths = sd.Range.of(data).widest / sd.Range.of(data).data_std
    ends = sd.solve(flow, x, "tsit5", rtol=1e-6, atol=1e-6, interval=sd.Range.of(data, first=1e9, last=1e-9)).x

    def error(calls: int, first: float | None = None) -> float:
        return float((sd.solve(flow, x, "auto", nfe=calls, interval=sd.Range.of(data, first=first)).x - ends).norm(dim=1).mean())

    assert error(10) < 0.5 * error(10, 1e9)
    for calls in (50, 100):
        assert error(calls) < 0.5 * error(calls, widths * (1 + calls / 4))


@pytest.mark.parametrize("calls", [8, 10])
def test_with_directions_fewer_calls_are_lost_on_wide_noise(calls: int) -> None:
    """On a mixture in 64 dimensions whose strongest direction has five times its width: the distance to where the flow takes each sample."""
    law, p = exam.mixture_64d(), sd.VPSDE()
    flow, x = p.probability_flow(law.score(p)), p.prior((200, 64), seed=0, dtype=torch.float64)
    ends = sd.solve(flow, x, "tsit5", rtol=1e-5, atol=1e-5, denoise=True).x
    std, directions = float(law.variance.mean().sqrt()), sd.Range.of(law.sample(8192, seed=1, dtype=torch.float64)).directions

    def error(**how: object) -> float:
        span = sd.Range(std, law.mean, **how)  # type: ignore[arg-type]
        return float((sd.solve(flow, x, "deis", nfe=calls, variant="log_rho", grid="karras", interval=span).x - ends).norm(dim=1).median())

    assert min(error(), error(first=10.0)) > 1.4 * error(directions=directions)


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


def test_a_start_in_noise_narrower_than_the_data_is_warned_of() -> None:
    """Gaussian data are still right there, where a draw of the prior is far too narrow; two modes with most of the mass in one are not."""
    p, x = sd.VESDE(sigma_max=50.0), sd.VESDE(sigma_max=50.0).prior((2000, 1), seed=0, dtype=torch.float64)

    def end(law: exam.Mixture, span: sd.Range) -> Tensor:
        return sd.solve(p.probability_flow(law.score(p)), x, "auto", nfe=20, interval=span).x

    one, two = exam.gaussian_mixture([1.0], [[0.0]], [300.0]), exam.gaussian_mixture([0.8, 0.2], [[-150.0], [600.0]], [15.0, 15.0])
    with pytest.warns(sd.SolveWarning, match=r"data are 300 wide and VESDE\(.* sigma/alpha = 50 at most"):
        assert float(end(one, sd.Range(300.0)).std()) == pytest.approx(300, rel=0.03)
    with pytest.warns(sd.SolveWarning, match="is no Gaussian, as the start is"):
        assert abs(float((end(two, sd.Range.of(two.sample(2000, seed=1, dtype=torch.float64))) > 200).double().mean()) - 0.2) > 0.02
    long = torch.tensor([[60.0, 0.0]], dtype=torch.float64)
    with pytest.warns(sd.SolveWarning, match="data are 60 wide"):
        sd.solve(p.probability_flow(lambda x, t: -x), x.expand(-1, 2), "ddim", nfe=5, interval=sd.Range(45.0, directions=long))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sd.solve(p.probability_flow(lambda x, t: 0 * x), x, "ddim", nfe=5, interval=sd.Range(49.0))


def test_times_of_one_s_own_say_where_a_range_starts_and_stops() -> None:
    """As far as it doesn't itself; the start is moved there, for a method on times, one that brings them, and "auto" alike."""
    p = sd.VPSDE()
    problem, x = p.probability_flow(mixture_score(MIXTURE, p)), p.prior((6, 2), seed=0, dtype=torch.float64)
    span, ts = sd.Range(STD, MIXTURE.mean), [0.6, 0.3, 0.1, 0.02]
    by_hand = sd.solve(problem, span.start(p, x, 0.6), "ddim", grid=ts, interval=(0.6, 0.02), denoise=True)
    for how in ({"method": "ddim", "grid": ts}, {"method": "ddim", "grid": sd.Grid(tuple(ts))}, {"method": sd.solver_card("ddim", p, ts)}):
        by_range = sd.solve(problem, x, interval=span, **how)  # type: ignore[arg-type]
        assert torch.allclose(by_range.x, by_hand.x, rtol=1e-12) and by_range.nfe == by_hand.nfe == 4
    assert sd.solve(problem, x, "auto", grid=ts, interval=span, save="all").ts.tolist() == ts
    for ends in ({"first": noise_ratio(p, 0.6) / STD}, {"last": noise_ratio(p, 0.02) / STD}):
        assert torch.allclose(sd.solve(problem, x, "ddim", grid=ts, interval=sd.Range(STD, MIXTURE.mean, **ends)).x, by_hand.x, rtol=1e-6)  # type: ignore[arg-type]
    for bad, given in ((sd.Range(STD, first=1.0), ts), (span, [1.0, 0.5, 1e-4]), (span, ts[::-1])):
        with pytest.raises(ValueError, match=r"expected times from noise to data within \(1.0, 0.001\), and a Range without first and last"):
            sd.solve(problem, x, "ddim", grid=given, interval=bad)


def test_times_of_one_s_own_are_counted() -> None:
    """Where the range's own ends are what is meant, they are those for as many calls as the times make."""
    p = sd.VPSDE()
    problem, span = p.probability_flow(lambda x, t: -x), sd.Range(0.5, last=1e-9)
    with pytest.raises(ValueError, match=rf"the interval is \({span.interval(p, 4)[0]}, 0.001\)"):
        sd.solve(problem, torch.ones(1, 2), "ddim", grid=[0.6, 0.3, 0.1, 1e-4], interval=span)


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
    "directions that lean": (lambda: sd.Range(1.0, directions=torch.tensor([[1.0, 0.0, 0.0], [0.6, 0.8, 0.0]])), "not orthogonal, two of them have a cosine of 0.6"),
    "directions that are unit vectors": (lambda: sd.Range(0.1, directions=torch.eye(3)[:2]), "a variance of 2 in all, and data_std=0.1 in 3 coordinates one of 0.03"),
    "directions without length": (lambda: sd.Range(1.0, directions=torch.zeros(1, 3)), "longer than 0"),
    "no directions": (lambda: sd.Range(1.0, directions=torch.zeros(0, 3)), r"directions is \(0, 3\); expected"),
    "directions of text": (lambda: sd.Range(1.0, directions="x"), "directions is str; expected"),  # type: ignore[arg-type]
    "directions of another shape": (lambda: sd.solve(FLOW, X, "ddim", steps=3, interval=sd.Range(1.0, directions=torch.eye(4)[:2])), r"directions have shape \(2, 4\)"),
    "data that are one": (lambda: sd.Range.of(torch.zeros(1, 3)), r"expected \(n, \*event\)"),
    "data that are numbers": (lambda: sd.Range.of(torch.zeros(5)), r"expected \(n, \*event\)"),
    "data that are not finite": (lambda: sd.Range.of(torch.tensor([[0.0], [float("nan")]])), "two finite samples"),
    "data that are all the same": (lambda: sd.Range.of(torch.ones(5, 3)), "data_std=0.0; expected a finite number > 0"),
    "a mean of another shape": (lambda: sd.solve(FLOW, X, "ddim", steps=3, interval=sd.Range(0.5, torch.zeros(4, 2, 3))), "expected one that broadcasts"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_range_is_refused(case: str) -> None:
    attempt, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        attempt()


@pytest.mark.parametrize("x", [torch.zeros(4, 3, dtype=torch.uint8), np.zeros((4, 3)), [[0.0], [1.0]]])
def test_data_that_are_no_tensor_of_floats_are_refused(x: object) -> None:
    with pytest.raises(TypeError, match="expected samples as a tensor of floats"):
        sd.Range.of(x)  # type: ignore[arg-type]
