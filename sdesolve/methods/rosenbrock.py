"""Rosenbrock methods for stiff ODEs: implicit in the Jacobian, so each stage is one linear system and nothing is iterated.

With J = df/dx and f_t = df/dt at (x, t0), for every sample by itself,

    (I - h gamma J) u_i = gamma (h f(x + sum_j a_ij u_j, t0 + alpha_i h) + sum_j c_ij u_j + gamma_i h^2 f_t),
    x1 = x + sum_i m_i u_i,     error = sum_i e_i u_i,     x(t0 + theta h) = x + sum_ij p_ij theta^j u_i.

[Hairer & Wanner 1996, IV.7]
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.func import jvp, vmap

from .._arrays import Number, bcast
from ..problems import Problem
from .base import Facts, Step, StepNoise, Stepper
from .runge_kutta import Dense, Estimate, Row, between, weighted
from .trees import check_order, matrix

LARGEST = 512
"""Most numbers in the state of one sample: a Jacobian of that many columns is made and factorised for each sample and step."""


@dataclass(frozen=True)
class Rosenbrock(Stepper):
    """A Rosenbrock method.

    The Jacobian comes from forward-mode differentiation of the drift (``torch.func.jvp``), all its columns and f_t in one call,
    which counts as one and costs about as much as d + 2 calls for a state of d numbers.  So d is at most 512.  With a Jacobian
    that is wrong, as of a drift that calls ``detach``, the error estimate still holds, and the steps become short.

    Arguments:
        a, c: rows of the strictly lower triangles, the first of them empty.
        m: weights of the stages.
        gamma: the diagonal coefficient.
        order: p where the global error falls as h^p.
        dense: the continuous extension.
        estimate: the error estimate.
        reference: where it was published.

    Raises:
        ValueError: a tableau that breaks an order condition of the method, of the embedded one or of the continuous extension.
    """

    a: tuple[Row, ...]
    c: tuple[Row, ...]
    m: Row
    gamma: float
    order: int
    dense: Dense
    estimate: Estimate
    reference: str = ""

    def __post_init__(self) -> None:
        """The order conditions are those of the untransformed coefficients:  (gamma_ij) = (diag(1/gamma) - C)^-1,  alpha = a (gamma_ij)."""
        alpha, gamma = self._untransformed
        m, e, p = (np.array(weights) for weights in (self.m, self.estimate.weights, self.dense.weights))
        check_order(self.reference, self.order, m @ gamma, alpha, alpha + gamma)
        check_order(f"{self.reference}, error estimate", self.estimate.order - 1, (m - e) @ gamma, alpha, alpha + gamma)
        check_order(f"{self.reference}, dense output", self.dense.order, gamma.T @ p, alpha, alpha + gamma)
        if np.abs(p.sum(1) - m).max() > 1e-12 * np.abs(p).max():
            raise ValueError(f"tableau [{self.reference}]: the dense output does not end at x1.")

    @property
    def error_order(self) -> int:  # type: ignore[override]
        return self.estimate.order

    @cached_property
    def facts(self) -> Facts:  # type: ignore[override]
        return Facts(evals=len(self.m), ode=self.order, dense=self.dense.order, largest=LARGEST, reference=self.reference)

    @cached_property
    def _untransformed(self) -> tuple[np.ndarray, np.ndarray]:
        stages = len(self.m)
        gamma = np.linalg.inv(np.eye(stages) / self.gamma - matrix(self.c, stages))
        return matrix(self.a, stages) @ gamma, gamma

    @cached_property
    def _times(self) -> tuple[list[float], list[float]]:
        """alpha_i and gamma_i, the row sums."""
        alpha, gamma = (rows.sum(1) for rows in self._untransformed)
        return alpha.tolist(), np.where(abs(gamma) < 1e-12, 0.0, gamma).tolist()

    def step(self, problem: Problem, x: Tensor, t0: Number, t1: Number, noise: StepNoise | None, carry: Any) -> Step:
        h = bcast(t1 - t0, x)
        slope, jacobian, in_time = _linearised(problem, x, t0)
        solve = _solver(self.gamma * bcast(t1 - t0, jacobian), jacobian)
        u: list[Tensor] = []
        for a, c, alpha, gamma in zip(self.a, self.c, *self._times, strict=True):
            stage = x
            if u:
                stage = x + weighted(a, u)
                slope = problem.drift(stage, between(t0, t1, alpha))
            right = h * (slope + gamma * h * in_time) if gamma else h * slope
            u.append(solve(self.gamma * (right + weighted(c, u) if u else right)))
        return Step(x + weighted(self.m, u), weighted(self.estimate.weights, u), stages=u)

    def interpolant(self, problem: Problem, x: Tensor, t0: Number, t1: Number, stages: Sequence[Tensor]) -> list[Tensor]:
        return [weighted(weights, stages) for weights in zip(*self.dense.weights, strict=True)]


def _linearised(problem: Problem, x: Tensor, t: Number) -> tuple[Tensor, Tensor, Tensor]:
    """f (B, *event), df/dx (B, d, d) and df/dt (B, *event); as rows do not mix, one direction serves them all."""
    rows, size = len(x), x[0].numel()
    time = t if isinstance(t, Tensor) else torch.full((), t, dtype=torch.float64, device=x.device)
    directions = torch.eye(size + 1, dtype=x.dtype, device=x.device)
    in_x = directions[:, None, :size].expand(-1, rows, -1).reshape(-1, *x.shape)
    in_t = directions[:, size].to(time).reshape(-1, *(1,) * time.dim()).expand(-1, *time.shape)

    def along(dx: Tensor, dt: Tensor) -> Any:
        return jvp(problem.drift, (x, time), (dx, dt))

    slope, columns = vmap(along, out_dims=(None, 0))(in_x, in_t)  # type: ignore[arg-type]
    return slope, columns[:size].reshape(size, rows, size).permute(1, 2, 0), columns[size]


def _solver(h_gamma: Number, jacobian: Tensor) -> Callable[[Tensor], Tensor]:
    """The inverse of  I - h gamma J  applied to a (B, *event), by one factorisation a sample, in float32 at least."""
    system = torch.eye(jacobian.shape[-1], dtype=jacobian.dtype, device=jacobian.device) - h_gamma * jacobian
    factors, pivots, _ = torch.linalg.lu_factor_ex(system.to(torch.promote_types(system.dtype, torch.float32)))

    def solve(right: Tensor) -> Tensor:
        return torch.linalg.lu_solve(factors, pivots, right.reshape(*system.shape[:2], 1).to(factors)).reshape(right.shape).to(right)

    return solve


@cache
def rodas5p() -> Rosenbrock:
    """Steinebach's Rodas5P, 5(4), stiffly accurate and L-stable. Eight calls a step and a Jacobian; for stiff problems of few dimensions."""
    a = (
        (),
        (3.0,),
        (2.849394379747939, 0.45842242204463923),
        (-6.954028509809101, 2.489845061869568, -10.358996098473584),
        (2.8029986275628964, 0.5072464736228206, -0.3988312541770524, -0.04721187230404641),
        (-7.502846399306121, 2.561846144803919, -11.627539656261098, -0.18268767659942256, 0.030198172008377946),
    )
    c = (
        (),
        (-14.155112264123755,),
        (-17.97296035885952, -2.859693295451294),
        (147.12150275711716, -1.41221402718213, 71.68940251302358),
        (165.43517024871676, -0.4592823456491126, 42.90938336958603, -5.961986721573306),
        (24.854864614690072, -3.0009227002832186, 47.4931110020768, 5.5814197821558125, -0.6610691825249471),
        (30.91273214028599, -3.1208243349937974, 77.79954646070892, 34.28646028294783, -19.097331116725623, -28.087943162872662),
        (37.80277123390563, -3.2571969029072276, 112.26918849496327, 66.9347231244047, -40.06618937091002, -54.66780262877968, -9.48861652309627),
    )
    h = (  # of  (1 - theta) x + theta (x1 + (1 - theta) (H_1 + theta (H_2 + theta H_3))),  H_l = sum_i h_li u_i
        (25.948786856663858, -2.5579724845846235, 10.433815404888879, -2.3679251022685204,
         0.524948541321073, 1.1241088310450404, 0.4272876194431874, -0.17202221070155493),
        (-9.91568850695171, -0.9689944594115154, 3.0438037242978453, -24.495224566215796,
         20.176138334709044, 15.98066361424651, -6.789040303419874, -6.710236069923372),
        (11.419903575922262, 2.8879645146136994, 72.92137995996029, 80.12511834622643,
         -52.072871366152654, -59.78993625266729, -0.15582684282751913, 4.883087185713722),
    )  # fmt: skip
    last = (*a[5], 1.0, 1.0)
    m = (*last, 1.0)
    dense = tuple((w + x, y - x, z - y, -z) for w, x, y, z in zip(m, *h, strict=True))
    return Rosenbrock((*a, last[:6], last), c, m, 0.21193756319429014, 5, Dense(4, dense), Estimate(5, (0.0,) * 7 + (1.0,)), "Steinebach 2023")
