"""Images from measurements: the draws are the posterior's, what was measured is kept, and bad input is refused before any network call."""

import math
import warnings

import numpy as np
import pytest
import torch
from gen_fixtures import NETWORK, tiny_card, tiny_model
from torch import nn

import sdesolve as sd
import sdesolve_gen as gen
from sdesolve.methods import make_method
from sdesolve_gen.conditioning import CONDITIONINGS, Conditioning, Measurement, Operator
from sdesolve_gen.conditioning import operators as ops
from sdesolve_gen.conditioning.operators import as_operator
from sdesolve_gen.measuring import well_conditioned
from sdesolve_gen.networks import UNet

SHAPE = (1, 4, 4)
STD = 0.5


class GaussianScore(nn.Module):
    """The score of images with independent pixels N(0, STD^2); counts its calls."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.calls = 0

    def forward(self, x, t):
        self.calls += 1
        process = sd.VPSDE()
        variance = (process.alpha(t) * STD) ** 2 + process.sigma(t) ** 2
        return -x / variance.to(x).reshape(-1, 1, 1, 1) + self.weight


def gaussian_model(**changes):
    return gen.Model(GaussianScore(), tiny_card(**{"predicts": "score", "time": "continuous", "shape": list(SHAPE), "data_range": [-4.0, 4.0], **changes}))


def colour_model():
    torch.manual_seed(0)
    network = UNet(channels=3, **NETWORK)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return gen.Model(network, tiny_card(shape=[3, 8, 8], network_options={"channels": 3, **NETWORK}))


def pictures(n=2, shape=(1, 8, 8)):
    return torch.rand(n, *shape, generator=torch.Generator().manual_seed(0)) * 1.8 - 0.9


def half(side=8):
    mask = torch.ones(side, side)
    mask[:, side // 2 :] = 0
    return mask


def test_draws_are_the_posterior():
    """x ~ N(0, c^2) and y = A x + s n, pixel by pixel in closed form; pigdm with the data's own std is exact here."""
    m, operator, noise = gaussian_model(), ops.Matrix(SHAPE, torch.randn(5, 16, generator=torch.Generator().manual_seed(1))), 0.3
    y = torch.randn(1, 5, generator=torch.Generator().manual_seed(2))
    r = m.restore(y, operator, noise, "pigdm", draws=2000, seed=0, steps=60, prior_std=STD)
    a = operator._matrix
    gain = STD**2 * a.T @ torch.linalg.inv(STD**2 * a @ a.T + noise**2 * torch.eye(5))
    mean, std = (gain @ y[0].double()), (STD**2 * (torch.eye(16) - gain @ a)).diagonal().sqrt()
    assert r.images.shape == (1, 2000, *SHAPE)
    assert float((r.mean.flatten() - mean).abs().max()) < 0.05  # 4.5 standard errors
    assert float((r.std.flatten() / std - 1).abs().max()) < 0.06
    assert r.nfe.tolist() == [[61] * 2000]
    assert (r.status == "ok").all()


@pytest.mark.parametrize("method", sorted(CONDITIONINGS))
def test_known_pixels_are_kept(method):
    m, x = tiny_model(), pictures()
    r = m.inpaint(x, half(), method=method, draws=2, steps=12, seed=0)
    assert r.images.shape == (2, 2, 1, 8, 8)
    assert r.method == method
    known = half().bool()
    assert float((r.images - x[:, None])[..., known].abs().max()) < 1e-3
    assert float(r.images[:, 0][..., ~known].sub(r.images[:, 1][..., ~known]).abs().max()) > 0.05  # the draws differ where nothing is known


def test_the_residual_is_what_the_method_gave():
    """Not what it was corrected to."""
    m = gaussian_model()
    CONDITIONINGS["none"] = lambda score, measurement: Conditioning(score)
    try:
        r = m.inpaint(torch.full((1, *SHAPE), 2.0), half(4), method="none", seed=0, steps=10, sampler="ddim")
    finally:
        del CONDITIONINGS["none"]
    assert float(r.residual) > 1
    assert float((r.images[0, 0][..., :2] - 2).abs().max()) < 1e-3


