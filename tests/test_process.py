"""ipc.process, with real processes. Nothing sleeps: pipes say where a child is, the kernel says that it died."""

import contextlib
import errno
import os
import random
import resource
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import NoReturn

import pytest

from ipc import process
from ipc.process import FIRST_MARK, UNKNOWN_STATUS, children_of, kill_group, open_pidfd, reap, session_members


class Child:
    """A forked child that runs `body`, says "ready" and then waits for its end."""

    def __init__(self, body: Callable[[], None] = lambda: None) -> None:
        ready, say = os.pipe()
        self.gate, hold = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                os.close(self.gate)
                body()
                os.write(say, b"r")
                signal.pause()
            finally:
                os._exit(99)
        os.close(say)
        os.close(hold)
        assert os.read(ready, 1) == b"r"
        os.close(ready)

    def await_family(self) -> None:
        """Until this child and all its children are dying: they share the other end of the gate."""
        assert os.read(self.gate, 1) == b""

    def await_death(self) -> None:
        os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)

    def end(self) -> None:
        with contextlib.suppress(ChildProcessError):
            if os.waitpid(self.pid, os.WNOHANG) == (0, 0):  # still our child, so the number is still its own
                os.kill(self.pid, signal.SIGKILL)
                os.waitpid(self.pid, 0)
        os.close(self.gate)


@pytest.fixture
def fork() -> Iterator[Callable[..., Child]]:
    children: list[Child] = []

    def make(body: Callable[[], None] = lambda: None) -> Child:
        children.append(Child(body))
        return children[-1]

    yield make
    for child in children:
        child.end()


Fork = Callable[..., Child]


def fork_another() -> None:
    if os.fork() == 0:
        signal.pause()
        os._exit(0)


# ---- pidfd


