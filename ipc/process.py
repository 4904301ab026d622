"""Facts about processes, and ways to act on them: what the monitor and the client ask the kernel.

Nothing here remembers anything. A process id is safe to use only for a child that nobody has waited for: until then
the kernel does not give its number to another process. Others are held by a pidfd, looked at again, and then killed.
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import signal
from collections import namedtuple
from collections.abc import Callable, Iterator

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

__all__ = [
    "FIRST_MARK",
    "UNKNOWN_STATUS",
    "Facts",
    "Usage",
    "children_of",
    "facts_of",
    "group_is_empty",
    "has_exited",
    "kill_group",
    "kill_marked",
    "kill_sessions",
    "mark",
    "mark_of",
    "marked",
    "memory",
    "open_pidfd",
    "reap",
    "reap_with_usage",
    "session_members",
    "usage_of",
    "used",
]

UNKNOWN_STATUS: Final = 1 << 16
"""What `reap` returns for a child that somebody else has waited for: status 0 with a bit that no wait status has.

All `os.W...` functions read it as "exit code 0"; compare first. It fits into the death log.
"""

FIRST_MARK: Final = 1 << 62
"""Marks are numbers from here to 2**63. As the limit that carries them they mean at least 146,000 years."""
_FORKED = 0x40  # PF_FORKNOEXEC of the kernel


def open_pidfd(pid: int) -> int | None:
    """A file descriptor (close-on-exec) that becomes readable when the process ends.

    `None` where there is no such thing: Linux before 5.3, a sandbox that forbids the call, a Python built without it.
    The caller then falls back to SIGCHLD or polling. `ProcessLookupError` if there is no such process; a child that is
    dead but not waited for is still there. Other `OSError`s (too many open files) are raised.
    """
    try:
        return os.pidfd_open(pid)
    except AttributeError:
        return None
    except OSError as error:
        if error.errno in (errno.ENOSYS, errno.EPERM):  # EPERM: seccomp filters older than the call answer so
            return None
        raise


def kill_group(pid: int) -> None:
    """SIGKILL to a child that is not yet reaped, and to the process group it leads. Gone already: nothing happens.

    Between fork and setsid the child leads no group yet, so it is also killed by its own number.
    `PermissionError` if it became another user's process.
    """
    if pid <= 1:  # for the kernel 0 is our own group and -1 everybody
        raise ValueError(f"not a process id of a child: {pid}")
    for kill in (os.killpg, os.kill):
        with contextlib.suppress(ProcessLookupError):
            kill(pid, signal.SIGKILL)


def group_is_empty(pgid: int) -> bool:
    """Whether nobody is left in a process group, not even a zombie. Ask after its leader was waited for."""
    try:
        os.killpg(pgid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:  # somebody of another user's
        return False
    return False


def has_exited(pid: int) -> bool:
    """Whether a child is dead, without waiting for it: it stays a zombie, and its number its own. No child: True."""
    try:
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:
        return True


def reap(pid: int) -> int | None:
    """Wait for a dead child without blocking: its raw wait status, `None` while it runs.

    `UNKNOWN_STATUS` if it is no longer our child: the host program waits for any child, or ignores SIGCHLD, and so its
    end happened but nobody can say how.
    """
    end = reap_with_usage(pid)
    return end and end[0]


def reap_with_usage(pid: int) -> tuple[int, int, int, int] | None:
    """As `reap`: (status, ns of CPU time in user mode, in the kernel, bytes of memory at its peak), each with those
    that it had itself waited for."""
    try:
        found, status, usage = os.wait4(pid, os.WNOHANG)
    except ChildProcessError:
        return UNKNOWN_STATUS, 0, 0, 0
    return (status, int(usage.ru_utime * 1e9), int(usage.ru_stime * 1e9), usage.ru_maxrss * 1024) if found else None


def used(usage: resource.struct_rusage) -> tuple[int, int]:
    """(ns of CPU time, bytes of memory at the peak)."""
    return int((usage.ru_utime + usage.ru_stime) * 1e9), usage.ru_maxrss * 1024


class Usage(namedtuple("Usage", "cpu_ns peak rss threads stopped", defaults=(0, 0, 0, 0, False))):
    """What a process that runs has and does. What is not known is 0."""

    __slots__ = ()
    cpu_ns: int  # with the children that it has waited for
    peak: int  # bytes of memory, the most that it ever was
    rss: int  # bytes of memory now
    threads: int
    stopped: bool  # by a signal (SIGSTOP, Ctrl-Z) or a debugger


def usage_of(pid: int) -> Usage:
    """What the kernel says of it now."""
    fields = _read(pid, "stat").rpartition(b")")[2].split()
    status = _read(pid, "status")
    ticks = sum(map(int, fields[11:15])) if len(fields) > 15 else 0
    return Usage(
        ticks * 1_000_000_000 // os.sysconf("SC_CLK_TCK"),
        _number(status, b"VmHWM:") * 1024,
        _number(status, b"VmRSS:") * 1024,
        _number(status, b"Threads:"),
        fields[:1] in ([b"T"], [b"t"]),
    )


def _number(status: bytes, name: bytes) -> int:
    words = status.partition(name)[2].split(None, 1)
    return int(words[0]) if words and words[0].isdigit() else 0


def mark(number: int) -> None:
    """Mark this process, and so all that it will ever fork: fork and exec, setsid, closed files, a cleaned environment
    leave the mark where it is.

    The mark is the soft limit of RLIMIT_RTTIME, CPU time under real-time scheduling, which nearly nobody limits. Where
    somebody does (a real soft limit, or any hard one) that limit stays and nothing is marked; and a process that sets
    this limit itself loses its mark. A second mark replaces the first.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_RTTIME)
    if hard == resource.RLIM_INFINITY and (soft == resource.RLIM_INFINITY or soft >= FIRST_MARK):
        with contextlib.suppress(OSError, ValueError):  # a sandbox that forbids it
            resource.setrlimit(resource.RLIMIT_RTTIME, (number, hard))


