"""Projection: the published updates, the law of what is put back, and what the samples are worth as a posterior."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from inverse_problems import EVERY_OTHER, NOISY_EVERY_OTHER, NOISY_PAIR, PAIR, Dense, ZeroOne
from problems import PROCESSES, GaussianTarget
from test_no_sync import NoReads
from torch import Tensor

import sdesolve as sd
from sdesolve.methods import METHODS, make_method
from sdesolve.noise import CONSTRAINT, SeededNormals, SeededStep
from sdesolve_gen.conditioning import CONDITIONINGS, Measurement, Operator, operators, projection

VE, VP = sd.VESDE(0.01, 20.0), sd.VPSDE()
MASK = (torch.arange(16).reshape(1, 4, 4) % 3 != 0).float()
SAMPLERS = [name for name, make in METHODS.items() if name != "rodas5p" and (make().facts.ode or make().facts.kinds >= {"additive"}) and "langevin" not in make().facts.needs]
DECOUPLING = torch.tensor([[3**-0.5, -((2 / 3) ** 0.5), 0.0], [3**-0.5, 6**-0.5, 2**-0.5], [3**-0.5, 6**-0.5, -(2**-0.5)]])


class Gray(Operator):
    """(r + g + b)/sqrt(3), times ``scale``."""

    measured, event = (1, 4, 4), (3, 4, 4)

    def __init__(self, scale: float = 1.0) -> None:
        self.weight = scale / 3**0.5

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x.sum(1, keepdim=True)

    def adjoint(self, y: Tensor) -> Tensor:
        return self.weight * y.expand(-1, 3, -1, -1)


def blank(process: sd.Process) -> sd.Score:
    return sd.as_score(GaussianTarget(process).score, process, predicts="score")


# -- what is published -----------------------------------------------------------------------------------------------------


def published_inpainting(process: sd.Process, data: Tensor, mask: Tensor, x: Tensor, t: float, z: Tensor) -> tuple[Tensor, Tensor]:
    """x and "x_mean" after the update of the published inpainter; the second is made from the x that has its noise already."""
    mean, std = process.alpha(t).float() * data, process.sigma(t).float()
    x = x * (1 - mask) + (mean + std * z) * mask
    return x, x * (1 - mask) + mean * mask


def published_colorization(process: sd.Process, gray: Tensor, x: Tensor, t: float, z: Tensor) -> Tensor:
    """The update of the published colorizer, in the coordinates of the matrix whose first column is (1, 1, 1)/sqrt(3)."""
    decouple, couple = (lambda v, m=m: torch.einsum("bihw,ij->bjhw", v, m) for m in (DECOUPLING, torch.linalg.inv(DECOUPLING)))
    mask = torch.tensor([1.0, 0.0, 0.0])[:, None, None]
    return couple(published_inpainting(process, decouple(gray), mask, decouple(x), t, z)[0])


@pytest.mark.parametrize("process", [VP, VE], ids=["VP", "VE"])
@pytest.mark.parametrize("task", ["inpainting", "colorization"])
def test_the_published_tasks_step_by_step(task: str, process: sd.Process) -> None:
    """A predictor-corrector walk of 10 steps, each move followed by the published update at the time that it has reached."""
    data = torch.rand(3, 1, 4, 4)
    if task == "inpainting":
        held = projection(blank(process), Measurement(ZeroOne(MASK), data * MASK))
        x = process.prior((3, 1, 4, 4), seed=0)
    else:
        data, x = data.expand(-1, 3, -1, -1), process.prior((3, 3, 4, 4), seed=0)
        held = projection(blank(process), Measurement(Gray(), Gray().forward(data)))

    def published(x: Tensor, t: float, z: Tensor) -> Tensor:
        if task == "inpainting":
            return published_inpainting(process, data, MASK, x, t, z)[0]
        return published_colorization(process, data, x, t, torch.einsum("bihw,ij->bjhw", z, DECOUPLING))  # the noise, in its coordinates

    problem = process.reverse(held.score)
    ours = sd.solve(problem, x, "pc", steps=10, seed=0, constraint=held.constraint, save="all")
    assert ours.xs is not None
    stepper, (t, *times) = make_method("pc"), ours.ts.tolist()  # type: ignore[union-attr]
    source = SeededNormals(0, range(3), x.shape[1:], dtype=x.dtype, device=x.device, nodes=10)
    for node, after in enumerate(times):
        noise = SeededStep(source, node)
        x = stepper.predictor.step(problem, x, t, after, noise, None).x  # type: ignore[attr-defined]
        x = published(x, after, source.normal(node, CONSTRAINT))
        x, _ = stepper.corrector.correct(problem, x, after, 1, lambda k, part, noise=noise: noise.normal(1 + k), None)  # type: ignore[attr-defined]
        x = published(x, after, source.normal(node, CONSTRAINT + 1))
        assert torch.allclose(ours.xs[node + 1], x, rtol=1e-4, atol=1e-4 * float(process.prior_std))
        t = after


@pytest.mark.parametrize("process", [VP, VE], ids=["VP", "VE"])
def test_the_published_colorizer(process: sd.Process) -> None:
    """Given the same noise: what is drawn along gray there is A z here."""
    gray, x, z = torch.rand(3, 1, 4, 4).expand(-1, 3, -1, -1), process.prior((3, 3, 4, 4), seed=0), torch.randn(3, 3, 4, 4)
    held = projection(blank(process), Measurement(Gray(), Gray().forward(gray))).constraint
    for t in (1.0, 0.5, 0.01):
        coupled = torch.einsum("bihw,ij->bjhw", z, DECOUPLING.T)
        assert torch.allclose(held(x, t, coupled), published_colorization(process, gray, x, t, z), atol=2e-5 * float(process.prior_std))  # type: ignore[misc]


def test_the_published_denoise_flag_does_nothing() -> None:
    """Where nothing is known; ours is Tweedie's formula there, and the measurement elsewhere."""
    data, x = torch.rand(3, 1, 4, 4), torch.randn(3, 1, 4, 4)
    noisy, mean = published_inpainting(VP, data, MASK, x, 1e-3, torch.randn(3, 1, 4, 4))
    assert torch.equal(noisy * (1 - MASK), mean * (1 - MASK))
    held = projection(blank(VP), Measurement(ZeroOne(MASK), data * MASK))
    start = VP.prior((3, 1, 4, 4), seed=0)
    last, denoised = (sd.solve(VP.reverse(held.score), start, "pc", steps=20, seed=0, constraint=held.constraint, denoise=flag).x for flag in (False, True))
    expected = MASK * data + (1 - MASK) * held.score.denoise(last, VP.eps)
    assert torch.allclose(denoised, expected, atol=1e-6) and not torch.allclose(denoised * (1 - MASK), last * (1 - MASK), atol=1e-4)


