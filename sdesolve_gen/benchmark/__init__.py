"""The benchmark: quality for a number of network calls, ours beside other packages', on laws with exact scores and on trained networks.

    sdesolve-gen benchmark --quick --out runs/benchmark
"""

from .contenders import METHODS
from .problems import PROBLEMS
from .report import results, text, write
from .runner import FULL, PRESETS, QUICK, Plan, planned, run

__all__ = ["FULL", "METHODS", "PRESETS", "PROBLEMS", "QUICK", "Plan", "planned", "results", "run", "text", "write"]
