"""The house is in order: imports point one way, and what the README, the version and the change log say agrees."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import pytest

import sdesolve
from sdesolve_gen.benchmark.peers import INSTALL

ROOT = Path(__file__).parents[1]

# -- what is allowed -----------------------------------------------------------------------------------------------------

LAYERS = [  # a module of sdesolve imports from its own layer and from those above it here; in its own without going round in a circle
    {"_arrays", "_autograd", "_errors", "_given", "_student", "_tally", "files"},
    {"noise", "_philox", "_philox_device", "brownian"},
    {"processes", "tabulated", "grids", "ranges", "solution", "control", "statistics"},
    {"problems", "scores", "guided", "methods", "correctors", "solver_card", "optimised"},
    {"_loops"},
    {"_backends"},
    {"solve", "correct", "_auto", "_checks", "_progress", "_gauss_newton"},
    {
        "model_check", "model_statistics", "optimise", "optimise_card", "dequantise", "divergence", "_likelihood_flow", "likelihood", "discrete_likelihood",
        "likelihood_bound", "latent", "smc", "exam",
    },
]
EXCEPTIONS = {  # (module, where, what it imports): the only arrows that point the other way
    ("sdesolve.processes", "TYPE_CHECKING", "sdesolve.problems"),
    ("sdesolve.processes", "Process.reverse", "sdesolve.problems"),
    ("sdesolve.processes", "Process.probability_flow", "sdesolve.problems"),
}
FOREIGN = {  # what is not of the standard library: by package, and by where it is imported
    "sdesolve": {"module": {"torch", "numpy"}, "function": {"tqdm", "torchsde", "torchdiffeq", "scipy"}},
    "sdesolve_gen": {
        "module": {"torch", "numpy", "sdesolve", "safetensors", "PIL", "tqdm", "typer", "pyarrow"},
        "function": {"matplotlib", "accelerate", "filelock", "yaml", "datasets", "lpips", "huggingface_hub", "torch_fidelity", *INSTALL},
    },
}

LAZY = {"sdesolve_gen.adapters.scheduler": {"diffusers"}}  # modules that are imported when a name of theirs is asked for, and what they need


# -- reading imports -----------------------------------------------------------------------------------------------------


class Import(NamedTuple):
    """One imported module or name, as in ``from target import name``; ``where`` is "", "TYPE_CHECKING" or the enclosing function."""

    module: str
    where: str
    target: str
    name: str | None
    line: int

    def __str__(self) -> str:
        return f"{self.module}:{self.line} imports {self.target}{f' ({self.name})' if self.name else ''}{f' in {self.where}' if self.where else ''}"


def module_name(path: Path, root: Path) -> str:
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def read(root: Path, package: str) -> dict[str, str]:
    """Module name -> source of every file of a package; a package's own name stands for its __init__."""
    return {module_name(path, root): path.read_text(encoding="utf-8") for path in sorted((root / package).rglob("*.py"))}


def packages(sources: dict[str, str]) -> set[str]:
    return {name.rpartition(".")[0] for name in sources} | {name for name in sources if "." not in name}


def imports(sources: dict[str, str]) -> list[Import]:
    """Every import, those inside functions included; ``from package import submodule`` is an import of the submodule."""
    folders = packages(sources)
    return [found for module, source in sources.items() for found in _Reader(module, module in folders, sources).read(source)]


