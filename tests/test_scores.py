"""as_score: every parameterisation and time convention gives back the exact score, whatever the network's dtype."""

from __future__ import annotations

import pytest
import torch
from problems import PROCESSES
from torch import Tensor, nn

import sdesolve as sd
from sdesolve import exam
from sdesolve.scores import PARAMETERISATIONS, TIME_CONVENTIONS, TimeConvention, time_convention

TARGET = exam.mixture_2d()
EACH_PROCESS = pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES.keys())


def perturbed(process: sd.Process, n: int = 64) -> tuple[Tensor, Tensor]:
    t = process.log_snr_inverse(torch.linspace(6, -6, n, dtype=torch.float64)).clamp(process.eps, process.T)
    return process.perturb(TARGET.sample(n, seed=0, dtype=torch.float64), t, seed=1), t


@EACH_PROCESS
@pytest.mark.parametrize("time", [*TIME_CONVENTIONS, lambda t: 3 * t**2])
@pytest.mark.parametrize("predicts", PARAMETERISATIONS)
def test_round_trip(predicts: str, time: object, process: sd.Process) -> None:
    """A model that states the exact score in its own terms, and in its own time, is read back exactly."""
    if callable(time):
        exact = TARGET.score(process)

        def model(x: Tensor, told: Tensor) -> Tensor:
            return exam.as_model(TARGET, process, predicts=predicts, time="continuous")(x, (told / 3).sqrt())
    else:
        exact, model = TARGET.score(process), exam.as_model(TARGET, process, predicts=predicts, time=time)
    x, t = perturbed(process)
    score = sd.as_score(model, process, predicts=predicts, time=time)
    assert torch.allclose(score(x, t), exact(x, t), rtol=1e-6, atol=1e-8)


@EACH_PROCESS
@pytest.mark.parametrize("predicts", PARAMETERISATIONS)
def test_formulas_on_a_point(predicts: str, process: sd.Process) -> None:
    """Data at one point m: the network's output is known from the definitions alone, without the table."""
    m, t = 0.7, float(process.log_snr_inverse(1.0))
    alpha, sigma, g = (float(f(t)) for f in (process.alpha, process.sigma, process.diffusion))
    a = float(process.drift(torch.ones(1, 1, dtype=torch.float64), t))
    x = torch.linspace(-2, 2, 5, dtype=torch.float64)[:, None]
    eps = (x - alpha * m) / sigma
    c, d = 0.5, sigma / alpha  # sigma_data, and the noise level in EDM's coordinates
    said = {
        "score": -eps / sigma,
        "epsilon": eps,
        "x0": torch.full_like(x, m),
        "v": alpha * eps - sigma * m,
        "flow": a * x + g**2 * eps / sigma / 2,
        "edm": (m - c**2 / (d**2 + c**2) * x / alpha) * (d**2 + c**2) ** 0.5 / (d * c),
    }[predicts]
    seen: list[Tensor] = []

    def model(y: Tensor, told: Tensor) -> Tensor:
        seen.append(y)
        return said

    score = sd.as_score(model, process, predicts=predicts, sigma_data=c)
    assert torch.allclose(score(x, t), -eps / sigma, rtol=1e-9)
    assert torch.allclose(score.denoise(x, t), torch.full_like(x, m), rtol=1e-7)
    assert torch.allclose(score.target(x, eps, t), said, rtol=1e-7, atol=1e-9)
    assert torch.allclose(seen[0], x / alpha / (d**2 + c**2) ** 0.5 if predicts == "edm" else x)


def test_what_the_network_is_told() -> None:
    """Computed in float64, and rounded to the network's dtype once."""
    process, x = sd.VPSDE(), torch.zeros(50, 2)
    t = torch.linspace(0.02, 1.0, 50, dtype=torch.float64)
    ratio = process.sigma(t) / process.alpha(t)
    expected = {"continuous": t, "t*999": 999 * t, "sigma": ratio, "log_sigma/4": ratio.log() / 4, 1000: torch.round(999 * t)}
    for time, value in expected.items():
        told: list[Tensor] = []
        sd.as_score(lambda x, s, told=told: told.append(s) or x, process, predicts="score", time=time)(x, t)
        assert told[0].dtype == (torch.int64 if time == 1000 else torch.float32)
        assert torch.allclose(told[0].double(), value, rtol=2**-24 * (1 + 1e-6), atol=0)


def test_a_float_time_reaches_the_network_once_a_row() -> None:
    told: list[Tensor] = []
    sd.as_score(lambda x, s: told.append(s) or x, sd.VPSDE(), predicts="score")(torch.zeros(5, 2), 0.3)
    assert told[0].shape == (5,) and (told[0] == 0.3).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_network_keeps_its_dtype_and_the_state_its_own(dtype: torch.dtype) -> None:
    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones((), dtype=dtype))

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            assert x.dtype == dtype and t.dtype == torch.promote_types(dtype, torch.float32)
            return -self.weight * x

    process = sd.VPSDE()
    solution = sd.solve(process.reverse(sd.as_score(Network(), process, predicts="epsilon")), torch.ones(2, 3), "ddim", steps=3)
    assert solution.x.dtype == torch.float32


@pytest.mark.parametrize("time", ["continuous", "t*999", "sigma", lambda t: 1000 * t])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_network_in_half_precision_is_told_every_time_of_a_grid(dtype: torch.dtype, time: TimeConvention) -> None:
    told, layer, process = list[float](), nn.Linear(2, 2).to(dtype), sd.VPSDE()
    network = nn.Sequential(layer)
    network.forward = lambda x, t: told.append(float(t[0])) or layer(x)  # type: ignore[func-returns-value, method-assign]
    grid = sd.solve(process.reverse(sd.as_score(network, process, predicts="epsilon", time=time)), torch.ones(1, 2), "ddim", steps=1000, save="all").ts
    assert grid is not None
    expected = time_convention(time)(process, grid[:-1])
    assert len(set(told)) == 1000 and torch.equal(torch.tensor(told), expected.float())


