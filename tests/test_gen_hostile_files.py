"""Files from anywhere, of every format that is read: refused with one clear error, no code run, within 2 seconds and 1 GiB.

The files are read in a process of their own, whose address space may grow by 1 GiB, and whose ``touch`` would leave a canary.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import random
import resource
import struct
import subprocess
import sys
import time
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gen_edm import Persistent, their_modules
from gen_fixtures import tiny_model
from torch import nn

import sdesolve_gen as gen
from sdesolve_gen._torch_files import read_checkpoint, read_tensors

GIB, SECONDS = 1 << 30, 2.0


class Runs:
    """Unpickling this calls a function."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self.call


def state() -> dict[str, torch.Tensor]:
    return {"weight": torch.arange(12.0).reshape(3, 4), "bias": torch.ones(3), "steps": torch.tensor(7)}


def saved(content: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def parts(content: Any = None) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(saved(state() if content is None else content))) as archive:
        return {entry.filename: archive.read(entry) for entry in archive.infolist()}


def zipped(entries: dict[str, bytes] | list[tuple[str, bytes]], compression: int = zipfile.ZIP_STORED, comment: bytes = b"") -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(buffer, "w", compression) as archive:
        warnings.simplefilter("ignore")  # of names that come twice
        for name, content in entries.items() if isinstance(entries, dict) else entries:
            archive.writestr(name, content)
        archive.comment = comment
    return buffer.getvalue()


def with_pickle(change: Callable[[bytes], bytes] | bytes) -> bytes:
    entries = parts()
    entries["archive/data.pkl"] = change if isinstance(change, bytes) else change(entries["archive/data.pkl"])
    return zipped(entries)


def replaced(old: bytes, new: bytes) -> bytes:
    def change(pickled: bytes) -> bytes:
        assert old in pickled
        return pickled.replace(old, new)

    return with_pickle(change)


def tuples_of_tuples(levels: int = 40) -> bytes:
    """A dict whose key is a tuple of twice a tuple of twice ...: to hash it takes 2^levels steps."""
    body = b"\x80\x02}"
    body += b")" + b"q\x00"
    for level in range(1, levels + 1):
        body += bytes([ord("h"), level - 1, 0x86, ord("q"), level])
    return body + b"K\x01s."


def overlapping() -> bytes:
    """An archive whose directory names one large entry many times."""
    one = zipped({"archive/data.pkl": b"\0" * (1 << 20)})
    end = one.rindex(b"PK\5\6")
    start = struct.unpack("<L", one[end + 16 : end + 20])[0]
    directory = one[start:end]
    many = b"".join(directory.replace(b"archive/data.pkl", f"archive/d{i:06}.pkl".encode()) for i in range(2000))
    return one[:start] + many + one[end:end + 8] + struct.pack("<HHLL", 2000, 2000, len(many), start) + b"\0\0"


def torchscript() -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2)), buffer)
    return buffer.getvalue()


def flagged(data: bytes, offset: int, value: int) -> bytes:
    """Every directory entry with a flag set."""
    out, at = bytearray(data), 0
    while (at := data.find(b"PK\1\2", at)) >= 0:
        out[at + offset] |= value
        at += 4
    return bytes(out)


