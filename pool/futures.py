"""``Future``: the standard one, cheap until somebody waits for it from outside.

A standard Future makes its Condition at birth, which is most of its cost. Ours makes it when somebody asks for it
(``wait``, ``as_completed``), and keeps the result as bytes until somebody reads it, so a result that is slow or
impossible to rebuild holds up nobody but its reader.
"""

from __future__ import annotations

import concurrent.futures
import threading
from collections.abc import Callable
from concurrent.futures._base import CANCELLED_AND_NOTIFIED, FINISHED, LOGGER, PENDING

from pool import capture, codec
from pool.account import Account, account_of, bytes_in
from pool.task import after_death, after_error

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from pool.client import Client
    from pool.task import Death, Policy, Task

_DONE = (FINISHED, CANCELLED_AND_NOTIFIED)


class Future(concurrent.futures.Future["Any"]):
    """A task's outcome. ``cancel()`` keeps its standard meaning (False once the task runs); ``kill()`` stops a running
    one."""

    _result: Any = None
    _exception: BaseException | None = None
    _done_callbacks: Any = ()
    _waiters: Any = ()
    _late: threading.Condition | None = None
    _told = False
    _raw: tuple[int, Any] | None = None
    _facts: tuple[Any, ...] | None = None  # an Account, or what it is made of when somebody asks
    encode_ns = 0  # what encoding the arguments took
    handles: Any = ()  # on shared objects among its arguments
    row = -1
    idempotent = True
    dropped = False
    holds_call = True
    ticket = 0

    def __init__(self, client: Client, policy: Policy) -> None:
        self._client = client
        self.policy = policy
        self._fate = PENDING

    # ---- the client's side; its lock is held

    def arrive(self, task: Task, kind: int, data: bytes, length: int, facts: bytes) -> None:
        if self._fate is not PENDING:
            return
        said: str | None = None
        if kind & codec.MORE:
            kind, data, said, length = self._unwrap(kind, data, length)
        if kind in codec.REPEATABLE and (again := after_error(task, kind, data)) is not None:
            self._client.again(task, again)
            return
        self._raw = (kind, data)
        self._name = task.function.name
        sent = task.data
        sent = len(sent) if type(sent) is bytes else bytes_in(task)
        self._facts = task.attempt, task.flags, sent, type(data), length, facts, said
        self._end()

    def _unwrap(self, kind: int, data: Any, length: int) -> tuple[int, Any, str | None, int]:
        """What is in a file, or has the task's output behind it."""
        said = None
        if kind & codec.SPILLED:
            kind, data = codec.fetch(kind, data)
            self._client.spilled += 1
            length = 0 if kind == codec.FAILED else len(data)
        if kind & codec.SAID:
            kind, said, extra = capture.detach(kind, data)
            length -= extra
        return kind, data, said, length

    def crashed(self, task: Task, drained: int, committed: list[Any], death: Death) -> None:
        if (again := after_death(task, death)) is not None:
            self._client.again(task, again)
        else:
            self._raw = (codec.DEATH, death)
            self._facts = death.account(self.encode_ns)
            self._end()

    def fail(self, task: Task, error: BaseException, drained: int = 0) -> None:
        if self._fate in _DONE:
            return
        self._exception = error
        self._end()

    def accepted(self) -> None:
        """It is a task now: somebody has to collect its outcome."""
        self._client.submitted()

    def rests(self, count: int) -> None:
        pass

    def fail_early(self, error: BaseException) -> None:
        """It never became a task."""
        self._exception = error
        self._fate = FINISHED

    def cancelled_early(self) -> None:
        """Its task was taken back."""
        if self._fate not in _DONE:
            self._end(CANCELLED_AND_NOTIFIED)

    def _end(self, fate: str = FINISHED) -> None:
        # Under the client's lock, as is the making of _late: whoever makes the Condition afterwards sees the state.
        self._fate = fate
        if self.handles:
            self.handles = ()
        client = self._client
        client.unfinished -= 1
        if self._late is not None:
            client.to_notify.append(self)
        if self._done_callbacks:
            client.to_call.append(self)

    # ---- waiting

    @property
    def _state(self) -> str:  # type: ignore[override]
        """What ``wait`` and ``as_completed`` read, holding the Condition: under it the state and the news of it are
        one. Otherwise they would see a future that is done, and then be told of it as one of the others."""
        return self._fate if self._late is None or self._told else PENDING

    @property
    def _condition(self) -> threading.Condition:  # type: ignore[override]
        if self._fate not in _DONE:
            self._client.check_owner()
        if self._late is None:
            with self._client.lock:
                if self._late is None:
                    self._waiters = []
                    self._told = self._fate in _DONE
                    self._late = threading.Condition()
            if self._fate not in _DONE:
                self._client.look_after()
        return self._late

    def notify(self) -> None:
        """Tell those who wait through the Condition. Not under the client's lock."""
        assert self._late is not None
        with self._late:
            if self._told:
                return
            self._told = True
            for waiter in self._waiters:
                if self._fate == CANCELLED_AND_NOTIFIED:
                    waiter.add_cancelled(self)
                elif self._exception is not None or (self._raw is not None and self._raw[0] not in codec.VALUES):
                    waiter.add_exception(self)
                else:
                    waiter.add_result(self)
            self._late.notify_all()

    def call(self) -> None:
        """Run the callbacks. Not under the client's lock."""
        callbacks, self._done_callbacks = self._done_callbacks, ()
        for callback in callbacks:
            try:
                self._call_one(callback)
            except BaseException:  # the collector is there for others too
                LOGGER.exception("exception calling callback for %r", self)

    def _call_one(self, callback: Callable[[Future], object]) -> None:
        try:
            callback(self)
        except Exception:
            LOGGER.exception("exception calling callback for %r", self)

    def _wait(self, timeout: float | None) -> None:
        if self._fate not in _DONE and not self._client.wait_for(self.done, timeout):
            self._client.check_owner()
            raise TimeoutError
        if self._fate == CANCELLED_AND_NOTIFIED:
            raise concurrent.futures.CancelledError

    def _decode(self) -> None:
        if self._raw is None:
            return
        kind, data = self._raw
        if kind == codec.DEATH:
            # Raises if no file descriptor is left for the import that it takes: then the next one who asks may get it.
            self._exception, self._raw = data.error(), None
            return
        try:
            if kind in codec.VALUES:
                self._result = codec.decode_value(kind, data, self._name)
            elif kind == codec.FAILED:
                self._exception = data
            else:
                self._exception = codec.decode_error(kind, data, self._name, self._client.room)
                account = self.account
                capture.add_note(self._exception, None if account is None else account.output)
        except Exception as error:
            self._exception = error
        self._raw = None

    @property
    def account(self) -> Account | None:
        """What the task has cost. None while it is unfinished, and if no worker has begun with it."""
        facts = self._facts
        if facts is not None and type(facts) is not Account:
            attempt, flags, sent, received, length, data, said = facts
            facts = self._facts = account_of(attempt, flags, sent, received, length, data, 0, self.encode_ns, said)
        return facts

    # ---- the standard interface

    def result(self, timeout: float | None = None) -> Any:
        """The value. Raises what the task raised (its ``__cause__`` has the remote traceback), an error of
        ``pool.errors``, CancelledError, or TimeoutError after ``timeout`` seconds of waiting (the task runs on)."""
        try:
            if self._fate is not FINISHED:
                self._wait(timeout)
            if self._raw is not None:
                self._decode()
            if self._exception is not None:
                raise self._exception
            return self._result
        finally:
            self = None  # type: ignore[assignment]  # no cycle through the traceback's frame

    def exception(self, timeout: float | None = None) -> BaseException | None:
        self._wait(timeout)
        self._decode()
        return self._exception

    def done(self) -> bool:
        return self._fate in _DONE

    def cancelled(self) -> bool:
        return self._fate == CANCELLED_AND_NOTIFIED

    def running(self) -> bool:
        return self._fate == PENDING and self._client.is_running(self)

    def cancel(self) -> bool:
        """True if the task will not run: it had not started (or was cancelled before)."""
        if self._fate == PENDING and self._client.cancel(self):
            self._client.announce()
        return self._fate == CANCELLED_AND_NOTIFIED

    def kill(self) -> bool:
        """Stop the task with all processes that it has started; it ends as ``TaskKilled`` and is not retried.

        True if it was condemned or cancelled, False if it had finished first; then its outcome stands.
        """
        return self.cancel() or (self._fate == PENDING and self._client.kill(self))

    def add_done_callback(self, fn: Callable[[concurrent.futures.Future[Any]], object]) -> None:
        """Call ``fn(future)`` when it is done: at once if it is, else from the pool's collector thread."""
        with self._client.lock:
            waiting = self._fate not in _DONE
            if waiting:
                self._done_callbacks = [*self._done_callbacks, fn]
        if waiting:
            self._client.look_after()
        else:
            self._call_one(fn)

    def __repr__(self) -> str:
        state = "running" if self.running() else self._fate.split("_")[0].lower()
        return f"<{type(self).__name__} at {id(self):#x} state={state}>"


def _show_attributes(future: Future) -> None:
    """The interpreter lays the attributes of a class's instances out by what it has seen set on the first few of them;
    what comes later costs each future a dict. Outcomes come later, wherever many tasks are submitted first."""
    for name in ("_client", "policy", "encode_ns", "_fate", "_raw", "_name", "_facts", "_result", "_exception"):
        setattr(future, name, None)


_show_attributes(Future.__new__(Future))

__all__ = ["Future"]
