"""``sdesolve-gen evaluate``."""

from __future__ import annotations

import os
from typing import Annotated, Any

import typer

import sdesolve as sd

from .evaluation import evaluate
from .evaluation.features import INCEPTION, OWN
from .evaluation.plan import DEFAULT, METRICS
from .flags import IMAGES, Size, one_or_more, word
from .models import embedded, load


def evaluate_command(
    data: Annotated[list[str], typer.Option(help=f"The reference: {IMAGES}; or for FID an npz file with `mu` and `sigma`.")],
    model: Annotated[str, typer.Option(help=f"An embedded model ({', '.join(embedded())}), or a folder with a trained one.")] = "mnist",
    metrics: Annotated[str, typer.Option(metavar="NAMES", help=f"Of: {', '.join(METRICS)}; separated by commas.")] = ",".join(DEFAULT),
    n: Annotated[int, typer.Option("--n", "--images", help="Images to draw; 50,000 is what published distances are of. torchrun takes --n for its own: --images.")] = 50_000,
    method: Annotated[str, typer.Option(help=f"One of: {', '.join(name for name, _ in sd.methods())}.")] = "pc",
    steps: Annotated[int | None, typer.Option(min=1, help="Steps of the time grid; default 500, or chosen per image (rk45, bosh3, heun, midpoint).")] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**64 - 1, help="Names the noise: the same seed gives the same images.")] = 0,
    labels: Annotated[
        str | None,
        typer.Option(
            metavar="WORD",
            help='Of a model that knows classes, those to draw: "balanced" (each in turn), "data" (by their shares in the data), "none" (of no class), or one.',
        ),
    ] = None,
    guidance: Annotated[float, typer.Option(help="Scale of classifier-free guidance, for a model that knows classes.")] = 1.0,
    size: Size = 0,
    features: Annotated[str, typer.Option(help=f"Feature network: {INCEPTION}, {', '.join(OWN)}, or a folder that benchmarks/mnist_classifier.py wrote.")] = INCEPTION,
    weights: Annotated[str | None, typer.Option(help="File of Inception's weights; default: fetched once.")] = None,
    bpd_data: Annotated[list[str] | None, typer.Option(help="Other images than --data for bits/dim, such as a test set; may be repeated.")] = None,
    bpd_labels: Annotated[
        str | None, typer.Option(metavar="WORD", help='Of a model that knows classes, those for bits/dim: "data" (each image its own), "none", or one.')
    ] = None,
    bpd_n: Annotated[int | None, typer.Option(min=1, help="Bits/dim of the first so many images.")] = None,
    shard: Annotated[str | None, typer.Option(metavar="I/K", help="This is process I of K, 0 <= I < K; default: as torchrun says, or 0/1.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images solved together, and kept together.")] = 100,
    device: Annotated[str, typer.Option(help='Where the networks run: "cpu", "cuda", "cuda:1", "mps"; under torchrun "cuda" is each process\'s own.')] = "cpu",
    out: Annotated[str, typer.Option(help="Folder for the chunks, report.json and samples.png.")] = "runs/evaluation",
    cache: Annotated[str | None, typer.Option(help="Folder for the features of the data, which several runs may share; default --out.")] = None,
    option: Annotated[list[str] | None, typer.Option(metavar="KEY=VALUE", help="Any other option of sdesolve.solve or the method; may be repeated.")] = None,
) -> None:
    """How good a model's samples are: distances to a data set with standard errors, bits/dim, time and network calls.

    Writes the images in chunks, `samples.png`, and `report.json` once all images are there. The same command goes on after an interruption, and
    adds metrics to images that are there. Several processes share the work with `--shard`, and draw the same images as one would.

    **Examples**

    `sdesolve-gen evaluate --model mnist --data mnist/train.parquet --features mnist --n 10000 --method unipc --steps 20`

    `sdesolve-gen evaluate --model runs/mine --data train.parquet --metrics fid,kid,is,precision_recall --weights inception.pth`

    `sdesolve-gen evaluate --model runs/classes --data train.parquet --labels data --guidance 1.5` (a model that knows classes)

    `sdesolve-gen evaluate --data mnist/test.parquet --metrics bpd --bpd-n 256 --out runs/bpd`

    `torchrun --nproc-per-node 4 -m sdesolve_gen evaluate --model runs/mine --data train.parquet --images 10000 --device cuda`

    Exit codes: 0 done, 1 some images did not arrive, 2 a bad value, 130 interrupted.
    """
    from .cli import _names, _sampler_options, _told

    with _told(interrupted=f"the chunks in {out} are whole: the same command goes on from them"):
        options = _sampler_options(option, flagless=("nfe", "snr", "rtol", "atol"))
        place = f"cuda:{os.environ['LOCAL_RANK']}" if device == "cuda" and "LOCAL_RANK" in os.environ else device
        given = (("data", bpd_data), ("n", bpd_n), ("labels", word(bpd_labels)))
        likelihood: dict[str, Any] = {name: value for name, value in given if value is not None}
        found = evaluate(
            load(model, place), one_or_more(data), _names(metrics) or [], n=n, method=method, steps=steps, seed=seed, labels=word(labels), guidance=guidance,
            size=size, features=features, weights=weights, out=out, cache=cache, batch_size=batch_size, shard=shard, likelihood=likelihood, **options,
        )  # fmt: skip
        typer.echo(f"\n{found}")
        if found.complete:
            typer.echo(f"wrote {out}/report.json{f' and {out}/samples.png' if found.report['statuses'] else ''}")
    if found.complete and not set(found.report["statuses"] or ()) <= {"ok"}:
        raise typer.Exit(1)
