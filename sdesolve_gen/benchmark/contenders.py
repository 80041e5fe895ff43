"""Who takes part: a label, and a function from standard normals to samples that asks a counted network.

Our own methods are options of :func:`sdesolve.solve`, one line each.  A *range* (high, low) says between which noise levels
sigma/alpha a sampler works, in standard deviations of the data; it then starts from  (std^2 + s^2)^(1/2) z,  which is the state scaled to its own
marginal, and ends with a denoising call, which is its last.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from torch import Tensor

import sdesolve as sd

from .problems import Network, Problem

RANGE = (20.0, 0.05)
RHO = 7.0

Run = Callable[[Network, Tensor, int, int, int], Tensor]
"""(network, z, budget, seed, name of the first row) -> samples of x_0; at most ``budget`` calls of the network."""


class Contender(NamedTuple):
    """One line of the comparison."""

    label: str
    family: str
    """Whose: "sdesolve", or the package."""
    setting: str
    """"ours"; of a peer, "as its users run it" or "on our grid"."""
    flow: bool
    """Whether it solves the flow, so that it has a trajectory to compare."""
    run: Run


USERS, OUR_GRID, OURS = "as its users run it", "on our grid", "ours"

METHODS: dict[str, dict[str, Any]] = {
    "ddim": {"method": "ddim"},
    "dpmpp_2m": {"method": "dpmpp_2m"},
    "dpmpp_3m": {"method": "dpmpp_3m"},
    "unipc": {"method": "unipc"},
    "deis": {"method": "deis"},
    "ipndm": {"method": "ipndm"},
    "heun": {"method": "heun"},
    "dpmpp_2m_sde": {"method": "dpmpp_2m_sde"},
    "seeds": {"method": "seeds"},
    "sa_solver": {"method": "sa_solver"},
    "er_sde": {"method": "er_sde"},
    "pc": {"method": "pc"},
}
"""Label -> options of ``solve``; those whose method this version lacks are left out."""


def ours(labels: list[str] | None = None) -> list[Contender]:
    """Our methods: those of :data:`METHODS` that this version has, or the named ones; a name of the registry is a label too.

    Raises:
        ValueError: a label that is neither.
    """
    known = {row.name: row.facts for row in sd.methods()}
    chosen = {label: options for label, options in METHODS.items() if options["method"] in known}
    if labels is not None:
        from .._errors import unknown

        for label in labels:
            if label not in chosen and label not in known:
                raise ValueError(unknown("method", label, {*chosen, *known}))
        chosen = {label: chosen.get(label, {"method": label}) for label in labels}
    return [solver(label, "sdesolve", OURS, options, known[options["method"]].ode is not None) for label, options in chosen.items()]


def solver(label: str, family: str, setting: str, options: Mapping[str, Any], flow: bool) -> Contender:
    """A contender that is a call of ``solve``; range None runs the whole process from its prior, on its default grid."""

    def run(network: Network, z: Tensor, budget: int, seed: int, first: int) -> Tensor:
        chosen = {"range": RANGE, "grid": "karras", **options}
        process, limits = network.problem.process, chosen.pop("range")
        problem = process.probability_flow(network.score) if flow else process.reverse(network.score)
        x, interval = z, problem.interval
        if limits is not None:
            high, low = levels_of(network.problem, limits)
            interval = (network.time(high), network.time(low))
            x = (process.alpha_(interval[0]) * started(network.problem, z, high)).to(z.dtype)
        ids = range(first, first + len(z))
        return sd.solve(problem, x, nfe=budget, interval=interval, denoise=True, seed=seed, sample_ids=ids, **chosen).x

    return Contender(label, family, setting, flow, run)


def levels_of(problem: Problem, limits: tuple[float, float] = RANGE) -> tuple[float, float]:
    """Noise levels sigma/alpha of a range."""
    return limits[0] * problem.std, limits[1] * problem.std


def started(problem: Problem, z: Tensor, s: float) -> Tensor:
    """y at the noise level s, scaled to its marginal."""
    return z * (problem.std**2 + s * s) ** 0.5


def ladder(problem: Problem, n: int) -> list[float]:
    """Our grid: n noise levels, equally spaced in s^(1/rho).  [Karras et al. 2022, eq. 5]"""
    high, low = levels_of(problem)
    ends = high ** (1 / RHO), low ** (1 / RHO)
    return [(ends[0] + (ends[1] - ends[0]) * i / max(n - 1, 1)) ** RHO for i in range(n)]
