"""Log-likelihoods against closed forms, and whether what they say of their own errors is true."""

from __future__ import annotations

import math
import re
import warnings

import pytest
import torch
from torch import Tensor

import sdesolve as sd
from sdesolve._student import student_quantile
from sdesolve.noise import SeededNormals

PROCESSES = {"VP": sd.VPSDE(), "subVP": sd.SubVPSDE(), "VE": sd.VESDE()}
EVENTS = [(3,), (1, 7, 5), (3, 8, 8), (2, 3, 4, 4)]


def coupled(event: tuple[int, ...], seed: int = 0, rank: int = 4) -> sd.exam.Gaussian:
    """A Gaussian of which no two coordinates are independent."""
    draws = torch.Generator().manual_seed(seed)
    factor = 0.6 / math.sqrt(rank) * torch.randn(*event, rank, generator=draws)
    return sd.exam.Gaussian(0.2 * torch.randn(event, generator=draws), factor=factor, floor=0.3)


def mixture(event: tuple[int, ...]) -> sd.exam.Mixture:
    return sd.exam.Mixture([0.3, 0.7], [coupled(event, 1), coupled(event, 2)])


def bits(nats: Tensor, x: Tensor) -> float:
    """The largest of some log-densities in bits/dim."""
    return float(nats.abs().max()) / (x[0].numel() * math.log(2))


LAWS = [*((coupled, event) for event in EVENTS), (mixture, (3,)), (mixture, (2, 3, 4, 4))]


@pytest.mark.parametrize(("law", "event"), LAWS, ids=lambda value: getattr(value, "__name__", str(value)))
@pytest.mark.parametrize("process", PROCESSES)
def test_the_closed_form(law, process, event) -> None:
    """With both ends corrected it is the law of the data, and with the exact law at T for a prior that at eps, of which the solver alone is left."""
    p, target = PROCESSES[process], law(event)
    x = target.sample(2, seed=1)
    r = sd.log_likelihood(p, target.score(p), x, "exact", extrapolate=True)
    assert bits(r.log_prob - target.log_prob(x), x) < 1e-3
    plain = sd.log_likelihood(p, target.score(p), x, "exact")
    own = plain.divergence + target.log_prob(plain.latent, p, p.T) - target.log_prob(x, p, plain.stats["eps"])
    assert bits(own, x) < 2e-4
    assert bool((plain.budget.solver > 0.9 * own.abs()).all())  # the estimate is no less than the error
    assert torch.equal(plain.standard_error, torch.zeros(2, dtype=torch.float64))
    assert torch.allclose(plain.log_prob, plain.prior + plain.divergence)


def test_the_integral_has_a_say_in_the_steps() -> None:
    """In the middle of a Gaussian the flow stands still, and the density does not."""
    p, target = sd.VPSDE(), sd.exam.Gaussian(torch.zeros(5), std=0.3)
    x = torch.zeros(1, 5)
    r = sd.log_likelihood(p, target.score(p), x, "exact", extrapolate=True)
    assert float(r.latent.abs().max()) < 1e-6
    assert bits(r.log_prob - target.log_prob(x), x) < 3e-4


def test_what_the_ends_of_the_interval_do() -> None:
    """The reported truncation is ln p_eps - ln p_0 to first order, and the reported KL that of p(x_T | x_0)."""
    p, target = sd.VPSDE(), coupled((6,))
    x = target.sample(8, seed=0).double()
    for eps in (1e-2, 1e-3):
        r = sd.log_likelihood(p, target.score(p), x, "exact", eps=eps)
        gap = target.log_prob(x, p, eps) - target.log_prob(x)
        assert torch.allclose(r.budget.truncation, gap, rtol=30 * eps, atol=30 * eps**2)
    alpha, sigma = float(p.alpha(1.0)), float(p.sigma(1.0))
    given = torch.distributions.Normal(alpha * x, torch.full_like(x, sigma))
    kl = torch.distributions.kl_divergence(given, torch.distributions.Normal(torch.zeros_like(x), torch.ones_like(x))).sum(1)
    assert torch.allclose(r.budget.prior, kl, rtol=1e-6)


@pytest.fixture(scope="module")
def repeated() -> tuple[sd.Process, sd.exam.Gaussian, Tensor, float]:
    """One sample, 1000 times over, and its log-likelihood with the exact divergence."""
    p, target = sd.VPSDE(), coupled((32,), rank=32)
    x = target.sample(1, seed=3).expand(1000, 32)
    return p, target, x, float(sd.log_likelihood(p, target.score(p), x[:1], "exact", rtol=1e-4, atol=1e-4).log_prob)


