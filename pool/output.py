"""``output(path)``: a file that appears whole or not at all."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Iterator

_count = itertools.count()
_record_fd: int | None = None
_open: dict[str, None] = {}
_LIMIT = 64 * 1024
_LONGEST_NAME = 255  # bytes, on every common file system
_LONGEST_SUFFIX = 32


@contextlib.contextmanager
def output(path: str | os.PathLike[str]) -> Iterator[str]:
    """A temporary name beside ``path`` that becomes ``path`` only when the block succeeds.

    It keeps the suffix of ``path`` (many libraries choose the format by it). When the block raises, the temporary file
    is removed and ``path`` is left as it was; when the task is killed in the middle, the monitor removes it. Works
    outside of a pool too.

    Yields the temporary name. Raises what the file system raises, FileNotFoundError for a missing folder first.
    """
    final = os.path.abspath(path)
    folder, name = os.path.split(final)
    if not os.path.isdir(folder):
        raise FileNotFoundError(f"no such folder: {folder!r}")
    temporary = os.path.join(folder, _temporary_name(name))
    _open[temporary] = None
    _record()
    try:
        yield temporary
        os.replace(temporary, final)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
    finally:
        _open.pop(temporary, None)
        _record()


def _temporary_name(name: str) -> str:
    """Hidden, with the suffix of ``name``, and no longer than a file system allows, which ``name`` may be already."""
    stem, suffix = os.path.splitext(name)
    if len(os.fsencode(suffix)) > _LONGEST_SUFFIX:  # a dot in a sentence
        stem, suffix = name, ""
    mark = f".part-{os.getpid()}-{next(_count)}{suffix}"
    room = max(0, _LONGEST_NAME - len(os.fsencode(f".{mark}")))
    return f".{os.fsdecode(os.fsencode(stem)[:room])}{mark}"


def record_to(fd: int) -> None:
    """In a worker: keep the names of unfinished files in ``fd``, where the monitor finds them after a death."""
    global _record_fd
    _record_fd = fd
    _open.clear()
    _record()


def _record() -> None:
    if _record_fd is None:
        return
    with contextlib.suppress(OSError):  # a task may have closed all file descriptors
        names = "\0".join(_open).encode(errors="surrogateescape")[:_LIMIT]
        os.pwrite(_record_fd, len(names).to_bytes(4, "little") + names, 0)


def remove_unfinished(fd: int, pid: int) -> None:
    """In the monitor: remove what the dead worker ``pid`` left. Only names that this module made for that pid."""
    size = int.from_bytes(os.pread(fd, 4, 0), "little")
    if not 0 < size <= _LIMIT:
        return
    for name in os.pread(fd, size, 4).decode(errors="surrogateescape").split("\0"):
        if f".part-{pid}-" in os.path.basename(name) and os.path.basename(name).startswith("."):
            with contextlib.suppress(OSError):
                os.unlink(name)
    os.pwrite(fd, bytes(4), 0)


def remove_abandoned(folder: str) -> None:
    """Remove unfinished files anywhere below ``folder`` whose processes are gone: a worker and its monitor that are
    killed at the same moment leave them."""
    import re

    unfinished = re.compile(r"\..*\.part-(\d+)-\d+(\..*)?")
    for where, _, names in os.walk(folder):
        for name in names:
            if (found := unfinished.fullmatch(name)) and not os.path.exists(f"/proc/{found[1]}"):
                with contextlib.suppress(OSError):
                    os.unlink(os.path.join(where, name))
