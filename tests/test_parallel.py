"""Parallel in time: the result is the sequential one, of the same method, grid and noise, after fewer calls one after the other."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from limits import processor_seconds
from problems import PROCESSES, mixture_score, nonlinear_ode, solvable
from torch import Tensor

import sdesolve as sd
from sdesolve import exam
from sdesolve._arrays import bcast
from sdesolve._loops.parallel import _added_up
from sdesolve.correctors import Account, Langevin
from sdesolve.methods import METHODS, Facts, Step, make_method

DTYPES = [torch.float32, torch.float64]
ITERATED = [name for name in METHODS if not make_method(name).reversible and not make_method(name).one_time]
NO_GAIN = {"sa_solver", "dpmpp_3m", "dpmpp_3m_sde"}  # rows that correct the past bring back what the iteration has just changed
VP = PROCESSES["VP"]


@dataclass(frozen=True)
class AdamsBashforth(sd.Stepper):
    """x1 = x + h ((1 + r) f - r f_-1) with r = h/(2 h_-1): its carry is a tuple, empty at the start, of the last slope and its time."""

    facts: ClassVar[Facts] = Facts(evals=1, ode=2)

    def init(self, problem: Any, x: Tensor, t: Any) -> tuple[Any, ...]:
        return ()

    def step(self, problem: Any, x: Tensor, t0: Any, t1: Any, noise: Any, carry: Any) -> Step:
        slope, h = problem.drift(x, t0), t1 - t0
        if not carry:
            return Step(x + bcast(h, x) * slope, carry=(slope, t0))
        r = 0.5 * h / (t0 - carry[1])
        return Step(x + bcast(h, x) * (bcast(1 + r, x) * slope - bcast(r, x) * carry[0]), carry=(slope, t0))


def nonlinear(x: Tensor, t: Tensor) -> Tensor:
    """Elementwise, so that a row has the same bits in every batch."""
    return torch.sin(2 * x) - 1.5 * x


def two_modes(x: Tensor, t: Tensor) -> Tensor:
    """The score of N(-1, 0.3^2)/2 + N(1, 0.3^2)/2 in each coordinate, elementwise too."""
    alpha, sigma = VP.alpha(t), VP.sigma(t)
    mean, variance = (sd.expand_time(value, x).to(x) for value in (alpha, (0.3 * alpha).square() + sigma.square()))
    return (mean * torch.tanh(mean * x / variance) - x) / variance


def problem_for(method: Any) -> Any:
    name = method if isinstance(method, str) else "euler"
    return solvable(name, two_modes if "score" in make_method(name).facts.needs else nonlinear)


def pair(problem: Any, x: Tensor, method: Any, tolerance: float, window: int = 8, update: Any = "secant", **how: Any) -> tuple[sd.Solution, sd.Solution]:
    """The sequential solution and the parallel one."""
    how = {"steps": 40, "seed": 5, **how}
    return sd.solve(problem, x, method, **how), sd.solve(problem, x, method, **how, parallel=sd.Parallel(window, tolerance, update))


def distance(a: sd.Solution, b: sd.Solution) -> float:
    return float((a.x - b.x).abs().max() / a.x.abs().max())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("method", [*ITERATED, AdamsBashforth()], ids=str)
def test_the_end_is_the_sequential_one(method: Any, dtype: torch.dtype) -> None:
    """To the tolerance with fewer calls in a row, and to rounding at tolerance 0."""
    x, problem = VP.prior((3, 2, 2), seed=0, dtype=dtype), problem_for(method)
    walked, near = pair(problem, x, method, 1e-4)
    assert distance(walked, near) < 1e-3
    assert near.stats["depth"] < walked.stats["calls"] + (method in NO_GAIN) and near.ok().all()
    _, same = pair(problem, x, method, 0.0)
    assert distance(walked, same) < (1e-5 if dtype == torch.float32 else 1e-12)


@pytest.mark.parametrize("event", [(), (1,), (2, 3)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("method", ["euler_maruyama", "heun", "bosh3"])
def test_any_shape_and_precision(method: str, dtype: torch.dtype, event: tuple[int, ...]) -> None:
    """Below the rounding of a dtype, a tolerance asks for no change at all, and there is an end to that too."""
    x = VP.prior((3, *event), seed=0, dtype=dtype)
    walked, near = pair(problem_for(method), x, method, 1e-4)
    assert near.x.dtype == dtype and near.x.shape == x.shape and near.ok().all()
    assert distance(walked, near) < 50 * torch.finfo(dtype).eps and int(near.stats["iterations"].max()) <= 40


@pytest.mark.parametrize("window", [1, 2, 16, 100])
@pytest.mark.parametrize("steps", [1, 2, 3, 17])
@pytest.mark.parametrize("method", ["pc", "bosh3", AdamsBashforth()], ids=str)
def test_any_number_of_steps(method: Any, steps: int, window: int) -> None:
    walked, near = pair(problem_for(method), torch.ones(2, 2), method, 0.0, window, steps=steps)
    assert distance(walked, near) < 1e-5 and near.ok().all()
    assert near.stats["depth"] <= walked.stats["calls"] and float(near.nfe.double().min()) >= walked.nfe


@pytest.mark.parametrize("update", ["secant", "picard"])
@pytest.mark.parametrize("interval", [(0.0, 1.0), (1.0, 0.0)])
def test_in_both_directions(interval: tuple[float, float], update: str) -> None:
    ode, x, _ = nonlinear_ode(interval)
    sde = sd.SDE(lambda x, t: -torch.sin(3 * x), lambda x, t: 0.3 + 0.1 * torch.cos(x), interval=interval)
    matrix = sd.SDE(lambda x, t: -torch.sin(3 * x), lambda x, t: 0.3 * torch.stack([torch.cos(x), torch.sin(x)], -1), noise="general", interval=interval)
    for problem, method in ((ode, "heun"), (ode, "dop853"), (sde, "milstein"), (sde, "sriw1"), (matrix, "heun_sde"), (matrix, "platen")):
        walked, near = pair(problem, x, method, 1e-4, update=update)
        assert 0 < distance(walked, near) < 1e-3
        walked, same = pair(problem, x, method, 0.0, update=update)
        assert distance(walked, same) < 1e-14


@pytest.mark.parametrize("noise", ["seeded", "brownian"])
@pytest.mark.parametrize("method", ["euler_maruyama", "sra1", "pc", "ubu"])
def test_the_noise_is_the_walks(method: str, noise: str) -> None:
    """Increments, areas and corrector normals of the same seed and rows: at tolerance 0 to rounding."""
    ids = torch.tensor([40, 3, 7])
    x = torch.ones(3, 2, 2, dtype=torch.float64)
    walked, same = pair(problem_for(method), x, method, 0.0, sample_ids=ids, noise=noise)
    assert distance(walked, same) < 1e-14 and float((same.x[0] - same.x[1]).abs().min()) > 1e-3


@pytest.mark.parametrize("account", [False, True])
def test_a_carry_has_to_come_to_rest_too(account: bool) -> None:
    """A step that waits for its thirteenth, within the second window: the states before it are all the same, and only the carry tells where they stand."""

    class Thirteenth(sd.Stepper):
        facts: ClassVar[Facts] = Facts(evals=0, ode=1)

        def init(self, problem: Any, x: Tensor, t: Any) -> Any:
            count = torch.zeros(len(x), 1, dtype=torch.int64)
            return Account(count, count) if account else count

        def step(self, problem: Any, x: Tensor, t0: Any, t1: Any, noise: Any, carry: Any) -> Step:
            count = carry[0] if account else carry
            return Step(torch.where(count == 12, x + 1, x), carry=Account(count + 1, count) if account else count + 1)

    walked, same = pair(sd.ODE(nonlinear), torch.ones(2, 1), Thirteenth(), 1e-3)
    assert torch.equal(walked.x, same.x) and float(same.x[0]) == 2.0


@pytest.mark.parametrize(("process", "method", "ratio"), [("VP", "ddim", 8), ("VP", "euler_maruyama", 5), ("VE", "heun", 7), ("VE", "reverse_diffusion", 5), ("VP", "pc", 4)])
def test_fewer_calls_in_a_row(process: str, method: str, ratio: float) -> None:
    """Of the sequential calls for 100 steps on a mixture, with a window of 50; and fewer for the secant than for Picard's iteration."""
    p = PROCESSES[process]
    problem = p.reverse(mixture_score(exam.mixture_2d(), p))
    x = p.prior((8, 2), seed=0)
    walked, near = pair(problem, x, method, 1e-3, window=50, steps=100)
    _, picard = pair(problem, x, method, 1e-3, window=50, steps=100, update="picard")
    assert walked.stats["calls"] > ratio * near.stats["depth"]
    assert near.stats["depth"] < picard.stats["depth"] < walked.stats["calls"]
    assert distance(walked, near) < 3e-3 and distance(walked, picard) < 3e-3


