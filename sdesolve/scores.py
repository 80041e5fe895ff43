"""Any model becomes a score: the table of parameterisations and of time conventions.

Networks are trained to predict many things, but given x_t each of them is linear in the score,

    score(x, t) = on_x(t) x + on_output(t) model(input_scale(t) x, time(t)),

so a parameterisation is three numbers per time.  With x_t = alpha x_0 + sigma eps and dx = a x dt + g dw:

    predicts   the model returns                    on_x                            on_output
    score      grad ln p_t(x)                       0                               1
    epsilon    E[eps | x]                           0                               -1/sigma
    x0         E[x_0 | x]                           -1/sigma^2                      alpha/sigma^2
    v          E[alpha eps - sigma x_0 | x]         -1/(alpha^2+sigma^2)            -(alpha/sigma)/(alpha^2+sigma^2)
    flow       E[dx_t/dt | x] = a x - g^2 score/2   2 a/g^2                         -2/g^2
    edm        F of Karras et al. 2022, eq. 7       -1/n^2                          alpha sigma_data/(sigma n)

where n^2 = sigma^2 + alpha^2 sigma_data^2 and, for ``edm`` alone, input_scale = 1/n.  Coefficients are computed in
float64; the model runs in its own dtype, and times are float32 at least; the casts happen where :class:`Score` calls it and nowhere else.  Of a state in half
precision what is made of output and state is computed in float32, since at the noisy end all but alpha of them cancels.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from . import _tally
from ._arrays import Number, bcast, per_row, plus, version, xp
from ._errors import CHANGED, as_float, as_int, choice
from .processes import Process

_OF_DTYPES = re.compile(r"dtype|\btypes?\b|b?float(16|32)?\b|\bhalf\b", re.IGNORECASE)
"""What errors say that are about dtypes."""

Model: TypeAlias = Callable[[Tensor, Tensor], Tensor]
TimeConvention: TypeAlias = str | int | Callable[[Tensor], Tensor]


class Linear(NamedTuple):
    """score = on_x * x + on_output * model(input_scale * x, time) at one time; None stands for 0, 1 and 1."""

    on_x: Number | None = None
    on_output: Number | None = None
    input_scale: Number | None = None


def _score(p: Process, t: Number, sigma_data: float) -> Linear:
    return Linear()


def _epsilon(p: Process, t: Number, sigma_data: float) -> Linear:
    return Linear(on_output=-1 / p.sigma_(t))


def _x0(p: Process, t: Number, sigma_data: float) -> Linear:
    variance = p.sigma_(t) ** 2
    return Linear(-1 / variance, p.alpha_(t) / variance)


def _v(p: Process, t: Number, sigma_data: float) -> Linear:
    alpha, sigma = p.alpha_(t), p.sigma_(t)
    square = alpha * alpha + sigma * sigma
    return Linear(-1 / square, -alpha / (sigma * square))


def _flow(p: Process, t: Number, sigma_data: float) -> Linear:
    g2 = p.diffusion_(t) ** 2
    return Linear(2 * p.drift_rate_(t) / g2, -2 / g2)


def _edm(p: Process, t: Number, sigma_data: float) -> Linear:
    alpha, sigma = p.alpha_(t), p.sigma_(t)
    n2 = sigma * sigma + (alpha * sigma_data) ** 2
    n = xp(n2).sqrt(n2)
    return Linear(-1 / n2, alpha * sigma_data / (sigma * n), 1 / n)


PARAMETERISATIONS: dict[str, Callable[[Process, Number, float], Linear]] = {
    "score": _score,
    "epsilon": _epsilon,
    "x0": _x0,
    "v": _v,
    "flow": _flow,
    "edm": _edm,
}

TIME_CONVENTIONS: dict[str, Callable[[Process, Tensor], Tensor]] = {
    "continuous": lambda p, t: t,
    "t*999": lambda p, t: t * 999,
    "sigma": lambda p, t: torch.exp(-0.5 * torch.as_tensor(p.log_snr_(t))),
    "log_sigma/4": lambda p, t: -0.125 * torch.as_tensor(p.log_snr_(t)),
}
"""What a network wants to be told, from t in (0, T].  ``sigma`` is sigma/alpha, which is sigma(t) for VE and EDM."""


class Score:
    """grad_x ln p_t(x) out of a model: made by :func:`as_score`, called as ``score(x, t)`` by every solver.

    Attributes:
        model: the wrapped model.
        process: the forward process whose noise levels the model knows.
        predicts, time, sigma_data: as given to :func:`as_score`.
        calls: network calls of an evaluation, at most.
    """

    calls = 1

    def __init__(self, model: Model, process: Process, predicts: str, time: TimeConvention, sigma_data: float) -> None:
        if not callable(model):
            raise TypeError(f"the score or model is a {type(model).__name__}; expected a function of (x, t), as in process.reverse(lambda x, t: -x).")
        spread = as_float(sigma_data)
        if spread is None or not 0 < spread < math.inf:
            raise ValueError(f"sigma_data={sigma_data!r}; expected a finite number > 0, as in sigma_data=0.5.")
        self.model, self.process = model, process
        self.predicts, self.sigma_data = predicts, spread
        self.time: TimeConvention = time if (levels := as_int(time)) is None else levels
        self._linear = PARAMETERISATIONS[choice("predicts", predicts, PARAMETERISATIONS)]
        self._network_time = time_convention(self.time)
        self._model_dtype = _parameter_dtype(model)
        self._called = Called(model)

    def linear(self, t: Number) -> Linear:
        """The coefficients of the table above at time t, in float64."""
        return self._linear(self.process, t.double() if isinstance(t, Tensor) else t, self.sigma_data)

    def model_output(self, x: Tensor, t: Number) -> Tensor:
        """What the model itself says at x, (B, *event), and time t, in x's dtype."""
        return self._output(x, t, self.linear(t).input_scale).to(x.dtype)

    def _output(self, x: Tensor, t: Number, scale: Number | None) -> Tensor:
        """:meth:`model_output` for the input scale of that time, in the dtype in which the model said it."""
        dtype = self._model_dtype or x.dtype
        time = self._network_time(self.process, per_row(t, x, torch.promote_types(dtype, torch.float32) if self.time == "continuous" else torch.float64))
        scaled, before = x if scale is None else bcast(scale, x) * x, version(x)
        output = self._called(scaled.to(dtype), time)
        if not isinstance(output, Tensor) or output.shape != x.shape or not output.is_floating_point() or output.device != x.device:
            raise ValueError(_bad_output(self.model, output, x))
        if version(x) != before:
            raise ValueError(f"the model {_name(self.model)} {CHANGED}")
        return output

    def __call__(self, x: Tensor, t: Number) -> Tensor:
        """The score at x, (B, *event), and time t, a float or a tensor () or (B,)."""
        on_x, on_output, scale = self.linear(t)
        state, output = _wide(x, self._output(x, t, scale))
        scaled = output if on_output is None else bcast(on_output, state) * output
        return (scaled if on_x is None else plus(scaled, on_x, state)).to(x.dtype)

    def target(self, x: Tensor, eps: Tensor, t: Number) -> Tensor:
        """What the model ought to return at x = alpha x_0 + sigma eps for that eps: the regression target of training."""
        on_x, on_output, _ = self.linear(t)
        score = bcast(-1 / self.process.sigma_(t), x) * eps
        rest = score if on_x is None else score - bcast(on_x, x) * x
        return rest if on_output is None else rest / bcast(on_output, x)

    def denoise(self, x: Tensor, t: Number) -> Tensor:
        """Tweedie's formula  E[x_0 | x_t = x] = (x + sigma^2 score) / alpha.  One network call."""
        p, t = self.process, t.double() if isinstance(t, Tensor) else t
        return self._combined(x, t, 1 / p.alpha_(t), p.sigma_(t) ** 2 / p.alpha_(t))

    def epsilon(self, x: Tensor, t: Number) -> Tensor:
        """The expected noise  E[eps | x_t = x] = -sigma score.  One network call."""
        t = t.double() if isinstance(t, Tensor) else t
        return self._combined(x, t, 0.0, -self.process.sigma_(t))

    def _combined(self, x: Tensor, t: Number, on_x: Number, on_score: Number) -> Tensor:
        """on_x x + on_score score(x, t)."""
        linear = self.linear(t)
        return combined(linear, x, self._output(x, t, linear.input_scale), on_x, on_score)


