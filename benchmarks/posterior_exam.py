"""Every conditioning method sits the posterior exam:  python benchmarks/posterior_exam.py [--quick] [--noiseless] [--methods dps pigdm] [--out exam.json]

Priors with exact scores, so that what is measured is the method and not a network: a correlated Gaussian in four dimensions and a mixture of
three Gaussians in the plane.  Operators: half of the coordinates, a blur, fewer measurements than unknowns, more measurements than unknowns.
Noise: 0.05, 0.3, 1; or none, with --noiseless, on half of the coordinates.
For each method the median and the worst case of what ``sdesolve.exam.posterior_exam`` measures; 0.9 is right for the
coverage, 1 for the residual.  Then every case of the methods that claim to be exact, beside what they must keep: mean within 2 % of the
posterior's spread, covariance within 5 %, the noise of y - A x over all problems within 1 %, uniform ranks.
"""

from __future__ import annotations

import argparse
import itertools
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
from sdesolve.files import atomic
from sdesolve_gen.conditioning import CONDITIONINGS, Measurement, made, operators, twist

GAUSSIAN = exam.Gaussian([0.5, -0.3, 0.2, 0.0], cov=[[1.0, 0.5, 0.2, 0.0], [0.5, 0.8, 0.3, 0.1], [0.2, 0.3, 0.6, 0.2], [0.0, 0.1, 0.2, 0.5]])
LAWS = {"gaussian": GAUSSIAN, "mixture": exam.mixture_2d()}
NOISES = (0.05, 0.3, 1.0)
PROCESS = sd.VPSDE()
EXACT = {"smc": ("gaussian", "mixture"), "mmps": ("gaussian",)}
"""Methods that claim the posterior, and the laws for which they do."""
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


def particles(steps: int) -> Callable[[exam.Question], Tensor]:
    """Weighted particles: four for each draw, 500 at least for each problem, and the particles of all problems in one batch."""

    def answer(q: exam.Question) -> Tensor:
        d, k = q.matrix.shape[1], max(500, 4 * q.draws)
        reward = twist(Measurement(operators.Matrix((d,), q.matrix), q.y, q.noise_std), PROCESS, k)
        x = PROCESS.prior((len(q.y), k, d), seed=q.seed, dtype=torch.float64)
        return sd.smc(PROCESS.reverse(q.law.score(PROCESS), eps=EPS), x, reward, steps=steps, seed=q.seed).draw(q.draws)

    return answer


def contenders(steps: int) -> dict[str, Callable[[exam.Question], Tensor]]:
    """What is examined, by name: a method of conditioning and the solver that its paper has for it, or that suits it."""
    solvers = {"projection": "pc", "repaint": "ancestral", "ddrm": "ddim"}
    return {"smc": particles(steps), **{name: conditioned(name, solvers.get(name, "dpmpp_2m_sde"), steps) for name in CONDITIONINGS}}


def sit(answer: Callable[[exam.Question], Tensor], quick: bool, law: str, operator: str, noise_std: float) -> dict[str, object]:
    """One case."""
    start, given = time.perf_counter(), LAWS[law]
    try:
        matrix = matrices(given.event[0])[operator]
        mark = exam.posterior_exam(answer, given, matrix, noise_std, draws=2000 if quick else 20_000, problems=0 if quick else 200)._asdict()
    except (ValueError, TypeError, RuntimeError) as error:  # an operator that the method is not made for, or an answer that is not finite
        mark = {"refused": str(error).splitlines()[0]}
    return {"law": law, "operator": operator, "noise_std": noise_std, **mark, "seconds": time.perf_counter() - start}


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


def kept(row: dict) -> bool:
    """Whether a case is within the bounds of an exact method."""
    return row["mean_error"] < 0.02 and row["covariance_error"] < 0.05 and abs(row["noise"] - 1) < 0.01 and row["rank_p"] > 0.01


def cases(table: dict[str, list[dict]]) -> str:
    """Each case of the exact methods, as rows of Markdown: four figures a law, bold where they are out of bounds."""
    lines = ["| method | operator | noise | " + " | ".join(f"{law}: mean | covariance | noise of y - A x | ranks, p" for law in LAWS) + " |", "|---" * (3 + 4 * len(LAWS)) + "|"]
    for name in (name for name in table if name in EXACT):
        rows = {(row["law"], row["operator"], row["noise_std"]): row for row in table[name] if row["law"] in EXACT[name] and "refused" not in row}
        for operator, noise in dict.fromkeys((operator, noise) for _, operator, noise in rows):
            cells = []
            for row in (rows.get((law, operator, noise)) for law in LAWS):
                figures = f"{row['mean_error']:.3f} | {row['covariance_error']:.3f} | {row['noise']:.3f} | {row['rank_p']:.2f}" if row else " | | | "
                cells.append(figures if row is None or kept(row) else f"**out:** {figures}")
            lines.append(f"| `{name}` | {operator} | {noise} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tenth of the draws, and no ranks")
    parser.add_argument("--noiseless", action="store_true", help="y = A x exactly, half of the coordinates: the posterior lives on the others")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--methods", nargs="*")
    parser.add_argument("--out", type=Path, help="a JSON file, written after every case, from which the same command goes on")
    args = parser.parse_args()
    chosen = {name: answer for name, answer in contenders(args.steps).items() if not args.methods or name in args.methods}
    table: dict[str, list[dict]] = json.loads(args.out.read_text()) if args.out and args.out.exists() else {}
    wanted = list(itertools.product(LAWS, ["mask"], [0.0])) if args.noiseless else list(itertools.product(LAWS, matrices(4), NOISES))
    print(f"{'':12s} {'mean error':>17s} {'covariance error':>17s}    {'coverage':>12s}   {'residual':>17s}   ranks  refused")
    print(f"{'':12s} {'median':>8s} {'worst':>8s} {'median':>8s} {'worst':>8s}    {'least .. most':>12s}   {'median':>8s} {'worst':>8s}   p>.01")
    with tqdm(total=len(chosen) * len(wanted), unit="exam", delay=1) as bar:
        for name, answer in chosen.items():
            rows = table.setdefault(name, [])
            bar.update(len(rows))
            for case in wanted[len(rows) :]:
                rows.append(sit(answer, args.quick, *case))
                if args.out:
                    with atomic(args.out) as path:
                        path.write_text(json.dumps(table, indent=1))
                bar.update()
            bar.write(line(name, rows))
    if not args.quick and not args.noiseless:
        print(f"\n{cases(table)}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
