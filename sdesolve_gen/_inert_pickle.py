"""Pickles of objects whose classes are not here, and must not be: read as records of names, numbers and tensors.

Every global that a pickle asks for is looked up in one table, in which there are no functions but those of this file: what stands for a class is a record
of its state, source code stays a string, and anything else is refused by name.  Keys are strings and integers, so that nothing of the file's own making
is hashed.
"""

from __future__ import annotations

import io
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from ._errors import ModelFileError

MOST = 1 << 33  # bytes of a file


class Record:
    """An object of a class that stays away: its name and state."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.state: Any = None


class Table(dict[Any, Any]):
    """A dict that had a class of its own."""


class _Refused(Exception):
    """The pickle asks for something that is not in the table."""


def _persistent(meta: Any) -> Record:
    """What ``torch_utils.persistence`` saves of an object: its class's name, its source, which is left alone, and its state."""
    if not isinstance(meta, dict) or not isinstance(meta.get("class_name"), str):
        raise _Refused("an object without a class name")
    record = Record(meta["class_name"])
    record.state = meta.get("state")
    return record


def _storage(content: Any) -> Any:
    """The storage that torch wrote into bytes."""
    if not isinstance(content, bytes | bytearray):
        raise _Refused("a storage that is no bytes")
    return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)


def _tensor(storage: Any, offset: Any, shape: Any, stride: Any, *_: Any) -> Tensor:
    """A view of a storage, within its bounds (torch checks them)."""
    return torch.empty(0, dtype=storage.dtype).set_(storage.untyped(), int(offset), tuple(map(int, shape)), tuple(map(int, stride)))


def _parameter(tensor: Any, *_: Any) -> Tensor:
    if not isinstance(tensor, Tensor):
        raise _Refused("a parameter that is no tensor")
    return tensor


def _bytes(text: Any, encoding: Any) -> bytes:
    """Bytes as the second protocol has them."""
    if not isinstance(text, str) or encoding != "latin1":
        raise _Refused("text in another encoding")
    return text.encode("latin1")


def _object(name: str) -> Callable[..., Record]:
    return lambda *_: Record(name)


def _table(*given: Any) -> Table:
    if given:
        raise _Refused("a dict with contents of its own making")
    return Table()


_KNOWN: dict[tuple[str, str], Callable[..., Any]] = {
    ("torch_utils.persistence", "_reconstruct_persistent_obj"): _persistent,
    ("dnnlib.util", "EasyDict"): _table,
    ("collections", "OrderedDict"): _table,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("torch.storage", "_load_from_bytes"): _storage,
    ("_codecs", "encode"): _bytes,
    ("copyreg", "_reconstructor"): lambda kind, *_: kind(),
    **{("torch.nn.modules.container", name): _object(name) for name in ("ModuleDict", "ModuleList", "Sequential")},
    **{(module, name): _object(name) for module in ("numpy.core.multiarray", "numpy._core.multiarray") for name in ("_reconstruct", "scalar")},
    ("numpy", "ndarray"): _object("ndarray"),
    ("numpy", "dtype"): _object("dtype"),
    ("builtins", "set"): _object("set"),
    ("__builtin__", "set"): _object("set"),
    ("builtins", "object"): _object("object"),
    ("__builtin__", "object"): _object("object"),
    ("torch", "device"): _object("device"),
    **{("torch", name): _object(name) for name in ("float32", "float64", "float16", "Size")},
}


_Machine: Any = pickle._Unpickler  # the one in Python: its memo is a dict, and every instruction a method


class _Unpickler(_Machine):
    """The machine of the standard library with the doors to everything else closed."""

    dispatch: ClassVar[dict[int, Any]] = dict(_Machine.dispatch)

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _KNOWN:
            raise _Refused(f"{module}.{name}"[:120])
        return _KNOWN[module, name]

    def persistent_load(self, pid: Any) -> Any:
        raise _Refused("something outside of the file")

    def get_extension(self, code: int) -> None:
        raise _Refused("an extension")

    def load_reduce(self) -> None:
        arguments, function = self.stack.pop(), self.stack[-1]
        if not any(function is known for known in _KNOWN.values()) or not isinstance(arguments, tuple):
            raise _Refused("a call of something that is no class")
        self.stack[-1] = function(*arguments)

    def load_newobj(self) -> None:
        self.load_reduce()

    def load_build(self) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, Record):
            target.state = state
        elif not isinstance(target, Table):  # whose attributes do not matter
            raise _Refused("a state of something that is no object")

    def _keyed(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, dict) or len(items) % 2 or not all(isinstance(key, str | int) for key in items[::2]):
            raise _Refused("keys that are neither names nor numbers")
        target.update(zip(items[::2], items[1::2], strict=True))

    def load_setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._keyed([key, value])

    def load_setitems(self) -> None:
        self._keyed(self.pop_mark())

    def load_dict(self) -> None:
        items = self.pop_mark()
        self.append({})
        self._keyed(items)

    def load_empty_set(self) -> None:
        self.append([])

    def load_additems(self) -> None:
        self.stack[-1] = self.pop_mark()

    def load_refused(self) -> None:
        raise _Refused("an instruction that torch does not write")

    for _code, _load in {
        pickle.REDUCE: load_reduce, pickle.NEWOBJ: load_newobj, pickle.BUILD: load_build, pickle.SETITEM: load_setitem, pickle.SETITEMS: load_setitems,
        pickle.DICT: load_dict, pickle.EMPTY_SET: load_empty_set, pickle.ADDITEMS: load_additems,
        **dict.fromkeys((pickle.INST, pickle.OBJ, pickle.NEWOBJ_EX, pickle.FROZENSET, pickle.EXT1, pickle.EXT2, pickle.EXT4), load_refused),
    }.items():  # fmt: skip
        dispatch[_code[0]] = _load
    del _code, _load


def read_inert(path: Path) -> Any:
    """What a pickle holds: strings, numbers, tensors, lists and dicts, and :class:`Record` for objects.

    Raises:
        ModelFileError: a file that is missing, damaged or larger than 8 GiB, or asks for anything else.
    """
    if not path.is_file() or path.stat().st_size > MOST:
        raise ModelFileError(f"{path} is not a file of at most {MOST} bytes; expected a pickle of weights.")
    try:
        with open(path, "rb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch deprecates its own storages
            return _Unpickler(file, encoding="latin1").load()
    except _Refused as error:
        raise ModelFileError(f"{path} asks for {error}; tensors, names and numbers alone are read, for more could run code.") from None
    except Exception as error:  # damaged pickles raise anything there is
        raise ModelFileError(f"{path} is no whole pickle of weights ({type(error).__name__}: {str(error).splitlines()[0][:120] if str(error) else ''}).") from error
