"""What a task can ask about the worker that it runs in: ``worker()``."""

from __future__ import annotations

import _thread
from collections.abc import Callable

from ipc import _core

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, SupportsFloat, SupportsIndex


class Worker:
    """The worker process that runs the task; see ``worker()``.

    Attributes:
        slot: its number, from 0 to one less than the number of workers. A replacement gets the slot of the dead.
        generation: how many workers the slot had before this one.
        state: a dict that lives as long as the process: what the initializer or a task puts there, later tasks find.
    """

    __slots__ = ("_segment", "generation", "slot", "state")

    def __init__(self, segment: object, slot: int, generation: int) -> None:
        self._segment = segment
        self.slot = slot
        self.generation = generation
        self.state: dict[Any, Any] = {}

    @property
    def attempt(self) -> int:
        """Which attempt of the task this is, from 1; 0 in the initializer. For a chunk: how often it was given out."""
        return _core.attempt(self._segment)[0]

    @property
    def deadline_left(self) -> float | None:
        """Seconds until the task is stopped for being over its ``timeout``; None: it has none."""
        return _core.attempt(self._segment)[1]

    def progress(self, x: SupportsFloat | SupportsIndex) -> None:
        """Tell how far the task is, for who watches the map: a fraction from 0 to 1, or any other number. It stands
        until the next task starts; NaN takes it back. Takes a fifth of a microsecond. Does nothing in a process that
        the task has forked. TypeError for what is no number."""
        _core.progress(self._segment, x)

    def __repr__(self) -> str:
        return f"<worker {self.slot}, generation {self.generation}>"


_process: tuple[Worker, Callable[[], bool]] | None = None  # of this process, and whether it runs something now
_inline: dict[int, Worker] = {}  # thread → the one that plays the worker there (max_workers=0)


def worker() -> Worker:
    """In a task, or in a pool's ``initializer``: the worker that runs it.

    Works in threads of the task, too, and in processes that it forks. RuntimeError anywhere else."""
    if _inline:
        found = _inline.get(_thread.get_ident())
        if found is not None:
            return found
    if _process is not None and _process[1]():
        return _process[0]
    for found in list(_inline.values()):  # a thread that a task has started there
        return found
    raise RuntimeError("worker() was called outside of a task: only what a pool runs has a worker")


def in_worker() -> bool:
    """Whether this process is a worker, or was forked by one."""
    return _process is not None


def be_worker(worker: Worker, active: Callable[[], bool]) -> None:
    """In a new worker process: what ``worker()`` returns while ``active()``."""
    global _process
    _process = worker, active
    _inline.clear()  # the client's


class playing:
    """``with playing(worker):`` this thread has that worker, until the end of the block."""

    __slots__ = ("_before", "_worker")

    def __init__(self, worker: Worker) -> None:
        self._worker = worker

    def __enter__(self) -> None:
        me = _thread.get_ident()
        self._before = _inline.get(me)
        _inline[me] = self._worker

    def __exit__(self, *_: object) -> None:
        if self._before is None:
            _inline.pop(_thread.get_ident(), None)
        else:
            _inline[_thread.get_ident()] = self._before


__all__ = ["Worker", "be_worker", "in_worker", "playing", "worker"]
