"""PyTorch checkpoints from anywhere: ``torch.load(weights_only=True)``, after a look at the file that keeps damage and bombs out."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .._errors import ModelFileError

_CHUNK = 1 << 20  # bytes


def read_checkpoint(path: Path) -> Any:
    """What ``torch.save`` wrote, on the CPU, its tensors mapped from the file.  Runs no code that came with it.

    Raises:
        ModelFileError: no file, no zip archive of PyTorch 1.6 or later, a damaged, compressed or ambiguous one, or one that holds more than data.
    """
    _inspect(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (pickle.UnpicklingError, RuntimeError, ValueError, TypeError, KeyError, IndexError, AttributeError, EOFError, OSError, MemoryError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelFileError(f"{path} is not a checkpoint of tensors and plain numbers ({reason}); nothing else is read, since it could run code.") from error


def _inspect(path: Path) -> None:
    """Raises ModelFileError unless this is a zip archive of uncompressed members with distinct names, whose checksums are right."""
    if not path.is_file():
        raise ModelFileError(f"{path} is not a file; expected a PyTorch checkpoint.")
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            if len({member.filename for member in members}) < len(members):
                raise ModelFileError(f"{path} holds two members of one name; expected a file that torch.save wrote.")
            if any(member.compress_type != zipfile.ZIP_STORED for member in members):
                raise ModelFileError(f"{path} is compressed; expected a file that torch.save wrote, which is not.")
            if sum(member.file_size for member in members) > path.stat().st_size:
                raise ModelFileError(f"{path} claims to hold more than its size; expected a file that torch.save wrote.")
            for member in members:
                with archive.open(member) as content:
                    while content.read(_CHUNK):  # raises BadZipFile where the checksum is wrong
                        pass
    except (zipfile.BadZipFile, OSError, EOFError, ValueError, NotImplementedError, RuntimeError) as error:
        if isinstance(error, ModelFileError):
            raise
        raise ModelFileError(f"{path} is not a whole PyTorch checkpoint ({error}); expected one that torch.save of PyTorch 1.6 or later wrote.") from error


def check_held(path: Path, tensors: list[Tensor]) -> None:
    """Raises ModelFileError unless the file is large enough to hold these: a tensor may claim any size by pointing to one number again and again."""
    if sum(tensor.numel() * tensor.element_size() for tensor in tensors) > path.stat().st_size:
        raise ModelFileError(f"{path} claims more numbers than it holds.")
