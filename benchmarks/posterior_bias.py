"""What a conditioning method's answer is worth: mean, spread and coverage on a Gaussian whose posterior is known.

    python benchmarks/posterior_bias.py [--draws 4000] [--steps 200]

x_0 ~ N(0, [[1, 0.8], [0.8, 1]]), y = the first coordinate + noise = 1, the exact score of VP.  The second coordinate is never measured: what is known of it came by the prior.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

import sdesolve as sd
from sdesolve import exam
from sdesolve_gen.conditioning import CONDITIONINGS, Measurement, Renoised
from sdesolve_gen.conditioning.operators import Matrix

LAW = exam.Gaussian([0.0, 0.0], cov=[[1.0, 0.8], [0.8, 1.0]])
Y = 1.0
ANCESTRAL: tuple[Any, dict[str, Any]] = ("ddim", {"eta": 1.0})
CASES: list[tuple[str, dict[str, Any], tuple[Any, dict[str, Any]]]] = [
    ("mmps", {}, ANCESTRAL),
    ("mmps", {}, ("dpmpp_2m_sde", {})),
    ("pigdm", {}, ANCESTRAL),
    ("pigdm", {"prior_std": 0.5}, ANCESTRAL),
    ("dps", {}, ANCESTRAL),
    ("dps", {"zeta": 2.0}, ANCESTRAL),
    ("ddnm", {}, ANCESTRAL),
    ("ddnm", {}, (Renoised(0.85**2), {})),
    ("diffpir", {"lam": 1.0}, ANCESTRAL),
    ("diffpir", {}, ANCESTRAL),
    ("diffpir", {}, (Renoised(0.3), {})),
]


def posterior(noise_std: float) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of both coordinates."""
    gain = LAW.covariance[:, 0] / (1 + noise_std**2)
    return gain * Y, (LAW.covariance - gain[:, None] * LAW.covariance[0]).diagonal().clamp_min(0).sqrt()


def judged(name: str, options: dict[str, Any], sampler: tuple[Any, dict[str, Any]], noise_std: float, draws: int, steps: int) -> dict[str, Tensor]:
    """Of each coordinate: the error of the mean in true standard deviations, the ratio of the spreads, the mass in the true 90 % interval."""
    process = sd.VPSDE()
    operator = Matrix((2,), torch.tensor([[1.0, 0.0]]))
    base = sd.as_score(LAW.score(process), process, predicts="score")
    c = CONDITIONINGS[name](base, Measurement(operator, torch.full((1, 1), Y, dtype=torch.float64), noise_std), **options)
    method, extra = sampler
    start = process.prior((draws, 2), seed=1, dtype=torch.float64)
    x = sd.solve(process.reverse(c.score), start, method, steps=steps, seed=0, denoise=True, **extra).x
    mean, std = posterior(noise_std)
    inside = ((x - mean).abs() <= 1.6448536 * std).double().mean(0)
    return {"bias": (x.mean(0) - mean) / std, "spread": x.std(0) / std, "coverage": inside}


def table(noise_std: float, draws: int, steps: int) -> Iterator[str]:
    for name, options, sampler in CASES:
        found = judged(name, options, sampler, noise_std, draws, steps)
        chosen = ", ".join(f"{key}={value:g}" for key, value in options.items())
        how = f"`Renoised({sampler[0].share:.3g})`" if isinstance(sampler[0], Renoised) else ", ".join([f"`{sampler[0]}`", *(f"{k}={v:g}" for k, v in sampler[1].items())])
        cells = [f"{float(v[k]):.2f}" for k in (0, 1) for v in found.values()] if noise_std else ["", "", "", *(f"{float(v[1]):.2f}" for v in found.values())]
        yield f"| `{name}` {chosen} | {how} | " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=4000)
    parser.add_argument("--steps", type=int, default=200)
    arguments = parser.parse_args()
    for noise_std in (0.0, 0.1, 0.5):
        print(f"\nnoise {noise_std}\n\n| method | sampler | measured: bias | spread | coverage | not measured: bias | spread | coverage |\n|---|---|---|---|---|---|---|---|")
        for line in table(noise_std, arguments.draws, arguments.steps):
            print(line, flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
