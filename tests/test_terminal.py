"""The bar on a terminal, beside whoever else prints there."""

import os
import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from terminals import Terminal, terminal

__all__ = ["terminal"]

pytestmark = pytest.mark.timeout(60)

BAR = re.compile(r"^ *(\d+)%  (?:[━╸─]+  )?([\d,]+)/([\d,]+)")


def _bar(line: str) -> tuple[int, int] | None:
    """(done, total) if the line is a bar."""
    found = BAR.match(line)
    return (int(found[2].replace(",", "")), int(found[3].replace(",", ""))) if found else None


NOISY = """
    import os, subprocess, sys, time
    from pool import Pool

    def work(x):
        while x >= 40 and os.path.exists("hold"):
            time.sleep(0.001)
        print(f"task {x}")
        subprocess.run(["sh", "-c", f"echo program {x}; sleep 0.02"])

    def main():
        print("before")
        with Pool(2) as pool:
            for x, _ in enumerate(pool.imap(work, range(60), progress=True)):
                if x % 10 == 0:
                    print(f"client {x}")
        print("after")

    main()
"""
ENDLESS = NOISY.replace("range(60)", "range(10**6)")


@pytest.fixture
def hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """As long as this file is there, the last tasks of NOISY do not end."""
    monkeypatch.chdir(tmp_path)
    hold = tmp_path / "hold"
    hold.touch()
    return hold


@pytest.mark.parametrize(("columns", "lines"), [(80, 12), (120, 40), (40, 5)])
def test_whatever_tasks_and_their_programs_print_the_bar_stays_below_it(
    terminal: Callable[..., Terminal], columns: int, lines: int, hold: Path
) -> None:
    t = terminal(NOISY, columns, lines)
    for count in (5, 40):
        bar = t.wait_for(lambda shown: (b := _bar(shown[-1])) and b[0] >= count and b)  # noqa: B023
        assert bar[1] == 60
    assert t.screen.margins == (0, lines - 2)
    assert sum(_bar(line) is not None for line in t.lines()) == 1
    hold.unlink()
    assert t.end() == 0
    everything = t.all_lines()
    expected = [f"{who} {x}" for who in ("task", "program") for x in range(60)]
    expected += ["before", "after", *(f"client {x}" for x in range(0, 60, 10))]
    assert sorted(line for line in everything if _bar(line) is None) == sorted(expected)  # whole lines, nothing lost
    assert [_bar(line) for line in everything if _bar(line)] == [(60, 60)]
    assert everything[-2].startswith("100%")
    assert everything[-1] == "after"
    assert t.screen.margins in (None, (0, lines - 1))
    after = t.lines().index("after")
    assert (t.screen.cursor.y, t.screen.cursor.x) == (after + 1, 0)
    assert _bar(t.lines()[after - 1])


def test_it_is_drawn_a_few_times_a_second_in_one_write(terminal: Callable[..., Terminal]) -> None:
    t = terminal(NOISY)
    assert t.end() == 0
    drawings = t.raw.count(b"\0337\033[12;1H\033[m")
    elapsed = float(re.search(r"in ([\d.]+) s", "\n".join(t.all_lines()))[1])  # type: ignore[index]
    assert 2 <= drawings <= 10 * elapsed + 1
    for drawing in t.raw.split(b"\0337\033[12;1H\033[m")[1:]:
        assert b"\n" not in drawing[: drawing.index(b"\0338")]
        assert b"\033[2" not in drawing[: drawing.index(b"\033[K")].replace(b"\033[2m", b"")  # not erased before


def test_a_resize_moves_the_bar(terminal: Callable[..., Terminal]) -> None:
    t = terminal(ENDLESS, 80, 12)
    t.wait_for(lambda shown: _bar(shown[-1]))
    for columns, lines in ((100, 20), (50, 8), (80, 3)):
        t.resize(columns, lines)
        seen = t.wait_for(lambda shown: t.screen.margins == (0, len(shown) - 2) and _bar(shown[-1]))
        # One that was drawn for the old size, while the window changed, is scrolled away by what is printed.
        t.wait_for(
            lambda shown: (b := _bar(shown[-1])) and b[0] > seen[0] and sum(map(bool, map(_bar, shown))) == 1  # noqa: B023
        )
    t.resize(80, 2)  # too small for it
    t.wait_for(lambda shown: not any(map(_bar, shown)))
    t.type("\x03")
    assert t.end() == -signal.SIGINT


