"""``pool map --journal``: what is recorded, and runs that go on where another stopped."""

import errno
import json
import os
import re
import resource
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import processes
import psutil
import pytest
from commands import files, folder, ledger, run, start

from pool.cli.journal import Journal

__all__ = ["files", "folder"]


def test_recorded_inputs_are_not_done_again() -> None:
    command = ("map", "tasks:noted", "1", "2", "5", "--journal", "j.db")
    assert "2 of 3 done" in run(*command, code=1)[1]
    err = run(*command, code=1)[1]
    assert "failed  5  ValueError: five" in err  # still not done, so it is still said
    assert "2 of 3 done" in err
    assert "; 3 recorded before" in err
    assert sorted(ledger()) == ["1", "2", "5"]
    run(*command, "3", code=1)
    assert sorted(ledger()) == ["1", "2", "3", "5"]
    run(*command, "--retry-failed", code=1)
    assert sorted(ledger()) == ["1", "2", "3", "5", "5"]


def test_the_journal_is_no_input_of_the_next_run() -> None:
    command = ("map", "tasks:nothing", "*", "--journal", "j.db", "--plot", "workers.svg")
    assert run(*command)[1].startswith("1 of 1 done")
    Path("j.db-wal").touch()  # as a killed run leaves it
    assert run(*command)[1].startswith("1 of 1 done")


def test_changed_file_is_another_input() -> None:
    Path("file").write_text("one")
    command = ("map", "tasks:noted", "file", "--journal", "j.db")
    run(*command)
    run(*command)
    assert ledger() == ["file"]
    Path("file").write_text("two and more")
    run(*command)
    assert ledger() == ["file", "file"]


def test_other_arguments_or_outputs_are_other_work(files: Path) -> None:
    command = ("map", "tasks:upper", "a", "--journal", "j.db", "--json")
    for words, before in ((), 0), ((), 1), (("-a", "times=2"), 0), (("-a", "times=2"), 1):
        assert json.loads(run(*command, *words)[0].splitlines()[-1])["summary"]["before"] == before
    for out, before in ("out", 0), ("out", 1), ("other", 0):
        text = run("map", "tasks:copy", "in/a.txt", "--out", out, "--journal", "j.db", "--json")[0]
        assert json.loads(text.splitlines()[-1])["summary"]["before"] == before


def recorded(*words: str, **options: Any) -> int:
    """How many inputs of a run were recorded before."""
    found: int = json.loads(run(*words, "--json", **options)[0].splitlines()[-1])["summary"]["before"]
    return found


def test_arguments_of_other_types_are_other_work() -> None:
    command = ("map", "tasks:of_kind", "a", "--journal", "j.db")
    assert [recorded(*command, "-a", f"kind={kind}") for kind in ("true", "True", "true", "1", "1.0")] == [
        0,
        0,
        1,
        0,
        0,
    ]


