"""Leader and followers: whoever waits collects for everybody.

One thread at a time leads: it sleeps on the client's bell, and hands out all outcomes, not only its own. Others that
wait follow, each on a lock of its own; a leader that has what it wanted passes the lead to one of them. Nobody waits
in our code, but futures are pending (callbacks, asyncio, ``concurrent.futures.wait``): then a collector thread leads.
It stays away while user threads lead or submit, because a switch between threads costs more than a task; and it runs
all callbacks, so that they never run inside somebody's ``submit``.

Event loops (pool/ears.py) cannot sleep on the bell. While no thread leads and a loop awaits something, the client
*listens*: it has said that it sleeps, and who has news rings the wire, on which all these loops poll. The one that
hears it takes a ``turn``: it collects for everybody and listens again. A thread that wants to wait ends that and leads;
when it leaves, and nobody follows, it has the loops listen again.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable

from ipc import _core

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Protocol

    from pool.ears import Ear
    from pool.futures import Future

    class Callback(Protocol):
        """What the collector thread is to call: a Future, or another sink."""

        def call(self) -> None: ...


_SPIN_US = 20
_CHECK_SECONDS = 0.1  # with work in flight: how long a lost hint or the monitor's death can stay unseen
_TAKEOVER_SECONDS = 0.005  # nobody led or submitted for so long: the collector takes over
_LINGER_SECONDS = 1.0  # a collector without work stays for the next burst


class _Follower:
    __slots__ = ("_lock", "done")

    def __init__(self, done: Callable[[], object]) -> None:
        self.done = done
        self._lock = threading.Lock()
        self._lock.acquire()

    def wake(self) -> None:
        """Idempotent, under the client's lock."""
        if self._lock.locked():
            self._lock.release()

    def wait(self, seconds: float) -> None:
        self._lock.acquire(timeout=max(0.0, seconds))


