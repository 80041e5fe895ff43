"""A tableau is checked when it is built: every coefficient is held by some order condition, and the declared orders are exact."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

from sdesolve.methods import METHODS
from sdesolve.methods.rosenbrock import Rosenbrock
from sdesolve.methods.runge_kutta import Dense, RungeKutta, WithIntegrals
from sdesolve.methods.trees import density, trees

TABLEAUS = {name: make() for name, make in METHODS.items() if isinstance(make(), RungeKutta | Rosenbrock)}


def symmetry(tree: Any) -> int:
    """The number of ways to map a tree onto itself."""
    return math.prod(map(symmetry, tree)) * math.prod(math.factorial(n) for n in Counter(tree).values())


@pytest.mark.parametrize(("size", "number"), enumerate([1, 1, 2, 4, 9, 20, 48, 115], start=1))
def test_trees(size: int, number: int) -> None:
    """Their number, and that of their monotone labellings, size!/(density symmetry), which is (size - 1)! in all.  [HNW 1993, II.2]"""
    assert len(set(trees(size))) == len(trees(size)) == number
    assert sum(math.factorial(size) // (density(tree) * symmetry(tree)) for tree in trees(size)) == math.factorial(size - 1)


def cells(value: Any) -> Iterator[tuple[Callable[[float], Any], float]]:
    """Every number inside nested tuples, with the function that puts another in its place."""
    for i, item in enumerate(value):
        if isinstance(item, float):
            yield lambda new, i=i: _put(value, i, new), item
        elif isinstance(item, tuple):
            for put, number in cells(item):
                yield lambda new, i=i, put=put: _put(value, i, put(new)), number


def _put(value: Any, i: int, new: Any) -> Any:
    items = [*value[:i], new, *value[i + 1 :]]
    return type(value)(*items) if hasattr(value, "_fields") else tuple(items)


FIELDS = [(name, field) for name, method in TABLEAUS.items() for field in ("a", "b", "c", "m", "dense", "estimates", "estimate") if getattr(method, field, ())]


@pytest.mark.parametrize(("name", "field"), FIELDS)
def test_a_broken_coefficient_is_refused(name: str, field: str) -> None:
    """Each number in turn, off by a millionth; but any multiple of an estimate is one too."""
    method = TABLEAUS[name]
    for put, number in cells(getattr(method, field)):
        if field == "estimate" and number == sum(method.estimate.weights):
            continue
        with pytest.raises(ValueError, match="tableau"):
            replace(method, **{field: put(number + 1e-6 * max(1.0, abs(number)))})
    assert replace(method) == method


def test_a_broken_diagonal_is_refused() -> None:
    with pytest.raises(ValueError, match="tableau"):
        replace(TABLEAUS["rodas5p"], gamma=0.2119376)


def overstated(method: RungeKutta | Rosenbrock) -> Iterator[dict[str, Any]]:
    """Each declared order in turn, one too high."""
    yield {"order": method.order + 1}
    yield {"dense": method.dense._replace(order=method.dense.order + 1)}
    if isinstance(method, Rosenbrock):
        yield {"estimate": method.estimate._replace(order=method.estimate.order + 1)}
    else:
        for i, estimate in enumerate(method.estimates):
            yield {"estimates": _put(method.estimates, i, estimate._replace(order=estimate.order + 1))}


@pytest.mark.parametrize("name", TABLEAUS)
def test_the_declared_orders_are_the_highest_that_hold(name: str) -> None:
    for change in overstated(TABLEAUS[name]):
        with pytest.raises(ValueError, match="tableau"):
            replace(TABLEAUS[name], **change)


@pytest.mark.parametrize("name", [name for name, method in TABLEAUS.items() if method.error_order])
def test_dense_output_that_ends_elsewhere_is_refused(name: str) -> None:
    """The straight line to the embedded method's end is of order 1, and not at x1."""
    method = TABLEAUS[name]
    weights, estimate = (method.m, method.estimate) if isinstance(method, Rosenbrock) else (method.b, method.estimates[0])
    line = Dense(1, tuple((w - e,) for w, e in zip(weights, estimate.weights, strict=True)))
    with pytest.raises(ValueError, match="does not end at x1"):
        replace(method, dense=line)


@pytest.mark.parametrize(("name", "evals"), [("bosh3", 3), ("rk45", 6), ("tsit5", 6), ("dop853", 12), ("rodas5p", 8), ("rk4", 4)])
def test_calls_a_step(name: str, evals: int) -> None:
    """The published counts: where the last stage is the next step's first, it is not paid for twice."""
    assert TABLEAUS[name].facts.evals == evals


def test_a_method_is_built_once() -> None:
    """The check costs milliseconds, so a tableau is built when it is first asked for, and kept."""
    assert all(METHODS[name]() is METHODS[name]() for name in TABLEAUS)


@pytest.mark.parametrize("name", ["bosh3", "rk45", "tsit5", "dop853"])
def test_integrals_need_no_slope_that_nothing_sees(name: str) -> None:
    """The second number is the integral of a function of the first: where it need not be known it is NaN, and no number changes."""

    class Problem:
        asked = 0

        def drift(self, x: torch.Tensor, t: float) -> torch.Tensor:
            y = x[:, 0]
            return torch.stack([torch.sin(t * y), y * y], 1)

        def path(self, x: torch.Tensor, t: float) -> torch.Tensor:
            self.asked += 1
            return self.drift(x, t) * torch.tensor([1.0, torch.nan])

    method, problem, x = METHODS[name](), Problem(), torch.tensor([[0.7, 0.0], [-1.3, 2.0]], dtype=torch.float64)
    lazy = WithIntegrals.of(method)
    carry = method.init(problem, x, 0.3)
    for t0, t1 in ((0.3, 0.9), (0.9, 1.1)):
        plain, other = (m.step(problem, x, t0, t1, None, carry) for m in (method, lazy))
        assert torch.equal(plain.x, other.x) and torch.equal(plain.error, other.error)
        assert carry is None or torch.equal(plain.carry, other.carry)
        x, carry = other.x, other.carry
    assert problem.asked == 2 * {"bosh3": 0, "rk45": 1, "tsit5": 0, "dop853": 4}[name]
