"""``pool map``: inputs, results, failures, outputs."""

import glob
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import processes
import pytest
from commands import files, folder, lines, run, start

from pool import NotYet
from pool.cli.batch import Batch
from pool.cli.inputs import Inputs
from pool.cli.map import _Printer
from pool.cli.target import Target

__all__ = ["files", "folder"]

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


def test_order_holds_no_more_than_a_few_thousand_results() -> None:
    Path("more.py").write_text(
        "import os, time\n"
        "def first_waits(x):\n"
        "    with open('begun', 'a') as file: file.write('.')\n"
        "    while x == '0' and not os.path.exists('go'): time.sleep(0.01)\n"
        "    return x\n"
    )
    ran = start("map", "more:first_waits", "-", "-k", "-j", "2", "-q", stdin=subprocess.PIPE)
    try:
        assert ran.stdin is not None
        ran.stdin.write("".join(f"{x}\n" for x in range(20_000)))
        ran.stdin.close()
        ran.stdin = None
        sizes: list[int] = []

        def settled() -> bool:
            """Nothing has begun between two looks, 0.1 s apart."""
            sizes.append(os.path.getsize("begun") if os.path.exists("begun") else 0)
            return len(sizes) > 100 and sizes[-1] == sizes[-100] > 4000

        processes.wait_until(settled, "it waits for the first", 40)
        assert sizes[-1] < 12_000
        Path("go").touch()
        assert ran.communicate(timeout=60)[0].split() == [str(x) for x in range(20_000)]
    finally:
        ran.kill()


def test_order_holds_only_so_much_text(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])  # a target's folder joins it
    batch = Batch(
        Target("builtins:len", [], False), Inputs(("a", "b", "c"), b"\n"), None, _Printer(False), ordered=True
    )
    assert (next(batch), next(batch)) == ("a", "b")
    batch.end(1, (0.1, "x" * (1 << 26)))
    with pytest.raises(NotYet):
        next(batch)
    batch.end(0, (0.1, "first"))
    assert next(batch) == "c"
    assert capsys.readouterr().out == f"first\n{'x' * (1 << 26)}\n"


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
    Path("x").mkdir()
    Path("x/y").touch()
    assert lines("tasks:where", "x/y") == ["PosixPathx"]
    assert lines("tasks:where", "-", input="x/no") == ["PosixPathx"]  # what is read may be anything
    assert lines("tasks:upper", "a", "--arg", "times=3") == ["AAA"]
    assert "ValidationError" in run("map", "tasks:add", "x", "-a", "n=1", code=1)[1]


def test_functions_in_classes_files_and_installed_modules() -> None:
    assert lines("tasks:Holder.inner", "x") == ["inner x"]
    Path("deep").mkdir()
    Path("deep/other.py").write_text("def twice(x): return x * 2\n")
    assert lines("deep/other.py:twice", "x") == ["xx"]
    assert lines("os.path:basename", "a/b") == ["b"]
    assert lines("builtins:len", "four") == ["4"]


def test_file_is_found_whatever_else_has_its_name() -> None:
    Path("queue.py").write_text("def twice(x): return x * 2\n")
    Path("json.tools.py").write_text("def twice(x): return x * 2\n")
    assert lines("queue.py:twice", "x") == ["xx"]
    assert lines("json.tools.py:twice", "x") == ["xx"]
    assert "say queue.py:... for yours" in run("map", "queue:twice", "x", code=2)[1]


def test_arguments_may_be_lists() -> None:
    assert lines("tasks:total", "x", "-a", "sizes=[1, 2]", "-a", "more=[1]") == ["4"]
    Path("more.py").write_text(
        "from pathlib import Path\n"
        "def kinds(x: Path | None, *, a: list[Path], b: Path | None = None): return f'{a} {type(x) is type(b)}'\n"
    )
    assert lines("more:kinds", "more.py", "-a", 'a=["x"]', "-a", "b=y") == ["[PosixPath('x')] True"]
    assert (
        "no such file: 'mor.py'; did you mean 'more.py'?" in run("map", "more:kinds", "mor.py", "-a", "a=[]", code=2)[1]
    )
    assert "`array`" in run("map", "tasks:total", "x", "-a", "sizes=1", code=2)[1]


