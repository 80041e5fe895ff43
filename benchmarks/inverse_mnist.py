"""The embedded MNIST model and four measurements: what each method of conditioning makes of them, and what it costs.

    python benchmarks/inverse_mnist.py ../shared/data/mnist runs/classifier [--out runs/inverse_mnist] [--n 200] [--methods pigdm,ddnm] [--tasks half]

writes ``results.json`` after every batch of images, from which the same command goes on, and prints a table for each task, and one of all tasks:

    PSNR, SSIM   of one draw and the test image
    digit        share of draws in which an independent classifier sees the digit that the test image shows
    |y - Ax|     root mean square over the declared noise, or as it is without noise, of what the method gave
    calls, s     network calls and seconds a draw: of the processor on a CPU, whatever else it does, and of the clock on a GPU
"""

from __future__ import annotations

import argparse
import inspect
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

import sdesolve_gen as gen
from sdesolve.files import atomic
from sdesolve_gen.conditioning import CONDITIONINGS, Operator
from sdesolve_gen.conditioning import operators as ops
from sdesolve_gen.conditioning.metrics import psnr, ssim
from sdesolve_gen.data import read_data, scaled
from sdesolve_gen.evaluation.classifier import Classifier, load_classifier, probabilities

SHAPE = (1, 28, 28)


class Task(NamedTuple):
    """What is measured, and with how much noise."""

    title: str
    operator: Operator
    noise_std: float


TASKS: dict[str, Callable[[], Task]] = {
    "half": lambda: Task("the right half is unknown", ops.make("box", SHAPE, x0=14, y0=0, x1=28, y1=28), 0.0),
    "super4": lambda: Task("4x super-resolution, noise 0.05", ops.Downsample(SHAPE, 4), 0.05),
    "blur": lambda: Task("Gaussian blur of std 2, noise 0.05", ops.Blur(SHAPE, ops.gaussian_kernel(2.0)), 0.05),
    "pixels": lambda: Task("10 % of the pixels are known", ops.make("random_pixels", SHAPE, missing=0.9), 0.0),
}


def measured(model: gen.Model, task: Task, method: str, x: Tensor, labels: Tensor, first: int, classifier: Classifier) -> dict[str, Any]:
    """The figures of one batch; {"refused": why} where the method has nothing to say."""
    y = task.operator.forward(x)
    y = y + task.noise_std * torch.randn(y.shape, generator=torch.Generator().manual_seed(first))
    clock = time.process_time if model.device.type == "cpu" else time.perf_counter
    start = clock()
    try:
        r = model.restore(y, task.operator, task.noise_std, method, seed=0, sample_ids=range(first, first + len(x)), batch_size=len(x))
    except ValueError as error:
        return {"refused": str(error)}
    seconds = clock() - start
    drawn = r.images[:, 0].cpu()
    kept = float((task.operator.forward(drawn) - y).abs().max()) if task.noise_std == 0 else None
    return {
        "psnr": psnr(drawn, x, model.data_range).tolist(),
        "ssim": ssim(drawn, x, model.data_range).tolist(),
        "digit": (probabilities(classifier, drawn).argmax(1) == labels).tolist(),
        "residual": r.residual[:, 0].tolist(),
        "kept": kept,
        "sampler": r.sampler,
        "nfe": float(r.nfe.double().mean()),
        "seconds": seconds / len(x),
    }


def row(method: str, batches: list[dict[str, Any]], noise_std: float) -> str:
    """One line of the table."""
    if "refused" in batches[0]:
        return f"| `{method}` | refused: {batches[0]['refused'].split(';')[0][:80]} |"
    joined = {name: torch.tensor([value for batch in batches for value in batch[name]]).double() for name in ("psnr", "ssim", "digit", "residual")}
    error = joined["psnr"].std() / len(joined["psnr"]) ** 0.5
    residual = joined["residual"].square().mean().sqrt() / (noise_std or 1.0)
    seconds, nfe = (sum(batch[name] for batch in batches) / len(batches) for name in ("seconds", "nfe"))
    figures = f"{joined['psnr'].mean():.2f} ± {error:.2f} | {joined['ssim'].mean():.3f} | {100 * joined['digit'].mean():.1f} % | {residual:.3f}"
    return f"| `{method}` | {batches[0]['sampler']} | {figures} | {nfe:.0f} | {seconds:.2f} |"


