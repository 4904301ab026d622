"""Memory images that no healthy run leaves for long, or at all: half-done steps of the dead, and damage.

Each is built by hand, through a mapping of the control file and the golden offsets of test_layout. What follows must be
the right outcome, or `Damaged`; never a crash, and never a row of somebody else.
"""

import contextlib
import mmap
import os
import pickle
import random
import signal
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from test_layout import (
    CONSTANTS,
    DEATH,
    FRAME,
    HEADER,
    ROW,
    SIZES,
    SLOT,
    owner,
    owner_kept,
    owners_at,
    ring_at,
    rows_at,
    slots_at,
    word,
)

from ipc import Damaged, _core
from ipc.segment import Segment
from pool.account import FACTS

ROOT = Path(__file__).parent.parent
ROWS, SLOTS, UNITS = 8, 3, 8
UNIT = 65536
INLINE = CONSTANTS["IPC_INLINE"]
BIG = b"b" * (UNIT + 1)  # two units
U32, U64 = "<I", "<Q"
NO_UNIT = 0xFFFF_FFFF
VIEW = CONSTANTS["IPC_OWNER_VIEW"]
Handle = Any


class Image:
    """A segment, its client, and a second look at its bytes."""

    def __init__(self) -> None:
        self.segment = Segment.create(SLOTS, 2, rows=ROWS, room=UNITS * UNIT)
        self.bytes = mmap.mmap(self.segment.control, os.fstat(self.segment.control).st_size)
        self.client: Handle = self.segment.attach()
        _core.open_client(self.client)
        self.tasks: list[tuple[str] | None] = [None] * ROWS

    # -- bytes

    def get(self, at: int, form: str = U64) -> int:
        return int(struct.unpack_from(form, self.bytes, at)[0])

    def put(self, at: int, number: int, form: str = U64) -> None:
        struct.pack_into(form, self.bytes, at, number)

    @staticmethod
    def row(row: int, field: str) -> int:
        return rows_at(ROWS, SLOTS) + row * 512 + ROW[field]

    @staticmethod
    def slot(slot: int, field: str) -> int:
        return slots_at(ROWS) + slot * SIZES["ipc_slot"] + SLOT[field]

    @staticmethod
    def ring(position: int) -> int:
        return ring_at() + 8 * (position % ROWS)

    @staticmethod
    def unit(unit: int) -> int:
        return owners_at(ROWS, SLOTS) + 8 * unit

    # -- steps

    def publish(
        self,
        record: str,
        args: bytes | tuple[bytes, ...] = b"",
        *,
        items: int = 0,
        timeout_ms: int = 0,
        flags: int = 0,
        since: int = 0,
    ) -> int:
        row = _core.publish(
            self.client, self.tasks, (record,), 0, 0, 0, 0, args, items, timeout_ms, flags, 1, 0, 0, since
        )
        assert row >= 0
        return row

    def worker(self, slot: int = 0, generation: int = 0) -> Handle:
        handle = self.segment.attach()
        _core.slot_begin(handle, slot, generation)
        _core.open_worker(handle, slot, generation)
        return handle

    def collect(self) -> list[Any]:
        inbox: list[Any] = []
        assert _core.collect(self.client, self.tasks, inbox, 100, object(), [], None) == len(inbox)
        return [(record[0], *rest) for record, *rest in inbox]

    def results(self) -> list[tuple[str, Any]]:
        """What large results show is copied, so that nothing is held."""
        return [(record, data if type(data) is list else bytes(data)) for record, _, data, _, _ in self.collect()]

    def die(self, slot: int = 0, generation: int = 0, status: int = 9) -> None:
        _core.record_death(self.client, slot, generation, 1000 + generation % 1000, status, _core.DIED)

    def settle(self) -> list[Any]:
        out: list[Any] = []
        while (dead := _core.next_dead(self.client)) is not None:
            _core.settle(self.client, self.tasks, *dead, out)
            _core.settled(self.client, *dead)
        return [(record[0], *rest) for record, *rest, _ in out]  # without the facts

    def state(self, row: int) -> int:
        return _core.row_word(self.client, row)[0]

    def owners(self) -> list[int]:
        return [self.get(self.unit(k)) for k in range(UNITS)]

    def units(self) -> int:
        return _core.counters(self.client)["units"]

    def at_rest(self) -> bool:
        counters = _core.counters(self.client)
        rows = {self.state(row) for row in range(ROWS)}
        return counters["in_flight"] == 0 and counters["units"] == 0 and rows == {_core.FREE}


@pytest.fixture
def image() -> Iterator[Image]:
    made = Image()
    yield made
    made.bytes.close()
    made.segment.close()


def claim(worker: Handle) -> Any:
    return _core.claim(worker, 0, 0)


def frame(kind: int, data: bytes) -> bytes:
    return struct.pack(U64, kind << 56 | len(data)) + bytes(8) + data


# ---- the identity


@pytest.mark.parametrize(
    ("field", "form", "number"),
    [
        ("magic", U64, 0),
        ("magic", U64, 0x676573206C6F6F71),
        ("layout", U32, 0),
        ("layout", U32, 2),
        ("size", U64, 0),
        ("size", U64, _core.size(ROWS, SLOTS, UNITS) - 1),
        ("size", U64, 1 << 63),
        ("rows", U32, 0),
        ("rows", U32, 9),
        ("rows", U32, 4097),
        ("rows", U32, 0xFFFF_FFFF),
        ("slots", U32, 0),
        ("slots", U32, 4),
        ("slots", U32, 513),
        ("units", U32, 9),
        ("units", U32, 0xFFFF_FFFF),
    ],
)
def test_wrong_identity(image: Image, field: str, form: str, number: int) -> None:
    image.put(HEADER[field], number, form)
    with pytest.raises(Damaged, match="not a segment of this version"):
        image.segment.attach()


@pytest.mark.parametrize("size", [1, SIZES["ipc_header"] - 1, SIZES["ipc_header"], 4096])
def test_files_that_are_no_segment(image: Image, size: int) -> None:
    other = os.memfd_create("other")
    try:
        os.ftruncate(other, size)
        with pytest.raises(Damaged):
            _core.attach(other, image.segment.payload)
        os.pwrite(other, image.bytes[:size], 0)  # the first bytes of one, but not all
        with pytest.raises(Damaged):
            _core.attach(other, image.segment.payload)
        if size < UNITS * UNIT:  # too little payload
            with pytest.raises(Damaged):
                _core.attach(image.segment.control, other)
    finally:
        os.close(other)


def test_empty_file_and_no_file(image: Image) -> None:
    other = os.memfd_create("other")
    with pytest.raises(OSError, match="Invalid argument"):
        _core.attach(other, image.segment.payload)
    with pytest.raises(OSError, match="Invalid argument"):
        _core.attach(image.segment.control, other)
    os.close(other)
    with pytest.raises(OSError, match="Bad file descriptor"):
        _core.attach(other, image.segment.payload)


def test_sizes_are_read_once(image: Image) -> None:
    """Damage to the header after the attach moves no pointer and lifts no bound."""
    worker, row = image.worker(), image.publish("task", b"a")
    for field in ("rows", "slots", "units", "cores"):
        image.put(HEADER[field], 0xFFFF_FFFF, U32)
    image.put(HEADER["size"], 0)
    assert claim(worker)[4] == b"a"
    with pytest.raises(OverflowError):
        _core.row_word(worker, ROWS)
    assert _core.counters(worker)["rows"] == ROWS
    assert _core.complete(worker, 0, BIG) == 0
    assert image.results() == [("task", BIG)]
    assert image.state(row) == _core.FREE


# ---- half-done steps of the dead


def test_claimed_but_head_not_moved(image: Image) -> None:
    dead, worker = image.worker(0), image.worker(1)
    first, second = image.publish("first"), image.publish("second")
    assert claim(dead)
    image.put(HEADER["head"], 0)  # died before its second step
    assert claim(worker)  # helps: gets the next task, not this one
    assert _core.running(worker, 1)[2] == second  # type: ignore[index]
    assert image.get(HEADER["head"]) == 2
    image.die(0)
    assert image.settle() == [("first", _core.RUNNING, 0, 0, 0, [])]
    assert image.state(first) == _core.FREE
    assert _core.complete(worker, 0, b"2") == 0
    assert image.results() == [("second", b"2")]
    assert image.at_rest()


def test_row_is_not_used_again_before_head_has_passed_it(image: Image) -> None:
    rows = [image.publish(str(n)) for n in range(ROWS)]
    dead, worker = image.worker(0), image.worker(1)
    assert claim(dead)
    image.put(HEADER["head"], 0)
    image.die(0)
    assert [record for record, *_ in image.settle()] == ["0"]
    assert _core.publish(image.client, image.tasks, ("9",), 0, 0, 0, 0, b"", 0, 0, 0, 1) == _core.FULL
    assert claim(worker)
    assert image.publish("9") == rows[0]


