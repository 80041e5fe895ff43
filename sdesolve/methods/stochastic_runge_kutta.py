"""Rossler's stochastic Runge-Kutta methods of strong order 3/2: two step functions, and the tableaus as data.

With W the increment over the step, H its space-time Levy area and J = I_10 / |h| = W/2 + H:

    SRA (additive noise):     F_i = f(x + h sum_j A0_ij F_j + sum_j B0_ij g(t0 + c_j h) J,  t0 + c0_i h)
                              x1 = x + h sum_i a_i F_i + sum_j g(t0 + c_j h) (b1_j W + b2_j J)

    SRI (diagonal, scalar):   F_i = f(x + h sum_j A0_ij F_j + J sum_j B0_ij G_j,            t0 + c0_i h)
                              G_i = g(x + h sum_j A1_ij F_j + sqrt|h| sum_j B1_ij G_j,      t0 + c1_i h)
                              x1 = x + h sum_i a_i F_i + sum_i G_i (b1_i W + b2_i I_11/sqrt|h| + b3_i J + b4_i I_111/|h|)

with c0 = A0 e, c1 = A1 e, I_11 = (W^2 - |h|)/2 and I_111 = (W^3 - 3 |h| W)/6.  The error estimate is the distance to the method of
order 1 inside: Euler's drift, and the noise without J and I_111.

[Rossler 2010, SIAM J. Numer. Anal. 48, 922-952, whose order conditions are checked below; error estimate: Rackauckas & Nie 2017]
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, TypeAlias

from torch import Tensor

from .._arrays import Number, absolute, bcast, xp
from ..problems import SDE, StochasticProblem
from .base import Facts, Step, StepNoise, Stepper

Row: TypeAlias = tuple[float, ...]
Triangle: TypeAlias = tuple[Row, ...]


@dataclass(frozen=True)
class SRA(Stepper):
    """A method for additive noise: strong order 3/2, weak order 2.

    Arguments:
        a0: rows of the strictly lower triangle, the first of them empty.
        b0: rows with a weight for each of ``c``.
        a: weights of the stages.
        b1, b2: weights of W and J for each of ``c``.
        c: where in the step the diffusion is evaluated.
        reference: where it was published.

    Raises:
        ValueError: a tableau that breaks a condition of order 3/2.
    """

    a0: Triangle
    b0: Triangle
    a: Row
    b1: Row
    b2: Row
    c: Row
    reference: str
    error_order: ClassVar[float] = 1.5
    default_tolerance: ClassVar[float] = 1e-3

    def __post_init__(self) -> None:
        b0 = _row_sums(self.b0)
        conditions = {
            "a e": (sum(self.a), 1.0),
            "a A0 e": (_dot(self.a, _row_sums(self.a0)), 1 / 2),
            "a B0 e": (_dot(self.a, b0), 1.0),
            "a (B0 e)^2": (_dot(self.a, _squares(b0)), 3 / 2),
            "b1 e": (sum(self.b1), 1.0),
            "b2 e": (sum(self.b2), 0.0),
            "b1 c": (_dot(self.b1, self.c), 1.0),
            "b2 c": (_dot(self.b2, self.c), -1.0),
        }
        _check(self.reference, conditions)

    @cached_property
    def facts(self) -> Facts:  # type: ignore[override]
        return Facts(evals=len(self.a), strong={"additive": 1.5}, weak={"additive": 2.0}, reference=self.reference)

    def step(self, problem: StochasticProblem, x: Tensor, t0: Number, t1: Number, noise: StepNoise, carry: None) -> Step:
        h, (w, area) = bcast(t1 - t0, x), noise.levy(t0, t1)
        times = [_time(t0, t1, c) for c in self.c]
        on_j = [problem.diffuse(x, t, 0.5 * w + area) for t in times]
        slopes: list[Tensor] = []
        for inner, outer in zip(self.a0, self.b0, strict=True):
            slopes.append(problem.drift(x + h * _sum(inner, slopes) + _sum(outer, on_j), _time(t0, t1, sum(inner))))
        mean = x + h * _sum(self.a, slopes)
        on_w = _sum(self.b1, [problem.diffuse(x, t, w) for t in times])
        rest = _sum(self.b2, on_j)
        return Step(mean + on_w + rest, error=rest + h * _sum(_beyond_euler(self.a), slopes), mean=mean)


@dataclass(frozen=True)
class SRI(Stepper):
    """A method for diagonal and scalar noise in Ito's calculus: strong order 3/2.

    Under diagonal noise each coordinate of g must depend on its own coordinate of x alone, as :class:`SDE` asks; f may couple them.  The
    weak order is 3/2 too, not 2: the stages at distance sqrt|h| leave terms W |h|^(3/2), of mean zero but correlated with W.

    Arguments:
        a0, b0: rows of the strictly lower triangles of the drift's stages, the first of them empty.
        a1, b1: the same of the diffusion's, of which there may be more.
        a: weights of the drift's stages.
        on_w, on_i11, on_j, on_i111: weights of the diffusion's.
        reference: where it was published.

    Raises:
        ValueError: a tableau that breaks a condition of order 3/2.
    """

    a0: Triangle
    b0: Triangle
    a1: Triangle
    b1: Triangle
    a: Row
    on_w: Row
    on_i11: Row
    on_j: Row
    on_i111: Row
    reference: str
    error_order: ClassVar[float] = 1.5
    default_tolerance: ClassVar[float] = 1e-3

    def __post_init__(self) -> None:
        b0, b1 = _row_sums(self.b0), _row_sums(self.b1)
        diffusion_stages = {
            "e": ((1.0,) * len(b1), (1.0, 0.0, 0.0, 0.0)),
            "B1 e": (b1, (0.0, 1.0, 0.0, 0.0)),
            "A1 e": (_row_sums(self.a1), (1.0, 0.0, -1.0, 0.0)),
            "(B1 e)^2": (_squares(b1), (1.0, 0.0, -1.0, 2.0)),
            "B1 B1 e": (_times(self.b1, b1), (0.0, 0.0, 0.0, 1.0)),
        }
        weights = {"on_w": self.on_w, "on_i11": self.on_i11, "on_j": self.on_j, "on_i111": self.on_i111}
        crossed = _times(self.a1, b0)
        conditions = {
            "a e": (sum(self.a), 1.0),
            "a A0 e": (_dot(self.a, _row_sums(self.a0)), 1 / 2),
            "a B0 e": (_dot(self.a, b0), 1.0),
            "a (B0 e)^2": (_dot(self.a, _squares(b0)), 3 / 2),
            "(on_w/2 + on_j/3) A1 B0 e": (_dot(self.on_w, crossed) / 2 + _dot(self.on_j, crossed) / 3, 0.0),
        }
        for stage, (values, expected) in diffusion_stages.items():
            conditions |= {f"{name} {stage}": (_dot(row, values), right) for (name, row), right in zip(weights.items(), expected, strict=True)}
        _check(self.reference, conditions)

    @cached_property
    def facts(self) -> Facts:  # type: ignore[override]
        orders = {"scalar": 1.5, "diagonal": 1.5}
        return Facts(evals=len(self.a), strong=orders, weak=orders, reference=self.reference)

    def step(self, problem: SDE, x: Tensor, t0: Number, t1: Number, noise: StepNoise, carry: None) -> Step:
        h, size, (w, area) = bcast(t1 - t0, x), bcast(absolute(t1 - t0), x), noise.levy(t0, t1)
        root, j = xp(size).sqrt(size), 0.5 * w + area
        f: list[Tensor] = []
        g: list[Tensor] = []
        for i, (inner, outer) in enumerate(zip(self.a1, self.b1, strict=True)):
            state = x + h * _sum(inner, f) + root * _sum(outer, g)
            if i < len(self.a):
                f.append(problem.drift(x + h * _sum(self.a0[i], f) + j * _sum(self.b0[i], g), _time(t0, t1, sum(self.a0[i]))))
            g.append(problem.diffusion(state, _time(t0, t1, sum(inner))))
        i11, i111 = (w * w - size) / (2 * root), (w * w - 3 * size) * w / (6 * size)
        mean = x + h * _sum(self.a, f)
        rest = j * _sum(self.on_j, g) + i111 * _sum(self.on_i111, g)
        kick = w * _sum(self.on_w, g) + i11 * _sum(self.on_i11, g) + rest
        return Step(mean + kick, error=h * _sum(_beyond_euler(self.a), f) + rest, mean=mean)


def _time(t0: Number, t1: Number, c: float) -> Number:
    """t0 + c h; the ends are the step's own."""
    return t0 if c == 0 else t1 if abs(c - 1) < 1e-12 else t0 + c * (t1 - t0)


