"""What tasks leave changed in their process, with ``recycle_changed``: the next task finds it as it was (fault 26)."""

import contextlib
import gc
import io
import locale
import mmap
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import processes
import pytest
import scripts
import tasks

from pool import Pool, changes

pytestmark = pytest.mark.timeout(60)


def _chdir() -> None:
    os.chdir("/proc")


def _umask() -> None:
    os.umask(0o123)


def _block() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGUSR2,))


def _handle() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _limit() -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft - 1, hard))


def _environ() -> None:
    os.environ["LEFT_BY_A_TASK"] = "1"


def _locale() -> None:
    locale.setlocale(locale.LC_ALL, "C" if locale.setlocale(locale.LC_ALL) != "C" else "C.UTF-8")


def _gc() -> None:
    gc.disable()


def _recursion() -> None:
    sys.setrecursionlimit(sys.getrecursionlimit() + 1)


def _close_all() -> None:
    os.closerange(0, 65536)


def _replace_a_stream() -> None:
    sys.stdout = io.StringIO()


def _close_what_is_high() -> None:
    os.closerange(3, 65536)


def _set_a_timer() -> None:
    signal.setitimer(signal.ITIMER_REAL, 1000)


def _lower_the_priority() -> None:
    os.nice(1)


def _one_cpu() -> None:
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})


def _leave_a_thread() -> None:
    threading.Thread(target=time.sleep, args=(1000,)).start()


WAYS = {
    "working directory": _chdir,
    "umask": _umask,
    "blocked signals": _block,
    "signal handlers": _handle,
    "limits": _limit,
    "timers": _set_a_timer,
    "priority": _lower_the_priority,
    "affinity": _one_cpu,
    "environment": _environ,
    "locale": _locale,
    "garbage collection": _gc,
    "recursion limit": _recursion,
    "standard streams": _replace_a_stream,
    "open files": _close_what_is_high,
    "threads": _leave_a_thread,
}


def _state() -> tuple[int, object]:
    """Of whom, and what can be sent of it."""
    state = changes.look()
    parts = state._replace(standard_streams=None, open_files=len(state.open_files))
    return os.getpid(), (*map(repr, parts), [os.path.exists(f"/proc/self/fd/{fd}") for fd in range(3)])


@pytest.mark.parametrize("change", [*WAYS.values(), _close_all], ids=lambda change: change.__name__.strip("_"))
def test_the_next_task_finds_the_process_as_it_was(change: Callable[[], None]) -> None:
    with Pool(1, recycle_changed=True) as pool:
        first, before = pool.submit(_state).result(20)
        assert pool.submit(_state).result(20) == (first, before), "who has changed nothing stays"
        assert pool.submit(change).result(20) is None
        second, after = pool.submit(_state).result(20)
        assert second != first
        assert after == before
        assert pool.insights().workers[0].restarts == {"changed": 1}
        assert pool.crashes == 0


@pytest.mark.parametrize("what", WAYS)
def test_a_change_has_a_name(what: str) -> None:
    said = mmap.mmap(-1, 100)  # needs no descriptor in the child
    if (pid := os.fork()) == 0:
        with contextlib.suppress(BaseException):
            before = changes.look()
            WAYS[what]()
            said.write(changes.since(before).encode())
        os._exit(0)
    os.waitpid(pid, 0)
    assert said.read().rstrip(b"\0").decode() == what


class _Incomparable:
    def __call__(self, *_: object) -> None: ...

    def __eq__(self, other: object) -> bool:
        raise ValueError

    __hash__ = object.__hash__


def _handle_incomparably() -> None:
    signal.signal(signal.SIGUSR2, _Incomparable())


def _no_environment() -> None:
    vars(os)["environ"] = None


@pytest.mark.parametrize("change", [_handle_incomparably, _no_environment])
def test_who_cannot_be_looked_at_has_changed(change: Callable[[], None]) -> None:
    with Pool(1, recycle_changed=True) as pool:
        pool.submit(change).result(20)
        assert pool.submit(abs, -1).result(20) == 1
        assert pool.insights().workers[0].restarts == {"changed": 1}


def test_further_files_and_fewer_threads_are_no_change() -> None:
    before = changes.look()
    with open(os.devnull):
        state = changes.look()
        assert changes.between(before._replace(threads=state.threads + 1), state) == ""
        assert changes.between(state, before) == "open files"


