"""dask.distributed on one machine.

As its documentation advises for work that holds the GIL: processes with one thread each; ``as_completed`` with results
for what comes in any order; ``pure=False``, or equal calls would be made once; partitions (a bag) where tasks are too
small to go one by one, four a worker here. The dashboard is off, for it costs and nobody looks.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from benchmarks.rivals.base import Function, Rival, windowed


class Dask(Rival):
    name = "dask"
    package = "distributed"
    module = "distributed"
    settings = (
        "LocalCluster, a process a worker, one thread each, no dashboard; map(pure=False) + as_completed, bag with 4 "
        "partitions a worker, submit; arrays: at most 3 a worker in flight"
    )
    first = (
        "from distributed import Client\n"
        "client = Client(n_workers=WORKERS, threads_per_worker=1, dashboard_address=None)\n"
        "assert client.submit(abs, -1).result() == 1"
    )
    heavy = True
    quick = False

    def start(self, workers: int) -> None:
        from distributed import Client

        self.workers = workers
        self.client = Client(n_workers=workers, threads_per_worker=1, dashboard_address=None)

    def stop(self) -> None:
        self.client.shutdown()

    def each(self, fn: Function, items: Iterable[Any], count: int) -> Iterable[Any]:
        from distributed import as_completed

        futures = self.client.map(fn, list(items), pure=False)
        return (result for _, result in as_completed(futures, with_results=True))

    def chunked(self, fn: Function, items: Iterable[Any], count: int) -> Iterable[Any]:
        from dask import bag

        return bag.from_sequence(items, npartitions=4 * self.workers).map(fn).compute()  # type: ignore[no-any-return]

    def arrays(self, fn: Function, items: Iterable[Any], count: int) -> Iterable[Any]:
        return windowed(lambda item: self.client.submit(fn, item, pure=False), items, 3 * self.workers)

    def futures(self, fn: Function, items: Iterable[Any]) -> Iterator[Any]:
        futures = [self.client.submit(fn, item, pure=False) for item in items]
        return (future.result() for future in futures)

    def call(self, fn: Function, item: Any) -> Any:
        return self.client.submit(fn, item, pure=False).result()
