"""The ledger in ``sol.stats`` agrees with what a function that counts for itself has seen."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import sdesolve as sd

STIFFNESS = torch.tensor([[1.0], [3.0], [30.0], [300.0]], dtype=torch.float64)


class Counted:
    """A drift with its own account of calls and rows; each row has a rate of its own in its second number."""

    def __init__(self) -> None:
        self.calls = self.rows = 0

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        self.calls += 1
        self.rows += len(x)
        value, rate = x[:, :1], x[:, 1:]
        return torch.cat([-rate * (value - torch.cos(sd.expand_time(t, x))), torch.zeros_like(rate)], 1)


@pytest.mark.parametrize("how", [{"steps": 7}, {"rtol": 1e-4}, {"rtol": 1e-4, "save": [0.2, 0.5]}, {"rtol": 1e-4, "event": lambda x, t: x[:, 0] - 0.9}])
@pytest.mark.parametrize("method", ["heun", "rk45", "dop853", "rodas5p"])
def test_calls_and_rows(method: str, how: dict[str, Any]) -> None:
    drift = Counted()
    x = torch.cat([torch.zeros_like(STIFFNESS), STIFFNESS], 1)
    solution = sd.solve(sd.ODE(drift), x, method, **how)
    assert (solution.stats["calls"], solution.stats["rows"]) == (drift.calls, drift.rows)
    if "steps" in how:
        assert solution.nfe == drift.calls and drift.rows == 4 * drift.calls
    else:
        assert int(solution.nfe.sum()) == drift.rows < 4 * drift.calls  # type: ignore[union-attr]  # finished rows have left


def test_calls_of_a_score() -> None:
    process, seen = sd.VPSDE(), []
    solution = sd.solve(process.reverse(lambda x, t: seen.append(len(x)) or -x), process.prior((5, 2), seed=0), "pc", steps=3, denoise=True)  # type: ignore[func-returns-value]
    assert solution.nfe == solution.stats["calls"] == len(seen) == 7 and solution.stats["rows"] == 35


@pytest.mark.parametrize("method", ["torchdiffeq:dopri5", "scipy:RK45"])
def test_other_packages(method: str) -> None:
    pytest.importorskip(method.partition(":")[0])
    drift = Counted()
    solution = sd.solve(sd.ODE(drift), torch.ones(3, 2, dtype=torch.float64), method, rtol=1e-3)
    assert (solution.stats["calls"], solution.stats["rows"]) == (drift.calls, drift.rows)


def test_derivatives_and_the_rest() -> None:
    """One derivative of the diffusion a Milstein step (and those of a check before); none of anything on an ODE."""
    sde = sd.SDE(lambda x, t: -x, lambda x, t: torch.cos(x))
    few, more = (sd.solve(sde, torch.ones(2, 1), "milstein", steps=steps, seed=0).stats for steps in (4, 9))
    assert more["jvps"] - few["jvps"] == 5 and few["vjps"] == 0
    plain = sd.solve(sd.ODE(lambda x, t: -x), torch.ones(2, 1), "rk45").stats
    assert plain["jvps"] == plain["vjps"] == 0 and plain["wall_time"] > 0
    assert plain["peak_memory"] is None or plain["peak_memory"] > 1 << 20
