"""``max_workers=0``: the same API in the caller's own process and thread, for debuggers and profilers.

Values are encoded and decoded as on the way to a worker, so what cannot travel fails here too; exceptions keep their
real traceback. Deadlines are not enforced: nobody is there to stop the caller.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from typing import Any

from pool import codec
from pool.client import Client, Task
from pool.functions import Function
from pool.worker import WorkerOptions


class InlineClient(Client):
    """A client without processes: publishing a task runs it."""

    def __init__(self, options: WorkerOptions) -> None:
        super().__init__(1, options)
        self.lock = threading.RLock()  # type: ignore[assignment]  # a task may submit another
        self._started = False
        self._numbers = itertools.count(1)
        self._targets: dict[int, Callable[..., Any]] = {}

    def start(self) -> None:
        if not self._started:
            self._started = True
            if self.options.initializer is not None:
                self.options.initializer(*self.options.initargs)

    def function(self, fn: Any, *, once: bool) -> Function:
        number = next(self._numbers)
        self._targets[number] = fn
        return Function(number, 1, 0, b"", codec.task_name(fn))

    def _publish(self, task: Task) -> bool:
        calls_once = task.flags >> 8 == codec.CALL_ARGS  # a map names its function many times
        fn = (self._targets.pop if calls_once else self._targets.__getitem__)(task.function.id)
        if task.items:
            frames: list[Any] = []
            for item in codec.loads(task.data):
                frames += self._attempt(fn, task, item)
            task.sink.arrive(task, 0, frames, 0, 0)
        else:
            task.sink.arrive(task, *self._attempt(fn, task, codec.loads(task.data)), 0, 0)
        return True

    def _attempt(self, fn: Callable[..., Any], task: Task, argument: Any) -> tuple[int, bytes]:
        call = task.flags >> 8
        try:
            if call == codec.CALL_ARGS:
                return codec.encode_value(fn(*argument[0], **argument[1]))
            return codec.encode_value(fn(argument) if call == codec.CALL_ONE else fn(*argument))
        except Exception as error:
            return codec.encode_error(error)
