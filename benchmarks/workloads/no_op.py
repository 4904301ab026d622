from __future__ import annotations

import contextlib
from collections.abc import Iterator
from statistics import median
from types import MappingProxyType
from unittest import mock

from benchmarks import tasks
from benchmarks.processes import Meter
from benchmarks.rivals import OURS, Rival
from benchmarks.rivals.ours import Ours
from benchmarks.sizes import Sizes
from benchmarks.stats import paced
from benchmarks.workloads.base import THROUGHPUT, Workload, started, take_all


class NoOp(Workload):
    name = "noop"
    title = "No-op tasks, handed over one by one, results collected"
    metrics = THROUGHPUT
    chunksize: int | None = 1
    patience = 1.0  # times as long as others: for pools that need a while to find their chunk size

    def measure(self, rival: Rival, case: str, sizes: Sizes) -> dict[str, float]:
        return self.measure_with(rival, sizes.workers, sizes)

    def measure_with(self, rival: Rival, workers: int, sizes: Sizes) -> dict[str, float]:
        with started(rival, workers):
            n = paced(lambda n: rival.map_noop(n, self.chunksize), sizes.seconds * self.patience)
            with Meter() as meter:
                rival.map_noop(n, self.chunksize)
            return meter.per_task(n)


class Chunks(NoOp):
    name = "chunks"
    title = "No-op tasks with automatic chunks"
    chunksize = None
    patience = 3.0


class Futures(Workload):
    name = "futures"
    title = "No-op tasks as futures: 5,000 (quick: 1,000) submitted, then all read, again and again"
    metrics = THROUGHPUT
    batches = MappingProxyType({"full": 5_000, "quick": 1_000, "tiny": 100})

    def measure(self, rival: Rival, case: str, sizes: Sizes) -> dict[str, float]:
        with started(rival, sizes.workers):
            batch = self.batches[sizes.name]
            rounds = paced(lambda n: _rounds(rival, n, batch), sizes.seconds, least=1, most=1000)
            with Meter() as meter:
                _rounds(rival, rounds, batch)
            return meter.per_task(rounds * batch)


def _rounds(rival: Rival, rounds: int, batch: int) -> None:
    for _ in range(rounds):
        rival.submit_noop(batch)


class Scale(NoOp):
    name = "scale"
    title = "No-op tasks one by one with more workers than cores"

    def cases(self, sizes: Sizes) -> list[str]:
        return ["2 workers", "8 workers", "64 workers"]

    def rivals(self, sizes: Sizes) -> list[str]:
        return ["pool", "multiprocessing"]

    def measure(self, rival: Rival, case: str, sizes: Sizes) -> dict[str, float]:
        return self.measure_with(rival, int(case.split()[0]), sizes)


class Deadlines(Workload):
    """In turns in one pool, and by CPU time, not by the clock: so other work on the machine falls on both alike."""

    name = "deadlines"
    title = "What deadlines cost: no-op tasks one by one, with a timeout by without (accounts are always on)"
    metrics = MappingProxyType({"by_without": "CPU, with by without", "cpu_us": "CPU µs/task", "plain_us": "without"})
    higher = False

    def rivals(self, sizes: Sizes) -> list[str]:
        return [Ours.name]

    def measure(self, rival: Rival, case: str, sizes: Sizes) -> dict[str, float]:
        assert isinstance(rival, Ours)
        with started(rival, sizes.workers):
            n = paced(lambda n: rival.map_noop(n, 1), sizes.seconds / 10)
            cpu: dict[bool, list[float]] = {False: [], True: []}
            for turn in range(60):
                for deadlines in (False, True) if turn % 2 else (True, False):
                    cpu[deadlines].append(_cpu_us(rival, deadlines, n))
            ratios = [b / a for a, b in zip(cpu[False], cpu[True], strict=True)]
        return {"by_without": median(ratios), "cpu_us": median(cpu[True]), "plain_us": median(cpu[False])}


def _cpu_us(rival: Ours, deadlines: bool, n: int) -> float:
    with Meter() as meter:
        each = rival.each_with_deadlines(tasks.noop, range(n)) if deadlines else rival.each(tasks.noop, range(n), n)
        take_all(each, n)
    return meter.per_task(n)["cpu_us"]


class Scaling(NoOp):
    name = "scaling"
    title = (
        "No-op tasks one by one: 1 to 64 workers, and with 2 workers 64 to 4,096 rows (rows are no option of a pool)"
    )

    def cases(self, sizes: Sizes) -> list[str]:
        if sizes.name == "quick":
            return []
        return [f"{1 << k} workers" for k in range(7)] + [f"{1 << k} rows" for k in range(6, 13)]

    def rivals(self, sizes: Sizes) -> list[str]:
        return [OURS]

    def measure(self, rival: Rival, case: str, sizes: Sizes) -> dict[str, float]:
        number, what = case.split()
        if what == "workers":
            return self.measure_with(rival, int(number), sizes)
        with _rows(int(number)):
            return self.measure_with(rival, sizes.workers, sizes)


@contextlib.contextmanager
def _rows(rows: int) -> Iterator[None]:
    """Pools that are made meanwhile have so many."""
    with mock.patch("ipc.segment.default_rows", return_value=rows):
        yield
