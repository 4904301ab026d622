"""All exceptions of the pool, in one tree.

::

    PoolError
    ├── WorkerCrashed        the process that ran the task died    (also BrokenProcessPool)
    ├── TaskTimeout          an attempt ran past its deadline      (also TimeoutError)
    ├── MemoryLimitExceeded  an attempt took too much memory   (also MemoryError)
    ├── TaskKilled           somebody called Future.kill()
    ├── RemoteError          the task raised what can't be pickled
    ├── ResultNotPicklable   the task returned what can't be       (also pickle.PicklingError)
    ├── PayloadTooLarge      arguments or a result exceed the room
    ├── PoolClosed           the pool was shut down                (also RuntimeError)
    ├── PoolStartError       no worker could be started            (also BrokenProcessPool)
    ├── PoolBroken           the pool has ended unexpectedly       (also BrokenProcessPool)
    ├── SegmentCorrupt       something wrote into shared memory
    ├── Abort                raised by a task: fail now, no retry
    ├── RetryAfter           raised by a task: again, but not before so many seconds
    └── Defer                raised by a task: again, and this was no attempt

Code written for `concurrent.futures` catches `BrokenProcessPool`, and goes on doing so; but after `WorkerCrashed` the
pool is not broken: only this task failed. Every error pickles with its attributes, and so do subclasses of it,
whatever their constructor takes. `str()` is one line; a stack, where there is one, is a note (PEP 678), so that
tracebacks print it.
"""

import math
import pickle
import signal as signals
import sys
import threading

from ipc.sizes import show_size

# Most of what importing this file costs (some 15 ms) is this line. `except BrokenProcessPool` looks at real base
# classes and nothing else, so there is no lazy way round it; but the rest of the pool imports this file only where it
# makes an error.
if "concurrent.futures.process" in sys.modules or not threading._SHUTTING_DOWN:  # type: ignore[attr-defined]
    from concurrent.futures.process import BrokenProcessPool
else:
    # While the interpreter exits it lets nobody register the hook that this module has. As nobody can import it any
    # more to compare with, its base is as good.
    from concurrent.futures import BrokenExecutor as BrokenProcessPool  # type: ignore[assignment]

__all__ = [
    "Abort",
    "Defer",
    "MemoryLimitExceeded",
    "PayloadTooLarge",
    "PoolBroken",
    "PoolClosed",
    "PoolError",
    "PoolStartError",
    "RemoteError",
    "ResultNotPicklable",
    "RetryAfter",
    "SegmentCorrupt",
    "TaskKilled",
    "TaskTimeout",
    "WorkerCrashed",
]


class PoolError(Exception):
    """Base of everything in this module: `except PoolError` catches what the pool itself has to say about a task."""

    def __reduce__(self) -> tuple[object, ...]:
        # Exception's own way calls the class with `args`, which fails for every constructor that takes something else.
        return _blank, (type(self), self.args), self.__dict__


def _blank(cls: type[PoolError], args: tuple[object, ...]) -> PoolError:
    """An instance made without its constructor; pickle restores the attributes from the state afterwards."""
    error = cls.__new__(cls, *args)
    error.args = args  # TimeoutError is an OSError, whose __new__ leaves args empty when a subclass has an __init__
    return error


def _signal_name(number: int) -> str:
    try:
        return signals.Signals(number).name
    except ValueError:  # real-time signals between SIGRTMIN and SIGRTMAX have no name
        return f"signal {number}"


def _call(task: str, args_repr: str) -> str:
    return f"{task}({args_repr})" if args_repr else task


def _place(slot: int, pid: int, attempt: int) -> str:
    return f"slot {slot}, pid {pid}, attempt {attempt}"


