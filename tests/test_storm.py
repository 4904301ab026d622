"""The promises about deaths, under load: workers, the client and the monitor are killed; see storm.py."""

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import processes
import pytest
import storm

from pool import Pool
from pool.errors import PoolBroken

STORM = Path(storm.__file__)


@pytest.mark.timeout(100)
def test_every_task_ends_exactly_once_while_workers_are_killed(capsys: pytest.CaptureFixture[str]) -> None:
    figures = storm.storm(20_000, seed=20_000)
    with capsys.disabled():
        print("", storm.show(figures), sep="\n")
    assert figures["kills"] >= 100
    assert not figures["missed"], f"no kill met a worker {figures['missed']}"


@pytest.mark.timeout(30)
def test_without_kills_nothing_is_healed_and_every_task_is_executed_once() -> None:
    figures = storm.storm(4_000, seed=0, kill=False)
    assert figures["healed"] == 0
    assert figures["attempts"] == figures["executions"] == figures["values"] == 4_000


@pytest.mark.timeout(60)
def test_arrays_are_right_and_no_memory_stays_behind_while_workers_are_killed(capsys: Any) -> None:
    figures = storm.array_storm(150, seed=1)
    with capsys.disabled():
        print("", storm.show(figures), sep="\n")


def _marker() -> str:
    return f"storm-{os.getpid()}-{random.getrandbits(60)}"


@contextlib.contextmanager
def _victim(folder: Path, marker: str) -> Iterator[Any]:
    command = [sys.executable, str(STORM), "--victim", marker, str(folder)]
    client = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    try:
        yield client
    finally:
        client.kill()
        client.wait()
        for pid in processes.named(marker):
            os.kill(pid, signal.SIGKILL)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("seed", range(4))
def test_when_the_client_is_killed_everything_is_gone_within_a_second(tmp_path: Path, seed: int) -> None:
    marker, lucky = _marker(), random.Random(seed)
    with processes.nothing_left(), _victim(tmp_path, marker) as client:
        # client, monitor, workers, and four shells, each of which may have forked its sleep or become it
        processes.wait_until(lambda: (tmp_path / "started").exists(), "the processes of a task have started")
        processes.wait_until(lambda: len(processes.named(marker)) >= 2 + storm.WORKERS + 4, "everybody is there")
        ledger = tmp_path / "ledger"
        wanted = ledger.stat().st_size + lucky.randrange(20_000)  # somewhere in the middle of the load
        processes.wait_until(lambda: ledger.stat().st_size >= wanted, "tasks run")
        killed = time.monotonic()
        client.kill()
        processes.wait_until(lambda: set(processes.named(marker)) <= {client.pid}, "everybody is gone", 5)
        took = time.monotonic() - killed
        assert took < 1.0, f"everybody was gone only after {took:.2f} s"


def _start_and_wait(marker: str) -> None:
    """Processes in our group and in our session, none of which ends; and neither do we."""
    for options in ({}, {"process_group": 0}):
        subprocess.Popen(["sh", "-c", f"sleep 1000; : {marker}"], **options)  # type: ignore[call-overload]
    while True:
        signal.pause()


@pytest.mark.timeout(60)
@pytest.mark.parametrize("waiter", ["result", "callback", "imap", "nobody"])
def test_when_the_monitor_is_killed_all_unfinished_ends_as_broken_and_nothing_is_left(waiter: str) -> None:
    marker = _marker()
    with processes.nothing_left():
        pool = Pool(storm.WORKERS).start()
        stuck = [pool.submit(_start_and_wait, marker) for _ in range(storm.WORKERS)]
        queued = [pool.submit(int, "1") for _ in range(3000)]  # more than there are rows
        called: list[Any] = []
        results = pool.imap_unordered(int, ["2"] * 100) if waiter == "imap" else None
        if waiter == "callback":
            for future in queued:
                future.add_done_callback(called.append)
        processes.wait_until(lambda: len(processes.named(marker)) >= 2 * storm.WORKERS, "tasks have started processes")
        os.kill(processes.monitor_pid(pool), signal.SIGKILL)
        if waiter == "callback":
            processes.wait_until(lambda: len(called) == len(queued), "the callbacks were called", 10)
        elif results is not None:
            with pytest.raises(PoolBroken):
                list(results)
        elif waiter == "nobody":
            processes.wait_until(lambda: all(future.done() for future in queued), "the futures ended by themselves", 10)
        for future in stuck + queued:
            assert isinstance(future.exception(10), PoolBroken)
        assert processes.named(marker) == []
        with pytest.raises(PoolBroken):
            pool.submit(int, "1")
        began = time.monotonic()
        pool.shutdown()
        assert time.monotonic() - began < 1.0
