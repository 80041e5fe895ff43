"""The coefficients of each process are consistent with one another, with the literature, and with the SDE itself."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from problems import PROCESSES
from scipy.integrate import solve_ivp

import sdesolve as sd

EACH = pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES.keys())


def times(process: sd.Process) -> torch.Tensor:
    return torch.linspace(process.eps, process.T, 101, dtype=torch.float64)


@EACH
def test_drift_and_diffusion_follow_from_alpha_and_sigma(process: sd.Process) -> None:
    """a = d ln alpha / dt and g^2 = d sigma^2/dt - 2 a sigma^2, by automatic differentiation."""
    t = times(process).requires_grad_()
    (log_alpha_slope,) = torch.autograd.grad((torch.as_tensor(process.log_alpha_(t)) + 0 * t).sum(), t)
    (variance_slope,) = torch.autograd.grad((process.sigma_(t) ** 2).sum(), t)
    with torch.no_grad():
        assert torch.allclose(process.drift(torch.ones(101, 1, dtype=torch.float64), t)[:, 0], log_alpha_slope)
        g2 = variance_slope - 2 * log_alpha_slope * process.sigma(t) ** 2
        assert torch.allclose(process.diffusion(t) ** 2, g2, rtol=1e-9)


class Scaled(sd.Process):
    """VPSDE with a scale of its own, and no dataclass: what a user writes."""

    T, eps = 1.0, 1e-3

    def __init__(self, scale: float) -> None:
        self.scale, self.within = scale, sd.VPSDE()

    def log_alpha_(self, t: Any) -> Any:
        return self.within.log_alpha_(t) + math.log(self.scale)

    def sigma_(self, t: Any) -> Any:
        return self.within.sigma_(t) * self.scale

    def drift_rate_(self, t: Any) -> Any:
        return self.within.drift_rate_(t)

    def diffusion_(self, t: Any) -> Any:
        return self.within.diffusion_(t) * self.scale

    def log_snr_inverse_(self, log_snr: Any) -> Any:
        return self.within.log_snr_inverse_(log_snr)

    def sigma_inverse_(self, sigma: Any) -> Any:
        return self.within.sigma_inverse_(sigma / self.scale)


def test_a_process_of_one_s_own_is_known_by_its_levels() -> None:
    """Grids and cards are made for what a process prints: another instance is the same one, and another scale is not."""
    card, x = sd.solver_card("ddim", Scaled(2.0), [1.0, 0.5, 1e-3]), torch.ones(1, 2)
    assert sd.solve(Scaled(2.0).probability_flow(lambda x, t: -x), x, card).ok().all()
    assert repr(Scaled(2.0)).startswith("Scaled(T=1, eps=0.001, levels ")
    with pytest.raises(ValueError, match="the card is for Scaled"):
        sd.solve(Scaled(2.001).probability_flow(lambda x, t: -x), x, card)
    assert repr(Scaled.__new__(Scaled)) == "Scaled()"  # in an error of its own, say


OTHER_TIMES = [sd.VPSDE(T=0.3), sd.VPSDE(0.2, 1.5, T=4.0), sd.SubVPSDE(0.2, 1.5, T=4.0), sd.VESDE(0.1, 5.0, T=4.0)]


@pytest.mark.parametrize("process", [*PROCESSES.values(), *OTHER_TIMES], ids=str)
def test_marginals_by_numerical_integration(process: sd.Process) -> None:
    """Mean m' = a m and variance v' = 2 a v + g^2 of the forward SDE from a point, integrated, are alpha and sigma^2 less what is there at 0."""

    def slope(t: float, y: np.ndarray) -> list[float]:
        a = float(process.drift(torch.ones(1, 1, dtype=torch.float64), t))
        return [a * y[0], 2 * a * y[1] + float(process.diffusion(t)) ** 2]

    at = [0.1 * process.T, 0.5 * process.T, process.T]
    start = float(process.sigma(0.0)) ** 2  # VE begins with sigma_min
    mean, variance = solve_ivp(slope, (0.0, process.T), [1.0, start], t_eval=at, rtol=1e-10, atol=1e-14).y
    for i, t in enumerate(at):
        assert mean[i] == pytest.approx(float(process.alpha(t)), rel=1e-6)
        assert variance[i] == pytest.approx(float(process.sigma(t)) ** 2, rel=1e-6)


def test_other_units_of_time() -> None:
    """beta_min and beta_max are beta at 0 and at T, so that DDPM's own counting is the published process at t/1000; VE keeps its levels."""
    ddpm, published, t = sd.VPSDE(1e-4, 0.02, T=1000), sd.VPSDE(), torch.linspace(0.01, 1, 20, dtype=torch.float64)
    assert torch.allclose(ddpm.alpha(1000 * t), published.alpha(t)) and torch.allclose(ddpm.sigma(1000 * t), published.sigma(t))
    assert float(ddpm.diffusion(0.0)) ** 2 == pytest.approx(1e-4) and float(ddpm.diffusion(1000.0)) ** 2 == pytest.approx(0.02)
    assert torch.allclose(sd.VESDE(T=5.0).sigma(5 * t), sd.VESDE().sigma(t))
    for process in OTHER_TIMES:
        t = times(process)
        assert torch.allclose(process.log_snr_inverse(process.log_snr(t)), t, rtol=1e-9)
        assert torch.allclose(process.sigma_inverse(process.sigma(t)), t, rtol=1e-7)
        assert process.eps / process.T == pytest.approx(type(process)().eps)