class WorkerCrashed(PoolError, BrokenProcessPool):
    """The process that ran the task died: a signal, `os._exit`, or the kernel when memory ran out.

    Only this task failed. Its worker is replaced, no other task notices, and the pool goes on.

    Attributes:
        task: name of the task's function, e.g. `app.resize`.
        args_repr: what stood between the parentheses of the call, perhaps shortened; empty if unknown.
        slot: number of the worker in the pool, from 0.
        pid: process id of the worker that died.
        signal: number of the signal that ended it, `None` if it exited.
        exitcode: its exit status, `None` if a signal ended it. Both are `None` if nobody could find out.
        oom: `True` if the kernel killed it because memory ran out.
        stack: C or Python stack of the worker at the crash, `""` if there is none.
        attempt: which execution of the task this was, from 1.
        output: the last of what the task had printed, if that was caught (`capture_output`), else `""`.
        crashes: how many of them have ended like this.
        poison: `True` if retries were left, but a task that crashes its worker so often is not run again.
    """

    def __init__(
        self,
        *,
        task: str,
        args_repr: str = "",
        slot: int,
        pid: int,
        signal: int | None = None,
        exitcode: int | None = None,
        oom: bool = False,
        stack: str = "",
        attempt: int = 1,
        output: str = "",
        crashes: int = 1,
        poison: bool = False,
    ) -> None:
        if oom:
            reason = "killed by the kernel for want of memory (OOM)"
        elif signal is not None:
            reason = _signal_name(signal)
        elif exitcode is not None:
            reason = f"exit code {exitcode}"
        else:
            reason = "reason unknown"
        verdict = f"; not run again after {crashes} crashes" if poison else ""
        place = _place(slot, pid, attempt)
        super().__init__(f"worker died in {_call(task, args_repr)}: {reason} ({place}){verdict}")
        self.task = task
        self.args_repr = args_repr
        self.slot = slot
        self.pid = pid
        self.signal = signal
        self.exitcode = exitcode
        self.oom = oom
        self.stack = stack
        self.attempt = attempt
        self.crashes = crashes
        self.poison = poison
        if stack:
            self.add_note(f"Stack of the worker when it died:\n{stack}")
        self.output = output


class TaskTimeout(PoolError, TimeoutError):
    """An attempt ran longer than its `timeout`, so its worker was killed, with all processes that the task had started.

    A `TimeoutError` without the rest of this class comes from waiting (`Future.result(timeout=...)`): there the task
    runs on.

    Attributes:
        timeout: the deadline of the attempt, in seconds.
        task, args_repr, output: as in `WorkerCrashed`.
        stack: where the task was stuck, `""` if that could not be seen.
        slot: number of the worker in the pool, from 0.
        pid: process id of the worker that was killed.
        attempt: which execution of the task this was, from 1.
    """

    def __init__(
        self,
        *,
        timeout: float,
        task: str,
        args_repr: str = "",
        stack: str = "",
        slot: int,
        pid: int,
        attempt: int = 1,
        output: str = "",
    ) -> None:
        call, place = _call(task, args_repr), _place(slot, pid, attempt)
        super().__init__(f"{call} ran longer than its timeout of {timeout:g} s ({place})")
        self.timeout = timeout
        self.task = task
        self.args_repr = args_repr
        self.stack = stack
        self.slot = slot
        self.pid = pid
        self.attempt = attempt
        if stack:
            self.add_note(f"Stack of the task at its deadline:\n{stack}")
        self.output = output


class MemoryLimitExceeded(MemoryError, PoolError):  # in this order, because only MemoryError's own way makes one
    """An attempt added more memory to its worker than its `memory_limit`, so the worker was killed, with all processes
    that the task had started.

    A `MemoryError` without the rest of this class was raised by the task itself.

    Attributes:
        limit: bytes that the attempt was allowed to add.
        peak: bytes that it had added at most, as far as is known. More than the limit, for it went on until it was
            stopped.
        task, args_repr, output: as in `WorkerCrashed`.
        slot: number of the worker in the pool, from 0.
        pid: process id of the worker that was killed.
        attempt: which execution of the task this was, from 1.
    """

    def __init__(
        self,
        *,
        limit: int,
        peak: int,
        task: str,
        args_repr: str = "",
        slot: int,
        pid: int,
        attempt: int = 1,
        output: str = "",
    ) -> None:
        call = _call(task, args_repr)
        text = f"{call} took {show_size(peak)} of memory, more than its limit of {show_size(limit)}"
        super().__init__(f"{text} ({_place(slot, pid, attempt)})")
        self.limit = limit
        self.peak = peak
        self.task = task
        self.args_repr = args_repr
        self.slot = slot
        self.pid = pid
        self.attempt = attempt
        self.output = output


class TaskKilled(PoolError):
    """`Future.kill()` stopped the task while it ran, with all processes that it had started. It is never retried.

    Attributes:
        task, args_repr, output: as in `WorkerCrashed`.
        slot: number of the worker in the pool, from 0.
        pid: process id of the worker that was killed.
        attempt: which execution of the task this was, from 1.
    """

    def __init__(
        self, *, task: str, args_repr: str = "", slot: int, pid: int, attempt: int = 1, output: str = ""
    ) -> None:
        super().__init__(f"{_call(task, args_repr)} was killed ({_place(slot, pid, attempt)})")
        self.task = task
        self.args_repr = args_repr
        self.slot = slot
        self.pid = pid
        self.attempt = attempt
        self.output = output


