from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from benchmarks.rivals.base import Function, Rival


class Ours(Rival):
    name = "pool"
    module = "pool"
    settings = "Pool(workers); imap_unordered(chunksize=1), imap_unordered(), submit"
    first = "from pool import Pool\npool = Pool(WORKERS)\nassert pool.submit(abs, -1).result() == 1"
    lazy = True

    def start(self, workers: int) -> None:
        from pool import Pool

        self.pool = Pool(workers)

    def stop(self) -> None:
        self.pool.shutdown()

    def each(self, fn: Function, items: Iterable[Any], count: int) -> Iterable[Any]:
        return self.pool.imap_unordered(fn, items, chunksize=1)

    def each_with_deadlines(self, fn: Function, items: Iterable[Any]) -> Iterable[Any]:
        return self.pool.options(timeout=60).imap_unordered(fn, items, chunksize=1)

    def chunked(self, fn: Function, items: Iterable[Any], count: int) -> Iterable[Any]:
        return self.pool.imap_unordered(fn, items)

    def futures(self, fn: Function, items: Iterable[Any]) -> Iterator[Any]:
        submit = self.pool.submit
        futures = [submit(fn, item) for item in items]
        return (future.result() for future in futures)

    def call(self, fn: Function, item: Any) -> Any:
        return self.pool.submit(fn, item).result()

    def parks(self, workers: int) -> int:
        """How often its workers have gone to sleep so far."""
        from ipc import _core

        return sum(_core.slot_info(self.pool._client.segment, slot)["parks"] for slot in range(workers))
