"""Poisson noise in the units of the data, options that two have of one name, the spread of the data, and raw input."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gen_fixtures import tiny_model
from test_gen_restoration import DOWN, SHAPE, STD, colour_model, gaussian_model, half, pictures

import sdesolve as sd
import sdesolve_gen as gen
from sdesolve_gen.conditioning import CONDITIONINGS, Measurement, Operator, dps, twist
from sdesolve_gen.conditioning import operators as ops
from sdesolve_gen.data import read_data
from sdesolve_gen.measuring import (
    check_ends,
    check_range,
    check_scale,
    half_black,
    measured,
    nearest,
    of_rounding,
    scaled_to_one,
    simulated,
)

Y, BLACK = torch.zeros(1, 1, 2, 2), torch.zeros(1, *SHAPE)
IDENTITY = ops.Mask(SHAPE, torch.ones(4, 4))


def counted(x: torch.Tensor, peak: float, seed: int = 0) -> torch.Tensor:
    """Counts of images in (-4, 4), in their units."""
    rate = (x.flatten(1) + 4) / 8 * peak
    return -4 + torch.poisson(rate, generator=torch.Generator().manual_seed(seed)) * 8 / peak


@pytest.mark.parametrize("method", ["pigdm", "mmps"])
def test_counts_are_restored_with_their_own_variance(method: str) -> None:
    """x ~ N(0, STD^2) on (-4, 4) with 400 counts at x = 4: y has the variance 8/400 (x + 4) = 0.08 near 0, and the posterior is nearly Gaussian with that."""
    m, options = gaussian_model(), {"prior_std": STD} if method == "pigdm" else {}
    y = counted(torch.zeros(1, *SHAPE), 400.0)
    r = m.restore(y, IDENTITY, noise="poisson", peak=400.0, method=method, draws=400, steps=40, seed=0, **options)
    gain = STD**2 / (STD**2 + 0.08)
    assert abs(float(r.std.mean()) / (STD**2 * (1 - gain)) ** 0.5 - 1) < 0.05
    assert float((r.mean.flatten() - gain * y[0]).abs().max()) < 0.08
    assert float(r.residual.square().mean().sqrt()) == pytest.approx((STD**2 * (1 - gain) + (1 - gain) ** 2 * float(y.square().mean())) ** 0.5, rel=0.05)


def test_dps_takes_counts() -> None:
    y = counted(torch.zeros(1, *SHAPE), 400.0)
    r = gaussian_model().restore(y, IDENTITY, noise="poisson", peak=400.0, method="dps", draws=50, steps=40, seed=0)
    assert float((r.mean.flatten() - y[0]).abs().mean()) < float(y.abs().mean())


def test_a_measurement_of_counts_knows_where_they_start() -> None:
    """The variance is gain (A x - A low), and never less than that of one count."""
    m = measured(gaussian_model(), torch.full((1, 16), -4.0), IDENTITY, None, "poisson", 16.0)
    assert m.gain == 0.5 and m.noise_std == 0
    torch.testing.assert_close(m.variance(torch.full((1, 16), 2.0)), torch.full((1, 16), 0.5 * 6))
    torch.testing.assert_close(m.variance(torch.full((1, 16), -9.0)), torch.full((1, 16), 0.25))
    read = measured(gaussian_model(), torch.full((1, 16), -4.0), IDENTITY, 0.3, "poisson", 16.0)
    torch.testing.assert_close(read.variance(torch.full((1, 16), 2.0)), torch.full((1, 16), 3.09))


def test_simulated_counts_are_counts_named_by_seed_and_image() -> None:
    m, x = gaussian_model(), torch.full((300, *SHAPE), 1.0)
    y = simulated(m, IDENTITY, x, 0.0, "poisson", 40.0, seed=3)
    counts = (y + 4) * 40 / 8
    torch.testing.assert_close(counts, counts.round(), atol=1e-4, rtol=0)
    assert float(counts.mean()) == pytest.approx(25, rel=0.01) and float(counts.var()) == pytest.approx(25, rel=0.05)
    assert torch.equal(y[:2], simulated(m, IDENTITY, x[:2], 0.0, "poisson", 40.0, seed=3))
    assert not torch.equal(y[0], y[1]) and not torch.equal(y[:2], simulated(m, IDENTITY, x[:2], 0.0, "poisson", 40.0, seed=4))


def test_counts_of_less_than_nothing_are_not_simulated() -> None:
    """A of both signs takes light away; and so do images below the low end of the data, but for rounding."""
    m, x = gaussian_model(), torch.rand(3, *SHAPE, generator=torch.Generator().manual_seed(0))
    signed = ops.as_operator(lambda v: v - v.roll(1, -1), SHAPE)
    for operator, seen in ((signed, x), (IDENTITY, x - 5.0)):
        with pytest.raises(ValueError, match=r"measures down to -.* counts of these images, A \(x - low\) < 0"):
            simulated(m, operator, seen, 0.0, "poisson", 40.0, seed=0)
        simulated(m, operator, seen, 0.1, "gaussian", None, seed=0)
    dark = torch.full((1, *SHAPE), -4.0 - 1e-6)
    dark[..., 0, 0] = 0.0
    assert float(simulated(m, IDENTITY, dark, 0.0, "poisson", 40.0, seed=0).min()) == -4.0


def test_inpaint_takes_counts_beyond_the_data_range() -> None:
    m, x = gaussian_model(), torch.full((1, *SHAPE), 4.0)
    y = counted(x, 30.0).reshape(x.shape)
    assert float(y.max()) > 4.5
    r = m.inpaint(y, torch.ones(4, 4), noise="poisson", peak=30.0, method="pigdm", prior_std=STD, steps=10, seed=0)
    assert float(r.images.max()) <= 4 and not torch.equal(r.images[:, 0], y)  # they are not put in place
    colour_model().colorize(pictures(1), noise="poisson", peak=30.0, method="pigdm", steps=2, seed=0)


# -- options ---------------------------------------------------------------------------------------------------------------


def test_the_published_rule_of_dps_is_reached() -> None:
    """``steps`` of the conditioning method beside that of the solver: N equal steps in time, as algorithm 1 has them."""
    m, y = gaussian_model(), pictures(1, (1, 2, 2))
    r = m.restore(y, DOWN, 0.1, "dps", seed=0, method_options={"steps": 30, "zeta": 0.2})
    score = dps(m.score, Measurement(DOWN, y, 0.1), zeta=0.2, steps=30).score
    x = sd.solve(m.process.reverse(score), m.process.prior((1, *SHAPE), seed=0), "euler_maruyama", steps=30, grid="uniform", seed=0, denoise=True).x
    assert torch.equal(r.images[:, 0], x.clamp(-4, 4)) and r.sampler == "euler_maruyama"
    with pytest.raises(ValueError, match=r"steps=40 and method_options=\{'steps': 30\}"):
        m.restore(y, DOWN, 0.1, "dps", steps=40, method_options={"steps": 30})


def test_options_that_are_given_apart_leave_the_others_to_the_solver() -> None:
    """eta of DDNM and eta of DDIM."""
    m, y = gaussian_model(), pictures(1, (1, 2, 2))
    own, both = {"eta": 0.3}, {"method": "ddnm", "seed": 0, "steps": 6}
    score = CONDITIONINGS["ddnm"](m.score, Measurement(DOWN, y, 0.5), eta=0.3).score
    x = sd.solve(m.process.reverse(score), m.process.prior((1, *SHAPE), seed=0), "ddim", eta=0.0, steps=6, seed=0, denoise=True).x
    assert torch.equal(m.restore(y, DOWN, 0.5, method_options=own, eta=0.0, **both).images[:, 0], x)
    assert not torch.equal(m.restore(y, DOWN, 0.5, eta=0.3, **both).images[:, 0], x)


def test_the_spread_of_the_data_is_the_models() -> None:
    """PiGDM's prior_std is a quarter of the data range, or what an EDM card has."""
    m, y = gaussian_model(), pictures(1, (1, 2, 2))
    assert m.data_std == 2.0 and gen.load("mnist").data_std == 0.5 and gaussian_model(sigma_data=0.7).data_std == 0.7
    told, untold = (m.restore(y, DOWN, 0.3, "pigdm", seed=0, steps=6, **options).images for options in ({"prior_std": 2.0}, {}))
    assert torch.equal(told, untold) and not torch.equal(m.restore(y, DOWN, 0.3, "pigdm", seed=0, steps=6, prior_std=1.0).images, told)


