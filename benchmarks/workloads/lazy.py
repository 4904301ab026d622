from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from benchmarks import tasks
from benchmarks.processes import Meter, forget_peak, memory
from benchmarks.rivals import RIVALS, Rival
from benchmarks.sizes import Sizes
from benchmarks.workloads.base import Workload, started

_LAZY = {"peak_mib": "peak growth MiB", "mib": "growth MiB", "rate": "tasks/s"}


class Lazy(Workload):
    name = "lazy"
    title = "Inputs from a generator, results dropped at once: growth of the client's memory"
    metrics = _LAZY
    higher = False

    def cases(self, sizes: Sizes) -> list[str]:
        return ["unordered", "ordered, item 0 slow"]

    def rivals(self, sizes: Sizes) -> list[str]:
        """Those that read all of it before they begin are not asked: millions of futures, 2 GiB."""
        if sizes.name == "quick":
            return ["pool"]
        return [name for name, rival in RIVALS.items() if rival.lazy]

    def measure(self, rival: Rival, case: str, sizes: Sizes) -> dict[str, float]:
        n = sizes.lazy_inputs
        with started(rival, sizes.workers):
            rival.map_noop(min(n, 20_000), None)
            forget_peak()
            before = memory("VmRSS")
            with Meter() as meter:
                total = sum(_lazily(rival, case, (k for k in range(n)), n))
            if total != n * (n - 1) // 2:
                raise AssertionError("results are missing")
            peak, after = memory("VmHWM"), memory("VmRSS")
            return {**meter.per_task(n), "peak_mib": (peak - before) / 2**20, "mib": (after - before) / 2**20}


def _lazily(rival: Rival, case: str, items: Iterator[int], n: int) -> Iterable[Any]:
    """Where a pool's lazy call is another one than its fast one."""
    ordered = case != "unordered"
    fn = tasks.slow_first if ordered else tasks.noop
    if rival.name == "pool":
        return rival.pool.imap(fn, items) if ordered else rival.pool.imap_unordered(fn, items)  # type: ignore[attr-defined,no-any-return]
    if rival.name == "multiprocessing":
        give = rival.pool.imap if ordered else rival.pool.imap_unordered  # type: ignore[attr-defined]
        return give(fn, items, chunksize=64)  # type: ignore[no-any-return]
    if rival.name == "mpire" and ordered:
        return rival.pool.imap(fn, items, iterable_len=n)  # type: ignore[attr-defined,no-any-return]
    if rival.name == "joblib":
        from joblib import Parallel, delayed  # type: ignore[import-untyped]

        kind = "generator" if ordered else "generator_unordered"
        return Parallel(n_jobs=2, batch_size="auto", return_as=kind)(delayed(fn)(k) for k in items)  # type: ignore[no-any-return]
    return rival.chunked(fn, items, n)
