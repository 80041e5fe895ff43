"""A Brownian path is one path: whoever asks, in whatever order, however finely, and with the law of Brownian motion."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

import sdesolve as sd
from sdesolve._philox import philox
from sdesolve.brownian import bridge
from sdesolve.noise import SeededNormals, SeededStep

N = 20_000
TIMES = st.floats(0.0, 1.0)


def path(rows: int = N, event: tuple[int, ...] = (1,), interval: tuple[float, float] = (0.0, 1.0), **keywords: object) -> sd.BrownianPath:
    return sd.BrownianPath((rows, *event), interval, **{"seed": 0, "dtype": torch.float64, **keywords})


def same(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, rtol=0, atol=1e-12)


# -- the generator -----------------------------------------------------------------------------------------------------


@given(counter=st.lists(st.integers(0, 2**64 - 2), min_size=4, max_size=4), key=st.tuples(st.integers(0, 2**64 - 1), st.integers(0, 6)))
def test_philox_is_numpys(counter: list[int], key: tuple[int, int]) -> None:
    bits = np.random.Philox(key=np.array(key, dtype=np.uint64))
    state = bits.state
    state["state"]["counter"][:] = counter
    bits.state = state
    counter[0] += 1  # numpy counts up before it draws
    assert np.array_equal(philox(np.array([counter], dtype=np.uint64).T, key)[:, 0], bits.random_raw(4))


@pytest.mark.parametrize("event", [(1,), (2, 1), (3,), (3, 5), (17,), (40,)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_node_of_ones_own_gives_what_a_shared_node_gives(event: tuple[int, ...], dtype: torch.dtype) -> None:
    source = SeededNormals(7, [4, 0, 2**40], event, dtype=dtype, device="cpu")
    nodes = np.array([[3, (1 << 39) + 6, 5], [0, 2, 2]])
    rows = source.normal_at(nodes, slot=2)
    assert rows.shape == (2, 3, *event)
    for i, j in itertools.product(range(2), range(3)):
        assert torch.equal(rows[i, j], source.normal(int(nodes[i, j]), slot=2)[j])


@pytest.mark.parametrize("event", [(1,), (3,)])
def test_keeping_rows_keeps_their_numbers(event: tuple[int, ...]) -> None:
    source = SeededNormals(0, range(6), event, dtype=torch.float32, device="cpu", nodes=10)
    mask = torch.tensor([True, False, True, True, False, False])
    before = source.normal(4)
    for kept in (source.keep(mask), SeededNormals(0, range(6), event, dtype=torch.float32, device="cpu").keep(mask)):
        assert torch.equal(kept.normal(4), before[mask])
        assert torch.equal(kept.keep(torch.tensor([False, True, True])).normal(9), source.normal(9)[[2, 3]])


# -- the bridge --------------------------------------------------------------------------------------------------------


@given(a=st.floats(1e-6, 1e3), b=st.floats(1e-6, 1e3))
def test_bridge_is_the_conditional_law(a: float, b: float) -> None:
    """It is linear: the parts of (W, H) and two normals are independent with the right variances, and add up to (W, H)."""
    scale = torch.tensor([math.sqrt(a + b), math.sqrt((a + b) / 12), 1.0, 1.0], dtype=torch.float64)
    basis = torch.diag(scale)[..., None]  # rows: one unit of W, H, z1, z2 at a time
    parts = torch.cat(bridge(*basis.unbind(1)[:2], a, b, *basis.unbind(1)[2:]), 1)  # (4 sources, 4 parts)
    variances = torch.tensor([a, a / 12, b, b / 12], dtype=torch.float64)
    root = variances.sqrt()
    assert torch.allclose(parts.T @ parts / root / root[:, None], torch.eye(4, dtype=torch.float64), atol=1e-7)
    w1, h1, w2, h2 = parts.T
    assert torch.allclose(w1 + w2, basis[:, 0, 0])
    area = (a * (0.5 * w1 + h1) + b * w1 + b * (0.5 * w2 + h2)) / (a + b) - 0.5 * (w1 + w2)
    assert torch.allclose(area, basis[:, 1, 0], atol=1e-9 * float(root.max()))


# -- the path ----------------------------------------------------------------------------------------------------------


@given(times=st.lists(TIMES, min_size=2, max_size=5, unique=True))
def test_coarse_increments_are_sums_of_fine_ones(times: list[float]) -> None:
    w = path(3, (2,))
    ends = list(itertools.pairwise(sorted(times)))
    assert same(sum(w.increment(*pair) for pair in ends), w.increment(min(times), max(times)))
    assert same(w.increment(max(times), min(times)), -w.increment(min(times), max(times)))
    assert same(w(times[0]) - w(times[1]), w.increment(times[1], times[0]))


@given(t=TIMES, other=TIMES)
def test_neither_order_nor_neighbours_nor_the_kind_of_query_matter(t: float, other: float) -> None:
    w = path(3, (2,), sample_ids=[5, 0, 9])
    ts = torch.tensor([t, other, 0.5], dtype=torch.float64)
    rows = w(ts)
    w(other)
    alone = path(1, (2,), sample_ids=[5])
    assert torch.equal(alone(t)[0], w(t)[0])
    assert torch.equal(rows[0], w(t)[0]) and torch.equal(rows[1], w(other)[1]) and torch.equal(rows[2], w(0.5)[2])
    assert torch.equal(w.keep(torch.tensor([True, False, True]))(t), w(t)[[0, 2]])


@pytest.mark.parametrize("interval", [(0.0, 1.0), (1.0, 0.001), (-3.0, 5.0)])
def test_law_of_the_path(interval: tuple[float, float]) -> None:
    """Off the dyadic times: E W(s) W(t) = min(s, t), the law normal, increments independent; within 3 standard errors."""
    low, high = min(interval), max(interval)
    w = path(interval=interval)
    fractions = (0.0, 0.1, 1 / 3, 0.337, 0.75, 1.0)
    values = torch.cat([w(low + f * (high - low)) for f in fractions], 1)
    assert (values[:, 0] == 0).all()
    for i, j in itertools.combinations_with_replacement(range(1, len(fractions)), 2):
        exact, (u, v) = min(fractions[i], fractions[j]), (fractions[i], fractions[j])
        error = math.sqrt((exact**2 + u * v) / N)
        assert float((values[:, i] * values[:, j]).mean()) / (high - low) == pytest.approx(exact, abs=3.2 * error), (i, j)
    scaled = values[:, 3] / math.sqrt(fractions[3] * (high - low))
    assert stats.kstest(scaled.numpy(), "norm").pvalue > 1e-3


@pytest.mark.parametrize(("t0", "t1"), [(0.2, 0.55), (0.55, 0.2), (0.5, 0.5 + 1e-5)])
def test_law_of_the_area(t0: float, t1: float) -> None:
    """W ~ N(0, |dt|) and H ~ N(0, |dt|/12) are independent, and H is the area of the same path on a fine grid."""
    w, h = path().levy(t0, t1)
    length = abs(t1 - t0)
    assert float(w.square().mean()) / length == pytest.approx(1, abs=3.2 * math.sqrt(2 / N))
    assert float(h.square().mean()) / (length / 12) == pytest.approx(1, abs=3.2 * math.sqrt(2 / N))
    assert float((w * h).mean()) / length * math.sqrt(12) == pytest.approx(0, abs=3.2 / math.sqrt(N))
    few = path(40)
    fine = torch.stack([few.increment(t0, t0 + (i + 0.5) / 200 * (t1 - t0)) for i in range(200)]).mean(0)
    w, h = few.levy(t0, t1)
    assert float((fine - 0.5 * w - h).square().mean().sqrt()) < 0.01 * math.sqrt(length)


def test_a_query_keeps_nothing() -> None:
    w = path(4)
    for i in range(300):
        w.increment(i / 1e6, (i + 1) / 1e6)
    assert len(w._known) <= 2


# -- solves ------------------------------------------------------------------------------------------------------------


def gbm(rows: int) -> tuple[sd.SDE, Tensor]:
    return sd.SDE(lambda x, t: 0.5 * x, lambda x, t: 0.4 * x), torch.ones(rows, 1, dtype=torch.float64)


def test_every_number_of_steps_sees_the_same_path() -> None:
    """Against the exact solution of the path that the user holds: the error falls as the step's square root."""
    sde, x = gbm(2000)
    w = path(2000)
    exact = torch.exp((0.5 - 0.08) + 0.4 * w(1.0))
    errors = [float((sd.solve(sde, x, "euler_maruyama", steps=n, noise=w).x - exact).square().mean().sqrt()) for n in (16, 64, 256)]
    assert errors[0] > 1.8 * errors[1] > 1.8**2 * errors[2]
    by_name = sd.solve(sde, x, "euler_maruyama", steps=64, noise="brownian", seed=0)
    assert same(by_name.x, sd.solve(sde, x, "euler_maruyama", steps=64, noise=w).x)


