"""The interface of a rival."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from time import perf_counter_ns
from typing import Any

from benchmarks import tasks

Function = Callable[[Any], Any]


class NotOffered(Exception):
    """The pool has no such call."""


class Rival:
    """A pool behind one interface. ``start`` does the imports too, so that start-up can be timed.

    Attributes:
        name: as on the command line and in the tables.
        package: the distribution that has to be installed; empty: nothing.
        module: what it is imported as.
        settings: how it is used, for the report: its best start method and what its documentation advises.
        first: source of a program that imports it, starts WORKERS workers and has one call done.
        lazy: it reads its input as it goes, so an endless one would do.
        heavy: it takes seconds to start, so it is measured in three runs at most.
        quick: it takes part in quick runs, which are to end soon.
    """

    name = ""
    package = ""
    module = ""
    settings = ""
    first = ""
    lazy = False
    heavy = False
    quick = True

    def start(self, workers: int) -> None:
        raise NotImplementedError

    def stop(self) -> None:
        raise NotImplementedError

    def each(self, fn: Function, items: Iterable[Any], count: int) -> Iterable[Any]:
        """Results, in any order, of items that are handed over one by one. ``count``: how many items there are."""
        raise NotImplementedError

    def chunked(self, fn: Function, items: Iterable[Any], count: int) -> Iterable[Any]:
        """Results with chunks of whatever size the pool, or its documentation, chooses."""
        raise NotImplementedError

    def arrays(self, fn: Function, items: Iterable[Any], count: int) -> Iterable[Any]:
        """Results, in any order, of items that together are too large for the memory."""
        return self.each(fn, items, count)

    def futures(self, fn: Function, items: Iterable[Any]) -> Iterator[Any]:
        """Submit all, then read all."""
        raise NotOffered("no futures")

    def call(self, fn: Function, item: Any) -> Any:
        """One call: submit, wait, read."""
        raise NotImplementedError

    # ---- no-op tasks, the sum of the results checked

    def map_noop(self, n: int, chunksize: int | None) -> None:
        """``chunksize`` 1: one by one; None: the pool's choice."""
        give = self.each if chunksize == 1 else self.chunked
        _check(sum(give(tasks.noop, range(n), n)), n)

    def submit_noop(self, n: int) -> None:
        _check(sum(self.futures(tasks.noop, range(n))), n)

    def round_trip(self, n: int) -> list[float]:
        """Microseconds that each of so many calls took, one after the other."""
        took = []
        for k in range(n):
            start = perf_counter_ns()
            self.call(tasks.noop, k)
            took.append((perf_counter_ns() - start) / 1000)
        return took


def windowed(submit: Callable[[Any], Any], items: Iterable[Any], most: int) -> Iterator[Any]:
    """Results through at most so many futures at a time, for pools whose map reads its input whole: what
    ``Executor.map(buffersize=)`` does in Python 3.14."""
    flying: deque[Any] = deque()
    for item in items:
        flying.append(submit(item))
        if len(flying) >= most:
            yield flying.popleft().result()
    while flying:
        yield flying.popleft().result()


def by_hand(count: int, workers: int) -> int:
    """A chunk size where a pool has no automatic one: four chunks a worker, as multiprocessing.Pool.map reckons."""
    return max(1, -(-count // (4 * workers)))


def _check(total: int, n: int) -> None:
    if total != n * (n - 1) // 2:
        raise AssertionError(f"{n} tasks gave a sum of {total}: some are missing or came twice")
