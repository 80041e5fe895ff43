"""``sdesolve-gen inpaint | colorize | restore``: images from what was measured of them."""

from __future__ import annotations

import inspect
import json
import math
import sys
import time
import warnings
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
import typer
from torch import Tensor

import sdesolve as sd

from .as_typed import as_typed, in_flags, name_of
from .classifiers import load_classifier
from .comparison import Comparison, comparison_files, write_comparison
from .conditioning import CONDITIONINGS, Operator
from .conditioning.operators import OPERATORS, Mask, box_mask, make, options_of, random_mask
from .data import UNREADABLE, Data, check_shape, grey, of_tensor, open_npz, read_data
from .flags import IMAGES, ClassifierName, ClassifierScale, GuidanceScale, Label, Size, of_one_class, one_or_more
from .mask_picture import read_mask
from .measuring import simulated
from .models import Model, load
from .particles import OPTIONS
from .restoration import Restored, luminance, pictures_of, scaled

Sources = Annotated[list[str], typer.Option("--data", help=f"Images: {IMAGES}.")]
ModelName = Annotated[str, typer.Option(help="An embedded model, or a folder with a trained one.")]
First = Annotated[int, typer.Option(min=0, help="Number of the first image to take.")]
Count = Annotated[int, typer.Option(min=1, help="Images to take.")]
Method = Annotated[str, typer.Option(help=f"How the model is conditioned: auto, {', '.join(sorted([*CONDITIONINGS, 'smc']))}.")]
Draws = Annotated[int, typer.Option(min=1, help="Independent draws for each image; their mean and standard deviation are shown.")]
Sampler = Annotated[str | None, typer.Option(help="What solves: any method of `sample`; default: what suits the method.")]
Steps = Annotated[int | None, typer.Option(min=1, help="Steps of the sampler; default: what suits the method.")]
NoiseStd = Annotated[float, typer.Option(help="Standard deviation of the measurement's noise, in the units of the data range.")]
Noise = Annotated[str, typer.Option(help="gaussian, or poisson: counts of what is above the low end of the data range (dps, pigdm, mmps).")]
Peak = Annotated[float | None, typer.Option(help="With --noise poisson: how many counts the brightest value of the data has.")]
MethodOption = Annotated[list[str] | None, typer.Option(metavar="KEY=VALUE", help="An option of the conditioning method, where the sampler has one too: steps=1000 of dps.")]
Seed = Annotated[int, typer.Option(min=0, max=2**64 - 1, help="Names the noise: the same seed gives the same result.")]
BatchSize = Annotated[
    int,
    typer.Option(min=1, help="Draws solved together, for memory; results change by rounding, which mmps (and pigdm with a tolerance) may make another draw of the same law."),
]
Device = Annotated[str, typer.Option(help='Where the network runs: "cpu", "cuda", "cuda:1", "mps".')]
Out = Annotated[str, typer.Option(help="A .png file, or a folder, in which files are named by model, task and seed.")]
Option = Annotated[list[str] | None, typer.Option(metavar="KEY=VALUE", help="Any other option of the conditioning method or the sampler; may be repeated.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace files that are already there.")]

_OF_METHODS = {name for method in CONDITIONINGS.values() for name in inspect.signature(method).parameters}
_NAMES = {"option": {*OPTIONS, *_OF_METHODS, *inspect.signature(sd.solve).parameters}, "method_option": ()}
"""What --option and --method-option may name: options of ``solve`` and of the conditioning methods; those of samplers where they are typed."""


class Run(NamedTuple):
    """What the three commands have in common, once the model and the images are there."""

    model: Model
    pictures: Data
    task: str
    out: str
    overwrite: bool
    options: dict[str, Any]
    of_class: dict[str, Any]
    """The class that is meant, as the manifest has it."""


