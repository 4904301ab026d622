"""Memory, as the kernel counts it: how much is available, what a task has added, who was killed for want of it."""

from __future__ import annotations

import os
import time
from collections import namedtuple
from collections.abc import Iterable, Iterator

from ipc import _core, process

__all__ = ["Start", "Use", "added_since", "available_memory", "oom_kills", "seconds_to_look"]

_PAGE = os.sysconf("SC_PAGE_SIZE")
_TICKS = os.sysconf("SC_CLK_TCK")  # a second, in the start times of processes
_TOO_LITTLE = (1 << 64) - 1
_SOONEST = 0.001  # seconds between two looks at a task


class Start(namedtuple("Start", "ns anonymous dirtied faults peak")):
    """A worker when a task with a limit started there; bytes, but for `ns` and `faults`. It is what `_core.limited`
    says from its sixth field on."""

    __slots__ = ()
    ns: int  # CLOCK_MONOTONIC
    anonymous: int  # resident memory that is no file and no shared memory, inherited pages too
    dirtied: int  # what of it was its own alone; 2**64 - 1: `anonymous` is too little to ask
    faults: int  # minor page faults so far
    peak: int  # the most that was ever resident, also in processes that it had waited for


class Use(namedtuple("Use", "added others shared")):
    """Bytes of memory that belong to a task."""

    __slots__ = ()
    added: int  # to its worker, and in the processes that it has started
    others: int  # in these
    shared: int  # files and shared memory, which is not in `added`

    def peak(self, start: Start, resident: int) -> int:
        """The most that the task has ever added, with the largest `resident` memory its dead worker has had.

        The kernel knows that number better than we, who look now and then; but it is this task's only if it is larger
        than what was noted at its start."""
        return max(self.added, resident - self.shared - start.anonymous + self.others if resident > start.peak else 0)


def added_since(start: Start, pid: int, limit: int, orphans: Iterable[int] = (), thorough: bool = True) -> Use:
    """What a task has added to the memory of its worker `pid`, with what it has started; `orphans` are those of them
    that are no descendants of the worker any more.

    Files and shared memory do not count; neither does what was inherited by a fork and not written to. Where that is
    slow to tell apart (milliseconds), it is done only if `thorough`, and if it may decide about `limit`; else `added`
    may be too little.
    """
    anonymous, shared = _core.memory(pid)
    own, others = max(0, anonymous - start.anonymous), 0
    forked: list[tuple[int, int]] = []
    began = _ticks(start.ns)
    for child in _with_descendants(pid, orphans):
        facts = process.facts_of(child)
        if facts is None or facts.began < began:  # a task before, or the initializer, has left it
            continue
        memory = _core.memory(child)
        if not facts.forked:
            others += memory[0]
        elif memory != _core.memory(facts.parent):  # vfork: the very memory of its parent, until it is another program
            forked.append((child, memory[0]))
    if thorough and own + others <= limit:
        own = max(own, _copied(start, pid, limit - own - others))
    if thorough and own + others <= limit < own + others + sum(most for _, most in forked):
        others += sum(_core.dirtied(child) for child, _ in forked)
    return Use(own + others, others, shared)


def _copied(start: Start, pid: int, left: int) -> int:
    """What the worker has added, by the slow count: a page that was inherited and then written to is a page more,
    although the fast one shows no change. 0 if the pages that it can have written to since are no more than `left`."""
    if start.dirtied == _TOO_LITTLE or start.anonymous <= left:
        return 0
    facts = process.facts_of(pid)
    if facts is None or (facts.faults - start.faults) * _PAGE <= left:
        return 0
    return max(0, _core.dirtied(pid) - start.dirtied)


def seconds_to_look(left: int) -> float:
    """When to look again at a task that may add so many bytes more, and fills them as fast as any memory can be."""
    return min(_core.LOOK_MS / 1000, max(_SOONEST, left / _core.FILL_RATE))


def _ticks(ns: int) -> int:
    """A time of CLOCK_MONOTONIC as the start time of a process."""
    slept = time.clock_gettime(time.CLOCK_BOOTTIME) - time.clock_gettime(time.CLOCK_MONOTONIC)
    return int((ns / 1e9 + slept) * _TICKS)


