"""From cells to what is read: one JSON object with everything, a table, plots and a page.  Each file is whole or absent."""

from __future__ import annotations

import json
import math
import os
import platform
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from sdesolve.files import atomic

from .._versions import versions
from .contenders import OUR_GRID, OURS, USERS
from .metrics import METRICS, excess, mean_and_error
from .peers import peer_versions
from .runner import EXACT, FLOW, Plan

FORMAT = 1
AUTO = "auto"


def results(plan: Plan, ran: Mapping[str, Any], command: list[str]) -> dict[str, Any]:
    """The JSON object: means and standard errors over seeds, the floors, and the table of the best.

    Arguments:
        plan, ran: what was asked of :func:`.runner.run`, and what it gave back.
        command: arguments of the command line.
    """
    grouped: dict[tuple[str, str, int], list[dict[str, Any]]] = defaultdict(list)
    for cell in ran["cells"]:
        grouped[cell["problem"], cell["contender"], cell["budget"]].append(cell)
    line_up = {c.label: {"family": c.family, "setting": c.setting, "flow": c.flow} for c in ran["contenders"]}
    problems, floors = {}, {}
    for p in ran["problems"]:
        floors[p.name] = {flow: grouped.pop((p.name, label, 0), []) for flow, label in ((True, FLOW), (False, EXACT))}
        floor = _averaged(floors[p.name][False])["metrics"]
        problems[p.name] = {"event": list(p.event), "rows": p.rows, "std": round(p.std, 4), "primary": p.primary, "floor": floor}
    fixed = {c.label for c in ran["contenders"] if c.setting == OURS and c.label != AUTO and not c.finds}
    rows = []
    for (problem, label, budget), cells in grouped.items():
        row = {"problem": problem, "contender": label, "budget": budget, **_averaged(cells)}
        flow = line_up[label]["flow"]
        for metric, value in row["metrics"].items():
            floor = [cell["metrics"][metric] for cell in floors[problem][flow] if metric in cell["metrics"]]
            value["excess"] = excess(metric, [cell["metrics"][metric] for cell in cells], floor, paired=flow)
        rows.append(row)
    return {
        "format": FORMAT,
        "command": ["sdesolve-gen", *command],
        "versions": {**versions(), **peer_versions()},
        "machine": {"processor": _processor(), "cores": os.cpu_count(), "threads": torch.get_num_threads(), "system": platform.platform()},
        "plan": {"rows": dict(plan.rows), "budgets": list(plan.budgets), "seed": plan.seed, "seeds": plan.seeds, "peers": plan.peers},
        "metrics": METRICS,
        "problems": problems,
        "contenders": line_up,
        "skipped": ran["skipped"],
        "failed": failures(rows),
        "results": rows,
        "table": table(problems, rows, line_up),
        "auto": auto_beside(problems, grouped, fixed),
    }


