"""The pool in an event loop: ``Pool.run`` and ``Pool.amap``. No thread is started for it.

::

    worker ── rings the wire ──▶ every loop that awaits something ── turn ──▶ collects for all, delivers its own
    other threads: collect too ── call_soon_threadsafe ──▶ the loop whose outcome it is

Each loop has an *ear* for each client: its own descriptor of the wire, and the count of outcomes it awaits. Everything
of a loop happens in its thread, but for what is said to be under the client's lock.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable
from concurrent.futures._base import FINISHED, PENDING

from pool.client import OPEN, Client
from pool.futures import Future
from pool.mapping import Aside, MapRun, NotYet, run_map
from pool.task import Policy

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from pool.executor import _Calls
    from pool.progress import Progress

_END = object()
_GIVE_WAY_SECONDS = 0.005  # a loop that iterates results which are all there gets its turn so often
_CHECK_SECONDS = 0.1  # as of threads that wait: how long a lost ring or the monitor's death can stay unseen


class Ear:
    """What one event loop hears of one client."""

    def __init__(self, client: Client, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._client = client
        self._expected = 0
        self._arrived: deque[asyncio.Future[None]] = deque()  # to be told
        self._queue: deque[asyncio.Future[None]] = deque()  # wait for room
        self._limit = 0  # futures of the client that may be unfinished, for these
        self._told = False  # a turn is due
        self._turning = False
        self._timer = False
        self._wire: object = None  # the client's end of it; ours is a duplicate, for it may close its own at any time
        self._fd = -1
        self._polls = False

    # ---- under the client's lock, in any thread

    def expect(self) -> None:
        """An outcome is to come."""
        self._expected += 1
        self._client.awaiting.add(self)

    def arrived(self, waiter: asyncio.Future[None] | None) -> None:
        """It has come, or nobody awaits it any more."""
        self._expected -= 1
        if not self._expected:
            self._client.awaiting.discard(self)
        if waiter is not None:
            self._arrived.append(waiter)
            self.tell()

    def tell(self) -> None:
        """Have the loop take a turn."""
        if self._told or self._turning:
            return
        self._told = True
        try:
            self.loop.call_soon_threadsafe(self._turn)
        except RuntimeError:  # it is closed
            self.close()

    # ---- in the loop's thread

    def soon(self) -> None:
        """As `tell`, without waking a loop that is awake."""
        if not self._told:
            self._told = True
            self.loop.call_soon(self._turn)

    def attach(self) -> None:
        """Hear the client's wire of now. Raises OSError if there are too many open files."""
        with self._client.lock:  # under it an open wire stays open
            wire = self._client.wire()
            if wire is self._wire:
                return
            self.close()
            if wire is not None:
                self._fd = os.dup(wire.fileno())
                self._wire = wire

    async def room(self, limit: int) -> None:
        """Return when fewer than so many futures are unfinished, or the pool has ended."""
        client = self._client
        self._limit = limit
        while client.unfinished >= limit and client.state == OPEN:
            waiter = self.loop.create_future()
            self._queue.append(waiter)
            with client.lock:
                self.expect()
                client.curious.add(self)
            try:
                self.soon()
                await waiter
            finally:
                with client.lock:
                    self.arrived(None)

    def _let_in(self) -> None:
        """Those that wait for room, as far as there is room."""
        room = self._limit - self._client.unfinished if self._client.state == OPEN else len(self._queue)
        while self._queue and room > 0:
            waiter = self._queue.popleft()
            if not waiter.done():
                waiter.set_result(None)
                room -= 1
        if not self._queue:
            self._client.curious.discard(self)

    def _turn(self) -> None:
        self._told = False
        self._turning = True  # what this turn collects is told below
        try:
            again = self._client.turn()
        finally:
            self._turning = False
            while self._arrived:
                _set(self._arrived.popleft())
        if self._queue:
            self._let_in()
        if again:
            self.soon()
        if self._expected and not self._timer:
            self._timer = True
            self.loop.call_later(_CHECK_SECONDS, self._check)
        self.attach()
        if self._expected and not self._polls and self._fd >= 0:
            self.loop.add_reader(self._fd, self._heard)
            self._polls = True

    def _heard(self) -> None:
        with contextlib.suppress(BlockingIOError):  # another loop was faster
            os.read(self._fd, 4096)
        if not self._expected:  # it was for another loop: hear no more until there is something to hear
            self.loop.remove_reader(self._fd)
            self._polls = False
        self._turn()

    def _check(self) -> None:
        self._timer = False
        if self._expected:
            self._turn()

    def close(self) -> None:
        """Hear nothing any more. In the loop's thread, or after the loop was closed."""
        fd, self._fd, self._wire = self._fd, -1, None
        if fd >= 0:
            if self._polls and not self.loop.is_closed():
                self.loop.remove_reader(fd)
            self._polls = False
            os.close(fd)

    def __del__(self) -> None:
        if self._fd >= 0:  # the loop is closed, and does not poll any more
            os.close(self._fd)