def test_steps_of_ones_own_see_it_too() -> None:
    """An adaptive solve and a fine grid on one path: what differs is the tolerance's error, not the noise.

    In the median: one row in a thousand takes the wrong side of a maximum of the potential.
    """
    sde = sd.SDE(lambda x, t: -torch.sin(3 * x), lambda x, t: 0.5 + 0.3 * sd.expand_time(t, x), noise="additive")
    x = torch.linspace(-1, 1, 100, dtype=torch.float64)[:, None]
    fine = sd.solve(sde, x, "euler_maruyama", steps=2048, noise="brownian", seed=3).x
    errors = [float((sd.solve(sde, x, "adaptive", rtol=tol, atol=tol, noise="brownian", seed=3).x - fine).abs().median()) for tol in (1e-1, 1e-2)]
    assert errors[0] > 4 * errors[1] and errors[1] < 0.005, errors


@pytest.mark.parametrize("noise", ["seeded", "brownian"])
@pytest.mark.parametrize("interval", [(0.0, 1.0), (1.0, 0.0)], ids=["forwards", "backwards"])
def test_states_between_nodes_have_the_right_law(noise: str, interval: tuple[float, float]) -> None:
    """Brownian motion itself saved off the grid: variances and covariances within 3 standard errors, where a line has half."""
    sde = sd.SDE(lambda x, t: 0 * x, lambda x, t: torch.ones_like(x), noise="additive", interval=interval)
    fractions = [0.1, 0.375, 0.5, 0.6, 0.625, 0.9]
    save = [interval[0] + f * (interval[1] - interval[0]) for f in fractions]
    sol = sd.solve(sde, torch.zeros(N, 1, dtype=torch.float64), "euler_maruyama", steps=4, noise=noise, save=save, seed=5)
    assert sol.ts.tolist() == pytest.approx(save)
    values = sol.xs[..., 0]
    for i, j in itertools.combinations_with_replacement(range(len(save)), 2):
        exact = min(fractions[i], fractions[j])
        error = math.sqrt((exact**2 + fractions[i] * fractions[j]) / N)
        assert float((values[i] * values[j]).mean()) == pytest.approx(exact, abs=3.2 * error), (i, j)


