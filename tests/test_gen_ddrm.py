"""DDRM: its step against the published equation, coordinate by coordinate, and its bias."""

from __future__ import annotations

import math

import pytest
import torch
from inverse_problems import EVERY_OTHER, NOISY_PAIR, PAIR, Dense, LinearGaussian, ZeroOne
from problems import PROCESSES, GaussianTarget
from torch import Tensor

import sdesolve as sd
from sdesolve.methods.base import StepNoise
from sdesolve_gen.conditioning import Measurement, ddrm

VE, VP = sd.VESDE(0.01, 20.0), sd.VPSDE()
MATRIX = torch.tensor([[1.0, 0.5, 0.0, 0.2], [0.0, 0.1, -0.1, 0.05]])


class Given(StepNoise):
    """The same normals for every slot."""

    def __init__(self, normals: Tensor) -> None:
        self._normals = normals

    def normal(self, slot: int = 0) -> Tensor:
        return self._normals


def published(d: Tensor, u0: Tensor, z: Tensor, y: Tensor, s0: float, s1: float, noise_std: float, eta: float, eta_b: float) -> Tensor:
    """Eq. 8, in the variance-exploding form of the paper: u = x/alpha, s = sigma/alpha, all in the basis of V."""
    u, values, vt = torch.linalg.svd(MATRIX.double(), full_matrices=True)
    d, u0, z, ybar = d @ vt.T, u0 @ vt.T, z @ vt.T, y @ u / values
    after = torch.zeros_like(d)
    for row in range(len(d)):
        for i in range(4):
            tau = noise_std / float(values[i]) if i < 2 else math.inf
            if i >= 2:
                mean, spread = d[row, i] + math.sqrt(1 - eta**2) * s1 * (u0[row, i] - d[row, i]) / s0, eta * s1
            elif s1 < tau:
                mean, spread = d[row, i] + math.sqrt(1 - eta**2) * s1 * (ybar[row, i] - d[row, i]) / tau, eta * s1
            else:
                mean, spread = (1 - eta_b) * d[row, i] + eta_b * ybar[row, i], math.sqrt(s1**2 - eta_b**2 * tau**2)
            after[row, i] = mean + spread * z[row, i]
    return after @ vt


@pytest.mark.parametrize(("eta", "eta_b"), [(0.85, 1.0), (0.0, 0.6), (1.0, 0.0)])
@pytest.mark.parametrize("noise_std", [0.0, 0.03, 0.5])
def test_a_step_is_the_published_one(eta: float, eta_b: float, noise_std: float) -> None:
    """With all three kinds of coordinates among the cases, and a time for each row as well as one for all."""
    generator = torch.Generator().manual_seed(0)
    x, z, y = (torch.randn(3, k, dtype=torch.float64, generator=generator) for k in (4, 4, 2))
    score = sd.as_score(GaussianTarget(VP).score, VP, predicts="score")
    stepper = ddrm(score, Measurement(Dense(MATRIX), y, noise_std), eta, eta_b).method("ddim")  # type: ignore[misc]
    for t0, t1 in ((0.8, 0.6), (0.3, 0.2), (0.05, 0.02)):
        a0, a1 = (float(VP.alpha(t)) for t in (t0, t1))
        s0, s1 = (float(VP.sigma(t) / VP.alpha(t)) for t in (t0, t1))
        expected = a1 * published(score.denoise(x, t0), x / a0, z, y, s0, s1, noise_std, eta, eta_b)
        each = (torch.full((3,), t, dtype=torch.float64) for t in (t0, t1))
        for start, end in ((t0, t1), tuple(each)):
            assert torch.allclose(stepper.step(VP.reverse(score), x, start, end, Given(z), None).x, expected, atol=1e-9)


def test_numbers_of_which_y_says_nothing() -> None:
    """At eta = 0 they walk along the flow and come out right; at 0.85 with three quarters of their variance, in 100 steps as in 500."""
    apart = LinearGaussian(torch.diag(torch.tensor([1.0, 0.25, 2.0], dtype=torch.float64)), torch.eye(3)[:1], torch.tensor([[0.7]]))
    right = apart.sampled(VE, "ddrm", "ddim", 300, options={"eta": 0.0})
    assert right.cover == pytest.approx(0.9, abs=0.015) and right.mean < 0.05 and right.variance == pytest.approx(1, abs=0.05)
    assert right.residual < 0.011
    for steps in (100, 500):
        assert apart.sampled(VE, "ddrm", "ddim", steps, rows=2000).variance == pytest.approx(0.755, abs=0.06)


def test_the_bias() -> None:
    """Few steps draw y too late to be heard of; many make the draws too narrow.  With noise they are half as wide in variance as they should be."""
    few, many, noisy = PAIR.sampled(VE, "ddrm", "ddim", 20), PAIR.sampled(VE, "ddrm", "ddim", 100), NOISY_PAIR.sampled(VE, "ddrm", "ddim", 20)
    assert few.cover == pytest.approx(0.725, abs=0.03) and few.mean == pytest.approx(1.0, abs=0.06)
    assert many.cover == pytest.approx(0.923, abs=0.02) and many.variance == pytest.approx(0.83, abs=0.06)
    assert noisy.variance == pytest.approx(0.565, abs=0.05) and noisy.cover == pytest.approx(0.922, abs=0.02)
    assert EVERY_OTHER.sampled(VE, "ddrm", "ddim", 20).cover == pytest.approx(0.853, abs=0.03)


@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES.keys())
def test_what_is_known_is_kept(process: sd.Process) -> None:
    y = torch.tensor([[0.7, -0.2]])
    c = ddrm(sd.as_score(GaussianTarget(process).score, process, predicts="score"), Measurement(Dense(MATRIX), y))
    x = process.prior((5, 4), seed=0)
    end = sd.solve(process.reverse(c.score), x, c.method("ddim"), steps=10, seed=0, constraint=c.constraint, denoise=True)  # type: ignore[misc]
    assert torch.allclose(end.x @ MATRIX.T, y.expand(5, 2), atol=1e-5) and end.nfe == 11


def test_what_cannot_be_is_refused() -> None:
    score = sd.as_score(GaussianTarget(VP).score, VP, predicts="score")
    seen = Measurement(Dense(MATRIX), torch.zeros(1, 2))
    with pytest.raises(ValueError, match="no singular value decomposition"):
        ddrm(score, Measurement(ZeroOne(torch.ones(4)), torch.zeros(1, 4)))
    with pytest.raises(ValueError, match="eta_b=2"):
        ddrm(score, seen, eta_b=2)
    with pytest.raises(ValueError, match="what is to solve here is 'pc'; expected 'ddim'"):
        ddrm(score, seen).method("pc")  # type: ignore[misc]
