"""Colours for gray pictures: is the luminance kept, and are the colours nearer to those of pictures than gray is?

    python benchmarks/mnist_classifier.py ../shared/data/cifar10 runs/cifar_classifier --title CIFAR-10     (once, for the features)
    python benchmarks/colorization.py ../shared/data/cifar10 runs/cifar10_small runs/cifar_classifier runs/colorization --device cuda

Test pictures lose their colours, and each method of conditioning gives them some. Prints, writes ``colorization.json``, and a PNG for each method with rows of
gray pictures, four draws of each, and the truth:

    luminance    largest difference of a draw's from the one that was given, in units of the data range's half (that is, of [-1, 1])
    FID          Fréchet distance of the draws to the training pictures, in the features of the classifier; beside it that of the gray pictures and of the truth
    saturation   mean over pixels of max - min of red, green, blue, of 255
    PSNR         of one draw, and of the mean of all draws, to the truth
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import sdesolve_gen as gen
from sdesolve.files import atomic
from sdesolve_gen.conditioning.metrics import psnr
from sdesolve_gen.conditioning.operators import Gray
from sdesolve_gen.data import read_data, scaled
from sdesolve_gen.evaluation.classifier import Classifier, features, load_classifier
from sdesolve_gen.evaluation.frechet import Gaussian, Moments, fid, grouped
from sdesolve_gen.images import to_uint8, write_grid

METHODS: dict[str, dict[str, Any]] = {"ddnm": {}, "mmps": {"iterations": 1}, "pigdm": {}, "dps": {}, "projection": {}}
SHOWN, DRAWS = 8, 4


def seen(classifier: Classifier, images: Tensor) -> Tensor:
    """Features of images in [-1, 1], rounded to 256 levels as pictures are."""
    rounded = scaled(to_uint8(images, (-1.0, 1.0)))
    return torch.cat([features(classifier, part.to(next(classifier.parameters()).device)).cpu() for part in rounded.split(1000)])


def judged(classifier: Classifier, images: Tensor, reference: Gaussian) -> dict[str, float]:
    """Distance to the reference with its standard error, and saturation."""
    found = fid(grouped(seen(classifier, images)), reference)
    levels = to_uint8(images, (-1.0, 1.0)).float()
    saturation = float((levels.amax(1) - levels.amin(1)).mean())
    return {"fid": found["fid"].value, "fid_error": found["fid"].standard_error or float("nan"), "saturation": saturation}


def coloured(model: gen.Model, method: str, x: Tensor, seed: int, batch_size: int) -> tuple[Tensor, dict[str, Any]]:
    """(n, draws, 3, H, W) on the CPU, and what they cost."""
    gray, start = Gray(model.shape).forward(x), time.perf_counter()
    found = model.colorize(gray, method=method, draws=DRAWS, seed=seed, batch_size=batch_size, **METHODS[method])
    images = found.images.cpu()
    kept = (Gray(model.shape).forward(images.flatten(0, 1)) - gray.repeat_interleave(DRAWS, 0)).abs().max()
    cost = {"sampler": found.sampler, "nfe": float(found.nfe.double().mean()), "seconds": round(time.perf_counter() - start, 1), "failed": int((found.status != "ok").sum())}
    return images, {"luminance": float(kept), **cost}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder with train.parquet and test.parquet")
    parser.add_argument("model", help="folder of an RGB model on [-1, 1]")
    parser.add_argument("classifier", type=Path, help="folder that mnist_classifier.py wrote")
    parser.add_argument("out", type=Path, help="folder for pictures and JSON")
    parser.add_argument("--n", type=int, default=500, help="test pictures")
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--batch-size", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()

    model, classifier = gen.load(given.model, given.device), load_classifier(given.classifier).to(given.device)
    x = scaled(read_data(given.data / "test.parquet").images[: given.n])
    reference = Moments.of(seen(classifier, scaled(read_data(given.data / "train.parquet").images))).gaussian
    gray = Gray(model.shape).forward(x)
    rows: dict[str, dict[str, Any]] = {"gray": judged(classifier, gray.expand_as(x), reference), "truth": judged(classifier, x, reference)}
    given.out.mkdir(parents=True, exist_ok=True)
    for name, row in rows.items():
        print(f"{name:<12} FID {row['fid']:.3f} ({row['fid_error']:.3f})  saturation {row['saturation']:.1f}", flush=True)
    for method in given.methods:
        images, cost = coloured(model, method, x, given.seed, given.batch_size)
        quality = {"psnr": float(psnr(images[:, 0], x, (-1.0, 1.0)).mean()), "psnr_of_mean": float(psnr(images.mean(1), x, (-1.0, 1.0)).mean())}
        row = rows[method] = {**judged(classifier, images[:, 0], reference), **quality, **cost}
        strip = torch.cat([gray.expand_as(x)[:, None], images, x[:, None]], 1)[:SHOWN]
        write_grid(given.out / f"{method}.png", to_uint8(strip.transpose(0, 1).flatten(0, 1), (-1.0, 1.0)), columns=len(strip))
        told = f"luminance {row['luminance']:.1e}  PSNR {row['psnr']:.1f}, of the mean {row['psnr_of_mean']:.1f}  {row['sampler']}, {row['nfe']:.0f} calls, {row['seconds']} s"
        print(f"{method:<12} FID {row['fid']:.3f} ({row['fid_error']:.3f})  saturation {row['saturation']:.1f}  {told}", flush=True)
        with atomic(given.out / "colorization.json") as path:
            path.write_text(json.dumps({"model": model.card["name"], "n": given.n, "draws": DRAWS, "device": given.device, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
