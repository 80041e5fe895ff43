"""Which rows of the batch a function is given, where those are not all of them in their order: the loops say so, and what holds a value for each row asks."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


class _Given(threading.local):
    rows: Tensor | None = None
    of: int = 0  # rows that the whole batch has


_given = _Given()


@contextmanager
def given(rows: Tensor, of: int) -> Iterator[None]:
    """Meanwhile states are those of ``rows``, (b,) places among ``of``, some of which may come more than once; those may be some of a batch themselves."""
    before = _given.rows, _given.of
    known, all_rows = before
    _given.rows, _given.of = (rows, of) if known is None or len(known) != of else (known[rows.to(known.device)], all_rows)
    try:
        yield
    finally:
        _given.rows, _given.of = before


def of_rows(values: Tensor, x: Tensor) -> Tensor:
    """What belongs to the rows of x, (b, *event), of ``values`` that hold something for each row of the batch, (B, ...).

    For drifts, models and terms that hold labels, measurements or parameters, one a sample, as in ``lambda x, t: -sd.of_rows(rates, x) * x``: where a solver chooses
    its steps, samples that have arrived leave the batch, and with ``parallel=`` many steps of a sample stand in it.  The solver knows which.
    Elsewhere, and where there are not as many as rows in the batch, as one for all, (1, ...), ``values`` are returned as they are.
    """
    rows = None if torch.compiler.is_compiling() else _given.rows
    return values if rows is None or len(rows) != len(x) or len(values) != _given.of else values[rows.to(values.device)]