def test_without_it_a_change_stays() -> None:
    with Pool(1) as pool:
        pool.submit(_chdir).result(20)
        assert pool.submit(os.getcwd).result(20) == "/proc"
        assert pool.insights().workers[0].restarts == {}


def _chdir_if(x: int) -> int:
    if x % 10 == 3:
        os.chdir("/proc")
    return x * x


def test_in_maps_no_item_is_lost_and_a_chunk_is_one_task() -> None:
    with Pool(2, recycle_changed=True) as pool:
        assert list(pool.imap(_chdir_if, range(100), chunksize=1)) == [x * x for x in range(100)]
        processes.wait_until(lambda: _changed(pool) == 10, "each is counted")
        assert list(pool.imap(_chdir_if, range(100), chunksize=50)) == [x * x for x in range(100)]
        processes.wait_until(lambda: _changed(pool) >= 12, "each chunk is counted")
        assert _changed(pool) < 20, "and not each of its items"
        assert pool.crashes == 0


def _changed(pool: Pool) -> int:
    return sum(worker.restarts.get("changed", 0) for worker in pool.insights().workers)


def _raise_elsewhere() -> None:
    os.chdir("/proc")
    raise ValueError("elsewhere")


def test_what_a_failed_task_has_changed_counts_too() -> None:
    with Pool(1, recycle_changed=True) as pool:
        assert isinstance(pool.submit(_raise_elsewhere).exception(20), ValueError)
        assert pool.submit(os.getcwd).result(20) == os.getcwd()


def test_what_the_initializer_has_set_is_what_tasks_must_leave(tmp_path: Path) -> None:
    with Pool(1, initializer=os.chdir, initargs=(str(tmp_path),), recycle_changed=True) as pool:
        assert pool.submit(os.getcwd).result(20) == str(tmp_path)
        pool.submit(_chdir).result(20)
        assert pool.submit(os.getcwd).result(20) == str(tmp_path)
        assert pool.insights().workers[0].restarts == {"changed": 1}


_TELLS = """
import os, sys
from pool import Pool

def elsewhere(_):
    os.chdir("/")
    os.umask(0o123)

def teardown():
    print("torn down", flush=True)
    if sys.argv[1] == "fails":
        raise ValueError("in the teardown")

with Pool(1, recycle_changed=True, teardown=teardown) as pool:
    for _ in range(3):
        pool.submit(elsewhere, 0).result()
    print(pool.submit(abs, -1).result())
    print(pool.insights().workers[0].restarts)
"""


@pytest.mark.parametrize("end", ["works", "fails"])
def test_who_has_changed_what_is_told_once_and_the_teardown_runs(tmp_path: Path, end: str) -> None:
    ran = scripts.run(tmp_path, _TELLS, end)
    assert ran.stdout.count("torn down") == 4, "of three that were replaced and of the last one"
    told = [line for line in ran.stderr.splitlines() if "has left changed" in line]
    assert len(told) == 1
    assert "__main__.elsewhere has left changed: working directory, umask; worker 0" in told[0]
    assert "{'changed': 3}" in ran.stdout
    if end == "works":
        assert ran.stderr.splitlines() == told
    else:
        assert ran.stderr.count("ValueError: in the teardown") == 4


@pytest.mark.parametrize("method", ["forkserver", "spawn"])
def test_with_other_start_methods(method: str) -> None:
    import multiprocessing

    with Pool(1, multiprocessing.get_context(method), recycle_changed=True) as pool:
        assert pool.submit(abs, -1).result(40) == 1
        pool.submit(os.chdir, "/").result(20)
        pool.submit(tasks.square, 2).result(20)
        assert pool.insights().workers[0].restarts == {"changed": 1}


_TEARDOWN = """
import os
from pool import Pool, worker_process

def teardown():
    os._exit(worker_process.LEFT_CHANGED)

with Pool(1, max_tasks_per_child=1, teardown=teardown) as pool:
    pool.submit(abs, -1).result()
    pool.submit(abs, -1).result()
"""


def test_a_teardown_that_ends_with_the_same_exit_code_has_failed(tmp_path: Path) -> None:
    ran = scripts.run(tmp_path, _TEARDOWN)
    assert ran.stderr.count("the teardown of worker 0") >= 2, "and of the last one, if it was ready"
