"""Bugs that the runner must find: textual changes of the sources, in a copy of them that only the player imports.

``python -m chaos.planted [NAME ...]`` plants one after the other and says which invariant has caught it, and how long
that took. The episode that has caught a bug is played again in a copy that was made in the same way, without the bug:
what is broken there too is no catch. Exit code 0: all were caught.
"""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from chaos import campaign, plan
from chaos.sources import ROOT

HANG = 20.0  # seconds; an episode of hail takes up to 30 beside other work
LIMIT = 90.0  # seconds in which a bug must be found


class Planted(NamedTuple):
    """A bug: what to replace in which file (each text must occur exactly once), the profile of the episodes that must
    find it, and invariants any of which must be what they break. `quick`: found in a few seconds, so `make test` looks
    for it."""

    name: str
    file: str
    edits: list[tuple[str, str]]
    profile: str
    breaks: str
    quick: bool = False


PLANTED = [
    Planted(
        "a crash spends no attempt",
        "pool/retry.py",
        [("return Again(Tries(attempt + 1, crashes", "return Again(Tries(attempt + (why != CRASHED), crashes")],
        "mixed",
        "I6",
    ),
    Planted(
        "a task that raises is run once more than it may",
        "pool/retry.py",
        [("if attempt > retries or", "if attempt > retries + (why == RAISED) or")],
        "mixed",
        "I6",
    ),
    Planted(
        "a task goes back into the queue twice",
        "pool/futures.py",
        [
            (
                "            self._client.again(task, again)\n"
                "        else:\n            self._raw = (codec.DEATH, death)",
                "            self._client.again(task, again)\n" * 2
                + "        else:\n            self._raw = (codec.DEATH, death)",
            )
        ],
        "storm",
        "I4 I5 I6",
        quick=True,
    ),
    Planted(
        "settlement ignores the generation",
        "ipc/core/client.c",
        [("if ((int16_t)(uint16_t)(generation - reaped) >= 0) continue;", "")],
        "storm",
        "I4 I5 G2",
        quick=True,
    ),
    Planted(
        "what a dead worker had taken of the memory is not freed",
        "ipc/core/client.c",
        [
            ("        ipc_units_free_all(s, ipc_owner(row, c->seq[row]));", "        ;"),
            (
                "    if (ref) ipc_units_free(s,",
                "    if (ref && ipc_word_state(load_word(s, row)) == IPC_DONE) ipc_units_free(s,",
            ),
        ],
        "storm",
        "I12",
    ),
    Planted(
        "the last item of a chunk is forgotten at a death",
        "pool/map_run.py",
        [("for k in reversed(range(item, task.items)):", "for k in reversed(range(item, task.items - 1)):")],
        "storm",
        "I14",
    ),
    Planted(
        "a committed item of a chunk runs again",
        "pool/map_run.py",
        [("for k in reversed(range(item, task.items)):", "for k in reversed(range(max(0, item - 2), task.items)):")],
        "storm",
        "I2 I4 I14",
    ),
    Planted(
        "a chunk's first item pays for a death before it",
        "pool/map_run.py",
        [
            (
                "        if item:\n            again",
                "        if item or self._single(task, 0) is None:\n            again",
            )
        ],
        "storm",
        "I2 I4 I14",
    ),
    Planted(
        "cancelled, and run nonetheless",
        "pool/client.py",
        [("cancelled = bool(_core.cancel(self.segment, self.tasks, sink.row))", "cancelled = True")],
        "calm",
        "I4 I6",
        quick=True,
    ),
    Planted(
        "killed, and run again",
        "pool/task.py",
        [("    if death.killed or task.sink.dropped:", "    if task.sink.dropped:")],
        "mixed",
        "I3",
    ),
    Planted(
        "the deadline kills who is there, without a decision on the exact word",
        "pool/monitor.py",
        [
            (
                "w.status is None and _core.condemn(self._segment, row, word):",
                "w.status is None and (_core.condemn(self._segment, row, word) or True):",
            )
        ],
        "racing",
        "I4",
    ),
    Planted(
        "the record of a death names another signal",
        "pool/monitor.py",
        [("w.generation, pid, status, w.reason, w.peak)", "w.generation, pid, status ^ 2, w.reason, w.peak)")],
        "hail",
        "I4",
    ),
    Planted(
        "a slot stays empty",
        "pool/monitor.py",
        [
            (
                "w.fork_at = now + self._restarts.died(w.slot, now)",
                "w.fork_at = now + self._restarts.died(w.slot, now) + 60 * (w.generation == 3)",
            )
        ],
        "storm",
        "I11 I14",
    ),
    Planted(
        "a hint is lost",
        "ipc/core/worker.c",
        [
            (
                "    atomic_fetch_or_explicit(&h->done[row / 64], UINT64_C(1) << (row & 63), memory_order_seq_cst);\n",
                "    if (row & 31 || row == 0) atomic_fetch_or(&h->done[row / 64], UINT64_C(1) << (row & 63));\n",
            )
        ],
        "calm",
        "R7",
        quick=True,
    ),
    Planted(
        "a value's memory is given to somebody else",
        "ipc/core/client.c",
        [("    ipc_units_give(c->s, result->unit, count, ipc_owner(row, c->seq[row]), IPC_OWNER_VIEW);\n", "")],
        "storm",
        "I7 I12",
        quick=True,
    ),
    Planted(
        "processes of a pool whose monitor was killed stay",
        "pool/launch.py",
        [
            (
                "        self._kill_what_is_left()\n        self._close()\n\n    def _close",
                "        self._close()\n\n    def _close",
            )
        ],
        "ends",
        "I15",
    ),
    Planted(
        "a deadline comes too early",
        "ipc/core/monitor.c",
        [("(uint64_t)r.timeout_ms * 1000000u;", "(uint64_t)r.timeout_ms * 750000u;")],
        "mixed",
        "G6",
    ),
    Planted(
        "the monitor keeps a descriptor of each dead worker",
        "pool/monitor.py",
        [
            (
                "            self._poll.unregister(w.pidfd)\n            os.close(w.pidfd)\n",
                "            self._poll.unregister(w.pidfd)\n",
            )
        ],
        "storm",
        "I12",
    ),
    Planted(
        "the end of a worker is not counted",
        "pool/tally.py",
        [("reaped - _core.DEATHS), reaped):", "reaped - _core.DEATHS), reaped - (reaped == 2)):")],
        "storm",
        "I13",
    ),
    Planted(
        "nobody waits for orphans",
        "pool/monitor.py",
        [("            process.reap(found.si_pid)\n", "            return\n")],
        "mixed",
        "I11",
    ),
    Planted(
        "poison is given again",
        "pool/retry.py",
        [("or crashes >= MOST_CRASHES", "or crashes > MOST_CRASHES")],
        "hail",
        "I6",
    ),
    Planted(
        "crashes are not counted",
        "pool/client.py",
        [("self.crashes += not death.condemned", "self.crashes += 0")],
        "storm",
        "I10",
    ),
]


