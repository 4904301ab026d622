"""How a task can end or misbehave, and what must follow: the right error for it, and nothing for anybody else."""

import contextlib
import ctypes
import errno
import faulthandler
import fcntl
import functools
import gc
import locale
import mmap
import multiprocessing
import os
import random
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import processes
import pytest
import scripts
import tasks

from ipc import _core, process
from pool import Pool, output
from pool.errors import PoolBroken, PoolStartError, WorkerCrashed

pytestmark = pytest.mark.timeout(60)
SHUTDOWN = 10.0  # seconds, on a busy machine; the monitor itself allows its workers two


@pytest.fixture(autouse=True)
def _nothing_left() -> Iterator[None]:
    with processes.nothing_left():
        yield


@contextlib.contextmanager
def bounded(pool: Pool) -> Iterator[Pool]:
    """The pool, which goes on after the block, and whose shutdown is bounded."""
    yield pool
    assert [pool.submit(abs, -n).result(20) for n in range(50)] == list(range(50)), "the pool goes on"
    began = time.monotonic()
    pool.shutdown()
    assert time.monotonic() - began < SHUTDOWN


# ---- a task that takes its worker with it


def _raise(number: int) -> None:
    signal.raise_signal(number)


def _read_null() -> None:
    ctypes.string_at(0)


def _bus() -> None:
    with open(f"/proc/self/fd/{os.memfd_create('cut')}", "r+b") as file:
        file.truncate(mmap.PAGESIZE)
        memory = mmap.mmap(file.fileno(), mmap.PAGESIZE)
        file.truncate(0)
        memory[0]


def _c_stack() -> None:
    """Recursion in C, on a stack made so small that no limit of Python is met first."""
    with open("/proc/self/status") as file:
        used = next(int(line.split()[1]) for line in file if line.startswith("VmStk"))
    resource.setrlimit(resource.RLIMIT_STACK, ((used + 64) * 1024, resource.RLIM_INFINITY))
    sys.setrecursionlimit(10**6)

    def deeper(_: int) -> list[Any]:
        return list(map(deeper, [0]))

    deeper(0)


def _print_and_die() -> None:
    sys.stdout.write("half a line")
    sys.stderr.write("half a line")
    threading.Thread(target=_print_for_ever, daemon=True).start()
    os.abort()


def _print_for_ever() -> None:
    with open(os.devnull, "w") as file:
        while True:
            print("x" * 1000, file=file)


def _threads_and_die() -> None:
    for daemon in (True, False):
        threading.Thread(target=time.sleep, args=(1000,), daemon=daemon).start()
    os._exit(9)


CRASHES: dict[str, tuple[Callable[[], object], int | None, int | None, str]] = {
    # name: task, signal, exit code, what the stack names
    "exits with 0": (functools.partial(os._exit, 0), None, 0, ""),
    "exits with 42": (functools.partial(os._exit, 42), None, 42, ""),
    "aborts": (os.abort, signal.SIGABRT, None, ""),
    "reads address 0": (_read_null, signal.SIGSEGV, None, "_read_null"),
    "kills itself": (functools.partial(_raise, signal.SIGKILL), signal.SIGKILL, None, ""),
    "terminates itself": (functools.partial(_raise, signal.SIGTERM), signal.SIGTERM, None, ""),
    "reads a cut file": (_bus, signal.SIGBUS, None, "_bus"),
    "SIGFPE": (functools.partial(_raise, signal.SIGFPE), signal.SIGFPE, None, "_raise"),
    "SIGILL": (functools.partial(_raise, signal.SIGILL), signal.SIGILL, None, "_raise"),
    "real-time signal": (functools.partial(_raise, signal.SIGRTMIN + 3), signal.SIGRTMIN + 3, None, ""),
    "overflows the C stack": (_c_stack, signal.SIGSEGV, None, "deeper"),
    "crashes while it prints": (_print_and_die, signal.SIGABRT, None, "_print_and_die"),
    "leaves threads and exits": (_threads_and_die, None, 9, ""),
}


def _run(name: str) -> object:
    return CRASHES[name][0]()


@pytest.mark.parametrize("way", ["submit", "chunk", "single"])
@pytest.mark.parametrize("name", CRASHES)
def test_a_crash_is_its_tasks_alone_and_names_task_slot_pid_and_reason(name: str, way: str) -> None:
    _, number, code, place = CRASHES[name]
    with bounded(Pool(2)) as pool:
        pool.start()
        neighbours = [pool.submit(abs, -n) for n in range(20)]
        if way == "submit":
            error = pool.submit(_run, name).exception(20)
        else:
            items = ["fine", name, "fine"]
            good, failure, last = pool.imap(_run_or_not, items, chunksize=3 if way == "chunk" else 1, on_error="return")
            assert (good, last, failure.item, failure.index) == ("fine", "fine", name, 1)
            error = failure.error
        assert isinstance(error, WorkerCrashed)
        assert (error.signal, error.exitcode, error.attempt, error.oom) == (number, code, 1, False)
        assert error.args_repr == repr(name)
        assert error.slot in (0, 1)
        assert not processes.runs(error.pid)
        reason = f"exit code {code}" if number is None else _signal_name(number)
        task = f"{__name__}.{'_run' if way == 'submit' else '_run_or_not'}"
        for part in (task, name, f"slot {error.slot}", f"pid {error.pid}", reason):
            assert part in str(error)
        assert place in error.stack
        assert [neighbour.result(20) for neighbour in neighbours] == list(range(20))


def _run_or_not(name: str) -> object:
    return _run(name) if name in CRASHES else name


def _signal_name(number: int) -> str:
    with contextlib.suppress(ValueError):
        return signal.Signals(number).name
    return f"signal {number}"


# ---- a task that raises what others let through


class Strange(BaseException):
    pass


def _recurse() -> int:
    return _recurse() + 1


