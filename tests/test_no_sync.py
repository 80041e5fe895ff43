"""The fixed loop never reads from the device: such a read would make a GPU wait at every step."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from problems import PROCESSES, GaussianTarget, solvable
from torch.utils._python_dispatch import TorchDispatchMode

import sdesolve as sd
from sdesolve._checks import prepared
from sdesolve._loops import fixed
from sdesolve.grids import uniform
from sdesolve.methods import METHODS, make_method
from sdesolve.noise import SeededNormals, SeededStep

READS = {"aten::_local_scalar_dense", "aten::item", "aten::nonzero", "aten::is_nonzero", "aten::equal"}


class NoReads(TorchDispatchMode):
    """Refuses every operation that would bring a number from the device to the host."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.name().split(".")[0] in READS:
            raise AssertionError(f"a host read: {func}")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES.keys())
@pytest.mark.parametrize("method", METHODS)
def test_fixed_loop_has_no_host_read(method: str, process: sd.Process) -> None:
    stepper, x = make_method(method), process.prior((4, 2, 3), seed=0)
    problem = solvable(method, sd.as_score(lambda x, t: -x, process, predicts="epsilon", time="log_sigma/4"), process)
    problem = prepared(stepper, problem, x, problem.interval)
    grid = uniform()(None, *problem.interval, 5)
    shape = problem.brownian_event(x) if stepper.facts.kinds else ()
    source = SeededNormals(0, range(4), shape, dtype=x.dtype, device=x.device, nodes=5)
    with NoReads():
        out = fixed.run(stepper, problem, x, grid, lambda node: SeededStep(source, node), {2: (grid.ts[2],)}, None)
    assert out.x.shape == x.shape


def test_the_guard_sees_a_read() -> None:
    problem = sd.ODE(lambda x, t: -x * float(x.abs().max() > -1))
    with NoReads(), pytest.raises(AssertionError, match="host read"):
        fixed.run(make_method("euler"), problem, torch.ones(2, 2), uniform()(None, 0.0, 1.0, 3), lambda node: None, {}, None)


@pytest.mark.parametrize("extra", [{}, {"save": [0.9, 0.5, 0.1]}, {"event": lambda x, t: x[:, 0]}], ids=["plain", "save", "event"])
def test_adaptive_loop_reads_once_a_step(extra: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """One read tells whether anything is to be done; steps that save values or end rows at events read two more."""
    reads, plain_tolist = [], torch.Tensor.tolist

    def tolist(x: torch.Tensor) -> Any:  # reads without an operation that a dispatch mode could see
        reads.append("tolist")
        return plain_tolist(x)

    class CountReads(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func.name().split(".")[0] in READS:
                reads.append(func.name())
            return func(*args, **(kwargs or {}))

    process = sd.VPSDE()
    flow = process.probability_flow(GaussianTarget(process).score)
    steps = []
    monkeypatch.setattr(torch.Tensor, "tolist", tolist)
    with CountReads():
        sd.solve(flow, process.prior((32, 3), seed=0, dtype=torch.float64), "rk45", rtol=1e-8, atol=1e-8, callback=lambda moment: steps.append(moment.step), **extra)
    assert len(steps) > 10
    assert len(steps) <= len(reads) <= (3 if extra else 1) * len(steps) + 10