def legacy(content: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


def npy(content: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, content, allow_pickle=True)
    return buffer.getvalue()


def end_of(data: bytes, **changes: int) -> bytes:
    """The record at the end with other counts."""
    end = data.rindex(b"PK\5\6")
    fields = list(struct.unpack("<4s4H2LH", data[end:]))
    for name, value in changes.items():
        fields[{"entries": 4, "here": 3, "size": 5, "offset": 6}[name]] = value
    return data[:end] + struct.pack("<4s4H2LH", *fields)


def hostile(canary: str) -> dict[str, bytes]:
    """Checkpoints by kind."""
    touch = f"touch {canary}"
    shell, files = Runs(os.system, touch), Runs(open, canary, "w")
    deep: Any = []
    for _ in range(400):
        deep = [deep]
    return {
        "reduce in an archive": saved(shell),
        "reduce within a state dict": saved({**state(), "extra": shell}),
        "reduce that opens a file": saved([files]),
        "reduce of eval": saved(Runs(eval, f"open({canary!r}, 'w')")),
        "reduce of getattr": saved(Runs(getattr, nn.Linear, "__init__")),
        "reduce of a loader": saved(Runs(torch.load, canary)),
        "reduce of a numpy function": saved(Runs(np.load, canary)),
        "plain pickle": pickle.dumps(shell),
        "plain pickle, protocol 0": pickle.dumps(shell, protocol=0),
        "instance by INST": with_pickle(f"(S'{touch}'\nios\nsystem\n.".encode()),
        "object by OBJ": with_pickle(f"(cos\nsystem\nS'{touch}'\no.".encode()),
        "stack global": with_pickle(pickle.dumps(shell, protocol=4)),
        "extension registry": with_pickle(b"\x80\x02\x82\x01."),
        "a whole module": saved(nn.Linear(2, 2)),
        "numpy object array": saved({"a": np.array([shell, None], dtype=object)}),
        "numpy array": saved({"a": np.arange(3)}),
        "npy of objects": npy(np.array([shell], dtype=object)),
        "legacy format with reduce": legacy(shell),
        "legacy format": legacy(state()),
        "torchscript": torchscript(),
        "nested zip": zipped({"archive/data.pkl": saved(state())}),
        "zip of a checkpoint": zipped({"checkpoint.pth": saved(shell)}),
        "path traversal": zipped({name.replace("archive/data/0", "archive/../../data/0"): content for name, content in parts().items()}),
        "absolute path": zipped({f"/{name}": content for name, content in parts().items()}),
        "backslashes": zipped({name.replace("archive/data/0", "archive\\..\\0"): content for name, content in parts().items()}),
        "two folders": zipped({**parts(), "other/data.pkl": parts()["archive/data.pkl"]}),
        "an entry twice": zipped([*parts().items(), ("archive/data.pkl", pickle.dumps(shell))]),
        "compressed": zipped(parts(), zipfile.ZIP_DEFLATED),
        "zip bomb": zipped({**parts(), "archive/data/9": b"\0" * (1 << 26)}, zipfile.ZIP_DEFLATED),
        "overlapping entries": overlapping(),
        "encrypted": flagged(saved(state()), 8, 1),
        "oversized directory": end_of(saved(state()), size=2**31),
        "entries that lie": end_of(saved(state()), entries=60_000, here=60_000),
        "another directory": end_of(saved(state()), offset=0),
        "a comment": zipped(parts(), comment=b"PK\5\6" + b"\0" * 30),
        "something added": saved(state()) + pickle.dumps(shell),
        "two archives": saved(shell) + saved(state()),
        "no pickle": zipped({name: content for name, content in parts().items() if not name.endswith("data.pkl")}),
        "no storage": zipped({name: content for name, content in parts().items() if not name.endswith("data/0")}),
        "an oversized storage": replaced(b"K\x0c", b"\x8a\x06\x00\x00\x00\x00\x00\x01"),
        "a storage with a hole": replaced(b"K\x0c", b"M\xe8\x03"),
        "a negative stride": replaced(b"K\x04K\x01\x86", b"J\xff\xff\xff\xffK\x01\x86"),
        "a shape beyond its storage": replaced(b"K\x03K\x04\x86", b"M\xff\x7fM\xff\x7f\x86"),
        "tuples of tuples": with_pickle(tuples_of_tuples()),
        "deep lists": saved(deep),
        "a string that claims 2 GiB": with_pickle(b"\x80\x02X\xff\xff\xff\x7fa."),
        "a number of a megabyte": with_pickle(b"\x80\x02\x8b" + struct.pack("<i", 1 << 20) + b"\x7f" * (1 << 20) + b"."),
        "a memo of 2^32": with_pickle(b"\x80\x02]r\xff\xff\xff\xff."),
        "no end": with_pickle(b"\x80\x02}"),
        "an empty stack": with_pickle(b"\x80\x02."),
        "a bytearray of 2 GiB": with_pickle(called("builtins", "bytearray", 2**31 - 1)),
        "a tensor's type of 8 GiB": with_pickle(called("torch", "FloatTensor", 2**31 - 1)),
        "a storage's type of 8 GiB": with_pickle(called("torch", "FloatStorage", 2**31 - 1)),
        "an untyped storage of 2 GiB": with_pickle(called("torch.storage", "UntypedStorage", 2**31 - 1)),
        "a type that is not of tensors": with_pickle(called("collections", "Counter", 1)),
        "a codec": with_pickle(called("_codecs", "encode", 1)),
        "tensors of a million axes": replaced(b"K\x03K\x04\x86", b"(" + b"K\x01" * 1_000_000 + b"t"),
        "instructions without end": with_pickle(b"\x80\x02" + b"]" * 5_000_000 + b"."),
        "a tuple as a key": with_pickle(b"\x80\x02}(" + b"K\x01" * 100_000 + b"tq\x01" + b"h\x01K\x01s" * 100_000 + b"."),
        "a long number as a key": with_pickle(b"\x80\x02}\x8b" + struct.pack("<i", 1 << 20) + b"\x7f" * (1 << 20) + b"q\x01" + b"h\x01K\x01s" * 100_000 + b"."),
        "entries without end": zipped({**parts(), **{f"archive/data/{i + 10}": b"" for i in range(60_000)}}),
        "another byte order": zipped({**parts(), "archive/byteorder": b"big"}),
        "expanded": saved({"weight": torch.zeros(1).expand(1 << 34)}),
        "sparse": saved({"weight": torch.sparse_coo_tensor(torch.zeros(2, 1, dtype=torch.long), torch.ones(1), (1 << 30, 1 << 30), check_invariants=True)}),
        "without memory": saved({"weight": torch.empty(1 << 40, device="meta")}),
        "no names": saved([torch.zeros(1)]),
        "numbers as names": saved({1: torch.zeros(1)}),
        "nothing": saved({}),
        "text": b"hello",
        "empty": b"",
        "half a signature": b"PK",
        "zeros": bytes(1000),
    }  # fmt: skip


def called(module: str, name: str, argument: int) -> bytes:
    """A pickle that calls a global with a number."""
    return f"\x80\x02c{module}\n{name}\n".encode("latin1") + b"J" + struct.pack("<i", argument) + b"\x85R."


def repeated(module: str, name: str, argument: bytes, count: int) -> bytes:
    """A pickle with a list of what a global makes of one argument, again and again."""
    function = f"c{module}\n{name}\n".encode()
    return b"\x80\x04]" + argument + b"q\x01(" + (function + b"h\x01R") * count + b"e."


def hostile_pickles(canary: str) -> dict[str, bytes]:
    """Pickles by kind, read as EDM's."""
    touch = f"touch {canary}"
    shell = Runs(os.system, touch)
    meta = {"type": "class", "version": 6, "module_src": f"open({canary!r}, 'w')", "class_name": "EDMPrecond", "state": {}}
    storage, large = (in_bytes(torch.ones(count)) for count in (12, 1 << 18))
    with their_modules():
        carried = pickle.dumps({"ema": Persistent("EDMPrecond", {"_init_kwargs": {}}, f"open({canary!r}, 'w')")})
        within = pickle.dumps({"ema": Persistent("EDMPrecond", {"_init_kwargs": shell})})
    return {
        "reduce": pickle.dumps(shell),
        "reduce, protocol 0": pickle.dumps(shell, protocol=0),
        "reduce, protocol 2": pickle.dumps(shell, protocol=2),
        "reduce within an object": within,
        "code that an object carries": carried,
        "code in a record": pickle.dumps(meta),
        "eval": pickle.dumps(Runs(eval, f"open({canary!r}, 'w')")),
        "a loader in bytes": b"\x80\x04ctorch.storage\n_load_from_bytes\n" + pickle.dumps(saved(shell))[2:-1] + b"\x85R.",
        "a legacy file in bytes": b"\x80\x04ctorch.storage\n_load_from_bytes\n" + pickle.dumps(legacy(shell))[2:-1] + b"\x85R.",
        "instance": f"(S'{touch}'\nios\nsystem\n.".encode(),
        "object": f"(cos\nsystem\nS'{touch}'\no.".encode(),
        "new object": b"\x80\x04cos\nsystem\n)\x81.",
        "an attribute of a class": b"\x80\x04\x8c\x0bcollections\x8c\x14OrderedDict.__init__\x93.",
        "a state of a function": b"\x80\x04ctorch._utils\n_rebuild_parameter\n}X\x01\x00\x00\x00aK\x01sb.",
        "a call of a call": b"\x80\x04ctorch._utils\n_rebuild_parameter\n)R)R.",
        "an extension": b"\x80\x04\x82\x01.",
        "outside": b"\x80\x04X\x01\x00\x00\x00aQ.",
        "tuples of tuples": tuples_of_tuples(),
        "a set of tuples": b"\x80\x04\x8f(" + tuples_of_tuples()[3:-4] + b"\x90.",
        "a memo of 2^32": b"\x80\x04]r\xff\xff\xff\xff.",
        "a string that claims 2 GiB": b"\x80\x04X\xff\xff\xff\x7fa.",
        "bytes that claim an exabyte": b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x0fa.",
        "numpy objects": pickle.dumps(np.array([shell], dtype=object)),
        "a bytearray of 2 GiB": called("builtins", "bytearray", 2**31 - 1),
        "a bytearray by an instruction": b"\x80\x05\x96" + struct.pack("<Q", 2**31) + b"a.",
        "a tensor's type of 8 GiB": called("torch", "FloatTensor", 2**31 - 1),
        "a bytearray in a storage's bytes": repeated("torch.storage", "_load_from_bytes", short_bytes(called("builtins", "bytearray", 2**31 - 1)) + b"\x85", 1),
        "a storage that claims 8 GiB": repeated("torch.storage", "_load_from_bytes", short_bytes(storage.replace(b"K\x0c", b"J\xff\xff\xff\x7f")) + b"\x85", 1),
        "a storage copied again and again": repeated("torch.storage", "_load_from_bytes", short_bytes(large) + b"\x85", 4000),
        "text copied again and again": repeated("_codecs", "encode", b"X" + struct.pack("<I", 1 << 20) + b"a" * (1 << 20) + b"X\x06\0\0\0latin1\x86", 4000),
        "instructions without end": b"\x80\x04" + b"]" * 5_000_000 + b".",
        "a long line": b"\x80\x04c" + b"a" * 1_000_000,
        "a long number": b"\x80\x04\x8b" + struct.pack("<i", 1 << 20) + b"\x7f" * (1 << 20) + b".",
        "deep lists": b"\x80\x04" + b"]" * 200_000 + b"a" * 199_999 + b".",
        "text": b"hello",
        "empty": b"",
    }


def in_bytes(tensor: torch.Tensor) -> bytes:
    """A tensor's storage as it is written within other pickles."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.save(tensor.storage(), buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


def short_bytes(content: bytes) -> bytes:
    """The instruction for bytes."""
    return b"B" + struct.pack("<I", len(content)) + content


def safetensors(header: bytes | dict[str, Any], body: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def claim(shape: list[int], end: int, **changes: Any) -> dict[str, Any]:
    return {"a": {"dtype": "F32", "shape": shape, "data_offsets": [0, end], **changes}}


def hostile_safetensors(canary: str) -> dict[str, bytes]:
    return {
        "a pickle": pickle.dumps(Runs(os.system, f"touch {canary}")),
        "a checkpoint": saved(Runs(os.system, f"touch {canary}")),
        "an oversized header": struct.pack("<Q", 1 << 60) + b"{}",
        "a header of 99 MB that is not there": struct.pack("<Q", 99_000_000) + b"{}",
        "a deep header": safetensors(b"[" * 1_000_000),
        "a header that is a list": safetensors(b"[]"),
        "a vast shape": safetensors(claim([1 << 62], 1 << 62)),
        "a shape that overflows": safetensors(claim([1 << 32, 1 << 32, 4], 0)),
        "offsets backwards": safetensors(claim([1], 4, data_offsets=[4, 0]), bytes(4)),
        "offsets beyond": safetensors(claim([1], 400), bytes(4)),
        "tensors that overlap": safetensors({**claim([1], 4), "b": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, bytes(4)),
        "something added": safetensors(claim([1], 4), bytes(4) + b"more"),
        "names without end": safetensors({str(i): {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(120_000)}),
        "an unknown type": safetensors(claim([1], 4, dtype="O"), bytes(4)),
        "empty": b"",
    }


# -- the process that reads ----------------------------------------------------------------------------------------------


def _read(path: Path) -> None:
    if path.is_dir() or path.suffix == ".pkl":
        gen.load(path)
    else:
        read_tensors(path)


def main(folder: Path) -> None:
    """Read every file of a folder, and say what came of each."""
    read_tensors(folder / "good.pth")
    gen.load(folder / "good")  # imports what torch imports late
    with open("/proc/self/statm") as file:
        mapped = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + GIB, mapped + GIB))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = {}
    for path in sorted((folder / "files").iterdir()):
        start = time.process_time()  # its own: a busy machine does not count
        try:
            _read(path)
            outcome = "loaded"
        except Exception as error:
            outcome = f"{type(error).__name__}: {error}"
        found[path.name] = {"outcome": outcome, "seconds": time.process_time() - start}
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    print(json.dumps({"found": found, "peak": peak}))


@pytest.fixture(scope="module")
def read(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the process said of every hostile file."""
    folder = tmp_path_factory.mktemp("hostile")
    (folder / "files").mkdir()
    (folder / "good.pth").write_bytes(saved(state()))
    tiny_model().save(folder / "good")
    canary = folder / "canary"
    for kind, suffix in ((hostile, ".pth"), (hostile_safetensors, ".safetensors"), (hostile_pickles, ".pkl")):
        for name, content in kind(str(canary)).items():
            (folder / "files" / f"{name}{suffix}").write_bytes(content)
    model = folder / "files" / "a model with a pickle for weights"
    tiny_model().save(model)
    card = json.loads((model / "card.json").read_text())
    del card["sha256"]
    (model / "card.json").write_text(json.dumps(card))
    (model / "model.safetensors").write_bytes(saved(Runs(os.system, f"touch {canary}")))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([*sys.path])}
    ran = subprocess.run([sys.executable, __file__, str(folder)], capture_output=True, text=True, env=environment, timeout=300)
    assert ran.returncode == 0, ran.stderr[-3000:]
    return {**json.loads(ran.stdout.splitlines()[-1]), "canary": canary}


