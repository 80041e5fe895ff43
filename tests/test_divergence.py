"""Divergences: right for every shape, unbiased where they are estimated, and of the variance that is written down."""

from __future__ import annotations

import math
import re

import pytest
import torch
from torch import Tensor

import sdesolve as sd
from sdesolve import _tally
from sdesolve.divergence import METHODS, Hutchinson
from sdesolve.scores import PARAMETERISATIONS

EVENTS = [(3,), (1, 7, 5), (3, 8, 8), (2, 3, 4, 4)]


class Mixing:
    """tanh(W x) t, whose Jacobian is neither diagonal nor symmetric, and is known."""

    def __init__(self, event: tuple[int, ...]) -> None:
        self.size = math.prod(event)
        self.weights = torch.randn(self.size, self.size, dtype=torch.float64) / math.sqrt(self.size)

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        return torch.tanh(x.flatten(1) @ self.weights.T.to(x.dtype)).reshape(x.shape) * sd.expand_time(t, x)

    def jacobian(self, x: Tensor, t: Tensor) -> Tensor:
        """(B, d, d)."""
        slope = 1 - torch.tanh(x.flatten(1) @ self.weights.T).square()
        return slope[:, :, None] * self.weights * t.reshape(-1, 1, 1)


@pytest.fixture(params=EVENTS, ids=str)
def case(request: pytest.FixtureRequest) -> tuple[Mixing, Tensor, Tensor, Tensor]:
    """A field, 4 states and times, and the Jacobians there."""
    field = Mixing(request.param)
    x, t = torch.randn(4, *request.param, dtype=torch.float64), torch.rand(4, dtype=torch.float64)
    return field, x, t, field.jacobian(x, t)


def trace(jacobian: Tensor) -> Tensor:
    return jacobian.diagonal(dim1=1, dim2=2).sum(1)


def test_exact(case: tuple[Mixing, Tensor, Tensor, Tensor]) -> None:
    field, x, t, jacobian = case
    value, found = sd.value_and_divergence(field, x, t)
    assert torch.equal(value, field(x, t))
    assert torch.allclose(found, trace(jacobian), rtol=1e-12)
    assert torch.allclose(sd.divergence(field, x, 0.5), 0.5 * trace(jacobian) / t)
    single = sd.divergence(field, x.float(), t)
    assert single.dtype == torch.float64 and torch.allclose(single, trace(jacobian), atol=1e-5)


@pytest.mark.parametrize("noise", ["rademacher", "gaussian"])
def test_hutchinson_is_unbiased_with_the_variance_written_down(noise: str) -> None:
    """2000 independent probes: mean within 4 standard errors, variance within 15 % (its standard error is about 3 %)."""
    field = Mixing((12,))
    x, t = torch.randn(1, 12, dtype=torch.float64).expand(2000, 12), torch.ones(2000, dtype=torch.float64)
    j = field.jacobian(x[:1], t[:1])[0]
    symmetric = (j + j.T).square() / 2
    variance = float(symmetric.sum() - (symmetric.diag().sum() if noise == "rademacher" else 0))
    found = sd.divergence(field, x, t, "hutchinson", noise=noise, seed=0)
    assert abs(float(found.mean() - j.trace())) < 4 * math.sqrt(variance / 2000)
    assert float(found.var()) == pytest.approx(variance, rel=0.15)
    eight = sd.divergence(field, x, t, "hutchinson", probes=8, noise=noise, seed=1)
    assert float(eight.var()) == pytest.approx(variance / 8, rel=0.15)


def test_signs_do_not_see_the_linear_part_and_do_not_care_for_their_own() -> None:
    """Why Rademacher probes: what is a multiple of x in a drift costs them nothing, and an antithetic pair is one probe twice."""
    field, x, t = Mixing((12,)), torch.randn(500, 12, dtype=torch.float64), torch.ones(500, dtype=torch.float64)
    shifted = lambda y, s: field(y, s) - 7 * y  # noqa: E731
    signs = torch.randn(500, 12, dtype=torch.float64).sign()
    plain = sd.divergence(field, x, t, "hutchinson", noise=signs)
    assert torch.allclose(sd.divergence(shifted, x, t, "hutchinson", noise=signs), plain - 7 * 12)
    assert torch.equal(sd.divergence(field, x, t, "hutchinson", noise=-signs), plain)
    normals = torch.randn(500, 12, dtype=torch.float64)
    error = lambda f, shift: (sd.divergence(f, x, t, "hutchinson", noise=normals) - sd.divergence(f, x, t)).var()  # noqa: E731
    assert float(error(shifted, -7) / error(field, 0)) > 20


