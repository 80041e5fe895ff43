"""Correctors: what they leave as it is, what they cost, and what they say about themselves.

The law: chains start from exact samples of p_t and have to be samples of it 200 steps later, by KS along random directions and by moments
(p-values corrected for their number).  That the check has teeth is shown on the rules that leave other laws as they are.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from convergence import slope
from problems import PROCESSES, GaussianTarget, mixture_score
from test_no_sync import NoReads
from torch import Tensor

import sdesolve as sd
from sdesolve import exam
from sdesolve._loops import fixed
from sdesolve.correctors import CORRECTORS, Account, Langevin, trajectory
from sdesolve.correctors.trajectory import Trajectory
from sdesolve.grids import make_grid
from sdesolve.methods import make_method
from sdesolve.noise import SeededNormals, SeededStep

N, STEPS = 20_000, 200
TARGETS = {"gaussian": exam.gaussian_1d(std=0.3, mean=0.5), "2d": exam.mixture_2d(), "ring": exam.ring_2d(), "64d": exam.mixture_64d()}
FLYING = ("mala", "hmc", "underdamped")
EVERY: dict[str, dict[str, Any]] = {  # each corrector in each of its forms
    "langevin": {"corrector": "langevin"},
    **{f"{name} {form}": {"corrector": name, **how} for name in FLYING for form, how in {
        "accepted, auto": {"accept": True, "step_size": "auto"},
        "accepted": {"accept": True, "step_size": 0.4},
        "accepted, kernel": {"accept": True, "step_size": "kernel"},
        "auto": {"accept": False},
        "plain": {"accept": False, "step_size": 0.4},
    }.items()},
}  # fmt: skip
VP_2D = PROCESSES["VP"].reverse(lambda x, t: -x)
X = torch.ones(3, 2)
every = pytest.mark.parametrize("how", EVERY.values(), ids=EVERY.keys())


def level(process: str, ratio: float) -> float:
    """The time at which sigma/alpha has a value."""
    return float(PROCESSES[process].log_snr_inverse(-2 * math.log(ratio)))


def problem_of(target: str, process: str) -> sd.ReverseSDE:
    law, p = TARGETS[target], PROCESSES[process]
    return p.reverse(mixture_score(law, p) if isinstance(law, exam.Mixture) else law.score(p))


def chain(corrector: str, target: str, process: str, ratio: float, n: int = N, **options: Any) -> tuple[sd.Solution, exam.Target]:
    """Chains from exact samples of p_t, and p_t."""
    t = level(process, ratio)
    law = TARGETS[target].perturbed(PROCESSES[process], t)
    return sd.correct(problem_of(target, process), law.sample(n, seed=1), t, corrector, steps=STEPS, seed=3, **options), law


def p_values(x: Tensor, law: exam.Target) -> tuple[float, float, float]:
    """Of KS, mean and covariance."""
    moments = exam.moments(x, law)
    return exam.ks(x, law).p_value, moments.mean.p_value, moments.covariance.p_value


# -- what is left as it is -----------------------------------------------------------------------------------------------


def cases() -> list[object]:
    """Three noise levels, other ones on VE, as the same ratio of sigma to alpha is the same problem; a few of them always."""
    every = [(c, t, p, r) for c in FLYING for t in ("gaussian", "2d") for p, rs in (("VP", (0.1, 0.4, 2.0)), ("VE", (0.2, 0.7, 5.0))) for r in rs]
    quick = {("hmc", "2d", "VP", 0.4), ("underdamped", "2d", "VE", 0.7), ("hmc", "gaussian", "VE", 0.2), ("mala", "gaussian", "VP", 0.4)}
    return [pytest.param(*case, marks=[] if case in quick else [pytest.mark.slow]) for case in every]


@pytest.mark.parametrize(("corrector", "target", "process", "ratio"), cases())
def test_the_law_is_left_as_it_is(corrector: str, target: str, process: str, ratio: float) -> None:
    """With the Metropolis test at a large step, about the width of the narrowest part of p_t."""
    step_size = 1.2 * math.hypot(0.3, ratio) / ratio if target == "gaussian" else math.hypot(0.1, ratio) / ratio
    solution, law = chain(corrector, target, process, ratio, accept=True, step_size=step_size)
    assert 0.6 < float(solution.stats["acceptance"].mean()) < 0.995
    assert min(p_values(solution.x, law)) > 1e-3


UNEVEN = exam.gaussian_mixture([0.35, 0.65], [[-1.2], [0.8]], [0.25, 0.5])


def uneven(corrector: str, steps: int, **options: Any) -> tuple[float, float]:
    """KS at t = 0.1 after chains from exact samples of two modes of different widths, and the wider mode's share of them."""
    p, law = PROCESSES["VP"], UNEVEN.perturbed(PROCESSES["VP"], 0.1)
    solution = sd.correct(p.reverse(mixture_score(UNEVEN, p)), law.sample(N, seed=1), 0.1, corrector, steps=steps, seed=3, accept=True, **options)
    return exam.ks(solution.x, law).p_value, float((solution.x > -0.25).double().mean())