class _Reader:
    def __init__(self, module: str, is_package: bool, known: dict[str, str]) -> None:
        self.module, self.known = module, known
        self.package = module if is_package else module.rpartition(".")[0]

    def read(self, source: str) -> Iterator[Import]:
        yield from self._walk(ast.parse(source), "", "")

    def _walk(self, node: ast.AST, where: str, scope: str) -> Iterator[Import]:
        """``scope`` is the dotted name of the enclosing classes and functions; ``where`` is it from the first function on."""
        if isinstance(node, ast.Import):
            yield from (Import(self.module, where, alias.name, None, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (self._from(node, alias.name, where) for alias in node.names)
        elif isinstance(node, ast.Call) and (target := _dynamic(node)):
            yield Import(self.module, where, target, None, node.lineno)
        elif isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            where = where or "TYPE_CHECKING"
        elif isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            scope = f"{scope}.{node.name}".lstrip(".")
            where = where if isinstance(node, ast.ClassDef) and not where else scope
        for child in ast.iter_child_nodes(node):
            yield from self._walk(child, where, scope)

    def _from(self, node: ast.ImportFrom, name: str, where: str) -> Import:
        base = self.package.split(".")[: len(self.package.split(".")) - node.level + 1] if node.level else []
        target = ".".join([*base, *([node.module] if node.module else [])])
        inner = f"{target}.{name}"
        return Import(self.module, where, inner, None, node.lineno) if inner in self.known else Import(self.module, where, target, name, node.lineno)


def _dynamic(call: ast.Call) -> str | None:
    """``importlib.import_module("x")`` and ``__import__("x")``."""
    is_import = ast.unparse(call.func).split(".")[-1] in ("import_module", "__import__")
    first = call.args[0] if call.args else None
    return first.value if is_import and isinstance(first, ast.Constant) and isinstance(first.value, str) else None


# -- judging them --------------------------------------------------------------------------------------------------------


def top(name: str) -> str:
    return name.partition(".")[0]


def layer(module: str) -> int | None:
    part = module.split(".")[1]
    return next((i for i, names in enumerate(LAYERS) if part in names), None)


def arrows(sources: dict[str, str], exceptions: set[tuple[str, str, str]] = EXCEPTIONS) -> list[str]:
    """What breaks the order of ``sdesolve``; empty if nothing does.  Its __init__ may import anything and nobody it."""
    complaints = [f"{m} stands in no layer: add it to LAYERS" for m in sources if m != "sdesolve" and layer(m) is None]
    inner = [i for i in imports(sources) if top(i.target) == "sdesolve" and i.module != "sdesolve"]
    used = {(i.module, i.where, i.target) for i in inner}
    graph: dict[str, set[str]] = {m: set() for m in sources if m != "sdesolve"}
    for i in inner:
        if (i.module, i.where, i.target) in exceptions:
            continue
        if i.target == "sdesolve":
            complaints.append(f"{i}: import from the module that has it")
        elif (own := layer(i.module)) is not None and (other := layer(i.target)) is not None and other > own:
            complaints.append(f"{i}, which stands after it")
        else:
            graph[i.module].add(i.target)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        complaints.append(f"imports go round in a circle: {' -> '.join(error.args[1])}")
    return complaints + [f"the exception {unused} is not needed" for unused in sorted(exceptions - used)]


def strangers(sources: dict[str, str], package: str) -> list[str]:
    """Imports of anything that ``package`` has no business with."""
    allowed = FOREIGN[package]
    complaints = []
    for i in imports(sources):
        known = {package, *sys.stdlib_module_names, *allowed["module"], *(allowed["function"] if i.where else ()), *LAZY.get(i.module, ())}
        if top(i.target) not in known:
            complaints.append(str(i))
    return complaints


def private_uses(sources: dict[str, str], public: set[str], modules: set[str]) -> list[str]:
    """Uses of sdesolve that are not of a name in its __all__ or of a public name in a public submodule."""

    def allowed(path: list[str]) -> bool:
        """Of the dotted names after ``sdesolve``."""
        if not path or path[0] in public or path == ["__version__"]:
            return not any(part.startswith("_") and not part.startswith("__") for part in path)
        depth = 0
        while depth < len(path) and ".".join(path[: depth + 1]) in modules:
            depth += 1
        return depth > 0 and not any(part.startswith("_") for part in path)

    complaints = [
        str(i) for i in imports(sources) if top(i.target) == "sdesolve" and not allowed([*i.target.split(".")[1:], *([i.name] if i.name else [])])
    ]
    for module, source in sources.items():
        tree = ast.parse(source)
        aliases = {a.asname or a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names if a.name == "sdesolve"}
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and top(chain := ast.unparse(node)) in aliases and chain.replace(".", "").isidentifier():
                complaints += [] if allowed(chain.split(".")[1:]) else [f"{module}:{node.lineno} uses {chain}"]
    return complaints


# -- the tests -----------------------------------------------------------------------------------------------------------


def test_imports_point_one_way() -> None:
    assert arrows(read(ROOT, "sdesolve")) == []


@pytest.mark.parametrize("package", FOREIGN)
def test_a_package_imports_what_it_declares(package: str) -> None:
    assert strangers(read(ROOT, package), package) == []


def test_the_plugin_does_without_what_it_may_lack() -> None:
    line = f"import sys; sys.modules.update(dict.fromkeys({sorted(set().union(*LAZY.values()))!r})); import sdesolve_gen, sdesolve_gen.cli"
    subprocess.run([sys.executable, "-c", line], check=True)


def test_the_plugin_uses_public_names() -> None:
    modules = {name.partition(".")[2] for name in read(ROOT, "sdesolve")} - {""}
    assert private_uses(read(ROOT, "sdesolve_gen"), set(sdesolve.__all__), modules) == []


@pytest.mark.parametrize(
    ("sources", "complaint"),
    [
        ({"sdesolve.noise": "from .solve import solve", "sdesolve.solve": ""}, "stands after it"),
        ({"sdesolve.noise": "def f():\n    from . import solve", "sdesolve.solve": ""}, "stands after it"),
        ({"sdesolve.noise": "import sdesolve.solve", "sdesolve.solve": ""}, "stands after it"),
        ({"sdesolve.noise": "import importlib\nimportlib.import_module('sdesolve.solve')", "sdesolve.solve": ""}, "stands after it"),
        ({"sdesolve.processes": "if TYPE_CHECKING:\n    from .scores import Score", "sdesolve.scores": ""}, "stands after it"),
        ({"sdesolve.methods": "", "sdesolve.methods.a": "from .._loops.fixed import x", "sdesolve._loops.fixed": ""}, "stands after it"),
        ({"sdesolve.scores": "from sdesolve import VPSDE"}, "import from the module"),
        ({"sdesolve.scores": "from . import problems", "sdesolve.problems": "from . import scores"}, "circle"),
        ({"sdesolve.surprise": ""}, "no layer"),
    ],
)
def test_a_wrong_arrow_is_noticed(sources: dict[str, str], complaint: str) -> None:
    assert any(complaint in c for c in arrows(sources, set()))


def test_right_arrows_and_listed_exceptions_pass() -> None:
    sources = {
        "sdesolve": "from .solve import solve",
        "sdesolve.noise": "import math\nfrom ._arrays import xp",
        "sdesolve._arrays": "",
        "sdesolve.processes": "class Process:\n    def reverse(self):\n        from .problems import ReverseSDE",
        "sdesolve.problems": "from . import processes\nfrom .processes import Process",
        "sdesolve.solve": "from .problems import SDE",
    }
    exception = ("sdesolve.processes", "Process.reverse", "sdesolve.problems")
    assert arrows(sources, {exception}) == []
    assert len(arrows(sources, set())) == 1
    assert any("not needed" in c for c in arrows(sources, {exception, ("sdesolve.noise", "", "sdesolve.solve")}))


def test_a_stranger_is_noticed() -> None:
    assert strangers({"sdesolve.noise": "import numpy as np\nimport os.path\nfrom . import _arrays\ndef f():\n    from tqdm import tqdm"}, "sdesolve") == []
    for source in ("import sdesolve_gen", "def f():\n    import sdesolve_gen.models", "import tqdm", "from scipy import stats", "import torchvision"):
        assert strangers({"sdesolve.noise": source}, "sdesolve"), source


def test_a_private_use_is_noticed() -> None:
    def uses(source: str) -> list[str]:
        return private_uses({"sdesolve_gen.models": source}, {"VPSDE", "solve"}, {"noise", "solve", "_arrays", "methods", "methods.base"})

    for source in (
        "import sdesolve as sd\nsd.VPSDE(); sd.noise.PRIOR; sd.__version__",
        "from sdesolve import VPSDE, noise\nfrom sdesolve.noise import PRIOR\nfrom sdesolve.methods.base import Step",
        "from sdesolve import solve\nsolve()",
    ):
        assert uses(source) == [], source
    for source in (
        "from sdesolve._arrays import xp",
        "from sdesolve import _arrays",
        "from sdesolve import softplus",
        "from sdesolve.noise import _runs",
        "import sdesolve._arrays",
        "import sdesolve as sd\nsd._arrays.xp(1)",
        "import sdesolve as sd\nsd.softplus(1)",
        "import sdesolve\ndef f():\n    return sdesolve.noise._runs",
    ):
        assert uses(source), source


def test_readme_opens_with_two_commands() -> None:
    block = re.search(r"^```bash\n(.*?)^```", (ROOT / "README.md").read_text(encoding="utf-8"), re.S | re.M)
    assert block is not None
    first, second = block.group(1).splitlines()
    assert re.match(r'pip install -c constraints\.txt \S+ && sdesolve-gen sample .*--out \S+\.png$', first)
    assert re.match(r'pip install -c constraints\.txt .*&& pytest\b', second)


@pytest.mark.parametrize(
    "line",
    [
        "import sdesolve as sd; import sdesolve.methods; assert len(sd.methods()) > 5",
        "import sdesolve.methods; assert len(sdesolve.methods()) > 5; from sdesolve.methods import Stepper",
        "from sdesolve.methods import Stepper; import sdesolve as sd; assert sd.Stepper is Stepper and len(sd.methods()) > 5",
        "import sdesolve.methods.base as base, sdesolve.methods as methods; assert methods.Stepper is base.Stepper and len(methods()) > 5",
        "import importlib, sdesolve as sd; importlib.import_module('sdesolve.solve'); assert callable(sd.solve) and callable(sd.methods)",
    ],
)
def test_a_function_and_the_package_of_its_name(line: str) -> None:
    """``sdesolve.methods`` is called like a function and imported from like the package that it is, whichever comes first."""
    subprocess.run([sys.executable, "-c", line], check=True)


def test_one_version() -> None:
    assert sdesolve.__version__ == version("sdesolve"), "installed as another version than this source: pip install -e . again"


def test_the_change_log_knows_this_version() -> None:
    headings = re.findall(r"^## \[?([\w.]+)\]?.*\n+(?=\S)(?!## )", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.M)
    assert sdesolve.__version__ in headings
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert re.search(rf'^version: "?{re.escape(sdesolve.__version__)}"?$', citation, re.M)


def test_every_direct_dependency_is_pinned() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [*project["dependencies"], *(d for extra in project["optional-dependencies"].values() for d in extra)]
    names = {re.split(r"[\[<>=~! ]", d)[0] for d in wanted} - {"sdesolve"}
    pinned = set(re.findall(r"^([\w-]+)==", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.M))
    assert names <= pinned


def test_every_method_is_in_the_guide() -> None:
    guide = (ROOT / "docs" / "choose_a_solver.md").read_text(encoding="utf-8")
    assert [row.name for row in (*sdesolve.methods(), *sdesolve.backends()) if f"`{row.name}`" not in guide] == []