def test_done_without_hint(image: Image) -> None:
    worker, row = image.worker(), image.publish("task")
    claim(worker)
    _core.complete(worker, 3, b"x")
    image.put(HEADER["done"], 0)
    image.put(HEADER["done_summary"], 0)
    assert image.collect() == []
    assert _core.idle_scan(image.client) == 0  # it may be between its two steps
    assert image.collect() == []
    assert _core.idle_scan(image.client) == 1
    assert [entry[:4] for entry in image.collect()] == [("task", 3, b"x", 1)]
    assert image.state(row) == _core.FREE
    assert _core.counters(image.client)["healed"] == 1


@pytest.mark.parametrize("lost", [("done", "done_summary"), ("done_summary",)])
def test_done_without_hint_by_the_dead(image: Image, lost: tuple[str, ...]) -> None:
    worker = image.worker()
    image.publish("task")
    claim(worker)
    _core.complete(worker, 0, BIG)
    for field in lost:
        image.put(HEADER[field], 0)
    assert image.collect() == []
    image.die()
    assert image.settle() == []  # it counts as finished
    assert _core.wait(image.client, 0, 0)
    assert image.results() == [("task", BIG)]
    assert image.at_rest()


def test_hint_without_done(image: Image) -> None:
    worker = image.worker()
    image.publish("task")

    def hint() -> None:
        image.put(HEADER["done"], 0xFF)
        image.put(HEADER["done_summary"], 1)

    hint()
    assert image.collect() == []  # ready
    claim(worker)
    hint()
    assert image.collect() == []  # runs
    _core.complete(worker, 0, b"x")
    hint()
    assert image.results() == [("task", b"x")]
    hint()
    assert image.collect() == []  # no second time
    assert image.at_rest()


def test_hints_for_rows_never_published_and_rows_there_are_not(image: Image) -> None:
    for k in range(64):
        image.put(HEADER["done"] + 8 * k, (1 << 64) - 1)
    image.put(HEADER["done_summary"], (1 << 64) - 1)
    assert image.collect() == []
    assert image.get(HEADER["done_summary"]) == 0


def test_word_says_done_but_nobody_published(image: Image) -> None:
    image.put(image.row(5, "word"), word(4, seq=0))
    image.put(HEADER["done"], 1 << 5)
    image.put(HEADER["done_summary"], 1)
    assert image.collect() == []
    assert [_core.idle_scan(image.client) for _ in range(3)] == [0, 0, 0]
    image.die()
    assert image.settle() == []


def test_done_of_an_older_use_of_the_row(image: Image) -> None:
    row = image.publish("task")
    image.put(image.row(row, "word"), word(4, seq=0))
    image.put(HEADER["done"], 1 << row)
    image.put(HEADER["done_summary"], 1)
    assert image.collect() == []


@pytest.mark.parametrize("state", [_core.STORING, _core.CONDEMNED])
def test_units_taken_but_no_reference(image: Image, state: int) -> None:
    worker, other = image.worker(0), image.worker(1)
    row, kept = image.publish("task"), image.publish("other", BIG)
    claim(worker), claim(other)
    image.put(image.row(row, "word"), word(state, 0, 0, 1))
    for unit in (4, 5, 7):
        image.put(image.unit(unit), owner(row, 1))
    assert image.units() == 5
    image.die()
    assert image.settle() == [("task", state, 0, 0, 0, [])]
    assert image.units() == 2
    assert image.state(kept) == _core.RUNNING
    assert image.get(image.unit(0)) == image.get(image.unit(1)) == owner(kept, 1)


def test_chunk_died_while_it_stored(image: Image) -> None:
    """Two of three results are committed; the new, larger run is taken, perhaps copied, and not yet named."""
    worker = image.worker()
    row = image.publish("chunk", items=3)
    claim(worker)
    _core.begin_items(worker)
    for data in (b"1", BIG):
        assert _core.commit(worker, 0, data) == 0
    held = image.units()
    image.put(image.row(row, "word"), word(3, 0, 0, 1, 3))
    for unit in (6, 7):
        image.put(image.unit(unit), owner(row, 1))
    assert image.units() == held + 2
    image.die()
    assert image.settle() == [("chunk", _core.STORING, 3, 0, 0, [0, b"1", 0, BIG])]
    assert image.at_rest()


def test_result_written_but_not_committed(image: Image) -> None:
    worker = image.worker()
    row = image.publish("chunk", items=3)
    claim(worker)
    _core.begin_items(worker)
    _core.commit(worker, 7, b"one")
    at = image.row(row, "body") + len(frame(7, b"one"))
    image.bytes[at : at + 19] = frame(9, b"two")
    image.put(image.row(row, "result_len"), 38)
    image.die()
    assert image.settle() == [("chunk", _core.RUNNING, 2, 0, 0, [7, b"one"])]
    assert image.at_rest()


def test_stale_entry_after_cancel(image: Image) -> None:
    worker = image.worker()
    row = image.publish("cancelled")
    assert _core.cancel(image.client, image.tasks, row)
    assert image.tasks == [None] * ROWS
    assert image.get(HEADER["tail"]) == 1
    assert claim(worker) is None
    assert image.get(HEADER["head"]) == 1
    again = image.publish("again", b"2")
    assert not _core.cancel(image.client, image.tasks, (again + 1) % ROWS)
    # The entry of the cancelled use once more, as a slow worker may see it: its number does not fit.
    image.put(HEADER["head"], 0)
    assert claim(worker)[4] == b"2"
    assert image.get(HEADER["head"]) == 2


def test_all_rows_cancelled_none_free_until_head_moves(image: Image) -> None:
    for row in [image.publish("x", BIG if n < 2 else b"") for n in range(ROWS)]:
        assert _core.cancel(image.client, image.tasks, row)
    assert image.at_rest()
    assert _core.publish(image.client, image.tasks, ("9",), 0, 0, 0, 0, b"", 0, 0, 0, 1) == _core.FULL
    assert _core.flush(image.client) == 0  # nobody sleeps
    assert claim(image.worker()) is None
    image.publish("9")


@pytest.mark.parametrize("bits", ["sleepers", "spinners"])
def test_bit_left_by_the_dead(image: Image, bits: str) -> None:
    image.publish("task")
    image.put(HEADER[bits], 0b101)
    image.die(0)
    assert image.get(HEADER[bits]) == 0b100  # only its own
    if bits == "spinners":
        assert _core.flush(image.client) == 0  # who spins needs no bell
        image.die(2)
        image.put(HEADER["sleepers"], 0b010)
    assert _core.flush(image.client) == 1
    assert image.get(HEADER["sleepers"]) == 0


def test_wake_spent_on_the_dead_is_passed_on(image: Image) -> None:
    image.publish("task")
    image.put(HEADER["sleepers"], 0b011)
    assert _core.flush(image.client) == 1
    assert image.get(HEADER["sleepers"]) == 0b010  # slot 0 was woken, but it is dead
    bells = [image.get(image.slot(k, "bell"), U32) for k in range(SLOTS)]
    assert bells == [1, 0, 0]
    image.die(0)
    assert [image.get(image.slot(k, "bell"), U32) for k in range(SLOTS)] == [2, 1, 1]


def test_all_asleep_one_is_woken_at_once(image: Image) -> None:
    image.put(HEADER["sleepers"], 0b111)
    image.publish("task")
    assert image.get(HEADER["sleepers"]) & 1 == 0  # the lowest; what flush does besides is its own matter
    assert image.get(image.slot(0, "bell"), U32) == 1


def test_sleeper_beside_a_ready_row_is_woken_by_the_second_scan(image: Image) -> None:
    image.publish("task")
    image.put(HEADER["sleepers"], 0b110)
    assert [_core.idle_scan(image.client) for _ in range(3)] == [0, 2, 0]
    assert image.get(HEADER["sleepers"]) == 0


def test_client_was_to_be_woken_by_the_dead(image: Image) -> None:
    """It took the flag and died before the bell: the monitor rings whatever the flag says."""
    image.put(HEADER["client_asleep"], 0, U32)
    before = image.get(HEADER["client_bell"], U32)
    image.die()
    assert image.get(HEADER["client_bell"], U32) == before + 1
    assert _core.wait(image.client, 0, 0)


# ---- the client cannot take a result: as if memory were short, its lists take nothing