def _too_large() -> bytearray:
    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * mmap.PAGESIZE
    resource.setrlimit(resource.RLIMIT_AS, (used + (16 << 20), resource.RLIM_INFINITY))
    return bytearray(1 << 30)


def _raise_error(error: BaseException) -> NoReturn:
    raise error


def _interrupt_self() -> None:
    os.kill(os.getpid(), signal.SIGINT)
    while True:
        pass


GROUP = BaseExceptionGroup("two", [ValueError(1), KeyboardInterrupt()])
RAISES: dict[str, tuple[Callable[[], object], type[BaseException]]] = {
    "sys.exit": (functools.partial(sys.exit, 7), SystemExit),
    "sys.exit with a text": (functools.partial(sys.exit, "bye"), SystemExit),
    "KeyboardInterrupt": (functools.partial(_raise_error, KeyboardInterrupt()), KeyboardInterrupt),
    "SIGINT": (_interrupt_self, KeyboardInterrupt),
    "GeneratorExit": (functools.partial(_raise_error, GeneratorExit()), GeneratorExit),
    "StopIteration": (functools.partial(_raise_error, StopIteration(3)), StopIteration),
    "group": (functools.partial(_raise_error, ExceptionGroup("one", [ValueError(1)])), ExceptionGroup),
    "group of base exceptions": (functools.partial(_raise_error, GROUP), BaseExceptionGroup),
    "bare BaseException": (functools.partial(_raise_error, Strange("x")), Strange),
    "RecursionError": (_recurse, RecursionError),
    "MemoryError": (_too_large, MemoryError),
}


def _raise_named(name: str) -> object:
    return RAISES[name][0]()


@pytest.mark.parametrize("name", RAISES)
def test_whatever_a_task_raises_is_its_futures_error_and_its_worker_lives_on(name: str) -> None:
    with bounded(Pool(1)) as pool:
        pid = pool.submit(os.getpid).result(20)
        error = pool.submit(_raise_named, name).exception(20)
        assert type(error) is RAISES[name][1]
        assert "_raise_named" in str(error.__cause__), "the remote traceback is its cause"
        if isinstance(error, SystemExit):
            assert error.code in (7, "bye")
        (failure,) = pool.imap(_raise_named, [name], on_error="return")
        assert type(failure.error) is RAISES[name][1]
        assert pool.submit(os.getpid).result(20) == pid


_hoard: list[Any] = []


def _use_up_all_memory() -> None:
    _limit(32 << 20)
    for size in (1 << 20, 1 << 12, 64):
        with contextlib.suppress(MemoryError):
            while True:
                _hoard.append(bytearray(size))
    raise MemoryError("not a byte is left")


def _limit(more: int) -> None:
    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * mmap.PAGESIZE
    resource.setrlimit(resource.RLIMIT_AS, (used + more, resource.RLIM_INFINITY))


def test_a_task_that_has_used_up_all_memory_is_still_reported_and_no_later_task_suffers() -> None:
    with bounded(Pool(1)) as pool:
        future, later = pool.submit(_use_up_all_memory), [pool.submit(bytes, 100_000) for _ in range(20)]
        assert isinstance(future.exception(20), MemoryError)
        assert [len(f.result(20)) for f in later] == [100_000] * 20


# ---- interrupts that nobody can place


def _spin(seconds: float) -> str:
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass
    return "done"


def test_interrupts_at_any_moment_lose_no_task() -> None:
    lucky = random.Random(3)
    with bounded(Pool(1)) as pool:
        pool.start()
        seen = set()
        for _ in range(30):
            futures = [pool.submit(_spin, lucky.choice((0.0, 0.0, 0.0, 0.001))) for _ in range(100)]
            while not all(future.done() for future in futures):
                for pid in processes.worker_pids(pool) * 30:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGINT)
                with contextlib.suppress(TimeoutError):
                    futures[-1].exception(0.0001)
            seen |= {type(future.exception()) for future in futures}
        # An interrupt while the result is on its way is a crash: nobody can say whether the task was meant.
        assert seen <= {type(None), KeyboardInterrupt, WorkerCrashed}
        assert {type(None), KeyboardInterrupt} <= seen


# ---- processes that a task starts


def _sleeper(marker: str, **options: Any) -> int:
    return subprocess.Popen(["sh", "-c", f"sleep 1000; : {marker}"], **options).pid


def _daemon(marker: str) -> int:
    """Nothing that a process can shed ties it to us: parent, session, group, files, environment. Our worker's pid."""
    pid = os.fork()
    if pid == 0:
        os.setsid()
        if os.fork() == 0:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            os.closerange(0, 1024)
            os.execl("/usr/bin/env", "env", "-i", "sh", "-c", f"trap '' TERM HUP; sleep 1000; : {marker}")
        os._exit(0)
    os.waitpid(pid, 0)
    return os.getpid()


def _marker() -> str:
    return f"fault-{os.getpid()}-{random.getrandbits(60)}"


def test_a_process_that_a_task_leaves_behind_dies_with_its_worker() -> None:
    marker = _marker()
    with bounded(Pool(1)) as pool:
        pool.submit(_sleeper, marker).result(20)
        processes.wait_until(lambda: processes.named(marker), "it was started")
        assert isinstance(pool.submit(os._exit, 1).exception(20), WorkerCrashed)
        assert processes.named(marker) == [], "it is gone when the death is reported"


@pytest.mark.parametrize(
    "options",
    [{}, {"process_group": 0}, {"start_new_session": True}, None],
    ids=["child", "group", "session", "daemon"],
)
@pytest.mark.parametrize("end", ["shutdown", "kill_workers"])
def test_whatever_a_task_leaves_behind_is_gone_when_the_pool_ends(options: dict[str, Any] | None, end: str) -> None:
    marker = _marker()
    pool = Pool(1)
    pool.submit(functools.partial(_sleeper, **options) if options is not None else _daemon, marker).result(20)
    processes.wait_until(lambda: processes.named(marker), "it was started")
    getattr(pool, end)()
    assert processes.named(marker) == []