def inpaint_command(
    context: typer.Context,
    data: Sources,
    model: ModelName = "mnist",
    size: Size = 0,
    label: Label = None,
    guidance: GuidanceScale = 1.0,
    classifier: ClassifierName = None,
    classifier_scale: ClassifierScale = 1.0,
    mask: Annotated[str | None, typer.Option(help="A picture, white (or 1) where a pixel is known, black or transparent where it is not; gray is refused.")] = None,
    box: Annotated[str | None, typer.Option(metavar="X0,Y0,X1,Y1", help="All but columns x0 <= x < x1 and rows y0 <= y < y1 are known.")] = None,
    random: Annotated[float | None, typer.Option(help="Share of the pixels that is missing, at random (drawn by --seed).")] = None,
    first: First = 0,
    n: Count = 4,
    draws: Draws = 4,
    method: Method = "auto",
    sampler: Sampler = None,
    steps: Steps = None,
    noise_std: NoiseStd = 0.0,
    noise: Noise = "gaussian",
    peak: Peak = None,
    seed: Seed = 0,
    batch_size: BatchSize = 64,
    device: Device = "cpu",
    out: Out = "restored",
    option: Option = None,
    method_option: MethodOption = None,
    overwrite: Overwrite = False,
) -> None:
    """Draw what may stand in the unknown pixels of pictures, several times, with their mean and standard deviation.

    Writes one picture that compares (truth, measurement, draws, mean, std), the means and standard deviations by themselves, an npz file and a JSON
    manifest. Its figures are against the pictures as they were given.

    **Examples**

    `sdesolve-gen inpaint --data mnist/test.parquet --box 14,0,28,28` (the right half is unknown)

    `sdesolve-gen inpaint --data photo.png --mask mask.png --model runs/mine --draws 8`

    `sdesolve-gen inpaint --data mnist/test.parquet --random 0.9 --method ddnm --sampler ddim --steps 50 --n 8`

    `sdesolve-gen inpaint --data mnist/test.parquet --random 0.9 --method smc --option particles=32` (weighted particles: 32 times the calls)

    Exit codes: 0 done, 1 some draws did not arrive, 2 a bad value, 130 interrupted.
    """
    from .cli import _told

    with _told(), as_typed(context, **_NAMES):
        of_class, of_solver = (label, guidance, classifier, classifier_scale), (method, sampler, steps, seed, batch_size, device)
        run = _begin(context, "inpaint", data, model, size, of_class, first, n, draws, *of_solver, out, option, overwrite, method_option, noise_std)
        run.options.update(noise=noise, peak=peak)
        pictures = check_shape(run.pictures, run.model.shape).images
        known = _mask(run.model, mask, box, random, seed)
        operator = Mask(run.model.shape, known)
        x = pictures_of(run.model, "images", pictures, run.model.shape)
        settings = {"data": one_or_more(data), "mask": mask, "box": box, "random": random, "noise_std": noise_std}
        arrived = _finish(context, run, settings, operator, operator.forward(x), x, lambda: run.model.inpaint(pictures, known, noise_std=noise_std, **run.options))
    _leave(arrived)