def test_a_constraint_reaches_the_solver():
    m = gaussian_model()
    CONDITIONINGS["lifted"] = lambda score, measurement, height=1.0: Conditioning(score, lambda x, t, normals: torch.full_like(x, height))
    try:
        r = m.restore(torch.zeros(1, *SHAPE), ops.Blur(SHAPE, ops.gaussian_kernel(0.5, 3)), 0.1, "lifted", height=0.5, steps=4, seed=0)
    finally:
        del CONDITIONINGS["lifted"]
    torch.testing.assert_close(r.images, torch.full_like(r.images, 0.5))


def test_integers_are_scaled():
    m = tiny_model()
    levels = torch.randint(0, 256, (1, 1, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    r = m.inpaint(levels, half(), method="ddnm", steps=4, seed=0)
    expected = -1 + (levels.float() + 0.5) / 128
    assert float((r.images[:, 0] - expected)[..., half().bool()].abs().max()) < 1e-3
    from sdesolve_gen.images import to_uint8

    assert torch.equal(to_uint8(r.images[:, 0], m.data_range)[..., half().bool()], levels[..., half().bool()])


def test_a_draw_is_its_name():
    """Draw d of image i does not depend on how many draws, images or batches there are."""
    m, x = gaussian_model(), pictures(3, SHAPE)
    y = ops.Blur(SHAPE, ops.gaussian_kernel(0.5, 3)).forward(x)
    operator = ops.Blur(SHAPE, ops.gaussian_kernel(0.5, 3))
    whole = m.restore(y, operator, 0.1, draws=3, seed=5, steps=8)
    parts = m.restore(y, operator, 0.1, draws=3, seed=5, steps=8, batch_size=2)
    torch.testing.assert_close(parts.images, whole.images, rtol=0, atol=1e-5)
    alone = m.restore(y[2:], operator, 0.1, draws=2, seed=5, steps=8, sample_ids=[2])
    torch.testing.assert_close(alone.images, whole.images[2:, :2], rtol=0, atol=1e-5)
    assert float((whole.images[:, 0] - whole.images[:, 1]).abs().amin((1, 2, 3)).max()) > 0
    assert float((m.restore(y, operator, 0.1, seed=6, steps=8).images[:, 0] - whole.images[:, 0]).abs().max()) > 0.1


def test_warnings_of_masks_for_each_image_count_all_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once for all, as for one mask; and the draws that did not arrive are named by their images."""
    m, x = gaussian_model(), pictures(3, SHAPE)
    masks = torch.ones(3, 1, *SHAPE[1:])
    masks[1, :, :2] = 0

    def conditioned(score: sd.Score, measurement: Measurement) -> Conditioning:
        return Conditioning(score, lambda at, t, normals: at * torch.nan if measurement.operator.measured == (8,) else torch.full_like(at, 4.0))

    monkeypatch.setitem(CONDITIONINGS, "off", conditioned)
    with pytest.warns(sd.SolveWarning) as told:
        m.inpaint(x, masks, method="off", sampler="ddim", steps=2, draws=2, seed=0)
    said = [str(warning.message) for warning in told]
    assert len(said) == 2 and all(warning.filename == __file__ for warning in told)
    assert said[0] == "2 of 6 draws did not arrive (image 1, draw 0: non_finite, image 1, draw 1: non_finite)."
    assert said[1].startswith("4 of 6 draws are far from the measurement: y - A x is up to 4.")
    with pytest.warns(sd.SolveWarning, match="6 of 6 draws hang on fewer than 2 effective particles of 2"):
        m.inpaint(x, masks, method="smc", particles=2, steps=3, draws=2, seed=0)


def test_a_mask_for_each_image():
    m, x = tiny_model(), pictures(2)
    masks = torch.stack([half(), half().T])[:, None]
    r = m.inpaint(x, masks, method="ddnm", steps=4, seed=0)
    for i in range(2):
        alone = m.inpaint(x[i : i + 1], masks[i, 0], method="ddnm", steps=4, seed=0, sample_ids=[i])
        torch.testing.assert_close(r.images[i], alone.images[0], rtol=0, atol=1e-5)


def test_luminance_is_kept():
    m = colour_model()
    gray = pictures(2, (1, 8, 8))
    r = m.colorize(gray, method="pigdm", draws=2, steps=6, seed=0)
    assert r.images.shape == (2, 2, 3, 8, 8)
    assert r.images.abs().max() <= 1
    luma = ops.Gray(m.shape).forward(r.images.flatten(0, 1))
    assert float((luma.reshape(2, 2, 1, 8, 8) - gray[:, None]).abs().max()) < 1e-3
    same = m.colorize(gray.expand(-1, 3, -1, -1), method="pigdm", draws=2, steps=6, seed=0)
    assert torch.equal(same.images, r.images)
    weights = (3**-0.5,) * 3
    other = m.colorize(gray, weights=weights, method="pigdm", steps=6, seed=0).images[:, 0]
    assert float((other.mean(1, keepdim=True) - gray).abs().max()) < 1e-3


WEIGHTS = [ops.LUMA, (3**-0.5,) * 3, (1.0, 1.0, 1.0), (-0.3, 0.6, 0.7)]


@pytest.mark.parametrize("weights", WEIGHTS, ids=["luma", "published", "ones", "negative"])
def test_colours_are_the_posterior_whatever_the_weights_sum_to(weights):
    """x ~ N(0, c^2 I) of three channels and y = u x + s n with u = w/sum w:  mean u c^2/(c^2 |u|^2 + s^2) y, and the covariance's own closed form."""
    m, noise, y = gaussian_model(shape=[3, 4, 4]), 0.3, 0.6 * torch.randn(1, 1, 4, 4, generator=torch.Generator().manual_seed(3))
    u = torch.tensor(weights) / sum(weights)
    gain = STD**2 * u / (STD**2 * u.square().sum() + noise**2)
    r = m.colorize(y, weights=weights, noise_std=noise, method="pigdm", prior_std=STD, draws=1000, seed=0, steps=60)
    std = (STD**2 - STD**2 * gain * u).sqrt()
    assert float((r.mean[0] - gain[:, None, None] * y[0]).abs().max()) < 0.07  # 4.5 standard errors
    assert float((r.std[0].square().mean((1, 2)).sqrt() / std - 1).abs().max()) < 0.03
    luminance = torch.einsum("c,dchw->dhw", u, r.images[0]).std(0)
    assert abs(float(luminance.square().mean().sqrt()) / float((STD**2 * u @ (u - gain * (u @ u))).sqrt()) - 1) < 0.03


@pytest.mark.parametrize("how", [{}, {"noise_std": 0.2}, {"noise": "poisson", "peak": 40.0}], ids=["exact", "gaussian", "poisson"])
def test_weights_have_no_unit(how):
    m, gray = gaussian_model(shape=[3, 4, 4]), pictures(1, SHAPE)
    one, five = (m.colorize(gray, weights=[w * unit for w in (0.2, 0.5, 0.3)], method="pigdm", steps=20, seed=0, **how) for unit in (1, 5))
    torch.testing.assert_close(one.images, five.images, rtol=0, atol=1e-4)
    torch.testing.assert_close(one.residual, five.residual, rtol=1e-3, atol=1e-4)
    with pytest.raises(ValueError, match="sum to 0, and no luminance has them"):
        m.colorize(gray, weights=(0.5, -0.7, 0.2), steps=20, **how)


def test_foreign_operators_restore():
    m, x = gaussian_model(), pictures(1, SHAPE)

    def shrink(x):
        return torch.nn.functional.avg_pool2d(x, 2)

    r = m.restore(shrink(x), shrink, 0.1, seed=0, steps=6)
    own = m.restore(shrink(x), ops.Downsample(SHAPE, 2), 0.1, seed=0, steps=6)
    torch.testing.assert_close(r.images, own.images, rtol=0, atol=1e-4)


def test_auto():
    m = gaussian_model()
    assert m.restore(torch.zeros(1, 1, 2, 2), DOWN, 0.1, steps=3, seed=0).method == "pigdm"
    colours, gray = colour_model(), pictures(1, (1, 8, 8))
    chosen, named = colours.colorize(gray, steps=3, seed=0), colours.colorize(gray, method="mmps", iterations=1, steps=3, seed=0)
    assert chosen.method == "mmps" and torch.equal(chosen.images, named.images)
    assert not torch.equal(chosen.images, colours.colorize(gray, iterations=5, steps=3, seed=0).images)

    class Clipped(ops.Tight):
        event = measured = SHAPE
        linear = False

        def forward(self, x):
            return x.clamp(-1, 1)

    assert m.restore(torch.zeros(1, *SHAPE), Clipped(), 0.1, steps=3, seed=0).method == "dps"


def test_a_failed_draw_is_named():
    class Broken(GaussianScore):
        def forward(self, x, t):
            out = super().forward(x, t).clone()
            if self.calls > 3:
                out[-1] = math.nan
            return out

    m = gen.Model(Broken(), tiny_card(predicts="score", time="continuous", shape=list(SHAPE)))
    with pytest.warns(sd.SolveWarning, match=r"1 of 4 draws did not arrive \(image 1, draw 1: non_finite\)"):
        r = m.restore(torch.zeros(2, 1, 2, 2), ops.Downsample(SHAPE, 2), 0.1, draws=2, seed=0, steps=6)
    assert r.status.tolist() == [["ok", "ok"], ["ok", "non_finite"]]
    assert bool(r.images[0].isfinite().all())


def test_a_single_draw_has_no_spread():
    r = gaussian_model().restore(torch.zeros(1, 1, 2, 2), ops.Downsample(SHAPE, 2), 0.1, seed=0, steps=4)
    assert bool(r.std.isnan().all())
    assert torch.equal(r.mean, r.images[:, 0])


DOWN = ops.Downsample(SHAPE, 2)


class Unfinished(Operator):
    def forward(self, x):
        return x


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m.inpaint(torch.zeros(1, *SHAPE), torch.ones(4, 3)), r"mask has shape \(4, 3\); expected \(1, 4, 4\)"),
        (lambda m: m.inpaint(torch.zeros(1, *SHAPE), torch.full((4, 4), 255)), "mask holds 255; expected 0 and 1 alone"),
        (lambda m: m.inpaint(torch.zeros(2, *SHAPE), torch.ones(3, 1, 4, 4)), "expected one mask for all of them, or 2"),
        (lambda m: m.inpaint(torch.zeros(*SHAPE), torch.ones(4, 4)), r"images: got \(1, 4, 4\); expected a tensor \(n, 1, 4, 4\): images\[None\]"),
        (lambda m: m.inpaint(torch.full((1, *SHAPE), 200.0), torch.ones(4, 4)), r"images have values from 200 to 200, and the model's data lie in \[-4, 4\]"),
        (lambda m: m.inpaint(torch.full((1, *SHAPE), 300), torch.ones(4, 4)), "expected integers from 0 to 255"),
        (lambda m: m.inpaint(torch.full((1, *SHAPE), math.nan), torch.ones(4, 4)), "images are not finite where they are known"),
        (lambda m: m.colorize(torch.zeros(1, *SHAPE)), "expected one of 3 channels"),
        (lambda m: m.restore(torch.full((1, 1, 2, 2), 128.0), DOWN, 0.1), r"y is in other units than the data: it has values from 128 to 128, and is 2\d\d"),
        (lambda m: m.restore(torch.zeros(1, 1, 2, 2), DOWN, -0.1), r"noise_std=-0.1; expected a finite number >= 0"),
        (lambda m: m.restore(torch.zeros(1, 1, 2, 2), DOWN, math.nan), "noise_std=nan"),
        (lambda m: m.restore(torch.zeros(1, 1, 2, 3), DOWN, 0.1), r"y has shape \(1, 1, 2, 3\); expected \(B, 1, 2, 2\)"),
        (lambda m: m.restore(torch.zeros(1, 2, 2), ops.Downsample((1, 8, 8), 2), 0.1), r"takes states of shape \(1, 8, 8\); expected \(1, 4, 4\)"),
        (lambda m: m.restore(torch.zeros(1, 1, 2, 2), DOWN, 0.1, "dsp"), "Did you mean 'dps'"),
        (lambda m: m.restore(torch.zeros(1, 1, 2, 2), DOWN, 0.1, draws=0), "draws=0; expected an integer >= 1"),
        (lambda m: m.restore(torch.zeros(1, 1, 2, 2), DOWN, 0.1, seed=-1), "seed=-1"),
        (lambda m: m.restore(torch.zeros(1, 1, 2, 2), DOWN, 0.1, prior_sd=1.0), "prior_sd"),
        (lambda m: m.restore(torch.zeros(1, 1, 2, 2), DOWN, 0.1, save="all"), "save=... is not for"),
        (lambda m: m.restore(torch.zeros(1, 1, 2, 2), DOWN, 0.1, sampler="ddimm"), "ddimm"),
        (lambda m: m.restore(torch.zeros(1, *SHAPE), lambda x: x + 1, 0.1), "Adapted.forward is not linear"),
        (lambda m: m.inpaint(torch.zeros(2, *SHAPE), torch.ones(2, 4, 4)), r"one mask for each as \(n, 1, H, W\): mask\[:, None\]"),
        (lambda m: m.restore(torch.zeros(1, *SHAPE), DOWN, 0.1), r"expected \(B, 1, 2, 2\), as Downsample measures: operator.forward\(y\) where y are images"),
        (lambda m: m.restore(torch.zeros(1, 1, 2, 2), DOWN, 0.1, zeta=2.0), "zeta=2.0 is an option of method='dps', and the method here is 'pigdm', which has prior_std, within"),
        (lambda m: m.restore(torch.zeros(1, *SHAPE), lambda x: x.mul_(0.5), 0.1), "changed its x in place"),
        (lambda m: m.restore(torch.zeros(1, *SHAPE), lambda x: x.mean(), 0.1), "returned a single number; expected a tensor"),
        (lambda m: m.restore(torch.zeros(1, 1, 2, 2), DOWN, 0.1, draws=65537), "draws=65537; expected at most 65536"),
        (lambda m: m.restore(torch.zeros(1, 1, 2, 2), DOWN, 0.1, "dps", sampler="ddim", zetta=1.0), "'zetta' is not known; .*Did you mean 'zeta'"),
        (lambda m: m.inpaint(torch.zeros(1, *SHAPE), torch.full((4, 4), math.nan)), r"mask holds nan; expected 0 and 1 alone, 1 where the pixel is known$"),
        (lambda m: m.restore(torch.zeros(1, 7, 7), ops.Radon(SHAPE, 7), 0.1, "ddrm"), "no singular value decomposition.*method='pigdm'"),
        (lambda m: m.restore(torch.zeros(1, *SHAPE), Unfinished(), 0.1), "Unfinished has no event and no measured; expected the shapes"),
        (lambda m: m.restore(torch.zeros(1, 1, 2, 2), DOWN, 0.1, sampler="reversible_heun"), "strays by as much as the equation contracts.*expected another"),
        (lambda m: m.restore(torch.zeros(1, 1, 2, 2), DOWN, 0.1, sampler=make_method("reversible_heun")), "strays by as much as the equation contracts"),
    ],
    ids=range(32),
)
def test_bad_input_is_refused_before_any_call(call, message):
    m = gaussian_model()
    with pytest.raises((ValueError, TypeError), match=message):
        call(m)
    assert m.network.calls == 0


