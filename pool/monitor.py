"""The monitor process: the only one that forks and reaps. One loop, no threads, no user code, nothing that blocks.

::

    client pidfd / socket EOF ──▶ the client is gone: kill everything, exit
    commands (socket)         ──▶ stop · kill all · restart · look at deadlines and condemned rows
    worker pidfd / SIGCHLD    ──▶ reap: kill the group, wait, notice, death record, restart decision
    timers                    ──▶ deadlines · memory limits · the SIGKILL after a stack dump · restarts that wait

It runs embedded in a fork of the client's process, or in a fresh interpreter (pool/fresh.py), and leaves by
``os._exit``, so that nothing of the client is finalised twice.
"""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import math
import os
import select
import signal
import sys
import time

from ipc import _core, memory, process
from pool import capture, codec, spill, worker_process
from pool.messages import FAILED, KILL_ALL, LONGEST_PATH, LOOK, NOTICE, OUTPUT, RESTART, STOP, TERMINAL, WHO
from pool.output import remove_unfinished  # not the module: in the package, `output` is the function
from pool.restart import Restarts
from pool.task import trim_stack
from pool.worker_options import WorkerOptions

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _socket import socket
    from typing import NoReturn

    from pool.preparation import Preparation

_DUMP_SECONDS = 0.02  # a stack dump from a signal handler takes well under a millisecond,
_DUMP_MOST = 0.06  # but on a busy machine the worker may not run for a while
_STOP_SECONDS = 2.0  # workers that do not leave by themselves are killed after it
_LONGEST_SECONDS = 3600.0  # a damaged segment may name any time
_QUIET_SECONDS = 1.0  # without deadlines in flight, go on looking for so long before going idle
_GROUP_SECONDS = 1.0  # how long what a dead worker had started may take to be gone (a process can hang in the kernel)
_ORPHAN_SECONDS = 0.2  # from the end of the client's files to its own, at most
_READY_SECONDS = 0.01  # while workers are replaced, how often to look whether a new one is ready
_LOG_LIMIT = 64 * 1024
_SAID_LIMIT = 4000  # bytes: so much goes into any pipe that takes something at all
_REST = 10  # after a thorough look at memory, only fast ones for so many times as long as it took
_CHANGES = 100  # that tasks have left in their workers are told
_TRIM_SECONDS = 0.04  # between two looks at how much tasks have printed
_THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "BLIS_NUM_THREADS",
)


class _Worker:
    """What the monitor knows of the worker in one slot. ``pid`` 0: nobody lives there."""

    def __init__(self, slot: int, mark: int) -> None:
        self.slot = slot
        self.mark = mark  # what it starts has it too, see process.mark
        self.generation = 0
        self.retire = 0  # generations below are to be replaced
        self.seen_ready = -1  # the last generation that became ready, as far as somebody has looked
        self.pid = 0
        self.pidfd: int | None = None
        self.reason = _core.DIED
        self.kill_at: float | None = None  # when to look whether it has dumped its stack
        self.kill_by = 0.0
        self.status: int | None = None  # it was waited for; its process group may not be empty yet
        self.excess: tuple[memory.Use, memory.Start] | None = None  # why it was killed, if for its memory
        self.peak = 0  # what the task had added then
        self.settle_by = 0.0  # wait no longer than that for the group
        self.fork_at: float | None = 0.0
        self.log = os.memfd_create(f"pool-log-{slot}")
        self.outputs = os.memfd_create(f"pool-outputs-{slot}")
        self.said = capture.new_file(slot)


