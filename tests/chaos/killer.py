"""Kills workers at random moments, and notes what the dead were at. The only part of the runner that knows rows."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable

import processes

from ipc import _core
from pool import Pool

# What a worker can be at when it dies.
STARTING, IDLE, CLAIMING = "starting", "idle", "without a task, some are ready"
DECODING, SINGLE, ITEM = "decoding a chunk", "running a single task", "running an item of a chunk"
STORING, STORED = "storing a result", "done, not collected"
STATES = (STARTING, IDLE, CLAIMING, DECODING, SINGLE, ITEM, STORING, STORED)
CHARGED = (SINGLE, ITEM, STORING)  # a death then costs a task one attempt
UNSEEN = "nobody has looked"  # it was not stopped before, or was condemned already

SPARED = 0.25
"""Seconds in which no second starting worker is killed: the pool gives up after six failed starts in a row, rightly.
Nor is one that follows another, for a slot waits twice as long after each failed start; nor the first of a slot."""

_Row = tuple[int, int, int, int, int]


class Killer:
    """Kills a random worker every so many seconds; ``log(pid, state)`` is told of each.

    It is stopped first, so what its rows say is what they say at its death. A third of the kills (when `hunting`, all)
    waits for a worker in the state met least so far: storing takes so little time that chance alone would take minutes
    to hit it.
    """

    def __init__(self, pool: Pool, every: float, seed: int, log: Callable[[int, str], None]) -> None:
        self.counts: Counter[str] = Counter()
        self.hunting = False
        self._every = every
        self._log = log
        self._client = pool._client
        self._random = random.Random(seed)
        self._spare_until = 0.0
        self._spared = -1  # slot whose last worker was killed while it started
        self._killed: dict[int, int] = {}  # slot → the last generation of it that was killed
        self._stop = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="killer")

    def missed(self) -> list[str]:
        """The states that no kill has met."""
        return [state for state in STATES if not self.counts[state]]

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Raises what has ended it."""
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join()
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        try:
            due = time.monotonic()
            while not self._stop.wait(max(0.0, due - time.monotonic())):
                due = max(due + self._every, time.monotonic())
                if (segment := self._client.segment) is not None:  # None: being replaced, or the pool has ended
                    self._one(segment, due)
        except BaseException as error:
            self._error = error

    def _one(self, segment: object, due: float) -> None:
        slot = self._random.randrange(self._client.workers)
        if self.hunting or self._random.random() < 1 / 3:
            spared = time.monotonic() < self._spare_until
            wanted = min((s for s in STATES if s != STARTING or not spared), key=self.counts.__getitem__)
            if wanted == STARTING:  # nobody starts unless somebody has just died
                self._kill(segment, slot)
            slot = self._await(segment, wanted, due, slot)
        self._kill(segment, slot)

    def _await(self, segment: object, wanted: str, until: float, slot: int) -> int:
        """A slot whose worker is in the wanted state, or any."""
        while time.monotonic() < until and not self._stop.is_set():
            rows = _look(segment)
            for k in range(self._client.workers):
                if self._state(segment, k, rows) == wanted:
                    return k
            self._stop.wait(0.0002)  # lets the client's thread run
        return slot

    def _state(self, segment: object, slot: int, rows: list[_Row]) -> str:
        info = _core.slot_info(segment, slot)
        if info["phase"] == _core.STARTING:
            return STARTING
        generation = info["generation"] & _core.GENERATION_MASK
        mine = {state: (row, item) for row, state, owner, g, item in rows if (owner, g) == (slot, generation)}
        if _core.CONDEMNED in mine:
            return UNSEEN
        if _core.RUNNING in mine:
            row, item = mine[_core.RUNNING]
            if item:
                return ITEM
            tasks = self._client.tasks
            task = tasks[row] if row < len(tasks) else None  # the word alone does not say whether this is a chunk
            return DECODING if task is not None and task.items else SINGLE
        if _core.STORING in mine:
            return STORING
        if _core.DONE in mine:
            return STORED
        return CLAIMING if _core.counters(segment)["ready"] else IDLE

    def _kill(self, segment: object, slot: int) -> None:
        info = _core.slot_info(segment, slot)
        pid, generation = info["pid"], info["generation"]
        if pid <= 0 or self._killed.get(slot) == generation:  # dead, and not yet replaced
            return
        try:
            fd = os.pidfd_open(pid)
        except ProcessLookupError:
            return
        try:
            again = _core.slot_info(segment, slot)
            same = all(again[key] == info[key] for key in ("pid", "generation", "reaped"))
            if not same or info["reaped"] > generation:
                return  # it has died since; the number may be somebody else's
            signal.pidfd_send_signal(fd, signal.SIGSTOP)
            end = time.monotonic() + 5
            while not processes.is_stopped(pid) and processes.runs(pid) and time.monotonic() < end:
                pass
            state = self._state(segment, slot, _look(segment))
            if state == STARTING:
                if generation == 0 or time.monotonic() < self._spare_until or slot == self._spared:
                    signal.pidfd_send_signal(fd, signal.SIGCONT)
                    return
                self._spare_until, self._spared = time.monotonic() + SPARED, slot
            elif slot == self._spared:
                self._spared = -1
            signal.pidfd_send_signal(fd, signal.SIGKILL)
        except ProcessLookupError:
            return
        finally:
            os.close(fd)
        self._killed[slot] = generation
        self.counts[state] += 1
        self._log(pid, state)


def _look(segment: object) -> list[_Row]:
    """(row, state, slot, generation, item) of all rows that a worker owns."""
    rows = _core.counters(segment)["rows"]
    words = ((row, *_core.row_word(segment, row)[:4]) for row in range(rows))
    return [word for word in words if word[1] not in (_core.FREE, _core.READY)]
