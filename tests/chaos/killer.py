"""Kills workers at random moments, and notes what the dead were at, as an observer outside of the pool sees it."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable

import processes

from chaos.observer import CONDEMNED, LEAVING, STARTING, STATES, STORING_ITEM, Gone, Observer

EVERY_LOAD = tuple(state for state in STATES if state not in (STORING_ITEM, CONDEMNED, LEAVING))
"""The states that tasks without limits meet, in workers that nobody replaces."""
RAREST = 3  # states that one kill waits for
SPARED = 0.25
"""Seconds in which no second starting worker is killed: the pool gives up after six failed starts in a row, rightly.
Nor is one that follows another, for a slot waits twice as long after each failed start; nor the first of a slot."""


class Killer:
    """Kills a random worker of the client `pid` every so many seconds; ``log(pid, ns, state)`` is told of each, with
    the monotonic time just before: it still lived then, but stood still.

    It is stopped first, so what its rows say is what they say at its death. A third of the kills (when `hunting`, all)
    waits for a worker in one of those `wanted` states that were met least so far, `counts` included: storing takes so
    little time that chance alone would take minutes to hit it. `timing`: one of plan.TIMINGS.
    """

    def __init__(
        self,
        client: int,
        every: float,
        seed: int,
        log: Callable[[int, int, str], None],
        wanted: tuple[str, ...] = EVERY_LOAD,
        timing: str = "even",
        counts: Counter[str] | None = None,
    ) -> None:
        self.counts: Counter[str] = Counter(counts)
        self.records = 0  # death records that were there to be compared with our kills
        self.wrong_records: list[str] = []
        self.hunting = False
        self._client = client
        self._every = every
        self._wanted = wanted
        self._timing = timing
        self._log = log
        self._random = random.Random(seed)
        self._spare_until = 0.0
        self._spared = -1  # slot whose last worker was killed while it started
        self._killed: dict[int, tuple[int, int]] = {}  # slot → pid and generation of its last worker that was killed
        self._compared: set[int] = set()  # slots of which the record of that death was seen
        self._stop = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="killer")

    def missed(self) -> list[str]:
        """The states that no kill has met."""
        return [state for state in self._wanted if not self.counts[state]]

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Until whom it has killed is dead. Raises what has ended it."""
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join()
        processes.await_deaths([pid for pid, _ in self._killed.values()])
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        try:
            with contextlib.closing(Observer(self._client)) as pool:
                self._go_on(pool)
        except BaseException as error:
            self._error = error

    def _go_on(self, pool: Observer) -> None:
        due = time.monotonic()
        while not self._stop.wait(max(0.0, due - time.monotonic())):
            due = max(due + self._pause(pool.slots), time.monotonic())
            with contextlib.suppress(Gone):  # it is being replaced, or the client has ended
                pool.attach()
                self._one(pool, due)

    def _pause(self, workers: int) -> float:
        if self._timing == "poisson":
            return self._random.expovariate(1 / self._every)
        return self._every * (workers if self._timing == "bursts" else 1)

    def _one(self, pool: Observer, due: float) -> None:
        if self._timing == "bursts":
            for slot in range(pool.slots):
                self._kill(pool, slot)
        slot = self._random.randrange(pool.slots)
        if self.hunting or self._random.random() < 1 / 3:
            spared = time.monotonic() < self._spare_until
            possible = [state for state in self._wanted if state != STARTING or not spared]
            self._random.shuffle(possible)
            wanted = sorted(possible, key=self.counts.__getitem__)[:RAREST]
            if STARTING in wanted:  # nobody starts unless somebody has just died
                self._kill(pool, slot)
            slot = self._await(pool, wanted, due, slot)
        self._kill(pool, slot)

    def _await(self, pool: Observer, wanted: list[str], until: float, slot: int) -> int:
        """A slot whose worker is in a wanted state, or any."""
        slots = list(range(pool.slots))
        while time.monotonic() < until and not self._stop.is_set():
            for k, state in enumerate(pool.states(slots)):
                if state in wanted:
                    return k
            self._stop.wait(0.0002)  # lets others run
        return slot

    def _is_worker(self, pid: int) -> bool:
        """The segment may be damaged, and a number of it anybody's."""
        return processes.parent_of(processes.parent_of(pid)) == self._client

    def _kill(self, pool: Observer, slot: int) -> None:
        found = pool.slot(slot)
        pid, generation = found.pid, found.generation
        self._compare_record(pool, slot)
        if pid <= 0 or self._killed.get(slot) == (pid, generation):  # dead, and not yet replaced
            return
        try:
            fd = os.pidfd_open(pid)
        except OSError:
            return
        try:
            again = pool.slot(slot)
            if again.pid != pid or again.generation != generation or again.reaped > generation:
                return  # it has died since; the number may be somebody else's
            if not self._is_worker(pid):
                return
            signal.pidfd_send_signal(fd, signal.SIGSTOP)
            state = self._stopped_at(pool, slot, pid)
            if state == STARTING and not self._may_kill_starting(slot, generation):
                state = None
            now = time.monotonic_ns()
            signal.pidfd_send_signal(fd, signal.SIGCONT if state is None else signal.SIGKILL)
        except ProcessLookupError:
            return
        finally:
            os.close(fd)
        if state is not None:
            self._killed[slot] = (pid, generation)
            self._compared.discard(slot)
            if state != STARTING and slot == self._spared:
                self._spared = -1
            self.counts[state] += 1
            self._log(pid, now, state)

    def _stopped_at(self, pool: Observer, slot: int, pid: int) -> str | None:
        """What a worker that is being stopped is at; None: it has died, or cannot be looked at."""
        end = time.monotonic() + 5
        while not processes.is_stopped(pid):
            if not processes.runs(pid) or time.monotonic() > end:
                return None
        try:
            return pool.state(slot)
        except Gone:
            return None

    def _may_kill_starting(self, slot: int, generation: int) -> bool:
        if generation == 0 or time.monotonic() < self._spare_until or slot == self._spared:
            return False
        self._spare_until, self._spared = time.monotonic() + SPARED, slot
        return True

    def _compare_record(self, pool: Observer, slot: int) -> None:
        """What the monitor has written of our last kill in this slot."""
        if slot in self._killed and slot not in self._compared:
            pid, generation = self._killed[slot]
            record = pool.death(slot, generation)
            if record is None:
                return
            self._compared.add(slot)
            self.records += 1
            if record[0] != pid or record[1] != signal.SIGKILL:
                self.wrong_records.append(f"of the death of {pid} the record says {record}")
