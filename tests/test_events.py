"""Events: a row stops where its function changes sign, at the exact time to the tolerance, and the others go on."""

from __future__ import annotations

import math

import pytest
import torch
from problems import nonlinear_ode
from torch import Tensor

import sdesolve as sd
from sdesolve.methods import METHODS

ADAPTIVE = [name for name, make in METHODS.items() if make().error_order is not None and make().facts.dense is not None]
G = 9.81


def fall(x: Tensor, t: Tensor) -> Tensor:
    """Height and speed under gravity."""
    return torch.stack([x[:, 1], torch.full_like(t.expand(len(x)), -G)], 1)


def height(x: Tensor, t: Tensor) -> Tensor:
    return x[:, 0]


def rotation(interval: tuple[float, float] = (0.0, 20.0)) -> sd.ODE:
    """x = (cos t, sin t) turned by the start's angle."""
    return sd.ODE(lambda x, t: torch.stack([-x[:, 1], x[:, 0]], 1), interval)


@pytest.mark.parametrize("method", ADAPTIVE)
def test_a_falling_ball(method: str) -> None:
    """The motion is a parabola, which every method of order 2 and its dense output have exactly; the third ball does not arrive."""
    x = torch.tensor([[1.0, 0.0], [2.0, 3.0], [50.0, 0.0]], dtype=torch.float64)
    solution = sd.solve(sd.ODE(fall, (0.0, 2.0)), x, method, rtol=1e-3, atol=1e-3, event=height)
    exact = (x[:, 1] + (x[:, 1].square() + 2 * G * x[:, 0]).sqrt()) / G
    assert solution.status.tolist() == ["event", "event", "ok"] and solution.ok().all() and solution.failures() == []
    assert torch.allclose(solution.event_time[:2], exact[:2], atol=1e-12) and solution.event_time[2].isnan()
    assert torch.allclose(solution.x[:2, 1], (x[:, 1] - G * exact)[:2], atol=1e-11)
    assert (solution.x[:2, 0] > 0).all() and (solution.x[:2, 0] < 1e-12).all()  # still above the ground
    assert solution.x[2, 0] == pytest.approx(50 - G * 2, abs=1e-10)
    assert "event: 2" in repr(solution)


@pytest.mark.parametrize("interval", [(0.0, 0.69), (2.0, 1.41)], ids=["forwards", "backwards"])
@pytest.mark.parametrize("method", [m for m in ADAPTIVE if METHODS[m]().facts.ode > 2])
def test_the_time_is_exact_to_the_tolerance(method: str, interval: tuple[float, float]) -> None:
    """logit x = logit x0 + t + 2/3 sin 3t rises on (0, 0.69) and on (1.40, 2): each row's threshold is the value at a time in there."""
    problem, start, _ = nonlinear_ode(interval)
    truth = torch.tensor([0.3, 0.6] if interval[0] == 0 else [1.7, 1.5], dtype=torch.float64)
    threshold = torch.stack([nonlinear_ode((interval[0], float(t)))[2][i, 0] for i, t in enumerate(truth)])
    carried = torch.stack([start[:, 0], threshold], 1)  # the threshold is part of the state, so that a row takes its own along

    def drift(x: Tensor, t: Tensor) -> Tensor:
        return torch.stack([problem.drift(x[:, :1], t)[:, 0], 0 * x[:, 1]], 1)

    slope = problem.drift(threshold[:, None], truth)[:, 0].abs()
    for tol in (1e-5, 1e-8):
        solution = sd.solve(sd.ODE(drift, interval), carried, method, rtol=tol, atol=tol, event=lambda x, t: x[:, 0] - x[:, 1])
        assert solution.status.tolist() == ["event"] * 2
        assert float(((solution.event_time - truth) * slope).abs().max()) < 10 * tol  # as far as the state itself is known
        assert float((solution.x[:, 0] - threshold).abs().max()) < 1e-14


def test_direction() -> None:
    """x_1 = cos t falls through 0 at pi/2 and rises through it at 3 pi/2; backwards in time it is met the other way round."""
    x = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    for interval, direction, expected in [
        ((0.0, 20.0), 0, math.pi / 2),
        ((0.0, 20.0), -1, math.pi / 2),
        ((0.0, 20.0), 1, 3 * math.pi / 2),
        ((0.0, -20.0), -1, -math.pi / 2),
        ((0.0, -20.0), 1, -3 * math.pi / 2),
    ]:
        solution = sd.solve(rotation(interval), x, "tsit5", rtol=1e-9, atol=1e-9, event=height, event_direction=direction)
        assert float(solution.event_time) == pytest.approx(expected, abs=1e-7), (interval, direction)


def test_rows_that_cross_in_one_step_from_different_sides() -> None:
    """x_1 = r cos(t + a) of three rows, two of which meet 0 together, one from below; a neighbour that is early or late changes nothing."""
    x = torch.tensor([[1.0, 0.0], [0.8, -0.6], [-1.0, 0.0], [0.6, 0.8]], dtype=torch.float64)
    solution = sd.solve(rotation(), x, "tsit5", rtol=1e-9, atol=1e-9, event=height)
    expected = [math.pi / 2, math.pi / 2 + math.atan2(0.6, 0.8), math.pi / 2, math.pi / 2 - math.atan2(0.8, 0.6)]
    assert solution.event_time.tolist() == pytest.approx(expected, abs=1e-7)
    assert solution.x[:, 0].sign().tolist() == [1.0, 1.0, -1.0, 1.0]