@pytest.mark.parametrize("method", ["euler_maruyama", "ddim", "bosh3", "pc", "baoab", AdamsBashforth()], ids=str)
def test_a_row_is_the_same_in_every_batch(method: Any) -> None:
    """Bit for bit in batches of 1, 2 and 7, though rows come to rest at different iterations."""
    problem = problem_for(method)
    x = VP.prior((7, 2, 3), seed=0) * torch.tensor([0.01, 0.1, 1, 3, 10, 30, 100])[:, None, None]
    ids = torch.arange(7)
    whole = sd.solve(problem, x, method, steps=40, seed=1, parallel=8)
    assert len(whole.stats["iterations"].unique()) > 1
    for rows in (ids[2:3], ids[4:6], ids[[6, 0]], ids.flip(0), ids[5:6]):
        part = sd.solve(problem, x[rows], method, steps=40, seed=1, parallel=8, sample_ids=rows)
        assert torch.equal(part.x, whole.x[rows]) and torch.equal(part.nfe, whole.nfe[rows])
        assert torch.equal(part.stats["iterations"], whole.stats["iterations"][rows])


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("method", ["euler_maruyama", "bosh3", AdamsBashforth()], ids=str)
def test_a_broken_row_ends_alone(method: Any, bad: float) -> None:
    problem = problem_for(method)
    x = VP.prior((4, 3), seed=0)
    clean = sd.solve(problem, x, method, steps=30, seed=1, parallel=8)
    spoilt = x.clone()
    spoilt[1, 2] = bad
    with pytest.warns(sd.SolveWarning, match="sample 1: non_finite at t = 1"):
        hurt = sd.solve(problem, spoilt, method, steps=30, seed=1, parallel=8)
    others = torch.tensor([0, 2, 3])
    assert torch.equal(hurt.x[others], clean.x[others]) and not hurt.x[1].isfinite().all()
    assert hurt.ok().tolist() == [True, False, True, True]


