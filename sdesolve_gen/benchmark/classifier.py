"""A small convolutional classifier of MNIST digits, independent of every model that it judges; ``benchmarks/mnist_classifier.py`` trains it."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

PART = 500  # images at a time


class Classifier(nn.Sequential):
    """Images (B, 1, 28, 28) in [-1, 1] -> logits (B, 10)."""

    def __init__(self) -> None:
        super().__init__(*_stage(1, 32), *_stage(32, 64), *_stage(64, 128), nn.Flatten(), nn.Linear(128 * 3 * 3, 10))


def _stage(inputs: int, outputs: int) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(), nn.MaxPool2d(2)]


def load_classifier(folder: str | Path) -> Classifier:
    """The trained classifier of a folder, in evaluation mode.

    Raises:
        FileNotFoundError: the folder has no ``classifier.safetensors``.
    """
    path = Path(folder) / "classifier.safetensors"
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not there; make it: python benchmarks/mnist_classifier.py ../shared/data/mnist {folder}")
    classifier = Classifier()
    classifier.load_state_dict(load_file(path))
    return classifier.eval()


@torch.no_grad()
def probabilities(classifier: Classifier, images: Tensor) -> Tensor:
    """(n, 10) class probabilities of images in [-1, 1]."""
    return torch.cat([classifier(part).softmax(1) for part in images.split(PART)])


@torch.no_grad()
def features(classifier: Classifier, images: Tensor) -> Tensor:
    """(n, 128) activations of the last stage, averaged over its 3 x 3 places, of images in [-1, 1]."""
    stages = nn.Sequential(*list(classifier)[:-2])  # without flatten and linear
    return torch.cat([stages(part).mean((2, 3)) for part in images.split(PART)])
