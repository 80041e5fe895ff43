"""Noise is a function of (seed, sample id, node, slot), standard normal, and independent along each of them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

import sdesolve as sd
from sdesolve.correctors import CORRECTORS
from sdesolve.methods import make_method
from sdesolve.noise import LEVY, PATH, PRIOR, SeededNormals, SeededStep, _box_muller


def normals(seed: int = 0, ids: object = range(8), event: tuple[int, ...] = (5,), **keywords: object) -> SeededNormals:
    return SeededNormals(seed, ids, event, **{"dtype": torch.float32, "device": "cpu", **keywords})


@given(
    ids=st.lists(st.integers(0, 2**40), min_size=1, max_size=12),
    event=st.sampled_from([(), (1,), (2,), (3,), (2, 2), (8,), (2, 3, 4), (31,), (1, 7, 5)]),
    node=st.integers(0, 1000),
    slot=st.integers(0, 5),
    nodes=st.integers(1, 50),
)
def test_a_row_depends_on_its_id_alone(ids: list[int], event: tuple[int, ...], node: int, slot: int, nodes: int) -> None:
    """In any company, in any order, far ids and repeated ids included, and however far ahead is drawn."""
    together = normals(7, ids, event, nodes=nodes).normal(node, slot)
    for i, name in enumerate(ids):
        assert torch.equal(together[i], normals(7, [name], event).normal(node, slot)[0])


def test_order_of_asking_does_not_matter() -> None:
    source = normals(nodes=10)
    forwards = [source.normal(node) for node in range(10)]
    fresh = normals(nodes=3)
    assert all(torch.equal(fresh.normal(node), forwards[node]) for node in (9, 0, 5, 5, 1))


def test_every_part_of_the_address_matters() -> None:
    base = normals().normal(3, 1)
    others = [normals(1).normal(3, 1), normals(0, range(8, 16)).normal(3, 1), normals().normal(4, 1), normals().normal(3, 2)]
    others.append(normals(stream=PRIOR).normal(3, 1))
    assert all(not torch.isclose(base, other).any() for other in others)
    assert torch.equal(base, normals(stream=PATH).normal(3, 1))


@pytest.mark.parametrize(("event", "ids", "nodes"), [((50,), 1000, 10), ((1,), 10_000, 48), ((2,), 10_000, 24), ((3,), 10_000, 16), ((20,), 2000, 12)])
def test_law(event: tuple[int, ...], ids: int, nodes: int) -> None:
    """A million numbers: KS against N(0, 1), tails, and no correlation along coordinates, rows, nodes or slots."""
    source = normals(ids=range(ids), event=event, nodes=nodes)
    z = torch.stack([source.normal(node, slot) for node in range(nodes) for slot in range(2)]).reshape(nodes, 2, ids, *event).double()
    flat = z.flatten().numpy()
    assert stats.kstest(flat, "norm").pvalue > 1e-3
    assert abs(np.mean(flat**4) - 3) < 4 * math.sqrt(96 / len(flat))
    assert 4.5 < np.abs(flat).max() < 6.7
    for axis in (axis for axis in range(4) if z.shape[axis] > 1):
        product = (z.narrow(axis, 0, z.shape[axis] - 1) * z.narrow(axis, 1, z.shape[axis] - 1)).flatten()
        assert abs(float(product.mean())) < 4 / math.sqrt(len(product)), axis
        squares = (z.narrow(axis, 0, z.shape[axis] - 1).square() - 1) * (z.narrow(axis, 1, z.shape[axis] - 1).square() - 1)
        assert abs(float(squares.mean())) < 4 * 2 / math.sqrt(squares.numel()), axis


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 8, 9, 40])
def test_no_number_is_drawn_twice(size: int) -> None:
    """A node, a slot, a sample or a coordinate that read another one's words would show."""
    source = normals(ids=range(100), event=(size,), nodes=20, dtype=torch.float64)
    z = torch.stack([source.normal(node, slot) for node in range(20) for slot in range(2)]).flatten()
    assert len(z.unique()) == len(z)