@EACH
def test_inverses(process: sd.Process) -> None:
    t = times(process)
    assert torch.allclose(process.log_snr_inverse(process.log_snr(t)), t, rtol=1e-9)
    assert torch.allclose(process.sigma_inverse(process.sigma(t)), t, rtol=1e-7)
    assert torch.allclose(process.log_snr(t), 2 * (process.alpha(t).log() - process.sigma(t).log()))
    assert (process.log_snr(t).diff() < 0).all()


def test_alpha_inverse() -> None:
    for process in (sd.VPSDE(), sd.SubVPSDE(), sd.Cosine(), sd.RectifiedFlow()):
        t = times(process)
        assert torch.allclose(process.alpha_inverse(process.alpha(t)), t, rtol=1e-8)
    with pytest.raises(ValueError, match="alpha\\(t\\) = 1 at every time"):
        sd.VESDE().alpha_inverse(1.0)


@EACH
def test_floats_and_tensors_agree(process: sd.Process) -> None:
    """A formula is written once; a float, a () and a (B,) tensor give the same float64 numbers."""
    for name in ("alpha", "sigma", "log_snr", "diffusion", "log_snr_inverse"):
        function = getattr(process, name)
        arguments = times(process)[1:-1:10] if name != "log_snr_inverse" else torch.linspace(-5, 5, 11, dtype=torch.float64)
        many = function(arguments)
        assert many.dtype == torch.float64 and many.shape == arguments.shape
        for one, value in zip(arguments, many, strict=True):
            assert function(float(one)).shape == ()
            assert float(function(float(one))) == pytest.approx(float(value), rel=1e-13)
            assert float(function(one)) == pytest.approx(float(value), rel=1e-13)


def test_published_constants() -> None:
    vp, subvp, ve, edm, cosine, flow = PROCESSES.values()
    assert float(vp.alpha(1.0)) == pytest.approx(math.exp(-0.25 * 19.9 - 0.05))
    assert float(vp.sigma(0.5)) == pytest.approx(math.sqrt(1 - math.exp(-0.5 * 0.25 * 19.9 - 0.05)))
    assert float(subvp.sigma(0.5)) == pytest.approx(float(vp.sigma(0.5)) ** 2)
    assert float(subvp.diffusion(0.5)) ** 2 == pytest.approx(10.05 * (1 - math.exp(-2 * 0.1 * 0.5 - 19.9 * 0.25)))
    assert float(ve.sigma(1.0)) == pytest.approx(50.0) and float(ve.sigma(0.0)) == pytest.approx(0.01)
    assert float(ve.diffusion(0.3)) == pytest.approx(float(ve.sigma(0.3)) * math.sqrt(2 * math.log(5000)))
    assert float(edm.sigma(3.0)) == 3.0 and edm.T == 80.0 and edm.eps == 0.002
    levels = [math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2 / math.cos(0.008 / 1.008 * math.pi / 2) ** 2 for t in (0.25, 0.5, 0.99)]
    assert cosine.alpha(torch.tensor([0.25, 0.5, 0.99], dtype=torch.float64)).square().tolist() == pytest.approx(levels)  # eq. 17 of Nichol & Dhariwal 2021
    assert float(cosine.sigma(cosine.T) / cosine.alpha(cosine.T)) == pytest.approx(118.8, abs=0.1)
    assert (float(flow.alpha(0.3)), float(flow.sigma(0.3)), float(flow.diffusion(0.5)) ** 2) == pytest.approx((0.7, 0.3, 2.0))
    assert (vp.eps, subvp.eps, ve.eps, flow.eps) == (1e-3, 1e-3, 1e-5, 1e-3)
    assert [p.prior_std for p in PROCESSES.values()] == [1.0, 1.0, 50.0, 80.0, 1.0, 0.999]
    assert (cosine.T, flow.T, cosine.horizon, flow.horizon) == (0.9946, 0.999, 1.0, 1.0)


@given(t=st.floats(1e-8, 1e-4))
def test_no_cancellation_near_zero(t: float) -> None:
    """sigma^2 = beta_min t + O(t^2) to full precision, where 1 - exp(...) would have lost its digits; for the cosine sigma^2 = beta(0) t + (k t)^2."""
    exponent = 0.1 * t + 0.5 * 19.9 * t * t
    assert float(sd.VPSDE().sigma(t)) ** 2 == pytest.approx(exponent - exponent**2 / 2, rel=1e-9)
    k, s = math.pi / 2.016, 0.008
    assert float(sd.Cosine().sigma(t)) ** 2 == pytest.approx(2 * k * t * math.tan(k * s) + (k * t) ** 2 * (1 - math.tan(k * s) ** 2), rel=1e-7)


