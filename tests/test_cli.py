"""``python -m pool`` as its user runs it: in a folder with a module, real processes, real files."""

import json
import os
import re
import resource
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import processes
import pytest

TASKS = """
import os, signal, sys, time
from pathlib import Path

def nothing(x): pass
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
constant = 3
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with tasks.py, in which everything runs."""
    (tmp_path / "tasks.py").write_text(TASKS)
    monkeypatch.chdir(tmp_path)
    return tmp_path


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


# ---- inputs and results


def test_words_are_inputs_and_values_are_printed() -> None:
    out, err = run("map", "tasks:upper", "-k", "a", "b c", "ä")
    assert out == "A\nB C\nÄ\n"
    assert re.fullmatch(r"3 of 3 done in [\d.]+ s\n", err)


def test_none_is_not_printed() -> None:
    assert run("map", "tasks:nothing", "a")[0] == ""


def test_patterns_match_files_of_all_depths() -> None:
    for name in ("a.txt", "x/b.txt", "x/y/c.txt", "x/d.png"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()
    assert sorted(lines("tasks:upper", "**/*.txt")) == ["A.TXT", "X/B.TXT", "X/Y/C.TXT"]
    Path("[1].txt").touch()
    assert lines("tasks:upper", "[1].txt") == ["[1].TXT"]  # there is such a file


def test_lines_of_files_are_inputs() -> None:
    Path("list").write_bytes(b"one\n\ntwo words\nb\xff\nlast")
    out = subprocess.run([sys.executable, "-m", "pool", "map", "-k", "tasks:upper", "@list"], capture_output=True)
    assert out.stdout == b"ONE\nTWO WORDS\nB\xff\nLAST\n"
    assert b"4 of 4 done" in out.stderr


def test_inputs_may_end_with_nul() -> None:
    assert lines("tasks:upper", "-0", "-", input="a\nb\0c\0\0") == ["A", "B", "C"]


def test_standard_input_and_words_in_their_order() -> None:
    assert lines("tasks:upper", "first", "-", "last", input="a\nb\n") == ["FIRST", "A", "B", "LAST"]


def test_results_come_while_standard_input_is_silent() -> None:
    ran = start("map", "tasks:upper", "-", stdin=subprocess.PIPE)
    try:
        assert ran.stdin is not None
        assert ran.stdout is not None
        for word in ("a", "b", "c"):
            ran.stdin.write(f"{word}\n")
            ran.stdin.flush()
            assert ran.stdout.readline() == f"{word.upper()}\n"  # else both would wait for ever
        ran.stdin.write("half a li")
        ran.stdin.flush()
        ran.stdin.write("ne\nend")
        out, _ = ran.communicate(timeout=30)
        assert sorted(out.split("\n")) == ["", "END", "HALF A LINE"]
        assert ran.returncode == 0
    finally:
        ran.kill()


def test_annotations_convert() -> None:
    assert lines("tasks:add", "3", "4", "-a", "n=0.5") == ["3.5", "4.5"]
    assert lines("tasks:where", "x/y") == ["PosixPathx"]
    assert lines("tasks:upper", "a", "--arg", "times=3") == ["AAA"]
    assert "ValidationError" in run("map", "tasks:add", "x", "-a", "n=1", code=1)[1]


def test_functions_in_classes_files_and_installed_modules() -> None:
    assert lines("tasks:Holder.inner", "x") == ["inner x"]
    Path("deep").mkdir()
    Path("deep/other.py").write_text("def twice(x): return x * 2\n")
    assert lines("deep/other.py:twice", "x") == ["xx"]
    assert lines("os.path:basename", "a/b") == ["b"]
    assert lines("builtins:len", "four") == ["4"]


def test_without_processes() -> None:
    assert lines("tasks:upper", "-j", "0", "a", "b") == ["A", "B"]


def test_memory_does_not_grow_with_the_number_of_inputs() -> None:
    script = "import sys, resource; from pool.cli import main; code = main(sys.argv[1:]); " + (
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr); sys.exit(code)"
    )

    def peak(count: int) -> int:
        command = [sys.executable, "-c", script, "map", "tasks:nothing", "-", "-q"]
        with subprocess.Popen(["seq", str(count)], stdout=subprocess.PIPE) as feed:
            ran = subprocess.run(command, stdin=feed.stdout, capture_output=True, text=True, timeout=60)
        assert ran.returncode == 0, ran.stderr
        return int(ran.stderr)

    assert peak(300_000) - peak(20_000) < 8 * 1024  # KiB; the inputs alone would take 20 MiB


