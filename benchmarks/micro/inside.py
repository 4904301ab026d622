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
from collections.abc import Callable
from itertools import islice, repeat
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
        held.append([bytes(97 * k * j % 5000) for j in range(50)])  # what malloc takes depends on what it has
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
        for name, fn in (("one by one", noop), ("one by one, a tuple back", pair)):
            _one_by_one(pool, name, fn)
            for _ in range(_TIMES):
                _waiting_for_the_worker(pool, name, fn)
        for name, run, n in (("futures", _futures, 300), ("chunks of 100", _chunks, 5000)):
            run(pool, n)
            for _ in range(_TIMES):
                pool.submit(mark, "between").result()
                mark("between")
                run(pool, n)
                mark(f"client: {name}={n}")
                pool.submit(mark, f"worker: {name}={n}").result()


def _waiting_for_the_worker(pool: Any, name: str, fn: Callable[[Any], Any]) -> None:
    """Counted with all tasks there, and nobody who waits for a result: else it would be chance how often the worker
    finds nothing or has to wake somebody, and either is dear."""
    gate = pool.submit(wait_at_gate)
    results = pool.map(fn, range(_FLYING), chunksize=1)
    last = pool.submit(mark, f"worker: {name}={_FLYING}")
    os.write(_gate[1], b".")
    _let_it_work(pool)
    for future in (gate, last):
        future.result()
    deque(results, maxlen=0)


def wait_at_gate() -> None:
    os.read(_gate[0], 1)
    mark("between")


def _let_it_work(pool: Any) -> None:
    segment = pool._client.segment
    while _core().counters(segment)["ready"] or _core().busy(segment)[0]:
        time.sleep(0.01)


def _one_by_one(pool: Any, name: str, fn: Callable[[Any], Any]) -> None:
    """Counted are rounds that begin with all results there: else it would be chance how many come in one turn of the
    client, and a turn is dear. What one round has not given away the next one does, so all of them count."""
    results = pool.imap_unordered(fn, range(_FLYING * (_ROUNDS + 1)), chunksize=1, buffersize=_FLYING)
    next(results)
    for _ in range(_ROUNDS):
        _let_it_work(pool)
        mark("between")
        deque(islice(results, _FLYING), maxlen=0)
        mark(f"client: {name}+={_FLYING}")
    deque(results, maxlen=0)


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
