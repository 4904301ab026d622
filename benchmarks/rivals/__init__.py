"""Everything that is compared, ours first."""

from __future__ import annotations

from importlib.util import find_spec

from benchmarks.rivals.base import NotOffered, Rival
from benchmarks.rivals.dask import Dask
from benchmarks.rivals.executor import ProcessPoolExecutor
from benchmarks.rivals.joblib import Joblib
from benchmarks.rivals.loky import Loky
from benchmarks.rivals.mpire import Mpire
from benchmarks.rivals.multiprocess import MultiprocessPool
from benchmarks.rivals.multiprocessing import MultiprocessingPool
from benchmarks.rivals.ours import Ours
from benchmarks.rivals.pebble import Pebble
from benchmarks.rivals.ray import Ray

OURS = Ours.name
_ALL = (
    *(Ours(), MultiprocessingPool(), ProcessPoolExecutor(), MultiprocessPool(), Loky(), Joblib(), Mpire(), Pebble()),
    *(Dask(), Ray()),
)
RIVALS: dict[str, Rival] = {r.name: r for r in _ALL}


def missing(rival: Rival) -> str | None:
    """Why it cannot be measured here, or None."""
    return None if find_spec(rival.module) else f"{rival.package} is not installed"


__all__ = ["OURS", "RIVALS", "NotOffered", "Rival", "missing"]