class RemoteError(PoolError):
    """Stands for an exception of the task that could not be carried over, because it can't be pickled or unpickled.

    Attributes:
        type_name: the exception's class, with its module, e.g. `app.BadImage`.
        message: `str()` of the exception.
        traceback: the traceback in the worker, as text; `""` if there is none.
    """

    def __init__(self, *, type_name: str, message: str, traceback: str = "") -> None:
        super().__init__(f"{type_name}: {message}" if message else type_name)
        self.type_name = type_name
        self.message = message
        self.traceback = traceback
        if traceback:
            self.add_note(f"Traceback in the worker:\n{traceback}")


class ResultNotPicklable(PoolError, pickle.PicklingError):
    """The task ran to its end, but its result can't be pickled. It is not retried: the result would be no different.

    Attributes:
        task: name of the task's function.
        type_name: type of the result.
        reason: what pickle said.
    """

    def __init__(self, *, task: str, type_name: str, reason: str) -> None:
        super().__init__(f"{task} returned a {type_name} that can't be pickled: {reason}")
        self.task = task
        self.type_name = type_name
        self.reason = reason


class PayloadTooLarge(PoolError):
    """The arguments or the result of a task need more room than the pool can ever have.

    Attributes:
        what: the value that is too large, e.g. `"result of app.resize"`.
        size: its size in bytes.
        limit: the largest size that is possible, in bytes.
    """

    def __init__(self, *, what: str, size: int, limit: int) -> None:
        super().__init__(f"{what} is too large: {size:,} bytes, the limit is {limit:,}")
        self.what = what
        self.size = size
        self.limit = limit


class PoolClosed(PoolError, RuntimeError):
    """The pool was shut down, and takes no more tasks. Without arguments the message is the standard library's."""

    def __init__(self, message: str = "cannot schedule new futures after shutdown") -> None:
        super().__init__(message)


class PoolStartError(PoolError, BrokenProcessPool):
    """No worker could be started: an import or the initializer fails, or a resource is missing.

    `str()` ends with the last line of the traceback, which says why.

    Attributes:
        traceback: the traceback of a worker that failed, as text; `""` if there is none.
    """

    def __init__(self, message: str = "the pool could not be started", *, traceback: str = "") -> None:
        lines = traceback.strip().splitlines()
        super().__init__(f"{message}: {lines[-1].strip()}" if lines else message)
        self.traceback = traceback
        if lines:
            self.add_note(f"Traceback in the worker:\n{traceback}")


class PoolBroken(PoolError, BrokenProcessPool):
    """The pool ended without being asked to, because its monitor died or gave up.

    Everything that was unfinished ends with this error, and nothing is run again. Make a new pool.
    """


class SegmentCorrupt(PoolError):
    """Something wrote into the shared memory of the pool, most likely a C extension that a task called.

    The task may have run or not. Workers and memory are replaced, tasks that had not been handed out are not affected.
    """


class Abort(PoolError):
    """For a task to raise: it has failed for good, however many retries are left. The future gets this exception."""


class RetryAfter(PoolError):
    """For a task to raise: it shall run again, but not before `delay` seconds, whatever its `backoff` is.

    It spends an attempt as any other exception does; if no retries are left, the future gets this exception. The worker
    is free meanwhile.

    Attributes:
        delay: seconds, 0 or more. ValueError for anything else.
        reason: for people.
    """

    def __init__(self, delay: float, reason: str = "") -> None:
        self.delay = delay
        self.reason = reason
        super().__init__(f"again in {delay_of(self):g} s" + (f": {reason}" if reason else ""))


def delay_of(error: RetryAfter) -> float:
    """Its delay, if that is one. ValueError or TypeError else."""
    if not 0 <= (delay := float(error.delay)) < math.inf:
        raise ValueError("delay must be 0 or more seconds")
    return delay


class Defer(PoolError):
    """For a task to raise: what it needs is not there yet. It shall run again, behind everything that waits, and this
    was no attempt.

    It needs no retries. From the fourth time on the task waits before it runs again: 10 ms, twice as long each time, at
    most a second; so one that always defers itself does no harm, but it never ends unless it is cancelled. A task
    without retries whose arguments hold arrays cannot run again, for these are its own to change: its future gets this
    exception.
    """
