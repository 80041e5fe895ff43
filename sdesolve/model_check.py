"""Is a model what its owner says?  Measured on data, with the convention that would fit when it is not.

Perturb data with known noise, x = alpha x_0 + sigma eps, at several times.  Every parameterisation is linear in the score,
score = on_x x + on_output out, so a network output ``out`` multiplied by a factor c is wrong about the noise by

    r(c) = sigma score + eps = u + c g,        u = sigma on_x x + eps,        g = sigma on_output out.

Two numbers follow from the sums |u|^2, <u, g> and |g|^2 of each row:

    loss   L(t) = E|r(1)|^2 / d     the weighted denoising loss: 1 for score = 0, and above the Bayes optimum for any model
    slope  c(t) = -<u, g> / |g|^2   the factor that fits best: 1 for a posterior mean, -1 for a wrong sign, 1/2 for an
                                    output twice too big, whatever the data are.  It is the regression of the training
                                    target on the output, so it is well conditioned wherever the network was trained.

Over times the loss is weighted by  w = sigma^2/(sigma^2 + alpha^2 V), V the variance of the data:  w |r|^2 is the error of
eps at high noise and that of x_0, in units of V, at low noise.  Both ends then weigh little, as they must: there honest
networks err (an x_0 network by 1/sigma at low noise) and dishonest ones do not (any x_0 will do in pure noise).  The sum is
quoted relative to that of the best denoiser  m + k (x - alpha m)  of isotropic Gaussian data, and is called ``error``:
about 1 for a model that knows the mean and variance of the data alone, less for one that knows more.

A convention is then (predicts, time, factor), and all are compared on the same rows, the same noise and the same outputs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ._errors import integer
from .noise import DATA, SeededNormals
from .processes import Process
from .scores import PARAMETERISATIONS, TIME_CONVENTIONS, Model, Score, TimeConvention, as_score

SLOPE_TOLERANCE = 0.05  # of the slope over all times
LARGEST_ERROR = 1.25  # a model that knows no more than the mean and variance of the data has 1
CLEARLY = 0.95  # another convention is better if its error is below this fraction, and significantly so
HALF_WIDTH = 6.0  # times are chosen where |ln(SNR V)| is below this, as far as the process goes
_INDICES = 1000  # the number of levels tried where none was claimed: DDPM's


class Level(NamedTuple):
    """The claimed convention at one time.

    t, sigma: time and noise level.  loss: E|sigma score + eps|^2/d.  affine: that of the best isotropic Gaussian denoiser.
    slope, se: best factor of the output, 1 if it is a posterior mean, and its standard error over rows (inf: output zero).
    """

    t: float
    sigma: float
    loss: float
    affine: float
    slope: float
    se: float


class Candidate(NamedTuple):
    """One convention: the score made of ``factor * model`` by (predicts, time), and its error (inf: the model failed)."""

    predicts: str
    time: TimeConvention
    factor: float
    error: float


@dataclass(frozen=True)
class ModelCheck:
    """What :func:`check_model` measured; ``print`` it for a table.

    Attributes:
        predicts, time, sigma_data: the claim.
        levels: one :class:`Level` per time, from pure noise to data.
        slope, slope_se: best factor of the output over all times and its standard error; 1 is right.
        error, error_se: weighted loss relative to the best isotropic Gaussian denoiser; lower is better, 1 is no knowledge.
        candidates: every convention tried, best first.
        best: the convention to use, which is the claim if it passed; None if none fits.
        reasons: why the claim was refused; empty if it passed.
    """

    predicts: str
    time: TimeConvention
    sigma_data: float
    levels: tuple[Level, ...]
    slope: float
    slope_se: float
    error: float
    error_se: float
    candidates: tuple[Candidate, ...]
    best: Candidate | None
    reasons: tuple[str, ...]

    @property
    def ok(self) -> bool:
        return not self.reasons

    def __str__(self) -> str:
        verdict = "as claimed" if self.ok else "NOT as claimed: " + "; ".join(self.reasons)
        lines = [
            f'predicts="{self.predicts}", time={_time_name(self.time)}: {verdict}',
            f"slope {_pm(self.slope, self.slope_se)} (1 is right), error {_pm(self.error, self.error_se)} (1 is a Gaussian guess)",
            "",
            "         t      sigma       loss     affine      slope         se",
            *("".join(f"{value:>10.4g} " for value in level).rstrip() for level in self.levels),
            "",
            "     error  convention",
            *(f"{c.error:>10.4g}  {_describe(c)}" for c in self.candidates[:6]),
        ]
        return "\n".join(lines)


class ModelCheckError(ValueError):
    """The model is not what was claimed; ``check`` holds the measurement."""

    def __init__(self, message: str, check: ModelCheck) -> None:
        super().__init__(message)
        self.check = check


def check_model(
    model: Model,
    process: Process,
    x0: Tensor,
    *,
    predicts: str,
    time: TimeConvention = "continuous",
    sigma_data: float = 0.5,
    seed: int = 0,
    times: int = 8,
    batch_size: int = 64,
) -> ModelCheck:
    """Regress a model's output on known noise, and refuse a wrong parameterisation, sign, scale or time.

    The claim passes if the slope over all times (formulas at the top of this file) is 1 within 5 % plus 4 standard errors over
    rows or 2.5 over times; if its error is at most 1.25 plus 4 standard errors; and if no other convention has an error 5 %
    and 4 standard errors (of the difference, paired over rows) lower.  Conventions that this process cannot tell apart have
    equal errors, and pass alike.
    A network that is not trained out, or errs at some noise levels, passes under its own name.  Few rows refuse little: give
    64 images, or 1000 rows of a few numbers.

    Cost: 10 network calls per time and row (12 where ``time`` is not a usual one), under ``torch.no_grad``.  The model is
    called as it is, for that is what a solver will see: put a module in eval mode first, as for sampling.

    Arguments:
        model, process, predicts, time, sigma_data: the claim, as for :func:`sdesolve.as_score`.
        x0: data, (B, *event), floating, finite, B >= 2, on the model's device, scaled as the model was trained.
        seed: names the noise; row i at time k sees the same numbers in every call.
        times: number of times, >= 2, equally spaced in log SNR; snapped to the model's own levels where ``time`` is an integer.
        batch_size: rows per network call.

    Returns:
        :class:`ModelCheck`.

    Raises:
        ModelCheckError: (a ValueError) the claim does not fit.  Says what was measured, what fits, and the line to type.
        ValueError: an argument is out of range.  What the model itself raises under the claimed convention is not caught.

    The loss is that of denoising score matching.  [Vincent 2011, eq. 11; Song et al. 2021, eq. 7]
    """
    claim = as_score(model, process, predicts=predicts, time=time, sigma_data=sigma_data)
    _validate(x0, sigma_data, times, batch_size)
    data = x0.detach() if x0.dtype in (torch.float32, torch.float64) else x0.detach().float()
    ts = _times(process, _variance(data), times, time)
    trials, affine = _measure(claim, data, ts, seed, batch_size)
    check = _judge(claim, ts, _weights(process, ts, _variance(data)), trials, affine)
    if not check.ok:
        raise ModelCheckError(_message(check, model, data), check)
    return check


# -- measuring -----------------------------------------------------------------------------------------------------------


class _Trial(NamedTuple):
    """(predicts, time), and  sums[k, :, i] = (|u|^2, <u, g>, |g|^2)/d  of time k and row i; NaN where the model failed."""

    predicts: str
    time: TimeConvention
    sums: Tensor

    def losses(self, factor: float) -> Tensor:
        """|u + factor g|^2 / d, (times, B)."""
        uu, ug, gg = self.sums.unbind(1)
        return uu + 2 * factor * ug + factor * factor * gg


def _measure(claim: Score, x0: Tensor, ts: list[float], seed: int, batch_size: int) -> tuple[list[_Trial], Tensor]:
    """All trials, the claimed one first, and the losses (times, B) of the best isotropic Gaussian denoiser."""
    conventions = list(_conventions(claim, x0.device))
    trials = [_Trial(p, time, torch.full((len(ts), 3, len(x0)), torch.nan, dtype=torch.float64)) for p, time in conventions]
    affine = torch.empty(len(ts), len(x0), dtype=torch.float64)
    failed: list[tuple[TimeConvention, bool]] = []
    mean, variance = float(x0.double().mean()), _variance(x0)
    for start in range(0, len(x0), batch_size):
        rows = slice(start, min(start + batch_size, len(x0)))
        noise = SeededNormals(seed, range(rows.start, rows.stop), x0.shape[1:], dtype=x0.dtype, device=x0.device, stream=DATA)
        for k, t in enumerate(ts):
            eps = noise.normal(k)
            x = float(claim.process.alpha(t)) * x0[rows] + float(claim.process.sigma(t)) * eps
            affine[k, rows] = _affine_loss(claim.process, t, x, eps, mean, variance)
            _try_all(claim, trials, failed, x, eps, t, (k, rows))
    return trials, affine


def _conventions(claim: Score, device: torch.device) -> Iterator[tuple[str, TimeConvention]]:
    times: list[TimeConvention] = [claim.time, *(name for name in TIME_CONVENTIONS if name != claim.time)]
    # On a GPU an index beyond an embedding's table kills the process's context instead of raising: try no larger one than claimed.
    if claim.time != _INDICES and (device.type == "cpu" or not isinstance(claim.time, int) or claim.time > _INDICES):
        times.append(_INDICES)
    yield claim.predicts, claim.time
    yield from ((name, time) for time in times for name in PARAMETERISATIONS if (name, time) != (claim.predicts, claim.time))


def _try_all(
    claim: Score,
    trials: list[_Trial],
    failed: list[tuple[TimeConvention, bool]],
    x: Tensor,
    eps: Tensor,
    t: float,
    where: tuple[int, slice],
) -> None:
    """Fill ``sums`` of every trial at one time and one batch of rows, with one network call per (time, scale of the input)."""
    outputs: list[tuple[tuple[TimeConvention, bool], Tensor]] = []
    for trial in trials:
        score = Score(claim.model, claim.process, trial.predicts, trial.time, claim.sigma_data)
        on_x, on_output, scale = score.linear(t)
        call = (trial.time, scale is not None)
        if call in failed:
            continue
        out = next((output for made, output in outputs if made == call), None)
        if out is None:
            try:
                with torch.no_grad():
                    out = score.model_output(x, t).double()
            except Exception:  # a network may refuse a time it was not made for in any way it likes
                if trial is trials[0]:
                    raise
                failed.append(call)
                continue
            outputs.append((call, out))
        sigma = float(claim.process.sigma(t))
        u = eps.double() if on_x is None else sigma * on_x * x.double() + eps.double()
        g = sigma * (1.0 if on_output is None else on_output) * out
        k, rows = where
        trial.sums[k, :, rows] = torch.stack([(a * b).flatten(1).mean(1) for a, b in ((u, u), (u, g), (g, g))]).cpu()


def _affine_loss(process: Process, t: float, x: Tensor, eps: Tensor, mean: float, variance: float) -> Tensor:
    """|sigma score + eps|^2/d of the score of N(mean, variance I), (B,)."""
    alpha, sigma = float(process.alpha(t)), float(process.sigma(t))
    r = eps.double() - sigma * (x.double() - alpha * mean) / (sigma * sigma + alpha * alpha * variance)
    return r.square().flatten(1).mean(1).cpu()


def _times(process: Process, variance: float, count: int, time: TimeConvention) -> list[float]:
    """From noise to data, equally spaced in log SNR over what is informative of [eps, T]."""
    ends = float(process.log_snr(process.T)), float(process.log_snr(process.eps))
    low, high = max(ends[0], -HALF_WIDTH - math.log(variance)), min(ends[1], HALF_WIDTH - math.log(variance))
    if low >= high:  # data far larger or smaller than the process is made for: measure it all the same
        low, high = ends
    inner = [low + (high - low) * k / (count - 1) for k in range(count)]
    ts = [min(max(float(process.log_snr_inverse(value)), process.eps), process.T) for value in inner]
    if not isinstance(time, int):
        return ts
    origin, step = process.origin, (process.horizon - process.origin) / (time - 1)  # between levels the model was never meant to be right
    first, last = int(not origin), int((process.T - origin) / step * (1 + 1e-9))
    return sorted({origin + min(max(first, round((t - origin) / step)), last) * step for t in ts}, reverse=True)


def _weights(process: Process, ts: list[float], variance: float) -> Tensor:
    """w = sigma^2/(sigma^2 + alpha^2 V), (times,)."""
    return torch.tensor([1 / (1 + math.exp(float(process.log_snr(t))) * variance) for t in ts], dtype=torch.float64)


def _variance(x0: Tensor) -> float:
    return float(x0.double().var())


# -- judging -------------------------------------------------------------------------------------------------------------


def _ratio(a: Tensor, b: Tensor) -> tuple[float, float]:
    """sum(a)/sum(b) over rows, and its standard error by linearisation."""
    total = float(b.sum())
    if total == 0:
        return math.nan, math.inf
    value = float(a.sum()) / total
    return value, float((a - value * b).std()) * math.sqrt(len(a)) / total


def _quantile(rows: int) -> float:
    """What 4 standard errors are with few rows: Student's t, by the first two terms of Cornish and Fisher's expansion."""
    nu = rows - 1
    return 4 + 17 / nu + 64 / nu**2


class _Jury:
    """The trials under one weighting: slopes, errors, and paired comparisons."""

    def __init__(self, weights: Tensor, affine: Tensor) -> None:
        self._weights, self._affine = weights, weights @ affine
        self._quantile = _quantile(affine.shape[1])

    def slope(self, trial: _Trial) -> tuple[float, float]:
        """Over all times, and its standard error over rows."""
        _, ug, gg = trial.sums.unbind(1)
        return _ratio(-(self._weights @ ug), self._weights @ gg)

    def slope_tolerance(self, trial: _Trial) -> float:
        """5 %, plus 4 standard errors over rows or 2.5 over times.

        A wrong factor gives the same slope at every time.  A network that is not trained out is off by 10 to 50 % here and
        there, which averages to 1 in training alone, so that the spread over times says what the average is worth.
        """
        _, ug, gg = trial.sums.unbind(1)
        _, over_times = _ratio(-(self._weights * ug.sum(1)), self._weights * gg.sum(1))
        return SLOPE_TOLERANCE + max(self._quantile * self.slope(trial)[1], 2.5 * over_times)

    def error(self, trial: _Trial, factor: float) -> tuple[float, float]:
        value, se = _ratio(self._weights @ trial.losses(factor), self._affine)
        return (value, se) if math.isfinite(value) else (math.inf, math.inf)

    def candidate(self, trial: _Trial, factor: float) -> Candidate:
        return Candidate(trial.predicts, trial.time, factor, self.error(trial, factor)[0])

    def better(self, trial: _Trial, factor: float, other: _Trial, other_factor: float, errors: float = 4.0) -> bool:
        """Is the error of ``trial`` lower than the ``other``'s by 5 % and so many standard errors, paired over rows?"""
        error, reference = self.error(trial, factor)[0], self.error(other, other_factor)[0]
        if not math.isfinite(error) or not math.isfinite(reference):
            return error < reference
        gain, se = _ratio(self._weights @ (other.losses(other_factor) - trial.losses(factor)), self._affine)
        return error < CLEARLY * reference and gain > errors / 4 * self._quantile * se

    def calibrated(self, trial: _Trial, sign: float) -> bool:
        """Is the slope 1 (or -1) as far as can be told?  An output of zero cannot be told from any multiple of itself."""
        tolerance = self.slope_tolerance(trial)
        return math.isinf(tolerance) or abs(sign * self.slope(trial)[0] - 1) <= tolerance

    def worse_than_a_guess(self, trial: _Trial) -> bool:
        error, se = self.error(trial, 1.0)
        return not error <= LARGEST_ERROR + (self._quantile * se if math.isfinite(error) else 0.0)

    def explains(self, trial: _Trial, factor: float) -> bool:
        """Is a convention worth proposing?  A small or a lucky output can be harmless: it must be the output that fits, not its absence."""
        error, without = self.error(trial, factor)[0], self.error(trial, 0.0)[0]
        return self.better(trial, factor, trial, 0.0) and (error < 0.98 or error < min(LARGEST_ERROR, 0.5 * without))


