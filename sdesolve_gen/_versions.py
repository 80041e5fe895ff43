"""Which versions made a file: goes into model cards and manifests."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

import numpy as np
import torch


def versions() -> dict[str, str]:
    """Versions of sdesolve, torch, numpy and Python; sdesolve is "not installed" where it runs from a bare source tree."""
    try:
        own = version("sdesolve")
    except PackageNotFoundError:
        own = "not installed"
    return {"sdesolve": own, "torch": str(torch.__version__), "numpy": np.__version__, "python": platform.python_version()}
