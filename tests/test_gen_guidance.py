"""Conditioning on a measurement: exact where it says so, the published samplers step by step, Poisson noise, and what is refused."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

import sdesolve as sd
from sdesolve import exam
from sdesolve.noise import SeededNormals
from sdesolve_gen.conditioning import (
    CONDITIONINGS,
    SVD,
    Measurement,
    Operator,
    Renoised,
    ddnm,
    diffpir,
    dps,
    made,
    mmps,
    operators,
    pigdm,
    twist,
)
from sdesolve_gen.conditioning.operators.blur import gaussian_kernel
from sdesolve_gen.conditioning.operators.separable import Separable

PROCESSES = [sd.VPSDE(), sd.VESDE(0.001, 50.0), sd.SubVPSDE(), sd.EDM()]
STD = 0.7


class Dense(Operator):
    """A matrix, (m, d)."""

    def __init__(self, matrix: Tensor) -> None:
        self.matrix, self.event, self.measured = matrix.double(), (matrix.shape[1],), (matrix.shape[0],)

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.matrix.to(x).T

    def adjoint(self, y: Tensor) -> Tensor:
        return y @ self.matrix.to(y)


class Longer(Dense):
    """Its adjoint is a twentieth too long."""

    def adjoint(self, y: Tensor) -> Tensor:
        return 1.05 * super().adjoint(y)


class DenseSVD(Dense):
    def svd(self) -> SVD:
        u, values, vt = torch.linalg.svd(self.matrix, full_matrices=False)
        return SVD(values, lambda x: x @ vt.T.to(x), lambda z: z @ vt.to(z), lambda y: y @ u.to(y))


def test_an_operator_is_tried_once_and_another_one_anew() -> None:
    """Not for every batch of its measurements, each of which is a replaced one."""
    tried: list[int] = []

    class Counted(Dense):
        def forward(self, x: Tensor) -> Tensor:
            tried.append(len(x))
            return super().forward(x)

    measurement = Measurement(Counted(torch.eye(3)), torch.zeros(4, 3, dtype=torch.float64))
    first = len(tried)
    for row in measurement.y.split(1):
        replace(measurement, y=row, noise_std=0.1)
    assert len(tried) == first > 0
    with pytest.raises(ValueError, match="adjoint"):
        replace(measurement, operator=Longer(torch.eye(3)))


def normals(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


ISOTROPIC = exam.Gaussian(0.5 * normals(4), std=STD)
CORRELATED = exam.Gaussian(0.5 * normals(4), cov=0.25 * normals(4, 4, seed=1) @ normals(4, 4, seed=1).T + 0.05 * torch.eye(4, dtype=torch.float64))


class Problem:
    """y = A x_0 + noise_std n of a Gaussian x_0, and its posterior."""

    def __init__(self, law: exam.Gaussian, measured: int, noise_std: float) -> None:
        self.law, matrix = law, normals(measured, 4, seed=measured)
        self.operator = Dense(matrix)
        y = matrix @ law.sample(1, seed=3, dtype=torch.float64)[0] + noise_std * normals(measured, seed=7)
        self.measurement = Measurement(self.operator, y[None], noise_std)
        covariance = law.covariance
        gain = covariance @ matrix.T @ torch.linalg.inv(matrix @ covariance @ matrix.T + noise_std**2 * torch.eye(measured, dtype=torch.float64))
        self.mean, self.covariance = law.mean + gain @ (y - matrix @ law.mean), covariance - gain @ matrix @ covariance

    def score(self, process: sd.Process, method: str, predicts: str = "v", **options: Any) -> sd.Score:
        base = sd.as_score(exam.as_model(self.law, process, predicts=predicts), process, predicts=predicts)
        return CONDITIONINGS[method](base, self.measurement, **options).score


def moments_of_flow(process: sd.Process, score: sd.Score, method: str, **options: Any) -> tuple[Tensor, Tensor]:
    """Mean and covariance of what a solver makes of the prior, exactly: for a score that is affine in x so is the solver."""
    start = process.prior_std * torch.cat([torch.zeros(1, 4), torch.eye(4)]).double()
    x = sd.solve(process.probability_flow(score, eps=min(process.eps, 1e-5)), start, method, **options).x
    slope = (x[1:] - x[0]).T
    return x[0], slope @ slope.T


SOLVERS: list[dict[str, Any]] = [{"method": "rk45", "rtol": 1e-4}, {"method": "ddim", "steps": 250, "grid": "log_snr"}, {"method": "dpmpp_2m", "steps": 60}]
EXACT: list[tuple[str, exam.Gaussian, dict[str, Any]]] = [("pigdm", ISOTROPIC, {"prior_std": STD}), ("mmps", CORRELATED, {"iterations": 8})]


@pytest.mark.parametrize("noise_std", [0.05, 0.3, 1.0])
@pytest.mark.parametrize("measured", [2, 4, 6])
@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: type(p).__name__)
def test_pigdm_and_mmps_are_exact_for_gaussians(process: sd.Process, measured: int, noise_std: float) -> None:
    """Every process, operators wider than tall, square and taller than wide, little and much noise, through a solver of each kind."""
    for k, (method, law, options) in enumerate(EXACT):
        problem = Problem(law, measured, noise_std)
        mean, covariance = moments_of_flow(process, problem.score(process, method, **options), **SOLVERS[(k + measured // 2 + PROCESSES.index(process)) % 3])
        assert (mean - problem.mean).norm() < 0.02 * problem.mean.norm(), method
        assert (covariance - problem.covariance).norm() < 0.05 * problem.covariance.norm(), method


@pytest.mark.parametrize("noise_std", [0.0, 1e-6, 1e-3])
@pytest.mark.parametrize("operator", [Dense, operators.Matrix], ids=["iterated", "with an SVD"])
def test_mmps_takes_a_y_that_is_noisier_than_is_said(operator: Any, noise_std: float) -> None:
    """The same three rows twice, measured as 0.2 apart: the middle is what is seen, however small the noise is said to be."""
    rows, process = torch.randn(3, 6, generator=torch.Generator().manual_seed(4)), sd.VPSDE()
    matrix, law, seen = torch.cat([rows, rows]), exam.Gaussian([0.0] * 6, std=1.0), torch.tensor([0.5, -1.0, 0.3])
    made_of = operator(matrix) if operator is Dense else operator((6,), matrix)
    score = sd.as_score(law.score(process), process, predicts="score")
    conditioning = mmps(score, Measurement(made_of, torch.cat([seen - 0.1, seen + 0.1])[None], noise_std))
    x = sd.solve(process.reverse(conditioning.score), process.prior((16, 6), seed=0), "dpmpp_2m_sde", steps=40, seed=1, denoise=True).x
    assert float((x @ rows.T - seen).abs().max()) < 0.02


@pytest.mark.parametrize(("method", "options"), [("euler_maruyama", {"steps": 200}), ("pc", {"steps": 100, "snr": 0.1}), ("dpmpp_2m_sde", {"steps": 60})])
def test_stochastic_solvers_draw_from_the_posterior(method: str, options: dict[str, Any]) -> None:
    problem, process, n = Problem(ISOTROPIC, 2, 0.3), sd.VPSDE(), 8000
    score = problem.score(process, "pigdm", prior_std=STD)
    x = sd.solve(process.reverse(score, eps=1e-4), process.prior((n, 4), seed=0, dtype=torch.float64), method, seed=1, **options).x
    error = problem.covariance.trace().sqrt() / math.sqrt(n)
    assert (x.mean(0) - problem.mean).norm() < 0.02 * problem.mean.norm() + 2 * error
    assert (torch.cov(x.T) - problem.covariance).norm() < 0.05 * problem.covariance.norm()


@pytest.mark.parametrize(("method", "options"), [("pigdm", {"prior_std": STD}), ("mmps", {"iterations": 8})])
def test_what_y_says_late_makes_up_for_what_it_does_not_say_early(method: str, options: dict[str, Any]) -> None:
    """At sigma/alpha > 20 data of spread c have the share (c/20)^2 of x_t's variance, by which a stochastic walk forgets how it began; too low a level is not made up for."""
    problem, process, n = Problem(ISOTROPIC, 2, 0.3), sd.VPSDE(), 8000
    off, vjps = {}, {}
    for high in (math.inf, 20.0, 0.5):
        score = problem.score(process, method, within=(0.0, high), **options)
        sol = sd.solve(process.reverse(score, eps=1e-4), process.prior((n, 4), seed=0, dtype=torch.float64), "dpmpp_2m_sde", steps=60, seed=1)
        off[high], vjps[high] = float((sol.x.mean(0) - problem.mean).norm() / problem.mean.norm()), sol.stats["vjps"]
    assert off[math.inf] < 0.02 and off[20.0] < 0.02 < 0.05 < off[0.5], off
    assert vjps[0.5] < 0.7 * vjps[20.0] < 0.7 * 0.9 * vjps[math.inf], vjps