def _judge(claim: Score, ts: list[float], weights: Tensor, trials: list[_Trial], affine: Tensor) -> ModelCheck:
    jury = _Jury(weights, affine)
    claimed, plain = trials[0], [(trial, sign) for trial in trials for sign in (1.0, -1.0)]
    levels = _levels(claim.process, ts, claimed, affine)
    reasons = tuple(_reasons(jury, claimed, plain))
    best = _best(jury, claimed, plain, trials) if reasons else (claimed, 1.0)
    (slope, slope_se), (error, error_se) = jury.slope(claimed), jury.error(claimed, 1.0)
    ranked = sorted((jury.candidate(*option) for option in plain), key=lambda c: c.error)
    fit = None if best is None else jury.candidate(*best)
    return ModelCheck(claim.predicts, claim.time, claim.sigma_data, levels, slope, slope_se, error, error_se, tuple(ranked), fit, reasons)


def _levels(process: Process, ts: list[float], trial: _Trial, affine: Tensor) -> tuple[Level, ...]:
    losses, sums = trial.losses(1.0), trial.sums
    return tuple(
        Level(t, float(process.sigma(t)), float(losses[k].mean()), float(affine[k].mean()), *_ratio(-sums[k, 1], sums[k, 2]))
        for k, t in enumerate(ts)
    )