def _ear(client: Client) -> Ear:
    """The running loop's ear for the client, which has been started."""
    loop = asyncio.get_running_loop()
    ear = client.ears.get(loop)
    if ear is None:
        with client.lock:
            for closed in [other for other in client.ears.values() if other.loop.is_closed()]:
                del client.ears[closed.loop]
                closed.close()
            ear = client.ears.setdefault(loop, Ear(client, loop))
    ear.attach()
    return ear


# ---- one call


class _Awaited(Future):
    """The future of a call that an event loop awaits."""

    _expected = False
    _waiter: asyncio.Future[None] | None = None

    def __init__(self, client: Client, policy: Policy, ear: Ear) -> None:
        super().__init__(client, policy)
        self._ear = ear

    def accepted(self) -> None:
        if self._fate is PENDING:  # else it ran in place, or failed at once
            self._expected = True
            self._ear.expect()

    def _end(self, fate: str = FINISHED) -> None:
        super()._end(fate)
        if self._expected:
            self._ear.arrived(self._waiter)

    async def ended(self) -> None:
        """Return when it is done."""
        # We set the waiter, then look at the fate; `_end` does it the other way round.
        self._waiter = self._ear.loop.create_future()
        if not self.done():
            self._ear.soon()
            await self._waiter

    def stop(self) -> None:
        """Kill it, for good: an attempt that ends just now is not repeated."""
        self.policy = self.policy._replace(retries=0)
        self.kill()


