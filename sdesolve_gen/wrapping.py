"""A network of your own as a model, and a look at whether a model is what its card says."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

import sdesolve as sd

from ._errors import unknown
from ._versions import versions
from .card import OPTIONAL, OWN, REQUIRED
from .class_conditional import class_labels
from .conditioning.classifier_free import Labelled
from .processes import PROCESSES

if TYPE_CHECKING:
    from .models import Model


def wrap(
    module: nn.Module | Callable[..., Tensor],
    *,
    process: sd.Process,
    predicts: str,
    shape: Sequence[int],
    time: str | int = "continuous",
    data_range: tuple[float, float] = (-1.0, 1.0),
    levels: int = 256,
    sigma_data: float = 0.5,
    classes: int | None = None,
    name: str = "own",
    data: Tensor | None = None,
    labels: int | Sequence[int] | Tensor | None = None,
) -> Model:
    """Any score network as a :class:`Model`, to sample from, to save and to be measured:  ``gen.wrap(net, process=sd.EDM(), predicts="x0", time="sigma", shape=(3, 32, 32))``.

    Saved, it is weights and a card; the network itself stays yours: ``gen.load(folder, network=net)``.

    Arguments:
        module: (x, time) -> output, or (x, time, labels) -> output where it knows classes; becomes frozen, in evaluation mode.  Any function will do, as for
            :func:`sdesolve.as_score`; it is asked on the CPU, until ``m.to(device)`` says otherwise, and saved it is its card alone.
        process: the forward process that it was trained on; one of sdesolve's.
        predicts, time, sigma_data: what it returns and wants to be told, as for :func:`sdesolve.as_score`; "level" is the time of a
            :class:`sdesolve.TabulatedVP` with fractions.  Another time is a matter of a module around it.
        shape: (C, H, W) of an image.
        data_range: (low, high) of its values, as in training.
        levels: values that a pixel of the data took.
        classes: number of classes of a class-conditional network; then ``m.of_class(3).sample(16)``.
        name: for the card.
        data, labels: (n, C, H, W) images, and their classes, as for :meth:`Model.log_likelihood`; where given, the model is checked on them.

    Raises:
        TypeError: a module that cannot be called.
        ValueError: a process of another kind; what a card does not take; ``sd.ModelCheckError`` where the data contradict the claim.
    """
    from .models import Model

    network = as_module(module)
    named, options = _described(process)
    card: dict[str, Any] = {
        "name": name, "process": named, "process_options": options, "predicts": predicts, "time": time, "network": OWN, "network_options": {},
        "shape": _listed(shape), "data_range": _listed(data_range), "levels": levels, "sigma_data": sigma_data, "versions": versions(),
        **({} if classes is None else {"classes": classes}),
    }  # fmt: skip
    given = {"name": name, "time": time, "shape": shape, "data_range": data_range, "levels": levels, "sigma_data": sigma_data, "classes": classes}
    for field, (holds, expected) in {**OPTIONAL, **REQUIRED}.items():
        if field in given and field in card and not holds(card[field]):
            raise ValueError(f"{field}={given[field]!r}; expected {expected}{_EXAMPLES.get(field, '')}.")
    model = Model(network, card)
    if data is not None:
        check(model, data, labels=labels)
    return model


_EXAMPLES = {"shape": ", as in shape=(3, 32, 32) for images of three channels", "data_range": ", as in data_range=(-1, 1)"}


def _listed(values: Any) -> Any:
    """A sequence as JSON has it; anything else as it is."""
    return list(values) if isinstance(values, Sequence) and not isinstance(values, str) else values


def as_module(function: nn.Module | Callable[..., Tensor]) -> nn.Module:
    """A module, or a function in one; raises TypeError for what is neither."""
    if isinstance(function, nn.Module):
        return function
    if isinstance(function, type) or not callable(function):
        raise TypeError(f"module is {function!r}; expected an nn.Module or a function (x, time) -> output, as in gen.wrap(net, process=..., predicts=..., shape=(3, 32, 32)).")
    return _Function(function)


class _Function(nn.Module):
    """A function as a module without weights."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *arguments: Tensor) -> Tensor:
        return self.function(*arguments)


def check(
    model: Model, images: Tensor | None = None, *, labels: int | Sequence[int] | Tensor | None = None, n: int = 64, seed: int = 0, **options: Any
) -> sd.ModelCheck:
    """Measure a model against its card: see :meth:`Model.check`."""
    if images is None:
        images = model.sample(n, "ddim", steps=50, seed=seed, labels=labels)
    score, x0 = model.score, model.scaled(images, seed)
    known = class_labels(model, len(x0), labels, 1.0, None, 1.0)
    network = score.model
    if known is not None:  # labels belong to the rows of one call
        size = options.pop("batch_size", 64)
        network, options = _InParts(score.model, known.to(x0.device), size), {**options, "batch_size": len(x0)}  # type: ignore[arg-type]
    return sd.check_model(network, model.process, x0, predicts=score.predicts, time=score.time, sigma_data=score.sigma_data, seed=seed, **options)


class _InParts(Labelled):
    """A network that knows classes, with the labels of the rows, and asked about so many rows at a time."""

    def __init__(self, network: nn.Module, labels: Tensor, size: int) -> None:
        super().__init__(network, labels)
        self.size = size

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        parts = zip(*(whole.split(self.size) for whole in (x, time, self.rows(x))), strict=True)
        return torch.cat([self.network(*part) for part in parts])


def _described(process: sd.Process) -> tuple[str, dict[str, Any]]:
    """The name and constants of a process, as a card has them."""
    name = next((name for name, kind in PROCESSES.items() if type(process) is kind), None)
    if name is None or not is_dataclass(process):
        raise ValueError(unknown("process", type(process).__name__, (getattr(kind, "__name__", name) for name, kind in PROCESSES.items())))
    values = {field.name: getattr(process, field.name) for field in fields(process)}
    return name, {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}
