"""The account of a task: where its time went, what it took, and what is still known when it failed or died."""

import itertools
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import processes
import pytest
import tasks

from pool import Failure, Pool
from pool.account import Account
from pool.errors import MemoryLimitExceeded, TaskKilled, TaskTimeout, WorkerCrashed

MIB = 1 << 20
LOOK = 0.001  # seconds: nobody looks at CPU time and memory more often


@pytest.fixture(autouse=True)
def _nothing_left() -> Iterator[None]:
    with processes.nothing_left():
        yield


def account_of(pool: Pool, fn: Any, *args: Any, **kwargs: Any) -> Account:
    future = pool.submit(fn, *args, **kwargs)
    future.exception()
    assert future.account is not None
    return future.account


# ---- tasks


def burn(cpu: float) -> float:
    """Use so many seconds of CPU time. Returns how many it was, with those of threads that a library may have."""
    began, end = time.process_time(), time.thread_time() + cpu
    while time.thread_time() < end:
        pass
    return time.process_time() - began


def burn_and_fail(cpu: float) -> None:
    burn(cpu)
    raise ValueError(cpu)


def burn_and_die(cpu: float) -> None:
    burn(cpu)
    os.kill(os.getpid(), signal.SIGKILL)


def burn_or_die(cpu: float) -> None:
    burn_and_die(-cpu) if cpu < 0 else burn_and_fail(cpu)


def burn_in_a_child(cpu: float) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-S", "-c", f"import time\nwhile time.process_time() < {cpu}: pass"], check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def wait(seconds: float) -> None:
    """A task that waits and uses no CPU time."""
    time.sleep(seconds)


def fill(size: int) -> int:
    assert len(b"x" * size) == size
    return size


def fill_for_ever(_: object = None) -> None:
    kept = []
    while True:
        kept.append(bytes(MIB))


def burn_then_fail_once(marker: str, cpu: float) -> float:
    """The first time it fails; then it returns at once how long it took then."""
    try:
        with open(marker) as file:
            return float(file.read())
    except FileNotFoundError:
        began = time.monotonic()
        burn(cpu)
        with open(marker, "x") as file:
            file.write(str(time.monotonic() - began))
        raise ValueError from None


class SlowToEncode:
    def __reduce__(self) -> tuple[object, ...]:
        burn(0.02)
        return int, ()


# ---- of a task that succeeded


def test_fields() -> None:
    with Pool(2) as pool:
        future = pool.submit(tasks.pid)
        account = (future.result(), future.account)[1]
        assert account is not None
        assert account is future.account or account == future.account
        assert (account.attempts, account.pid) == (1, future.result())
        assert account.slot in (0, 1)
        assert (account.sent, account.received, account.output) == ("row", "copy", None)
        assert account.bytes_in > 0
        assert account.bytes_out > 0
        assert pool.submit(tasks.identity, bytes(100_000)).result() is not None
        large = account_of(pool, tasks.identity, bytes(100_000))
    assert (large.sent, large.received) == ("memory", "view")
    assert 100_000 < large.bytes_in < 101_000
    assert 100_000 < large.bytes_out < 101_000
    assert future.account == account  # also after the end of the pool


def test_none_before_its_end_and_without_a_worker(gate: tasks.Gate) -> None:
    with Pool(1) as pool:
        held = pool.submit(tasks.hold, gate.path)
        gate.await_start()
        assert held.account is None
        waiting = pool.submit(tasks.square, 2)
        assert waiting.cancel()
        never = pool.submit(tasks.square, lambda: (yield), bad=Unencodable())
        assert isinstance(never.exception(), ZeroDivisionError)
        gate.open()
        held.result()
        assert held.account is not None
    assert waiting.account is None
    assert never.account is None


class Unencodable:
    def __reduce__(self) -> tuple[object, ...]:
        raise ZeroDivisionError


@pytest.mark.parametrize("queued", [1, 5000])
def test_wait_in_the_queue(gate: tasks.Gate, queued: int) -> None:
    """Also if there are more tasks than rows, so that the last ones wait in the client."""
    with Pool(1) as pool:
        held = pool.submit(tasks.hold, gate.path)
        gate.await_start()
        began = time.monotonic()
        waiting = [pool.submit(tasks.square, 3) for _ in range(queued)]
        given = time.monotonic()
        processes.wait_until(lambda: time.monotonic() > given + 0.05, "time goes by")
        gate.open()
        for future in waiting:
            future.result()
        ended = time.monotonic()
        for future in (held, *waiting):
            assert future.account is not None
        assert waiting[-1].account is not None
        assert 0.05 < waiting[-1].account.queue_wait <= ended - began
        assert waiting[0].account is not None
        assert waiting[0].account.queue_wait <= waiting[-1].account.queue_wait + (given - began)
        assert held.account is not None
        assert held.account.run > 0.05


