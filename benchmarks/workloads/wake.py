"""Whom the pool wakes, and when: ours only.

A wake costs more than a short task, so waking too readily costs throughput and CPU; waking too late lets a ready task
wait beside an idle worker. Both are measured.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Any

from benchmarks import tasks
from benchmarks.processes import Meter
from benchmarks.rivals import Rival
from benchmarks.rivals.ours import Ours
from benchmarks.sizes import Sizes
from benchmarks.stats import paced, percentile
from benchmarks.workloads.base import THROUGHPUT, Workload, started, take_all

_LONG_MS = 12.0
_WAKE = {**THROUGHPUT, "parks": "parks/1000"}


class Wake(Workload):
    name = "wake"
    title = "Wake policy: throughput, CPU and parks with more workers than cores"
    metrics = _WAKE

    def cases(self, sizes: Sizes) -> list[str]:
        return [f"{kind}, {n} workers" for kind in ("no-op", "20 µs") for n in (1, 2, 8, 64)]

    def rivals(self, sizes: Sizes) -> list[str]:
        return [Ours.name]

    def measure(self, rival: Rival, case: str, sizes: Sizes) -> dict[str, float]:
        assert isinstance(rival, Ours)
        kind, rest = case.split(", ")
        workers = int(rest.split()[0])
        fn: Callable[[Any], Any] = tasks.noop if kind == "no-op" else tasks.busy
        item = 0 if kind == "no-op" else int(20 * sizes.loops_per_us)

        def run(n: int) -> None:
            take_all(rival.each(fn, [item] * n, n), n)

        with started(rival, workers):
            n = paced(run, sizes.seconds)
            before = rival.parks(workers)
            with Meter() as meter:
                run(n)
            return {**meter.per_task(n), "parks": 1000 * (rival.parks(workers) - before) / n}


_LATE = {"worst_ms": "worst ms", "p99_ms": "p99 ms", "p50_ms": "p50 ms"}


class Late(Workload):
    name = "late"
    title = f"Late starts: how long a ready task waits beside an idle worker, {_LONG_MS:g} ms tasks among short ones"
    metrics = _LATE
    higher = False

    def cases(self, sizes: Sizes) -> list[str]:
        return [f"{kind}, {n} workers" for kind in ("futures", "imap", "beside") for n in (2, 8)]

    def rivals(self, sizes: Sizes) -> list[str]:
        return [Ours.name]

    def measure(self, rival: Rival, case: str, sizes: Sizes) -> dict[str, float]:
        assert isinstance(rival, Ours)
        kind, rest = case.split(", ")
        scenario = {"futures": _futures, "imap": _imap, "beside": _beside}[kind]
        chance = random.Random(20)
        waits: list[float] = []
        with started(rival, int(rest.split()[0])):
            rival.map_noop(1000, 1)
            for _ in range(sizes.late_rounds):
                time.sleep(chance.choice((0.0, 0.0003, 0.002, 0.03)))
                waits += scenario(rival, chance.randrange(20), chance.randrange(1, 4))
        return {"worst_ms": max(waits), "p99_ms": percentile(waits, 99), "p50_ms": percentile(waits, 50)}


def _futures(rival: Ours, before: int, behind: int) -> list[float]:
    """Short ones, a long one, short ones, as futures: the wait of the long one and of those behind it."""
    submitted, futures = [], []
    for k in range(before + 1 + behind):
        submitted.append(time.monotonic_ns())
        futures.append(rival.pool.submit(tasks.begin, _LONG_MS if k == before else 0))
    began = [future.result() for future in futures]
    return [(b - s) / 1e6 for b, s in zip(began[before:], submitted[before:], strict=True)]


def _imap(rival: Ours, before: int, behind: int) -> list[float]:
    """The same through imap."""
    items = [0.0] * before + [_LONG_MS] + [0.0] * behind
    now = time.monotonic_ns()
    began = list(rival.pool.imap(tasks.begin, items, chunksize=1))
    return [(b - now) / 1e6 for b in began[before:]]


def _beside(rival: Ours, before: int, behind: int) -> list[float]:
    """A long one runs, and short ones come one by one while the other workers sleep."""
    long = rival.pool.submit(tasks.begin, _LONG_MS)
    waits = []
    for _ in range(behind):
        time.sleep(0.002)
        now = time.monotonic_ns()
        waits.append((rival.pool.submit(tasks.begin, 0).result() - now) / 1e6)
    long.result()
    return waits
