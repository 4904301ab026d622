"""``pool bench``: what the pool does on this machine, beside what the standard library's pools do.

Each pool is measured in fresh processes, in turns, and ratios are made within a turn, for a machine's speed drifts.
Tasks do nothing, so this shows what a pool costs and not what a program gains: where tasks take a millisecond or more,
all pools are nearly as fast.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from time import perf_counter

import click

from pool.cli import Stopped, say

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_SECONDS, _RUNS = 0.4, 5
_QUICK_SECONDS, _QUICK_RUNS = 0.05, 3
_PATIENCE = 120  # seconds that all measurements of one process may take
_TRIPS = 300
_MEASURES = {  # → (title, more is better)
    "one_by_one": ("tasks one by one, tasks/s", True),
    "futures": ("futures, tasks/s", True),
    "chunks": ("tasks in chunks, tasks/s", True),
    "round_trip": ("one task there and back, µs", False),
    "start": ("start and first result, ms", False),
}


def noop(item: int) -> int:
    """The task."""
    return item


class _Ours:
    title = "pool.Pool"

    def __init__(self, workers: int) -> None:
        from pool import Pool

        self.pool: Any = Pool(workers)

    def call(self, item: int) -> int:
        return int(self.pool.submit(noop, item).result())

    def one_by_one(self, n: int) -> Iterable[int]:
        return self.pool.imap_unordered(noop, range(n), chunksize=1)  # type: ignore[no-any-return]

    def futures(self, n: int) -> Iterable[int]:
        futures = [self.pool.submit(noop, item) for item in range(n)]
        return (future.result() for future in futures)

    def chunks(self, n: int) -> Iterable[int]:
        return self.pool.imap(noop, range(n))  # type: ignore[no-any-return]

    def stop(self) -> None:
        self.pool.shutdown()


class _Multiprocessing(_Ours):
    title = "multiprocessing.Pool"

    def __init__(self, workers: int) -> None:
        import multiprocessing

        self.pool = multiprocessing.get_context("fork").Pool(workers)

    def call(self, item: int) -> int:
        return int(self.pool.apply(noop, (item,)))

    def futures(self, n: int) -> Iterable[int]:
        results = [self.pool.apply_async(noop, (item,)) for item in range(n)]
        return (result.get() for result in results)

    def chunks(self, n: int) -> Iterable[int]:  # its imap has no automatic ones
        return self.pool.map(noop, range(n))  # type: ignore[no-any-return]

    def stop(self) -> None:
        self.pool.close()
        self.pool.join()


class _Executor(_Ours):
    title = "ProcessPoolExecutor"

    def __init__(self, workers: int) -> None:
        import multiprocessing
        from concurrent.futures import ProcessPoolExecutor

        self.workers = workers
        self.pool = ProcessPoolExecutor(workers, multiprocessing.get_context("fork"))

    def one_by_one(self, n: int) -> Iterable[int]:
        return self.pool.map(noop, range(n), chunksize=1)  # type: ignore[no-any-return]

    def chunks(self, n: int) -> Iterable[int]:  # it has no automatic ones: as many as multiprocessing would make
        return self.pool.map(noop, range(n), chunksize=-(-n // (4 * self.workers)))  # type: ignore[no-any-return]


_POOLS = {"pool": _Ours, "multiprocessing": _Multiprocessing, "executor": _Executor}


def measure_here(name: str, workers: int, seconds: float) -> dict[str, float]:
    """All measures of one pool, in this process."""
    begin = perf_counter()
    pool = _POOLS[name](workers)
    pool.call(1)
    found = {"start": (perf_counter() - begin) * 1e3}
    for measure in ("one_by_one", "futures", "chunks"):
        found[measure] = _rate(getattr(pool, measure), seconds)
    trips = []
    for item in range(_TRIPS):
        begin = perf_counter()
        pool.call(item)
        trips.append((perf_counter() - begin) * 1e6)
    found["round_trip"] = statistics.median(trips)
    pool.stop()
    return found


def _rate(run: Callable[[int], Iterable[int]], seconds: float) -> float:
    """Tasks per second, of the first lot that takes so long; the smaller ones before it are the warm-up."""
    n = 100
    while True:
        begin = perf_counter()
        total = sum(run(n))
        took = perf_counter() - begin
        if total != n * (n - 1) // 2:
            raise AssertionError(f"{n} tasks gave a sum of {total}")
        if took >= seconds:
            return n / took
        n = int(n * max(2.0, min(10.0, 1.2 * seconds / max(took, 1e-6))))


def _measure(name: str, workers: int, seconds: float) -> dict[str, float]:
    """The same, in a fresh process."""
    call = f"measure_here({name!r}, {workers}, {seconds})"
    program = f"import json; from pool.cli.bench import measure_here; print(json.dumps({call}))"
    path = os.pathsep.join(filter(None, (str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH"))))
    with subprocess.Popen(
        [sys.executable, "-P", "-c", program],
        env=os.environ | {"PYTHONPATH": path},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            out, err = process.communicate(timeout=_PATIENCE)
        except subprocess.TimeoutExpired:
            raise Stopped(f"{_POOLS[name].title} was not measured within {_PATIENCE} s") from None
        finally:
            with contextlib.suppress(ProcessLookupError):  # also what the pool has left behind
                os.killpg(process.pid, signal.SIGKILL)
    if process.returncode:
        raise Stopped(f"{_POOLS[name].title} failed: {(err.strip().splitlines() or ['nothing was said'])[-1]}")
    return dict(json.loads(out))


def _summary(runs: list[float]) -> dict[str, Any]:
    return {"median": statistics.median(runs), "min": min(runs), "max": max(runs), "runs": runs}


def gather(answers: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    """Measure → pool → summary of its runs, and ``times``: of how many times as good as it ours was in each run."""
    found: dict[str, Any] = {}
    for measure, (_, higher) in _MEASURES.items():
        found[measure] = {}
        for name, runs in answers.items():
            told = _summary([run[measure] for run in runs])
            if name != "pool":
                pairs = [(ours[measure], theirs[measure]) for ours, theirs in zip(answers["pool"], runs, strict=True)]
                told["times"] = _summary([a / b if higher else b / a for a, b in pairs])
            found[measure][name] = told
    return found


def _table(results: dict[str, Any]) -> str:
    rows = [["", *(pool.title for pool in _POOLS.values())]]
    for measure, (title, _) in _MEASURES.items():
        rows.append([title, *(_cell(results[measure][name]) for name in _POOLS)])
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def _cell(told: dict[str, Any]) -> str:
    text = f"{_number(told['median'])} ({_number(told['min'])} .. {_number(told['max'])})"
    return f"{text}  x {_number(told['times']['median'])}" if "times" in told else text


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


@click.command("bench")
@click.option("-j", "--workers", type=click.IntRange(1, 512), default=2, show_default=True, help="Worker processes.")
@click.option("--quick", is_flag=True, help="Seconds instead of half a minute, and rougher.")
@click.option("--json", "as_json", is_flag=True, help="All runs, as one JSON object.")
def command(workers: int, quick: bool, as_json: bool) -> None:
    """Measure the pool on this machine, beside the standard library's pools.

    Tasks that do nothing: what is measured is what a pool costs. Each pool runs in fresh processes, in turns. Medians,
    in brackets the lowest and the highest run; behind x: how many times as good pool.Pool was.
    """
    seconds, runs = (_QUICK_SECONDS, _QUICK_RUNS) if quick else (_SECONDS, _RUNS)
    load = os.getloadavg()[0]
    answers: dict[str, list[dict[str, float]]] = {name: [] for name in _POOLS}
    names = list(_POOLS)
    for k in range(runs):
        if sys.stderr.isatty():
            say(f"run {k + 1} of {runs}")
        for name in names[k % len(names) :] + names[: k % len(names)]:
            answers[name].append(_measure(name, workers, seconds))
    results = gather(answers)
    cpus = len(os.sched_getaffinity(0))
    python = f"{platform.python_implementation()} {platform.python_version()}"
    if as_json:
        machine = {"cpus": cpus, "kernel": platform.release(), "python": python, "load_average": load}
        click.echo(json.dumps({"machine": machine, "workers": workers, "runs": runs, "results": results}))
        return
    click.echo(f"{workers} workers, {cpus} CPUs, {python}, Linux {platform.release()}, load average {load:.2f}\n")
    click.echo(_table(results))
    click.echo("\nThe comparison with more pools and real work: `make bench` in a checkout of prefork-pool.")


__all__ = ["command", "gather", "measure_here", "noop"]
