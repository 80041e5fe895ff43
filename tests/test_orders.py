"""Every registered method has the order, the calls and the limit that it declares.  A method is tested by being registered."""

from __future__ import annotations

import pytest
import torch
from convergence import (
    Path,
    bent,
    flow,
    gaussian_outcome,
    observed,
    ode,
    rms,
    slope,
    strong,
    strong_on_the_reverse_sde,
    uniform,
    walk,
    weak,
    weak_on_a_gaussian,
    weak_on_two_modes,
)
from problems import PROCESSES, GaussianTarget, solvable, twist_ode
from torch import Tensor

import sdesolve as sd
from sdesolve._checks import prepared
from sdesolve.correctors import Langevin
from sdesolve.methods import METHODS, make_method

FACTS = {row.name: row.facts for row in sd.methods()}
ODE_METHODS = [name for name, facts in FACTS.items() if facts.ode is not None]
SAMPLERS = [name for name, facts in FACTS.items() if "additive" in facts.strong and "langevin" not in facts.needs]
FLATTERED = {"sa_solver": 3.0}  # the order where the score is linear; with two modes it is as declared (test_a_gaussian_flatters)
CORRECTED = {"pc", "annealed_langevin"}  # whose limit is the corrector's own law: see test_a_corrected_law_is_the_corrector_s
DIRECTIONS = [(0.0, 1.0), (1.0, 0.0)]


# -- ODE order ---------------------------------------------------------------------------------------------------------


WAYS = pytest.mark.parametrize("interval", [(0.0, 2.0), (2.0, 0.0)], ids=["forwards", "backwards"])


@WAYS
@pytest.mark.parametrize("method", [name for name in ODE_METHODS if not FACTS[name].needs])
def test_ode_order(method: str, interval: tuple[float, float]) -> None:
    measured = ode(method, interval)
    assert len(measured.steps) == 6
    assert measured.order == pytest.approx(FACTS[method].ode, abs=0.15), measured


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize(("method", "backwards"), [*((m, True) for m in ODE_METHODS), *((m, False) for m in ODE_METHODS if FACTS[m].needs)])
def test_order_on_the_probability_flow(method: str, backwards: bool, process: str) -> None:
    """The order holds, and the limit is the exact flow, from noise to data (backwards) or back."""
    measured, declared = flow(method, process, backwards), FACTS[method].ode
    if declared <= 5:
        assert measured.order == pytest.approx(declared, abs=0.15), measured
    else:  # the error sinks into rounding before its slope settles
        assert slope(measured.steps, measured.errors) > declared - 0.5, measured


@WAYS
@pytest.mark.parametrize("method", [name for name in ODE_METHODS if FACTS[name].dense])
def test_order_of_the_dense_output(method: str, interval: tuple[float, float]) -> None:
    """Three times within each step: the error there falls as h^(dense + 1), or as the method's own where that is larger."""
    problem, exact = twist_ode(interval)

    def error(n: int) -> float:
        ts = torch.tensor(uniform(*interval, n), dtype=torch.float64)
        times = torch.cat([torch.lerp(ts[:-1], ts[1:], share) for share in (0.25, 0.5, 0.75)])
        solution = sd.solve(problem, exact(interval[0]), method, steps=n, save=times)
        return rms(solution.xs - torch.stack([exact(t) for t in solution.ts.tolist()]))

    measured = observed(error, rounding=1e-13)
    assert measured.order == pytest.approx(min(FACTS[method].ode, FACTS[method].dense + 1), abs=0.15), measured


@WAYS
@pytest.mark.parametrize("method", [name for name in ODE_METHODS if make_method(name).error_order])
def test_order_of_the_error_estimate(method: str, interval: tuple[float, float]) -> None:
    """The estimate of a single step falls as h^q, which is what step control reckons with."""
    problem, exact = twist_ode(interval)
    stepper, t0, span = make_method(method), interval[0], interval[1] - interval[0]

    def estimate(n: int) -> float:
        return rms(stepper.step(problem, exact(t0), t0, t0 + span / n, None, stepper.init(problem, exact(t0), t0)).error)

    measured = observed(estimate, rounding=1e-14)
    assert measured.order == pytest.approx(stepper.error_order, abs=0.15), measured


