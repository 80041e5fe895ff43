"""Train a classifier of MNIST's digits, or of another data set of ten classes in its layout.

    python benchmarks/mnist_classifier.py ../shared/data/mnist runs/classifier

writes ``classifier.safetensors``, weights in half precision, and ``classifier.json``, how they came about and what they are worth.  It judges
in benchmarks/embedded_model.py and in ``sdesolve-gen benchmark --classifier``.  The two that ``sdesolve-gen evaluate`` finds in the package:

    python benchmarks/mnist_classifier.py ../shared/data/mnist sdesolve_gen/assets/features_mnist
    python benchmarks/mnist_classifier.py ../shared/data/fashion_mnist sdesolve_gen/assets/features_fashion_mnist --title Fashion-MNIST
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from sdesolve.files import sha256
from sdesolve_gen._versions import versions
from sdesolve_gen.data import read_data, scaled
from sdesolve_gen.evaluation.classifier import Classifier, load_classifier, probabilities
from sdesolve_gen.training.order import batch_indices

BATCH = 128


def fit(images: Tensor, labels: Tensor, epochs: int, seed: int, device: str) -> Classifier:
    """A classifier trained with SGD and a one-cycle learning rate."""
    torch.manual_seed(seed)
    classifier = Classifier(images.shape[1], images.shape[-1]).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    steps = epochs * (len(images) // BATCH)
    optimiser = torch.optim.SGD(classifier.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=0.1, total_steps=steps)
    for step in tqdm(range(steps), unit="step"):
        rows = batch_indices(len(images), BATCH, seed, step)
        batch = scaled(images[rows]).to(device, memory_format=torch.channels_last)
        with torch.autocast(batch.device.type, torch.bfloat16):
            loss = F.cross_entropy(classifier(batch), labels[rows].to(device))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    return classifier.cpu().eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder with train.parquet and test.parquet")
    parser.add_argument("out", type=Path, help="folder for the classifier")
    parser.add_argument("--title", default="MNIST", help="what the images are, for the card")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--limit", type=int, help="use the first LIMIT training images only")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()

    (images, labels), (test_images, test_labels) = (read_data(arguments.data / f"{part}.parquet")[:2] for part in ("train", "test"))
    start = time.perf_counter()
    classifier = fit(images[: arguments.limit], labels[: arguments.limit], arguments.epochs, arguments.seed, arguments.device)
    seconds = time.perf_counter() - start

    path = arguments.out / "classifier.safetensors"
    arguments.out.mkdir(parents=True, exist_ok=True)
    halves = {name: (tensor.half() if tensor.is_floating_point() else tensor).contiguous() for name, tensor in classifier.state_dict().items()}
    save_file(halves, path)
    predicted = probabilities(load_classifier(arguments.out), scaled(test_images)).argmax(1)
    card = {
        "title": arguments.title,
        "features": "the last stage, averaged over its places: 128 numbers of an image",
        "test_accuracy": float((predicted == test_labels).double().mean()),
        "test_images": len(test_images),
        "epochs": arguments.epochs,
        "limit": arguments.limit,
        "seed": arguments.seed,
        "seconds": round(seconds, 1),
        "command": f"python benchmarks/mnist_classifier.py {' '.join(sys.argv[1:])}",
        "versions": versions(),
        "sha256": sha256(path),
        "compares_with": "distances by these very weights alone, NOT with published FID",
    }
    (arguments.out / "classifier.json").write_text(json.dumps(card, indent=2) + "\n")
    print(f"test accuracy {100 * card['test_accuracy']:.2f} % on {len(test_images)} images, {arguments.epochs} epochs in {seconds:.0f} s; wrote {path}")


if __name__ == "__main__":
    main()
