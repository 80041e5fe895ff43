"""A score with a term added is that score for every parameterisation, whatever is asked of it, at one call of the network."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import sdesolve as sd
from sdesolve import exam

PROCESSES = [sd.VPSDE(), sd.SubVPSDE(), sd.VESDE(), sd.EDM(), sd.Cosine(), sd.RectifiedFlow()]
PARAMETERISATIONS = ["score", "epsilon", "x0", "v", "flow", "edm"]
LAW = exam.Gaussian([0.4, -0.7, 0.1], cov=[[0.5, 0.2, 0.0], [0.2, 0.3, -0.1], [0.0, -0.1, 0.4]])


class Tight:
    """What x_0 = LAW is once y = x_0 + std n is known: as a law, and as the term that its score has more than the prior's."""

    def __init__(self, std: float = 0.4) -> None:
        y, inverse = torch.tensor([1.0, 0.0, -0.5], dtype=torch.float64), torch.linalg.inv
        precision = inverse(LAW.covariance) + torch.eye(3, dtype=torch.float64) / std**2
        self.law = exam.Gaussian(inverse(precision) @ (inverse(LAW.covariance) @ LAW.mean + y / std**2), cov=inverse(precision))

    def term(self, p: sd.Prediction) -> Tensor:
        x = p.x.double()
        return (self.law.score(p.process)(x, p.t) - LAW.score(p.process)(x, p.t)).to(p.x.dtype)


def modelled(process: sd.Process, predicts: str = "score", law: exam.Target = LAW) -> sd.Score:
    return sd.as_score(exam.as_model(law, process, predicts=predicts), process, predicts=predicts)


@pytest.mark.parametrize("predicts", PARAMETERISATIONS)
@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: type(p).__name__)
def test_everything_that_is_asked_is_conditional(process: sd.Process, predicts: str) -> None:
    """Score, denoised estimate, noise and model output, in float32, at the first and last times: as accurate as an unguided score of that law."""
    tight = Tight()
    guided, exact = sd.guided(modelled(process, predicts), tight.term), tight.law.score(process)
    plain = modelled(process, predicts, tight.law)
    for t in (process.eps, 0.5 * (process.eps + process.T), process.T):
        x = process.perturb(tight.law.sample(64, seed=1), t, seed=2)
        alpha, sigma = float(process.alpha(t)), float(process.sigma(t))
        score = exact(x.double(), t)
        denoised, noise = (x.double() + sigma**2 * score) / alpha, -sigma * score
        for asked, right in (("__call__", score), ("denoise", denoised), ("epsilon", noise)):
            off = (getattr(guided, asked)(x, t).double() - right).abs().max()
            allowed = (getattr(plain, asked)(x, t).double() - right).abs().max()
            assert off <= 4 * allowed + 1e-6 * right.abs().max(), (asked, t)
        assert torch.allclose(guided.model_output(x, t), plain.model_output(x, t), rtol=1e-3, atol=1e-4)
        per_row = guided(x, torch.full((64,), t, dtype=torch.float64))
        assert torch.allclose(per_row, guided(x, t), rtol=1e-5, atol=1e-6 * float(score.abs().max()))


@pytest.mark.parametrize("process", PROCESSES[:4], ids=lambda p: type(p).__name__)
def test_the_denoised_estimate_can_be_changed_instead(process: sd.Process) -> None:
    """What is added to E[x_0 | x] is the term sigma^2/alpha times as large."""
    tight, t = Tight(), 0.3 * process.T
    x = process.perturb(LAW.sample(8, seed=1, dtype=torch.float64), t, seed=2)
    base = modelled(process, "epsilon")

    def shift(p: sd.Prediction) -> Tensor:
        scaled: Tensor = torch.as_tensor(p.sigma**2 / p.alpha, dtype=torch.float64) * tight.term(p)
        return scaled

    assert torch.allclose(sd.guided(base, shift, to="x0")(x, t), tight.law.score(process)(x, t), rtol=1e-9)
    assert torch.allclose(sd.guided(base, lambda p: 2.0 - p.x0, to="x0").denoise(x, t), torch.full_like(x, 2.0))


