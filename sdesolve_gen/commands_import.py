"""``sdesolve-gen import`` and ``sdesolve-gen check-model``."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

import sdesolve as sd
from sdesolve.files import atomic, sha256

from ._versions import versions
from ._writing import write_json
from .card import CARD, WEIGHTS
from .class_conditional import labels_drawn, labels_of
from .data import Data
from .flags import IMAGES, Size, one_or_more, read_for, word
from .models import Model, load
from .outputs import writable

MANIFEST = "import.json"
Classes = Annotated[
    str | None,
    typer.Option(
        "--labels", "--label", metavar="WORD",
        help='Of a model that knows classes, those of the images: "data" for their own labels, "balanced" for samples of each class in turn, '
        '"none" for no class, or the number of one for all.',
    ),
]  # fmt: skip


def import_command(
    source: Annotated[str, typer.Argument(help="A folder of a diffusers pipeline, the id of one on the hub, a .pth of score_sde_pytorch, a .pkl of EDM, or a folder of ours.")],
    out: Annotated[str, typer.Option(help="Folder for the weights, the card and the manifest.")],
    revision: Annotated[str | None, typer.Option(help="For a hub id: the 40 hexadecimal digits of one commit.")] = None,
    config: Annotated[str | None, typer.Option(help="For a checkpoint of score_sde_pytorch: the JSON file of its configuration.")] = None,
    ema: Annotated[bool, typer.Option("--ema/--last", help="Of such a checkpoint the averaged weights, or the last ones.")] = True,
    data: Annotated[list[str] | None, typer.Option(help=f"Images that it was trained on: {IMAGES}. Default: 64 samples of its own.")] = None,
    size: Size = 0,
    n: Annotated[int, typer.Option(min=2, help="Images to check it on.")] = 64,
    check: Annotated[bool, typer.Option("--check/--no-check", help="Refuse a model whose output is not what its files say.")] = True,
    labels: Classes = None,
    seed: Annotated[int, typer.Option(min=0, max=2**64 - 1, help="Names the noise of the check.")] = 0,
    device: Annotated[str, typer.Option(help='Where the check runs: "cpu", "cuda", "cuda:1", "mps".')] = "cpu",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a model that is already there.")] = False,
) -> None:
    """Turn a model of another package into weights (safetensors) and a card (JSON), which every command here takes as `--model`.

    Nothing that comes with the model is run. Its process is exactly that of its files, and its output is held against them: by regression on known
    noise, on its data, or on samples of its own, which shows a model at odds with itself. One that fails is not written.

    **Examples**

    `sdesolve-gen import pipelines/ddpm-cats --out models/cats --data cats/`

    `sdesolve-gen import google/ddpm-cifar10-32 --revision COMMIT --out models/cifar10`

    `sdesolve-gen import checkpoint_8.pth --config config.json --out models/cifar10`

    `sdesolve-gen sample --model models/cats --method dpmpp_2m --steps 20`

    Exit codes: 0 done, 1 the model is not what its files say, 2 a bad value, 130 interrupted.
    """
    from .cli import _told

    with _told():
        folder = Path(out).expanduser()
        writable(out, (folder / WEIGHTS, folder / CARD, folder / MANIFEST), overwrite)
        start = time.perf_counter()
        model = load(source, device, revision=revision, config=config, ema=ema)
        found = _checked(model, data, size, n, seed, labels) if check else None
        model.save(folder)
        on = one_or_more(data) if data else "its own samples"
        measured = None if found is None else {"on": on, "images": n, "seed": seed, "labels": labels, **figures(found)}
        said = {"source": source, "revision": revision, "config": config, "check": measured, "wall_time_seconds": round(time.perf_counter() - start, 3)}
        _write(folder / MANIFEST, {**said, "files": {name: sha256(folder / name) for name in (WEIGHTS, CARD)}})
        typer.echo(f"wrote {folder / WEIGHTS}, {folder / CARD} and {folder / MANIFEST}")
        weights = sum(p.numel() for p in model.network.parameters())
        typer.echo(f"{model.card['name']}: {weights} weights, images {model.shape} in {list(model.data_range)}, {model.process}")


def check_model_command(
    model: Annotated[str, typer.Argument(help="An embedded model, or a folder with one.")],
    data: Annotated[list[str] | None, typer.Option(help=f"Images that it was trained on: {IMAGES}. Default: samples of its own.")] = None,
    size: Size = 0,
    n: Annotated[int, typer.Option(min=2, help="Images; with few of them little is refused.")] = 64,
    labels: Classes = None,
    seed: Annotated[int, typer.Option(min=0, max=2**64 - 1, help="Names the noise.")] = 0,
    device: Annotated[str, typer.Option(help='Where the network runs: "cpu", "cuda", "cuda:1", "mps".')] = "cpu",
    out: Annotated[str | None, typer.Option(help="A .json file for the figures.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file if it is there.")] = False,
) -> None:
    """Measure whether a model is what its card says: what it predicts, the time it is told, the process, the scale of its images.

    The network's output is regressed on noise that was added to images. A slope of 1 and an error below 1 say that it is right; where it is not, the
    convention that fits is named.

    **Examples**

    `sdesolve-gen check-model mnist --data mnist/test.parquet`

    `sdesolve-gen check-model models/cats --data cats/ --n 256 --out cats-check.json`

    Exit codes: 0 as claimed, 1 not as claimed, 2 a bad value, 130 interrupted.
    """
    from .cli import _told

    with _told():
        path = None if out is None else Path(out)
        if path is not None and path.suffix != ".json":
            raise ValueError(f"--out {out}: expected the name of a .json file, as in --out {path.with_suffix('.json')}.")
        if path is not None:
            writable(str(out), (path,), overwrite)
        loaded = load(model, device)
        found = _checked(loaded, data, size, n, seed, labels, path)
        if path is not None:
            typer.echo(f"wrote {path}")
        typer.echo(str(found))


def figures(check: sd.ModelCheck) -> dict[str, Any]:
    """What a check measured, for a manifest."""
    return {"ok": check.ok, "slope": check.slope, "slope_se": check.slope_se, "error": check.error, "error_se": check.error_se, "reasons": list(check.reasons)}


def _checked(model: Model, data: list[str] | None, size: int, n: int, seed: int, said: str | None, out: Path | None = None) -> sd.ModelCheck:
    """The check; a model that fails ends the command with exit code 1, after its figures are written."""
    if data is None:
        labels = labels_drawn(model, word(said), None, range(n), "--labels")
        typer.echo(f"checking on {n} samples of its own ...", err=True)
        images = model.sample(n, "ddim", steps=50, seed=seed, batch_size=64, labels=labels, progress=True)
    else:
        chosen = _evenly(read_for(model, data, size), n)
        labels, images = labels_of(model, word(said), chosen, len(chosen.ids), "--labels"), chosen.images
        typer.echo(f"checking on {len(images)} images ...", err=True)
    told = {"model": model.card["name"], "data": one_or_more(data) if data else None, "images": n, "seed": seed, "labels": said}
    try:
        found = model.check(images, labels=labels, seed=seed)
    except sd.ModelCheckError as error:
        if out is not None:
            _write(out, {**told, **figures(error.check)})
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from error
    if out is not None:
        _write(out, {**told, **figures(found)})
    return found


def _evenly(data: Data, n: int) -> Data:
    """n of the images, or all, drawn evenly: files are often in the order of their classes."""
    return data if len(data.ids) <= n else data.rows(torch.linspace(0, len(data.ids) - 1, n).long().tolist())


def _write(path: Path, said: dict[str, Any]) -> None:
    with atomic(path) as temporary:
        write_json(temporary, {"command": ["sdesolve-gen", *sys.argv[1:]], "versions": versions(), **said})
