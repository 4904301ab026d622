"""Faults of docs/reliability.md that no other test shows."""

import contextlib
import ctypes
import itertools
import logging
import mmap
import multiprocessing
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import processes
import pytest
import repeats
import scripts
import tasks
from chaos.figures import milliseconds, percentile
from repeats import LONG, times

from ipc import _core, process
from pool import Pool, worker
from pool.errors import ResultNotPicklable, TaskTimeout, WorkerCrashed

WORKERS = 2
pytestmark = pytest.mark.timeout(1200 if LONG else 60)


@pytest.fixture(autouse=True)
def _nothing_left() -> Iterator[None]:
    with processes.nothing_left():
        yield


def _repeat(what: str, folder: Path) -> None:
    kept = []
    for repeat in range(10):
        with repeats.nothing_added(what, repeat, folder):
            if what == "file":
                Path(os.environ["TMPDIR"], "left").touch()
            elif what == "memory":
                kept.append(bytearray(b"x") * (10 << 20))


def test_what_stays_behind_a_repeat_is_seen(tmp_path: Path) -> None:
    (tmp_path / "files").mkdir()
    _repeat("nothing", tmp_path / "files")
    for what in "memory", "file":
        with pytest.raises(AssertionError):
            _repeat(what, tmp_path / "files")


def test_an_idle_worker_that_is_killed_is_replaced_soon(capsys: pytest.CaptureFixture[str]) -> None:
    """Fault 1. The long form is for a quiet machine, the short one for any: there one stall is no fault of ours."""
    took = []
    with Pool(WORKERS).start() as pool:
        segment = pool._client.segment
        for n in times(20, 1000):
            assert pool.submit(abs, -n).result(20) == n  # which settles the deaths
            took.append(_kill_and_wait(segment, n % WORKERS))
        assert pool.crashes == 0
    median, late = (percentile(took, share) for share in (0.5, 0.99))
    with capsys.disabled():
        print(f"\nreplaced after {milliseconds(median)} ms, p99 {milliseconds(late)} ms")
    assert min(took) < 0.25
    if LONG:
        assert min(took) < 0.1  # a pause would be in all of them
        assert late < 0.25


def test_a_slot_that_was_emptied_four_times_while_nobody_used_the_pool_is_filled_by_its_next_use() -> None:
    """Nobody but the client knows what the dead have left, and there is room for the records of so many of them."""
    with Pool(WORKERS).start() as pool:
        segment = pool._client.segment
        for _ in range(_core.DEATHS - 1):
            _kill_and_wait(segment, 0)
        os.kill(_wait_until_ready(segment, 0), signal.SIGKILL)
        processes.wait_until(lambda: _core.slot_info(segment, 0)["reaped"] == _core.DEATHS, "the death is noticed")
        assert pool.submit(abs, -1).result(20) == 1
        assert _wait_until_ready(segment, 0)
        assert pool.crashes == 0


def _kill_and_wait(segment: object, slot: int) -> float:
    """How long it took."""
    victim = _wait_until_ready(segment, slot)
    began = time.monotonic()
    os.kill(victim, signal.SIGKILL)
    _await_successor(segment, slot, victim)
    return time.monotonic() - began


def _await_successor(segment: object, slot: int, victim: int) -> None:
    processes.wait_until(lambda: _ready(segment, slot) not in (0, victim), "its successor is ready")


def _wait_until_ready(segment: object, slot: int) -> int:
    """The pid of the slot's worker."""
    return int(processes.wait_until(lambda: _ready(segment, slot), "it is there"))


def _ready(segment: object, slot: int) -> int:
    info = _core.slot_info(segment, slot)
    return info["pid"] if info["phase"] == _core.IDLE and info["reaped"] <= info["generation"] else 0


def test_all_workers_are_killed_at_once_again_and_again() -> None:
    """Fault 8."""
    with Pool(WORKERS, retries=2).start() as pool:
        segment = pool._client.segment
        for slot in range(WORKERS):  # a pool none of whose workers has ever become ready gives up
            _wait_until_ready(segment, slot)
        for n in times(20, 100):
            futures = [pool.submit(tasks.square, x) for x in range(n, n + 200)]
            for pid in processes.worker_pids(pool):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            assert [future.result(20) for future in futures] == [x * x for x in range(n, n + 200)]


