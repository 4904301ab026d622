"""Numbers and short strings one by one: published, run and taken without a step in Python, and nobody can tell."""

import asyncio
import contextlib
import itertools
import math
import os
import queue
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import processes
import pytest
import tasks

from pool import Failure, Pool, worker
from pool.errors import PoolClosed, TaskTimeout, WorkerCrashed
from pool.mapping import NotYet

pytestmark = [pytest.mark.timeout(60), pytest.mark.usefixtures("idle_afterwards")]

PLAIN = [0, -1, 255, 256, 65535, 65536, 2**31 - 1, -(2**31), 2**31, 2**63 - 1, -(2**63)]
PLAIN += [None, True, False, 0.0, -0.0, 2.5, math.inf, "", "x" * 255, "grüße 🎉", "__main__", b"", b"\0" * 255]
OTHER = [2**63, -(2**63) - 1, "x" * 256, "ü" * 200, "\ud800", b"x" * 256, 1j, (1, 2), [3], {4: 5}, frozenset({6})]


class Number(int):
    pass


def _twice(x: Any) -> Any:
    return x, type(x).__name__


@pytest.mark.parametrize("ordered", [True, False])
def test_whatever_the_items_are_they_arrive_as_they_are(pool: Pool, ordered: bool) -> None:
    items = [*PLAIN, *OTHER, Number(7), *PLAIN, Number(8), *OTHER]
    imap = pool.imap if ordered else pool.imap_unordered
    for fn in (tasks.identity, _twice):
        expected = [(repr(fn(x)), type(x)) for x in items]
        found = [(repr(x), type(x if fn is tasks.identity else x[0])) for x in imap(fn, items, chunksize=1)]
        assert found == expected if ordered else sorted(map(str, found)) == sorted(map(str, expected))


def test_the_first_item_that_is_not_plain_is_given_once_and_in_its_place(pool: Pool) -> None:
    for before in (0, 1, 63, 64, 65):
        items = [*range(before), [1], *range(5), (2,)]
        assert list(pool.imap(tasks.identity, iter(items), chunksize=1)) == items


def test_an_input_that_waits_for_the_result_of_its_last_item(pool: Pool) -> None:
    """Each item is given away before the next one is asked for."""
    answers: queue.Queue[int] = queue.Queue()

    def source() -> Iterator[int]:
        yield 0
        for _ in range(200):
            yield answers.get() + 1

    results = pool.imap_unordered(tasks.identity, source(), chunksize=1, buffersize=1)
    for x in results:
        answers.put(x)
        if x == 200:
            break
    results.close()


@pytest.mark.parametrize("error", [ValueError("no more"), NotYet()])
def test_an_input_that_raises_in_the_middle(pool: Pool, error: Exception) -> None:
    class Source:
        count = 0

        def __iter__(self) -> Iterator[int]:
            return self

        def __next__(self) -> int:
            self.count += 1
            if self.count == 40:
                raise error
            if self.count > 100:
                raise StopIteration
            return self.count

    results: list[int] = []
    with contextlib.suppress(ValueError):
        results.extend(pool.imap(tasks.identity, Source(), chunksize=1))
    assert results == [*range(1, 40), *(range(41, 101) if isinstance(error, NotYet) else ())]


@pytest.mark.parametrize("how", ["imap", "with progress", "amap"])
def test_an_input_that_closes_the_pool(how: str) -> None:
    """What it gives afterwards is not waited for: nobody runs it."""

    def source(own: Pool) -> Iterator[int]:
        yield from range(10)
        own.shutdown()
        yield from range(10, 20)

    results = []

    async def main(own: Pool) -> None:
        async for x in own.amap(tasks.identity, source(own), chunksize=1):
            results.append(x)

    with Pool(2) as own:
        progress = (lambda _: None) if how == "with progress" else False
        each = own.imap_unordered(tasks.identity, source(own), chunksize=1, progress=progress)
        with pytest.raises(PoolClosed):
            asyncio.run(main(own)) if how == "amap" else [results.append(x) for x in each]
    assert sorted(results) == list(range(10))


