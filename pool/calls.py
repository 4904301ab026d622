"""The ways to call functions on workers, with a policy: what ``Pool`` and the views of ``options()`` share."""

from __future__ import annotations

import itertools
import time
import weakref
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Callable, Coroutine, Iterable, Iterator
from concurrent.futures import Executor
from types import BuiltinFunctionType, FunctionType

from pool import codec
from pool.checks import backoff_of, check_buffersize, check_map_options, count, positive, size
from pool.client import OPEN, Client
from pool.futures import Future
from pool.mapping import MapRun, give_batch, run_map
from pool.retry import FIRST, Backoff
from pool.task import Policy, Task

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Literal, TypedDict, Unpack

    from pool.functions import Function
    from pool.progress import Progress

    class MapOptions(TypedDict, total=False):
        """Options of ``imap`` and its forms; see there."""

        buffersize: int | None
        chunksize: int | Literal["auto"]
        on_error: Literal["raise", "return", "skip"]
        progress: bool | Callable[[Progress], object]


_now = time.monotonic_ns
_new = tuple.__new__  # a third of the price of Task(...)
_NAMED = (FunctionType, BuiltinFunctionType)  # hashable, and perhaps known by name
_ROOM_SECONDS = 10.0  # how long a map waits for room for its function


class _Unset:
    """The default of an option that may itself be None."""


_UNSET = _Unset()


