"""Starting the monitor, and making sure that nothing of it is left. The order of steps is the fork hygiene of
DESIGN.md section 3."""

from __future__ import annotations

import _socket  # the part of `socket` in C: the rest takes 2 ms to import
import contextlib
import os
import select
import signal
import sys
import threading
import time
import warnings

from ipc import _core, process
from ipc.segment import Segment
from pool import codec, monitor, spill, worker_process
from pool.cpus import available_cpus
from pool.messages import KILL_ALL, STOP
from pool.worker_options import WorkerOptions

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pool.codec import Inherited
    from pool.fresh import Parcel

_STOP_SECONDS = 5.0
_SWEEP_SECONDS = 1.0  # how long killed processes may take to be gone (one can hang in the kernel)
_warned = False


class Running:
    """A started pool, as the client holds it: its view of the segment and its ends to the monitor."""

    def __init__(
        self,
        segment: object,
        rows: int,
        room: int,
        workers: int,
        commands: _socket.socket,
        wire: tuple[_socket.socket, _socket.socket],
        pid: int,
        marks: range,
        folder: str,
        inherited: Inherited,
        fresh: bool,
        grace: float,
    ) -> None:
        self.inherited = inherited  # what of __main__ the workers have
        self.fresh = fresh  # the monitor is a new interpreter
        self.segment = segment
        self.folder = folder  # of spilled values
        self.grace = grace  # seconds that workers may need to leave, beyond what is usual
        self.restarts = 0  # that were asked for
        self.rows = rows
        self.room = room
        self.workers = workers
        self.commands = commands
        self.wire = wire  # (read, write): workers and monitor wake event loops through it
        self.pid = pid
        self.marks = marks  # on the monitor, on the workers, and on what these start
        self.pidfd: int | None = None
        with contextlib.suppress(OSError):  # too many open files: we ask by the pid then
            self.pidfd = process.open_pidfd(pid)

    def worker_pids(self) -> list[int]:
        return [_core.slot_info(self.segment, slot)["pid"] for slot in range(self.workers)]

    def is_importing(self) -> bool:
        """Whether the monitor is a new interpreter that has not come to forking workers, and reads no commands."""
        return self.fresh and not any(self.worker_pids())

    def forget(self) -> None:
        """In a forked child of the client: close our copies of its descriptors."""
        self.commands.close()
        for end in self.wire:
            end.close()
        if self.pidfd is not None:
            os.close(self.pidfd)
            self.pidfd = None

    def is_dead(self) -> bool:
        """Whether the monitor has ended, however the host program treats its children."""
        return self._await_monitor(0)

    def _await_monitor(self, seconds: float) -> bool:
        if self.pidfd is not None:
            poll = select.poll()
            poll.register(self.pidfd, select.POLLIN)
            return bool(poll.poll(seconds * 1000))
        end = time.monotonic() + seconds
        while not process.has_exited(self.pid):
            if time.monotonic() > end:
                return False
            time.sleep(0.002)
        return True

    def stop(self, kill: bool) -> None:
        """Have the monitor end everything: workers leave when idle, or are killed. A monitor that does not answer is
        killed too."""
        self.commands.settimeout(_STOP_SECONDS)  # a socket full of other commands is soon read
        with contextlib.suppress(OSError):
            self.commands.send(KILL_ALL if kill else STOP)
        if kill and self.is_importing():  # a worker that it forks just now dies with it
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
        if not self._await_monitor(_STOP_SECONDS + self.grace):
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
            self._await_monitor(_STOP_SECONDS)
        if process.reap(self.pid) != 0:  # it was killed, perhaps long ago, or has failed
            self._kill_what_is_left()
        self._close()

    def sweep_up(self) -> None:
        """After the monitor's death: kill what its workers had started."""
        process.reap(self.pid)
        self._kill_what_is_left()
        self._close()

    def _close(self) -> None:
        spill.remove_folder(self.folder)  # the monitor has, unless it was killed
        _core.retire(self.segment)  # values that the program still holds go on living in it
        self.forget()

    def _kill_what_is_left(self) -> None:
        """Everybody who has a mark of this pool. The workers die with the monitor, but not what they had started.

        Where marks are not possible, their sessions name the rest; what has left these escapes."""
        # The numbers come from shared memory: not our own session, whatever a task has written there.
        sessions = {pid for pid in self.worker_pids() if pid > 1} - {os.getsid(0)}
        end = time.monotonic() + _SWEEP_SECONDS
        with contextlib.suppress(OSError):  # no file descriptor left: we cannot look
            while time.monotonic() < end:
                if not (process.kill_marked(self.marks) | process.kill_sessions(sessions)):
                    return