def test_ctrl_c_gives_the_terminal_back(terminal: Callable[..., Terminal]) -> None:
    t = terminal(ENDLESS, 120, 24)
    t.wait_for(lambda shown: _bar(shown[-1]))
    t.type("\x03")
    assert t.end() == -signal.SIGINT
    assert t.screen.margins in (None, (0, 23))
    assert "KeyboardInterrupt" in t.lines()
    assert t.screen.cursor.y == t.lines().index("KeyboardInterrupt") + 1 or t.screen.cursor.y == 23


BODY = """
    import sys, time
    from pool import Pool

    def main():
        pool = Pool(2)
        LOOP:
            if x >= 1:
                raise ValueError("in the body")

    try:
        main()
    except ValueError as error:
        kept = error  # with its traceback, and so with what main() holds
    print("handled", flush=True)
    HOW
"""
LOOP = "for x, _ in enumerate(pool.imap(time.sleep, [0.1] * 1000, progress=True))"


@pytest.mark.parametrize("how", ["pass", "sys.exit(3)", "raise kept"])
@pytest.mark.parametrize("held", [False, True])
def test_an_iteration_that_an_error_has_left_gives_the_terminal_back(
    terminal: Callable[..., Terminal], held: bool, how: str
) -> None:
    """At once; or, if somebody still holds it, at the exit."""
    loop = "results = enumerate(pool.imap(time.sleep, [0.1] * 1000, progress=True))\n        for x, _ in results"
    t = terminal(BODY.replace("LOOP", loop if held else LOOP).replace("HOW", how), 80, 24)
    assert t.end() == {"pass": 0, "sys.exit(3)": 3, "raise kept": 1}[how]
    assert t.screen.margins in (None, (0, 23))
    shown = [line for line in t.lines() if line]
    (at,) = (k for k, line in enumerate(shown) if _bar(line))
    assert (shown.index("handled") < at) == held
    assert at == len(shown) - 1 or not held, "the last thing"
    assert t.screen.cursor.y == len(shown)


def test_a_client_that_is_killed_leaves_no_scroll_region(terminal: Callable[..., Terminal]) -> None:
    t = terminal(ENDLESS, 100, 24)
    t.wait_for(lambda shown: t.screen.margins == (0, 22) and shown[-1])
    other_end = os.open(
        os.readlink(f"/proc/{t.pid}/fd/0"), os.O_RDWR | os.O_NOCTTY
    )  # as the shell would: the terminal is not hung up
    try:
        os.kill(t.pid, signal.SIGKILL)
        t.wait_for(lambda shown: t.screen.margins in (None, (0, 23)) and not shown[-1])
    finally:
        os.close(other_end)
    assert t.end() == -signal.SIGKILL


AT_ONCE = """
    import os, signal
    from pool import Pool, terminal

    draw = terminal.LastLine.draw

    def draw_and_die(self, line):
        draw(self, line)
        os.kill(os.getpid(), signal.SIGKILL)

    terminal.LastLine.draw = draw_and_die
    print("before", flush=True)
    with Pool(1) as pool:
        list(pool.imap(abs, range(10**9), progress=True))
"""


def test_a_client_that_is_killed_in_its_first_drawing_leaves_none_either(terminal: Callable[..., Terminal]) -> None:
    for _ in range(5):  # the monitor may see its client's end before what that has told it
        t = terminal(AT_ONCE, 100, 24)
        other_end = os.open(os.readlink(f"/proc/{t.pid}/fd/0"), os.O_RDWR | os.O_NOCTTY)
        try:
            t.wait_for(lambda shown: b"\033[1;23r" in t.raw and t.raw.endswith(b"\033[2K\0338"))  # noqa: B023
        finally:
            os.close(other_end)
        assert t.end() == -signal.SIGKILL
        assert t.screen.margins in (None, (0, 23))
        assert [line for line in t.lines() if line] == ["before"]


PARTIAL = """
    import time
    from pool import Pool

    def work(x):
        if x == 3:
            print("half a line", end="", flush=True)
        time.sleep(0.1)

    with Pool(1) as pool:
        print("dots", end="", flush=True)
        list(pool.imap(work, range(4), progress=True))
    print("after")
"""


def test_a_half_line_of_somebody_is_not_written_over(terminal: Callable[..., Terminal]) -> None:
    t = terminal(PARTIAL, 80, 24)
    assert t.end() == 0
    shown = [line for line in t.lines() if line]
    assert shown[0] == "dotshalf a line"
    assert _bar(shown[1]) == (4, 4)
    assert shown[2:] == ["after"]


