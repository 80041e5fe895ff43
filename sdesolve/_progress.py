"""The progress bar of a solve, drawn by tqdm where it is installed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from ._loops.fixed import Moment


@contextmanager
def bar(shown: bool, interval: tuple[float, float], total: int | None, name: str) -> Iterator[Callable[[Moment], None] | None]:
    """An observer that draws a bar: of ``total`` steps, or of the way that the slowest sample has gone where total is None."""
    if not shown:
        yield None
        return
    try:
        from tqdm.auto import tqdm
    except ImportError:
        raise ImportError('progress=True draws its bar with tqdm, which is not installed: pip install tqdm (or "sdesolve[gen]")') from None
    with tqdm(total=total or 100, desc=name, unit="step" if total else "%") as drawn:

        def observe(moment: Moment) -> None:
            drawn.update((moment.step if total else _percent(moment.t, interval)) - drawn.n)

        yield observe


def _percent(t: torch.Tensor, interval: tuple[float, float]) -> int:
    t0, t1 = interval
    return int(100 * float(((t - t0) / (t1 - t0)).min()))
