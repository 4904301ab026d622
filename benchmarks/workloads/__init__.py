"""All workloads, in the order of the report."""

from __future__ import annotations

from benchmarks.workloads.arrays import Arrays
from benchmarks.workloads.base import Workload
from benchmarks.workloads.coarse import Busy, Thumbnails
from benchmarks.workloads.latency import Idle, RoundTrip, StartUp
from benchmarks.workloads.lazy import Lazy
from benchmarks.workloads.no_op import Chunks, Deadlines, Futures, NoOp, Scale, Scaling
from benchmarks.workloads.wake import Late, Wake

_ALL = (
    *(NoOp(), Futures(), RoundTrip(), Chunks(), Arrays(), StartUp(), Idle(), Lazy()),
    *(Scale(), Busy(), Thumbnails(), Wake(), Late(), Deadlines(), Scaling()),
)
WORKLOADS: dict[str, Workload] = {w.name: w for w in _ALL}

__all__ = ["WORKLOADS", "Workload"]