def colorize_command(
    context: typer.Context,
    data: Sources,
    model: ModelName,
    size: Size = 0,
    label: Label = None,
    guidance: GuidanceScale = 1.0,
    classifier: ClassifierName = None,
    classifier_scale: ClassifierScale = 1.0,
    simulate: Annotated[bool, typer.Option("--simulate", help="The pictures are coloured: their luminance is taken first.")] = False,
    first: First = 0,
    n: Count = 4,
    draws: Draws = 4,
    method: Method = "auto",
    sampler: Sampler = None,
    steps: Steps = None,
    noise_std: NoiseStd = 0.0,
    noise: Noise = "gaussian",
    peak: Peak = None,
    seed: Seed = 0,
    batch_size: BatchSize = 64,
    device: Device = "cpu",
    out: Out = "restored",
    option: Option = None,
    method_option: MethodOption = None,
    overwrite: Overwrite = False,
) -> None:
    """Draw the colours that gray pictures may have had, several times, by a model of colour images; their luminance is kept.

    **Examples**

    `sdesolve-gen colorize --data old_photos/ --model runs/mine --draws 6`

    `sdesolve-gen colorize --data cifar10/test.parquet --model runs/cifar --simulate --n 8`

    Exit codes: 0 done, 1 some draws did not arrive, 2 a bad value, 130 interrupted.
    """
    from .cli import _told

    with _told(), as_typed(context, **_NAMES):
        of_class, of_solver = (label, guidance, classifier, classifier_scale), (method, sampler, steps, seed, batch_size, device)
        run = _begin(context, "colorize", data, model, size, of_class, first, n, draws, *of_solver, out, option, overwrite, method_option, noise_std)
        run.options.update(noise=noise, peak=peak)
        operator, pictures = luminance(run.model), scaled(run.model, run.pictures.images)
        if simulate and tuple(pictures.shape[1:]) != run.model.shape:
            raise ValueError(f"--data holds images {tuple(pictures.shape[1:])}; expected coloured ones {run.model.shape} with --simulate, or gray ones without.")
        if not simulate and pictures.shape[1] == 3 and bool((pictures != pictures[:, :1]).any()):
            raise ValueError("--data holds coloured pictures; expected gray ones, or --simulate, which takes their luminance first.")
        gray = operator.forward(pictures) if simulate else pictures
        settings = {"data": one_or_more(data), "simulate": simulate, "noise_std": noise_std}
        arrived = _finish(context, run, settings, operator, gray[:, :1], pictures if simulate else None, lambda: run.model.colorize(gray, noise_std=noise_std, **run.options))
    _leave(arrived)


def restore_command(
    context: typer.Context,
    data: Annotated[list[str], typer.Option(help="An npz file with `y` (n, *measured), or pictures where a measurement is an image; with --simulate the pictures to be measured.")],
    operator: Annotated[str, typer.Option(help=f"What was measured: {', '.join(OPERATORS)}.")],
    model: ModelName = "mnist",
    size: Size = 0,
    label: Label = None,
    guidance: GuidanceScale = 1.0,
    classifier: ClassifierName = None,
    classifier_scale: ClassifierScale = 1.0,
    set_: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="An option of the operator, as in factor=4; may be repeated.")] = None,
    simulate: Annotated[bool, typer.Option("--simulate", help="Measure the pictures of --data first, with noise of --noise-std.")] = False,
    noise_std: Annotated[float | None, typer.Option(help="Standard deviation of the measurement's noise, in units of the data range; default 0.05, and 0 with poisson.")] = None,
    noise: Noise = "gaussian",
    peak: Peak = None,
    first: First = 0,
    n: Count = 4,
    draws: Draws = 4,
    method: Method = "auto",
    sampler: Sampler = None,
    steps: Steps = None,
    seed: Seed = 0,
    batch_size: BatchSize = 64,
    device: Device = "cpu",
    out: Out = "restored",
    option: Option = None,
    method_option: MethodOption = None,
    overwrite: Overwrite = False,
) -> None:
    """Draw the images that measurements y = A x + noise may have come from: super-resolution, deblurring, compressed sensing, CT, MRI.

    Operators and their options (--set): downsample (factor, kernel=box|bicubic), gaussian_blur (std), motion_blur (length, angle), random_projections (count, seed),
    random_pixels (missing, seed), box (x0, y0, x1, y1), gray (weights), radon (angles, bins), fan_beam (angles, bins, distance), mri and mri_points (acceleration, centre, seed).

    **Examples**

    `sdesolve-gen restore --data mnist/test.parquet --simulate --operator downsample --set factor=4 --noise-std 0.05`

    `sdesolve-gen restore --data small/ --operator downsample --set factor=2 --noise-std 0.02 --model runs/mine --method mmps`

    `sdesolve-gen restore --data mnist/test.parquet --simulate --operator gaussian_blur --noise poisson --peak 30`

    `sdesolve-gen restore --data sinograms.npz --operator radon --set angles=30 --noise-std 0.01 --model runs/ct --draws 16`

    Exit codes: 0 done, 1 some draws did not arrive, 2 a bad value, 130 interrupted.
    """
    from .cli import _pairs, _told

    with _told(), as_typed(context, **_NAMES, set_=options_of(operator)):
        of_class, of_solver = (label, guidance, classifier, classifier_scale), (method, sampler, steps, seed, batch_size, device)
        run = _begin(context, "restore", data, model, size, of_class, first, n, draws, *of_solver, out, option, overwrite, method_option, noise_std, y=not simulate)
        run.options.update(noise=noise, peak=peak)
        options = _pairs("--set", set_, "factor=4")
        measured = make(operator, run.model.shape, **options)
        given = scaled(run.model, (check_shape(run.pictures, run.model.shape) if simulate else grey(run.pictures, measured.measured[0])).images)
        if not simulate and tuple(given.shape[1:]) != tuple(measured.measured):
            also = ", or --simulate, which measures pictures first" if tuple(given.shape[1:]) == run.model.shape else ""
            raise ValueError(f"--data holds y {tuple(given.shape)}; expected (n, {', '.join(map(str, measured.measured))}), as the operator {operator} measures{also}.")
        noise_std = (0.05 if noise == "gaussian" else 0.0) if noise_std is None else noise_std
        y = simulated(run.model, measured, given, noise_std, noise, peak, seed, run.pictures.ids) if simulate else given
        settings = {"data": one_or_more(data), "operator": operator, "operator_options": options, "simulate": simulate, "noise_std": noise_std}
        arrived = _finish(context, run, settings, measured, y, given if simulate else None, lambda: run.model.restore(y, measured, noise_std, **run.options))
    _leave(arrived)


