"""``max_workers=0``: the same API in the caller's own process and thread, for debuggers and profilers.

Values are encoded and decoded as on the way to a worker, so what cannot travel fails here too. Deadlines and memory
limits are not enforced: nobody is there to stop the caller.
"""

from __future__ import annotations

import contextlib
import io
import math
import os
import resource
import sys
import time
from collections.abc import Callable

from ipc import _core, process
from ipc.segment import Segment
from pool import capture, chunks, codec
from pool.account import FACTS
from pool.client import Client
from pool.context import Worker, playing
from pool.functions import Function
from pool.tally import Snapshot, snapshot
from pool.task import Task
from pool.worker_options import WorkerOptions

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, SupportsFloat, SupportsIndex


_LOOK_NS = 1_000_000  # a shorter task has no CPU time of its own: as in a worker


class _Target(Function):
    """A callable that need not travel."""

    __slots__ = ("fn",)

    def __init__(self, fn: Callable[..., Any], number: Callable[[str], int]) -> None:
        name = codec.task_name(fn)
        super().__init__(1, 1, b"", name, number=number(name))
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


def _cpu_time() -> tuple[int, int]:
    """(user, system) ns of this process and of the children that it has waited for."""
    own, waited = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return int((own.ru_utime + waited.ru_utime) * 1e9), int((own.ru_stime + waited.ru_stime) * 1e9)


class _Functions:
    def __init__(self, number: Callable[[str], int]) -> None:
        self._number = number

    def key(self, fn: Callable[..., Any], *, once: bool) -> Function:
        return _Target(_with_shared(fn), self._number)

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

    ahead = 1  # else results would wait until the next items have run

    def __init__(self, options: WorkerOptions) -> None:
        super().__init__(1, options)
        self._slot: Any = None  # of a segment that nobody shares: where our time goes
        self._depth = 0
        self._state: dict[Any, Any] = {}

    def start(self) -> None:
        if self._slot is None:
            self.functions = _Functions(self.tally.number)  # type: ignore[assignment]
            segment = Segment.create(1, 1, rows=1, room=_core.UNIT_SIZE)
            try:
                self._slot = segment.attach()
            finally:
                segment.close()
            _core.slot_forked(self._slot, 0, os.getpid())
            _core.open_worker(self._slot, 0, 0)
            try:
                self._initialize()
            finally:
                _core.set_phase(self._slot, _core.IDLE)

    def _initialize(self) -> None:
        if self.options.initializer is not None:
            with playing(_Here(self._state)):
                self.options.initializer(*self.options.initargs)

    def _tear_down(self) -> None:
        """Without a deadline: nobody is there to stop it."""
        if self.options.teardown is not None:
            try:
                with playing(_Here(self._state)):
                    self.options.teardown()
            except Exception:
                sys.excepthook(*sys.exc_info())

    def restart(self, wait: bool) -> None:
        with self.lock:
            self.check_open()
            if self._slot is not None:
                self._tear_down()
                self._state.clear()
                self._initialize()

    def stop(self, kill: bool = False) -> None:
        super().stop(kill)
        if self._slot is not None and self.tally.last is None:
            if not kill:
                self._tear_down()
            _core.book_usage(self._slot, 0, *process.used(resource.getrusage(resource.RUSAGE_SELF)))
            self.tally.ended(self._slot, 1, time.monotonic_ns())

    def seen(self) -> Snapshot | None:
        if self._slot is None or self.tally.last is not None:
            return self.tally.last
        return snapshot(self._slot, 1)

    def offer(self, task: Task) -> None:
        self._publish(task)
        self.pump()

    def pump(self, sink: object = None, own: list[Any] | None = None, values: list[Any] | None = None) -> bool:
        while self.queue or self.delayed.waiting:  # further attempts
            if self.queue:
                self._publish(self.queue.popleft())
            else:
                self._sleep_until_due()
        return False

    def _sleep_until_due(self) -> None:
        """Who submits is who waits here."""
        try:
            while (due := self.delayed.next_due()) is not None and (left := due - time.monotonic()) > 0:
                time.sleep(left)
        except BaseException as error:  # Ctrl-C
            self._fail_all(error)
            raise
        self._call_delayed()

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
                facts = bytes(FACTS.size)  # nobody sizes chunks here
                for k, part in enumerate(chunks.sent(task.data, task.flags)):
                    kind, data, each = self._attempt(task, k, part)
                    frames += kind, data
                    facts += each
                task.sink.arrive(task, 0, frames, 0, facts)
            else:
                data = codec.join(task.data) if type(task.data) is tuple else task.data
                kind, data, facts = self._attempt(task, 0, data)
                task.sink.arrive(task, kind, data, len(data), facts)
        except BaseException as error:  # Ctrl-C goes on to the caller
            task.sink.fail(task, error)
            if not isinstance(error, Exception):
                raise
        return True

    def _attempt(self, task: Task, k: int, part: bytes | bytearray) -> tuple[int, Any, bytes]:
        before = _cpu_time()
        began = time.monotonic_ns()
        self._depth += 1
        try:
            if task.flags & _core.CAPTURE:
                kind, data = self._captured(task, part)
            else:
                kind, data = self._call(task, part)
        finally:
            self._depth -= 1
        ended = time.monotonic_ns()
        spent = (0, 0, 0)
        if ended - began >= _LOOK_NS:
            user, system = _cpu_time()
            spent = user - before[0], system - before[1], process.used(resource.getrusage(resource.RUSAGE_SELF))[1]
        facts = FACTS.pack(ended - began, max(0, began - (task.since or began)), *spent, os.getpid(), 0)
        # What a task runs here is part of its own time.
        _core.book(self._slot, ended if self._depth else began, ended)
        _core.count(self.tally.counts, task.function.number, task, k, kind, ended - began, *spent)
        self.tally.note_slow()
        return kind, data, facts

    def _captured(self, task: Task, part: bytes | bytearray) -> tuple[int, Any]:
        """With what Python code prints; not what programs do that it starts."""
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            kind, data = self._call(task, part)
        said = printed.getvalue().encode(errors="backslashreplace")
        if said:
            kind, data = capture.attach(kind, data, capture.packed(said))
        return kind, codec.join(data) if type(data) is tuple else data

    def _call(self, task: Task, part: bytes | bytearray) -> tuple[int, Any]:
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
        except KeyboardInterrupt:  # the caller's
            raise
        except BaseException as error:
            return codec.encode_error(error)
