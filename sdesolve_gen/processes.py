"""Forward processes by the names that cards and configs use."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

import sdesolve as sd

from ._errors import unknown

PROCESSES: dict[str, Callable[..., sd.Process]] = {
    "vp": sd.VPSDE,
    "subvp": sd.SubVPSDE,
    "ve": sd.VESDE,
    "edm": sd.EDM,
    "cosine": sd.Cosine,
    "rectified_flow": sd.RectifiedFlow,
    "tabulated_vp": sd.TabulatedVP,
}


def make_process(name: str, options: Mapping[str, Any]) -> sd.Process:
    """The named process with its constants, as in ``make_process("vp", {"beta_max": 20.0})``.

    Raises:
        ValueError: an unknown name or constant, or a constant out of range.
    """
    if name not in PROCESSES:
        raise ValueError(unknown("process", name, PROCESSES))
    known = inspect.signature(PROCESSES[name]).parameters
    for option, value in options.items():
        if option not in known:
            raise ValueError(unknown(f"process_options of {name!r}:", option, known))
        if known[option].annotation == "float" and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise ValueError(f"process_options.{option}={value!r}; expected a finite number, as in process_options.{option}=1.0.")
    missing = [option for option, parameter in known.items() if parameter.default is parameter.empty and option not in options]
    if missing:
        raise ValueError(f"process_options of {name!r} lack {', '.join(missing)}; expected a value for each.")
    try:
        return PROCESSES[name](**options)
    except TypeError as error:
        raise ValueError(f"process_options={dict(options)} do not fit the process {name!r}: {error}.") from error


def network_time(time: str | int, process: sd.Process) -> str | int | Callable[[Tensor], Tensor]:
    """``time`` of a card as :func:`sdesolve.as_score` takes it: what it knows by name, and "level" of a :class:`sdesolve.TabulatedVP`."""
    return process.level if time == "level" and isinstance(process, sd.TabulatedVP) else time  # type: ignore[return-value]