@pytest.mark.parametrize("steps", [20, 50, *(pytest.param(n, marks=pytest.mark.slow) for n in (100, 200))])
@pytest.mark.parametrize("corrector", FLYING)
def test_modes_of_different_widths_keep_their_shares(corrector: str, steps: int) -> None:
    """With the step that a chain takes by itself, which no state has a say in."""
    assert uneven(corrector, steps)[0] > 1e-3


def test_a_step_of_the_samples_own_moves_shares() -> None:
    """What the module says of "auto": a share of 0.629 is off by 0.03 or so."""
    p_value, share = uneven("mala", 50, step_size="auto")
    assert p_value < 1e-6 and 0.015 < 0.629 - share < 0.05


def test_simpsons_rule_is_for_steps_of_a_width() -> None:
    """What the pages say of the test: at 3 sigma_t, 2.4 widths of the narrow mode, another law is left as it is."""
    assert uneven("hmc", 50, step_size=3.0)[0] < 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("steps", [20, 50, 100, 200])
@pytest.mark.parametrize("corrector", FLYING)
def test_modes_of_different_widths_keep_their_shares_in_64_dimensions(corrector: str, steps: int) -> None:
    p, law, t = PROCESSES["VP"], TARGETS["64d"], level("VP", 0.3)
    pt = law.perturbed(p, t)
    x = pt.sample(N if steps < 100 else 5000, seed=1)
    solution = sd.correct(problem_of("64d", "VP"), x, t, corrector, steps=steps, seed=3, accept=True)
    assert min(p_values(solution.x, pt)) > 1e-3


def test_the_step_of_a_chain_is_the_dimensions() -> None:
    """r = d^-1/4 with the test unless a step is asked for; without it, and in a solve, "auto"."""
    x = PROCESSES["VP"].prior((5, 16), seed=0)
    problem = PROCESSES["VP"].reverse(lambda x, t: -x)
    sizes: dict[str, Tensor] = {
        name: sd.correct(problem, x, 0.5, **{"corrector": "hmc", **how}, steps=5, seed=0).stats["step_size"]
        for name, how in {
            "kernel": {"accept": True},
            "made": {"corrector": Trajectory(accept=True, step_size="kernel")},
            "asked": {"accept": True, "step_size": 0.3},
            "auto": {"accept": True, "step_size": "auto"},
            "target": {"accept": True, "target": 0.8},
            "plain": {},
        }.items()
    }
    half = torch.full((5,), 0.5, dtype=torch.float64)
    assert torch.allclose(sizes["kernel"], half, rtol=1e-12) and torch.equal(sizes["kernel"], sizes["made"])
    assert torch.allclose(sizes["asked"], 0.6 * half, rtol=1e-12)
    assert all(float(sizes[name].std()) > 1e-4 for name in ("auto", "target", "plain"))
    assert float(sd.solve(problem, x, "pc", steps=3, seed=0, corrector="hmc", accept=True).stats["step_size"].std()) > 1e-4


@pytest.mark.parametrize("corrector", ["mala", "hmc"])
def test_without_the_test_the_law_is_another(corrector: str) -> None:
    solution, law = chain(corrector, "2d", "VP", 0.4, accept=False, step_size=1.0)
    assert min(p_values(solution.x, law)) < 1e-6


def test_the_trapezoid_leaves_another_law(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trajectory, "MIDDLE", 0.0)
    solution, law = chain("hmc", "2d", "VP", 0.4, accept=True, step_size=1.0)
    assert min(p_values(solution.x, law)) < 1e-6


