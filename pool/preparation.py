"""What a process that was not forked from the client has to do before it can run tasks: the start methods
``forkserver`` and ``spawn``.

The client makes a ``Preparation`` (pool/fresh.py), the fresh monitor holds it, and each worker finishes it. How
``__main__`` is found and imported again is the way of ``multiprocessing``, so that scripts behave as they do there.
"""

from __future__ import annotations

import contextlib
import threading
import warnings
from collections.abc import Callable

from ipc import _core
from pool import codec

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


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
        # Imports can take long, and nothing else looks meanwhile.
        _core.exit_with_parent(client)
        if "__main__" in self._preload:
            self._import_main()
        for name in self._preload:
            if name != "__main__":
                with contextlib.suppress(ImportError):
                    __import__(name)
        _core.exit_with_parent(0)
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


__all__ = ["Preparation"]
