from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import Executor
from typing import Any

from benchmarks.rivals.base import Function, Rival, by_hand, windowed


class ProcessPoolExecutor(Rival):
    name = "executor"
    module = "concurrent.futures"
    settings = (
        "ProcessPoolExecutor, fork; map(chunksize=1), map(chunksize=n / 4 workers), submit; "
        "arrays: submit, at most 3 a worker in flight, for map reads its whole input"
    )
    first = (
        "import multiprocessing\nfrom concurrent.futures import ProcessPoolExecutor\n"
        "pool = ProcessPoolExecutor(WORKERS, multiprocessing.get_context('fork'))\n"
        "assert pool.submit(abs, -1).result() == 1"
    )

    def start(self, workers: int) -> None:
        self.workers = workers
        self.pool = self.make(workers)

    def make(self, workers: int) -> Executor:
        import multiprocessing
        from concurrent import futures

        return futures.ProcessPoolExecutor(workers, multiprocessing.get_context("fork"))

    def stop(self) -> None:
        self.pool.shutdown()

    def each(self, fn: Function, items: Iterable[Any], count: int) -> Iterable[Any]:
        return self.pool.map(fn, items, chunksize=1)

    def chunked(self, fn: Function, items: Iterable[Any], count: int) -> Iterable[Any]:
        return self.pool.map(fn, items, chunksize=by_hand(count, self.workers))

    def arrays(self, fn: Function, items: Iterable[Any], count: int) -> Iterable[Any]:
        return windowed(lambda item: self.pool.submit(fn, item), items, 3 * self.workers)

    def futures(self, fn: Function, items: Iterable[Any]) -> Iterator[Any]:
        submit = self.pool.submit
        futures = [submit(fn, item) for item in items]
        return (future.result() for future in futures)

    def call(self, fn: Function, item: Any) -> Any:
        return self.pool.submit(fn, item).result()
