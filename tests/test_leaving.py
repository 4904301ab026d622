"""Workers that leave as planned: `Pool.restart()`, and the `teardown` of each."""

import contextlib
import fcntl
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import processes
import pytest
import tasks

from pool import Pool, errors, worker


def pids_of_all(pool: Pool) -> set[int]:
    return set(processes.worker_pids(pool))


def restarts(pool: Pool) -> list[dict[str, int]]:
    return [w.restarts for w in pool.insights().workers]


def in_thread(call: Callable[[], object]) -> tuple[threading.Thread, list[BaseException]]:
    raised: list[BaseException] = []

    def run() -> None:
        try:
            call()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, raised


class Ledger:
    """Workers write who comes and who goes; each line is one write at the end of the file."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        path.touch()

    def come(self) -> None:
        worker().state["came"] = os.getpid()
        self._write("+")

    def go(self) -> None:
        self._write("-" if worker().state["came"] == os.getpid() else "?")

    def _write(self, what: str) -> None:
        fd = os.open(self.path, os.O_WRONLY | os.O_APPEND)
        os.write(fd, f"{what} {worker().slot} {worker().generation} {os.getpid()}\n".encode())
        os.close(fd)

    def lines(self) -> list[tuple[str, int, int, int]]:
        lines = [line.split() for line in Path(self.path).read_text().splitlines()]
        return [(what, int(slot), int(generation), int(pid)) for what, slot, generation, pid in lines]

    def pool(self, workers: int, **options: Any) -> Pool:
        return Pool(workers, initializer=self.come, teardown=self.go, **options).start()


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "ledger")


# ---- restart


def test_all_workers_are_new_afterwards(ledger: Ledger) -> None:
    with processes.nothing_left(), ledger.pool(3) as pool:
        processes.wait_until(lambda: len(ledger.lines()) == 3, "all are there")
        before = pids_of_all(pool)
        pool.restart()
        assert not before & pids_of_all(pool)
        assert not any(map(processes.runs, before))
        assert restarts(pool) == [{"restarted": 1}] * 3
        assert pool.crashes == 0
        assert list(pool.map(tasks.square, range(100))) == [x * x for x in range(100)]
    goings = [(slot, generation) for what, slot, generation, _ in ledger.lines() if what == "-"]
    assert sorted(goings) == [(slot, generation) for slot in range(3) for generation in range(2)]


@pytest.mark.parametrize("form", ["imap", "chunks", "submit"])
def test_under_load_nothing_is_lost_and_nearly_all_workers_are_there(ledger: Ledger, form: str) -> None:
    """No task has retries, so none may meet a worker that leaves."""
    workers, count = 4, 20_000
    with processes.nothing_left(), ledger.pool(workers) as pool:
        processes.wait_until(lambda: len(ledger.lines()) == workers, "all are there")
        done = threading.Event()

        def restart_again_and_again() -> None:
            for _ in range(5):
                pool.restart()
            done.set()

        thread, raised = in_thread(restart_again_and_again)
        rounds = 0
        while not done.is_set() or not rounds:
            if form == "submit":
                assert [f.result() for f in [pool.submit(tasks.square, x) for x in range(2000)]] == [
                    x * x for x in range(2000)
                ]
            else:
                results = pool.imap(tasks.square, range(count), chunksize=1 if form == "imap" else 16)
                assert list(results) == [x * x for x in range(count)]
            rounds += 1
        thread.join()
        assert not raised
        assert restarts(pool) == [{"restarted": 5}] * workers
        assert pool.crashes == 0
    _check_ledger(ledger, workers, at_the_end=workers)


def _check_ledger(ledger: Ledger, workers: int, at_the_end: int) -> None:
    """From the first time on that all are there until the last ones leave together: at most one too few."""
    lines, there, least = ledger.lines(), 0, workers
    complete = False
    for what, *_ in lines[: len(lines) - at_the_end]:
        assert what in "+-"
        there += 1 if what == "+" else -1
        complete = complete or there == workers
        least = min(least, there) if complete else least
    assert least >= workers - 1
    assert there == at_the_end


def test_crashes_meanwhile_are_only_crashes(ledger: Ledger) -> None:
    with processes.nothing_left(), ledger.pool(3, retries=2) as pool:
        stop = threading.Event()

        def crash() -> None:
            while not stop.is_set():
                pool.options(retries=0).submit(tasks.die).exception()

        thread, raised = in_thread(crash)
        for _ in range(5):
            before = pids_of_all(pool)
            pool.restart()
            assert not before & pids_of_all(pool)
        stop.set()
        thread.join()
        assert not raised
        assert pool.crashes > 0
        assert list(pool.imap(tasks.square, range(1000))) == [x * x for x in range(1000)]


def test_a_long_task_does_not_hold_up_the_others(ledger: Ledger, gate: tasks.Gate) -> None:
    with ledger.pool(3) as pool:
        held = pool.submit(tasks.hold, gate.path, "kept")
        (busy,) = gate.await_start()
        others = pids_of_all(pool) - {busy}
        thread, raised = in_thread(pool.restart)
        processes.wait_until(lambda: not others & pids_of_all(pool), "the others are replaced")
        assert busy in pids_of_all(pool)
        assert pool.submit(tasks.square, 3).result() == 9
        assert thread.is_alive()
        gate.open()
        assert held.result() == "kept"
        thread.join(20)
        assert not thread.is_alive()
        assert not raised
        assert busy not in pids_of_all(pool)


def test_it_need_not_be_waited_for(gate: tasks.Gate) -> None:
    with Pool(1) as pool:
        held = pool.submit(tasks.hold, gate.path)
        (busy,) = gate.await_start()
        pool.restart(wait=False)
        assert pids_of_all(pool) == {busy}
        gate.open()
        held.result()
        processes.wait_until(lambda: busy not in pids_of_all(pool), "it is replaced")


def test_it_is_not_lost_where_the_monitor_does_not_keep_up() -> None:
    with Pool(2).start() as pool:
        before, monitor = pids_of_all(pool), processes.monitor_pid(pool)
        os.kill(monitor, signal.SIGSTOP)
        processes.wait_until(lambda: processes.is_stopped(monitor), "it is stopped")
        with contextlib.suppress(BlockingIOError):
            while pool._client._running.commands.send(b"L"):  # type: ignore[union-attr]
                pass
        thread, raised = in_thread(pool.restart)
        assert thread.is_alive()
        os.kill(monitor, signal.SIGCONT)
        thread.join(20)
        assert not thread.is_alive()
        assert not raised
        assert not before & pids_of_all(pool)


def test_several_at_once(ledger: Ledger) -> None:
    with ledger.pool(2) as pool:
        for _ in range(5):
            before = pids_of_all(pool)
            threads = [in_thread(pool.restart) for _ in range(4)]
            for thread, raised in threads:
                thread.join(20)
                assert not thread.is_alive()
                assert not raised
            assert not before & pids_of_all(pool)


def test_one_that_comes_while_another_goes_on_replaces_the_replaced(gate: tasks.Gate) -> None:
    with Pool(2) as pool:
        held = pool.submit(tasks.hold, gate.path)
        (busy,) = gate.await_start()
        (other,) = processes.wait_until(lambda: pids_of_all(pool) - {busy}, "the other one is there")
        first, raised = in_thread(pool.restart)
        replaced = processes.wait_until(lambda: pids_of_all(pool) - {busy, other, 0}, "the idle one is replaced")
        second, raised_too = in_thread(pool.restart)
        processes.wait_until(lambda: pids_of_all(pool) - {busy, other, *replaced}, "and again")
        gate.open()
        held.result()
        first.join(20)
        second.join(20)
        assert not (first.is_alive())
        assert not (second.is_alive())
        assert not raised
        assert not raised_too
        assert not pids_of_all(pool) & {busy, other, *replaced}


def test_with_workers_that_are_recycled_anyway() -> None:
    with Pool(2, max_tasks_per_child=3).start() as pool:
        thread, raised = in_thread(lambda: [pool.restart() for _ in range(5)])
        while thread.is_alive():
            assert list(pool.imap(tasks.square, range(50))) == [x * x for x in range(50)]
        assert not raised
        reasons = restarts(pool)
        assert sum(r.get("restarted", 0) for r in reasons) >= 2
        assert all(set(r) <= {"restarted", "recycled"} for r in reasons)


def test_before_the_start_and_after_the_end() -> None:
    pool = Pool(2)
    pool.restart()
    assert pool._client._running is None, "there was nothing to replace"
    assert pool.submit(tasks.square, 2).result() == 4
    pool.shutdown()
    with pytest.raises(errors.PoolClosed):
        pool.restart()


@pytest.mark.parametrize("end", ["shut down", "monitor killed", "terminated"])
def test_if_the_pool_ends_meanwhile(gate: tasks.Gate, end: str) -> None:
    pool = Pool(1)
    pool.submit(tasks.hold, gate.path)
    gate.await_start()
    thread, raised = in_thread(pool.restart)
    processes.wait_until(lambda: pool._client._running.restarts == 1, "it is asked for")  # type: ignore[union-attr]
    if end == "shut down":
        pool.shutdown(wait=False)
        gate.open()
    elif end == "terminated":
        pool.terminate_workers()
    else:
        os.kill(processes.monitor_pid(pool), signal.SIGKILL)
    thread.join(20)
    assert not thread.is_alive()
    if end == "shut down":  # perhaps just after the last worker was replaced
        assert not raised or isinstance(raised[0], errors.PoolClosed)
    else:
        assert isinstance(raised[0], errors.PoolBroken if end == "monitor killed" else errors.PoolClosed)
    pool.shutdown()


def _fail_at_second_start(path: str) -> None:
    with open(path, "a") as file:
        file.write("x")
    if os.path.getsize(path) > 1:
        raise ValueError("no second start")


def test_an_initializer_that_fails_now_ends_the_pool(tmp_path: Path) -> None:
    pool = Pool(1, initializer=_fail_at_second_start, initargs=(str(tmp_path / "starts"),))
    assert pool.submit(tasks.square, 2).result() == 4
    with pytest.raises(errors.PoolStartError, match="no second start"):
        pool.restart()
    assert (tmp_path / "starts").read_text() == "x" * 7, "one that was ready, then six that failed"


# ---- teardown


def test_it_is_called_once_at_each_planned_end_and_only_there(ledger: Ledger) -> None:
    with ledger.pool(1, max_tasks_per_child=2) as pool:
        assert list(pool.imap(tasks.square, range(4), chunksize=1)) == [0, 1, 4, 9]  # two workers
        processes.wait_until(lambda: len([x for x in ledger.lines() if x[0] == "+"]) == 3, "the third is there")
        pool.submit(tasks.die).exception()  # the third
        stuck = pool.options(timeout=0.1).submit(tasks.sleep, 1000)  # the fourth
        assert isinstance(stuck.exception(), errors.TaskTimeout)
        pool.restart()  # the fifth
    assert [generation for what, _, generation, _ in ledger.lines() if what == "-"] == [0, 1, 4, 5]
    assert [generation for what, _, generation, _ in ledger.lines() if what == "+"] == [0, 1, 2, 3, 4, 5]


def test_it_is_not_called_where_workers_are_killed(ledger: Ledger) -> None:
    ledger.pool(2).terminate_workers()
    pool = ledger.pool(2)
    with pytest.raises(KeyboardInterrupt), pool:
        raise KeyboardInterrupt
    assert not [line for line in ledger.lines() if line[0] == "-"]


def _raise() -> None:
    raise ValueError("the teardown is broken")


def _loop_in_c() -> None:
    sum(range(10**12))


def _crash() -> None:
    os.abort()


@pytest.mark.parametrize(
    ("teardown", "said"),
    [
        (_raise, ["failed", "ValueError: the teardown is broken", "in _raise"]),
        (_loop_in_c, ["took longer than 1 s", "in _loop_in_c"]),
        (_crash, ["failed", "Fatal Python error: Aborted", "in _crash"]),
    ],
)
def test_however_it_ends_it_is_told_and_the_pool_goes_on(
    teardown: Callable[[], None], said: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    began = time.monotonic()
    seconds = 1 if teardown is _loop_in_c else 20
    with processes.nothing_left(), Pool(2, name="ours", teardown=teardown, teardown_timeout=seconds) as pool:
        pool.start().restart()
        assert list(pool.imap(tasks.square, range(100))) == [x * x for x in range(100)]
        ends = restarts(pool)
        assert pool.crashes == 0
    assert ends == [{"SIGABRT" if teardown is _crash else "restarted": 1}] * 2
    assert time.monotonic() - began < 60
    text = capfd.readouterr().err
    assert text.count("ours: the teardown of worker 0 (pid ") == 2, text
    assert all(text.count(part) == 4 for part in said), text
    assert "worker_process" not in text


def test_what_it_says_does_not_block_the_monitor(ledger: Ledger) -> None:
    read, write = os.pipe()
    fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, 4096)
    os.write(write, bytes(4096))
    stderr = os.dup(2)
    os.dup2(write, 2)
    try:
        pool = Pool(1, initializer=ledger.come, teardown=_raise).start()
    finally:
        os.dup2(stderr, 2)
        for fd in (read, write, stderr):
            if fd is not read:
                os.close(fd)
    pool.restart()
    assert pool.submit(tasks.square, 2).result() == 4
    pool.shutdown()
    os.close(read)


def test_a_task_cannot_take_its_deadline_away() -> None:
    """A handler, a mask and a timer that a task has left."""
    with Pool(1, teardown=_loop_in_c, teardown_timeout=0.5) as pool:
        pool.submit(_disarm).result()
        pool.restart()
        assert restarts(pool) == [{"restarted": 1}]


def _disarm() -> None:
    signal.signal(signal.SIGALRM, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM])
    signal.setitimer(signal.ITIMER_REAL, 1000)


def test_others_run_tasks_meanwhile(gate: tasks.Gate) -> None:
    with Pool(2, teardown=lambda: tasks.hold(gate.path), teardown_timeout=60).start() as pool:
        thread, raised = in_thread(pool.restart)
        for _ in range(2):
            gate.await_start()
            assert list(pool.imap(tasks.square, range(1000))) == [x * x for x in range(1000)]
            gate.open()
        thread.join(20)
        assert not thread.is_alive()
        assert not raised
        gate.open(2)


def test_a_long_one_has_its_time_at_the_end_of_the_pool(ledger: Ledger) -> None:
    """Longer than workers have else."""
    with Pool(1, initializer=ledger.come, teardown=lambda: (time.sleep(2.5), ledger.go()), teardown_timeout=60) as pool:
        pool.submit(tasks.square, 2).result()
    assert [what for what, *_ in ledger.lines()] == ["+", "-"]


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"teardown": 1}, TypeError, "teardown must be a callable"),
        ({"teardown_timeout": 0}, ValueError, "teardown_timeout must be greater than 0"),
        ({"teardown_timeout": None}, TypeError, "teardown_timeout must be a number of seconds"),
    ],
)
def test_what_makes_no_sense_is_refused(options: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        Pool(1, **options)


def test_without_workers_it_is_called_here(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    events: list[Any] = []

    def come() -> None:
        events.append(("+", len(worker().state)))
        worker().state["x"] = 1

    with Pool(0, initializer=come, teardown=lambda: events.append(("-", len(worker().state)))) as pool:
        pool.restart()
        pool.submit(tasks.square, 2).result()
        pool.restart()
        pool.submit(tasks.square, 2).result()
    assert events == [("+", 0), ("-", 1), ("+", 0), ("-", 1)]
    with pytest.raises(errors.PoolClosed):
        pool.restart()
    monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)
    with Pool(0, teardown=_raise) as pool:
        pool.submit(tasks.square, 2).result()
    assert "ValueError: the teardown is broken" in capsys.readouterr().err