@pytest.mark.parametrize(("size", "words"), [(1, 0.5), (2, 1), (3, 2), (4, 2), (5, 4), (8, 4), (9, 8)])
def test_words_are_not_wasted(size: int, words: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Words drawn for a number of a sample at a node: nodes share blocks as far as they fit."""
    drawn: list[int] = []
    run = SeededNormals._run

    def counted(self: SeededNormals, *address: int) -> np.ndarray:
        drawn.append((part := run(self, *address)).size)
        return part

    monkeypatch.setattr(SeededNormals, "_run", counted)
    source = normals(ids=range(10), event=(size,), nodes=80)
    for node in range(80):
        source.normal(node)
    assert sum(drawn) == 10 * 80 * words


def test_what_is_drawn_ahead_is_bounded() -> None:
    """By a number of normals, or by a block of each sample: not by the nodes to come."""
    for rows, most in ((10, 1 << 16), (50_000, 8 * 50_000)):
        source = normals(ids=range(rows), event=(1,), nodes=10**6)
        assert source.normal(0).untyped_storage().nbytes() <= 4 * most


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_no_word_is_too_small_or_too_large(dtype: type) -> None:
    """The ends of the range of 64-bit words give finite numbers, and the smallest uniform the largest normal."""
    halves = [0, 1, 63, 2**24 + 1, 2**31 - 1, 2**31, 2**31 + 1, 2**32 - 64, 2**32 - 1]
    words = np.array([[u + (v << 32)] for u in halves for v in halves], dtype=np.uint64)
    z = _box_muller(words, dtype)
    assert np.isfinite(z).all()
    assert np.abs(z).max() == pytest.approx(math.sqrt(2 * 33 * math.log(2)), rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_precisions_agree(dtype: torch.dtype) -> None:
    z = normals(dtype=dtype, event=(1000,)).normal(0)
    exact = normals(dtype=torch.float64, event=(1000,)).normal(0)
    assert z.dtype == dtype
    assert torch.allclose(z.double(), exact, rtol=4 * torch.finfo(dtype).eps, atol=1e-3)


@given(
    ids=st.lists(st.integers(0, 2**50), min_size=1, max_size=6),
    event=st.sampled_from([(31,), (32,), (2, 17), (3, 8, 8), (45,)]),
    seed=st.integers(0, 2**64 - 1),
    node=st.integers(0, 1000),
    slot=st.one_of(st.integers(0, 5), st.integers(2**61, 2**62)),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_what_a_device_draws_is_what_the_host_draws(ids: list[int], event: tuple[int, ...], seed: int, node: int, slot: int, dtype: torch.dtype) -> None:
    """Its own arithmetic, here on the host: for a node that all rows share, for nodes of their own, and of the rows that are kept."""
    host, there = (normals(seed, ids, event, nodes=node + 3, dtype=dtype) for _ in range(2))
    there._pays = lambda numbers: True  # type: ignore[method-assign]
    limit = {"rtol": 0.0, "atol": 1e-6 if dtype == torch.float32 else 1e-14}
    for k in (node, node + 2, max(0, node - 1)):
        torch.testing.assert_close(there.normal(k, slot), host.normal(k, slot), **limit)
    nodes = np.arange(2 * len(ids)).reshape(2, -1) + node
    torch.testing.assert_close(there.normal_at(nodes, slot), host.normal_at(nodes, slot), **limit)
    kept = torch.arange(len(ids)) % 2 == 0
    torch.testing.assert_close(there.keep(kept).normal(node + 7, slot), host.normal(node + 7, slot)[kept], **limit)


def test_a_device_draws_large_states_itself_and_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    """From a million numbers on, as many nodes at once as make four million, and no more than will be asked for."""
    asked: list[Tensor] = []
    monkeypatch.setattr(SeededNormals, "_sent", lambda self, x: x)
    monkeypatch.setattr(SeededNormals, "_there", lambda self, nodes, slot: (asked.append(nodes), torch.zeros(len(nodes), len(self._ids), *self._event))[1])
    monkeypatch.setattr(torch, "arange", lambda *a, device=None, real=torch.arange: real(*a))
    for rows, event, nodes in ((16, (1, 28, 28), 1000), (64, (3, 64, 64), 1000), (16, (1, 28, 28), 85), (1, (3, 1024, 1024), 4), (16, (1, 28, 28), 80), (2**16, (30,), 1000)):
        normals(ids=range(rows), event=event, nodes=nodes, device="cuda").normal(0)
    assert [len(nodes) for nodes in asked] == [334, 5, 85, 1]  # and the host what is fewer, or of short rows


def test_increment() -> None:
    source = normals()
    assert torch.equal(SeededStep(source, 4).increment(0.5, 0.25), 0.5 * source.normal(4))
    assert torch.equal(SeededStep(source, 4).normal(2), source.normal(4, 2))


def test_the_same_seed_gives_the_same_samples_and_none_gives_fresh_ones() -> None:
    process = sd.VPSDE()

    def draw(**keywords: object) -> sd.Solution:
        return sd.solve(process.reverse(lambda x, t: -x), torch.zeros(3, 2), "euler_maruyama", steps=5, **keywords)

    assert torch.equal(draw(seed=4).x, draw(seed=4).x)
    first, second = draw(), draw()
    assert not torch.equal(first.x, second.x)
    assert torch.equal(draw(seed=first.stats["seed"]).x, first.x)
    made = [draw(generator=torch.Generator().manual_seed(9)).x for _ in range(2)]
    assert torch.equal(*made)


def test_brownian_shapes() -> None:
    """One Brownian motion a sample where the noise is scalar, m where it is a matrix, one a coordinate otherwise."""
    x = torch.zeros(20_000, 2)
    ones = torch.ones(1, 2)
    scalar = sd.solve(sd.SDE(lambda x, t: 0 * x, lambda x, t: ones, noise="scalar"), x, "euler_maruyama", steps=3, seed=0).x
    assert torch.equal(scalar[:, 0], scalar[:, 1])
    diagonal = sd.solve(sd.SDE(lambda x, t: 0 * x, lambda x, t: ones, noise="diagonal"), x, "euler_maruyama", steps=3, seed=0).x
    assert abs(float(torch.corrcoef(diagonal.T)[0, 1])) < 0.03
    matrix = torch.tensor([[1.0, 0.0, 2.0], [0.5, 1.0, 0.0]])

    def diffusion(x: Tensor, t: Tensor) -> Tensor:
        return matrix.expand(len(x), 2, 3)

    general = sd.solve(sd.SDE(lambda x, t: 0 * x, diffusion, noise="general"), x, "euler_maruyama", steps=3, seed=0).x
    assert torch.allclose(torch.cov(general.T), matrix @ matrix.T, atol=0.15)


def test_matrix_noise_on_a_scalar_state() -> None:
    """Event shape (): a row of m Brownian motions for one number."""
    row = torch.tensor([1.0, 2.0, 2.0])
    problem = sd.SDE(lambda x, t: 0 * x, lambda x, t: row.expand(len(x), 3), noise="general")
    x = sd.solve(problem, torch.zeros(20_000), "euler_maruyama", steps=3, seed=0).x
    assert x.shape == (20_000,) and float(x.std()) == pytest.approx(3.0, rel=0.03)


def test_a_step_s_slots_are_independent() -> None:
    step = SeededStep(normals(), 2)
    assert not torch.isclose(step.normal(0), step.normal(1)).any()


class _Asked:
    """The noise of a step that keeps account of what is asked of it; nothing may be asked twice."""

    def __init__(self, source: SeededNormals) -> None:
        self._step, self.slots = SeededStep(source, 3), list[int]()

    def normal(self, slot: int = 0) -> Tensor:
        self.slots.append(slot)
        return self._step.normal(slot)

    def increment(self, t0: float, t1: float) -> Tensor:
        return self.normal() * abs(t1 - t0) ** 0.5

    def levy(self, t0: float, t1: float) -> tuple[Tensor, Tensor]:
        return self.increment(t0, t1), self.normal(LEVY) * abs(t1 - t0) ** 0.5


PREDICTORS = [name for name, facts in sd.methods() if "additive" in facts.kinds and facts.needs <= {"score"} and name not in ("pc", "annealed_langevin")]


@pytest.mark.parametrize("corrector", CORRECTORS)
@pytest.mark.parametrize("predictor", PREDICTORS)
def test_predictor_and_corrector_share_no_numbers(predictor: str, corrector: str) -> None:
    """Three corrector steps after a step of every predictor: each draw of the step has a slot of its own."""
    process = sd.VPSDE()
    stepper = make_method("pc", predictor=predictor, corrector=corrector, corrector_steps=3)
    problem, x = process.reverse(lambda x, t: -x), torch.ones(8, 5)
    noise = _Asked(normals())
    stepper.step(problem, x, 0.02, 0.01, noise, stepper.init(problem, x, 0.02))  # over the lower end of a restart
    assert len(set(noise.slots)) == len(noise.slots) > 1, noise.slots
