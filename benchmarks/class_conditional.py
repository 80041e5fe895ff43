"""Does a classifier make a model that knows no classes draw the one that is wanted?  Judged by another that has never seen noise.

    python benchmarks/mnist_classifier.py ../shared/data/mnist runs/classifier     (once)
    python benchmarks/class_conditional.py runs/classifier runs/class_conditional

prints the agreement for a few methods and scales, and writes ``class_conditional.json`` and a PNG for each row, a column a class.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import sdesolve_gen as gen
from sdesolve_gen.evaluation.classifier import load_classifier, probabilities
from sdesolve_gen.images import write_png

ROWS: list[tuple[str, dict[str, Any], float]] = [  # method, options, scale
    ("ddim", {"steps": 30}, 1.0),
    ("ddim", {"steps": 30}, 3.0),
    ("dpmpp_2m", {"steps": 30}, 1.0),
    ("dpmpp_2m", {"steps": 30}, 3.0),
    ("dpmpp_2m", {"steps": 30}, 6.0),
    ("pc", {"steps": 50}, 6.0),
]
CLASSES = 10


def drawn(model: gen.Model, classifier: gen.Classifier, row: tuple[str, dict[str, Any], float], labels: Tensor, seed: int) -> tuple[Tensor, dict[str, Any]]:
    """The images of one row of the table, and what they cost."""
    method, options, scale = row
    start = time.perf_counter()
    samples = model.draw(len(labels), method, seed=seed, batch_size=100, labels=labels, classifier=classifier, classifier_scale=scale, **options)
    return samples.images.cpu(), {"nfe": float(samples.nfe.double().mean()), "seconds": round(time.perf_counter() - start, 1), "failed": int((samples.status != "ok").sum())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("judge", type=Path, help="folder that mnist_classifier.py wrote")
    parser.add_argument("out", type=Path, help="folder for pictures and JSON")
    parser.add_argument("--n", type=int, default=20, help="images a class")
    parser.add_argument("--rows", type=int, nargs="+", choices=range(len(ROWS)), default=list(range(len(ROWS))), help="of the table")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()

    model, classifier, judge = gen.load("mnist", arguments.device), gen.load_classifier("mnist_classifier", arguments.device), load_classifier(arguments.judge)
    labels = torch.arange(CLASSES).repeat(arguments.n)
    arguments.out.mkdir(parents=True, exist_ok=True)
    found = []
    print(f"{len(labels)} images, {arguments.n} a class\n{'method':<10} {'steps':>5} {'scale':>5} {'calls':>6} {'seconds':>8} {'agreement':>10} {'+-':>5}   by class")
    for row in (ROWS[i] for i in arguments.rows):
        images, cost = drawn(model, classifier, row, labels, arguments.seed)
        right = probabilities(judge, images.nan_to_num(0.0)).argmax(1) == labels
        share = float(right.double().mean())
        error = math.sqrt(share * (1 - share) / len(labels))
        by_class = right.reshape(arguments.n, CLASSES).double().mean(0).tolist()
        method, options, scale = row
        found.append({"method": method, **options, "scale": scale, **cost, "agreement": share, "standard_error": error, "by_class": by_class})
        write_png(arguments.out / f"{method}-{scale:g}.png", images[: 10 * CLASSES], model.data_range)
        shares = " ".join(f"{100 * s:3.0f}" for s in by_class)
        print(f"{method:<10} {options['steps']:>5} {scale:>5g} {cost['nfe']:>6.0f} {cost['seconds']:>8.1f} {100 * share:>9.1f}% {100 * error:>5.1f}   {shares}", flush=True)
    (arguments.out / "class_conditional.json").write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
