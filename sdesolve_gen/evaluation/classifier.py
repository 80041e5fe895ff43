"""A small convolutional classifier of grey 28 x 28 images, independent of every model that it judges, and its features.

``benchmarks/mnist_classifier.py`` trains it.  Two come with the package, on MNIST and on Fashion-MNIST, with weights in half precision.
"""

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
    """The trained classifier of a folder, in evaluation mode and single precision.

    Raises:
        FileNotFoundError: the folder has no ``classifier.safetensors``.
    """
    path = Path(folder) / "classifier.safetensors"
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not there; make it: python benchmarks/mnist_classifier.py ../shared/data/mnist {folder}")
    classifier = Classifier()
    classifier.load_state_dict(load_file(path))  # copies into single precision
    return classifier.eval().requires_grad_(False)


@torch.no_grad()
def features_and_probabilities(classifier: Classifier, images: Tensor) -> tuple[Tensor, Tensor]:
    """(n, 128) activations of the last stage, averaged over its 3 x 3 places, and (n, 10) class probabilities, of images in [-1, 1]."""
    layers = list(classifier)
    stages, head = nn.Sequential(*layers[:-2]), nn.Sequential(*layers[-2:])
    ends = [stages(part) for part in images.split(PART)]
    return torch.cat([end.mean((2, 3)) for end in ends]), torch.cat([head(end).softmax(1) for end in ends])


def probabilities(classifier: Classifier, images: Tensor) -> Tensor:
    """(n, 10) class probabilities of images in [-1, 1]."""
    return features_and_probabilities(classifier, images)[1]


def features(classifier: Classifier, images: Tensor) -> Tensor:
    """(n, 128) features of images in [-1, 1]."""
    return features_and_probabilities(classifier, images)[0]
