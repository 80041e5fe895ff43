"""How a walk ends: where Tweedie's formula is short of the flow, and multistep methods follow it to no noise by their two last outputs."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from problems import PROCESSES
from torch import Tensor

import sdesolve as sd
from sdesolve.grids import noise_ratio, time_at_ratio
from sdesolve.methods import METHODS, make_method
from sdesolve.methods.linear import LinearSampler, to_no_noise

P = PROCESSES["VP"]
LAW = sd.exam.mixture_2d()
FOLLOW = {"dpmpp_2m": {}, "dpmpp_3m": {}, "unipc": {}, "deis": {}, "ipndm": {}, "er_sde": {"eta": 0.0}}
FLOW = P.probability_flow(LAW.score(P))


def starts(rows: int = 64) -> Tensor:
    return P.prior((rows, 2), seed=5, dtype=torch.float64)


def gaussian_outputs(p: sd.Process, t: float, width: float) -> tuple[float, float, float]:
    """x, E[x_0 | x] and E[eps | x] at t on the way of N(0, width^2) to one standard deviation, in float64."""
    alpha, sigma = float(p.alpha(t)), float(p.sigma(t))
    whole = math.hypot(alpha * width, sigma)
    return whole, alpha * width**2 / whole, sigma / whole


def left(p: sd.Process, output: Any, rho: float, width: float, before: float = 1.5) -> float:
    """How far from the flow's end a direction of that width is when it has been followed from rho."""
    times = [time_at_ratio(p, rho), time_at_ratio(p, before * rho)]
    row, known = to_no_noise(p, times, output), [gaussian_outputs(p, t, width) for t in times]
    outputs = [k[1] if output == "x0" else k[2] for k in known]
    return abs(row.on_x * known[0][0] + sum(w * o for w, o in zip(row.on_outputs, outputs, strict=True)) - width)  # type: ignore[misc, operator]


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("output", ["x0", "epsilon"])
def test_what_is_left_is_of_fourth_order(process: str, output: str) -> None:
    """In the noise, along a direction that is wider; Tweedie's formula leaves the second order, rho^2/(2 s)."""
    p = PROCESSES[process]
    rhos = [0.08, 0.04]
    errors = [left(p, output, rho, 1.0) for rho in rhos]
    assert np.log2(errors[0] / errors[1]) == pytest.approx(4, abs=0.1)
    assert errors[1] < 0.01 * (1 - 1 / math.hypot(1, rhos[1]))


@pytest.mark.parametrize("output", ["x0", "epsilon"])
def test_where_data_have_no_width_all_noise_goes(output: str) -> None:
    assert left(P, output, 0.05, 0.0) < 1e-15


@pytest.mark.parametrize("output", ["x0", "epsilon"])
@pytest.mark.parametrize("before", [1.1, 2.0, 20.0])
def test_it_is_nearer_than_tweedie_whatever_the_width(output: str, before: float) -> None:
    for width in np.geomspace(0.005, 5.0, 13):
        tweedie = width - width**2 / math.hypot(width, 0.05)
        assert left(P, output, 0.05, width, before) < tweedie


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("method", FOLLOW)
def test_multistep_methods_follow_the_flow(method: str, process: str) -> None:
    """From noise of 0.05 on; steps that count as exact go on to where noise is a fifth of that, or less.  In as many calls as with Tweedie's formula."""
    p = PROCESSES[process]
    flow, first = p.probability_flow(LAW.score(p)), time_at_ratio(p, 4.0)
    x = LAW.sample(64, seed=5, dtype=torch.float64) * p.alpha(first) + starts() * p.sigma(first)
    last = time_at_ratio(p, max(2e-3, noise_ratio(p, p.eps)))
    exact = sd.solve(flow, x, "dop853", interval=(first, last), rtol=1e-8, atol=1e-8, denoise=True).x
    way = {"interval": (first, time_at_ratio(p, 0.05)), "steps": 80, **FOLLOW[method]}
    ends = [sd.solve(flow, x, method, denoise=denoise, **way) for denoise in (True, "extrapolate")]  # type: ignore[arg-type]
    tweedie, followed = (float((end.x - exact).abs().mean()) for end in ends)
    assert ends[0].nfe == ends[1].nfe == 81 and followed < 0.25 * tweedie


