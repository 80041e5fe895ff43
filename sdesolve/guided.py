"""A score with a term added: how a model is conditioned or guided, whatever the solver asks of it.

    grad ln p_t(x | y) = grad ln p_t(x) + grad ln p_t(y | x)

A solver may want the score, E[x_0 | x], E[eps | x] or the model's own output.  All are linear in the score, so the term goes into the
model's output, in the parameterisation that the model has,

    output' = output + term / on_output        (on_output: the table of :mod:`sdesolve.scores`),

and everything that is made of the output follows.  A change of the denoised estimate E[x_0 | x] is the term alpha/sigma^2 times as large.  The
coefficients are float64 numbers, multiplied out before they meet the state, so that nothing is lost where sigma is small.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cached_property
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from . import _tally
from ._arrays import Number, expand_time, plus
from ._autograd import check_constant, graph, usable
from ._errors import as_float, choice, integer
from .processes import Process
from .scores import Linear, Score, combined


class Prediction:
    """What a model says at one state and time, from the one call that is made there; what a :data:`Term` is given.

    Attributes:
        process: the forward process.
        x: (B, *event) the state.
        t: its time, a float or a float64 tensor (B,).
    """

    def __init__(self, process: Process, x: Tensor, t: Number, linear: Linear, output: Tensor, attached: bool, pull: Pull | None = None) -> None:
        self.process, self.x, self.t = process, x, t
        self._linear, self._output, self._attached, self._pull = linear, output, attached, pull

    @property
    def alpha(self) -> Number:
        """Signal level at t: a float, or float64 (B,)."""
        return self.process.alpha_(self.t)

    @property
    def sigma(self) -> Number:
        """Noise level at t: a float, or float64 (B,)."""
        return self.process.sigma_(self.t)

    @cached_property
    def x0(self) -> Tensor:
        """E[x_0 | x], (B, *event), by Tweedie's formula."""
        x0 = self._graph
        return x0 if self._attached else x0.detach()

    def pullback(self, v: Tensor) -> Tensor:
        """(dx0/dx)' v for v, (B, *event): one backward pass through the model, counted in ``stats["vjps"]``.

        For an exact score the derivative is symmetric, and  Cov[x_0 | x] = sigma^2/alpha dx0/dx.

        Raises:
            RuntimeError: the score was guided without ``derivative=True``.
        """
        if self._pull:
            _tally.pullback()
            return self._pull(v)[0]
        if not self.x.requires_grad:
            raise RuntimeError("the term asks for a derivative of the model, whose graph was not kept; expected guided(score, term, derivative=True).")
        if not self._graph.requires_grad:  # the model does not depend on x
            return torch.zeros_like(v)
        _tally.pullback()
        return torch.autograd.grad(self._graph, self.x, v, retain_graph=True, create_graph=self._attached, materialize_grads=True)[0]

    @cached_property
    def _graph(self) -> Tensor:
        with torch.set_grad_enabled(self._output.requires_grad or self._attached):
            return _denoised(self.process, self._linear, self.x, self.t, self._output)


Pull: TypeAlias = Callable[[Tensor], tuple[Tensor]]
Term: TypeAlias = Callable[[Prediction], Tensor]
"""What is added to a score, (B, *event), each row by itself."""


