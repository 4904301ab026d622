"""Arrays and other buffers: they arrive as they were when they were given, whoever keeps, changes, forks or dies."""

import array as arrays
import dataclasses
import gc
import itertools
import mmap
import os
import pickle
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import payloads
import processes
import pytest
import tasks
from payloads import MIB, UNIT, array, digest, settle, small_pool, units, views

from ipc import _core
from pool import Failure, Pool
from pool.errors import WorkerCrashed

pytestmark = pytest.mark.timeout(60)
LARGE = 3 * UNIT - 1024  # three units with its pickle: comes back as a view


@pytest.fixture(autouse=True)
def _nothing_left() -> Iterator[None]:
    with processes.nothing_left():
        yield


# ---- what a task keeps


@pytest.mark.parametrize("how", ["global", "cycle"])
def test_arguments_that_a_task_keeps_stay_as_they_are(how: str) -> None:
    with small_pool(1, 256) as pool:
        before = pool.submit(payloads.kept).result() or units(pool)
        value = array(1, LARGE)
        if how == "global":
            assert pool.submit(payloads.keep, value).result() == digest(value)
            assert list(pool.imap(digest, (array(k, LARGE) for k in range(2000)), chunksize=1)) == [
                digest(array(k, LARGE)) for k in range(2000)
            ]
            assert pool.submit(payloads.kept).result() == [digest(value)]
            assert units(pool) >= before + 3
        else:
            for _ in range(300):  # more than the room: cycles are collected when they take too much of it
                assert pool.submit(payloads.keep_in_cycle, value).result() == digest(value)
        pid = pool.submit(tasks.pid).result()
        pool.submit(payloads.forget).result()
        settle(pool, _functions(pool))
        assert pool.submit(tasks.pid).result() == pid


def _functions(pool: Pool) -> int:
    """Units of functions: one each."""
    return len(pool._client.functions._alive)


def test_a_thread_of_a_task_looks_at_its_argument_after_the_end(tmp_path: Path, gate: tasks.Gate) -> None:
    with small_pool(1, 256) as pool:
        value = array(1, LARGE)
        assert pool.submit(payloads.keep_in_thread, value, gate.path).result() == digest(value)
        assert sum(pool.imap(len, (array(k, LARGE) for k in range(1000)), chunksize=1)) == 1000 * LARGE
        gate.open()
        seen = Path(gate.path + ".seen")
        processes.wait_until(lambda: seen.exists() and seen.read_text(), "the thread has looked")
        assert int(seen.read_text()) == digest(value)
        settle(pool, _functions(pool))


def test_what_a_killed_worker_has_kept_is_given_back() -> None:
    with small_pool(1, 256) as pool:
        for _ in range(5):
            for k in range(3):
                pool.submit(payloads.keep, array(k, LARGE)).result()
            assert units(pool) == _functions(pool) + 9
            pid = processes.worker_pids(pool)[0]
            os.kill(pid, signal.SIGKILL)
            assert pool.submit(tasks.pid).result() != pid
            settle(pool, _functions(pool))
            assert pool.submit(payloads.kept).result() == []


@pytest.mark.parametrize("length", [UNIT, 5 * UNIT, 20 * UNIT])
def test_a_task_that_keeps_everything_stops_nobody(length: int) -> None:
    with small_pool(2, 64) as pool:
        wanted = [digest(array(k, length)) for k in range(60)]
        assert list(pool.imap(payloads.keep, (array(k, length) for k in range(60)), chunksize=1)) == wanted
        assert list(pool.map(payloads.keep, (array(k, length) for k in range(60)))) == wanted
        pids = set(processes.worker_pids(pool))
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        processes.wait_until(lambda: not pids & set(processes.worker_pids(pool)), "they are replaced")
        assert pool.submit(int, "7").result() == 7
        settle(pool, _functions(pool))


def test_a_worker_that_keeps_some_arguments_does_not_collect_garbage_after_every_task() -> None:
    with small_pool(1, 256) as pool:
        pid = pool.submit(tasks.pid).result()
        for k in range(8):  # more than one 64th of the room, less than four times as much
            pool.submit(payloads.keep, array(k, UNIT)).result()
        before = pool.submit(payloads.collections).result()
        assert list(pool.imap(abs, range(500), chunksize=1)) == list(range(500))
        assert pool.submit(payloads.collections).result() - before < 50
        assert pool.submit(tasks.pid).result() == pid


# ---- forks


def test_a_child_that_a_task_has_forked_reads_the_argument_after_the_task_has_ended(gate: tasks.Gate) -> None:
    with small_pool(1, 256) as pool:
        value = array(1, LARGE)
        child = pool.submit(payloads.fork_reader, value, gate.path).result()
        gate.await_start()
        for _ in range(3):
            assert sum(pool.imap(len, (array(k, LARGE) for k in range(300)), chunksize=1)) == 300 * LARGE
        gate.open()
        seen = Path(gate.path + ".seen")
        processes.wait_until(seen.exists, "the child has looked")
        assert int(seen.read_text()) == digest(value)
        pool.submit(payloads.reap, child).result()