def _stop(pids: list[int]) -> None:
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    processes.wait_until(lambda: all(map(processes.is_stopped, pids)), "they are stopped")


def _square_and_attempt(x: int) -> tuple[int, int]:
    return x * x, worker().attempt


def test_workers_killed_before_a_task_is_claimed_spend_no_attempt() -> None:
    """Fault 2: all of them stand still while tasks are published, and never go on."""
    with Pool(WORKERS).start() as pool:
        segment = pool._client.segment
        for _ in times(20, 500):
            pids = [_wait_until_ready(segment, slot) for slot in range(WORKERS)]
            _stop(pids)
            futures = [pool.submit(_square_and_attempt, x) for x in range(100)]
            assert _core.counters(segment)["ready"] == 100
            for pid in pids:
                os.kill(pid, signal.SIGKILL)
            assert [future.result(20) for future in futures] == [(x * x, 1) for x in range(100)]
            for slot, pid in enumerate(pids):  # the dead look ready until they are waited for
                _await_successor(segment, slot, pid)
        assert pool.crashes == 0


def test_a_stopped_worker_is_killed_at_its_deadline(gate: tasks.Gate) -> None:
    """Fault 10."""
    with Pool(1) as pool:
        future = pool.options(timeout=0.5).submit(tasks.hold, gate.path)
        (pid,) = gate.await_start()
        os.kill(pid, signal.SIGSTOP)
        assert isinstance(future.exception(20), TaskTimeout)
        assert pool.submit(abs, -1).result(20) == 1


def test_a_worker_that_was_stopped_for_a_while_goes_on(gate: tasks.Gate) -> None:
    """Fault 10: nobody takes it for dead, nothing runs twice."""
    with Pool(2) as pool:
        future = pool.submit(tasks.hold, gate.path, "once")
        (pid,) = gate.await_start()
        _stop([pid])
        gate.open()
        assert [pool.submit(abs, -n).result(20) for n in range(300)] == list(range(300))
        assert not future.done()
        os.kill(pid, signal.SIGCONT)
        assert future.result(20) == "once"
        assert pool.crashes == 0


def _segments(maps: str, kind: str) -> set[str]:
    """The inodes of all that are mapped."""
    return {line.split()[4] for line in maps.splitlines() if f"memfd:pool-{kind}" in line}


def _our_segments(kind: str) -> set[str]:
    """Other tests may have left some."""
    return _segments(Path("/proc/self/maps").read_text(), kind)


def _maps_of_a_child() -> str:
    """What a child that a task forks has mapped."""
    read, write = os.pipe()
    if (pid := os.fork()) == 0:
        with contextlib.suppress(BaseException), open("/proc/self/maps") as file, open(write, "w") as pipe:
            pipe.write(file.read())
        os._exit(0)
    os.close(write)
    with open(read) as pipe:
        found = pipe.read()
    os.waitpid(pid, 0)
    return found


def test_a_child_that_a_task_forks_has_no_control_segment_to_write_to() -> None:
    """Fault 12."""
    others = _our_segments("control")
    with Pool(1) as pool:
        maps = pool.submit(_maps_of_a_child).result(20)
        (ours,) = _our_segments("control") - others
    assert "memfd:pool-payload" in maps
    assert ours not in _segments(maps, "control")


