"""An operator after every move: where it is applied, with which numbers, and that what it moves is what goes on."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from problems import GaussianTarget, solvable
from test_no_sync import NoReads
from torch import Tensor

import sdesolve as sd
from sdesolve._checks import constrained, prepared
from sdesolve._loops import fixed
from sdesolve.correctors import Langevin
from sdesolve.grids import uniform
from sdesolve.methods import METHODS, make_method
from sdesolve.noise import CONSTRAINT, ConstrainedStep, SeededNormals, SeededStep

PROCESS = sd.VPSDE()
SCORE = GaussianTarget(PROCESS).score
PLAIN = [name for name in METHODS if name not in ("pc", "annealed_langevin")]
TWO_STATES = ("reversible_heun", "leapfrog")  # what they carry is a second state, which starts anew where the first may have been moved


def kicked(x: Tensor, t: Any, normals: Tensor) -> Tensor:
    """Moves every number, by its own noise too."""
    return (0.9 * x + 0.1 * normals).clamp(-2, 2)


class Watched:
    """A constraint that notes what it was given."""

    def __init__(self) -> None:
        self.seen: list[tuple[float, Tensor, Tensor]] = []

    def __call__(self, x: Tensor, t: Any, normals: Tensor) -> Tensor:
        value = kicked(x, t, normals)
        self.seen.append((float(t), normals.clone(), value))
        return value


@pytest.mark.parametrize("method", METHODS)
def test_it_follows_every_move(method: str) -> None:
    """After each predictor step and each corrector step, at their time, with numbers of its own; what it returns last is the result; calls are as declared."""
    problem, watched, steps = solvable(method, SCORE), Watched(), 5
    solution = sd.solve(problem, PROCESS.prior((3, 2, 4), seed=0), method, steps=steps, seed=0, constraint=watched)
    stepper = make_method(method)
    moves = 2 if method == "pc" else 1
    _, *seen = watched.seen  # the first is a trial
    times = [t for t, _, _ in seen]
    assert len(seen) == moves * steps and times[::moves] == times[moves - 1 :: moves] == sorted(set(times), reverse=True)
    assert times[-1] == problem.interval[1] and times[0] < problem.interval[0]
    assert torch.equal(solution.x, seen[-1][2])
    drawn = torch.stack([normals.flatten() for _, normals, _ in seen])
    assert drawn.shape[1] == 24 and len(drawn.unique()) == drawn.numel()
    facts = constrained(kicked, stepper, on_grid=True, tolerance=False).facts
    assert solution.nfe == solution.stats["calls"] == facts.start + steps * facts.evals


@pytest.mark.parametrize("method", PLAIN)
def test_it_is_the_walk_by_hand(method: str) -> None:
    """Multistep methods go on with their memory, the others begin afresh at the moved state."""
    stepper, x = make_method(method), PROCESS.prior((3, 2, 4), seed=0)
    problem = prepared(stepper, solvable(method, SCORE), x, (1.0, 1e-3))
    grid = uniform()(None, *problem.interval, 6)
    source = SeededNormals(0, range(3), problem.brownian_event(x) if stepper.facts.kinds else (8,), dtype=x.dtype, device=x.device, nodes=6)
    own = SeededNormals(0, range(3), (2, 4), dtype=x.dtype, device=x.device, nodes=6)
    end, carry = x, stepper.init(problem, x, grid.ts[0])
    for i, (t0, t1) in enumerate(zip(grid.ts, grid.ts[1:], strict=False)):
        noise = SeededStep(source, i) if stepper.facts.kinds else None
        step = stepper.step(problem, end, t0, t1, noise, carry if stepper.outlives_moves else stepper.init(problem, end, t0))
        end, carry = kicked(step.x, t1, own.normal(i, CONSTRAINT)), step.carry
    assert torch.equal(sd.solve(solvable(method, SCORE), x, method, grid=grid, seed=0, constraint=kicked).x, end)


@pytest.mark.parametrize("corrector_steps", [1, 3])
def test_predictor_corrector_is_the_walk_by_hand(corrector_steps: int) -> None:
    predictor, corrector, x = make_method("reverse_diffusion"), Langevin(), PROCESS.prior((3, 4), seed=0)
    problem, grid = PROCESS.reverse(SCORE), uniform()(None, 1.0, 1e-3, 4)
    source = SeededNormals(0, range(3), (4,), dtype=x.dtype, device=x.device, nodes=4)
    end = x
    for i, (t0, t1) in enumerate(zip(grid.ts, grid.ts[1:], strict=False)):
        end = kicked(predictor.step(problem, end, t0, t1, SeededStep(source, i), None).x, t1, source.normal(i, CONSTRAINT))
        for k in range(corrector_steps):
            end, _ = corrector.correct(problem, end, t1, 1, lambda _, part, i=i, k=k: source.normal(i, 1 + k), None)
            end = kicked(end, t1, source.normal(i, CONSTRAINT + 1 + k))
    assert torch.equal(sd.solve(problem, x, "pc", grid=grid, seed=0, corrector_steps=corrector_steps, constraint=kicked).x, end)


@pytest.mark.parametrize("method", [name for name in METHODS if name not in TWO_STATES])
def test_one_that_moves_nothing_changes_nothing(method: str) -> None:
    """Not even the last bits: no method loses its memory or its order to the wrapper."""
    problem, x = solvable(method, SCORE), PROCESS.prior((3, 2, 4), seed=0)
    plain, held = (sd.solve(problem, x, method, steps=8, seed=0, **extra) for extra in ({}, {"constraint": lambda x, t, normals: x}))
    assert torch.equal(held.x, plain.x)


@pytest.mark.parametrize("predictor", ["dpmpp_2m", "er_sde", "rk4"])
@pytest.mark.parametrize("corrector", ["langevin", "hmc", "mala", "underdamped"])
def test_correctors_of_every_kind(predictor: str, corrector: str) -> None:
    """Also those that keep a record from step to step, and make a call fewer where they are not interrupted."""
    watched = Watched()
    x = PROCESS.prior((3, 4), seed=0)
    options: dict[str, Any] = {"predictor": predictor, "corrector": corrector, "corrector_steps": 2}
    solution = sd.solve(PROCESS.reverse(SCORE), x, "pc", steps=4, seed=0, constraint=watched, **options)
    assert len(watched.seen) == 1 + 3 * 4
    facts = constrained(kicked, make_method("pc", **options), on_grid=True, tolerance=False).facts
    assert solution.nfe == 4 * facts.evals and bool(solution.ok().all())
    if corrector != "langevin":
        assert solution.stats["step_size"].shape == (3,)


@pytest.mark.parametrize("method", ["pc", "euler_maruyama", "rk4", "ddim", "dpmpp_2m", "unipc", "er_sde", "restart"])
def test_rows_stand_apart(method: str) -> None:
    problem, ids = solvable(method, SCORE), torch.arange(100)
    whole = PROCESS.prior((100, 2, 5), seed=3)
    everything = sd.solve(problem, whole, method, steps=6, seed=3, constraint=kicked).x
    for batch in (ids[7:8], ids[20:43], torch.tensor([99, 0, 5])):
        assert torch.equal(sd.solve(problem, whole[batch], method, steps=6, seed=3, sample_ids=batch, constraint=kicked).x, everything[batch])


@pytest.mark.parametrize("method", ["pc", "euler_maruyama", "rk4", "dpmpp_2m", "restart"])
def test_no_host_read(method: str) -> None:
    stepper, x = constrained(kicked, make_method(method), on_grid=True, tolerance=False), PROCESS.prior((4, 2, 3), seed=0)
    source = SeededNormals(0, range(4), (2, 3), dtype=x.dtype, device=x.device, nodes=5)
    with NoReads():
        fixed.run(
            stepper, solvable(method, SCORE), x, uniform()(None, 1.0, 1e-3, 5), lambda node: ConstrainedStep(SeededStep(source, node), SeededStep(source, node)), {}, None
        )


@pytest.mark.parametrize(
    "problem",
    [
        sd.SDE(lambda x, t: -x, lambda x, t: 0.1 + 0 * x[:, :1], noise="scalar"),
        sd.SDE(lambda x, t: -x, lambda x, t: torch.ones(len(x), 6, 2), noise="general"),
        sd.UnderdampedLangevin(lambda x, t: -x),
        sd.ODE(lambda x, t: -x),
    ],
    ids=["scalar", "general", "langevin", "ode"],
)
def test_its_normals_are_shaped_like_the_state(problem: Any) -> None:
    """Whatever the noise of the equation is shaped like; and they are those of every equation with that seed."""
    x = torch.ones(3, 2, 3) if isinstance(problem, sd.UnderdampedLangevin) else torch.ones(3, 6)
    method = "baoab" if isinstance(problem, sd.UnderdampedLangevin) else "euler" if isinstance(problem, sd.ODE) else "euler_maruyama"
    ends = [sd.solve(problem, x, method, steps=4, seed=5, noise=noise, constraint=lambda x, t, normals: normals).x for noise in ("seeded", *["brownian"] * (method != "euler"))]
    expected = SeededNormals(5, range(3), x.shape[1:], dtype=x.dtype, device=x.device, nodes=4).normal(3, CONSTRAINT)
    assert all(torch.equal(end, expected) for end in ends)


def test_brownian_motion_on_the_sphere() -> None:
    """Steps of dx = dw taken back to the sphere: E[x_T . x_0] = e^(-T) in three dimensions, and the length is 1."""
    start = torch.zeros(20_000, 3)
    start[:, 0] = 1
    flat = sd.SDE(lambda x, t: 0 * x, lambda x, t: torch.ones_like(x), noise="additive", interval=(0.0, 1.0))
    end = sd.solve(flat, start, "euler_maruyama", steps=50, seed=0, constraint=lambda x, t, normals: x / x.norm(dim=1, keepdim=True)).x
    assert torch.allclose(end.norm(dim=1), torch.ones(len(end)), atol=1e-6)
    cosine = end[:, 0].double()
    assert abs(float(cosine.mean()) - math.exp(-1)) < 4 * float(cosine.std()) / len(end) ** 0.5 + 0.003  # the second is the step's own error


def test_denoising_ends_with_it() -> None:
    """Once more at t = 0, without noise: what Tweedie's formula moves off the measurement is taken back."""
    watched = Watched()
    solution = sd.solve(PROCESS.reverse(SCORE), PROCESS.prior((3, 4), seed=0), "ddim", steps=4, seed=0, denoise=True, constraint=watched)
    t, normals, value = watched.seen[-1]
    assert (t, solution.nfe) == (0.0, 5) and not normals.any() and torch.equal(solution.x, value)


