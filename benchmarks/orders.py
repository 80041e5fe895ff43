"""The table of orders: what every registered method declares, and what it does, by kind of noise and direction of time.

    python benchmarks/orders.py [--methods sriw1 heun_sde] [--json orders.json]

The measurements are those of tests/test_orders.py: ODE orders on the six finest grids whose error stands out of rounding, strong orders on
4,000 given paths, weak orders without Monte-Carlo error, all on nonlinear and non-autonomous problems with known answers.  Methods that need a
score are measured on the VP process: its flow in both directions, its reverse SDE in the one that it has.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import torch
from convergence import Measured, flow, ode, strong, strong_on_the_reverse_sde, weak, weak_on_a_gaussian

import sdesolve as sd
from sdesolve.methods import Facts

DIRECTIONS = {"forwards": 1, "backwards": -1}


def rows(chosen: list[str]) -> Iterator[dict[str, Any]]:
    """One row for each method, order and kind of noise."""
    for name, facts in sd.methods():
        if chosen and name not in chosen:
            continue
        declared = {("strong", kind): order for kind, order in facts.strong.items()} | {("weak", kind): order for kind, order in facts.weak.items()}
        if facts.ode is not None:
            declared["ODE", "none"] = facts.ode
        for (order, noise), value in declared.items():
            measured = _measured(name, order, noise, facts)
            if measured:
                found = {direction: round(m.order, 3) for direction, m in measured.items()}
                errors = {direction: {"steps": m.steps, "errors": m.errors} for direction, m in measured.items()}
                yield {"method": name, "order": order, "noise": noise, "declared": value, **found, "measured": errors}


def _measured(name: str, order: str, noise: str, facts: Facts) -> dict[str, Measured]:
    """By direction of time; a method that needs a score runs on the VP process, its SDE backwards alone, and a corrector has no order on it."""
    if "score" in facts.needs:
        if order == "ODE":
            return {direction: flow(name, "VP", backwards=sign < 0) for direction, sign in DIRECTIONS.items()}
        on_process = {"strong": lambda: strong_on_the_reverse_sde(name), "weak": lambda: weak_on_a_gaussian(name, "VP")}
        return {} if name in ("pc", "annealed_langevin") else {"backwards": on_process[order]()}
    calculus = "ito" if "ito" in facts.calculus else "stratonovich"
    spans = {"strong": (0.0, 1.0), "weak": (0.0, 0.6), "ODE": (0.0, 2.0)}
    measure = {"strong": lambda span: strong(name, noise, span, calculus), "weak": lambda span: weak(name, noise, span), "ODE": lambda span: ode(name, span)}
    return {direction: measure[order](spans[order][::sign]) for direction, sign in DIRECTIONS.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="*", default=[], help="names; default all")
    parser.add_argument("--json", type=Path, help="where to write the table with its errors")
    arguments = parser.parse_args()
    columns = ["method", "order", "noise", "declared", *DIRECTIONS]
    print("| " + " | ".join(columns) + " |\n|" + "---|" * len(columns))
    table = []
    for row in rows(arguments.methods):
        table.append(row)
        print("| " + " | ".join(str(row.get(column, "")) for column in columns) + " |", flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps({"versions": {"sdesolve": sd.__version__, "torch": torch.__version__}, "orders": table}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
