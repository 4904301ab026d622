"""What a running map does to tell its progress: at most 50 ms apart it makes the counts, with rate and memory."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable

from ipc import process
from pool import terminal
from pool.progress import Progress, eta_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pool.map_run import MapRun

_TICK_SECONDS = 0.045  # a little less than the promised 50 ms: waits are in whole milliseconds
_LEAST_PAUSE = 0.01  # after a slow callable, before the next call
_STRIDE = 64  # most items between two looks at the clock,
_STRIDE_SECONDS = 0.002  # which shall take so long at most
_RATE_SECONDS, _RATE_ITEMS = 10.0, 10  # the rate is that of so long, and of so many items, whichever is longer
_SAMPLE_SECONDS = 0.5
_MEMORY_SECONDS = 1.0
_MEMORY_SHARE = 100  # looking at memory takes at most one part in so many of the time


class Ticker:
    """Calls ``call`` with the Progress of a map while it is iterated: at most 50 ms apart, as far as the map is asked
    for its next result and its input does not block; and once at the end. What ``call`` raises goes through."""

    def __init__(self, run: MapRun, call: Callable[[Progress], object], total: int | None) -> None:
        now = time.monotonic()
        self.total = total
        self.quick = True  # whether the input is; see `run_map`
        self._run = run
        self._call = call
        self._raised = False
        self._began = now
        self._due = now + _TICK_SECONDS
        self._looked = now, 0
        self._rate = _Rate(now)
        self._memory = _Memory()
        self._told: tuple[str, object] = "", None

    def look(self, taken: int) -> int:
        """Call if it is time. ``taken``: results taken so far. Returns at how many to look again at the latest."""
        now = time.monotonic()
        since, before = self._looked
        self._looked = now, taken
        if now >= self._due:
            self._tick(now, False)
        return taken + (_STRIDE if (now - since) * _STRIDE < _STRIDE_SECONDS * (taken - before) else 1)

    def seconds(self) -> float:
        """Until the next call is due."""
        return max(0.001, self._due - time.monotonic())

    def end(self) -> None:
        """The last call. Its exceptions are dropped if one of them has ended the map."""
        if sys.is_finalizing():  # somebody held the iteration until there is nothing left to call
            return
        try:
            self._tick(time.monotonic(), True)
        except Exception:
            if not self._raised:
                raise

    def _tick(self, now: float, ended: bool) -> None:
        progress = self._progress(now, ended)
        try:
            self._call(progress)
        except BaseException:
            self._raised = self._raised or not ended
            raise
        finally:
            self._due = max(now + _TICK_SECONDS, time.monotonic() + _LEAST_PAUSE)
            self._tell_monitor()

    def _progress(self, now: float, ended: bool) -> Progress:
        run, client = self._run, self._run.client
        done, elapsed = run.given - run.flying, now - self._began
        total = None if self.total is None else max(self.total, run.given)
        rate = done / max(elapsed, 1e-6) if ended else self._rate.of(now, done)
        busy, parts = client.at_work()
        memory = self._memory.of(now, client.processes())
        eta = eta_of(done, total, rate)
        return Progress(
            done, total, run.failed, run.crashes, 0, elapsed, rate, eta, busy, client.workers, memory, parts, ended
        )

    def _tell_monitor(self) -> None:
        """Should we be killed, the monitor gives the terminal back."""
        held = terminal.held(), self._run.client.segment
        if held != self._told:
            self._told = held
            self._run.client.tell_terminal(held[0])


class _Rate:
    """Items a second of late, from some samples."""

    def __init__(self, now: float) -> None:
        self._samples = deque([(now, 0)])

    def of(self, now: float, done: int) -> float:
        samples = self._samples
        if done > samples[-1][1] and now - samples[-1][0] >= _SAMPLE_SECONDS:
            samples.append((now, done))
        while len(samples) > 1 and now - samples[1][0] >= _RATE_SECONDS and done - samples[1][1] >= _RATE_ITEMS:
            samples.popleft()
        since, before = samples[0]
        return (done - before) / max(now - since, 1e-6)


class _Memory:
    """Memory of some processes: one look at a time, because a look at a large process takes milliseconds."""

    def __init__(self) -> None:
        self._known: dict[int, int] = {}
        self._waiting: list[int] = []
        self._sum = 0
        self._round_at = self._look_at = 0.0

    def of(self, now: float, pids: list[int]) -> int:
        """Bytes, as they were seen in the last round; 0 in the first one."""
        if not self._waiting and now >= self._round_at:
            self._waiting = pids
            self._round_at = now + _MEMORY_SECONDS
        if self._waiting and now >= self._look_at:
            pid, used = self._waiting.pop(), time.thread_time()
            self._known[pid] = process.memory(pid)
            self._look_at = now + _MEMORY_SHARE * (time.thread_time() - used)
            if not self._waiting:
                self._known = {pid: self._known.get(pid, 0) for pid in pids}
                self._sum = sum(self._known.values())
        return self._sum


__all__ = ["Ticker"]
