"""The two memory files of a pool: how large, how made, how mapped.

The *control* file (at most 4 MiB) is allocated whole at the start, so that a lack of memory is an exception here and
not a SIGBUS in the middle of a task. The *payload* file is sparse: a page costs memory from its first use until
`_core.trim`. Neither has a name, and both are sealed: nobody can resize them below somebody's feet.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator

from ipc import _core

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

__all__ = ["MAX_CONTROL", "MAX_ROOM", "MIN_ROOM", "Segment", "available_memory", "default_room", "default_rows"]

MAX_CONTROL: Final = 4 << 20
"""Bytes of the largest control file."""
MAX_ROOM: Final = 8 << 30
"""Bytes of the largest payload file that nobody asked for."""
MIN_ROOM: Final = 16 * _core.UNIT_SIZE
"""Bytes of the smallest payload file that is worth starting a pool with, unless somebody asks for less."""


class Segment:  # not a dataclass: importing `dataclasses` takes 5 ms
    """The two files, open in this process (close-on-exec) and in what it forks.

    Attributes:
        control: file descriptor of the control file.
        payload: file descriptor of the payload file.
        rows: how many tasks and chunks can be in flight.
        workers: how many slots for workers it has.
        room: bytes of the payload.
    """

    def __init__(self, control: int, payload: int, rows: int, workers: int, room: int, opened: list[int]) -> None:
        self.control = control
        self.payload = payload
        self.rows = rows
        self.workers = workers
        self.room = room
        self._open = opened  # what close() still has to close

    @classmethod
    def create(cls, workers: int, cores: int, rows: int | None = None, room: int | None = None) -> Segment:
        """A fresh segment for so many workers, of which `cores` may be awake at the same time.

        `room` is rounded up to units of 64 KiB. `ValueError` for impossible numbers. `MemoryError`, or the kernel's
        `OSError`, each with a sentence that names the sizes, if there is too little memory or a limit is in the way.
        """
        rows = default_rows(workers) if rows is None else rows
        if not (1 <= workers <= _core.MAX_SLOTS and 1 <= rows <= _core.MAX_ROWS and cores >= 1):
            raise ValueError(
                f"impossible: {workers} workers on {cores} cores, {rows} rows; "
                f"at most {_core.MAX_SLOTS} workers and {_core.MAX_ROWS} rows"
            )
        if room is not None and room < 1:
            raise ValueError(f"a payload of {room} bytes is impossible")
        units = -(-_room(workers, rows, room) // _core.UNIT_SIZE)
        size = _core.size(rows, workers, units)
        if size > MAX_CONTROL:
            most = _most_units(workers, rows) * _core.UNIT_SIZE
            raise ValueError(
                f"a payload of {_human(units * _core.UNIT_SIZE)} is more than {rows} rows and {workers} workers leave "
                f"in a control segment of {_human(MAX_CONTROL)}: at most {_human(most)}"
            )
        made: list[int] = []
        try:
            control = _memory_file(made, "pool-control", size, whole=True)
            payload = _memory_file(made, "pool-payload", units * _core.UNIT_SIZE, whole=False)
            _core.create(control, rows, workers, units, cores)
        except BaseException:
            _close(made)
            raise
        return cls(control, payload, rows, workers, units * _core.UNIT_SIZE, made)

    def attach(self) -> object:
        """Map both files: the capsule that all functions of `_core` take. Independent of `close`.

        `MemoryError` if the address space is limited (`ulimit -v`); `_core.Damaged` if the control file is broken.
        """
        try:
            return _core.attach(self.control, self.payload)
        except OSError as error:
            if error.errno != errno.ENOMEM:
                raise
            sizes = f"{_human(os.fstat(self.control).st_size)} of control and {_human(self.room)} of payload"
            raise MemoryError(f"no address space to map {sizes}; is it limited (ulimit -v)?") from error

    def close(self) -> None:
        """Close the two files in this process; a second time does nothing. What is mapped stays mapped."""
        _close(self._open)


def default_rows(workers: int) -> int:
    """A power of two: 1024, or what gives each worker 16, at most 4096."""
    rows = 1024
    while rows < 16 * workers and rows < _core.MAX_ROWS:
        rows *= 2
    return rows


def default_room(workers: int, rows: int, available: int) -> int:
    """Bytes of payload: half of the available memory, at most 8 GiB, at most what keeps the control file in 4 MiB.

    Whole units; less than `MIN_ROOM` where there is hardly any memory.
    """
    units = min(available // 2, MAX_ROOM) // _core.UNIT_SIZE
    return max(0, min(units, _most_units(workers, rows))) * _core.UNIT_SIZE


def available_memory(root: str = "/") -> int | None:
    """Bytes that may still be used without swapping: the machine's, capped by the headroom of all our cgroups.

    `root` is prefixed to every path that is read. What is missing, unreadable or malformed counts as no limit; `None`
    if nothing can be read at all.
    """
    found = [_machine(root), *(_headroom(folder) for folder in _cgroup_folders(root))]
    return min((n for n in found if n is not None), default=None)


def _room(workers: int, rows: int, room: int | None) -> int:
    """The payload's size in bytes, after a look at whether it, and the control file, can be had."""
    available = available_memory()
    if available is None:
        available = 2 * MAX_ROOM
    wanted = MIN_ROOM if room is None else room
    control = _core.size(rows, workers, min(-(-wanted // _core.UNIT_SIZE), _most_units(workers, rows)))
    if control + wanted > available:
        raise MemoryError(
            f"too little memory for a pool of {workers} workers: {_human(control)} of control and at least "
            f"{_human(wanted)} of payload are needed, {_human(available)} are available"
        )
    return max(MIN_ROOM, default_room(workers, rows, available)) if room is None else room


def _most_units(workers: int, rows: int) -> int:
    return (MAX_CONTROL - _core.size(rows, workers, 0)) // 8  # one owner word a unit


def _memory_file(made: list[int], name: str, size: int, *, whole: bool) -> int:
    """A sealed memfd of that size, allocated if `whole`, else sparse. Its descriptor is also appended to `made`."""
    try:
        fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        made.append(fd)
        os.ftruncate(fd, size)
        if whole:
            os.posix_fallocate(fd, 0, size)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
    except OSError as error:
        hint = "; is the file size limited (ulimit -f)?" if error.errno == errno.EFBIG else ""
        text = f"cannot make {name}, {_human(size)} of shared memory: {error.strerror}{hint}"
        if error.errno in (errno.ENOMEM, errno.ENOSPC):
            raise MemoryError(text) from error
        raise OSError(error.errno, text) from error
    return fd


def _close(fds: list[int]) -> None:
    while fds:
        os.close(fds.pop())


def _human(size: int) -> str:
    """`3.5 MiB`"""
    number, unit = float(size), "bytes"
    for larger in ("KiB", "MiB", "GiB", "TiB", "PiB", "EiB"):
        if number < 1024:
            break
        number, unit = number / 1024, larger
    return f"{number:.4g} {unit}"


# ---- available memory


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
