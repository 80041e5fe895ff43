"""What a corrector is worth at equal calls: squared sliced Wasserstein distance of 20,000 samples, reverse VP SDE, exact scores.

    python benchmarks/correctors.py [calls ...]

A solve starts from the exact p_T and ends with the exact p_eps where nothing is lost on the way.  Values are unbiased and may be negative; in brackets
the standard error.  Two minutes on one core.
"""

from __future__ import annotations

import sys
from typing import Any

import torch

import sdesolve as sd
from sdesolve import exam

N = 20_000
TARGETS = {"Gaussian": exam.gaussian_1d(std=0.3, mean=0.5), "mixture_2d": exam.mixture_2d()}
CORRECTORS: dict[str, dict[str, Any] | None] = {
    "none": None,
    "langevin": {"corrector": "langevin"},
    "mala": {"corrector": "mala"},
    "hmc": {"corrector": "hmc"},
    "hmc, accept": {"corrector": "hmc", "accept": True},
    "underdamped": {"corrector": "underdamped"},
}


def distance(target: exam.Target, predictor: str, corrector: dict[str, Any] | None, nfe: int) -> exam.Measured:
    """From p_eps, for a budget of calls."""
    p = sd.VPSDE()
    x = target.perturbed(p, p.T).sample(N, seed=1)
    how: dict[str, Any] = {"method": predictor} if corrector is None else {"method": "pc", "predictor": predictor, **corrector}
    sol = sd.solve(p.reverse(target.score(p)), x, nfe=nfe, grid="log_snr", seed=2, **how)
    return exam.sliced_wasserstein2(sol.x, target.perturbed(p, p.eps))


def main(budgets: list[int]) -> None:
    """Print the table."""
    print("| predictor | corrector | " + " | ".join(f"{name}, {nfe} calls" for name in TARGETS for nfe in budgets) + " |")
    print("|---|---|" + "---|" * (len(TARGETS) * len(budgets)))
    for predictor in ("reverse_diffusion", "ddim"):
        for name, corrector in CORRECTORS.items():
            found = [distance(target, predictor, corrector, nfe) for target in TARGETS.values() for nfe in budgets]
            print(f"| {predictor} | {name} | " + " | ".join(f"{m.value:.1e} ({m.standard_error:.0e})" for m in found) + " |", flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main([int(text) for text in sys.argv[1:]] or [48, 200])
