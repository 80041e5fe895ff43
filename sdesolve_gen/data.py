"""Images as one uint8 array in memory, wherever they come from, and their order as a pure function of (seed, epoch).

    train.parquet            a column ``image`` of {bytes, path} or bytes and, if there is one, ``label``: the Hugging Face layout
    pictures/                a folder of pictures, with the folders in it; each folder at the top is a class, an empty one too
    picture.png              a picture by itself
    images.npz               ``images``, (n, C, H, W), (n, H, W, C) or (n, H, W) uint8, and, if there is one, ``labels``
    hf:NAME:SPLIT            a data set of the Hugging Face hub, or ``hf:NAME@REVISION:SPLIT`` (package ``datasets``)
    saved/                   a folder that ``datasets.save_to_disk`` wrote, or one that holds parquet files
    data/train-*.parquet     a pattern: whatever it fits, in the order of the names

A picture that cannot be decoded is left out, counted, and named in a :class:`DataWarning`; one of 16 bits a pixel becomes one of 8.

Classes that have names (folders, the ``ClassLabel`` of a Hugging Face data set) are numbered over all sources: as their data sets number them where all of
these say the same names in one order, as folders do by alphabet; else by the alphabet of all names.
"""

from __future__ import annotations

import glob
import hashlib
import importlib
import io
import struct
import tokenize
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from ._memory import check_room

PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff")
EXPECTED = "expected a parquet file with a column 'image' of {bytes, path} or bytes, a picture or a folder of them, an npz file with 'images', or hf:NAME:SPLIT"
_DAMAGED = (OSError, SyntaxError, ValueError, TypeError, IndexError, struct.error, EOFError, Image.DecompressionBombError)  # what decoders raise
UNREADABLE = (*_DAMAGED, KeyError, RuntimeError, MemoryError, zipfile.BadZipFile, zlib.error, tokenize.TokenError, pa.ArrowException)  # what readers of files raise
_LONGEST = 150  # letters of what a decoder has to say
_ROWS = 1024  # of a parquet file in memory at once
_SMALLER = "a smaller size, as in size=64 (--size 64), or fewer images"


class _Unsupported(Exception):
    """A whole picture of a kind that is not taken; the message goes on with what is expected."""


class DataWarning(UserWarning):
    """Some pictures of a data set could not be read, and are left out."""


class Data(NamedTuple):
    """A data set."""

    images: Tensor
    """(n, C, H, W) uint8 levels; float32 in the data range of a model where the source holds such, and they were asked for."""
    labels: Tensor | None
    """(n,) int64, None where there are none."""
    names: list[str]
    """What each is called: its path in its folder, or FILE[i]."""
    ids: list[int]
    """The place of each in the source; those that are left out have one too, so that a picture keeps its own whatever befalls the others."""
    skipped: list[str]
    """Names of the pictures that are left out."""
    classes: tuple[str, ...] | None = None
    """What the class of each label is called, where the source says it."""

    def rows(self, which: slice | Sequence[int]) -> Data:
        """Some of the images, with what belongs to each."""
        places = list(range(len(self.ids)))[which] if isinstance(which, slice) else list(which)
        labels = None if self.labels is None else self.labels[places]
        return Data(self.images[which], labels, [self.names[i] for i in places], [self.ids[i] for i in places], self.skipped, self.classes)

    def digest(self, labeled: bool = True) -> str:
        """A hash of the images, and where ``labeled`` of the labels, as they were decoded: the same whatever they are called."""
        found = hashlib.blake2b(f"{self.images.dtype} {tuple(self.images.shape)}".encode(), digest_size=16)
        for values in (self.images, self.labels if labeled else None):
            if values is not None:
                found.update(values.contiguous().numpy().reshape(-1).view(np.uint8).data)
        return found.hexdigest()

    def from_number(self, first: int, flag: str) -> Data:
        """The images from number ``first`` of the source on; raises ValueError where there are none."""
        there = len(self.ids) + len(self.skipped)
        if not self.ids or first > self.ids[-1]:
            raise ValueError(f"{flag} {first}: the data have {there} images, numbered from 0; expected a number below that.")
        return self.rows(slice(next(row for row, number in enumerate(self.ids) if number >= first), None))

    def number(self, wanted: int, flag: str) -> Data:
        """Image number ``wanted`` of the source; raises ValueError for one that there is not, or that was left out."""
        found = self.from_number(wanted, flag)
        if found.ids[0] != wanted:
            raise ValueError(f"{flag} {wanted}: that picture cannot be read ({', '.join(self.skipped[:5])}); expected the number of another.")
        return found.rows(slice(1))