def test_reader_that_goes_away_ends_it() -> None:
    Path("list").write_text("".join(f"{number}\n" for number in range(3000)))
    ran = start("map", "tasks:upper", "@list", "-q")
    assert ran.stdout is not None
    ran.stdout.close()
    assert ran.stderr is not None
    with ran.stderr:
        assert ran.stderr.read() == ""
    assert ran.wait(30) == 141


# ---- failures


def test_failures_are_listed_and_named() -> None:
    out, err = run("map", "tasks:some_fail", "a", "bad", "segv", "exit", "hang", "b", "--timeout", "0.5", code=1)
    assert sorted(out.split()) == ["a", "b"]
    listed = dict(re.findall(r"^failed  (\w+)  (.*)$", err, re.M))
    assert listed["bad"] == "ValueError: a bad one"
    assert re.fullmatch(r"WorkerCrashed: worker died in tasks.some_fail: SIGSEGV \(.*\)", listed["segv"])
    assert re.match(r"TaskTimeout: tasks.some_fail ran longer than its timeout of 0.5 s", listed["hang"])
    assert listed["exit"] == "SystemExit: 3"
    assert re.search(r"^2 of 6 done, 4 failed, 1 crash in [\d.]+ s$", err, re.M)


def test_first_failure_may_end_it() -> None:
    _, err = run("map", "tasks:some_fail", "bad", "hang", "hang", "--on-error", "raise", code=1)
    assert "failed  bad  ValueError: a bad one\n" in err
    assert "stopped at the first failure: 0 of 3 done" in err


def test_failures_may_be_counted_only() -> None:
    out, err = run("map", "tasks:some_fail", "bad", "a", "--on-error", "skip", code=1)
    assert out == "a\n"
    assert re.fullmatch(r"1 of 2 done, 1 failed in [\d.]+ s\n", err)


def test_retries_and_memory_limit_are_passed_on() -> None:
    Path("more.py").write_text(
        "import os\n"
        "def once(x):\n"
        "    with open(x, 'a') as f: f.write('.')\n"
        "    if os.path.getsize(x) < 3: os._exit(1)\n"
        "def greedy(x): return len(bytearray(500_000_000))\n"
    )
    assert "1 of 1 done" in run("map", "more:once", "file", "--retries", "2")[1]
    assert "MemoryLimitExceeded" in run("map", "more:greedy", "x", "--memory-limit", "100M", code=1)[1]


def test_long_lists_of_failures_are_cut() -> None:
    Path("list").write_text("bad\n" * 60)
    err = run("map", "tasks:some_fail", "@list", code=1)[1]
    assert err.count("failed  bad") == 50
    assert "and 10 more" in err


def test_json_lines() -> None:
    out, err = run("map", "tasks:some_fail", "-k", "--json", "a", "bad", "segv", code=1)
    first, second, third, last = map(json.loads, out.splitlines())
    assert first.pop("seconds") >= 0
    assert first == {"input": "a", "ok": True, "value": "a"}
    assert second == {"input": "bad", "ok": False, "error": "ValueError", "message": "a bad\none"}
    assert (third["input"], third["ok"], third["error"]) == ("segv", False, "WorkerCrashed")
    assert last["summary"].pop("seconds") > 0
    expected = {"inputs": 3, "done": 1, "failed": 2, "before": 0, "crashes": 1, "stopped": None}
    assert last["summary"] == expected
    assert "failed  bad" in err


def test_values_that_json_cannot_take_are_shown() -> None:
    Path("more.py").write_text(
        "def odd(x): return {1: {2}, (3, 4): object}\ndef path(x):\n  import pathlib\n  return pathlib.Path(x)\n"
    )
    assert "{2}" in json.loads(run("map", "more:odd", "a", "--json")[0].splitlines()[0])["value"]
    assert json.loads(run("map", "more:path", "a", "--json")[0].splitlines()[0])["value"] == "a"


def test_quiet_prints_only_values_and_failures() -> None:
    out, err = run("map", "tasks:some_fail", "-q", "a", "bad", code=1)
    assert (out, err) == ("a\n", "failed  bad  ValueError: a bad one\n")


def test_insights_and_their_plot() -> None:
    err = run("map", "tasks:upper", "a", "b", "--insights", "--plot", "busy.svg")[1]
    assert re.search(r"^tasks.upper +2 ", err, re.M)
    assert "<svg" in Path("busy.svg").read_text()
    last = json.loads(run("map", "tasks:upper", "a", "--insights", "--json")[0].splitlines()[-1])
    assert last["insights"]["functions"][0]["name"] == "tasks.upper"
    err = run("map", "tasks:upper", "a", "--plot", "no/busy.svg", code=1)[1]
    assert re.search(r"^no plot: .*No such file or directory", err, re.M)


