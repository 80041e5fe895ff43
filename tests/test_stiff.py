"""Stiff problems: the implicit method against scipy's Radau, at a cost that does not grow with the stiffness."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

import sdesolve as sd

VAN_DER_POL = torch.tensor([[2.0, 0.0]], dtype=torch.float64)


def van_der_pol(mu: float, end: float) -> sd.ODE:
    return sd.ODE(lambda x, t: torch.stack([x[:, 1], mu * (1 - x[:, 0].square()) * x[:, 1] - x[:, 0]], 1), (0.0, end))


def robertson(x: Tensor, t: Tensor) -> Tensor:
    a, b, c = x.unbind(1)
    first, second = -0.04 * a + 1e4 * b * c, 3e7 * b.square()
    return torch.stack([first, -first - second, second], 1)


def radau(problem: sd.ODE, x: Tensor) -> Tensor:
    """scipy's implicit method at a tight tolerance, one sample."""

    def drift(t: float, y: np.ndarray) -> np.ndarray:
        return problem.drift(torch.as_tensor(y)[None], torch.tensor([t], dtype=torch.float64))[0].numpy()

    return torch.as_tensor(solve_ivp(drift, problem.interval, x[0].numpy(), method="Radau", rtol=1e-9, atol=1e-12).y[:, -1])[None]


@pytest.mark.parametrize("end", [500.0, 1000.0])
def test_van_der_pol(end: float) -> None:
    """mu = 1000; the solution crawls for 807 units of time, jumps, and crawls again."""
    problem = van_der_pol(1e3, end)
    solution = sd.solve(problem, VAN_DER_POL, "rodas5p", rtol=1e-6, atol=1e-6)
    assert solution.ok().all()
    assert torch.allclose(solution.x, radau(problem, VAN_DER_POL), rtol=2e-4)
    assert int(solution.nfe) < 2500


def test_robertson() -> None:
    x = torch.tensor([[1.0, 0.0, 0.0]], dtype=torch.float64)
    problem = sd.ODE(robertson, (0.0, 1e5))
    solution = sd.solve(problem, x, "rodas5p", rtol=1e-6, atol=1e-10)
    assert torch.allclose(solution.x, radau(problem, x), rtol=1e-4)
    assert float(solution.x.sum()) == pytest.approx(1.0, abs=1e-10)  # a linear invariant, which the method keeps
    assert int(solution.nfe) < 1200


def test_an_explicit_method_pays_for_the_stiffness() -> None:
    """Even with each Jacobian counted as d + 2 calls, ten times cheaper."""
    problem = van_der_pol(1e3, 2.0)
    implicit, explicit = (sd.solve(problem, VAN_DER_POL, method, rtol=1e-5, atol=1e-5) for method in ("rodas5p", "rk45"))
    assert torch.allclose(implicit.x, explicit.x, atol=1e-4)
    with_jacobians = implicit.nfe + (2 + 1) * (implicit.stats["accepted"] + implicit.stats["rejected"])
    assert 10 * int(with_jacobians) < int(explicit.nfe)


@pytest.mark.parametrize("interval", [(0.0, 5.0), (5.0, 0.0)], ids=["forwards", "backwards"])
@pytest.mark.parametrize("stiffness", [1e2, 1e8])
def test_a_stiff_problem_driven_in_time(stiffness: float, interval: tuple[float, float]) -> None:
    """x' = -s (x - cos t) - sin t, solved by cos t: df/dt = s sin t is as large as the stiffness.  [Prothero & Robinson 1974]"""
    s = stiffness * math.copysign(1.0, interval[1] - interval[0])  # stable in the direction of the interval

    def drift(x: Tensor, t: Tensor) -> Tensor:
        t = sd.expand_time(t, x)
        return -s * (x - torch.cos(t)) - torch.sin(t)

    start, end = (torch.full((2, 1), math.cos(t), dtype=torch.float64) for t in interval)
    solution = sd.solve(sd.ODE(drift, interval), start, "rodas5p", rtol=1e-6, atol=1e-6)
    assert torch.allclose(solution.x, end, atol=2e-6)
    assert (solution.nfe < 600).all()


def test_rows_of_different_stiffness_are_as_alone() -> None:
    """mu is part of the state here; a row's Jacobian, factorisation and steps are its own."""

    def drift(x: Tensor, t: Tensor) -> Tensor:
        y, v, mu = x.unbind(1)
        return torch.stack([v, mu * (1 - y.square()) * v - y, 0 * mu], 1)

    x = torch.tensor([[2.0, 0.0, mu] for mu in (0.1, 5.0, 1e3, math.nan)], dtype=torch.float64)
    with pytest.warns(sd.SolveWarning, match="sample 3: non_finite"):
        together = sd.solve(sd.ODE(drift, (0.0, 10.0)), x, "rodas5p")
    for i in range(3):
        alone = sd.solve(sd.ODE(drift, (0.0, 10.0)), x[i : i + 1], "rodas5p")
        assert torch.equal(alone.x[0], together.x[i]) and alone.nfe[0] == together.nfe[i]


def test_a_drift_that_hides_its_derivative() -> None:
    """no_grad inside the drift hides nothing; detach does, which costs steps and not accuracy."""
    plain = van_der_pol(5.0, 5.0).drift

    def quiet(x: Tensor, t: Tensor) -> Tensor:
        with torch.no_grad():
            return plain(x, t)

    drifts = (plain, quiet, lambda x, t: plain(x.detach(), t))
    open_, no_grad, detached = (sd.solve(sd.ODE(f, (0.0, 5.0)), VAN_DER_POL, "rodas5p", rtol=1e-5, atol=1e-5) for f in drifts)
    assert torch.equal(no_grad.x, open_.x) and torch.equal(no_grad.nfe, open_.nfe)
    assert torch.allclose(detached.x, open_.x, atol=1e-3) and int(detached.nfe) > 2 * int(open_.nfe)


def test_the_shape_of_the_state_does_not_matter() -> None:
    """(B, 2, 3) is (B, 6), and in lower precision too."""
    matrix = torch.randn(6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = torch.randn(4, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def drift(x: Tensor, t: Tensor) -> Tensor:
        return torch.tanh((x.reshape(len(x), 1, 6) * matrix.to(x)).sum(-1)).reshape(x.shape)

    flat = sd.solve(sd.ODE(drift), x, "rodas5p", steps=5).x
    assert torch.equal(sd.solve(sd.ODE(drift), x.reshape(4, 2, 3), "rodas5p", steps=5).x.reshape(4, 6), flat)
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.float16, 0.1)):
        low = sd.solve(sd.ODE(drift), x.to(dtype), "rodas5p", steps=5).x
        assert low.dtype == dtype and torch.allclose(low.double(), flat, atol=tolerance)


def test_a_large_state_is_refused() -> None:
    def untouched(x: Tensor, t: Tensor) -> Tensor:
        raise AssertionError("the drift was called")

    with pytest.raises(ValueError, match=r"x has 768 numbers a sample, and this method takes at most 512.*method='tsit5'"):
        sd.solve(sd.ODE(untouched), torch.zeros(2, 3, 16, 16), "rodas5p")
