"""``Pool`` with the interface of ``multiprocessing.Pool``::

    from pool.compat.multiprocessing import Pool

The methods, their arguments, the texts of errors and the order of events are those of ``multiprocessing``. What is
different, for the better:

- a worker that dies costs one item: its result raises ``pool.errors.WorkerCrashed``, where ``multiprocessing`` waits
  for ever. An initializer that fails again and again ends in ``PoolStartError``;
- lambdas, closures and functions of ``__main__`` that were made after the pool may be used;
- an error costs its item and not its chunk: ``imap`` goes on behind it;
- tasks may use pools and start processes; what they start ends with their worker;
- what is unfinished at ``terminate()`` ends with ``PoolBroken``; a result of ``multiprocessing`` is then never ready.

And what is only different: workers are forked, in every version of Python, unless ``context`` or
``multiprocessing.set_start_method`` says otherwise; they are not registered with ``multiprocessing`` (no name, no
``active_children``); ``maxtasksperchild`` counts items, not chunks; the default for ``processes`` is what this process
may really use.
"""

from __future__ import annotations

import os
import threading
import types
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from multiprocessing import TimeoutError, get_context, get_start_method
from multiprocessing.pool import (  # type: ignore[attr-defined]  # of the errors typeshed knows nothing
    CLOSE,
    INIT,
    RUN,
    TERMINATE,
    MaybeEncodingError,
    RemoteTraceback,
)

from pool.codec import RemoteTraceback as OurTraceback
from pool.compat.batch import CALL_ONE, CALL_STAR, Batch
from pool.cpus import available_cpus
from pool.executor import Pool as Executor
from pool.map_run import Failure

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from pool.futures import Future
    from pool.launch import Running

_AHEAD = 1024  # chunks of an imap's input that are read before their results are there


