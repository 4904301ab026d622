"""``Pool``: what people touch. How calls are made is in pool/calls.py, everything behind them in pool/client.py."""

from __future__ import annotations

import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from types import TracebackType

from pool.calls import Calls
from pool.checks import backoff_of, check_buffersize, count, positive, size
from pool.client import CLOSED, DRAINING, OPEN, Client, all_clients
from pool.cpus import available_cpus
from pool.output import output
from pool.retry import Backoff
from pool.task import Policy
from pool.worker_options import WorkerOptions

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from pool.insights import Insights
    from pool.share import Shared


_MOST_WORKERS = 512
_START_METHODS = ("fork", "forkserver", "spawn")


class Pool(Calls):
    """A prefork pool of worker processes; a ``concurrent.futures.Executor``.

    Args:
        max_workers: number of workers. Default: the CPUs this process may really use (affinity, cgroup quota). 0: run
            everything here, in this process and thread (for debuggers and profilers); nobody enforces timeouts and
            memory limits then.
        mp_context: how workers come to be: ``multiprocessing.get_context("fork")``, ``"forkserver"`` or ``"spawn"``.
            Default: fork, whatever ``multiprocessing`` is told. See docs/start-methods.md.
        initializer: called as ``initializer(*initargs)`` in each worker before its first task. If it keeps failing:
            ``PoolStartError``. teardown: called without arguments in each worker that leaves, at the pool's end or to
            be replaced; not after a crash or a kill. If it raises, or takes more than teardown_timeout seconds (default
            5; then it is killed), that is shown on stderr and nothing else happens. max_tasks_per_child: a worker is
            replaced after so many tasks. Default: never. recycle_changed: a worker whose task has left its process
            changed (working directory, umask, signals, limits, environment, threads: see docs/workers.md) is replaced
            before the next one. Default: it goes on as it is. timeout, retries, backoff, memory_limit, capture_output:
            as in ``options()``, for everything that does not say otherwise. buffersize: let ``submit`` wait while so
            many futures are unfinished. Default: it never blocks. memory_reserve: bytes, as a number or as ``"2G"``:
            while less than that is available, no further task begins until those that run have ended; and what has
            failed for want of memory, and has ``retries`` left, runs alone then. Default: none. See docs/limits.md.
            cpu_affinity: pin worker k to the k-th CPU of this process. nice: added to the workers' niceness.
            threads_per_worker: threads of BLAS and OpenMP in each worker, default 1. name: shown in process titles.

    Workers start at first use, so that functions and imports made after ``Pool()`` are there; ``start()`` starts them
    at once. ``with`` waits for everything at its end, but kills the workers on KeyboardInterrupt and SystemExit."""

    def __init__(
        self, max_workers: int | None = None, mp_context: Any = None, initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (), *, max_tasks_per_child: int | None = None, timeout: float | None = None,
            retries: int = 0, backoff: float | Backoff | None = None, memory_limit: int | str | None = None,
            capture_output: bool = False, teardown: Callable[[], object] | None = None, teardown_timeout: float = 5.0,
            buffersize: int | None = None, memory_reserve: int | str | None = None, recycle_changed: bool = False,
            cpu_affinity: bool = False, nice: int | None = None, threads_per_worker: int = 1, name: str = "pool",
    ) -> None:  # fmt: skip
        workers = available_cpus() if max_workers is None else max_workers
        if workers < 0:
            raise ValueError("max_workers must be greater than 0")
        if workers > _MOST_WORKERS:
            raise ValueError(f"max_workers must be <= {_MOST_WORKERS}")
        if initializer is not None and not callable(initializer):
            raise TypeError("initializer must be a callable")
        if teardown is not None and not callable(teardown):
            raise TypeError("teardown must be a callable")
        if not isinstance(teardown_timeout, int | float):
            raise TypeError("teardown_timeout must be a number of seconds")
        positive("teardown_timeout", teardown_timeout)
        if max_tasks_per_child is not None:
            if not isinstance(max_tasks_per_child, int):
                raise TypeError("max_tasks_per_child must be an integer")
            if max_tasks_per_child <= 0:
                raise ValueError("max_tasks_per_child must be >= 1")
        check_buffersize(buffersize)
        self._max_workers = workers
        self._set_policy(
            Policy(
                positive("timeout", timeout),
                count("retries", retries),
                size("memory_limit", memory_limit),
                bool(capture_output),
                backoff_of(backoff),
            )
        )
        self._buffersize = buffersize
        worker_options = WorkerOptions(
            name, initializer, tuple(initargs), max_tasks_per_child, threads_per_worker, nice, cpu_affinity,
            _start_method(mp_context), teardown, teardown_timeout, bool(recycle_changed),
        )  # fmt: skip
        self._client = _client_for(workers, worker_options)
        self._client.reserve = size("memory_reserve", memory_reserve)
        self._finalizer = weakref.finalize(self, _abandoned, self._client)
        self._finalizer.atexit = False  # _at_exit does it, before daemon threads stop

    def start(self) -> Pool:
        """Start the workers now instead of at first use. Returns the pool."""
        self._start()
        return self

    def _keep(self, iterator: Iterator[Any]) -> Iterator[Any]:
        return _keep_alive(self, iterator)

    @property
    def crashes(self) -> int:
        """Tasks whose worker died while it ran them, since the start; with those that were then run again."""
        return self._client.crashes

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take nothing more; what was accepted finishes. ``wait``: return when it has and the workers are gone; else
        that happens behind the scenes, at the latest at interpreter exit. ``cancel_futures``: what has not started is
        cancelled. Idempotent."""
        client = self._client
        with client.lock:
            if client.state == OPEN:
                client.state = DRAINING
            waiting = client.pending_futures() if cancel_futures else []
        for future in waiting:
            future.cancel()
        if wait:
            client.wait_for(client.idle_or_closed)
            client.stop()
            client.join_collector()
        else:
            client.look_after()

    def restart(self, wait: bool = True) -> None:
        """Replace all workers by fresh ones, while the pool goes on: each finishes what it runs, leaves (``teardown``),
        and is replaced before the next one leaves, so all but one are always there. ``wait``: return when all that were
        there at the call are replaced and the new ones are ready.

        For data that workers have read in their ``initializer``, which runs again, or memory that has grown. Of this
        program they have again what it was at the pool's start, not what it is now. Before the start it does nothing.
        Raises PoolClosed after shutdown; if the pool ends meanwhile, what has ended it."""
        self._client.restart(wait)

    def terminate_workers(self) -> None:
        """Kill all workers with the processes they started; everything unfinished ends as PoolBroken. The pool cannot
        be used afterwards."""
        self._client.stop(kill=True)

    kill_workers = terminate_workers
    """The same: a worker has nothing to tidy up that the monitor does not."""

    def insights(self) -> Insights:
        """What the workers have done with their time, what each function has cost, which items were the slowest, and
        where the memory is: now, or at the end of a pool that was shut down. ``print()`` shows it as tables,
        ``plot(path)`` as a picture. See ``pool.insights.Insights``."""
        from pool import insights

        client = self._client
        with client.lock:
            client.pump()  # what is done counts
            seen = insights.look(client)
        client.announce()
        return insights.describe(seen)

    @staticmethod
    def share(obj: Any) -> Shared:
        """A handle on one read-only copy of ``obj`` in shared memory: for models, tables, images that many tasks need.

        Pass the handle in arguments, or inside of the function (``functools.partial``); tasks get the object itself,
        rebuilt once in each worker, with its arrays looking into the shared pages. Raises what pickling raised,
        MemoryError if there is too little memory, OSError if there is too little disk for what memory cannot hold."""
        from pool.share import Shared

        return Shared(obj)

    output = staticmethod(output)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None and issubclass(kind, KeyboardInterrupt | SystemExit):
            self.kill_workers()
            return
        try:
            self.shutdown(wait=True)
        except KeyboardInterrupt:
            self.kill_workers()
            raise

    def __reduce__(self) -> Any:
        raise TypeError("a Pool cannot be pickled: make one in the process that needs it")


def _start_method(context: Any) -> str:
    if context is None:
        return "fork"
    if not hasattr(context, "get_start_method"):
        hint = f": multiprocessing.get_context({context!r})" if isinstance(context, str) else ""
        raise TypeError(f"mp_context must be a context of multiprocessing, not {type(context).__name__}{hint}")
    method: str = context.get_start_method()
    if method not in _START_METHODS:
        raise ValueError(f"start method {method!r} is not supported, only {', '.join(map(repr, _START_METHODS))}")
    return method


def _client_for(workers: int, options: WorkerOptions) -> Client:
    if workers == 0:
        from pool.inline import InlineClient

        return InlineClient(options)
    return Client(workers, options)


def _keep_alive(owner: object, iterator: Iterator[Any]) -> Iterator[Any]:
    """An iteration keeps its pool: else it would be abandoned while somebody reads its results."""
    yield from iterator
    del owner


def _abandoned(client: Client) -> None:
    """The pool was collected without shutdown: what is pending finishes, then everything ends. May run inside any
    code: takes no lock."""
    if client.state == OPEN:
        client.state = DRAINING
    client.abandoned()


def _at_exit() -> None:
    """Interpreter exit: pending work finishes, then the workers leave. After a Ctrl-C that nobody caught, at once."""
    interrupted = issubclass(getattr(sys, "last_type", None) or Exception, KeyboardInterrupt)
    for client in all_clients():
        if client.state != CLOSED and client.owned():
            client.state = DRAINING
            try:
                if not interrupted:
                    client.wait_for(client.idle_or_closed)
            finally:
                client.stop(kill=not client.idle_or_closed())
                client.join_collector(1.0)


threading._register_atexit(_at_exit)  # type: ignore[attr-defined]

__all__ = ["Pool"]
