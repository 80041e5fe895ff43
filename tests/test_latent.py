"""Codes: the flow's own map where it is known, there and back, and ways between."""

from __future__ import annotations

import math
import re

import pytest
import torch

import sdesolve as sd

PROCESSES = {"VP": sd.VPSDE(), "subVP": sd.SubVPSDE(), "VE": sd.VESDE(), "EDM": sd.EDM()}


@pytest.mark.parametrize("name", PROCESSES)
def test_a_gaussian_s_code_is_known(name: str) -> None:
    """The flow of N(m, v) keeps  (x - alpha m)/sqrt(alpha^2 v + sigma^2);  codes and samples are each other's images."""
    p, target = PROCESSES[name], sd.exam.Gaussian([0.5, -0.2], std=[0.3, 0.6])
    x = target.sample(5, seed=0).double()
    latent = sd.encode(p, target.score(p), x, rtol=1e-7, atol=1e-7)

    def whitened(y: torch.Tensor, t: float) -> torch.Tensor:
        alpha, sigma = float(p.alpha(t)), float(p.sigma(t))
        return (y - alpha * target.mean) / (alpha**2 * target.variance + sigma**2).sqrt()

    assert torch.allclose(whitened(latent.x, p.T), whitened(x, latent.eps), atol=2e-5)
    back = sd.decode(p, target.score(p), latent, rtol=1e-7, atol=1e-7)
    assert torch.allclose(back.x, x, atol=2e-5)
    assert latent.status.tolist() == ["ok"] * 5 and latent.ok().all() and back.ok().all()


def test_the_likelihood_s_latent_is_the_code() -> None:
    p, target = sd.VPSDE(), sd.exam.mixture_2d()
    x = target.sample(4, seed=0).double()
    r = sd.log_likelihood(p, target.score(p), x, rtol=1e-7, atol=1e-7, seed=0)
    assert torch.allclose(sd.encode(p, target.score(p), x, rtol=1e-7, atol=1e-7).x, r.latent, atol=1e-4)


@pytest.mark.parametrize(("dtype", "off"), [(torch.float64, 1e-11), (torch.float32, 1e-3)])
def test_a_reversible_walk_is_undone(dtype: torch.dtype, off: float) -> None:
    """To rounding, at any number of steps: what is off does not come from the method, whose own error is a hundred times larger."""
    p, target = sd.VPSDE(), sd.exam.mixture_2d()
    x = target.sample(16, seed=0).to(dtype)
    latent = sd.encode(p, target.score(p), x, "leapfrog", steps=60, round_trip=True)
    assert float(latent.round_trip.max()) < off
    assert latent.nfe == 61 + 60
    right = sd.encode(p, target.score(p), x.double()).x
    assert float((latent.x - right).abs().max()) > 100 * off if dtype == torch.float64 else True
    without = sd.decode(p, target.score(p), latent.x, "leapfrog", steps=60)
    assert float((without.x - x).abs().max()) > 20 * float(latent.round_trip.max())


def test_the_round_trip_of_a_tolerance_is_reported() -> None:
    p, target = sd.VPSDE(), sd.exam.mixture_2d()
    x = target.sample(8, seed=0)
    loose, tight = (sd.encode(p, target.score(p), x, rtol=tol, atol=tol, round_trip=True) for tol in (1e-3, 1e-5))
    back = sd.decode(p, target.score(p), loose, rtol=1e-3, atol=1e-3)
    assert torch.allclose(loose.round_trip, (back.x - x).double().square().mean(1).sqrt())
    assert float(tight.round_trip.max()) < 0.1 * float(loose.round_trip.max())


def test_temperature_scales_the_code() -> None:
    p, target = sd.VPSDE(), sd.exam.Gaussian([0.5, -0.2], std=0.3)
    z = p.prior((400, 2), seed=0)
    warm, cold = (sd.decode(p, target.score(p), z, temperature=t, rtol=1e-4, atol=1e-4).x for t in (1.0, 0.5))
    assert torch.allclose(warm, sd.decode(p, target.score(p), z, rtol=1e-4, atol=1e-4).x)
    assert float(cold.std(0).mean() / warm.std(0).mean()) == pytest.approx(0.5, abs=0.01)


