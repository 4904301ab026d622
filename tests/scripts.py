"""Runs scripts of tests in a fresh interpreter: for what happens at its exit, in its `__main__`, or after a fork."""

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

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


def start(folder: Path, text: str, *arguments: str) -> subprocess.Popen[str]:
    file = folder / "script.py"
    file.write_text(textwrap.dedent(text))
    return subprocess.Popen(
        [sys.executable, "-X", "faulthandler", str(file), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "PYTHONPATH": str(HERE), "PYTHONUNBUFFERED": "1"},
    )