DRIFTS = {
    "breaks on the way": lambda x, t: torch.where((x > 1.5) & (sd.expand_time(t, x) > 0.5), torch.nan, 1.0),
    "explodes": lambda x, t: x.square() * 10,
    "jumps": lambda x, t: -5 * torch.sign(x - 0.3),
    "swings too far": lambda x, t: -150 * x,
    "overflows": lambda x, t: torch.full_like(x, 1e38),
}


@pytest.mark.parametrize("window", [1, 16, 500])
@pytest.mark.parametrize("update", ["secant", "picard"])
@pytest.mark.parametrize("drift", DRIFTS.values(), ids=DRIFTS.keys())
@pytest.mark.filterwarnings("ignore::sdesolve.SolveWarning")
def test_never_more_iterations_than_steps(drift: Any, update: str, window: int) -> None:
    """Whatever the drift does, rows end where, when and as the sequential ones do."""
    x = torch.tensor([[0.0], [1.2], [-2.0], [0.7]])
    with processor_seconds(20):
        walked, near = pair(sd.ODE(drift), x, "euler", 1e-4, window=window, steps=100, update=update)
    arrived = walked.ok()
    assert int(near.stats["iterations"].max()) <= 100
    assert near.status.tolist() == walked.status.tolist() and near.failures() == walked.failures()
    assert torch.allclose(near.x[arrived], walked.x[arrived], rtol=1e-3, atol=1e-3)


def test_calls_are_counted() -> None:
    """nfe are the rows that the network saw of each sample, depth the calls."""
    rows: list[int] = []

    def network(x: Tensor, t: Tensor) -> Tensor:
        rows.append(len(x))
        return nonlinear(x, t)

    x = VP.prior((5, 2), seed=0)
    solution = sd.solve(VP.reverse(network), x, "pc", steps=30, seed=0, parallel=8, denoise=True)
    assert solution.stats["calls"] == len(rows) == solution.stats["depth"] + 1 and sum(rows) == solution.stats["rows"] == int(solution.nfe.sum())
    assert solution.stats["depth"] == 2 * int(solution.stats["iterations"].max()) and max(rows) == 5 * 8


