"""Files of weights from anywhere: what is in them is looked at before a byte of it is unpacked, and none of it is ever run.

    .safetensors        a header and raw numbers; the reader is the safetensors package
    .pt, .pth, .bin     what ``torch.save`` writes: a zip archive, stored and not compressed, of a pickle and of raw numbers

The archive is checked first: one directory at the end, no entry twice, compressed, encrypted or outside it, sizes that add up to no more than the file,
the checksum of every entry.  Then the pickle is read by :mod:`._inert_pickle`, which knows tensors, numbers, strings, lists and dicts; there is no
other way in.  Tensors are the file itself, mapped into memory: what nobody looks at, such as an optimiser's state, is not read.
"""

from __future__ import annotations

import io
import mmap
import os
import struct
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ._errors import ModelFileError, listed
from ._inert_pickle import TENSORS, Budget, Refused, Unpickler, storage_of, unpickled

LARGEST_PICKLE, LARGEST_HEADER = 1 << 26, 1 << 22  # bytes of names and shapes, of the two formats
MOST_ENTRIES = 20_000
_LOCAL = struct.Struct("<4s22x2H")  # what stands before an entry of a zip archive, and the lengths of what stands between
_END, _END64, _LOCATOR = struct.Struct("<4s4H2LH"), struct.Struct("<4sQ2H2L4Q"), struct.Struct("<4sLQL")  # the records at the end of a zip archive
_TAIL = _END.size + _LOCATOR.size + _END64.size
_NOT_OURS = "expected weights as torch.save or safetensors write them"


def read_checkpoint(path: str | Path) -> Any:
    """What ``torch.save`` wrote: tensors on the CPU, numbers, strings, and lists and dicts of them.

    The tensors are views of the file, mapped and private to this process: clone those that are to stay when the file may be written over.

    Raises:
        ModelFileError: a file that is missing, damaged, of another format, or asks for anything but those.
    """
    path = Path(path)
    with _opened(path) as archive:
        pickled = _checked(path, archive)
        storages = _Storages(path, archive)
    return unpickled(path, Unpickler(io.BytesIO(pickled), TENSORS, Budget(len(pickled)), storages))


