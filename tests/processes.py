"""What the tests of faults ask the kernel: who is alive, who belongs to us, which files are open.

No sleep for timing: conditions are waited for."""

import contextlib
import ctypes
import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from ipc import process

_PR_SET_CHILD_SUBREAPER = 36


def wait_until(condition: Callable[[], Any], what: str, seconds: float = 20.0) -> Any:
    """The first true value of `condition`. AssertionError after so many seconds: a hang is a failure."""
    value = _wait(condition, seconds)
    assert value, f"not within {seconds:g} s: {what}"
    return value


def _wait(condition: Callable[[], Any], seconds: float) -> Any:
    """The first true value of `condition`, or the last one after so many seconds."""
    end = time.monotonic() + seconds
    while not (value := condition()) and time.monotonic() < end:
        time.sleep(0.001)  # between two looks, not for timing
    return value


def runs(pid: int) -> bool:
    """Whether a process exists and is no zombie."""
    return _state(pid) not in ("", "Z", "X")


def is_stopped(pid: int) -> bool:
    return _state(pid) == "T"


def is_zombie(pid: int) -> bool:
    return _state(pid) == "Z"


def sleeps(pid: int) -> bool:
    return _state(pid) == "S"


def await_deaths(pids: Iterable[int], seconds: float = 5.0) -> None:
    """Until none of them runs, or so long: on a busy machine who was killed goes on existing for a while."""
    _wait(lambda: not any(map(runs, pids)), seconds)


def parent_of(pid: int) -> int:
    """0: there is no such process."""
    return int((_stat(pid) or ["", "0"])[1])


def _state(pid: int) -> str:
    return (_stat(pid) or [""])[0]


def _stat(pid: int) -> list[str]:
    """State, parent and so on; nothing if there is no such process."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].decode().split()
    except (FileNotFoundError, ProcessLookupError):
        return []


def named(marker: str) -> list[int]:
    """All processes but this one with `marker` in their command line (or title) that run."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdecimal() and int(name) != os.getpid():
            with contextlib.suppress(OSError), open(f"/proc/{name}/cmdline", "rb") as file:
                if marker.encode() in file.read() and runs(int(name)):
                    found.append(int(name))
    return found


def open_files() -> dict[str, str]:
    """Our file descriptors and what they are."""
    found = {}
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # the one that lists
            found[fd] = os.readlink(f"/proc/self/fd/{fd}")
    return found


def shared_files() -> set[str]:
    """What of ours could lie in /dev/shm: the pool promises to have no named file at all."""
    return {name for name in os.listdir("/dev/shm") if "pool" in name} if os.path.isdir("/dev/shm") else set()


@contextlib.contextmanager
def nothing_left() -> Iterator[None]:
    """After the block no process and no file descriptor may be left that was not there before.

    We are the subreaper meanwhile: whatever outlives the monitor becomes our child, in whichever session and group it
    hides.
    """
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    children, files, shared = set(process.children_of(os.getpid())), open_files(), shared_files()
    assert prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0
    try:
        yield
        left = _leftovers(children)
    finally:
        _wait(lambda: not _kill_all(_leftovers(children, seconds=0.0)), 5.0)  # the dead leave children, too
        prctl(_PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)
    assert not left, f"processes left behind: {left}"
    # A pool that nobody holds is closed by its own thread, a moment after its processes are gone.
    wait_until(lambda: len(open_files()) <= len(files), f"back to the descriptors {files}")
    assert shared_files() <= shared, "files left in /dev/shm"


def _leftovers(before: set[int], seconds: float = 10.0) -> dict[int, str]:
    """Children that still run after so long, for a busy machine; zombies that came to us are waited for."""
    left: list[int] = []

    def nobody_left() -> bool:
        ours = [pid for pid in process.children_of(os.getpid()) if pid not in before]
        for pid in ours:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)
        left[:] = filter(runs, ours)
        return not left

    _wait(nobody_left, seconds)
    return {pid: _command(pid) for pid in left}


def _kill_all(pids: Iterable[int]) -> bool:
    """Whether there was anybody."""
    found = list(pids)
    for pid in found:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return bool(found)


def _command(pid: int) -> str:
    with contextlib.suppress(OSError), open(f"/proc/{pid}/cmdline", "rb") as file:
        return file.read().replace(b"\0", b" ").decode(errors="replace").strip()
    return ""


def worker_pids(pool: Any) -> list[int]:
    """Of the workers that live now; from the pool's own record."""
    running = pool._client._running
    return [pid for pid in running.worker_pids() if pid]


def monitor_pid(pool: Any) -> int:
    return int(pool._client._running.pid)


def living_and_zombies(pid: int) -> tuple[int, int]:
    """How many children of `pid` run, and how many have ended without being waited for."""
    states = [_state(child) for child in process.children_of(pid)]
    return sum(state not in ("", "Z", "X") for state in states), states.count("Z")


def children_of_all(pid: int) -> list[int]:
    """Process ids of all descendants of `pid`."""
    found = list(process.children_of(pid))
    for child in found:
        found += process.children_of(child)
    return found
