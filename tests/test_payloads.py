"""Arrays and other buffers: they arrive as they were when they were given, whoever keeps, changes, forks or dies."""

import array as arrays
import contextlib
import dataclasses
import functools
import gc
import itertools
import mmap
import os
import pickle
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any, ClassVar, NoReturn

import numpy as np
import payloads
import processes
import pytest
import scripts
import tasks
from payloads import MIB, UNIT, array, digest, settle, small_pool, units, views

from ipc._core import INLINE as _INLINE
from pool import Failure, Pool, chunks, map_run
from pool.errors import PayloadTooLarge, WorkerCrashed

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
        wanted = [digest(array(k, length)) for k in range(30)]
        assert list(pool.imap(payloads.keep, (array(k, length) for k in range(30)), chunksize=1)) == wanted
        assert list(pool.map(payloads.keep, (array(k, length) for k in range(30)))) == wanted
        pids = set(processes.worker_pids(pool))
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):  # it has left because it keeps so much
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

        def read() -> bool:
            tasks.hold(gate.path)
            return [digest(value) for value in held] == _digests(5)

        child = _forked(read)
        gate.await_start()
        held = []
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
        processes.wait_until(lambda: payloads.memory(payload) <= 30 * UNIT, "only what is held takes memory")
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
        processes.wait_until(lambda: payloads.memory(payload) <= 258 * UNIT, "little memory is taken")


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
        options = pool.options(retries=2, timeout=1.0 if how == "time out" else None)
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


# ---- round trips


@dataclasses.dataclass
class Nest:
    name: str
    value: Any


class Buffered:
    """Carries its bytes out of band by itself."""

    def __init__(self, data: Any) -> None:
        self.data = data

    def __reduce_ex__(self, protocol: int) -> Any:
        return (Buffered, (pickle.PickleBuffer(self.data),)) if protocol >= 5 else (Buffered, (bytes(self.data),))


def _values() -> dict[str, Any]:
    grid = array(1, 60_000).reshape(300, 200)
    fixed = array(2, 50_000)
    fixed.flags.writeable = False
    nested = {"a": [array(3, 40_000), {"b": (array(4, 70_000),)}], "c": Nest("n", array(5, 33_000))}
    values = {
        "C": grid,
        "Fortran": np.asfortranarray(grid),
        "transposed": grid.T,
        "strided": grid[::2, 1::3],
        "backwards": grid[::-1],
        "structured": np.zeros(5000, dtype=[("a", "<i4"), ("b", "f8"), ("c", "S3")]),
        "no items": np.zeros((3, 0, 5)),
        "no bytes": np.zeros(3, dtype="U0"),
        "0-d": np.array(3.5),
        "scalar": np.float64(2.5),
        "objects": np.array([1, "two", None, [3]], dtype=object),
        "read-only": fixed,
        "bool": grid > 100,
        "datetime": np.arange(6000).astype("M8[s]"),
        "timedelta": np.arange(6000).astype("m8[ms]"),
        "big-endian": np.arange(9000, dtype=">i4"),
        "complex": np.arange(5000, dtype=complex),
        "text": np.array(["a", "bcd"] * 5000),
        "half": np.arange(10000, dtype=np.float16),
        "masked": np.ma.masked_array(np.arange(9000), np.arange(9000) % 2),
        "nested": nested,
        "bytes": bytes(grid),
        "bytearray": bytearray(grid),
        "array.array": arrays.array("d", range(9000)),
        "short array.array": arrays.array("h", range(9)),
        "PickleBuffer": Buffered(array(6, 50_000).tobytes()),
        "PickleBuffer, writable": Buffered(bytearray(array(6, 50_000))),
        "many": [array(k, 100) for k in range(500)],
        "zeros and more": [np.zeros(0), array(1, 1), np.zeros(0), array(2, UNIT)],
    }
    for length in (0, 1, _INLINE - 64, _INLINE - 1, _INLINE, _INLINE + 1, _INLINE + 64, 32767, 32768, 32769):
        values[f"{length} bytes"] = array(length, length)
    for several in (1, 2, 5):
        for more in (-200, -1, 0, 1):  # with the pickle around them: on both sides of the limits
            values[f"{several} units and {more}"] = array(several, several * UNIT + more)
    return values


