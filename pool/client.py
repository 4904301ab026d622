"""The client side: the truth about every accepted task.

::

    submit/imap ──▶ publish ──▶ row ──▶ worker ──▶ collect ──▶ sink.arrive
         │            ▲ no row          │ dies        ▲
         └──▶ queue ──┘                 └──▶ settle ──┴──▶ sink.crashed ──▶ again | sink.fail

A *sink* is who wants the outcome: a Future or a running map. Whoever waits collects for everybody (pool/waiting.py).
Everything here runs under ``lock`` unless it says otherwise, and never calls user code under it.
"""

from __future__ import annotations

import _thread
import contextlib
import math
import os
import reprlib
import sys
import threading
import weakref
from collections import deque, namedtuple
from concurrent.futures import BrokenExecutor

from ipc import _core, process
from pool import codec, launch, monitor, worker
from pool.functions import Function, FunctionStore
from pool.waiting import Waiting
from pool.worker import WorkerOptions

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

OPEN, DRAINING, CLOSED = range(3)


class Policy(namedtuple("Policy", "timeout retries", defaults=(None, 0))):
    """How attempts of a task are treated: deadline of one attempt in seconds (None: none), further attempts after a
    failed one."""

    __slots__ = ()
    timeout: float | None
    retries: int

    @property
    def timeout_ms(self) -> int:
        # What does not fit into 32 bits of milliseconds (seven weeks) is no limit.
        return 0 if self.timeout is None or self.timeout > 4e6 else max(1, math.ceil(self.timeout * 1000))


class Sink:
    """Who wants the outcome of tasks: what all sinks have; nobody inherits it. Called under the client's lock."""

    policy: Policy
    row: int  # of its last publication; -1: in the queue
    dropped: bool  # nobody wants it: the queue skips its tasks
    holds_call: bool  # its tasks' `item` is (args, kwargs), not an item of the input

    def arrive(self, task: Task, kind: int, data: Any, slot: int, run_us: int) -> None: ...
    def crashed(
        self, task: Task, item: int, drained: int, committed: list[Any], error: BaseException, again: bool
    ) -> None: ...
    def fail(self, task: Task, error: BaseException) -> None: ...


class Task(
    namedtuple("Task", "sink position function data flags timeout_ms item items attempt", defaults=(None, 0, 1))
):
    """One publication: a single call, or a chunk of ``count`` calls."""

    __slots__ = ()
    sink: Any  # Sink; a future in which nobody is interested any more still is its task's sink
    position: int  # of the (first) item in a map
    function: Function
    data: bytes
    flags: int  # calling convention << 8 | TIMED
    timeout_ms: int
    item: Any  # what the call was made with (a list in a chunk), for messages and for splitting a chunk
    items: int  # in a chunk, else 0
    attempt: int


_clients: weakref.WeakSet[Client] = weakref.WeakSet()


def all_clients() -> list[Client]:
    return list(_clients)


def _after_fork_in_child() -> None:
    for client in list(_clients):
        client.leave_to_parent()


os.register_at_fork(after_in_child=_after_fork_in_child)