async def run(calls: _Calls, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """See ``Pool.run``."""
    if not callable(fn):
        raise TypeError(f"fn must be callable, not {type(fn).__name__}")
    client = calls._client
    if client.segment is None:
        calls._start()
    ear = _ear(client)
    if calls._buffersize is not None:
        await ear.room(calls._buffersize)
    future = _Awaited(client, calls._policy, ear)
    calls._send(future, fn, args, kwargs)
    try:
        await future.ended()
        return future.result()
    except asyncio.CancelledError:
        future.stop()
        await future.ended()
        raise
    except GeneratorExit:  # nobody goes on with us: the loop was closed
        future.stop()
        raise
    finally:
        del future  # no cycle through the traceback's frame


# ---- maps


class LoopRun(MapRun):
    """A map that an event loop iterates."""

    ear: Ear
    waiter: asyncio.Future[None] | None = None  # under the client's lock: somebody waits for the next outcome
    feed: _Feed | None = None

    def came(self, count: int) -> None:
        super().came(count)
        self.woken(self.waiter)

    def woken(self, waiter: asyncio.Future[None] | None) -> None:
        """Nobody waits any more; ``waiter`` is to be told so. Under the client's lock."""
        if self.waiter is not None:
            self.waiter = None
            self.ear.arrived(waiter)

    def wants(self, unread: int) -> int:
        count = super().wants(unread)
        if self.feed is not None:
            self.feed.wanted = count
        return count


class _Feed:
    """An async iterable as the input of a map. A task reads it, as far as the map wants to give away more."""

    def __init__(self, source: AsyncIterable[Any]) -> None:
        self._source: AsyncIterator[Any] | None = aiter(source)  # later the task has it, and nobody else
        self._items: deque[Any] = deque()
        self._ended = False
        self._left = False  # the map wants no more
        self._error: BaseException | None = None  # which it has raised
        self._task: asyncio.Task[None] | None = None
        self._asked: asyncio.Future[None] | None = None  # the task waits for it
        self.wanted = 0  # items that may be given away now
        self.waiter: asyncio.Future[None] | None = None  # to be told of the next item

    def __iter__(self) -> _Feed:
        return self

    def __next__(self) -> Any:
        if self._items:
            self.wanted -= 1
            return self._items.popleft()
        if self._ended:
            error, self._error = self._error, None
            raise StopIteration if error is None else error
        if self._task is None:
            source, self._source = self._source, None
            self._task = asyncio.get_running_loop().create_task(self._read(source))  # type: ignore[arg-type]
        elif self._asked is not None and not self._asked.done():
            self._asked.set_result(None)
        raise NotYet

    async def _read(self, source: AsyncIterator[Any]) -> None:
        try:
            while True:
                while len(self._items) < self.wanted:
                    self._items.append(await anext(source))
                    self._tell()
                self._asked = asyncio.get_running_loop().create_future()
                await self._asked
        except StopAsyncIteration:
            pass
        except Exception as error:
            self._error = error
        except BaseException as error:  # an input that was cancelled has not come to its end
            if not self._left:
                self._error = error
            raise
        finally:
            del source  # a cancelled task keeps this frame
            self._ended = True
            self._tell()

    def _tell(self) -> None:
        if self.waiter is not None:
            _set(self.waiter)

    async def close(self) -> None:
        """Let go of the input, which is cancelled if it was about to give an item; return when it has seen to that."""
        self._left = True
        if self._task is not None and not self._task.done():
            self._task.cancel()
            await asyncio.wait([self._task])

    def leave(self) -> None:
        """The same without waiting, in any thread."""
        self._left = True
        if self._task is not None and not self._task.done():
            with contextlib.suppress(RuntimeError):  # the loop is closed
                self._task.get_loop().call_soon_threadsafe(self._task.cancel)


class Results:
    """What ``amap`` returns. Not an async generator: what is left behind by ``break`` is taken back at once, and not
    when the loop finds time for it."""

    def __init__(
        self,
        run: LoopRun,
        iterable: Iterable[Any] | AsyncIterable[Any],
        ordered: bool,
        on_error: str,
        progress: bool | Callable[[Progress], object],
    ) -> None:
        self._run = run
        self._feed = run.feed = _Feed(iterable) if isinstance(iterable, AsyncIterable) else None
        self._aside = Aside(tells=self._feed is not None)
        source: Any = iterable if self._feed is None else self._feed
        self._steps = run_map(run, source, ordered, on_error, progress=progress, aside=self._aside)
        self._iterating = False
        self._rested = time.monotonic()

    def __aiter__(self) -> Results:
        return self

    async def __anext__(self) -> Any:
        if self._iterating:
            raise RuntimeError("this iteration is already waited for by another task")
        self._iterating = True
        try:
            if time.monotonic() - self._rested > _GIVE_WAY_SECONDS:  # results may come as fast as they are taken
                await asyncio.sleep(0)
                self._rested = time.monotonic()
            while (result := next(self._steps, _END)) is self._aside:
                await self._rest()
            if result is not _END:
                return result
        except GeneratorExit:  # nobody goes on with us: the loop was closed
            self._steps.close()
            raise
        except BaseException:
            self._steps.close()
            if self._feed is not None:
                await self._feed.close()
            raise
        finally:
            self._iterating = False
        if self._feed is not None:
            await self._feed.close()
        raise StopAsyncIteration

    async def _rest(self) -> None:
        """Return when there may be something to do: an outcome, input, or the time that the map wants to look at."""
        run, client, loop = self._run, self._run.client, asyncio.get_running_loop()
        ear = None if client.segment is None else _ear(client)
        waiter: asyncio.Future[None] = loop.create_future()
        with client.lock:
            if run.ready:  # another thread has collected it
                return
            if run.flying and ear is not None:
                run.ear, run.waiter = ear, waiter
                ear.expect()
                ear.soon()
        if self._feed is not None:
            self._feed.waiter = waiter
        timer = None
        try:
            if self._aside.seconds is not None:
                timer = loop.call_later(self._aside.seconds, _set, waiter)
            await waiter
        finally:
            if timer is not None:
                timer.cancel()
            with client.lock:
                run.woken(None)
        self._rested = time.monotonic()

    async def aclose(self) -> None:
        """Leave the iteration: take back what has not started."""
        if self._iterating:
            raise RuntimeError("this iteration is waited for by another task")
        self._steps.close()
        if self._feed is not None:
            await self._feed.close()

    def __del__(self) -> None:  # the steps see to what was given away
        if self._feed is not None:
            self._feed.leave()


def _set(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


__all__ = ["Ear", "LoopRun", "Results", "run"]
