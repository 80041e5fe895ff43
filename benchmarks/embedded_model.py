"""How good are the embedded model's samples?  Each method's digits, judged by a classifier that knows nothing of the model.

    python benchmarks/mnist_classifier.py ../shared/data/mnist runs/classifier     (once)
    python benchmarks/embedded_model.py ../shared/data/mnist runs/classifier runs/embedded

prints a table and writes ``embedded_model.json`` and a PNG grid per method.  The last row is the test set itself: what a
perfect model would show.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import sdesolve_gen as gen
from sdesolve_gen.data import read_data, scaled
from sdesolve_gen.evaluation.classifier import Classifier, load_classifier, probabilities
from sdesolve_gen.images import write_png

METHODS: dict[str, dict[str, Any]] = {"pc": {"steps": 500}, "rk45": {}, "ddim": {"steps": 50}}
CONFIDENT = 0.9


def judged(classifier: Classifier, images: Tensor) -> dict[str, Any]:
    """Fraction of images with a class above ``CONFIDENT``, and the percentage of each digit among all; NaN counts as unsure."""
    best = probabilities(classifier, images.nan_to_num(0.0)).max(1)
    counts = torch.bincount(best.indices, minlength=10)
    return {"confident": float((best.values > CONFIDENT).double().mean()), "digits": [round(100 * int(c) / len(images), 1) for c in counts]}


def measured(model: gen.Model, method: str, n: int, batch_size: int, seed: int) -> tuple[Tensor, dict[str, Any]]:
    """Images of a method, and what they cost."""
    start = time.perf_counter()
    samples = model.draw(n, method, seed=seed, batch_size=batch_size, progress=True, **METHODS[method])
    seconds = time.perf_counter() - start
    nfe = samples.nfe.double()
    cost = {"nfe_mean": float(nfe.mean()), "nfe_min": int(nfe.min()), "nfe_max": int(nfe.max())}
    return samples.images, {**cost, "seconds": round(seconds, 1), "failed": int((samples.status != "ok").sum())}


def line(name: str, row: dict[str, Any]) -> str:
    calls = f"{row['nfe_mean']:.1f}" if "nfe_mean" in row else ""
    seconds = f"{row['seconds']:.1f}" if "seconds" in row else ""
    digits = " ".join(f"{share:5.1f}" for share in row["digits"])
    return f"{name:<12}{calls:>8}{seconds:>10}{row.get('failed', 0):>8}{100 * row['confident']:>13.1f}   {digits}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder with test.parquet")
    parser.add_argument("classifier", type=Path, help="folder that mnist_classifier.py wrote")
    parser.add_argument("out", type=Path, help="folder for the grids and the JSON")
    parser.add_argument("--model", default="mnist", help="embedded name or folder")
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--n", type=int, default=1000, help="images a method")
    parser.add_argument("--batch-size", type=int, default=250)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()

    classifier, model = load_classifier(arguments.classifier), gen.load(arguments.model, arguments.device)
    rows: dict[str, dict[str, Any]] = {}
    for method in arguments.methods:
        images, cost = measured(model, method, arguments.n, arguments.batch_size, arguments.seed)
        rows[method] = {**METHODS[method], **cost, **judged(classifier, images.cpu())}
        write_png(arguments.out / f"{method}.png", images[:100], model.data_range)
    test = scaled(read_data(arguments.data / "test.parquet").images)
    rows["test set"] = judged(classifier, test)
    write_png(arguments.out / "test.png", test[:100], model.data_range)

    run = {"model": model.card["name"], "sha256": model.card.get("sha256"), "n": arguments.n, "batch_size": arguments.batch_size, "seed": arguments.seed}
    setting = {"device": arguments.device, "threads": torch.get_num_threads(), "torch": str(torch.__version__)}
    (arguments.out / "embedded_model.json").write_text(json.dumps({**run, **setting, "rows": rows}, indent=2) + "\n")
    print(f"{'method':<12}{'NFE':>8}{'seconds':>10}{'failed':>8}{'> 0.9, %':>13}   % of each digit, 0..9")
    for name, row in rows.items():
        print(line(name, row))


if __name__ == "__main__":
    main()
