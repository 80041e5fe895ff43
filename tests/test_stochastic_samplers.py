"""Stochastic and single-step samplers: their published algorithms step by step, and every noise level between ODE and SDE."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import mpmath
import pytest
import torch
from convergence import TwoModes, flow, gaussian_outcome, law_on_two_modes, slope, strong_on_the_reverse_sde, weak_on_two_modes
from problems import PROCESSES, GaussianTarget, mixture_score
from test_no_sync import NoReads
from torch import Tensor

import sdesolve as sd
from sdesolve import exam
from sdesolve.correctors import Langevin
from sdesolve.grids import Grid, make_grid
from sdesolve.methods import METHODS, make_method
from sdesolve.methods.linear import LinearSampler
from sdesolve.methods.predictor_corrector import PredictorCorrector
from sdesolve.noise import MOVE, SeededNormals, SeededStep

ALL = pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES.keys())
SEED, IDS = 7, range(3)
UNEVEN = (-2.0, -1.1, -0.6, 0.7, 1.3, 2.5)
"""Half log signal-to-noise ratios of a grid of five steps."""


def level(p: sd.Process, t: float) -> float:
    """sigma/alpha."""
    return math.exp(-0.5 * float(p.log_snr(t)))


def at_levels(p: sd.Process, half_log_snr: Sequence[float] = UNEVEN) -> list[float]:
    return [float(p.log_snr_inverse(2 * value)) for value in half_log_snr]


def solved(method: str, p: sd.Process, ts: Sequence[float], **options: Any) -> tuple[Tensor, Tensor, sd.Solution, Callable[[Tensor, float], Tensor]]:
    """The start, the noise (steps, moves, *x), the solution along ``ts`` and E[x_0 | x], all in float64 on a nonlinear score."""
    x = float(p.sigma(ts[0])) * torch.randn(3, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    problem = p.reverse(TwoModes(p).score)
    solution = sd.solve(problem, x, method, grid=ts, interval=(ts[0], ts[-1]), seed=SEED, **options)
    source = SeededNormals(SEED, IDS, (2,), dtype=torch.float64, device="cpu", nodes=len(ts) - 1)
    noise = torch.stack([torch.stack([source.normal(i, move * MOVE) for move in range(3)]) for i in range(len(ts) - 1)])
    return x, noise, solution, problem.score.denoise


# -- the published algorithms, with coefficients by quadrature ------------------------------------------------------------------


def adams(lam: Sequence[float], new: float, through: Sequence[float], eta: float) -> list[float]:
    """(1 + eta) int e^((1 + eta)(u - new)) l_j(u) du from lam[0] to new, for the Lagrange basis on ``through``."""

    def weight(j: int) -> float:
        def integrand(u: Any) -> Any:
            others = [(u - a) / (through[j] - a) for i, a in enumerate(through) if i != j]
            return (1 + eta) * mpmath.exp((1 + eta) * (u - new)) * mpmath.fprod(others)

        return float(mpmath.quad(integrand, [lam[0], new]))

    return [weight(j) for j in range(len(through))]


def weighed(weights: Sequence[float], outputs: Sequence[Tensor]) -> Any:
    return sum(w * d for w, d in zip(weights, outputs, strict=True))


@ALL
@pytest.mark.parametrize("tau", [0.0, 0.7, lambda t: 0.6 + 0.3 * math.cos(20 * t)], ids=["0", "0.7", "of t"])
@pytest.mark.parametrize("orders", [(1, 0), (1, 2), (2, 2), (3, 4), (3, 2), (2, 1), (2, 4)])
def test_sa_solver_is_its_algorithm(orders: tuple[int, int], tau: float | Callable[[float], float], process: sd.Process) -> None:
    """Predict, call, correct with the same noise; the last state is predicted."""
    predictor, corrector = orders
    ts = at_levels(process)
    x, noise, solution, denoise = solved("sa_solver", process, ts, predictor_order=predictor, corrector_order=corrector, tau=tau)
    lam, alpha, sigma = list(UNEVEN), [float(process.alpha(t)) for t in ts], [float(process.sigma(t)) for t in ts]
    outputs = [denoise(x, ts[0])]  # newest first
    for i in range(5):
        past, h, eta = lam[i::-1], lam[i + 1] - lam[i], (tau(ts[i]) if callable(tau) else tau) ** 2
        base = sigma[i + 1] / sigma[i] * math.exp(-eta * h) * x + sigma[i + 1] * math.sqrt(1 - math.exp(-2 * eta * h)) * noise[i, 0]
        through = past[:predictor]
        x = base + alpha[i + 1] * weighed(adams(past, lam[i + 1], through, eta), outputs[: len(through)])
        outputs.insert(0, denoise(x, ts[i + 1]))
        if corrector and i < 4:
            through = lam[i + 1 :: -1][:corrector]
            x = base + alpha[i + 1] * weighed(adams(past, lam[i + 1], through, eta), outputs[: len(through)])
    assert solution.nfe == 5
    assert torch.allclose(solution.x, x, rtol=1e-11, atol=1e-12)


@ALL
@pytest.mark.parametrize(("weights", "eta", "r"), [("phi1", 1.0, 0.5), ("phi2", 1.0, 0.5), ("phi2", 0.4, 0.5), ("phi1", 0.0, 0.5), ("phi2", 1.0, 0.3), ("phi1", 1.0, 1.0)])
def test_seeds_2_is_its_algorithm(weights: str, eta: float, r: float, process: sd.Process) -> None:
    """Both points are reached from the start of the step, with the noise of the first carried along to the second.  [Gonzalez et al. 2023]"""
    ts = at_levels(process)
    x, noise, solution, denoise = solved("seeds", process, ts, weights=weights, eta=eta, r=r)
    for i in range(5):
        h, (z1, z2, _) = UNEVEN[i + 1] - UNEVEN[i], noise[i]
        u = float(process.log_snr_inverse(2 * (UNEVEN[i] + r * h)))
        ratios = [float(process.sigma(t)) / float(process.sigma(ts[i])) for t in (u, ts[i + 1])]
        alphas, sigmas = ([float(f(t)) for t in (u, ts[i + 1])] for f in (process.alpha, process.sigma))
        d = denoise(x, ts[i])
        inner = ratios[0] * math.exp(-r * eta * h) * x - alphas[0] * math.expm1(-r * (1 + eta) * h) * d + sigmas[0] * math.sqrt(-math.expm1(-2 * r * eta * h)) * z1
        later, span = denoise(inner, u), (1 + eta) * h
        phi1, phi2 = -math.expm1(-span) / span, (math.exp(-span) - 1 + span) / span**2
        share = 0.5 * phi1 / r if weights == "phi1" else phi2 / r
        drift = alphas[1] * span * ((phi1 - share) * d + share * later)
        kick = math.exp((r - 1) * eta * h) * math.sqrt(-math.expm1(-2 * r * eta * h)) * z1 + math.sqrt(-math.expm1(2 * (r - 1) * eta * h)) * z2
        x = ratios[1] * math.exp(-eta * h) * x + drift + sigmas[1] * kick
    assert solution.nfe == 10
    assert torch.allclose(solution.x, x, rtol=1e-10, atol=1e-11)


@ALL
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_three_stages_are_their_algorithm(eta: float, process: sd.Process) -> None:
    """DPM-Solver-3 with r = 1/3, 2/3 on E[x_0 | x], and SEEDS-3 with three noises chained."""
    ts = at_levels(process)
    x, noise, solution, denoise = solved("seeds", process, ts, stages=3, eta=eta)
    for i in range(5):
        h = UNEVEN[i + 1] - UNEVEN[i]
        lam = [UNEVEN[i] + share * h for share in (0, 1 / 3, 2 / 3, 1)]
        times = [ts[i], *(float(process.log_snr_inverse(2 * v)) for v in lam[1:3]), ts[i + 1]]
        start, outputs, kick = x, [denoise(x, ts[i])], torch.zeros_like(x)
        for k in (1, 2, 3):  # through the start, and the point before where there is one
            through = [lam[0]] if k == 1 else [lam[0], lam[k - 1]]
            part = weighed(adams(lam, lam[k], through, eta), outputs if k == 1 else [outputs[0], outputs[-1]])
            decay = math.exp(-eta * h / 3)
            kick = decay * kick + math.sqrt(1 - decay**2) * noise[i, k - 1]
            sigma = float(process.sigma(times[k]))
            x = sigma / float(process.sigma(ts[i])) * math.exp(-eta * (lam[k] - lam[0])) * start + float(process.alpha(times[k])) * part + sigma * kick
            if k < 3:
                outputs.append(denoise(x, times[k]))
    assert solution.nfe == 15
    assert torch.allclose(solution.x, x, rtol=1e-10, atol=1e-11)


def er_scale(eta: float | str) -> Callable[[Any], Any]:
    return (lambda s: s * (mpmath.exp(s ** mpmath.mpf("0.3")) + 10)) if eta == "er" else (lambda s: s ** (1 + mpmath.mpf(eta)))


@pytest.mark.parametrize("process", [PROCESSES["VP"], PROCESSES["EDM"]], ids=["VP", "EDM"])
@pytest.mark.parametrize("eta", ["er", 0.0, 1.0])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_er_sde_is_its_algorithm(order: int, eta: float | str, process: sd.Process) -> None:
    """In y = x/alpha and s = sigma/alpha, by mpmath; with the first step corrected as soon as there are two outputs to do it with."""
    ts, scale = at_levels(process), er_scale(eta)
    x, noise, solution, denoise = solved("er_sde", process, ts, order=order, eta=eta)
    s = [mpmath.exp(-value) for value in UNEVEN]

    def weights(i: int, through: Sequence[int]) -> list[float]:
        """Of F_1 int (1/F)' l_j du over step i."""

        def weight(j: int) -> float:
            def integrand(u: Any) -> Any:
                return mpmath.diff(lambda v: 1 / scale(v), u) * mpmath.fprod((u - s[k]) / (s[through[j]] - s[k]) for m, k in enumerate(through) if m != j)

            return float(scale(s[i + 1]) * mpmath.quad(integrand, [s[i], s[i + 1]]))

        return [weight(j) for j in range(len(through))]

    y, outputs = x / float(process.alpha(ts[0])), list[Tensor]()
    for i in range(5):
        outputs.insert(0, denoise(y * float(process.alpha(ts[i])), ts[i]))
        if order == 3 and i == 1:
            better = [a - b for a, b in zip(weights(0, [1, 0]), [0.0, *weights(0, [0])], strict=True)]
            y = y + weighed(better, outputs)
        through, ratio = list(range(i, max(-1, i - order), -1)), float(scale(s[i + 1]) / scale(s[i]))
        variance = float(s[i + 1] ** 2 - (s[i] * scale(s[i + 1]) / scale(s[i])) ** 2) if eta else 0.0
        y = ratio * y + weighed(weights(i, through), outputs[: len(through)]) + math.sqrt(variance) * noise[i, 0]
    assert solution.nfe == 5
    assert torch.allclose(solution.x, y * float(process.alpha(ts[-1])), rtol=1e-9, atol=1e-10)


