"""The whole protocol, step by step in one thread, against a model in plain Python.

One client, three workers and a monitor share one segment in this process, a capsule each. Hypothesis picks what happens
next: publish, claim, a result, a deadline, a death between or inside of steps, its log, a restart, a settle. The model
knows rows, ring and tasks; after every step the segment must agree with it. At the end everything is brought to rest:
each task has ended exactly once with the right results, and every row and unit is free again.
"""

import mmap
import os
import struct
from dataclasses import dataclass, field
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from test_layout import CONSTANTS, HEADER, owner, owners_at, rows_at

from ipc import _core
from ipc.segment import Segment

ROWS, SLOTS, UNITS = 8, 3, 8
UNIT = 65536
INLINE = CONSTANTS["IPC_INLINE"]
ATTEMPTS = 3
FUNCTION = 1 << 62
SIZES = st.sampled_from([0, 1, 100, 212, INLINE, INLINE + 1, UNIT, *(n * UNIT + 1 for n in (1, 2, 3, 4, 8))])
SLOT = st.integers(0, SLOTS - 1)


@dataclass
class Task:
    """What the user wants: the results of all items, or an end without them."""

    number: int
    items: list[int]  # 0 for a single task, 1..n for the items of a chunk
    results: dict[int, bytes] = field(default_factory=dict, repr=False)
    failed: set[int] = field(default_factory=set)
    cancelled: bool = False
    claims: int = 0
    attempts: int = 0  # that ended: with a result, or by a death

    def ended(self) -> bool:
        return self.cancelled or len(self.results) + len(self.failed) == len(self.items)


@dataclass(eq=False)
class Use:
    """One use of a row: one attempt of what is left of a task. This object is the record in the client's list."""

    task: Task
    items: list[int]
    attempt: int
    row: int
    args: bytes = field(repr=False)
    armed: bool
    function: bytes | None = field(repr=False)
    state: int = _core.READY
    slot: int = -1
    generation: int = -1
    item: int = 0  # as in the row word
    results: list[bytes] = field(default_factory=list, repr=False)
    room: int = INLINE
    used: int = 0
    hinted: bool = True

    @property
    def chunk(self) -> bool:
        return self.items != [0]