def test_file_is_the_same_from_every_folder_and_a_name_is_not(folder: Path) -> None:
    for name in ("one/file", "two/file", "two/tasks.py"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text((folder / "tasks.py").read_text())
    os.utime("one/file", (1, 1))
    os.utime("two/file", (1, 1))
    command = ("map", f"{folder}/tasks.py:nothing", "--journal", f"{folder}/j.db")
    assert recorded(*command, "one/file") == 0
    os.chdir("one")
    assert recorded(*command, "file") == 1
    os.chdir("../two")
    assert recorded(*command, "file") == 0  # another one, though as large and as old
    assert recorded("map", "tasks.py:nothing", "file", "--journal", f"{folder}/j.db") == 0  # another module


def test_output_that_is_gone_is_made_again(files: Path) -> None:
    command = ("map", "tasks:copy", "in/a.txt", "in/x/b.txt", "--out", "out", "--journal", "j.db")
    run(*command)
    Path("out/a.txt").unlink()
    assert recorded(*command) == 1
    assert Path("out/a.txt").exists()


def test_other_names_of_outputs_are_said(files: Path) -> None:
    run("map", "tasks:copy", "in/x/a.txt", "--out", "out", "--journal", "j.db")
    err = run("map", "tasks:copy", "in/x/a.txt", "in/a.txt", "--out", "out", "--journal", "j.db")[1]
    assert f"note: the journal knows this work with --base {files}/in/x, where outputs have other names\n" in err
    again = run("map", "tasks:copy", "in/x/a.txt", "in/a.txt", "--out", "out", "--journal", "j.db")[1]
    assert "note" not in again


@pytest.mark.parametrize("names", [("double", "triple"), ("first", "second"), ("Scale.two", "Scale.three")])
def test_functions_are_told_apart_by_the_name_that_was_given(names: tuple[str, str]) -> None:
    Path("more.py").write_text(
        "import functools\n"
        "def times(x, *, k): return f'{k} x {x}'\n"
        "double, triple = functools.partial(times, k=2), functools.partial(times, k=3)\n"
        "first, second = lambda x: 1, lambda x: 2\n"
        "class Scale:\n"
        "    def __init__(self, k): self.k = k\n"
        "    def __call__(self, x): return self.k\n"
        "Scale.two, Scale.three = Scale(2), Scale(3)\n"
    )
    for name in names:
        assert recorded("map", f"more:{name}", "a", "--journal", "j.db") == 0
        assert recorded("map", f"more:{name}", "a", "--journal", "j.db") == 1


def test_results_that_nobody_has_seen_are_not_recorded() -> None:
    Path("list").write_text("".join(f"{number}\n" for number in range(30_000)))
    command = [sys.executable, "-m", "pool", "map", "tasks:upper", "@list", "--journal", "j.db"]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"}
    with open("/dev/full", "w") as full:
        assert subprocess.run(command, stdout=full, stderr=subprocess.DEVNULL, env=environment).returncode == 1
    assert recorded("map", "tasks:upper", "none", "--journal", "j.db") == 0
    with closing(sqlite3.connect("j.db")) as db:
        assert db.execute("SELECT count(*) FROM item").fetchone() == (1,)
    first = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment)
    assert first.stdout is not None
    seen = set(os.read(first.stdout.fileno(), 1 << 20).split(b"\n")[:-1])
    first.stdout.close()
    assert first.wait(30) == 141
    rest = set(subprocess.run(command, capture_output=True, env=environment).stdout.split(b"\n"))
    lost = {b"%d" % number for number in range(30_000)} - seen - rest
    assert len(lost) * 6 <= 1 << 16  # what the pipe had taken and nobody had read


def test_a_journal_needs_a_name() -> None:
    assert "the journal has no name" in run("map", "tasks:upper", "a", "--journal", "", code=2)[1]
    run("map", "tasks:upper", "a", "--journal", ":memory:")
    assert Path(":memory:").exists()


def test_looking_at_a_journal_changes_nothing() -> None:
    run("map", "tasks:noted", "1", "--journal", "j.db")
    before = {path: path.stat().st_mtime_ns for path in Path().iterdir()}
    assert "1 done" in run("journal", "j.db")[0]
    assert {path: path.stat().st_mtime_ns for path in Path().iterdir()} == before
    Path("empty.db").touch()
    assert "'empty.db' is no journal of pool map" in run("journal", "empty.db", code=2)[1]
    assert Path("empty.db").stat().st_size == 0


def test_failures_of_earlier_runs_do_not_stop_this_one() -> None:
    command = ("map", "tasks:noted", "5", "15", "1", "2", "--journal", "j.db", "--on-error", "raise", "-j", "1", "-k")
    run(*command, "--chunksize", "1", code=1)
    err = run(*command, "--chunksize", "1", code=1)[1]
    assert "stopped at the first failure" in err
    assert re.search("^2 of 4 done, 2 failed", run(*command, code=1)[1], re.M)
    assert ledger().count("5") == 1


