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

from pool.cli import Mistake, Stopped, nearest
from pool.mapping import NotYet

_BLOCK = 1 << 20
_PATIENCE = 0.002  # seconds: who writes without pause is only a little late
_COUNTED = 100_000  # files of a pattern that are listed beforehand: sorted, and their number is known


class Inputs:
    """An iterator over all inputs, in the order of the words. Raises NotYet while standard input is silent.

    Attributes:
        known: those that are known beforehand: words, and the first hundred thousand of each pattern.
        total: how many there are; None as long as it is not known.
        base: the folder that all inputs share, if it is known beforehand: outputs are named by what comes after it.
    """

    def __init__(
        self, words: tuple[str, ...], separator: bytes, are_files: bool = False, without: str | None = None,
        never: frozenset[str] = frozenset(),
    ) -> None:  # fmt: skip
        """``are_files``: words are names of files. ``without``: a folder in which patterns find nothing, unless they
        begin there. ``never``: files that they never find. Both are absolute paths. Raises Mistake for a file that
        cannot be read or is not there, or a pattern that nothing matches."""
        self.total: int | None = 0
        self.known: list[str] = []
        shared: set[str] | None = set()
        sources: list[Iterator[str]] = []
        for word in words:
            count: int | None = 1
            if word == "-" or (word.startswith("@") and len(word) > 1):
                lines = Lines(word[1:], separator)
                sources.append(lines)
                count, shared = lines.count(), None
            elif glob.has_magic(word) and not os.path.lexists(word):
                found = _matches(word, without, never)
                head = list(itertools.islice(found, _COUNTED))
                if not head:
                    raise _nothing_matches(word)
                count = len(head) if len(head) < _COUNTED else None
                head.sort()
                self.known += head
                sources.append(itertools.chain(head, found))
                if shared is not None:
                    shared.add(_before_magic(word))
            else:
                if are_files and not os.path.lexists(word):
                    raise no_such_file(word)
                sources.append(iter((word,)))
                self.known.append(word)
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


def _matches(pattern: str, without: str | None, never: frozenset[str]) -> Iterator[str]:
    """Files; folders if the pattern ends with a slash."""
    root = _before_magic(pattern)
    if without is not None and (root == without or root.startswith(without + os.sep)):
        without = None
    for path in _glob(pattern):
        if not pattern.endswith(os.sep) and os.path.isdir(path):
            continue
        full = os.path.abspath(path)
        if full not in never and (without is None or not full.startswith(without + os.sep)):
            yield path


def _glob(pattern: str) -> Iterator[str]:
    """As ``glob.iglob``, but ``**`` does not go through links to folders, which may lead in circles, and nothing is
    found twice."""
    parts = pattern.split(os.sep)
    if "**" not in parts:
        yield from glob.iglob(pattern)
        return
    at = parts.index("**")
    rest = os.sep.join(parts[at + 1 :]) if at + 1 < len(parts) else "*"
    found: set[str] | None = set() if "**" in parts[at + 1 :] else None
    for top in glob.iglob(os.sep.join([*parts[:at], ""])) if at else ("",):
        for folder, inner, _ in os.walk(top or os.curdir):
            inner[:] = [name for name in inner if not name.startswith(".")]
            name = folder if top else folder[len(os.curdir + os.sep) :]
            for path in _glob(os.path.join(glob.escape(name), rest)):
                if found is None or path not in found:
                    yield path
                if found is not None:
                    found.add(path)


def _nothing_matches(pattern: str) -> Mistake:
    folder = _before_magic(pattern)
    if not os.path.isdir(folder):
        return no_such_file(pattern, folder)
    return Mistake(f"no file matches {pattern!r} (what is no pattern may come from @FILE or -)")


def no_such_file(word: str, path: str | None = None) -> Mistake:
    """That ``path`` is missing, by default ``word`` itself, with what looks like it in the same place."""
    path, near = path or word, ""
    while not os.path.isdir(folder := os.path.dirname(path) or "."):
        path = folder
    with contextlib.suppress(OSError):
        near = nearest(os.path.basename(path), os.listdir(folder))
    what = "" if path == word else f": there is no {os.path.relpath(path)!r}"
    return Mistake(f"no such file: {word!r}{what}{near}")


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
            raise Mistake(f"cannot read {name or 'standard input'!r}: {error.strerror}") from None
        with contextlib.suppress(OSError):
            fcntl.fcntl(self._fd, fcntl.F_SETPIPE_SZ, _BLOCK)  # so that who writes is not woken for every few lines
        self._patience = _PATIENCE
        self._lines: list[bytes] = []
        self._begun: list[bytes] = []  # of a line whose end has not been read yet
        self._ended = False

    def count(self) -> int | None:
        """How many there are; None for what is not a file."""
        if not self._file:
            return None
        at = os.lseek(self._fd, 0, os.SEEK_CUR)
        total = 0
        while block := os.pread(self._fd, _BLOCK, at):
            at += len(block)
            total += sum(map(bool, self._whole_lines(block)))
        total += any(self._begun)
        self._begun.clear()
        return total

    def _whole_lines(self, block: bytes) -> list[bytes]:
        """Those that end in this block."""
        self._begun.append(block)
        if self._separator not in block:  # a line of many blocks is put together once
            return []
        text = b"".join(self._begun)
        if self._text and b"\r" in text:  # lines as Windows writes them
            text = text.replace(b"\r\n", b"\n")
        lines = text.split(self._separator)
        self._begun = [lines.pop()]
        return lines

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
        lines = self._whole_lines(block)
        if not block:
            self._ended = True
            lines = [b"".join(self._begun)]
        lines.reverse()
        self._lines = lines