@pytest.mark.parametrize(
    ("corrector", "target"),
    [pytest.param(c, t, marks=[] if c == "hmc" or t == "gaussian" else [pytest.mark.slow]) for c in FLYING for t in TARGETS],
)
def test_one_setting_serves_every_law(corrector: str, target: str) -> None:
    """step_size="auto" with everything else at its default."""
    for ratio in (0.3, 3.0):
        solution, law = chain(corrector, target, "VP", ratio, 1000 if target == "64d" else 5000, accept=True, step_size="auto")
        assert 0.87 < float(solution.stats["acceptance"].mean()) < 0.98
        if target != "64d":  # whose modes are of different widths
            assert float(solution.stats["step_size"].log().std()) < 0.09, "a rule that goes on moving spreads"
        assert min(p_values(solution.x, law)) > 1e-3


@pytest.mark.parametrize("target", ["gaussian", pytest.param("2d", marks=pytest.mark.slow)])
def test_the_bias_of_chosen_steps_without_the_test(target: str) -> None:
    """What the module says: for HMC 5 % of the variance in one dimension and less in two, and below 1 % in a bath (3.5 standard errors of 0.7 % more)."""
    for ratio in (0.3, 3.0):
        for corrector, most in (("hmc", 0.06 if target == "gaussian" else 0.04), ("underdamped", 0.01)):
            solution, law = chain(corrector, target, "VP", ratio)
            inflation = float((solution.x.double().var(0) / law.variance).mean())
            assert -0.025 < inflation - 1 < most + 0.025
            assert float(solution.stats["stein"].mean()) == pytest.approx(1.03, abs=0.04)


@pytest.mark.parametrize("corrector", FLYING)
def test_chosen_steps_without_the_test_are_stable(corrector: str) -> None:
    """Where p_t is wide in all directions but one, in which it is as narrow as the kernel."""
    p, law, t = PROCESSES["VE"], exam.Gaussian([0.0] * 64, std=[0.001] + [1.0] * 63), level("VE", 0.02)
    x = law.perturbed(p, t).sample(500, seed=1)
    solution = sd.correct(p.reverse(law.score(p)), x, t, corrector, steps=STEPS, seed=3, accept=False)
    assert float(solution.stats["step_size"].min()) == 1
    assert float(solution.x.double().var(0)[0] / law.perturbed(p, t).variance[0]) < 2


@every
def test_the_law_after_a_solve(how: dict[str, Any]) -> None:
    """On N(0.5, 0.3^2), after a predictor of second order, whose own bias 60 steps make small; Langevin's is within what its page says."""
    p, law = PROCESSES["VP"], TARGETS["gaussian"]
    x = law.perturbed(p, p.T).sample(N, seed=1)
    end = sd.solve(problem_of("gaussian", "VP"), x, "pc", steps=60, grid="log_snr", predictor="heun_sde", seed=2, **how).x.double()
    exact = law.perturbed(p, p.eps)
    mean_error, var = float((end.mean() - exact.mean).abs() / (exact.variance / N).sqrt()), float(end.var() / exact.variance)
    assert mean_error < 4
    if how.get("accept"):
        assert abs(var - 1) < 4 * math.sqrt(2 / N)
    else:
        assert -4 * math.sqrt(2 / N) < var - 1 < 0.06


# -- energies ------------------------------------------------------------------------------------------------------------


class Flight:
    """Flights of one length at different steps, from exact samples of the mixture at sigma/alpha = 0.4 in float64."""

    def __init__(self, n: int = 500) -> None:
        self.p, self.t = PROCESSES["VP"], level("VP", 0.4)
        self.target = TARGETS["2d"]
        self.x = self.target.perturbed(self.p, self.t).sample(n, seed=1, dtype=torch.float64)
        self.v = SeededNormals(5, range(n), (2,), dtype=torch.float64, device="cpu").normal(0)
        self.sigma = float(self.p.sigma(self.t))

    def score(self, x: Tensor) -> Tensor:
        return self.target.score(self.p)(x, self.t)

    def log_prob(self, x: Tensor) -> Tensor:
        return self.target.log_prob(x, self.p, self.t)

    def flown(self, leapfrog: int, r: float, **options: Any) -> trajectory.Landed:
        made = Trajectory(leapfrog, r, accept=True, **options)
        source = SeededNormals(6, range(len(self.x)), (2,), dtype=torch.float64, device="cpu")
        return made.fly(self.score, self.x, self.score(self.x), self.v, r * self.sigma, r, lambda part: source.normal(0, part))

    def exact(self, end: trajectory.Landed) -> Tensor:
        """The change of energy without a bath."""
        return self.log_prob(self.x) - self.log_prob(end.x) + 0.5 * (end.v.square() - self.v.square()).sum(1)


