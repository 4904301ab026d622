"""Deadlines always win, and hit nobody but the task that is over its own."""

import contextlib
import ctypes
import itertools
import os
import random
import re
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from pathlib import Path
from unittest import mock

import processes
import pytest
import tasks

from ipc import _core
from pool import Failure, Future, Pool
from pool.errors import TaskKilled, TaskTimeout
from pool.monitor import LOOK

TIMEOUT = 1.5  # long enough for a first line, also where its worker is kept from its core
KILLED_WITHIN = 0.1  # of the deadline: the promise on an unloaded machine


@pytest.fixture(autouse=True)
def _nothing_left() -> Iterator[None]:
    with processes.nothing_left():
        yield


class Jitter:
    """How late this machine is by itself: the worst of some hundred short sleeps while the test ran.

    A deadline takes a handful of such wake-ups one after the other (the monitor's timer, its second timer for the kill,
    the death of the worker, the client), each of which may be that late; so much is allowed on top of the promise. It
    is a few milliseconds on an idle machine.
    """

    WAKES = 5

    def __init__(self) -> None:
        self.worst = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._measure)

    def _measure(self) -> None:
        while not self._stop.is_set():
            began = time.monotonic()
            self._stop.wait(0.002)
            self.worst = max(self.worst, time.monotonic() - began - 0.002)

    def __enter__(self) -> "Jitter":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    @property
    def margin(self) -> float:
        return self.WAKES * self.worst


def _deaths(pool: Pool, workers: int) -> int:
    segment = pool._client.segment
    return sum(_core.slot_info(segment, slot)["reaped"] for slot in range(workers))


# ---- endless loops in C, all of which hold the GIL


def _regex() -> object:
    return re.match(r"(a*)*b", "a" * 60)


def _iterator() -> object:
    return sum(itertools.repeat(1))


def _power() -> object:
    return pow(3, 10**9)  # one big-integer operation after the other, minutes of it


def _native() -> object:
    # PyDLL keeps the GIL. The signal handler of a dump interrupts pause(), so it is called for ever.
    libc = ctypes.PyDLL(None)
    while True:
        libc.pause()


def _native_once() -> object:
    """One call that never returns: sleep(3) of libc is resumed by nobody, so use a mutex that is locked twice."""
    libc = ctypes.PyDLL(None)
    mutex = ctypes.create_string_buffer(128)
    libc.pthread_mutex_lock(mutex)
    return libc.pthread_mutex_lock(mutex)


LOOPS: list[Callable[[], object]] = [_regex, _iterator, _power, _native, _native_once]


def _stuck(loop: Callable[[], object], path: str, marker: str) -> None:
    began = time.monotonic()
    subprocess.Popen(["sh", "-c", f"sleep 1000; : {marker}"])
    with open(path, "w") as file:
        file.write(repr(began))
    os.rename(path, path + ".start")
    loop()


def _neighbour(seconds: float) -> int:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass
    return os.getpid()


@pytest.mark.timeout(60)
@pytest.mark.parametrize("loop", LOOPS, ids=lambda loop: loop.__name__.strip("_"))
def test_an_endless_loop_in_c_is_killed_in_time_with_its_stack_and_its_processes(
    tmp_path: Path, loop: Callable[[], object]
) -> None:
    marker = f"deadline-{os.getpid()}-{random.getrandbits(60)}"
    path = str(tmp_path / "task")
    pool = Pool(2).start()
    with Jitter() as jitter, pool:
        neighbour = pool.submit(_neighbour, TIMEOUT * 2)
        future = pool.options(timeout=TIMEOUT).submit(_stuck, loop, path, marker)
        error = future.exception(20)
        ended = time.monotonic()
        assert processes.named(marker) == [], "the processes of the task were killed with it, before its future ended"
        assert isinstance(error, TaskTimeout)
        began = float(Path(path + ".start").read_text())
        assert ended - began >= TIMEOUT / 2, (
            "it had its time (but for what passed between its claim and its first line)"
        )
        assert neighbour.result(20) not in (0, error.pid), "the neighbour ran through"
        assert _deaths(pool, 2) == 1
        assert pool.submit(_neighbour, 0).result(20)
    late = ended - began - TIMEOUT
    assert late <= KILLED_WITHIN + jitter.margin, f"late by {late:.3f} s, jitter {jitter.worst:.3f} s"
    # The worker has 60 ms to write its stack; where we were kept waiting for so long ourselves, it may have been too.
    if jitter.worst < 0.06 or error.stack:
        assert loop.__name__ in error.stack, "the stuck stack names the function"
        assert "_stuck" in error.stack
    assert (error.timeout, error.task, error.slot in (0, 1), error.attempt) == (TIMEOUT, f"{__name__}._stuck", True, 1)
    for part in ("_stuck", f"slot {error.slot}", f"pid {error.pid}", "1.5 s"):
        assert part in str(error)
    assert not processes.runs(error.pid)


