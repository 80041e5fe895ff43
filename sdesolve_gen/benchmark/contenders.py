"""Who takes part: a label, and a function from standard normals to samples that asks a counted network.

Our own methods are options of :func:`sdesolve.solve`, one line each.  Where they do not say otherwise they walk *our grid*: Karras et al.'s spacing
between the noise levels of :func:`span`, from the Gaussian that has the data's moments, and a denoising call at the end.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from torch import Tensor

import sdesolve as sd

from .._errors import unknown
from .problems import Network, Problem

RHO = 7.0
FOUND_UP_TO = {"optimised": 20, "learned": 10, "statistics": math.inf}  # calls, beyond which nodes, or weights, are worth little

Run = Callable[[Network, Tensor, int, int, int], Tensor]
"""(network, z, budget, seed, name of the first row) -> samples of x_0; at most ``budget`` calls of the network."""


class Contender(NamedTuple):
    """One line of the comparison."""

    label: str
    family: str
    """Whose: "sdesolve", or the package."""
    setting: str
    """One of OURS, USERS and OUR_GRID."""
    flow: bool
    """Whether it solves the flow, so that it has a trajectory to compare."""
    run: Run
    finds: str | None = None
    """What it finds beforehand: for the problem and the budget "optimised" nodes or "learned" weights, for the problem "statistics"; None for nothing."""

    def suits(self, problem: Problem, budget: int) -> bool:
        """Whether there is something to run, and to measure."""
        if self.finds and (problem.trajectories is None or budget > FOUND_UP_TO[self.finds]):
            return False
        return self.flow or problem.has_reference


USERS, OUR_GRID, OURS = "as its users run it", "on our grid", "ours"

METHODS: dict[str, dict[str, Any]] = {
    "auto": {"method": "auto", "grid": None},
    "ddim": {"method": "ddim"},
    "heun": {"method": "heun"},
    "edm": {"method": "edm"},
    "dpmpp_2m": {"method": "dpmpp_2m"},
    "dpmpp_3m": {"method": "dpmpp_3m", "grid": "log_snr"},
    "unipc": {"method": "unipc"},
    "unipc 3": {"method": "unipc", "order": 3, "grid": "log_snr"},
    "deis": {"method": "deis", "variant": "log_rho", "grid": "log_snr"},
    "ipndm": {"method": "ipndm"},
    "dpmpp_2m_sde": {"method": "dpmpp_2m_sde"},
    "dpmpp_3m_sde": {"method": "dpmpp_3m_sde"},
    "seeds": {"method": "seeds"},
    "sa_solver": {"method": "sa_solver"},
    "er_sde": {"method": "er_sde"},
    "pc": {"method": "pc"},
    "dpm_solver_v3": {"method": "dpm_solver_v3", "grid": "log_snr", "statistics": "statistics"},
    "auto, optimised": {"method": "auto", "grid": "optimised"},
    "unipc, optimised": {"method": "unipc", "grid": "optimised"},
    "deis, optimised": {"method": "deis", "variant": "log_rho", "grid": "optimised"},
    "auto, learned": {"method": "auto", "grid": "learned"},
}
"""Label -> options of ``solve``.  An optimised grid, nodes and weights that are learned from our grid on, and statistics of the model are found once, from draws that no
cell has, and kept; the calls that this takes are not the sampler's."""


def ours(labels: list[str] | None = None) -> list[Contender]:
    """Our methods: :data:`METHODS`, or the named ones; a name of the registry is a label too.

    Raises:
        ValueError: a label that is neither.
    """
    known = {row.name: not row.facts.kinds for row in sd.methods()} | {"auto": True}  # whether it solves the flow
    for label in labels or ():
        if label not in METHODS and label not in known:
            raise ValueError(unknown("method", label, {*METHODS, *known}))
    chosen = METHODS if labels is None else {label: METHODS.get(label, {"method": label}) for label in labels}
    return [solver(label, "sdesolve", OURS, options, known[options["method"]]) for label, options in chosen.items()]


