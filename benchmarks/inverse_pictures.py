"""The pictures of docs/inverse_problems.md: three test digits, four measurements each, by the defaults.

    python benchmarks/inverse_pictures.py ../shared/data/mnist docs/_static
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from inverse_mnist import TASKS

import sdesolve_gen as gen
from sdesolve_gen.comparison import Comparison, compared
from sdesolve_gen.data import read_data, scaled


def main(data: Path, out: Path) -> None:
    model = gen.load("mnist")
    x = scaled(read_data(data / "test.parquet").images[:3])
    for name, make in TASKS.items():
        task = make()
        y = task.operator.forward(x)
        y = y + task.noise_std * torch.randn(y.shape, generator=torch.Generator().manual_seed(0))
        restored = model.restore(y, task.operator, task.noise_std, draws=4, steps=50, seed=0)
        compared(Comparison(model, task.operator, y, restored, x, [], {}, 0.0, [])).quantize(16).save(out / f"inverse_{name}.png", optimize=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), Path(sys.argv[2]))