class Waiting:
    """The part of the client that waits. ``lock``, ``pump`` and ``check_monitor`` are the client's."""

    lock: threading.RLock
    segment: Any
    unfinished: int

    def __init__(self) -> None:
        self.to_notify: list[Future] = []
        self.to_call: deque[Callback] = deque()
        self.reset_waiting()

    def reset_waiting(self) -> None:
        self._leading = False
        self._leader = 0  # its thread
        self._collector_leads = False
        self._followers: list[_Follower] = []
        self._collector: threading.Thread | None = None
        self._bell = threading.Event()
        self._eager = False  # somebody waits outside of our code: the collector shall not hesitate
        self._ended = False
        self._activity = 0
        self._checked = 0.0
        self._listening = False
        self._listened = 0.0  # since when; renewed by each turn
        self.ears: dict[object, Ear] = {}  # of event loops, also of idle ones
        self.awaiting: set[Ear] = set()  # those with outcomes to come
        self.curious: set[Ear] = set()  # those that want to know of any outcome

    def pump(self, sink: object = None, own: list[Any] | None = None, values: list[Any] | None = None) -> bool:
        raise AssertionError("the client's")

    def check_monitor(self) -> None:
        raise AssertionError("the client's")

    def next_due(self) -> float | None:
        raise AssertionError("the client's")

    def tidy(self) -> None:
        raise AssertionError("the client's")

    def idle_or_closed(self) -> bool:
        raise AssertionError("the client's")

    def draining(self) -> bool:
        raise AssertionError("the client's")

    def finish_draining(self) -> bool:
        """Called by an idle collector without the lock: end the pool if it was asked to end. True if it has ended."""
        raise AssertionError("the client's")

    # ---- waiting

    def wait_for(self, done: Callable[[], object], timeout: float | None = None, mine: tuple[Any, ...] = ()) -> bool:
        """Collect until ``done()`` is true. False after ``timeout`` seconds, or if the pool has ended and it never
        will be. ``mine``: for ``pump``, as long as this thread is the one that collects."""
        end = None if timeout is None else time.monotonic() + timeout
        while not done():
            follower = None
            try:
                with self.lock:
                    if done():
                        break
                    if self._ended:
                        return False
                    if not self._take_lead():
                        follower = _Follower(done)
                        self._followers.append(follower)
                if follower is None:
                    self._lead(done, end, mine)
                else:
                    follower.wait(1.0 if end is None else min(1.0, end - time.monotonic()))
            finally:
                try:
                    self._leave(follower)
                except BaseException:  # an interrupt, just now: others would wait for a leader that is gone
                    self._leave(follower)
                    raise
            if follower is None and self.segment is None:
                return bool(done())
            if end is not None and time.monotonic() >= end:
                return bool(done())
        return True

    def _take_lead(self) -> bool:
        # A thread that asks does not lead. If it seems to, an interrupt came before it could give the lead back.
        if self.led_by_another():
            if self._collector_leads and self.segment is not None:
                _core.ring_client(self.segment)  # it sees that somebody follows, and gives way
            return False
        self._leading, self._leader = True, threading.get_ident()
        self._hush()
        return True

    def _lead(self, done: Callable[[], object], end: float | None, mine: tuple[Any, ...] = ()) -> None:
        while True:
            with self.lock:
                self.pump(*mine)
                segment = self.segment
                due = self.next_due()
            self.announce()
            if segment is None or self._ended or done() or (self._collector_leads and self._followers):
                return
            now = time.monotonic()
            if end is not None and now >= end:
                return
            wait = _CHECK_SECONDS if end is None else min(_CHECK_SECONDS, end - now)
            if due is not None:
                wait = max(0.0, min(wait, due - now))
            rung = _core.wait(segment, _SPIN_US, int(wait * 1000) + 1)
            # Also now and then when it is rung all the time: deaths without an end may come from a damaged segment.
            if time.monotonic() - self._checked >= (10 * _CHECK_SECONDS if rung else _CHECK_SECONDS):
                with self.lock:
                    self._checked = time.monotonic()
                    self.check_monitor()
                self.announce()

    def _leave(self, follower: _Follower | None = None) -> None:
        """Follow no more, or hand over the lead. It may be repeated."""
        with self.lock:
            if follower is not None and follower in self._followers:
                self._followers.remove(follower)
            if self.led_by_another():
                return
            # Nobody leads, from here on: we did, or were to take the lead and have got what we wanted just before.
            self._activity += 1
            for follower in self._followers:
                if not follower.done():
                    follower.wake()
                    break
            else:
                if self._eager:
                    self._bell.set()
                if not self._listening and self._listen():
                    for ear in tuple(self.awaiting):
                        ear.tell()
            self._leading = self._collector_leads = False  # last: else a repetition would do nothing

    def led_by_another(self) -> bool:
        """Whether another thread leads, and so may sleep. Under the lock."""
        return self._leading and self._leader != threading.get_ident()

    def announce(self) -> None:
        """Do what the lock forbids: encode what goes again, tell those who wait what has ended."""
        if self.to_notify:
            batch: list[Future] = []
            try:
                with self.lock:
                    batch, self.to_notify = self.to_notify, []
                for future in batch:
                    future.notify()
            except BaseException:  # an interrupt, which is not theirs
                for future in batch:
                    future.notify()
                raise
        if self._followers:
            with self.lock:
                for follower in self._followers:
                    if self._ended or follower.done():
                        follower.wake()
        if self.curious:
            with self.lock:
                for ear in tuple(self.curious):
                    ear.tell()
        if self.to_call and threading.current_thread() is not self._collector:
            self.look_after()

    def news(self) -> None:
        """What somebody may wait for has come about without a worker. Not under the lock."""
        with self.lock:
            if self.segment is not None and self.led_by_another():
                _core.ring_client(self.segment)
        self.announce()

    def end_waiting(self) -> None:
        """Nothing will come any more: everybody who waits returns. Under the lock."""
        self._ended = True
        if self.segment is not None:
            _core.ring_client(self.segment)
        for follower in self._followers:
            follower.wake()
        self._bell.set()
        self.tell_loops()

    # ---- event loops

    def turn(self) -> bool:
        """What a leader does between two sleeps: collect for all, then listen. For event loops; it never waits. True:
        it is to be called again, soon. If a thread leads, that one does all this."""
        with self.lock:
            if self._leading:
                return False
            self._hush()
            if time.monotonic() - self._checked >= _CHECK_SECONDS:
                self._checked = time.monotonic()
                self.check_monitor()
            self.pump()
            again = self._listen()
        self.announce()
        return again

    def _listen(self) -> bool:
        """Have the wire rung, if any event loop awaits something. True: a turn is due, soon. Under the lock."""
        if not self.awaiting or self.segment is None:
            return False
        self._listening, self._listened = True, time.monotonic()
        return _core.listen(self.segment)

    def _hush(self) -> None:
        """The end of listening; whoever calls it looks at everything afterwards. Under the lock."""
        if self._listening:
            self._listening = False
            if self.segment is not None:
                _core.heard(self.segment)

    def tell_loops(self) -> None:
        """There is another segment, or none: another wire. Under the lock."""
        for ear in self.ears.values():
            ear.tell()

    # ---- the collector thread

    def submitted(self) -> None:
        """A future is pending: there must be a collector, even if it stays away for now. Under the lock."""
        self._activity += 1
        if self.segment is not None:
            _core.flush(self.segment)
        if self._collector is None:
            self._start_collector()

    def wake_collector(self) -> None:
        """Without the lock, for finalisers."""
        self._eager = True
        if self._collector is None:
            self._start_collector()
        self._bell.set()

    def look_after(self) -> None:
        """Somebody waits outside of our code, or there are callbacks to run. Not under the lock."""
        self._eager = True
        with self.lock:
            if self._collector is None:
                self._start_collector()
        if not self._collector_leads:
            self._bell.set()

    def _start_collector(self) -> None:
        self._collector = threading.Thread(target=self._collect, name="pool-collector", daemon=True)
        try:
            self._collector.start()
        except RuntimeError:  # the interpreter is exiting: whoever waits does the work
            self._collector = None

    def join_collector(self, timeout: float | None = None) -> None:
        collector = self._collector
        if collector is not None and collector is not threading.current_thread():
            self._bell.set()
            collector.join(timeout)

    def _collect(self) -> None:
        try:
            self._collect_until_idle()
        finally:
            if self._collector is threading.current_thread():  # it has failed: another one may do better
                self._collector = None

    def _collect_until_idle(self) -> None:
        seen, delay, linger = -1, _TAKEOVER_SECONDS, 0.0
        while True:
            self._bell.clear()
            self.announce()  # what an interrupted thread had collected
            while self.to_call:
                self.to_call.popleft().call()
            with self.lock:
                if self.unfinished > 0 and seen == self._activity and self.idle_or_closed():
                    self.unfinished = 0  # a submit was interrupted after it had counted
                busy = self.unfinished > 0 and not self._ended
                # Nobody leads, for a while; a loop that has taken no turn for so long is busy, or closed.
                heard = self._listening and time.monotonic() - self._listened < 2 * _CHECK_SECONDS
                quiet = seen == self._activity and not heard
                lead = busy and not self._leading and (self._eager or quiet)
                if lead:
                    self._hush()
                    self._leading = self._collector_leads = True
                    self._leader = threading.get_ident()
                if not busy:
                    self._eager = False
                if seen != self._activity:
                    seen, delay, linger = self._activity, _TAKEOVER_SECONDS, time.monotonic() + _LINGER_SECONDS
                else:
                    delay = min(delay * 2, 0.1)
            if lead:
                try:
                    self._lead(lambda: self.to_call or not self.unfinished, None)
                finally:
                    self._leave()
                seen, delay = self._activity, _TAKEOVER_SECONDS
            elif busy:
                self._bell.wait(delay)
            elif not self.to_call and (self.finish_draining() or time.monotonic() > linger):
                self.tidy()
                with self.lock:
                    if not self.to_call and (self._ended or not (self.unfinished or self.draining())):
                        self._collector = None
                        return
            else:
                self._bell.wait(delay)
