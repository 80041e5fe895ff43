"""Images from measurements: draws from the model's law given y = A x + noise, by any method of conditioning and any solver."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

import sdesolve as sd
from sdesolve.methods import METHODS
from sdesolve.methods.reversible_heun import ReversibleHeun
from sdesolve.solve import heeding_levels

from ._errors import unknown
from .class_conditional import rows_leave
from .conditioning import CONDITIONINGS, Measurement, Operator, Renoised
from .conditioning._numbers import real_tensor
from .conditioning.methods import made
from .conditioning.operators import LUMA, Gray, Mask, as_operator, check_operator
from .measuring import check_ends, check_range, check_scale, measured, of_rounding, spread, variance, well_conditioned
from .particles import checked, weighed
from .sampling import bar, calls, checked_seed, count, names

if TYPE_CHECKING:
    from .models import Model

APART = 1 << 16
"""Draw d of the image named i is the sample named i APART + d, so that it is the same however many draws and images there are."""

SOLVERS: dict[str, tuple[str | sd.Stepper, dict[str, Any]]] = {
    "projection": ("pc", {"steps": 500}),
    "repaint": ("ddim", {"steps": 50, "eta": 1.0}),
    "ddrm": ("ddim", {"steps": 50}),
    "ddnm": ("ddim", {"steps": 100, "eta": 1.0}),
    "diffpir": (Renoised(0.3), {"steps": 100}),
}
"""What solves unless the caller says, by method of conditioning: what it was published with, where that is no score for every solver."""
HIDDEN = 5.0
"""Noise, in units of the data's standard deviation along their first direction, in which "dps" and "pigdm" do not follow y unless they are told to."""
FORGETFUL = 40
"""Steps that a walk with noise needs to forget what it missed there: with 20 to 30 digits lose 0.2 dB, and with 3 to 5 up to 8 dB."""
_FAR = 4.0  # residuals in units of the noise that no posterior has; 0.1 to 2.7 on digits in 40 steps
_SHARE = 0.05  # and of what A makes of the difference of two images of random pixels, 0.02 of the data range for pixels themselves; up to 0.005 on digits without noise
_LEAVES = {"dps": 0.25}  # the same of what leaves a residual without noise, too
_ALONE = 2.0  # effective particles at the median node and at the last; 16 have 5 to 9 on digits

DEFAULT_SOLVER: tuple[str | sd.Stepper, dict[str, Any]] = ("dpmpp_2m_sde", {"steps": 100})


_OF_SOLVE = inspect.signature(sd.solve).parameters.keys()


class Restored(NamedTuple):
    """Draws from what the images may have been, image by image."""

    images: Tensor
    """(n, draws, C, H, W) float32 in the data range, but where y without noise says otherwise; a draw that is not "ok" may hold NaN."""
    nfe: Tensor
    """(n, draws) int64, network calls that each draw saw; with "smc" that each of its particles saw."""
    status: np.ndarray
    """(n, draws) strings: "ok", "non_finite", "max_steps" or "min_step"."""
    residual: Tensor
    """(n, draws) root mean square of y - A x in the units of y, of what the method gave: about ``noise_std`` where it is right."""
    method: str
    """How the model was conditioned."""
    sampler: str
    """What solved."""
    seed: int
    log_evidence: Tensor | None = None
    """(n, draws) float64, ln p(y) in nats as each draw's particles have it, with "smc" alone."""
    ess: Tensor | None = None
    """(n, draws, steps + 1) float64, effective number of each draw's particles at each node, with "smc" alone."""
    noise_std: float = 0.0
    """What y was taken to have: more than was said where its rounding is."""

    @property
    def mean(self) -> Tensor:
        """(n, C, H, W) mean over draws: of all estimates the one with the least squared error, and smoother than an image."""
        return self.images.mean(1)

    @property
    def std(self) -> Tensor:
        """(n, C, H, W) standard deviation over draws, pixel by pixel: what the measurement leaves open; NaN for a single draw."""
        return self.images.std(1) if self.images.shape[1] > 1 else torch.full_like(self.images[:, 0], torch.nan)