def marked(numbers: range) -> list[int]:
    """Process ids of all but ourselves that run with one of these marks, in ascending order.

    As for `session_members`: scan until nobody is left.
    """
    return [
        pid
        for pid in _pids()
        if mark_of(pid) in numbers and pid != os.getpid() and (facts := facts_of(pid)) and facts.runs
    ]


def kill_marked(numbers: range) -> bool:
    """SIGKILL to all that `marked` finds. Whether there was anybody; if so, ask again."""
    return _kill_all(marked(numbers), lambda pid: mark_of(pid) in numbers)


def kill_sessions(sids: set[int]) -> bool:
    """SIGKILL to all that `session_members` finds. Whether there was anybody; if so, ask again."""
    return _kill_all(session_members(sids), lambda pid: (facts := facts_of(pid)) is not None and facts.session in sids)


def _kill_all(pids: list[int], still: Callable[[int], bool]) -> bool:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            pidfd = open_pidfd(pid)
            try:
                if not still(pid):  # it ended before we held it, and its number went to another process
                    continue
                if pidfd is None:
                    os.kill(pid, signal.SIGKILL)
                else:
                    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            finally:
                if pidfd is not None:
                    os.close(pidfd)
    return bool(pids)


def session_members(sids: set[int]) -> list[int]:
    """Process ids of all that still run in one of these sessions, in ascending order.

    A zombie does not run. A process forked during the scan may be missed: kill what is found, and scan until nothing
    is.
    """
    return [facts.pid for facts in _processes() if facts.session in sids and facts.runs]


def children_of(pid: int) -> list[int]:
    """Process ids of all children of `pid`, zombies too, in ascending order. A child forked meanwhile may miss."""
    found: list[int] = []
    try:
        for thread in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{thread}/children", "rb", buffering=0) as file:
                found += map(int, file.read().split())
    except (FileNotFoundError, ProcessLookupError):  # it ended, or the kernel has no such file: a look at everybody
        return [facts.pid for facts in _processes() if facts.parent == pid]
    return sorted(found)


def memory(pid: int) -> int:
    """Bytes of memory that a process uses, its share of what it has in common with others (PSS); all of that where the
    kernel does not say. 0: it has ended. Takes 40 µs, and 7 ms for each GiB in small pages."""
    share = _read(pid, "smaps_rollup").partition(b"\nPss:")[2].split()
    if share:
        return int(share[0]) * 1024
    pages = _read(pid, "statm").split()
    return int(pages[1]) * resource.getpagesize() if len(pages) > 1 else 0


class Facts(namedtuple("Facts", "pid parent session runs forked faults began")):
    """What the kernel says of a process."""

    __slots__ = ()
    pid: int
    parent: int
    session: int
    runs: bool  # it is no zombie
    forked: bool  # it runs the program of its parent: it has not called exec
    faults: int  # minor page faults so far
    began: int  # its start, in clock ticks since the machine's


def _pids() -> list[int]:
    return sorted(int(name) for name in os.listdir("/proc") if name.isdecimal())


def _processes() -> Iterator[Facts]:
    for pid in _pids():
        if (facts := facts_of(pid)) is not None:
            yield facts


def facts_of(pid: int) -> Facts | None:
    """`None` if there is no such process."""
    return _parse(_read(pid, "stat"))


def mark_of(pid: int) -> int:
    """The mark of a process, 0 if it has none. Its line: `Max realtime timeout   <soft>   <hard>   us`."""
    soft = _read(pid, "limits").partition(b"Max realtime timeout")[2].lstrip().partition(b" ")[0]
    return int(soft) if soft.isdigit() and int(soft) >= FIRST_MARK else 0


def _read(pid: int, name: str) -> bytes:
    try:
        with open(f"/proc/{pid}/{name}", "rb", buffering=0) as file:
            return file.read()
    except (FileNotFoundError, ProcessLookupError, PermissionError):  # it ended, or it is hidden from us
        return b""


def _parse(line: bytes) -> Facts | None:
    """One line of `/proc/<pid>/stat`; `None` for what is none, e.g. empty.

    `pid (comm) state ppid pgrp session ...`: comm may be anything, such as `) R 1 (`; but no parenthesis follows it.
    """
    left, _, right = line.rpartition(b")")
    fields = right.split()
    try:
        pid, state = int(left.split()[0]), fields[0]
        parent, session, flags, faults, threads, began = (int(fields[k]) for k in (1, 3, 6, 7, 17, 19))
    except (IndexError, ValueError):
        return None
    # A process whose first thread has ended looks like a zombie, but its other threads run.
    runs = state not in (b"Z", b"X") or threads > 1
    return Facts(pid, parent, session, runs, bool(flags & _FORKED), faults, began)
