"""The last line of a terminal, kept for one line of ours while anybody writes to the rest.

Tasks, and the programs that they start, write straight to the terminal that they have inherited. So the line is not
redrawn after each of them, but kept out of their reach, as apt does it: a scroll region (DECSTBM) ends above the last
line, and a drawing jumps there and back (DECSC, DECRC) in one write(2), which the kernel does not mix with others.
"""

from __future__ import annotations

import contextlib
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

SAVE, RESTORE = "\0337", "\0338"  # cursor, with its colours
FULL = SAVE + "\033[r" + RESTORE  # no scroll region; setting one moves the cursor
_LEAST_LINES = 3

_open: LastLine | None = None  # one at a time in a process


class LastLine:
    """The last line of the terminal ``fd``. Nothing is done to the terminal before the first ``draw``.

    All methods raise OSError if the terminal is gone. In a process that was forked since they do nothing: the line is
    its parent's."""

    def __init__(self, fd: int, encoding: str = "utf-8") -> None:
        self._fd = fd
        self._encoding = encoding
        self._pid = os.getpid()
        self._size: tuple[int, int] | None = None  # columns and lines that the region was made for

    def take(self) -> bool:
        """Whether it was ours already. If nobody in this process has it, it is ours from now on: `held` says so before
        anything is drawn."""
        global _open
        ours = _open is self
        if _open is None and self._pid == os.getpid():
            _open = self
        return ours

    def draw(self, line: Callable[[int], str]) -> None:
        """Show ``line(columns)`` there, which must be narrower than that. Takes the line away from the others first;
        again if the terminal's size has changed. Does nothing before `take`, or if there are less than three lines."""
        if self._pid != os.getpid() or _open is not self:
            return
        columns, lines = os.get_terminal_size(self._fd)
        if lines < _LEAST_LINES:
            return
        text = ""
        if self._size != (columns, lines):
            self._size = columns, lines
            # One line down (which scrolls at the bottom) and up again: the cursor is not on the last line then.
            text = f"{FULL}\033D\033[A{SAVE}\033[1;{lines - 1}r{RESTORE}"
        text += f"{SAVE}\033[{lines};1H\033[m{line(columns)}\033[m\033[K{RESTORE}"
        self._write(text)

    def close(self, line: Callable[[int], str] | None = None) -> None:
        """Give the last line back. ``line(columns)``, if given, is written as a line among others, and the cursor
        stands below it. Idempotent."""
        global _open
        if self._pid != os.getpid():
            return
        text = ""
        if _open is self:
            drawn, _open, self._size = self._size is not None, None, None
            if drawn:
                text = f"{FULL}{SAVE}\033[{os.get_terminal_size(self._fd).lines};1H\033[2K{RESTORE}"
        if line is not None:
            columns = os.get_terminal_size(self._fd).columns
            # Somebody may have left the cursor behind a text. Spaces for a whole line bring it into the next one then,
            # and else leave it where it is.
            text += f"\033[m{' ' * columns}\r{line(columns)}\033[m\033[K\r\n"
        if text:
            self._write(text)

    def _write(self, text: str) -> None:
        os.write(self._fd, text.encode(self._encoding, errors="replace"))


def is_fit(fd: int) -> bool:
    """Whether ``fd`` is a terminal with a last line."""
    try:
        return (
            os.isatty(fd)
            and (os.environ.get("TERM") or "dumb") != "dumb"
            and os.get_terminal_size(fd).lines >= _LEAST_LINES
        )
    except OSError:
        return False


def held() -> str:
    """Path of the terminal whose last line this process has; empty if it has none."""
    with contextlib.suppress(OSError):
        if _open is not None and _open._pid == os.getpid():
            return os.ttyname(_open._fd)
    return ""


def give_back(path: str) -> None:
    """For a process that had the last line and was killed: end its scroll region. Never blocks, raises nothing."""
    with contextlib.suppress(OSError):
        fd = os.open(path, os.O_WRONLY | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            if os.isatty(fd):
                lines = os.get_terminal_size(fd).lines
                os.write(fd, f"{FULL}{SAVE}\033[{lines};1H\033[2K{RESTORE}".encode())
        finally:
            os.close(fd)


__all__ = ["LastLine", "give_back", "held", "is_fit"]
