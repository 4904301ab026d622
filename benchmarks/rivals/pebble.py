from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from benchmarks.rivals.base import Function, Rival, by_hand, windowed


class Pebble(Rival):
    name = "pebble"
    package = "pebble"
    module = "pebble"
    settings = (
        "ProcessPool, fork; map(chunksize=1), map(chunksize=n / 4 workers), schedule; "
        "arrays: schedule, at most 3 a worker in flight, for map reads its whole input"
    )
    first = (
        "import multiprocessing\nfrom pebble import ProcessPool\n"
        "pool = ProcessPool(max_workers=WORKERS, context=multiprocessing.get_context('fork'))\n"
        "assert pool.schedule(abs, args=[-1]).result() == 1"
    )

    def start(self, workers: int) -> None:
        import multiprocessing

        from pebble import ProcessPool

        self.workers = workers
        self.pool = ProcessPool(max_workers=workers, context=multiprocessing.get_context("fork"))

    def stop(self) -> None:
        self.pool.close()  # type: ignore[no-untyped-call]
        self.pool.join()

    def each(self, fn: Function, items: Iterable[Any], count: int) -> Iterable[Any]:
        return self.pool.map(fn, items, chunksize=1).result()

    def chunked(self, fn: Function, items: Iterable[Any], count: int) -> Iterable[Any]:
        return self.pool.map(fn, items, chunksize=by_hand(count, self.workers)).result()

    def arrays(self, fn: Function, items: Iterable[Any], count: int) -> Iterable[Any]:
        return windowed(lambda item: self.pool.schedule(fn, args=[item]), items, 3 * self.workers)

    def futures(self, fn: Function, items: Iterable[Any]) -> Iterator[Any]:
        futures = [self.pool.schedule(fn, args=[item]) for item in items]
        return (future.result() for future in futures)

    def call(self, fn: Function, item: Any) -> Any:
        return self.pool.schedule(fn, args=[item]).result()
