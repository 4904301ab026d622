"""The whole protocol, step by step in one thread, against a model in plain Python.

One client, three workers and a monitor share one segment in this process, a capsule each. Hypothesis picks what happens
next: publish, claim, a result, a deadline, a death between or inside of steps, its log, a restart, a settle. Large
results are held by the client as views, and arguments by the workers' tasks, beyond the end of their rows, and dropped
in any order. The model knows rows, ring, tasks and who owns which unit; after every step the segment must agree with
it. At the end everything is brought to rest: each task has ended exactly once with the right results, and every row and
unit is free again.
"""

import mmap
import os
import struct
from dataclasses import dataclass, field
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from test_layout import CONSTANTS, HEADER, ROW, owner, owner_kept, owners_at, rows_at

from ipc import _core
from ipc.segment import Segment

ROWS, SLOTS, UNITS = 8, 3, 8
UNIT = 65536
INLINE, FRAME = CONSTANTS["IPC_INLINE"], CONSTANTS["IPC_FRAME"]
ATTEMPTS = 3
FUNCTION, VIEW = CONSTANTS["IPC_OWNER_FUNCTION"], CONSTANTS["IPC_OWNER_VIEW"]
HALF, MOST_VIEWS = UNITS // 2, UNITS // 4
LEAST_VIEW = 32768  # bytes; what is smaller is copied
Pieces = tuple[bytes, ...]
SIZES = st.sampled_from([0, 1, 100, INLINE // 2, INLINE, INLINE + 1, UNIT, *(n * UNIT + 1 for n in (1, 2, 3, 4, 8))])
BIG = st.sampled_from([1, LEAST_VIEW - 1, LEAST_VIEW, UNIT, UNIT + 1])
SLOT = st.integers(0, SLOTS - 1)
ITEMS = st.sampled_from([0, 0, 0, 1, 4])
FLAGS = st.sampled_from([0, 0, _core.PACKED, _core.PACKED | _core.REPEATABLE])


def pieces_of(head: bytes, size: int, packed: bool) -> Pieces:
    """So many bytes, or what `head` has: one piece, or two of which the second is aligned."""
    if packed:
        return (head, b"." * max(0, size - _core.ALIGN))
    return (head.ljust(size, b"."),)


def length_of(pieces: Pieces) -> int:
    length = 0
    for piece in pieces:
        length = aligned(length) + len(piece)
    return length


def aligned(n: int) -> int:
    return -(-n // _core.ALIGN) * _core.ALIGN


def units_for(length: int) -> int:
    return -(-length // UNIT)


def same(data: Any, pieces: Pieces) -> bool:
    """Between the pieces may stand anything."""
    data, at = bytes(data), 0
    for piece in pieces:
        at = aligned(at)
        if data[at : at + len(piece)] != piece:
            return False
        at += len(piece)
    return at == len(data)


@dataclass(eq=False)
class Held:
    """A run that the client's program (slot -1) or a worker's task looks at."""

    run: Any
    pieces: Pieces = field(repr=False)
    units: int
    slot: int = -1
    generation: int = -1


@dataclass
class Task:
    """What the user wants: the results of all items, or an end without them."""

    number: int
    items: list[int]  # 0 for a single task, 1..n for the items of a chunk
    results: dict[int, Pieces] = field(default_factory=dict, repr=False)
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
    args: Pieces = field(repr=False)
    flags: int
    armed: bool
    function: bytes | None = field(repr=False)
    state: int = _core.READY
    slot: int = -1
    generation: int = -1
    item: int = 0  # as in the row word
    kinds: list[int] = field(default_factory=list)
    results: list[Pieces] = field(default_factory=list, repr=False)
    room: int = INLINE
    used: int = 0
    hinted: bool = True
    given: int = 0  # units of its arguments that are its worker's now

    @property
    def chunk(self) -> bool:
        return self.items != [0]

    @property
    def args_units(self) -> int:
        length = length_of(self.args)
        return units_for(length) if length > INLINE else 0


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
        self.args: list[Held | None] = [None] * SLOTS  # of what it runs, if its task holds them
        self.views: list[Held] = []
        self.kept: list[Held] = []  # by workers, also by the dead until they are settled
        self.graves: list[Any] = []  # runs of the dead: that they go changes nothing
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

    def publish(
        self, task: Task, items: list[int], size: int, flags: int, armed: bool, function: tuple[int, bytes] | None
    ) -> bool:
        args = pieces_of(b"%d " % task.number, size, bool(flags & _core.PACKED))
        use = Use(task, items, task.claims + 1, -1, args, flags, armed, function[1] if function else None)
        unit, data = function if function else (0, b"")
        free = self.longest_run([bool(o) for o in self.owners()[:HALF]])
        in_flight = any(other.args_units for other in self.live.values())
        row = _core.publish(
            self.client, self.records, (use,), 7 if function else 0, 1, unit, len(data),
            use.args if flags else use.args[0], len(items) if use.chunk else 0, 3_600_000 if armed else 0,
            5 << 8 | flags, use.attempt,
        )  # fmt: skip
        busy = set(self.live) | {row for row, _ in self.ring}
        if row == _core.FULL:
            assert len(busy) == ROWS
        elif row == _core.TOO_LARGE:
            assert use.args_units > (free if not in_flight else HALF)  # what workers have kept may never go
        elif row == _core.NO_ROOM:
            assert free < use.args_units <= HALF
            assert in_flight
        else:
            assert row >= 0
            assert row not in busy
            assert use.args_units <= free
            use.row = row
            self.live[row] = use
            self.ring.append((row, use))
            return True
        return False

    @initialize()
    def boot(self) -> None:
        for slot in range(SLOTS):
            self.restart(slot)

    @rule(items=ITEMS, size=SIZES, flags=FLAGS, armed=st.booleans(), function=st.integers(0, 2))
    def publish_new(self, items: int, size: int, flags: int, armed: bool, function: int) -> None:
        task = Task(len(self.tasks), list(range(1, items + 1)) if items else [0])
        named = self.functions[function] if function < len(self.functions) else None
        if self.publish(task, task.items, size, flags, armed, named):
            self.tasks.append(task)

    @precondition(lambda self: self.again)
    @rule()
    def publish_again(self) -> None:
        task, items = self.again[0]
        if self.publish(task, items, 10, 0, False, None):
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

    @rule(most=st.integers(0, ROWS), hold=st.booleans())
    def collect(self, most: int, hold: bool) -> None:
        inbox: list[Any] = []
        hinted = [use for use in self.live.values() if use.state == _core.DONE and use.hinted]
        viewed = self.viewed()
        assert _core.collect(self.client, self.records, inbox, most, object(), [], None) == len(inbox)
        # Each word of done bits is one; those whose hint got lost may come with their neighbours' scan, never without.
        assert min(most, len(hinted)) <= len(inbox) <= most
        for (use,), kind, data, length, _ in inbox:
            assert self.live.pop(use.row) is use
            assert self.records[use.row] is None
            assert use.state == _core.DONE
            assert length == use.used
            if use.chunk:
                assert kind == 0  # nothing was drained before
                self.check_frames(use, data)
            else:
                assert [kind] == use.kinds
                units = units_for(length)
                if length >= LEAST_VIEW and viewed + units <= MOST_VIEWS:
                    viewed += units
                    self.views.append(Held(data, use.results[0], units))
                else:
                    assert type(data) is (bytearray if kind & _core.PACKED_KIND else bytes)
                assert same(data, use.results[0])
            use.task.attempts += 1
            self.finish(use, use.results)
        if not hold:
            self.views.clear()

    def check_frames(self, use: Use, data: list[Any]) -> None:
        assert data[::2] == use.kinds
        for kind, item, pieces in zip(use.kinds, data[1::2], use.results, strict=True):
            assert type(item) is (bytearray if kind & _core.PACKED_KIND else bytes)
            assert same(item, pieces)

    def viewed(self) -> int:
        return sum(held.units for held in self.views)

    def finish(self, use: Use, results: list[Pieces]) -> None:
        for item, pieces in zip(use.items, results, strict=False):
            assert item not in use.task.results
            assert item not in use.task.failed
            use.task.results[item] = pieces

    @precondition(lambda self: self.views or self.kept or self.graves or any(self.args))
    @rule(pick=st.integers(0, 15))
    def drop(self, pick: int) -> None:
        """Somebody lets go of what it holds: the program of a view, a task of its arguments, now or kept."""
        kept = [held for held in self.kept if self.lives(held)]
        held = [*self.views, *kept, *(args for args in self.args if args), *self.graves]
        if not held:
            return
        found = held[pick % len(held)]
        assert not isinstance(found, Held) or same(found.run, found.pieces)
        for where in (self.views, self.kept, self.graves):
            if found in where:
                where.remove(found)  # type: ignore[attr-defined]
        self.args = [None if args is found else args for args in self.args]

    def lives(self, held: Held) -> bool:
        return self.worker[held.slot] is not None and self.generation[held.slot] == held.generation

    @rule()
    def settle(self) -> None:
        while (dead := _core.next_dead(self.client)) is not None:
            slot, reaped = dead
            assert reaped == self.generation[slot] + (self.worker[slot] is None and slot not in self.unlogged)
            for generation in range(max(self.settled[slot], reaped - 4), reaped):
                logged = 1000 + generation, generation % 256, _core.DIED, generation * 3
                assert _core.death(self.client, slot, generation) == logged
            out: list[Any] = []
            _core.settle(self.client, self.records, slot, reaped, out)
            expected = {
                use.row: use
                for use in self.live.values()
                if use.slot == slot and use.generation < reaped and use.state in (_core.RUNNING, _core.CONDEMNED)
            }
            for (use,), state, item, generation, drained, results, _ in out:
                assert expected.pop(use.row) is use
                assert (state, item, generation) == (use.state, use.item, use.generation)
                assert drained == 0  # that takes a worker that waits for room
                self.check_frames(use, results)
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
            gone = [held for held in self.kept if held.slot == slot and held.generation < reaped]
            self.kept = [held for held in self.kept if held not in gone]
            self.graves += [held.run for held in gone]

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
    @rule(pick=SLOT, hold=st.booleans())
    def claim(self, pick: int, hold: bool) -> None:
        self.take(pick, hold)

    def take(self, pick: int, hold: bool = False) -> Use | None:
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
        plain = not use.args_units and not use.flags
        items = len(use.items) if use.chunk else 0
        assert got == (7 if use.function else 0, 1, 5, items, use.args[0] if plain else None, use.flags)
        if not plain:
            args = _core.arguments(self.worker[slot])
            assert same(args, use.args)
            if not use.args_units or use.flags & _core.REPEATABLE:
                assert type(args) is bytearray
            elif hold:
                self.args[slot] = Held(args, use.args, use.args_units, slot, self.generation[slot])
        if use.function:
            assert _core.claimed_function(self.worker[slot]) == use.function
        use.state, use.slot, use.generation, use.item = _core.RUNNING, slot, self.generation[slot], 0
        use.task.claims += 1
        self.holds[slot] = use
        return use

    @precondition(lambda self: self.busy_workers())
    @rule(pick=SLOT, sizes=st.lists(SIZES, min_size=1, max_size=5), packed=st.booleans())
    def step(self, pick: int, sizes: list[int], packed: bool) -> None:
        """The next things this worker has to do: begin a chunk, commit items, complete a task."""
        busy = self.busy_workers()
        slot = busy[pick % len(busy)]
        use = self.holds[slot]
        for size in sizes:
            if self.holds[slot] is use:
                self.advance(slot, size, packed)

    @precondition(lambda self: self.idle_workers() and self.ring)
    @rule(pick=SLOT, size=SIZES, packed=st.booleans(), hold=st.booleans())
    def serve(self, pick: int, size: int, packed: bool, hold: bool) -> None:
        """From the claim to the end of the row. Or else rules that end many things would leave nothing to be done."""
        use = self.take(pick, hold)
        while use is not None and self.holds[use.slot] is use:
            if not self.advance(use.slot, size, packed):
                return

    @precondition(lambda self: self.idle_workers())
    @rule(args=BIG, flags=FLAGS, result=BIG, packed=st.booleans(), keep=st.booleans(), view=st.booleans())
    def hold_on(self, args: int, flags: int, result: int, packed: bool, keep: bool, view: bool) -> None:
        """A whole life of a task, of which something may be held for longer."""
        self.publish_new(0, args, flags, False, 2)
        while self.idle_workers() and self.ring:
            self.serve(0, result, packed, keep)
        self.collect(ROWS, view)

    def advance(self, slot: int, size: int, packed: bool = False) -> bool:
        """False: it would wait for room, or is still where it was: there will never be room."""
        use, worker = self.holds[slot], self.worker[slot]
        assert use is not None
        item = use.items[max(use.item - 1, 0)]
        kind = item + 9 | (_core.PACKED_KIND if packed else 0)
        pieces = pieces_of(b"%d:%d:%d " % (use.task.number, item, use.attempt), size, packed)
        last = finishing = False
        if use.chunk and use.item == 0:
            code = _core.begin_items(worker)
        else:
            need = use.used + FRAME + length_of(pieces) if use.chunk else length_of(pieces)
            last = not use.chunk or use.item == len(use.items)
            finishing = last and (need <= use.room or use.state != _core.CONDEMNED)
            fits = use.state == _core.CONDEMNED or self.fits(use, need)
            if fits is None:
                return False
            code = (_core.commit if use.chunk else _core.complete)(worker, kind, pieces if packed else pieces[0])
            if code == _core.TOO_LARGE:
                assert not fits or use.state == _core.CONDEMNED
                return False
            if code == 0:
                assert fits
                use.kinds.append(kind)
                use.results.append(pieces)
                use.used = need
        if finishing and (args := self.args[slot]):  # its last step but one: what its task holds is its own
            use.given = args.units
            self.kept.append(args)
            self.args[slot] = None
        if use.state == _core.CONDEMNED:
            assert code == _core.LOST
            self.kill(slot)
            return True
        assert code == 0
        if last:
            use.state = _core.DONE
            self.holds[slot] = self.args[slot] = None
        else:
            use.item += 1
        return True

    def fits(self, use: Use, need: int) -> bool | None:
        """True: there is room for such a result now; False: there never will be; None: somebody else has it."""
        if need <= use.room:
            return True
        owners, units = self.owners()[HALF:], units_for(need - use.used)
        if self.longest_run([o in (FUNCTION, VIEW) for o in owners]) < units:
            return False  # it has to fit in the upper half, beside functions, and values that the program holds
        units = units_for(need)
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
        assert running[5] > 0
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
        if args := self.args[slot]:
            self.graves.append(args.run)
        self.worker[slot] = self.holds[slot] = self.args[slot] = None
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

    @precondition(lambda self: any(self.args))
    @rule(pick=SLOT, units=st.integers(1, HALF))
    def die_while_it_takes_its_arguments_over(self, pick: int, units: int) -> None:
        """Unit by unit, before the row is done."""
        holding = [args for args in self.args if args]
        args = holding[pick % len(holding)]
        use = self.holds[args.slot]
        assert use is not None
        first = self.get32(rows_at(ROWS, SLOTS) + 512 * use.row + ROW["args_unit"])
        use.given = min(units, args.units)
        for unit in range(first, first + use.given):
            self.put(owners_at(ROWS, SLOTS) + 8 * unit, owner_kept(args.slot, args.generation))
        args.units = use.given
        self.kept.append(args)
        self.args[args.slot] = None
        self.kill(args.slot)

    @precondition(lambda self: self.unlogged)
    @rule(pick=SLOT)
    def record_death(self, pick: int) -> None:
        self.log(sorted(self.unlogged)[pick % len(self.unlogged)])

    def log(self, slot: int) -> None:
        generation = self.generation[slot]
        logged = 1000 + generation, generation % 256, _core.DIED, generation * 3
        _core.record_death(self.monitor, slot, generation, *logged)
        assert self.get(HEADER["sleepers"]) >> slot & 1 == 0
        self.unlogged.remove(slot)

    def buried(self) -> list[int]:
        return [s for s in range(SLOTS) if self.worker[s] is None and s not in self.unlogged]

    @precondition(lambda self: self.buried())
    @rule(pick=SLOT)
    def fork(self, pick: int) -> None:
        self.restart(self.buried()[pick % len(self.buried())])

    @precondition(lambda self: len(self.alive()) < SLOTS)
    @rule()
    def recover(self) -> None:
        """All that a death entails, for all. Or else most of the time nobody would be alive."""
        for slot in sorted(self.unlogged):
            self.log(slot)
        self.settle()
        for slot in self.buried():
            assert self.restart(slot)

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
        lower, upper = self.owners()[:HALF], self.owners()[HALF:]
        arguments: dict[int, int] = {}
        results = {FUNCTION: sum(units_for(len(data)) for _, data in self.functions), VIEW: self.viewed()}
        for use in self.live.values():
            mine = self.owner_of(use)
            arguments[mine] = use.args_units - use.given
            results[mine] = 0 if use.room == INLINE else use.room // UNIT
        for held in self.kept:
            mine = owner_kept(held.slot, held.generation)
            arguments[mine] = arguments.get(mine, 0) + held.units
        for owners, expected in ((lower, arguments), (upper, results)):
            assert {mine: owners.count(mine) for mine in owners if mine} == {o: n for o, n in expected.items() if n}
        assert _core.counters(self.client)["views"] == self.viewed()
        for slot in self.alive():
            kept = sum(held.units for held in self.kept if held.slot == slot and self.lives(held))
            assert _core.kept(self.worker[slot]) == kept * UNIT
        for held in (*self.views, *self.kept):
            if held.slot == -1 or self.lives(held):
                assert same(held.run, held.pieces)

    def deadlines_agree(self) -> None:
        armed, after, expired = _core.deadlines(self.monitor, True)
        assert expired == []
        assert armed == sum(use.armed for use in self.live.values())
        assert (after is None) == (armed == 0)

    # ---- the end

    def bring_to_rest(self) -> None:
        self.views.clear()  # or there might be no room for any result
        for _ in range(1000):
            self.settle()
            self.collect(ROWS, False)
            if not self.live and not self.again and not self.ring and not self.unlogged:
                break
            self.recover()
            while self.again and self.publish(*self.again[0], 10, 0, False, None):
                self.again.pop(0)
            for slot in self.idle_workers():
                self.take(self.idle_workers().index(slot))
            for slot in self.busy_workers():
                if not self.advance(slot, 1):
                    self.kill(slot)  # two that wait for each other's room: the pool would go on when one is killed
            self.collect(ROWS, False)
            self.agree()
        else:
            raise AssertionError("never at rest")
        for task in self.tasks:
            assert task.ended()
            assert task.attempts == task.claims
            if task.cancelled:
                continue
            assert set(task.results) | task.failed == set(task.items)
            for item, pieces in task.results.items():
                assert pieces[0].startswith(b"%d:%d:" % (task.number, item))
        while self.functions:
            self.free_function()
        self.units_agree()
        self.kept.clear()
        assert self.owners() == [0] * UNITS
        self.graves.clear()
        assert self.owners() == [0] * UNITS
        counters = _core.counters(self.client)
        assert (counters["units"], counters["in_flight"], counters["ready"]) == (0, 0, 0)
        _core.trim(self.client)
        assert os.fstat(self.segment.payload).st_blocks >= 0
        rows = {_core.publish(self.client, self.records, (None,), 0, 0, 0, 0, b"", 0, 0, 0, 1) for _ in range(ROWS)}
        assert rows == set(range(ROWS))  # every row can be used again


TestProtocol = Protocol.TestCase
TestProtocol.settings = settings(
    max_examples=200, stateful_step_count=60, deadline=None, database=None, suppress_health_check=list(HealthCheck)
)
