"""Train the digit classifier that judges in benchmarks/embedded_model.py and in ``sdesolve-gen benchmark --classifier``.

    python benchmarks/mnist_classifier.py ../shared/data/mnist runs/classifier

writes ``classifier.safetensors`` and ``classifier.json`` (test accuracy and how it was reached).
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from sdesolve_gen.benchmark.classifier import Classifier, probabilities
from sdesolve_gen.training.data import batch_indices, read_images, scaled

BATCH = 128


def fit(images: Tensor, labels: Tensor, epochs: int, seed: int) -> Classifier:
    """A classifier trained with SGD and a one-cycle learning rate."""
    torch.manual_seed(seed)
    classifier = Classifier().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    steps = epochs * (len(images) // BATCH)
    optimiser = torch.optim.SGD(classifier.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=0.1, total_steps=steps)
    for step in tqdm(range(steps), unit="step"):
        rows = batch_indices(len(images), BATCH, seed, step)
        batch = scaled(images[rows]).contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            loss = F.cross_entropy(classifier(batch), labels[rows])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    return classifier.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder with train.parquet and test.parquet")
    parser.add_argument("out", type=Path, help="folder for the classifier")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--limit", type=int, help="use the first LIMIT training images only")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()

    (images, labels), (test_images, test_labels) = (read_images(arguments.data / f"{part}.parquet") for part in ("train", "test"))
    start = time.perf_counter()
    classifier = fit(images[: arguments.limit], labels[: arguments.limit], arguments.epochs, arguments.seed)
    seconds = time.perf_counter() - start
    accuracy = float((probabilities(classifier, scaled(test_images)).argmax(1) == test_labels).double().mean())

    arguments.out.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in classifier.state_dict().items()}, arguments.out / "classifier.safetensors")
    report = {"test_accuracy": accuracy, "epochs": arguments.epochs, "limit": arguments.limit, "seed": arguments.seed, "seconds": round(seconds, 1)}
    (arguments.out / "classifier.json").write_text(json.dumps(report, indent=2) + "\n")
    print(f"test accuracy {100 * accuracy:.2f} % on {len(test_images)} images, {arguments.epochs} epochs in {seconds:.0f} s; wrote {arguments.out}/classifier.safetensors")


if __name__ == "__main__":
    main()
