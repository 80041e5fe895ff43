"""What training minimises: the true score is its minimum, whatever the weight, and the weights are what their names say."""

from types import SimpleNamespace

import pytest
import torch

import sdesolve as sd
from sdesolve_gen.processes import make_process
from sdesolve_gen.training.levels import SMALLEST
from sdesolve_gen.training.losses import TIMES, WEIGHTS, Times, denoising_loss, sliced_loss
from sdesolve_gen.training.recipes import configured

B, D, VARIANCE = 64, 4, 0.36
PROCESSES = {"vp": sd.VPSDE(), "subvp": sd.SubVPSDE(), "ve": sd.VESDE(0.02, 20.0), "edm": sd.EDM(), "flow": sd.RectifiedFlow()}
CONFIG = SimpleNamespace(log_sigma_mean=-0.8, log_sigma_std=1.2, time=1000)


def quantiles(rounds, seed=0):
    """(rounds, B) stratified, as the loop draws them."""
    draws = torch.Generator().manual_seed(seed)
    return (torch.arange(B) + torch.rand(rounds, B, generator=draws, dtype=torch.float64)) / B


def batches(process, times, rounds=200, seed=0):
    """(x0, times, eps, probe) of data N(0, VARIANCE), float64."""
    draws = torch.Generator().manual_seed(seed + 1)
    for quantile in quantiles(rounds, seed):
        x0, eps = torch.randn(2, B, D, generator=draws, dtype=torch.float64)
        probe = torch.randint(2, (B, D), generator=draws).double() * 2 - 1
        yield VARIANCE**0.5 * x0, TIMES[times](CONFIG, process, quantile), eps, probe


def off_by(process, predicts, theta):
    """A network whose score is theta times the true one, -x/(alpha^2 VARIANCE + sigma^2)."""
    holder = sd.as_score(lambda x, t: x, process, predicts=predicts)

    def network(x, t):
        t = t.double()
        on_x, on_output, scale = holder.linear(t)
        rows = [None if c is None else torch.as_tensor(c)[:, None].double() for c in (on_x, on_output, scale)]
        state = x if rows[2] is None else x / rows[2]
        score = -theta * state / (process.alpha(t) ** 2 * VARIANCE + process.sigma(t) ** 2)[:, None]
        rest = score if rows[0] is None else score - rows[0] * state
        return rest if rows[1] is None else rest / rows[1]

    return sd.as_score(network, process, predicts=predicts)


def gradient(process, predicts, at, loss, times, weight):
    """d loss / d theta and its standard error over rounds."""
    found = []
    for x0, drawn, eps, probe in batches(process, times):
        theta = torch.tensor(at, dtype=torch.float64, requires_grad=True)
        score = off_by(process, predicts, theta)
        value = denoising_loss(score, x0, drawn, eps, weight) if loss == "denoising" else sliced_loss(score, x0, drawn, eps, probe, weight)
        found.append(torch.autograd.grad(value, theta)[0])
    each = torch.stack(found)
    return float(each.mean()), float(each.std() / len(each) ** 0.5)


PAIRS = [  # (process, predicts, loss, times, weight)
    ("vp", "v", "denoising", "log_normal", "output"),
    ("vp", "epsilon", "denoising", "uniform", "sigma2"),
    ("subvp", "score", "denoising", "importance", "g2"),
    ("ve", "epsilon", "denoising", "levels", "sigma2"),
    ("vp", "x0", "denoising", "levels", "sigma2"),
    ("edm", "edm", "denoising", "log_normal", "edm"),
    ("flow", "flow", "denoising", "uniform", "flow"),
    ("vp", "epsilon", "sliced", "uniform", "sigma2"),
    ("ve", "score", "sliced", "log_normal", "sigma2"),
    ("vp", "v", "sliced", "log_normal", "sigma2"),
]


@pytest.mark.parametrize(("process", "predicts", "loss", "times", "weight"), PAIRS)
def test_the_true_score_is_the_minimum(process, predicts, loss, times, weight):
    """The slope by theta vanishes at theta = 1, within four standard errors, and points back to it from 0.8 and 1.2."""
    slope, error = gradient(PROCESSES[process], predicts, 1.0, loss, times, weight)
    assert abs(slope) < 4 * error
    below, above = (gradient(PROCESSES[process], predicts, at, loss, times, weight) for at in (0.8, 1.2))
    assert below[0] < -4 * below[1]
    assert above[0] > 4 * above[1]


