"""Likelihoods of the reference checkpoints: by the published route, and what the equation itself says.

Their networks have random weights, and the flow multiplies what is rounded.  So the route is held against ``expected.pt``, which it meets in every digit
where that determines them (subVP) and elsewhere to its own rounding; and ``log_likelihood`` against the solution in float64 at a tolerance of 1e-7, from
which ``expected.pt`` is up to 0.025 bits/dim away.
"""

import math

import numpy as np
import pytest
import torch
from scipy import integrate

import sdesolve as sd
import sdesolve_gen as gen

EXACT = {  # bits/dim by RK45 in t, in float64 throughout, rtol = atol = 1e-7, with the hutchinson_noise of expected.pt
    "ve_ncsnpp_continuous": (15.461734, 15.317521),
    "vp_ddpmpp_continuous": (15.566728, 15.461035),
    "subvp_ncsnpp_continuous": (15.396379, 15.470991),
}


@pytest.fixture
def reference(request, shared_data):
    folder = shared_data / "score_sde_reference" / request.param
    if not folder.is_dir():
        pytest.skip(f"needs {request.param} of the reference checkpoints, which are not part of the project")
    return gen.load(folder / "checkpoint.pth", config=folder / "config.json"), torch.load(folder / "expected.pt", weights_only=True), request.param


def published_drift(m, x, t):
    """The drift of the probability flow by the published formulas, in float32 and in their order.  [Song et al. 2021, appendix C]"""
    p, network = m.process, m.network
    if isinstance(p, sd.VESDE):
        sigma = p.sigma_min * (p.sigma_max / p.sigma_min) ** t
        g = sigma * torch.sqrt(torch.tensor(2 * (math.log(p.sigma_max) - math.log(p.sigma_min))))
        return -(g[:, None, None, None] ** 2) * network(x, sigma) * 0.5
    slope = p.beta_max - p.beta_min
    beta, log_alpha = p.beta_min + t * slope, -0.25 * t**2 * slope - 0.5 * t * p.beta_min
    variance = 1 - torch.exp(2 * log_alpha)
    if isinstance(p, sd.SubVPSDE):
        g, std = torch.sqrt(beta * (1 - torch.exp(-2 * p.beta_min * t - slope * t**2))), variance
    else:
        g, std = torch.sqrt(beta), torch.sqrt(variance)
    score = -network(x, t * 999) / std[:, None, None, None]
    return -0.5 * beta[:, None, None, None] * x - g[:, None, None, None] ** 2 * score * 0.5


def published_route(m, expected, rows):
    """bits/dim, latents and calls by scipy's RK45 over the whole batch as one system, in t, float64 outside and float32 inside; the network
    sees so many ``rows`` at once, which changes nothing but the last digits."""
    data, noise = expected["x"], expected["hutchinson_noise"]

    def slope(t, y):
        pairs = []
        for x, v in zip(torch.from_numpy(y[: data.numel()].reshape(data.shape)).float().split(rows), noise.split(rows), strict=True):
            x.requires_grad_()
            drift = published_drift(m, x, torch.full((len(x),), t, dtype=torch.float32))
            pairs.append((drift.detach(), torch.autograd.grad((drift * v).sum(), x)[0] * v))
        drift, weighted = map(torch.cat, zip(*pairs, strict=True))
        return np.concatenate([drift.numpy().ravel(), weighted.flatten(1).sum(1).numpy()])

    start = np.concatenate([data.numpy().ravel(), np.zeros(len(data))])
    solved = integrate.solve_ivp(slope, (1e-5, 1.0), start, rtol=1e-5, atol=1e-5, method="RK45")
    latent = torch.from_numpy(solved.y[: data.numel(), -1].reshape(data.shape))
    log_prob = m.process.prior_log_prob(latent) + torch.from_numpy(solved.y[data.numel() :, -1])
    return -log_prob / (math.log(2) * data[0].numel()) + math.log2(256 / (m.data_range[1] - m.data_range[0])), latent, solved.nfev


def distance(one, other):
    """Of two outcomes: bits/dim at most, and latents, relative."""
    return float((one[0] - other[0]).abs().max()), float((one[1] - other[1]).norm() / other[1].norm())


@pytest.mark.slow
@pytest.mark.parametrize("reference", ["subvp_ncsnpp_continuous"], indirect=True)
def test_the_published_route_gives_the_published_numbers(reference):
    m, expected, _ = reference
    got = published_route(m, expected, rows=2)
    bits, latents = distance(got, (expected["bpd"], expected["latent"]))
    assert bits < 1e-4 and latents < 1e-3
    assert got[2] == int(expected["likelihood_nfe"])


@pytest.mark.slow
@pytest.mark.parametrize("reference", ["ve_ncsnpp_continuous", "vp_ddpmpp_continuous"], indirect=True)
def test_or_as_near_as_it_is_to_itself(reference):
    """Where the flow amplifies what float32 rounds, the route with the rows of the network one by one lies as far away as the published numbers."""
    m, expected, _ = reference
    both, each = published_route(m, expected, rows=2), published_route(m, expected, rows=1)
    (bits, latents), (own_bits, own_latents) = distance(both, (expected["bpd"], expected["latent"])), distance(each, both)
    assert bits < max(2e-3, 3 * own_bits) and latents < max(1e-3, 3 * own_latents)
    assert both[2] == pytest.approx(int(expected["likelihood_nfe"]), rel=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("reference", EXACT, indirect=True)
def test_likelihoods_converge_to_what_the_equation_says(reference):
    m, expected, name = reference
    r = sd.log_likelihood(m.process, m.score, expected["x"], noise=expected["hutchinson_noise"], rtol=1e-6, atol=1e-6)
    got = r.bits_per_dim(m.data_range, m.levels)
    assert got.tolist() == pytest.approx(EXACT[name], abs=1e-3)
