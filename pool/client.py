"""The client side: the truth about every accepted task.

::

    submit/imap ──▶ publish ──▶ row ──▶ worker ──▶ collect ──▶ sink.arrive
         │            ▲ no row          │ dies        ▲
         └──▶ queue ──┘                 └──▶ settle ──┴──▶ sink.crashed ──▶ again | sink.fail

A *sink* is who wants the outcome: a Future or a running map. Whoever waits collects for everybody (pool/waiting.py).
Everything here runs under ``lock`` unless it says otherwise, and no code of the caller runs under it, but for what
Python itself runs anywhere: finalisers and signal handlers. These may use the pool, but must not wait for a result.
(And at the start, with other start methods than fork, the pickling of the initializer.)
"""

from __future__ import annotations

import _thread
import contextlib
import os
import sys
import threading
import time
import weakref
from collections import deque
from concurrent.futures import BrokenExecutor

from ipc import _core, process
from ipc.memory import available_memory
from pool import capture, codec, messages, spill
from pool.admission import may_begin
from pool.delayed import Delayed
from pool.functions import Function, FunctionStore
from pool.interrupts import PutOff
from pool.retry import Again
from pool.tally import Snapshot, Tally, snapshot
from pool.task import Death, Policy, Task, trim_stack
from pool.waiting import Waiting
from pool.worker_options import WorkerOptions

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from pool.codec import Inherited
    from pool.launch import Running

OPEN, DRAINING, CLOSED = range(3)
_MOST = 512  # results collected in one turn
_MEMORY_SECONDS = 0.005  # between two looks at how much is available; one takes 0.3 ms


_clients: weakref.WeakSet[Client] = weakref.WeakSet()


def all_clients() -> list[Client]:
    return list(_clients)


def _after_fork_in_child() -> None:
    for client in list(_clients):
        client.leave_to_parent()


# Before: what the program holds in shared memory now may be read by the child, and is not freed under it.
os.register_at_fork(before=_core.forked, after_in_child=_after_fork_in_child)