def inpaint(
    model: Model, images: Tensor, mask: Tensor | np.ndarray, *, noise_std: float = 0.0, noise: str = "gaussian", peak: float | None = None, **options: Any
) -> Restored:
    """Draws of the unknown pixels of images; see ``Model.inpaint``."""
    x = pictures_of(model, "images", images, model.shape)
    masks = real_tensor("mask", mask, "0 and 1, or booleans, (H, W)")
    if masks.dim() == 3 and len(masks) == len(x) != model.shape[0] and len(masks) > 1:
        raise ValueError(f"mask has shape {tuple(masks.shape)} for {len(x)} images; expected one mask for each as (n, 1, H, W): mask[:, None].")
    options |= {"noise": noise, "peak": peak}

    def drawn(image: Tensor, own: Tensor, **named: Any) -> _Drawn:
        operator = Mask(model.shape, own)
        y = operator.forward(image)
        _check_values(model, "images", y, spread(model, noise_std, noise, peak))
        return _drawn(model, y, operator, noise_std, **{**options, **named})

    if masks.dim() == 4 and len(masks) > 1:
        if len(masks) != len(x):
            raise ValueError(f"mask has shape {tuple(masks.shape)} for {len(x)} images; expected one mask for all of them, or {len(x)}.")
        for own in masks:  # all of them before the first is used
            Mask(model.shape, own)
        seed, ids = checked_seed(options.get("seed")), names(len(x), options.get("sample_ids"))
        return _told([drawn(x[i : i + 1], masks[i], seed=seed, sample_ids=[ids[i]]) for i in range(len(x))])
    return _told([drawn(x, masks[0] if masks.dim() == 4 else masks)])


def colorize(
    model: Model, gray: Tensor, *, weights: Sequence[float] = LUMA, noise_std: float = 0.0, noise: str = "gaussian", peak: float | None = None, **options: Any
) -> Restored:
    """Draws of the colours of gray images; see ``Model.colorize``."""
    operator = luminance(model, weights)
    if isinstance(gray, Tensor) and gray.dim() == 4 and gray.shape[1] == 3:
        if bool((gray != gray[:, :1]).any()):
            raise ValueError("gray has three different channels; expected a gray image, (n, 1, H, W), or three equal channels: m.restore(images, Gray(m.shape)) measures first.")
        gray = gray[:, :1]
    y = pictures_of(model, "gray", gray, operator.measured)
    _check_values(model, "gray", y, spread(model, noise_std, noise, peak))
    return _told([_drawn(model, y, operator, noise_std, noise=noise, peak=peak, **options)])


def luminance(model: Model, weights: Sequence[float] = LUMA) -> Gray:
    """What a gray image is of the images of a model of colour images: the weights are divided by their sum, so that it and its noise are in the units of the data range."""
    if model.shape[0] != 3:
        raise ValueError(f"the model {model.card['name']} makes images {model.shape}; expected one of 3 channels, whose colours can be drawn.")
    gray = Gray(model.shape, weights)
    total = float(gray.weights.sum())
    if abs(total) < 1e-6 * gray.length:
        raise ValueError(f"weights={tuple(weights)} sum to 0, and no luminance has them; expected a sum that is not 0, as in {LUMA}.")
    return Gray(model.shape, (gray.weights / total).tolist())


def restore(model: Model, y: Tensor, operator: Any, noise_std: float | None = None, method: str = "auto", **options: Any) -> Restored:
    """Draws of x given y = A x + noise; see ``Model.restore``."""
    return _told([_drawn(model, y, operator, noise_std, method, **options)])


class _Drawn(NamedTuple):
    """Draws of images that one operator measured, and what is to be said of them."""

    restored: Restored
    ids: list[int]
    allowed: float
    """y - A x beyond which a draw is far from y, in the units of y."""
    noise_std: float
    """Of all the noise in y."""
    linear: bool
    particles: int | None