def test_a_bridge_vanishes_at_nodes_and_needs_no_call() -> None:
    sde, x = gbm(5)
    plain = sd.solve(sde, x, "euler_maruyama", steps=4, seed=0, save="all")
    both = sd.solve(sde, x, "euler_maruyama", steps=4, seed=0, save=[0.0, 0.1, 0.25, 0.3, 1.0])
    assert torch.equal(both.xs[[0, 2, 4]], plain.xs[[0, 1, 4]])
    assert both.nfe == plain.nfe
    assert not torch.allclose(both.xs[1], 0.6 * plain.xs[0] + 0.4 * plain.xs[1])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: path(0), "at least one sample"),
        (lambda: path(interval=(1.0, 1.0)), "two finite and different times"),
        (lambda: path(interval=(0.0, math.inf)), "two finite and different times"),
        (lambda: path(seed=-1), "0 <= seed"),
        (lambda: path()(1.5), r"t=.* leaves the interval \(0.0, 1.0\)"),
        (lambda: sd.solve(*gbm(2), "euler_maruyama", noise=path(3)), r"shape \(3, 1\); expected \(2, 1\)"),
        (lambda: sd.solve(*gbm(2), "euler_maruyama", interval=(0.0, 2.0), noise=path(2)), "a path that covers it"),
        (lambda: sd.solve(*gbm(2), "euler_maruyama", noise="browniam"), "Did you mean 'brownian'"),
        (lambda: sd.solve(*gbm(2), "euler_maruyama", noise=3), "noise is a int"),
        (lambda: sd.solve(sd.ODE(lambda x, t: x), torch.ones(2, 1), "rk4", noise="brownian"), "there is none in this problem"),
    ],
)
def test_refused(call: object, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        call()  # type: ignore[operator]


def test_a_seeded_area_is_independent_of_the_increment() -> None:
    step = SeededStep(SeededNormals(0, range(N), (1,), dtype=torch.float64, device="cpu"), 0)
    w, h = step.levy(1.0, 0.75)
    assert torch.equal(w, step.increment(1.0, 0.75))
    assert float(h.var()) * 12 / 0.25 == pytest.approx(1, abs=3.2 * math.sqrt(2 / N))
    assert abs(float(torch.corrcoef(torch.cat([w, h], 1).T)[0, 1])) < 3.2 / math.sqrt(N)
