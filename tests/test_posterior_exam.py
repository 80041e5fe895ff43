"""The posterior exam: its answers are right, it passes who draws from the posterior, and it fails who does not."""

import math

import pytest
import torch
from torch import Tensor

from sdesolve import exam

PRIOR = exam.Gaussian([0.5, -0.3, 0.2], cov=[[1.0, 0.4, 0.1], [0.4, 0.6, -0.2], [0.1, -0.2, 0.5]])
MASK = torch.tensor([[1.0, 0.0, 0.0]])
TALL = torch.tensor([[1.0, 0.5, 0.0], [0.0, 1.0, -0.5], [0.3, 0.0, 1.0], [1.0, 1.0, 1.0]])


def truth(question: exam.Question) -> torch.Tensor:
    """Independent draws from the posterior itself."""
    given = [exam.posterior(question.law, question.matrix, y, question.noise_std) for y in question.y]
    return torch.stack([law.sample(question.draws, seed=7919 * question.seed + i, dtype=torch.float64) for i, law in enumerate(given)])


def too_sure(question: exam.Question) -> torch.Tensor:
    """The posterior's mean, and two thirds of its spread."""
    x = truth(question)
    return x.mean(1, keepdim=True) + (x - x.mean(1, keepdim=True)) / 1.5


def prior_instead(question: exam.Question) -> torch.Tensor:
    return question.law.sample(len(question.y) * question.draws, seed=5, dtype=torch.float64).reshape(len(question.y), question.draws, -1)


