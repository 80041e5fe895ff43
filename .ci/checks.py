"""The checks of .ci/run that need more than a shell: ``python .ci/checks.py NAME ARGUMENT``.  Each exits with a message or prints one."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import tarfile
import zipfile
from importlib.metadata import distributions
from pathlib import Path
from xml.etree import ElementTree


def commands(readme: str) -> str:
    """The two lines of the first bash block of the README."""
    block = re.search(r"^```bash\n(.*?)^```", Path(readme).read_text(encoding="utf-8"), re.S | re.M)
    lines = block.group(1).splitlines() if block else []
    if len(lines) != 2 or any(not line.strip() or line.lstrip().startswith("#") or line.endswith("\\") for line in lines):
        raise SystemExit(f"the first bash block of {readme} must hold two commands of one line each; it holds {lines}")
    return "\n".join(lines)


def output(command: str) -> str:
    """The path after --out of a command."""
    words = shlex.split(command)
    if "--out" not in words[:-1]:
        raise SystemExit(f"no --out PATH in: {command}")
    return words[words.index("--out") + 1]


def picture(path: str) -> str:
    """A picture that is not blank, finite samples, and the manifest beside them."""
    import json

    import numpy as np
    from PIL import Image

    with Image.open(path) as image:
        size, grey = image.size, np.asarray(image.convert("L"))
    if grey.max() - grey.min() < 32:
        raise SystemExit(f"{path} is blank: its grey levels are {grey.min()}..{grey.max()}")
    with np.load(Path(path).with_suffix(".npz"), allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    if not arrays or not all(a.size and (a.dtype.kind not in "fc" or np.isfinite(a).all()) for a in arrays.values()):
        raise SystemExit(f"the samples beside {path} are empty or not finite: { {k: a.shape for k, a in arrays.items()} }")
    manifest = json.loads(Path(path).with_suffix(".json").read_text(encoding="utf-8"))
    return f"{path}: {size[0]} x {size[1]}; samples {[(k, *a.shape) for k, a in arrays.items()]}; manifest with {len(manifest)} entries"


def tests(junit: str) -> str:
    """Tests ran, all passed, and the examples of the documentation were among them."""
    cases = list(ElementTree.parse(junit).iter("testcase"))
    failed = [c for c in cases if c.find("failure") is not None or c.find("error") is not None]
    passed = [c for c in cases if len([e for e in c if e.tag in ("failure", "error", "skipped")]) == 0]
    if failed or not passed:
        raise SystemExit(f"{len(passed)} tests passed and {len(failed)} failed")
    documents = [c for c in passed if c.get("classname", "").endswith("test_docs")]
    if not documents:
        raise SystemExit("no example of the documentation was executed")
    return f"{len(passed)} of {len(cases)} tests passed, {len(documents)} of tests/test_docs.py"


def pins(constraints: str) -> str:
    """Every installed package that the file names has the version it names, and torch is one of them."""
    lines = (line.split("#")[0].strip() for line in Path(constraints).read_text(encoding="utf-8").splitlines())
    pinned = {_normal(name): version for name, version in (line.split("==") for line in lines if line)}
    installed = {_normal(d.metadata["Name"]): d.version.split("+")[0] for d in distributions()}
    wrong = {name: v for name, v in installed.items() if name in pinned and v != pinned[name]}
    if wrong or "torch" not in pinned or "torch" not in installed:
        raise SystemExit(f"not as {constraints} says: { {name: f'{v} instead of {pinned[name]}' for name, v in wrong.items()} or 'no torch' }")
    free = sorted(installed.keys() - pinned.keys() - {"pip", "wheel", "sdesolve"})
    return f"{len(installed.keys() & pinned.keys())} packages as pinned, torch {installed['torch']} among them; not pinned: {', '.join(free) or 'none'}"


def archives(folder: str) -> str:
    """Wheel and source archive hold every file of both packages, data and type markers included."""
    (wheel,), (source,) = Path(folder).glob("*.whl"), Path(folder).glob("*.tar.gz")
    listing = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", "sdesolve", "sdesolve_gen"]
    files = [f for f in subprocess.run(listing, check=True, capture_output=True, text=True).stdout.splitlines() if Path(f).is_file()]
    with zipfile.ZipFile(wheel) as z, tarfile.open(source) as t:
        in_wheel, in_source = set(z.namelist()), {name.partition("/")[2] for name in t.getnames()}
    must = {*files, "sdesolve/py.typed", "sdesolve_gen/py.typed"}
    if missing := [f"{f} in {where}" for where, held in (("wheel", in_wheel), ("source", in_source)) for f in sorted(must - held)]:
        raise SystemExit(f"missing: {', '.join(missing)}")
    if not any(f.startswith("sdesolve_gen/assets/") and f.endswith(".safetensors") for f in in_wheel):
        raise SystemExit("no model in the wheel: sdesolve_gen/assets/ holds no .safetensors")
    strangers = {f.split("/")[0] for f in in_wheel} - {"sdesolve", "sdesolve_gen", "sdesolve_gen_command.py"}
    if any(not name.endswith(".dist-info") for name in strangers):
        raise SystemExit(f"the wheel installs {strangers} beside the two packages and the console command")
    return f"{wheel.name} ({wheel.stat().st_size / 1e6:.1f} MB) and {source.name} hold all {len(must)} files"


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


if __name__ == "__main__":
    check = {f.__name__: f for f in (commands, output, picture, tests, pins, archives)}[sys.argv[1]]
    print(check(sys.argv[2]))
