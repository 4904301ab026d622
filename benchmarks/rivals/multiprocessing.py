from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from benchmarks.rivals.base import Function, Rival


class MultiprocessingPool(Rival):
    name = "multiprocessing"
    module = "multiprocessing"
    settings = (
        "multiprocessing.Pool, fork; imap_unordered(chunksize=1), map (automatic chunks), apply_async + get, apply"
    )
    first = (
        "import multiprocessing\npool = multiprocessing.get_context('fork').Pool(WORKERS)\n"
        "assert pool.apply(abs, (-1,)) == 1"
    )
    lazy = True

    def start(self, workers: int) -> None:
        import multiprocessing

        self.pool = multiprocessing.get_context("fork").Pool(workers)

    def stop(self) -> None:
        self.pool.close()
        self.pool.join()

    def each(self, fn: Function, items: Iterable[Any], count: int) -> Iterable[Any]:
        return self.pool.imap_unordered(fn, items, chunksize=1)

    def chunked(self, fn: Function, items: Iterable[Any], count: int) -> Iterable[Any]:
        return self.pool.map(fn, items)

    def futures(self, fn: Function, items: Iterable[Any]) -> Iterator[Any]:
        pending = [self.pool.apply_async(fn, (item,)) for item in items]
        return (result.get() for result in pending)

    def call(self, fn: Function, item: Any) -> Any:
        return self.pool.apply(fn, (item,))
