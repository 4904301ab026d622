from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from benchmarks.rivals.base import Function, Rival


class Mpire(Rival):
    name = "mpire"
    package = "mpire"
    module = "mpire"
    settings = (
        "WorkerPool, fork, keep_alive; imap_unordered(chunk_size=1), imap_unordered (automatic), apply_async, apply"
    )
    first = (
        "from mpire import WorkerPool\npool = WorkerPool(n_jobs=WORKERS, start_method='fork', keep_alive=True)\n"
        "assert pool.apply(abs, (-1,)) == 1"
    )
    lazy = True

    def start(self, workers: int) -> None:
        from mpire import WorkerPool  # type: ignore[attr-defined]

        self.pool = WorkerPool(n_jobs=workers, start_method="fork", keep_alive=True)

    def stop(self) -> None:
        self.pool.terminate()

    def each(self, fn: Function, items: Iterable[Any], count: int) -> Iterable[Any]:
        return self.pool.imap_unordered(fn, items, iterable_len=count, chunk_size=1)

    def chunked(self, fn: Function, items: Iterable[Any], count: int) -> Iterable[Any]:
        return self.pool.imap_unordered(fn, items, iterable_len=count)

    def futures(self, fn: Function, items: Iterable[Any]) -> Iterator[Any]:
        pending = [self.pool.apply_async(fn, (item,)) for item in items]
        return (result.get() for result in pending)

    def call(self, fn: Function, item: Any) -> Any:
        return self.pool.apply(fn, (item,))