def test_three_different_channels_are_not_gray():
    with pytest.raises(ValueError, match="gray has three different channels"):
        colour_model().colorize(pictures(1, (3, 8, 8)))
    with pytest.raises(TypeError, match=r"y is torch\.uint8; expected a floating tensor"):
        gaussian_model().restore(torch.zeros(1, 1, 2, 2, dtype=torch.uint8), DOWN, 0.1)
    with pytest.raises(ValueError, match=r"mask holds nan"):
        gaussian_model().inpaint(torch.zeros(1, *SHAPE), np.full((4, 4), np.nan))


@pytest.mark.parametrize("how", [{"sampler": "rk45", "rtol": 0.1, "atol": 0.1}, {"steps": 4, "parallel": 2}])
def test_rows_may_leave_the_batch(how: dict[str, object]) -> None:
    """Samplers that choose steps by sample, and parallel ones, solve the draws of one image at a time."""
    m = gen.load("mnist")
    x, known = m.sample(2, "ddim", steps=3, seed=0), torch.ones(28, 28)
    known[:, 14:] = 0
    both = m.inpaint(x, known, draws=2, seed=0, **how)
    one = m.inpaint(x[1:], known, draws=2, seed=0, sample_ids=[1], **how)
    torch.testing.assert_close(both.images[1], one.images[0], atol=2e-3, rtol=0)