@pytest.mark.parametrize("kind", ["small", "large", "plain chunk", "other chunk", "offered"])
def test_what_cannot_be_taken_is_found_again(image: Image, kind: str) -> None:
    if kind == "offered":
        offering(image)
        wanted = [("chunk", 0, [4, b"one", 4, b"two"], 38)]
    else:
        worker = image.worker()
        image.publish("task", items=2 if "chunk" in kind else 0)
        claim(worker)
        if "chunk" in kind:
            data = pickle.dumps(5, 5) if kind == "plain chunk" else b"five"
            _core.begin_items(worker)
            assert [_core.commit(worker, 0, data) for _ in range(2)] == [0, 0]
            wanted = [("task", 0, (5, 5) if kind == "plain chunk" else [0, data, 0, data], 2 * (16 + len(data)))]
        else:
            data = BIG if kind == "large" else b"small"
            assert _core.complete(worker, 4, data) == 0
            wanted = [("task", 4, data, len(data))]
    for _ in range(2):
        with pytest.raises(SystemError):
            _core.collect(image.client, image.tasks, (), 100, object(), (), None)  # type: ignore[arg-type]
    came = image.collect()
    assert [(*e[:2], bytes(e[2]) if kind == "large" else e[2], e[3]) for e in came] == wanted
    assert image.collect() == []
    del came
    if kind == "offered":
        image.die()
        image.settle()
    assert image.at_rest()


def test_the_dead_that_cannot_be_settled_are_found_again(image: Image) -> None:
    worker, row = image.worker(), image.publish("chunk", items=2)
    claim(worker)
    _core.begin_items(worker)
    assert _core.commit(worker, 4, b"one") == 0
    image.die()
    with pytest.raises(SystemError):
        _core.settle(image.client, image.tasks, *(_core.next_dead(image.client) or ()), ())
    assert image.tasks[row] == ("chunk",)
    assert image.settle() == [("chunk", _core.RUNNING, 2, 0, 0, [4, b"one"])]
    assert image.at_rest()


# ---- a chunk that waits for room offers what it has


def offering(image: Image) -> tuple[Handle, int]:
    """Item 3 of 3 runs and has no room; items 1 and 2 are offered."""
    worker, row = image.worker(), image.publish("chunk", items=3)
    claim(worker)
    _core.begin_items(worker)
    for data in (b"one", b"two"):
        assert _core.commit(worker, 4, data) == 0
    image.put(image.row(row, "word"), word(3, 0, 0, 1, 3))
    image.put(image.row(row, "offered"), 2, U32)
    image.put(HEADER["done"], 1 << row)
    image.put(HEADER["done_summary"], 1)
    return worker, row


def test_offered_items_are_collected_and_the_row_stays(image: Image) -> None:
    _, row = offering(image)
    assert [entry[:4] for entry in image.collect()] == [("chunk", 0, [4, b"one", 4, b"two"], 38)]
    assert image.get(image.row(row, "drained"), U32) == 2
    assert image.tasks[row] == ("chunk",)
    image.put(HEADER["done"], 1 << row)
    image.put(HEADER["done_summary"], 1)
    assert image.collect() == []  # not twice
    image.die()
    assert image.settle() == [("chunk", _core.STORING, 3, 0, 2, [])]
    assert image.at_rest()


def test_offered_but_died_before_it_was_collected(image: Image) -> None:
    offering(image)
    image.die()
    assert image.settle() == [("chunk", _core.STORING, 3, 0, 0, [4, b"one", 4, b"two"])]
    assert image.collect() == []
    assert image.at_rest()


def test_drained_and_died_between_the_steps_of_giving_the_run_back(image: Image) -> None:
    _, row = offering(image)
    for unit in (2, 3):
        image.put(image.unit(unit), owner(row, 1))
    assert len(image.collect()) == 1
    image.put(image.row(row, "result_len"), 0)
    image.put(image.row(row, "result_ref"), 0)
    image.die()
    assert image.settle() == [("chunk", _core.STORING, 3, 0, 2, [])]
    assert image.at_rest()


def test_rest_of_a_chunk_after_a_drain(image: Image) -> None:
    _, row = offering(image)
    image.collect()
    image.bytes[image.row(row, "body") : image.row(row, "body") + 21] = frame(4, b"three")
    image.put(image.row(row, "result_len"), 21)
    image.put(image.row(row, "word"), word(4, 0, 0, 1, 3))
    image.put(HEADER["done"], 1 << row)
    image.put(HEADER["done_summary"], 1)
    assert [entry[:4] for entry in image.collect()] == [("chunk", 2, [4, b"three"], 21)]
    assert image.at_rest()


def _waits(facts: bytes) -> list[int]:
    return [wait for _, wait, *_ in FACTS.iter_unpack(facts)]


def test_facts_of_a_task(image: Image) -> None:
    worker, row = image.worker(), image.publish("task", since=1000)
    claim(worker)
    _core.complete(worker, 1, b"x")
    image.put(image.row(row, "started"), 5000)
    image.put(image.row(row, "spent"), (77 | 11 << 16 | 12 << 32 | 13 << 48))
    ((*_, facts),) = image.collect()
    assert list(FACTS.iter_unpack(facts)) == [(77, 4000, 11, 12, 13, os.getpid(), 0)]


def test_facts_of_a_chunk_without_failures_are_those_of_the_whole(image: Image) -> None:
    row = finished(image, b"x", items=3)
    body = image.row(row, "body")
    for k, ns in enumerate([100, 20, 3]):
        image.put(body + k * len(frame(0, b"x")) + FRAME["spent"], ns)
    ((*_, facts),) = image.collect()
    assert [run for run, *_ in FACTS.iter_unpack(facts)] == [123]


@pytest.mark.parametrize("how", ["done", "offered", "died"])
def test_facts_of_a_chunk_with_a_failure(image: Image, how: str) -> None:
    """They take 100, 20 and 3 ns. The row says when the last one began, or the one after the offered ones, or that
    in which the worker died."""
    worker, row = image.worker(), image.publish("chunk", items=4 if how == "died" else 3, since=1000)
    claim(worker)
    _core.begin_items(worker)
    for k in range(2 if how == "offered" else 3):
        _core.commit(worker, k == 1, b"x")
    for k, ns in enumerate([100, 20, 3]):
        image.put(image.row(row, "body") + k * len(frame(0, b"x")) + FRAME["spent"], ns)
    image.put(image.row(row, "started"), 9000)
    if how == "offered":
        image.put(image.row(row, "word"), word(3, 0, 0, 1, 3))
        image.put(image.row(row, "offered"), 2, U32)
        image.put(HEADER["done"], 1 << row)
        image.put(HEADER["done_summary"], 1)
        ((*_, facts),) = image.collect()
        assert _waits(facts) == [8000 - 120, 8000 - 120, 8000 - 20]
    elif how == "done":
        ((*_, facts),) = image.collect()
        assert _waits(facts) == [8000 - 120, 8000 - 120, 8000 - 20, 8000]
        assert [run for run, *_ in FACTS.iter_unpack(facts)] == [123, 100, 20, 3]
    else:
        image.die()
        out: list[Any] = []
        _core.settle(image.client, image.tasks, *(_core.next_dead(image.client) or ()), out)
        assert _waits(out[0][-1]) == [8000, 8000 - 123, 8000 - 23, 8000 - 3]


@pytest.mark.parametrize("offered", [4, 4095, NO_UNIT])
def test_offers_more_than_it_has(image: Image, offered: int) -> None:
    _, row = offering(image)
    image.put(image.row(row, "offered"), offered, U32)
    assert image.collect() == []
    image.put(image.row(row, "offered"), 3, U32)  # no more than the chunk, but more than the frames
    image.put(HEADER["done"], 1 << row)
    image.put(HEADER["done_summary"], 1)
    with pytest.raises(Damaged, match="do not add up"):
        image.collect()


def test_died_in_an_item_that_was_collected_already(image: Image) -> None:
    """Cannot be: what is drained was committed. The row word lies, or the count."""
    _, row = offering(image)
    image.collect()
    image.put(image.row(row, "word"), word(3, 0, 0, 1, 2))
    image.die()
    with pytest.raises(Damaged, match="more results than it has"):
        image.settle()


def in_thread(body: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=body, daemon=True)
    thread.start()
    return thread