def _await_daemon(marker: str) -> list[int]:
    """The pids of the daemon and of its child."""
    daemon = processes.wait_until(lambda: processes.named(marker), "it was started")
    return [*daemon, *processes.wait_until(lambda: processes.children_of_all(daemon[0]), "its child, too")]


@pytest.mark.parametrize("moment", ["with a task", "idle"])
def test_a_daemon_does_not_outlive_a_monitor_that_was_killed(moment: str) -> None:
    marker = _marker()
    pool = Pool(2)
    pool.submit(_daemon, marker).result(20)
    daemon = _await_daemon(marker)
    future = pool.submit(_spin, 1000) if moment == "with a task" else None
    os.kill(processes.monitor_pid(pool), signal.SIGKILL)
    if future is not None:
        assert isinstance(future.exception(20), PoolBroken)
        assert not any(map(processes.runs, daemon)), "it is gone when the pool's end is told"
    pool.shutdown()
    assert not any(map(processes.runs, daemon))


def test_where_marks_are_not_possible_sessions_name_the_rest() -> None:
    code = """
import os, resource, signal, subprocess, time
from ipc import process
from pool import Pool
resource.setrlimit(resource.RLIMIT_RTTIME, (10**9, 10**9))
pool = Pool(1)
pool.submit(os.system, "sleep 1000 & exit").result(20)  # in the worker's session; its shell is gone
running = pool._client._running
sleeper = max(process.session_members(set(running.worker_pids())))
assert process.marked(running.marks) == []
future = pool.submit(time.sleep, 1000)
os.kill(running.pid, signal.SIGKILL)
print(type(future.exception(20)).__name__, sleeper)
"""
    name, _, sleeper = _in_a_client(code).partition(" ")
    assert name == "PoolBroken"
    assert not processes.runs(int(sleeper))


def _daemon_of_a_held_task(marker: str, path: str) -> int:
    _daemon(marker)
    return int(tasks.hold(path, os.getpid()))


def test_a_daemon_lives_as_long_as_the_worker_that_has_started_it(gate: tasks.Gate) -> None:
    mine, others = _marker(), _marker()
    with bounded(Pool(2)) as pool:
        futures = [pool.submit(_daemon_of_a_held_task, marker, gate.path) for marker in (mine, others)]
        gate.await_start(2)  # at the same time, so not in the same worker
        gate.open(2)
        worker, _ = (future.result(20) for future in futures)
        daemon, neighbour = _await_daemon(mine), _await_daemon(others)
        assert [pool.submit(abs, -n).result(20) for n in range(100)] == list(range(100))
        assert all(map(processes.runs, daemon + neighbour)), "other tasks end none of them"
        os.kill(worker, signal.SIGKILL)
        processes.wait_until(lambda: worker not in processes.worker_pids(pool), "it has a successor")
        assert not any(map(processes.runs, daemon)), "gone before the successor was there"
        assert all(map(processes.runs, neighbour))


def _pool_with_daemon(marker: str) -> None:
    pool = Pool(1)
    pool.submit(_daemon, marker).result(20)
    pool.submit(_spin, 1000).result()


@pytest.mark.parametrize("victim", ["worker", "monitor"])
def test_a_pool_inside_of_a_task_ends_its_daemons_itself(victim: str) -> None:
    marker = _marker()
    pool = Pool(1)
    future = pool.submit(_pool_with_daemon, marker)
    daemon = _await_daemon(marker)
    (worker,) = processes.worker_pids(pool)
    os.kill(worker if victim == "worker" else processes.monitor_pid(pool), signal.SIGKILL)
    processes.wait_until(lambda: not any(map(processes.runs, daemon)), "they are gone")
    assert isinstance(future.exception(20), WorkerCrashed if victim == "worker" else PoolBroken)
    pool.shutdown()


def _end(pool: Pool, way: str) -> None:
    """The end of the only worker."""
    if way == "crash":
        assert isinstance(pool.submit(os._exit, 1).exception(20), WorkerCrashed)
    elif way == "deadline":
        assert isinstance(pool.options(timeout=0.1).submit(_spin, 1000).exception(20), TimeoutError)
    elif way == "kill":
        future = pool.submit(_spin, 1000)
        processes.wait_until(future.running, "it runs")
        assert future.kill()
        assert future.exception(20) is not None
    else:
        assert [pool.submit(abs, -n).result(20) for n in range(3)] == [0, 1, 2], "the last of them by its successor"


@pytest.mark.parametrize("way", ["crash", "deadline", "kill", "recycled"])
def test_a_daemon_is_gone_when_the_end_of_its_worker_is_known(way: str) -> None:
    marker = _marker()
    with bounded(Pool(1, max_tasks_per_child=3)) as pool:
        pool.submit(_daemon, marker).result(20)
        daemon = _await_daemon(marker)
        _end(pool, way)
        assert not any(map(processes.runs, daemon))


def _fork_and(what: str) -> str:
    pid = os.fork()
    if pid:
        os.waitpid(pid, 0)
        return "parent"
    if what == "return":
        return "child"
    if what == "raise":
        raise ValueError("child")
    if what == "exit":
        sys.exit(3)
    ctypes.string_at(0)
    return "not reached"


@pytest.mark.parametrize("way", ["submit", "chunk"])
@pytest.mark.parametrize("what", ["return", "raise", "exit", "crash"])
def test_a_child_that_a_task_forks_never_answers_for_it(what: str, way: str) -> None:
    with bounded(Pool(1)) as pool:
        if way == "submit":
            assert [pool.submit(_fork_and, what).result(20) for _ in range(5)] == ["parent"] * 5
        else:
            assert list(pool.imap(_fork_and, [what] * 5, chunksize=5)) == ["parent"] * 5