def _same(a: Any, b: Any) -> bool:
    if type(a) is not type(b):
        return False
    if isinstance(a, np.ndarray):
        same = a.dtype == b.dtype and a.shape == b.shape and a.flags.writeable == b.flags.writeable
        return same and bool((np.asarray(a) == np.asarray(b)).all())
    if isinstance(a, dict):
        return list(a) == list(b) and all(_same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(_same, a, b))
    if isinstance(a, Nest):
        return _same([a.name, a.value], [b.name, b.value])
    if isinstance(a, Buffered):
        writable = memoryview(a.data).readonly == memoryview(b.data).readonly
        return writable and bytes(memoryview(a.data)) == bytes(memoryview(b.data))
    return bool(a == b)


@pytest.mark.parametrize("retries", [0, 2])
@pytest.mark.parametrize("workers", [0, 2])
def test_what_comes_back_is_what_was_given(workers: int, retries: int) -> None:
    values = _values()
    with small_pool(2, 128, retries=retries) if workers else Pool(0, retries=retries) as pool:
        for name, value in values.items():
            assert _same(pool.submit(tasks.identity, value).result(), value), name
            (args, kwargs) = pool.submit(tasks.capture, value, x=value).result()
            assert _same([args[0], kwargs["x"]], [value, value]), name
        every = list(values.values())
        for chunksize in (1, 7):
            assert _same(list(pool.map(tasks.identity, every, chunksize=chunksize)), every)
        for size in (1, 7, "auto"):
            assert _same(list(pool.imap(tasks.identity, every * 2, chunksize=size)), every * 2)
            pairs = list(enumerate(every))
            unordered = pool.imap_unordered(tasks.identity, pairs, chunksize=size)
            assert _same(sorted(unordered, key=lambda pair: pair[0]), pairs)
            assert _same(pool.starmap(_swap, pairs, chunksize=size), [pair[::-1] for pair in pairs])
        del args, kwargs, unordered
        if workers:
            settle(pool, _functions(pool))


def _swap(a: Any, b: Any) -> Any:
    return b, a


def _results(how: str, value: Any) -> Any:
    if how == "itself":
        return value
    if how == "a part":
        return value[1000:-1000:2]
    if how == "two parts":
        return value[:5000], value[100:]
    if how == "twice":
        return value, value
    if how == "its memory":
        return memoryview(value)
    if how == "changed":
        value += 1
        return [value, value.sum()]
    return value.reshape(2, -1).T


@pytest.mark.parametrize("retries", [0, 1])
@pytest.mark.parametrize("length", [400, 20_000, 10 * UNIT])
def test_results_that_look_into_the_argument(length: int, retries: int) -> None:
    value = array(1, length)
    with small_pool(2, 128, retries=retries) as pool:
        for how in ("itself", "a part", "two parts", "twice", "its memory", "changed", "its transpose"):
            wanted = _results(how, value.copy())
            got = pool.submit(_results, how, value).result()
            chunked = list(pool.imap(functools.partial(_results, how), [value] * 3, chunksize=3))
            for g in (got, *chunked):
                if how == "its memory":
                    assert bytes(g) == bytes(wanted)
                elif how == "changed":
                    assert (g[0] == wanted[0]).all()
                else:
                    assert _same(g if how != "its transpose" else np.asarray(g), wanted), how
            if how == "twice":
                assert got[0] is got[1]
        del got, chunked, g
        pool._client.functions.close()
        assert (value == array(1, length)).all()
        processes.wait_until(lambda: views(pool) == 0, "nothing is held")


@pytest.mark.parametrize("length", [1000, 9000])
def test_a_memoryview_arrives_as_its_bytes(length: int) -> None:
    with small_pool(1) as pool:
        value = arrays.array("d", range(length))
        grid = np.arange(length * 24, dtype=np.uint8).view([("a", "i4"), ("b", "f8")]).reshape(length, 2)
        for view in memoryview(value), memoryview(value)[::2], memoryview(grid), memoryview(grid.T):
            assert pool.submit(tasks.identity, view).result() == view.tobytes()
            assert list(pool.imap(bytes, [view] * 3, chunksize=3)) == [view.tobytes()] * 3
            assert list(pool.imap(bytes, [view] * 3, chunksize=1)) == [view.tobytes()] * 3