def solver(label: str, family: str, setting: str, options: Mapping[str, Any], flow: bool) -> Contender:
    """A contender that is a call of ``solve``, on our grid where the options do not say otherwise."""

    finds = next((value for value in options.values() if value in FOUND_UP_TO), None)

    def run(network: Network, z: Tensor, budget: int, seed: int, first: int) -> Tensor:
        p = network.problem
        problem = p.process.probability_flow(network.score) if flow else p.process.reverse(network.score)
        chosen: dict[str, Any]
        if finds == "learned":
            card, nodes = learned(p, budget)
            chosen = {"method": card, "grid": nodes}
        elif finds == "optimised":
            chosen = {**options, "grid": optimised(p, budget, **{name: value for name, value in options.items() if name != "grid"})}
        else:
            chosen = {"grid": "karras", "interval": span(p), "nfe": budget, **options}
            chosen |= {"statistics": statistics(p)} if finds else {}
        return sd.solve(problem, z * p.process.prior_std, seed=seed, sample_ids=range(first, first + len(z)), **chosen).x

    return Contender(label, family, setting, flow, run, finds)


def span(problem: Problem) -> sd.Range:
    """Between which noise levels N calls are spent, and from what: as a user has it who says ``interval=sd.Range.of(data)``."""
    return sd.Range(problem.std, problem.mean, directions=problem.directions)


def optimised(problem: Problem, budget: int, method: str, **options: Any) -> sd.OptimisedGrid:
    """The nodes of ``sd.optimize_grid``, found once and kept beside the fine solves."""
    file = problem.cache / f"grid-{'-'.join(map(str, (problem.key, method, *options.values(), budget)))}.json"
    if not file.is_file():
        assert problem.trajectories is not None
        size: dict[str, Any] = {"shape": problem.event, "samples": problem.trajectories, "seed": 2**33, "device": problem.device}
        found = sd.optimize_grid(flow_of(problem), method, nfe=budget, data=span(problem), **size, **options)
        file.parent.mkdir(parents=True, exist_ok=True)
        found.save(file)
    return sd.OptimisedGrid.load(file)


def learned(problem: Problem, budget: int) -> tuple[sd.SolverCard, sd.OptimisedGrid]:
    """The weights and nodes of ``sd.optimize_card``, which begins with our grid, kept beside the fine solves."""
    card, nodes = (problem.cache / f"{name}-{problem.key}-learned-{budget}.json" for name in ("card", "grid"))
    if not (card.is_file() and nodes.is_file()):
        assert problem.trajectories is not None
        size: dict[str, Any] = {"shape": problem.event, "samples": 8 * problem.trajectories, "seed": 2**33 + 1, "device": problem.device}
        fitted = sd.optimize_card(flow_of(problem), span(problem), nfe=budget, **size)
        nodes.parent.mkdir(parents=True, exist_ok=True)
        fitted.grid.save(nodes)
        fitted.card.save(card)
    return sd.SolverCard.load(card), sd.OptimisedGrid.load(nodes)


def statistics(problem: Problem) -> sd.ModelStatistics:
    """What ``sd.model_statistics`` says of the problem's network, kept beside the fine solves."""
    file = problem.cache / f"statistics-{problem.key}.json"
    if not file.is_file():
        assert problem.trajectories is not None
        file.parent.mkdir(parents=True, exist_ok=True)
        sd.model_statistics(flow_of(problem), shape=problem.event, samples=2 * problem.trajectories, seed=2**33, device=problem.device).save(file)
    return sd.ModelStatistics.load(file)


def flow_of(problem: Problem) -> sd.ProbabilityFlow:
    """What is found beforehand is found along the flow of a network that counts for nobody."""
    return problem.process.probability_flow(Network(problem).score)


def ladder(problem: Problem, n: int, budget: int) -> list[float]:
    """Our grid as noise levels sigma/alpha: n of them, equally spaced in s^(1/rho).  [Karras et al. 2022, eq. 5]"""
    times = span(problem).interval(problem.process, budget)
    high, low = (float((-0.5 * problem.process.log_snr(t)).exp()) ** (1 / RHO) for t in times)
    return [(high + (low - high) * i / max(n - 1, 1)) ** RHO for i in range(n)]


def started(problem: Problem, z: Tensor, s: float) -> Tensor:
    """y at the noise level s: the Gaussian with the data's moments, under that noise, as :func:`span` starts from it."""
    process = problem.process
    t = Network(problem).time(s)
    return span(problem).start(process, z * process.prior_std, t) / float(process.alpha(t))
