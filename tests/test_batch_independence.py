"""Nothing couples samples: sample i is the same in any batch, and a bad neighbour changes nothing."""

from __future__ import annotations

import pytest
import torch
from problems import GaussianTarget, solvable
from torch import Tensor

import sdesolve as sd
from sdesolve.correctors import Langevin
from sdesolve.methods import METHODS

PROCESS = sd.VPSDE()
EVENT = (2, 5)
ADAPTIVE = [name for name, make in METHODS.items() if make().error_order is not None]
FORMS = [(name, "fixed") for name in METHODS] + [(name, "adaptive") for name in ADAPTIVE]


def sampled(method: str, form: str, ids: Tensor, x: Tensor) -> sd.Solution:
    tolerance = 0.03 if METHODS[method]().facts.kinds else 1e-3
    how = {"steps": 12} if form == "fixed" else {"rtol": tolerance, "atol": tolerance}
    return sd.solve(solvable(method, GaussianTarget(PROCESS).score), x, method, seed=3, sample_ids=ids, **how)


@pytest.mark.parametrize(("method", "form"), FORMS)
def test_sample_is_the_same_in_every_batch(method: str, form: str) -> None:
    ids = torch.arange(1000)
    whole = PROCESS.prior((1000, *EVENT), seed=3)
    everything = sampled(method, form, ids, whole)
    shuffled = torch.randperm(1000, generator=torch.Generator().manual_seed(0))
    batches = [ids[5:6], ids[10:12], ids[100:107], ids[64:128], shuffled, shuffled[:64], *ids.split(333)]
    for batch in batches:
        x = PROCESS.prior((len(batch), *EVENT), seed=3, sample_ids=batch)
        assert torch.equal(x, whole[batch])
        alone = sampled(method, form, batch, x)
        assert torch.equal(alone.x, everything.x[batch])
        if isinstance(alone.nfe, Tensor):
            assert torch.equal(alone.nfe, everything.nfe[batch])


@pytest.mark.parametrize("event", [(), (1,), (2,), (3,), (20,), (40,)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sample_is_the_same_whatever_is_drawn_at_once(event: tuple[int, ...], dtype: torch.dtype) -> None:
    """Small states share blocks between nodes, few rows draw many nodes ahead, and many rows one block."""
    problem = PROCESS.reverse(lambda x, t: -x)
    x = PROCESS.prior((10_001, *event), seed=3, dtype=dtype)
    whole = sd.solve(problem, x, "euler_maruyama", steps=21, seed=3).x
    for ids in (torch.tensor([10_000]), torch.tensor([7, 3, 9_998]), torch.arange(13, 13 + 1000)):
        alone = sd.solve(problem, PROCESS.prior((len(ids), *event), seed=3, dtype=dtype, sample_ids=ids), "euler_maruyama", steps=21, seed=3, sample_ids=ids)
        assert torch.equal(alone.x, whole[ids])


@pytest.mark.parametrize(("method", "form"), FORMS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_one_bad_sample_leaves_the_others_alone(method: str, form: str, bad: float) -> None:
    ids, x = torch.arange(64), PROCESS.prior((64, *EVENT), seed=3)
    clean = sampled(method, form, ids, x)
    spoilt = x.clone()
    spoilt[17, 1, 2] = bad
    with pytest.warns(sd.SolveWarning, match="sample 17: non_finite at t = 1"):
        hurt = sampled(method, form, ids, spoilt)
    others = ids != 17
    assert torch.equal(hurt.x[others], clean.x[others])
    assert hurt.ok().tolist() == others.tolist()
    assert hurt.failures() == [(17, "non_finite", 1.0)]


def test_a_sample_that_breaks_on_the_way_is_reported_with_its_time() -> None:
    problem = sd.ODE(lambda x, t: torch.where((x > 1.5) & (t > 0.5), torch.nan, 1.0), interval=(0.0, 1.0))
    with pytest.warns(sd.SolveWarning, match="1 of 2 samples did not arrive"):
        solution = sd.solve(problem, torch.tensor([[0.0], [1.2]]), "euler", steps=100)
    ((index, status, t),) = solution.failures()
    assert (index, status) == (1, "non_finite")
    assert t == pytest.approx(0.52, abs=0.011)  # the slope turns NaN at the first node after t = 0.5, and the state one step later


@pytest.mark.parametrize("rows", [12, 20_000])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_every_row_is_reported_with_its_own_time(rows: int, dtype: torch.dtype) -> None:
    """However many nodes are looked at at once, and however large a finite row: row i breaks in step i, and those beyond the last step not at all."""
    breaks, large = torch.arange(rows), 0.9 * torch.finfo(dtype).max

    def drift(x: Tensor, t: Tensor) -> Tensor:
        return torch.where((round(10 * float(t)) == breaks)[:, None], torch.inf, 0.0).to(x) + 0 * x

    with pytest.warns(sd.SolveWarning):
        solution = sd.solve(sd.ODE(drift), torch.full((rows, 2), large, dtype=dtype), "euler", steps=10)
    assert [i for i, _, _ in solution.failures()] == list(range(10))
    assert solution.failed_at[:10].tolist() == pytest.approx([(i + 1) / 10 for i in range(10)], abs=1e-12)


def test_published_norm_couples_the_batch() -> None:
    """norm="batch" reproduces the published rule, with the coupling that makes it an option and not the default."""
    x = PROCESS.prior((8, 4), seed=0)
    problem = PROCESS.reverse(GaussianTarget(PROCESS).score)
    both = [sd.solve(problem, x[:n], "pc", steps=10, seed=0, norm="batch").x[:4] for n in (8, 4)]
    assert not torch.allclose(*both, rtol=1e-4)
    t, z = 0.5, torch.ones(8, 4)
    score = problem.score(x, t)
    betas = torch.linspace(0.1 / 1000, 20 / 1000, 1000, dtype=torch.float64)  # of the published code; t = 0.5 is between its levels 499 and 500
    e = 2 * (1 - betas[499:501].mean()) * (0.16 * z.norm(dim=1).mean() / score.norm(dim=1).mean()) ** 2
    assert torch.allclose(Langevin(0.16, norm="batch").correct(problem, x, t, 1, lambda k, part: z, None)[0], x + e * score + (2 * e).sqrt() * z)
