"""The process of a table: exact at the levels, consistent between them, and what a network of levels is told."""

from __future__ import annotations

import math

import pytest
import torch
from problems import mixture_score

import sdesolve as sd
from sdesolve import exam

LINEAR = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)
P = sd.TabulatedVP(LINEAR)
BETWEEN = torch.linspace(0.2e-3, 1, 4001, dtype=torch.float64)


def test_the_levels_are_the_table() -> None:
    t = torch.arange(1, 1001, dtype=torch.float64) / 1000
    assert torch.allclose(P.alpha(t) ** 2, LINEAR, rtol=1e-13) and torch.allclose(P.sigma(t) ** 2, 1 - LINEAR, rtol=1e-11)
    assert float(P.alpha(1.0)) ** 2 == pytest.approx(float(LINEAR[-1]), rel=1e-13)
    assert torch.allclose(P.level(t), torch.arange(1000, dtype=torch.float64), atol=1e-12)  # type: ignore[arg-type]
    assert (P.eps, P.T, P.origin, P.horizon) == (1e-3, 1.0, 1e-3, 1.0)


@pytest.mark.parametrize("process", [P, sd.TabulatedVP([0.99, 0.9, 0.2, 0.19, 2**-24])], ids=str)
def test_coefficients_are_consistent(process: sd.Process) -> None:
    """a = d ln alpha / dt and g^2 = d sigma^2/dt - 2 a sigma^2 by automatic differentiation; inverses; floats as tensors."""
    t = BETWEEN.clone().requires_grad_()
    (slope,) = torch.autograd.grad(process.log_alpha_(t).sum(), t)  # type: ignore[union-attr]
    (rise,) = torch.autograd.grad((process.sigma_(t) ** 2).sum(), t)  # type: ignore[union-attr]
    t = t.detach()
    assert torch.allclose(process.drift(torch.ones(len(t), 1, dtype=torch.float64), t)[:, 0], slope, rtol=1e-9)
    assert torch.allclose(process.diffusion(t) ** 2, rise - 2 * slope * process.sigma(t) ** 2, rtol=1e-9)
    assert (process.log_snr(t).diff() < 0).all() and (process.diffusion(t) > 0).all()
    assert torch.allclose(process.log_snr_inverse(process.log_snr(t)), t, rtol=1e-12, atol=1e-13)
    middle = t[(process.log_snr(t).abs() < 6)]
    assert torch.allclose(process.sigma_inverse(process.sigma(middle)), middle) and torch.allclose(process.alpha_inverse(process.alpha(middle)), middle)
    for name in ("alpha", "sigma", "log_snr", "diffusion"):
        one = torch.stack([getattr(process, name)(float(value)) for value in t[::97]])
        assert torch.allclose(one, getattr(process, name)(t[::97]), rtol=1e-12)
    levels = process.log_snr(t)[::97]
    assert torch.allclose(torch.stack([process.log_snr_inverse(float(value)) for value in levels]), t[::97], rtol=1e-12, atol=1e-13)


def test_the_drift_has_no_jumps() -> None:
    """A straight line between the levels would jump by the table's second difference, of which nothing is left at 1e-9 to either side."""
    nodes = torch.arange(2, 999, dtype=torch.float64) / 1000
    left, right = P.diffusion(nodes - 1e-9), P.diffusion(nodes + 1e-9)
    assert float((left - right).abs().max() / P.diffusion(nodes).max()) < 1e-7


def test_it_is_near_the_process_that_the_table_comes_from() -> None:
    """DDPM's betas are those of VPSDE at t/1000 to first order in a step."""
    t = torch.linspace(0.05, 1, 50, dtype=torch.float64)
    assert torch.allclose(P.log_snr(t), sd.VPSDE().log_snr(t), atol=0.08)
    assert torch.allclose(P.diffusion(t), sd.VPSDE().diffusion(t), rtol=0.02)


def test_tables_print_themselves_apart() -> None:
    """As grids and cards know a process by what it prints; roundings of one table, as other machines make them, are one process."""
    bent = sd.TabulatedVP([*LINEAR[:500].tolist(), float(LINEAR[500]) * (1 - 1e-5), *LINEAR[501:].tolist()])
    assert repr(P) == repr(sd.TabulatedVP(LINEAR * (1 + 1e-15))) != repr(bent)
    x, card = torch.ones(2, 2), sd.solver_card("unipc", P, [1.0, 0.5, 1e-3])
    assert sd.solve(sd.TabulatedVP(LINEAR).probability_flow(lambda x, t: -x), x, card).ok().all()
    with pytest.raises(ValueError, match="the card is for TabulatedVP"):
        sd.solve(bent.probability_flow(lambda x, t: -x), x, card)


def test_a_network_of_levels_is_told_them() -> None:
    told: list[torch.Tensor] = []
    for time in (1000, P.level):
        score = sd.as_score(lambda x, t: told.append(t[0]) or x, P, predicts="x0", time=time)
        for t in (P.eps, 0.25, 1.0):
            score(torch.zeros(2, 1), t)
    score(torch.zeros(2, 1), 0.2505)
    assert [float(t) for t in told] == pytest.approx([0, 249, 999, 0, 249, 999, 249.5])
    assert not told[0].is_floating_point() and told[3].is_floating_point()


def test_check_model_walks_its_levels() -> None:
    """A network that knows no time between its levels, and fails there, is as claimed; one that is told the level before is not what it claims."""
    data = exam.mixture_2d()
    score = mixture_score(data, P)
    x0 = data.sample(512, seed=0).float()

    def network(x: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
        assert bool((level == level.round()).all())
        t = ((level + 1) / 1000).double()
        return (-P.sigma(t)[:, None] * score(x.double(), t)).float()

    assert sd.check_model(network, P, x0, predicts="epsilon", time=1000).ok
    assert sd.check_model(lambda x, level: network(x, level.round()), P, x0, predicts="epsilon", time=P.level).ok


def test_samplers_reach_the_law() -> None:
    """The flow of a Gaussian is known: x_eps = x_T s(eps)/s(T) with s^2 = alpha^2 v + sigma^2."""
    v = 0.25
    score = sd.as_score(lambda x, t: -x / (P.alpha(t) ** 2 * v + P.sigma(t) ** 2)[:, None], P, predicts="score")
    x, std = torch.randn(8, 2, dtype=torch.float64), [math.sqrt(float(P.alpha(t) ** 2 * v + P.sigma(t) ** 2)) for t in (P.T, P.eps)]
    for method, options, tolerance in (("rk45", {"rtol": 1e-8, "atol": 1e-8}, 1e-5), ("dpmpp_3m", {"steps": 200}, 1e-4), ("ddim", {"steps": 400}, 1e-2)):
        assert float((sd.solve(P.reverse(score), x, method, **options).x - x * std[1] / std[0]).abs().max()) < tolerance, method


@pytest.mark.parametrize("table", [[0.5], [0.9, 0.9], [0.9, 0.5, 0.0], [1.0, 0.5], [0.5, 0.9], [0.9, math.nan], []])
def test_what_is_no_table_is_refused(table: list[float]) -> None:
    with pytest.raises(ValueError, match=r"expected at least 2 that fall within \(0, 1\)"):
        sd.TabulatedVP(table)
