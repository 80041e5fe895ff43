"""What every test shares: few threads, fixed seeds, hypothesis without a clock, and the data folder where there is one."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import numpy as np
import pytest
import torch

torch.set_num_threads(min(2, torch.get_num_threads()))  # the tensors are small: more threads only wait for each other

hypothesis.settings.register_profile("sdesolve", deadline=None, derandomize=True, print_blob=True)
hypothesis.settings.load_profile("sdesolve")

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Each test starts from the same global generators, whichever tests ran before it."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture
def heard() -> Iterator[None]:
    """Ctrl-C is heard, which a shell's background jobs ignore, and so do their children."""
    around = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, around)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of data sets that are not part of the project; skips where it is absent."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"needs the data sets of {os.path.relpath(SHARED_DATA, Path(__file__).parents[1])}, which are not part of the project")
    return SHARED_DATA
