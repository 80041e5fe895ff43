"""What a step, a network call and a sampler's memory cost, and how far a number of calls takes each sampler."""

from __future__ import annotations

import torch

import sdesolve as sd
from sdesolve_gen.benchmark import metrics
from sdesolve_gen.benchmark.contenders import ours
from sdesolve_gen.benchmark.problems import Problem, Sources, make
from sdesolve_gen.benchmark.runner import sampled

METHODS = ["ddim", "dpmpp_2m", "unipc", "deis", "dpmpp_2m_sde", "sa_solver", "pc"]
ROWS = 8192


def problem() -> Problem:
    return make("mixture_2d", ROWS, Sources())


class Step:
    """50 steps on 64 images with a null model: the time and the memory are the sampler's own."""

    params = (METHODS,)
    param_names = ("method",)

    def setup(self, method: str) -> None:
        torch.set_num_threads(1)
        process = sd.VPSDE()
        self.problem = process.reverse(lambda x, t: torch.zeros_like(x))
        self.x = process.prior((64, 3, 32, 32), seed=0)

    def time_fifty_steps(self, method: str) -> None:
        sd.solve(self.problem, self.x, method, steps=50, seed=0)

    def peakmem_fifty_steps(self, method: str) -> None:
        sd.solve(self.problem, self.x, method, steps=50, seed=0)


class Quality:
    """Calls that are made of a budget, and what they lead to."""

    params = ([5, 10, 20], METHODS)
    param_names = ("budget", "method")

    def setup(self, budget: int, method: str) -> None:
        torch.set_num_threads(1)
        self.problem, self.contender = problem(), ours([method])[0]

    def track_calls(self, budget: int, method: str) -> float:
        return float(sampled(self.problem, self.contender, budget, 0)[1])

    def track_error(self, budget: int, method: str) -> float:
        """Sliced Wasserstein-2 distance, floor included, which is the same for all."""
        reference = metrics.Reference.of(self.problem.draws(4 * ROWS, 1), ROWS, None)
        return reference.measure(sampled(self.problem, self.contender, budget, 0)[0])["sliced_w2"]

    track_calls.unit = "network calls"
    track_error.unit = "units of the data"