class Pool:
    """See ``multiprocessing.Pool``. ``with`` ends it with ``terminate()``.

    Args:
        processes: number of workers, which are started at once. Default: the CPUs this process may really use.
        initializer, initargs: called in each worker when it starts. maxtasksperchild: a worker is replaced after so
            many items. context: a context of multiprocessing. Default: what ``set_start_method`` was told, else
            fork."""

    def __init__(
        self,
        processes: int | None = None,
        initializer: Callable[..., object] | None = None,
        initargs: Iterable[Any] = (),
        maxtasksperchild: int | None = None,
        context: Any = None,
    ) -> None:
        self._state = INIT
        if processes is None:
            processes = available_cpus()
        if processes < 1:
            raise ValueError("Number of processes must be at least 1")
        if maxtasksperchild is not None and (not isinstance(maxtasksperchild, int) or maxtasksperchild <= 0):
            raise ValueError("maxtasksperchild must be a positive int or None")
        if context is None and get_start_method(allow_none=True) is not None:
            context = get_context()
        self._processes = processes
        self._executor = Executor(
            processes, context, initializer, tuple(initargs), max_tasks_per_child=maxtasksperchild
        ).start()
        self._feeders: set[threading.Thread] = set()
        self._feeding = threading.Lock()
        self._state = RUN
        _pools.add(self)

    # ---- calls

    def apply(self, func: Callable[..., Any], args: Iterable[Any] = (), kwds: Mapping[str, Any] | None = None) -> Any:
        """``func(*args, **kwds)`` on a worker."""
        return self.apply_async(func, args, kwds).get()

    def apply_async(
        self,
        func: Callable[..., Any],
        args: Iterable[Any] = (),
        kwds: Mapping[str, Any] | None = None,
        callback: Callable[[Any], object] | None = None,
        error_callback: Callable[[BaseException], object] | None = None,
    ) -> ApplyResult:
        """As ``apply``, at once. ``callback(value)`` or ``error_callback(error)`` is called in a thread of the pool
        before the result is ready."""
        self._check_running()
        return ApplyResult(self._executor.submit(func, *args, **(kwds or {})), callback, error_callback)

    def map(self, func: Callable[[Any], Any], iterable: Iterable[Any], chunksize: int | None = None) -> list[Any]:
        """The list of ``func(item)`` for each item. All items run; then the first error in their order is raised.
        ``chunksize`` items at a time are given to a worker; default: each worker gets four chunks."""
        values: list[Any] = self._map_async(func, CALL_ONE, iterable, chunksize).get()
        return values

    def starmap(
        self, func: Callable[..., Any], iterable: Iterable[Iterable[Any]], chunksize: int | None = None
    ) -> list[Any]:
        """As ``map``, with ``func(*item)``."""
        values: list[Any] = self._map_async(func, CALL_STAR, iterable, chunksize).get()
        return values

    def map_async(
        self,
        func: Callable[[Any], Any],
        iterable: Iterable[Any],
        chunksize: int | None = None,
        callback: Callable[[list[Any]], object] | None = None,
        error_callback: Callable[[BaseException], object] | None = None,
    ) -> MapResult:
        """As ``map``, at once; the callbacks as in ``apply_async``."""
        return self._map_async(func, CALL_ONE, iterable, chunksize, callback, error_callback)

    def starmap_async(
        self,
        func: Callable[..., Any],
        iterable: Iterable[Iterable[Any]],
        chunksize: int | None = None,
        callback: Callable[[list[Any]], object] | None = None,
        error_callback: Callable[[BaseException], object] | None = None,
    ) -> MapResult:
        """As ``starmap``, at once; the callbacks as in ``apply_async``."""
        return self._map_async(func, CALL_STAR, iterable, chunksize, callback, error_callback)

    def _map_async(
        self,
        func: Callable[..., Any],
        call: int,
        iterable: Iterable[Any],
        chunksize: int | None,
        callback: Callable[[list[Any]], object] | None = None,
        error_callback: Callable[[BaseException], object] | None = None,
    ) -> MapResult:
        self._check_running()
        items = iterable if isinstance(iterable, Sized) else list(iterable)
        if chunksize is None:
            chunksize = max(1, -(-len(items) // (4 * self._processes)))
        result = MapResult(self._executor, func, call, _checked(chunksize), callback, error_callback)
        result.batch.give(items)
        return result

    def imap(self, func: Callable[[Any], Any], iterable: Iterable[Any], chunksize: int = 1) -> IMapIterator:
        """An iterator over ``func(item)``, in order. The input is read by a thread, at the pace of the workers, whether
        anybody takes the results or not; ``pool.Pool.imap`` reads only as far ahead as it has to."""
        return self._imap(IMapIterator, func, iterable, chunksize)

    def imap_unordered(self, func: Callable[[Any], Any], iterable: Iterable[Any], chunksize: int = 1) -> IMapIterator:
        """As ``imap``, results as they come."""
        return self._imap(IMapUnorderedIterator, func, iterable, chunksize)

    def _imap(
        self, kind: type[IMapIterator], func: Callable[[Any], Any], iterable: Iterable[Any], chunksize: int
    ) -> IMapIterator:
        self._check_running()
        batch = Batch(self._executor, func, CALL_ONE, _checked(chunksize))
        feeder = threading.Thread(target=self._feed, args=(batch, iterable), name="pool-feeder", daemon=True)
        with self._feeding:
            self._feeders.add(feeder)
        feeder.start()
        return kind(batch)

    def _feed(self, batch: Batch, iterable: Iterable[Any]) -> None:
        batch.give(iterable, _AHEAD * batch.chunksize)
        with self._feeding:
            self._feeders.discard(threading.current_thread())
        self._drain_if_closed()

    # ---- the end

    def _check_running(self) -> None:
        if self._state != RUN:
            raise ValueError("Pool not running")

    def close(self) -> None:
        """Take nothing more. Workers leave when everything is done."""
        if self._state == RUN:
            self._state = CLOSE
            self._drain_if_closed()

    def _drain_if_closed(self) -> None:
        with self._feeding:
            if self._state != CLOSE or self._feeders:
                return
        self._executor.shutdown(wait=False)

    def terminate(self) -> None:
        """Kill the workers, with all processes that they started. What is unfinished ends as PoolBroken."""
        self._state = TERMINATE
        self._executor.kill_workers()

    def join(self) -> None:
        """Wait for the end of everything that was accepted, and of the workers; ``close`` or ``terminate`` first."""
        if self._state == RUN:
            raise ValueError("Pool is still running")
        for feeder in list(self._feeders):
            feeder.join()
        self._executor.shutdown(wait=True)

    def __enter__(self) -> Pool:
        self._check_running()
        return self

    def __exit__(self, *_: object) -> None:
        self.terminate()

    def __reduce__(self) -> Any:
        raise NotImplementedError("pool objects cannot be passed between processes or pickled")

    def __del__(self) -> None:
        if self._state == RUN and self._executor._client.owned():
            warnings.warn(f"unclosed running multiprocessing pool {self!r}", ResourceWarning, source=self, stacklevel=2)

    def __repr__(self) -> str:
        return f"<{type(self).__module__}.{type(self).__qualname__} state={self._state} pool_size={self._processes}>"

    # ---- what code that looks behind the curtain of multiprocessing relies on

    @property
    def _pool(self) -> list[Worker]:
        running = self._executor._client._running
        return [] if running is None else [Worker(running, slot) for slot in range(self._processes)]


class Worker:
    """The worker in one slot, as far as others ask; when it is replaced this is its successor."""

    def __init__(self, running: Running, slot: int) -> None:
        self._running = running
        self._slot = slot

    @property
    def pid(self) -> int:
        """Its process id; 0 while it is being started."""
        return self._running.worker_pids()[self._slot]

    def is_alive(self) -> bool:
        pid = self.pid
        try:
            if pid > 0:
                os.kill(pid, 0)
        except ProcessLookupError:
            return False
        return pid > 0


class _Result:
    """What ``apply_async`` and ``map_async`` return. With a callback it is ready when that has run."""

    _outcome: tuple[bool, Any] | None = None

    def __init__(
        self, callback: Callable[[Any], object] | None, error_callback: Callable[[BaseException], object] | None
    ) -> None:
        self._callbacks = {True: callback, False: error_callback}
        self._called = threading.Event() if callback or error_callback else None
        self._reading = threading.Lock()

    def _done(self) -> bool:
        raise NotImplementedError

    def _wait(self, timeout: float | None) -> None:
        raise NotImplementedError

    def _read(self) -> tuple[bool, Any]:
        raise NotImplementedError

    def _call(self, _: object = None) -> None:
        """Run the callback; in the collector thread."""
        assert self._called is not None
        try:
            success, value = self._value()
            callback = self._callbacks[success]
            if callback is not None:
                callback(value)
        finally:
            self._callbacks.clear()
            self._called.set()

    def _value(self) -> tuple[bool, Any]:
        """(success, value or error); read once."""
        with self._reading:
            if self._outcome is None:
                self._outcome = self._read()
            return self._outcome

    def ready(self) -> bool:
        """Whether there is a value or an error."""
        return self._done() if self._called is None else self._called.is_set()

    def successful(self) -> bool:
        """Whether there is a value. Raises ValueError if it is not ready."""
        if not self.ready():
            raise ValueError(f"{self!r} not ready")
        return self._value()[0]

    def wait(self, timeout: float | None = None) -> None:
        """Wait until it is ready, or for ``timeout`` seconds."""
        if self._called is not None:
            self._called.wait(timeout)
        else:
            self._wait(timeout)

    def get(self, timeout: float | None = None) -> Any:
        """The value. Raises the error, or ``multiprocessing.TimeoutError`` after ``timeout`` seconds."""
        self.wait(timeout)
        if not self.ready():
            raise TimeoutError
        success, value = self._value()
        if success:
            return value
        raise value

    __class_getitem__ = classmethod(types.GenericAlias)  # type: ignore[var-annotated]


class ApplyResult(_Result):
    """See ``multiprocessing.pool.AsyncResult``."""

    def __init__(
        self,
        future: Future,
        callback: Callable[[Any], object] | None,
        error_callback: Callable[[BaseException], object] | None,
    ) -> None:
        super().__init__(callback, error_callback)
        self._future = future
        self._done = future.done  # type: ignore[method-assign]
        if self._called is not None:
            future.add_done_callback(self._call)

    def _wait(self, timeout: float | None) -> None:
        self._future._client.wait_for(self._future.done, timeout)

    def _read(self) -> tuple[bool, Any]:
        error = self._future.exception()
        return (True, self._future.result()) if error is None else (False, _translated(error))


AsyncResult = ApplyResult


class MapResult(_Result):
    """What ``map_async`` returns; see ``multiprocessing.pool.AsyncResult``."""

    def __init__(
        self,
        executor: Executor,
        func: Callable[..., Any],
        call: int,
        chunksize: int,
        callback: Callable[[list[Any]], object] | None,
        error_callback: Callable[[BaseException], object] | None,
    ) -> None:
        super().__init__(callback, error_callback)
        self.batch = Batch(executor, func, call, chunksize, None if self._called is None else self._call)

    def _done(self) -> bool:
        return self.batch.complete

    def _wait(self, timeout: float | None) -> None:
        self.batch.wait(timeout)

    def _read(self) -> tuple[bool, Any]:
        values = self.batch.values()
        return (False, _translated(values.error)) if isinstance(values, Failure) else (True, values)


class IMapIterator:
    """What ``imap`` returns. An error is raised in its item's place, and the iteration can go on behind it."""

    _ordered = True

    def __init__(self, batch: Batch) -> None:
        self._batch = batch

    def __iter__(self) -> Iterator[Any]:
        return self

    def next(self, timeout: float | None = None) -> Any:
        """The next value. Raises ``multiprocessing.TimeoutError`` if it is not there after ``timeout`` seconds."""
        outcome = self._batch.next_outcome(self._ordered, timeout)
        if outcome is None:
            raise TimeoutError
        success, value = outcome
        if success:
            return value
        raise _translated(value)

    __next__ = next


class IMapUnorderedIterator(IMapIterator):
    """What ``imap_unordered`` returns."""

    _ordered = False


def _checked(chunksize: int) -> int:
    if chunksize < 1:
        raise ValueError(f"Chunksize must be 1+, not {chunksize}")
    return chunksize


def _translated(error: BaseException) -> BaseException:
    """The error as multiprocessing would have made it: its own classes for what has no meaning without it."""
    from pool.errors import ResultNotPicklable

    if isinstance(error, ResultNotPicklable):
        wrong: Exception = MaybeEncodingError(error.reason, error.type_name)
        return wrong
    if type(error.__cause__) is OurTraceback:
        error.__cause__ = RemoteTraceback(str(error.__cause__))
    return error


# ---- the end of the interpreter: multiprocessing kills its workers then, whatever they do

_pools: weakref.WeakSet[Pool] = weakref.WeakSet()


def _at_exit() -> None:
    for pool in list(_pools):
        if pool._state != TERMINATE and pool._executor._client.owned():
            pool.terminate()


threading._register_atexit(_at_exit)  # type: ignore[attr-defined]  # before the executor's, which waits for the work

__all__ = ["AsyncResult", "MaybeEncodingError", "Pool", "TimeoutError"]