def table(results: dict[str, Any], name: str, methods: list[str]) -> str:
    """All methods of one task."""
    task = TASKS[name]()
    head = f"\n{task.title}\n\n| method | solver | PSNR, dB | SSIM | digit | \\|y - Ax\\|{' / noise' if task.noise_std else ''} | calls | s |\n|---|---|---|---|---|---|---|---|"
    rows = []
    for method in methods:
        batches = [cell for key, cell in results.items() if key.startswith(f"{name}/{method}/")]
        rows += [row(method, batches, task.noise_std)] if batches else []
    return "\n".join([head, *rows])


def summary(results: dict[str, Any], names: list[str], methods: list[str]) -> str:
    """All methods and tasks in one table: PSNR, SSIM, the share of digits, and the number of images where it is not that of the first cell."""
    head = "\n| method | " + " | ".join(TASKS[name]().title for name in names) + " | calls | s a draw |\n" + "|---" * (3 + len(names)) + "|"
    lines, usual = [], 0
    for method in methods:
        cells, costs = [], []
        for name in names:
            batches = [cell for key, cell in results.items() if key.startswith(f"{name}/{method}/") and "refused" not in cell]
            psnrs, ssims, digits = (torch.tensor([value for batch in batches for value in batch[figure]]).double() for figure in ("psnr", "ssim", "digit"))
            usual = usual or len(psnrs)
            apart = f" ({len(psnrs)})" if len(psnrs) != usual else ""
            cells += [f"{psnrs.mean():.1f}, {ssims.mean():.2f}, {100 * digits.mean():.0f} %{apart}" if batches else ""]
            costs += [(batch["nfe"], batch["seconds"]) for batch in batches]
        calls, seconds = (sum(cost) / len(costs) for cost in zip(*costs, strict=True)) if costs else (0, 0)
        lines += [f"| `{method}` | " + " | ".join(cells) + f" | {calls:.0f} | {seconds:.2f} |"] if costs else []
    return "\n".join([head, *lines])


def main() -> None:
    usual = [name for name, method in CONDITIONINGS.items() if list(inspect.signature(method).parameters)[:2] == ["score", "measurement"]]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder with test.parquet")
    parser.add_argument("classifier", type=Path, help="folder that benchmarks/mnist_classifier.py wrote")
    parser.add_argument("--out", type=Path, default=Path("runs/inverse_mnist"))
    parser.add_argument("--n", type=int, default=200, help="test images")
    parser.add_argument("--methods", default=",".join(usual))
    parser.add_argument("--tasks", default=",".join(TASKS))
    parser.add_argument("--model", default="mnist", help="embedded name or folder")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int, default=50, help="images solved together")
    arguments = parser.parse_args()
    methods, tasks = arguments.methods.split(","), arguments.tasks.split(",")

    model, classifier = gen.load(arguments.model, arguments.device), load_classifier(arguments.classifier)
    images, labels = read_data(arguments.data / "test.parquet")[:2]
    x, labels = scaled(images[: arguments.n]), labels[: arguments.n]
    path = arguments.out / "results.json"
    results: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    weights = model.card.get("sha256")
    if results.setdefault("model", weights) != weights:
        parser.error(f"{path} is of another model; expected another --out for {arguments.model}.")
    cells = [(name, method, first) for name in tasks for method in methods for first in range(0, len(x), arguments.batch)]
    for name, method, first in tqdm(cells, unit="batch"):
        last = min(first + arguments.batch, len(x))
        key, start = f"{name}/{method}/{first}-{last}", f"{name}/{method}/0-{min(arguments.batch, len(x))}"
        if key in results or "refused" in results.get(start, {}):
            continue
        results[key] = measured(model, TASKS[name](), method, x[first:last], labels[first:last], first, classifier)
        with atomic(path) as temporary:
            temporary.write_text(json.dumps(results) + "\n")
    asked = {f"{name}/{method}/{first}-{min(first + arguments.batch, len(x))}" for name, method, first in cells}
    found = {key: cell for key, cell in results.items() if key in asked}  # not those of another number or batch of images, which may be the same
    for name in tasks:
        print(table(found, name, methods))
    print(summary(found, tasks, methods))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