def _reasons(jury: _Jury, claimed: _Trial, plain: list[tuple[_Trial, float]]) -> Iterator[str]:
    if not claimed.sums.isfinite().all():
        yield "the output is not finite"
        return
    if not jury.calibrated(claimed, 1.0):
        yield f"the slope is {_pm(*jury.slope(claimed))} instead of 1"
    if jury.worse_than_a_guess(claimed):
        yield f"the error is {_pm(*jury.error(claimed, 1.0))}, above that of an isotropic Gaussian guess, 1"
    better = [jury.candidate(*option) for option in plain if jury.better(*option, claimed, 1.0) and jury.explains(*option)]
    if better:
        yield f"another convention has {min(c.error for c in better) / jury.error(claimed, 1.0)[0]:.2g} times its error"


def _best(jury: _Jury, claimed: _Trial, plain: list[tuple[_Trial, float]], trials: list[_Trial]) -> tuple[_Trial, float] | None:
    """The convention that fits: among those as good as the best, one without a factor and near to the claim is preferred.

    A wrong factor is looked for under the claim, and under other conventions only if nothing simpler fits.
    """
    options = [o for o in plain if (o[0] is not claimed or o[1] != 1) and jury.calibrated(*o) and jury.explains(*o)]
    options += _with_a_factor(jury, [claimed])
    options = options or [o for o in _with_a_factor(jury, trials) if jury.error(*o)[0] < 0.9]
    if not options:
        return None
    lowest = min(options, key=lambda o: jury.error(*o)[0])
    near = [o for o in options if not jury.better(*lowest, *o, errors=2.0)]
    return min(near, key=lambda o: (abs(o[1]) != 1, o[0].time != claimed.time, o[0].predicts != claimed.predicts))


