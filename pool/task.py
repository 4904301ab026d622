"""What the client holds of a task while it is unfinished, and what it knows when the task's worker has died."""

from __future__ import annotations

import math
import os
import signal
from collections import namedtuple

from ipc import _core, process
from pool import capture, codec, retry
from pool.account import account_of, bytes_in
from pool.retry import FIRST, Again, Backoff, Tries

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from pool.account import Account
    from pool.functions import Function


class Policy(
    namedtuple("Policy", "timeout retries memory_limit capture_output backoff", defaults=(None, 0, 0, False, None))
):
    """How attempts of a task are treated: deadline of one attempt in seconds (None: none), further attempts after a
    failed one, bytes of memory that one attempt may add (0: any), whether what it prints is caught, how long a failed
    task waits (None: not at all)."""

    __slots__ = ()
    timeout: float | None
    retries: int
    memory_limit: int
    capture_output: bool
    backoff: Backoff | None

    @property
    def flags(self) -> int:
        """Flags of a row."""
        return _core.CAPTURE if self.capture_output else 0

    @property
    def timeout_ms(self) -> int:
        # What does not fit into 32 bits of milliseconds (seven weeks) is no limit.
        return 0 if self.timeout is None or self.timeout > 4e6 else max(1, math.ceil(self.timeout * 1000))


class Sink:
    """Who wants the outcome of tasks: what a Future and a running map have; nobody inherits it. Called under the
    client's lock."""

    policy: Policy
    row: int  # of its last publication; -1: in the queue
    idempotent: bool  # it may arrive a second time: that changes nothing
    dropped: bool  # nobody wants it: the queue skips its tasks
    holds_call: bool  # its tasks' `item` is (args, kwargs), not an item of the input
    ticket: int  # of the task that was last to wait for its time

    def arrive(self, task: Task, kind: int, data: Any, length: int, facts: bytes) -> None: ...
    def crashed(self, task: Task, drained: int, committed: list[Any], death: Death) -> None: ...
    def fail(self, task: Task, error: BaseException, drained: int = 0) -> None: ...  # so many items have arrived
    def rests(self, count: int) -> None: ...  # so many more of its tasks wait for their time, or fewer


class Task(
    namedtuple(
        "Task", "sink position function data flags timeout_ms item items tries since", defaults=(None, 0, FIRST, 0)
    )
):
    """One publication: a single call, or a chunk of ``count`` calls."""

    __slots__ = ()

    sink: Any  # Sink; a future in which nobody is interested any more still is its task's sink
    position: int  # of the (first) item in a map
    function: Function
    data: Any  # bytes, or a tuple of pieces
    flags: int  # calling convention << 8
    timeout_ms: int
    item: Any  # what the call was made with (a list in a chunk), for messages and for splitting a chunk
    items: int  # in a chunk, else 0
    tries: Tries
    since: int  # monotonic ns from which it waits for a worker; 0: since it was published

    @property
    def attempt(self) -> int:
        """Which execution this is, from 1."""
        return self.tries.attempt


class Death(namedtuple("Death", "task item condemned slot pid status reason stack peak facts output")):
    """The death of a worker, as the task that it ran has to know it.

    The exception is made by whoever reads it and not under the client's lock, because showing the arguments runs code
    of the caller.
    """

    __slots__ = ()
    task: Task
    item: int  # of a chunk, from 1; 0: it was being decoded
    condemned: bool
    slot: int
    pid: int
    status: int  # raw wait status
    reason: int  # the monitor's
    stack: str
    peak: int  # bytes that the task had added, if it was killed for that
    facts: bytes  # what it took until then
    output: str  # the last of what it printed, if that was caught

    @property
    def late(self) -> bool:
        """The attempt was over its deadline."""
        return self.condemned and self.reason == _core.DEADLINE

    @property
    def too_large(self) -> bool:
        """The attempt had added more memory than it may."""
        return self.condemned and self.reason == _core.MEMORY

    @property
    def killed(self) -> bool:
        """Somebody has called Future.kill(): the task is not to run again."""
        return self.condemned and not self.late and not self.too_large

    @property
    def how(self) -> str:
        """As ``how_it_ended``, for the task."""
        reason = self.reason
        if not (self.late or self.too_large or reason == _core.OOM):
            reason = _core.KILLED if self.condemned else _core.DIED
        return how_it_ended(self.status, reason)

    def error(self) -> BaseException:
        """WorkerCrashed, TaskTimeout, MemoryLimitExceeded or TaskKilled."""
        from pool import errors

        task, status, known = self.task, self.status, self.status != process.UNKNOWN_STATUS
        about: dict[str, Any] = {
            "task": task.function.name,
            "args_repr": describe_args(task, self.item),
            "slot": self.slot,
            "pid": self.pid,
            "attempt": task.attempt,
            "output": self.output,
        }
        error: BaseException
        if self.late:
            error = errors.TaskTimeout(timeout=task.sink.policy.timeout, stack=self.stack, **about)
        elif self.too_large:
            error = errors.MemoryLimitExceeded(limit=task.sink.policy.memory_limit, peak=self.peak, **about)
        elif self.killed:
            error = errors.TaskKilled(**about)
        else:
            crashes = task.tries.crashes + 1
            error = errors.WorkerCrashed(
                crashes=crashes,
                poison=crashes >= retry.MOST_CRASHES and task.attempt <= task.sink.policy.retries,
                signal=os.WTERMSIG(status) if known and os.WIFSIGNALED(status) else None,
                exitcode=os.WEXITSTATUS(status) if known and os.WIFEXITED(status) else None,
                oom=self.reason == _core.OOM,
                stack=self.stack,
                **about,
            )
        return capture.add_note(error, self.output)

    def account(self, encode_ns: int | None = None) -> Account:
        """What the attempt had cost until then."""
        task = self.task
        size = bytes_in(task) // max(1, task.items)
        return account_of(task.attempt, task.flags, size, None, 0, self.facts, 0, encode_ns, self.output or None)