# -- the law of what is put back -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1.0, 0.4])
@pytest.mark.parametrize("noise_std", [0.0, 0.3])
def test_what_is_put_back_has_the_law_of_x_t(scale: float, noise_std: float) -> None:
    """Over the noise of y and the fresh noise, A x_t is N(alpha A x_0, c sigma^2) as long as that is less noisy than y; the rest of x stays."""
    n, t = 20_000, 0.6
    x0, operator = torch.randn(1, 3, 4, 4), Gray(scale)
    y = operator.forward(x0) + noise_std * scale * torch.randn(n, 1, 4, 4)
    held = projection(blank(VP), Measurement(operator, y, noise_std * scale)).constraint
    x = torch.randn(n, 3, 4, 4)
    after = held(x, t, torch.randn(n, 3, 4, 4))  # type: ignore[misc]
    away = (operator.forward(after) - float(VP.alpha(t)) * operator.forward(x0)) / (scale * float(VP.sigma(t)))
    assert abs(float(away.mean())) < 0.01 and abs(float(away.var()) - 1) < 0.01
    change = after - x
    assert torch.allclose(change, Gray().adjoint(Gray().forward(change)), atol=1e-5)


def test_the_scale_of_an_operator_is_no_matter() -> None:
    x, z, y = torch.randn(5, 3, 4, 4), torch.randn(5, 3, 4, 4), torch.randn(5, 1, 4, 4)
    for noise_std in (0.0, 0.3, 3.0):
        one, other = (projection(blank(VP), Measurement(Gray(s), s * y, s * noise_std)).constraint(x, 0.5, z) for s in (1.0, 0.2))  # type: ignore[misc]
        assert torch.allclose(one, other, atol=1e-5)