def test_pigdm_is_off_where_the_spread_differs_between_directions() -> None:
    """The covariance by which MMPS is exact is what PiGDM lacks."""
    problem, process = Problem(CORRELATED, 4, 0.3), sd.VPSDE()
    for prior_std in (0.5, 1.0):
        _, covariance = moments_of_flow(process, problem.score(process, "pigdm", prior_std=prior_std), "dpmpp_2m", steps=80)
        assert (covariance - problem.covariance).norm() > 0.1 * problem.covariance.norm()


def test_mmps_solves_the_system_of_a_network_whose_jacobian_is_not_symmetric() -> None:
    """E[x_0 | x] = x M' with a part of M that is skew: the term is that of the dense system, which conjugate gradients leave far off."""
    process, t = sd.VPSDE(), torch.tensor([0.3], dtype=torch.float64)
    skew = normals(4, 4, seed=3).double()
    m = torch.diag(torch.tensor([0.2, 0.5, 0.8, 1.0], dtype=torch.float64)) + 0.3 * (skew - skew.T)
    base, x, y = sd.as_score(lambda x, t: x @ m.T, process, predicts="x0"), normals(1, 4, seed=1).double(), normals(1, 4, seed=2).double()
    found = mmps(base, Measurement(Dense(torch.eye(4, dtype=torch.float64)), y, 0.1), iterations=8).score(x, t) - base(x, t)
    v = float(process.sigma(t)) ** 2 / float(process.alpha(t)) * m.T
    expected = torch.linalg.solve(0.01 * torch.eye(4, dtype=torch.float64) + v, (y - x @ m.T)[0]) @ m
    torch.testing.assert_close(found[0], expected, rtol=1e-6, atol=1e-6)


def test_fewer_iterations_trust_y_less() -> None:
    problem, process = Problem(CORRELATED, 4, 0.05), sd.VPSDE()
    off = [float((moments_of_flow(process, problem.score(process, "mmps", iterations=n), "dpmpp_2m", steps=80)[1] - problem.covariance).norm()) for n in (1, 3, 8)]
    assert off[0] > 2 * off[1] > 8 * off[2]