class Calls(Executor):
    """The ways to call functions on workers, with a policy: shared by ``Pool`` and by what ``options()`` returns."""

    _client: Client
    _policy: Policy
    _timeout_ms: int  # the policy's, at hand for each submit; so is the next one
    _flags: int
    _buffersize: int | None

    def _set_policy(self, policy: Policy) -> None:
        self._policy, self._timeout_ms, self._flags = policy, policy.timeout_ms, policy.flags

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future:
        """Run ``fn(*args, **kwargs)`` on a worker; returns its Future at once.

        The arguments are encoded before it returns; if that fails, the error is the future's. It blocks only if the
        pool was made with ``buffersize=`` and that many are unfinished. Raises PoolClosed after shutdown, PoolBroken
        if the pool has ended."""
        if not callable(fn):
            raise TypeError(f"fn must be callable, not {type(fn).__name__}")
        client = self._client
        if self._buffersize is not None:
            limit = self._buffersize
            client.wait_for(lambda: client.unfinished < limit or client.state != OPEN)
        future = Future(client, self._policy)
        self._send(future, fn, args, kwargs)
        return future

    def _send(self, future: Future, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Publish the call, or have it wait for a row; the future gets its outcome."""
        client = self._client
        if client.segment is None:
            self._start()
        began = _now()
        try:  # not under the lock: pickling runs code of the caller
            if codec.handles.used:
                (function, data, flags), future.handles = codec.handles.of(_encode_call, client, fn, args, kwargs)
            else:
                function, data, flags = _encode_call(client, fn, args, kwargs)
        except Exception as error:
            future.fail_early(error)
            return
        if type(data) is tuple or len(data) > client.large:
            data, flags = client.prepared(data, flags, self._policy)
        if self._flags:
            flags |= self._flags
        now = _now()
        future.encode_ns = now - began
        with client.lock:
            if client.state != OPEN or client.error is not None:
                client.check_open()
            self._track(future)
            client.unfinished += 1
            client.offer(
                _new(Task, (future, 0, function, data, flags, self._timeout_ms, (args, kwargs), 0, FIRST, now))
            )
            future.accepted()

    def _start(self) -> None:
        """Make sure that there are workers."""
        with self._client.lock:
            self._client.check_open()
            self._client.start()

    def run(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Coroutine[Any, Any, Any]:
        """``await pool.run(fn, *args, **kwargs)`` in an event loop: the value of the call on a worker.

        Raises what ``Future.result()`` raises. If the awaiting task is cancelled, the call is stopped with all
        processes it has started, as by ``Future.kill()``; CancelledError comes when that is done. A second cancellation
        does not wait. No thread is involved. With ``buffersize=`` it waits, without blocking the loop, while that many
        are unfinished."""
        from pool.aio import run

        return run(self, fn, args, kwargs)

    def _track(self, future: Future) -> None:
        """Overridden where somebody waits for exactly what went through here."""

    def map(
        self,
        fn: Callable[..., Any],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
        buffersize: int | None = None,
    ) -> Iterator[Any]:
        """As ``Executor.map`` of Python 3.14: everything is submitted before this returns (with ``buffersize`` only
        that many, the rest as results are taken); results in order; ``timeout`` is how long the caller waits from the
        call on. A chunk's items still fail one by one."""
        if chunksize < 1:
            raise ValueError("chunksize must be >= 1.")
        check_buffersize(buffersize)
        end = None if timeout is None else time.monotonic() + timeout
        calls = zip(*iterables, strict=False)
        if chunksize > 1:
            return self._keep(self._chunked_map(fn, calls, end, chunksize, buffersize))
        futures = deque(
            self.submit(fn, *call) for call in (calls if buffersize is None else itertools.islice(calls, buffersize))
        )
        return self._results(fn, futures, iter(()) if buffersize is None else calls, end)

    def _results(
        self, fn: Callable[..., Any], futures: deque[Future], calls: Iterator[Any], end: float | None
    ) -> Iterator[Any]:
        try:
            while futures:
                for call in itertools.islice(calls, 1):
                    futures.append(self.submit(fn, *call))
                yield _take(futures, end)
        finally:
            for future in futures:
                future.cancel()

    def _chunked_map(
        self, fn: Callable[..., Any], calls: Iterator[Any], end: float | None, chunksize: int, buffersize: int | None
    ) -> Iterator[Any]:
        run = self._run(fn, codec.CALL_STAR, chunksize, None if buffersize is None else buffersize * chunksize)
        if buffersize is not None:
            return run_map(run, calls, True, "raise", end=end)
        run.eager = True
        client = self._client
        ended = False
        while not ended:
            ended = give_batch(run, calls, run.chunksize)
            with client.lock:
                client.submitted()
        return run_map(run, (), True, "raise", end)

    def imap(self, fn: Callable[..., Any], iterable: Iterable[Any], **options: Unpack[MapOptions]) -> Iterator[Any]:
        """Results of ``fn(item)`` in order, lazily: the input is read only as far ahead as keeps the workers busy.

        Options:
            buffersize: at most so many items given out and not yet taken (default: about 10 ms of work).
            chunksize: items handed over at a time; ``"auto"`` (default) measures. An error, a crash or a timeout is
                charged to its item alone. on_error: ``"raise"`` (default) stops at the first failure, ``"return"``
                yields a ``Failure`` in its place, ``"skip"`` drops it.
            progress: True shows how far it is while it is iterated: ``pool.progress.display()``. A callable gets a
                ``Progress`` instead, at most 50 ms apart, as far as the next result is asked for and the input does not
                block, and once at the end, also of an iteration that is abandoned or raises (then ``ended`` is true).
                What it raises stops the map. Default: False.

        A stopped or abandoned iteration takes back what has not started; what runs finishes and is dropped; the pool
        stays usable."""
        return self._imap(fn, iterable, codec.CALL_ONE, True, **options)

    def imap_unordered(
        self, fn: Callable[..., Any], iterable: Iterable[Any], **options: Unpack[MapOptions]
    ) -> Iterator[Any]:
        """As ``imap``, results as they finish."""
        return self._imap(fn, iterable, codec.CALL_ONE, False, **options)

    def istarmap(
        self, fn: Callable[..., Any], iterable: Iterable[Iterable[Any]], **options: Unpack[MapOptions]
    ) -> Iterator[Any]:
        """As ``imap`` with ``fn(*item)``."""
        return self._imap(fn, iterable, codec.CALL_STAR, True, **options)

    def istarmap_unordered(
        self, fn: Callable[..., Any], iterable: Iterable[Iterable[Any]], **options: Any
    ) -> Iterator[Any]:
        """As ``imap_unordered`` with ``fn(*item)``."""
        return self._imap(fn, iterable, codec.CALL_STAR, False, **options)

    def starmap(
        self, fn: Callable[..., Any], iterable: Iterable[Iterable[Any]], **options: Unpack[MapOptions]
    ) -> list[Any]:
        """The list of ``fn(*item)`` for each item, in order. Options as for ``imap``."""
        return list(self._imap(fn, iterable, codec.CALL_STAR, True, **options))

    def _imap(
        self, fn: Callable[..., Any], iterable: Iterable[Any], call: int, ordered: bool, *, buffersize: int | None =
            None, chunksize: int | str = "auto", on_error: str = "raise",
            progress: bool | Callable[[Progress], object] = False, numbered: bool = False,
    ) -> Iterator[Any]:  # fmt: skip
        """``numbered``: with the position of its item, as (position, result)."""
        run = self._run(fn, call, check_map_options(chunksize, on_error, buffersize, progress), buffersize)
        run.owner = self
        run.numbered = numbered
        results = run_map(run, iterable, ordered, on_error, progress=progress)
        return ((run.index, result) for result in results) if numbered else results

    def amap(
        self, fn: Callable[..., Any], iterable: Iterable[Any] | AsyncIterable[Any], **options: Unpack[MapOptions]
    ) -> AsyncIterator[Any]:
        """``async for result in pool.amap(fn, iterable)``: ``imap`` for an event loop, which goes on meanwhile. The
        input may be an async iterable. Options as for ``imap``.

        Leaving the loop takes back what has not started: by ``aclose()``, by being cancelled while it waits, or when
        nobody holds the iterator any more, as after ``break``. What runs finishes and is dropped. No thread is
        involved."""
        return self._amap(fn, iterable, True, **options)

    def amap_unordered(
        self, fn: Callable[..., Any], iterable: Iterable[Any] | AsyncIterable[Any], **options: Unpack[MapOptions]
    ) -> AsyncIterator[Any]:
        """As ``amap``, results as they finish."""
        return self._amap(fn, iterable, False, **options)

    def _amap(
        self, fn: Callable[..., Any], iterable: Any, ordered: bool, *, buffersize: int | None = None,
            chunksize: int | str = "auto", on_error: str = "raise",
            progress: bool | Callable[[Progress], object] = False,
    ) -> AsyncIterator[Any]:  # fmt: skip
        from pool.aio import LoopRun, Results

        size = check_map_options(chunksize, on_error, buffersize, progress)
        function = self._function(fn, 0.0)
        run = LoopRun(self._client, function, codec.CALL_ONE, self._policy, size, buffersize)
        run.owner = self
        return Results(run, iterable, ordered, on_error, progress)

    def _run(self, fn: Callable[..., Any], call: int, chunksize: int | None, buffersize: int | None) -> MapRun:
        return MapRun(self._client, self._function(fn), call, self._policy, chunksize, buffersize)

    def _function(self, fn: Callable[..., Any], patience: float = _ROOM_SECONDS) -> Function:
        """Start the workers if they are not there, and store the function for many tasks. Raises what pickling
        raised, MemoryError if there is no room for it within so many seconds."""
        if not callable(fn):
            raise TypeError(f"fn must be callable, not {type(fn).__name__}")
        client = self._client
        self._start()
        function = client.function(fn, once=True)
        end = time.monotonic() + patience
        while function.id == 0 and not client.idle_or_closed() and time.monotonic() < end:
            client.wait_for(lambda: False, 0.01)  # results are in the way until they are collected
            function = client.function(fn, once=True)
        if function.id == 0:
            raise MemoryError(f"no room in the payload segment to store {function.name}")
        return function

    def _keep(self, iterator: Iterator[Any]) -> Iterator[Any]:
        return iterator

    def options(
        self,
        *,
        timeout: float | _Unset | None = _UNSET,
        retries: int | _Unset = _UNSET,
        backoff: float | Backoff | _Unset | None = _UNSET,
        memory_limit: int | str | _Unset | None = _UNSET,
        capture_output: bool | _Unset = _UNSET,
    ) -> Options:
        """A view on the same workers with another policy; what is not given stays as it is here.

        timeout: seconds that one attempt may run, then it is stopped with all processes it started (``TaskTimeout``);
            None: no limit. retries: further attempts after a crash, a timeout, too much memory or an exception of the
            task (but not after ``Abort`` or ``Future.kill()``, nor after the third crash). backoff: how long a failed
            task waits before its next attempt: a ``Backoff``, or seconds, which is short for ``Backoff(seconds)``:
            twice as long each time, at most a minute, of that a random part. None or 0: not at all. See
            docs/retries.md. memory_limit: bytes, as a number or as ``"200M"``,
            ``"1.5GiB"`` (binary units), that one attempt may add to the memory of its worker, with the processes it
            starts; beyond that it is stopped as at a timeout (``MemoryLimitExceeded``). Shared memory, files and what
            the worker had before do not count. None: no limit. See docs/limits.md. capture_output: what a task writes
            to stdout and stderr, also through ``logging`` and from programs that it starts, does not appear there but
            in ``Future.account.output``, in that of a ``Failure``, and as a note in the exception of a failed task; the
            last 64 KiB of it. See docs/accounts.md."""
        policy = self._policy
        if not isinstance(timeout, _Unset):
            policy = policy._replace(timeout=positive("timeout", timeout))
        if not isinstance(retries, _Unset):
            policy = policy._replace(retries=count("retries", retries))
        if not isinstance(backoff, _Unset):
            policy = policy._replace(backoff=backoff_of(backoff))
        if not isinstance(memory_limit, _Unset):
            policy = policy._replace(memory_limit=size("memory_limit", memory_limit))
        if not isinstance(capture_output, _Unset):
            policy = policy._replace(capture_output=bool(capture_output))
        return Options(self, policy)


class Options(Calls):
    """A policy on a pool's workers; see ``Pool.options``. Its ``shutdown`` and ``with`` wait for what went through it
    and never stop the pool."""

    def __init__(self, parent: Calls, policy: Policy) -> None:
        self._parent = parent  # keeps the pool
        self._client = parent._client
        self._set_policy(policy)
        self._buffersize = parent._buffersize
        self._max_workers = getattr(parent, "_max_workers", 0)
        self._futures: weakref.WeakSet[Future] = weakref.WeakSet()
        self._closed = False

    def _check_open(self) -> None:
        if self._closed:
            from pool.errors import PoolClosed

            raise PoolClosed

    def _track(self, future: Future) -> None:
        self._check_open()
        self._futures.add(future)

    def _function(self, fn: Callable[..., Any], patience: float = _ROOM_SECONDS) -> Function:
        self._check_open()
        return super()._function(fn, patience)

    def _keep(self, iterator: Iterator[Any]) -> Iterator[Any]:
        return _keep_alive(self, iterator)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take nothing more through this view; wait for what went through it."""
        self._closed = True
        futures = list(self._futures)
        if cancel_futures:
            for future in futures:
                future.cancel()
        if wait:
            for future in futures:
                self._client.wait_for(future.done)


def _encode_call(
    client: Client, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Function, Any, int]:
    """The function's key, the arguments, and how to call it with them. Raises what pickling raised."""
    function = client.functions.by_reference(fn) if type(fn) in _NAMED else None
    if function is None:
        function = client.function(fn, once=False)
    if not function.id:
        return function, codec.encode_args((fn, args, kwargs), client.inherited), codec.CALL_SELF << 8
    if kwargs:
        return function, codec.encode_args((args, kwargs), client.inherited), codec.CALL_ARGS << 8
    if len(args) == 1:
        return function, codec.encode_args(args[0], client.inherited), codec.CALL_ONE << 8
    return function, codec.encode_args(args, client.inherited), codec.CALL_STAR << 8


def _take(futures: deque[Future], end: float | None) -> Any:
    """The first future's value; the future is dropped before the value is yielded, so that nothing keeps it."""
    value = futures[0].result() if end is None else futures[0].result(end - time.monotonic())
    futures.popleft()
    return value


# ---- the end without shutdown


def _keep_alive(owner: object, iterator: Iterator[Any]) -> Iterator[Any]:
    """An iteration keeps its pool: else it would be abandoned while somebody reads its results."""
    yield from iterator
    del owner


__all__ = ["Calls", "Options"]
