"""PSNR, SSIM and LPIPS against their definitions written out pixel by pixel."""

import math

import numpy as np
import pytest
import torch

from sdesolve_gen.conditioning import metrics
from sdesolve_gen.conditioning import operators as ops

RANGE = (-1.0, 1.0)


def pair(shape=(2, 3, 13, 15)):
    draws = np.random.default_rng(0)
    x = torch.from_numpy(draws.uniform(-1, 1, shape))
    return x, (x + torch.from_numpy(draws.normal(0, 0.2, shape))).clamp(-1, 1)


def written_out(x: np.ndarray, y: np.ndarray, peak: float) -> float:
    """SSIM of one channel as Wang et al. write it: a loop over windows."""
    place = np.arange(11) - 5
    weight = np.exp(-(place[:, None] ** 2 + place**2) / (2 * 1.5**2))
    weight /= weight.sum()
    c1, c2 = (0.01 * peak) ** 2, (0.03 * peak) ** 2
    values = []
    for i in range(x.shape[0] - 10):
        for j in range(x.shape[1] - 10):
            a, b = x[i : i + 11, j : j + 11], y[i : i + 11, j : j + 11]
            ma, mb = (weight * a).sum(), (weight * b).sum()
            va, vb, cab = (weight * (a - ma) ** 2).sum(), (weight * (b - mb) ** 2).sum(), (weight * (a - ma) * (b - mb)).sum()
            values.append((2 * ma * mb + c1) * (2 * cab + c2) / ((ma**2 + mb**2 + c1) * (va + vb + c2)))
    return float(np.mean(values))


def test_psnr():
    x = torch.zeros(2, 1, 4, 4)
    torch.testing.assert_close(metrics.psnr(x + 0.02, x, RANGE), torch.full((2,), 40.0))
    torch.testing.assert_close(metrics.psnr(x + 2.55, x, (0, 255)), torch.full((2,), 40.0))
    assert metrics.psnr(x, x, RANGE).tolist() == [math.inf] * 2
    assert metrics.psnr(torch.stack([x[0], x[1] + 0.2]), x, RANGE)[1] == pytest.approx(20)


def test_ssim():
    x, y = pair()
    expected = [np.mean([written_out(a, b, 2.0) for a, b in zip(i.numpy(), j.numpy(), strict=True)]) for i, j in zip(x, y, strict=True)]
    torch.testing.assert_close(metrics.ssim(x, y, RANGE), torch.tensor(expected), rtol=1e-9, atol=0)
    torch.testing.assert_close(metrics.ssim(x, x, RANGE), torch.ones(2).double())
    torch.testing.assert_close(metrics.ssim(x.float(), y.float(), RANGE), torch.tensor(expected), rtol=1e-5, atol=0)  # in float64 within: variances are differences
    scaled = metrics.ssim((x + 1) * 127.5, (y + 1) * 127.5, (0, 255))
    assert float((scaled - torch.tensor(expected)).abs().max()) > 1e-3  # SSIM is not blind to the offset of a range


def test_lpips_takes_three_channels_in_its_own_range():
    seen = []

    def network(a, b):
        seen.extend((a, b))
        return (a - b).abs().mean((1, 2, 3), keepdim=True)

    x, y = torch.zeros(2, 1, 8, 8), torch.full((2, 1, 8, 8), 255.0)
    assert metrics.lpips(x, y, (0, 255), network).tolist() == [2.0, 2.0]
    assert seen[0].shape == (2, 3, 8, 8)
    assert (float(seen[0].min()), float(seen[1].max())) == (-1.0, 1.0)


def test_consistency_is_the_noise():
    operator = ops.Downsample((1, 32, 32), 2)
    x = torch.randn(3, 1, 32, 32)
    y = operator.forward(x) + 0.1 * torch.randn(3, 1, 16, 16)
    torch.testing.assert_close(metrics.consistency(operator, y, x), torch.full((3,), 0.1), rtol=0.15, atol=0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: metrics.psnr(torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 4, 5), RANGE), r"expected \(B, C, H, W\) both"),
        (lambda: metrics.psnr(torch.zeros(4, 4), torch.zeros(4, 4), RANGE), r"expected \(B, C, H, W\) both"),
        (lambda: metrics.psnr(torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 4, 4), (1, 0)), "expected .low, high. with low < high"),
        (lambda: metrics.ssim(torch.zeros(1, 1, 8, 20), torch.zeros(1, 1, 8, 20), RANGE), "expected at least 11 x 11"),
        (lambda: metrics.psnr(torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 4, 4), 2), "data_range=2; expected .low, high."),
        (lambda: metrics.psnr(*2 * [torch.zeros(1, 1, 4, 4, dtype=torch.uint8)], (0, 255)), r"images are torch.uint8 .* expected floats both: images.float\(\)"),
    ],
    ids=range(6),
)
def test_bad_images_are_refused(call, message):
    with pytest.raises((ValueError, TypeError), match=message):
        call()


def test_lpips_without_its_package(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "lpips", None)
    with pytest.raises(ImportError, match="pip install lpips"):
        metrics.lpips(torch.zeros(1, 1, 8, 8), torch.zeros(1, 1, 8, 8), RANGE)
