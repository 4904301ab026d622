"""Arrays go to and fro while workers are killed: values are right, and no memory stays behind.

Apart from the other profiles, for what it looks at is memory: its tasks keep no ledger, and values are compared here.
"""

from __future__ import annotations

import collections
import contextlib
import ctypes
import gc
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import payloads
import processes

from chaos import work
from chaos.observer import UNSEEN
from chaos.witness import Witness, listening
from ipc import _core

WORKERS = 3
HANG = 60.0  # seconds
MANY = 1000  # retries that nobody uses up
ARRAY_LENGTHS = (0, 100, 400, 3000, 40_000, 70_000, 300_000)
SPILLED_LENGTH = 6 << 20  # fits nowhere in a room of 8 MiB
KEPT: collections.deque[Any] = collections.deque(maxlen=3)


def array_of(number: int) -> Any:
    """The argument of task `number`."""
    lucky = random.Random(number)
    return payloads.array(number, SPILLED_LENGTH if lucky.random() < 0.005 else lucky.choice(ARRAY_LENGTHS))


def spoil(number: int, value: Any) -> tuple[int, Any, Any]:
    """Changes its argument in place; what a further attempt gets must not show that. Some arguments are kept."""
    value += 1
    if number % 5 == 0:
        KEPT.append(value)
    if number % 997 == 0:
        kept, digests = list(KEPT), [payloads.digest(kept) for kept in KEPT]
        time.sleep(0.002)
        assert digests == [payloads.digest(k) for k in kept], "what a task has kept has changed"
    return number, value, value[: number % 1000]


def check_spoilt(number: int, outcome: tuple[int, Any, Any]) -> None:
    wanted = array_of(number) + np.uint8(1)
    got, value, part = outcome
    assert got == number, f"{got} for {number}"
    assert payloads.digest(value) == payloads.digest(wanted), f"array {number} has wrong bytes"
    assert payloads.digest(part) == payloads.digest(wanted[: number % 1000]), f"part {number} has wrong bytes"


def _in_use() -> int:
    """Our memory, without what malloc keeps for later: large arrays that come and go leave much of that."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return payloads.rss()


def storm(kills: int, seed: int, folder: str, every: float = 0.015) -> dict[str, Any]:
    """Workers are killed while arrays go to and fro, until there were so many kills. The figures, and in the folder
    what a player writes there.

    AssertionError for a wrong or lost value, for units without an owner, and for memory that grows."""
    with contextlib.ExitStack() as stack:
        deaths, killed = (
            stack.enter_context(open(os.path.join(folder, name), "a", 1)) for name in ("outcomes", "kills")
        )
        stack.enter_context(listening(lambda *words: print(*words, file=deaths)))
        return _storm(kills, seed, folder, every, lambda *words: print(*words, file=killed))


def _storm(kills: int, seed: int, folder: str, every: float, log: Callable[..., None]) -> dict[str, Any]:
    lucky, stop, given = random.Random(seed), threading.Event(), 0
    dead: set[int] = set()
    start = payloads.started(
        WORKERS, 128, retries=MANY, initializer=work.open_ledger, initargs=(os.path.join(folder, "ledger"), folder)
    )
    with processes.nothing_left(), start as (pool, payload):
        witness = Witness(pool, WORKERS, HANG)
        segment, began = pool._client.segment, time.monotonic()
        monitor = payloads.rss(processes.monitor_pid(pool))

        def kill(pid: int) -> None:
            now = time.monotonic_ns()
            with contextlib.suppress(ProcessLookupError):  # it has left by itself
                os.kill(pid, signal.SIGKILL)
                if pid not in dead:
                    dead.add(pid)
                    log(pid, now, UNSEEN)

        def go_on() -> None:
            while not stop.wait(every):
                info = _core.slot_info(segment, lucky.randrange(WORKERS))
                if info["pid"] and info["phase"] == _core.IDLE and info["reaped"] <= info["generation"]:
                    kill(info["pid"])

        killer = threading.Thread(target=go_on)
        killer.start()
        held: collections.deque[tuple[int, Any]] = collections.deque(maxlen=40)
        early = 0
        try:
            while len(dead) < kills:
                numbers = range(given, given + 300)
                pairs = [(number, array_of(number)) for number in numbers]
                if given // 300 % 3 == 0:
                    futures = [pool.submit(spoil, *pair) for pair in pairs]
                    outcomes: Iterable[Any] = (future.result(HANG) for future in futures)
                else:
                    outcomes = pool.istarmap(spoil, iter(pairs), chunksize=1 if given // 300 % 3 == 1 else 8)
                for number, outcome in zip(numbers, outcomes, strict=True):
                    check_spoilt(number, outcome)
                    if lucky.random() < 0.1:
                        held.append((number, outcome))
                for number, outcome in held:
                    check_spoilt(number, outcome)
                given += 300
                if early == 0 and len(dead) >= kills // 4:
                    futures, outcomes, outcome, pairs = [], [], None, []
                    held.clear()
                    early = _in_use()
        finally:
            stop.set()
            killer.join()
        futures, outcomes, outcome, pairs = [], [], None, []
        held.clear()
        grown = _in_use() - early
        assert grown < 64 << 20, f"the client has grown by {grown >> 20} MiB"
        more = payloads.rss(processes.monitor_pid(pool)) - monitor
        assert more < 16 << 20, f"the monitor has grown by {more >> 20} MiB"
        assert pool.submit(int, "7").result(HANG) == 7
        for pid in processes.worker_pids(pool):  # with what they have kept
            kill(pid)
        payloads.settle(pool, len(pool._client.functions._alive))
        files = pool._client.options.folder
        assert not os.path.exists(files) or not [name for name in os.listdir(files) if name.startswith("arguments")]
        processes.await_deaths(dead)
        seen = witness.at_rest(0)
        pool.shutdown()
        assert payloads.memory(payload) == 0, "memory is left"
        assert not os.path.exists(files), "files are left"
        took = round(time.monotonic() - began, 1)
    return {
        **seen,
        "unfinished": pool._client.unfinished,
        "arrays": given,
        "kills": len(dead),
        "MiB grown": grown >> 20,
        "seconds": took,
        "seed": seed,
    }