@torch.no_grad()
def _drawn(
    model: Model,
    y: Tensor,
    operator: Any,
    noise_std: float | None = None,
    method: str = "auto",
    *,
    noise: str = "gaussian",
    peak: float | None = None,
    draws: int = 1,
    sampler: str | sd.Stepper | None = None,
    method_options: Mapping[str, Any] | None = None,
    seed: int | None = None,
    sample_ids: Sequence[int] | Tensor | None = None,
    batch_size: int | None = None,
    denoise: bool = True,
    progress: bool = False,
    **options: Any,
) -> _Drawn:
    """Draws of x given y = A x + noise, of which nothing is said yet."""
    draws, seed = count("draws", draws), checked_seed(seed)
    if draws > APART:
        raise ValueError(f"draws={draws}; expected at most {APART}, which have names of their own: take more by another seed.")
    if model.classes:
        raise ValueError(f"the model {model.card['name']!r} knows classes, and a restoration is of one; expected m.of_class(3).restore(...), or {model.classes} for no class.")
    for name in ("labels", "guidance", "classifier", "classifier_scale"):
        if name in options:
            raise ValueError(f"{name}=... is for the model, which is then of one class; expected m.of_class(3, guidance=2.0) or m.of_class(3, classifier=...).")
    if method_options is not None and not isinstance(method_options, Mapping):
        raise TypeError(f"method_options={method_options!r}; expected names and values, as in method_options={{'steps': 1000}}.")
    if isinstance(operator, str):
        raise TypeError(f"operator is the text {operator!r}; expected an operator, as conditioning.operators.make({operator!r}, m.shape, ...) makes it of a name.")
    operator = as_operator(operator, model.shape, model.device)
    check_operator(operator, model.device)
    measurement = measured(model, real_tensor("y", y, f"floats (n, {', '.join(map(str, operator.measured))})"), operator, noise_std, noise, peak)
    check_range(measurement, model.data_range)
    check_scale(measurement, model.data_range, model.levels)
    check_ends(measurement, model.data_range)
    measurement = of_rounding(measurement, model.data_range, model.levels)
    method, suited = _chosen(method, operator, model)
    ids, size = names(len(measurement.y), sample_ids), None if batch_size is None else count("batch_size", batch_size)
    ids = [name * APART + draw for name in ids for draw in range(draws)]
    if method == "smc":
        how = checked(options, method_options or {}, sampler, denoise)
        return _by_particles(model, measurement, draws, ids, seed, size, progress, how)
    own, options = _split(method, options, method_options, model)
    own = suited | own
    _check_whose(method, sampler, options)
    sampler, options = _solver(method, sampler, own, options)
    _check_known(method, sampler, options)
    own = _where_seen(method, sampler, options, own, model)
    apart = rows_leave(sampler, options.get("steps"), options)
    batches = [part for rows in torch.arange(len(ids)).split(draws if apart else len(ids)) for part in rows.split(size or len(ids))]

    def solve(rows: Tensor, observe: Callable[[sd.Moment], None] | None) -> sd.Solution:
        """Draws number ``rows`` of all."""
        chunk = [ids[row] for row in rows.tolist()]
        own_y = rows[:1] // draws if apart else rows // draws  # one for all rows serves any number of them
        given = replace(measurement, y=measurement.y[own_y.to(model.device)])
        score, constraint, walked = CONDITIONINGS[method](model.score, given, **own)
        stepper, left = (sampler, options) if walked is None else _walked(walked, sampler, options)
        x = model.process.prior((len(chunk), *model.shape), seed=seed, sample_ids=chunk, device=model.device)
        how: dict[str, Any] = {"seed": seed, "sample_ids": chunk, "denoise": denoise, "callback": observe, "constraint": constraint, **left}
        return sd.solve(model.process.reverse(score), x, stepper, **how)

    with heeding_levels(7), bar(progress, len(ids), model.process.reverse(model.score).interval, options.get("steps")) as observed, warnings.catch_warnings():
        warnings.simplefilter("ignore", sd.SolveWarning)  # it would count within the chunk; below, the images are named
        solutions = [solve(rows, observed(len(rows)) if observed else None) for rows in batches]
    status, nfe = np.concatenate([solution.status for solution in solutions]), torch.cat([calls(solution) for solution in solutions])
    told = sampler if isinstance(sampler, str) else type(sampler).__name__
    return _made(model, measurement, draws, torch.cat([solution.x for solution in solutions]), nfe, status, ids, (method, told, seed))