def test_every_hostile_file_is_refused_with_one_clear_error(read: dict[str, Any]) -> None:
    assert len(read["found"]) > 118
    for name, result in read["found"].items():
        assert result["outcome"].startswith("ModelFileError: "), f"{name}: {result['outcome']}"
        message = result["outcome"].removeprefix("ModelFileError: ")
        assert name in message and len(message.splitlines()[0]) > 40 and len(message) < 600, message


def test_what_a_few_bytes_ask_for_is_not_given(read: dict[str, Any]) -> None:
    """Refused for what it is, and not because this process has no more memory."""
    asked = {"a bytearray of 2 GiB": 2, "a bytearray in a storage's bytes": 1, "a tensor's type of 8 GiB": 2, "an untyped storage of 2 GiB": 1, "a codec": 1}
    asked |= {"instructions without end": 2, "a storage copied again and again": 1, "text copied again and again": 1, "a storage that claims 8 GiB": 1}
    found = {name: result["outcome"] for name, result in read["found"].items()}
    assert not [name for name, outcome in found.items() if "MemoryError" in outcome or "allocat" in outcome]
    for name, count in asked.items():
        outcomes = [found[f"{name}{suffix}"] for suffix in (".pth", ".pkl") if f"{name}{suffix}" in found]
        assert len(outcomes) == count and all(" asks for " in outcome or "another size" in outcome for outcome in outcomes), (name, outcomes)