def _fork_and_outlive() -> int:
    pid = os.fork()
    if pid == 0:
        signal.pause()
        return -1
    return pid


def test_a_forked_child_that_outlives_its_task_is_gone_with_the_pool() -> None:
    with Pool(1) as pool:
        pid = pool.submit(_fork_and_outlive).result(20)
        assert processes.runs(pid)
        assert pool.submit(abs, -1).result(20) == 1
    assert not processes.runs(pid)


def _square(n: int) -> int:
    return n * n


def _multiprocessing(method: str) -> list[int]:
    context = multiprocessing.get_context(method)
    queue = context.SimpleQueue()
    one = context.Process(target=_put, args=(queue, 5))
    one.start()
    one.join()
    with context.Pool(2) as inner:
        return [queue.get(), *inner.map(_square, [1, 2, 3])]


def _put(queue: Any, value: int) -> None:
    queue.put(value)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_multiprocessing_works_inside_a_task(method: str) -> None:
    with bounded(Pool(1)) as pool:
        assert pool.submit(_multiprocessing, method).result(40) == [5, 1, 4, 9]


def _pool_in_task() -> list[int]:
    with Pool(1) as inner:
        return list(inner.map(_square, [2, 3]))


def test_a_pool_works_inside_a_task() -> None:
    with bounded(Pool(1)) as pool:
        assert pool.submit(_pool_in_task).result(40) == [4, 9]


# ---- a task that changes the world


def _ignore_signals() -> None:
    for number in range(1, signal.NSIG):
        with contextlib.suppress(OSError, ValueError):
            signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())


def _close_all() -> None:
    os.closerange(3, 65536)


def _close_streams() -> None:
    sys.stdout.close()
    sys.stderr.close()
    os.closerange(0, 3)


def _break_streams() -> None:
    sys.stdout = sys.stderr = None  # type: ignore[assignment]


def _change_place() -> None:
    os.chdir("/proc")
    os.umask(0o777)
    os.environ.clear()


def _leave_threads() -> None:
    _more_threads(True)
    _more_threads(False)


def _more_threads(daemon: bool) -> None:
    threading.Thread(target=time.sleep, args=(1000,), daemon=daemon).start()


def _leave_a_busy_thread() -> None:
    threading.Thread(target=_spin, args=(1000,)).start()


def _change_limits() -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))


def _leave_a_timer() -> None:
    """That interrupts whatever runs later, a thousand times a second."""
    signal.signal(signal.SIGALRM, lambda *_: None)
    signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)


def _change_the_language() -> None:
    locale.setlocale(locale.LC_ALL, "C")
    os.environ.update(LC_ALL="xx_YY", LANG="xx_YY")


def _stop_collecting() -> None:
    gc.set_threshold(1, 1, 1)
    gc.freeze()
    gc.disable()


def _write_to_all() -> None:
    """Into whatever the pool has left open, at any offset and at the present one."""
    for fd, name in processes.open_files().items():
        if "memfd:pool" in name:
            with contextlib.suppress(OSError):
                os.write(int(fd), b"\xff" * 64)
                os.pwrite(int(fd), b"\xff" * 4096, 0)


CHANGES = [
    _ignore_signals,
    _close_all,
    _close_streams,
    _break_streams,
    _change_place,
    _leave_threads,
    _leave_a_busy_thread,
    _change_limits,
    _leave_a_timer,
    _change_the_language,
    _stop_collecting,
    _write_to_all,
]


def _change_and_return(change: Callable[[], None]) -> str:
    change()
    return "returned"


def _change_and_crash(change: Callable[[], None]) -> None:
    change()
    os._exit(5)


def _change_and_hang(change: Callable[[], None]) -> None:
    change()
    while True:
        pass


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__.strip("_"))
def test_a_task_that_changes_its_process_stops_neither_the_pool_nor_a_deadline(change: Callable[[], None]) -> None:
    with bounded(Pool(2)) as pool:
        assert pool.submit(_change_and_return, change).result(20) == "returned"
        assert [pool.submit(abs, -n).result(20) for n in range(20)] == list(range(20))
        error = pool.submit(_change_and_crash, change).exception(20)
        assert isinstance(error, WorkerCrashed)
        assert error.exitcode == 5
        assert isinstance(pool.options(timeout=0.2).submit(_change_and_hang, change).exception(20), TimeoutError)


def _set_a_timer(path: str) -> None:
    """It fires when the next task has begun, or after a minute."""
    signal.setitimer(signal.ITIMER_REAL, 60)
    Path(path).touch()


def _fire_the_timer(path: str) -> NoReturn:
    assert os.path.exists(path), "it was set in this worker"
    left, _ = signal.getitimer(signal.ITIMER_REAL)
    assert left > 0, "it still runs"
    signal.setitimer(signal.ITIMER_REAL, 0.001)
    while True:
        time.sleep(1)


def test_a_timer_that_a_task_has_left_running_costs_the_task_that_it_meets(tmp_path: Path) -> None:
    path = str(tmp_path / "set")
    with bounded(Pool(1)) as pool:
        pool.submit(_set_a_timer, path).result(20)
        error = pool.submit(_fire_the_timer, path).exception(20)
        assert isinstance(error, WorkerCrashed)
        assert error.signal == signal.SIGALRM
        assert (error.task, error.attempt) == (f"{__name__}._fire_the_timer", 1)
        assert pool.submit(abs, -1).result(20) == 1


def _close_all_and_write(folder: str) -> str:
    """After its descriptors were closed, ours get the numbers that were the worker's."""
    os.closerange(3, 65536)
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(open(os.path.join(folder, str(n)), "w+")) for n in range(20)]
        for file in files:
            file.write("mine")
            file.flush()
        with output(os.path.join(folder, "result")) as name:
            Path(name).write_text("whole")
        return "".join(str(Path(file.name).read_text() == "mine")[0] for file in files)


