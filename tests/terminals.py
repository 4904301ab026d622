"""A terminal: a pty, and an emulator that plays its screen."""

import contextlib
import fcntl
import os
import pty
import signal
import struct
import sys
import termios
import textwrap
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import processes
import pyte
import pytest
import scripts


class Terminal:
    """A command whose controlling terminal is ``screen``."""

    def __init__(self, command: list[str], columns: int = 80, lines: int = 12, **environment: str) -> None:
        self.screen = pyte.HistoryScreen(columns, lines, history=1000)
        self._stream = pyte.ByteStream(self.screen)
        self._lock = threading.Lock()
        self.raw = b""
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            variables = {
                **os.environ,
                "PYTHONPATH": str(scripts.HERE),
                "TERM": "xterm",
                "LANG": "C.UTF-8",
                **environment,
            }
            variables.pop("PYTHONUNBUFFERED", None)  # it writes each end of a line by itself
            os.execvpe(command[0], command, variables)
        self._set_size(columns, lines)
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _set_size(self, columns: int, lines: int) -> None:
        fcntl.ioctl(self.fd, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def resize(self, columns: int, lines: int) -> None:
        """The window has another size now; as terminals do, its scroll region is gone, and the last lines stay."""
        with self._lock:
            self.screen.resize(lines, columns)
            self._set_size(columns, lines)

    def _read(self) -> None:
        with contextlib.suppress(OSError):  # the command has ended
            while data := os.read(self.fd, 65536):
                with self._lock:
                    self.raw += data
                    self._stream.feed(data)

    def lines(self) -> list[str]:
        """What is on the screen, without blanks at the ends."""
        with self._lock:
            return [line.rstrip() for line in self.screen.display]

    def all_lines(self) -> list[str]:
        """With what was scrolled off, without empty lines."""
        with self._lock:
            top = ["".join(row[x].data for x in range(self.screen.columns)).rstrip() for row in self.screen.history.top]
        return [line for line in [*top, *self.lines()] if line]

    def wait_for(self, condition: Callable[[list[str]], Any]) -> Any:
        try:
            return processes.wait_until(lambda: condition(self.lines()), "what is waited for", 20)
        except AssertionError as error:
            raise AssertionError(f"{error}; the screen is {self.lines()}") from None

    def type(self, keys: str) -> None:
        os.write(self.fd, keys.encode())

    def end(self) -> int:
        """Wait for the end of the command, and of its output. Its exit code."""
        code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        self.pid = 0
        self._reader.join(20)
        return code

    def close(self) -> None:
        if self.pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        self._reader.join(20)
        os.close(self.fd)


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Callable[..., Terminal]]:
    """Starts commands, or scripts (their text), on terminals of their own."""
    started: list[Terminal] = []

    def start(what: str | list[str], *size: int, **environment: str) -> Terminal:
        if isinstance(what, str):
            file = tmp_path / "script.py"
            file.write_text(textwrap.dedent(what))
            what = [sys.executable, str(file)]
        started.append(Terminal(what, *size, **environment))
        return started[-1]

    yield start
    for one in started:
        one.close()