class Monitor:
    """See the module. ``run`` never returns."""

    def __init__(self, segment: object, marks: range, commands: socket, client: int, options: WorkerOptions) -> None:
        self._segment = segment
        self._options = options
        self._commands = commands
        self._client = client
        self._pid = os.getpid()
        self._workers = [_Worker(slot, mark) for slot, mark in enumerate(marks[1:])]
        self._restarts = Restarts(len(self._workers))
        self._stop_by: float | None = None
        self._restarts_asked = self._restarts_done = 0
        self._changes: set[str] = set()  # that are told
        self._terminal = ""
        self._quiet_since: float | None = -_QUIET_SECONDS - 1  # idle from the start
        self._oom_kills = memory.oom_kills()
        self._rest_until = 0.0  # no thorough look at memory before
        self._trim_at = 0.0
        self._poll = select.poll()
        self._wakeup = self._catch_signals()
        self._client_fd: int | None = None
        with contextlib.suppress(OSError):  # too many open files: the end of its socket will tell
            self._client_fd = process.open_pidfd(client)
        for fd in (self._wakeup, commands.fileno(), self._client_fd):
            if fd is not None:
                self._poll.register(fd, select.POLLIN)

    def _catch_signals(self) -> int:
        """SIGCHLD writes to a pipe, from C; SIGINT and SIGTERM are the client's affair."""
        read, write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        self._wakeup_write = write
        signal.signal(signal.SIGCHLD, lambda *_: None)
        return read

    def run(self) -> NoReturn:
        worker_process.set_title(f"{self._options.name}: monitor")
        gc.freeze()
        try:
            while True:
                timeout = self._work()
                self._handle(
                    self._poll.poll(None if timeout is None else min(max(0.0, timeout), _LONGEST_SECONDS) * 1000)
                )
        except SystemExit:
            pass
        except BaseException:
            sys.excepthook(*sys.exc_info())
        self._kill_everything()
        self._read_last_commands()
        if self._terminal and self._client_was_killed():
            with contextlib.suppress(Exception):  # no file descriptor left to import it with
                from pool import terminal

                terminal.give_back(self._terminal)
        os._exit(0)

    # ---- one turn: what is due now, and how long until the next thing is

    def _work(self) -> float | None:
        now = time.monotonic()
        waits = [self._check_limits(now)]
        if self._restarts_done != self._restarts_asked:
            waits.append(self._renew())
        for w in self._workers:
            if w.kill_at is not None:
                if w.kill_at <= now and (w.kill_by <= now or os.fstat(w.log).st_size):
                    w.kill_at = None
                    process.kill_group(w.pid)
                elif w.kill_at <= now:
                    waits.append(0.005)
                else:
                    waits.append(w.kill_at - now)
            if w.status is not None:
                waits.append(0.001)  # SIGCHLD tells only of those in its group who come to us
            if w.pid == 0 and w.fork_at is not None and self._stop_by is None:
                waits.append(self._restart(w, now))
        if self._stop_by is not None:
            if not any(w.pid for w in self._workers) or self._stop_by <= now:
                raise SystemExit
            waits.append(self._stop_by - now)
        return min((w for w in waits if w is not None), default=None)

    def _restart(self, w: _Worker, now: float) -> float | None:
        assert w.fork_at is not None
        if w.fork_at > now:
            return w.fork_at - now
        if not _core.may_fork(self._segment, w.slot, w.generation):
            return 0.1  # its death log is full: the client has to settle first
        self._fork(w)
        return None if w.pid else max(0.0, w.fork_at - now)  # the fork itself may have failed

    def _check_limits(self, now: float) -> float | None:
        """Condemn what is over its deadline or its memory limit; how long until the next look.

        Looks every shortest deadline (or time in which a limit may be reached) even if nothing that has one is in
        flight, for a second; then it goes idle (no timer at all), and the client has to send LOOK."""
        idle = self._quiet_since is not None and now - self._quiet_since > _QUIET_SECONDS
        armed, wait, expired = _core.deadlines(self._segment, idle)
        condemned = False
        for slot, generation, row, _, word, _ in expired:
            w = self._workers[slot]
            if w.generation == generation and w.pid and w.status is None and _core.condemn(self._segment, row, word):
                condemned = True
                w.reason = _core.DEADLINE
                w.kill_at, w.kill_by = now + _DUMP_SECONDS, now + _DUMP_MOST
                with contextlib.suppress(ProcessLookupError):
                    os.kill(w.pid, worker_process.DUMP_SIGNAL)  # not yet reaped, so the pid is ours
        if condemned:
            return 0.0
        if armed:
            self._quiet_since = None
            self._trim_outputs(now)
            soon = self._check_memory(now)
            wait = soon if wait is None or (soon is not None and soon < wait) else wait
        elif self._quiet_since is None:
            self._quiet_since = now
        return None if wait is None else max(wait, 0.001)

    def _check_memory(self, now: float) -> float | None:
        """Condemn and kill what has added more memory than its limit, at once: it goes on filling meanwhile. How long
        until one of the others may have."""
        limited = _core.limited(self._segment)
        if not limited:
            return None
        orphans: dict[int, list[int]] = {}
        with contextlib.suppress(OSError):  # no file descriptor left: we look again when there may be one
            orphans = self._orphans()
        waits = []
        thorough = now >= self._rest_until
        for slot, generation, row, word, limit, *noted in limited:
            w, start = self._workers[slot], memory.Start(*noted)
            if w.generation != generation or not w.pid or w.status is not None:
                continue
            if not start.ns:  # it has claimed the task, and notes its memory now
                waits.append(memory.seconds_to_look(0))
                continue
            try:
                use = memory.added_since(start, w.pid, limit, orphans.get(w.mark, ()), thorough)
            except OSError:
                waits.append(memory.seconds_to_look(limit))
                continue
            if use.added <= limit:
                waits.append(memory.seconds_to_look(limit - use.added))
            elif _core.condemn(self._segment, row, word):
                w.reason, w.excess = _core.MEMORY, (use, start)
                process.kill_group(w.pid)
        ended = time.monotonic()
        if thorough:  # one that had no reason to be slow costs nothing
            self._rest_until = ended + _REST * (ended - now)
        return max(min(waits), ended - now) if waits else None

    def _trim_outputs(self, now: float) -> None:
        if now >= self._trim_at:
            self._trim_at = now + _TRIM_SECONDS
            for w in self._workers:
                capture.keep_small(w.said)

    def _orphans(self) -> dict[int, list[int]]:
        """By mark: what tasks have started and what has become our child, because who had started it is gone."""
        found: dict[int, list[int]] = {}
        workers = {w.pid for w in self._workers}
        for pid in process.children_of(self._pid):
            if pid not in workers:
                found.setdefault(process.mark_of(pid), []).append(pid)
        return found

    # ---- events

    def _handle(self, events: list[tuple[int, int]]) -> None:
        for fd, _ in events:
            if fd == self._client_fd:
                raise SystemExit
            if fd == self._wakeup:
                with contextlib.suppress(BlockingIOError):
                    os.read(fd, 4096)
                self._reap_strangers()
            elif fd == self._commands.fileno():
                self._command()
        if any(w.status is not None for w in self._workers):
            self._reap_strangers()  # a zombie counts as one of the group
        for w in self._workers:  # covers pidfds, SIGCHLD where there are none, and both at once
            if w.pid:
                self._reap(w)

    def _command(self) -> None:
        try:
            message = self._commands.recv(1 + LONGEST_PATH)
        except BlockingIOError:
            return
        except OSError:
            message = b""
        if not message:  # end of file: the client is gone
            raise SystemExit
        if message == KILL_ALL:
            self._stop_by = -math.inf
        elif message == STOP and self._stop_by is None:
            _core.stop_workers(self._segment)
            self._stop_by = time.monotonic() + _STOP_SECONDS + self._options.grace
        elif message == RESTART:
            self._retire_all()
        elif message == LOOK:
            self._quiet_since = None
            self._kill_condemned()
        elif message[:1] == TERMINAL:
            self._terminal = os.fsdecode(message[1:])

    def _read_last_commands(self) -> None:
        """Which line the client had, if it was told and not yet read."""
        with contextlib.suppress(OSError):
            while message := self._commands.recv(1 + LONGEST_PATH):
                if message[:1] == TERMINAL:
                    self._terminal = os.fsdecode(message[1:])

    def _client_was_killed(self) -> bool:
        """Its files are closed a moment before its children are given to another parent."""
        until = time.monotonic() + _ORPHAN_SECONDS
        while os.getppid() == self._client:
            if self._stop_by is not None or time.monotonic() > until:
                return False
            time.sleep(0.001)
        return True

    def _kill_condemned(self) -> None:
        """Kill the workers whose rows the client has condemned, and only those whose rows still say so."""
        for w in self._workers:
            if not w.pid or w.status is not None or w.reason != _core.DIED:
                continue  # nobody there, or its death is on its way
            if self._is_condemned(w):
                w.reason = _core.KILLED
                process.kill_group(w.pid)

    def _is_condemned(self, w: _Worker) -> bool:
        """Whether the row that it has claimed is; until its death is settled it stays so."""
        running = _core.running(self._segment, w.slot)  # of this generation
        return running is not None and _core.row_word(self._segment, running[2])[0] == _core.CONDEMNED

    # ---- life and death of workers

    def _fork(self, w: _Worker) -> None:
        os.ftruncate(w.log, 0)
        os.lseek(w.log, 0, os.SEEK_SET)
        os.ftruncate(w.said, 0)
        w.reason = _core.DIED
        w.excess, w.peak = None, 0
        w.fork_at = None
        _core.slot_begin(self._segment, w.slot, w.generation)
        signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGCHLD,))
        try:
            pid = os.fork()
        except OSError as error:  # too many processes, too little memory: a failed start like others
            signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGCHLD,))
            self._plan_restart(w, f"{type(error).__name__}: a worker cannot be forked: {error}")
            return
        if pid == 0:
            try:
                process.mark(w.mark)
                self._close_for_worker(w)
            except BaseException:  # never back into the monitor's loop, which would kill its siblings
                os._exit(worker_process.BOOT_FAILED)
            files = (w.log, w.outputs, w.said)
            worker_process.main(self._segment, w.slot, w.generation, files, self._pid, self._options)
        _core.slot_forked(self._segment, w.slot, pid)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGCHLD,))
        w.pid = pid
        with contextlib.suppress(OSError):  # too many open files: SIGCHLD will tell
            w.pidfd = process.open_pidfd(pid)
        if w.pidfd is not None:
            self._poll.register(w.pidfd, select.POLLIN)

    def _close_for_worker(self, mine: _Worker) -> None:
        """In the new worker: nothing of the monitor stays open, so that no task can hold or damage it."""
        signal.set_wakeup_fd(-1)
        for fd in (self._wakeup, self._wakeup_write, self._client_fd):
            if fd is not None:
                os.close(fd)
        self._commands.close()
        for w in self._workers:
            if w.pidfd is not None:
                os.close(w.pidfd)
            if w is not mine:
                for fd in (w.log, w.outputs, w.said):
                    os.close(fd)

    def _reap(self, w: _Worker) -> None:
        """If the worker is dead, and all of its group: everything that a death calls for, in the order of DESIGN.md."""
        if w.status is None and not self._wait_for_leader(w):
            return
        # Not before its family is gone: what the task had started must not run beside the task's next attempt.
        if self._family_runs(w) and time.monotonic() < w.settle_by:
            return
        pid, status = w.pid, w.status
        assert status is not None
        for other in self._workers:
            if other.pid and _core.slot_info(self._segment, other.slot)["phase"] != _core.STARTING:
                self._restarts.ready(other.slot)
        phase = _core.slot_info(self._segment, w.slot)["phase"]
        log = os.pread(w.log, _LOG_LIMIT, 0).decode(errors="replace")
        late = os.WIFSIGNALED(status) and os.WTERMSIG(status) == worker_process.DEADLINE_SIGNAL
        leaving = phase == _core.LEAVING and w.reason == _core.DIED
        left_changed, change = worker_process.LEFT_CHANGED << 8 if self._options.recycle_changed else 0, ""
        if leaving and left_changed:
            change, log = worker_process.split_log(log)
            self._report_change(w, change)
        if leaving and self._options.grace and (log or status not in (0, left_changed)):
            how = f"took longer than {self._options.grace:g} s" if late else "failed"
            self._report(f"the teardown of worker {w.slot} (pid {w.pid}) {how}\n{trim_stack(log).strip()}")
            log = ""
        # The task may have closed the log, or the teardown have ended in another way.
        if leaving and (change or status == left_changed != 0):
            w.reason = _core.CHANGED
        elif leaving and self._is_condemned(w):  # it has found that its result is not wanted, before we have killed it
            w.reason = _core.KILLED
        elif leaving and (status == 0 or late):
            w.reason = _core.RESTARTED if w.generation < w.retire else _core.RECYCLED
        elif w.reason == _core.DIED and os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
            w.reason = self._who_killed()
        if phase != _core.STARTING:
            w.seen_ready = w.generation
        elif w.reason == _core.DIED:
            w.reason = _core.UNREADY
        if log and w.reason != _core.KILLED:
            self._tell(NOTICE + WHO.pack(w.slot, w.generation) + log.encode())
        if said := capture.last_words(w.said):
            self._tell(OUTPUT + WHO.pack(w.slot, w.generation) + said)
        remove_unfinished(w.outputs, w.pid)
        w.pid, w.status = 0, None
        self._plan_restart(w, log)
        _core.record_death(self._segment, w.slot, w.generation, pid, status, w.reason, w.peak)
        w.generation += 1

    def _report_change(self, w: _Worker, change: str) -> None:
        """What a task has left changed, once for each function and change."""
        if change and change not in self._changes and len(self._changes) < _CHANGES:
            self._changes.add(change)
            self._report(f"{change}; worker {w.slot} (pid {w.pid}) is replaced, as others will be (said once)")

    def _report(self, text: str) -> None:
        """To stderr, as the traceback of a thread: no task is concerned. Not if that would block."""
        text = f"{self._options.name}: {text}"
        poll = select.poll()
        poll.register(2, select.POLLOUT)
        if any(event & select.POLLOUT for _, event in poll.poll(0)):
            with contextlib.suppress(OSError):
                os.write(2, text.encode(errors="replace")[:_SAID_LIMIT] + b"\n")

    # ---- restarts

    def _retire_all(self) -> None:
        """Have all workers that live now replaced. Each leaves between two tasks, one at a time (`_core.leaver`): so
        one with a long task does not hold up the others, and there is never more than one too few."""
        self._restarts_asked += 1
        for w in self._workers:
            w.retire = w.generation + 1 if w.pid else w.generation
            _core.retire_worker(self._segment, w.slot, w.retire)

    def _renew(self) -> float | None:
        """Go on with it; how long until the next look (None: a death will tell)."""
        for w in self._workers:
            if w.pid and _core.slot_info(self._segment, w.slot)["phase"] != _core.STARTING:
                w.seen_ready = w.generation
        if (leaver := _core.leaver(self._segment)) is not None:
            slot, generation = leaver
            damaged = not 0 <= slot < len(self._workers)
            if damaged or self._has_successor(self._workers[slot], generation):
                _core.next_leaver(self._segment)
        if all(w.seen_ready >= w.retire for w in self._workers):
            self._restarts_done = self._restarts_asked
            _core.set_renewed(self._segment, self._restarts_done)
            return None
        return None if all(w.seen_ready == w.generation for w in self._workers) else _READY_SECONDS

    def _has_successor(self, w: _Worker, generation: int) -> bool:
        """Whether the worker of that generation (its low bits) is dead, and one after it has become ready. At its death
        it was the last one seen."""
        mask = _core.GENERATION_MASK
        return w.generation & mask != generation and w.seen_ready & mask != generation

    def _who_killed(self) -> int:
        """The reason of a SIGKILL that we have not sent: OOM, if the kernel has killed somebody of ours for want of
        memory since the last such death (or since the start); else DIED."""
        kills = memory.oom_kills()
        if kills <= self._oom_kills:  # also if it cannot be read now
            return _core.DIED
        self._oom_kills = kills
        return _core.OOM

    def _family_runs(self, w: _Worker) -> bool:
        """Whether anything runs that the dead worker had started: in its group, which is killed already, or elsewhere.

        The latter, or who has started it, is our child now. So only if we have a child that is no worker we look at
        everybody's mark, and kill who has this worker's."""
        if not process.group_is_empty(w.pid):
            return True
        workers = {other.pid for other in self._workers if other.status is None}
        with contextlib.suppress(OSError):  # no file descriptor left: we cannot look
            if not workers.issuperset(process.children_of(self._pid)):
                return process.kill_marked(range(w.mark, w.mark + 1))
        return False

    def _plan_restart(self, w: _Worker, log: str) -> None:
        """Its successor, now or later, unless the pool stops or has failed too often; then ``log`` is the reason."""
        if self._stop_by is not None:
            return
        now = time.monotonic()
        w.fork_at = now + self._restarts.died(w.slot, now)
        if self._restarts.give_up is not None:
            self._tell(FAILED + f"{self._restarts.give_up}\0{log}".encode())
            raise SystemExit

    def _wait_for_leader(self, w: _Worker) -> bool:
        """Whether the worker itself is dead now. From here on its number is no longer ours to send signals to."""
        if not process.has_exited(w.pid):
            return False
        process.kill_group(w.pid)  # before waiting: as long as the leader is a zombie the group number is ours
        end = process.reap_with_usage(w.pid)
        if end is None:
            return False
        w.status, user_ns, system_ns, resident = end
        _core.book_usage(self._segment, w.slot, user_ns + system_ns, resident)
        _core.book_spent(self._segment, w.slot, w.generation, user_ns, system_ns, resident)
        if w.excess is not None:
            use, start = w.excess
            w.peak = use.peak(start, resident)
        w.kill_at = None
        w.settle_by = time.monotonic() + _GROUP_SECONDS
        if w.pidfd is not None:
            self._poll.unregister(w.pidfd)
            os.close(w.pidfd)
            w.pidfd = None
        return True

    def _tell(self, message: bytes) -> None:
        """Before the death record, so that a client that settles the death has the text. Never blocks: the text may be
        lost, the death not."""
        with contextlib.suppress(OSError):
            self._commands.send(message)

    def _reap_strangers(self) -> None:
        """Orphans that came to us as the subreaper: waited for, never acted upon."""
        ours = {w.pid for w in self._workers if w.pid}
        while True:
            try:
                found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if found is None or found.si_pid in ours:
                return  # its turn comes in _handle; further strangers wait for the next SIGCHLD or the end
            process.reap(found.si_pid)

    def _kill_everything(self) -> None:
        """All workers with their groups, then all that was orphaned to us, until nobody is left."""
        for w in self._workers:
            if w.pid and w.status is None:
                process.kill_group(w.pid)
        while True:
            for pid in process.children_of(self._pid):
                process.kill_group(pid)
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            try:
                pid, _, usage = os.wait4(-1, 0)
            except ChildProcessError:
                break
            for w in self._workers:
                if w.pid == pid and w.status is None:
                    _core.book_usage(self._segment, w.slot, *process.used(usage))
        for w in self._workers:
            if w.pid:
                remove_unfinished(w.outputs, w.pid)
        spill.remove_folder(self._options.folder)