def _by_particles(
    model: Model, measurement: Measurement, draws: int, ids: list[int], seed: int, size: int | None, progress: bool, how: dict[str, Any]
) -> _Drawn:
    """Each draw chosen among particles of its own."""
    with heeding_levels(8):
        found = weighed(model, replace(measurement, y=measurement.y.repeat_interleave(draws, 0)), ids, seed, size, progress, how)
    status = np.where(found.log_evidence.isfinite().numpy(), "ok", "non_finite")
    made = _made(model, measurement, draws, found.x, torch.full((len(ids),), found.nfe), status, ids, ("smc", "smc", seed))
    restored = made.restored._replace(log_evidence=found.log_evidence.reshape(-1, draws), ess=found.ess.unflatten(0, (-1, draws)))
    return made._replace(restored=restored, particles=how["particles"])


def _made(
    model: Model, measurement: Measurement, draws: int, x: Tensor, nfe: Tensor, status: np.ndarray, ids: list[int], told: tuple[str, str, int]
) -> _Drawn:
    """What was drawn, image by image: what was measured without noise is put in place, and all is cut to the data range."""
    operator, expected, exact = measurement.operator, measurement.y.repeat_interleave(draws, 0), measurement.noise_std == 0 and measurement.noise == "gaussian"
    residual = (expected - operator.forward(x)).flatten(1).square().mean(1).sqrt()
    x = consistent(x, operator, expected, model.data_range) if exact and well_conditioned(operator, expected) else x.clamp(*model.data_range)
    shape = (len(measurement.y), draws)
    restored = Restored(x.reshape(*shape, *model.shape), nfe.reshape(shape), status.reshape(shape), residual.reshape(shape), *told, noise_std=measurement.noise_std)
    noise_std, range_of_y = float(variance(measurement).max()) ** 0.5, _range_of(measurement, model.data_range)
    return _Drawn(restored, ids, _FAR * noise_std + _LEAVES.get(told[0], _SHARE) * range_of_y, noise_std, operator.linear, None)


def consistent(x: Tensor, operator: Operator, y: Tensor, data_range: tuple[float, float]) -> Tensor:
    """The nearest x in the data range with A x = y, by projections onto the one and the other in turn: y without noise says what A x is.

    Where no x in the range has it, as for a known pixel that is a little beyond, y is kept and x leaves the range by as much.
    """
    low, high = data_range
    for _ in range(200):
        x = (x + operator.pinv(y - operator.forward(x))).clamp(low, high)
        left = (y - operator.forward(x)).abs().max()
        if not bool(left > 1e-5 * (high - low)):
            return x
    return x + operator.pinv(y - operator.forward(x)) if bool(left > 5e-4 * (high - low)) else x


def scaled(model: Model, pictures: Tensor) -> Tensor:
    """Pictures in the data range: integers are levels, 0..levels - 1, of which each becomes the middle of its bin; floats stay."""
    if pictures.is_floating_point():
        return pictures.detach().to(model.device, torch.float32)
    if pictures.is_complex():
        raise TypeError(f"pictures are {pictures.dtype}; expected real numbers: integers from 0 to {model.levels - 1}, or floats in {model.data_range}.")
    if pictures.dtype == torch.bool or int(pictures.min()) < 0 or int(pictures.max()) >= model.levels:
        values = f"values {pictures.min().item()} to {pictures.max().item()} of {pictures.dtype}"
        raise ValueError(f"pictures have {values}; expected integers from 0 to {model.levels - 1}, or floats in {model.data_range}.")
    low, high = model.data_range
    return (low + (pictures.to(model.device, torch.float32) + 0.5) * ((high - low) / model.levels)).clamp(low, high)