class Client(Waiting):
    """One segment, one monitor, and all tasks that go through them."""

    def __init__(self, workers: int, options: WorkerOptions) -> None:
        super().__init__()
        # Reentrant, because code of the caller runs under it after a crash: the repr of arguments, and the pickling of
        # an item that goes again by itself. It may use the pool; `pump` does not enter itself.
        self.lock = threading.RLock()
        self.functions_lock = threading.RLock()
        self.workers = workers
        self.options = options
        self.state = OPEN
        self.error: BaseException | None = None  # why the pool ended, if not by shutdown
        self.queue: deque[Task] = deque()
        self.unfinished = 0  # futures that have no outcome yet
        self.tasks: list[Task | None] = []
        self.inbox: list[tuple[Task, int, Any, int, int]] = []
        self.notices: dict[tuple[int, int], str] = {}
        self.crashes = 0
        self.segment: Any = None
        self.room = 0
        self._running: launch.Running | None = None
        self._owner = os.getpid()
        self._left: Any = None
        self._pumping = False
        _clients.add(self)

    # ---- start and end

    def start(self) -> None:
        """Fork the monitor, which forks the workers. Raises OSError or MemoryError if the segment does not fit into
        memory."""
        if self._running is not None:
            return
        self._running = running = launch.start(self.workers, self.options)
        self.segment = running.segment
        self.room = running.room
        self.tasks = [None] * running.rows
        if not hasattr(self, "functions"):
            self.functions = FunctionStore(self.segment)
        else:
            self.functions.move(self.segment)

    def check_owner(self) -> None:
        if not self.owned():
            from pool.errors import PoolClosed

            raise PoolClosed(
                f"this pool belongs to process {self._owner}: make one of your own in process {os.getpid()}"
            )

    def check_open(self) -> None:
        if self.state == OPEN and self.error is None:  # a forked child's copy is CLOSED
            return
        self.check_owner()
        if self.error is not None:
            raise self.error.with_traceback(None)
        from pool.errors import PoolClosed

        raise PoolClosed

    def leave_to_parent(self) -> None:
        """In a forked child: the pool is not ours, and its segment is not mapped here."""
        if self.segment is not None:
            _core.forget(self.segment)
            self.segment = None
        if self._running is not None:
            launch.forget(self._running)
            self._running = None
        self.lock, self.functions_lock = threading.RLock(), threading.RLock()
        self.state = CLOSED
        self.reset_waiting()
        self._ended = True
        # Kept: finalisers of what they hold are the parent's to run. It happens in the monitor and in each worker.
        self._left = (self._left, self.tasks, self.queue)
        self.tasks, self.queue = [], deque()

    def owned(self) -> bool:
        """Whether this process made the pool (a forked child has a copy of the object)."""
        return self._owner == os.getpid()

    def idle_or_closed(self) -> bool:
        """Whether nothing that was accepted is unfinished."""
        return (
            self.state == CLOSED
            or self.segment is None
            or not (self.queue or self._pumping or self.inbox or any(task is not None for task in self.tasks))
        )

    def pending_futures(self) -> list[Any]:
        """The sinks of everything that is queued or published, once each. Under the lock."""
        return list(
            {
                id(t.sink): t.sink for t in [*self.tasks, *self.queue] if t is not None and hasattr(t.sink, "cancel")
            }.values()
        )

    def abandoned(self) -> None:
        """Nobody holds the pool any more. Called by a finaliser, so without the lock: the collector does the rest."""
        if self.state != CLOSED and self.owned() and self._running is not None:
            # In a thread of its own: the finaliser may have interrupted a holder of any lock.
            with contextlib.suppress(RuntimeError):  # the interpreter is exiting, and ends the pool itself
                _thread.start_new_thread(self.wake_collector, ())

    def draining(self) -> bool:
        return self.state == DRAINING

    def finish_draining(self) -> bool:
        if self.state == DRAINING and self.idle_or_closed():
            self.stop()
        return self.state == CLOSED

    def tidy(self) -> None:
        """With nothing in flight: give memory back. Takes the lock."""
        with self.lock:
            if self.segment is not None and self.idle_or_closed():
                _core.trim(self.segment)

    def function(self, fn: Any, *, once: bool) -> Function:
        """The key of a callable. Raises what pickling raised. Takes a lock of its own, because pickling runs code of
        the caller."""
        with self.functions_lock:
            return self.functions.key(fn, once=once)

    def stop(self, kill: bool = False) -> None:
        """End the processes: workers leave by themselves, or are killed with their groups. Not under the lock.
        Idempotent."""
        with self.lock:
            self.pump()  # what is done counts
            self.state = CLOSED
            running, self._running = self._running, None
            if running is None:
                return
            if self.queue or any(task is not None for task in self.tasks):
                self._fail_all(self.error or _pool_broken("the workers were terminated"))
            self.end_waiting()
            self.segment = None
            self.tasks = []
        self.announce()
        launch.stop(running, kill)

    def _break(self, error: BaseException) -> None:
        """The monitor is gone: nothing runs any more, and nothing is run again."""
        if self.error is None:
            self.error = error
        running, self._running = self._running, None
        self.state = CLOSED
        if running is not None:
            launch.sweep_up(running)  # first: who sees the error may start anew, beside nobody
        self._fail_all(self.error)
        self.segment = None
        self.tasks = []

    def _fail_all(self, error: BaseException) -> None:
        waiting = [task for task in self.tasks if task is not None] + list(self.queue)
        self.tasks = [None] * len(self.tasks)
        self.queue.clear()
        for task in waiting:
            task.sink.fail(task, error)

    # ---- publish

    def offer(self, task: Task) -> None:
        """Publish the task, or queue it behind those that have no row yet (and see whether rows have become free)."""
        queue = self.queue
        if not queue and self._publish(task):
            return
        queue.append(task)
        if len(queue) & 63 == 0:
            self.pump()

    def again(self, task: Task) -> None:
        """A further attempt: before everything that waits."""
        task.sink.row = -1
        self.queue.appendleft(task)

    def _publish(self, task: Task) -> bool:
        function = task.function
        row = _core.publish(
            self.segment, self.tasks, task, function.id, function.generation, function.unit, function.length,
            task.data, task.items, task.timeout_ms, task.flags, task.attempt,
        )  # fmt: skip
        if row >= 0:
            task.sink.row = row
            if task.timeout_ms and _core.monitor_must_look(self.segment):
                self._command(monitor.LOOK)
            return True
        if row == _core.TOO_LARGE:
            from pool.errors import PayloadTooLarge

            what = f"the arguments of {function.name}"
            task.sink.fail(task, PayloadTooLarge(what=what, size=len(task.data), limit=self.room // 2))
            return True
        return False

    def _publish_queue(self) -> None:
        queue = self.queue
        while queue:
            task = queue.popleft()
            if not task.sink.dropped and not self._publish(task):
                queue.appendleft(task)
                return

    def _command(self, message: bytes) -> None:
        if self._running is not None:
            # Full or gone: the monitor is looking anyway, or its death is noticed by the wait.
            with contextlib.suppress(OSError):
                self._running.commands.send(message)

    # ---- collect and settle

    def pump(self, sink: object = None, own: list[Any] | None = None) -> bool:
        """One turn: hand over what is done, settle the dead, publish what waits, wake whom it takes. True if anything
        was done.

        What belongs to ``sink`` is appended to ``own`` instead of arriving there, as (task, kind, data, slot, run_us).
        """
        if self.segment is None or self._pumping:
            return False
        self._pumping = True
        try:
            done = _core.collect(self.segment, self.tasks, self.inbox, 512, sink, self.inbox if own is None else own)
            if self.inbox:
                self._deliver()
            dead = _core.next_dead(self.segment)
            while dead is not None and self._can_report(*dead):
                self._settle(*dead)
                dead = _core.next_dead(self.segment)
            if self.queue:
                self._publish_queue()
            _core.flush(self.segment)
        except _core.Damaged as damage:
            self._replace_segment(damage)
            return True
        finally:
            self._pumping = False
        return bool(done)

    def _deliver(self) -> None:
        """Arrive, then pop: an interrupt between the two repeats an arrival, which sinks ignore; the other way round
        would lose one."""
        inbox = self.inbox
        inbox.reverse()
        while inbox:
            task, kind, data, slot, run_us = inbox[-1]
            task.sink.arrive(task, kind, data, slot, run_us)
            inbox.pop()

    def _can_report(self, slot: int, reaped: int) -> bool:
        """Import what the report of a death takes, before rows are taken from the dead: a failed or interrupted import
        would lose them. False: not now, as no file descriptor is left."""
        if "pool.errors" not in sys.modules:
            deaths = [_core.death(self.segment, slot, g) for g in range(max(0, reaped - _core.DEATHS), reaped)]
            if all(death is not None and death[2] == _core.RECYCLED for death in deaths):
                return True
        try:
            from pool.errors import WorkerCrashed  # noqa: F401
        except (ImportError, OSError):  # ImportError: another thread's import of it has just failed
            return False
        return True

    def _settle(self, slot: int, reaped: int) -> None:
        self._read_messages()
        dead: list[tuple[Task, int, int, int, int, list[Any]]] = []
        _core.settle(self.segment, self.tasks, slot, reaped, dead)
        while dead:
            task, state, item, generation, drained, committed = dead[-1]
            # The word has the low bits of the generation; the full number is one of the last few before `reaped`.
            full = reaped - ((reaped - generation) & _core.GENERATION_MASK)
            error, again = self._why(task, state, slot, full, item)
            dead.pop()
            task.sink.crashed(task, item, drained, committed, error, again)
        _core.settled(self.segment, slot, reaped)

    def _why(self, task: Task, state: int, slot: int, generation: int, item: int) -> tuple[BaseException, bool]:
        """What a death means for the task that its worker ran: the error, and whether a retry is possible. Counts
        crashes."""
        from pool.errors import TaskKilled, TaskTimeout, WorkerCrashed

        pid, status, reason = _core.death(self.segment, slot, generation) or (0, process.UNKNOWN_STATUS, _core.DIED)
        name, attempt = task.function.name, task.attempt
        stack = trim_stack(self.notices.pop((slot, generation), ""))
        if state == _core.CONDEMNED and reason == _core.DEADLINE:
            assert task.sink.policy.timeout is not None
            return TaskTimeout(
                timeout=task.sink.policy.timeout, task=name, stack=stack, slot=slot, pid=pid, attempt=attempt
            ), True
        if state == _core.CONDEMNED:
            return TaskKilled(task=name, slot=slot, pid=pid, attempt=attempt), False
        unknown = status == process.UNKNOWN_STATUS
        number = os.WTERMSIG(status) if not unknown and os.WIFSIGNALED(status) else None
        code = os.WEXITSTATUS(status) if not unknown and os.WIFEXITED(status) else None
        args = describe_args(task, item)
        self.crashes += 1
        return WorkerCrashed(
            task=name, args_repr=args, slot=slot, pid=pid, signal=number, exitcode=code, stack=stack, attempt=attempt
        ), True

    def _read_messages(self) -> None:
        """Logs of dead workers, which the monitor sent before it recorded their deaths; and why it gave up."""
        while self._running is not None:
            try:
                message = self._running.commands.recv(1 << 18)
            except OSError:
                return
            if message[:1] == monitor.NOTICE:
                slot, generation = monitor.WHO.unpack_from(message, 1)
                self.notices = {
                    k: v for k, v in self.notices.items() if k[0] != slot or k[1] >= generation - _core.DEATHS
                }
                self.notices[slot, generation] = message[1 + monitor.WHO.size :].decode(errors="replace")
            elif message[:1] == monitor.FAILED:
                from pool.errors import PoolStartError

                reason, _, text = message[1:].decode(errors="replace").partition("\0")
                self.error = PoolStartError(reason, traceback=text)
            else:
                return

    def check_monitor(self) -> None:
        """After a wait that ended empty: is the monitor alive? And look once at all rows, in case a hint was lost."""
        if self._running is None:
            return
        if launch.monitor_is_dead(self._running):
            self._read_messages()
            self._break(
                self.error
                or _pool_broken(
                    "the monitor process died: all workers are gone, and nothing that was unfinished is run again"
                )
            )
            return
        try:
            _core.idle_scan(self.segment)
        except _core.Damaged as damage:
            self._replace_segment(damage)

    def _replace_segment(self, damage: BaseException) -> None:
        """Something wrote into shared memory: all workers stop; what was published fails, what was not goes through a
        fresh segment."""
        from pool.errors import PoolBroken, SegmentCorrupt

        self._deliver()  # what was collected before the damage was found counts
        tasks, self.tasks, self.segment = self.tasks, [], None  # at once: maps publish without the lock
        running, self._running = self._running, None
        if running is not None:
            launch.stop(running, kill=True)
        error = SegmentCorrupt(f"shared memory was damaged, probably by native code in a task: {damage}")
        for task in tasks:
            if task is not None:
                task.sink.fail(task, error)
        try:
            self.start()
        except Exception as failed:
            self.error = PoolBroken(f"no fresh segment after the shared memory was damaged: {failed}")
            self.state = CLOSED
            self._fail_all(self.error)
            return
        self._publish_queue()

    # ---- one task

    def is_running(self, sink: Any) -> bool:
        """Whether the task of this future has been claimed. Takes the lock."""
        with self.lock:
            return self._published(sink) and _core.row_word(self.segment, sink.row)[0] not in (_core.READY, _core.FREE)

    def _published(self, sink: Any) -> bool:
        if sink.row < 0 or sink.row >= len(self.tasks):
            return False
        task = self.tasks[sink.row]
        return task is not None and task.sink is sink

    def cancel(self, sink: Any) -> bool:
        """Take back the task of this future if it has not been claimed. Takes the lock."""
        with self.lock:
            if self._published(sink):
                return bool(_core.cancel(self.segment, self.tasks, sink.row))
            sink.dropped = sink.row < 0  # it stands in the queue, which skips it
            return bool(sink.dropped)

    def kill(self, sink: Any) -> bool:
        """Condemn the running task of this future and have its worker killed. Takes the lock."""
        with self.lock:
            if not self._published(sink):
                return False
            state, _, _, _, word = _core.row_word(self.segment, sink.row)
            if state != _core.RUNNING or not _core.condemn(self.segment, sink.row, word):
                return False
            self._command(monitor.LOOK)
            return True

    def drop(self, sink: Any) -> None:
        """Take back everything of this sink that was not claimed. Takes the lock."""
        with self.lock:
            sink.dropped = True
            for row, task in enumerate(self.tasks):
                if task is not None and task.sink is sink and _core.cancel(self.segment, self.tasks, row):
                    sink.came(task.items or 1)
            waiting = [task for task in self.queue if task.sink is sink]
            if waiting:
                self.queue = deque(task for task in self.queue if task.sink is not sink)
                sink.came(sum(task.items or 1 for task in waiting))
            self._publish_queue()


def _pool_broken(text: str) -> BaseException:
    try:
        from pool.errors import PoolBroken
    except (ImportError, OSError):  # no file descriptor is left to import it with: its base, which is there
        return BrokenExecutor(text)
    return PoolBroken(text)


_WORKER_FILE = f'File "{worker.__file__}"'


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
    short = reprlib.Repr()
    short.maxstring = short.maxother = 80
    call = task.flags >> 8
    try:
        if task.items:
            return short.repr(task.item[max(0, item - 1)])
        if call in (codec.CALL_ONE, codec.CALL_STAR) and not task.sink.holds_call:
            return short.repr(task.item)
        args, kwargs = task.item
        return ", ".join([*map(short.repr, args), *(f"{k}={short.repr(v)}" for k, v in kwargs.items())])
    except Exception:  # user code in a repr must not cost the report
        return ""


__all__ = ["CLOSED", "DRAINING", "OPEN", "Client", "Policy", "Sink", "Task", "all_clients", "describe_args"]
