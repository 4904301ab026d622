"""Runs scripts of tests in a fresh interpreter: for what happens at its exit, in its `__main__`, or after a fork."""

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
TIMEOUT = 30


def run(folder: Path, text: str, *arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    """Run `text` as a script, and check its exit code. It is killed, and the test fails, if it hangs."""
    with start(folder, text, *arguments) as script:
        try:
            out, err = script.communicate(timeout=TIMEOUT)
        except subprocess.TimeoutExpired:
            script.send_signal(signal.SIGABRT)  # faulthandler says where it was
            out, err = script.communicate()
            raise AssertionError(f"the script hangs\n{out}\n{err}") from None
    assert script.returncode == code, f"exit code {script.returncode}\n{out}\n{err}"
    return subprocess.CompletedProcess(script.args, script.returncode, out, err)


class Script(subprocess.Popen[str]):
    """Left with an exception, it is killed: else the failed test would wait for it."""

    def __exit__(self, error: type[BaseException] | None, *more: Any) -> None:
        if error is not None:
            self.kill()
        super().__exit__(error, *more)


def start(folder: Path, text: str, *arguments: str, options: Sequence[str] = ()) -> Script:
    """`options`, as ``-m program``: for Python, in the folder, in place of the script and its arguments."""
    file = folder / "script.py"
    file.write_text(textwrap.dedent(text))
    return Script(
        [sys.executable, "-X", "faulthandler", *(options or (str(file), *arguments))],
        cwd=folder if options else None,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "PYTHONPATH": str(HERE), "PYTHONUNBUFFERED": "1"},
    )