def test_intervals_cover_what_they_claim(repeated) -> None:
    """1000 repeats, of which 93 to 97 % should hold; 0.7 % is the standard error of that share."""
    p, target, x, exact = repeated
    r = sd.log_likelihood(p, target.score(p), x, probes=8, rtol=1e-4, atol=1e-4, seed=0)
    low, high = r.interval(0.95)
    assert 0.93 <= float(((low <= exact) & (exact <= high)).double().mean()) <= 0.97
    assert abs(float(r.log_prob.mean()) - exact) < 4 * float(r.log_prob.std()) / math.sqrt(1000)


def test_few_dimensions_are_exact_unless_told_otherwise() -> None:
    """Of a few combinations of signs no standard error can be had."""
    p = sd.VPSDE()
    for d, options, kind in ((16, {}, "exact"), (17, {}, "hutchinson"), (16, {"probes": 2}, "hutchinson"), (2, {"noise": "gaussian"}, "hutchinson")):
        r = sd.log_likelihood(p, sd.exam.Gaussian(torch.zeros(d), std=1.0).score(p), torch.zeros(1, d), rtol=1e-2, atol=1e-2, seed=0, **options)
        assert r.stats["divergence"] == kind, d


def test_the_variance_falls_as_one_over_the_probes(repeated) -> None:
    p, target, x, _ = repeated
    options = {"rtol": 1e-3, "atol": 1e-3}
    one = sd.log_likelihood(p, target.score(p), x, probes=1, seed=1, **options)
    four = sd.log_likelihood(p, target.score(p), x, probes=4, seed=2, **options)
    sixteen = sd.log_likelihood(p, target.score(p), x, probes=16, seed=3, **options)
    assert float(one.log_prob.var() / four.log_prob.var()) == pytest.approx(4, rel=0.2)
    assert float(four.log_prob.var() / sixteen.log_prob.var()) == pytest.approx(4, rel=0.2)
    assert float(four.standard_error.square().mean()) == pytest.approx(float(four.log_prob.var()), rel=0.15)
    assert bool((one.standard_error > 0).all())
    assert 1.0 < float(one.standard_error.square().mean().sqrt() / one.log_prob.std()) < 2.5  # one probe says too much rather than too little


def test_hutch_plus_plus(repeated) -> None:
    p, target, x, exact = repeated
    r = sd.log_likelihood(p, target.score(p), x[:200], "hutch++", probes=6, rtol=1e-3, atol=1e-3, seed=0)
    assert abs(float(r.log_prob.mean()) - exact) < 4 * float(r.log_prob.std()) / math.sqrt(200) + 0.01


@pytest.mark.parametrize("predicts", ["epsilon", "x0", "v", "edm"])
def test_the_analytic_part_is_exact(predicts: str) -> None:
    """Of a network that is told what the data's variance is, nothing is left to estimate: Gaussian probes see no linear part."""
    p = sd.VPSDE()
    target = sd.exam.Gaussian(torch.zeros(8), std=0.5)
    score = sd.as_score(sd.exam.as_model(target, p, predicts=predicts), p, predicts=predicts)
    x = target.sample(3, seed=0)
    exact = sd.log_likelihood(p, score, x, "exact").log_prob
    assert bits(exact - target.log_prob(x), x) < 1e-3
    r = sd.log_likelihood(p, score, x, noise="gaussian", probes=2, seed=0)
    plain = sd.log_likelihood(p, lambda x, t: score(x, t), x, noise="gaussian", probes=2, seed=0)
    if predicts == "edm":  # F = 0 for data with the variance sigma_data^2: the whole score is the linear part
        assert bits(r.log_prob - exact, x) < 1e-5 < bits(plain.log_prob - exact, x)
    assert torch.allclose(r.log_prob, plain.log_prob, rtol=1e-3) == (predicts == "epsilon")  # whose own linear part is 0