def _begin(
    context: typer.Context, task: str, data: list[str], model: str, size: int, of_class: tuple[str | None, float, str | None, float], first: int, n: int, draws: int,
    method: str, sampler: str | None, steps: int | None, seed: int, batch_size: int, device: str, out: str, option: list[str] | None, overwrite: bool,
    method_option: list[str] | None, noise_std: float | None, y: bool = False,
) -> Run:  # fmt: skip
    """The model, the images, and the options of a restoration; nothing is computed yet."""
    from .cli import _pairs

    if noise_std is not None and not 0 <= noise_std < math.inf:
        raise ValueError(f"--noise-std {noise_std:g}; expected a finite number >= 0 in the units of the data range, as in --noise-std 0.05.")
    extra = _pairs("--option", option)
    for flag, name in ((flag, name_of(flag)) for parameter in context.command.params for flag in parameter.opts):
        if name in extra:
            raise ValueError(f"--option {name}={extra[name]}: expected a flag of its own, as in {flag}.")
    if task == "colorize" and "weights" in extra:
        line = f"`sdesolve-gen restore --operator gray --set weights={json.dumps(extra['weights'], separators=(',', ':'))}`"
        raise ValueError(f"--option weights: the luminance of this command is Rec. 601; expected {line} for another.")
    for name in ("self", "images", "gray", "y", "sample_ids", "progress", "problem", "x", "generator"):
        if name in extra:
            raise ValueError(f"--option {name}={extra[name]}: that is given by other flags; expected an option of the conditioning method or the sampler.")
    options = {"draws": draws, "method": method, "sampler": sampler, "seed": seed, "batch_size": batch_size, **extra} | ({} if steps is None else {"steps": steps})
    options |= {"method_options": _pairs("--method-option", method_option, "zeta=0.5")} if method_option else {}
    label, guidance, classifier, classifier_scale = of_class
    judge = None if classifier is None else load_classifier(classifier, device)
    loaded = of_one_class(load(model, device), label, guidance, judge, classifier_scale)
    named = None if judge is None else {"name": judge.card["name"], "sha256": judge.card.get("sha256")}
    told = {"label": label} | ({} if label is None else {"guidance": guidance, "classifier": named, "classifier_scale": classifier_scale})
    pictures = _measurements(Path(data[0])) if y and len(data) == 1 and data[0].endswith(".npz") else read_data(data, size, floats=True)
    chosen = pictures.from_number(first, "--first").rows(slice(n))
    return Run(loaded, chosen, task, out, overwrite, {**options, "sample_ids": chosen.ids}, told)


