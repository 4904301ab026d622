from __future__ import annotations

import os
import subprocess
import sys
import time

from benchmarks.processes import Meter
from benchmarks.rivals import Rival
from benchmarks.sizes import Sizes
from benchmarks.stats import paced, percentile
from benchmarks.workloads.base import Workload, started

_ROUND_TRIP = {"p50_us": "p50 µs", "p99_us": "p99 µs", "cpu_us": "CPU µs/task", "switches": "switches/1000"}


class RoundTrip(Workload):
    name = "round_trip"
    title = "One task in flight: submit, wait, read"
    metrics = _ROUND_TRIP
    higher = False

    def measure(self, rival: Rival, case: str, sizes: Sizes) -> dict[str, float]:
        with started(rival, sizes.workers):
            n = paced(rival.round_trip, sizes.seconds, least=20, most=20_000)
            with Meter() as meter:
                took = rival.round_trip(n)
            return {**meter.per_task(n), "p50_us": percentile(took, 50), "p99_us": percentile(took, 99)}


_START_UP = {"ms": "ms", "import_ms": "import ms"}


class StartUp(Workload):
    name = "start_up"
    title = "Import, start, first result"
    metrics = _START_UP
    higher = False

    def measure(self, rival: Rival, case: str, sizes: Sizes) -> dict[str, float]:
        """Programs of their own: what this process has imported would come for free."""
        first = rival.first.replace("WORKERS", str(sizes.workers))
        end = "\nt = (clock() - t0) / 1e6\nprint(t, flush=True)\n"
        begin = "from time import perf_counter_ns as clock\nt0 = clock()\n"
        _run(f"{begin}import {rival.module}{end}")  # so that the files are in memory, and compiled
        return {"ms": _run(begin + first + end), "import_ms": _run(f"{begin}import {rival.module}{end}")}


def _run(program: str) -> float:
    # As packages that pip has installed: compiled, whatever this process was told about writing what it compiles.
    env = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, env=env)
    if not done.stdout:
        raise RuntimeError(done.stderr.strip().splitlines()[-1])
    return float(done.stdout.split()[0])


_IDLE = {
    "cpu_percent": "CPU % of all its processes",
    "wakes": "wake-ups/s, all",
    "most_wakes": "wake-ups/s, the busiest process",
    "processes": "processes",
}


class Idle(Workload):
    name = "idle"
    title = "A pool that has worked and has nothing to do"
    metrics = _IDLE
    higher = False
    together = True

    def measure(self, rival: Rival, case: str, sizes: Sizes) -> dict[str, float]:
        with started(rival, sizes.workers):
            rival.map_noop(200, 1)
            rival.call(abs, -1)
            time.sleep(sizes.idle_seconds / 4)
            with Meter() as meter:
                time.sleep(sizes.idle_seconds)
            spent = meter.spent.values()
            return {
                "cpu_percent": sum(u.cpu_ns for u in spent) / meter.seconds / 1e7,
                "wakes": sum(u.waits for u in spent) / meter.seconds,
                "most_wakes": max(u.waits for u in spent) / meter.seconds,
                "processes": len(spent),
                "foreign": meter.foreign,
            }