@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: type(p).__name__)
def test_ddnm_is_exact_where_the_seen_and_the_unseen_are_independent(process: sd.Process) -> None:
    law, y = exam.Gaussian(normals(4), std=[0.3, 0.5, 0.7, 0.9]), normals(1, 2, seed=5)
    base = sd.as_score(exam.as_model(law, process, predicts="epsilon"), process, predicts="epsilon")
    score = ddnm(base, Measurement(Dense(torch.eye(4)[:2]), y)).score
    mean, covariance = moments_of_flow(process, score, "dpmpp_2m", steps=80)
    assert (mean[:2] - y[0]).abs().max() < 0.03 and covariance[:2].abs().max() < 1e-3  # but for the last level's noise
    assert torch.allclose(mean[2:], law.mean[2:], rtol=0.01, atol=0.01) and torch.allclose(covariance[2:, 2:], law.covariance[2:, 2:], atol=0.02)


@pytest.mark.parametrize("method", ["dps", "pigdm", "mmps", "ddnm", "diffpir"])
def test_cost_and_rows(method: str) -> None:
    """One call of the network for each evaluation, with the derivatives that are stated; a row in company is the row alone."""
    process, operator = sd.VPSDE(), Dense(normals(2, 4, seed=2))
    base = sd.as_score(lambda x, t: torch.tanh(x) * t[:, None], process, predicts="epsilon")

    def solved(rows: slice) -> sd.Solution:
        measurement = Measurement(operator, normals(3, 2, seed=5)[rows], 0.1)
        x = process.prior((3, 4), seed=0, dtype=torch.float64)[rows]
        score = CONDITIONINGS[method](base, measurement).score
        return sd.solve(process.reverse(score), x, "ddim", steps=5, eta=1.0, seed=0, sample_ids=range(3)[rows])

    sol, alone = solved(slice(3)), solved(slice(1, 2))
    assert torch.allclose(sol.x[1:2], alone.x, rtol=1e-12)
    most = {"dps": 1, "pigdm": 1, "mmps": 6, "ddnm": 0, "diffpir": 0}[method] * 5
    assert sol.nfe == sol.stats["calls"] == 5
    assert most / 2 <= sol.stats["vjps"] <= most  # conjugate gradients in two dimensions are through after two or three iterations


# -- the published samplers ----------------------------------------------------------------------------------------------

LEVELS = [0.9**i for i in range(13)]  # times, from T = 1


def solver_noise(process: sd.Process, grid: list[float]) -> tuple[Tensor, list[Tensor]]:
    """Start of five samples of four numbers, and the normals that ``solve`` draws with seed 0."""
    source = SeededNormals(0, range(5), (4,), dtype=torch.float64, device="cpu", nodes=len(grid) - 1)
    return process.prior((5, 4), seed=0, dtype=torch.float64), [source.normal(node) for node in range(len(grid) - 1)]


def squares(process: sd.Process, t: float) -> tuple[float, float]:
    """bar alpha at a level, sigma^2 = 1 - bar alpha."""
    return float(process.alpha(t)) ** 2, float(process.sigma(t)) ** 2


def denoiser(law: exam.Gaussian, process: sd.Process) -> Callable[[Tensor, float], Tensor]:
    return lambda x, t: (x + squares(process, t)[1] * law.score(process)(x, t)) / math.sqrt(squares(process, t)[0])


@pytest.mark.parametrize("noise_std", [0.0, 1.0])
def test_ddnm_step_by_step(noise_std: float) -> None:
    """Algorithm 1 of Wang et al. 2023, in the paper's letters; where there is noise with a lambda of our own, for which no published walk is claimed."""
    process, operator, y = sd.VPSDE(), DenseSVD(normals(2, 4, seed=2)), normals(5, 2, seed=5)
    base = sd.as_score(exam.as_model(CORRELATED, process, predicts="v"), process, predicts="v")
    score = ddnm(base, Measurement(operator, y, noise_std), eta=0.85).score
    sol = sd.solve(process.reverse(score), process.prior((5, 4), seed=0, dtype=torch.float64), "ddim", eta=1.0, grid=LEVELS, interval=(LEVELS[0], LEVELS[-1]), seed=0)

    x, noise = solver_noise(process, LEVELS)
    u, s, vt = torch.linalg.svd(operator.matrix, full_matrices=False)
    for (t, t1), z in zip(pairwise(LEVELS), noise, strict=True):
        (abar, var), (abar1, var1) = squares(process, t), squares(process, t1)
        x0 = denoiser(CORRELATED, process)(x, t)
        lam = torch.clamp(0.85 * math.sqrt(var / abar) * s / noise_std, max=1.0) if noise_std else torch.ones(2, dtype=torch.float64)
        x0 = x0 + (((y - x0 @ operator.matrix.T) @ u) * lam / s) @ vt
        beta = 1 - abar / abar1
        mean = math.sqrt(abar1) * beta / var * x0 + math.sqrt(1 - beta) * var1 / var * x
        x = mean + math.sqrt(var1 / var * beta) * z
    assert torch.allclose(sol.x, x, rtol=1e-7)
    if not noise_std:  # what is measured comes out at the last level's noise
        assert (score.denoise(sol.x, LEVELS[-1]) @ operator.matrix.T - y).abs().max() < 1e-9