def _with_a_factor(jury: _Jury, trials: list[_Trial]) -> list[tuple[_Trial, float]]:
    uncalibrated = [trial for trial in trials if not jury.calibrated(trial, 1.0) and not jury.calibrated(trial, -1.0)]
    return [(trial, slope) for trial in uncalibrated if jury.explains(trial, slope := jury.slope(trial)[0])]


# -- saying --------------------------------------------------------------------------------------------------------------


def _message(check: ModelCheck, model: Model, x0: Tensor) -> str:
    head = (
        f'the model is not what was claimed, predicts="{check.predicts}", time={_time_name(check.time)}: {"; ".join(check.reasons)}.\n'
        f"Measured on {len(x0)} rows at {len(check.levels)} noise levels: slope {_pm(check.slope, check.slope_se)} (1 is right), "
        f"error {_pm(check.error, check.error_se)} (1 is an isotropic Gaussian guess; lower is better).\n"
    )
    if check.best is not None:
        found = f"What fits best, with error {check.best.error:.3g}, is {_describe(check.best)}. Use\n    "
        return head + found + _line(check.best, check.sigma_data)
    nearest = check.candidates[0]
    training = " Call model.eval() first: the model is in training mode." if getattr(model, "training", False) else ""
    return head + (
        f"The model fits no known convention; the nearest is {_describe(nearest)}, with error {nearest.error:.3g}.{training} "
        f"Check that x0 is scaled as in training (here mean {float(x0.double().mean()):.3g}, deviation {_variance(x0) ** 0.5:.3g}, "
        f"range [{float(x0.min()):.3g}, {float(x0.max()):.3g}]; many networks want [-1, 1]), that the process is that of training, "
        f"that sigma_data={check.sigma_data:g} is right if the model is of EDM's kind, and what time the model wants: time=lambda t: ..."
    )


