"""What a gradient through an ODE costs: time, memory, and its error, of each way to have it; torchdiffeq beside.

    python benchmarks/gradients.py [--steps 400] [--repeats 5] [--json FILE]

A neural ODE of 2 hidden layers of 128 in 64 dimensions, batch 256, float32, by rk4 on a grid.  Each way runs in a process of its own; its
memory is the growth of the peak resident set over the one of a solve without a gradient.  The error is that of the parameters'
gradient against backpropagation in float64, relative.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

import sdesolve as sd

WAYS = ("none", "backprop", "checkpoint", "adjoint", "torchdiffeq backprop", "torchdiffeq adjoint")


class Drift(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(64, 128), nn.Tanh(), nn.Linear(128, 128), nn.Tanh(), nn.Linear(128, 64))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.net(x) * torch.cos(t)


def end(way: str, drift: Drift, x: Tensor, steps: int) -> Tensor:
    """The state at t = 1, by one of the ways."""
    if not way.startswith("torchdiffeq"):
        return sd.solve(sd.ODE(drift), x, "rk4", steps=steps, gradient=None if way == "none" else way).x
    import torchdiffeq

    class Turned(nn.Module):  # torchdiffeq's functions are of (t, x)
        def __init__(self) -> None:
            super().__init__()
            self.drift = drift

        def forward(self, t: Tensor, x: Tensor) -> Tensor:
            out: Tensor = self.drift(x, t)
            return out

    solver: Callable[..., Tensor] = torchdiffeq.odeint if way.endswith("backprop") else torchdiffeq.odeint_adjoint
    return solver(Turned(), x, torch.tensor([0.0, 1.0], dtype=x.dtype), method="rk4", options={"step_size": 1 / steps})[-1]


def gradient(way: str, steps: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """The gradient by all parameters, in one vector."""
    drift = Drift().to(dtype)
    x = torch.randn(256, 64, generator=torch.Generator().manual_seed(1)).to(dtype)
    out = end(way, drift, x, steps)
    if way == "none":
        return out
    out.square().mean().backward()
    return torch.cat([p.grad.flatten() for p in drift.parameters() if p.grad is not None])


def measure(way: str, steps: int, repeats: int) -> dict[str, float]:
    """Seconds and bytes of a way, in this process."""
    gradient(way, 2)
    base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        found = gradient(way, steps)
        seconds.append(time.perf_counter() - start)
    result = {"seconds": statistics.median(seconds), "MiB": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - base) / 1024}
    if way != "none":
        exact = gradient("backprop", steps, torch.float64)
        result["error"] = float((found - exact).norm() / exact.norm())
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", help="file to write the figures to")
    parser.add_argument("--way", choices=WAYS, help="measure one way in this process and print its JSON")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.way:
        print(json.dumps(measure(args.way, args.steps, args.repeats)))
        return
    rows = {}
    for way in WAYS:
        run = [sys.executable, __file__, "--way", way, "--steps", str(args.steps), "--repeats", str(args.repeats)]
        rows[way] = json.loads(subprocess.run(run, capture_output=True, text=True, check=True).stdout)
    none = rows["none"]
    print(f"{args.steps} steps of rk4, {platform.processor() or platform.machine()}, one thread, torch {torch.__version__}")
    print(f"{'way':<22}{'seconds':>9}{'times none':>12}{'MiB':>8}{'error':>10}")
    for way, row in rows.items():
        error = f"{row['error']:.1e}" if "error" in row else ""
        print(f"{way:<22}{row['seconds']:>9.2f}{row['seconds'] / none['seconds']:>12.1f}{max(0.0, row['MiB'] - none['MiB']):>8.0f}{error:>10}")
    if args.json:
        with open(args.json, "w", encoding="utf-8") as file:
            json.dump({"steps": args.steps, "torch": torch.__version__, "ways": rows}, file, indent=1)


if __name__ == "__main__":
    main()