def _overwrite_the_payload_from_a_child(ours: set[str]) -> int:
    if (pid := os.fork()) == 0:
        for line in Path("/proc/self/maps").read_text().splitlines():
            if line.split()[4] in ours:
                start, end = (int(address, 16) for address in line.split()[0].split("-"))
                ctypes.memset(start, 0xFF, end - start)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_a_child_that_writes_into_the_payload_hurts_values_and_no_accounts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fault 12: that memory stays mapped in it."""
    monkeypatch.setattr("ipc.segment.default_room", lambda *_: 0)  # the smallest
    others = _our_segments("payload")  # which may have gigabytes
    with Pool(WORKERS) as pool:
        large = [pool.submit(list, range(n, n + 10_000)) for n in range(WORKERS * 2)]
        for future in large:
            processes.wait_until(future.done, "its value is there, and not yet decoded")
        ours = _our_segments("payload") - others
        assert len(ours) == 1
        assert pool.submit(_overwrite_the_payload_from_a_child, ours).result(20) == 0
        seen = {type(future.exception(20)) for future in large}
        assert seen <= {type(None), ResultNotPicklable}
        # Another function: the bytes of the first, for a worker that has not called it yet, lie there too.
        again = [pool.submit(sorted, range(n, n + 10_000)) for n in range(100)]
        assert [future.result(20) for future in again] == [list(range(n, n + 10_000)) for n in range(100)]
        assert pool.crashes == 0


class EndlessToPickle:
    def __reduce__(self) -> NoReturn:
        while True:
            pass


def test_a_result_whose_pickling_never_ends_is_over_its_deadline() -> None:
    """Fault 19."""
    with Pool(1) as pool:
        assert isinstance(pool.options(timeout=0.2).submit(EndlessToPickle).exception(20), TaskTimeout)
        assert pool.submit(abs, -1).result(20) == 1


def test_a_result_that_takes_for_ever_to_rebuild_holds_up_only_who_asks_for_it(gate: tasks.Gate) -> None:
    """Fault 19, on the client's side."""
    with Pool(1) as pool:
        future = pool.submit(tasks.Held, gate.path, "")
        asking = threading.Thread(target=future.result)
        asking.start()
        assert gate.await_start() == [os.getpid()], "it is rebuilt here"
        assert [pool.submit(abs, -n).result(20) for n in range(100)] == list(range(100))
        assert list(pool.imap(abs, range(-100, 0))) == list(range(100, 0, -1))
        assert asking.is_alive()
        gate.open()
        asking.join(20)
        assert future.result() == 0


def _bomb(generations: int) -> NoReturn:
    """Everybody forks, and everybody's children do: 2 ** generations processes, some in sessions of their own."""
    for n in range(generations):
        if os.fork() == 0 and n % 2:
            os.setsid()
    while True:
        signal.pause()


def test_a_fork_bomb_is_gone_when_its_worker_is() -> None:
    """Fault 24: one that has an end. The pool sets no limit of its own."""
    for _ in times(2, 50):
        with Pool(1) as pool:
            marks = pool.start()._client._running.marks
            future, most = pool.options(timeout=0.5).submit(_bomb, 7), 0
            while not future.done():
                most = max(most, len(process.marked(marks)))
            assert most > 20, "else nobody would be seen afterwards whatever happens"
            assert isinstance(future.exception(), TaskTimeout)
            worker = pool.submit(os.getpid).result(20)
            assert process.marked(marks) == sorted([processes.monitor_pid(pool), worker])


BOMB_UNDER_A_LIMIT = """
import contextlib, os, resource, sys, time
from pool import Pool

read, write = os.pipe()

def bomb():
    while True:
        try:
            if os.fork() == 0 and os.getpid() % 2:
                os.setsid()
        except BlockingIOError:
            os.write(write, b".")
            time.sleep(0.001)

def living():
    count = 0
    for pid in filter(str.isdecimal, os.listdir("/proc")):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            count += os.stat(f"/proc/{pid}").st_uid == USER
    return count

def a_little_of_everything(pool):
    assert isinstance(pool.options(timeout=0.1).submit(time.sleep, 1000).exception(), TimeoutError)
    print(type(pool.submit(os._exit, 3).exception()).__name__)

with Pool(2) as pool:
    a_little_of_everything(pool)  # all is imported that this user may not read
USER = int(sys.argv[1])
os.setresuid(USER, USER, USER)
resource.setrlimit(resource.RLIMIT_NPROC, (40, 40))
with Pool(2) as pool:
    future = pool.options(timeout=1).submit(bomb)
    os.read(read, 1)
    print(living() >= 30)
    a_little_of_everything(pool)  # two deaths, and no successor can be forked
    print(type(future.exception()).__name__)
    print(list(pool.imap(abs, range(-200, 0))) == list(range(200, 0, -1)))
print(living())
"""