# -- raw input -------------------------------------------------------------------------------------------------------------


def restored(y: Any = Y, operator: Any = DOWN, **options: Any) -> Any:
    return lambda m: m.restore(y, operator, **options)


def inpainted(mask: Any, images: Any = BLACK) -> Any:
    return lambda m: m.inpaint(images, mask)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (restored(None), r"y is None, a NoneType; expected a tensor of floats \(n, 1, 2, 2\)"),
        (restored("a"), "y is 'a', a str"),
        (restored([[1], [2, 3]]), r"y is \[\[1\], \[2, 3\]\], a list"),
        (restored(Y.to(torch.complex64)), "y is torch.complex64; expected real numbers"),
        (restored(Y.bool()), r"y is torch.bool; expected a floating tensor, \(B, 1, 2, 2\), in the units of the data"),
        (restored(operator=ops.Downsample), r"operator is the class Downsample and none that is made; expected one, as in Downsample\(\(1, 4, 4\), ...\)"),
        (restored(operator=None), "operator is a NoneType"),
        (restored(operator=lambda x: None), "the operator's function returned a NoneType; expected a tensor"),
        (restored(operator=lambda x: x @ torch.eye(7)), r"the operator's function failed on states of shape \(1, 1, 4, 4\) \(mat1 and mat2"),
        (restored(operator=lambda x: ops.Downsample(SHAPE, 2).forward(x).detach()), "cannot be differentiated, by which its adjoint is found"),
        (restored(sampler=3), "sampler is a int; expected a name"),
        (restored(method=None), "method None is not known"),
        (restored(method="dps", method_options="steps=3"), "method_options='steps=3'; expected names and values"),
        (restored(method="dps", method_options={"zta": 3}), "option of method='dps': 'zta' is not known.*Did you mean 'zeta'"),
        (restored(noise="poison"), "Did you mean 'poisson'"),
        (restored(noise="poisson"), "peak=None; expected how many counts"),
        (restored(noise="poisson", peak=-1), "peak=-1; expected how many counts"),
        (restored(peak=30.0), "peak=30.0 with noise='gaussian'; expected noise='poisson'"),
        (restored(Y - 5, noise="poisson", peak=30.0), "y has -3.75 counts somewhere, and counts are not negative"),
        (restored(noise="poisson", peak=30.0, method="ddnm"), "ddnm has no treatment of noise='poisson'; expected 'dps', 'pigdm' or 'mmps'"),
        (restored(sample_ids=3.5), r"sample_ids=\[3.5\]"),
        (inpainted(None), "mask is None, a NoneType"),
        (inpainted("mask.png"), "mask is 'mask.png', a str"),
        (inpainted(torch.ones(4, 4) * 1j), "mask is torch.complex64"),
        (inpainted(half(4), None), "images: got a NoneType"),
        (inpainted(half(4), torch.zeros(1, *SHAPE) * 1j), "pictures are torch.complex64"),
    ],
    ids=range(26),
)
def test_raw_input_is_refused_in_a_line(call: Any, message: str) -> None:
    m = gaussian_model()
    with pytest.raises((ValueError, TypeError), match=message) as caught:
        call(m)
    assert m.network.calls == 0 and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ops.compose(DOWN, 3), "compose got a int as number 1"),
        (lambda: ops.compose(ops.Mask, DOWN), "compose got the class Mask as number 0"),
        (lambda: ops.compose([DOWN]), "compose got a list as number 0; expected operators, one by one"),
        (lambda: ops.Mask(SHAPE, None), "mask is None"),
        (lambda: ops.Mask(None, torch.ones(4, 4)), "event=None; expected the shape"),
        (lambda: ops.Mask(SHAPE, torch.full((4, 4), 2.0)), "1 where the pixel is known$"),
        (lambda: ops.Matrix(SHAPE, torch.eye(16) * 1j), "matrix is torch.complex64"),
        (lambda: ops.Blur(SHAPE, "wide"), "kernel is 'wide'"),
        (lambda: ops.make("random_pixels", SHAPE, missing="all"), "missing='all'; expected a share"),
        (lambda: ops.make("mri", SHAPE, acceleration="4"), "acceleration='4'"),
        (lambda: ops.make("radon", SHAPE, angles="many"), "angles='many'; expected their number, as in angles=60"),
        (lambda: Measurement(ops.Mask, Y), "operator is the class Mask; expected an Operator"),
        (lambda: Measurement(lambda x: x, Y), "operator is a function; expected an Operator"),
        (lambda: Measurement(DOWN, Y, np.float32(-1)), "noise_std=.*-1"),
        (lambda: twist(Measurement(DOWN, Y, 0.1), sd.VPSDE(), 4, "wide"), "data_std='wide'; expected a finite number > 0"),
    ],
    ids=range(15),
)
def test_what_cannot_be_an_operator_or_a_measurement_is_refused_in_a_line(make: Any, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        make()


def test_numpys_numbers_are_numbers() -> None:
    assert Measurement(DOWN, Y, np.float32(0.5)).noise_std == 0.5
    assert isinstance(ops.compose(DOWN), Operator)


# -- pictures in [0, 1] for data in [-1, 1] --------------------------------------------------------------------------------


LEVELS = torch.randint(0, 256, (2, 1, 8, 8), generator=torch.Generator().manual_seed(0))
BRIGHT = LEVELS // 2 + 128
OFF_LEVELS = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("images", "noise_std", "told"),
    [
        (LEVELS / 255, 0.0, True),
        (LEVELS / 255, 0.05, True),
        (BRIGHT / 255, 0.0, True),  # by their levels alone
        (OFF_LEVELS, 0.0, True),
        (LEVELS / 127.5 - 1, 0.0, False),
        (BRIGHT / 127.5 - 1, 0.0, False),  # without a dark value, as they ought to be
        (LEVELS / 127.5 - 1, 0.05, False),
        (0.2 + 0.8 * OFF_LEVELS, 0.0, False),
        (2 * OFF_LEVELS - 1, 0.0, False),
        (torch.zeros(2, 1, 8, 8), 0.0, False),
        (LEVELS.to(torch.uint8), 0.0, False),
    ],
)
def test_pictures_in_the_wrong_range_are_told(images: torch.Tensor, noise_std: float, told: bool) -> None:
    m, mask = tiny_model(), torch.ones(8, 8)
    mask[:, 4:] = 0
    if noise_std:
        images = images + noise_std * torch.randn(images.shape, generator=torch.Generator().manual_seed(1))
    asked: list[Callable[[], object]] = [lambda: m.inpaint(images, mask, noise_std=noise_std, method="ddnm", steps=2, seed=0)]
    if images.is_floating_point():
        identity = ops.Mask(m.shape, torch.ones(8, 8))
        asked.append(lambda: m.restore(identity.forward(images), identity, noise_std, "ddnm", steps=2, seed=0))
    for ask in asked:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", sd.SolveWarning)
            ask()
        found = [warning for warning in caught if r"lie in [0, 1]" in str(warning.message)]
        assert len(found) == told and all("2 * y - 1, or integers from 0 to 255" in str(warning.message) for warning in found)
    if told:
        assert found[0].filename == __file__