def test_a_probe_is_drawn_once_and_stays_with_its_row(monkeypatch) -> None:
    """Rows leave the batch at different times here; no number is drawn after the start, and each row's result is what it has alone."""
    p, target = sd.VPSDE(), coupled((2, 3))
    x = target.sample(5, seed=0) * torch.tensor([1.0, 3.0, 0.1, 2.0, 1.0]).reshape(-1, 1, 1)
    draws = []
    normal = SeededNormals.normal
    monkeypatch.setattr(SeededNormals, "normal", lambda self, *node: draws.append(node) or normal(self, *node))
    together = sd.log_likelihood(p, target.score(p), x, probes=3, seed=7)
    assert len(draws) == 3
    assert len(set(together.nfe.tolist())) > 1
    for i in range(5):
        alone = sd.log_likelihood(p, target.score(p), x[i : i + 1], probes=3, seed=7, sample_ids=[i])
        assert torch.allclose(alone.parts[:, 0], together.parts[:, i], rtol=1e-4), i
    batched = sd.log_likelihood(p, target.score(p), x, probes=3, seed=7, batch_size=2)
    assert torch.allclose(batched.parts, together.parts, rtol=1e-4) and torch.equal(batched.nfe, together.nfe)
    signs = torch.stack([torch.where(SeededNormals(7, range(5), (2, 3), dtype=torch.float32, device="cpu", stream=3, nodes=3).normal(i) < 0, -1.0, 1.0) for i in range(3)])
    assert torch.equal(sd.log_likelihood(p, target.score(p), x, probes=3, noise=signs).parts, together.parts)
    assert not torch.allclose(sd.log_likelihood(p, target.score(p), x, probes=3, seed=8).parts, together.parts, rtol=1e-3)


def test_calls_are_counted() -> None:
    p, target = sd.VPSDE(), coupled((4,))
    rows = []
    exact = target.score(p)

    def score(x: Tensor, t: Tensor) -> Tensor:
        rows.append(len(x))
        return exact(x, t)

    r = sd.log_likelihood(p, score, target.sample(3, seed=0), probes=2, seed=0)
    assert len(rows) == r.stats["calls"] == int(r.nfe.max())
    assert sum(rows) == int(r.nfe.sum()) == r.stats["rows"]
    steps = (len(rows) - 1) // 6  # the second stage of each is seen by nothing but the stages after it
    assert len(rows) == 1 + 6 * steps <= 79 and r.stats["vjps"] == 2 * (len(rows) - steps)
    corrected = sd.log_likelihood(p, score, target.sample(3, seed=0), probes=2, seed=0, extrapolate=True)
    assert torch.equal(corrected.nfe, r.nfe + 1)


@pytest.mark.parametrize("method", ["bosh3", "tsit5", "dop853"])
def test_other_methods(method: str) -> None:
    p, target = sd.VPSDE(), coupled((5,))
    x = target.sample(3, seed=0).double()
    own = sd.log_likelihood(p, target.score(p), x, "exact", method=method, rtol=1e-6, atol=1e-6)
    assert bits(own.divergence + target.log_prob(own.latent, p, 1.0) - target.log_prob(x, p, own.stats["eps"]), x) < 1e-4


def test_a_tighter_tolerance_is_a_smaller_error() -> None:
    p, target = sd.SubVPSDE(), mixture((5,))
    x = target.sample(3, seed=0).double()
    errors = []
    for tolerance in (1e-3, 1e-5, 1e-7):
        r = sd.log_likelihood(p, target.score(p), x, "exact", rtol=tolerance, atol=tolerance)
        errors.append(bits(r.divergence + target.log_prob(r.latent, p, 1.0) - target.log_prob(x, p, r.stats["eps"]), x))
    assert errors[1] < 0.05 * errors[0] and errors[2] < 0.05 * errors[1]


def test_a_network_that_amplifies_what_the_path_is_off_by() -> None:
    """What an error of x does to ln p at once is not all that it does where the flow makes it grow; so x has the tolerance, too."""
    draws = torch.Generator().manual_seed(5)
    first, last = (torch.randn(64, n, generator=draws, dtype=torch.float64) for n in (9, 8))
    p, x = sd.VPSDE(), torch.randn(8, 8, generator=draws, dtype=torch.float64)
    score = sd.as_score(lambda x, t: torch.tanh(torch.cat([x, t[:, None]], 1) @ first.T) @ last / 8, p, predicts="epsilon")
    r, exact = (sd.log_likelihood(p, score, x, "exact", rtol=tol, atol=tol) for tol in (1e-4, 1e-9))
    assert bits(r.log_prob - exact.log_prob, x) < 1e-3
    assert float((r.latent - exact.latent).abs().max()) < 1e-3


def test_half_precision_is_lifted() -> None:
    p, target = sd.VPSDE(), coupled((5,))
    x = target.sample(3, seed=0).bfloat16()
    r = sd.log_likelihood(p, target.score(p), x, "exact")
    assert r.latent.dtype == torch.float32
    assert torch.equal(r.log_prob, sd.log_likelihood(p, target.score(p), x.float(), "exact").log_prob)


