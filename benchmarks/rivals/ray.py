"""ray on one machine.

As its documentation advises: ``ray.remote`` for tasks, made once for each function; its own ``multiprocessing.Pool``,
which keeps actors and makes chunks, for maps; ``ray.get`` of what is ready. A CPU a worker, no dashboard, no log of the
workers in the terminal. Arrays travel through its object store, not more than 3 a worker at a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from benchmarks.rivals.base import Function, Rival, windowed


class Ray(Rival):
    name = "ray"
    package = "ray"
    module = "ray"
    settings = (
        "ray.init(num_cpus=workers), no dashboard; ray.util.multiprocessing.Pool: imap_unordered(chunksize=1), map "
        "(automatic chunks); remote + get; arrays: remote, at most 3 a worker in flight"
    )
    first = (
        "import ray\nray.init(num_cpus=WORKERS, include_dashboard=False, log_to_driver=False)\n"
        "assert ray.get(ray.remote(lambda x: abs(x)).remote(-1)) == 1"
    )
    heavy = True
    quick = False

    def start(self, workers: int) -> None:
        import ray

        self.workers = workers
        self.ray = ray
        self.remote: dict[Function, Any] = {}
        self.maps: Any = None
        ray.init(num_cpus=workers, include_dashboard=False, log_to_driver=False)

    def stop(self) -> None:
        self.ray.shutdown()

    def each(self, fn: Function, items: Iterable[Any], count: int) -> Iterable[Any]:
        return self._pool().imap_unordered(fn, items, chunksize=1)  # type: ignore[no-any-return]

    def chunked(self, fn: Function, items: Iterable[Any], count: int) -> Iterable[Any]:
        return self._pool().map(fn, items)  # type: ignore[no-any-return]

    def _pool(self) -> Any:
        """Its actors hold the CPUs, so tasks would wait for ever beside them: made by who maps only."""
        if self.maps is None:
            from ray.util.multiprocessing import Pool

            self.maps = Pool(self.workers)
        return self.maps

    def _task(self, fn: Function) -> Any:
        if self.maps is not None:  # tasks need the CPUs that its actors hold
            self.maps.terminate()
            self.maps = None
        if fn not in self.remote:
            # Functions of C have no module that ray could look into.
            self.remote[fn] = self.ray.remote(fn if hasattr(fn, "__code__") else lambda item: fn(item))
        return self.remote[fn]

    def arrays(self, fn: Function, items: Iterable[Any], count: int) -> Iterable[Any]:
        task, ray = self._task(fn), self.ray

        class Reference:
            def __init__(self, item: Any) -> None:
                self.reference = task.remote(item)

            def result(self) -> Any:
                return ray.get(self.reference)

        return windowed(Reference, items, 3 * self.workers)

    def futures(self, fn: Function, items: Iterable[Any]) -> Iterator[Any]:
        task = self._task(fn)
        references = [task.remote(item) for item in items]
        return (self.ray.get(reference) for reference in references)

    def call(self, fn: Function, item: Any) -> Any:
        return self.ray.get(self._task(fn).remote(item))
