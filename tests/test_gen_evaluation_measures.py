"""Measures of sets of features: closed forms, no bias where none is claimed, and standard errors that are the spread."""

from __future__ import annotations

import math

import pytest
import torch

from sdesolve_gen.evaluation.figure import GROUPS, jackknife, of_mean
from sdesolve_gen.evaluation.frechet import Moments, fid, frechet, grouped, together
from sdesolve_gen.evaluation.inception_score import inception_score
from sdesolve_gen.evaluation.kernel import kid
from sdesolve_gen.evaluation.neighbours import density_coverage, precision_recall


def covariance(k, seed):
    a = torch.randn(k, k, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return a @ a.T / k + 0.1 * torch.eye(k, dtype=torch.float64)


def test_frechet_of_gaussians_that_do_not_commute():
    a, b = covariance(5, 0), covariance(5, 1)
    mean = torch.arange(5, dtype=torch.float64)
    cross = torch.linalg.eigvals(a @ b).sqrt().sum().real  # of the product itself, which is not symmetric
    expected = mean.square().sum() + a.trace() + b.trace() - 2 * cross
    assert frechet((mean, a), (torch.zeros_like(mean), b)) == pytest.approx(float(expected), rel=1e-12)
    assert frechet((mean, a), (mean, a)) == pytest.approx(0, abs=1e-12)


def test_frechet_of_singular_covariances():
    """Fewer rows than features: only the shared directions have a root."""
    a, b = (torch.diag(torch.tensor(d, dtype=torch.float64)) for d in ([4.0, 1.0, 0.0], [1.0, 0.0, 9.0]))
    assert frechet((torch.zeros(3), a), (torch.zeros(3), b)) == pytest.approx((2 - 1) ** 2 + 1 + 9)


def test_moments_of_parts_are_those_of_the_whole():
    x = 1e6 + 1e-2 * torch.randn(500, 3, dtype=torch.float64)  # a difference of squares would have no digit left
    parts = together(Moments.of(part) for part in x.split([1, 199, 300]))
    assert parts.n == 500 and torch.allclose(parts.mean, x.mean(0), rtol=1e-14)
    assert torch.allclose(parts.gaussian[1], x.T.cov(), rtol=1e-6)


@pytest.mark.parametrize("arranged", ["class by class", "in turns"])
def test_the_error_of_a_fid_does_not_depend_on_the_order_of_the_rows(arranged):
    """Samples of a class-conditional model come class by class, or in turns of as many as there are classes: ten divides the number of groups."""
    label = torch.arange(1000)
    label = label // 100 if arranged == "class by class" else label % 10
    x = torch.randn(1000, 2) + 3 * torch.randn(10, 2)[label]
    reference = torch.zeros(2, dtype=torch.float64), torch.eye(2, dtype=torch.float64)
    ordered, shuffled = (fid(grouped(rows), reference)["fid"] for rows in (x, x[torch.randperm(1000)]))
    assert len(grouped(x)) == GROUPS and together(grouped(x)).n == 1000
    assert ordered.value == pytest.approx(shuffled.value) and 0.5 < ordered.standard_error / shuffled.standard_error < 2


@pytest.mark.parametrize("shift", [0.0, 0.2])
def test_fid_its_error_and_its_bias(shift):
    """Repeated: the plain distance is too large by several errors, the extrapolated one is right, and both spread by the standard error."""
    k, n, repeats = 6, 300, 80
    exact = torch.full((k,), shift, dtype=torch.float64).square().sum()
    reference = torch.zeros(k, dtype=torch.float64), torch.eye(k, dtype=torch.float64)
    found = [fid(grouped(shift + torch.randn(n, k)), reference) for _ in range(repeats)]
    for name in ("fid", "fid_infinity"):
        values = torch.tensor([f[name].value for f in found], dtype=torch.float64)
        off, spread = float(values.mean() - exact), float(values.std())
        error = spread / math.sqrt(repeats)
        assert (off > 5 * error) if name == "fid" else abs(off) < 3.5 * error
        said = math.sqrt(sum(f[name].standard_error ** 2 for f in found) / repeats)
        assert 0.75 < said / spread < (1.35 if shift else 2.5)  # at the same law the first-order term vanishes, and the error is cautious


def test_fid_infinity_is_left_out_where_the_first_order_is_not_enough():
    """From five samples a feature on what is left of the distance is small beside what was taken off, and within the errors; just below it there is no figure."""
    k = 32
    reference = torch.zeros(k, dtype=torch.float64), torch.eye(k, dtype=torch.float64)
    for n in (k // 2, k + 1, 2 * k, 5 * k - 1):
        assert set(fid(grouped(torch.randn(n, k)), reference)) == {"fid"}
    found = [fid(grouped(torch.randn(5 * k, k)), reference) for _ in range(20)]
    mean, left = (sum(f[name].value for f in found) / 20 for name in ("fid", "fid_infinity"))
    assert mean == pytest.approx(k * (2 - 2 * (1 - 0.2 / 8 - 0.2**2 / 64)) + 0.2, rel=0.1)  # Marchenko and Pastur, to the second order
    assert abs(left) < 0.05 * mean


def test_the_jackknife_knows_a_mean_and_a_square():
    x = torch.randn(20, dtype=torch.float64) + 1
    without = [float(torch.cat([x[:i], x[i + 1 :]]).mean()) for i in range(20)]
    error, bias = jackknife(float(x.mean()), without)
    assert error == pytest.approx(of_mean(x.tolist()).standard_error) and bias == pytest.approx(0, abs=1e-12)
    _, bias = jackknife(float(x.mean()) ** 2, [m**2 for m in without])
    assert bias == pytest.approx(float(x.var()) / 20)


def test_kid_of_gaussians():
    """k = (xy + 1)^3 in one dimension: the MMD is a sum of squared differences of moments."""
    shift, exact = 0.7, 3 * 0.7**2 + 3 * 0.7**4 + (0.7**3 + 3 * 0.7) ** 2
    found = kid(shift + torch.randn(40_000, 1), torch.randn(40_000, 1))
    assert abs(found.value - exact) < 3.5 * found.standard_error < 0.1 * exact


def test_kid_is_unbiased_and_its_error_is_its_spread():
    found = [kid(torch.randn(60, 4), torch.randn(200, 4)) for _ in range(200)]
    values = torch.tensor([f.value for f in found], dtype=torch.float64)
    assert abs(float(values.mean())) < 3.5 * float(values.std()) / math.sqrt(200)
    said = math.sqrt(sum(f.standard_error**2 for f in found) / 200)
    assert 0.75 < said / float(values.std()) < 1.35
    assert found[0].note == "10 blocks of 6"


def test_samples_and_reference_in_any_order_are_seen_whole():
    turns = torch.randn(400, 2) + 3 * (torch.arange(400)[:, None] % 2)
    classes = torch.randn(5000, 2) + 3 * (torch.arange(5000)[:, None] >= 2500)
    found = kid(turns, classes)
    assert abs(found.value) < 4 * found.standard_error < 400  # 1700 between the classes
    assert all(f.value > 0.85 for f in precision_recall(turns, classes).values())
    sure = torch.eye(4).repeat_interleave(100, 0)
    assert inception_score(sure).value == pytest.approx(4, rel=0.05) and inception_score(sure[torch.arange(400) % 4 * 100]).value == pytest.approx(4, rel=0.05)


def test_the_inception_score_is_the_number_of_classes_that_are_told_apart():
    sure = torch.eye(4).repeat_interleave(1000, 0)
    assert inception_score(sure).value == pytest.approx(4, rel=0.01) and inception_score(sure).standard_error < 0.01
    assert inception_score(sure[:1000]).value == pytest.approx(1)  # one class
    assert inception_score(torch.full((40, 4), 0.25)).value == pytest.approx(1)  # never sure
    half = 0.5 * sure + 0.5 * sure.roll(1000, 0)
    assert inception_score(half).value == pytest.approx(2, rel=0.01)


def test_balls_on_a_line():
    real, made = torch.tensor([[0.0], [1.0], [3.0]]), torch.tensor([[-0.5], [1.9], [6.0]])  # radii 1, 1, 2 and 2.4, 2.4, 4.1
    found = {**precision_recall(made, real, k=1), **density_coverage(made, real, k=1)}
    assert {name: f.value for name, f in found.items()} == pytest.approx({"precision": 2 / 3, "recall": 1, "density": 1, "coverage": 1})
    found = {**precision_recall(real, made, k=1), **density_coverage(real, made, k=1)}
    assert {name: f.value for name, f in found.items()} == pytest.approx({"precision": 1, "recall": 2 / 3, "density": 2, "coverage": 1})


def test_what_is_made_twice_and_what_is_missed():
    real, made = torch.tensor([[0.0], [0.2], [0.4], [-7.0], [-8.0]]), torch.tensor([[0.1], [0.3], [0.5], [0.55], [0.9]])  # radii .2 .2 .2 1 1, .2 .2 .05 .05 .35
    found = precision_recall(made, real, k=1)
    assert (found["precision"].value, found["recall"].value) == pytest.approx((4 / 5, 3 / 5))
    assert found["precision"].standard_error == pytest.approx(math.sqrt(0.8 * 0.2 / 5))


def test_equal_sets_and_disjoint_ones():
    x = torch.randn(300, 5)
    assert {f.value for f in precision_recall(x, x.flip(0)).values()} == {1.0}
    assert {f.value for f in {**precision_recall(x, x + 100), **density_coverage(x, x + 100)}.values()} == {0.0}


def test_density_and_coverage_of_one_law():
    """Both have a known mean there: 1, and 1 - 2^-k nearly.  [Naeem et al. 2020, lemmas 1 and 2]"""
    found = density_coverage(torch.randn(2000, 3), torch.randn(3000, 3))
    assert found["density"].value == pytest.approx(1, abs=4 * found["density"].standard_error)
    assert found["coverage"].value == pytest.approx(1 - 2**-5, abs=4 * found["coverage"].standard_error)
    assert found["coverage"].note == "k = 5, 2000 images of each"
