"""Error against network calls: adaptive SDE methods, fixed steps, and torchsde at a tolerance, on targets whose law is known.

    python benchmarks/sde_work_precision.py runs/sde_work_precision [--samples 20000]

The reverse VP SDE with an exact score, to N(0.5, 0.3^2) in one dimension (error of the standard deviation, with its standard error)
and to a mixture in two (energy distance to the exact law, with its standard error).  All start from the exact law at T.  Writes a table,
``sde_work_precision.json`` and a picture.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

import sdesolve as sd
from sdesolve import exam

PROCESS = sd.VPSDE()
TARGETS = {"gaussian": exam.Gaussian(mean=[0.5], std=[0.3]), "mixture": exam.mixture_2d()}
TOLERANCES = (0.2, 0.1, 0.05, 0.02, 0.01, 0.005)
TICKS = (20, 50, 100, 200, 500)
STEPS = (16, 32, 64, 128, 256, 512)
CONTENDERS: dict[str, list[dict[str, Any]]] = {
    "adaptive": [{"rtol": tol, "atol": tol} for tol in TOLERANCES],
    "ggf": [{"rtol": tol, "atol": tol} for tol in TOLERANCES],
    "euler_maruyama": [{"steps": steps} for steps in STEPS],
    "heun_sde": [{"steps": steps} for steps in STEPS[:-1]],
    "torchsde:srk": [{"rtol": tol, "atol": tol} for tol in TOLERANCES[:4]],
}


def error(target: str, x: Tensor) -> tuple[float, float]:
    """How far samples are from the exact law at the end, and the standard error of that."""
    law = TARGETS[target].perturbed(PROCESS, PROCESS.eps)
    if target == "mixture":
        return exam.energy_distance(x, law)[:2]
    std = float(law.variance[0]) ** 0.5
    return abs(float(x.std()) - std), std / (2 * len(x)) ** 0.5


def measured(target: str, method: str, how: dict[str, Any], samples: int) -> dict[str, Any]:
    law = TARGETS[target]
    x = law.perturbed(PROCESS, PROCESS.T).sample(samples, seed=1, dtype=torch.float32)
    start = time.perf_counter()
    solution = sd.solve(PROCESS.reverse(law.score(PROCESS)), x, method, seed=0, **how)
    seconds = time.perf_counter() - start
    value, standard_error = error(target, solution.x)
    rejected, accepted = (torch.as_tensor(solution.stats[key]).double().sum() for key in ("rejected", "accepted"))
    return {
        "target": target,
        "method": method,
        **how,
        "nfe": float(torch.as_tensor(solution.nfe).double().mean()),
        "error": value,
        "standard_error": standard_error,
        "rejected": float(rejected / (rejected + accepted)),
        "failed": int((~solution.ok()).sum()),
        "seconds": round(seconds, 2),
    }


def picture(rows: list[dict[str, Any]], path: Path) -> None:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(TARGETS), figsize=(11, 4.5))
    for axis, (target, label) in zip(axes, {"gaussian": "error of the standard deviation", "mixture": "energy distance"}.items(), strict=True):
        for method in CONTENDERS:
            points = [row for row in rows if (row["target"], row["method"]) == (target, method)]
            axis.errorbar([p["nfe"] for p in points], [p["error"] for p in points], [p["standard_error"] for p in points], marker="o", ms=4, capsize=2, label=method)
        floor = min(row["standard_error"] for row in rows if row["target"] == target) / 3  # what lies below is chance
        axis.set(xscale="log", yscale="log", xlabel="network calls a sample", ylabel=label, title=target)
        axis.set_ylim(bottom=floor)
        axis.set_xticks(TICKS, [str(tick) for tick in TICKS])
        axis.minorticks_off()
        axis.grid(alpha=0.3, which="both")
    axes[0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--samples", type=int, default=20_000)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    runs = [(target, method, how) for target in TARGETS for method, hows in CONTENDERS.items() for how in hows]
    rows = [measured(*run, arguments.samples) for run in tqdm(runs, unit="solve")]
    machine = {"processor": platform.machine(), "threads": torch.get_num_threads(), "torch": torch.__version__, "samples": arguments.samples}
    (arguments.out / "sde_work_precision.json").write_text(json.dumps({"machine": machine, "rows": rows}, indent=2) + "\n")
    picture(rows, arguments.out / "sde_work_precision.png")
    print(f"{'target':<10}{'method':<16}{'setting':<16}{'NFE':>8}{'error':>10}{'s.e.':>9}{'rejected':>10}{'seconds':>9}")
    for row in rows:
        setting = f"steps {row['steps']}" if "steps" in row else f"tol {row['rtol']}"
        print(f"{row['target']:<10}{row['method']:<16}{setting:<16}{row['nfe']:>8.1f}{row['error']:>10.5f}{row['standard_error']:>9.5f}{row['rejected']:>10.2f}{row['seconds']:>9.1f}")


if __name__ == "__main__":
    main()
