"""Sparse-view CT and undersampled MRI of real slices: the posterior of a small score network beside filtered back-projection and zero-filling.

    python benchmarks/medical.py ../shared/data/medical [--out runs/medical] [--side 64] [--angles 30] [--acceleration 4]

The prior is trained on what there is: 13 slices, CT, body MR and brain MR, in three folds.  The slices of a fold are reconstructed by a network that was trained on
those of the two others, of all kinds together, in --variants random pictures of them: turned, mirrored, bent, zoomed from the whole slice to 0.4 of it, brighter or
darker.  A run that is repeated with the same settings and --out takes the networks that are there.
Values are intensities over 2,000, so that most lie in [0, 1]; slices are averaged down to --side pixels.

Prints PSNR and SSIM of the classic reconstruction, of a posterior draw (the mean of their figures), and of the mean of --draws draws, all cut to [0, 1]; writes a
picture a kind, of its first three slices, and ``results.json``.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample, interpolate

import sdesolve_gen as gen
from sdesolve.files import atomic
from sdesolve_gen.comparison import in_columns
from sdesolve_gen.conditioning import Operator
from sdesolve_gen.conditioning import operators as ops
from sdesolve_gen.conditioning.metrics import psnr, ssim
from sdesolve_gen.images import to_uint8

RANGE = (0.0, 1.0)
KINDS = {"CT": "CT*.png", "MR": "MR*.png", "brain MR": "XR*.png"}
FOLDS = 3
FINE, CHUNK = 4, 250  # variants are made of slices with 4 times the pixels a side, and then averaged, 250 at a time
SHOWN = 3


def slices(folder: Path, pattern: str, side: int) -> Tensor:
    """(n, 1, side, side) in about [0, 1]."""
    pictures = [torch.from_numpy(np.asarray(Image.open(file)).astype(np.float32)) / 2000 for file in sorted(folder.glob(pattern))]
    return torch.cat([interpolate(picture[None, None], size=(side, side), mode="area") for picture in pictures])


def seen(folder: Path, fold: int, side: int) -> Tensor:
    """(n, 1, side, side): the slices of all kinds that are in other folds; slice i of a kind is in fold i modulo FOLDS."""
    kinds = [slices(folder, pattern, side) for pattern in KINDS.values()]
    return torch.cat([kind[[i for i in range(len(kind)) if i % FOLDS != fold]] for kind in kinds])


def variants(fine: Tensor, n: int, side: int, seed: int) -> Tensor:
    """(n, 1, side, side) uint8, of random slices of ``fine``.

    Turned, half of them by up to 15 degrees and half by any angle; mirrored, and across the diagonal; 1.2 to 0.4 of a side wide, moved as far as that leaves room; up to
    10 % higher or lower than that; bent smoothly; 0.6 to 1.3 times as bright.
    """
    generator = torch.Generator().manual_seed(seed)

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(n, generator=generator)

    def coin() -> Tensor:
        return torch.rand(n, generator=generator) < 0.5

    angle = torch.where(coin(), uniform(-math.pi / 12, math.pi / 12), uniform(-math.pi, math.pi))
    across = 1.2 * (0.4 / 1.2) ** uniform(0, 1)
    down, side_of, room = across * uniform(0.9, 1.1), torch.where(coin(), 1.0, -1.0), (1.1 - across).clamp(min=0.1)
    first = torch.stack([angle.cos() * across * side_of, -angle.sin() * across, uniform(-1, 1) * room], 1)
    second = torch.stack([angle.sin() * down * side_of, angle.cos() * down, uniform(-1, 1) * room], 1)
    affine = torch.where(coin()[:, None, None], torch.stack([first, second], 1), torch.stack([second, first], 1))
    bend, light = 0.03 * torch.randn(n, 2, 4, 4, generator=generator), uniform(0.6, 1.3)[:, None, None, None]
    which = torch.randint(len(fine), (n,), generator=generator)

    def made(rows: Tensor) -> Tensor:
        x = fine[which[rows]]
        bent = interpolate(bend[rows], size=x.shape[2:], mode="bicubic").permute(0, 2, 3, 1)
        moved = grid_sample(x, affine_grid(affine[rows], list(x.shape), align_corners=False) + bent, align_corners=False)
        return to_uint8(light[rows] * interpolate(moved, size=(side, side), mode="area"), RANGE)

    return torch.cat([made(rows) for rows in torch.arange(n).split(CHUNK)])


def prior(arguments: argparse.Namespace, fold: int) -> gen.Model:
    """The network of a fold, trained, or as it is where a run with these settings has trained it."""
    out: Path = arguments.out / f"fold{fold}"
    out.mkdir(parents=True, exist_ok=True)
    data = out / "variants.npz"
    with atomic(data) as path, path.open("wb") as file:
        np.savez(file, images=variants(seen(arguments.data, fold, FINE * arguments.side), arguments.variants, arguments.side, seed=fold)[:, 0].numpy())
    config = gen.TrainConfig(
        data=str(data),
        out=str(out),
        name=f"medical-fold{fold}",
        data_range=list(RANGE),
        network={"width": 32, "multipliers": [1, 2, 2], "blocks": 1, "patch": 2, "fourier_scale": 1.0},
        log_sigma_mean=-1.8,
        log_sigma_std=1.5,
        steps=arguments.updates,
        batch=16,
        warmup=100,
        ema=0.995,
    )
    return gen.train(config)


def operator_of(kind: str, side: int, angles: int, acceleration: int) -> Operator:
    event = (1, side, side)
    return ops.Radon(event, angles) if kind == "CT" else ops.make("mri", event, acceleration=acceleration)


def classic(operator: Operator, y: Tensor) -> Tensor:
    """Filtered back-projection of CT; of MRI zeros where nothing is known, and the conjugate where a coefficient is measured alone, as the image is real."""
    return ops.filtered_back_projection(operator, y) if isinstance(operator, ops.Radon) else operator.pinv(y)


def figures(name: str, images: Tensor, truth: Tensor) -> dict[str, float]:
    images, truth = images.clamp(*RANGE), truth.expand_as(images)
    return {f"{name}_psnr": float(psnr(images, truth, RANGE).mean()), f"{name}_ssim": float(ssim(images, truth, RANGE).mean())}


def reconstructed(model: gen.Model, kind: str, i: int, truth: Tensor, arguments: argparse.Namespace) -> tuple[dict[str, Any], Tensor]:
    """Figures of slice i, and what is shown of it: truth, the classic reconstruction, a draw, the mean of draws, and four times their standard deviation."""
    operator = operator_of(kind, arguments.side, arguments.angles, arguments.acceleration)
    clean = operator.forward(truth)
    y = clean + arguments.noise * torch.randn(clean.shape, generator=torch.Generator().manual_seed(i))
    start = time.perf_counter()
    r = model.restore(y, operator, arguments.noise, "mmps", iterations=arguments.iterations, draws=arguments.draws, steps=arguments.steps, seed=i)
    seconds = time.perf_counter() - start
    old, draws = classic(operator, y), r.images[0]
    said = {"slice": f"{kind} {i}", **figures("classic", old, truth), **figures("draw", draws, truth), **figures("mean", r.mean, truth)}
    said |= {"residual": float(r.residual.mean()) / arguments.noise, "seconds": seconds}
    return said, torch.cat([truth, old, draws[:1], r.mean, 4 * r.std])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--side", type=int, default=64)
    parser.add_argument("--angles", type=int, default=30)
    parser.add_argument("--acceleration", type=int, default=4)
    parser.add_argument("--noise", type=float, default=0.01, help="its standard deviation, for line integrals in image widths and for k-space")
    parser.add_argument("--variants", type=int, default=12_000, help="training pictures of a fold")
    parser.add_argument("--updates", type=int, default=2500, help="of training, for a fold")
    parser.add_argument("--draws", type=int, default=16)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--iterations", type=int, default=5, help="of mmps")
    parser.add_argument("--out", type=Path, default=Path("runs/medical"))
    arguments = parser.parse_args()

    models = [prior(arguments, fold) for fold in range(FOLDS)]
    found: list[dict[str, Any]] = []
    print("| slice | classic PSNR, SSIM | a draw | mean of draws | \\|y - Ax\\| / noise | s |\n|---|---|---|---|---|---|")
    for kind, pattern in KINDS.items():
        shown = []
        for i, truth in enumerate(slices(arguments.data, pattern, arguments.side)):
            said, row = reconstructed(models[i % FOLDS], kind, i, truth[None], arguments)
            found.append(said)
            shown.append(row)
            cells = " | ".join(f"{said[f'{name}_psnr']:.2f}, {said[f'{name}_ssim']:.3f}" for name in ("classic", "draw", "mean"))
            print(f"| {said['slice']} | {cells} | {said['residual']:.3f} | {said['seconds']:.1f} |", flush=True)
        with atomic(arguments.out / f"{kind.replace(' ', '_')}.png") as path:
            names = ["truth", "back-proj." if kind == "CT" else "zero-filled", "a draw", "mean", "4 std"]
            columns = to_uint8(torch.stack(shown[:SHOWN], 1), RANGE)
            in_columns(list(zip(names, columns, strict=True))).quantize(32).save(path, format="PNG", optimize=True)
    with atomic(arguments.out / "results.json") as path:
        path.write_text(json.dumps({**{k: str(v) for k, v in vars(arguments).items()}, "slices": found}, indent=2) + "\n")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
