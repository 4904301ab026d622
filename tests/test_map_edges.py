"""Maps where several things meet: chunks with a pool that ends, with a time that is over, with shared objects; and
what they take and give at their limits."""

import contextlib
import gc
import itertools
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import payloads
import processes
import pytest
import tasks

from ipc import _core
from pool import Failure, Pool, errors, spill
from pool.compat.batch import CALL_ONE, Batch
from pool.mapping import run_map

pytestmark = [pytest.mark.timeout(60)]


@pytest.mark.parametrize("chunksize", [1, 3])
@pytest.mark.parametrize("end", ["with", "shutdown without waiting"])
def test_results_of_a_map_can_be_read_when_the_pool_is_closed(chunksize: int, end: str) -> None:
    pool = Pool(2)
    results = pool.map(tasks.square, range(20), chunksize=chunksize)
    pool.shutdown(wait=end == "with")
    assert list(results) == [x * x for x in range(20)]
    pool.shutdown()


@pytest.mark.usefixtures("idle_afterwards")
def test_a_chunksize_beyond_what_a_row_takes(pool: Pool) -> None:
    count = 2 * _core.MAX_ITEMS + 10
    expected = list(range(count))
    assert list(pool.map(tasks.identity, range(count), chunksize=count)) == expected
    assert list(pool.map(tasks.identity, range(count), chunksize=count, buffersize=2)) == expected
    batch = Batch(pool, tasks.identity, CALL_ONE, count)
    batch.give(range(count))
    assert batch.wait(20)
    assert batch.values() == expected


@pytest.mark.usefixtures("idle_afterwards")
@pytest.mark.parametrize("buffersize", [10, 10**9])
def test_the_time_of_a_map_is_over_though_later_results_and_input_come_without_end(
    pool: Pool, gate: tasks.Gate, buffersize: int
) -> None:
    began, read_on = time.monotonic(), []

    def source() -> Iterator[int]:
        yield 0  # is held
        while time.monotonic() - began < 5:
            yield 1 + 0 * sum(range(1000))  # slower than the workers: there is always room for more
        read_on.append(True)

    results = pool.map(
        tasks.hold_if_first, source(), itertools.repeat(gate.path), timeout=0.3, chunksize=50, buffersize=buffersize
    )
    with pytest.raises(TimeoutError) as caught:
        next(results)
    assert type(caught.value) is TimeoutError
    assert not read_on
    gate.open()


@pytest.mark.usefixtures("idle_afterwards")
def test_what_is_done_when_the_time_is_over_still_counts(pool: Pool) -> None:
    run, source = pool._run(tasks.square, CALL_ONE, 2, None), iter(range(1400))
    run.eager = True
    while not run.give_chunk(source, 2):  # more chunks than are collected in one turn
        pass
    client = pool._client
    assert len(client.tasks) > 700
    processes.wait_until(
        lambda: _core.counters(client.segment)["ready"] == 0 == _core.busy(client.segment)[0], "all is done"
    )
    assert list(run_map(run, (), True, "raise", end=0.0)) == [x * x for x in range(1400)]


def test_shared_objects_in_a_chunk_live_as_long_as_its_task(gate: tasks.Gate) -> None:
    with Pool(1) as pool:
        future = pool.submit(tasks.hold, gate.path)  # the worker is busy meanwhile
        items = [[pool.share([k])] for k in range(4)]
        results = pool.map(len, items, chunksize=2)
        for item in items:
            item.clear()
        gc.collect()
        gate.open()
        assert list(results) == [1] * 4
        future.result()


def _large_unless_held(k: int, path: str) -> bytes:
    if k == 14:
        tasks.hold(path)
    return bytes([k]) * 20_000


@pytest.mark.parametrize("how", ["killed", "damaged"])
def test_a_chunk_that_has_handed_over_some_of_its_results_fails_with_the_others_only(
    gate: tasks.Gate, how: str
) -> None:
    with payloads.small_pool(1, units=8) as pool:  # the results of 16 items do not fit: the first ones are drained
        results = pool.istarmap_unordered(
            _large_unless_held, [(k, gate.path) for k in range(16)], chunksize=16, buffersize=16, on_error="return"
        )
        came = [next(results) for _ in range(8)]
        gate.await_start()
        if how == "killed":
            pool.kill_workers()
        else:
            pool._client._replace_segment(_core.Damaged("as if"))
        came += results
        assert sorted(r.index if isinstance(r, Failure) else r[0] for r in came) == list(range(16))
        failures = [r for r in came if isinstance(r, Failure)]
        assert failures
        wanted = errors.PoolBroken if how == "killed" else errors.SegmentCorrupt
        assert {type(f.error) for f in failures} == {wanted}
        assert pool._client.unfinished == 0


def _fail_first(data: bytes, folder: str) -> int:
    with contextlib.suppress(FileExistsError):
        os.mkdir(f"{folder}/{data[0]}")
        raise ValueError
    return data[0]


def _die_first(data: bytes, folder: str) -> int:
    with contextlib.suppress(FileExistsError):
        os.mkdir(f"{folder}/{data[0]}")
        os._exit(1)
    return data[0]


@pytest.mark.parametrize("fn", [_fail_first, _die_first])
def test_a_chunk_that_was_taken_apart_is_let_go_at_once(tmp_path: Path, fn: Callable[[bytes, str], int]) -> None:
    calls = [(bytes([k]) * 100_000, str(tmp_path)) for k in range(10)]
    with payloads.small_pool(1, units=8, retries=1) as pool:
        gc.collect()
        gc.disable()
        try:
            assert list(pool.istarmap(fn, calls, chunksize=10, buffersize=10)) == list(range(10))
            assert pool._client.spilled  # the arguments of the chunk: they do not fit
            assert os.listdir(pool._client.options.folder) == []
        finally:
            gc.enable()


def test_items_whose_chunk_cannot_be_read_again_fail_once_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = [(bytes([k]) * 100_000, str(tmp_path)) for k in range(10)]
    for k in range(5):
        (tmp_path / str(k)).mkdir()  # these do not fail
    with payloads.small_pool(1, units=8, retries=1) as pool:
        monkeypatch.setattr(
            spill, "read", mock.Mock(side_effect=OSError("too many open files"))
        )  # here; not in workers
        came = list(pool.istarmap(_fail_first, calls, chunksize=10, buffersize=10, on_error="return"))
    assert came[:5] == list(range(5))
    assert [(f.index, str(f.error)) for f in came[5:]] == [(k, "too many open files") for k in range(5, 10)]