def test_bare_buffers_go_beside_the_pickle() -> None:
    with small_pool(1) as pool:
        for value in (bytes(90_000), bytearray(90_000), arrays.array("d", range(9000)), memoryview(bytes(90_000))):
            future = pool.submit(tasks.identity, value)
            assert future.result() == value
            assert future.account is not None
            assert (future.account.sent, future.account.received) == ("memory", "view")


def test_memory_in_pieces_that_asks_to_travel_out_of_band_is_refused_by_name() -> None:
    with small_pool(1) as pool:
        scattered = Buffered(memoryview(array(1, 1000))[::2])
        error = pool.submit(tasks.identity, scattered).exception()
        assert "contiguous" in str(error)
        for size in (1, 2):
            good, failure = pool.imap(tasks.identity, [1, scattered], chunksize=size, on_error="return")
            assert good == 1
            assert "contiguous" in str(failure.error)
        error = pool.submit(_scattered).exception()
        assert "contiguous" in str(error)


def _scattered() -> Any:
    return Buffered(memoryview(array(1, 1000))[::2])


def test_new_classes_and_lambdas_travel_beside_arrays(tmp_path: Path) -> None:
    script = """
        import numpy as np
        from pool import Pool

        class Early:
            def __init__(self, value): self.value = value

        pool = Pool(2).start()

        class Late:
            def __init__(self, value): self.value = value

        def double(box): return type(box)(box.value * 2)

        value = np.arange(100_000)
        with pool:
            for kind in (Early, Late):
                got = pool.submit(double, kind(value)).result()
                assert type(got) is kind and (got.value == value * 2).all()
                for size in (1, 3):
                    for got in pool.imap(double, [kind(value)] * 5, chunksize=size):
                        assert type(got) is kind and (got.value == value * 2).all()
            assert (pool.submit(lambda f, x: f(x), lambda x: x + 1, value).result() == value + 1).all()
            f, got = pool.submit(lambda x: ((lambda y: y + x.sum()), x), value).result()
            assert f(1) == value.sum() + 1 and (got == value).all()
        print("fine")
    """
    assert scripts.run(tmp_path, script).stdout == "fine\n"


# ---- more than there is room for


def test_maps_of_more_than_the_room_come_through() -> None:
    with small_pool(2, 64) as pool:
        items = [array(k, 10 * UNIT) for k in range(30)]
        wanted = [digest(item) for item in items]
        for chunksize in (1, 5):
            got = list(pool.map(tasks.identity, items, chunksize=chunksize))
            assert [digest(g) for g in got] == wanted
            got = list(pool.imap(tasks.identity, items, chunksize=chunksize))
            assert [digest(g) for g in got] == wanted
        futures = [pool.submit(tasks.identity, item) for item in items]
        assert [digest(future.result()) for future in reversed(futures)] == wanted[::-1]
        del got, futures
        settle(pool, _functions(pool))
        assert not os.path.exists(pool._client.options.folder) or not os.listdir(pool._client.options.folder)


def test_a_slow_first_item_does_not_let_results_pile_up(tmp_path: Path) -> None:
    gate = tasks.Gate(tmp_path)
    with small_pool(2, 64) as pool:
        most = 0

        def source() -> Iterator[tuple[int, str]]:
            nonlocal most
            for k in range(400):
                yield k, gate.path
                most = k

        before = payloads.rss()
        results = pool.istarmap(_first_holds, source(), chunksize=1)
        opener = threading.Timer(1.0, gate.open)
        opener.start()
        for k, value in enumerate(results):
            assert digest(value) == digest(array(k, MIB)), k
            if k == 0:
                ahead, grown = most, payloads.rss() - before
        opener.join()
        assert ahead < 150, "it read on while nothing could be taken"
        assert grown < 200 * MIB
        del value
        settle(pool, _functions(pool))
    gate.close()


def _first_holds(k: int, path: str) -> Any:
    return tasks.hold(path, array(k, MIB)) if k == 0 else array(k, MIB)


@pytest.mark.parametrize("chunksize", [1, 20, "auto"])
def test_traffic_of_many_rooms_leaves_no_memory_in_use(chunksize: Any) -> None:
    with payloads.started(2, 128) as (pool, payload), pool:
        for value in pool.imap(payloads.add_one, (array(k, 300_000) for k in range(100)), chunksize=chunksize):
            assert len(value) == 300_000
        del value
        before = payloads.rss()
        results = pool.imap(payloads.add_one, (array(k, 300_000) for k in range(600)), chunksize=chunksize)
        for k, value in enumerate(results):
            assert digest(value) == digest(array(k, 300_000) + 1)
        del value
        assert payloads.rss() - before < 60 * MIB
        settle(pool, _functions(pool))
        assert payloads.memory(payload) <= 128 * UNIT