class Uniform:
    """The score of independent numbers that are uniform on (low, high)."""

    def __init__(self, process: sd.Process, low: float, high: float) -> None:
        self._process, self._low, self._high = process, low, high

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = (sd.expand_time(level, x.double()) for level in (self._process.alpha(t), self._process.sigma(t)))
        a, b = (x.double() - alpha * self._low) / sigma, (x.double() - alpha * self._high) / sigma
        a, b = torch.where(a + b > 0, -b, a), torch.where(a + b > 0, -a, b)  # the left half, by symmetry
        log_mass = torch.special.log_ndtr(a) + torch.log1p(-(torch.special.log_ndtr(b) - torch.special.log_ndtr(a)).exp())
        density = lambda z: -0.5 * z.square() - 0.5 * math.log(2 * math.pi)  # noqa: E731
        value = ((density(a) - log_mass).exp() - (density(b) - log_mass).exp()) / sigma
        return torch.where(2 * x.double() > alpha * (self._low + self._high), -value, value).to(x.dtype)


@pytest.mark.parametrize("levels", [256, 32])
@pytest.mark.parametrize("data_range", [(0.0, 1.0), (-1.0, 1.0), (0.0, 255.0)], ids=str)
def test_uniform_data_score_the_bits_they_have(data_range: tuple[float, float], levels: int) -> None:
    low, high = data_range
    p = sd.VESDE(sigma_min=1e-4 * (high - low), sigma_max=50 * (high - low))
    pixels = torch.randint(0, levels, (32, 1, 8, 8), generator=torch.Generator().manual_seed(0))
    raw = low + (high - low) * pixels.double() / (levels - 1)
    x = sd.dequantise(raw, data_range, levels, seed=0)
    assert low <= float(x.min()) and float(x.max()) <= high
    r = sd.log_likelihood(p, Uniform(p, low, high), x, probes=4, rtol=1e-3, atol=1e-3, seed=0)
    assert float(r.bits_per_dim(data_range, levels).mean()) == pytest.approx(math.log2(levels), abs=0.01)
    assert torch.allclose(r.bits_per_dim(data_range, levels), r.bits_per_dim(data_range, 2 * levels) - 1)


def test_a_density_that_is_known_in_bits() -> None:
    """A uniform density of [-1, 1] in 3 dimensions, put in by hand: 8 bits."""
    r = sd.log_likelihood(sd.VPSDE(), coupled((3,)).score(sd.VPSDE()), torch.zeros(2, 3), "exact", rtol=1e-2, atol=1e-2)
    import dataclasses

    flat = dataclasses.replace(r, log_prob=torch.full((2,), -3 * math.log(2), dtype=torch.float64), standard_error=torch.ones(2, dtype=torch.float64))
    assert torch.allclose(flat.bits_per_dim((-1, 1), 256), torch.full((2,), 8.0, dtype=torch.float64))
    assert torch.allclose(flat.bits_per_dim_error(), torch.full((2,), 1 / (3 * math.log(2)), dtype=torch.float64))


def test_a_broken_row_disturbs_no_other() -> None:
    p, target = sd.VPSDE(), coupled((4,))
    x = target.sample(3, seed=0)
    broken = x.clone()
    broken[1, 2] = math.nan
    with pytest.warns(sd.SolveWarning, match="1 of 3 samples have no likelihood .sample 1: non_finite"):
        r = sd.log_likelihood(p, target.score(p), broken, "exact")
    assert r.status.tolist() == ["ok", "non_finite", "ok"] and r.ok().tolist() == [True, False, True]
    whole = sd.log_likelihood(p, target.score(p), x, "exact")
    assert torch.isnan(r.log_prob[1]) and torch.allclose(r.log_prob[[0, 2]], whole.log_prob[[0, 2]], rtol=1e-6)
    assert torch.isnan(r.bits_per_dim((-9, 9))).tolist() == [False, True, False]
    with pytest.warns(sd.SolveWarning, match="max_steps"):
        short = sd.log_likelihood(p, target.score(p), x, "exact", max_steps=3)
    assert short.status.tolist() == ["max_steps"] * 3 and torch.isnan(short.log_prob).all()