@pytest.mark.parametrize("process", ["vp", "subvp", "flow"])
def test_importance_sampling_has_the_gradient_of_uniform_times(process):
    (a, error_a), (b, error_b) = (gradient(PROCESSES[process], "epsilon", 0.8, "denoising", times, "g2") for times in ("uniform", "importance"))
    assert a < -4 * error_a  # there is something to agree on
    assert abs(a - b) < 4 * (error_a**2 + error_b**2) ** 0.5


@pytest.mark.parametrize("process", ["vp", "subvp", "flow"])
def test_importance_sampling_takes_the_noise_out_of_the_likelihood_weighted_loss(process):
    p = PROCESSES[process]
    loss = {
        times: torch.stack([denoising_loss(off_by(p, "epsilon", 0.8), x0, t, eps, "g2") for x0, t, eps, _ in batches(p, times)])
        for times in ("uniform", "importance")
    }
    assert loss["importance"].std() < loss["uniform"].std() / 5


def test_for_ve_importance_sampling_is_uniform():
    quantile = quantiles(1)[0]
    a, b = (TIMES[times](CONFIG, PROCESSES["ve"], quantile) for times in ("uniform", "importance"))
    assert torch.allclose(a.t, b.t)
    assert torch.allclose(a.ratio, b.ratio)


@pytest.mark.parametrize("process", PROCESSES)
def test_importance_sampled_times_have_the_density_they_claim(process):
    """The ratio is uniform density over density: its mean is 1, and E[ratio f] = E_uniform[f]."""
    p = PROCESSES[process]
    quantile = (torch.arange(400_000, dtype=torch.float64) + 0.5) / 400_000
    t, ratio = TIMES["importance"](CONFIG, p, quantile)
    uniform, ones = TIMES["uniform"](CONFIG, p, quantile)
    assert (ones == 1).all()
    for f in (lambda t: t * 0 + 1, lambda t: t / p.T, lambda t: (t / p.T).square()):
        assert torch.isclose((ratio * f(t)).mean(), f(uniform).mean(), rtol=2e-3)
    shape = ratio * (p.diffusion(t) / p.sigma(t)) ** 2
    assert torch.allclose(shape, shape[0].expand_as(shape), rtol=1e-6)


@pytest.mark.parametrize("predicts", ["score", "epsilon", "x0", "v", "flow", "edm"])
@pytest.mark.parametrize("process", ["vp", "ve"])
def test_weights_are_the_errors_of_what_they_are_named_after(process, predicts):
    """Of noise, denoised image and velocity, each computed from the score by its own formula; one wrong score, any parameterisation."""
    p = PROCESSES[process]
    score = off_by(p, predicts, 0.7)
    x0, times, eps, _ = next(batches(p, "log_normal"))
    t = times.t
    alpha, sigma, g = (c[:, None] for c in (p.alpha(t), p.sigma(t), p.diffusion(t)))
    x = alpha * x0 + sigma * eps
    s = score(x, t)
    loss = {weight: denoising_loss(score, x0, times, eps, weight) for weight in WEIGHTS}
    assert torch.isclose(loss["sigma2"], (-sigma * s - eps).square().mean())
    assert torch.isclose(loss["g2"], (g * (s + eps / sigma)).square().mean())
    denoised, ratio = (x + sigma**2 * s) / alpha, sigma / alpha
    assert torch.isclose(loss["edm"], ((ratio**2 + 0.25) / (0.5 * ratio) ** 2 * (denoised - x0).square()).mean())
    velocity = p.drift(x, t) - g**2 * s / 2
    path = p.drift(x, t) - g**2 * (-eps / sigma) / 2
    assert torch.isclose(loss["flow"], (velocity - path).square().mean())
    assert torch.isclose(loss["output"], (score.model_output(x, t) - score.target(x, eps, t)).square().mean())


def test_edm_s_weight_is_one_for_what_its_network_predicts():
    p = PROCESSES["edm"]
    score = off_by(p, "edm", 0.7)
    x0, times, eps, _ = next(batches(p, "log_normal"))
    assert torch.isclose(denoising_loss(score, x0, times, eps, "edm"), denoising_loss(score, x0, times, eps, "output"))


