"""What is known without the exact likelihood: bounds by dequantisation, and the bound of the reverse SDE."""

from __future__ import annotations

import math
import re

import pytest
import torch
from torch import Tensor

import sdesolve as sd

RANGE = (-1.0, 1.0)


@pytest.fixture(scope="module")
def discrete() -> tuple[sd.Process, sd.exam.Gaussian, Tensor, Tensor]:
    """3-bit data of a Gaussian narrow against its bins: process, law, data and the exact log-probability of each."""
    p, target = sd.VPSDE(), sd.exam.Gaussian([0.1, -0.2], std=0.15)
    edges = torch.linspace(-1, 1, 9, dtype=torch.float64)
    cells = torch.tensor([[4, 3], [5, 2], [3, 3]])
    cdf = lambda k, i: torch.special.ndtr((edges[k] - target.mean[i]) / 0.15)  # noqa: E731
    exact = sum((cdf(cells[:, i] + 1, i) - cdf(cells[:, i], i)).log() for i in range(2))
    return p, target, (cells / 3.5 - 1).double(), exact


def test_dequantised_draws_bound_the_probability(discrete) -> None:
    p, target, x, exact = discrete
    r = sd.discrete_log_likelihood(p, target.score(p), x, RANGE, 8, draws=20, seed=0, divergence="exact", rtol=1e-4, atol=1e-4, extrapolate=True)
    draws = torch.stack([sd.dequantise(x, RANGE, 8, seed=0, draw=k) for k in range(20)])
    by_hand = torch.stack([target.log_prob(draw) for draw in draws]) + 2 * math.log(2 / 8)
    assert torch.allclose(r.log_probs, by_hand, atol=8e-3)
    low = torch.round((x + 1) * 3.5) / 4 - 1
    cubes = ((low + 0.25 - target.mean) ** 3 - (low - target.mean) ** 3) / (3 * 0.25)
    expected = (-0.5 * cubes / 0.15**2 - math.log(0.15 * math.sqrt(2 * math.pi)) + math.log(0.25)).sum(1)
    assert bool((expected < exact - 0.03).all())
    assert bool(((r.bound - expected).abs() < 4 * r.standard_error).all())
    assert bool((r.gap > 0.03).all())
    assert torch.allclose(r.importance_weighted, exact, atol=0.5)  # 20 draws close most of a gap of up to several nats
    assert torch.allclose(r.bits_per_dim(), -r.bound / (2 * math.log(2)))
    assert torch.equal(r.nfe, sum(draw.nfe for draw in r.draws)) and r.ok().all()


def test_the_best_dequantiser_has_no_gap(discrete) -> None:
    """q(u | k) that is the law within the bin makes every draw the exact log-probability."""
    p, target, x, exact = discrete
    lower = lambda k: torch.special.ndtr((-1 + k / 4 - target.mean) / 0.15)  # noqa: E731

    def posterior(k: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        mass = lower(k + 1) - lower(k)
        place = target.mean + 0.15 * torch.special.ndtri(lower(k) + u * mass)
        log_density = -0.5 * ((place - target.mean) / 0.15).square() - math.log(0.15 * math.sqrt(2 * math.pi))
        return ((place + 1) * 4 - k).clamp(0, 1 - 1e-9), (log_density - mass.log() + math.log(1 / 4)).sum(1)

    r = sd.discrete_log_likelihood(p, target.score(p), x, RANGE, 8, draws=2, dequantiser=posterior, seed=0, divergence="exact", extrapolate=True)
    assert torch.allclose(r.log_probs, exact.expand(2, 3), atol=2e-3)


def test_probes_are_kept_out_of_the_exponential(discrete) -> None:
    p, target, x, _ = discrete
    r = sd.discrete_log_likelihood(p, target.score(p), x, RANGE, 8, draws=2, seed=0, rtol=1e-2, atol=1e-2, divergence="hutchinson")
    assert bool(r.bound.isfinite().all())
    with pytest.raises(ValueError, match="divergence='exact'"):
        _ = r.importance_weighted


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"levels": 16}, "none of 16 levels"),
        ({"data_range": (0, 1)}, "none of 8 levels from 0 to 1"),
        ({"x0": torch.full((2, 2), math.nan)}, "2 of 2 samples have values"),
        ({"draws": 0}, "draws=0"),
        ({"dequantiser": lambda k, u: (u + 1, u.sum(1))}, "0 <= u < 1"),
        ({"dequantiser": lambda k, u: (u, u)}, "ln q of shape (3,)"),
        ({"dequantiser": lambda k, u: None}, "returned a NoneType; expected two tensors, u and ln q"),
        ({"dequantiser": lambda k, u: (u, u.sum(1) * math.nan)}, "ln q is not finite"),
        ({"draws": 2, "noise": torch.ones(3, 2)}, "which all 2 draws would share"),
        ({"probes": 0}, "probes=0"),
    ],
)
def test_bad_discrete_data(discrete, changes: dict, message: str) -> None:
    p, _, x, _ = discrete
    arguments = {"x0": x, "data_range": RANGE, "levels": 8, **changes}
    with pytest.raises(ValueError, match=re.escape(message)):
        sd.discrete_log_likelihood(p, lambda y, t: pytest.fail("the network was called"), **arguments)


