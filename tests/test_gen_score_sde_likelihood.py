"""Likelihoods of the reference checkpoints: by the published route, and what the equation itself says.

Their networks have random weights, and the flow multiplies what is rounded: two float32 evaluations of the published route with the same 992
network calls end 1 % apart in the latents of the VE network.  So the route is held against ``expected.pt`` as far as that determines anything, and
``log_likelihood`` against the solution in float64 at a tolerance of 1e-7, from which ``expected.pt`` is up to 0.025 bits/dim away.
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
    """The drift of the probability flow by the published formulas, in float32.  [Song et al. 2021, appendix C]"""
    p, network = m.process, m.network
    if isinstance(p, sd.VESDE):
        sigma = p.sigma_min * (p.sigma_max / p.sigma_min) ** t
        g = sigma * math.sqrt(2 * math.log(p.sigma_max / p.sigma_min))
        return -0.5 * g[:, None, None, None] ** 2 * network(x, sigma)
    slope = p.beta_max - p.beta_min
    beta, log_alpha = p.beta_min + t * slope, -0.25 * t**2 * slope - 0.5 * t * p.beta_min
    variance = 1 - torch.exp(2 * log_alpha)
    sub = isinstance(p, sd.SubVPSDE)
    g2, std = (beta * (1 - torch.exp(4 * log_alpha)), variance) if sub else (beta, variance.sqrt())
    score = -network(x, t * 999) / std[:, None, None, None]
    return -0.5 * beta[:, None, None, None] * x - 0.5 * g2[:, None, None, None] * score


@pytest.mark.slow
@pytest.mark.parametrize(
    ("reference", "bits", "latents"),
    [("subvp_ncsnpp_continuous", 2e-4, 1e-3), ("ve_ncsnpp_continuous", 2e-3, 3e-2)],
    indirect=["reference"],
)
def test_the_published_route(reference, bits, latents):
    """scipy's RK45 over the whole batch and its log-densities, through numpy, in t."""
    m, expected, _ = reference
    data, noise = expected["x"], expected["hutchinson_noise"]

    def slope(t, y):
        x = torch.from_numpy(y[: data.numel()].reshape(data.shape)).float().requires_grad_()
        drift = published_drift(m, x, torch.full((len(x),), t, dtype=torch.float32))
        pulled = torch.autograd.grad((drift * noise).sum(), x)[0]
        return np.concatenate([drift.detach().numpy().ravel(), (pulled * noise).flatten(1).sum(1).numpy()])

    start = np.concatenate([data.numpy().ravel(), np.zeros(len(data))])
    solved = integrate.solve_ivp(slope, (1e-5, 1.0), start, rtol=1e-5, atol=1e-5, method="RK45")
    latent = torch.from_numpy(solved.y[: data.numel(), -1].reshape(data.shape))
    log_prob = m.process.prior_log_prob(latent) + torch.from_numpy(solved.y[data.numel() :, -1])
    offset = math.log2(256 / (m.data_range[1] - m.data_range[0]))
    got = -log_prob / (math.log(2) * data[0].numel()) + offset
    assert float((got - expected["bpd"]).abs().max()) < bits
    assert float((latent - expected["latent"]).norm() / expected["latent"].norm()) < latents
    assert solved.nfev == pytest.approx(int(expected["likelihood_nfe"]), rel=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("reference", EXACT, indirect=True)
def test_likelihoods_converge_to_what_the_equation_says(reference):
    m, expected, name = reference
    r = sd.log_likelihood(m.process, m.score, expected["x"], noise=expected["hutchinson_noise"], rtol=1e-6, atol=1e-6)
    got = r.bits_per_dim(m.data_range, m.levels)
    assert got.tolist() == pytest.approx(EXACT[name], abs=1e-3)
