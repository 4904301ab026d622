"""The two memory files of a pool: how large, how made, how mapped.

The *control* file (at most 4 MiB) is allocated whole at the start, so that a lack of memory is an exception here and
not a SIGBUS in the middle of a task. The *payload* file is sparse: a page costs memory from its first use until
`_core.trim`. Neither has a name, and both are sealed: nobody can resize them below somebody's feet.
"""

from __future__ import annotations

import errno
import fcntl
import os

from ipc import _core
from ipc.memory import available_memory
from ipc.sizes import show_size

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

__all__ = ["MAX_CONTROL", "MAX_ROOM", "MIN_ROOM", "Segment", "default_room", "default_rows"]

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
                f"a payload of {show_size(units * _core.UNIT_SIZE)} is more than {rows} rows and {workers} workers "
                f"leave in a control segment of {show_size(MAX_CONTROL)}: at most {show_size(most)}"
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
            sizes = f"{show_size(os.fstat(self.control).st_size)} of control and {show_size(self.room)} of payload"
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


def _room(workers: int, rows: int, room: int | None) -> int:
    """The payload's size in bytes, after a look at whether it, and the control file, can be had."""
    available = available_memory()
    if available is None:
        available = 2 * MAX_ROOM
    wanted = MIN_ROOM if room is None else room
    control = _core.size(rows, workers, min(-(-wanted // _core.UNIT_SIZE), _most_units(workers, rows)))
    if control + wanted > available:
        raise MemoryError(
            f"too little memory for a pool of {workers} workers: {show_size(control)} of control and at least "
            f"{show_size(wanted)} of payload are needed, {show_size(available)} are available"
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
        text = f"cannot make {name}, {show_size(size)} of shared memory: {error.strerror}{hint}"
        if error.errno in (errno.ENOMEM, errno.ENOSPC):
            raise MemoryError(text) from error
        raise OSError(error.errno, text) from error
    return fd


def _close(fds: list[int]) -> None:
    while fds:
        os.close(fds.pop())