def _sum(weights: Row, values: Sequence[Tensor]) -> Any:
    """sum_i w_i v_i over the values that there are: a tensor, or 0 for none."""
    return sum(w * value for w, value in zip(weights, values, strict=False) if w)


def _beyond_euler(a: Row) -> Row:
    return (a[0] - 1, *a[1:])


def _row_sums(rows: Triangle) -> Row:
    return tuple(sum(row) for row in rows)


def _times(rows: Triangle, vector: Row) -> Row:
    return tuple(_dot(row, vector) for row in rows)


def _squares(vector: Row) -> Row:
    return tuple(v * v for v in vector)


def _dot(row: Row, vector: Row) -> float:
    """Their product; a row of a triangle ends where its zeros begin."""
    return sum(a * b for a, b in zip(row, vector, strict=False))


def _check(reference: str, conditions: dict[str, tuple[float, float]]) -> None:
    for name, (got, expected) in conditions.items():
        if abs(got - expected) > 1e-12:
            raise ValueError(f"tableau [{reference}]: {name} = {got}; expected {expected}.")


def sra1() -> SRA:
    """SRA1.  Two calls a step, deterministic order 2; the first choice for additive noise."""
    return SRA(
        a0=((), (3 / 4,)), b0=((), (3 / 2, 0.0)), a=(1 / 3, 2 / 3), b1=(1.0, 0.0), b2=(-1.0, 1.0), c=(1.0, 0.0), reference="Rossler 2010"
    )