def test_after_a_task_has_closed_all_descriptors_nothing_of_ours_is_written_into_its_files(tmp_path: Path) -> None:
    with bounded(Pool(1)) as pool:
        assert pool.submit(_close_all_and_write, str(tmp_path)).result(20) == "T" * 20
        assert (tmp_path / "result").read_text() == "whole"


def _descriptors() -> list[str]:
    return sorted(processes.open_files().values())


def test_a_worker_has_no_descriptor_of_the_shared_memory_or_of_the_monitor() -> None:
    ours = set(processes.open_files().values())
    with bounded(Pool(2)) as pool:
        theirs = set(pool.submit(_descriptors).result(20)) - ours
        assert not [name for name in theirs if "pool-control" in name or "pool-payload" in name], theirs
        # One socket: its end of the wire to the client's event loops, into which it can only write.
        assert len([name for name in theirs if "socket" in name]) == 1, theirs


# ---- starts


def _initialize(path: str, *whats: str) -> None:
    """The k-th start of any worker does the k-th thing; further ones succeed."""
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    fcntl.flock(fd, fcntl.LOCK_EX)  # else two at the same moment may both see the later number
    os.write(fd, b"x")
    start = os.fstat(fd).st_size - 1
    os.close(fd)
    what = whats[min(start, len(whats) - 1)]
    if what == "raise":
        raise LookupError("no model there")
    if what == "crash":
        ctypes.string_at(0)
    if what == "exit":
        os._exit(0)
    if what == "hang":
        signal.pause()


def test_an_initializer_that_raises_ends_the_pool_with_its_traceback(tmp_path: Path) -> None:
    pool = Pool(2, initializer=_initialize, initargs=(str(tmp_path / "starts"), "raise"))
    futures = [pool.submit(abs, n) for n in range(10)]
    for future in futures:
        error = future.exception(20)
        assert isinstance(error, PoolStartError)
        assert "LookupError: no model there" in str(error)
        assert "in _initialize" in error.traceback
    with pytest.raises(PoolStartError, match="no model there"):
        pool.submit(abs, 1)
    pool.shutdown()


@pytest.mark.parametrize("what", ["crash", "exit"])
def test_an_initializer_that_kills_the_worker_ends_the_pool(tmp_path: Path, what: str) -> None:
    pool = Pool(2, initializer=_initialize, initargs=(str(tmp_path / "starts"), what))
    error = pool.submit(abs, 1).exception(20)
    assert isinstance(error, PoolStartError)
    assert ("Segmentation fault" in error.traceback) == (what == "crash")
    with pytest.raises(PoolStartError):
        list(pool.imap(abs, [1]))
    pool.shutdown()


@pytest.mark.parametrize("what", ["raise", "crash", "exit"])
def test_an_initializer_that_fails_now_and_then_costs_time_but_no_task(tmp_path: Path, what: str) -> None:
    whats = ("fine", "fine", what, "fine", what, what, "fine")
    with bounded(Pool(2, initializer=_initialize, initargs=(str(tmp_path / "starts"), *whats))) as pool:
        assert [pool.submit(abs, -n).result(20) for n in range(20)] == list(range(20))
        for _ in range(4):
            assert isinstance(pool.submit(os._exit, 1).exception(20), WorkerCrashed)
            assert [pool.submit(abs, -n).result(20) for n in range(20)] == list(range(20))
        processes.wait_until(lambda: _ready(pool) == 2, "both workers are back")


def _ready(pool: Pool) -> int:
    infos = [_core.slot_info(pool._client.segment, slot) for slot in range(pool._max_workers)]
    return sum(
        i["phase"] != _core.STARTING and i["reaped"] <= i["generation"] and processes.runs(i["pid"]) for i in infos
    )


def test_a_slot_whose_worker_is_dead_names_no_process(tmp_path: Path) -> None:
    # Two starts fail after the first two, so the slot is empty for 0.1 and 0.2 s. (Behind four deaths in a row it would
    # wait for the client.)
    whats = ("", "", "exit", "exit", "")
    with bounded(Pool(2, initializer=_initialize, initargs=(str(tmp_path / "starts"), *whats))) as pool:
        pool.start()
        processes.wait_until(lambda: _ready(pool) == 2, "both workers are there")
        dead = processes.worker_pids(pool)[0]
        os.kill(dead, signal.SIGKILL)
        processes.wait_until(lambda: _core.slot_info(pool._client.segment, 0)["pid"] == 0, "nobody is there")
        processes.wait_until(lambda: _ready(pool) == 2, "both workers are back")
        assert dead not in processes.worker_pids(pool)


def test_a_worker_killed_while_it_starts_touches_no_task_and_is_started_again(tmp_path: Path) -> None:
    starts = tmp_path / "starts"
    with bounded(Pool(2, initializer=_initialize, initargs=(str(starts), "fine", "hang", "fine"))) as pool:
        pool.start()
        processes.wait_until(lambda: starts.exists() and starts.stat().st_size == 2, "both have begun to start")
        assert [pool.submit(abs, -n).result(20) for n in range(20)] == list(range(20)), "the other one works"
        infos = [_core.slot_info(pool._client.segment, slot) for slot in range(2)]
        (hanging,) = [info["pid"] for info in infos if info["phase"] == _core.STARTING]
        futures = [pool.submit(_spin, 0.001) for _ in range(100)]
        os.kill(hanging, signal.SIGKILL)
        assert {future.result(20) for future in futures} == {"done"}
        processes.wait_until(lambda: _ready(pool) == 2, "both workers are there")


_BEFORE, _AFTER = "before", "after"
BOOT = {
    # moment: the step, and whether the worker stops before or after it
    "right after the fork": (process, "mark", _BEFORE),
    "the monitor's death is its own, nothing is attached": (_core, "open_worker", _BEFORE),
    "attached": (_core, "dont_fork", _AFTER),
    "handlers are installed": (faulthandler, "register", _AFTER),
    "its initializer has run, it is not ready yet": (_core, "set_phase", _BEFORE),
}