def test_what_has_other_units_than_pixels_has_no_range() -> None:
    y = OFF_LEVELS[:, 0, :4].flatten(1)
    twice = ops.as_operator(lambda x: 2 * x[..., :4, :].flatten(1), (1, 8, 8))
    with warnings.catch_warnings():
        warnings.simplefilter("error", sd.SolveWarning)
        measured(tiny_model(), y, twice, 0.0)
        check_scale(Measurement(twice, y), (-1.0, 1.0), 256)
    seen = torch.zeros(8, 8)
    seen[:4] = 1
    with pytest.warns(sd.SolveWarning, match="all 64 values"):
        check_scale(Measurement(ops.Mask((1, 8, 8), seen), y), (-1.0, 1.0), 256)


@pytest.mark.parametrize("noise_std", [0.02, 0.1, 0.2])
def test_data_about_zero_are_not_taken_for_pictures_in_zero_to_one(noise_std: float) -> None:
    """Of standard deviation 0.3, of which a seventh and more lie below twice the noise; what is told says which values were seen."""
    generator = torch.Generator().manual_seed(0)
    for scale in (0.3, 0.1):
        y = scale * torch.randn(40, 4, 4, generator=generator) + noise_std * torch.randn(40, 4, 4, generator=generator)
        assert not any(scaled_to_one(image, noise_std, 256) for image in y)
    if noise_std > 0.1:
        return
    flat = ops.Mask((1, 8, 8), torch.ones(8, 8))
    y = flat.forward(OFF_LEVELS) + noise_std * torch.randn(2, 64, generator=generator)
    with pytest.warns(sd.SolveWarning, match=rf"the 128 values of y, {float(y.min()):.3g} to {float(y.max()):.3g}, lie in \[0, 1\] but for noise"):
        check_scale(Measurement(flat, y, noise_std), (-1.0, 1.0), 256)


