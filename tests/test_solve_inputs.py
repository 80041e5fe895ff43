"""Bad input: one clear error before the first call, or a status per sample; never a hang, never a silent non-finite result."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from limits import processor_seconds
from problems import solvable
from torch import Tensor

import sdesolve as sd
from sdesolve.correctors import Langevin
from sdesolve.methods import METHODS

NAN, INF = math.nan, math.inf
VP = sd.VPSDE()
X = torch.zeros(2, 3)


def untouched(x: Tensor, t: Tensor) -> Tensor:
    raise AssertionError("the network was called")


REVERSE, FLOW = VP.reverse(untouched), VP.probability_flow(untouched)
FLOW_OF_A_GAUSSIAN = VP.probability_flow(lambda x, t: -x / (0.09 * VP.alpha(t).square() + VP.sigma(t).square()).to(x)[:, None])
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
    "interval a text of digits": (solve(interval="10"), "expected two times"),
    "interval longer than a float": (solve(problem=PLAIN_ODE, method="rk4", interval=(-1e308, 1e308)), "longer than the largest float"),
    "interval beyond float32": (solve(problem=PLAIN_ODE, method="rk4", interval=(0.0, 1e300)), r"that torch.float32 cannot hold; expected .* x.double\(\)"),
    "interval beyond half": (solve(problem=PLAIN_ODE, x=X.half(), method="rk45", interval=(0.0, -1e5)), "that torch.float16 cannot hold"),
    "score of another process": (lambda: VP.reverse(sd.as_score(untouched, sd.VESDE(), predicts="score")), "expected one process"),
    "eps above T": (lambda: VP.reverse(untouched, eps=1.5), r"expected 0 < eps < T"),
    "eps zero": (lambda: VP.reverse(untouched, eps=0.0), r"expected 0 < eps < T"),
    "eps NaN": (lambda: VP.probability_flow(untouched, eps=NAN), "two finite and different times"),
    "ODE on an empty interval": (lambda: sd.ODE(untouched, (1.0, 1.0)), "two finite and different times"),
    "unknown noise": (lambda: sd.SDE(untouched, untouched, noise="diagnal"), "'diagnal' is not known as noise; .* Did you mean 'diagonal'"),
    "unknown calculus": (lambda: sd.SDE(untouched, untouched, calculus="itô"), "expected one of: ito, stratonovich"),
    "beta reversed": (lambda: sd.VPSDE(beta_min=20, beta_max=0.1), "expected 0 < beta_min < beta_max"),
    "sigma negative": (lambda: sd.VESDE(sigma_min=-1.0), "expected 0 < sigma_min < sigma_max"),
    "sigma NaN": (lambda: sd.EDM(sigma_max=NAN), "EDM: sigma_max = nan is not a finite number; expected one, as in sigma_max=80.0"),
    "beta infinite": (lambda: sd.VPSDE(0.1, INF), "^VPSDE: beta_max = inf is not a finite number"),
    "beta a word": (lambda: sd.SubVPSDE("a", 1), "^SubVPSDE: beta_min = 'a' is not a finite number; expected one, as in beta_min=0.1"),  # type: ignore[arg-type]
    "end a word": (lambda: sd.VESDE(T="1"), "T = '1' is not a finite number"),  # type: ignore[arg-type]
    "end of a flow a word": (lambda: sd.RectifiedFlow("1"), "T = '1' is not a finite number"),  # type: ignore[arg-type]
    "offset infinite": (lambda: sd.Cosine(INF), "s = inf is not a finite number"),
    "time a word": (lambda: VP.alpha("a"), r"'a' is a str; expected a number, as in process.alpha\(0.5\)"),  # type: ignore[arg-type]
    "time of a drift a word": (lambda: VP.drift(X, "0.5"), "'0.5' is a str; expected a number"),  # type: ignore[arg-type]
    "score a number": (lambda: VP.reverse(3), r"the score or model is a int; expected a function of \(x, t\)"),  # type: ignore[arg-type]
    "score a word": (lambda: VP.probability_flow("x"), "the score or model is a str"),  # type: ignore[arg-type]
    "model a number": (lambda: sd.as_score(3, VP, predicts="epsilon"), "the score or model is a int"),  # type: ignore[arg-type]
    "sigma_data negative": (lambda: sd.as_score(untouched, VP, predicts="edm", sigma_data=-1), "sigma_data=-1; expected a finite number > 0"),
    "sigma_data NaN": (lambda: sd.as_score(untouched, VP, predicts="edm", sigma_data=NAN), "sigma_data=nan; expected a finite number > 0"),
    "time before 0": (lambda: VP.sigma(-1.0), r"t=-1.0 lies outside \[0, 1.0\]"),
    "time after T": (lambda: sd.VESDE().sigma(2.0), r"t=2.0 lies outside \[0, 1.0\]"),
    "times of another batch": (lambda: VP.perturb(X, torch.rand(3), seed=0), r"expected \(\) or \(2,\)"),
    "integer data": (lambda: VP.perturb(X.long(), 0.5, seed=0), "expected a real floating dtype"),
    "prior of no samples": (lambda: VP.prior((0, 2), seed=0), "at least one sample"),
    "prior with a negative seed": (lambda: VP.prior((1, 2), seed=-1), "expected an integer, 0 <= seed"),
    "prior with too few names": (lambda: VP.prior((3, 2), seed=0, sample_ids=[1, 2]), "expected 3 integers >= 0"),
    "prior of a number": (lambda: VP.prior(3, seed=0), r"shape=3; expected \(B, \*event\)"),  # type: ignore[arg-type]
    "prior of floats": (lambda: VP.prior((2.0, 2), seed=0), r"shape=\(2.0, 2\); expected \(B, \*event\)"),  # type: ignore[list-item]
    # the state
    "x a list": (solve(x=[[1.0]]), "x is a list; expected a tensor"),
    "x of integers": (solve(x=torch.zeros(2, 3, dtype=torch.int64)), r"expected a real floating dtype: x.float\(\)"),
    "x complex": (solve(x=torch.zeros(2, 3, dtype=torch.complex64)), "expected a real floating dtype"),
    "x of float8": (solve(x=X.to(torch.float8_e4m3fn)), r"expected a real floating dtype: x.float\(\)"),
    "x sparse": (solve(x=torch.eye(3).to_sparse()), r"layout torch.sparse_coo; expected a dense tensor: x.to_dense\(\)"),
    "x compressed": (lambda: solve(x=torch.eye(3).to_sparse_csr())(), "layout torch.sparse_csr"),
    "x without numbers": (solve(problem=PLAIN_ODE, x=torch.zeros(2, 3, device="meta"), method="rk4"), "x is on meta, where a tensor holds no numbers"),
    "x a number": (solve(x=torch.tensor(1.0)), "at least one sample"),
    "x of no samples": (solve(x=torch.zeros(0, 3)), "at least one sample"),
    "x of no elements": (solve(x=torch.zeros(2, 0)), "at least one sample"),
    "x on another device than the network": (
        solve(problem=VP.reverse(torch.nn.Linear(3, 3, device="meta"))),
        "x is on cpu and the network on meta",
    ),
    # the method
    "unknown method": (solve(method="eular_maruyama"), "as method; .* Did you mean 'euler_maruyama'"),
    "method in capitals": (solve(method="PC"), "'PC' is not known as method; .* Did you mean 'pc'"),
    "method a number": (solve(method=3), "expected a name from sdesolve.methods"),
    "no option dt": (solve(dt=0), "'dt' is not known as an option of method='euler_maruyama'"),
    "unknown option": (solve(method="pc", snrr=0.1), "'snrr' is not known as an option of corrector='langevin'; .* Did you mean 'snr'"),
    "option of another method": (solve(method="ancestral", snr=0.1), "'snr' is not known as an option of method='ancestral'; expected one of: none"),
    "unknown corrector": (solve(method="pc", corrector="langevine"), "as corrector; .* Did you mean 'langevin'"),
    "predictor a number": (solve(method="pc", predictor=7), "predictor is a int; expected a name from sdesolve.methods"),
    "solver a number": (solve(method="restart", solver=7), "solver is a int; expected a name from sdesolve.methods"),
    "restart intervals a number": (solve(method="restart", intervals=5), "intervals=5; expected a list of"),
    "restart intervals none": (solve(method="restart", intervals=None), "intervals=None; expected a list of"),
    "restart s_noise infinite": (solve(method="restart", s_noise=INF), "s_noise=inf; expected a finite number > 0"),
    "edm s_noise infinite": (solve(method="edm", s_noise=INF), "s_noise=inf; expected a finite number > 0"),
    "throw a word": (solve(throw="x"), "throw='x'; expected True or False"),
    "progress a word": (solve(progress="x"), "progress='x'; expected True or False"),
    "compile a word": (solve(compile="maybe"), "compile='maybe'; expected True or False"),
    "denoise a word": (solve(denoise="no"), "denoise='no'; expected True, 'extrapolate', False, or None"),
    "tau NaN": (solve(method="sa_solver", tau=lambda t: NAN), r"tau\(1\) is nan; expected a function of t that gives numbers >= 0"),
    "tau negative": (solve(method="sa_solver", tau=lambda t: -1.0), r"tau\(1\) is -1.0"),
    "tau a word": (solve(method="sa_solver", tau=lambda t: "a"), r"tau\(1\) is 'a'"),
    "card of a problem": (lambda: sd.solver_card("unipc", VP.reverse(untouched), [1.0, 0.5]), "process is a ReverseSDE; expected a forward process: problem.process"),
    "unknown predictor": (solve(method="pc", predictor="euler_mayurama"), "as method; .* Did you mean 'euler_maruyama'"),
    "snr zero": (solve(method="pc", snr=0.0), "expected a number, 0 < snr < 1"),
    "snr NaN": (solve(method="pc", snr=NAN), "expected a number, 0 < snr < 1"),
    "norm unknown": (solve(method="pc", norm="sample"), "expected one of: expected, batch"),
    "options beside a corrector object": (solve(method="pc", corrector=Langevin(), snr=0.3), "given when it is made"),
    "snr a word": (solve(method="pc", snr="a"), "expected a number, 0 < snr < 1"),
    "corrector_steps negative": (solve(method="pc", corrector_steps=-1), "expected an integer >= 0"),
    "corrector_steps a float": (solve(method="pc", corrector_steps=1.5), "expected an integer >= 0"),
    "SDE method on an ODE": (solve(problem=PLAIN_ODE), "Methods for it: leapfrog, euler, midpoint"),
    "SDE method on a flow": (solve(problem=FLOW), r"Use process.reverse\(score\)"),
    "ODE method on an SDE": (solve(problem=PLAIN_SDE, method="rk4"), "Methods for it: euler_maruyama"),
    "score method on an SDE": (solve(problem=PLAIN_SDE, method="pc"), "needs a score"),
    "corrector on an SDE": (solve(problem=PLAIN_SDE, method="pc", corrector="hmc"), "needs a score"),
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
    "grid of words": (solve(grid=["a", "b"]), "expected times, as in grid="),
    "grid of the wrong sign": (solve(grid=[1e-3, 1.0]), r"grid runs from 0.001 to 1.0 and the interval is \(1.0, 0.001\)"),
    "grid beyond the interval": (solve(grid=[0.9, 0.5, 0.1]), "expected the same ends"),
    "grid and steps": (solve(grid=[1.0, 1e-3], steps=3), "steps and nfe must be left out"),
    "karras without noise levels": (solve(problem=PLAIN_ODE, method="euler", grid="karras", steps=3), "needs the noise levels"),
    # control
    "tolerances on a grid": (solve(rtol=1e-3), "walks a grid here"),
    "tolerances with steps": (solve(method="rk45", rtol=1e-3, steps=10), "walks a grid here"),
    "rtol NaN": (solve(method="rk45", rtol=NAN), "expected a finite number >= 0"),
    "rtol infinite": (solve(method="rk45", rtol=INF), "expected a finite number >= 0"),
    "atol negative": (solve(method="rk45", atol=-1.0), "expected a finite number >= 0"),
    "both tolerances 0": (solve(method="rk45", rtol=0, atol=0), "rtol=0 and atol=0 are below one rounding of torch.float32"),
    "tolerances below float32": (solve(method="rk45", rtol=1e-10, atol=1e-9), r"below one rounding of torch.float32, 1.2e-07: .* x.double\(\), or .* rtol=1.3e-07"),
    "tolerances below bfloat16": (solve(x=X.bfloat16(), method="bosh3", rtol=1e-3, atol=0), "below one rounding of torch.bfloat16, 0.0078: .* rtol=8.2e-03"),
    "tolerances below float64": (solve(x=X.double(), method="heun", rtol=1e-17, atol=0.0), "below one rounding of torch.float64, 2.2e-16: .* Expected one of them above that"),
    "max_steps zero": (solve(method="rk45", max_steps=0), "max_steps=0; expected an integer >= 1"),
    # noise
    "seed negative": (solve(seed=-1), "expected an integer, 0 <= seed"),
    "seed a float": (solve(seed=0.5), "expected an integer, 0 <= seed"),
    "seed too large": (solve(seed=2**64), "expected an integer, 0 <= seed"),
    "generator a number": (solve(generator=3), "generator is a int; expected torch.Generator"),
    "seed and generator": (solve(seed=1, generator=torch.Generator()), "both given"),
    "sample_ids too few": (solve(sample_ids=[1]), "expected 2 integers >= 0"),
    "sample_ids negative": (solve(sample_ids=[0, -7]), r"sample_ids\[1\] is -7; expected 2 integers >= 0"),
    "sample_ids floats": (solve(sample_ids=[0.0, 1.0]), "expected 2 integers >= 0"),
    "sample_ids truths": (solve(sample_ids=[False, True]), "expected 2 integers >= 0"),
    "sample_ids words": (solve(sample_ids=["a", "b"]), r"expected 2 integers, 0 <= id < 2\*\*63"),
    "sample_ids beyond int64": (solve(sample_ids=[0, 2**63]), r"expected 2 integers, 0 <= id < 2\*\*63"),
    "sample_ids beyond the counter": (solve(x=torch.zeros(2, 3, 32, 32), sample_ids=[0, 2**63 - 1]), "sample_ids goes up to 9223372036854775807; expected at most"),
    # output
    "save unknown": (solve(save="everything"), 'expected "all" or times'),
    "parallel zero": (solve(parallel=0), "parallel=0; expected an integer >= 1, as in parallel=16"),
    "parallel a float": (solve(parallel=16.0), r"parallel is a float; expected a number of steps, as in parallel=16, or sdesolve.Parallel\(window=16"),
    "parallel window": (lambda: sd.Parallel(window=0), "window=0; expected an integer >= 1"),
    "parallel tolerance": (lambda: sd.Parallel(tolerance=1.0), "tolerance=1.0; expected a number, 0 <= tolerance < 1"),
    "parallel tolerance not a number": (lambda: sd.Parallel(tolerance=NAN), "tolerance=nan; expected a number"),
    "parallel update": (lambda: sd.Parallel(update="anderson"), "not known as update; expected one of: secant, picard"),
    "parallel and chosen steps": (solve(method="rk45", parallel=16), "expected a grid, as in steps=100"),
    "parallel and a gradient": (solve(parallel=16, gradient="backprop"), "expected one of parallel and gradient"),
    "parallel and compile": (solve(parallel=16, compile=True), "expected one of parallel and compile"),
    "parallel and a reversible method": (solve(method="reversible_heun", parallel=16), "expected method='heun_sde'"),
    "parallel and a mean over the batch": (solve(method="pc", norm="batch", parallel=16), "expected norm='expected', or parallel=None"),
    "parallel and a time between nodes": (solve(steps=2, parallel=2, save=[0.7]), "save time 0.7 is not a node of the grid; the nearest is 0.5005"),
    "save off the grid": (solve(method="pc", steps=2, save=[0.7]), "save time 0.7 is not a node of the grid; the nearest is 0.5005"),
    "save all where steps are chosen": (solve(method="rk45", save="all"), "every sample chooses its own steps"),
    "save outside the interval": (solve(method="rk45", save=[1.5]), "lies outside the interval"),
    "save of words": (solve(save=["a"]), "expected times, as in save="),
    "save nothing": (solve(save=[]), "expected finite times"),
    "callback a number": (solve(callback=3), "callback is a int; expected a function of a Moment"),
    "save NaN": (solve(method="rk45", save=[NAN]), "expected finite times"),
    "denoise without a score": (solve(problem=PLAIN_ODE, method="euler", denoise=True), "denoise=True needs a score"),
}


@pytest.fixture(autouse=True)
def six_seconds() -> Iterator[None]:
    with processor_seconds(6):
        yield


@pytest.mark.filterwarnings("ignore:Sparse CSR")
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
    "score that writes into the state": (VP.reverse(lambda x, t: x.mul_(-1)), "the model <lambda> changed its x in place.*: begin with x = x.clone"),
    "score on another device": (VP.reverse(lambda x, t: x.to("meta")), r"returned \(2, 3\) torch.float32 on meta"),
    "drift that writes into the state": (sd.SDE(lambda x, t: x.neg_().clone(), lambda x, t: 1.0 + 0 * x), "drift changed its x in place"),
    "drift on another device": (sd.SDE(lambda x, t: x.to("meta"), lambda x, t: 1.0 + 0 * x), r"drift returned .* on meta; expected \(2, 3\) torch.float32 on cpu"),
    "drift of complex numbers": (sd.SDE(lambda x, t: x * 1j, lambda x, t: 1.0 + 0 * x), "drift returned .* torch.complex64"),
    "diffusion that writes into the state": (sd.SDE(lambda x, t: -x, lambda x, t: x.mul_(0.1)), "diffusion changed its x in place"),
    "diffusion on another device": (sd.SDE(lambda x, t: -x, lambda x, t: x.to("meta")), "diffusion returned .* on meta .* expected the state's dtype and device"),
    "matrix diffusion is a number": (sd.SDE(lambda x, t: -x, lambda x, t: 0.5, noise="general"), "diffusion returned a float"),
    "matrix diffusion is a vector": (sd.SDE(lambda x, t: -x, lambda x, t: x, noise="general"), r"expected .* the shape \(\*state, m\)"),
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


MERELY_STIFF = ("never smooth", "rodas5p")  # x sticks to a zero of the sine, and an implicit method with it


@pytest.mark.parametrize(("name", "method"), [(n, m) for n in HARD for m in ("heun", "bosh3", "rk45", "dop853", "rodas5p") if (n, m) != MERELY_STIFF])
def test_hard_problems_end_with_a_status(name: str, method: str) -> None:
    drift, expected = HARD[name]
    with pytest.warns(sd.SolveWarning):
        solution = sd.solve(sd.ODE(drift, (0.0, 2.0)), torch.ones(2, 1), method, rtol=1e-5, atol=1e-5, max_steps=2000)
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


FACTS = {row.name: row.facts for row in sd.methods()}
FIXED = [(name, {"steps": 5}) for name in METHODS]
CHOSEN = [(name, {"rtol": 1e-3, "atol": 1e-3, "max_steps": 50}) for name, _ in FIXED if METHODS[name]().error_order is not None]
QUIET = pytest.mark.filterwarnings("ignore::sdesolve.SolveWarning")
every_form = pytest.mark.parametrize(("method", "how"), FIXED + CHOSEN)
on_any_interval = pytest.mark.parametrize(("method", "how"), [(name, how) for name, how in FIXED + CHOSEN if "score" not in FACTS[name].needs])


def kind_for(method: str, noise: str) -> str:
    """``noise`` if the method does it, and otherwise one that it does."""
    kinds = FACTS[method].kinds
    return noise if noise in kinds else "additive" if "additive" in kinds else "diagonal"


def suiting(method: str, drift: Any = None, diffusion: Any = None, noise: str = "diagonal", interval: tuple[float, float] = (0.0, 1.0)) -> Any:
    """A problem that the method can do, with this drift or score; dx = -x dt + dw / 10 where nothing else is said."""
    drift, diffusion, facts = drift or (lambda x, t: -x), diffusion or (lambda x, t: 0.1 + 0 * x), FACTS[method]
    if "score" in facts.needs:
        return VP.reverse(drift)
    if "langevin" in facts.needs:
        return sd.UnderdampedLangevin(drift, temperature=0.01, interval=interval)
    if not facts.kinds:
        return sd.ODE(drift, interval)
    return sd.SDE(drift, diffusion, noise=kind_for(method, noise), calculus=min(facts.calculus), interval=interval)


def state(*values: float, dtype: torch.dtype = torch.float32) -> Tensor:
    """(B, 2, 3): a row for each value, of an event that positions and velocities have too."""
    return torch.tensor(values, dtype=dtype)[:, None, None] + torch.zeros(2, 3, dtype=dtype)


@QUIET
@on_any_interval
@pytest.mark.parametrize("interval", [(0.0, 1e-300), (0.0, 1e-320), (1e-300, 0.0), (0.0, 1e300), (5e299, -5e299), (1e16, 1e16 + 64)])
def test_the_shortest_and_the_longest_intervals(method: str, how: dict[str, Any], interval: tuple[float, float]) -> None:
    x = state(1.0, 2.0, dtype=torch.float64)
    if method in ("baoab", "ubu") and interval == (5e299, -5e299):
        with pytest.raises(ValueError, match="multiplies velocities by e"):
            sd.solve(suiting(method, interval=interval), x, method, seed=0, **how)
        return
    solution = sd.solve(suiting(method, interval=interval), x, method, seed=0, **how)
    assert torch.isfinite(solution.x[solution.ok()]).all()
    if abs(interval[1] - interval[0]) < 1:
        assert solution.ok().all() and torch.allclose(solution.x, x, atol=1e-6)
    elif "steps" in how and abs(interval[1] - interval[0]) > 100 and method not in ("rodas5p", "baoab", "ubu"):  # explicit, and far beyond its stability
        assert not solution.ok().any()


@every_form
def test_states_of_any_layout(method: str, how: dict[str, Any]) -> None:
    """Strides and a wish for gradients change nothing, and the state that was given stays as it was."""
    base = torch.linspace(0.5, 1.5, 36)
    dense = base.reshape(6, 2, 3)
    for x in (base.reshape(3, 2, 6).permute(2, 1, 0), dense[::2], base[:1, None, None].expand(2, 2, 3), dense[:, :1].expand(6, 2, 3), dense.clone().requires_grad_()):
        plain = x.detach().clone(memory_format=torch.contiguous_format)
        solution = sd.solve(suiting(method), x, method, seed=0, **how)
        assert torch.equal(solution.x, sd.solve(suiting(method), plain, method, seed=0, **how).x)
        assert torch.equal(x, plain) and not solution.x.requires_grad and x.grad is None


@every_form
def test_functions_that_return_views_of_the_state(method: str, how: dict[str, Any]) -> None:
    x = torch.linspace(0.5, 1.5, 12).reshape(2, 2, 3)
    for view in (lambda x, t: x, lambda x, t: x.flip(1).flip(1), lambda x, t: x[:, :1].expand_as(x), lambda x, t: x.view_as(x)):
        seen, copied = (sd.solve(suiting(method, drift), x, method, seed=0, **how).x for drift in (view, lambda x, t: view(x, t).clone()))  # noqa: B023
        assert torch.equal(seen, copied)
    assert torch.equal(x, torch.linspace(0.5, 1.5, 12).reshape(2, 2, 3))


@QUIET
@every_form
def test_functions_that_write_into_the_time(method: str, how: dict[str, Any]) -> None:
    """It is theirs: networks scale the time in place."""
    x = state(0.5, 1.5, dtype=torch.float64)
    clean, rude = (sd.solve(suiting(method, drift), x, method, seed=0, **how).x for drift in (lambda x, t: -x, lambda x, t: -x + 0 * t.mul_(999).sum()))
    assert torch.equal(clean, rude)


@QUIET
@pytest.mark.parametrize(("method", "how"), [(name, how) for name, how in CHOSEN if not FACTS[name].kinds or "additive" in FACTS[name].kinds])
def test_networks_that_write_into_the_time(method: str, how: dict[str, Any]) -> None:
    x = state(0.5, 1.5, dtype=torch.float64)
    clean, rude = (sd.solve(VP.reverse(model), x, method, seed=0, **how).x for model in (lambda x, t: -x, lambda x, t: -x + 0 * t.mul_(999).sum()))
    assert torch.equal(clean, rude)


@QUIET
@pytest.mark.parametrize(("method", "how"), [(name, how) for name, how in FIXED if FACTS[name].kinds and FACTS[name].needs <= {"derivative"}])
def test_diffusions_that_are_negative_or_not_finite(method: str, how: dict[str, Any]) -> None:
    x = state(1.0, 1.0, 1.0)
    assert sd.solve(suiting(method, diffusion=lambda x, t: -0.1 + 0 * x), x, method, seed=0, **how).ok().all()
    for bad in (NAN, INF, -INF):
        rows = state(1.0, bad, 1.0)
        for noise in ("additive", "diagonal"):
            solution = sd.solve(suiting(method, diffusion=lambda x, t: 0.1 * rows + 0 * x, noise=noise), x, method, seed=0, **how)  # noqa: B023
            assert solution.failures() == [(1, "non_finite", 0.2)]


@every_form
def test_seeds_and_names_at_their_limits(method: str, how: dict[str, Any]) -> None:
    x, most = state(1.0, 1.0, 1.0), 2**63 - 2  # with two blocks of numbers a sample, one less than an int64 can hold
    problem = suiting(method)
    for seed in (0, 2**64 - 1):
        names = sd.solve(problem, x, method, seed=seed, sample_ids=[most, 0, most], **how).x
        assert torch.equal(names[0], names[2])  # one name is one sample
        assert torch.equal(names[1:2], sd.solve(problem, x[:1], method, seed=seed, **how).x)
        if FACTS[method].kinds:
            assert not torch.isclose(names[0], names[1]).any()
    if FACTS[method].kinds:
        assert not torch.isclose(names, sd.solve(problem, x, method, seed=0, sample_ids=[most, 0, most], **how).x).any()


@pytest.mark.parametrize("error", [ValueError("mine"), KeyboardInterrupt("mine")])
@every_form
def test_an_error_leaves_nothing_behind(method: str, how: dict[str, Any], error: BaseException) -> None:
    """Raised in a drift or in a callback it goes through as it is, and what comes after is as if it had not been."""
    x, before = state(1.0, 2.0), (torch.get_rng_state(), np.random.get_state()[1].tolist(), np.geterr())
    clean = sd.solve(suiting(method), x, method, seed=0, **how)
    calls = []

    def at_once(x: Tensor, t: Tensor) -> Tensor:
        raise error

    def later(x: Tensor, t: Tensor) -> Tensor:
        calls.append(t)
        if len(calls) == 4:
            raise error
        return -x

    def observer(moment: sd.Moment) -> None:
        raise error

    for drift, callback in ((at_once, None), (later, None), (None, observer)):
        with pytest.raises(type(error), match="mine"):
            sd.solve(suiting(method, drift), x, method, seed=0, callback=callback, progress=True, **how)
        assert torch.is_grad_enabled()
        again = sd.solve(suiting(method), x, method, seed=0, **how)
        assert torch.equal(again.x, clean.x) and torch.equal(torch.as_tensor(again.nfe), torch.as_tensor(clean.nfe))
    after = (torch.get_rng_state(), np.random.get_state()[1].tolist(), np.geterr())
    assert torch.equal(before[0], after[0]) and before[1:] == after[1:]


@every_form
def test_saved_times_in_any_order_and_number(method: str, how: dict[str, Any]) -> None:
    problem, x = suiting(method), state(1.0, 2.0)
    t0, t1 = problem.interval
    solution = sd.solve(problem, x, method, seed=0, save=[t1, t0, t1, t0], **how)
    assert solution.ts.tolist() == [t0, t1] and torch.equal(solution.xs[1], solution.x) and torch.equal(solution.xs[0], x)


@pytest.mark.parametrize(("method", "how"), [(name, how) for name, how in CHOSEN if FACTS[name].ode is not None])
def test_a_state_of_zero_without_an_absolute_tolerance(method: str, how: dict[str, Any]) -> None:
    """An error of 0 where 0 is tolerated is no error."""
    solution = sd.solve(sd.ODE(lambda x, t: -x), torch.zeros(2, 3), method, **{**how, "atol": 0})
    assert solution.ok().all() and not solution.x.any()


@QUIET
@pytest.mark.parametrize(("method", "how"), [(name, how) for name, how in CHOSEN if FACTS[name].ode is not None])
def test_drifts_that_jump(method: str, how: dict[str, Any]) -> None:
    """Across a jump a solve arrives; along one, where the sign changes at every step, it may give up, but says so."""
    across = sd.solve(sd.ODE(lambda x, t: 1 + (x > 1.5).to(x)), torch.ones(1, 1), method, rtol=1e-6, atol=1e-6, max_steps=2000)
    assert across.ok().all() and across.x.item() == pytest.approx(2.5, abs=1e-3)
    along = sd.solve(sd.ODE(lambda x, t: -3 * torch.sign(x)), torch.ones(1, 1), method, **{**how, "max_steps": 200})
    assert torch.isfinite(along.x).all() and along.status[0] in ("ok", "max_steps", "min_step")
    assert float(along.failed_at.nan_to_num(1.0)) > 0.33 and float(along.x.abs()) < 0.05


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
    for keywords in ({"steps": steps}, {"max_steps": 50, "rtol": 1e-2, "atol": 1e-2}, {"max_steps": 50}):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            solution = sd.solve(problem, x, "bosh3", **keywords)
        assert solution.x.dtype == dtype
        assert torch.isfinite(solution.x[solution.ok()]).all()
        assert bool(solution.ok().all()) == (not any(w.category is sd.SolveWarning for w in caught))


@pytest.mark.parametrize("whole", [np.int64, np.uint8, torch.tensor])
def test_integers_and_numbers_of_numpy_and_torch(whole: Callable[[int], Any]) -> None:
    """They count, name and measure as Python's do."""
    score = sd.as_score(lambda x, t: -x, VP, predicts="epsilon", time=whole(100))
    problem, real = VP.reverse(score), np.float32
    ours = sd.solve(problem, X, "pc", steps=whole(3), seed=whole(7), corrector_steps=whole(2), snr=real(0.125), sample_ids=[whole(3), whole(4)]).x
    plain = VP.reverse(sd.as_score(lambda x, t: -x, VP, predicts="epsilon", time=100))
    assert torch.equal(ours, sd.solve(plain, X, "pc", steps=3, seed=7, corrector_steps=2, snr=0.125, sample_ids=[3, 4]).x)
    assert sd.solve(problem, X, "ddim", nfe=whole(5)).nfe == 5
    adaptive = sd.solve(problem, X, "rk45", rtol=real(2**-10), atol=real(2**-10), max_steps=whole(200), interval=(real(1), real(0.5)))
    assert torch.equal(adaptive.x, sd.solve(plain, X, "rk45", rtol=2**-10, atol=2**-10, interval=(1.0, 0.5)).x)
    assert torch.equal(VP.prior((whole(2), 3), seed=whole(5)), VP.prior((2, 3), seed=5))