@pytest.mark.parametrize("law", [PRIOR, exam.mixture_2d()])
@pytest.mark.parametrize("noise_std", [0.2, 1.0])
def test_the_posterior_is_prior_times_likelihood_over_evidence(law: exam.Gaussian | exam.Mixture, noise_std: float) -> None:
    d = law.event[0]
    matrix = TALL[:, :d]
    y = torch.tensor([0.3, -0.2, 0.5, 0.1], dtype=torch.float64)
    x = law.sample(50, seed=1, dtype=torch.float64)
    residual = (y - x @ matrix.double().T) / noise_std
    likelihood = -0.5 * residual.square().sum(1) - len(y) * math.log(noise_std * math.sqrt(2 * math.pi))
    found = exam.posterior(law, matrix, y, noise_std).log_prob(x)
    torch.testing.assert_close(found, law.log_prob(x) + likelihood - exam.log_evidence(law, matrix, y, noise_std), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("law", [PRIOR, exam.mixture_2d()])
@pytest.mark.parametrize("matrix", [MASK, TALL])
def test_who_draws_from_the_posterior_passes(law: exam.Gaussian | exam.Mixture, matrix: torch.Tensor) -> None:
    mark = exam.posterior_exam(truth, law, matrix[:, : law.event[0]], 0.3)
    assert mark.mean_error < 4 * mark.floor[0] and mark.covariance_error < 4 * mark.floor[1]
    assert abs(mark.coverage - 0.9) < 0.01 and abs(mark.residual - 1) < 0.02 and abs(mark.noise - 1) < 0.01
    assert mark.rank_p > 0.01


def test_who_is_too_sure_fails() -> None:
    mark = exam.posterior_exam(too_sure, PRIOR, MASK, 0.3)
    assert mark.covariance_error > 0.4 and mark.coverage > 0.95 and mark.rank_p < 1e-4 and mark.residual < 0.99
    assert mark.mean_error < 4 * mark.floor[0]


def test_who_answers_with_the_prior_fails() -> None:
    """By its ranks as well: along directions of x those of the prior are uniform, and only functions of y notice."""
    mark = exam.posterior_exam(prior_instead, PRIOR, TALL, 0.3)
    assert mark.rank_p < 1e-6
    assert mark.mean_error > 0.3 and mark.covariance_error > 0.5 and mark.residual > 1.5 and mark.noise > 1.5


@pytest.mark.parametrize("wide", [0.8, 1.25])
@pytest.mark.parametrize("matrix", [MASK, TALL])
def test_ranks_notice_a_spread_that_is_off_by_a_quarter(wide: float, matrix: Tensor) -> None:
    """Along one direction a problem p is 0.16, 0.11, 3e-5 and 0.01 for these."""

    def answer(question: exam.Question) -> Tensor:
        x = truth(question)
        return x.mean(1, keepdim=True) + wide * (x - x.mean(1, keepdim=True))

    assert exam.posterior_exam(answer, PRIOR, matrix, 0.3, draws=100).rank_p < 1e-3


def test_the_noise_of_an_answer_is_its_own() -> None:
    """Draws moved along A until y - A x is 0.9 of what it was."""

    def nearer(question: exam.Question) -> torch.Tensor:
        x = truth(question)
        return x + 0.1 * (question.y[:, None] - x @ question.matrix.T) @ question.matrix

    assert exam.posterior_exam(nearer, PRIOR, MASK, 0.3, draws=1000, problems=400).noise == pytest.approx(0.9, abs=0.01)


def test_without_problems_there_are_no_ranks() -> None:
    mark = exam.posterior_exam(truth, PRIOR, MASK, 0.3, draws=100, problems=0)
    assert math.isnan(mark.noise) and math.isnan(mark.rank_p)


def test_measurements_are_a_function_of_seed_and_row() -> None:
    x = PRIOR.sample(4, seed=0)
    y = exam.measure(x, MASK, 0.5, seed=3)
    assert torch.equal(y[:2], exam.measure(x[:2], MASK, 0.5, seed=3)) and not torch.equal(y, exam.measure(x, MASK, 0.5, seed=4))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((PRIOR, torch.eye(2), 0.1), r"matrix has shape \(2, 2\).*expected \(m, 3\)"),
        ((PRIOR, MASK, -0.1), "noise_std=-0.1; expected a finite number >= 0"),
        ((PRIOR, torch.ones(2, 3), 0.0), "noise_std=0.0 leaves measurements without a density"),
        ((exam.Gaussian([0.0, 0.0, 0.0], std=1.0), torch.eye(3), 0.0), "the posterior has no spread"),
        ((PRIOR, MASK * math.nan, 0.3), "matrix is not finite"),
        ((PRIOR, 0 * MASK, 0.0), "noise_std=0.0 leaves measurements without a density; expected noise, or a matrix whose rows the prior tells apart"),
        ((PRIOR, torch.eye(3), 0.0), "the posterior has no spread, .*expected noise_std > 0 or fewer measurements than unknowns"),
        ((exam.Gaussian([0.0, 0.0, 0.0], std=0.0), MASK, 0.3), "the posterior has no spread, .* and a prior that has some"),
        ((exam.Mixture([0.5, 0.5], [exam.Gaussian([0.0, 1.0], std=[0.0, 1.0])] * 2), MASK[:, :2], 0.3), "a component of the prior is flat"),
    ],
)
def test_bad_questions_are_refused(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        exam.posterior_exam(truth, *arguments)


@pytest.mark.parametrize(("answer", "message"), [(torch.zeros(1, 5, 3), r"returned \(1, 5, 3\); expected \(1, 20000, 3\)"), (torch.full((1, 20000, 3), math.nan), "not finite")])
def test_bad_answers_are_refused(answer: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        exam.posterior_exam(lambda question: answer, PRIOR, MASK, 0.3)


FLAT = {"plane": exam.Gaussian([1.0, 0.0, 0.5], cov=[[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 0.5]]), "axes": exam.Gaussian([1.0, 0.0, 0.5], std=[1.0, 0.0, 0.5])}
DEGENERATE = {"nothing measured": (PRIOR, 0.0 * MASK), "a flat prior": (FLAT["plane"], MASK), "a flat direction measured": (FLAT["axes"], torch.tensor([[0.0, 1.0, 0.0]]))}


@pytest.mark.parametrize(("law", "matrix"), DEGENERATE.values(), ids=DEGENERATE)
def test_degenerate_problems_are_marked_as_others_are(law: exam.Gaussian, matrix: torch.Tensor) -> None:
    """Of an operator that sees nothing, and a prior without a density: the posterior passes, two thirds of its spread do not."""
    right, wrong = exam.posterior_exam(truth, law, matrix, 0.3), exam.posterior_exam(too_sure, law, matrix, 0.3)
    assert right.mean_error < 4 * right.floor[0] and right.covariance_error < 4 * right.floor[1] and right.rank_p > 0.01
    assert abs(right.coverage - 0.9) < 0.015 and abs(right.noise - 1) < 0.01
    assert wrong.covariance_error > 0.4 and wrong.coverage > 0.95 and wrong.rank_p < 1e-4


def test_a_measurement_without_noise_leaves_the_null_space() -> None:
    """Errors are those of what y leaves open: the posterior passes, one that is twice as wide there does not, and what y says is to be kept."""
    law, matrix = exam.Gaussian([0.5, -0.3, 0.2], cov=[[1.0, 0.5, 0.2], [0.5, 0.8, 0.3], [0.2, 0.3, 0.6]]), [[1.0, 0.0, 0.0]]

    def answer(q: exam.Question, wide: float = 1.0, off: float = 0.0) -> Tensor:
        laws = [exam.posterior(q.law, q.matrix, y, 0.0) for y in q.y]
        x = torch.stack([p.mean + wide * (p.sample(q.draws, seed=q.seed, dtype=torch.float64) - p.mean) for p in laws])
        return x + off * torch.tensor([1.0, 0.0, 0.0])

    right = exam.posterior_exam(answer, law, matrix, 0.0, draws=4000, problems=0)
    assert right.mean_error < 0.05 and right.covariance_error < 0.1 and abs(right.coverage - 0.9) < 0.01 and right.residual < 1e-6
    assert exam.posterior_exam(lambda q: answer(q, wide=2.0), law, matrix, 0.0, draws=4000, problems=0).covariance_error > 2.5
    assert math.isclose(exam.posterior_exam(lambda q: answer(q, off=0.1), law, matrix, 0.0, draws=4000, problems=0).residual, 0.1, rel_tol=1e-3)