def test_a_forked_child_of_the_client_reads_the_values_that_its_parent_drops(gate: tasks.Gate) -> None:
    with small_pool(2, 256) as pool:
        held = [pool.submit(payloads.make, k, LARGE).result() for k in range(5)]
        assert views(pool) == 15
        child = _forked(lambda: tasks.hold(gate.path) or [digest(h) for h in held] == _digests(5))
        gate.await_start()
        del held
        others = [pool.submit(payloads.make, 100 + k, LARGE).result() for k in range(40)]
        for _ in range(3):
            for k in range(40):
                pool.submit(payloads.make, k + 50, LARGE).result()
        gate.open()
        assert _code(child) == 0
        assert [digest(o) for o in others] == [digest(array(100 + k, LARGE)) for k in range(40)]


def _digests(count: int) -> list[int]:
    return [digest(array(k, LARGE)) for k in range(count)]


def _forked(check: Callable[[], bool]) -> int:
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            code = 0 if check() else 2
        finally:
            os._exit(code)
    return pid


def _code(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.mark.parametrize("end", ["shutdown", "kill", "running"])
def test_a_forked_child_drops_values_and_uses_its_own_memory(end: str) -> None:
    pool = Pool(2).start()
    held = [pool.submit(payloads.make, k, LARGE).result() for k in range(5)]
    if end == "shutdown":
        pool.shutdown()
    elif end == "kill":
        pool.kill_workers()
    holder = [pool]
    del pool
    if end != "running":
        holder.clear()
        gc.collect()

    def child() -> bool:
        maps = [mmap.mmap(-1, n << 12) for n in range(1, 1000)]  # also where the segment was
        good = [digest(h) for h in held] == _digests(5)
        held.clear()
        holder.clear()
        gc.collect()
        for memory in maps:
            memory[0] = memory[-1] = 1
        return good

    assert _code(_forked(child)) == 0
    assert [digest(h) for h in held] == _digests(5)
    if holder:
        holder.pop().shutdown()


# ---- values in the client's hands


def test_values_can_be_written_to_and_outlive_thousands_of_tasks() -> None:
    with small_pool(2, 256) as pool:
        held = [pool.submit(payloads.make, k, LARGE).result() for k in range(30)]  # more than may be views
        assert 0 < views(pool) <= 64
        for value in held:
            value += 1
        wanted = [digest(array(k, LARGE) + 1) for k in range(30)]
        numbers = ((k, 40_000) for k in range(2000))
        assert sum(map(len, pool.imap_unordered(payloads.make_of, numbers, chunksize=1))) == 2000 * 40_000
        assert [digest(h) for h in held] == wanted
        del value
        while held:
            held.pop(len(held) // 2)
        assert views(pool) == 0
        settle(pool, _functions(pool))


def test_ten_thousand_values_are_held_beside_a_room_for_a_few() -> None:
    with small_pool(2, 128) as pool:
        held = list(pool.imap(payloads.make_of, ((k, 33_000) for k in range(10_000))))
        assert 0 < views(pool) <= 32
        assert all(digest(h) == digest(array(k, 33_000)) for k, h in enumerate(held))
        threads = [threading.Thread(target=held.__setitem__, args=(slice(k, None, 4), [None] * 2500)) for k in range(4)]
        for thread in threads:
            thread.start()
        assert [digest(pool.submit(payloads.make, k, LARGE).result()) for k in range(20)] == _digests(20)
        for thread in threads:
            thread.join()
        assert views(pool) == 0
        settle(pool, _functions(pool))


@pytest.mark.parametrize("end", ["shutdown", "kill"])
def test_values_outlive_the_pool_and_nothing_else_does(end: str) -> None:
    with payloads.started(2, 1024) as (pool, payload):
        held = [pool.submit(payloads.make, k, LARGE).result() for k in range(10)]
        pool.submit(payloads.keep, array(1, 40 * UNIT)).result()
        if end == "shutdown":
            pool.shutdown()
        else:
            pool.submit(tasks.sleep, 1000.0), pool.submit(tasks.sleep, 1000.0)
            for k in range(5):
                pool.submit(len, array(k, 60 * UNIT))
            pool.kill_workers()
        processes.wait_until(lambda: payloads.memory(payload) <= 30 * UNIT, "only what is held takes memory", 5)
        assert [digest(h) for h in held] == _digests(10)
        held[3:] = []
        assert payloads.memory(payload) <= 9 * UNIT
        assert [digest(h) for h in held] == _digests(3)
        held.clear()
        assert payloads.memory(payload) == 0


def test_an_idle_pool_gives_back_the_memory_of_values_that_were_dropped_later() -> None:
    with payloads.started(2, 4096) as (pool, payload), pool:
        held = list(pool.imap(payloads.make_of, ((k, 8 * UNIT) for k in range(100)), chunksize=1))
        assert views(pool) > 500
        held.clear()
        assert views(pool) == 0
        assert list(pool.imap(abs, range(10))) == list(range(10))
        processes.wait_until(lambda: payloads.memory(payload) <= 258 * UNIT, "little memory is taken", 5)


def test_values_outlive_a_pool_that_nobody_holds() -> None:
    pool = Pool(2).start()
    held = [pool.submit(payloads.make, k, LARGE).result() for k in range(10)]
    pids = processes.worker_pids(pool)
    del pool
    processes.wait_until(lambda: not any(map(processes.runs, pids)), "the pool has ended")
    gc.collect()
    assert [digest(h) for h in held] == _digests(10)


# ---- retries


@pytest.mark.parametrize("length", [100, 1000, LARGE])
@pytest.mark.parametrize("how", ["raise", "die", "time out"])
def test_a_further_attempt_gets_what_the_first_one_got(tmp_path: Path, how: str, length: int) -> None:
    value = array(1, length)
    wanted = digest(value)
    with small_pool(2, 64) as pool:
        options = pool.options(retries=2, timeout=0.2 if how == "time out" else None)
        future = options.submit(payloads.mutate_and_fail, value, str(tmp_path / "a"), how)
        value[...] = 3
        assert future.result(30) == wanted
        value = array(1, length)
        items = [(value, str(tmp_path / "b"), how)]
        assert options.starmap(payloads.mutate_and_fail, items) == [wanted]
        assert digest(value) == wanted
        settle(pool, _functions(pool))


# ---- the caller's array is free again when it was given


@pytest.mark.parametrize("retries", [0, 2])
@pytest.mark.parametrize("length", [8, 400, 500, LARGE])
def test_submit_has_taken_the_array_when_it_returns(length: int, retries: int) -> None:
    with small_pool(2, 64, rows=16, retries=retries) as pool:
        value = np.zeros(length // 8, np.uint64)
        futures = []
        for k in range(400):  # more than there are rows, and than there is room
            value[:] = k
            futures.append(pool.submit(payloads.number_of, value))
        value[:] = 9999
        assert [future.result() for future in futures] == list(range(400))
        settle(pool, _functions(pool))


def _refilled(count: int, length: int = 64) -> Iterator[Any]:
    value = np.zeros(length // 8, np.uint64)
    for k in range(count):
        value[:] = k
        yield value
    value[:] = 9999


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("length", [8, 1000, LARGE])
@pytest.mark.parametrize("chunksize", [1, 7, "auto"])
def test_a_generator_may_refill_the_array_that_it_yields(chunksize: Any, length: int, workers: int) -> None:
    count = 300 if length == LARGE else 1000
    with small_pool(workers, 64, rows=16) if workers else Pool(0) as pool:
        for run in (pool.imap, pool.imap_unordered):
            got = run(payloads.number_of, _refilled(count, length), chunksize=chunksize)
            assert sorted(got) == list(range(count))
        items = ((value, k) for k, value in enumerate(_refilled(count, length)))
        assert pool.starmap(_number_and, items, chunksize=chunksize) == [(k, k) for k in range(count)]
        size = 1 if chunksize == "auto" else chunksize
        assert list(pool.map(payloads.number_of, _refilled(count, length), chunksize=size)) == list(range(count))


def _number_and(value: Any, k: int) -> tuple[int, int]:
    return int(value[0]), k


@pytest.mark.parametrize("retries", [0, 2])
@pytest.mark.parametrize("chunksize", [1, 7, "auto"])
def test_items_after_a_crash_in_their_chunk_are_what_they_were(tmp_path: Path, chunksize: Any, retries: int) -> None:
    with small_pool(2, 64, retries=retries) as pool:
        items = ((value, str(tmp_path / "count"), 43) for value in _refilled(100))
        got = list(pool.istarmap(payloads.mutate_first, items, chunksize=chunksize, on_error="return"))
        if not retries:
            failure = got[43]
            assert isinstance(failure, Failure)
            assert isinstance(failure.error, WorkerCrashed)
            got[43] = 43
        assert got == list(range(100))


@pytest.mark.parametrize("chunksize", [1, 7, "auto"])
def test_no_item_sees_what_was_done_to_another_one(chunksize: Any) -> None:
    with small_pool(2, 64) as pool:
        value, numbers = np.zeros(10), [0]
        got = list(pool.imap(payloads.add_one, itertools.repeat(value, 500), chunksize=chunksize))
        assert all((g == 1).all() for g in got)
        assert list(pool.imap(_append, itertools.repeat(numbers, 500), chunksize=chunksize)) == [2] * 500
        assert (value == 0).all()


def _append(numbers: list[int]) -> int:
    numbers.append(1)
    return len(numbers)
