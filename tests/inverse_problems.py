"""Linear-Gaussian inverse problems, whose posterior is known, and the smallest operators there are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from problems import mixture_score
from torch import Tensor

import sdesolve as sd
from sdesolve import exam
from sdesolve_gen.conditioning import CONDITIONINGS, SVD, Measurement, Operator, made


class Dense(Operator):
    """A matrix, (m, d)."""

    def __init__(self, matrix: Tensor) -> None:
        self.matrix = matrix.double()
        self.measured, self.event = (matrix.shape[0],), (matrix.shape[1],)

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.matrix.T.to(x)

    def adjoint(self, y: Tensor) -> Tensor:
        return y @ self.matrix.to(y)

    def svd(self) -> SVD:
        u, s, vt = torch.linalg.svd(self.matrix, full_matrices=False)
        return SVD(s, lambda x: x @ vt.T.to(x), lambda z: z @ vt.to(z), lambda y: y @ u.to(y))


class ZeroOne(Operator):
    """A mask that leaves zeros where nothing is seen: A A^T is not the identity, but on what A can measure."""

    def __init__(self, mask: Tensor) -> None:
        self.mask, self.event, self.measured = mask, tuple(mask.shape), tuple(mask.shape)

    def forward(self, x: Tensor) -> Tensor:
        return self.mask.to(x) * x

    def adjoint(self, y: Tensor) -> Tensor:
        return self.mask.to(y) * y


@dataclass
class Verdict:
    """How a sampler's draws compare with the posterior, along the axes in which that has a width."""

    cover: float
    """Share of draws in the true central 90 % interval."""
    mean: float
    """Error of the mean in posterior standard deviations, root mean square."""
    variance: float
    """Ratio of variances, mean."""
    residual: float
    """Standard deviation of y - A x."""
    nfe: int


@dataclass
class LinearGaussian:
    """x_0 ~ N(0, C) seen as y = A x_0 + noise_std n."""

    covariance: Tensor
    matrix: Tensor
    y: Tensor
    noise_std: float = 0.0

    def posterior(self) -> tuple[Tensor, Tensor]:
        """Mean and covariance."""
        a, c = self.matrix.double(), self.covariance
        gain = c @ a.T @ torch.linalg.inv(a @ c @ a.T + self.noise_std**2 * torch.eye(len(a), dtype=torch.float64))
        return (gain @ self.y.double().T).T[0], c - gain @ a @ c

    def score(self, process: sd.Process) -> sd.Score:
        target = exam.Gaussian([0.0] * len(self.covariance), cov=self.covariance)
        return sd.as_score(mixture_score(exam.Mixture([1.0], [target]), process), process, predicts="score")

    def sampled(self, process: sd.Process, name: str, method: Any, steps: int, rows: int = 4000, options: dict[str, Any] | None = None, **of_method: Any) -> Verdict:
        c = CONDITIONINGS[name](self.score(process), Measurement(Dense(self.matrix), self.y, self.noise_std), **(options or {}))
        x = process.prior((rows, len(self.covariance)), seed=1)
        solution = sd.solve(process.reverse(c.score), x, (c.method or made)(method, **of_method), steps=steps, seed=0, constraint=c.constraint)
        mean, covariance = self.posterior()
        width, axes = torch.linalg.eigh(covariance)
        wide = width > 1e-6
        z = (solution.x.double() - mean) @ axes[:, wide] / width[wide].sqrt()
        return Verdict(
            cover=float((z.abs() < 1.6449).double().mean()),
            mean=float(z.mean(0).square().mean().sqrt()),
            variance=float(z.var(0).mean()),
            residual=float((self.y - solution.x @ self.matrix.T).std()),
            nfe=int(solution.nfe),
        )


def chained(d: int, correlation: float = 0.9) -> Tensor:
    """Covariance of d numbers of variance 1, each correlated with the next."""
    i = torch.arange(d, dtype=torch.float64)
    return correlation ** (i[:, None] - i).abs()


PAIR = LinearGaussian(chained(2), torch.tensor([[1.0, 0.0]]), torch.tensor([[1.5]]))
"""The second of two numbers, from the first."""
EVERY_OTHER = LinearGaussian(chained(8), torch.eye(8)[::2], torch.tensor([[1.5, 0.2, -0.5, 0.4]]))
NOISY_PAIR, NOISY_EVERY_OTHER = (LinearGaussian(p.covariance, p.matrix, p.y, 0.3) for p in (PAIR, EVERY_OTHER))