class Hunt(NamedTuple):
    """`broken`: what the episode with the bug has broken, nothing if none has in time; `anyway`: what the same episode
    breaks without it."""

    broken: list[str]
    number: int
    anyway: list[str]

    @property
    def caught(self) -> bool:
        return bool(self.broken) and not self.anyway


def build(bug: Planted, folder: Path, objects: Path, planted: bool = True) -> None:
    """A copy of the sources, with the bug or, made in the same way, without. `objects`: the compiled ones without."""
    for package in ("pool", "ipc"):
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__", "model"))
    text = (folder / bug.file).read_text()
    for old, new in bug.edits if planted else ():
        assert text.count(old) == 1, f"{bug.file} has changed: it has {text.count(old)} times {old!r}"
        text = text.replace(old, new)
    (folder / bug.file).write_text(text)
    if bug.file.endswith(".c"):
        changed = compiled(folder, bug.file, folder / "changed.o")
        others = [path for path in objects.glob("*.o") if path.name != _object(bug.file)]
        (extension,) = (folder / "ipc").glob("_core*.so")
        _run("cc", "-shared", "-fvisibility=hidden", "-o", str(extension), str(changed), *map(str, others))


def compiled(root: Path, file: str, to: Path) -> Path:
    options = ("-std=c11", "-O1", "-w", "-fPIC", "-fvisibility=hidden", "-DPy_LIMITED_API=0x030b0000", "-c")
    _run("cc", *options, "-I" + sysconfig.get_path("include"), "-o", str(to), str(root / file))
    return to


def _object(file: str) -> str:
    return file.replace("/", "-") + ".o"


def compile_all(to: Path) -> None:
    """Every C source as it is."""
    files = [str(path.relative_to(ROOT)) for path in [*ROOT.glob("ipc/*.c"), *ROOT.glob("ipc/core/*.c")]]
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        for _ in threads.map(lambda file: compiled(ROOT, file, to / _object(file)), files):
            pass


def _run(*command: str) -> None:
    made = subprocess.run(command, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr  # an error of the compiler is never taken for a caught bug


def hunt(bug: Planted, objects: Path) -> Hunt:
    """Plays episodes until one fails as it must or the time is over; then the same one without the bug."""
    with tempfile.TemporaryDirectory(prefix="planted-") as folder:
        build(bug, Path(folder), objects)
        end = time.monotonic() + LIMIT
        for number in itertools.count():
            broken = _broken(bug, number, folder)
            if broken or time.monotonic() > end:
                break
    with tempfile.TemporaryDirectory(prefix="planted-") as folder:
        build(bug, Path(folder), objects, planted=False)
        return Hunt(broken, number, _broken(bug, number, folder))


def _broken(bug: Planted, number: int, folder: str) -> list[str]:
    verdict, _ = campaign.play(plan.draw(bug.profile, number), folder, HANG)
    return [text for text in verdict.wrong if text.partition(":")[0] in bug.breaks.split()]


def main(names: list[str]) -> int:
    chosen = [bug for bug in PLANTED if not names or bug.name in names]
    missed = 0
    with tempfile.TemporaryDirectory(prefix="planted-") as objects:
        compile_all(Path(objects))
        for bug in chosen:
            began = time.monotonic()
            found = hunt(bug, Path(objects))
            missed += not found.caught
            said = f"caught in episode {found.number}: {found.broken[0][:90]}" if found.broken else "NOT CAUGHT"
            if found.anyway:
                said = f"BROKEN WITHOUT IT TOO, episode {found.number}: {found.anyway[0][:90]}"
            print(f"{bug.name:>62}: {time.monotonic() - began:5.1f} s, {said}", flush=True)
    print(f"{len(chosen) - missed}/{len(chosen)} caught")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