def test_views_and_results_that_wait_for_room_stop_nobody() -> None:
    """Values held, functions stored, chunks that grow, tasks that keep: and still everything goes on."""
    with small_pool(3, 64) as pool:
        held = [pool.submit(payloads.make, k, LARGE).result() for k in range(10)]
        pool.submit(payloads.keep, array(1, 2 * UNIT)).result()
        for turn in range(3):
            chunks = pool.imap(payloads.make_of, ((k, UNIT) for k in range(200)), chunksize=20)
            singles = pool.imap(functools.partial(_longer, turn), (array(k, 4 * UNIT) for k in range(100)), chunksize=1)
            futures = [pool.submit(tasks.identity, array(k, 12 * UNIT)) for k in range(30)]
            for k, (a, b) in enumerate(zip(chunks, singles, strict=False)):
                assert digest(a) == digest(array(k, UNIT))
                assert digest(b) == digest(array(k, 4 * UNIT) + turn)
            assert all(digest(f.result()) == digest(array(k, 12 * UNIT)) for k, f in enumerate(futures))
            chunks.close(), singles.close()  # type: ignore[attr-defined]
        assert [digest(h) for h in held] == _digests(10)


def test_a_map_finds_room_for_its_function_among_results() -> None:
    with small_pool(3, 64) as pool:
        held = [pool.submit(payloads.make, k, 4 * UNIT - 500).result() for k in range(4)]  # all that may be views
        futures = [pool.submit(payloads.make, k, 5 * UNIT) for k in range(30)]
        for k in range(30):
            fn = functools.partial(payloads.make, length=100_000 + k)
            assert [len(value) for value in pool.imap(fn, range(3))] == [100_000 + k] * 3
            futures.append(pool.submit(payloads.make, k, 5 * UNIT))
        assert [len(future.result()) for future in futures] == [5 * UNIT] * 60
        del held


def _longer(turn: int, value: Any) -> Any:
    value += turn
    return value


# ---- what fits nowhere goes through files


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory for temporary files, which must be empty again after a test."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    return folder


def _names(folder: Path) -> list[str]:
    return [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]


HUGE = 30 * MIB  # in a room of 4


@pytest.mark.parametrize("retries", [0, 1])
def test_what_fits_nowhere_goes_through_files(files: Path, retries: int) -> None:
    with small_pool(2, 64, retries=retries) as pool:
        value = array(1, HUGE)
        wanted = digest(value + 1)
        got = pool.submit(payloads.add_one, value).result()
        assert digest(got) == wanted
        assert got.flags.writeable
        assert _names(files) == []
        for chunksize in (1, 2):
            for got in pool.imap(payloads.add_one, [value] * 3, chunksize=chunksize):
                assert digest(got) == wanted
        for got in pool.map(payloads.add_one, [value] * 3):
            assert digest(got) == wanted
        assert (pool.submit(bytes, HUGE).result(), pool.submit(len, bytes(HUGE)).result()) == (bytes(HUGE), HUGE)
        assert digest(value) == digest(array(1, HUGE))
        processes.wait_until(lambda: _names(files) == [], "no file is left")
        got += 1
        settle(pool, _functions(pool))
    assert os.listdir(files) == []


def test_files_of_tasks_that_die_or_that_nobody_wants_are_removed(files: Path, tmp_path: Path) -> None:
    with small_pool(2, 64, retries=1) as pool:
        value = array(1, HUGE)
        future = pool.options(retries=2).submit(payloads.mutate_and_fail, value, str(tmp_path / "count"), "die")
        assert future.result() == digest(value)
        del future
        for _ in range(3):
            pool.submit(payloads.add_one, value)
        futures = [pool.submit(tasks.identity, value) for _ in range(6)]
        futures[5].cancel()
        del futures
        results = pool.imap(tasks.identity, itertools.repeat(value, 5), chunksize=1)
        next(results)
        results.close()  # type: ignore[attr-defined]
        processes.wait_until(
            lambda: pool.submit(int, "7").result() == 7 and pool._client.idle_or_closed(), "nothing is left to do"
        )
        processes.wait_until(lambda: _names(files) == [], f"no file is left of {_names(files)}")
    assert os.listdir(files) == []


