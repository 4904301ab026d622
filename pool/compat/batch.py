"""Calls that are given away at once, whether anybody asks for their outcomes or not: what multiprocessing and joblib
expect of a pool. (``Pool.imap`` gives only as much as is asked for.)
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures._base import LOGGER

from pool import codec
from pool.client import CLOSED
from pool.map_run import Failure, MapRun
from pool.task import Task

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from pool.account import Account
    from pool.executor import Pool

CALL_ONE, CALL_STAR = codec.CALL_ONE, codec.CALL_STAR
"""How the function is called with an item: ``fn(item)``, ``fn(*item)``."""


class Batch(MapRun):
    """All items of an input, in chunks of ``chunksize``. Outcomes are kept until they are taken.

    A crash, a timeout or an error costs its own item; the others of its chunk go on. An error of the input stands in
    the place of the chunk that it could not fill, and is the last outcome.

    Attributes:
        complete: the input has ended, and everything is back.
    """

    def __init__(
        self,
        pool: Pool,
        fn: Callable[..., Any],
        call: int,
        chunksize: int,
        when_complete: Callable[[Batch], object] | None = None,
    ) -> None:
        """``when_complete(batch)`` is called in the pool's collector thread. Raises what pickling ``fn`` raised,
        PoolClosed, and MemoryError if there is no room for ``fn``."""
        super().__init__(pool._client, pool._function(fn), call, pool._policy, chunksize, None)
        self.eager = True
        self.owner = pool
        self.complete = False
        self._when_complete = when_complete
        self._input_ended = False
        self._landed: dict[int, tuple[int, int, Any, Any, Account | None]] = {}
        self._taken = 0

    # ---- giving

    def give(self, iterable: Iterable[Any], most: int | None = None) -> None:
        """Give away everything, and return when the input has ended. Nothing is raised: errors are outcomes, also that
        of the input. With more than ``most`` items in flight it waits for half of them to come back."""
        client = self.client
        try:
            source = iter(iterable)
            while self._give_with_handles(source):
                if client.state == CLOSED:
                    client.check_open()
                with client.lock:
                    client.submitted()
                if most is not None and self.flying > most:
                    client.wait_for(lambda: self.flying <= most // 2)
        except Exception as error:
            self.given += 1
            self.flying += 1
            self._fail_early(self.given - 1, None, error)
        with client.lock:
            self._input_ended = True
            self._look()
        client.news()
        if self._when_complete is not None:
            client.look_after()

    def _give_with_handles(self, source: Iterator[Any]) -> bool:
        if not codec.handles.used:
            return self._give(source)
        more, handles = codec.handles.of(self._give, source)
        self.handles.update(handles)
        return bool(more)

    def _give(self, source: Iterator[Any]) -> bool:
        """Give away one chunk. False if the input has ended. Raises what the input raised."""
        if self.chunksize > 1:
            items = list(itertools.islice(source, self.chunksize))
            rest = iter(items)
            while not self.give_chunk(rest, self.chunksize):  # it stops early where encoding is slow
                pass
            return bool(items)
        for item in source:
            self.given += 1
            self.flying += 1  # before it is given: it may be back before the next line
            self._give_one(self.given - 1, item)
            return True
        return False

    def _offer(self, task: Task) -> None:
        client = self.client
        with client.lock:
            client.unfinished += task.items or 1
            if client.state == CLOSED:
                try:
                    client.check_open()
                except Exception as error:
                    self.fail(task, error)
            else:
                client.offer(task)

    # ---- the client's side; its lock is held

    def _land(self, index: int, kind: int, data: Any, item: Any, account: Account | None = None) -> None:
        super()._land(index, kind, data, item, account)
        self._landed[index] = self.ready.pop()
        self._look()

    def _values_arrived(self, index: int, values: tuple[Any, ...]) -> None:
        self.came(len(values))
        for k, value in enumerate(values, index):
            self._landed[k] = k, codec.DECODED, value, None, None
        self._look()

    def _look(self) -> None:
        if self._input_ended and not self.flying and not self.complete:
            self.complete = True
            if self._when_complete is not None:
                self.client.to_call.append(self)

    # ---- the caller's side

    def call(self) -> None:
        """What the collector thread does when the batch is complete."""
        when_complete, self._when_complete = self._when_complete, None  # it refers to its batch
        assert when_complete is not None
        try:
            when_complete(self)
        except Exception:
            LOGGER.exception("exception calling callback for %r", self)

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until everything is back. False after ``timeout`` seconds."""
        return self.client.wait_for(lambda: self.complete, timeout)

    def values(self) -> list[Any] | Failure:
        """All values in order, or the first failure. To be called once, when the batch is complete."""
        values: list[Any] = []
        for index in range(self.given):
            failure = self.outcome(*self._landed.pop(index), values)
            if failure is not None:
                self._landed.clear()
                return failure
        return values

    def next_outcome(self, ordered: bool, timeout: float | None = None) -> tuple[bool, Any] | None:
        """The next one, in the order of the input or as they come: (True, value) or (False, error). None after
        ``timeout`` seconds. Raises StopIteration after the last one."""
        client, landed = self.client, self._landed
        end = None if timeout is None else time.monotonic() + timeout

        def there() -> bool:
            return self._taken in landed if ordered else bool(landed)

        while True:
            with client.lock:
                if there():
                    outcome = landed.pop(self._taken if ordered else next(iter(landed)))
                    self._taken += 1
                    break
                if self.complete:
                    raise StopIteration
            if not client.wait_for(lambda: there() or self.complete, None if end is None else end - time.monotonic()):
                client.check_open()
                return None
        hand: list[Any] = []
        failure = self.outcome(*outcome, hand)
        return (True, hand.pop()) if failure is None else (False, failure.error)


__all__ = ["CALL_ONE", "CALL_STAR", "Batch"]
