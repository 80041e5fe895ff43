"""The command line, ``sdesolve-gen``: one function a command, errors as one line, exit codes 0, 1, 2 and 130.

    0    done
    1    some images did not arrive, training diverged, or a file could not be written
    2    a bad value, found before the first network call
    130  interrupted (Ctrl-C); every file there is, is whole
"""

from __future__ import annotations

import json
import math
import signal
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from tqdm import tqdm

import sdesolve as sd

from . import benchmark
from ._memory import exhausted
from .benchmark import PROBLEMS
from .class_conditional import labels_of
from .classifiers import load_classifier
from .commands_evaluate import evaluate_command
from .commands_import import check_model_command, import_command
from .commands_publish import publish_command
from .commands_restoration import colorize_command, inpaint_command, restore_command
from .flags import IMAGES, ClassifierName, ClassifierScale, GuidanceScale, Labels, Size, one_or_more, read_for, word
from .interpolation import Way, animation_files, write_animation
from .likelihoods import Table, measure
from .models import embedded, load
from .outputs import Record, outputs, write
from .training import TrainConfig, recipes, train

app = typer.Typer(
    name="sdesolve-gen",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def _root() -> None:
    """Sample from score-based generative models, and train them.

    `sdesolve-gen COMMAND --help` explains a command, with examples.
    """


METHODS = ", ".join(name for name, _ in sd.methods())
START = f"{', '.join([*recipes.DATA_SETS, *recipes.METHODS])}, both, as in cifar10-ve, or a published model, as in ncsnpp_cifar10_ve"

Seed = Annotated[int, typer.Option(min=0, max=2**64 - 1, help="Names the noise: the same seed gives the same result.")]


@app.command("sample")
def sample_command(
    model: Annotated[str, typer.Option(help=f"An embedded model ({', '.join(embedded()) or 'none in this version'}), or a folder with a trained one.")] = "mnist",
    method: Annotated[str, typer.Option(help=f"One of: {METHODS}.")] = "pc",
    steps: Annotated[int | None, typer.Option(min=1, help="Steps of the time grid; default 500, or chosen per image (rk45, bosh3, heun, midpoint).")] = None,
    nfe: Annotated[int | None, typer.Option(min=1, help="Instead of --steps: the most network calls an image may see, those of --denoise and guidance among them.")] = None,
    n: Annotated[int, typer.Option(min=1, help="Number of images.")] = 16,
    seed: Seed = 0,
    batch_size: Annotated[int, typer.Option(min=1, help="Images solved together: memory, not results, depends on it.")] = 64,
    device: Annotated[str, typer.Option(help='Where the network runs: "cpu", "cuda", "cuda:1", "mps".')] = "cpu",
    out: Annotated[str, typer.Option(help="A .png file, or a folder, in which files are named by model, method and seed.")] = "samples",
    snr: Annotated[float | None, typer.Option(help="Signal-to-noise ratio of the Langevin corrector, 0 < snr < 1 (pc, annealed_langevin).")] = None,
    rtol: Annotated[float | None, typer.Option(help="Relative tolerance where steps are chosen per image.")] = None,
    atol: Annotated[float | None, typer.Option(help="Absolute tolerance, in units of the data range, where steps are chosen per image.")] = None,
    option: Annotated[list[str] | None, typer.Option(metavar="KEY=VALUE", help="Any other option of sdesolve.solve or the method; may be repeated.")] = None,
    denoise: Annotated[bool, typer.Option(help="End where no noise is left, one network call more.")] = True,
    labels: Annotated[str | None, typer.Option(metavar="NUMBERS", help="Classes to draw: one for all images, or one for each, separated by commas.")] = None,
    classifier: ClassifierName = None,
    classifier_scale: ClassifierScale = 1.0,
    guidance: GuidanceScale = 1.0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files that are already there.")] = False,
) -> None:
    """Draw images from a model: a PNG grid, an npz file with the values, and a JSON manifest of how they came about.

    **Examples**

    `sdesolve-gen sample` (16 digits by the predictor-corrector of Song et al., 500 steps, into `samples/`)

    `sdesolve-gen sample --model mnist --method ddim --steps 50 --n 100 --seed 7 --out digits.png`

    `sdesolve-gen sample --model mnist --method unipc --nfe 12`

    `sdesolve-gen sample --model mnist --method rk45 --rtol 1e-4 --atol 1e-4`

    `sdesolve-gen sample --model runs/mine --method pc --snr 0.1 --option corrector_steps=2 --option predictor=ancestral`

    `sdesolve-gen sample --method dpmpp_2m --steps 30 --labels 3 --classifier mnist_classifier --classifier-scale 6`

    Exit codes: 0 done, 1 some images did not arrive, 2 a bad value, 130 interrupted.
    """
    with _told():
        options = {**_sampler_options(option), **_given(nfe=nfe, snr=snr, rtol=rtol, atol=atol)}
        classes: dict[str, Any] = {"labels": _labels(labels), "classifier_scale": classifier_scale, "guidance": guidance}
        loaded, judge = load(model, device), load_classifier(classifier, device) if classifier else None
        files = outputs(out, f"{loaded.card['name']}-{method}-seed{seed}", overwrite)
        start = time.perf_counter()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", sd.SolveWarning)
            how = {"steps": steps, "seed": seed, "batch_size": batch_size, "denoise": "extrapolate" if denoise else False}
            samples = loaded.draw(n, method, progress=True, classifier=judge, **how, **classes, **options)
        settings = {"method": method, "batch_size": batch_size, "device": device, "denoise": denoise, "options": options}
        if classes["labels"] is not None:
            settings |= {**classes, "classifier": None if judge is None else {"name": judge.card["name"], "sha256": judge.card.get("sha256")}}
        record = Record(loaded, samples, settings, time.perf_counter() - start, sys.argv[1:])
        write(files, record)
        for warning in caught:
            typer.echo(f"warning: {warning.message}", err=True)
        typer.echo(f"wrote {files.png}, {files.npz} and {files.manifest}")
        typer.echo(record.figures())
    if (samples.status != "ok").any():
        raise typer.Exit(1)


@app.command("benchmark")
def benchmark_command(
    quick: Annotated[bool, typer.Option("--quick/--full", help="A few problems and budgets (under 3 minutes on 2 cores), or all of them (hours).")] = True,
    problems: Annotated[list[str] | None, typer.Option(metavar="NAMES", help=f"Of: {', '.join(PROBLEMS)}; separated by commas, or repeated.")] = None,
    methods: Annotated[
        list[str] | None, typer.Option(metavar="NAMES", help='Ours, separated by commas or repeated: labels, as "deis, optimised", or methods of `sample`.')
    ] = None,
    budgets: Annotated[list[str] | None, typer.Option(metavar="NUMBERS", help="Network calls, separated by commas, or repeated.")] = None,
    peers: Annotated[bool, typer.Option("--peers/--no-peers", help="Run diffusers, k-diffusion, azula, torchsde, torchdiffeq beside ours.")] = True,
    seed: Seed = 0,
    seeds: Annotated[int | None, typer.Option(min=1, help="Seeds a cell; standard errors are over these.")] = None,
    rows: Annotated[int | None, typer.Option(min=8, help="Samples a cell, instead of each problem's own number.")] = None,
    out: Annotated[str, typer.Option(help="Folder for everything that is written.")] = "runs/benchmark",
    data: Annotated[str | None, typer.Option(help="Folder with mnist/test.parquet and cifar10/test.parquet, for the problems that want images.")] = None,
    classifier: Annotated[
        str | None, typer.Option(help="Features for a Fréchet distance of grey 28 x 28 images: mnist or fashion_mnist, or a folder that benchmarks/mnist_classifier.py wrote.")
    ] = None,
    model: Annotated[list[str] | None, typer.Option(help="A trained model to sample from, its folder; may be repeated. Without --problems, these alone.")] = None,
    device: Annotated[str, typer.Option(help='Where samples are made: "cpu", "cuda", "cuda:1", "mps".')] = "cpu",
) -> None:
    """Quality against network calls: our methods and other packages', on laws with exact scores and on a trained network.

    Writes `results.json`, `table.md`, a PNG a problem, and `benchmark.html`, a page that opens from disk. A run that was interrupted goes on with
    the same command: what is done stands in `cells.jsonl`.

    **Examples**

    `sdesolve-gen benchmark --quick`

    `sdesolve-gen benchmark --full --data ../shared/data --classifier mnist --out runs/full`

    `sdesolve-gen benchmark --model runs/mine --classifier fashion_mnist --device cuda --out runs/mine/benchmark`

    `sdesolve-gen benchmark --problems ring_2d --methods ddim,dpmpp_2m --budgets 5,10 --no-peers`

    Exit codes: 0 done, 2 a bad value, 130 interrupted.
    """
    with _told(interrupted=f"what is done stands in {out}/cells.jsonl: the same command goes on from there"):
        plan = benchmark.planned(
            "quick" if quick else "full", problems=_names(_joined(problems)), methods=_labelled(_joined(methods)), budgets=_numbers("--budgets", _joined(budgets)),
            peers=peers, seed=seed, seeds=seeds, rows=rows, out=out, data=data, classifier=classifier, models=model or [], device=device,
        )  # fmt: skip
        ran = benchmark.run(plan, Path(out) / "cells.jsonl")
        found = benchmark.results(plan, ran, sys.argv[1:])
        written = benchmark.write(found, Path(out))
        typer.echo(f"\n{benchmark.text(found)}")
        typer.echo(f"wrote {', '.join(map(str, written))}")


@app.command("train")
def train_command(
    data: Annotated[list[str] | None, typer.Option(help=f"Images: {IMAGES}.")] = None,
    out: Annotated[str | None, typer.Option(help="Folder for checkpoints, log, pictures and the model.")] = None,
    name: Annotated[str | None, typer.Option(help="Of the model, for its card.")] = None,
    preset: Annotated[str | None, typer.Option(help=f"Where to start from: {START}.")] = None,
    config: Annotated[str | None, typer.Option(metavar="FILE", help="YAML with fields of TrainConfig, as `config.yaml` of a run.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help=f"Updates; default {TrainConfig.steps}.")] = None,
    batch: Annotated[int | None, typer.Option(min=1, help=f"Images an update, on all processes together; default {TrainConfig.batch}.")] = None,
    size: Annotated[int | None, typer.Option(min=0, help="Side that pictures are scaled (the shorter one) and cropped (the middle) to.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, max=2**63 - 1, help="Names the data's order and the noise; default 0.")] = None,
    precision: Annotated[str | None, typer.Option(help='"bf16" (autocast; weights stay float32), the default, "fp16" (the same, with a scaled loss), or "fp32".')] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Any other field of TrainConfig; may be repeated.")] = None,
    resume: Annotated[str, typer.Option(help='"auto" goes on from the newest checkpoint in --out where there is one; "never" starts anew, and removes the run before.')] = "auto",
    device: Annotated[str, typer.Option(help='"auto" takes the GPU where there is one; "cpu" does not.')] = "auto",
) -> None:
    """Train a score network on images, and save the model that `sample --model` reads.

    A run that was killed, at whatever moment, goes on with the same command, and ends where it would have ended without. Later wins: preset, then
    `--config`, then flags, then `--set`. What came of them stands in `OUT/config.yaml`, the loss in `OUT/log.jsonl`.

    **Examples**

    `sdesolve-gen train --data mnist/train.parquet --out runs/mnist --name mnist`

    `sdesolve-gen train --preset cifar10-ve --data "cifar10/train-*.parquet" --out runs/ve --name ve --set network.width=64`

    `sdesolve-gen train --data pictures/ --out runs/mine --name mine --size 64 --set flip=true --set sample_every=500 --set tensorboard=true`

    `sdesolve-gen train --config run.yaml --set learning_rate=2e-4 --set classes=10`

    `torchrun --nproc_per_node 4 -m sdesolve_gen train --config run.yaml` (or `accelerate launch -m sdesolve_gen train ...`)

    Exit codes: 0 done, 1 training diverged or a file could not be written, 2 a bad value, 130 interrupted.
    """
    with _told(interrupted="the checkpoints in the folder of the run, if there are any, are whole: the same command goes on from the newest"):
        flags = _given(data=one_or_more(data) if data else None, out=out, name=name, steps=steps, batch=batch, size=size, seed=seed, precision=precision)
        chosen = recipes.configured(preset, config, flags, _pairs("--set", set_, "learning_rate=2e-4"))
        model = train(chosen, resume=resume, device=device)
        typer.echo(f"wrote {chosen.out}/model.safetensors and {chosen.out}/card.json")
        typer.echo(f"{chosen.name}: {sum(p.numel() for p in model.network.parameters())} weights after {chosen.steps} steps of {chosen.batch} images")


@app.command("likelihood")
def likelihood_command(
    data: Annotated[list[str], typer.Option(help=f"Images: {IMAGES}.")],
    model: Annotated[str, typer.Option(help="An embedded model, or a folder with a trained one.")] = "mnist",
    out: Annotated[str, typer.Option(help="A .csv or .parquet file, one row an image.")] = "likelihoods.csv",
    size: Size = 0,
    n: Annotated[int | None, typer.Option(min=1, help="Only the first so many images.")] = None,
    labels: Labels = None,
    probes: Annotated[int, typer.Option(min=1, help="Probes of the divergence: the error over probes falls as 1/sqrt.")] = 1,
    rtol: Annotated[float, typer.Option(help="Relative tolerance.")] = 1e-4,
    atol: Annotated[float, typer.Option(help="Absolute tolerance.")] = 1e-4,
    eps: Annotated[float | None, typer.Option(help="Where the flow starts; default 1e-5 T. The bits/dim depend on it.")] = None,
    bound: Annotated[int, typer.Option(min=0, help="Network calls, an even number >= 4, for the bound of the reverse SDE in columns of its own; 0: none.")] = 0,
    seed: Seed = 0,
    batch_size: Annotated[int, typer.Option(min=1, help="Images solved together, and saved together.")] = 64,
    device: Annotated[str, typer.Option(help='Where the network runs: "cpu", "cuda", "cuda:1", "mps".')] = "cpu",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Start anew where there is a table already.")] = False,
) -> None:
    """Bits per dimension of every image of a data set: a table, a histogram and a JSON manifest.

    A run that was interrupted goes on with the same command, if the images are the same. 8-bit images are dequantised; an npz file of floats is taken as it
    is. Pictures that cannot be read are left out and named, in the manifest too; images that leave the data range have a status in the table.

    **Examples**

    `sdesolve-gen likelihood --data mnist/test.parquet --n 256 --out runs/test.csv`

    `sdesolve-gen likelihood --model runs/mine --data pictures/ --probes 4 --rtol 1e-5 --atol 1e-5 --out mine.parquet`

    `sdesolve-gen likelihood --data mnist/test.parquet --bound 64 --device cuda --batch-size 1000 --out runs/test.csv`

    `sdesolve-gen likelihood --model runs/classes --data mnist/test.parquet --labels data` (each image by its own class)

    Exit codes: 0 done, 1 some images have no likelihood, 2 a bad value, 130 interrupted.
    """
    with _told(interrupted=f"the rows in {out}, if there are any, are whole: the same command goes on from them"):
        torch.backends.cudnn.allow_tf32 = False  # step control would take TF32's rounding of 1e-3 for an error of the step
        loaded = load(model, device)
        images = read_for(loaded, data, size).rows(slice(n))
        told = labels_of(loaded, word(labels), images, len(images.ids), "--labels")
        options: dict[str, Any] = {"probes": probes, "rtol": rtol, "atol": atol, "eps": eps, "bound": bound, "seed": seed}
        source = {"data": one_or_more(data), "size": size, "images": len(images.names), "digest": images.digest(), "skipped": images.skipped, "labels": labels}
        table = Table(out, {"model": loaded.card["name"], "sha256": loaded.card.get("sha256"), **source, **options}, overwrite)
        with tqdm(total=len(images.names), initial=len(table.rows), unit="image", desc="likelihood") as bar:
            for rows in measure(loaded, images, len(table.rows), batch_size, told, **options):
                table.add(rows)
                bar.update(len(rows))
        table.finish()
        said = table.figures()
        typer.echo(f"wrote {table.path}, {table.picture} and {table.manifest}")
        bits, above = _with_error(said["bits_per_dim"], said["standard_error"]), _with_error(said.get("bound"), said.get("bound_error"))
        typer.echo(f"{said['images']} images, {bits} bits/dim, {said['nfe']:.1f} network calls each, {said['statuses']}")
        if bound:
            typer.echo(f"{said['images']} images, {above} bits/dim at most by the reverse SDE, {bound} network calls each")
    if set(said["statuses"]) != {"ok"}:
        raise typer.Exit(1)


@app.command("interpolate")
def interpolate_command(
    model: Annotated[str, typer.Option(help="An embedded model, or a folder with a trained one.")] = "mnist",
    data: Annotated[list[str] | None, typer.Option(help=f"Where the two images are: {IMAGES}. Default: two draws from the prior.")] = None,
    size: Size = 0,
    first: Annotated[int, typer.Option(min=0, help="Number of the image to start from; without --data the name of the draw.")] = 0,
    last: Annotated[int, typer.Option(min=0, help="Number of the image to end at.")] = 1,
    labels: Labels = None,
    count: Annotated[int, typer.Option(min=2, help="Images on the way, both ends included.")] = 8,
    temperature: Annotated[float, typer.Option(help="The codes are multiplied by it.")] = 1.0,
    rtol: Annotated[float, typer.Option(help="Relative tolerance.")] = 1e-3,
    atol: Annotated[float, typer.Option(help="Absolute tolerance.")] = 1e-3,
    seed: Seed = 0,
    device: Annotated[str, typer.Option(help='Where the network runs: "cpu", "cuda", "cuda:1", "mps".')] = "cpu",
    out: Annotated[str, typer.Option(help="A .png file, or a folder; the .gif goes beside it.")] = "samples",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files that are already there.")] = False,
) -> None:
    """Images on the way from one image to another, through their latent codes: a picture, a GIF that goes there and back, and a JSON manifest.

    **Examples**

    `sdesolve-gen interpolate --seed 3 --count 12 --out way.png`

    `sdesolve-gen interpolate --data mnist/test.parquet --first 4 --last 17 --temperature 0.9`

    Exit codes: 0 done, 1 some images did not arrive, 2 a bad value, 130 interrupted.
    """
    with _told():
        loaded = load(model, device)
        way = Way(loaded, None if data is None else read_for(loaded, data, size), first, last, word(labels), seed)
        files = animation_files(out, f"{loaded.card['name']}-{first}-{last}-seed{seed}", overwrite)
        images = way.images(count, temperature, rtol=rtol, atol=atol)
        settings: dict[str, Any] = {"data": one_or_more(data) if data else None, "first": first, "last": last, "labels": labels, "count": count, "seed": seed}
        settings |= {"temperature": temperature, "rtol": rtol, "atol": atol}
        write_animation(files, images, loaded, settings, sys.argv[1:])
        typer.echo(f"wrote {files.png}, {files.gif} and {files.manifest}")
    if not bool(torch.isfinite(images).all()):
        raise typer.Exit(1)


app.command("evaluate")(evaluate_command)
for _name, _command in (("inpaint", inpaint_command), ("colorize", colorize_command), ("restore", restore_command)):
    app.command(_name)(_command)
app.command("import")(import_command)
app.command("check-model")(check_model_command)
app.command("publish")(publish_command)


def main() -> None:
    """The command line."""
    app()


@contextmanager
def _warned() -> Iterator[None]:
    """Say warnings as one line each, when they come."""
    with warnings.catch_warnings():
        warnings.simplefilter("always", UserWarning)
        warnings.showwarning = lambda message, *rest, **options: typer.echo(f"warning: {message}", err=True)
        yield


@contextmanager
def _interruptible() -> Iterator[None]:
    """Ctrl-C is an exception within, and what it was around it: the console script ends at once."""
    around = signal.getsignal(signal.SIGINT)
    if not callable(around) or threading.current_thread() is not threading.main_thread():
        yield
        return
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, around)


@contextmanager
def _told(interrupted: str = "no file was left half written") -> Iterator[None]:
    """Turn what can go wrong into one line and an exit code, and what is warned of into a line when it comes."""
    try:
        with _interruptible(), _warned():
            yield
    except KeyboardInterrupt as error:
        _fail(f"interrupted: {str(error) or interrupted}.", 130)
    except (FloatingPointError, PermissionError) as error:
        _fail(f"error: {error}", 1)
    except (ValueError, TypeError, ImportError, FileNotFoundError, FileExistsError, NotADirectoryError) as error:
        _fail(f"error: {error}", 2)
    except (OSError, sd.SolveError) as error:
        _fail(f"error: {error}", 1)
    except (MemoryError, RuntimeError) as error:
        if not exhausted(error):
            raise  # a defect of ours, which its traceback describes
        _fail(f"error: out of memory ({str(error).splitlines()[0][:200] if str(error) else 'Python'}); expected less at a time: a smaller --batch-size, --batch or --size.", 1)


def _fail(message: str, code: int) -> None:
    typer.echo(f"\n{message}" if code == 130 else message, err=True)
    raise typer.Exit(code)


def _with_error(mean: float | None, error: float | None) -> str:
    return f"{math.nan if mean is None else mean:.4f}{'' if error is None else f' +- {error:.4f}'}"


def _given(**values: Any) -> dict[str, Any]:
    """Those that were given."""
    return {name: value for name, value in values.items() if value is not None}


def _pairs(flag: str, texts: list[str] | None, example: str = "corrector_steps=2") -> dict[str, Any]:
    """KEY=VALUE texts; a value is JSON where it can be read so, and otherwise the text itself."""
    pairs: dict[str, Any] = {}
    for text in texts or []:
        key, equals, value = text.partition("=")
        if not key or not equals:
            raise ValueError(f"{flag} {text!r}; expected KEY=VALUE, as in {flag} {example}.")
        if key in pairs:
            raise ValueError(f"{flag} {key} was given twice; expected it once.")
        try:
            pairs[key] = json.loads(value)
        except ValueError:
            pairs[key] = value
    return pairs


def _joined(texts: list[str] | None) -> str | None:
    """What was given several times, as if it had been once."""
    return ",".join(texts) if texts else None


def _names(text: str | None) -> list[str] | None:
    """Names that commas separate."""
    return None if text is None else [name.strip() for name in text.split(",") if name.strip()]


def _labelled(text: str | None) -> list[str] | None:
    """Labels that commas separate, some of which have a comma of their own: "deis, optimised" is one."""
    labels: list[str] = []
    for name in _names(text) or ():
        if labels and f"{labels[-1]}, {name}" in benchmark.METHODS:
            labels[-1] += f", {name}"
        else:
            labels.append(name)
    return None if text is None else labels


def _numbers(flag: str, text: str | None) -> tuple[int, ...] | None:
    """Whole numbers > 0 that commas separate, in ascending order."""
    names = _names(text)
    if names is None:
        return None
    if not names or not all(name.isdecimal() and int(name) > 0 for name in names):
        raise ValueError(f"{flag} {text!r}; expected whole numbers > 0 with commas between them, as in {flag} 5,10,20.")
    return tuple(sorted({int(name) for name in names}))


def _labels(text: str | None) -> int | list[int] | None:
    """One whole number, or several that commas separate."""
    names = _names(text)
    if names is None:
        return None
    if not names or not all(name.isdecimal() for name in names):
        raise ValueError(f"--labels {text!r}; expected whole numbers >= 0 with commas between them, as in --labels 3 or --labels 0,1,2.")
    return int(names[0]) if len(names) == 1 else [int(name) for name in names]


_OWN_FLAGS = ("n", "method", "steps", "nfe", "seed", "batch_size", "denoise", "snr", "rtol", "atol", "labels", "classifier", "classifier_scale", "guidance")
_GIVEN = ("self", "model", "problem", "x", "generator", "progress")


def _sampler_options(texts: list[str] | None, flagless: tuple[str, ...] = ()) -> dict[str, Any]:
    """The options of ``--option``, none of which has a flag of its own; ``flagless``: those of ``sample``'s flags that a command does not have."""
    pairs = _pairs("--option", texts)
    for name in _OWN_FLAGS:
        if name in pairs and name not in flagless:
            raise ValueError(f"--option {name}={pairs[name]}: expected a flag of its own, as in --{name.replace('_', '-')}.")
    for name in _GIVEN:
        if name in pairs:
            raise ValueError(f"--option {name}={pairs[name]}: that is given by other flags; expected an option of sdesolve.solve or the method.")
    return pairs