def test_what_is_not_looked_at_is_not_read(tmp_path: Path) -> None:
    """An optimiser's state costs no memory; what is taken stays when the file is written over."""
    path = tmp_path / "large.pth"
    torch.save({"model": state(), "optimizer": {"state": {0: {"exp_avg": torch.ones(1 << 25)}}}}, path)
    before = resident()
    found = read_checkpoint(path)
    assert found["optimizer"]["state"][0]["exp_avg"].shape == (1 << 25,) and resident() - before < 1 << 25  # of its 128 MiB
    assert float(found["optimizer"]["state"][0]["exp_avg"][-1]) == 1
    path = tmp_path / "small.pth"
    path.write_bytes(saved(state()))
    taken = read_tensors(path)
    with open(path, "r+b") as file:
        file.write(bytes(path.stat().st_size))
    assert all(torch.equal(taken[name], tensor) for name, tensor in state().items())


def resident() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def test_every_type_and_shape_comes_back(tmp_path: Path) -> None:
    types = (torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool)
    content = {str(dtype): (torch.arange(24) % 2).to(dtype).reshape(2, 3, 4) for dtype in types}
    whole = torch.arange(24.0).reshape(4, 6)
    content |= {"a view": whole[1:, ::2], "transposed": whole.T, "shared": whole, "empty": torch.empty(0, 3), "a number": torch.tensor(3.0), "weight": nn.Parameter(whole)}
    torch.save(content, tmp_path / "x.pth")
    back = read_tensors(tmp_path / "x.pth")
    assert back.keys() == content.keys()
    for name, tensor in content.items():
        assert back[name].dtype == tensor.dtype and torch.equal(back[name], tensor), name
    torch.save({"conjugated": torch.ones(2, dtype=torch.complex64).conj()}, tmp_path / "y.pth")
    with pytest.raises(gen.ModelFileError, match=r"asks for torch\.ComplexFloatStorage"):
        read_tensors(tmp_path / "y.pth")