def of_tensor(images: Tensor) -> Data:
    """Images that are there already, (n, C, H, W)."""
    return Data(images, None, [str(i) for i in range(len(images))], list(range(len(images))), [])


class _Source(NamedTuple):
    """Pictures that are not decoded yet."""

    size: int
    labelled: bool
    rows: Callable[[], Iterator[tuple[str, Any, Any]]]
    """(name, encoded bytes, path or array, label) of each; labels as they stand there, whatever that is."""
    classes: tuple[str, ...] | None = None
    """Names of the classes 0, 1, ...; None where labels are numbers only."""


def read_data(source: str | Path | Sequence[str | Path], size: int = 0, floats: bool = False) -> Data:
    """The images of one source or several, each of a kind that stands at the top of this file.

    Arguments:
        source: one, or a list of them, whose images follow one another.
        size: side that pictures are scaled (the shorter side) and cropped (the middle) to; 0 takes them as they are.
        floats: whether an npz file may hold floats in the data range of a model, as ``sample`` writes them; training wants levels.

    Raises:
        FileNotFoundError: nothing of that name; ImportError: a package that a source needs.
        ValueError: a source that is of no such kind, or damaged; no images, images of several sizes; labels in some sources and not in others, or with names in
            some and numbers in others; a label that is no whole number.
    """
    names = [str(source)] if isinstance(source, str | Path) else [str(one) for one in source]
    if size < 0:
        raise ValueError(f"size={size}; expected the side that pictures are scaled to, as in size=32 (--size 32), or 0 for as they are.")
    sources = [_opened(path, floats) for name in names for path in _expanded(name)]
    if len({one.labelled for one in sources}) > 1:
        raise ValueError(f"data={names}: some sources have labels and others none; expected labels in all of them or in none.")
    if len({one.classes is None for one in sources}) > 1:
        said = next(", ".join(one.classes[:5]) for one in sources if one.classes is not None)
        raise ValueError(f"data={names}: some sources have classes with names ({said}) and others numbers; expected folders of classes in all of them, or numbers in all.")
    data, causes = _filled(", ".join(names), sources, size)
    if data.skipped:
        total = len(data.images) + len(data.skipped)
        warnings.warn(f"{len(data.skipped)} of {total} pictures cannot be read and are left out: {_told(causes)}", DataWarning, stacklevel=2)
    return data


def grey(data: Data, channels: int) -> Data:
    """The data, of one channel where that is wanted and three are equal, as editors store gray pictures in RGB or with a palette."""
    images = data.images
    if channels != 1 or images.shape[1] != 3 or bool((images != images[:, :1]).any()):
        return data
    return data._replace(images=images[:, :1])


def check_shape(data: Data, shape: Sequence[int]) -> Data:
    """The data, where their images are of a model's shape (C, H, W), or gray in colour for a model of gray ones; raises ValueError where they are not."""
    data = grey(data, shape[0])
    got, wanted = tuple(data.images.shape[1:]), tuple(shape)
    if got != wanted:
        kind = {1: "grey ", 3: "RGB "}.get(wanted[0], "")
        side = wanted[1]
        cure = f"size={side} (--size {side}) scales and crops" if got[0] == wanted[0] and wanted[1] == wanted[2] else "resize or convert the data"
        raise ValueError(f"the data are images (n, C, H, W) {tuple(data.images.shape)}, the model's are {kind}ones {wanted}; expected the same C, H and W: {cure}.")
    return data


def open_npz(path: str | Path) -> Any:
    """The arrays of an npz file, none of them read yet; raises one of ``UNREADABLE``, here and when they are read."""
    with zipfile.ZipFile(path):  # np.load takes a single array under that name, and returns another thing
        return np.load(path, allow_pickle=False)


def scaled(images: Tensor) -> Tensor:
    """uint8 -> float32 in [-1, 1], the middle of each of the 256 bins."""
    return (images.float() + 0.5) / 128 - 1


# -- sources ---------------------------------------------------------------------------------------------------------------


