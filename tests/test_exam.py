"""The examiner is examined first: exact scores against autograd, measures against their own claims."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import integrate, stats

from sdesolve import exam
from sdesolve.exam.measures import kolmogorov_p
from sdesolve.exam.targets import ExactScore
from sdesolve.processes import EDM, VESDE, VPSDE, Cosine, RectifiedFlow, SubVPSDE
from sdesolve.scores import PARAMETERISATIONS, as_score

torch.set_num_threads(1)
PROCESSES = [VPSDE(), SubVPSDE(), VESDE(), EDM(), Cosine(), RectifiedFlow()]
by_name = {"ids": lambda p: type(p).__name__}


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def smooth_field() -> exam.Gaussian:
    return exam.Gaussian(normal(1, 3, 4), factor=normal(1, 3, 4, 2, seed=1), floor=0.1)


def covariance(d: int = 3) -> torch.Tensor:
    a = normal(d, d, seed=3)
    return a @ a.T / d


TARGETS = {
    "gaussian_1d": exam.gaussian_1d(),
    "diagonal": exam.Gaussian(normal(2, 2), std=[[0.1, 0.5], [1.0, 2.0]]),
    "full": exam.Gaussian(normal(3), cov=covariance()),
    "low_rank": smooth_field(),
    "mixture_1d": exam.mixture_1d(),
    "mixture_2d": exam.mixture_2d(),
    "ring_2d": exam.ring_2d(),
    "mixture_64d": exam.mixture_64d(),
    "product": exam.Product([exam.mixture_1d(), exam.gaussian_1d(), exam.mixture_1d(), exam.gaussian_1d(0.1)], (2, 2)),
    "empirical": exam.Empirical(normal(50, 1, 3)),
    "perturbed": exam.mixture_2d().perturbed(VPSDE(), 0.2),
}
targets = pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS.keys())
processes = pytest.mark.parametrize("process", PROCESSES, **by_name)


def fractions(process, *f):
    return [process.eps + (process.T - process.eps) * v for v in f]


@targets
@processes
def test_score_is_the_gradient_of_log_prob(target, process):
    for t in [*fractions(process, 0.0, 0.01, 0.3, 1.0), torch.tensor(fractions(process, 0.02, 0.2, 0.4, 0.9), dtype=torch.float64)]:
        x = target.sample(4, seed=1, dtype=torch.float64)
        x = process.perturb(x, t, seed=2).requires_grad_()
        (gradient,) = torch.autograd.grad(target.log_prob(x, process, t).sum(), x)
        torch.testing.assert_close(target.score(process)(x.detach(), t), gradient, rtol=1e-7, atol=1e-7 * float(gradient.abs().max()))


@targets
@processes
def test_perturbed_draws_have_the_stated_moments_and_a_score_of_mean_zero(target, process):
    t = fractions(process, 0.2)[0]
    law = target.perturbed(process, t)
    x = law.sample(2000, seed=5, dtype=torch.float64)
    m = exam.moments(x, law)
    assert m.mean.p_value > 1e-4 and m.covariance.p_value > 1e-4, m
    score = target.score(process)(x, t)
    worst = (score.mean(0) / (score.std(0) / math.sqrt(len(x)))).abs().max()
    assert worst < 4.5
    stein = score.flatten(1).mul(x.flatten(1) - law.mean.reshape(-1)).sum(1)  # E[<score, x - m>] = -d
    assert abs(stein.mean() + x[0].numel()) < 4.5 * stein.std() / math.sqrt(len(x))
    torch.testing.assert_close(law.score(VPSDE())(x, 1e-5), score, rtol=1e-2, atol=1e-2 * float(score.abs().max()))


@targets
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_score_is_finite_and_right_at_the_extremes(target, dtype):
    for process, t, far in ((VESDE(), 1.0, 500.0), (VPSDE(), 1e-5, 1.0), (VPSDE(), 1e-5, 1e4), (VPSDE(), 1.0, 1.0), (EDM(), 0.002, 1e3)):
        x = (far * normal(3, *target.event)).to(dtype)
        score = target.score(process)(x, torch.tensor(t))
        assert score.dtype == dtype and score.isfinite().all()
        exact = target.score(process)(x.double(), torch.tensor(t))
        torch.testing.assert_close(score, exact.to(dtype), rtol=1e-6, atol=0)


def test_far_away_the_nearest_component_alone_counts():
    far, process, t = torch.tensor([[40.0, 30.0]], dtype=torch.float64), VPSDE(), 1e-5
    mixture = exam.gaussian_mixture([0.5, 0.5], [[0.0, 0.0], [1.0, 1.0]], [0.1, 0.1])
    expected = exam.Gaussian([1.0, 1.0], std=0.1).score(process)(far, t)
    torch.testing.assert_close(mixture.score(process)(far, t), expected, rtol=1e-12, atol=0)
    expected = mixture.components[1].log_prob(far, process, t) + math.log(0.5)
    torch.testing.assert_close(mixture.log_prob(far, process, t), expected)


@pytest.mark.parametrize("target", [exam.gaussian_1d(), exam.mixture_1d(), exam.Empirical(normal(5, 1)), exam.Product([exam.mixture_1d()])])
def test_log_prob_integrates_to_one(target):
    cases = [(VPSDE(), 0.2), (VESDE(), 0.4), (None, None)][: 2 if isinstance(target, exam.Empirical) else 3]
    for process, t in cases:
        def density(v, process=process, t=t):
            return target.log_prob(torch.tensor([[v]], dtype=torch.float64), process, t).exp().item()

        assert integrate.quad(density, -6, 6, limit=300)[0] == pytest.approx(1, abs=1e-6)


def test_log_prob_agrees_with_scipy():
    x, c = normal(5, 3, seed=9), covariance()
    expected = stats.multivariate_normal(normal(3).numpy(), c.numpy()).logpdf(x.numpy())
    assert exam.Gaussian(normal(3), cov=c).log_prob(x).numpy() == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("rank,floor", [(2, 0.3), (4, 0.0), (7, 0.2), (2, 0.0)])
def test_low_rank_is_the_full_covariance(rank, floor):
    mean, factor = normal(4), normal(4, rank, seed=2)
    low = exam.Gaussian(mean, factor=factor, floor=floor)
    full = exam.Gaussian(mean, cov=factor @ factor.T + floor**2 * torch.eye(4, dtype=torch.float64))
    x = normal(6, 4, seed=3)
    torch.testing.assert_close(low.covariance, full.covariance)
    torch.testing.assert_close(low.variance, full.covariance.diagonal())
    for t in (1e-3, 0.3, 1.0):
        torch.testing.assert_close(low.score(VPSDE())(x, t), full.score(VPSDE())(x, t), rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(low.log_prob(x, VPSDE(), t), full.log_prob(x, VPSDE(), t), rtol=1e-9, atol=1e-9)
    assert exam.moments(low.sample(5000, seed=1), full).covariance.p_value > 1e-4


@processes
def test_empirical_is_a_mixture_of_points_whatever_the_chunks(process, monkeypatch):
    data = normal(40, 2, 3, seed=4) + 5
    points = exam.gaussian_mixture(torch.ones(40), data, torch.zeros(40))
    x = process.perturb(data[:6], fractions(process, 0.1)[0], seed=1)
    for chunk in (1 << 22, 30):
        monkeypatch.setattr("sdesolve.exam.targets._CHUNK", chunk)
        empirical = exam.Empirical(data)
        torch.testing.assert_close(empirical.mean, points.mean)
        torch.testing.assert_close(empirical.covariance, points.covariance)
        torch.testing.assert_close(empirical.variance.reshape(-1), points.covariance.diagonal())
        for t in fractions(process, 0.01, 0.1, 1.0):
            torch.testing.assert_close(empirical.score(process)(x, t), points.score(process)(x, t), rtol=1e-8, atol=1e-8)
            torch.testing.assert_close(empirical.log_prob(x, process, t), points.log_prob(x, process, t), rtol=1e-9, atol=1e-9)
    drawn, known = ({tuple(row.flatten().tolist()) for row in rows} for rows in (empirical.sample(100, dtype=torch.float64), data))
    assert drawn <= known and len(drawn) > 30


@pytest.mark.parametrize("name", ["gaussian_1d", "diagonal", "mixture_1d", "ring_2d", "mixture_64d", "product"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rows_have_the_same_bits_in_every_batch(name, dtype):
    score = TARGETS[name].score(VPSDE())
    x, t = normal(64, *TARGETS[name].event).to(dtype), torch.linspace(0.01, 1, 64)
    whole, whole_t = score(x, 0.3), score(x, t)
    for rows in (slice(0, 1), slice(5, 12), slice(3, 36)):
        assert torch.equal(score(x[rows], 0.3), whole[rows]) and torch.equal(score(x[rows], t[rows]), whole_t[rows])


@targets
def test_draws_are_a_function_of_seed_and_row_and_follow_the_law(target):
    x = target.sample(50, seed=3)
    assert x.shape == (50, *target.event) and x.dtype == torch.float32
    torch.testing.assert_close(target.sample(7, seed=3), x[:7], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(target.sample(50, seed=3, dtype=torch.float64).float(), x)
    assert not torch.equal(target.sample(50, seed=4), x)
    assert exam.compare(target.sample(2000, seed=11), target).passed(1e-4)


def test_perturbing_a_draw_with_its_own_seed_is_still_independent():
    x0 = exam.gaussian_1d().sample(5000, seed=0)
    x = VPSDE().perturb(x0, 0.3, seed=0)
    assert exam.compare(x, exam.gaussian_1d().perturbed(VPSDE(), 0.3)).passed()


def test_mixture_proportions():
    x = exam.mixture_1d().sample(20_000, seed=2)
    assert (x < -0.35).double().mean().item() == pytest.approx(0.3, abs=0.012)


# -- models ----------------------------------------------------------------------------------------------------------


@processes
@pytest.mark.parametrize("predicts", PARAMETERISATIONS)
@pytest.mark.parametrize("time", ["continuous", "t*999", "sigma", "log_sigma/4", 1000])
def test_as_model_round_trips(process, predicts, time):
    target = exam.mixture_2d()
    index = torch.tensor([1, 30, 400, int(999 * process.T / process.horizon)])
    t = index.double() * (process.horizon / 999) if time == 1000 else torch.tensor(fractions(process, 0.0, 0.1, 0.6, 1.0), dtype=torch.float64)
    x = process.perturb(target.sample(4, dtype=torch.float64), t, seed=1)
    score = as_score(exam.as_model(target, process, predicts=predicts, time=time), process, predicts=predicts, time=time)
    torch.testing.assert_close(score(x, t), target.score(process)(x, t), rtol=1e-6, atol=1e-6)


def test_as_model_says_what_a_network_would():
    """epsilon, x0 and v of a Gaussian by hand:  E[eps | x] = sigma x / V  and  E[x_0 | x] = alpha s^2 x / V  at mean 0."""
    p, t, s = VPSDE(), 0.4, 0.3
    target, x = exam.gaussian_1d(s, 0.0), torch.tensor([[0.7]], dtype=torch.float64)
    alpha, sigma = p.alpha(t), p.sigma(t)
    eps, x0 = sigma * x / (alpha**2 * s**2 + sigma**2), alpha * s**2 * x / (alpha**2 * s**2 + sigma**2)
    told = torch.full((1,), t, dtype=torch.float64)
    for predicts, expected in {"epsilon": eps, "x0": x0, "v": alpha * eps - sigma * x0}.items():
        torch.testing.assert_close(exam.as_model(target, p, predicts=predicts)(x, told), expected)
    assert exam.as_model(target, p, predicts="epsilon", time=1000)(x, torch.tensor([0])).isfinite().all()


def test_wrong_models_are_wrong_as_declared():
    score, x, t = exam.mixture_2d().score(VPSDE()), normal(8, 2), torch.tensor(0.3)
    assert isinstance(score, ExactScore)
    assert torch.equal(exam.wrong_sign(score)(x, t), -score(x, t))
    assert torch.equal(exam.scaled(score, 1.1)(x, t), 1.1 * score(x, t))
    assert torch.equal(exam.wrong_time(score, lambda t: 1 - t)(x, t), score(x, 1 - t))
    wrong = exam.as_model(exam.wrong_sign(score), VPSDE(), predicts="epsilon")
    assert torch.equal(wrong(x, t.expand(8)), -exam.as_model(exam.mixture_2d(), VPSDE(), predicts="epsilon")(x, t.expand(8)))


@pytest.mark.parametrize("event", [(1,), (2, 3)])
def test_noisy_is_a_smooth_function_of_known_size(event):
    score = exam.Gaussian(torch.zeros(event), std=0.5).score(VPSDE())
    x, t = normal(200, *event), torch.tensor(0.3)
    error = torch.stack([exam.noisy(score, 0.1, seed)(x, t) - score(x, t) for seed in range(100)])
    ratio = error.flatten(2).square().sum(2).mean() / (score(x, t).flatten(1).square().sum(1) * torch.ones(100, 1)).mean()
    assert ratio.sqrt().item() == pytest.approx(0.1, rel=0.15)
    model = exam.noisy(score, 0.1, seed=7)
    assert torch.equal(model(x, t), model(x, t)) and not torch.equal(model(x, t), exam.noisy(score, 0.1, seed=8)(x, t))
    torch.testing.assert_close(model(x[:3], t), model(x, t)[:3])
    torch.testing.assert_close(model(x, t.expand(200)), model(x, t))
    assert (model(x + 1e-4, t) - model(x, t)).abs().max() < 2e-3 * (1 + score(x, t).abs().max())
    assert model(x.float(), t).dtype == torch.float32


# -- measures --------------------------------------------------------------------------------------------------------

MEASURES = [exam.ks, exam.energy_distance, exam.mmd, exam.sliced_wasserstein2]
measures = pytest.mark.parametrize("measure", MEASURES, ids=lambda m: m.__name__)


def uniformity(p: list[float]) -> float:
    return stats.kstest(p, "uniform").pvalue


def test_kolmogorov_series_agrees_with_scipy():
    for n in (100, 10_000):
        for scaled in (0.3, 0.6, 0.99, 1.01, 1.5, 2.5):
            d = scaled / math.sqrt(n)
            assert kolmogorov_p(d, n) == pytest.approx(stats.kstwo.sf(d, n), rel=0.04, abs=2e-3)
    assert kolmogorov_p(0.0, 10) == 1.0 and kolmogorov_p(1.0, 1e6) == 0.0


def test_ks_statistic_agrees_with_scipy():
    x, y = normal(300, 1), normal(211, 1, seed=1)
    assert exam.ks(x, y).value == pytest.approx(stats.ks_2samp(x[:, 0], y[:, 0]).statistic, abs=1e-12)
    one = exam.ks(x, exam.gaussian_1d(1.1, 0.1))
    exact = stats.kstest(x[:, 0].numpy(), stats.norm(0.1, 1.1).cdf)
    assert one.value == pytest.approx(exact.statistic, abs=1e-12) and one.p_value == pytest.approx(exact.pvalue, rel=0.1)
    tied = torch.cat([torch.zeros(50, 1), torch.ones(50, 1)])
    assert exam.ks(tied, tied).value == 0.0


@measures
@pytest.mark.parametrize("name", ["mixture_1d", "mixture_2d"])
def test_measures_are_calibrated_under_equality(measure, name):
    """p-values of 200 right samples, against the target or a sample of another size, are uniform; z is a standard normal."""
    law = TARGETS[name]
    samples, references = law.sample(200 * 400, seed=1).split(400), law.sample(100 * 301, seed=2).split(301)
    settings = {"frequencies": 16} if measure is exam.mmd else {"projections": 1 if measure is exam.ks else 4}
    found = [measure(x, references[i // 2] if i % 2 else law, seed=i, **settings) for i, x in enumerate(samples)]
    for part in (found[::2], found[1::2]):
        assert uniformity([m.p_value for m in part]) > 1e-4  # some thirty such tests: 1e-3 for all of them together
        if measure is not exam.ks:
            z = torch.tensor([m.z for m in part])
            least = 0.6 if measure is exam.sliced_wasserstein2 else 0.75  # its standard error is generous where the law has gaps
            assert abs(z.mean()) < 4 / math.sqrt(100) and least < z.std() < 1.25


def test_moments_are_calibrated_under_equality():
    law = exam.mixture_2d()
    samples, references = law.sample(200 * 1000, seed=1).split(1000), law.sample(100 * 500, seed=2).split(500)
    found = [exam.moments(x, law) for x in samples]
    for z in (torch.stack([m.mean_z for m in found]), torch.stack([m.covariance_z for m in found])):
        assert z.mean(0).abs().max() < 4 / math.sqrt(200) and (z.std(0) - 1).abs().max() < 0.2
    two = torch.stack([exam.moments(x, y).mean_z for x, y in zip(samples, references, strict=False)])
    assert (two.std(0) - 1).abs().max() < 0.25
    assert sum(exam.moments(x, law).mean.p_value < 0.05 for x in samples) < 22


@measures
@pytest.mark.parametrize("case", ["std", "shift"])
def test_measures_see_a_small_error(measure, case):
    law, n = exam.gaussian_1d(), 100_000
    x = law.sample(n, seed=1)
    wrong = 0.5 + 1.04 * (x - 0.5) if case == "std" else x + 0.05 * 0.3
    assert measure(x, law).p_value > 1e-3
    assert measure(wrong, law).p_value < 1e-4
    m = exam.moments(wrong, law)
    assert (m.covariance if case == "std" else m.mean).p_value < 1e-20


@measures
def test_measures_see_a_missing_mode_and_a_lost_correlation(measure):
    ring = exam.ring_2d()
    seven = exam.Mixture([1, 1, 1, 1, 1, 1, 1, 0], ring.components)
    assert measure(seven.sample(4000, seed=1), ring).p_value < 1e-6
    law = exam.Gaussian([0.0, 0.0], cov=[[1.0, 0.8], [0.8, 1.0]])
    x = law.sample(4000, seed=1)
    assert measure(torch.stack([x[:, 0], x[:, 1].roll(1)], 1), law).p_value < 1e-6


def test_distances_have_their_known_values():
    """Of N(0,1) and N(1,1): energy distance 2 E|N(1,2)| - 2 E|N(0,2)|, W2^2 = 1, MMD^2 by the Gaussian integral."""
    x, y = exam.gaussian_1d(1.0, 0.0).sample(20_000, seed=1), exam.gaussian_1d(1.0, 1.0).sample(15_001, seed=2)
    folded = 2 * stats.foldnorm(1 / math.sqrt(2), scale=math.sqrt(2)).mean() - 4 / math.sqrt(math.pi)
    assert exam.energy_distance(x, y).value == pytest.approx(folded, rel=0.05)
    assert exam.sliced_wasserstein2(x, y).value == pytest.approx(1.0, rel=0.03)
    pooled = torch.cat([x[:1000], y[:1000]])
    h2 = torch.nn.functional.pdist(pooled.double()).median().item() ** 2
    expected = 2 * math.sqrt(h2 / (h2 + 2)) * (1 - math.exp(-0.5 / (h2 + 2)))
    assert exam.mmd(x, y, widths=(1.0,), frequencies=500).value == pytest.approx(expected, rel=0.1)
    wide = exam.Gaussian(torch.zeros(5), std=1.0).sample(2000, seed=1, dtype=torch.float64)
    away = exam.Gaussian(torch.full((5,), 0.5), std=1.2).sample(2000, seed=2, dtype=torch.float64)
    exact = 2 * torch.cdist(wide, away).mean() - (torch.cdist(wide, wide).sum() + torch.cdist(away, away).sum()) / (2000 * 1999)
    assert exam.energy_distance(wide, away, projections=2000).value == pytest.approx(float(exact), rel=0.1)


def test_standard_error_is_the_spread_of_repeats():
    law, other = exam.gaussian_1d(1.0, 0.0), exam.gaussian_1d(1.0, 0.3)
    for measure in (exam.energy_distance, exam.mmd, exam.sliced_wasserstein2):
        pairs = zip(law.sample(60_000, seed=1).split(1000), other.sample(60_000, seed=2).split(1000), strict=True)
        found = [measure(x, y) for x, y in pairs]
        spread, claimed = torch.tensor([m.value for m in found]).std().item(), sum(m.standard_error for m in found) / 60
        assert 0.75 < spread / claimed < 1.9, measure.__name__  # up to sqrt(2), as documented


def test_comparison_reads_well():
    law = exam.mixture_2d()
    good, bad = exam.compare(law.sample(3000, seed=1), law), exam.compare(1.2 * law.sample(3000, seed=1), law)
    assert good.passed() and not bad.passed() and bad.p_value < 1e-6
    assert all(name in str(good) for name in ("3000 rows", "s.e.", "mean (worst)", "ks", "mmd", "energy_distance", "sliced_wasserstein2"))
    assert bad.worst[1].p_value == min(m.p_value for m in bad.measured.values())
    assert exam.compare(law.sample(3000, seed=0), law, seed=0).passed()  # the draws compared with are not the sample itself
    assert exam.compare(law.sample(3000, seed=0), law, seed=0).measured["energy_distance"].value != 0


@pytest.mark.parametrize("measure", [exam.moments, *MEASURES, exam.compare], ids=lambda m: m.__name__)
def test_measures_refuse_what_they_cannot_judge(measure):
    x = torch.zeros(10, 2)
    x[[3, 7]] = torch.tensor([math.nan, math.inf])
    with pytest.raises(ValueError, match="2 of 10 rows that are not finite, the first at index 3"):
        measure(x, exam.mixture_2d())
    with pytest.raises(ValueError, match="reference has 2 of 10"):
        measure(torch.randn(10, 2), x)
    with pytest.raises(ValueError, match=r"\(2,\), the reference of \(1,\)"):
        measure(torch.randn(10, 2), exam.gaussian_1d())
    with pytest.raises(ValueError, match=r"\(2,\), the reference of \(3,\)"):
        measure(torch.randn(10, 2), torch.randn(10, 3))
    with pytest.raises(ValueError, match=r"at least [24] rows"):
        measure(torch.randn(1, 2), exam.mixture_2d())


def test_targets_refuse_nonsense():
    cases = {
        "exactly one": lambda: exam.Gaussian([0.0, 1.0]),
        "std has": lambda: exam.Gaussian([0.0, 1.0], std=-1.0),
        "symmetric": lambda: exam.Gaussian([0.0, 1.0], cov=[[1.0, 0.5], [0.0, 1.0]]),
        "eigenvalue": lambda: exam.Gaussian([0.0, 1.0], cov=[[1.0, 2.0], [2.0, 1.0]]),
        "factor has": lambda: exam.Gaussian([0.0, 1.0], factor=[[1.0], [2.0], [3.0]]),
        "weights=": lambda: exam.gaussian_mixture([0.5, -0.5], [0.0, 1.0], [1.0, 1.0]),
        "components have": lambda: exam.Mixture([1, 1], [exam.gaussian_1d(), exam.Gaussian([0.0, 1.0], std=1.0)]),
        "1-d target": lambda: exam.Product([exam.mixture_2d()]),
        "expected finite": lambda: exam.Empirical(torch.full((3, 2), math.nan)),
        "x has shape": lambda: exam.mixture_2d().score(VPSDE())(torch.zeros(4, 3), 0.5),
        "one of process": lambda: exam.mixture_2d().log_prob(torch.zeros(4, 2), VPSDE()),
        "no density": lambda: exam.Empirical(normal(4, 2)).log_prob(torch.zeros(4, 2)),
        "std=-1": lambda: exam.noisy(lambda x, t: x, -1),
        "as predicts": lambda: exam.as_model(exam.mixture_2d(), VPSDE(), predicts="noise"),
        "as time": lambda: exam.as_model(exam.mixture_2d(), VPSDE(), predicts="score", time="seconds"),
    }
    for message, call in cases.items():
        with pytest.raises(ValueError, match=message):
            call()


def test_one_bad_row_stays_alone():
    score, x = exam.mixture_2d().score(VPSDE()), normal(5, 2)
    clean = score(x, 0.3)
    x[2] = math.nan
    dirty = score(x, 0.3)
    others = [0, 1, 3, 4]
    assert torch.equal(dirty[others], clean[others]) and dirty[2].isnan().all()