def test_zero_is_no_policy_left_out() -> None:
    assert "timeout must be greater than 0" in run("map", "tasks:upper", "a", "--timeout", "0", code=2)[1]
    assert "memory_limit" in run("map", "tasks:upper", "a", "--memory-limit", "", code=2)[1]


def test_lines_may_end_as_on_windows() -> None:
    Path("list").write_bytes(b"a\r\n\r\nb\r\nc\rd")
    assert json.loads(run("map", "tasks:nothing", "@list", "--json")[0].splitlines()[-1])["summary"]["inputs"] == 3
    out = subprocess.run(
        [sys.executable, "-m", "pool", "map", "-k", "tasks:upper", "@list"], capture_output=True
    ).stdout
    assert out == b"A\nB\nC\rD\n"


def test_without_processes() -> None:
    assert lines("tasks:upper", "-j", "0", "a", "b") == ["A", "B"]


def test_memory_does_not_grow_with_the_number_of_inputs() -> None:
    # VmHWM, and not ru_maxrss, which begins with that of the process that has forked it: of this one.
    script = "import sys, re; from pool.cli import main; code = main(sys.argv[1:]); " + (
        "print(re.search(r'VmHWM:\\s*(\\d+)', open('/proc/self/status').read())[1], file=sys.stderr); sys.exit(code)"
    )

    def peak(count: int) -> int:
        command = [sys.executable, "-c", script, "map", "tasks:nothing", "-", "-q"]
        with subprocess.Popen(["seq", str(count)], stdout=subprocess.PIPE) as feed:
            ran = subprocess.run(command, stdin=feed.stdout, capture_output=True, text=True, timeout=60)
        assert ran.returncode == 0, ran.stderr
        return int(ran.stderr)

    # It reads and splits a block of 1 MiB at a time: 165,000 of these, so one was full in both.
    assert peak(800_000) - peak(200_000) < 8 * 1024  # KiB; the inputs alone would take 30 MiB


def test_reader_that_goes_away_ends_it() -> None:
    Path("list").write_text("".join(f"{number}\n" for number in range(3000)))
    ran = start("map", "tasks:upper", "@list", "-q")
    assert ran.stdout is not None
    ran.stdout.close()
    assert ran.stderr is not None
    with ran.stderr:
        assert ran.stderr.read() == ""
    assert ran.wait(30) == 141


@pytest.mark.parametrize("encoding", ["ascii", "utf-8:strict", "latin-1"])
def test_any_text_can_be_printed(encoding: str) -> None:
    Path("list").write_bytes("ł\n".encode() + b"\xff\n")
    command = [sys.executable, "-m", "pool", "map", "-k", "tasks:some_fail", "@list"]
    ran = subprocess.run(command, capture_output=True, env={**os.environ, "PYTHONIOENCODING": encoding})
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout == ("ł" if "utf" in encoding else "\\u0142").encode() + b"\n\xff\n"


def test_output_that_cannot_be_written_ends_it_in_one_line() -> None:
    with open("/dev/full", "w") as full:
        ran = start("map", "tasks:upper", "a", "--journal", "j.db", stdout=full)
        _, err = ran.communicate(timeout=30)
    assert ran.returncode == 1
    assert err.startswith("standard output cannot be written: No space left on device: ")
    assert len(err.splitlines()) == 1
    assert run("map", "tasks:upper", "a", "--journal", "j.db")[0] == "A\n"  # nobody had seen it


def test_failures_are_listed_also_if_json_cannot_be_written() -> None:
    with open("/dev/full", "w") as full:
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"}
        ran = start("map", "tasks:some_fail", "bad", "--json", stdout=full, env=environment)
        _, err = ran.communicate(timeout=30)
    assert ran.returncode == 1
    failed, summary = err.splitlines()
    assert failed == "failed  bad  ValueError: a bad one"
    assert summary.startswith("standard output cannot be written: No space left on device: 0 of 1 done, 1 failed in ")


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "2>/dev/full"])
@pytest.mark.parametrize("failing", [False, True])
def test_closed_streams_are_no_reason_to_fail(closed: str, failing: bool) -> None:
    command = f"{sys.executable} -m pool map tasks:noted 1 2 {5 * failing} {closed}; echo code $? > code"
    ran = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert Path("code").read_text() == f"code {int(failing)}\n"
    assert sorted(Path("ledger").read_text().split()) == sorted(["1", "2", str(5 * failing)])
    assert "Traceback" not in ran.stdout + ran.stderr