def test_default_steps() -> None:
    """500 steps of the grid for what is not made for a tolerance, second-order pairs too unless one is given; what is made for one keeps to it."""
    for row in sd.methods():
        made_for_it = row.name in ("bosh3", "rk45", "tsit5", "dop853", "rodas5p", "adaptive", "ggf")
        solution = sd.solve(solvable(row.name, lambda x, t: -x), torch.zeros(2, 2, 3), row.name, seed=0)
        assert isinstance(solution.nfe, Tensor) if made_for_it else solution.stats["steps"] == 500, row.name
    for method in ("heun", "midpoint"):
        for keywords in ({"rtol": 1e-3}, {"atol": 1e-3}, {"rtol": 1e-3, "atol": 1e-3}):
            loose = sd.solve(FLOW_OF_A_GAUSSIAN, X, method, **keywords)
            assert isinstance(loose.nfe, Tensor) and (loose.nfe < 1000).all()
        with pytest.raises(ValueError, match="walks a grid here"):
            sd.solve(FLOW_OF_A_GAUSSIAN, X, method, rtol=1e-3, steps=10)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_default_tolerance_suits_the_dtype(dtype: torch.dtype) -> None:
    """1e-5, or a rounding of the state where that is more: below it, more steps bring no accuracy."""
    x = torch.tensor([[0.3], [-1.2]], dtype=dtype)
    exact = sd.solve(FLOW_OF_A_GAUSSIAN, x.double(), "rk45", rtol=1e-12, atol=1e-12).x
    solution = sd.solve(FLOW_OF_A_GAUSSIAN, x, "rk45")
    assert solution.ok().all() and (solution.nfe < 100).all()
    assert float((solution.x.double() - exact).abs().max()) < 20 * max(1e-5, torch.finfo(dtype).eps)