def _line(c: Candidate, sigma_data: float) -> str:
    model = {1.0: "model", -1.0: "lambda x, t: -model(x, t)"}.get(c.factor, f"lambda x, t: {c.factor:.3g} * model(x, t)")
    extra = f", sigma_data={sigma_data:g}" if c.predicts == "edm" else ""
    return f'as_score({model}, process, predicts="{c.predicts}", time={_time_name(c.time)}{extra})'


def _describe(c: Candidate) -> str:
    output = {1.0: "", -1.0: " with the sign reversed"}.get(c.factor, f" with the output multiplied by {c.factor:.3g}")
    return f'predicts="{c.predicts}", time={_time_name(c.time)}{output}'


def _time_name(time: TimeConvention) -> str:
    return f'"{time}"' if isinstance(time, str) else getattr(time, "__name__", repr(time))


def _pm(value: float, se: float) -> str:
    return f"{value:.3g} +- {se:.2g}"


def _validate(x0: Tensor, sigma_data: float, times: int, batch_size: int) -> None:
    if not isinstance(x0, Tensor) or not x0.is_floating_point() or x0.dim() < 2:
        got = f"a {tuple(x0.shape)} {x0.dtype} tensor" if isinstance(x0, Tensor) else f"a {type(x0).__name__}"
        raise ValueError(f"x0 is {got}; expected data of shape (B, *event) in a floating dtype, scaled as the model was trained.")
    if len(x0) < 2 or x0.numel() == 0:
        raise ValueError(f"x0 has shape {tuple(x0.shape)}; expected at least 2 rows (64 or more for a sharp answer) of at least 1 element.")
    if not bool(x0.isfinite().all()):
        bad = (~x0.isfinite()).flatten(1).any(1).nonzero().flatten().tolist()
        raise ValueError(f"x0 is not finite in {len(bad)} of {len(x0)} rows (first: row {bad[0]}); expected finite data.")
    if _variance(x0) == 0:
        raise ValueError(f"x0 is the constant {float(x0.flatten()[0]):g}; expected data that vary.")
    if not 0 < sigma_data < math.inf:
        raise ValueError(f"sigma_data={sigma_data!r}; expected the standard deviation of the data, finite and > 0.")
    for name, value, least in (("times", times, 2), ("batch_size", batch_size, 1)):
        integer(name, value, least, example=256)
