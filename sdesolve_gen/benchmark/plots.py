"""Quality and seconds against network calls, as pictures: ours in colour and named, the best of the peers in black, all others in grey."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sdesolve.files import atomic

from .contenders import OUR_GRID, OURS, USERS
from .metrics import METRICS

COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"]  # Okabe & Ito, told apart by colour-blind readers
NAMED = len(COLOURS)  # of our methods, the best over the budgets that they have


def plots(found: Mapping[str, Any], out: Path) -> list[Path]:
    """One PNG a problem, quality on the left and wall time on the right; nothing where matplotlib is not installed."""
    try:
        import matplotlib
    except ImportError:
        return []
    matplotlib.use("Agg")
    files = []
    for problem in found["problems"]:
        curves = _curves(found, problem)
        if curves:
            file = out / f"{problem}.png"
            with atomic(file) as path:
                _picture(found, problem, curves, path)
            files.append(file)
    return files


def _curves(found: Mapping[str, Any], problem: str) -> dict[str, list[dict[str, float]]]:
    """Label -> points of the problem's own metric, by budget."""
    metric = found["problems"][problem]["primary"]
    curves: dict[str, list[dict[str, float]]] = {}
    for row in found["results"]:
        if row["problem"] == problem and metric in row["metrics"]:
            value = row["metrics"][metric]
            point = {"nfe": row["nfe"], "mean": value["mean"], "se": value["se"] or 0.0, "seconds": row["seconds"]["mean"], "budget": row["budget"]}
            curves.setdefault(row["contender"], []).append(point)
    return curves


def _picture(found: Mapping[str, Any], problem: str, curves: Mapping[str, list[dict[str, float]]], path: Path) -> None:
    import matplotlib.pyplot as plt

    about, metric = found["problems"][problem], found["problems"][problem]["primary"]
    setting = {label: found["contenders"][label]["setting"] for label in curves}
    own = _nearest({label: points for label, points in curves.items() if setting[label] == OURS})[:NAMED]
    figure, (quality, cost) = plt.subplots(1, 2, figsize=(14, 6), width_ratios=(3, 2), layout="constrained")
    for label, points in curves.items():
        if setting[label] != OURS:
            quality.plot(*_xy(points, "mean"), color="0.82", lw=0.8, zorder=1)
            cost.plot(*_xy(points, "seconds"), color="0.82", lw=0.8, zorder=1)
    ends: list[tuple[float, float, str, str]] = []
    for kind, style, name in ((USERS, "-", "best peer as its users run it"), (OUR_GRID, "--", "best peer on our grid")):
        best = _envelope([points for label, points in curves.items() if setting[label] == kind])
        if best:
            quality.plot(*_xy(best, "mean"), color="black", ls=style, lw=1.8, marker="o", ms=3, zorder=3)
            ends.append((best[-1]["nfe"], best[-1]["mean"], name, "black"))
    for label, colour in zip(own, COLOURS, strict=False):
        points = curves[label]
        quality.errorbar(*_xy(points, "mean"), yerr=[p["se"] for p in points], color=colour, marker="o", ms=4.5, lw=2, capsize=2, zorder=4)
        cost.plot(*_xy(points, "seconds"), color=colour, marker="o", ms=4.5, lw=2, zorder=4)
        ends.append((points[-1]["nfe"], points[-1]["mean"], label, colour))
    floor = about["floor"].get(metric)
    if floor:
        quality.axhspan(floor["mean"] - (floor["se"] or 0), floor["mean"] + (floor["se"] or 0), color="0.9", zorder=0)
        quality.axhline(floor["mean"], color="0.45", lw=1, ls=":", zorder=0)
        quality.annotate("noise floor", (0.2, floor["mean"]), xycoords=("axes fraction", "data"), color="0.35", fontsize=9, va="bottom")
    _limits(quality, curves, floor)
    _labels(quality, ends)
    quality.set(xlabel="network calls", ylabel=METRICS[metric])
    cost.set(xlabel="network calls", ylabel=f"seconds for {about['rows']} samples")
    cost.annotate("grey: peers", (0.02, 0.96), xycoords="axes fraction", color="0.5", fontsize=9, va="top")
    for axis in (quality, cost):
        _axis(axis, sorted({row["budget"] for row in found["results"]}))
    figure.suptitle(f"{problem}: {about['rows']} samples, {found['plan']['seeds']} seeds, bars are one standard error", fontsize=12, x=0.01, ha="left")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _nearest(curves: Mapping[str, list[dict[str, float]]]) -> list[str]:
    """Labels by the geometric mean of the error as a ratio to the least at that budget, of the budgets that a method has."""
    least = {p["budget"]: p["mean"] for p in _envelope(list(curves.values()))}
    return sorted(curves, key=lambda label: sum(math.log(p["mean"] / least[p["budget"]]) for p in curves[label]) / len(curves[label]))


def _xy(points: list[dict[str, float]], what: str) -> tuple[list[float], list[float]]:
    return [p["nfe"] for p in points], [p[what] for p in points]


def _envelope(curves: list[list[dict[str, float]]]) -> list[dict[str, float]]:
    """The best point of any curve at each budget."""
    points = [point for curve in curves for point in curve]
    return [min((p for p in points if p["budget"] == budget), key=lambda p: p["mean"]) for budget in sorted({p["budget"] for p in points})]


def _limits(axis: Any, curves: Mapping[str, list[dict[str, float]]], floor: Mapping[str, float] | None) -> None:
    """Room for all but the worst: a sampler that explodes must not flatten the others."""
    values = sorted(p["mean"] for points in curves.values() for p in points)
    low = min(values[0], floor["mean"] if floor else values[0])
    axis.set(xscale="log", yscale="log", ylim=(0.8 * low, 1.3 * values[int(0.9 * (len(values) - 1))]))


def _labels(axis: Any, ends: list[tuple[float, float, str, str]]) -> None:
    """Names beside the lines' ends, pushed apart where they would touch."""
    low, high = (float(v) for v in axis.get_ylim())
    gap, above = (high / low) ** 0.04, low
    last = max(x for x, *_ in ends)
    for x, y, name, colour in sorted(ends, key=lambda end: end[1]):
        above = max(min(y, high), above * gap)
        style = "italic" if colour == "black" else "normal"
        axis.annotate(name, (x, y), (last * 1.06, above), textcoords="data", color=colour, fontsize=9, va="center", style=style, annotation_clip=False)
    axis.set_xlim(right=last)


def _axis(axis: Any, budgets: list[int]) -> None:
    axis.set(xscale="log", yscale="log")
    axis.set_xticks(budgets, [str(b) for b in budgets])
    axis.minorticks_off()
    low, high = axis.get_ylim()
    marks = [mark * 10.0**power for power in range(-8, 8) for mark in ((1, 2, 5) if high / low < 200 else (1,)) if low <= mark * 10.0**power <= high]
    axis.set_yticks(marks, [f"{mark:g}" for mark in marks])
    axis.grid(alpha=0.25)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