@pytest.mark.parametrize("method", ["euler_maruyama", "pc", "rk4", "dpmpp_2m"])
def test_steps_at_once_are_the_steps_one_by_one(method: str) -> None:
    problem, x = solvable(method, SCORE), PROCESS.prior((3, 4), seed=0, dtype=torch.float64)

    def held(x: Tensor, t: Any, normals: Tensor) -> Tensor:
        known = sd.expand_time(torch.as_tensor(PROCESS.alpha(t)), x) + 0.1 * normals[:, :1]
        return torch.cat([known + 0 * x[:, :1], x[:, 1:]], 1)

    one, many = (sd.solve(problem, x, method, steps=12, seed=0, constraint=held, parallel=window).x for window in (None, sd.Parallel(5, tolerance=1e-10)))
    assert torch.allclose(one, many, atol=1e-6)


def test_steps_at_once_refuse_one_that_holds_the_batch() -> None:
    y = torch.zeros(3, 4)
    with pytest.raises(RuntimeError) as raised:
        sd.solve(PROCESS.reverse(SCORE), PROCESS.prior((3, 4), seed=0), "ddim", steps=6, constraint=lambda x, t, normals: x + y, parallel=4)
    assert "parallel=None" in raised.value.__notes__[0]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["pc", "rk4", "dpmpp_2m"])