def _with_descendants(pid: int, orphans: Iterable[int]) -> Iterator[int]:
    for child in [*process.children_of(pid), *orphans]:
        yield child
        yield from _with_descendants(child, ())


def oom_kills(root: str = "/") -> int:
    """How many processes of our cgroup, or of the machine if it has none, the kernel has killed for want of memory.

    `root` is prefixed to every path that is read. 0 if nothing can be read.
    """
    for folder in _cgroup_folders(root):
        for name in ("memory.events", "memory.oom_control"):  # v2, v1
            if (count := _entry(_read(folder, name), "oom_kill")) is not None:
                return count
    return _entry(_read(root, "proc/vmstat"), "oom_kill") or 0


def _entry(text: str, name: str) -> int | None:
    """The number in a line `name number`."""
    for line in text.split("\n"):
        key, _, number = line.partition(" ")
        if key == name and number.strip().isdecimal():
            return int(number)
    return None


# ---- available memory


def available_memory(root: str = "/") -> int | None:
    """Bytes that may still be used without swapping: the machine's, capped by the headroom of all our cgroups.

    `root` is prefixed to every path that is read. What is missing, unreadable or malformed counts as no limit; `None`
    if nothing can be read at all.
    """
    found = [_machine(root), *(_headroom(folder) for folder in _cgroup_folders(root))]
    return min((n for n in found if n is not None), default=None)


def _machine(root: str) -> int | None:
    for line in _read(root, "proc/meminfo").split("\n"):
        name, _, rest = line.partition(":")
        if name == "MemAvailable":
            number = rest.removesuffix(" kB").strip()
            return int(number) * 1024 if number.isdecimal() else None
    return None


def _headroom(folder: str) -> int | None:
    """Bytes that one cgroup may still use; `None` if it has no limit. Cached files count as free: they can go."""
    for limit, usage, cached in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        most, used = _read(folder, limit).strip(), _read(folder, usage).strip()
        if most.isdecimal() and used.isdecimal():  # v2 writes "max" for no limit, v1 a number larger than any memory
            stat = dict(line.split(" ", 1) for line in _read(folder, "memory.stat").split("\n") if " " in line)
            files = stat.get(cached, "0").strip()
            return max(0, int(most) - max(0, int(used) - (int(files) if files.isdecimal() else 0)))
    return None


def _cgroup_folders(root: str) -> Iterator[str]:
    """Each folder that may limit our memory: our cgroup and the cgroups above, in v1 and in v2."""
    paths = _own_paths(_read(root, "proc/self/cgroup"))
    for line in _read(root, "proc/self/mountinfo").split("\n"):
        # 41 31 0:38 /part /mount/point rw,relatime shared:4 - cgroup2 source rw,memory
        left, _, right = line.partition(" - ")
        mount, system = left.split(" "), right.split(" ")
        if len(mount) < 5 or len(system) < 3 or system[0] not in paths:
            continue
        if system[0] == "cgroup" and "memory" not in system[2].split(","):
            continue
        top, below = os.path.join(root, mount[4].lstrip("/")), _below(paths[system[0]], mount[3])
        while below:
            yield os.path.join(top, below)
            below = os.path.dirname(below)
        yield top  # also where the mount does not show our cgroup: its top is the best guess


def _own_paths(text: str) -> dict[str, str]:
    """`/proc/self/cgroup` → our paths in the hierarchies that can limit memory, by filesystem type (v1, v2)."""
    paths = {}
    for line in text.split("\n"):
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers and path.startswith("/"):
            paths["cgroup2"] = path
        elif "memory" in controllers.split(","):
            paths["cgroup"] = path
    return paths


def _below(path: str, top: str) -> str:
    """`path` relative to `top`; `""` if they are the same, or it is not below."""
    prefix = top.rstrip("/") + "/"
    if not (path.rstrip("/") + "/").startswith(prefix) or ".." in path.split("/"):
        return ""
    return path[len(prefix) :].strip("/")


def _read(folder: str, name: str) -> str:
    """Text of a small file, `""` if it can't be read."""
    try:
        with open(os.path.join(folder, name), "rb") as file:
            return os.fsdecode(file.read())
    except OSError:
        return ""
