"""Operators: the adjoint is the adjoint, what is closed form agrees with the matrix written out, and a wrong operator is refused."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sdesolve_gen.conditioning import SVD, Measurement, Operator, conjugate_gradients, conjugate_residuals
from sdesolve_gen.conditioning import operators as ops

EVENT = (1, 6, 8)
KERNEL = torch.tensor([[0.0, 1, 2], [3, 5, 1], [0, 2, -1]]) / 7  # no symmetry that would hide a flip


def lines(event):
    return ops.cartesian_mask(event, acceleration=2, centre=0.2, seed=1)


OPERATORS = {  # name -> operator on an event (C, H, W) with even sides
    "mask": lambda event: ops.Mask(event, ops.random_mask(event, 0.6, seed=2)),
    "box": lambda event: ops.make("box", event, x0=1, y0=0, x1=3, y1=2),
    "gray": lambda event: ops.Gray(event, [0.2, 0.7, 0.4][: event[0]]),
    "blur": lambda event: ops.Blur(event, KERNEL),
    "gaussian_blur": lambda event: ops.Blur(event, ops.gaussian_kernel(0.8, size=3)),
    "reflect_blur": lambda event: ops.ReflectBlur(event, KERNEL),
    "downsample": lambda event: ops.Downsample(event, 2),
    "bicubic": lambda event: ops.Downsample(event, 2, kernel="bicubic"),
    "projections": lambda event: ops.RandomProjections(event, 7, seed=3),
    "matrix": lambda event: ops.Matrix(event, torch.randn(9, math.prod(event), generator=torch.Generator().manual_seed(0))),
    "tall": lambda event: ops.Matrix(event, torch.randn(2 * math.prod(event), math.prod(event), generator=torch.Generator().manual_seed(0))),
    "separable": lambda event: ops.Separable(event, torch.randn(9, event[1], generator=torch.Generator().manual_seed(1)), torch.eye(event[2])[1:4]),
    "radon": lambda event: ops.Radon((1, *event[1:]), angles=5, bins=9),
    "fan_beam": lambda event: ops.FanBeam((1, *event[1:]), angles=4, bins=7),
    "real_fourier": lambda event: ops.RealFourier((1, *event[1:]), lines(event)),
    "complex_fourier": lambda event: ops.ComplexFourier((2, *event[1:]), lines(event)),
    "composed": lambda event: ops.compose(ops.Downsample(event, 2), ops.Blur(event, KERNEL)),
    "adapted": lambda event: ops.as_operator(ops.Blur(event, KERNEL).forward, event),
}


def randn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def written_out(operator):
    """A as a matrix, (m, d) float64."""
    d = math.prod(operator.event)
    return operator.forward(torch.eye(d, dtype=torch.float64).reshape(d, *operator.event)).reshape(d, -1).T


@pytest.mark.parametrize("name", OPERATORS)
@settings(max_examples=4)
@given(channels=st.integers(1, 3), half_height=st.integers(2, 5), half_width=st.integers(2, 5), seed=st.integers(0, 99))
def test_adjoint_and_linear(name, channels, half_height, half_width, seed):
    operator = OPERATORS[name]((channels, 2 * half_height, 2 * half_width))
    x, y = randn(2, *operator.event, seed=seed, dtype=torch.float32), randn(2, *operator.measured, seed=seed + 1, dtype=torch.float32)
    image, back = operator.forward(x), operator.adjoint(y)
    assert image.shape == y.shape
    assert back.shape == x.shape
    assert image.dtype == back.dtype == torch.float32
    gap = (image * y).flatten(1).sum(1) - (x * back).flatten(1).sum(1)
    assert float((gap.abs() / (image.flatten(1).norm(dim=1) * y.flatten(1).norm(dim=1))).max()) < 1e-5
    torch.testing.assert_close(operator.forward(3 * x[:1] - x[1:]), 3 * image[:1] - image[1:], rtol=1e-4, atol=1e-4)
    ops.check_operator(operator)


@pytest.mark.parametrize("name", OPERATORS)
def test_the_adjoint_is_the_transpose(name):
    operator = OPERATORS[name](EVENT)
    m = math.prod(operator.measured)
    transposed = operator.adjoint(torch.eye(m, dtype=torch.float64).reshape(m, *operator.measured)).reshape(m, -1)
    torch.testing.assert_close(transposed, written_out(operator), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", OPERATORS)
def test_the_pseudo_inverse(name):
    """A A^+ A = A and A^+ A A^+ = A^+, as numpy has it."""
    operator = OPERATORS[name](EVENT)
    a = written_out(operator)
    y = randn(3, *operator.measured)
    expected = (torch.linalg.pinv(a, rtol=1e-4) @ y.flatten(1).T).T
    solved = operator.pinv(y).flatten(1)
    torch.testing.assert_close(solved, expected, rtol=1e-4, atol=1e-5)
    x = randn(3, *operator.event, seed=4)
    torch.testing.assert_close(operator.forward(operator.pinv(operator.forward(x))), operator.forward(x), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("shift", [0.3, torch.tensor([0.05, 1.0, 4.0])])
def test_gram_solve(name, shift):
    operator = OPERATORS[name](EVENT)
    a, y = written_out(operator), randn(3, *operator.measured)
    solved = operator.adjoint(operator.gram_solve(y, shift, 2.0)).flatten(1)
    shifts = shift if isinstance(shift, torch.Tensor) else torch.full((3,), shift)
    for row, solution, s in zip(y.flatten(1), solved, shifts.double(), strict=True):
        expected = a.T @ torch.linalg.solve(s * torch.eye(len(a), dtype=a.dtype) + 2 * a @ a.T, row)
        torch.testing.assert_close(solution, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("tau", [0.0, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1.0])
@pytest.mark.parametrize("name", OPERATORS)
def test_no_noise_is_too_small_for_float32(name, tau):
    """Of y = A x + tau n, and of a y far outside the range of A: what lies there is divided by tau^2 nowhere."""
    operator = OPERATORS[name](EVENT)
    a = written_out(operator)
    left, s, right = torch.linalg.svd(a, full_matrices=False)
    for spread in (tau, 1.0):
        y = operator.forward(randn(2, *operator.event, seed=4)) + spread * randn(2, *operator.measured, seed=5)
        weight = torch.where(s > (1e-12 if tau else 1e-4) * s[0], s / (tau**2 + s**2), 0.0)
        expected = y.flatten(1) @ left * weight @ right
        solved = operator.adjoint(operator.gram_solve(y.float(), tau**2, 1.0)).flatten(1).double()
        assert float((solved - expected).norm()) < (2e-5 if operator.svd() else 1e-3) * float(expected.norm())


class Written(Operator):
    """A matrix that nobody decomposes."""

    def __init__(self, matrix):
        self.matrix = torch.as_tensor(matrix, dtype=torch.float64)
        self.measured, self.event = (len(self.matrix),), self.matrix.shape[1:]

    def forward(self, x):
        return x @ self.matrix.T.to(x)

    def adjoint(self, y):
        return y @ self.matrix.to(y)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("matrix", [[[1.0, 0], [1, 0], [2, 0]], [[1.0, 1, 2], [1, 1, 2], [2, 2, 4]], [[1.0, 2], [3, 1], [0, 1]], [[0.0, 0, 1], [0, 0, 0], [0, 0, 0]]])
def test_the_pseudo_inverse_of_what_has_no_solution(matrix, dtype):
    """Rows apart, one of them zero, one in the range of A and one orthogonal to it; least squares, and least norm."""
    a = torch.tensor(matrix, dtype=torch.float64)
    left = torch.linalg.svd(a).U
    y = torch.stack([torch.tensor([1.0, 1.2, 2.1], dtype=torch.float64), torch.zeros(3), a.sum(1), left[:, 2]])
    solved, expected = Written(a).pinv(y.to(dtype)), y @ torch.linalg.pinv(a).T
    assert solved.dtype == dtype
    torch.testing.assert_close(solved.double(), expected, rtol=0, atol=3e-6 if dtype == torch.float32 else 1e-9)
    assert torch.equal(Written(a).pinv(y[:1].to(dtype)), solved[:1])


@pytest.mark.parametrize(
    ("operator", "rtol"),
    [
        (ops.Radon((1, 12, 12), 40), 1e-3),
        (ops.FanBeam((1, 12, 12), 30), 1e-4),
        (ops.ReflectBlur((1, 8, 8), ops.gaussian_kernel(0.7)), 1e-3),
    ],
    ids=["radon", "fan_beam", "reflect_blur"],
)
def test_the_pseudo_inverse_of_noise(operator, rtol):
    """In float32, of a y that no x explains, against a dense one."""
    y = operator.forward(randn(2, *operator.event)) + 0.05 * randn(2, *operator.measured, seed=1)
    expected = y.flatten(1) @ torch.linalg.pinv(written_out(operator)).T
    assert float((operator.pinv(y.float()).flatten(1) - expected).norm()) < rtol * float(expected.norm())


@pytest.mark.parametrize("unit", [1e-15, 1e-6, 1e6, 1e15])
def test_the_pseudo_inverse_in_any_unit(unit):
    """Of A, of y and of both, in float32, whose squares end at 1e38; a row of zeros stays one."""
    a, y = [[1.0, 2], [3, 1], [0, 1]], torch.tensor([[1.0, 1.2, 2.1], [0.0, 0.0, 0.0]])
    expected = Written(a).pinv(y)
    for of_a, of_y in ((unit, 1.0), (1.0, unit), (unit, unit)):
        scaled = Written(of_a * torch.tensor(a, dtype=torch.float64))
        torch.testing.assert_close(scaled.pinv(of_y * y) * of_a / of_y, expected, rtol=1e-5, atol=1e-6)
        solved = scaled.adjoint(scaled.gram_solve(of_y * y, 0.3 * of_a**2, 0.7)) * of_a / of_y
        torch.testing.assert_close(solved, Written(a).adjoint(Written(a).gram_solve(y, 0.3, 0.7)), rtol=1e-5, atol=1e-6)


def test_a_pseudo_inverse_is_differentiable():
    """And the slope is finite of rows that are zero, or found at once."""
    operator = Written([[1.0, 2], [3, 1], [0, 1]])
    y = torch.tensor([[1.0, 1.2, 2.1], [0.0, 0.0, 0.0], [3.0, 4.0, 1.0]], dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(operator.pinv(y).sum(), y)
    assert bool(slope.isfinite().all())
    torch.testing.assert_close(slope[0], torch.linalg.pinv(operator.matrix).sum(0))


def test_what_has_a_solution_is_found_in_as_many_steps_as_singular_values():
    operator, calls = Written([[1.0, 2, 0], [3, 1, 0], [0, 1, 1]]), []
    forward = operator.forward
    operator.forward = lambda x: calls.append(1) or forward(x)
    torch.testing.assert_close(operator.pinv(torch.tensor([[3.0, 4.0, 2.0]])), torch.ones(1, 3))
    assert len(calls) <= 5


@pytest.mark.parametrize(
    "operator",
    [
        ops.Matrix((48,), randn(9, 3) @ randn(3, 48, seed=1)),
        ops.Separable((1, 6, 8), randn(5, 2) @ randn(2, 6, seed=1), torch.eye(8)),
        ops.Blur((1, 6, 15), torch.ones(1, 5) / 5),
    ],
    ids=["matrix", "separable", "blur"],
)
def test_singular_values_of_zero_are_no_numbers(operator):
    """A rounding for a singular value, under little noise: what lies along it is outside the range of A."""
    a = written_out(operator)
    left, s, right = torch.linalg.svd(a, full_matrices=False)
    assert float(s[-1]) < 1e-12 * float(s[0])
    y = randn(2, *operator.measured)
    expected = y.flatten(1) @ left * torch.where(s > 1e-12 * s[0], s / (1e-10 + s**2), 0.0) @ right
    solved = operator.adjoint(operator.gram_solve(y.float(), 1e-10, 1.0)).flatten(1).double()
    assert float((solved - expected).norm()) < 2e-5 * float(expected.norm())


def test_conjugate_gradients_stand_still_in_the_null_space():
    matrix = torch.tensor([[1.0, 1, 2], [1, 1, 2], [2, 2, 4]])
    found = conjugate_gradients(lambda v: v @ matrix, torch.tensor([[1.0, 1.2, 2.1], [1.0, 1.0, 2.0], [0.0, 2.0, -1.0]]))
    torch.testing.assert_close(found[1], torch.tensor([1.0, 1.0, 2.0]) / 6)
    assert float(found.abs().max()) < 1  # not 1e9


def test_conjugate_residuals_solve_what_is_not_symmetric():
    """Each iteration leaves less than the one before, row by row, also where conjugate gradients end far off; in as many as there are dimensions nothing is left."""
    draws = torch.Generator().manual_seed(0)
    skew = torch.randn(8, 8, generator=draws, dtype=torch.float64)
    matrix = torch.diag(torch.logspace(-2, 0, 8, dtype=torch.float64)) + 0.1 * (skew - skew.T)
    b = torch.randn(3, 8, generator=draws, dtype=torch.float64)
    left = [float((b - conjugate_residuals(lambda v: v @ matrix.T, b, most=n) @ matrix.T).norm()) for n in range(9)]
    assert all(after < before for before, after in pairwise(left)) and left[8] < 1e-9 * left[0]
    assert float((b - conjugate_gradients(lambda v: v @ matrix.T, b, most=8) @ matrix.T).norm()) > left[4]
    alone = conjugate_residuals(lambda v: v @ matrix.T, b[1:2] * 1e-30, most=5)
    torch.testing.assert_close(alone * 1e30, conjugate_residuals(lambda v: v @ matrix.T, b, most=5)[1:2])


def test_conjugate_residuals_of_small_matrices_keep_their_squares():
    """In float32, where the square of 1e-25 is 0."""
    matrix, b = torch.diag(torch.tensor([1.0, 2.0, 3.0])), torch.ones(1, 3)
    found = conjugate_residuals(lambda v: v @ (1e-25 * matrix), b)
    torch.testing.assert_close(1e-25 * found, torch.tensor([[1.0, 1 / 2, 1 / 3]]))


def test_conjugate_residuals_stand_still_when_all_is_found():
    """In float32 and with many iterations to spare, one row in the range of a singular matrix and one outside it."""
    matrix = torch.tensor([[1.0, 1, 2], [1, 1, 2], [2, 2, 4]])
    found = conjugate_residuals(lambda v: v @ matrix, torch.tensor([[1.0, 1.0, 2.0], [1.0, 1.2, 2.1]]), rtol=1e-12, most=20)
    torch.testing.assert_close(found[0], torch.tensor([1.0, 1.0, 2.0]) / 6)
    assert float(found.abs().max()) < 1


@pytest.mark.parametrize("name", [name for name in OPERATORS if OPERATORS[name](EVENT).svd() is not None])
def test_the_svd_is_the_operator(name):
    operator = OPERATORS[name](EVENT)
    a, svd = written_out(operator), operator.svd()
    m, d = a.shape
    k = len(svd.values)
    u = svd.observe(torch.eye(m, dtype=torch.float64).reshape(m, *operator.measured))  # (m, k)
    v = svd.analyse(torch.eye(d, dtype=torch.float64).reshape(d, *operator.event))  # (d, k)
    eye = torch.eye(k, dtype=torch.float64)
    assert k == int(torch.linalg.matrix_rank(a, rtol=1e-4))
    assert bool((svd.values > 0).all())
    torch.testing.assert_close(u.T @ u, eye, rtol=0, atol=1e-6)
    torch.testing.assert_close(v.T @ v, eye, rtol=0, atol=1e-6)
    torch.testing.assert_close(svd.synthesise(eye).reshape(k, -1), v.T, rtol=0, atol=1e-6)
    torch.testing.assert_close(u * svd.values.double() @ v.T, a, rtol=0, atol=1e-6)


def test_closed_forms_are_there():
    closed = {name for name in OPERATORS if OPERATORS[name](EVENT).svd() is not None}
    assert set(OPERATORS) - closed == {"reflect_blur", "radon", "fan_beam", "composed", "adapted"}


# -- what each of them does ----------------------------------------------------------------------------------------------


def test_masks():
    assert int(ops.random_mask((3, 10, 10), missing=0.9, seed=0).sum()) == 10
    assert torch.equal(ops.random_mask(EVENT, seed=1), ops.random_mask(EVENT, seed=1))
    assert not torch.equal(ops.random_mask(EVENT, seed=1), ops.random_mask(EVENT, seed=2))
    mask = ops.box_mask((1, 4, 6), 1, 2, 3, 4)  # columns 1 and 2, rows 2 and 3
    assert (~mask).nonzero().tolist() == [[2, 1], [2, 2], [3, 1], [3, 2]]
    x = randn(2, 3, 4, 6)
    operator = ops.Mask((3, 4, 6), mask)
    assert torch.equal(operator.adjoint(operator.forward(x)), x * mask)


def test_gray_is_luminance():
    x = torch.zeros(1, 3, 2, 2)
    x[:, 1] = 1.0
    operator = ops.Gray((3, 2, 2))
    torch.testing.assert_close(operator.forward(x), torch.full((1, 1, 2, 2), 0.587))
    unit = operator.orthonormal()
    torch.testing.assert_close(unit.forward(unit.adjoint(x[:, :1] + 1)), x[:, :1] + 1)
    torch.testing.assert_close(unit.forward(x) * operator.length, operator.forward(x))


def test_blur_is_a_convolution():
    """The kernel appears about a single bright pixel, unflipped."""
    x = torch.zeros(1, 1, 7, 9)
    x[0, 0, 3, 4] = 1.0
    for operator in (ops.Blur((1, 7, 9), KERNEL), ops.ReflectBlur((1, 7, 9), KERNEL)):
        torch.testing.assert_close(operator.forward(x)[0, 0, 2:5, 3:6], KERNEL, rtol=0, atol=1e-6)
    flat = torch.ones(1, 1, 7, 9)
    for kernel in (ops.gaussian_kernel(0.9), ops.motion_kernel(4, 30)):
        torch.testing.assert_close(ops.Blur((1, 7, 9), kernel).forward(flat), flat)
        torch.testing.assert_close(ops.ReflectBlur((1, 7, 9), kernel).forward(flat), flat)


def test_motion_goes_up_to_the_right():
    kernel = ops.motion_kernel(6, 45)
    side = len(kernel)
    on_line = sum(float(kernel[side - 1 - i, i]) for i in range(side))
    assert on_line > 0.5 > 0.2 > float(kernel.diagonal().sum())


def test_downsampling_is_a_mean():
    x = randn(2, 3, 8, 12)
    torch.testing.assert_close(ops.Downsample((3, 8, 12), 4).forward(x), torch.nn.functional.avg_pool2d(x, 4))
    ramp = torch.arange(16.0).expand(1, 1, 16, 16).double()
    shrunk = ops.Downsample((1, 16, 16), 2, "bicubic").forward(ramp)[0, 0, 0]
    torch.testing.assert_close(shrunk[2:-2], torch.arange(16.0).double().reshape(-1, 2).mean(1)[2:-2], rtol=0, atol=1e-6)  # Keys's kernel keeps a straight line
    x = randn(1, 1, 8, 8)
    mirrored = torch.cat([x.flip(3), x, x.flip(3)], 3)
    mirrored = torch.cat([mirrored.flip(2), mirrored, mirrored.flip(2)], 2)
    beyond = ops.Downsample((1, 24, 24), 2, "bicubic").forward(mirrored)[..., 4:8, 4:8]
    torch.testing.assert_close(ops.Downsample((1, 8, 8), 2, "bicubic").forward(x), beyond)


def test_projections_have_orthonormal_rows_that_see_everything():
    a = written_out(ops.RandomProjections((1, 8, 8), 20, seed=0))
    torch.testing.assert_close(a @ a.T, torch.eye(20, dtype=torch.float64), rtol=0, atol=1e-9)
    assert float((a.abs() > 0.01).double().mean(1).min()) > 0.7  # nobody's row is a pixel
    assert not torch.equal(a, written_out(ops.RandomProjections((1, 8, 8), 20, seed=1)))


def disc(side, radius, centre=(0.0, 0.0)):
    """(1, 1, side, side): 1 within a radius about a centre (x, y) in longer sides, edges smoothed over 16 points a pixel."""
    fine = (torch.arange(4 * side, dtype=torch.float64) + 0.5) / (4 * side) - 0.5
    inside = ((fine[None, :] - centre[0]) ** 2 + (fine[:, None] - centre[1]) ** 2 < radius**2).double()
    return torch.nn.functional.avg_pool2d(inside[None, None], 4)


@pytest.mark.parametrize("angle", [0.0, 30.0, 90.0, 135.0])
def test_the_radon_transform_of_a_disc(angle):
    """2 sqrt(r^2 - (s - x cos - y sin)^2), of the known position, so that neither sign nor unit can be wrong."""
    side, radius, centre = 64, 0.2, (0.15, -0.1)
    operator = ops.Radon((1, side, side), angles=[angle], bins=65)
    s = (torch.arange(65, dtype=torch.float64) - 32) / side
    away = s - centre[0] * math.cos(math.radians(angle)) - centre[1] * math.sin(math.radians(angle))
    expected = 2 * (radius**2 - away**2).clamp(min=0).sqrt()
    got = operator.forward(disc(side, radius, centre))[0, 0]
    assert float((got - expected).abs().mean()) < 0.004
    assert float((got - expected).abs().max()) < 0.05  # at the edge, where the slope is infinite


def test_a_fan_is_rays_of_the_radon_transform():
    """A centred disc looks the same from everywhere: a ray at fan angle gamma passes the centre at D sin(gamma)."""
    side, radius, distance = 64, 0.3, 1.5
    operator = ops.FanBeam((1, side, side), angles=3, bins=41, distance=distance)
    gamma = torch.linspace(-1, 1, 41, dtype=torch.float64) * math.asin(math.sqrt(0.5) / distance)
    expected = 2 * (radius**2 - (distance * gamma.sin()) ** 2).clamp(min=0).sqrt()
    got = operator.forward(disc(side, radius))[0]
    assert float((got - expected).abs().mean()) < 0.006


def test_filtered_back_projection_inverts():
    place = torch.arange(32, dtype=torch.float64) - 15.5
    image = sum(h * torch.exp(-((place - x) ** 2 + (place[:, None] - y) ** 2) / 18) for h, x, y in ((1.0, 4, -3), (-0.5, -5, 1)))[None, None]
    radon = ops.Radon((1, 32, 32), angles=60)
    back = ops.filtered_back_projection(radon, radon.forward(image))
    assert float((back - image).abs().max()) < 0.04  # interpolation twice widens a bump of std 3 by so much


def test_the_fourier_mask_is_centred():
    mask = torch.zeros(6, 8)
    mask[3, 4] = 1  # the middle: the mean alone is measured
    for operator in (ops.RealFourier((1, 6, 8), mask), ops.ComplexFourier((2, 6, 8), mask)):
        x = randn(2, *operator.event)
        torch.testing.assert_close(operator.forward(x)[:, 0, 0], x[:, 0].sum((1, 2)) / math.sqrt(48))
    assert isinstance(ops.masked_fourier((1, 6, 8), mask), ops.RealFourier)
    assert isinstance(ops.masked_fourier((2, 6, 8), mask), ops.ComplexFourier)


@pytest.mark.parametrize("acceleration", [2, 4, 8])
def test_undersampling_masks_have_the_promised_share(acceleration):
    event = (1, 64, 64)
    mask = ops.cartesian_mask(event, acceleration, centre=0.08)
    assert int(mask[0].sum()) == 64 // acceleration
    assert bool((mask == mask[:1]).all())
    assert bool(mask[:, 30:34].all())
    points = ops.variable_density_mask(event, acceleration)
    assert int(points.sum()) == 64 * 64 // acceleration
    assert float(points[24:40, 24:40].double().mean()) > 1.5 * float(points.double().mean())


def test_composition_is_a_product():
    blur, down = ops.Blur(EVENT, KERNEL), ops.Downsample(EVENT, 2)
    x = randn(2, *EVENT)
    torch.testing.assert_close(ops.compose(down, blur).forward(x), down.forward(blur.forward(x)))
    assert ops.compose(blur) is blur


# -- other people's operators --------------------------------------------------------------------------------------------


class Physics:
    """What deepinv's look like: A without noise, A_adjoint, and noise when called."""

    def __init__(self, scale=1.0):
        self.blur, self.scale = ops.Blur(EVENT, KERNEL), scale

    def __call__(self, x):
        return self.A(x) + torch.randn_like(x)

    def A(self, x, **parameters):
        return self.blur.forward(x)

    def A_adjoint(self, y, **parameters):
        return self.scale * self.blur.adjoint(y)


