"""`Pool(0)`: the same API in the caller's own process and thread."""

import os
import threading
from typing import Any

import pytest
import tasks

from pool import Failure, Pool, errors

pytestmark = pytest.mark.timeout(30)


def test_no_workers_means_the_same_api_in_this_process() -> None:
    with Pool(0) as pool:
        assert pool.submit(tasks.pid).result() == os.getpid()
        assert pool.submit(tasks.capture, 1, self=2, fn=3).result() == ((1,), {"self": 2, "fn": 3})
        assert list(pool.map(tasks.add, [1, 2], [3, 4])) == [4, 6]
        assert list(pool.map(tasks.square, range(10), chunksize=3)) == [x * x for x in range(10)]
        assert list(pool.imap(tasks.square, range(100))) == [x * x for x in range(100)]
        assert sorted(pool.imap_unordered(tasks.square, range(100), chunksize=7)) == [x * x for x in range(100)]
        assert pool.starmap(tasks.add, [(1, 2), (3, 4)]) == [3, 7]
        with pytest.raises(ValueError, match="bad"):
            pool.submit(tasks.fail, "bad").result()
        assert isinstance(pool.submit(tasks.leave, 3).exception(), SystemExit)
        assert pool.submit(tasks.recall, "nothing").result() is None
    assert threading.active_count() == 1
    with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
        pool.submit(tasks.pid)


def test_no_workers_retries_and_calls_back_too() -> None:
    tries, seen = [], []

    def fails_twice() -> int:
        tries.append(1)
        if len(tries) < 3:
            raise ValueError
        return len(tries)

    with Pool(0, retries=2) as pool:
        future = pool.submit(fails_twice)
        future.add_done_callback(seen.append)
        assert future.result() == 3
        assert seen == [future]
        with pytest.raises(ValueError, match="bad"):
            list(pool.imap(tasks.fail_if, range(1, 20)))


def test_no_workers_runs_the_initializer_and_nested_submits_here() -> None:
    with Pool(0, initializer=tasks.remember_positional, initargs=("here", 1)) as pool:
        assert pool.submit(tasks.recall, "here").result() == 1
        assert pool.submit(lambda: pool.submit(tasks.square, 4).result()).result() == 16
        assert list(pool.imap(lambda x: pool.submit(tasks.square, x).result(), [1, 2])) == [1, 4]
    tasks.STATE.clear()


def test_no_workers_fail_as_workers_do() -> None:
    with Pool(0) as pool:
        assert isinstance(pool.submit(tasks.make_locked).exception(), errors.ResultNotPicklable)
        assert isinstance(pool.submit(tasks.identity, tasks.Locked()).exception(), TypeError)
        for chunksize in (1, 3):
            results = list(
                pool.imap(tasks.unless_bad, [1, tasks.Undecodable(), 3], on_error="return", chunksize=chunksize)
            )
            assert [results[0], results[2]] == [1, 3]
            assert isinstance(results[1], Failure)


def test_no_workers_let_ctrl_c_through_and_stay_usable() -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    with Pool(0, buffersize=1) as pool:
        with pytest.raises(KeyboardInterrupt):
            pool.submit(interrupt)
        assert pool.submit(tasks.square, 3).result() == 9


@pytest.mark.parametrize("chunksize", [1, 5, "auto"])
def test_each_result_comes_before_the_next_item_runs(chunksize: Any) -> None:
    ran: list[int] = []
    with Pool(0) as pool:
        for x in pool.imap(lambda x: ran.append(x) or x, range(100), chunksize=chunksize):
            assert ran == list(range(x + 1))


def test_whatever_a_task_raises_is_its_outcome_but_for_interrupts() -> None:
    with Pool(0) as pool:
        for error in (GeneratorExit, SystemExit, BaseException):
            assert isinstance(pool.submit(_raise, error).exception(), error)
        with pytest.raises(KeyboardInterrupt):
            pool.submit(_raise, KeyboardInterrupt)


def _raise(error: type[BaseException]) -> None:
    raise error