def sra3() -> SRA:
    """SRA3.  Three calls a step, deterministic order 3; where the noise is weak."""
    return SRA(
        a0=((), (1.0,), (1 / 4, 1 / 4)),
        b0=((), (), (1.0, 1 / 2)),
        a=(1 / 6, 1 / 6, 2 / 3),
        b1=(1.0, 0.0),
        b2=(-1.0, 1.0),
        c=(1.0, 0.0),
        reference="Rossler 2010",
    )


def sriw1() -> SRI:
    """SRIW1.  Two calls of the drift and four of the diffusion a step, all within the step; the first choice for diagonal and scalar noise.

    The published A1_43 = 1/4 stands in the first column: its third drift stage is the first.
    """
    return SRI(
        a0=((), (3 / 4,)),
        b0=((), (3 / 2,)),
        a1=((), (1 / 4,), (1.0,), (1 / 4,)),
        b1=((), (1 / 2,), (-1.0,), (-5.0, 3.0, 1 / 2)),
        a=(1 / 3, 2 / 3),
        on_w=(-1.0, 4 / 3, 2 / 3, 0.0),
        on_i11=(-1.0, 4 / 3, -1 / 3, 0.0),
        on_j=(2.0, -4 / 3, -2 / 3, 0.0),
        on_i111=(-2.0, 5 / 3, -2 / 3, 1.0),
        reference="Rossler 2010",
    )


def sosri() -> SRI:
    """SOSRI.  Four calls of drift and diffusion a step.  Stable for a drift of rate up to 9 / |h|, where SRIW1 stops at 2 / |h|: for stiffer problems.

    Its drift is called outside the step, at c0 = (0, -0.04, 0.79, 3.75): not for one that is known on the interval alone.
    """
    return SRI(
        a0=(
            (),
            (-0.04199224421316468,),
            (2.842612915017106, -2.0527723684000727),
            (4.338237071435815, -2.8895936137439793, 2.3017575594644466),
        ),
        b0=(
            (),
            (-0.21641093549612528,),
            (1.5336352863679572, 0.26066223492647056),
            (-1.0536037558179159, 1.7015284721089472, -0.20725685784180017),
        ),
        a1=(
            (),
            (0.26204282091330466,),
            (0.20903646383505375, -0.1502377115150361),
            (0.05836595312746999, 0.6149440396332373, 0.08535117634046772),
        ),
        b1=(
            (),
            (-0.5119011827621657,),
            (2.67767339866713, -4.9395031322250995),
            (0.15580956238299215, 3.2361551006624674, -1.4223118283355949),
        ),
        a=(1.140099274172029, -0.6401334255743456, 0.4736296532772559, 0.026404498125060714),
        on_w=(-1.8453464565104432, 2.688764531100726, -0.2523866501071323, 0.40896857551684956),
        on_i11=(0.4969658141589478, -0.5771202869753592, -0.12919702470322217, 0.2093514975196336),
        on_j=(2.8453464565104425, -2.688764531100725, 0.2523866501071322, -0.40896857551684945),
        on_i111=(0.11522663875443433, -0.57877086147738, 0.2857851028163886, 0.17775911990655704),
        reference="Rackauckas & Nie 2020",
    )
