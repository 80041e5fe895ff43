"""Reverse diffusion and ancestral sampling against their published formulas, one step at a time."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from problems import PROCESSES
from torch import Tensor

import sdesolve as sd
from sdesolve.methods import make_method

T0, T1 = 0.6, 0.35
X, Z = torch.randn(2, 5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def stepped(method: str, process: sd.Process, score: Callable[[Tensor, Tensor], Tensor], x: Tensor, normal: Tensor) -> Tensor:
    """One step from T0 to T1 with this normal."""
    return make_method(method).step(process.reverse(score), x, T0, T1, SimpleNamespace(normal=lambda: normal), None).x


@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES.keys())
def test_an_ancestral_step_is_exact_for_a_single_data_point(process: sd.Process) -> None:
    """From the law at T0, N(alpha_0 m, sigma_0^2), to the law at T1, N(alpha_1 m, sigma_1^2), whatever the step."""
    m = torch.tensor([0.3, -1.0, 2.0], dtype=torch.float64)
    alpha, sigma = ([float(f(torch.tensor(t, dtype=torch.float64))) for t in (T0, T1)] for f in (process.alpha, process.sigma))

    def score(x: Tensor, t: Tensor) -> Tensor:
        return -(x - alpha[0] * m) / sigma[0] ** 2

    zero = torch.zeros_like(X)
    mean = stepped("ancestral", process, score, (alpha[0] * m).expand_as(X), zero)
    of_x = stepped("ancestral", process, score, alpha[0] * m + sigma[0] * X, zero) - mean
    of_z = stepped("ancestral", process, score, (alpha[0] * m).expand_as(X), Z) - mean
    torch.testing.assert_close(mean, (alpha[1] * m).expand_as(X), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close((of_x / X).square() + (of_z / Z).square(), torch.full_like(X, sigma[1] ** 2), rtol=1e-9, atol=1e-12)
    assert float((of_z / Z).min()) > 0


@pytest.mark.parametrize("name", ["VP", "VE"])
def test_a_step_of_reverse_diffusion_is_the_published_one(name: str) -> None:
    """Song et al. 2021, algorithms 2 and 3, with the beta_i and sigma_i that lead from T1 to T0."""
    process = PROCESSES[name]

    def score(x: Tensor, t: Tensor) -> Tensor:
        return torch.sin(3 * x)

    got, s = stepped("reverse_diffusion", process, score, X, Z), torch.sin(3 * X)
    alpha, sigma = (f(torch.tensor([T0, T1], dtype=torch.float64)) for f in (process.alpha, process.sigma))
    if name == "VP":
        beta = 1 - (alpha[0] / alpha[1]) ** 2
        expected = (2 - (1 - beta).sqrt()) * X + beta * s + beta.sqrt() * Z
    else:
        between = sigma[0] ** 2 - sigma[1] ** 2
        expected = X + between * s + between.sqrt() * Z
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)
