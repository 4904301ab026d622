"""``Pool(memory_reserve=)``: fewer tasks at once when memory is short, and alone what has failed for want of it."""

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import processes
import pytest
import tasks

from pool import Failure, Pool, errors
from pool.admission import may_begin

MIB = 1 << 20


@pytest.mark.parametrize(
    ("alone", "running", "beside_alone", "short", "expected"),
    [
        (False, 0, False, True, True),  # one always may
        (True, 0, False, True, True),
        (False, 1, False, False, True),
        (False, 1, False, True, False),
        (False, 3, False, False, True),
        (False, 4, False, False, False),  # it would wait where it cannot be held back
        (True, 1, False, False, False),
        (False, 1, True, False, False),
    ],
)
def test_who_may_begin(alone: bool, running: int, beside_alone: bool, short: bool, expected: bool) -> None:
    assert may_begin(alone, running, beside_alone, 4, lambda: short) == expected


def test_nobody_looks_at_the_memory_in_vain() -> None:
    def never() -> bool:
        raise AssertionError

    assert may_begin(False, 0, False, 4, never)
    assert not may_begin(True, 1, False, 4, never)


@pytest.fixture
def available(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Says how much memory is available from now on; at first 1 MiB."""
    now = [MIB]
    monkeypatch.setattr("pool.client.available_memory", lambda: now[0])
    monkeypatch.setattr("pool.client._MEMORY_SECONDS", 0.0)
    return lambda size: now.__setitem__(0, size)


def _begun(pool: Pool) -> int:
    return sum(task is not None for task in pool._client.tasks)


def test_while_memory_is_short_no_further_task_begins(available: Callable[[int], None], gate: tasks.Gate) -> None:
    with Pool(2, memory_reserve="1G") as pool, _opened(gate, 6):
        futures = [pool.submit(tasks.hold, gate.path) for _ in range(6)]
        gate.await_start(1)
        assert _begun(pool) == 1
        available(2 << 30)
        gate.await_start(1)  # the second, though the first has not ended
        assert _begun(pool) == 2
        available(MIB)
        gate.open(1)
        processes.wait_until(lambda: sum(future.done() for future in futures) == 1, "one has ended")
        assert _begun(pool) == 1
    assert [future.exception() for future in futures] == [None] * 6


@contextlib.contextmanager
def _opened(gate: tasks.Gate, count: int) -> Iterator[None]:
    """At the end of the block, also where a test fails: else the pool would wait for those who hold."""
    try:
        yield
    finally:
        gate.open(count)


def _by_itself(folder: str, _: int) -> int:
    """FileExistsError if another one runs."""
    mine = f"{folder}/runs"
    os.close(os.open(mine, os.O_CREAT | os.O_EXCL))
    total = sum(range(100_000))
    os.unlink(mine)
    return total


@pytest.mark.parametrize("chunksize", [1, 3, "auto"])
def test_maps_give_out_one_after_the_other_too(
    chunksize: int, available: Callable[[int], None], tmp_path: Path
) -> None:
    with Pool(2, memory_reserve="1G") as pool:
        assert len(list(pool.imap(partial(_by_itself, str(tmp_path)), range(40), chunksize=chunksize))) == 40
        available(2 << 30)
        failures = pool.imap(partial(_by_itself, str(tmp_path)), range(400), chunksize=chunksize, on_error="return")
        assert any(isinstance(result, Failure) for result in failures), "two at once"


def _fill_once(marker: str, path: str) -> int:
    with contextlib.suppress(FileExistsError):
        os.close(os.open(marker, os.O_CREAT | os.O_EXCL))
        return len(b"\1" * (400 * MIB)) + len(path)
    tasks.hold(path)
    return 7


def test_what_has_failed_for_want_of_memory_runs_alone(
    available: Callable[[int], None], gate: tasks.Gate, tmp_path: Path
) -> None:
    available(1 << 40)
    other = tasks.Gate(tmp_path, "other")
    with Pool(3, memory_reserve="1G", retries=1) as pool, _opened(gate, 1), _opened(other, 1):
        beside = pool.submit(tasks.hold, other.path)
        other.await_start()
        large = pool.options(memory_limit="50M").submit(_fill_once, str(tmp_path / "marker"), gate.path)
        processes.wait_until(lambda: pool.insights().workers and _lost(pool), "its first attempt has failed")
        behind = pool.submit(tasks.square, 3)
        assert _begun(pool) == 1, "neither begins while the first one runs"
        other.open()
        assert beside.result(20) is None
        gate.await_start()
        assert _begun(pool) == 1
        assert not behind.done()
        gate.open()
        assert large.result(20) == 7
        assert behind.result(20) == 9
    other.close()


def _lost(pool: Pool) -> bool:
    return any(function.limits for function in pool.insights().functions)


def test_without_a_reserve_it_runs_beside_others(gate: tasks.Gate, tmp_path: Path) -> None:
    other = tasks.Gate(tmp_path, "other")
    with Pool(2, retries=1) as pool, _opened(other, 1):
        beside = pool.submit(tasks.hold, other.path)
        other.await_start()
        large = pool.options(memory_limit="50M").submit(_fill_once, str(tmp_path / "marker"), gate.path)
        gate.open()
        assert large.result(20) == 7
        assert not beside.done()
    other.close()


def test_one_that_is_taken_back_makes_place(available: Callable[[int], None], gate: tasks.Gate) -> None:
    with Pool(1, memory_reserve="1G", initializer=tasks.hold, initargs=(gate.path,)) as pool:
        first, second = pool.submit(tasks.square, 2), pool.submit(tasks.square, 3)
        ended = threading.Event()
        second.add_done_callback(lambda _: ended.set())
        gate.await_start()
        assert first.cancel()
        gate.open()
        assert ended.wait(20), "though nobody waits who would look"
        assert second.result() == 9


def test_a_crash_makes_place(available: Callable[[int], None]) -> None:
    with Pool(2, memory_reserve="1G") as pool:
        crash, after = pool.submit(os._exit, 3), pool.submit(tasks.square, 3)
        assert isinstance(crash.exception(20), errors.WorkerCrashed)
        assert after.result(20) == 9


def test_a_reserve_is_a_size() -> None:
    with pytest.raises(ValueError, match="memory_reserve"):
        Pool(1, memory_reserve="much")
