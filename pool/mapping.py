"""``imap`` and its forms: the dispatch loop in the caller's own thread, lazy and bounded.

The window (calls given to the workers and not yet back) is what keeps the workers busy for about 10 ms, not the number of rows: an expensive
producer is not run far ahead, and a submit in between does not wait behind a long queue. Chunks are sized by measured run time; a crash, a timeout
or an error inside a chunk is charged to its item alone, and the rest of the chunk goes on.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any

from ipc import _core
from pool import codec
from pool.client import Client, Policy, Task
from pool.functions import Function

_WINDOW_SECONDS = 0.010
_CHUNK_US = 1000.0  # run time of a chunk: long against the cost of handing it over, short against human patience
_CHUNK_MOST = 512
_FILL_SECONDS = 0.001  # a slow producer does not make a chunk wait for longer
_AHEAD = 4096  # an ordered map keeps at most so many results that wait for an earlier one


class Failure:
    """An item that failed, in its place among the results of ``on_error="return"``.

    Attributes:
        item: what the function was called with.
        index: position of the item in the input, from 0.
        error: the exception: the task's own, or one of ``pool.errors``.
    """

    __slots__ = ("error", "index", "item")

    def __init__(self, item: Any, index: int, error: BaseException) -> None:
        self.item = item
        self.index = index
        self.error = error

    def __repr__(self) -> str:
        return f"Failure(item={self.item!r}, index={self.index}, error={self.error!r})"


class MapRun:
    """One running map, as a sink of tasks. Results wait in ``ready`` as (index, kind, bytes | error) until the caller takes them."""

    def __init__(self, client: Client, function: Function, call: int, policy: Policy, chunksize: int | None, buffersize: int | None) -> None:
        self.client = client
        self.function = function
        self.call = call
        self.policy = policy
        self.row = -1
        self.dropped = False
        self.chunksize = chunksize or 1
        self.flying = 0  # items given away and not yet in ready
        self.items: dict[int, Any] = {}  # by index, of those in flight
        self.ready: deque[tuple[int, int, Any]] = deque()
        self.skipped = 0
        self._auto = chunksize is None
        self._flags = call << 8 | (_core.TIMED if self._auto else 0)
        self._timeout_ms = policy.timeout_ms
        self._buffersize = buffersize
        self._window = max(4, 3 * client.workers)
        self._item_us = 0.0
        self._came = 0
        self._since = time.monotonic()
        self._last: object = None
        self.eager = False  # everything is given away at once and counts as pending futures do: it runs even if nobody iterates

    # ---- the client's side; its lock is held

    def arrive(self, task: Task, kind: int, data: Any, slot: int, run_us: int) -> None:
        if data is self._last:  # an interrupted hand-over is repeated
            return
        self._last = data
        if task.count:
            self._chunk_arrived(task, data, 0)
        else:
            self._item_arrived(task.index, task, kind, data)
        if self._auto:
            each = run_us / (task.count or 1)
            self._item_us = each if self._item_us == 0 else 0.8 * self._item_us + 0.2 * each

    def _item_arrived(self, index: int, task: Task, kind: int, data: Any) -> None:
        if kind == codec.ERROR and task.attempt <= self.policy.retries and not self.dropped:
            self._single(index, task.attempt + 1)
            return
        self._land(index, kind, data)

    def _land(self, index: int, kind: int, data: Any) -> None:
        self.flying -= 1
        self._came += 1
        self.client.unfinished -= self.eager
        if not self.dropped:
            self.ready.append((index, kind, data))

    def _chunk_arrived(self, task: Task, frames: list[Any], start: int) -> None:
        for k in range(start, len(frames) // 2):
            self._item_arrived(task.index + k, task, frames[2 * k], frames[2 * k + 1])

    def _single(self, index: int, attempt: int) -> None:
        """Offer one item by itself (again)."""
        item = self.items[index]
        try:
            data = codec.encode_args(item)
        except Exception as error:
            self._land(index, -1, error)
            return
        self.client.again(Task(self, index, self.function, data, self._flags, self._timeout_ms, item, 0, attempt))

    def crashed(self, task: Task, item: int, committed: list[Any], error: BaseException, again: bool) -> None:
        if not task.count:
            self._item_crashed(task.index, task.attempt, error, again)
            return
        self._chunk_arrived(task, committed, 0)
        if item == 0:  # it died while the chunk was decoded: nobody can say by which item, so each goes by itself
            for k in reversed(range(task.count)):
                self._single(task.index + k, task.attempt)
            return
        for k in reversed(range(item, task.count)):  # those behind the guilty one never started
            self._single(task.index + k, task.attempt)
        self._item_crashed(task.index + item - 1, task.attempt, error, again)

    def _item_crashed(self, index: int, attempt: int, error: BaseException, again: bool) -> None:
        if again and attempt <= self.policy.retries and not self.dropped:
            self._single(index, attempt + 1)
        else:
            self._land(index, -1, error)

    def fail(self, task: Task, error: BaseException) -> None:
        for k in range(task.count or 1):
            self._land(task.index + k, -1, error)

    # ---- the caller's side

    def value(self, index: int, kind: int, data: Any) -> Any:
        """The item's value, or a Failure."""
        item = self.items.pop(index)
        if kind == codec.VALUE:
            try:
                return codec.loads(data)
            except Exception:
                pass  # told properly below
            try:
                return codec.decode_value(data, self.function.name)
            except Exception as error:
                return Failure(item, index, error)
        error = data if kind == -1 else codec.decode_error(kind, data, self.function.name, self.client.room)
        return Failure(item, index, error)

    def wants(self, unread: int) -> int:
        """How many more items may be given away now, with so many results unread."""
        if self._buffersize is not None:
            return self._buffersize - self.flying - unread
        return min(self._window - self.flying, _AHEAD - self.flying - unread)

    def measure(self) -> None:
        """Size the window and the chunk by what came back lately."""
        if self._came < 64 and self._came < self._window:
            return
        now = time.monotonic()
        rate = self._came / max(now - self._since, 1e-6)
        self._came, self._since = 0, now
        if self._auto and self._item_us < _CHUNK_US / 2:
            best = int(_CHUNK_US / max(self._item_us, 1.0))
            self.chunksize = max(1, min(best, _CHUNK_MOST, 4 * self.chunksize))
        elif self._auto:
            self.chunksize = 1
        most = len(self.client.tasks) * 3 // 4 * self.chunksize
        least = 3 * self.client.workers * self.chunksize
        self._window = max(least, min(int(rate * _WINDOW_SECONDS), most, 2 * self._window))

    def give(self, index: int, items: list[Any]) -> None:
        """Publish these items as one task (one item) or as a chunk. An item that cannot be encoded fails alone."""
        self.flying += len(items)
        self.items.update(enumerate(items, index))
        single = len(items) == 1 and self.chunksize == 1
        content = items[0] if single else items
        try:
            data = codec.encode_args(content)
        except Exception:
            self._give_one_by_one(index, items)
            return
        task = Task(self, index, self.function, data, self._flags, self._timeout_ms, content, 0 if single else len(items))
        client = self.client
        with client.lock:
            client.offer(task)

    def _give_one_by_one(self, index: int, items: list[Any]) -> None:
        client = self.client
        for k, item in enumerate(items):
            try:
                data = codec.encode_args(item)
            except Exception as error:
                with client.lock:
                    self._land(index + k, -1, error)
                continue
            with client.lock:
                client.offer(Task(self, index + k, self.function, data, self._flags, self._timeout_ms, item))


