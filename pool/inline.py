"""``max_workers=0``: the same API in the caller's own process and thread, for debuggers and profilers.

Values are encoded and decoded as on the way to a worker, so what cannot travel fails here too. Deadlines and memory
limits are not enforced: nobody is there to stop the caller.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable

from pool import chunks, codec
from pool.client import Client
from pool.context import Worker, playing
from pool.functions import Function
from pool.task import Task
from pool.worker_process import WorkerOptions

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, SupportsFloat, SupportsIndex


class _Target(Function):
    """A callable that need not travel."""

    __slots__ = ("fn",)

    def __init__(self, fn: Callable[..., Any]) -> None:
        super().__init__(1, 1, b"", codec.task_name(fn))
        self.fn = fn


def _with_shared(fn: Callable[..., Any]) -> Callable[..., Any]:
    """With shared objects in the place of their handles, as a worker gets it."""
    if "pool.share" not in sys.modules:
        return fn
    try:
        data, handles = codec.encode_function(fn, codec.main_functions())
        return codec.loads(data) if handles else fn
    except Exception:  # it need not travel
        return fn


class _Functions:
    def key(self, fn: Callable[..., Any], *, once: bool) -> Function:
        return _Target(_with_shared(fn))

    def by_reference(self, fn: Callable[..., Any]) -> None:
        return None


class _Here(Worker):
    """What `worker()` returns here: the caller, who plays the worker of slot 0."""

    __slots__ = ("_attempt", "_end")

    def __init__(self, state: dict[Any, Any], attempt: int = 0, timeout_ms: int = 0) -> None:
        super().__init__(None, 0, 0)
        self.state = state
        self._attempt = attempt
        self._end = time.monotonic() + timeout_ms / 1000 if timeout_ms else None

    @property
    def attempt(self) -> int:
        return self._attempt

    @property
    def deadline_left(self) -> float | None:
        return None if self._end is None else self._end - time.monotonic()

    def progress(self, x: SupportsFloat | SupportsIndex) -> None:
        math.isnan(x)  # TypeError for what is no number; else nothing: nobody can look meanwhile


class InlineClient(Client):
    """A client without processes: publishing a task runs it, so nothing is ever pending and nobody has to collect."""

    def __init__(self, options: WorkerOptions) -> None:
        super().__init__(1, options)
        self._started = False
        self._state: dict[Any, Any] = {}

    def start(self) -> None:
        if not self._started:
            self._started = True
            self.functions = _Functions()  # type: ignore[assignment]
            if self.options.initializer is not None:
                with playing(_Here(self._state)):
                    self.options.initializer(*self.options.initargs)

    def offer(self, task: Task) -> None:
        self._publish(task)
        self.pump()

    def pump(self, sink: object = None, own: list[Any] | None = None) -> bool:
        while self.queue:  # further attempts
            self._publish(self.queue.popleft())
        return False

    def at_work(self) -> tuple[int, tuple[tuple[int, float], ...]]:
        return 0, ()  # nobody can ask while something runs

    def submitted(self) -> None:
        pass

    def look_after(self) -> None:
        pass

    def _publish(self, task: Task) -> bool:
        try:
            if task.items:
                frames: list[Any] = []
                for part in chunks.sent(task.data, task.flags):
                    frames += self._attempt(task, part)
                task.sink.arrive(task, 0, frames, 0, 0)
            else:
                data = codec.join(task.data) if type(task.data) is tuple else task.data
                task.sink.arrive(task, *self._attempt(task, data), 0, 0)
        except BaseException as error:  # Ctrl-C goes on to the caller
            task.sink.fail(task, error)
            if not isinstance(error, Exception):
                raise
        return True

    def _attempt(self, task: Task, part: bytes | bytearray) -> tuple[int, Any]:
        fn, call = task.function.fn, task.flags >> 8  # type: ignore[attr-defined]
        try:
            argument = chunks.decode_part(part)
            with playing(_Here(self._state, task.attempt, task.timeout_ms)):
                if call == codec.CALL_ARGS:
                    value = fn(*argument[0], **argument[1])
                else:
                    value = fn(argument) if call == codec.CALL_ONE else fn(*argument)
            kind, data = codec.encode_value(value)
            return kind, codec.join(data) if type(data) is tuple else data
        except (Exception, SystemExit) as error:
            return codec.encode_error(error)
