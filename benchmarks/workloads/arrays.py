from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks import tasks
from benchmarks.processes import Meter, family
from benchmarks.rivals import RIVALS, Rival
from benchmarks.sizes import Sizes
from benchmarks.stats import paced
from benchmarks.workloads.base import Workload, started

if TYPE_CHECKING:
    from numpy import float32
    from numpy.typing import NDArray

    Array = NDArray[float32]

_ARRAYS = {
    "gb_per_s": "GB/s",
    "cpu_us": "CPU µs/task",
    "client_cpu_us": "client CPU µs/task",
    "peak_mib": "memory MiB",
}
_KIB = {"64 KiB": 64, "1 MiB": 1024, "16 MiB": 16 * 1024}
_KEPT = 8  # of the results, as a program does that has more in mind with them than a sum


class Arrays(Workload):
    """Each argument is an array that was just made, each result one that the task made, and every byte is read."""

    name = "arrays"
    title = (
        "float32 arrays there and back: a new one for each task, a new one from it, all of it read, the last 8 kept; "
        "GB/s of arguments and results; memory: the highest sum of PSS, seen in a pass that is not timed"
    )
    metrics = _ARRAYS

    def cases(self, sizes: Sizes) -> list[str]:
        return list(_KIB)

    def rivals(self, sizes: Sizes) -> list[str]:
        """In a quick run: the fastest peer of each size, and what most programs use."""
        return ["pool", "executor", "loky", "pebble"] if sizes.name == "quick" else list(RIVALS)

    def measure(self, rival: Rival, case: str, sizes: Sizes) -> dict[str, float]:
        size = _KIB[case] * 1024
        with started(rival, sizes.workers):
            _pass_through(rival, size, _KEPT)  # the workers have to start; the first tasks say nothing about the pace
            n = paced(lambda n: _pass_through(rival, size, n), sizes.seconds, least=_KEPT)
            # Memory costs more when it is first used than whatever is done to it later, so this is the warm-up too.
            peak = _pass_through(rival, size, n, looks=8)
            with Meter() as meter:
                _pass_through(rival, size, n)
            rate = 2 * size * n / meter.seconds / 1e9
            return {**meter.per_task(n), "gb_per_s": rate, "peak_mib": peak / 2**20}


def _pass_through(rival: Rival, size: int, n: int, looks: int = 0) -> int:
    """The work, checked. Returns the highest of so many looks at the memory of all processes."""
    kept: deque[Array] = deque(maxlen=_KEPT)
    total = peak = 0
    for k, result in enumerate(rival.arrays(tasks.add_one, _fresh(size, n), n)):
        words = result.view("uint64")  # all the same; the sum of integers is exact, and the fastest way to read all
        if result.nbytes != size or int(words.sum()) != int(words[0]) * words.size % 2**64:
            raise AssertionError("a result is not what the task has returned")
        total += int(result[0]) - 1
        kept.append(result)
        if looks and k % (n // looks) == n // looks - 1:
            peak = max(peak, _memory())
    if total != sum(_value(k) for k in range(n)):
        raise AssertionError(f"{n} tasks gave a sum of {total}: some are missing or came twice")
    return peak


def _fresh(size: int, n: int) -> Iterator[Array]:
    """Never the same array twice: nothing could be known of it from before."""
    import numpy

    for k in range(n):
        yield numpy.full(size // 4, _value(k), numpy.float32)


def _value(k: int) -> int:
    return k % 64


def _memory() -> int:
    """Bytes of all processes, shared pages counted once."""
    total = 0
    for pid in family():
        try:
            text = Path(f"/proc/{pid}/smaps_rollup").read_text()
        except OSError:  # gone meanwhile
            continue
        total += sum(int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith("Pss:"))
    return total
