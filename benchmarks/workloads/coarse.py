from __future__ import annotations

import os
import time
from pathlib import Path

from benchmarks import tasks
from benchmarks.processes import Meter
from benchmarks.rivals import RIVALS, Rival
from benchmarks.sizes import Sizes
from benchmarks.workloads.base import Workload, started, take_all

_BUSY = {"efficiency": "of two forks", "cpu_us": "CPU µs/task", "switches": "switches/1000"}


class Busy(Workload):
    name = "busy"
    title = "Busy loops, one by one: efficiency against two bare forks that do their halves without any communication"
    metrics = _BUSY

    def cases(self, sizes: Sizes) -> list[str]:
        return ["0.1 ms", "1 ms", "10 ms"]

    def rivals(self, sizes: Sizes) -> list[str]:
        return ["pool", "multiprocessing"] if sizes.name == "quick" else [n for n, r in RIVALS.items() if not r.heavy]

    def measure(self, rival: Rival, case: str, sizes: Sizes) -> dict[str, float]:
        milliseconds = float(case.split()[0])
        loops = int(sizes.loops_per_us * milliseconds * 1000)
        n = max(sizes.workers * 4, int(sizes.workers * sizes.seconds * 1000 / milliseconds))
        n -= n % sizes.workers
        with started(rival, sizes.workers):
            take_all(rival.each(tasks.noop, range(50), 50), 50)
            before = _forks(sizes.workers, loops, n)
            with Meter() as meter:
                take_all(rival.each(tasks.busy, [loops] * n, n), n)
            after = _forks(sizes.workers, loops, n)  # before and after, for the machine's speed drifts
            return {**meter.per_task(n), "efficiency": (before + after) / 2 / meter.seconds}


def _forks(workers: int, loops: int, n: int) -> float:
    """Seconds that bare forks take for so many busy loops."""
    start = time.perf_counter()
    pids = []
    for _ in range(workers):
        pid = os.fork()
        if pid == 0:
            os.setsid()  # beside other load Linux shares the cores out by session, and our workers have one each
            for _ in range(n // workers):
                tasks.busy(loops)
            os._exit(0)
        pids.append(pid)
    for pid in pids:
        os.waitpid(pid, 0)
    return time.perf_counter() - start


_THUMBNAILS = {"seconds": "s"}


class Thumbnails(Workload):
    name = "thumbnails"
    title = "JPEG thumbnails of photographs, one by one, import and start of the pool included"
    metrics = _THUMBNAILS
    higher = False

    def measure(self, rival: Rival, case: str, sizes: Sizes) -> dict[str, float]:
        from PIL import Image

        Image.init()  # as a program that makes thumbnails has it imported before it makes its pool
        photos = sorted(map(str, Path(sizes.photos_folder).glob("*.jpg")))
        if not photos:
            raise RuntimeError("no photographs: they need Pillow and scikit-image")
        paths = [photos[k % len(photos)] for k in range(sizes.photos)]
        start = time.perf_counter()
        rival.start(sizes.workers)
        take_all((size for size in rival.each(tasks.thumbnail, paths, len(paths)) if size > 0), len(paths))
        seconds = time.perf_counter() - start
        rival.stop()
        return {"seconds": seconds}