def test_interpolation_keeps_to_the_shell() -> None:
    a, b = (sd.VPSDE().prior((3, 4, 50), seed=seed) for seed in (0, 1))
    path = sd.interpolate(a, b, 9)
    assert path.shape == (9, 3, 4, 50)
    assert torch.allclose(path[0], a, atol=1e-6) and torch.allclose(path[-1], b, atol=1e-6)
    norms = path.flatten(2).norm(dim=2)
    assert float((norms / norms[0]).sub(1).abs().max()) < 0.05 and float(((a + b) / 2).flatten(1).norm(dim=1).max()) < 0.85 * float(norms.min())
    unit = torch.nn.functional.normalize
    circle = sd.interpolate(unit(a.flatten(1)), unit(b.flatten(1)), 5)
    assert torch.allclose(circle.norm(dim=2), torch.ones(5, 3), atol=1e-6)
    angle = (circle[1:] * circle[:-1]).sum(2).acos()
    assert torch.allclose(angle, angle[:1].expand(4, 3), atol=1e-3)
    assert torch.allclose(sd.interpolate(a, 2 * a, 3)[1], 1.5 * a)


def test_a_grid_method_and_a_broken_row() -> None:
    p, target = sd.VPSDE(), sd.exam.mixture_2d()
    x = target.sample(3, seed=0).double()
    assert torch.allclose(sd.encode(p, target.score(p), x, "rk4", steps=100).x, sd.encode(p, target.score(p), x).x, atol=2e-3)
    x[1] = math.nan
    assert sd.encode(p, target.score(p), x, "leapfrog", steps=10).status.tolist() == ["ok", "non_finite", "ok"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "pc"}, "needs a score"),
        ({"method": "rk46"}, "Did you mean 'rk4'"),
        ({"method": "leapfrog", "steps": 0}, "steps=0"),
        ({"eps": 2.0}, "expected 0 < eps < T"),
        ({"x0": torch.ones(2, 2, dtype=torch.int64)}, "x.float()"),
    ],
)
def test_bad_codes(arguments: dict, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=re.escape(message)):
        sd.encode(**{"process": sd.VPSDE(), "score": lambda x, t: pytest.fail("the network was called"), "x0": torch.ones(2, 2), **arguments})


def test_bad_decoding_and_interpolation() -> None:
    with pytest.raises(ValueError, match="temperature=-1"):
        sd.decode(sd.VPSDE(), lambda x, t: -x, torch.ones(2, 2), temperature=-1)
    with pytest.raises(ValueError, match="two codes of one shape"):
        sd.interpolate(torch.ones(2, 3), torch.ones(3, 2))
    with pytest.raises(ValueError, match="sample 1 are opposite"):
        sd.interpolate(torch.eye(2), torch.tensor([[0.0, 1.0], [0.0, -1.0]]))
    for bad, message in ((torch.full((2, 3), math.nan), "finite floats"), ([1.0, 2.0], "a is a list"), (torch.ones(0, 3), "at least one"), (sd.Latent, "a is a type")):
        with pytest.raises((ValueError, TypeError), match=message):
            sd.interpolate(bad, bad)
    with pytest.raises(ValueError, match="count=1"):
        sd.interpolate(torch.eye(2), torch.eye(2), 1)


def test_the_carry_is_of_its_own_path_alone() -> None:
    """At another temperature the way back begins anew, as from a code that nothing is known of."""
    p, target = sd.VPSDE(), sd.exam.mixture_2d()
    latent = sd.encode(p, target.score(p), target.sample(3, seed=0), "leapfrog", steps=10)
    warm = sd.decode(p, target.score(p), latent, temperature=0.8).x
    assert torch.equal(warm, sd.decode(p, target.score(p), 0.8 * latent.x, "leapfrog", steps=10).x)


def test_a_code_that_did_not_arrive_is_not_decoded_to_one_that_did() -> None:
    p, target = sd.VPSDE(), sd.exam.mixture_2d()
    x, score = target.sample(2, seed=0), target.score(p)
    with pytest.warns(sd.SolveWarning):
        short = sd.encode(p, score, x, max_steps=2)
    for method in ({}, {"method": "leapfrog", "steps": 5}):
        assert sd.decode(p, score, short, **method).status.tolist() == ["max_steps"] * 2


def test_half_precision_is_lifted_for_the_way() -> None:
    p, target = sd.VPSDE(), sd.exam.mixture_2d()
    x, score = target.sample(2, seed=0).half(), target.score(p)
    latent = sd.encode(p, score, x, rtol=1e-3, atol=1e-3)
    assert latent.x.dtype == torch.float32 and torch.equal(latent.x, sd.encode(p, score, x.float(), rtol=1e-3, atol=1e-3).x)
    assert sd.decode(p, score, latent.x.half(), rtol=1e-3, atol=1e-3).x.dtype == torch.float32
