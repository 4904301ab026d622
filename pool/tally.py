"""What the client counts while tasks come and go, and keeps for ``Pool.insights()`` until the end of the program.

Run times and outcomes come with the results, item by item, and are added up in C while these are collected
(``_core.tally``); so the death of a worker loses nothing that had been finished. Deaths are counted when they are
settled. What workers did with their time stands in their slots. All of it is under the client's lock.
"""

from __future__ import annotations

import time
from collections import Counter, namedtuple

from ipc import _core
from pool import spill
from pool.task import how_it_ended

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pool.task import Death, Task

OTHER = "(other)"
"""The name for all functions that came when there were too many to be counted apart."""

_MOST_DEATHS = 1000  # that a plot shows
_MOST_ENDS = 32  # ways to end that are told apart, for a slot
_KEPT_BYTES = 1 << 16  # of the encoded arguments of a slow item or its chunk; larger ones are not kept


class Slow(namedtuple("Slow", "ns name index slot call k size data flags")):
    """A slow item. ``index``: in the input of its map, else None. Its arguments as they were encoded, so nothing of the
    caller's is held: ``data`` and ``flags`` of its task, the ``k``-th of a chunk (None: a single task); data None:
    they are not kept, ``size`` bytes."""

    __slots__ = ()
    ns: int
    name: str
    index: int | None
    slot: int
    call: int
    k: int | None
    size: int
    data: bytes | bytearray | None
    flags: int


class Snapshot(namedtuple("Snapshot", "created now slots spans counters ended")):
    """Times of the slots at one moment, see ``_core.slot_times`` and ``_core.slot_spans``. ``ended``: of the pool."""

    __slots__ = ()
    created: int
    now: int
    slots: list[dict[str, int]]
    spans: list[tuple[int, list[int]]]
    counters: dict[str, int]
    ended: bool


def snapshot(segment: object, workers: int, now: int | None = None) -> Snapshot:
    """``now``: the pool has ended then; else it is living."""
    at = time.monotonic_ns() if now is None else now
    counters = _core.counters(segment)
    slots = [_core.slot_times(segment, slot, at) for slot in range(workers)]
    spans = [_core.slot_spans(segment, slot, at) for slot in range(workers)]
    return Snapshot(counters["created"], at, slots, spans, counters, now is not None)


class Tally:
    """See the module."""

    def __init__(self) -> None:
        self.found: list[tuple[Task, int, int, int]] = []  # C appends what is slower than one of the slowest so far
        self.counts = _core.tally(self.found)
        self.numbers: dict[str, int] = {}
        self.slowest: list[Slow] = []
        self.lost: dict[int, Counter[str]] = {}  # of each function: how its attempts ended, if their worker died
        self.last: Snapshot | None = None  # of a pool that has ended
        self.begin()

    def begin(self) -> None:
        """In a fresh segment the slots begin anew."""
        self.ends: dict[int, Counter[str]] = {}  # of each slot: how its workers ended
        self.deaths: list[tuple[int, int, str]] = []  # (monotonic ns, slot, how)
        self._settled: dict[int, int] = {}

    def number(self, name: str) -> int:
        """What the function is counted as; 0: there are too many."""
        number = self.numbers.get(name)
        if number is None:
            if len(self.numbers) + 1 >= _core.TALLIES:
                return 0
            number = self.numbers[name] = len(self.numbers) + 1
        return number

    def task_died(self, death: Death) -> None:
        """An attempt ended with its worker."""
        self.lost.setdefault(death.task.function.number, Counter())[death.how] += 1

    def slot_died(self, segment: object, slot: int, reaped: int) -> None:
        """All generations of the slot below ``reaped`` are dead: count those that were not counted yet."""
        since = _core.slot_times(segment, slot, 0)["since"]
        # The log has the last few only; and ``reaped`` may be damaged.
        for generation in range(max(self._settled.get(slot, 0), reaped - _core.DEATHS), reaped):
            if (death := _core.death(segment, slot, generation)) is not None:
                how = how_it_ended(*death[1:3])
                ends = self.ends.setdefault(slot, Counter())
                ends[how if how in ends or len(ends) < _MOST_ENDS else OTHER] += 1
                if len(self.deaths) < _MOST_DEATHS:
                    self.deaths.append((since, slot, how))
        self._settled[slot] = reaped

    def note_slow(self) -> None:
        """Sort in what C has found; the tasks are not held any longer."""
        for task, k, ns, slot in self.found:
            index = None if task.sink.holds_call else task.position + k
            data, size = task.data, task.data if type(task.data) is int else spill.length(task.data)
            if type(data) not in (bytes, bytearray) or size > _KEPT_BYTES or b"pool.share" in data:
                data = None  # large, in a file, or with the name of what may be gone by then
            chunk = k if task.items else None
            self.slowest.append(
                Slow(ns, task.function.name, index, slot, task.flags >> 8, chunk, size, data, task.flags)
            )
        self.found.clear()
        self.slowest.sort(key=lambda slow: -slow.ns)
        del self.slowest[_core.SLOWEST :]

    def ended(self, segment: object, workers: int, now: int) -> None:
        """Keep what there is to know of the slots, which end."""
        self.last = snapshot(segment, workers, now)


__all__ = ["OTHER", "Slow", "Snapshot", "Tally", "snapshot"]
