"""How long it takes, in seconds: until a death is noticed, until the slot works again, until a deadline is kept, until
nobody is left of a pool that ends or of a client that was killed. And how late a sleeping process wakes here anyway, at
the same time.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import select
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import processes

from chaos.sources import surroundings
from pool import Pool, errors

WORKERS = 2
TIMEOUT = 0.05  # of tasks that are to be late
GONE_SECONDS = 5.0  # who is still there then is left behind
JITTER_SLEEP = 0.005
_ENTRY = struct.Struct("=qqq")
Samples = dict[str, list[float]]


def hold(path: str, number: int) -> NoReturn:
    """A task that says when it has begun, and never ends."""
    began = time.monotonic_ns()
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(fd, _ENTRY.pack(number, os.getpid(), began))
    while True:
        signal.pause()


class _Begun:
    """Which task has begun where and when, as the tasks have written it."""

    def __init__(self, folder: str) -> None:
        self.path = os.path.join(folder, "begun")

    def all(self) -> dict[int, tuple[int, int]]:
        """Number → (pid, ns)."""
        if not os.path.exists(self.path):
            return {}
        with open(self.path, "rb") as file:
            data = file.read()
        return {
            number: (pid, ns) for number, pid, ns in _ENTRY.iter_unpack(data[: len(data) // _ENTRY.size * _ENTRY.size])
        }

    def wait(self, number: int) -> tuple[int, int]:
        return processes.wait_until(lambda: self.all().get(number), f"task {number} begins")  # type: ignore[no-any-return]


def deaths(count: int, seed: int) -> Samples:
    """So many kills of a worker, one after the other, while all have a task and more are waiting: from the kill until
    the error of its task is known, and until the next task has begun in its slot (I20)."""
    lucky = random.Random(seed)
    noticed, following = [], []
    with tempfile.TemporaryDirectory(prefix="latency-") as folder, Pool(WORKERS) as pool:
        begun = _Begun(folder)
        futures = [pool.submit(hold, begun.path, number) for number in range(WORKERS + 1)]
        running = list(range(WORKERS))
        for number in running:
            begun.wait(number)
        for _ in range(count):
            time.sleep(lucky.uniform(0, 0.01))  # at any moment of whatever is done regularly
            victim = running.pop(lucky.randrange(WORKERS))
            pid, _ = begun.wait(victim)
            killed = time.monotonic_ns()
            os.kill(pid, signal.SIGKILL)
            error = futures[victim].exception(20)
            noticed.append(_since(killed))
            assert isinstance(error, errors.WorkerCrashed), error
            running.append(len(futures) - 1)
            following.append((begun.wait(running[-1])[1] - killed) / 1e9)
            assert processes.living_and_zombies(processes.monitor_pid(pool)) == (WORKERS, 0)
            futures.append(pool.submit(hold, begun.path, len(futures)))
        pool.kill_workers()
    return {"noticed": noticed, "next": following}


def deadlines(count: int) -> Samples:
    """So many tasks that are late: from their deadline until their error is known."""
    over = []
    with tempfile.TemporaryDirectory(prefix="latency-") as folder, Pool(WORKERS) as pool:
        begun = _Begun(folder)
        for number in range(count):
            error = pool.options(timeout=TIMEOUT).submit(hold, begun.path, number).exception(20)
            known = time.monotonic_ns()
            assert isinstance(error, errors.TaskTimeout), error
            over.append((known - begun.wait(number)[1]) / 1e9 - TIMEOUT)
    return {"deadline": over}


def pool_ends(count: int) -> Samples:
    """So many pools that end when all is done, and so many whose tasks hang and are given up: from the call until the
    last of monitor and workers has gone."""
    done, hanging = [], []
    for _ in range(count):
        pool = Pool(WORKERS).start()
        pool.submit(abs, -1).result(20)
        done.append(_pool_end(pool, pool.shutdown))
        with tempfile.TemporaryDirectory(prefix="latency-") as folder, Pool(WORKERS) as pool:
            begun = _Begun(folder)
            for number in range(WORKERS):
                pool.submit(hold, begun.path, number)
            for number in range(WORKERS):
                begun.wait(number)
            hanging.append(_pool_end(pool, pool.kill_workers))
    return {"shutdown": done, "given up": hanging}


def _pool_end(pool: Pool, end: Callable[[], object]) -> float:
    took, alive = _until_gone([processes.monitor_pid(pool), *processes.worker_pids(pool)], end)
    assert not alive
    return took


def client_deaths(count: int) -> tuple[Samples, dict[str, int]]:
    """So many clients that are killed, while each worker has a task that has started a process in a session of its own:
    from the kill until the last of monitor, workers and those processes has gone; and what was left."""
    gone = []
    left = {"processes": 0, "files": 0}
    for number in range(count):
        with tempfile.TemporaryDirectory(prefix="latency-") as folder:
            os.mkdir(files := os.path.join(folder, "files"))
            shared = processes.shared_files()
            took, alive = _client_death(folder, surroundings(TMPDIR=files))
            gone.append(took)
            left["processes"] += max(alive, len(processes.named(os.path.basename(folder))))
            left["files"] += len(os.listdir(files)) + len(processes.shared_files() - shared)
        assert len(gone) == number + 1
    return {"gone": gone}, left


def _client_death(folder: str, environment: dict[str, str]) -> tuple[float, int]:
    """Seconds, and how many have not gone."""
    command = [sys.executable, "-m", "chaos.latency", "client", folder]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as client:
        assert client.stdout is not None
        return _until_gone(json.loads(client.stdout.readline()), client.kill)


def _until_gone(pids: list[int], end: Callable[[], object]) -> tuple[float, int]:
    """Seconds from `end()` on, and how many have not gone."""
    waiting = {os.pidfd_open(pid) for pid in pids}
    poll = select.poll()
    for fd in waiting:
        poll.register(fd, select.POLLIN)
    began = time.monotonic_ns()
    end()
    last = 0.0
    while waiting and _since(began) < GONE_SECONDS:
        for fd, _ in poll.poll(1000):
            last = _since(began)
            poll.unregister(fd)
            waiting.discard(fd)
            os.close(fd)
    alive = len(waiting)
    for fd in waiting:
        signal.pidfd_send_signal(fd, signal.SIGKILL)
        os.close(fd)
    return (GONE_SECONDS if alive else last), alive


def _be_client(folder: str) -> NoReturn:
    pool = Pool(WORKERS, name=os.path.basename(folder)).start()
    begun = _Begun(folder)
    for number in range(WORKERS):
        pool.submit(_start_and_hold, begun.path, number)
    for number in range(WORKERS):
        begun.wait(number)
    monitor = processes.monitor_pid(pool)
    print(json.dumps([monitor, *processes.children_of_all(monitor)]), flush=True)
    while True:
        signal.pause()


def _start_and_hold(path: str, number: int) -> NoReturn:
    subprocess.Popen(["sh", "-c", f"sleep 1000; : {os.path.dirname(path)}"], start_new_session=True)
    hold(path, number)


def _since(ns: int) -> float:
    return (time.monotonic_ns() - ns) / 1e9


# ---- beside it


@contextlib.contextmanager
def jitter(samples: list[float]) -> Iterator[None]:
    """Meanwhile another process sleeps again and again: how much longer than it wanted."""
    command = [sys.executable, "-m", "chaos.latency", "jitter"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, env=surroundings(), stdin=pipe, stdout=pipe, text=True) as sleeper:
        yield
        samples += json.loads(sleeper.communicate()[0])


def _be_sleeper() -> None:
    late, end = [], False
    while not end:
        began = time.monotonic_ns()
        end = bool(select.select([sys.stdin], [], [], JITTER_SLEEP)[0])
        if not end:
            late.append(_since(began) - JITTER_SLEEP)
    print(json.dumps(late))


@contextlib.contextmanager
def busy() -> Iterator[None]:
    """Meanwhile as many processes compute as there are cores."""
    burners = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(os.cpu_count() or 1)]
    try:
        yield
    finally:
        for burner in burners:
            burner.kill()
            burner.wait()


def measured(kills: int, clients: int, seed: int) -> dict[str, Any]:
    """All of it, on the machine as it is and on a busy one: by condition the samples, with the jitter meanwhile; and
    what clients that were killed have left."""
    found: dict[str, Any] = {}
    left = {"processes": 0, "files": 0}
    conditions: dict[str, Callable[[], Any]] = {"as it was": contextlib.nullcontext, "busy": busy}
    for name, condition in conditions.items():
        late: list[float] = []
        with condition(), jitter(late):
            few = max(2, kills // 3)
            samples = {**deaths(kills, seed), **deadlines(kills), **pool_ends(few)}
            ends, more = client_deaths(clients)
        found[name] = {**samples, **ends, "jitter": late}
        for what, count in more.items():
            left[what] += count
    return {"samples": found, "left": left, "clients": 2 * clients}


if __name__ == "__main__":
    if sys.argv[1] == "client":
        _be_client(sys.argv[2])
    _be_sleeper()
