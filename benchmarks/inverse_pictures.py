"""The pictures of the pages on inverse problems: three test digits, five measurements each, by the defaults, and the PSNR of what is in them.

    python benchmarks/inverse_pictures.py ../shared/data/mnist docs/_static [half super4 blur pixels projections]
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from inverse_mnist import SHAPE, TASKS, Task

import sdesolve_gen as gen
from sdesolve_gen.comparison import Comparison, as_picture, compared
from sdesolve_gen.conditioning import operators as ops
from sdesolve_gen.conditioning.metrics import psnr
from sdesolve_gen.data import read_data, scaled

PICTURED = {**TASKS, "projections": lambda: Task("100 random projections, noise 0.05", ops.RandomProjections(SHAPE, count=100, seed=0), 0.05)}


def main(data: Path, out: Path, names: list[str]) -> None:
    model = gen.load("mnist")
    x = scaled(read_data(data / "test.parquet").images[:3])
    for name in names or PICTURED:
        task = PICTURED[name]()
        y = task.operator.forward(x)
        y = y + task.noise_std * torch.randn(y.shape, generator=torch.Generator().manual_seed(0))
        restored = model.restore(y, task.operator, task.noise_std, draws=4, steps=50, seed=0)
        found = Comparison(model, task.operator, y, restored, x, [], {}, 0.0, [])
        compared(found).quantize(16).save(out / f"inverse_{name}.png", optimize=True)
        figures, measured = found.figures(), psnr(as_picture(found), x, model.data_range).mean()
        print(f"{task.title}: PSNR {measured:.1f} dB as measured, {figures['psnr_draws']:.1f} a draw, {figures['psnr_mean']:.1f} the mean of {restored.images.shape[1]}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
