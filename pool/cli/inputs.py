"""The inputs of ``pool map``: words of the command line, files that they match, lines of files and of standard input.

Read as they are needed, so millions of them cost no memory. Standard input is asked only for what is there: while it
has nothing to say, results still come out.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import glob
import itertools
import os
import select
import stat
from collections.abc import Iterator

import click

from pool.cli import Stopped, nearest
from pool.mapping import NotYet

_BLOCK = 1 << 20
_PATIENCE = 0.002  # seconds: who writes without pause is only a little late
_COUNTED = 100_000  # files of a pattern that are listed beforehand: sorted, and their number is known


class Inputs:
    """An iterator over all inputs, in the order of the words. Raises NotYet while standard input is silent.

    Attributes:
        total: how many there are; None as long as it is not known.
        base: the folder that all inputs share, if it is known beforehand: outputs are named by what comes after it.
    """

    def __init__(self, words: tuple[str, ...], separator: bytes, are_files: bool = False) -> None:
        """``are_files``: words are names of files. Raises click.UsageError for a file that cannot be read or is not
        there, or a pattern that nothing matches."""
        self.total: int | None = 0
        shared: set[str] | None = set()
        sources: list[Iterator[str]] = []
        for word in words:
            count: int | None = 1
            if word == "-" or (word.startswith("@") and len(word) > 1):
                lines = Lines(word[1:], separator)
                sources.append(lines)
                count, shared = lines.count(), None
            elif glob.has_magic(word) and not os.path.lexists(word):
                found = _matches(word)
                head = list(itertools.islice(found, _COUNTED))
                if not head:
                    raise _nothing_matches(word)
                count = len(head) if len(head) < _COUNTED else None
                head.sort()
                sources.append(itertools.chain(head, found))
                if shared is not None:
                    shared.add(_before_magic(word))
            else:
                if are_files and not os.path.lexists(word):
                    raise no_such_file(word)
                sources.append(iter((word,)))
                if shared is not None:
                    shared.add(os.path.dirname(os.path.abspath(word)))
            self.total = None if count is None or self.total is None else self.total + count
        self.base = os.path.commonpath(shared) if shared else None
        self._sources = sources
        self._read = 0

    def __iter__(self) -> Inputs:
        return self

    def __next__(self) -> str:
        while self._sources:
            for word in self._sources[0]:
                self._read += 1
                return word
            del self._sources[0]
        self.total = self._read
        raise StopIteration


def _matches(pattern: str) -> Iterator[str]:
    """Files; folders if the pattern ends with a slash."""
    found = glob.iglob(pattern, recursive=True)
    return found if pattern.endswith(os.sep) else itertools.filterfalse(os.path.isdir, found)


def _nothing_matches(pattern: str) -> click.UsageError:
    folder = _before_magic(pattern)
    if not os.path.isdir(folder):
        return no_such_file(pattern, folder)
    return click.UsageError(f"no file matches {pattern!r} (what is no pattern may come from @FILE or -)")


def no_such_file(word: str, path: str | None = None) -> click.UsageError:
    """That ``path`` is missing, by default ``word`` itself, with what looks like it in the same place."""
    path, near = path or word, ""
    while not os.path.isdir(folder := os.path.dirname(path) or "."):
        path = folder
    with contextlib.suppress(OSError):
        near = nearest(os.path.basename(path), os.listdir(folder))
    what = "" if path == word else f": there is no {os.path.relpath(path)!r}"
    return click.UsageError(f"no such file: {word!r}{what}{near}")


def _before_magic(pattern: str) -> str:
    """The folder in which a pattern begins to be one."""
    parts = pattern.split(os.sep)
    plain = itertools.takewhile(lambda part: not glob.has_magic(part), parts[:-1])
    return os.path.abspath(os.sep.join(plain) or (os.sep if os.path.isabs(pattern) else ""))


class Lines:
    """The lines of a file, or of standard input (no name), without empty ones. Raises NotYet while a pipe or a terminal
    has none ready."""

    def __init__(self, name: str, separator: bytes) -> None:
        self._separator = separator
        self._text = separator == b"\n"
        try:
            self._fd = os.open(name, os.O_RDONLY) if name else 0
            self._file = stat.S_ISREG(os.fstat(self._fd).st_mode)
            if name and not self._file and stat.S_ISDIR(os.fstat(self._fd).st_mode):
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        except FileNotFoundError:
            raise no_such_file(name) from None
        except OSError as error:
            raise click.UsageError(f"cannot read {name or 'standard input'!r}: {error.strerror}") from None
        with contextlib.suppress(OSError):
            fcntl.fcntl(self._fd, fcntl.F_SETPIPE_SZ, _BLOCK)  # so that who writes is not woken for every few lines
        self._patience = _PATIENCE
        self._lines: list[bytes] = []
        self._rest = b""
        self._ended = False

    def count(self) -> int | None:
        """How many there are; None for what is not a file."""
        if not self._file:
            return None
        at = os.lseek(self._fd, 0, os.SEEK_CUR)
        total, rest = 0, b""
        while block := os.pread(self._fd, 1 << 20, at):
            at += len(block)
            lines, rest = self._split(rest + block)
            total += sum(map(bool, lines))
        return total + bool(rest)

    def _split(self, block: bytes) -> tuple[list[bytes], bytes]:
        """Whole lines, and the begin of the next one."""
        if self._text and b"\r" in block:  # lines as Windows writes them
            block = block.replace(b"\r\n", b"\n")
        lines = block.split(self._separator)
        return lines, lines.pop()

    def __iter__(self) -> Lines:
        return self

    def __next__(self) -> str:
        while True:
            while self._lines:
                if line := self._lines.pop():
                    return os.fsdecode(line)
            if self._ended:
                raise StopIteration
            self._read()

    def _read(self) -> None:
        if not self._file and not select.select((self._fd,), (), (), self._patience)[0]:
            self._patience = 0.0  # for no more than one moment in which results could be handed over
            raise NotYet
        self._patience = _PATIENCE
        try:
            block = os.read(self._fd, _BLOCK)
        except OSError as error:
            raise Stopped(f"the inputs cannot be read: {error.strerror}") from error
        lines, self._rest = self._split(self._rest + block)
        if not block:
            self._ended = True
            lines, self._rest = [self._rest], b""
        lines.reverse()
        self._lines = lines