@pytest.mark.parametrize("victim", ["worker", "monitor", "client"])
def test_no_file_outlives_the_pool_whoever_is_killed(files: Path, tmp_path: Path, victim: str) -> None:
    script = """
        import os, sys, tasks, payloads
        import numpy as np
        from ipc import segment
        from pool import Pool
        segment.default_room = lambda *_: 64 * 65536
        pool = Pool(2).start()
        def spill(k, pids):
            os.write(1, b"%d %d %d\\n" % (os.getppid(), os.getpid(), *pids))  # one piece: two workers write
            return np.zeros(30 << 20, "u1")
        pending = [pool.submit(spill, np.zeros(30 << 20, "u1"), [os.getpid()]) for _ in range(20)]
        for future in pending:
            future.exception()
    """
    with scripts.start(tmp_path, script) as client:
        assert client.stdout is not None
        monitor, worker, pid = map(int, client.stdout.readline().split())
        assert pid == client.pid
        processes.wait_until(lambda: _names(files), "there are files")
        os.kill({"worker": worker, "monitor": monitor, "client": pid}[victim], signal.SIGKILL)
        client.communicate(timeout=30)
        processes.wait_until(lambda: not processes.runs(monitor), "the monitor has ended")
    assert os.listdir(files) == []


def test_a_full_disk_is_the_tasks_error(files: Path) -> None:
    with small_pool(1, 64, initializer=payloads.limit_files, initargs=(5 * MIB,)) as pool:
        error = pool.submit(payloads.make, 1, HUGE).exception()
        assert isinstance(error, PayloadTooLarge)
        (failure,) = pool.imap(payloads.make_of, [(1, HUGE)], on_error="return")
        assert isinstance(failure.error, PayloadTooLarge)
        assert digest(pool.submit(payloads.make, 1, LARGE).result()) == digest(array(1, LARGE))
        assert _names(files) == []
    with small_pool(1, 64) as pool:
        payloads.full_disk(pool, files)
    assert os.listdir(files) == []


# ---- other ends


@pytest.mark.parametrize("how", ["kill", "time out", "cancel"])
def test_what_was_stopped_gives_its_room_back(how: str) -> None:
    with small_pool(2, 128) as pool:
        options = pool.options(timeout=0.05 if how == "time out" else None)
        for _ in range(5):
            futures = [options.submit(_hang, array(k, 5 * UNIT)) for k in range(4)]
            if how == "kill":
                processes.wait_until(lambda: sum(f.running() for f in futures) == 2, "two run")  # noqa: B023
            for future in futures if how != "time out" else []:
                future.kill()
            assert all(_ended_badly(future) for future in futures)
        settle(pool, _functions(pool))


def _hang(value: Any) -> None:
    signal.pause()


def _ended_badly(future: Any) -> bool:
    try:
        return future.exception(20) is not None
    except CancelledError:
        return True


def test_a_pool_inside_of_a_task_takes_the_tasks_argument() -> None:
    with small_pool(2, 128) as pool:
        value = array(1, LARGE)
        for _ in range(3):
            assert pool.submit(_nested, value).result() == (digest(value + 1), digest(value), digest(value))
        settle(pool, _functions(pool))


def _nested(value: Any) -> tuple[int, int, int]:
    with Pool(1) as inner:
        changed = inner.submit(payloads.add_one, value).result()
        return digest(changed), inner.submit(digest, inner.share(value)).result(), digest(value)


def test_values_outlive_the_segment_that_is_replaced() -> None:
    with small_pool(2, 128) as pool:
        held = [pool.submit(payloads.make, k, LARGE).result() for k in range(5)]
        with pool._client.lock:
            pool._client._replace_segment(ValueError("as if it were damaged"))
        assert digest(pool.submit(payloads.make, 1, LARGE).result()) == digest(array(1, LARGE))
        assert [digest(h) for h in held] == _digests(5)