def _expanded(name: str) -> list[str]:
    """What a pattern fits; anything else is itself."""
    if name.startswith("hf:") or Path(name).exists() or not glob.has_magic(name):
        return [name]
    found = sorted(glob.glob(name, recursive=True))
    if not found:
        raise FileNotFoundError(f"data={name!r} fits no file; {EXPECTED}.")
    return found


def _opened(name: str, floats: bool) -> _Source:
    path = Path(name)
    if name.startswith("hf:"):
        return _from_hub(name)
    if path.is_dir():
        return _from_folder(path)
    if not path.is_file():
        raise FileNotFoundError(f"data={name!r} is not a file or folder; {EXPECTED}.")
    if path.suffix.lower() in PICTURES:
        return _Source(1, False, lambda: iter([(path.name, path, 0)]))
    return _from_npz(path, floats) if path.suffix == ".npz" else _from_parquet([path])


def _from_parquet(paths: list[Path]) -> _Source:
    files = []
    for path in paths:
        try:
            files.append(parquet.ParquetFile(path))
            schema = files[-1].schema_arrow
        except UNREADABLE as error:
            raise ValueError(f"{path} is not a parquet file ({error}); {EXPECTED}.") from error
        if "image" not in schema.names:
            raise ValueError(f"{path} has the columns {schema.names}; expected a column 'image' of {{bytes, path}} or bytes.")
        kind = schema.field("image").type
        if not _binary(kind.field("bytes").type if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0 else kind):
            raise ValueError(f"{path} has a column 'image' of {kind}; expected {{bytes, path}} or bytes, of a PNG or another picture.")
    labelled = all("label" in file.schema_arrow.names for file in files)

    def rows() -> Iterator[tuple[str, Any, Any]]:
        for path, file in zip(paths, files, strict=True):
            first = 0
            batches = file.iter_batches(_ROWS, columns=["image", *(["label"] if labelled else [])])
            while (table := _next_table(batches, path, first)) is not None:
                for i, image in enumerate(table["image"]):
                    encoded = image.get("bytes") if isinstance(image, dict) else image
                    yield f"{path.name}[{first + i}]", encoded, table["label"][i] if labelled else 0
                first += len(table["image"])

    return _Source(sum(file.metadata.num_rows for file in files), labelled, rows)


def _binary(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind))


def _next_table(batches: Iterator[Any], path: Path, first: int) -> dict[str, list[Any]] | None:
    """The next rows, of which ``first`` is the first; None after the last.  Raises ValueError where they cannot be read."""
    try:
        batch = next(batches, None)
        return None if batch is None else batch.to_pydict()
    except UNREADABLE as error:
        raise ValueError(f"{path} is damaged, its rows cannot be read from {first} on ({error}); expected a whole parquet file.") from error


def _from_folder(folder: Path) -> _Source:
    if (folder / "dataset_info.json").is_file():
        return _from_table(_datasets("load_from_disk")(str(folder)), str(folder))
    files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in PICTURES and file.is_file())
    if not files:
        tables = sorted(folder.rglob("*.parquet"))
        if tables:
            return _from_parquet(tables)
        raise ValueError(f"{folder} holds no pictures; expected files ending in {', '.join(PICTURES)}, or parquet files.")
    tops = [file.relative_to(folder).parts[:-1][:1] for file in files]
    empty = {one.name for one in folder.iterdir() if one.is_dir() and not one.name.startswith(".")}  # classes too: those of a test set are numbered as in training
    classes = sorted({top[0] for top in tops if top} | empty)
    labelled = all(tops)  # a picture beside the folders belongs to no class, and then the folders are none

    def rows() -> Iterator[tuple[str, Any, Any]]:
        for file, top in zip(files, tops, strict=True):
            yield str(file.relative_to(folder)), file, classes.index(top[0]) if labelled else 0

    return _Source(len(files), labelled, rows, tuple(classes) if labelled else None)


