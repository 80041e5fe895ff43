"""DPS and PiGDM here, in azula and in deepinv: the same model, measurement, start and number of network calls.

    pip install --no-deps azula==0.11.1 einops==0.8.2 deepinv==0.5.0 natsort h5py torchvision
    python benchmarks/posterior_peers.py mnist/test.parquet [--count 16] [--calls 50] [--rounds 3] [--device cuda] [--out peers.json]

Each package's method with its own defaults, DPS of the others also with a strength that was chosen on 8 images and 50 calls, on the embedded model.  Ours are those of
``m.restore``, which knows the spread of the data and lets y pull where the noise does not hide them; "everywhere" is without the latter.  The peak signal-to-noise ratio of
one posterior sample of each image, what is left of y - A x beside the noise, the calls that were counted, and the time, the processor's on one thread or, on a GPU, the
clock's: the median of rounds in which each has its turn, in alternating order.  A package that is not there is left out, and named.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import sdesolve as sd
import sdesolve_gen as gen
from sdesolve_gen.conditioning import CONDITIONINGS, Measurement, Operator
from sdesolve_gen.conditioning.operators import make
from sdesolve_gen.data import read_data, scaled
from sdesolve_gen.restoration import HIDDEN

OPERATORS: dict[str, tuple[str, dict[str, Any]]] = {
    "left half": ("box", {"x0": 14, "y0": 0, "x1": 28, "y1": 28}),
    "4 times smaller": ("downsample", {"factor": 4}),
}
NOISE = 0.05


@dataclass
class Task:
    """One measurement of some images, and the model with its calls counted."""

    model: gen.Model
    operator: Operator
    images: Tensor
    calls: int
    seen: int = 0
    vjps: int | None = None
    y: Tensor = field(init=False)

    def __post_init__(self) -> None:
        clean = self.operator.forward(self.images)
        self.y = clean + NOISE * torch.randn(clean.shape, generator=torch.Generator().manual_seed(1)).to(clean)

    @property
    def start(self) -> Tensor:
        return self.model.process.prior(self.images.shape, seed=0, device=self.model.device)

    def denoised(self, x: Tensor, t: Tensor) -> Tensor:
        """E[x_0 | x_t = x], for one time of all rows, which stays on its device."""
        self.seen += 1
        return self.model.score.denoise(x, t.double().flatten()[:1].clamp(self.model.process.eps, self.model.process.T).expand(len(x)))


def ours(task: Task, method: str, everywhere: bool = False) -> Tensor:
    """As ``m.restore(y, operator, NOISE, method, sampler="ddim", eta=1.0)`` has it, from the start that all have."""
    options: dict[str, Any] = {"prior_std": task.model.data_std} if method == "pigdm" else {}
    if not everywhere:
        options["within"] = (0.0, HIDDEN * task.model.moments.widest)  # type: ignore[union-attr]
    c = CONDITIONINGS[method](task.model.score, Measurement(task.operator, task.y, NOISE), **options)
    sol = sd.solve(task.model.process.reverse(c.score), task.start, "ddim", eta=1.0, steps=task.calls - 1, seed=0, denoise=True)
    task.seen, task.vjps = int(sol.nfe), int(sol.stats["vjps"])
    return sol.x


def azula(task: Task, method: str, zeta: float = 1.0) -> Tensor:
    from azula.denoise import Denoiser, DiracPosterior
    from azula.guidance.dps import DPSSampler
    from azula.guidance.pgdm import PGDMSampler

    process = task.model.process

    def schedule(t: Tensor) -> tuple[Tensor, Tensor]:
        return process.alpha(span(t)).to(t), process.sigma(span(t)).to(t)

    def span(t: Tensor) -> Tensor:
        return process.eps + (process.T - process.eps) * t.double()

    class Told(Denoiser):
        def __init__(self) -> None:
            super().__init__()
            self.schedule = schedule

        def forward(self, x_t: Tensor, t: Tensor, **kwargs: Any) -> DiracPosterior:
            return DiracPosterior(mean=task.denoised(x_t, span(t)))

    torch.manual_seed(0)
    forward, pinv = task.operator.forward, task.operator.pinv
    options: dict[str, Any] = {"steps": task.calls, "silent": True}
    sampler = DPSSampler(Told(), task.y, forward, zeta=zeta, **options) if method == "dps" else PGDMSampler(Told(), task.y, forward, pinv, eta=1.0, **options)
    return sampler(task.start)


def deepinv(task: Task, method: str, weight: float = 1.0) -> Tensor:
    dinv, process, device = _deepinv(), task.model.process, task.model.device
    one = task.operator.forward(torch.ones(1, *task.operator.event, device=device))  # deepinv's pixels lie between 0 and 1
    physics = dinv.physics.LinearPhysics(A=task.operator.forward, A_adjoint=task.operator.adjoint, noise_model=dinv.physics.GaussianNoise(NOISE / 2))

    class Told(dinv.models.base.Denoiser):
        def forward(self, x: Tensor, sigma: Tensor, **kwargs: Any) -> Tensor:
            t = process.log_snr_inverse(-2 * (2 * torch.as_tensor(sigma, device=x.device).double().flatten()[:1]).clamp_min(1e-3).log())
            return (task.denoised(process.alpha(t).to(x) * (2 * x - 1), t) + 1) / 2

    sde = dinv.sampling.VariancePreservingDiffusion(dtype=torch.float64, device=device)
    times = torch.linspace(1, 0.0, task.calls + 1, dtype=torch.float64, device=device)
    solver = dinv.sampling.DDPMSolver(timesteps=times, rng=torch.Generator(device).manual_seed(0))
    data = dinv.sampling.DPSDataFidelity(weight=weight, clip=[-1.0, 1.0], guidance="norm") if method == "dps" else dinv.sampling.PiGDMDataFidelity()
    sampler = dinv.sampling.PosteriorDiffusion(data, Told(), sde, solver)
    return 2 * sampler((task.y + one) / 2, physics, x_init=task.start.double()).float() - 1


def _deepinv() -> Any:
    """The package; a torchvision of another build than torch's lacks two operators, which nothing here calls, and fails without their names."""
    try:
        import deepinv as dinv
    except RuntimeError:
        library = torch.library.Library("torchvision", "FRAGMENT")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _LIBRARIES.append(library)
        import deepinv as dinv
    return dinv


