"""Sparse-view CT and undersampled MRI of real slices: the posterior under a stated substitute prior beside filtered back-projection and zero-filling.

    python benchmarks/medical.py ../shared/data/medical [--side 64] [--angles 30] [--acceleration 4] [--out runs/medical] [--kinds CT --first 3]

The prior is no trained network: thirteen slices are too few for one.  It is the Gaussian  N(m, F F^T + floor^2 I)  of 800 random variants (turned, shifted,
scaled, bent, brighter) of the other slices of the same kind, each slice being left out of its own prior; its score is exact.
Values are intensities over 2,000, so that most lie in [0, 1]; slices are averaged down to --side pixels.  MR 2 is the heart while the other
two MR slices are the pelvis: a prior of other things, shown for what it does.

Prints PSNR and SSIM of the classic reconstruction, of a posterior draw, and of the mean of --draws draws, all cut to [0, 1]; writes a picture a kind, and ``results.json``.
The pictures of docs/tomography.md are those of --first 3.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample, interpolate

import sdesolve as sd
from sdesolve.files import atomic
from sdesolve_gen.comparison import in_columns
from sdesolve_gen.conditioning import CONDITIONINGS, Measurement, Operator
from sdesolve_gen.conditioning import operators as ops
from sdesolve_gen.conditioning.metrics import consistency, psnr, ssim
from sdesolve_gen.images import to_uint8

RANGE = (0.0, 1.0)
KINDS = {"CT": "CT*.png", "MR": "MR*.png", "brain MR": "XR*.png"}
PROCESS = sd.VPSDE()
VARIANTS = 800


def slices(folder: Path, pattern: str, side: int) -> Tensor:
    """(n, 1, side, side) in about [0, 1]."""
    pictures = [torch.from_numpy(np.asarray(Image.open(file)).astype(np.float32)) / 2000 for file in sorted(folder.glob(pattern))]
    return torch.cat([interpolate(picture[None, None], size=(side, side), mode="area") for picture in pictures])


def variants(training: Tensor, n: int, seed: int) -> Tensor:
    """(n, 1, side, side): slices turned by up to 10 degrees, moved by up to 5 %, scaled by 12 %, mirrored, bent smoothly, and up to 20 % brighter or darker."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(n, generator=generator)

    x = training[torch.randint(len(training), (n,), generator=generator)]
    angle, across = uniform(-10, 10).deg2rad(), uniform(0.88, 1.12)
    down, side = across * uniform(0.93, 1.07), torch.sign(uniform(-1, 1))
    rows = [
        torch.stack([angle.cos() * across * side, -angle.sin() * across, uniform(-0.1, 0.1)], 1),
        torch.stack([angle.sin() * down * side, angle.cos() * down, uniform(-0.1, 0.1)], 1),
    ]
    bend = interpolate(0.03 * torch.randn(n, 2, 4, 4, generator=generator), size=x.shape[2:], mode="bicubic")
    places = affine_grid(torch.stack(rows, 1), list(x.shape), align_corners=False) + bend.permute(0, 2, 3, 1)
    return grid_sample(x, places, align_corners=False) * uniform(0.8, 1.2)[:, None, None, None]


def prior_score(training: Tensor, floor: float, seed: int) -> sd.Score:
    """The exact score of the Gaussian of the variants of ``training``."""
    x = variants(training, VARIANTS, seed)
    factor = (x - x.mean(0)).permute(1, 2, 3, 0) / VARIANTS**0.5
    exact = sd.exam.Gaussian(x.mean(0), factor=factor, floor=floor).score(PROCESS)
    return sd.as_score(exact, PROCESS, predicts="score")


def operator_of(kind: str, side: int, angles: int, acceleration: int) -> Operator:
    event = (1, side, side)
    return ops.Radon(event, angles) if kind == "CT" else ops.make("mri", event, acceleration=acceleration)