def _from_npz(path: Path, floats: bool) -> _Source:
    try:
        with open_npz(path) as file:
            images, labels = file["images"], file.get("labels")
    except UNREADABLE as error:
        raise ValueError(f"{path} is no npz file with an array 'images' ({error}); expected what `sample` writes, or np.savez(path, images=...).") from error
    if images.ndim not in (3, 4) or images.dtype not in (np.uint8, *((np.float32, np.float64) if floats else ())):
        kinds = "uint8 or floats in the model's data range" if floats else "uint8"
        raise ValueError(f"{path}: images are {images.shape} {images.dtype}; expected (n, C, H, W), (n, H, W, C) or (n, H, W), {kinds}.")
    if 0 in images.shape[1:]:
        raise ValueError(f"{path}: images are {images.shape}, without a pixel; expected (n, C, H, W), (n, H, W, C) or (n, H, W).")
    if labels is not None and (labels.shape != images.shape[:1] or labels.dtype.kind not in "iu"):
        raise ValueError(f"{path}: labels are {labels.shape} {labels.dtype}; expected {len(images)} integers.")
    if images.ndim == 4 and images.shape[1] <= images.shape[3]:  # of the two, the channels are fewer
        images = images.transpose(0, 2, 3, 1)

    def rows() -> Iterator[tuple[str, Any, Any]]:
        for i, image in enumerate(images):
            yield f"{path.name}[{i}]", image, 0 if labels is None else labels[i].item()

    return _Source(len(images), labels is not None, rows)


def _from_hub(name: str) -> _Source:
    repository, _, split = name.removeprefix("hf:").partition(":")
    repository, _, revision = repository.partition("@")
    if not repository or not split:
        raise ValueError(f"data={name!r}; expected hf:NAME:SPLIT, as in hf:ylecun/mnist:train.")
    return _from_table(_datasets("load_dataset")(repository, split=split, revision=revision or None), name)


def _from_table(table: Any, name: str) -> _Source:
    """A ``datasets.Dataset``, whose pictures are decoded one by one, here."""
    kinds = {column: type(feature).__name__ for column, feature in getattr(table, "features", {}).items()}
    image = next((column for column, kind in kinds.items() if kind == "Image"), None)
    if image is None:
        raise ValueError(f"{name} has the columns {kinds or 'of several splits'}; expected a single split with a column of images.")
    label = next((column for column, kind in kinds.items() if kind == "ClassLabel" or column == "label"), None)
    classes = getattr(table.features[label], "names", None) if label else None
    encoded = table.cast_column(image, _datasets("Image")(decode=False))

    def rows() -> Iterator[tuple[str, Any, Any]]:
        for i, row in enumerate(encoded):
            yield f"{name}[{i}]", row[image]["bytes"] or row[image]["path"], row[label] if label else 0

    return _Source(len(table), label is not None, rows, tuple(classes) if classes else None)


def _datasets(name: str) -> Any:
    try:
        return getattr(importlib.import_module("datasets"), name)
    except ImportError as error:
        raise ImportError("this source needs the package datasets: pip install datasets") from error


# -- decoding --------------------------------------------------------------------------------------------------------------


def _filled(where: str, sources: list[_Source], size: int) -> tuple[Data, dict[str, list[str]]]:
    """One array for all, filled picture by picture; grey pictures among coloured ones become coloured.  And what is left out, by its cause."""
    total = sum(one.size for one in sources)
    check_room(total * size * size, f"{total} images of {size} x {size}", _SMALLER)
    ids: list[int] = []
    named: list[str] = []
    skipped: list[str] = []
    causes: dict[str, list[str]] = {}
    images, labels = np.empty((0, 0, 0, 0), np.uint8), np.zeros(total, np.int64)
    classes = _all_classes(sources)
    for number, (name, encoded, label) in enumerate(_rows(sources, classes)):
        try:
            picture = _pixels(encoded, size)
        except _Unsupported as error:
            raise ValueError(f"{where}: {name} has {error}.") from error
        except _DAMAGED as error:
            skipped.append(name)
            causes.setdefault(_cause(error), []).append(name)
            continue
        if not ids:
            check_room(total * picture.nbytes, f"{total} images {picture.shape}", _SMALLER)
            images = np.empty((total, *picture.shape), picture.dtype)
        elif (picture.shape[0], images.shape[1]) == (3, 1):
            images = np.repeat(images, 3, 1)
        elif (picture.shape[0], images.shape[1]) == (1, 3):
            picture = np.repeat(picture, 3, 0)
        if picture.shape[1:] != images.shape[2:]:
            sizes = f"{images.shape[2]} x {images.shape[3]}, but {name} {picture.shape[1]} x {picture.shape[2]}"
            side = min(images.shape[2:])
            raise ValueError(f"{where} holds images of several sizes ({sizes}); expected one shape: size={side} (--size {side}) scales and crops.")
        if picture.shape != images.shape[1:] or picture.dtype != images.dtype:
            kinds = f"{images.shape[1]} channels of {images.dtype}, but {name} {picture.shape[0]} of {picture.dtype}"
            raise ValueError(f"{where} holds images of several kinds ({kinds}); expected levels (uint8) in all of them, or floats in all, with the same channels.")
        images[len(ids)], labels[len(ids)] = picture, _whole(label, f"{where}: {name}")
        ids.append(number)
        named.append(name)
    if not ids:
        cannot = f"{len(skipped)} cannot: {_told(causes)}" if skipped else "it is empty"
        raise ValueError(f"{where} holds no image that can be read ({cannot}); {EXPECTED}.")
    kept = len(ids)
    return Data(torch.from_numpy(images[:kept]), torch.from_numpy(labels[:kept]) if sources[0].labelled else None, named, ids, skipped, classes), causes


