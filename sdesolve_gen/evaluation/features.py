"""Feature networks: 8-bit images -> numbers in which distances between sets of images are taken.

    "inception"        Inception-v3, as torch-fidelity has it with the weights of the published FID: 2048 features, 1008 classes
    "mnist"            a small classifier of MNIST digits that comes with the package: 128 features, 10 classes
    "fashion_mnist"    the same, of Fashion-MNIST
    a folder           that ``benchmarks/mnist_classifier.py`` wrote: the same, of other images
    a network          anything that maps images (B, C, H, W), float32 in the model's data range, to features (B, k), or to
                       (features, class probabilities); an nn.Module is put into evaluation mode

A distance means something among those with the same features, the same reference and the same number of images alone; only Inception's compare
with published ones.
"""

from __future__ import annotations

import hashlib
import json
import pickle
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from .._errors import ModelFileError, unknown
from ..data import scaled
from .chunks import Tensors, digest
from .classifier import Classifier, features_and_probabilities, load_classifier

Network: TypeAlias = Callable[[Tensor], Tensor | tuple[Tensor, Tensor]]
ASSETS = Path(__file__).parents[1] / "assets"
OWN, OWN_SHAPE = ("mnist", "fashion_mnist"), (1, 28, 28)
INCEPTION = "inception"
INCEPTION_URL = "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth"


@dataclass(frozen=True)
class Features:
    """A feature network, ready to be asked.

    Attributes:
        name: short, for files and tables.
        label: what it is, and what its distances compare with.
        key: hash of what it computes.
        network: uint8 images -> features, or (features, probabilities).
    """

    name: str
    label: str
    key: str
    network: Network

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensors:
        """{"features": (n, k) float32}, and "probabilities" (n, classes) where there are classes, of uint8 images (n, C, H, W).

        Raises:
            TypeError, ValueError: the network returned something else, or numbers that are not finite.
        """
        output = self.network(images)
        named = dict(zip(("features", "probabilities"), output if isinstance(output, tuple) else (output,), strict=False))
        for name, tensor in named.items():
            if not isinstance(tensor, Tensor) or tensor.dim() != 2 or len(tensor) != len(images):
                got = f"{tuple(tensor.shape)}" if isinstance(tensor, Tensor) else type(tensor).__name__
                raise TypeError(f"features={self.name}: its {name} are {got}; expected ({len(images)}, k), a row an image: end it with .flatten(1).")
            if not torch.isfinite(tensor).all():
                raise ValueError(f"features={self.name}: its {name} are not finite; a distance of those would hide it.")
        return {name: tensor.float().cpu() for name, tensor in named.items()}


def make_features(
    features: str | Path | Network, weights: str | Path | None, shape: tuple[int, ...], device: torch.device, data_range: tuple[float, float]
) -> Features:
    """A feature network by name, or one that is given, for images (C, H, W).

    Raises:
        ValueError: an unknown name, images that it does not take, or weights beside a network that has its own.
        TypeError: neither a name nor something that can be called.
        ImportError: torch-fidelity is not installed.  OSError: its weights cannot be fetched, or a folder has no classifier.
    """
    if weights is not None and features != INCEPTION:
        raise ValueError(f"weights={str(weights)!r} are for features='inception'; expected none beside features={features!r}.")
    if isinstance(features, str | Path):
        features = str(features)
        if features == INCEPTION and shape[0] not in (1, 3):
            raise ValueError(f"features='inception' take grey or RGB images; these are {shape}: expected a network of your own, as in features=my_network.")
        if features == INCEPTION:
            return _inception(weights, device)
        if features not in OWN and Path(features).is_dir():
            return _of_folder(Path(features), shape, device)
        if features not in OWN:
            raise ValueError(f"{unknown('feature network', features, (INCEPTION, *OWN))} Or a folder that benchmarks/mnist_classifier.py wrote, or a network: features=my_network.")
        if shape != OWN_SHAPE:
            raise ValueError(f"features={features!r} take grey images {OWN_SHAPE}; these are {shape}: expected features='inception', or a network of your own.")
        return _own(features, device)
    if not callable(features):
        raise TypeError(f"features is a {type(features).__name__}; expected 'inception', 'mnist', 'fashion_mnist', a folder, or a network that maps images to features.")
    return _given(features, shape, device, data_range)


def _own(name: str, device: torch.device) -> Features:
    folder = ASSETS / f"features_{name}"
    card = json.loads((folder / "classifier.json").read_text(encoding="utf-8"))
    label = f"sdesolve {card['title']} classifier, {100 * card['test_accuracy']:.2f} % right on its test set; NOT comparable with published FID"
    return _of_classifier(load_classifier(folder), name, label, device)


