"""Pickles of weights, which may come from anybody: read as records of names, numbers and tensors, and nothing else.

Every global that a pickle asks for is looked up in one table, in which there are no functions but those of this file: what stands for a class is a record
of its state, source code stays a string, and anything else is refused by name before anything is made of it.  Keys are strings and integers, so that
nothing of the file's own making is hashed; tensors are views of bytes that the file has; what a file costs is bounded by its size and a number of
instructions.  (``torch.load(weights_only=True)`` runs no foreign code either, but calls ``bytearray``, ``torch.FloatTensor`` and the like with whatever the
file says, so that a few bytes ask for any amount of memory.)
"""

from __future__ import annotations

import io
import pickle
import struct
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from ._errors import ModelFileError

MOST = 1 << 33  # bytes of a file
MOST_STEPS = 500_000  # instructions: of some 12,000 tensors
_MOST_AXES = 16
_LINE = 1 << 10  # characters of the longest name of a global
_LEGACY = (0x1950A86A20F9469CFC6C, 1001)  # what the format begins with that torch wrote before 1.6, and still writes within other pickles

STORAGES: dict[tuple[str, str], torch.dtype] = {
    ("torch", f"{name}Storage"): dtype
    for name, dtype in {
        "Float": torch.float32, "Double": torch.float64, "Half": torch.float16, "BFloat16": torch.bfloat16, "Long": torch.int64, "Int": torch.int32,
        "Short": torch.int16, "Char": torch.int8, "Byte": torch.uint8, "Bool": torch.bool,
    }.items()
}  # fmt: skip


class Record:
    """An object of a class that stays away: its name and state."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.state: Any = None


class Table(dict[Any, Any]):
    """A dict that had a class of its own."""


class Refused(Exception):
    """The pickle asks for something that is not in the table."""


class Budget:
    """What a file may still cost: instructions, and bytes that are copied.

    Arguments:
        size: of the file; text that stands for bytes is copied once, and once more into a storage.
    """

    def __init__(self, size: int) -> None:
        self.size, self.steps, self.bytes = size, MOST_STEPS, 2 * size

    def step(self) -> None:
        self.steps -= 1
        if self.steps < 0:
            raise Refused(f"more than {MOST_STEPS} instructions")

    def copy(self, count: int) -> None:
        self.bytes -= count
        if self.bytes < 0:
            raise Refused("more bytes than the file has")


class _Instructions(dict[int, Any]):
    """Instructions by their codes, each of which costs one when it is looked up."""

    def __init__(self, instructions: Mapping[int, Any], budget: Budget) -> None:
        super().__init__(instructions)
        self._budget = budget

    def __getitem__(self, code: int) -> Any:
        self._budget.step()
        return super().__getitem__(code)


# -- what stands for a global ----------------------------------------------------------------------------------------------


def _tensor(storage: Any, offset: Any, shape: Any, stride: Any, *rest: Any) -> Tensor:
    """A view of a storage, which is a tensor with one axis; torch checks its bounds."""
    if not isinstance(storage, Tensor) or not all(isinstance(part, tuple) and len(part) <= _MOST_AXES for part in (shape, stride)):
        raise Refused("a tensor of no storage, or of no shape")
    if len(rest) > 2 and rest[2]:
        raise Refused("a tensor that is conjugated or negated when it is read")
    return storage.as_strided(shape, stride, offset)


def _parameter(tensor: Any, *_: Any) -> Tensor:
    if not isinstance(tensor, Tensor):
        raise Refused("a parameter that is no tensor")
    return tensor


def _table(*given: Any) -> Table:
    if given:
        raise Refused("a dict with contents of its own making")
    return Table()


def _size(axes: Any) -> tuple[Any, ...]:
    if not isinstance(axes, tuple):
        raise Refused("a size that is no tuple")
    return axes


def _persistent(meta: Any) -> Record:
    """What ``torch_utils.persistence`` saves of an object: its class's name, its source, which is left alone, and its state."""
    if not isinstance(meta, dict) or not isinstance(meta.get("class_name"), str):
        raise Refused("an object without a class name")
    record = Record(meta["class_name"])
    record.state = meta.get("state")
    return record