def test_every_draw_has_probes_of_its_own() -> None:
    """The same point twice, and still two estimates."""
    p, target = sd.VPSDE(), sd.exam.Gaussian(torch.zeros(3), cov=torch.eye(3) + 0.9 * (1 - torch.eye(3)))
    middle = lambda k, u: (torch.full_like(k, 0.5), torch.zeros(len(k)))  # noqa: E731
    r = sd.discrete_log_likelihood(p, target.score(p), torch.zeros(6, 3), RANGE, 9, 2, middle, seed=0, divergence="hutchinson", rtol=1e-2, atol=1e-2)
    assert float((r.log_probs[0] - r.log_probs[1]).abs().max()) > 0.01


def test_half_precision_has_too_few_numbers_for_a_bin() -> None:
    k = torch.arange(256).repeat(20, 1)
    y = sd.dequantise(k.half(), (0, 255), seed=0)
    assert y.dtype == torch.float32 and torch.equal((y.double() / 255 * 256).floor().long(), k)


@pytest.mark.parametrize("data_range", [(0.0, 1.0), (-1.0, 1.0), (0.0, 255.0)], ids=str)
def test_dequantised_data_fill_their_bins(data_range) -> None:
    low, high = data_range
    k = torch.arange(256).repeat(40, 1)
    x = sd.dequantise(low + (high - low) * k.double() / 255, data_range, seed=0)
    u = (x - low) * 256 / (high - low) - k
    assert float(u.min()) >= 0 and float(u.max()) < 1
    assert float(u.mean()) == pytest.approx(0.5, abs=0.01) and float(u.var()) == pytest.approx(1 / 12, abs=0.003)
    again = sd.dequantise(low + (high - low) * k[3:4].double() / 255, data_range, seed=0, sample_ids=[3])
    assert torch.equal(again[0], x[3])
    assert not torch.equal(sd.dequantise(k.double()[:1] / 255, seed=0, draw=1), sd.dequantise(k.double()[:1] / 255, seed=0))
    assert sd.dequantise(k.to(torch.uint8), (0, 255), seed=0).dtype == torch.float32


# -- the bound of the reverse SDE ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("process", [sd.VPSDE(), sd.SubVPSDE(), sd.VESDE(), sd.EDM()], ids=lambda p: type(p).__name__)
def test_the_bound_is_tight_where_the_score_is_exact(process: sd.Process) -> None:
    """For exact scores the reverse SDE has the law of the data, and what is lost, by the Gaussian that ends it, vanishes with eps: the mean over the
    data is -entropy.  Of 500 samples, four bounds each, within 4 standard errors, and the standard errors are what they say."""
    target = sd.exam.Gaussian([0.5, -0.3, 0.2], cov=[[0.3, 0.1, 0.0], [0.1, 0.2, 0.05], [0.0, 0.05, 0.1]])
    x = target.sample(500, seed=0).double()
    r, *others = (sd.likelihood_bound(process, target.score(process), x, 64, seed=seed) for seed in range(4))
    away = r.bound - target.log_prob(x)
    means = torch.stack([away, *(other.bound - target.log_prob(x) for other in others)]).mean(0)
    assert float(means.mean()) == pytest.approx(0.0, abs=4 * float(means.std()) / math.sqrt(500) + float(r.prior.mean()) + 0.002)
    assert r.nfe == 64
    assert 0.8 < float((away.square().mean() / r.standard_error.square().mean()).sqrt()) < 1.6
    again = sd.likelihood_bound(process, target.score(process), x[:50], 64, seed=2)
    scatter = (again.bound - r.bound[:50]).square() / (again.standard_error.square() + r.standard_error[:50].square())
    assert 0.5 < float(scatter.mean()) < 2.0


