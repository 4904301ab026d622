"""How long and how often things are measured."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Sizes:
    """The scale of a suite. ``name`` says which of the three below it began as."""

    name: str
    runs: int
    seconds: float  # of one timed phase
    workers: int = 2
    idle_seconds: float = 5.0
    lazy_inputs: int = 1_000_000
    photos: int = 200
    late_rounds: int = 200  # of the search for a late start
    loops_per_us: float = 0.0  # of tasks.busy on this machine; the suite measures it once, for all
    photos_folder: str = ""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


FULL = Sizes("full", runs=5, seconds=1.0)
QUICK = Sizes("quick", runs=3, seconds=0.2, idle_seconds=5.0, photos=48, late_rounds=40)
TINY = Sizes("tiny", runs=1, seconds=0.02, idle_seconds=0.2, lazy_inputs=2_000, photos=2, late_rounds=3)
"""For the tests of the harness: the figures mean nothing."""