def _note_and_work(path: str, number: int, seconds: float) -> int:
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(fd, b"%d begin\n" % number)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass
    os.write(fd, b"%d end\n" % number)
    os.close(fd)
    return number


@pytest.mark.timeout(60)
def test_a_deadline_at_the_moment_of_completion_gives_a_value_or_a_timeout_and_kills_nobody_else(
    tmp_path: Path,
) -> None:
    path, timeout, count = str(tmp_path / "notes"), 0.03, 200
    lucky = random.Random(1)
    arrivals: Counter[Future] = Counter()
    with Pool(2) as pool:
        pool.start()
        limited, free = pool.options(timeout=timeout), pool
        futures, neighbours = [], []
        for number in range(count):
            futures.append(limited.submit(_note_and_work, path, number, timeout + lucky.uniform(-0.004, 0.001)))
            futures[-1].add_done_callback(lambda future: arrivals.update([future]))
            neighbours.append(free.submit(_note_and_work, path, count + number, 0.001))
        outcomes = [future.exception(30) or future.result() for future in futures]
        assert [n.result(30) for n in neighbours] == list(range(count, 2 * count)), "an innocent was hit"
        processes.wait_until(lambda: len(arrivals) == count, "all callbacks were called")
        late = [outcome for outcome in outcomes if isinstance(outcome, TaskTimeout)]
        assert all(isinstance(o, TaskTimeout) or o == number for number, o in enumerate(outcomes))
        assert _deaths(pool, 2) == len(late), "as many deaths as timeouts: nobody else was killed"
    assert set(arrivals.values()) == {1}, "a future ended twice"
    begun = Counter(line for line in Path(path).read_text().splitlines() if line.endswith("begin"))
    assert len(begun) == 2 * count
    assert set(begun.values()) == {1}, "a task ran twice"
    assert 0 < len(late) < count, "the deadlines were not at the moment of completion: this test has shown nothing"


def _item(item: int) -> int:
    if item % 5 == 3:
        while True:
            pass
    end = time.monotonic() + 0.06
    while time.monotonic() < end:
        pass
    return item * 10


@pytest.mark.timeout(60)
@pytest.mark.parametrize("ordered", [True, False])
def test_in_a_chunk_the_deadline_is_each_items_own(ordered: bool) -> None:
    # A chunk of twelve takes 0.6 s and more without its endless items: longer than the timeout of one.
    with Pool(2, timeout=0.5) as pool:
        mapped = (pool.imap if ordered else pool.imap_unordered)(_item, range(24), chunksize=12, on_error="return")
        outcomes = list(mapped)
        late = {o.item: o for o in outcomes if isinstance(o, Failure)}
        assert sorted(o for o in outcomes if not isinstance(o, Failure)) == [n * 10 for n in range(24) if n % 5 != 3]
        assert sorted(late) == [n for n in range(24) if n % 5 == 3]
        assert all(isinstance(failure.error, TaskTimeout) and failure.index == item for item, failure in late.items())
        assert _deaths(pool, 2) == len(late)


def _second_time_lucky(path: str, lucky_at: int) -> int:
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    attempt = os.write(fd, b"x") and os.fstat(fd).st_size
    os.close(fd)
    while attempt < lucky_at:
        pass
    return attempt


@pytest.mark.timeout(60)
def test_a_retry_after_a_timeout_has_the_full_time_again(tmp_path: Path) -> None:
    with Pool(1, timeout=0.5, retries=2) as pool:
        assert pool.submit(_second_time_lucky, str(tmp_path / "a"), 3).result(20) == 3
        error = pool.submit(_second_time_lucky, str(tmp_path / "b"), 9).exception(20)
        assert isinstance(error, TaskTimeout)
        assert error.attempt == 3
        assert (tmp_path / "b").stat().st_size == 3, "three attempts counted, three executions"
        assert list(pool.imap(_second_time_lucky_in, [(str(tmp_path / "c"), 2)])) == [2]


def _second_time_lucky_in(args: tuple[str, int]) -> int:
    return _second_time_lucky(*args)


@pytest.mark.timeout(60)
def test_a_long_timeout_does_not_delay_a_short_one_and_a_short_one_does_not_shorten_a_long_one(tmp_path: Path) -> None:
    pool = Pool(3).start()
    with Jitter() as jitter, pool:
        patient = pool.options(timeout=30).submit(_neighbour, 5.0)
        for timeout in (1.6, 0.8, 1.2):  # enough for what it does before it is stuck
            path = str(tmp_path / f"task{timeout}")
            future = pool.options(timeout=timeout).submit(_stuck, _iterator, path, "long and short")
            error = future.exception(20)
            late = time.monotonic() - float(Path(path + ".start").read_text()) - timeout
            assert isinstance(error, TaskTimeout)
            assert error.timeout == timeout
            assert late <= KILLED_WITHIN + jitter.margin
        assert patient.result(20)
        assert _deaths(pool, 3) == 3