# -- strong and weak order ---------------------------------------------------------------------------------------------

PLAIN = {m: f for m, f in FACTS.items() if f.kinds and "score" not in f.needs}
STATE_DEPENDENT = ("scalar", "diagonal", "commutative", "general")


@pytest.mark.parametrize("interval", DIRECTIONS, ids=["forwards", "backwards"])
@pytest.mark.parametrize(("method", "kind", "calculus"), [(m, kind, c) for m, f in PLAIN.items() for kind in f.strong for c in sorted(f.calculus)])
def test_strong_order(method: str, kind: str, calculus: str, interval: tuple[float, float]) -> None:
    """Against the exact end of the same path, in the calculus that the method integrates: 4,000 paths, 5 step sizes."""
    measured = strong(method, kind, interval, calculus)
    assert measured.order == pytest.approx(FACTS[method].strong[kind], abs=0.1), measured


@pytest.mark.parametrize("interval", [(0.0, 0.6), (0.6, 0.0)], ids=["forwards", "backwards"])
@pytest.mark.parametrize(("method", "kind"), [(m, kind) for m, f in PLAIN.items() for kind in f.weak])
def test_weak_order(method: str, kind: str, interval: tuple[float, float]) -> None:
    """Against Kolmogorov's equation, without Monte-Carlo error."""
    measured = weak(method, kind, interval)
    assert measured.order == pytest.approx(FACTS[method].weak[kind], abs=0.2), measured


@pytest.mark.parametrize("interval", DIRECTIONS, ids=["forwards", "backwards"])
@pytest.mark.parametrize(
    ("method", "kind"), [(m, kind) for m, f in PLAIN.items() if len(f.calculus) == 1 for kind in STATE_DEPENDENT if kind in f.kinds]
)
def test_both_calculi_are_one_process(method: str, kind: str, interval: tuple[float, float]) -> None:
    """The same process written by hand in the other calculus gives the same numbers."""
    stepper, x = make_method(method), torch.tensor([[0.8, -0.6], [0.1, 0.4]], dtype=torch.float64)
    ends = []
    for calculus in ("ito", "stratonovich"):
        problem = prepared(stepper, bent(kind, interval, calculus)[0], x, interval)
        path = Path.draw(interval, 8, (2, *problem.brownian_event(x)), seed=3)
        ends.append(walk(stepper, problem, x, path))
    assert torch.allclose(*ends, rtol=1e-12, atol=1e-12)


# -- reverse SDEs ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", SAMPLERS)
def test_strong_order_on_the_reverse_sde(method: str) -> None:
    """The limit is the reverse SDE's own path, and the order no less than declared."""
    measured, declared = strong_on_the_reverse_sde(method), FACTS[method].strong["additive"]
    assert measured.order > declared - 0.1, measured
    if "score" in FACTS[method].needs:  # the others are held to it on harder problems
        assert measured.order < declared + 0.15, measured  # multistep methods come down to it from above


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("method", [m for m in SAMPLERS if not FACTS[m].start])
def test_weak_order_on_a_gaussian(method: str, process: str) -> None:
    """The limit is the target's own law at eps, and the standard deviation tends to it at the declared order, or faster where that is said here."""
    measured = weak_on_a_gaussian(method, process, (1000, 2000, 4000)) if method in FLATTERED else weak_on_a_gaussian(method, process)
    assert measured.order == pytest.approx(FLATTERED.get(method, FACTS[method].weak["additive"]), abs=0.2), measured
    p = PROCESSES[process]
    assert gaussian_outcome(method, p, 32000)[0] == pytest.approx(float(p.alpha(p.eps)) * GaussianTarget.mean, abs=1e-4)