def test_pidfd_tells_the_death(fork: Fork, lack: Callable[[str], NoReturn]) -> None:
    child = fork()
    fd = open_pidfd(child.pid)
    if fd is None:
        lack("this kernel has no pidfds")
    try:
        assert not os.get_inheritable(fd)
        assert select.select([fd], [], [], 0)[0] == []
        os.kill(child.pid, signal.SIGKILL)
        assert select.select([fd], [], [], 60)[0] == [fd]
        assert reap(child.pid) == signal.SIGKILL
        with pytest.raises(ProcessLookupError):
            open_pidfd(child.pid)
    finally:
        os.close(fd)


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EPERM])
def test_no_pidfd_in_this_kernel(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def refuse(pid: int) -> int:
        raise OSError(number, "no")

    monkeypatch.setattr(os, "pidfd_open", refuse, raising=False)
    assert open_pidfd(os.getpid()) is None


def test_no_pidfd_in_this_python(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "pidfd_open", raising=False)
    assert open_pidfd(os.getpid()) is None


def test_too_many_files_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(pid: int) -> int:
        raise OSError(errno.EMFILE, "too many")

    monkeypatch.setattr(os, "pidfd_open", refuse, raising=False)
    with pytest.raises(OSError, match="too many"):
        open_pidfd(os.getpid())


# ---- kill


def test_kill_group_kills_children_of_the_child(fork: Fork) -> None:
    def body() -> None:
        os.setsid()
        fork_another()

    child = fork(body)
    kill_group(child.pid)
    child.await_family()
    child.await_death()
    assert reap(child.pid) == signal.SIGKILL


def test_kill_group_of_a_child_that_leads_no_group_yet(fork: Fork) -> None:
    child = fork()
    kill_group(child.pid)
    child.await_death()
    assert reap(child.pid) == signal.SIGKILL


def test_kill_group_of_a_stopped_child(fork: Fork) -> None:
    child = fork(os.setsid)
    os.kill(child.pid, signal.SIGSTOP)
    os.waitid(os.P_PID, child.pid, os.WSTOPPED)
    kill_group(child.pid)
    child.await_death()
    assert reap(child.pid) == signal.SIGKILL


def test_kill_group_of_the_dead(fork: Fork) -> None:
    child = fork(os.setsid)
    kill_group(child.pid)
    child.await_death()
    kill_group(child.pid)  # a zombie
    assert reap(child.pid) == signal.SIGKILL
    kill_group(child.pid)  # nobody


@pytest.mark.parametrize("pid", [1, 0, -1, -5])
def test_kill_group_never_kills_everybody(pid: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "kill", None)
    monkeypatch.setattr(os, "killpg", None)
    with pytest.raises(ValueError, match="not a process id of a child"):
        kill_group(pid)


# ---- reap


def test_reap(fork: Fork) -> None:
    child = fork()
    assert reap(child.pid) is None
    os.kill(child.pid, signal.SIGTERM)
    child.await_death()
    status = reap(child.pid)
    assert status is not None
    assert os.WIFSIGNALED(status)
    assert os.WTERMSIG(status) == signal.SIGTERM


@pytest.mark.parametrize("code", [0, 1, 255])
def test_reap_exit_code(code: int) -> None:
    pid = os.fork()
    if pid == 0:
        os._exit(code)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    assert reap(pid) == code << 8


def test_reaped_by_somebody_else(fork: Fork) -> None:
    child = fork()
    os.kill(child.pid, signal.SIGKILL)
    os.waitpid(child.pid, 0)
    assert reap(child.pid) == UNKNOWN_STATUS
    assert os.waitstatus_to_exitcode(UNKNOWN_STATUS) == 0


def test_host_ignores_sigchld() -> None:
    """In a process of its own: pytest's children must not vanish. The kernel reaps, but only after the death."""
    program = """
import os, signal
from ipc.process import UNKNOWN_STATUS, kill_group, open_pidfd, reap
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
read, write = os.pipe()
pid = os.fork()
if pid == 0:
    os.close(read)
    signal.pause()
os.close(write)
assert reap(pid) is None
kill_group(pid)
try:
    os.waitpid(pid, 0)
except ChildProcessError:
    pass
assert reap(pid) == UNKNOWN_STATUS
print("fine")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "fine\n"


# ---- /proc


def test_session_members(fork: Fork) -> None:
    def body() -> None:
        os.setsid()
        fork_another()

    child, other = fork(body), fork(os.setsid)
    (grandchild,) = children_of(child.pid)
    assert session_members({child.pid}) == sorted([child.pid, grandchild])
    assert session_members({child.pid, other.pid}) == sorted([child.pid, grandchild, other.pid])
    assert session_members(set()) == []
    os.kill(child.pid, signal.SIGKILL)
    child.await_death()
    assert session_members({child.pid}) == [grandchild]  # a zombie does not run, its orphan does
    kill_group(child.pid)
    while session_members({child.pid}):  # as the monitor does; SIGKILL takes its time
        pass


def test_children_of(fork: Fork) -> None:
    child, dead = fork(fork_another), fork()
    os.kill(dead.pid, signal.SIGKILL)
    dead.await_death()
    assert {child.pid, dead.pid} <= set(children_of(os.getpid()))
    (grandchild,) = children_of(child.pid)
    assert children_of(grandchild) == []
    os.kill(grandchild, signal.SIGKILL)


def test_children_of_in_a_kernel_without_that_file(fork: Fork, monkeypatch: pytest.MonkeyPatch) -> None:
    child = fork(fork_another)
    expected = children_of(child.pid)
    listdir = os.listdir
    monkeypatch.setattr(os, "listdir", lambda path: ["0"] if path.endswith("/task") else listdir(path))
    assert children_of(child.pid) == expected
    os.kill(expected[0], signal.SIGKILL)


# ---- marks


@pytest.fixture
def marks() -> range:
    first = FIRST_MARK + random.getrandbits(60)
    return range(first, first + 3)


def test_a_mark_is_inherited_by_whatever_is_forked(fork: Fork, marks: range) -> None:
    def body() -> None:
        process.mark(marks[0])
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                os.closerange(0, 1024)
                os.execve("/bin/sleep", ["sleep", "1000"], {})
            os._exit(0)
        os.wait()

    child, other = fork(body), fork(lambda: process.mark(marks[2]))
    found = process.marked(marks)
    assert len(found) == 3
    assert {child.pid, other.pid} < set(found)
    assert process.marked(range(marks[2], marks[2] + 1)) == [other.pid]
    assert process.kill_marked(range(marks[0], marks[1]))
    while process.kill_marked(range(marks[0], marks[1])):  # until nobody is left: SIGKILL takes its time
        pass
    assert process.marked(marks) == [other.pid], "a zombie does not run"


def test_we_are_never_among_the_marked(fork: Fork, marks: range) -> None:
    def body() -> None:
        process.mark(marks[0])
        assert process.marked(marks) == []
        assert not process.kill_marked(marks)

    fork(body)


def test_a_second_mark_replaces_the_first(fork: Fork, marks: range) -> None:
    def body() -> None:
        process.mark(marks[0])
        process.mark(marks[1])

    child = fork(body)
    assert process.marked(range(marks[1], marks[1] + 1)) == [child.pid]


@pytest.mark.parametrize("limits", [(10**6, resource.RLIM_INFINITY), (10**6, 10**7), (FIRST_MARK, FIRST_MARK)])
def test_somebodys_real_limit_stays(fork: Fork, marks: range, limits: tuple[int, int]) -> None:
    def body() -> None:
        resource.setrlimit(resource.RLIMIT_RTTIME, limits)
        process.mark(marks[0])
        assert resource.getrlimit(resource.RLIMIT_RTTIME) == limits

    fork(body)
    assert process.marked(marks) == []


def test_a_number_that_went_to_somebody_else_is_not_killed(fork: Fork, monkeypatch: pytest.MonkeyPatch) -> None:
    child, looks = fork(), []

    def first_look_only(pid: int) -> int:
        looks.append(pid)
        return FIRST_MARK if pid == child.pid and looks.count(pid) == 1 else 0

    monkeypatch.setattr(process, "mark_of", first_look_only)
    assert process.kill_marked(range(FIRST_MARK, FIRST_MARK + 1))
    assert looks.count(child.pid) == 2
    assert reap(child.pid) is None


@pytest.mark.parametrize("pidfd", [True, False])
def test_kill_sessions(fork: Fork, monkeypatch: pytest.MonkeyPatch, pidfd: bool) -> None:
    if not pidfd:
        monkeypatch.setattr(process, "open_pidfd", lambda pid: None)
    child, other = fork(os.setsid), fork(os.setsid)
    assert process.kill_sessions({child.pid})
    child.await_death()
    assert not process.kill_sessions({child.pid})
    assert session_members({child.pid, other.pid}) == [other.pid]


@pytest.mark.parametrize("text", [b"", b"Max realtime timeout", b"Max realtime timeout   unlimited   unlimited   us"])
def test_no_mark(monkeypatch: pytest.MonkeyPatch, text: bytes) -> None:
    monkeypatch.setattr(process, "_read", lambda pid, name: text)
    assert process.mark_of(1) == 0


NAMES = [") R 1 1 1 (", "a b", "((", "))", ")", "", "\n\n", "\\", " 1 (x) Z 7"]


@pytest.mark.parametrize("name", NAMES)
def test_any_name(fork: Fork, name: str) -> None:
    def body() -> None:
        os.setsid()
        with open("/proc/self/comm", "w") as file:
            file.write(name)

    child = fork(body)
    assert session_members({child.pid}) == [child.pid]
    assert child.pid in children_of(os.getpid())


def test_first_thread_has_ended() -> None:
    """Such a process looks like a zombie, but its other threads run, and must be found to be killed."""
    program = """
import ctypes, os, sys, threading
os.setsid()
def run():
    while open("/proc/self/stat").read().rpartition(")")[2].split()[0] != "Z":
        pass
    os.write(1, b"r")
    os.read(0, 1)
    os._exit(0)
threading.Thread(target=run, daemon=True).start()
ctypes.CDLL(None).pthread_exit(None)
"""
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.read(1) == b"r"
        assert session_members({child.pid}) == [child.pid]
        kill_group(child.pid)


@pytest.mark.parametrize(
    "line",
    [b"", b"12", b"12 (x", b"12 (x)", b"12 (x) R 1 2 3", b"x (x) R " + b"1 " * 49, b"12 (x) R a b c " + b"1 " * 49],
)
def test_broken_lines(line: bytes) -> None:
    assert process._parse(line) is None


def test_a_process_that_ends_during_the_scan(monkeypatch: pytest.MonkeyPatch, fork: Fork) -> None:
    child = fork(os.setsid)
    monkeypatch.setattr(os, "listdir", lambda path: ["self", "4194305", str(child.pid), "uptime"])
    assert session_members({child.pid}) == [child.pid]
