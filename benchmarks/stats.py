"""Medians with their spread."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from time import perf_counter


def summary(runs: Sequence[float]) -> dict[str, object]:
    """The median of some runs, with the extremes and the runs themselves."""
    return {"median": statistics.median(runs), "min": min(runs), "max": max(runs), "runs": list(runs)}


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest value that at least so many percent of all do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, -(-int(len(ordered) * percent) // 100) - 1))]


def paced(run: Callable[[int], object], seconds: float, least: int = 200, most: int = 4_000_000) -> int:
    """How many tasks take about so many seconds. Doubles as the warm-up: it runs some, and none of that is counted."""
    n = least
    while True:
        start = perf_counter()
        run(n)
        took = max(perf_counter() - start, 1e-9)
        if took >= seconds / 4 or n >= most:
            return max(least, min(most, int(n * seconds / took)))
        n = min(most, n * 4)