def _object(name: str) -> Callable[..., Record]:
    return lambda *_: Record(name)


TENSORS: dict[tuple[str, str], Any] = {  # what ``torch.save`` writes of tensors in lists and dicts
    ("collections", "OrderedDict"): _table,
    ("torch", "Size"): _size,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    **STORAGES,
}
_OBJECTS: dict[tuple[str, str], Any] = {  # and what EDM's pickles have besides, apart from what knows the file
    **TENSORS,
    ("torch_utils.persistence", "_reconstruct_persistent_obj"): _persistent,
    ("dnnlib.util", "EasyDict"): _table,
    ("copyreg", "_reconstructor"): lambda kind, *_: kind(),
    **{("torch.nn.modules.container", name): _object(name) for name in ("ModuleDict", "ModuleList", "Sequential")},
    **{(module, name): _object(name) for module in ("numpy.core.multiarray", "numpy._core.multiarray") for name in ("_reconstruct", "scalar")},
    ("numpy", "ndarray"): _object("ndarray"),
    ("numpy", "dtype"): _object("dtype"),
    ("builtins", "set"): _object("set"),
    ("__builtin__", "set"): _object("set"),
    ("builtins", "object"): _object("object"),
    ("__builtin__", "object"): _object("object"),
    **{("torch", name): _object(name) for name in ("device", "float32", "float64", "float16")},
}


def _outside(pid: Any) -> Any:
    raise Refused("something outside of the file")


_Machine: Any = pickle._Unpickler  # the one in Python: its memo is a dict, and every instruction a method


class Unpickler(_Machine):
    """The machine of the standard library with the doors to everything else closed.

    Arguments:
        file: in binary.
        known: what each global stands for.
        budget: shared by pickles within pickles.
        outside: what stands for something outside of the pickle, by its id.
    """

    dispatch: ClassVar[dict[int, Any]] = dict(_Machine.dispatch)

    def __init__(self, file: Any, known: Mapping[tuple[str, str], Any], budget: Budget, outside: Callable[[Any], Any] = _outside) -> None:
        super().__init__(file, encoding="latin1")
        self._known, self._outside = known, outside
        self._callable = set(map(id, known.values()))
        self._file_read = lambda count: file.read(min(count, budget.size))  # which reserves what it is asked for
        self._file_readline = lambda: file.readline(_LINE)
        self.dispatch = _Instructions(type(self).dispatch, budget)  # type: ignore[misc]

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._known:
            raise Refused(f"{module}.{name}"[:120])
        return self._known[module, name]

    def persistent_load(self, pid: Any) -> Any:
        return self._outside(pid)

    def load_reduce(self) -> None:
        arguments, function = self.stack.pop(), self.stack[-1]
        if id(function) not in self._callable or not isinstance(arguments, tuple):
            raise Refused("a call of something that is no class")
        self.stack[-1] = function(*arguments)

    def load_build(self) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, Record):
            target.state = state
        elif not isinstance(target, Table):  # whose attributes do not matter
            raise Refused("a state of something that is no object")

    def _keyed(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, dict) or len(items) % 2 or not all(isinstance(key, str | int) for key in items[::2]):
            raise Refused("keys that are neither names nor numbers")
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
        raise Refused("an instruction that torch does not write")

    for _code, _load in {
        pickle.REDUCE: load_reduce, pickle.NEWOBJ: load_reduce, pickle.BUILD: load_build, pickle.SETITEM: load_setitem, pickle.SETITEMS: load_setitems,
        pickle.DICT: load_dict, pickle.EMPTY_SET: load_empty_set, pickle.ADDITEMS: load_additems,
        **dict.fromkeys((
            pickle.INST, pickle.OBJ, pickle.NEWOBJ_EX, pickle.FROZENSET, pickle.EXT1, pickle.EXT2, pickle.EXT4, pickle.LONG4,
            pickle.BYTEARRAY8, pickle.NEXT_BUFFER, pickle.READONLY_BUFFER,
            pickle.INT, pickle.LONG, pickle.FLOAT, pickle.STRING, pickle.UNICODE, pickle.PERSID, pickle.GET, pickle.PUT,
        ), load_refused),
    }.items():  # fmt: skip
        dispatch[_code[0]] = _load
    del _code, _load