_LIBRARIES: list[Any] = []
CONTENDERS: list[tuple[str, str, Callable[[Task, str], Tensor]]] = [
    ("dps", "sdesolve", ours),
    ("dps", "sdesolve, everywhere", partial(ours, everywhere=True)),
    ("dps", "azula", azula),
    ("dps", "azula, zeta=12", partial(azula, zeta=12.0)),
    ("dps", "deepinv", deepinv),
    ("dps", "deepinv, weight=96", partial(deepinv, weight=96.0)),
    ("pigdm", "sdesolve", ours),
    ("pigdm", "sdesolve, everywhere", partial(ours, everywhere=True)),
    ("pigdm", "azula", azula),
    ("pigdm", "deepinv", deepinv),
]


def turns(tasks: dict[tuple[str, str], Task], runs: dict[tuple[str, str], Callable[[Task, str], Tensor]], rounds: int) -> dict[tuple[str, str], tuple[Tensor, float]]:
    """What each made, and its median seconds over rounds in which each has its turn."""
    made, seconds = {}, {who: [] for who in runs}  # type: ignore[var-annotated]
    for i in range(rounds):
        for who, run in list(runs.items())[:: 1 if i % 2 == 0 else -1]:  # nobody always after the same one
            clock = time.process_time if tasks[who].images.device.type == "cpu" else time.perf_counter
            tasks[who].seen, start = 0, clock()
            made[who] = run(tasks[who], who[0]).cpu()  # which waits for the device
            seconds[who].append(clock() - start)
    return {who: (made[who], statistics.median(spent)) for who, spent in seconds.items()}


def measured(task: Task, x: Tensor, seconds: float) -> dict[str, float]:
    x = x.to(task.images)
    error = (x.clamp(-1, 1) - task.images).square().flatten(1).mean(1)
    psnr = 10 * torch.log10(4 / error)
    return {
        "psnr": float(psnr.mean()),
        "psnr_error": float(psnr.std() / math.sqrt(len(x))),
        "residual": float((task.y - task.operator.forward(x)).square().mean().sqrt() / NOISE),
        "calls": task.seen,
        "vjps": task.seen if task.vjps is None else task.vjps,
        "seconds_per_image": seconds / len(x),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path, help="a parquet file of images")
    parser.add_argument("--count", type=int, default=16)
    parser.add_argument("--calls", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=3, help="of timing")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, help="where the figures go, as JSON")
    arguments = parser.parse_args()
    model, rows, left_out = gen.load("mnist", arguments.device), [], {}
    images = scaled(read_data(arguments.images).images[: arguments.count]).to(model.device)
    print("| measurement | method | package | PSNR, dB | residual / noise | calls, vjps | s an image | time |\n|---|---|---|---|---|---|---|---|")
    for label, (name, options) in OPERATORS.items():
        operator = make(name, model.shape, **options)
        runs: dict[tuple[str, str], Callable[[Task, str], Tensor]] = {}
        for method, package, run in CONTENDERS:
            try:
                run(Task(model, operator, images[:1], 2), method)  # imports and first allocations are not a sampler's
                runs[method, package] = run
            except ImportError as error:
                left_out[package] = str(error)
        tasks = {who: Task(model, operator, images, arguments.calls) for who in runs}
        for (method, package), (x, seconds) in turns(tasks, runs, arguments.rounds).items():
            row = {"measurement": label, "method": method, "package": package, **measured(tasks[method, package], x, seconds)}
            rows.append(row)
            ours_took = next(other["seconds_per_image"] for other in rows if (other["measurement"], other["method"]) == (label, method))
            print(
                f"| {label} | {method} | {package} | {row['psnr']:.2f} ± {row['psnr_error']:.2f} | {row['residual']:.2f} | {row['calls']}, {row['vjps']} "
                f"| {row['seconds_per_image']:.3f} | {row['seconds_per_image'] / ours_took:.2f} |",
                flush=True,
            )
    for package, why in left_out.items():
        print(f"{package} was left out: {why}")
    if arguments.out:
        arguments.out.write_text(json.dumps({"noise": NOISE, "images": arguments.count, "device": arguments.device, "rows": rows, "left_out": left_out}, indent=2) + "\n")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
