"""What a task can leave changed in its process for the tasks after it: ``Pool(recycle_changed=True)``.

Only what can be looked at in well below a millisecond. Not seen: what is in memory (globals, caches, ``sys.path``, the
state of random numbers), handlers that code in C has set, variables of ``os.putenv``, further open files, threads that
Python does not know, a thread in the place of one that has ended.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # the enums of `signal` take 45 µs for all handlers
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
_SIGNALS = tuple(sorted(signal.valid_signals()))
_TIMERS = (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF)
_STREAMS = (0, 1, 2)
_PRIVATE = 0o077  # as a umask nobody else gets anything: what a thread makes in that moment is not open to all

State = namedtuple(
    "State",
    "working_directory umask blocked_signals signal_handlers timers limits priority affinity environment locale"
    " garbage_collection recursion_limit standard_streams open_files threads",
)


def look() -> Any:
    """A State, to compare with another one."""
    umask = os.umask(_PRIVATE)
    os.umask(umask)
    return State(
        working_directory=_file("."),
        umask=umask,
        blocked_signals=signal.pthread_sigmask(signal.SIG_BLOCK, ()),
        signal_handlers=tuple(map(_signal.getsignal, _SIGNALS)),
        timers=tuple((left > 0, interval) for left, interval in map(signal.getitimer, _TIMERS)),
        limits=tuple(map(resource.getrlimit, _LIMITS)),
        priority=os.getpriority(os.PRIO_PROCESS, 0),
        affinity=os.sched_getaffinity(0),
        environment=dict(os.environ),
        locale=locale.setlocale(locale.LC_ALL),
        garbage_collection=(gc.isenabled(), gc.get_threshold()),
        recursion_limit=sys.getrecursionlimit(),
        standard_streams=(*map(_file, _STREAMS), sys.stdin, sys.stdout, sys.stderr),
        open_files=_open_files(),
        threads=threading.active_count(),
    )


def _file(file: str | int) -> tuple[int, int] | None:
    """Which file that is; None if it is none any more."""
    try:
        found = os.stat(file)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _open_files() -> set[tuple[int, tuple[int, int]]]:
    """But for the standard streams, and the directory that tells of them."""
    numbers = map(int, os.listdir("/proc/self/fd"))
    return {(fd, file) for fd in numbers if fd not in _STREAMS and (file := _file(fd)) is not None}


def between(before: Any, after: Any) -> str:
    """What differs, for people; empty if nothing does. Further files and fewer threads are no change."""
    differ = [
        name.replace("_", " ")
        for name, old, new in zip(State._fields, before, after, strict=True)
        if (new > old if name == "threads" else not old <= new if name == "open_files" else new != old)
    ]
    return ", ".join(differ)


def since(before: Any) -> str:
    """What differs now. What a task has made so that it cannot be asked differs, too."""
    try:
        return between(before, look())
    except Exception as error:
        return f"what cannot be looked at any more ({type(error).__name__})"


__all__ = ["State", "between", "look", "since"]
