"""What `Pool(...)`, `options()`, `shutdown` and `with` promise."""

import os
import threading
import weakref
from collections.abc import Iterator
from concurrent.futures import CancelledError, Executor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import processes
import pytest
import scripts
import tasks

from pool import Pool, errors
from pool.cpus import available_cpus

pytestmark = pytest.mark.timeout(30)


@pytest.fixture(autouse=True)
def _nothing_left() -> Iterator[None]:
    with processes.nothing_left():
        yield


# ---- constructor


def test_defaults_are_one_worker_for_each_cpu_and_nothing_started() -> None:
    pool = Pool()
    assert isinstance(pool, Executor)
    assert pool._max_workers == available_cpus()
    assert pool._client._running is None
    pool.shutdown()


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"max_workers": -1}, ValueError, "max_workers must be greater than 0"),
        ({"max_workers": 513}, ValueError, "max_workers must be <= 512"),
        ({"initializer": 5}, TypeError, "initializer must be a callable"),
        ({"max_tasks_per_child": 1.5}, TypeError, "max_tasks_per_child must be an integer"),
        ({"max_tasks_per_child": 0}, ValueError, "max_tasks_per_child must be >= 1"),
        ({"buffersize": 0}, ValueError, "buffersize must be None or > 0"),
        ({"buffersize": 1.5}, TypeError, "buffersize must be an integer or None"),
        ({"timeout": 0}, ValueError, "timeout must be greater than 0"),
        ({"timeout": -1.0}, ValueError, "timeout must be greater than 0"),
        ({"retries": -1}, ValueError, "retries must not be negative"),
        ({"retries": 1.5}, TypeError, "retries must be an integer"),
    ],
)
def test_wrong_arguments_are_refused_with_the_texts_of_the_standard_library(
    arguments: dict[str, Any], error: type[Exception], text: str
) -> None:
    with pytest.raises(error) as caught:
        Pool(**arguments)
    assert str(caught.value) == text


def test_workers_start_at_first_use() -> None:
    with Pool(1) as pool:
        assert pool._client._running is None

        def late(x: int) -> int:  # made after the pool
            return x + 1

        assert pool.submit(late, 1).result() == 2


def test_start_starts_all_workers_and_returns_the_pool() -> None:
    with Pool(2) as pool:
        assert pool.start() is pool
        processes.wait_until(lambda: len(processes.worker_pids(pool)) == 2, "two workers")
        before = processes.monitor_pid(pool)
        pool.start()
        assert processes.monitor_pid(pool) == before


def test_the_initializer_runs_once_in_each_worker_before_its_first_task() -> None:
    with Pool(2, initializer=tasks.remember_positional, initargs=("key", [1, 2])) as pool:
        assert list(pool.map(tasks.recall, ["key"] * 20)) == [[1, 2]] * 20
    assert tasks.STATE == {}


def test_an_initializer_that_always_fails_ends_the_pool_with_its_traceback() -> None:
    pool = Pool(2, initializer=tasks.fail, initargs=("no database",))
    future = pool.submit(tasks.pid)
    with pytest.raises(errors.PoolStartError, match="ValueError: no database") as caught:
        future.result()
    assert isinstance(caught.value, BrokenProcessPool)
    assert "tasks.py" in caught.value.traceback
    with pytest.raises(errors.PoolStartError):
        pool.submit(tasks.pid)
    pool.shutdown()


@pytest.mark.parametrize("most", [1, 3])
def test_a_worker_is_replaced_after_max_tasks_per_child(most: int) -> None:
    with Pool(2, max_tasks_per_child=most) as pool:
        pids = [pool.submit(tasks.pid).result() for _ in range(12)]
        pids += pool.map(tasks.pid, range(30))
    assert max(pids.count(pid) for pid in pids) <= most
    assert len(pids) == 42


def test_workers_get_affinity_niceness_titles_sessions_and_no_input() -> None:
    before = os.nice(0)
    with Pool(2, cpu_affinity=True, nice=3, name="photos") as pool:
        seen = {}
        while len(seen) < 2:
            me = pool.submit(tasks.about_me).result()
            seen[me["pid"]] = me
    cpus = sorted(os.sched_getaffinity(0))
    for me in seen.values():
        assert me["nice"] == before + 3
        assert me["session"] == me["pid"]
        assert me["stdin"] == os.devnull
        assert me["monitor"] == "photos: monitor"
        slot = int(me["title"].removeprefix("photos: worker "))
        assert me["short title"] == f"photos:worker-{slot}"[:15]
        assert me["cpus"] == {cpus[slot % len(cpus)]}