@pytest.mark.parametrize("workers", [2, 3])
def test_chunks_that_want_each_others_room(image: Image, workers: int) -> None:
    """Together they need several times the room there is. Real threads: `commit` waits, and lets others run."""
    sizes = [100, 2 * UNIT, 3 * UNIT, 50, 4 * UNIT - 16, 3 * UNIT, 0, 3 * UNIT]
    image.publish("waits", b"w" * 2 * UNIT)
    assert _core.cancel(image.client, image.tasks, 0)
    for k in range(workers):
        image.publish(str(k), items=len(sizes))
    codes: list[int] = []

    def work(slot: int) -> None:
        worker = image.worker(slot)
        while not (got := claim(worker)):
            pass
        codes.append(_core.begin_items(worker))
        for item, size in enumerate(sizes):
            codes.append(_core.commit(worker, item, bytes([slot, item]) * (size // 2)))
        assert got[3] == len(sizes)

    threads = [in_thread(lambda slot=slot: work(slot)) for slot in range(workers)]  # type: ignore[misc]
    results: dict[str, list[Any]] = {str(k): [] for k in range(workers)}
    while any(len(found) < 2 * len(sizes) for found in results.values()):
        for record, before, data, _, _ in image.collect():
            assert before * 2 == len(results[record])
            results[record] += data
            slot = results[record][1][0]  # whoever claimed it
            for kind, item in zip(data[::2], data[1::2], strict=True):
                assert item == bytes([slot, kind]) * (sizes[kind] // 2)
        _core.wait(image.client, 0, 20)
    assert len({found[1][0] for found in results.values()}) == workers
    for thread in threads:
        thread.join()
    assert set(codes) == {0}
    for found in results.values():
        assert found[::2] == list(range(len(sizes)))
    assert image.at_rest()


def test_result_that_can_never_be_sure_of_room(image: Image) -> None:
    """It must not wait: arguments of READY tasks may hold the lower half, functions stay in the upper one."""
    worker = image.worker()
    image.publish("task", b"a" * 4 * UNIT)
    claim(worker)
    assert _core.complete(worker, 0, b"r" * (4 * UNIT + 1)) == _core.TOO_LARGE
    assert image.units() == 4
    assert _core.complete(worker, 0, b"r" * 4 * UNIT) == 0
    assert image.results() == [("task", b"r" * 4 * UNIT)]
    assert _core.store_function(image.client, b"f") == 4
    image.publish("next")
    claim(worker)
    assert _core.complete(worker, 0, b"r" * (3 * UNIT + 1)) == _core.TOO_LARGE
    assert _core.complete(worker, 0, b"r" * 3 * UNIT) == 0


def test_strewn_arguments_leave_half_of_the_room_to_results(image: Image) -> None:
    """One worker, and tasks that wait for it: its result may take half of the room, whatever they carry."""
    rows = [image.publish(str(n), b"a" * UNIT) for n in range(4)]
    assert _core.publish(image.client, image.tasks, ("5",), 0, 0, 0, 0, BIG, 0, 0, 0, 1) == _core.NO_ROOM
    assert [image.get(image.unit(k)) for k in range(5)] == [*(owner(row, 1) for row in rows), 0]
    worker = image.worker()
    claim(worker)
    assert _core.complete(worker, 0, b"r" * 4 * UNIT) == 0
    assert len(image.results()) == 1


def test_arguments_stay_in_their_half(image: Image) -> None:
    """And results in the other: neither waits for the other's room."""
    rows = [image.publish(str(n), b"a" * UNIT) for n in range(4)]
    assert _core.publish(image.client, image.tasks, ("4",), 0, 0, 0, 0, b"a" * UNIT, 0, 0, 0, 1) == _core.NO_ROOM
    worker = image.worker()
    claim(worker)
    assert _core.complete(worker, 0, BIG) == 0
    assert image.owners() == [*(owner(row, 1) for row in rows), owner(rows[0], 1), owner(rows[0], 1), 0, 0]
    assert _core.publish(image.client, image.tasks, ("4",), 0, 0, 0, 0, b"a" * UNIT, 0, 0, 0, 1) == _core.NO_ROOM
    assert image.results() == [("0", BIG)]
    image.publish("4", b"a" * UNIT)


# ---- pieces


PIECES = (b"a", b"b" * 100, b"", b"c" * UNIT, b"d")


def stand_aligned(data: bytes) -> bool:
    """Whether `data` is PIECES, each at a multiple of ALIGN."""
    at = 0
    for piece in PIECES:
        at = -(-at // _core.ALIGN) * _core.ALIGN
        if data[at : at + len(piece)] != piece:
            return False
        at += len(piece)
    return at == len(data)


@pytest.mark.parametrize("count", range(1, len(PIECES) + 1))
def test_pieces_arrive_aligned(image: Image, monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """In a row, in units, as arguments and as a result."""
    monkeypatch.setattr(f"{__name__}.PIECES", PIECES[:count])
    worker = image.worker()
    image.publish("task", PIECES, flags=_core.PACKED)
    assert claim(worker)[4:] == (None, _core.PACKED)
    data = _core.arguments(worker)
    assert stand_aligned(bytes(data))
    assert (type(data) is bytearray) == (len(data) <= INLINE)
    assert _core.complete(worker, 0x85, PIECES) == 0
    [(record, kind, result, length, _)] = image.collect()
    assert (record, kind, length) == ("task", 0x85, len(result))
    assert stand_aligned(bytes(result))
    assert (type(result) is bytearray) == (len(result) < UNIT)
    del data, result
    assert image.at_rest()


def test_many_pieces(image: Image) -> None:
    """More than there is room for on the stack; and none at all."""
    pieces = tuple(bytes([n]) for n in range(200))
    worker = image.worker()
    for made in (pieces, ()):
        image.publish("task", made, flags=_core.PACKED)
        assert claim(worker)
        data = _core.arguments(worker)
        assert bytes(data)[:: _core.ALIGN] == b"".join(made)
        assert _core.complete(worker, 1, made) == 0
        [(_, result)] = image.results()
        assert result[:: _core.ALIGN] == b"".join(made)
        del data
    assert image.at_rest()


def test_a_piece_that_is_no_buffer(image: Image) -> None:
    """Nothing is published, and what was pinned is free again."""
    pinned = bytearray(b"x" * 10)
    with pytest.raises(TypeError):
        image.publish("task", (pinned, 5))  # type: ignore[arg-type]
    pinned.append(1)
    worker = image.worker()
    image.publish("task")
    claim(worker)
    with pytest.raises(TypeError):
        _core.complete(worker, 0, (pinned, 5))  # type: ignore[arg-type]
    pinned.append(1)
    assert _core.complete(worker, 0, b"") == 0
    assert image.results() == [("task", b"")]
    assert image.at_rest()


@pytest.mark.parametrize("flags", [0, _core.PACKED, _core.REPEATABLE, _core.PACKED | _core.REPEATABLE])
@pytest.mark.parametrize("size", [10, UNIT + 1])
def test_what_the_arguments_are(image: Image, flags: int, size: int) -> None:
    """The run itself if it is in the payload, unless another attempt may need it as it is; packed ones can be written
    to, and only then is a copy a bytearray."""
    worker = image.worker()
    image.publish("task", (b"a" * size,), flags=flags)
    got = claim(worker)
    if size == 10 and flags == 0:
        assert got[4] == b"a" * 10
    else:
        assert got[4:] == (None, flags)
    data = _core.arguments(worker)
    assert bytes(data) == b"a" * size
    copied = size == 10 or flags == _core.PACKED | _core.REPEATABLE
    assert type(data).__name__ == ("Run" if not copied else "bytearray" if flags & _core.PACKED else "bytes")
    if flags & _core.PACKED:
        memoryview(data)[0] = 0
        assert bytes(_core.arguments(worker))[0] == (ord("a") if copied else 0)


def test_items_of_a_chunk_are_copied(image: Image) -> None:
    """Packed ones so that they can be written to; however large: one run cannot be many values."""
    worker = image.worker()
    image.publish("chunk", items=3)
    claim(worker)
    _core.begin_items(worker)
    for kind, data in ((4, b"plain"), (0x84, (b"pack", b"ed")), (0x84, (b"", BIG))):
        assert _core.commit(worker, kind, data) == 0
    [(_, _, data, length, _)] = image.collect()
    assert data[::2] == [4, 0x84, 0x84]
    assert [type(item) for item in data[1::2]] == [bytes, bytearray, bytearray]
    assert data[1::2] == [b"plain", b"pack".ljust(64, data[3][4:5]) + b"ed", BIG]
    assert length == sum(16 + len(item) for item in data[1::2])
    assert image.at_rest()


# ---- results that the client looks at in place


def result_of(image: Image, size: int, kind: int = 0, slot: int = 0) -> Any:
    """Data of a result of so many bytes."""
    worker = image.worker(slot)
    image.publish("task")
    claim(worker)
    assert _core.complete(worker, kind, b"r" * size) == 0
    [(_, _, data, _, _)] = image.collect()
    assert bytes(data) == b"r" * size
    return data


@pytest.mark.parametrize("kind", [0, 0x80])
def test_large_results_are_views(image: Image, kind: int) -> None:
    for size in (0, INLINE, INLINE + 1, 32767):
        assert type(result_of(image, size, kind)) is (bytearray if kind else bytes)
        assert image.at_rest()
    for size in (32768, UNIT, 2 * UNIT):
        view = result_of(image, size, kind)
        assert len(view) == len(memoryview(view)) == size
        units = -(-size // UNIT)
        assert image.owners() == [0] * 4 + [VIEW] * units + [0] * (4 - units)
        assert _core.counters(image.client)["views"] == units
        part = memoryview(view)[1:2]
        del view  # something still looks into it
        assert image.units() == units
        del part
        assert _core.counters(image.client)["views"] == 0
        assert image.at_rest()


def test_views_are_at_most_a_quarter_of_the_room(image: Image) -> None:
    """Then results are copied, or there would be no room for those on their way."""
    first, second = result_of(image, UNIT), result_of(image, UNIT)
    assert image.owners() == [0] * 4 + [VIEW] * 2 + [0, 0]
    assert type(result_of(image, UNIT)) is bytes
    assert type(result_of(image, UNIT, 0x80)) is bytearray
    del first
    assert type(result_of(image, UNIT + 1)) is bytes  # one unit more than may be held
    third = result_of(image, UNIT)
    assert image.owners() == [0] * 4 + [VIEW] * 2 + [0, 0]
    del second, third
    assert image.at_rest()


def test_views_do_not_go_by_themselves(image: Image) -> None:
    """So a result does not wait for their room. It does for that of other results."""
    views = [result_of(image, UNIT) for _ in range(2)]
    worker, other = image.worker(), image.worker(1)
    del views[0]  # now one view stands in the middle
    image.publish("task"), image.publish("other")
    claim(worker), claim(other)
    assert _core.complete(worker, 0, b"r" * (2 * UNIT + 1)) == _core.TOO_LARGE
    assert _core.complete(worker, 0, b"r" * 2 * UNIT) == 0
    codes: list[int] = []
    thread = in_thread(lambda: codes.append(_core.complete(other, 0, b"o" * 2 * UNIT)))
    thread.join(0.1)
    assert thread.is_alive()
    assert image.state(1) == _core.STORING
    assert image.results() == [("task", b"r" * 2 * UNIT)]
    thread.join()
    assert codes == [0]
    assert image.results() == [("other", b"o" * 2 * UNIT)]


def test_units_beyond_a_view_are_free(image: Image) -> None:
    """A reference may name more units than the result has bytes for."""
    row = finished(image, b"r" * UNIT)
    for unit in (5, 6):
        image.put(image.unit(unit), owner(row, 1))
    image.put(image.row(row, "result_ref"), 4 << 32 | 3)
    [(_, _, data, _, _)] = image.collect()
    assert bytes(data) == b"r" * UNIT
    assert image.owners() == [0] * 4 + [VIEW, 0, 0, 0]
    del data
    assert image.at_rest()


def test_view_outlives_row_client_and_files(image: Image) -> None:
    """The bytes stay for as long as somebody looks at them."""
    view = memoryview(result_of(image, UNIT))
    for _ in range(ROWS + 1):
        assert result_of(image, 2 * UNIT, slot=1)
    image.client = None
    image.segment.close()
    assert bytes(view) == b"r" * UNIT


# ---- arguments that a task keeps


def keeping(image: Image, slot: int = 0, generation: int = 0, args: bytes = BIG) -> tuple[Handle, Any]:
    """A worker that runs a task whose arguments are in two units, and these."""
    worker = image.worker(slot, generation)
    image.publish("keeps", args)
    assert claim(worker)[4] is None
    return worker, _core.arguments(worker)


def test_arguments_are_the_workers_when_the_row_is_done(image: Image) -> None:
    worker, args = keeping(image, 1, 7)
    row = owner(0, 1)
    assert image.owners()[:3] == [row, row, 0]
    assert _core.complete(worker, 0, b"") == 0
    assert image.owners()[:3] == [owner_kept(1, 7)] * 2 + [0]  # before it is collected
    assert _core.kept(worker) == 2 * UNIT
    assert image.results() == [("keeps", b"")]
    assert image.units() == 2
    assert bytes(args) == BIG
    part = memoryview(args)[-1:]
    del args
    assert image.units() == 2
    del part
    assert _core.kept(worker) == 0
    assert image.at_rest()


def test_arguments_dropped_in_time_are_the_clients_to_free(image: Image) -> None:
    worker, args = keeping(image)
    del args
    assert image.owners()[:2] == [owner(0, 1)] * 2
    assert _core.complete(worker, 0, b"") == 0
    assert _core.kept(worker) == 0
    assert image.units() == 2
    assert image.results() == [("keeps", b"")]
    assert image.at_rest()


def test_chunk_keeps_its_arguments_from_its_last_item_on(image: Image) -> None:
    worker = image.worker()
    image.publish("chunk", BIG, items=2)
    claim(worker)
    args = _core.arguments(worker)
    _core.begin_items(worker)
    assert _core.commit(worker, 0, b"1") == 0
    assert image.owners()[:2] == [owner(0, 1)] * 2
    assert _core.commit(worker, 0, b"2") == 0
    assert image.owners()[:2] == [owner_kept(0, 0)] * 2
    assert image.results() == [("chunk", [0, b"1", 0, b"2"])]
    assert bytes(args) == BIG
    del args
    assert image.at_rest()


def test_what_is_kept_may_never_go(image: Image) -> None:
    """So nobody waits for it, but for what is in flight."""
    worker, args = keeping(image, args=b"k" * 2 * UNIT)
    publish = (image.client, image.tasks, ("more",), 0, 0, 0, 0, b"a" * 3 * UNIT, 0, 0, 0, 1)
    assert _core.publish(*publish) == _core.NO_ROOM
    assert _core.complete(worker, 0, b"") == 0
    assert _core.publish(*publish) == _core.NO_ROOM  # not collected
    assert len(image.results()) == 1
    assert _core.publish(*publish) == _core.TOO_LARGE
    image.publish("small", b"a" * UNIT)
    assert _core.publish(*publish) == _core.NO_ROOM
    assert claim(worker)[4] is None
    assert _core.complete(worker, 0, b"") == 0
    assert len(image.results()) == 1
    del args
    assert _core.publish(*publish) >= 0


def test_kept_by_the_dead(image: Image) -> None:
    """Freed when the death is settled, and no sooner; what others keep stays, a successor's in the same slot too."""
    dead, young, other = (
        keeping(image, slot, generation, b"k" * UNIT) for slot, generation in ((0, 0), (0, 1), (1, 0))
    )
    for worker, _ in (dead, young, other):
        assert _core.complete(worker, 0, b"") == 0
    assert len(image.results()) == 3
    assert image.owners()[:4] == [owner_kept(0, 0), owner_kept(0, 1), owner_kept(1, 0), 0]
    image.die(0, 0)
    assert image.units() == 3
    assert image.settle() == []
    assert image.owners()[:4] == [0, owner_kept(0, 1), owner_kept(1, 0), 0]
    image.die(1, 0)
    image.settle()
    row = image.publish("next", b"n" * UNIT)
    assert image.owners()[:4] == [owner(row, 2), owner_kept(0, 1), 0, 0]
    del dead, other  # no second time: their units may be somebody else's
    assert image.owners()[:4] == [owner(row, 2), owner_kept(0, 1), 0, 0]


@pytest.mark.parametrize("generation", [0xFFFF, 0x1FFFF, 0xFFFF_FFFF])
def test_kept_generations_have_all_their_bits(image: Image, generation: int) -> None:
    after = (generation + 1) & 0xFFFF_FFFF
    _, old = keeping(image, 0, generation)
    _, young = keeping(image, 0, after)
    for unit, keeper in ((0, generation), (1, generation), (2, after), (3, after)):
        image.put(image.unit(unit), owner_kept(0, keeper))
    for field in ("reaped", "settled"):
        image.put(image.slot(0, field), generation, U32)
    image.die(0, generation)
    image.settle()
    assert image.owners()[:4] == [0, 0, owner_kept(0, after), owner_kept(0, after)]
    image.die(0, after)
    image.settle()
    assert image.at_rest()
    del old, young


@pytest.mark.parametrize("given", [0, 1, 2])
def test_died_while_it_took_its_arguments_over(image: Image, given: int) -> None:
    """Of two units it has taken none, one, both; the row is not done."""
    worker, args = keeping(image, 1, 3)
    for unit in range(given):
        image.put(image.unit(unit), owner_kept(1, 3))
    image.die(1, 3)
    assert image.settle() == [("keeps", _core.RUNNING, 0, 3, 0, [])]
    assert image.at_rest()
    image.publish("again", BIG)
    del args, worker
    assert image.owners()[:3] == [owner(0, 2)] * 2 + [0]


def test_died_done_with_its_arguments_and_not_collected(image: Image) -> None:
    worker, args = keeping(image)
    assert _core.complete(worker, 0, b"x") == 0
    image.die()
    assert image.settle() == []
    assert image.units() == 0
    image.publish("other", b"o" * UNIT)  # in the units that were the row's
    assert image.results() == [("keeps", b"x")]
    assert image.owners()[:2] == [owner(1, 1), 0]
    del args


def test_lost_with_its_arguments(image: Image) -> None:
    """Condemned while it completes: it may have taken them over by then."""
    worker, args = keeping(image)
    assert _core.condemn(image.client, 0, _core.row_word(image.client, 0)[4])
    assert _core.complete(worker, 0, b"late") == _core.LOST
    image.die()
    assert image.settle() == [("keeps", _core.CONDEMNED, 0, 0, 0, [])]
    assert image.at_rest()
    del args
    assert image.at_rest()


def test_result_too_large_then_smaller_with_kept_arguments(image: Image) -> None:
    worker, args = keeping(image)
    assert _core.complete(worker, 0, b"r" * (4 * UNIT + 1)) == _core.TOO_LARGE
    assert image.owners()[:2] == [owner(0, 1)] * 2
    assert _core.complete(worker, 0, b"small") == 0
    assert image.owners()[:2] == [owner_kept(0, 0)] * 2
    assert image.results() == [("keeps", b"small")]
    del args
    assert image.at_rest()


def test_dropped_by_a_thread_while_its_task_waits_for_room(image: Image) -> None:
    """By then it was to be kept. Nobody holds it any more when the row is done."""
    row = finished(image, b"r" * 4 * UNIT)
    worker, args = keeping(image, 1)
    thread = in_thread(lambda: _core.complete(worker, 0, b"k" * UNIT) and None)
    thread.join(0.1)
    assert image.state(1 - row) == _core.STORING
    del args
    assert image.owners()[:2] == [owner(1 - row, 1)] * 2
    assert len(image.results()) == 1
    thread.join()
    assert image.owners()[:2] == [0, 0]
    assert _core.kept(worker) == 0
    assert image.results() == [("keeps", b"k" * UNIT)]
    assert image.at_rest()


def test_forks_while_runs_are_held() -> None:
    """What a child may look into is not given back: a worker's while it has children, a client's never. In a process of
    its own, which has no other children."""
    done = subprocess.run([sys.executable, __file__], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def forks_while_runs_are_held() -> None:
    image = Image()
    before = result_of(image, UNIT)
    worker, args = keeping(image, 1)
    assert _core.complete(worker, 0, b"") == 0
    running, late = keeping(image, 2)
    image.results()
    child = fork_and_wait()
    after = result_of(image, UNIT)
    kept, mine = owner_kept(1, 0), owner(1, 1)
    assert image.owners() == [kept, kept, mine, mine, VIEW, VIEW, 0, 0]
    del args
    assert image.owners()[:2] == [kept, kept]  # the child's for now, so for as long as the worker lives
    assert _core.kept(worker) == 2 * UNIT
    del after
    assert image.owners()[4:] == [VIEW, 0, 0, 0]  # made after the fork
    del late
    assert _core.complete(running, 0, b"") == 0
    assert image.owners()[2:4] == [owner_kept(2, 0)] * 2
    assert _core.kept(running) == 2 * UNIT
    assert len(image.results()) == 1
    end(child)
    del before  # the client's children are nobody's to wait for
    assert image.owners()[4:] == [VIEW, 0, 0, 0]
    for slot in (1, 2):
        image.die(slot)
    image.settle()
    assert image.owners() == [0] * 4 + [VIEW, 0, 0, 0]

    # A child that has ended before the run is dropped harms nobody.
    worker, args = keeping(image, 1, 1)
    end(fork_and_wait())
    assert _core.complete(worker, 0, b"") == 0
    image.results()
    del args
    assert image.owners()[:2] == [0, 0]
    worker, args = keeping(image, 2, 1)
    end(fork_and_wait())
    del args
    assert _core.complete(worker, 0, b"") == 0
    image.results()
    assert image.owners()[:4] == [0] * 4


def fork_and_wait() -> int:
    _core.forked()
    if child := os.fork():
        return child
    _core.die_with_parent(signal.SIGKILL)
    signal.pause()
    os._exit(0)


def end(child: int) -> None:
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


# ---- generations


def test_the_dead_and_the_living_successor(image: Image) -> None:
    old = image.publish("old")
    claim(image.worker(0, 0))
    young = image.publish("young")
    successor = image.worker(0, 1)
    claim(successor)
    image.die(0, 0)
    assert image.settle() == [("old", _core.RUNNING, 0, 0, 0, [])]
    assert (image.state(old), image.state(young)) == (_core.FREE, _core.RUNNING)
    assert _core.running(successor, 0)[1:3] == (1, young)  # type: ignore[index]
    assert _core.complete(successor, 0, b"") == 0
    assert image.results() == [("young", b"")]


@pytest.mark.parametrize("dead", [0xFFFF, 0x1FFFF, 0xFFFF_FFFF])
def test_generations_wrap(image: Image, dead: int) -> None:
    """A row names 16 bits of a generation only."""
    alive = (dead + 1) & 0xFFFF_FFFF
    for k in (0, 1):
        image.publish(f"task {k}")
    claim(image.worker(0, dead))
    claim(image.worker(0, alive))
    image.put(image.slot(0, "reaped"), dead, U32)
    image.put(image.slot(0, "settled"), dead, U32)
    image.die(0, dead)
    assert image.settle() == [("task 0", _core.RUNNING, 0, 0xFFFF, 0, [])]
    image.die(0, alive)
    assert image.settle() == [("task 1", _core.RUNNING, 0, 0, 0, [])]
    assert image.at_rest()


def test_several_deaths_at_once(image: Image) -> None:
    for generation in range(_core.DEATHS):
        assert _core.may_fork(image.client, 0, generation)
        image.publish(f"task {generation}")
        claim(image.worker(0, generation))
        image.die(0, generation, status=generation)
    assert not _core.may_fork(image.client, 0, _core.DEATHS)
    assert _core.next_dead(image.client) == (0, 4)
    assert [_core.death(image.client, 0, g) for g in range(5)] == [*((1000 + g, g, 0, 0) for g in range(4)), None]
    assert [(record, generation) for record, _, _, generation, *_ in image.settle()] == [
        (f"task {g}", g) for g in range(4)
    ]
    assert _core.may_fork(image.client, 0, _core.DEATHS)


def test_death_record_not_yet_written(image: Image) -> None:
    image.publish("task")
    claim(image.worker(0, 0))
    assert _core.death(image.client, 0, 0) is None  # and not the zeros of a log that nobody wrote to
    assert _core.next_dead(image.client) is None
    # The monitor has written the record, and dies before it says so.
    at = image.slot(0, "deaths")
    for field, number in (("generation", 0), ("pid", 77), ("status", 9)):
        image.put(at + DEATH[field], number, U32)
    assert _core.death(image.client, 0, 0) is None
    assert image.settle() == []
    # The last step but one: reaped is there, the counter is not.
    image.put(image.slot(0, "reaped"), 1, U32)
    assert _core.death(image.client, 0, 0) == (77, 9, 0, 0)
    assert _core.death(image.client, 0, 1) is None
    assert _core.death(image.client, 0, 4) is None
    assert image.settle() == []
    image.put(HEADER["deaths"], 1, U32)
    assert [record for record, *_ in image.settle()] == ["task"]
    assert _core.next_dead(image.client) is None


def test_nobody_has_the_number_of_the_dead(image: Image) -> None:
    for generation in range(2):
        _core.slot_begin(image.client, 1, generation)
        assert _core.slot_info(image.client, 1)["pid"] == 0
        _core.slot_forked(image.client, 1, 4321)
        assert _core.slot_info(image.client, 1)["pid"] == 4321
        image.die(1, generation)
        assert _core.slot_info(image.client, 1)["pid"] == 0  # the kernel may give it to a stranger now


def test_log_entry_of_another_generation(image: Image) -> None:
    image.die(0, 1)
    image.put(image.slot(0, "reaped"), 6, U32)  # says that 5 is dead, too; but the entry is that of 1
    assert _core.death(image.client, 0, 5) is None
    assert _core.death(image.client, 0, 1) == (1001, 9, 0, 0)


def test_running_asks_the_row(image: Image) -> None:
    """The slot's hints may be anything."""
    worker = image.worker(1, 3)
    row = image.publish("task", timeout_ms=5)
    assert _core.running(worker, 1) is None  # intent 0 without a claim
    for intent in (ROWS, 0xFFFF_FFFF):
        image.put(image.slot(1, "intent"), intent, U32)
        assert _core.running(worker, 1) is None
    claim(worker)
    found = _core.running(worker, 1)
    assert found is not None
    assert found[:4] == (1, 3, row, 5)
    assert found[5] > 0
    image.put(image.slot(1, "started_word"), 0)  # died, or is stopped, before its stamp
    assert _core.running(worker, 1) == (*found[:5], 0)
    image.put(image.slot(1, "generation"), 4, U32)  # the next generation already, this row is the dead's
    assert _core.running(worker, 1) is None


def test_the_start_of_an_earlier_task_is_not_taken_for_that_of_this_one(image: Image) -> None:
    """The row words of two tasks of one worker are the same, if their rows were used equally often."""
    worker = image.worker()
    rows = [image.publish("timed", timeout_ms=5), image.publish("other")]
    claim(worker)
    earlier = _core.running(worker, 0)
    assert earlier is not None
    assert earlier[5] > 0
    assert _core.complete(worker, 0, b"") == 0
    claim(worker)
    assert rows[0] != rows[1]
    later = _core.running(worker, 0)
    assert later is not None
    assert later[:5] == (0, 0, rows[1], 0, earlier[4])
    assert later[5] > earlier[5]


def test_condemn_only_what_it_saw(image: Image) -> None:
    worker, row = image.worker(), image.publish("task")
    assert not _core.condemn(image.client, row, _core.row_word(image.client, row)[4])  # ready: cancel it
    claim(worker)
    seen = _core.row_word(image.client, row)[4]
    for other in (seen + 1, seen ^ 1 << 12, seen ^ 1 << 28, seen ^ 1 << 52, 0):
        assert not _core.condemn(image.client, row, other)
    assert _core.condemn(image.client, row, seen)
    assert not _core.condemn(image.client, row, seen)
    assert _core.complete(worker, 0, b"late") == _core.LOST
    assert image.collect() == []
    image.die()
    assert image.settle() == [("task", _core.CONDEMNED, 0, 0, 0, [])]
    assert image.at_rest()


def test_more_deadlines_than_fit() -> None:
    """64 are reported at once; the next look for the rest is now, not after the shortest deadline."""
    segment = Segment.create(70, 70, rows=70, room=UNIT)
    client = segment.attach()
    _core.open_client(client)
    tasks: list[tuple[int] | None] = [None] * 70
    workers = []
    for k in range(70):
        _core.publish(client, tasks, (k,), 0, 0, 0, 0, b"", 0, 1_000_000, 0, 1)
        worker = segment.attach()
        _core.slot_begin(worker, k, 0)
        _core.open_worker(worker, k, 0)
        assert _core.claim(worker, 0, 0)
        workers.append(worker)
    with mmap.mmap(segment.control, os.fstat(segment.control).st_size) as view:
        for k in range(70):
            struct.pack_into(U64, view, slots_at(70) + k * SIZES["ipc_slot"] + SLOT["started"], 1)
        _, after, expired = _core.deadlines(client, False)
        if expired:  # not in the first 1000 s after the machine started
            assert [slot for slot, *_ in expired] == list(range(64))
            assert after == 0.0
            for _, _, row, _, seen, _ in expired:
                assert _core.condemn(client, row, seen)
            assert [slot for slot, *_ in _core.deadlines(client, False)[2]] == list(range(64, 70))
    segment.close()


# ---- damage: results


def finished(image: Image, data: bytes = b"x", items: int = 0) -> int:
    worker, row = image.worker(), image.publish("task", items=items)
    claim(worker)
    if items:
        _core.begin_items(worker)
        for _ in range(items):
            assert _core.commit(worker, 0, data) == 0
    else:
        assert _core.complete(worker, 0, data) == 0
    return row


def expect_damage(image: Image, match: str) -> None:
    """Each way to the result says so, as often as it is asked, and the rest still works."""
    with pytest.raises(Damaged, match=match):
        image.collect()
    assert image.collect() == []  # its hint is spent
    other = image.worker(1)
    image.publish("other", b"o")
    assert claim(other)[4] == b"o"
    assert _core.complete(other, 0, b"fine") == 0
    assert image.results() == [("other", b"fine")]
    assert [_core.idle_scan(image.client) for _ in range(2)] == [0, 1]
    with pytest.raises(Damaged, match=match):
        image.collect()
    image.die()
    assert image.settle() == []  # finished, so to be collected
    with pytest.raises(Damaged, match=match):
        image.collect()


@pytest.mark.parametrize(
    ("unit", "count"),
    [(8, 1), (7, 2), (0, 9), (0, NO_UNIT), (NO_UNIT, 0), (NO_UNIT, 1), (NO_UNIT, NO_UNIT), (0x7FFF_FFFF, 0x8000_0002)],
)
def test_reference_outside_the_room(image: Image, unit: int, count: int) -> None:
    row = finished(image, BIG)
    image.put(image.row(row, "result_ref"), unit << 32 | count)
    expect_damage(image, "outside its room")


@pytest.mark.parametrize("unit", [0, 1, 2, 3, 4, 5, 7])
def test_reference_to_units_of_others(image: Image, unit: int) -> None:
    """0, 1: arguments of another row; 2: kept by a worker; 4: a function; 5: a value of the program; else: nobody's."""
    image.publish("victim", BIG)
    assert _core.store_function(image.client, b"f") == 4
    image.put(image.unit(2), owner_kept(2, 0))
    image.put(image.unit(5), VIEW)
    claim(image.worker(2))
    row = finished(image, b"small")
    image.put(image.row(row, "result_ref"), unit << 32 | 1)
    expect_damage(image, "outside its room")
    assert image.owners() == [owner(0, 1), owner(0, 1), owner_kept(2, 0), 0, 1 << 62, VIEW, 0, 0]


def test_reference_to_units_of_an_older_use_of_the_row(image: Image) -> None:
    row = finished(image, BIG)
    for unit in (4, 5):
        image.put(image.unit(unit), owner(row, 0))
    expect_damage(image, "outside its room")


@pytest.mark.parametrize(
    ("data", "length"),
    [(b"x", INLINE + 1), (b"x", (1 << 64) - 1), (BIG, 2 * UNIT + 1), (BIG, 1 << 63), (BIG, (1 << 64) - 1)],
)
def test_length_beyond_the_room(image: Image, data: bytes, length: int) -> None:
    row = finished(image, data)
    image.put(image.row(row, "result_len"), length)
    expect_damage(image, "outside its room")


def test_bad_reference_of_the_dead_frees_nothing_of_others(image: Image) -> None:
    victim = image.publish("victim", BIG)
    claim(image.worker(1))
    row = image.publish("task")
    claim(image.worker(0))
    for ref in (0 << 32 | 2, 0 << 32 | NO_UNIT, NO_UNIT << 32 | NO_UNIT, 7 << 32 | 9):
        image.put(image.row(row, "result_ref"), ref)
    image.die()
    assert image.settle() == [("task", _core.RUNNING, 0, 0, 0, [])]
    assert image.get(image.unit(0)) == image.get(image.unit(1)) == owner(victim, 1)


@pytest.mark.parametrize(
    ("at", "number"),
    [
        ("body", (1 << 56) - 1),  # the first frame is longer than the room
        ("body", 0),  # and here shorter than it was: the second is read from the wrong place
        ("result_len", 0),
        ("result_len", 15),  # not even a frame
        ("result_len", 53),  # one byte less than the three
    ],
)
def test_frames_that_do_not_add_up(image: Image, at: str, number: int) -> None:
    row = finished(image, b"ab", items=3)
    assert image.get(image.row(row, "result_len")) == 54
    image.put(image.row(row, at), number)
    expect_damage(image, "do not add up")


@pytest.mark.parametrize(
    ("at", "number", "match"),
    [
        ("result_len", 0, "do not add up"),
        ("result_len", 19, "do not add up"),
        ("result_len", INLINE + 1, "more results than it has"),
        ("result_ref", 8 << 32 | 1, "more results than it has"),
        ("body", 1 << 40, "do not add up"),
        ("word", word(2, 0, 0, 1, 5), "more results than it has"),
        ("word", word(2, 0, 0, 1, 4095), "more results than it has"),
        ("word", word(5, 0, 0, 1, 4), "more results than it has"),
    ],
)
def test_frames_of_the_dead_do_not_add_up(image: Image, at: str, number: int, match: str) -> None:
    worker, row = image.worker(), image.publish("chunk", items=3)
    claim(worker)
    _core.begin_items(worker)
    for _ in range(2):
        assert _core.commit(worker, 0, b"ab") == 0
    image.put(image.row(row, at), number)
    image.die()
    for _ in range(2):  # the row stays, so does the record
        with pytest.raises(Damaged, match=match):
            image.settle()
        assert image.tasks[row] == ("chunk",)


def test_row_says_another_number_of_items(image: Image) -> None:
    """The client believes its own number; the worker never reads beyond what a chunk may have."""
    worker, row = image.worker(), image.publish("chunk", items=2)
    image.put(image.row(row, "items"), 4095, U32)
    assert claim(worker)[3] == 0
    assert _core.complete(worker, 0, b"not a frame") == 0
    with pytest.raises(Damaged, match="do not add up"):
        image.collect()


# ---- damage: arguments


@pytest.mark.parametrize(
    ("field", "form", "number"),
    [
        ("args_len", U64, INLINE + 1),
        ("args_len", U64, (1 << 64) - 1),
        ("args_unit", U32, 8),
        ("args_unit", U32, NO_UNIT - 1),
    ],
)
def test_arguments_outside_the_room(image: Image, field: str, form: str, number: int) -> None:
    worker, row = image.worker(), image.publish("task", b"abc")
    image.put(image.row(row, field), number, form)
    with pytest.raises(Damaged, match="points outside its room"):
        claim(worker)
    image.die()
    assert [record for record, *_ in image.settle()] == ["task"]


@pytest.mark.parametrize(
    ("field", "form", "number"),
    [
        ("args_unit", U32, 7),
        ("args_unit", U32, NO_UNIT),
        ("args_len", U64, UNITS * UNIT + 1),
        ("args_len", U64, 1 << 63),
    ],
)
def test_large_arguments_outside_the_room(image: Image, field: str, form: str, number: int) -> None:
    worker, row = image.worker(), image.publish("task", BIG)
    image.put(image.row(row, field), number, form)
    with pytest.raises(Damaged, match="points outside its room"):
        claim(worker)
    image.die()
    image.settle()
    assert image.at_rest()  # the client knows which units it gave


@pytest.mark.parametrize(("field", "number"), [("fn_unit", 8), ("fn_unit", NO_UNIT), ("fn_len", NO_UNIT), ("fn", 0)])
def test_function_outside_the_room(image: Image, field: str, number: int) -> None:
    worker = image.worker()
    unit = _core.store_function(image.client, b"f" * 10)
    row = _core.publish(image.client, image.tasks, ("task",), 1, 1, unit, 10, b"", 0, 0, 0, 1)
    assert claim(worker)
    assert _core.claimed_function(worker) == b"f" * 10
    image.put(image.row(row, field), number, U32)
    if field == "fn":  # then nothing has checked the unit
        image.put(image.row(row, "fn_unit"), NO_UNIT, U32)
    with pytest.raises(Damaged, match="points outside its room"):
        _core.claimed_function(worker)


# ---- damage: the ring


@pytest.mark.parametrize("entry", [1 << 32 | 8, 1 << 32 | NO_UNIT, (1 << 64) - 1, 0, 2 << 32 | 0, 1 << 32 | 3])
def test_ring_entry_is_not_what_was_published(image: Image, entry: int) -> None:
    """Row out of range, wrong use, wrong row: nobody is harmed, and the task whose entry it was is entered again."""
    worker = image.worker()
    row = image.publish("task", b"t")
    assert row == 0
    image.put(image.ring(0), entry)
    assert claim(worker) is None
    assert image.get(HEADER["head"]) == 1
    assert _core.idle_scan(image.client) == 1
    assert _core.idle_scan(image.client) == 0
    assert claim(worker)[4] == b"t"
    assert claim(worker) is None
    assert _core.idle_scan(image.client) == 0
    assert _core.complete(worker, 0, b"x") == 0
    assert image.results() == [("task", b"x")]
    assert image.at_rest()


def test_entered_again_and_cancelled(image: Image) -> None:
    row = image.publish("task")
    image.put(image.ring(0), NO_UNIT)
    image.put(HEADER["sleepers"], 0b001)
    assert claim(image.worker(1)) is None
    assert _core.idle_scan(image.client) == 1
    assert image.get(HEADER["sleepers"]) == 0  # who sleeps is woken for it
    assert _core.cancel(image.client, image.tasks, row)
    assert claim(image.worker(1)) is None
    assert [image.publish(str(n)) for n in range(ROWS)]


def test_one_row_twice_in_the_ring(image: Image) -> None:
    worker, other = image.worker(0), image.worker(1)
    image.publish("first", b"1"), image.publish("second", b"2")
    image.put(image.ring(1), image.get(image.ring(0)))
    assert claim(worker)[4] == b"1"
    assert claim(other) is None
    assert _core.idle_scan(image.client) == 1
    assert claim(other)[4] == b"2"


@pytest.mark.parametrize(("field", "number"), [("head", 2), ("head", 1 << 63), ("tail", 0), ("tail", 1 << 63)])
def test_impossible_head_or_tail(image: Image, field: str, number: int) -> None:
    worker = image.worker()
    image.publish("task", b"t")
    image.put(HEADER[field], number)
    assert claim(worker) is None  # and does not walk through the numbers up to tail
    assert _core.counters(image.client)["ready"] >= 0
    _core.flush(image.client)
    with pytest.raises(Damaged, match="impossible"):
        _core.idle_scan(image.client)


# ---- damage: words that nobody would move on


@pytest.mark.parametrize("claimed", [False, True])
@pytest.mark.parametrize("bit", range(52))
def test_one_bit_of_a_word_is_wrong(image: Image, bit: int, claimed: bool) -> None:
    """The task ends, or whoever waits for it is told. Never neither."""
    worker, _, _ = (image.worker(slot) for slot in range(SLOTS))
    row = image.publish("task", b"t")
    if claimed:
        claim(worker)
    at = image.row(row, "word")
    image.put(at, image.get(at) ^ 1 << bit)
    try:
        assert _core.idle_scan(image.client) == 0
        if claimed:  # its own word is another one now: it leaves, and its slot is settled
            assert _core.complete(worker, 0, b"x") == _core.LOST
            image.die()
        elif claim(worker) is not None:
            _core.complete(worker, 0, b"x")
        ended = len(image.settle()) + len(image.collect())
        if not ended:  # it looks as if somebody were at it, who has nothing to do now
            image.put(HEADER["sleepers"], (1 << SLOTS) - 1)
        _core.idle_scan(image.client), _core.idle_scan(image.client)
        assert ended + len(image.collect()) == 1
    except Damaged:
        return


def test_a_word_whose_owner_sleeps_is_damaged(image: Image) -> None:
    image.worker(0), image.worker(1)
    row = image.publish("task")
    image.put(image.row(row, "word"), word(2, slot=1, seq=1))
    _core.idle_scan(image.client)  # it may be at work
    image.put(HEADER["sleepers"], 0b01)
    _core.idle_scan(image.client)
    image.put(HEADER["sleepers"], 0b10)
    with pytest.raises(Damaged, match="impossible"):
        _core.idle_scan(image.client)


# ---- damage: random bytes


@pytest.mark.parametrize("seed", range(40))
def test_noise(image: Image, seed: int) -> None:
    """Whatever stands in rows, slots, owners and bits: an outcome or Damaged, no crash and no endless loop."""
    noise = random.Random(seed)
    workers = [image.worker(slot) for slot in range(SLOTS)]
    for n in range(6):
        image.publish(str(n), BIG if n == 0 else b"a", items=n % 3, timeout_ms=n)
    for worker in workers:
        claim(worker)
    places = [*range(HEADER["client_asleep"], image.ring(0), 4), *range(image.ring(0), len(image.bytes) - 3, 4)]
    stop = HEADER["stop"]
    for at in noise.choices(places, k=noise.choice([3, 30, 1000])):
        if at != stop:
            image.put(at, noise.choice([0, 1, 4, noise.getrandbits(32), NO_UNIT]), U32)
    steps = [
        image.collect,
        image.settle,
        lambda: _core.idle_scan(image.client),
        lambda: _core.flush(image.client),
        lambda: [_core.running(image.client, slot) for slot in range(SLOTS)],
        lambda: _core.deadlines(image.client, False),
        lambda: _core.limited(image.client),
        lambda: [claim(worker) for worker in workers],
        lambda: [_core.complete(worker, 0, b"small") for worker in workers],
        lambda: _core.wait(image.client, 0, 0),
        lambda: [_core.cancel(image.client, image.tasks, row) for row in range(ROWS)],
        lambda: [_core.death(image.client, slot, 0) for slot in range(SLOTS)],
        lambda: image.die(noise.randrange(SLOTS), 0),
        lambda: image.publish("more"),
    ]
    for _ in range(60):
        step = noise.choice(steps)
        with contextlib.suppress(Damaged, AssertionError):
            step()


if __name__ == "__main__":
    forks_while_runs_are_held()