@pytest.mark.parametrize("method", ["unipc", "euler_maruyama", "auto"])
def test_no_budget_of_calls_is_promised(method: str) -> None:
    """A step is evaluated as often as it takes, so that nfe= is refused before the first call; a method that has calls of its own in mind goes without."""
    seen: list[int] = []

    def network(x: Tensor, t: Tensor) -> Tensor:
        seen.append(len(x))
        return nonlinear(x, t)

    problem, x = VP.reverse(network), VP.prior((3, 2), seed=0)
    with pytest.raises(ValueError, match=r"nfe=8 is the most network calls .* as in steps=8"):
        sd.solve(problem, x, method, nfe=8, seed=0, parallel=4)
    assert not seen
    assert int(sd.solve(problem, x, method, steps=8, seed=0, parallel=4).nfe.min()) > 8
    assert sd.solve(problem, x, method, seed=0, parallel=16, **({} if method == "auto" else {"steps": 20})).ok().all()


def test_what_the_last_step_carries_is_the_sequential_one() -> None:
    """The reports of a corrector, of rows that arrive at different iterations."""
    x = VP.prior((5, 3), seed=0, dtype=torch.float64) * torch.tensor([0.01, 0.1, 1, 3, 10], dtype=torch.float64)[:, None]
    walked, same = pair(VP.reverse(two_modes), x, "pc", 0.0, corrector="mala", accept=True)
    told = {name for name, value in walked.stats.items() if isinstance(value, Tensor)}
    assert {"acceptance"} <= told and float(walked.stats["acceptance"].std()) > 1e-3
    for name in told:
        assert torch.allclose(same.stats[name].double(), walked.stats[name].double(), rtol=1e-9), name


STEPPING: dict[str, tuple[dict[str, Any], float]] = {  # a corrector -> how much of the calls in a row is left, at most
    "mala without a test": ({"corrector": "mala", "accept": False, "step_size": 0.32}, 0.3),
    "mala": ({"corrector": "mala", "step_size": 0.32}, 0.3),
    "hmc": ({"corrector": "hmc", "step_size": 0.3}, 0.3),
    "hmc by the kernel": ({"corrector": "hmc", "step_size": "kernel"}, 0.4),
    "hmc by itself": ({"corrector": "hmc"}, 0.7),
    "underdamped": ({"corrector": "underdamped", "step_size": 0.3, "corrector_steps": 2}, 0.4),
    "mala by itself": ({"corrector": "mala"}, 0.7),
}


@pytest.mark.parametrize("case", STEPPING)
def test_what_a_corrector_counts_does_not_hold_it_up(case: str) -> None:
    """Counts and sums are in its carry, and a step that adapts is found along the way."""
    options, left = STEPPING[case]
    x, how = VP.prior((4, 3), seed=0, dtype=torch.float64), {"steps": 60, "window": 30, **options}
    walked, near = pair(VP.reverse(two_modes), x, "pc", 1e-4, **how)
    assert distance(walked, near) < 2e-3 and near.stats["depth"] <= left * walked.stats["calls"], near.stats["depth"] / walked.stats["calls"]
    assert float((near.stats["stein"] - walked.stats["stein"]).abs().max()) < 1e-2
    _, same = pair(VP.reverse(two_modes), x, "pc", 0.0, **how)
    assert distance(walked, same) < 1e-9 and torch.allclose(same.stats["step_size"], walked.stats["step_size"], rtol=1e-9)


def test_a_count_that_is_not_finite_is_the_step_s_own() -> None:
    """An error of energy that overflows, of a flight that is not accepted."""
    before, ends = torch.tensor([[[1.0], [math.inf], [math.inf]]]), torch.tensor([[[math.inf], [math.inf]]])
    assert torch.equal(_added_up(before, ends), torch.tensor([[[1.0], [math.inf], [math.inf]]]))


@pytest.mark.parametrize("method", ["euler_maruyama", "bosh3", AdamsBashforth()], ids=str)
def test_nodes_are_told_once_and_in_order(method: Any) -> None:
    problem = problem_for(method)
    x = VP.prior((4, 2), seed=0) * torch.tensor([0.01, 1, 10, 100])[:, None]
    told: list[sd.Moment] = []
    plain = sd.solve(problem, x, method, steps=20, seed=1, parallel=8)
    solution = sd.solve(problem, x, method, steps=20, seed=1, parallel=8, save="all", callback=lambda m: told.append(m._replace(x=m.x.clone())), progress=True)
    assert [moment.step for moment in told] == list(range(1, 21))
    assert [moment.t for moment in told] == solution.ts[1:].tolist()
    assert torch.equal(torch.stack([x, *(moment.x for moment in told)]), solution.xs)
    assert torch.equal(solution.xs[-1], solution.x) and torch.equal(solution.x, plain.x)
    walked = sd.solve(problem, x, method, steps=20, seed=1, save="all")
    assert torch.allclose(solution.xs, walked.xs, rtol=1e-2, atol=1e-3)
    few = sd.solve(problem, x, method, steps=20, seed=1, parallel=8, save=[float(solution.ts[12]), float(solution.ts[5])])
    assert torch.equal(few.xs, solution.xs[[5, 12]])


