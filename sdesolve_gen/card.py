"""The card of a model: everything about it but its weights, as one JSON object.

    name             letters, digits, "_", "-" and "."; it names files
    process          "vp", "subvp", "ve", "edm", "cosine", "rectified_flow" or "tabulated_vp";  process_options: its constants
    predicts, time   parameterisation, as in :func:`sdesolve.as_score`; the time of "tabulated_vp" may be "level"
    network          "UNet", "DiffusersUNet2D", ...;  network_options: its arguments; "own" is a network that stays with its owner
    shape            [C, H, W] of an image;  data_range: [low, high] of its values;  levels: values a pixel of the data took
    classes          number of classes of a network that is told labels, (x, time, labels) -> output; the label ``classes`` is "of no class";
                     class_names: what they are called, where the data said it
    sha256           of model.safetensors;  parameters: number of weights       (both written by ``Model.save``)
    moments          SHA-256 of moments.safetensors, of a model that has one     (written by ``Model.save``)
    sigma_data       of ``predicts`` "edm", 0.5 where it is not said
    versions, training, figures      for people: what made it, how, and what was measured

A card may come from anywhere, so :func:`check_card` trusts nothing in it.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ._errors import ModelFileError

WEIGHTS, CARD, MOMENTS = "model.safetensors", "card.json", "moments.safetensors"  # a model's files; not all have the last
OWN = "own"  # network of a model that was wrapped
LARGEST_CARD = 1_000_000  # bytes
LONGEST_TABLE = 10_000  # numbers
LARGEST_SIDE = 1 << 14  # of an image; a card with more would only be there to exhaust the memory


def _integer(value: object, low: int = 1, high: int | None = None) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value and (high is None or value <= high)


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _name(value: object) -> bool:
    return isinstance(value, str) and re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", value) is not None


def _table(value: object) -> bool:
    return isinstance(value, list) and len(value) <= LONGEST_TABLE and all(map(_number, value))


def _constants(value: object) -> bool:
    return isinstance(value, dict) and all(_number(constant) or _table(constant) for constant in value.values())


def _shape(value: object) -> bool:
    return isinstance(value, list) and len(value) == 3 and all(_integer(side, 1, LARGEST_SIDE) for side in value)


def _range(value: object) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(_number(end) for end in value) and value[0] < value[1]


def _is(kind: type) -> Callable[[object], bool]:
    return lambda value: isinstance(value, kind)


_Field = tuple[Callable[[object], bool], str]  # test, what is expected

REQUIRED: dict[str, _Field] = {
    "name": (_name, 'up to 64 letters, digits, "_", "-" and "."'),
    "process": (_is(str), "a string"),
    "process_options": (_constants, "an object of finite numbers and lists of them"),
    "predicts": (_is(str), "a string"),
    "time": (lambda value: isinstance(value, str) or _integer(value, 2), "a string or an integer > 1"),
    "network": (_is(str), "a string"),
    "network_options": (_is(dict), "an object"),
    "shape": (_shape, f"[C, H, W], integers from 1 to {LARGEST_SIDE}"),
    "data_range": (_range, "[low, high], finite numbers, low < high"),
    "levels": (lambda value: _integer(value, 2), "an integer > 1"),
}
CLASSIFIER: dict[str, _Field] = {name: field for name, field in REQUIRED.items() if name not in ("predicts", "levels")} | {
    "classes": (lambda value: _integer(value, 2), "an integer > 1"),
}
"""What the card of a classifier must have; see :mod:`sdesolve_gen.classifiers`."""

_HASH: _Field = (lambda value: isinstance(value, str) and re.fullmatch(r"[0-9a-f]{64}", value) is not None, "64 hexadecimal digits")
OPTIONAL: dict[str, _Field] = {
    "classes": (_integer, "an integer > 0"),
    "class_names": (lambda value: isinstance(value, list) and all(isinstance(name, str) for name in value), "a list of strings"),
    "sha256": _HASH,
    "moments": _HASH,
    "parameters": (lambda value: _integer(value, 0), "an integer >= 0"),
    "sigma_data": (lambda value: _number(value) and value > 0, "a finite number > 0"),  # type: ignore[operator]
    "versions": (_is(dict), "an object"),
    "training": (_is(dict), "an object"),
    "figures": (_is(dict), "an object"),
}


def check_name(name: object) -> None:
    """Raises ValueError where ``name`` could not be a model's."""
    if not _name(name):
        raise ValueError(f"name={name!r}; expected {REQUIRED['name'][1]}, as in name='mnist'.")


def named(text: str) -> str:
    """A model's name out of a file's or a hub id: what cannot stand in a name becomes "-"."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", text).strip("-._")[:64] or "imported"


def check_card(card: Mapping[str, Any], where: str, required: Mapping[str, _Field] = REQUIRED) -> None:
    """Raises ModelFileError that names ``where`` and the key, where a card is not what the top of this file says."""
    missing = [key for key in required if key not in card]
    if missing:
        raise ModelFileError(f"{where} lacks {', '.join(missing)}; expected the keys {', '.join(required)}.")
    for key, (holds, expected) in {**OPTIONAL, **required}.items():
        if key in card and not holds(card[key]):
            raise ModelFileError(f"{where}: {key} = {_shown(card[key])}; expected {expected}.")


def read_card(path: Path, required: Mapping[str, _Field] = REQUIRED) -> dict[str, Any]:
    """The checked card of a file; raises ModelFileError."""
    if not path.is_file():
        raise ModelFileError(f"{path} is not a file; expected the card of a model, as Model.save writes it.")
    if path.stat().st_size > LARGEST_CARD:
        raise ModelFileError(f"{path} has {path.stat().st_size} bytes; expected a card of at most {LARGEST_CARD}.")
    try:
        card = json.loads(path.read_bytes(), parse_constant=_refuse)
    except (ValueError, RecursionError, OSError) as error:
        raise ModelFileError(f"{path} is not JSON ({error}); expected the card of a model, as Model.save writes it.") from error
    if not isinstance(card, dict):
        raise ModelFileError(f"{path} holds a JSON {type(card).__name__}; expected an object.")
    check_card(card, str(path), required)
    return card


def _refuse(constant: str) -> float:
    raise ValueError(f"{constant} is not a JSON number")


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