def test_the_energy_error_falls_with_the_square_of_the_step() -> None:
    flight, counts = Flight(), (8, 16, 32, 64)
    errors = [float(flight.flown(n, 1.6 / n).energy.square().mean().sqrt()) for n in counts]
    assert slope(counts, errors) == pytest.approx(2, abs=0.1)


def test_simpsons_rule_is_of_order_four() -> None:
    flight, counts = Flight(), (16, 32, 64, 128)
    flights = [flight.flown(n, 1.6 / n) for n in counts]
    errors = [float((end.energy - flight.exact(end)).square().mean().sqrt()) for end in flights]
    assert slope(counts, errors) == pytest.approx(4, abs=0.2)
    assert errors[0] < 1e-5


def test_the_heat_is_not_an_error() -> None:
    """Behind a bath too, the energy error is of second order: what the bath gave has no part in it."""
    flight, counts = Flight(), (8, 16, 32, 64)
    errors = [float(flight.flown(n, 1.6 / n, friction=1.0).energy.square().mean().sqrt()) for n in counts]
    assert slope(counts, errors) > 1.4 and errors[-1] < 2e-3


def test_a_flight_can_be_flown_back() -> None:
    flight = Flight()
    end = flight.flown(5, 0.5)
    start, flight.x, flight.v = (flight.x, flight.v), end.x, -end.v
    back = flight.flown(5, 0.5)
    assert torch.allclose(back.x, start[0], rtol=0, atol=1e-13) and torch.allclose(-back.v, start[1], rtol=0, atol=1e-13)
    assert torch.allclose(back.energy, -end.energy, rtol=0, atol=1e-12)
    assert float(end.energy.abs().mean()) > 1e-3


def test_a_mass_is_a_change_of_units() -> None:
    """With 1/m the squares of the scales, a flight is that in units of the scales."""
    scale, n = torch.tensor([0.1, 3.0], dtype=torch.float64), 50
    u, v = (SeededNormals(seed, range(n), (2,), dtype=torch.float64, device="cpu").normal(0) for seed in (0, 1))

    def bent(u: Tensor) -> Tensor:
        return -u - 0.3 * u**3

    for friction in (0.0, 1.0):
        options: dict[str, Any] = {"leapfrog": 4, "step_size": 0.5, "accept": True, "friction": friction}
        plain = Trajectory(**options).fly(bent, u, bent(u), v, 0.5, 0.5, lambda part: v)
        heavy = Trajectory(mass=scale**-2, **options).fly(lambda x: bent(x / scale) / scale, scale * u, bent(u) / scale, v, 0.5, 0.5, lambda part: v)
        assert torch.allclose(heavy.x, scale * plain.x) and torch.allclose(heavy.v, plain.v) and torch.allclose(heavy.energy, plain.energy)


def test_mala_without_the_test_is_langevin() -> None:
    problem, x = problem_of("gaussian", "VP"), torch.linspace(-1, 1, 50)[:, None]
    ends = [sd.solve(problem, x, "pc", steps=5, seed=0, corrector_steps=2, **how).x for how in ({"corrector": "mala", "accept": False, "step_size": 0.32}, {"snr": 0.16})]
    assert torch.allclose(*ends, rtol=1e-5, atol=1e-6)


def stationary_variance(leapfrog: int, r: float, variance: float, friction: float) -> float:
    """Without the test, on N(0, variance), from the linear map that a flight is: gain times the start, and a kick by each normal."""

    def end(*numbers: float) -> float:
        x, v, *bath = (torch.full((1, 1), number, dtype=torch.float64) for number in numbers)
        made = Trajectory(leapfrog, r, friction=friction)
        return float(made.fly(lambda x: -x / variance, x, -x / variance, v, r, r, lambda part: bath[part - 2], landing=False).x)

    gain, *kicks = (end(*row) for row in torch.eye(leapfrog + 2).tolist())
    return sum(kick**2 for kick in kicks) / (1 - gain**2)