TWO = """
    import os, sys, time
    from pool import Pool
    from pool.progress import display

    def work(x):
        while x >= 40 and os.path.exists("hold"):
            time.sleep(0.001)
        time.sleep(0.1)
        return x

    with Pool(2) as pool:
        inner = []
        for x in pool.imap(work, range(60), progress=display(label="outer")):
            if x == 4:
                inner = list(pool.imap(work, range(10), progress=display(label="inner")))
                if os.fork() == 0:
                    sys.exit(0)  # and it runs the exit functions
                os.wait()
        print(len(inner))
"""


def test_a_second_bar_and_a_forked_child_leave_the_terminal_to_the_first(
    terminal: Callable[..., Terminal], hold: Path
) -> None:
    t = terminal(TWO, 80, 24)
    t.wait_for(lambda shown: any(line.startswith("inner  100%") for line in shown))
    t.wait_for(lambda shown: re.match(r"outer   [5-9]\d%", shown[-1]))
    assert t.screen.margins == (0, 22)
    hold.unlink()
    assert t.end() == 0
    shown = [line for line in t.lines() if line]
    assert [line.split()[0] for line in shown] == ["inner", "outer", "10"]


def test_colours_unless_they_are_unwanted_and_plain_signs_where_there_are_no_others(
    terminal: Callable[..., Terminal],
) -> None:
    short = NOISY.replace("range(60)", "range(4)")
    coloured = terminal(short)
    assert coloured.end() == 0
    assert b"\033[36m" in coloured.raw
    plain = terminal(short, NO_COLOR="1", PYTHONIOENCODING="ascii")
    assert plain.end() == 0
    assert b"\033[36m" not in plain.raw
    assert any(line.startswith("100%  ##########") for line in plain.lines())


@pytest.mark.parametrize("variables", [{"TERM": "dumb"}, {"TERM": ""}])
def test_a_terminal_that_cannot_do_it_gets_lines(terminal: Callable[..., Terminal], variables: dict[str, str]) -> None:
    t = terminal(NOISY.replace("range(60)", "range(4)"), **variables)
    assert t.end() == 0
    assert b"\033" not in t.raw
    assert any(line.startswith("pool: 4 of 4 (100%), ") for line in t.lines())


def test_last_bar_of_the_command_line_tells_all(terminal: Callable[..., Terminal], tmp_path: Path) -> None:
    (tmp_path / "tasks.py").write_text("def check(x):\n    if x.endswith('7'): raise ValueError('seven')\n")
    command = [sys.executable, "-m", "pool", "map", f"{tmp_path}/tasks.py:check", "--journal", f"{tmp_path}/j.db"]
    t = terminal([*command, *map(str, range(20))])
    assert t.end() == 1
    bars = [line for line in t.all_lines() if _bar(line)]
    assert re.match(r"100%  ━+  20/20  .*2 failed", bars[-1])
    assert _bar(bars[-1]) == (20, 20)
    assert t.all_lines()[-1].startswith("18 of 20 done, 2 failed in ")
    t = terminal([*command, *map(str, range(30))])  # the first twenty were done before
    assert t.end() == 1
    assert _bar([line for line in t.all_lines() if _bar(line)][-1]) == (30, 30)
    logged = terminal([*command, *map(str, range(40)), "--progress", "log"])
    assert logged.end() == 1
    assert not [line for line in logged.all_lines() if line.startswith("pool:")]  # the summary says it all


def test_the_command_line_gives_the_terminal_back_while_it_is_stopped(
    terminal: Callable[..., Terminal], tmp_path: Path
) -> None:
    (tmp_path / "tasks.py").write_text("import time\ndef nap(x): time.sleep(0.02)\n")
    bash = terminal(["bash", "--norc", "--noprofile", "-i"], 100, 12)
    bash.type(f"PS1='$ '; clear; {sys.executable} -m pool map {tmp_path}/tasks.py:nap $(seq 100000)\n")
    bash.wait_for(lambda lines: _bar(lines[-1]))
    bash.type("\x1a")
    bash.wait_for(lambda lines: any("Stopped" in line for line in lines))
    bash.type("for k in $(seq 30); do echo line $k; done; echo end\n")
    lines = bash.wait_for(
        lambda lines: lines if lines[-2:] == ["end", "$"] else None
    )  # also the last line is the shell's
    assert lines[-3] == "line 30"
    bash.type("fg\n")
    bash.wait_for(lambda lines: _bar(lines[-1]))
    bash.type("\x03")
    bash.wait_for(lambda lines: any(line.startswith("interrupted: ") for line in lines))