def test_no_code_runs(read: dict[str, Any]) -> None:
    assert not read["canary"].exists()
    os.system(f"touch {read['canary']}")
    assert read["canary"].exists()  # what was asked for would have been seen
    read["canary"].unlink()


def test_it_takes_neither_long_nor_much_memory(read: dict[str, Any]) -> None:
    slow = {name: result["seconds"] for name, result in read["found"].items() if result["seconds"] > SECONDS}
    assert slow == {}
    assert read["peak"] < GIB / 2


# -- damage ---------------------------------------------------------------------------------------------------------------


def test_a_good_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "good.pth"
    content = {"model": state(), "step": 3, "names": ["a", "b"], "ema": {"decay": 0.999}}
    torch.save(content, path)
    back = read_checkpoint(path)
    assert {key: back[key] for key in ("step", "names", "ema")} == {key: content[key] for key in ("step", "names", "ema")}
    assert all(torch.equal(back["model"][name], tensor) for name, tensor in state().items())
    torch.save(nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)).state_dict(), path)  # an OrderedDict with metadata
    assert "1.running_mean" in read_tensors(path)
    optimiser = torch.optim.Adam(nn.Linear(3, 2).parameters(), betas=(0.5, 0.9))
    torch.save({"optimizer": optimiser.state_dict()}, path)
    assert read_checkpoint(path)["optimizer"]["param_groups"][0]["betas"] == (0.5, 0.9)


