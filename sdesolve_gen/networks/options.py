"""What every network checks: options, which a card from anywhere may have given, and inputs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

LARGEST_CLASSES = 100_000


def check_integers(limits: Mapping[str, tuple[object, int]]) -> None:
    """Raises ValueError unless each (value, largest) is an integer from 1 to there: limits that keep a card from making us build for ever."""
    for name, (value, largest) in limits.items():
        if not within(value, largest):
            raise ValueError(f"{name}={value!r}; expected an integer from 1 to {largest}.")


def check_multipliers(multipliers: object, largest: int = 16) -> None:
    """Raises ValueError unless these are 1 to 8 integers from 1 to ``largest``."""
    if not isinstance(multipliers, Sequence) or not 1 <= len(multipliers) <= 8 or not all(within(m, largest) for m in multipliers):
        raise ValueError(f"multipliers={multipliers!r}; expected 1 to 8 integers from 1 to {largest}, as in multipliers=[1, 2].")


def check_positive(name: str, value: object) -> None:
    """Raises ValueError unless the option is a finite number > 0."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ValueError(f"{name}={value!r}; expected a finite number > 0, as in {name}=1.0.")


def check_classes(classes: object, least: int) -> None:
    """Raises ValueError unless this is a number of classes: 0 for none where ``least`` is 0."""
    if (not within(classes, LARGEST_CLASSES) and not (least == 0 and classes == 0 and not isinstance(classes, bool))) or (least == 2 and classes == 1):
        raise ValueError(f"classes={classes!r}; expected an integer from {least}{' (none)' if least == 0 else ''} to {LARGEST_CLASSES}.")


def within(value: object, largest: int) -> bool:
    """Whether this is an integer from 1 to ``largest``."""
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= largest


def check_images(network: nn.Module, x: Tensor, channels: int, multiple: int = 1, least: int = 1) -> None:
    """Raises ValueError unless x is (B, channels, H, W) with sides that are multiples of one number and at least another."""
    if x.dim() != 4 or x.shape[1] != channels or any(side < max(least, 1) or side % multiple for side in x.shape[2:]):
        sides = f"multiples of {multiple}" if multiple > 1 else f"at least {least}"
        name = type(network).__name__
        raise ValueError(
            f"x has shape {tuple(x.shape)}; expected (B, {channels}, H, W) with H and W {sides}: pad the image, or build the {name} with other options."
        )


def check_time(x: Tensor, time: Tensor) -> None:
    """Raises ValueError unless there is one time for each row of x."""
    if time.shape != x.shape[:1]:
        raise ValueError(f"time has shape {tuple(time.shape)}; expected ({len(x)},), one time an image: time.expand({len(x)}).")


def wide(time: Tensor, x: Tensor) -> Tensor:
    """The times of images x, in their dtype or float32, whichever is wider: half precision cannot tell one level from the next."""
    return time.to(torch.promote_types(x.dtype, torch.float32))


class LabelEmbedding(nn.Embedding):
    """Labels (B,) -> (B, features), with one row more than there are classes: the last is the null label, of no class.  [Ho & Salimans 2022, section 3.2]"""

    def __init__(self, classes: int, features: int) -> None:
        super().__init__(classes + 1, features)

    def of(self, labels: Tensor | None, count: int) -> Tensor:
        """The rows of ``labels``, or ``count`` times that of the null label."""
        null = self.num_embeddings - 1
        if labels is None:
            labels = torch.full((count,), null, device=self.weight.device)
        if labels.shape != (count,) or labels.is_floating_point():
            raise ValueError(f"labels are {tuple(labels.shape)} {labels.dtype}; expected ({count},) integers from 0 to {null}, one an image.")
        return self(labels)