def test_a_measurement_noisier_than_the_state_is_put_back_no_more() -> None:
    """And what a corrector follows from there on is the score of x_t given y = A x_t/alpha and the rest of the noise."""
    x, y = torch.randn(5, 3, 4, 4), torch.randn(5, 1, 4, 4)
    c = projection(blank(VP), Measurement(Gray(), y, 0.5))
    t = float(VP.log_snr_inverse(-2 * math.log(0.4)))  # sigma/alpha = 0.4
    assert torch.equal(c.constraint(x, t, torch.randn_like(x)), x)  # type: ignore[misc]
    alpha = float(VP.alpha(t))
    variance = 0.5**2 - 0.4**2

    def log_prob(x: Tensor) -> Tensor:
        return -(y - Gray().forward(x) / alpha).square().sum() / (2 * variance)

    pulled = c.method("pc").corrector.problem.score(x, t)  # type: ignore[misc, attr-defined]
    x.requires_grad_()
    assert torch.allclose(pulled, c.score(x, t) + torch.autograd.grad(log_prob(x), x)[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES.keys())
def test_a_time_for_all_rows_and_one_for_each(process: sd.Process) -> None:
    x, z, y = torch.randn(4, 3, 4, 4), torch.randn(4, 3, 4, 4), torch.randn(4, 1, 4, 4)
    for noise_std in (0.0, 0.3):
        held = projection(blank(process), Measurement(Gray(), y, noise_std)).constraint
        for t in (0.9, 0.3, 0.02):
            assert torch.allclose(held(x, torch.full((4,), t, dtype=torch.float64), z), held(x, t, z), atol=1e-4)  # type: ignore[misc]


@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES.keys())
def test_what_is_known_is_kept(process: sd.Process) -> None:
    """To the noise of the last time; to rounding where the last step takes that away."""
    data = torch.rand(3, 1, 4, 4)
    c = projection(blank(process), Measurement(ZeroOne(MASK), data * MASK))
    for denoise in (False, True):
        end = sd.solve(process.reverse(c.score), process.prior((3, 1, 4, 4), seed=0), "pc", steps=10, seed=0, constraint=c.constraint, denoise=denoise).x
        assert float(((end - data) * MASK).abs().max()) < (1e-6 if denoise else 6 * float(process.sigma(process.eps)))


@pytest.mark.parametrize("method", SAMPLERS)
def test_every_method_walks_with_it(method: str) -> None:
    data = torch.rand(3, 1, 4, 4)
    c = projection(blank(VP), Measurement(ZeroOne(MASK), data * MASK))
    end = sd.solve(VP.reverse(c.score), VP.prior((3, 1, 4, 4), seed=0), method, steps=4, seed=0, constraint=c.constraint).x
    assert float(((end - float(VP.alpha(VP.eps)) * data) * MASK).abs().max()) < 6 * float(VP.sigma(VP.eps))


def test_no_host_read() -> None:
    c = projection(blank(VP), Measurement(Gray(), torch.rand(3, 1, 4, 4), 0.3))
    x = torch.randn(3, 3, 4, 4)
    with NoReads():
        c.constraint(x, 0.5, x)  # type: ignore[misc]
        c.method("pc").corrector.problem.score(x, 0.05)  # type: ignore[misc, attr-defined]