def test_blas_and_openmp_get_threads_per_worker() -> None:
    import numpy

    assert numpy.ones(2) @ numpy.ones(2) == 2  # loaded before the fork
    with Pool(1) as one, Pool(1, threads_per_worker=2) as two:
        for pool, threads in ((one, 1), (two, 2)):
            found, variable = pool.submit(tasks.threads_of_blas).result()
            assert found
            assert set(found) <= {threads, 1}
            assert variable == str(threads)


def test_random_numbers_differ_between_workers_and_from_the_client() -> None:
    import random

    import numpy

    random.seed(1)
    numpy.random.seed(1)
    state = random.getstate()
    with Pool(2) as pool:
        seen: dict[int, Any] = {}
        while len(seen) < 2:
            pid, *numbers = pool.submit(tasks.random_numbers).result()
            seen.setdefault(pid, numbers)
    mine = [random.random(), int(numpy.random.randint(1 << 30))]
    random.setstate(state)
    assert len({numbers[0] for numbers in [*seen.values(), mine]}) == 3
    assert len({numbers[1] for numbers in [*seen.values(), mine]}) == 3


# ---- options


def test_options_of_options_merge() -> None:
    with Pool(1, retries=1) as pool:
        view = pool.options(timeout=5).options(retries=2)
        assert (view._policy.timeout, view._policy.retries) == (5, 2)
        assert (pool._policy.timeout, pool._policy.retries) == (None, 1)
        assert view.options(timeout=None)._policy.timeout is None
        assert isinstance(view, Executor)
        with pytest.raises(ValueError, match="timeout must be greater than 0"):
            pool.options(timeout=0)
        assert view.submit(tasks.square, 3).result() == 9
        assert list(view.map(tasks.square, range(5))) == [0, 1, 4, 9, 16]


def test_options_shutdown_waits_for_its_own_tasks_and_leaves_the_pool_open(gate: tasks.Gate) -> None:
    with Pool(2) as pool:
        other = pool.submit(tasks.hold, gate.path)
        gate.await_start()
        with pool.options(retries=1) as view:
            mine = [view.submit(tasks.square, x) for x in range(50)]
        assert all(future.done() for future in mine)
        assert not other.done()
        for call in (
            lambda: view.submit(tasks.pid),
            lambda: list(view.map(tasks.square, [1])),
            lambda: list(view.imap(tasks.square, [1])),
        ):
            with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
                call()
        assert pool.submit(tasks.square, 3).result() == 9
        gate.open()


def test_retries_run_a_failed_task_again_but_not_after_abort(tmp_path: Path) -> None:
    def attempt(folder: str, error: type[Exception]) -> None:
        with open(folder + "/tries", "a") as file:
            file.write("x")
        raise error("again")

    with Pool(1, retries=2) as pool:
        with pytest.raises(ValueError, match="again"):
            pool.submit(attempt, str(tmp_path), ValueError).result()
        assert (tmp_path / "tries").read_text() == "xxx"
        with pytest.raises(errors.Abort, match="again"):
            pool.submit(attempt, str(tmp_path), errors.Abort).result()
        assert (tmp_path / "tries").read_text() == "xxxx"


# ---- the end


def test_after_shutdown_everything_is_refused_with_the_text_of_the_standard_library() -> None:
    pool = Pool(1)
    assert pool.submit(tasks.square, 2).result() == 4
    pool.shutdown()
    pool.shutdown()
    for call in (
        lambda: pool.submit(tasks.pid),
        lambda: pool.map(tasks.square, [1]),
        lambda: pool.map(tasks.square, [1], chunksize=2),
        lambda: next(pool.imap(tasks.square, [1])),
        pool.start,
    ):
        with pytest.raises(RuntimeError) as caught:
            call()
        assert str(caught.value) == "cannot schedule new futures after shutdown"
        assert isinstance(caught.value, errors.PoolClosed)


def test_shutdown_waits_for_everything_that_was_accepted() -> None:
    pool = Pool(2)
    futures = [pool.submit(tasks.square, x) for x in range(500)]
    pool.shutdown()
    assert all(future.done() for future in futures)
    assert [future.result() for future in futures] == [x * x for x in range(500)]


def test_shutdown_without_wait_still_finishes_what_is_pending(gate: tasks.Gate) -> None:
    pool = Pool(1)
    running = pool.submit(tasks.hold, gate.path, "done")
    pending = [pool.submit(tasks.square, x) for x in range(20)]
    gate.await_start()
    pool.shutdown(wait=False)
    with pytest.raises(errors.PoolClosed):
        pool.submit(tasks.pid)
    gate.open()
    assert running.result() == "done"
    assert [future.result() for future in pending] == [x * x for x in range(20)]
    processes.wait_until(lambda: pool._client._running is None, "the workers leave by themselves")


