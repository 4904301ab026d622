"""What the workers run in an episode. A task is a number that says what it does and what it must return.

Every execution takes a record lock on the byte of its task in the ledger (the kernel gives it back when the process has
died), so two executions of one task at the same time show as a lock that cannot be had. The ledger's lines, each one
write, with monotonic nanoseconds at the end:

``SLOT PID born NS``
    a worker is about to become ready
``NUMBER PID run NS`` · ``NUMBER PID end NS``
    an execution begins (``overlap`` instead of ``run``: while another holds the lock), and is about to return or raise
``NUMBER PID roused NS``
    a signal has met a task that hangs: it is the one that asks for a stack, so its deadline was over
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import random
import re
import signal
import time
import zlib
from functools import cache
from typing import NoReturn

from pool import worker

KINDS = (
    "no-op", "0.5 ms", "5 ms", "large result", "raises", "exits", "segfaults", "hangs", "races with its deadline",
    "hogs", "forks", "leaves a daemon", "damages the header", "damages all", "damages bytes", "hides processes",
)  # fmt: skip
(
    NOTHING, SHORT, BUSY, LARGE, RAISES, EXITS, SEGFAULTS, HANGS, RACES, HOGS, FORKS, DAEMON, HEADER, ALL, BYTES, HIDES,
) = range(len(KINDS))  # fmt: skip
NEVER_RETURN = (EXITS, SEGFAULTS, HANGS, HOGS, HIDES)
KILL_THEMSELVES = (EXITS, SEGFAULTS)
LARGE_SIZE = 3 << 20  # bytes: storing it takes long enough to be met by a kill
_STARTS = 4093  # a prime below the size of a page
_NOISE = random.Random(0).randbytes(LARGE_SIZE + _STARTS)
"""Large values are parts of it, each from another byte of its first page on: so no two pages of them are the same,
neither of one value nor of two, unless their serial numbers are the same modulo _STARTS."""
RACE_SECONDS = 0.02
HOG_SIZE, HOG_LIMIT = 160 << 20, 48 << 20
_PLAIN = (*[NOTHING] * 63, *[SHORT] * 28, *[BUSY] * 6, *[LARGE] * 3)
MIXES: dict[str, tuple[int, ...]] = {
    "plain": _PLAIN,
    "mixed": (*_PLAIN, *[RAISES] * 8, *[FORKS] * 3, DAEMON),
    "lethal": (*_PLAIN, *[EXITS] * 3, *[SEGFAULTS] * 2),
    "deadline": (*[NOTHING] * 20, *[SHORT] * 6, HANGS),
    "late": (*[NOTHING] * 3, HANGS),
    "racing": (*[RACES] * 6, NOTHING),
    "large": (*[LARGE] * 2, NOTHING),
    "hogs": (*[NOTHING] * 30, HOGS),
    "rogue": (*_PLAIN, *_PLAIN, *_PLAIN, HEADER, ALL, *[BYTES] * 2),
    "hiding": (HIDES,),
}


class _Ledger:
    path = ""
    fd = -1
    marker = ""


def open_ledger(path: str, marker: str) -> None:
    """The workers' initializer."""
    _Ledger.path, _Ledger.marker = path, marker
    _Ledger.fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
    _write(worker().slot, b"born")


def _write(number: int, what: bytes) -> None:
    os.write(_Ledger.fd, b"%d %d %s %d\n" % (number, os.getpid(), what, time.monotonic_ns()))


def leave() -> None:
    """The workers' teardown: long enough to be met by a kill."""
    _spin(0.003)


def numbers(first: int, count: int, mix: str) -> list[int]:
    """The tasks from serial number `first` on."""
    kinds = random.Random(first).choices(MIXES[mix], k=count)
    return [(first + k) * len(KINDS) + kind for k, kind in enumerate(kinds)]


def kind_of(number: int) -> int:
    return number % len(KINDS)


def value_of(number: int) -> object:
    """What task `number` must return."""
    return bytes(_large(number % _STARTS)) if kind_of(number) == LARGE else number * 2654435761 % 4294967296


def _large(start: int) -> memoryview:
    return memoryview(_NOISE)[start : start + LARGE_SIZE]


def digest(value: object) -> int:
    return zlib.crc32(value) if isinstance(value, bytes) else zlib.crc32(repr(value).encode())


