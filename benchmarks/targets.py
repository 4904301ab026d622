"""What is to be reached, and whether it was."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from benchmarks.rivals import OURS

Results = dict[str, Any]


@dataclass(frozen=True)
class Target:
    """``value`` of the results has to be at least (``at_least``) or at most ``now``; ``goal`` is where we are going."""

    text: str
    value: Callable[[Results], float]  # KeyError: not measured
    at_least: bool
    now: float
    goal: float


def ratio(workload: str, metric: str, rival: str, case: str = "") -> Callable[[Results], float]:
    """Ours / theirs, median of the ratios within runs."""
    return lambda r: float(r["workloads"][workload]["cases"][case]["ratios"][metric][rival]["median"])


def ours(workload: str, metric: str, case: str = "") -> Callable[[Results], float]:
    return lambda r: float(r["workloads"][workload]["cases"][case]["rivals"][OURS][metric]["median"])


def growth(workload: str, metric: str, big: str, small: str) -> Callable[[Results], float]:
    """Ours in one case by ours in another."""
    return lambda r: ours(workload, metric, big)(r) / ours(workload, metric, small)(r)


def against_best(workload: str, metric: str, case: str = "") -> Callable[[Results], float]:
    """Ours by the best of all the others."""

    def value(r: Results) -> float:
        w = r["workloads"][workload]
        best = min if w["higher_is_better"] else max
        return float(best(v["median"] for v in w["cases"][case]["ratios"][metric].values()))

    return value


def between(over: Callable[[Results], float], under: Callable[[Results], float]) -> Callable[[Results], float]:
    return lambda r: over(r) / under(r)


def of(workload: str, metric: str, rival: str) -> Callable[[Results], float]:
    return lambda r: float(r["workloads"][workload]["cases"][""]["rivals"][rival][metric]["median"])


TARGETS = (
    Target("no-op one by one: x multiprocessing.Pool", ratio("noop", "rate", "multiprocessing"), True, 8, 15),
    Target("no-op one by one: x ProcessPoolExecutor", ratio("noop", "rate", "executor"), True, 30, 60),
    Target("futures: x ProcessPoolExecutor", ratio("futures", "rate", "executor"), True, 6, 12),
    Target("futures: x multiprocessing apply_async", ratio("futures", "rate", "multiprocessing"), True, 2, 4),
    Target("automatic chunks: x multiprocessing map", ratio("chunks", "rate", "multiprocessing"), True, 0.5, 0.5),
    Target("automatic chunks: x joblib", ratio("chunks", "rate", "joblib"), True, 10, 10),
    Target(
        "round trip: p50 by multiprocessing's", ratio("round_trip", "p50_us", "multiprocessing"), False, 1 / 4, 1 / 8
    ),
    Target(
        "round trip: p99 by multiprocessing's p50",
        between(of("round_trip", "p99_us", OURS), of("round_trip", "p50_us", "multiprocessing")),
        False,
        1,
        1,
    ),
    Target("start-up: by ProcessPoolExecutor's", ratio("start_up", "ms", "executor"), False, 1.5, 1.1),
    Target("import pool, ms", ours("start_up", "import_ms"), False, 30, 16),
    Target("idle: CPU %", ours("idle", "cpu_percent"), False, 0.1, 0.1),
    Target("idle: wake-ups/s of the busiest process", ours("idle", "most_wakes"), False, 5, 5),
    Target("lazy inputs: growth MiB", ours("lazy", "peak_mib", "unordered"), False, 8, 8),
    Target(
        "lazy inputs behind a slow item 0: growth MiB", ours("lazy", "peak_mib", "ordered, item 0 slow"), False, 8, 8
    ),
    Target("CPU a no-op: 64 workers by 2", growth("scale", "cpu_us", "64 workers", "2 workers"), False, 1.30, 1.15),
    Target(
        "CPU a 20 µs task: 64 workers by 2",
        growth("wake", "cpu_us", "20 µs, 64 workers", "20 µs, 2 workers"),
        False,
        1.30,
        1.15,
    ),
    Target("busy 0.1 ms: of two bare forks", ours("busy", "efficiency", "0.1 ms"), True, 0.90, 0.95),
    Target("busy 1 ms: of two bare forks", ours("busy", "efficiency", "1 ms"), True, 0.95, 0.98),
    Target("busy 10 ms: of two bare forks", ours("busy", "efficiency", "10 ms"), True, 0.95, 0.98),
    Target("thumbnails: time by the best peer's", against_best("thumbnails", "seconds"), False, 1.03, 1.0),
    Target("arrays of 64 KiB: x the best peer", against_best("arrays", "gb_per_s", "64 KiB"), True, 10, 15),
    Target("arrays of 1 MiB: x the best peer", against_best("arrays", "gb_per_s", "1 MiB"), True, 10, 15),
    Target("arrays of 16 MiB: x the best peer", against_best("arrays", "gb_per_s", "16 MiB"), True, 3, 4),
    Target("late start, futures, 2 workers: worst ms", ours("late", "worst_ms", "futures, 2 workers"), False, 5, 2),
    Target("late start, imap, 2 workers: worst ms", ours("late", "worst_ms", "imap, 2 workers"), False, 5, 2),
    Target("late start, beside, 2 workers: worst ms", ours("late", "worst_ms", "beside, 2 workers"), False, 5, 2),
    Target("deadlines: CPU a no-op, with by without", ours("deadlines", "by_without"), False, 1.10, 1.05),
)


def judge(results: Results) -> list[dict[str, Any]]:
    """Each target with its value; ``reached`` is None for what was not measured."""
    return [_judge(target, results) for target in TARGETS]


def _judge(target: Target, results: Results) -> dict[str, Any]:
    try:
        value = target.value(results)
    except (KeyError, ValueError):  # not asked for, missing or failed
        value = None
    return {
        "target": target.text,
        "at_least": target.at_least,
        "now": target.now,
        "goal": target.goal,
        "value": value,
        "reached": _reached(value, target.now, target.at_least),
        "goal_reached": _reached(value, target.goal, target.at_least),
    }


def _reached(value: float | None, limit: float, at_least: bool) -> bool | None:
    if value is None:
        return None
    return value >= limit if at_least else value <= limit