@ALL
def test_edm_is_its_algorithm(process: sd.Process) -> None:
    """Algorithm 2 of Karras et al. 2022, line by line, for y = x/alpha; gamma is S_churn/n on their grid, whose steps span less than a factor 4 here."""
    n, s_churn, s_tmin, s_tmax, s_noise = 40, 20.0, 0.1, 5.0, 1.01
    ts = make_grid("karras", process, process.T, process.eps, n).ts
    x, noise, solution, denoise = solved("edm", process, ts, s_churn=s_churn, s_tmin=s_tmin, s_tmax=s_tmax, s_noise=s_noise)

    def derivative(y: Tensor, s: float) -> Tensor:
        t = float(process.log_snr_inverse(-2 * math.log(s)))
        return (y - denoise(y * float(process.alpha(t)), t)) / s

    y = x / float(process.alpha(ts[0]))
    for i in range(n):
        s, s_next = level(process, ts[i]), level(process, ts[i + 1])
        gamma = min(s_churn / n, math.sqrt(2) - 1) if s_tmin <= s <= s_tmax else 0.0
        s_hat = s * (1 + gamma)
        y_hat = y + math.sqrt(s_hat**2 - s**2) * s_noise * noise[i, 0]
        d = derivative(y_hat, s_hat)
        guess = y_hat + (s_next - s_hat) * d
        y = y_hat + (s_next - s_hat) * 0.5 * (d + derivative(guess, s_next))
    assert solution.nfe == 2 * n
    assert torch.allclose(solution.x, y * float(process.alpha(ts[-1])), rtol=1e-8, atol=1e-10)