class _Storages:
    """The storages of an archive that was looked at, as tensors with one axis."""

    def __init__(self, path: Path, archive: zipfile.ZipFile) -> None:
        self._entries = {entry.filename.partition("/")[2]: entry for entry in archive.infolist()}
        with open(path, "rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)

    def __call__(self, pid: Any) -> Tensor:
        dtype, name, count = storage_of(pid)
        entry = self._entries.get(f"data/{name}")
        if entry is None or count * dtype.itemsize > entry.file_size:
            raise Refused(f"the storage {name[:40]!r} of {count} numbers, which the archive does not have")
        if not count:
            return torch.empty(0, dtype=dtype)
        _, name_length, extra_length = _LOCAL.unpack_from(self._map, entry.header_offset)
        return torch.frombuffer(self._map, dtype=dtype, count=count, offset=entry.header_offset + _LOCAL.size + name_length + extra_length)


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a safetensors or torch file by their names; raises ModelFileError."""
    path = Path(path)
    if path.suffix != ".safetensors":
        return owned(tensors_in(path, read_checkpoint(path)))
    if not path.is_file():
        raise ModelFileError(f"{path} is not a file; {_NOT_OURS}.")
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
    if length > LARGEST_HEADER:
        raise ModelFileError(f"{path} is no safetensors file with a header of at most {LARGEST_HEADER} bytes: it claims {length}.")
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError, RuntimeError, KeyError, MemoryError) as error:
        raise ModelFileError(f"{path} is not a whole safetensors file ({_line(error)}); nothing else is read, since other formats can run code.") from error


def contents(found: Any) -> str:
    """What a file holds, for a message."""
    if not isinstance(found, Mapping):
        return f"a {type(found).__name__}"
    return ", ".join(name if isinstance(name, str) else f"a {type(name).__name__}" for name in list(found)[:8])[:200] or "nothing"


def tensors_in(path: Path, found: Any) -> dict[str, Tensor]:
    """``found`` if it is a state dict; raises ModelFileError."""
    if not isinstance(found, Mapping) or not found or not all(isinstance(name, str) and isinstance(value, Tensor) for name, value in found.items()):
        raise ModelFileError(f"{path} is no state dict, names and their tensors, but holds {contents(found)}.")
    for name, tensor in found.items():
        if tensor.layout is not torch.strided or tensor.device.type != "cpu" or tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise ModelFileError(f"{path}: {name[:80]} is {tuple(tensor.shape)} of {tensor.layout} on {tensor.device}, more than the file holds; expected plain tensors.")
    return dict(found)


def owned(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors with memory of their own."""
    return {name: tensor.clone() for name, tensor in tensors.items()}


def fill(path: Path, network: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Give ``network``, which may be on the meta device, the tensors of ``path``, float16 ones widened: every name, shape and type, and finite values.

    Raises:
        ModelFileError: a tensor that is missing, of another shape or type, or not finite.
    """
    wanted = network.state_dict()
    tensors = {name: t.to(wanted[name].dtype) if t.dtype == torch.float16 and name in wanted else t for name, t in tensors.items()}
    missing, extra = sorted(wanted.keys() - tensors.keys()), sorted(tensors.keys() - wanted.keys())
    if missing or extra:
        raise ModelFileError(f"{path} does not fit its card's network: it lacks {listed(missing)} and has besides {listed(extra)}.")
    for name, tensor in tensors.items():
        here, there = (tuple(tensor.shape), tensor.dtype), (tuple(wanted[name].shape), wanted[name].dtype)
        if here != there:
            raise ModelFileError(f"{path}: {name[:80]} is {here[0]} {here[1]}; its card's network has {there[0]} {there[1]}.")
        if not torch.isfinite(tensor).all():
            raise ModelFileError(f"{path}: {name} has values that are not finite.")
    network.load_state_dict(tensors, assign=True)


def _opened(path: Path) -> zipfile.ZipFile:
    """The archive, whose directory is the one at its very end, so that every reader finds the same."""
    if not path.is_file():
        raise ModelFileError(f"{path} is not a file; {_NOT_OURS}.")
    with open(path, "rb") as file:
        if file.read(2) != b"PK":
            raise ModelFileError(
                f"{path} is no zip archive, as torch.save writes since 1.6; where you trust it, write it anew with that: torch.save(torch.load(path, weights_only=True), path)."
            )
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - _TAIL))
        if not _ends(file.read(), size):
            raise ModelFileError(f"{path} does not end as an archive of torch.save does: it is cut off, damaged, or something was added.")
    try:
        return zipfile.ZipFile(path)
    except Exception as error:  # zipfile raises what struct, codecs and its own parsing do
        raise ModelFileError(f"{path} is no whole zip archive ({_line(error)}); {_NOT_OURS}.") from error


def _ends(tail: bytes, size: int) -> bool:
    """Whether a file of so many bytes ends in one zip directory and its records, which agree, and in nothing else."""
    if len(tail) < _END.size or not tail[-_END.size :].startswith(b"PK\5\6"):
        return False
    _, *disks, here, entries, length, offset, comment = _END.unpack(tail[-_END.size :])
    at, wide = size - _END.size, tail[-_TAIL : -_END.size]
    if len(wide) == _END64.size + _LOCATOR.size and wide[_END64.size :].startswith(b"PK\6\7"):  # the record for large files stands before
        at -= len(wide)
        signature, _, _, _, _, _, here64, entries64, length64, offset64 = _END64.unpack(wide[: _END64.size])
        pairs = ((here, here64, 0xFFFF), (entries, entries64, 0xFFFF), (length, length64, 0xFFFFFFFF), (offset, offset64, 0xFFFFFFFF))
        if signature != b"PK\6\6" or _LOCATOR.unpack(wide[_END64.size :])[2] != at or any(a not in (b, unknown) for a, b, unknown in pairs):
            return False
        here, entries, length, offset = here64, entries64, length64, offset64
    return not any(disks) and not comment and here == entries <= MOST_ENTRIES and offset + length == at


def _checked(path: Path, archive: zipfile.ZipFile) -> bytes:
    """The pickle of the archive, after a look at every entry."""
    entries = archive.infolist()
    names = [entry.filename for entry in entries]
    roots = {name.split("/")[0] for name in names}
    if len(entries) > MOST_ENTRIES or len(set(names)) != len(names) or len(roots) != 1:
        raise ModelFileError(f"{path} has {len(entries)} entries, {len(set(names))} names and {len(roots)} folders; expected one folder and every name once.")
    for entry in entries:
        if any(part in ("", ".", "..") for part in entry.filename.split("/")) or "\\" in entry.filename or ":" in entry.filename:
            raise ModelFileError(f"{path}: the entry {entry.filename[:80]!r} leaves the archive's folder.")
        if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size or entry.flag_bits & 1:
            raise ModelFileError(f"{path}: {entry.filename[:80]} is compressed or encrypted ({entry.compress_size} bytes for {entry.file_size}); torch.save stores.")
    pickles = [entry for entry in entries if entry.filename.endswith("/data.pkl") and entry.filename.count("/") == 1]
    if sum(entry.file_size for entry in entries) > path.stat().st_size or len(pickles) != 1 or pickles[0].file_size > LARGEST_PICKLE:
        raise ModelFileError(f"{path}: its entries claim more than the file has, or it has no data.pkl of at most {LARGEST_PICKLE} bytes.")
    try:
        broken = archive.testzip()
        pickled = archive.read(pickles[0])
        order = next((archive.read(entry) for entry in entries if entry.filename.endswith("/byteorder") and entry.file_size < _TAIL), None)
    except Exception as error:  # as above
        raise ModelFileError(f"{path} is damaged ({_line(error)}).") from error
    if broken is not None:
        raise ModelFileError(f"{path}: the checksum of {broken[:80]} is wrong: damaged.")
    if order is not None and order != sys.byteorder.encode():
        raise ModelFileError(f"{path} was written by a machine of the byte order {order!r}; expected {sys.byteorder}: save it anew on one like this.")
    return pickled


def _line(error: BaseException) -> str:
    """The first line of an error of somebody else's."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:200]