@pytest.mark.parametrize("eta", [0.85, 0.4])
def test_the_published_ddnm_with_noise_is_ddrm(eta: float) -> None:
    """DDNM+ of Wang et al. 2023, eq. 17 and 51 with the Lambda and the noise of the authors' code, from these alone: ``ddrm``, whatever its own paper says of it."""
    process, operator, y, sigma_y = sd.VPSDE(), DenseSVD(normals(2, 4, seed=2)), normals(5, 2, seed=5), 4.0
    base = sd.as_score(exam.as_model(CORRELATED, process, predicts="v"), process, predicts="v")
    c = CONDITIONINGS["ddrm"](base, Measurement(operator, y, sigma_y), eta=eta)
    x, noise = solver_noise(process, LEVELS)
    assert c.method is not None
    sol = sd.solve(process.reverse(c.score), x, c.method("ddim"), grid=LEVELS, interval=(LEVELS[0], LEVELS[-1]), seed=0)

    _, s, vt = torch.linalg.svd(operator.matrix)
    s, seen = torch.cat([s, s.new_zeros(2)]), torch.tensor([True, True, False, False])
    inverse, branches = torch.where(seen, 1 / s, 0.0), []
    for (t, t1), z in zip(pairwise(LEVELS), noise, strict=True):
        (abar, var), (abar1, var1) = squares(process, t), squares(process, t1)
        x0 = denoiser(CORRELATED, process)(x, t)
        epsilon, a, sigma = (x - math.sqrt(abar) * x0) / math.sqrt(var), math.sqrt(abar1), math.sqrt(var1)
        louder = sigma < a * sigma_y * inverse  # what y brings, than the step's noise
        lam = torch.where(louder, s * sigma * math.sqrt(1 - eta**2) / (a * sigma_y), 1.0)
        pulled = x0 - ((x0 @ operator.matrix.T - y) @ torch.linalg.pinv(operator.matrix).T @ vt.T * lam) @ vt
        anew = torch.where(seen & ~louder, (sigma**2 - (a * sigma_y * inverse) ** 2).clamp(min=0).sqrt(), sigma * eta)
        kept = torch.where(seen, 0.0, sigma * math.sqrt(1 - eta**2))
        x = a * pulled + (z @ vt.T * anew + epsilon @ vt.T * kept) @ vt
        branches.append(louder[:2])
    assert torch.stack(branches).any(0).all() and not torch.stack(branches).all(0).any()
    torch.testing.assert_close(sol.x, x, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("rows", [False, True])
def test_y_is_believed_down_to_its_noise_without_a_decomposition(rows: bool) -> None:
    """x_0 + A' (A A' + (alpha noise/(eta sigma))^2 I)^-1 (y - A x_0), at levels above and below that of y's noise: what a small singular value says is bounded."""
    process, operator, y = sd.VPSDE(), Dense(normals(2, 4, seed=2)), normals(5, 2, seed=5)
    base, x = sd.as_score(exam.as_model(CORRELATED, process, predicts="v"), process, predicts="v"), normals(5, 4, seed=9)
    score = ddnm(base, Measurement(operator, y, 0.8), eta=0.6).score
    shares = []
    for t in (0.05, 0.2, 0.9):
        d, at = base.denoise(x, t), torch.full((5,), t, dtype=torch.float64) if rows else t
        shares.append(0.6 * float(process.sigma(t) / process.alpha(t)) / 0.8)
        believed = torch.linalg.inv(operator.matrix @ operator.matrix.T + torch.eye(2) / shares[-1] ** 2) @ operator.matrix
        torch.testing.assert_close(score.denoise(x, at), d + (y - d @ operator.matrix.T) @ believed, rtol=1e-6, atol=1e-6)
    assert shares[0] < shares[1] < 1 < shares[2]


@pytest.mark.parametrize("noise_std", [0.0, 0.3])
def test_diffpir_step_by_step(noise_std: float) -> None:
    """Algorithm 1 of Zhu et al. 2023."""
    process, operator, y, lam, zeta = sd.VPSDE(), Dense(normals(2, 4, seed=2)), normals(5, 2, seed=5), 3.0, 0.3
    base = sd.as_score(exam.as_model(CORRELATED, process, predicts="epsilon"), process, predicts="epsilon")
    score = diffpir(base, Measurement(operator, y, noise_std), lam=lam).score
    x, noise = solver_noise(process, LEVELS)
    sol = sd.solve(process.reverse(score), x, Renoised(zeta), grid=LEVELS, interval=(LEVELS[0], LEVELS[-1]), seed=0)

    for (t, t1), z in zip(pairwise(LEVELS), noise, strict=True):
        (abar, var), (abar1, var1) = squares(process, t), squares(process, t1)
        x0, rho, a = denoiser(CORRELATED, process)(x, t), lam * noise_std**2 * abar / var, operator.matrix
        weighed = torch.linalg.solve(a.T @ a + rho * torch.eye(4, dtype=torch.float64), a.T).T if rho else torch.linalg.pinv(a).T
        x0 = x0 + (y - x0 @ a.T) @ weighed  # the least of |y - A x|^2 + rho |x - x_0|^2
        eps = (x - math.sqrt(abar) * x0) / math.sqrt(var)
        x = math.sqrt(abar1) * x0 + math.sqrt(var1) * (math.sqrt(1 - zeta) * eps + math.sqrt(zeta) * z)
    assert torch.allclose(sol.x, x, rtol=1e-6)


def test_dps_step_by_step() -> None:
    """Lines 4 to 7 of algorithm 1 of Chung et al. 2023: a step of the sampler, and then  -zeta' grad_x |y - A x_0|."""
    process, operator, y, zeta, steps = sd.VPSDE(), Dense(normals(2, 4, seed=2)), normals(5, 2, seed=5), 0.03, 40
    base = sd.as_score(exam.as_model(CORRELATED, process, predicts="x0"), process, predicts="x0")
    score = dps(base, Measurement(operator, y, 0.1), zeta=zeta, steps=steps).score
    grid = [process.T + (process.eps - process.T) * i / steps for i in range(steps + 1)]
    x, noise = solver_noise(process, grid)
    sol = sd.solve(process.reverse(score), x, "euler_maruyama", steps=steps, grid="uniform", seed=0)

    for (t, t1), z in zip(pairwise(grid), noise, strict=True):
        at = x.clone().requires_grad_()
        residual = y - denoiser(CORRELATED, process)(at, t) @ operator.matrix.T
        (gradient,) = torch.autograd.grad(residual.norm(dim=1).sum(), at)  # of each row's own norm
        drift, g = process.drift(x, t) - float(process.diffusion(t)) ** 2 * CORRELATED.score(process)(x, t), float(process.diffusion(t))
        x = x + (t1 - t) * drift + g * math.sqrt(t - t1) * z - zeta * gradient
    assert torch.allclose(sol.x, x, rtol=1e-6)


@pytest.mark.parametrize("eta", [1.0, 0.4])
@pytest.mark.parametrize("noise_std", [0.0, 0.3])
def test_pigdm_step_by_step(noise_std: float, eta: float) -> None:
    """Algorithm 1 of Song et al. 2023 in the paper's letters, with h a matrix.  Its last line adds sqrt(bar alpha_t) g whatever the step; here g weighs what
    DDIM's step makes of a change of the score, sqrt(bar alpha_s/bar alpha_t) - c_2/sqrt(1 - bar alpha_t), as the score of its section 3 asks for, and vanishes with the step."""
    process, operator, y = sd.VPSDE(), Dense(normals(2, 4, seed=2)), normals(5, 2, seed=5)
    base = sd.as_score(exam.as_model(CORRELATED, process, predicts="epsilon"), process, predicts="epsilon")
    score = pigdm(base, Measurement(operator, y, noise_std)).score
    x, noise = solver_noise(process, LEVELS)
    sol = sd.solve(process.reverse(score), x, "ddim", eta=eta, grid=LEVELS, interval=(LEVELS[0], LEVELS[-1]), seed=0)

    for (t, t1), z in zip(pairwise(LEVELS), noise, strict=True):
        (abar, var), (abar1, var1), a = squares(process, t), squares(process, t1), operator.matrix
        at = x.clone().requires_grad_()
        x0 = denoiser(CORRELATED, process)(at, t)
        inverse = torch.linalg.inv(var * a @ a.T + noise_std**2 * torch.eye(2, dtype=torch.float64))  # r_t^2 = 1 - bar alpha_t
        (g,) = torch.autograd.grad(x0, at, var * (y - x0.detach() @ a.T) @ inverse @ a)
        x0 = x0.detach()
        eps = (x - math.sqrt(abar) * x0) / math.sqrt(var)
        c1 = eta * math.sqrt((1 - abar / abar1) * var1 / var)
        c2 = math.sqrt(var1 - c1**2)
        x = math.sqrt(abar1) * x0 + c1 * z + c2 * eps + (math.sqrt(abar1 / abar) - c2 / math.sqrt(var)) * g
    assert torch.allclose(sol.x, x, rtol=1e-6)


def test_dps_does_not_depend_on_the_number_of_steps() -> None:
    process, operator, y = sd.VPSDE(), Dense(normals(3, 4, seed=3)), normals(5, 3, seed=5)
    base = sd.as_score(exam.as_model(CORRELATED, process, predicts="v"), process, predicts="v")

    def end(n: int, **options: Any) -> Tensor:
        score = dps(base, Measurement(operator, y, 0.3), **options).score
        return sd.solve(process.probability_flow(score), process.prior((5, 4), seed=0, dtype=torch.float64), "euler", steps=n).x

    assert (end(100) - end(400)).abs().max() < 0.02
    assert (end(100, steps=100, zeta=0.1) - end(400, steps=400, zeta=0.1)).abs().max() > 0.3


def test_a_nonlinear_measurement_is_for_dps() -> None:
    """y = tanh(2 x): forward alone, written in torch.  The samples measure like y."""

    class Saturated(Operator):
        event, measured, linear = (4,), (4,), False

        def forward(self, x: Tensor) -> Tensor:
            return torch.tanh(2 * x)

    process, truth = sd.VPSDE(), ISOTROPIC.sample(1, seed=5, dtype=torch.float64)
    base = sd.as_score(exam.as_model(ISOTROPIC, process, predicts="v"), process, predicts="v")
    measurement = Measurement(Saturated(), torch.tanh(2 * truth), 0.05)
    start, scores = process.prior((200, 4), seed=0, dtype=torch.float64), (dps(base, measurement, zeta=2.0).score, base)
    x = [sd.solve(process.reverse(score), start, "ddim", eta=1.0, steps=60, seed=0).x for score in scores]
    told, untold = (measurement.residual(draws).square().mean().sqrt() for draws in x)
    assert told < 0.25 * untold
    for method in ("pigdm", "mmps", "ddnm", "diffpir"):
        with pytest.raises(ValueError, match=f"{method} needs a linear operator.*expected 'dps'"):
            CONDITIONINGS[method](base, measurement)


def test_renoised_narrows_by_what_it_says() -> None:
    """Data N(0, 1), 1,000 steps: where every step's map is linear, the variance at the end needs no draws."""
    process, share, variance = sd.VPSDE(), 0.3, 1.0
    grid = [float(t) for t in process.log_snr_inverse(torch.linspace(float(process.log_snr(1.0)), float(process.log_snr(1e-4)), 4000, dtype=torch.float64))]
    for t, t1 in pairwise(grid):
        row = Renoised(share).row(process, (t,), t1)
        on_x = row.on_x + row.on_outputs[0] * process.alpha_(t)  # D = alpha x
        variance = on_x**2 * variance + row.on_noise**2
    assert math.isclose(variance, share / (2 - 2 * math.sqrt(1 - share)), rel_tol=0.01)


# -- Poisson noise -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [pigdm, mmps])
@pytest.mark.parametrize("intensity", [0.5, 1.5])
def test_poisson_noise_has_the_variance_of_the_prediction(method: Callable[..., Any], intensity: float) -> None:
    """y = gain k with some 10 to 40 counts, of x_0 ~ N(1, 0.3^2): mean and spread against the posterior by quadrature."""
    process, gain, law = sd.VPSDE(), 0.04, exam.Gaussian([1.0], std=0.3)
    count = round(intensity / gain)
    x = torch.linspace(1e-3, 3, 20001, dtype=torch.float64)
    log_p = -0.5 * ((x - 1) / 0.3) ** 2 + count * torch.log(x / gain) - x / gain
    weight = torch.softmax(log_p, 0)
    mean = weight @ x
    std = (weight @ (x - mean) ** 2).sqrt()

    base = sd.as_score(exam.as_model(law, process, predicts="v"), process, predicts="v")
    measurement = Measurement(Dense(torch.ones(1, 1)), torch.tensor([[gain * count]], dtype=torch.float64), noise="poisson", gain=gain)
    options = {"prior_std": 0.3} if method is pigdm else {}
    start = torch.special.ndtri((torch.arange(400, dtype=torch.float64) + 0.5) / 400)[:, None]
    sol = sd.solve(process.probability_flow(method(base, measurement, **options).score, eps=1e-5), start, "dpmpp_2m", steps=60).x
    assert abs(float(sol.mean() - mean)) < 0.03 * float(mean)
    assert abs(float(sol.std() / std) - 1) < (0.15 if count < 20 else 0.08)


def test_poisson_noise_in_dps_counts_by_its_variance() -> None:
    """The same photons on a bright and on a dim pixel: the bright one's residual counts for less."""
    process = sd.VPSDE()
    base = sd.as_score(lambda x, t: 1e-3 * x + torch.tensor([0.1, 10.0], dtype=x.dtype), process, predicts="x0")
    measurement = Measurement(Dense(torch.eye(2)), torch.tensor([[0.2, 10.1]], dtype=torch.float64), noise="poisson", gain=0.01)
    x, t = torch.zeros(1, 2, dtype=torch.float64), 1e-3
    for options in ({}, {"steps": 100}):
        with torch.no_grad():
            pull = dps(base, measurement, **options).score(x, t) - base(x, t)
        assert math.isclose(float(pull[0, 0] / pull[0, 1]), 10 / 0.1, rel_tol=1e-3)


def test_dps_is_the_likelihood_where_noise_is_all_and_the_residual_has_its_length() -> None:
    """At the end of the way  A'r/noise_std^2, whatever the scale of A; for Poisson noise each number's own variance."""
    process, t = sd.VPSDE(), 1e-3
    base = sd.as_score(lambda x, t: 1e-3 * x + 1.0, process, predicts="x0")  # J = 1e-3
    x, matrix = torch.zeros(1, 2, dtype=torch.float64), normals(3, 2, seed=1)
    for scale in (0.01, 1.0, 100.0):
        a = scale * matrix
        residual = scale * 2.0 * torch.tensor([[1.0, -1.0, 1.0]], dtype=torch.float64)
        score = dps(base, Measurement(Dense(a), a.sum(1)[None] + residual, 2.0 * scale)).score
        with torch.no_grad():
            assert torch.allclose(score(x, t) - base(x, t), 1e-3 * residual @ a / (2.0 * scale) ** 2, rtol=1e-3)
    gain = 1.0
    bright = matrix.abs() * 100
    residual = (gain * bright.sum(1)).sqrt()[None] * torch.tensor([[1.0, 1.0, -1.0]], dtype=torch.float64)
    score = dps(base, Measurement(Dense(bright), bright.sum(1)[None] + residual, noise="poisson", gain=gain)).score
    with torch.no_grad():
        assert torch.allclose(score(x, t) - base(x, t), 1e-3 * (residual / (gain * bright.sum(1))) @ bright, rtol=0.02)


def test_methods_without_a_treatment_of_poisson_noise_say_so() -> None:
    base = sd.as_score(lambda x, t: x, sd.VPSDE(), predicts="x0")
    measurement = Measurement(Dense(torch.eye(2)), torch.ones(1, 2), noise="poisson", gain=0.1)
    for method in (ddnm, diffpir):
        with pytest.raises(ValueError, match="no treatment of noise='poisson'; expected 'dps', 'pigdm' or 'mmps'"):
            method(base, measurement)


# -- what is refused -----------------------------------------------------------------------------------------------------


class Flipped(Dense):
    def adjoint(self, y: Tensor) -> Tensor:
        return -super().adjoint(y)


EYE = Dense(torch.eye(3))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((EYE, torch.zeros(2, 4)), ValueError, r"y has shape \(2, 4\); expected \(B, 3\), as Dense measures"),
        ((EYE, torch.zeros(3)), ValueError, r"y\[None\] for a single one"),
        ((EYE, torch.zeros(2, 3).long()), TypeError, "expected a floating tensor"),
        ((EYE, [0.0, 0.0, 0.0]), TypeError, "y is list"),
        ((EYE, torch.tensor([[0.0, torch.nan, torch.inf]])), ValueError, "2 values that are not finite"),
        ((EYE, torch.zeros(2, 3), -0.1), ValueError, "noise_std=-0.1; expected a finite number >= 0"),
        ((EYE, torch.zeros(2, 3), math.nan), ValueError, "noise_std=nan"),
        ((EYE, torch.zeros(2, 3), 0.1, "poison"), ValueError, "Did you mean 'poisson'"),
        ((EYE, torch.zeros(2, 3), 0.0, "poisson"), ValueError, "gain=None; expected the y of a single count"),
        ((EYE, torch.zeros(2, 3), 0.0, "gaussian", 0.1), ValueError, "gain=0.1 with noise='gaussian'"),
        ((EYE, torch.full((2, 3), -1.0), 0.0, "poisson", 0.1), ValueError, "counts are not negative"),
        ((Longer(torch.eye(3)), torch.zeros(2, 3)), ValueError, "is not the adjoint of Longer.forward"),
        ((Flipped(torch.eye(3)), torch.zeros(2, 3)), ValueError, "is not the adjoint of Flipped.forward"),
    ],
)
def test_a_measurement_that_cannot_be_is_refused(arguments: tuple[Any, ...], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Measurement(*arguments)


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        (dps, {"zeta": -1.0}, "zeta=-1.0; expected a finite number >= 0"),
        (dps, {"within": (1.0, 0.0)}, "within=.*; expected noise levels 0 <= low < high"),
        (mmps, {"within": 3.0}, "within=3.0; expected noise levels"),
        (pigdm, {"within": (0.0, "20")}, "within=.*; expected noise levels"),
        (dps, {"steps": 0}, "steps=0; expected an integer >= 1"),
        (dps, {"steps": 2.5}, "steps=2.5; expected an integer"),
        (pigdm, {"prior_std": 0.0}, "prior_std=0.0; expected a finite number > 0"),
        (mmps, {"iterations": 0}, "iterations=0; expected an integer >= 1"),
        (ddnm, {"eta": 0.0}, "eta=0.0; expected a finite number > 0"),
        (diffpir, {"lam": math.inf}, "lam=inf; expected a finite number > 0"),
        (lambda *_, share: Renoised(share), {"share": 1.5}, "share=1.5; expected a finite number >= 0 and <= 1"),
    ],
)
def test_options_out_of_range_are_refused(method: Callable[..., Any], options: dict[str, Any], message: str) -> None:
    base = sd.as_score(lambda x, t: x, sd.VPSDE(), predicts="x0")
    with pytest.raises(ValueError, match=message):
        method(base, Measurement(EYE, torch.zeros(1, 3)), **options)