def test_under_a_limit_of_processes_a_fork_bomb_costs_only_its_own_task(
    tmp_path: Path, lack: Callable[[str], NoReturn]
) -> None:
    """Fault 24. The limit is the user's, and no other process is this user's; it does not hold for root."""
    if os.geteuid():
        lack("only root can become another user")
    ran = scripts.run(tmp_path, BOMB_UNDER_A_LIMIT, str(64_000 + os.getpid() % 1000))
    assert ran.stdout.split() == ["WorkerCrashed", "True", "WorkerCrashed", "TaskTimeout", "True", "1"]
    assert ran.stderr == ""


def _open_all() -> NoReturn:
    resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100))
    with contextlib.ExitStack() as stack:
        for _ in itertools.count():
            stack.enter_context(open(os.devnull))
    raise AssertionError("unreachable")


def test_a_task_that_runs_out_of_descriptors_gets_its_error() -> None:
    """Fault 25."""
    with Pool(1) as pool:
        for n in range(3):
            assert isinstance(pool.submit(_open_all).exception(20), OSError)
            assert pool.submit(abs, -n).result(20) == n


def test_signals_in_any_order_at_client_and_monitor() -> None:
    """Fault 28: none of them ends anything, none of them loses a death."""
    before = signal.signal(signal.SIGUSR1, lambda *_: None)
    lucky, sent = random.Random(28), 0
    ours = (signal.SIGCHLD, signal.SIGWINCH, signal.SIGURG, signal.SIGUSR1, signal.SIGCONT)
    its = (signal.SIGCHLD, signal.SIGWINCH, signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
    try:
        with Pool(WORKERS, retries=2) as pool:
            for n in times(20, 1000):
                futures = [pool.submit(tasks.square, x) for x in range(100)]
                for pid in processes.worker_pids(pool):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGWINCH)
                for _ in range(100):
                    os.kill(os.getpid(), lucky.choice(ours))
                    os.kill(processes.monitor_pid(pool), lucky.choice(its))
                    sent += 2
                for pid in processes.worker_pids(pool)[: n % 5 == 0]:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                assert [future.result(20) for future in futures] == [x * x for x in range(100)]
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert sent >= 4000


STORM = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)


@contextlib.contextmanager
def _storm_at_children() -> Iterator[list[int]]:
    """Whoever becomes our child is sent signals from its first moment on. Yields who was."""
    ours = set(process.children_of(os.getpid()))
    stop, hit = threading.Event(), []

    def storm() -> None:
        for number in itertools.takewhile(lambda _: not stop.is_set(), itertools.cycle(STORM)):
            for pid in set(process.children_of(os.getpid())) - ours:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
                    hit.append(pid)

    thread = threading.Thread(target=storm)
    thread.start()
    try:
        yield hit
    finally:
        stop.set()
        thread.join()


@pytest.mark.parametrize(("method", "short", "long"), [("fork", 15, 200), ("spawn", 4, 50)])
@pytest.mark.filterwarnings("ignore:the pool forks while other threads run")
def test_signals_at_the_monitor_from_its_first_moment_on(method: str, short: int, long: int) -> None:
    """Fault 28: until it ignores them they are blocked, from before it exists."""
    context = multiprocessing.get_context(method)
    for _ in times(short, long):
        with _storm_at_children() as hit, Pool(WORKERS, context) as pool:
            assert [pool.submit(abs, -n).result(20) for n in range(10)] == list(range(10))
            processes.wait_until(lambda: processes.monitor_pid(pool) in hit, "it was hit")


_forks = mmap.mmap(-1, 1)  # anonymous: all whom we fork see the same byte


