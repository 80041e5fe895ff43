"""Whole adaptive ODE solves at equal achieved error: ours against torchdiffeq's dopri5 and scipy's RK45, in one run.

    python benchmarks/ode_work_precision.py [--batches 1 64 1000] [--out work_precision.json]

Each contender solves each problem at tolerances 1e-3, ..., 1e-9 (rtol = atol); its calls and time are read off, by interpolation in
the logarithms, where the error is 1e-4 and 1e-7: the root mean square over all samples and components at the end, relative to that
of the exact state.  Calls are the mean over the samples of what each has seen.  scipy solves sample by sample (at most 16 of them are
timed, and the time is scaled to all) and once more as one stacked system.  Drifts are written in torch for torch solvers and in numpy
for scipy.  Time is the processor's, of one thread.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.integrate import solve_ivp
from torch import Tensor
from torchdiffeq import odeint

import sdesolve as sd

TARGETS = (1e-4, 1e-7)
TOLERANCES = [10.0 ** (-k / 2) for k in range(6, 19)]
ROW_BY_ROW = 16


class Case(NamedTuple):
    """f(xp, x, t) with x (..., d), t that broadcasts against it, and xp torch or numpy."""

    f: Callable[[ModuleType, Any, Any], Any]
    interval: tuple[float, float]
    start: Callable[[np.random.Generator, int], np.ndarray]


def beat(xp: ModuleType, x: Any, t: Any) -> Any:
    return x * (1 - x) * (1 + 2 * xp.cos(3 * t))


def lorenz(xp: ModuleType, x: Any, t: Any) -> Any:
    a, b, c = x[..., 0], x[..., 1], x[..., 2]
    return xp.stack([10 * (b - a), a * (28 - c) - b, a * b - 8 / 3 * c], -1)


def arenstorf(xp: ModuleType, s: Any, t: Any) -> Any:
    """A satellite about earth and moon.  [Hairer, Norsett & Wanner 1993, II.0]"""
    mu = 0.012277471
    x, y, u, v = s[..., 0], s[..., 1], s[..., 2], s[..., 3]
    to_earth, to_moon = ((x + mu) ** 2 + y**2) ** 1.5, ((x - 1 + mu) ** 2 + y**2) ** 1.5
    pull_x = (1 - mu) * (x + mu) / to_earth + mu * (x - 1 + mu) / to_moon
    pull_y = (1 - mu) * y / to_earth + mu * y / to_moon
    return xp.stack([u, v, x + 2 * v - pull_x, y - 2 * u - pull_y], -1)


def van_der_pol(xp: ModuleType, x: Any, t: Any) -> Any:
    y, v = x[..., 0], x[..., 1]
    return xp.stack([v, 5 * (1 - y**2) * v - y], -1)


def mixture_flow(xp: ModuleType, x: Any, t: Any) -> Any:
    """Probability flow of the VP process for N(-0.8, 0.3^2) and N(0.8, 0.3^2), equally likely, in each coordinate."""
    t = t + 0 * x
    alpha = xp.exp(-0.05 * t - 4.975 * t * t)
    variance = (0.3 * alpha) ** 2 + 1 - alpha**2
    score = (0.8 * alpha * xp.tanh(0.8 * alpha * x / variance) - x) / variance
    return -0.5 * (0.1 + 19.9 * t) * (x + score)


def near(point: list[float], spread: float) -> Callable[[np.random.Generator, int], np.ndarray]:
    return lambda rng, n: np.array(point) * (1 + spread * rng.standard_normal((n, len(point))) * (np.arange(n) > 0)[:, None])


CASES = {
    "logistic with a beat": Case(beat, (0.0, 6.0), lambda rng, n: 1 / (1 + np.exp(-2 * rng.standard_normal((n, 2))))),
    "Lorenz": Case(lorenz, (0.0, 5.0), near([-8.0, 8.0, 27.0], 0.02)),
    "Arenstorf": Case(arenstorf, (0.0, 10.0), near([0.994, 0.0, 0.0, -2.00158510637908252240537862224], 1e-4)),
    "van der Pol, mu = 5": Case(van_der_pol, (0.0, 15.0), near([2.0, 0.1], 0.05)),
    "flow of a mixture": Case(mixture_flow, (1.0, 1e-3), lambda rng, n: rng.standard_normal((n, 2))),
}


class Run(NamedTuple):
    """One solve: ends (rows, d), mean calls a sample, seconds for the whole batch."""

    ends: np.ndarray
    calls: float
    seconds: float


def ours(method: str) -> Callable[[Case, np.ndarray, float], Run]:
    def solve(case: Case, x: np.ndarray, tol: float) -> Run:
        problem = sd.ODE(lambda x, t: case.f(torch, x, sd.expand_time(t, x)), case.interval)
        start = time.process_time()
        solution = sd.solve(problem, torch.as_tensor(x), method, rtol=tol, atol=tol, max_steps=1_000_000)
        return Run(solution.x.numpy(), float(solution.nfe.double().mean()), time.process_time() - start)

    return solve


def torchdiffeq_dopri5(case: Case, x: np.ndarray, tol: float) -> Run:
    calls = 0

    def drift(t: Tensor, x: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return case.f(torch, x, t)

    start = time.process_time()
    with torch.no_grad():
        ends = odeint(drift, torch.as_tensor(x), torch.tensor(case.interval, dtype=torch.float64), rtol=tol, atol=tol, method="dopri5")[-1]
    return Run(ends.numpy(), calls, time.process_time() - start)


def scipy_stacked(case: Case, x: np.ndarray, tol: float) -> Run:
    start = time.process_time()
    out = solve_ivp(lambda t, y: case.f(np, y.reshape(x.shape), t).ravel(), case.interval, x.ravel(), method="RK45", rtol=tol, atol=tol)
    return Run(out.y[:, -1].reshape(x.shape), out.nfev, time.process_time() - start)


def scipy_row_by_row(case: Case, x: np.ndarray, tol: float) -> Run:
    runs = [scipy_stacked(case, row, tol) for row in x[:ROW_BY_ROW]]
    return Run(np.stack([run.ends for run in runs]), float(np.mean([run.calls for run in runs])), float(np.mean([run.seconds for run in runs])) * len(x))


CONTENDERS: dict[str, Callable[[Case, np.ndarray, float], Run]] = {
    "rk45": ours("rk45"),
    "tsit5": ours("tsit5"),
    "dop853": ours("dop853"),
    "torchdiffeq dopri5": torchdiffeq_dopri5,
    "scipy RK45 by row": scipy_row_by_row,
    "scipy RK45 stacked": scipy_stacked,
}


def curve(contender: Callable[[Case, np.ndarray, float], Run], case: Case, x: np.ndarray, exact: np.ndarray) -> list[tuple[float, float, float]]:
    """(error, calls, seconds) at each tolerance."""
    points = []
    for tol in TOLERANCES:
        run = contender(case, x, tol)
        reference = exact[: len(run.ends)]
        points.append((float(np.sqrt(np.mean((run.ends - reference) ** 2) / np.mean(reference**2))), run.calls, run.seconds))
    return points


def at_error(points: list[tuple[float, float, float]], target: float) -> tuple[float, float]:
    """Calls and seconds where the error is ``target``: the least-squares line through the three nearest points, in logarithms."""
    error, calls, seconds = np.log(np.array(sorted(points, key=lambda point: abs(math.log(point[0] / target)))[:3])).T
    lines = (np.polynomial.polynomial.polyfit(error - math.log(target), cost, 1) for cost in (calls, seconds))
    return tuple(math.exp(line[0]) for line in lines)  # type: ignore[return-value]


def measure(name: str, batch: int) -> list[dict[str, object]]:
    case = CASES[name]
    x = case.start(np.random.default_rng(0), batch)
    exact = ours("dop853")(case, x, 1e-13).ends
    curves = {}
    for contender, solve in CONTENDERS.items():
        solve(case, x, 1e-3)
        curves[contender] = curve(solve, case, x, exact)
    rows = []
    for target in TARGETS:
        costs = {contender: at_error(points, target) for contender, points in curves.items()}
        print(f"\n{name}, batch {batch}, error {target:g}\n  {'':20}{'calls':>8}{'ms':>10}{'calls / rk45':>14}{'time / rk45':>13}")
        for contender, (calls, seconds) in costs.items():
            print(f"  {contender:20}{calls:8.0f}{1e3 * seconds:10.1f}{calls / costs['rk45'][0]:14.2f}{seconds / costs['rk45'][1]:13.2f}", flush=True)
            rows.append({"problem": name, "batch": batch, "error": target, "contender": contender, "calls": calls, "seconds": seconds})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 64, 1000])
    parser.add_argument("--problems", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = [row for name in arguments.problems for batch in arguments.batches for row in measure(name, batch)]
    print("\ngeometric mean over all of these, relative to rk45")
    for contender in CONTENDERS:
        ratios = [
            [row[cost] / base[cost] for cost in ("calls", "seconds")]  # type: ignore[operator]
            for row in rows
            for base in rows
            if row["contender"] == contender and base["contender"] == "rk45" and all(row[key] == base[key] for key in ("problem", "batch", "error"))
        ]
        calls, seconds = np.exp(np.mean(np.log(ratios), axis=0))
        print(f"  {contender:20} calls {calls:5.2f}   time {seconds:6.2f}")
    if arguments.out:
        machine = {"processor": platform.processor() or platform.machine(), "torch": torch.__version__, "numpy": np.__version__}
        arguments.out.write_text(json.dumps({"machine": machine, "results": rows}, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
