"""What an event loop hears of a client: it polls on a descriptor, where a thread that waits sleeps on the bell.

::

    worker ── rings the wire ──▶ every loop that awaits something ── turn ──▶ collects for all, delivers its own
    other threads: collect too ── call_soon_threadsafe ──▶ the loop whose outcome it is

Each loop has an *ear* for each client: its own descriptor of the wire, and the count of outcomes it awaits. Everything
of a loop happens in its thread, but for what is said to be under the client's lock. When to listen, and who collects,
is decided in pool/waiting.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import time
from collections import deque

from pool.client import OPEN, Client

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
        self._turning = 0  # in this thread, which sees to what it finds itself
        self._timer = False
        self._due: float | None = None  # when a task is due that waits for its time, and the timer for it
        self._alarm: asyncio.TimerHandle | None = None
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
        if self._told or self._turning == threading.get_ident():
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
                if self._queue:  # we may leave our room to others: cancelled, or with a call that cannot be encoded
                    self.soon()

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
        self._told = False  # first: who has news from here on has us take another turn
        if self._expected and not self._timer:
            self._timer = True
            self.loop.call_later(_CHECK_SECONDS, self._check)
        self._turning = threading.get_ident()
        try:
            again = self._client.turn()
        finally:
            # Who appends from another thread looks at _turning afterwards; we do it the other way round.
            self._turning = 0
            while self._arrived:
                tell_waiter(self._arrived.popleft())
        if self._queue:
            self._let_in()
        if self._client.delayed.waiting or self._due is not None:
            self._set_alarm()
        if again:
            self.soon()
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

    def _set_alarm(self) -> None:
        with self._client.lock:
            due = self._client.next_due()
        if due == self._due:
            return
        if self._alarm is not None:
            self._alarm.cancel()
        self._due, self._alarm = due, None
        if due is not None:
            self._alarm = self.loop.call_later(max(0.0, due - time.monotonic()), self._alarmed)

    def _alarmed(self) -> None:
        self._due = self._alarm = None
        if self._expected:
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


def ear_of(client: Client) -> Ear:
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


def tell_waiter(waiter: asyncio.Future[None]) -> None:
    """In its loop's thread: it need not wait any more."""
    if not waiter.done():
        waiter.set_result(None)


__all__ = ["Ear", "ear_of", "tell_waiter"]