@pytest.mark.parametrize("process", ["VP", "EDM"])
@pytest.mark.parametrize("method", [m for m, f in FACTS.items() if "additive" in f.weak and "score" in f.needs and not f.start and m not in CORRECTED])
def test_weak_order_on_two_modes(method: str, process: str) -> None:
    """Where a score is not linear, the law tends to the right one at the declared order; with a long memory, at few steps, no slower."""
    measured, declared = weak_on_two_modes(make_method(method), process), FACTS[method].weak["additive"]
    assert measured.order > declared - 0.2, measured
    if measured.steps[-1] > 24:
        assert measured.order < declared + 0.2, measured


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("method", sorted(CORRECTED))
def test_a_corrected_law_is_the_corrector_s(method: str, process: str) -> None:
    """The standard deviation tends to that of Langevin's stationary law, V / (1 - e / 2V), at order 1, and to the target's at the declared one, which is none."""
    p, snr, steps = PROCESSES[process], 0.3, (2000, 4000, 8000)
    end = float(p.log_snr_inverse(0.0))  # where the two are apart
    right = GaussianTarget(p).law(end)[1]
    limit = right / (1 - (snr * float(p.sigma(end)) / right) ** 2) ** 0.5
    found = [gaussian_outcome(method, p, n, interval=(p.T, end), snr=snr)[1] for n in steps]
    assert slope(steps, [abs(std - limit) for std in found]) == pytest.approx(1.0, abs=0.1)
    assert slope(steps, [abs(std - right) for std in found]) == pytest.approx(FACTS[method].weak["additive"], abs=0.1)


@pytest.mark.parametrize("snr", [0.1, 0.3])
@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES.keys())
def test_langevin_inflates_the_variance_as_its_page_says(process: sd.Process, snr: float) -> None:
    """At fixed t, V' = V / (1 - e / 2V) with e = 2 (snr sigma_t)^2."""
    target = GaussianTarget(process)
    t = float(process.log_snr_inverse(0.0))
    v = float(process.alpha(t)) ** 2 * target.std**2 + float(process.sigma(t)) ** 2
    problem = process.reverse(target.score)
    x, z, zero = (torch.full((1, 1), value, dtype=torch.float64) for value in (1.0, 1.0, 0.0))

    def step(problem: sd.ReverseSDE, x: Tensor, t: float, z: Tensor) -> Tensor:
        return Langevin(snr).correct(problem, x, t, 1, lambda k, part: z, None)[0]

    offset = float(step(problem, zero, t, zero))
    gain, kick = float(step(problem, x, t, zero)) - offset, float(step(problem, zero, t, z)) - offset
    e = 2 * snr**2 * float(process.sigma(t)) ** 2
    assert kick**2 / (1 - gain**2) == pytest.approx(v / (1 - e / (2 * v)), rel=1e-9)


# -- calls -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_calls_a_step(method: str) -> None:
    """A module hook, sol.nfe and the declared calls agree."""

    class Network(torch.nn.Module):
        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return -x

    network, seen = Network(), list[Tensor]()
    network.register_forward_hook(lambda module, inputs, output: seen.append(inputs[1]))
    solution = sd.solve(solvable(method, network), torch.ones(2, 2, 3), method, steps=7, seed=0, save="all")
    facts = FACTS[method]
    assert solution.nfe == len(seen) == facts.start + 7 * facts.evals
    assert solution.ts is not None and len(solution.ts) == 8
    if facts.evals == 1:
        middles = 0.5 * (solution.ts[1:] + solution.ts[:-1])
        times = {"annealed_langevin": solution.ts[1:], "ubu": middles, "leapfrog": torch.cat([solution.ts[:1], middles])}
        expected = times.get(method, solution.ts[: len(seen)])  # the first of each step, and of the steps after where a call is kept
        assert torch.equal(torch.stack([t.flatten()[0] for t in seen]), expected.float())