@pytest.mark.parametrize("moment", BOOT)
def test_a_worker_killed_at_any_moment_of_its_start_leaves_nothing_half_done(
    monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    module, name, when = BOOT[moment]
    real, client = getattr(module, name), os.getpid()
    with mmap.mmap(-1, 1) as armed, Pool(2) as pool:  # anonymous, so all processes see the same byte

        def step(*arguments: Any, **options: Any) -> None:
            if when == _AFTER:
                real(*arguments, **options)
            if armed[0] and client not in (os.getpid(), os.getppid()):  # a worker
                os.kill(os.getpid(), signal.SIGSTOP)
            if when == _BEFORE:
                real(*arguments, **options)

        monkeypatch.setattr(module, name, step)
        pool.start()  # monitor and workers are forks: they have the step, too
        monitor = processes.monitor_pid(pool)
        processes.wait_until(lambda: _ready(pool) == 2, "both workers are there")
        processes.wait_until(lambda: processes.sleeps(monitor), "all of its files are open")
        files = len(os.listdir(f"/proc/{monitor}/fd"))
        armed[0], victim = 1, processes.worker_pids(pool)[0]
        for pause in (0.0, 0.1, 0.2):
            killed = time.monotonic()
            os.kill(victim, signal.SIGKILL)
            victim = processes.wait_until(lambda: _stopped_child(monitor), "its successor stands still")
            assert pause <= time.monotonic() - killed < pause + 10
            assert [pool.submit(abs, -n).result(20) for n in range(20)] == list(range(20)), "the other one works"
        futures = [pool.submit(_spin, 0.001) for _ in range(100)]
        armed[0] = 0
        os.kill(victim, signal.SIGKILL)
        assert {future.result(20) for future in futures} == {"done"}
        processes.wait_until(lambda: _ready(pool) == 2, "both workers are there")
        assert sorted(process.children_of(monitor)) == sorted(processes.worker_pids(pool))
        processes.wait_until(lambda: len(os.listdir(f"/proc/{monitor}/fd")) == files, "no file stays open in it")
        assert pool.crashes == 0


def _stopped_child(parent: int) -> int:
    return next(filter(processes.is_stopped, process.children_of(parent)), 0)


def _count(path: str) -> int:
    with open(path, "a") as file:
        file.write(f"{os.getpid()}\n")
    return os.getpid()


@pytest.mark.parametrize("most", [1, 3])
@pytest.mark.parametrize("way", ["submit", "imap"])
def test_a_worker_runs_exactly_max_tasks_per_child_tasks(tmp_path: Path, most: int, way: str) -> None:
    path = str(tmp_path / "pids")
    with bounded(Pool(2, max_tasks_per_child=most)) as pool:
        if way == "submit":
            futures = [pool.submit(_count, path) for _ in range(30)]
            pids = [future.result(20) for future in futures]
        else:
            pids = list(pool.imap(_count, [path] * 30, chunksize=1))
        counts = sorted(pids.count(pid) for pid in set(pids))
        assert counts[-1] == most
        assert sum(counts) == 30
        assert counts.count(most) >= len(counts) - 2, "only the two that live now may have run fewer"


def test_a_worker_that_was_ready_is_replaced_at_once() -> None:
    took = []
    with bounded(Pool(2)) as pool:
        pool.start()
        processes.wait_until(lambda: _ready(pool) == 2, "both workers are there")
        for k in range(40):
            info = _core.slot_info(pool._client.segment, k % 2)
            began = time.monotonic()
            os.kill(info["pid"], signal.SIGKILL)
            # It is the client that settles a death, in its waits; the fourth unsettled one would hold up the slot.
            processes.wait_until(
                lambda g=info["generation"], s=k % 2: _successor_is_ready(pool, s, g), "its successor is ready"
            )
            took.append(time.monotonic() - began)
            assert pool.submit(abs, -1).result(20) == 1
    took.sort()
    assert took[0] < 0.1, took  # the quickest, for a busy machine: a pause would be in all of them


def _successor_is_ready(pool: Pool, slot: int, generation: int) -> bool:
    info = _core.slot_info(pool._client.segment, slot)
    return info["generation"] > generation and info["phase"] != _core.STARTING


# ---- hosts that make it hard


def _all_of_it(pool: Pool) -> None:
    """A little of everything that watches processes."""
    assert list(pool.map(abs, range(-50, 0))) == list(range(50, 0, -1))
    assert isinstance(pool.submit(os._exit, 3).exception(20), WorkerCrashed)
    assert isinstance(pool.options(timeout=0.1).submit(_spin, 1000).exception(20), TimeoutError)
    future = pool.submit(_spin, 1000)
    processes.wait_until(future.running, "it runs")
    assert future.kill()
    assert future.exception(20) is not None
    assert pool.options(retries=3).submit(abs, -1).result(20) == 1


def _no_files(_: int) -> NoReturn:
    raise OSError(errno.EMFILE, "Too many open files")


@pytest.mark.parametrize("why", ["absent", "too many files"])
@pytest.mark.parametrize("where", ["everywhere", "in the monitor"])
def test_everything_works_without_pid_file_descriptors(monkeypatch: pytest.MonkeyPatch, why: str, where: str) -> None:
    real, client = os.pidfd_open, os.getpid()
    with monkeypatch.context() as changed:
        if where == "in the monitor":  # which is a fork, as its workers are
            fake = _no_files if why == "too many files" else lambda pid: None
            changed.setattr(process, "open_pidfd", lambda pid: real(pid) if os.getpid() == client else fake(pid))
        elif why == "absent":
            changed.delattr(os, "pidfd_open")
        else:
            changed.setattr(os, "pidfd_open", _no_files)
        with bounded(Pool(2)) as pool:
            _all_of_it(pool)
        pool = Pool(2).start()
    future = pool.submit(_spin, 1000)
    processes.wait_until(future.running, "it runs")
    os.kill(processes.monitor_pid(pool), signal.SIGKILL)
    assert isinstance(future.exception(20), PoolBroken)
    pool.shutdown()


_ORPHANS = """
import os, signal, sys, processes, tasks
from ipc import process
process.open_pidfd = lambda pid: None
from pool import Pool
pool = Pool(2, name=sys.argv[1]).start()
future = pool.submit(tasks.sleep, 1000)
processes.wait_until(lambda: future.running() and len(processes.worker_pids(pool)) == 2, "everybody runs")
if os.fork() == 0:  # must not keep the client's sockets open, whose end is the client's end
    signal.pause()
print(processes.monitor_pid(pool), *processes.worker_pids(pool), flush=True)
signal.pause()
"""


def test_without_pid_file_descriptors_the_death_of_the_client_is_noticed_too(tmp_path: Path) -> None:
    marker = _marker()
    with scripts.start(tmp_path, _ORPHANS, marker) as client:
        try:
            assert client.stdout is not None
            pids = [int(pid) for pid in client.stdout.readline().split()]
            assert len(pids) == 3, "monitor and workers"
            client.kill()
            processes.wait_until(lambda: not any(map(processes.runs, pids)), "all are gone")
        finally:
            client.kill()
            for pid in processes.named(marker):
                os.kill(pid, signal.SIGKILL)


def test_a_client_that_ignores_sigchld_misses_nothing() -> None:
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        with bounded(Pool(2)) as pool:
            _all_of_it(pool)
        pool = Pool(2).start()
        future = pool.submit(_spin, 1000)
        os.kill(processes.monitor_pid(pool), signal.SIGKILL)
        assert isinstance(future.exception(20), PoolBroken)
        pool.shutdown()
    finally:
        signal.signal(signal.SIGCHLD, before)


def test_a_client_that_waits_for_any_child_in_a_thread_misses_nothing() -> None:
    pool = Pool(2).start()
    stop = threading.Event()

    def reap() -> None:
        while not stop.is_set():
            with contextlib.suppress(ChildProcessError):
                os.waitpid(-1, os.WNOHANG)  # not blocking: other tests may have left helpers of other pools
            stop.wait(0.0002)

    thread = threading.Thread(target=reap)
    thread.start()
    try:
        with bounded(pool):
            _all_of_it(pool)
    finally:
        stop.set()
        thread.join(20)
    assert not thread.is_alive()


def _in_a_client(code: str) -> str:
    """The output of a script of its own, so that limits do not hit the test."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=50, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout.strip()


def test_too_little_address_space_at_the_start_is_a_memory_error_that_says_so() -> None:
    code = """
import resource
from pool import Pool
resource.setrlimit(resource.RLIMIT_AS, (400 << 20, resource.RLIM_INFINITY))
pool = Pool(2)
try:
    pool.submit(abs, 1)
except MemoryError as error:
    print(error)
resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
print(pool.submit(abs, -5).result(20))  # nothing was broken by the failure
pool.shutdown()
"""
    out = _in_a_client(code).splitlines()
    assert "address space" in out[0]
    assert out[1:] == ["5"]


_NO_MEMORY_LEFT = """
import os, resource
import numpy as np
from pool import Pool

gate, arrays = os.pipe(), [np.full(1 << 16, k) for k in range(100)]

def first(array):
    return int(array[0])

def hold(_):
    return os.read(gate[0], 1)

def leave(more):
    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * os.sysconf("SC_PAGESIZE")
    resource.setrlimit(resource.RLIMIT_AS, (used + more, resource.RLIM_INFINITY))

def given():
    leave(6 << 20)
    for array in arrays:
        yield array[:5000]
"""


def test_a_client_without_memory_fails_what_it_cannot_keep_and_nothing_else(tmp_path: Path) -> None:
    # No room for the arguments is left while the worker is held, and none to keep them where they are.
    code = """
from payloads import small_pool
with small_pool(1, units=128) as pool:
    pool.submit(hold, 0)
    leave(6 << 20)
    futures = [pool.submit(first, array) for array in arrays]
    os.write(gate[1], b".")
    ended = [future.exception(20) for future in futures]
    leave(1 << 30)
    print(len(arrays) - ended.count(None), {type(error).__name__ for error in ended if error})
    print(all(future.result() == k for k, future in enumerate(futures) if ended[k] is None))
    print(pool.submit(abs, -5).result(20))
"""
    failed, *rest = scripts.run(tmp_path, _NO_MEMORY_LEFT + code).stdout.split()
    assert 2 < int(failed) < 98
    assert rest == ["{'MemoryError'}", "True", "5"]


@pytest.mark.parametrize("chunksize", [1, "auto"])
def test_a_map_of_arrays_in_a_client_with_little_memory_comes_to_its_end(tmp_path: Path, chunksize: Any) -> None:
    code = f"""
with Pool(1) as pool:
    print(list(pool.imap(first, given(), chunksize={chunksize!r})) == list(range(100)))
"""
    assert scripts.run(tmp_path, _NO_MEMORY_LEFT + code).stdout == "True\n"


def test_too_few_file_descriptors_at_the_start_are_an_error_and_leave_none_open() -> None:
    code = """
import os, resource
from pool import Pool
count = lambda: len(os.listdir("/proc/self/fd"))
before, (soft, hard) = count(), resource.getrlimit(resource.RLIMIT_NOFILE)
for extra in range(0, 5):
    resource.setrlimit(resource.RLIMIT_NOFILE, (before - 1 + extra, hard))
    pool = Pool(2)
    try:
        pool.start()
    except OSError as error:
        print(type(error).__name__)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    pool.shutdown()
    assert count() == before, (extra, os.listdir("/proc/self/fd"))
with Pool(2) as pool:
    print(pool.submit(abs, -5).result(20))
"""
    out = _in_a_client(code).splitlines()
    assert out[0] == "OSError"
    assert out[-1] == "5"


_NO_FILES_LEFT = """
import os, resource, signal, sys
from pathlib import Path
from ipc import segment
import processes, tasks
from pool import Pool
if sys.argv[1] == "known":
    import pool.errors

segment.default_room = lambda *_: 0  # the smallest: values of more than half a megabyte go through files
large, held = bytes(2 << 20), tasks.Gate(Path(sys.argv[2]))

def descriptors(pid):
    listed = os.listdir(f"/proc/{pid}/fd")  # with the one that lists
    return {int(n) for n in listed if os.path.lexists(f"/proc/{pid}/fd/{n}")}

def limited(pid):
    free = min(set(range(9999)) - descriptors(pid))
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (free, hard))