def pictures_of(model: Model, name: str, pictures: Tensor | np.ndarray, shape: tuple[int, ...]) -> Tensor:
    """Pictures (n, *shape) in the data range."""
    pictures = torch.from_numpy(pictures) if isinstance(pictures, np.ndarray) else pictures
    if not isinstance(pictures, Tensor) or pictures.dim() != 4 or tuple(pictures.shape[1:]) != tuple(shape) or not len(pictures):
        got = tuple(pictures.shape) if isinstance(pictures, Tensor) else f"a {type(pictures).__name__}"
        raise ValueError(f"{name}: got {got}; expected a tensor (n, {', '.join(map(str, shape))}): {name}[None] for a single one.")
    return scaled(model, pictures)


def _check_values(model: Model, name: str, values: Tensor, spread: float) -> None:
    """That values seen are finite and near the data range, with noise of that standard deviation."""
    low, high = model.data_range
    if not bool(values.isfinite().all()):
        raise ValueError(f"{name} are not finite where they are known; expected a mask that is 0 there.")
    room = 0.05 * (high - low) + max(0.0, 6 * spread)
    if float(values.min()) < low - room or float(values.max()) > high + room:
        raise ValueError(
            f"{name} have values from {float(values.min()):.4g} to {float(values.max()):.4g}, and the model's data lie in [{low:g}, {high:g}]; "
            f"expected floats in that range, or integers from 0 to {model.levels - 1}: {name}.to(torch.uint8)."
        )


def _chosen(method: str, operator: Operator, model: Model) -> tuple[str, dict[str, Any]]:
    """The method by name, or the one that suits with its options: see ``Model.restore``."""
    if method == "auto":
        if not operator.linear:
            return "dps", {}
        if model.shape[0] == 3:  # pixels and channels of photographs are alike; PiGDM takes them for independent and pulls too hard
            return "mmps", {"iterations": 1}
        return "pigdm", {}
    if not isinstance(method, str) or method not in {*CONDITIONINGS, "smc"}:  # by then there may be more of them
        raise ValueError(unknown("method", method, ["auto", *CONDITIONINGS, "smc"]))
    return method, {}


def _solver(method: str, sampler: str | sd.Stepper | None, own: dict[str, Any], options: dict[str, Any]) -> tuple[str | sd.Stepper, dict[str, Any]]:
    """What solves, and its options."""
    for name in ("save", "callback", "constraint"):
        if name in options:
            raise ValueError(f"{name}=... is not for whole batches of images: use sdesolve.solve with {method}(m.score, measurement).")
    if sampler is not None:
        if not isinstance(sampler, str | sd.Stepper):
            raise TypeError(f"sampler is a {type(sampler).__name__}; expected a name from sdesolve.methods() or a Stepper, as in sampler='ddim'.")
        if isinstance(sampler, ReversibleHeun) or sampler == "reversible_heun":
            raise ValueError(
                "sampler='reversible_heun' strays by as much as the equation contracts, and a measurement makes it contract: where y has little noise nothing is left of "
                "the images; it is for gradients, which a restoration has none of: expected another, as in sampler='dpmpp_2m_sde'."
            )
        return sampler, options
    chosen, defaults = SOLVERS.get(method, DEFAULT_SOLVER)
    if method == "dps" and own.get("steps") is not None:  # the published rule is for so many equal steps and no others
        chosen, defaults = "euler_maruyama", {"steps": own["steps"], "grid": "uniform"}
        if options.get("steps", own["steps"]) != own["steps"]:
            taken, told = options["steps"], own["steps"]
            raise ValueError(f"steps={taken} and method_options={{'steps': {told}}}; expected one number: the published rule of dps is for the steps that are taken.")
    paced = {"grid", "nfe"} & set(options)
    return chosen, {**{name: value for name, value in defaults.items() if not (name == "steps" and paced)}, **options}