def storage_of(pid: Any) -> tuple[torch.dtype, str, int]:
    """(dtype, name, number of elements) of a storage, out of what ``torch.save`` says where one belongs."""
    if not isinstance(pid, tuple) or len(pid) not in (5, 6) or pid[0] != "storage" or any(pid[5:]):
        raise Refused("something outside that is no storage")
    _, dtype, name, _, count = pid[:5]
    if not isinstance(dtype, torch.dtype) or not isinstance(name, str) or not isinstance(count, int) or count < 0:
        raise Refused("a storage of no type or size")
    return dtype, name, count


class _Within:
    """What pickles say through functions that copy: each is charged to the file's budget."""

    def __init__(self, budget: Budget) -> None:
        self._budget = budget

    def bytes(self, text: Any, encoding: Any) -> bytes:
        """Bytes as the second protocol has them."""
        if not isinstance(text, str) or encoding != "latin1":
            raise Refused("text in another encoding")
        self._budget.copy(len(text))
        return text.encode("latin1")

    def storage(self, content: Any) -> Tensor:
        """The storage that torch wrote into bytes: five pickles, the number of elements, and the elements."""
        if not isinstance(content, bytes):
            raise Refused("a storage that is no bytes")
        file = io.BytesIO(content)
        magic, protocol, system, (dtype, name, count), names = (Unpickler(file, STORAGES, self._budget, storage_of).load() for _ in range(5))
        if (magic, protocol) != _LEGACY or not isinstance(system, dict) or system.get("little_endian") is not True or names != [name]:
            raise Refused("a storage that torch did not write")
        (written,), start, size = struct.unpack("<q", file.read(8)), file.tell(), count * dtype.itemsize
        if written != count or len(content) - start < size:
            raise Refused("a storage of another size than it says")
        self._budget.copy(size)
        return torch.frombuffer(bytearray(content[start : start + size]), dtype=dtype) if count else torch.empty(0, dtype=dtype)


def read_inert(path: Path) -> Any:
    """What a pickle holds: strings, numbers, tensors, lists and dicts, and :class:`Record` for objects.

    Raises:
        ModelFileError: a file that is missing, damaged or larger than 8 GiB, or asks for anything else.
    """
    if not path.is_file() or path.stat().st_size > MOST:
        raise ModelFileError(f"{path} is not a file of at most {MOST} bytes; expected a pickle of weights.")
    budget = Budget(path.stat().st_size)
    within = _Within(budget)
    known = {**_OBJECTS, ("torch.storage", "_load_from_bytes"): within.storage, ("_codecs", "encode"): within.bytes}
    with open(path, "rb") as file:
        return unpickled(path, Unpickler(file, known, budget))


def unpickled(path: Path, unpickler: Unpickler) -> Any:
    """What the machine makes of a pickle in ``path``; raises ModelFileError."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return unpickler.load()
    except Refused as error:
        raise ModelFileError(f"{path} asks for {error}; tensors, names and numbers alone are read, for more could run code.") from None
    except Exception as error:  # damaged pickles raise anything there is
        raise ModelFileError(f"{path} is no whole pickle of weights ({type(error).__name__}: {str(error).splitlines()[0][:120] if str(error) else ''}).") from error
