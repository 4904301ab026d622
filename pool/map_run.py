"""A running map, as the client sees it: a sink of tasks, and what gives them away.

The window (calls given to the workers and not yet back) is what keeps the workers busy for about 10 ms, not the number
of rows: an expensive producer is not run far ahead, and a submit in between does not wait behind a long queue. Chunks
are sized by measured run time; a crash, a timeout or an error inside a chunk is charged to its item alone, and the
rest of the chunk goes on.
"""

from __future__ import annotations

import itertools
import pickle
import time
from collections import deque
from collections.abc import Iterator

from ipc import _core
from pool import capture, chunks, codec, spill
from pool.account import account_in_map, run_us
from pool.client import Client
from pool.functions import Function
from pool.retry import FIRST, Again
from pool.task import Death, Policy, Task, after_death, after_error

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from pool.account import Account

_WINDOW_SECONDS = 0.010
_CHUNK_US = 1000.0  # run time of a chunk: long against the cost of handing it over, short against human patience
_CHUNK_MOST = 2048
_CHUNK_BYTES = 1 << 16  # of its arguments or results: large ones gain nothing by being handed over together
_SMALL = 4096  # bytes of an item that need no such care
_LARGE = 1 << 15  # from here on what an item leaves free is worth keeping
_FLYING_BYTES = 1 << 20  # of arguments or results on their way, but at least 3 items a worker
_BATCH_BYTES = 4 << 20  # of arguments that are given away between two looks at what has come back
_NAP_SECONDS, _LEAST_NAP = 0.002, 0.0001
_NAP_SHARE = 4  # part of what is given away that may be done when the caller looks again
_NAP_RESULTS = 2  # at least so many are worth a nap
_HELD_BYTES = 64 << 20  # of results that wait for an earlier one, at least
_VALUES, _SCALARS = frozenset(codec.VALUES), codec.SCALARS
_new, _dumps, _MAIN = tuple.__new__, pickle.dumps, b"__main__"
_AHEAD = 4096  # an ordered map keeps at most so many results that wait for an earlier one


class Failure:
    """An item that failed, in its place among the results of ``on_error="return"``.

    Attributes:
        item: what the function was called with.
        index: position of the item in the input, from 0.
        error: the exception: the task's own, or one of ``pool.errors``.
        account: what it has cost (see ``Future.account``); None if no worker has begun with it, or if its value could
            not be rebuilt here.
    """

    __slots__ = ("account", "error", "index", "item")

    def __init__(self, item: Any, index: int, error: BaseException, account: Account | None = None) -> None:
        self.item = item
        self.index = index
        self.error = error
        self.account = account

    def __repr__(self) -> str:
        return f"Failure(item={self.item!r}, index={self.index}, error={self.error!r})"