@ALL
@pytest.mark.parametrize("levels", [5, 18])
@pytest.mark.parametrize("s_churn", [0.0, 1.5, 30.0])
def test_edm_as_published(s_churn: float, levels: int, process: sd.Process) -> None:
    """Algorithm 2 of Karras et al. 2022 for N noise levels and t_N = 0, with steps of more than a factor 4, gamma = S_churn/N, and a last step by Euler."""
    n, s_tmin, s_tmax, s_noise = levels, 0.05, 0.6 * level(process, process.T), 1.003
    ts = make_grid("karras", process, process.T, process.eps, n - 1).ts
    options = {"s_churn": s_churn, "s_tmin": s_tmin, "s_tmax": s_tmax, "s_noise": s_noise}
    x, noise, solution, denoise = solved("edm", process, ts, published=True, denoise=True, **options)
    sigma = [*(level(process, t) for t in ts), 0.0]

    def derivative(y: Tensor, s: float) -> Tensor:
        t = float(process.log_snr_inverse(-2 * math.log(s)))
        return (y - denoise(y * float(process.alpha(t)), t)) / s

    y = x / float(process.alpha(ts[0]))
    for i in range(n):
        gamma = min(s_churn / n, math.sqrt(2) - 1) if s_tmin <= sigma[i] <= s_tmax else 0.0
        s_hat = sigma[i] * (1 + gamma)
        y_hat = y + (math.sqrt(s_hat**2 - sigma[i] ** 2) * s_noise * noise[i, 0] if gamma else 0.0)
        d = derivative(y_hat, s_hat)
        y = y_hat + (sigma[i + 1] - s_hat) * d
        if sigma[i + 1]:
            y = y_hat + (sigma[i + 1] - s_hat) * (0.5 * d + 0.5 * derivative(y, sigma[i + 1]))
    assert solution.nfe == 2 * n - 1
    assert torch.allclose(solution.x, y, rtol=1e-8, atol=1e-9)
    if levels == 5:
        assert not torch.allclose(solved("edm", process, ts, denoise=True, **options)[2].x, y, rtol=1e-3)


