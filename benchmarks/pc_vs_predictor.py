"""Is a corrector worth its calls on trained models?  Predictor-only with 2N steps against predictor-corrector with N: the same number of network calls.

    python benchmarks/pc_vs_predictor.py ../shared/data/fashion_mnist runs/pc --models runs/ve runs/vp --features fashion_mnist --device cuda

The comparison of Song et al. 2021, table 1 (P2000 against PC1000), with the published predictor-corrector: a step of the predictor, then a Langevin step, and the
denoiser at the end of both.  The paper searched the corrector's signal-to-noise ratio for each SDE and predictor, so every ratio asked for is a row of its own: what
one is chosen for on these rows is no independent evidence.  Predictors: the reverse diffusion sampler, and Euler's method along the probability flow ("euler").

FID and FID_infinity to the training set by the features that come with the package, with jackknife standard errors, the mean confidence of their classifier in its
first choice, and the network calls as they were counted.  "gain" is FID_infinity of the predictor alone less that of the row, with its standard error, positive where the
corrector helps.  The last row is as many images of the test set.  Prints each row when it is done, and writes ``pc_vs_predictor.json`` after each.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

import sdesolve as sd
import sdesolve_gen as gen
from sdesolve.files import atomic
from sdesolve_gen.data import read_data
from sdesolve_gen.evaluation.features import OWN, Features, make_features
from sdesolve_gen.evaluation.figure import Figure, of_mean
from sdesolve_gen.evaluation.frechet import Gaussian, Moments, fid, grouped
from sdesolve_gen.images import to_uint8

PREDICTORS = ("reverse_diffusion", "euler")
PART = 1000  # images of the data at a time


class Sampler(NamedTuple):
    """A predictor, its steps, and the corrector's ratio; None for no corrector."""

    predictor: str
    steps: int
    snr: float | None

    @property
    def options(self) -> dict[str, Any]:
        """Of ``Model.draw``."""
        if self.snr is None:
            return {"method": self.predictor, "steps": self.steps}
        return {"method": "pc", "predictor": self.predictor, "corrector": "langevin", "snr": self.snr, "steps": self.steps}


def samplers(predictors: list[str], steps: list[int], snrs: list[float]) -> Iterator[Sampler]:
    """Each predictor alone with 2N steps, and after it that with a corrector, N steps, for every ratio."""
    for predictor in predictors:
        for n in steps:
            yield Sampler(predictor, 2 * n, None)
            yield from (Sampler(predictor, n, snr) for snr in snrs)


def drawn(model: gen.Model, sampler: Sampler, n: int, batch_size: int, seed: int) -> tuple[Tensor, dict[str, Any]]:
    """(n, C, H, W) bytes on the host, and what they cost."""
    start = time.perf_counter()
    samples = model.draw(n, seed=seed, batch_size=batch_size, progress=True, **sampler.options)
    cost = {"nfe": int(samples.nfe.max()), "seconds": round(time.perf_counter() - start, 1), "failed": int((samples.status != "ok").sum())}
    return to_uint8(samples.images, model.data_range).cpu(), cost


def judged(judge: Features, images: Tensor, reference: Gaussian) -> dict[str, Figure]:
    """fid, fid_infinity and confidence of bytes (n, C, H, W)."""
    said = [judge(part) for part in images.split(PART)]
    confidence = torch.cat([part["probabilities"] for part in said]).amax(1).tolist()
    return {**fid(grouped(torch.cat([part["features"] for part in said])), reference), "confidence": of_mean(confidence)}


def gain(alone: dict[str, Any], row: dict[str, Any]) -> dict[str, float]:
    """How much nearer the row is than the predictor alone, by FID_infinity where the images suffice for it, of two rows' figures."""
    name = "fid_infinity" if "fid_infinity" in alone else "fid"
    a, b = alone[name], row[name]
    return {"value": a.value - b.value, "standard_error": math.hypot(a.standard_error, b.standard_error)}