class Client(Waiting):
    """One segment, one monitor, and all tasks that go through them.

    Attributes:
        ahead: a map gives away at most so many items before it looks for results; None: as many as keep workers busy.
    """

    ahead: int | None = None

    def __init__(self, workers: int, options: WorkerOptions) -> None:
        super().__init__()
        # Reentrant, because a finaliser or a signal handler that uses the pool may run in a thread that holds it;
        # `pump` does not enter itself.
        self.lock = threading.RLock()
        self.functions_lock = threading.RLock()
        self.workers = workers
        self.options = options
        self.state = OPEN
        self.error: BaseException | None = None  # why the pool ended, if not by shutdown
        self.queue: deque[Task] = deque()
        self.delayed = Delayed()  # (Task, whether it goes to the queue's end then), by time.monotonic()
        self.unfinished = 0  # futures that have no outcome yet
        self.tasks: list[Task | None] = []
        self.inbox: list[tuple[Task, int, Any, int, bytes]] = []
        self.notices: dict[tuple[int, int], str] = {}  # stacks of dead workers, by slot and generation
        self.last_words: dict[tuple[int, int], str] = {}  # and what they have printed
        self.crashes = 0
        self.inherited: Inherited = frozenset()  # see codec.by_value
        self.tally = Tally()
        self.spilled = 0  # values that went through files
        self.segment: Any = None
        self.room = 0
        self.reserve = 0  # bytes of memory below which no task begins beside others; 0: it does not matter
        self._look_again, self._is_short = 0.0, False
        self.large = sys.maxsize  # bytes of arguments that may need more than a look
        self._running: Running | None = None
        self._owner = os.getpid()
        self._left: Any = None
        self._pumping = False
        _clients.add(self)

    # ---- start and end

    def start(self) -> None:
        """Start the monitor, which forks the workers. Raises OSError or MemoryError if the segment does not fit into
        memory; with another start method than fork what pickling the initializer raised, and RuntimeError in a script
        that is being imported by a worker."""
        if self._running is not None:
            return
        from pool import launch  # with the code of monitor and worker

        with PutOff():  # a pool that is half there could not even be stopped
            again = hasattr(self, "functions")
            self._running = running = launch.start(self.workers, self.options, self.tally.counts, again)
            self.inherited = running.inherited
            self.tally.begin()
            self.segment = running.segment
            self.room = running.room
            self.large = min(self.room // 2, spill.LARGE)
            self.tasks = [None] * running.rows
            if not hasattr(self, "functions"):
                self.functions = FunctionStore(self.segment, self.inherited, self.tally.number)
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
            raise _copied(self.error)
        from pool.errors import PoolClosed

        raise PoolClosed

    def leave_to_parent(self) -> None:
        """In a forked child: the pool is not ours, and its segment is not mapped here."""
        if self.segment is not None:
            _core.forget(self.segment)
            self.segment = None
        if self._running is not None:
            self._running.forget()
            self._running = None
        self.lock, self.functions_lock = threading.RLock(), threading.RLock()
        self.state = CLOSED
        self.reset_waiting()
        self._ended = True
        # Kept: finalisers of what they hold are the parent's to run. It happens in the monitor and in each worker.
        self._left = (self._left, self.tasks, self.queue, self.delayed)
        self.tasks, self.queue, self.delayed = [], deque(), Delayed()

    def owned(self) -> bool:
        """Whether this process made the pool (a forked child has a copy of the object)."""
        return self._owner == os.getpid()

    def wire(self) -> Any:
        """The end of it on which event loops poll; None without workers. Under the lock, where it is open."""
        return None if self._running is None else self._running.wire[0]

    def idle_or_closed(self) -> bool:
        """Whether nothing that was accepted is unfinished."""
        return (
            self.state == CLOSED
            or self.segment is None
            or not (
                self.queue
                or self.delayed.waiting
                or self._pumping
                or self.inbox
                or any(t is not None for t in self.tasks)
            )
        )

    def pending_futures(self) -> list[Any]:
        """The sinks of everything that waits or is published, once each. Under the lock."""
        tasks = [t for t in [*self.tasks, *self._unpublished()] if t is not None]
        return list({id(t.sink): t.sink for t in tasks if hasattr(t.sink, "cancel")}.values())

    def _unpublished(self) -> list[Task]:
        return [*self.queue, *(task for task, _ in self.delayed.waiting.values())]

    def next_due(self) -> float | None:
        """When what waits for its time is to be given out. Under the lock."""
        return self.delayed.next_due() if self.delayed.waiting else None

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
            if self.segment is None or not self.idle_or_closed():
                return
            _core.trim(self.segment)
            if self.functions_lock.acquire(blocking=False):  # else somebody is about to use them
                try:
                    self.functions.forget_shared()
                finally:
                    self.functions_lock.release()

    def function(self, fn: Any, *, once: bool) -> Function:
        """The key of a callable. Raises what pickling raised. Takes a lock of its own, because pickling runs code of
        the caller."""
        with self.functions_lock:
            return self.functions.key(fn, once=once)

    def stop(self, kill: bool = False) -> None:
        """End the processes: workers leave by themselves, or are killed with their groups. Not under the lock.
        Idempotent."""
        with self.lock, PutOff():
            self.pump()  # what is done counts
            self.state = CLOSED
            running, self._running = self._running, None
            if running is None:
                return
            self._fail_all(self.error)
            self.end_waiting()
            self._leave_segment()
            self.functions.close()
            self.tally.ended(running.segment, self.workers, now := time.monotonic_ns())
        self.announce()
        running.stop(kill)
        self.tally.ended(running.segment, self.workers, now)  # again: now it is known what the dead have used

    def _break(self, error: BaseException) -> None:
        """The monitor is gone: nothing runs any more, and nothing is run again."""
        if self.error is None:
            self.error = error
        running, self._running = self._running, None
        self.state = CLOSED
        if running is not None:
            self.tally.ended(running.segment, self.workers, time.monotonic_ns())
            running.sweep_up()  # first: who sees the error may start anew, beside nobody
        self._fail_all(self.error)
        self._leave_segment()
        self.tell_loops()

    def _leave_segment(self) -> None:
        """Let go of it: its memory goes back when nobody holds results in it any more."""
        self.tasks, self.segment = [], None

    def _fail_all(self, error: BaseException | None) -> None:
        tasks = self._end_publishing() + [(task, 0) for task in self._unpublished()]
        self.tasks = [None] * len(self.tasks)
        self.queue.clear()
        self.delayed = Delayed()
        if error is not None:
            error = _copied(error)
        elif tasks:
            error = _pool_broken("the workers were terminated")
        for task, drained in tasks:
            task.sink.fail(task, error, drained)

    def _end_publishing(self) -> list[tuple[Task, int]]:
        """Publish nothing to this segment any more, and return what has a row, with how many items of each have arrived
        (of a chunk that waited for room). Maps publish without the lock: what came later would not be told its end."""
        if self.segment is not None:
            _core.close_client(self.segment)
        return [(task, _core.drained(self.segment, k)) for k, task in enumerate(self.tasks) if task is not None]

    def restart(self, wait: bool) -> None:
        """Have all workers that live now replaced. Not under the lock."""
        with self.lock:
            self.check_open()
            running, number = self._running, 0
        if running is None:
            return
        ours = running

        def ended() -> bool:
            return self._running is not ours

        while not number and not ended():
            with self.lock, contextlib.suppress(OSError):  # full of commands, or the monitor is dead: the wait finds it
                ours.commands.send(messages.RESTART)
                number = ours.restarts = ours.restarts + 1
            if not number:
                self.wait_for(ended, 0.01)
        if wait:
            self.wait_for(lambda: ended() or _core.renewed(ours.segment) >= number)
        if ended():
            self.check_open()

    # ---- publish

    def offer(self, task: Task) -> None:
        """Publish the task, or queue it behind those that have no row yet (and see whether rows have become free)."""
        queue = self.queue
        if not queue and self._publish(task):
            return
        if type(task.data) is tuple:  # pieces of what is the caller's to change after this
            try:
                task = task._replace(data=codec.snapshot(task.data))
            except MemoryError as error:
                task.sink.fail(task, error)
                return
        queue.append(task)
        if len(queue) & 63 == 0:
            self.pump()

    def again(self, task: Task, again: Again | None = None) -> None:
        """A further attempt, as ``again`` says; None: it has not had its attempt yet, and goes before everything that
        waits."""
        sink = task.sink
        sink.row = -1
        if again is None:
            self._enqueue(task, False)
            return
        task = task._replace(tries=again.tries)
        if not again.seconds:
            self._enqueue(task, again.last)
            return
        sink.rests(1)
        sink.ticket = self.delayed.add((task, again.last), time.monotonic() + again.seconds)
        if self.segment is not None and self.led_by_another():
            # It may be asleep until some later time. If it is only about to sleep, it comes a tenth of a second late.
            _core.ring_client(self.segment)

    def _enqueue(self, task: Task, last: bool) -> None:
        task = task._replace(since=time.monotonic_ns())
        if last:
            self.queue.append(task)
        else:
            self.queue.appendleft(task)

    def _call_delayed(self) -> None:
        """Queue what waits for its time no longer."""
        due, now = self.delayed.next_due(), time.monotonic()
        if due is not None and due <= now:
            with PutOff():
                for task, last in reversed(self.delayed.take(now)):
                    task.sink.rests(-1)
                    self._enqueue(task, last)

    def prepared(self, data: Any, flags: int, policy: Policy) -> tuple[Any, int]:
        """Data and flags of a task whose arguments are pieces, or longer than ``large``. Not under the lock."""
        if type(data) is tuple:
            flags |= _core.PACKED
            if policy.retries:  # a further attempt gets what this one got
                flags |= _core.REPEATABLE
                data = codec.snapshot(data)
        size = spill.size(data)
        if self.segment is not None and (size > self.room // 2 or spill.exceeds_memory(size)):
            with contextlib.suppress(OSError):  # `_publish` says what is too large
                spilled = spill.Spilled(self.options.folder, data)
                self.spilled += 1
                return spilled, flags | codec.IN_FILE
        return data, flags

    def _publish(self, task: Task) -> bool:
        if self.reserve and not self._admits(task):
            return False
        function, data, record, limit = task.function, task.data, task, task.sink.policy.memory_limit
        if type(data) is tuple and not task.flags & _core.REPEATABLE:
            record = task._replace(data=spill.size(data))  # the caller's memory is not held while the task runs
        row = _core.publish(
            self.segment, self.tasks, record, function.id, function.generation, function.unit, function.length,
            data, task.items, task.timeout_ms, task.flags, task.attempt, function.number, limit, task.since,
        )  # fmt: skip
        if row >= 0:
            task.sink.row = row
            if (task.timeout_ms or limit or task.flags & _core.CAPTURE) and _core.monitor_must_look(self.segment):
                self.tell_monitor_to_look()
            return True
        if row == _core.TOO_LARGE:
            try:
                return self._publish(self._spilled(task))
            except OSError as error:
                what = f"the arguments of {function.name}"
                task.sink.fail(task, codec.too_large(what, spill.size(data), self.room, error))
                return True
        return False

    def _admits(self, task: Task) -> bool:
        given = [other for other in self.tasks if other is not None]
        beside_alone = any(other.tries.alone for other in given)
        return may_begin(task.tries.alone, len(given), beside_alone, self.workers, self._memory_is_short)

    def _memory_is_short(self) -> bool:
        if (now := time.monotonic()) >= self._look_again:
            available = available_memory()
            self._is_short = available is not None and available < self.reserve
            self._look_again = now + _MEMORY_SECONDS
        return self._is_short

    def _spilled(self, task: Task) -> Task:
        """The same with its arguments in a file: room is held by what may never go. Raises OSError."""
        if task.flags & codec.IN_FILE:
            raise OSError("no room even for the name of a file")
        data = spill.Spilled(self.options.folder, task.data)
        self.spilled += 1
        return task._replace(data=data, flags=task.flags | codec.IN_FILE)

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

    def tell_monitor_to_look(self) -> None:
        """At the limits of what has just been published: it may sleep for longer."""
        self._command(messages.LOOK)

    # ---- collect and settle

    def pump(self, sink: object = None, own: list[Any] | None = None, values: list[Any] | None = None) -> bool:
        """One turn: hand over what is done, settle the dead, publish what waits, wake whom it takes. True if anything
        was done.

        What belongs to ``sink`` is appended to ``own`` instead of arriving there, as (task, kind, data, length,
        facts); what its single calls have returned to ``values``, where it is a number, None, or short.
        """
        if self.segment is None or self._pumping:
            return False
        self._pumping = True
        try:
            if self.delayed.waiting:
                self._call_delayed()
            to = self.inbox if own is None else own
            done = _core.collect(self.segment, self.tasks, self.inbox, _MOST, sink, to, values)
            if self.tally.found:
                self.tally.note_slow()
            dead = _core.next_dead(self.segment)
            inbox = self.inbox
            if (
                len(inbox) == 1
                and not (dead or self.queue)
                and inbox[0][0].sink.idempotent
                and inbox[0][1] not in codec.REPEATABLE  # it may have to be given out again, and once only
            ):
                self._deliver()  # an interrupt only repeats it, so it need not be put off: that costs a microsecond
            elif inbox or dead or self.queue:
                with PutOff():
                    self._deliver()
                    while dead is not None:
                        self._settle(*dead)
                        dead = _core.next_dead(self.segment)
                    self._publish_queue()
            _core.flush(self.segment)
        except _core.Damaged as damage:
            self._replace_segment(damage)
            return True
        finally:
            self._pumping = False
        if done == _MOST and self.led_by_another():  # which may sleep on what was left
            _core.ring_client(self.segment)
        return bool(done)

    def collect_all(self) -> None:
        """Hand over everything that is done by now. Takes the lock."""
        with self.lock:
            for _ in range(len(self.tasks) // _MOST + 1):
                self.pump()
        self.announce()

    def _deliver(self) -> None:
        """Arrive, then pop: a handler of another signal than SIGINT that raises between the two repeats an arrival,
        which futures ignore; the other way round would lose one."""
        inbox = self.inbox
        inbox.reverse()
        while inbox:
            task, kind, data, length, facts = inbox[-1]
            task.sink.arrive(task, kind, data, length, facts)
            inbox.pop()

    def _settle(self, slot: int, reaped: int) -> None:
        self._read_messages()
        self.tally.slot_died(self.segment, slot, reaped)
        dead: list[tuple[Task, int, int, int, int, list[Any], bytes]] = []
        try:
            _core.settle(self.segment, self.tasks, slot, reaped, dead)
        finally:  # Damaged: what was found before counts
            for task, state, item, generation, drained, committed, facts in dead:
                # The word has the low bits of the generation; the full number is one of the last few before `reaped`.
                full = reaped - ((reaped - generation) & _core.GENERATION_MASK)
                record = _core.death(self.segment, slot, full) or (0, process.UNKNOWN_STATUS, _core.DIED, 0)
                pid, status, reason, peak = record
                stack = trim_stack(self.notices.pop((slot, full), ""))
                said = self.last_words.pop((slot, full), "")
                death = Death(task, item, state == _core.CONDEMNED, slot, pid, status, reason, stack, peak, facts, said)
                self.crashes += not death.condemned
                self.tally.task_died(death)
                task.sink.crashed(task, drained, committed, death)
        _core.settled(self.segment, slot, reaped)

    def _read_messages(self) -> None:
        """Logs of dead workers, which the monitor sent before it recorded their deaths; and why it gave up."""
        while self._running is not None:
            try:
                message = self._running.commands.recv(1 << 18)
            except OSError:
                return
            if (what := message[:1]) in (messages.NOTICE, messages.OUTPUT):
                slot, generation = messages.WHO.unpack_from(message, 1)
                rest = message[1 + messages.WHO.size :]
                of = self.notices if what == messages.NOTICE else self.last_words
                for key in [k for k in of if k[0] == slot and k[1] < generation - _core.DEATHS]:
                    del of[key]
                of[slot, generation] = rest.decode(errors="replace") if of is self.notices else capture.text_of(rest)
            elif what == messages.FAILED:
                from pool.errors import PoolStartError

                reason, _, text = message[1:].decode(errors="replace").partition("\0")
                self.error = PoolStartError(reason, traceback=text)
            else:
                return

    def check_monitor(self) -> None:
        """After a wait that ended empty: is the monitor alive? And look once at all rows, in case a hint was lost."""
        if self._running is None:
            return
        if self._running.is_dead():
            self._read_messages()
            self._break(self.error or _why_gone(self._running))
            return
        try:
            _core.idle_scan(self.segment)
        except _core.Damaged as damage:
            self._replace_segment(damage)

    def _replace_segment(self, damage: BaseException) -> None:
        """Something wrote into shared memory: all workers stop; what was published fails, what was not goes through a
        fresh segment."""
        from pool.errors import PoolBroken, SegmentCorrupt

        with PutOff():
            self._deliver()  # what was collected before the damage was found counts
        tasks = self._end_publishing()
        self._leave_segment()
        running, self._running = self._running, None
        if running is not None:
            running.stop(kill=True)
        error = SegmentCorrupt(f"shared memory was damaged, probably by native code in a task: {damage}")
        for task, drained in tasks:
            task.sink.fail(task, error, drained)
        try:
            self.start()
        except Exception as failed:
            self.error = PoolBroken(f"no fresh segment after the shared memory was damaged: {failed}")
            self.state = CLOSED
            self._fail_all(self.error)
        else:
            self._publish_queue()
        self.tell_loops()

    # ---- for who shows what goes on; called without the lock

    def at_work(self) -> tuple[int, tuple[tuple[int, float], ...]]:
        """How many workers run something, and (slot, number) of those whose tasks tell their progress."""
        segment = self.segment
        return (0, ()) if segment is None else _core.busy(segment)

    def processes(self) -> list[int]:
        """Process ids of this program, the monitor and the workers."""
        running = self._running
        others = [] if running is None else [running.pid, *running.worker_pids()]
        return [os.getpid(), *(pid for pid in others if pid > 0)]

    def tell_terminal(self, path: str) -> None:
        """Whose scroll region the monitor is to end if this process is killed; empty: none."""
        if len(name := os.fsencode(path)) <= messages.LONGEST_PATH:
            with self.lock:
                self._command(messages.TERMINAL + name)

    # ---- for insights

    def seen(self) -> Snapshot | None:
        """What there is to see of the workers: now, or at the pool's end. None before the start."""
        return self.tally.last if self.segment is None else snapshot(self.segment, self.workers)

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
        with self.lock, PutOff():
            if self._published(sink):
                cancelled = bool(_core.cancel(self.segment, self.tasks, sink.row))
            else:
                cancelled = sink.dropped = sink.row < 0  # it stands in the queue, which skips it,
                self.delayed.remove(sink.ticket)  # or waits for its time
            if cancelled:
                sink.cancelled_early()
            return cancelled

    def kill(self, sink: Any) -> bool:
        """Condemn the running task of this future and have its worker killed. Takes the lock."""
        with self.lock:
            if not self._published(sink):
                return False
            state, _, _, _, word = _core.row_word(self.segment, sink.row)
            if state != _core.RUNNING or not _core.condemn(self.segment, sink.row, word):
                return False
            self._command(messages.LOOK)
            return True

    def drop(self, sink: Any) -> None:
        """Take back everything of this sink that was not claimed. Takes the lock."""
        with self.lock, PutOff():
            sink.dropped = True
            for row, task in enumerate(self.tasks):
                if task is not None and task.sink is sink and _core.cancel(self.segment, self.tasks, row):
                    sink.came(task.items or 1)
            waiting = [task for task in self.queue if task.sink is sink]
            if waiting:
                self.queue = deque(task for task in self.queue if task.sink is not sink)
                sink.came(sum(task.items or 1 for task in waiting))
            for ticket, (task, _) in list(self.delayed.waiting.items()) if sink.resting else ():
                if task.sink is sink and self.delayed.remove(ticket):
                    sink.rests(-1)
                    sink.came(1)
            self._publish_queue()


def _why_gone(running: Running) -> BaseException:
    """The error of a pool whose monitor is dead and has not said why."""
    if running.is_importing():
        from pool.errors import PoolStartError

        return PoolStartError("the interpreter for the monitor process ended before it had started a worker")
    return _pool_broken("the monitor process died: all workers are gone, and nothing that was unfinished is run again")


def _copied(error: BaseException) -> BaseException:
    """Another one of it, for those who raise it. A traceback holds frames, and these the pool, which our own must not:
    the pool's finaliser holds us."""
    import copy

    return copy.copy(error)


def _pool_broken(text: str) -> BaseException:
    try:
        from pool.errors import PoolBroken
    except (ImportError, OSError):  # no file descriptor is left to import it with: its base, which is there
        return BrokenExecutor(text)
    return PoolBroken(text)


__all__ = ["CLOSED", "DRAINING", "OPEN", "Client", "all_clients"]