@pytest.mark.parametrize("process", PROCESSES)
def test_edm_is_sane_in_few_steps(process: str) -> None:
    """Never worth more than a few of the errors that DDIM makes with as many steps."""
    p, law = PROCESSES[process], exam.mixture_2d()
    flow, x = p.probability_flow(law.score(p)), p.prior((128, 2), seed=0)
    true = sd.solve(flow, x, "dop853", rtol=1e-4, atol=1e-4, denoise=True).x
    for steps in (1, 2, 3, 4):
        error, usual = (float((sd.solve(flow, x, name, steps=steps, denoise=True).x - true).norm(dim=1).mean()) for name in ("edm", "ddim"))
        assert error < 2 * usual, (steps, error, usual)


@ALL
def test_edm_calls_where_its_algorithm_does(process: sd.Process) -> None:
    """At the lifted time and at the node, never beyond the end of the process; where nothing is added, at the nodes to the last bit."""
    seen: list[float] = []
    problem = process.reverse(lambda x, t: seen.append(float(t.flatten()[0])) or -x)  # type: ignore[func-returns-value]
    x, ts = process.prior((2, 2), seed=0).double(), make_grid("karras", process, process.T, process.eps, 5).ts
    for options in ({}, {"s_churn": 1.0, "s_tmin": 1e6}):
        sd.solve(problem, x, "edm", grid=ts, seed=0, **options)
        assert seen == [t for pair in itertools.pairwise(ts) for t in pair]
        seen.clear()
    sd.solve(problem, x, "edm", grid=ts, seed=0, s_churn=1.0)
    assert seen[1::2] == list(ts[1:]) and seen[0] == pytest.approx(process.T, rel=1e-12) and max(seen) <= process.T * (1 + 1e-12)
    assert [level(process, t) for t in seen[2::2]] == pytest.approx([1.2 * level(process, t) for t in ts[1:-1]])