# ---- outputs


@pytest.fixture
def files(folder: Path) -> Path:
    for name in ("in/a.txt", "in/x/a.txt", "in/x/b.txt"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    return folder


def below(path: str) -> dict[str, str]:
    return {str(f.relative_to(path)): f.read_text() for f in Path(path).rglob("*") if f.is_file()}


def test_outputs_are_named_by_what_the_inputs_do_not_share(files: Path) -> None:
    run("map", "tasks:copy", "in/**/*.txt", "--out", "out")
    assert below("out") == {"a.txt": "in/a.txt", "x/a.txt": "in/x/a.txt", "x/b.txt": "in/x/b.txt"}
    run("map", "tasks:copy", "in/x/a.txt", "in/x/b.txt", "--out", "flat", "--suffix", ".bak")
    assert sorted(below("flat")) == ["a.bak", "b.bak"]
    run("map", "tasks:copy", "-", "--out", "read", input="in/a.txt\nin/x/b.txt\n")
    assert sorted(below("read")) == ["in/a.txt", "in/x/b.txt"]
    run("map", "tasks:copy", "-", "--out", "based", "--base", "in", input="in/a.txt\nin/x/b.txt\n")
    assert sorted(below("based")) == ["a.txt", "x/b.txt"]


def test_outputs_stay_in_their_folder(files: Path) -> None:
    Path("below").mkdir()
    os.chdir("below")
    run("map", f"{files}/tasks.py:copy", "-", "--out", "out", input="../in/a.txt\n")
    assert list(below("out").values()) == ["in/a.txt"]
    assert below("..").keys() == {"tasks.py", *(f"in/{n}" for n in ("a.txt", "x/a.txt", "x/b.txt")),
                                  f"below/out/{str(files)[1:]}/in/a.txt"}  # fmt: skip


def test_function_may_return_the_bytes(files: Path) -> None:
    run("map", "tasks:content", "in/a.txt", "--out", "out")
    assert below("out") == {"a.txt": "in/a.txt" * 2}
    err = run("map", "tasks:number", "in/a.txt", "--out", "out2", code=1)[1]
    assert "TypeError: tasks.number takes no path to write to and returned int, not bytes or str" in err
    assert below("out2") == {}


def test_failed_task_leaves_no_output(files: Path) -> None:
    for name in ("bad", "segv"):
        Path(f"in/{name}").touch()
    err = run("map", "tasks:half", "in/a.txt", "in/bad", "in/segv", "--out", "out", code=1)[1]
    assert err.count("failed  in/") == 2
    assert below("out") == {"a.txt": "half"}
    assert "wrote nothing to the path" in run("map", "tasks:forgets", "in/a.txt", "--out", "out3", code=1)[1]


def test_output_never_overwrites_an_input_or_another_output(files: Path) -> None:
    err = run("map", "tasks:half", "in/a.txt", "--out", "in", code=1)[1]
    assert "would overwrite it" in err
    assert Path("in/a.txt").read_text() == "in/a.txt"
    Path("in/a.png").touch()
    err = run("map", "tasks:copy", "in/a.png", "in/a.txt", "--out", "out", "--suffix", ".webp", code=1)[1]
    assert "failed  in/a.txt  ValueError: an earlier input has the same output" in err


# ---- the journal


def ledger() -> list[str]:
    return Path("ledger").read_text().split() if Path("ledger").exists() else []


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


def test_journal_is_shown() -> None:
    run("map", "tasks:noted", "1", "5", "--journal", "j.db", code=1)
    assert re.fullmatch(r"tasks.noted \{\}: 1 done, 1 failed, [\d.]+ s of work, 1 runs\n", run("journal", "j.db")[0])
    assert run("journal", "j.db", "--failed")[0].splitlines()[1] == "  5: ValueError: five"
    rows = [json.loads(line) for line in run("journal", "j.db", "--json")[0].splitlines()]
    assert {(row["input"], row["ok"]) for row in rows} == {("1", True), ("5", False)}


def test_two_runs_do_not_share_a_journal() -> None:
    first = start("map", "tasks:tells", "1", "--journal", "j.db")
    try:
        assert first.stdout is not None
        assert first.stdout.readline() == "task 1\n"
        err = run("map", "tasks:nothing", "1", "--journal", "j.db", code=2)[1]
        assert f"is in use by process {first.pid}" in err
        assert run("journal", "j.db")[0].startswith("tasks.tells")  # it may be looked at
        first.kill()
        processes.wait_until(lambda: not processes.runs(first.pid), "it is dead, though we have not waited for it")
        run("map", "tasks:nothing", "1", "--journal", "j.db")
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


def test_journal_is_at_most_100_ms_behind() -> None:
    """Also while nothing else happens: one task has ended, the others go on."""
    Path("more.py").write_text("import time\ndef wait(x): time.sleep(0 if x == 'quick' else 1000)\n")
    ran = start("map", "more:wait", "quick", "a", "b", "--journal", "j.db", "--json")
    try:
        assert ran.stdout is not None
        ran.stdout.readline()  # flushed with the commit

        def recorded() -> bool:
            with closing(sqlite3.connect("j.db")) as db:
                return bool(db.execute("SELECT count(*) FROM item").fetchone()[0])

        processes.wait_until(recorded, "it is in the journal", 0.5)
    finally:
        ran.kill()
        ran.communicate()


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


def test_interrupted_killed_and_finished(many: Path) -> None:
    command = ("map", "tasks:slow_copy", "in/*", "--out", "out", "--journal", "j.db", "-j", "4")
    with processes.nothing_left():
        first = start(*command, process_group=0)
        processes.wait_until(lambda: len(ledger()) >= 30, "a quarter is done", 60)
        os.killpg(first.pid, signal.SIGINT)
        _, err = first.communicate(timeout=10)
        assert first.returncode == 130
        assert re.search(r"^interrupted: \d+ of 120 done in [\d.]+ s; the same command goes on from here$", err, re.M)
        assert not [name for name in os.listdir("out") if ".part-" in name]
    with processes.nothing_left():
        second = start(*command, process_group=0)
        processes.wait_until(lambda: len(ledger()) >= 70, "more than half is done", 60)
        with closing(sqlite3.connect("j.db")) as db:
            recorded = {os.fsdecode(row[0]) for row in db.execute("SELECT input FROM item WHERE error IS NULL")}
        done = len(ledger())
        os.killpg(second.pid, signal.SIGKILL)
        second.communicate()
    third = run(*command)[1]
    check_many(third)
    assert done >= len(recorded) >= 30
    again = [name for name in ledger()[done:] if f"in/{name}" in recorded]
    assert again == []
    assert len(ledger()) <= 120 + 2 * 4 + 40  # what was not recorded yet: at most 100 ms and what ran


def test_terminated_is_as_clean(many: Path) -> None:
    with processes.nothing_left():
        ran = start("map", "tasks:slow_copy", "in/*", "--out", "out", "--journal", "j.db")
        processes.wait_until(lambda: len(ledger()) >= 10, "something is done", 60)
        ran.terminate()
        _, err = ran.communicate(timeout=10)
        assert ran.returncode == 128 + signal.SIGTERM
        assert "interrupted: " in err


# ---- misuse, help, completion


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("map", "tasks:uper", "a"), "'tasks' has no function 'uper'; did you mean 'upper'?"),
        (("map", "taks:upper", "a"), "no module 'taks' .*; did you mean 'tasks'?"),
        (("map", "task.py:upper", "a"), "no such file: 'task.py'; did you mean 'tasks.py'?"),
        (("map", "tasks", "a"), "'tasks' is not of the form module:function, such as tasks:thumbnail"),
        (("map", "tasks:constant", "a"), "'tasks:constant' is not a function but int"),
        (("map", "broken:f", "a"), r"importing 'broken' failed: ZeroDivisionError: .* \(.*broken.py:1\)"),
        (("map", "tasks:upper"), "no inputs: name files, a pattern, @FILE, or - for standard input"),
        (("map", "tasks:upper", "*.jpg"), r"no file matches '\*.jpg' \(what is no pattern may come from @FILE or -\)"),
        (("map", "tasks:upper", "@nofile"), "cannot read 'nofile': No such file or directory"),
        (("map", "tasks:upper", "@."), "cannot read '.': Is a directory"),
        (("map", "tasks:copy", "a"), ".* needs 'dst': say --out DIR, or --arg dst=VALUE"),
        (("map", "tasks:add", "1"), ".* needs 'n': say --arg n=VALUE"),
        (("map", "tasks:add", "1", "-a", "m=1"), "tasks.add has no parameter 'm'.*"),
        (("map", "tasks:add", "1", "-a", "n=one"), "--arg 'n=one': Expected `float`, got `str`"),
        (("map", "tasks:add", "1", "-a", "n"), "--arg 'n' is not of the form key=value"),
        (("map", "tasks:upper", "a", "--timout", "3"), "no such option '--timout'.*--timeout.*"),
        (("map", "tasks:upper", "a", "--timeout", "-3"), "timeout must be greater than 0"),
        (("map", "tasks:upper", "a", "--workers", "many"), "invalid value for '-j' / '--workers': .*"),
        (("map", "tasks:upper", "a", "-j", "100000"), "--workers: max_workers must be <= 512"),
        (("map", "tasks:upper", "a", "--memory-limit", "much"), ".*'much'.*"),
        (("map", "tasks:upper", "a", "--chunksize", "0"), "invalid value for '--chunksize': .*"),
        (("map", "tasks:upper", "a", "--on-error", "ignore"), "invalid value for '--on-error': .*"),
        (("map", "tasks:upper", "a", "--plot", "x.pdf"), "--plot: a plot is a .svg or a .png file, not 'x.pdf'"),
        (("map", "tasks:upper", "a", "--retry-failed"), "--retry-failed needs --journal FILE"),
        (("map", "tasks:upper", "a", "--suffix", ".x"), "--suffix needs --out DIR"),
        (("map", "tasks:copy", "a", "--out", "tasks.py/x"), "--out 'tasks.py/x': Not a directory"),
        (("map", "tasks:upper", "a", "--journal", "tasks.py"), "the journal 'tasks.py' cannot be used: file is not .*"),
        (("map", "tasks:upper", "a", "--journal", "no/j.db"), "the journal 'no/j.db' cannot be used: unable to .*"),
        (("journal", "nothing.db"), "no such journal: 'nothing.db'"),
        (("mpa",), "no command 'mpa'; did you mean 'map'?"),
    ],
)  # fmt: skip
def test_misuse_is_one_line(words: tuple[str, ...], said: str) -> None:
    Path("broken.py").write_text("1 / 0\n")
    out, err = run(*words, code=2)
    assert out == ""
    assert re.fullmatch(rf"python -m pool( map| journal)?: {said.replace('?', '[?]')}\n", err), err


