"""The divergence of a field, div f = sum_i df_i/dx_i = tr J, of each sample, together with the value of the field.

One evaluation of f and then pullbacks  v'J,  each at about the price of another evaluation, since no derivative by a weight is taken:

    exact        tr J = sum_i e_i'J e_i                                                                    d pullbacks
    hutchinson   v'J v, unbiased where E[v v'] = I                                                         one a probe
    hutch++      tr(Q'J Q) + g'(I - Q Q')J(I - Q Q')g,  Q an orthonormal basis of J'S                      one a probe

With v = +-1 (Rademacher) the variance is  sum_{i != j} (J_ij + J_ji)^2 / 2:  the diagonal costs nothing, and neither does any multiple of the
identity in f.  Gaussian probes have  sum_ij (J_ij + J_ji)^2 / 2,  the diagonal in it.  v and -v give the same number, so that
antithetic pairs are a waste.  [Hutchinson 1990; Avron & Toledo 2011, table 1; Meyer et al. 2021, algorithm 1]
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from . import _tally
from ._arrays import Number, row_mean
from ._autograd import check_constant, graph, outside_inference
from ._errors import choice, integer
from .noise import PROBE, SeededNormals, check_seed, sample_ids_of
from .problems import ODE, Field

METHODS = ("exact", "hutchinson", "hutch++")
DISTRIBUTIONS = ("rademacher", "gaussian")

_TOGETHER = 1 << 18  # numbers pulled back at once: small fields do not pay Python's overhead for every direction


class Estimate(NamedTuple):
    """What one evaluation of a field gives."""

    value: Tensor
    """f(x), (B, *event)."""
    parts: Tensor
    """(P, B) float64: independent estimates of the divergence, whose mean is the estimate."""
    spread: Tensor | None = None
    """(B,) the standard deviation of the estimate, itself estimated, where there is one part that has one: for signs it is that of a J with
    equal numbers on its diagonal, and an upper bound for any other."""


class Estimator(Protocol):
    """A way to have the divergence, with its probes."""

    parts: int
    """P of :class:`Estimate`."""

    def rows(self, index: Tensor) -> Estimator:
        """The estimator for some of the rows."""
        ...

    def __call__(self, f: Callable[[Tensor], Tensor], x: Tensor) -> Estimate: ...


def divergence(
    f: Field,
    x: Tensor,
    t: Number,
    method: str = "exact",
    probes: int = 1,
    noise: str | Tensor | None = None,
    *,
    seed: int | None = None,
    sample_ids: Tensor | Sequence[int] | None = None,
) -> Tensor:
    """sum_i df_i/dx_i of each sample, (B,) float64; :func:`value_and_divergence` has f(x, t) besides, at no further cost.

    One evaluation of f and ``probes`` pullbacks, or d of them for "exact", which are taken together for small fields and one by one for large
    ones, so that memory stays that of a single one.  Rows must not mix in f.  The result carries no gradient.

    Arguments:
        f: function of x, (B, *event), and t, a tensor () or (B,) in x's dtype; returns a tensor shaped like x: a drift, a score, or a :class:`Score`.
        x: (B, *event), floating point.
        t: time, a float or a tensor () or (B,).
        method: "exact", for few dimensions; "hutchinson" for many; "hutch++" where a few directions carry most of J.  For the scores of
            images, whose spectrum is flat, it is worse than "hutchinson" at the same cost.
        probes: number of them, >= 1; >= 4 for "hutch++", of which a third finds the directions and a third takes their trace.
        noise: None or "rademacher", v = +-1, which has the smaller variance; "gaussian"; or the probes themselves, (B, *event) or (probes, B, *event).
        seed: names the probes, together with ``sample_ids``; default: drawn from torch's global generator.
        sample_ids: (B,) integers >= 0 that name the rows; default 0..B-1.

    Raises:
        ValueError: an unknown method, probes < 1, probes of another shape, an f that returns another shape or dtype than x's, or one that depends on x and
            computes without autograd.
    """
    return value_and_divergence(f, x, t, method, probes, noise, seed=seed, sample_ids=sample_ids)[1]


@outside_inference
def value_and_divergence(
    f: Field,
    x: Tensor,
    t: Number,
    method: str = "exact",
    probes: int = 1,
    noise: str | Tensor | None = None,
    *,
    seed: int | None = None,
    sample_ids: Tensor | Sequence[int] | None = None,
) -> tuple[Tensor, Tensor]:
    """f(x, t), (B, *event), and its divergence, (B,) float64, from one evaluation; the arguments of :func:`divergence`."""
    if not isinstance(x, Tensor) or not x.is_floating_point() or x.dim() == 0 or x.numel() == 0:
        got = f"a {tuple(x.shape)} {x.dtype} tensor" if isinstance(x, Tensor) else f"a {type(x).__name__}"
        raise ValueError(f"x is {got}; expected (B, *event) in a floating dtype with at least one element, as in torch.randn(16, 2).")
    estimator = make_estimator(method, probes, noise, x, seed, sample_ids_of(sample_ids, len(x)))
    field = ODE(f).drift
    found = estimator(lambda y: field(y, t.double() if isinstance(t, Tensor) else float(t)), x)
    return found.value, found.parts.mean(0)


def make_estimator(method: str, probes: int, noise: str | Tensor | None, x: Tensor, seed: int | None, ids: Tensor) -> Estimator:
    """The named method with its probes for the rows of x, whose names are ``ids``."""
    choice("divergence", method, METHODS)
    if method == "exact":
        if noise is not None or probes != 1:
            raise ValueError(f"probes={probes!r} and noise are for estimates, and 'exact' takes none; expected them to be left out, or method='hutchinson'.")
        return Exact()
    count = integer("probes", probes, 4 if method == "hutch++" else 1, example=12)
    if isinstance(noise, Tensor):
        drawn = _given(noise, count, x)
    else:
        kind = choice("noise", "rademacher" if noise is None else noise, DISTRIBUTIONS)
        seed = int(torch.randint(2**62, ())) if seed is None else check_seed(seed)
        source = SeededNormals(seed, ids, x.shape[1:], dtype=x.dtype, device=x.device, stream=PROBE, nodes=count)
        normals = torch.stack([source.normal(i) for i in range(count)])
        drawn = normals if kind == "gaussian" else torch.where(normals < 0, -1.0, 1.0).to(x.dtype)
    return HutchPlusPlus(drawn) if method == "hutch++" else Hutchinson(drawn)


def _given(noise: Tensor, count: int, x: Tensor) -> Tensor:
    """A user's probes as (P, B, *event)."""
    probes = noise[None] if noise.shape == x.shape else noise
    if probes.shape[1:] != x.shape or len(probes) < 1 or count not in (1, len(probes)) or not bool(probes.isfinite().all()):
        expected = f"{tuple(x.shape)}, or {(count, *x.shape)} for probes={count}"
        raise ValueError(f"noise has shape {tuple(noise.shape)}; expected finite numbers of shape {expected}: torch.randn({count}, *x.shape).sign()")
    silent = (probes == 0).reshape(len(probes), len(x), -1).all(2)
    if bool(silent.any()):
        i, row = silent.nonzero()[0].tolist()
        raise ValueError(f"noise: probe {i} of row {row} is 0 and sees nothing; expected E[v v'] = 1: torch.randn({count}, *x.shape).sign()")
    return probes.to(x)