class MapRun:
    """One running map, as a sink of tasks. Outcomes wait in ``ready`` as (index, kind, bytes | error, item, account)
    until the caller takes them; account: of failed ones. Decoded values that follow each other are a BLOCK, a tuple."""

    def __init__(
        self,
        client: Client,
        function: Function,
        call: int,
        policy: Policy,
        chunksize: int | None,
        buffersize: int | None,
    ) -> None:
        self.client = client
        self.function = function
        self.policy = policy
        self.row = -1
        self.idempotent = False
        self.dropped = False
        self.holds_call = False
        self.ticket = 0
        self.resting = 0  # of those that fly, how many wait for their next attempt
        self.chunksize = min(chunksize or 1, _core.MAX_ITEMS)
        self.given = 0  # items so far
        self.failed = 0  # of those that are back
        self.crashes = 0  # attempts at them whose worker died
        self.flying = 0  # items given away and not yet back
        self.landed = 0  # that are back, and were not dropped: taken by the caller, or to be
        self.ready: deque[tuple[int, int, Any, Any, Account | None]] = deque()
        self.eager = (
            False  # everything is given away at once and counts as pending futures do: it runs even if nobody iterates
        )
        self.auto = chunksize is None
        self.buffered = False  # what was given away last had larger buffers, which a chunk would only copy more often
        self._flags = call << 8 | policy.flags
        self._timeout_ms = policy.timeout_ms
        self._buffersize = client.ahead or buffersize
        self._window = max(4, 3 * client.workers)
        self._item_us = 0.0
        self._item_bytes = 0.0
        # The chunk that is taken apart now; no longer, for its task has us, and might have a file.
        self._sent: tuple[Task, list[bytes | bytearray]] | None = None
        self.handles: set[Any] = set()  # on shared objects among the items
        self.held = 0  # bytes of results that wait to be taken
        self._most_held = max(_HELD_BYTES, client.room // 4)
        self._came = 0
        self._rate = 0.0  # items that came back in a second, of late
        self._looked = -1  # how many had come at the last nap
        self._since = time.monotonic()
        self.numbered = False  # somebody reads `index`
        self.index = -1  # of the result that was handed to the caller last
        self.owner: object = None  # the pool: an iteration keeps it, else it would be abandoned meanwhile

    # ---- the client's side; its lock is held

    def arrive(self, task: Task, kind: int, data: Any, length: int, facts: bytes) -> None:
        if task.items:
            self._chunk_arrived(task, kind, data, facts)
        else:
            said, extra = None, 0
            if kind & codec.MORE:
                kind, data, said, extra = self._unwrap(kind, data)
            if kind in codec.REPEATABLE and (again := after_error(task, kind, data)) is not None:
                self.client.again(task, again)
            elif kind in _VALUES:
                self._land(task.position, kind, data, task.item)
            else:
                account = None if kind == codec.FAILED else account_in_map(task, facts, None, data, said, extra)
                self._land(task.position, kind, data, task.item, account)
        if self.auto:
            each: float = run_us(facts)
            if task.items:  # which may come in parts
                each /= max(1, len(data) if type(data) is tuple else len(data) // 2)
            self._item_us = each if self._item_us == 0 else 0.8 * self._item_us + 0.2 * each
        if length > _SMALL or self._item_bytes > _SMALL:
            self._mix_in(length / (task.items or 1))

    def take(self, entries: list[Any], plain: bool) -> list[Any]:
        """Let what the caller has collected itself arrive; single values only if not ``plain``. Returns the rest."""
        rest = [e for e in entries if e[1] in _VALUES and not e[0].items] if plain else []
        if len(rest) < len(entries):
            for entry in entries:
                if not plain or entry[1] not in _VALUES or entry[0].items:
                    self.arrive(*entry)
        if self.auto and rest and (rest[-1][3] > _SMALL or self._item_bytes > _SMALL):
            self._mix_in(rest[-1][3])
        self.came(len(rest))
        self.landed += len(rest)
        return rest

    def _unwrap(self, kind: int, data: Any) -> tuple[int, Any, str | None, int]:
        """What is in a file, or has the task's output behind it, and so many bytes of that."""
        said, extra = None, 0
        if kind & codec.SPILLED:
            self.client.spilled += 1
            kind, data = codec.fetch(kind, data)
        if kind & codec.SAID:
            kind, said, extra = capture.detach(kind, data)
        return kind, data, said, extra

    def _item_arrived(self, task: Task, k: int, kind: int, data: Any, facts: bytes, nth: int) -> None:
        """``nth``: of those that ``facts`` are about, where there are failures."""
        said, extra = None, 0
        if kind & codec.MORE:
            kind, data, said, extra = self._unwrap(kind, data)
        if kind in codec.REPEATABLE and (again := after_error(task, kind, data)) is not None:
            self._single(task, k, again)
        elif kind in _VALUES:
            self._land(task.position + k, kind, data, task.item[k])
        else:
            account = None if kind == codec.FAILED else account_in_map(task, facts, nth, data, said, extra)
            self._land(task.position + k, kind, data, task.item[k], account)

    def ready_again(self, task: Task, kind: int, data: Any) -> None:
        """Its value cannot be rebuilt: `outcome` says why."""
        self.held += len(data)
        self.ready.append((task.position, kind, data, task.item, None))

    def _land(self, index: int, kind: int, data: Any, item: Any, account: Account | None = None) -> None:
        self.came(1)
        if not self.dropped:
            if kind in codec.VALUES:
                self.held += len(data)
            else:
                self.failed += 1
            self.landed += 1
            self.ready.append((index, kind, data, item, account))

    def rests(self, count: int) -> None:
        self.resting += count

    def has_news(self, resting: int) -> bool:
        """Whether its loop has something to do: a result, or room for others, since so many items rested."""
        return bool(self.ready) or self.resting > resting

    def came(self, count: int) -> None:
        self.flying -= count
        self._came += count
        if self.eager:
            self.client.unfinished -= count

    def _chunk_arrived(self, task: Task, drained: int, frames: Any, facts: bytes) -> None:
        """``frames``: kinds and pickles, or values that are decoded already."""
        if type(frames) is tuple:
            self._values_arrived(task.position + drained, frames)
            return
        for k in range(len(frames) // 2):
            self._item_arrived(task, drained + k, frames[2 * k], frames[2 * k + 1], facts, k)
        self._sent = None

    def _values_arrived(self, index: int, values: tuple[Any, ...]) -> None:
        self.came(len(values))
        if not self.dropped:
            self.landed += len(values)
            self.ready.append((index, codec.BLOCK, values, None, None))

    def _single(self, task: Task, k: int, again: Again | None = None) -> None:
        """Offer one item of a chunk by itself (again), as it was when it was given away."""
        if self.dropped:  # the queue would skip it
            self.came(1)
            return
        if self._sent is None or self._sent[0] is not task:
            try:
                self._sent = task, chunks.sent(task.data, task.flags)
            except (OSError, MemoryError) as error:  # its file cannot be read: no memory, no file descriptor
                self.fail_item(task.position + k, task.item[k], error)
                return
        part = self._sent[1][k]
        flags = self._flags if type(part) is bytes else self._flags | _core.PACKED | _core.REPEATABLE
        single = Task(
            self, task.position + k, self.function, part, flags, self._timeout_ms, task.item[k], 0, task.tries
        )
        self.client.again(single, again)

    def _task(self, index: int, data: Any, item: Any, items: int = 0, flags: int = 0) -> Task:
        flags |= self._flags
        if type(data) is tuple or len(data) > self.client.large:
            data, flags = self.client.prepared(data, flags, self.policy)
        return Task(self, index, self.function, data, flags, self._timeout_ms, item, items, FIRST)

    def crashed(self, task: Task, drained: int, committed: list[Any], death: Death) -> None:
        self.crashes += not death.condemned
        if not task.items:
            if (again := self._after_death(task, task.position, task.item, death)) is not None:
                self.client.again(task, again)
            return
        self._chunk_arrived(task, drained, committed, death.facts)
        # Item 0: it died before the first one started, perhaps while the function was decoded: each goes by itself,
        # uncharged. Else those behind the guilty one never started. From the last, for each goes before what waits.
        item = death.item
        for k in reversed(range(item, task.items)):
            self._single(task, k)
        if item:
            again = self._after_death(task, task.position + item - 1, task.item[item - 1], death)
            if again is not None:
                self._single(task, item - 1, again)
        self._sent = None

    def _after_death(self, task: Task, index: int, item: Any, death: Death) -> Again | None:
        """The item's next attempt; if there is none, its worker's death is its outcome."""
        again = after_death(task, death)
        if again is None:
            self._land(index, codec.DEATH, death, item, death.account())
        return again

    def fail(self, task: Task, error: BaseException, drained: int = 0) -> None:
        for k in range(drained, task.items or 1):
            self.fail_item(task.position + k, task.item[k] if task.items else task.item, error)

    def fail_item(self, index: int, item: Any, error: BaseException) -> None:
        self._land(index, codec.FAILED, error, item)

    # ---- the caller's side

    def outcome(
        self, index: int, kind: int, data: Any, item: Any, account: Account | None, hand: list[Any]
    ) -> Failure | None:
        """Put the item's value into ``hand``, or return its Failure."""
        if kind == codec.DECODED:
            hand.append(data)
            return None
        if kind == codec.FAILED:
            return Failure(item, index, data, account)
        if kind == codec.DEATH:
            return Failure(item, index, data.error(), account)
        try:
            if kind in codec.VALUES:
                self.held -= len(data)
                hand.append(codec.decode_value(kind, data, self.function.name))
                return None
            error = codec.decode_error(kind, data, self.function.name, self.client.room)
            capture.add_note(error, account and account.output)
        except Exception as failed:
            self.failed += kind in codec.VALUES  # it counts as a value so far
            error = failed
        return Failure(item, index, error, account)

    def wants(self, unread: int) -> int:
        """How many more items may be given away now, with so many results unread."""
        queue = self.client.queue
        if self.held > self._most_held or (queue and queue[-1].sink is self):
            return 0  # results would pile up in memory, or arguments, which wait for room
        if self._buffersize is not None:
            return self._buffersize - self.flying - unread
        window = self._window + self._beside()
        if self._item_bytes > _SMALL:  # memory that was just used is faster than memory that never was
            most = max(3 * self.client.workers, int(_FLYING_BYTES / self._item_bytes))
            window = min(window, most + self._beside())
        return min(window - self.flying, _AHEAD - self.flying - unread)

    def _beside(self) -> int:
        """How many items may be given away in the place of those that rest, which must not fill the memory."""
        return min(self.resting, int(_HELD_BYTES / self._item_bytes)) if self._item_bytes > _SMALL else self.resting

    def measure(self) -> None:
        """Size the window and the chunk by what came back lately."""
        if self._came < 64 and self._came < self._window:
            return
        now = time.monotonic()
        rate = self._came / max(now - self._since, 1e-6)
        self._came, self._since, self._rate = 0, now, rate
        if self.auto and self._item_us < _CHUNK_US / 2 and not self.buffered:
            best = int(_CHUNK_US / max(self._item_us, 1.0))
            best = min(best, int(_CHUNK_BYTES / max(self._item_bytes, 1.0)))
            self.chunksize = max(1, min(best, _CHUNK_MOST, 4 * self.chunksize))
        elif self.auto:
            self.chunksize = 1
        most = len(self.client.tasks) * 3 // 4 * self.chunksize
        least = 3 * self.client.workers * self.chunksize
        self._window = max(least, min(int(rate * _WINDOW_SECONDS), most, 2 * self._window))

    def nap(self) -> float:
        """Seconds that the caller may look away, because the workers have enough to do for much longer; else 0. To be
        woken for each result of a short task takes a core away from the next one."""
        came = self.given - self.flying
        if (
            came == self._looked or self.flying < 4 * self.client.workers
        ):  # nothing since the last time: tasks have become slow
            return 0.0
        self._looked = came
        nap = min(self.flying / max(self._rate, 1.0) / _NAP_SHARE, _NAP_SECONDS)
        return nap if nap > _LEAST_NAP and self._rate * nap >= _NAP_RESULTS else 0.0

    def give_singles(self, source: Iterator[Any], count: int) -> bool:
        """Publish up to ``count`` items one by one, straight from the input. True if the input has ended.

        The hot path: what ``Client.offer`` does, without its calls. Without the lock, too: a publication and its
        record are one call in C. Numbers and short strings need no step in Python; behind the first item that is
        something else, the others of this batch take their steps here."""
        client, function, flags, timeout_ms = self.client, self.function, self._flags, self._timeout_ms
        limit, must_look = self.policy.memory_limit, _core.monitor_must_look
        watched = timeout_ms or limit or self.policy.capture_output
        segment, tasks, publish = client.segment, client.tasks, _core.publish
        counts = [0]  # of what went without a step here
        fn, generation, unit, length = function.id, function.generation, function.unit, function.length
        number = function.number
        index, given, size, large = self.given, 0, 0, client.large
        buffers: list[Any] = []
        buffered = 0  # bytes of arguments that have buffers
        note, packed = buffers.append, not self.policy.retries
        packers = codec.PACKERS if packed else {}
        try:
            what: Any = ()
            if segment is not None and not client.reserve:
                like = _new(Task, (self, index, function, b"", flags, timeout_ms, None, 0, FIRST, 0))
                while (
                    what := _core.give(
                        segment, tasks, client.queue, source, count - counts[0], like, fn, generation, unit, length,
                        number, limit, bool(watched), counts,
                    )
                ) == 2:  # fmt: skip
                    client.tell_monitor_to_look()
                if type(what) is int:
                    return what == 1
            index += counts[0]
            for item in itertools.chain(what, itertools.islice(source, count - counts[0] - len(what))):
                given += 1
                kind = type(item)
                bare = None
                try:
                    if kind in _SCALARS:
                        data: Any = _dumps(item, 5)
                    else:
                        if kind in packers:
                            bare = packers[kind](item)
                        data = bare or _dumps(item, 5, buffer_callback=note)
                        if buffers and packed and data.find(_MAIN) < 0:
                            data = bare = codec.pack(data, buffers)
                            buffers.clear()
                except Exception:
                    data = b""
                if kind in _SCALARS:
                    kept, how = data, flags
                elif bare is not None and (taken := spill.size(bare)) <= large:
                    kept, how = taken, flags | _core.PACKED
                    size += kept
                    buffered += kept
                    self._saw(kept)
                elif not data or bare or buffers or len(data) > large or data.find(_MAIN) >= 0:
                    has_buffers = bool(bare or buffers)
                    bare = None
                    buffers.clear()
                    taken = self._give_one(index + given - 1, item)
                    buffered += has_buffers * taken
                    if client.queue or taken > _SMALL:  # it waits for room, or others might have to
                        return False
                    continue
                else:
                    kept, how = data, flags
                task = _new(Task, (self, index + given - 1, function, kept, how, timeout_ms, item, 0, FIRST, 0))
                if (
                    client.queue
                    or client.reserve
                    or client.segment is not segment  # replaced or closed meanwhile
                    or segment is None
                    or publish(
                        segment, tasks, task, fn, generation, unit, length, data, 0, timeout_ms, how, 1, number, limit
                    ) < 0
                ):  # fmt: skip
                    with client.lock:
                        client.offer(task if bare is None else task._replace(data=data))
                    if bare is not None and client.queue:
                        return False  # no room for large arguments: more of the input would only wait in memory
                elif watched and must_look(segment):
                    client.tell_monitor_to_look()
                if size > _BATCH_BYTES:
                    return False
                bare = data = None  # the input may resize its bytearray, which it cannot while we look into it
        finally:
            if given + counts[0]:
                self.buffered = buffered > _SMALL * (given + counts[0])
            self.flying += given + counts[0]
            self.given += given + counts[0]
        return given + counts[0] < count

    def give_chunk(self, source: Iterator[Any], count: int) -> bool:
        """Publish up to ``count`` items as one chunk. True if the input has ended; raises what the input raised."""
        chunk = chunks.Chunk(source, count, self.client.inherited)
        index, items, tasks = self.given, chunk.items, []
        if items:
            data, flags = chunk.encoded()
            self._item_bytes = max(0.8 * self._item_bytes, len(data) / len(items))  # large ones are forgotten in time
            self.buffered = chunk.buffered and len(data) > _SMALL * len(items)
            if self.auto and self.buffered:
                self.chunksize = 1
            tasks.append(self._task(index, data, items, len(items), flags=flags))
        if chunk.alone is not None:
            data, item = chunk.alone
            tasks.append(self._task(index + len(items), data, item))
        number = len(items) + (chunk.failed is not None) + (chunk.alone is not None)
        self.flying += number  # now, when nothing can fail any more: what counts as flying has to come back
        self.given += number
        for task in tasks:
            self._offer(task)
        if chunk.failed is not None:
            self._fail_early(index + len(items), *chunk.failed)
        if chunk.error is not None:
            raise chunk.error
        return chunk.ended

    def _give_one(self, index: int, item: Any) -> int:
        """The size of its arguments; 0 if they cannot be encoded."""
        try:
            task = self._task(index, codec.encode_args(item, self.client.inherited), item)
        except Exception as error:
            self._fail_early(index, item, error)
            return 0
        size = spill.length(task.data)
        self._saw(size)
        self._offer(task)
        return size

    def _saw(self, size: int) -> None:
        """The size of an item's arguments, which decides how many may be on their way."""
        if size > self._item_bytes:
            self._item_bytes = size
            if size >= _LARGE:
                codec.keep_freed_memory()

    def _mix_in(self, size: float) -> None:
        """The size of a result: as ``_saw``, but small ones make large ones forgotten in time."""
        self._item_bytes = 0.8 * self._item_bytes + 0.2 * size

    def _fail_early(self, index: int, item: Any, error: Exception) -> None:
        """It never became a task."""
        with self.client.lock:
            self.client.unfinished += self.eager
            self.fail_item(index, item, error)

    def _offer(self, task: Task) -> None:
        with self.client.lock:
            if self.eager:
                self.client.unfinished += task.items or 1
            self.client.offer(task)


__all__ = ["Failure", "MapRun"]
