"""``compile=True``: every step is one graph, and the samples are those of the plain solve."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from problems import PROCESSES, solvable

import sdesolve as sd
from sdesolve._loops import compiled
from sdesolve.correctors import CORRECTORS
from sdesolve.methods import METHODS, make_method

needs_a_compiler = pytest.mark.skipif(shutil.which("c++") is None and shutil.which("cl") is None, reason="torch.compile needs a C++ compiler on a CPU")


@pytest.fixture
def one_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps are traced as for compiling, without a break, and run as they are."""
    torch.compiler.reset()
    whole: Callable[..., Any] = torch.compile(compiled._step, fullgraph=True, backend="eager")
    monkeypatch.setattr(compiled, "_compiled", lambda: whole)


@pytest.mark.parametrize("method", METHODS)
def test_a_step_is_one_graph(method: str, one_graph: None) -> None:
    """On a grid, with the noise, the calls and the derivatives of the plain solve."""
    process = PROCESSES["VP"]
    problem, x = solvable(method, lambda x, t: -x, process), process.prior((3, 2, 2), seed=0)
    plain, traced = (sd.solve(problem, x, method, steps=4, seed=0, save="all", compile=compile) for compile in (False, True))
    assert torch.allclose(traced.x, plain.x, rtol=1e-4, atol=1e-4) and traced.xs is not None and traced.ok().all()
    assert traced.nfe == plain.nfe and all(traced.stats[name] == plain.stats[name] for name in ("calls", "rows", "jvps"))


@pytest.mark.parametrize("corrector", CORRECTORS)
@pytest.mark.parametrize("accept", [False, True])
def test_a_corrector_is_one_graph(corrector: str, accept: bool, one_graph: None) -> None:
    process = PROCESSES["VP"]
    problem, x = process.reverse(lambda x, t: -x), process.prior((3, 2, 2), seed=0)
    how: dict[str, Any] = {"corrector": corrector, "corrector_steps": 2} | ({} if "langevin" in corrector else {"accept": accept})
    plain, traced = (sd.solve(problem, x, "pc", steps=4, seed=0, compile=compile, **how) for compile in (False, True))
    assert torch.allclose(traced.x, plain.x, rtol=1e-4, atol=1e-4) and traced.nfe == plain.nfe
    assert all(torch.allclose(traced.stats[name], plain.stats[name], rtol=1e-4) for name in ("acceptance", "step_size") if name in plain.stats)


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("edm", {"s_churn": 5.0, "s_tmin": 0.1, "s_tmax": 3.0}),
        ("sa_solver", {"window": (0.1, 3.0)}),
        ("seeds", {"stages": 3, "eta": 0.5}),
        ("restart", {"solver": "dpmpp_2m"}),
        ("pc", {"predictor": "er_sde"}),
        ("pc", {"predictor": "restart"}),
    ],
)
def test_a_step_with_options_is_one_graph(method: str, options: dict[str, Any], one_graph: None) -> None:
    process = PROCESSES["VP"]
    problem, x = process.reverse(lambda x, t: -torch.sin(x)), process.prior((3, 2), seed=0)
    plain, traced = (sd.solve(problem, x, method, steps=6, seed=0, compile=compile, **options) for compile in (False, True))
    assert torch.allclose(traced.x, plain.x, rtol=1e-4, atol=1e-4) and traced.nfe == plain.nfe and traced.stats["calls"] == plain.stats["calls"]


@pytest.mark.parametrize("method", [name for name in METHODS if make_method(name).error_order and name != "rodas5p"])  # torch has no vmap of jvp for sizes that change
def test_chosen_steps_are_one_graph(method: str, one_graph: None) -> None:
    """Also as finished rows leave the batch."""
    process = PROCESSES["VP"]
    problem, x = solvable(method, lambda x, t: -torch.sin(x), process), torch.tensor([[0.1], [1.0], [3.0]], dtype=torch.float64)
    plain, traced = (sd.solve(problem, x, method, rtol=1e-2, atol=1e-2, seed=0, compile=compile) for compile in (False, True))
    assert traced.ok().all() and torch.allclose(traced.x, plain.x, rtol=1e-6)
    assert torch.equal(torch.as_tensor(traced.nfe), torch.as_tensor(plain.nfe)) and traced.stats["rows"] == plain.stats["rows"]


@needs_a_compiler
@pytest.mark.parametrize(
    "how",
    [{"method": "euler_maruyama", "steps": 10}, pytest.param({"method": "rk45", "rtol": 1e-6, "atol": 1e-6}, marks=pytest.mark.slow)],
    ids=["grid", "chosen"],
)
def test_compiled(how: dict[str, Any]) -> None:
    """By the real compiler, with a gradient through it."""
    torch.compiler.reset()
    torch.manual_seed(0)
    process, net = sd.VPSDE(), torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2)).double()
    problem = process.reverse(sd.as_score(lambda x, t: net(x), process, predicts="epsilon"), eps=1e-2)
    found = []
    for compile in (False, True):
        end = sd.solve(problem, process.prior((4, 2), seed=0).double(), seed=1, compile=compile, gradient="backprop", **how).x
        found.append((end, *torch.autograd.grad(end.square().sum(), tuple(net.parameters()))))
    for plain, fast in zip(*found, strict=True):
        assert torch.allclose(plain, fast, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("method", ["scipy:RK45", "rodas5p"])
def test_what_cannot_be_compiled_says_so(method: str) -> None:
    pytest.importorskip("scipy")
    with pytest.raises(ValueError, match="compile=True"):
        sd.solve(sd.ODE(lambda x, t: -x), torch.ones(2, 1), method, compile=True)


def test_guidance_that_compiled_steps_meet_is_not_told_of_as_missed(one_graph: None) -> None:
    """The last call alone, of ``denoise``, is not compiled, and outside."""
    process = sd.VPSDE()
    x = process.prior((3, 2, 2), seed=0)
    guided = sd.guided(sd.as_score(lambda x, t: -x, process, predicts="score"), lambda p: -0.1 * p.x, within=(0.3, 3.0))
    with warnings.catch_warnings():
        warnings.simplefilter("error", sd.SolveWarning)
        plain, traced = (sd.solve(process.reverse(guided), x, "ddim", steps=20, compile=compile, denoise=True) for compile in (False, True))
    assert torch.allclose(traced.x, plain.x, rtol=1e-4, atol=1e-4)