def test_every_other_method_ends_with_tweedie() -> None:
    """Those that draw noise, those without a memory, and those whose step has stages."""
    others = [name for name in METHODS if isinstance(make_method(name), LinearSampler) and name not in FOLLOW]
    assert {"ddim", "dpmpp_2s", "sa_solver", "dpmpp_2m_sde"} <= set(others)
    for method in (*others, "er_sde", "heun", "pc", "dpm_solver_v3"):
        problem = P.reverse(LAW.score(P))
        plain, asked = (sd.solve(problem, starts(8), method, steps=6, seed=1, denoise=denoise).x for denoise in (True, "extrapolate"))  # type: ignore[arg-type]
        assert torch.equal(plain, asked), method


def test_a_constraint_ends_with_tweedie() -> None:
    """What moves the state between two calls makes of their outputs no line."""
    how: dict[str, Any] = {"steps": 6, "constraint": lambda x, t, z: x.clamp(-2, 2)}
    plain, asked = (sd.solve(FLOW, starts(8), "unipc", denoise=denoise, **how).x for denoise in (True, "extrapolate"))  # type: ignore[arg-type]
    assert torch.equal(plain, asked)


@pytest.mark.parametrize("method", ["unipc", "deis"])
def test_however_it_is_walked(method: str) -> None:
    """In parallel, with a gradient, row by row and in a card the end is the same."""
    how: dict[str, Any] = {"steps": 12, "denoise": "extrapolate", "grid": "log_snr"}
    x = starts(8)
    plain = sd.solve(FLOW, x, method, **how).x
    assert not torch.equal(plain, sd.solve(FLOW, x, method, **{**how, "denoise": True}).x)
    torch.testing.assert_close(sd.solve(FLOW, x, method, parallel=sd.Parallel(window=6, tolerance=1e-12), **how).x, plain, rtol=1e-9, atol=1e-9)
    card = sd.solver_card(method, P, sd.grids.make_grid("log_snr", P, P.T, P.eps, 12))
    torch.testing.assert_close(sd.solve(FLOW, x, card, denoise="extrapolate").x, plain, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(sd.solve(FLOW, x[3:5], method, **how).x, plain[3:5], rtol=1e-12, atol=1e-12)
    for gradient in ("backprop", "checkpoint"):
        leaf = x[:2].clone().requires_grad_()
        end = sd.solve(FLOW, leaf, method, gradient=gradient, **how).x
        (slope,) = torch.autograd.grad(end[0, 0], leaf)
        moved = sd.solve(FLOW, x[:2] + torch.tensor([[1e-6, 0], [0, 0]]), method, **how).x
        assert float(slope[0, 0]) == pytest.approx(float((moved - plain[:2])[0, 0] / 1e-6), rel=1e-4)


def test_who_asks_for_it() -> None:
    """A range, an optimised grid and "auto" unless told otherwise; and who spells it out."""
    x, span = starts(8), sd.Range(1.0)
    for how in ({"method": "unipc", "interval": span}, {"method": "auto", "interval": span}, {"method": "auto"}):
        by_default, tweedie, followed = (sd.solve(FLOW, x, nfe=6, **how, **denoise).x for denoise in ({}, {"denoise": True}, {"denoise": "extrapolate"}))  # type: ignore[arg-type]
        assert torch.equal(by_default, followed) and not torch.equal(followed, tweedie)
    with pytest.raises(TypeError, match="denoise='tweedie'; expected True, 'extrapolate', False"):
        sd.solve(FLOW, x, "unipc", denoise="tweedie")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="denoise='extrapolate' needs a score"):
        sd.solve(sd.ODE(lambda x, t: -x), x, "heun", denoise="extrapolate")


def test_calls_that_are_close_are_not_blown_up() -> None:
    """A twentieth apart in the log-SNR's half is taken for the least: noise of the outputs grows by 10 at most."""
    t = 0.05
    row = to_no_noise(P, [t, t * (1 + 1e-9)], "x0")
    assert row.on_outputs == pytest.approx((1 + 1 / math.expm1(0.1), -1 / math.expm1(0.1)))


@pytest.mark.parametrize("method", ["unipc", "deis"])
def test_from_data_to_noise_nothing_is_followed(method: str) -> None:
    how: dict[str, Any] = {"steps": 6, "interval": (P.eps, 0.8)}
    plain, asked = (sd.solve(FLOW, LAW.sample(8, seed=1, dtype=torch.float64), method, denoise=denoise, **how).x for denoise in (True, "extrapolate"))  # type: ignore[arg-type]
    torch.testing.assert_close(asked, plain, rtol=1e-9, atol=1e-9)