def run_map(run: MapRun, iterable: Iterable[Any], ordered: bool, on_error: str, given: int = 0, end: float | None = None) -> Iterator[Any]:
    """The dispatch loop: give while the window has room, yield what is ready, wait.

    ``given``: items that the run was given before. ``end``: time.monotonic() after which waiting for a result raises TimeoutError.
    """
    client, ready = run.client, run.ready
    source = iter(iterable)
    taken = 0
    exhausted = False
    early: dict[int, tuple[int, Any]] = {}
    failed: BaseException | None = None
    try:
        while True:
            while not exhausted and failed is None and (room := run.wants(len(ready) + len(early))) > 0:
                items: list[Any] = []
                try:
                    exhausted = _fill(items, source, min(run.chunksize, max(room, 1)))
                except Exception as error:  # the input raised: what was taken before still counts
                    failed = error
                if items:
                    run.give(given, items)
                    given += len(items)
                if ready:
                    break
            with client.lock:
                client.pump()
            client.announce()
            run.measure()
            while ready:
                index, kind, data = ready.popleft()
                if ordered and index != taken:
                    early[index] = (kind, data)
                    continue
                while True:
                    taken += 1
                    value = run.value(index, kind, data)
                    if type(value) is not Failure:
                        yield value
                    elif on_error == "return":
                        yield value
                    elif on_error == "raise":
                        raise value.error
                    else:
                        run.skipped += 1
                    value = data = None
                    if not early or taken not in early:
                        break
                    index = taken
                    kind, data = early.pop(taken)
                if run.wants(len(ready) + len(early)) > 0 and not exhausted and failed is None and len(ready) % 32 == 0:
                    break  # the workers come first
            if taken == given and (exhausted or failed is not None):
                if failed is not None:
                    raise failed
                return
            if ready or not (exhausted or failed is not None or run.wants(len(early)) <= 0):
                continue
            if not client.wait_for(lambda: run.ready, None if end is None else end - time.monotonic()):
                client.check_open()
                raise TimeoutError
    finally:
        if run.flying:
            client.drop(run)


def _fill(items: list[Any], source: Iterator[Any], count: int) -> bool:
    """Append up to ``count`` items. True if the source is exhausted. A slow source is not waited for once there is something to give."""
    if count == 1:
        for item in source:
            items.append(item)
            return False
        return True
    end = time.monotonic() + _FILL_SECONDS
    for item in source:
        items.append(item)
        if len(items) >= count or (len(items) & 15 == 0 and time.monotonic() > end):
            return False
    return True


def check_map_options(chunksize: int | str, on_error: str, buffersize: int | None) -> int | None:
    """The chunk size (None: automatic). Raises ValueError or TypeError for what is not allowed."""
    if on_error not in ("raise", "return", "skip"):
        raise ValueError(f'on_error must be "raise", "return" or "skip", not {on_error!r}')
    if buffersize is not None and buffersize < 1:
        raise ValueError("buffersize must be None or > 0")
    if chunksize == "auto":
        return None
    if not isinstance(chunksize, int):
        raise TypeError(f'chunksize must be an integer or "auto", not {chunksize!r}')
    if chunksize < 1:
        raise ValueError("chunksize must be >= 1.")
    return min(chunksize, _core.MAX_ITEMS)


__all__ = ["Failure", "MapRun", "check_map_options", "run_map"]
