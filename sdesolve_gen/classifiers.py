"""A noise-conditional classifier: a network and all that guidance needs to know about it.

On disk a classifier is a folder with ``classifier.safetensors`` (weights, float32 or float16) and ``classifier.json``, its card:

    name, process, process_options, time, shape, data_range     as in the card of a model (:mod:`sdesolve_gen.card`)
    network          a key of ``networks.CLASSIFIERS``;  network_options: its arguments
    classes          number of classes;  sha256, parameters, versions, training, figures: as there

Loading one runs no code that came with it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import sdesolve as sd
from sdesolve.scores import Called, TimeConvention, time_convention

from ._errors import unknown
from ._reading import checked_device, read_classifier
from ._writing import write_network
from .card import CLASSIFIER, check_card, read_card
from .networks.options import check_classes
from .processes import make_process

ASSETS = Path(__file__).parent / "assets"
WEIGHTS, CARD = "classifier.safetensors", "classifier.json"


class Classifier:
    """p_t(y | x_t) of images x_t = alpha x_0 + sigma eps at every noise level of a process.

    Arguments:
        network: (x, time) -> logits (B, classes), a module or any callable; a module becomes frozen, in evaluation mode.
        process: the forward process whose noise levels the network knows.
        classes: number of classes, >= 2.
        time: what the network wants to be told, as in :func:`sdesolve.as_score`.
        card: of a classifier that was loaded or is to be saved, as described in this file.

    Raises:
        ValueError: unknown ``time``; classes below 2.
    """

    def __init__(
        self,
        network: Callable[[Tensor, Tensor], Tensor],
        process: sd.Process,
        *,
        classes: int,
        time: TimeConvention = "continuous",
        card: Mapping[str, Any] | None = None,
    ) -> None:
        check_classes(classes, least=2)
        self.network = network.eval().requires_grad_(False) if isinstance(network, nn.Module) else network
        self.process, self.classes, self.time = process, classes, time
        self.card = dict(card or {})
        self._network_time, self._called = time_convention(time), Called(self.network)
        parameters = network.parameters() if isinstance(network, nn.Module) else iter(())
        self._parameter = next(parameters, None)

    @classmethod
    def of_card(cls, network: nn.Module, card: Mapping[str, Any]) -> Classifier:
        """A network with what its card says of it."""
        check_card(card, "card", CLASSIFIER)
        process = make_process(card["process"], card["process_options"])
        return cls(network, process, classes=card["classes"], time=card["time"], card=card)

    def to(self, device: torch.device | str) -> Classifier:
        """Move the weights, in place; returns the classifier."""
        if isinstance(self.network, nn.Module):
            self.network.to(checked_device(device))
        return self

    def logits(self, x: Tensor, t: float | Tensor) -> Tensor:
        """(B, classes) logits of noisy images x, (B, *event), at time t of the process, a float or a tensor () or (B,)."""
        times = torch.as_tensor(t, dtype=torch.float64, device=x.device).expand(len(x))
        time, dtype = self._network_time(self.process, times), x.dtype if self._parameter is None else self._parameter.dtype
        logits = self._called(x.to(dtype), time)
        if logits.shape != (len(x), self.classes):
            raise ValueError(f"the classifier returned {tuple(logits.shape)}; expected logits ({len(x)}, {self.classes}), one for each image and class.")
        return logits

    def save(self, folder: str | Path, dtype: torch.dtype = torch.float32) -> Path:
        """Write weights, in ``dtype``, and card, each whole or not at all; returns the folder."""
        if not isinstance(self.network, nn.Module) or not self.card:
            raise ValueError("this classifier has no card, or no weights; expected one that was loaded or trained, or Classifier.of_card(network, card).")
        folder = Path(folder)
        write_network(folder / WEIGHTS, folder / CARD, self.network, self.card, "classifier", dtype)
        return folder


def embedded_classifiers() -> list[str]:
    """Names of the classifiers that come with the package."""
    return sorted(card.parent.name for card in ASSETS.glob(f"*/{CARD}") if not card.parent.name.startswith("features_"))  # those know no noise


def load_classifier(classifier: str | Path, device: torch.device | str = "cpu") -> Classifier:
    """A trained noise-conditional classifier, to guide a model of its process.  Runs no code that comes with it.

    Arguments:
        classifier: the name of an embedded one, as in ``load_classifier("mnist_classifier")``, or a folder that ``Classifier.save`` wrote.
        device: where the weights go, as in "cpu" or "cuda".

    Raises:
        ModelFileError (a ValueError): a file that is missing, truncated, not what it says it is, or does not fit the others.
        ValueError: a name that is neither embedded nor a folder; a device that is not there.
    """
    device = checked_device(device)
    folder = ASSETS / classifier if classifier in embedded_classifiers() else Path(classifier)
    if not folder.is_dir():
        raise ValueError(f"{unknown('classifier', str(classifier), embedded_classifiers())} Or a folder with {CARD} and {WEIGHTS}.")
    card = read_card(folder / CARD, CLASSIFIER)
    return Classifier.of_card(read_classifier(folder / WEIGHTS, folder / CARD, card, device), card)
