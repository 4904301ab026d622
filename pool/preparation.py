"""What a process that was not forked from the client has to do before it can run tasks: the start methods
``forkserver`` and ``spawn``.

The client makes a ``Preparation`` (pool/fresh.py), the fresh monitor holds it, and each worker finishes it. How
``__main__`` is found and imported again is the way of ``multiprocessing``, so that scripts behave as they do there.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import warnings
from collections.abc import Callable, Iterator

from ipc import _core
from pool import codec

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_PARENT_DIED = signal.SIGRTMAX - 2


class Preparation:
    """What is to be imported, and the initializer.

    Args:
        main: how ``__main__`` is imported again, as ``multiprocessing.spawn.prepare`` takes it; empty: not at all (an
            interactive session, ``python -m package``). preload: modules that the monitor imports for its workers;
            ``"__main__"`` is the script. Without it each worker imports the script for itself. hooks: a pickle of
            the initializer, its arguments and the teardown."""

    def __init__(self, main: dict[str, Any], preload: list[str], hooks: bytes) -> None:
        self._main = main
        self._preload = preload
        self._hooks = hooks

    def in_monitor(self, client: int) -> None:
        """Import for all workers. Raises what the script raises at its top level. A missing module is left to the task
        that needs it."""
        if not self._preload:
            return
        with _ending_with(client):
            if "__main__" in self._preload:
                self._import_main()
            for name in self._preload:
                if name != "__main__":
                    with contextlib.suppress(ImportError):
                        __import__(name)
        names = [thread.name for thread in threading.enumerate() if thread is not threading.current_thread()]
        if names:
            text = f"the fork server forks while threads run that its imports have started ({', '.join(names[:5])}); "
            warnings.warn(text + "the start method 'spawn' imports in each worker", RuntimeWarning, stacklevel=2)

    def in_worker(self) -> tuple[Callable[..., object] | None, tuple[Any, ...], Callable[[], object] | None]:
        """Import what the monitor has not. The initializer, its arguments, and the teardown."""
        self._import_main()  # does nothing if the monitor has
        initializer, initargs, teardown = codec.loads(self._hooks)
        return initializer, initargs, teardown

    def _import_main(self) -> None:
        from multiprocessing import process, spawn

        current = process.current_process()
        current._inheriting = True  # type: ignore[attr-defined]  # who starts a pool at the script's top level is told
        try:
            spawn.prepare(self._main)
        finally:
            del current._inheriting  # type: ignore[attr-defined]


@contextlib.contextmanager
def _ending_with(client: int) -> Iterator[None]:
    """This process ends when the client does: an import can take long, and nothing else looks meanwhile."""

    def look(*_: object) -> None:
        if os.getppid() != client:  # else it was only the thread that had started us
            os._exit(1)

    signal.signal(_PARENT_DIED, look)
    _core.die_with_parent(_PARENT_DIED)
    look()  # it may have died before the line above
    try:
        yield
    finally:
        _core.die_with_parent(0)
        signal.signal(_PARENT_DIED, signal.SIG_DFL)


__all__ = ["Preparation"]