@pytest.mark.timeout(60)
def test_a_deadline_counts_from_the_start_of_the_attempt_not_from_submit() -> None:
    with Pool(1) as pool:
        limited = pool.options(timeout=2.0)
        futures = [limited.submit(_neighbour, 0.5) for _ in range(6)]  # the last waits for 2.5 s
        assert len({future.result(20) for future in futures}) == 1


@pytest.mark.timeout(60)
def test_deadlines_work_after_the_monitor_has_gone_idle() -> None:
    with Pool(1) as pool:
        pool.start()
        segment = pool._client.segment
        for _ in range(2):
            processes.wait_until(lambda: _core.monitor_must_look(segment), "the monitor looks at no deadlines any more")
            assert isinstance(pool.options(timeout=0.05).submit(_iterator).exception(20), TaskTimeout)


def _outcome(future: Future) -> object:
    try:
        return future.result(20)
    except (Exception, CancelledError) as error:
        return error


def _brief(seconds: float) -> str:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass
    return "done"


@pytest.mark.timeout(60)
def test_kill_racing_completion_says_truthfully_what_it_did() -> None:
    lucky = random.Random(2)
    seen: Counter[str] = Counter()
    with Pool(2) as pool:
        pool.start()
        for _ in range(200):
            future, neighbour = pool.submit(_brief, 0.002), pool.submit(_brief, 0.0005)
            until = time.perf_counter() + lucky.uniform(0.0, 0.004)
            while time.perf_counter() < until:
                pass
            killed = future.kill()
            assert neighbour.result(20) == "done", "an innocent was hit"
            outcome = _outcome(future)
            seen["value" if outcome == "done" else type(outcome).__name__] += 1
            assert outcome == "done" or isinstance(outcome, TaskKilled | CancelledError)
            assert killed is (outcome != "done"), "kill() did not say the truth"
            assert future.kill() is isinstance(outcome, CancelledError), "a second kill finds nothing more"
        assert _deaths(pool, 2) == seen["TaskKilled"]
    assert seen["value"], seen
    assert seen["TaskKilled"], seen


@pytest.mark.timeout(60)
def test_kill_stops_an_endless_loop_at_once_and_is_never_retried(tmp_path: Path) -> None:
    marker = f"kill-{os.getpid()}-{random.getrandbits(60)}"
    pool = Pool(1, retries=5).start()
    with Jitter() as jitter, pool:
        future = pool.submit(_stuck, _iterator, str(tmp_path / "task"), marker)
        processes.wait_until(lambda: (tmp_path / "task.start").exists(), "it runs")
        began = time.monotonic()
        assert future.kill()
        error = future.exception(20)
        took = time.monotonic() - began
        assert isinstance(error, TaskKilled)
        assert error.attempt == 1
        assert processes.named(marker) == []
        assert pool.submit(_brief, 0).result(20) == "done"
    assert took <= KILLED_WITHIN + jitter.margin


def test_a_worker_that_finds_its_task_condemned_before_the_monitor_does_was_killed_too(gate: tasks.Gate) -> None:
    """It leaves by itself; nobody had asked for workers that are replaced after so many tasks."""
    with Pool(1) as pool:
        future = pool.submit(tasks.hold, gate.path)
        gate.await_start()
        with mock.patch.object(pool._client, "_command"):  # the monitor hears of it later, here never
            assert future.kill()
        gate.open()
        assert isinstance(future.exception(20), TaskKilled)
        assert pool.submit(_brief, 0).result(20) == "done"
        assert pool.insights().workers[0].restarts == {"killed": 1}


@pytest.mark.timeout(60)
def test_a_kill_is_not_lost_among_many_commands(tmp_path: Path) -> None:
    """The client's socket to the monitor is full, because the monitor does not run: the kill must still happen."""
    with Pool(1) as pool:
        pool.start()
        future = pool.submit(_stuck, _iterator, str(tmp_path / "task"), "none")
        processes.wait_until(lambda: (tmp_path / "task.start").exists(), "it runs")
        monitor = processes.monitor_pid(pool)
        os.kill(monitor, signal.SIGSTOP)
        processes.wait_until(lambda: processes.is_stopped(monitor), "the monitor is stopped")
        with contextlib.suppress(BlockingIOError):
            while True:  # each publication of a task with a deadline may send one
                pool._client._running.commands.send(LOOK)
        assert future.kill()
        os.kill(monitor, signal.SIGCONT)
        assert isinstance(future.exception(20), TaskKilled)