@pytest.mark.filterwarnings("ignore::sdesolve.SolveWarning")
def test_what_a_broken_row_did_not_reach_is_not_a_number() -> None:
    problem = sd.ODE(lambda x, t: torch.where((x > 1.5) & (sd.expand_time(t, x) > 0.5), torch.nan, 1.0))
    told: list[int] = []
    solution = sd.solve(problem, torch.tensor([[0.0], [1.2]]), "euler", steps=20, parallel=8, save="all", callback=lambda moment: told.append(moment.step))
    assert solution.xs[:, 0].isfinite().all() and told == list(range(1, 21))
    assert solution.xs[:, 1, 0].isfinite().tolist() == [t < solution.failed_at[1] for t in solution.ts]


def test_one_read_an_iteration(monkeypatch: pytest.MonkeyPatch) -> None:
    reads, cpu = [], Tensor.cpu
    monkeypatch.setattr(Tensor, "cpu", lambda x: reads.append(1) or cpu(x))
    solution = sd.solve(VP.reverse(nonlinear), VP.prior((5, 2), seed=0), "euler_maruyama", steps=50, seed=0, parallel=8)
    assert int(solution.stats["iterations"].max()) <= len(reads) <= int(solution.stats["iterations"].max()) + 5


def test_times_of_rows_that_multiply_columns_are_noticed() -> None:
    """One sample of 16 numbers and 16 steps at once: t has the shape of a row."""
    x = torch.ones(1, 16)
    for problem, name in (
        (sd.ODE(lambda x, t: -x * torch.cos(t)), "drift"),
        (sd.SDE(lambda x, t: -x * torch.cos(t), lambda x, t: 0.1 * torch.ones_like(x), noise="additive"), "drift"),
        (sd.SDE(lambda x, t: -x, lambda x, t: 0.1 * torch.cos(t), noise="additive"), "diffusion"),
    ):
        with pytest.raises(ValueError, match=f"{name} gives a row another value"):
            sd.solve(problem, x, "euler" if isinstance(problem, sd.ODE) else "euler_maruyama", steps=32, seed=0, parallel=16)


def test_a_tensor_of_the_whole_batch_is_named() -> None:
    labels = torch.ones(5, 1)
    with pytest.raises(RuntimeError) as caught:
        sd.solve(sd.ODE(lambda x, t: -labels * x), torch.ones(5, 2), "euler", steps=20, parallel=8)
    assert any("40 rows of 5 samples" in note and "parallel=None" in note for note in caught.value.__notes__)


def test_a_noise_level_written_for_floats() -> None:
    """As published, by cases: each step has its own."""
    walked, same = pair(VP.reverse(two_modes), torch.ones(2, 2, dtype=torch.float64), "sa_solver", 0.0, tau=lambda t: 1.0 if 0.2 <= t <= 0.8 else 0.0)
    assert distance(walked, same) < 1e-12


def test_a_step_of_one_time_is_refused() -> None:
    class Picky(AdamsBashforth):
        one_time: ClassVar[bool] = True

    with pytest.raises(ValueError, match="takes one time for all rows"):
        sd.solve(sd.ODE(nonlinear), torch.ones(2, 2), Picky(), steps=5, parallel=4)


def test_the_published_norm_is_refused_and_nothing_else_couples_rows() -> None:
    assert [name for name in METHODS if make_method(name).couples_rows] == []
    assert make_method("pc", corrector=Langevin(norm="batch")).couples_rows and make_method("annealed_langevin", norm="batch").couples_rows


@pytest.mark.parametrize("how", [{"method": "restart"}, {"method": "pc", "predictor": "restart"}], ids=["restart", "pc"])
def test_steps_that_others_follow_are_refused(how: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="takes one time for all rows"):
        sd.solve(VP.reverse(lambda x, t: -x), torch.ones(2, 2), steps=8, seed=0, parallel=4, **how)


def test_another_packages_method_is_refused() -> None:
    pytest.importorskip("torchsde")
    with pytest.raises(ValueError, match="torchsde:euler is another package's"):
        sd.solve(VP.reverse(nonlinear), torch.ones(2, 2), "torchsde:euler", steps=5, parallel=4)