@pytest.mark.parametrize("name", CONDITIONINGS)
def test_states_that_do_not_fit_the_measurement_are_refused(name: str) -> None:
    process = sd.VPSDE()
    base = sd.as_score(lambda x, t: x, process, predicts="x0")
    options = {"jump_length": 1} if name == "repaint" else {}
    measurement = Measurement(operators.Matrix((3,), torch.eye(3)), torch.zeros(2, 3), 0.0 if name == "repaint" else 0.1)
    c = CONDITIONINGS[name](base, measurement, **options)
    for shape in ((3, 3), (2, 4)):
        with pytest.raises(ValueError, match=rf"the state has shape \({shape[0]}, {shape[1]}\)"):
            sd.solve(process.reverse(c.score), torch.zeros(shape), (c.method or made)("ddim"), steps=2, constraint=c.constraint)


@pytest.mark.parametrize("operator", ["matrix", "function"])
@pytest.mark.parametrize("method", ["dps", "pigdm", "mmps", "ddnm", "diffpir"])
def test_tangents_go_through_a_guided_score(method: str, operator: str) -> None:
    """torch.func's transforms, by which ``rodas5p`` has its Jacobian: the derivative along v is that of central differences."""
    problem, process = Problem(CORRELATED, 2, 0.3), PROCESSES[0]
    matrix = problem.operator.matrix
    held = problem.measurement if operator == "matrix" else Measurement(operators.as_operator(lambda x: x @ matrix.to(x).T, (4,)), problem.measurement.y, 0.3)
    score = CONDITIONINGS[method](sd.as_score(CORRELATED.score(process), process, predicts="score"), held).score
    x, v, t = normals(3, 4, seed=11), normals(3, 4, seed=12), torch.full((3,), 0.4, dtype=torch.float64)
    with torch.no_grad():
        _, along = torch.func.jvp(lambda x: score(x, t), (x,), (v,))
        torch.testing.assert_close(along, (score(x + 1e-5 * v, t) - score(x - 1e-5 * v, t)) / 2e-5, rtol=1e-5, atol=1e-6)


