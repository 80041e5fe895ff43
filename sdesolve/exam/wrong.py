"""Deliberately wrong scores, to see that a check sees them; and exact scores dressed up as networks.

Each wrong model is a function from a score to a score.  A model made by :func:`as_model` is the inverse of
:func:`sdesolve.as_score`: with  score = on_x x + on_output output  it returns

    output = (score(x, t) - on_x x) / on_output      at  x = input / input_scale,   t = the time that its argument stands for.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import TypeAlias

import torch
from torch import Tensor

from .._arrays import Number, bcast
from .._errors import as_int, choice
from ..noise import SeededNormals
from ..processes import Process
from ..scores import PARAMETERISATIONS, Model, TimeConvention
from .targets import FEATURES, Target

ScoreFunction: TypeAlias = Callable[[Tensor, Tensor], Tensor]

_FEATURES = 64

TIME_INVERSES: dict[str, Callable[[Process, Tensor], Tensor]] = {
    "continuous": lambda p, time: time,
    "t*999": lambda p, time: time / 999,
    "sigma": lambda p, time: p.log_snr_inverse(-2 * time.log()),
    "log_sigma/4": lambda p, time: p.log_snr_inverse(-8 * time),
}
"""t from what a network is told: the inverses of ``scores.TIME_CONVENTIONS``."""


def wrong_sign(score: ScoreFunction) -> ScoreFunction:
    """-score: the classical slip between epsilon and the score."""
    return lambda x, t: -score(x, t)


def scaled(score: ScoreFunction, factor: float) -> ScoreFunction:
    """factor * score: a forgotten sigma, or a loss weight left in."""
    return lambda x, t: factor * score(x, t)


def wrong_time(score: ScoreFunction, f: Callable[[Tensor], Tensor]) -> ScoreFunction:
    """score(x, f(t)): a model told the wrong time, as in ``wrong_time(score, lambda t: 0.9 * t)``; f must stay within (0, T]."""
    return lambda x, t: score(x, f(t))


def noisy(score: ScoreFunction, std: float, seed: int = 0, *, length: float = 1.0) -> ScoreFunction:
    """score + error, with a smooth error that is a function of (x, t), as a network's is, and not fresh noise:

        error(x, t) = std rms(score(x, t)) xi(x, t),      xi_j = sqrt(2/K) sum_k a_jk cos(<w_k, x> + nu_k t + phi_k),

    of K = 64 random Fourier features.  Over seeds E[xi_j^2] = 1, so that  E|error|^2 = std^2 |score|^2  at every x and t.

    Arguments:
        std: relative size of the error, >= 0.
        seed: names the function xi.
        length: distance in x, root mean square over the coordinates, over which xi changes; in units of the data, > 0.
    """
    if not (std >= 0 and length > 0):
        raise ValueError(f"std={std}, length={length}; expected std >= 0 and length > 0.")

    def with_error(x: Tensor, t: Tensor) -> Tensor:
        value = score(x, t)
        size = std * value.flatten(1).square().mean(1, keepdim=True).sqrt()
        return value + (size * _random_field(x.flatten(1), t, seed, length)).reshape(x.shape)

    return with_error


def as_model(
    target: Target | ScoreFunction,
    process: Process,
    *,
    predicts: str,
    time: TimeConvention = "continuous",
    sigma_data: float = 0.5,
) -> Model:
    """An exact score as the network that somebody might have trained: ``as_score`` of the result is the score again.

    Arguments:
        target: a law, or a score (x, t) -> score, which may be a wrong one.
        process: the forward process.
        predicts, sigma_data: what the model returns, as for :func:`sdesolve.as_score`.
        time: what the model is told, as for :func:`sdesolve.as_score`: "continuous", "t*999", "sigma", "log_sigma/4" or an integer
            N, of which index 0 stands for ``process.eps`` since a score at t = 0 may not exist; or a callable from what the
            model is told to t, the inverse of the one that ``as_score`` is given.

    Raises:
        ValueError: unknown ``predicts`` or ``time``.
    """
    score = target.score(process) if isinstance(target, Target) else target
    linear = PARAMETERISATIONS[choice("predicts", predicts, PARAMETERISATIONS)]
    to_t = _time_inverse(time, process)

    def model(x: Tensor, told: Tensor) -> Tensor:
        t = to_t(told.double())
        on_x, on_output, input_scale = linear(process, t, sigma_data)
        state = x.double() if input_scale is None else x.double() / bcast(input_scale, x.double())
        value = score(state, t)
        rest = value if on_x is None else value - bcast(on_x, state) * state
        return (rest if on_output is None else rest / bcast(on_output, state)).to(x.dtype)

    return model


def _time_inverse(time: TimeConvention, process: Process) -> Callable[[Tensor], Tensor]:
    levels = as_int(time)
    if levels is not None and levels > 1:
        step = (process.horizon - process.origin) / (levels - 1)
        return lambda index: (process.origin + index * step).clamp(min=process.eps)
    if callable(time):
        return time
    inverse = TIME_INVERSES[choice("time", time, TIME_INVERSES)]
    return lambda told: inverse(process, told)


def _random_field(x: Tensor, t: Number, seed: int, length: float) -> Tensor:
    """xi(x, t), (B, d)."""
    along, frequency, phase, amplitude = (part.to(x) for part in _features(seed, x.shape[1]))
    time = torch.as_tensor(t, dtype=x.dtype, device=x.device).reshape(-1, 1)
    angle = (x / length) @ along.T + time * frequency + phase
    return math.sqrt(2 / _FEATURES) * angle.cos() @ amplitude.T


@lru_cache(maxsize=8)
def _features(seed: int, d: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """w (K, d) with <w, x> of the order of rms(x), nu (K,), phi (K,) and a (d, K), float64."""

    def normal(rows: int, columns: int, slot: int) -> Tensor:
        return SeededNormals(seed, range(rows), (columns,), dtype=torch.float64, device="cpu", stream=FEATURES).normal(0, slot)

    phase = 2 * math.pi * torch.special.ndtr(normal(_FEATURES, 1, 2)[:, 0])
    return normal(_FEATURES, d, 0) / math.sqrt(d), normal(_FEATURES, 1, 1)[:, 0], phase, normal(d, _FEATURES, 3)
