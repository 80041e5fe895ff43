"""Every conditioning method sits the posterior exam:  python benchmarks/posterior_exam.py [--quick] [--methods dps pigdm] [--out exam.json]

Priors with exact scores, so that what is measured is the method and not a network: a correlated Gaussian in four dimensions and a mixture of
three Gaussians in the plane.  Operators: half of the coordinates, a blur, fewer measurements than unknowns, more measurements than unknowns.
Noise: 0.05, 0.3, 1.  For each method the median and the worst case of what ``sdesolve.exam.posterior_exam`` measures; 0.9 is right for the
coverage, 1 for the residual.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

import sdesolve as sd
from sdesolve import exam
from sdesolve_gen.conditioning import CONDITIONINGS, Measurement, made, operators, twist

GAUSSIAN = exam.Gaussian([0.5, -0.3, 0.2, 0.0], cov=[[1.0, 0.5, 0.2, 0.0], [0.5, 0.8, 0.3, 0.1], [0.2, 0.3, 0.6, 0.2], [0.0, 0.1, 0.2, 0.5]])
LAWS = {"gaussian": GAUSSIAN, "mixture": exam.mixture_2d()}
NOISES = (0.05, 0.3, 1.0)
PROCESS = sd.VPSDE()
EPS = 1e-5  # at VP's usual 1e-3 the denoiser would take 0.01 of noise out of posteriors that are 0.02 wide


def matrices(d: int) -> dict[str, Tensor]:
    """The four operators on d coordinates."""
    one = torch.eye(d, dtype=torch.float64)
    ring = 0.5 * one + 0.25 * (one.roll(1, 0) + one.roll(-1, 0))
    mixing = torch.randn(d + 2, d, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return {"mask": one[: d // 2], "blur": ring + 0.1 * one, "wide": mixing[: d // 2], "tall": mixing}


def conditioned(name: str, method: str, steps: int, **options: object) -> Callable[[exam.Question], Tensor]:
    """A conditioning method with a solver, as one who answers questions."""

    def answer(q: exam.Question) -> Tensor:
        d = q.matrix.shape[1]
        score = sd.as_score(q.law.score(PROCESS), PROCESS, predicts="score")
        c = CONDITIONINGS[name](score, Measurement(operators.Matrix((d,), q.matrix), q.rows(), q.noise_std), **options)
        x = PROCESS.prior((len(q.y) * q.draws, d), seed=q.seed, dtype=torch.float64)
        stepper = (c.method or made)(method)
        sol = sd.solve(PROCESS.reverse(c.score, eps=EPS), x, stepper, steps=steps, grid="log_snr", seed=q.seed, denoise=True, constraint=c.constraint)
        return sol.x.reshape(len(q.y), q.draws, d)

    return answer


def particles(steps: int, count: int = 2000) -> Callable[[exam.Question], Tensor]:
    def answer(q: exam.Question) -> Tensor:
        d, k = q.matrix.shape[1], max(count, q.draws)
        parts = []
        for i, y in enumerate(q.y):  # a row at a time: so many particles of all rows would not fit
            reward = twist(Measurement(operators.Matrix((d,), q.matrix), y[None], q.noise_std), PROCESS, k)
            x = PROCESS.prior((1, k, d), seed=q.seed + i, dtype=torch.float64)
            parts.append(sd.smc(PROCESS.reverse(q.law.score(PROCESS), eps=EPS), x, reward, steps=steps, seed=q.seed + i).draw(q.draws))
        return torch.cat(parts)

    return answer


def contenders(steps: int) -> dict[str, Callable[[exam.Question], Tensor]]:
    """What is examined, by name: a method of conditioning and the solver that its paper has for it, or that suits it."""
    solvers = {"projection": "pc", "repaint": "ancestral", "ddrm": "ddim"}
    return {**{name: conditioned(name, solvers.get(name, "dpmpp_2m_sde"), steps) for name in CONDITIONINGS}, "smc": particles(steps)}


def sit(answer: Callable[[exam.Question], Tensor], quick: bool, bar: tqdm) -> list[dict[str, object]]:
    rows = []
    for law_name, law in LAWS.items():
        for matrix_name, matrix in matrices(law.event[0]).items():
            for noise_std in NOISES:
                start = time.perf_counter()
                try:
                    mark = exam.posterior_exam(answer, law, matrix, noise_std, draws=2000 if quick else 20_000, problems=0 if quick else 200)._asdict()
                except (ValueError, TypeError, RuntimeError) as error:  # an operator that the method is not made for, or an answer that is not finite
                    mark = {"refused": str(error).splitlines()[0]}
                rows.append({"law": law_name, "operator": matrix_name, "noise_std": noise_std, **mark, "seconds": time.perf_counter() - start})
                bar.update()
    return rows


def line(name: str, rows: list[dict]) -> str:
    done = [row for row in rows if "refused" not in row]
    if not done:
        return f"{name:12s} refused all: {rows[0]['refused']}"

    def cell(key: str, worst: Callable) -> str:
        values = [row[key] for row in done]
        return f"{statistics.median(values):8.3f} {worst(values):8.3f}"

    coverages = [row["coverage"] for row in done]
    ranks = [row["rank_p"] for row in done if row["rank_p"] == row["rank_p"]]
    uniform = f"{sum(p > 0.01 for p in ranks)}/{len(ranks)}" if ranks else "-"
    errors = f"{cell('mean_error', max)} {cell('covariance_error', max)}    {min(coverages):.2f} .. {max(coverages):.2f}"
    residual = cell("residual", lambda values: max(values, key=lambda r: abs(r - 1)))
    return f"{name:12s} {errors}   {residual}   {uniform:>6s}  {len(rows) - len(done):3d}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tenth of the draws, and no ranks")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--methods", nargs="*")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    chosen = {name: answer for name, answer in contenders(args.steps).items() if not args.methods or name in args.methods}
    table: dict[str, list[dict]] = {}
    print(f"{'':12s} {'mean error':>17s} {'covariance error':>17s}    {'coverage':>12s}   {'residual':>17s}   ranks  refused")
    print(f"{'':12s} {'median':>8s} {'worst':>8s} {'median':>8s} {'worst':>8s}    {'least .. most':>12s}   {'median':>8s} {'worst':>8s}   p>.01")
    with tqdm(total=len(chosen) * len(LAWS) * 4 * len(NOISES), unit="exam", delay=1) as bar:
        for name, answer in chosen.items():
            table[name] = sit(answer, args.quick, bar)
            bar.write(line(name, table[name]))
            if args.out:
                args.out.write_text(json.dumps(table, indent=1))


if __name__ == "__main__":
    main()