def test_encoding_is_neither_waiting_nor_running() -> None:
    with Pool(1) as pool:
        pool.submit(tasks.identity, 1).result()
        began = time.monotonic()
        account = account_of(pool, tasks.identity, SlowToEncode())
        took = time.monotonic() - began
    assert account.encode is not None
    assert account.encode > 0.02
    assert account.encode + account.queue_wait + account.run < took


def test_times_of_the_last_attempt(tmp_path: Any) -> None:
    with Pool(1) as pool:
        began = time.monotonic()
        future = pool.options(retries=1).submit(burn_then_fail_once, str(tmp_path / "marker"), 0.05)
        first = future.result()
        took = time.monotonic() - began
        assert future.account is not None
        assert future.account.attempts == 2
        assert future.account.queue_wait + future.account.run <= took - first


@pytest.mark.parametrize("task", [burn, burn_in_a_child])
def test_cpu_time(task: Any) -> None:
    with Pool(1) as pool:
        future = pool.submit(task, 0.05)
        used = future.result()
        account = future.account
    assert account is not None
    assert account.cpu_user is not None
    assert account.cpu_system is not None
    own = 0.5 if task is burn_in_a_child else LOOK + 0.05  # of the worker: decoding, and starting the child
    assert used - 0.0001 <= account.cpu_user + account.cpu_system <= used + own
    assert account.run >= 0.05


def test_waiting_costs_no_cpu_time_and_is_not_charged_with_that_of_others() -> None:
    """Three hundred tasks too short to be looked at use 90 ms of it, at least."""
    with Pool(1) as pool:
        pool.submit(tasks.identity, 1).result()
        for future in [pool.submit(burn, 0.0003) for _ in range(300)]:
            future.result()
        account = account_of(pool, wait, 0.02)
    assert account.run >= 0.02
    assert account.cpu_user is not None
    assert account.cpu_system is not None
    assert account.cpu_user + account.cpu_system < 0.015


def test_nobody_looks_at_a_short_task() -> None:
    with Pool(1) as pool:
        futures = [pool.submit(burn, 0.0005 + 0.00001 * k) for k in range(200)]
        for future in futures:
            future.result()
    short = 0
    for future in futures:
        account = future.account
        assert account is not None
        looked = {x is not None for x in (account.cpu_user, account.cpu_system, account.peak_rss)}
        if account.run < 0.9995 * LOOK or account.run > 1.0005 * LOOK:  # the run time is to 0.05 %
            assert looked == {account.run >= LOOK}
        short += account.run < LOOK
    assert 0 < short < 200


def test_memory_at_its_peak() -> None:
    with Pool(1) as pool:
        before = account_of(pool, burn, 0.002).peak_rss
        much = account_of(pool, fill, 100 * MIB).peak_rss
        after = account_of(pool, burn, 0.002).peak_rss
    assert before is not None
    assert much is not None
    assert after is not None
    assert before + 95 * MIB <= much < before + 130 * MIB  # the kernel counts in batches
    assert after < before + 30 * MIB  # not the peak of the one before


def test_without_workers(gate: tasks.Gate) -> None:
    with Pool(0) as pool:
        account = account_of(pool, burn, 0.01)
        (failure,) = pool.imap(burn_and_fail, [0.01], on_error="return")
    assert (account.slot, account.pid, account.attempts) == (0, os.getpid(), 1)
    assert account.run >= 0.01
    assert account.cpu_user is not None
    assert account.cpu_system is not None
    assert account.cpu_user + account.cpu_system >= 0.0099
    assert account.peak_rss is not None
    assert account.peak_rss > MIB
    assert failure.account.run >= 0.01


# ---- of a task that failed


def test_of_a_task_that_raised() -> None:
    with Pool(1) as pool:
        pid = pool.submit(tasks.pid).result()
        future = pool.submit(burn_and_fail, 0.005)
        assert isinstance(future.exception(), ValueError)
    account = future.account
    assert account is not None
    assert (account.pid, account.slot, account.received) == (pid, 0, "copy")
    assert account.run >= 0.005
    assert account.cpu_user is not None


def test_of_a_crash() -> None:
    with Pool(1) as pool:
        future = pool.submit(burn_and_die, 0.03)
        error = future.exception()
        assert isinstance(error, WorkerCrashed)
        account = future.account
        second = pool.options(retries=1).submit(burn_and_die, 0.001)
        assert isinstance(second.exception(), WorkerCrashed)
    assert account is not None
    assert (account.attempts, account.slot, account.pid) == (1, error.slot, error.pid)
    assert (account.bytes_out, account.received) == (0, None)
    assert account.run >= 0.03
    assert account.encode is not None
    assert account.cpu_user is not None
    assert account.cpu_system is not None
    assert 0.0299 <= account.cpu_user + account.cpu_system <= 2 * account.run + 0.05
    assert account.peak_rss is not None
    assert account.peak_rss > MIB
    assert second.account is not None
    assert second.account.attempts == 2