@QUIET
@pytest.mark.parametrize("method", [name for name, _ in FIXED if FACTS[name].kinds])
@given(
    steps=st.integers(1, 20),
    ends=st.tuples(st.floats(-1e3, 1e3), st.floats(-1e3, 1e3)),
    scale=st.floats(allow_nan=True, allow_infinity=True),
    spread=st.floats(allow_nan=True, allow_infinity=True),
    noise=st.sampled_from(["additive", "scalar", "diagonal", "general"]),
    dtype=st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]),
    seed=st.integers(0, 2**64 - 1),
    ids=st.lists(st.integers(0, 2**63 - 1), min_size=3, max_size=3),
)
@settings(max_examples=15)
def test_any_sde_gives_an_error_or_an_honest_status(
    method: str, steps: int, ends: tuple[float, float], scale: float, spread: float, noise: str, dtype: torch.dtype, seed: int, ids: list[int]
) -> None:
    def drift(x: Tensor, t: Tensor) -> Tensor:
        return scale * torch.sin(x) + x

    kind = kind_for(method, noise)

    def diffusion(x: Tensor, t: Tensor) -> Tensor:
        g = spread * (torch.ones_like(x) if kind == "additive" else torch.cos(x))
        return torch.stack([g, 0.1 + 0 * x], -1) if kind == "general" else g

    try:
        problem = suiting(method, drift, diffusion, kind, ends)
    except ValueError:
        return
    x = state(1.0, 0.0, -3.0, dtype=dtype)
    with processor_seconds(6), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            solution = sd.solve(problem, x, method, steps=steps, seed=seed, sample_ids=ids)
        except ValueError:
            return
    assert solution.x.dtype == dtype
    assert torch.isfinite(solution.x[solution.ok()]).all()
    assert bool(solution.ok().all()) == (not any(w.category is sd.SolveWarning for w in caught))