def test_other_database_is_no_journal() -> None:
    with closing(sqlite3.connect("other.db")) as db:
        db.execute("CREATE TABLE precious (x)")
    err = run("map", "tasks:upper", "a", "--journal", "other.db", code=2)[1]
    assert "'other.db' is a database, but no journal of pool map" in err
    with closing(sqlite3.connect("other.db")) as db:
        assert db.execute("SELECT name FROM sqlite_master").fetchall() == [("precious",)]


@pytest.mark.parametrize("words", [(), ("map",), ("journal",), ("completion",)])
def test_help_is_narrow_and_needs_nothing(words: tuple[str, ...]) -> None:
    out, err = run(*words, "--help")
    assert err == ""
    assert out.startswith("Usage: python -m pool")
    assert max(map(len, out.splitlines())) <= 80
    assert len(out.splitlines()) < 70


def test_version() -> None:
    assert re.fullmatch(r"prefork-pool \d+\.\d+\.\d+, Python 3\.\d+\.\d+\S*\n", run("--version")[0])


def complete(*words: str) -> list[str]:
    env = {**os.environ, "_POOL_COMPLETE": "fish_complete", "COMP_WORDS": " ".join(words), "COMP_CWORD": words[-1]}
    script = "import sys; sys.argv = ['pool']; from pool.cli import main; sys.exit(main())"
    out = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True).stdout
    return [line.partition(",")[2].partition("\t")[0] for line in out.splitlines()]


def test_completion_knows_commands_options_and_functions() -> None:
    assert complete("pool", "m") == ["map"]
    assert complete("pool", "map", "--jou") == ["--journal"]
    assert complete("pool", "map", "ta") == ["tasks:"]
    assert complete("pool", "map", "tasks:so") == ["tasks:some_fail"]


def test_completion_in_bash(folder: Path) -> None:
    """In a real shell: where bash itself would break a word at the colon."""
    script = f"""
    PATH={Path(sys.executable).parent}:$PATH
    eval "$(pool completion bash)"
    COMP_LINE='pool map tasks:some' COMP_POINT=19
    COMP_WORDS=(pool map tasks:some) COMP_CWORD=2
    $(complete -p pool | sed 's/.*-F \\([^ ]*\\).*/\\1/') pool tasks:some map
    echo "${{COMPREPLY[@]}}"; echo "$COMP_WORDBREAKS" | grep -c : || true
    """
    ran = subprocess.run(["bash", "-c", script], capture_output=True, text=True)
    assert ran.stdout.split() == ["tasks:some_fail", "0"], ran.stderr
