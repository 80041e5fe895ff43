"""The packages that stand beside ours in the benchmark, none of which anything else needs, and how each is installed."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

from ..problems import Skipped

EXTRA = 'pip install "sdesolve[bench]"'
INSTALL = {
    "diffusers": EXTRA,
    "torchsde": EXTRA,
    "torchdiffeq": EXTRA,
    "scipy": EXTRA,
    "azula": "pip install --no-deps azula==0.11.1 einops==0.8.2",
    "k_diffusion": "pip install --no-deps k-diffusion==0.1.1.post1",
}
"""Import name -> command.  The last two ask for much that their samplers do not use, torchvision among it: they come without what they ask for."""


def needed(*names: str) -> None:
    """Raise Skipped where one of the packages is not installed."""
    for name in names:
        if find_spec(name) is None:
            raise Skipped(f"{name} is not installed: {INSTALL[name]}")


def peer_versions() -> dict[str, str]:
    """Versions of the packages that are installed."""
    versions = {}
    for name in INSTALL:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions
