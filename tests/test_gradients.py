"""Gradients through solve: right to rounding where they are the walk's own, to the tolerance where they are the equation's."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from problems import PROCESSES
from torch import Tensor, nn
from torch.autograd import grad, gradcheck

import sdesolve as sd
from sdesolve.methods import make_method

FACTS = {row.name: row.facts for row in sd.methods()}
ODES = [name for name, facts in FACTS.items() if facts.ode is not None and not facts.needs]
DIRECTIONS = [(0.0, 1.0), (1.0, 0.0)]
THETA = torch.tensor([0.7, 1.3], dtype=torch.float64)
X = torch.tensor([[0.3, -0.8], [1.1, 0.4], [-0.2, 0.9]], dtype=torch.float64)


def bent(theta: Tensor, interval: tuple[float, float] = (0.0, 1.0)) -> sd.ODE:
    """A nonlinear, non-autonomous ODE with two parameters."""
    return sd.ODE(lambda x, t: torch.sin(theta * x) + torch.cos(3 * sd.expand_time(t, x)), interval)


def parametric(method: str, theta: Tensor, kind: str = "") -> Any:
    """A problem that the method solves and that depends on ``theta`` in its drift, and in its noise where it has one of its own."""
    facts = FACTS[method]
    if "score" in facts.needs:
        process = PROCESSES["VP"]
        score = sd.as_score(lambda x, t: torch.sin(theta * x), process, predicts="epsilon")
        return process.reverse(score, eps=0.3)
    if "langevin" in facts.needs:
        return sd.UnderdampedLangevin(lambda q, t: -torch.sin(theta * q))
    if facts.ode is not None:
        return bent(theta)
    kind = kind or ("diagonal" if "diagonal" in facts.kinds else "additive")
    noise: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "additive": lambda x, t: 0.3 * theta * (1 + t),
        "diagonal": lambda x, t: 0.3 * torch.cos(theta * x),
        "scalar": lambda x, t: 0.3 * torch.cos(theta * x),
        "general": lambda x, t: 0.3 * torch.stack([torch.cos(theta * x), theta * x], -1),
    }
    return sd.SDE(lambda x, t: -torch.sin(theta * x), noise[kind], kind, calculus="stratonovich" if "ito" not in facts.calculus else "ito")  # type: ignore[arg-type]


def start(method: str) -> Tensor:
    return torch.stack([X, 0.5 * X], 1) if "langevin" in FACTS[method].needs else X.clone()


# -- through a grid ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gradient", ["backprop", "checkpoint"])
@pytest.mark.parametrize("method", FACTS)
def test_gradcheck_on_a_grid(method: str, gradient: str) -> None:
    """By x and by a parameter, of the end and of a saved state, against finite differences."""

    def run(x: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
        problem = parametric(method, theta)
        interval = {"interval": (1.0, 0.3)} if "score" in FACTS[method].needs else {}
        middle = 0.65 if interval else 0.5
        options = {"intervals": [(2.0, 6.0, 1, 1)]} if method == "restart" else {}  # the walk passes sigma/alpha = 2
        solution = sd.solve(problem, x, method, grid=[problem.interval[0], middle, problem.interval[1]], save=[middle], seed=0, gradient=gradient, **options)
        assert solution.xs is not None
        return solution.x, solution.xs

    assert gradcheck(run, (start(method).requires_grad_(), THETA.clone().requires_grad_()))


@pytest.mark.parametrize("method", ["euler_maruyama", "rk45", "ubu", "reversible_heun"])
def test_checkpoints_change_nothing(method: str) -> None:
    """The same numbers as all at once, in three stretches with a rest; a callback hears of every step once, also after the second walk."""
    steps: list[int] = []

    def gradients(gradient: str) -> list[Tensor]:
        x, theta = start(method).requires_grad_(), THETA.clone().requires_grad_()
        solution = sd.solve(
            parametric(method, theta), x, method, steps=11, save=[0.0, 0.3, 1.0], seed=0, gradient=gradient, callback=lambda moment: steps.append(moment.step)
        )
        assert solution.xs is not None and solution.ok().all()
        return [solution.x, *grad((solution.x.square()).sum() + solution.xs.pow(3).sum(), (x, theta))]

    (end, *once), (same, *twice) = gradients("backprop"), gradients("checkpoint")
    assert torch.equal(end, same) and all(torch.allclose(a, b, rtol=1e-13) for a, b in zip(once, twice, strict=True))
    assert steps == 2 * list(range(1, 12))


def test_a_stretch_is_walked_again_with_the_same_random_numbers() -> None:
    """Of a drift that draws some of its own, as dropout does: by x, each step multiplies with what it drew, so x dx1/dx = x1."""
    drift = nn.Sequential(nn.Dropout(0.5))
    x = X.abs().clone().requires_grad_()
    end = sd.solve(sd.ODE(lambda x, t: drift(x)), x, "euler", steps=10, gradient="checkpoint").x
    after = torch.get_rng_state()
    assert torch.allclose(x * grad(end.sum(), x)[0], end)
    assert torch.equal(torch.get_rng_state(), after)


def test_a_gradient_leaves_the_samples_as_they_are() -> None:
    process = PROCESSES["VP"]
    problem = process.reverse(lambda x, t: -x)
    x = process.prior((5, 3), seed=0)
    for how in ({"steps": 20}, {"rtol": 1e-2}):
        method = "pc" if "steps" in how else "adaptive"
        plain = sd.solve(problem, x, method, seed=1, **how)
        for gradient in ("backprop", "checkpoint"):
            assert torch.equal(sd.solve(problem, x, method, seed=1, gradient=gradient, **how).x, plain.x)
        assert not plain.x.requires_grad


class Count:
    """How many of the states that a function has seen are alive at once."""

    def __init__(self) -> None:
        self._seen: list[weakref.ref[Tensor]] = []
        self.most = 0

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        kept = x * 1.0
        self._seen.append(weakref.ref(kept))
        self.most = max(self.most, sum(ref() is not None for ref in self._seen))
        return Squared.apply(kept)


class Squared(torch.autograd.Function):
    """-x^2, which keeps the very tensor it was given for its gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return -x * x

    @staticmethod
    def backward(ctx: Any, a: Tensor) -> Tensor:
        return -2 * ctx.saved_tensors[0] * a


@pytest.mark.parametrize(
    ("gradient", "most"), [("backprop", 400), ("checkpoint", 21), ("adjoint", 2)], ids=["backprop", "checkpoint", "adjoint"]
)
def test_states_in_memory(gradient: str, most: int) -> None:
    """Of 400 steps: all of them, at most sqrt(N) inner ones, or those of a step."""
    count, x = Count(), X.abs().clone().requires_grad_()
    sd.solve(sd.ODE(count), x, "euler", steps=400, gradient=gradient).x.sum().backward()
    assert count.most <= most and (count.most == most or gradient != "backprop")
    assert x.grad is not None and torch.allclose(x.grad, (1 + x.detach()) ** -2, atol=2e-2)


# -- where steps are chosen --------------------------------------------------------------------------------------------


def central(loss: Callable[[Tensor], Tensor], at: Tensor, h: float = 1e-4) -> Tensor:
    """Finite differences of each entry."""
    rows = [loss(at + h * e.reshape(at.shape)) - loss(at - h * e.reshape(at.shape)) for e in torch.eye(at.numel(), dtype=at.dtype)]
    return (torch.stack(rows) / (2 * h)).reshape(at.shape)


ADAPTIVE = [(name, gradient) for name in ODES if make_method(name).error_order for gradient in ("backprop", "checkpoint", "adjoint")]


@pytest.mark.parametrize("interval", DIRECTIONS, ids=["forwards", "backwards"])
@pytest.mark.parametrize(("method", "gradient"), [case for case in ADAPTIVE if case != ("rodas5p", "adjoint")])
def test_the_gradient_at_a_tolerance(method: str, interval: tuple[float, float], gradient: str) -> None:
    """Of the end and of states between the steps, by x and theta, as finite differences of a finer solve have them."""
    order = FACTS[method].ode or 0
    tolerance = 1e-4 if order < 5 else 1e-8
    times = [interval[0], 0.31, 0.77]

    def loss(x: Tensor, theta: Tensor, how: str, **kwargs: Any) -> Tensor:
        solution = sd.solve(bent(theta, interval), x, how, save=times, **kwargs)
        assert solution.xs is not None and solution.ok().all()
        return solution.x.square().sum() + solution.xs.pow(3).sum()

    x, theta = X.clone().requires_grad_(), THETA.clone().requires_grad_()
    by_x, by_theta = grad(loss(x, theta, method, rtol=tolerance, atol=tolerance, gradient=gradient), (x, theta))
    fine = {"how": "dop853", "rtol": 1e-10, "atol": 1e-10}
    allowed = 2e-2 if order < 5 else 1e-5
    assert torch.allclose(by_x, central(lambda v: loss(v, THETA, **fine), X), atol=allowed)  # type: ignore[arg-type]
    assert torch.allclose(by_theta, central(lambda v: loss(X, v, **fine), THETA), atol=allowed)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("method", "noise", "gradient"),
    [("adaptive", "seeded", "backprop"), ("adaptive", "seeded", "checkpoint"), ("adaptive", "brownian", "checkpoint"), ("ggf", "seeded", "checkpoint")],
)
def test_adaptive_sde(method: str, noise: str, gradient: str) -> None:
    """Steps of a linear equation are linear in x, so x dx1/dx = x1 for each sample whatever its steps; and rejections are on the way."""
    sde = sd.SDE(lambda x, t: torch.sin(5 * sd.expand_time(t, x)) * x, lambda x, t: x, "diagonal", "stratonovich")
    x = torch.linspace(0.1, 3.0, 6, dtype=torch.float64)[:, None].requires_grad_()
    how: dict[str, Any] = {"method": method, "seed": 3, "noise": noise}
    solution = sd.solve(sde, x, rtol=3e-2, atol=1e-3, save=[0.4, 1.0], gradient=gradient, **how)
    assert solution.xs is not None and solution.ok().all() and int(solution.stats["rejected"].max()) > 3
    assert torch.equal(solution.x, sd.solve(sde, x, rtol=3e-2, atol=1e-3, save=[0.4, 1.0], **how).x)
    for states in (solution.x, *solution.xs):
        assert torch.allclose(x * grad(states.sum(), x, retain_graph=True)[0], states, rtol=1e-10)
    theta = torch.ones((), dtype=torch.float64, requires_grad=True)
    scaled = sd.SDE(lambda x, t: 0 * x, lambda x, t: theta * x, "diagonal", "stratonovich")
    end = sd.solve(scaled, x.detach(), rtol=3e-2, atol=1e-2, gradient=gradient, **how).x
    (by_theta,) = grad(end.log().sum(), theta)
    assert float(by_theta) == pytest.approx(float((end / x).detach().log().sum()), abs=0.3)  # of x exp(theta W): W


@pytest.mark.parametrize("gradient", ["backprop", "checkpoint", "adjoint"])
def test_a_rejected_step_does_not_spoil_the_gradient(gradient: str) -> None:
    """Some first steps leave the domain of the root, where the slope and its derivative are not numbers."""
    tried: list[bool] = []

    def drift(x: Tensor, t: Tensor) -> Tensor:
        tried.append(bool((x < 0).any()))
        return -40 * torch.sqrt(x) * torch.sigmoid(200 * (sd.expand_time(t, x) - 0.5))

    x = torch.full((2, 1), 9.0, dtype=torch.float64, requires_grad=True)
    solution = sd.solve(sd.ODE(drift, (0.0, 0.6)), x, "rk45", rtol=1e-6, atol=1e-6, gradient=gradient)
    assert any(tried) and solution.ok().all()
    solution.x.sum().backward()
    root = (solution.x / 9).sqrt().detach()  # sqrt(x) falls by the same amount wherever it starts
    assert x.grad is not None and torch.allclose(x.grad, root, rtol=1e-3)


def test_one_sample_does_not_see_the_others() -> None:
    """The gradient of a row alone, and in a batch whose other rows take other steps, or fail."""

    def by_row(x: Tensor, gradient: str) -> Tensor:
        x = x.clone().requires_grad_()
        with pytest.warns(sd.SolveWarning) if len(x) > 1 else torch.enable_grad():
            end = sd.solve(sd.ODE(lambda x, t: x * x, (0.0, 1.0)), x, "rk45", rtol=1e-6, atol=1e-6, gradient=gradient).x
        end[0].sum().backward()
        assert x.grad is not None
        return x.grad

    x = torch.tensor([[0.5], [-3.0], [5.0], [math.nan]], dtype=torch.float64)  # x = 5 explodes at t = 0.2
    for gradient in ("backprop", "checkpoint", "adjoint"):
        together = by_row(x, gradient)
        assert torch.equal(together[:1], by_row(x[:1], gradient)) and torch.equal(together[1:3], torch.zeros(2, 1, dtype=torch.float64))


# -- the adjoint -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("interval", DIRECTIONS, ids=["forwards", "backwards"])
@pytest.mark.parametrize("method", [name for name in ODES if name not in ("rodas5p", "dop853")])
def test_order_of_the_adjoint_on_a_grid(method: str, interval: tuple[float, float]) -> None:
    """It tends to the gradient of the equation as the steps shrink, at the method's order (the smaller of it and dense + 1 for theta)."""

    def gradients(steps: int, how: str, gradient: str) -> Tensor:
        x, theta = X.clone().requires_grad_(), THETA.clone().requires_grad_()
        solution = sd.solve(bent(theta, interval), x, how, steps=steps, save=[0.5], gradient=gradient)
        assert solution.xs is not None
        by_x, by_theta = grad(solution.x.square().sum() + solution.xs.pow(3).sum(), (x, theta))
        return torch.cat([by_x.flatten(), by_theta])

    exact = gradients(200, "dop853", "backprop")
    coarse, fine = (float((gradients(steps, method, "adjoint") - exact).norm()) for steps in ((256, 512) if method == "euler" else (8, 16)))
    order = min(FACTS[method].ode or 0, (FACTS[method].dense or 0) + 1)
    assert math.log2(coarse / fine) > order - 0.4, (coarse, fine)


class Switched(nn.Module):
    """A drift that asks one layer early and another late, and a tensor that is not a leaf."""

    def __init__(self, gain: Tensor) -> None:
        super().__init__()
        self.early, self.late = (nn.Linear(2, 2, dtype=torch.float64) for _ in range(2))
        self.gain = gain

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        slope = self.early(x)
        if bool((t > 0.4).any()):
            slope = slope + (sd.expand_time(t, x) - 0.4).clamp(min=0) * self.late(x)
        return self.gain * slope


def test_the_adjoint_finds_its_parameters() -> None:
    """In a module, behind a branch that only later times take, and behind a tensor that was computed from a leaf."""
    torch.manual_seed(0)
    root = torch.tensor(0.8, dtype=torch.float64, requires_grad=True)
    found, model = [], Switched(root.square())
    for gradient in ("backprop", "adjoint"):
        x = X.clone().requires_grad_()
        end = sd.solve(sd.ODE(model), x, "rk45", rtol=1e-9, atol=1e-9, gradient=gradient).x
        found.append(grad(end.square().sum(), (x, root, *model.parameters()), retain_graph=True))
    for one, other in zip(*found, strict=True):
        assert torch.allclose(one, other, atol=1e-6) and float(one.abs().max()) > 1e-3


def test_the_adjoint_of_a_probability_flow() -> None:
    """Of a network, with the ledger of the way back."""
    torch.manual_seed(0)
    process, net = sd.VPSDE(), nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 2)).double()
    score = sd.as_score(lambda x, t: net(x), process, predicts="epsilon")
    found = []
    for gradient in ("backprop", "adjoint"):
        solution = sd.solve(process.reverse(score, eps=1e-2), process.prior((8, 2), seed=0).double(), "rk45", rtol=1e-8, atol=1e-8, gradient=gradient)
        before = dict(solution.stats)
        found.append(grad(solution.x.square().mean(), tuple(net.parameters())))
    assert solution.stats["vjps"] > before["vjps"] == 0 and solution.stats["calls"] > before["calls"]
    for one, other in zip(*found, strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("how", [{"rtol": 1e-6, "atol": 1e-6}, {"steps": 400}], ids=["adaptive", "grid"])
def test_an_adjoint_that_goes_astray_says_so(how: dict[str, Any]) -> None:
    """What contracts by e^-40 forwards blows an error of 1e-6 up to one of 1e11 backwards."""
    x = torch.ones(2, 1, dtype=torch.float64, requires_grad=True)
    end = sd.solve(sd.ODE(lambda x, t: -20 * (x - torch.cos(sd.expand_time(t, x))), (0.0, 2.0)), x, "rk45", gradient="adjoint", **how).x
    with pytest.raises(RuntimeError, match=r"astray.*checkpoint"):
        end.sum().backward()


@pytest.mark.parametrize("kind", ["additive", "scalar", "diagonal", "general"])
@pytest.mark.parametrize("noise", ["seeded", "brownian"])
def test_reversible_heun_goes_back_for_its_gradient(kind: str, noise: str) -> None:
    """The same as backpropagation, to rounding, with states saved at and between the nodes."""
    found = []
    for gradient in ("backprop", "adjoint"):
        x, theta = X.clone().requires_grad_(), THETA.clone().requires_grad_()
        solution = sd.solve(
            parametric("reversible_heun", theta, kind), x, "reversible_heun", steps=64, save=[0.0, 0.25, 0.255, 0.26, 0.77], seed=0, noise=noise, gradient=gradient
        )
        assert solution.xs is not None
        found.append(grad(solution.x.square().sum() + solution.xs.pow(3).sum(), (x, theta)))
    for one, other in zip(*found, strict=True):
        assert torch.allclose(one, other, rtol=1e-11, atol=1e-11)


# -- what could go wrong without a word --------------------------------------------------------------------------------

LAZY = ["checkpoint", "adjoint"]


@pytest.mark.parametrize("gradient", ["backprop", *LAZY])
def test_tensors_that_were_computed(gradient: str) -> None:
    """By a tensor in a closure that is no leaf, by the leaf behind it, and by a start that is in the drift too:  x1 = x0 exp(-c)."""
    w = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    c = torch.stack([w, w]).exp()[0]
    end = sd.solve(sd.ODE(lambda x, t: -c * x), torch.ones(2, 1, dtype=torch.float64), "rk4", steps=50, gradient=gradient).x
    by_c, by_w = grad(end.sum() + c**2, (c, w))
    assert by_c.item() == pytest.approx(2 * c.item() - 2 * math.exp(-c.item()), abs=1e-6) and by_w.item() == pytest.approx(c.item() * by_c.item())
    start = X.abs().requires_grad_().exp()
    end = sd.solve(sd.ODE(lambda x, t: -start * x), start, "rk4", steps=50, gradient=gradient).x
    (by_start,) = grad(end.sum(), start)
    assert torch.allclose(by_start, (1 - start) * torch.exp(-start), atol=1e-5)


@pytest.mark.parametrize("gradient", LAZY)
def test_a_second_derivative_is_refused(gradient: str) -> None:
    x = X.clone().requires_grad_()
    end = sd.solve(bent(THETA), x, "rk4", steps=4, gradient=gradient).x
    with pytest.raises(RuntimeError, match="backprop"):
        grad(end.sum(), x, create_graph=True)


@pytest.mark.parametrize("gradient", LAZY)
def test_a_problem_that_has_changed_is_noticed(gradient: str) -> None:
    """A number in a closure, and a parameter after a step of an optimiser."""
    w, x = torch.ones((), dtype=torch.float64, requires_grad=True), torch.ones(2, 1, dtype=torch.float64)
    k = 1.0
    moved = sd.solve(sd.ODE(lambda x, t: -k * w * x), x, "rk4", steps=20, gradient=gradient).x
    k = 2.0
    with pytest.raises(RuntimeError, match=r"changed|astray"):
        moved.sum().backward()
    stepped = sd.solve(sd.ODE(lambda x, t: -w * x), x, "rk4", steps=20, gradient=gradient).x
    with torch.no_grad():
        w.mul_(1.001)
    with pytest.raises(RuntimeError, match="changed"):
        stepped.sum().backward()


@pytest.mark.parametrize("gradient", ["backprop", *LAZY])
def test_what_was_saved_before_a_row_failed(gradient: str) -> None:
    """x' = w x^2 from 2 explodes at t = 1/2;  d x(1/4)/dw = x0^2 t/(1 - x0 t)^2 = 4 there, and 1/4 / (7/8)^2 / 4 in the other row."""
    w = torch.ones((), dtype=torch.float64, requires_grad=True)
    x = torch.tensor([[2.0], [0.5], [math.nan]], dtype=torch.float64)
    with pytest.warns(sd.SolveWarning):
        solution = sd.solve(sd.ODE(lambda x, t: w * x**2), x, "rk45", rtol=1e-8, atol=1e-8, save=[0.25, 0.75], gradient=gradient)
    assert solution.xs is not None
    (by_w,) = grad(solution.xs[0, :2].sum(), w)
    assert by_w.item() == pytest.approx(4 + 0.25 * 0.25 / 0.875**2, rel=1e-5)


def test_an_adjoint_of_nothing_is_nothing() -> None:
    w = torch.ones((), dtype=torch.float64, requires_grad=True)
    with pytest.warns(sd.SolveWarning):
        end = sd.solve(sd.ODE(lambda x, t: w * x**2), torch.full((2, 1), 2.0, dtype=torch.float64), "rk45", gradient="adjoint").x
    assert grad(end.sum(), w)[0] == 0


@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_the_size_of_a_loss_does_not_matter(size: float) -> None:
    x = torch.ones(1, 2, requires_grad=True)
    end = sd.solve(sd.ODE(lambda x, t: -x), x, "rk45", rtol=1e-5, atol=1e-5, gradient="adjoint").x
    (by_x,) = grad(size * end.sum(), x)
    assert torch.allclose(by_x / size, torch.full((1, 2), math.exp(-1)), rtol=1e-3)


@pytest.mark.parametrize("gradient", ["backprop", "checkpoint"])
@pytest.mark.parametrize("method", ["rk45", "rodas5p", "adaptive"])
def test_a_try_that_no_row_accepts(method: str, gradient: str) -> None:
    """The second walk does not ask a drift for no rows, which many cannot answer; general noise cannot."""
    theta = THETA.clone().requires_grad_()

    def drift(x: Tensor, t: Tensor) -> Tensor:
        return -torch.sin(theta * x.reshape(len(x), -1)) * torch.where(sd.expand_time(t, x) > 0.5, 50.0, 0.1)

    noise = sd.SDE(drift, lambda x, t: torch.stack([x, torch.cos(x)], -1), noise="general", calculus="stratonovich")
    problem: Any = noise if method == "adaptive" else sd.ODE(drift)
    solution = sd.solve(problem, X[:1], method, rtol=1e-2, atol=1e-2, seed=0, gradient=gradient)
    assert int(solution.stats["rejected"]) > 0 and float(grad(solution.x.sum(), theta)[0].abs().min()) > 0


def test_a_callback_sees_no_graph() -> None:
    seen: list[Tensor] = []
    sd.solve(bent(THETA), X.clone().requires_grad_(), "rk4", steps=3, gradient="checkpoint", callback=lambda moment: seen.append(moment.x))
    assert len(seen) == 3 and not any(x.requires_grad for x in seen)


# -- bad calls ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "how", "message"),
    [
        ("rk45", {"gradient": "adjiont"}, "gradient.*adjoint"),
        ("rodas5p", {"gradient": "adjoint"}, "explicit"),
        ("scipy:RK45", {"gradient": "backprop"}, "another package"),
        ("rk45", {"gradient": "backprop", "event": lambda x, t: x[:, 0]}, "event"),
        ("rk45", {"gradient": "checkpoint", "compile": True}, "backprop"),
    ],
)
def test_bad_calls(method: str, how: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sd.solve(bent(THETA), X, method, **how)


def test_no_gradient_in_inference_mode() -> None:
    with torch.inference_mode(), pytest.raises(ValueError, match="inference_mode"):
        sd.solve(bent(THETA), X, "rk4", gradient="backprop")


@pytest.mark.parametrize("method", ["euler_maruyama", "pc", "adaptive"])
def test_no_adjoint_of_a_method_that_cannot_go_back(method: str) -> None:
    process = PROCESSES["VP"]
    with pytest.raises(ValueError, match="checkpoint"):
        sd.solve(process.reverse(lambda x, t: -x), process.prior((2, 2), seed=0), method, gradient="adjoint")
