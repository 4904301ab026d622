"""One read-only copy of an object in shared memory for all workers: ``Pool.share``.

The object's pickle and its buffers stand in a file without a name that the sharing process holds open. A task carries
only its number; a worker that meets it maps the file (through /proc, so also a worker that was forked before or after)
and rebuilds the object once. Its arrays look into the shared pages, and cannot be written to. The pages live until the
last handle, the last task that carries one, and the last worker that still looks at them have gone.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import weakref

from pool import codec, spill

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_known: dict[bytes, tuple[str, int, Any]] = {}
"""In each process that has looked at some: token → (path, inode, object)."""
_live: weakref.WeakSet[Shared] = weakref.WeakSet()
"""Handles whose file this process has open."""


codec.Handles.used = True


class Shared:
    """A handle on a shared object. Pass it to tasks, in arguments or inside of the function: they get the object.

    ``get()`` is the object in this process, read-only as in the workers. The memory is given back when no handle, no
    unfinished task and no worker uses it any more.
    """

    def __init__(self, obj: Any) -> None:
        """Raises what pickling raised, MemoryError if there is too little memory (and disk)."""
        data = codec.encode_args(obj, codec.in_all_workers())
        pieces = codec.pack(data, []) if isinstance(data, bytes) else data
        self._token = os.urandom(16)
        self._fd = fd = _file(spill.size(pieces))
        self._pid = os.getpid()  # who has it open
        self._inode = os.fstat(fd).st_ino
        self._finalizer = weakref.finalize(self, _close, fd, self._token, self._inode)
        _live.add(self)
        spill.write_pieces(fd, pieces)
        self.nbytes = spill.size(pieces)

    def get(self) -> Any:
        return _attach(*self._where())

    def __reduce__(self) -> Any:
        codec.handles.note(self)
        return _attach, self._where()

    def _where(self) -> tuple[bytes, str, int]:
        return self._token, f"/proc/{self._pid}/fd/{self._fd}", self._inode

    def __repr__(self) -> str:
        return f"<Shared, {self.nbytes:,} bytes>"


def _file(length: int) -> int:
    """In memory if there is enough of it, else on the disk."""
    if not spill.exceeds_memory(length):
        return os.memfd_create("pool-share", os.MFD_CLOEXEC)
    return os.open(spill.temporary_files(), os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)


def _close(fd: int, token: bytes, inode: int) -> None:
    _known.pop(token, None)
    with contextlib.suppress(OSError):
        if os.fstat(fd).st_ino == inode:  # not in a monitor and its workers, see `leave_to_client`
            os.close(fd)


def _after_fork_in_child() -> None:
    for handle in list(_live):  # the child's descriptor is its own, and stays when its parent's is closed
        handle._pid = os.getpid()


os.register_at_fork(after_in_child=_after_fork_in_child)


def leave_to_client(client: int) -> None:
    """In a monitor: the handles are the client's. What is open here would hold their memory as long as the pool
    lives."""
    for handle in list(_live):
        handle._pid = client
        with contextlib.suppress(OSError):
            os.close(handle._fd)
    _live.clear()


def _attach(token: bytes, path: str, inode: int) -> Any:
    """The object behind a handle, rebuilt at the first time in this process."""
    known = _known.get(token)
    if known is not None:
        return known[2]
    release_unused()
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if os.fstat(fd).st_ino != inode:
            raise FileNotFoundError("this shared object has been given back: all of its handles are gone")
        data = mmap.mmap(fd, 0, access=mmap.ACCESS_READ)
    finally:
        os.close(fd)
    obj = codec.loads_packed(data)
    _known[token] = (path, inode, obj)
    return obj


def release_unused() -> bool:
    """Forget objects whose owner has given them back; their memory goes when no task looks at them. True if there was
    any."""
    count = len(_known)
    for token, (path, inode, _) in list(_known.items()):
        with contextlib.suppress(OSError):
            if os.stat(path).st_ino == inode:
                continue
        del _known[token]
    return len(_known) < count


__all__ = ["Shared", "leave_to_client", "release_unused"]
