"""What a task can leave changed in its process for the tasks after it: ``Pool(recycle_changed=True)``.

Only what can be looked at in some ten microseconds. Not seen: what is in memory (globals, the state of random numbers,
caches), open files, handlers that code in C has set, threads that Python does not know.
"""

from __future__ import annotations

import gc
import locale
import os
import resource
import signal
import sys
import threading
from collections import namedtuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_LIMITS = tuple(getattr(resource, name) for name in dir(resource) if name.startswith("RLIMIT_"))
_SIGNALS = tuple(sorted(number for number in signal.valid_signals() if number < signal.SIGRTMIN))
_STREAMS = (0, 1, 2)
_PRIVATE = 0o077  # as a umask nobody else gets anything: what a thread makes in that moment is not open to all

State = namedtuple(
    "State",
    "working_directory umask blocked_signals signal_handlers limits environment locale garbage_collection"
    " recursion_limit standard_streams threads",
)


def look() -> Any:
    """A State to compare with another one."""
    umask = os.umask(_PRIVATE)
    os.umask(umask)
    return State(
        working_directory=_file("."),
        umask=umask,
        blocked_signals=signal.pthread_sigmask(signal.SIG_BLOCK, ()),
        signal_handlers=tuple(map(signal.getsignal, _SIGNALS)),
        limits=tuple(map(resource.getrlimit, _LIMITS)),
        environment=dict(os.environ),
        locale=locale.setlocale(locale.LC_ALL),
        garbage_collection=(gc.isenabled(), gc.get_threshold()),
        recursion_limit=sys.getrecursionlimit(),
        standard_streams=(*map(_file, _STREAMS), sys.stdin, sys.stdout, sys.stderr),
        threads=threading.active_count(),
    )


def _file(file: str | int) -> tuple[int, int] | None:
    """Which file that is; None if it is none any more."""
    try:
        found = os.stat(file)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def between(before: Any, after: Any) -> str:
    """What differs, for people; empty if nothing does. Fewer threads than before are no change."""
    differ = [
        name.replace("_", " ")
        for name, old, new in zip(State._fields, before, after, strict=True)
        if (new > old if name == "threads" else new != old)
    ]
    return ", ".join(differ)


__all__ = ["State", "between", "look"]