def start(workers: int, options: WorkerOptions, counts: object, again: bool = False) -> Running:
    """Make the segment, start the monitor. ``counts``: the client's ``_core.tally``; ``again``: in place of a damaged
    segment, which nobody could have done before he had threads.

    Raises MemoryError or OSError if there is too little memory for it; PoolStartError if there can be no process. With
    another start method than fork also what pickling the initializer raised, and RuntimeError in a script that a
    worker imports."""
    if options.start_method == "fork" and not again:
        _warn_about_threads()
    options.folder = spill.new_folder()
    parcel = None
    if options.start_method != "fork":
        from pool.fresh import Parcel  # multiprocessing takes longer to import than all of ours

        parcel = Parcel(options)
        inherited = parcel.inherited
    else:
        # What an initializer sets are globals of the worker's __main__: functions that are there too must look there.
        inherited = codec.snapshot_main(frozenset(), functions=options.initializer is not None)
    segment = Segment.create(workers, available_cpus())
    sockets: list[_socket.socket] = []
    try:
        view = segment.attach()
        _core.open_client(view)
        _core.count_into(view, counts)
        _core.dont_fork(view)
        sockets += _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
        # A socket, not a pipe: MSG_NOSIGNAL. Not an eventfd: all of them are one file, so a worker could not see that a
        # task has put another one under the number.
        sockets += _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_STREAM)
        ours, theirs, *wire = sockets
        wire[0].setblocking(False)
        _core.set_wire(view, wire[1].fileno())
        worker_process.flush()
        marks = _new_marks(workers)
        if parcel is None:
            worker_process.import_title()
            theirs_view = segment.attach()
            _core.set_wire(theirs_view, wire[1].fileno())
            pid = _fork(segment, theirs_view, marks, (ours, wire[0]), theirs, options)
        else:
            pid = _spawn(parcel, segment, marks, (ours, *wire), theirs)
    except BaseException:
        for one in sockets:
            one.close()
        raise
    finally:
        theirs_view = None  # only for the fork; a traceback would keep it
        segment.close()  # the mappings stay; workers need no file descriptor of ours
    theirs.close()
    ours.setblocking(False)
    return Running(
        view,
        segment.rows,
        segment.room,
        workers,
        ours,
        (wire[0], wire[1]),
        pid,
        marks,
        options.folder,
        inherited,
        fresh=parcel is not None,
        grace=options.grace,
    )


def _fork(
    segment: Segment,
    view: object,
    marks: range,
    ours: tuple[_socket.socket, ...],
    theirs: _socket.socket,
    options: WorkerOptions,
) -> int:
    client = os.getpid()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", DeprecationWarning
            )  # 3.12+ warns about threads without naming them; we have
            pid = os.fork()
        if pid == 0:
            try:
                segment.close()  # nobody shall write into shared memory through a descriptor
                for end in ours:
                    end.close()
                theirs.setblocking(False)
                monitor.main(view, marks, theirs, client, options)
            finally:
                os._exit(1)
        return pid
    except OSError as error:
        from pool.errors import PoolStartError

        raise PoolStartError(f"the monitor process cannot be forked: {error}") from error
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _spawn(
    parcel: Parcel, segment: Segment, marks: range, ours: tuple[_socket.socket, ...], theirs: _socket.socket
) -> int:
    """The same with a fresh interpreter as the monitor. ``ours``: last the end of the wire that it shares."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        return parcel.send(segment, marks, theirs, ours[-1])
    except OSError as error:
        from pool.errors import PoolStartError

        for end in (*ours, theirs):
            end.close()
        raise PoolStartError(f"the monitor process cannot be started: {error}") from error
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _new_marks(workers: int) -> range:
    """Marks (see `process.mark`) that no other pool has, for the monitor and for each worker."""
    first = process.FIRST_MARK + (int.from_bytes(os.urandom(6), "little") << 12)
    return range(first, first + 1 + workers)


def _warn_about_threads() -> None:
    """A fork beside other threads can deadlock in a lock that one of them holds. Said once, with their names."""
    global _warned
    names = [
        t.name for t in threading.enumerate() if t is not threading.current_thread() and t.name != "pool-collector"
    ]
    if names and not _warned:
        _warned = True
        text = f"the pool forks while other threads run ({', '.join(names[:5])}); start it before them: Pool().start()"
        text += ", or give it the context of forkserver or spawn"
        level, frame = 1, sys._getframe()  # whose call of the pool it was
        while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] == "pool":
            level, frame = level + 1, frame.f_back
        warnings.warn(text, RuntimeWarning, stacklevel=level)


__all__ = ["Running", "start"]