class Exact:
    """d pullbacks."""

    parts = 1

    def __init__(self) -> None:
        self._one_by_one = False  # a field that has refused to be pulled back together is not asked again

    def rows(self, index: Tensor) -> Exact:
        return self

    def __call__(self, f: Callable[[Tensor], Tensor], x: Tensor) -> Estimate:
        pull = Pullback(f, x)
        size = x[0].numel()
        total = x.new_zeros(len(x), dtype=torch.float64)
        together = 1 if self._one_by_one else max(1, _TOGETHER // x.numel())
        first = 0
        while first < size:
            numbers = torch.arange(first, min(first + together, size), device=x.device)
            units = x.new_zeros((len(numbers), 1, size)).index_put((torch.arange(len(numbers), device=x.device), torch.zeros_like(numbers), numbers), x.new_ones(()))
            try:
                rows = pull(units.expand(-1, len(x), -1).reshape(len(numbers), *x.shape))
            except RuntimeError:
                if together == 1:
                    raise
                self._one_by_one, together = True, 1  # not every function has a batching rule: a channels-last convolution has none
                continue
            total += rows.reshape(len(numbers), len(x), size)[torch.arange(len(numbers)), :, numbers].double().sum(0)
            first += len(numbers)
        return Estimate(pull.value, total[None])


class Hutchinson:
    """One pullback a probe; the probes are an argument, so that they are the same wherever the field is evaluated."""

    def __init__(self, probes: Tensor, signs: bool | None = None) -> None:
        self._probes, self.parts = probes, len(probes)
        self._signs = bool((probes.abs() == 1).all()) if signs is None else signs

    def rows(self, index: Tensor) -> Hutchinson:
        return self if len(index) == self._probes.shape[1] else Hutchinson(self._probes[:, index], self._signs)

    def __call__(self, f: Callable[[Tensor], Tensor], x: Tensor) -> Estimate:
        pull = Pullback(f, x)
        parts = []
        for i, v in enumerate(self._probes, 1):
            pulled = pull(v[None], last=i == self.parts)[0]
            parts.append(dot(pulled, v))
        if self.parts > 1:
            return Estimate(pull.value, torch.stack(parts))
        size, square = x[0].numel(), dot(pulled, pulled)  # E|J'v|^2 = |J|^2, of which signs do not see the diagonal
        if self._signs and size > 2:  # for a constant diagonal E (v'J v)^2/d is that of the diagonal and 2/d of what is left
            square = (square - parts[0].square() / size) * (size / (size - 2))
        return Estimate(pull.value, torch.stack(parts), (2 * square.clamp(min=0)).sqrt())


class HutchPlusPlus:
    """The trace on a subspace that the field itself picks, and Hutchinson's estimate of the rest.  [Meyer et al. 2021, algorithm 1]

    For P probes, P // 3 pullbacks find the subspace, as many take its trace, and the others estimate the rest.
    """

    def __init__(self, probes: Tensor) -> None:
        self._probes = probes
        self._directions = len(probes) // 3
        self.parts = len(probes) - 2 * self._directions

    def rows(self, index: Tensor) -> HutchPlusPlus:
        return self if len(index) == self._probes.shape[1] else HutchPlusPlus(self._probes[:, index])

    def __call__(self, f: Callable[[Tensor], Tensor], x: Tensor) -> Estimate:
        pull = Pullback(f, x)

        def each(vectors: Tensor) -> Tensor:
            """(B, d, n) -> J' times each, (B, d, n)."""
            pulled = [pull(v.reshape(1, *x.shape))[0].reshape(len(x), -1) for v in vectors.unbind(-1)]
            return torch.stack(pulled, -1)

        probes = self._probes.reshape(*self._probes.shape[:2], -1).permute(1, 2, 0)
        basis = torch.linalg.qr(each(probes[..., : self._directions]).to(torch.promote_types(x.dtype, torch.float32)))[0].to(x.dtype)
        rest = probes[..., -self.parts :]
        rest = rest - basis @ (basis.mT @ rest)
        inside = (basis.double() * each(basis)).sum((1, 2))
        outside = (rest.double() * each(rest)).sum(1)
        return Estimate(pull.value, (inside[:, None] + outside).T)


class Pullback:
    """f evaluated once, and v'J as often as is asked."""

    def __init__(self, f: Callable[[Tensor], Tensor], x: Tensor) -> None:
        with graph():
            self._x = x.detach().requires_grad_()
            self._value = f(self._x)
        self.value = self._value.detach()
        self._f, self._constant = f, False

    def __call__(self, v: Tensor, last: bool = False) -> Tensor:
        """(n, B, *event): v'J for n vectors; the ``last`` call lets go, on its way, of what the evaluation kept."""
        if not self._value.requires_grad:
            return self._zeros(v)
        for _ in v:
            _tally.pullback()
        many = len(v) > 1
        (pulled,) = torch.autograd.grad(self._value, self._x, v if many else v[0], retain_graph=not last, is_grads_batched=many, allow_unused=True)
        if pulled is None:
            return self._zeros(v)
        return pulled if many else pulled[None]

    def _zeros(self, v: Tensor) -> Tensor:
        """0 for each vector, of an f that does not depend on x."""
        if not self._constant:
            check_constant(self._f, self._x, self.value)
            self._constant = True
        return torch.zeros_like(v)


def dot(a: Tensor, b: Tensor) -> Tensor:
    """(B,) float64: the inner product of each row, with the same bits whatever the number of rows."""
    return row_mean(a * b).double() * a[0].numel()
