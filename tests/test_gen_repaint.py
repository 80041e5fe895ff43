"""RePaint: which steps are walked again, with which noise, and what that does to the law."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from inverse_problems import EVERY_OTHER, PAIR, Dense
from problems import GaussianTarget
from torch import Tensor

import sdesolve as sd
from sdesolve.noise import PASS, SeededNormals, SeededStep
from sdesolve_gen.conditioning import Measurement, Resampled, made, repaint

VE, VP = sd.VESDE(0.01, 20.0), sd.VPSDE()
SEEN = Measurement(Dense(torch.eye(4)[:1]), torch.tensor([[0.7]]))


def published_schedule(steps: int, jump_length: int, resamplings: int) -> list[int]:
    """The steps in the order in which they are taken, counted from the start; stretches are counted from the end of the walk, and the first is walked once."""
    left = {end: resamplings - 1 for end in range(0, steps - jump_length, jump_length)}
    order, t = [], steps
    while t > 0:
        t -= 1
        order.append(steps - t - 1)
        if left.get(t, 0):
            left[t] -= 1
            t += jump_length
    return order


@pytest.mark.parametrize(("steps", "jump_length", "resamplings"), [(12, 3, 4), (10, 1, 3), (6, 2, 1)])
def test_the_published_schedule(steps: int, jump_length: int, resamplings: int) -> None:
    """But for the first stretch, which the published one walks once; each step is a call at its first node."""
    called: list[float] = []

    def score(x: Tensor, t: Tensor) -> Tensor:
        called.append(float(t[0]))
        return -x

    c = repaint(sd.as_score(score, VP, predicts="score"), SEEN, jump_length, resamplings)
    nodes = torch.linspace(1, 0.1, steps + 1, dtype=torch.float64).tolist()
    solution = sd.solve(VP.reverse(c.score, eps=0.1), torch.randn(2, 4), c.method("ancestral"), grid=nodes, seed=0, constraint=c.constraint)  # type: ignore[misc]
    first = list(range(jump_length)) * (resamplings - 1)
    expected = first + published_schedule(steps, jump_length, resamplings)
    if jump_length == 1 and resamplings > 1:  # the published one leaves out the last level too
        assert len(called) == steps * resamplings
    assert called == pytest.approx([nodes[i] for i in expected]) and solution.nfe == len(called) == steps * resamplings


def test_walked_once_it_is_the_projection() -> None:
    c = repaint(sd.as_score(GaussianTarget(VP).score, VP, predicts="score"), SEEN, 3, 1)
    for method in ("ancestral", "ddim", "pc", "dpmpp_2m_sde"):
        one, other = (sd.solve(VP.reverse(c.score), VP.prior((3, 4), seed=0), m, steps=7, grid="uniform", seed=0, constraint=c.constraint).x for m in (method, c.method(method)))  # type: ignore[misc]
        assert torch.allclose(one, other, atol=1e-5)


@pytest.mark.parametrize("method", ["ancestral", "ddim", "euler_maruyama", "pc", "dpmpp_2m"])
def test_without_a_constraint_the_law_stays(method: str) -> None:
    """Each way up has noise of its own, and each way down too: else the variance would be off by a half and more."""
    target = GaussianTarget(VE)
    mean, std = target.law(VE.eps)
    x = sd.solve(VE.reverse(target.score), VE.prior((6000, 1), seed=1), Resampled(made(method), 4, 5), steps=120, grid="uniform", seed=0).x.double()
    assert abs(float(x.mean()) - mean) < 4 * std / 6000**0.5 + 0.01
    assert float(x.std()) / std == pytest.approx(1, abs=0.05)


def test_rows_stand_apart() -> None:
    c = repaint(sd.as_score(GaussianTarget(VP).score, VP, predicts="score"), SEEN, 2, 3)
    x, ids = VP.prior((50, 4), seed=0), torch.tensor([3, 17, 40])
    whole, some = (
        sd.solve(VP.reverse(c.score), rows, c.method("pc"), steps=6, seed=0, sample_ids=names, constraint=c.constraint).x  # type: ignore[misc]
        for rows, names in ((x, torch.arange(50)), (x[ids], ids))
    )
    assert torch.equal(whole[ids], some)


@pytest.mark.parametrize("problem", [PAIR, EVERY_OTHER], ids=["pair", "every other"])
def test_resampling_repairs_replacement(problem: Any) -> None:
    """Ten times the calls take the share in the 90 % interval from 0.69 (0.80 in eight dimensions) to 0.90, and the mean from 0.96 (0.46) to 0.1 standard deviations."""
    for jump_length in (1, 10):
        got = problem.sampled(VE, "repaint", "ancestral", 100, rows=1000, options={"jump_length": jump_length})
        assert got.cover == pytest.approx(0.9, abs=0.03) and got.mean < 0.16 and got.variance == pytest.approx(0.97, abs=0.1)
        assert got.nfe == 1000
    flow = problem.sampled(VE, "repaint", "ddim", 100, rows=1000, options={"jump_length": 1})
    assert flow.cover > 0.85


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"jump_length": 0}, "jump_length=0"),
        ({"resamplings": 1.5}, "resamplings=1.5"),
        ({"jump_length": 100, "resamplings": 100}, "below 1000"),
        ({"measurement": Measurement(SEEN.operator, SEEN.y, 0.1)}, "noise_std=0.1"),
    ],
)
def test_what_cannot_be_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message.replace(".", r"\.")):
        repaint(sd.as_score(GaussianTarget(VP).score, VP, predicts="score"), **{"measurement": SEEN, **options})


def test_what_cannot_walk_is_refused() -> None:
    score = sd.as_score(GaussianTarget(VP).score, VP, predicts="score")
    c = repaint(score, SEEN)
    with pytest.raises(ValueError, match="longer than the walk of 5 steps"):
        sd.solve(VP.reverse(score), torch.randn(2, 4), c.method("ddim"), steps=5, constraint=c.constraint)  # type: ignore[misc]
    with pytest.raises(ValueError, match="middle of its walk"):
        c.method("rk45")  # type: ignore[misc]
    assert math.isfinite(made("ddim", eta=0.5).eta)  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="eta"):
        made(made("ddim"), eta=0.5)
    with pytest.raises(ValueError, match="method 'auto' is chosen by solve, and here another walks by its steps; expected one by name"):
        made("auto")


def test_a_multistep_method_begins_afresh_after_a_jump() -> None:
    """The outputs that it remembers belong to states below, of another walk."""
    flow, inner, x = VP.probability_flow(GaussianTarget(VP).score), made("dpmpp_2m"), VP.prior((3, 4), seed=0)
    ts = (1.0, 0.8, 0.6)
    source = SeededStep(SeededNormals(0, range(3), (4,), dtype=x.dtype, device=x.device, nodes=2), 1)
    ends = []
    for start in (x, None):
        if start is None:
            r = float(VP.alpha(1.0) / VP.alpha(0.6))
            start = r * ends[0] + math.sqrt(float(VP.sigma(1.0)) ** 2 - (r * float(VP.sigma(0.6))) ** 2) * source.normal(PASS)
        carry = inner.init(flow, start, 1.0)
        for t0, t1 in pairwise(ts):
            start, _, carry, *_ = inner.step(flow, start, t0, t1, None, carry)
        ends.append(start)
    got = sd.solve(VP.reverse(GaussianTarget(VP).score), x, Resampled(inner, 2, 2), grid=ts, interval=(1.0, 0.6), seed=0).x
    assert torch.allclose(got, ends[1], atol=1e-5)