def _await_signal() -> None:
    processes.wait_until(lambda: _forks[0] >= WORKERS, "the last of the first workers was sent its signal")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_at_a_worker_in_its_first_moments_costs_no_task(
    number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fault 28: at worst it is a failed start. Tasks are waiting already, but nobody claims one before the signal."""
    client, fork, lucky = os.getpid(), os.fork, random.Random(28)

    def fork_and_signal() -> int:
        pid = fork()
        if pid and os.getpid() != client:  # the monitor, which inherits this
            if _forks[0] == WORKERS - 1:
                until = time.monotonic() + late
                while time.monotonic() < until:
                    pass
                os.kill(pid, number)
            _forks[0] += 1
        return pid

    monkeypatch.setattr(os, "fork", fork_and_signal)
    for _ in times(20, 200):
        _forks[0], late = 0, lucky.choice([0, lucky.uniform(0, 0.01)])
        with Pool(WORKERS, initializer=_await_signal) as pool:
            futures = [pool.submit(tasks.square, x) for x in range(100)]
            assert [future.result(20) for future in futures] == [x * x for x in range(100)]
            assert pool.crashes == 0
            assert _forks[0] >= WORKERS


def test_a_signal_at_a_worker_is_that_of_the_task_it_runs(gate: tasks.Gate) -> None:
    """Fault 28: an interrupt, or one death for each that ends a process; nothing for any other task."""
    lucky, deaths = random.Random(28), 0
    with Pool(WORKERS) as pool:
        beside = pool.submit(tasks.hold, gate.path, "beside")
        (innocent,) = gate.await_start()
        for _ in times(20, 500):
            future, number = pool.submit(tasks.hold, gate.path), lucky.choice(STORM)
            (pid,) = gate.await_start()
            others = [pool.submit(tasks.square, x) for x in range(20)]
            os.kill(pid, number)
            error = future.exception(20)
            if number == signal.SIGINT:
                assert type(error) is KeyboardInterrupt
                assert processes.runs(pid)
            else:
                assert isinstance(error, WorkerCrashed)
                assert (error.pid, error.attempt) == (pid, 1)
                assert number.name in str(error)
                deaths += 1
            assert [other.result(20) for other in others] == [x * x for x in range(20)]
        assert pool.crashes == deaths > 5
        assert processes.runs(innocent)
        gate.open()
        assert beside.result(20) == "beside"


AS_PID_1 = """
import os, signal, warnings
import processes
from pool import Pool
from pool.worker_process import BOOT_FAILED

# From 3.12 on Python warns whoever forks beside a thread, and the pool has one.
warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)

def orphan(code):
    if (child := os.fork()) == 0:
        if os.fork() == 0:
            os._exit(code)
        os._exit(0)
    os.waitpid(child, 0)
    return code

assert os.getpid() == 1
codes = [0, 1, 3, BOOT_FAILED, 255]
with Pool(2) as pool:
    for code in codes:
        orphan(code)
        assert pool.submit(orphan, code).result(20) == code
    monitor = processes.monitor_pid(pool)
    processes.wait_until(lambda: processes.living_and_zombies(monitor) == (2, 0), "it waits for all orphans")
    assert list(pool.imap(abs, range(-100, 0))) == list(range(100, 0, -1))
    assert pool.crashes == 0