def test_all_masks_are_looked_at_before_the_first_call() -> None:
    m = gen.load("mnist")
    masks = torch.ones(2, 1, 28, 28)
    masks[1] = 0.5
    m.network.forward = None  # type: ignore[assignment, method-assign]
    with pytest.raises(ValueError, match="mask"):
        m.inpaint(torch.zeros(2, 1, 28, 28), masks, steps=3)


def test_a_matrix_is_an_operator() -> None:
    matrix, m = torch.randn(3, 16, generator=torch.Generator().manual_seed(0)), gaussian_model()
    y = torch.tensor([[0.5, -0.2, 0.1]])
    told = [m.restore(y, operator, 0.1, steps=3, seed=0).images for operator in (matrix, matrix.numpy(), ops.Matrix(SHAPE, matrix))]
    assert torch.equal(told[0], told[2]) and torch.equal(told[1], told[2])


def test_an_answer_keeps_no_graph() -> None:
    """Of measurements, pictures and operators that others differentiate through."""
    m, averaged = gaussian_model(), nn.Conv2d(1, 1, 2, bias=False)
    y, x = torch.zeros(1, 1, 2, 2, requires_grad=True), torch.zeros(1, *SHAPE, requires_grad=True)
    for r in (m.restore(y, DOWN, 0.0, steps=2, seed=0), m.inpaint(x, torch.ones(4, 4), steps=2, seed=0), m.restore(averaged(x), averaged, 0.1, steps=2, seed=0)):
        assert not r.images.requires_grad and not r.residual.requires_grad