def test_closed_streams_that_are_used_are_errors() -> None:
    Path("opens.py").write_text("secret = open('secrets')\ndef same(x): return x\n")
    Path("secrets").write_text("no input\n")
    command = f"{sys.executable} -m pool map opens:same a >&-; echo code $?"
    assert subprocess.run(["bash", "-c", command], capture_output=True).returncode == 0
    ran = subprocess.run(["bash", "-c", f"{command} >&2"], capture_output=True, text=True)
    assert "standard output cannot be written: Bad file descriptor" in ran.stderr
    assert "code 1" in ran.stderr
    ran = subprocess.run(["bash", "-c", command.replace(" a >&-", " - <&-")], capture_output=True, text=True)
    assert "no input" not in ran.stdout
    assert "the inputs cannot be read: Bad file descriptor" in ran.stderr


def be_a_background_job() -> None:
    """As a shell starts it for `command &`; also where the tests run under nohup."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_background_jobs_of_a_shell_can_be_terminated(number: signal.Signals) -> None:
    ran = start("map", "tasks:tells", "1", preexec_fn=be_a_background_job)
    try:
        assert ran.stdout is not None
        assert ran.stdout.readline() == "task 1\n"
        ran.send_signal(number)
        _, err = ran.communicate(timeout=30)
        assert ran.returncode == 128 + number
        assert err.startswith("interrupted: 0 of 1 done")
    finally:
        ran.kill()


def test_a_line_may_be_very_long() -> None:
    Path("list").write_bytes(b"x" * 60_000_000 + b"\n" + b"y" * 60_000_000)
    assert lines("builtins:len", "@list") == ["60000000", "60000000"]


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


def test_what_cannot_be_shown_is_that_inputs_failure() -> None:
    for words in (), ("--json",):
        out, err = run("map", "tasks:odd", "value", "error", "fine", *words, code=1)
        assert "fine" in out
        assert "failed  error  OddError: <str() raised RuntimeError>\n" in err
        assert "failed  value  NotShown: its value cannot be shown: RuntimeError: no text\n" in err
        assert "1 of 3 done, 2 failed" in err
    err = run("map", "tasks:unpicklable", "a", code=1)[1]
    assert re.search(r"^failed  a  ResultNotPicklable: tasks.unpicklable returned a value that can't be pickled", err)


def test_listed_names_do_not_steer_the_terminal() -> None:
    Path("list").write_bytes(b"a\33[2J\xff\0")
    err = run("map", "tasks:add", "-0", "@list", "-a", "n=1", code=1)[1]
    assert err.startswith("failed  a\\x1b[2J\\udcff  UnicodeEncodeError: ")


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
    assert "1 of 1 done" in run("map", "more:once", "other", "--retries", "2", "--backoff", "0.01")[1]
    assert "backoff must be greater than 0" in run("map", "more:once", "other", "--backoff", "-1", code=2)[1]


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
    expected = {"inputs": 3, "done": 1, "failed": 2, "before": 0, "repeated": 0, "crashes": 1, "stopped": None}
    assert last["summary"] == expected
    assert "failed  bad" in err


def test_json_lines_can_be_read_whatever_the_names(folder: Path) -> None:
    Path("list").write_bytes("é\n".encode() + b"\xff\n")
    for encoding in ("ascii", "utf-8"):
        environment = {**os.environ, "PYTHONIOENCODING": encoding}
        command = [sys.executable, "-m", "pool", "map", "-k", "tasks:nothing", "@list", "--json"]
        out = subprocess.run(command, capture_output=True, env=environment).stdout.decode(encoding)
        assert [json.loads(line)["input"] for line in out.splitlines()[:2]] == ["é", "\udcff"]


def test_values_that_json_cannot_take_are_shown() -> None:
    Path("more.py").write_text(
        "def odd(x): return {1: {2}, (3, 4): object}\ndef path(x):\n  import pathlib\n  return pathlib.Path(x)\n"
    )
    assert "{2}" in json.loads(run("map", "more:odd", "a", "--json")[0].splitlines()[0])["value"]
    assert json.loads(run("map", "more:path", "a", "--json")[0].splitlines()[0])["value"] == "a"
    Path("arrays.py").write_text("import numpy\ndef number(x): return numpy.arange(3)\ndef nan(x): return float('nan')")
    assert json.loads(run("map", "arrays.py:number", "a", "--json")[0].splitlines()[0])["value"] == [0, 1, 2]
    assert '"value": "nan"' in run("map", "arrays.py:nan", "a", "--json")[0]  # NaN is no JSON


def test_quiet_prints_only_values_and_failures() -> None:
    out, err = run("map", "tasks:some_fail", "-q", "a", "bad", code=1)
    assert (out, err) == ("a\n", "failed  bad  ValueError: a bad one\n")


def test_insights_and_their_plot() -> None:
    err = run("map", "tasks:upper", "a", "b", "--insights", "--plot", "busy.svg")[1]
    assert re.search(r"^tasks.upper +2 ", err, re.M)
    assert "<svg" in Path("busy.svg").read_text()
    last = json.loads(run("map", "tasks:upper", "a", "--insights", "--json")[0].splitlines()[-1])
    assert last["insights"]["functions"][0]["name"] == "tasks.upper"


# ---- outputs


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


def test_path_of_the_output_goes_where_the_function_wants_it(files: Path) -> None:
    Path("more.py").write_text(
        "import functools\n"
        "def write(text, out):\n  with open(out, 'w') as file: file.write(str(text))\n"
        "def three(src, size, out): write(size, out)\n"
        "def named(src, size=256, *, target=None): write(size, target)\n"
        "def positional(src, there, /): write('p', there)\n"
        "bound = functools.partial(three, size=5)\n"
    )
    for name, words, text in (
        ("three", ["-a", "size=3"], "3"), ("named", [], "256"), ("positional", [], "p"), ("bound", [], "5"),
    ):  # fmt: skip
        run("map", f"more:{name}", "in/a.txt", "--out", "out", *words)
        assert below("out") == {"a.txt": text}


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


OVERWRITING = {
    "itself": ["in/a.txt", "--out", "in"],
    "itself by a link": ["in/a.txt", "--out", "link"],
    "itself, found by a link": ["link/a.txt", "--out", "in"],
    "another one": ["in/x/a.txt", "in/a.txt", "--base", "in/x", "--out", "in"],
    "one that comes later": ["in/x/a.txt", "in/x/b.txt", "in/a.txt", "--base", "in/x", "--out", "in"],
    "one with that suffix": ["in/*.*", "--out", "in", "--suffix", ".txt"],
}


@pytest.mark.parametrize("what", OVERWRITING)
def test_output_never_overwrites_an_input(files: Path, what: str) -> None:
    Path("in/a.png").write_text("a picture")
    Path("link").symlink_to("in")
    before = below("in")
    assert "would overwrite an input: choose another" in run("map", "tasks:half", *OVERWRITING[what], code=2)[1]
    assert below("in") == before


def test_output_never_overwrites_an_input_that_was_read(files: Path) -> None:
    text = "in/a.txt\nin/x/a.txt\n"
    err = run("map", "tasks:half", "-", "--out", "in", "--base", "in/x", input=text, code=1)[1]
    assert "the output of 'in/x/a.txt' would overwrite an input" in err
    assert Path("in/a.txt").read_text() == "in/a.txt"


def test_outputs_are_no_inputs_of_the_next_run(files: Path) -> None:
    for _ in range(3):
        run("map", "tasks:copy", "**/*.txt", "--out", "out")
        assert sorted(below("out")) == ["in/a.txt", "in/x/a.txt", "in/x/b.txt"]
    assert lines("tasks:upper", "out/**/b.txt") == ["OUT/IN/X/B.TXT"]  # asked for


def test_patterns_find_what_glob_finds_but_for_links(files: Path) -> None:
    Path("in/.hidden").mkdir()
    for name in ("in/.hidden/a.txt", "in/.a.txt", "in/x/[b].txt", "a.txt"):
        Path(name).touch()
    for pattern in ("**", "in/**", "**/*.txt", "**/x/*", "in/*/a.txt", f"{files}/**/b.txt", "*/**/a.txt", "in/./**/a*"):
        found = {path for path in glob.glob(pattern, recursive=True) if not os.path.isdir(path)}
        assert set(lines("tasks:some_fail", pattern)) == found, pattern
        assert len(lines("tasks:some_fail", pattern)) == len(found)
    assert sorted(lines("tasks:some_fail", "in/**/")) == ["in/", "in/x/"]
    assert lines("tasks:some_fail", "**/in/**/a.txt") == ["in/a.txt", "in/x/a.txt"]
    Path("in/x/again").symlink_to("..")  # a circle, and a fork: each way has two
    Path("in/y").symlink_to("x")
    assert sorted(lines("tasks:some_fail", "in/**/a.txt")) == ["in/a.txt", "in/x/a.txt"]
    assert sorted(lines("tasks:some_fail", "in/*/a.txt")) == ["in/x/a.txt", "in/y/a.txt"]


def test_no_two_inputs_have_one_output(files: Path) -> None:
    Path("in/a.png").touch()
    words = ("map", "tasks:copy", "in/a.png", "in/a.txt", "--out", "out", "--suffix", ".webp")
    out, err = run(*words, "--retries", "3", "--json", "--insights", code=1)
    assert "failed  in/a.txt  NoOutput: an earlier input has the same output" in err
    (function,) = json.loads(out.splitlines()[-1])["insights"]["functions"]
    assert (function["count"], function["errors"]) == (2, 1)  # it is not tried again


def test_input_given_again_is_done_once(files: Path) -> None:
    command = ("map", "tasks:copy", "in/a.txt", "in/a.txt", "in/x/a.txt", "--out", "out", "--journal", "j.db")
    assert re.search(r"^2 of 2 done in [\d.]+ s; 1 given again$", run(*command)[1], re.M)
    again = ("map", "tasks:copy", "in/a.txt", "./in/x/../a.txt", "--out", "out2")
    assert "1 of 1 done" in run(*again)[1]
    assert re.search(r"^2 of 2 done in [\d.]+ s; 2 recorded before; 1 given again$", run(*command)[1], re.M)


def test_input_whose_output_is_anothers_is_not_recorded(files: Path) -> None:
    Path("in/a.png").touch()
    words = ("map", "tasks:copy", "in/a.png", "in/a.txt", "--out", "out", "--suffix", ".webp", "--journal", "j.db")
    for _ in range(2):
        err = run(*words, code=1)[1]
        assert "failed  in/a.txt  NoOutput: an earlier input has the same output" in err
        assert "1 of 2 done, 1 failed" in err
    assert run("journal", "j.db")[0].startswith(f"{files}/tasks.py:copy ")
    assert ": 1 done, 0 failed" in run("journal", "j.db")[0]


def test_folders_are_no_matches(files: Path) -> None:
    run("map", "tasks:copy", "in/**", "--out", "out")
    assert sorted(below("out")) == ["a.txt", "x/a.txt", "x/b.txt"]
    assert lines("tasks:upper", "in/*/") == ["IN/X/"]  # asked for
    err = run("map", "tasks:copy", "in", "--out", "out2", "--base", "in", code=1)[1]
    assert "failed  in  NoOutput: its output would have no name" in err


def test_longest_names_are_possible(files: Path) -> None:
    for name in ("x" * 251 + ".txt", "ä" * 127, "x." + "y" * 250):
        Path("in", name).write_text("long")
        run("map", "tasks:copy", f"in/{name}", "--out", "out")
        assert Path("out", name).read_text() == "long"