def test_compiled(method: str) -> None:
    problem, x = solvable(method, SCORE), PROCESS.prior((3, 4), seed=0)
    one, other = (sd.solve(problem, x, method, steps=5, seed=0, constraint=kicked, compile=compile) for compile in (False, True))
    assert torch.allclose(one.x, other.x, atol=1e-5) and one.nfe == other.nfe


def test_gradients_go_through_it() -> None:
    """d/dx0 of the walk with a factor 1/2 after each of n steps is 2^-n that of the walk without."""
    ode, x = sd.ODE(lambda x, t: -x), torch.ones(2, 3, dtype=torch.float64, requires_grad=True)
    for gradient in ("backprop", "checkpoint"):
        plain, halved = (sd.solve(ode, x, "rk4", steps=4, gradient=gradient, constraint=c).x.sum() for c in (None, lambda x, t, normals: 0.5 * x))
        assert torch.allclose(torch.autograd.grad(halved, x)[0], torch.autograd.grad(plain, x)[0] / 16)
    with pytest.raises(ValueError, match="gradient='checkpoint'"):
        sd.solve(ode, x, "rk4", steps=4, gradient="adjoint", constraint=lambda x, t, normals: x)


@pytest.mark.parametrize(
    ("constraint", "how", "message"),
    [
        (lambda x, t, normals: x[:, :1], {"steps": 3}, "expected (2, 3)"),
        (lambda x, t, normals: x.double(), {"steps": 3}, "expected (2, 3) torch.float32"),
        (lambda x, t, normals: x.clamp_(0, 1), {"steps": 3}, "in place"),
        (lambda x, t, normals: x + normals.mul_(2), {"steps": 3}, "in place"),
        (lambda x, t, normals: None, {"steps": 3}, "NoneType"),
        (lambda x, t, normals: x, {}, "steps=100"),
        (lambda x, t, normals: x, {"steps": 3, "save": [0.1]}, "not a node"),
        (lambda x, t, normals: x, {"method": "scipy:RK45"}, "another package"),
    ],
)
def test_what_cannot_be_is_refused(constraint: Any, how: dict[str, Any], message: str) -> None:
    """Before the first call of the drift, and with the state as it was."""
    calls, x = [], torch.full((2, 3), 2.0)
    with pytest.raises(ValueError) as raised:
        sd.solve(sd.ODE(lambda x, t: calls.append(t) or -x), x, how.pop("method", "rk45"), constraint=constraint, **how)
    assert message in str(raised.value) and not calls and bool((x == 2).all())


def test_what_changes_later_is_refused_then() -> None:
    with pytest.raises(ValueError, match="in place"):
        sd.solve(sd.ODE(lambda x, t: -x), torch.ones(2, 3), "euler", steps=3, constraint=lambda x, t, normals: x if t < 0.5 else x.clamp_(0, 1))


def test_what_is_no_function_is_refused() -> None:
    with pytest.raises(TypeError, match="constraint is a float"):
        sd.solve(sd.ODE(lambda x, t: -x), torch.ones(2, 3), "euler", steps=3, constraint=0.5)  # type: ignore[arg-type]