def test_reversible_heun_strays_by_what_a_measurement_contracts() -> None:
    """Independent pixels of spread 0.5, of which one is seen with noise 0.3: right in many steps and not in few, as its documentation has it."""
    process, law, matrix = PROCESSES[0], exam.Gaussian([0.0, 0.0], std=0.5), torch.eye(2, dtype=torch.float64)[:1]
    score = pigdm(sd.as_score(law.score(process), process, predicts="score"), Measurement(Dense(matrix), torch.zeros(1, 1, dtype=torch.float64), 0.3), prior_std=0.5).score
    x = process.prior((400, 2), seed=0, dtype=torch.float64)
    few, many = (float(sd.solve(process.reverse(score), x, "reversible_heun", steps=steps, seed=0).x[:, 0].std()) for steps in (60, 1000))
    assert few > 2 and many == pytest.approx((0.5**-2 + 0.3**-2) ** -0.5, rel=0.15)


def test_a_stiff_solver_takes_a_guided_score() -> None:
    process, problem = PROCESSES[0], Problem(CORRELATED, 2, 0.3)
    x, score = process.prior((2, 4), seed=0, dtype=torch.float64), problem.score(process, "pigdm", prior_std=STD)
    stiff, plain = (sd.solve(process.probability_flow(score), x, method, rtol=1e-4, atol=1e-4) for method in ("rodas5p", "rk45"))
    assert stiff.ok().all() and stiff.stats["vjps"] > 0
    torch.testing.assert_close(stiff.x, plain.x, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("name", ["dps", "pigdm", "mmps", "ddnm", "diffpir"])
@pytest.mark.parametrize(("method", "options"), [("rk45", {"rtol": 1e-3, "atol": 1e-3}), ("ddim", {"steps": 12, "parallel": 4})])
def test_every_row_keeps_its_own_measurement(name: str, method: str, options: dict[str, Any]) -> None:
    """Where rows that have arrived leave the batch, and where many steps of a row stand in it: each ends where it ends alone with its y."""
    process, problem = PROCESSES[0], Problem(CORRELATED, 2, 0.3)
    base, x, y = sd.as_score(CORRELATED.score(process), process, predicts="score"), process.prior((3, 4), seed=0, dtype=torch.float64), 3 * normals(3, 2, seed=5)
    ends = []
    for rows in (slice(0, 3), slice(0, 1), slice(1, 2), slice(2, 3)):
        score = CONDITIONINGS[name](base, Measurement(problem.operator, y[rows], 0.3)).score
        ends.append(sd.solve(process.probability_flow(score), x[rows], method, **options).x)
    torch.testing.assert_close(ends[0], torch.cat(ends[1:]), rtol=1e-6, atol=1e-6)


def test_a_dark_prediction_has_the_variance_of_one_count() -> None:
    """Where a prediction says no light, or less than none, counts are still not certain."""
    measurement = Measurement(EYE, torch.zeros(1, 3), 0.0, "poisson", 0.1)
    torch.testing.assert_close(measurement.variance(torch.tensor([[-1.0, 0.0, 2.0]])), torch.tensor([[0.01, 0.01, 0.2]]))


def test_a_small_singular_value_counts_where_the_noise_is_smaller() -> None:
    """A = diag(1, 5e-5) and noise 1e-5: y tells x_2 to 0.2, and so does the posterior of N(0, I)."""
    process, noise = PROCESSES[0], 1e-5
    law = exam.Gaussian([0.0, 0.0], std=1.0)
    A, y = torch.diag(torch.tensor([1.0, 5e-5], dtype=torch.float64)), torch.tensor([[0.5, 5e-5]], dtype=torch.float64)
    score = pigdm(sd.as_score(law.score(process), process, predicts="score"), Measurement(operators.Matrix((2,), A), y, noise)).score
    x, t = normals(2, 2), 0.3
    alpha, sigma = float(process.alpha(t)), float(process.sigma(t))
    # of N(0, I): E[x_0 | x] = alpha x with variance sigma^2
    exact = -x + alpha * (y - alpha * x @ A) @ torch.linalg.inv(noise**2 * torch.eye(2, dtype=torch.float64) + sigma**2 * A @ A) @ A
    torch.testing.assert_close(score(x, t), exact, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("method", ["pigdm", "mmps", "diffpir", "ddnm"])
@pytest.mark.parametrize("rank", [1, 2])
def test_a_measurement_without_noise_that_has_no_solution(method: str, rank: int) -> None:
    """Three numbers of two or one: what they are told is the least squares, and nothing grows."""
    process, t, y = PROCESSES[0], 0.3, normals(2, 3, seed=5)
    law = exam.Gaussian([0.0, 0.0], std=1.0)
    A = torch.tensor([[1.0, 0.5], [1, 1], [2, 0]] if rank == 2 else [[1.0, 0], [1, 0], [2, 0]], dtype=torch.float64)
    base, options = sd.as_score(law.score(process), process, predicts="score"), {"mmps": {"iterations": 25}, "diffpir": {"lam": 1.0}}.get(method, {})
    score = CONDITIONINGS[method](base, Measurement(Dense(A), y, 0.0), **options).score
    x = normals(2, 2)
    alpha = float(process.alpha(t))
    unseen = torch.eye(2, dtype=torch.float64) - torch.linalg.pinv(A) @ A
    torch.testing.assert_close(score.denoise(x, t), y @ torch.linalg.pinv(A).T + alpha * x @ unseen, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("operator", [operators.Matrix, lambda event, matrix: Dense(matrix)], ids=["matrix", "iterative"])
@pytest.mark.parametrize(("measured", "noise"), [(3, 1e-3), (12, 0.05)], ids=["wide", "tall"])
def test_the_evidence_in_float32(operator: Callable[..., Operator], measured: int, noise: float) -> None:
    """Of a y that A sees whole, and of one of which 12 - 4 numbers lie outside its range; the standard deviation over seeds is 0.1 to 0.3."""
    process, law, A = PROCESSES[0], exam.Gaussian([0.0] * 4, std=0.5), normals(measured, 4, seed=3)
    y = 0.5 * normals(1, 4, seed=1) @ A.T + noise * normals(1, measured, seed=2)
    score = sd.as_score(law.score(process), process, predicts="score")
    particles = process.prior((1, 400, 4), seed=0, dtype=torch.float32)
    twisted = twist(Measurement(operator((4,), A), y.float(), noise), process, 400, 0.5)
    found = sd.smc(process.reverse(score, eps=1e-5), particles, twisted, steps=50, seed=0)
    assert abs(float(found.log_evidence) - float(exam.log_evidence(law, A, y[0], noise))) < 0.6


@pytest.mark.parametrize("shift", [1e-9, torch.tensor([1e-9, 2e-9], dtype=torch.float64)])
@pytest.mark.parametrize("name", ["matrix", "separable", "blur"])
def test_gram_solve_undoes_the_gram(name: str, shift: float | Tensor) -> None:
    """Small singular values too, as far as the noise lets them count."""
    small = torch.diag(torch.tensor([1.0, 0.5, 1e-3, 3e-5], dtype=torch.float64))
    made = {
        "matrix": lambda: operators.Matrix((4,), small), "separable": lambda: Separable((1, 4, 4), small, torch.eye(4)),
        "blur": lambda: operators.Blur((1, 16, 16), gaussian_kernel(1.6)),
    }  # fmt: skip
    operator = made[name]()
    y = normals(2, *operator.measured)
    z = operator.gram_solve(y, shift, 1.0)
    own = shift if isinstance(shift, float) else shift.reshape(-1, *(1,) * (y.dim() - 1))
    torch.testing.assert_close(own * z + operator.forward(operator.adjoint(z)), y, rtol=1e-5, atol=1e-5)