def _cause(error: Exception) -> str:
    """Why a picture cannot be read, without its name, which is told beside."""
    if isinstance(error, UnidentifiedImageError):
        return "no picture of a known kind, or a damaged one"
    return (str(error).splitlines() or [""])[0][:_LONGEST].strip() or type(error).__name__


def _told(causes: dict[str, list[str]]) -> str:
    """What is left out and why, the first few of each cause."""
    few = [f"{', '.join(names[:5])}{', ...' if len(names) > 5 else ''} ({cause})" for cause, names in list(causes.items())[:5]]
    return ", ".join(few) + (", ..." if len(causes) > 5 else "")


def _all_classes(sources: Sequence[_Source]) -> tuple[str, ...] | None:
    """The classes of all sources in one order; None where they have no names."""
    said = {one.classes for one in sources if one.classes is not None}
    return said.pop() if len(said) == 1 else tuple(sorted(set().union(*said))) or None


def _rows(sources: Iterable[_Source], classes: tuple[str, ...] | None) -> Iterator[tuple[str, Any, Any]]:
    """The rows of all sources, their labels numbered as ``classes`` are; those below 0, which say that there is none, as they are."""
    for source in sources:
        numbers = None if classes is None or source.classes in (None, classes) else [classes.index(name) for name in source.classes]
        for name, encoded, label in source.rows():
            yield name, encoded, numbers[label] if numbers is not None and isinstance(label, int) and 0 <= label < len(numbers) else label


def _whole(label: Any, where: str) -> int:
    """A label as a number; raises ValueError where it is none that is whole and of 64 bits."""
    try:
        number = int(label)
        if number == label and -(2**63) <= number < 2**63:
            return number
    except (TypeError, ValueError, OverflowError):
        pass
    raise ValueError(f"{where} has the label {label!r}; expected a whole number of 64 bits, from 0 on.")


def _pixels(encoded: bytes | str | Path | np.ndarray | None, size: int) -> np.ndarray:
    """(C, H, W) uint8 values of a picture, or float32 ones of an array of floats; raises one of ``_DAMAGED``, or ``_Unsupported``."""
    if isinstance(encoded, np.ndarray):
        array = np.atleast_3d(encoded)
        if array.dtype != np.uint8:
            if size:
                raise _Unsupported(f"floats, which size={size} does not scale; expected 8 bits a channel (uint8)")
            array = array.astype(np.float32)
        if not size:
            return array.transpose(2, 0, 1)
        if array.shape[2] not in (1, 3):
            raise _Unsupported(f"the shape {array.shape}, (H, W, C), which size={size} does not scale; expected 1 or 3 channels, or size=0")
        picture = Image.fromarray(array[..., 0] if array.shape[2] == 1 else array)
    else:
        if encoded is None:
            raise OSError("no bytes")
        picture = Image.open(io.BytesIO(encoded) if isinstance(encoded, bytes) else encoded)
        ImageOps.exif_transpose(picture, in_place=True)
        if picture.mode.startswith("I;16"):
            picture = Image.fromarray(((np.asarray(picture, np.uint32) * 255 + 32767) // 65535).astype(np.uint8))
        if picture.mode in ("I", "F"):
            raise OSError(f"32 bits a pixel, mode {picture.mode}, of which it is not known what is white; 8 and 16 bits are read")
        if picture.mode not in ("L", "RGB"):
            picture = picture.convert("L" if picture.mode in ("1", "LA") else "RGB")
    if size:
        picture = ImageOps.fit(picture, (size, size), Image.Resampling.LANCZOS)
    return np.atleast_3d(np.asarray(picture)).transpose(2, 0, 1)