def test_a_straight_path_s_velocity_is_noise_minus_data():
    p = PROCESSES["flow"]
    x0, times, eps, _ = next(batches(p, "uniform"))
    zero = sd.as_score(lambda x, t: 0 * x, p, predicts="flow")
    assert torch.isclose(denoising_loss(zero, x0, times, eps, "flow"), (eps - x0).square().mean())


def test_a_network_that_knows_the_target_has_no_loss():
    p = sd.VPSDE()
    x0, eps, t = torch.rand(5, 1, 4, 4), torch.randn(5, 1, 4, 4), torch.linspace(0.1, 0.9, 5, dtype=torch.float64)
    alpha, sigma = (c.float().reshape(-1, 1, 1, 1) for c in (p.alpha(t), p.sigma(t)))
    v = alpha * eps - sigma * x0
    times = Times(t, torch.ones_like(t))
    assert denoising_loss(sd.as_score(lambda x, t: v, p, predicts="v"), x0, times, eps) < 1e-10
    assert torch.isclose(denoising_loss(sd.as_score(lambda x, t: 0 * x, p, predicts="v"), x0, times, eps), v.square().mean())


def test_sliced_is_denoising_minus_a_constant():
    """The difference of the two losses does not depend on the network, in expectation."""
    differences = []
    for theta in (0.5, 1.0, 1.5):
        score = off_by(PROCESSES["vp"], "epsilon", theta)
        each = torch.stack([
            denoising_loss(score, x0, times, eps, "sigma2") - sliced_loss(score, x0, times, eps, probe, "sigma2").detach()
            for x0, times, eps, probe in batches(PROCESSES["vp"], "log_normal", 400)
        ])  # fmt: skip
        differences.append((float(each.mean()), float(each.std() / len(each) ** 0.5)))
    for mean, error in differences:
        assert abs(mean - 1) < 4 * error  # E |eps|^2 / d
        assert error < 0.02


def published_ddpm():
    """Ho et al. 2020, section 4: betas from 1e-4 to 0.02 in equal steps; sigma_i^2 = 1 - prod(1 - beta_j)."""
    return (1 - torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)).sqrt()


def published_smld():
    """Song & Ermon 2019, section 4.1, in units of [-1, 1]: a geometric sequence."""
    return 0.02 * (100 / 0.02) ** (torch.arange(1000, dtype=torch.float64) / 999)


@pytest.mark.parametrize(("preset", "published"), [("ddpm", published_ddpm()), ("smld", published_smld())], ids=["ddpm", "smld"])
def test_levels_are_the_published_ones(preset, published):
    """The noise of every level, and its number as the network is told it; each as often as any other."""
    config = configured(preset, None, {"data": "x", "out": "x", "name": "x"}, {})
    process = make_process(config.process, config.process_options)
    t = TIMES["levels"](config, process, (torch.arange(5000, dtype=torch.float64) + 0.5) / 5000).t
    assert torch.allclose(process.sigma(t), published.repeat_interleave(5), rtol=1e-11, atol=0)
    index = []
    sd.as_score(lambda x, t: index.append(t) or x, process, predicts="epsilon", time=1000).model_output(torch.zeros(5000, 1), t)
    assert torch.equal(index[0], torch.arange(1000).repeat_interleave(5))


@pytest.mark.parametrize("times", TIMES)
@pytest.mark.parametrize("process", PROCESSES)
def test_times_stay_within_the_process_at_both_ends(process, times):
    p = PROCESSES[process]
    t, ratio = TIMES[times](CONFIG, p, torch.tensor([0.0, 1e-12, 0.5, 1 - 1e-12], dtype=torch.float64))
    assert t.dtype == torch.float64
    assert (t >= (0 if times == "levels" and p.sigma(0.0) > 0 else SMALLEST * p.T * (1 - 1e-9))).all()
    assert (t <= p.T * (1 + 1e-12)).all()
    assert torch.isfinite(ratio).all()


def test_the_sliced_loss_differentiates_a_network_with_attention():
    from gen_fixtures import tiny_network

    network = tiny_network()
    score = sd.as_score(network, sd.VPSDE(), predicts="v", time="log_sigma/4")
    x0, eps, t = torch.randn(2, 1, 8, 8), torch.randn(2, 1, 8, 8), torch.tensor([0.2, 0.7], dtype=torch.float64)
    sliced_loss(score, x0, Times(t, torch.ones_like(t)), eps, torch.ones_like(eps), "sigma2").backward()
    assert all(torch.isfinite(p.grad).all() for p in network.parameters())