@pytest.mark.parametrize("r", [0.3, 1.0])
def test_the_variance_without_the_test_is_what_its_page_says(r: float) -> None:
    """V / (1 - h^2/4V) for HMC whatever L; a bath within a flight of ten steps makes it exact to 4 in 10,000."""
    for leapfrog, variance in ((1, 1.0), (3, 0.7), (4, 2.0)):
        assert stationary_variance(leapfrog, r, variance, 0.0) == pytest.approx(variance / (1 - r**2 / (4 * variance)), rel=1e-9)
    assert stationary_variance(10, r, 1.0, 1.0) == pytest.approx(1, abs=5e-4)
    assert stationary_variance(3, 0.6, 1.0, 1.0) == pytest.approx(1.023, abs=1e-3)


# -- what they say -------------------------------------------------------------------------------------------------------


def test_what_a_chain_says_of_itself() -> None:
    """On a Gaussian in 50 dimensions at a small step every flight is accepted, and scores correlate by 1 - h^2/2V from one to the next."""
    p, t, r = PROCESSES["VE"], 0.5, 0.3
    sigma = float(p.sigma(t))
    problem = p.reverse(exam.Gaussian([0.0] * 50, std=0.01).score(p))
    x = sigma * SeededNormals(0, range(200), (50,), dtype=torch.float32, device="cpu").normal(0)
    said = sd.correct(problem, x, t, "mala", steps=300, seed=0, step_size=r).stats
    rho = 1 - r**2 / 2
    assert said["acceptance"].shape == said["ess"].shape == (200,)
    assert float(said["step_size"].max()) == pytest.approx(r) == float(said["step_size"].min())
    assert float(said["acceptance"].mean()) == pytest.approx(1 - 0.5 * float(said["energy_error"].mean()), abs=0.01)
    assert float(said["ess"].mean()) == pytest.approx(300 * (1 - rho) / (1 + rho), rel=0.15)
    assert float(said["stein"].mean()) == pytest.approx(1, abs=0.02)
    wide = sd.correct(problem, 1.5 * x, t, "mala", steps=3, seed=0, step_size=r).stats
    assert float(wide["stein"].mean()) > 1.8


@pytest.mark.parametrize("name", ["mala", "hmc", "underdamped"])
def test_of_no_steps_a_chain_says_nothing(name: str) -> None:
    """But the step size that it would begin with."""
    x = PROCESSES["VP"].prior((3, 2), seed=0)
    still = sd.correct(problem_of("2d", "VP"), x, 0.3, name, steps=0, seed=0, accept=True).stats
    walked = sd.solve(problem_of("2d", "VP"), x, "pc", corrector=name, corrector_steps=0, steps=3, seed=0).stats
    for stats in (still, walked):
        assert stats["step_size"].shape == (3,) and not {"stein", "acceptance", "energy_error", "ess"} & stats.keys()


def test_a_chain_without_a_score_is_worth_no_draws() -> None:
    half = PROCESSES["VP"].reverse(lambda x, t: torch.where(x[:, :1] > 0, -x, 0 * x))
    stats = sd.correct(half, torch.tensor([[5.0, 1.0], [-500.0, 1.0]]), 0.3, "hmc", steps=5, seed=0, accept=True).stats
    assert float(stats["ess"][0]) > 0 == float(stats["ess"][1]) and float(stats["acceptance"][1]) == 1


@every
def test_a_solve_says_what_its_corrector_does(how: dict[str, Any]) -> None:
    x = PROCESSES["VP"].prior((3, 2), seed=0)
    stats = sd.solve(problem_of("2d", "VP"), x, "pc", steps=4, seed=0, gradient="backprop", **how).stats
    said = set() if how["corrector"] == "langevin" else {"step_size", "stein"}
    said |= {"acceptance", "energy_error", "ess"} if how.get("accept") else set()
    assert said == {name for name in ("step_size", "stein", "acceptance", "energy_error", "ess") if name in stats}
    assert all(stats[name].shape == (3,) and not stats[name].requires_grad for name in said)