class Protocol(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.segment = Segment.create(SLOTS, 2, rows=ROWS, room=UNITS * UNIT)
        self.bytes = mmap.mmap(self.segment.control, os.fstat(self.segment.control).st_size)
        self.client: Any = self.segment.attach()
        self.monitor: Any = self.segment.attach()
        _core.open_client(self.client)
        self.records: list[tuple[Use] | None] = [None] * ROWS
        self.tasks: list[Task] = []
        self.live: dict[int, Use] = {}  # row → use, published and not given back
        self.ring: list[tuple[int, Use]] = []  # entries between head and tail
        self.worker: list[Any] = [None] * SLOTS
        self.holds: list[Use | None] = [None] * SLOTS
        self.generation = [-1] * SLOTS
        self.unlogged: set[int] = set()  # dead, and the monitor has not waited for them
        self.settled = [0] * SLOTS
        self.functions: list[tuple[int, bytes]] = []
        self.again: list[tuple[Task, list[int]]] = []  # to be published again
        self.unhinted_scans = 0

    def teardown(self) -> None:
        try:
            self.bring_to_rest()
        finally:
            self.bytes.close()
            self.segment.close()

    # ---- bytes

    def get(self, at: int) -> int:
        return int(struct.unpack_from("<Q", self.bytes, at)[0])

    def get32(self, at: int) -> int:
        return int(struct.unpack_from("<I", self.bytes, at)[0])

    def put(self, at: int, number: int) -> None:
        struct.pack_into("<Q", self.bytes, at, number)

    def owners(self) -> list[int]:
        return [self.get(owners_at(ROWS, SLOTS) + 8 * k) for k in range(UNITS)]

    def owner_of(self, use: Use) -> int:
        word = self.get(rows_at(ROWS, SLOTS) + 512 * use.row)
        return owner(use.row, word >> 28 & 0xFFFFFF)

    def longest_run(self, taken: list[bool]) -> int:
        longest = run = 0
        for busy in taken:
            run = 0 if busy else run + 1
            longest = max(longest, run)
        return longest

    # ---- the client

    def publish(self, task: Task, items: list[int], size: int, armed: bool, function: tuple[int, bytes] | None) -> bool:
        use = Use(task, items, task.claims + 1, -1, b"", armed, function[1] if function else None)
        use.args = (b"%d " % task.number).ljust(size, b".")
        unit, data = function if function else (0, b"")
        row = _core.publish(
            self.client, self.records, (use,), 7 if function else 0, 1, unit, len(data), use.args,
            len(items) if use.chunk else 0, 3_600_000 if armed else 0, 5 << 8, use.attempt,
        )  # fmt: skip
        busy = set(self.live) | {row for row, _ in self.ring}
        need = -(-len(use.args) // UNIT) if len(use.args) > INLINE else 0
        if row == _core.FULL:
            assert len(busy) == ROWS
        elif row == _core.TOO_LARGE:
            assert need > UNITS // 2
        elif row == _core.NO_ROOM:
            assert need > self.longest_run([bool(o) for o in self.owners()[: UNITS // 2]])
        else:
            assert row >= 0
            assert row not in busy
            assert need <= UNITS // 2
            use.row = row
            self.live[row] = use
            self.ring.append((row, use))
            return True
        return False

    @initialize()
    def boot(self) -> None:
        for slot in range(SLOTS):
            self.restart(slot)

    @rule(items=st.integers(0, 4), size=SIZES, armed=st.booleans(), function=st.integers(0, 2))
    def publish_new(self, items: int, size: int, armed: bool, function: int) -> None:
        task = Task(len(self.tasks), list(range(1, items + 1)) if items else [0])
        named = self.functions[function] if function < len(self.functions) else None
        if self.publish(task, task.items, size, armed, named):
            self.tasks.append(task)

    @precondition(lambda self: self.again)
    @rule()
    def publish_again(self) -> None:
        task, items = self.again[0]
        if self.publish(task, items, 10, False, None):
            self.again.pop(0)

    @rule(size=st.sampled_from([1, UNIT + 1]))
    def store_function(self, size: int) -> None:
        if len(self.functions) == 2:
            self.free_function()
            return
        data = (b"function %d" % len(self.functions)).ljust(size, b"!")
        unit = _core.store_function(self.client, data)
        if unit >= 0:
            self.functions.append((unit, data))
        else:
            assert unit == _core.NO_ROOM

    def free_function(self) -> None:
        unit, data = self.functions[-1]
        if not any(use.function == data for use in self.live.values()):
            self.functions.pop()
            _core.free_function(self.client, unit, len(data))

    @precondition(lambda self: self.live)
    @rule(pick=st.integers(0, ROWS))
    def cancel(self, pick: int) -> None:
        use = list(self.live.values())[pick % len(self.live)]
        assert _core.cancel(self.client, self.records, use.row) == (use.state == _core.READY)
        if use.state == _core.READY:
            assert self.records[use.row] is None
            del self.live[use.row]
            assert not use.task.cancelled
            use.task.cancelled = True

    @rule(most=st.integers(0, ROWS))
    def collect(self, most: int) -> None:
        inbox: list[Any] = []
        hinted = [use for use in self.live.values() if use.state == _core.DONE and use.hinted]
        assert _core.collect(self.client, self.records, inbox, most, object(), []) == len(inbox)
        # Each word of done bits is one; those whose hint got lost may come with their neighbours' scan, never without.
        assert min(most, len(hinted)) <= len(inbox) <= most
        for (use,), kind, data, slot, _ in inbox:
            assert self.live.pop(use.row) is use
            assert self.records[use.row] is None
            assert use.state == _core.DONE
            assert slot == use.slot
            if use.chunk:
                assert data[::2] == [k % 200 for k in use.items]
                data = data[1::2]
            else:
                assert kind == 9
                data = [data]
            assert data == use.results
            use.task.attempts += 1
            self.finish(use, use.results)

    def finish(self, use: Use, results: list[bytes]) -> None:
        for item, data in zip(use.items, results, strict=False):
            assert item not in use.task.results
            assert item not in use.task.failed
            use.task.results[item] = data

    @rule()
    def settle(self) -> None:
        while (dead := _core.next_dead(self.client)) is not None:
            slot, reaped = dead
            assert reaped == self.generation[slot] + (self.worker[slot] is None and slot not in self.unlogged)
            for generation in range(max(self.settled[slot], reaped - 4), reaped):
                assert _core.death(self.client, slot, generation) == (1000 + generation, generation % 256, _core.DIED)
            out: list[Any] = []
            _core.settle(self.client, self.records, slot, reaped, out)
            expected = {
                use.row: use
                for use in self.live.values()
                if use.slot == slot and use.generation < reaped and use.state in (_core.RUNNING, _core.CONDEMNED)
            }
            for (use,), state, item, generation, drained, results in out:
                assert expected.pop(use.row) is use
                assert (state, item, generation) == (use.state, use.item, use.generation)
                assert drained == 0  # that takes a worker that waits for room
                assert results[1::2] == use.results
                del self.live[use.row]
                use.task.attempts += 1
                self.finish(use, use.results)
                left = use.items[len(use.results) :]
                assert left
                if use.task.claims < ATTEMPTS and state != _core.CONDEMNED:
                    self.again.append((use.task, left))
                else:
                    use.task.failed.update(left)
            assert not expected
            for use in self.live.values():
                if use.slot == slot and use.generation < reaped:
                    assert use.state == _core.DONE
                    use.hinted = True
            _core.settled(self.client, slot, reaped)
            self.settled[slot] = reaped

    @rule(looks=st.lists(st.sampled_from(["flush", "wait", "idle_scan", "trim"]), min_size=1, max_size=3))
    def look(self, looks: list[str]) -> None:
        for name in looks:
            getattr(self, name)()

    def flush(self) -> None:
        assert _core.flush(self.client) == 0  # nobody sleeps

    def wait(self) -> None:
        hinted = any(use.state == _core.DONE and use.hinted for use in self.live.values())
        dead = any(
            self.settled[slot] < self.generation[slot] + (self.worker[slot] is None and slot not in self.unlogged)
            for slot in range(SLOTS)
        )
        if hinted or dead:
            assert _core.wait(self.client, 0, 0)

    def idle_scan(self) -> None:
        lost = [use for use in self.live.values() if use.state == _core.DONE and not use.hinted]
        assert _core.idle_scan(self.client) <= len(lost)
        assert _core.idle_scan(self.client) <= len(lost)
        if not self.half_hints():
            for use in lost:
                use.hinted = True

    def half_hints(self) -> bool:
        """A bit is set whose summary got lost: the next to finish, or a settle, finds it."""
        return self.get(HEADER["done"]) != 0 and self.get(HEADER["done_summary"]) == 0

    def trim(self) -> None:
        _core.trim(self.client)

    # ---- workers

    def idle_workers(self) -> list[int]:
        return [s for s in range(SLOTS) if self.worker[s] is not None and self.holds[s] is None]

    def busy_workers(self) -> list[int]:
        return [s for s in range(SLOTS) if self.worker[s] is not None and self.holds[s] is not None]

    @precondition(lambda self: self.idle_workers())
    @rule(pick=SLOT)
    def claim(self, pick: int) -> None:
        self.take(pick)

    def take(self, pick: int) -> Use | None:
        idle = self.idle_workers()
        slot = idle[pick % len(idle)]
        got = _core.claim(self.worker[slot], 0, 0)
        assert got is not False
        while self.ring:
            row, use = self.ring.pop(0)
            if self.live.get(row) is use and use.state == _core.READY:
                break
        else:
            assert got is None
            return None
        assert got == (7 if use.function else 0, 1, 5, len(use.items) if use.chunk else 0, use.args)
        if use.function:
            assert _core.claimed_function(self.worker[slot]) == use.function
        use.state, use.slot, use.generation, use.item = _core.RUNNING, slot, self.generation[slot], 0
        use.task.claims += 1
        self.holds[slot] = use
        return use

    @precondition(lambda self: self.busy_workers())
    @rule(pick=SLOT, sizes=st.lists(SIZES, min_size=1, max_size=5))
    def step(self, pick: int, sizes: list[int]) -> None:
        """The next things this worker has to do: begin a chunk, commit items, complete a task."""
        busy = self.busy_workers()
        slot = busy[pick % len(busy)]
        use = self.holds[slot]
        for size in sizes:
            if self.holds[slot] is use:
                self.advance(slot, size)

    def advance(self, slot: int, size: int) -> bool:
        """False: it would wait for room."""
        use, worker = self.holds[slot], self.worker[slot]
        assert use is not None
        item = use.items[max(use.item - 1, 0)]
        data = (b"%d:%d:%d " % (use.task.number, item, use.attempt)).ljust(size, b"-")
        if use.chunk and use.item == 0:
            code, last = _core.begin_items(worker), False
        else:
            need = use.used + 8 + len(data) if use.chunk else len(data)
            fits = use.state == _core.CONDEMNED or self.fits(use, need)
            if fits is None:
                return False
            last = not use.chunk or use.item == len(use.items)
            code = _core.commit(worker, item % 200, data) if use.chunk else _core.complete(worker, 9, data)
            if code == _core.TOO_LARGE:
                assert not fits or use.state == _core.CONDEMNED
                return True
            if code == 0:
                assert fits
                use.results.append(data)
                use.used = need
        if use.state == _core.CONDEMNED:
            assert code == _core.LOST
            self.kill(slot)
            return True
        assert code == 0
        if last:
            use.state = _core.DONE
            self.holds[slot] = None
        else:
            use.item += 1
        return True

    def fits(self, use: Use, need: int) -> bool | None:
        """True: there is room for such a result now; False: there never will be; None: somebody else has it."""
        if need <= use.room:
            return True
        owners, units = self.owners(), -(-(need - use.used) // UNIT)
        if self.longest_run([o == FUNCTION for o in owners[UNITS // 2 :]]) < units:
            return False  # it has to fit in the upper half, beside the functions
        units = -(-need // UNIT)
        if use.chunk and 2 * units <= UNITS // 4:
            units *= 2
        if self.longest_run([o != 0 for o in owners]) < units:
            return None
        if use.state != _core.CONDEMNED:
            use.room = units * UNIT
        return True

    @precondition(lambda self: self.busy_workers())
    @rule(pick=SLOT, stale=st.booleans())
    def condemn(self, pick: int, stale: bool) -> None:
        busy = self.busy_workers()
        slot = busy[pick % len(busy)]
        use = self.holds[slot]
        assert use is not None
        running = _core.running(self.monitor, slot)
        assert running is not None
        assert running[:4] == (slot, self.generation[slot], use.row, 3_600_000 if use.armed else 0)
        assert (running[5] > 0) == (use.armed and use.state == _core.RUNNING)
        word = running[4]
        if use.state == _core.CONDEMNED:
            assert not _core.condemn(self.monitor, use.row, word)
        elif stale:
            assert not _core.condemn(self.monitor, use.row, word ^ 1 << 52)
        else:
            assert _core.condemn(self.monitor, use.row, word)
            use.state = _core.CONDEMNED

    # ---- deaths and births

    def kill(self, slot: int) -> None:
        self.worker[slot] = self.holds[slot] = None
        self.unlogged.add(slot)

    def alive(self) -> list[int]:
        return [s for s in range(SLOTS) if self.worker[s] is not None]

    @precondition(lambda self: self.alive())
    @rule(pick=SLOT, sleeper=st.booleans())
    def die(self, pick: int, sleeper: bool) -> None:
        """Between two steps; or asleep, and then its bit stays until the monitor clears it (and wakes go to waste)."""
        slot = self.alive()[pick % len(self.alive())]
        self.kill(slot)
        if sleeper:
            self.put(HEADER["sleepers"], self.get(HEADER["sleepers"]) | 1 << slot)
            self.log(slot)

    @precondition(lambda self: self.idle_workers() and self.ring)
    @rule(pick=SLOT)
    def die_before_head_moves(self, pick: int) -> None:
        use = self.take(pick)
        if use is not None:
            self.put(HEADER["head"], self.get(HEADER["head"]) - 1)
            self.ring.insert(0, (use.row, use))
            self.kill(use.slot)

    @precondition(lambda self: self.busy_workers())
    @rule(pick=SLOT, summary_only=st.booleans())
    def die_before_the_hint(self, pick: int, summary_only: bool) -> None:
        busy = self.busy_workers()
        slot = busy[pick % len(busy)]
        use = self.holds[slot]
        assert use is not None
        done, summary = self.get(HEADER["done"]), self.get(HEADER["done_summary"])
        while self.holds[slot] is use:  # to the end of the chunk
            if not self.advance(slot, 1):
                return
        if use.state == _core.DONE:
            if not summary_only:
                self.put(HEADER["done"], done)
            self.put(HEADER["done_summary"], summary)
            use.hinted = summary_only and summary != 0
            self.kill(slot)

    @precondition(lambda self: self.unlogged)
    @rule(pick=SLOT)
    def record_death(self, pick: int) -> None:
        self.log(sorted(self.unlogged)[pick % len(self.unlogged)])

    def log(self, slot: int) -> None:
        generation = self.generation[slot]
        _core.record_death(self.monitor, slot, generation, 1000 + generation, generation % 256, _core.DIED)
        assert self.get(HEADER["sleepers"]) >> slot & 1 == 0
        self.unlogged.remove(slot)

    def buried(self) -> list[int]:
        return [s for s in range(SLOTS) if self.worker[s] is None and s not in self.unlogged]

    @precondition(lambda self: self.buried())
    @rule(pick=SLOT)
    def fork(self, pick: int) -> None:
        self.restart(self.buried()[pick % len(self.buried())])

    def restart(self, slot: int) -> bool:
        generation = self.generation[slot] + 1
        may = _core.may_fork(self.monitor, slot, generation)
        assert may == (generation - self.settled[slot] < 4)
        if may:
            _core.slot_begin(self.monitor, slot, generation)
            self.worker[slot] = self.segment.attach()
            _core.open_worker(self.worker[slot], slot, generation)
            self.generation[slot] = generation
        return may

    # ---- always

    @invariant()
    def agree(self) -> None:
        self.rows_agree()
        self.counters_agree()
        self.units_agree()
        self.deadlines_agree()

    def rows_agree(self) -> None:
        for row in range(ROWS):
            state, slot, generation, item, _ = _core.row_word(self.monitor, row)
            use = self.live.get(row)
            if use is None:
                assert state == _core.FREE
                assert self.records[row] is None
            else:
                assert state == use.state
                assert self.records[row] == (use,)
                if state != _core.READY:
                    assert (slot, generation) == (use.slot, use.generation)
                    if state != _core.DONE:
                        assert item == use.item

    def counters_agree(self) -> None:
        counters = _core.counters(self.client)
        assert counters["in_flight"] == len(self.live)
        assert counters["ready"] == len(self.ring)
        assert counters["sleepers"] == 0
        assert self.get32(HEADER["armed"]) == sum(use.armed for use in self.live.values())

    def units_agree(self) -> None:
        owners = [o for o in self.owners() if o]
        allowed = {self.owner_of(use): use for use in self.live.values()}
        assert owners.count(FUNCTION) == sum(-(-len(data) // UNIT) for _, data in self.functions)
        for mine, use in allowed.items():
            arguments = -(-len(use.args) // UNIT) if len(use.args) > INLINE else 0
            results = 0 if use.room == INLINE else use.room // UNIT
            assert owners.count(mine) == arguments + results
        assert set(owners) <= {FUNCTION, *allowed}

    def deadlines_agree(self) -> None:
        armed, after, expired = _core.deadlines(self.monitor, True)
        assert expired == []
        assert armed == sum(use.armed for use in self.live.values())
        assert (after is None) == (armed == 0)

    # ---- the end

    def bring_to_rest(self) -> None:
        for _ in range(1000):
            self.settle()
            self.collect(ROWS)
            if not self.live and not self.again and not self.ring and not self.unlogged:
                break
            for slot in sorted(self.unlogged):
                self.log(slot)
            self.settle()
            for slot in self.buried():
                assert self.restart(slot)
            while self.again and self.publish(*self.again[0], 10, False, None):
                self.again.pop(0)
            for slot in self.idle_workers():
                self.take(self.idle_workers().index(slot))
            for slot in self.busy_workers():
                if not self.advance(slot, 1):
                    self.kill(slot)  # two that wait for each other's room: the pool would go on when one is killed
            self.collect(ROWS)
            self.agree()
        else:
            raise AssertionError("never at rest")
        for task in self.tasks:
            assert task.ended()
            assert task.attempts == task.claims
            if task.cancelled:
                continue
            assert set(task.results) | task.failed == set(task.items)
            for item, data in task.results.items():
                assert data.startswith(b"%d:%d:" % (task.number, item))
        while self.functions:
            self.free_function()
        counters = _core.counters(self.client)
        assert (counters["units"], counters["in_flight"], counters["ready"]) == (0, 0, 0)
        _core.trim(self.client)
        assert os.fstat(self.segment.payload).st_blocks >= 0
        rows = {_core.publish(self.client, self.records, (None,), 0, 0, 0, 0, b"", 0, 0, 0, 1) for _ in range(ROWS)}
        assert rows == set(range(ROWS))  # every row can be used again


TestProtocol = Protocol.TestCase
TestProtocol.settings = settings(
    max_examples=150, stateful_step_count=60, deadline=None, database=None, suppress_health_check=list(HealthCheck)
)