def main(segment: object, marks: range, commands: socket, client: int, options: WorkerOptions) -> NoReturn:
    """Be the monitor: called in the freshly forked child or the fresh interpreter, with signals blocked. ``marks``:
    ours, and one a worker."""
    try:
        os.setsid()
        # In a task of another pool: its mark would have us killed before we can end what our workers have started.
        process.mark(marks[0])
        with contextlib.suppress(OSError):
            _core.become_subreaper()  # daemons that a task's process leaves behind come to us
        _ignore_signals()
        for variable in _THREAD_VARIABLES:
            os.environ.setdefault(variable, str(options.threads_per_worker))
        if options.preparation is not None and not _prepare(options.preparation, commands, client):
            os._exit(1)
        sys.settrace(None)
        sys.setprofile(None)
        if faulthandler.is_enabled():
            faulthandler.disable()
        if (share := sys.modules.get("pool.share")) is not None:
            share.leave_to_client(client)
        # Not cancel_dump_traceback_later(): it would wait for the watchdog thread, which does not exist after a fork.
        gc.disable()  # nothing here makes cycles, and no finaliser of the client's objects may run here
        try:
            monitor = Monitor(segment, marks, commands, client, options)
        except OSError as error:  # most likely too many open files
            commands.send(FAILED + f"the monitor process cannot start\0{type(error).__name__}: {error}".encode())
            os._exit(1)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        monitor.run()
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(1)


def _ignore_signals() -> None:
    worker_process.default_handlers()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)


def _prepare(preparation: Preparation, commands: socket, client: int) -> bool:
    """Import what the workers shall inherit; the only code of the user that runs here. False if it has failed, which
    the client then knows."""
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    try:
        preparation.in_monitor(client)
    except BaseException as error:
        text = codec.trace(error, skip=2)
        commands.send(FAILED + f"__main__ cannot be imported in a fresh interpreter\0{text}".encode(errors="replace"))
        return False
    finally:
        worker_process.flush()  # else each worker would write it again
    _ignore_signals()  # whatever the imports have set
    return True