@pytest.mark.parametrize("predictor", [name for name, _ in sd.methods()])
def test_every_method_predicts_or_is_refused(predictor: str) -> None:
    """What can do a reverse SDE or its flow ends well; what cannot is named, with its need, before the first call."""
    p, calls = PROCESSES["VP"], []

    def score(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return -x

    solve = lambda predictor, **options: sd.solve(p.reverse(score), p.prior((3, 2), seed=0), "pc", predictor=predictor, steps=6, seed=0, **options)  # noqa: E731
    needs = {"baoab": "UnderdampedLangevin", "ubu": "UnderdampedLangevin", "platen": "diagonal, general, scalar noise"}
    needs |= dict.fromkeys(("milstein_free", "sriw1", "sosri"), "diagonal, scalar noise")
    if predictor not in needs:
        assert solve(predictor).ok().all() and calls
        return
    made = make_method(predictor)
    for given, name in ((predictor, predictor), (made, type(made).__name__)):
        with pytest.raises(ValueError, match=rf"predictor='{name}' needs a?.*{needs[predictor]}.*as in predictor='reverse_diffusion'"):
            solve(given)
    assert not calls and solve("reverse_diffusion").ok().all()


# -- what they cost ------------------------------------------------------------------------------------------------------


@every
@pytest.mark.parametrize("predictor", [None, "euler_maruyama", "heun"])
def test_calls_a_step(how: dict[str, Any], predictor: str | None) -> None:
    """A count in the network, sol.nfe and the declared calls agree."""
    seen = list[float]()

    def network(x: Tensor, t: Tensor) -> Tensor:
        seen.append(float(t[0]))
        return -x

    for corrector_steps in (0, 1, 3):
        options = {"predictor": predictor, "corrector_steps": corrector_steps, **how}
        seen.clear()
        solution = sd.solve(PROCESSES["VP"].reverse(network), torch.ones(2, 3), "pc", steps=4, seed=0, **options)
        assert solution.nfe == len(seen) == solution.stats["calls"] == 4 * make_method("pc", **options).facts.evals
    made = CORRECTORS[how["corrector"]](**{name: value for name, value in how.items() if name != "corrector"})
    if isinstance(made, Trajectory):
        assert made.calls(3) == 3 * made.leapfrog * (2 if made.accept else 1) + made.accept
    seen.clear()
    assert sd.correct(PROCESSES["VP"].reverse(network), torch.ones(2, 3), 0.5, steps=3, **how).nfe == len(seen) == made.calls(3)
    assert set(seen) == {0.5}


# -- rows, hosts, graphs -------------------------------------------------------------------------------------------------


@every
def test_sample_is_the_same_in_every_batch(how: dict[str, Any]) -> None:
    p, ids = PROCESSES["VP"], torch.arange(1000)

    def sampled(rows: Tensor, method: bool) -> tuple[Tensor, Tensor | None]:
        x, problem = p.prior((len(rows), 2, 5), seed=3, sample_ids=rows), p.reverse(GaussianTarget(p).score)
        if method:
            solution = sd.solve(problem, x, "pc", steps=6, seed=3, sample_ids=rows, corrector_steps=2, **how)
        else:
            solution = sd.correct(problem, x, 0.4, steps=6, seed=3, sample_ids=rows, **how)
        assert solution.ok().all()
        return solution.x, solution.stats.get("ess", solution.stats.get("step_size"))

    for method in (True, False):
        x, said = sampled(ids, method)
        for rows in (ids[5:6], ids[10:12], ids[100:107], ids.flip(0), ids[300:700]):
            alone, told = sampled(rows, method)
            assert torch.equal(alone, x[rows])
            assert said is None or (told is not None and torch.equal(told, said[rows]))


@every
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_one_bad_sample_leaves_the_others_alone(how: dict[str, Any], bad: float) -> None:
    p = PROCESSES["VP"]
    x = p.prior((64, 2, 5), seed=3)
    problem = p.reverse(GaussianTarget(p).score)
    spoilt = x.clone()
    spoilt[17, 1, 2] = bad
    others = torch.arange(64) != 17
    clean = sd.solve(problem, x, "pc", steps=6, seed=3, **how)
    with pytest.warns(sd.SolveWarning, match="sample 17: non_finite at t = 1"):
        hurt = sd.solve(problem, spoilt, "pc", steps=6, seed=3, **how)
    assert torch.equal(hurt.x[others], clean.x[others]) and hurt.ok().tolist() == others.tolist()
    with pytest.warns(sd.SolveWarning, match="sample 17: non_finite at t = 0.4"):
        assert sd.correct(problem, spoilt, 0.4, steps=3, seed=0, **how).ok().tolist() == others.tolist()


@every
def test_a_sample_without_a_score_is_reported(how: dict[str, Any]) -> None:
    """Where the network gives no number at a sample itself, no flight is ever accepted; that isn't passed off as a sample."""
    problem = PROCESSES["VP"].reverse(lambda x, t: torch.where(x > 5, torch.nan, -x))
    with pytest.warns(sd.SolveWarning, match="1 of 2 samples"):
        solution = sd.correct(problem, torch.tensor([[0.0], [6.0]]), 0.5, steps=3, seed=0, **how)
    assert solution.ok().tolist() == [True, False] and math.isnan(solution.failed_at[0]) and float(solution.failed_at[1]) == 0.5


@pytest.mark.parametrize("corrector", FLYING)
def test_a_flight_out_of_the_world_is_rejected(corrector: str) -> None:
    """Beyond 2 there is no score, and with the test nobody stays there."""
    problem = PROCESSES["VP"].reverse(lambda x, t: torch.where(x > 2, torch.nan, -x))
    solution = sd.correct(problem, torch.zeros(2000, 1), 0.9, corrector, steps=50, seed=0, accept=True, step_size="auto")
    assert solution.ok().all() and float(solution.x.max()) <= 2 and float(solution.x.max()) > 1.5
    assert float(solution.stats["acceptance"].min()) > 0.5


@every
def test_no_host_read(how: dict[str, Any]) -> None:
    p = PROCESSES["VP"]
    stepper, x = make_method("pc", corrector_steps=2, **how), p.prior((4, 2, 3), seed=0)
    grid, source = make_grid("uniform", None, 1.0, 0.1, 5), SeededNormals(0, range(4), (2, 3), dtype=x.dtype, device=x.device, nodes=5)
    problem = p.reverse(sd.as_score(lambda x, t: -x, p, predicts="epsilon"))
    with NoReads():
        out = fixed.run(stepper, problem, x, grid, lambda node: SeededStep(source, node), {}, None)
        stepper.stats(out.carry)
    assert out.x.isfinite().all()


@every
def test_checkpoints_give_the_gradient_of_the_whole_graph(how: dict[str, Any]) -> None:
    """Step sizes and acceptances are constants for it."""
    p, found = PROCESSES["VP"], []
    for gradient in ("backprop", "checkpoint"):
        weight, x = torch.tensor(1.3, dtype=torch.float64, requires_grad=True), p.prior((5, 2), seed=0).double().requires_grad_()
        end = sd.solve(p.reverse(lambda x, t, weight=weight: -weight * x), x, "pc", steps=7, seed=1, gradient=gradient, **how).x  # type: ignore[misc]
        found.append((end, *torch.autograd.grad(end.square().sum(), (x, weight))))
    for a, b in zip(*found, strict=True):
        assert torch.allclose(a, b, rtol=1e-10)
    assert found[0][1].abs().min() > 0


@pytest.mark.parametrize("accept", [False, True])
def test_what_is_learnt_is_a_constant_for_gradients(accept: bool) -> None:
    made, x = Trajectory(accept=accept), X.double().requires_grad_()
    source = SeededNormals(0, range(3), (2,), dtype=torch.float64, device="cpu")
    end, carry = made.correct(VP_2D, x, 0.5, 2, source.normal, Account(*(part.requires_grad_() for part in made.init(x))))
    assert end.requires_grad and not any(part.requires_grad for part in carry)


@every
def test_no_noise_is_used_twice(how: dict[str, Any]) -> None:
    asked = list[int]()

    class Spy(SeededStep):
        def normal(self, slot: int = 0) -> Tensor:
            asked.append(slot)
            return super().normal(slot)

    source = SeededNormals(0, range(3), (2,), dtype=torch.float32, device="cpu")
    stepper = make_method("pc", predictor="sra1", corrector_steps=4, **how)
    stepper.step(VP_2D, X, 0.9, 0.8, Spy(source, 0), stepper.init(VP_2D, X, 0.9))
    assert len(asked) == len(set(asked)) >= 2 + 4


# -- options -------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"leapfrog": 0}, "leapfrog=0; expected an integer >= 1"),
        ({"step_size": 0.0}, r'step_size=0.0; expected a finite number, 0 < step_size, as in step_size=0.3 or "auto" or "kernel"'),
        ({"step_size": "big"}, "step_size='big'; expected"),
        ({"step_size": math.nan}, "step_size=nan; expected"),
        ({"accept": 1}, "accept=1; expected True or False"),
        ({"accept": True, "target": 1.0}, "target=1.0; expected a finite number, 0 < target < 1, as in target=0.9"),
        ({"target": -0.1}, "target=-0.1; expected .* as in target=0.3"),
        ({"corrector": "underdamped", "friction": -1.0}, "friction=-1.0; expected"),
        ({"corrector": "mala", "leapfrog": 3}, "'leapfrog' is not known as an option of corrector='mala'"),
        ({"mass": 2.0}, "mass is 2.0; expected a floating tensor"),
        ({"mass": torch.tensor([1.0, 0.0])}, "not finite or not > 0"),
        ({"mass": torch.ones(3)}, r"mass is \(3,\) on cpu for samples of \(2,\)"),
        ({"corrector": 3}, "corrector is a int; expected one of langevin"),
        ({"corrector": Langevin(), "snr": 0.1}, "given when it is made"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    def uncalled(x: Tensor, t: Tensor) -> Tensor:
        raise AssertionError("the network was called")

    problem = PROCESSES["VP"].reverse(uncalled)
    how = {"corrector": "hmc", **options}
    for call in (lambda: sd.solve(problem, X, "pc", predictor=None, **how), lambda: sd.correct(problem, X, 0.5, **how)):
        with pytest.raises((ValueError, TypeError), match=message):
            call()


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"problem": sd.ODE(lambda x, t: -x)}, "has no score; expected process.reverse"),
        ({"t": 0.0}, "t=0.0; expected a time, 0 < t <= 1"),
        ({"t": torch.tensor(0.5)}, "expected a time"),
        ({"steps": -1}, "expected an integer >= 0"),
        ({"x": [1.0]}, "x is a list"),
        ({"seed": -1}, "seed=-1; expected"),
        ({"sample_ids": [0]}, "sample_ids has shape"),
        ({"corrector": "hcm"}, "as corrector; .* Did you mean 'hmc'"),
    ],
)
def test_bad_calls(how: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"problem": VP_2D, "x": X, "t": 0.5, **how}
    with pytest.raises((ValueError, TypeError), match=message):
        sd.correct(**arguments)