@cache
def _large_digest(start: int) -> int:
    return zlib.crc32(_large(start))


def digest_of(number: int) -> int:
    """The digest of what task `number` must return."""
    return _large_digest(number % _STARTS) if kind_of(number) == LARGE else digest(value_of(number))


def execute(number: int) -> object:
    """One execution: its lock and the line that says that it begins, the work of its kind, and the line of its end."""
    pid, state, kind = os.getpid(), b"run", kind_of(number)
    try:
        fcntl.lockf(_Ledger.fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, number)
    except BlockingIOError:
        state = b"overlap"
    _write(number, state)
    if kind != NOTHING:
        _work(kind, number)
    value = value_of(number)
    if os.getpid() == pid:  # not what the task has forked, and comes back here
        _write(number, b"end")
    fcntl.lockf(_Ledger.fd, fcntl.LOCK_UN, 1, number)
    if kind == RAISES:
        raise ValueError(number)
    return value


def _work(kind: int, number: int) -> None:
    if kind in (SHORT, BUSY):
        _spin(0.0005 if kind == SHORT else 0.005)
    elif kind == RACES:
        _spin(RACE_SECONDS + random.Random(number).uniform(-0.0002, 0.0015))
    elif kind == EXITS:
        os._exit(number // len(KINDS) % 2 * 3)
    elif kind == SEGFAULTS:
        signal.signal(signal.SIGSEGV, signal.SIG_DFL)  # without the stack, which test_faults.py looks at
        signal.raise_signal(signal.SIGSEGV)
    elif kind == HANGS:
        while True:
            signal.pause()
            _write(number, b"roused")
    elif kind == HOGS:
        held = [bytearray(b"x") * (1 << 20) for _ in range(HOG_SIZE >> 20)]
        _hang(held)
    elif kind in (FORKS, DAEMON):
        _fork(number // len(KINDS) % 3 if kind == FORKS else None)
    elif kind in (HEADER, ALL, BYTES):
        _damage(kind, random.Random(number))
    elif kind == HIDES:
        _hide()


def _spin(seconds: float) -> None:
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass


def _hang(*_: object) -> NoReturn:
    while True:
        signal.pause()


def _fork(way: int | None) -> None:
    """A child that ends by itself, raises, or returns into the worker's code; or a daemon, which nobody waits for."""
    pid = os.fork()
    if pid == 0:
        if way is None:
            daemonize(_Ledger.marker)
        elif way == 0:
            os._exit(0)
        elif way == 1:
            raise SystemExit(3)
        return
    os.waitpid(pid, 0)


def daemonize(marker: str) -> NoReturn:
    """In a child: a second fork with setsid; nobody of ours is then its parent, its group or its session."""
    os.setsid()
    if os.fork() == 0:
        os.execlp("sh", "sh", "-c", f"sleep 1000; : {marker}")
    os._exit(0)


def _hide() -> NoReturn:
    """Processes in every place where they can hide."""
    sleep = ["sh", "-c", f"sleep 1000; : {_Ledger.marker}"]
    for step in (None, os.setpgrp, os.setsid):
        if os.fork() == 0:
            if step is not None:
                step()
            os.execvp(sleep[0], sleep)
    pid = os.fork()
    if pid == 0:
        daemonize(_Ledger.marker)
    os.waitpid(pid, 0)
    with open(_Ledger.path + ".hidden", "a") as file:
        file.write(f"{os.getpid()}\n")
    _hang()


HEADER_WORDS = slice(128, 640)  # tail, head, done map's summary and the client's bell


def _damage(kind: int, lucky: random.Random) -> None:
    """Native code gone wild: it writes over the control segment."""
    with open("/proc/self/maps") as file:
        areas = [line for line in file if "pool-control" in line]
    for line in areas:
        start, end = (int(x, 16) for x in re.split("[- ]", line)[:2])
        if kind == HEADER:
            ctypes.memset(start + HEADER_WORDS.start, 0xFF, HEADER_WORDS.stop - HEADER_WORDS.start)
        elif kind == ALL:
            ctypes.memset(start, 0xFF, end - start)
        else:
            for _ in range(64):
                ctypes.memset(lucky.randrange(start, end), lucky.randrange(256), 1)