def test_hutch_plus_plus() -> None:
    """Unbiased; exact where the field has fewer directions than it finds; better than Hutchinson where a few directions carry most."""
    left = torch.linalg.qr(torch.randn(40, 40, dtype=torch.float64))[0]
    sizes = torch.tensor([10.0, 8.0, 6.0] + [0.05] * 37, dtype=torch.float64)
    matrix = left @ sizes.diag() @ left.T
    x = torch.zeros(400, 40, dtype=torch.float64)
    field = lambda y, t: y @ matrix.T  # noqa: E731
    found = sd.divergence(field, x, 0.0, "hutch++", probes=12, seed=0)
    assert abs(float(found.mean() - sizes.sum())) < 4 * float(found.std()) / 20
    assert float(found.std()) < 0.1 * float(sd.divergence(field, x, 0.0, "hutchinson", probes=12, seed=0).std())
    low = left[:, :3] @ sizes[:3].diag() @ left[:, :3].T
    assert torch.allclose(sd.divergence(lambda y, t: y @ low.T, x[:5], 0.0, "hutch++", probes=12, seed=0), sizes[:3].sum())


@pytest.mark.parametrize(("method", "pullbacks"), [("exact", 12), ("hutchinson", 6), ("hutch++", 6)])
def test_one_evaluation_whatever_the_method(method: str, pullbacks: int) -> None:
    stats: dict[str, int] = {}
    with _tally.added_to(stats):
        sd.value_and_divergence(Mixing((12,)), torch.randn(3, 12, dtype=torch.float64), 0.5, method, **({} if method == "exact" else {"probes": 6}))
    assert (stats["calls"], stats["vjps"]) == (1, pullbacks)


@pytest.mark.parametrize("method", METHODS)
def test_a_row_is_the_same_in_every_batch(method: str) -> None:
    field, x = lambda y, t: torch.sin(y) * y.flip(1), torch.randn(7, 6)
    options = {} if method == "exact" else {"probes": 4, "seed": 3}
    whole = sd.divergence(field, x, 0.5, method, **options)
    some = torch.tensor([5, 2])
    assert torch.allclose(sd.divergence(field, x[some], 0.5, method, **options, **({"sample_ids": some} if options else {})), whole[some])


def test_a_field_without_a_batching_rule_is_pulled_back_one_by_one() -> None:
    """A channels-last convolution cannot be pulled back in many directions at once."""
    conv = torch.nn.Conv2d(2, 2, 3, padding=1).double().requires_grad_(False)
    field = lambda x, t: conv(x.contiguous(memory_format=torch.channels_last)).contiguous()  # noqa: E731
    x = torch.randn(3, 2, 4, 4, dtype=torch.float64)
    middle = conv.weight[:, :, 1, 1].diagonal().sum() * 16
    assert torch.allclose(sd.divergence(field, x, 0.0), middle.expand(3))


def test_a_field_that_does_not_depend_on_x() -> None:
    x = torch.randn(3, 5)
    for method in METHODS:
        assert torch.equal(sd.divergence(lambda y, t: torch.ones_like(y), x, 0.0, method, probes=1 if method == "exact" else 4), torch.zeros(3, dtype=torch.float64))


def test_a_single_probe_knows_its_own_spread() -> None:
    """Of signs the root mean square over probes is the true deviation where the diagonal is constant, and above it elsewhere."""
    x = torch.zeros(4000, 10, dtype=torch.float64)
    matrix = torch.randn(10, 10, dtype=torch.float64)
    matrix = matrix + matrix.T
    for diagonal, expected in ((torch.full((10,), 2.0), 1.0), (torch.arange(10.0) - 5, None)):
        m = 0.5 * (matrix - matrix.diag().diag()) + diagonal.double().diag()
        signs = torch.randn(1, 4000, 10, dtype=torch.float64).sign()
        found = Hutchinson(signs)(lambda y, m=m: y @ m.T, x)
        assert found.spread is not None
        ratio = float((found.spread.square().mean() / found.parts[0].var()).sqrt())
        assert ratio == pytest.approx(1.0, rel=0.08) if expected else ratio > 1.1