print("end")
"""


def test_as_the_first_process_of_a_container_it_is_not_confused_by_orphans(
    tmp_path: Path, lack: Callable[[str], NoReturn]
) -> None:
    """Fault 30."""
    assert _unshared(tmp_path, AS_PID_1, ["--pid", "--mount-proc"], lack) == "end\n"


def test_a_command_that_is_the_first_process_of_a_container_can_be_terminated(
    gate: tasks.Gate, lack: Callable[[str], NoReturn]
) -> None:
    """Fault 30: the kernel ends no such process by a signal that it does not catch."""
    options = _namespaces(["--pid", "--mount-proc"], lack)
    command = [*options, sys.executable, "-m", "pool", "map", "tasks:hold", gate.path]
    there = {**os.environ, "PYTHONPATH": str(scripts.HERE)}
    with scripts.Script(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=there) as ran:
        gate.await_start()
        (first,) = process.children_of(ran.pid)
        began = time.monotonic()
        os.kill(first, signal.SIGTERM)
        _, said = ran.communicate(timeout=scripts.TIMEOUT)
        took = time.monotonic() - began
    assert ran.returncode == 128 + signal.SIGTERM
    assert said.startswith("interrupted: 0 of 1 done")
    assert took < 2


def _namespaces(options: list[str], lack: Callable[[str], NoReturn]) -> list[str]:
    """The start of a command that runs the rest of it in namespaces of its own."""
    unshare = shutil.which("unshare")
    if unshare is None or subprocess.run([unshare, *options, "--fork", "true"], capture_output=True).returncode:
        lack("no new namespaces here")
    return [str(unshare), *options, "--fork", "--kill-child"]


def _unshared(tmp_path: Path, script: str, options: list[str], lack: Callable[[str], NoReturn], *arguments: str) -> str:
    """What a script prints that runs there."""
    file = tmp_path / "script.py"
    file.write_text(script)
    command = [*_namespaces(options, lack), sys.executable, str(file), *arguments]
    there = {**os.environ, "PYTHONPATH": str(scripts.HERE)}
    ran = subprocess.run(command, capture_output=True, text=True, timeout=50, cwd=tmp_path, env=there)
    assert ran.stderr == ""
    return ran.stdout


LITTLE_SPACE = """
import os, subprocess, sys
import numpy
from pool import Pool
for folder in ("/dev/shm", "small"):
    os.makedirs(folder, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", folder], check=True)
os.environ["TMPDIR"] = os.path.abspath("small")
with Pool(2) as pool:
    for array in pool.imap(numpy.copy, (numpy.full(1_000_000, n) for n in range(20))):
        assert (array == array[0]).all()
print("end")
"""


def test_a_tiny_dev_shm_does_not_matter(tmp_path: Path, lack: Callable[[str], NoReturn]) -> None:
    """Fault 32."""
    assert _unshared(tmp_path, LITTLE_SPACE, ["--mount"], lack) == "end\n"


def _log(n: int) -> int:
    logging.getLogger("x").warning("%d", n)
    ctypes.CDLL(None)
    return len(bytearray(100_000))


class Silent(logging.Handler):
    """Unlike NullHandler it takes its lock."""

    def emit(self, record: logging.LogRecord) -> None:
        pass


def test_forks_beside_threads_that_hold_locks() -> None:
    """Fault 31: locks of logging, of the import system, of the allocator. (Not what a *file* has: see the page.)"""
    stop = threading.Event()
    log = logging.getLogger("x")
    log.addHandler(handler := Silent())
    log.propagate = False

    def hammer(what: Callable[[], object]) -> None:
        while not stop.is_set():
            what()

    def import_again() -> None:
        sys.modules.pop("this_is_nothing", None)
        with contextlib.suppress(ImportError):
            __import__("this_is_nothing")

    works: list[Callable[[], object]] = [lambda: log.warning("y"), import_again, lambda: bytearray(100_000)]
    threads = [threading.Thread(target=hammer, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for n in times(10, 500):
                with Pool(WORKERS) as pool:
                    assert pool.submit(_log, n).result(20) == 100_000
    finally:
        stop.set()
        for thread in threads:
            thread.join()
        log.removeHandler(handler)


# A look at the wall clock, from Python or from C, is up to two days before or after the last one, without a period:
# whoever waits until a time of this clock waits for days, or not at all.
JUMPING_CLOCK = """
#include <stdatomic.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static time_t jump(void)
{
    static _Atomic uint64_t state;
    uint64_t mixed = atomic_fetch_add(&state, 0x9E3779B97F4A7C15); /* splitmix64 */

    mixed = (mixed ^ mixed >> 30) * 0xBF58476D1CE4E5B9;
    return (time_t)((mixed ^ mixed >> 27) % 3) * 86400;
}

int clock_gettime(clockid_t clock, struct timespec *now)
{
    int failed = (int)syscall(SYS_clock_gettime, clock, now);

    if (!failed && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE))
        now->tv_sec += jump();
    return failed;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone)
{
    struct timespec precise;

    (void)zone;
    clock_gettime(CLOCK_REALTIME, &precise);
    now->tv_sec = precise.tv_sec;
    now->tv_usec = precise.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *where)
{
    struct timespec now;

    clock_gettime(CLOCK_REALTIME, &now);
    if (where)
        *where = now.tv_sec;
    return now.tv_sec;
}
"""

IN_TIME = """
import concurrent.futures, mmap, os, signal, sys, time
import processes, tasks
from pool import Pool, retry

