"""Values that do not fit into the payload room travel as files.

A worker writes a result into the pool's folder (made when it is needed, in the directory for temporary files), and the
client maps it and removes its name at once. The client writes arguments there too; they go when the last reference to
the task does. Readers map a file copy-on-write, so what they do to a value stays with them, and the memory lives as
long as somebody looks into it. Written with ``write``, never through a mapping: a full disk is an OSError, not a
SIGBUS.
"""

from __future__ import annotations

import contextlib
import mmap
import os

from ipc import _core
from ipc.memory import available_memory

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

LARGE = 64 << 20
"""Bytes from which on it is worth a look whether the memory suffices."""
_MOST = 1 << 30  # bytes of one write(): Linux takes no more than 2 GiB


def exceeds_memory(length: int) -> bool:
    """Whether so many bytes of shared memory could end in the hands of the kernel's OOM killer."""
    if length < LARGE:
        return False
    available = available_memory()
    return available is not None and length > available // 4 * 3


def new_folder() -> str:
    """Where the files of one pool go. Does not exist yet."""
    return os.path.join(temporary_files(), f"pool-{os.getpid()}-{os.urandom(8).hex()}")


def temporary_files() -> str:
    """The directory for them; `tempfile` would say the same, but takes milliseconds to import."""
    return os.environ.get("TMPDIR") or "/tmp"


def write(path: str, data: Any) -> None:
    """Make a file of these bytes, or of a tuple of pieces, each at a multiple of ALIGN, and its folder if need be.

    OSError if there is no room for it; nothing is left of it then."""
    with contextlib.suppress(FileExistsError):
        os.mkdir(os.path.dirname(path), 0o700)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        write_pieces(fd, data)
    except BaseException:
        os.unlink(path)
        raise
    finally:
        os.close(fd)


def write_pieces(fd: int, data: Any) -> None:
    pieces = data if type(data) is tuple else (data,)
    os.posix_fallocate(fd, 0, max(1, size(data)))
    at = 0
    for piece in pieces:
        at = _aligned(at)
        with memoryview(piece) as view, view.cast("B") as flat:
            for start in range(0, len(flat), _MOST):
                rest = flat[start : start + _MOST]
                while rest:
                    written = os.pwrite(fd, rest, at)
                    at += written
                    rest = rest[written:]


def read(path: str, *, remove: bool = False) -> mmap.mmap:
    """The file's bytes, for reading and for writing that nobody else sees."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return mmap.mmap(fd, 0, access=mmap.ACCESS_COPY)
    finally:
        os.close(fd)
        if remove:
            os.unlink(path)


def size(data: Any) -> int:
    """Bytes that `data` takes, as bytes or as a tuple of pieces."""
    if type(data) is not tuple:
        return len(data)
    at = 0
    for piece in data:
        at = _aligned(at) + len(piece)
    return at


def length(data: Any) -> int:
    """Bytes of arguments as they are or were, also if they are in a file."""
    return data.length if isinstance(data, Spilled) else size(data)


def _aligned(n: int) -> int:
    return -(-n // _core.ALIGN) * _core.ALIGN


class Spilled(bytes):
    """The path of a file with arguments. The file goes with the last reference to this object."""

    path: str
    length: int  # of the arguments
    _owner: int

    def __new__(cls, folder: str, data: Any) -> Spilled:
        """Raises OSError."""
        path = os.path.join(folder, f"arguments-{os.urandom(8).hex()}")
        write(path, data)
        self = super().__new__(cls, path.encode())
        self.path = path
        self.length = size(data)
        self._owner = os.getpid()
        return self

    def __del__(self) -> None:
        if self._owner == os.getpid():
            with contextlib.suppress(OSError):
                os.unlink(self.path)


def result_path(folder: str, slot: int, generation: int, number: int) -> str:
    return os.path.join(folder, f"result-{slot}-{generation}-{number}")


def remove_folder(folder: str) -> None:
    """With whatever is still in it."""
    with contextlib.suppress(OSError):
        for name in os.listdir(folder):
            os.unlink(os.path.join(folder, name))
        os.rmdir(folder)
