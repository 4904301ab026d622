"""`pool.compat.multiprocessing` where the tests of `multiprocessing` itself (tests/conformance.py) do not look."""

import itertools
import multiprocessing
import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path

import processes
import pytest
import scripts
import tasks

from pool import errors
from pool.compat.multiprocessing import AsyncResult, Pool


@pytest.fixture
def theirs() -> Iterator[Pool]:
    with Pool(2) as pool:
        yield pool
    pool.join()


def test_a_crash_is_delivered_and_names_its_item(theirs: Pool) -> None:
    with pytest.raises(errors.WorkerCrashed, match=r"tasks\.die_now_and_then\(\(3, 3\)\): SIGKILL"):
        theirs.starmap(tasks.die_now_and_then, [(x, 3) for x in range(1, 6)])
    seen: list[BaseException] = []
    result = theirs.apply_async(tasks.die_now_and_then, (5, 5), error_callback=seen.append)
    with pytest.raises(errors.WorkerCrashed):
        result.get(30)
    assert [type(error) for error in seen] == [errors.WorkerCrashed]
    assert theirs.map(tasks.square, range(5)) == [0, 1, 4, 9, 16]


@pytest.mark.parametrize("chunksize", [1, 2, 3])
def test_imap_goes_on_behind_an_error(theirs: Pool, chunksize: int) -> None:
    iterator = theirs.imap(tasks.fail_if, range(1, 8), chunksize)
    values = [next(iterator) for _ in range(4)]
    with pytest.raises(ValueError, match="5 is bad"):
        next(iterator)
    assert [*values, *iterator] == [1, 2, 3, 4, 6, 7]


def test_imap_runs_though_nobody_iterates(theirs: Pool, gate: tasks.Gate) -> None:
    iterator = theirs.imap(tasks.hold, [gate.path])
    gate.await_start()
    with pytest.raises(multiprocessing.TimeoutError):
        iterator.next(0.01)
    gate.open()
    assert iterator.next(30) is None


def test_an_endless_input_is_read_until_the_pool_ends(theirs: Pool) -> None:
    iterator = theirs.imap_unordered(tasks.identity, itertools.count())
    assert len({next(iterator) for _ in range(5000)}) == 5000
    theirs.terminate()
    theirs.join()
    assert not [thread for thread in threading.enumerate() if thread.name == "pool-feeder"]
    with pytest.raises(errors.PoolError):
        list(iterator)


def test_results_can_be_taken_after_close_and_join() -> None:
    pool = Pool(2)
    iterator = pool.imap(tasks.square, iter(range(5000)), 10)
    result = pool.map_async(tasks.square, range(5))
    pool.close()
    with pytest.raises(ValueError, match="Pool not running"):
        pool.apply(tasks.square, (1,))
    pool.join()
    assert result.ready()
    assert result.successful()
    assert list(iterator) == [x * x for x in range(5000)]


def test_workers_leave_after_close_though_nobody_joins() -> None:
    with processes.nothing_left():
        pool = Pool(2)
        result = pool.map_async(tasks.square, range(1000))
        pool.close()
        assert result.get(30)[:3] == [0, 1, 4]
        processes.wait_until(lambda: not any(worker.is_alive() for worker in pool._pool), "the workers are gone")


def test_terminate_ends_what_is_unfinished(gate: tasks.Gate) -> None:
    with processes.nothing_left():
        pool = Pool(1)
        results: list[AsyncResult] = [pool.apply_async(tasks.hold, (gate.path,)) for _ in range(3)]
        iterator = pool.imap(tasks.hold, [gate.path])
        gate.await_start()
        pool.terminate()
        for result in results:
            with pytest.raises(errors.PoolBroken):
                result.get(30)
        with pytest.raises(errors.PoolBroken):
            iterator.next(30)
        pool.join()


def test_callbacks_run_before_the_result_is_ready(theirs: Pool) -> None:
    order: list[object] = []
    caller = threading.get_ident()

    def callback(value: object) -> None:
        order.append((value, result.ready(), threading.get_ident() == caller))

    called = threading.Event()
    result = theirs.map_async(tasks.square, range(3), callback=lambda value: (called.wait(30), callback(value)))
    called.set()
    assert result.get(30) == [0, 1, 4]
    assert order == [([0, 1, 4], False, False)]


def test_a_callback_that_raises_costs_nothing(theirs: Pool, caplog: pytest.LogCaptureFixture) -> None:
    def callback(_: object) -> None:
        raise RuntimeError("in the callback")

    assert theirs.apply_async(tasks.square, (3,), callback=callback).get(30) == 9
    assert theirs.map_async(tasks.square, [3], callback=callback).get(30) == [9]
    assert theirs.apply(tasks.square, (4,)) == 16
    processes.wait_until(lambda: caplog.text.count("RuntimeError: in the callback") == 2, "both are logged")


def test_a_failing_initializer_is_an_error() -> None:
    with Pool(1, initializer=tasks.fail, initargs=("broken",)) as pool, pytest.raises(errors.PoolStartError):
        pool.apply(tasks.square, (1,))


def test_what_cannot_come_back_is_maybe_encoding_error(theirs: Pool) -> None:
    with pytest.raises(multiprocessing.pool.MaybeEncodingError, match="Locked"):  # type: ignore[attr-defined]
        theirs.apply(tasks.make_locked)


@pytest.mark.parametrize("method", ["map", "imap", "imap_unordered", "starmap", "map_async"])
def test_chunks_have_items(theirs: Pool, method: str) -> None:
    with pytest.raises(ValueError, match="Chunksize must be 1"):
        getattr(theirs, method)(tasks.square, [1, 2], chunksize=0)


def test_values_are_not_kept(theirs: Pool) -> None:
    value = next(theirs.imap(tasks.Box, [1]))
    gone = weakref.ref(value)
    del value
    assert gone() is None


def test_the_end_of_the_interpreter_kills_the_workers(tmp_path: Path) -> None:
    script = """
        import time
        from pool.compat.multiprocessing import Pool
        pool = Pool(1)
        pool.apply_async(time.sleep, (1000,))
        print(pool.apply_async(time.sleep, (1000,)).ready())
    """
    began = time.monotonic()
    assert scripts.run(tmp_path, script).stdout == "False\n"
    assert time.monotonic() - began < scripts.TIMEOUT / 2
