"""What Python does, many times, under callgrind: ``python -m benchmarks.micro.inside MARKS EXTENSION``, with a library
that writes the counts out, and ``ipc._core`` as it was built for this.

A pool with one worker, as any program uses it. Each side counts for itself: what the client does between two of its
marks, and the worker between two tasks that make marks. Most is done several times, and the cheapest counts: how
the two meet is chance. Cyclic garbage is not collected meanwhile.
"""

from __future__ import annotations

import ctypes
import gc
import importlib.util
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from itertools import chain, repeat
from typing import Any

_TIMES = 4
_LAYOUTS = 10
_ROUNDS, _FLYING = 8, 256
_gate = os.pipe()  # where the worker, which is forked later, is held
_marks: Any = None


def mark(name: str) -> None:
    _marks.mark(name.encode())


def noop(item: Any) -> Any:
    return item


def pair(item: Any) -> Any:
    return item, item


def noop_or_wait(item: int) -> Any:
    if item == 0:
        os.read(_gate[0], 1)
    return item


def pair_or_wait(item: int) -> Any:
    return noop_or_wait(item), item


def codecs() -> None:
    """Each call by itself, without the loop around it."""
    from pool import codec

    n = 200
    values = {"an int": 7, "a float": 2.5, "a short str": "some short text", "a tuple of two": (7, 2.5)}
    _count("loop", n, int, None)
    for what, value in values.items():
        _count(f"encode {what}, an argument", n, codec.encode_args, value)
        _count(f"encode {what}, a result", n, codec.encode_value, value)
        _count(f"decode {what}", n, codec.loads, codec.encode_value(value)[1])


def _count(name: str, n: int, call: Callable[[Any], Any], argument: Any) -> None:
    held = []
    for k in range(_LAYOUTS):
        held.append([bytes(97 * k * j % 5000) for j in range(50)])  # what malloc takes depends on what it has,
        held.append([bytes(size) for size in range(0, 480, 16)])  # and what Python's own does on whether a pool is full
        mark("between")
        if call is int:
            for _ in repeat(None, n):
                pass
        else:
            for _ in repeat(None, n):
                call(argument)
        mark(f"codec: {name}={n}")


def tasks() -> None:
    from pool import Pool

    with Pool(1) as pool:
        _one_by_one(pool, "one by one", noop_or_wait)
        _one_by_one(pool, "one by one, a tuple back", pair_or_wait)
        for name, run, n in (("futures", _futures, 300), ("chunks of 100", _chunks, 5000)):
            run(pool, n)
            for _ in range(_TIMES):
                pool.submit(mark, "between").result()
                mark("between")
                run(pool, n)
                mark(f"client: {name}={n}")
                pool.submit(mark, f"worker: {name}={n}").result()
        for _ in range(_TIMES):
            _waiting_for_the_worker(pool, "one by one", noop)
            _waiting_for_the_worker(pool, "one by one, a tuple back", pair)


def _waiting_for_the_worker(pool: Any, name: str, fn: Callable[[Any], Any]) -> None:
    """Counted with all tasks there, and nobody who waits for a result: else it would be chance how often the worker
    finds nothing or has to wake somebody, and either is dear."""
    pool.submit(wait_at_gate)
    results = pool.map(fn, range(_FLYING), chunksize=1)
    pool.submit(mark, f"worker: {name}={_FLYING}")
    os.write(_gate[1], b".")
    _let_it_work(pool)
    deque(results, maxlen=0)


def wait_at_gate() -> None:
    os.read(_gate[0], 1)
    mark("between")


def _let_it_work(pool: Any) -> None:
    """Until it has done all that is there."""
    segment = pool._client.segment
    while _core().counters(segment)["ready"] or _core().busy(segment)[0]:
        time.sleep(0.01)


def _one_by_one(pool: Any, name: str, fn: Callable[[Any], Any]) -> None:
    """Counted are rounds of the client, each with all results there and the worker held by the first task: else it
    would be chance how many come in one turn, and a turn is dear."""
    n = _FLYING - 1

    def between(nth: int) -> Iterator[int]:
        if nth > 0:
            mark(f"client: {name}+={n}")
        os.write(_gate[1], b".")
        _let_it_work(pool)
        mark("between")
        yield from ()

    items = chain.from_iterable(pieces for k in range(_ROUNDS + 1) for pieces in (range(n), between(k)))
    deque(pool.imap_unordered(fn, items, chunksize=1, buffersize=_FLYING), maxlen=0)


def _core() -> Any:
    return sys.modules["ipc._core"]


def _futures(pool: Any, n: int) -> None:
    for future in [pool.submit(noop, k) for k in range(n)]:
        future.result()


def _chunks(pool: Any, n: int) -> None:
    deque(pool.imap_unordered(noop, range(n), chunksize=100), maxlen=0)


def main() -> None:
    global _marks
    _marks = ctypes.CDLL(sys.argv[1])
    spec = importlib.util.spec_from_file_location("ipc._core", sys.argv[2])
    assert spec is not None
    assert spec.loader is not None
    sys.modules["ipc._core"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules["ipc._core"])
    gc.disable()
    codecs()
    tasks()


if __name__ == "__main__":
    # Under its own name, so that workers find the functions by name and not by value.
    from benchmarks.micro import inside

    inside.main()