@ALL
def test_restart_is_its_algorithm(process: sd.Process) -> None:
    """Down by Heun's method; at the first node at or below each lower end, up with noise and down again."""
    intervals = [(0.2, 0.9, 2, 3), (1.0, 4.0, 1, 2)]
    ts = at_levels(process)
    x, noise, solution, denoise = solved("restart", process, ts, intervals=intervals)

    def derivative(y: Tensor, s: float) -> Tensor:
        t = float(process.log_snr_inverse(-2 * math.log(s)))
        return (y - denoise(y * float(process.alpha(t)), t)) / s

    def heun(y: Tensor, s: float, s_next: float) -> Tensor:
        d = derivative(y, s)
        return y + (s_next - s) * 0.5 * (d + derivative(y + (s_next - s) * d, s_next))

    y, levels = x / float(process.alpha(ts[0])), [math.exp(-value) for value in UNEVEN]
    for i in range(5):
        y, draws = heun(y, levels[i], levels[i + 1]), 0
        for low, high, repeats, steps in reversed(intervals):
            if levels[i + 1] <= low < levels[i]:
                for _ in range(repeats):
                    y = y + math.sqrt(high**2 - levels[i + 1] ** 2) * noise[i, draws]
                    draws += 1
                    again = [(high ** (1 / 7) + k / steps * (levels[i + 1] ** (1 / 7) - high ** (1 / 7))) ** 7 for k in range(steps + 1)]
                    for s, s_next in itertools.pairwise(again):
                        y = heun(y, s, s_next)
    assert solution.nfe == 2 * (5 + 2 * 3 + 1 * 2)
    assert torch.allclose(solution.x, y * float(process.alpha(ts[-1])), rtol=1e-9, atol=1e-10)


# -- restarts -----------------------------------------------------------------------------------------------------------------


def test_restart_keeps_to_a_budget() -> None:
    """Its calls besides those of the steps are reckoned with, once a walk, as a predictor too; the table shows them."""
    p = PROCESSES["VP"]
    problem, x = p.reverse(TwoModes(p).score), p.prior((2, 2), seed=0)
    assert sd.solve(problem, x, "restart", nfe=20, seed=0).nfe == 20  # 8 for the restarts, 6 steps of 2
    with pytest.raises(ValueError, match="smallest that works is nfe=10"):
        sd.solve(problem, x, "restart", nfe=9, seed=0)
    assert sd.solve(problem, x, "pc", nfe=41, seed=0, predictor="restart").nfe == 41  # 8 for the restarts, 11 steps of 2 + 1
    assert "2 + 8 once" in next(line for line in repr(sd.methods()).splitlines() if line.startswith("restart "))


@pytest.mark.parametrize("how", [{"method": "restart"}, {"method": "pc", "predictor": "restart"}], ids=["restart", "pc"])
def test_restart_that_restarts_nothing_is_refused(how: dict[str, Any]) -> None:
    """Before the first call: above all intervals, and below; where one is passed, the others may be without."""

    def never(x: Tensor, t: Tensor) -> Tensor:
        raise AssertionError("called")

    p = PROCESSES["VP"]
    x = p.prior((2, 2), seed=0)
    for interval in ((p.T, 0.5), (0.002, 0.001)):
        with pytest.raises(ValueError, match=r"passes the lower end of none of the intervals \[\(0.06, 0.3, 2, 2\)\]"):
            sd.solve(p.reverse(never), x, steps=3, seed=0, interval=interval, **how)
    made = make_method("restart", intervals=[(0.06, 0.3, 2, 2), (4.0, 8.0, 1, 2)])
    assert sd.solve(p.reverse(TwoModes(p).score), x, made, steps=3, seed=0, interval=(p.T, 0.5)).nfe == 10


@pytest.mark.parametrize("solver", ["edm", "dpmpp_2m", "dpmpp_3s", "heun", "rk4"])
def test_restart_by_any_ode_method(solver: str) -> None:
    p = PROCESSES["VP"]
    solution = sd.solve(p.reverse(TwoModes(p).score), p.prior((4, 2), seed=0), "restart", steps=6, seed=0, solver=solver)
    assert solution.ok().all() and solution.nfe == make_method(solver).facts.evals * 10