def test_every_parameterisation_s_score_can_be_asked() -> None:
    p = sd.VPSDE()
    target = sd.exam.Gaussian(torch.zeros(6), std=torch.linspace(0.2, 1.0, 6))
    x = torch.randn(4, 6, dtype=torch.float64)
    expected = sd.divergence(target.score(p), x, 0.3)
    alpha, sigma = float(p.alpha(0.3)), float(p.sigma(0.3))
    assert torch.allclose(expected, -(1 / (alpha**2 * target.variance + sigma**2)).sum().expand(4))
    for predicts in PARAMETERISATIONS:
        score = sd.as_score(sd.exam.as_model(target, p, predicts=predicts), p, predicts=predicts)
        assert torch.allclose(sd.divergence(score, x, 0.3), expected), predicts


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "hutchison"}, "Did you mean 'hutchinson'"),
        ({"method": "hutchinson", "probes": 0}, "probes=0; expected an integer >= 1"),
        ({"method": "hutch++", "probes": 3}, "probes=3; expected an integer >= 4"),
        ({"probes": 4}, "'exact' takes none"),
        ({"method": "hutchinson", "noise": "normal"}, "'normal' is not known as noise"),
        ({"method": "hutchinson", "noise": torch.ones(2, 2)}, "noise has shape (2, 2)"),
        ({"method": "hutchinson", "noise": torch.full((3, 2), math.nan)}, "expected finite numbers"),
        ({"method": "hutchinson", "seed": -1}, "seed=-1"),
        ({"x": torch.ones(3, 2, dtype=torch.int64)}, "floating dtype"),
        ({"f": lambda x, t: x[:, :1]}, "returned (3, 1)"),
    ],
)
def test_bad_input(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        sd.divergence(**{"f": lambda x, t: x, "x": torch.ones(3, 2), "t": 0.5, **arguments})


def cut(make) -> dict[str, object]:
    """Fields that depend on x and keep no graph of it."""

    @torch.no_grad()
    def decorated(x: Tensor, t: Tensor) -> Tensor:
        return make(x)

    @torch.inference_mode()
    def inference(x: Tensor, t: Tensor) -> Tensor:
        return make(x)

    weights = torch.ones((), requires_grad=True)
    return {"no_grad": decorated, "inference": inference, "detached": lambda x, t: make(x.detach()), "weights alone": lambda x, t: weights * make(x.detach())}


@pytest.mark.parametrize("how", ["no_grad", "inference", "detached", "weights alone"])
@pytest.mark.parametrize("method", METHODS)
def test_a_field_without_autograd_is_not_taken_for_a_constant(how: str, method: str) -> None:
    options = {} if method == "exact" else {"probes": 6, "seed": 0}
    with pytest.raises(ValueError, match=r"autograd was cut off.*expected one without, or with torch.inference_mode\(False\), torch.enable_grad\(\):"):
        sd.divergence(cut(torch.sin)[how], torch.rand(3, 4), 0.5, method, **options)
    broken = torch.tensor([[torch.nan, 1.0], [1.0, 2.0]])
    assert torch.equal(sd.divergence(cut(lambda x: torch.where(x.isnan(), x, 3.0))[how], broken, 0.5), torch.zeros(2)), "a constant"


def test_inference_mode_changes_no_divergence() -> None:
    field, x, t = Mixing((4,)), torch.randn(3, 4, dtype=torch.float64), torch.full((3,), 0.3)
    expected = sd.divergence(field, x, t)
    with torch.inference_mode():
        found = sd.divergence(field, x + 0, t + 0)
        other = Mixing((4,))
        with pytest.raises(ValueError, match=r"made in torch\.inference_mode.*a model that is made outside of it"):
            sd.divergence(other, x, 0.3)
    assert torch.equal(found, expected) and float(expected.abs().min()) > 0