def test_of_a_timeout() -> None:
    with Pool(1) as pool:
        pool.submit(burn, 0.3).result()
        future = pool.options(timeout=0.1).submit(tasks.sleep, 60)
        error = future.exception()
    account = future.account
    assert isinstance(error, TaskTimeout)
    assert account is not None
    assert (account.pid, error.args_repr) == (error.pid, "60")
    assert 0.1 <= account.run < 20
    assert account.cpu_user is not None
    assert account.cpu_user < 0.2  # it slept, and what was before is not its


def test_of_a_killed_task(gate: tasks.Gate) -> None:
    with Pool(1) as pool:
        future = pool.submit(tasks.hold, gate.path, value=3)
        (pid,) = gate.await_start()
        assert future.kill()
        error = future.exception()
    assert isinstance(error, TaskKilled)
    assert error.args_repr == f"'{gate.path}', value=3" or "..." in error.args_repr
    assert future.account is not None
    assert future.account.pid == error.pid == pid
    assert future.account.run > 0


def test_of_a_task_that_took_too_much_memory() -> None:
    with Pool(1) as pool:
        future = pool.options(memory_limit="50M").submit(fill_for_ever, "x")
        error = future.exception()
    assert isinstance(error, MemoryLimitExceeded)
    assert error.args_repr == "'x'"
    assert future.account is not None
    assert future.account.peak_rss is not None
    assert future.account.peak_rss > 50 * MIB
    assert future.account.run > 0


# ---- of the failures of a map


def failures_of(pool: Pool, fn: Any, items: list[float], chunksize: int, together: int = 0) -> list[Failure]:
    """The first so many were ``together`` in one chunk: on a busy machine it may be given away before it is full."""

    def failures() -> list[Failure] | None:
        found: list[Failure] = list(pool.imap(fn, items, chunksize=chunksize, on_error="return"))
        shares = {failure.account and failure.account.bytes_in for failure in found[:together]}
        return found if len(shares) <= 1 else None

    return list(processes.wait_until(failures, "they are in one chunk"))


@pytest.mark.parametrize("chunksize", [1, 4])
def test_each_failure_of_a_map_has_its_own(chunksize: int) -> None:
    durations = [0.004, 0.02, 0.0001, 0.008]
    with Pool(1) as pool:
        began = time.monotonic()
        failures = failures_of(pool, burn_and_fail, durations, chunksize, chunksize if chunksize > 1 else 0)
        took = time.monotonic() - began
        ok = list(pool.imap(burn, [0.0001] * 5, chunksize=chunksize, on_error="return"))
    assert all(type(x) is float for x in ok)
    accounts = [failure.account for failure in failures]
    ended = 0.0
    for account, duration in zip(accounts, durations, strict=True):
        assert account is not None
        assert account.run >= duration
        assert (account.cpu_user is not None) == (account.run >= LOOK)
        assert account.encode is None
        assert account.bytes_in > 0
        assert account.bytes_out > 0
        assert account.pid > 0
        ended += account.run
    assert ended < took
    if chunksize == 4:  # each waits for those before it, and was given away with them
        for one, next_one in itertools.pairwise(accounts):
            assert one is not None
            assert next_one is not None
            assert next_one.queue_wait == pytest.approx(one.queue_wait + one.run, abs=1e-6)


def test_a_crash_in_a_chunk() -> None:
    with Pool(1) as pool:
        failures = failures_of(pool, burn_or_die, [0.003, 0.005, -0.007, 0.002], 4, together=3)
    assert [type(failure.error) for failure in failures] == [ValueError, ValueError, WorkerCrashed, ValueError]
    first, second, dead, last = (failure.account for failure in failures)
    assert first is not None
    assert second is not None
    assert dead is not None
    assert last is not None
    assert (first.run >= 0.003, second.run >= 0.005, dead.run >= 0.007, last.run >= 0.002) == (True,) * 4
    assert first.pid == second.pid == dead.pid != last.pid
    assert dead.queue_wait == pytest.approx(second.queue_wait + second.run, abs=1e-6)
    assert dead.cpu_user is not None
    assert dead.cpu_system is not None
    assert dead.cpu_user + dead.cpu_system >= 0.0069
    assert [account.attempts for account in (first, second, dead, last)] == [1] * 4


def test_what_never_reached_a_worker_has_none() -> None:
    with Pool(1) as pool:
        (failure,) = pool.imap(tasks.identity, [Unencodable()], on_error="return")
    assert isinstance(failure.error, ZeroDivisionError)
    assert failure.account is None