def _split(method: str, options: dict[str, Any], given: Mapping[str, Any] | None, model: Model) -> tuple[dict[str, Any], dict[str, Any]]:
    """Options of the conditioning method, which has them in its signature, and those of the solver.

    Where they were not ``given`` apart, the solver has the first say on what both may have.
    """
    known = inspect.signature(CONDITIONINGS[method]).parameters.keys() - {"score", "measurement"}
    told = {"prior_std": model.data_std} if "prior_std" in known and {**options, **(given or {})}.get("prior_std") is None else {}
    if given is None:
        mine = known - _OF_SOLVE
        return {key: value for key, value in options.items() if key in mine} | told, {key: value for key, value in options.items() if key not in mine}
    for name in given:
        if name not in known:
            raise ValueError(unknown(f"option of method={method!r}:", name, known))
    return dict(given) | told, options


def _check_whose(method: str, sampler: str | sd.Stepper | None, options: Mapping[str, Any]) -> None:
    """Refuse an option of another conditioning method, which the sampler does not know, by whose it is."""
    solver = SOLVERS.get(method, DEFAULT_SOLVER)[0] if sampler is None else sampler
    solvers = inspect.signature(METHODS[solver]).parameters if isinstance(solver, str) and solver in METHODS else {}
    others = {other: inspect.signature(make).parameters.keys() - {"score", "measurement"} - _OF_SOLVE for other, make in CONDITIONINGS.items() if other != method}
    for name in options:
        owners = [other for other, theirs in others.items() if name in theirs]
        own = inspect.signature(CONDITIONINGS[method]).parameters.keys() - {"score", "measurement"}
        if owners and name not in own and name not in solvers:
            said = f"which has {', '.join(sorted(own))}" if own else "which has no options"
            raise ValueError(f"{name}={options[name]!r} is an option of method={owners[0]!r}, and the method here is {method!r}, {said}.")


def _check_known(method: str, sampler: str | sd.Stepper, options: Mapping[str, Any]) -> None:
    """Refuse an option that neither the conditioning method nor a sampler by name has, of whose names the nearest is suggested."""
    if not isinstance(sampler, str) or sampler not in METHODS:
        return
    parameters = inspect.signature(METHODS[sampler]).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return
    theirs = {parameter.name for parameter in parameters}
    for name in options:
        if name not in theirs | _OF_SOLVE:
            known = theirs | (inspect.signature(CONDITIONINGS[method]).parameters.keys() - {"score", "measurement"})
            raise ValueError(unknown(f"option of method={method!r} or sampler={sampler!r}:", name, known))


def _where_seen(method: str, sampler: str | sd.Stepper, options: Mapping[str, Any], own: dict[str, Any], model: Model) -> dict[str, Any]:
    """``own`` with the noise levels at which y pulls, where nobody gave them: a walk of many steps with noise forgets what it missed where the noise hides the data.

    Along a direction in which Gaussian data have standard deviation c, and s given y, the draws of a walk that follows y from the noise h on are short of where y moves
    them by the share s^2/(s^2 + h^2):  by 1.5 % of c at most where y is what it is expected to be.  Methods that are exact pull everywhere, and the published rule of "dps".
    """
    free = method in ("dps", "pigdm") and own.get("within") is None and own.get("steps") is None
    many = any(isinstance(count, int) and count >= FORGETFUL for count in (options.get("steps"), options.get("nfe")))
    if not free or not many or model.moments is None or model.moments.directions is None or not _forgets(sampler, options):
        return own
    return own | {"within": (0.0, HIDDEN * model.moments.widest)}


def _forgets(sampler: str | sd.Stepper, options: Mapping[str, Any]) -> bool:
    """Whether it is known that each step takes one evaluation, and has all the noise of the reverse SDE, of which a small ``eta`` or ``tau`` leaves little."""
    if isinstance(sampler, str) and sampler not in METHODS:  # "auto", or another package's
        return False
    stepper = made(sampler, **{key: value for key, value in options.items() if key not in _OF_SOLVE})
    return bool(stepper.facts.kinds) and stepper.facts.evals == 1 and all(getattr(stepper, name, 1.0) == 1.0 for name in ("eta", "tau"))