def _finish(context: typer.Context, run: Run, settings: dict[str, Any], operator: Operator, y: Tensor, truth: Tensor | None, draw: Any) -> bool:
    """Draw, write and say; whether all draws arrived."""
    files = comparison_files(run.out, f"{run.model.card['name']}-{run.task}-seed{run.options['seed']}", run.overwrite, run.options["draws"])
    start = time.perf_counter()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", sd.SolveWarning)
        run.options["progress"] = True
        restored: Restored = draw()
    settings |= run.of_class | {"options": {key: value for key, value in run.options.items() if key not in ("progress", "sample_ids", "seed", "method", "sampler")}}
    found = Comparison(run.model, operator, y, restored, truth, run.pictures.names, settings, time.perf_counter() - start, sys.argv[1:])
    write_comparison(files, found)
    for warning in caught:
        typer.echo(f"warning: {in_flags(str(warning.message), context, **_NAMES)}", err=True)
    typer.echo(f"wrote {', '.join(map(str, files))}")
    typer.echo(found.line())
    return bool((restored.status == "ok").all())


def _leave(arrived: bool) -> None:
    if not arrived:
        raise typer.Exit(1)


def _mask(model: Model, mask: str | None, box: str | None, random: float | None, seed: int) -> Tensor:
    """The mask of the one flag that was given."""
    if sum(given is not None for given in (mask, box, random)) != 1:
        raise ValueError("expected exactly one of --mask FILE, --box X0,Y0,X1,Y1 and --random SHARE, as in --random 0.9.")
    _, height, width = model.shape
    if mask is not None:
        known = read_mask(mask)
        if known.shape[1:] != (height, width):
            raise ValueError(
                f"--mask {mask} is a picture of {known.shape[1]} rows and {known.shape[2]} columns, and the model's images have {height} and {width}; "
                "expected one like them, white where a pixel is known."
            )
        if not bool(known.any()):
            raise ValueError(f"--mask {mask} is black everywhere, so that nothing is known; expected white where a pixel is known, or `sdesolve-gen sample`.")
        return known
    if random is not None:
        if not 0 <= random < 1:
            raise ValueError(f"--random {random:g}; expected a share of the pixels that is missing, 0 <= SHARE < 1, as in --random 0.9.")
        return random_mask(model.shape, random, seed)
    half = f"as in --box {width // 2},0,{width},{height}"
    corners = [part.strip() for part in (box or "").split(",")]
    if len(corners) != 4 or not all(corner.isdecimal() for corner in corners):
        raise ValueError(f"--box {box}; expected four whole numbers with commas between them, {half}.")
    x0, y0, x1, y1 = map(int, corners)
    if not (x0 < x1 <= width and y0 < y1 <= height):
        raise ValueError(f"--box {box} is no box of {width} columns and {height} rows; expected X0 < X1 <= {width} and Y0 < Y1 <= {height}, {half}.")
    if (x0, y0, x1, y1) == (0, 0, width, height):
        raise ValueError(f"--box {box} is the whole image, so that nothing is known; expected a part of it, {half}, or `sdesolve-gen sample`.")
    return box_mask(model.shape, x0, y0, x1, y1)


def _measurements(path: Path) -> Data:
    """Measurements ``y`` of an npz file."""
    try:
        with open_npz(path) as file:
            y = file["y"]
    except UNREADABLE as error:
        raise ValueError(f"{path} is no npz file with an array 'y' ({error}); expected np.savez(path, y=...) with y (n, *measured), or --simulate for pictures.") from error
    if y.ndim < 2 or y.dtype not in (np.float32, np.float64):
        raise ValueError(f"{path}: y is {y.shape} {y.dtype}; expected floats (n, *measured) in the units of the data range.")
    return of_tensor(torch.from_numpy(y))