def test_shutdown_can_cancel_what_has_not_started(gate: tasks.Gate) -> None:
    pool = Pool(1)
    running = pool.submit(tasks.hold, gate.path, "done")
    gate.await_start()
    pending = [pool.submit(tasks.square, x) for x in range(3000)]  # more than there are rows
    pool.shutdown(wait=False, cancel_futures=True)
    assert all(future.cancelled() for future in pending)
    with pytest.raises(CancelledError):
        pending[0].result()
    assert not running.done()
    gate.open()
    pool.shutdown()
    assert running.result() == "done"


@pytest.mark.parametrize("how", ["terminate_workers", "kill_workers"])
def test_killed_workers_end_everything_unfinished_as_broken(how: str, gate: tasks.Gate) -> None:
    pool = Pool(1)
    finished = pool.submit(tasks.square, 2)
    running = pool.submit(tasks.hold, gate.path)
    pids = gate.await_start()
    pending = [pool.submit(tasks.square, x) for x in range(2000)]
    caught: list[BaseException | None] = []
    waiting = [threading.Thread(target=lambda f=f: caught.append(f.exception())) for f in (running, pending[-1])]
    for thread in waiting:
        thread.start()
    getattr(pool, how)()
    for thread in waiting:
        thread.join()
    assert not processes.runs(pids[0])
    assert finished.result() == 4
    assert [type(error) for error in caught] == [errors.PoolBroken] * 2
    for future in [running, *pending]:
        with pytest.raises(BrokenProcessPool, match="terminated"):
            future.result()
    with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
        pool.submit(tasks.pid)
    pool.shutdown()


def test_with_waits_also_when_its_block_raises() -> None:
    with pytest.raises(KeyError), Pool(1) as pool:  # noqa: PT012
        futures = [pool.submit(tasks.square, x) for x in range(100)]
        raise KeyError
    assert [future.result() for future in futures] == [x * x for x in range(100)]


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_with_kills_the_workers_on_keyboard_interrupt_and_system_exit(
    error: type[BaseException], gate: tasks.Gate
) -> None:
    with pytest.raises(error), Pool(1) as pool:  # noqa: PT012
        future = pool.submit(tasks.hold, gate.path)
        gate.await_start()
        raise error
    with pytest.raises(errors.PoolBroken):
        future.result()


def test_a_pool_that_is_not_used_ends_without_having_started() -> None:
    with Pool(2) as pool:
        pass
    assert pool._client._running is None


def test_a_pool_cannot_be_pickled() -> None:
    import pickle

    with Pool(1) as pool, pytest.raises(TypeError, match="cannot be pickled"):
        pickle.dumps(pool)


def test_a_collected_pool_finishes_its_work_and_goes_away() -> None:
    pool = Pool(2)
    futures = [pool.submit(tasks.square, x) for x in range(200)]
    client, gone = pool._client, weakref.ref(pool)
    del pool
    assert gone() is None
    assert [future.result() for future in futures] == [x * x for x in range(200)]
    processes.wait_until(lambda: client._running is None, "the workers leave by themselves")


def test_the_results_of_a_map_outlive_the_pool_object() -> None:
    assert list(Pool(1).map(tasks.square, range(100))) == [x * x for x in range(100)]
    assert list(Pool(1).imap(tasks.square, range(100))) == [x * x for x in range(100)]
    assert list(Pool(1).options(retries=1).map(tasks.square, range(9), chunksize=2)) == [x * x for x in range(9)]


def test_a_pool_made_in_a_thread_that_has_ended_goes_on(tmp_path: Path) -> None:
    script = """
        import threading, tasks
        from pool import Pool

        made = []
        thread = threading.Thread(target=lambda: made.append(Pool(2).start()))
        thread.start()
        thread.join()
        assert list(made[0].map(tasks.square, range(100))) == [x * x for x in range(100)]
        made[0].shutdown()
        print("ok")
    """
    assert scripts.run(tmp_path, script).stdout == "ok\n"


def test_two_pools_do_not_disturb_each_other() -> None:
    with Pool(1) as first, Pool(1) as second:
        a, b = first.submit(tasks.pid).result(), second.submit(tasks.pid).result()
        assert a != b
        second.kill_workers()
        assert first.submit(tasks.pid).result() == a


def test_a_task_may_have_a_pool_of_its_own() -> None:
    with Pool(2) as pool:
        assert pool.submit(tasks.nested, 20).result() == [x * x for x in range(20)]
        assert list(pool.imap_unordered(tasks.nested, [5, 5, 5])) == [[0, 1, 4, 9, 16]] * 3


def test_an_endless_timeout_is_none_at_all() -> None:
    with Pool(1) as pool:
        assert pool.options(timeout=float("inf")).submit(tasks.square, 3).result() == 9
        assert pool._client.unfinished == 0