def _averaged(cells: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean and standard error over the seeds of one contender at one budget."""
    failed = [cell["failed"] for cell in cells if "failed" in cell]
    if failed or not cells:
        return {"failed": failed[0] if failed else "not run", "metrics": {}}
    metrics = {}
    for metric in cells[0]["metrics"]:
        metrics[metric] = _figure([cell["metrics"][metric] for cell in cells])
    return {"nfe": max(cell["nfe"] for cell in cells), "seconds": _figure([cell["seconds"] for cell in cells]), "metrics": metrics}


def _figure(values: list[float]) -> dict[str, float | None]:
    """{"mean", "se"} over seeds."""
    return dict(zip(("mean", "se"), mean_and_error(values), strict=True))


def failures(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What failed for one reason at a budget, once, with the contenders that did."""
    found: dict[tuple[str, int, str], list[str]] = defaultdict(list)
    for row in rows:
        if "failed" in row:
            found[row["problem"], row["budget"], " ".join(row["failed"].split())].append(row["contender"])
    return [{"problem": p, "budget": budget, "reason": reason, "contenders": labels} for (p, budget, reason), labels in found.items()]


def table(problems: Mapping[str, Any], rows: Iterable[Mapping[str, Any]], line_up: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Our best method and the best peers of both settings at each budget, by each problem's own metric, and by the trajectory.

    A gain is the peer's excess error over ours; ``bound`` says ">=" where ours is lost in the floor, "<=" where the peer's is; None where both are, or
    where a single seed leaves nothing to judge by.
    """
    rows, lines = list(rows), []
    for problem, about in problems.items():
        for metric in dict.fromkeys((about["primary"], "trajectory")):
            here = [row for row in rows if row["problem"] == problem and metric in row.get("metrics", {})]
            for budget in sorted({row["budget"] for row in here}):
                best = {}
                for setting in (OURS, USERS, OUR_GRID):
                    group = [row for row in here if row["budget"] == budget and line_up[row["contender"]]["setting"] == setting]
                    if group:
                        row = min(group, key=lambda row: row["metrics"][metric]["mean"])
                        best[setting] = {"contender": row["contender"], "nfe": row["nfe"], **row["metrics"][metric]}
                line: dict[str, Any] = {"problem": problem, "metric": metric, "budget": budget, "best": best}
                line["gain"] = {s: gain(best[s]["excess"], best[OURS]["excess"]) for s in (USERS, OUR_GRID) if s in best and OURS in best}
                lines.append(line)
    return lines


def auto_beside(problems: Mapping[str, Any], grouped: Mapping[tuple[str, str, int], list[dict[str, Any]]], fixed: set[str]) -> list[dict[str, Any]]:
    """What auto gets and the best of our fixed choices at each budget, and how much more auto's is, seed by seed."""
    lines = []
    for problem, about in problems.items():
        for metric in dict.fromkeys((about["primary"], "trajectory")):
            values: dict[int, dict[str, list[float]]] = defaultdict(dict)
            for (name, label, budget), cells in grouped.items():
                if name == problem and label in {AUTO, *fixed} and all(metric in cell.get("metrics", {}) for cell in cells):
                    values[budget][label] = [cell["metrics"][metric] for cell in cells]
            for budget, found in sorted(values.items()):
                if AUTO in found and len(found) > 1:
                    best = min(found.keys() - {AUTO}, key=lambda label: sum(found[label]))
                    more = [a - b for a, b in zip(found[AUTO], found[best], strict=True)]
                    figures = {"auto": _figure(found[AUTO]), "fixed": _figure(found[best]), "more": _figure(more)}
                    lines.append({"problem": problem, "metric": metric, "budget": budget, "best": best, **figures})
    return lines


def gain(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> dict[str, Any] | None:
    """theirs / ours with its standard error; see :func:`table`."""
    if not (theirs["resolved"] or ours["resolved"]) or not ours["mean"] or not theirs["mean"]:
        return None
    ratio = theirs["mean"] / ours["mean"]
    if not (theirs["resolved"] and ours["resolved"]):
        return {"ratio": ratio, "se": None, "bound": ">=" if theirs["resolved"] else "<="}
    errors = [(side["se"] or 0.0) / side["mean"] for side in (theirs, ours)]
    known = theirs["se"] is not None and ours["se"] is not None
    return {"ratio": ratio, "se": ratio * math.hypot(*errors) if known else None, "bound": "="}


def text(found: Mapping[str, Any]) -> str:
    """The table as Markdown that reads well as it stands."""
    blocks: list[str] = []
    for problem, about in found["problems"].items():
        for metric in dict.fromkeys(line["metric"] for line in found["table"] if line["problem"] == problem):
            lines = [line for line in found["table"] if line["problem"] == problem and line["metric"] == metric]
            floor = about["floor"].get(metric)
            said = f"noise floor {_number(floor)}" if floor else "no floor: the same start, solved finely"
            head = f"{problem}: {METRICS[metric]}, {about['rows']} samples, {said}"
            blocks.append(f"{head}\n\n{_markdown(lines, found['plan']['seeds'])}")
            auto = [line for line in found["auto"] if line["problem"] == problem and line["metric"] == metric]
            if auto:
                blocks.append(f"{problem}: `auto` and the best of our fixed choices, {METRICS[metric]}\n\n{_aligned([_beside(), *map(_beside, auto)])}")
    if found["failed"]:
        blocks.append("Failed:\n\n" + "\n".join(map(_failure, found["failed"])))
    if found["skipped"]:
        blocks.append("Left out:\n\n" + "\n".join(f"- {name}: {reason}" for name, reason in found["skipped"].items()))
    return "\n\n".join(blocks) + "\n"


def _failure(found: Mapping[str, Any]) -> str:
    return f"- {found['problem']}, budget {found['budget']}: {'; '.join(found['contenders'])}: {found['reason']}"


def _markdown(lines: list[dict[str, Any]], seeds: int) -> str:
    columns = ["calls", "ours", "", f"peer, {USERS}", "", "gain", f"peer, {OUR_GRID}", "", "gain"]
    body = [columns]
    for line in lines:
        cells = [str(line["budget"])]
        for setting in (OURS, USERS, OUR_GRID):
            best = line["best"].get(setting)
            cells += [best["contender"].removesuffix(" [our grid]"), _number(best)] if best else ["-", "-"]
            if setting != OURS:
                cells.append(_ratio(line["gain"][setting], seeds) if setting in line["gain"] else "-")
        body.append(cells)
    return _aligned(body)


def _beside(line: Mapping[str, Any] | None = None) -> list[str]:
    if line is None:
        return ["calls", "auto", "best fixed choice", "", "auto - best"]
    return [str(line["budget"]), _number(line["auto"]), line["best"], _number(line["fixed"]), _number(line["more"])]


def _aligned(body: list[list[str]]) -> str:
    widths = [max(len(row[i]) for row in body) for i in range(len(body[0]))]
    shown = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in body]
    shown.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(shown)


def _number(value: Mapping[str, Any]) -> str:
    return f"{value['mean']:.4f}" + (f" ± {value['se']:.4f}" if value["se"] is not None else "")


def _ratio(found: Mapping[str, Any] | None, seeds: int) -> str:
    if found is None:
        return "at the floor" if seeds > 1 else "one seed"
    bound = {">=": "≥ ", "<=": "≤ ", "=": ""}[found["bound"]]
    return f"{bound}{found['ratio']:.2f}" + (f" ± {found['se']:.2f}" if found["se"] is not None else "")


def write(found: Mapping[str, Any], out: Path) -> list[Path]:
    """results.json, table.md, a PNG a problem and benchmark.html in the folder ``out``."""
    from .page import page
    from .plots import plots

    written = [out / "table.md", *plots(found, out), out / "benchmark.html", out / "results.json"]
    _write(written[0], text(found))
    _write(out / "benchmark.html", page(found))
    _write(out / "results.json", json.dumps(found, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    return written


def _write(file: Path, content: str) -> None:
    with atomic(file) as path:
        path.write_text(content, encoding="utf-8")


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor() or platform.machine())
