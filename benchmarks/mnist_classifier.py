"""A small convolutional classifier of MNIST digits, independent of everything in sdesolve: the judge of benchmarks/embedded_model.py.

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
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import tqdm

from sdesolve_gen.training.data import batch_indices, read_images

BATCH = 128


class Classifier(nn.Sequential):
    """Images (B, 1, 28, 28) in [-1, 1] -> logits (B, 10)."""

    def __init__(self) -> None:
        super().__init__(*_stage(1, 32), *_stage(32, 64), *_stage(64, 128), nn.Flatten(), nn.Linear(128 * 3 * 3, 10))


def _stage(inputs: int, outputs: int) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(), nn.MaxPool2d(2)]


def load_classifier(folder: str | Path) -> Classifier:
    """The trained classifier of a folder, in evaluation mode."""
    path = Path(folder) / "classifier.safetensors"
    if not path.is_file():
        raise SystemExit(f"{path} is not there; make it: python benchmarks/mnist_classifier.py ../shared/data/mnist {folder}")
    classifier = Classifier()
    classifier.load_state_dict(load_file(path))
    return classifier.eval()


def scaled(images: Tensor) -> Tensor:
    """uint8 -> [-1, 1], the middle of each of the 256 bins."""
    return (images.float() + 0.5) / 128 - 1


@torch.no_grad()
def probabilities(classifier: Classifier, images: Tensor) -> Tensor:
    """(n, 10) class probabilities of images in [-1, 1]."""
    return torch.cat([classifier(part).softmax(1) for part in images.split(500)])


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