class Concatenated(nn.Module):
    """The time goes straight into a layer."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.layer, self.calls = nn.Linear(3, 2).to(dtype), 0

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        self.calls += 1
        return self.layer(torch.cat([x, t[:, None]], 1))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_network_whose_layers_refuse_float32_is_told_as_they_want_it(dtype: torch.dtype) -> None:
    network, process = Concatenated(dtype), sd.VPSDE()
    score, x = sd.as_score(network, process, predicts="epsilon"), torch.ones(3, 2)
    assert torch.equal(score.model_output(x, 0.3), network(x.to(dtype), torch.full((3,), 0.3, dtype=dtype)).float())
    network.calls = 0
    assert sd.solve(process.reverse(score), x, "ddim", steps=5).nfe == network.calls == 5  # it has been found out before


@pytest.mark.parametrize("refusal", [ValueError("t.dtype is not x.dtype"), TypeError("expected bfloat16"), AssertionError()])
def test_a_network_that_looks_at_dtypes_itself_is_told_as_it_wants_it(refusal: Exception) -> None:
    network, told = nn.Linear(2, 2).bfloat16(), list[torch.dtype]()

    class Strict(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            told.append(t.dtype)
            if t.dtype != x.dtype:
                raise refusal
            return network(x)

    score = sd.as_score(Strict(), sd.VPSDE(), predicts="score")
    for _ in range(2):
        assert score(torch.ones(1, 2).bfloat16(), 0.3).shape == (1, 2)
    assert told == [torch.float32, torch.bfloat16, torch.bfloat16]


def test_a_network_that_fails_by_itself_fails_once() -> None:
    network, seen = nn.Linear(2, 2).bfloat16(), list[Tensor]()

    def fails(x: Tensor, t: Tensor) -> Tensor:
        seen.append(network(x))
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        sd.as_score(fails, sd.VPSDE(), predicts="score")(torch.ones(1, 2).bfloat16(), 0.3)
    assert len(seen) == 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("predicts", ["score", "epsilon", "x0", "v", "flow", "edm"])
def test_of_a_state_in_half_precision_the_answer_alone_is_rounded(predicts: str, dtype: torch.dtype) -> None:
    """Where x and sigma^2 score cancel to a hundredth: of a network in float32, in which they cancel before anything is rounded."""
    process, mean, std = sd.VPSDE(), 0.4, 0.3

    class Exact(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.nothing = nn.Parameter(torch.zeros(()))

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            alpha, sigma = (c.float()[:, None] for c in (process.alpha(t.double()), process.sigma(t.double())))
            if predicts == "edm":
                x = x * (sigma**2 + (alpha / 2) ** 2).sqrt()
            eps = sigma * (x - alpha * mean) / (alpha**2 * std**2 + sigma**2)
            x0 = (x - sigma * eps) / alpha
            beta = process.diffusion(t.double()).float()[:, None] ** 2
            edm = (x0 - 0.25 * alpha * x / (sigma**2 + (alpha / 2) ** 2)) * (sigma**2 + (alpha / 2) ** 2).sqrt() / (0.5 * sigma)
            return {"score": -eps / sigma, "epsilon": eps, "x0": x0, "v": alpha * eps - sigma * x0, "flow": -beta / 2 * (x - eps / sigma), "edm": edm}[predicts] + self.nothing

    score = sd.as_score(Exact(), process, predicts=predicts)
    x = process.prior((64, 8), seed=0, dtype=dtype)
    for t in (1.0, 0.6, torch.linspace(0.5, 1.0, 64, dtype=torch.float64)):
        alpha, sigma = (torch.as_tensor(c).double().reshape(-1, 1) for c in (process.alpha(t), process.sigma(t)))
        exact = -(x.double() - alpha * mean) / (alpha**2 * std**2 + sigma**2)
        expected = {"__call__": exact, "denoise": (x.double() + sigma**2 * exact) / alpha, "epsilon": -sigma * exact}
        for name, value in expected.items():
            said = getattr(score, name)(x, t)
            assert said.dtype == dtype and torch.allclose(said.double(), value, rtol=torch.finfo(dtype).eps, atol=0.02 if predicts == "edm" else 2e-3), name
    guided = sd.guided(score, lambda p: torch.ones_like(p.x), to="x0")
    assert torch.allclose(guided.denoise(x, 1.0) - score.denoise(x, 1.0), torch.ones_like(x), atol=4 * torch.finfo(dtype).eps)


def test_guided_scores_count_every_network_call() -> None:
    """A score made of two networks' scores costs two calls a step, however it was composed."""
    process = sd.VPSDE()
    first, second = (sd.as_score(lambda x, t, f=f: f * x, process, predicts="epsilon") for f in (0.5, 0.2))
    guided = process.reverse(lambda x, t: 3 * first(x, t) - 2 * second(x, t))
    assert sd.solve(guided, torch.ones(2, 3), "ddim", steps=5).nfe == 10


def test_unknown_conventions() -> None:
    process = sd.VPSDE()
    with pytest.raises(ValueError, match=r"as predicts; .* Did you mean 'epsilon'"):
        sd.as_score(lambda x, t: x, process, predicts="epsilom")
    with pytest.raises(ValueError, match=r"as time; .* Did you mean 'sigma'"):
        sd.as_score(lambda x, t: x, process, predicts="x0", time="sigmas")
    with pytest.raises(ValueError, match="an integer > 1"):
        sd.as_score(lambda x, t: x, process, predicts="x0", time=1)