class Called:
    """A network told its times in float32 at least: bfloat16 knows 728 of 1000.  One whose layers refuse that is told them in x's dtype, then and from then on."""

    def __init__(self, model: Callable[[Tensor, Tensor], Any]) -> None:
        self._model = model
        self._narrowly = False  # whether it takes times in its own half precision alone

    def __call__(self, x: Tensor, time: Tensor) -> Any:
        """The model at x, in x's dtype, and what it wants to be told; counted."""
        if not time.is_floating_point():
            return _tally.call(self._model, x, time)
        wide = torch.promote_types(x.dtype, torch.float32)
        if wide == x.dtype or self._narrowly:
            return _tally.call(self._model, x, time.to(x.dtype))
        try:
            return _tally.call(self._model, x, time.to(wide))
        except (RuntimeError, TypeError, ValueError, AssertionError) as error:  # of layers in one dtype and their input in another, or of a model's own check
            if str(error) and not _OF_DTYPES.search(str(error)):
                raise
        output = _tally.call(self._model, x, time.to(x.dtype))
        self._narrowly = True
        return output


def combined(linear: Linear, x: Tensor, output: Tensor, on_x: Number, on_score: Number) -> Tensor:
    """on_x x + on_score score, with the coefficients of the model's own output, where what cancels is gone before it is rounded."""
    state, output = _wide(x, output)
    scaled = bcast(on_score if linear.on_output is None else on_score * linear.on_output, state) * output
    rest = on_x if linear.on_x is None else on_x + on_score * linear.on_x
    return (scaled if isinstance(rest, float) and rest == 0 else plus(scaled, rest, state)).to(x.dtype)