@given(gap=st.floats(1e-12, 1e-3))
def test_no_cancellation_near_the_end(gap: float) -> None:
    """At t = 1 - gap, where a cosine near pi/2 and 1 - t would have lost their digits: alpha = k gap, and the inverse finds t again."""
    t = 1 - gap
    gap = 1 - t
    cosine, flow, k = sd.Cosine(T=t), sd.RectifiedFlow(T=t), math.pi / 2.016
    assert float(cosine.alpha(t)) == pytest.approx(math.sin(k * gap) / math.sin(k), rel=1e-12)
    assert float(cosine.diffusion(t)) ** 2 == pytest.approx(2 * k / math.tan(k * gap), rel=1e-12)
    assert float(flow.log_snr(t)) == pytest.approx(2 * math.log(gap / t), rel=1e-12)
    for p in (cosine, flow):
        assert 1 - float(p.log_snr_inverse(p.log_snr(t))) == pytest.approx(gap, rel=1e-9, abs=1e-15)


def test_a_rectified_flow_network_is_read_as_published() -> None:
    """SD3 and FLUX: the network says eps - x_0 = dx/dt.  One Euler step of its own is x + (t1 - t0) v, whatever t0, and DDIM is the same."""
    p, x = sd.RectifiedFlow(), torch.randn(5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    velocity = torch.linspace(-2, 2, 15, dtype=torch.float64).reshape(5, 3)
    score = sd.as_score(lambda x, t: velocity, p, predicts="flow")
    for first, last in ((p.T, 0.6), (0.6, 0.1), (p.T, p.eps)):
        for method in ("euler", "ddim"):
            end = sd.solve(p.probability_flow(score), x, method, steps=1, interval=(first, last)).x
            assert torch.allclose(end, x + (last - first) * velocity, rtol=1e-10, atol=1e-10)
    x0, eps = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert torch.allclose(score.target(0.7 * x0 + 0.3 * eps, eps, 0.3), eps - x0)


@pytest.mark.parametrize("process", [sd.Cosine(), sd.RectifiedFlow()], ids=str)
def test_a_network_with_levels_counts_them_to_the_horizon(process: sd.Process) -> None:
    """The process ends before t = 1, where the last of the network's levels is."""
    told: list[torch.Tensor] = []
    score = sd.as_score(lambda x, t: told.append(t) or x, process, predicts="x0", time=1000)
    score(torch.zeros(2, 1), process.T)
    score(torch.zeros(2, 1), 0.5)
    assert [t[0].item() for t in told] == [round(999 * process.T), round(999 * 0.5)]


@pytest.mark.parametrize("make", [lambda: sd.Cosine(s=0.0), lambda: sd.Cosine(T=1.0), lambda: sd.RectifiedFlow(T=1.0), lambda: sd.RectifiedFlow(T=1e-3)])
def test_an_end_without_signal_is_refused(make: Callable[[], sd.Process]) -> None:
    with pytest.raises(ValueError, match="out of range; expected"):
        make()


@EACH
def test_perturb_has_the_marginal_and_the_forward_sde_too(process: sd.Process) -> None:
    """perturb draws from N(alpha x0, sigma^2), and Euler-Maruyama of the forward SDE arrives at the same law."""
    x0 = torch.full((50_000, 1), 0.7, dtype=torch.float64)
    t = float(process.log_snr_inverse(0.0))
    mean, std = process.marginal(x0, t)
    x = process.perturb(x0, t, seed=0)
    assert float(x.mean() - mean[0]) == pytest.approx(0, abs=4 * float(std) / math.sqrt(5e4))
    assert float(x.std() / std) == pytest.approx(1, abs=4 / math.sqrt(1e5))
    start = process.eps
    forward = sd.SDE(process.drift, lambda x, t: process.diffusion(t).to(x), noise="additive", interval=(start, t))
    y = sd.solve(forward, process.perturb(x0, start, seed=1), "euler_maruyama", steps=400, seed=2).x
    assert float(y.mean() - mean[0]) == pytest.approx(0, abs=4 * float(std) / math.sqrt(5e4) + 0.003)
    assert float(y.std() / std) == pytest.approx(1, abs=4 / math.sqrt(1e5) + 0.02)


@EACH
def test_prior(process: sd.Process) -> None:
    x = process.prior((20_000, 2), seed=0, dtype=torch.float64)
    assert float(x.std()) == pytest.approx(process.prior_std, rel=0.02)
    normal = torch.distributions.Normal(0, process.prior_std)
    assert torch.allclose(process.prior_log_prob(x), normal.log_prob(x).sum(1))
    assert torch.equal(process.prior((3, 2), seed=0, sample_ids=[5, 1, 7], dtype=torch.float64), x[[5, 1, 7]])


def test_perturb_rows_have_their_own_times() -> None:
    process, x0 = sd.VPSDE(), torch.randn(6, 3)
    t = torch.linspace(0.1, 0.9, 6)
    together = process.perturb(x0, t, seed=1)
    for i in range(6):
        assert torch.allclose(together[i : i + 1], process.perturb(x0[i : i + 1], float(t[i]), seed=1, sample_ids=[i]))
