"""Bad input: one clear error before the first call, or a status per sample; never a hang, never a silent non-finite result."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import sdesolve as sd
from sdesolve.correctors import Langevin

NAN, INF = math.nan, math.inf
VP = sd.VPSDE()
X = torch.zeros(2, 3)


def untouched(x: Tensor, t: Tensor) -> Tensor:
    raise AssertionError("the network was called")


REVERSE, FLOW = VP.reverse(untouched), VP.probability_flow(untouched)
PLAIN_ODE = sd.ODE(untouched)
PLAIN_SDE = sd.SDE(untouched, untouched)
BATH = sd.UnderdampedLangevin(untouched)


def noisy(g: Callable[[Tensor, Tensor], Tensor], noise: str, **options: Any) -> sd.SDE:
    """An SDE whose diffusion may be looked at before its drift is called."""
    return sd.SDE(untouched, g, noise, **options)


def twisted(x: Tensor, t: Tensor) -> Tensor:
    """Columns (1, 0, 0) and (0, x_1, 0), which do not commute."""
    one, zero = torch.ones_like(x[:, 0]), torch.zeros_like(x[:, 0])
    return torch.stack([torch.stack([one, zero, zero], 1), torch.stack([zero, x[:, 0], zero], 1)], 2)


def solve(problem: Any = REVERSE, x: Any = X, method: Any = "euler_maruyama", **keywords: Any) -> Callable[[], Any]:
    return lambda: sd.solve(problem, x, method, **keywords)


BEFORE_THE_FIRST_CALL: dict[str, tuple[Callable[[], Any], str]] = {
    # the problem
    "problem is a function": (solve(problem=untouched), "problem is a function; expected sdesolve.SDE"),
    "interval reversed for a reverse SDE": (solve(interval=(0.1, 0.9)), r"interval=\(0.9, 0.1\)"),
    "interval beyond T": (solve(interval=(2.0, 0.1)), r"leaves \(0, 1.0\]"),
    "interval down to 0": (solve(interval=(1.0, 0.0)), r"leaves \(0, 1.0\]"),
    "interval empty": (solve(interval=(0.5, 0.5)), "two finite and different times"),
    "interval NaN": (solve(interval=(NAN, 0.5)), "two finite and different times"),
    "interval infinite": (solve(problem=PLAIN_ODE, method="rk4", interval=(0.0, INF)), "two finite and different times"),
    "interval of three": (solve(interval=(1.0, 0.5, 0.1)), "expected two times"),
    "interval of words": (solve(interval="ab"), "expected two times"),
    "score of another process": (lambda: VP.reverse(sd.as_score(untouched, sd.VESDE(), predicts="score")), "expected one process"),
    "eps above T": (lambda: VP.reverse(untouched, eps=1.5), r"expected 0 < eps < T"),
    "eps zero": (lambda: VP.reverse(untouched, eps=0.0), r"expected 0 < eps < T"),
    "eps NaN": (lambda: VP.probability_flow(untouched, eps=NAN), "two finite and different times"),
    "ODE on an empty interval": (lambda: sd.ODE(untouched, (1.0, 1.0)), "two finite and different times"),
    "unknown noise": (lambda: sd.SDE(untouched, untouched, noise="diagnal"), "'diagnal' is not known as noise; .* Did you mean 'diagonal'"),
    "unknown calculus": (lambda: sd.SDE(untouched, untouched, calculus="itô"), "expected one of: ito, stratonovich"),
    "beta reversed": (lambda: sd.VPSDE(beta_min=20, beta_max=0.1), "expected 0 < beta_min < beta_max"),
    "sigma negative": (lambda: sd.VESDE(sigma_min=-1.0), "expected 0 < sigma_min < sigma_max"),
    "sigma NaN": (lambda: sd.EDM(sigma_max=NAN), "expected 0 < sigma_min < sigma_max"),
    "time before 0": (lambda: VP.sigma(-1.0), r"t=-1.0 lies outside \[0, 1.0\]"),
    "time after T": (lambda: sd.VESDE().sigma(2.0), r"t=2.0 lies outside \[0, 1.0\]"),
    "times of another batch": (lambda: VP.perturb(X, torch.rand(3), seed=0), r"expected \(\) or \(2,\)"),
    "integer data": (lambda: VP.perturb(X.long(), 0.5, seed=0), "expected a real floating dtype"),
    "prior of no samples": (lambda: VP.prior((0, 2), seed=0), "at least one sample"),
    "prior with a negative seed": (lambda: VP.prior((1, 2), seed=-1), "expected an integer, 0 <= seed"),
    "prior with too few names": (lambda: VP.prior((3, 2), seed=0, sample_ids=[1, 2]), "expected 3 integers >= 0"),
    # the state
    "x a list": (solve(x=[[1.0]]), "x is a list; expected a tensor"),
    "x of integers": (solve(x=torch.zeros(2, 3, dtype=torch.int64)), r"expected a real floating dtype: x.float\(\)"),
    "x complex": (solve(x=torch.zeros(2, 3, dtype=torch.complex64)), "expected a real floating dtype"),
    "x a number": (solve(x=torch.tensor(1.0)), "at least one sample"),
    "x of no samples": (solve(x=torch.zeros(0, 3)), "at least one sample"),
    "x of no elements": (solve(x=torch.zeros(2, 0)), "at least one sample"),
    "x on another device than the network": (
        solve(problem=VP.reverse(torch.nn.Linear(3, 3)), x=torch.zeros(2, 3, device="meta")),
        "x is on meta and the network on cpu",
    ),
    # the method
    "unknown method": (solve(method="eular_maruyama"), "as method; .* Did you mean 'euler_maruyama'"),
    "method a number": (solve(method=3), "expected a name from sdesolve.methods"),
    "unknown option": (solve(method="pc", snrr=0.1), "'snrr' is not known as an option of corrector='langevin'; .* Did you mean 'snr'"),
    "option of another method": (solve(method="ddim", snr=0.1), "'snr' is not known as an option of method='ddim'; expected one of: none"),
    "unknown corrector": (solve(method="pc", corrector="langevine"), "as corrector; .* Did you mean 'langevin'"),
    "unknown predictor": (solve(method="pc", predictor="euler_mayurama"), "as method; .* Did you mean 'euler_maruyama'"),
    "snr zero": (solve(method="pc", snr=0.0), "expected a number, 0 < snr < 1"),
    "snr NaN": (solve(method="pc", snr=NAN), "expected a number, 0 < snr < 1"),
    "norm unknown": (solve(method="pc", norm="sample"), "expected one of: expected, batch"),
    "options beside a corrector object": (solve(method="pc", corrector=Langevin(), snr=0.3), "given when it is made"),
    "snr a word": (solve(method="pc", snr="a"), "expected a number, 0 < snr < 1"),
    "corrector_steps negative": (solve(method="pc", corrector_steps=-1), "expected an integer >= 0"),
    "corrector_steps a float": (solve(method="pc", corrector_steps=1.5), "expected an integer >= 0"),
    "SDE method on an ODE": (solve(problem=PLAIN_ODE), "Methods for it: euler, midpoint"),
    "SDE method on a flow": (solve(problem=FLOW), r"Use process.reverse\(score\)"),
    "ODE method on an SDE": (solve(problem=PLAIN_SDE, method="rk4"), "Methods for it: euler_maruyama"),
    "score method on an SDE": (solve(problem=PLAIN_SDE, method="pc"), "needs a score"),
    "score method on an ODE": (solve(problem=PLAIN_ODE, method="ddim"), "needs a score"),
    "diagonal method on a matrix": (
        solve(problem=sd.SDE(untouched, twisted, "general"), method="sriw1"),
        "does diagonal, scalar noise; the problem has noise='general'. Methods for it: euler_maruyama, ",
    ),
    "commuting method on a matrix": (solve(problem=sd.SDE(untouched, twisted, "general"), method="milstein"), r"say so: SDE\(..., commutative=True\)"),
    "Langevin method on an SDE": (solve(problem=PLAIN_SDE, method="baoab"), r"expected sdesolve.UnderdampedLangevin\(force\). For this problem: euler_maruyama"),
    "score method on a heat bath": (solve(problem=BATH, x=torch.zeros(2, 2), method="pc"), "needs a score"),
    "diagonal method on a heat bath": (solve(problem=BATH, x=torch.zeros(2, 2), method="platen"), "Methods for it: .*baoab, ubu"),
    # the noise
    "commutative without a matrix": (lambda: sd.SDE(untouched, untouched, "diagonal", commutative=True), "commutes as it is: leave it out"),
    "columns that do not commute": (
        solve(problem=noisy(twisted, "general", commutative=True), method="milstein"),
        "do not commute at the initial state of sample 0; leave it out",
    ),
    "additive noise that is not": (solve(problem=noisy(lambda x, t: torch.sin(x), "additive")), "and it does; expected noise='diagonal'"),
    "diagonal noise that is not": (
        solve(problem=noisy(lambda x, t: x * x.sum(1, keepdim=True), "diagonal"), x=X + 1, method="milstein"),
        r"depends on others; expected noise='general' .* torch.diag_embed\(g\)",
    ),
    "derivative of the wrong shape": (
        solve(problem=noisy(lambda x, t: torch.sin(x), "diagonal", diffusion_derivative=lambda x, t, v: v.sum(1)), method="milstein"),
        r"diffusion_derivative returned \(2,\)",
    ),
    "friction zero": (lambda: sd.UnderdampedLangevin(untouched, friction=0.0), "friction=0.0; expected a finite number > 0"),
    "temperature NaN": (lambda: sd.UnderdampedLangevin(untouched, temperature=NAN), "temperature=nan; expected a finite number > 0"),
    "positions without velocities": (solve(problem=BATH, x=torch.zeros(2, 3), method="baoab"), r"expected \(B, 2, \*event\), positions and velocities"),
    # the grid
    "steps zero": (solve(steps=0), "steps=0; expected an integer >= 1"),
    "steps negative": (solve(steps=-5), "steps=-5; expected an integer >= 1"),
    "steps a float": (solve(steps=10.0), "expected an integer >= 1"),
    "steps True": (solve(steps=True), "expected an integer >= 1"),
    "steps and nfe": (solve(steps=10, nfe=10), "both given"),
    "nfe too small": (solve(method="pc", nfe=1), "the smallest that works is nfe=2"),
    "nfe too small with denoise": (solve(method="pc", nfe=2, denoise=True), "the smallest that works is nfe=3"),
    "grid unknown": (solve(grid="karas"), "as grid; .* Did you mean 'karras'"),
    "grid of one": (solve(grid=[1.0]), "expected at least 2"),
    "grid with equal nodes": (solve(grid=[1.0, 0.5, 0.5, 1e-3]), r"grid\[2\] = 0.5 does not go on"),
    "grid that turns": (solve(grid=[1.0, 0.5, 0.7, 1e-3]), r"grid\[2\] = 0.7 does not go on"),
    "grid with NaN": (solve(grid=[1.0, NAN, 1e-3]), r"grid\[1\] = nan is not finite"),
    "grid beyond the interval": (solve(grid=[0.9, 0.5, 0.1]), "expected the same ends"),
    "grid and steps": (solve(grid=[1.0, 1e-3], steps=3), "steps and nfe must be left out"),
    "karras without noise levels": (solve(problem=PLAIN_ODE, method="euler", grid="karras", steps=3), "needs the noise levels"),
    # control
    "tolerances on a grid": (solve(rtol=1e-3), "walks a grid here"),
    "tolerances with steps": (solve(method="rk45", rtol=1e-3, steps=10), "walks a grid here"),
    "rtol NaN": (solve(method="rk45", rtol=NAN), "expected a finite number >= 0"),
    "rtol infinite": (solve(method="rk45", rtol=INF), "expected a finite number >= 0"),
    "atol negative": (solve(method="rk45", atol=-1.0), "expected a finite number >= 0"),
    "both tolerances 0": (solve(method="rk45", rtol=0, atol=0), "no step would ever be accepted"),
    "max_steps zero": (solve(method="rk45", max_steps=0), "max_steps=0; expected an integer >= 1"),
    # noise
    "seed negative": (solve(seed=-1), "expected an integer, 0 <= seed"),
    "seed a float": (solve(seed=0.5), "expected an integer, 0 <= seed"),
    "seed too large": (solve(seed=2**64), "expected an integer, 0 <= seed"),
    "seed and generator": (solve(seed=1, generator=torch.Generator()), "both given"),
    "sample_ids too few": (solve(sample_ids=[1]), "expected 2 integers >= 0"),
    "sample_ids negative": (solve(sample_ids=[0, -1]), "expected 2 integers >= 0"),
    "sample_ids floats": (solve(sample_ids=[0.0, 1.0]), "expected 2 integers >= 0"),
    # output
    "save unknown": (solve(save="everything"), 'expected "all" or times'),
    "save off the grid": (solve(steps=2, save=[0.7]), "save time 0.7 is not a node of the grid; the nearest is 0.5005"),
    "save all where steps are chosen": (solve(method="rk45", save="all"), "every sample chooses its own steps"),
    "save outside the interval": (solve(method="rk45", save=[1.5]), "lies outside the interval"),
    "save NaN": (solve(method="rk45", save=[NAN]), "expected finite times"),
    "denoise without a score": (solve(problem=PLAIN_ODE, method="euler", denoise=True), "denoise=True needs a score"),
}


@pytest.mark.parametrize("name", BEFORE_THE_FIRST_CALL)
def test_refused_before_the_first_call(name: str) -> None:
    call, message = BEFORE_THE_FIRST_CALL[name]
    with pytest.raises((ValueError, TypeError), match=message):
        call()


AT_THE_FIRST_CALL: dict[str, tuple[Any, str]] = {
    "score of the wrong shape": (VP.reverse(lambda x, t: x[:, :1]), r"returned \(2, 1\) torch.float32 on cpu; expected \(2, 3\)"),
    "score of integers": (VP.reverse(lambda x, t: x.long()), "expected .* of a floating dtype"),
    "score is a tuple": (VP.reverse(lambda x, t: (x,)), "returned a tuple; expected a tensor like its input"),
    "score is None": (VP.reverse(lambda x, t: None), "returned a NoneType"),
    "drift of the wrong shape": (sd.SDE(lambda x, t: x.sum(1), lambda x, t: 1.0 + 0 * x), r"drift returned \(2,\)"),
    "drift of the wrong dtype": (sd.SDE(lambda x, t: x.double(), lambda x, t: 1.0 + 0 * x), "drift returned .* torch.float64"),
    "force of the wrong shape": (sd.UnderdampedLangevin(lambda q, t: q.sum()), r"force returned \(\)"),
    "diffusion of the wrong shape": (sd.SDE(lambda x, t: x, lambda x, t: torch.ones(2, 3, 4)), "diffusion returned"),
    "diffusion is a number": (sd.SDE(lambda x, t: x, lambda x, t: 0.5), "diffusion returned a float"),
    "diffusion of the wrong dtype": (sd.SDE(lambda x, t: x, lambda x, t: x.double()), r"diffusion returned \(2, 3\) torch.float64"),
}


@pytest.mark.parametrize("name", AT_THE_FIRST_CALL)
def test_refused_at_the_first_call(name: str) -> None:
    problem, message = AT_THE_FIRST_CALL[name]
    x = X[:, :2] if isinstance(problem, sd.UnderdampedLangevin) else X
    with pytest.raises((ValueError, TypeError, RuntimeError), match=message):
        sd.solve(problem, x, "euler_maruyama", steps=3, seed=0)


HARD: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], str]] = {
    "explodes": (lambda x, t: x.square() + 1, "min_step"),
    "NaN slope": (lambda x, t: x * NAN, "non_finite"),
    "infinite slope": (lambda x, t: x + INF, "non_finite"),
    "NaN later": (lambda x, t: torch.where(t > 0.5, NAN, 1.0).reshape(-1, 1) + 0 * x, "non_finite"),
    "never smooth": (lambda x, t: torch.sin(1e9 * x + 1e7 * t.reshape(-1, 1)) * 1e4, "max_steps"),
}


@pytest.mark.parametrize("method", [row.name for row in sd.methods() if row.name in ("heun", "bosh3", "rk45")])
@pytest.mark.parametrize("name", HARD)
def test_hard_problems_end_with_a_status(name: str, method: str) -> None:
    drift, expected = HARD[name]
    with pytest.warns(sd.SolveWarning):
        solution = sd.solve(sd.ODE(drift, (0.0, 2.0)), torch.ones(2, 1), method, max_steps=2000)
    assert set(solution.status) <= {expected, "max_steps", "min_step"}
    assert not solution.ok().any()
    assert (solution.failed_at >= 0).all() and (solution.failed_at <= 2).all()


def test_throw() -> None:
    with pytest.raises(sd.SolveError, match=r"sample 0: min_step at t = 0\.785") as caught:
        sd.solve(sd.ODE(lambda x, t: x.square() + 1, (0.0, 2.0)), torch.ones(1, 1, dtype=torch.float64), "rk45", throw=True)
    assert caught.value.solution.failed_at[0] == pytest.approx(math.pi / 4, abs=1e-5)


def test_discontinuous_drift_and_huge_tolerance_arrive() -> None:
    step = sd.ODE(lambda x, t: (t > 0.3).to(x).reshape(-1, 1) + 0 * x)
    assert sd.solve(step, torch.zeros(1, 1), "rk45", rtol=1e-6, atol=1e-6).x.item() == pytest.approx(0.7, abs=1e-4)
    assert sd.solve(sd.ODE(lambda x, t: -x), torch.ones(1, 1), "rk45", rtol=1e6, atol=1e6).ok().all()


@given(
    steps=st.integers(1, 20),
    t0=st.floats(-1e3, 1e3),
    t1=st.floats(-1e3, 1e3),
    scale=st.floats(allow_nan=True, allow_infinity=True),
    dtype=st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]),
)
def test_anything_gives_an_error_or_an_honest_status(steps: int, t0: float, t1: float, scale: float, dtype: torch.dtype) -> None:
    """Whatever the numbers: a ValueError, or a state that is finite exactly where the status says so."""
    try:
        problem = sd.ODE(lambda x, t: scale * torch.sin(x) + x, (t0, t1))
    except ValueError:
        return
    x = torch.tensor([[1.0], [0.0], [-3.0]], dtype=dtype)
    for keywords in ({"steps": steps}, {"max_steps": 50, "rtol": 1e-3, "atol": 1e-3}):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            solution = sd.solve(problem, x, "bosh3", **keywords)
        assert solution.x.dtype == dtype
        assert torch.isfinite(solution.x[solution.ok()]).all()
        assert bool(solution.ok().all()) == (not any(w.category is sd.SolveWarning for w in caught))