def test_forks_that_pin_values_take_room_but_stop_nobody() -> None:
    with small_pool(2, 64) as pool:
        for _ in range(10):
            held = [pool.submit(payloads.make, k, LARGE).result() for k in range(4)]
            assert _code(_forked(lambda: [digest(h) for h in held] == _digests(4))) == 0  # noqa: B023
            held.clear()
        assert views(pool) <= 16
        sizes = ((k, 14 * UNIT) for k in range(20))
        assert [digest(v) for v in pool.imap(payloads.make_of, sizes)] == [
            digest(array(k, 14 * UNIT)) for k in range(20)
        ]


def test_threads_that_share_a_pool_get_their_own_values() -> None:
    errors: list[BaseException] = []
    with small_pool(2, 64) as pool:

        def use(n: int) -> None:
            try:
                for k in range(40):
                    value = array(1000 * n + k, (k % 7) * UNIT + k)
                    wanted = digest(value + np.uint8(1))
                    future = pool.submit(payloads.add_one, value)
                    value[:] = 0
                    assert digest(future.result(30)) == wanted
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=use, args=(n,)) for n in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert errors == []
        settle(pool, _functions(pool))


# ---- little memory


@pytest.fixture
def little_memory(lack: Callable[[str], NoReturn]) -> Iterator[Path]:
    """A cgroup of 256 MiB."""
    limit = 256 * MIB
    for top, name in ((Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes"), (Path("/sys/fs/cgroup"), "memory.max")):
        folder = top / f"pool-test-{os.getpid()}"
        try:
            folder.mkdir()
        except OSError:
            continue
        try:
            (folder / name).write_text(str(limit))
        except OSError:  # no memory controller here
            folder.rmdir()
            continue
        break
    else:
        lack("no cgroup can be made here: that takes root, and a memory controller")
    yield folder
    processes.wait_until(lambda: not (folder / "cgroup.procs").read_text(), "the cgroup is empty")
    folder.rmdir()


def _oom_kills(folder: Path) -> int:
    for name in ("memory.events", "memory.oom_control"):
        if (folder / name).exists():
            lines = dict(line.split() for line in (folder / name).read_text().splitlines())
            return int(lines.get("oom_kill", 0))
    return 0


def test_a_gigabyte_passes_through_a_quarter_of_it(little_memory: Path, files: Path, tmp_path: Path) -> None:
    script = """
        import os, sys
        with open(sys.argv[1] + "/cgroup.procs", "w") as procs:
            procs.write(str(os.getpid()))
        import numpy as np
        import payloads
        from payloads import MIB, array, digest
        from pool import Pool

        def check(k, value, length):
            assert digest(value) == digest(array(k, length) + 1), k

        with Pool(2) as pool:
            for count, length in ((250, MIB), (25, 10 * MIB)):
                for size in (1, 3):
                    results = pool.imap(payloads.add_one, (array(k, length) for k in range(count)), chunksize=size)
                    for k, value in enumerate(results):
                        check(k, value, length)
            del value
            for _ in range(5):
                value = pool.submit(payloads.add_one, np.full(30 * MIB, 7, np.uint8)).result()
                assert value.min() == value.max() == 8
            print(pool._client.room >> 20)
    """
    room = int(scripts.run(tmp_path, script, str(little_memory)).stdout)
    assert room < 128
    assert _oom_kills(little_memory) == 0
    assert os.listdir(files) == []


# ---- bytes by themselves


def _bytes_of(kind: type[bytes] | type[bytearray], n: int) -> Iterator[Any]:
    """One and the same bytearray, which could not be resized while somebody looks into it; or fresh bytes."""
    buffer = bytearray()
    for k in range(n):
        buffer.clear()
        buffer.extend(bytes([k % 256]) * (20_000 + 1000 * k))
        yield buffer if kind is bytearray else bytes(buffer)


@pytest.mark.parametrize("workers", [2, 0])
@pytest.mark.parametrize("chunksize", [1, 3, "auto"])
@pytest.mark.parametrize("kind", [bytes, bytearray])
def test_long_bytes_go_and_come_as_they_were(workers: int, chunksize: int, kind: type) -> None:
    want = [bytes(x) for x in _bytes_of(kind, 40)]
    with Pool(workers) as pool:
        for policy in (pool, pool.options(retries=1)):
            results = list(policy.imap(tasks.identity, _bytes_of(kind, 40), chunksize=chunksize))
            assert {type(result) for result in results} == {kind}
            assert results == want


def test_a_bytearray_may_be_resized_as_soon_as_submit_returns() -> None:
    with Pool(1) as pool:
        futures = []
        for k in range(1500):  # more than there are rows
            data = bytearray([k % 256]) * 40_000
            futures.append(pool.submit(tasks.identity, data))
            data.extend(b"more")
        for k, future in enumerate(futures):
            assert future.result() == bytes([k % 256]) * 40_000


class _Watched(chunks.Chunk):
    """Every chunk, by whether buffers were copied into it."""

    made: ClassVar[list[bool]] = []

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.made.append(self.buffered)


@pytest.mark.parametrize("kind", ["array", "pair", "bytearray"])
def test_automatic_chunks_are_for_what_has_no_large_buffers(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A chunk would copy them more often. Where they end, and where they begin again, it is noticed."""

    def item(k: int) -> Any:
        if kind == "bytearray":
            return bytearray(k % 256 for _ in range(40_000))
        numbers = np.full(1000, k)
        return (numbers, k) if kind == "pair" else numbers

    monkeypatch.setattr(map_run.chunks, "Chunk", _Watched)
    items = [*map(item, range(1000)), *range(20_000), *map(item, range(1000))]
    with Pool(2) as pool:
        _Watched.made.clear()
        found = list(pool.imap(tasks.identity, iter(items)))
    assert all(pickle.dumps(a, 5) == pickle.dumps(b, 5) for a, b in zip(found, items, strict=True))
    assert 1 < len(_Watched.made) < 1000
    assert sum(_Watched.made) <= 2  # that in which they began again, where most was small, and the one behind it


@pytest.mark.parametrize("every", [1, 20])
def test_small_arrays_and_rare_ones_go_in_automatic_chunks(every: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(map_run.chunks, "Chunk", _Watched)
    items = [np.full(20 if every == 1 else 1000, k) if k % every == 0 else k for k in range(20_000)]
    with Pool(2) as pool:
        _Watched.made.clear()
        found = list(pool.imap(tasks.identity, items))
    assert all(pickle.dumps(a, 5) == pickle.dumps(b, 5) for a, b in zip(found, items, strict=True))
    assert 1 < len(_Watched.made) < 2000
    assert sum(_Watched.made) > 1


def test_a_map_of_arrays_beside_others_gives_what_each_of_them_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """One by one, in pieces: nothing may be pickled twice, and what the input changes afterwards is its own."""
    pickled: list[int] = []

    class Counted:
        def __init__(self, k: int) -> None:
            self.k = k

        def __reduce__(self) -> Any:
            pickled.append(self.k)
            return int, (self.k,)

    def source() -> Iterator[Any]:
        again, other = np.zeros(5000), np.zeros(30)
        for k in range(300):
            again[:], other[:] = k, -k
            yield again, Counted(k), {"other": other}

    with Pool(2) as pool:
        for values, k, rest in pool.imap_unordered(tasks.identity, source(), chunksize=1):
            assert len(values) == 5000
            assert set(values) == {k}
            assert set(rest["other"]) == {-k}
    assert pickled == list(range(300))


def test_large_results_are_few_on_their_way_also_from_small_arguments() -> None:
    """Else they would cost cold memory, however fast they come."""
    given = 0

    def source() -> Iterator[Any]:
        nonlocal given
        for given in itertools.count(1):  # noqa: B007
            yield np.zeros(3)

    with Pool(2) as pool, contextlib.closing(pool.imap_unordered(_large, source())) as results:
        ahead = [given - taken for taken, _ in enumerate(itertools.islice(results, 2000), 1)]
    assert max(ahead[1000:]) <= 32


def _large(_: object) -> Any:
    return np.zeros(1 << 16, np.uint8)


_FAULTS = """
import resource
import numpy
from pool import Pool

def work(array):
    return array + 1

def faults(pool):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    kept = []
    for result in pool.imap_unordered(work, (numpy.full(1 << 17, 1.0) for _ in range(400))):
        kept = [result, *kept[:7]]
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

with Pool(2) as pool:
    faults(pool)
    print(faults(pool) / 400)
"""


def test_the_memory_of_arguments_is_used_again(tmp_path: Path) -> None:
    """It does not go back to the system with each array, to come again page by page."""
    assert float(scripts.run(tmp_path, _FAULTS).stdout) < 10
