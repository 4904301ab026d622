"""What small steps take in time, by pyperf: ``python -m benchmarks times``, with pyperf's own options.

Other than the counts of instructions (`make micro`), these change with the machine and with what else runs there. So
compare two files made one after the other on one quiet machine::

    python -m benchmarks times -o before.json
    python -m benchmarks times -o after.json
    python -m pyperf compare_to before.json after.json --table

* ``codec: ...``: one value into bytes, or back
* ``payload: ...``: take room in the payload segment, copy there, free it, and what publishing and cancelling costs
* ``task: ...``: from the caller's call to its result, in a real pool with one worker
* ``wake: ...``: the same for one task whose worker, and whose caller, sleep before
"""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING, Any

from benchmarks.tasks import noop
from ipc import _core
from ipc.segment import Segment
from pool import Pool, codec

if TYPE_CHECKING:
    import pyperf

_ASLEEP_SECONDS = 0.002  # after which both sides have left their spinning behind
_SIZES = {"64 KiB": 1 << 16, "1 MiB": 1 << 20}
_VALUES = {"an int": 7, "a float": 2.5, "a short str": "some short text", "a tuple of two": (7, 2.5)}


def main(words: list[str]) -> int:
    try:
        import pyperf
    except ImportError:
        print("pyperf is not installed: make .venv/.extra-bench, or pip install pyperf")
        return 2
    runner = pyperf.Runner(program_args=("-m", "benchmarks", "times"))
    runner.parse_args(words)
    for what, value in _VALUES.items():
        runner.bench_func(f"codec: encode {what}", codec.encode_value, value)
        runner.bench_func(f"codec: decode {what}", codec.loads, codec.encode_value(value)[1])
    for what, size in _SIZES.items():
        runner.bench_time_func(f"payload: {what}", _payload, size)
    _tasks(runner)
    return 0


def _tasks(runner: pyperf.Runner) -> None:
    runner.bench_time_func("task: one by one", _map, 1)
    runner.bench_time_func("task: chunks of 100", _map, 100)
    runner.bench_time_func("task: futures", _futures)
    runner.bench_time_func("task: one in flight", _in_turn, 0.0)
    runner.bench_time_func("wake: one in flight, all asleep before", _in_turn, _ASLEEP_SECONDS)


def _payload(loops: int, size: int) -> float:
    segment = Segment.create(1, 1, rows=8, room=4 * size)
    try:
        client = segment.attach()
        _core.open_client(client)
        rows: list[tuple[str] | None] = [None] * 8
        data = bytes(size)
        began = time.perf_counter()
        for _ in range(loops):
            row = _core.publish(client, rows, ("args",), 0, 0, 0, 0, data, 0, 0, 0, 1)
            _core.cancel(client, rows, row)
        return time.perf_counter() - began
    finally:
        segment.close()


def _map(loops: int, chunksize: int) -> float:
    with _warm() as pool:
        began = time.perf_counter()
        deque(pool.imap_unordered(noop, range(loops), chunksize=chunksize), maxlen=0)
        return time.perf_counter() - began


def _futures(loops: int) -> float:
    with _warm() as pool:
        began = time.perf_counter()
        for future in deque(pool.submit(noop, k) for k in range(loops)):
            future.result()
        return time.perf_counter() - began


def _in_turn(loops: int, pause: float) -> float:
    """Only the time of the tasks, not that of the pauses before them."""
    with _warm() as pool:
        elapsed = 0.0
        for k in range(loops):
            if pause:
                time.sleep(pause)
            began = time.perf_counter()
            pool.submit(noop, k).result()
            elapsed += time.perf_counter() - began
        return elapsed


def _warm() -> Any:
    pool = Pool(1).start()
    pool.submit(noop, 0).result()
    return pool