def test_flipped_bits_are_refused_or_of_no_effect(tmp_path: Path) -> None:
    """200 in a checkpoint, whose entries have checksums: what is read at all, is what was written."""
    whole, path, draws = saved(state()), tmp_path / "flipped.pth", random.Random(0)
    refused = 0
    for _ in range(200):
        damaged = bytearray(whole)
        damaged[draws.randrange(len(whole))] ^= 1 << draws.randrange(8)
        path.write_bytes(damaged)
        try:
            back = read_tensors(path)
        except gen.ModelFileError as error:
            refused += 1
            assert str(path) in str(error)
        else:
            assert back.keys() == state().keys() and all(torch.equal(back[name], tensor) for name, tensor in state().items())
    assert refused > 100  # many bits are padding, and times of files


def test_flipped_bits_of_a_saved_model_are_refused(tmp_path: Path) -> None:
    """200 in weights with a hash, every one; 100 in a card, which may read as another card, but gives a model or that error and nothing else."""
    folder, draws = tiny_model().save(tmp_path / "m"), random.Random(1)
    for name, count in (("model.safetensors", 200), ("card.json", 100)):
        file = folder / name
        whole, refused = file.read_bytes(), 0
        for _ in range(count):
            damaged = bytearray(whole)
            damaged[draws.randrange(len(whole))] ^= 1 << draws.randrange(8)
            file.write_bytes(damaged)
            try:
                gen.load(folder)
            except gen.ModelFileError:
                refused += 1
        assert refused == count or (name == "card.json" and refused > count / 2)
        file.write_bytes(whole)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_cut_files_are_refused(tmp_path: Path, suffix: str) -> None:
    source = tmp_path / f"whole{suffix}"
    if suffix == ".pth":
        source.write_bytes(saved(state()))
    else:
        source = tiny_model().save(tmp_path / "m") / "model.safetensors"
    whole, path = source.read_bytes(), tmp_path / f"cut{suffix}"
    for size in {0, 1, 2, 8, 9, 100, len(whole) // 2, len(whole) - 23, len(whole) - 22, len(whole) - 1}:
        path.write_bytes(whole[:size])
        with pytest.raises(gen.ModelFileError, match="cut"):
            read_tensors(path)


@pytest.mark.parametrize("make", [lambda path: path.mkdir(), lambda path: os.mkfifo(path), lambda path: None], ids=["folder", "fifo", "absent"])
def test_what_is_no_file_is_named(tmp_path: Path, make: Callable[[Path], None]) -> None:
    for name in ("x.pth", "x.safetensors"):
        make(tmp_path / name)
        with pytest.raises(gen.ModelFileError, match="is not a file"):
            read_tensors(tmp_path / name)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