class Guided(Score):
    """A score with a term added; made by :func:`guided`."""

    def __init__(self, base: Score, term: Term, to: str, derivative: bool, within: tuple[float, float] | None, calls: int) -> None:
        super().__init__(base.model, base.process, base.predicts, base.time, base.sigma_data)
        self._base, self._term, self._derivative = base, term, derivative
        self.calls = base.calls + integer("calls", calls, 0, 1)
        self._to_x0 = choice("to", to, ("score", "x0")) == "x0"
        self._within = None if within is None else noise_levels("within", within)
        check_reached("within", self._within, base.process)

    def linear(self, t: Number) -> Linear:
        return self._base.linear(t)

    def _output(self, x: Tensor, t: Number, scale: Number | None) -> Tensor:
        inside = self._inside(t)
        if self._within is not None:
            _tally.guided(self._within, inside if isinstance(inside, bool) else transformed() or inside)  # tensors of a transform die with it
        if inside is False:
            return self._base._output(x, t, scale)
        if self._derivative and torch.is_inference_mode_enabled():  # which keeps no graph, whatever is asked for inside
            with torch.inference_mode(False), torch.no_grad():
                return self.model_output(usable(x), usable(t))
        inner = transformed()  # where tangents hang on what a detached tensor would lose
        attached, t = torch.is_grad_enabled() or inner, t.double() if isinstance(t, Tensor) else t
        at, pull, linear = x, None, self.linear(t)
        if inner and self._derivative:
            raw, pull = self._pulled(x, t, scale)
        else:
            with graph() if self._derivative else torch.set_grad_enabled(attached):
                at = x if x.requires_grad or not self._derivative else x.detach().requires_grad_()
                raw = self._base._output(at, t, scale)
            if self._derivative and not raw.requires_grad:
                check_constant(lambda y: self._base._output(y, t, scale), x, raw)
        term = self._term(Prediction(self.process, at, t, linear, raw, attached, pull))
        if not isinstance(term, Tensor) or term.shape != x.shape:
            got = tuple(term.shape) if isinstance(term, Tensor) else type(term).__name__
            raise ValueError(f"the term added to the score returned {got}; expected a tensor like the state, {tuple(x.shape)}.")
        added = term.to(raw) if inside is True else torch.where(expand_time(inside, x), term.to(raw), 0.0)
        return plus(raw if attached else raw.detach(), self._weight(linear, t), added)

    def _pulled(self, x: Tensor, t: Number, scale: Number | None) -> tuple[Tensor, Pull]:
        """The base's output, and v -> (dx0/dx)' v as torch.func has it, which alone works inside its own transforms."""

        def denoised(at: Tensor) -> tuple[Tensor, Tensor]:
            raw = self._base._output(at, t, scale)
            return _denoised(self.process, self._base.linear(t), at, t, raw), raw

        found: Any = torch.func.vjp(denoised, x, has_aux=True)
        return found[2], found[1]

    def _inside(self, t: Number) -> bool | Tensor:
        """Whether the term is added at t; a tensor, of which no host looks at the values, where the time is one."""
        if self._within is None:
            return True
        (low, high), level = self._within, self.process.sigma_(t) / self.process.alpha_(t)
        return (low < level) & (level <= high) if isinstance(level, Tensor) else low < level <= high

    def _weight(self, linear: Linear, t: Number) -> Number:
        """What the term is multiplied by in the model's output."""
        weight: Any = self.process.alpha_(t) / self.process.sigma_(t) ** 2 if self._to_x0 else 1.0
        return weight if linear.on_output is None else weight / linear.on_output


def transformed() -> bool:
    """Whether a transform of torch.func, as ``jvp``, is under way: inside it ``requires_grad_`` is refused."""
    return torch._C._functorch.peek_interpreter_stack() is not None


def _denoised(process: Process, linear: Linear, x: Tensor, t: Number, output: Tensor) -> Tensor:
    """E[x_0 | x] of a model's output at x."""
    return combined(linear, x, output, 1 / process.alpha_(t), process.sigma_(t) ** 2 / process.alpha_(t))


def noise_levels(name: str, value: object) -> tuple[float, float]:
    """``value`` as noise levels 0 <= low < high, of which high may be infinite; otherwise a ValueError."""
    low, high = (as_float(end) for end in value) if isinstance(value, tuple | list) and len(value) == 2 else (None, None)
    if low is None or high is None or not 0 <= low < high <= math.inf:
        raise ValueError(f"{name}={value!r}; expected noise levels 0 <= low < high, in units of sigma/alpha, as in {name}=(0.3, 3.0).")
    return low, high


def check_reached(name: str, levels: tuple[float, float] | None, process: Process) -> None:
    """That noise levels do not begin where those of a process end."""
    alpha, sigma = process.alpha_(process.T), process.sigma_(process.T)
    if levels is not None and levels[0] * alpha >= sigma:
        most, kind = float(sigma / alpha), type(process).__name__
        raise ValueError(
            f"{name}={levels!r} is of no effect: {kind} has the noise levels up to sigma/alpha = {most:g}; expected a low end below, as in {name}=({most / 10:.3g}, {most:.3g})."
        )


def guided(
    score: Score,
    term: Term,
    *,
    to: Literal["score", "x0"] = "score",
    derivative: bool = False,
    within: tuple[float, float] | None = None,
    calls: int = 0,
) -> Score:
    """A score with a term added, for every process, parameterisation and solver, at no network call more than the term's own.

    As in ``guided(score, lambda p: strength * (target - p.x0))``; scores that are guided already can be guided again.

    Arguments:
        score: grad_x ln p_t(x), from :func:`as_score`.
        term: from a :class:`Prediction` (x, t, x0, and derivatives) to what is added, (B, *event); each row by itself.
        to: what it is added to: the score, as grad ln p_t(y | x) is, or E[x_0 | x].
        derivative: whether the term asks for ``pullback``, which needs the memory of the model's graph during a call.
        within: noise levels (low, high], in units of sigma/alpha, at which it is added; None for all.  At others, on a fixed grid, it is not asked, and no graph is
            kept; where rows have times of their own it is asked of all of them.
        calls: network calls that the term makes each time, at most, so that ``solve(..., nfe=)`` keeps to its number.

    Raises:
        ValueError: an unknown ``to``, noise levels that are none, or beyond the process's, calls that are none; and, at the first call, a term of the wrong shape, or a model
            that computes without autograd where its derivative is asked for.
    """
    return Guided(score, term, to, derivative, within, calls)
