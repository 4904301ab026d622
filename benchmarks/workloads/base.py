"""The interface of a workload."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import TYPE_CHECKING

from benchmarks.rivals import RIVALS, Rival
from benchmarks.sizes import Sizes

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


class Workload:
    """What the rivals are made to do. ``measure`` runs in a fresh process, once a run, rival and case.

    Attributes:
        name: as on the command line.
        title: what it is, for people.
        metrics: metric → unit, in the order of the table; the first is what is compared.
        higher: more of the first metric is better.
        together: the processes of all rivals run side by side (for what needs no CPU).
    """

    name = ""
    title = ""
    metrics: Mapping[str, str] = MappingProxyType({})
    higher = True
    together = False

    def cases(self, sizes: Sizes) -> list[str]:
        return [""]

    def rivals(self, sizes: Sizes) -> list[str]:
        """Who takes part."""
        return list(RIVALS)

    def measure(self, rival: Rival, case: str, sizes: Sizes) -> dict[str, float]:
        raise NotImplementedError


@contextmanager
def started(rival: Rival, workers: int) -> Iterator[Rival]:
    rival.start(workers)
    yield rival
    rival.stop()  # not after an error: the process ends, and takes its workers with it


def take_all(results: Iterable[object], n: int) -> None:
    """Read the results to their end; there must be so many."""
    count = sum(1 for _ in results)
    if count != n:
        raise AssertionError(f"{count} results for {n} tasks")


THROUGHPUT = {
    "rate": "tasks/s",
    "cpu_us": "CPU µs/task",
    "client_cpu_us": "client CPU µs/task",
    "switches": "switches/1000",
}
