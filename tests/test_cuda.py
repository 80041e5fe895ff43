"""On a GPU: the same noise and samples as on a CPU, no host read in the fixed loop, and networks in half precision, compiled.  Skipped without one."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from problems import GaussianTarget, solvable

import sdesolve as sd
import sdesolve_gen as gen
from sdesolve.methods import METHODS
from sdesolve.noise import SeededNormals

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
VP = sd.VPSDE()
ADAPTIVE = [name for name, make in METHODS.items() if make().error_order is not None]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_noise_is_that_of_the_cpu(dtype: torch.dtype) -> None:
    there, here = (SeededNormals(7, range(64), (3, 8, 8), dtype=dtype, device=torch.device(device)).normal(5) for device in ("cuda", "cpu"))
    torch.testing.assert_close(there.cpu(), here, rtol=1e-6 if dtype == torch.float32 else 1e-13, atol=1e-6 if dtype == torch.float32 else 1e-13)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_noise_of_a_large_state_is_that_of_the_cpu(dtype: torch.dtype) -> None:
    """Drawn on the device, and without a wait."""
    there, here = (SeededNormals(7, range(3, 35), (3, 64, 64), dtype=dtype, device=torch.device(device), nodes=20) for device in ("cuda", "cpu"))
    there.normal(0)
    torch.cuda.set_sync_debug_mode("error")
    try:
        drawn = [there.normal(node, slot) for node in (0, 13) for slot in (0, 2**62)]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for z, (node, slot) in zip(drawn, [(0, 0), (0, 2**62), (13, 0), (13, 2**62)], strict=True):
        torch.testing.assert_close(z.cpu(), here.normal(node, slot), rtol=1e-6, atol=1e-6 if dtype == torch.float32 else 1e-13)


@pytest.mark.parametrize("method", METHODS)
def test_samples_are_those_of_the_cpu(method: str) -> None:
    ends = []
    for device in ("cuda", "cpu"):
        x = VP.prior((64, 2, 3), seed=1, dtype=torch.float64, device=device)
        ends.append(sd.solve(solvable(method, GaussianTarget(VP).score), x, method, steps=10, seed=2))
    assert ends[0].x.device.type == "cuda"
    torch.testing.assert_close(ends[0].x.cpu(), ends[1].x, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("method", ADAPTIVE)
def test_adaptive_samples_are_those_of_the_cpu(method: str) -> None:
    ends, tolerance = [], 0.03 if METHODS[method]().facts.kinds else 1e-5
    for device in ("cuda", "cpu"):
        x = VP.prior((16, 3), seed=1, dtype=torch.float64, device=device)
        ends.append(sd.solve(solvable(method, GaussianTarget(VP).score), x, method, rtol=tolerance, atol=tolerance, seed=2))
    torch.testing.assert_close(ends[0].x.cpu(), ends[1].x, rtol=1e-6, atol=1e-6)
    assert torch.equal(torch.as_tensor(ends[0].nfe).cpu(), torch.as_tensor(ends[1].nfe))


@pytest.mark.parametrize("method", METHODS)
def test_the_fixed_loop_does_not_wait_for_the_device(method: str) -> None:
    """Host reads do not grow with the number of steps: what is read before the first and after the last is read once."""
    counts = []
    torch.cuda.set_sync_debug_mode("warn")
    try:
        for steps in (6, 18):
            x = VP.prior((8, 2, 3), seed=1, device="cuda")
            problem = solvable(method, GaussianTarget(VP).score)
            with warnings.catch_warnings(record=True) as waits:
                warnings.simplefilter("always")
                sd.solve(problem, x, method, steps=steps, seed=2)
            counts.append(sum("synchronizing" in str(wait.message) for wait in waits))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert counts[1] <= counts[0]


def test_half_precision_and_compiled_networks_draw_digits() -> None:
    plain = gen.load("mnist", "cuda").sample(8, "ddim", steps=20, seed=0)
    fast = gen.load("mnist").to("cuda", precision="bf16", compile=True).sample(8, "ddim", steps=20, seed=0)
    assert plain.device.type == "cuda"
    assert float((plain - fast).abs().mean()) < 0.1  # of a range of 2


def test_likelihood_is_that_of_the_cpu() -> None:
    found = []
    for device in ("cuda", "cpu"):
        model = gen.load("mnist", device)
        images = torch.randint(0, 256, (4, *model.shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        found.append(model.log_likelihood(images, seed=0, rtol=1e-4, atol=1e-4).bits_per_dim(model.data_range, model.levels).cpu())
    torch.testing.assert_close(found[0], found[1], rtol=2e-3, atol=2e-3)


def test_restorations_stay_on_the_device() -> None:
    model = gen.load("mnist", "cuda")
    y = model.sample(2, "ddim", steps=10, seed=0)
    mask = torch.ones(28, 28)
    mask[:, 14:] = 0
    for method in ("projection", "dps", "pigdm", "ddnm"):
        found = model.inpaint(y, mask, method=method, steps=10, seed=0)
        assert float((found.images[:, 0].to(y) - y)[..., :14].abs().max()) < (0.6 if method == "dps" else 2e-3)


def test_training_goes_on_where_it_was(tmp_path: Path) -> None:
    import numpy as np

    np.savez(tmp_path / "data.npz", images=np.random.default_rng(0).integers(0, 256, (64, 8, 8), dtype=np.uint8))
    config = {"data": str(tmp_path / "data.npz"), "name": "tiny", "batch": 16, "warmup": 1, "network": {"width": 8, "multipliers": [1, 2]}, "save_every": 5}
    whole = gen.train(gen.TrainConfig(out=str(tmp_path / "whole"), steps=10, **config), progress=False)
    assert whole.device.type in ("cuda", "cpu")
    drawn = gen.load(tmp_path / "whole", "cuda").sample(2, "ddim", steps=4, seed=0)
    assert torch.isfinite(drawn).all()