class Forward:
    def A(self, x):
        return torch.nn.functional.avg_pool2d(x, 2)


def test_foreign_operators():
    physics = ops.as_operator(Physics(), EVENT)
    assert physics.measured == EVENT
    ops.check_operator(physics)
    for found in (ops.as_operator(Forward(), EVENT), ops.as_operator(Forward().A, EVENT)):
        y = randn(2, 1, 3, 4)
        torch.testing.assert_close(found.adjoint(y), ops.Downsample(EVENT, 2).adjoint(y))
    own = ops.Blur(EVENT, KERNEL)
    assert ops.as_operator(own, EVENT) is own
    with pytest.raises(TypeError, match=r"operator is a int; expected an Operator, a matrix, an object with A"):
        ops.as_operator(3, EVENT)
    with pytest.raises(ValueError, match=r"takes states of shape \(1, 6, 8\); expected \(1, 8, 8\)"):
        ops.as_operator(own, (1, 8, 8))


@pytest.mark.parametrize("name", ["Inpainting", "BlurFFT", "Downsampling"])
def test_deepinv_itself(name):
    """Their operators are ours: A without noise, its adjoint, and what is solved by conjugate gradients."""
    physics = pytest.importorskip("deepinv", exc_type=ImportError).physics
    event, mask = (1, 8, 8), ops.random_mask((1, 8, 8), 0.5)
    theirs = {
        "Inpainting": lambda: physics.Inpainting(event, mask=mask.float(), noise_model=physics.GaussianNoise(0.1)),
        "BlurFFT": lambda: physics.BlurFFT(event, filter=ops.gaussian_kernel(1.0).float()[None, None]),
        "Downsampling": lambda: physics.Downsampling(event, factor=2, filter="gaussian"),
    }[name]()
    operator = ops.as_operator(theirs, event)
    ops.check_operator(operator)
    x = randn(2, *event, dtype=torch.float32)
    y = operator.forward(x)
    torch.testing.assert_close(y, theirs.A(x))
    assert torch.equal(y, operator.forward(x))  # no noise
    if name == "Inpainting":
        torch.testing.assert_close(operator.pinv(y), x * mask, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(operator.forward(operator.pinv(y)), y, rtol=1e-3, atol=1e-3)
    solved = operator.gram_solve(y, 0.01, 1.0)
    torch.testing.assert_close(operator.adjoint(0.01 * solved + operator.forward(operator.adjoint(solved))), operator.adjoint(y), rtol=1e-4, atol=1e-4)


def test_an_adjoint_by_differentiation_differentiates():
    adjoint = ops.adjoint_of(ops.Blur(EVENT, KERNEL).forward, EVENT)
    y = randn(1, *EVENT).requires_grad_()
    with torch.no_grad():
        assert adjoint(y.detach()).shape == (1, *EVENT)
    (slope,) = torch.autograd.grad(adjoint(y).square().sum(), y)
    torch.testing.assert_close(slope, 2 * ops.Blur(EVENT, KERNEL).forward(adjoint(y.detach())), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["radon", "reflect_blur", "mask"])
def test_operators_are_differentiable(name):
    operator = OPERATORS[name](EVENT)
    x = randn(2, *operator.event).requires_grad_()
    y = randn(2, *operator.measured)
    (slope,) = torch.autograd.grad((operator.forward(x) * y).sum(), x)
    torch.testing.assert_close(slope, operator.adjoint(y), rtol=1e-6, atol=1e-9)
    _, tangent = torch.func.jvp(operator.forward, (x.detach(),), (x.detach(),))
    torch.testing.assert_close(tangent, operator.forward(x.detach()))
    _, pull = torch.func.vjp(operator.forward, x.detach())
    torch.testing.assert_close(pull(y)[0], operator.adjoint(y), rtol=1e-6, atol=1e-9)


# -- what is refused -----------------------------------------------------------------------------------------------------


class Wrong(Operator):
    event = measured = (1, 4, 4)

    def __init__(self, forward=lambda x: x, adjoint=lambda y: y):
        self._forward, self._adjoint = forward, adjoint

    def forward(self, x):
        return self._forward(x)

    def adjoint(self, y):
        return self._adjoint(y)


def zeroed(x):
    x[..., 2:] = 0
    return x


@pytest.mark.parametrize(
    ("operator", "message"),
    [
        (ops.as_operator(Physics(scale=1.01), EVENT), r"Adapted\.adjoint is not the adjoint of Adapted\.forward: \|A x\|\^2 = .* expected equal ones"),
        (Wrong(adjoint=lambda y: y.flip(-1)), "is not the adjoint"),
        (Wrong(forward=lambda x: x * (torch.arange(4) < 2), adjoint=lambda y: y * torch.tensor([1.0, 1.0, 0.0, 5.0])), "is not the adjoint"),
        (Wrong(forward=lambda x: x + 1), "is not linear"),
        (Wrong(forward=lambda x: x.abs()), "is not linear"),
        (Wrong(forward=lambda x: x - x.mean(0)), "when others stand beside it"),
        (Wrong(forward=lambda x: x[..., :2]), r"Wrong\.forward returned \(3, 1, 4, 2\) torch\.float32 on cpu; expected \(3, 1, 4, 4\)"),
        (Wrong(adjoint=lambda y: y.double()), r"Wrong\.adjoint returned .*float64"),
        (Wrong(forward=lambda x: x * math.nan), "not finite"),
        (Wrong(forward=lambda x: 0 * x), "measures nothing"),
        (Wrong(forward=lambda x: None), "returned a NoneType"),
        (Wrong(forward=lambda x: x.mul_(2), adjoint=lambda y: 2 * y), r"Wrong\.forward changed its x in place, .*: begin with x = x\.clone\(\)"),
        (Wrong(forward=lambda x: zeroed(x), adjoint=lambda y: zeroed(y.clone())), r"Wrong\.forward changed its x in place"),
        (Wrong(forward=lambda x: zeroed(x.clone()), adjoint=lambda y: zeroed(y)), r"Wrong\.adjoint changed its y in place, .*: begin with y = y\.clone\(\)"),
        (Wrong(forward=lambda x: 2 * x, adjoint=lambda y: y.mul_(2)), r"Wrong\.adjoint changed its y in place"),
        (Wrong(forward=lambda x: x.abs()), r"or a subclass of Operator with linear = False, whose forward alone method='dps' needs"),
        (ops.as_operator(lambda x: x.flatten(1).sum(1), EVENT), r"measures one number of each row, measured = \(\); expected .*measured = \(1,\): return y\[:, None\]"),
        (ops.as_operator(lambda x: torch.from_numpy(2 * x.numpy()), EVENT), r"cannot be differentiated, by which its adjoint is found; .*numpy"),
    ],
    ids=range(18),
)
def test_a_wrong_operator_is_refused(operator, message):
    with pytest.raises(ValueError, match=message):
        ops.check_operator(operator)


def back_projected(operator):
    return ops.filtered_back_projection(operator, torch.ones(1, *operator.measured))


class Twice(Wrong):
    """A = 2, with closed forms of a size."""

    def __init__(self, size=2.0):
        super().__init__(lambda x: 2 * x, lambda y: 2 * y)
        self.size = size


class TwicePinv(Twice):
    def pinv(self, y):
        return y / 2 if self.size == 2 else 0 * y


class TwiceGram(Twice):
    def gram_solve(self, y, shift, scale):
        return y / ((self.size - 1) * shift + 4 * scale)  # without shift it is right


class TwiceSVD(Twice):
    def svd(self):
        return SVD(torch.full((16,), self.size), lambda x: x.flatten(1), lambda z: z.reshape(-1, 1, 4, 4), lambda y: y.flatten(1))


class TwiceLong(Twice):
    """V and S are of another length, which their products hide."""

    def svd(self):
        return SVD(torch.full((16,), 2 / self.size), lambda x: self.size * x.flatten(1), lambda z: self.size * z.reshape(-1, 1, 4, 4), lambda y: y.flatten(1))


class First(Wrong):
    """One pixel is seen, and the pseudo-inverse says something of the others."""

    measured = (1,)

    def __init__(self, rest):
        self.rest = rest
        super().__init__(lambda x: x.flatten(1)[:, :1], lambda y: torch.cat([y, y.new_zeros(len(y), 15)], 1).reshape(-1, 1, 4, 4))

    def pinv(self, y):
        return torch.cat([y, self.rest * y.expand(-1, 15)], 1).reshape(-1, 1, 4, 4)


@pytest.mark.parametrize(
    ("kind", "right", "hook"), [(TwicePinv, 2.0, "pinv"), (TwiceGram, 2.0, "gram_solve"), (TwiceSVD, 2.0, "svd"), (TwiceLong, 1.0, "svd"), (First, 0.0, "pinv")]
)
def test_closed_forms_that_are_not_the_operators_are_refused(kind, right, hook):
    ops.check_operator(kind(right))
    with pytest.raises(ValueError, match=rf"{kind.__name__}\.{hook}.* does not fit forward and adjoint: .* differ by"):
        ops.check_operator(kind(right + 0.3))


class HalfSVD(First):
    """All of 16 directions, of which one is measured."""

    def __init__(self, found):
        super().__init__(0.0)
        self.found = found

    def svd(self):
        return self.found


def test_an_svd_of_another_kind_or_with_zeros_is_refused():
    def half(values):
        return SVD(values, lambda x: x.flatten(1)[:, : len(values)], lambda z: (z @ torch.eye(len(values), 16)).reshape(-1, 1, 4, 4), lambda y: y @ torch.eye(1, len(values)))

    Measurement(HalfSVD(half(torch.ones(1))), torch.ones(1, 1))
    decomposed = torch.linalg.svd(torch.eye(1, 16), full_matrices=False)
    for found, message in (
        (decomposed, r"HalfSVD\.svd returned a .*svd; expected None or .*SVD\(values, analyse"),
        (tuple(half(torch.ones(1))), r"HalfSVD\.svd returned a tuple; expected None or"),
        (half(torch.ones(1))._replace(values=[1.0]), r"HalfSVD\.svd returned values that are list"),
        (half(torch.ones(1))._replace(values=torch.ones(1, 1)), r"HalfSVD\.svd returned values that are \(1, 1\)"),
        (half(torch.tensor([1.0, 0.0])), r"HalfSVD\.svd has 1 of 2 singular values that are not above 0"),
        (half(torch.tensor([1.0, 1e-9])), r"HalfSVD\.svd has 1 of 2"),
        (half(torch.tensor([1.0, math.nan])), r"HalfSVD\.svd has 2 of 2"),
        (half(torch.ones(0)), r"HalfSVD\.svd has 0 of 0 singular values"),
    ):
        with pytest.raises(ValueError, match=message):
            Measurement(HalfSVD(found), torch.ones(1, 1))


def test_a_measurement_tries_its_operator():
    """Without images, too: rows apart, something seen, real numbers; and what fails is said to."""
    y = torch.ones(1, 1, 4, 4)

    def raising(y):
        raise RuntimeError("no way back")

    for operator, message in (
        (Wrong(lambda x: x - x.mean(0), lambda y: y - y.mean(0)), "when others stand beside it"),
        (Wrong(lambda x: 0 * x, lambda y: 0 * y), "measures nothing"),
        (Wrong(lambda x: x.to(torch.complex64), lambda y: y.to(torch.complex64)), r"Wrong\.forward returned \(3, 1, 4, 4\) torch\.complex64"),
        (Wrong(lambda x: x, raising), r"Wrong\.adjoint failed on \(3, 1, 4, 4\) torch\.float32 \(no way back\); .*: as_operator\(operator\.forward"),
        (TwiceSVD(1.0), r"TwiceSVD\.svd does not fit"),
    ):
        with pytest.raises(ValueError, match=message):
            Measurement(operator, y)
    bent = Wrong(torch.log)  # of random states not a number
    bent.linear = False
    Measurement(bent, y)


def test_a_forward_that_cannot_be_differentiated_is_told_from_a_wrong_adjoint():
    with pytest.raises(ValueError, match=r"is not the adjoint of Adapted\.forward.*It was found by differentiation, which is blind to rounding"):
        ops.check_operator(ops.as_operator(lambda x: (x * 1e6).round() / 1e6, EVENT))
    with pytest.raises(ValueError, match=r"Without one of its own it is found by differentiation: .*as_operator\(obj\.A, event\)"):
        ops.check_operator(ops.as_operator(Physics(scale=1.01), EVENT))


def test_an_operator_that_writes_is_refused_without_images():
    y = torch.ones(1, 1, 4, 4)
    with pytest.raises(ValueError, match=r"Wrong\.forward changed its x in place"):
        Measurement(Wrong(forward=zeroed, adjoint=lambda y: zeroed(y.clone())), y)
    with pytest.raises(ValueError, match=r"measured = \(1,\)"):
        Measurement(ops.as_operator(lambda x: x.flatten(1).sum(1), EVENT), torch.ones(1))


@pytest.mark.parametrize("angles", [7, 8, [0.0, 60.0, 120.0], [0.0, 90.0, 180.0, 270.0], [100.0, 40.0, 160.0], 1])
def test_even_angles_are_back_projected(angles):
    radon = ops.Radon(EVENT, angles)
    assert ops.filtered_back_projection(radon, torch.ones(2, *radon.measured)).shape == (2, *EVENT)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: back_projected(ops.FanBeam(EVENT, 4)), "filtered back-projection of a FanBeam; expected a Radon"),
        (lambda: back_projected(ops.Radon(EVENT, [0.0, 30.0, 120.0])), "3 angles with gaps of 30 to 90 degrees; expected an even spread over half a turn, as in angles=3"),
        (lambda: back_projected(ops.Radon(EVENT, np.linspace(0, 180, 5).tolist())), "5 angles with gaps of 45 to 45 degrees; expected an even spread"),
        (lambda: ops.filtered_back_projection(ops.Radon(EVENT, 4), torch.ones(2, 4, 5)), r"y has shape \(2, 4, 5\); expected \(B, 4, 11\)"),
        (lambda: ops.RealFourier((2, 6, 8), torch.ones(6, 8)), r"ComplexFourier\(event=\(2, H, W\), mask=mask\)"),
        (lambda: ops.Mask(EVENT, torch.ones(6, 7)), r"mask has shape \(6, 7\); expected \(1, 6, 8\), or one that broadcasts"),
        (lambda: ops.Mask(EVENT, torch.full((6, 8), 255)), "mask holds 255; expected 0 and 1 alone"),
        (lambda: ops.Mask(EVENT, torch.rand(6, 8)), r"\.\.\.; expected 0 and 1 alone"),
        (lambda: ops.Mask(EVENT, np.full((6, 8), np.nan)), "expected 0 and 1 alone"),
        (lambda: ops.Mask(EVENT, torch.zeros(6, 8)), "mask is 0 everywhere"),
        (lambda: ops.random_mask(EVENT, 1.0), "missing=1.0; expected a share"),
        (lambda: ops.box_mask(EVENT, 3, 0, 3, 2), "the box 3,0,3,2 is empty"),
        (lambda: ops.box_mask(EVENT, 0, 0, 9, 2), "x1=9; expected an integer, 0 <= x1 <= 8"),
        (lambda: ops.Gray(EVENT), r"Gray is the luminance of 3 channels, and images .* have 1; expected images of 3, or weights=..., one for each"),
        (lambda: ops.Gray(EVENT, (1.0, 2.0)), r"for 1 channels; expected one for each"),
        (lambda: ops.Gray((3, 4, 4), [0, 0, 0]), "not all zero"),
        (lambda: ops.Blur(EVENT, torch.ones(2, 3)), r"kernel has shape \(2, 3\); expected two odd sides"),
        (lambda: ops.Blur(EVENT, torch.ones(7, 3)), r"of at most \(6, 8\)"),
        (lambda: ops.gaussian_kernel(0.0), "std=0.0; expected a finite number > 0"),
        (lambda: ops.Downsample(EVENT, 4), "factor=4 does not divide the 6 x 8 pixels; expected one that does, as in factor=2"),
        (lambda: ops.Downsample(EVENT, 2, "sinc"), "kernel 'sinc' is not known"),
        (lambda: ops.RandomProjections(EVENT, 49), "count=49; expected an integer, 1 <= count <= 48"),
        (lambda: ops.Matrix(EVENT, torch.ones(3, 5)), r"matrix has shape \(3, 5\); expected \(3, 48\)"),
        (lambda: ops.Radon((3, 8, 8)), "expected one channel"),
        (lambda: ops.FanBeam(EVENT, distance=0.5), "distance=0.5; expected more than 0.75"),
        (lambda: ops.RealFourier((3, 6, 8), torch.ones(6, 8)), "expected one channel"),
        (lambda: ops.cartesian_mask(EVENT, 0.5), "acceleration=0.5"),
        (lambda: ops.compose(ops.Blur((1, 8, 8), KERNEL), ops.Downsample((1, 8, 8), 2)), r"Blur takes \(1, 8, 8\) and Downsample gives \(1, 4, 4\)"),
        (lambda: ops.compose(), "got no operator"),
        (lambda: ops.make("downsampel", EVENT), "Did you mean 'downsample'"),
        (lambda: ops.make("downsample", EVENT, factr=2), "Did you mean 'factor'"),
        (lambda: ops.make("box", EVENT, x0=1), "the operator box lacks y0, x1, y1"),
        (lambda: ops.Mask((1, 6), torch.ones(1, 6)) and ops.random_mask((1, 6)), r"expected the shape \(C, H, W\)"),
    ],
    ids=range(33),
)  # fmt: skip
def test_bad_options_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize("name", set(ops.OPERATORS) - {"box"})
def test_every_name_makes_an_operator(name):
    operator = ops.make(name, (3, 16, 16) if name == "gray" else (1, 16, 16))
    ops.check_operator(operator)