def test_autograd_may_be_off_outside_and_not_within() -> None:
    """Without derivatives the likelihood would be wrong, and its status ok."""
    p, target = sd.VPSDE(), coupled((4,))
    x, score = target.sample(3, seed=0), target.score(p)
    expected = sd.log_likelihood(p, score, x, seed=0).log_prob
    with torch.inference_mode():
        assert torch.equal(sd.log_likelihood(p, score, x.clone(), seed=0).log_prob, expected)
    for cut in (torch.no_grad()(lambda y, t: score(y, t)), lambda y, t: score(y.detach(), t)):
        with pytest.raises(ValueError, match="autograd was cut off"):
            sd.log_likelihood(p, cut, x, seed=0)


def test_a_prior_that_does_not_fit_is_told() -> None:
    p, target = sd.VESDE(sigma_max=2.0), coupled((4,))
    with pytest.warns(sd.SolveWarning, match="KL divergence is .* bits/dim"):
        r = sd.log_likelihood(p, target.score(p), target.sample(3, seed=0), "exact")
    assert float(r.budget.prior.mean()) > 0.01
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sd.log_likelihood(sd.VPSDE(), target.score(sd.VPSDE()), target.sample(3, seed=0), "exact")


BAD = {
    "divergence": ({"divergence": "hutchison"}, "Did you mean 'hutchinson'"),
    "probes": ({"probes": 0}, "probes=0; expected an integer >= 1"),
    "exact with probes": ({"divergence": "exact", "probes": 2}, "'exact' takes none"),
    "method": ({"method": "rk4"}, "method='rk4' does not choose steps"),
    "stiff": ({"method": "rodas5p"}, "expected 'rk45'"),
    "sde": ({"method": "pc"}, "does not choose steps"),
    "tolerance": ({"rtol": -1.0}, "rtol=-1.0"),
    "no error is small": ({"rtol": 1e9, "atol": 1e-5}, "expected less than 1 together, as in rtol=1e-4, atol=1e-4"),
    "half a nat each": ({"rtol": 0.5, "atol": 0.5}, "errors of whole nats a dimension"),
    "no process": ({"process": None}, "process is a NoneType; expected the forward process of the model, as in sd.VPSDE()"),
    "silent probe": ({"divergence": "hutchinson", "noise": torch.tensor([[1.0, 1.0], [0.0, 0.0]])}, "probe 0 of row 1 is 0"),
    "rounding": ({"rtol": 1e-12, "atol": 1e-12}, "below one rounding"),
    "eps": ({"eps": 0.0}, "expected 0 < eps < T"),
    "seed": ({"seed": 1.5}, "seed=1.5"),
    "ids": ({"sample_ids": [1, 2, 3]}, "expected 2 integers"),
    "batch": ({"batch_size": 0}, "batch_size=0"),
    "steps": ({"max_steps": 0}, "max_steps=0"),
    "empty": ({"x0": torch.ones(0, 2)}, "at least one sample"),
    "integers": ({"x0": torch.ones(2, 2, dtype=torch.uint8)}, "x.float()"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_told_before_the_first_call(case: str) -> None:
    changes, message = BAD[case]
    calls: list[int] = []
    arguments = {"process": sd.VPSDE(), "score": lambda x, t: calls.append(1) or -x, "x0": torch.ones(2, 2), **changes}
    with pytest.raises((ValueError, TypeError), match=re.escape(message)):
        sd.log_likelihood(**arguments)
    assert not calls


def test_bits_are_refused_outside_the_range() -> None:
    p = sd.VPSDE()
    r = sd.log_likelihood(p, coupled((2,)).score(p), torch.tensor([[0.5, 0.5], [0.5, 1.5]]), "exact", rtol=1e-2, atol=1e-2)
    with pytest.raises(ValueError, match=r"1 of 2 samples leave it \(sample 1 runs from 0.5 to 1.5\)"):
        r.bits_per_dim((0, 1))
    for arguments, message in (((1, 0), 256), "low < high"), (((0, math.inf), 256), "two finite"), (((0,), 256), "two finite"), (((0, 2), 1), "levels=1"):
        with pytest.raises(ValueError, match=message):
            r.bits_per_dim(*arguments)
    with pytest.raises(ValueError, match="0 < level < 1"):
        r.interval(95)


def test_student_s_quantiles() -> None:
    """[Abramowitz & Stegun 1964, table 26.10]"""
    for dof, expected in ((1, 12.706), (2, 4.303), (7, 2.365), (30, 2.042), (None, 1.960)):
        assert student_quantile(0.95, dof) == pytest.approx(expected, abs=6e-4)
