"""Labels: which they may be, and which row has which."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import sdesolve as sd


class Labels(nn.Module):
    """The labels of a batch's rows: one for all, (), or one for each, (B,)."""

    labels: Tensor

    def __init__(self, labels: int | Tensor) -> None:
        super().__init__()
        self.register_buffer("labels", torch.as_tensor(labels))

    def rows(self, x: Tensor) -> Tensor:
        """(B,) the label of each row of x."""
        if self.labels.dim() == 0:
            return self.labels.expand(len(x))
        own = sd.of_rows(self.labels, x)
        if len(own) != len(x):
            raise ValueError(f"there are {len(own)} labels and {len(x)} rows; expected one label a row, or one label for all, as in labels=3.")
        return own


def checked_labels(labels: object, classes: int, n: int | None = None, null: bool = False) -> Tensor:
    """Labels as an int64 tensor, () for one or (n,) for one each; ``null`` allows ``classes`` itself, "of no class".

    Raises:
        ValueError, TypeError: no labels, a label out of range or not an integer, or another number of them than n.
    """
    largest = classes if null else classes - 1
    allowed = f"integers from 0 to {largest}{f' ({classes} for no class)' if null else ''}"
    if labels is None:
        raise ValueError(f"labels are missing; expected {allowed}: one for all, as in labels=3, or one for each, as in labels=range({n or 10}).")
    try:
        given = labels.detach() if isinstance(labels, Tensor) else torch.as_tensor(list(labels) if isinstance(labels, range) else labels)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"labels={labels!r}; expected {allowed}, as in labels=3 or labels=[0, 1, 2].") from error
    if given.dtype not in (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8):
        raise TypeError(f"labels are of type {given.dtype}; expected {allowed}: labels.long().")
    if given.dim() > 1 or given.numel() == 0 or (given.dim() and n is not None and len(given) != n):
        count = "(B,)" if n is None else f"({n},), one a sample,"
        raise ValueError(f"labels have shape {tuple(given.shape)}; expected {count} or a single label for all, as in labels=3.")
    wrong = given[(given < 0) | (given > largest)] if given.dim() else given.reshape(1)[(given.reshape(1) < 0) | (given.reshape(1) > largest)]
    if len(wrong):
        raise ValueError(f"labels hold {wrong.flatten().tolist()[:5]}; expected {allowed}.")
    return given.long()