@pytest.mark.parametrize("noise_std", [0.0, 0.05, 0.2])
def test_pixels_beyond_the_data_range_are_told(noise_std: float) -> None:
    """Photographs from -1 to 1 for a model of data from 0 to 1, under operators that leave white as it is; and none in the range, with what bicubic kernels overshoot."""
    coarse = torch.rand(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    x = torch.nn.functional.interpolate(coarse, size=(24, 24), mode="bilinear")
    shape, generator = (3, 24, 24), torch.Generator().manual_seed(1)
    left = torch.ones(24, 24)
    left[:, 12:] = 0
    for operator in (ops.Mask(shape, left), ops.Downsample(shape, 2), ops.Downsample(shape, 2, "bicubic"), ops.Blur(shape, ops.gaussian_kernel(1.0))):
        noise = noise_std * torch.randn(operator.forward(x).shape, generator=generator)
        with warnings.catch_warnings():
            warnings.simplefilter("error", sd.SolveWarning)
            check_ends(Measurement(operator, operator.forward(x) + noise, noise_std), (0.0, 1.0))
            check_ends(Measurement(operator, operator.forward(2 * x - 1) + noise, noise_std), (-1.0, 1.0))
        if noise_std < 0.1:  # beyond by less than six of which nothing is told
            with pytest.warns(sd.SolveWarning, match=r"% of the values of y, .* lie beyond the data range, 0 to 1, .* as in 0 \+ \(y \+ 1\) \* 0.5 for values"):
                check_ends(Measurement(operator, operator.forward(2 * x - 1) + noise, noise_std), (0.0, 1.0))
            with pytest.warns(sd.SolveWarning, match=r"beyond the data range, -1 to 1, .* as in y / 127.5 - 1 for values from 0 to 255\."):
                check_ends(Measurement(operator, operator.forward(255 * x) + noise, noise_std), (-1.0, 1.0))


@pytest.mark.parametrize("peak", [10.0, 30.0, 255.0])
def test_counts_over_their_peak_are_told(shared_data: Path, peak: float) -> None:
    """y = k/peak, where counts of data from -1 are y = -1 + 2 k/peak, with and without noise of their reading."""
    m, flat = gen.load("mnist"), ops.Mask((1, 28, 28), torch.ones(28, 28))
    k = torch.poisson(peak * flat.forward(digits(shared_data, 4)), generator=torch.Generator().manual_seed(0))
    for noise_std in (0.0, 0.02):
        reading = noise_std * torch.randn(k.shape, generator=torch.Generator().manual_seed(1))
        with pytest.warns(sd.SolveWarning, match=r"values of y, .* lie in \[0, 1\] but for noise, .* in that range: 2 \* y - 1\.$"):
            check_scale(measured(m, k / peak + reading, flat, noise_std, "poisson", peak), (-1.0, 1.0), 256)
        with warnings.catch_warnings():
            warnings.simplefilter("error", sd.SolveWarning)
            check_scale(measured(m, -1 + 2 * k / peak + reading, flat, noise_std, "poisson", peak), (-1.0, 1.0), 256)
            check_scale(measured(m, k / peak + reading, flat, noise_std, "poisson", peak), (0.0, 1.0), 256)


def test_whole_counts_are_of_the_models_range() -> None:
    """However bright the images are."""
    m, flat, k = gen.load("mnist"), ops.Mask((1, 7, 7), torch.ones(7, 7)), torch.arange(50, 99)[None]
    with warnings.catch_warnings():
        warnings.simplefilter("error", sd.SolveWarning)
        check_scale(measured(m, -1 + 2 * k / 100, flat, 0.0, "poisson", 100.0), (-1.0, 1.0), 256)
    with pytest.warns(sd.SolveWarning, match="lie in"):
        check_scale(measured(m, -1 + 2 * (k + 0.5) / 100, flat, 0.0, "poisson", 100.0), (-1.0, 1.0), 256)


def test_digits_raise_no_false_alarm(shared_data: Path) -> None:
    levels = read_data(shared_data / "mnist" / "test.parquet")[0][:2000].float()
    for noise_std in (0.0, 0.05):
        noise = noise_std * torch.randn(levels.shape, generator=torch.Generator().manual_seed(0))
        assert not any(scaled_to_one(image, noise_std, 256) for image in levels / 127.5 - 1 + noise)
        told = sum(scaled_to_one(image, noise_std, 256) for image in levels / 255 + noise)
        assert told == 2000 if noise_std == 0 else told > 1900


OPERATORS = [
    ("radon", {"angles": 12}), ("fan_beam", {"angles": 12}), ("mri", {}), ("mri_points", {}), ("random_projections", {}), ("downsample", {"factor": 4, "kernel": "bicubic"}),
    ("gaussian_blur", {"std": 0.8}), ("random_pixels", {"missing": 0.5}), ("gray", {"weights": [3.0]}),
]  # fmt: skip


def digits(shared_data: Path, n: int) -> torch.Tensor:
    return read_data(shared_data / "mnist" / "test.parquet")[0][:n].float() / 255


@pytest.mark.parametrize(("name", "options"), OPERATORS, ids=[name for name, _ in OPERATORS])
@pytest.mark.parametrize("data_range", [(0.0, 1.0), (-1.0, 1.0), (0.0, 255.0)])
@pytest.mark.parametrize("noise", [0.0, 0.3, "poisson"])
def test_no_measurement_that_there_can_be_is_refused(name: str, options: dict[str, object], data_range: tuple[float, float], noise: float | str) -> None:
    """Of images at the corners of the box too, black, white and in between, with noise as large as it gets in a hundred."""
    (low, high), m = data_range, tiny_model()
    m.data_range = data_range
    operator, generator = ops.make(name, m.shape, **options), torch.Generator().manual_seed(0)
    grey = torch.rand(40, *m.shape, generator=generator)
    x = low + (high - low) * torch.cat([grey, (grey > 0.5).float(), (grey > 0.9).float(), (grey < 0.9).float(), torch.zeros(1, *m.shape), torch.ones(1, *m.shape)])
    std, kind, peak = (0.0, "poisson", 4.0) if isinstance(noise, str) else (noise * (high - low), "gaussian", None)
    if kind == "poisson" and not bool((operator.forward(x[-1:] - low) >= 0).all()):
        pytest.skip("counts are of what shines")
    if kind == "poisson":
        shining = operator.forward(x - low)
        x = x[(shining > -1e-5 * shining.abs().max()).flatten(1).all(1)]
        assert len(x) > 1  # black and white shine everywhere
    y = simulated(m, operator, x, std, kind, peak, 0)
    check_range(measured(m, y, operator, std, kind, peak), data_range)


def test_what_is_a_little_beyond_the_data_or_noisier_than_is_said_is_not_refused() -> None:
    black, grey = torch.zeros(1, 1, 8, 8), torch.rand(9, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    for operator in (ops.make("radon", (1, 8, 8)), ops.make("motion_blur", (1, 8, 8), length=3)):
        check_range(Measurement(operator, operator.forward(black - 0.2)), (0.0, 1.0))
        check_range(Measurement(operator, operator.forward(black + 1.2)), (0.0, 1.0))
    check_range(Measurement(operator, grey), (0.0, 1.0))  # no picture is blurred to that


@pytest.mark.parametrize(("name", "options"), OPERATORS, ids=[name for name, _ in OPERATORS])
@pytest.mark.parametrize("noise_std", [0.0, 0.05])
def test_what_is_measured_of_levels_is_refused(shared_data: Path, name: str, options: dict[str, object], noise_std: float) -> None:
    images = digits(shared_data, 3)
    operator, noise = ops.make(name, (1, 28, 28), **options), torch.Generator().manual_seed(0)
    y = operator.forward(255 * images)
    y = y + noise_std * torch.randn(y.shape, generator=noise)
    for data_range in ((0.0, 1.0), (-1.0, 1.0)):
        with pytest.raises(ValueError, match="y is in other units than the data") as refused:
            check_range(Measurement(operator, y, noise_std), data_range)
        line = str(refused.value).split("for those from 0 to 255 ")[1].removesuffix(".")
        told = eval(line, {"torch": torch, "operator": operator, "y": y, "m": gen.load("mnist")})
        low, high = data_range
        assert torch.allclose(told, operator.forward(low + (high - low) * images), atol=1e-3 + 0.05 * noise_std)
        check_range(Measurement(operator, told, noise_std), data_range)


@pytest.mark.parametrize("name", ["radon", "fan_beam", "mri", "mri_points"])
def test_measurements_of_images_from_minus_one_are_refused_where_the_data_start_at_zero(shared_data: Path, name: str) -> None:
    operator = ops.make(name, (1, 28, 28))
    with pytest.raises(ValueError, match=r"images near \[0, 1\]"):
        check_range(Measurement(operator, operator.forward(2 * digits(shared_data, 3) - 1), 0.05), (0.0, 1.0))


@pytest.mark.parametrize("name", ["radon", "fan_beam", "mri", "mri_points", "random_projections"])
def test_measurements_of_pictures_from_zero_to_one_are_told(shared_data: Path, name: str) -> None:
    """Of those with a dark ground, where enough is measured to see it; none of the model's own range, and none that are brighter than its middle everywhere."""
    operator, images, std = ops.make(name, (1, 28, 28)), digits(shared_data, 40), 0.02
    noise = torch.Generator().manual_seed(0)
    of_zero, own = (Measurement(operator, y + std * torch.randn(y.shape, generator=noise), std) for y in map(operator.forward, (images, 2 * images - 1)))
    assert not half_black(own) and not half_black(Measurement(operator, operator.forward(0.3 + 0.5 * images)))
    assert half_black(of_zero) == (name != "random_projections")
    if name != "random_projections":
        with pytest.warns(sd.SolveWarning, match=r"y is as images in \[0, 1\] give it .*: 2 \* y - operator\.forward\(torch\.ones\(1, \*m\.shape\)\)"):
            check_scale(of_zero, (-1.0, 1.0), 256)
    with warnings.catch_warnings():
        warnings.simplefilter("error", sd.SolveWarning)
        check_scale(own, (-1.0, 1.0), 256)
        check_scale(of_zero, (0.0, 1.0), 256)


def test_the_nearest_image_is_that_of_bounded_least_squares() -> None:
    """By scipy, on a matrix whose least squares leave the box."""
    from scipy.optimize import lsq_linear

    matrix = np.random.default_rng(0).normal(size=(12, 9)) + 2 * np.eye(12, 9)
    y = np.random.default_rng(1).normal(size=12) * 3
    operator = ops.as_operator(lambda x: x.flatten(1) @ torch.from_numpy(matrix).T.to(x), (1, 3, 3))
    x, left = nearest(operator, torch.from_numpy(y)[None], (-0.5, 1.0), steps=400)
    expected = lsq_linear(matrix, y, (-0.5, 1.0), tol=1e-12).x
    np.testing.assert_allclose(x.flatten().numpy(), expected, atol=1e-4)
    np.testing.assert_allclose(left.flatten().numpy(), y - matrix @ expected, atol=1e-3)


# -- defaults --------------------------------------------------------------------------------------------------------------


def test_y_has_noise_unless_something_else_is_said() -> None:
    m, y = gaussian_model(), pictures(1, (1, 2, 2))
    default, five, none = (m.restore(y, DOWN, noise_std, steps=6, seed=0).images for noise_std in (None, 0.05, 0.0))
    assert torch.equal(default, five) and not torch.allclose(default, none, atol=1e-3)
    assert measured(m, y, DOWN, None).noise_std == 0.05 and measured(m, y, DOWN, None, "poisson", 30.0).noise_std == 0


@pytest.mark.parametrize("std", [0.5, 1.0, 2.0, 2.5])
def test_a_gaussian_kernel_reaches_three_standard_deviations(std: float) -> None:
    """So that its variance is that of its name, which one cut off at a single standard deviation falls short of by two thirds."""
    kernel = ops.gaussian_kernel(std)
    side = len(kernel)
    place = torch.arange(side, dtype=torch.float64) - (side - 1) / 2
    assert side % 2 == 1 and 3 * std <= (side - 1) / 2 < 3 * std + 1
    assert float((kernel.sum(0) * place.square()).sum()) == pytest.approx(std**2, rel=0.15 if std < 1 else 0.03)


# -- roundings of y without noise ------------------------------------------------------------------------------------------


BLURS = {"blur": ops.Blur((1, 28, 28), ops.gaussian_kernel(2.0)), "reflect": ops.ReflectBlur((1, 28, 28), ops.gaussian_kernel(2.0))}
ROUNDING = 2 / 255 / 12**0.5


def rounded(y: torch.Tensor) -> torch.Tensor:
    return (127.5 * (y + 1)).round() / 127.5 - 1


@pytest.mark.parametrize(("operator", "middles"), [(BLURS["blur"], False), (BLURS["blur"], True), (BLURS["reflect"], True)])
def test_rounding_is_noise_where_the_operator_makes_it_large(shared_data: Path, operator: Operator, middles: bool) -> None:
    """Levels as k/127.5 - 1, or the middles of their bins, as integers are taken; the y itself is left alone."""
    y = operator.forward(2 * digits(shared_data, 1) - 1)
    levels = rounded(y)
    given = ((127.5 * (levels + 1)).round() + 0.5) / 128 - 1 if middles else levels
    with pytest.warns(sd.SolveWarning, match=r"y is rounded to 256 levels, .* noise_std=0.00226 and not 0"):
        assert of_rounding(Measurement(operator, given), (-1.0, 1.0), 256).noise_std == pytest.approx(ROUNDING)
    for less in (1e-3, 1e-9):
        with pytest.warns(sd.SolveWarning, match=rf"y is rounded to 256 levels, .* noise_std=0.00226 and not {less:g}"):
            assert of_rounding(Measurement(operator, given, less), (-1.0, 1.0), 256).noise_std == pytest.approx(ROUNDING)
    with warnings.catch_warnings():
        warnings.simplefilter("error", sd.SolveWarning)
        for measurement in (Measurement(operator, y), Measurement(operator, levels, 0.0023)):
            assert of_rounding(measurement, (-1.0, 1.0), 256) is measurement


@pytest.mark.parametrize("known", [ops.Mask((1, 28, 28), half(28)), ops.Downsample((1, 28, 28), 4), ops.as_operator(lambda x: x * half(28), (1, 28, 28))])
def test_what_keeps_what_it_sees_has_no_noise_of_rounding(shared_data: Path, known: Operator) -> None:
    given = Measurement(known, rounded(known.forward(2 * digits(shared_data, 1) - 1)))
    assert of_rounding(given, (-1.0, 1.0), 256) is given


def test_an_error_that_is_made_large_is_told_where_it_is_no_rounding_to_levels(shared_data: Path) -> None:
    radon = ops.Radon((1, 28, 28), 12)
    y = radon.forward(2 * digits(shared_data, 1) - 1)
    with pytest.warns(sd.SolveWarning, match=r"noise_std=0, and the images that have y to the last digit have values of .* Radon makes errors of y large"):
        assert of_rounding(Measurement(radon, (20 * y).round() / 20), (-1.0, 1.0), 256).noise_std == 0
    with pytest.warns(sd.SolveWarning, match="noise_std=1e-06, and the images that have y"):
        of_rounding(Measurement(radon, (20 * y).round() / 20, 1e-6), (-1.0, 1.0), 256)
    with warnings.catch_warnings():
        warnings.simplefilter("error", sd.SolveWarning)
        of_rounding(Measurement(radon, y), (-1.0, 1.0), 256)
    blur = BLURS["blur"]
    noisy = blur.forward(2 * digits(shared_data, 1) - 1)
    noisy += 0.002 * torch.randn(noisy.shape, generator=torch.Generator().manual_seed(1))
    with pytest.warns(sd.SolveWarning, match="Blur makes errors of y large"):
        of_rounding(Measurement(blur, noisy, 1e-4), (-1.0, 1.0), 256)
    with warnings.catch_warnings():
        warnings.simplefilter("error", sd.SolveWarning)
        of_rounding(Measurement(blur, noisy, 0.002), (-1.0, 1.0), 256)  # what was said explains it


@pytest.mark.parametrize("method", ["pigdm", "ddnm"])
def test_a_blurred_picture_of_levels_is_restored(shared_data: Path, method: str) -> None:
    """Its rounding alone, taken for nothing, leaves draws of 4 to 7 dB."""
    operator = BLURS["blur"]
    x = 2 * digits(shared_data, 1) - 1
    with pytest.warns(sd.SolveWarning, match="taken for noise") as told:
        r = gen.load("mnist").restore(rounded(operator.forward(x)), operator, 0.0, method, steps=12, seed=0)
    assert float((r.images[:, 0] - x).square().mean()) < 4 * 10**-1.7  # 17 dB
    assert [w.filename for w in told] == [__file__]
    assert r.noise_std == pytest.approx(ROUNDING)