def test_a_start_on_the_event_is_not_one() -> None:
    """So a solve may be taken up where an event ended it: here three half turns, each after a reflection that keeps the height at 0."""
    x, t = torch.tensor([[0.0, 1.0]], dtype=torch.float64), 0.0
    for k in range(1, 4):
        solution = sd.solve(rotation((t, t + 20.0)), x, "tsit5", rtol=1e-9, atol=1e-9, event=height)
        x, t = solution.x.clone(), float(solution.event_time)
        assert t == pytest.approx(k * math.pi, abs=1e-6)
        x[:, 0] = 0.0


def test_a_bouncing_ball() -> None:
    """Speed back up after each impact: the state at an event is still above the ground, so the ball rises from there."""
    x, t, times = torch.tensor([[1.0, 0.0]], dtype=torch.float64), 0.0, []
    for _ in range(4):
        solution = sd.solve(sd.ODE(fall, (t, 10.0)), x, "rk45", event=height)
        x, t = solution.x * torch.tensor([1.0, -0.5]), float(solution.event_time)
        times.append(t)
    first = math.sqrt(2 / G)
    assert times == pytest.approx([first * (1 + 2 * sum(0.5**k for k in range(1, n + 1))) for n in range(4)], abs=1e-9)


def test_a_row_is_the_same_alone_and_among_others() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(64, 2, generator=generator, dtype=torch.float64) * 5
    x[7] = torch.nan
    with pytest.warns(sd.SolveWarning, match="1 of 64"):
        together = sd.solve(sd.ODE(fall, (0.0, 1.0)), x, "bosh3", rtol=1e-6, atol=1e-6, event=height, save=[0.2, 0.5, 1.0])
    assert {"event", "ok", "non_finite"} == set(together.status.tolist())
    for i in (0, 3, 63):
        alone = sd.solve(sd.ODE(fall, (0.0, 1.0)), x[i : i + 1], "bosh3", rtol=1e-6, atol=1e-6, event=height, save=[0.2, 0.5, 1.0])
        assert torch.equal(alone.x[0], together.x[i]) and alone.nfe[0] == together.nfe[i] and alone.codes[0] == together.codes[i]
        for ours, theirs in ((alone.event_time[0], together.event_time[i]), (alone.xs[:, 0], together.xs[:, i])):
            assert torch.equal(ours.nan_to_num(-1.0), theirs.nan_to_num(-1.0))
    passed = together.event_time[None] < torch.tensor([0.2, 0.5, 1.0], dtype=torch.float64)[:, None]
    finite = ~x.isnan().any(1)
    assert torch.equal(together.xs.isnan().any(2)[:, finite], passed[:, finite])  # saved up to the event, and not beyond


@pytest.mark.parametrize("sign", [1.0, -1.0], ids=["forwards", "backwards"])
def test_values_are_saved_up_to_the_event(sign: float) -> None:
    """cos t falls through 0 at |t| = pi/2, wherever that lies in its step."""
    times = [sign * t for t in (0.5, 1.5, 1.56, 1.58, 2.0, 20.0)]
    x = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    solution = sd.solve(rotation((0.0, sign * 20.0)), x, "tsit5", rtol=1e-9, atol=1e-9, event=height, save=times)
    assert solution.xs.isfinite().all(2)[:, 0].tolist() == [True, True, True, False, False, False]
    assert torch.allclose(solution.xs[:3, 0, 0], solution.ts[:3].cos(), atol=1e-7)


def test_an_event_costs_nothing_and_stops_the_calls() -> None:
    """The root is found on the dense output: a row pays for the steps up to its event and no more."""
    x = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    calls: list[int] = []

    def drift(x: Tensor, t: Tensor) -> Tensor:
        calls.append(len(x))
        return torch.stack([-x[:, 1], x[:, 0]], 1)

    whole = sd.solve(sd.ODE(drift, (0.0, 20.0)), x, "tsit5")
    calls.clear()
    ended = sd.solve(sd.ODE(drift, (0.0, 20.0)), x, "tsit5", event=height)
    assert len(calls) == int(ended.nfe) < 0.3 * int(whole.nfe)


def test_float32_and_the_last_step() -> None:
    """An event in the step that ends the interval, in float32."""
    solution = sd.solve(sd.ODE(fall, (0.0, 0.46)), torch.tensor([[1.0, 0.0]]), "rk45", event=height)
    assert solution.status.tolist() == ["event"]
    assert float(solution.event_time) == pytest.approx(math.sqrt(2 / G), abs=1e-6)
    assert solution.x.dtype == torch.float32 and solution.event_time.dtype == torch.float64


def test_no_event_asked_for() -> None:
    assert sd.solve(rotation(), torch.ones(1, 2), "rk45").event_time is None


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"steps": 10}, "event is found between the steps"),
        ({"method": "rk4"}, "event is found between the steps"),
        ({"event_direction": 2}, "expected 1 .*, -1 .* or 0"),
        ({"event": lambda x, t: x}, r"event returned \(2, 2\) torch.float32; expected \(2,\)"),
        ({"event": lambda x, t: x[:, 0] > 0}, r"event returned \(2,\) torch.bool"),
        ({"event": lambda x, t: 1.0}, "event returned float"),
        ({"event_direction": 1, "event": None}, "event_direction=1 without an event"),
    ],
)
def test_refused_before_the_first_call(keywords: dict[str, object], message: str) -> None:
    def untouched(x: Tensor, t: Tensor) -> Tensor:
        raise AssertionError("the drift was called")

    with pytest.raises(ValueError, match=message):
        sd.solve(sd.ODE(untouched), torch.ones(2, 2), **{"method": "rk45", "event": height, **keywords})


def test_denoise_and_event_are_refused() -> None:
    process = sd.VPSDE()
    with pytest.raises(ValueError, match="denoise=True is for the last time"):
        sd.solve(process.probability_flow(lambda x, t: -x), torch.ones(2, 2), "rk45", event=height, denoise=True)