def test_an_input_that_forks(tmp_path: Path) -> None:
    """In the child the pool is somebody else's: it is told so, and the parent's items are given once."""
    said = tmp_path / "said"
    ours = os.getpid()

    def source() -> Iterator[int]:
        yield from range(5)
        if os.fork() == 0:
            yield 5
            os._exit(1)
        os.wait()
        yield from range(5, 10)

    with Pool(2) as pool:
        results = []
        try:
            results += pool.imap(tasks.identity, source(), chunksize=1)
        except Exception as error:
            if os.getpid() != ours:
                said.write_text(type(error).__name__)
        finally:
            if os.getpid() != ours:
                os._exit(0)
        assert results == list(range(10))
        assert said.read_text() == "PoolClosed"


def _odd_ends(x: int) -> Any:
    if x % 7 == 1:
        raise ValueError(x)
    if x % 7 == 2:
        raise SystemExit(x)
    if x % 7 == 3:
        return lambda: x
    if x % 7 == 4:
        return threading.Lock()
    if x % 7 == 5 and os.fork() == 0:
        if x % 2:
            raise KeyError(x)
        return x
    if x % 7 == 6:
        signal.raise_signal(signal.SIGINT)
    return x


def test_what_a_task_raises_and_returns_in_the_middle_of_plain_ones(pool: Pool) -> None:
    before = pool.insights().crashes
    results = list(pool.imap(_odd_ends, range(200), chunksize=1, on_error="return"))
    for x, result in enumerate(results):
        if x % 7 in (0, 5):
            assert result == x
        elif x % 7 == 3:
            assert result() == x
        else:
            expected = {1: "ValueError", 2: "SystemExit", 4: "ResultNotPicklable", 6: "KeyboardInterrupt"}
            assert type(result.error).__name__ == expected[x % 7]
            assert (result.item, result.index) == (x, x)
    assert pool.insights().crashes == before


def _deep(x: int) -> int:
    return _fails(x) if x == 50 else x


def _fails(x: int) -> int:
    raise ValueError(x)


def test_the_traceback_is_that_of_the_task_alone(pool: Pool) -> None:
    (failure,) = (r for r in pool.imap(_deep, range(60), chunksize=1, on_error="return") if isinstance(r, Failure))
    text = "".join(traceback.format_exception(failure.error.__cause__))
    assert [line.strip().rpartition(" in ")[2] for line in text.splitlines() if '  File "' in line] == [
        "_deep",
        "_fails",
    ]
    assert "ValueError: 50" in text


def _dies(x: int) -> int:
    if x % 50 == 49:
        os.kill(os.getpid(), signal.SIGKILL)
    if x % 50 == 24:
        while True:
            pass
    return x