def kinds(futures):
    return {type(future.exception(20)).__name__ for future in futures}

def replaced(dead):
    pids = processes.worker_pids(pool)
    return len(pids) == 2 and dead not in pids

with Pool(2) as pool:
    monitor = processes.monitor_pid(pool.start())
    assert pool.submit(len, large).result(20) == len(large)
    before, (soft, hard) = descriptors(os.getpid()), resource.getrlimit(resource.RLIMIT_NOFILE)
    holders = [pool.submit(tasks.hold, held.path) for _ in range(2)]
    held.await_start(2)
    limited(monitor)
    limited(os.getpid())
    waiting = [pool.submit(tasks.square, n) for n in range(3000)]  # more than there are rows
    arguments = [pool.submit(len, large) for _ in range(3)]  # so these are in the queue when no file can be made
    behind = [pool.submit(tasks.square, n) for n in range(100)]
    held.open(2)
    print(kinds(holders + waiting + behind), kinds(arguments))
    print(kinds([pool.submit(bytes, 2 << 20)]), kinds([pool.submit(len, large)]))
    assert list(pool.imap(tasks.square, range(1000))) == [n * n for n in range(1000)]
    small, large_one, last = pool.imap(bytes, [1, 2 << 20, 2], on_error="return")
    print(len(small), type(large_one.error).__name__, len(last))
    crashed = []
    for end in (os._exit, os._exit, signal.raise_signal):
        crashed.append(pool.submit(end, 9))
        processes.wait_until(crashed[-1].done, "it has ended")
    for dead in processes.worker_pids(pool):
        os.kill(dead, signal.SIGKILL)
        processes.wait_until(lambda: replaced(dead), "its successor is there")
    assert [pool.submit(abs, -n).result(20) for n in range(100)] == list(range(100))
    if sys.argv[1] == "known":
        print(kinds(crashed))
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    resource.prlimit(monitor, resource.RLIMIT_NOFILE, (soft, hard))
    print(kinds(crashed), len(pool.submit(bytes, 2 << 20).result(20)), pool.submit(len, large).result(20))
    assert descriptors(os.getpid()) == before
    assert pool._client.unfinished == 0
