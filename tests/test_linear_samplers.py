"""Samplers that are linear in the network's outputs: coefficients against mpmath and against the published recipes, and the product of all with all."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import mpmath
import numpy as np
import pytest
import torch
from convergence import flow, gaussian_outcome, slope
from problems import PROCESSES, GaussianTarget
from torch import Tensor

import sdesolve as sd
from sdesolve.grids import GRIDS, make_grid
from sdesolve.methods import METHODS, make_method
from sdesolve.methods.deis import DEIS, IPNDM
from sdesolve.methods.linear import LinearSampler, adams, phi

FACTS = {row.name: row.facts for row in sd.methods()}
LINEAR = [name for name in METHODS if isinstance(make_method(name), LinearSampler)]
P = PROCESSES["VP"]


def lam(p: sd.Process, t: float) -> float:
    return 0.5 * float(p.log_snr(t))


# -- coefficients ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [1, 2, 3, 4, 5])
def test_phi(k: int) -> None:
    """Where the series ends and the recursion begins, and far out."""
    for z in (-40.0, -3.0, -1.0001, -0.9999, -1e-3, -1e-9, 0.0, 1e-6, 0.5, 0.9999, 1.0001, 7.0, 30.0):
        with mpmath.workdps(40):
            exact = mpmath.hyp1f1(1, k + 1, z) / mpmath.factorial(k)
        assert phi(k, z) == pytest.approx(float(exact), rel=1e-13)
        assert float(phi(k, torch.tensor(z, dtype=torch.float64))) == pytest.approx(float(exact), rel=1e-13)


def lagrange(at: list[float], j: int) -> Callable[[Any], Any]:
    return lambda s: mpmath.fprod((s - other) / (mpmath.mpf(at[j]) - other) for i, other in enumerate(at) if i != j)


TIMES = [(0.6, 0.7, 0.85, 0.99), (0.002, 0.02, 0.2, 0.9), (0.5, 0.50005, 0.5001, 0.50015)]


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("implicit", [False, True])
def test_adams_weights(process: str, eta: float, implicit: bool) -> None:
    """Against the integral of each Lagrange polynomial."""
    p = PROCESSES[process]
    for (t1, *known), count in itertools.product(TIMES, (1, 2, 3)):
        through = [t1, *known[:count]] if implicit else known[:count]
        at, start, end = [lam(p, t) for t in through], lam(p, known[0]), lam(p, t1)
        scale = (1 + eta) * float(p.alpha(t1))

        def value(u: Any, j: int, at: list[float] = at, end: float = end) -> Any:
            return mpmath.exp((1 + eta) * (u - end)) * lagrange(at, j)(u)

        exact = [scale * mpmath.quad(lambda u, j=j, value=value: value(u, j), [start, end]) for j in range(len(at))]
        got = adams(p, known[0], t1, through, eta)
        assert got == pytest.approx([float(w) for w in exact], rel=1e-10, abs=1e-11 * scale * abs(end - start))  # what differences of lambda have lost


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("variant", ["t", "rho", "log_rho"])
def test_deis_weights(variant: str, process: str) -> None:
    """alpha_1 times the integral over rho of each Lagrange polynomial in the variable, to 1e-12 of the step."""
    p = PROCESSES[process]
    of: Callable[[float], float] = {"t": lambda t: t, "rho": lambda t: float(p.sigma(t) / p.alpha(t)), "log_rho": lambda t: -lam(p, t)}[variant]
    for (t1, *known), count in itertools.product([*TIMES[:2], (0.003, 0.4, 0.7, 0.99)], (1, 2, 3)):  # the last step is 3 to 5 long in lambda
        at = [of(t) for t in known[:count]]
        start, end = lam(p, known[0]), lam(p, t1)

        def value(u: Any, j: int, at: list[float] = at) -> Any:
            there = {"t": float(p.log_snr_inverse(2 * float(u))), "rho": mpmath.exp(-u), "log_rho": -u}[variant]
            return -mpmath.exp(-u) * lagrange(at, j)(there)

        exact = [float(float(p.alpha(t1)) * mpmath.quad(lambda u, j=j, value=value: value(u, j), mpmath.linspace(start, end, 5))) for j in range(count)]
        got = DEIS(4, variant, published=True).row(p, known[:count], t1).on_outputs
        assert got == pytest.approx(exact, rel=1e-10, abs=1e-12 * sum(map(abs, exact)))


def test_ipndm_weights() -> None:
    """Those of Adams and Bashforth for equal steps."""
    for count, weights in {1: [1], 2: [3 / 2, -1 / 2], 3: [23 / 12, -16 / 12, 5 / 12], 4: [55 / 24, -59 / 24, 37 / 24, -9 / 24]}.items():
        row = IPNDM().row(P, [0.5, 0.6, 0.7, 0.8][:count], 0.4)
        whole = float(P.sigma(0.4) - P.sigma(0.5) * P.alpha(0.4) / P.alpha(0.5))
        assert list(row.on_outputs) == pytest.approx([whole * w for w in weights], rel=1e-12)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_ddim_is_the_published_step(eta: float) -> None:
    """sqrt(alpha) of the paper is our alpha; its sigma_t is s.  [Song et al. 2021a, eq. 12 and 16]"""
    t0, t1, x, d, z = 0.5, 0.3, 0.7, -0.4, 1.3
    (a0, a1), (s0, s1) = ([float(f(t)) for t in (t0, t1)] for f in (P.alpha, P.sigma))
    s = eta * s1 / s0 * np.sqrt(1 - (a0 / a1) ** 2)
    expected = a1 * d + np.sqrt(s1**2 - s**2) * (x - a0 * d) / s0 + s * z
    on_x, (on_d,), on_z = make_method("ddim", eta=eta).row(P, [t0], t1)
    assert on_x * x + on_d * d + (on_z or 0.0) * z == pytest.approx(expected, rel=1e-13)


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("published", [True, False])
def test_third_order_as_published_and_whole(eta: float, published: bool) -> None:
    """The update of the published code, with slope d1 and half-curvature d2 of the parabola through the outputs; its weight of d2 is half of the integral."""
    ts, outputs = [0.5, 0.6, 0.75], [0.3, -0.2, 1.1]
    lams, end = [lam(P, t) for t in ts], lam(P, 0.42)
    h, (r0, r1) = end - lams[0], -np.diff(lams) / (end - lams[0])
    a, b = (outputs[0] - outputs[1]) / r0, (outputs[1] - outputs[2]) / r1
    d1, d2, full = a + (a - b) * r0 / (r0 + r1), (a - b) / (r0 + r1), (1 + eta) * h
    p2 = np.expm1(-full) / full + 1
    expected = -np.expm1(-full) * outputs[0] + p2 * d1 - (p2 / full - 0.5) * d2 * (1 if published else 2)
    row = make_method("dpmpp_3m", eta=eta, published=published).row(P, ts, 0.42)
    assert np.dot(row.on_outputs, outputs) == pytest.approx(float(P.alpha(0.42)) * expected, rel=1e-11)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
@pytest.mark.parametrize("variant", ["bh1", "bh2"])
def test_unipc_is_predictor_and_corrector(order: int, variant: str) -> None:
    """The published loop, which keeps a corrected state, against rows that have the corrector in the next step.  [Zhao et al. 2023, algorithms 5 and 6]"""
    ts, denoise = [1.0, 0.7, 0.5, 0.35, 0.2, 0.1, 0.03], np.tanh
    lams, sigma, alpha = [lam(P, t) for t in ts], [float(P.sigma(t)) for t in ts], [float(P.alpha(t)) for t in ts]

    def difference(i: int, p: int, outputs: list[float], new: float | None) -> float:
        """B(h) sum_m rho_m (m_m - m_0)/r_m of the step from node i."""
        h = lams[i + 1] - lams[i]
        others = [((lams[i - m] - lams[i]) / h, outputs[i - m]) for m in range(1, p)] + ([] if new is None else [(1.0, new)])
        if not others:
            return 0.0
        b = -h if variant == "bh1" else np.expm1(-h)
        size, r = len(others), np.array([r for r, _ in others])
        system = np.array([r**k for k in range(size)])
        right = np.array([float(mpmath.factorial(k) * phi(k + 1, -h) * -h / b) for k in range(1, size + 1)])
        rho = [0.5] if size == 1 else np.linalg.solve(system, right)
        return float(b * sum(rho[m] * (value - outputs[i]) / r[m] for m, (_, value) in enumerate(others)))

    x, outputs = 0.9, [float(denoise(0.9))]
    for i in range(6):
        p = min(order, i + 1)
        base = sigma[i + 1] / sigma[i] * x - alpha[i + 1] * np.expm1(lams[i] - lams[i + 1]) * outputs[i]
        x = base - alpha[i + 1] * difference(i, p, outputs, None)
        if i < 5:
            outputs.append(float(denoise(x)))
            x = base - alpha[i + 1] * difference(i, p, outputs[:-1], outputs[-1])
    problem = P.probability_flow(sd.as_score(lambda x, t: torch.tanh(x), P, predicts="x0"))
    got = sd.solve(problem, torch.full((1, 1), 0.9, dtype=torch.float64), "unipc", grid=ts, interval=(ts[0], ts[-1]), order=order, variant=variant).x
    assert float(got) == pytest.approx(x, rel=1e-11)


@pytest.mark.parametrize("method", LINEAR)
def test_a_row_is_one_formula_for_floats_and_tensors(method: str) -> None:
    stepper = make_method(method)
    for p in PROCESSES.values():
        ts = make_grid("log_snr", p, p.T, p.eps, 6).ts
        for count in range(1, min(stepper.memory, 5) + 1):
            times, t1 = list(ts[count - 1 :: -1]), ts[count]
            floats = stepper.row(p, times, t1)
            tensors = stepper.row(p, [torch.full((3,), t, dtype=torch.float64) for t in times], torch.full((3,), t1, dtype=torch.float64))
            for one, other in zip((floats.on_x, *floats.on_outputs, floats.on_noise), (tensors.on_x, *tensors.on_outputs, tensors.on_noise), strict=True):
                assert one is other is None or torch.as_tensor(other).expand(3).tolist() == pytest.approx([one] * 3, rel=1e-9, abs=1e-12)


# -- options -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backwards", [True, False], ids=["backwards", "forwards"])
@pytest.mark.parametrize(
    ("method", "options", "order"),
    [
        ("dpmpp_2m", {"variant": "heun"}, 2),
        ("dpmpp_3m", {"published": True}, 2),
        ("unipc", {"order": 1}, 2),
        ("unipc", {"variant": "bh1"}, 3),
        ("deis", {"order": 2}, 2),
        ("deis", {"variant": "rho"}, 3),
        ("deis", {"variant": "log_rho"}, 3),
        ("deis", {"published": True}, 2),
        ("ipndm", {"order": 2}, 2),
    ],
)
def test_order_of_an_option(method: str, options: dict[str, Any], order: int, backwards: bool) -> None:
    stepper = make_method(method, **options)
    measured = flow(stepper, "VP", backwards)  # type: ignore[arg-type]
    assert stepper.facts.ode == order and measured.order == pytest.approx(order, abs=0.15), measured


@pytest.mark.parametrize(
    ("method", "options", "order"),
    [
        ("ddim", {"eta": 0.4}, 1),
        ("ddim", {"eta": 1.0}, 1),
        ("dpmpp_2m", {"eta": 0.5}, 2),
        ("dpmpp_2m_sde", {"variant": "heun"}, 2),
        ("dpmpp_3m", {"eta": 1.7}, 2),
        ("dpmpp_3m_sde", {"published": True}, 2),
    ],
)
def test_weak_order_between_ode_and_sde(method: str, options: dict[str, Any], order: int) -> None:
    """Every eta has the same marginals."""
    for p in PROCESSES.values():
        steps = [4000, 8000, 16000]
        errors = [abs(gaussian_outcome(method, p, n, **options)[1] - GaussianTarget(p).law(p.eps)[1]) for n in steps]
        assert slope(steps, errors) == pytest.approx(order, abs=0.2), errors
    assert make_method(method, **options).facts.weak["additive"] == order


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("ddim", {"eta": 1.1}),
        ("ddim", {"eta": -0.1}),
        ("dpmpp_2m", {"eta": float("nan")}),
        ("dpmpp_2m", {"eta": "much"}),
        ("dpmpp_2m", {"variant": "bh1"}),
        ("unipc", {"order": 0}),
        ("unipc", {"order": 5}),
        ("unipc", {"variant": "bh3"}),
        ("deis", {"order": 5}),
        ("deis", {"variant": "sigma"}),
        ("ipndm", {"order": 2.5}),
    ],
)
def test_an_option_out_of_range(method: str, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"expected"):
        make_method(method, **options)


@pytest.mark.parametrize("process", ["VP", "EDM"])
@pytest.mark.parametrize(("method", "name", "most"), [("unipc", "order", 4), ("sa_solver", "predictor_order", 4), ("sa_solver", "corrector_order", 8)])
def test_every_order_that_is_taken_is_stable(method: str, name: str, most: int, process: str) -> None:
    """And a higher one, which is refused, is no better: predictors of 5 outputs err more, correctors of 9 as much."""
    p, law = PROCESSES[process], sd.exam.mixture_2d()
    flow, x = p.probability_flow(law.score(p)), p.prior((64, 2), seed=0, dtype=torch.float64)
    others: dict[str, Any] = {"tau": 0.0} if method == "sa_solver" else {}
    true = sd.solve(flow, x, "dop853", rtol=1e-7, atol=1e-7).x

    def error(order: int, steps: int, grid: str) -> float:
        stepper = make_method(method, **{name: 2}, **others)
        object.__setattr__(stepper, name, order)
        return float((sd.solve(stepped(stepper), x, stepper, steps=steps, grid=grid, seed=0).x - true).norm(dim=1).mean())

    stepped = lambda stepper: p.reverse(law.score(p)) if stepper.facts.kinds else flow  # noqa: E731
    for grid in ("log_snr", "karras"):
        for steps, limit in ((20, 0.25), (50, 0.01)):
            errors = {order: error(order, steps, grid) for order in range(2, most + 2)}
            assert max(errors[order] for order in range(2, most + 1)) < limit, (grid, steps, errors)
            assert errors[most + 1] > (0.9 if name == "corrector_order" else 1.05) * errors[most], (grid, steps, errors)
    with pytest.raises(ValueError, match=f"{name}={most + 1}; expected . to {most} outputs"):
        make_method(method, **{name: most + 1})


@pytest.mark.parametrize("process", PROCESSES)
def test_the_default_grid_is_the_methods_own(process: str) -> None:
    p = PROCESSES[process]
    for method, grid in (("dpmpp_2m", "log_snr"), ("ddim", p.default_grid), ("heun", p.default_grid)):
        solution = sd.solve(p.probability_flow(lambda x, t: -x), torch.ones(1, 1), method, steps=3, save="all")
        assert solution.ts.tolist() == list(make_grid(grid, p, p.T, p.eps, 3).ts)


# -- the product -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 2, 3, 7])
@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("method", [name for name in LINEAR if FACTS[name].ode])
def test_one_data_point_is_found(method: str, process: str, steps: int) -> None:
    """Where E[x_0 | x] is one point, the flow is  alpha x_0 + sigma eps  with eps kept: every method knows it, from its first step to its last."""
    p = PROCESSES[process]
    point, x = torch.tensor([0.3, -0.8], dtype=torch.float64), p.prior((3, 2), seed=0, dtype=torch.float64)
    end = sd.solve(p.probability_flow(sd.as_score(lambda x, t: point.expand_as(x), p, predicts="x0")), x, method, steps=steps).x
    exact = p.alpha(p.eps) * point + p.sigma(p.eps) * (x - p.alpha(p.T) * point) / p.sigma(p.T)
    assert torch.allclose(end, exact, rtol=1e-9, atol=1e-9)


MULTISTEP = [name for name in LINEAR if make_method(name).memory > FACTS[name].evals]  # type: ignore[attr-defined]
SINGLE_STEP = [name for name in LINEAR if FACTS[name].evals > 1]


@pytest.mark.parametrize("method", MULTISTEP)
def test_nodes_that_are_nearly_one_are_refused(method: str) -> None:
    """Before the first call; on a card and as a predictor too.  Methods without a memory do not mind, and short steps among short ones are steps."""

    def never(x: Tensor, t: Tensor) -> Tensor:
        raise AssertionError("called")

    calls: list[int] = []
    score, x = (lambda x, t: calls.append(1) or -x), P.prior((2, 2), seed=0)  # type: ignore[func-returns-value]
    refused, as_reverse = P.reverse(never), P.reverse(score)
    for grid, i in (([1.0, 0.8, 0.4, 0.1 * 3, 0.3, 0.2, 0.001], 3), ([1.0, 0.5, 0.5 - 1e-13, 0.001], 1), ([1.0, 0.5, 0.001 + 1e-9, 0.001], 2), ([1.0, 0.5, 0.49999, 0.001], 1)):
        message = rf"grid\[{i}\]=.* and grid\[{i + 1}\]=.* left out"
        for name, options in ((method, {}), ("pc", {"predictor": method})):
            with pytest.raises(ValueError, match=message):
                sd.solve(refused, x, name, grid=grid, seed=0, **options)
        with pytest.raises(ValueError, match=message):
            sd.solver_card(method, P, grid)
        assert sd.solve(as_reverse, x, "ddim", grid=grid, seed=0).ok().all()
    assert sd.solve(as_reverse, x, method, grid=[0.5, 0.5 - 1e-6, 0.5 - 2e-6], interval=(0.5, 0.5 - 2e-6), seed=0).ok().all()


@pytest.mark.parametrize("method", SINGLE_STEP)
def test_stages_within_a_step_take_any_grid(method: str) -> None:
    """A node beside another changes nothing, on a card too: the next step starts anew.  But where lambda has no digits left between the two."""
    assert {"seeds", "dpmpp_sde", "dpmpp_2s", "dpmpp_3s"} == set(SINGLE_STEP)
    score, x = sd.as_score(lambda x, t: x * torch.cos(3 * t)[:, None], P, predicts="x0"), P.prior((8, 2), seed=0, dtype=torch.float64)
    problem, plain, options = P.probability_flow(score), [1.0, 0.9, 0.8, 0.2, 0.001], {"eta": 0.0}
    for beside, i in ((0.9 - 1e-7, 2), (0.8 + 1e-7, 2), (0.2 - 1e-8, 4), (0.001 + 1e-9, 4)):
        grid = [*plain[:i], beside, *plain[i:]]
        for how in ({"method": method, "grid": grid, **options}, {"method": sd.solver_card(method, P, grid, **options)}):
            torch.testing.assert_close(sd.solve(problem, x, **how).x, sd.solve(problem, x, method, grid=plain, **options).x, rtol=1e-5, atol=1e-5)  # type: ignore[arg-type]
    for what in (method, "pc"):
        with pytest.raises(ValueError, match=r"grid\[1\]=.* no digits left there; expected one of them to be left out"):
            sd.solve(P.reverse(score), x, what, grid=[1.0, 0.5, 0.5 - 1e-13, 0.001], **({"predictor": method} if what == "pc" else {}))


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("method", ["deis", "ipndm", "unipc", "dpmpp_3m", "er_sde"])
def test_few_calls_are_sane(method: str, process: str) -> None:
    """What a long step assumes of the outputs is never worth more than a few of the errors of a method of order 2."""
    p, law, options = PROCESSES[process], sd.exam.mixture_2d(), {"eta": 0.0} if method == "er_sde" else {}
    flow, x = p.probability_flow(law.score(p)), p.prior((128, 2), seed=0)
    true = sd.solve(flow, x, "dop853", rtol=1e-4, atol=1e-4, denoise=True).x
    for nfe in (2, 3, 4, 5):
        error, usual = (float((sd.solve(flow, x, name, nfe=nfe, denoise=True, **kw).x - true).norm(dim=1).mean()) for name, kw in ((method, options), ("dpmpp_2m", {})))
        assert error < (5 if method == "dpmpp_3m" else 3) * usual, (nfe, error, usual)


class Network(torch.nn.Module):
    """Something nonlinear with parameters, and so a dtype, that notes the times it is told."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight, self.times = torch.nn.Parameter(torch.tensor([[0.8, -0.3], [0.4, 0.6]], dtype=dtype)), list[Tensor]()
        self.register_forward_hook(lambda module, inputs, output: self.times.append(inputs[1]))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return torch.tanh(x @ self.weight)


