"""A small convolutional classifier of small images, independent of every model that it judges, and its features.

``benchmarks/mnist_classifier.py`` trains it.  Two come with the package, on MNIST and on Fashion-MNIST, with weights in half precision.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from .._errors import ModelFileError

PART = 500  # images at a time


class Classifier(nn.Sequential):
    """Images (B, channels, side, side) in [-1, 1] -> logits (B, 10)."""

    def __init__(self, channels: int = 1, side: int = 28) -> None:
        super().__init__(*_stage(channels, 32), *_stage(32, 64), *_stage(64, 128), nn.Flatten(), nn.Linear(128 * (side // 8) ** 2, 10))

    def takes(self) -> tuple[int, int]:
        """Channels and the least side of the images that it takes; up to 7 pixels more a side fall out."""
        stem, head = self[0], self[-1]
        return int(stem.in_channels), 8 * math.isqrt(int(head.in_features) // 128)  # type: ignore[arg-type]


def _stage(inputs: int, outputs: int) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(), nn.MaxPool2d(2)]


def load_classifier(folder: str | Path) -> Classifier:
    """The trained classifier of a folder, in evaluation mode and single precision.

    Raises:
        FileNotFoundError: the folder has no ``classifier.safetensors``.  ModelFileError: it is damaged, or of another network.
    """
    path = Path(folder) / "classifier.safetensors"
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not there; make it: python benchmarks/mnist_classifier.py ../shared/data/mnist {folder}")
    try:
        tensors = load_file(path)
        classifier = Classifier(tensors["0.weight"].shape[1], 8 * math.isqrt(tensors["13.weight"].shape[1] // 128))
        classifier.load_state_dict(tensors)  # copies into single precision
    except (SafetensorError, OSError, KeyError, IndexError, RuntimeError) as error:
        raise ModelFileError(f"{path} holds no classifier that benchmarks/mnist_classifier.py wrote ({str(error)[:300]}).") from error
    return classifier.eval().requires_grad_(False)


@torch.no_grad()
def features_and_probabilities(classifier: Classifier, images: Tensor) -> tuple[Tensor, Tensor]:
    """(n, 128) activations of the last stage, averaged over its places, and (n, 10) class probabilities, of images in [-1, 1]."""
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
