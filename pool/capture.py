"""What a task prints, caught for its account: the last of what it, its threads and the programs it starts write to
their standard output and error, while it runs.

::

    worker:  fds 1 and 2, sys.stdout, sys.stderr ──▶ a file in memory ──▶ behind the result, after each item
    monitor: keeps that file small; if the worker dies, sends the last of it to the client

There is no thread, and no pipe that could be full: who writes never waits for anybody. The monitor has made the file,
one for each worker, so it can read what a dead one has said.
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import resource
import struct
import sys

from ipc import _core
from pool import codec

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

MOST = 64 * 1024
"""Bytes that are kept of what an item has printed: the last ones."""
LAST_WORDS = 16 * 1024
"""The same, if its worker died."""
_MUCH = 1 << 20  # bytes in the file that are worth giving back
_LITTLE = 4096  # bytes of a result that may be copied once more
_SHORT = 2000  # characters in a note to an exception
_END = struct.Struct("<QQ")  # how many bytes were kept, how many were cut


# ---- the worker's side


class Capture:
    """Of one worker: ``start``, ``take`` after each item, ``stop``."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._file = _identity(fd)
        self._saved: list[int | None] = []
        self._before: tuple[Any, Any] = (None, None)
        self._ours: list[Any] = [None, None]
        self._moved: list[tuple[Any, Any]] = []  # handlers of logging, and their streams

    def start(self) -> None:
        """From here on what is printed is caught. If no descriptor is left for that, it is not."""
        self._flush()
        self._saved = []
        try:
            if _identity(self._fd) != self._file:  # a task has closed it, and the number may be a file of its own
                self._fd = os.memfd_create("pool-said")
                self._file = _identity(self._fd)
                fcntl.fcntl(self._fd, fcntl.F_SETFL, os.O_APPEND)
            self._saved = [_dup(1), _dup(2)]
            os.dup2(self._fd, 1)
            os.dup2(self._fd, 2)
        except OSError:
            return
        for k in range(2):
            if self._ours[k] is None or self._ours[k].closed:
                # Unbuffered, so that a crash loses nothing.
                raw = io.FileIO(k + 1, "w", closefd=False)
                self._ours[k] = io.TextIOWrapper(raw, "utf-8", "backslashreplace", write_through=True)
        self._before = sys.stdout, sys.stderr
        sys.stdout, sys.stderr = self._ours
        self._move_handlers()

    def take(self) -> bytes:
        """What was printed since the last call, for ``attach``; empty: nothing."""
        self._flush()
        try:
            said = last_words(self._fd, MOST)
            if said:
                os.ftruncate(self._fd, 0)
            return said
        except OSError:  # a task has closed it
            return b""

    def stop(self) -> None:
        """What is printed goes where it went before. A task that has set a stream of its own keeps that."""
        for handler, stream in self._moved:
            handler.stream = stream
        self._moved.clear()
        if sys.stdout is self._ours[0]:
            sys.stdout = self._before[0]
        if sys.stderr is self._ours[1]:
            sys.stderr = self._before[1]
        for fd, saved in enumerate(self._saved, 1):
            with contextlib.suppress(OSError):
                if saved is None:  # there was none
                    os.close(fd)
                else:
                    os.dup2(saved, fd)
                    os.close(saved)
        self._before, self._saved = (None, None), []

    def _flush(self) -> None:
        for stream in {id(s): s for s in (sys.stdout, sys.stderr, *self._before)}.values():
            with contextlib.suppress(Exception):  # closed, or not a stream at all
                stream.flush()
        _core.flush_stdio()  # what C code has printed

    def _move_handlers(self) -> None:
        """Handlers of logging hold the stream that they were made with. If that is no descriptor of ours (a notebook's,
        a test runner's), what they write would pass us by."""
        if (logging := sys.modules.get("logging")) is None:
            return
        for before, ours in zip(self._before, self._ours, strict=True):
            if before is None or _writes_to(before) in (1, 2):
                continue
            for logger in [logging.root, *list(logging.root.manager.loggerDict.values())]:
                for handler in getattr(logger, "handlers", ()):
                    if getattr(handler, "stream", None) is before:
                        self._moved.append((handler, before))
                        handler.stream = ours


def _identity(fd: int) -> tuple[int, int] | None:
    try:
        found = os.fstat(fd)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _dup(fd: int) -> int | None:
    """Under a high number, where a task that closes and opens files does not come by; None: it is closed."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = 1024 if soft == resource.RLIM_INFINITY else min(soft, 1024)
    if _identity(fd) is None:
        return None
    return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, max(3, highest - 32))


def _writes_to(stream: Any) -> int:
    try:
        return int(stream.fileno())
    except Exception:  # it has none
        return -1


def attach(kind: int, data: Any, said: bytes) -> tuple[int, Any]:
    """A result with what was printed behind it, where its own decoder does not look."""
    if type(data) is bytes and len(data) < _LITTLE:
        return kind | codec.SAID, data + said
    return kind | codec.SAID, (*(data if type(data) is tuple else (data,)), said)


# ---- the monitor's side


def new_file(slot: int) -> int:
    """For what the workers of a slot print, one after the other."""
    fd = os.memfd_create(f"pool-said-{slot}")
    fcntl.fcntl(fd, fcntl.F_SETFL, os.O_APPEND)  # several processes write, and it is emptied meanwhile
    return fd


def last_words(fd: int, most: int = LAST_WORDS) -> bytes:
    """What stands in the file, as ``attach`` takes it; empty: nothing. OSError."""
    size = os.fstat(fd).st_size
    if size == 0:
        return b""
    kept = os.pread(fd, most, max(0, size - most))
    return kept + _END.pack(len(kept), size - len(kept))


def packed(said: bytes) -> bytes:
    """The last of it, as ``attach`` takes it."""
    return said[-MOST:] + _END.pack(min(len(said), MOST), max(0, len(said) - MOST))


def keep_small(fd: int) -> None:
    """Give back what is too far from the end to be kept: a task may print without end."""
    with contextlib.suppress(OSError):
        found = os.fstat(fd)
        if found.st_blocks * 512 > _MUCH and found.st_size > MOST:
            _core.punch(fd, 0, (found.st_size - MOST) // _core.UNIT_SIZE * _core.UNIT_SIZE)


# ---- the client's side


def detach(kind: int, data: Any) -> tuple[int, str, int]:
    """The kind without SAID, what was printed, and how many bytes of ``data`` that is."""
    view = memoryview(data)
    if len(view) < _END.size:  # damaged
        return kind & ~codec.SAID, "", 0
    length, _ = _END.unpack_from(view, len(view) - _END.size)
    length = min(length, len(view) - _END.size)
    said = bytes(view[len(view) - _END.size - length :])
    return kind & ~codec.SAID, text_of(said), len(said)


def text_of(said: bytes) -> str:
    """As text, with a first line that says what is missing."""
    _, cut = _END.unpack_from(said, len(said) - _END.size)
    text = said[: -_END.size].decode(errors="replace")
    return f"[{cut:,} bytes before this were cut]\n{text}" if cut else text


def add_note(error: BaseException, output: str | None) -> BaseException:
    """Say in the exception what its task has printed: the last of it."""
    if output:
        short = output if len(output) <= _SHORT else "[...]" + output[-_SHORT:]
        with contextlib.suppress(Exception):  # a class of the caller's
            error.add_note(f"Output of the task:\n{short.rstrip()}")
    return error


__all__ = ["Capture", "add_note", "attach", "detach", "keep_small", "last_words", "new_file", "packed", "text_of"]