def classic(operator: Operator, y: Tensor) -> Tensor:
    """Filtered back-projection of CT; of MRI zeros where nothing is known, and the conjugate where a coefficient is measured alone, as the image is real."""
    return ops.filtered_back_projection(operator, y) if isinstance(operator, ops.Radon) else operator.pinv(y)


def posterior(score: sd.Score, measurement: Measurement, draws: int, seed: int, steps: int) -> Tensor:
    """(draws, 1, side, side) draws by MMPS, which is exact for a Gaussian prior once its conjugate gradients have converged."""
    conditioned = CONDITIONINGS["mmps"](score, measurement, iterations=20)
    x = PROCESS.prior((draws, *measurement.operator.event), seed=seed)
    return sd.solve(PROCESS.reverse(conditioned.score), x, "dpmpp_2m_sde", steps=steps, seed=seed, denoise=True).x


def figures(name: str, images: Tensor, truth: Tensor) -> dict[str, float]:
    images, truth = images.clamp(*RANGE), truth.expand_as(images)
    return {f"{name}_psnr": float(psnr(images, truth, RANGE).mean()), f"{name}_ssim": float(ssim(images, truth, RANGE).mean())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--side", type=int, default=64)
    parser.add_argument("--angles", type=int, default=30)
    parser.add_argument("--acceleration", type=int, default=4)
    parser.add_argument("--noise", type=float, default=0.01, help="its standard deviation, for line integrals in image widths and for k-space")
    parser.add_argument("--floor", type=float, default=0.05, help="standard deviation of the prior in every direction beside those of its variants")
    parser.add_argument("--draws", type=int, default=16)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--first", type=int, default=99, help="slices of a kind to reconstruct; the others still are its prior")
    parser.add_argument("--out", type=Path, default=Path("runs/medical"))
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)

    found: list[dict[str, Any]] = []
    print("| slice | classic PSNR, SSIM | a draw | mean of draws | \\|y - Ax\\| / noise | s |\n|---|---|---|---|---|---|")
    for kind in arguments.kinds.split(","):
        every = slices(arguments.data, KINDS[kind], arguments.side)
        operator = operator_of(kind, arguments.side, arguments.angles, arguments.acceleration)
        rows = []
        for i in range(min(arguments.first, len(every))):
            truth, training = every[i : i + 1], torch.cat([every[:i], every[i + 1 :]])
            clean = operator.forward(truth)
            y = clean + arguments.noise * torch.randn(clean.shape, generator=torch.Generator().manual_seed(i))
            start = time.perf_counter()
            drawn = posterior(prior_score(training, arguments.floor, i), Measurement(operator, y, arguments.noise), arguments.draws, i, arguments.steps)
            seconds = time.perf_counter() - start
            old, mean = classic(operator, y), drawn.mean(0, keepdim=True)
            said = {"slice": f"{kind} {i}", **figures("classic", old, truth), **figures("draw", drawn, truth), **figures("mean", mean, truth)}
            said |= {"residual": float(consistency(operator, y, drawn).mean() / arguments.noise), "seconds": seconds}
            found.append(said)
            rows.append(torch.cat([truth, old, drawn[:1], mean, drawn.std(0, keepdim=True) * 4]))
            cells = " | ".join(f"{said[f'{name}_psnr']:.2f}, {said[f'{name}_ssim']:.3f}" for name in ("classic", "draw", "mean"))
            print(f"| {said['slice']} | {cells} | {said['residual']:.3f} | {seconds:.1f} |", flush=True)
        with atomic(arguments.out / f"{kind.replace(' ', '_')}.png") as path:
            names = ["truth", "back-proj." if kind == "CT" else "zero-filled", "a draw", "mean", "4 std"]
            columns = to_uint8(torch.stack(rows, 1), RANGE)
            in_columns(list(zip(names, columns, strict=True))).quantize(32).save(path, format="PNG", optimize=True)
    with atomic(arguments.out / "results.json") as path:
        path.write_text(json.dumps({**{k: str(v) for k, v in vars(arguments).items()}, "slices": found}, indent=2) + "\n")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
