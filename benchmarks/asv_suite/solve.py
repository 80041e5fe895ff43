"""Time and network calls of the ways in which ``solve`` is used most."""

from __future__ import annotations

import torch
from torch import Tensor

import sdesolve as sd

PROCESS = sd.VPSDE()
TARGET = sd.exam.mixture_2d()


def null_model(x: Tensor, t: Tensor) -> Tensor:
    return torch.zeros_like(x)


class FixedSteps:
    """20 steps with a null model: the loop, the coefficients and the noise alone."""

    params = ([(64, 2), (64, 3, 32, 32), (100_000, 1)], ["euler_maruyama", "pc", "rk4"])
    param_names = ("shape", "method")

    def setup(self, shape: tuple[int, ...], method: str) -> None:
        torch.set_num_threads(1)
        self.problem, self.x = PROCESS.reverse(null_model), PROCESS.prior(shape, seed=0)

    def time_solve(self, shape: tuple[int, ...], method: str) -> None:
        sd.solve(self.problem, self.x, method, steps=20, seed=0)


class ExactScore:
    """256 samples of a mixture in the plane, with its exact score."""

    def setup(self) -> None:
        torch.set_num_threads(1)
        self.problem, self.x = PROCESS.reverse(TARGET.score(PROCESS)), PROCESS.prior((256, 2), seed=0)

    def time_pc(self) -> None:
        sd.solve(self.problem, self.x, "pc", steps=50, seed=0)

    def time_rk45(self) -> None:
        sd.solve(self.problem, self.x, "rk45", rtol=1e-4, atol=1e-4)

    def track_calls_of_rk45(self) -> float:
        return float(sd.solve(self.problem, self.x, "rk45", rtol=1e-4, atol=1e-4).nfe.double().mean())

    def track_distance_of_pc(self) -> float:
        """Energy distance to as many samples of the target, in standard errors: far beyond 3, the sampler has a bias."""
        measured = sd.exam.energy_distance(sd.solve(self.problem, self.x, "pc", steps=200, seed=0).x, TARGET)
        return measured.value / measured.standard_error

    track_calls_of_rk45.unit = "calls a sample"
    track_distance_of_pc.unit = "standard errors"