def test_chains_are_named_by_seed_and_sample() -> None:
    ends = [sd.correct(VP_2D, X, 0.5, steps=4, **how) for how in ({"seed": 0}, {"seed": 0}, {"seed": 1}, {"seed": 0, "sample_ids": [5, 6, 7]}, {})]
    assert torch.equal(ends[0].x, ends[1].x) and all(not torch.equal(ends[0].x, other.x) for other in ends[2:])
    assert torch.equal(ends[4].x, sd.correct(VP_2D, X, 0.5, steps=4, seed=ends[4].stats["seed"]).x)
    assert torch.equal(sd.correct(VP_2D, X, 0.5, steps=0, seed=0).x, X)
    assert torch.equal(sd.correct(PROCESSES["VP"].probability_flow(lambda x, t: -x), X, 0.5, steps=4, seed=0).x, ends[0].x)


@every
def test_times_may_be_each_samples_own(how: dict[str, Any]) -> None:
    """A corrector takes a float or a float64 tensor (B,)."""
    made = CORRECTORS[how["corrector"]](**{name: value for name, value in how.items() if name != "corrector"})
    x, source = PROCESSES["VP"].prior((3, 2), seed=0).double(), SeededNormals(0, range(3), (2,), dtype=torch.float64, device="cpu")
    once, each = (made.correct(VP_2D, x, t, 2, source.normal, made.init(x))[0] for t in (0.3, torch.full((3,), 0.3, dtype=torch.float64)))
    assert torch.allclose(once, each, rtol=1e-12)