@pytest.mark.parametrize("solver", ["edm", "ddim"])
def test_restart_has_the_order_of_its_method(solver: str) -> None:
    """Where the steps within the interval become shorter with those of the walk."""
    steps = [24, 32, 48, 64]

    def restarted(n: int) -> sd.Stepper:
        return make_method("restart", solver=solver, intervals=[(0.3, 1.0, 1, n // 4)])

    errors = [law_on_two_modes(restarted(n), PROCESSES["VP"], n, 64, gauss=40) for n in steps]
    assert slope(steps, errors) == pytest.approx(restarted(8).facts.weak["additive"], abs=0.2), errors


def test_restart_forgets_the_past() -> None:
    """Where the way down is exact, the law after a restart is right whatever came before: the Gaussian's, in closed form after one step."""
    p = PROCESSES["EDM"]
    target = GaussianTarget(p)
    problem = p.reverse(target.score)
    x = torch.full((4000, 5), 3.0, dtype=torch.float64)  # far from the law at sigma = 10
    ends = [sd.solve(problem, x, "restart", grid=[10.0, 1.0, 0.1], interval=(10.0, 0.1), seed=0, intervals=[(0.5, high, 2, 40)], solver="dpmpp_2m").x for high in (0.6, 9.0)]
    mean, std = target.law(0.1)
    wrong, right = (abs(float(end.mean()) - mean) / (std / math.sqrt(20_000)) for end in ends)
    assert right < 4 < wrong


# -- between ODE and SDE ------------------------------------------------------------------------------------------------------

ODES: dict[str, tuple[str, dict[str, Any]]] = {
    "seeds 1": ("seeds", {"stages": 1, "eta": 0.0}),
    "seeds 2": ("seeds", {"eta": 0.0}),
    "seeds 2 r": ("seeds", {"eta": 0.0, "r": 0.8}),
    "sa 10": ("sa_solver", {"predictor_order": 1, "corrector_order": 0, "tau": 0.0}),
    "sa 12": ("sa_solver", {"predictor_order": 1, "corrector_order": 2, "tau": 0.0}),
    "sa 20": ("sa_solver", {"predictor_order": 2, "corrector_order": 0, "tau": 0.0}),
    "sa 23": ("sa_solver", {"predictor_order": 2, "corrector_order": 3, "tau": 0.0}),
    "er 1": ("er_sde", {"order": 1, "eta": 0.0}),
    "er 2": ("er_sde", {"order": 2, "eta": 0.0}),
    "er 3": ("er_sde", {"order": 3, "eta": 0.0}),
}
SDES: dict[str, tuple[str, dict[str, Any]]] = {
    "seeds 1": ("seeds", {"stages": 1}),
    "seeds 3": ("seeds", {"stages": 3}),
    "seeds phi1": ("seeds", {"weights": "phi1", "r": 0.7}),
    "seeds half": ("seeds", {"eta": 0.5}),
    "dpmpp_2s": ("dpmpp_2s", {"eta": 1.0}),
    "dpmpp_3s": ("dpmpp_3s", {"eta": 0.3}),
    "sa 10": ("sa_solver", {"predictor_order": 1, "corrector_order": 0}),
    "sa 12": ("sa_solver", {"predictor_order": 1, "corrector_order": 2, "tau": 0.6}),
    "sa window": ("sa_solver", {"predictor_order": 2, "corrector_order": 0, "window": (0.05, 2.0)}),
    "sa tau(t)": ("sa_solver", {"predictor_order": 1, "corrector_order": 2, "tau": lambda t: 1.2 * t}),
    "sa 34": ("sa_solver", {"predictor_order": 3, "corrector_order": 4}),
    "er 1": ("er_sde", {"order": 1}),
    "er 2": ("er_sde", {"order": 2}),
    "er 2, eta": ("er_sde", {"order": 2, "eta": 1.0}),
    "edm": ("edm", {"s_churn": 5.0}),
    "edm much": ("edm", {"s_churn": 30.0, "s_tmin": 0.1, "s_tmax": 3.0}),
}


def made(case: tuple[str, dict[str, Any]]) -> sd.Stepper:
    return make_method(case[0], **case[1])


@pytest.mark.parametrize("process", ["VP", "VE"])
@pytest.mark.parametrize("name", ODES)
def test_without_noise_it_is_an_ode_method(name: str, process: str) -> None:
    stepper = made(ODES[name])
    assert not stepper.facts.kinds
    measured = flow(stepper, process)
    assert measured.order == pytest.approx(stepper.facts.ode, abs=0.15), measured


@pytest.mark.parametrize("name", [name for name in SDES if name != "sa 34"])
def test_with_noise_its_law_tends_to_the_right_one(name: str) -> None:
    stepper = made(SDES[name])
    assert stepper.facts.ode is None
    measured = weak_on_two_modes(stepper, "VP")
    assert measured.order == pytest.approx(stepper.facts.weak["additive"], abs=0.2), measured


@pytest.mark.slow
def test_a_gaussian_flatters() -> None:
    """Predictor and corrector through two outputs have weak order 3 where the score is linear, and 2 where it is not."""
    stepper, p, steps = make_method("sa_solver"), PROCESSES["VP"], [48, 64, 80]
    assert slope(steps, [law_on_two_modes(stepper, p, n, 30) for n in steps]) == pytest.approx(2.0, abs=0.2)


@pytest.mark.parametrize("name", [name for name, case in SDES.items() if make_method(case[0], **case[1]).facts.strong])
def test_the_noise_of_the_reverse_sde_is_its_own(name: str) -> None:
    """Along the path of the reverse SDE, with no less than the declared order."""
    stepper = made(SDES[name])
    assert strong_on_the_reverse_sde(stepper).order > stepper.facts.strong["additive"] - 0.1


@pytest.mark.parametrize("name", SDES)
@pytest.mark.parametrize("process", PROCESSES)
def test_few_steps_and_a_time_for_each_row(process: str, name: str) -> None:
    """1, 2, 3 steps give finite states without a read from the device, and each row by itself what a grid gives."""
    p, stepper = PROCESSES[process], made(SDES[name])
    problem, x = p.reverse(TwoModes(p).score), p.prior((3, 2), seed=0).double()
    for steps in (1, 2, 3):
        solution = sd.solve(problem, x, stepper, steps=steps, seed=SEED)
        assert solution.ok().all() and solution.nfe == steps * stepper.facts.evals
    ts, source = Grid.of(at_levels(p)).ts, SeededNormals(SEED, IDS, (2,), dtype=torch.float64, device="cpu", nodes=4)
    by_grid = by_row = x
    carry, carries = (stepper.init(problem, x, ts[0]) for _ in range(2))
    for i in range(3):
        noise = SeededStep(source, i)
        rows = [torch.full((3,), t, dtype=torch.float64) for t in ts[i : i + 2]]
        with NoReads():
            step, each = stepper.step(problem, by_grid, *ts[i : i + 2], noise, carry), stepper.step(problem, by_row, *rows, noise, carries)
        (by_grid, carry), (by_row, carries) = (step.x, step.carry), (each.x, each.carry)
    assert torch.allclose(by_grid, by_row, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("process", ["VP", "VE"])
def test_noise_vanishes_continuously(process: str) -> None:
    """A little noise is nearly none: the law of a Gaussian at eta = 1e-8 is that at 0."""
    p = PROCESSES[process]
    for method, knob in (("seeds", "eta"), ("sa_solver", "tau"), ("er_sde", "eta"), ("edm", "s_churn")):
        small, none = (gaussian_outcome(method, p, 20, **{knob: value}) for value in (1e-8, 0.0))
        assert small == pytest.approx(none, rel=1e-5), method


# -- bad input ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("seeds", {"stages": 4}, "stages=4"),
        ("seeds", {"stages": 0}, "stages=0"),
        ("seeds", {"r": 1.5}, "r=1.5"),
        ("seeds", {"weights": "phi3"}, "weights"),
        ("seeds", {"eta": -1.0}, "eta=-1.0"),
        ("sa_solver", {"predictor_order": 0}, "predictor_order=0"),
        ("sa_solver", {"predictor_order": 5}, "predictor_order=5; expected 1 to 4"),
        ("sa_solver", {"corrector_order": 9}, "corrector_order=9; expected 0 to 8"),
        ("sa_solver", {"tau": -0.5}, "tau=-0.5"),
        ("sa_solver", {"tau": "much"}, "tau='much'"),
        ("sa_solver", {"window": (2.0, 1.0)}, "window=\\(2.0, 1.0\\)"),
        ("sa_solver", {"window": 3.0}, "window=3.0"),
        ("er_sde", {"order": 4}, "order=4"),
        ("er_sde", {"eta": "much"}, "eta='much'"),
        ("edm", {"s_churn": -1.0}, "s_churn=-1.0"),
        ("edm", {"s_noise": 0.0}, "s_noise=0.0"),
        ("edm", {"s_tmin": 2.0, "s_tmax": 1.0}, "s_tmin < s_tmax"),
        ("restart", {"intervals": [(0.3, 0.06, 2, 2)]}, "intervals has"),
        ("restart", {"intervals": [(0.06, 0.3, 0, 2)]}, "intervals has"),
        ("restart", {"intervals": [0.06, 0.3]}, "intervals has"),
        ("restart", {"intervals": [(0.06, 1e9, 1, 1)]}, "go up to"),
        ("restart", {"solver": "euler_maruyama"}, "not an ODE method"),
        ("restart", {"s_noise": -1.0}, "s_noise=-1.0"),
    ],
)
def test_bad_options_are_refused_before_the_first_call(method: str, options: dict[str, Any], message: str) -> None:
    p = PROCESSES["VP"]

    def never(x: Tensor, t: Tensor) -> Tensor:
        raise AssertionError("called")

    with pytest.raises(ValueError, match=message):
        sd.solve(p.reverse(never), p.prior((2, 2), seed=0), method, steps=5, seed=0, **options)


# -- as predictors ------------------------------------------------------------------------------------------------------------

LINEAR = [name for name in METHODS if isinstance(make_method(name), LinearSampler)]


@pytest.mark.parametrize("predictor", [*LINEAR, "edm", "restart"])
def test_every_sampler_predicts(predictor: str) -> None:
    """Its calls and the corrector's, with noise of their own; without a corrector's step it is the method itself."""
    p = PROCESSES["VP"]
    problem, x = p.reverse(TwoModes(p).score), p.prior((4, 2), seed=0).double()
    facts = make_method(predictor).facts
    alone = sd.solve(problem, x, predictor, steps=6, grid="log_snr", seed=0)
    followed = sd.solve(problem, x, "pc", steps=6, grid="log_snr", seed=0, predictor=predictor, corrector_steps=0)
    assert torch.equal(followed.x, alone.x) and followed.nfe == alone.nfe
    corrected = sd.solve(problem, x, "pc", steps=6, grid="log_snr", seed=0, predictor=predictor)
    assert corrected.ok().all() and corrected.nfe == alone.nfe + 6 == 6 * facts.evals + facts.start + 6


@pytest.mark.parametrize("predictor", ["dpmpp_2m", "er_sde"])
def test_a_predictor_remembers_across_corrections(predictor: str) -> None:
    """The law errs less than with a predictor of one output, which is what is left of one that starts afresh in each step."""
    target, p = exam.mixture_2d(), PROCESSES["VP"]
    interval = tuple(float(p.log_snr_inverse(-2 * math.log(level))) for level in (30.0, 0.02))
    x = target.perturbed(p, interval[0]).sample(20_000, seed=1)
    problem, errors = p.reverse(mixture_score(target, p)), []
    for name, options in ((predictor, {}), ("er_sde", {"order": 1}) if predictor == "er_sde" else ("ddim", {})):
        made = PredictorCorrector(make_method(name, **options), Langevin(0.05))
        end = sd.solve(problem, x, made, steps=9, grid="karras", interval=interval, seed=2, denoise=True).x
        errors.append(exam.sliced_wasserstein2(end, target, seed=3).value)
    assert errors[0] < 0.5 * errors[1], errors


def test_noise_of_moves_and_corrections_is_apart() -> None:
    """A step of several moves, and the corrector after it, ask for different numbers."""
    asked: list[int] = []

    class Spy:
        def normal(self, slot: int = 0) -> Tensor:
            asked.append(slot)
            return torch.zeros(2, 2)

    p = PROCESSES["VP"]
    made = PredictorCorrector(make_method("seeds", stages=3), Langevin(0.1), corrector_steps=3)
    problem, x = p.reverse(TwoModes(p).score), torch.zeros(2, 2)
    made.step(problem, x, 0.5, 0.4, Spy(), made.init(problem, x, 0.5))  # type: ignore[arg-type]
    assert len(asked) == len(set(asked)) == 6