@pytest.mark.parametrize("method", ["rk45", "heun", "ddim", "dpmpp_2m", "deis", "edm", "unipc", "euler_maruyama", "pc", "ancestral"])
def test_every_kind_of_solver_reaches_the_conditional_law(method: str) -> None:
    process, tight = sd.VPSDE(), Tight()
    options = {} if method == "rk45" else {"steps": 100}
    problems = [process.reverse(s, eps=1e-4) for s in (sd.guided(modelled(process, "v"), tight.term), modelled(process, "v", tight.law))]
    guided, right = (sd.solve(p, process.prior((16, 3), seed=0, dtype=torch.float64), method, seed=1, **options) for p in problems)
    assert torch.allclose(guided.x, right.x, atol=1e-5)
    assert torch.equal(torch.as_tensor(guided.nfe), torch.as_tensor(right.nfe))


def network() -> torch.nn.Module:
    torch.manual_seed(0)
    return _Told(torch.nn.Sequential(torch.nn.Linear(4, 16), torch.nn.SiLU(), torch.nn.Linear(16, 3)))


class _Told(torch.nn.Module):
    def __init__(self, inner: torch.nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        out: Tensor = self.inner(torch.cat([x, t[:, None]], 1))
        return out


def pulled(p: sd.Prediction) -> Tensor:
    return p.pullback(1.0 - p.x0)


@pytest.mark.parametrize("frozen", [True, False])
def test_a_derivative_of_the_network_costs_one_call_and_leaves_nothing_behind(frozen: bool) -> None:
    model = network().requires_grad_(not frozen)
    process = sd.VPSDE()
    score = sd.guided(sd.as_score(model, process, predicts="epsilon"), pulled, derivative=True)
    sol = sd.solve(process.reverse(score), process.prior((5, 3), seed=0), "ddim", steps=7, seed=0)
    assert (sol.nfe, sol.stats["calls"], sol.stats["rows"], sol.stats["vjps"]) == (7, 7, 35, 7)
    assert not sol.x.requires_grad and all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("method", ["ddim", "rk45"])
def test_inference_mode_changes_nothing(method: str) -> None:
    """Without a graph the derivative would be zero, and nobody told."""
    process = sd.VPSDE()
    score = sd.guided(modelled(process, "epsilon"), pulled, derivative=True)

    def solved() -> Tensor:
        return sd.solve(process.probability_flow(score), process.prior((2, 3), seed=0), method, steps=5).x

    with torch.inference_mode():
        inside = solved()
    assert torch.equal(inside, solved())


@pytest.mark.parametrize("predicts", ["epsilon", "x0", "v", "edm"])
def test_the_pullback_is_the_derivative_of_the_denoised_estimate(predicts: str) -> None:
    process, model = sd.VPSDE(), network().double()
    base, x, v = sd.as_score(model, process, predicts=predicts), torch.randn(2, 3).double(), torch.randn(2, 3).double()
    for t in (0.03, torch.tensor([0.2, 0.9])):
        _, pull, *_ = torch.func.vjp(lambda y: base.denoise(y, t), x)  # noqa: B023
        found = sd.guided(base, lambda p: p.pullback(v), derivative=True)(x, t) - base(x, t)
        assert torch.allclose(found, pull(v)[0], rtol=1e-6, atol=1e-9)


def test_a_guided_score_can_be_guided_and_differentiated() -> None:
    """Twice guided, and the gradient of a solve by its start against finite differences."""
    process, model = sd.VPSDE(), network().double()
    once = sd.guided(sd.as_score(model, process, predicts="v"), pulled, derivative=True)
    twice = sd.guided(once, lambda p: 0.3 * pulled(p), derivative=True)

    def end(x: Tensor, gradient: str | None = None) -> Tensor:
        return sd.solve(process.reverse(twice), x, "ddim", steps=3, gradient=gradient).x.square().sum()

    x, along = torch.randn(2, 3).double().requires_grad_(), torch.randn(2, 3).double()
    (slope,) = torch.autograd.grad(end(x, "backprop"), x)
    step = 1e-5
    difference = (end(x.detach() + step * along) - end(x.detach() - step * along)) / (2 * step)
    assert torch.allclose((slope * along).sum(), difference, rtol=1e-6)


def test_rows_are_apart() -> None:
    """A row has the same bits alone and beside others, and a NaN stays where it is."""
    process = sd.VPSDE()
    base = sd.as_score(lambda x, t: torch.tanh(x) * t[:, None], process, predicts="epsilon")
    score = sd.guided(base, pulled, derivative=True)
    x = torch.randn(4, 3)
    x[2, 1] = torch.nan
    with torch.no_grad():
        together = score(x, 0.4)
        assert torch.equal(together[:1], score(x[:1], 0.4)) and torch.equal(together[3:], score(x[3:], 0.4))
    assert together.isfinite().all(1).tolist() == [True, True, False, True]


@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: type(p).__name__)
def test_a_term_may_be_for_some_noise_levels(process: sd.Process) -> None:
    """(low, high] in sigma/alpha: one time for all rows and one for each say the same, and elsewhere the score is the bare one, to the bit."""
    base, levels = modelled(process, "epsilon"), torch.tensor([0.2, 0.3, 0.301, 3.0, 3.01], dtype=torch.float64)
    guided, always = (sd.guided(base, pulled, derivative=True, within=within) for within in ((0.3001, 3.0001), None))
    x, t = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)), process.log_snr_inverse(-2 * levels.log())
    with torch.no_grad():
        together = guided(x, t)
        for i, expected in enumerate((base, base, always, always, base)):
            alone = guided(x[i : i + 1], float(t[i]))
            assert torch.equal(alone, expected(x[i : i + 1], float(t[i]))), levels[i]
            torch.testing.assert_close(together[i : i + 1], alone)