class _Traced:
    """Says in a file when it goes."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __del__(self) -> None:
        os.close(os.open(self.path, os.O_CREAT | os.O_WRONLY))

    def __reduce__(self) -> Any:
        return str, ("traced",)


def _leaves(path: str) -> Any:
    if path.endswith("returned"):
        return _Traced(path)
    if path.endswith("raised"):
        traced = _Traced(path)
        raise ValueError(str(traced is None))
    return None


@pytest.mark.parametrize("how", ["returned", "raised"])
def test_an_idle_worker_holds_nothing_of_its_last_task(tmp_path: Path, how: str) -> None:
    last = tmp_path / how
    with Pool(1) as pool:
        assert len(list(pool.imap(_leaves, ["", "", str(last)], chunksize=1, on_error="return"))) == 3
        processes.wait_until(last.exists, "the last task's objects are gone, without another task")


class _Hanging:
    """Its end has none."""

    def __del__(self) -> None:
        while True:
            pass

    def __reduce__(self) -> Any:
        return str, ("hanging",)


def _leaves_a_hanging_end(x: int, how: str) -> Any:
    if x != 3:
        return x
    hanging = _Hanging()
    if how == "returned":
        return hanging
    raise ValueError(str(hanging is None))


@pytest.mark.parametrize("chunksize", [0, 1, 6])
@pytest.mark.parametrize("how", ["returned", "raised"])
def test_what_the_objects_of_a_task_do_at_their_end_is_under_its_deadline(how: str, chunksize: int) -> None:
    fn = partial(_leaves_a_hanging_end, how=how)
    with Pool(1, timeout=0.5) as pool:
        if not chunksize:
            futures = [pool.submit(fn, x) for x in range(6)]
            results = [future.exception() or future.result() for future in futures]
        else:
            results = list(pool.imap(fn, range(6), chunksize=chunksize, on_error="return"))
            results[3] = results[3].error
    assert type(results[3]) is TaskTimeout
    assert results[:3] + results[4:] == [0, 1, 2, 4, 5]


def test_an_interrupt_of_an_idle_worker_is_not_for_its_next_task() -> None:
    with Pool(1) as pool:
        pid = pool.submit(tasks.pid).result()

        def source() -> Iterator[int]:
            yield from range(5)
            processes.wait_until(lambda: processes.sleeps(pid), "the worker has nothing to do")
            os.kill(pid, signal.SIGSTOP)
            processes.wait_until(lambda: processes.is_stopped(pid), "it is stopped")
            yield 5  # published, so its wait ends with a task, and with the signal
            os.kill(pid, signal.SIGINT)
            os.kill(pid, signal.SIGCONT)
            yield 6

        assert list(pool.imap(tasks.identity, source(), chunksize=1, on_error="return")) == list(range(7))


def _leaves_a_handler_that_forks(path: str) -> None:
    def fork(number: int, frame: object) -> None:
        if child := os.fork():
            Path(path).write_text(str(os.waitpid(child, 0)[1]))

    signal.signal(signal.SIGUSR1, fork)


@pytest.mark.parametrize("busy", [False, True])
def test_the_child_of_a_handler_that_a_task_has_left_ends_by_itself(tmp_path: Path, busy: bool) -> None:
    """It comes back to where the worker claims its tasks, and the memory is not the child's."""
    path = tmp_path / "status"
    with Pool(1) as pool:
        pid = pool.submit(_leaves_a_handler_that_forks, str(path)).result() or pool.submit(tasks.pid).result()
        if not busy:
            processes.wait_until(lambda: processes.sleeps(pid), "the worker has nothing to do")
        os.kill(pid, signal.SIGUSR1)
        for _ in pool.imap(tasks.identity, itertools.count(), chunksize=1) if busy else ():
            if path.exists():
                break
        processes.wait_until(lambda: path.exists() and path.read_text() != "", "the child has ended")
        assert path.read_text() == "0"
        assert pool.submit(tasks.pid).result() == pid


def _uses_a_pool_of_its_own(x: int) -> tuple[int, int, str]:
    with Pool(0) as inner:
        inner.submit(abs, x).result()
    try:
        signal.raise_signal(signal.SIGINT)
    except KeyboardInterrupt:
        return x, worker().attempt, "interrupted"
    return x, worker().attempt, "not interrupted"


@pytest.mark.parametrize("chunksize", [1, 3])
def test_a_task_that_uses_a_pool_without_workers_is_still_a_task(pool: Pool, chunksize: int) -> None:
    found = list(pool.imap(_uses_a_pool_of_its_own, range(6), chunksize=chunksize))
    assert found == [(x, 1, "interrupted") for x in range(6)]


def test_deaths_and_deadlines_among_plain_items_name_them() -> None:
    with Pool(2, timeout=0.5) as pool:
        results = list(pool.imap(_dies, range(200), chunksize=1, on_error="return"))
    failures = {r.item: type(r.error) for r in results if isinstance(r, Failure)}
    assert failures == {x: WorkerCrashed if x % 50 == 49 else TaskTimeout for x in range(200) if x % 25 == 24}
    assert [r for r in results if not isinstance(r, Failure)] == [x for x in range(200) if x % 25 != 24]