def test_journal_is_shown(folder: Path) -> None:
    run("map", "tasks:noted", "1", "5", "--journal", "j.db", code=1)
    name = re.escape(f"{folder}/tasks.py:noted")
    assert re.fullmatch(name + r" \{\}: 1 done, 1 failed, [\d.]+ s of work, 1 run\n", run("journal", "j.db")[0])
    assert run("journal", "j.db", "--failed")[0].splitlines()[1] == "  5: ValueError: five"
    rows = [json.loads(line) for line in run("journal", "j.db", "--json")[0].splitlines()]
    assert {(row["input"], row["ok"]) for row in rows} == {("1", True), ("5", False)}


def test_two_runs_do_not_share_a_journal(folder: Path) -> None:
    first = start("map", "tasks:tells", "1", "--journal", "j.db")
    try:
        assert first.stdout is not None
        assert first.stdout.readline() == "task 1\n"
        err = run("map", "tasks:nothing", "1", "--journal", "j.db", code=2)[1]
        assert f"is in use by process {first.pid}\n" in err
        assert run("journal", "j.db")[0].startswith(f"{folder}/tasks.py:tells")  # it may be looked at
        first.kill()
        processes.wait_until(lambda: not processes.runs(first.pid), "it is dead, though we have not waited for it")
        run("map", "tasks:nothing", "1", "--journal", "j.db")
        assert not Path("j.db-lock").exists()
    finally:
        first.kill()
        first.communicate()


def test_full_disk_is_said_and_nothing_is_repeated_afterwards() -> None:
    Path("list").write_text("".join(f"{'x' * 200}{k}\n" for k in range(5000)))
    ran = start("map", "tasks:upper", "-", "--journal", "j.db", stdin=subprocess.PIPE)
    assert ran.stdin is not None
    assert ran.stdout is not None
    ran.stdin.write("first\n")
    ran.stdin.flush()
    assert ran.stdout.readline() == "FIRST\n"
    resource.prlimit(ran.pid, resource.RLIMIT_FSIZE, (300_000, 300_000))  # from now on, for the pool's memory is a file
    _, err = ran.communicate(Path("list").read_text(), timeout=30)
    assert ran.returncode == 1
    assert re.search(r"^the journal 'j.db' cannot be written: .*; the same command goes on from here$", err, re.M)
    assert "Traceback" not in err
    out = run("map", "tasks:nothing", "@list", "--journal", "j.db", "--json")[0]
    summary = json.loads(out.splitlines()[-1])["summary"]
    assert summary["done"] == 5000