def test_noise_levels_save_derivatives_and_no_call() -> None:
    process, asked = sd.VPSDE(), []

    def term(p: sd.Prediction) -> Tensor:
        asked.append(float(p.sigma / p.alpha))
        return pulled(p)

    score = sd.guided(modelled(process, "epsilon"), term, derivative=True, within=(0.1, 10.0))
    sol = sd.solve(process.reverse(score), process.prior((2, 3), seed=0), "ddim", steps=20, save="all")
    assert sol.ts is not None
    met = [level for level in (float(process.sigma(t) / process.alpha(t)) for t in sol.ts[:-1].tolist()) if 0.1 < level <= 10.0]
    assert (asked, sol.stats["vjps"], sol.nfe) == (pytest.approx(met), len(met), 20)
    assert 5 < len(met) < 15


def test_a_model_that_does_not_look_at_its_input_has_no_derivative() -> None:
    score = sd.guided(sd.as_score(lambda x, t: torch.ones_like(x), sd.VPSDE(), predicts="x0"), pulled, derivative=True)
    x = torch.randn(2, 3)
    assert torch.equal(score.denoise(x, 0.4), torch.ones(2, 3))


def test_a_model_without_autograd_is_not_taken_for_a_constant() -> None:
    """Through the analytic part alone there would be a derivative, and a wrong one."""
    model = network().requires_grad_(False)
    for cut in (torch.no_grad()(lambda x, t: model(x, t)), lambda x, t: model(x.detach(), t)):
        score = sd.guided(sd.as_score(cut, sd.VPSDE(), predicts="epsilon"), pulled, derivative=True)
        with torch.no_grad(), pytest.raises(ValueError, match="autograd was cut off"):
            score(torch.randn(2, 3), 0.4)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda s: sd.guided(s, pulled, to="x"), ValueError, "'x' is not known as to; expected one of: score, x0"),  # type: ignore[arg-type]
        (lambda s: sd.guided(s, pulled, within=(3.0, 0.3)), ValueError, r"within=\(3.0, 0.3\); expected noise levels 0 <= low < high"),
        (lambda s: sd.guided(s, pulled, within=20.0), ValueError, "within=20.0; expected noise levels .* as in within="),  # type: ignore[arg-type]
        (lambda s: sd.guided(s, pulled, within=(0.0, float("nan"))), ValueError, "within=.*; expected noise levels"),
        (lambda s: sd.guided(s, lambda p: p.x[:, :2])(torch.zeros(2, 3), 0.5), ValueError, r"returned \(2, 2\); expected a tensor like the state, \(2, 3\)"),
        (lambda s: sd.guided(s, pulled)(torch.zeros(2, 3), 0.5), RuntimeError, "expected guided\\(score, term, derivative=True\\)"),
    ],
)
def test_bad_terms_are_refused(make: Callable[[sd.Score], object], error: type[Exception], message: str) -> None:
    with torch.no_grad(), pytest.raises(error, match=message):
        make(modelled(sd.VPSDE()))


NEVER = {"between": (0.3, 0.31), "below": (0.0, 1e-4)}