def _of_folder(folder: Path, shape: tuple[int, ...], device: torch.device) -> Features:
    classifier = load_classifier(folder)
    channels, side = classifier.takes()
    if shape[0] != channels or any(8 * (length // 8) != side for length in shape[1:]):
        fitting = f"images of {channels} channels and {side} to {side + 7} pixels a side"
        raise ValueError(f"features={str(folder)!r} take {fitting}; these are {shape}: expected a classifier of such images, or features='inception'.")
    label = f"classifier of the folder {folder.resolve().name}, weights {digest(classifier.state_dict())[:12]}; NOT comparable with published FID"
    return _of_classifier(classifier, folder.resolve().name, label, device)


def _of_classifier(classifier: Classifier, name: str, label: str, device: torch.device) -> Features:
    classifier.to(device)

    def network(images: Tensor) -> tuple[Tensor, Tensor]:
        return features_and_probabilities(classifier, scaled(images).to(device))

    return Features(name, label, digest(classifier.state_dict()), network)


def _given(given: Network, shape: tuple[int, ...], device: torch.device, data_range: tuple[float, float]) -> Features:
    low, high = data_range
    name = getattr(given, "__qualname__", type(given).__qualname__)
    if isinstance(given, nn.Module):
        given.eval().to(device)

    def network(images: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        return given(low + (high - low) * (images.to(device).float() + 0.5) / 256)

    unnamed = Features(name, f"{name}; NOT comparable with published FID", "", network)
    return replace(unnamed, key=_key(given, unnamed, shape))


def _key(given: Network, features: Features, shape: tuple[int, ...]) -> str:
    """The structure and weights of a module; of anything else, whatever it may hold, what it says of some noise."""
    if isinstance(given, nn.Module):
        return hashlib.sha256(f"{given} {digest(given.state_dict())}".encode()).hexdigest()
    noise = torch.randint(0, 256, (8, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return digest(features(noise))


def _inception(weights: str | Path | None, device: torch.device) -> Features:
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    except (ImportError, RuntimeError) as error:  # the latter where torchvision is of another torch
        raise ImportError(f"features='inception' needs torch-fidelity ({error}): {_INSTALL}. Without it: features='mnist', or a network.") from None
    tensors = _inception_weights(weights)
    with tempfile.NamedTemporaryFile(suffix=".pth") as file:  # it reads a file, and any pickle: so it gets one that we wrote
        torch.save(tensors, file.name)
        try:
            extractor: nn.Module = FeatureExtractorInceptionV3(INCEPTION, ["2048", "logits_unbiased"], file.name).to(device)
        except RuntimeError as error:
            raise ModelFileError(f"weights={str(weights)!r} do not fit torch-fidelity's Inception-v3: {str(error)[:300]}") from error

    def network(images: Tensor) -> tuple[Tensor, Tensor]:
        rgb = images if images.shape[1] == 3 else images.expand(-1, 3, -1, -1)
        found, logits = extractor(rgb.to(device))
        return found, logits.softmax(1)

    label = "Inception-v3 of torch-fidelity; comparable with published FID at the same number of images and the same reference, grey images tripled"
    return Features(INCEPTION, label, digest(tensors), network)


_INSTALL = 'pip install "sdesolve[evaluate]"'


def _inception_weights(weights: str | Path | None) -> Tensors:
    """The weights of a file, or those that torch-fidelity would fetch; tensors only, no code."""
    if weights is None:
        try:
            fetched: Any = torch.hub.load_state_dict_from_url(INCEPTION_URL, map_location="cpu", weights_only=True)
        except OSError as error:
            hint = "pass them, as in weights='weights-inception-2015-12-05-6726825d.pth', or use features='mnist' or a network"
            raise OSError(f"the weights of Inception-v3 cannot be fetched from {INCEPTION_URL} ({error}); {hint}.") from error
        return fetched
    path = Path(weights)
    if not path.is_file():
        raise FileNotFoundError(f"weights={str(weights)!r} is not a file; expected the weights of {INCEPTION_URL}, or these as safetensors.")
    try:
        read: Any = load_file(path) if path.suffix == ".safetensors" else torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, OSError, ValueError, RuntimeError, KeyError, EOFError) as error:
        raise ModelFileError(f"{path} holds no tensors that can be read without running code ({str(error)[:200]}).") from error
    if not isinstance(read, dict) or not all(isinstance(tensor, Tensor) for tensor in read.values()):
        raise ModelFileError(f"{path} is not a mapping of names to tensors; expected the weights of {INCEPTION_URL}.")
    return read
