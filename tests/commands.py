"""``python -m pool`` as its user runs it: in a folder with a module, real processes, real files. A test module imports
``folder``, which puts all its tests there."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

TASKS = """
import os, signal, sys, time
from pathlib import Path

def nothing(x): pass
def of_kind(x, kind): pass
def upper(x: str, times: int = 1): return x.upper() * times
def add(x: int, *, n: float): return x + n
def where(x: Path): return type(x).__name__ + str(x.parent)
def some_fail(x):
    if x == "bad": raise ValueError("a bad\\none")
    if x == "segv": os.kill(os.getpid(), signal.SIGSEGV)
    if x == "hang": time.sleep(1000)
    if x == "exit": sys.exit(3)
    return x
def copy(src, dst):
    Path(dst).write_bytes(Path(src).read_bytes())
def half(src, dst):
    Path(dst).write_text("half")
    if "bad" in src: raise ValueError("bad")
    if "segv" in src: os.abort()
def content(src): return Path(src).read_bytes() * 2
def number(src): return 7
def forgets(src, dst): pass
def noted(x):
    with open("ledger", "a") as file: file.write(f"{x}\\n")
    if x.endswith("5"): raise ValueError("five")
class Odd:
    def __str__(self): raise RuntimeError("no text")
class OddError(Exception):
    def __str__(self): raise RuntimeError("no text")
def odd(x):
    if x == "error": raise OddError
    return Odd() if x == "value" else x
def slow_copy(src, dst):
    with open(dst, "wb", buffering=0) as file:
        for byte in Path(src).read_bytes():
            file.write(bytes([byte]))
            time.sleep(0.001)
    with open("ledger", "a") as file: file.write(f"{os.path.basename(src)}\\n")
def tells(x):
    print(f"task {x}", flush=True)
    time.sleep(1000)
class Holder:
    @staticmethod
    def inner(x): return "inner " + x
    def method(self, x): return x
def generates(x): yield x
async def waits(x): return x
def unpicklable(x): return sys._getframe()
def total(x, *, sizes: list[int], more=None): return sum(sizes) + len(more)
constant = 3
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with tasks.py, in which everything runs."""
    (tmp_path / "tasks.py").write_text(TASKS)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def files(folder: Path) -> Path:
    for name in ("in/a.txt", "in/x/a.txt", "in/x/b.txt"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    return folder


def start(*words: object, **options: Any) -> subprocess.Popen[str]:
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
    return subprocess.Popen([sys.executable, "-m", "pool", *map(str, words)], text=True, **pipes)


def run(*words: object, code: int = 0, input: str | None = None) -> tuple[str, str]:
    """(stdout, stderr) of one command, which must end with ``code``."""
    ran = start(*words, **({} if input is None else {"stdin": subprocess.PIPE}))
    try:
        out, err = ran.communicate(input, timeout=60)
    finally:
        ran.kill()
    assert ran.returncode == code, err
    return out, err


def lines(*words: object, **options: Any) -> list[str]:
    """What ``pool map -k`` prints."""
    return run("map", "-k", *words, **options)[0].splitlines()


def ledger() -> list[str]:
    """What the task ``noted`` has written down."""
    return Path("ledger").read_text().split() if Path("ledger").exists() else []