def walked(method: str, p: sd.Process, grid: str, steps: int, dtype: torch.dtype, predicts: str = "epsilon") -> None:
    """One entry of the product: finite, called as often as is said, and on a grid's times and no others."""
    network, facts = Network(dtype), FACTS[method]
    state = torch.float64 if dtype == torch.float64 else torch.float32
    x = p.prior((2, 2), seed=0, dtype=state)
    solution = sd.solve(p.reverse(sd.as_score(network, p, predicts=predicts)), x, method, steps=steps, grid=grid, seed=0)
    assert solution.ok().all() and solution.x.dtype == state, (grid, steps, dtype)
    assert solution.nfe == len(network.times) == facts.start + steps * facts.evals, (grid, steps, dtype)
    if method in LINEAR:
        ts = torch.tensor(make_grid(grid, p, *p.reverse(network).interval, steps).ts[:-1], dtype=torch.float64)
        assert torch.equal(torch.stack([t[0] for t in network.times[:: facts.evals]]), ts.to(state)), (grid, steps, dtype)  # and not rounded to bfloat16


def entries(counts: list[int]) -> Iterator[tuple[str, int, torch.dtype]]:
    return itertools.product(GRIDS, counts, (torch.float64, torch.float32, torch.bfloat16))


SCORED = [name for name, facts in FACTS.items() if "score" in facts.needs]


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("method", SCORED)
def test_every_grid_and_dtype(method: str, process: str) -> None:
    for entry in entries([1, 2, 3, 11]):
        walked(method, PROCESSES[process], *entry)


@pytest.mark.parametrize("predicts", ["score", "epsilon", "x0", "v", "flow", "edm"])
@pytest.mark.parametrize("method", LINEAR)
def test_every_parameterisation(method: str, predicts: str) -> None:
    for process in PROCESSES.values():
        walked(method, process, "log_snr", 5, torch.float32, predicts)


@pytest.mark.slow
@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("method", SCORED)
def test_the_whole_product(method: str, process: str) -> None:
    for entry in entries([*range(1, 21), 50, 1000]):
        walked(method, PROCESSES[process], *entry)