def _wide(x: Tensor, output: Tensor) -> tuple[Tensor, Tensor]:
    """State and output in the wider dtype of the two, float32 at least."""
    dtype = torch.promote_types(torch.promote_types(x.dtype, output.dtype), torch.float32)
    return x.to(dtype), output.to(dtype)


def as_score(
    model: Model,
    process: Process,
    *,
    predicts: str,
    time: TimeConvention = "continuous",
    sigma_data: float = 0.5,
) -> Score:
    """Wrap a model of any parameterisation as the score of a process.

    Arguments:
        model: an ``nn.Module`` or any callable  (x, time) -> output  with x (B, *event), time (B,), output shaped like x.
            A module is called in the dtype of its parameters, anything else in the dtype of the state; times are float32 at least, unless the model has half-precision layers
            that refuse such.
        process: the forward process whose noise levels the model was trained on.
        predicts: what the model returns: "score", "epsilon", "x0", "v", "flow" or "edm" (table at the top of this file).
        time: what the model wants to be told: "continuous" (t), "t*999", "sigma" (sigma/alpha), "log_sigma/4", an integer N (index
            round((t - origin) (N-1)/(horizon - origin)) of a model with N levels), or a callable from t, (B,) float64, to what it wants.
        sigma_data: standard deviation of the data, > 0, for "edm" alone.

    Raises:
        TypeError: a model that cannot be called.
        ValueError: unknown ``predicts`` or ``time``, or a ``sigma_data`` that is no finite number > 0; and, at the first call, an output of the wrong shape, dtype or device.
    """
    return Score(model, process, predicts, time, sigma_data)


def time_convention(time: TimeConvention) -> Callable[[Process, Tensor], Tensor]:
    """What turns times (B,) float64 of a process into what a model is told; ``time`` as for :func:`as_score`, ValueError for anything else."""
    if isinstance(time, int) and time > 1:
        return lambda p, t: torch.round((t - p.origin) * ((time - 1) / (p.horizon - p.origin))).long()
    if callable(time):
        return lambda p, t: time(t)
    if isinstance(time, str):
        return TIME_CONVENTIONS[choice("time", time, TIME_CONVENTIONS)]
    raise ValueError(f"time={time!r} is not known; expected one of {list(TIME_CONVENTIONS)}, an integer > 1 (number of levels) or a callable.")


def _parameter_dtype(model: Model) -> torch.dtype | None:
    parameters = model.parameters() if isinstance(model, nn.Module) else iter(())
    return next((p.dtype for p in parameters if p.is_floating_point()), None)


def _name(model: Model) -> str:
    return getattr(model, "__name__", type(model).__name__)


def _bad_output(model: Model, output: object, x: Tensor) -> str:
    name = _name(model)
    if not isinstance(output, Tensor):
        return f"the model {name} returned a {type(output).__name__}; expected a tensor like its input: wrap it, as in lambda x, t: {name}(x, t).sample"
    got = f"{tuple(output.shape)} {output.dtype} on {output.device}"
    return f"the model {name} returned {got}; expected {tuple(x.shape)} of a floating dtype on {x.device}, like its input."