def compared(folder: str, judge: Features, reference: Gaussian, device: str, plan: list[Sampler], n: int, batch_size: int, seed: int) -> Iterator[dict[str, Any]]:
    """A row a sampler, of one model."""
    model = gen.load(folder, device)
    of = {"model": model.card["name"], "process": repr(model.process), "sha256": model.card.get("sha256")}
    alone: dict[str, Figure] = {}
    for sampler in plan:
        images, cost = drawn(model, sampler, n, batch_size, seed)
        found = judged(judge, images, reference)
        if sampler.snr is None:
            alone = found
        row = {**of, **sampler._asdict(), **cost, "figures": {name: figure._asdict() for name, figure in found.items()}}
        yield row if sampler.snr is None else {**row, "gain": gain(alone, found)}


HEAD = f"{'model':<16}{'predictor':<19}{'steps':>6}{'snr':>7}{'NFE':>6}{'FID':>18}{'FID_infinity':>18}{'gain':>18}{'confidence':>17}{'failed':>7}{'s':>8}"


def line(row: dict[str, Any]) -> str:
    """One row of the table."""
    f = row["figures"]
    snr = "-" if row["snr"] is None else f"{row['snr']:g}"
    measured = _pair(f["fid"]) + _pair(f.get("fid_infinity")) + (_pair(row["gain"]) if "gain" in row else " " * 18)
    return (
        f"{row['model'][:15]:<16}{row['predictor']:<19}{row['steps'] or '':>6}{snr:>7}{row['nfe'] or '':>6}{measured}"
        f"{_pair(f['confidence'], 17)}{row['failed']:>7}{row['seconds']:>8.0f}"
    )


def _pair(figure: dict[str, Any] | None, width: int = 18) -> str:
    return (f"{figure['value']:.4f} ({figure['standard_error']:.4f})" if figure else "").rjust(width)


def main(arguments: list[str] | None = None) -> list[dict[str, Any]]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder with train.parquet and test.parquet")
    parser.add_argument("out", type=Path, help="folder for the JSON")
    parser.add_argument("--models", nargs="+", default=["mnist"], help="embedded names, or folders of trained models")
    parser.add_argument("--features", choices=OWN, default="mnist")
    parser.add_argument("--predictors", nargs="+", choices=PREDICTORS, default=["reverse_diffusion"])
    parser.add_argument("--steps", nargs="+", type=int, default=[100, 500], help="N, of the predictor-corrector; the predictor alone has 2N")
    parser.add_argument("--snr", nargs="+", type=float, default=[0.01, 0.05, 0.16], help="signal-to-noise ratios of a Langevin step")
    parser.add_argument("--n", type=int, default=2000, help="images a row")
    parser.add_argument("--batch-size", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args(arguments)

    plan = list(samplers(given.predictors, given.steps, given.snr))
    judge = make_features(given.features, None, (1, 28, 28), torch.device(given.device), (-1.0, 1.0))
    train, test = (read_data(given.data / f"{part}.parquet").images for part in ("train", "test"))
    reference = Moments.of(torch.cat([judge(part)["features"] for part in train.split(PART)])).gaussian
    setting: dict[str, Any] = {"features": judge.label, "n": given.n, "batch_size": given.batch_size, "seed": given.seed}
    setting |= {"device": given.device, "torch": str(torch.__version__), "version": sd.__version__}
    rows: list[dict[str, Any]] = []

    def told(row: dict[str, Any]) -> None:
        rows.append(row)
        with atomic(given.out / "pc_vs_predictor.json") as path:
            path.write_text(json.dumps({**setting, "rows": rows}, indent=2) + "\n", encoding="utf-8")
        print(line(row), flush=True)

    print(HEAD, flush=True)
    for folder in given.models:
        for row in compared(folder, judge, reference, given.device, plan, given.n, given.batch_size, given.seed):
            told(row)
    floor = {name: figure._asdict() for name, figure in judged(judge, test[: given.n], reference).items()}
    told({"model": "test set", "predictor": "", "steps": 0, "snr": None, "nfe": 0, "seconds": 0.0, "failed": 0, "figures": floor})
    return rows


if __name__ == "__main__":
    main()