# -- what it is worth ------------------------------------------------------------------------------------------------------


def test_replacement_is_biased_and_a_corrector_repairs_it() -> None:
    """Without a corrector 0.69 of the draws lie in the true 90 % interval, with 100 levels or 500; with one Langevin step a level as few at 50 levels, and at 1000 it is right."""
    for steps in (100, 500):
        assert PAIR.sampled(VE, "projection", "ancestral", steps).cover == pytest.approx(0.69, abs=0.03)
    assert PAIR.sampled(VE, "projection", "pc", 50).cover == pytest.approx(0.69, abs=0.03)
    right = PAIR.sampled(VE, "projection", "pc", 1000, rows=2000)
    assert right.cover == pytest.approx(0.88, abs=0.02) and right.variance < 1.15
    longer = PAIR.sampled(VE, "projection", "pc", 1000, rows=2000, snr=0.3)
    assert longer.cover == pytest.approx(0.9, abs=0.015) and longer.mean < 0.09 and longer.variance == pytest.approx(1, abs=0.08)


@pytest.mark.parametrize("problem", [NOISY_PAIR, NOISY_EVERY_OTHER], ids=["pair", "every other"])
def test_with_noise_and_a_corrector_it_is_the_posterior(problem: Any) -> None:
    """Mean within 0.08 standard deviations and variance within 5 %; a corrector that did not know of y would have 2.9 times the variance."""
    got = problem.sampled(VE, "projection", "pc", 150, rows=3000, corrector_steps=5)
    assert got.mean < 0.08 and got.variance == pytest.approx(1, abs=0.05) and got.cover == pytest.approx(0.9, abs=0.015)


def test_in_eight_dimensions() -> None:
    assert EVERY_OTHER.sampled(VE, "projection", "ancestral", 100).cover == pytest.approx(0.795, abs=0.03)
    assert EVERY_OTHER.sampled(VE, "projection", "pc", 500, rows=1500, snr=0.3).cover == pytest.approx(0.89, abs=0.02)


def test_an_operator_that_it_is_not_for_is_refused() -> None:
    with pytest.raises(ValueError, match="method='ddrm'"):
        projection(blank(VP), Measurement(Dense(torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 1.0]])), torch.zeros(1, 2)))
    with pytest.raises(ValueError, match="orthogonal rows"):
        projection(blank(VP), Measurement(Dense(torch.tensor([[1.0, 0.0, 0.0], [0.0, 2.0, 0.0]])), torch.zeros(1, 2)))


@pytest.mark.parametrize("name", ["projection", "repaint", "ddrm"])
def test_counts_are_refused(name: str) -> None:
    counted = Measurement(Dense(torch.eye(3)[:1]), torch.ones(1, 1), noise="poisson", gain=0.1)
    with pytest.raises(ValueError, match=f"{name} has no treatment of noise='poisson'"):
        CONDITIONINGS[name](blank(VP), counted)


@pytest.mark.parametrize(("name", "noise_std"), [("projection", 0.0), ("projection", 0.3), ("ddrm", 0.0)])
def test_every_row_keeps_its_own_measurement_with_steps_in_parallel(name: str, noise_std: float) -> None:
    process = PROCESSES["VP"]
    score, operator = sd.as_score(lambda x, t: -x, process, predicts="score"), operators.Mask((4,), torch.tensor([1, 0, 1, 0]))
    y, x = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]), process.prior((3, 4), seed=0)
    c = CONDITIONINGS[name](score, Measurement(operator, y, noise_std))
    method = "ddim" if c.method is None else c.method("ddim")
    one, many = (sd.solve(process.reverse(c.score), x, method, steps=8, seed=0, constraint=c.constraint, denoise=True, parallel=at_once).x for at_once in (None, 4))
    torch.testing.assert_close(many, one, rtol=1e-3, atol=1e-3)
