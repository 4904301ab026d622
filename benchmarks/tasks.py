"""The functions that the workers run. Importable by name, so that pools that start fresh interpreters can take them."""

from __future__ import annotations

import io
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from numpy import float32
    from numpy.typing import NDArray


def noop(item: int) -> int:
    """Nothing; the item comes back, so that a sum proves that each ran once."""
    return item


def busy(loops: int) -> None:
    """CPU work that does not depend on the clock: a process that has to wait for a core gets nothing for free."""
    for _ in range(loops):
        pass


def begin(milliseconds: float) -> int:
    """When it began (CLOCK_MONOTONIC, ns), after sleeping for so long."""
    now = time.monotonic_ns()
    if milliseconds:
        time.sleep(milliseconds / 1000)
    return now


def slow_first(item: int) -> int:
    """Item 0 takes its time."""
    if item == 0:
        time.sleep(1.0)
    return item


def add_one(array: NDArray[float32]) -> NDArray[float32]:
    """A new array of the same size: the least work that reads all of one and writes all of the other."""
    return array + 1


def thumbnail(path: str) -> int:
    """Decode a JPEG wholly, shrink it with LANCZOS to fit into 256 x 256, encode it. Returns the number of bytes."""
    from PIL import Image

    with Image.open(path) as photo:
        photo.load()  # before thumbnail(), which would make the decoder skip most of the work
        photo.thumbnail((256, 256), Image.Resampling.LANCZOS)
        out = io.BytesIO()
        photo.save(out, "JPEG", quality=85)
    return out.tell()


def measure_loops_per_us() -> float:
    """How many loops of ``busy`` take a microsecond here: the fastest of some trials."""
    loops, best = 200_000, float("inf")
    for _ in range(20):
        start = time.perf_counter()
        busy(loops)
        best = min(best, time.perf_counter() - start)
    return loops / best / 1e6