@pytest.mark.parametrize("within", NEVER.values(), ids=NEVER)
def test_guidance_that_no_step_meets_is_told(within: tuple[float, float]) -> None:
    process = sd.VPSDE()
    guided = sd.guided(modelled(process), Tight().term, within=within)
    x = process.prior((2, 3), seed=0, dtype=torch.float64)
    with pytest.warns(sd.SolveWarning, match=rf"guidance between the noise levels {within[0]:g} and {within[1]:g} had no effect: no step met one") as told:
        unguided = sd.solve(process.reverse(guided), x, "euler", steps=5)
    assert told[0].filename == __file__
    assert torch.equal(unguided.x, sd.solve(process.reverse(modelled(process)), x, "euler", steps=5).x)


def nothing_to_pull(denoised: Tensor, t: float) -> Tensor:
    return -0.5 * denoised.double().square().sum(1)


WALKS: dict[str, Callable[[sd.Process, sd.Score, Tensor], object]] = {
    "rk45": lambda process, score, x: sd.solve(process.probability_flow(score), x, "rk45"),
    "adaptive": lambda process, score, x: sd.solve(process.reverse(score), x, "adaptive", rtol=0.05, atol=0.05, seed=0),
    "smc": lambda process, score, x: sd.smc(process.reverse(score), process.prior((1, 4, 3), seed=0), nothing_to_pull, steps=5, seed=0),
    "encode": lambda process, score, x: sd.encode(process, score, x, rtol=1e-3, atol=1e-3),
    "decode": lambda process, score, x: sd.decode(process, score, x, rtol=1e-3, atol=1e-3),
    "leapfrog": lambda process, score, x: sd.encode(process, score, x, "leapfrog", steps=8),
    "log_likelihood": lambda process, score, x: sd.log_likelihood(process, score, x, rtol=1e-3, atol=1e-3, seed=0),
}


@pytest.mark.parametrize("walk", WALKS.values(), ids=WALKS)
def test_guidance_that_nothing_meets_is_told_however_one_walks(walk: Callable[[sd.Process, sd.Score, Tensor], object]) -> None:
    """Times of rows of their own, particles, codes and likelihoods; and levels that all of them pass are not told."""
    process = sd.VPSDE()
    x = process.prior((2, 3), seed=0)
    guided = {within: sd.guided(modelled(process), Tight().term, within=within) for within in ((0.3, 0.3000001), (0.01, 30.0))}
    with pytest.warns(sd.SolveWarning, match=r"guidance between the noise levels 0\.3 and 0\.3 had no effect: no step met one") as told:
        walk(process, guided[0.3, 0.3000001], x)
    assert sum("had no effect" in str(warning.message) for warning in told) == 1
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*had no effect")
        walk(process, guided[0.01, 30.0], x)


def test_guidance_that_a_step_meets_is_not_told() -> None:
    """That of one of two, and where an inner score is met by others alone; and rows that have times of their own are all asked."""
    process = sd.VPSDE()
    x = process.prior((2, 3), seed=0, dtype=torch.float64)
    level = float(process.sigma(0.6) / process.alpha(0.6))
    met = sd.guided(modelled(process), Tight().term, within=(0.9 * level, 1.1 * level))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sd.solve(process.reverse(met), x, "euler", grid=[1.0, 0.6, 0.1, 1e-3], interval=(1.0, 1e-3))
        sd.solve(process.probability_flow(met), x, "rk45")
    both = sd.guided(met, Tight().term, within=(0.3, 0.31))
    with pytest.warns(sd.SolveWarning, match=r"0\.3 and 0\.31 had no effect") as told:
        sd.solve(process.reverse(both), x, "euler", grid=[1.0, 0.6, 0.1, 1e-3], interval=(1.0, 1e-3))
    assert len(told) == 1


@pytest.mark.parametrize("process", PROCESSES[:4], ids=lambda p: type(p).__name__)
def test_noise_levels_that_a_process_does_not_have_are_refused(process: sd.Process) -> None:
    most = float(process.sigma(process.T) / process.alpha(process.T))
    with pytest.raises(ValueError, match=rf"within=.* is of no effect: {type(process).__name__} has the noise levels up to sigma/alpha = {most:g}; expected a low end below"):
        sd.guided(modelled(process), Tight().term, within=(1.01 * most, 2 * most))
    sd.guided(modelled(process), Tight().term, within=(0.99 * most, 2 * most))