"""


@pytest.mark.parametrize("errors", ["known", "not imported"])
def test_no_descriptor_is_left_to_client_and_monitor_while_they_run(tmp_path: Path, errors: str) -> None:
    ran = scripts.run(tmp_path, _NO_FILES_LEFT, errors, str(tmp_path))
    refused = "PayloadTooLarge" if errors == "known" else "OSError"
    expected = f"""
        {{'NoneType'}} {{'{refused}'}}
        {{'OSError'}} {{'{refused}'}}
        1 OSError 2
        {{'WorkerCrashed'}}
        {{'WorkerCrashed'}} {2 << 20} {2 << 20}
    """.split("\n")
    lines = [line.strip() for line in expected if line.strip()]
    assert ran.stdout.splitlines() == (lines if errors == "known" else lines[:3] + lines[4:])
    assert ran.stderr == ""


def test_a_worker_that_cannot_be_forked_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    real, client = os.fork, os.getpid()
    calls: list[int] = []

    def fork() -> int:  # in the monitor: the second and third fork fail, as at a limit of processes
        if os.getpid() != client:
            calls.append(1)
            if len(calls) in (2, 3):
                raise BlockingIOError(11, "Resource temporarily unavailable")
        return real()

    monkeypatch.setattr(os, "fork", fork)
    with bounded(Pool(2)) as pool:
        assert [pool.submit(abs, -n).result(20) for n in range(20)] == list(range(20))
        processes.wait_until(lambda: _ready(pool) == 2, "both workers are there")


def test_a_pool_none_of_whose_workers_can_be_forked_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    real, client = os.fork, os.getpid()

    def fork() -> int:
        if os.getpid() != client:
            raise BlockingIOError(11, "Resource temporarily unavailable")
        return real()

    monkeypatch.setattr(os, "fork", fork)
    pool = Pool(2)
    error = pool.submit(abs, 1).exception(20)
    assert isinstance(error, PoolStartError)
    assert "cannot be forked" in str(error)
    pool.shutdown()


def test_a_pool_starts_beside_an_armed_watchdog_of_faulthandler() -> None:
    # pytest arms one too; said here because the monitor once waited for its thread, which no fork takes along.
    code = """
import faulthandler
from pool import Pool
faulthandler.dump_traceback_later(30, exit=True)
with Pool(1) as pool:
    print(pool.submit(abs, -5).result(20))
faulthandler.cancel_dump_traceback_later()
"""
    assert _in_a_client(code) == "5"


def test_sockets_of_the_client_are_not_kept_open_by_workers_beyond_the_pool() -> None:
    left, right = socket.socketpair()
    with left, right:
        with bounded(Pool(1)) as pool:
            pool.submit(abs, 1).result(20)
        right.close()
        assert left.recv(1) == b""