def after_error(task: Task, kind: int, data: Any) -> Again | None:
    """The next attempt of a task, or of an item of a chunk, that has raised; None: its error is its outcome."""
    if kind not in codec.REPEATABLE or task.sink.dropped:
        return None
    if type(task.data) is int:  # its arguments were its own, and are gone; then it has no retries
        return None
    policy, why, asked = task.sink.policy, retry.RAISED, 0.0
    if kind == codec.RETRY_AFTER:
        why, asked = retry.ASKED, codec.wished_delay(data)
    elif kind == codec.DEFER:
        why = retry.DEFERRED
    return retry.after(task.tries, policy.retries, policy.backoff, why, asked)


def after_death(task: Task, death: Death) -> Again | None:
    """The same if its worker has died."""
    if death.killed or task.sink.dropped:
        return None
    policy, why = task.sink.policy, retry.LIMIT if death.late or death.too_large else retry.CRASHED
    short = death.too_large or (death.reason == _core.OOM and not death.late)
    return retry.after(task.tries, policy.retries, policy.backoff, why, alone=short)


_REASONS = {
    _core.DEADLINE: "timeout",
    _core.MEMORY: "memory limit",
    _core.OOM: "OOM",
    _core.KILLED: "killed",
    _core.RECYCLED: "recycled",
    _core.UNREADY: "not ready",
    _core.RESTARTED: "restarted",
    _core.CHANGED: "changed",
}


def how_it_ended(status: int, reason: int) -> str:
    """A worker's end in one or two words: a signal's name, ``exit code 3``, ``timeout``, ``memory limit``, ``OOM`` (the
    kernel wanted its memory), ``killed`` (by Future.kill()), ``recycled`` (it had done its share), ``restarted`` (by
    Pool.restart()), ``changed`` (a task had left its process so), ``not ready`` (a failed start), ``unknown``."""
    if reason in _REASONS:
        return _REASONS[reason]
    if status == process.UNKNOWN_STATUS:
        return "unknown"
    if not os.WIFSIGNALED(status):
        return f"exit code {os.WEXITSTATUS(status)}"
    try:
        return signal.Signals(os.WTERMSIG(status)).name
    except ValueError:  # a real-time signal has no name
        return f"signal {os.WTERMSIG(status)}"


_WORKER_FILE = f'File "{os.path.join(os.path.dirname(__file__), "worker_process.py")}"'


def trim_stack(text: str) -> str:
    """A worker's log without the frames below the task's function: ours, and those of the script that forked us."""
    kept, ours = [], False
    for line in text.splitlines():
        frame = line.startswith("  File ")
        ours = frame and (ours or _WORKER_FILE in line)
        if not ours:
            kept.append(line)
    return "\n".join(kept)


def describe_args(task: Task, item: int) -> str:
    """The arguments of a call for people, shortened; empty if they cannot be shown."""
    call = task.flags >> 8
    if task.items:
        return describe_call((task.item[max(0, item - 1)],), {})
    if call in (codec.CALL_ONE, codec.CALL_STAR) and not task.sink.holds_call:
        return describe_call((task.item,), {})
    return describe_call(*task.item)


def describe_call(args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    """What stands between the parentheses of a call, shortened; empty if it cannot be shown."""
    import reprlib

    short = reprlib.Repr()
    short.maxstring = short.maxother = 80
    try:
        return ", ".join([*map(short.repr, args), *(f"{k}={short.repr(v)}" for k, v in kwargs.items())])
    except Exception:  # user code in a repr must not cost the report
        return ""


__all__ = [
    "Death", "Policy", "Sink", "Task", "after_death", "after_error", "describe_args", "describe_call", "how_it_ended",
    "trim_stack",
]  # fmt: skip