def _walked(walk: Callable[..., sd.Stepper], sampler: str | sd.Stepper, options: dict[str, Any]) -> tuple[sd.Stepper, dict[str, Any]]:
    """What a conditioning method walks with in the place of the sampler, and the options of ``solve`` that are left."""
    return walk(sampler, **{key: value for key, value in options.items() if key not in _OF_SOLVE}), {key: value for key, value in options.items() if key in _OF_SOLVE}


def _told(parts: list[_Drawn]) -> Restored:
    """The draws of all parts, image by image; failures are named, and draws that are far from y or hang on few particles counted, over all of them."""
    each = [part.restored for part in parts]
    held = [name for name in ("images", "nfe", "residual", "log_evidence", "ess") if getattr(each[0], name) is not None]
    joined: dict[str, Any] = {name: torch.cat([getattr(one, name) for one in each]) for name in held}
    whole = each[0]._replace(status=np.concatenate([one.status for one in each]), **joined)
    if whole.ess is not None and parts[0].particles is not None:
        _warn_few(whole.ess.flatten(0, 1), parts[0].particles)
    _warn([name for part in parts for name in part.ids], whole.status.flatten())
    _warn_far(parts)
    return whole


def _range_of(measurement: Measurement, data_range: tuple[float, float]) -> float:
    """How far apart y is, root mean square, of two images of random pixels."""
    operator, (low, high) = measurement.operator, data_range
    a, b = (high - low) * torch.rand(2, 1, *operator.event, generator=torch.Generator().manual_seed(0)).to(measurement.y) + low
    return float((operator.forward(a) - operator.forward(b)).square().mean().sqrt())


def _warn_far(parts: list[_Drawn]) -> None:
    """Say where draws do not fit the measurement, which few steps and a strong pull leave them with; all in the units of y."""
    far = sum(int((part.restored.residual > part.allowed).sum()) for part in parts)
    if far:
        worst, noise_std = max(float(part.restored.residual.nan_to_num(0.0).max()) for part in parts), max(part.noise_std for part in parts)
        of = sum(part.restored.residual.numel() for part in parts)
        said = f"{far} of {of} draws are far from the measurement: y - A x is up to {worst:.3g}, where noise_std = {noise_std:g}"
        other = f"another method, as in method={'mmps' if parts[0].restored.method == 'pigdm' else 'pigdm'!r}" if parts[0].linear else "a stronger pull, as in zeta=2"
        warnings.warn(f"{said}. Expected more steps, as in steps=100, a larger noise_std where y has more, or {other}.", sd.SolveWarning, stacklevel=5)


def _warn_few(ess: Tensor, particles: int) -> None:
    """Say where the particles of draws are copies of a single one at most nodes, or at the last, (n, steps + 1), so that nothing is left of being exact in the limit."""
    alone = int((torch.minimum(ess.median(1).values, ess[:, -1]) < _ALONE).sum())
    if alone:
        said = f"{alone} of {len(ess)} draws hang on fewer than {_ALONE:g} effective particles of {particles} at most nodes or at the last, so that they and log_evidence"
        warnings.warn(f"{said} are far from the limit: expected more of them, as in particles={4 * particles}, or more noise in y.", sd.SolveWarning, stacklevel=5)


def _warn(ids: list[int], status: np.ndarray) -> None:
    """Name the draws that are not "ok"."""
    failed = [(i, said) for i, said in zip(ids, status, strict=True) if said not in ("ok", "event")]
    if failed:
        shown = ", ".join(f"image {i // APART}, draw {i % APART}: {said}" for i, said in failed[:5])
        warnings.warn(f"{len(failed)} of {len(ids)} draws did not arrive ({shown}{', ...' if len(failed) > 5 else ''}).", sd.SolveWarning, stacklevel=5)
