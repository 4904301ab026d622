"""Programs under valgrind's callgrind: how many instructions were executed between two of its dumps, and by whom."""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
import sys
import sysconfig
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
FLAGS = ("-O2", "-DNDEBUG", "-DIPC_LOOK_NS=UINT64_MAX")
"""As the extension is built by setup.py, but that no task is taken for a long one because valgrind is slow."""
CC = "gcc"
WAITING = ("ipc_worker_wait", "ipc_client_spin", "ipc_client_sleep")
_CLOCK, _CALLS = "ipc_now", "syscall"
_NAME = re.compile(r"(c?)fn=\((\d+)\)(?: (.*))?$")
_COST = re.compile(r"[+\-*\d]\S* (\d+)")


class Missing(Exception):
    """A tool is not installed. The text says which, and how to get it."""


@dataclass
class Counts:
    """What happened between two dumps, in all; waiting for others (spinning, falling asleep) is left out.

    ``clock``: looks at the clock; ``calls``: other system calls of the core (both right only where callgrind collects
    all the time); ``own``: instructions by function, without those that it calls; ``within``: with them, as far as it
    is called by others.
    """

    instructions: int = 0
    clock: int = 0
    calls: int = 0
    own: Counter[str] = field(default_factory=Counter)
    within: Counter[str] = field(default_factory=Counter)

    def __add__(self, other: Counts) -> Counts:
        return Counts(
            self.instructions + other.instructions,
            self.clock + other.clock,
            self.calls + other.calls,
            self.own + other.own,
            self.within + other.within,
        )


def look_for_tools() -> None:
    for tool, package in ((CC, "gcc"), ("valgrind", "valgrind")):
        if shutil.which(tool) is None:
            raise Missing(f"{tool} is not installed (Debian: apt-get install {package})")


def compiler() -> str:
    done = subprocess.run([CC, "-dumpfullversion"], capture_output=True, text=True, check=True)
    machine = subprocess.run([CC, "-dumpmachine"], capture_output=True, text=True, check=True)
    return f"{CC} {done.stdout.strip()} {machine.stdout.strip()}"


def build_core(core: Path, out: Path) -> Path:
    """The program that takes the steps of the core in the folder ``core``."""
    path = out / "core"
    _compile("-std=gnu11", f"-I{core}", "-o", str(path), str(HERE / "core.c"), *map(str, sorted(core.glob("*.c"))))
    return path


def build_marks(out: Path) -> Path:
    """A library with ``mark``: end what is counted under one name."""
    path = out / "marks.so"
    _compile("-shared", "-fPIC", "-o", str(path), str(HERE / "marks.c"))
    return path


def build_extension(out: Path) -> Path:
    """``ipc._core``, from the sources as they are, however the installed one was built."""
    path = out / "_core.abi3.so"
    sources = [*sorted((ROOT / "ipc").glob("*.c")), *sorted((ROOT / "ipc" / "core").glob("*.c"))]
    _compile(
        *("-std=c11", "-shared", "-fPIC", "-fvisibility=hidden", "-DPy_LIMITED_API=0x030b0000"),
        *(f"-I{sysconfig.get_path('include')}", "-o", str(path), *map(str, sources)),
    )
    return path


def _compile(*words: str) -> None:
    done = subprocess.run([CC, *FLAGS, *words], capture_output=True, text=True)
    if done.returncode:
        raise Missing(f"{CC} failed, are the headers of valgrind and Python installed?\n{done.stderr.strip()}")


def run(
    command: list[str], out: Path, *options: str, env: dict[str, str] | None = None
) -> dict[str, tuple[Counts, int]]:
    """What each dump with a name "what=n" says: what → (counts, n). Of several with one name the cheapest counts; those
    with a name "what+=n" are added up."""
    valgrind = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={out}/callgrind.%p", *options]
    done = subprocess.run([*valgrind, *command], cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed under valgrind:\n{done.stderr[-2000:]}")
    found: dict[str, tuple[Counts, int]] = {}
    for file in out.glob("callgrind.*"):
        text = file.read_text()
        if told := re.search(r"^desc: Trigger: Client Request: (.*?)(\+?)=(\d+)$", text, re.M):
            counts, n = parse(text), int(told[3])
            before, n_before = found.get(told[1], (counts, n))
            if before is not counts and told[2]:
                found[told[1]] = before + counts, n_before + n
            elif counts.instructions <= before.instructions:
                found[told[1]] = counts, n
    return found


def parse(text: str) -> Counts:
    """One file of callgrind. Its format: a line ``fn=`` for each function, lines with a position and a cost of its own,
    and for each of its calls ``cfn=``, ``calls=`` and a line with the cost of all that was done in these calls."""
    counts = Counts()
    names: dict[str, str] = {}
    function = called = ""
    in_call = False
    for line in text.splitlines():
        if name := _NAME.match(line):
            if name[3]:
                names[name[2]] = name[3].split("'")[0]  # behind it: the depth of a recursion
            if name[1]:
                called = names[name[2]]
            else:
                function = names[name[2]]
        elif line.startswith("calls="):
            in_call = True
            times = int(line[6:].split()[0])
            counts.clock += times if called == _CLOCK else 0
            counts.calls += times if called == _CALLS else 0
        elif cost := _COST.match(line):
            if not in_call:
                counts.own[function] += int(cost[1])
            elif called != function:
                counts.within[called] += int(cost[1])
                if called in WAITING and function not in WAITING:
                    counts.instructions -= int(cost[1])
            in_call = False
    counts.instructions += counts.own.total()
    for waiting in WAITING:
        del counts.own[waiting]
    return counts


def interpreter() -> str:
    """What decides how many instructions it takes; not when it was built."""
    optimised = "--enable-optimizations" in str(sysconfig.get_config_var("CONFIG_ARGS"))
    how = "profile-guided" if optimised else "not profile-guided"
    return f"{sys.implementation.name} {platform.python_version()}, {platform.python_compiler()}, {how}"
