"""A walk needs the same memory at every step, and takes it once."""

from __future__ import annotations

import platform

import pytest
import torch

import sdesolve as sd

resource = pytest.importorskip("resource", reason="counts page faults, as Unix does")
STATE = (64, 3, 32, 32)  # 192 pages of 4 KiB


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other allocators have their own ways")
def test_a_step_takes_no_new_pages() -> None:
    """Page faults of 100 steps: fewer than a tenth of a state a step, where the allocator by itself returns states to the system and takes them back."""
    process = sd.VPSDE()
    problem, x = process.reverse(lambda x, t: torch.zeros_like(x)), process.prior(STATE, seed=0)
    sd.solve(problem, x, "euler_maruyama", steps=20, seed=0)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    sd.solve(problem, x, "euler_maruyama", steps=100, seed=0)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before < 100 * 19


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_large_rows_that_are_finite_have_arrived(dtype: torch.dtype) -> None:
    """What watches over the rows does not overflow before they do."""
    x = torch.full((2, 50), 0.9 * torch.finfo(dtype).max, dtype=dtype)
    solution = sd.solve(sd.ODE(lambda x, t: 0 * x), x, "euler", steps=3)
    assert solution.ok().all() and torch.equal(solution.x, x)