def test_a_wrong_score_lowers_the_bound_by_its_error() -> None:
    """-bound grows by 1/2 int g^2 |error|^2 dt, here of a score that is multiplied."""
    p, target = sd.VPSDE(), sd.exam.Gaussian(torch.zeros(4), std=0.5)
    x = target.sample(400, seed=0).double()
    right = sd.likelihood_bound(p, target.score(p), x, 64, seed=1, eps=1e-3)
    wrong = sd.likelihood_bound(p, sd.exam.scaled(target.score(p), 0.8), x, 64, seed=1, eps=1e-3)
    s = torch.linspace(float(p.log_snr(1.0)), float(p.log_snr(1e-3)), 4001, dtype=torch.float64)
    t = p.log_snr_inverse(s)
    loss = 0.04 * p.sigma(t).square() * 4 / (p.alpha(t).square() * 0.25 + p.sigma(t).square())  # sigma^2 |0.2 score|^2, expected
    expected = float(torch.trapezoid(loss, s) / 2 + loss[-1] / 2)
    lost = right.bound - wrong.bound
    assert float(lost.mean()) == pytest.approx(expected, abs=4 * float(lost.std()) / 20)


def test_the_bound_of_a_row_is_its_own() -> None:
    p, target = sd.VPSDE(), sd.exam.Gaussian(torch.zeros(4), std=0.5)
    x = target.sample(5, seed=0)
    whole = sd.likelihood_bound(p, target.score(p), x, 8, seed=1)
    assert torch.allclose(sd.likelihood_bound(p, target.score(p), x[2:3], 8, seed=1, sample_ids=[2]).bound, whole.bound[2:3])
    x[1, 0] = math.nan
    assert sd.likelihood_bound(p, target.score(p), x, 8, seed=1).ok().tolist() == [True, False, True, True, True]
    assert torch.allclose(whole.bits_per_dim((-5, 5), 32), -whole.bound / (4 * math.log(2)) + math.log2(3.2))
    for evaluations, message in ((7, "expected an even number"), (2, "evaluations=2")):
        with pytest.raises(ValueError, match=message):
            sd.likelihood_bound(p, target.score(p), x, evaluations)


def test_what_the_bound_is_made_of() -> None:
    """Its three terms, of which the prior's is known, and told of where it is large."""
    p, x = sd.VESDE(sigma_max=2.0), torch.tensor([[1.0, -2.0, 0.5], [0.0, 0.0, 3.0]])
    with pytest.warns(sd.SolveWarning, match=r"the KL divergence is .* bits/dim on average \(b.prior\)"):
        b = sd.likelihood_bound(p, sd.exam.Gaussian(torch.zeros(3), std=1.0).score(p), x, 8, 0)
    assert torch.allclose(b.bound, -(b.prior + b.diffusion + b.reconstruction))
    end = torch.distributions.Normal(float(p.alpha(p.T)) * x.double(), float(p.sigma(p.T)))
    expected = torch.distributions.kl_divergence(end, torch.distributions.Normal(0.0, torch.tensor(p.prior_std, dtype=torch.float64))).sum(1)
    assert torch.allclose(b.prior, expected) and float(expected.min()) > 0.2


def test_the_noise_of_the_last_step_averages_out() -> None:
    """Two draws at eps would leave sqrt(d)/2 nats, however many there are elsewhere: 0.026 bits/dim of 784; and what is claimed is what is found."""
    p, d, ln2 = sd.VPSDE(), 784, math.log(2)
    target = sd.exam.Gaussian(torch.zeros(d), std=0.5)
    x = target.sample(16, seed=0)
    b = sd.likelihood_bound(p, target.score(p), x, 256, 1)
    error = (b.bound - target.log_prob(x)) / (d * ln2)
    claimed = float(b.bits_per_dim_error().square().mean().sqrt())
    assert claimed < 0.013
    assert float(error.square().mean().sqrt()) < 1.6 * claimed  # 16 samples: a standard error of 18 %
    assert abs(float(error.mean())) < 3.5 * claimed / 4
