"""``Pool.run`` and ``Pool.amap``: the pool in an event loop. No thread is started for it; see pool/ears.py."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable
from concurrent.futures._base import FINISHED, PENDING

from pool.client import Client
from pool.ears import Ear, ear_of, tell_waiter
from pool.futures import Future
from pool.mapping import Aside, MapRun, NotYet, run_map
from pool.task import Policy

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from pool.calls import Calls
    from pool.progress import Progress

_END = object()
_GIVE_WAY_SECONDS = 0.005  # a loop that iterates results which are all there gets its turn so often


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
        self.dropped = True
        self.kill()


async def run(calls: Calls, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """See ``Pool.run``."""
    if not callable(fn):
        raise TypeError(f"fn must be callable, not {type(fn).__name__}")
    client = calls._client
    if client.segment is None:
        calls._start()
    ear = ear_of(client)
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

    def rests(self, count: int) -> None:
        super().rests(count)
        if count > 0:
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
        self.news = False  # there is something since the map has asked in vain
        self.waiter: asyncio.Future[None] | None = None  # to be told of that

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
            del source  # NotYet keeps this frame
        elif self._asked is not None and not self._asked.done():
            self._asked.set_result(None)
        self.news = False
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
        self.news = True
        if self.waiter is not None:
            tell_waiter(self.waiter)

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

    _feed: _Feed | None = None

    def __init__(
        self,
        run: LoopRun,
        iterable: Iterable[Any] | AsyncIterable[Any],
        ordered: bool,
        on_error: str,
        progress: bool | Callable[[Progress], object],
    ) -> None:
        self._run = run
        if isinstance(iterable, AsyncIterable):
            self._feed = run.feed = _Feed(iterable)
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
        ear = None if client.segment is None else ear_of(client)
        waiter: asyncio.Future[None] = loop.create_future()
        with client.lock:
            if run.has_news(self._aside.resting):  # another thread has collected it
                return
            if run.flying and ear is not None:
                run.ear, run.waiter = ear, waiter
                ear.expect()
                ear.soon()
        if self._feed is not None:
            self._feed.waiter = waiter
            if self._feed.news:  # it came while the caller had our last result
                tell_waiter(waiter)
                self._feed.news = False  # if the map does not want it now, it asks when an outcome makes room
        timer = None
        try:
            if self._aside.seconds is not None:
                timer = loop.call_later(self._aside.seconds, tell_waiter, waiter)
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


__all__ = ["LoopRun", "Results", "run"]