def test_the_spread_of_the_data_is_told_where_none_is_given() -> None:
    m = gaussian_model()
    plain, none, other = (m.restore(torch.ones(1, 1, 2, 2), DOWN, 0.1, steps=3, seed=0, **given).images for given in ({}, {"prior_std": None}, {"prior_std": 0.1}))
    assert torch.equal(plain, none) and not torch.equal(plain, other)


def test_an_operator_by_its_name_is_told_how_to_be_made() -> None:
    with pytest.raises(TypeError, match=r"operators.make\('downsample', m.shape"):
        gen.load("mnist").restore(torch.zeros(1, 1, 7, 7), "downsample")


def test_draws_far_from_the_measurement_are_told() -> None:
    with pytest.warns(sd.SolveWarning, match="draws are far from the measurement.*Expected more steps, as in steps=100, a larger noise_std") as caught:
        y, known = torch.zeros(1, 784), ops.Mask((1, 28, 28), torch.ones(28, 28))
        gen.load("mnist").restore(y, known, 0.01, "dps", steps=3, seed=0)
    assert caught[0].filename == __file__  # and not a line of the library


@pytest.mark.parametrize("unit", [0.01, 1.0, 100.0])
def test_far_from_the_measurement_is_in_its_units(unit: float) -> None:
    """A x = unit x: the same draws are as far, whatever y is counted in."""
    m, y = gaussian_model(), unit * torch.full((1, *SHAPE), 3.0)
    with pytest.warns(sd.SolveWarning, match="1 of 1 draws are far"):
        m.restore(y, lambda x: unit * x, 0.02 * unit, "dps", zeta=0.0, steps=10, seed=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error", sd.SolveWarning)
        m.restore(y, lambda x: unit * x, 0.02 * unit, steps=40, seed=0)


@pytest.mark.parametrize("method", ["pigdm", "mmps", "dps", "ddnm", "diffpir", "smc"])
@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_y_may_be_counted_in_anything(method: str, noise: float) -> None:
    """A x = unit x, without closed forms, with squares that float32 has not."""
    m, y = gaussian_model(), 0.5 * pictures(1, SHAPE)
    how = {"particles": 4} if method == "smc" else {}
    one, small, large = (m.restore(unit * y, lambda x, unit=unit: unit * x, noise * unit, method, steps=8, seed=0, **how) for unit in (1.0, 1e-6, 1e6))
    for other, unit in ((small, 1e-6), (large, 1e6)):
        torch.testing.assert_close(other.images, one.images, rtol=0, atol=2e-3)
        torch.testing.assert_close(other.residual / unit, one.residual, rtol=1e-2, atol=2e-4)


@pytest.mark.parametrize(("noise", "times", "told"), [(0.05, 3.0, False), (0.05, 10.0, True), (0.3, 3.0, False), (0.3, 5.0, True), (0.0, 0.0, False)])
def test_ten_times_the_noise_is_far(noise: float, times: float, told: bool) -> None:
    """Of the method's own residual, whatever it is told, of pixels; half of it with much noise."""
    m, y = gaussian_model(data_range=[-1.0, 1.0]), torch.full((1, *SHAPE), 0.3)
    CONDITIONINGS["off"] = lambda score, measurement: Conditioning(score, lambda x, t, normals: torch.full_like(x, 0.3 + times * noise))
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", sd.SolveWarning)
            m.restore(y, lambda x: 1.0 * x, noise, "off", steps=2, seed=0)
    finally:
        del CONDITIONINGS["off"]
    assert any("1 of 1 draws are far" in str(warning.message) for warning in caught) == told


@pytest.mark.parametrize(("method", "share"), [("off", 0.0204), ("dps", 0.102)])
@pytest.mark.parametrize(("low", "high", "gain"), [(-1.0, 1.0, 1.0), (0.0, 1.0, 1.0), (-1.0, 1.0, 10.0)])
def test_two_hundredths_of_the_data_range_are_far(monkeypatch: pytest.MonkeyPatch, method: str, share: float, low: float, high: float, gain: float) -> None:
    """Where nothing is said to be noise, of pixels, and as much of what A makes of them; of dps five times as much."""
    shape = (1, 32, 32)
    m, y = gaussian_model(data_range=[low, high], shape=list(shape)), torch.full((1, *shape), gain * 0.3)
    for part, told in ((0.9, False), (1.1, True)):
        off = 0.3 + part * share * (high - low)
        monkeypatch.setitem(CONDITIONINGS, method, lambda score, measurement, off=off: Conditioning(score, lambda x, t, normals: torch.full_like(x, off)))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", sd.SolveWarning)
            m.restore(y, lambda x: gain * x, 0.0, method, sampler="ddim", steps=2, seed=0)
        assert any("1 of 1 draws are far" in str(warning.message) for warning in caught) == told


def test_what_to_do_about_far_draws_is_what_an_operator_that_is_not_linear_can() -> None:
    class Squared(Operator):
        event = measured = SHAPE
        linear = False

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.square()

    with pytest.warns(sd.SolveWarning, match="are far from the measurement.* or a stronger pull, as in zeta=2"):
        gaussian_model().restore(torch.full((1, *SHAPE), 9.0), Squared(), 0.01, zeta=0.0, steps=4, seed=0)


@pytest.mark.parametrize("operator", [ops.Mask(SHAPE, half(4)), DOWN], ids=["mask", "downsample"])
def test_what_was_given_without_noise_is_kept_beyond_the_data_range(operator: Operator) -> None:
    """A twentieth beyond is let in, and so comes back."""
    y = operator.forward(torch.full((2, *SHAPE), 4.3))
    r = gaussian_model().restore(y, operator, 0.0, seed=0, steps=4)
    torch.testing.assert_close(operator.forward(r.images[:, 0]), y)


def test_pictures_may_be_numpy() -> None:
    x = pictures(2, SHAPE)
    one, other = (gaussian_model().inpaint(given, half(4), seed=0, steps=4).images for given in (x, x.numpy()))
    assert torch.equal(one, other)


def test_no_spread_is_the_models_own_spread() -> None:
    y, m = torch.ones(1, 1, 2, 2), gaussian_model(sigma_data=0.3)
    found = [m.restore(y, DOWN, 0.1, "pigdm", seed=0, steps=4, **how).images for how in ({}, {"prior_std": None}, {"method_options": {"prior_std": None}})]
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


def knowing_model():
    """One that knows how wide its data are."""
    m, first = gaussian_model(), torch.zeros(1, *SHAPE)
    first.view(-1)[0] = STD
    m.moments = sd.Range(STD, directions=first)
    return m


def pulled(m, method="pigdm", operator=DOWN, **options):
    y, spread = torch.ones(1, *operator.measured), {"prior_std": STD} if method == "pigdm" else {}
    return m.restore(y, operator, STD, method, seed=0, **({"steps": 40} | spread | options)).images


@pytest.mark.parametrize("method", ["dps", "pigdm"])
def test_y_pulls_where_the_noise_does_not_hide_the_data(method):
    """Where the model knows how wide they are, nobody says otherwise, and the walk has noise."""
    m, everywhere = knowing_model(), {"within": (0.0, math.inf)}
    default, hidden, whole = (pulled(m, method, **given) for given in ({}, {"within": (0.0, 5 * STD)}, everywhere))
    assert torch.equal(default, hidden) and not torch.equal(default, whole)
    assert torch.equal(pulled(gaussian_model(), method), whole)  # nobody knows how wide they are
    for how in ({"sampler": "ddim"}, {"sampler": "ddim", "eta": 0.1}, {"steps": 39}, {"sampler": "dpmpp_sde", "steps": None, "nfe": 41}):
        # which forget nothing, or have no time to: 20 steps of two evaluations are few
        assert torch.equal(pulled(m, method, **how), pulled(m, method, **how, **everywhere))


def test_y_pulls_everywhere_in_exact_and_published_methods():
    for how in ({"method": "mmps"}, {"method": "dps", "method_options": {"steps": 40}}):
        assert torch.equal(pulled(knowing_model(), **how), pulled(gaussian_model(), **how))


@pytest.mark.parametrize("sampler", [{"sampler": "dpmpp_2m_sde"}, {"sampler": "ddim", "eta": 1.0}])
def test_what_a_walk_with_noise_misses_where_y_is_hidden(sampler):
    """The share s^2/(s^2 + h^2) of what y moves the draws, s their standard deviation: here half a half, of c = 0.5 two parts in a hundred."""
    direct = ops.Matrix(SHAPE, torch.eye(16))
    default, whole = (pulled(knowing_model(), operator=direct, steps=200, grid="log_snr", **sampler, **how) for how in ({}, {"within": (0.0, math.inf)}))
    s2, h = STD**2 / 2, 5 * STD
    assert float((whole - default).mean()) == pytest.approx(0.5 * s2 / (s2 + h**2), rel=0.06)


def test_an_option_of_the_sampler_is_not_taken_for_that_of_another_method() -> None:
    """eta is one of ddnm's and of ddim's; with ddim, and with the sampler that is the default, it is the sampler's."""
    m, y = gaussian_model(), pictures(1, (1, 2, 2))
    for sampler in ("ddim", None):
        still, drawn = (m.restore(y, DOWN, 0.1, "pigdm", sampler=sampler, eta=eta, steps=4, seed=0, draws=2).images for eta in (0.0, 1.0))
        assert not torch.allclose(still, drawn, atol=1e-3)
    with pytest.raises(ValueError, match=r"eta=1\.0 is an option of method='ddnm', and the method here is 'pigdm'"):
        m.restore(y, DOWN, 0.1, "pigdm", sampler="euler", eta=1.0, steps=4)


@pytest.mark.parametrize("method", ["pigdm", "dps"])
def test_what_is_measured_without_noise_is_kept_by_a_function_of_ones_own(method: str) -> None:
    """Known pixels, known to nobody as such, and means; of a blur, which hides what its inverse would make large, nothing is put in place."""
    m, left = gen.load("mnist"), torch.ones(28, 28)
    left[:, 14:] = 0
    x = m.draw(1, "auto", nfe=8, seed=1).images
    keep = {"part": lambda x: x[..., :14], "masked": lambda x: 3 * x * left, "means": lambda x: torch.nn.functional.avg_pool2d(x, 2)}
    for name, forward in keep.items():
        drawn = m.restore(forward(x), forward, 0.0, method, steps=8, seed=0).images[:, 0]
        assert float((forward(drawn) - forward(x)).abs().max()) < 1e-4, name
    blur = as_operator(lambda x: torch.nn.functional.avg_pool2d(x, 5, 1, 2), m.shape)
    assert not well_conditioned(blur, blur.forward(x)) and well_conditioned(as_operator(keep["masked"], m.shape), x)


def test_guidance_that_no_particle_meets_is_told() -> None:
    m = gaussian_model()
    m.score = sd.guided(m.score, lambda at: -at.x, within=(1e-5, 2e-5))
    with pytest.warns(sd.SolveWarning, match=r"guidance between the noise levels 1e-05 and 2e-05 had no effect") as told:
        m.restore(pictures(1, (1, 2, 2)), DOWN, 0.1, "smc", particles=2, steps=2, seed=0)
    assert [w.filename for w in told if "had no effect" in str(w.message)] == [__file__]


@pytest.mark.parametrize("method", ["dps", "pigdm", "mmps"])
def test_noise_levels_that_no_step_meets_are_told(method: str) -> None:
    m, y = gaussian_model(), pictures(1, (1, 2, 2))
    with pytest.warns(sd.SolveWarning, match=r"guidance between the noise levels 1e-05 and 2e-05 had no effect") as told:
        m.restore(y, DOWN, 0.1, method, within=(1e-5, 2e-5), steps=4, draws=2, batch_size=1)
    assert [w.filename for w in told if "had no effect" in str(w.message)] == [__file__]
    with pytest.raises(ValueError, match=r"within=.* is of no effect"):
        m.restore(y, DOWN, 0.1, method, within=(1e7, 2e7), steps=4)
