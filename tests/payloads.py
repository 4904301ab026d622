"""What the tests of arrays share: small rooms, what stands in them, and functions that workers run."""

import contextlib
import ctypes
import gc
import os
import signal
import threading
import time
import zlib
from collections.abc import Iterator
from typing import Any
from unittest import mock

import numpy as np
import processes
import tasks

from ipc import _core, segment
from pool import Pool

UNIT = _core.UNIT_SIZE
MIB = 1 << 20
KEPT: list[Any] = []


@contextlib.contextmanager
def small_pool(workers: int = 2, units: int = 64, rows: int | None = None, **options: Any) -> Iterator[Pool]:
    """A started pool with so many payload units; half of them for arguments, half for results."""
    with started(workers, units, rows, **options) as (pool, _), pool:
        yield pool


@contextlib.contextmanager
def started(workers: int = 2, units: int = 64, rows: int | None = None, **options: Any) -> Iterator[tuple[Pool, int]]:
    """The same, and a descriptor of its payload file; who asks ends the pool."""
    create, files = segment.Segment.create, []

    def create_and_note(*args: Any) -> Any:
        made = create(*args, rows=rows, room=units * UNIT)
        files.append(os.dup(made.payload))
        return made

    pool = Pool(workers, **options)
    with mock.patch.object(segment.Segment, "create", create_and_note):
        pool.start()
    try:
        yield pool, files[0]
    finally:
        pool.kill_workers()
        os.close(files[0])


def units(pool: Pool) -> int:
    """Payload units in use."""
    return int(_core.counters(pool._client.segment)["units"])


def views(pool: Pool) -> int:
    """Those that results in the client's hands use."""
    return int(_core.counters(pool._client.segment)["views"])


def owners(pool: Pool) -> str:
    return str(_core.counters(pool._client.segment))


def settle(pool: Pool, expected: int, seconds: float = 10.0) -> None:
    """Wait until exactly so many units are in use."""

    def there() -> bool:
        with pool._client.lock:
            pool._client.pump()
        return units(pool) == expected

    try:
        processes.wait_until(there, f"{expected} units in use", seconds)
    except AssertionError:
        raise AssertionError(f"{expected} units expected, {owners(pool)}") from None


def memory(fd: int) -> int:
    """Bytes that a memory file takes."""
    return os.fstat(fd).st_blocks * 512


def rss(pid: int | str = "self", what: str = "VmRSS") -> int:
    with open(f"/proc/{pid}/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(what + ":"))


def array(seed: int, length: int) -> Any:
    """Bytes that say where they belong: an array of that many bytes, whose every 8 bytes depend on the seed."""
    words = np.arange(-(-length // 8), dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(seed)
    return words.view(np.uint8)[:length]


def digest(value: Any) -> int:
    return zlib.crc32(np.ascontiguousarray(value)) if isinstance(value, np.ndarray) else zlib.crc32(value)


# ---- what workers run


def make(seed: int, length: int) -> Any:
    return array(seed, length)


def make_of(seed_and_length: tuple[int, int]) -> Any:
    return array(*seed_and_length)


def add_one(value: Any) -> Any:
    """In place."""
    value += 1
    return value


def keep(value: Any) -> int:
    KEPT.append(value)
    return digest(value)


def keep_in_cycle(value: Any) -> int:
    cycle: list[Any] = [value]
    cycle.append(cycle)
    return digest(value)


def keep_in_thread(value: Any, path: str) -> int:
    """A thread of the task looks at it until the gate is opened, then writes what it has seen."""

    def look(value: Any) -> None:
        with open(path, "rb", buffering=0) as gate:
            gate.read(1)
        with open(path + ".seen", "w") as seen:
            seen.write(str(digest(value)))

    threading.Thread(target=look, args=(value,)).start()
    return digest(value)


def kept(_: object = None) -> list[int]:
    return [digest(value) for value in KEPT]


def forget(_: object = None) -> None:
    KEPT.clear()
    gc.collect()


def bytes_kept(_: object = None) -> int:
    return sum(value.nbytes for value in KEPT)


def fork_reader(value: Any, path: str) -> int:
    """A child reads the argument when the gate is opened, which is after this task has ended."""
    pid = os.fork()
    if pid == 0:
        tasks.hold(path)
        with open(path + ".seen.tmp", "w") as seen:
            seen.write(str(digest(value)))
        os.rename(path + ".seen.tmp", path + ".seen")
        os._exit(0)
    return pid


def reap(pid: int) -> None:
    os.waitpid(pid, 0)


class Attempts:
    """Counts attempts in a file, because attempts may run in different workers."""

    def __init__(self, path: str) -> None:
        self.path = path

    def next(self) -> int:
        fd = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(fd, b"x")
        count = os.fstat(fd).st_size
        os.close(fd)
        return count


def mutate_and_fail(value: Any, path: str, how: str) -> int:
    """The digest of the value as this attempt got it; the first two attempts spoil it and end badly."""
    seen = digest(value)
    if Attempts(path).next() < 3:
        value[...] = 255
        if how == "raise":
            raise ValueError("spoilt")
        if how == "time out":
            time.sleep(60)
        os.kill(os.getpid(), signal.SIGKILL)
    return seen


def mutate_first(value: Any, path: str, bad: int) -> int:
    """Which number it carries; for one of them the worker dies at the first attempt."""
    number = int(value[0])
    value[...] = 99
    if number == bad and Attempts(path).next() == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def number_of(value: Any) -> int:
    return int(value[0])


def limit_files(length: int) -> None:
    import resource

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (length, resource.RLIM_INFINITY))


def prctl_subreaper() -> None:
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)


def collections(_: object = None) -> int:
    """How often the oldest generation of this process was collected."""
    return int(gc.get_stats()[2]["collections"])


def full_disk(pool: Pool, folder: Any) -> None:
    """Arguments for which the client finds no room on the disk: the task's error, and nobody else's."""
    import resource

    from pool.errors import PayloadTooLarge

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5 * MIB, before[1]))
    try:
        error = pool.submit(len, array(1, 30 * MIB)).exception()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert isinstance(error, PayloadTooLarge)
    assert pool.submit(len, array(1, 30 * MIB)).result() == 30 * MIB
