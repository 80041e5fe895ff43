"""The progress bar of a solve, drawn by tqdm where it is installed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from ._loops.fixed import Moment


@contextmanager
def bar(shown: bool, interval: tuple[float, float], total: int | None, name: str) -> Iterator[Callable[[Moment], None] | None]:
    """An observer that draws a bar: of ``total`` steps, or of the way that the slowest sample has gone where total is None."""
    if not shown:
        yield None
        return
    with _tqdm(total or 100, name, "step" if total else "%") as drawn:

        def observe(moment: Moment) -> None:
            drawn.update((moment.step if total else _percent(moment.t, interval)) - drawn.n)

        yield observe


@contextmanager
def count(shown: bool, total: int, name: str) -> Iterator[Callable[[], None]]:
    """A function to call after each of at most ``total`` parts of the work."""
    if not shown:
        yield lambda: None
        return
    with _tqdm(total, name, "part") as drawn:
        yield lambda: drawn.update(1) and None
        drawn.update(total - drawn.n)


def _tqdm(total: int, name: str, unit: str) -> Any:
    try:
        from tqdm.auto import tqdm
    except ImportError:
        raise ImportError('progress=True draws its bar with tqdm, which is not installed: pip install tqdm (or "sdesolve[gen]")') from None
    return tqdm(total=total, desc=name, unit=unit)


def _percent(t: torch.Tensor, interval: tuple[float, float]) -> int:
    t0, t1 = interval
    return int(100 * float(((t - t0) / (t1 - t0)).min()))