failing = mmap.mmap(-1, 1)  # anonymous: workers see the same byte
starts = open(sys.argv[2] + ".starts", "ab", buffering=0)

def begin():
    if failing[0]:
        failing[0] = 0
        os._exit(1)
    starts.write(b"x")

def has_started(count):
    processes.wait_until(lambda: os.fstat(starts.fileno()).st_size == count, "so many workers have started")

def days():
    "Between two looks at the wall clock, and from the monotonic clock of the test to ours."
    looks = [time.time() for _ in range(30)]
    return round((max(looks) - min(looks)) / 86400), round((time.monotonic() - float(sys.argv[1])) / 86400)

def lasts(seconds, wait):
    began = time.monotonic()
    found = wait()
    took = time.monotonic() - began
    assert seconds <= took < seconds + 10, took
    return found

def late(future):
    try:
        future.result(0.2)
    except TimeoutError:
        return True

def replaced(dead):
    "A worker has its second successor: the first one fails. So many others have died before."
    has_started(2 + dead)
    failing[0] = 1
    os.kill(processes.worker_pids(pool)[0], signal.SIGKILL)
    has_started(3 + dead)

with Pool(2, initializer=begin) as pool:
    print(pool.submit(days).result(20) == days(), *days())
    for round_ in range(4):
        held = pool.options(timeout=1000).submit(tasks.sleep, 1000)
        processes.wait_until(held.running, "it runs")
        error = lasts(0.2, pool.options(timeout=0.2).submit(tasks.sleep, 1000).exception)
        again = pool.options(retries=1, backoff=retry.Backoff(0.2, jitter=0))
        five = lasts(0.2, again.submit(tasks.crash_once, f"{sys.argv[2]}{round_}", 5).result)
        waits = lasts(0.2, lambda: late(held)), len(lasts(0.2, lambda: concurrent.futures.wait([held], 0.2)).not_done)
        print(type(error).__name__, five, *waits, held.kill(), type(held.exception(20)).__name__)
        assert list(pool.imap(tasks.square, range(1000))) == [x * x for x in range(1000)]
        lasts(0.1, lambda: replaced(4 * round_ + 3))
print("end")
"""


def _in_time(days: str) -> str:
    return f"True {days}\n" + "TaskTimeout 5 True 1 True TaskKilled\n" * 4 + "end\n"


def test_a_wall_clock_that_jumps_by_days_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, require: Callable[[str], str]
) -> None:
    """Fault 33: in the client, in monitor and workers, which inherit it, and in what they wait with."""
    library = tmp_path / "clock.so"
    command = [require("cc"), "-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-x", "c", "-", "-o", str(library)]
    subprocess.run(command, input=JUMPING_CLOCK, text=True, check=True, timeout=50)
    monkeypatch.setenv("LD_PRELOAD", str(library))
    ran = scripts.run(tmp_path, IN_TIME, str(time.monotonic()), str(tmp_path / "marker"))
    assert (ran.stdout, ran.stderr) == (_in_time("2 0"), "")


def test_a_monotonic_clock_that_is_days_off_changes_nothing(tmp_path: Path, lack: Callable[[str], NoReturn]) -> None:
    """Fault 33: as in a container that was moved to a machine that had started at another time."""
    offset = str(10 * 86_400)
    options = ["--time", "--monotonic", offset, "--boottime", offset]
    assert _unshared(tmp_path, IN_TIME, options, lack, str(time.monotonic()), "marker") == _in_time("0 10")