def test_full_disk_is_said_by_the_journal(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", full)  # for the lock, whose file has room in no block yet
    Journal("j.db", "f", {}).close()
    assert not Path("j.db-lock").exists()


def test_interrupt_while_the_journal_is_closed_hides_no_failures() -> None:
    ran = start("map", "tasks:noted", "-", "--journal", "j.db", stdin=subprocess.PIPE)
    try:
        assert ran.stdin is not None
        ran.stdin.write("5\n")
        ran.stdin.flush()
        with closing(sqlite3.connect("j.db", isolation_level=None)) as db:

            def recorded() -> bool:
                with suppress(sqlite3.OperationalError):
                    return db.execute("SELECT input FROM item").fetchall() == [(b"5",)]
                return False

            processes.wait_until(recorded, "it is recorded")
            db.execute("BEGIN IMMEDIATE")  # closing waits for this
            ran.stdin.close()
            ran.stdin = None
            processes.wait_until(lambda: not psutil.Process(ran.pid).children(), "the pool has ended")
            ran.send_signal(signal.SIGINT)
            db.execute("ROLLBACK")
        _, err = ran.communicate(timeout=30)
    finally:
        ran.kill()
    assert ran.returncode == 130
    assert "failed  5  ValueError: five\ninterrupted: 0 of 1 done, 1 failed in " in err


def test_journal_is_at_most_100_ms_behind() -> None:
    """Also while nothing else happens: one task has ended, the others go on."""
    Path("more.py").write_text(
        "import time\n"
        "def wait(x):\n"
        "    if x != 'quick': time.sleep(1000)\n"
        "    open('ended', 'w').write(str(time.time()))\n"
    )
    assert any(_behind() < 0.3 for _ in range(5))  # on a machine that does other things, too


def _behind() -> float:
    ran = start("map", "more:wait", "a", "b", "quick", "--journal", "j.db", "-j", "3")
    try:

        def recorded() -> int:
            with closing(sqlite3.connect("j.db")) as db, suppress(sqlite3.OperationalError):  # there is no table yet
                return int(db.execute("SELECT count(*) FROM item").fetchone()[0])
            return 0

        processes.wait_until(recorded, "it is in the journal")
        return time.time() - float(Path("ended").read_text())
    finally:
        ran.kill()
        ran.communicate()
        for path in Path().glob("j.db*"):
            path.unlink()


def test_order_of_what_is_printed_does_not_hold_up_the_journal() -> None:
    Path("more.py").write_text(
        "import time\n"
        "def first_waits(x):\n"
        "    if x == '0': time.sleep(1000)\n"
        "    if x == '7': raise ValueError(x)\n"
        "    return x if int(x) >= 200 else None\n"
    )
    ran = start("map", "more:first_waits", *range(300), "--journal", "j.db", "-j", "2", "-k")
    try:

        def recorded() -> set[str]:
            with closing(sqlite3.connect("j.db")) as db, suppress(sqlite3.OperationalError):
                return {os.fsdecode(row[0]) for row in db.execute("SELECT input FROM item")}
            return set()

        processes.wait_until(lambda: recorded() == set(map(str, range(1, 200))), "all that print nothing are recorded")
    finally:
        ran.kill()
        assert ran.communicate()[0] == ""  # the others wait for their turn, and are done again


@pytest.fixture
def many(folder: Path) -> Iterator[Path]:
    (folder / "in").mkdir()
    for number in range(120):
        (folder / "in" / f"{number:03}").write_bytes(bytes([number]) * 30)
    return folder


def check_many(summary: str) -> None:
    outputs = {path.name: path.read_bytes() for path in Path("out").iterdir()}
    assert outputs == {f"{number:03}": bytes([number]) * 30 for number in range(120)}
    assert "120 of 120 done" in summary


def copied() -> Counter[str]:
    """How often ``slow_copy`` was done with each file."""
    return Counter(Path("ledger").read_text().split() if Path("ledger").exists() else ())


def test_interrupted_killed_and_finished(many: Path) -> None:
    command = ("map", "tasks:slow_copy", "in/*", "--out", "out", "--journal", "j.db", "-j", "4")
    with processes.nothing_left():
        first = start(*command, process_group=0)
        processes.wait_until(lambda: len(copied()) >= 30, "a quarter is done", 60)
        os.killpg(first.pid, signal.SIGINT)
        _, err = first.communicate(timeout=60)
        assert first.returncode == 130
        said = re.search(r"^interrupted: (\d+) of 120 done in [\d.]+ s; the same command goes on from here$", err, re.M)
        assert said
        assert len(recorded_names()) == int(said[1]) > 0  # of what it has said nothing is lost
        assert not [name for name in os.listdir("out") if ".part-" in name]
    with processes.nothing_left():
        second = start(*command, process_group=0)
        processes.wait_until(lambda: len(copied()) >= 70, "more than half is done", 60)
        os.killpg(second.pid, signal.SIGKILL)
        second.communicate()
    recorded, before = recorded_names(), copied()
    assert len(recorded) > int(said[1])  # how soon is told by test_journal_is_at_most_100_ms_behind
    check_many(run(*command)[1])
    # Done again was only what was not recorded.
    after = copied()
    assert [name for name in recorded if after[name] != before[name]] == []


def recorded_names() -> set[str]:
    with closing(sqlite3.connect("j.db")) as db:
        return {os.path.basename(os.fsdecode(row[0])) for row in db.execute("SELECT input FROM item")}


def test_terminated_is_as_clean(many: Path) -> None:
    with processes.nothing_left():
        ran = start("map", "tasks:slow_copy", "in/*", "--out", "out", "--journal", "j.db")
        processes.wait_until(lambda: len(copied()) >= 10, "something is done", 60)
        ran.terminate()
        _, err = ran.communicate(timeout=60)
        assert ran.returncode == 128 + signal.SIGTERM
        assert "interrupted: " in err
