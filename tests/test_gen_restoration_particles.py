"""``method="smc"``: draws of the posterior by weighted particles, with their evidence and effective number."""

import math
import warnings
from typing import Any

import pytest
import torch
from gen_fixtures import tiny_card, tiny_model
from test_gen_restoration import DOWN, SHAPE, STD, GaussianScore, colour_model, gaussian_model, half, pictures

import sdesolve as sd
import sdesolve_gen as gen
from sdesolve_gen.conditioning import Measurement, twist
from sdesolve_gen.conditioning import operators as ops
from sdesolve_gen.particles import _least
from sdesolve_gen.restoration import _warn_few

A = torch.randn(5, 16, generator=torch.Generator().manual_seed(1))
NOISE = 0.3


def exact(y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Mean and standard deviation of x, and ln p(y), for x ~ N(0, STD^2 I)."""
    a, y = A.double(), y.double()
    total = STD**2 * a @ a.T + NOISE**2 * torch.eye(5, dtype=torch.float64)
    gain = STD**2 * a.T @ torch.linalg.inv(total)
    log_p = -0.5 * (y @ torch.linalg.solve(total, y) + torch.logdet(2 * math.pi * total))
    return gain @ y, (STD**2 * (torch.eye(16) - gain @ a)).diagonal().sqrt(), float(log_p)


def test_draws_are_the_posterior_and_the_evidence_its_integral() -> None:
    """Each draw has particles of its own, so that draws are independent; their evidences average to p(y)."""
    y = torch.randn(1, 5, generator=torch.Generator().manual_seed(2))
    r = gaussian_model().restore(y, ops.Matrix(SHAPE, A), NOISE, "smc", draws=600, seed=0, steps=60, particles=32, data_std=1.0)
    mean, std, log_p = exact(y[0])
    assert r.images.shape == (1, 600, *SHAPE) and r.method == r.sampler == "smc" and r.log_evidence is not None and r.ess is not None
    assert float((r.mean.flatten() - mean).abs().max()) < 0.08  # 4 standard errors
    assert float((r.std.flatten() / std - 1).abs().max()) < 0.12
    assert r.log_evidence.shape == (1, 600) and abs(float(r.log_evidence.logsumexp(1) - math.log(600)) - log_p) < 0.05
    assert r.ess.shape == (1, 600, 61) and float(r.ess.min()) >= 1 and float(r.ess.max()) < 32.001
    assert r.nfe.tolist() == [[61] * 600] and (r.status == "ok").all()
    assert abs(float(r.residual.square().mean().sqrt()) / NOISE - 1) < 0.1


@pytest.mark.parametrize("model", [tiny_model, colour_model])
def test_inpaint_and_colorize_keep_what_is_known(model: Any) -> None:
    """Without noise, y is taken for one with the noise of the last time, and put in place at the end."""
    m, options = model(), {"method": "smc", "draws": 2, "seed": 0, "steps": 6, "particles": 4}
    if m.shape[0] == 3:
        gray = pictures(2)
        r = m.colorize(gray, **options)
        assert float((ops.Gray(m.shape).forward(r.images.flatten(0, 1)).reshape(2, 2, 1, 8, 8) - gray[:, None]).abs().max()) < 1e-3
    else:
        x, known = pictures(), half().bool()
        r = m.inpaint(x, known, **options)
        assert float((r.images - x[:, None])[..., known].abs().max()) < 1e-3
        assert float(r.images[:, 0][..., ~known].sub(r.images[:, 1][..., ~known]).abs().max()) > 0.05
    assert r.log_evidence is not None and r.log_evidence.shape == (2, 2) and r.ess is not None and r.ess.shape == (2, 2, 7)


@pytest.mark.parametrize("noise", [0.0, 1e-12, 1e-3])
def test_with_less_noise_than_the_last_time_the_evidence_is_that_of_the_last_time(noise: float) -> None:
    """As A, means of four here, has it."""
    m, y = gaussian_model(), torch.full((1, 1, 2, 2), 0.3)
    level = _least(Measurement(DOWN, y), m.process)
    assert level == pytest.approx(float(m.process.sigma(m.process.eps) / m.process.alpha(m.process.eps)) / 2, rel=0.15)
    less, little, more = (m.restore(y, DOWN, noise, "smc", seed=0, steps=12, particles=8) for noise in (noise, level, 2 * level))
    assert less.log_evidence is not None and torch.equal(less.log_evidence, little.log_evidence) and not torch.equal(less.log_evidence, more.log_evidence)  # type: ignore[arg-type]


def test_a_draw_that_hangs_on_one_particle_at_the_end_is_told() -> None:
    """By its last node alone."""
    ess = torch.full((3, 9), 6.0)
    ess[1, -1] = 1.2
    with pytest.warns(sd.SolveWarning, match="1 of 3 draws hang on fewer than 2 effective particles of 8 at most nodes or at the last"):
        _warn_few(ess, 8)


@pytest.mark.parametrize("told", [False, True])
def test_particles_that_are_copies_of_one_are_told(told: bool) -> None:
    """Two draws of four, whose y is far from what a wrong data_std expects, and which are never chosen anew."""
    how: dict[str, Any] = {"resample": 0.0, "data_std": 0.1} if told else {}
    y = torch.stack([torch.zeros(5), torch.full((5,), 6.0)])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", sd.SolveWarning)
        r = gaussian_model(sigma_data=STD).restore(y, ops.Matrix(SHAPE, A), NOISE, "smc", draws=2, seed=0, steps=30, particles=16, **how)
    assert r.ess is not None and (r.ess.median(-1).values < 2).tolist() == [[False, False], [told, told]]
    few = [warning for warning in caught if "effective particles of 16 at most nodes" in str(warning.message)]
    alone = int((torch.minimum(r.ess.median(-1).values, r.ess[..., -1]) < 2).sum())
    assert len(few) == told and all(f"{alone} of 4 draws" in str(warning.message) and "particles=64" in str(warning.message) and warning.filename == __file__ for warning in few)


def test_a_draw_is_its_name() -> None:
    m, y = gaussian_model(), pictures(3, (1, 2, 2))
    options: dict[str, Any] = {"method": "smc", "seed": 5, "steps": 8, "particles": 4}
    whole = m.restore(y, DOWN, 0.1, draws=3, **options)
    for other in (m.restore(y, DOWN, 0.1, draws=3, batch_size=4, **options), m.restore(y, DOWN, 0.1, draws=3, batch_size=1, **options)):
        torch.testing.assert_close(other.images, whole.images, rtol=0, atol=1e-5)
    alone = m.restore(y[2:], DOWN, 0.1, draws=2, sample_ids=[2], **options)
    torch.testing.assert_close(alone.images, whole.images[2:, :2], rtol=0, atol=1e-5)
    torch.testing.assert_close(alone.log_evidence, whole.log_evidence[2:, :2])  # type: ignore[index]


def test_a_draw_is_chosen_by_weight() -> None:
    """The one that ``Particles.draw`` takes, and not any."""
    m, y, operator, process = gaussian_model(), torch.ones(4, 5), ops.Matrix(SHAPE, A), sd.VPSDE()
    r = m.restore(y, operator, NOISE, "smc", seed=3, steps=10, particles=8, resample=0.0, data_std=0.7)
    ids = [i << 16 for i in range(4)]
    x = process.prior((4, 8, *SHAPE), seed=3, sample_ids=ids)
    out = sd.smc(process.reverse(m.score), x, twist(Measurement(operator, y, NOISE), process, 8, 0.7), steps=10, resample=0.0, seed=3, sample_ids=ids)
    torch.testing.assert_close(r.images, out.draw(1).clamp(-4, 4))
    assert not torch.allclose(r.images[:, 0], out.x[:, 0])


def test_the_choice_among_a_row_of_particles_is_its_own() -> None:
    """By the name of the row and not by its place."""
    p = sd.VPSDE()
    x = p.prior((3, 8, 2), seed=0)
    problem = p.reverse(sd.exam.Gaussian([0.0, 0.0], std=1.0).score(p))

    def chosen(rows: list[int]) -> torch.Tensor:
        return sd.smc(problem, x[rows], lambda x0, t: x0[:, 0], steps=10, seed=0, sample_ids=rows).draw(3)

    torch.testing.assert_close(chosen([2])[0], chosen([0, 1, 2])[2])


def test_a_mask_for_each_image() -> None:
    m, x = tiny_model(), pictures()
    r = m.inpaint(x, torch.stack([half(), half().T])[:, None], method="smc", steps=4, particles=3, seed=0)
    assert r.images.shape == (2, 1, 1, 8, 8) and r.log_evidence is not None and r.log_evidence.shape == (2, 1) and r.ess is not None and r.ess.shape == (2, 1, 5)


def test_particles_that_are_lost_are_named() -> None:
    class Broken(GaussianScore):
        def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            out = super().forward(x, t)
            return torch.cat([out[:-4], out[-4:] * math.nan]) if self.calls > 2 else out

    m = gen.Model(Broken(), tiny_card(predicts="score", time="continuous", shape=list(SHAPE)))
    with pytest.warns(sd.SolveWarning, match=r"1 of 4 draws did not arrive \(image 1, draw 1: non_finite\)"):
        r = m.restore(torch.zeros(2, 1, 2, 2), DOWN, 0.1, "smc", draws=2, seed=0, steps=5, particles=4)
    assert r.status.tolist() == [["ok", "ok"], ["ok", "non_finite"]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"particles": 1}, "particles=1; expected an integer >= 2"),
        ({"sampler": "ddim"}, "expected no sampler and no denoise=False"),
        ({"denoise": False}, "expected no sampler and no denoise=False"),
        ({"zeta": 1.0}, "option of method='smc': 'zeta' is not known; expected one of: data_std, grid, particles, resample, steps"),
        ({"data_std": -1.0}, "data_std=-1.0; expected a finite number > 0"),
        ({"data_std": 0}, "data_std=0; expected a finite number > 0"),
        ({"steps": 2, "method_options": {"steps": 3}}, r"steps=2 and method_options={'steps': 3}; expected one of them"),
        ({"method_options": [1]}, r"method_options=\[1\]; expected names and values"),
        ({"method_options": []}, r"method_options=\[\]; expected names and values"),
        ({"method_options": {"zeta": 1.0}}, "option of method='smc': 'zeta' is not known"),
        ({"resample": 2.0}, "resample=2.0; expected a share"),
        ({"steps": 0}, "steps=0; expected an integer >= 1"),
        ({"noise": "poisson", "peak": 9.0}, "smc has no treatment of noise='poisson'"),
    ],
)
def test_bad_options_are_refused_before_any_call(options: dict[str, Any], message: str) -> None:
    m = gaussian_model()
    with pytest.raises((ValueError, TypeError), match=message):
        m.restore(torch.zeros(1, 1, 2, 2), DOWN, method="smc", **options)
    assert m.network.calls == 0