def test_a_deadline_of_a_plain_item_is_kept_though_its_input_blocks(gate: tasks.Gate) -> None:
    """The monitor, which had nothing to look at, is told before the next item is asked for."""
    ended = threading.Event()

    def source() -> Iterator[int]:
        yield 1
        ended.wait(20)

    with Pool(1, timeout=0.2) as pool:
        pool.submit(tasks.identity, 0).result()
        pid = pool.submit(tasks.pid).result()
        results = pool.imap(_hang, source(), chunksize=1, on_error="return")
        found: list[Any] = []
        reader = threading.Thread(target=lambda: found.extend(results))
        reader.start()
        processes.wait_until(lambda: not processes.runs(pid), "the worker is killed at its deadline")
        ended.set()
        reader.join()
        assert [type(r.error) for r in found] == [TaskTimeout]


def _hang(_: int) -> None:
    while True:
        pass


def _count_in_background(path: str) -> None:
    def count() -> None:
        with open(path, "ab", buffering=0) as file:
            while True:
                file.write(b"x")
                time.sleep(0)

    threading.Thread(target=count, daemon=True).start()


def test_a_thread_of_a_worker_has_its_turn_beside_functions_in_c(tmp_path: Path) -> None:
    path = tmp_path / "turns"
    with Pool(1, initializer=_count_in_background, initargs=(str(path),)) as pool:
        taken = 0
        for _ in pool.imap_unordered(abs, itertools.count(), chunksize=1):
            taken += 1
            if taken % 1000 == 0 and path.stat().st_size > 50:
                break
        assert taken < 10**6


def test_a_function_that_has_changed_is_the_new_one(pool: Pool) -> None:
    for k in range(5):
        assert set(pool.imap_unordered(lambda x: k, range(20), chunksize=1)) == {k}  # noqa: B023


def test_functions_in_turns(pool: Pool) -> None:
    several: list[Callable[[int], int]] = [abs, tasks.square, math.factorial]
    maps = [pool.imap(fn, range(1, 30), chunksize=1) for fn in several]
    assert list(zip(*maps, strict=True)) == [(x, x * x, math.factorial(x)) for x in range(1, 30)]


def test_a_worker_still_ends_after_so_many_tasks() -> None:
    with Pool(1, max_tasks_per_child=10) as pool:
        pids = list(pool.imap(tasks.pid, range(40), chunksize=1))
        assert [pids.count(pid) for pid in dict.fromkeys(pids)] == [10, 10, 10, 10]


def test_what_goes_wrong_in_the_middle_of_reading_is_given_up(pool: Pool) -> None:
    results = pool.imap_unordered(tasks.identity, itertools.count(), chunksize=1)
    assert len(list(itertools.islice(results, 1000))) == 1000
    results.close()


def test_two_threads_with_maps_of_one_pool(pool: Pool) -> None:
    """Who waits may collect for the other."""
    sums: list[int] = []

    def run(ordered: bool) -> None:
        imap = pool.imap if ordered else pool.imap_unordered
        sums.append(sum(imap(tasks.identity, range(5000), chunksize=1)))

    threads = [threading.Thread(target=run, args=(k % 2 == 0,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sums == [sum(range(5000))] * 4


@pytest.mark.parametrize("progress", [False, True])
def test_values_are_counted_where_somebody_watches(pool: Pool, progress: bool) -> None:
    def count() -> int:
        return sum(f.count for f in pool.insights().functions if "identity" in f.name)

    seen: list[int] = []
    before = count()
    show = (lambda p: seen.append(p.done)) if progress else False
    results = pool.imap_unordered(tasks.identity, range(3000), chunksize=1, progress=show)
    assert sum(results) == sum(range(3000))
    assert not progress or seen[-1] == 3000
    assert count() == before + 3000
